"""Whether a cluster is whole, and whether anything in it still moves; pure.

A table is one thing and what a node knows of it another: right after a node's end, or the end of
the controller, the nodes that are left may go on for a while by what they knew. So every node is
asked, and all must say the same.

Who calls: `testing.cluster`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spacegrid.machine.placement import plan
from spacegrid.v1 import admin_pb2

__all__ = ["is_settled", "is_whole"]


def is_whole(statuses: Sequence[admin_pb2.StatusReply]) -> bool:
    """Whether the nodes know each other, and see every partition served with all its copies.

    Args:
        statuses: What each node that runs says.
    """
    return _know_each_other(statuses) and all(
        status.self.state == "ready"
        and not status.unserved
        and not (status.under_replicated and status.copies_wanted <= len(statuses))
        for status in statuses
    )


def is_settled(
    statuses: Sequence[admin_pb2.StatusReply], listed: Sequence[admin_pb2.PartitionsReply]
) -> bool:
    """Whether the nodes know each other and one table, in which everything is where it should be.

    Partitions that nobody serves don't count: they wait for something else.

    Args:
        statuses: What each node that runs says.
        listed: The partitions as each of them knows them, asked after that.
    """
    revisions = {status.revision for status in statuses} | {reply.revision for reply in listed}
    if len(revisions) != 1 or not _know_each_other(statuses):
        return False
    nodes = {node.name: node for node in statuses[0].nodes if node.state == "ready"}
    served = {row.partition: row for row in listed[0].partitions if row.state == "ok"}
    return _is_there(served, nodes, statuses[0].copies_wanted)


def _know_each_other(statuses: Sequence[admin_pb2.StatusReply]) -> bool:
    """Whether each node knows all that run, in the incarnation that they are, and nobody else."""
    there = {(status.self.name, status.self.incarnation) for status in statuses}
    return all(
        {(node.name, node.incarnation) for node in status.nodes} == there for status in statuses
    )


def _is_there(
    served: Mapping[int, admin_pb2.PartitionStatus],
    nodes: Mapping[str, admin_pb2.NodeStatus],
    copies: int,
) -> bool:
    """Whether the partitions are where the controller would put them."""
    held: dict[int, tuple[int, ...]] = {}
    for number, row in served.items():
        names = (row.primary, *(name for name in row.in_sync if name != row.primary))
        if row.joining or row.tails or not nodes.keys() >= set(names):
            return False
        held[number] = tuple(nodes[name].incarnation for name in names)
    goal = plan(
        held,
        {node.incarnation: node.name for node in nodes.values()},
        copies,
        {node.incarnation: node.zone or None for node in nodes.values()},
    )
    return all(
        (found[:1], sorted(found)) == (goal[number][:1], sorted(goal[number]))
        for number, found in held.items()
    )
