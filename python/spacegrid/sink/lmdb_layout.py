"""Bytes of an LMDB store: keys and values of its two databases.

docs/LMDB.md is the specification; a change here is a change of `STORE_FORMAT` in the sink. All
numbers in keys are big-endian, so that LMDB's order is theirs; all numbers in values are
little-endian.

Who calls: `spacegrid.sink.lmdb`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import Any, Final

from spacegrid.sink.base import Change, Entry

__all__ = [
    "CURSOR",
    "VALUE_HEAD",
    "change_value",
    "entry_key",
    "entry_prefixes",
    "meta_key",
    "pack_value",
    "read_entry",
    "unpack_value",
    "with_prefix",
]

KEY_BYTES_PLAIN_MAX: Final = 500
"""LMDB takes 511 bytes; a longer entry key is stored by its digest."""
LONG_PREFIX: Final = b"\xff\xff"
"""No partition has this number (PARTITIONS_MAX), so long keys sort behind all others."""
DIGEST_BYTES: Final = 16

VALUE_HEAD: Final = struct.Struct("<QQBIH")
"""version, expires_at_ms (0 never), codec, schema, length of the full key that follows."""
CURSOR: Final = struct.Struct("<IQ")
"""epoch, sequence."""


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
    key: bytes, value: bytes, codec: int, version: int, expires_at_ms: int, schema: int
) -> bytes:
    """Value of an entry in the database ``entries``."""
    return VALUE_HEAD.pack(version, expires_at_ms, codec, schema, len(key)) + key + value


def unpack_value(data: bytes) -> tuple[bytes, bytes, int, int, int, int]:
    """(key, value, codec, version, expires_at_ms, schema) of a stored value."""
    version, expires_at_ms, codec, schema, size = VALUE_HEAD.unpack_from(data)
    end = VALUE_HEAD.size + size
    return data[VALUE_HEAD.size : end], data[end:], codec, version, expires_at_ms, schema


def change_value(change: Change) -> bytes:
    """Value of an entry as a log record has it; it must not be a delete."""
    _, schema, key, value, codec, version, expires_at_ms, _ = change
    assert value is not None
    return VALUE_HEAD.pack(version, expires_at_ms, codec, schema, len(key)) + key + value


def read_entry(stored_key: bytes, data: bytes) -> Entry:
    """An entry, from its key and value in the database ``entries``."""
    key, value, codec, version, expires_at_ms, schema = unpack_value(data)
    start = 3 if not stored_key.startswith(LONG_PREFIX) else 5
    name = stored_key[start : start + stored_key[start - 1]].decode()
    return name, schema, key, value, codec, version, expires_at_ms


def entry_prefixes(partition: int) -> tuple[bytes, bytes]:
    """Prefixes of all keys of a partition: those in full, those by digest."""
    head = partition.to_bytes(2, "big")
    return head, LONG_PREFIX + head


def meta_key(what: bytes, partition: int) -> bytes:
    """Key in the database ``meta``: ``what`` is ``b"cursor/"`` or ``b"streams/"``."""
    return what + partition.to_bytes(2, "big")


def with_prefix(cursor: Any, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Pairs whose key begins with a prefix, in order."""
    if not cursor.set_range(prefix):
        return
    for key, value in cursor.iternext():
        if not key.startswith(prefix):
            return
        yield key, value
