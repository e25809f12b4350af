"""A database that is taken away, put back older, given other tables or asked in vain: F37 to F41.

Goal: the tables end equal to the grid, whatever was done to the file under a pump, and no partition
stays behind without a word. Method: each fault is made by another connection or on the file itself.
"""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from fake_grid import MAPS, ORDERS, SECRET, STOCK, FakeGrid, FakeNode, Raw, Stock
from pump_support import Driven, part_of, rows, sql_equals
from spacegrid.errors import ConfigError, SinkUnavailable
from spacegrid.node.sinks import open_shared_sink
from spacegrid.sink.base import Resync
from spacegrid.sink.sqlite import sqlite_path


def own(grid: FakeGrid, number: int) -> FakeNode:
    for partition in range(grid.partition_count):
        grid.move(partition, number)
    return FakeNode(grid, number)


def fill(grid: FakeGrid, count: int = 40, start: int = 0) -> None:
    for number in range(start, start + count):
        key = f"k{number % 23}"
        grid.commit([(STOCK, key, Stock(number)), (ORDERS, (key, number), {"n": number})])


def keys_in(grid: FakeGrid, partition: int, count: int) -> list[str]:
    names = (f"k{number}" for number in range(10_000))
    return [n for n in names if grid.partition_of(n.encode()) == partition][:count]


def trim_all(grid: FakeGrid) -> None:
    for partition in range(grid.partition_count):
        grid.trim(partition)


def remove(database: Path) -> None:
    for file in database.parent.glob(f"{database.name}*"):
        file.unlink()


# ---- ownership that is not as it was


def test_taking_one_partition_over_stops_the_resync_of_no_other(grid, database, make_sink) -> None:
    node = own(grid, 1)
    fill(grid)
    trim_all(grid)
    thief = make_sink(2)
    thief.open()
    sink = make_sink(1)
    resync = sink.resync

    def after_a_take_over(resyncs):
        if grid.owners[3] == 1:
            grid.move(3, 2)
            thief.take({3: grid.partitions[3].epoch})
        return resync(resyncs)

    sink.resync = after_a_take_over  # type: ignore[method-assign]
    driven = Driven(node, sink)
    driven.settle()
    assert set(driven.pump._plan.taken) == {0, 1, 2}
    heir = Driven(FakeNode(grid, 2), thief)
    heir.settle()
    sql_equals(database, grid)


def test_a_backup_from_before_a_hand_over_is_written_up_again(grid, database, make_sink) -> None:
    node = own(grid, 1)
    fill(grid)
    driven = Driven(node, make_sink(1))
    driven.settle()
    # In place, as `.restore` of SQLite's own shell does it.
    backup = sqlite3.connect(":memory:")
    source = sqlite3.connect(database)
    source.backup(backup)
    own(grid, 1)
    fill(grid, start=40)
    driven.settle()
    trim_all(grid)
    backup.backup(source)
    source.close()
    backup.close()
    fill(grid, start=80)
    driven.settle()
    assert set(driven.pump._plan.taken) == {0, 1, 2, 3}
    sql_equals(database, grid)


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_that_is_not_the_open_one_any_more_is_noticed(
    grid, database, make_sink, how: str
) -> None:
    node = own(grid, 1)
    driven = Driven(node, make_sink(1))
    fill(grid)
    driven.settle()
    if how == "replaced":
        older = database.with_name("older.db")
        sqlite3.connect(database).execute(f"VACUUM INTO '{older}'").connection.close()
    fill(grid, start=40)
    driven.settle()
    trim_all(grid)
    remove(database)
    if how == "replaced":
        shutil.move(older, database)
    driven.step()  # nothing was written since
    assert "deleted or replaced" in driven.pump.status().error
    driven.settle()
    assert driven.pump.status().error == ""
    sql_equals(database, grid)


# ---- tables that come later


def test_a_map_that_gets_columns_is_filled_from_the_grid(grid, database, make_sink) -> None:
    before = Driven(own(grid, 1), make_sink(1, maps=(STOCK, SECRET)))
    fill(grid)
    before.settle()
    grid.move(0, 3)  # a third owner of before, while the units of the others are new already
    third = Driven(FakeNode(grid, 3), make_sink(3, maps=(STOCK, SECRET)))
    after = Driven(FakeNode(grid, 2), make_sink(2))
    for partition in (1, 2, 3):
        grid.move(partition, 2)
    after.settle()
    third.settle()
    grid.move(1, 3)
    fill(grid, start=40)
    third.settle()
    after.settle()
    for partition in (0, 1):
        grid.move(partition, 2)
    after.settle()
    sql_equals(database, grid)
    # From then on a hand-over needs no second look at the grid.
    heir = Driven(own(grid, 4), make_sink(4))
    fill(grid, start=80)
    heir.settle()
    sql_equals(database, grid)
    assert heir.pump.status().resync_count == 0


