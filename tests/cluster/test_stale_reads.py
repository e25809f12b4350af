"""Reads of backups: as old as they tell, refused beyond, and there without a primary (F28)."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
import spacegrid
from spacegrid import Stale, errors
from spacegrid.client.asynchronous import AsyncGrid
from spacegrid.testing.failover.stage import Stage, StageOptions

pytestmark = pytest.mark.timeout(120)
LONG_S = 100.0


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    options = StageOptions(partitions=16, lmdb=False, folder=tmp_path / "stage")
    stage = await Stage.start(options, print)
    yield stage
    await stage.close()
    assert stage.violations == []


async def reader_of(stage: Stage, name: str) -> AsyncGrid:
    """A client whose routes come from this node, and stay those that it knew."""
    status = await asyncio.to_thread(stage.cluster.status)
    address = next(node.address for node in status.nodes if node.name == name)
    return await spacegrid.connect(address)


async def backed_up_by(stage: Stage, name: str) -> list[str]:
    """Keys of the partitions of which this node is the backup."""
    found = await asyncio.to_thread(stage.cluster.partitions)
    return [stage.keys[p.partition] for p in found if name in p.in_sync and p.primary != name]


async def write(where: Any, keys: Iterable[str], value: int) -> dict[str, float]:
    """Write, and say when each was surely acknowledged."""
    acknowledged = {}
    for key in keys:
        await where.put(key, value, timeout=30)
        acknowledged[key] = time.monotonic()
    return acknowledged


async def caught_up(where: Any, keys: list[str], value: int) -> None:
    """Wait until the copies asked know what was written, which they hear of within moments."""
    until = time.monotonic() + 10
    while True:
        found = await where.get_many(keys, read="stale")
        assert list(found) == keys
        if all(one.value == value for one in found.values()):
            return
        assert time.monotonic() < until, found
        await asyncio.sleep(0.01)


async def test_f28_a_backup_that_is_cut_off_tells_how_old_it_is_and_refuses_what_is_older(
    stage: Stage,
) -> None:
    await stage.ready()
    leader = await asyncio.to_thread(stage.cluster.controller)
    name = next(one for one in stage.cluster.alive if one != leader)
    others = [one for one in stage.cluster.alive if one != name]
    keys = await backed_up_by(stage, name)
    assert keys
    where = stage.grid.map("stale", value=int)
    await write(where, keys, 1)
    async with await reader_of(stage, name) as reader:
        near = reader.map("stale", value=int)
        await caught_up(near, keys, 1)

        stage.links.isolate(name, [*others, *stage.links.authorities])
        acknowledged = await write(where, keys, 2)
        behind = 0
        for key, at in acknowledged.items():
            asked = time.monotonic()
            seen: Stale[int] = await near.get(key, read="stale", max_age=LONG_S)
            if seen.value == 1:
                behind += 1
                assert seen.age_ms + 1 >= (asked - at) * 1000, seen
        assert behind, "no answer came from the copy that is behind"
        # What is too old for the reader is refused there, and asked of the others.
        fresh = await near.get_many(keys, read="stale", max_age=0.4, timeout=20)
        assert [one.value for one in fresh.values()] == [2] * len(keys)

        for other in others:
            stage.cluster.kill(other)
        left = await near.get_many(keys, read="stale", max_age=LONG_S)
        assert [one.value for one in left.values()] == [1] * len(keys)
        with pytest.raises(errors.TooStale):
            await near.get(keys[0], read="stale", max_age=0.4, timeout=3)
        with pytest.raises(errors.SpaceGridError):
            await near.get(keys[0], timeout=1)


def blocking_read(addresses: Iterable[str], keys: list[str]) -> list[int | None]:
    with spacegrid.connect_sync(*addresses, timeout=20) as grid:
        found = grid.map("stale", value=int).get_many(keys, read="stale")
    return [one.value for one in found.values()]


async def test_stale_reads_go_on_while_a_backup_hangs_and_when_it_is_back(stage: Stage) -> None:
    await stage.ready()
    leader = await asyncio.to_thread(stage.cluster.controller)
    name = next(one for one in stage.cluster.alive if one != leader)
    keys = await backed_up_by(stage, name)
    where = stage.grid.map("stale", value=int)
    await write(where, keys, 1)
    await caught_up(where, keys, 1)
    stage.cluster.pause(name)
    try:
        found = await where.get_many(keys, read="stale", timeout=20)
        assert [one.value for one in found.values()] == [1] * len(keys)
        addresses = stage.cluster.addresses
        assert await asyncio.to_thread(blocking_read, addresses, keys) == [1] * len(keys)
        acknowledged = await write(where, keys, 2)
    finally:
        stage.cluster.resume(name)
    for _ in range(20):
        for key, at in acknowledged.items():
            asked = time.monotonic()
            seen = await where.get(key, read="stale", max_age=LONG_S, timeout=20)
            assert seen.value == 2 or seen.age_ms + 1 >= (asked - at) * 1000, seen
