"""Pumps over a grid in memory: ownership, gaps, zombies, a sink that is away, flush and stop."""

from __future__ import annotations

import sqlite3
import threading

import pytest
from fake_grid import ORDERS, STOCK, FakeGrid, FakeNode, Raw, Stock
from lmdb_reader import stored, truth
from pump_support import Driven, rows, sql_equals
from spacegrid.errors import ConfigError, SinkError, SinkMismatch, SinkUnavailable
from spacegrid.pump import Pump
from spacegrid.pump import pump as pump_module
from spacegrid.sink.lmdb import LmdbSink


def fill(grid: FakeGrid, count: int = 60, start: int = 0) -> None:
    for number in range(start, start + count):
        key = f"k{number % 23}"
        grid.commit([(STOCK, key, Stock(number)), (ORDERS, (key, number), {"n": number})])
        if number % 7 == 0:
            grid.delete(STOCK, f"k{(number + 3) % 23}")


def own(grid: FakeGrid, node: int) -> FakeNode:
    for partition in range(grid.partition_count):
        grid.move(partition, node)
    return FakeNode(grid, node)


def test_everything_committed_arrives_and_cursors_follow(grid, database, make_sink) -> None:
    node = own(grid, 1)
    fill(grid)
    driven = Driven(node, make_sink(1), batch_records=7)
    driven.settle()
    sql_equals(database, grid)
    for partition in range(4):
        assert node.cursors["shared", partition] == grid.partitions[partition].last
    status = driven.pump.status()
    assert status.state == "running"
    assert status.written_records == sum(len(p.records) for p in grid.partitions)
    assert status.batch_count > 5
    assert status.lag_records == 0


def test_a_new_primary_goes_on_where_the_old_one_was(grid, database, make_sink) -> None:
    first, second = own(grid, 1), FakeNode(grid, 2)
    old, new = Driven(first, make_sink(1)), Driven(second, make_sink(2))
    fill(grid)
    old.settle()
    fill(grid, start=60)
    grid.move(0, 2)
    grid.move(1, 2)
    new.settle()
    old.settle()
    sql_equals(database, grid)
    assert set(old.pump._plan.taken) == {2, 3}
    assert set(new.pump._plan.taken) == {0, 1}
    assert new.pump.status().resync_count == 0


def test_a_zombie_writes_nothing_once_somebody_newer_has_taken_over(
    grid, database, make_sink
) -> None:
    first, second = own(grid, 1), FakeNode(grid, 2)
    zombie, heir = Driven(first, make_sink(1)), Driven(second, make_sink(2))
    fill(grid)
    zombie.step()
    fill(grid, start=60)
    first.freeze()
    for partition in range(4):
        grid.move(partition, 2)
    heir.settle()
    fill(grid, start=120)
    heir.settle()
    zombie.step(5)
    sql_equals(database, grid)
    assert not zombie.pump._plan.taken
    assert all(("shared", partition) not in first.cursors for partition in range(4))


def test_lost_and_won_again_between_two_looks_is_taken_over_anew(grid, database, make_sink) -> None:
    node = own(grid, 1)
    driven = Driven(node, make_sink(1))
    fill(grid)
    driven.settle()
    grid.move(0, 2)
    grid.move(0, 1)
    fill(grid, start=60)
    driven.pump._write_batch()  # has not looked yet, and must not write under the old epoch
    driven.settle()
    sql_equals(database, grid)
    assert driven.pump._plan.epoch(0) == grid.partitions[0].epoch


def test_a_gap_is_resynced_and_counted(grid, database, make_sink) -> None:
    node = own(grid, 1)
    driven = Driven(node, make_sink(1))
    fill(grid)
    driven.settle()
    fill(grid, start=60)
    grid.trim(0)
    grid.trim(2)
    fill(grid, start=120)
    again = Driven(FakeNode(grid, 2), make_sink(2))
    for partition in range(4):
        grid.move(partition, 2)
    again.settle()
    sql_equals(database, grid)
    assert again.pump.status().resync_count == 2


def test_writes_during_a_resync_are_not_lost(grid, database, make_sink) -> None:
    node = own(grid, 1)
    fill(grid)
    for partition in range(4):
        grid.trim(partition)
    snapshot = node.snapshot
    written = iter(range(1000, 1100))

    def busy(partition: int, after: bytes, max_bytes: int):
        chunk = snapshot(partition, after, max_bytes)
        number = next(written, None)
        if number is not None:
            fill(grid, 1, start=number)
        return chunk

    node.snapshot = busy  # type: ignore[method-assign]
    driven = Driven(node, make_sink(1))
    driven.settle()
    sql_equals(database, grid)


