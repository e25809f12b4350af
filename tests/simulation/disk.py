"""A machine's disk: a store as LMDB keeps it, written by the real pump, and what a crash leaves.

`spacegrid.pump.pump` decides what is written and when, and what the core is told; here are only the
store and its time. A transaction takes a drawn time until it is fsynced, and nothing counts before.
A crash leaves the transactions that were fsynced, and perhaps the one that was under way: LMDB
never leaves half of one. Whoever is paused finds it done when it goes on, as a thread would.

One difference: the pump's round is not stopped at its first transaction, so a round's cursors move
at its beginning. Nothing is reported as persisted before it is, and the next round waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spacegrid import _core
from spacegrid.machine.table import StoredPartition, Table
from spacegrid.pump.pump import Pump
from spacegrid.sink.base import Entry, Part, Position, Resync, Written

from .schedule import MS, SECOND

if TYPE_CHECKING:
    from .machine import Machine
    from .node import NodeProcess

FSYNC_US_MIN = 50
SLOW_FSYNC_MS = 400.0
LOAD_ENTRIES = 7
"""So few, so that copies are loaded in several calls."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A partition in a store."""

    position: Position = (0, 0)
    entries: Mapping[tuple[str, bytes], Entry] = field(default_factory=dict)
    results: bytes = b""


