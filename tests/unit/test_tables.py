"""SQL tables from maps: columns, kinds, rows, and what is refused."""

from __future__ import annotations

import datetime
import enum
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import msgspec
import pydantic
import pytest
from spacegrid.errors import ConfigError, SerializationError
from spacegrid.sink.tables import Column, Table, quote, tables_of
from spacegrid.types import Map


class Colour(enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    BIG = 3


class Everything(msgspec.Struct):
    count: int
    ratio: float
    text: str
    flag: bool
    data: bytes
    price: Decimal
    at: datetime.datetime
    day: datetime.date
    id: UUID
    colour: Colour
    size: Size
    state: Literal["new", "old"]
    tags: list[str]
    maybe: int | None = None
    maybe_price: Decimal | None = None
    anything: Any = None


EVERYTHING = Everything(
    count=-3,
    ratio=0.5,
    text="tea",
    flag=True,
    data=b"\x00",
    price=Decimal("12.500"),
    at=datetime.datetime(2011, 12, 9, 12, 50, tzinfo=datetime.UTC),
    day=datetime.date(2011, 12, 9),
    id=UUID(int=7),
    colour=Colour.RED,
    size=Size.BIG,
    state="new",
    tags=["a", "b"],
)


def row_of(declared: Map, key: object, value: object) -> tuple:
    codec = declared.value_codec
    table = Table(declared)
    return table.row(declared.key_codec.encode(key), codec.encode(value), codec.codec)


def test_every_field_type_has_its_column_kind() -> None:
    table = Table(Map(str, Everything, columns=("key",), name="t"))
    assert table.keys == (Column("key", "text"),)
    kinds = {column.name: (column.kind, column.nullable) for column in table.values}
    assert kinds == {
        "count": ("int", False),
        "ratio": ("float", False),
        "text": ("text", False),
        "flag": ("int", False),
        "data": ("blob", False),
        "price": ("text", False),
        "at": ("text", False),
        "day": ("text", False),
        "id": ("text", False),
        "colour": ("text", False),
        "size": ("int", False),
        "state": ("text", False),
        "tags": ("json", False),
        "maybe": ("int", True),
        "maybe_price": ("text", True),
        "anything": ("json", True),
    }


def test_values_become_what_the_columns_say() -> None:
    assert row_of(Map(str, Everything, columns=("key",), name="t"), "k", EVERYTHING) == (
        "k",
        -3,
        0.5,
        "tea",
        True,
        b"\x00",
        "12.500",
        "2011-12-09T12:50:00+00:00",
        "2011-12-09",
        "00000000-0000-0000-0000-000000000007",
        "red",
        3,
        "new",
        '["a","b"]',
        None,
        None,
        None,
    )


def test_parts_of_a_tuple_key_become_columns_and_go_back() -> None:
    declared = Map(tuple[str, int, bytes], int, columns=("a", "b", "c"), name="t")
    table = Table(declared)
    key = declared.key_codec.encode(("x", 7, b"\xff"))
    assert [c.kind for c in table.keys] == ["text", "int", "blob"]
    assert table.key_row(key) == ("x", 7, b"\xff")
    assert table.stored_key(("x", 7, b"\xff")) == key
    assert table.stored_key(("x", None, b"\xff")) is None


@pytest.mark.parametrize(
    ("value_type", "value", "kind", "cell"),
    [
        (int, 5, "int", 5),
        (bytes, b"x", "blob", b"x"),
        (str, "x", "text", "x"),
        (dict, {"a": 1}, "json", '{"a":1}'),
        (Any, [1, None], "json", "[1,null]"),
    ],
)
def test_a_value_that_is_no_record_is_one_column(
    value_type: Any, value: object, kind: str, cell: object
) -> None:
    declared = Map(str, value_type, columns=("key",), name="t")
    assert [(c.name, c.kind) for c in Table(declared).values] == [("value", kind)]
    assert row_of(declared, "k", value) == ("k", cell)


def test_dataclasses_and_pydantic_models_have_their_fields_as_columns() -> None:
    @dataclass
    class Point:
        x: int
        y: Decimal

    class Model(pydantic.BaseModel):
        x: int
        y: Decimal | None = None

    for value in (Point(1, Decimal("2.0")), Model(x=1, y=Decimal("2.0"))):
        declared = Map(int, type(value), columns=("id",), name="t")
        assert [c.name for c in Table(declared).values] == ["x", "y"]
        assert row_of(declared, 9, value) == (9, 1, "2.0")


def test_a_record_without_fields_is_a_table_of_keys() -> None:
    class Nothing(msgspec.Struct):
        pass

    assert row_of(Map(str, Nothing, columns=("key",), name="t"), "k", Nothing()) == ("k",)


def test_stored_bytes_of_another_type_are_a_serialization_error() -> None:
    table = Table(Map(int, Everything, columns=("number",), name="t"))
    with pytest.raises(SerializationError):
        table.row(b"7", msgspec.msgpack.encode({"count": 1}), 1)
    with pytest.raises(SerializationError):
        table.key_row(b"seven")


def test_names_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ConfigError, match="two columns named 'left'"):
        Table(Map(str, msgspec.defstruct("V", [("left", int)]), columns=("left",), name="t"))
    with pytest.raises(ConfigError, match="spacegrid_x"):
        Table(Map(str, int, columns=("key",), name="spacegrid_x"))
    with pytest.raises(ConfigError, match="1 to 63"):
        Table(Map(str, int, columns=("k" * 64,), name="t"))
    with pytest.raises(ConfigError, match="no columns"):
        Table(Map(str, int, name="t"))


def test_two_maps_never_share_a_table() -> None:
    small, large = (Map(str, int, columns=("k",), name=n) for n in ("orders", "Orders"))
    with pytest.raises(ConfigError, match="share one SQL table"):
        tables_of([small, large])
    assert list(tables_of([small, Map(str, int, name="unpumped"), small])) == ["orders"]


def test_identifiers_are_quoted() -> None:
    assert quote('a"b') == '"a""b"'
