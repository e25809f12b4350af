"""The LMDB sink: one node's own disk, holding every complete copy that the node holds.

The layout is documented in docs/LMDB.md, so that anything that reads LMDB can read it. In short, in
the directory ``lmdb`` under the node's data folder:

- ``store.json``: whose store it is (format, cluster life, partition count, store id, boot id).
- ``clean.json``: there only between a clean stop and the next load: its content is
  {"partitions": {p: [epoch, sequence]}}.
- ``owner.lock``: locked while a node has the store open.
- ``data.mdb``: database ``entries`` (`spacegrid.sink.lmdb_layout`) and database ``meta`` with
  ``cursor/`` and ``streams/`` plus the partition (u16 BE) as keys.

Invariants:

- Entries and the cursor that covers them are written in one transaction. A partition without a
  cursor is not whole (a dump was interrupted) and is begun anew.
- ``clean.json`` is written after everything it vouches for is fsynced, and removed, durably, before
  the first byte is loaded: a crash after that is never taken for a clean stop.
- Batches are not fsynced (the grid's copies are what survives a crash of one node): a killed
  process loses nothing of a batch, a loss of power can damage the file. A store that was open at a
  loss of power (another boot id, no ``clean.json``) is therefore set aside, not read.

Who calls: the node's local pump from its own thread; before it starts, whoever loads the store.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import lmdb
import msgspec

from spacegrid.errors import ForkedProcess, SinkMismatch, SinkUnavailable
from spacegrid.sink.base import Change, Entry, Part, Position, Resync, Written
from spacegrid.sink.lmdb_layout import (
    CURSOR,
    change_value,
    entry_key,
    entry_prefixes,
    meta_key,
    pack_value,
    read_entry,
    with_prefix,
)

__all__ = ["LmdbSink", "LoadChunk"]

STORE_FORMAT: Final = 1
LIB_VERSION: Final = 0
"""The 0.9 file format, which every LMDB reader knows."""
MAP_BYTES_FIRST: Final = 64 << 20
MAP_BYTES_MAX: Final = 1 << 44
LOAD_ENTRIES: Final = 2000

LoadChunk = tuple[int, int, int, list[Entry], bytes, bool]
"""(partition, epoch, sequence, entries, request results, last): the arguments of ``Node.load``."""


class _Identity(msgspec.Struct):
    """Content of store.json."""

    format: int
    life: str
    partition_count: int
    store_id: str
    boot_id: str


class _Clean(msgspec.Struct):
    """Content of clean.json."""

    partitions: dict[str, tuple[int, int]]


class LmdbSink:
    """One node's store on disk.

    Args:
        data_folder: The node's data folder; the store is its subfolder ``lmdb``.
        life: Id of the cluster.
        partition_count: Partitions of the cluster.
        store_id: 16 bytes that name a new store; random when None. An old one keeps its own.
    """

    fenced = False
    batch_records = 10_000
    interval_s = 0.2

    def __init__(
        self,
        data_folder: Path | str,
        *,
        life: str,
        partition_count: int,
        store_id: bytes | None = None,
    ) -> None:
        self.folder = Path(data_folder) / "lmdb"
        self.name = f"lmdb:{self.folder}"
        self._life = life
        self._partition_count = partition_count
        self._new_id = store_id.hex() if store_id is not None else uuid.uuid4().hex
        self._identity: _Identity | None = None
        self._environment: Any = None
        self._entries: Any = None
        self._meta: Any = None
        self._lock_descriptor: int | None = None
        self._process = 0
        self._cursors: dict[int, Position] = {}
        self._clean_consumed = False
        self._failed_sync = ""

    # ---- opening ----

    def open(self) -> None:
        """Open the store, or make it; again after `SinkUnavailable`.

        Raises:
            SinkMismatch: The directory belongs to another cluster, or has another format.
            SinkUnavailable: Another process has it open, or the disk refuses.
        """
        self._check_process()
        if self._environment is not None:
            return
        with self._errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            try:
                self._open_locked()
            except BaseException:
                self._unlock()
                raise
        self._process = os.getpid()

    def _open_locked(self) -> None:
        identity = self._read_identity()
        boot_id = _boot_id()
        if identity is None:
            identity = _Identity(
                STORE_FORMAT, self._life, self._partition_count, self._new_id, boot_id
            )
        elif identity.boot_id != boot_id and not self._clean_path.exists():
            # The machine went down with the store open, and batches are not fsynced: its pages may
            # be torn. Kept for a person to look at, never read by us.
            with suppress(FileNotFoundError):
                os.replace(self.folder / "data.mdb", self.folder / "data.mdb.unclean")
        data = self.folder / "data.mdb"
        environment = lmdb.open(
            os.fspath(self.folder),
            map_size=max(MAP_BYTES_FIRST, data.stat().st_size * 2 if data.exists() else 0),
            max_dbs=2,
            sync=False,
            metasync=False,
            lib_version=LIB_VERSION,
        )
        try:
            environment.reader_check()
            self._entries = environment.open_db(b"entries")
            self._meta = environment.open_db(b"meta")
            with environment.begin(db=self._meta) as reading:
                self._cursors = {
                    int.from_bytes(key[7:], "big"): CURSOR.unpack(value)
                    for key, value in with_prefix(reading.cursor(), b"cursor/")
                }
            identity.boot_id = boot_id
            _write_durably(self.folder / "store.json", msgspec.json.encode(identity))
        except BaseException:
            environment.close()
            raise
        self._identity = identity
        self._environment = environment

    def _read_identity(self) -> _Identity | None:
        try:
            data = (self.folder / "store.json").read_bytes()
        except FileNotFoundError:
            return None
        try:
            identity = msgspec.json.decode(data, type=_Identity)
        except msgspec.MsgspecError as error:
            raise SinkMismatch(f"{self.name}: store.json is damaged: {error}") from error
        for what, stored, ours in (
            ("format", identity.format, STORE_FORMAT),
            ("cluster", identity.life, self._life),
            ("partition count", identity.partition_count, self._partition_count),
        ):
            if stored != ours:
                raise SinkMismatch(
                    f"{self.name} holds {what} {stored}, this node needs {what} {ours}\n"
                    "hint: name another folder, or begin anew with --fresh",
                    sink=self.name,
                )
        return identity

    def _lock(self) -> None:
        descriptor = os.open(self.folder / "owner.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise SinkUnavailable(
                f"{self.name} is open in process {holder or 'unknown'}", sink=self.name
            ) from None
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock_descriptor = descriptor

    def _unlock(self) -> None:
        descriptor, self._lock_descriptor = self._lock_descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Close the store without calling it clean. Safe to call twice."""
        if self._process != 0:
            self._check_process()
        environment, self._environment = self._environment, None
        self._process = 0
        self._cursors = {}
        if environment is not None:
            environment.close()
        self._unlock()

    @property
    def store_id(self) -> bytes:
        """16 bytes that name this store for as long as its folder lives."""
        if self._identity is None:
            self.open()
        assert self._identity is not None
        return bytes.fromhex(self._identity.store_id)

    # ---- starting from disk ----

    @property
    def _clean_path(self) -> Path:
        return self.folder / "clean.json"

    def stored_partitions(self) -> dict[int, Position]:
        """Copies that a clean stop left here, with their positions; none after a crash.

        For a node's registration, before `load`.
        """
        self.open()
        with self._errors():
            try:
                data = self._clean_path.read_bytes()
            except FileNotFoundError:
                return {}
        try:
            clean = msgspec.json.decode(data, type=_Clean)
            stored = {int(p): position for p, position in clean.partitions.items()}
        except (msgspec.MsgspecError, ValueError) as error:
            raise SinkMismatch(f"{self.name}: clean.json is damaged: {error}") from error
        return {p: at for p, at in stored.items() if self._cursors.get(p) == at}

    def load(self) -> Iterator[LoadChunk]:
        """Read what a clean stop left here, once.

        The mark of the clean stop is gone, durably, before this returns.

        Returns:
            Arguments for ``Node.load``, at most `LOAD_ENTRIES` entries each.

        Raises:
            SinkMismatch: The store belongs to another cluster.
            SinkUnavailable: The disk refuses, or another process has the store open.
        """
        stored = self.stored_partitions()
        self._consume_clean()
        return self._load(stored)

    def _consume_clean(self) -> None:
        """Remove the mark of a clean stop before anything makes it untrue."""
        if not self._clean_consumed:
            with self._errors():
                with suppress(FileNotFoundError):
                    self._clean_path.unlink()
                _sync_folder(self.folder)
            self._clean_consumed = True

    def _load(self, stored: Mapping[int, Position]) -> Iterator[LoadChunk]:
        for partition, (epoch, sequence) in sorted(stored.items()):
            with self._errors(), self._environment.begin() as reading:
                streams = reading.get(meta_key(b"streams/", partition), db=self._meta) or b""
                chunk: list[Entry] = []
                for prefix in entry_prefixes(partition):
                    for key, value in with_prefix(reading.cursor(db=self._entries), prefix):
                        if len(chunk) == LOAD_ENTRIES:
                            yield partition, epoch, sequence, chunk, b"", False
                            chunk = []
                        chunk.append(read_entry(key, value))
                yield partition, epoch, sequence, chunk, streams, True

    # ---- owning partitions ----

    def take(self, wanted: Mapping[int, int]) -> dict[int, Position | None]:
        """Where each partition's entries on disk are at; half a dump is deleted."""
        self.open()
        self._consume_clean()
        for partition in wanted:
            if partition not in self._cursors:
                self._transact(partial(self._delete, partition))
        return {partition: self._cursors.get(partition) for partition in wanted}

    def let_go(self, partitions: Sequence[int], *, gone: bool) -> None:
        """Stop writing; delete what is on disk when the copy is gone."""
        if not gone:
            return
        self.open()
        self._consume_clean()
        for partition in partitions:
            self._transact(partial(self._delete, partition))
            self._cursors.pop(partition, None)

    # ---- batches ----

    def write(self, parts: Sequence[Part]) -> Written:
        """Write a batch in one transaction."""
        self.open()
        written = Written()
        due: list[Part] = []
        for part in parts:
            stored = self._cursors.get(part.partition, (0, 0))
            if stored == part.after:
                due.append(part)
            else:
                written.moved[part.partition] = stored
        if due:
            written.rows = self._transact(partial(self._write, due))
            self._cursors.update((part.partition, part.last) for part in due)
        return written

    def _write(self, due: Sequence[Part], writing: Any) -> int:
        last: dict[bytes, tuple[bytes, Change]] = {}
        for part in due:
            prefix = part.partition.to_bytes(2, "big")
            for change in part.changes:
                last[entry_key(part.partition, change[0], change[2], prefix)] = (prefix, change)
        puts: list[tuple[bytes, bytes]] = []
        for key, (_, change) in sorted(last.items()):
            if change[3] is None:
                writing.delete(key, db=self._entries)
            else:
                puts.append((key, change_value(change)))
        if puts:
            with writing.cursor(db=self._entries) as cursor:
                cursor.putmulti(puts)
        cursors = [(meta_key(b"cursor/", p.partition), CURSOR.pack(*p.last)) for p in due]
        with writing.cursor(db=self._meta) as cursor:
            cursor.putmulti(sorted(cursors))
        return len(last)

    def resync(self, resyncs: Sequence[Resync]) -> Written:
        """Replace copies on disk, a chunk a transaction; the cursor comes last."""
        self.open()
        written = Written()
        for resync in resyncs:
            partition = resync.partition
            self._cursors.pop(partition, None)
            self._transact(partial(self._delete, partition))
            for chunk in resync.chunks:
                self._transact(partial(self._dump, partition, chunk))
                written.rows += len(chunk)
            self._transact(partial(self._put_cursor, partition, resync.position))
            self._cursors[partition] = resync.position
        return written

    def _dump(self, partition: int, chunk: Iterable[Entry], writing: Any) -> None:
        puts = sorted(
            (
                entry_key(partition, name, key),
                pack_value(key, value, codec, version, expires, schema),
            )
            for name, schema, key, value, codec, version, expires in chunk
        )
        with writing.cursor(db=self._entries) as cursor:
            cursor.putmulti(puts)

    def _put_cursor(self, partition: int, position: Position, writing: Any) -> None:
        writing.put(meta_key(b"cursor/", partition), CURSOR.pack(*position), db=self._meta)

    def _delete(self, partition: int, writing: Any) -> None:
        writing.delete(meta_key(b"cursor/", partition), db=self._meta)
        writing.delete(meta_key(b"streams/", partition), db=self._meta)
        with writing.cursor(db=self._entries) as cursor:
            for prefix in entry_prefixes(partition):
                while cursor.set_range(prefix) and cursor.key().startswith(prefix):
                    cursor.delete()

    # ---- stopping ----

    def sync(self) -> None:
        """Fsync everything written so far.

        Raises:
            SinkUnavailable: The disk refused. After one failed fsync nothing is vouched for by this
                object any more, since the pages it was about may be gone from the cache.
        """
        self.open()
        if self._failed_sync:
            raise SinkUnavailable(
                f"{self.name}: an earlier fsync failed: {self._failed_sync}", sink=self.name
            )
        try:
            with self._errors():
                self._environment.sync(True)
        except SinkUnavailable as error:
            self._failed_sync = str(error)
            raise

    def mark_clean(
        self, positions: Mapping[int, Position], streams: Callable[[int], bytes]
    ) -> None:
        """Write the mark of a clean stop for what is on disk up to these positions."""
        self.open()
        whole = {p: at for p, at in positions.items() if self._cursors.get(p) == at}

        def put_streams(writing: Any) -> None:
            for partition, blob in blobs.items():
                writing.put(meta_key(b"streams/", partition), blob, db=self._meta)

        blobs = {partition: streams(partition) for partition in whole}
        self._transact(put_streams)
        self.sync()
        clean = _Clean({str(partition): at for partition, at in sorted(whole.items())})
        with self._errors():
            _write_durably(self._clean_path, msgspec.json.encode(clean))

    # ---- the environment ----

    def _transact(self, run: Callable[[Any], Any]) -> Any:
        """Run in one write transaction; the map grows until it fits."""
        while True:
            try:
                with self._errors(), self._environment.begin(write=True) as writing:
                    return run(writing)
            except lmdb.MapFullError:
                size = self._environment.info()["map_size"] * 2
                if size > MAP_BYTES_MAX:
                    raise SinkUnavailable(
                        f"{self.name} would need a map of {size} bytes, limit {MAP_BYTES_MAX}",
                        sink=self.name,
                    ) from None
                with self._errors():
                    self._environment.set_mapsize(size)

    def _check_process(self) -> None:
        if self._process not in (0, os.getpid()):
            raise ForkedProcess(
                f"{self.name} was opened by process {self._process}, "
                f"this is its child {os.getpid()}"
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except lmdb.MapFullError:
            raise
        except (lmdb.Error, OSError) as error:
            raise SinkUnavailable(f"{self.name}: {error}", sink=self.name) from error


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # Without the kernel's word every unclean start is taken for a loss of power.
        return f"unknown-{time.time_ns()}"


def _write_durably(path: Path, data: bytes) -> None:
    """Replace a file so that it is, after any crash, the old one or the new one."""
    new = path.with_suffix(".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(new, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
