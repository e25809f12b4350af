"""The LMDB sink: one node's own disk, holding every complete copy that the node holds.

The layout is documented in docs/LMDB.md, so that anything that reads LMDB can read it. In short, in
the directory ``lmdb`` under the node's data folder:

- ``store.json``: whose store it is (format, cluster life, partition count, store id).
- ``owner.lock``: locked while a node has the store open.
- ``data.mdb``: database ``entries`` (`spacegrid.sink.lmdb_layout`) and database ``meta`` with
  ``cursor/`` and ``streams/`` plus the partition (u16 BE) as keys.

Invariants:

- Entries, the cursor that covers them and the request results up to it are written in one
  transaction, and a transaction is fsynced before it returns: what a cursor says is persisted. A
  crash at any moment, a loss of power included, leaves the last whole transaction.
- A partition without a cursor, or with one that is not whole, is no copy (a dump was interrupted).
- After the first write or fsync that the disk failed, or when ``data.mdb`` is no longer the file
  that was opened, nothing is written or vouched for any more (`StoreFailed`); a disk that is merely
  full has written nothing and is asked again.
- A store is read whole, in another process, before it is opened: damage is refused, not served.

Over 500 lines in one room: one environment, and what its cursors say between its transactions.

Who calls: the node's local pump from its own thread; before it starts, whoever loads the store.
"""

from __future__ import annotations

import errno
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import lmdb

from spacegrid.errors import (
    ForkedProcess,
    SinkUnavailable,
    SpaceGridError,
    StoreDamaged,
    StoreFailed,
)
from spacegrid.sink.base import Change, Entry, Part, Position, Resync, Written
from spacegrid.sink.lmdb_check import check_in_child, late_readers
from spacegrid.sink.lmdb_folder import Identity, StoreFolder
from spacegrid.sink.lmdb_layout import (
    STORE_FORMAT,
    Cursor,
    change_value,
    entry_key,
    entry_prefixes,
    meta_key,
    open_sealed,
    pack_cursor,
    pack_value,
    partition_of_meta,
    read_cursor,
    read_entry,
    seal,
    with_prefix,
)

__all__ = ["LmdbSink", "LoadChunk"]

LIB_VERSION: Final = 0
"""The 0.9 file format, which every LMDB reader knows."""
MAP_BYTES_FIRST: Final = 4 << 20
MAP_BYTES_MAX: Final = 1 << 44
LOAD_ENTRIES: Final = 2000
"""Entries read in one read transaction, so that none of ours pins pages for long."""
DUMP_ENTRIES: Final = 20_000
"""A dump of at most so many entries is one transaction; a larger one has several."""
DUMP_BYTES: Final = 64 << 20
"""And of at most so many bytes: what one transaction writes is in memory until it ends."""
READERS_EVERY_S: Final = 10.0
READER_LATE_TRANSACTIONS: Final = 1_000

_FULL: Final = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT))

LoadChunk = tuple[int, int, int, list[Entry], bytes, bool]
"""(partition, epoch, sequence, entries, request results, last): the arguments of ``Node.load``."""

