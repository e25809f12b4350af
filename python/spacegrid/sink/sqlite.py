"""The SQLite sink: rows, checkpoint and dead letters of one batch in one transaction.

Tables beside the user's own: ``spacegrid_checkpoint`` (`spacegrid.sink.checkpoint`),
``spacegrid_filled`` (`spacegrid.sink.sqlite_filled`), ``spacegrid_dead_letters`` and
``spacegrid_held_keys``. Every batch is

    BEGIN IMMEDIATE
    UPDATE spacegrid_checkpoint SET rev = rev + 1, ... WHERE owner = me AND rev = the one I read
    one executemany per table and operation, the last change of each key only
    COMMIT

A batch that a row fails in is rolled back and replayed record by record, in log order and not
coalesced: a record that still fails is parked whole as a dead letter and its keys are held back,
which is in the same transaction as the position that moves past it. Later changes of a held key
only move the letter's last position; other keys of those records are written.

The file may be deleted, or another one put in its place, while it is open here: SQLite would go on
with what nobody finds any more. So each use looks whether the name is still the open file's; where
it is not, the sink counts as away, and is opened anew.

Durability: WAL with ``synchronous=FULL``, so a committed batch survives a loss of power.

Over 500 lines in one room: what may be done with one connection, and what is known of it meanwhile.

Who calls: a pump's thread, and nobody else on the same object.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from spacegrid import _core
from spacegrid.errors import SinkError, SinkUnavailable
from spacegrid.sink.base import Change, DeadLetter, Part, Position, ReadBack, Resync, Written
from spacegrid.sink.checkpoint import Mark, OwnerRow, TakeOver, encode_marks
from spacegrid.sink.sqlite_filled import note_filled, take_filled
from spacegrid.sink.sqlite_read import Reader, owner_rows, parked_letters
from spacegrid.sink.sqlite_replay import (
    HeldKey,
    Replay,
    RolledBack,
    Writes,
    position_of,
    touch,
)
from spacegrid.sink.sqlite_schema import ROW_ERRORS, SqlTable, create_own_tables, sqlite_path
from spacegrid.sink.tables import tables_of
from spacegrid.types import Map

__all__ = ["BUSY_TIMEOUT_MS", "SqliteSink", "sqlite_path"]

BUSY_TIMEOUT_MS: Final = 5000
"""How long a transaction waits for another writer before the sink counts as away."""


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
        self._tables = {name: SqlTable(table) for name, table in tables_of(maps).items()}
        self._connection: sqlite3.Connection | None = None
        self._file = (0, 0)  # the open one's device and inode
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
            self._file = self._named_file()
            with self._transaction() as database:
                create_own_tables(database)
                self._stored(database)
                for table in self._tables.values():
                    table.prepare(database, self.name)
                # The owner's row is there, alone, before the first batch needs to compare its rev.
                database.execute(
                    "INSERT OR IGNORE INTO spacegrid_checkpoint VALUES (?, ?, ?, ?, '{}')",
                    (self._mine.owner, self._life, self._partition_count, self._mine.rev + 1),
                )
        self._reload()

    def close(self) -> None:
        """Let go of the database; safe to call twice."""
        connection, self._connection = self._connection, None
        self._fresh = False
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def sync(self) -> None:
        """Every commit is already on disk; only whether the file is still there has to be seen."""
        with self._errors():
            self._database  # noqa: B018

    # ---- owning partitions ----

    def take(self, wanted: Mapping[int, int]) -> dict[int, Position | None]:
        """Take partitions over under the fence, and load their held keys."""
        with self._errors(), self._transaction() as database:
            rows = self._stored(database)
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
            granted = take_filled(database, self._tables, outcome.granted)
            held = self._load_held(database, granted)
        self._mine = outcome.mine
        self._fresh = True
        self._active = (self._active & set(outcome.mine.marks)) | set(outcome.granted)
        for partition in outcome.granted:
            self._forget_held(partition)
        for key, partition, letter in held:
            self._hold(key, partition, letter)
        return granted

    def let_go(self, partitions: Sequence[int], *, gone: bool) -> None:
        """Forget partitions; their entries stay in the database for whoever takes them over."""
        for partition in partitions:
            self._active.discard(partition)
            self._forget_held(partition)

    def _stored(self, database: sqlite3.Connection) -> list[OwnerRow]:
        return owner_rows(database, self.name, self._life, self._partition_count)

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
        """Read the owner's row again; partitions that were taken away are no longer active.

        The held keys too: a transaction whose answer was lost may have held or released some.
        """
        with self._errors(), self._reading() as database:
            rows = self._stored(database)
            held = self._load_held(database, self._active)
        before = self._mine
        emptied = OwnerRow(before.owner, before.rev)  # another owner removed it: checkpoint.py
        self._mine = next((row for row in rows if row.owner == before.owner), emptied)
        self._fresh = True
        self._held.clear()
        self._held_partitions.clear()
        for key, partition, letter in held:
            self._hold(key, partition, letter)
        for partition in list(self._active):
            mark = self._mine.marks.get(partition)
            if mark is None or mark[0] != before.marks[partition][0]:
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
        except ROW_ERRORS:

            def run(replay: Replay) -> None:
                for part in due:
                    replay.run(part)

            replay = self._replay(mine, run)
            written.rows, written.parked = replay.rows, replay.parked
        self._mine = mine

    def _replay(self, mine: OwnerRow, run: Callable[[Replay], None]) -> Replay:
        """Write in one transaction, row by row where that is needed; park what is at fault."""
        refused: dict[Writes, str] = {}
        while True:
            try:
                with self._errors(), self._transaction() as database:
                    self._store(database, mine, self._mine.rev)
                    replay = Replay(database, self._tables, self._held, refused)
                    run(replay)
            except RolledBack as error:
                # All of it is undone: once more without what did that.
                refused[error.writes] = error.text
                continue
            for key, partition, letter in replay.holds:
                self._hold(key, partition, letter)
            return replay

    def _write_coalesced(self, database: sqlite3.Connection, due: Sequence[Part]) -> int:
        last: dict[HeldKey, Change] = {}
        touched: dict[int, Position] = {}
        tables, held = self._tables, self._held
        for part in due:
            for change in part.changes:
                if change[0] in tables:
                    key = (change[0], change[2])
                    if held and key in held:
                        touched[held[key]] = position_of(change[5])
                    else:
                        last[key] = change
        touch(database, touched)
        upserts: dict[str, list[tuple[Any, ...]]] = {}
        deletes: dict[str, list[tuple[Any, ...]]] = {}
        for name, _, key_bytes, value, codec, _, _, _ in last.values():
            if value is None:
                deletes.setdefault(name, []).append(tables[name].table.key_row(key_bytes))
            else:
                upserts.setdefault(name, []).append(tables[name].table.row(key_bytes, value, codec))
        for name, rows in deletes.items():
            database.executemany(self._tables[name].delete, rows)
        for name, rows in upserts.items():
            database.executemany(self._tables[name].upsert, rows)
        return len(last)

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

        def run(replay: Replay) -> None:
            present: dict[str, set[bytes]] = {name: set() for name in self._tables}
            for resync in due:
                for chunk in resync.chunks:
                    replay.snapshot(resync, chunk, present)
            replay.rows += self._delete_absent(self._database, set(marks), present)
            note_filled(self._database, self._tables, marks)

        try:
            replay = self._replay(mine, run)
        except _Deposed:
            self._reload()
            return Written(taken_away=[r.partition for r in resyncs])
        written.rows, written.parked = replay.rows, replay.parked
        self._mine = mine
        return written

    def _delete_absent(
        self, database: sqlite3.Connection, partitions: set[int], present: Mapping[str, set[bytes]]
    ) -> int:
        count = 0
        for name, table in self._tables.items():
            there = present[name]
            absent: list[tuple[Any, ...]] = []
            for row in database.execute(self._tables[name].select_keys):
                key = table.table.stored_key(row)
                if (
                    key is not None
                    and key not in there
                    and (name, key) not in self._held
                    and _core.partition_of(key, self._partition_count) in partitions
                ):
                    absent.append(row)
            database.executemany(self._tables[name].delete, absent)
            count += len(absent)
        return count

    # ---- reading back ----

    def read_back(self, partitions: Sequence[int]) -> dict[int, ReadBack]:
        """What the tables hold of these partitions; see `SharedSink.read_back`."""
        reader = Reader(self.name, self._life, self._partition_count, self._tables)
        with self._errors(), self._reading() as database:
            return reader.read(database, partitions)

    # ---- dead letters ----

    @property
    def dead_letter_count(self) -> int:
        """Records parked, of the partitions taken over."""
        return len(set(self._held.values()))

    def dead_letters(self) -> list[DeadLetter]:
        """All parked records, oldest first, whoever owns their partition now."""
        with self._errors(), self._reading() as database:
            return parked_letters(database)

    def release(
        self, letter_id: int, read: Callable[[str, bytes], tuple[bytes, int] | None]
    ) -> None:
        """Write the current state of a dead letter's keys and hold them back no longer."""
        letter = next((one for one in self.dead_letters() if one.id == letter_id), None)
        if letter is None:
            raise SinkError(f"no dead letter {letter_id} in {self.name}", sink=self.name)
        try:
            self._release(letter, read)
        except _Deposed:
            # The row was moved, perhaps for another partition's sake: read it, as batches do.
            self._fresh = False
            try:
                self._release(letter, read)
            except _Deposed:
                self._fresh = False
                raise SinkError(
                    f"dead letter {letter_id}: partition {letter.partition} was just taken over",
                    sink=self.name,
                    partition=letter.partition,
                ) from None
        for held in letter.keys:
            self._held.pop(held, None)
            self._held_partitions.get(letter.partition, set()).discard(held)

    def _release(
        self, letter: DeadLetter, read: Callable[[str, bytes], tuple[bytes, int] | None]
    ) -> None:
        if not self._fresh:
            self._reload()
        if letter.partition not in self._active:
            raise SinkError(
                f"dead letter {letter.id} is of partition {letter.partition}, which another node "
                f"pumps\nhint: release it there",
                sink=self.name,
                partition=letter.partition,
            )
        mine = OwnerRow(self._mine.owner, self._mine.rev + 1, self._mine.marks)
        try:
            with self._errors(), self._transaction() as database:
                self._store(database, mine, self._mine.rev)
                for name, key in letter.keys:
                    if name in self._tables:
                        self._tables[name].write_one(database, key, read(name, key))
                database.execute(
                    "DELETE FROM spacegrid_held_keys WHERE dead_letter = ?", (letter.id,)
                )
                database.execute("DELETE FROM spacegrid_dead_letters WHERE id = ?", (letter.id,))
        except ROW_ERRORS as error:
            raise SinkError(
                f"dead letter {letter.id} is still refused by {self.name}: {error}", sink=self.name
            ) from error
        self._mine = mine

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
        if self._named_file() != self._file:
            self._fresh = False
            raise SinkUnavailable(
                f"{self.name}: the file was deleted or replaced while it was open", sink=self.name
            )
        return self._connection

    def _named_file(self) -> tuple[int, int]:
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return (0, 0)
        return found.st_dev, found.st_ino

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
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """All that is read is of one moment."""
        database = self._database
        database.execute("BEGIN")
        try:
            yield database
        finally:
            with suppress(sqlite3.Error):
                database.execute("ROLLBACK")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ROW_ERRORS:
            raise
        except (sqlite3.Error, OSError) as error:
            self._fresh = False
            raise SinkUnavailable(f"{self.name}: {error}", sink=self.name) from error
