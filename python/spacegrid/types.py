"""Maps and what they hold: typed descriptors, key and value codecs, a handler's view of them.

A `Map` names a collection of the cluster and how its keys and values are packed. It is used in
three places: as a class attribute of a unit (``stock = Map(str, Stock)``), as the argument of
``grid.map(Shop.stock)``, and inside a running handler, where ``self.stock`` is the turn's own view.

Invariants:
    - Packing depends on declared types only, never on the process: the same key gives the same
      bytes everywhere, because the bytes route it. Nothing is pickled.
    - A value type has one fingerprint (`schema_fingerprint`), equal in every process; 0 means
      untyped.

Who calls: client, unit, sink, cli.

It is one room, because a declaration, its codecs and its fingerprint are only right together.
"""

from __future__ import annotations

import dataclasses
import sys
import zlib
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import (
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    cast,
    final,
    get_args,
    get_origin,
    overload,
)

import msgspec

from spacegrid import _core
from spacegrid.errors import ConfigError, NoTurn, SerializationError, TooLarge
from spacegrid.limits import KEY_BYTES_MAX, NAME_BYTES_MAX, TUPLE_PARTS_MAX, VALUE_BYTES_MAX

__all__ = [
    "CODEC_BYTES",
    "CODEC_MSGPACK",
    "MISSING",
    "PRIMARY",
    "Durability",
    "Entry",
    "FromPrimary",
    "HandlerSpec",
    "KeyCodec",
    "Map",
    "ReadFrom",
    "Stale",
    "TurnContext",
    "TurnMap",
    "ValueCodec",
    "current_turn",
    "format_request_id",
    "is_persisted",
    "parse_request_id",
    "schema_fingerprint",
]

K = TypeVar("K")
K_contra = TypeVar("K_contra", contravariant=True)
V = TypeVar("V")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
P = ParamSpec("P")

CODEC_BYTES: Final = 0
"""The value is plain bytes."""
CODEC_MSGPACK: Final = 1
"""The value is one msgpack value."""