log = logging.getLogger(__name__)


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
        self._store = StoreFolder(self.folder, self.name)
        self._identity: Identity | None = None
        self._environment: Any = None
        self._entries: Any = None
        self._meta: Any = None
        self._process = 0
        self._cursors: dict[int, Cursor] = {}
        self._failed = ""
        self._data_file: tuple[int, int] | None = None
        self._readers_at_s = 0.0
        self._readers_told = ""

    # ---- opening ----

    def open(self) -> None:
        """Open the store, or make it; again after `SinkUnavailable`.

        Raises:
            SinkMismatch: The directory belongs to another cluster, or has another format.
            SinkUnavailable: Another process has it open, or the disk refuses.
            StoreDamaged: What is in it is not what was written.
            StoreFailed: The disk failed it before.
        """
        self._check_process()
        self._check_failed()
        if self._environment is not None:
            return
        with self._errors():
            self._store.lock()
            try:
                self._open_locked()
            except BaseException:
                self._store.unlock()
                raise
        self._process = os.getpid()

    def _open_locked(self) -> None:
        identity = self._store.read(self._life, self._partition_count)
        data = self.folder / "data.mdb"
        if identity is not None:
            self._check_whole()
        else:
            identity = Identity(STORE_FORMAT, self._life, self._partition_count, self._new_id)
            with suppress(FileNotFoundError):
                # Its making was interrupted, or somebody took store.json away: nobody's store.
                os.replace(data, data.with_suffix(".nameless"))
        size = max(MAP_BYTES_FIRST, data.stat().st_size if data.exists() else 0)
        environment = lmdb.open(
            os.fspath(self.folder),
            map_size=size,
            max_dbs=2,
            mode=0o600,
            lib_version=LIB_VERSION,
        )
        try:
            self._store.reserve(size)
            environment.reader_check()
            self._entries = environment.open_db(b"entries")
            self._meta = environment.open_db(b"meta")
            with environment.begin(db=self._meta) as reading:
                self._cursors = {
                    partition_of_meta(key): read_cursor(key, value)
                    for key, value in with_prefix(reading.cursor(), b"cursor/")
                }
            self._store.write(identity)
            self._data_file = self._store.data_file()
        except BaseException:
            environment.close()
            raise
        self._identity = identity
        self._environment = environment

    def _check_whole(self) -> None:
        try:
            check_in_child(self.folder)
        except StoreDamaged as damage:
            raise StoreDamaged(
                f"{self.name} is damaged, nothing of it is served: {damage}\n"
                "hint: move the folder away; a node with an empty one is given its copies by "
                "the others",
                sink=self.name,
            ) from damage

    def close(self) -> None:
        """Close the store. Safe to call twice."""
        if self._process != 0:
            self._check_process()
        environment, self._environment = self._environment, None
        self._process = 0
        self._cursors = {}
        if environment is not None:
            environment.close()
        self._store.unlock()

    @property
    def store_id(self) -> bytes:
        """16 bytes that name this store for as long as its folder lives."""
        if self._identity is None:
            self.open()
        assert self._identity is not None
        return bytes.fromhex(self._identity.store_id)

    # ---- starting from disk ----

    def stored_partitions(self) -> dict[int, Position]:
        """Whole copies that are here, with their positions; for a node's registration."""
        self.open()
        return {p: cursor.position for p, cursor in self._cursors.items() if cursor.whole}

    def persisted(self, partition: int) -> Position | None:
        """Position up to which a partition is fsynced here; None: there is no whole copy."""
        cursor = self._cursors.get(partition)
        return cursor.position if cursor is not None and cursor.whole else None

    def load(self) -> Iterator[LoadChunk]:
        """Read the whole copies that are here.

        Returns:
            Arguments for ``Node.load``, at most `LOAD_ENTRIES` entries each.

        Raises:
            SinkMismatch: The store belongs to another cluster.
            SinkUnavailable: The disk refuses, or another process has the store open.
            StoreDamaged: What is in it is not what was written.
        """
        for partition, (epoch, sequence) in sorted(self.stored_partitions().items()):
            for prefix in entry_prefixes(partition):
                after: bytes | None = None
                while (page := self._page(prefix, after))[0]:
                    yield partition, epoch, sequence, page[0], b"", False
                    after = page[1]
            yield partition, epoch, sequence, [], self._streams(partition), True

    def _page(self, prefix: bytes, after: bytes | None) -> tuple[list[Entry], bytes]:
        """Some entries behind a key, and the last key."""
        entries: list[Entry] = []
        last = after or b""
        with self._errors(), self._environment.begin(db=self._entries) as reading:
            for key, value in with_prefix(reading.cursor(), prefix, after):
                entries.append(read_entry(key, value))
                last = key
                if len(entries) == LOAD_ENTRIES:
                    break
        return entries, last

    def _streams(self, partition: int) -> bytes:
        key = meta_key(b"streams/", partition)
        with self._errors(), self._environment.begin(db=self._meta) as reading:
            data = reading.get(key)
        return b"" if data is None else open_sealed(key, data)

    # ---- owning partitions ----

    def take(self, wanted: Mapping[int, int]) -> dict[int, Position | None]:
        """Where each partition's entries on disk are at; half a dump is deleted."""
        self.open()
        torn = [
            partition
            for partition in wanted
            if partition not in self._cursors or not self._cursors[partition].whole
        ]
        if torn:
            self._transact(partial(self._delete, torn))
            for partition in torn:
                self._cursors.pop(partition, None)
        return {partition: self.persisted(partition) for partition in wanted}

    def begin(self, partitions: Sequence[int]) -> None:
        """Write the cursors of copies that are empty: a copy without a cursor is none."""
        self.open()
        empty = Cursor((0, 0), 0)

        def run(writing: Any) -> None:
            for partition in partitions:
                self._put_meta(partition, empty, b"", writing)

        self._transact(run)
        self._cursors.update(dict.fromkeys(partitions, empty))

    def let_go(self, partitions: Sequence[int], *, gone: bool) -> None:
        """Stop writing; delete what is on disk when the copy is gone."""
        if not gone or not partitions:
            return
        self.open()
        self._transact(partial(self._delete, partitions))
        for partition in partitions:
            self._cursors.pop(partition, None)

    # ---- batches ----

    def write(self, parts: Sequence[Part]) -> Written:
        """Write a batch in one transaction; when this returns it is fsynced."""
        self.open()
        self._watch_readers()
        written = Written()
        due: list[tuple[Part, Cursor]] = []
        for part in parts:
            stored = self._cursors.get(part.partition, Cursor((0, 0), 0))
            if stored.position == part.after:
                due.append((part, Cursor(part.last, stored.whole_from)))
            else:
                written.moved[part.partition] = stored.position
        if due:
            written.rows = self._transact(partial(self._write, due))
            self._cursors.update((part.partition, cursor) for part, cursor in due)
        return written

    def _write(self, due: Sequence[tuple[Part, Cursor]], writing: Any) -> int:
        last: dict[bytes, Change] = {}
        for part, _ in due:
            prefix = part.partition.to_bytes(2, "big")
            for change in part.changes:
                last[entry_key(part.partition, change[0], change[2], prefix)] = change
        puts: list[tuple[bytes, bytes]] = []
        for key, change in sorted(last.items()):
            if change[3] is None:
                writing.delete(key, db=self._entries)
            else:
                puts.append((key, change_value(key, change)))
        if puts:
            with writing.cursor(db=self._entries) as cursor:
                cursor.putmulti(puts)
        for part, moved in due:
            self._put_meta(part.partition, moved, part.results, writing)
        return len(last)

    def resync(self, resyncs: Sequence[Resync]) -> Written:
        """Replace copies on disk; small ones in one transaction, with no moment without a copy."""
        self.open()
        written = Written()
        small: list[tuple[Resync, list[Entry]]] = []
        size = size_bytes = 0
        for resync in resyncs:
            entries, entries_bytes, rest = _first(resync.chunks)
            written.rows += len(entries)
            if rest is not None:
                written.rows += self._dump_large(resync, entries, rest)
                continue
            small.append((resync, entries))
            size += len(entries)
            size_bytes += entries_bytes
            if size > DUMP_ENTRIES or size_bytes > DUMP_BYTES:
                self._dump_small(small)
                small, size, size_bytes = [], 0, 0
        self._dump_small(small)
        return written

    def _dump_small(self, dumps: Sequence[tuple[Resync, list[Entry]]]) -> None:
        cursors = {resync.partition: _cursor_of(resync) for resync, _ in dumps}

        def run(writing: Any) -> None:
            self._delete(list(cursors), writing)
            for resync, entries in dumps:
                self._dump(resync.partition, entries, writing)
                self._put_meta(
                    resync.partition, cursors[resync.partition], resync.results(), writing
                )

        if dumps:
            self._transact(run)
            self._cursors.update(cursors)

    def _dump_large(
        self, resync: Resync, entries: list[Entry], rest: Iterator[Sequence[Entry]]
    ) -> int:
        """A chunk a transaction, the cursor last; how many entries came after the first ones."""
        partition, count = resync.partition, 0
        self._cursors.pop(partition, None)
        self._transact(partial(self._delete, [partition]))
        self._transact(partial(self._dump, partition, entries))
        for chunk in rest:
            self._transact(partial(self._dump, partition, chunk))
            count += len(chunk)
        cursor = _cursor_of(resync)
        self._transact(partial(self._put_meta, partition, cursor, resync.results()))
        self._cursors[partition] = cursor
        return count

    def _dump(self, partition: int, chunk: Iterable[Entry], writing: Any) -> None:
        puts: list[tuple[bytes, bytes]] = []
        for name, schema, key, value, codec, version, expires in chunk:
            stored_key = entry_key(partition, name, key)
            packed = pack_value(stored_key, key, value, codec, version, expires, schema)
            puts.append((stored_key, packed))
        with writing.cursor(db=self._entries) as cursor:
            cursor.putmulti(sorted(puts))

    def _put_meta(self, partition: int, cursor: Cursor, results: bytes, writing: Any) -> None:
        writing.put(meta_key(b"cursor/", partition), pack_cursor(partition, cursor), db=self._meta)
        key = meta_key(b"streams/", partition)
        writing.put(key, seal(key, results), db=self._meta)

    def _delete(self, partitions: Sequence[int], writing: Any) -> None:
        for partition in partitions:
            writing.delete(meta_key(b"cursor/", partition), db=self._meta)
            writing.delete(meta_key(b"streams/", partition), db=self._meta)
            with writing.cursor(db=self._entries) as cursor:
                for prefix in entry_prefixes(partition):
                    while cursor.set_range(prefix) and cursor.key().startswith(prefix):
                        cursor.delete()

    def sync(self) -> None:
        """Every transaction was fsynced before it returned; only the file has to be there still."""
        self.open()
        self._check_there()

    # ---- the environment ----

    def _transact(self, run: Callable[[Any], Any]) -> Any:
        """Run in one write transaction; the map grows until it fits.

        Raises:
            SinkUnavailable: The disk is full: nothing was written.
            StoreFailed: The disk failed it: whether it was written nobody can say. Or the file is
                no longer there: nobody would find what is written.
        """
        while True:
            self._check_there()
            try:
                with self._errors(writing=True), self._environment.begin(write=True) as writing:
                    return run(writing)
            except lmdb.MapFullError:
                size = self._environment.info()["map_size"] * 2
                if size > MAP_BYTES_MAX:
                    raise SinkUnavailable(
                        f"{self.name} would need a map of {size} bytes, limit {MAP_BYTES_MAX}",
                        sink=self.name,
                    ) from None
                with self._errors():
                    self._store.reserve(size)
                    self._environment.set_mapsize(size)

    def _watch_readers(self) -> None:
        """Give back the places of dead readers; say who keeps the file from reusing its pages."""
        now_s = time.monotonic()
        if now_s - self._readers_at_s < READERS_EVERY_S:
            return
        self._readers_at_s = now_s
        self._environment.reader_check()
        late = late_readers(self._environment, READER_LATE_TRANSACTIONS)
        if late and late != self._readers_told:
            log.warning(
                "%s: process %s has had a read transaction open for over %d transactions; the file "
                "grows until it ends it",
                self.name,
                late,
                READER_LATE_TRANSACTIONS,
            )
        self._readers_told = late

    def _check_failed(self) -> None:
        if self._failed:
            raise StoreFailed(f"{self.name} is out of service: {self._failed}", sink=self.name)

    def _check_there(self) -> None:
        if self._store.data_file() != self._data_file:
            self._failed = "data.mdb was deleted or replaced while it was open"
            self._check_failed()

    def _check_process(self) -> None:
        if self._process not in (0, os.getpid()):
            raise ForkedProcess(
                f"{self.name} was opened by process {self._process}, "
                f"this is its child {os.getpid()}"
            )

    @contextmanager
    def _errors(self, *, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except (lmdb.MapFullError, SpaceGridError):
            raise
        except (lmdb.Error, OSError) as error:
            if not writing or any(text in str(error) for text in _FULL):
                raise SinkUnavailable(f"{self.name}: {error}", sink=self.name) from error
            self._failed = str(error)
            raise StoreFailed(
                f"{self.name}: the disk failed a write: {error}\n"
                "hint: nothing more is written there; check the disk, then start the node again",
                sink=self.name,
            ) from error


def _cursor_of(resync: Resync) -> Cursor:
    return Cursor(resync.position, resync.end())


def _first(
    chunks: Iterable[Sequence[Entry]],
) -> tuple[list[Entry], int, Iterator[Sequence[Entry]] | None]:
    """The first entries of a dump, their bytes, and the chunks behind them; None: that was all."""
    entries: list[Entry] = []
    size_bytes = 0
    iterator = iter(chunks)
    for chunk in iterator:
        entries.extend(chunk)
        size_bytes += sum(len(entry[2]) + len(entry[3]) for entry in chunk)
        if len(entries) > DUMP_ENTRIES or size_bytes > DUMP_BYTES:
            return entries, size_bytes, iterator
    return entries, size_bytes, None
