"""What every measurement stands on: a cluster, a key in each partition, and probes that time them.

A probe is an ordinary client's request with a long deadline, sent the moment the fault has
happened; the client finds the way to the new primary itself. So what is measured is what a user
waits for, with the client's own retries in it. Times are of this process's monotonic clock.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import spacegrid
from spacegrid import _core
from spacegrid.client.asynchronous import AsyncGrid
from spacegrid.errors import SpaceGridError
from spacegrid.testing.cluster import LocalCluster
from spacegrid.testing.links import FaultLinks
from spacegrid.testing.wired import Wired, wired

PROBE_TIMEOUT_S: Final = 30.0
UNIT: Final = "spacegrid.testing.failover.units:Heavy"
LOAD_VALUE_BYTES: Final = 16 << 10
LOAD_BATCH: Final = 128
BALANCED_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """The cluster that is measured.

    Attributes:
        cycles: Repetitions of each measurement.
        nodes: Nodes.
        partitions: Partitions.
        load_bytes: Bytes of values that are loaded first.
        quota_bytes: Memory quota of each node; 0: none.
        lmdb: Whether nodes keep their copies on disk.
        coordinator: `local`, or `etcd`: three members of its own.
        folder: Where the cluster's data and logs go; None: a temporary folder.
    """

    cycles: int = 10
    nodes: int = 3
    partitions: int = 64
    load_bytes: int = 0
    quota_bytes: int = 0
    lmdb: bool = True
    coordinator: str = "local"
    folder: Path | None = None


@dataclass
class Stage:
    """A running cluster with a client.

    Attributes:
        options: What it was started with.
        base: Its processes and links.
        grid: A client.
        tell: Says what happens.
        keys: Partition to a key in it.
        violations: What was seen that must not be.
    """

    options: StageOptions
    base: Wired
    grid: AsyncGrid
    tell: Callable[[str], None]
    keys: dict[int, str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    serial: int = 0

    @classmethod
    async def start(cls, options: StageOptions, tell: Callable[[str], None]) -> Stage:
        """Start a cluster, connect, load what is to be loaded."""
        quota = ("--quota", str(options.quota_bytes)) if options.quota_bytes else ()
        base = await asyncio.to_thread(
            partial(
                wired,
                options.coordinator,
                options.nodes,
                options.folder or Path(tempfile.mkdtemp(prefix="spacegrid-stage-")),
                units=(UNIT,),
                partitions=options.partitions,
                lmdb=options.lmdb,
                arguments=quota,
            )
        )
        try:
            await asyncio.to_thread(base.start, 60.0)
            grid = await spacegrid.connect(*base.cluster.addresses, timeout=PROBE_TIMEOUT_S)
            stage = cls(options, base, grid, tell)
            stage.keys = keys_of(options.partitions)
            await stage.probe_map.put_many(dict.fromkeys(stage.keys.values(), 0))
            await stage._load()
        except BaseException:
            await asyncio.to_thread(partial(base.stop, in_order=False))
            raise
        return stage

    async def close(self) -> None:
        """Stop the client and the cluster."""
        self.links.heal_all()
        try:
            await self.grid.close(timeout=1)
        finally:
            await asyncio.to_thread(partial(self.base.stop, in_order=True))
            if self.options.folder is None:
                shutil.rmtree(self.cluster.settings.data, ignore_errors=True)

    @property
    def cluster(self) -> LocalCluster:
        """The processes."""
        return self.base.cluster

    @property
    def links(self) -> FaultLinks:
        """The links between them."""
        return self.base.links

    @property
    def probe_map(self) -> Any:
        """The map of the probes."""
        return self.grid.map("probes", key=str, value=int)

    async def _load(self) -> None:
        total = self.options.load_bytes
        if not total:
            return
        load = self.grid.map("load", key=int, value=bytes)
        value, count = bytes(LOAD_VALUE_BYTES), total // LOAD_VALUE_BYTES
        for begin in range(0, count, LOAD_BATCH):
            keys = range(begin, min(count, begin + LOAD_BATCH))
            await load.put_many([(key, value) for key in keys], timeout=60)
        self.tell(f"{total:,} bytes are loaded")
        await self.ready()

    # ---- what is asked of it

    async def ready(self) -> None:
        """Wait until every partition has all its copies and nothing moves any more."""
        await asyncio.to_thread(self.cluster.wait_ready, BALANCED_TIMEOUT_S)
        await asyncio.to_thread(self.cluster.wait_settled, BALANCED_TIMEOUT_S)

    async def owned(self, name: str) -> tuple[list[int], list[int]]:
        """Partitions that a node is primary of, and those that it holds a complete copy of."""
        found = await asyncio.to_thread(self.cluster.partitions)
        return (
            [p.partition for p in found if p.primary == name],
            [p.partition for p in found if name in p.in_sync],
        )

    async def written(self, partitions: Iterable[int], since: float) -> float:
        """Write into partitions now; seconds from `since` to the last acknowledgement."""
        self.serial += 1
        where, number = self.probe_map, self.serial
        return await self._last([where.put(self.keys[p], number) for p in partitions], since)

    async def read(self, partitions: Iterable[int], since: float) -> float:
        """Read from partitions now; seconds from `since` to the last answer."""
        where = self.probe_map
        return await self._last([where.get(self.keys[p]) for p in partitions], since)

    async def _last(self, asked: list[Any], since: float) -> float:
        try:
            await asyncio.gather(*asked)
        except SpaceGridError as error:
            self.violations.append(f"a probe failed: {error}")
            await asyncio.gather(*asked, return_exceptions=True)
        return time.monotonic() - since

    async def check_probes(self) -> None:
        """Every probe's key has the number of the last acknowledged write into it, or a later."""
        missing = await self.probe_map.get_many(self.keys.values())
        lost = [key for key in self.keys.values() if key not in missing]
        if lost:
            self.violations.append(f"keys that were acknowledged are gone: {lost[:5]}")


def keys_of(partitions: int) -> dict[int, str]:
    """A key in each partition."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < partitions:
        key = f"probe-{number}"
        found.setdefault(_core.partition_of(_core.encode_key(key), partitions), key)
        number += 1
    return found
