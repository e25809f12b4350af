"""Reading a partition whole, while it is written, for a sink that can't go on from the log.

The first chunk names a position; the log is pinned there, and everything after it is read from the
log later. So a chunk may already hold newer images: the log brings them again, in order, and ends
at the same state.

Who calls: `spacegrid.pump.pump`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from spacegrid.limits import SNAPSHOT_CHUNK_BYTES
from spacegrid.pump.source import LogSource
from spacegrid.sink.base import Entry, Resync

__all__ = ["begin_resync", "group_by_size"]

RESYNC_ENTRIES_MAX: Final = 200_000
"""Entries of the partitions that are rewritten in one transaction; a larger one goes alone."""
RESYNC_ATTEMPTS: Final = 3


def group_by_size(partitions: Sequence[int], entries: Mapping[int, int]) -> Iterator[list[int]]:
    """Groups of at most `RESYNC_ENTRIES_MAX` entries together, or one larger partition.

    A shared sink looks through its tables once per group, not once per partition.

    Args:
        partitions: All of them.
        entries: Partition to its number of entries.
    """
    group: list[int] = []
    size = 0
    for partition in partitions:
        count = entries.get(partition, 0)
        if group and size + count > RESYNC_ENTRIES_MAX:
            yield group
            group, size = [], 0
        group.append(partition)
        size += count
    if group:
        yield group


def begin_resync(source: LogSource, name: str, partition: int, epoch: int) -> Resync | None:
    """Read the first chunk and pin the log where it was read.

    Args:
        source: The node.
        name: The pump's cursor, which is set.
        partition: Which.
        epoch: Epoch under which the node owns it.

    Returns:
        None when no complete copy is here, or the log moved on each time: look again later.
    """
    for _ in range(RESYNC_ATTEMPTS):
        try:
            position, entries, after = source.snapshot(partition, b"", SNAPSHOT_CHUNK_BYTES)
        except LookupError:
            return None
        if source.set_cursor(name, partition, *position):
            return Resync(partition, epoch, position, _chunks(source, partition, entries, after))
    return None


def _chunks(
    source: LogSource, partition: int, entries: list[Entry], after: bytes
) -> Iterator[list[Entry]]:
    yield entries
    while after:
        _, entries, after = source.snapshot(partition, after, SNAPSHOT_CHUNK_BYTES)
        yield entries
