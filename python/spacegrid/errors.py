"""Every error that spacegrid raises on purpose: one tree, by what the caller can do about it.

The tree is one room, so that it is read, and kept complete, as a whole.

::

    SpaceGridError                  .code .retryable .maybe_applied .partition .grpc_status
    ├─ ConfigError (ValueError)     a setting or an argument is wrong; fix it
    ├─ ConnectionFailed (ConnectionError)       nobody answers; later may work          retryable
    ├─ ProtocolError                another version, another cluster, or damaged bytes
    ├─ AccessError                  the cluster does not let this caller in, or not do this
    │  ├─ AuthenticationFailed      no token, a wrong one, or a certificate that is not trusted
    │  └─ PermissionDenied (PermissionError)    the role is not enough
    ├─ GridClosed (RuntimeError)    this grid was closed
    ├─ ForkedProcess (RuntimeError) this grid was opened in the parent process
    ├─ DeadlineExceeded (TimeoutError)          .request_id .reason .resend()           retryable
    ├─ AvailabilityError            the partition can't answer now
    │  ├─ NotPrimary                ownership is moving                                 retryable
    │  ├─ PartitionUnavailable      no primary yet, or it is recovering                 retryable
    │  ├─ NotEnoughCopies           a write was refused: too few copies are alive       retryable
    │  ├─ DurabilityUnavailable     persisted was asked of copies without a data folder
    │  ├─ TooStale                  no copy could answer a stale read with something that recent
    │  └─ PartitionLost             every copy is gone; said, never faked
    ├─ ConflictError                a condition did not hold
    │  └─ VersionMismatch           .expected_version .current_version
    ├─ RequestError                 a token was used against its rules
    │  ├─ StaleRequest              its result is no longer kept: can't be told any more
    │  └─ RequestReused             same token, other arguments
    ├─ CapacityError
    │  ├─ MemoryFull                the node's quota is used up
    │  ├─ Backpressure              .retry_after: the log waits for a sink              retryable
    │  └─ TooLarge                  a key, value, name or batch is over its limit
    ├─ BatchError                   .failures: some keys of a *_many call failed
    ├─ CallError                    a call of a handler
    │  ├─ HandlerError              .error_type .remote_traceback: user code raised
    │  ├─ NoSuchHandler             no node has that unit or handler
    │  ├─ WrongRoutingKey           a turn touched a key of another routing key
    │  ├─ CallCycle                 .chain: a call back to a routing key in its own chain
    │  └─ NoTurn (RuntimeError)     a unit's map was read outside of a handler
    ├─ SerializationError (TypeError)
    │  ├─ SchemaMismatch            the map holds another type
    │  └─ WrongType                 the entry is not what the operation needs
    └─ SinkError                    .sink: a database behind a pump
       ├─ SinkUnavailable           it does not answer; the pump goes on trying         retryable
       ├─ SinkMismatch              it belongs to another cluster or to another layout
       ├─ StoreDamaged              a node's store on disk is not what was written
       └─ StoreFailed               the disk failed a write or an fsync: the node ends

``retryable`` says that the same request can succeed later. ``maybe_applied`` says that the outcome
is unknown: the request may have been applied, and only sending it again under the same token
(``resend()``, or ``request_id=``) is safe. Messages are lower case, name the value and the limit,
and carry a hint on a line of its own. `InvariantViolation` stands outside the tree: it is a bug of
spacegrid itself.

Who calls: everything above. What it may import: nothing of spacegrid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

__all__ = [
    "AccessError",
    "AuthenticationFailed",
    "AvailabilityError",
    "Backpressure",
    "BatchError",
    "CallCycle",
    "CallError",
    "CapacityError",
    "ConfigError",
    "ConflictError",
    "ConnectionFailed",
    "DeadlineExceeded",
    "DurabilityUnavailable",
    "ForkedProcess",
    "GridClosed",
    "HandlerError",
    "InvariantViolation",
    "MemoryFull",
    "NoSuchHandler",
    "NoTurn",
    "NotEnoughCopies",
    "NotPrimary",
    "PartitionLost",
    "PartitionUnavailable",
    "PermissionDenied",
    "ProtocolError",
    "RequestError",
    "RequestReused",
    "SchemaMismatch",
    "SerializationError",
    "SinkError",
    "SinkMismatch",
    "SinkUnavailable",
    "SpaceGridError",
    "StaleRequest",
    "StoreDamaged",
    "StoreFailed",
    "TooLarge",
    "TooStale",
    "VersionMismatch",
    "WrongRoutingKey",
    "WrongType",
    "invariant",
]


class SpaceGridError(Exception):
    """Root of every error that spacegrid raises on purpose.

    Attributes:
        code: Stable name of the kind of error, for logs, metrics and other languages.
        retryable: Whether the same request can succeed later.
        maybe_applied: Whether the request may have been applied although it failed.
        partition: The partition it was about, where that is known.
        grpc_status: Name of the gRPC status code that stands for it on the wire.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    grpc_status: ClassVar[str] = "UNKNOWN"
    maybe_applied: bool = False

    def __init__(
        self, message: str, *, partition: int | None = None, maybe_applied: bool | None = None
    ) -> None:
        super().__init__(message)
        self.partition = partition
        if maybe_applied is not None:
            self.maybe_applied = maybe_applied


