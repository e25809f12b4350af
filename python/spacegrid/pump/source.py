"""What a pump reads: the log, the cursors and the tables of one node.

`spacegrid._core.Node` is one; tests bring an in-memory one that can be crashed at every step.

Who calls: `spacegrid.pump.pump`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

from spacegrid.sink.base import Change, Entry, Position

__all__ = ["LogBatch", "LogSource", "Role"]

Role: TypeAlias = tuple[int, int, int, int, int, int, int, int]
"""(partition, role, epoch, version, commit_epoch, commit_sequence, entries, bytes); role: 0 none,
1 primary, 2 backup, 3 tail, 4 joining, 5 dormant."""

LogBatch: TypeAlias = tuple[int, Position, Position, int, list[Change]]
"""(epoch of ownership, first, last, record count, changes)."""


class LogSource(Protocol):
    """One node, as its pumps see it. Every method may be called from any thread."""

    def roles(self) -> Sequence[Role]:
        """One row per partition that this node holds a copy of."""

    def set_cursor(self, name: str, partition: int, epoch: int, sequence: int) -> bool:
        """Start or move a cursor; False: that position is not in the log (a gap)."""

    def advance_cursor(self, name: str, partition: int, epoch: int, sequence: int) -> bool:
        """As `set_cursor`, never backwards; False: there is no such cursor any more."""

    def drop_cursor(self, name: str, partition: int) -> None:
        """Remove a cursor; it no longer pins the log."""

    def set_persisted(self, partition: int, epoch: int, sequence: int) -> None:
        """Say that this node's own disk has the partition, fsynced, up to that position."""

    def shared_may_read(self, partition: int, sequence: int) -> bool:
        """Whether every in-sync copy with a disk has fsynced up to there."""

    def wait_local(self, timeout_s: float) -> bool:
        """Wait until woken, for the local pump; whether an answer waits for its disk."""

    def wake_local(self) -> None:
        """End `wait_local`, the one under way or the next."""

    def pump_ready(self, name: str) -> list[int]:
        """Partitions with committed records past the cursor, or without a cursor."""

    def read_log(
        self, name: str, partition: int, max_records: int, max_bytes: int
    ) -> LogBatch | None:
        """Whole committed records after the cursor, at least one if there is any."""

    def snapshot(
        self, partition: int, after: bytes, max_bytes: int
    ) -> tuple[Position, list[Entry], bytes]:
        """One chunk of the committed tables; LookupError when no complete copy is held here."""

    def streams(self, partition: int) -> bytes:
        """Request results of a partition, opaque."""

    def read_entry(self, map: str, key: bytes, now_ms: int) -> tuple[bytes, int, int, int] | None:
        """(value, codec, version, expires_at_ms); LookupError when not the primary of that key."""

    def status(self) -> dict[str, int]:
        """Counters, `log_bytes` among them."""
