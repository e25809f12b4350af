"""The client against a node over loopback, and what durability and TLS add.

One node in memory; and a pair of nodes with LMDB, where a write waits for one backup: plain, and
with mutual TLS between the nodes, TLS and a token for the client. `operations` says how many
operations a round makes. Against Redis in one run: `make bench-peers`.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import spacegrid
import uvloop
from spacegrid.testing import LocalCluster

BATCH = 1_000
VALUE = b"x" * 100
KEYS = [b"customer-%09d" % number for number in range(BATCH)]


def client_of(cluster: LocalCluster) -> spacegrid.Grid:
    return spacegrid.connect_sync(*cluster.addresses, timeout=30, **cluster.connection)


@pytest.fixture(scope="module")
def node() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=1, copies=1, lmdb=False) as cluster:
        cluster.wait_ready()
        yield cluster


@pytest.fixture(scope="module")
def grid(node: LocalCluster) -> Iterator[spacegrid.Grid]:
    with client_of(node) as connected:
        connected.map("bench", key=bytes, value=bytes).put_many(dict.fromkeys(KEYS, VALUE))
        yield connected


@pytest.fixture(scope="module", params=["plain", "tls"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[spacegrid.Grid]:
    folder: Path = tmp_path_factory.mktemp("pair")
    with LocalCluster(nodes=2, data=folder, tls=request.param == "tls") as cluster:
        cluster.wait_ready()
        with client_of(cluster) as connected:
            connected.map("bench", key=bytes, value=bytes).put_many(dict.fromkeys(KEYS, VALUE))
            yield connected


def test_get_one_at_a_time(benchmark: Any, grid: spacegrid.Grid) -> None:
    entries = grid.map("bench", key=bytes, value=bytes)
    keys = KEYS[:100]
    benchmark.extra_info["operations"] = len(keys)
    benchmark(lambda: [entries.get(key) for key in keys])
    assert entries.get(keys[0]) == VALUE


def test_put_one_at_a_time(benchmark: Any, grid: spacegrid.Grid) -> None:
    entries = grid.map("bench", key=bytes, value=bytes)
    keys = KEYS[:100]
    benchmark.extra_info["operations"] = len(keys)
    benchmark(lambda: [entries.put(key, VALUE) for key in keys])


def test_get_many(benchmark: Any, grid: spacegrid.Grid) -> None:
    entries = grid.map("bench", key=bytes, value=bytes)
    benchmark.extra_info["operations"] = BATCH
    assert len(benchmark(entries.get_many, KEYS)) == BATCH


def test_put_many(benchmark: Any, grid: spacegrid.Grid) -> None:
    entries = grid.map("bench", key=bytes, value=bytes)
    benchmark.extra_info["operations"] = BATCH
    benchmark(entries.put_many, dict.fromkeys(KEYS, VALUE))


@pytest.mark.parametrize("in_flight", [1, 16, 64])
def test_async_get(benchmark: Any, node: LocalCluster, in_flight: int) -> None:
    """10,000 gets of so many tasks, on uvloop."""
    total = 10_000

    async def connected() -> spacegrid.AsyncGrid:
        return await spacegrid.connect(*node.addresses, timeout=30, **node.connection)

    async def run(grid: spacegrid.AsyncGrid) -> None:
        entries = grid.map("bench", key=bytes, value=bytes)

        async def task() -> None:
            for number in range(total // in_flight):
                await entries.get(KEYS[number % BATCH])

        await asyncio.gather(*(task() for _ in range(in_flight)))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        grid = runner.run(connected())
        benchmark.extra_info["operations"] = total // in_flight * in_flight
        benchmark.pedantic(lambda: runner.run(run(grid)), rounds=5, warmup_rounds=1)
        runner.run(grid.close())


@pytest.mark.parametrize("durability", ["replicated", "persisted"])
def test_pair_put_one_at_a_time(benchmark: Any, pair: spacegrid.Grid, durability: Any) -> None:
    entries = pair.map("bench", key=bytes, value=bytes, durability=durability)
    keys = KEYS[:20]
    benchmark.extra_info["operations"] = len(keys)
    benchmark(lambda: [entries.put(key, VALUE) for key in keys])


@pytest.mark.parametrize("durability", ["replicated", "persisted"])
def test_pair_put_many(benchmark: Any, pair: spacegrid.Grid, durability: Any) -> None:
    entries = pair.map("bench", key=bytes, value=bytes, durability=durability)
    items = dict.fromkeys(KEYS, VALUE)
    benchmark.extra_info["operations"] = BATCH
    benchmark(entries.put_many, items)


def test_pair_get_many(benchmark: Any, pair: spacegrid.Grid) -> None:
    entries = pair.map("bench", key=bytes, value=bytes)
    benchmark.extra_info["operations"] = BATCH
    assert len(benchmark(entries.get_many, KEYS)) == BATCH