class ConfigError(SpaceGridError, ValueError):
    """A setting or an argument is wrong."""

    code = "config"
    grpc_status = "INVALID_ARGUMENT"


class ConnectionFailed(SpaceGridError, ConnectionError):
    """No node could be reached at the given addresses."""

    code = "connection_failed"
    retryable = True
    grpc_status = "UNAVAILABLE"

    def __init__(self, message: str, *, addresses: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.addresses = tuple(addresses)


class ProtocolError(SpaceGridError):
    """The other side speaks another version, belongs to another cluster, or sent damaged bytes."""

    code = "protocol"
    grpc_status = "FAILED_PRECONDITION"


class AccessError(SpaceGridError):
    """The cluster does not let this caller in, or does not let it do this."""

    code = "access"
    grpc_status = "PERMISSION_DENIED"


class AuthenticationFailed(AccessError):
    """No token, a wrong one, or a certificate that one side does not trust."""

    code = "authentication_failed"
    grpc_status = "UNAUTHENTICATED"


class PermissionDenied(AccessError, PermissionError):
    """The role of the caller's token does not allow the operation; it was surely not applied."""

    code = "permission_denied"


class GridClosed(SpaceGridError, RuntimeError):
    """The grid object was closed; open or connect a new one."""

    code = "grid_closed"
    grpc_status = "CANCELLED"


class ForkedProcess(SpaceGridError, RuntimeError):
    """The grid object belongs to the parent of this process; connect again after the fork."""

    code = "forked_process"
    grpc_status = "FAILED_PRECONDITION"


class DeadlineExceeded(SpaceGridError, TimeoutError):
    """The deadline passed before a definite answer.

    With ``maybe_applied`` the outcome is unknown; `resend` asks again under the same token, so that
    the request is applied once however often it is sent.

    Attributes:
        request_id: The request's identity, ``"stream-number"``; can be given to another call.
        reason: The last error that the client saw and retried, where there was one.
    """

    code = "deadline_exceeded"
    retryable = True
    grpc_status = "DEADLINE_EXCEEDED"

    def __init__(
        self,
        message: str,
        *,
        partition: int | None = None,
        maybe_applied: bool = False,
        request_id: str | None = None,
        reason: SpaceGridError | None = None,
        resend: Callable[[float | None], Any] | None = None,
    ) -> None:
        super().__init__(message, partition=partition, maybe_applied=maybe_applied)
        self.request_id = request_id
        self.reason = reason
        self._resend = resend

    def resend(self, timeout: float | None = None) -> Any:
        """Send the same request again, under the same token.

        Args:
            timeout: Seconds until the next deadline; the grid's own when None.

        Returns:
            What the first call would have returned: a value from a `Grid`, an awaitable from an
            `AsyncGrid`.

        Raises:
            RuntimeError: There is nothing to send again (this error did not come from one request).
        """
        if self._resend is None:
            raise RuntimeError("nothing to send again: this deadline did not belong to one request")
        return self._resend(timeout)


class AvailabilityError(SpaceGridError):
    """The partition can't answer now."""

    code = "availability"
    grpc_status = "UNAVAILABLE"


class NotPrimary(AvailabilityError):
    """The node asked is not the primary; retried inside, seen only past the deadline."""

    code = "not_primary"
    retryable = True


class PartitionUnavailable(AvailabilityError):
    """Nobody is primary of the partition yet, or it is recovering."""

    code = "partition_unavailable"
    retryable = True


class NotEnoughCopies(AvailabilityError):
    """A write was refused, surely not applied: fewer copies are alive than the cluster demands.

    Or a confirmed read, since there are too few to confirm it.
    """

    code = "not_enough_copies"
    retryable = True


class DurabilityUnavailable(AvailabilityError):
    """A persisted write was refused, surely not applied: a copy has no store on disk.

    It would have waited for an fsync that nobody makes. Give every node a data folder, or ask for
    ``durability="replicated"``.
    """

    code = "durability_unavailable"
    grpc_status = "FAILED_PRECONDITION"


class TooStale(AvailabilityError):
    """No copy could vouch for an answer as recent as a stale read asked for.

    Each copy that can be reached was cut off for longer, from the controller or from news of what
    is committed. A larger ``max_age`` gets an older answer.
    """

    code = "too_stale"
    retryable = True


class PartitionLost(AvailabilityError):
    """Every copy of the partition is gone; an operator decides how it begins again."""

    code = "partition_lost"
    grpc_status = "DATA_LOSS"


class ConflictError(SpaceGridError):
    """A condition of the request did not hold; nothing was written."""

    code = "conflict"
    grpc_status = "ABORTED"


class VersionMismatch(ConflictError):
    """The entry has another version than the one expected.

    Attributes:
        expected_version: What the caller gave.
        current_version: What is there; 0 when there is no entry.
    """

    code = "version_mismatch"

    def __init__(
        self,
        message: str,
        *,
        expected_version: int = 0,
        current_version: int = 0,
        partition: int | None = None,
    ) -> None:
        super().__init__(message, partition=partition)
        self.expected_version = expected_version
        self.current_version = current_version


class RequestError(SpaceGridError):
    """A request token was used against its rules."""

    code = "request"
    grpc_status = "FAILED_PRECONDITION"


class StaleRequest(RequestError):
    """The result is no longer kept, so the request is refused rather than applied again."""

    code = "stale_request"
    maybe_applied = True


class RequestReused(RequestError):
    """The same token came with other arguments; nothing was applied by this request."""

    code = "request_reused"


class CapacityError(SpaceGridError):
    """A limit is reached; the message says which."""

    code = "capacity"
    grpc_status = "RESOURCE_EXHAUSTED"


class MemoryFull(CapacityError):
    """The node's memory quota is used up; the write was refused."""

    code = "memory_full"


class Backpressure(CapacityError):
    """The partition's log is full because a reader of it (a sink, a backup) is behind.

    Attributes:
        retry_after: Seconds after which it makes sense to try again.
    """

    code = "backpressure"
    retryable = True

    def __init__(
        self, message: str, *, retry_after: float = 0.0, partition: int | None = None
    ) -> None:
        super().__init__(message, partition=partition)
        self.retry_after = retry_after


class TooLarge(CapacityError, ValueError):
    """A key, value, name or batch is over its limit; see `spacegrid.limits`."""

    code = "too_large"
    grpc_status = "INVALID_ARGUMENT"


class BatchError(SpaceGridError):
    """Some keys of a ``*_many`` call failed; the others succeeded.

    Attributes:
        results: Key to result for the keys that succeeded.
        failures: Key to error for the keys that failed.
    """

    code = "batch"
    grpc_status = "ABORTED"

    def __init__(
        self,
        message: str,
        *,
        results: Mapping[Any, Any] | None = None,
        failures: Mapping[Any, SpaceGridError] | None = None,
    ) -> None:
        self.results = dict(results or {})
        self.failures = dict(failures or {})
        super().__init__(
            message, maybe_applied=any(error.maybe_applied for error in self.failures.values())
        )


class CallError(SpaceGridError):
    """A call of a handler went wrong."""

    code = "call"
    grpc_status = "FAILED_PRECONDITION"


class HandlerError(CallError):
    """The handler raised; its turn wrote nothing.

    Attributes:
        handler: ``"Unit.handler"``.
        error_type: Class name of what it raised, for instance ``"ValueError"``.
        remote_traceback: Traceback text from the node where it ran.
    """

    code = "handler_error"
    grpc_status = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        handler: str = "",
        error_type: str = "",
        remote_traceback: str = "",
        partition: int | None = None,
    ) -> None:
        super().__init__(message, partition=partition)
        self.handler = handler
        self.error_type = error_type
        self.remote_traceback = remote_traceback


