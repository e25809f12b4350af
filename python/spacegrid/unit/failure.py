"""What a failed handler run answers, and what a failed call raises in its caller.

A handler that raises answers HANDLER_ERROR with one msgpack map: type, message, traceback, each
bounded. Some errors of the grid that a handler lets through keep their own status, so that the
outermost caller is told the truth: above all, a nested call whose outcome is unknown makes the
whole turn's outcome unknown, and the client's retry (same token) runs the turn again.

Who calls: `host`, `calls`.
"""

from __future__ import annotations

import logging
import traceback
from typing import Final

from spacegrid import errors
from spacegrid.errors import SpaceGridError
from spacegrid.wire.status import TIMEOUT, Status, error_of, pack_handler_error

__all__ = ["FailureLog", "error_from", "failure_of", "handler_failure"]

MESSAGE_BYTES_MAX: Final = 4096
TRACEBACK_BYTES_MAX: Final = 16 * 1024
TRACEBACK_FRAMES: Final = 20
FAILURE_KINDS_MAX: Final = 1000


_KEPT: Final[dict[type[BaseException], Status]] = {
    errors.WrongRoutingKey: Status.WRONG_ROUTING_KEY,
    errors.CallCycle: Status.CALL_CYCLE,
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
    return pack_handler_error(
        type(error).__name__[:255],
        _cut(message, MESSAGE_BYTES_MAX),
        _cut(text, TRACEBACK_BYTES_MAX, keep_end=True),
    )


def error_from(status: int, value: bytes, handler: str) -> SpaceGridError:
    """The exception that a nested call raises for the status it was answered with.

    Args:
        status: Any but OK.
        value: The reply's value.
        handler: ``"Unit.handler"`` that was called.
    """
    if status in (Status.UNKNOWN, TIMEOUT):
        return errors.DeadlineExceeded(
            f"the call of {handler} had no answer in time", maybe_applied=status == Status.UNKNOWN
        )
    return error_of(status, value, f"call of {handler}")


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
