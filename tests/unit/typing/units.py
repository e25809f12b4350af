"""Checked by mypy, not run: what a user's editor sees of units (test_unit_typing.py)."""

from collections.abc import Awaitable
from typing import assert_type

import msgspec
from spacegrid.types import Map
from spacegrid.unit import Unit, handler


class Item(msgspec.Struct):
    left: int


class Stock(Unit):
    items = Map(str, Item)
    log = Map(tuple[str, int], bytes)

    @handler(route_by="sku")
    async def move(self, sku: str, quantity: int = 1) -> Item:
        assert_type(self.items.get(sku), Item | None)
        assert_type(self.items[sku], Item)
        assert_type(self.log.get((sku, 1)), bytes | None)
        self.items.put(sku, 5)  # type: ignore[arg-type]
        self.items.get(5)  # type: ignore[arg-type]
        assert_type(await self.call(Stock.move, sku, quantity), Item)
        assert_type(await self.move(sku), Item)
        assert_type(self.count(sku), int)
        return Item(quantity)

    @handler(route_by="sku")
    def count(self, sku: str) -> int:
        return len(sku)


def calls(unit: Stock) -> None:
    assert_type(unit.call(Stock.move, "tea", quantity=2), Awaitable[Item])
    assert_type(unit.call(Stock.count, "tea"), Awaitable[int])
    unit.call(Stock.move, 3)  # type: ignore[arg-type]
    unit.call(Stock.move, "tea", colour=3)  # type: ignore[call-arg]
    unit.call(Stock.count)  # type: ignore[call-arg]
