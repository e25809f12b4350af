"""The ownership table: changes, counts, invariants, and what travels of it."""

from __future__ import annotations

import msgspec
import pytest
from spacegrid.errors import InvariantViolation, ProtocolError
from spacegrid.machine.events import Change, ChangeKind
from spacegrid.machine.table import (
    CopyStore,
    Joining,
    PartitionEntry,
    Registration,
    State,
    StoredPartition,
    Table,
    Tail,
    check_step,
    core_entry,
    new_table,
)
from spacegrid.wire import ownership

LIFE = bytes(range(16))
FULL = PartitionEntry(
    partition=1,
    epoch=3,
    version=9,
    state=State.OK,
    primary=4,
    in_sync=(4,),
    former=(5,),
    joining=(Joining(6, 8),),
    tails=(Tail(7, 9, 3, 1 << 39, 4),),
)


def table() -> Table:
    return new_table(LIFE, partition_count=3, copies=2, min_in_sync=2).apply(7, [FULL])


def test_a_change_makes_a_new_table_and_leaves_the_old_one() -> None:
    before = new_table(LIFE, partition_count=3, copies=2, min_in_sync=2)
    after = before.apply(2, [FULL], stopped=True)
    assert (before.revision, before.entries[1].epoch, before.stopped) == (1, 0, False)
    assert (after.revision, after.entries[1], after.stopped) == (2, FULL, True)
    after.check()


def test_a_revision_that_does_not_grow_is_a_bug() -> None:
    with pytest.raises(InvariantViolation, match="revision 7 after 7"):
        table().apply(7, [])


def test_an_entry_of_no_partition_is_refused() -> None:
    with pytest.raises(IndexError, match=r"partition 3 is outside 0\.\.2"):
        table().apply(8, [PartitionEntry(3)])


def test_counts_say_what_is_not_as_it_should_be() -> None:
    lost = PartitionEntry(0, 1, 2, State.LOST, in_sync=(4,))
    whole = PartitionEntry(2, 1, 1, State.OK, 4, (4, 5))
    counts = table().apply(8, [lost, whole]).counts()
    assert counts.primaries == {4: 2}
    assert counts.copies == {4: 2, 5: 1}
    assert (counts.under_replicated, counts.unserved, counts.lost) == (2, 1, (0,))
    unavailable = PartitionEntry(0, 1, 2, State.UNAVAILABLE, in_sync=(4,))
    recovering = PartitionEntry(2, 1, 2, State.RECOVERING, in_sync=(5,))
    counts = table().apply(8, [unavailable, recovering]).counts()
    assert (counts.unavailable, counts.recovering, counts.lost) == ((0,), (2,), ())
    assert new_table(LIFE, partition_count=3, copies=2, min_in_sync=2).counts().unavailable == ()


def test_copies_of_nodes_that_have_ended_count_no_more() -> None:
    whole = [
        PartitionEntry(0, 1, 1, State.OK, 4, (4, 5)),
        PartitionEntry(2, 1, 1, State.OK, 5, (5, 4)),
    ]
    now = table().apply(8, whole)
    assert (now.counts().under_replicated, now.counts().unserved) == (1, 0)
    left = now.counts({4})
    assert (left.copies, left.under_replicated, left.unserved) == ({4: 3}, 3, 1)


def test_routes_name_the_primary_or_nobody() -> None:
    assert table().routes() == (0, 4, 0)


def test_a_store_is_of_the_past_only_where_others_serve_without_it() -> None:
    served = PartitionEntry(0, 2, 4, State.OK, 4, (4, 5))
    named_already = PartitionEntry(2, 2, 3, State.OK, 6, (6, 4))
    now = table().apply(8, [served, named_already])
    assert now.served_without(6, b"", alive={4, 5, 6}) == {0, 1}
    assert now.served_without(9, b"", alive={4, 5}) == {0, 1}
    assert now.served_without(5, b"", alive={4, 5, 6}) == {1, 2}


def test_a_store_is_not_of_the_past_while_an_entry_has_a_copy_that_had_it() -> None:
    # 4 may have ended with 5, and then the copy on 5's disk is one of the two that are asked for.
    served = PartitionEntry(0, 2, 4, State.OK, 4, (4, 5))
    without = PartitionEntry(2, 2, 3, State.OK, 4, (4, 6))
    now = msgspec.structs.replace(
        table().apply(8, [served, without]), stores=(CopyStore(5, b"b"), CopyStore(4, b"a"))
    )
    assert 0 not in now.served_without(9, b"b", alive={4})
    assert 2 in now.served_without(9, b"b", alive={4})
    assert 0 in now.served_without(9, b"c", alive={4})


