"""Heartbeats: this node says that it is there, hears who else is, and keeps its lease.

Every `HEARTBEAT_MS` one goes to each node that is registered, this one too; whoever is controller
answers with a lease. All decisions are those of the machines: who campaigns (machine/standby.py),
who gets a lease (machine/controller.py), from when it counts (machine/leases.py). Channels are
heartbeats' own, so that no snapshot is in front of them. Runs on the grid loop; a loop that is
stuck sends none, which is what they are for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import grpc.aio

from spacegrid import clock
from spacegrid.machine.events import HeartbeatAnswer
from spacegrid.machine.leases import HEARTBEAT_MS, LEASE_MS, LeaseHolder
from spacegrid.node.log import get_logger
from spacegrid.security.files import node_dns
from spacegrid.transport.channel import PROTOCOL_VERSION, aio_channel
from spacegrid.v1 import peers_pb2, peers_pb2_grpc

if TYPE_CHECKING:
    from spacegrid._core import Node
    from spacegrid.machine.events import TakeLease
    from spacegrid.machine.table import Registration
    from spacegrid.node.controller_runner import ControllerRunner
    from spacegrid.node.security import NodeSecurity
    from spacegrid.node.view import ClusterView
    from spacegrid.security.client import ClientSecurity

OPEN_MAX: Final = 4
"""Heartbeats to one node that wait for an answer; a node that hangs gets no more."""

_log = get_logger("heartbeats")


class Heartbeats:
    """The heartbeats of one node of a cluster, and its lease.

    Args:
        name: Of the node.
        incarnation: Of the node.
        core: Takes the leases.
        view: Who is registered.
        controller: Where heartbeats and answers go.
        registered_until_ms: Gives until when this node may believe that it is registered: no lease
            is good for longer, since others take its end as certain.
        progress: Gives the counters of the node's loops.
        fatal: Takes an error that must not be.
        security: How this node proves itself to others.
    """

    def __init__(
        self,
        name: str,
        incarnation: int,
        core: Node,
        view: ClusterView,
        controller: ControllerRunner,
        registered_until_ms: Callable[[], int],
        progress: Callable[[], tuple[int, ...]],
        fatal: Callable[[BaseException], None],
        security: NodeSecurity,
    ) -> None:
        self._name = name
        self._incarnation = incarnation
        self._core = core
        self._view = view
        self._controller = controller
        self._registered_until_ms = registered_until_ms
        self._progress = progress
        self._fatal = fatal
        self._security = security
        self._holder = LeaseHolder()
        self._peers: dict[int, _Peer] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._revision = 0
        self._term = 0
        self._answers = 0

    def start(self) -> None:
        """Begin to beat; from now on the core answers under a lease only."""
        self._core.require_lease()
        self._beat()

    def applied(self, revision: int) -> None:
        """The core has applied the table of that revision."""
        self._revision = revision
        self._take(self._holder.applied(revision))

    def hear(self, request: peers_pb2.HeartbeatRequest) -> HeartbeatAnswer:
        """Take another node's heartbeat, and answer it as far as this node may."""
        sender = request.hello.incarnation
        return self._controller.take_heartbeat(
            sender, request.nonce, tuple(request.progress), request.heard_term
        )

    async def close(self) -> None:
        """Beat no more; the lease runs out by itself."""
        if self._timer is not None:
            self._timer.cancel()
        peers, self._peers = list(self._peers.values()), {}
        for peer in peers:
            await peer.close()

    # ---- inside

    def _beat(self) -> None:
        try:
            self._timer = asyncio.get_running_loop().call_later(HEARTBEAT_MS / 1000, self._beat)
            # A node that hears nothing of the controller must not look well to it: over a link that
            # is cut in one direction its heartbeats arrive, and no lease comes back.
            progress = (*self._progress(), self._answers)
            heard_term = self._controller.heard_term()
            self._beat_here(progress, heard_term)
            self._update_peers()
            for peer in self._peers.values():
                peer.send(progress, heard_term)
        except BaseException as error:
            self._fatal(error)
            raise

    def _beat_here(self, progress: tuple[int, ...], heard_term: int) -> None:
        nonce = self._holder.beat(clock.boottime_ms())
        self.answered(
            self._controller.take_heartbeat(self._incarnation, nonce, progress, heard_term)
        )

    def _update_peers(self) -> None:
        registrations, security = self._view.registrations, self._security.client
        for incarnation, peer in list(self._peers.items()):
            if incarnation not in registrations or peer.security != security:
                self._controller.spawn(self._peers.pop(incarnation).close())
        for incarnation, registration in registrations.items():
            if incarnation != self._incarnation and incarnation not in self._peers:
                address = self._view.peer_address(registration)
                self._peers[incarnation] = _Peer(registration, address, security, self)

    def request(
        self, receiver: int, progress: tuple[int, ...], heard_term: int
    ) -> peers_pb2.HeartbeatRequest:
        """A heartbeat that is about to be sent."""
        return peers_pb2.HeartbeatRequest(
            hello=peers_pb2.PeerHello(
                protocol_version=PROTOCOL_VERSION,
                cluster_id=self._view.life,
                node=self._name,
                incarnation=self._incarnation,
                receiver=receiver,
            ),
            nonce=self._holder.beat(clock.boottime_ms()),
            revision=self._revision,
            progress=progress,
            heard_term=heard_term,
        )

    def answered(self, answer: HeartbeatAnswer) -> None:
        """Take an answer to a heartbeat of this node."""
        self._controller.heard(answer.term)
        if answer.term and answer.term >= self._term:
            self._term = answer.term
            self._answers += 1
        self._take(self._holder.answered(answer))

    def _take(self, leases: list[TakeLease]) -> None:
        for lease in leases:
            until_ms = min(lease.until_ms, self._registered_until_ms())
            self._core.grant_lease(lease.revision, until_ms, clock.boottime_ms())


