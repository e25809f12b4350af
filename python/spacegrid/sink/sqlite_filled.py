"""Which partitions each table of the SQLite sink has the rows of.

The checkpoint says how far a partition was written, not by whom: an owner whose units did not know
a map, or knew it without columns, has moved the position past that map's changes. So the table
``spacegrid_filled`` names the partitions whose rows a table has; for another one the log is of no
use, and the partition is written whole.

Who calls: `spacegrid.sink.sqlite`, inside its transactions.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from typing import Final

from spacegrid.sink.base import Position

__all__ = ["NOWHERE", "note_filled", "take_filled"]

NOWHERE: Final[Position] = (0, 1)
"""A position that no log has: epochs begin at 1."""


def take_filled(
    database: sqlite3.Connection, maps: Collection[str], granted: Mapping[int, Position | None]
) -> dict[int, Position | None]:
    """Where to go on with partitions that are taken over, `NOWHERE` where a table lacks rows.

    Args:
        database: In the transaction that takes them over.
        maps: Maps that this owner writes; the tables of others fall behind from here on.
        granted: Partitions with the positions of the checkpoint.
    """
    filled: dict[int, set[str]] = {partition: set() for partition in granted}
    past: list[tuple[str, int]] = []
    for name, partition in database.execute("SELECT map, partition FROM spacegrid_filled"):
        if partition not in granted:
            continue
        if name in maps:
            filled[partition].add(name)
        else:
            past.append((name, partition))
    database.executemany("DELETE FROM spacegrid_filled WHERE map = ? AND partition = ?", past)
    begun = [partition for partition, at in granted.items() if at is None or at == (0, 0)]
    note_filled(database, maps, begun)
    whole = {partition for partition in granted if len(filled[partition]) == len(maps)}
    whole.update(begun)
    return {partition: at if partition in whole else NOWHERE for partition, at in granted.items()}


def note_filled(
    database: sqlite3.Connection, maps: Collection[str], partitions: Collection[int]
) -> None:
    """Note that these tables have all rows of these partitions, as of the checkpoint."""
    database.executemany(
        "INSERT OR IGNORE INTO spacegrid_filled VALUES (?, ?)",
        [(name, partition) for partition in partitions for name in maps],
    )
