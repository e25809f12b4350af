"""What becomes of a partition when copies are gone: shrink, promote, recover, or say what is lost.

PROTOCOL.md section 5, (i) to (iv), and section 11. A copy that is suspected counts for nothing and
is given up by nobody: it is shrunk out or promoted over, remembered as former while it is complete,
and only what has *ended* is lost. A primary is deposed when it surely answers no more: its last
lease is over, or its end is proof. A former copy that is back and has missed nothing is in sync
again.

Rule (iii), a former copy completed from a tail, takes three steps, each in the table. The partition
is UNAVAILABLE. The former copy, which alone can see whether its log reaches to where the tail's
begins, asks to be completed (`complete`): RECOVERING, with it as the target, the tail first, and a
new epoch, from which on the tail takes nothing of the one before. When the target has all that the
tail has, the tail says so (`serve_completed`) and it is served. If either goes away meanwhile, or
the tail's log turns out to begin too late (`begins_later`), the partition is UNAVAILABLE again.

Who calls: machine/controller.py, machine/changes.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from spacegrid.machine.disks import last_disks
from spacegrid.machine.draft import Draft
from spacegrid.machine.table import EPOCH_MAX, PartitionEntry, State, Table, Tail

__all__ = ["begins_later", "complete", "lost_tails", "remove", "serve_completed", "settle"]


def settle(draft: Draft) -> None:
    """Bring every entry in line with the nodes that are there and behave.

    Cost: one pass over the entries; those that name only live copies cost a set comparison.
    """
    live = draft.nodes.live
    for before in draft.table.entries:
        entry = draft.changed.get(before.partition) or before
        if entry.state is State.OK:
            if live.issuperset(entry.in_sync) and not (
                (entry.joining or entry.tails) and not live.issuperset(entry.members())
            ):
                if entry.former:
                    _readmit(draft, entry)
                continue
            if entry.primary in live:
                # One that was not heard may have ended with the others: then all their disks are
                # asked, so none of them is taken out before.
                if entry.primary not in draft.unheard:
                    _keep(draft, entry, live)
                continue
            if draft.answering(entry.primary):
                draft.waits.add(entry.primary)
                continue
        elif entry.epoch == 0 or entry.state is State.LOST:
            continue
        _promote(draft, entry)


def remove(draft: Draft, entry: PartitionEntry, copy: int) -> bool:
    """The primary goes on without a copy that it can't reach; whether there was one to remove."""
    if copy == entry.primary or copy not in entry.members():
        return False
    # Only that copy: the primary that asks may be suspected too, and does not remove itself.
    _keep(draft, entry, frozenset(entry.members()) - {copy})
    return True


def complete(draft: Draft, entry: PartitionEntry, copy: int, source: int) -> bool:
    """A former copy says that its log reaches to where a tail's begins: let that complete it.

    A listed tail has every committed record after the position where its log begins, and the former
    copy has those up to there. In the new epoch the tail follows nobody, so that what it has stays
    as it is until the former copy has it too.

    Args:
        draft: The table and the nodes.
        entry: As it is drafted.
        copy: The former copy, which asks.
        source: The tail.

    Returns:
        Whether it was begun.
    """
    first = next((tail for tail in entry.tails if tail.copy == source), None)
    if entry.state is not State.UNAVAILABLE or copy not in entry.former or first is None:
        return False
    # The epoch in which it is served comes after this one.
    if not draft.nodes.live.issuperset((copy, source)) or entry.epoch + 2 > EPOCH_MAX:
        return False
    draft.change(
        entry.partition,
        state=State.RECOVERING,
        epoch=entry.epoch + 1,
        target=copy,
        tails=(first, *(tail for tail in entry.tails if tail is not first)),
    )
    return True


def serve_completed(draft: Draft, entry: PartitionEntry, copy: int) -> bool:
    """The tail says that the target has everything that it has: it is complete, and serves."""
    if entry.target != copy or copy not in draft.nodes.live:
        return False
    _serve_with(draft, entry, (copy,), copy)
    return True


