"""Disks that fail, fill up, rot and are read by others: the LMDB store under F46 to F50.

Goal: what the store says is true, or it says nothing. Method: failures are made in processes of
their own (an fsync that returns EIO, a file-size limit, flipped bits, a stopped reader); what such
a process acknowledged is compared with what is found afterwards.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import faulty_disk
import lmdb
import pytest
from fake_grid import SECRET, FakeGrid
from pump_support import part_of
from spacegrid.errors import SinkUnavailable, StoreDamaged
from spacegrid.sink import lmdb as lmdb_sink
from spacegrid.sink.lmdb import LmdbSink
from spacegrid.sink.lmdb_check import check_store

DEADLY = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)
SUPPORT = Path(faulty_disk.__file__).parent

WRITER = """
import json, sys
from pathlib import Path
from fake_grid import SECRET, FakeGrid
from pump_support import part_of
from spacegrid.errors import SpaceGridError
from spacegrid.sink.lmdb import LmdbSink

folder, flag, size, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
grid = FakeGrid(1)
sink = LmdbSink(folder, life="l", partition_count=1)
sink.take({0: 1})
after = (0, 0)
for number in range(count):
    grid.put(SECRET, f"k{number}", bytes(size))
    if number == 3 and sys.argv[5] == "fail":
        flag.touch()
    try:
        sink.write([part_of(grid, 0, after=after)])
    except SpaceGridError as error:
        print(json.dumps([type(error).__name__, str(error), sink.persisted(0)]), flush=True)
        flag.unlink(missing_ok=True)
        try:
            sink.write([part_of(grid, 0, after=after)])
            print(json.dumps(["written", "", sink.persisted(0)]), flush=True)
        except SpaceGridError as again:
            print(json.dumps([type(again).__name__, str(again), sink.persisted(0)]), flush=True)
        break
    after = grid.partitions[0].last
"""


def write(folder: Path, *arguments: object, environment=None, limit: int = 0) -> list[list]:
    """Run the writer; what it printed."""
    limits = f"ulimit -f {limit}; " if limit else ""
    command = f'{limits}exec {sys.executable} -c "$WRITER" {folder} {" ".join(map(str, arguments))}'
    done = subprocess.run(
        ["bash", "-c", command],
        env={**(environment or os.environ), "PYTHONPATH": str(SUPPORT), "WRITER": WRITER},
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_f46_the_first_failed_fsync_ends_the_store(tmp_path: Path) -> None:
    library, flag = faulty_disk.build(tmp_path), tmp_path / "fail"
    told = write(
        tmp_path / "node", flag, 100, 10, "fail",
        environment=faulty_disk.environment(library, flag),
    )  # fmt: skip
    assert [line[0] for line in told] == ["StoreFailed", "StoreFailed"]
    assert "Input/output error" in told[0][1]
    # The disk is well again, and it is not asked: what it was asked for may be gone.
    assert "out of service" in told[1][1]
    with_three = LmdbSink(tmp_path / "node", life="l", partition_count=1)
    assert with_three.stored_partitions()[0] >= (1, 3)
    with_three.close()


def test_f49_a_full_disk_refuses_cleanly_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    told = write(tmp_path / "node", tmp_path / "fail", 50_000, 400, "limit", limit=10_240)
    kinds = [line[0] for line in told]
    assert kinds == ["SinkUnavailable", "SinkUnavailable"]
    written = tuple(told[-1][2])
    assert written > (1, 3)
    sink = LmdbSink(tmp_path / "node", life="l", partition_count=1)
    assert sink.stored_partitions() == {0: written}
    grid = FakeGrid(1)
    for number in range(written[1] + 5):
        grid.put(SECRET, f"k{number}", bytes(50_000))
    sink.take({0: 1})
    sink.write([part_of(grid, 0, after=written)])
    assert sink.persisted(0) == grid.partitions[0].last
    sink.close()


def test_f49_a_map_at_its_limit_is_a_clean_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lmdb_sink, "MAP_BYTES_FIRST", 1 << 16)
    monkeypatch.setattr(lmdb_sink, "MAP_BYTES_MAX", 1 << 19)
    grid, sink = FakeGrid(1), LmdbSink(tmp_path, life="l", partition_count=1)
    sink.take({0: 1})
    after = (0, 0)

    def fill() -> None:
        nonlocal after
        for number in range(100):
            grid.put(SECRET, f"k{number}", bytes(10_000))
            sink.write([part_of(grid, 0, after=after)])
            after = grid.partitions[0].last

    with pytest.raises(SinkUnavailable, match="limit 524288"):
        fill()
    assert sink.persisted(0) == after
    monkeypatch.setattr(lmdb_sink, "MAP_BYTES_MAX", 1 << 30)
    sink.write([part_of(grid, 0, after=after)])
    assert sink.persisted(0) == grid.partitions[0].last
    sink.close()


def content(folder: Path) -> dict[bytes, bytes]:
    """Every key and value, read by LMDB alone."""
    environment = lmdb.open(str(folder), readonly=True, lock=False, max_dbs=2)
    with environment.begin(db=environment.open_db(b"entries", create=False)) as reading:
        found = {bytes(key): bytes(value) for key, value in reading.cursor()}
    environment.close()
    return found


def judged(folder: Path, states: list[dict[bytes, bytes]]) -> int:
    """Check a store in a child that may die of it: 0 whole, 3 refused, 4 served wrongly."""
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            check_store(folder)
            os._exit(0 if content(folder) in states else 4)
        except StoreDamaged:
            os._exit(3)
        except BaseException:
            os._exit(9)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_f47_flipped_bits_and_cut_files_are_refused_never_served(tmp_path: Path) -> None:
    grid, sink = FakeGrid(2), LmdbSink(tmp_path / "node", life="l", partition_count=2)
    sink.take({0: 1, 1: 1})
    states, after = [], {0: (0, 0), 1: (0, 0)}
    for number in range(6):
        for key in range(30):
            grid.put(SECRET, f"k{key}-{number % 2}", bytes([number]) * 40)
        sink.write([part_of(grid, p, after=after[p]) for p in (0, 1)])
        after = {p: grid.partitions[p].last for p in (0, 1)}
        states.append(content(copied(sink.folder, tmp_path / "state")))
    used = (sink._environment.info()["last_pgno"] + 1) * 4096
    sink.close()
    good = (sink.folder / "data.mdb").read_bytes()[:used]
    chance = random.Random(47)
    hurt = tmp_path / "hurt"
    hurt.mkdir()
    refused = 0
    for attempt in range(250):
        data = bytearray(good)
        if attempt % 10 == 0:
            del data[chance.randrange(len(data)) :]
        else:
            for _ in range(chance.randrange(1, 4)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (hurt / "data.mdb").write_bytes(data)
        # Whole: the damage is in a page that nothing uses, or in the newest meta page alone.
        outcome = judged(hurt, states[-2:])
        assert outcome in (0, 3) or -outcome in DEADLY, f"attempt {attempt}: {outcome}"
        refused += outcome != 0
    assert refused > 25


def copied(folder: Path, target: Path) -> Path:
    """A copy of a store that is open: a process may open it once."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    shutil.copy(folder / "data.mdb", target)
    return target


