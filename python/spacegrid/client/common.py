"""What both faces of the client share: arguments, deadlines, request ids, errors of replies.

Who calls: `session`, `asynchronous`, `blocking`. No I/O and no waiting.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import msgspec

from spacegrid import _core, clock, errors
from spacegrid.limits import STALE_AGE_MS_DEFAULT
from spacegrid.types import PRIMARY, Stale, ValueCodec, parse_request_id
from spacegrid.wire.status import TIMEOUT, Status, error_of

__all__ = [
    "DEFAULT_TIMEOUT_S",
    "Duration",
    "Guarded",
    "Outcome",
    "Unknown",
    "batch_error",
    "cluster_bytes",
    "deadline_scope",
    "describe",
    "failure_of",
    "guard_fork",
    "no_connection",
    "pack_named_call",
    "parse_addresses",
    "read_stale",
    "refusal",
    "request_token",
    "seconds_of",
    "signed_delta",
    "stale_age_ms",
    "timeout_to_ms",
    "ttl_to_ms",
]

T = TypeVar("T")
V = TypeVar("V")

Duration: TypeAlias = float | timedelta
"""Seconds, or a timedelta."""

Token: TypeAlias = tuple[int, int, bytes, int]

DEFAULT_TIMEOUT_S: Final = 5.0
_CLOSED_BY_NODE: Final = ("Socket closed", "WRONG_VERSION_NUMBER")
"""What gRPC says when only one of the two sides speaks TLS."""
TIMEOUT_S_MAX: Final = 86_400.0
REQUEST_NUMBER_BASE: Final = 1 << 48
"""Request ids that a user keeps are numbered from here, so that they stay open for as long as the
stream is known: the client's own numbers, and with them its lowest open one, never get this far."""

_FIRST: Final = 1
"""Lowest open number sent with a kept request id: it lets no result of its stream be forgotten."""

_deadline: ContextVar[float | None] = ContextVar("spacegrid_deadline", default=None)


# --- arguments ------------------------------------------------------------------------------------


