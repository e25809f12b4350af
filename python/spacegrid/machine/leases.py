"""The numbers of leases.

A node lease lasts `LEASE_MS`. The holder counts 0.95 of it from before its heartbeat left, the
controller 1.05 of it from its answer: so the holder has surely stopped answering before the
controller believes that it has, with clocks that run up to five in a hundred apart. A lease names a
table revision and counts once the holder has applied it.

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
