"""What a pump decides, without a thread, a clock or a database.

`Plan` follows the ownership of partitions; `Pace` says when a batch is due; `Backoff` how long to
wait for a sink that is away.

Who calls: `spacegrid.pump.pump`, on its own thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from spacegrid.pump.source import Role
from spacegrid.sink.base import Position

__all__ = ["Backoff", "Pace", "Plan", "Steps"]

PRIMARY: Final = 1
BACKUP: Final = 2


@dataclass(slots=True)
class Steps:
    """What has to happen after a look at the roles.

    Attributes:
        take: Partition to epoch: take it over.
        pause: Written no longer, but a copy is still here (or, for a shared sink, somewhere).
        gone: The copy left this node.
    """

    take: dict[int, int] = field(default_factory=dict)
    pause: list[int] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)


class Plan:
    """Which partitions the pump writes.

    Args:
        fenced: A shared sink: only what this node is primary of, one take-over per epoch. Otherwise
            every complete copy.
    """

    def __init__(self, *, fenced: bool) -> None:
        self._fenced = fenced
        self._wanted: dict[int, tuple[int, int]] = {}
        self._commits: dict[int, int] = {}
        self._taken: dict[int, tuple[int, int]] = {}
        self._refused: dict[int, tuple[int, int]] = {}
        self._paused: set[int] = set()
        self._positions: dict[int, Position] = {}

    def observe(self, roles: Sequence[Role]) -> Steps:
        """Compare what the node holds with what the pump writes.

        Args:
            roles: The node's rows, all of them.
        """
        here = {row[0] for row in roles if row[1] != 0}
        wanted = {
            # A copy that left and came back within one look has another version; a fenced one that
            # matters has another epoch.
            row[0]: (row[2], 0 if self._fenced else row[3])
            for row in roles
            if self._complete(row)
        }
        self.note(roles)
        self._wanted = wanted
        steps = Steps()
        for partition, key in wanted.items():
            if self._taken.get(partition) != key and self._refused.get(partition) != key:
                steps.take[partition] = key[0]
        for partition in [p for p in self._taken if p not in wanted]:
            self._leave(partition)
            (steps.pause if self._fenced or partition in here else steps.gone).append(partition)
        if not self._fenced:
            # A copy that is taken out is a tail first, and leaves later or is taken in again.
            self._paused = self._paused.union(steps.pause) - wanted.keys()
            steps.gone += self._paused - here
            self._paused &= here
        for partition in [p for p in self._refused if self._refused[p] != wanted.get(p)]:
            del self._refused[partition]
        return steps

    def note(self, roles: Sequence[Role]) -> None:
        """Learn how far the log has got, and nothing else."""
        for row in roles:
            if self._complete(row):
                self._commits[row[0]] = row[5]

    def _complete(self, row: Role) -> bool:
        return row[1] == PRIMARY or (row[1] == BACKUP and not self._fenced)

    def _leave(self, partition: int) -> None:
        del self._taken[partition]
        self._positions.pop(partition, None)

    def take(self, partition: int, position: Position) -> None:
        """The sink granted it and the node's cursor is there."""
        self._taken[partition] = self._wanted[partition]
        self._positions[partition] = position

    def refuse(self, partition: int) -> None:
        """Somebody newer has it: not again under this epoch."""
        if partition in self._taken:
            self._leave(partition)
        if partition in self._wanted:
            self._refused[partition] = self._wanted[partition]

    def retake(self, partition: int) -> None:
        """Something changed under the pump: begin again with that partition."""
        if partition in self._taken:
            self._leave(partition)

    def retake_all(self) -> None:
        """It may be another sink than it was: begin again with every partition."""
        self._taken.clear()
        self._refused.clear()
        self._positions = {}

    def advance(self, partition: int, position: Position) -> None:
        """Everything up to there is in the sink."""
        if partition in self._taken:
            self._positions[partition] = position

    def epoch(self, partition: int) -> int | None:
        """Epoch under which it is written, or None."""
        key = self._taken.get(partition)
        return None if key is None else key[0]

    def position(self, partition: int) -> Position:
        """How far it is in the sink."""
        return self._positions[partition]

    @property
    def taken(self) -> Mapping[int, Position]:
        """Partitions that are written, with what is in the sink."""
        return self._positions

    def lag_records(self) -> int:
        """Committed records not in the sink, as of the last look. Any thread."""
        commits = self._commits
        return sum(
            max(0, commits[partition] - position[1])
            for partition, position in self._positions.copy().items()
        )

    def targets(self, roles: Sequence[Role]) -> dict[int, int]:
        """Commit sequence of everything that this pump is responsible for by these roles."""
        return {row[0]: row[5] for row in roles if self._complete(row)}

    def missing(self, targets: Mapping[int, int]) -> dict[int, int]:
        """Targets not reached, without partitions that left or that somebody newer has."""
        return {
            partition: sequence
            for partition, sequence in targets.items()
            if partition in self._wanted
            and partition not in self._refused
            and self._positions.get(partition, (0, -1))[1] < sequence
        }


class Pace:
    """When a batch is due: it is full, it has waited, or somebody asks.

    Args:
        batch_records: A full batch.
        interval_s: Longest wait.
    """

    def __init__(self, batch_records: int, interval_s: float) -> None:
        self._batch_records = batch_records
        self._interval_s = interval_s
        self._since: float | None = None

    def due(self, lag_records: int, now_s: float, *, pressed: bool) -> int:
        """Records to write now; 0 is none.

        Args:
            lag_records: Committed records not in the sink.
            now_s: Monotonic seconds.
            pressed: A flush waits, or the log is filling up.
        """
        if lag_records <= 0:
            self._since = None
            return 0
        if self._since is None:
            self._since = now_s
        if pressed or now_s - self._since >= self._interval_s:
            self._since = now_s
            return lag_records
        # Full batches only; the rest goes on waiting for company.
        return lag_records - lag_records % self._batch_records

    def waited_s(self, now_s: float) -> float:
        """How long the oldest record has been known."""
        return 0.0 if self._since is None else now_s - self._since

    def wait_s(self, now_s: float, poll_s: float) -> float:
        """How long to sleep unless woken."""
        if self._since is None:
            return poll_s
        return max(0.0, min(poll_s, self._since + self._interval_s - now_s))


class Backoff:
    """Growing delays, from `FIRST_S` to `LAST_S`."""

    FIRST_S: Final = 0.05
    LAST_S: Final = 5.0

    def __init__(self) -> None:
        self._next_s = self.FIRST_S

    def next_s(self) -> float:
        """The delay before the next attempt."""
        delay, self._next_s = self._next_s, min(self.LAST_S, self._next_s * 2)
        return delay

    def reset(self) -> None:
        """It worked."""
        self._next_s = self.FIRST_S
