"""Read the databases without the grid's own code, and compare.

SQLite through the standard library, LMDB through py-lmdb and the layout in docs/LMDB.md, values
through msgspec: nothing here imports spacegrid, so a bug of the grid's own readers can't hide a
difference.
"""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import lmdb
import msgspec

DIFFERENCES_MAX = 20

Key: TypeAlias = tuple[str, ...]
Rows: TypeAlias = dict[Key, dict[str, Any]]

_VALUE_HEADER = struct.Struct("<IQQBIH")
_CHECKSUM_BYTES = 4
_LONG_KEY = b"\xff\xff"
_TUPLE = 0xC1


def sql_rows(path: Path, table: str, key_columns: tuple[str, ...]) -> tuple[Rows, int]:
    """Read a table; return its rows by key (parts as text) and the number of rows."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        connection.row_factory = sqlite3.Row
        if not connection.execute(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)
        ).fetchone():
            return {}, 0
        rows: Rows = {}
        count = 0
        for row in connection.execute(f'SELECT * FROM "{table}"'):
            count += 1
            fields = dict(row)
            rows[tuple(str(fields.pop(name)) for name in key_columns)] = fields
    connection.close()
    return rows, count


def lmdb_rows(folders: Mapping[int, Path], maps: frozenset[str]) -> tuple[dict[str, Rows], int]:
    """Read the maps from the nodes' own stores, each partition from the folder named for it.

    Args:
        folders: Partition to the LMDB folder of its live primary.
        maps: Names of the maps to read.

    Returns:
        Map name to its rows by key, and the number of records of these maps.
    """
    rows: dict[str, Rows] = {name: {} for name in maps}
    count = 0
    for folder in sorted(set(folders.values())):
        environment = lmdb.open(str(folder), readonly=True, max_dbs=8, lock=True)
        try:
            for partition, name, key, fields in _entries(environment):
                if name in maps and folders.get(partition) == folder:
                    count += 1
                    rows[name][key] = fields
        finally:
            environment.close()
    return rows, count


def _entries(environment: lmdb.Environment) -> Iterator[tuple[int, str, Key, dict[str, Any]]]:
    database = environment.open_db(b"entries", create=False)
    with environment.begin(db=database) as transaction:
        for stored_key, stored in transaction.cursor():
            partition, name, key, value, codec = _unpack(stored_key, stored)
            yield partition, name, key, msgspec.msgpack.decode(value) if codec == 1 else {"": value}


def _unpack(stored_key: bytes, stored: bytes) -> tuple[int, str, Key, bytes, int]:
    checksum, _, _, codec, _, key_length = _VALUE_HEADER.unpack_from(stored)
    if zlib.crc32(stored[_CHECKSUM_BYTES:], zlib.crc32(stored_key)) != checksum:
        raise ValueError(f"the checksum of {stored_key!r} does not fit its value")
    start = _VALUE_HEADER.size
    key = stored[start : start + key_length]
    head = stored_key.removeprefix(_LONG_KEY)
    name = head[3 : 3 + head[2]].decode()
    value = stored[start + key_length :]
    return int.from_bytes(head[:2], "big"), name, key_parts(key), value, codec


def key_parts(key: bytes) -> Key:
    """Split key bytes: 0xC1 and length-prefixed parts for a tuple, else one part."""
    if not key or key[0] != _TUPLE:
        return (key.decode(),)
    parts, at = [], 1
    while at < len(key):
        length = shift = 0
        while True:
            byte = key[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        parts.append(key[at : at + length].decode())
        at += length
    return tuple(parts)


def differences(name: str, wanted: Rows, found: Rows, where: str) -> list[str]:
    """Compare two sets of rows; return the first differences as sentences."""
    lines = []
    for key in sorted(wanted.keys() - found.keys()):
        lines.append(f"{name} {'/'.join(key)}: not in {where}")
        if len(lines) >= DIFFERENCES_MAX:
            return lines
    for key in sorted(found.keys() - wanted.keys()):
        lines.append(f"{name} {'/'.join(key)}: only in {where}")
        if len(lines) >= DIFFERENCES_MAX:
            return lines
    for key, fields in wanted.items():
        other = found.get(key)
        if other is not None and other != fields:
            absent = object()
            columns = [
                column
                for column in fields | other
                if other.get(column, absent) != fields.get(column, absent)
            ]
            lines.append(
                f"{name} {'/'.join(key)}: in {where} "
                + ", ".join(
                    f"{column} is {other.get(column)!r}, not {fields.get(column)!r}"
                    for column in columns
                )
            )
            if len(lines) >= DIFFERENCES_MAX:
                return lines
    return lines


def repeated(name: str, rows: Rows, count: int, where: str) -> list[str]:
    """Say when more rows were read than have a key of their own."""
    if count == len(rows):
        return []
    return [f"{name}: {count:,} rows in {where} have {len(rows):,} keys"]
