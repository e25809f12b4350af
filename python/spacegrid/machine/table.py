"""The ownership table: who holds which partition, and under which epoch.

One `PartitionEntry` a partition, one `Table` for the cluster. Both are frozen values: a change
makes a new one. A copy is named by its incarnation, the number that the coordinator gave to one
boot of one node, so a restarted node is new everywhere.

Invariants are numbered in docs/INVARIANTS.md and asserted by `Table.check` and `check_step`.

Who calls: machine/controller.py changes it, coordinator/ stores and carries it, node/ applies it to
the core. Source: PROTOCOL.md sections 1, 3, 5.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Container, Iterable, Mapping

import msgspec

from spacegrid.errors import invariant

__all__ = [
    "EPOCH_MAX",
    "CopyStore",
    "CoreEntry",
    "Joining",
    "PartitionEntry",
    "Registration",
    "State",
    "StoredPartition",
    "Table",
    "TableCounts",
    "Tail",
    "check_step",
    "core_entry",
    "new_table",
]

#: An epoch has 24 bits in an entry's version.
EPOCH_MAX = (1 << 24) - 1

#: What ``_core.Node.apply_table`` takes for one partition: partition, epoch, version, state,
#: primary, in_sync, former, joining (copy, session), tails (copy, session, from epoch, from
#: sequence), target.
CoreEntry = tuple[
    int,
    int,
    int,
    int,
    int,
    list[int],
    list[int],
    list[tuple[int, int]],
    list[tuple[int, int, int, int]],
    int,
]


class State(enum.IntEnum):
    """How it stands with a partition; the numbers are those of the wire and of the core."""

    #: It has a primary.
    OK = 1
    #: No primary yet: some of what is needed is there, and the rest is waited for. With a target,
    #: that former copy is being completed from the first tail.
    RECOVERING = 2
    #: No primary: nothing that could serve is there, and something that could may come back. A
    #: partition that was never placed is here too, at epoch 0.
    UNAVAILABLE = 3
    #: Every complete copy is known to be gone.
    LOST = 4


class Joining(msgspec.Struct, frozen=True, array_like=True):
    """A copy on its way in: it receives records and counts for nothing."""

    copy: int
    #: The version of the entry that listed this join; every message of it carries the number.
    session: int


class Tail(msgspec.Struct, frozen=True, array_like=True):
    """A copy that holds every record since a position, and waits for the snapshot of the rest."""

    copy: int
    session: int
    #: Position before the first record it was sent.
    from_epoch: int
    from_sequence: int
    #: The primary that sent it.
    predecessor: int


class StoredPartition(msgspec.Struct, frozen=True, array_like=True):
    """The position up to which a store holds a partition."""

    partition: int
    epoch: int
    sequence: int


class CopyStore(msgspec.Struct, frozen=True, array_like=True):
    """Where a copy keeps its data on disk, and what is known of its end."""

    copy: int
    #: 16 bytes.
    store: bytes
    #: True: its process ended without a clean stop, so the store is behind what it had in memory.
    crashed: bool = False
    #: Of the node that had it, for the operator who looks for it; empty: not known.
    name: str = ""


class Registration(msgspec.Struct, frozen=True):
    """A node that says it is there.

    Attributes:
        name: Node name, at most 255 bytes of UTF-8.
        address: host:port of the node.
        incarnation: Given by the coordinator, increasing from 1; 0 asks for a new one.
        pid: The node's process; its end ends the registration.
        store: Id of the node's local store (16 bytes), empty without one.
        draining: The node is leaving: what it holds is moved away.
        stored: What its store holds after a clean stop; empty after anything else.
        stopped: Said last before a clean end: the store holds all that the copy held.
        zone: What fails together with the node, at most 255 bytes; empty: it fails alone.
    """

    name: str
    address: str = ""
    incarnation: int = 0
    pid: int = 0
    store: bytes = b""
    draining: bool = False
    stored: tuple[StoredPartition, ...] = ()
    stopped: bool = False
    zone: str = ""


class PartitionEntry(msgspec.Struct, frozen=True, array_like=True):
    """Ownership of one partition.

    Attributes:
        partition: Its number.
        epoch: Plus one with each change of primary; 0 until it is placed.
        version: Plus one with any change.
        state: How it stands.
        primary: Incarnation of the primary; 0 exactly when the state is not OK.
        in_sync: Complete copies, the primary among them. Without a primary: the last ones.
        former: Complete copies removed while fewer than ``min_in_sync`` were left.
        joining: Copies on their way in.
        tails: Copies that hold every record since their start, and count for those.
        target: The complete copy that the primary is asked to hand over to; 0: none. While
            recovering: the former copy that takes the records of the first tail.
    """

    partition: int
    epoch: int = 0
    version: int = 0
    state: State = State.UNAVAILABLE
    primary: int = 0
    in_sync: tuple[int, ...] = ()
    former: tuple[int, ...] = ()
    joining: tuple[Joining, ...] = ()
    tails: tuple[Tail, ...] = ()
    target: int = 0

    def members(self) -> tuple[int, ...]:
        """Copies that hold or receive data: complete ones, then tails, then joining ones."""
        if not (self.tails or self.joining):
            return self.in_sync
        return (
            *self.in_sync,
            *(tail.copy for tail in self.tails),
            *(joining.copy for joining in self.joining),
        )

    def names(self, copy: int) -> bool:
        """Whether the copy holds or receives data here (a former copy no longer counts)."""
        return copy in self.members()

    def recovers(self) -> bool:
        """Whether a former copy, the target, is being completed from the first tail."""
        return self.state is State.RECOVERING and self.target != 0

    def check(self, min_in_sync: int) -> None:
        """Assert the invariants of one entry (T2 to T8, T12).

        Args:
            min_in_sync: Copies that a write needs.

        Raises:
            InvariantViolation: One does not hold; the message cites it and shows the entry.
        """
        members = (*self.members(), *self.former)
        sessions = [joining.session for joining in self.joining]
        sessions += [tail.session for tail in self.tails]
        _hold("T2", (self.primary != 0) == (self.state is State.OK), self)
        _hold("T3", self.primary == 0 or self.primary in self.in_sync, self)
        _hold("T4", len(set(members)) == len(members) and 0 not in members, self)
        _hold("T5", all(0 < session <= self.version for session in sessions), self)
        if self.recovers():
            _hold("T12", self.target in self.former and bool(self.tails), self)
        elif self.target:
            _hold("T6", self.target in self.in_sync and self.target != self.primary, self)
            _hold("T6", self.state is State.OK, self)
        _hold("T7", not self.former or len(self.in_sync) < min_in_sync, self)
        placed = self.epoch > 0
        _hold("T8", placed == bool(self.in_sync) and placed == (self.version > 0), self)
        _hold("T8", placed or self.state is State.UNAVAILABLE, self)
        _hold("T8", self.epoch <= EPOCH_MAX, self)


class TableCounts(msgspec.Struct, frozen=True):
    """What a person wants to know of a table.

    Attributes:
        primaries: Partitions that each copy is primary of.
        copies: Complete copies that each holds, as primary or not.
        under_replicated: Partitions with fewer complete copies than wanted.
        unserved: Partitions without a primary, lost ones among them.
        lost: Partitions that have lost every copy.
        unavailable: Placed once, and nothing that could serve is there; some of it may come back.
        recovering: Some of what could serve is there, the rest is waited for.
    """

    primaries: Mapping[int, int]
    copies: Mapping[int, int]
    under_replicated: int
    unserved: int
    lost: tuple[int, ...] = ()
    unavailable: tuple[int, ...] = ()
    recovering: tuple[int, ...] = ()


class Table(msgspec.Struct, frozen=True):
    """The whole ownership table at one revision.

    Attributes:
        revision: Plus one with each write.
        life: Id of the cluster (16 bytes): another life is another space.
        partition_count: Set when the space is created.
        copies: Complete copies wanted.
        min_in_sync: Complete copies and tails that a write needs; set when the space is created.
        entries: One a partition, in order.
        stores: Stores of the copies named in the entries, in order of copy.
        stopped: Between a clean stop of the whole cluster and the first write after the next start.
        nodes_expected: Nodes to wait for before partitions are placed for the first time.
    """

    revision: int
    life: bytes
    partition_count: int
    copies: int
    min_in_sync: int
    entries: tuple[PartitionEntry, ...]
    stores: tuple[CopyStore, ...] = ()
    stopped: bool = False
    nodes_expected: int = 1

    def apply(
        self,
        revision: int,
        entries: Iterable[PartitionEntry],
        *,
        stores: tuple[CopyStore, ...] | None = None,
        stopped: bool | None = None,
    ) -> Table:
        """The table after a change.

        Args:
            revision: The new revision, higher than this one.
            entries: Those that changed.
            stores: All stores, where they changed.
            stopped: The new mark, where it changed.

        Returns:
            A new table; this one stays.

        Raises:
            InvariantViolation: The revision does not grow.
            IndexError: An entry names a partition that does not exist.
        """
        invariant(revision > self.revision, "T1: revision {} after {}", revision, self.revision)
        changed = list(self.entries)
        for entry in entries:
            if not 0 <= entry.partition < self.partition_count:
                raise IndexError(
                    f"partition {entry.partition} is outside 0..{self.partition_count - 1}"
                )
            changed[entry.partition] = entry
        return msgspec.structs.replace(
            self,
            revision=revision,
            entries=tuple(changed),
            stores=self.stores if stores is None else stores,
            stopped=self.stopped if stopped is None else stopped,
        )

    def routes(self) -> tuple[int, ...]:
        """The primary's incarnation of each partition, 0 where there is none."""
        return tuple(entry.primary for entry in self.entries)

    def names(self, copy: int) -> bool:
        """Whether the copy holds or receives data that the cluster counts on.

        That is a partition that is served, or one that is not and that this copy may be the last
        complete one of, a former copy and a tail that completes it included. A node that drains can
        leave once it does not.
        """
        return any(
            entry.names(copy)
            if entry.state is State.OK
            else entry.state is not State.LOST and copy in (*entry.members(), *entry.former)
            for entry in self.entries
        )

    def served_without(self, copy: int, store: bytes, alive: Container[int]) -> set[int]:
        """Partitions that other nodes serve and of which this copy is no complete one.

        What the copy's store holds of these is of the past. It may be named a complete copy on the
        word of its registration, and then must have what it said that it has: where it was named
        already, and where the entry still has a copy of before that had the store, since those who
        serve it may have ended as well, and nobody has noticed yet.

        Args:
            copy: The copy that begins.
            store: Its store.
            alive: Nodes that are there.
        """
        before = {item.copy for item in self.stores if item.store == store} - {copy}
        return {
            entry.partition
            for entry in self.entries
            if entry.primary in alive
            and copy not in entry.in_sync
            and before.isdisjoint((*entry.members(), *entry.former))
        }

    def counts(self, alive: Container[int] | None = None) -> TableCounts:
        """Primaries and copies of each node, and what is not as it should be.

        Args:
            alive: Nodes that are there: between the end of a node and the next write of the table,
                this names it in vain. None: all that it names are there.
        """
        primaries: Counter[int] = Counter()
        copies: Counter[int] = Counter()
        under_replicated = unserved = 0
        without: dict[State, list[int]] = {state: [] for state in State}
        for entry in self.entries:
            if entry.state is State.OK:
                there = [copy for copy in entry.in_sync if alive is None or copy in alive]
                primaries[entry.primary] += 1
                copies.update(there)
                under_replicated += len(there) < self.copies
                unserved += entry.primary not in there
            else:
                unserved += 1
                under_replicated += 1
                if entry.epoch:
                    without[entry.state].append(entry.partition)
        return TableCounts(
            primaries,
            copies,
            under_replicated,
            unserved,
            lost=tuple(without[State.LOST]),
            unavailable=tuple(without[State.UNAVAILABLE]),
            recovering=tuple(without[State.RECOVERING]),
        )

    def check(self) -> None:
        """Assert the invariants of the table (T1 to T8); for tests, and after a table was read.

        Raises:
            InvariantViolation: One does not hold.

        Cost: one pass over the entries.
        """
        invariant(len(self.life) == 16, "T1: life has {} bytes, 16 expected", len(self.life))
        invariant(
            len(self.entries) == self.partition_count,
            "T1: {} entries for {} partitions",
            len(self.entries),
            self.partition_count,
        )
        for index, entry in enumerate(self.entries):
            invariant(entry.partition == index, "T1: entry {} says {}", index, entry.partition)
            entry.check(self.min_in_sync)


