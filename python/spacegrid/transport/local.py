"""Clients of a node in their own process: no socket, the same frames.

An embedded grid is a client like any other; only the way of its frames is a function call. On a
loop the node's replies come in a later loop tick, so that many operations share a frame here too.

Who calls: client (through `base`'s protocols).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from spacegrid._core import FrameError
from spacegrid.transport.base import (
    ClientLink,
    ExchangeFailed,
    LocalNode,
    OnDown,
    OnFrame,
    Opened,
    Routes,
)

__all__ = ["LOCAL_ADDRESS", "LocalBlockingTransport", "LocalClientTransport"]

LOCAL_ADDRESS: Final = "local:0"
"""Seed of a node in this process; it names no socket."""


_COUNT_OFFSET: Final = 8


def _reply_count(frame: bytes) -> int:
    """Replies in a reply frame, from its envelope (proto/FRAME.md)."""
    return int.from_bytes(frame[_COUNT_OFFSET : _COUNT_OFFSET + 4], "little")


class _LocalLink:
    """One connection to the node of this process."""

    def __init__(self, node: LocalNode, on_frame: OnFrame, on_down: OnDown) -> None:
        self._node = node
        self._on_down = on_down
        self._connection = node.open_connection(on_frame)
        self._open = True

    def send(self, frame: bytes) -> None:
        """Hand over a frame."""
        if not self._open:
            return
        try:
            self._node.client_frame(self._connection, frame)
        except FrameError as error:
            self.close()
            self._on_down(str(error), True)

    def close(self) -> None:
        """Forget the connection."""
        if self._open:
            self._open = False
            self._node.close_connection(self._connection)


class LocalClientTransport:
    """A node in this process, for an asyncio client.

    Args:
        node: The node; started with the first `open`, and stopped by `close`.
    """

    def __init__(self, node: LocalNode) -> None:
        self._node = node
        self._started = False
        self._links: list[_LocalLink] = []

    async def open(self, address: str, cluster_id: bytes, timeout_s: float) -> Opened:
        """Start the node and open a request stream in it."""
        if not self._started:
            self._started = True
            self._node.start(asyncio.get_running_loop())
        return Opened(self._node.cluster_id, self._node.open_stream(), self._node.routes())

    async def routes(self, address: str, timeout_s: float) -> Routes:
        """Return the node's routes."""
        return self._node.routes()

    def link(
        self, address: str, cluster_id: bytes, on_frame: OnFrame, on_down: OnDown
    ) -> ClientLink:
        """Open a connection to the node."""
        link = _LocalLink(self._node, on_frame, on_down)
        self._links.append(link)
        return link

    async def close(self) -> None:
        """Close every connection, then stop the node; the loop runs on while it flushes."""
        for link in self._links:
            link.close()
        self._links.clear()
        if self._started:
            self._started = False
            await asyncio.to_thread(self._node.stop)


class LocalBlockingTransport:
    """A node in this process, for threads.

    Each frame has a connection of its own for as long as it is unanswered, so answers that take
    long (a handler, a flush) hold up nobody else.

    Args:
        node: The node; started with the first `open`, and stopped by `close`.
    """

    def __init__(self, node: LocalNode) -> None:
        self._node = node
        self._started = False

    def open(self, address: str, cluster_id: bytes, timeout_s: float) -> Opened:
        """Start the node and open a request stream in it."""
        if not self._started:
            self._started = True
            self._node.start_inline()
        return Opened(self._node.cluster_id, self._node.open_stream(), self._node.routes())

    def routes(self, address: str, timeout_s: float) -> Routes:
        """Return the node's routes."""
        return self._node.routes()

    def exchange(
        self,
        frames: Sequence[tuple[str, bytes]],
        timeout_s: float,
        go_on: Callable[[str], bool],
    ) -> list[list[bytes] | ExchangeFailed]:
        """Hand over frames and wait for their answers."""
        until = time.monotonic() + timeout_s
        return [self._exchange(frame, until) for _address, frame in frames]

    def _exchange(self, frame: bytes, until: float) -> list[bytes] | ExchangeFailed:
        answers: list[bytes] = []
        answered = threading.Semaphore(0)

        def deliver(reply: bytes) -> None:
            answers.append(reply)
            answered.release()

        connection = self._node.open_connection(deliver)
        try:
            missing = self._node.client_frame(connection, frame)
            seen = 0
            while missing > 0:
                if seen == len(answers) and not answered.acquire(
                    timeout=max(0.0, until - time.monotonic())
                ):
                    return ExchangeFailed("no answer in time", True)
                while seen < len(answers):
                    missing -= _reply_count(answers[seen])
                    seen += 1
        except FrameError as error:
            return ExchangeFailed(str(error), True)
        finally:
            self._node.close_connection(connection)
        return answers

    def close(self) -> None:
        """Stop the node."""
        if self._started:
            self._started = False
            self._node.stop()
