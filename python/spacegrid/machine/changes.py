"""What copies ask for: changes of their partitions' entries, done if those are as they saw them.

Mostly primaries ask; where there is none, a former copy that a tail can complete, and that tail.

Who calls: machine/controller.py. Source: PROTOCOL.md sections 1, 4, 5.
"""

from __future__ import annotations

from spacegrid.machine.draft import Draft
from spacegrid.machine.events import Change, ChangeKind
from spacegrid.machine.survival import begins_later, complete, remove, serve_completed
from spacegrid.machine.table import PartitionEntry, State, Tail

__all__ = ["apply_change"]


def apply_change(draft: Draft, sender: int, change: Change) -> bool:
    """Do what a copy asks for, if its entry is the one it asks about.

    Returns:
        False when it was refused; nothing has changed then.
    """
    if not 0 <= change.partition < draft.table.partition_count:
        return False
    base = draft.table.entries[change.partition]
    if (change.epoch, change.version) != (base.epoch, base.version):
        return False
    if base.state is not State.OK:
        return _apply_unserved(draft, sender, change, base)
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
        case ChangeKind.RECOVER:
            return False


def _apply_unserved(draft: Draft, sender: int, change: Change, base: PartitionEntry) -> bool:
    """Do what is asked about a partition that nobody serves."""
    if draft.entry(base.partition) is not base:
        return False
    if change.kind is ChangeKind.RECOVER:
        return complete(draft, base, sender, change.copy)
    if not base.recovers() or sender != base.tails[0].copy:
        return False
    if change.kind is ChangeKind.IN_SYNC:
        return serve_completed(draft, base, change.copy)
    if change.kind is ChangeKind.TAIL and change.copy == sender:
        return begins_later(draft, base, change.from_epoch, change.from_sequence)
    return False


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
    tails = tuple(tail for tail in entry.tails if tail.copy != change.copy)
    # What was committed with the last tail a former copy may have missed, and nobody could tell.
    kept = bool(tails) and len(in_sync) < draft.table.min_in_sync
    draft.change(entry.partition, in_sync=in_sync, tails=tails, former=entry.former if kept else ())
    return True
