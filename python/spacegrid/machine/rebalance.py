"""Steps towards the goal: first placement, new copies, hand-overs, dropping what is not wanted.

One partition moves in the order join, tail, in sync, hand-over, drop, so it never has fewer copies
than it had, where there are nodes to hold them. Copies that are *missing* are added at once; what
only moves is bounded, so that a node that joins or leaves does not move everything at a time.

Who calls: machine/controller.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from spacegrid.machine.draft import Draft
from spacegrid.machine.placement import Goal, plan
from spacegrid.machine.table import Joining, PartitionEntry, State

__all__ = ["make_goal", "place", "step"]


def make_goal(draft: Draft, *, first: bool) -> dict[int, Goal]:
    """Where the partitions that are served should be.

    Args:
        draft: The table and the nodes.
        first: Whether those that were never placed are placed now.
    """
    holders: dict[int, tuple[int, ...]] = {}
    for before in draft.table.entries:
        entry = draft.changed.get(before.partition) or before
        if entry.state is State.OK:
            first_copy = entry.target or entry.primary
            others = [copy for copy in entry.members() if copy != first_copy]
            holders[entry.partition] = (first_copy, *others)
        elif first and entry.epoch == 0:
            holders[entry.partition] = ()
    nodes = {copy: draft.nodes.names[copy] for copy in draft.nodes.placeable}
    zones = {copy: draft.nodes.zone_name(copy) for copy in draft.nodes.placeable}
    return plan(holders, nodes, draft.table.copies, zones)


def place(draft: Draft, goal: Mapping[int, Goal]) -> None:
    """Give every partition that was never placed its first copies: they are empty and complete."""
    for entry in draft.table.entries:
        wanted = goal.get(entry.partition)
        if entry.epoch == 0 and wanted:
            draft.serve(entry.partition, wanted[0], in_sync=wanted)


def step(draft: Draft, goal: Mapping[int, Goal], motion_max: int) -> None:
    """Take the next step of each partition that is not where it should be.

    Args:
        draft: The table and the nodes.
        goal: From `make_goal`.
        motion_max: Partitions that may be under way at one time, besides those that miss a copy.
    """
    off: list[PartitionEntry] = []
    motion = 0
    for before in draft.table.entries:
        entry = draft.changed.get(before.partition) or before
        wanted = goal.get(entry.partition)
        if not wanted or entry.state is not State.OK or _is_there(entry, wanted):
            continue
        if entry.primary not in draft.nodes.live or entry.primary in draft.unheard:
            # It is about to be deposed, or may be: nothing can be asked of it, and a node that has
            # one of its copies on disk would forget that to join.
            continue
        off.append(entry)
        motion += _moves(entry, wanted)
    for entry in off:
        motion += _step(draft, entry, goal[entry.partition], motion < motion_max)


def _is_there(entry: PartitionEntry, wanted: Goal) -> bool:
    return (
        entry.primary == wanted[0]
        and len(entry.in_sync) == len(wanted)
        and not (entry.target or entry.joining or entry.tails)
        and set(entry.in_sync) == set(wanted)
    )


def _moves(entry: PartitionEntry, wanted: Goal) -> bool:
    """Whether the partition is under way, rather than short of copies."""
    return entry.target != 0 or len(entry.members()) > len(wanted)


def _step(draft: Draft, entry: PartitionEntry, wanted: Goal, may_move: bool) -> bool:
    """One partition's next step.

    Returns:
        Whether it got under way by this.
    """
    was_moving = _moves(entry, wanted)
    may_move = may_move or was_moving
    entry = _add_copies(draft, entry, wanted, may_move)
    # By the table, not by this write: what a primary asked for may have waited as long as the news
    # that its new copy has ended, and then the one to be dropped is the last complete one.
    written = draft.table.entries[entry.partition].in_sync
    in_place = all(copy in entry.in_sync and copy in written for copy in wanted)
    if may_move and not entry.target and entry.primary != wanted[0] and wanted[0] in entry.in_sync:
        entry = draft.change(entry.partition, target=wanted[0])
    if in_place:
        entry = _drop_copies(draft, entry, wanted)
    return _moves(entry, wanted) and not was_moving


def _add_copies(
    draft: Draft, entry: PartitionEntry, wanted: Goal, may_move: bool
) -> PartitionEntry:
    members = entry.members()
    missing = _missing(draft, entry, wanted)
    missing += _last_resort(draft, entry, wanted, missing)
    if not missing:
        return entry
    if not may_move:
        # Only as many as are short; the rest is a move and waits for its turn.
        missing = missing[: max(0, len(wanted) - len(members))]
    if not missing:
        return entry
    session = draft.version(entry.partition)
    return draft.change(
        entry.partition,
        joining=(*entry.joining, *(Joining(copy, session) for copy in missing)),
    )


def _missing(draft: Draft, entry: PartitionEntry, wanted: Goal) -> list[int]:
    """Copies to add: those that are wanted and not there.

    A former copy is never made to join: that would wipe what may be the last complete one. It is
    taken in again as it is, or forgotten once enough others are complete. In the place of a copy
    that the primary can't reach another one is taken, of a zone that has none of the partition,
    unless there are too few zones to ask for that.
    """
    members = entry.members()
    missing = [copy for copy in wanted if copy not in members and copy not in entry.former]
    unreachable = [copy for copy in wanted if (entry.partition, copy) in draft.shunned]
    missing = [copy for copy in missing if copy not in unreachable]
    short = len(wanted) - len(members) - len(missing)
    if short <= 0 or not unreachable:
        return missing
    taken = {*members, *entry.former, *wanted}
    return missing + _spares(draft, (*members, *missing), taken)[: min(short, len(unreachable))]


def _spares(draft: Draft, holders: Sequence[int], taken: Collection[int]) -> list[int]:
    """Nodes that may have a copy beside those of ``holders``, each of another zone."""
    nodes = draft.nodes
    apart = nodes.zone_count >= draft.table.copies
    zones = {nodes.zone(copy) for copy in holders}
    spares = []
    for copy in nodes.placeable:
        if copy not in taken and not (apart and nodes.zone(copy) in zones):
            spares.append(copy)
            zones.add(nodes.zone(copy))
    return spares


def _last_resort(
    draft: Draft, entry: PartitionEntry, wanted: Goal, missing: list[int]
) -> list[int]:
    """Copies that the primary could not reach, where it takes no writes and has nobody else.

    A joining copy counts for nothing until it has caught up, which shows that it is reached again;
    without it writes would wait until the copy is no longer shunned.
    """
    members = entry.members()
    short = draft.table.min_in_sync - len(members) - len(missing)
    taken = {*members, *entry.former, *missing}
    return [copy for copy in wanted if copy not in taken][: max(0, short)]


def _drop_copies(draft: Draft, entry: PartitionEntry, wanted: Goal) -> PartitionEntry:
    """All that is wanted is in sync: the others go, but for a primary still to hand over."""
    keep = {*wanted, entry.primary, entry.target}
    if all(copy in keep for copy in entry.members()):
        return entry
    in_sync = tuple(copy for copy in entry.in_sync if copy in keep)
    former: tuple[int, ...] = ()
    tails = tuple(tail for tail in entry.tails if tail.copy in keep)
    if len(in_sync) < draft.table.min_in_sync and not (entry.tails and not tails):
        removed = [copy for copy in entry.in_sync if copy not in keep]
        former = tuple(dict.fromkeys((*entry.former, *removed)))
    return draft.change(
        entry.partition,
        in_sync=in_sync,
        tails=tails,
        joining=tuple(item for item in entry.joining if item.copy in keep),
        former=former,
    )
