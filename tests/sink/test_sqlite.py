"""The SQLite sink: the fenced checkpoint, dead letters, resync, and a sink that is away."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from fake_grid import MAPS, ORDERS, STOCK, FakeGrid, Raw, Stock
from pump_support import part_of, rows, sql_equals
from spacegrid.errors import ConfigError, SinkError, SinkMismatch, SinkUnavailable
from spacegrid.sink.base import Resync
from spacegrid.sink.sqlite import SqliteSink, sqlite_path
from spacegrid.types import Map


def keys_in(grid: FakeGrid, partition: int, count: int) -> list[str]:
    """Keys that route to one partition."""
    names = (f"k{number}" for number in range(10_000))
    return [n for n in names if grid.partition_of(n.encode()) == partition][:count]


def checkpoint(database: Path) -> dict[int, dict[str, list[int]]]:
    return {
        owner: json.loads(marks)
        for owner, marks in rows(database, "SELECT owner, partitions FROM spacegrid_checkpoint")
    }


def test_a_batch_and_its_position_are_one_transaction(grid, database, make_sink) -> None:
    first, second = keys_in(grid, 0, 2)
    grid.commit([(STOCK, first, Stock(3)), (ORDERS, (first, 1), {"n": 1})])
    grid.put(STOCK, second, Stock(4))
    grid.put(STOCK, first, Stock(2))
    grid.delete(STOCK, second)
    sink = make_sink(1)
    sink.open()
    assert sink.take({0: 1}) == {0: None}
    written = sink.write([part_of(grid, 0)])
    assert written.rows == 3  # coalesced: the last change of each key
    sql_equals(database, grid)
    assert checkpoint(database) == {1: {"0": [1, 1, 4]}}


def test_a_repeated_batch_is_skipped(grid, database, make_sink) -> None:
    (key,) = keys_in(grid, 0, 1)
    grid.put(STOCK, key, Stock(1))
    sink = make_sink(1)
    sink.open()
    sink.take({0: 1})
    part = part_of(grid, 0)
    sink.write([part])
    sqlite3.connect(database).execute("DELETE FROM stock").connection.commit()
    assert sink.write([part]).moved == {0: (1, 1)}
    assert rows(database, "SELECT * FROM stock") == []


def test_a_batch_that_does_not_follow_is_not_written(grid, database, make_sink) -> None:
    (key,) = keys_in(grid, 0, 1)
    grid.put(STOCK, key, Stock(1))
    grid.put(STOCK, key, Stock(2))
    sink = make_sink(1)
    sink.open()
    sink.take({0: 1})
    assert sink.write([part_of(grid, 0, after=(1, 1))]).moved == {0: (0, 0)}
    assert rows(database, "SELECT * FROM stock") == []


def test_a_deposed_owner_fails_in_the_database(grid, database, make_sink) -> None:
    (key,) = keys_in(grid, 0, 1)
    grid.put(STOCK, key, Stock(1))
    old, new = make_sink(1), make_sink(2)
    old.open()
    new.open()
    old.take({0: 1})
    old.write([part_of(grid, 0)])
    late_after = grid.partitions[0].last
    grid.put(STOCK, key, Stock(2))
    late = part_of(grid, 0, epoch=1, after=late_after)
    grid.move(0, 2)
    assert new.take({0: 2}) == {0: (1, 1)}
    grid.put(STOCK, key, Stock(3))
    new.write([part_of(grid, 0, after=late_after)])
    written = old.write([late])
    assert written.taken_away == [0]
    assert written.rows == 0
    sql_equals(database, grid)
    assert old.take({0: 1}) == {}


def test_an_owner_two_epochs_back_lands_last_and_is_refused(grid, database, make_sink) -> None:
    (key,) = keys_in(grid, 0, 1)
    grid.put(STOCK, key, Stock(1))
    sinks = [make_sink(owner) for owner in (1, 2, 3)]
    for epoch, sink in enumerate(sinks, start=1):
        sink.open()
        sink.take({0: epoch})
    late = part_of(grid, 0, epoch=1)
    grid.move(0, 2)
    grid.move(0, 3)
    grid.put(STOCK, key, Stock(3))
    sinks[2].write([part_of(grid, 0)])
    assert sinks[0].write([late]).taken_away == [0]
    assert sinks[1].write([part_of(grid, 0, epoch=2)]).taken_away == [0]
    sql_equals(database, grid)


def test_handing_over_one_partition_disturbs_no_other(grid, database, make_sink) -> None:
    for partition in range(4):
        grid.put(STOCK, keys_in(grid, partition, 1)[0], Stock(partition))
    old, new = make_sink(1), make_sink(2)
    old.open()
    new.open()
    old.take({0: 1, 1: 1, 2: 1, 3: 1})
    new.take({2: 2})
    written = old.write([part_of(grid, partition) for partition in range(4)])
    assert written.taken_away == [2]
    assert written.rows == 3
    assert checkpoint(database) == {
        1: {"0": [1, 1, 1], "1": [1, 1, 1], "3": [1, 1, 1]},
        2: {"2": [2, 0, 0]},
    }
    assert rows(database, "SELECT rev FROM spacegrid_checkpoint WHERE owner = 2") == [(2,)]


def test_an_emptied_row_goes_and_its_owner_can_come_back(grid, database, make_sink) -> None:
    (key,) = keys_in(grid, 0, 1)
    grid.put(STOCK, key, Stock(1))
    first, second = make_sink(1), make_sink(2)
    first.open()
    second.open()
    first.take({0: 1})
    before = first._mine.rev
    second.take({0: 2})
    assert list(checkpoint(database)) == [2]
    assert first.write([part_of(grid, 0)]).taken_away == [0]
    assert first.take({0: 3}) == {0: (0, 0)}
    assert list(checkpoint(database)) == [1]
    assert first._mine.rev > before
    first.write([part_of(grid, 0, epoch=3)])
    sql_equals(database, grid)


def test_the_same_epoch_of_another_owner_is_refused(make_sink) -> None:
    first, second = make_sink(1), make_sink(2)
    first.open()
    second.open()
    assert first.take({0: 5}) == {0: None}
    assert second.take({0: 5, 1: 1}) == {1: None}
    assert first.take({0: 4}) == {}
    assert first.take({0: 5}) == {0: (0, 0)}


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"life": "life-2"}, "written by cluster life-1"), ({"partition_count": 8}, "4 partitions")],
)
def test_a_foreign_database_is_refused(make_sink, settings, text) -> None:
    make_sink(1).open()
    with pytest.raises(SinkMismatch, match=text) as caught:
        make_sink(2, **settings).open()
    assert "hint: name another database, or delete this one" in str(caught.value)


@pytest.mark.parametrize("step", ["take", "write", "resync"])
def test_a_database_that_becomes_foreign_is_written_no_more(
    grid, database, make_sink, step: str
) -> None:
    (key,) = keys_in(grid, 0, 1)
    grid.put(STOCK, key, Stock(1))
    sink = make_sink(1)
    sink.open()
    sink.take({0: 1})
    other = sqlite3.connect(database)
    other.execute("UPDATE spacegrid_checkpoint SET life = 'another'").connection.commit()
    steps = {
        "take": lambda: sink.take({1: 1}),
        "write": lambda: sink.write([part_of(grid, 0)]),
        "resync": lambda: sink.resync([Resync(0, 1, (1, 1), [])]),
    }
    with pytest.raises(SinkMismatch, match="written by cluster another"):
        steps[step]()
    assert rows(database, "SELECT * FROM stock") == []
    assert checkpoint(database) == {1: {"0": [1, 0, 0]}}
    other.close()


def test_a_table_of_another_layout_is_refused(database, make_sink) -> None:
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE stock (sku TEXT PRIMARY KEY, colour TEXT)")
    connection.close()
    with pytest.raises(SinkMismatch, match=r"table 'stock' .* colour TEXT"):
        make_sink(1).open()


def test_a_poison_record_is_parked_whole_and_its_keys_are_held(grid, database, make_sink) -> None:
    bad, good = keys_in(grid, 0, 2)
    sink = make_sink(1)
    sink.open()
    sqlite3.connect(database).executescript(
        'CREATE TRIGGER refuse BEFORE INSERT ON stock WHEN NEW."left" = 666 '
        "BEGIN SELECT RAISE(ABORT, 'no such stock'); END"
    )
    sink.take({0: 1})
    grid.put(STOCK, bad, Stock(1))
    grid.commit([(STOCK, bad, Stock(666)), (ORDERS, (bad, 1), {})])  # parked whole
    grid.put(STOCK, good, Stock(5))
    grid.commit([(ORDERS, (bad, 1), {}), (STOCK, good, Stock(4))])  # one key of it is held
    written = sink.write([part_of(grid, 0)])
    # Coalesced, the poison is still the last change of its key, so the batch was replayed.
    assert written.parked == 1
    assert rows(database, 'SELECT sku, "left" FROM stock ORDER BY sku') == sorted(
        [(bad, 1), (good, 4)]
    )
    assert rows(database, "SELECT * FROM orders") == []
    (letter,) = sink.dead_letters()
    assert letter.position == (1, 2)
    assert letter.last == (1, 4)
    assert {name for name, _ in letter.keys} == {"stock", "orders"}
    assert "no such stock" in letter.error

    # A later good value of a held key only moves the last position; also for the next owner.
    after = grid.partitions[0].last
    grid.put(STOCK, bad, Stock(7))
    grid.move(0, 2)
    heir = make_sink(2)
    heir.open()
    heir.take({0: 2})
    assert heir.dead_letter_count == 1
    heir.write([part_of(grid, 0, after=after)])
    assert heir.dead_letters()[0].last == (1, 5)
    assert rows(database, f"SELECT \"left\" FROM stock WHERE sku = '{bad}'") == [(1,)]

    with pytest.raises(SinkError, match="another node"):
        sink.release(letter.id, lambda name, key: None)
    # Somebody has moved the row that says who owns what: it is read again, and that is all.
    with sqlite3.connect(database) as other:
        other.execute("UPDATE spacegrid_checkpoint SET rev = rev + 1")
    heir.release(letter.id, lambda name, key: grid.tables(name)[key])
    assert heir.dead_letters() == []
    assert heir.dead_letter_count == 0
    sql_equals(database, grid)
    with pytest.raises(SinkError, match="no dead letter 99"):
        heir.release(99, lambda name, key: None)


def test_bytes_of_another_type_are_poison_too(grid, database, make_sink) -> None:
    bad, good = keys_in(grid, 0, 2)
    grid.put(STOCK, bad, Raw(b"\xc1"))
    grid.put(STOCK, good, Stock(1 << 63))  # does not fit an SQL INTEGER
    grid.put(ORDERS, (good, 1), {})
    sink = make_sink(1)
    sink.open()
    sink.take({0: 1})
    assert sink.write([part_of(grid, 0)]).parked == 2
    assert len(rows(database, "SELECT * FROM orders")) == 1
    first, second = sink.dead_letters()
    with pytest.raises(SinkError, match="still refused"):
        sink.release(first.id, lambda name, key: (b"\xc1", 1))
    assert sink.dead_letters() == [first, second]
    sink.release(first.id, lambda name, key: None)
    assert [letter.id for letter in sink.dead_letters()] == [second.id]


def test_one_poison_in_ten_thousand_stops_nobody(grid, database, make_sink) -> None:
    names = keys_in(grid, 0, 1000)
    for number in range(10_000):
        if number == 5000:
            grid.put(ORDERS, (names[7], number), Raw(b"\xff\xff"))
        else:
            grid.put(ORDERS, (names[number % 1000], number), {})
    sink = make_sink(1)
    sink.open()
    sink.take({0: 1})
    assert sink.write([part_of(grid, 0)]).parked == 1
    assert rows(database, "SELECT count(*) FROM orders") == [(9_999,)]


def test_a_resync_deletes_what_is_not_in_the_snapshot(grid, database, make_sink) -> None:
    stays, goes = keys_in(grid, 0, 2)
    (other,) = keys_in(grid, 1, 1)
    grid.put(STOCK, stays, Stock(1))
    grid.put(STOCK, goes, Stock(2))
    grid.put(STOCK, other, Stock(3))
    sink = make_sink(1)
    sink.open()
    sink.take({0: 1, 1: 1})
    sink.write([part_of(grid, 0), part_of(grid, 1)])
    grid.delete(STOCK, goes)
    grid.put(STOCK, stays, Stock(9))
    position = grid.partitions[0].last
    entries = [e for e in grid.partitions[0].tables.values()]
    written = sink.resync([Resync(0, 1, position, [entries])])
    assert written.rows == 2
    sql_equals(database, grid)
    assert checkpoint(database)[1]["0"] == [1, *position]
    assert sink.resync([Resync(0, 9, position, [])]).taken_away == [0]


def test_a_resync_parks_what_fails_alone(grid, database, make_sink) -> None:
    bad, good = keys_in(grid, 0, 2)
    grid.put(STOCK, bad, Raw(b"\xc1"))
    grid.put(STOCK, good, Stock(1))
    sink = make_sink(1)
    sink.open()
    sink.take({0: 1})
    entries = list(grid.partitions[0].tables.values())
    assert sink.resync([Resync(0, 1, (1, 2), [entries])]).parked == 1
    assert rows(database, "SELECT sku FROM stock") == [(good,)]
    # Held: a second resync neither deletes nor parks it again.
    assert sink.resync([Resync(0, 1, (1, 2), [entries])]).parked == 0


def test_a_locked_database_is_away_and_loses_nothing(grid, database, make_sink) -> None:
    (key,) = keys_in(grid, 0, 1)
    grid.put(STOCK, key, Stock(1))
    sink = make_sink(1)
    sink.open()
    sink.take({0: 1})
    blocker = sqlite3.connect(database, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(SinkUnavailable, match="locked"):
        sink.write([part_of(grid, 0)])
    blocker.execute("ROLLBACK")
    blocker.close()
    assert sink.write([part_of(grid, 0)]).rows == 1
    sql_equals(database, grid)


class Failing(sqlite3.Connection):
    """A connection that fails at its nth statement, before or after carrying it out."""

    countdown = -1
    afterwards = False

    def execute(self, sql: str, *args):
        return self._run(super().execute, sql, *args)

    def executemany(self, sql: str, *args):
        return self._run(super().executemany, sql, *args)

    def _run(self, run, sql, *args):
        cls = type(self)
        cls.countdown -= 1
        if cls.countdown == 0:
            if cls.afterwards:
                run(sql, *args)
            raise sqlite3.OperationalError("disk I/O error")
        return run(sql, *args)


@pytest.mark.parametrize("afterwards", [False, True])
def test_an_error_at_any_statement_repeats_and_loses_nothing(
    tmp_path, monkeypatch, afterwards
) -> None:
    """A commit whose answer was lost has landed; every other failure has not. Both end the same."""
    connect = sqlite3.connect
    monkeypatch.setattr(Failing, "afterwards", afterwards)
    for statement in range(1, 40):
        grid = FakeGrid()
        first, second = keys_in(grid, 0, 2)
        database = tmp_path / f"{statement}.db"
        monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Failing, **k))
        sink = SqliteSink(f"sqlite:///{database}", life="l", owner=1, partition_count=4, maps=MAPS)
        monkeypatch.setattr(Failing, "countdown", statement)
        done = (0, 0)
        for number in range(20):
            try:
                sink.open()
                taken = sink.take({0: 1})
                done = taken[0] or (0, 0)
                if number == 0 or not grid.partitions[0].records:
                    grid.put(STOCK, first, Stock(1))
                    grid.put(STOCK, second, Stock(2))
                    grid.delete(STOCK, first)
                if done == grid.partitions[0].last:
                    break
                sink.write([part_of(grid, 0, after=done)])
            except SinkUnavailable:
                continue
        assert done == grid.partitions[0].last
        sink.close()
        monkeypatch.setattr(sqlite3, "connect", connect)
        sql_equals(database, grid)


def test_only_files_can_be_sinks() -> None:
    assert sqlite_path("sqlite:///a%20b.db") == Path("a b.db")
    assert sqlite_path("sqlite:////tmp/x.db") == Path("/tmp/x.db")
    for url in ("sqlite://", "sqlite:///", "sqlite:///:memory:", "mysql:///x", "sqlite://host/x"):
        with pytest.raises(ConfigError, match="must be sqlite"):
            sqlite_path(url)


def test_maps_without_columns_are_not_pumped(grid, database, make_sink) -> None:
    secret = Map(str, bytes, name="secret")
    (key,) = keys_in(grid, 0, 1)
    grid.put(secret, key, b"x")
    sink = make_sink(1)
    sink.open()
    sink.take({0: 1})
    assert sink.write([part_of(grid, 0)]).rows == 0
    assert checkpoint(database) == {1: {"0": [1, 1, 1]}}
    tables = rows(database, "SELECT name FROM sqlite_master WHERE type = 'table'")
    assert ("secret",) not in tables
