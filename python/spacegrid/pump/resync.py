"""Reading a partition whole, while it is written, for a sink that can't go on from the log.

The first chunk names a position; the log is pinned there, and everything after it is read from the
log later. So a chunk may already hold newer images: the log brings them again, in order, and ends
at the same state. Up to where it may, the last chunk tells: a local sink calls its copy whole only
from there on, and a shared sink commits only what the copies' own disks have.

Who calls: `spacegrid.pump.pump`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from spacegrid.limits import SNAPSHOT_CHUNK_BYTES
from spacegrid.pump.source import LogSource
from spacegrid.sink.base import Entry, Resync

__all__ = ["begin_resync", "group_by_size", "wait_persisted"]

RESYNC_ENTRIES_MAX: Final = 200_000
"""Entries of the partitions that are rewritten in one transaction; a larger one goes alone."""
RESYNC_ATTEMPTS: Final = 3
PERSIST_TIMEOUT_S: Final = 10.0
"""How long a dump waits for the copies' disks before it is begun anew."""
PERSIST_POLL_S: Final = 0.01


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
            chunks = _Chunks(source, name, partition, position[1], entries, after)
            results = partial(source.streams, partition)
            return Resync(partition, epoch, position, chunks, chunks.reached, results)
    return None


class _Chunks:
    """The chunks of one partition, read once; what they reach to is known after the last one."""

    def __init__(
        self,
        source: LogSource,
        name: str,
        partition: int,
        sequence: int,
        entries: list[Entry],
        after: bytes,
    ) -> None:
        self._end = sequence
        self._source = source
        self._shared = name == "shared"
        self._partition = partition
        self._first = entries
        self._after = after

    def __iter__(self) -> Iterator[list[Entry]]:
        yield self._first
        after = self._after
        while after:
            position, entries, after = self._source.snapshot(
                self._partition, after, SNAPSHOT_CHUNK_BYTES
            )
            self._end = max(self._end, position[1])
            yield entries
        if self._shared:
            wait_persisted(self._source, self._partition, self._end)

    def reached(self) -> int:
        """Sequence up to which entries may be newer than the position of the first chunk."""
        return self._end


def wait_persisted(source: LogSource, partition: int, sequence: int) -> None:
    """Return when a restart from the copies' own disks is not behind that sequence.

    Raises:
        LookupError: It takes longer than `PERSIST_TIMEOUT_S`.
    """
    deadline_s = time.monotonic() + PERSIST_TIMEOUT_S
    while not source.shared_may_read(partition, sequence):
        if time.monotonic() > deadline_s:
            raise LookupError(f"partition {partition} is not on its copies' disks yet")
        time.sleep(PERSIST_POLL_S)
