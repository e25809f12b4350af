"""Time without service: a node killed, hung, cut off."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Final, Self

import grpc.aio

import spacegrid
from spacegrid.client.blocking import Grid
from spacegrid.errors import SpaceGridError
from spacegrid.testing.failover.stage import PROBE_TIMEOUT_S, Stage
from spacegrid.testing.figures import Target, summary
from spacegrid.v1 import data_pb2, data_pb2_grpc

HANG_MAX_S: Final = 10.0
CUT_S: Final = 2.0
ASK_TIMEOUT_S: Final = 0.25
KILLED_MS: Final = {
    "local": {"p50": 500.0, "p99": 1000.0},
    # The end of a process proves nothing to another machine: its lease is waited for.
    "etcd": {"p50": 800.0, "p99": 1500.0},
}
"""Time without service that is aimed at when a node that is not the controller is killed."""


async def killed(stage: Stage, *, controller: bool) -> tuple[dict[str, Any], list[Target]]:
    """Kill -9 a node: until every partition that it held a copy of takes writes again.

    Args:
        stage: The cluster.
        controller: Whether the victim is the controller, or any other node.
    """
    what = "kill_controller" if controller else "kill"
    writes: list[float] = []
    reads: list[float] = []
    for cycle in range(stage.options.cycles):
        await stage.ready()
        leader = await asyncio.to_thread(stage.cluster.controller)
        others = [name for name in stage.cluster.alive if name != leader]
        victim = leader if controller else others[cycle % len(others)]
        primary_of, copy_of = await stage.owned(victim)
        await asyncio.to_thread(stage.cluster.kill, victim)
        since = time.monotonic()
        written, read = await asyncio.gather(
            stage.written(copy_of, since), stage.read(primary_of, since)
        )
        writes.append(written)
        reads.append(read)
        stage.tell(
            f"{what} {victim}: writes after {written * 1000:,.0f} ms, reads {read * 1000:,.0f}"
        )
        await asyncio.to_thread(stage.cluster.restart, victim)
    await stage.ready()
    await stage.check_probes()
    figures = {**summary(f"{what}_writes", writes), **summary(f"{what}_reads", reads)}
    most = {"p99": 2000.0} if controller else KILLED_MS[stage.options.coordinator]
    return figures, [
        Target(f"{what}_{kind}_{share}_ms", limit, f"time without service after {what}")
        for kind in ("writes", "reads")
        for share, limit in most.items()
    ]


async def hung(stage: Stage, *, controller: bool) -> tuple[dict[str, Any], list[Target]]:
    """Stop a node with SIGSTOP: until its partitions take writes elsewhere.

    Asked by an asyncio client and, at the same time, by a blocking one.

    Args:
        stage: The cluster.
        controller: Whether the node is the controller, or any other.
    """
    what = "hung_controller" if controller else "hung"
    writes: list[float] = []
    blocking: list[float] = []
    with spacegrid.connect_sync(*stage.cluster.addresses, timeout=PROBE_TIMEOUT_S) as grid:
        for cycle in range(stage.options.cycles):
            await stage.ready()
            leader = await asyncio.to_thread(stage.cluster.controller)
            others = [name for name in stage.cluster.alive if name != leader]
            victim = leader if controller else others[cycle % len(others)]
            _, copy_of = await stage.owned(victim)
            stage.cluster.pause(victim)
            since = time.monotonic()
            probe = asyncio.ensure_future(stage.written(copy_of, since))
            probes = [probe, asyncio.ensure_future(_written_blocking(stage, grid, copy_of, since))]
            await asyncio.wait(probes, timeout=HANG_MAX_S)
            stage.cluster.resume(victim)
            for found, took in zip((writes, blocking), probes, strict=True):
                found.append(await took)
            stage.tell(
                f"SIGSTOP {victim}: writes after {writes[-1] * 1000:,.0f} ms, "
                f"with a blocking client {blocking[-1] * 1000:,.0f}"
            )
            await asyncio.to_thread(_alive_or_restarted, stage, victim)
    await stage.ready()
    await stage.check_probes()
    return {
        **summary(f"{what}_writes", writes),
        **summary(f"{what}_blocking_writes", blocking),
    }, [
        Target(f"{what}_{kind}_p99_ms", 2000.0, f"time without service, {what.replace('_', ' ')}")
        for kind in ("writes", "blocking_writes")
    ]


async def _written_blocking(stage: Stage, grid: Grid, partitions: list[int], since: float) -> float:
    where = grid.map("probes-blocking", key=str, value=int)
    items = [(stage.keys[p], stage.serial) for p in partitions]
    try:
        await asyncio.to_thread(where.put_many, items)
    except SpaceGridError as error:
        stage.violations.append(f"a blocking probe failed: {error}")
    return time.monotonic() - since


def _alive_or_restarted(stage: Stage, name: str) -> None:
    """A node that was ended meanwhile stops by itself; one that was not goes on."""
    child = stage.cluster.nodes[name]
    deadline = time.monotonic() + 3.0
    while child.alive and time.monotonic() < deadline:
        names = {node.name for node in stage.cluster.status().nodes}
        if name in names:
            return
        time.sleep(0.05)
    if not child.alive:
        stage.cluster.restart(name)


async def minority(stage: Stage) -> tuple[dict[str, Any], list[Target]]:
    """Cut a node off: when its last acknowledgement and its last read are given."""
    writes: list[float] = []
    reads: list[float] = []
    served: list[float] = []
    for cycle in range(stage.options.cycles):
        await stage.ready()
        leader = await asyncio.to_thread(stage.cluster.controller)
        others = [name for name in stage.cluster.alive if name != leader]
        victim = leader if cycle % 3 == 2 else others[cycle % len(others)]
        primary_of, copy_of = await stage.owned(victim)
        far = [n for n in stage.cluster.alive if n != victim]
        # A read waits behind a write that can not commit: reads get partitions of their own.
        read_only = primary_of[1::2]
        async with _Asker(stage, victim, primary_of[::2], read_only) as asker:
            await asker.answered()
            stage.links.isolate(victim, [*far, *stage.links.authorities])
            cut = time.monotonic()
            probe = asyncio.ensure_future(stage.written(set(copy_of) - set(read_only), cut))
            await asyncio.sleep(CUT_S)
            await asyncio.wait([probe], timeout=HANG_MAX_S)
            healed = time.monotonic()
            stage.links.heal_all()
            served.append(await probe)
        if not asker.writes or asker.writes[0] > cut:
            stage.violations.append(f"{victim} acknowledged nothing before the cut")
        writes.append(max((t for t in asker.writes if t < healed), default=cut) - cut)
        reads.append(max((t for t in asker.reads if t < healed), default=cut) - cut)
        stage.tell(
            f"cut {victim} off: its last write after {writes[-1] * 1000:,.0f} ms, last read "
            f"{reads[-1] * 1000:,.0f} ms; the others write after {served[-1] * 1000:,.0f} ms"
        )
        await asyncio.to_thread(_alive_or_restarted, stage, victim)
    await stage.ready()
    await stage.check_probes()
    writes = [max(0.0, seconds) for seconds in writes]
    reads = [max(0.0, seconds) for seconds in reads]
    figures = {
        **summary("minority_last_write", writes),
        **summary("minority_last_read", reads),
        **summary("cut_off_writes", served),
    }
    return figures, [
        Target("minority_last_write_max_ms", 600.0, "the minority's last acknowledgement"),
        Target("minority_last_read_max_ms", 600.0, "the minority's last read"),
        Target("cut_off_writes_p99_ms", 2000.0, "time without service, node cut off"),
    ]


class _Asker:
    """Asks one node over its own port, as fast as it answers; nobody else can answer for it."""

    def __init__(self, stage: Stage, name: str, written: list[int], read_only: list[int]) -> None:
        self.writes: list[float] = []
        self.reads: list[float] = []
        self._answered = asyncio.Event()
        self._written = [stage.keys[p].encode() for p in written]
        self._read_only = [stage.keys[p].encode() for p in read_only]
        self._channel = grpc.aio.insecure_channel(stage.cluster.nodes[name].address)
        self._stub = data_pb2_grpc.DataStub(self._channel)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(work()) for work in (self._write, self._read)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    async def answered(self) -> None:
        """Wait until a write and a read were answered, or too long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._answered.wait(), HANG_MAX_S)

    async def _write(self) -> None:
        while True:
            for key in self._written:
                request = data_pb2.PutRequest(
                    map="probes", key=key, value=b"\x00", codec=data_pb2.CODEC_MSGPACK
                )
                await self._ask(self._stub.Put(request, timeout=ASK_TIMEOUT_S), self.writes)

    async def _read(self) -> None:
        while True:
            for key in self._read_only:
                request = data_pb2.GetRequest(map="probes", key=key)
                await self._ask(self._stub.Get(request, timeout=ASK_TIMEOUT_S), self.reads)

    async def _ask(self, call: Any, answered: list[float]) -> None:
        try:
            await call
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.01)
        else:
            answered.append(time.monotonic())
            if self.writes and self.reads:
                self._answered.set()
