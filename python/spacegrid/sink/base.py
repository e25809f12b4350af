"""What a data pump needs of a database: local and shared sinks, and what they are told.

A *shared* sink (SQL) is one database for the whole cluster; the pump of a partition's primary
writes it, fenced by the checkpoint that lives in the same database. A *local* sink (LMDB) is one
node's own disk; every node writes every complete copy it holds.

Invariants that every sink keeps, whatever happens between two of its steps:

- Changes and the position they bring a partition to are written in one transaction.
- A part whose position is already stored is skipped; a part that does not begin at the stored
  position is not written (`Written.moved` says where the partition really is).
- What fails because the sink is away raises `SinkUnavailable` and has written nothing, or has
  written it whole; asking again settles which.

Who calls: `spacegrid.pump`. A sink is used by one thread at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

__all__ = [
    "Change",
    "DeadLetter",
    "Entry",
    "LocalSink",
    "Part",
    "Position",
    "Resync",
    "SharedSink",
    "Sink",
    "Written",
    "without_password",
]

Position: TypeAlias = tuple[int, int]
"""(epoch, sequence) of a log record."""

Change: TypeAlias = tuple[str, int, bytes, bytes | None, int, int, int, bool]
"""(map, schema, key, value or None for a delete, codec, version, expires_at_ms, expired)."""

Entry: TypeAlias = tuple[str, int, bytes, bytes, int, int, int]
"""(map, schema, key, value, codec, version, expires_at_ms)."""


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive whole records of one partition.

    Attributes:
        partition: Which.
        epoch: Epoch under which the pump's node owns the partition.
        after: Position that the part follows.
        last: Position that it brings the partition to.
        record_count: Records in it.
        changes: Their changes in log order; those of one record share their version.
        results: For a local sink: the partition's request results, at least up to ``last``.
    """

    partition: int
    epoch: int
    after: Position
    last: Position
    record_count: int
    changes: Sequence[Change]
    results: bytes = b""


@dataclass(frozen=True, slots=True)
class Resync:
    """The whole content of one partition, read while writes went on.

    Attributes:
        partition: Which.
        epoch: Epoch under which the pump's node owns it.
        position: Every change up to here is in the chunks; the log is read on from here.
        chunks: Entries, read as they are asked for.
        end: After the last chunk: the sequence up to which entries may be newer than the position.
        results: After the last chunk: the partition's request results.
    """

    partition: int
    epoch: int
    position: Position
    chunks: Iterable[Sequence[Entry]]
    end: Callable[[], int] = lambda: 0
    results: Callable[[], bytes] = bytes


@dataclass(slots=True)
class Written:
    """What became of a batch.

    Attributes:
        rows: Rows or entries written or deleted, after coalescing.
        parked: Records that went to the dead letters.
        taken_away: Partitions that somebody with a newer epoch has taken over; nothing of them was
            written.
        moved: Partitions whose stored position is another than their part begins at, with that
            position; nothing of them was written now.
    """

    rows: int = 0
    parked: int = 0
    taken_away: list[int] = field(default_factory=list)
    moved: dict[int, Position] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A log record that the database refuses although everything before it went in.

    Attributes:
        id: For `SharedSink.release`.
        partition: The partition it belongs to.
        position: Its place in that partition's log.
        last: The last record that touched one of its keys since.
        keys: (map, key) of each key held back until it is released.
        error: What the database said.
        parked_at: UTC, ISO 8601.
    """

    id: int
    partition: int
    position: Position
    last: Position
    keys: Sequence[tuple[str, bytes]]
    error: str
    parked_at: str


@dataclass(slots=True)
class ReadBack:
    """What a shared sink has of one partition.

    Attributes:
        epoch: Of the ownership under which it was written last.
        position: Every change up to here is in it, and nothing after.
        entries: (map, schema, key, value, codec) of each row.
        held_keys: Keys whose rows are older than the position: a dead letter holds them back.
    """

    epoch: int
    position: Position
    entries: list[tuple[str, int, bytes, bytes, int]] = field(default_factory=list)
    held_keys: int = 0


def without_password(url: str) -> str:
    """A database's URL as messages may show it: a URL with a password may be given by mistake."""
    url = re.sub(r"://([^:/?#@]*):.*@", r"://\1:***@", url)
    return re.sub(r"(?i)([?&](?:password|passwd|pwd)=)[^&#]*", r"\1***", url)


class Sink(Protocol):
    """What every pump needs."""

    @property
    def name(self) -> str:
        """What to call it in messages, without credentials."""

    @property
    def fenced(self) -> bool:
        """Whether owners compete for it (a shared sink)."""

    @property
    def batch_records(self) -> int:
        """Records per batch where the pump is not told another number."""

    @property
    def interval_s(self) -> float:
        """How long a change may wait for a batch to fill, where the pump is not told."""

    def open(self) -> None:
        """Connect and check whose data it holds; again after `SinkUnavailable`.

        Raises:
            SinkMismatch: Another cluster's data, another partition count, or another layout.
            SinkUnavailable: It does not answer.
        """

    def take(self, wanted: Mapping[int, int]) -> dict[int, Position | None]:
        """Take partitions over.

        Args:
            wanted: Partition to the epoch under which this node owns it.

        Returns:
            Where to go on for each partition granted, None where nothing is stored. A partition
            that is missing was refused: somebody else has it under the same or a newer epoch.
        """

    def let_go(self, partitions: Sequence[int], *, gone: bool) -> None:
        """Stop writing these partitions.

        Args:
            partitions: Which; unknown ones are ignored.
            gone: The copy left this node: a local sink deletes what it has of it.
        """

    def write(self, parts: Sequence[Part]) -> Written:
        """Write parts of distinct partitions, with their positions, in one transaction."""

    def resync(self, resyncs: Sequence[Resync]) -> Written:
        """Make what is stored of these partitions equal to the snapshots."""

    def sync(self) -> None:
        """Return when everything written so far survives a loss of power, and can be found.

        Cost: next to nothing; a pump that has nothing to write asks several times a second.
        """

    def close(self) -> None:
        """Let go of the database. Safe to call twice."""


class SharedSink(Sink, Protocol):
    """One database for the whole cluster, fenced by its checkpoint."""

    @property
    def dead_letter_count(self) -> int:
        """Records parked, of the partitions taken over."""

    def read_back(self, partitions: Sequence[int]) -> dict[int, ReadBack]:
        """What the tables hold of partitions that nobody serves, read at one moment.

        Returns:
            Partition to its content; one of which the checkpoint has no position is missing.

        Raises:
            SinkMismatch: The checkpoint is of another cluster, or of another partition count.
            SinkError: A row can't be made into an entry.
        """

    def dead_letters(self) -> list[DeadLetter]:
        """All parked records, oldest first, whoever owns their partition now."""

    def release(
        self, letter_id: int, read: Callable[[str, bytes], tuple[bytes, int] | None]
    ) -> None:
        """Write the current state of a dead letter's keys and hold them back no longer.

        Args:
            letter_id: `DeadLetter.id`.
            read: (map, key) to the (value, codec) committed in the grid now, or None.

        Raises:
            SinkError: No such letter, another node owns its partition, or the database still
                refuses; nothing has changed.
        """


class LocalSink(Sink, Protocol):
    """One node's own disk; a cluster whose nodes have all ended starts from it.

    Every method that writes returns when what it wrote survives a loss of power.
    """

    def begin(self, partitions: Sequence[int]) -> None:
        """Note that these partitions, of which nothing is stored, are empty so far."""

    def persisted(self, partition: int) -> Position | None:
        """Position up to which a whole copy of a partition is durable here; None: there is none."""