def test_a_copy_that_leaves_during_a_resync_is_let_go(grid, database, make_sink) -> None:
    node = own(grid, 1)
    fill(grid)
    grid.trim(1)
    snapshot = node.snapshot

    def leaves(partition: int, after: bytes, max_bytes: int):
        if after:
            grid.move(1, 2)
        return snapshot(partition, after, max_bytes)

    node.snapshot = leaves  # type: ignore[method-assign]
    Driven(node, make_sink(1)).settle()
    assert ("shared", 1) not in node.cursors
    heir = Driven(FakeNode(grid, 2), make_sink(2))
    heir.settle()
    sql_equals(database, grid)


def test_a_sink_that_is_away_keeps_the_log_and_shows_it(grid, database, make_sink) -> None:
    node = own(grid, 1)
    driven = Driven(node, make_sink(1))
    driven.settle()
    before = dict(node.cursors)
    blocker = sqlite3.connect(database, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    fill(grid)
    driven.step(2)
    status = driven.pump.status()
    assert status.state == "retrying"
    assert "locked" in status.error
    assert status.lag_records == sum(len(p.records) for p in grid.partitions)
    assert node.cursors == before
    blocker.execute("ROLLBACK")
    blocker.close()
    driven.settle()
    assert driven.pump.status().error == ""
    sql_equals(database, grid)


def test_a_bug_is_shown_and_nothing_is_skipped(grid, database, make_sink) -> None:
    node = own(grid, 1)
    driven = Driven(node, make_sink(1))
    fill(grid)
    read_log, node.read_log = node.read_log, lambda *_: 1 / 0  # type: ignore[method-assign]
    driven.step()
    assert "ZeroDivisionError" in driven.pump.status().error
    node.read_log = read_log  # type: ignore[method-assign]
    driven.settle()
    sql_equals(database, grid)


def test_small_changes_wait_for_company_and_a_filling_log_does_not(
    grid, database, make_sink
) -> None:
    now = [0.0]
    node = own(grid, 1)
    driven = Driven(node, make_sink(1), batch_records=100, interval_s=5, clock=lambda: now[0])
    driven.step()
    grid.put(STOCK, "tea", Stock(1))
    driven.step()
    now[0] = 4.9
    driven.step()
    assert rows(database, "SELECT * FROM stock") == []
    assert driven.pump.status().lag_ms == 4900
    now[0] = 5.1
    driven.step()
    assert len(rows(database, "SELECT * FROM stock")) == 1
    grid.put(STOCK, "milk", Stock(1))
    node.log_bytes = pump_module.LOG_BYTES_PRESSING
    driven.step()
    assert len(rows(database, "SELECT * FROM stock")) == 2


def test_poison_is_counted_and_released_by_its_owner(grid, database, make_sink) -> None:
    node = own(grid, 1)
    grid.put(STOCK, "tea", Raw(b"\xc1"))
    grid.put(STOCK, "milk", Stock(1))
    with Running(node, make_sink(1)) as pump:
        assert pump.flush(5)
        assert pump.status().parked_count == 1
        assert rows(database, "SELECT sku FROM stock") == [("milk",)]
        (letter,) = pump.dead_letters()
        with pytest.raises(SinkError, match="still refused"):
            pump.release(letter.id)
        grid.put(STOCK, "tea", Stock(5))
        pump.release(letter.id)
        assert pump.flush(5)
        assert pump.dead_letters() == []
        sql_equals(database, grid)


class Running:
    """A pump on its own thread, stopped at the end."""

    def __init__(self, node, sink, name="shared", **settings) -> None:
        self.pump = Pump(node, sink, name, **settings)

    def __enter__(self) -> Pump:
        self.pump.start()
        return self.pump

    def __exit__(self, *_: object) -> None:
        self.pump.stop(flush=False)
        assert self.pump.status().state in ("stopped", "refused")
        assert f"pump-{self.pump.name}" not in {thread.name for thread in threading.enumerate()}


def test_flush_returns_when_all_is_in_the_sink(grid, database, make_sink) -> None:
    node = own(grid, 1)
    with Running(node, make_sink(1), interval_s=3600) as pump:
        for number in range(5):
            fill(grid, start=number * 60)
            pump.wake()
            assert pump.flush(10)
            sql_equals(database, grid)


def test_flush_gives_up_when_the_sink_is_away(grid, database, make_sink) -> None:
    node = own(grid, 1)
    with Running(node, make_sink(1), interval_s=3600) as pump:
        assert pump.flush(10)
        blocker = sqlite3.connect(database, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        fill(grid)
        assert not pump.flush(0.2)
        blocker.execute("ROLLBACK")
        blocker.close()
        assert pump.flush(10)
        sql_equals(database, grid)


def test_stop_flushes_and_an_ended_pump_says_so(grid, database, make_sink) -> None:
    pump = Pump(own(grid, 1), make_sink(1), interval_s=3600)
    pump.start()
    fill(grid)
    assert pump.stop()
    sql_equals(database, grid)
    assert pump.status().state == "stopped"
    assert not pump.flush(1)
    with pytest.raises(SinkUnavailable, match="has ended"):
        pump.dead_letters()


def test_a_foreign_database_ends_the_pump_at_start(grid, make_sink) -> None:
    make_sink(1).open()
    pump = Pump(own(grid, 2), make_sink(2, life="another"))
    with pytest.raises(SinkMismatch):
        pump.start()
    pump.stop()
    assert pump.status().state == "refused"
    assert "another" in pump.status().error
    with pytest.raises(SinkUnavailable, match=r"has ended: .* written by cluster"):
        pump.dead_letters()


def test_a_database_that_is_away_at_start_is_no_error(grid, database, make_sink) -> None:
    blocker = sqlite3.connect(database, isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    fill(grid)
    with Running(own(grid, 1), make_sink(1)) as pump:
        assert pump.status().state == "retrying"
        blocker.execute("ROLLBACK")
        blocker.close()
        assert pump.flush(20)
        sql_equals(database, grid)


def test_settings_that_make_no_sense_are_refused(grid, make_sink, tmp_path) -> None:
    node = FakeNode(grid, 1)
    with pytest.raises(ConfigError, match="at least 1 record"):
        Pump(node, make_sink(1), batch_records=0)
    with pytest.raises(ConfigError, match="other kind"):
        Pump(node, make_sink(1), "local")
    local = Pump(node, LmdbSink(tmp_path, life="l", partition_count=4), "local")
    with pytest.raises(ConfigError, match="no dead letters"):
        local.dead_letters()


def test_each_copy_goes_to_its_own_disk_and_comes_back(grid, tmp_path) -> None:
    def sink() -> LmdbSink:
        return LmdbSink(tmp_path / "node", life="l", partition_count=4)

    node = FakeNode(grid, 1)
    grid.move(0, 1)
    node.backups = {1, 2}
    grid.trim(2)
    fill(grid)
    first = sink()
    pump = Pump(node, first, "local")
    pump.start()
    assert pump.flush(10)
    assert stored(first.folder) == truth(grid, 0, 1, 2)
    node.backups = {1, 3}
    fill(grid, start=60)
    assert pump.stop()
    assert stored(first.folder) == truth(grid, 0, 1, 3)

    again = sink()
    expected = {number: grid.partitions[number].last for number in (0, 1, 3)}
    assert again.stored_partitions() == expected
    streams = {chunk[0]: chunk[4] for chunk in again.load() if chunk[5]}
    assert streams == {number: b"streams of %d" % number for number in (0, 1, 3)}
    restarted = Pump(node, again, "local")
    restarted.start()
    fill(grid, start=120)
    assert restarted.flush(10)
    assert restarted.status().resync_count == 0
    assert stored(first.folder) == truth(grid, 0, 1, 3)
    expected = {number: grid.partitions[number].last for number in (0, 1, 3)}
    assert {number: node.persisted[number] for number in expected} == expected
    # What was written is there, however the pump ended.
    restarted.stop(flush=False)
    assert sink().stored_partitions() == expected


def test_an_empty_copy_is_on_disk_as_well(grid, tmp_path) -> None:
    node = FakeNode(grid, 1)
    node.backups = {0, 1}
    sink = LmdbSink(tmp_path, life="l", partition_count=4)
    driven = Driven(node, sink)
    driven.settle()
    sink.close()
    again = LmdbSink(tmp_path, life="l", partition_count=4)
    assert again.stored_partitions() == {0: (0, 0), 1: (0, 0)}
    again.close()


def test_a_copy_that_left_and_came_back_between_two_looks_is_whole(grid, tmp_path) -> None:
    node = FakeNode(grid, 1)
    node.backups = {0, 1, 2, 3}
    fill(grid)
    sink = LmdbSink(tmp_path, life="l", partition_count=4)
    driven = Driven(node, sink)
    driven.settle()
    fill(grid, start=60)
    for partition in range(4):  # wiped and joined again: no cursor, a log that begins later
        grid.trim(partition)
        grid.partitions[partition].version += 1
        node.drop_cursor("local", partition)
    fill(grid, start=120)
    driven.settle()
    sink.close()
    assert stored(sink.folder) == truth(grid, 0, 1, 2, 3)
    assert driven.pump.status().resync_count == 4
