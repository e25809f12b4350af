"""One running handler: its view of the maps, and the calls it makes.

`TurnRun` is what `types.current_turn` holds while a handler runs. It belongs to the unit thread;
the `_core.Turn` under it does the work and knows the rules (own writes first, one routing key, one
record).

Invariants: a value read is decoded afresh, so changing it changes nothing; after the turn's end
every use of its maps raises; the n-th call of a turn has number n, so a re-run gives the same
tokens.

Who calls: handlers, through `Map.__get__` and `Unit.call`; `host`.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar

from spacegrid import _core, clock
from spacegrid.errors import (
    CallCycle,
    NoTurn,
    SchemaMismatch,
    SerializationError,
    TooLarge,
    WrongRoutingKey,
    WrongType,
)
from spacegrid.limits import PATH_BYTES_MAX
from spacegrid.types import CODEC_BYTES, Entry, Map, TurnMap

if TYPE_CHECKING:
    from .definition import Handler
    from .host import UnitHost
    from .runner import Runner

__all__ = ["OutgoingCall", "TurnRun", "TurnTable"]

K = TypeVar("K")
V = TypeVar("V")

CALLS_PER_TURN_MAX: Final = 1 << 16
_INT_MIN: Final = -(1 << 63)
_INT_MAX: Final = (1 << 63) - 1


class OutgoingCall:
    r"""A call on its way from a turn to another handler.

    Attributes:
        name: ``"Unit.handler"``.
        routing_key: Routing key it goes to.
        arguments: One msgpack map.
        token: (stream, number, path, lowest): the caller's token and the call's number in its turn.
            The same in every run of that turn.
        chain: ``b"Unit\0routing key"`` of each turn that waits for this call, outermost first.
        timeout_ms: How long an answer is waited for, from when it was submitted.
    """

    __slots__ = (
        "_host",
        "arguments",
        "chain",
        "future",
        "handler",
        "name",
        "routing_key",
        "run",
        "timeout_ms",
        "token",
    )

    def __init__(
        self,
        host: UnitHost,
        run: TurnRun,
        handler: Handler[..., Any],
        routing_key: bytes,
        arguments: bytes,
        token: tuple[int, int, bytes, int],
        chain: list[bytes],
    ) -> None:
        self._host = host
        self.run = run
        self.handler = handler
        self.name = handler.full_name
        self.routing_key = routing_key
        self.arguments = arguments
        self.token = token
        self.chain = chain
        self.timeout_ms = host.call_timeout_ms
        self.future: asyncio.Future[Any] = host.new_future()

    def on_done(self, status: int, value: bytes) -> None:
        """Give the answer; from any thread. `UnitHost.calls_done` takes many at once."""
        self._host.calls_done([(self, status, value)])


class TurnRun:
    """A turn, the handler that runs in it, and what it waits for."""

    __slots__ = (
        "_chain",
        "_tables",
        "call_count",
        "context",
        "ended",
        "host",
        "open_calls",
        "runner",
        "task",
        "ticket",
        "ticket_position",
        "timer",
        "turn",
    )

    def __init__(self, host: UnitHost, turn: _core.Turn, runner: Runner, context: Context) -> None:
        self.host = host
        self.turn = turn
        self.runner = runner
        self.ended = False
        self.call_count = 0
        self._tables: dict[Map[Any, Any], TurnTable[Any, Any]] = {}
        self.open_calls: list[OutgoingCall] | None = None
        self.task: asyncio.Task[Any] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._chain: list[bytes] | None = None
        self.context = context
        self.ticket = 0
        self.ticket_position: tuple[int, int] | None = None

    def map(self, spec: Map[K, V], /) -> TurnMap[K, V]:
        """The turn's view of a map."""
        table = self._tables.get(spec)
        if table is None:
            table = self._tables[spec] = TurnTable(self.turn, self.host.bindings[spec])
        return table

    def call(
        self, handler: Handler[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> asyncio.Future[Any]:
        """Queue a call; see `Unit.call`.

        Returns:
            A future of the answer. It leaves with every other call of this step.
        """
        if self.ended or not self.host.in_thread():
            raise NoTurn(
                f"{handler.full_name} was called after the turn's end, or from another thread"
                "\nhint: await every call inside the handler"
            )
        if not handler.unit_name:
            raise SerializationError(
                f"{handler!r} is no handler of a unit: call it as Unit.handler"
            )
        key, packed = handler.bind(args, kwargs)
        chain = self._chain
        if chain is None:
            own = self.runner.handler.unit_name.encode() + b"\0" + self.turn.routing_key
            chain = self._chain = [*self.turn.chain, own]
        for entry in chain:
            if entry.partition(b"\0")[2] == key:
                raise _cycle(chain, handler.unit_name.encode() + b"\0" + key)
        call = OutgoingCall(self.host, self, handler, key, packed, self._next_token(), chain)
        if self.open_calls is None:
            self.open_calls = []
        self.open_calls.append(call)
        self.host.queue_call(call)
        return call.future

    def _next_token(self) -> tuple[int, int, bytes, int]:
        number = self.call_count
        stream, request, path, lowest = self.turn.token
        if number >= CALLS_PER_TURN_MAX:
            raise TooLarge(f"a turn makes at most {CALLS_PER_TURN_MAX} calls")
        if len(path) + 2 > PATH_BYTES_MAX:
            raise TooLarge(f"calls nest at most {PATH_BYTES_MAX // 2} deep")
        self.call_count = number + 1
        return stream, request, path + number.to_bytes(2, "little"), lowest


def _cycle(chain: list[bytes], target: bytes) -> CallCycle:
    def shown(entry: bytes) -> str:
        unit, _, key = entry.partition(b"\0")
        return f"{unit.decode(errors='replace')}({key.decode(errors='backslashreplace')})"

    names = [shown(entry) for entry in (*chain, target)]
    return CallCycle(
        f"call cycle: {' -> '.join(names)}: the turn of that routing key waits for this call",
        chain=names[:-1],
    )


class Binding(Generic[K, V]):
    """A map with its packers looked up once per host, not once per read."""

    __slots__ = (
        "checks_codec",
        "codec",
        "decode_value",
        "encode_key",
        "encode_value",
        "name",
        "schema",
        "spec",
    )

    def __init__(self, spec: Map[K, V]) -> None:
        self.spec = spec
        self.name = spec.name
        self.schema = spec.schema
        self.codec = spec.value_codec.codec
        self.encode_key = spec.key_codec.encode
        self.encode_value = spec.value_codec.encode
        self.decode_value = spec.value_codec.decode
        # An untyped map may hold plain bytes beside msgpack; only its entries' tags tell.
        self.checks_codec = self.schema == 0 and self.codec != CODEC_BYTES


class Bindings(dict[Map[Any, Any], Binding[Any, Any]]):
    """Bindings of one host, made when a map is first used."""

    def __missing__(self, spec: Map[Any, Any]) -> Binding[Any, Any]:
        self[spec] = made = Binding(spec)
        return made


class TurnTable(Generic[K, V]):
    """What ``self.stock`` is inside a handler: the map as this turn sees it, in this process."""

    __slots__ = ("_binding", "_turn")

    def __init__(self, turn: _core.Turn, binding: Binding[K, V]) -> None:
        self._turn = turn
        self._binding = binding

    def get(self, key: K, default: Any = None, /) -> V | None:
        """Return the value, with the turn's own writes, or the default.

        Raises:
            WrongRoutingKey: The key belongs to another routing key than the turn's.
            SerializationError: Not a key of the declared type.
            NoTurn: The turn is over.
        """
        binding = self._binding
        if binding.checks_codec:
            entry = self._raw_entry(key)
            return default if entry is None else binding.decode_value(entry[0], entry[1])
        try:
            data = self._turn.get(binding.name, binding.encode_key(key))
        except (ValueError, RuntimeError) as error:
            self._explain(error, key)
        return default if data is None else binding.decode_value(data)

    def __getitem__(self, key: K, /) -> V:
        """Return the value. Raises KeyError when there is no entry, and as `get`."""
        value = self.get(key, _NOTHING)
        if value is _NOTHING:
            raise KeyError(key)
        return value  # type: ignore[return-value]

    def get_entry(self, key: K, /) -> Entry[V] | None:
        """Return value and version (0 for what this turn wrote), or None. Raises as `get`."""
        entry = self._raw_entry(key)
        if entry is None:
            return None
        return Entry(self._binding.decode_value(entry[0], entry[1]), entry[2])

    def contains(self, key: K, /) -> bool:
        """Tell whether there is an entry. Raises as `get`."""
        try:
            return self._turn.get(self._binding.name, self._binding.encode_key(key)) is not None
        except (ValueError, RuntimeError) as error:
            self._explain(error, key)

    __contains__ = contains

    def put(self, key: K, value: V, /, *, ttl: float | None = None) -> None:
        """Write when the turn commits.

        Args:
            key: A key of the turn's routing key.
            value: A value of the declared type; packed now, so later changes to it are not written.
            ttl: Seconds until the entry expires; None is never.

        Raises:
            SerializationError: Key or value is not of the declared type.
            TooLarge: Key or value is over its limit.
            WrongRoutingKey: As `get`.
            NoTurn: As `get`.
        """
        binding = self._binding
        expires_at_ms = 0 if ttl is None else _expiry_ms(ttl)
        data = binding.encode_value(value)
        try:
            self._turn.put(
                binding.name,
                binding.schema,
                binding.encode_key(key),
                data,
                binding.codec,
                expires_at_ms,
            )
        except (ValueError, RuntimeError) as error:
            self._explain(error, key)

    def __setitem__(self, key: K, value: V, /) -> None:
        """Write without expiry; as `put`."""
        self.put(key, value)

    def put_if_absent(self, key: K, value: V, /, *, ttl: float | None = None) -> bool:
        """Write unless there is an entry; tell whether it was written. Raises as `put`."""
        if self.contains(key):
            return False
        self.put(key, value, ttl=ttl)
        return True

    def delete(self, key: K, /) -> bool:
        """Delete when the turn commits; tell whether there was an entry. Raises as `get`."""
        try:
            return self._turn.delete(self._binding.name, self._binding.encode_key(key))
        except (ValueError, RuntimeError) as error:
            self._explain(error, key)

    def __delitem__(self, key: K, /) -> None:
        """Delete. Raises KeyError when there is no entry, and as `get`."""
        if not self.delete(key):
            raise KeyError(key)

    def incr(self, key: K, delta: int = 1, /) -> int:
        """Add to a whole number (0 when there is none) and return the sum; its expiry is kept.

        Raises:
            WrongType: The entry is no whole number, or the sum is over 64 bits.
        """
        binding = self._binding
        entry = self._raw_entry(key)
        value: Any = 0 if entry is None else binding.decode_value(entry[0], entry[1])
        if not isinstance(value, int) or isinstance(value, bool):
            raise WrongType(
                f"map {binding.name!r}, key {key!r}: the entry is a {type(value).__name__}, "
                "incr needs a whole number"
            )
        total = value + delta
        if not _INT_MIN <= total <= _INT_MAX:
            raise WrongType(f"map {binding.name!r}, key {key!r}: {total} is over 64 bits")
        data = binding.encode_value(total)  # type: ignore[arg-type]
        try:
            self._turn.put(
                binding.name,
                binding.schema,
                binding.encode_key(key),
                data,
                binding.codec,
                0 if entry is None else entry[3],
            )
        except (ValueError, RuntimeError) as error:
            self._explain(error, key)
        return total

    def _raw_entry(self, key: K) -> tuple[bytes, int, int, int] | None:
        try:
            return self._turn.get_entry(self._binding.name, self._binding.encode_key(key))
        except (ValueError, RuntimeError) as error:
            self._explain(error, key)

    def _explain(self, error: Exception, key: K) -> NoReturn:
        """Raise the core's refusal in the words of the maps."""
        name = self._binding.name
        if isinstance(error, _core.WrongRoutingKey):
            packed = self._binding.encode_key(key)
            theirs = _core.routing_key(packed).decode(errors="backslashreplace")
            own = self._turn.routing_key.decode(errors="backslashreplace")
            raise WrongRoutingKey(
                f"map {name!r}, key {key!r} belongs to routing key {theirs!r}, "
                f"this turn to {own!r}\nhint: call a handler routed by {theirs!r} with self.call",
                key=key,
                routing_key=own,
            ) from None
        if isinstance(error, _core.TurnOver):
            raise NoTurn(
                f"map {name!r}: its turn is over\nhint: await everything before the handler returns"
            ) from None
        if isinstance(error, (SerializationError, TooLarge)) or not isinstance(error, ValueError):
            raise error
        text = str(error)
        kind = SchemaMismatch if "schema" in text else TooLarge
        raise kind(f"map {name!r}, key {key!r}: {text}") from None


_NOTHING: Final[Any] = object()


def _expiry_ms(ttl: float) -> int:
    if not 0 < ttl < 1e12:
        raise TooLarge(f"ttl is {ttl!r} s, must be over 0 and under 1e12")
    return clock.now_ms() + max(1, round(ttl * 1000))
