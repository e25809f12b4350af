"""Counterexamples of PROTOCOL.md section 12 that live inside the core, each as a script.

The nodes are real ones, in the test's process; what is late or lost on the way is the test's.
Planted bugs of the rules (tests/simulation/planted.py) make them fail.
"""

from __future__ import annotations

from core_world import (
    CLIENT,
    CONFLICT,
    GET,
    INCR,
    MISS,
    NOT_PRIMARY,
    OK,
    PUT,
    UNKNOWN,
    CoreWorld,
    Row,
    request,
)

TAIL_WANTED = 1
ONE = (1).to_bytes(8, "little", signed=True)


def in_sync(*copies: int, extra: tuple[int, ...] = ()) -> CoreWorld:
    """Nodes that hold everything, the first is primary; the extra ones hold nothing."""
    world = CoreWorld(*copies, *extra)
    world.table(copies[0], list(copies), epoch=1)
    world.carry()
    return world


def outcomes(rows: list[Row]) -> list[tuple[int, int]]:
    return [row[:2] for row in rows]


def step(world: CoreWorld, *directions: tuple[int, int]) -> None:
    """Carry what lies ready in each direction, in order, and nothing that comes of it."""
    for direction in directions:
        ready = [item for item in world.wire if item[:2] == direction]
        world.wire = [item for item in world.wire if item[:2] != direction]
        for sender, to, data in ready:
            world.nodes[to].on_peer_frame(sender, data, world.now_ms)
        world.collect()


def reconnect(world: CoreWorld, sender: int, to: int) -> None:
    """A link breaks and is up again: what was lost is sent anew."""
    world.nodes[sender].peer_down(to)
    world.nodes[sender].peer_up(to)
    world.tick(20)


def test_a_zombies_join_leaves_a_complete_copy_of_a_newer_table_alone() -> None:
    """Node 1 sleeps while it waits for node 3 to join, and offers that again when it wakes."""
    world = in_sync(1, 2, extra=(3, 4))
    world.does(1, request(PUT, 1, b"k", b"old"))
    world.table(1, [1, 2], epoch=1, joining=3)
    world.carry(lose=[(1, 3)])
    zombie = world.nodes.pop(1)
    world.table(2, [2], epoch=2)
    world.join(3)
    world.join(4)
    assert outcomes(world.does(2, request(PUT, 2, b"k", b"new"))) == [(2, OK)]
    world.nodes[1] = zombie
    reconnect(world, 1, 3)
    assert [item for item in world.wire if item[:2] == (1, 3)], "it offers the join again"
    world.carry()
    world.kill(1)
    world.kill(2)
    world.table(3, [3, 4], epoch=3)
    world.carry()
    assert world.does(3, request(GET, 3, b"k"))[0][1:3] == (OK, b"new")


def test_a_change_that_is_asked_for_counts_before_the_table_says_so() -> None:
    """The controller may have let the copy be a tail already, and may promote on the strength."""
    world = in_sync(1, 2, extra=(3,))
    world.table(1, [1, 2], epoch=1, joining=3)
    world.wait_asked(3, kind=TAIL_WANTED)
    world.ask(1, request(PUT, 1, b"k", b"v"))
    world.carry(lose=[(1, 3)])
    assert world.heard() == [], "the request for the change is in flight"
    reconnect(world, 1, 3)
    world.carry()
    assert outcomes(world.heard()) == [(1, OK)]


def test_a_joiner_with_a_hole_in_its_stream_is_not_counted() -> None:
    world = in_sync(1, 2, extra=(3,))
    world.table(1, [1, 2], epoch=1, joining=3)
    world.wait_asked(3, kind=TAIL_WANTED)
    # The first record to it is lost and the next one arrives: it has the end and not the whole.
    world.ask(1, request(PUT, 1, b"k", b"1"))
    world.carry(lose=[(1, 3)])
    world.ask(1, request(PUT, 2, b"k", b"2"))
    assert [item for item in world.wire if item[:2] == (1, 3)], "the next record is on its way"
    step(world, (1, 2), (2, 1), (1, 3), (3, 1))
    assert world.heard() == [], "what it says now is no word for either"
    world.carry()
    assert outcomes(world.heard()) == [(1, OK), (2, OK)]


