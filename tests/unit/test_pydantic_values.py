"""Pydantic models as values: through a real grid's frames, and as the columns of a SQL table."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from decimal import Decimal

import msgspec
import pydantic
import pytest
from core_cluster import CoreNode, Wire
from spacegrid import errors
from spacegrid.client.asynchronous import AsyncGrid
from spacegrid.sink.tables import Table
from spacegrid.types import Entry, Map


class Line(pydantic.BaseModel):
    """Strict, and known to the outside by other names: neither is in the way of reading it back."""

    model_config = pydantic.ConfigDict(strict=True)

    sku: str
    price: Decimal = pydantic.Field(alias="unitPrice")
    tags: set[str] = set()


class Order(pydantic.BaseModel):
    customer: str
    at: datetime.datetime
    quantity: pydantic.PositiveInt
    lines: list[Line] = []
    note: str | None = None


AT = datetime.datetime(2026, 5, 4, 3, 2, 1, tzinfo=datetime.UTC)
ORDER = Order(
    customer="ann",
    at=AT,
    quantity=2,
    lines=[Line(sku="tea", unitPrice=Decimal("2.50"), tags={"green"})],
)


@pytest.fixture
def wire() -> Wire:
    return Wire(CoreNode())


@pytest.fixture
async def grid(wire: Wire) -> AsyncIterator[AsyncGrid]:
    async with AsyncGrid(wire, ("one:1",), timeout=1.0) as grid:
        yield grid


async def test_a_map_gives_models_back_as_they_were_put(grid: AsyncGrid) -> None:
    orders = grid.map("orders", key=str, value=Order)
    version = await orders.put("o1", ORDER)
    found = await orders.get("o1")
    assert isinstance(found, Order)
    assert found == ORDER
    assert isinstance(found.lines[0], Line)
    assert await orders.get_entry("o1") == Entry(ORDER, version)
    other = ORDER.model_copy(update={"customer": "bob"})
    await orders.put_many({"o2": other})
    assert await orders.get_many(["o1", "o2", "o3"]) == {"o1": ORDER, "o2": other}
    assert {key: value async for key, value in orders.items()} == {"o1": ORDER, "o2": other}


async def test_what_is_no_such_model_is_refused_both_ways(grid: AsyncGrid) -> None:
    orders = grid.map("orders", key=str, value=Order)
    with pytest.raises(errors.SerializationError, match=r"must be a .*Order"):
        await orders.put("o1", ORDER.lines[0])  # type: ignore[arg-type]
    bad = ORDER.model_dump() | {"quantity": -1}
    packed = msgspec.msgpack.encode(bad)
    with pytest.raises(errors.SerializationError, match="quantity"):
        Map(str, Order).value_codec.decode(packed)


async def test_another_model_is_another_schema(grid: AsyncGrid, wire: Wire) -> None:
    class Renamed(pydantic.BaseModel):
        client: str

    await grid.map("orders", key=str, value=Order).put("o1", ORDER)
    async with AsyncGrid(wire, ("one:1",), timeout=1.0) as second:
        with pytest.raises(errors.SchemaMismatch):
            await second.map("orders", key=str, value=Renamed).put("o1", Renamed(client="bob"))


def test_a_models_fields_are_the_columns_of_its_table() -> None:
    declared = Map(str, Order, columns=("number",), name="orders")
    table = Table(declared)
    assert [(column.name, column.kind, column.nullable) for column in table.values] == [
        ("customer", "text", False),
        ("at", "text", False),
        ("quantity", "int", False),
        ("lines", "json", False),
        ("note", "text", True),
    ]
    codec = declared.value_codec
    row = table.row(declared.key_codec.encode("o1"), codec.encode(ORDER), codec.codec)
    number, customer, at, quantity, lines, note = row
    assert (number, customer, quantity, note) == ("o1", "ann", 2, None)
    assert datetime.datetime.fromisoformat(str(at)) == AT
    assert isinstance(lines, str)
    assert msgspec.json.decode(lines) == [{"sku": "tea", "price": "2.50", "tags": ["green"]}]
    assert codec.decode(table.stored_value(row[1:])) == ORDER
    plain = Map(str, Line, columns=("number",), name="lines")
    line = ORDER.lines[0]
    row = Table(plain).row(b"1", plain.value_codec.encode(line), plain.value_codec.codec)
    assert row[:3] == ("1", "tea", "2.50")
    assert plain.value_codec.decode(Table(plain).stored_value(row[1:])) == line