class NoSuchHandler(CallError):
    """The node that owns the routing key has no such unit or handler installed.

    Attributes:
        handler: The name that was called.
    """

    code = "no_such_handler"
    grpc_status = "NOT_FOUND"

    def __init__(self, message: str, *, handler: str = "", partition: int | None = None) -> None:
        super().__init__(message, partition=partition)
        self.handler = handler


class WrongRoutingKey(CallError):
    """A turn touched a key that belongs to another routing key than its own.

    Attributes:
        key: The key that was touched.
        routing_key: The routing key of the turn.
    """

    code = "wrong_routing_key"

    def __init__(
        self,
        message: str,
        *,
        key: object = None,
        routing_key: object = None,
        partition: int | None = None,
    ) -> None:
        super().__init__(message, partition=partition)
        self.key = key
        self.routing_key = routing_key


class CallCycle(CallError):
    """A call came back to a unit and routing key that is already waiting in its chain.

    Attributes:
        chain: The calls on the way, outermost first, as ``"Unit(routing key)"``.
    """

    code = "call_cycle"

    def __init__(
        self, message: str, *, chain: Sequence[str] = (), partition: int | None = None
    ) -> None:
        super().__init__(message, partition=partition)
        self.chain = tuple(chain)


class NoTurn(CallError, RuntimeError):
    """A unit's map was read outside of a running handler."""

    code = "no_turn"


