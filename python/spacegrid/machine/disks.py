"""What the disks of a partition's last complete copies are good for now.

Candidates are only stores of the last in-sync set; a store that another process has open now is
proof that the copy has ended. A node reports with its registration, and counts once it was heard
as well: it has loaded its store then, and is not one that ends before it has begun.

A crashed copy's store has what was persisted, but not what was only replicated and not yet written.
So it is a candidate by itself only when everything was restarted, where it is what there is; in a
cluster that went on without it an operator decides whether the disk is good enough (acceptance.py).
Until it is known which of the two it is, the copy counts as missing.

Who calls: survival.py decides by it; waiting.py says what is waited for.
"""

from __future__ import annotations

import msgspec

from spacegrid.machine.draft import Draft
from spacegrid.machine.table import PartitionEntry, State

__all__ = ["Disks", "last_disks"]


class Disks(msgspec.Struct, frozen=True):
    """The last complete copies of one partition, by how it stands with their stores.

    Attributes:
        found: (epoch, sequence, node) of each that is there and has the partition.
        missing: Copies whose store nobody has open; the copy itself may, if it only hangs.
        loading: Nodes that have such a store and were not heard yet.
        crashed: Whether one that counts did not stop cleanly.
        undecided: Whether there is one of which nobody knows yet if it may count.
    """

    found: tuple[tuple[int, int, int], ...]
    missing: tuple[int, ...]
    loading: tuple[int, ...]
    crashed: bool
    undecided: bool

    @property
    def complete(self) -> bool:
        """Whether all have reported that will count."""
        return not (self.missing or self.loading or self.undecided)


def last_disks(draft: Draft, entry: PartitionEntry) -> Disks:
    """Look for the stores of the last complete copies among the nodes that registered."""
    found: list[tuple[int, int, int]] = []
    missing, loading = [], []
    waits_for_disks = entry.state is State.RECOVERING and not entry.recovers()
    crashed = undecided = False
    for copy in entry.in_sync:
        known = draft.stores.get(copy)
        if known is None:
            continue
        trusted = waits_for_disks or draft.restart.trusts(copy)
        if known.crashed and not trusted:
            undecided |= trusted is None
            continue
        crashed |= known.crashed
        node = draft.nodes.with_store(known.store)
        if node is None or node.incarnation == copy:
            missing.append(copy)
            continue
        if node.incarnation in draft.unheard:
            loading.append(node.incarnation)
            continue
        position = draft.nodes.stored(known.store, entry.partition)
        if position is not None:
            found.append((position.epoch, position.sequence, node.incarnation))
    return Disks(tuple(found), tuple(missing), tuple(loading), crashed, undecided)