class Disk:
    """One machine's disk; as a `LocalSink`, the store on it.

    Attributes:
        store: Id of the store.
        durable: What a loss of power leaves.
        loaded: Where the copies are at that the process found when it began.
    """

    fenced = False
    batch_records = 10_000

    def __init__(self, machine: Machine) -> None:
        options = machine.world.options
        self.name = f"disk of {machine.name}"
        self.interval_s = options.write_ms / 1000
        self.durable: dict[int, Copy] = {}
        self.loaded: dict[int, Position] = {}
        self._dormant: set[int] = set()
        self._schedule = machine.world.schedule
        self._random = self._schedule.random(self.name)
        # Some disks are much slower than the others, so that copies are on some of them only.
        slow = options.slow_disks and self._random.random() < options.slow_disks
        self._fsync_ms = min(SLOW_FSYNC_MS, 20 * options.fsync_ms) if slow else options.fsync_ms
        self._place, self._serial, self.store = machine.place, 0, b""
        self._written: dict[int, Copy] = {}
        self._queue: deque[dict[int, Copy | None]] = deque()
        self._process: NodeProcess | None = None
        self._pump: Pump | None = None
        self._due_us = 0
        self.replace()

    # ---- life

    def replace(self) -> None:
        """Put an empty disk in."""
        self._serial += 1
        self.store = b"%08d%08d" % (self._place, self._serial)
        self.durable, self._written = {}, {}

    def stored(self) -> tuple[StoredPartition, ...]:
        """What a node says that it has found when it registers."""
        return tuple(
            StoredPartition(partition=partition, epoch=copy.position[0], sequence=copy.position[1])
            for partition, copy in sorted(self.durable.items())
        )

    def start(self, process: NodeProcess, core: _core.Node, table: Table) -> None:
        """Load the core from what is here, as node/store.py does, and begin to pump."""
        self.loaded = {}
        past = table.served_without(process.incarnation, self.store, process.registrations)
        for partition, copy in sorted(self.durable.items()):
            if partition in past:
                continue
            self.loaded[partition] = copy.position
            entries = list(copy.entries.values())
            for first in range(0, len(entries), LOAD_ENTRIES):
                part = entries[first : first + LOAD_ENTRIES]
                core.load(partition, *copy.position, part, b"", False)
            core.load(partition, *copy.position, [], copy.results, True)
        self._dormant = set(self.loaded)
        self._process = process
        self._pump = Pump(core, self, name="local", clock=lambda: process.clock.boot_ms() / 1000)
        self._due_us = 0

    def forget_past(self, table: Table) -> None:
        """After a table: forget what was loaded and others have gone on without."""
        process = self._process
        if process is None or process.core is None or not self._dormant:
            return
        copy = process.incarnation
        past = self._dormant & table.served_without(copy, self.store, process.registrations)
        for partition in past:
            process.core.unload(partition)
        self._dormant -= past | {p for p in self._dormant if copy in table.entries[p].in_sync}

    def process_ended(self) -> None:
        """The process, and with it what was not synced, is gone; one transaction perhaps is not."""
        if self._queue and self._random.random() < 0.5:
            self._settle(self._queue[0])
        self._queue = deque()
        self._written = dict(self.durable)
        self._process = self._pump = None

    # ---- the pump's thread

    def pump(self, *, asked: bool = False) -> None:
        """Let the pump have its round if it is due, or if an answer waits for the disk."""
        pump, process = self._pump, self._process
        if pump is None or process is None:
            return
        pump._asked = pump._asked or asked
        if self._queue or not (pump._asked or self._schedule.now_us >= self._due_us):
            return
        wait_s = pump._attempt()
        if pump._error:
            process.world.audit.violation(f"{self.name}: {pump._error}")
        self._due_us = self._schedule.now_us + int(wait_s * SECOND)

    def flushed(self, core: _core.Node) -> bool:
        """Whether all that is committed in the core is synced."""
        if self._queue or self._pump is None:
            return False
        plan = self._pump._plan
        return set(plan.targets(core.roles())) == set(plan.taken) and not plan.missing(
            plan.targets(core.roles())
        )

    # ---- transactions

    def _transact(self, changes: dict[int, Copy | None]) -> None:
        for partition, copy in changes.items():
            if copy is None:
                self._written.pop(partition, None)
            else:
                self._written[partition] = copy
        self._queue.append(changes)
        if len(self._queue) == 1:
            self._begin()

    def _begin(self) -> None:
        took_us = FSYNC_US_MIN + int(self._random.expovariate(1 / self._fsync_ms) * MS)
        self._schedule.after(took_us, self._synced, self._queue)

    def _synced(self, queue: deque[dict[int, Copy | None]]) -> None:
        if queue is not self._queue:
            return  # the process ended before
        changes = queue.popleft()
        self._settle(changes)
        process = self._process
        assert process is not None
        if queue:
            self._begin()
        process.do(self._report, process, changes)

    def _settle(self, changes: dict[int, Copy | None]) -> None:
        for partition, copy in changes.items():
            if copy is None:
                self.durable.pop(partition, None)
            else:
                self.durable[partition] = copy

    def _report(self, process: NodeProcess, changes: dict[int, Copy | None]) -> None:
        assert process.core is not None
        for partition, copy in changes.items():
            if copy is not None:
                process.core.set_persisted(partition, *copy.position)
        self.pump()

    # ---- LocalSink

    def open(self) -> None:
        """Nothing to do."""

    def take(self, wanted: Mapping[int, int]) -> dict[int, Position | None]:
        """Where each partition is at."""
        known = {partition: self._written.get(partition) for partition in wanted}
        return {partition: copy.position if copy else None for partition, copy in known.items()}

    def begin(self, partitions: Sequence[int]) -> None:
        """Note that these are empty so far."""
        self._transact({partition: Copy() for partition in partitions})

    def persisted(self, partition: int) -> Position | None:
        """Where a partition is at, once nothing of it is under way."""
        if any(partition in changes for changes in self._queue):
            return None
        copy = self.durable.get(partition)
        return copy.position if copy is not None else None

    def let_go(self, partitions: Sequence[int], *, gone: bool) -> None:
        """Delete copies that left."""
        if gone and partitions:
            self._transact(dict.fromkeys(partitions))

    def write(self, parts: Sequence[Part]) -> Written:
        """Write a batch; it counts once it is synced."""
        written = Written()
        changes: dict[int, Copy | None] = {}
        for part in parts:
            known = self._written.get(part.partition, Copy())
            if known.position != part.after:
                written.moved[part.partition] = known.position
                continue
            entries = dict(known.entries)
            for change in part.changes:
                key = (change[0], change[2])
                entries.pop(key, None)
                if change[3] is not None:
                    entries[key] = (*change[:3], change[3], *change[4:7])
            changes[part.partition] = Copy(part.last, entries, part.results)
            written.rows += len(part.changes)
        if changes:
            self._transact(changes)
        return written

    def resync(self, resyncs: Sequence[Resync]) -> Written:
        """Replace copies, all in one transaction."""
        changes: dict[int, Copy | None] = {}
        for resync in resyncs:
            entries = _by_key(entry for chunk in resync.chunks for entry in chunk)
            changes[resync.partition] = Copy(resync.position, entries, resync.results())
        if changes:
            self._transact(changes)
        return Written()

    def sync(self) -> None:
        """The pump's flush; here `flushed` says it."""

    def close(self) -> None:
        """Nothing to do."""


def _by_key(entries: Iterable[Entry]) -> dict[tuple[str, bytes], Entry]:
    return {(entry[0], entry[2]): entry for entry in entries}
