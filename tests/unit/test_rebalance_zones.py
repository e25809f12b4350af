"""Zones in the steps towards the goal: who takes the place of a copy that can't be reached."""

from __future__ import annotations

import pytest
from spacegrid.machine.draft import Draft, Nodes
from spacegrid.machine.rebalance import make_goal, step
from spacegrid.machine.table import PartitionEntry, Registration, State, Table

MOTION_MAX = 64


def nodes(zones: dict[int, str]) -> Nodes:
    return Nodes(
        tuple(
            Registration(name=f"node-{copy}", incarnation=copy, zone=zone)
            for copy, zone in zones.items()
        ),
        frozenset(),
    )


def joining(zones: dict[int, str], unreachable: int, copies: int = 2) -> set[int]:
    """Who is made to join a partition that 1 is primary of, when it can't reach that node."""
    entry = PartitionEntry(0, 3, 9, State.OK, 1, (1,))
    table = Table(5, bytes(16), 1, copies, 1, (entry,))
    draft = Draft(table, (), nodes(zones), shunned=frozenset({(0, unreachable)}))
    wanted = {0: (1, unreachable, *sorted(zones.keys() - {1, unreachable})[: copies - 2])}
    step(draft, wanted, MOTION_MAX)
    return {item.copy for item in draft.entry(0).joining}


@pytest.mark.parametrize(
    ("zones", "expected"),
    [
        ({1: "north", 2: "south", 3: "north", 4: "south"}, {4}),
        ({1: "north", 2: "south", 3: "north", 4: "west"}, {4}),
        ({1: "north", 2: "south", 3: "north"}, set()),  # two zones, and the other one is cut off
        ({1: "north", 2: "south", 3: "north", 4: ""}, {4}),  # without a zone: one of its own
        ({1: "north", 2: "north", 3: "north"}, {3}),  # there is but one zone
        ({1: "", 2: "", 3: ""}, {3}),
    ],
)
def test_the_place_of_an_unreachable_copy_is_taken_in_another_zone(
    zones: dict[int, str], expected: set[int]
) -> None:
    assert joining(zones, unreachable=2) == expected


def test_no_two_places_are_taken_in_one_zone() -> None:
    zones = {1: "a", 2: "b", 3: "c", 4: "b", 5: "b", 6: "c"}
    entry = PartitionEntry(0, 3, 9, State.OK, 1, (1,))
    table = Table(5, bytes(16), 1, 3, 1, (entry,))
    draft = Draft(table, (), nodes(zones), shunned=frozenset({(0, 2), (0, 3)}))
    step(draft, {0: (1, 2, 3)}, MOTION_MAX)
    assert {item.copy for item in draft.entry(0).joining} == {4, 6}


def test_copies_that_shared_a_zone_are_moved_apart_when_there_is_another() -> None:
    entry = PartitionEntry(0, 3, 9, State.OK, 1, (1, 2))
    table = Table(5, bytes(16), 1, 2, 1, (entry,))
    draft = Draft(table, (), nodes({1: "north", 2: "north", 3: "south"}))
    assert set(make_goal(draft, first=False)[0]) == {1, 3}
