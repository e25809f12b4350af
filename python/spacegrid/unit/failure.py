"""What a failed handler run answers, and what a failed call raises in its caller.

A handler that raises answers HANDLER_ERROR with one msgpack map: type, message, traceback, each
bounded. Some errors of the grid that a handler lets through keep their own status, so that the
outermost caller is told the truth: above all, a nested call whose outcome is unknown makes the
whole turn's outcome unknown, and the client's retry (same token) runs the turn again.

Who calls: `host`, `turn`. Statuses are those of proto/FRAME.md.
"""

from __future__ import annotations

import logging
import traceback
from enum import IntEnum
from typing import Final

import msgspec

from spacegrid import errors
from spacegrid.errors import SpaceGridError

__all__ = ["FailureLog", "Status", "error_from", "failure_of", "handler_failure"]

MESSAGE_BYTES_MAX: Final = 4096
TRACEBACK_BYTES_MAX: Final = 16 * 1024
TRACEBACK_FRAMES: Final = 20
FAILURE_KINDS_MAX: Final = 1000


class Status(IntEnum):
    """Statuses of a reply that units use; see proto/FRAME.md."""

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
    TIMEOUT = 255
    """At the deadline, surely not applied."""


class Failure(msgspec.Struct):
    """The value of a HANDLER_ERROR reply: one msgpack map."""

    type: str = ""
    message: str = ""
    traceback: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Failure).decode

_KEPT: Final[dict[type[BaseException], Status]] = {
    errors.WrongRoutingKey: Status.WRONG_ROUTING_KEY,
    errors.CallCycle: Status.CALL_CYCLE,
}

_RAISED: Final[dict[int, type[SpaceGridError]]] = {
    Status.NOT_PRIMARY: errors.NotPrimary,
    Status.UNAVAILABLE: errors.PartitionUnavailable,
    Status.LOST: errors.PartitionLost,
    Status.NOT_ENOUGH_COPIES: errors.NotEnoughCopies,
    Status.BACKPRESSURE: errors.Backpressure,
    Status.MEMORY_FULL: errors.MemoryFull,
    Status.STALE_REQUEST: errors.StaleRequest,
    Status.TOKEN_REUSED: errors.RequestReused,
    Status.SCHEMA_MISMATCH: errors.SchemaMismatch,
    Status.WRONG_TYPE: errors.WrongType,
    Status.CALL_CYCLE: errors.CallCycle,
    Status.INVALID: errors.SerializationError,
    Status.TOO_LARGE: errors.TooLarge,
    Status.WRONG_ROUTING_KEY: errors.WrongRoutingKey,
}


def failure_of(error: BaseException) -> tuple[Status, bytes]:
    """What to answer for an exception that a handler let through.

    Returns:
        Status and value of the reply. UNKNOWN for a nested call that may succeed when the turn is
        run again or whose outcome is not known; else HANDLER_ERROR, or the grid's own status.
    """
    if isinstance(error, SpaceGridError):
        kept = _KEPT.get(type(error))
        if kept is not None:
            return kept, _cut(str(error), MESSAGE_BYTES_MAX).encode()
        if error.retryable:
            return Status.UNKNOWN, _cut(str(error), MESSAGE_BYTES_MAX).encode()
    return Status.HANDLER_ERROR, handler_failure(error)


def handler_failure(error: BaseException) -> bytes:
    """Pack an exception: type, message and traceback, each bounded; never raises."""
    try:
        message = str(error)
    except Exception as broken:
        message = f"<{type(broken).__name__} while its message was made>"
    try:
        frames = error.__traceback__
        # The first frames are the host's own; who reads this wants to see the handler's.
        while frames is not None and __package__ in frames.tb_frame.f_globals.get("__name__", ""):
            frames = frames.tb_next
        text = "".join(
            traceback.TracebackException(
                type(error), error, frames, limit=-TRACEBACK_FRAMES
            ).format()
        )
    except Exception as broken:
        text = f"<{type(broken).__name__} while its traceback was made>"
    return _encode(
        Failure(
            type=type(error).__name__[:255],
            message=_cut(message, MESSAGE_BYTES_MAX),
            traceback=_cut(text, TRACEBACK_BYTES_MAX, keep_end=True),
        )
    )


def error_from(status: int, value: bytes, handler: str) -> SpaceGridError:
    """The exception that a nested call raises for the status it was answered with.

    Args:
        status: Any but OK.
        value: The reply's value.
        handler: ``"Unit.handler"`` that was called.
    """
    if status == Status.HANDLER_ERROR:
        try:
            failure = _decode(value)
        except (msgspec.MsgspecError, RecursionError):
            failure = Failure(message="(its failure can't be read)")
        return errors.HandlerError(
            f"{handler}: {failure.type}: {failure.message}",
            handler=handler,
            error_type=failure.type,
            remote_traceback=failure.traceback,
        )
    text = value.decode(errors="replace")
    if status == Status.NO_SUCH_HANDLER:
        return errors.NoSuchHandler(text or f"no node has the handler {handler!r}", handler=handler)
    if status in (Status.UNKNOWN, Status.TIMEOUT):
        return errors.DeadlineExceeded(
            f"the call of {handler} had no answer in time", maybe_applied=status == Status.UNKNOWN
        )
    kind = _RAISED.get(status, errors.ProtocolError)
    if kind is errors.Backpressure:  # its value is a hint in milliseconds, not a text
        text = ""
    name = Status(status).name if status in Status._value2member_map_ else str(status)
    return kind(f"the call of {handler} failed: {text or name}")


class FailureLog:
    """Logs the first failure of a kind loudly; a failing handler must not drown the log.

    Args:
        logger: Where to.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._seen: set[tuple[str, str]] = set()

    def log(self, name: str, error: BaseException) -> None:
        """Log that handler ``name`` ended with this error."""
        kind = (name, type(error).__name__)
        if kind in self._seen or len(self._seen) >= FAILURE_KINDS_MAX:
            self._logger.debug("handler %s raised %s: %s", *kind, error)
        else:
            self._seen.add(kind)
            self._logger.warning("handler %s raised %s: %s (logged once)", *kind, error)


def _cut(text: str, bytes_max: int, *, keep_end: bool = False) -> str:
    data = text.encode(errors="backslashreplace")
    if len(data) <= bytes_max:
        return data.decode()
    if keep_end:
        return "... " + data[4 - bytes_max :].decode(errors="ignore")
    return data[: bytes_max - 4].decode(errors="ignore") + " ..."
