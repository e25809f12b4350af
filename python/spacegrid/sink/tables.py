"""SQL tables made from maps: which columns, of which kind, and how an entry becomes a row.

A map with ``columns`` is a table of the map's name. The named columns hold the parts of the key and
are the primary key; a Struct, dataclass or pydantic value gives one column per field, any other
value is one column ``value``. Kinds, independent of the database's own type names:

    int, bool -> INTEGER     float -> REAL     str -> TEXT     bytes -> BLOB
    Decimal -> TEXT, exact   datetime, date, time -> TEXT, ISO 8601   UUID, Enum of texts -> TEXT
    anything else -> JSON    ``X | None`` -> nullable, everything else NOT NULL

Invariants: the same map gives the same table everywhere, and two keys never share a row. A map
without ``columns`` is not written to SQL.

Who calls: the SQL sinks. Knows no database.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import sys
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Final, Literal, TypeAlias, get_args, get_origin

import msgspec

from spacegrid import _core
from spacegrid.errors import ConfigError, SerializationError
from spacegrid.types import Map

__all__ = ["Column", "Kind", "Table", "quote", "tables_of"]

Kind: TypeAlias = Literal["int", "float", "text", "blob", "json"]

SqlValue: TypeAlias = int | float | str | bytes | None

COLUMN_NAME_MAX: Final = 63
"""Longest table or column name: PostgreSQL's limit, MySQL's is 64."""
VALUE_COLUMN: Final = "value"
RESERVED_PREFIXES: Final = ("sqlite_", "spacegrid_", "pg_")


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: As declared.
        kind: What it holds.
        nullable: Whether None is allowed.
    """

    name: str
    kind: Kind
    nullable: bool = False


