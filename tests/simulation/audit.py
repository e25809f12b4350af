"""What must be true, asked after every event, after every answer, and at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spacegrid._core import Node
from spacegrid.machine.table import PartitionEntry, State, Table, Tail

from .cuts import Cut
from .history import Call

if TYPE_CHECKING:
    from .node import NodeProcess
    from .run import World

PRIMARY, BACKUP, JOINING = 1, 2, 4
FOLLOWS = (1, 2, 3, 4)
"""Roles whose commit position is of the partition's one history."""


class Violation(Exception):
    """Something that must never be true was; the run ends."""


class Audit:
    """The checkers of one run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.commits: dict[tuple[int, int], int] = {}
        self._known: dict[tuple[int, int], tuple[int, int]] = {}
        self.lost: set[int] = set()
        #: Where partitions began again from disk, and what was committed behind that.
        self.cuts: dict[int, list[Cut]] = {}
        self._undone: dict[tuple[int, int], set[int]] = {}
        self.acknowledged = 0

    def violation(self, what: str) -> None:
        """Report what must not be."""
        raise Violation(f"at {self.world.schedule.now_us / 1e6:.6f} s: {what}")

    def event(self, core: Node) -> None:
        """After each event of a node: its invariants."""
        core.check()

    def committed(self, incarnation: int, core: Node) -> None:
        """Before a node says anything: what it calls committed is the same everywhere."""
        for row in core.roles():
            partition, role, _, _, epoch, sequence, _, _ = row
            if role not in FOLLOWS or not sequence:
                continue
            key = (incarnation, partition)
            known = self._known.get(key, (0, 0))
            if known == (epoch, sequence):
                continue
            if role == JOINING and self._of_before(incarnation, partition, (epoch, sequence)):
                continue
            self._known[key] = (epoch, sequence)
            if role == PRIMARY:
                self._held_by_all(incarnation, row)
            self._same_everywhere(incarnation, partition, (epoch, sequence))
            if known[1] and known[1] + 1 < sequence:
                for position in core.log_positions(partition, known[1] + 1, sequence - 1):
                    self._same_everywhere(incarnation, partition, position)

    def _of_before(self, incarnation: int, partition: int, position: tuple[int, int]) -> bool:
        """Whether a copy still has what it found on its disk, from behind a cut.

        It wipes that when its join begins; until then it is no part of the partition's history as
        it is now, and must be a part of what that was before the cut.
        """
        disk = self.world.processes[incarnation].machine.disk
        if disk is None or disk.loaded.get(partition) != position:
            return False
        return position[0] in self._undone.get((partition, position[1]), ())

    def _same_everywhere(self, incarnation: int, partition: int, position: tuple[int, int]) -> None:
        """A partition has one history: at one sequence everybody has committed the same record."""
        epoch, sequence = position
        known = self.commits.setdefault((partition, sequence), epoch)
        if known != epoch and partition not in self.lost:
            self.violation(
                f"partition {partition} has ({epoch}, {sequence}) committed at "
                f"{incarnation} and ({known}, {sequence}) elsewhere"
            )

    def _held_by_all(self, incarnation: int, row: tuple[int, ...]) -> None:
        """What a primary commits is with every copy that counts, as the table has it by now.

        A copy that the primary has asked to be counted counts from the asking, so the newest table
        of this epoch never names one that the primary need not have waited for.
        """
        partition, _, epoch, _, born, sequence, *_ = row
        entry = self.world.coordination.state.table.entries[partition]
        if entry.epoch != epoch or entry.primary != incarnation:
            return
        for copy in (*entry.in_sync, *(tail.copy for tail in entry.tails)):
            process = self.world.processes.get(copy)
            if copy == incarnation or process is None or process.dead or process.core is None:
                continue
            held = process.core.log_positions(partition, sequence, sequence)
            if held == [(born, sequence)]:
                continue
            ends = {end[0]: end[2] for end in process.core.log_ends()}
            # What it has committed it may have dropped from its log.
            if held or ends.get(partition, 0) < sequence:
                self.violation(
                    f"{incarnation} committed ({born}, {sequence}) of partition {partition}, of "
                    f"which {copy} has {held}, and goes up to {ends.get(partition)}: {entry}"
                )

    def primaries(self) -> None:
        """At this instant at most one node may answer for a partition: primary, under a lease.

        Not so where clocks stand still: there only writes and confirmed reads are right, and asked.
        """
        if self.world.options.freezes:
            return
        claims: dict[int, int] = {}
        for process in self.world.running():
            core, table = process.core, process.table
            if core is None or table is None or not process.may_answer():
                continue
            for partition, role, epoch, *_ in core.roles():
                if role != PRIMARY or table.entries[partition].target:
                    continue
                other = claims.setdefault(partition, process.incarnation)
                if other != process.incarnation:
                    self.violation(
                        f"{other} and {process.incarnation} (epoch {epoch}) may both answer for "
                        f"partition {partition}"
                    )

    def table_written(self, before: Table, after: Table) -> None:
        """After each write of the table: what it gives up must be gone."""
        for old, new in zip(before.entries, after.entries, strict=True):
            if old is new:
                continue
            self.world.schedule.trace(f"entry {new}")
            if new.state is State.LOST and old.state is not State.LOST:
                if self.reached(old):
                    self.violation(f"called lost with a former copy and its tail alive: {old}")
                self.lost.add(new.partition)
                self.world.lost_said(old, new)
            self._from_disk(old, new)
            self.world.faults.entry_changed(old, new)

    def _from_disk(self, old: PartitionEntry, new: PartitionEntry) -> None:
        """A partition is served again from disk: what those disks don't hold never was."""
        if new.state is not State.OK or not old.epoch:
            return
        if not {*old.members(), *old.former}.isdisjoint(new.in_sync):
            return
        if not self.world.dark_us:
            self.violation(f"begins again from disk while nobody had to: {old} -> {new}")
        stored = self.world.coordination.stored
        unbegun = [copy for copy in new.in_sync if copy not in stored]
        if unbegun:
            self.violation(f"{unbegun} are named for their disks and never began: {old} -> {new}")
        found = {
            (item.epoch, item.sequence)
            for copy in new.in_sync
            for item in stored[copy]
            if item.partition == new.partition
        }
        if len(found) != 1:
            self.violation(f"copies from disk are at {found}: {new}")
        cut = Cut(self.world.dark_us[-1], found.pop(), new.epoch)
        self.world.schedule.trace(f"partition {new.partition} goes back to {cut.position}")
        self.cuts.setdefault(new.partition, []).append(cut)
        for key in [k for k in self.commits if k[0] == new.partition and k[1] > cut.position[1]]:
            self._undone.setdefault(key, set()).add(self.commits.pop(key))
        written = self.world.database.position(new.partition)
        if written[1] > cut.position[1]:
            self.violation(f"the database is at {written}, ahead of the disks: {cut}")

    def answered(self, call: Call, copies: int) -> None:
        """After each definite answer."""
        self.acknowledged += 1
        if not copies and call.status == 0:
            self.violation(f"acknowledged with {copies} copies: {call}")

    def said_lost(self, call: Call) -> None:
        """A client was told that its partition is lost."""
        if not self.lost:
            self.violation(f"lost was said while nothing is: {call}")

    def reached(self, entry: PartitionEntry) -> bool:
        """Whether a former copy that is alive reaches to where a living tail's log begins.

        Together they have everything then, so that they must come to serve.
        """
        live = {process.incarnation: process for process in self.world.running()}
        return any(
            _reaches(live[copy], live[tail.copy], entry.partition, tail)
            for copy in entry.former
            for tail in entry.tails
            if copy in live and tail.copy in live
        )

    def waits_for_operator(self, partition: int) -> bool:
        """Whether a partition is rightly out of use for as long as nobody decides about it.

        The last complete copy is gone, and no former one reaches to where the log of a tail begins
        (PROTOCOL.md section 5, rule iii): what was acknowledged is not all there.
        """
        entry = self.world.coordination.state.table.entries[partition]
        live = {process.incarnation for process in self.world.running()}
        return (
            entry.state is State.UNAVAILABLE
            and live.isdisjoint(entry.in_sync)
            and not live.isdisjoint(entry.former)
            and any(tail.copy in live for tail in entry.tails)
            and not self.reached(entry)
        )

    def settled(self) -> str:
        """Empty when everything is served and in its place; else what is not."""
        world = self.world
        table = world.coordination.state.table
        live = {process.incarnation: process for process in world.running()}
        for entry in table.entries:
            if entry.state is State.LOST and entry.partition in self.lost:
                continue
            if self.waits_for_operator(entry.partition):
                continue
            if entry.state is not State.OK:
                return f"not served: {entry}"
            if len(entry.in_sync) < min(table.copies, len(live)) or entry.joining or entry.tails:
                return f"short of copies: {entry}"
            if entry.target or any(copy not in live for copy in entry.in_sync):
                return f"on its way: {entry}"
        for process in live.values():
            core = process.core
            if core is None or core.revision != table.revision:
                return f"{process.incarnation} does not know the table"
            if not core.idle():
                return f"{process.incarnation} is not idle"
            disk = process.machine.disk
            if disk is not None and not disk.flushed(core):
                return f"{process.incarnation} has not all on its disk"
        return self._positions(table, live) or self._readable(table, live)

    def _readable(self, table: Table, live: dict[int, NodeProcess]) -> str:
        """Whether the shared pump has been let read all that is committed, and has done so."""
        if not self.world.options.shared_sink:
            return ""
        for entry in table.entries:
            if entry.state is not State.OK:
                continue
            core = live[entry.primary].core
            assert core is not None
            commit = {row[0]: row[4:6] for row in core.roles()}[entry.partition]
            written = self.world.database.position(entry.partition)
            if not core.shared_may_read(entry.partition, commit[1]):
                return f"the shared pump may not read all up to {commit}: {entry}"
            if written != commit:
                return f"the shared pump is at {written}, not at {commit}: {entry}"
        return ""

    def _positions(self, table: Table, live: dict[int, NodeProcess]) -> str:
        for entry in table.entries:
            if entry.state is not State.OK:
                continue
            commits = set()
            for copy in entry.in_sync:
                rows = {row[0]: row for row in live[copy].core.roles()}  # type: ignore[union-attr]
                row = rows.get(entry.partition)
                if row is None or row[1] != (PRIMARY if copy == entry.primary else BACKUP):
                    return f"{copy} is not what the table says: {entry}, {row}"
                commits.add(row[4:6])
            if len(commits) != 1:
                return f"copies are at {commits}: {entry}"
        return ""

    def replicas_equal(self) -> None:
        """At the end: every copy of a partition holds the same entries and request results."""
        world = self.world
        live = {process.incarnation: process for process in world.running()}
        for entry in world.coordination.state.table.entries:
            if entry.state is not State.OK:
                continue
            first = _image(live[entry.primary].core, entry.partition)
            for copy in entry.in_sync:
                image = _image(live[copy].core, entry.partition)
                self._disk_equal(live[copy], entry.partition, image)
                for what, here, there in zip(
                    ("position", "entries", "results"), first, image, strict=True
                ):
                    if here != there:
                        self.violation(
                            f"{what} differ between {entry.primary} and {copy}: {entry}\n"
                            f"  {here!r:.2000}\n  {there!r:.2000}"
                        )

    def _disk_equal(self, process: NodeProcess, partition: int, image: tuple[Any, ...]) -> None:
        """A disk that has everything holds what its node's memory holds."""
        disk = process.machine.disk
        if disk is None:
            return
        copy = disk.durable[partition]
        stored = (copy.position, tuple(sorted(copy.entries.values())))
        if stored != image[:2]:
            self.violation(
                f"disk of {process.incarnation} differs in partition {partition}\n"
                f"  {stored!r:.2000}\n  {image!r:.2000}"
            )


def _reaches(former: NodeProcess, source: NodeProcess, partition: int, tail: Tail) -> bool:
    """Whether one log has, or has had, the position where the other begins, and is said to."""
    if former.core is None or source.core is None:
        return False
    here = former.core.log_positions(partition, 0, 1 << 40)
    there = source.core.log_positions(partition, 0, 1 << 40)
    begins = (there[0], (tail.from_epoch, tail.from_sequence))
    return all(position in here or position[1] < here[0][1] for position in begins)


def _image(core: Any, partition: int) -> tuple[Any, ...]:
    position, entries, after = core.snapshot(partition, b"", 1 << 30)
    assert not after
    return position, tuple(sorted(entries)), core.streams(partition)