def test_a_table_that_was_renamed_is_filled_again(grid, database, make_sink) -> None:
    first = Driven(own(grid, 1), make_sink(1))
    fill(grid)
    first.settle()
    first.sink.close()
    other = sqlite3.connect(database)
    other.execute("ALTER TABLE stock RENAME TO stock_of_before")
    other.close()
    again = Driven(own(grid, 2), make_sink(2))
    again.settle()
    sql_equals(database, grid)


def test_a_table_that_is_dropped_under_the_pump_is_filled_again(grid, database, make_sink) -> None:
    driven = Driven(own(grid, 1), make_sink(1))
    fill(grid)
    driven.settle()
    sqlite3.connect(database).execute("DROP TABLE stock").connection.close()
    grid.put(STOCK, "tea", Stock(1))
    driven.step()
    assert "no such table" in driven.pump.status().error
    driven.settle()
    sql_equals(database, grid)


# ---- dead letters


class Losing(sqlite3.Connection):
    """A connection that commits and loses the answer, once."""

    armed = False

    def execute(self, sql: str, *args):
        result = super().execute(sql, *args)
        if sql == "COMMIT" and Losing.armed:
            Losing.armed = False
            raise sqlite3.OperationalError("disk I/O error")
        return result


@pytest.fixture
def losing(monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Losing, **k))
    monkeypatch.setattr(Losing, "armed", False)
    return Losing


def test_a_letter_whose_commit_had_no_answer_goes_on_holding(
    grid, database, make_sink, losing
) -> None:
    bad, good = keys_in(grid, 0, 2)
    node = own(grid, 1)
    driven = Driven(node, make_sink(1))
    driven.settle()
    grid.put(STOCK, bad, Raw(b"\xc1"))
    losing.armed = True
    driven.step()
    assert "disk I/O error" in driven.pump.status().error
    driven.settle()
    grid.put(STOCK, bad, Raw(b"\xc1"))
    grid.put(STOCK, good, Stock(1))
    driven.settle()
    assert rows(database, "SELECT sku FROM stock") == [(good,)]
    (letter,) = driven.sink.dead_letters()
    assert letter.last == grid.partitions[0].records[1][0]


def test_a_release_whose_commit_had_no_answer_holds_nothing_back(
    grid, database, make_sink, losing
) -> None:
    (key,) = keys_in(grid, 0, 1)
    driven = Driven(own(grid, 1), make_sink(1))
    grid.put(STOCK, key, Raw(b"\xc1"))
    driven.settle()
    (letter,) = driven.sink.dead_letters()
    grid.put(STOCK, key, Stock(1))
    driven.settle()
    losing.armed = True
    with pytest.raises(SinkUnavailable):
        driven.sink.release(letter.id, lambda name, key: grid.tables(name)[key])
    assert driven.sink.dead_letters() == []
    grid.put(STOCK, key, Stock(2))
    driven.settle()
    sql_equals(database, grid)
    assert driven.sink.dead_letter_count == 0


ROLLING_BACK = """
CREATE TRIGGER refuse BEFORE INSERT ON stock WHEN NEW."left" = 666
BEGIN SELECT RAISE(ROLLBACK, 'no such stock'); END
"""


def test_a_trigger_that_rolls_everything_back_stops_nobody(grid, database, make_sink) -> None:
    names = keys_in(grid, 0, 6)
    driven = Driven(own(grid, 1), make_sink(1))
    driven.settle()
    sqlite3.connect(database).executescript(ROLLING_BACK)
    for number, name in enumerate(names):
        grid.put(STOCK, name, Stock(666 if number in (1, 4) else number))
    driven.settle()
    assert driven.pump.status().parked_count == 2
    found = {sku for (sku,) in rows(database, "SELECT sku FROM stock")}
    assert found == {name for number, name in enumerate(names) if number not in (1, 4)}
    assert all("no such stock" in letter.error for letter in driven.sink.dead_letters())


def test_such_a_trigger_stops_no_resync(grid, database, make_sink) -> None:
    bad, good = keys_in(grid, 0, 2)
    grid.put(STOCK, bad, Stock(666))
    grid.put(STOCK, good, Stock(1))
    sink = make_sink(1)
    sink.open()
    sqlite3.connect(database).executescript(ROLLING_BACK)
    sink.take({0: 1})
    entries = list(grid.partitions[0].tables.values())
    assert sink.resync([Resync(0, 1, (1, 2), [entries])]).parked == 1
    assert rows(database, "SELECT sku FROM stock") == [(good,)]
    part = part_of(grid, 0)
    assert sink.write([part]).moved == {0: (1, 2)}


# ---- what is shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://shop:s3cret@db/shop",
        "mysql://shop:s3/cr@t@db/shop",
        "postgresql://db/shop?user=shop&password=s3cret",
        "sqlite://shop:s3cret@host/shop.db",
    ],
)
def test_no_message_shows_a_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_shared_sink(url, life=b"l", owner=1, partition_count=4, maps=MAPS)
    assert url.partition(":")[0] in str(caught.value)
    assert "s3" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        sqlite_path(url)
    assert "s3" not in str(caught.value)
