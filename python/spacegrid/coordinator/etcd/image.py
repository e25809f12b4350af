"""What the keys of one space say, kept up to date from ranges, events and own transactions.

An image never goes back: of each key it keeps the newest change it was told of, in whatever order
the news comes (a node's own transaction is known before the watch tells of it). Pure: bytes in,
changes out. Who calls: coordinator.py; decisions.py reads it.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from spacegrid.coordinator.etcd import api_pb2 as api
from spacegrid.coordinator.etcd import layout
from spacegrid.coordinator.etcd.layout import Head, Keys, Meta, NodeRecord, Stopping, Term
from spacegrid.errors import InvariantViolation, ProtocolError
from spacegrid.machine.table import CopyStore, PartitionEntry, Registration, Table

__all__ = ["Image", "News"]


class News(msgspec.Struct):
    """What is different after a step.

    Attributes:
        table: Whether the table, its stores or its mark changed.
        changed: Partitions whose entries differ.
        nodes: Whether registrations or the stopping mark changed.
        term: Whether the term changed.
    """

    table: bool = False
    changed: set[int] = msgspec.field(default_factory=set)
    nodes: bool = False
    term: bool = False


class Image:
    """A space as far as this node has heard.

    Attributes:
        revision: Of etcd: everything up to here is in; a watch goes on after it.
        meta: None: the space was not created yet.
        next: The incarnation to give next.
        term: Who holds it.
        head: The table's revision and mark.
        stores: Where copies keep their data.
        nodes: Incarnation to record, of the nodes that have not ended.
        alive: Incarnations whose node keeps its lease.
    """

    def __init__(self, keys: Keys) -> None:
        """Know nothing yet."""
        self.keys = keys
        self.revision = 0
        self.meta: Meta | None = None
        self.next = 0
        self.term = Term()
        self.head = Head(0)
        self.stores: tuple[CopyStore, ...] = ()
        self.nodes: dict[int, NodeRecord] = {}
        self.alive: set[int] = set()
        self._stopping = Stopping()
        self._chunks: dict[int, tuple[PartitionEntry, ...]] = {}
        self._table: Table | None = None
        #: Key to the revision of its last change; the sign tells a deletion.
        self._mods: dict[bytes, int] = {}

    # ---- what it says

    @property
    def table(self) -> Table:
        """The whole table; only after a full read."""
        if self._table is None:
            assert self.meta is not None
            entries = tuple(
                entry for index in sorted(self._chunks) for entry in self._chunks[index]
            )
            self._table = Table(
                revision=self.head.revision,
                life=self.meta.life,
                partition_count=self.meta.partition_count,
                copies=self.meta.copies,
                min_in_sync=self.meta.min_in_sync,
                entries=entries,
                stores=self.stores,
                stopped=self.head.stopped,
                nodes_expected=self.meta.nodes_expected,
            )
        return self._table

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """The nodes that have not ended, in order of incarnation."""
        return tuple(self.nodes[incarnation].registration for incarnation in sorted(self.nodes))

    @property
    def stopping(self) -> bool:
        """Whether the cluster was told to stop and some of its nodes are still there."""
        return any(incarnation in self.nodes for incarnation in self._stopping.incarnations)

    def mod(self, key: bytes) -> int:
        """Revision of a key's last change; 0: it is not there, as etcd's comparisons have it."""
        return max(self._mods.get(key, 0), 0)

    def check(self) -> None:
        """Hold a full read to the invariants of a table.

        Raises:
            ProtocolError: It can't be.
        """
        if self.meta is None:
            return
        if len(self._chunks) != layout.chunk_count(self.meta.partition_count):
            raise ProtocolError(
                f"{len(self._chunks)} chunks of the table are in etcd, "
                f"{layout.chunk_count(self.meta.partition_count)} expected"
            )
        try:
            self.table.check()
        except InvariantViolation as error:
            raise ProtocolError(f"the table in etcd can't be: {error}") from None

    # ---- what it is told

    def read(self, kvs: Iterable[api.KeyValue], revision: int) -> None:
        """Take what a range found, into an image that is new.

        Raises:
            ProtocolError: A value is damaged.
        """
        # The chunks can't be read before the meta key says how many partitions there are.
        for kv in sorted(kvs, key=lambda kv: kv.key != self.keys.meta):
            self._put(kv.key, kv.value, kv.mod_revision, News())
        self.revision = revision

    def hear(self, events: Iterable[api.Event], revision: int) -> News:
        """Take the events of a watch.

        Args:
            events: All those of one or more revisions.
            revision: The last of these.

        Raises:
            ProtocolError: A value is damaged.
        """
        news = News()
        for event in events:
            kv = event.kv
            if event.type == api.Event.DELETE:
                self._delete(kv.key, kv.mod_revision, news)
            else:
                self._put(kv.key, kv.value, kv.mod_revision, news)
        self.revision = max(self.revision, revision)
        return news

    def wrote(self, operations: Iterable[api.RequestOp], revision: int) -> News:
        """Take an own transaction that was carried out; the watch goes on where it was.

        Deletions of ranges are left to the watch.
        """
        news = News()
        for operation in operations:
            if operation.WhichOneof("request") == "put":
                self._put(operation.put.key, operation.put.value, revision, news)
            elif not operation.delete_range.range_end:
                self._delete(operation.delete_range.key, revision, news)
        return news

    def _put(self, key: bytes, value: bytes, mod: int, news: News) -> None:
        if mod <= abs(self._mods.get(key, 0)):
            return
        keys = self.keys
        if key.startswith(keys.table):
            self._put_chunk(key, value, news)
        elif key.startswith(keys.nodes):
            self.nodes[layout.number_of(key)] = layout.decode(key, value, NodeRecord)
            news.nodes = True
        elif key.startswith(keys.alive):
            self.alive.add(layout.number_of(key))
        elif key == keys.head:
            self.head = layout.decode(key, value, Head)
            news.table = True
        elif key == keys.stores:
            self.stores = layout.stores_of(key, value)
            news.table = True
        elif key == keys.term:
            self.term = layout.decode(key, value, Term)
            news.term = True
        elif key == keys.stopping:
            self._stopping = layout.decode(key, value, Stopping)
            news.nodes = True
        elif key == keys.next:
            self.next = layout.decode(key, value, int)
        elif key == keys.meta:
            self.meta = layout.decode(key, value, Meta)
        self._mods[key] = mod
        if news.table:
            self._table = None

    def _put_chunk(self, key: bytes, value: bytes, news: News) -> None:
        if self.meta is None:
            raise ProtocolError(f"{key.decode()} is in etcd without {self.keys.meta.decode()}")
        index = layout.number_of(key)
        entries = layout.entries_of(key, value, index, self.meta.partition_count)
        before = self._chunks.get(index, ())
        news.changed.update(
            entry.partition
            for place, entry in enumerate(entries)
            if place >= len(before) or before[place] != entry
        )
        self._chunks[index] = entries
        news.table = True

    def _delete(self, key: bytes, mod: int, news: News) -> None:
        if mod <= abs(self._mods.get(key, 0)):
            return
        if key.startswith(self.keys.nodes):
            self.nodes.pop(layout.number_of(key), None)
            news.nodes = True
        elif key.startswith(self.keys.alive):
            self.alive.discard(layout.number_of(key))
        elif key == self.keys.meta:
            self.meta = None
        self._mods[key] = -mod