def parse_addresses(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Read addresses: each argument is host:port, or several with commas, or ``grid://`` of these.

    Raises:
        ConfigError: None is given, or one is not host:port.
    """
    found: list[str] = []
    for text in addresses:
        for part in text.removeprefix("grid://").split(","):
            address = part.strip().rstrip("/")
            host, colon, port = address.rpartition(":")
            if not (host and colon and port.isascii() and port.isdigit() and int(port) <= 65_535):
                raise errors.ConfigError(
                    f"address {address!r} is not host:port\nhint: connect('localhost:7700')"
                )
            if address not in found:
                found.append(address)
    if not found:
        raise errors.ConfigError("no address given\nhint: connect('localhost:7700')")
    return tuple(found)


def seconds_of(duration: Duration, what: str) -> float:
    """Read a duration of at most a day as seconds.

    Raises:
        ConfigError: It is not positive, or no duration.
    """
    if isinstance(duration, timedelta):
        duration = duration.total_seconds()
    if not isinstance(duration, (int, float)) or not duration > 0:
        raise errors.ConfigError(f"{what} is {duration!r}, must be more than 0 seconds")
    return float(duration)


def timeout_to_ms(timeout: Duration | None, default_ms: int) -> int:
    """Milliseconds that an operation may take, within the deadline in force if there is one.

    Raises:
        ConfigError: The timeout is not between 0 and a day.
    """
    timeout_ms = default_ms
    if timeout is not None:
        seconds = seconds_of(timeout, "timeout")
        if seconds > TIMEOUT_S_MAX:
            raise errors.ConfigError(f"timeout is {seconds} s, must be at most {TIMEOUT_S_MAX} s")
        timeout_ms = max(1, round(seconds * 1000))
    until = _deadline.get()
    if until is not None:
        timeout_ms = min(timeout_ms, max(0, round((until - clock.monotonic_s()) * 1000)))
    return timeout_ms


def ttl_to_ms(ttl: Duration | None) -> int:
    """Milliseconds to live; 0, which is for ever, when None."""
    return 0 if ttl is None else max(1, round(seconds_of(ttl, "ttl") * 1000))


def stale_age_ms(read: str, default: object, max_age: Duration | None) -> int | None:
    """Milliseconds that a stale read may be behind; None when the read is not a stale one.

    Raises:
        ConfigError: There is no such way to read, or an option does not go with it.
    """
    if read in (PRIMARY, "confirmed"):
        if max_age is not None:
            raise errors.ConfigError("max_age goes with read='stale' only")
        return None
    if read != "stale":
        raise errors.ConfigError(f"read is {read!r}, must be 'primary', 'confirmed' or 'stale'")
    if default is not None:
        raise errors.ConfigError(
            "a stale read takes no default\nhint: its value is None where there is no entry"
        )
    if max_age is None:
        return STALE_AGE_MS_DEFAULT
    return max(1, round(seconds_of(max_age, "max_age") * 1000))


def read_stale(values: ValueCodec[V], packed: bytes, version: int, codec: int) -> Stale[V]:
    """Read the answer to a stale read: its age in 8 bytes, then the value."""
    age_ms = int.from_bytes(packed[:8], "little")
    value = values.decode(packed[8:], codec) if version else None
    return Stale(value, age_ms, version)


@contextmanager
def deadline_scope(duration: Duration) -> Iterator[None]:
    """Bound everything that is asked for inside by one deadline; an outer one stays in force."""
    until = clock.monotonic_s() + seconds_of(duration, "deadline")
    outer = _deadline.get()
    token = _deadline.set(until if outer is None else min(until, outer))
    try:
        yield
    finally:
        _deadline.reset(token)


def request_token(request_id: str | None) -> Token | None:
    """Token of a kept request id.

    Raises:
        ConfigError: The text is no request id.
    """
    if request_id is None:
        return None
    stream, number = parse_request_id(request_id)
    return stream, number, b"", _FIRST


def pack_named_call(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bytes, bytes]:
    """Pack a call by name: arguments by keyword, of which the first one routes.

    Raises:
        SerializationError: Positional or no arguments, or one that can't be packed.
    """
    unit, dot, handler = name.partition(".")
    if not (unit and dot and handler):
        raise errors.ConfigError(f"handler is {name!r}, must be 'Unit.handler'")
    if args or not kwargs:
        raise errors.SerializationError(
            f"{name} is called by name: give its arguments by keyword, the one that routes first"
        )
    first = next(iter(kwargs.values()))
    try:
        return (
            _core.routing_key(_core.encode_key(first)),
            msgspec.msgpack.encode(kwargs),
        )
    except (TypeError, ValueError) as error:
        raise errors.SerializationError(f"{name}: an argument can't be packed: {error}") from error


def cluster_bytes(cluster_id: str | bytes | None) -> bytes:
    """Read a cluster id: 16 bytes or their 32 hexadecimal digits.

    Raises:
        ConfigError: It is something else.
    """
    if cluster_id is None:
        return b""
    try:
        data = (
            bytes.fromhex(cluster_id.replace("-", ""))
            if isinstance(cluster_id, str)
            else cluster_id
        )
    except ValueError:
        data = b""
    if len(data) != 16:
        raise errors.ConfigError(f"cluster id is {cluster_id!r}, must be 32 hexadecimal digits")
    return data


def signed_delta(delta: int) -> int:
    """Check what a counter is to grow by.

    Raises:
        SerializationError: It is no int.
        TooLarge: It has more than 64 bits.
    """
    if not isinstance(delta, int) or isinstance(delta, bool):
        raise errors.SerializationError(f"delta is {delta!r}, must be an int")
    if not -(1 << 63) <= delta < 1 << 63:
        raise errors.TooLarge(f"delta is {delta}, must be a signed 64-bit number")
    return delta


def refusal(error: Exception) -> errors.SpaceGridError:
    """The error for what the core refused to queue."""
    if isinstance(error, errors.SpaceGridError):
        return error
    if isinstance(error, OverflowError):
        return errors.Backpressure(f"request not queued: {error}")
    if isinstance(error, TypeError):
        return errors.SerializationError(str(error))
    return errors.TooLarge(str(error))


# --- outcomes -------------------------------------------------------------------------------------


class Outcome(Protocol):
    """One completed operation, whichever face waits for it."""

    status: int
    value: Any
    version: int
    number: int


class Unknown:
    """An operation whose outcome is unknown, and which can be asked for again under its token.

    While it lives, the nodes keep the request's result. When the last error that holds it is gone,
    nobody can ask again and the number is released (at the session's next step, since a collector
    may run in any thread).
    """

    __slots__ = ("_number", "_released", "_send", "request_id")

    def __init__(
        self,
        number: int,
        request_id: str,
        released: deque[int],
        send: Callable[[int, float | None], Any],
    ) -> None:
        self.request_id = request_id
        self._number: int | None = number
        self._released = released
        self._send = send

    def resend(self, timeout: float | None) -> Any:
        """Send it again; once, since the answer then carries its own."""
        number, self._number = self._number, None
        if number is None:
            raise RuntimeError(f"request {self.request_id} was already sent again")
        return self._send(number, timeout)

    def __del__(self) -> None:
        if self._number is not None:
            self._released.append(self._number)


def describe(core: _core.Client, names: Mapping[int, str], number: int) -> tuple[str, int | None]:
    """Name an operation for a message, with its partition where known."""
    about = core.about(number)
    if about is None:
        return f"request {core.stream}-{number}", None
    verb, index, partition = about
    name = names.get(index, "")
    return (f"call {name}" if verb == "call" else f"{verb} in map {name!r}"), partition


def failure_of(
    status: int,
    value: Any,
    version: int,
    what: str,
    partition: int | None,
    *,
    expected_version: int | None = None,
    unknown: Unknown | None = None,
) -> errors.SpaceGridError:
    """Make the error for an operation that did not succeed.

    Args:
        status: Its status, `TIMEOUT` included.
        value: The reply's bytes, or None.
        version: The reply's version; for UNKNOWN and TIMEOUT the status of the last refusal.
        what: The operation, from `describe`.
        partition: Its partition, where known.
        expected_version: The version that the request named, if any.
        unknown: How to send it again, for UNKNOWN.
    """
    where = what if partition is None else f"{what} (partition {partition})"
    if status == Status.CONFLICT and expected_version is not None:
        found = f"its version is {version}" if version else "there is no entry"
        return errors.VersionMismatch(
            f"{where}: version {expected_version} was expected, {found}",
            expected_version=expected_version,
            current_version=version,
            partition=partition,
        )
    if status not in (Status.UNKNOWN, TIMEOUT):
        data = value if isinstance(value, bytes) else None
        return error_of(status, data, what, partition=partition, version=version)
    reason = None
    if version not in (0, Status.UNKNOWN):
        reason = error_of(version, None, what, partition=partition)
        if status == TIMEOUT:
            # Refused every time until the deadline, so surely not applied: say why.
            return reason
    message = f"{where}: no answer before the deadline"
    if status == Status.UNKNOWN:
        message += "; it may have been applied\nhint: error.resend() asks again and applies it once"
    return errors.DeadlineExceeded(
        message,
        partition=partition,
        maybe_applied=status == Status.UNKNOWN,
        request_id=None if unknown is None else unknown.request_id,
        reason=reason,
        resend=None if unknown is None else unknown.resend,
    )


def no_connection(
    seeds: tuple[str, ...], reasons: Mapping[str, str], timeout_ms: int
) -> errors.ConnectionFailed:
    """The error when no seed answered."""
    shown = "; ".join(reasons.values()) or "no answer in time"
    hint = "is the cluster up? spacegrid up --nodes 3"
    if any(closed in shown for closed in _CLOSED_BY_NODE):
        hint = (
            "somebody is there and does not speak as this client does; a cluster with TLS wants "
            "tls= or SPACEGRID_TLS_CA, one without it neither"
        )
    return errors.ConnectionFailed(
        f"no node answers within {timeout_ms / 1000:g} s: {shown}\nhint: {hint}",
        addresses=seeds,
    )


def batch_error(
    results: dict[Any, Any], failures: dict[Any, errors.SpaceGridError]
) -> errors.BatchError:
    """The error of a ``*_many`` call of which some keys failed."""
    key, first = next(iter(failures.items()))
    return errors.BatchError(
        f"{len(failures)} of {len(failures) + len(results)} keys failed; {key!r}: {first}",
        results=results,
        failures=failures,
    )


# --- forks ----------------------------------------------------------------------------------------


class Guarded(Protocol):
    """What must not be used after a fork."""

    def on_fork(self) -> None:
        """Refuse every use from now on: the process is the child of the one that opened it."""


_guarded: weakref.WeakSet[Any] = weakref.WeakSet()


def guard_fork(session: Guarded) -> None:
    """Tell a session when its process has forked. Costs nothing per operation."""
    _guarded.add(session)


def _after_fork() -> None:
    for session in list(_guarded):
        session.on_fork()


os.register_at_fork(after_in_child=_after_fork)