def begins_later(draft: Draft, entry: PartitionEntry, epoch: int, sequence: int) -> bool:
    """The tail's log begins later than was known, and too late for the target.

    The table says where from now on, so that only a former copy that goes that far asks.
    """
    first = entry.tails[0]
    if (epoch, sequence) <= (first.from_epoch, first.from_sequence):
        return False
    tail = Tail(first.copy, first.session, epoch, sequence, first.predecessor)
    draft.change(entry.partition, state=State.UNAVAILABLE, target=0, tails=(tail, *entry.tails[1:]))
    return True


def _readmit(draft: Draft, entry: PartitionEntry) -> None:
    """Former copies that are back: nothing was committed since, so they are as complete as ever.

    In a new epoch, since such a copy may have seen nothing of its removal: both sides begin anew.
    That also ends a hand-over under way, which waits for a commit that needs the copy.
    """
    few = len(entry.in_sync) < draft.table.min_in_sync
    if not few or entry.tails:
        return
    room = draft.table.copies - len(entry.in_sync)
    back = tuple(
        copy
        for copy in entry.former
        if copy in draft.nodes.live
        and copy not in draft.nodes.draining
        and (entry.partition, copy) not in draft.shunned
    )[:room]
    if not back:
        return
    in_sync = (*entry.in_sync, *back)
    former = tuple(copy for copy in entry.former if copy not in back)
    draft.serve(
        entry.partition,
        entry.primary,
        in_sync=in_sync,
        former=former if len(in_sync) < draft.table.min_in_sync else (),
    )


def _keep(draft: Draft, entry: PartitionEntry, live: frozenset[int]) -> None:
    """Members are gone and the primary is not."""
    in_sync = tuple(copy for copy in entry.in_sync if copy in live)
    tails = tuple(tail for tail in entry.tails if tail.copy in live)
    joining = tuple(item for item in entry.joining if item.copy in live)
    former = _former(draft, entry, in_sync, bool(tails))
    if entry.target and entry.target not in live:
        # It may have stopped for the hand-over, and it resumes only in a newer epoch.
        draft.serve(
            entry.partition,
            entry.primary,
            in_sync=in_sync,
            tails=tails,
            former=former,
            joining=tuple(item for item in entry.joining if item.copy in live),
        )
        return
    draft.change(entry.partition, in_sync=in_sync, tails=tails, joining=joining, former=former)


def _promote(draft: Draft, entry: PartitionEntry) -> None:
    """There is no live primary."""
    live, partition = draft.nodes.live, entry.partition
    in_sync = tuple(copy for copy in entry.in_sync if copy in live)
    former = tuple(copy for copy in entry.former if copy in live)
    if not draft.unheard.isdisjoint(in_sync or former):
        # It is heard at once, or it has ended with the others: then its disk must not decide alone.
        return
    if in_sync:
        known = draft.table.entries[partition].in_sync
        older = tuple(copy for copy in in_sync if copy in known)
        preferred = entry.target or draft.least_busy(older or in_sync)
        _serve_with(draft, entry, in_sync, preferred)
        return
    # With fewer complete copies than a write needs, and no tail that could have made up for them,
    # nothing was committed since a former copy was removed: it is as complete as the dead ones.
    few = len(entry.in_sync) < draft.table.min_in_sync and not entry.tails
    if few and former:
        chosen = draft.least_busy(former)
        _serve_with(draft, entry, (chosen,), chosen)
        return
    if entry.recovers() and live.issuperset((entry.target, entry.tails[0].copy)):
        return
    state = _recover(draft, entry)
    if state is State.OK:
        return
    if state is State.LOST and _may_return(draft, entry, few=few):
        state = State.UNAVAILABLE
    if state is not entry.state or entry.target:
        draft.change(partition, state=state, primary=0, target=0, joining=())


