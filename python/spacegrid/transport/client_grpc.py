"""Clients over gRPC: a stream of frames per node for asyncio, one per frame under way for threads.

Frames travel over links of our own (`link`, `sockets`), which speak the same proto; what is asked
once (a request stream, routes) is a call of grpcio's. The asyncio half is used on one loop: gRPC's
asyncio objects belong to the loop that made them.

Who calls: client (through `base`'s protocols).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

import grpc
import grpc.aio

from spacegrid.clock import monotonic_s
from spacegrid.errors import ConnectionFailed, ProtocolError, SpaceGridError, TooLarge
from spacegrid.security.client import PLAIN, ClientSecurity
from spacegrid.transport.base import (
    LOOK_S,
    ExchangeFailed,
    OnDown,
    OnFrame,
    Opened,
    RouteNode,
    Routes,
)
from spacegrid.transport.channel import PROTOCOL_VERSION, access_error, aio_channel, channel
from spacegrid.transport.link import StreamLink
from spacegrid.transport.sockets import LinkBroken, SocketLink, SocketLinks
from spacegrid.v1 import data_pb2, data_pb2_grpc

__all__ = ["GrpcBlockingTransport", "GrpcClientTransport", "routes_of"]


READ_S: Final = 0.02
"""Time to read answers that are there."""
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
"""gRPC statuses by their numbers on the wire."""
_TOO_LARGE: Final = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
_REFUSED: Final = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED)


def routes_of(message: data_pb2.Routes) -> Routes:
    """Read routes from the wire.

    Raises:
        ProtocolError: An entry names a node that is not listed.
    """
    nodes = tuple(RouteNode(n.name, n.address, n.incarnation) for n in message.nodes)
    primaries = list(message.primaries)
    if primaries and max(primaries) > len(nodes):
        raise ProtocolError(f"routes name node {max(primaries)} of {len(nodes)}")
    backups = [list(one.nodes) for one in message.backups]
    named = [index for one in backups for index in one]
    if named and not 0 < min(named) <= max(named) <= len(nodes):
        raise ProtocolError(f"routes name nodes {min(named)} to {max(named)} of {len(nodes)}")
    if len(backups) not in (0, len(primaries)):
        raise ProtocolError(f"routes have backups of {len(backups)} of {len(primaries)} partitions")
    return Routes(message.revision, nodes, primaries, backups)


def _opened_of(reply: data_pb2.OpenReply) -> Opened:
    if reply.protocol_version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the node speaks protocol {reply.protocol_version}, this client {PROTOCOL_VERSION}"
        )
    return Opened(reply.cluster_id, reply.stream, routes_of(reply.routes))


def _hello(cluster_id: bytes) -> data_pb2.Hello:
    return data_pb2.Hello(protocol_version=PROTOCOL_VERSION, cluster_id=cluster_id)


def _error_of(address: str, error: grpc.RpcError) -> SpaceGridError:
    code, details = error.code(), error.details() or ""
    if code in _REFUSED:
        return ProtocolError(f"{address} refuses this client: {details}")
    if (denied := access_error(f"{address} refuses this client", code, details)) is not None:
        return denied
    return ConnectionFailed(f"{address}: {code.name}: {details}", addresses=(address,))


# --- asyncio --------------------------------------------------------------------------------------


class GrpcClientTransport:
    """gRPC for an asyncio client."""

    def __init__(self, security: ClientSecurity = PLAIN) -> None:
        self._security = security
        self._links: list[StreamLink] = []
        self._channels: dict[str, grpc.aio.Channel] = {}

    def _stub(self, address: str) -> data_pb2_grpc.DataAsyncStub:
        found = self._channels.get(address)
        if found is None:
            found = self._channels[address] = aio_channel(address, self._security)
        return data_pb2_grpc.DataStub(found)

    async def open(self, address: str, cluster_id: bytes, timeout_s: float) -> Opened:
        """Ask a node for a request stream and the routes; see `base.ClientTransport`."""
        request = data_pb2.OpenRequest(hello=_hello(cluster_id))
        try:
            call = self._stub(address).Open(
                request, timeout=timeout_s, metadata=self._security.metadata
            )
            return _opened_of(await call)
        except grpc.RpcError as error:
            raise _error_of(address, error) from error

    async def routes(self, address: str, timeout_s: float) -> Routes:
        """Ask a node for the routes it knows; see `base.ClientTransport`."""
        try:
            reply = await self._stub(address).GetRoutes(
                data_pb2.RoutesRequest(), timeout=timeout_s, metadata=self._security.metadata
            )
        except grpc.RpcError as error:
            raise _error_of(address, error) from error
        return routes_of(reply)

    def link(
        self, address: str, cluster_id: bytes, on_frame: OnFrame, on_down: OnDown
    ) -> StreamLink:
        """Begin to connect to a node; see `base.ClientTransport`."""
        self._links = [link for link in self._links if not link.over]
        link = StreamLink(address, cluster_id, on_frame, on_down, self._security)
        self._links.append(link)
        return link

    async def close(self) -> None:
        """Let go of every channel and link."""
        links, self._links = self._links, []
        for link in links:
            link.close()
        for link in links:
            await link.ended()
        for opened in self._channels.values():
            await opened.close()
        self._channels.clear()


# --- blocking -------------------------------------------------------------------------------------


class GrpcBlockingTransport:
    """gRPC for threads: links of the threads' own, and grpcio's synchronous stack for calls."""

    def __init__(self, security: ClientSecurity = PLAIN) -> None:
        self._security = security
        self._links = SocketLinks(security)
        self._lock = threading.Lock()
        self._channels: dict[str, tuple[grpc.Channel, data_pb2_grpc.DataStub]] = {}

    def _stub(self, address: str) -> data_pb2_grpc.DataStub:
        with self._lock:
            found = self._channels.get(address)
            if found is None:
                made = channel(address, self._security)
                found = self._channels[address] = made, data_pb2_grpc.DataStub(made)
            return found[1]

    def open(self, address: str, cluster_id: bytes, timeout_s: float) -> Opened:
        """As `GrpcClientTransport.open`, waiting."""
        request = data_pb2.OpenRequest(hello=_hello(cluster_id))
        try:
            reply = self._stub(address).Open(
                request, timeout=timeout_s, metadata=self._security.metadata
            )
            return _opened_of(reply)
        except grpc.RpcError as error:
            raise _error_of(address, error) from error

    def routes(self, address: str, timeout_s: float) -> Routes:
        """As `GrpcClientTransport.routes`, waiting."""
        try:
            reply = self._stub(address).GetRoutes(
                data_pb2.RoutesRequest(), timeout=timeout_s, metadata=self._security.metadata
            )
        except grpc.RpcError as error:
            raise _error_of(address, error) from error
        return routes_of(reply)

    def exchange(
        self,
        frames: Sequence[tuple[str, bytes]],
        timeout_s: float,
        go_on: Callable[[str], bool],
    ) -> list[list[bytes] | ExchangeFailed]:
        """Send frames, each to its address, together; see `base.BlockingTransport`."""
        until = monotonic_s() + timeout_s
        sent = [self._send(address, frame, until - monotonic_s()) for address, frame in frames]
        return [
            link if isinstance(link, ExchangeFailed) else self._answers(address, link, until, go_on)
            for (address, _frame), link in zip(frames, sent, strict=True)
        ]

    def _send(self, address: str, frame: bytes, timeout_s: float) -> SocketLink | ExchangeFailed:
        link: SocketLink | None = None
        try:
            link = self._links.take(address, timeout_s)
            link.send(frame, timeout_s)
        except LinkBroken as error:
            if link is not None:
                self._links.drop(link)
            return _failed(address, error)
        return link

    def _answers(
        self, address: str, link: SocketLink, until: float, go_on: Callable[[str], bool]
    ) -> list[bytes] | ExchangeFailed:
        while True:
            try:
                # What came while another node was waited for is read however late it is.
                answers = link.answers(LOOK_S, max(READ_S, until - monotonic_s()))
            except LinkBroken as error:
                if error.waits and monotonic_s() < until and go_on(address):
                    continue
                self._links.drop(link)
                return _failed(address, error)
            self._links.give_back(address, link)
            return answers

    def close(self) -> None:
        """Let go of every channel and link."""
        self._links.close()
        with self._lock:
            channels, self._channels = self._channels, {}
        for opened, _stub in channels.values():
            opened.close()


def _failed(address: str, error: LinkBroken) -> ExchangeFailed:
    reason = f"{address}: {error}"
    code = None if error.status is None else _CODES.get(error.status)
    final: SpaceGridError | None = None
    if code in _TOO_LARGE:
        final = TooLarge(reason)
    elif code in _REFUSED:
        final = ProtocolError(reason)
    else:
        final = access_error(address, code or grpc.StatusCode.UNAVAILABLE, str(error))
    return ExchangeFailed(reason, error.sent, final)
