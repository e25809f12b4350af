"""A shared database, as far as a restart and the log's readers see it: where each partition is at.

The pump of a primary reads its core under the shared pump's name: it takes a partition over at the
position that the database has, or writes it whole where the log does not reach back so far, and it
is refused where somebody newer has written. What goes wrong between a pump and its database is
tried on real ones (tests/sink); here a batch is written at once, and what counts is that the core
lets the pump read all that is committed, and nothing that a restart from the disks would not have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spacegrid import _core
from spacegrid.sink.base import Position

if TYPE_CHECKING:
    from .node import NodeProcess

PUMP = "shared"
PRIMARY = 1
BATCH = 20, 1 << 20
"""Records and bytes, so few that some batches are full."""


class Database:
    """The one that all nodes pump into."""

    def __init__(self) -> None:
        self.positions: dict[int, Position] = {}
        self._epochs: dict[int, int] = {}

    def position(self, partition: int) -> Position:
        """Where a partition is at."""
        return self.positions.get(partition, (0, 0))

    def take(self, partition: int, epoch: int) -> bool:
        """Whether an owner may write: nobody newer does."""
        known = self._epochs.setdefault(partition, epoch)
        self._epochs[partition] = max(known, epoch)
        return known <= epoch


class SharedPump:
    """One node's reader for the shared database."""

    def __init__(self, process: NodeProcess, core: _core.Node) -> None:
        self._database, self._audit = process.world.database, process.world.audit
        self._core = core
        self._taken: dict[int, int] = {}

    def round(self) -> None:
        """Take over what this node is primary of by now, and write one batch of each."""
        primaries = {row[0]: row for row in self._core.roles() if row[1] == PRIMARY}
        self._taken = {p: epoch for p, epoch in self._taken.items() if p in primaries}
        for partition, row in primaries.items():
            epoch = row[2]
            if not self._database.take(partition, epoch):
                continue
            if self._taken.get(partition) == epoch:
                self._write(partition)
            elif self._begin(partition, row[4:6]):
                self._taken[partition] = epoch

    def _begin(self, partition: int, commit: Position) -> bool:
        position = self._database.position(partition)
        if self._core.set_cursor(PUMP, partition, *position):
            return True
        # The log does not reach back so far: the partition is written whole, once it may be read.
        if not self._core.shared_may_read(partition, commit[1]):
            return False
        if not self._core.set_cursor(PUMP, partition, *commit):
            return False
        if commit[1] < position[1]:
            self._audit.violation(
                f"partition {partition} is at {commit}, the database at {position}"
            )
        self._database.positions[partition] = commit
        return True

    def _write(self, partition: int) -> None:
        batch = self._core.read_log(PUMP, partition, *BATCH)
        if batch is None:
            return
        _, first, last, *_ = batch
        position = self._database.position(partition)
        if first[1] != position[1] + 1:
            self._audit.violation(f"partition {partition} is read from {first} after {position}")
        self._database.positions[partition] = last
        self._core.set_cursor(PUMP, partition, *last)
