"""What goes wrong, by name: each nemesis breaks something, holds, and repairs it.

A nemesis says what it does, does it while the workload runs, and leaves the cluster so that it must
heal: every node runs, every link passes. Whether it healed is the runner's question. All its
choices come from the seed; the moments at which processes really stop do not.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from spacegrid.client.asynchronous import AsyncGrid
from spacegrid.errors import (
    AvailabilityError,
    ConfigError,
    DeadlineExceeded,
    PartitionLost,
    SpaceGridError,
)
from spacegrid.testing.checks import Violation
from spacegrid.testing.cluster import LocalCluster
from spacegrid.testing.etcd import Etcd
from spacegrid.testing.links import FaultLinks
from spacegrid.testing.wired import SPARE

HOLD_S: Final = (0.3, 2.0)
PAUSE_S: Final = (0.1, 5.0)
STARVE_S: Final = 4.0
STARVE_RUN_S: Final = 0.1
STARVE_STOP_S: Final = 0.4
SAID_LOST_S: Final = 30.0
LOST_KEYS_MAX: Final = 64


@dataclass
class Scene:
    """What a nemesis works on.

    Attributes:
        cluster: The cluster.
        links: Its links.
        random: Where every choice comes from.
        grid: A client of its own.
        tell: Says what happens now.
        etcd: The etcd below the cluster; None: a local coordinator.
        violations: What it saw itself.
        renew: Whether the cluster can't go on, and a new one must take its place.
    """

    cluster: LocalCluster
    links: FaultLinks
    random: Random
    grid: AsyncGrid
    tell: Callable[[str], None]
    etcd: Etcd | None = None
    violations: list[Violation] = field(default_factory=list)
    renew: bool = False

    @property
    def names(self) -> list[str]:
        """The nodes that run."""
        return self.cluster.alive

    def one(self) -> str:
        """Any node that runs."""
        return self.random.choice(self.names)

    async def hold(self, bounds: tuple[float, float] = HOLD_S) -> None:
        """Let the fault last for a time drawn from the seed."""
        await asyncio.sleep(self.random.uniform(*bounds))

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run what blocks beside the workload."""
        return await asyncio.to_thread(function, *arguments)


Nemesis = Callable[[Scene], Awaitable[None]]


async def _kill(scene: Scene, name: str, why: str) -> None:
    scene.tell(f"kill -9 {name} ({why})")
    await scene.call(scene.cluster.kill, name)
    await scene.hold()
    await scene.call(scene.cluster.restart, name)


async def kill(scene: Scene) -> None:
    """End any node with SIGKILL."""
    await _kill(scene, scene.one(), "any")


async def kill_controller(scene: Scene) -> None:
    """End the controller with SIGKILL."""
    await _kill(scene, await scene.call(scene.cluster.controller), "the controller")


async def kill_primary(scene: Scene) -> None:
    """End the primary of a partition drawn at random with SIGKILL."""
    primaries = await scene.call(scene.cluster.primaries)
    partition = scene.random.randrange(scene.cluster.settings.partitions)
    name = primaries.get(partition) or scene.one()
    await _kill(scene, name, f"primary of partition {partition}")


async def pause(scene: Scene) -> None:
    """Stop a node with SIGSTOP for 0.1 to 5 s, and let it go on."""
    name, seconds = scene.one(), scene.random.uniform(*PAUSE_S)
    scene.tell(f"SIGSTOP {name} for {seconds:.1f} s")
    scene.cluster.pause(name)
    try:
        await asyncio.sleep(seconds)
    finally:
        scene.cluster.resume(name)


async def starve(scene: Scene) -> None:
    """Let a node run for 100 ms in every 500 ms only."""
    name = scene.one()
    scene.tell(f"starve {name} for {STARVE_S:g} s")
    for _ in range(round(STARVE_S / (STARVE_RUN_S + STARVE_STOP_S))):
        scene.cluster.pause(name)
        try:
            await asyncio.sleep(STARVE_STOP_S)
        finally:
            scene.cluster.resume(name)
        await asyncio.sleep(STARVE_RUN_S)


