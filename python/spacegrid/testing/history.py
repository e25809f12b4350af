"""What clients saw: each operation with its interval, outcome and version.

An operation is *ok* (answered), *failed* (surely not applied), *unknown* (no definite answer: it
may have been applied at any time after it began, or never), or *lost* (its partition said that it
has lost every copy). Times are whatever the recorder counts in, all from one clock.

Pure data: nothing here reads a clock. Who calls: `linearizable`, `checks`, the recorders of chaos
and simulation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

__all__ = ["EPOCH_SHIFT", "HIDDEN", "Hidden", "Operation", "Status", "by_key", "unpack_version"]

EPOCH_SHIFT: Final = 40
"""A version is (epoch, sequence): the sequence takes the lower 40 bits."""


class Status(Enum):
    """How an operation ended."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"
    LOST = "lost"


class Hidden(Enum):
    """Stands for what an answer does not say."""

    HIDDEN = "hidden"


HIDDEN: Final = Hidden.HIDDEN


@dataclass(slots=True)
class Operation:
    """One operation on one key.

    Attributes:
        kind: get, put, put_if_absent, replace, delete or incr; expire, for a history that knows how
            long entries were to live: the entry with that value may end at any time from then on.
        key: Names map and key; whatever is told apart by it is one object.
        argument: Value written; for replace (value expected, value written); for incr the amount;
            for expire the value.
        result: get: the value, None when absent. put_if_absent, replace: whether it was written.
            delete: whether there was an entry. incr: the sum.
        began: When it was first sent.
        ended: When the definite answer came.
        status: How it ended.
        version: Version that the answer carried, 0: none.
        partition: Partition of its key.
        worker: Who asked.
        sends: How often it was sent.
        note: The error, where there was one.
        shown: The value that a refused put_if_absent or replace showed, HIDDEN: none was shown.
    """

    kind: str
    key: str
    argument: Any = None
    result: Any = None
    began: float = 0.0
    ended: float = 0.0
    status: Status = Status.UNKNOWN
    version: int = 0
    partition: int = 0
    worker: int = 0
    sends: int = 1
    note: str = ""
    shown: Any = HIDDEN

    def __str__(self) -> str:
        shown = "" if self.argument is None else repr(self.argument)
        answer = repr(self.result) if self.status is Status.OK else self.status.value
        version = f" version {unpack_version(self.version)}" if self.version else ""
        end = f"{self.ended:.4f}" if self.status is not Status.UNKNOWN else "?"
        return (
            f"[{self.began:.4f}, {end}] worker {self.worker} {self.kind} {self.key}({shown})"
            f" -> {answer}{version}{' sent ' + str(self.sends) if self.sends > 1 else ''}"
        )


def unpack_version(version: int) -> tuple[int, int]:
    """Split a version into epoch and sequence."""
    return version >> EPOCH_SHIFT, version & ((1 << EPOCH_SHIFT) - 1)


def by_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """Sort operations by key, each key's in the order in which they began."""
    found: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        found[operation.key].append(operation)
    for listed in found.values():
        listed.sort(key=lambda operation: operation.began)
    return dict(found)
