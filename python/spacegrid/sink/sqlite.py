"""The SQLite sink: rows, checkpoint and dead letters of one batch in one transaction.

Tables beside the user's own: ``spacegrid_checkpoint`` (`spacegrid.sink.checkpoint`),
``spacegrid_dead_letters`` and ``spacegrid_held_keys``. Every batch is

    BEGIN IMMEDIATE
    UPDATE spacegrid_checkpoint SET rev = rev + 1, ... WHERE owner = me AND rev = the one I read
    one executemany per table and operation, the last change of each key only
    COMMIT

A batch that a row fails in is rolled back and replayed record by record, in log order and not
coalesced: a record that still fails is parked whole as a dead letter and its keys are held back,
which is in the same transaction as the position that moves past it. Later changes of a held key
only move the letter's last position; other keys of those records are written.

Durability: WAL with ``synchronous=FULL``, so a committed batch survives a loss of power.

Who calls: a pump's thread, and nobody else on the same object.
"""

from __future__ import annotations

import datetime
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import msgspec

from spacegrid import _core
from spacegrid.errors import (
    ConfigError,
    SerializationError,
    SinkError,
    SinkMismatch,
    SinkUnavailable,
)
from spacegrid.sink.base import Change, DeadLetter, Part, Position, Resync, Written
from spacegrid.sink.checkpoint import (
    Mark,
    OwnerRow,
    TakeOver,
    decode_marks,
    encode_marks,
    refuse_foreign,
)
from spacegrid.sink.tables import Column, Table, quote, tables_of
from spacegrid.types import Map

__all__ = ["BUSY_TIMEOUT_MS", "SqliteSink", "sqlite_path"]

BUSY_TIMEOUT_MS: Final = 5000
"""How long a transaction waits for another writer before the sink counts as away."""
ERROR_TEXT_MAX: Final = 2000
SQL_VARIABLES: Final = 500
"""Values in one statement; SQLite's own limit has been 999."""

_SQL_TYPES: Final = {
    "int": "INTEGER",
    "float": "REAL",
    "text": "TEXT",
    "blob": "BLOB",
    "json": "TEXT",
}

_OWN_TABLES: Final = """
CREATE TABLE IF NOT EXISTS spacegrid_checkpoint (
    owner INTEGER PRIMARY KEY, life TEXT NOT NULL, partition_count INTEGER NOT NULL,
    rev INTEGER NOT NULL, partitions TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spacegrid_dead_letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT, partition INTEGER NOT NULL,
    epoch INTEGER NOT NULL, sequence INTEGER NOT NULL,
    last_epoch INTEGER NOT NULL, last_sequence INTEGER NOT NULL,
    error TEXT NOT NULL, parked_at TEXT NOT NULL, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS spacegrid_held_keys (
    map TEXT NOT NULL, key BLOB NOT NULL, partition INTEGER NOT NULL, dead_letter INTEGER NOT NULL,
    PRIMARY KEY (map, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS spacegrid_held_keys_partition ON spacegrid_held_keys (partition);
"""

# What one record can be guilty of; everything else that sqlite3 raises means that the sink is away.
_ROW_ERRORS: Final = (
    SerializationError,
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    UnicodeEncodeError,
)

HeldKey = tuple[str, bytes]


class _Deposed(Exception):
    """The owner's row is not as it was read: somebody took partitions over."""


