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

__all__ = ["HeldKey", "Replay", "RolledBack", "position_of", "touch"]

ERROR_TEXT_MAX: Final = 2000

HeldKey: TypeAlias = tuple[str, bytes]
"""(map, key)."""

Writes: TypeAlias = tuple[int, Position, tuple[HeldKey, ...]]


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


class RolledBack(Exception):
    """A row that is at fault has ended the transaction (a trigger may say ROLLBACK).

    Attributes:
        writes: What was attempted: the (map, key) of each, behind the partition and its position.
        text: What the database said.
    """

    def __init__(self, writes: Writes, text: str) -> None:
        super().__init__(text)
        self.writes = writes
        self.text = text


class Replay:
    """Records one by one inside an open transaction; what fails alone is parked.

    Args:
        database: In the batch's transaction.
        tables: Map name to table; changes of other maps are ignored.
        held: Keys held back, with their dead letters. Not modified: the sink's own state changes
            only after the commit, by `holds`.
        refused: What has rolled an earlier attempt back, with its text: not attempted again.

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
        refused: Mapping[Writes, str],
    ) -> None:
        self._database = database
        self._tables = tables
        self._held = dict(held)
        self._refused = refused
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
            writes = [(c[0], c[2], None if c[3] is None else (c[3], c[4])) for c in free]
            error = self._attempt(part.partition, position, writes)
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
        partition, position = resync.partition, resync.position
        if len(due) > 1 and self._attempt_many(partition, position, due) is None:
            return
        for name, key, entry in due:
            error = self._attempt(partition, position, [(name, key, entry)])
            if error is not None:
                change = (name, 0, key, entry[0], entry[1], 0, 0, False)
                self._park(partition, position, [change], {(name, key)}, error)

    def _attempt_many(
        self, partition: int, at: Position, due: list[tuple[str, bytes, tuple[bytes, int]]]
    ) -> str | None:
        rows: dict[str, list[tuple[Any, ...]]] = {}

        def run() -> None:
            for name, key, entry in due:
                rows.setdefault(name, []).append(self._tables[name].table.row(key, *entry))
            for name, batch in rows.items():
                self._database.executemany(self._tables[name].upsert, batch)

        return self._guarded(run, (partition, at, tuple(one[:2] for one in due)))

    def _attempt(
        self,
        partition: int,
        at: Position,
        writes: Sequence[tuple[str, bytes, tuple[bytes, int] | None]],
    ) -> str | None:
        def run() -> None:
            for name, key, entry in writes:
                self._tables[name].write_one(self._database, key, entry)

        return self._guarded(run, (partition, at, tuple(one[:2] for one in writes)))

    def _guarded(self, run: Callable[[], None], writes: Writes) -> str | None:
        """Run inside a savepoint; the error's text if a row is at fault, with nothing written."""
        if writes in self._refused:
            return self._refused[writes]
        self._database.execute("SAVEPOINT one")
        try:
            run()
        except ROW_ERRORS as error:
            text = f"{type(error).__name__}: {error}"
            if not self._database.in_transaction:
                raise RolledBack(writes, text) from error
            self._database.execute("ROLLBACK TO one")
            self._database.execute("RELEASE one")
            return text
        self._database.execute("RELEASE one")
        self.rows += len(writes[2])
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
