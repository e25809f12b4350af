"""Clients over gRPC: one stream of frames per node for asyncio, one exchange per frame for threads.

Frames of an asyncio client travel over links of our own (`link`), which speak the same proto; what
is asked once (a request stream, routes) is a call of grpcio's. The asyncio half is used on one
loop: gRPC's asyncio objects belong to the loop that made them.

Who calls: client (through `base`'s protocols).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

import grpc
import grpc.aio

from spacegrid.errors import ConnectionFailed, ProtocolError, SpaceGridError, TooLarge
from spacegrid.security.client import PLAIN, ClientSecurity
from spacegrid.transport.base import (
    ExchangeFailed,
    OnDown,
    OnFrame,
    Opened,
    RouteNode,
    Routes,
)
from spacegrid.transport.channel import PROTOCOL_VERSION, access_error, aio_channel, channel
from spacegrid.transport.link import StreamLink
from spacegrid.v1 import data_pb2, data_pb2_grpc

__all__ = ["GrpcBlockingTransport", "GrpcClientTransport", "routes_of"]

_NEVER_SENT: Final = "failed to connect"
"""How gRPC begins the details of a call that found no connection to be sent on."""
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
    return Routes(message.revision, nodes, primaries)


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
    """gRPC for threads: grpcio's synchronous stack, no loop and no thread of ours."""

    def __init__(self, security: ClientSecurity = PLAIN) -> None:
        self._security = security
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
        self, frames: Sequence[tuple[str, bytes]], timeout_s: float
    ) -> list[list[bytes] | ExchangeFailed]:
        """Send frames, each to its address, together; see `base.BlockingTransport`."""
        metadata = self._security.metadata
        if len(frames) == 1:
            address, frame = frames[0]
            try:
                reply = self._stub(address).Exchange(
                    data_pb2.Frame(data=frame), timeout=timeout_s, metadata=metadata
                )
            except grpc.RpcError as error:
                return [_failed(address, error)]
            return [[reply.data]]
        calls = [
            (
                address,
                self._stub(address).Exchange.future(
                    data_pb2.Frame(data=frame), timeout=timeout_s, metadata=metadata
                ),
            )
            for address, frame in frames
        ]
        answers: list[list[bytes] | ExchangeFailed] = []
        for address, call in calls:
            try:
                answers.append([call.result().data])
            except grpc.RpcError as error:
                answers.append(_failed(address, error))
        return answers

    def close(self) -> None:
        """Let go of every channel."""
        with self._lock:
            channels, self._channels = self._channels, {}
        for opened, _stub in channels.values():
            opened.close()


def _failed(address: str, error: grpc.RpcError) -> ExchangeFailed:
    code, details = error.code(), error.details() or ""
    reason = f"{address}: {code.name}: {details}"
    final: SpaceGridError | None = None
    if code in _TOO_LARGE:
        final = TooLarge(f"{details}\nhint: ask for fewer keys at once")
    elif code in _REFUSED:
        final = ProtocolError(reason)
    else:
        final = access_error(address, code, details)
    return ExchangeFailed(reason, not details.startswith(_NEVER_SENT), final)
