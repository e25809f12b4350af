"""Answers leave under a valid lease only: the compiled node with a clock that the test holds.

Goal: an answer that was computed before the lease broke, or that is looked at after, is UNKNOWN and
carries nothing; the next one under a new lease is an answer again.
"""

from __future__ import annotations

import pytest
from spacegrid import _core
from test_node_core import (
    GET,
    NOT_PRIMARY,
    OK,
    PARTITIONS,
    PUT,
    UNKNOWN,
    Row,
    entry,
    frame,
    lone,
    replies,
)

SHRINK = 4


def leased(until_ms: int = 0) -> _core.Node:
    """A node alone in its table that needs a lease, and has one until then (0: none yet)."""
    node = lone()
    node.require_lease()
    if until_ms:
        assert node.grant_lease(1, until_ms, 0)
    return node


def ask(
    node: _core.Node, now_ms: int, *operations: tuple[int, int, str, bytes, bytes]
) -> list[Row]:
    node.on_client_frame(9, frame(*operations), 0)
    return replies(node.take_effects(boot_ms=now_ms))


def test_a_node_without_a_controller_answers_for_ever() -> None:
    node = lone()
    assert ask(node, 1 << 62, (PUT, 1, "m", b"a", b"1")) == [(1, OK, b"", 1)]


def test_without_a_lease_nothing_is_said_of_the_data() -> None:
    node = leased()
    assert ask(node, 0, (PUT, 1, "m", b"a", b"1"), (GET, 2, "m", b"b", b"")) == [
        (1, UNKNOWN, b"", 0),
        (2, UNKNOWN, b"", 0),
    ]
    assert node.status()["withheld"] == 2


def test_an_answer_is_checked_against_the_clock_after_it_was_computed() -> None:
    node = leased(until_ms=500)
    assert ask(node, 499, (PUT, 1, "m", b"a", b"1")) == [(1, OK, b"", 1)]
    assert ask(node, 500, (GET, 2, "m", b"a", b"")) == [(2, UNKNOWN, b"", 0)]


def test_a_repeat_under_a_new_lease_tells_what_became_of_it() -> None:
    node = leased(until_ms=500)
    assert ask(node, 600, (PUT, 1, "m", b"a", b"1")) == [(1, UNKNOWN, b"", 0)]
    assert node.grant_lease(1, 1_100, 610)
    assert ask(node, 620, (PUT, 1, "m", b"a", b"1")) == [(1, OK, b"", 1)]
    assert node.status()["entries"] == 1


def test_an_answer_from_before_a_break_does_not_leave_under_the_next_lease() -> None:
    node = leased(until_ms=500)
    node.on_client_frame(9, frame((GET, 1, "m", b"a", b"")), 0)
    # The process is stopped here; when it goes on the table and a new lease come first.
    node.apply_table(2, [entry(p, 2, [2], epoch=2, version=2) for p in range(PARTITIONS)], 0)
    assert node.grant_lease(2, 5_500, 5_050)
    assert replies(node.take_effects(boot_ms=5_100)) == [(1, UNKNOWN, b"", 0)]
    assert ask(node, 5_110, (GET, 2, "m", b"a", b""))[0][1] == NOT_PRIMARY


def test_an_answer_outlives_a_lease_that_was_renewed_in_time() -> None:
    node = leased(until_ms=500)
    node.on_client_frame(9, frame((GET, 1, "m", b"a", b"")), 0)
    assert node.grant_lease(1, 600, 450)
    assert replies(node.take_effects(boot_ms=550))[0][1] != UNKNOWN


def test_a_grant_counts_once_its_revision_is_applied() -> None:
    node = leased()
    assert not node.grant_lease(2, 500, 0)
    assert ask(node, 0, (GET, 1, "m", b"a", b""))[0][1] == UNKNOWN
    node.apply_table(2, [], 0)
    assert node.grant_lease(2, 500, 0)
    assert ask(node, 0, (GET, 2, "m", b"a", b""))[0][1] != UNKNOWN
    status = node.status()
    assert (status["lease_until_ms"], status["lease_revision"]) == (500, 2)


def test_where_to_ask_is_said_without_a_lease_too() -> None:
    node = leased()
    node.apply_table(2, [entry(p, 2, [2], epoch=2, version=2) for p in range(PARTITIONS)], 0)
    assert ask(node, 0, (GET, 1, "m", b"a", b""))[0][1] == NOT_PRIMARY


@pytest.mark.parametrize("answers", [False, True])
def test_a_copy_that_owes_an_answer_for_long_is_to_be_removed(answers: bool) -> None:
    primary, backup = (_core.Node(copy, PARTITIONS, min_in_sync=2) for copy in (1, 2))
    for node, other in ((primary, 2), (backup, 1)):
        node.apply_table(1, [entry(p, 1, [1, 2]) for p in range(PARTITIONS)], 0)
        node.peer_up(other)
    primary.on_client_frame(9, frame((PUT, 1, "m", b"a", b"1")), 0)
    asked = []
    for now_ms in range(1_000, 2_200, 50):
        primary.tick(now_ms)
        while (effects := primary.take_effects()) is not None:
            asked += [(now_ms, change) for change in effects.changes]
            for _, data in effects.peer_frames if answers else ():
                backup.on_peer_frame(1, data, now_ms)
        while answers and (effects := backup.take_effects()) is not None:
            for _, data in effects.peer_frames:
                primary.on_peer_frame(2, data, now_ms)
    if answers:
        assert asked == []
        return
    at_ms, change = asked[0]
    assert at_ms >= 2_000, "a second passes first"
    partition = _core.partition_of(b"a", PARTITIONS)
    assert change == (partition, 1, 1, SHRINK, 2, 0, 0)