@final
class _Missing:
    """Type of `MISSING`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False


MISSING: Final = _Missing()
"""Stands for "not given" where None is a value."""


Durability: TypeAlias = Literal["replicated", "persisted"]
"""When a write is answered: held by the copies in memory, or fsynced on their disks as well."""


FromPrimary: TypeAlias = Literal["primary", "confirmed"]
"""Who answers a read: the primary under its lease, or once the other copies have confirmed it."""

ReadFrom: TypeAlias = FromPrimary | Literal["stale"]
"""Who answers a read: the primary, or any complete copy by itself."""

PRIMARY: Final = "primary"
"""The default of `ReadFrom`; compared by identity where every nanosecond counts."""


def is_persisted(durability: Durability) -> bool:
    """Whether a write waits for the copies' disks.

    Raises:
        ConfigError: It is none of the two levels.
    """
    if durability not in ("replicated", "persisted"):
        raise ConfigError(f"durability is {durability!r}, must be 'replicated' or 'persisted'")
    return durability == "persisted"


class Entry(NamedTuple, Generic[V]):
    """A value with the version that it has in the cluster.

    Attributes:
        value: The value, decoded.
        version: Grows with every write of the entry; for ``replace(..., version=)``.
    """

    value: V
    version: int


class Stale(NamedTuple, Generic[V]):
    """What one copy knew when it was asked, and how old that may be.

    Attributes:
        value: The value, or None when there was no entry.
        age_ms: It holds every write that was acknowledged up to so many milliseconds before the
            copy answered; newer ones it may hold.
        version: The entry's version; 0 when there was none.
    """

    value: V | None
    age_ms: int
    version: int


# --- keys -----------------------------------------------------------------------------------------


class KeyCodec(Generic[K]):
    """Packs keys of one declared type into the bytes that are stored and routed.

    Texts are UTF-8, bytes are as they are, whole numbers are decimal text; a tuple keeps its parts
    apart, and its first part routes (proto/FRAME.md).

    Args:
        key_type: ``str``, ``bytes``, ``int``, or a ``tuple[...]`` of these.

    Raises:
        ConfigError: Another type.
    """

    __slots__ = ("_parts", "_rest", "decode", "encode", "key_type")

    encode: Callable[[K], bytes]
    """Packs one key. Raises SerializationError for a wrong type, TooLarge past the limit."""
    decode: Callable[[bytes], K]
    """Reads one key back. Raises SerializationError when the bytes are no such key."""

    def __init__(self, key_type: type[K]) -> None:
        self.key_type = key_type
        self._parts: tuple[type, ...] = ()
        self._rest = False
        encode: Callable[[Any], bytes]
        decode: Callable[[bytes], Any]
        if key_type is str:
            encode, decode = _encode_str, _decode_str
        elif key_type is bytes:
            encode, decode = _encode_bytes, bytes
        elif key_type is int:
            encode, decode = _encode_int, _decode_int
        elif get_origin(key_type) is tuple:
            self._take_parts(get_args(key_type))
            encode, decode = self._encode_tuple, self._decode_tuple
        else:
            raise ConfigError(
                f"key type is {_type_name(key_type)}, must be str, bytes, int or a tuple of these\n"
                "hint: Map(str, ...) or Map(tuple[str, int], ...)"
            )
        self.encode = encode
        self.decode = cast(Callable[[bytes], K], decode)

    def _take_parts(self, parts: tuple[Any, ...]) -> None:
        if len(parts) == 2 and parts[1] is Ellipsis:
            self._rest = True
            parts = parts[:1]
        if not 1 <= len(parts) <= TUPLE_PARTS_MAX or any(p not in _PART_DECODERS for p in parts):
            raise ConfigError(
                f"tuple key has parts {[_type_name(p) for p in parts]}, "
                f"must have 1 to {TUPLE_PARTS_MAX} of str, bytes, int"
            )
        self._parts = parts

    def _encode_tuple(self, key: Any) -> bytes:
        parts = self._parts
        if type(key) is tuple and tuple(map(type, key)) == parts:
            try:
                return _core.encode_key(key)
            except ValueError as error:
                raise TooLarge(f"key {_shorten(key)}: {error}") from None
        if type(key) is not tuple or (len(key) != len(parts) and not self._rest):
            raise SerializationError(f"key is {key!r}, must be a {_type_name(self.key_type)}")
        expected = parts * len(key) if self._rest else parts
        for part, part_type in zip(key, expected, strict=True):
            if type(part) is not part_type and (
                not isinstance(part, part_type) or isinstance(part, bool)
            ):
                raise SerializationError(
                    f"key is {key!r}, must be a {_type_name(self.key_type)}: "
                    f"{part!r} is no {part_type.__name__}"
                )
        try:
            return _core.encode_key(key)
        except ValueError as error:
            raise TooLarge(f"key {_shorten(key)}: {error}") from None

    def _decode_tuple(self, data: bytes) -> Any:
        parts = _core.split_key(data)
        if parts is None or (len(parts) != len(self._parts) and not self._rest):
            raise SerializationError(
                f"stored key {_shorten(data)} is no {_type_name(self.key_type)}"
            )
        types = self._parts * len(parts) if self._rest else self._parts
        return tuple(
            _PART_DECODERS[part_type](part) for part, part_type in zip(parts, types, strict=True)
        )

    def __repr__(self) -> str:
        return f"KeyCodec({_type_name(self.key_type)})"


def _encode_str(key: Any) -> bytes:
    if not isinstance(key, str):
        raise SerializationError(f"key is {_shorten(key)} ({type(key).__name__}), must be a str")
    try:
        data = key.encode()
    except UnicodeEncodeError as error:
        raise SerializationError(f"key {_shorten(key)} is no valid text: {error.reason}") from None
    if not 0 < len(data) <= KEY_BYTES_MAX:
        raise _bad_key_size(len(data))
    return data


def _encode_bytes(key: Any) -> bytes:
    if not isinstance(key, bytes):
        raise SerializationError(f"key is {_shorten(key)} ({type(key).__name__}), must be bytes")
    if not 0 < len(key) <= KEY_BYTES_MAX:
        raise _bad_key_size(len(key))
    return key


def _encode_int(key: Any) -> bytes:
    if not isinstance(key, int) or isinstance(key, bool):
        raise SerializationError(f"key is {_shorten(key)} ({type(key).__name__}), must be an int")
    return b"%d" % key


def _bad_key_size(size: int) -> TooLarge:
    return TooLarge(f"key has {size} bytes, must have 1 to {KEY_BYTES_MAX}")


def _decode_str(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise SerializationError(f"stored key {_shorten(data)} is no text") from None


def _decode_int(data: bytes) -> int:
    try:
        return int(data)
    except ValueError:
        raise SerializationError(f"stored key {_shorten(data)} is no whole number") from None


_PART_DECODERS: Final[dict[Any, Callable[[bytes], Any]]] = {
    str: _decode_str,
    bytes: bytes,
    int: _decode_int,
}


# --- values ---------------------------------------------------------------------------------------


class ValueCodec(Generic[V]):
    """Packs values of one declared type: plain bytes, or msgpack.

    Args:
        value_type: ``bytes``, a ``msgspec.Struct``, a dataclass, a pydantic model, ``dict``,
            ``int``, any other type that msgspec knows, or ``Any``.

    Raises:
        ConfigError: msgspec can't pack the type.

    Attributes:
        codec: Tag stored beside each value: 0 bytes, 1 msgpack.
        schema: Fingerprint of the type; 0 when untyped.
    """

    __slots__ = ("_checked", "_decoder", "_encoder", "codec", "schema", "value_type")

    def __init__(self, value_type: type[V] | Any) -> None:
        self.value_type = value_type
        self.codec = CODEC_BYTES if value_type is bytes else CODEC_MSGPACK
        self.schema = schema_fingerprint(value_type)
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_encode_other)
        # A Struct or a dataclass written where another one is declared would pack well and only
        # fail to be read; isinstance() on the way in names the mistake where it is made.
        self._checked: type | None = value_type if _is_record(value_type) else None
        try:
            self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
                Any if value_type is bytes else value_type, dec_hook=_decode_other
            )
        except (TypeError, NameError) as error:
            raise ConfigError(
                f"value type {_type_name(value_type)} can't be packed: {error}"
            ) from None

    def encode(self, value: V) -> bytes:
        """Pack one value.

        Args:
            value: The value; not modified.

        Returns:
            At most `VALUE_BYTES_MAX` bytes.

        Raises:
            SerializationError: It is not of the declared type.
            TooLarge: Packed, it is over the limit.
        """
        if self.codec == CODEC_BYTES:
            if not isinstance(value, bytes):
                raise SerializationError(
                    f"value is {_shorten(value)} ({type(value).__name__}), must be bytes"
                )
            data: bytes = value
        else:
            if self._checked is not None and not isinstance(value, self._checked):
                raise SerializationError(
                    f"value is {_shorten(value)} ({type(value).__name__}), "
                    f"must be a {_type_name(self.value_type)}"
                )
            try:
                data = self._encoder.encode(value)
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                raise SerializationError(
                    f"value {_shorten(value)} can't be packed: {error}"
                ) from error
        if len(data) > VALUE_BYTES_MAX:
            raise TooLarge(f"value has {len(data)} bytes, must have at most {VALUE_BYTES_MAX}")
        return data

    def decode_packed(self, data: bytes) -> V:
        """Read one stored msgpack value; `decode` for the codec that most entries have.

        Raises:
            SerializationError: The bytes are not of the declared type.
        """
        try:
            return cast(V, self._decoder.decode(data))
        except (msgspec.MsgspecError, RecursionError) as error:
            raise SerializationError(
                f"stored value is no {_type_name(self.value_type)}: {error}"
            ) from error

    def decode(self, data: bytes, codec: int = CODEC_MSGPACK) -> V:
        """Read one stored value.

        Args:
            data: The stored bytes.
            codec: The tag stored beside them.

        Returns:
            The value.

        Raises:
            SerializationError: The bytes are not of the declared type.
        """
        if self.codec == CODEC_BYTES or codec == CODEC_BYTES:
            if self.codec != codec and self.schema != 0:
                raise SerializationError(
                    f"stored value is plain bytes, not a {_type_name(self.value_type)}"
                )
            return cast(V, data)
        return self.decode_packed(data)

    def __repr__(self) -> str:
        return f"ValueCodec({_type_name(self.value_type)})"


def _is_pydantic_model(value_type: Any) -> bool:
    # Looked up, never imported: pydantic costs 70 ms, and who declares a model has imported it.
    pydantic = sys.modules.get("pydantic")
    return (
        pydantic is not None
        and isinstance(value_type, type)
        and issubclass(value_type, pydantic.BaseModel)
    )


def _is_record(value_type: Any) -> bool:
    return isinstance(value_type, type) and (
        issubclass(value_type, msgspec.Struct)
        or dataclasses.is_dataclass(value_type)
        or _is_pydantic_model(value_type)
    )


def _encode_other(value: Any) -> Any:
    if _is_pydantic_model(type(value)):
        return value.model_dump(mode="python")
    raise TypeError(f"{type(value).__name__} has no packed form")


def _decode_other(value_type: type, value: Any) -> Any:
    if _is_pydantic_model(value_type):
        # What was packed has the fields' own names, not their aliases, and msgpack's types: a
        # strict model with a Decimal or a set would otherwise refuse what it wrote itself.
        return cast(Any, value_type).model_validate(value, by_name=True, strict=False)
    raise TypeError(f"{value_type.__name__} has no packed form")


# --- fingerprints ---------------------------------------------------------------------------------


def schema_fingerprint(value_type: Any) -> int:
    """Fingerprint of a value type: what must be equal for two programs to share a map.

    It covers the type's name, and names, order and types of its fields, all the way down.

    Args:
        value_type: A declared value type.

    Returns:
        Unsigned 32-bit number, the same in every process; 0 for ``bytes``, ``dict`` and ``Any``.

    Raises:
        ConfigError: The type can't be packed.
    """
    if value_type is bytes or value_type is dict or value_type is Any or value_type is object:
        return 0
    try:
        text = _describe(value_type, ())
    except (TypeError, NameError) as error:
        raise ConfigError(f"value type {_type_name(value_type)} can't be packed: {error}") from None
    return zlib.crc32(text.encode()) or 1


def _describe(value_type: Any, outer: tuple[Any, ...]) -> str:
    """Canonical text of a type; a type inside itself is its name only."""
    if value_type in outer:
        return _type_name(value_type)
    if isinstance(value_type, type) and issubclass(value_type, msgspec.Struct):
        config = value_type.__struct_config__
        kind = "array" if config.array_like else "map"
        if config.tag is not None:
            kind += f"#{config.tag}"
        fields = [(f.encode_name, f.type) for f in msgspec.structs.fields(value_type)]
    elif isinstance(value_type, type) and dataclasses.is_dataclass(value_type):
        kind = "map"
        hints = _type_hints(value_type)
        fields = [(f.name, hints[f.name]) for f in dataclasses.fields(value_type)]
    elif _is_pydantic_model(value_type):
        kind = "map"
        model = cast(Any, value_type)
        fields = [(name, field.annotation) for name, field in model.model_fields.items()]
    else:
        arguments = get_args(value_type)
        if not arguments:
            return _type_name(value_type)
        origin = _type_name(get_origin(value_type))
        inner = (
            _describe(a, outer) if isinstance(a, type) or get_args(a) else repr(a)
            for a in arguments
        )
        return f"{origin}[{','.join(inner)}]"
    inside = ",".join(f"{name}:{_describe(t, (*outer, value_type))}" for name, t in fields)
    return f"{value_type.__name__}:{kind}{{{inside}}}"


def _type_hints(value_type: type) -> dict[str, Any]:
    from typing import get_type_hints

    return get_type_hints(value_type)


def _type_name(value_type: Any) -> str:
    if isinstance(value_type, type) and not get_args(value_type):
        return value_type.__name__
    return str(value_type).replace("typing.", "")


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# --- maps -----------------------------------------------------------------------------------------


class TurnMap(Protocol[K_contra, V]):
    """A map as a running handler sees it: in this process, nothing to await."""

    def get(self, key: K_contra, default: Any = None, /) -> V | None:
        """Return the value, with the turn's own writes, or the default."""

    def __getitem__(self, key: K_contra, /) -> V:
        """Return the value; KeyError when there is no entry."""

    def __setitem__(self, key: K_contra, value: V, /) -> None:
        """Write without expiry when the turn commits."""

    def __delitem__(self, key: K_contra, /) -> None:
        """Delete when the turn commits; KeyError when there is no entry."""

    def __contains__(self, key: K_contra, /) -> bool:
        """Tell whether there is an entry."""

    def get_entry(self, key: K_contra, /) -> Entry[V] | None:
        """Return value and version, or None."""

    def contains(self, key: K_contra, /) -> bool:
        """Tell whether there is an entry."""

    def put(self, key: K_contra, value: V, /, *, ttl: float | None = None) -> None:
        """Write when the turn commits; ``ttl`` in seconds."""

    def put_if_absent(self, key: K_contra, value: V, /, *, ttl: float | None = None) -> bool:
        """Write unless there is an entry; tell whether it was written."""

    def delete(self, key: K_contra, /) -> bool:
        """Delete when the turn commits; tell whether there was an entry."""

    def incr(self, key: K_contra, delta: int = 1, /) -> int:
        """Add to a whole number (0 when there is none) and return the sum."""


