"""Bytes of an LMDB store: keys and values of its two databases.

docs/LMDB.md is the specification; a change here is a change of `STORE_FORMAT`. All numbers in keys
are big-endian, so that LMDB's order is theirs; all numbers in values are little-endian. Every value
begins with a CRC-32 of its key and of what follows, since LMDB itself checks nothing.

Who calls: `spacegrid.sink.lmdb`, `spacegrid.sink.lmdb_check`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from zlib import crc32

from spacegrid.errors import StoreDamaged
from spacegrid.sink.base import Change, Entry, Position

__all__ = [
    "STORE_FORMAT",
    "VALUE_HEAD",
    "Cursor",
    "change_value",
    "entry_key",
    "entry_prefixes",
    "meta_key",
    "open_sealed",
    "pack_cursor",
    "pack_value",
    "partition_of_meta",
    "read_cursor",
    "read_entry",
    "seal",
    "with_prefix",
]

STORE_FORMAT: Final = 2
KEY_BYTES_PLAIN_MAX: Final = 500
"""LMDB takes 511 bytes; a longer entry key is stored by its digest."""
LONG_PREFIX: Final = b"\xff\xff"
"""No partition has this number (PARTITIONS_MAX), so long keys sort behind all others."""
DIGEST_BYTES: Final = 16

VALUE_HEAD: Final = struct.Struct("<QQBIH")
"""version, expires_at_ms (0 never), codec, schema, length of the full key that follows."""
_CURSOR: Final = struct.Struct("<IQQ")
"""epoch, sequence, whole_from."""
_CHECKSUM: Final = struct.Struct("<I")


class Cursor(NamedTuple):
    """How far a partition is on disk.

    Attributes:
        position: Every committed change up to here is in ``entries``.
        whole_from: Below this sequence some entries are newer than the position (they were dumped
            while writes went on), so the partition is no copy yet.
    """

    position: Position
    whole_from: int

    @property
    def whole(self) -> bool:
        """Whether ``entries`` holds exactly what was committed up to the position."""
        return self.position[1] >= self.whole_from


def seal(key: bytes, body: bytes) -> bytes:
    """Put the checksum of key and body in front of the body."""
    return _CHECKSUM.pack(crc32(body, crc32(key))) + body


def open_sealed(key: bytes, data: bytes) -> bytes:
    """The body of a stored value.

    Raises:
        StoreDamaged: Key and body are not those that were written together.
    """
    body = data[_CHECKSUM.size :]
    if len(data) < _CHECKSUM.size or _CHECKSUM.unpack_from(data)[0] != crc32(body, crc32(key)):
        raise StoreDamaged(f"the checksum of the stored key {key[:40].hex()} does not hold")
    return body


def entry_key(partition: int, name: str, key: bytes, prefix: bytes | None = None) -> bytes:
    """Key of an entry in the database ``entries``.

    Args:
        partition: Its partition.
        name: Map name.
        key: Key bytes.
        prefix: ``partition`` as u16 BE, where the caller has it.

    Returns:
        Partition u16 BE, length of the map name u8, map name, key. Where that is over 500 bytes:
        FF FF, then the same with the key's 16-byte BLAKE2b digest in its place.
    """
    partition_bytes = partition.to_bytes(2, "big") if prefix is None else prefix
    name_bytes = name.encode()
    head = partition_bytes + len(name_bytes).to_bytes(1, "big") + name_bytes
    if len(head) + len(key) <= KEY_BYTES_PLAIN_MAX:
        return head + key
    return LONG_PREFIX + head + hashlib.blake2b(key, digest_size=DIGEST_BYTES).digest()


def pack_value(
    stored_key: bytes,
    key: bytes,
    value: bytes,
    codec: int,
    version: int,
    expires_at_ms: int,
    schema: int,
) -> bytes:
    """Value of an entry in the database ``entries``, for its key there."""
    head = VALUE_HEAD.pack(version, expires_at_ms, codec, schema, len(key))
    return seal(stored_key, head + key + value)


def change_value(stored_key: bytes, change: Change) -> bytes:
    """Value of an entry as a log record has it; it must not be a delete."""
    _, schema, key, value, codec, version, expires_at_ms, _ = change
    assert value is not None
    return pack_value(stored_key, key, value, codec, version, expires_at_ms, schema)


def read_entry(stored_key: bytes, data: bytes) -> Entry:
    """An entry, from its key and value in the database ``entries``.

    Raises:
        StoreDamaged: The checksum does not hold.
    """
    body = open_sealed(stored_key, data)
    try:
        version, expires_at_ms, codec, schema, size = VALUE_HEAD.unpack_from(body)
        start = 3 if not stored_key.startswith(LONG_PREFIX) else 5
        name = stored_key[start : start + stored_key[start - 1]].decode()
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise StoreDamaged(f"the entry {stored_key[:40].hex()} can't be read: {error}") from error
    end = VALUE_HEAD.size + size
    return name, schema, body[VALUE_HEAD.size : end], body[end:], codec, version, expires_at_ms


def entry_prefixes(partition: int) -> tuple[bytes, bytes]:
    """Prefixes of all keys of a partition: those in full, those by digest."""
    head = partition.to_bytes(2, "big")
    return head, LONG_PREFIX + head


def meta_key(what: bytes, partition: int) -> bytes:
    """Key in the database ``meta``: ``what`` is ``b"cursor/"`` or ``b"streams/"``."""
    return what + partition.to_bytes(2, "big")


def partition_of_meta(key: bytes) -> int:
    """The partition that a key of `meta_key` is about."""
    return int.from_bytes(key[-2:], "big")


def pack_cursor(partition: int, cursor: Cursor) -> bytes:
    """Value of a partition's cursor in ``meta``."""
    body = _CURSOR.pack(*cursor.position, cursor.whole_from)
    return seal(meta_key(b"cursor/", partition), body)


def read_cursor(key: bytes, data: bytes) -> Cursor:
    """A partition's cursor, from its key and value in ``meta``.

    Raises:
        StoreDamaged: The checksum does not hold.
    """
    epoch, sequence, whole_from = _CURSOR.unpack(open_sealed(key, data))
    return Cursor((epoch, sequence), whole_from)


def with_prefix(
    cursor: Any, prefix: bytes, after: bytes | None = None
) -> Iterator[tuple[bytes, bytes]]:
    """Pairs whose key begins with a prefix, in order; those behind ``after`` where it is given."""
    if not cursor.set_range(prefix if after is None else after + b"\0"):
        return
    for key, value in cursor.iternext():
        if not key.startswith(prefix):
            return
        yield key, value
