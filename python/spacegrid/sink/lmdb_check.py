"""Reading a whole LMDB store, to say whether it is what was written; in a process of its own.

LMDB trusts its pages: a flipped bit in one of them can send a reader anywhere, and a file that was
cut short ends the reader's process. So a store is read from end to end by a child before the node
opens it, and a child that dies has found a damaged store.

What is checked: the checksum of every entry, cursor and request result; that keys ascend; that
there are as many as LMDB says. Not noticed is a damaged meta page whose older twin is whole: the
store is then what it was one transaction earlier.

Who calls: `spacegrid.sink.lmdb`, through `check_in_child`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import lmdb

from spacegrid.errors import StoreDamaged
from spacegrid.sink.lmdb_layout import open_sealed, read_cursor, read_entry

__all__ = ["check_in_child", "check_store", "late_readers"]

EXIT_DAMAGED: Final = 3


def check_store(folder: Path) -> int:
    """Read everything in a store.

    Args:
        folder: Where ``data.mdb`` is.

    Returns:
        The number of entries.

    Raises:
        StoreDamaged: Something is not as it was written. Damage to LMDB's own pages can end this
            process instead.
    """
    if not (folder / "data.mdb").exists():
        raise StoreDamaged("data.mdb is gone")
    try:
        environment = lmdb.open(str(folder), readonly=True, lock=False, max_dbs=2)
    except lmdb.Error as error:
        raise StoreDamaged(f"LMDB can't open it: {error}") from error
    try:
        with environment.begin() as reading:
            count = 0
            for name, read in ((b"meta", _check_meta), (b"entries", read_entry)):
                try:
                    database = environment.open_db(name, txn=reading, create=False)
                except lmdb.NotFoundError:
                    raise StoreDamaged(f"it has no database {name.decode()}") from None
                count = _read_all(reading, database, name, read)
            return count
    except lmdb.Error as error:
        raise StoreDamaged(f"LMDB can't read it: {error}") from error
    finally:
        environment.close()


def _read_all(reading: Any, database: Any, name: bytes, read: Any) -> int:
    count, before = 0, b""
    for key, value in reading.cursor(db=database):
        if count and key <= before:
            raise StoreDamaged(f"keys of {name.decode()} are out of order at {key[:40].hex()}")
        read(key, value)
        count, before = count + 1, key
    expected = reading.stat(db=database)["entries"]
    if count != expected:
        raise StoreDamaged(f"{name.decode()} has {count} pairs, {expected} were written")
    return count


def _check_meta(key: bytes, value: bytes) -> None:
    if key.startswith(b"cursor/"):
        read_cursor(key, value)
    else:
        open_sealed(key, value)


def check_in_child(folder: Path) -> None:
    """Run `check_store` in another process and wait for it.

    Raises:
        StoreDamaged: It found damage, or died of it.

    Cost: starting an interpreter, then about 2 s per million entries.
    """
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return
    if done.returncode == EXIT_DAMAGED:
        raise StoreDamaged(done.stderr.strip())
    if done.returncode < 0:
        raise StoreDamaged(f"reading it ends a process with signal {-done.returncode}")
    raise StoreDamaged(f"it could not be read: {done.stderr.strip()[-500:]}")


def late_readers(environment: Any, late_transactions: int) -> str:
    """Processes other than this one that keep an old state of the store, as text.

    Args:
        environment: The open store.
        late_transactions: Write transactions since their read transaction began.
    """
    newest = environment.info()["last_txnid"]
    late = set()
    for line in environment.readers().splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[0].isdigit() and fields[2].isdigit():
            pid, transaction = int(fields[0]), int(fields[2])
            if pid != os.getpid() and newest - transaction > late_transactions:
                late.add(pid)
    return ", ".join(str(pid) for pid in sorted(late))


if __name__ == "__main__":
    try:
        check_store(Path(sys.argv[1]))
    except StoreDamaged as damage:
        sys.stderr.write(f"{damage}\n")
        sys.exit(EXIT_DAMAGED)
