"""What the controller knows of the nodes besides their registrations.

A node is *alive*, *suspected* or *ended*. Suspicion comes from heartbeats that stay away and from
progress counters that stand still; it is no proof of anything and passes when the node is heard
again. One that passes again and again leaves the node *unsteady*: it gets its lease and serves what
it has, but what it has moves away and nothing is put there until it has behaved for a while, so
that partitions do not wander to a starved node and back. An ended node never comes back. Whether a
node may still be answering is another question: until its last lease is over, or until it has
ended, which proves that it does nothing any more.

Who calls: machine/controller.py. Source: PROTOCOL.md section 6.
"""

from __future__ import annotations

from typing import Final

import msgspec

from spacegrid.machine.leases import FRESH_WAIT_MS, waited_ms
from spacegrid.machine.table import Registration

__all__ = ["FORGIVEN_MS", "LOOK_MS", "STEADY_MS", "STUCK_MS", "SUSPECT_MS", "Liveness"]

LOOK_MS: Final = 50
"""Time between two looks at who was heard."""

SUSPECT_MS: Final = 400
"""A node that was not heard for this long is suspected: about four heartbeats."""
STUCK_MS: Final = (4_000, 30_000, 1_000)
"""How long the counters of a node may stand still: of its grid loop, of its units' loop, and of the
controller's answers that have reached it.

The units' loop stands still while a handler computes, which is no fault of the node: it is called
stuck only when no handler can be meant to take that long. The grid loop stands still with it where
the handler holds the interpreter: the node then answers what needs no Python, and goes on.
"""
STEADY_MS: Final = (2_000, 30_000)
"""How long a node that was suspected a second time must behave before anything is put there, and
the most that this doubles to with each time more."""
FORGIVEN_MS: Final = 60_000
"""A node that has behaved for this long begins again with a clean record."""


class _Heard(msgspec.Struct):
    """One node: when it was heard last, and when each of its counters moved last."""

    at_ms: int
    progress: tuple[int, ...] = ()
    moved_ms: list[int] = []


class _Record(msgspec.Struct):
    """How often a node was suspected of late, and until when it is unsteady."""

    count: int = 0
    until_ms: int = 0


class Liveness:
    """Standing and leases of the nodes; empty until `begin`."""

    def __init__(self) -> None:
        """Know nobody."""
        #: Nodes that do not behave; empty while too few are heard to judge.
        self.suspected: frozenset[int] = frozenset()
        #: Those of them that are not heard; of the others a loop stands still.
        self.silent: frozenset[int] = frozenset()
        #: Nodes that behave now, and whose suspicions have passed too often to build on it.
        self.unsteady: frozenset[int] = frozenset()
        #: Nodes that are registered and have not been heard by this controller yet.
        self.unheard: frozenset[int] = frozenset()
        #: Fewer than half of the nodes are heard: it may well be this node that is cut off.
        self.isolated = False
        self._heard: dict[int, _Heard] = {}
        #: Until when each node may answer, by the grants of this controller.
        self._granted_ms: dict[int, int] = {}
        self._records: dict[int, _Record] = {}
        self._fresh_until_ms = 0
        self._looked_ms = 0

    def begin(self, registrations: tuple[Registration, ...], now_ms: int) -> None:
        """A new controller begins: whatever the one before granted may still be good.

        Args:
            registrations: All nodes that have not ended.
            now_ms: Not before the term was taken.
        """
        self._heard = {item.incarnation: _Heard(now_ms) for item in registrations}
        self.unheard = frozenset(self._heard)
        self._granted_ms = {}
        self._fresh_until_ms = now_ms + FRESH_WAIT_MS
        self._looked_ms = now_ms
        self._records = {}
        self.suspected, self.silent, self.unsteady = frozenset(), frozenset(), frozenset()
        self.isolated = False

    def set_registrations(self, registrations: tuple[Registration, ...], now_ms: int) -> None:
        """Take who has not ended; a node that is new has just been heard."""
        known, self._heard = self._heard, {}
        for item in registrations:
            self._heard[item.incarnation] = known.get(item.incarnation) or _Heard(now_ms)
        self.unheard = frozenset(self._heard) - (frozenset(known) - self.unheard)
        self._judge(now_ms)

    def hear(self, copy: int, progress: tuple[int, ...], now_ms: int) -> None:
        """A heartbeat came."""
        heard = self._heard.get(copy)
        if heard is None:
            return
        self.unheard -= {copy}
        heard.at_ms = now_ms
        if len(progress) != len(heard.progress):
            heard.moved_ms = [now_ms] * len(progress)
        for index, (before, after) in enumerate(zip(heard.progress, progress, strict=False)):
            if before != after:
                heard.moved_ms[index] = now_ms
        heard.progress = progress
        if copy in self.suspected or self.isolated:
            self._judge(now_ms)

    def look(self, now_ms: int) -> None:
        """Time passed; called every `LOOK_MS`.

        For time in which this node itself did not run it judges nobody: whoever was silent then may
        have been heard and not been listened to.
        """
        lost_ms = now_ms - self._looked_ms - LOOK_MS
        self._looked_ms = now_ms
        if lost_ms > LOOK_MS:
            for heard in self._heard.values():
                heard.at_ms = min(now_ms, heard.at_ms + lost_ms)
                heard.moved_ms = [min(now_ms, moved + lost_ms) for moved in heard.moved_ms]
        self._judge(now_ms)

    def grant(self, copy: int, lease_ms: int, now_ms: int) -> None:
        """A lease is given to a node; one that it was given before may end later."""
        until_ms = now_ms + waited_ms(lease_ms)
        self._granted_ms[copy] = max(until_ms, self._granted_ms.get(copy, 0))

    def answers_until_ms(self, copy: int) -> int:
        """Until when that copy may answer, by a lease of this controller or the one before."""
        if copy not in self._heard:
            # It has ended, and C5 says that it does nothing any more.
            return 0
        return max(self._granted_ms.get(copy, 0), self._fresh_until_ms)

    def next_look_ms(self) -> int:
        """When to call `look` again."""
        return self._looked_ms + LOOK_MS

    def _judge(self, now_ms: int) -> None:
        silent = {copy for copy, heard in self._heard.items() if now_ms - heard.at_ms >= SUSPECT_MS}
        self.isolated = 2 * (len(self._heard) - len(silent)) < len(self._heard)
        if self.isolated:
            return
        stuck = {copy for copy, heard in self._heard.items() if _is_stuck(heard, now_ms)}
        before, self.suspected = self.suspected, frozenset(silent | stuck)
        self.silent = frozenset(silent)
        for copy in before - self.suspected:
            self._passed(copy, now_ms)
        self._records = {
            copy: record
            for copy, record in self._records.items()
            if copy in self._heard and now_ms < record.until_ms + FORGIVEN_MS
        }
        self.unsteady = frozenset(
            copy
            for copy, record in self._records.items()
            if now_ms < record.until_ms and copy not in self.suspected
        )

    def _passed(self, copy: int, now_ms: int) -> None:
        """A node that was suspected behaves again: the first time that is forgiven at once."""
        record = self._records.setdefault(copy, _Record())
        record.count += 1
        first_ms, most_ms = STEADY_MS
        doubled_ms = first_ms << min(record.count - 2, 16) if record.count > 1 else 0
        record.until_ms = now_ms + min(doubled_ms, most_ms)


def _is_stuck(heard: _Heard, now_ms: int) -> bool:
    return any(
        now_ms - moved_ms >= limit_ms
        for moved_ms, limit_ms in zip(heard.moved_ms, STUCK_MS, strict=False)
    )
