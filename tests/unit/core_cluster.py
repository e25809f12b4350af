"""A cluster of core nodes in the test's own process, with the network under the test's control.

Frames are real and are carried out by the real core; what is faked is the wire: it counts frames,
holds replies back, and cuts links when told.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence

from spacegrid import _core
from spacegrid.clock import now_ms
from spacegrid.errors import ConnectionFailed
from spacegrid.transport.base import (
    ClientLink,
    ExchangeFailed,
    OnDown,
    OnFrame,
    Opened,
    RouteNode,
    Routes,
)

PARTITIONS = 8
CLUSTER = bytes(range(16))


class CoreNode:
    """One node that is the primary of every partition, with one copy; a `LocalNode`."""

    cluster_id = CLUSTER

    def __init__(self, copy: int = 1, address: str = "one:1", min_in_sync: int = 1) -> None:
        self.copy, self.address = copy, address
        self.core = _core.Node(copy, PARTITIONS, min_in_sync=min_in_sync)
        self.revision = 0
        self.serve(epoch=1)
        self.frames: list[bytes] = []
        self.asked = asyncio.Event()
        self.stopped = False
        self._deliver: dict[int, OnFrame] = {}
        self._connections = itertools.count(1)
        self._streams = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None

    def serve(self, epoch: int, primary: int | None = None) -> None:
        """Give every partition to this node, or to another copy."""
        self.revision += 1
        owner = self.copy if primary is None else primary
        table = [
            (p, epoch, self.revision, 1, owner, [owner], [], [], [], 0) for p in range(PARTITIONS)
        ]
        self.core.apply_table(self.revision, table, now_ms())

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def start_inline(self) -> None:
        self._loop = None

    def open_stream(self) -> int:
        return self.copy << 32 | next(self._streams)

    def routes(self) -> Routes:
        node = RouteNode("one", self.address, self.copy)
        return Routes(self.revision, (node,), [1] * PARTITIONS)

    def open_connection(self, deliver: OnFrame) -> int:
        connection = next(self._connections)
        self._deliver[connection] = deliver
        return connection

    def client_frame(self, connection: int, frame: bytes) -> int:
        self.frames.append(frame)
        self.asked.set()
        count = self.core.on_client_frame(connection, frame, now_ms())
        if self._loop is None:
            self.pump()
        else:
            self._loop.call_soon(self.pump)
        return count

    def pump(self) -> None:
        """Deliver what the core has answered."""
        while (effects := self.core.take_effects()) is not None:
            for connection, frame in effects.client_frames:
                if connection in self._deliver:
                    self._deliver[connection](frame)

    def close_connection(self, connection: int) -> None:
        self._deliver.pop(connection, None)
        self.core.close_connection(connection)

    def stop(self) -> None:
        self.stopped = True


class Wire:
    """An asyncio transport over nodes in this process.

    Attributes:
        nodes: Address to node; an address without a node refuses connections.
        table: What every node says about routes; each node's own word when None.
        silent: Whether replies are held back (they are dropped when the link goes).
        asked: Addresses that were asked for routes.
    """

    def __init__(self, *nodes: CoreNode) -> None:
        self.nodes = {node.address: node for node in nodes}
        self.table: Routes | None = None
        self.silent = False
        self.asked: list[str] = []
        self.links: list[_Link] = []
        self.closed = False

    def _node(self, address: str) -> CoreNode:
        node = self.nodes.get(address)
        if node is None:
            raise ConnectionFailed(f"{address}: nobody is there", addresses=(address,))
        node.start(asyncio.get_running_loop())
        return node

    async def open(self, address: str, cluster_id: bytes, timeout_s: float) -> Opened:
        node = self._node(address)
        return Opened(CLUSTER, node.open_stream(), self.table or node.routes())

    async def routes(self, address: str, timeout_s: float) -> Routes:
        self.asked.append(address)
        return self.table or self._node(address).routes()

    def link(
        self, address: str, cluster_id: bytes, on_frame: OnFrame, on_down: OnDown
    ) -> ClientLink:
        link = _Link(self, address, on_frame, on_down)
        self.links.append(link)
        return link

    def cut(self) -> None:
        """Cut every link."""
        for link in [link for link in self.links if link.open]:
            link.go_down(sent=True)

    async def close(self) -> None:
        self.closed = True


class _Link:
    def __init__(self, wire: Wire, address: str, on_frame: OnFrame, on_down: OnDown) -> None:
        self._wire, self._on_frame, self._on_down = wire, on_frame, on_down
        self._node = wire.nodes.get(address)
        self.open = True
        if self._node is None:
            asyncio.get_running_loop().call_soon(self.go_down)
            return
        self._node.start(asyncio.get_running_loop())
        self._connection = self._node.open_connection(self._deliver)

    def _deliver(self, frame: bytes) -> None:
        if self.open and not self._wire.silent:
            self._on_frame(frame)

    def send(self, frame: bytes) -> None:
        if self.open and self._node is not None:
            self._node.client_frame(self._connection, frame)

    def go_down(self, sent: bool = False) -> None:
        if self.open:
            self.close()
            self._on_down("the link was cut", sent)

    def close(self) -> None:
        self.open = False
        if self._node is not None:
            self._node.close_connection(self._connection)


class BlockingWire:
    """A blocking transport over nodes in this process.

    Attributes:
        lose_replies: How many of the next answers get lost on their way.
    """

    def __init__(self, *nodes: CoreNode) -> None:
        self.nodes = {node.address: node for node in nodes}
        self.lose_replies = 0
        self.closed = False

    def open(self, address: str, cluster_id: bytes, timeout_s: float) -> Opened:
        if address not in self.nodes:
            raise ConnectionFailed(f"{address}: nobody is there", addresses=(address,))
        node = self.nodes[address]
        return Opened(CLUSTER, node.open_stream(), node.routes())

    def routes(self, address: str, timeout_s: float) -> Routes:
        return self.open(address, b"", timeout_s).routes

    def exchange(
        self,
        frames: Sequence[tuple[str, bytes]],
        timeout_s: float,
        go_on: Callable[[str], bool],
    ) -> list[list[bytes] | ExchangeFailed]:
        return [self._exchange(address, frame) for address, frame in frames]

    def _exchange(self, address: str, frame: bytes) -> list[bytes] | ExchangeFailed:
        if address not in self.nodes:
            return ExchangeFailed("nobody is there", False)
        replies: list[bytes] = []
        node = self.nodes[address]
        connection = node.open_connection(replies.append)
        node.client_frame(connection, frame)
        node.close_connection(connection)
        if self.lose_replies:
            self.lose_replies -= 1
            return ExchangeFailed("the answer was lost", True)
        return replies

    def close(self) -> None:
        self.closed = True
