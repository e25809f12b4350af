"""Confirmed reads of a real cluster: with every copy's word, and not without."""

import asyncio
from pathlib import Path

import pytest
from spacegrid.testing.failover.stage import Stage, StageOptions

pytestmark = pytest.mark.timeout(120)


async def test_a_confirmed_read_waits_for_the_copies_and_goes_on_without_one_that_is_removed(
    tmp_path: Path,
) -> None:
    options = StageOptions(partitions=16, lmdb=False, folder=tmp_path / "stage")
    stage = await Stage.start(options, print)
    try:
        await stage.ready()
        where = stage.grid.map("confirmed", value=int)
        await where.put_many({key: number for number, key in stage.keys.items()})
        expected = {key: number for number, key in stage.keys.items()}
        assert await where.get_many(stage.keys.values(), read="confirmed") == expected

        # Two nodes that don't hear each other, and both are well: nobody is suspected.
        found = await asyncio.to_thread(stage.cluster.partitions)
        leader = await asyncio.to_thread(stage.cluster.controller)
        apart = next(p for p in found if leader not in p.in_sync)
        backup = next(name for name in apart.in_sync if name != apart.primary)
        stage.links.cut(apart.primary, backup)
        stage.links.cut(backup, apart.primary)
        key = stage.keys[apart.partition]
        assert await where.get(key, read="primary", timeout=20) == apart.partition
        assert await where.get(key, read="confirmed", timeout=20) == apart.partition
        # Its primary has it removed after a second of silence; before, nobody may vouch for it.
        now = (await asyncio.to_thread(stage.cluster.partitions, apart.primary))[apart.partition]
        assert now.version > apart.version
        assert not {apart.primary, backup} <= {*now.in_sync}
    finally:
        await stage.close()
    assert stage.violations == []
