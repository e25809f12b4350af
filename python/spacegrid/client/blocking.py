"""The blocking face of the client: `Grid`, on grpcio's synchronous stack or in one process.

Who calls: users, the command line. The asyncio face, `asynchronous`, has the same methods; a test
compares them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, overload

import msgspec

from spacegrid.client.blocking_map import BlockingMap, LocalMap
from spacegrid.client.blocking_session import BlockingSession, Waiter
from spacegrid.client.common import (
    DEFAULT_TIMEOUT_S,
    Duration,
    cluster_bytes,
    deadline_scope,
    pack_named_call,
    parse_addresses,
    request_token,
    seconds_of,
    timeout_to_ms,
)
from spacegrid.types import CODEC_MSGPACK, Durability, HandlerSpec, Map, is_persisted
from spacegrid.wire.status import Status

if TYPE_CHECKING:
    from spacegrid import _core
    from spacegrid.transport.base import BlockingTransport

__all__ = ["BlockingMap", "Calls", "Grid", "connect_sync"]

K = TypeVar("K")
V = TypeVar("V")
P = ParamSpec("P")
R = TypeVar("R")


class Calls:
    """Calls of handlers under given options; from `Grid.options`."""

    def __init__(
        self,
        session: BlockingSession,
        timeout: Duration | None,
        request_id: str | None,
        durability: Durability = "replicated",
    ) -> None:
        self._persisted = is_persisted(durability)
        self._session = session
        self._timeout = timeout
        self._request_id = request_id

    @overload
    def call(self, handler: HandlerSpec[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def call(self, handler: str, /, **kwargs: Any) -> Any: ...
    def call(self, handler: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a handler; see `Grid.call`."""
        session = self._session
        session.check()
        if isinstance(handler, str):
            name, decode = handler, msgspec.msgpack.decode
            packed = pack_named_call(handler, args, kwargs)
        else:
            name, decode = f"{handler.unit_name}.{handler.name}", handler.decode_reply
            packed = handler.bind(args, kwargs)
        index = session.handlers.get((handler, self._persisted))
        if index is None:
            index = session.register(name, 0, CODEC_MSGPACK, self._persisted)
            session.handlers[handler, self._persisted] = index

        def finish(waiter: Waiter) -> Any:
            if waiter.status not in (Status.OK, Status.MISS):
                raise session.failure(waiter, finish)
            return None if waiter.value is None else decode(waiter.value)

        options = (request_token(self._request_id),)
        return finish(session.run(session.core.invoke, index, packed, self._timeout, options))