class Pulse:
    """A counter that another thread's loop moves whenever it is asked to.

    It stands still while that loop is blocked, for instance by a handler that computes.
    """

    def __init__(self) -> None:
        self._count = 0
        self._asked = False

    def count(self, loop: asyncio.AbstractEventLoop) -> int:
        """The counter; the loop is asked to move it on."""
        if not self._asked:
            self._asked = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._move)
        return self._count

    def _move(self) -> None:
        self._count += 1
        self._asked = False


class _Peer:
    """The way to one other node."""

    def __init__(
        self,
        registration: Registration,
        address: str,
        security: ClientSecurity,
        heartbeats: Heartbeats,
    ) -> None:
        self.security = security
        self._incarnation = registration.incarnation
        self._heartbeats = heartbeats
        self._channel = aio_channel(address, security, node_dns(registration.name))
        self._stub: peers_pb2_grpc.PeersAsyncStub = peers_pb2_grpc.PeersStub(self._channel)
        self._open: set[asyncio.Task[None]] = set()

    def send(self, progress: tuple[int, ...], heard_term: int) -> None:
        if len(self._open) >= OPEN_MAX:
            return
        request = self._heartbeats.request(self._incarnation, progress, heard_term)
        task = asyncio.get_running_loop().create_task(self._ask(request))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def close(self) -> None:
        for task in list(self._open):
            task.cancel()
        await self._channel.close()

    async def _ask(self, request: peers_pb2.HeartbeatRequest) -> None:
        try:
            reply = await self._stub.Heartbeat(request, timeout=LEASE_MS / 1000)
        except grpc.aio.AioRpcError as error:
            _log.debug("no answer", incarnation=self._incarnation, why=error.code().name)
            return
        answer = HeartbeatAnswer(
            copy=request.hello.incarnation,
            nonce=reply.nonce,
            term=reply.term,
            granted=reply.granted,
            revision=reply.revision,
        )
        self._heartbeats.answered(answer)
