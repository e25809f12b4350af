"""The LMDB sink: layout, cursors, dumps, what a restart finds, and what is refused."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_grid import SECRET, STOCK, FakeGrid, Stock
from lmdb_reader import stored, truth
from pump_support import part_of
from spacegrid.errors import ForkedProcess, SinkMismatch, SinkUnavailable
from spacegrid.sink import lmdb as lmdb_sink
from spacegrid.sink.base import Resync
from spacegrid.sink.lmdb import LmdbSink
from spacegrid.sink.lmdb_layout import entry_key, pack_value, read_entry


@pytest.fixture
def make_sink(tmp_path: Path):
    made: list[LmdbSink] = []

    def make(folder: str = "node", *, life: str = "life-1", partition_count: int = 4) -> LmdbSink:
        sink = LmdbSink(tmp_path / folder, life=life, partition_count=partition_count)
        made.append(sink)
        return sink

    yield make
    for sink in made:
        sink.close()


def test_files_are_their_owners_alone(make_sink) -> None:
    sink = make_sink()
    sink.open()
    for name in ("data.mdb", "lock.mdb"):
        assert (sink.folder / name).stat().st_mode & 0o777 == 0o600, name


def fill(grid: FakeGrid, count: int = 50) -> None:
    for number in range(count):
        grid.put(STOCK, f"k{number % 20}", Stock(number))
        if number % 5 == 0:
            grid.delete(STOCK, f"k{(number + 3) % 20}")
        grid.put(SECRET, f"s{number}", b"x" * number)


def test_entries_are_laid_out_as_documented(grid, make_sink) -> None:
    long_key = "k" * 600
    grid.put(STOCK, "tea", Stock(1))
    grid.put(SECRET, long_key, b"long")
    sink = make_sink()
    for number in range(4):
        if grid.partitions[number].records:
            sink.take({number: 1})
            sink.write([part_of(grid, number)])
    numbers = range(4)
    assert stored(sink.folder) == truth(grid, *numbers)
    partition = grid.partition_of(b"tea")
    assert entry_key(partition, "stock", b"tea") == bytes([0, partition, 5]) + b"stocktea"
    long_entry = entry_key(1, "secret", long_key.encode())
    assert long_entry.startswith(b"\xff\xff\x00\x01\x06secret")
    assert len(long_entry) == 11 + 16
    at = entry_key(1, "m", b"key")
    packed = pack_value(at, b"key", b"value", 1, 7, 8, 9)
    assert packed[4:27] == struct.pack("<QQBIH", 7, 8, 1, 9, 3)
    assert read_entry(at, packed) == ("m", 9, b"key", b"value", 1, 7, 8)


def test_the_file_has_the_format_every_reader_knows(make_sink) -> None:
    sink = make_sink()
    sink.open()
    assert sink._environment.lib_version()[0] == 0


def test_a_repeated_batch_is_skipped_and_a_gap_is_not_written(grid, make_sink) -> None:
    fill(grid)
    sink = make_sink()
    assert sink.take({0: 1}) == {0: None}
    part = part_of(grid, 0)
    sink.write([part])
    last = grid.partitions[0].last
    assert sink.write([part]).moved == {0: last}
    sink.close()
    assert sink.take({0: 1}) == {0: last}
    assert stored(sink.folder) == truth(grid, 0)


def test_a_copy_that_left_is_deleted_and_a_new_one_dumped(grid, make_sink) -> None:
    fill(grid)
    sink = make_sink()
    sink.take({0: 1, 1: 1})
    sink.write([part_of(grid, 0), part_of(grid, 1)])
    sink.let_go([1], gone=True)
    sink.let_go([0], gone=False)
    assert stored(sink.folder) == truth(grid, 0)
    fill(grid, 7)
    chunks = [[entry] for entry in grid.partitions[0].tables.values()]
    sink.resync([Resync(0, 1, grid.partitions[0].last, chunks)])
    assert stored(sink.folder) == truth(grid, 0)
    assert sink.take({0: 1, 1: 1}) == {0: grid.partitions[0].last, 1: None}


def test_half_a_dump_is_no_copy(grid, make_sink, monkeypatch) -> None:
    monkeypatch.setattr(lmdb_sink, "DUMP_ENTRIES", 3)
    fill(grid)
    sink = make_sink()
    sink.take({0: 1})
    sink.write([part_of(grid, 0)])

    def breaks_off():
        yield list(grid.partitions[0].tables.values())
        raise LookupError("the copy left")

    with pytest.raises(LookupError):
        sink.resync([Resync(0, 1, grid.partitions[0].last, breaks_off())])
    sink.close()
    assert sink.take({0: 1}) == {0: None}
    assert stored(sink.folder) == {}


def test_half_a_small_dump_leaves_the_copy_that_was_there(grid, make_sink) -> None:
    fill(grid)
    sink = make_sink()
    sink.take({0: 1})
    sink.write([part_of(grid, 0)])
    before = truth(grid, 0)

    def breaks_off():
        yield []
        raise LookupError("the copy left")

    with pytest.raises(LookupError):
        sink.resync([Resync(0, 1, (1, 999), breaks_off())])
    assert sink.persisted(0) == grid.partitions[0].last
    assert stored(sink.folder) == before


def test_a_dump_with_newer_entries_is_no_copy_until_the_log_has_caught_up(grid, make_sink) -> None:
    fill(grid, 10)
    here = grid.partitions[0]
    begun_at = here.last
    fill(grid, 20)
    sink = make_sink()
    sink.resync(
        [Resync(0, 1, begun_at, [list(here.tables.values())], lambda: here.last[1], lambda: b"r")]
    )
    assert sink.persisted(0) is None
    assert sink.stored_partitions() == {}
    sink.write([part_of(grid, 0, after=begun_at)])
    assert sink.persisted(0) == here.last
    assert sink.stored_partitions() == {0: here.last}


def test_the_map_grows(grid, make_sink, monkeypatch) -> None:
    monkeypatch.setattr(lmdb_sink, "MAP_BYTES_FIRST", 1 << 16)
    sink = make_sink()
    sink.take({number: 1 for number in range(4)})
    for number in range(200):
        grid.put(SECRET, f"s{number}", bytes(10_000))
    sink.write([part_of(grid, number) for number in range(4)])
    assert stored(sink.folder) == truth(grid, 0, 1, 2, 3)


def written(grid: FakeGrid, sink: LmdbSink) -> dict[int, tuple[int, int]]:
    """Write everything; the positions."""
    sink.take(dict.fromkeys(range(4), 1))
    sink.write(
        [replace(part_of(grid, number), results=b"streams %d" % number) for number in range(4)]
    )
    return {number: grid.partitions[number].last for number in range(4)}


def test_what_was_written_is_loaded_however_the_process_ended(grid, make_sink, monkeypatch) -> None:
    monkeypatch.setattr(lmdb_sink, "LOAD_ENTRIES", 4)
    fill(grid)
    first = make_sink()
    positions = written(grid, first)
    first.close()
    again = make_sink()
    store_id = again.store_id
    assert len(store_id) == 16
    assert again.stored_partitions() == positions
    loaded: dict[int, list] = {}
    streams = {}
    ended = set()
    for partition, epoch, sequence, entries, blob, last in again.load():
        assert partition not in ended
        assert (epoch, sequence) == positions[partition]
        assert len(entries) <= 4
        loaded.setdefault(partition, []).extend(entries)
        if last:
            ended.add(partition)
            streams[partition] = blob
    assert ended == set(range(4))
    assert streams == {number: b"streams %d" % number for number in range(4)}
    for number in range(4):
        assert sorted(loaded[number]) == sorted(grid.partitions[number].tables.values())
    again.close()
    once_more = make_sink()
    assert once_more.stored_partitions() == positions
    assert once_more.store_id == store_id


def test_f52_a_store_of_another_life_is_refused_until_told(grid, make_sink) -> None:
    first = make_sink()
    first.open()
    first.close()
    for sink in (make_sink(life="life-2"), make_sink(partition_count=8)):
        with pytest.raises(SinkMismatch, match="this node needs") as caught:
            sink.open()
        assert "--fresh" in str(caught.value)


def test_damaged_identity_is_refused(make_sink) -> None:
    sink = make_sink()
    sink.open()
    sink.close()
    (sink.folder / "store.json").write_text('{"format": 2')
    with pytest.raises(SinkMismatch, match="damaged"):
        sink.open()


def test_f51_a_store_opened_twice_is_refused(make_sink) -> None:
    first, second = make_sink(), make_sink()
    first.open()
    with pytest.raises(SinkUnavailable, match=f"open in process {os.getpid()}"):
        second.open()
    first.close()
    second.open()


def test_f51_a_forked_child_is_told_so(tmp_path: Path) -> None:
    script = f"""
import os, sys
from spacegrid.sink.lmdb import LmdbSink
from spacegrid.errors import ForkedProcess
sink = LmdbSink({str(tmp_path)!r}, life="l", partition_count=1)
sink.open()
child = os.fork()
if child == 0:
    try:
        sink.take({{0: 1}})
    except ForkedProcess:
        os._exit(7)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 7
    assert issubclass(ForkedProcess, RuntimeError)
