"""What goes wrong: crashes, pauses, cuts, resets, joins, leaves, clock jumps, drawn from the seed.

Crashes keep to the promise that is tested: as long as each partition has a complete copy alive
that the table knows, nothing may be lost. Runs with `both_copies` break it on purpose; then lost
is said.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from spacegrid.machine.table import State

from .machine import Machine
from .schedule import MS, SECOND

if TYPE_CHECKING:
    from .node import NodeProcess
    from .run import World


class Faults:
    """The source of trouble of one run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.schedule.random("faults")
        self.on = True
        self.counts: dict[str, int] = {}
        options = world.options
        for name, rate in (
            ("crash", options.crashes),
            ("pause", options.pauses),
            ("cut", options.cuts),
            ("reset", options.resets),
            ("join", options.joins),
            ("leave", options.leaves),
            ("coordinator", options.coordinator_crashes),
            ("jump", options.clock_jumps),
            ("slow", options.slows),
            ("stale", options.stales),
            ("outcast", options.outcasts),
            ("usurp", options.usurps),
            ("pair", options.pairs),
            ("split", options.splits),
            ("overtake", options.overtakes),
            ("orphan", options.orphans),
            ("freeze", options.freezes),
            ("late", options.lates),
            ("estrange", options.estranges),
            ("blackout", options.blackouts),
        ):
            if rate > 0:
                self._plan(rate, getattr(self, f"_{name}"))

    def _plan(self, rate: float, act: Callable[[], str]) -> None:
        delay = self.random.expovariate(rate) * SECOND
        self.world.schedule.after(delay, self._strike, rate, act)

    def _strike(self, rate: float, act: Callable[[], str]) -> None:
        if not self.on:
            return
        what = act()
        if what:
            self.counts[what] = self.counts.get(what, 0) + 1
            self.world.schedule.trace(f"fault {what}")
        self._plan(rate, act)

    def later(self, mean_ms: float, act: Callable[[], object]) -> None:
        """Undo a fault after a while."""
        self.world.schedule.after(self.random.expovariate(1 / mean_ms) * MS, act)

    # ---- each kind of fault; it answers what it did, or nothing

    def _crash(self) -> str:
        machine = self._victim()
        if machine is None:
            return ""
        process = machine.process
        assert process is not None
        if self.world.options.fault_effects and self.random.random() < 0.6:
            process.strike = partial(self._crash_if_safe, machine)
            process.countdown = self.random.randrange(12)
        else:
            self._crash_now(machine)
        if self.world.options.both_copies and self.random.random() < 0.5:
            other = self._victim(anyone=True)
            if other is not None:
                self._crash_now(other)
        return "crash"

    def _crash_if_safe(self, machine: Machine) -> None:
        if self.on and self.safe(machine):
            self._crash_now(machine)

    def _crash_now(self, machine: Machine) -> None:
        machine.crash()
        if machine.disk is not None and self.random.random() < self.world.options.new_disks:
            machine.disk.replace()
        self.later(self.random.choice([5, 100, 800]), machine.start)

    def _victim(self, *, anyone: bool = False) -> Machine | None:
        machines = [machine for machine in self.world.machines if machine.process is not None]
        self.random.shuffle(machines)
        aimed = self._aimed()
        if aimed is not None:
            machines.insert(0, aimed.machine)
        for machine in machines:
            if anyone or self.safe(machine):
                return machine
        return None

    def safe(self, machine: Machine) -> bool:
        """Whether every partition has a complete copy left when this machine crashes."""
        world = self.world
        process = machine.process
        if process is None:
            return False
        live = {p.incarnation for p in world.running() if p is not process}
        if len(live) < 2:
            return False
        # Whoever is registered without knowing it may be counted on by the table, and is not there.
        return all(
            any(copy in live for copy in entry.in_sync)
            for entry in world.coordination.state.table.entries
            if entry.epoch and entry.state is not State.LOST
        )

    def _pause(self) -> str:
        processes = [process for process in self.world.running() if not process.paused]
        if not processes:
            return ""
        aimed = self._aimed()
        process = aimed if aimed in processes else self.random.choice(processes)
        strike = partial(process.pause, stale=self.random.random() < 0.5)
        if self.world.options.fault_effects and self.random.random() < 0.5:
            process.strike, process.countdown = strike, self.random.randrange(12)
        else:
            strike()
        self.later(self.world.options.pause_ms, process.resume)
        return "pause"

    def _cut(self) -> str:
        world, random = self.world, self.random
        places = [0, *(machine.place for machine in world.machines)]
        kind = random.choice(["one way", "link", "node", "halves"])
        if kind in ("one way", "link"):
            first, second = random.sample(places, 2)
            pairs = [(first, second)] if kind == "one way" else [(first, second), (second, first)]
        else:
            random.shuffle(places)
            size = 1 if kind == "node" else len(places) // 2
            here, there = places[:size], places[size:]
            ways = random.choice([1, 2, 3])
            pairs = [(a, b) for a in here for b in there] if ways & 1 else []
            pairs += [(b, a) for a in here for b in there] if ways & 2 else []
        for pair in pairs:
            world.network.cut(*pair)
        # Some connections across it break, others wait.
        for link in list(world.links):
            source, target = link.ends
            if ((source, target) in pairs or (target, source) in pairs) and random.random() < 0.5:
                world.schedule.after(random.randrange(1, 1_500 * MS), link.reset)

        def heal() -> None:
            for pair in pairs:
                world.network.heal(*pair)

        self.later(world.options.cut_ms, heal)
        return f"cut {kind}"

    def _reset(self) -> str:
        connections: list[object] = [*self.world.links, *self.world.connections]
        if not connections:
            return ""
        self.random.choice(connections).reset()  # type: ignore[attr-defined]
        return "reset"

    def _join(self) -> str:
        if len(self.world.machines) >= 9:
            return ""
        self.world.add_machine().start()
        return "join"

    def _leave(self) -> str:
        running = [p for p in self.world.running() if p.core is not None and not p.leaving]
        if len(running) <= max(3, self.world.options.copies):
            return ""
        self.random.choice(running).leave()
        return "leave"

    def _coordinator(self) -> str:
        coordination = self.world.coordination
        coordination.crash(self.random.choice(["", "before", "after"]))
        self.later(self.random.choice([20, 300, 2_000]), coordination.restart)
        return "coordinator"

    def _jump(self) -> str:
        machine = self.random.choice(self.world.machines)
        machine.clock.jump_ms += self.random.choice([-3_600_000, -1_000, 50, 1_000, 3_600_000])
        return "jump"

    # ---- what faults are made of

    def _slow_down(self, way: tuple[int, int]) -> None:
        slow = self.world.network.slow
        slow[way] = self.random.choice([5, 30, 100, 400]) * MS
        self.later(self.world.options.pause_ms, lambda: slow.pop(way, None))

    def _pause_now(self, process: NodeProcess) -> None:
        if self.on:
            process.pause(stale=self.random.random() < 0.5)
            self.later(self.world.options.pause_ms, process.resume)

    def _cut_for(self, mean_ms: float, way: tuple[int, int]) -> None:
        network = self.world.network
        network.cut(*way)
        self.later(mean_ms, partial(network.heal, *way))

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1
        self.world.schedule.trace(name)

    # ---- aiming

    def _aimed(self) -> NodeProcess | None:
        """The primary of some partition, in runs that aim at them."""
        if not self.world.options.aim or self.random.random() >= self.world.options.aim:
            return None
        return self._primary()

    def _primary(self) -> NodeProcess | None:
        entry = self.random.choice(self.world.coordination.state.table.entries)
        return self._alive(entry.primary)

    def _alive(self, copy: int) -> NodeProcess | None:
        process = self.world.processes.get(copy)
        return process if process is not None and not process.dead else None
