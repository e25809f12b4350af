"""The asyncio face of the client: `AsyncGrid`.

Every operation is queued when it is called and returns a future; whether and when it is awaited
changes nothing. All operations of one loop tick leave together, so many tasks share frames without
building batches by hand.

Who calls: users, examples, the demo. The blocking face, `blocking`, has the same methods; a test
compares them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator, Iterator
from contextlib import contextmanager
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, overload

import msgspec

from spacegrid.client.async_map import AsyncMap
from spacegrid.client.common import (
    DEFAULT_TIMEOUT_S,
    Duration,
    cluster_bytes,
    deadline_scope,
    pack_named_call,
    parse_addresses,
    refusal,
    request_token,
    seconds_of,
    timeout_to_ms,
)
from spacegrid.client.session import Session
from spacegrid.types import Durability, HandlerSpec, Map, is_persisted

if TYPE_CHECKING:
    from spacegrid.transport.base import ClientTransport

__all__ = ["AsyncCalls", "AsyncGrid", "AsyncMap", "connect"]

K = TypeVar("K")
V = TypeVar("V")
P = ParamSpec("P")
R = TypeVar("R")


class AsyncCalls:
    """Calls of handlers under given options; from `AsyncGrid.options`."""

    __slots__ = ("_handlers", "_persisted", "_request_id", "_session", "_timeout")

    def __init__(
        self,
        session: Session,
        handlers: dict[Any, int],
        timeout: Duration | None,
        request_id: str | None,
        durability: Durability = "replicated",
    ) -> None:
        self._persisted = is_persisted(durability)
        self._session = session
        self._handlers = handlers
        self._timeout = timeout
        self._request_id = request_id

    @overload
    def call(
        self, handler: HandlerSpec[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[R]: ...
    @overload
    def call(self, handler: str, /, **kwargs: Any) -> asyncio.Future[Any]: ...
    def call(self, handler: Any, /, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """Call a handler; see `AsyncGrid.call`."""
        session = self._session
        session.check()
        timeout_ms = timeout_to_ms(self._timeout, session.timeout_ms)
        if isinstance(handler, str):
            routing_key, arguments = pack_named_call(handler, args, kwargs)
        else:
            routing_key, arguments = handler.bind(args, kwargs)
        index = self._handlers.get((handler, self._persisted))
        if index is None:
            index = self._register(handler)
        future: asyncio.Future[Any] = session.loop.create_future()
        try:
            session.core.invoke(
                index, routing_key, arguments, future, timeout_ms, request_token(self._request_id)
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise refusal(error) from error
        if not session.scheduled:
            session.schedule()
        return future

    def _register(self, handler: Any) -> int:
        if isinstance(handler, str):
            index = self._session.register_handler(handler, msgspec.msgpack.decode, self._persisted)
        else:
            name = f"{handler.unit_name}.{handler.name}"
            index = self._session.register_handler(name, handler.decode_reply, self._persisted)
        self._handlers[handler, self._persisted] = index
        return index


class AsyncGrid(Awaitable["AsyncGrid"]):
    """A cluster, seen from asyncio. Made by `connect` and `open`.

    ``async with connect(...) as grid:`` or ``grid = await connect(...)`` and later
    ``await grid.close()``. It belongs to the loop on which it was opened, and must not be used
    after a fork.
    """

    def __init__(
        self,
        transport: ClientTransport,
        seeds: tuple[str, ...],
        *,
        timeout: Duration = DEFAULT_TIMEOUT_S,
        cluster_id: str | bytes | None = None,
    ) -> None:
        timeout_ms = timeout_to_ms(timeout, 0)
        self._session = Session(transport, seeds, timeout_ms, cluster_bytes(cluster_id))
        self._maps: dict[Any, AsyncMap[Any, Any]] = {}
        self._handlers: dict[Any, int] = {}
        self._calls = AsyncCalls(self._session, self._handlers, None, None)

    # ---- life

    async def _open(self) -> Self:
        await self._session.open()
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self, *, timeout: Duration = DEFAULT_TIMEOUT_S) -> None:
        """Refuse new operations, let those that are open finish, and disconnect.

        Args:
            timeout: Seconds to wait for open operations; then they fail with `GridClosed`.
        """
        await self._session.close(seconds_of(timeout, "timeout"))

    @property
    def cluster_id(self) -> bytes:
        """The cluster's identity, 16 bytes; empty before it is open."""
        return self._session.cluster_id

    @property
    def partition_count(self) -> int:
        """Partitions of the cluster; 0 before it is open."""
        return self._session.partition_count

    # ---- maps

    @overload
    def map(self, spec: Map[K, V], /) -> AsyncMap[K, V]: ...
    @overload
    def map(
        self, name: str, /, *, key: type[K], value: type[V], durability: Durability = ...
    ) -> AsyncMap[K, V]: ...
    @overload
    def map(
        self, name: str, /, *, key: type[K], durability: Durability = ...
    ) -> AsyncMap[K, dict[str, Any]]: ...
    @overload
    def map(
        self, name: str, /, *, value: type[V], durability: Durability = ...
    ) -> AsyncMap[str, V]: ...
    @overload
    def map(
        self, name: str, /, *, durability: Durability = ...
    ) -> AsyncMap[str, dict[str, Any]]: ...
    def map(
        self,
        spec: Any,
        /,
        *,
        key: Any = str,
        value: Any = dict,
        durability: Durability = "replicated",
    ) -> AsyncMap[Any, Any]:
        """Return a map.

        Args:
            spec: ``Unit.attribute``, a `Map` with a name, or a name with ``key=`` and ``value=``.
            key: ``str``, ``bytes``, ``int`` or a ``tuple[...]`` of these.
            value: A Struct, dataclass, pydantic model, ``bytes``, ``dict``, ...; see `Map`.
            durability: With a name: as for `Map`; a declared map has its own.

        Raises:
            ConfigError: A type can't be packed.
            GridClosed: The grid is not open.
        """
        token: Any = (spec, key, value, durability) if isinstance(spec, str) else spec
        found = self._maps.get(token)
        if found is None:
            self._session.check()
            if isinstance(spec, str):
                spec = Map(key, value, name=spec, durability=durability)
            found = self._maps[token] = AsyncMap(self._session, spec)
        return found

    # ---- calls

    @overload
    def call(
        self, handler: HandlerSpec[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[R]: ...
    @overload
    def call(self, handler: str, /, **kwargs: Any) -> asyncio.Future[Any]: ...
    def call(self, handler: Any, /, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """Call a handler on the node that owns its routing key.

        Args:
            handler: ``Unit.handler``; or its name, then arguments go by keyword and the one that
                routes comes first.
            args: The handler's arguments.
            kwargs: The handler's arguments by name.

        Returns:
            A future of what the handler returns, already queued. `HandlerError` when it raised.
        """
        return self._calls.call(handler, *args, **kwargs)

    def options(
        self,
        *,
        timeout: Duration | None = None,
        request_id: str | None = None,
        durability: Durability = "replicated",
    ) -> AsyncCalls:
        """Return calls with their own deadline or request id: ``grid.options(...).call(...)``.

        Args:
            timeout: Seconds.
            request_id: From `request_id`; the same one again is applied once.
            durability: The level that a call's answer waits for.
        """
        return AsyncCalls(self._session, self._handlers, timeout, request_id, durability)

    # ---- requests

    @contextmanager
    def deadline(self, duration: Duration) -> Iterator[None]:
        """Bound everything inside by one deadline.

        Args:
            duration: Seconds from now.
        """
        self._session.enter_deadline()
        try:
            with deadline_scope(duration):
                yield
        finally:
            self._session.leave_deadline()

    def request_id(self) -> str:
        """Return a new request id: text that can be kept, and given to a request again later.

        A request that is sent again under the same id, by this process or another one, is applied
        once and answered with the first answer.
        """
        return self._session.next_request_id()

    def __repr__(self) -> str:
        return f"<AsyncGrid {self._session.describe()}>"


def connect(
    *addresses: str,
    timeout: Duration = DEFAULT_TIMEOUT_S,
    cluster_id: str | bytes | None = None,
    tls: str | PathLike[str] | None = None,
    token: str | None = None,
) -> AsyncGrid:
    """Connect to a cluster.

    ``async with connect("localhost:7700") as grid:``, or ``grid = await connect(...)``.

    Args:
        addresses: host:port of some nodes (several also with commas); kept for ever.
        timeout: Seconds that an operation may take, and that connecting may take.
        cluster_id: The cluster expected, as 32 hexadecimal digits; any when None.
        tls: File of the certificate of the cluster's authority (`ca.crt`); when None, the one that
            `SPACEGRID_TLS_CA` names, or no TLS.
        token: What `spacegrid token add` printed; when None, `SPACEGRID_TOKEN`, or what is in the
            file that `SPACEGRID_TOKEN_FILE` names. Never sent without TLS.

    Returns:
        A grid that is not open yet; awaiting or entering it connects, or raises `ConnectionFailed`.

    Raises:
        ConfigError: An address or the timeout is malformed, a file can't be read, or a token is
            given without TLS.
    """
    from spacegrid.security.client import client_security
    from spacegrid.transport.client_grpc import GrpcClientTransport

    seeds = parse_addresses(addresses)
    return AsyncGrid(
        GrpcClientTransport(client_security(tls, token)),
        seeds,
        timeout=timeout,
        cluster_id=cluster_id,
    )