class Grid:
    """A cluster, seen from threads. Made by `connect_sync` and `open_sync`.

    ``with connect_sync(...) as grid:`` or call `close` in the end. Threads may share it. It must
    not be used after a fork.
    """

    def __init__(
        self,
        transport: BlockingTransport,
        seeds: tuple[str, ...],
        *,
        timeout: Duration = DEFAULT_TIMEOUT_S,
        cluster_id: str | bytes | None = None,
        local: _core.Node | None = None,
    ) -> None:
        timeout_ms = timeout_to_ms(timeout, 0)
        self._session = BlockingSession(transport, seeds, timeout_ms, cluster_bytes(cluster_id))
        self._local = local
        self._maps: dict[Any, BlockingMap[Any, Any]] = {}
        self._calls = Calls(self._session, None, None)

    # ---- life

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self, *, timeout: Duration = DEFAULT_TIMEOUT_S) -> None:
        """Refuse new operations, let those of other threads finish, and disconnect.

        Args:
            timeout: Seconds to wait for open operations.
        """
        self._session.close(seconds_of(timeout, "timeout"))

    @property
    def cluster_id(self) -> bytes:
        """The cluster's identity, 16 bytes."""
        return self._session.cluster_id

    @property
    def partition_count(self) -> int:
        """Partitions of the cluster."""
        return self._session.partition_count

    # ---- maps

    @overload
    def map(self, spec: Map[K, V], /) -> BlockingMap[K, V]: ...
    @overload
    def map(
        self, name: str, /, *, key: type[K], value: type[V], durability: Durability = ...
    ) -> BlockingMap[K, V]: ...
    @overload
    def map(
        self, name: str, /, *, key: type[K], durability: Durability = ...
    ) -> BlockingMap[K, dict[str, Any]]: ...
    @overload
    def map(
        self, name: str, /, *, value: type[V], durability: Durability = ...
    ) -> BlockingMap[str, V]: ...
    @overload
    def map(
        self, name: str, /, *, durability: Durability = ...
    ) -> BlockingMap[str, dict[str, Any]]: ...
    def map(
        self,
        spec: Any,
        /,
        *,
        key: Any = str,
        value: Any = dict,
        durability: Durability = "replicated",
    ) -> BlockingMap[Any, Any]:
        """Return a map.

        Args:
            spec: ``Unit.attribute``, a `Map` with a name, or a name with ``key=`` and ``value=``.
            key: ``str``, ``bytes``, ``int`` or a ``tuple[...]`` of these.
            value: A Struct, dataclass, pydantic model, ``bytes``, ``dict``, ...; see `Map`.
            durability: With a name: as for `Map`; a declared map has its own.

        Raises:
            ConfigError: A type can't be packed.
            GridClosed: The grid is closed.
        """
        token: Any = (spec, key, value, durability) if isinstance(spec, str) else spec
        found = self._maps.get(token)
        if found is None:
            if isinstance(spec, str):
                spec = Map(key, value, name=spec, durability=durability)
            if self._local is None:
                found = BlockingMap(self._session, spec)
            else:
                found = LocalMap(self._session, spec, self._local)
            self._maps[token] = found
        return found

    # ---- calls

    @overload
    def call(self, handler: HandlerSpec[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def call(self, handler: str, /, **kwargs: Any) -> Any: ...
    def call(self, handler: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a handler on the node that owns its routing key.

        Args:
            handler: ``Unit.handler``; or its name, then arguments go by keyword and the one that
                routes comes first.
            args: The handler's arguments.
            kwargs: The handler's arguments by name.

        Returns:
            What the handler returns.

        Raises:
            HandlerError: It raised; its turn wrote nothing.
        """
        return self._calls.call(handler, *args, **kwargs)

    def options(
        self,
        *,
        timeout: Duration | None = None,
        request_id: str | None = None,
        durability: Durability = "replicated",
    ) -> Calls:
        """Return calls with their own deadline or request id: ``grid.options(...).call(...)``.

        Args:
            timeout: Seconds.
            request_id: From `request_id`; the same one again is applied once.
            durability: The level that a call's answer waits for.
        """
        return Calls(self._session, timeout, request_id, durability)

    # ---- requests

    @contextmanager
    def deadline(self, duration: Duration) -> Iterator[None]:
        """Bound everything inside by one deadline.

        Args:
            duration: Seconds from now.
        """
        with deadline_scope(duration):
            yield

    def request_id(self) -> str:
        """Return a new request id: text that can be kept, and given to a request again later.

        A request that is sent again under the same id, by this process or another one, is applied
        once and answered with the first answer.
        """
        return self._session.next_request_id()

    def __repr__(self) -> str:
        return f"<Grid {self._session.describe()}>"


def connect_sync(
    *addresses: str,
    timeout: Duration = DEFAULT_TIMEOUT_S,
    cluster_id: str | bytes | None = None,
    tls: str | PathLike[str] | None = None,
    token: str | None = None,
) -> Grid:
    """Connect to a cluster and wait for it.

    Args:
        addresses: host:port of some nodes (several also with commas); kept for ever.
        timeout: Seconds that an operation may take, and that connecting may take.
        cluster_id: The cluster expected, as 32 hexadecimal digits; any when None.
        tls: File of the certificate of the cluster's authority (`ca.crt`); when None, the one that
            `SPACEGRID_TLS_CA` names, or no TLS.
        token: What `spacegrid token add` printed; when None, `SPACEGRID_TOKEN`, or what is in the
            file that `SPACEGRID_TOKEN_FILE` names. Never sent without TLS.

    Raises:
        ConfigError: An address or the timeout is malformed, a file can't be read, or a token is
            given without TLS.
        ConnectionFailed: No node answers in time.
        AuthenticationFailed: A node does not know the token, or its certificate is not trusted.
        ProtocolError: A node of another cluster or version answers.
    """
    from spacegrid.security.client import client_security
    from spacegrid.transport.client_grpc import GrpcBlockingTransport

    seeds = parse_addresses(addresses)
    return Grid(
        GrpcBlockingTransport(client_security(tls, token)),
        seeds,
        timeout=timeout,
        cluster_id=cluster_id,
    )