def test_f47_a_damaged_store_is_refused_by_name(tmp_path: Path) -> None:
    grid, sink = FakeGrid(1), LmdbSink(tmp_path, life="l", partition_count=1)
    grid.put(SECRET, "tea", b"green tea" * 20)
    sink.take({0: 1})
    sink.write([part_of(grid, 0)])
    sink.close()
    path = sink.folder / "data.mdb"
    path.write_bytes(path.read_bytes().replace(b"green tea", b"black tea"))
    with pytest.raises(StoreDamaged, match="checksum of the stored key") as caught:
        sink.open()
    assert "move the folder away" in str(caught.value)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StoreDamaged):
        sink.open()


def test_f50_a_stopped_reader_lets_the_file_grow_and_is_named(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(lmdb_sink, "READERS_EVERY_S", 0.0)
    monkeypatch.setattr(lmdb_sink, "READER_LATE_TRANSACTIONS", 20)
    grid, sink = FakeGrid(1), LmdbSink(tmp_path, life="l", partition_count=1)
    sink.take({0: 1})
    after = (0, 0)

    def write_some(count: int) -> int:
        nonlocal after
        for number in range(count):
            grid.put(SECRET, f"k{number % 4}", bytes(20_000))
            sink.write([part_of(grid, 0, after=after)])
            after = grid.partitions[0].last
        return sink._environment.info()["last_pgno"] * 4096

    write_some(10)
    script = (
        "import lmdb, sys, time; e = lmdb.open(sys.argv[1], readonly=True, max_dbs=2); "
        "t = e.begin(); print('reading', flush=True); time.sleep(600)"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", script, str(sink.folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        os.kill(reader.pid, signal.SIGSTOP)
        before = write_some(1)
        grown = write_some(60)
        assert grown > before + 40 * 20_000
        assert f"process {reader.pid} has had a read transaction open" in caplog.text
    finally:
        reader.kill()
        reader.wait()
        reader.stdout.close()
    # Its place is given back, and its pages are used again.
    write_some(2)
    assert write_some(60) <= grown
    sink.close()