class TurnContext(Protocol):
    """The turn that runs in this context."""

    def map(self, spec: Map[K, V], /) -> TurnMap[K, V]:
        """Return the turn's view of a map."""

    def call(
        self, handler: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /
    ) -> Awaitable[Any]:
        """Queue a call of another handler."""


current_turn: ContextVar[TurnContext] = ContextVar("spacegrid_turn")
"""Set by the unit host around every handler run."""


class Map(Generic[K, V]):
    """A named, typed collection of the cluster.

    As an attribute of a unit it is named by the attribute; inside a handler it is the turn's view,
    everywhere else it is this declaration, to be given to ``grid.map(...)``.

    Args:
        key: ``str``, ``bytes``, ``int``, or a ``tuple[...]`` of these, whose first part routes.
        value: ``bytes``, a Struct, a dataclass, a pydantic model, ``dict`` (the default), or any
            other type that msgspec packs.
        columns: Names of the key's parts as columns of an SQL table. The data pump writes the map
            to SQL when they are given.
        name: Name in the cluster, 1 to 255 bytes of UTF-8; the attribute's name when None.
        durability: When a client's write is answered: ``"replicated"`` (held by the copies in
            memory) or ``"persisted"`` (fsynced on every in-sync copy's own disk as well).

    Raises:
        ConfigError: A type can't be packed, a name is over its limit, or the columns don't fit.
    """

    __slots__ = ("_name", "columns", "key_codec", "persisted", "value_codec")

    @overload
    def __init__(
        self: Map[K, dict[str, Any]],
        key: type[K],
        *,
        columns: tuple[str, ...] | None = None,
        name: str | None = None,
        durability: Durability = "replicated",
    ) -> None: ...
    @overload
    def __init__(
        self,
        key: type[K],
        value: type[V],
        *,
        columns: tuple[str, ...] | None = None,
        name: str | None = None,
        durability: Durability = "replicated",
    ) -> None: ...
    @overload
    def __init__(
        self: Map[K, Any],
        key: type[K],
        value: object,
        *,
        columns: tuple[str, ...] | None = None,
        name: str | None = None,
        durability: Durability = "replicated",
    ) -> None: ...
    def __init__(
        self,
        key: Any,
        value: Any = dict,
        *,
        columns: tuple[str, ...] | None = None,
        name: str | None = None,
        durability: Durability = "replicated",
    ) -> None:
        self.key_codec: KeyCodec[K] = KeyCodec(key)
        self.value_codec: ValueCodec[V] = ValueCodec(value)
        self.columns = None if columns is None else tuple(columns)
        self.persisted = is_persisted(durability)
        self._name = ""
        if name is not None:
            self._set_name(name)
        self._check_columns()

    def _set_name(self, name: str) -> None:
        size = len(name.encode())
        if not 0 < size <= NAME_BYTES_MAX:
            raise ConfigError(f"map name has {size} bytes, must have 1 to {NAME_BYTES_MAX}")
        self._name = name

    def _check_columns(self) -> None:
        if self.columns is None:
            return
        parts = get_args(self.key_codec.key_type) or (self.key_codec.key_type,)
        if len(self.columns) != len(parts) or Ellipsis in parts:
            raise ConfigError(
                f"columns are {self.columns}, must name each of the {len(parts)} parts of "
                f"{_type_name(self.key_codec.key_type)}"
            )

    @property
    def name(self) -> str:
        """Name in the cluster."""
        if not self._name:
            raise ConfigError("map has no name\nhint: Map(..., name='orders') outside of a unit")
        return self._name

    @property
    def schema(self) -> int:
        """Fingerprint of the value type; 0 when untyped."""
        return self.value_codec.schema

    def __set_name__(self, owner: type, name: str) -> None:
        if not self._name:
            self._set_name(name)

    @overload
    def __get__(self, instance: None, owner: type, /) -> Map[K, V]: ...
    @overload
    def __get__(self, instance: object, owner: type, /) -> TurnMap[K, V]: ...
    def __get__(self, instance: object | None, owner: type, /) -> Map[K, V] | TurnMap[K, V]:
        if instance is None:
            return self
        turn = current_turn.get(None)
        if turn is None:
            raise NoTurn(
                f"map {self.name!r} was read outside of a handler\n"
                f"hint: grid.map({owner.__name__}.{self.name}) from a client"
            )
        return turn.map(self)

    def __set__(self, instance: object, value: object) -> None:
        raise AttributeError(f"map {self.name!r} can't be replaced\nhint: use its put()")

    def __repr__(self) -> str:
        key = _type_name(self.key_codec.key_type)
        return f"Map({key}, {_type_name(self.value_codec.value_type)}, name={self._name!r})"


