"""Where a space lives in etcd, and how its values are written.

Under ``/spacegrid/NAME/``:

| key | value | changed by |
| --- | --- | --- |
| ``meta`` | life, partition count, copies and the like | created once; `restored` |
| ``next`` | the incarnation to give next (C1) | each join |
| ``nodes/INC`` | a registration (C5); without the key it has ended | its node; whoever ends it |
| ``alive/INC`` | nothing; bound to an etcd lease that the node keeps | its node; etcd |
| ``term`` | who holds which term (C2) | a campaign |
| ``head`` | the table's revision and mark, and which write made it (C3) | each write |
| ``table/NN`` | a run of partition entries | writes that change one of them |
| ``stores`` | where copies keep their data | writes, and ends without a clean stop |
| ``stopping`` | incarnations to wait for while the cluster stops | a stop of the cluster |

One write is one transaction over head, stores and the chunks that change. etcd takes 128 operations
and 1.5 MiB in one: there are at most `CHUNKS_MAX` chunks, and values are compressed, so that even a
write of all of `PARTITIONS_MAX` entries fits (tests/unit/test_etcd_layout.py holds it).

A value is a version byte and zlib-compressed msgpack. Every decoder bounds what it unpacks and
fails with `ProtocolError`. Who calls: the rest of this folder.
"""

from __future__ import annotations

import zlib
from typing import Any, Final, TypeVar

import msgspec

from spacegrid.errors import ProtocolError
from spacegrid.machine.table import CopyStore, PartitionEntry, Registration, Table

__all__ = [
    "CHUNKS_MAX",
    "PARTITIONS_MAX",
    "Head",
    "Keys",
    "Meta",
    "NodeRecord",
    "Stopping",
    "Term",
    "chunk_bounds",
    "chunk_count",
    "chunk_of",
    "decode",
    "encode",
    "entries_of",
    "stores_of",
]

#: Keys that hold the table: with head, stores and comparisons a write stays within 128 operations.
CHUNKS_MAX: Final = 64
#: Partitions of a space whose table is in etcd; see the module.
PARTITIONS_MAX: Final = 16_384
#: What one value may unpack to.
VALUE_BYTES_MAX: Final = 16 << 20
_VERSION: Final = 1
_LEVEL: Final = 1

T = TypeVar("T")


class Meta(msgspec.Struct, frozen=True):
    """What a space was created with.

    Attributes:
        life: Id of the space, 16 bytes.
        partition_count: Its partitions.
        copies: Complete copies wanted.
        min_in_sync: Copies that a write needs.
        nodes_expected: Nodes to wait for before the first placement.
        etcd_cluster: Identity of the etcd cluster that holds it.
        restored: How often it was said that etcd was restored from a backup.
    """

    life: bytes
    partition_count: int
    copies: int
    min_in_sync: int
    nodes_expected: int
    etcd_cluster: int
    restored: int = 0


class NodeRecord(msgspec.Struct, frozen=True):
    """A registration with what proves its process.

    Attributes:
        registration: As the node said it.
        boot: Drawn by the process, 16 bytes: tells its own record from any other.
        host: The machine and pid namespace that the process is in.
        process_start: Start time of the process: with host and pid it names the process.
    """

    registration: Registration
    boot: bytes
    host: str = ""
    process_start: int = 0


class Term(msgspec.Struct, frozen=True, array_like=True):
    """Who holds the term; (0, 0): nobody yet."""

    incarnation: int = 0
    term: int = 0


class Head(msgspec.Struct, frozen=True):
    """The table as a whole.

    Attributes:
        revision: Of the table.
        stopped: Between a clean stop of the cluster and the first write after it.
        write: Drawn by the writer: tells a write that was made from one that was not.
    """

    revision: int
    stopped: bool = False
    write: bytes = b""


class Stopping(msgspec.Struct, frozen=True):
    """The cluster stops until all of these have ended."""

    incarnations: tuple[int, ...] = ()


