"""Clients over gRPC: one stream of frames per node for asyncio, one exchange per frame for threads.

A link opens its channel, waits until it is connected, says hello, and then has one task that writes
and one that reads. It fails fast: whoever uses it decides when to try again.

Invariants: a link reports being down once; `sent` is False only if no frame was handed to gRPC.
The asyncio half is used on one loop: gRPC's asyncio objects belong to the loop that made them.

Who calls: client (through `base`'s protocols).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Sequence
from typing import Final

import grpc
import grpc.aio

from spacegrid.errors import ConnectionFailed, ProtocolError, SpaceGridError, TooLarge
from spacegrid.transport.base import (
    ExchangeFailed,
    OnDown,
    OnFrame,
    Opened,
    RouteNode,
    Routes,
)
from spacegrid.transport.channel import CHANNEL_OPTIONS, PROTOCOL_VERSION
from spacegrid.v1 import data_pb2, data_pb2_grpc

__all__ = ["GrpcBlockingTransport", "GrpcClientTransport", "routes_of"]

CONNECT_TIMEOUT_S: Final = 2.0
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
    return ConnectionFailed(f"{address}: {code.name}: {details}", addresses=(address,))


# --- asyncio --------------------------------------------------------------------------------------


async def _connected(channel: grpc.aio.Channel) -> None:
    """Wait for the first connection attempt; `channel_ready` would wait through failed ones."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state in (
            grpc.ChannelConnectivity.TRANSIENT_FAILURE,
            grpc.ChannelConnectivity.SHUTDOWN,
        ):
            raise ConnectionError("nobody listens there")
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


class _GrpcLink:
    """One stream to one node."""

    def __init__(self, address: str, hello: data_pb2.Hello, on_frame: OnFrame, on_down: OnDown):
        self._address = address
        self._hello = hello
        self._on_frame = on_frame
        self._on_down = on_down
        self._pending: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._sent = False
        self._closed = False
        self.task = asyncio.get_running_loop().create_task(self._run())

    def send(self, frame: bytes) -> None:
        """Queue a frame; dropped once the link is down."""
        if not self._closed:
            self._pending.append(frame)
            self._wake.set()

    def close(self) -> None:
        """Drop the connection without a callback."""
        self._closed = True
        self._pending.clear()
        self.task.cancel()

    async def _run(self) -> None:
        reason = "the node ended the stream"
        channel = grpc.aio.insecure_channel(self._address, options=CHANNEL_OPTIONS)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await _connected(channel)
            call = data_pb2_grpc.DataStub(channel).Stream()
            await call.write(data_pb2.Frame(hello=self._hello))
            writer = asyncio.get_running_loop().create_task(self._write(call))
            try:
                await self._read(call)
            finally:
                writer.cancel()
                with contextlib.suppress(asyncio.CancelledError, grpc.RpcError):
                    await writer
        except grpc.RpcError as error:
            reason = f"{error.code().name}: {error.details()}"
        except (OSError, TimeoutError, asyncio.InvalidStateError) as error:
            reason = str(error) or "no connection in time"
        finally:
            await channel.close()
        if not self._closed:
            self._closed = True
            self._pending.clear()
            self._on_down(f"{self._address}: {reason}", self._sent)

    async def _read(self, call: grpc.aio.StreamStreamCall[data_pb2.Frame, data_pb2.Frame]) -> None:
        read, on_frame, eof = call.read, self._on_frame, grpc.aio.EOF
        while (message := await read()) is not eof:
            assert isinstance(message, data_pb2.Frame)
            if (data := message.data) and not self._closed:
                on_frame(data)

    async def _write(self, call: grpc.aio.StreamStreamCall[data_pb2.Frame, data_pb2.Frame]) -> None:
        pending, wake, write, message = self._pending, self._wake, call.write, data_pb2.Frame
        while True:
            while pending:
                self._sent = True
                await write(message(data=pending.popleft()))
            wake.clear()
            await wake.wait()


