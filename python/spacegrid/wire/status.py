"""Statuses of operations in reply frames (proto/FRAME.md), and the errors that they stand for.

Who calls: the clients, to raise; nodes, to answer unary calls and to end turns.
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Any, Final

import msgspec

from spacegrid import errors

__all__ = ["TIMEOUT", "Status", "error_of", "pack_handler_error"]


@unique
class Status(IntEnum):
    """Outcome of one operation."""

    OK = 0
    MISS = 1
    CONFLICT = 2
    NOT_PRIMARY = 3
    UNAVAILABLE = 4
    LOST = 5
    NOT_ENOUGH_COPIES = 6
    BACKPRESSURE = 7
    MEMORY_FULL = 8
    UNKNOWN = 9
    STALE_REQUEST = 10
    TOKEN_REUSED = 11
    SCHEMA_MISMATCH = 12
    WRONG_TYPE = 13
    HANDLER_ERROR = 14
    NO_SUCH_HANDLER = 15
    CALL_CYCLE = 16
    INVALID = 17
    TOO_LARGE = 18
    WRONG_ROUTING_KEY = 19
    PERMISSION = 20
    DURABILITY_UNAVAILABLE = 21
    TOO_STALE = 22


TIMEOUT: Final = 255
"""The client's own: the deadline passed and the operation was surely not applied."""

_TEXT: Final[dict[int, tuple[type[errors.SpaceGridError], str]]] = {
    Status.CONFLICT: (errors.ConflictError, "the condition did not hold"),
    Status.NOT_PRIMARY: (errors.NotPrimary, "ownership of the partition is moving"),
    Status.UNAVAILABLE: (errors.PartitionUnavailable, "the partition has no primary yet"),
    Status.LOST: (
        errors.PartitionLost,
        "every copy of the partition is gone\nhint: an operator decides how it begins again",
    ),
    Status.NOT_ENOUGH_COPIES: (
        errors.NotEnoughCopies,
        "refused: fewer copies are alive than the cluster demands\n"
        "hint: start another node, or run a lone node with --copies 1",
    ),
    Status.BACKPRESSURE: (
        errors.Backpressure,
        "the log is full (a sink or a backup is behind), or too many large answers wait",
    ),
    Status.MEMORY_FULL: (errors.MemoryFull, "write refused: the node's memory quota is used up"),
    Status.STALE_REQUEST: (errors.StaleRequest, "the request's result is no longer kept"),
    Status.TOKEN_REUSED: (errors.RequestReused, "the request id was used with other arguments"),
    Status.SCHEMA_MISMATCH: (
        errors.SchemaMismatch,
        "the map was first used with another value type",
    ),
    Status.WRONG_TYPE: (errors.WrongType, "the entry is no whole number"),
    Status.NO_SUCH_HANDLER: (
        errors.NoSuchHandler,
        "the node has no such handler\nhint: start it with --unit module:Class",
    ),
    Status.CALL_CYCLE: (errors.CallCycle, "the call came back to a routing key in its own chain"),
    Status.INVALID: (errors.ProtocolError, "the node found the request invalid"),
    Status.TOO_LARGE: (errors.TooLarge, "over a limit of the node"),
    Status.WRONG_ROUTING_KEY: (
        errors.WrongRoutingKey,
        "the turn touched a key of another routing key",
    ),
    Status.PERMISSION: (
        errors.PermissionDenied,
        "the token's role does not allow it\nhint: ask with a token of a higher role",
    ),
    Status.TOO_STALE: (
        errors.TooStale,
        "no copy can vouch for an answer that recent\nhint: a larger max_age gets an older one",
    ),
    Status.DURABILITY_UNAVAILABLE: (
        errors.DurabilityUnavailable,
        "persisted was asked for, and a node with a copy has no data folder\n"
        "hint: start every node with --data, or ask for durability='replicated'",
    ),
}


def error_of(
    status: int,
    value: bytes | None,
    what: str,
    *,
    partition: int | None = None,
    version: int = 0,
) -> errors.SpaceGridError:
    """Make the error that a status stands for; UNKNOWN and TIMEOUT are the caller's to make.

    Args:
        status: Any status but OK and MISS.
        value: The reply's bytes: text, or what FRAME.md says for the status.
        what: The operation, as ``"put 'tea' in map 'stock'"``; begins the message.
        partition: Its partition, where known.
        version: The reply's version: the current one after CONFLICT.

    Returns:
        The error, to be raised.
    """
    where = "" if partition is None else f" (partition {partition})"
    if status == Status.HANDLER_ERROR:
        return _handler_error(value, what, where, partition)
    kind, text = _TEXT.get(status, (errors.ProtocolError, f"the node answered status {status}"))
    if value and status not in (Status.BACKPRESSURE, Status.CONFLICT):
        text = value.decode("utf-8", "replace")
    message = f"{what}{where}: {text}"
    if kind is errors.Backpressure:
        hint_ms = int.from_bytes(value[:4], "little") if value else 0
        return errors.Backpressure(message, retry_after=hint_ms / 1000, partition=partition)
    if kind is errors.ConflictError:
        message += f"; the current version is {version}" if version else "; there is no entry"
    return kind(message, partition=partition)


def _handler_error(
    value: bytes | None, what: str, where: str, partition: int | None
) -> errors.HandlerError:
    try:
        details: Any = msgspec.msgpack.decode(value or b"")
        kind, text, trace = (str(details.get(n, "")) for n in ("type", "message", "traceback"))
    except (msgspec.DecodeError, AttributeError):
        kind, text, trace = "", repr(value), ""
    message = f"{what}{where}: {kind}: {text}" if kind else f"{what}{where}: {text}"
    return errors.HandlerError(
        message, error_type=kind, remote_traceback=trace, partition=partition
    )


def pack_handler_error(kind: str, message: str, traceback: str) -> bytes:
    """Pack what a handler raised, for a reply with HANDLER_ERROR.

    Args:
        kind: Class name of the error.
        message: Its text.
        traceback: The traceback's text.
    """
    return msgspec.msgpack.encode({"type": kind, "message": message, "traceback": traceback})