def new_table(
    life: bytes, *, partition_count: int, copies: int, min_in_sync: int, nodes_expected: int = 1
) -> Table:
    """The first table of a new space: nothing is placed yet.

    Args:
        life: Id of the cluster, 16 bytes.
        partition_count: Number of partitions, for the life of the space.
        copies: Complete copies wanted.
        min_in_sync: Copies that a write needs, at most ``copies``.
        nodes_expected: Nodes to wait for before the first placement.
    """
    entries = tuple(PartitionEntry(partition) for partition in range(partition_count))
    return Table(
        revision=1,
        life=life,
        partition_count=partition_count,
        copies=copies,
        min_in_sync=min_in_sync,
        entries=entries,
        nodes_expected=nodes_expected,
    )


def core_entry(entry: PartitionEntry) -> CoreEntry:
    """The entry as ``_core.Node.apply_table`` takes it."""
    return (
        entry.partition,
        entry.epoch,
        entry.version,
        int(entry.state),
        entry.primary,
        list(entry.in_sync),
        list(entry.former),
        [(joining.copy, joining.session) for joining in entry.joining],
        [(tail.copy, tail.session, tail.from_epoch, tail.from_sequence) for tail in entry.tails],
        entry.target,
    )


def check_step(before: PartitionEntry, after: PartitionEntry) -> None:
    """Assert what must be true of one change of an entry (T9 to T12).

    Args:
        before: The entry as it was.
        after: The same partition's entry after one write.

    Raises:
        InvariantViolation: One does not hold.
    """
    if before == after:
        return
    _hold("T9", after.version == before.version + 1, after)
    _hold("T9", after.epoch >= before.epoch, after)
    if after.primary not in (0, before.primary):
        _hold("T9", after.epoch > before.epoch, after)
    if after.recovers():
        _hold("T12", after.epoch > before.epoch, after)
    if before.state is not State.OK or before.primary == 0:
        return
    complete = {*before.in_sync, *before.former}
    boots = {*complete, *before.members()}
    if after.in_sync and min(after.in_sync) > max(boots) and not after.tails:
        # All copies are of later boots than all that were named: a restart from stores.
        return
    if after.primary not in (0, before.primary):
        # A tail only where no older copy is left, and then by T11: its snapshot was complete.
        older = complete & {*after.in_sync}
        _hold("T10", after.primary in complete or not older, after)
    grown = [copy for copy in after.in_sync if copy not in complete]
    _hold("T11", all(any(tail.copy == copy for tail in before.tails) for copy in grown), after)


def _hold(number: str, condition: bool, entry: PartitionEntry) -> None:
    invariant(condition, "{} does not hold: {}", number, entry)
