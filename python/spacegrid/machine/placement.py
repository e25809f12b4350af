"""Where partitions should be: an even goal, its copies in distinct zones, reached by few moves.

`plan` asks the core (``_core.assign``, rust/core/src/assign.rs): a function of the nodes and of who
holds what now, so a new controller goes on where the old one was. Who calls: machine/rebalance.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spacegrid._core import assign

__all__ = ["Goal", "plan"]

#: Copies of one partition that should be, the primary first.
Goal = tuple[int, ...]


def plan(
    holders: Mapping[int, Sequence[int]],
    nodes: Mapping[int, str],
    copies: int,
    zones: Mapping[int, str | None] | None = None,
) -> dict[int, Goal]:
    """The goal for each partition.

    Args:
        holders: For each partition the copies that hold it or are about to, the primary (or the one
            that is about to be) first; empty for a partition that was never placed. Copies that are
            not in ``nodes`` are ignored.
        nodes: Nodes that may hold copies: incarnation to name.
        copies: Complete copies wanted; fewer where there are fewer nodes.
        zones: Incarnation to zone; nodes without one fail alone, each is a zone of its own.

    Returns:
        For each partition its copies, the primary first, no two in one zone while there are at
        least as many zones as copies. No two nodes differ by more than one copy, but where a zone
        has too few nodes for its part.

    Cost: about a millisecond for 1,024 partitions; in the core, O(partitions x copies).
    """
    if not holders or not nodes:
        return dict.fromkeys(holders, ())
    copies_of = sorted(nodes)
    index = {copy: place for place, copy in enumerate(copies_of)}
    current = None
    if any(holders.values()):
        current = [[index.get(copy, -1) for copy in held] for held in holders.values()]
    zones = zones or {}
    members = [(nodes[copy], 1.0, zones.get(copy)) for copy in copies_of]
    placed = assign(len(holders), copies, members, current)
    return {
        partition: tuple([copies_of[place] for place in held])
        for partition, held in zip(holders, placed, strict=True)
    }
