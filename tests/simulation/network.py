"""The network: connections that keep order, directed cuts, resets, and frames that come too late.

A connection is a pair of streams; within one stream order holds, as TCP has it. What a cut holds
back is delivered when the cut heals, unless the connection was reset before. What was under way in
a reset connection is dropped, or arrives late: a receiver may read the rest of an old connection
while a new one is up, and a frame may be repeated from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from .schedule import MS, SECOND, Schedule

if TYPE_CHECKING:
    from .options import Options


class Network:
    """Who reaches whom, and how fast. Places are small numbers; 0 is the coordinator."""

    def __init__(self, schedule: Schedule, options: Options) -> None:
        self.schedule = schedule
        self.options = options
        self.random = schedule.random("network")
        self.cuts: dict[tuple[int, int], int] = {}
        self.slow: dict[tuple[int, int], int] = {}
        #: How far the coordinator's news is behind at a place, in microseconds.
        self.lag: dict[int, int] = {}
        self.streams: list[Stream] = []
        self.calm = False

    def delay_us(self, source: int, target: int) -> int:
        """How long one message takes."""
        random, options = self.random, self.options
        delay = options.delay_us * (0.5 + random.random()) + random.expovariate(
            1 / options.jitter_us
        )
        if not self.calm and random.random() < options.spike_rate:
            delay += random.uniform(5, options.spike_ms) * MS
        return int(delay) + self.slow.get((source, target), 0)

    def is_cut(self, source: int, target: int) -> bool:
        """Whether nothing gets from one place to another."""
        return self.cuts.get((source, target), 0) > 0

    def cut(self, source: int, target: int) -> None:
        """Let nothing through, one way. Cuts count: each is healed by its own."""
        self.cuts[source, target] = self.cuts.get((source, target), 0) + 1

    def heal(self, source: int, target: int) -> None:
        """Take one cut back."""
        left = self.cuts.get((source, target), 0) - 1
        if left > 0:
            self.cuts[source, target] = left
            return
        self.cuts.pop((source, target), None)
        self._release()

    def heal_all(self) -> None:
        """Take every cut, slow link and lag back."""
        self.cuts.clear()
        self.slow.clear()
        self.lag.clear()
        self._release()

    def _release(self) -> None:
        self.streams = [stream for stream in self.streams if stream.open or stream.held]
        for stream in self.streams:
            stream.release()

    def stream(
        self, source: int, target: int, deliver: Callable[[bytes], None], *, repeats: bool = False
    ) -> Stream:
        """One direction of a new connection; `repeats`: old frames may come again after a reset."""
        stream = Stream(self, source, target, deliver, repeats)
        self.streams.append(stream)
        if len(self.streams) > 512:
            self.streams = [one for one in self.streams if one.open or one.held]
        return stream

    def call(
        self,
        source: int,
        target: int,
        ask: Callable[[Callable[..., None]], None],
        answer: Callable[..., None],
        lost: Callable[[], None],
        timeout_us: int,
    ) -> None:
        """A request and its answer; exactly one of `answer` and `lost` is called.

        Args:
            source: Who asks.
            target: Who answers.
            ask: Runs at the target; gets what to call with the answer (never, if it is dead).
            answer: Runs at the source.
            lost: Runs at the source when no answer came in time: it may have been carried out.
            timeout_us: How long the source waits.
        """
        state = {"over": False}

        def finish(act: Callable[..., None], *args: object) -> None:
            if not state["over"]:
                state["over"] = True
                act(*args)

        def back(*args: object) -> None:
            if not self.is_cut(target, source):
                self.schedule.after(self.delay_us(target, source), finish, answer, *args)

        def arrive() -> None:
            if not self.is_cut(source, target):
                ask(back)

        self.schedule.after(self.delay_us(source, target), arrive)
        self.schedule.after(timeout_us, finish, lost)


class Stream:
    """Frames one way, in order."""

    def __init__(
        self,
        network: Network,
        source: int,
        target: int,
        deliver: Callable[[bytes], None],
        repeats: bool,
    ) -> None:
        self.open = True
        self.held: deque[bytes] = deque()
        self._network = network
        self._source, self._target = source, target
        self._deliver = deliver
        self._under_way: deque[bytes] = deque()
        self._last_us = 0
        #: What was delivered last, to be repeated out of an old connection.
        self._past: deque[bytes] = deque(maxlen=8 if repeats else 0)

    @property
    def random(self) -> Random:
        """The network's source of chance."""
        return self._network.random

    def send(self, frame: bytes) -> None:
        """Send one frame; dropped when the connection is gone."""
        if not self.open:
            return
        network = self._network
        schedule = network.schedule
        arrives = schedule.now_us + network.delay_us(self._source, self._target)
        self._last_us = max(self._last_us + 1, arrives)
        self._under_way.append(frame)
        schedule.at(self._last_us, self._arrive)

    def _arrive(self) -> None:
        if not self._under_way:
            return
        frame = self._under_way.popleft()
        if not self.open:
            return
        if self.held or self._network.is_cut(self._source, self._target):
            self.held.append(frame)
            return
        self._hand_over(frame)

    def _hand_over(self, frame: bytes) -> None:
        self._past.append(frame)
        self._deliver(frame)

    def release(self) -> None:
        """The way is free again: what was held back arrives, as if sent anew."""
        if self._network.is_cut(self._source, self._target):
            return
        frames, self.held = self.held, deque()
        if not self.open:
            return
        rest, self._under_way = self._under_way, deque()
        for frame in (*frames, *rest):
            self.send(frame)

    def reset(self) -> None:
        """The connection breaks. What was under way is lost, or some of it arrives late."""
        if not self.open:
            return
        self.open = False
        left = [*self.held, *self._under_way]
        self.held.clear()
        self._under_way.clear()
        options, random = self._network.options, self.random
        if left and random.random() < options.late_rate:
            self._late(left[: random.randint(1, len(left))])
        elif self._past and random.random() < options.repeat_rate:
            self._late(list(self._past)[-random.randint(1, len(self._past)) :])

    def _late(self, frames: list[bytes]) -> None:
        """The receiver reads the rest of the old connection, in order, but late."""
        longest = self.random.choice([5 * MS, 50 * MS, 500 * MS, 3 * SECOND])
        at = self._network.schedule.now_us
        for frame in frames:
            at += self.random.randrange(1, longest)
            self._network.schedule.at(at, self._deliver, frame)
