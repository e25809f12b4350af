"""The fenced checkpoint of a shared sink, as decisions without a database.

One row per pump owner: (owner, life, partition count, rev, {partition: [epoch, position]}). An
owner is a node's incarnation; a batch touches hundreds of partitions and one row. Rules
(docs/guide/pumps.md):

- Taking a partition over: refused if any entry of it has a newer epoch, or the same epoch and
  another owner. Otherwise the highest position of all entries is where to go on; the others lose
  theirs, and each row that changes gets rev + 1.
- A batch changes the owner's row only while its rev is the one the owner read. So whoever was
  deposed fails in the database, and taking over one partition disturbs no other.
- A row that another owner has emptied is removed. Its owner, should it come back, begins again
  above the last rev that it has seen, so no rev ever stands for two states.

Who calls: the SQL sinks, each inside its own transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from spacegrid.errors import SinkMismatch
from spacegrid.sink.base import Position

__all__ = ["Mark", "OwnerRow", "TakeOver", "decode_marks", "encode_marks", "refuse_foreign"]

Mark: TypeAlias = tuple[int, Position]
"""(epoch of ownership, position)."""

_decoder = msgspec.json.Decoder(dict[str, tuple[int, int, int]])


@dataclass(slots=True)
class OwnerRow:
    """One row of the checkpoint table.

    Attributes:
        owner: Incarnation of the node whose pump writes it.
        rev: Changes of this row so far.
        marks: Partition to epoch and position.
    """

    owner: int
    rev: int
    marks: dict[int, Mark] = field(default_factory=dict)


@dataclass(slots=True)
class TakeOver:
    """What taking over does to the rows.

    Attributes:
        granted: Partition to where to go on, None where nothing was stored.
        mine: The owner's row afterwards, rev already increased; unchanged when nothing was granted.
        changed: Rows of others that lost entries, rev already increased; an empty one is to be
            removed.
    """

    granted: dict[int, Position | None]
    mine: OwnerRow
    changed: list[OwnerRow]

    @classmethod
    def decide(
        cls, rows: Iterable[OwnerRow], mine: OwnerRow, wanted: Mapping[int, int]
    ) -> TakeOver:
        """Decide from all rows, read under the lock.

        Args:
            rows: Every row of the table, the owner's own included or not.
            mine: The owner's row as it is stored.
            wanted: Partition to the epoch of ownership.
        """
        others = [row for row in rows if row.owner != mine.owner]
        granted: dict[int, Position | None] = {}
        marks = dict(mine.marks)
        losing: dict[int, OwnerRow] = {}
        for partition, epoch in wanted.items():
            own = marks.get(partition)
            holders = [row for row in others if partition in row.marks]
            if own is not None and own[0] > epoch:
                continue
            if any(row.marks[partition][0] >= epoch for row in holders):
                continue
            positions = [row.marks[partition][1] for row in holders]
            if own is not None:
                positions.append(own[1])
            granted[partition] = max(positions, default=None)
            marks[partition] = (epoch, granted[partition] or (0, 0))
            for row in holders:
                losing[row.owner] = row
        changed = [
            OwnerRow(
                row.owner,
                row.rev + 1,
                {p: mark for p, mark in row.marks.items() if p not in granted},
            )
            for row in losing.values()
        ]
        after = OwnerRow(mine.owner, mine.rev + 1, marks) if granted else mine
        return cls(granted, after, changed)


def encode_marks(marks: Mapping[int, Mark]) -> str:
    """JSON of a row's entries: {"partition": [epoch, position's epoch, position's sequence]}."""
    return msgspec.json.encode(
        {str(p): (epoch, *position) for p, (epoch, position) in sorted(marks.items())}
    ).decode()


def decode_marks(text: str) -> dict[int, Mark]:
    """Entries of a row.

    Raises:
        SinkMismatch: The text is no such JSON.
    """
    try:
        return {int(p): (m[0], (m[1], m[2])) for p, m in _decoder.decode(text).items()}
    except (msgspec.MsgspecError, ValueError) as error:
        raise SinkMismatch(f"checkpoint row is damaged: {error}") from error


def refuse_foreign(
    sink: str, life: str, partition_count: int, stored: Iterable[tuple[str, int]]
) -> None:
    """Refuse a database of another cluster or another partition count.

    Args:
        sink: Its name, for the message.
        life: This cluster's id.
        partition_count: This cluster's partitions.
        stored: (life, partition count) of each row found.

    Raises:
        SinkMismatch: One differs.
    """
    for stored_life, stored_count in stored:
        if stored_life != life:
            raise SinkMismatch(
                f"{sink} was written by cluster {stored_life}, this is cluster {life}\n"
                "hint: name another database, or delete this one if nothing in it is needed",
                sink=sink,
            )
        if stored_count != partition_count:
            raise SinkMismatch(
                f"{sink} was written with {stored_count} partitions, this cluster has "
                f"{partition_count}\nhint: name another database, or delete this one if "
                "nothing in it is needed",
                sink=sink,
            )
