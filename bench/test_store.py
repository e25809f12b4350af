"""The partition store from inside its process: reads, writes, deletes and paging.

Each round walks through 10,000 shuffled keys of a store that holds 100,000 entries of 100 bytes;
`operations` says how many entries a round moves. Against dict.get in one run: `make bench-peers`.
"""

import random
from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec
import pytest
import spacegrid

ENTRIES = 100_000
WALK = 10_000
BATCH = 1_000
VALUE = b"x" * 100


Entries: TypeAlias = spacegrid.BlockingMap[bytes, bytes]


class Line(msgspec.Struct):
    """A typed value, as an application has it."""

    sku: str
    quantity: int
    price: float


LINE = Line("85123A", 6, 2.55)


def made_keys() -> list[bytes]:
    numbers = list(range(ENTRIES))
    random.Random(7).shuffle(numbers)
    return [b"customer-%09d" % number for number in numbers]


KEYS = made_keys()


@pytest.fixture(scope="module")
def grid() -> Iterator[spacegrid.Grid]:
    with spacegrid.open_sync() as opened:
        entries = opened.map("bytes", key=bytes, value=bytes)
        lines = opened.map("lines", key=bytes, value=Line)
        for at in range(0, ENTRIES, BATCH):
            entries.put_many(dict.fromkeys(KEYS[at : at + BATCH], VALUE))
        lines.put_many(dict.fromkeys(KEYS[:WALK], LINE))
        yield opened


@pytest.fixture
def entries(grid: spacegrid.Grid) -> Entries:
    return grid.map("bytes", key=bytes, value=bytes)


@pytest.fixture
def walk(benchmark: Any) -> list[bytes]:
    benchmark.extra_info["operations"] = WALK
    return KEYS[:WALK]


def test_get_bytes(benchmark: Any, entries: Entries, walk: list[bytes]) -> None:
    benchmark(lambda: [entries.get(key) for key in walk])
    assert entries.get(walk[0]) == VALUE


def test_get_records(benchmark: Any, grid: spacegrid.Grid, walk: list[bytes]) -> None:
    lines = grid.map("lines", key=bytes, value=Line)
    benchmark(lambda: [lines.get(key) for key in walk])
    assert lines.get(walk[0]) == LINE


def test_put_bytes(benchmark: Any, entries: Entries, walk: list[bytes]) -> None:
    benchmark.pedantic(lambda: [entries.put(key, VALUE) for key in walk], rounds=5)


def test_get_many(benchmark: Any, entries: Entries) -> None:
    keys = KEYS[:BATCH]
    benchmark.extra_info["operations"] = BATCH
    assert len(benchmark(entries.get_many, keys)) == BATCH


def test_put_many(benchmark: Any, entries: Entries) -> None:
    items = dict.fromkeys(KEYS[:BATCH], VALUE)
    benchmark.extra_info["operations"] = BATCH
    benchmark(entries.put_many, items)


def test_put_and_delete_many(benchmark: Any, grid: spacegrid.Grid) -> None:
    scratch = grid.map("scratch", key=bytes, value=bytes)
    keys = KEYS[:BATCH]
    items = dict.fromkeys(keys, VALUE)

    def run() -> None:
        scratch.put_many(items)
        scratch.delete_many(keys)

    benchmark.extra_info["operations"] = 2 * BATCH
    benchmark(run)
    assert scratch.size() == 0


def test_page_through_everything(benchmark: Any, entries: Entries) -> None:
    benchmark.extra_info["operations"] = ENTRIES
    count = benchmark.pedantic(lambda: sum(1 for _ in entries.items()), rounds=3)
    assert count == ENTRIES
