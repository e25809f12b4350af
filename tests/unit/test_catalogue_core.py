"""Ways in which grids lose data or lie, each tried on the real core in one process.

The numbers are those of docs/RELIABILITY.md. Time and network are the test's.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from core_world import (
    CONFLICT,
    DELETE,
    GET,
    INCR,
    MISS,
    NOT_ENOUGH_COPIES,
    NOT_PRIMARY,
    OK,
    PUT,
    UNKNOWN,
    CoreWorld,
    request,
)
from spacegrid import _core
from spacegrid.errors import SpaceGridError

STALE_REQUEST = 10
ONE = (1).to_bytes(8, "little", signed=True)


def in_sync(*copies: int, extra: tuple[int, ...] = ()) -> CoreWorld:
    """Nodes that hold everything, the first is primary; the extra ones hold nothing."""
    world = CoreWorld(*copies, *extra)
    world.table(copies[0], list(copies), epoch=1)
    world.carry()
    return world


def test_f01_a_primary_that_wakes_up_after_it_was_replaced_acknowledges_nothing() -> None:
    world = in_sync(1, 2, 3)
    world.does(1, request(PUT, 1, b"k", b"old"))
    # Node 1 sleeps through a table that gives everything to node 2, and is asked when it wakes.
    asleep = world.nodes.pop(1)
    world.table(2, [2, 3], epoch=2)
    world.carry()
    assert world.does(2, request(PUT, 2, b"k", b"new"))[0][1] == OK
    world.nodes[1] = asleep
    assert world.does(1, request(PUT, 3, b"k", b"zombie")) == []
    world.table(2, [2, 3], epoch=2)
    world.carry()
    assert {row[1] for row in world.heard()} <= {UNKNOWN, NOT_PRIMARY}
    assert world.does(2, request(GET, 4, b"k"))[0][2] == b"new"


def test_f03_without_the_backups_word_there_is_no_acknowledgement() -> None:
    world = in_sync(1, 2)
    world.ask(1, request(PUT, 1, b"k", b"v"))
    world.carry(lose=[(1, 2)])
    assert world.heard() == []
    world.tick(60_000)
    world.carry(lose=[(1, 2)])
    assert world.heard() == [], "time alone acknowledges nothing"
    # The link comes back: what the backup never had is sent again, and only then is it answered.
    world.nodes[1].peer_down(2)
    world.nodes[1].peer_up(2)
    world.tick(20)
    world.carry()
    assert [row[:4] for row in world.heard()] == [(1, OK, b"", 2)]


def test_f06_below_the_copies_that_a_write_needs_it_is_refused_and_reads_go_on() -> None:
    world = in_sync(1, 2)
    world.does(1, request(PUT, 1, b"k", b"v"))
    world.kill(2)
    world.table(1, [1], epoch=1)
    world.carry()
    assert [row[:2] for row in world.does(1, request(PUT, 2, b"k", b"w"))] == [
        (2, NOT_ENOUGH_COPIES)
    ]
    assert [row[:3] for row in world.does(1, request(GET, 3, b"k"))] == [(3, OK, b"v")]


def test_f08_a_late_word_of_an_earlier_join_is_not_counted() -> None:
    world = in_sync(1, 2, extra=(3,))
    world.does(1, request(PUT, 1, b"k", b"1"))
    # Node 3 joins, and what it says to the primary is held back.
    world.table(1, [1, 2], epoch=1, joining=3)
    late: list[tuple[int, int, bytes]] = []
    world.collect()
    while world.wire:
        item = world.wire.pop(0)
        if item[:2] == (3, 1):
            late.append(item)
        else:
            world.nodes[item[1]].on_peer_frame(item[0], item[2], world.now_ms)
        world.collect()
    assert late, "the copy has said something"
    # It is removed and joins anew; now the held words arrive, and nothing of the new join has.
    world.table(1, [1, 2], epoch=1)
    world.table(1, [1, 2], epoch=1, joining=3)
    world.changes.clear()
    for sender, to, data in late:
        world.nodes[to].on_peer_frame(sender, data, world.now_ms)
    world.tick(20)
    assert [change for change in world.changes if change[4] == 3] == []
    world.wait_asked(3, kind=1)


def test_f21_a_deleted_key_does_not_come_back_with_a_copy_that_was_away() -> None:
    world = in_sync(1, 2, extra=(3,))
    world.does(1, request(PUT, 1, b"k", b"v"))
    # Node 2 is dropped, node 3 takes its place, the key is deleted, and node 2 joins again.
    world.table(1, [1], epoch=1)
    world.join(3)
    assert world.does(1, request(DELETE, 2, b"k"))[0][1] == OK
    world.join(2)
    world.kill(1)
    world.table(2, [2, 3], epoch=2)
    world.carry()
    assert world.does(2, request(GET, 3, b"k"))[0][1] == MISS


def test_f22_the_partition_of_a_key_is_the_same_in_every_process_and_for_ever() -> None:
    code = (
        "from spacegrid import _core;"
        "print([_core.partition_of(_core.encode_key(k), 1024) for k in"
        " ('tea', 'order:{c-42}:1', ('c-42', 'x'), 7, b'7')])"
    )
    shown = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4711")
    }
    assert shown == {"[128, 233, 233, 282, 282]\n"}


def test_f23_a_request_sent_again_after_a_failover_is_answered_and_not_applied() -> None:
    world = in_sync(1, 2, 3)
    world.ask(1, request(INCR, 1, b"n", ONE))
    world.carry()
    first = world.heard()
    world.kill(1)
    world.table(2, [2, 3], epoch=2)
    world.carry()
    again = world.does(2, request(INCR, 1, b"n", ONE))
    assert [row[:3] for row in again] == [(1, OK, b"\x01")]
    assert again[0][4] == first[0][4], "the stored answer, with its first version"


def test_f24_a_first_attempt_that_comes_late_undoes_nothing() -> None:
    world = in_sync(1, 2)
    late = request(PUT, 1, b"k", b"old", lowest=1)
    world.does(1, request(PUT, 1, b"k", b"old", lowest=1))
    assert world.does(1, request(PUT, 2, b"k", b"new", lowest=2))[0][1] == OK
    # The client has its answer and counts from 2 on; now the held packet arrives.
    assert [row[1] for row in world.does(1, late)] == [STALE_REQUEST]
    assert world.does(1, request(GET, 3, b"k", lowest=2))[0][2] == b"new"


def test_f25_what_a_deposed_primary_had_not_committed_is_unknown_and_never_failed() -> None:
    world = in_sync(1, 2)
    world.ask(1, request(PUT, 1, b"k", b"v"))
    # The backup has the record, the primary hears nothing, and is deposed.
    world.carry(lose=[(2, 1)])
    assert world.heard() == []
    world.table(2, [2, 1], epoch=2)
    world.carry()
    assert [row[:2] for row in world.heard()] == [(1, UNKNOWN)]
    again = world.does(2, request(PUT, 1, b"k", b"v"))
    assert [row[1] for row in again] == [OK], "asked again it is definite"
    assert world.does(2, request(GET, 2, b"k"))[0][2] == b"v"


def test_f26_of_two_writes_onto_one_version_one_wins() -> None:
    world = in_sync(1, 2)
    version = world.does(1, request(PUT, 1, b"k", b"0"))[0][4]
    both = [request(PUT, n, b"k", b"%d" % n, version=version) for n in (2, 3)]
    assert [row[1] for row in world.does(1, *both)] == [OK, CONFLICT]
    assert world.does(1, request(GET, 4, b"k"))[0][2] == b"2"
    counted = world.does(1, *(request(INCR, 10 + n, b"n", ONE) for n in range(50)))
    assert [row[2] for row in counted] == [bytes([n + 1]) for n in range(50)]


def test_f27_a_clock_that_jumps_changes_no_order() -> None:
    world = in_sync(1, 2)
    versions = []
    for number, jump in enumerate((0, 3_600_000, -7_200_000, 1, 3_600_000), start=1):
        world.now_ms += jump
        versions.append(world.does(1, request(PUT, number, b"k", b"%d" % number))[0][4])
    assert versions == sorted(set(versions))
    assert world.does(1, request(GET, 9, b"k"))[0][2] == b"5", "the last one sent is the last one"


def test_f29_what_no_backup_has_is_not_shown_to_anyone() -> None:
    world = in_sync(1, 2, 3)
    world.does(1, request(PUT, 1, b"k", b"old"))
    world.ask(1, request(PUT, 2, b"k", b"new"), request(GET, 3, b"k"))
    world.carry(lose=[(1, 2), (1, 3)])
    assert world.heard() == [], "the read waits for the write that it would show"
    world.kill(1)
    world.table(2, [2, 3], epoch=2)
    world.carry()
    assert world.does(2, request(GET, 4, b"k"))[0][2] == b"old"


@pytest.mark.parametrize("early_ms", [-1, 1])
def test_f31_an_entry_ends_at_the_same_moment_on_the_new_primary(early_ms: int) -> None:
    world = in_sync(1, 2, 3)
    world.does(1, request(PUT, 1, b"k", b"v", ttl_ms=10_000))
    world.tick(9_000)
    world.carry()
    world.kill(1)
    world.table(2, [2, 3], epoch=2)
    world.carry()
    world.now_ms += 1_000 + early_ms
    found = world.does(2, request(GET, 2, b"k"))
    status, value = (OK, b"v") if early_ms < 0 else (MISS, b"")
    assert [row[:3] for row in found] == [(2, status, value)]


def test_f20_an_owner_of_before_answers_with_the_revision_that_knows_better() -> None:
    world = in_sync(1, 2)
    world.table(2, [2, 1], epoch=2)
    world.carry()
    refused = world.does(1, request(PUT, 1, b"k", b"v"))
    assert [(row[1], row[4]) for row in refused] == [(NOT_PRIMARY, world.revision)]
    assert world.does(2, request(PUT, 1, b"k", b"v"))[0][1] == OK, "the same token, at the owner"
    assert world.does(2, request(PUT, 1, b"k", b"v"))[0][1] == OK


def test_f53_frames_of_another_version_are_refused_on_every_way_in() -> None:
    node = _core.Node(1, 4, min_in_sync=1)
    good = request(GET, 1, b"k")
    for version in (0, 2, 255):
        other = good[:2] + bytes([version]) + good[3:]
        with pytest.raises(_core.FrameError, match="version"):
            node.on_client_frame(1, other, 0)
        with pytest.raises(_core.FrameError, match="version"):
            node.on_peer_frame(2, other, 0)
    assert issubclass(_core.FrameError, ValueError)
    assert not issubclass(_core.FrameError, SpaceGridError)
