"""Why a partition has no primary, and who would end that: for the operator, who can help.

The same questions as in survival.py, in the same order, asked of the table as it is now; nothing is
changed here, and nothing is decided by it. What the next write ends by itself is no reason.

Who calls: machine/controller.py. Source: PROTOCOL.md sections 5 and 11.
"""

from __future__ import annotations

import enum

import msgspec

from spacegrid.machine.acceptance import copies_on_disk
from spacegrid.machine.disks import Disks, last_disks
from spacegrid.machine.draft import Draft
from spacegrid.machine.table import PartitionEntry, State

__all__ = ["Wait", "Why", "waits", "why_unserved"]


class Why(enum.StrEnum):
    """What is waited for; with each, whom the copies beside it name. The words are on the wire."""

    #: It was never placed: that begins once the expected nodes are there, or after a while.
    PLACEMENT = "placement"
    #: Registered nodes that this controller has not heard yet.
    HEARTBEAT = "heartbeat"
    #: Registered nodes of before that were not heard: they went on, or ended with all the others.
    RESTART = "restart"
    #: Copies that have not ended and do not behave.
    HUNG = "hung"
    #: Copies whose stores nobody has open.
    DISK = "disk"
    #: A former copy, which takes what it lacks, and the tail that it takes it from.
    COMPLETION = "completion"
    #: A former copy, which alone can see whether its log reaches to a tail's beginning, and that.
    REACH = "reach"
    #: Lost, an operator decides. Copies whose stores nobody has open.
    LOST_DISK_AWAY = "lost-disk-away"
    #: Lost, an operator decides. Nodes that have a store with it, which may be behind.
    LOST_DISK_THERE = "lost-disk-there"
    #: Lost, an operator decides. The last complete copies, of which nothing is left.
    LOST = "lost"


class Wait(msgspec.Struct, frozen=True):
    """What partitions wait for, and the copies that it is about."""

    why: Why
    copies: tuple[int, ...] = ()


def waits(draft: Draft) -> dict[Wait, tuple[int, ...]]:
    """Partitions without a primary by what they wait for, in order of the first.

    Args:
        draft: The table as it is, and what the controller knows.

    Cost: one pass over the entries; a few look-ups for each that nobody serves.
    """
    groups: dict[Wait, list[int]] = {}
    for entry in draft.table.entries:
        if entry.state is not State.OK and (wait := why_unserved(draft, entry)) is not None:
            groups.setdefault(wait, []).append(entry.partition)
    return {wait: tuple(partitions) for wait, partitions in groups.items()}


def why_unserved(draft: Draft, entry: PartitionEntry) -> Wait | None:
    """What a partition without a primary waits for; None: only for a write that is under way."""
    if entry.epoch == 0:
        return Wait(Why.PLACEMENT)
    if entry.state is State.LOST:
        return _lost(draft, entry)
    live = draft.nodes.live
    in_sync = tuple(copy for copy in entry.in_sync if copy in live)
    former = tuple(copy for copy in entry.former if copy in live)
    if unheard := [copy for copy in in_sync or former if copy in draft.unheard]:
        return Wait(Why.HEARTBEAT, tuple(unheard))
    few = len(entry.in_sync) < draft.table.min_in_sync and not entry.tails
    if in_sync or (few and former):
        return None
    if entry.recovers() and live.issuperset((entry.target, entry.tails[0].copy)):
        return Wait(Why.COMPLETION, (entry.target, entry.tails[0].copy))
    disks = last_disks(draft, entry)
    if disks.complete and disks.found:
        return None
    hung = _hung(draft, entry.in_sync) or (_hung(draft, entry.former) if few else ())
    if hung:
        return Wait(Why.HUNG, hung)
    return _disk(draft, disks) or _tail(draft, entry, former)


def _hung(draft: Draft, copies: tuple[int, ...]) -> tuple[int, ...]:
    """Those that have not ended and do not behave."""
    there = draft.nodes.registered - draft.nodes.live
    return tuple(copy for copy in copies if copy in there)


def _disk(draft: Draft, disks: Disks) -> Wait | None:
    """What is not known yet of the disks of the last complete copies."""
    if disks.undecided:
        return Wait(Why.RESTART, tuple(sorted(draft.restart.unheard)))
    if disks.missing:
        return Wait(Why.DISK, disks.missing)
    return Wait(Why.HEARTBEAT, disks.loading) if disks.loading else None


def _tail(draft: Draft, entry: PartitionEntry, former: tuple[int, ...]) -> Wait | None:
    """Rule (iii): a former copy and a tail, of which one hangs or is asked for its log."""
    tails = tuple(tail.copy for tail in entry.tails)
    live = tuple(copy for copy in tails if copy in draft.nodes.live)
    if former and live:
        return Wait(Why.REACH, (former[0], live[0]))
    usable = (former or _hung(draft, entry.former)) and (live or _hung(draft, tails))
    # Of a pair that could serve, what is live is not waited for.
    hung = (*(() if former else _hung(draft, entry.former)), *(() if live else _hung(draft, tails)))
    return Wait(Why.HUNG, hung) if usable else None


def _lost(draft: Draft, entry: PartitionEntry) -> Wait:
    disks = copies_on_disk(entry, draft.stores, draft.nodes)
    if away := tuple(disk.copy for disk in disks if disk.missing):
        return Wait(Why.LOST_DISK_AWAY, away)
    there = (d.node.incarnation for d in disks if d.node is not None and d.position is not None)
    if nodes := tuple(sorted(set(there))):
        return Wait(Why.LOST_DISK_THERE, nodes)
    return Wait(Why.LOST, entry.in_sync)
