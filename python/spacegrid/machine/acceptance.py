"""What an operator may decide when a partition's last complete copies are not all there.

PROTOCOL.md section 5, ways out of lost: accept the longest copy that is there, begin empty, or go
on from what a node has read out of the shared sink. Each is a compare-and-set on the version that
the operator saw, waits until every lease of a copy that the entry names is over (`waits_for`), and
begins a new epoch.

Who calls: machine/controller.py; node/ lists the copies for the operator.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from spacegrid.machine.draft import Draft, Nodes
from spacegrid.machine.table import (
    EPOCH_MAX,
    CopyStore,
    PartitionEntry,
    Registration,
    State,
    StoredPartition,
)

__all__ = ["Choice", "DiskCopy", "How", "accept", "copies_on_disk", "waits_for", "why_not"]


class How(enum.IntEnum):
    """How a partition begins again."""

    #: From the highest position among the copies that are there.
    LONGEST = 1
    #: With nothing.
    EMPTY = 2
    #: From what a node has read out of the shared sink.
    RELOADED = 3


class Choice(msgspec.Struct, frozen=True):
    """An operator's decision about one partition."""

    partition: int
    #: The version of the entry that the operator saw.
    version: int
    how: How
    #: For RELOADED: the node that has it now, and the epoch under which the sink was written last.
    copy: int = 0
    epoch: int = 0


class DiskCopy(msgspec.Struct, frozen=True):
    """A last complete copy, and what is known of its store.

    Attributes:
        copy: Its incarnation.
        store: Its store's id; empty: it had none.
        node: The node that has the store open now; None: nobody.
        position: What that node found in it; None: not the partition.
    """

    copy: int
    store: bytes
    node: Registration | None
    position: StoredPartition | None

    @property
    def missing(self) -> bool:
        """Whether it may still come back."""
        return bool(self.store) and self.node is None


def copies_on_disk(
    entry: PartitionEntry, stores: Mapping[int, CopyStore], nodes: Nodes
) -> tuple[DiskCopy, ...]:
    """The last complete copies of a partition, with what their stores hold now."""
    found = []
    for copy in dict.fromkeys((*entry.in_sync, *entry.former)):
        known = stores.get(copy)
        if known is None:
            found.append(DiskCopy(copy, b"", None, None))
            continue
        node = nodes.with_store(known.store)
        if node is not None and node.incarnation == copy:
            node = None
        position = nodes.stored(known.store, entry.partition) if node is not None else None
        found.append(DiskCopy(copy, known.store, node, position))
    return tuple(found)


def why_not(draft: Draft, choice: Choice) -> str:
    """Why a decision can't be carried out; empty when it can."""
    if not 0 <= choice.partition < draft.table.partition_count:
        return f"there is no partition {choice.partition}"
    entry = draft.table.entries[choice.partition]
    if entry.version != choice.version:
        return f"it changed meanwhile: version {entry.version}, not {choice.version}"
    if entry.state is State.OK:
        return "it is served"
    if entry.epoch == 0:
        return "it was never placed: it begins by itself"
    if choice.how is How.LONGEST and not _longest(draft, entry):
        return "no copy of it is there; what is left is to begin empty"
    without = _without(draft, entry)
    if choice.how is How.EMPTY and not without:
        return "every node that is there still has a copy; accept the longest"
    if choice.how is How.RELOADED and choice.copy not in without:
        return "the node that would have it leaves, has ended, or has a copy already"
    if _last_epoch(draft, entry, choice) >= EPOCH_MAX:
        return f"it is at the last epoch, {EPOCH_MAX}"
    return ""


def waits_for(draft: Draft, choice: Choice) -> frozenset[int]:
    """Copies of a partition that may still be answering: the decision waits for them."""
    if not 0 <= choice.partition < draft.table.partition_count:
        return frozenset()
    entry = draft.table.entries[choice.partition]
    named = {*entry.members(), *entry.former}
    return frozenset(copy for copy in named if draft.answering(copy))


def accept(draft: Draft, choice: Choice) -> bool:
    """Carry out a decision; False when it can't be."""
    if why_not(draft, choice):
        return False
    entry = draft.table.entries[choice.partition]
    if choice.how is How.LONGEST:
        in_sync = _longest(draft, entry)
    elif choice.how is How.RELOADED:
        in_sync = (choice.copy,)
    else:
        in_sync = (draft.least_busy(_without(draft, entry)),)
    draft.serve(
        choice.partition,
        draft.least_busy(in_sync),
        in_sync=in_sync,
        tails=(),
        joining=(),
        former=(),
        epoch=_last_epoch(draft, entry, choice) + 1,
    )
    return True


def _last_epoch(draft: Draft, entry: PartitionEntry, choice: Choice) -> int:
    """The highest epoch that anyone can have written under."""
    return max(entry.epoch, choice.epoch, *(p[0] for p in _positions(draft, entry)), 0)


def _positions(draft: Draft, entry: PartitionEntry) -> list[tuple[int, int, int]]:
    """(epoch, sequence, node) of each copy on disk that is there."""
    return [
        (copy.position.epoch, copy.position.sequence, copy.node.incarnation)
        for copy in copies_on_disk(entry, draft.stores, draft.nodes)
        if copy.position is not None and copy.node is not None
    ]


def _longest(draft: Draft, entry: PartitionEntry) -> tuple[int, ...]:
    """The nodes whose copy is the longest on disk; else one that has a removed copy in memory."""
    positions = _positions(draft, entry)
    if positions:
        best = max(positions)[:2]
        return tuple(sorted({node for *at, node in positions if tuple(at) == best}))
    former = tuple(copy for copy in entry.former if copy in draft.nodes.live)
    return former[:1]


def _without(draft: Draft, entry: PartitionEntry) -> tuple[int, ...]:
    """Nodes that have nothing of the partition, in memory or on disk."""
    named = {*entry.members(), *entry.former}
    return tuple(
        copy
        for copy in draft.nodes.placeable
        if copy not in named and not draft.nodes.holds(copy, entry.partition)
    )
