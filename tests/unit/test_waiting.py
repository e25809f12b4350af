"""Why a partition has no primary: what is named ends it, and nothing waits without a reason.

Goal: the reason that an operator reads is the one by which the rules of survival.py wait. Method:
one partition, one pass of the rules; then what the reason names happens, and the partition is
served. A property test asks whatever the rules leave without a primary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spacegrid.machine.controller import Controller, ControllerConfig
from spacegrid.machine.draft import Draft, Nodes
from spacegrid.machine.events import BecameController
from spacegrid.machine.restart import Restart
from spacegrid.machine.survival import settle
from spacegrid.machine.table import (
    CopyStore,
    PartitionEntry,
    Registration,
    State,
    StoredPartition,
    Table,
    Tail,
)
from spacegrid.machine.waiting import Wait, Why, waits, why_unserved
from spacegrid.node.report_waiting import waiting, waiting_text
from spacegrid.v1 import admin_pb2

#: The last complete copy, a former one, a tail; the last one's store, opened by its next boot.
LAST, FORMER, TAIL, BACK = 1, 2, 3, 7
STORE = b"s" * 16


def plain(*copies: int) -> tuple[Registration, ...]:
    return tuple(Registration(name=f"node-{copy}", incarnation=copy) for copy in copies)


def with_disk(copy: int, *position: int) -> Registration:
    """A node that has the store; with a position, it found the partition there."""
    stored = (StoredPartition(0, *position),) if position else ()
    return Registration(name=f"node-{copy}", incarnation=copy, store=STORE, stored=stored)


@dataclass(frozen=True)
class Standing:
    """One partition without a primary, and what the controller knows."""

    entry: PartitionEntry
    nodes: tuple[Registration, ...] = ()
    suspected: frozenset[int] = frozenset()
    unheard: frozenset[int] = frozenset()
    stores: tuple[CopyStore, ...] = ()
    #: Nodes of before that are registered, to a controller that follows a restart; None: it
    #: does not.
    restarted_before: tuple[int, ...] | None = None
    min_in_sync: int = 2

    def draft(self) -> Draft:
        table = Table(5, bytes(16), 1, 2, self.min_in_sync, (self.entry,), self.stores)
        draft = Draft(table, self.stores, Nodes(self.nodes, frozenset(), self.suspected))
        draft.unheard = self.unheard
        if self.restarted_before is not None:
            draft.restart = Restart()
            draft.restart.begin(table, frozenset(self.restarted_before), heartbeats=True)
        return draft

    def reason(self) -> Wait | None:
        draft = self.draft()
        reason = why_unserved(draft, self.entry)
        assert not draft.changed, "to ask changes nothing"
        return reason

    def settled(self) -> PartitionEntry:
        draft = self.draft()
        settle(draft)
        return draft.entry(0)


def gone(**fields: object) -> PartitionEntry:
    entry = PartitionEntry(0, epoch=3, version=9, state=State.UNAVAILABLE, in_sync=(LAST,))
    return msgspec.structs.replace(entry, **fields)


TAILS = (Tail(TAIL, 8, 3, 40, LAST),)
HALF = gone(former=(FORMER,), tails=TAILS)
CRASHED = (CopyStore(LAST, STORE, crashed=True, name="node-1"),)
CLEAN = (CopyStore(LAST, STORE, name="node-1"),)

#: Name, how it stands, what it waits for, and how it stands once that has come.
CASES = [
    (
        "the last copy hangs",
        Standing(gone(), plain(LAST, FORMER), suspected=frozenset((LAST,))),
        Wait(Why.HUNG, (LAST,)),
        {"suspected": frozenset()},
    ),
    (
        "the last copy hangs, and its own store with it",
        Standing(gone(), (with_disk(LAST),), suspected=frozenset((LAST,)), stores=CLEAN),
        Wait(Why.HUNG, (LAST,)),
        {"suspected": frozenset()},
    ),
    (
        "a removed copy hangs, which is as complete",
        Standing(gone(former=(FORMER,)), plain(FORMER), suspected=frozenset((FORMER,))),
        Wait(Why.HUNG, (FORMER,)),
        {"suspected": frozenset()},
    ),
    (
        "a registered copy was not heard",
        Standing(gone(), plain(LAST), unheard=frozenset((LAST,))),
        Wait(Why.HEARTBEAT, (LAST,)),
        {"unheard": frozenset()},
    ),
    (
        "a clean store is not there",
        Standing(gone(), plain(FORMER), stores=CLEAN),
        Wait(Why.DISK, (LAST,)),
        {"nodes": (with_disk(BACK, 3, 50),)},
    ),
    (
        "a crashed store is not there after a restart of everything",
        Standing(gone(), plain(FORMER), stores=CRASHED, restarted_before=()),
        Wait(Why.DISK, (LAST,)),
        {"nodes": (with_disk(BACK, 3, 50),)},
    ),
    (
        "a store is loaded",
        Standing(gone(), (with_disk(BACK, 3, 50),), unheard=frozenset((BACK,)), stores=CLEAN),
        Wait(Why.HEARTBEAT, (BACK,)),
        {"unheard": frozenset()},
    ),
    (
        "another copy of before may have gone on",
        Standing(
            HALF, (with_disk(BACK, 3, 50), *plain(TAIL)), frozenset((TAIL,)), stores=CRASHED,
            restarted_before=(TAIL,),
        ),
        Wait(Why.RESTART, (TAIL,)),
        {"restarted_before": (), "nodes": (with_disk(BACK, 3, 50),)},
    ),
    (
        "a former copy is completed",
        Standing(
            gone(state=State.RECOVERING, target=FORMER, former=(FORMER,), tails=TAILS),
            plain(FORMER, TAIL),
        ),
        Wait(Why.COMPLETION, (FORMER, TAIL)),
        {"entry": gone(in_sync=(FORMER,), tails=TAILS)},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "standing", "expected", "ended"), CASES)
def test_what_is_named_is_waited_for_and_ends_it(
    name: str, standing: Standing, expected: Wait, ended: dict[str, object]
) -> None:
    assert standing.reason() == expected, name
    after = standing.settled()
    assert after.state is not State.OK
    assert replace(standing, entry=after).reason() == expected, "the rules leave it at that"
    later = replace(standing, **{"entry": after, **ended})
    assert later.reason() is None
    assert later.settled().state is State.OK


@pytest.mark.parametrize(
    ("hung", "expected"),
    [
        ((), Wait(Why.REACH, (FORMER, TAIL))),
        ((FORMER,), Wait(Why.HUNG, (FORMER,))),
        ((TAIL,), Wait(Why.HUNG, (TAIL,))),
        ((FORMER, TAIL), Wait(Why.HUNG, (FORMER, TAIL))),
    ],
)
def test_a_pair_that_could_complete_each_other_is_waited_for(
    hung: tuple[int, ...], expected: Wait
) -> None:
    assert Standing(HALF, plain(FORMER, TAIL), frozenset(hung)).reason() == expected


LOST = gone(state=State.LOST)


@pytest.mark.parametrize(
    ("standing", "expected"),
    [
        (Standing(LOST, plain(FORMER)), Wait(Why.LOST, (LAST,))),
        (Standing(LOST, plain(FORMER), stores=CRASHED), Wait(Why.LOST_DISK_AWAY, (LAST,))),
        (
            Standing(LOST, (with_disk(BACK, 3, 50),), stores=CRASHED),
            Wait(Why.LOST_DISK_THERE, (BACK,)),
        ),
        (Standing(LOST, (with_disk(BACK),), stores=CRASHED), Wait(Why.LOST, (LAST,))),
    ],
    ids=["no disk", "the disk is away", "the disk is there", "the disk does not have it"],
)
def test_what_is_lost_waits_for_an_operator_whatever_comes_back(
    standing: Standing, expected: Wait
) -> None:
    assert standing.reason() == expected
    assert standing.settled() is standing.entry


def test_what_never_was_placed_waits_for_that() -> None:
    assert Standing(PartitionEntry(0), plain(LAST)).reason() == Wait(Why.PLACEMENT)


copies = st.integers(1, 4)
stored = st.sampled_from([(), (3, 40), (3, 50)])


@st.composite
def standings(draw: st.DrawFn) -> Standing:
    """A partition that was served by some of four copies, with or without stores; some are back."""
    order = draw(st.permutations((1, 2, 3, 4)))
    complete, more, tails = (
        draw(st.integers(1, 2)),
        draw(st.integers(0, 1)),
        draw(st.integers(0, 1)),
    )
    in_sync = tuple(order[:complete])
    former = tuple(order[complete : complete + more]) if complete < 2 else ()
    tail = order[3]
    entry = PartitionEntry(
        0, 3, 9, draw(st.sampled_from([State.UNAVAILABLE, State.RECOVERING])), 0, in_sync, former,
        tails=(Tail(tail, 8, 3, 40, in_sync[0]),) * tails,
    )  # fmt: skip
    if entry.state is State.RECOVERING and former and tails and draw(st.booleans()):
        entry = msgspec.structs.replace(entry, target=former[0])
    disks = draw(st.sets(copies))
    there = draw(st.sets(copies))
    back = draw(st.sets(st.sampled_from(sorted(disks - there)))) if disks - there else set()
    nodes = [
        Registration(f"n{c}", incarnation=c, store=bytes([c]) * 16 if c in disks else b"")
        for c in sorted(there)
    ]
    for copy in sorted(back):
        position = draw(stored)
        nodes.append(
            Registration(
                f"n{copy}", incarnation=copy + 10, store=bytes([copy]) * 16,
                stored=(StoredPartition(0, *position),) if position else (),
            )
        )  # fmt: skip
    registered = [node.incarnation for node in nodes]
    pick = st.frozensets(st.sampled_from(registered)) if registered else st.just(frozenset())
    suspected = draw(pick)
    return Standing(
        entry,
        tuple(nodes),
        suspected,
        draw(pick) - suspected,
        tuple(
            CopyStore(c, bytes([c]) * 16, crashed=c not in there and draw(st.booleans()))
            for c in sorted(disks)
        ),
        restarted_before=draw(st.sampled_from([None, tuple(sorted(there))])),
    )


@settings(deadline=None, max_examples=500)
@given(standings())
def test_whatever_the_rules_leave_without_a_primary_has_a_reason(standing: Standing) -> None:
    for _ in range(4):
        after = standing.settled()
        if after is standing.entry or after.state is State.OK:
            break
        standing = replace(standing, entry=after)
    reason = standing.reason()
    if after.state is State.OK:
        assert reason is None, "nothing is waited for, and it is served"
    else:
        assert after is standing.entry, "it comes to rest"
        assert reason is not None
        assert reason.copies


def test_partitions_with_one_reason_are_one_group_and_served_ones_in_none() -> None:
    entries = tuple(
        msgspec.structs.replace(entry, partition=number)
        for number, entry in enumerate(
            (gone(), gone(state=State.OK, primary=TAIL, in_sync=(TAIL,)), LOST, gone(), HALF)
        )
    )
    table = Table(5, bytes(16), 5, 2, 2, entries)
    suspected = frozenset((LAST,))
    draft = Draft(table, (), Nodes(plain(LAST, FORMER, TAIL), frozenset(), suspected))
    assert waits(draft) == {
        Wait(Why.HUNG, (LAST,)): (0, 3, 4),
        Wait(Why.LOST, (LAST,)): (2,),
    }


def test_only_a_controller_knows_what_is_waited_for() -> None:
    table = Table(5, bytes(16), 1, 2, 2, (LOST,))
    machine = Controller(ControllerConfig(leases=False))
    assert machine.waits(0) == {}
    machine.handle(BecameController(table, plain(FORMER), term=1), 0)
    assert machine.waits(0) == {Wait(Why.LOST, (LAST,)): (0,)}


# ---- the words for it


def told(*groups: tuple[str, list[int], list[str]]) -> admin_pb2.ControllerStatus:
    return admin_pb2.ControllerStatus(
        here=True,
        waiting=[
            admin_pb2.Waiting(partitions=partitions, why=why, nodes=nodes)
            for why, partitions, nodes in groups
        ],
    )


def test_a_group_is_one_line_with_the_number_the_node_and_the_way_out() -> None:
    groups = waiting(told(("disk", list(range(12)), ["node-2"])))
    assert waiting_text(groups, 12) == [
        "WAITING: 12 partitions (0, 1, 2, 3, 4, 5, 6, 7, ...) for the disk of node-2 (it may hold "
        "acknowledged writes); hint: start node-2 with the old data folder, or go on without it: "
        "spacegrid partitions accept --all --longest"
    ]


def test_beside_another_group_the_way_out_names_its_own_partitions() -> None:
    groups = waiting(told(("lost-disk-there", [4, 9], ["a", "b"]), ("hung", [5], ["c"])))
    first, second = waiting_text(groups, 3)
    assert "2 partitions (4, 9) for an operator: the disk at a and b may be behind" in first
    assert "spacegrid partitions accept 4 9 --longest" in first
    assert "1 partition (5) for c, hung or cut off" in second


@pytest.mark.parametrize("why", list(Why))
def test_every_reason_has_words(why: Why) -> None:
    (line,) = waiting_text(waiting(told((why, [4], ["node-1", "node-2"]))), 1)
    assert line.startswith("WAITING: 1 partition (4) for ")
    assert "; hint: " in line
    assert "{" not in line


def test_a_reason_of_a_newer_node_is_shown_as_it_is() -> None:
    (line,) = waiting_text(waiting(told(("weather", [4], ["node-1"]))), 1)
    assert line == "WAITING: 1 partition (4) for weather: node-1"


def test_without_a_controller_it_is_said_that_nobody_knows() -> None:
    groups = waiting(admin_pb2.ControllerStatus(here=False))
    assert groups is None
    (line,) = waiting_text(groups, 1)
    assert "no controller answers" in line
    assert waiting_text(groups, 0) == []