def _may_return(draft: Draft, entry: PartitionEntry, *, few: bool) -> bool:
    """Whether a copy that could serve has not ended: it may be heard again."""
    registered = draft.nodes.registered
    if any(copy in registered for copy in entry.in_sync):
        return True
    # A former copy alone may miss what was committed with a tail; together they have everything.
    usable = few or any(tail.copy in registered for tail in entry.tails)
    return usable and any(copy in registered for copy in entry.former)


def _serve_with(
    draft: Draft, entry: PartitionEntry, in_sync: tuple[int, ...], preferred: int
) -> None:
    live, session = draft.nodes.live, draft.version(entry.partition)
    tails = tuple(tail for tail in entry.tails if tail.copy in live)
    joining = tuple(
        type(item)(item.copy, session)
        for item in entry.joining
        if item.copy in live and item.copy not in in_sync
    )
    draft.serve(
        entry.partition,
        draft.least_busy(in_sync, preferred),
        in_sync=in_sync,
        tails=tails,
        joining=joining,
        former=_former(draft, entry, in_sync, bool(tails)),
    )


def _former(
    draft: Draft, entry: PartitionEntry, in_sync: tuple[int, ...], tails: bool
) -> tuple[int, ...]:
    """The complete copies that were removed and that nothing was committed after.

    All that one write removes are equal: whichever of them was removed first, the primary waits for
    it until it reads that write.

    Args:
        draft: Where ``min_in_sync`` is, and the entry before this write.
        entry: Before the removal.
        in_sync: After it.
        tails: Whether a tail is left.
    """
    if len(in_sync) >= draft.table.min_in_sync:
        return ()
    # With the last tail goes what knows of the commits that it made up for.
    before = () if entry.tails and not tails else entry.former
    known = (*before, *draft.table.entries[entry.partition].in_sync, *entry.in_sync)
    return tuple(copy for copy in dict.fromkeys(known) if copy not in in_sync)


def _recover(draft: Draft, entry: PartitionEntry) -> State:
    """Begin again from the disks of the last complete copies (disks.py).

    Once all of them have reported, the highest position wins, and those that are equal are in sync.
    What was only replicated may be gone with a copy that crashed: `lost_tails` says so. In a
    cluster that went on without such a copy the partition is lost.

    Returns:
        OK when it is served again, else how it stands.
    """
    disks = last_disks(draft, entry)
    if disks.undecided:
        return State.UNAVAILABLE
    if not disks.complete:
        # Recovering says it to the next controller as well: what crashed is waited for.
        return State.RECOVERING if disks.found or disks.crashed else State.UNAVAILABLE
    if not disks.found:
        return State.LOST
    best = max(disks.found)[:2]
    in_sync = tuple(sorted(item[2] for item in disks.found if item[:2] == best))
    epoch = max(entry.epoch, best[0]) + 1
    if epoch > EPOCH_MAX:
        return State.LOST
    draft.serve(
        entry.partition,
        draft.least_busy(in_sync),
        in_sync=in_sync,
        tails=(),
        joining=(),
        former=(),
        epoch=epoch,
    )
    return State.OK


def lost_tails(table: Table, entries: Iterable[PartitionEntry]) -> tuple[int, ...]:
    """Partitions that begin again from disk although some last copy did not stop cleanly.

    What those copies had acknowledged as replicated, and had not on disk, is gone with them; how
    much that is nobody knows any more.

    Args:
        table: Before the write.
        entries: What is written.
    """
    crashed = {store.copy for store in table.stores if store.crashed}
    found = []
    for entry in entries:
        before = table.entries[entry.partition]
        known = {*before.members(), *before.former}
        # Where all disks are there at once no write says that anything was missing in between.
        again = entry.state is State.OK and before.epoch > 0 and known.isdisjoint(entry.in_sync)
        if again and not crashed.isdisjoint(before.in_sync):
            found.append(entry.partition)
    return tuple(found)
