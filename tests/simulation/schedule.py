"""Simulated time: events in order, and the hash of everything that happened."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from hashlib import blake2b
from random import Random
from typing import Any

MS = 1_000
"""Microseconds in a millisecond; simulated time is whole microseconds."""
SECOND = 1_000_000


class Schedule:
    """What happens when. Events of one instant happen in the order in which they were asked for.

    Attributes:
        now_us: Simulated time.
        count: Events that have happened.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now_us = 0
        self.count = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._asked = 0
        self._hash = blake2b(digest_size=8)
        self.log: list[str] | None = None

    def random(self, purpose: str) -> Random:
        """A source of chance of its own for each purpose, so that one more draw shifts no other."""
        return Random(f"{self.seed} {purpose}")

    def at(self, when_us: int, act: Callable[..., None], *args: Any) -> None:
        """Do something at a time, now at the earliest."""
        self._asked += 1
        heapq.heappush(self._heap, (max(when_us, self.now_us), self._asked, act, args))

    def after(self, delay_us: float, act: Callable[..., None], *args: Any) -> None:
        """Do something after a delay."""
        self.at(self.now_us + int(delay_us), act, *args)

    def run_until(self, until_us: int, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass; whether `done` said so before the time was over."""
        heap = self._heap
        while heap and heap[0][0] <= until_us:
            self.now_us, _, act, args = heapq.heappop(heap)
            self.count += 1
            act(*args)
            if done is not None and self.count % 256 == 0 and done():
                return True
        self.now_us = until_us
        return done is not None and done()

    def trace(self, what: str, data: bytes = b"") -> None:
        """Note what happens: it becomes part of the run's hash."""
        self._hash.update(f"{self.now_us} {what}\n".encode() + data)
        if self.log is not None:
            self.log.append(f"{self.now_us / SECOND:10.6f} {what}")

    def digest(self) -> str:
        """Hash of all that was traced so far."""
        return self._hash.hexdigest()
