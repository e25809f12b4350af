"""Time, in the two meanings the project has for it.

Wall-clock milliseconds say when an entry expires, and nothing is ever ordered by them. Monotonic
time bounds waiting. Everything that decides (machine/, the core) is handed a number and reads no
clock.
"""

from __future__ import annotations

import time

__all__ = ["boottime_ms", "monotonic_ms", "monotonic_s", "now_ms"]


def now_ms() -> int:
    """Wall-clock time in milliseconds since 1970, for expiry only."""
    return time.time_ns() // 1_000_000


def monotonic_s() -> float:
    """Seconds of the monotonic clock, for waiting and measuring."""
    return time.monotonic()


def monotonic_ms() -> int:
    """Milliseconds of the monotonic clock, for deadlines."""
    return time.monotonic_ns() // 1_000_000


def boottime_ms() -> int:
    """Milliseconds of the clock that goes on while the machine sleeps, for leases."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
