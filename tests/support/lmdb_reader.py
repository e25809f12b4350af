"""What an LMDB store holds, read by docs/LMDB.md without the sink's own code."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path

import lmdb
from fake_grid import FakeGrid


def stored(folder: Path) -> dict[tuple[int, str, bytes], bytes]:
    """(partition, map, key) to value."""
    copy = folder.parent / "copy"  # one process opens a store once
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    shutil.copy(folder / "data.mdb", copy)
    environment = lmdb.open(str(copy), readonly=True, max_dbs=2)
    entries = environment.open_db(b"entries", create=False)
    found = {}
    with environment.begin(db=entries) as reading:
        for key, value in reading.cursor():
            at = 2 if key[:2] == b"\xff\xff" else 0
            partition = int.from_bytes(key[at : at + 2], "big")
            name = key[at + 3 : at + 3 + key[at + 2]].decode()
            crc, *_, size = struct.unpack_from("<IQQBIH", value)
            assert crc == zlib.crc32(key + value[4:])
            start = struct.calcsize("<IQQBIH")
            found[partition, name, value[start : start + size]] = value[start + size :]
    environment.close()
    return found


def truth(grid: FakeGrid, *partitions: int) -> dict[tuple[int, str, bytes], bytes]:
    """The same of some partitions, from the grid itself."""
    return {
        (number, name, key): entry[3]
        for number in partitions
        for (name, key), entry in grid.partitions[number].tables.items()
    }
