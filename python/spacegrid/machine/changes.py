"""What primaries ask for: changes of their partitions' entries, done if those are as they saw them.

Who calls: machine/controller.py. Source: PROTOCOL.md sections 1, 4, 5.
"""

from __future__ import annotations

from spacegrid.machine.draft import Draft
from spacegrid.machine.events import Change, ChangeKind
from spacegrid.machine.survival import remove
from spacegrid.machine.table import PartitionEntry, State, Tail

__all__ = ["apply_change"]


def apply_change(draft: Draft, sender: int, change: Change) -> bool:
    """Do what a primary asks for, if its entry is the one it asks about.

    Returns:
        False when it was refused; nothing has changed then.
    """
    if not 0 <= change.partition < draft.table.partition_count:
        return False
    base = draft.table.entries[change.partition]
    if (change.epoch, change.version) != (base.epoch, base.version) or base.state is not State.OK:
        return False
    if sender not in (0, base.primary):
        return False
    entry = draft.entry(change.partition)
    match change.kind:
        case ChangeKind.TAIL:
            # Handed over in this very write: the join begins again under the new primary's session,
            # of which this tail has nothing.
            return entry.epoch == base.epoch and _make_tail(draft, entry, change)
        case ChangeKind.IN_SYNC:
            return _make_in_sync(draft, entry, change)
        case ChangeKind.SHRINK:
            return remove(draft, entry, change.copy)
        case ChangeKind.STOPPED:
            if not entry.target or entry.primary != base.primary:
                return False
            draft.serve(entry.partition, entry.target)
            return True


def _make_tail(draft: Draft, entry: PartitionEntry, change: Change) -> bool:
    for item in entry.joining:
        if item.copy == change.copy:
            tail = Tail(
                change.copy, item.session, change.from_epoch, change.from_sequence, entry.primary
            )
            draft.change(
                entry.partition,
                joining=tuple(other for other in entry.joining if other.copy != change.copy),
                tails=(*entry.tails, tail),
            )
            return True
    return False


def _make_in_sync(draft: Draft, entry: PartitionEntry, change: Change) -> bool:
    if all(tail.copy != change.copy for tail in entry.tails):
        return False
    in_sync = (*entry.in_sync, change.copy)
    draft.change(
        entry.partition,
        in_sync=in_sync,
        tails=tuple(tail for tail in entry.tails if tail.copy != change.copy),
        former=entry.former if len(in_sync) < draft.table.min_in_sync else (),
    )
    return True
