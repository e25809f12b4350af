"""The numbers of leases.

A node lease lasts `LEASE_MS`. The holder counts 0.95 of it from before its heartbeat left, the
controller 1.05 of it from its answer: so the holder has surely stopped answering before the
controller believes that it has, with clocks that run up to five in a hundred apart. A lease names a
table revision and counts once the holder has applied it.

A lease is shorter where the controller last knew a while ago that it is one: none reaches further
than `REACH_MS` beyond the sending of the reading of the term that it was given under. So a node
that is cut off together with its controller, or is it, stops answering by then, and a controller
that follows needs to wait no longer.

A node's own half of them is the core's `Heart` (rust/core/src/replica/heart.rs).

Who calls: machine/controller.py, machine/liveness.py, node/heartbeats.py.
Source: PROTOCOL.md section 6.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "AUTHORITY_MS",
    "CONFIRM_MS",
    "FRESH_WAIT_MS",
    "GRANTED_MS",
    "HEARTBEAT_MS",
    "HELD_MS",
    "LEASE_MS",
    "REACH_MS",
    "waited_ms",
]


def waited_ms(held_ms: int) -> int:
    """How long to wait for the end of what a holder counts so long, by a clock that may be fast."""
    return -(-held_ms * 105 // 95)


LEASE_MS: Final = 500
"""How long a node may answer without being told again that it may."""
HELD_MS: Final = LEASE_MS * 95 // 100
"""What the holder counts, from before its request."""
GRANTED_MS: Final = waited_ms(HELD_MS)
"""What the controller waits at most, from its answer."""
HEARTBEAT_MS: Final = 100
"""Time between two heartbeats."""
CONFIRM_MS: Final = 100
"""Time between two readings of the term by its holder."""
AUTHORITY_MS: Final = 300
"""How long one reading of the term is good for, counted from its sending."""
REACH_MS: Final = 525
"""How long after the sending of such a reading the last lease given under it ends."""
FRESH_WAIT_MS: Final = waited_ms(REACH_MS)
"""For how long the controller before may have granted leases that are still good."""
