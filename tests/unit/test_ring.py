"""The public hash ring: lookups, changes, errors, and use from threads."""

import sys
import threading
from collections import Counter

import pytest
import spacegrid
from spacegrid import HashRing

# Placements of these nodes and keys, fixed for ever: other programs compute them too.
KNOWN = ["green", "green", "green", "blue", "red", "red"]


def test_ring_is_public() -> None:
    assert "HashRing" in spacegrid.__all__


def test_single_lookup_returns_the_very_name_object_it_was_given() -> None:
    name = "".join(["no", "de"])
    ring = HashRing()
    ring.add_node(name)
    assert ring.get_node("key") is name
    references = sys.getrefcount(name)
    for _ in range(100):
        ring.get_node("key")
    assert sys.getrefcount(name) == references


def test_text_and_its_bytes_are_one_key() -> None:
    ring = HashRing(["a", "b", "c"])
    for key in ("tea", "käse", "茶", "", "a" * 5000):
        assert ring.get_node(key) == ring.get_node(key.encode())


def test_known_placements_never_change() -> None:
    ring = HashRing(["red", "green", "blue"])
    keys = ["tea", "milk", "customer-42", "order:{customer-42}:1", "536365", ""]
    assert ring.get_node_batch(keys) == KNOWN


def test_batch_equals_single_for_every_kind_of_sequence() -> None:
    ring = HashRing([f"node-{index}" for index in range(7)])
    for count in (0, 1, 63, 64, 65, 255, 256, 1000):
        keys: list[str | bytes] = [f"key-{index}" for index in range(count)]
        keys[::3] = [f"bytes-{index}".encode() for index in range(len(keys[::3]))]
        expected = [ring.get_node(key) for key in keys]
        assert ring.get_node_batch(keys) == expected
        assert ring.get_node_batch(tuple(keys)) == expected
        assert ring.get_node_batch(iter(keys)) == expected


def test_get_nodes_starts_with_the_keys_own_node_and_repeats_none() -> None:
    ring = HashRing(["a", "b", "c", "d"])
    for index in range(200):
        nodes = ring.get_nodes(f"key-{index}", 3)
        assert nodes[0] == ring.get_node(f"key-{index}")
        assert len(set(nodes)) == 3
        assert sorted(ring.get_nodes(f"key-{index}", 99)) == ["a", "b", "c", "d"]
    assert ring.get_nodes("key", 0) == []


def test_the_next_node_takes_over_when_a_node_leaves() -> None:
    ring = HashRing(["a", "b", "c", "d"])
    after = HashRing(["a", "b", "c", "d"])
    after.remove_node("b")
    for index in range(500):
        first, second = ring.get_nodes(f"key-{index}", 2)
        assert after.get_node(f"key-{index}") == (second if first == "b" else first)


def test_weights_share_the_keys() -> None:
    ring = HashRing({"small": 0.5, "large": 2.0}, virtual_nodes=1000)
    assert ring.weights == {"small": 0.5, "large": 2.0}
    counts = Counter(ring.get_node_batch([f"key-{index}" for index in range(20_000)]))
    assert counts["large"] / counts["small"] == pytest.approx(4, rel=0.15)


def test_membership_follows_changes() -> None:
    ring = HashRing(["a"])
    ring.add_node("b", weight=2)
    assert (len(ring), ring.nodes, "b" in ring, "c" in ring, 7 in ring) == (
        2, ["a", "b"], True, False, False,
    )  # fmt: skip
    ring.remove_node("a")
    assert (len(ring), ring.nodes, ring.weights) == (1, ["b"], {"b": 2.0})
    assert repr(ring) == "HashRing(1 nodes, 300 points)"
    assert ring.virtual_nodes == 150


def test_an_empty_ring_says_so() -> None:
    ring = HashRing()
    assert ring.get_node_batch([]) == []
    for lookup in (
        lambda: ring.get_node("key"),
        lambda: ring.get_nodes("key", 2),
        lambda: ring.get_node_batch(["key"]),
    ):
        with pytest.raises(LookupError, match="the ring has no nodes"):
            lookup()
    ring.add_node("a")
    ring.remove_node("a")
    with pytest.raises(LookupError, match="the ring has no nodes"):
        ring.get_node("key")


@pytest.mark.parametrize(
    ("name", "weight", "message"),
    [
        ("a", 1.0, "node \"a\" is already there"),
        ("", 1.0, "the name is empty"),
        ("n" * 256, 1.0, "the name's length in bytes is 256, the limit is 255"),
        ("b", 0.0, "the weight of node \"b\" is 0, it must be within 0.001 to 1000"),
        ("b", float("nan"), "the weight of node \"b\" is NaN"),
        ("b", float("inf"), "the weight of node \"b\" is inf"),
    ],
)  # fmt: skip
def test_a_refused_node_names_the_value_and_changes_nothing(
    name: str, weight: float, message: str
) -> None:
    ring = HashRing(["a"])
    with pytest.raises(ValueError, match=message):
        ring.add_node(name, weight)
    assert ring.weights == {"a": 1.0}


def test_unknown_nodes_and_wrong_types_are_named() -> None:
    ring = HashRing(["a"])
    with pytest.raises(KeyError, match="the ring has no node"):
        ring.remove_node("b")
    with pytest.raises(TypeError, match="a ring key is str or bytes, not int"):
        ring.get_node(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a ring key is str or bytes, not float"):
        ring.get_node_batch(["a", 1.5])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="keys is a sequence of keys, not one key"):
        ring.get_node_batch("abc")
    with pytest.raises(ValueError, match='node "a" is already there'):
        HashRing(["a", "a"])
    with pytest.raises(ValueError, match="virtual nodes is 10001, the limit is 10000"):
        HashRing(virtual_nodes=10_001)
    with pytest.raises(ValueError, match="the number of virtual nodes is empty"):
        HashRing(virtual_nodes=0)


def test_batches_see_one_ring_while_other_threads_change_it() -> None:
    ring = HashRing(["a", "b"])
    keys = [f"key-{index}" for index in range(5_000)]
    with_c = HashRing(["a", "b", "c"]).get_node_batch(keys)
    without = ring.get_node_batch(keys)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            ring.add_node("c")
            ring.remove_node("c")

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(50):
            assert ring.get_node_batch(keys) in (with_c, without)
            assert ring.get_node("key-1") in {"a", "b", "c"}
    finally:
        stop.set()
        changer.join()
