"""Data service: what is asked of a node in unary calls.

Streams of frames don't come here: the net thread answers them itself (rust/net). Unary calls go
through the node's own client, which sends them to the partition's primary, here or one hop away.
Runs on the grid loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc

from spacegrid import errors, limits
from spacegrid._core import FrameError
from spacegrid.node.servers.answers import abort, failure, timeout_of, token_of
from spacegrid.node.servers.caller import caller_of
from spacegrid.node.servers.exchange import exchange
from spacegrid.transport.channel import PROTOCOL_VERSION
from spacegrid.v1 import data_pb2, data_pb2_grpc
from spacegrid.wire.status import Status

if TYPE_CHECKING:
    from spacegrid._core import Completion
    from spacegrid.node.daemon import Daemon

T = TypeVar("T")

MANY_MAX: Final = 1000
_CONDITIONS: Final = (
    data_pb2.PUT_CONDITION_NONE,
    data_pb2.PUT_CONDITION_IF_ABSENT,
    data_pb2.PUT_CONDITION_IF_VERSION,
)


class DataService(data_pb2_grpc.DataServicer):
    """Data for one node."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        # Number 1 of an incarnation's streams is the node's own client.
        self._streams = itertools.count(2)

    # ---- streams

    async def Open(self, request: data_pb2.OpenRequest, context: Any) -> data_pb2.OpenReply:
        """Give the caller a request stream of its own and the routing table."""
        await self._check(request.hello, context)
        daemon = self._daemon
        return data_pb2.OpenReply(
            protocol_version=PROTOCOL_VERSION,
            cluster_id=daemon.view.life,
            stream=daemon.incarnation << 32 | next(self._streams),
            routes=daemon.view.routes(),
        )

    async def GetRoutes(self, request: data_pb2.RoutesRequest, context: Any) -> data_pb2.Routes:
        """The routing table as this node knows it."""
        await self._ready(context)
        return self._daemon.view.routes()

    async def Stream(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        """Refuse: the port in front of this server answers it."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "frames are taken at the node's port")

    async def Exchange(self, request: data_pb2.Frame, context: Any) -> data_pb2.Frame:
        """One request frame, one reply frame with all its answers."""
        if request.HasField("hello"):
            await self._check(request.hello, context)
        await self._ready(context)
        try:
            reply = await exchange(self._daemon.front, request.data, caller_of(context).rights)
        except FrameError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except errors.TooLarge as error:
            await abort(context, error)
        return data_pb2.Frame(data=reply)

    # ---- unary calls

    async def Get(self, request: data_pb2.GetRequest, context: Any) -> data_pb2.GetReply:
        """Read one entry."""
        return await self._answer(context, self._get(request.map, request.key, context))

    async def GetMany(
        self, request: data_pb2.GetManyRequest, context: Any
    ) -> data_pb2.GetManyReply:
        """Read up to 1,000 entries."""
        await self._at_most(len(request.keys), context)
        replies = await self._answer(
            context, _all(self._get(request.map, key, context) for key in request.keys)
        )
        return data_pb2.GetManyReply(replies=replies)

    async def Put(self, request: data_pb2.PutRequest, context: Any) -> data_pb2.PutReply:
        """Write one entry."""
        return await self._answer(context, self._put(request, context))

    async def PutMany(
        self, request: data_pb2.PutManyRequest, context: Any
    ) -> data_pb2.PutManyReply:
        """Write up to 1,000 entries; each fails alone, the first failure is the call's."""
        await self._at_most(len(request.entries), context)
        replies = await self._answer(
            context, _all(self._put(entry, context) for entry in request.entries)
        )
        return data_pb2.PutManyReply(replies=replies)

    async def Delete(self, request: data_pb2.DeleteRequest, context: Any) -> data_pb2.DeleteReply:
        """Delete one entry."""

        async def delete() -> data_pb2.DeleteReply:
            core, index = self._map(request.map, request.persisted)
            timeout_ms = timeout_of(context)
            token = token_of(request)
            done = await self._ask(
                lambda waiter: core.delete(index, request.key, waiter, timeout_ms, token=token)
            )
            if done[1] not in (Status.OK, Status.MISS):
                raise failure(done, f"delete in map {request.map!r}")
            existed = done[1] == Status.OK
            return data_pb2.DeleteReply(
                existed=existed, copies=done[5], persisted=existed and request.persisted
            )

        return await self._answer(context, delete())

    async def _get(self, name: str, key: bytes, context: Any) -> data_pb2.GetReply:
        core, index = self._map(name)
        timeout_ms = timeout_of(context)
        done = await self._ask(lambda waiter: core.get(index, key, waiter, timeout_ms))
        if done[1] == Status.MISS:
            return data_pb2.GetReply()
        if done[1] != Status.OK:
            raise failure(done, f"get in map {name!r}")
        value = data_pb2.Value(
            data=done[2] or b"", codec=data_pb2.Codec.ValueType(done[4]), version=done[3]
        )
        return data_pb2.GetReply(value=value)

    async def _put(self, request: data_pb2.PutRequest, context: Any) -> data_pb2.PutReply:
        if request.condition not in _CONDITIONS:
            raise errors.ConfigError(f"put condition {request.condition} is not known")
        core, index = self._map(request.map, request.persisted)
        timeout_ms = timeout_of(context)
        version = (
            request.expected_version
            if request.condition == data_pb2.PUT_CONDITION_IF_VERSION
            else None
        )
        token = token_of(request)
        done = await self._ask(
            lambda waiter: core.put(
                index,
                request.key,
                request.value,
                request.codec,
                waiter,
                timeout_ms,
                ttl_ms=request.ttl_ms,
                if_absent=request.condition == data_pb2.PUT_CONDITION_IF_ABSENT,
                version=version,
                token=token,
            )
        )
        if done[1] not in (Status.OK, Status.CONFLICT, Status.MISS):
            raise failure(done, f"put in map {request.map!r}")
        # A persisted write is OK only once it is on all disks.
        applied = done[1] == Status.OK
        return data_pb2.PutReply(
            applied=applied,
            version=done[3],
            copies=done[5],
            persisted=applied and request.persisted,
        )

    # ---- shared

    def _map(self, name: str, persisted: bool = False) -> tuple[Any, int]:
        internal = self._daemon.internal
        if not 1 <= len(name.encode()) <= limits.NAME_BYTES_MAX:
            raise errors.ConfigError(
                f"map name of {len(name.encode())} bytes, allowed is 1 to {limits.NAME_BYTES_MAX}"
            )
        return internal.core, internal.map(name, persisted)

    async def _ask(self, queue: Callable[[object], int]) -> Completion:
        try:
            return await self._daemon.internal.ask(queue)
        except (ValueError, OverflowError) as error:
            raise errors.TooLarge(str(error)) from error

    async def _answer(self, context: Any, work: Awaitable[T]) -> T:
        await self._ready(context)
        try:
            return await work
        except errors.SpaceGridError as error:
            await abort(context, error)
            raise

    async def _at_most(self, count: int, context: Any) -> None:
        if count > MANY_MAX:
            await abort(
                context, errors.TooLarge(f"{count} entries in one call, the limit is {MANY_MAX}")
            )

    async def _ready(self, context: Any) -> None:
        if not self._daemon.serving:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this node is not ready")

    async def _check(self, hello: data_pb2.Hello, context: Any) -> None:
        await self._ready(context)
        status = grpc.StatusCode.FAILED_PRECONDITION
        if hello.protocol_version != PROTOCOL_VERSION:
            await context.abort(
                status,
                f"client speaks protocol version {hello.protocol_version}, this node speaks "
                f"{PROTOCOL_VERSION}",
            )
        life = self._daemon.view.life
        if hello.cluster_id and hello.cluster_id != life:
            await context.abort(
                status, f"client expects cluster {hello.cluster_id.hex()}, this is {life.hex()}"
            )


async def _all(work: Any) -> list[Any]:
    """Run all to their end, then give the results or raise the first error."""
    done = await asyncio.gather(*work, return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException):
            raise one
    return done
