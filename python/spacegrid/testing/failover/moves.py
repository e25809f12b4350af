"""Nodes that come and go in order: what clients notice, and how much is moved."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from spacegrid.errors import SpaceGridError
from spacegrid.testing.failover.stage import Stage
from spacegrid.testing.figures import Target, summary
from spacegrid.testing.wired import SPARE

EVERY_S: Final = 0.02
SETTLE_S: Final = 0.5


class Load:
    """Writes into each partition again and again with the client's default deadline.

    Attributes:
        errors: What the client did not hide.
        writes: Acknowledged writes.
        pauses: Partition to the longest time that one write took since the last `reset`.
        sums: Partition to acknowledged increments.
    """

    def __init__(self, stage: Stage) -> None:
        self.errors: list[str] = []
        self.writes = 0
        self.pauses: dict[int, float] = {}
        self.sums: dict[int, int] = dict.fromkeys(stage.keys, 0)
        self._stage = stage
        stage.serial += 1
        self._counters = stage.grid.map(f"sums-{stage.serial}", key=str, value=int)
        self._tasks = [asyncio.create_task(self._run(p, key)) for p, key in stage.keys.items()]

    def reset(self) -> dict[int, float]:
        """Begin to measure anew; what was measured."""
        pauses, self.pauses = self.pauses, {}
        return pauses

    async def stop(self) -> None:
        """End, and compare every counter with what was acknowledged."""
        self._stopped = True
        await asyncio.gather(*self._tasks)
        found = await self._counters.get_many(self._stage.keys.values())
        for partition, key in self._stage.keys.items():
            if found.get(key, 0) != self.sums[partition]:
                text = f"counter {key} is {found.get(key, 0)}, acknowledged {self.sums[partition]}"
                self._stage.violations.append(text)

    _stopped = False

    async def _run(self, partition: int, key: str) -> None:
        while not self._stopped:
            begun = time.monotonic()
            try:
                await self._counters.incr(key, 1, timeout=5.0)
            except SpaceGridError as error:
                self.errors.append(str(error))
                self.sums[partition] += await self._resolved(error)
            else:
                self.sums[partition] += 1
                self.writes += 1
            took = time.monotonic() - begun
            self.pauses[partition] = max(took, self.pauses.get(partition, 0.0))
            await asyncio.sleep(EVERY_S)

    async def _resolved(self, error: SpaceGridError) -> int:
        while error.maybe_applied:
            try:
                await error.resend(5.0)  # type: ignore[attr-defined]
            except SpaceGridError as again:
                error = again
            else:
                return 1
        return 0


async def rolling(stage: Stage) -> tuple[dict[str, Any], list[Target]]:
    """Restart every node in order under load: errors, and the pause of each hand-over."""
    await stage.ready()
    load = Load(stage)
    leave: list[float] = []
    back: list[float] = []
    await asyncio.sleep(SETTLE_S)
    quiet = list(load.reset().values())
    for _ in range(stage.options.cycles):
        for name in list(stage.cluster.alive):
            moving, _ = await stage.owned(name)
            with _watched(stage) as least:
                load.reset()
                code = await asyncio.to_thread(stage.cluster.nodes[name].terminate)
                pauses = load.reset()
            leave += [pauses[p] for p in moving if p in pauses]
            if code != 0:
                stage.violations.append(f"{name} left with exit code {code}")
            if least and min(least) < stage.cluster.settings.copies:
                stage.violations.append(f"a partition fell to {min(least)} copies as {name} left")
            await asyncio.to_thread(stage.cluster.restart, name)
            await stage.ready()
            back += load.reset().values()
            stage.tell(f"restart {name}: longest write {max(pauses.values()) * 1000:,.0f} ms")
    await load.stop()
    figures = {
        "rolling_errors": len(load.errors),
        "rolling_writes": load.writes,
        **summary("rolling_quiet", quiet),
        **summary("rolling_pause", leave),
        **summary("rolling_return", back),
    }
    stage.violations += [f"the client did not hide: {text}" for text in load.errors[:5]]
    return figures, [
        Target("rolling_errors", 0, "errors that the client does not hide, rolling restart"),
        Target("rolling_pause_p99_ms", 200.0, "hand-over pause of a partition"),
    ]


@contextmanager
def _watched(stage: Stage) -> Iterator[list[int]]:
    """Watch the copies of every partition while a node leaves: the fewest complete ones seen."""
    least: list[int] = []
    task = asyncio.ensure_future(_watch(stage, least))
    try:
        yield least
    finally:
        task.cancel()


async def _watch(stage: Stage, least: list[int]) -> None:
    while True:
        try:
            found = await asyncio.to_thread(stage.cluster.partitions)
        except SpaceGridError:
            continue
        least.append(min(len(p.in_sync) for p in found))
        await asyncio.sleep(EVERY_S)


async def join_leave(stage: Stage) -> tuple[dict[str, Any], list[Target]]:
    """Let a node join and leave: bytes that moved over those that had to, and exact sums."""
    join: list[float] = []
    leave: list[float] = []
    for _ in range(stage.options.cycles):
        await stage.ready()
        join.append(await _moved(stage, _join(stage)))
        load = Load(stage)
        await asyncio.sleep(SETTLE_S)
        await load.stop()
        leave.append(await _moved(stage, _leave(stage)))
        stage.tell(f"join moved {join[-1]:.2f} x the ideal, leave {leave[-1]:.2f} x")
    await _moves_under_load(stage)
    return {
        "join_moved_over_ideal_max": round(max(join), 3),
        "leave_moved_over_ideal_max": round(max(leave), 3),
        "join_leave_count": len(join),
    }, [
        Target("join_moved_over_ideal_max", 1.2, "bytes moved by a join, over the ideal"),
        Target("leave_moved_over_ideal_max", 1.2, "bytes moved by a leave, over the ideal"),
    ]


async def _join(stage: Stage) -> None:
    await asyncio.to_thread(stage.cluster.add, SPARE)
    await stage.ready()


async def _leave(stage: Stage) -> None:
    code = await asyncio.to_thread(stage.cluster.nodes[SPARE].terminate)
    if code != 0:
        stage.violations.append(f"{SPARE} left with exit code {code}")
    del stage.cluster.nodes[SPARE]
    await stage.ready()


async def _moved(stage: Stage, change: Any) -> float:
    """Bytes that passed between nodes while something changed, over the least that must.

    The least is what the copies of the node that comes or goes hold: its even share of all copies.
    """
    options, before = stage.options, stage.links.node_bytes()
    await change
    passed = stage.links.node_bytes() - before
    share = stage.cluster.settings.copies / (options.nodes + 1)
    return passed / (options.load_bytes * share)


async def _moves_under_load(stage: Stage) -> None:
    """Once more under load, for the sums and the errors."""
    load = Load(stage)
    await _join(stage)
    await _leave(stage)
    await load.stop()
    stage.violations += [f"the client did not hide: {text}" for text in load.errors[:5]]
