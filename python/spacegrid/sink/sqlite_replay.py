"""Replay of a batch that failed: record by record, in log order, parking what fails alone.

Who calls: `spacegrid.sink.sqlite`, inside its transaction.
"""

from __future__ import annotations

import datetime
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, TypeAlias

import msgspec

from spacegrid.sink.base import Change, Entry, Part, Position, Resync
from spacegrid.sink.sqlite_schema import ROW_ERRORS, SqlTable

__all__ = ["HeldKey", "Replay", "position_of", "touch"]

ERROR_TEXT_MAX: Final = 2000

HeldKey: TypeAlias = tuple[str, bytes]
"""(map, key)."""


def position_of(version: int) -> Position:
    """The log position that an entry's version is."""
    return version >> 40, version & ((1 << 40) - 1)


def touch(database: sqlite3.Connection, touched: Mapping[int, Position]) -> None:
    """Move the last position of dead letters whose held keys were written again.

    Args:
        database: In the batch's transaction.
        touched: Dead letter's id to the position.
    """
    database.executemany(
        "UPDATE spacegrid_dead_letters SET last_epoch = ?, last_sequence = ? WHERE id = ?",
        [(*position, letter) for letter, position in touched.items()],
    )


class Replay:
    """Records one by one inside an open transaction; what fails alone is parked.

    Args:
        database: In the batch's transaction.
        tables: Map name to table; changes of other maps are ignored.
        held: Keys held back, with their dead letters. Not modified: the sink's own state changes
            only after the commit, by `holds`.

    Attributes:
        holds: (key, partition, dead letter) of keys that are held from here on.
        rows: Rows written or deleted.
        parked: Records parked.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        tables: Mapping[str, SqlTable],
        held: Mapping[HeldKey, int],
    ) -> None:
        self._database = database
        self._tables = tables
        self._held = dict(held)
        self.holds: list[tuple[HeldKey, int, int]] = []
        self.rows = 0
        self.parked = 0

    def run(self, part: Part) -> None:
        """Write one part in log order."""
        for version, group in groupby(part.changes, key=lambda change: change[5]):
            record = list(group)
            mine = [change for change in record if change[0] in self._tables]
            keys = {(change[0], change[2]) for change in mine}
            position = position_of(version)
            held = {self._held[key]: position for key in keys if key in self._held}
            touch(self._database, held)
            free = [change for change in mine if (change[0], change[2]) not in self._held]
            error = self._attempt(
                [(c[0], c[2], None if c[3] is None else (c[3], c[4])) for c in free]
            )
            if error is not None:
                self._park(part.partition, position, record, keys, error)

    def snapshot(
        self, resync: Resync, chunk: Sequence[Entry], present: Mapping[str, set[bytes]]
    ) -> None:
        """Write entries of a snapshot; what fails alone is parked at the snapshot's position."""
        due = []
        for name, _, key, value, codec, _, _ in chunk:
            if name in present:
                present[name].add(key)
                if (name, key) not in self._held:
                    due.append((name, key, (value, codec)))
        if self._attempt_many(due) is None:
            return
        for name, key, entry in due:
            error = self._attempt([(name, key, entry)])
            if error is not None:
                change = (name, 0, key, entry[0], entry[1], 0, 0, False)
                self._park(resync.partition, resync.position, [change], {(name, key)}, error)

    def _attempt_many(self, due: list[tuple[str, bytes, tuple[bytes, int]]]) -> str | None:
        rows: dict[str, list[tuple[Any, ...]]] = {}

        def run() -> None:
            for name, key, entry in due:
                rows.setdefault(name, []).append(self._tables[name].table.row(key, *entry))
            for name, batch in rows.items():
                self._database.executemany(self._tables[name].upsert, batch)

        return self._guarded(run, len(due))

    def _attempt(self, writes: Sequence[tuple[str, bytes, tuple[bytes, int] | None]]) -> str | None:
        def run() -> None:
            for name, key, entry in writes:
                self._tables[name].write_one(self._database, key, entry)

        return self._guarded(run, len(writes))

    def _guarded(self, run: Callable[[], None], count: int) -> str | None:
        """Run inside a savepoint; the error's text if a row is at fault, with nothing written."""
        self._database.execute("SAVEPOINT one")
        try:
            run()
        except ROW_ERRORS as error:
            self._database.execute("ROLLBACK TO one")
            self._database.execute("RELEASE one")
            return f"{type(error).__name__}: {error}"
        self._database.execute("RELEASE one")
        self.rows += count
        return None

    def _park(
        self,
        partition: int,
        position: Position,
        record: Sequence[Change],
        keys: set[HeldKey],
        error: str,
    ) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        letter = self._database.execute(
            "INSERT INTO spacegrid_dead_letters (partition, epoch, sequence, last_epoch, "
            "last_sequence, error, parked_at, record) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                partition,
                *position,
                *position,
                error[:ERROR_TEXT_MAX],
                now,
                msgspec.msgpack.encode(record),
            ),
        ).lastrowid
        assert letter is not None
        self.parked += 1
        for key in sorted(keys):
            if key not in self._held:
                self._database.execute(
                    "INSERT INTO spacegrid_held_keys VALUES (?, ?, ?, ?)", (*key, partition, letter)
                )
                self._held[key] = letter
                self.holds.append((key, partition, letter))
