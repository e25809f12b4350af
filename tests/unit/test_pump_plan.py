"""A pump's decisions: whom to take, when a batch is due, how long to wait."""

from __future__ import annotations

from spacegrid.pump.plan import Backoff, Pace, Plan
from spacegrid.sink.checkpoint import OwnerRow, TakeOver, decode_marks, encode_marks


def role(partition: int, kind: int, epoch: int = 1, version: int = 1, commit: int = 0) -> tuple:
    return (partition, kind, epoch, version, epoch, commit, 0, 0)


def test_a_shared_pump_takes_what_the_node_is_primary_of() -> None:
    plan = Plan(fenced=True)
    steps = plan.observe([role(0, 1), role(1, 2), role(2, 3), role(3, 1, epoch=4)])
    assert steps.take == {0: 1, 3: 4}
    plan.take(0, (1, 0))
    plan.take(3, (3, 9))
    assert plan.observe([role(0, 1, version=2), role(3, 1, epoch=4)]).take == {}
    # A new epoch is taken over anew, even by the same node.
    assert plan.observe([role(0, 1, epoch=2), role(3, 1, epoch=4)]).take == {0: 2}
    steps = plan.observe([role(0, 2), role(3, 1, epoch=4)])
    assert (steps.pause, steps.gone) == ([0], [])


def test_a_local_pump_takes_complete_copies_and_deletes_those_that_left() -> None:
    plan = Plan(fenced=False)
    roles = [role(0, 1), role(1, 2), role(2, 3), role(3, 4), role(4, 5)]
    assert list(plan.observe(roles).take) == [0, 1]
    plan.take(0, (1, 5))
    plan.take(1, (1, 5))
    steps = plan.observe([role(0, 4, version=2)])
    assert (steps.pause, steps.gone) == ([0], [1])
    # Back again, as a new copy: looked up anew.
    assert list(plan.observe([role(0, 2, version=3)]).take) == [0]


def test_a_refused_partition_waits_for_another_epoch() -> None:
    plan = Plan(fenced=True)
    plan.observe([role(0, 1)])
    plan.refuse(0)
    assert plan.observe([role(0, 1)]).take == {}
    assert plan.missing({0: 7}) == {}
    assert plan.observe([role(0, 1, epoch=2)]).take == {0: 2}


def test_a_flush_waits_for_what_was_committed_and_not_for_what_left() -> None:
    plan = Plan(fenced=True)
    roles = [role(0, 1, commit=5), role(1, 1, commit=2), role(2, 2, commit=9)]
    plan.observe(roles)
    targets = plan.targets(roles)
    assert targets == {0: 5, 1: 2}
    plan.take(0, (1, 4))
    assert plan.missing(targets) == targets
    plan.advance(0, (1, 5))
    assert plan.missing(targets) == {1: 2}
    assert plan.lag_records() == 0
    plan.observe([role(0, 1, commit=6)])
    assert plan.missing(targets) == {}
    assert plan.lag_records() == 1


def test_a_batch_is_due_when_full_or_old_or_asked_for() -> None:
    pace = Pace(100, 5.0)
    assert pace.due(0, 0.0, pressed=True) == 0
    assert pace.due(99, 1.0, pressed=False) == 0
    assert pace.due(250, 2.0, pressed=False) == 200
    assert pace.waited_s(3.0) == 2.0
    assert pace.due(50, 5.9, pressed=False) == 0
    assert pace.due(50, 6.0, pressed=False) == 50
    assert pace.due(3, 6.5, pressed=True) == 3
    assert pace.due(3, 7.0, pressed=False) == 0
    assert pace.due(0, 7.0, pressed=False) == 0
    assert pace.waited_s(99.0) == 0.0
    assert pace.wait_s(7.0, 0.1) == 0.1


def test_backoff_grows_to_its_bound() -> None:
    backoff = Backoff()
    delays = [backoff.next_s() for _ in range(10)]
    assert delays[0] == Backoff.FIRST_S
    assert delays[-1] == Backoff.LAST_S
    assert delays == sorted(delays)
    backoff.reset()
    assert backoff.next_s() == Backoff.FIRST_S


def test_taking_over_takes_the_highest_position_and_clears_the_others() -> None:
    rows = [
        OwnerRow(1, 4, {0: (1, (1, 5)), 1: (1, (1, 1))}),
        OwnerRow(2, 7, {0: (2, (2, 8))}),
        OwnerRow(3, 2, {0: (3, (2, 6))}),
    ]
    outcome = TakeOver.decide(rows, rows[2], {0: 4, 1: 1, 2: 1})
    assert outcome.granted == {0: (2, 8), 2: None}
    assert outcome.mine == OwnerRow(3, 3, {0: (4, (2, 8)), 2: (1, (0, 0))})
    assert outcome.changed == [OwnerRow(1, 5, {1: (1, (1, 1))}), OwnerRow(2, 8, {})]
    refused = TakeOver.decide(rows, rows[0], {0: 3})
    assert (refused.granted, refused.mine, refused.changed) == ({}, rows[0], [])


def test_marks_go_through_text() -> None:
    marks = {7: (2, (1, 1 << 39)), 65_534: (1, (0, 0))}
    assert decode_marks(encode_marks(marks)) == marks
