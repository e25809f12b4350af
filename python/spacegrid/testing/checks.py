"""What a recorded history must keep to, whatever went wrong while it was recorded.

* One copy: each key's history is linearizable (`linearizable`).
* Versions: an answer that began after another one ended never has an older version.
* Epochs: no write is acknowledged in an old epoch that began after a newer one's acknowledgement.
* Counters: the sum is the number of increments that surely happened; less is lost, more is twice.

Pure. Who calls: chaos, and users' own tests.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from spacegrid.testing.history import Operation, Status, by_key, unpack_version
from spacegrid.testing.linearizable import check_key

__all__ = ["Violation", "check_counters", "check_epochs", "check_history", "check_versions"]


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise.

    Attributes:
        kind: lost, twice, order, version, epoch, empty, unhealed, refused or failed.
        text: What was seen.
    """

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def check_history(operations: Sequence[Operation]) -> list[Violation]:
    """Check everything that a history alone can tell."""
    found: list[Violation] = []
    for key, listed in by_key(operations).items():
        text = check_key(listed)
        if text:
            found.append(Violation("order", f"key {key}: {text}"))
        found += check_versions(listed)
    return found + check_epochs(operations) + check_counters(operations)


def check_versions(operations: Iterable[Operation]) -> list[Violation]:
    """Look for an answer of one key with an older version than one that it follows.

    Writes must have newer ones, reads may repeat one.
    """
    answered = [o for o in operations if o.status is Status.OK and o.version]
    return [
        Violation("version", f"an older version after a newer one\n  {earlier}\n  {later}")
        for earlier, later in _overtaken(answered, lambda o: o.version)
    ]


def check_epochs(operations: Iterable[Operation]) -> list[Violation]:
    """Look for writes acknowledged in an epoch that had surely ended when they were sent."""
    partitions: dict[int, list[Operation]] = {}
    for operation in operations:
        wrote = operation.kind in ("put", "replace") and operation.version
        if wrote and operation.status is Status.OK:
            partitions.setdefault(operation.partition, []).append(operation)
    return [
        Violation("epoch", f"an old epoch acknowledged a write\n  {earlier}\n  {later}")
        for listed in partitions.values()
        for earlier, later in _overtaken(listed, lambda o: unpack_version(o.version)[0])
    ]


def _overtaken(
    operations: Iterable[Operation], rank: Callable[[Operation], int]
) -> list[tuple[Operation, Operation]]:
    """Pairs where the second began after the first ended, and ranks below it."""
    pairs: list[tuple[Operation, Operation]] = []
    open_ends: list[tuple[float, int, Operation]] = []
    highest: Operation | None = None
    for number, operation in enumerate(sorted(operations, key=lambda o: o.began)):
        while open_ends and open_ends[0][0] < operation.began:
            ended = heapq.heappop(open_ends)[2]
            if highest is None or rank(ended) > rank(highest):
                highest = ended
        if highest is not None and rank(operation) < rank(highest):
            pairs.append((highest, operation))
        heapq.heappush(open_ends, (operation.ended, number, operation))
    return pairs


def check_counters(operations: Iterable[Operation]) -> list[Violation]:
    """Compare each counter's last sum with the increments that surely happened.

    Only keys that see nothing but incr by 1 and get, whose increments are all definite, and whose
    last operation is a get after all of them.
    """
    found: list[Violation] = []
    for key, listed in by_key(operations).items():
        kinds = {operation.kind for operation in listed}
        if "incr" not in kinds or not kinds <= {"incr", "get"}:
            continue
        last = listed[-1]
        added = [o for o in listed if o.kind == "incr" and o.status is not Status.FAILED]
        definite = all(o.status is Status.OK and o.ended <= last.began for o in added)
        if last.kind != "get" or last.status is not Status.OK or not definite:
            continue
        expected = sum(operation.argument for operation in added)
        total = last.result or 0
        if total != expected:
            kind = "lost" if total < expected else "twice"
            found.append(
                Violation(kind, f"counter {key} is {total}, acknowledged increments {expected}")
            )
    return found