class Table:
    """The SQL table of one map.

    Args:
        declared: A map with ``columns``.

    Attributes:
        name: Table name, which is the map's.
        keys: Columns of the primary key.
        values: The other columns.
        codec: Tag of the map's values.
        schema: Fingerprint of their type.
    """

    def __init__(self, declared: Map[Any, Any]) -> None:
        if declared.columns is None:
            raise ConfigError(
                f"map {declared.name!r} has no columns, so there is no table for it\n"
                "hint: Map(..., columns=('name of each key part', ...))"
            )
        self.name: str = declared.name
        _check_name("table", self.name)
        key_type = declared.key_codec.key_type
        parts = get_args(key_type) or (key_type,)
        self.keys: tuple[Column, ...] = tuple(
            Column(name, _KEY_KINDS[part])
            for name, part in zip(declared.columns, parts, strict=True)
        )
        self._tuple_key = get_origin(key_type) is tuple
        fields = _fields(declared.value_codec.value_type)
        self._whole = fields is None
        described = (
            [(VALUE_COLUMN, VALUE_COLUMN, declared.value_codec.value_type)]
            if fields is None
            else fields
        )
        columns: list[Column] = []
        converters: list[tuple[int, Callable[[Any], SqlValue]]] = []
        for index, (name, _, declared_type) in enumerate(described):
            kind, nullable, convert = _column_kind(declared_type)
            columns.append(Column(name, kind, nullable))
            if convert is not None:
                converters.append((index, convert))
        self.values: tuple[Column, ...] = tuple(columns)
        self._converters = converters
        self._value_type = declared.value_codec.value_type
        self._types = [declared_type for _, _, declared_type in described]
        self._attributes = [attribute for _, attribute, _ in described]
        self._encode_value: Callable[[Any], bytes] = declared.value_codec.encode
        self.codec: int = declared.value_codec.codec
        self.schema: int = declared.value_codec.schema
        self._get = _getter([attribute for _, attribute, _ in described])
        self._decode_key: Callable[[bytes], Any] = declared.key_codec.decode
        self._decode_value: Callable[[bytes, int], Any] = declared.value_codec.decode
        self._check_columns()

    def _check_columns(self) -> None:
        seen: set[str] = set()
        for column in (*self.keys, *self.values):
            _check_name(f"column of table {self.name!r}", column.name)
            if column.name.lower() in seen:
                raise ConfigError(
                    f"table {self.name!r} would have two columns named {column.name!r}\n"
                    "hint: name the key's columns otherwise than the value's fields"
                )
            seen.add(column.name.lower())

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns, those of the key first."""
        return self.keys + self.values

    def key_row(self, key: bytes) -> tuple[SqlValue, ...]:
        """Values of the key columns.

        Raises:
            SerializationError: The stored key is not of the declared type.
        """
        decoded = self._decode_key(key)
        return decoded if self._tuple_key else (decoded,)

    def row(self, key: bytes, value: bytes, codec: int) -> tuple[SqlValue, ...]:
        """Values of all columns.

        Raises:
            SerializationError: Key or value are not of the declared type.
        """
        decoded = self._decode_value(value, codec)
        if self._whole:
            fields: tuple[Any, ...] = (decoded,)
        else:
            fields = self._get(decoded)
        if self._converters:
            changed = list(fields)
            for index, convert in self._converters:
                if changed[index] is not None:
                    changed[index] = _converted(convert, changed[index])
            fields = tuple(changed)
        return self.key_row(key) + fields

    def stored_key(self, key_row: Sequence[Any]) -> bytes | None:
        """Key bytes of a row, or None when the row can't be one of this map's.

        Args:
            key_row: Values of the key columns, as the database gives them.
        """
        try:
            return _core.encode_key(tuple(key_row) if self._tuple_key else key_row[0])
        except (TypeError, ValueError):
            return None

    def stored_value(self, columns: Sequence[Any]) -> bytes:
        """Bytes of a row's value, as the map holds them.

        What JSON and SQL don't tell apart comes back as they have it: bytes and dates inside of
        values without a declared type are text.

        Args:
            columns: Values of the columns that are not the key's, as the database gives them.

        Raises:
            SerializationError: They make no value of the declared type.
        """
        try:
            fields = [
                _read_back(value, column.kind, declared)
                for value, column, declared in zip(columns, self.values, self._types, strict=True)
            ]
            whole = fields[0] if self._whole else self._record(fields)
        except (msgspec.MsgspecError, TypeError, ValueError, ArithmeticError) as error:
            raise SerializationError(f"row of table {self.name!r} is no value: {error}") from error
        return self._encode_value(whole)

    def _record(self, fields: Sequence[Any]) -> Any:
        named = dict(zip(self._attributes, fields, strict=True))
        if not hasattr(self._value_type, "model_validate"):
            return self._value_type(**named)
        return _validated(self._value_type, named)


def tables_of(maps: Iterable[Map[Any, Any]]) -> dict[str, Table]:
    """Tables of the maps that have columns.

    Args:
        maps: All maps of a space; those without columns are left out.

    Returns:
        Map name to its table.

    Raises:
        ConfigError: A name can't be used, or two maps would share a table.
    """
    tables: dict[str, Table] = {}
    folded: dict[str, str] = {}
    for declared in maps:
        if declared.columns is None:
            continue
        table = Table(declared)
        other = folded.setdefault(table.name.lower(), table.name)
        known = tables.get(table.name)
        if other != table.name or (known is not None and known.columns != table.columns):
            raise ConfigError(
                f"maps {other!r} and {table.name!r} would share one SQL table\n"
                "hint: give one of them another name="
            )
        tables[table.name] = table
    return tables


def quote(name: str) -> str:
    """An identifier in standard SQL quotes."""
    return '"' + name.replace('"', '""') + '"'


def _check_name(what: str, name: str) -> None:
    if not 0 < len(name.encode()) <= COLUMN_NAME_MAX or not name.isprintable():
        raise ConfigError(
            f"{what} is named {name!r}, must have 1 to {COLUMN_NAME_MAX} printable bytes"
        )
    if name.lower().startswith(RESERVED_PREFIXES):
        raise ConfigError(f"{what} is named {name!r}, must not begin with {RESERVED_PREFIXES}")


_KEY_KINDS: Final[dict[Any, Kind]] = {str: "text", int: "int", bytes: "blob"}


def _fields(value_type: Any) -> list[tuple[str, str, Any]] | None:
    """(column, attribute, type) of a record type's fields; None when it is no record."""
    if not isinstance(value_type, type) or get_origin(value_type) is not None:
        return None
    if issubclass(value_type, msgspec.Struct):
        return [(f.name, f.name, f.type) for f in msgspec.structs.fields(value_type)]
    if dataclasses.is_dataclass(value_type):
        hints = typing.get_type_hints(value_type)
        return [(f.name, f.name, hints[f.name]) for f in dataclasses.fields(value_type)]
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and issubclass(value_type, pydantic.BaseModel):
        model_fields: dict[str, Any] = typing.cast(Any, value_type).model_fields
        return [(name, name, field.annotation) for name, field in model_fields.items()]
    return None


