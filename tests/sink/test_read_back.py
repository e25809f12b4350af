"""Reading a shared sink back: every kind of column, positions, and what is refused."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import sqlite3
import uuid
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from fake_grid import ORDERS, STOCK, FakeGrid, Stock
from pump_support import part_of
from spacegrid.errors import SinkError, SinkMismatch
from spacegrid.sink.tables import Table
from spacegrid.types import Map


class Colour(enum.Enum):
    RED = "red"


class Size(enum.Enum):
    LARGE = 3


class Inner(msgspec.Struct):
    name: str
    data: bytes


@dataclasses.dataclass
class Plain:
    number: int
    inner: list[Inner]


class Everything(msgspec.Struct, frozen=True, kw_only=True):
    whole: int
    truth: bool
    real: float
    text: str
    blob: bytes
    price: decimal.Decimal
    at: datetime.datetime
    day: datetime.date
    ident: uuid.UUID
    colour: Colour
    size: Size
    word: Literal["a", "b"]
    either: int | str
    inner: Inner
    many: dict[str, list[int]]
    nothing: int | None = None
    something: decimal.Decimal | None = None


EVERYTHING = Everything(
    whole=-5,
    truth=True,
    real=2.0,
    text="täxt",
    blob=b"\x00\xff",
    price=decimal.Decimal("1.10"),
    at=datetime.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=datetime.UTC),
    day=datetime.date(2026, 1, 2),
    ident=uuid.UUID(int=7),
    colour=Colour.RED,
    size=Size.LARGE,
    word="b",
    either="5",
    inner=Inner("x", b"\x01"),
    many={"a": [1, 2]},
    something=decimal.Decimal("0.5"),
)


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (Everything, EVERYTHING),
        (Plain, Plain(3, [Inner("y", b"z")])),
        (bytes, b"\x00raw"),
        (dict[str, int], {"n": 1}),
        (int, 12),
        (Any, {"a": [None, 1.5, "x"]}),
        (decimal.Decimal, decimal.Decimal("3.30")),
    ],
)
def test_a_row_makes_the_value_that_it_was_made_from(declared: Any, value: Any) -> None:
    entries: Map[str, Any] = Map(str, declared, columns=("id",), name="entries")
    table = Table(entries)
    packed = entries.value_codec.encode(value)
    database = sqlite3.connect(":memory:")
    database.execute(f"CREATE TABLE t ({', '.join(f'c{n}' for n in range(len(table.columns)))})")
    row = table.row(b"k", packed, entries.value_codec.codec)
    database.execute(f"INSERT INTO t VALUES ({', '.join('?' * len(row))})", row)
    (stored,) = database.execute("SELECT * FROM t")
    assert table.stored_key(stored[:1]) == b"k"
    again = table.stored_value(stored[1:])
    assert entries.value_codec.decode(again, entries.value_codec.codec) == value
    assert (table.codec, table.schema) == (entries.value_codec.codec, entries.schema)


def keys_in(grid: FakeGrid, partition: int, count: int) -> list[str]:
    names = (f"k{number}" for number in range(10_000))
    return [n for n in names if grid.partition_of(n.encode()) == partition][:count]


def test_partitions_are_read_with_the_position_that_they_are_at(
    grid: FakeGrid, database: Path, make_sink: Any
) -> None:
    first, second = keys_in(grid, 0, 2)
    (other,) = keys_in(grid, 1, 1)
    grid.commit([(STOCK, first, Stock(3, "n")), (ORDERS, (first, 1), {"n": 1})])
    grid.put(STOCK, second, Stock(4))
    grid.put(STOCK, other, Stock(9))
    sink = make_sink(1)
    sink.open()
    sink.take({0: 5, 1: 1})
    sink.write([dataclasses.replace(part_of(grid, 0), epoch=5), part_of(grid, 1)])
    reader = make_sink(2)
    reader.open()
    found = reader.read_back([0, 2])
    assert found.keys() == {0}, "nothing is known of 2, and 1 was not asked for"
    content = found[0]
    assert (content.epoch, content.position, content.held_keys) == (5, (1, 2), 0)
    expected = {
        (name, key): value
        for (name, key), (_, _, _, value, *_) in grid.partitions[0].tables.items()
    }
    assert {(row[0], row[2]): row[3] for row in content.entries} == expected
    assert {row[1] for row in content.entries} == {STOCK.schema, ORDERS.schema}


def test_keys_of_dead_letters_are_counted(grid: FakeGrid, database: Path, make_sink: Any) -> None:
    (key,) = keys_in(grid, 0, 1)
    grid.put(STOCK, key, Stock(1))
    sink = make_sink(1)
    sink.open()
    sink.take({0: 1})
    sink.write([part_of(grid, 0)])
    with sqlite3.connect(database) as other:
        other.execute("INSERT INTO spacegrid_held_keys VALUES ('stock', ?, 0, 1)", (key.encode(),))
    assert sink.read_back([0])[0].held_keys == 1


def test_a_checkpoint_of_another_life_is_refused_though_it_came_while_open(
    grid: FakeGrid, database: Path, make_sink: Any
) -> None:
    sink = make_sink(1)
    sink.open()
    sink.take({0: 1})
    with sqlite3.connect(database) as other:
        other.execute("UPDATE spacegrid_checkpoint SET life = 'another'")
    with pytest.raises(SinkMismatch, match="written by cluster another"):
        sink.read_back([0])


def test_a_row_that_is_no_value_is_named(grid: FakeGrid, database: Path, make_sink: Any) -> None:
    (key,) = keys_in(grid, 0, 1)
    sink = make_sink(1)
    sink.open()
    sink.take({0: 1})
    with sqlite3.connect(database) as other:
        other.execute("INSERT INTO stock VALUES (?, 'many', NULL)", (key,))
    with pytest.raises(SinkError, match=f"row .*{key}.*can't be read back"):
        sink.read_back([0])
