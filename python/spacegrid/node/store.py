"""A node's data folder: its local store, found before the cluster is known and opened once it is.

A node registers with the id of its store and with what a clean stop left in it, before it knows the
cluster's table; so the store that is there is read under its own identity first and checked against
the cluster afterwards. A new store is given its id here, so that it is registered from the start.
"""

from __future__ import annotations

import uuid
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from spacegrid.errors import SinkMismatch
from spacegrid.machine.table import StoredPartition, Table
from spacegrid.sink.lmdb import LmdbSink

if TYPE_CHECKING:
    from spacegrid._core import Node

STORE_FILE: Final = "store.json"


class _Identity(msgspec.Struct):
    """The part of store.json that says whose store it is."""

    life: str
    partition_count: int


class NodeStore:
    """The LMDB store of one node.

    Attributes:
        store_id: 16 bytes that name the store for as long as its folder lives.
        stored: Copies that a clean stop left in it, with their positions.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.sink: LmdbSink | None = None
        self.store_id = uuid.uuid4().bytes
        self.stored: tuple[StoredPartition, ...] = ()
        #: Loaded, and not taken on by the table yet.
        self._dormant: set[int] = set()
        self._life = ""
        path = folder / "lmdb" / STORE_FILE
        if path.exists():
            try:
                identity = msgspec.json.decode(path.read_bytes(), type=_Identity)
            except msgspec.MsgspecError as error:
                raise SinkMismatch(f"{path} is damaged: {error}") from error
            self._life = identity.life
            self.sink = LmdbSink(
                folder, life=identity.life, partition_count=identity.partition_count
            )
            self.sink.open()
            self.store_id = self.sink.store_id
            self.stored = tuple(
                StoredPartition(partition=partition, epoch=epoch, sequence=sequence)
                for partition, (epoch, sequence) in sorted(self.sink.stored_partitions().items())
            )

    @property
    def life(self) -> bytes:
        """Cluster that the store belongs to; empty for a new one."""
        return bytes.fromhex(self._life)

    def attach(self, table: Table) -> LmdbSink:
        """Open the store for this cluster.

        Raises:
            SinkMismatch: It belongs to another one.
        """
        life, count = table.life.hex(), table.partition_count
        if self.sink is None or self._life != life:
            if self.sink is not None:
                self.sink.close()
            self.sink = LmdbSink(
                self._folder, life=life, partition_count=count, store_id=self.store_id
            )
            self.sink.open()
        return self.sink

    def load_into(self, node: Node, served: Container[int] = ()) -> int:
        """Give the core what a clean stop left, before its first table.

        Args:
            node: The core.
            served: Partitions that another node has taken on already: what is here is of the past.

        Returns:
            The number of entries.
        """
        assert self.sink is not None
        count = 0
        for partition, epoch, sequence, entries, streams, last in self.sink.load():
            if partition in served:
                continue
            node.load(partition, epoch, sequence, entries, streams, last)
            self._dormant.add(partition)
            count += len(entries)
        return count

    def let_go(self, node: Node, table: Table, copy: int, alive: Container[int]) -> None:
        """After a table: forget what was loaded and others have gone on without.

        Args:
            node: The core.
            table: Applied already.
            copy: This node.
            alive: Nodes that are there.

        Cost: nothing once every partition that was loaded has been taken on or forgotten.
        """
        if not self._dormant:
            return
        past = self._dormant & table.served_without(copy, self.store_id, alive)
        for partition in past:
            node.unload(partition)
        taken_on = {p for p in self._dormant if copy in table.entries[p].in_sync}
        self._dormant -= past | taken_on

    def close(self) -> None:
        """Close the store without calling it clean."""
        if self.sink is not None:
            self.sink.close()
