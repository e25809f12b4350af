"""Properties of the ring that hold for any nodes and keys."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from spacegrid import HashRing

names = st.lists(
    st.text(min_size=1, max_size=20).filter(lambda name: name.isprintable()),
    min_size=1,
    max_size=8,
    unique=True,
)
keys = st.lists(st.one_of(st.text(max_size=30), st.binary(max_size=30)), max_size=100)


@given(names, keys, st.randoms(use_true_random=False))
def test_rings_with_the_same_nodes_agree(nodes: list[str], keys: list[str | bytes], random) -> None:  # type: ignore[no-untyped-def]
    ring = HashRing(nodes)
    shuffled = list(nodes)
    random.shuffle(shuffled)
    other = HashRing(["other"])
    for name in shuffled:
        if name != "other":
            other.add_node(name)
    if "other" not in nodes:
        other.remove_node("other")
    assert ring.get_node_batch(keys) == other.get_node_batch(keys)


@given(names, keys)
def test_a_joining_node_takes_keys_only_for_itself(
    nodes: list[str], keys: list[str | bytes]
) -> None:
    *rest, new = nodes
    if not rest:
        return
    ring = HashRing(rest)
    before = ring.get_node_batch(keys)
    ring.add_node(new)
    for old, now in zip(before, ring.get_node_batch(keys), strict=True):
        assert now in (old, new)
    ring.remove_node(new)
    assert ring.get_node_batch(keys) == before


@given(names, keys)
def test_preference_lists_are_the_ring_without_the_nodes_before(
    nodes: list[str], keys: list[str | bytes]
) -> None:
    ring = HashRing(nodes)
    for key in keys[:10]:
        order = ring.get_nodes(key, len(nodes))
        assert sorted(order) == sorted(nodes)
        left = HashRing(nodes)
        for name in order[:-1]:
            assert left.get_node(key) == name
            left.remove_node(name)


def test_ten_nodes_share_keys_within_a_fifth() -> None:
    ring = HashRing([f"10.0.0.{index}:7700" for index in range(10)])
    counts = Counter(ring.get_node_batch([f"customer-{index}" for index in range(100_000)]))
    assert len(counts) == 10
    assert max(counts.values()) / 10_000 < 1.2
