"""What a person sees of a pump.

Who calls: the node's status and metrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["PumpState", "PumpStatus"]

PumpState: TypeAlias = Literal["starting", "running", "retrying", "refused", "failed", "stopped"]


@dataclass(frozen=True, slots=True)
class PumpStatus:
    """A pump at one moment.

    Attributes:
        name: "shared" or "local".
        sink: The sink's name, without credentials.
        state: "retrying": the sink is away and nothing is dropped; "refused": it belongs to another
            cluster or layout, the pump has ended; "failed": the node's own disk did.
        partition_count: Partitions that it writes now.
        lag_records: Committed records not yet in the sink.
        lag_ms: How long the oldest of them has been known to the pump; 0 when there is none.
        written_records: Records carried over since the start.
        written_rows: Rows written or deleted, after coalescing.
        batch_count: Transactions.
        resync_count: Partitions rewritten whole because their position was not in the log.
        parked_count: Dead letters that wait for an operator, of these partitions.
        error: Why the last attempt failed; "" when it did not.
    """

    name: str
    sink: str
    state: PumpState
    partition_count: int = 0
    lag_records: int = 0
    lag_ms: int = 0
    written_records: int = 0
    written_rows: int = 0
    batch_count: int = 0
    resync_count: int = 0
    parked_count: int = 0
    error: str = ""
