"""A copy loaded from disk waits until the table names it, and is let go for another."""

from typing import Any

import pytest
from spacegrid._core import KeyNotHere, Node

ME, OTHER = 5, 6
DORMANT, OK = 5, 1


def loaded() -> Node:
    node = Node(ME, 1, min_in_sync=1)
    node.load(0, 1, 3, [("stock", 0, b"tea", b"10", 0, 1 << 40 | 3, 0)], b"", True)
    return node


def entry(epoch: int, version: int, primary: int) -> Any:
    return (0, epoch, version, OK, primary, [primary], [], [], [], 0)


def test_it_survives_the_table_of_before_the_stop_whatever_its_epoch() -> None:
    node = loaded()
    # The last primary before the stop had epoch 2 and wrote nothing in it.
    node.apply_table(9, [entry(2, 7, 1)], 0)
    assert node.roles()[0][1] == DORMANT
    node.apply_table(10, [entry(3, 8, ME)], 0)
    assert node.read("stock", b"tea", 0) == b"10"


def test_it_is_forgotten_when_others_go_on_without_it_in_the_same_epoch() -> None:
    node = loaded()
    node.apply_table(9, [entry(2, 7, OTHER)], 0)
    assert node.roles()[0][1] == DORMANT
    node.unload(0)
    assert node.roles() == []


def test_what_the_table_has_taken_on_is_not_forgotten() -> None:
    node = loaded()
    node.apply_table(10, [entry(3, 8, ME)], 0)
    node.unload(0)
    assert node.read("stock", b"tea", 0) == b"10"


def test_it_is_let_go_when_another_node_begins_an_epoch() -> None:
    node = loaded()
    node.apply_table(9, [entry(2, 7, 1)], 0)
    node.apply_table(10, [entry(3, 8, OTHER)], 0)
    assert node.roles() == []
    with pytest.raises(KeyNotHere):
        node.read("stock", b"tea", 0)
