"""Faults that end all nodes at once, who all come back with their disks.

What counts then is whose disks are asked, and what those of them have that was persisted last. So
some strike just after a copy was taken out, which stands still and whose disk is behind, or just
after one came in.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from spacegrid.machine.table import State

from .faults import Faults
from .schedule import MS, SECOND

if TYPE_CHECKING:
    from spacegrid.machine.table import PartitionEntry

    from .machine import Machine
    from .node import NodeProcess


class BlackoutFaults(Faults):
    """Those faults."""

    def _blackout(self) -> str:
        """Every node ends at once, often just after another one; all come back with their disks."""
        if not self._all_served():
            return ""
        if self.random.random() < self.world.options.removals:
            return self._remove()
        if self.random.random() < 0.6:
            # Often the one that decided what is persisted: then its disk is not asked.
            primary = self._primary() if self.random.random() < 0.7 else None
            machine = primary.machine if primary is not None else self._victim()
            if machine is not None and self.safe(machine):
                self._crash_now(machine)
        wait_ms = self.random.choice([0, 3, 30, 150])
        self.world.schedule.after(wait_ms * MS, self._go_dark, 200)
        return "blackout"

    def _remove(self) -> str:
        """A backup stands still; when it has been taken out all of them end."""
        world, random = self.world, self.random
        entry = random.choice(world.coordination.state.table.entries)
        backups = [self._alive(copy) for copy in entry.in_sync if copy != entry.primary]
        victims = [process for process in backups if process is not None]
        if not victims:
            return ""
        victim = random.choice(victims)
        victim.pause(stale=False)
        world.schedule.after(4 * SECOND, victim.resume)
        world.schedule.after(500 * MS, self._await_removal, entry.partition, victim, 100)
        return "blackout after removal"

    def _await_removal(self, partition: int, victim: NodeProcess, looks: int) -> None:
        entry = self.world.coordination.state.table.entries[partition]
        if not self.on or not looks or victim.dead:
            return
        if victim.incarnation in entry.in_sync:
            self.world.schedule.after(10 * MS, self._await_removal, partition, victim, looks - 1)
            return
        # Until then what waited for its disk goes on. It does nothing any more, and ends last.
        delay = self.random.uniform(20, 200) * MS
        self.world.schedule.after(delay, self._go_dark, 200, victim)

    def _darken(self, before: PartitionEntry, after: PartitionEntry) -> None:
        """A copy has come in: the primary ends, and as soon as that is known all end."""
        tails = {tail.copy for tail in before.tails}
        primary = self._alive(after.primary)
        if tails.isdisjoint(after.in_sync) or primary is None or not self._all_served():
            return
        if self.safe(primary.machine):
            self._crash_now(primary.machine)
            self.world.schedule.after(0, self._go_dark, 200)
            self._count("blackout after join")

    def _all_served(self) -> bool:
        """Whether no copy of before is waited for: in a second blackout an operator decides."""
        live = {process.incarnation for process in self.world.running()}
        entries = self.world.coordination.state.table.entries
        return all(entry.state is State.OK and live.issuperset(entry.in_sync) for entry in entries)

    def _go_dark(self, tries: int, last: NodeProcess | None = None) -> None:
        if not self.on or tries == 0:
            return
        if not self._all_served():
            self.world.schedule.after(5 * MS, self._go_dark, tries - 1, last)
            return
        world = self.world
        world.schedule.trace("blackout")
        world.dark_us.append(world.schedule.now_us)
        if last is not None:
            last.pause(stale=False, for_good=True)
        for machine in world.machines:
            if last is not None and machine.process is last:
                self.later(100, partial(self._end, machine))
            else:
                self._end(machine)

    def _end(self, machine: Machine) -> None:
        if not self.on:
            return
        machine.crash()
        # Some are back before the coordinator has noticed that all have ended.
        self.later(self.random.choice([1, 100]), machine.start)
