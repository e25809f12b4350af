"""A node's outgoing link to another one: connects, says hello, carries frames, begins again.

As node/peers.py has it: the core is told when a link is up and when it is down, and a link leads to
one incarnation only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .network import Stream
from .schedule import MS

if TYPE_CHECKING:
    from .node import NodeProcess

BACKOFF_MS = (20, 40, 80, 160, 320, 500)


class Link:
    """One outgoing link."""

    def __init__(self, owner: NodeProcess, incarnation: int) -> None:
        self.incarnation = incarnation
        self._owner = owner
        self._world = owner.world
        self._stream: Stream | None = None
        self._attempts = 0
        self._closed = False
        self._world.links.append(self)
        self._connect()

    @property
    def up(self) -> bool:
        """Whether it carries frames."""
        return self._stream is not None

    @property
    def ends(self) -> tuple[int, int]:
        """Places at both ends."""
        there = self._world.processes.get(self.incarnation)
        return self._owner.place, there.place if there is not None else self._owner.place

    def send(self, frame: bytes) -> None:
        """Send a frame; dropped while the link is down."""
        if self._stream is not None:
            self._stream.send(frame)

    def _connect(self) -> None:
        source, target = self.ends
        network = self._world.network
        delay = 2 * network.delay_us(source, target) + network.delay_us(target, source)
        self._world.schedule.after(delay, self._owner.do, self._connected)

    def _connected(self) -> None:
        if self._closed or self._stream is not None:
            return
        there = self._world.processes.get(self.incarnation)
        source, target = self.ends
        network = self._world.network
        away = there is None or there.dead or there.paused
        if away or network.is_cut(source, target) or network.is_cut(target, source):
            self._again()
            return
        assert there is not None
        me = self._owner.incarnation

        def deliver(frame: bytes) -> None:
            there.do(there.peer_frame, me, frame)

        self._attempts = 0
        self._stream = network.stream(source, target, deliver, repeats=True)
        self._owner.peer_up(self.incarnation)

    def _again(self) -> None:
        pause = BACKOFF_MS[min(self._attempts, len(BACKOFF_MS) - 1)]
        self._attempts += 1
        self._world.schedule.after(pause * MS, self._owner.do, self._connect)

    def reset(self) -> None:
        """The connection breaks; the owner notices."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.reset()
            self._owner.do(self._down)

    def _down(self) -> None:
        self._owner.peer_down(self.incarnation)
        if not self._closed:
            self._again()

    def close(self) -> None:
        """The other node is not registered any more, or this one is gone."""
        self._closed = True
        if self._stream is not None:
            self._stream.reset()
            self._stream = None
            if not self._owner.dead:
                self._owner.peer_down(self.incarnation)
        if self in self._world.links:
            self._world.links.remove(self)
