"""Pumps and sinks: rows per second, beside the same rows through the bare driver."""

from __future__ import annotations

import itertools
import sqlite3

import lmdb
import msgspec
import pytest
from spacegrid import _core
from spacegrid.sink.base import Change, Part
from spacegrid.sink.lmdb import LmdbSink
from spacegrid.sink.sqlite import SqliteSink
from spacegrid.types import Map

RECORDS = 1000
BATCHES = 20


class Line(msgspec.Struct):
    """A row as the real orders have it."""

    quantity: int
    price: str
    note: str | None = None


LINES: Map[tuple[str, int], Line] = Map(
    tuple[str, int], Line, columns=("invoice", "number"), name="lines"
)


def batches(partition_count: int) -> list[list[Part]]:
    """Batches of one-change records, over all partitions in turn."""
    sequences = [0] * partition_count
    made = []
    numbers = itertools.count()
    for _ in range(BATCHES):
        changes: dict[int, list[Change]] = {}
        for number in itertools.islice(numbers, RECORDS):
            key = LINES.key_codec.encode((f"{536365 + number // 20}", number % 20))
            value = LINES.value_codec.encode(Line(number, "2.55"))
            partition = _core.partition_of(key, partition_count)
            sequences[partition] += 1
            version = 1 << 40 | sequences[partition]
            change = ("lines", LINES.schema, key, value, 1, version, 0, False)
            changes.setdefault(partition, []).append(change)
        parts = []
        for partition, some in changes.items():
            last = sequences[partition]
            after = last - len(some)
            parts.append(Part(partition, 1, (1 if after else 0, after), (1, last), len(some), some))
        made.append(parts)
    return made


@pytest.mark.parametrize("partition_count", [16, 1024])
def test_sqlite_sink(benchmark, tmp_path, partition_count):
    prepared = batches(partition_count)
    runs = itertools.count()

    def setup():
        sink = SqliteSink(
            f"sqlite:///{tmp_path / f'{next(runs)}.db'}",
            life="l",
            owner=1,
            partition_count=partition_count,
            maps=[LINES],
        )
        sink.open()
        sink.take(dict.fromkeys(range(partition_count), 1))
        return (sink,), {}

    def run(sink):
        for parts in prepared:
            assert not sink.write(parts).moved

    benchmark.extra_info["rows"] = RECORDS * BATCHES
    benchmark.pedantic(run, setup=setup, rounds=3)


def test_sqlite_bare(benchmark, tmp_path):
    runs = itertools.count()

    def setup():
        database = sqlite3.connect(tmp_path / f"{next(runs)}.db", isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute(
            "CREATE TABLE lines (invoice TEXT, number INTEGER, quantity INTEGER, price TEXT, "
            "note TEXT, PRIMARY KEY (invoice, number))"
        )
        return (database,), {}

    def run(database):
        for batch in range(BATCHES):
            numbers = range(batch * RECORDS, (batch + 1) * RECORDS)
            rows = [(f"{536365 + n // 20}", n % 20, n, "2.55", None) for n in numbers]
            database.execute("BEGIN IMMEDIATE")
            database.executemany(
                "INSERT INTO lines VALUES (?, ?, ?, ?, ?) ON CONFLICT (invoice, number) DO UPDATE "
                "SET quantity = excluded.quantity, price = excluded.price, note = excluded.note",
                rows,
            )
            database.execute("COMMIT")

    benchmark.extra_info["rows"] = RECORDS * BATCHES
    benchmark.pedantic(run, setup=setup, rounds=3)


def test_lmdb_sink(benchmark, tmp_path):
    prepared = batches(1024)
    runs = itertools.count()

    def setup():
        sink = LmdbSink(tmp_path / str(next(runs)), life="l", partition_count=1024)
        sink.open()
        sink.take(dict.fromkeys(range(1024), 1))
        return (sink,), {}

    def run(sink):
        for parts in prepared:
            assert not sink.write(parts).moved

    benchmark.extra_info["rows"] = RECORDS * BATCHES
    benchmark.pedantic(run, setup=setup, rounds=3)


def test_lmdb_bare(benchmark, tmp_path):
    prepared = [
        sorted((change[2], change[3]) for part in parts for change in part.changes)
        for parts in batches(1024)
    ]
    runs = itertools.count()

    def setup():
        folder = tmp_path / str(next(runs))
        environment = lmdb.open(str(folder), map_size=1 << 28, sync=False, metasync=False)
        return (environment,), {}

    def run(environment):
        for items in prepared:
            with environment.begin(write=True) as writing, writing.cursor() as cursor:
                cursor.putmulti(items)

    benchmark.extra_info["rows"] = RECORDS * BATCHES
    benchmark.pedantic(run, setup=setup, rounds=3)
