"""What a process is to the simulation: it runs events one at a time, pauses, and ends anywhere.

A pause stops it between two events, or in the middle of one: after it has read its clock and
before it acts on what it read, or between two of the effects of one event. Nothing that was to
happen to it is lost meanwhile: the kernel keeps it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from .schedule import MS, SECOND, Schedule

WALL_MS = 1_700_000_000_000


class Clock:
    """A machine's clocks: both drift, the wall clock also jumps, and both may stand still.

    That they stand still (a guest that is paused and not told) is outside of what leases assume.
    """

    def __init__(self, schedule: Schedule, booted_us: int, drift_ppm: float, wall_ms: int) -> None:
        self._schedule = schedule
        self._booted_us = booted_us
        self._rate = 1 + drift_ppm / 1_000_000
        self._wall_ms = WALL_MS + wall_ms - booted_us // MS
        #: What operators and time servers have done to the wall clock.
        self.jump_ms = 0
        self._still_us = 0
        self._stopped_us: int | None = None

    def boot_ms(self) -> int:
        """CLOCK_BOOTTIME: goes on through everything, at this machine's rate."""
        now_us = self._schedule.now_us if self._stopped_us is None else self._stopped_us
        return int((now_us - self._still_us) * self._rate + self._booted_us) // MS

    def wall_ms(self) -> int:
        """CLOCK_REALTIME."""
        return self._wall_ms + self.boot_ms() + self.jump_ms

    def stop(self) -> None:
        """Stand still."""
        if self._stopped_us is None:
            self._stopped_us = self._schedule.now_us

    def go_on(self) -> None:
        """Go on from where it stood, if it did."""
        if self._stopped_us is not None:
            self._still_us += self._schedule.now_us - self._stopped_us
            self._stopped_us = None


class Process:
    """A process of a machine.

    Attributes:
        dead: It has ended; nothing happens to it any more.
        paused: It executes nothing.
        stale: What its clocks said when it was paused, until it has used that once.
        countdown: Effects after which a fault strikes; below zero: none.
    """

    def __init__(self, schedule: Schedule, clock: Clock) -> None:
        self.schedule = schedule
        self.clock = clock
        self.dead = False
        self.paused = False
        self._paused_for_good = False
        self.stale: tuple[int, int] | None = None
        self.countdown = -1
        self.strike: Callable[[], None] = self._nothing
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    def _nothing(self) -> None:
        """No fault is planned."""

    def do(self, act: Callable[..., None], *args: Any) -> None:
        """Something happens to the process: now, or when it goes on."""
        if self.dead:
            return
        if self.paused:
            self._inbox.append((act, args))
            return
        act(*args)
        self.stale = None
        self.after_event()

    def after_event(self) -> None:
        """For who needs to look after each event."""

    def read_clocks(self) -> tuple[int, int]:
        """(boot, wall) milliseconds; of before a pause, if that struck after the reading."""
        return self.stale or (self.clock.boot_ms(), self.clock.wall_ms())

    def wall_ms(self) -> int:
        """Wall-clock milliseconds as the process reads them."""
        return self.read_clocks()[1]

    def boot_ms(self) -> int:
        """Milliseconds since boot as the process reads them."""
        return self.read_clocks()[0]

    def emit(self, effects: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
        """Carry out effects in order; a fault may strike between any two of them."""
        for act, args in effects:
            if self.dead:
                return
            if self.paused:
                self._inbox.append((act, args))
                continue
            if self.countdown >= 0:
                self.countdown -= 1
                if self.countdown < 0:
                    self.strike()
                    if self.dead:
                        return
                    if self.paused:
                        self._inbox.append((act, args))
                        continue
            act(*args)

    def pause(self, *, stale: bool, clocks: bool = False, for_good: bool = False) -> None:
        """Stop executing.

        Args:
            stale: It had just read its clocks, and will act on that when it goes on.
            clocks: They stand still meanwhile.
            for_good: It ends without going on, whatever paused it before.
        """
        self._paused_for_good |= for_good
        if self.dead or self.paused:
            return
        self.paused = True
        if clocks:
            self.clock.stop()
        if stale:
            self.stale = (self.clock.boot_ms(), self.clock.wall_ms())

    def resume(self, *, heal: bool = False) -> None:
        """Go on with all that has come in meanwhile.

        Args:
            heal: Faults are over, also the one that it was to end by.
        """
        self._paused_for_good &= not heal
        if self.dead or not self.paused or self._paused_for_good:
            return
        self.paused = False
        self.clock.go_on()
        inbox, self._inbox = self._inbox, deque()
        while inbox:
            if self.dead:
                return
            if self.paused:
                inbox.extend(self._inbox)
                self._inbox = inbox
                return
            act, args = inbox.popleft()
            self.do(act, *args)

    def end(self) -> None:
        """The process is no more."""
        self.dead = True
        self.clock.go_on()
        self._inbox.clear()


__all__ = ["MS", "SECOND", "WALL_MS", "Clock", "Process"]
