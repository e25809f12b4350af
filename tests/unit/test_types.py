"""Maps and codecs: round trips, clear refusals, fingerprints that every process agrees on."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import subprocess
import sys
from typing import Any

import msgspec
import pydantic
import pytest
from spacegrid import _core
from spacegrid.errors import ConfigError, NoTurn, SerializationError, TooLarge
from spacegrid.limits import KEY_BYTES_MAX, VALUE_BYTES_MAX
from spacegrid.types import (
    CODEC_BYTES,
    CODEC_MSGPACK,
    KeyCodec,
    Map,
    ValueCodec,
    current_turn,
    format_request_id,
    parse_request_id,
    schema_fingerprint,
)


class Stock(msgspec.Struct):
    left: int


class Line(msgspec.Struct, array_like=True):
    sku: str
    price: decimal.Decimal
    at: datetime.datetime | None = None


class Order(msgspec.Struct):
    lines: list[Line]
    note: str = ""


class Tree(msgspec.Struct):
    children: list[Tree] = []


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0


class Model(pydantic.BaseModel):
    name: str
    price: decimal.Decimal


@pytest.mark.parametrize(
    ("key_type", "key", "packed"),
    [
        (str, "tea", b"tea"),
        (str, "grün", "grün".encode()),
        (bytes, b"\x00\xff", b"\x00\xff"),
        (int, -17, b"-17"),
        (tuple[str, int], ("tea", 4), b"\xc1\x03tea\x014"),
        (tuple[str, ...], ("a", "b", "c"), b"\xc1\x01a\x01b\x01c"),
    ],
)
def test_keys_come_back_as_they_went(key_type: Any, key: Any, packed: bytes) -> None:
    codec: KeyCodec[Any] = KeyCodec(key_type)
    assert codec.encode(key) == packed
    assert codec.decode(packed) == key


@pytest.mark.parametrize(
    ("key_type", "key"),
    [
        (str, 1),
        (str, b"tea"),
        (str, "\ud800"),
        (bytes, "tea"),
        (int, True),
        (int, 1.0),
        (tuple[str, int], ("tea",)),
        (tuple[str, int], ("tea", "4")),
        (tuple[str, int], ("tea", True)),
        (tuple[str, int], ["tea", 4]),
        (tuple[str, ...], ("a", 1)),
    ],
)
def test_a_key_of_another_type_is_refused(key_type: Any, key: Any) -> None:
    with pytest.raises(SerializationError):
        KeyCodec(key_type).encode(key)


def test_a_keys_size_is_bounded() -> None:
    KeyCodec(str).encode("k" * KEY_BYTES_MAX)
    for codec, key in [
        (KeyCodec(str), "k" * (KEY_BYTES_MAX + 1)),
        (KeyCodec(str), ""),
        (KeyCodec(bytes), b""),
        (KeyCodec(tuple[str, str]), ("k" * KEY_BYTES_MAX, "")),
    ]:
        with pytest.raises(TooLarge):
            codec.encode(key)  # type: ignore[attr-defined]


@pytest.mark.parametrize("key_type", [float, list, dict, tuple[float], tuple[()], None])
def test_a_key_type_that_has_no_bytes_is_refused(key_type: Any) -> None:
    with pytest.raises(ConfigError):
        KeyCodec(key_type)


@pytest.mark.parametrize(
    ("key_type", "data"),
    [(int, b"tea"), (str, b"\xff"), (tuple[str, int], b"tea"), (tuple[str, int], b"\xc1\x01a")],
)
def test_stored_keys_of_another_type_are_refused(key_type: Any, data: bytes) -> None:
    with pytest.raises(SerializationError):
        KeyCodec(key_type).decode(data)


def test_tuples_route_by_their_first_part() -> None:
    codec = KeyCodec(tuple[str, str])
    assert _core.routing_key(codec.encode(("tea", "c1"))) == b"tea"


@pytest.mark.parametrize(
    ("value_type", "value"),
    [
        (bytes, b"\x00raw"),
        (int, -5),
        (str, "text"),
        (dict, {"a": [1, None]}),
        (Any, ["anything", 1.5]),
        (Stock, Stock(3)),
        (Order, Order([Line("tea", decimal.Decimal("2.50"))], "quick")),
        (Point, Point(1, 2.5)),
        (Tree, Tree([Tree(), Tree([Tree()])])),
        (Model, Model(name="tea", price=decimal.Decimal("1.10"))),
        (list[Model], [Model(name="tea", price=decimal.Decimal("1.10"))]),
        (int | None, None),
    ],
)
def test_values_come_back_as_they_went(value_type: Any, value: Any) -> None:
    codec: ValueCodec[Any] = ValueCodec(value_type)
    data = codec.encode(value)
    assert isinstance(data, bytes)
    assert codec.decode(data, codec.codec) == value


def test_bytes_are_stored_as_they_are() -> None:
    codec = ValueCodec(bytes)
    assert codec.codec == CODEC_BYTES
    assert codec.schema == 0
    assert codec.encode(b"x") == b"x"


@pytest.mark.parametrize(
    ("value_type", "value"),
    [(bytes, "x"), (Stock, {"left": 1}), (Stock, Point(1)), (Point, Stock(1)), (dict, object())],
)
def test_a_value_of_another_type_is_refused(value_type: Any, value: Any) -> None:
    with pytest.raises(SerializationError):
        ValueCodec(value_type).encode(value)


def test_a_values_size_is_bounded() -> None:
    ValueCodec(bytes).encode(bytes(VALUE_BYTES_MAX))
    with pytest.raises(TooLarge, match=str(VALUE_BYTES_MAX)):
        ValueCodec(bytes).encode(bytes(VALUE_BYTES_MAX + 1))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x81\xa4left\xa1x", b"\x93\x01", b"\xff" * 40])
def test_stored_bytes_of_another_type_are_refused(data: bytes) -> None:
    with pytest.raises(SerializationError):
        ValueCodec(Stock).decode(data)


def test_plain_bytes_in_a_typed_map_are_refused() -> None:
    with pytest.raises(SerializationError):
        ValueCodec(Stock).decode(b"raw", CODEC_BYTES)
    assert ValueCodec(dict).decode(b"raw", CODEC_BYTES) == b"raw"
    assert ValueCodec(bytes).decode(b"\x01", CODEC_MSGPACK) == b"\x01"


def test_a_value_type_that_cant_be_packed_is_refused() -> None:
    class Bad(msgspec.Struct):
        x: set[int] | list[int]

    with pytest.raises(ConfigError, match="Bad"):
        ValueCodec(Bad)


# --- fingerprints


def test_untyped_maps_have_no_fingerprint() -> None:
    assert [schema_fingerprint(t) for t in (bytes, dict, Any, object)] == [0, 0, 0, 0]


def test_a_fingerprint_changes_with_names_types_and_form() -> None:
    def struct(name: str, fields: list[Any], **options: Any) -> int:
        return schema_fingerprint(msgspec.defstruct(name, fields, **options))

    prints = [
        struct("A", [("x", int)]),
        struct("B", [("x", int)]),
        struct("A", [("y", int)]),
        struct("A", [("x", str)]),
        struct("A", [("x", int), ("y", int)]),
        struct("A", [("y", int), ("x", int)]),
        struct("A", [("x", int)], array_like=True),
        struct("A", [("x", int)], tag="a"),
        struct("A", [("x", list[int])]),
        struct("A", [("x", list[str])]),
        schema_fingerprint(int),
        schema_fingerprint(list[int]),
        schema_fingerprint(Point),
        schema_fingerprint(Model),
    ]
    assert len(set(prints)) == len(prints)
    assert 0 not in prints


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    program = (
        "import msgspec\nfrom spacegrid.types import schema_fingerprint\n"
        "class Line(msgspec.Struct):\n    sku: str\n    tags: dict[str, int | None]\n"
        "class Order(msgspec.Struct):\n    lines: list[Line]\n"
        "print(schema_fingerprint(Order))"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(prints) == 1


# --- maps


def test_a_map_is_named_by_its_attribute_or_by_its_name() -> None:
    class Holder:
        stock = Map(str, Stock)
        other = Map(str, Stock, name="elsewhere")

    assert Holder.stock.name == "stock"
    assert Holder.other.name == "elsewhere"
    with pytest.raises(ConfigError, match="no name"):
        _ = Map(str, Stock).name
    for name in ("", "n" * 256):
        with pytest.raises(ConfigError, match="must have 1 to 255"):
            Map(str, Stock, name=name)


def test_columns_name_each_part_of_the_key() -> None:
    Map(tuple[str, str], Stock, columns=("sku", "customer"))
    Map(str, Stock, columns=("sku",))
    for key, columns in [(str, ("a", "b")), (tuple[str, str], ("a",)), (tuple[str, ...], ("a",))]:
        with pytest.raises(ConfigError, match="columns"):
            Map(key, Stock, columns=columns)  # type: ignore[arg-type]


def test_a_handler_sees_the_turns_view_of_a_map() -> None:
    class Holder:
        stock = Map(str, Stock)

    class Turn:
        def map(self, spec: Map[Any, Any]) -> Any:
            return ("view of", spec.name)

    holder = Holder()
    with pytest.raises(NoTurn, match="outside of a handler"):
        _ = holder.stock
    token = current_turn.set(Turn())
    try:
        assert holder.stock == ("view of", "stock")
    finally:
        current_turn.reset(token)
    with pytest.raises(AttributeError):
        holder.stock = 1  # type: ignore[assignment]


def test_request_ids_come_back_as_they_went() -> None:
    assert parse_request_id(format_request_id(1 << 33, 7)) == (1 << 33, 7)
    for text in ("", "1", "1-", "-1", "1-0", "a-b", "1-2-3", f"{1 << 64}-1", "\u0661-1"):
        with pytest.raises(ConfigError):
            parse_request_id(text)
