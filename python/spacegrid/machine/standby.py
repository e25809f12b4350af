"""When a node asks to be controller.

A pure machine on every node: it hears who is registered, who holds the term, and how the holder
behaves, and its only effect is `Campaign`. The coordinator gives the term to whoever asks first
knowing the one before, so two nodes that ask at one time do no harm; to keep that rare the lowest
incarnation that stays asks first, the next one a little later.

A node campaigns when nobody holds the term, when the holder's registration has ended, or when the
holder is leaving and somebody else stays.

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
    RegistrationsChanged,
    StandbyEvent,
    Ticked,
)
from spacegrid.machine.table import Registration

__all__ = ["CAMPAIGN_STAGGER_MS", "Standby"]

CAMPAIGN_STAGGER_MS: Final = 100
"""How much later each next candidate campaigns, and how long one that failed waits."""


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
        self._handlers: dict[type, Callable[..., None]] = {
            RegistrationsChanged: self._on_registrations_changed,
            ControllerChanged: self._on_controller_changed,
            CampaignDone: self._on_campaign_done,
            CampaignFailed: self._on_campaign_failed,
            Ticked: self._on_ticked,
        }

    def handle(self, event: StandbyEvent, now_ms: int) -> list[Campaign]:
        """Take an event.

        Args:
            event: What happened.
            now_ms: Milliseconds of a clock that does not go back.

        Returns:
            At most one campaign, and none while one is under way.
        """
        self._handlers[type(event)](event, now_ms)
        if not self._vacant():
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

    def _on_registrations_changed(self, event: RegistrationsChanged, _now_ms: int) -> None:
        self._registrations = event.registrations

    def _on_controller_changed(self, event: ControllerChanged, _now_ms: int) -> None:
        if event.term > self._controller.term:
            self._controller = event
            self._vacant_since_ms = None

    def _on_campaign_done(self, event: CampaignDone, now_ms: int) -> None:
        self._asking = False
        self._on_controller_changed(event.controller, now_ms)

    def _on_campaign_failed(self, _event: CampaignFailed, now_ms: int) -> None:
        self._asking = False
        self._not_before_ms = now_ms + CAMPAIGN_STAGGER_MS

    def _on_ticked(self, _event: Ticked, _now_ms: int) -> None:
        """Time is in every call of `handle`."""

    def _vacant(self) -> bool:
        """Whether the term is there to be taken by this node."""
        holder = self._controller.incarnation
        if holder == self.incarnation:
            return False
        mine = self._registration(self.incarnation)
        if mine is None:
            return False
        held = self._registration(holder)
        return held is None or (_leaves(held) and not _leaves(mine))

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
