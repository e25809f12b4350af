"""Pumps that are asked in vain, disks that are full at the wrong moment, files that are removed.

Goal: what nobody waits for is not carried out later, and no copy on disk is missing or vouched for
without being there. Method: each fault once, then the pump goes on and the end is compared.
"""

from __future__ import annotations

import threading

import pytest
from fake_grid import SECRET, STOCK, FakeGrid, FakeNode, Raw, Stock
from lmdb_reader import stored, truth
from pump_support import Driven, rows, sql_equals
from spacegrid.errors import SinkError, SinkUnavailable, StoreFailed
from spacegrid.pump import Pump
from spacegrid.sink import lmdb as lmdb_sink
from spacegrid.sink.base import Resync
from spacegrid.sink.lmdb import LmdbSink


def own(grid: FakeGrid, number: int) -> FakeNode:
    for partition in range(grid.partition_count):
        grid.move(partition, number)
    return FakeNode(grid, number)


def test_a_call_that_nobody_waits_for_any_more_is_not_run(grid, make_sink) -> None:
    pump = Pump(own(grid, 1), make_sink(1))
    ran: list[str] = []
    with pytest.raises(TimeoutError):
        pump.call(lambda: ran.append("late"), 0.01)  # before the thread is there
    assert not pump.flush(0.01)
    pump.start()
    pump.call(lambda: ran.append("in time"), 10)
    assert ran == ["in time"]
    assert pump._flushes == []
    pump.stop()


def test_what_is_asked_while_a_pump_ends_is_answered(grid, make_sink) -> None:
    """Also by two threads at once: the pump's own and the caller's."""
    pump = Pump(own(grid, 1), make_sink(1))
    pump.start()
    answers: list[object] = []
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        go_on.wait(10)

    def ask() -> None:
        try:
            answers.append(pump.call(lambda: "ran", 10))
        except SinkUnavailable as error:
            answers.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    holder = threading.Thread(target=lambda: pump.call(hold, 10))
    holder.start()
    assert inside.wait(10)
    for thread in threads:
        thread.start()
    stopper = threading.Thread(target=lambda: pump.stop(flush=False))
    stopper.start()
    go_on.set()
    for thread in (*threads, holder, stopper):
        thread.join(20)
    assert len(answers) == 8
    assert not pump.flush(5)


def test_a_small_log_that_fills_up_waits_for_no_interval(grid, database, make_sink) -> None:
    node = own(grid, 1)
    driven = Driven(node, make_sink(1), interval_s=3600, log_bytes=4 << 20)
    driven.step()
    grid.put(STOCK, "tea", Stock(1))
    node.log_bytes = (1 << 20) - 1
    driven.step()
    assert rows(database, "SELECT * FROM stock") == []
    node.log_bytes = 1 << 20
    driven.step()
    sql_equals(database, grid)


def test_an_empty_copy_for_which_the_disk_was_full_is_on_disk_later(grid, tmp_path) -> None:
    node = FakeNode(grid, 1)
    node.backups = {0, 1}
    sink = LmdbSink(tmp_path, life="l", partition_count=4)
    begin = sink.begin
    attempts: list[int] = []

    def full_once(partitions) -> None:
        attempts.append(len(partitions))
        if len(attempts) == 1:
            raise SinkUnavailable("no space left on device")
        begin(partitions)

    sink.begin = full_once  # type: ignore[method-assign]
    driven = Driven(node, sink)
    driven.step()
    assert driven.pump.status().state == "retrying"
    driven.settle()
    sink.close()
    again = LmdbSink(tmp_path, life="l", partition_count=4)
    assert again.stored_partitions() == {0: (0, 0), 1: (0, 0)}
    again.close()


def test_a_copy_that_is_a_tail_before_it_leaves_is_deleted(grid, tmp_path) -> None:
    node = FakeNode(grid, 1)
    node.backups = {0, 1}
    for number in range(40):
        grid.put(SECRET, f"k{number}", b"x")
    sink = LmdbSink(tmp_path, life="l", partition_count=4)
    driven = Driven(node, sink)
    driven.settle()
    roles, tail = node.roles, 3
    node.roles = (
        lambda: [  # type: ignore[method-assign]
            (role[0], tail, *role[2:]) if role[0] == 1 else role for role in roles()
        ]
    )
    driven.settle()
    assert stored(sink.folder) == truth(grid, 0, 1)
    node.roles = roles  # type: ignore[method-assign]
    node.backups = {0}
    driven.settle()
    assert stored(sink.folder) == truth(grid, 0)
    sink.close()