class SerializationError(SpaceGridError, TypeError):
    """A key or value can't be packed, or the stored bytes can't be read as the declared type."""

    code = "serialization"
    grpc_status = "INVALID_ARGUMENT"


class SchemaMismatch(SerializationError):
    """The map was first used with another value type.

    Attributes:
        map_name: Name of the map.
    """

    code = "schema_mismatch"
    grpc_status = "FAILED_PRECONDITION"

    def __init__(self, message: str, *, map_name: str = "", partition: int | None = None) -> None:
        super().__init__(message, partition=partition)
        self.map_name = map_name


class WrongType(SerializationError):
    """The entry is not what the operation needs, for instance `incr` on a text."""

    code = "wrong_type"
    grpc_status = "FAILED_PRECONDITION"


class SinkError(SpaceGridError):
    """A database behind a pump.

    Attributes:
        sink: Which one, without credentials.
    """

    code = "sink"
    grpc_status = "UNAVAILABLE"

    def __init__(self, message: str, *, sink: str = "", partition: int | None = None) -> None:
        super().__init__(message, partition=partition)
        self.sink = sink


class SinkUnavailable(SinkError):
    """The database does not answer; the pump tries again and nothing is dropped."""

    code = "sink_unavailable"
    retryable = True


class SinkMismatch(SinkError):
    """The database holds another cluster's data, or was made for another layout."""

    code = "sink_mismatch"
    grpc_status = "FAILED_PRECONDITION"


class StoreDamaged(SinkError):
    """A node's store on disk does not hold what was written there; nothing of it is served."""

    code = "store_damaged"
    grpc_status = "DATA_LOSS"


class StoreFailed(SinkError):
    """A write to a node's own disk failed, an fsync perhaps: the store is out of service for good.

    What the kernel had not yet written may be gone from its cache, so asking again could succeed
    without the data being there. The node that sees this ends.
    """

    code = "store_failed"
    grpc_status = "DATA_LOSS"


class InvariantViolation(Exception):
    """Something that can't be is: a bug of spacegrid. The node that sees it stops."""


def invariant(condition: object, message: str, *values: object) -> None:
    """Stop with `InvariantViolation` unless the condition holds; ``-O`` does not remove it.

    Args:
        condition: What must be true.
        message: What was violated, with ``{}`` for each value.
        values: Filled into the message, only when it is needed.

    Raises:
        InvariantViolation: The condition is false.
    """
    if not condition:
        raise InvariantViolation(message.format(*values))
