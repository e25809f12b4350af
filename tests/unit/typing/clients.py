"""Checked by mypy, not run: what a user's editor sees of both clients (test_unit_typing.py)."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

import msgspec
import spacegrid
from spacegrid import AsyncGrid, AsyncMap, BlockingMap, Entry, Grid, Map, Stale, Unit, handler


class Stock(msgspec.Struct):
    left: int


class Shop(Unit):
    stock = Map(str, Stock)
    orders = Map(tuple[str, str], Stock)
    notes = Map(str)

    @handler(route_by="sku")
    async def buy(self, sku: str, quantity: int = 1) -> bool:
        return quantity > 0

    @handler(route_by="sku")
    def left(self, sku: str) -> int:
        return len(sku)


async def asynchronous(grid: AsyncGrid) -> None:
    assert_type(await spacegrid.connect("localhost:7700"), AsyncGrid)
    stock = grid.map(Shop.stock)
    assert_type(stock, AsyncMap[str, Stock])
    assert_type(grid.map(Shop.orders), AsyncMap[tuple[str, str], Stock])
    assert_type(grid.map(Shop.notes), AsyncMap[str, dict[str, Any]])
    assert_type(grid.map("plain", key=bytes, value=bytes), AsyncMap[bytes, bytes])
    assert_type(grid.map("plain", value=int), AsyncMap[str, int])
    assert_type(stock.get("tea"), asyncio.Future[Stock | None])
    assert_type(await stock.get("tea", 0), Stock | int)
    assert_type(await stock.get_entry("tea"), Entry[Stock] | None)
    assert_type(await stock.get_entry("tea", read="confirmed"), Entry[Stock] | None)
    assert_type(await stock.get_entry("tea", read="stale"), Stale[Stock])
    assert_type(await stock.put("tea", Stock(1)), int)
    assert_type(await stock.put("tea", Stock(1), if_absent=True), bool)
    assert_type(await stock.get_many(["tea"]), dict[str, Stock])
    assert_type(stock.items(), AsyncIterator[tuple[str, Stock]])
    assert_type(grid.call(Shop.buy, "tea", quantity=2), asyncio.Future[bool])
    assert_type(await grid.call(Shop.left, "tea"), int)
    assert_type(await grid.options(timeout=1).call(Shop.left, "tea"), int)
    stock.get(5)  # type: ignore[call-overload]
    stock.put("tea", 5)  # type: ignore[call-overload]
    grid.call(Shop.buy, 5)  # type: ignore[call-overload]
    grid.call(Shop.buy, "tea", colour=5)  # type: ignore[call-arg]


def blocking(grid: Grid) -> None:
    stock = grid.map(Shop.stock)
    assert_type(stock, BlockingMap[str, Stock])
    assert_type(stock["tea"], Stock)
    assert_type(stock.get("tea"), Stock | None)
    assert_type(stock.get_entry("tea", read="confirmed"), Entry[Stock] | None)
    assert_type(stock.get_entry("tea", read="stale"), Stale[Stock])
    assert_type(stock.put("tea", Stock(1), if_absent=True), bool)
    assert_type(stock.items(), Iterator[tuple[str, Stock]])
    assert_type(grid.call(Shop.buy, "tea"), bool)
    assert_type(grid.call("Shop.buy", sku="tea"), Any)
    stock["tea"] = 5  # type: ignore[assignment]
    stock[5]  # type: ignore[index]
