"""Assignments: balance of primaries and copies, movement on join and leave, zones."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spacegrid._core import assign

BALANCE_MAX = 1.05
MOVED_MAX = 1.02
#: Where zones leave fewer ways for a move.
ZONES_MOVED_MAX = 1.05


def names(count: int) -> list[str]:
    return [f"node-{index}" for index in range(count)]


def balance(assigned: list[list[int]], node_count: int) -> tuple[float, float]:
    """The fullest node over the mean: of primaries, of copies."""
    primaries = Counter(holders[0] for holders in assigned)
    copies = Counter(node for holders in assigned for node in holders)
    return (
        max(primaries.values()) * node_count / sum(primaries.values()),
        max(copies.values()) * node_count / sum(copies.values()),
    )


def moved(before: list[list[int]], after: list[list[int]]) -> int:
    return sum(len(set(now) - set(old)) for old, now in zip(before, after, strict=True))


SIZES = [(1024, count) for count in (3, 4, 5, 8, 13, 21, 34, 50)] + [(4096, 75), (4096, 100)]


@pytest.mark.parametrize(("partitions", "count"), SIZES)
def test_nodes_that_join_and_leave_move_little_and_leave_balance(
    partitions: int, count: int
) -> None:
    assigned = assign(partitions, 2, names(count))
    assert max(balance(assigned, count)) <= BALANCE_MAX

    joined = assign(partitions, 2, names(count + 1), assigned)
    ideal = partitions * 2 / (count + 1)
    assert moved(assigned, joined) <= max(ideal * MOVED_MAX, ideal + 1)
    assert max(balance(joined, count + 1)) <= BALANCE_MAX

    gone = count // 2
    left = [[-1 if node == gone else node for node in holders] for holders in joined]
    index = {node: place for place, node in enumerate(n for n in range(count + 1) if n != gone)}
    left = [[index.get(node, -1) for node in holders] for holders in left]
    ideal = sum(holders.count(-1) for holders in left)
    others = [name for name in names(count + 1) if name != f"node-{gone}"]
    after = assign(partitions, 2, others, left)
    assert moved(left, after) <= ideal * MOVED_MAX
    assert max(balance(after, count)) <= BALANCE_MAX


def test_zones_keep_copies_apart() -> None:
    zones = ["north", "south", "west"]
    nodes = [(name, 1.0, zones[index % 3]) for index, name in enumerate(names(7))]
    for holders in assign(1024, 3, nodes):
        assert {zones[node % 3] for node in holders} == set(zones)


ZonedNode = tuple[str, float, str]


def zoned(*sizes: int) -> list[ZonedNode]:
    """Nodes of several zones, in turn, so that a longer list of them begins as a shorter one."""
    return [
        (f"{zone}-{index}", 1.0, zone)
        for index in range(max(sizes))
        for zone, size in zip("abcdef", sizes, strict=False)
        if index < size
    ]


def carried(before: list[list[int]], old: list[ZonedNode], new: list[ZonedNode]) -> list[list[int]]:
    """Who holds what, as indexes into other nodes."""
    place = {node: index for index, node in enumerate(new)}
    return [[place.get(old[node], -1) for node in holders] for holders in before]


def in_distinct_zones(assigned: list[list[int]], nodes: list[ZonedNode], copies: int) -> bool:
    return all(len({nodes[n][2] for n in holders}) == copies for holders in assigned)


#: Nodes a zone before and after; copies.
CHANGES = [
    ((2, 2, 2), (2, 2, 3), 2),  # a node joins
    ((4, 4, 4), (4, 4, 5), 3),
    ((3, 3, 3), (3, 3, 2), 2),  # a node leaves
    ((4, 4, 4), (4, 3, 4), 3),
    ((3, 3), (3, 3, 3), 2),  # a zone is added
    ((4, 4, 4), (4, 4, 4, 4), 3),
    ((3, 3, 3, 3), (3, 3, 3), 2),  # a zone is gone
    ((5, 5, 5, 5, 5), (5, 5, 5, 5, 5, 5), 3),
    ((1, 1, 1), (1, 1, 1, 1), 2),
]


@pytest.mark.parametrize(("before", "after", "copies"), CHANGES)
def test_zones_that_change_move_little_and_leave_copies_apart_and_balance(
    before: tuple[int, ...], after: tuple[int, ...], copies: int
) -> None:
    old, new = zoned(*before), zoned(*after)
    first = assign(1024, copies, old)
    assert in_distinct_zones(first, old, copies)
    held = carried(first, old, new)
    second = assign(1024, copies, new, held)
    assert in_distinct_zones(second, new, copies)
    counts = Counter(node for holders in second for node in holders)
    kept = Counter(node for holders in held for node in holders)
    # Who has more than before must get it from somewhere: that is the least that can move.
    ideal = sum(max(0, counts[node] - kept[node]) for node in range(len(new)))
    assert moved(held, second) <= ideal * ZONES_MOVED_MAX
    if len(set(after)) == 1 or copies < len(after):
        assert max(balance(second, len(new))) <= BALANCE_MAX


@given(
    st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=9),
    st.integers(1, 3),
    st.lists(st.lists(st.integers(-1, 8), max_size=5), min_size=48, max_size=48),
)
def test_no_zone_has_two_copies_while_there_are_as_many_zones_as_copies(
    zones: list[str], copies: int, current: list[list[int]]
) -> None:
    """Whatever was there before; a node without a zone is one of its own."""
    count = len(zones)
    nodes = [(name, 1.0, zone or None) for name, zone in zip(names(count), zones, strict=True)]
    zone_of = [zone or f"alone-{index}" for index, zone in enumerate(zones)]
    current = [[node if node < count else -1 for node in holders] for holders in current]
    assigned = assign(48, copies, nodes, current)
    expected = min(copies, len(set(zone_of)))
    for holders in assigned:
        assert len(holders) == min(copies, count)
        assert len({zone_of[node] for node in holders}) == expected


def test_nodes_are_names_or_tuples() -> None:
    expected = assign(64, 2, ["a", "b", "c"])
    assert assign(64, 2, [("a",), ("b", 1.0), ("c", 1.0, None)]) == expected


@pytest.mark.parametrize(
    ("partitions", "copies", "nodes", "current", "message"),
    [
        (0, 1, ["a"], None, "the number of partitions is empty"),
        (65_536, 1, ["a"], None, "the number of partitions is 65536, the limit is 65535"),
        (8, 0, ["a"], None, "the number of copies is empty"),
        (8, 1, [], None, "the list of nodes is empty"),
        (8, 1, ["a", "a"], None, 'node "a" is already there'),
        (8, 1, [("a", 0.0)], None, 'the weight of node "a" is 0'),
        (2, 1, ["a"], [[0]], "the number of current partitions has the value 1"),
        (1, 1, ["a"], [[1]], "a current holder's index has the value 1"),
    ],
)
def test_bad_arguments_are_named(
    partitions: int,
    copies: int,
    nodes: list[str | tuple[str, float]],
    current: list[list[int]] | None,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        assign(partitions, copies, nodes, current)


@given(
    st.integers(1, 9),
    st.integers(1, 4),
    st.lists(st.lists(st.integers(-1, 8), max_size=5), min_size=48, max_size=48),
)
def test_whatever_was_there_becomes_whole_and_even(
    count: int, copies: int, current: list[list[int]]
) -> None:
    current = [[node if node < count else -1 for node in holders] for holders in current]
    assigned = assign(48, copies, names(count), current)
    each = min(copies, count)
    assert all(len(set(holders)) == len(holders) == each for holders in assigned)
    held = Counter(node for holders in assigned for node in holders)
    assert {held[node] for node in range(count)} <= {48 * each // count, -(-48 * each // count)}
    assert assign(48, copies, names(count), assigned) == assigned