# --- handlers and requests ------------------------------------------------------------------------


class HandlerSpec(Generic[P, R_co]):
    """A handler as its callers see it; the unit package makes them.

    Attributes:
        unit_name: Class name of the unit.
        name: Name of the method.
        route_by: Name of the argument whose value routes the call.
    """

    unit_name: str
    name: str
    route_by: str

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, bytes]:
        """Check arguments against the signature and pack them.

        Args:
            args: Positional arguments.
            kwargs: Arguments by name.

        Returns:
            The routing key's bytes, and one msgpack map of arguments by name.

        Raises:
            SerializationError: The arguments don't fit the signature or can't be packed.
        """
        raise SerializationError(f"{type(self).__name__} binds no arguments: {args!r} {kwargs!r}")

    def decode_reply(self, data: bytes) -> R_co:
        """Read the handler's packed answer as the type it declares."""
        raise SerializationError(f"{type(self).__name__} reads no replies of {len(data)} bytes")


def format_request_id(stream: int, number: int) -> str:
    """Text of a request's identity, to be kept and used again: ``"stream-number"``."""
    return f"{stream}-{number}"


def parse_request_id(text: str) -> tuple[int, int]:
    """Read a request's identity.

    Args:
        text: What `format_request_id` gave.

    Returns:
        Stream and number.

    Raises:
        ConfigError: It is something else.
    """
    stream, dash, number = text.partition("-")
    if not (dash and stream.isascii() and stream.isdigit() and number.isascii()):
        raise ConfigError(f"request id is {_shorten(text)}, must be 'stream-number'")
    if not number.isdigit() or int(stream) >= 1 << 64 or not 0 < int(number) < 1 << 64:
        raise ConfigError(f"request id is {_shorten(text)}, must be two 64-bit whole numbers")
    return int(stream), int(number)
