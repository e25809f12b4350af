"""Where partitions should be: an even goal that is reached with the fewest moves.

`plan` is a function of the nodes and of who holds what now; the same input gives the same goal, so
a new controller goes on where the old one was. Source: DESIGN.md section 5 (bounded load, smallest
moves). Who calls: machine/controller.py.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping, Sequence

__all__ = ["plan"]

#: Copies of one partition that should be, the primary first.
Goal = tuple[int, ...]


def plan(
    holders: Mapping[int, Sequence[int]], nodes: Sequence[int], copies: int
) -> dict[int, Goal]:
    """The goal for each partition.

    Args:
        holders: For each partition the copies that hold it or are about to, the primary (or the one
            that is about to be) first; empty for a partition that was never placed. Copies that are
            not in ``nodes`` are ignored.
        nodes: Nodes that may hold copies.
        copies: Complete copies wanted; fewer where there are fewer nodes.

    Returns:
        For each partition its copies, the primary first. No two nodes differ by more than one copy
        where that is possible at all, and by more than one primary where the copies allow it.

    Cost: O(partitions x nodes), about 5 ms for 1,024 partitions and ten nodes.
    """
    if not nodes:
        return {partition: () for partition in holders}
    draft = _Draft(holders, nodes, min(copies, len(nodes)))
    draft.trim()
    draft.fill()
    draft.even_copies()
    draft.even_primaries()
    return {partition: tuple(held) for partition, held in draft.held.items()}


class _Draft:
    """A goal in the making: who holds what, with the loads counted along."""

    def __init__(
        self, holders: Mapping[int, Sequence[int]], nodes: Sequence[int], copies: int
    ) -> None:
        self.nodes = sorted(nodes)
        self.copies = copies
        known = frozenset(nodes)
        self.held = {
            partition: [copy for copy in holders[partition] if copy in known]
            for partition in sorted(holders)
        }
        self.load = dict.fromkeys(self.nodes, 0)
        self.primaries = dict.fromkeys(self.nodes, 0)
        #: How many partitions have a as primary and b as another copy, so that what a dead node was
        #: primary of falls to all the others alike.
        self.pairs = {node: dict.fromkeys(self.nodes, 0) for node in self.nodes}
        for held in self.held.values():
            for copy in held:
                self.load[copy] += 1
            if held:
                self.primaries[held[0]] += 1
                for copy in held[1:]:
                    self.pairs[held[0]][copy] += 1
        total = len(self.held) * copies
        self.load_low = total // len(self.nodes)
        self.load_high = -(-total // len(self.nodes))

    def trim(self) -> None:
        """Where more copies are than wanted (a move was under way), the busiest goes."""
        for held in self.held.values():
            while len(held) > self.copies:
                busiest = max(held[1:], key=lambda copy: (self.load[copy], copy))
                held.remove(busiest)
                self.load[busiest] -= 1
                self.pairs[held[0]][busiest] -= 1

    def fill(self) -> None:
        """Where copies are missing, the nodes with the least get them."""
        for held in self.held.values():
            if not held:
                first = min(
                    self.nodes, key=lambda node: (self.primaries[node], self.load[node], node)
                )
                held.append(first)
                self.load[first] += 1
                self.primaries[first] += 1
            while len(held) < self.copies:
                self._add(held)

    def _add(self, held: list[int]) -> None:
        pairs, load, high = self.pairs[held[0]], self.load, self.load_high
        copy = min(
            (node for node in self.nodes if node not in held),
            key=lambda node: (load[node] >= high, pairs[node], load[node], node),
        )
        held.append(copy)
        load[copy] += 1
        pairs[copy] += 1

    def even_copies(self) -> None:
        """Move copies from the busiest nodes to those below their share.

        Whenever one node holds more than another, it holds a partition that the other does not, so
        single moves are enough.
        """
        for donor in sorted(self.nodes, key=lambda node: (-self.load[node], node)):
            if self.load[donor] <= self.load_low:
                return
            # What it is primary of goes last: that costs a hand-over as well.
            mine = [held for held in self.held.values() if donor in held]
            mine.sort(key=lambda held: held[0] == donor)
            for held in mine:
                if self.load[donor] <= self.load_low:
                    break
                self._give(held, donor)

    def _give(self, held: list[int], donor: int) -> None:
        """Move one copy, if that brings a node to its share."""
        limit = self.load_high if self.load[donor] > self.load_high else self.load_low
        receivers = [node for node in self.nodes if self.load[node] < limit and node not in held]
        if not receivers:
            return
        pairs = self.pairs[held[0]]
        receiver = min(receivers, key=lambda node: (self.load[node], pairs[node], node))
        index = held.index(donor)
        held[index] = receiver
        self.load[donor] -= 1
        self.load[receiver] += 1
        if index:
            pairs[donor] -= 1
            pairs[receiver] += 1
            return
        self.primaries[donor] -= 1
        self.primaries[receiver] += 1
        for copy in held[1:]:
            self.pairs[donor][copy] -= 1
            self.pairs[receiver][copy] += 1

    def even_primaries(self) -> None:
        """Hand primaries on among the copies, along the shortest chains, until none differ by two.

        A chain a -> b -> c moves one partition from a to b and another from b to c.
        """
        edges = self._edges()
        sources = sorted(self.nodes, key=lambda node: (-self.primaries[node], node))
        for source in sources:
            while chain := self._chain(source, edges):
                for giver, taker in itertools.pairwise(chain):
                    self._hand_over(edges[giver][taker][-1], giver, taker, edges)

    def _edges(self) -> dict[int, dict[int, list[int]]]:
        """For each node and each other one the partitions it could hand to that one."""
        edges: dict[int, dict[int, list[int]]] = {
            node: {other: [] for other in self.nodes} for node in self.nodes
        }
        for partition, held in self.held.items():
            for copy in held[1:]:
                edges[held[0]][copy].append(partition)
        return edges

    def _chain(self, source: int, edges: dict[int, dict[int, list[int]]]) -> list[int]:
        """The shortest way from a node to one that has at least two primaries fewer."""
        came: dict[int, int] = {source: 0}
        queue = deque([source])
        while queue:
            giver = queue.popleft()
            takers = sorted(self.nodes, key=lambda node: (self.primaries[node], node))
            for taker in takers:
                if taker in came or not edges[giver][taker]:
                    continue
                came[taker] = giver
                if self.primaries[taker] <= self.primaries[source] - 2:
                    return _path(came, taker)
                queue.append(taker)
        return []

    def _hand_over(
        self, partition: int, giver: int, taker: int, edges: dict[int, dict[int, list[int]]]
    ) -> None:
        held = self.held[partition]
        for copy in held[1:]:
            edges[giver][copy].remove(partition)
        held.remove(taker)
        held.insert(0, taker)
        for copy in held[1:]:
            edges[taker][copy].append(partition)
        self.primaries[giver] -= 1
        self.primaries[taker] += 1


def _path(came: Mapping[int, int], last: int) -> list[int]:
    path = [last]
    while came[path[-1]]:
        path.append(came[path[-1]])
    return path[::-1]
