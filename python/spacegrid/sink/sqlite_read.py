"""Reading the SQLite sink back: how far it is, its dead letters, rows that nobody serves.

Who calls: `spacegrid.sink.sqlite`, inside a transaction of its own, so that all is of one moment.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spacegrid import _core
from spacegrid.errors import SerializationError, SinkError, TooLarge
from spacegrid.sink.base import DeadLetter, ReadBack
from spacegrid.sink.checkpoint import OwnerRow, decode_marks, refuse_foreign
from spacegrid.sink.sqlite_schema import SqlTable

__all__ = ["Reader", "owner_rows", "parked_letters"]


def owner_rows(
    database: sqlite3.Connection, name: str, life: str, partition_count: int
) -> list[OwnerRow]:
    """All rows of the checkpoint.

    Args:
        database: The connection, inside a transaction.
        name: Of the sink, for messages.
        life: This cluster's id.
        partition_count: This cluster's partitions.

    Raises:
        SinkMismatch: They are another cluster's: somebody may have put other rows in the place of
            those that were there when the sink was opened.
    """
    rows = database.execute(
        "SELECT life, partition_count, owner, rev, partitions FROM spacegrid_checkpoint "
        "ORDER BY owner"
    ).fetchall()
    refuse_foreign(name, life, partition_count, [row[:2] for row in rows])
    return [OwnerRow(owner, rev, decode_marks(text)) for _, _, owner, rev, text in rows]


def parked_letters(database: sqlite3.Connection) -> list[DeadLetter]:
    """All dead letters, oldest first, with the keys that each holds back."""
    keys: dict[int, list[tuple[str, bytes]]] = {}
    for name, key, letter in database.execute(
        "SELECT map, key, dead_letter FROM spacegrid_held_keys ORDER BY map, key"
    ):
        keys.setdefault(letter, []).append((name, key))
    return [
        DeadLetter(
            row[0],
            row[1],
            (row[2], row[3]),
            (row[4], row[5]),
            keys.get(row[0], []),
            row[6],
            row[7],
        )
        for row in database.execute(
            "SELECT id, partition, epoch, sequence, last_epoch, last_sequence, error, "
            "parked_at FROM spacegrid_dead_letters ORDER BY id"
        )
    ]


@dataclass(frozen=True, slots=True)
class Reader:
    """What has to be known of a database to read it back.

    Attributes:
        name: Of the sink, for messages.
        life: This cluster's id.
        partition_count: This cluster's partitions.
        tables: Map name to its table.
    """

    name: str
    life: str
    partition_count: int
    tables: Mapping[str, SqlTable]

    def read(self, database: sqlite3.Connection, partitions: Sequence[int]) -> dict[int, ReadBack]:
        """What the tables hold of these partitions; see `SharedSink.read_back`.

        Cost: one pass over all rows of all tables.
        """
        found = self._positions(database, partitions)
        for name, table in self.tables.items():
            self._rows(database, name, table, found)
        for partition, count in database.execute(
            "SELECT partition, COUNT(*) FROM spacegrid_held_keys GROUP BY partition"
        ):
            if partition in found:
                found[partition].held_keys = count
        return found

    def _positions(
        self, database: sqlite3.Connection, partitions: Sequence[int]
    ) -> dict[int, ReadBack]:
        owners = owner_rows(database, self.name, self.life, self.partition_count)
        found: dict[int, ReadBack] = {}
        for partition in partitions:
            marks = [row.marks[partition] for row in owners if partition in row.marks]
            if marks:
                epoch = max(epoch for epoch, _ in marks)
                found[partition] = ReadBack(epoch, max(position for _, position in marks))
        return found

    def _rows(
        self,
        database: sqlite3.Connection,
        name: str,
        table: SqlTable,
        found: Mapping[int, ReadBack],
    ) -> None:
        made = table.table
        width = len(made.keys)
        for row in database.execute(table.select_rows):
            key = made.stored_key(row[:width])
            if key is None:
                continue
            content = found.get(_core.partition_of(key, self.partition_count))
            if content is None:
                continue
            try:
                value = made.stored_value(row[width:])
            except (SerializationError, TooLarge) as error:
                raise SinkError(
                    f"{self.name}: row {row[:width]} can't be read back: {error}", sink=self.name
                ) from error
            content.entries.append((name, made.schema, key, value, made.codec))
