"""Every bound of spacegrid in one table; the same numbers as ``rust/core/src/limits.rs``.

A limit reached is an error that names the value and the limit. Sizes are bytes of the packed form.
"""

from __future__ import annotations

from typing import Final

KEY_BYTES_MAX: Final = 4096
VALUE_BYTES_MAX: Final = 1 << 20
NAME_BYTES_MAX: Final = 255
TUPLE_PARTS_MAX: Final = 32
NESTING_MAX: Final = 32
"""How deep calls of units may nest, and how deep a packed value may."""

FRAME_BYTES_MAX: Final = 256 * 1024
"""The client starts a new frame here; one larger value travels alone."""
FRAME_OPERATIONS_MAX: Final = 1000
FRAME_BYTES_HARD_MAX: Final = 1_114_112
"""No frame between client and node is larger: one value of the largest size with its key."""
PEER_FRAME_BYTES_MAX: Final = 5 << 20

RECORD_BYTES_MAX: Final = 4 << 20
RECORD_OPERATIONS_MAX: Final = 10_000
LOG_BYTES_DEFAULT: Final = 64 << 20
"""Log kept in memory by one node, over all its partitions, before writes are pushed back."""
SNAPSHOT_CHUNK_BYTES: Final = 256 * 1024

PARTITIONS_MAX: Final = 65_535
PARTITIONS_DEFAULT: Final = 1024
PATH_BYTES_MAX: Final = 64
STREAM_RESULTS_MAX: Final = 100_000
"""Request results kept per partition and request stream."""

FRAME_WINDOW: Final = 4
"""Frames in flight to one node, about: a smaller one waits up to a millisecond to fill."""
STALE_AGE_MS_DEFAULT: Final = 10_000
"""How far a stale read may be behind where the caller names nothing else."""
PAGE_ENTRIES: Final = 1000
"""Entries per page of a scan."""

MESSAGE_BYTES_MAX: Final = 5 << 20
"""Largest gRPC message that a channel or server takes."""