def test_a_copy_that_could_not_be_deleted_is_deleted_later(grid, tmp_path) -> None:
    node = FakeNode(grid, 1)
    node.backups = {0, 1, 2}
    for number in range(40):
        grid.put(SECRET, f"k{number}", b"x")
    sink = LmdbSink(tmp_path, life="l", partition_count=4)
    driven = Driven(node, sink)
    driven.settle()
    let_go = sink.let_go

    def full(partitions, *, gone: bool) -> None:
        raise SinkUnavailable("no space left on device")

    sink.let_go = full  # type: ignore[method-assign]
    node.backups = {0}
    driven.step()
    assert driven.pump.status().state == "retrying"
    sink.let_go = let_go  # type: ignore[method-assign]
    node.backups = {0, 2}  # one of them is back before the disk has room
    driven.settle()
    assert stored(sink.folder) == truth(grid, 0, 2)
    sink.close()


def test_a_release_writes_only_what_the_copies_disks_have(grid, database, make_sink) -> None:
    node = own(grid, 1)
    grid.put(STOCK, "tea", Raw(b"\xc1"))
    pump = Pump(node, make_sink(1), interval_s=0)
    pump.start()
    assert pump.flush(10)
    (letter,) = pump.dead_letters()
    position = grid.put(STOCK, "tea", Stock(5))
    assert pump.flush(10)
    asked: list[tuple[int, int]] = []

    def late(partition: int, sequence: int) -> bool:
        asked.append((partition, sequence))
        assert rows(database, "SELECT * FROM stock") == []
        return len(asked) == 4

    node.shared_may_read = late  # type: ignore[method-assign]
    pump.release(letter.id)
    assert asked == [(letter.partition, position[1])] * 4
    sql_equals(database, grid)
    pump.stop()


def test_a_dump_of_large_values_takes_several_transactions(grid, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(lmdb_sink, "DUMP_BYTES", 100_000)
    for number in range(40):
        grid.put(SECRET, f"k{number}", bytes(10_000))
    sink = LmdbSink(tmp_path, life="l", partition_count=4)
    sink.take({0: 1, 1: 1, 2: 1, 3: 1})
    largest = 0
    dump = sink._dump

    def watched(partition, chunk, writing) -> None:
        nonlocal largest
        largest = max(largest, sum(len(entry[3]) for entry in chunk))
        dump(partition, chunk, writing)

    sink._dump = watched  # type: ignore[method-assign]
    entries = [entry for part in grid.partitions for entry in part.tables.values()]
    chunks = [[entry] for entry in entries if grid.partition_of(entry[2]) == 0] * 3
    assert len(chunks) * 10_000 > 200_000
    position = grid.partitions[0].last
    sink.resync([Resync(0, 1, position, chunks)])
    assert largest <= 110_000
    assert sink.persisted(0) == position
    assert stored(sink.folder) == truth(grid, 0)
    sink.close()


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_store_whose_file_is_gone_vouches_for_nothing(grid, tmp_path, how: str) -> None:
    node = FakeNode(grid, 1)
    node.backups = {0, 1, 2, 3}
    sink = LmdbSink(tmp_path, life="l", partition_count=4)
    driven = Driven(node, sink)
    grid.put(STOCK, "tea", Stock(1))
    driven.settle()
    before = dict(node.persisted)
    data = sink.folder / "data.mdb"
    copy = data.read_bytes()
    data.unlink()
    if how == "replaced":
        data.write_bytes(copy)
    grid.put(STOCK, "tea", Stock(2))
    for _ in range(2):
        with pytest.raises(StoreFailed, match="deleted or replaced"):
            driven.step()
    assert node.persisted == before
    sink.close()


def test_a_bug_during_a_resync_is_shown(grid, database, make_sink) -> None:
    """Only the exact error that says that the copy left is taken for it."""
    node = own(grid, 1)
    grid.put(STOCK, "tea", Stock(1))
    for partition in range(4):
        grid.trim(partition)
    sink = make_sink(1)
    resync = sink.resync
    sink.resync = lambda resyncs: {}["bug"]  # type: ignore[method-assign]
    driven = Driven(node, sink)
    driven.step()
    assert "KeyError" in driven.pump.status().error
    sink.resync = resync  # type: ignore[method-assign]
    driven.settle()
    sql_equals(database, grid)


def test_a_letter_of_a_partition_that_left_is_a_sink_error(grid, make_sink) -> None:
    pump = Pump(own(grid, 1), make_sink(1), interval_s=0)
    pump.start()
    position = grid.put(STOCK, "tea", Raw(b"\xc1"))
    assert position
    assert pump.flush(10)
    (letter,) = pump.dead_letters()
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        go_on.wait(10)

    holder = threading.Thread(target=lambda: pump.call(hold, 10))
    holder.start()
    assert inside.wait(10)
    errors: list[BaseException] = []

    def release() -> None:
        try:
            pump.release(letter.id)
        except BaseException as error:
            errors.append(error)

    releasing = threading.Thread(target=release)
    releasing.start()
    # Both calls run in one round, before the pump looks at its roles again.
    while not pump._calls:
        assert releasing.is_alive()
    grid.move(grid.partition_of(b"tea"), 2)
    go_on.set()
    for thread in (holder, releasing):
        thread.join(20)
    (error,) = errors
    assert isinstance(error, SinkError)
    assert "handed over" in str(error)
    pump.stop(flush=False)
