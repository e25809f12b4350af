"""A node falls silent and stays registered, as a killed one does with etcd for nine seconds.

The controller alone, in scripted time: every write takes a while, primaries ask for what theirs
would, and nothing may wait for the registration to end.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from spacegrid.machine.controller import Controller
from spacegrid.machine.events import (
    BecameController,
    Change,
    ChangeKind,
    ChangesRequested,
    ConfirmTerm,
    ControllerChanged,
    ControllerEvent,
    Heartbeat,
    TermConfirmed,
    Ticked,
    WriteDone,
    WriteTable,
)
from spacegrid.machine.leases import FRESH_WAIT_MS, HEARTBEAT_MS
from spacegrid.machine.table import PartitionEntry, Registration, State, Table

TERM, LEADER = 7, 1
PARTITIONS = 24
STEP_MS = 5
WRITE_MS = 60
"""From a decision until the table is written and heard of: three members of an etcd that fsync."""
JOIN_MS = 20
"""From a table until its primaries ask for what follows."""
SHRINK_MS = 1_000
"""After this long a primary asks for the removal of a copy that owes it something."""


class Cluster:
    """The controller, the coordinator's answers, and what primaries ask for."""

    def __init__(self, nodes: int) -> None:
        self.now_ms = 0
        self.silent: set[int] = set()
        #: Copies that, once they are a tail, owe their primaries an answer for ever.
        self.stuck: set[int] = set()
        self.nodes = tuple(
            Registration(name=f"node-{number}", incarnation=number)
            for number in range(1, nodes + 1)
        )
        entries = []
        for partition in range(PARTITIONS):
            first = partition % nodes
            second = (first + 1 + partition // nodes % (nodes - 1)) % nodes
            copies = (first + 1, second + 1)
            entries.append(PartitionEntry(partition, 3, 9, State.OK, copies[0], copies))
        self.table = Table(5, bytes(16), PARTITIONS, 2, 2, tuple(entries))
        self.controller = Controller()
        self._write: tuple[int, WriteTable] | None = None
        self._changed_ms = dict.fromkeys(range(PARTITIONS), 0)
        self.handle(BecameController(self.table, self.nodes, TERM))
        self.pass_ms(2 * FRESH_WAIT_MS)
        assert all(self.whole(entry) for entry in self.table.entries)

    def handle(self, event: ControllerEvent) -> None:
        for effect in self.controller.handle(event, self.now_ms):
            if isinstance(effect, ConfirmTerm):
                held = ControllerChanged(LEADER, TERM)
                self.controller.handle(TermConfirmed(effect.number, held), self.now_ms)
            elif isinstance(effect, WriteTable):
                assert self._write is None
                self._write = self.now_ms + WRITE_MS, effect
        self.controller.check()

    def pass_ms(self, milliseconds: int) -> None:
        until_ms = self.now_ms + milliseconds
        while self.now_ms < until_ms:
            self.now_ms += STEP_MS
            self._step()

    def until(self, condition: Callable[[PartitionEntry], bool], within_ms: int) -> int:
        """Let time pass until it holds of every partition; how long that was."""
        since_ms = self.now_ms
        while not all(condition(entry) for entry in self.table.entries):
            assert self.now_ms < since_ms + within_ms, [
                entry for entry in self.table.entries if not condition(entry)
            ][:3]
            self.pass_ms(STEP_MS)
        return self.now_ms - since_ms

    def _step(self) -> None:
        if self._write is not None and self.now_ms >= self._write[0]:
            (_, write), self._write = self._write, None
            self.table = self.table.apply(write.expected_revision + 1, write.entries)
            for entry in write.entries:
                self._changed_ms[entry.partition] = self.now_ms
            self.handle(WriteDone(self.table.revision))
        if self.now_ms % HEARTBEAT_MS == 0:
            for item in self.nodes:
                if item.incarnation not in self.silent:
                    self.handle(Heartbeat(item.incarnation, self.now_ms, (self.now_ms,) * 3))
        due_ms = self.controller.next_deadline_ms()
        if due_ms is not None and self.now_ms >= due_ms:
            self.handle(Ticked())
        for sender in (item.incarnation for item in self.nodes):
            if sender not in self.silent and (asked := self._asked(sender)):
                self.handle(ChangesRequested(tuple(asked), sender))

    def _asked(self, sender: int) -> list[Change]:
        """What a node's primaries ask for now."""
        asked = []
        for entry in self.table.entries:
            age_ms = self.now_ms - self._changed_ms[entry.partition]
            if entry.primary == sender and age_ms >= JOIN_MS and not (age_ms - JOIN_MS) % 100:
                asked += self._wanted(entry, age_ms)
        return asked

    def _wanted(self, entry: PartitionEntry, age_ms: int) -> list[Change]:
        wanted = [
            (ChangeKind.TAIL, item.copy) for item in entry.joining if item.copy not in self.silent
        ]
        for tail in entry.tails:
            if tail.copy in self.stuck:
                wanted += [(ChangeKind.SHRINK, tail.copy)] * (age_ms >= SHRINK_MS)
            elif tail.copy not in self.silent:
                wanted.append((ChangeKind.IN_SYNC, tail.copy))
        if entry.target:
            wanted.append((ChangeKind.STOPPED, entry.target))
        return [
            Change(entry.partition, entry.epoch, entry.version, kind, copy, entry.epoch, 1)
            for kind, copy in wanted
        ]

    def writable(self, entry: PartitionEntry) -> bool:
        """Whether the partition takes writes: its primary is there, and so is all that counts."""
        counted = {*entry.in_sync, *(tail.copy for tail in entry.tails)}
        return (
            entry.state is State.OK
            and len(counted) >= self.table.min_in_sync
            and counted.isdisjoint(self.silent)
            and not entry.target
        )

    def whole(self, entry: PartitionEntry) -> bool:
        """Whether it has all its copies besides."""
        return self.writable(entry) and len(entry.in_sync) == self.table.copies


@pytest.mark.parametrize("nodes", [3, 5])
@pytest.mark.parametrize("phase_ms", [0, 35, 95])
def test_nothing_waits_for_the_registration_of_a_silent_node(nodes: int, phase_ms: int) -> None:
    cluster = Cluster(nodes)
    cluster.pass_ms(phase_ms)
    cluster.silent.add(2)
    took_ms = cluster.until(cluster.writable, 800)
    took_ms += cluster.until(cluster.whole, 1_100 - took_ms)
    cluster.pass_ms(10_000)
    assert all(cluster.whole(entry) for entry in cluster.table.entries), "and it stays so"
    assert {item.incarnation for item in cluster.nodes} >= {2}, "it was registered all the while"


def test_the_only_copy_that_is_left_is_taken_again_although_it_was_not_reached() -> None:
    """Node 3 becomes a tail, owes its primaries answers, is removed, and answers again."""
    cluster = Cluster(3)
    cluster.silent.add(2)
    cluster.stuck.add(3)
    cluster.pass_ms(800 + SHRINK_MS + 4 * WRITE_MS)
    cluster.stuck.clear()
    cluster.until(cluster.writable, 5 * WRITE_MS)
    cluster.until(cluster.whole, 5 * WRITE_MS)
