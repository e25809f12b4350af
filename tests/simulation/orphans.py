"""Faults around the last complete copy: it ends, or falls silent, while others nearly have it all.

Beside it are a copy that was taken out and one or two on their way in. Together those may have
everything (PROTOCOL.md section 5, rule iii), or have it no more: where the log of what is left on
its way in begins after the end of the other's, or where nothing is left on its way in at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .faults import Faults
from .schedule import MS, SECOND

if TYPE_CHECKING:
    from spacegrid.machine.table import PartitionEntry

    from .machine import Machine
    from .node import NodeProcess
    from .run import World

LOOK_US = 50 * MS
LOOKS_MAX = 100
"""How often the table is looked at until the copies are as an orphan's should be."""


@dataclass(slots=True)
class Orphan:
    """A partition that is about to be one.

    Attributes:
        partition: Which one.
        end: `whole`: the last complete copy ends. `short`: with two copies on their way in the
            older one ends before it. `widow`: all of those end, and it falls silent.
        primary: The last complete copy.
        former: The one that was taken out, and stands still until then.
        spare: Where the second copy on its way in begins, late.
        looks: How often to look yet.
    """

    partition: int
    end: str
    primary: NodeProcess
    former: NodeProcess
    spare: Machine | None = None
    looks: int = LOOKS_MAX


class OrphanFaults(Faults):
    """Those faults; `leaning.py` has the others."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        #: Partitions that are made orphans now, or were a moment ago.
        self._under_way: set[int] = set()

    def _orphan(self) -> str:
        """A partition is left with one complete copy, one that was taken out, and what joins."""
        world, random = self.world, self.random
        entry = random.choice(world.coordination.state.table.entries)
        primary = self._alive(entry.primary)
        others = [self._alive(copy) for copy in entry.in_sync if copy != entry.primary]
        backups = [process for process in others if process is not None]
        under_way = entry.partition in self._under_way or entry.tails or entry.former
        if primary is None or not backups or under_way:
            return ""
        former = random.choice(backups)
        ends = ["whole", "short", "short", "widow"] if len(backups) > 1 else ["whole", "widow"]
        orphan = Orphan(entry.partition, random.choice(ends), primary, former)
        former.pause(stale=False)
        for machine in [process.machine for process in backups if process is not former]:
            if self.safe(machine):
                machine.crash()
                if orphan.end == "short":
                    orphan.spare = machine
                else:
                    world.schedule.after(random.uniform(1, 2.5) * SECOND, machine.start)
        self._under_way.add(entry.partition)
        self._look(orphan)
        return "orphan"

    def _look(self, orphan: Orphan) -> None:
        """Wait for the copies on their way in, then let it end."""
        entry = self.world.coordination.state.table.entries[orphan.partition]
        after = self.world.schedule.after
        if not self.on or not orphan.looks or entry.primary != orphan.primary.incarnation:
            self._over(orphan)
            orphan.former.resume()
            return
        orphan.looks -= 1
        tails = self._tails(entry)
        tails_min = 2 if orphan.end == "short" and orphan.spare is None else 1
        if orphan.former.incarnation not in entry.former or len(tails) < tails_min:
            after(LOOK_US, self._look, orphan)
        elif orphan.end == "whole":
            delay = self.random.choice([1, 30, 300]) * self.random.random() * MS
            after(delay, self._end_last, orphan)
            orphan.former.resume()
        elif orphan.end == "widow":
            # Until then records are committed with the tails, and without the former copy.
            after(self.random.uniform(200, 600) * MS, self._widow, orphan)
        elif orphan.spare is not None:
            # Its log begins after the former copy's end.
            after(self.random.uniform(200, 600) * MS, orphan.spare.start)
            orphan.spare = None
            after(LOOK_US, self._look, orphan)
        else:
            self._crash_now(tails[0].machine)
            orphan.end = "whole"
            after(300 * MS, self._look, orphan)

    def _over(self, orphan: Orphan) -> None:
        # What the last complete copy alone had persisted its heir has in memory at first, and on
        # its disk a while later (docs/RELIABILITY.md, known limits).
        self.world.schedule.after(3 * SECOND, self._under_way.discard, orphan.partition)
        if orphan.spare is not None:
            orphan.spare.start()

    def _tails(self, entry: PartitionEntry) -> list[NodeProcess]:
        tails = [self._alive(tail.copy) for tail in entry.tails]
        return [process for process in tails if process is not None]

    def _end_last(self, orphan: Orphan) -> None:
        """The last complete copy ends.

        Where there are disks its own would be left for an operator to decide about, so there it
        ends only beside what may go on without it.
        """
        self._over(orphan)
        entry = self.world.coordination.state.table.entries[orphan.partition]
        left = self._tails(entry) and any(self._alive(copy) for copy in entry.former)
        if self.on and not orphan.primary.dead and (self.world.options.both_copies or left):
            self._crash_now(orphan.primary.machine)
            self._count("orphan bereave")

    def _widow(self, orphan: Orphan) -> None:
        """All tails end and the last complete copy falls silent; the former one comes back."""
        self._over(orphan)
        if self.on:
            entry = self.world.coordination.state.table.entries[orphan.partition]
            for tail in self._tails(entry):
                self._crash_if_safe(tail.machine)
            self._count("orphan widow")
        self._fall_silent(orphan.primary, [orphan.former])

    def _bereave(self, primary: NodeProcess, copy: int, former: list[NodeProcess]) -> None:
        """The tail ends and the primary falls silent for long; the former copies come back."""
        tail = self._alive(copy)
        if self.on and tail is not None:
            self._crash_if_safe(tail.machine)
            self._fall_silent(primary, former)
            self._count("ambush bereave")

    def _fall_silent(self, primary: NodeProcess, former: list[NodeProcess]) -> None:
        schedule, random = self.world.schedule, self.random
        if self.on:
            primary.pause(stale=random.random() < 0.5)
            schedule.after(random.uniform(2, 4) * SECOND, primary.resume)
        for process in former:
            schedule.after(random.uniform(0.2, 1.5) * SECOND, process.resume)
