"""Tables that reach one node later than another: nobody waits for a clock because of that."""

from __future__ import annotations

import pytest
from core_world import OK, PARTITIONS, PUT, CoreWorld, request

TAIL = 1


def tails_asked(world: CoreWorld) -> int:
    return sum(change[3:5] == (TAIL, 3) for change in world.changes)


@pytest.mark.parametrize("late", [3, 1], ids=["the joining copy", "the primary"])
def test_a_join_goes_on_at_once_whoever_reads_the_table_first(late: int) -> None:
    world = CoreWorld(1, 2, 3)
    world.table(1, [1, 2], epoch=1)
    world.carry()
    tell = world.table(1, [1, 2], epoch=1, joining=3, late=[late])
    world.carry()
    assert not tails_asked(world)
    tell()
    world.carry()
    assert tails_asked(world) == PARTITIONS


def test_a_join_that_begins_anew_goes_on_at_once() -> None:
    """The copy hears of the second session without having heard that the first one ended."""
    world = CoreWorld(1, 2, 3)
    world.table(1, [1, 2], epoch=1)
    world.table(1, [1, 2], epoch=1, joining=3)
    world.carry()
    world.table(1, [1, 2], epoch=1, late=[3])
    tell = world.table(1, [1, 2], epoch=1, joining=3, late=[3])
    world.carry()
    world.changes.clear()
    # What it says of the first join counts for nothing in the second.
    assert world.does(1, request(PUT, 1, b"k", b"1"))[0][1] == OK
    assert not tails_asked(world)
    tell()
    world.carry()
    assert tails_asked(world) == PARTITIONS
