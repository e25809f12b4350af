"""Peers service: frames of other nodes, and what they ask of the controller.

A Link carries the other node's frames to the core and answers with our own hello only. Invariants:
a frame is taken only from a node of this cluster that means this incarnation of us; damaged bytes
end the link. Runs on the grid loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from spacegrid import clock
from spacegrid._core import FrameError
from spacegrid.node.log import get_logger
from spacegrid.transport.channel import PROTOCOL_VERSION
from spacegrid.v1 import peers_pb2, peers_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from spacegrid.node.daemon import Daemon


_log = get_logger("peers")


class PeersService(peers_pb2_grpc.PeersServicer):
    """Peers for one node."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def Link(  # type: ignore[override]
        self, request_iterator: AsyncIterator[peers_pb2.PeerFrame], context: Any
    ) -> None:
        """Take the frames of another node until it ends the link."""
        first = await context.read()
        if first is grpc.aio.EOF:
            return
        hello = first.hello
        await self._check(hello, context)
        daemon = self._daemon
        engine = daemon.engine
        mine = peers_pb2.PeerHello(
            protocol_version=PROTOCOL_VERSION,
            cluster_id=daemon.view.life,
            node=daemon.config.name,
            incarnation=daemon.incarnation,
            receiver=hello.incarnation,
        )
        await context.write(peers_pb2.PeerFrame(hello=mine))
        read, on_peer_frame, eof = context.read, engine.node.on_peer_frame, grpc.aio.EOF
        sender = hello.incarnation
        while (message := await read()) is not eof:
            try:
                on_peer_frame(sender, message.data, clock.now_ms())
            except FrameError as error:
                _log.error("damaged frame, link dropped", peer=hello.node, error=str(error))
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except BaseException as error:
                engine.fatal(error)
                raise
            engine.soon()

    async def RequestChanges(
        self, request: peers_pb2.ChangesRequest, context: Any
    ) -> peers_pb2.ChangesReply:
        """Take requests for changes of the table, if this node is the controller."""
        await self._check(request.hello, context)
        changes = [
            (c.partition, c.epoch, c.version, c.kind, c.copy, c.from_epoch, c.from_sequence)
            for c in request.changes
        ]
        accepted = self._daemon.controller.take_changes(request.hello.incarnation, changes)
        return peers_pb2.ChangesReply(accepted=accepted)

    async def Drain(self, request: peers_pb2.DrainRequest, context: Any) -> peers_pb2.DrainReply:
        """Begin to move what the sender owns, if this node is the controller."""
        await self._check(request.hello, context)
        accepted = self._daemon.controller.take_drain(request.hello.incarnation)
        return peers_pb2.DrainReply(accepted=accepted)

    async def _check(self, hello: peers_pb2.PeerHello, context: Any) -> None:
        daemon = self._daemon
        status = grpc.StatusCode.FAILED_PRECONDITION
        if hello.protocol_version != PROTOCOL_VERSION:
            await context.abort(
                status,
                f"peer speaks protocol version {hello.protocol_version}, this node speaks "
                f"{PROTOCOL_VERSION}",
            )
        if not daemon.serving:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this node is not ready yet")
        if hello.cluster_id != daemon.view.life:
            await context.abort(
                status,
                f"peer is of cluster {hello.cluster_id.hex()}, this node is of "
                f"{daemon.view.life.hex()}",
            )
        if hello.receiver != daemon.incarnation:
            await context.abort(
                status,
                f"peer means incarnation {hello.receiver}, this node is {daemon.incarnation}",
            )
