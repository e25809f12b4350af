"""The numbers of leases, and a node's own half of them.

A node lease lasts `LEASE_MS`. The holder counts 0.95 of it from before its heartbeat left, the
controller 1.05 of it from its answer: so the holder has surely stopped answering before the
controller believes that it has, with clocks that run up to five in a hundred apart. A lease names a
table revision and counts once the holder has applied it.

Who calls: machine/controller.py and machine/liveness.py (the numbers), node/heartbeats.py.
Source: PROTOCOL.md section 6.
"""

from __future__ import annotations

from typing import Final

from spacegrid.machine.events import HeartbeatAnswer, TakeLease

__all__ = [
    "AUTHORITY_MS",
    "CONFIRM_MS",
    "FRESH_WAIT_MS",
    "GRANTED_MS",
    "HEARTBEAT_MS",
    "HELD_MS",
    "LEASE_MS",
    "LeaseHolder",
]

LEASE_MS: Final = 500
"""How long a node may answer without being told again that it may."""
HELD_MS: Final = LEASE_MS * 95 // 100
"""What the holder counts, from before its request."""
GRANTED_MS: Final = LEASE_MS * 105 // 100
"""What the controller waits, from its answer."""
HEARTBEAT_MS: Final = 100
"""Time between two heartbeats."""
CONFIRM_MS: Final = 100
"""Time between two readings of the term by its holder."""
AUTHORITY_MS: Final = 300
"""How long one reading of the term is good for, counted from its sending."""
FRESH_WAIT_MS: Final = AUTHORITY_MS + GRANTED_MS
"""For how long the controller before may have granted leases that are still good."""


class LeaseHolder:
    """What a node knows of its own lease."""

    def __init__(self) -> None:
        """Begin without one."""
        self._nonce = 0
        #: When the heartbeats that may still be answered were sent.
        self._sent_ms: dict[int, int] = {}
        self._applied = 0
        #: A grant at a revision that is not applied yet: (revision, end).
        self._waiting: tuple[int, int] | None = None

    def beat(self, now_ms: int) -> int:
        """A heartbeat is about to be sent; its nonce.

        Args:
            now_ms: Of the clock in which leases are counted, read before the sending.
        """
        self._nonce += 1
        self._sent_ms = {
            nonce: sent_ms for nonce, sent_ms in self._sent_ms.items() if sent_ms + HELD_MS > now_ms
        }
        self._sent_ms[self._nonce] = now_ms
        return self._nonce

    def answered(self, answer: HeartbeatAnswer) -> list[TakeLease]:
        """Take an answer; one to a heartbeat of too long ago is worth nothing."""
        sent_ms = self._sent_ms.get(answer.nonce)
        if not answer.granted or sent_ms is None:
            return []
        until_ms = sent_ms + HELD_MS
        if answer.revision <= self._applied:
            return [TakeLease(answer.revision, until_ms)]
        if self._waiting is None or self._waiting[0] <= answer.revision:
            self._waiting = (answer.revision, until_ms)
        return []

    def applied(self, revision: int) -> list[TakeLease]:
        """The node has applied a table; a grant that waited for it may count now."""
        self._applied = max(self._applied, revision)
        if self._waiting is None or self._waiting[0] > self._applied:
            return []
        (granted_at, until_ms), self._waiting = self._waiting, None
        return [TakeLease(granted_at, until_ms)]
