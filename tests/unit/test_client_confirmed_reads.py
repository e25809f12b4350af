"""Confirmed reads at the faces of the client; that they ask the copies is the core's to test."""

from __future__ import annotations

import pytest
import spacegrid
from core_cluster import BlockingWire, CoreNode, Wire
from spacegrid import Entry, _core, errors
from spacegrid.client.asynchronous import AsyncGrid
from spacegrid.client.blocking import Grid

CONFIRMED = 128


def flags(frame: bytes) -> list[int]:
    return [operation[3] for operation in _core.decode_request(frame)]


def test_a_confirmed_read_has_the_same_type_and_asks_for_confirmation() -> None:
    node = CoreNode()
    with Grid(BlockingWire(node), ("one:1",), timeout=1.0) as grid:
        counts = grid.map("counts", value=int)
        version = counts.put("home", 4)
        del node.frames[:]
        home: int | None = counts.get("home", read="confirmed")
        assert home == 4
        assert counts.get("away", 0, read="confirmed") == 0
        assert counts.get_many(["home", "away"], read="confirmed") == {"home": 4}
        entry: Entry[int] | None = counts.get_entry("home", read="confirmed")
        assert entry == Entry(4, version)
        asked = [flag for frame in node.frames for flag in flags(frame)]
        assert asked == [CONFIRMED] * 5


async def test_the_asyncio_face_asks_the_same() -> None:
    node = CoreNode()
    async with AsyncGrid(Wire(node), ("one:1",)) as grid:
        counts = grid.map("counts", value=int)
        version = await counts.put("home", 4)
        del node.frames[:]
        assert await counts.get("home", read="confirmed") == 4
        assert await counts.get("away", 0, read="confirmed") == 0
        assert await counts.get_many(["home", "away"], read="confirmed") == {"home": 4}
        assert await counts.get_entry("home", read="confirmed") == Entry(4, version)
        assert await counts.get_entry("away", read="confirmed") is None
        asked = [flag for frame in node.frames for flag in flags(frame)]
        assert asked == [CONFIRMED] * 6


def test_an_embedded_grid_confirms_itself() -> None:
    with spacegrid.open_sync() as grid:
        raw = grid.map("raw", key=bytes, value=bytes)
        raw.put(b"k", b"v")
        assert raw.get(b"k", read="confirmed") == b"v"
        entry = raw.get_entry(b"k", read="confirmed")
        assert entry is not None
        assert entry.value == b"v"


def test_too_few_copies_confirm_nothing() -> None:
    with Grid(BlockingWire(CoreNode(min_in_sync=2)), ("one:1",), timeout=0.1) as grid:
        counts = grid.map("counts", value=int)
        assert counts.get("home") is None
        with pytest.raises(errors.NotEnoughCopies, match="fewer copies"):
            counts.get("home", read="confirmed")
        with pytest.raises(errors.NotEnoughCopies, match="fewer copies"):
            counts.get_entry("home", read="confirmed")