def _getter(attributes: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    if not attributes:
        return lambda value: ()
    get: Callable[[Any], Any] = attrgetter(*attributes)
    if len(attributes) == 1:
        return lambda value: (get(value),)
    return get


def _column_kind(declared: Any) -> tuple[Kind, bool, Callable[[Any], SqlValue] | None]:
    """Kind, nullable, and how to convert a value that is not None (None: as it is)."""
    nullable = False
    while get_origin(declared) is typing.Annotated:
        declared = get_args(declared)[0]
    if get_origin(declared) in (typing.Union, types.UnionType):
        arguments = get_args(declared)
        rest = tuple(a for a in arguments if a is not type(None))
        nullable = len(rest) < len(arguments)
        if len(rest) != 1:
            return "json", nullable, _to_json
        kind, _, convert = _column_kind(rest[0])
        return kind, nullable, convert
    if declared in _PLAIN:
        return _PLAIN[declared], False, None
    if declared in _CONVERTED:
        return "text", False, _CONVERTED[declared]
    members: tuple[Any, ...] = ()
    if get_origin(declared) is Literal:
        members = get_args(declared)
    elif isinstance(declared, type) and issubclass(declared, enum.Enum):
        members = tuple(member.value for member in declared)
    if members and all(type(m) is str for m in members):
        return "text", False, _enum_value
    if members and all(type(m) is int for m in members):
        return "int", False, _enum_value
    # Any and object hold None too; JSON has its own null, but an absent value is SQL's.
    return "json", declared in (Any, object, None, type(None)), _to_json


def _read_back(value: Any, kind: Kind, declared: Any) -> Any:
    """The opposite of what `row` does to one field."""
    if value is None:
        return None
    if kind == "json":
        value = msgspec.json.decode(value)
    return msgspec.convert(
        value,
        declared,
        strict=False,
        builtin_types=(bytes, bytearray) if kind == "blob" else (),
        dec_hook=_convert_other,
    )


def _convert_other(declared: Any, value: Any) -> Any:
    if not hasattr(declared, "model_validate"):
        raise TypeError(f"{declared} has no SQL form")
    return _validated(declared, value)


def _validated(model: Any, value: Any) -> Any:
    # Columns have the fields' own names and SQL's types, whatever the model's aliases and
    # strictness ask of others.
    return model.model_validate(value, by_name=True, strict=False)


def _enum_value(value: Any) -> SqlValue:
    plain: SqlValue = value.value if isinstance(value, enum.Enum) else value
    return plain


def _to_json(value: Any) -> SqlValue:
    return msgspec.json.encode(value, enc_hook=_json_other).decode()


def _json_other(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is None:
        raise TypeError(f"{type(value).__name__} has no JSON form")
    return dump(mode="json")


def _to_text(value: Any) -> SqlValue:
    return str(value)


def _isoformat(value: Any) -> SqlValue:
    return value if isinstance(value, str) else value.isoformat()


def _converted(convert: Callable[[Any], SqlValue], value: Any) -> SqlValue:
    try:
        return convert(value)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise SerializationError(f"value {value!r:.80} has no SQL form: {error}") from error


_PLAIN: Final[dict[Any, Kind]] = {
    int: "int",
    bool: "int",
    float: "float",
    str: "text",
    bytes: "blob",
}
_CONVERTED: Final[dict[Any, Callable[[Any], SqlValue]]] = {
    decimal.Decimal: _to_text,
    uuid.UUID: _to_text,
    datetime.datetime: _isoformat,
    datetime.date: _isoformat,
    datetime.time: _isoformat,
}
