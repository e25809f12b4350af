"""When the test kit calls a cluster whole, and when settled."""

from __future__ import annotations

from spacegrid.testing.settled import is_settled, is_whole
from spacegrid.v1 import admin_pb2

NAMES = {"a": 1, "b": 2, "c": 3}
EVEN = {0: "ab", 1: "bc", 2: "ca"}


def node(name: str, incarnation: int = 0) -> admin_pb2.NodeStatus:
    return admin_pb2.NodeStatus(
        name=name, incarnation=incarnation or NAMES[name], state="ready", zone=""
    )


def status(name: str, revision: int = 5, **more: object) -> admin_pb2.StatusReply:
    return admin_pb2.StatusReply(
        self=node(name),
        nodes=[node(other) for other in NAMES],
        revision=revision,
        copies_wanted=2,
        **more,  # type: ignore[arg-type]
    )


def row(partition: int, holders: str, **more: object) -> admin_pb2.PartitionStatus:
    return admin_pb2.PartitionStatus(
        partition=partition,
        state="ok",
        primary=holders[0],
        in_sync=list(holders),
        **more,  # type: ignore[arg-type]
    )


def settled(*rows: admin_pb2.PartitionStatus) -> bool:
    """With these rows in place of those of the even table."""
    found = {number: row(number, holders) for number, holders in EVEN.items()}
    found |= {one.partition: one for one in rows}
    listed = admin_pb2.PartitionsReply(revision=5, partitions=list(found.values()))
    return is_settled([status(name) for name in NAMES], [listed] * 3)


def test_whole_is_what_every_node_sees_served_with_all_its_copies() -> None:
    everyone = [status(name) for name in NAMES]
    assert is_whole(everyone)
    assert not is_whole(everyone[:2]), "they still know one that does not run"
    for wrong in ({"unserved": 1}, {"under_replicated": 1}):
        assert not is_whole([*everyone[:2], status("c", **wrong)])
    starting = status("c")
    starting.self.state = "starting"
    assert not is_whole([*everyone[:2], starting])


def test_a_node_that_is_known_in_an_earlier_incarnation_is_not_known() -> None:
    again = status("c")
    again.self.incarnation = 9
    assert not is_whole([status("a"), status("b"), again])


def test_settled_is_an_even_table_that_all_know() -> None:
    assert settled()
    assert not settled(row(0, "bc")), "b has more than its part"
    assert not settled(row(0, "ba")), "b is primary of two"
    assert not settled(row(0, "abc")), "a copy is still to be dropped"
    assert not settled(row(0, "ab", joining=["c"]))
    assert not settled(row(0, "ab", tails=["c"]))
    listed = admin_pb2.PartitionsReply(revision=5)
    older = [status("a"), status("b"), status("c", revision=4)]
    assert not is_settled(older, [listed] * 3), "c has yet to hear of it"


def test_what_nobody_serves_does_not_move() -> None:
    lost = admin_pb2.PartitionStatus(partition=3, state="lost", in_sync=["a", "b"])
    assert settled(lost)


def test_copies_in_one_zone_are_not_where_they_should_be() -> None:
    statuses = [status(name) for name in NAMES]
    for one in statuses:
        for known in one.nodes:
            known.zone = "south" if known.name == "c" else "north"
    rows = [row(0, "ab"), row(1, "ca")]
    listed = admin_pb2.PartitionsReply(revision=5, partitions=rows)
    assert not is_settled(statuses, [listed] * 3)
