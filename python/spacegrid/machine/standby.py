"""When a node asks to be controller.

A pure machine on every node: it hears who is registered, who holds the term, and how the holder
behaves, and its only effect is `Campaign`. The coordinator gives the term to whoever asks first
knowing the one before, so two nodes that ask at one time do no harm; to keep that rare the lowest
incarnation that stays asks first, the next one a little later.

A node campaigns when nobody holds the term, when the holder's registration has ended, when the
holder is leaving and somebody else stays, or when the holder has not answered heartbeats for
`SILENT_MS`. Of the last it may be mistaken, if it is its own link that is cut: it does not campaign
while more than half of the others still hear the holder.

Who calls: node/controller_runner.py, tests. Source: PROTOCOL.md section 6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from spacegrid.machine.events import (
    Campaign,
    CampaignDone,
    CampaignFailed,
    ControllerChanged,
    ControllerHeard,
    PeerHeard,
    RegistrationsChanged,
    StandbyEvent,
    Ticked,
)
from spacegrid.machine.table import Registration

__all__ = ["CAMPAIGN_STAGGER_MS", "SILENT_MS", "Standby"]

CAMPAIGN_STAGGER_MS: Final = 100
"""How much later each next candidate campaigns, and how long one that failed waits."""

SILENT_MS: Final = 500
"""A controller that has answered nothing for this long is followed by another."""
TICK_MS: Final = 100
"""`Ticked` comes at least this often; what is above it this node has not run."""


class Standby:
    """Decides when its node campaigns; see the module."""

    def __init__(self, incarnation: int) -> None:
        """Begin with nothing known.

        Args:
            incarnation: Of this node.
        """
        self.incarnation = incarnation
        self._controller = ControllerChanged(0, 0)
        self._registrations: tuple[Registration, ...] = ()
        self._asking = False
        #: When the reason to campaign was first seen; None: there is none.
        self._vacant_since_ms: int | None = None
        self._not_before_ms = 0
        #: When the holder was heard last, or became the holder.
        self._heard_ms = 0
        #: Of each other node: the term it has heard lately, and when it said so.
        self._peers: dict[int, tuple[int, int]] = {}
        self._ticked_ms = 0
        self._handlers: dict[type, Callable[..., None]] = {
            RegistrationsChanged: self._on_registrations_changed,
            ControllerChanged: self._on_controller_changed,
            ControllerHeard: self._on_controller_heard,
            PeerHeard: self._on_peer_heard,
            CampaignDone: self._on_campaign_done,
            CampaignFailed: self._on_campaign_failed,
            Ticked: self._on_ticked,
        }

    def handle(self, event: StandbyEvent, now_ms: int) -> list[Campaign]:
        """Take an event.

        Args:
            event: What happened.
            now_ms: Milliseconds of a clock that does not go back; `Ticked` comes every `TICK_MS`.

        Returns:
            At most one campaign, and none while one is under way.
        """
        self._handlers[type(event)](event, now_ms)
        if not self._vacant(now_ms):
            self._vacant_since_ms = None
            return []
        if self._vacant_since_ms is None:
            self._vacant_since_ms = now_ms
        due_ms = self.next_deadline_ms()
        if due_ms is None or now_ms < due_ms:
            return []
        self._asking = True
        return [Campaign(self._controller.term)]

    def next_deadline_ms(self) -> int | None:
        """When to hand in `Ticked` if nothing else happens; None: no need."""
        if self._asking or self._vacant_since_ms is None:
            return None
        turn_ms = self._vacant_since_ms + self._rank() * CAMPAIGN_STAGGER_MS
        return max(turn_ms, self._not_before_ms)

    def heard_term(self, now_ms: int) -> int:
        """The term whose holder this node has heard lately, 0: it hears none."""
        return 0 if now_ms - self._heard_ms >= SILENT_MS else self._controller.term

    def _on_controller_heard(self, event: ControllerHeard, _now_ms: int) -> None:
        if event.term and event.term == self._controller.term:
            self._heard_ms = max(self._heard_ms, event.at_ms)

    def _on_peer_heard(self, event: PeerHeard, now_ms: int) -> None:
        self._peers[event.copy] = (event.heard_term, now_ms)

    def _on_registrations_changed(self, event: RegistrationsChanged, _now_ms: int) -> None:
        self._registrations = event.registrations
        there = {item.incarnation for item in event.registrations}
        self._peers = {copy: said for copy, said in self._peers.items() if copy in there}

    def _on_controller_changed(self, event: ControllerChanged, now_ms: int) -> None:
        if event.term > self._controller.term:
            self._controller = event
            self._vacant_since_ms = None
            self._heard_ms = now_ms

    def _on_campaign_done(self, event: CampaignDone, now_ms: int) -> None:
        self._asking = False
        self._on_controller_changed(event.controller, now_ms)

    def _on_campaign_failed(self, _event: CampaignFailed, now_ms: int) -> None:
        self._asking = False
        self._not_before_ms = now_ms + CAMPAIGN_STAGGER_MS

    def _on_ticked(self, _event: Ticked, now_ms: int) -> None:
        lost_ms = now_ms - self._ticked_ms - TICK_MS
        self._ticked_ms = now_ms
        if lost_ms > TICK_MS:
            # In that time this node did not run: whoever was silent may not have been.
            self._heard_ms = min(now_ms, self._heard_ms + lost_ms)

    def _vacant(self, now_ms: int) -> bool:
        """Whether the term is there to be taken by this node."""
        holder = self._controller.incarnation
        if holder == self.incarnation:
            return False
        mine = self._registration(self.incarnation)
        if mine is None:
            return False
        held = self._registration(holder)
        if held is None or (_leaves(held) and not _leaves(mine)):
            return True
        return now_ms - self._heard_ms >= SILENT_MS and not self._others_hear(now_ms)

    def _others_hear(self, now_ms: int) -> bool:
        """Whether more than half of the other nodes that are there hear the holder."""
        said = [
            term
            for copy, (term, at_ms) in self._peers.items()
            if copy not in (self.incarnation, self._controller.incarnation)
            and now_ms - at_ms < SILENT_MS
        ]
        return 2 * said.count(self._controller.term) > len(said)

    def _rank(self) -> int:
        """How many nodes come before this one: those that stay, in order of incarnation, first."""
        mine = self._registration(self.incarnation)
        leaves = mine is not None and _leaves(mine)
        return sum(
            (_leaves(item), item.incarnation) < (leaves, self.incarnation)
            for item in self._registrations
            if item.incarnation != self._controller.incarnation
        )

    def _registration(self, incarnation: int) -> Registration | None:
        for item in self._registrations:
            if item.incarnation == incarnation:
                return item
        return None


def _leaves(registration: Registration) -> bool:
    return registration.draining or registration.stopped