class Keys:
    """The keys of one space."""

    def __init__(self, space: str) -> None:
        """Name them.

        Args:
            space: Name of the space; `config.split_etcd` has checked it.
        """
        self.prefix = f"/spacegrid/{space}/".encode()
        self.end = self.prefix[:-1] + b"0"  # the byte after "/"
        self.meta = self.prefix + b"meta"
        self.next = self.prefix + b"next"
        self.term = self.prefix + b"term"
        self.head = self.prefix + b"head"
        self.stores = self.prefix + b"stores"
        self.stopping = self.prefix + b"stopping"
        self.nodes = self.prefix + b"nodes/"
        self.alive = self.prefix + b"alive/"
        self.table = self.prefix + b"table/"
        #: Everything but table and term is before this; see `image.SMALL`.
        self.table_end = self.prefix + b"table0"

    def node(self, incarnation: int) -> bytes:
        """Key of a registration."""
        return self.nodes + b"%016x" % incarnation

    def alive_of(self, incarnation: int) -> bytes:
        """Key that lives as long as its node keeps its lease."""
        return self.alive + b"%016x" % incarnation

    def chunk(self, index: int) -> bytes:
        """Key of a run of entries."""
        return self.table + b"%02x" % index


def number_of(key: bytes) -> int:
    """The incarnation or the index at the end of a key.

    Raises:
        ProtocolError: There is none.
    """
    try:
        return int(key.rpartition(b"/")[2], 16)
    except ValueError:
        raise ProtocolError(f"key {key!r} in etcd is none of a space") from None


def chunk_count(partition_count: int) -> int:
    """How many chunks a table has."""
    return min(CHUNKS_MAX, partition_count)


def chunk_bounds(index: int, partition_count: int) -> tuple[int, int]:
    """First partition of a chunk, and the one after its last."""
    chunks = chunk_count(partition_count)
    return index * partition_count // chunks, (index + 1) * partition_count // chunks


def chunk_of(partition: int, partition_count: int) -> int:
    """The chunk that a partition is in."""
    chunks = chunk_count(partition_count)
    return ((partition + 1) * chunks - 1) // partition_count


def encode(value: Any) -> bytes:
    """A value's bytes."""
    return bytes((_VERSION,)) + zlib.compress(msgspec.msgpack.encode(value), _LEVEL)


def decode(key: bytes, data: bytes, kind: type[T]) -> T:
    """A value from its bytes.

    Raises:
        ProtocolError: Damaged, of another version, or too large.
    """
    name = key.decode(errors="replace")
    if not data or data[0] != _VERSION:
        found = data[0] if data else "none"
        raise ProtocolError(f"{name} in etcd has version {found}, this node reads {_VERSION}")
    unpack = zlib.decompressobj()
    try:
        body = unpack.decompress(data[1:], VALUE_BYTES_MAX)
        if not unpack.eof:
            raise ProtocolError(f"{name} in etcd is cut off or over {VALUE_BYTES_MAX} bytes")
        return msgspec.msgpack.decode(body, type=kind)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise ProtocolError(f"{name} in etcd is damaged: {error}") from None


def entries_of(
    key: bytes, data: bytes, index: int, partition_count: int
) -> tuple[PartitionEntry, ...]:
    """The entries of a chunk.

    Raises:
        ProtocolError: Damaged, or not the partitions of this chunk.
    """
    entries = decode(key, data, tuple[PartitionEntry, ...])
    low, high = chunk_bounds(index, partition_count)
    if [entry.partition for entry in entries] != list(range(low, high)):
        raise ProtocolError(f"{key.decode()} in etcd does not hold partitions {low} to {high - 1}")
    return entries


def stores_of(key: bytes, data: bytes) -> tuple[CopyStore, ...]:
    """The stores."""
    return decode(key, data, tuple[CopyStore, ...])


def chunk_value(table: Table, index: int) -> bytes:
    """A chunk of a table as its value."""
    low, high = chunk_bounds(index, table.partition_count)
    return encode(table.entries[low:high])