async def cut(scene: Scene) -> None:
    """Cut some directed links between nodes, and to the coordinator."""
    everyone = [*scene.names, *scene.links.authorities]
    links = [(a, b) for a in everyone for b in everyone if a != b and {a, b} & {*scene.names}]
    chosen = scene.random.sample(links, scene.random.randint(1, len(links) // 2))
    scene.tell("cut " + ", ".join(f"{a} to {b}" for a, b in chosen))
    for source, target in chosen:
        scene.links.cut(source, target)
    try:
        await scene.hold()
    finally:
        scene.links.heal_all()


async def isolate(scene: Scene) -> None:
    """Cut one node off from the others, and perhaps from the coordinator too."""
    name, with_coordinator = scene.one(), scene.random.random() < 0.5
    others = [other for other in scene.names if other != name]
    if with_coordinator:
        others += scene.links.authorities
    scene.tell(f"isolate {name} from {', '.join(others)}")
    scene.links.isolate(name, others)
    try:
        await scene.hold()
    finally:
        scene.links.heal_all()


async def rolling(scene: Scene) -> None:
    """Stop every node in order with SIGTERM and start it again, one after another."""
    for name in scene.names:
        scene.tell(f"restart {name} in order")
        code = await scene.call(scene.cluster.nodes[name].terminate)
        if code != 0:
            scene.violations.append(Violation("failed", f"{name} left with exit code {code}"))
        await scene.call(scene.cluster.restart, name)
        await scene.call(scene.cluster.wait_ready)


async def join_leave(scene: Scene) -> None:
    """Let one more node join, wait until data has moved, and let one leave."""
    scene.tell(f"{SPARE} joins")
    await scene.call(scene.cluster.add, SPARE)
    await scene.call(scene.cluster.wait_ready)
    scene.tell(f"{SPARE} leaves")
    code = await scene.call(scene.cluster.nodes[SPARE].terminate)
    if code != 0:
        scene.violations.append(Violation("failed", f"{SPARE} left with exit code {code}"))
    del scene.cluster.nodes[SPARE]


async def coordinator(scene: Scene) -> None:
    """Kill the coordinator, or a member of etcd, and start it again; or stop it for a while."""
    if scene.etcd is not None:
        await etcd_member(scene, scene.etcd)
        return
    process = scene.cluster.coordinator
    assert process is not None
    if scene.random.random() < 0.5:
        scene.tell("kill -9 the coordinator")
        await scene.call(process.kill)
        await scene.hold()
        await scene.call(scene.cluster.start_coordinator)
        return
    seconds = scene.random.uniform(*PAUSE_S)
    scene.tell(f"SIGSTOP the coordinator for {seconds:.1f} s")
    os.kill(process.pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        os.kill(process.pid, signal.SIGCONT)


async def etcd_member(scene: Scene, etcd: Etcd) -> None:
    """Kill or stop etcd's leader or any member, or stop all of them."""
    everyone = scene.random.random() < 0.25
    leader = await scene.call(etcd.leader)
    member = leader if scene.random.random() < 0.5 else scene.random.choice(etcd.members)
    what = f"{member.name}{', the leader,' if member is leader else ''} of etcd"
    if not everyone and scene.random.random() < 0.5:
        scene.tell(f"kill -9 {what}")
        await scene.call(member.kill)
        await scene.hold()
        await scene.call(etcd.launch, member)
    else:
        seconds, paused = scene.random.uniform(*PAUSE_S), etcd.members if everyone else [member]
        scene.tell(f"SIGSTOP {'all' if everyone else what} for {seconds:.1f} s")
        for each in paused:
            each.pause()
        try:
            await asyncio.sleep(seconds)
        finally:
            for each in paused:
                each.resume()
    await scene.call(etcd.wait_healthy)


async def both_copies(scene: Scene) -> None:
    """Kill every node that holds a copy of some partitions, and start them again at once.

    What they held is gone, and each request must say so: no empty answer, ever.
    """
    where = grid_map(scene.grid)
    keys = [f"both-{number}" for number in range(256)]
    await where.put_many(dict.fromkeys(keys, 1), timeout=10)
    victims = scene.random.sample(scene.names, scene.cluster.settings.copies)
    lost = {
        status.partition
        for status in await scene.call(scene.cluster.partitions)
        if {status.primary, *status.in_sync} <= set(victims)
    }
    scene.tell(f"kill -9 {' and '.join(victims)}, and start them at once: {len(lost)} lost")
    for name in victims:
        scene.cluster.nodes[name].process.kill()
    for name in victims:
        scene.cluster.kill(name)
    await asyncio.gather(*(scene.call(scene.cluster.restart, name) for name in victims))
    await expect_lost(scene, [key for key in keys if partition_of(scene, key) in lost])
    scene.renew = True


async def expect_lost(scene: Scene, keys: list[str]) -> None:
    """Ask for keys of lost partitions until each says so; an answer is a violation."""
    where = grid_map(scene.grid)
    deadline = asyncio.get_running_loop().time() + SAID_LOST_S
    for key in keys[:LOST_KEYS_MAX]:
        while True:
            try:
                value = await where.get(key, timeout=1.0)
            except PartitionLost:
                break
            except (AvailabilityError, DeadlineExceeded) as error:
                if asyncio.get_running_loop().time() > deadline:
                    text = f"{key}: not said to be lost within {SAID_LOST_S:g} s: {error}"
                    scene.violations.append(Violation("empty", text))
                    return
            except SpaceGridError as error:
                scene.violations.append(Violation("empty", f"{key}: {error}"))
                break
            else:
                text = f"{key} answers {value!r}, and every copy of its partition is gone"
                scene.violations.append(Violation("empty", text))
                break


def grid_map(grid: AsyncGrid) -> Any:
    """The map of the nemesis's own keys."""
    return grid.map("chaos-nemesis", key=str, value=int)


def partition_of(scene: Scene, key: str) -> int:
    """Partition of a key of the nemesis's own."""
    from spacegrid import _core

    return _core.partition_of(_core.encode_key(key), scene.grid.partition_count)


NEMESES: Final[dict[str, Nemesis]] = {
    "kill": kill,
    "kill-controller": kill_controller,
    "kill-primary": kill_primary,
    "pause": pause,
    "starve": starve,
    "cut": cut,
    "isolate": isolate,
    "rolling": rolling,
    "join-leave": join_leave,
    "coordinator": coordinator,
    "both-copies": both_copies,
}

MEMORY_ONLY: Final = ("both-copies",)
"""Nemeses that need a cluster which keeps nothing on disk, and lose data for good."""


def chosen(names: tuple[str, ...], *, may_lose: bool) -> tuple[str, ...]:
    """The nemeses of these names; all where none is named.

    Args:
        names: As they were asked for.
        may_lose: Whether the workload's check knows of data that is gone for good, and says so. One
            that does not is given such a nemesis only by its name.

    Raises:
        ConfigError: There is none of a name.
    """
    for name in names:
        if name not in NEMESES:
            raise ConfigError(f"nemesis {name!r} is not one of {', '.join(NEMESES)}")
    return names or tuple(name for name in NEMESES if may_lose or name not in MEMORY_ONLY)
