"""What the core makes of a partition that was read out of a sink."""

from __future__ import annotations

import pytest
from spacegrid._core import Node

OK, LOST = 1, 4
POSITION = (3, 40)
VERSION = POSITION[0] << 40 | POSITION[1]
ENTRY = ("stock", 0, b"tea", b"9", 0, VERSION, 0)
NOW_MS = 1_000


def table(
    node: Node, version: int, state: int, primary: int, *in_sync: int, epoch: int = 3
) -> None:
    entry = (0, epoch, version, state, primary, list(in_sync), [], [], [], 0)
    node.apply_table(version, [entry], NOW_MS)


def lost() -> Node:
    node = Node(9, 1, min_in_sync=1)
    table(node, 7, LOST, 0, 1, 2)
    return node


def test_it_is_served_from_the_sinks_position_once_the_table_names_it() -> None:
    node = lost()
    node.reload(0, *POSITION, [ENTRY])
    with pytest.raises(LookupError):
        node.read_entry("stock", b"tea", NOW_MS)
    table(node, 8, OK, 9, 9, epoch=4)
    entry = node.read_entry("stock", b"tea", NOW_MS)
    assert entry is not None
    assert (entry[0], entry[2]) == (b"9", VERSION)
    assert node.set_cursor("shared", 0, *POSITION), "the pump goes on where it was"
    assert not node.set_cursor("shared", 0, 3, 39)


def test_it_may_be_read_again_and_be_forgotten() -> None:
    node = lost()
    node.reload(0, *POSITION, [ENTRY])
    node.reload(0, *POSITION, [("stock", 0, b"salt", b"1", 0, VERSION, 0)])
    assert node.status()["entries"] == 1
    node.unload(0)
    assert (node.status()["entries"], node.status()["copies"]) == (0, 0)
    node.unload(0)


def test_it_goes_when_the_table_names_another() -> None:
    node = lost()
    node.reload(0, *POSITION, [ENTRY])
    table(node, 8, LOST, 0, 1, 2)
    assert node.status()["entries"] == 1, "nobody has taken it on"
    table(node, 9, OK, 5, 5, epoch=4)
    assert (node.status()["entries"], node.status()["copies"]) == (0, 0)


def test_what_is_served_or_came_from_a_disk_is_never_replaced() -> None:
    node = Node(9, 1, min_in_sync=1)
    table(node, 7, OK, 5, 5)
    with pytest.raises(ValueError, match="served or has a copy here"):
        node.reload(0, *POSITION, [ENTRY])
    node = Node(9, 1, min_in_sync=1)
    node.load(0, *POSITION, [ENTRY], b"", True)
    table(node, 7, LOST, 0, 1, 2)
    with pytest.raises(ValueError, match="served or has a copy here"):
        node.reload(0, 1, 1, [])
    node.unload(0)
    assert node.status()["entries"] == 1