def test_a_copy_is_named_while_it_holds_or_receives_something() -> None:
    assert [copy for copy in range(10) if table().names(copy)] == [4, 6, 7]


def test_the_core_gets_plain_numbers() -> None:
    assert core_entry(FULL) == (1, 3, 9, 1, 4, [4], [5], [(6, 8)], [(7, 9, 3, 1 << 39)], 0)


@pytest.mark.parametrize(
    ("number", "wrong"),
    [
        ("T2", {"primary": 0}),
        ("T2", {"state": State.LOST}),
        ("T3", {"primary": 5}),
        ("T4", {"in_sync": (4, 5)}),
        ("T4", {"in_sync": (4, 4)}),
        ("T5", {"joining": (Joining(6, 10),)}),
        ("T6", {"target": 5}),
        ("T6", {"target": 4}),
        ("T7", {"in_sync": (4, 8)}),
        ("T8", {"epoch": 0}),
        ("T8", {"epoch": 1 << 24}),
    ],
)
def test_an_entry_that_can_not_be_cites_its_invariant(
    number: str, wrong: dict[str, object]
) -> None:
    FULL.check(2)
    with pytest.raises(InvariantViolation, match=f"{number} does not hold"):
        msgspec.structs.replace(FULL, **wrong).check(2)


@pytest.mark.parametrize(
    ("number", "wrong"),
    [
        ("T9", {"version": 9, "target": 0, "former": ()}),
        ("T9", {"version": 10, "epoch": 2}),
        ("T9", {"version": 10, "primary": 5, "in_sync": (5,), "former": ()}),
        ("T10", {"version": 10, "epoch": 4, "primary": 6, "in_sync": (4, 6), "joining": ()}),
        ("T11", {"version": 10, "in_sync": (4, 6), "joining": (), "former": ()}),
    ],
)
def test_a_step_that_can_not_be_cites_its_invariant(number: str, wrong: dict[str, object]) -> None:
    with pytest.raises(InvariantViolation, match=f"{number} does not hold"):
        check_step(FULL, msgspec.structs.replace(FULL, **wrong))


def test_a_table_survives_the_wire() -> None:
    whole = table().apply(8, [], stores=(CopyStore(4, b"s" * 16, True),), stopped=True)
    message = ownership.table_to_pb(whole)
    assert ownership.table_from_pb(type(message).FromString(message.SerializeToString())) == whole


def test_a_registration_survives_the_wire() -> None:
    registration = Registration(
        name="ähre",
        address="127.0.0.1:7700",
        incarnation=1 << 40,
        pid=77,
        store=b"s" * 16,
        draining=True,
        stored=(StoredPartition(2, 3, 1 << 39),),
        stopped=True,
    )
    message = ownership.registration_to_pb(registration)
    assert ownership.registration_from_pb(message) == registration


def test_a_request_for_a_change_survives_the_wire() -> None:
    change = Change(1, 2, 3, ChangeKind.TAIL, 4, 5, 6)
    assert ownership.change_from_pb(ownership.change_to_pb(change)) == change


def test_what_is_over_its_limit_is_refused() -> None:
    entry = ownership.entry_to_pb(FULL)
    for field, value in (("partition", 65_535), ("epoch", 1 << 24), ("state", 9)):
        wrong = type(entry)()
        wrong.CopyFrom(entry)
        setattr(wrong, field, value)
        with pytest.raises(ProtocolError):
            ownership.entry_from_pb(wrong)
    entry.in_sync.extend(range(100, 200))
    with pytest.raises(ProtocolError, match="names over 64 copies"):
        ownership.entry_from_pb(entry)


def test_registrations_and_tables_are_checked() -> None:
    with pytest.raises(ProtocolError, match="must have 1 to 255 bytes"):
        ownership.registration_from_pb(ownership.registration_to_pb(Registration(name="")))
    short = ownership.registration_to_pb(Registration(name="a", store=b"short"))
    with pytest.raises(ProtocolError, match="store has 5 bytes, 16 expected"):
        ownership.registration_from_pb(short)
    message = ownership.table_to_pb(table())
    del message.entries[0]
    with pytest.raises(ProtocolError, match="2 entries for 3 partitions"):
        ownership.table_from_pb(message)
    wrong = ownership.change_to_pb(Change(1, 2, 3, ChangeKind.TAIL))
    wrong.kind = 0  # type: ignore[assignment]
    with pytest.raises(ProtocolError, match="change kind 0 is unknown"):
        ownership.change_from_pb(wrong)
