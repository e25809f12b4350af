"""Nodes that are busy, not dead: processors burnt, an interpreter held, memory full."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Final

from spacegrid.errors import BatchError, MemoryFull, SpaceGridError
from spacegrid.testing.failover.moves import Load
from spacegrid.testing.failover.stage import Stage
from spacegrid.testing.failover.units import Heavy
from spacegrid.testing.figures import Target, summary

BURN_S: Final = 10.0
HOLD_S: Final = 3.0
FILL_VALUE_BYTES: Final = 4096
FILL_BATCH: Final = 200
RESIDENT_FACTOR: Final = 2.5
RESIDENT_BASE_BYTES: Final = 250 << 20


async def burnt(stage: Stage) -> tuple[dict[str, Any], list[Target]]:
    """A handler computes in Python for 10 s: nothing changes hands."""
    await stage.ready()
    before = await _ownership(stage)
    load = Load(stage)
    calls = stage.grid.options(timeout=60)
    for cycle in range(stage.options.cycles):
        await calls.call(Heavy.burn, f"burn-{cycle}", BURN_S)
        stage.tell(f"a handler burnt {BURN_S:g} s: longest write {_longest(load):,.0f} ms")
    pauses = load.reset()
    await load.stop()
    changes = int(before != await _ownership(stage))
    return {
        "burn_failovers": changes,
        "burn_errors": len(load.errors),
        **summary("burn_slowest_write", list(pauses.values())),
    }, [Target("burn_failovers", 0, "failovers while a handler burns the processor for 10 s")]


async def held(stage: Stage) -> tuple[dict[str, Any], list[Target]]:
    """On one node after the other a handler holds the interpreter for 3 s.

    It is answered and counts once, nothing changes hands, and nothing is lost.
    """
    await stage.ready()
    before = await _ownership(stage)
    load = Load(stage)
    for cycle in range(stage.options.cycles):
        for node in stage.cluster.nodes:
            await _hold(stage, node, cycle)
            stage.tell(f"the interpreter of {node} was held: {_longest(load):,.0f} ms")
    pauses = load.reset()
    await load.stop()
    changes = int(before != await _ownership(stage))
    await stage.check_probes()
    return {
        "hold_failovers": changes,
        "hold_errors": len(load.errors),
        **summary("hold_slowest_write", list(pauses.values())),
    }, [Target("hold_failovers", 0, "failovers while a handler holds the interpreter for 3 s")]


async def _hold(stage: Stage, node: str, cycle: int) -> None:
    """Call a handler that holds the interpreter of this node."""
    await stage.ready()
    primary_of, _ = await stage.owned(node)
    key = stage.keys[primary_of[cycle % len(primary_of)]]
    counts = stage.grid.map(Heavy.calls)
    before = await counts.get(key) or 0
    answered = await stage.grid.options(timeout=60).call(Heavy.hold, key, HOLD_S)
    counted = await counts.get(key)
    if (answered, counted) != (before + 1, before + 1):
        stage.violations.append(
            f"{node} answered {answered}, counted {counted} for one call after {before}"
        )


def _longest(load: Load) -> float:
    return max(load.pauses.values(), default=0.0) * 1000


async def _ownership(stage: Stage) -> list[tuple[int, str]]:
    found = await asyncio.to_thread(stage.cluster.partitions)
    return [(p.epoch, p.primary) for p in found]


async def full(stage: Stage) -> tuple[dict[str, Any], list[Target]]:
    """Write until every node's quota is used up: refused by name, read as before, nothing lost."""
    await stage.ready()
    where = stage.grid.map("fill", key=int, value=bytes)
    value, written, refused = bytes(FILL_VALUE_BYTES), 0, 0
    most = 4 * stage.options.quota_bytes * stage.options.nodes // FILL_VALUE_BYTES
    kept: list[int] = []
    while written < most:
        keys = range(written, written + FILL_BATCH)
        written += FILL_BATCH
        try:
            await where.put_many([(key, value) for key in keys], timeout=10)
        except BatchError as error:
            wrong = [f for f in error.failures.values() if not isinstance(f, MemoryFull)]
            stage.violations += [f"refused with {f!r}" for f in wrong[:1]]
            kept += [key for key in keys if key not in error.failures]
            refused += len(error.failures)
            if len(error.failures) == FILL_BATCH:
                break
        else:
            kept += keys
    stage.tell(f"{len(kept):,} entries of {FILL_VALUE_BYTES:,} bytes fit, {refused:,} were refused")
    figures: dict[str, Any] = {"quota_kept": len(kept), "quota_refused": refused}
    if not refused:
        stage.violations.append(f"nothing was refused after {written:,} entries")
    figures |= await _still_there(stage, where, kept)
    figures["quota_resident_max_bytes"] = max(
        _resident_bytes(child.pid) for child in stage.cluster.nodes.values() if child.alive
    )
    limit = RESIDENT_FACTOR * stage.options.quota_bytes + RESIDENT_BASE_BYTES
    return figures, [
        Target("quota_resident_max_bytes", limit, "resident memory of a node at its quota")
    ]


async def _still_there(stage: Stage, where: Any, kept: list[int]) -> dict[str, Any]:
    took: list[float] = []
    missing = 0
    for begin in range(0, len(kept), FILL_BATCH):
        keys = kept[begin : begin + FILL_BATCH]
        begun = time.monotonic()
        missing += len(keys) - len(await where.get_many(keys, timeout=10))
        took.append(time.monotonic() - begun)
    if missing:
        stage.violations.append(f"{missing} acknowledged entries are gone at the quota")
    if len(stage.cluster.alive) < stage.options.nodes:
        stage.violations.append(f"only {stage.cluster.alive} run at the quota")
    await where.delete_many(kept[: FILL_BATCH * 4], timeout=10)
    try:
        await where.put(kept[0], bytes(16), timeout=10)
    except SpaceGridError as error:
        stage.violations.append(f"a write after deletes was refused: {error}")
    return {"quota_missing": missing, **summary("quota_read_batch", took)}


def _resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024