def test_a_promoted_primary_commits_its_tail_on_all_copies_before_it_shows_it() -> None:
    world = in_sync(1, 2, 3, 4)
    world.does(1, request(PUT, 1, b"k", b"old"))
    # The record reaches node 2 alone; then node 1 ends.
    world.ask(1, request(PUT, 2, b"k", b"new"))
    world.carry(lose=[(1, 3), (1, 4), (2, 1)])
    world.kill(1)
    world.heard()
    world.table(2, [2, 3, 4], epoch=2)
    world.ask(2, request(GET, 3, b"k"), request(PUT, 2, b"k", b"new"))
    world.carry(lose=[(2, 3), (2, 4)])
    assert world.heard() == [], "on one copy it is neither shown nor acknowledged"
    for copy in (3, 4):
        reconnect(world, 2, copy)
    world.carry()
    assert [row[:3] for row in world.heard()] == [(2, OK, b""), (3, OK, b"new")]
    world.kill(2)
    world.table(3, [3, 4], epoch=3)
    world.carry()
    assert world.does(3, request(GET, 4, b"k"))[0][2] == b"new"


def test_an_old_tail_keeps_the_birth_of_its_records() -> None:
    """Whoever pumped it under the old epoch and whoever does under the new one mean one record."""
    world = in_sync(1, 2, 3)
    old = world.does(1, request(PUT, 1, b"k", b"old"))[0][4]
    world.ask(1, request(PUT, 2, b"k", b"tail"))
    world.carry(lose=[(2, 1), (3, 1)])
    world.kill(1)
    world.table(2, [2, 3], epoch=2)
    world.carry()
    assert [row[:3] + row[4:] for row in world.does(2, request(GET, 3, b"k"))] == [
        (3, OK, b"tail", old + 1)
    ]
    later = world.does(2, request(PUT, 4, b"k", b"later"))[0][4]
    assert (later >> 40, later & (1 << 40) - 1) == (2, (old & (1 << 40) - 1) + 2)


def test_two_records_with_one_sequence_are_two_versions() -> None:
    """What node 1 wrote as its last was cut; node 2 wrote another one at the same sequence."""
    world = in_sync(1, 2)
    before = world.does(1, request(PUT, 1, b"k", b"0"))[0][4]
    cut = before + 1
    world.ask(1, request(PUT, 2, b"k", b"cut"))
    world.carry(lose=[(1, 2)])
    world.table(2, [2, 1], epoch=2)
    world.carry()
    kept = world.does(2, request(PUT, 3, b"k", b"kept"))[0][4]
    low = (1 << 40) - 1
    assert kept != cut
    assert kept & low == cut & low, "the same sequence in another epoch"
    stale = request(PUT, 4, b"k", b"wrong", version=cut)
    assert outcomes(world.does(2, stale)) == [(4, CONFLICT)]
    assert world.does(2, request(GET, 5, b"k"))[0][2] == b"kept"


def test_a_condition_is_not_answered_from_a_record_that_is_cut() -> None:
    world = in_sync(1, 2)
    world.ask(1, request(PUT, 1, b"k", b"cut"))
    world.ask(1, request(PUT, 2, b"k", b"mine", if_absent=True))
    world.carry(lose=[(1, 2)])
    assert world.heard() == [], "that it exists is not certain yet"
    world.table(2, [2, 1], epoch=2)
    world.carry()
    assert {row[1] for row in world.heard()} <= {UNKNOWN, NOT_PRIMARY}
    assert world.does(2, request(GET, 3, b"k"))[0][1] == MISS
    assert outcomes(world.does(2, request(PUT, 2, b"k", b"mine", if_absent=True))) == [(2, OK)]


def test_the_retry_of_a_bounced_request_behind_an_applied_later_one_is_run() -> None:
    """That a later request of the stream was applied says nothing of an earlier one."""
    world = in_sync(1, 2, 3)
    world.ask(2, request(INCR, 1, b"n", ONE, lowest=1))
    assert outcomes(world.heard()) == [(1, NOT_PRIMARY)]
    assert [row[:3] for row in world.does(1, request(INCR, 2, b"n", ONE, lowest=1))] == [
        (2, OK, b"\x01")
    ]
    retried = [row[:3] for row in world.does(1, request(INCR, 1, b"n", ONE, lowest=1))]
    assert retried == [(1, OK, b"\x02")], "it is run, and once"
    for _ in range(2):
        again = [row[:3] for row in world.does(1, request(INCR, 1, b"n", ONE, lowest=1))]
        assert again == retried
    world.kill(1)
    world.table(2, [2, 3], epoch=2)
    world.carry()
    assert world.does(2, request(GET, 3, b"n"))[0][2] == b"\x02"


def test_a_commit_whose_connection_drops_is_told_to_the_retry() -> None:
    world = in_sync(1, 2)
    world.ask(1, request(INCR, 1, b"n", ONE))
    world.nodes[1].close_connection(CLIENT)
    world.carry()
    world.heard()
    for _ in range(2):
        again = world.does(1, request(INCR, 1, b"n", ONE))
        assert [row[:4] for row in again] == [(1, OK, b"\x01", 2)], "carried out, once"
