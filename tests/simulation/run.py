"""One run: build a cluster from a seed, let it suffer, heal it, and judge what clients saw."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from spacegrid import _core
from spacegrid.machine.table import PartitionEntry

from .audit import Audit, Violation
from .clients import SimClient
from .coordination import Coordination
from .cuts import histories, persisted_in
from .history import FAILED, OK, PENDING, UNKNOWN, Call, History
from .leaning import LeaningFaults
from .linear import check_key
from .links import Link
from .machine import Machine
from .network import Network
from .node import NodeProcess
from .options import Options, draw
from .schedule import SECOND, Schedule
from .shared import Database

CALM_US = 40 * SECOND
"""Everything healed, the cluster has this long to serve and to be whole."""


@dataclass(slots=True)
class Result:
    """What came of a run."""

    seed: int
    digest: str
    problem: str
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing was wrong."""
        return not self.problem


class World:
    """Everything in one run."""

    def __init__(self, seed: int, options: Options | None = None) -> None:
        self.options = options or draw(seed)
        self.seed = seed
        self.schedule = Schedule(seed)
        self.random = self.schedule.random("world")
        self.pids = 0
        self.processes: dict[int, NodeProcess] = {}
        self.links: list[Link] = []
        self.connections: list[Any] = []
        self.history = History()
        self.database = Database()
        #: When all nodes ended at once.
        self.dark_us: list[int] = []
        self.audit = Audit(self)
        self.network = Network(self.schedule, self.options)
        self.coordination = Coordination(self)
        self.machines: list[Machine] = []
        self.operations_left = self.options.operations
        self.clients = [SimClient(self, index) for index in range(self.options.clients)]
        for _ in range(self.options.nodes):
            self.add_machine().start()
        self.faults = LeaningFaults(self)

    def add_machine(self) -> Machine:
        """Another machine, without a node yet."""
        machine = Machine(self, len(self.machines) + 1)
        self.machines.append(machine)
        return machine

    def running(self) -> list[NodeProcess]:
        """Processes that are registered and have not ended."""
        processes = (machine.process for machine in self.machines)
        return [process for process in processes if process is not None and process.incarnation]

    def started(self, process: NodeProcess) -> None:
        """A process has its core."""
        self.processes[process.incarnation] = process

    def lost_said(self, before: PartitionEntry, after: PartitionEntry) -> None:
        """A partition is called lost: none of its complete copies may be alive, or on disk.

        A blackout that comes before a new partition is on any disk leaves nothing of it.
        """
        live = {process.incarnation for process in self.running()}
        alive = [copy for copy in before.in_sync if copy in live]
        stores = {item.copy: item.store for item in self.coordination.state.table.stores}
        wanted = {stores.get(copy) for copy in before.in_sync}
        disks = [machine.disk for machine in self.machines if machine.disk is not None]
        found = [d.name for d in disks if d.store in wanted and before.partition in d.durable]
        if alive or found or not (self.options.both_copies or self.dark_us):
            self.audit.violation(f"called lost with {alive} alive, {found}: {before} -> {after}")

    def partition(self, call: Call) -> int:
        """Partition of a call's key."""
        return _core.partition_of(call.key, self.options.partitions)

    # ---- phases

    def run(self) -> None:
        """Suffer, heal, ask for everything once more."""
        schedule = self.schedule
        schedule.run_until(int(self.options.seconds * 2 * SECOND), self._all_asked)
        self.heal()
        bound = schedule.now_us + CALM_US
        if not schedule.run_until(bound, self._calm):
            open_calls = [call for call in self.history.calls if call.outcome == PENDING]
            self.audit.violation(
                f"not whole {CALM_US // SECOND} s after everything was healed: "
                f"{self.audit.settled() or 'open: ' + str(open_calls[:3])}"
            )
        self.audit.replicas_equal()
        self._read_all()

    def _all_asked(self) -> bool:
        return self.operations_left <= 0 and all(client.open == 0 for client in self.clients)

    def _calm(self) -> bool:
        return all(client.open == 0 for client in self.clients) and not self.audit.settled()

    def heal(self) -> None:
        """No more faults, and all that was broken works again."""
        self.schedule.trace("heal")
        self.faults.on = False
        self.network.calm = True
        self.network.heal_all()
        self.operations_left = 0
        self.coordination.restart()
        for machine in self.machines:
            if machine.process is not None:
                machine.process.countdown = -1
                machine.process.resume(heal=True)
        for place, machine in enumerate(self.machines):
            # What is on the disk of a node that was added and has ended may be the only copy.
            if place < self.options.nodes or machine.disk is not None:
                machine.start()

    def _read_all(self) -> None:
        """Every key once more: what was acknowledged must be there."""
        client = next(client for client in self.clients if client.machine is not None)
        for key in sorted({call.key for call in self.history.calls}):
            if self.audit.waits_for_operator(_core.partition_of(key, self.options.partitions)):
                continue
            client.open += 1
            client.ask(Call(client.index, "turn_get" if key.startswith(b"turn") else "get", key))
        if not self.schedule.run_until(self.schedule.now_us + 10 * SECOND, self._calm):
            self.audit.violation("the last reads were not answered")

    # ---- judging

    def judge(self) -> str:
        """Check the history; empty when it is fine."""
        slack_us = None if self.options.clock_jumps else 400_000
        for key, calls in sorted(self.history.by_key().items()):
            partition = _core.partition_of(key, self.options.partitions)
            cuts = self.audit.cuts.get(partition, [])
            seen: list[Call] = []
            for seen in histories(calls, cuts):
                wrong = check_key(seen, slack_us)
                if wrong:
                    return f"key {key!r}: {wrong}"
            # The last history alone ends with a read that nothing else runs beside.
            wrong = self._counter(key, seen)
            if wrong:
                return wrong
        return ""

    def _counter(self, key: bytes, calls: list[Call]) -> str:
        """Exactly once: a counter shows all that was acknowledged, and no more than was asked."""
        if not key.startswith((b"count", b"turn")) or not calls:
            return ""
        adds = [call for call in calls if call.kind in ("incr", "turn")]
        sure = sum(call.argument for call in adds if call.outcome == OK)
        maybe = sum(call.argument for call in adds if call.outcome in (UNKNOWN, PENDING))
        last = calls[-1]
        if last.outcome == OK and not sure <= (last.value or 0) <= sure + maybe:
            return f"counter {key!r} is {last.value}: {sure} acknowledged, {maybe} unknown"
        return ""

    def figures(self) -> dict[str, Any]:
        """Numbers of the run."""
        return {
            "operations": len(self.history.calls),
            "ok": self.history.count(OK),
            "failed": self.history.count(FAILED),
            "unknown": self.history.count(UNKNOWN),
            "events": self.schedule.count,
            "simulated_s": round(self.schedule.now_us / SECOND, 3),
            "epochs": sum(entry.epoch for entry in self.coordination.state.table.entries),
            "lost": len(self.audit.lost),
            "cuts": sum(map(len, self.audit.cuts.values())),
            "faults": dict(sorted(self.faults.counts.items())),
        }


def run(seed: int, options: Options | None = None, log: list[str] | None = None) -> Result:
    """Run one seed.

    Args:
        seed: The run.
        options: Given instead of drawn.
        log: Gets a line for everything that happens.

    Returns:
        What came of it. Whatever goes wrong in there is a finding, so nothing is raised.
    """
    began = perf_counter()
    problem = ""
    world = World(seed, options)
    world.schedule.log = log
    try:
        world.run()
        if world.audit.lost:
            # What was lost is gone by contract; what was not is judged.
            lost = [c for c in world.history.calls if world.partition(c) in world.audit.lost]
            kept = [c for c in world.history.calls if world.partition(c) not in world.audit.lost]
            world.history.calls = kept
            problem = persisted_in(lost)
        problem = problem or world.judge()
    except Violation as error:
        problem = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        problem = f"{type(error).__name__}: {error}"
        if log is not None:
            import traceback

            log.append("".join(traceback.format_exception(error)))
    figures = world.figures()
    figures["wall_s"] = round(perf_counter() - began, 3)
    return Result(seed, world.schedule.digest(), problem, figures)