class SqliteSink:
    """One SQLite database file, shared by the pumps of all nodes on this machine.

    Args:
        url: ``sqlite:///relative.db`` or ``sqlite:////absolute.db``.
        life: Id of the cluster.
        owner: This node's incarnation.
        partition_count: Partitions of the cluster.
        maps: All maps of the space; those with columns become tables.
        busy_timeout_ms: How long to wait for another writer.

    Raises:
        ConfigError: Not such a URL, or maps that make no tables.
    """

    fenced = True
    batch_records = 1000
    interval_s = 5.0

    def __init__(
        self,
        url: str,
        *,
        life: str,
        owner: int,
        partition_count: int,
        maps: Iterable[Map[Any, Any]],
        busy_timeout_ms: int = BUSY_TIMEOUT_MS,
    ) -> None:
        self.path = sqlite_path(url)
        self.name = url
        self._life = life
        self._partition_count = partition_count
        self._busy_timeout_ms = busy_timeout_ms
        self._tables = tables_of(maps)
        self._statements = {name: _Statements(table) for name, table in self._tables.items()}
        self._connection: sqlite3.Connection | None = None
        self._mine = OwnerRow(owner, 0)
        self._fresh = False  # whether _mine is as the database has it
        self._active: set[int] = set()
        self._held: dict[HeldKey, int] = {}
        self._held_partitions: dict[int, set[HeldKey]] = {}

    # ---- opening ----

    def open(self) -> None:
        """Connect, make missing tables, check the layout and whose database it is."""
        self.close()
        with self._errors():
            connection = sqlite3.connect(
                self.path, timeout=self._busy_timeout_ms / 1000, isolation_level=None
            )
            self._connection = connection
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            with self._transaction() as database:
                for statement in _OWN_TABLES.split(";\n"):
                    database.execute(statement)
                refuse_foreign(
                    self.name,
                    self._life,
                    self._partition_count,
                    database.execute(
                        "SELECT DISTINCT life, partition_count FROM spacegrid_checkpoint"
                    ),
                )
                for table in self._tables.values():
                    self._make_table(database, table)
                # The owner's row is there, alone, before the first batch needs to compare its rev.
                database.execute(
                    "INSERT OR IGNORE INTO spacegrid_checkpoint VALUES (?, ?, ?, ?, '{}')",
                    (self._mine.owner, self._life, self._partition_count, self._mine.rev + 1),
                )
        self._reload()

    def _make_table(self, database: sqlite3.Connection, table: Table) -> None:
        columns = [
            f"{quote(c.name)} {_SQL_TYPES[c.kind]}{'' if c.nullable else ' NOT NULL'}"
            for c in table.columns
        ]
        keys = ", ".join(quote(c.name) for c in table.keys)
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {quote(table.name)} "
            f"({', '.join(columns)}, PRIMARY KEY ({keys}))"
        )
        found = [
            (name, kind.upper(), bool(key))
            for _, name, kind, _, _, key in database.execute(
                f"PRAGMA table_info({quote(table.name)})"
            )
        ]
        expected = [_expected(c, True) for c in table.keys]
        expected += [_expected(c, False) for c in table.values]
        if sorted(found) != sorted(expected):
            raise SinkMismatch(
                f"table {table.name!r} of {self.name} has columns {_described(found)}, "
                f"map {table.name!r} needs {_described(expected)}\n"
                "hint: rename the table or the map, or begin anew with --fresh",
                sink=self.name,
            )

    def close(self) -> None:
        """Let go of the database; safe to call twice."""
        connection, self._connection = self._connection, None
        self._fresh = False
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def sync(self) -> None:
        """Nothing to do: every commit is already on disk."""

    # ---- owning partitions ----

    def take(self, wanted: Mapping[int, int]) -> dict[int, Position | None]:
        """Take partitions over under the fence, and load their held keys."""
        with self._errors(), self._transaction() as database:
            rows = [
                OwnerRow(owner, rev, decode_marks(text))
                for owner, rev, text in database.execute(
                    "SELECT owner, rev, partitions FROM spacegrid_checkpoint ORDER BY owner"
                )
            ]
            mine = next((row for row in rows if row.owner == self._mine.owner), None)
            if mine is None:
                mine = self._insert_mine(database)
            outcome = TakeOver.decide(rows, mine, wanted)
            for row in outcome.changed:
                if row.marks:
                    self._store(database, row, row.rev - 1)
                else:
                    database.execute(
                        "DELETE FROM spacegrid_checkpoint WHERE owner = ?", (row.owner,)
                    )
            if outcome.granted:
                self._store(database, outcome.mine, mine.rev)
            held = self._load_held(database, outcome.granted)
        self._mine = outcome.mine
        self._fresh = True
        self._active = (self._active & set(outcome.mine.marks)) | set(outcome.granted)
        for partition in outcome.granted:
            self._forget_held(partition)
        for key, partition, letter in held:
            self._hold(key, partition, letter)
        return outcome.granted

    def let_go(self, partitions: Sequence[int], *, gone: bool) -> None:
        """Forget partitions; their entries stay in the database for whoever takes them over."""
        for partition in partitions:
            self._active.discard(partition)
            self._forget_held(partition)

    def _insert_mine(self, database: sqlite3.Connection) -> OwnerRow:
        # Another owner emptied and removed the row. Above every rev seen: see checkpoint.py.
        row = OwnerRow(self._mine.owner, self._mine.rev + 1)
        database.execute(
            "INSERT INTO spacegrid_checkpoint VALUES (?, ?, ?, ?, '{}')",
            (row.owner, self._life, self._partition_count, row.rev),
        )
        return row

    def _store(self, database: sqlite3.Connection, row: OwnerRow, rev_before: int) -> None:
        changed = database.execute(
            "UPDATE spacegrid_checkpoint SET rev = ?, partitions = ? "
            "WHERE owner = ? AND life = ? AND rev = ?",
            (row.rev, encode_marks(row.marks), row.owner, self._life, rev_before),
        ).rowcount
        if changed != 1:
            raise _Deposed

    def _reload(self) -> None:
        """Read the owner's row again; partitions that were taken away are no longer active."""
        with self._errors():
            row = self._database.execute(
                "SELECT rev, partitions FROM spacegrid_checkpoint WHERE owner = ?",
                (self._mine.owner,),
            ).fetchone()
        before = self._mine.marks
        rev = self._mine.rev
        self._mine = OwnerRow(self._mine.owner, rev if row is None else row[0])
        if row is not None:
            self._mine.marks = decode_marks(row[1])
        self._fresh = True
        for partition in list(self._active):
            mark = self._mine.marks.get(partition)
            if mark is None or mark[0] != before[partition][0]:
                self.let_go([partition], gone=False)

    # ---- batches ----

    def write(self, parts: Sequence[Part]) -> Written:
        """Write a batch; see the module for the steps."""
        while True:
            if not self._fresh:
                self._reload()
            written = Written()
            due = [part for part in parts if self._is_due(part, written)]
            if not due:
                return written
            try:
                self._write_batch(due, written)
            except _Deposed:
                self._fresh = False
                continue
            return written

    def _is_due(self, part: Part, written: Written) -> bool:
        mark = self._mine.marks.get(part.partition)
        if mark is None or mark[0] != part.epoch or part.partition not in self._active:
            written.taken_away.append(part.partition)
            return False
        if mark[1] != part.after:
            written.moved[part.partition] = mark[1]
            return False
        return True

    def _write_batch(self, due: Sequence[Part], written: Written) -> None:
        after = {part.partition: (part.epoch, part.last) for part in due}
        mine = OwnerRow(self._mine.owner, self._mine.rev + 1, {**self._mine.marks, **after})
        try:
            with self._errors(), self._transaction() as database:
                self._store(database, mine, self._mine.rev)
                written.rows = self._write_coalesced(database, due)
        except _ROW_ERRORS:
            with self._errors(), self._transaction() as database:
                self._store(database, mine, self._mine.rev)
                replay = _Replay(self, database)
                for part in due:
                    replay.run(part)
            written.rows, written.parked = replay.rows, replay.parked
            for key, partition, letter in replay.holds:
                self._hold(key, partition, letter)
        self._mine = mine

    def _write_coalesced(self, database: sqlite3.Connection, due: Sequence[Part]) -> int:
        last: dict[HeldKey, Change] = {}
        touched: dict[int, tuple[int, Position]] = {}
        tables, held = self._tables, self._held
        for part in due:
            for change in part.changes:
                if change[0] in tables:
                    key = (change[0], change[2])
                    if held and key in held:
                        touched[held[key]] = (part.partition, _position(change[5]))
                    else:
                        last[key] = change
        self._touch(database, touched)
        upserts: dict[str, list[tuple[Any, ...]]] = {}
        deletes: dict[str, list[tuple[Any, ...]]] = {}
        for name, _, key_bytes, value, codec, _, _, _ in last.values():
            if value is None:
                deletes.setdefault(name, []).append(tables[name].key_row(key_bytes))
            else:
                upserts.setdefault(name, []).append(tables[name].row(key_bytes, value, codec))
        for name, rows in deletes.items():
            database.executemany(self._statements[name].delete, rows)
        for name, rows in upserts.items():
            database.executemany(self._statements[name].upsert, rows)
        return len(last)

    def _touch(
        self, database: sqlite3.Connection, touched: Mapping[int, tuple[int, Position]]
    ) -> None:
        """Move the last position of dead letters whose held keys were written again."""
        database.executemany(
            "UPDATE spacegrid_dead_letters SET last_epoch = ?, last_sequence = ? WHERE id = ?",
            [(*position, letter) for letter, (_, position) in touched.items()],
        )

    # ---- full resync ----

    def resync(self, resyncs: Sequence[Resync]) -> Written:
        """Write the snapshots and delete every row of those partitions that is in none of them."""
        if not self._fresh:
            self._reload()
        written = Written()
        due: list[Resync] = []
        for resync in resyncs:
            mark = self._mine.marks.get(resync.partition)
            if mark is None or mark[0] != resync.epoch or resync.partition not in self._active:
                written.taken_away.append(resync.partition)
            else:
                due.append(resync)
        marks: dict[int, Mark] = {r.partition: (r.epoch, r.position) for r in due}
        mine = OwnerRow(self._mine.owner, self._mine.rev + 1, {**self._mine.marks, **marks})
        try:
            with self._errors(), self._transaction() as database:
                self._store(database, mine, self._mine.rev)
                replay = _Replay(self, database)
                present: dict[str, set[bytes]] = {name: set() for name in self._tables}
                for resync in due:
                    for chunk in resync.chunks:
                        replay.snapshot(resync, chunk, present)
                written.rows = replay.rows + self._delete_absent(
                    database, {r.partition for r in due}, present
                )
                written.parked = replay.parked
        except _Deposed:
            self._reload()
            return Written(taken_away=[r.partition for r in resyncs])
        for key, partition, letter in replay.holds:
            self._hold(key, partition, letter)
        self._mine = mine
        return written

    def _delete_absent(
        self, database: sqlite3.Connection, partitions: set[int], present: Mapping[str, set[bytes]]
    ) -> int:
        count = 0
        for name, table in self._tables.items():
            there = present[name]
            absent: list[tuple[Any, ...]] = []
            for row in database.execute(self._statements[name].select_keys):
                key = table.stored_key(row)
                if (
                    key is not None
                    and key not in there
                    and (name, key) not in self._held
                    and _core.partition_of(key, self._partition_count) in partitions
                ):
                    absent.append(row)
            database.executemany(self._statements[name].delete, absent)
            count += len(absent)
        return count

    # ---- dead letters ----

    @property
    def dead_letter_count(self) -> int:
        """Records parked, of the partitions taken over."""
        return len(set(self._held.values()))

    def dead_letters(self) -> list[DeadLetter]:
        """All parked records, oldest first, whoever owns their partition now."""
        with self._errors():
            keys: dict[int, list[HeldKey]] = {}
            for name, key, letter in self._database.execute(
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
                for row in self._database.execute(
                    "SELECT id, partition, epoch, sequence, last_epoch, last_sequence, error, "
                    "parked_at FROM spacegrid_dead_letters ORDER BY id"
                )
            ]

    def release(
        self, letter_id: int, read: Callable[[str, bytes], tuple[bytes, int] | None]
    ) -> None:
        """Write the current state of a dead letter's keys and hold them back no longer."""
        letter = next((one for one in self.dead_letters() if one.id == letter_id), None)
        if letter is None:
            raise SinkError(f"no dead letter {letter_id} in {self.name}", sink=self.name)
        if not self._fresh:
            self._reload()
        if letter.partition not in self._active:
            raise SinkError(
                f"dead letter {letter_id} is of partition {letter.partition}, which another node "
                f"pumps\nhint: release it there",
                sink=self.name,
                partition=letter.partition,
            )
        mine = OwnerRow(self._mine.owner, self._mine.rev + 1, self._mine.marks)
        try:
            with self._errors(), self._transaction() as database:
                self._store(database, mine, self._mine.rev)
                for name, key in letter.keys:
                    entry = read(name, key)
                    if name in self._tables:
                        self._write_one(database, name, key, entry)
                database.execute(
                    "DELETE FROM spacegrid_held_keys WHERE dead_letter = ?", (letter_id,)
                )
                database.execute("DELETE FROM spacegrid_dead_letters WHERE id = ?", (letter_id,))
        except _Deposed:
            self._fresh = False
            raise SinkError(
                f"dead letter {letter_id}: partition {letter.partition} was just taken over",
                sink=self.name,
                partition=letter.partition,
            ) from None
        except _ROW_ERRORS as error:
            raise SinkError(
                f"dead letter {letter_id} is still refused by {self.name}: {error}", sink=self.name
            ) from error
        self._mine = mine
        for held in letter.keys:
            self._held.pop(held, None)
            self._held_partitions.get(letter.partition, set()).discard(held)

    def _write_one(
        self,
        database: sqlite3.Connection,
        name: str,
        key: bytes,
        entry: tuple[bytes, int] | None,
    ) -> None:
        table, statements = self._tables[name], self._statements[name]
        if entry is None:
            database.execute(statements.delete, table.key_row(key))
        else:
            database.execute(statements.upsert, table.row(key, *entry))

    def _load_held(
        self, database: sqlite3.Connection, partitions: Iterable[int]
    ) -> list[tuple[HeldKey, int, int]]:
        wanted = set(partitions)
        return [
            ((name, key), partition, letter)
            for name, key, partition, letter in database.execute(
                "SELECT map, key, partition, dead_letter FROM spacegrid_held_keys"
            )
            if partition in wanted
        ]

    def _hold(self, key: HeldKey, partition: int, letter: int) -> None:
        self._held[key] = letter
        self._held_partitions.setdefault(partition, set()).add(key)

    def _forget_held(self, partition: int) -> None:
        for key in self._held_partitions.pop(partition, set()):
            self._held.pop(key, None)

    # ---- the connection ----

    @property
    def _database(self) -> sqlite3.Connection:
        if self._connection is None:
            raise SinkUnavailable(f"{self.name} is not open", sink=self.name)
        return self._connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
            database.execute("COMMIT")
        except BaseException:
            # Whether a failed COMMIT took is settled by reading the owner's row again.
            self._fresh = False
            with suppress(sqlite3.Error):
                if database.in_transaction:
                    database.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except _ROW_ERRORS:
            raise
        except (sqlite3.Error, OSError) as error:
            self._fresh = False
            raise SinkUnavailable(f"{self.name}: {error}", sink=self.name) from error


