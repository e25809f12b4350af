"""A grid in memory that pumps can be tried on: logs, tables, owners, zombies, gaps.

`FakeGrid` is the truth: per partition a committed log and the tables that follow from it.
`FakeNode` is one node's view of it and what a pump reads (`spacegrid.pump.source.LogSource`); a
node can be frozen, so that it goes on believing what it knew, as one that was stopped and resumed
would.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import msgspec
from spacegrid import _core
from spacegrid.pump.source import LogBatch, Role
from spacegrid.sink.base import Change, Entry, Position
from spacegrid.types import Map

PRIMARY, BACKUP = 1, 2


class Stock(msgspec.Struct):
    left: int
    note: str | None = None


STOCK: Map[str, Stock] = Map(str, Stock, columns=("sku",), name="stock")
ORDERS: Map[tuple[str, int], dict[str, int]] = Map(
    tuple[str, int], columns=("sku", "number"), name="orders"
)
SECRET: Map[str, bytes] = Map(str, bytes, name="secret")
MAPS = (STOCK, ORDERS, SECRET)


@dataclass
class Partition:
    """One partition: its committed records, and what they add up to."""

    epoch: int = 1
    version: int = 1
    base: Position = (0, 0)
    records: list[tuple[Position, list[Change]]] = field(default_factory=list)
    tables: dict[tuple[str, bytes], Entry] = field(default_factory=dict)

    @property
    def last(self) -> Position:
        return self.records[-1][0] if self.records else self.base


class FakeGrid:
    """The committed truth of a whole cluster."""

    def __init__(self, partition_count: int = 4) -> None:
        self.partition_count = partition_count
        self.partitions = [Partition() for _ in range(partition_count)]
        self.owners: dict[int, int] = {}
        self.lock = threading.RLock()

    def partition_of(self, key: bytes) -> int:
        return _core.partition_of(key, self.partition_count)

    def put(self, declared: Map, key: object, value: object) -> Position:
        return self.commit([(declared, key, value)])

    def delete(self, declared: Map, key: object) -> Position:
        return self.commit([(declared, key, None)])

    def commit(self, writes: list[tuple[Map, object, object]]) -> Position:
        """Commit one record; all its keys must route to one partition."""
        with self.lock:
            encoded = [(d, d.key_codec.encode(k), v) for d, k, v in writes]
            (number,) = {self.partition_of(key) for _, key, _ in encoded}
            partition = self.partitions[number]
            position = (partition.epoch, partition.last[1] + 1)
            version = position[0] << 40 | position[1]
            changes: list[Change] = []
            for declared, key, value in encoded:
                name, codec = declared.name, declared.value_codec.codec
                if value is None:
                    partition.tables.pop((name, key), None)
                    changes.append((name, 0, key, None, 0, version, 0, False))
                else:
                    raw = isinstance(value, Raw)
                    packed = value.data if raw else declared.value_codec.encode(value)
                    entry = (name, declared.schema, key, packed, codec, version, 0)
                    partition.tables[name, key] = entry
                    changes.append((*entry, False))
            partition.records.append((position, changes))
            return position

    def move(self, partition: int, node: int) -> None:
        """Give a partition another primary, or the same one anew."""
        with self.lock:
            self.owners[partition] = node
            self.partitions[partition].epoch += 1
            self.partitions[partition].version += 1

    def trim(self, partition: int) -> None:
        """Forget the log: whoever has not read it meets a gap."""
        with self.lock:
            self.partitions[partition].base = self.partitions[partition].last
            self.partitions[partition].records = []

    def tables(self, name: str) -> dict[bytes, tuple[bytes, int]]:
        with self.lock:
            return {
                key: (entry[3], entry[4])
                for partition in self.partitions
                for (map_name, key), entry in partition.tables.items()
                if map_name == name
            }


@dataclass(frozen=True)
class Raw:
    """Bytes that are stored although the map's type would never give them."""

    data: bytes