class GrpcClientTransport:
    """gRPC for an asyncio client."""

    def __init__(self) -> None:
        self._links: set[asyncio.Task[None]] = set()
        self._channels: dict[str, grpc.aio.Channel] = {}

    def _stub(self, address: str) -> data_pb2_grpc.DataAsyncStub:
        channel = self._channels.get(address)
        if channel is None:
            channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
            self._channels[address] = channel
        return data_pb2_grpc.DataStub(channel)

    async def open(self, address: str, cluster_id: bytes, timeout_s: float) -> Opened:
        """Ask a node for a request stream and the routes; see `base.ClientTransport`."""
        request = data_pb2.OpenRequest(hello=_hello(cluster_id))
        try:
            return _opened_of(await self._stub(address).Open(request, timeout=timeout_s))
        except grpc.RpcError as error:
            raise _error_of(address, error) from error

    async def routes(self, address: str, timeout_s: float) -> Routes:
        """Ask a node for the routes it knows; see `base.ClientTransport`."""
        try:
            reply = await self._stub(address).GetRoutes(data_pb2.RoutesRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise _error_of(address, error) from error
        return routes_of(reply)

    def link(
        self, address: str, cluster_id: bytes, on_frame: OnFrame, on_down: OnDown
    ) -> _GrpcLink:
        """Begin to connect to a node; see `base.ClientTransport`."""
        link = _GrpcLink(address, _hello(cluster_id), on_frame, on_down)
        self._links.add(link.task)
        link.task.add_done_callback(self._links.discard)
        return link

    async def close(self) -> None:
        """Let go of every channel and link."""
        links = list(self._links)
        for task in links:
            task.cancel()
        await asyncio.gather(*links, return_exceptions=True)
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()


# --- blocking -------------------------------------------------------------------------------------


class GrpcBlockingTransport:
    """gRPC for threads: grpcio's synchronous stack, no loop and no thread of ours."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channels: dict[str, tuple[grpc.Channel, data_pb2_grpc.DataStub]] = {}

    def _stub(self, address: str) -> data_pb2_grpc.DataStub:
        with self._lock:
            found = self._channels.get(address)
            if found is None:
                channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
                found = self._channels[address] = channel, data_pb2_grpc.DataStub(channel)
            return found[1]

    def open(self, address: str, cluster_id: bytes, timeout_s: float) -> Opened:
        """As `GrpcClientTransport.open`, waiting."""
        request = data_pb2.OpenRequest(hello=_hello(cluster_id))
        try:
            return _opened_of(self._stub(address).Open(request, timeout=timeout_s))
        except grpc.RpcError as error:
            raise _error_of(address, error) from error

    def routes(self, address: str, timeout_s: float) -> Routes:
        """As `GrpcClientTransport.routes`, waiting."""
        try:
            reply = self._stub(address).GetRoutes(data_pb2.RoutesRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise _error_of(address, error) from error
        return routes_of(reply)

    def exchange(
        self, frames: Sequence[tuple[str, bytes]], timeout_s: float
    ) -> list[list[bytes] | ExchangeFailed]:
        """Send frames, each to its address, together; see `base.BlockingTransport`."""
        if len(frames) == 1:
            address, frame = frames[0]
            try:
                reply = self._stub(address).Exchange(data_pb2.Frame(data=frame), timeout=timeout_s)
            except grpc.RpcError as error:
                return [_failed(address, error)]
            return [[reply.data]]
        calls = [
            (
                address,
                self._stub(address).Exchange.future(data_pb2.Frame(data=frame), timeout=timeout_s),
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
        for channel, _stub in channels.values():
            channel.close()


def _failed(address: str, error: grpc.RpcError) -> ExchangeFailed:
    code, details = error.code(), error.details() or ""
    reason = f"{address}: {code.name}: {details}"
    final: SpaceGridError | None = None
    if code in _TOO_LARGE:
        final = TooLarge(f"{details}\nhint: ask for fewer keys at once")
    elif code in _REFUSED:
        final = ProtocolError(reason)
    return ExchangeFailed(reason, not details.startswith(_NEVER_SENT), final)