class _Statements:
    """The SQL of one table, written once."""

    __slots__ = ("delete", "select_keys", "upsert")

    def __init__(self, table: Table) -> None:
        name = quote(table.name)
        keys = [quote(c.name) for c in table.keys]
        values = [quote(c.name) for c in table.values]
        marks = ", ".join("?" * len(table.columns))
        sets = ", ".join(f"{column} = excluded.{column}" for column in values)
        self.upsert = (
            f"INSERT INTO {name} ({', '.join(keys + values)}) VALUES ({marks}) "
            f"ON CONFLICT ({', '.join(keys)}) DO {f'UPDATE SET {sets}' if sets else 'NOTHING'}"
        )
        matches = " AND ".join(f"{column} = ?" for column in keys)
        self.delete = f"DELETE FROM {name} WHERE {matches}"
        self.select_keys = f"SELECT {', '.join(keys)} FROM {name}"


class _Replay:
    """Records one by one inside an open transaction; what fails alone is parked.

    The sink's own state changes only after the commit: `holds` is what to add then.
    """

    def __init__(self, sink: SqliteSink, database: sqlite3.Connection) -> None:
        self._sink = sink
        self._database = database
        self._held = dict(sink._held)
        self.holds: list[tuple[HeldKey, int, int]] = []
        self.rows = 0
        self.parked = 0

    def run(self, part: Part) -> None:
        """Write one part in log order."""
        for version, group in groupby(part.changes, key=lambda change: change[5]):
            record = list(group)
            mine = [change for change in record if change[0] in self._sink._tables]
            keys = {(change[0], change[2]) for change in mine}
            position = _position(version)
            self._sink._touch(
                self._database,
                {self._held[key]: (part.partition, position) for key in keys if key in self._held},
            )
            free = [change for change in mine if (change[0], change[2]) not in self._held]
            error = self._attempt(
                [(c[0], c[2], None if c[3] is None else (c[3], c[4])) for c in free]
            )
            if error is not None:
                self._park(part.partition, position, record, keys, error)

    def snapshot(
        self, resync: Resync, chunk: Sequence[Any], present: Mapping[str, set[bytes]]
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
                rows.setdefault(name, []).append(self._sink._tables[name].row(key, *entry))
            for name, batch in rows.items():
                self._database.executemany(self._sink._statements[name].upsert, batch)

        return self._guarded(run, len(due))

    def _attempt(self, writes: Sequence[tuple[str, bytes, tuple[bytes, int] | None]]) -> str | None:
        def run() -> None:
            for name, key, entry in writes:
                self._sink._write_one(self._database, name, key, entry)

        return self._guarded(run, len(writes))

    def _guarded(self, run: Callable[[], None], count: int) -> str | None:
        """Run inside a savepoint; the error's text if a row is at fault, with nothing written."""
        self._database.execute("SAVEPOINT one")
        try:
            run()
        except _ROW_ERRORS as error:
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


def sqlite_path(url: str) -> Path:
    """File of a ``sqlite:///`` URL.

    Args:
        url: ``sqlite:///relative.db`` or ``sqlite:////absolute.db``.

    Raises:
        ConfigError: Anything else; a database in memory can't be a sink.
    """
    parts = urlsplit(url)
    path = unquote(parts.path[1:])
    if parts.scheme != "sqlite" or parts.netloc or not path or path == ":memory:":
        raise ConfigError(
            f"SQL target is {url!r}, must be sqlite:///FILE or sqlite:////ABSOLUTE/FILE"
        )
    return Path(os.path.expanduser(path))


def _position(version: int) -> Position:
    return version >> 40, version & ((1 << 40) - 1)


def _expected(column: Column, is_key: bool) -> tuple[str, str, bool]:
    return column.name, _SQL_TYPES[column.kind], is_key


def _described(columns: Iterable[tuple[str, str, bool]]) -> str:
    return ", ".join(f"{name} {kind}{' key' if key else ''}" for name, kind, key in sorted(columns))