class FakeNode:
    """One node's view."""

    def __init__(self, grid: FakeGrid, number: int) -> None:
        self.grid = grid
        self.number = number
        self.cursors: dict[tuple[str, int], Position] = {}
        self.backups: set[int] = set()
        self.frozen: dict[int, Role] | None = None
        self.persisted: dict[int, Position] = {}
        self.bell = threading.Event()
        self.log_bytes = 0
        self.snapshot_chunk = 3

    def freeze(self) -> None:
        """Believe from now on what is true now."""
        self.frozen = {role[0]: role for role in self.roles()}

    def roles(self) -> list[Role]:
        if self.frozen is not None:
            return list(self.frozen.values())
        rows = []
        with self.grid.lock:
            for number, partition in enumerate(self.grid.partitions):
                primary = self.grid.owners.get(number) == self.number
                if primary or number in self.backups:
                    rows.append(
                        (
                            number,
                            PRIMARY if primary else BACKUP,
                            partition.epoch,
                            partition.version,
                            *partition.last,
                            len(partition.tables),
                            0,
                        )
                    )
        return rows

    def _role(self, partition: int) -> Role | None:
        return next((role for role in self.roles() if role[0] == partition), None)

    def set_cursor(self, name: str, partition: int, epoch: int, sequence: int) -> bool:
        with self.grid.lock:
            here = self.grid.partitions[partition]
            known = [here.base, *(position for position, _ in here.records)]
            role = self._role(partition)
            if role is None or (epoch, sequence) not in known or sequence > role[5]:
                return False
            self.cursors[name, partition] = (epoch, sequence)
            return True

    def advance_cursor(self, name: str, partition: int, epoch: int, sequence: int) -> bool:
        return (name, partition) in self.cursors and self.set_cursor(
            name, partition, epoch, sequence
        )

    def drop_cursor(self, name: str, partition: int) -> None:
        self.cursors.pop((name, partition), None)

    def set_persisted(self, partition: int, epoch: int, sequence: int) -> None:
        self.persisted[partition] = (epoch, sequence)

    def shared_may_read(self, partition: int, sequence: int) -> bool:
        return True

    def wait_local(self, timeout_s: float) -> bool:
        self.bell.wait(timeout_s)
        self.bell.clear()
        return False

    def wake_local(self) -> None:
        self.bell.set()

    def pump_ready(self, name: str) -> list[int]:
        return [
            role[0]
            for role in self.roles()
            if role[5] > self.cursors.get((name, role[0]), (0, -1))[1]
        ]

    def read_log(
        self, name: str, partition: int, max_records: int, max_bytes: int
    ) -> LogBatch | None:
        with self.grid.lock:
            role = self._role(partition)
            cursor = self.cursors.get((name, partition))
            if role is None or cursor is None:
                return None
            chosen: list[tuple[Position, list[Change]]] = []
            size = 0
            for position, changes in self.grid.partitions[partition].records:
                if cursor[1] < position[1] <= role[5] and len(chosen) < max_records:
                    size += sum(len(c[2]) + len(c[3] or b"") for c in changes)
                    if chosen and size > max_bytes:
                        break
                    chosen.append((position, changes))
            if not chosen:
                return None
            flat = [change for _, changes in chosen for change in changes]
            return role[2], chosen[0][0], chosen[-1][0], len(chosen), flat

    def snapshot(
        self, partition: int, after: bytes, max_bytes: int
    ) -> tuple[Position, list[Entry], bytes]:
        with self.grid.lock:
            if self._role(partition) is None:
                raise LookupError(partition)
            here = self.grid.partitions[partition]
            # By key, not by index: entries come and go between two chunks.
            names = sorted((n for n in here.tables if repr(n).encode() > after), key=repr)
            chosen = names[: self.snapshot_chunk]
            more = len(names) > len(chosen)
            chunk = [here.tables[name] for name in chosen]
            return here.last, chunk, repr(chosen[-1]).encode() if more else b""

    def streams(self, partition: int) -> bytes:
        return b"streams of %d" % partition

    def read_entry(self, map: str, key: bytes, now_ms: int) -> tuple[bytes, int, int, int] | None:
        with self.grid.lock:
            number = self.grid.partition_of(key)
            if self.grid.owners.get(number) != self.number:
                raise LookupError(key)
            entry = self.grid.partitions[number].tables.get((map, key))
            return None if entry is None else (entry[3], entry[4], entry[5], entry[6])

    def status(self) -> dict[str, int]:
        return {"log_bytes": self.log_bytes}
