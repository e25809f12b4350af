"""Links to the other nodes: one outgoing stream to each, for what replication sends.

A link carries frames one way only; what the other node has to say comes in over its own link to us
(servers/peers.py). When a link is up the core is told (`peer_up`) and sends again from what that
copy has acknowledged; when it is down (`peer_down`) frames for the copy are dropped, so nothing
here needs to be kept for a retry. Invariants: at most one link to an incarnation; frames leave in
the order in which the core made them; a queue past its bound ends the link instead of growing. Runs
on the grid loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import grpc.aio

from spacegrid.node.engine import Engine
from spacegrid.node.log import get_logger
from spacegrid.node.options import channel_options
from spacegrid.transport.channel import PROTOCOL_VERSION
from spacegrid.v1 import peers_pb2, peers_pb2_grpc

if TYPE_CHECKING:
    _Call: TypeAlias = grpc.aio.StreamStreamCall[peers_pb2.PeerFrame, peers_pb2.PeerFrame]

QUEUE_BYTES_MAX: Final = 64 << 20
"""Bytes waiting for one other node; past it the link is dropped and begins again from what was
acknowledged.
"""
RECONNECT_S: Final = 0.02
RECONNECT_S_MAX: Final = 0.5
HELLO_TIMEOUT_S: Final = 5.0

_log = get_logger("peers")


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node: its name, address and incarnation."""

    name: str
    address: str
    incarnation: int


class PeerLinks:
    """The outgoing links of one node."""

    def __init__(self, name: str, incarnation: int, cluster_id: bytes, engine: Engine) -> None:
        self._hello = peers_pb2.PeerHello(
            protocol_version=PROTOCOL_VERSION,
            cluster_id=cluster_id,
            node=name,
            incarnation=incarnation,
        )
        self._engine = engine
        self._links: dict[int, _Link] = {}

    def update(self, alive: Iterable[Peer]) -> None:
        """Link to exactly these nodes; links to others are dropped."""
        wanted = {p.incarnation: p for p in alive if p.incarnation != self._hello.incarnation}
        for incarnation in [i for i in self._links if i not in wanted]:
            self._links.pop(incarnation).stop()
        for incarnation, peer in wanted.items():
            if incarnation not in self._links:
                self._links[incarnation] = _Link(peer, self._hello, self._engine)

    def frame(self, copy: int, frame: bytes) -> None:
        """Send a frame to a copy; dropped when there is no link, the core sends it again."""
        link = self._links.get(copy)
        if link is not None:
            link.send(frame)

    def connected(self) -> list[int]:
        """Incarnations whose link is up."""
        return [incarnation for incarnation, link in self._links.items() if link.up]

    async def close(self) -> None:
        """Drop all links."""
        links = list(self._links.values())
        self._links.clear()
        for link in links:
            link.stop()
        await asyncio.gather(*(link.ended() for link in links))


class _Link:
    """One outgoing link: connects, says hello, sends, and begins again when it breaks."""

    def __init__(self, peer: Peer, hello: peers_pb2.PeerHello, engine: Engine) -> None:
        self.peer = peer
        self.up = False
        self._engine = engine
        self._hello = peers_pb2.PeerHello()
        self._hello.CopyFrom(hello)
        self._hello.receiver = peer.incarnation
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._call: _Call | None = None
        self._task = asyncio.get_running_loop().create_task(self._run())

    def send(self, frame: bytes) -> None:
        if not self.up:
            return
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        if self._queued_bytes > QUEUE_BYTES_MAX and self._call is not None:
            _log.warning(
                "link dropped: the other node does not take its frames",
                peer=self.peer.name,
                queued_bytes=self._queued_bytes,
                limit_bytes=QUEUE_BYTES_MAX,
            )
            self._call.cancel()
        self._wake.set()

    def stop(self) -> None:
        self._task.cancel()

    async def ended(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        pause_s = RECONNECT_S
        try:
            while True:
                if await self._once():
                    pause_s = RECONNECT_S
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, RECONNECT_S_MAX)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._engine.fatal(error)
            raise

    async def _once(self) -> bool:
        """Connect and carry frames until the link breaks; whether it was ever up."""
        was_up = False
        async with grpc.aio.insecure_channel(
            self.peer.address, options=channel_options()
        ) as channel:
            call = peers_pb2_grpc.PeersStub(channel).Link()
            reader: asyncio.Task[None] | None = None
            try:
                async with asyncio.timeout(HELLO_TIMEOUT_S):
                    await call.write(peers_pb2.PeerFrame(hello=self._hello))
                    answer = await call.read()
                if (
                    not isinstance(answer, peers_pb2.PeerFrame)
                    or answer.hello.incarnation != self.peer.incarnation
                ):
                    return False
                was_up = True
                self._call = call
                self._up()
                reader = asyncio.get_running_loop().create_task(_until_end(call, self._wake))
                await self._send_all(call, reader)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError) as error:
                _log.debug("link broke", peer=self.peer.name, why=_reason(error))
            finally:
                self._call = None
                if was_up:
                    self._down()
                call.cancel()
                if reader is not None:
                    reader.cancel()
        return was_up

    def _up(self) -> None:
        self.up = True
        self._engine.node.peer_up(self.peer.incarnation)
        self._engine.soon()
        _log.debug("link up", peer=self.peer.name, incarnation=self.peer.incarnation)

    def _down(self) -> None:
        self.up = False
        self._queue.clear()
        self._queued_bytes = 0
        self._engine.node.peer_down(self.peer.incarnation)
        self._engine.soon()
        _log.debug("link down", peer=self.peer.name, incarnation=self.peer.incarnation)

    async def _send_all(self, call: _Call, reader: asyncio.Task[None]) -> None:
        queue = self._queue
        while not reader.done():
            if not queue:
                self._wake.clear()
                await self._wake.wait()
                continue
            frame = queue.popleft()
            self._queued_bytes -= len(frame)
            await call.write(peers_pb2.PeerFrame(data=frame))


async def _until_end(call: _Call, wake: asyncio.Event) -> None:
    """Read until the other side ends the link: it says nothing after its hello."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass
    finally:
        wake.set()


def _reason(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return repr(error)
