"""Is one key's history linearizable? The search of Wing and Gong, with Lowe's memory.

A history is linearizable when each operation can be given one moment between its beginning and its
end so that, one after another in the order of these moments, they answer as a single copy would.
The search takes, again and again, an operation that began before every other open one ended, tries
it on the state, and goes back when nothing fits; a pair (operations done, state) that failed once
is not tried again. An unknown operation may be given a moment or none. A failed one has none: a
read of its value then fits nowhere.

The object is one entry: a value or absence. Values written must be told apart (each written once),
except by incr. Pure. Who calls: `checks`, the simulator.

Source: J. Wing and C. Gong, "Testing and verifying concurrent objects" (1993); G. Lowe, "Testing
for linearizability" (2017).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from spacegrid.testing.history import Operation, Status

__all__ = ["STEPS_MAX", "apply", "check_key"]

STEPS_MAX: Final = 2_000_000
"""Steps of one search; past it the key counts as not checked, which is an error of its own."""
_SHOWN: Final = 12
_NEVER: Final = float("inf")


def apply(state: Any, operation: Operation) -> tuple[bool, Any]:
    """Do one operation on a single copy.

    Args:
        state: The value, None: no entry.
        operation: What is done. Its result counts only where it is ok.

    Returns:
        Whether it may have answered what it did, and the state after it.
    """
    known = operation.status is Status.OK
    argument, result = operation.argument, operation.result
    match operation.kind:
        case "get":
            return not known or result == state, state
        case "put":
            return True, argument
        case "put_if_absent":
            written = state is None
            return not known or result is written, argument if written else state
        case "replace":
            expected, value = argument
            written = state is not None and state == expected
            return not known or result is written, value if written else state
        case "delete":
            return not known or result is (state is not None), None
        case "incr":
            total = (state or 0) + argument
            return not known or result == total, total
    raise ValueError(f"operation {operation.kind!r} is not one that a key knows")


def check_key(operations: Iterable[Operation], initial: Any = None) -> str:
    """Look for an order that explains one key's history.

    Args:
        operations: All operations of the key, whatever their outcome.
        initial: The value before the first one; None: no entry.

    Returns:
        Empty when there is one; else what was found, with the operations around it.
    """
    counted = [
        operation
        for operation in operations
        if operation.status is Status.OK
        or (operation.status is Status.UNKNOWN and operation.kind != "get")
    ]
    counted.sort(key=lambda operation: operation.began)
    return _Search(counted, initial).run()


class _Search:
    """One search. Operations are bits of a number: those that have been given their moment."""

    def __init__(self, operations: Sequence[Operation], initial: Any) -> None:
        self._operations = operations
        self._initial = initial
        self._ends = [
            operation.ended if operation.status is Status.OK else _NEVER for operation in operations
        ]
        self._must = sum(1 << index for index, end in enumerate(self._ends) if end is not _NEVER)

    def run(self) -> str:
        tried: set[tuple[int, Any]] = set()
        best = 0
        # A stack of (done, state, candidates left to try).
        stack = [(0, self._initial, self._candidates(0))]
        steps = 0
        while stack:
            done, state, candidates = stack[-1]
            if done & self._must == self._must:
                return ""
            if not candidates:
                stack.pop()
                continue
            steps += 1
            if steps > STEPS_MAX:
                return f"not decided within {STEPS_MAX:,} steps; {self._about(best)}"
            index = candidates.pop()
            fits, after = apply(state, self._operations[index])
            if not fits:
                continue
            now = done | 1 << index
            mark = (now, _hashable(after))
            if mark in tried:
                continue
            tried.add(mark)
            if now.bit_count() > best.bit_count():
                best = now
            stack.append((now, after, self._candidates(now)))
        return f"no order explains these answers; {self._about(best)}"

    def _candidates(self, done: int) -> list[int]:
        """Operations that may come next: they began before every open one has ended."""
        first_end = _NEVER
        found: list[int] = []
        index = _lowest_open(done)
        for position in range(index, len(self._operations)):
            if done >> position & 1:
                continue
            if self._operations[position].began > first_end:
                break
            found.append(position)
            first_end = min(first_end, self._ends[position])
        # The last one of the list is tried first: certain before unknown, early end before late.
        found.sort(key=lambda position: self._ends[position], reverse=True)
        return found

    def _about(self, best: int) -> str:
        first = _lowest_open(best)
        window = self._operations[max(0, first - _SHOWN // 2) : first + _SHOWN // 2]
        return f"the longest order explains {best.bit_count()} of {len(self._operations)}:\n" + (
            "\n".join(f"  {operation}" for operation in window)
        )


def _lowest_open(done: int) -> int:
    """Index of the lowest bit that is not set."""
    return (~done & (done + 1)).bit_length() - 1


def _hashable(state: Any) -> Any:
    return (
        state
        if isinstance(state, (int, str, bytes, float, tuple)) or state is None
        else repr(state)
    )
