"""What the SQLite sink has in its database: the users' tables, its own, and their statements.

Who calls: `spacegrid.sink.sqlite` and its replay.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from spacegrid.errors import ConfigError, SerializationError, SinkMismatch
from spacegrid.sink.base import without_password
from spacegrid.sink.tables import Column, Table, quote

__all__ = ["ROW_ERRORS", "SqlTable", "create_own_tables", "sqlite_path"]

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
CREATE TABLE IF NOT EXISTS spacegrid_filled (
    map TEXT NOT NULL, partition INTEGER NOT NULL, PRIMARY KEY (map, partition)) WITHOUT ROWID;
"""

# What one record can be guilty of; everything else that sqlite3 raises means that the sink is away.
ROW_ERRORS: Final = (
    SerializationError,
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    UnicodeEncodeError,
)


def create_own_tables(database: sqlite3.Connection) -> None:
    """Make the sink's own tables where they are missing, inside the caller's transaction."""
    for statement in _OWN_TABLES.split(";\n"):
        database.execute(statement)


class SqlTable:
    """One map's table and its SQL, written once.

    Args:
        table: Its columns.

    Attributes:
        table: The same.
        upsert: Takes a whole row.
        delete: Takes a row of key columns.
        select_keys: All rows' key columns.
        select_rows: All rows, the key's columns first.
    """

    __slots__ = ("delete", "select_keys", "select_rows", "table", "upsert")

    def __init__(self, table: Table) -> None:
        self.table = table
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
        self.select_rows = f"SELECT {', '.join(keys + values)} FROM {name}"

    def write_one(
        self, database: sqlite3.Connection, key: bytes, entry: tuple[bytes, int] | None
    ) -> None:
        """Make the row of one key equal to (value, codec), or absent."""
        if entry is None:
            database.execute(self.delete, self.table.key_row(key))
        else:
            database.execute(self.upsert, self.table.row(key, *entry))

    def prepare(self, database: sqlite3.Connection, sink: str) -> None:
        """Make the table where it is missing, inside the caller's transaction.

        A new one has no partition's rows, whatever one of its name had before.

        Raises:
            SinkMismatch: It is there with other columns.
        """
        table = self.table
        columns = [
            f"{quote(c.name)} {_SQL_TYPES[c.kind]}{'' if c.nullable else ' NOT NULL'}"
            for c in table.columns
        ]
        keys = ", ".join(quote(c.name) for c in table.keys)
        found = [
            (name, kind.upper(), bool(key))
            for _, name, kind, _, _, key in database.execute(
                f"PRAGMA table_info({quote(table.name)})"
            )
        ]
        if not found:
            database.execute(
                f"CREATE TABLE {quote(table.name)} ({', '.join(columns)}, PRIMARY KEY ({keys}))"
            )
            database.execute("DELETE FROM spacegrid_filled WHERE map = ?", (table.name,))
            return
        expected = [_expected(c, True) for c in table.keys]
        expected += [_expected(c, False) for c in table.values]
        if sorted(found) != sorted(expected):
            raise SinkMismatch(
                f"table {table.name!r} of {sink} has columns {_described(found)}, "
                f"map {table.name!r} needs {_described(expected)}\n"
                "hint: rename the table or the map, or drop the table",
                sink=sink,
            )


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
            f"SQL target is {without_password(url)!r}, must be sqlite:///FILE or "
            "sqlite:////ABSOLUTE/FILE"
        )
    return Path(os.path.expanduser(path))


def _expected(column: Column, is_key: bool) -> tuple[str, str, bool]:
    return column.name, _SQL_TYPES[column.kind], is_key


def _described(columns: Iterable[tuple[str, str, bool]]) -> str:
    return ", ".join(f"{name} {kind}{' key' if key else ''}" for name, kind, key in sorted(columns))
