"""Units service: calls of processing units for stubs in other languages.

The handler's own definition on this node says which argument routes; the call then goes to the
owner of that routing key through the node's own client. Runs on the grid loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from spacegrid import errors, limits
from spacegrid._core import encode_key, routing_key
from spacegrid.node.servers.answers import abort, failure, timeout_of, token_of
from spacegrid.v1 import units_pb2, units_pb2_grpc
from spacegrid.wire.status import Status

if TYPE_CHECKING:
    from spacegrid.node.daemon import Daemon


class UnitsService(units_pb2_grpc.UnitsServicer):
    """Units for one node."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def Invoke(self, request: units_pb2.InvokeRequest, context: Any) -> units_pb2.InvokeReply:
        """Run a handler on the node that owns its routing key."""
        try:
            return await self._invoke(request, context)
        except errors.SpaceGridError as error:
            await abort(context, error)
            raise

    async def _invoke(
        self, request: units_pb2.InvokeRequest, context: Any
    ) -> units_pb2.InvokeReply:
        if not self._daemon.serving:
            raise errors.PartitionUnavailable("this node is not ready")
        name = f"{request.unit}.{request.handler}"
        key = self._routing_key(name, request.arguments)
        internal = self._daemon.internal
        timeout_ms = timeout_of(context)
        token, index = token_of(request), internal.map(name, request.persisted)
        try:
            done = await internal.ask(
                lambda waiter: internal.core.invoke(
                    index, key, request.arguments, waiter, timeout_ms, token=token
                )
            )
        except (ValueError, OverflowError) as error:
            raise errors.TooLarge(str(error)) from error
        if done[1] != Status.OK:
            raise failure(done, f"call of {name}")
        return units_pb2.InvokeReply(
            result=done[2] or b"", copies=done[5], persisted=request.persisted
        )

    def _routing_key(self, name: str, arguments: bytes) -> bytes:
        if len(arguments) > limits.VALUE_BYTES_MAX:
            raise errors.TooLarge(
                f"arguments of {len(arguments)} bytes, the limit is {limits.VALUE_BYTES_MAX}"
            )
        argument = self._daemon.route_argument(name)
        if argument is None:
            raise errors.NoSuchHandler(f"no handler {name!r} is installed on this node")
        try:
            values = msgspec.msgpack.decode(arguments, type=dict[str, msgspec.Raw])
            if argument not in values:
                raise errors.ConfigError(
                    f"{name}: the argument {argument!r} that routes is missing"
                )
            value = msgspec.msgpack.decode(values[argument])
        except msgspec.DecodeError as error:
            raise errors.ConfigError(f"{name}: arguments are no msgpack map: {error}") from error
        try:
            return routing_key(encode_key(tuple(value) if isinstance(value, list) else value))
        except (TypeError, ValueError) as error:
            raise errors.ConfigError(f"{name}: {argument} can't route: {error}") from error
