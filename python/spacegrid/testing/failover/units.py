"""The unit that the measurements call: handlers that misbehave on purpose."""

from __future__ import annotations

import ctypes
import time

from spacegrid import Map, Unit, handler


class Heavy(Unit):
    """Burns the processor, or holds the interpreter."""

    calls = Map(str, int)

    @handler(route_by="key")
    async def burn(self, key: str, seconds: float) -> int:
        """Compute in Python, and let nobody on this thread's loop do anything else."""
        end = time.monotonic() + seconds
        rounds = 0
        while time.monotonic() < end:
            rounds += sum(range(1000)) > 0
        self.calls.put(key, (self.calls.get(key) or 0) + 1)
        return rounds

    @handler(route_by="key")
    async def hold(self, key: str, seconds: float) -> int:
        """Hold the interpreter's lock in C: no Python of this process runs meanwhile."""
        ctypes.PyDLL(None).usleep(ctypes.c_uint(int(seconds * 1_000_000)))
        calls = (self.calls.get(key) or 0) + 1
        self.calls.put(key, calls)
        return calls
