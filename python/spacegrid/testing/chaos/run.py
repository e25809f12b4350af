"""One run of chaos: cycles of load, fault, repair and check, until done or interrupted.

A cycle begins with a healthy cluster and keys of its own. Workers ask; a nemesis breaks something
and repairs it; when every partition has all its copies again the workers stop, and the round's
history is checked. At the end everything that any round left is read once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any, Final

import spacegrid
from spacegrid.client.asynchronous import AsyncGrid
from spacegrid.errors import ConfigError, SpaceGridError
from spacegrid.node.installed import look_here
from spacegrid.testing.chaos.nemesis import MEMORY_ONLY, NEMESES, Scene, chosen
from spacegrid.testing.chaos.recorder import GIVE_UP_S, Recorder
from spacegrid.testing.chaos.workload import Mixed, Workload
from spacegrid.testing.checks import Violation
from spacegrid.testing.figures import Report, summary
from spacegrid.testing.history import Operation, Status
from spacegrid.testing.wired import COORDINATORS, Wired, wired

WORKERS: Final = 12
GRIDS: Final = 2
THINK_S: Final = 0.01
WARM_UP_S: Final = 0.3
HEAL_TIMEOUT_S: Final = 60.0
START_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class ChaosOptions:
    """What to run.

    Attributes:
        cycles: Faults, one after another.
        seed: Of every choice; None: drawn, and said.
        nemesis: Names of nemeses to choose from; none: all.
        nodes: Nodes of the cluster.
        partitions: Its partitions.
        copies: Its copies of each.
        coordinator: `local`, or `etcd`: three members of its own.
        units: Units to install beside the workload's own.
        workload: `module:Class` of a `Workload`; empty: `Mixed`.
        workers: Workers at a time.
        think_s: Seconds that a worker waits after a step at most.
        data: Folder for the clusters' data and logs; None: one that is deleted if all is well.
    """

    cycles: int = 10
    seed: int | None = None
    nemesis: tuple[str, ...] = ()
    nodes: int = 3
    partitions: int = 32
    copies: int = 2
    coordinator: str = "local"
    units: tuple[str, ...] = ()
    workload: str = ""
    workers: int = WORKERS
    think_s: float = THINK_S
    data: Path | None = None


@dataclass
class Progress:
    """Where a run tells how far it is; by default nowhere.

    Attributes:
        cycle: Called with the cycle's number, the nemesis's name and what happens.
        done: Called after each cycle with its number, the operations so far and the violations.
    """

    cycle: Callable[[int, str, str], None] = lambda number, nemesis, what: None
    done: Callable[[int, int, int], None] = lambda number, operations, violations: None


@dataclass
class _Tally:
    operations: Counter[str] = field(default_factory=Counter)
    nemeses: Counter[str] = field(default_factory=Counter)
    resent: int = 0
    slowest_s: list[float] = field(default_factory=list)
    heal_s: list[float] = field(default_factory=list)

    def add(self, history: list[Operation]) -> None:
        self.operations.update(operation.status.value for operation in history)
        self.resent += sum(operation.sends > 1 for operation in history)
        self.slowest_s.append(max((o.ended - o.began for o in history), default=0.0))


class ChaosRun:
    """One run.

    Attributes:
        report: What is known so far; complete after `run`.
    """

    def __init__(self, options: ChaosOptions, progress: Progress | None = None) -> None:
        self._nemeses = chosen(options.nemesis, may_lose=not options.workload)
        if options.coordinator not in COORDINATORS:
            raise ConfigError(f"coordinator {options.coordinator!r} is not one of {COORDINATORS}")
        seed = Random().randrange(1 << 32) if options.seed is None else options.seed
        self.options = options
        self.seed = seed
        self.workload = load_workload(options.workload)
        self.report = Report(
            "chaos",
            settings={"seed": seed, "nodes": options.nodes, "coordinator": options.coordinator},
        )
        self._progress = progress or Progress()
        self._random = Random(seed)
        self._deck: list[str] = []
        self._tally = _Tally()
        self._wired: Wired | None = None
        self._grids: list[AsyncGrid] = []
        self._clusters = 0
        self._round = 0
        self._begun = time.monotonic()
        self._folder = options.data or Path(tempfile.mkdtemp(prefix="spacegrid-chaos-"))

    async def run(self) -> Report:
        """Run all cycles; the report. Cancelled: the cluster is stopped, and what is known kept."""
        try:
            for number in range(1, self.options.cycles + 1):
                await self._cycle(number)
                violations = len(self.report.violations)
                self._progress.done(number, self._tally.operations.total(), violations)
            await self._end_cluster(check=True)
        except SpaceGridError as error:
            self._note([Violation("failed", str(error))], self.options.cycles, "the cluster")
        except asyncio.CancelledError:
            self.report.interrupted = True
            raise
        finally:
            await self._end_cluster(check=False)
            self._finish()
        return self.report

    # ---- a cycle

    async def _cycle(self, number: int) -> None:
        name = self._draw()
        if name in MEMORY_ONLY:
            # Copies that are on disk come back from there; only memory is surely gone.
            await self._end_cluster(check=True)
        stage = await self._healthy_cluster(lmdb=name not in MEMORY_ONLY)
        self._round += 1
        self._tally.nemeses[name] += 1
        self._progress.cycle(number, name, "load")
        await self.workload.start(self._grids[0], self._round)
        scene = Scene(
            stage.cluster,
            stage.links,
            Random(f"{self.seed}-{number}-nemesis"),
            self._grids[0],
            lambda what: self._progress.cycle(number, name, what),
            stage.etcd,
        )
        history: list[Operation] = []
        stop = asyncio.Event()
        workers = [
            asyncio.create_task(self._work(history, number, worker, stop))
            for worker in range(self.options.workers)
        ]
        try:
            await asyncio.sleep(WARM_UP_S)
            await self._break(scene, name)
        finally:
            stop.set()
            stage.links.heal_all()
            await self._join(workers, number, name)
        recorder = Recorder(history, self.options.workers)
        self._progress.cycle(number, name, "check")
        found = await self.workload.check(self._grids[-1], recorder)
        if scene.renew:
            await self._end_cluster(check=False)
        self._note([*scene.violations, *found], number, name)
        self._tally.add(history)

    async def _break(self, scene: Scene, name: str) -> None:
        try:
            await NEMESES[name](scene)
        except SpaceGridError as error:
            scene.violations.append(Violation("failed", f"the nemesis could not go on: {error}"))
            scene.renew = True
        if scene.renew:
            return
        begun = time.monotonic()
        scene.tell("heal")
        try:
            await scene.call(scene.cluster.wait_ready, HEAL_TIMEOUT_S)
        except SpaceGridError as error:
            scene.violations.append(Violation("unhealed", str(error)))
            scene.renew = True
        self._tally.heal_s.append(time.monotonic() - begun)
        await asyncio.sleep(WARM_UP_S)

    async def _work(
        self, history: list[Operation], number: int, worker: int, stop: asyncio.Event
    ) -> None:
        random = Random(f"{self.seed}-{number}-{worker}")
        recorder = Recorder(history, worker)
        grid = self._grids[worker % len(self._grids)]
        while not stop.is_set():
            await self.workload.step(grid, recorder, random)
            await asyncio.sleep(random.uniform(0, self.options.think_s))

    async def _join(self, workers: list[asyncio.Task[None]], number: int, name: str) -> None:
        _, waiting = await asyncio.wait(workers, timeout=GIVE_UP_S + 10)
        for task in waiting:
            task.cancel()
        results = await asyncio.gather(*workers, return_exceptions=True)
        errors = [error for error in results if isinstance(error, BaseException)]
        self._note([Violation("failed", f"a worker ended: {e!r}") for e in errors], number, name)

    # ---- clusters

    async def _healthy_cluster(self, *, lmdb: bool) -> Wired:
        if self._wired is None:
            self._clusters += 1
            self._round = 0
            options = self.options
            self._wired = await asyncio.to_thread(
                partial(
                    wired,
                    options.coordinator,
                    options.nodes,
                    self._folder / f"cluster-{self._clusters}",
                    units=tuple(dict.fromkeys((*self.workload.units, *options.units))),
                    partitions=options.partitions,
                    copies=options.copies,
                    lmdb=lmdb,
                    arguments=("--log-level", "debug"),
                )
            )
            await asyncio.to_thread(self._wired.start, START_TIMEOUT_S)
            for _ in range(GRIDS):
                grid = spacegrid.connect(*self._wired.cluster.addresses, timeout=10)
                self._grids.append(await grid)
        return self._wired

    async def _end_cluster(self, *, check: bool) -> None:
        if self._wired is None:
            return
        try:
            if check and self._grids:
                found = await self.workload.check_all(self._grids[0])
                self._note(found, self.options.cycles, "at the end")
        finally:
            stage, self._wired = self._wired, None
            grids, self._grids = self._grids, []
            for grid in grids:
                with contextlib.suppress(SpaceGridError):
                    await grid.close(timeout=1)
            await asyncio.to_thread(partial(stage.stop, in_order=check))

    # ---- what is known

    def _draw(self) -> str:
        """The next nemesis: all in a random order, then all in another."""
        if not self._deck:
            self._deck = list(self._nemeses)
            self._random.shuffle(self._deck)
        return self._deck.pop()

    def _note(self, violations: list[Violation], number: int, nemesis: str) -> None:
        self.report.violations += [f"cycle {number} ({nemesis}): {v}" for v in violations]

    def _finish(self) -> None:
        tally, kinds = self._tally, Counter(_kind(v) for v in self.report.violations)
        self.report.figures = {
            "cycles": tally.nemeses.total(),
            "operations": tally.operations.total(),
            "acknowledged": tally.operations[Status.OK.value],
            "failed": tally.operations[Status.FAILED.value],
            "unknown": tally.operations[Status.UNKNOWN.value],
            "said_lost": tally.operations[Status.LOST.value],
            "sent_again": tally.resent,
            "lost": kinds["lost"],
            "applied_twice": kinds["twice"],
            "old_epoch_acknowledgements": kinds["epoch"],
            "violations": len(self.report.violations),
            **summary("slowest_operation", tally.slowest_s),
            **summary("heal", tally.heal_s),
            "elapsed_s": round(time.monotonic() - self._begun, 1),
            "nemeses": dict(tally.nemeses),
        }
        if self.options.data is None and not self.report.violations:
            shutil.rmtree(self._folder, ignore_errors=True)
        elif self.report.violations:
            self.report.settings["logs"] = str(self._folder)


def _kind(text: str) -> str:
    return text.partition("): ")[2].partition(":")[0]


def load_workload(name: str) -> Workload:
    """Make the workload of a name, `module:Class`, also of this folder; empty: `Mixed`.

    Raises:
        ConfigError: There is none.
    """
    if not name:
        return Mixed()
    module, colon, kind = name.partition(":")
    if not (colon and module and kind.isidentifier()):
        raise ConfigError(f"workload {name!r} is not module:Class")
    look_here()
    try:
        made: Any = getattr(import_module(module), kind)()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"workload {name!r} can't be loaded: {error}") from error
    workload: Workload = made
    return workload
