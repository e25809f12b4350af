"""Peers service: what other nodes ask of the controller.

Their frames don't come here: the net thread answers Link itself (rust/net). Invariant: nothing is
taken but from a node of this cluster that means this incarnation of us. Runs on the grid loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from spacegrid.machine.acceptance import Choice, How
from spacegrid.node.servers.caller import require_name
from spacegrid.transport.channel import PROTOCOL_VERSION
from spacegrid.v1 import peers_pb2, peers_pb2_grpc

if TYPE_CHECKING:
    from spacegrid.node.daemon import Daemon


class PeersService(peers_pb2_grpc.PeersServicer):
    """Peers for one node."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def Link(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        """Refuse: the port in front of this server answers it."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "frames are taken at the node's port")

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

    async def Heartbeat(
        self, request: peers_pb2.HeartbeatRequest, context: Any
    ) -> peers_pb2.HeartbeatReply:
        """Hear that the sender is there; as controller, answer with a lease."""
        await self._check(request.hello, context, serving=False)
        answer = self._daemon.hear(request)
        return peers_pb2.HeartbeatReply(
            nonce=answer.nonce,
            lease_ms=answer.lease_ms,
            revision=answer.revision,
            term=answer.term,
        )

    async def Drain(self, request: peers_pb2.DrainRequest, context: Any) -> peers_pb2.DrainReply:
        """Begin to move what the sender owns, if this node is the controller."""
        await self._check(request.hello, context)
        accepted = self._daemon.controller.take_drain(request.hello.incarnation)
        return peers_pb2.DrainReply(accepted=accepted)

    async def Reloaded(
        self, request: peers_pb2.ReloadedRequest, context: Any
    ) -> peers_pb2.ReloadedReply:
        """Let partitions begin again from what the sender has read out of the shared sink."""
        await self._check(request.hello, context)
        controller = self._daemon.controller
        if not controller.active:
            return peers_pb2.ReloadedReply(accepted=False)
        copy = request.hello.incarnation
        refused = controller.take_acceptance(
            [
                Choice(item.partition, item.version, How.RELOADED, copy, item.epoch)
                for item in request.partitions
            ]
        )
        return peers_pb2.ReloadedReply(
            accepted=True,
            refused=[
                peers_pb2.ReloadedReply.Refused(partition=partition, reason=reason)
                for partition, reason in refused.items()
            ],
        )

    async def _check(
        self, hello: peers_pb2.PeerHello, context: Any, *, serving: bool = True
    ) -> None:
        await require_name(context, hello.node)
        daemon = self._daemon
        status = grpc.StatusCode.FAILED_PRECONDITION
        if hello.protocol_version != PROTOCOL_VERSION:
            await context.abort(
                status,
                f"peer speaks protocol version {hello.protocol_version}, this node speaks "
                f"{PROTOCOL_VERSION}",
            )
        if not (daemon.serving if serving else daemon.known):
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
