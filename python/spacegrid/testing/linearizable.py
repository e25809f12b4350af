"""Is one key's history linearizable? The search of Wing and Gong, with a memory of what failed.

A history is linearizable when each operation can be given one moment between its beginning and its
end so that, one after another in the order of these moments, they answer as a single copy would.
The search takes, again and again, an operation that began before every other open one ended, tries
it on the state, and goes back when nothing fits. An unknown operation may be given a moment or
none. A failed one has none: a read of its value then fits nowhere.

What keeps the search short where many outcomes are unknown: a state with the same certain
operations done is not tried again when fewer or the same unknown ones had been used up before; of
unknown operations that do the same, only the one that began first is tried; all values that no
answer shows are one; and certain writes go in the order of their versions, which is the order in
which they were committed.

The object is one entry: a value or absence. Values written must be told apart (each written once),
except by incr. Pure. Who calls: `checks`, the simulator.

Source: J. Wing and C. Gong, "Testing and verifying concurrent objects" (1993); G. Lowe, "Testing
for linearizability" (2017), whose memory of (done, state) is sharpened here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

from spacegrid.testing.history import HIDDEN, Operation, Status

__all__ = ["STEPS_MAX", "apply", "check_key"]

STEPS_MAX: Final = 2_000_000
"""Steps of one search; past it the key counts as not checked, which is an error of its own."""
_SHOWN: Final = 12
_NEVER: Final = float("inf")
_UNSOUGHT: Final = ("a value that no answer shows",)
_UNSURE: Final = ("a value that no answer shows, which may have been there and ended",)


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
            return not known or _says(operation, written, state), argument if written else state
        case "replace":
            expected, value = argument
            written = state is not None and state == expected
            return not known or _says(operation, written, state), value if written else state
        case "delete":
            return not known or result is (state is not None), None
        case "incr":
            total = (state or 0) + argument
            return not known or result == total, total
        case "expire":
            return state is not None and state == argument, None
    raise ValueError(f"operation {operation.kind!r} is not one that a key knows")


def _says(operation: Operation, written: bool, state: Any) -> bool:
    """Whether a condition's answer is right: written or not, and what a refusal shows."""
    if operation.result is not written:
        return False
    return written or operation.shown is HIDDEN or operation.shown == state


def check_key(operations: Iterable[Operation], initial: Any = None) -> str:
    """Look for an order that explains one key's history.

    Args:
        operations: All operations of the key, whatever their outcome.
        initial: The value before the first one; None: no entry.

    Returns:
        Empty when there is one; else what was found, with the operations around it.

    Cost: about one step for each operation where few overlap; at most `STEPS_MAX` steps.
    """
    counted = [
        operation
        for operation in operations
        if operation.status is Status.OK
        or (operation.status is Status.UNKNOWN and operation.kind != "get")
    ]
    counted.sort(key=lambda operation: operation.began)
    return _Search(counted, _writes(counted), initial).run()


def _writes(operations: Sequence[Operation]) -> list[Operation]:
    """The operations with every value that nothing looks for replaced by the same one.

    Of entries that end, only certain writes keep values of their own: of two unknown ones that
    nobody ever saw it is not held to account whose time was over first.
    """
    if any(operation.kind == "incr" for operation in operations):
        return list(operations)
    sought: set[Any] = set()
    certain: set[Any] = set()
    for operation in operations:
        match operation.kind:
            case "get":
                sought.add(_hashable(operation.result))
            case "replace":
                sought.add(_hashable(operation.argument[0]))
            case "put" | "put_if_absent":
                if operation.status is Status.OK:
                    certain.add(_hashable(operation.argument))
        if operation.shown is not HIDDEN:
            sought.add(_hashable(operation.shown))
    ends = {_hashable(one.argument) for one in operations if one.kind == "expire"}
    sought |= certain & ends
    found = []
    for operation in operations:
        if operation.kind in ("put", "put_if_absent", "expire"):
            value = _hashable(operation.argument)
            if value not in sought:
                token = _UNSURE if value in ends else _UNSOUGHT
                operation = replace(operation, argument=token)
        elif operation.kind == "replace":
            expected, value = operation.argument
            if _hashable(value) not in sought:
                operation = replace(operation, argument=(expected, _UNSOUGHT))
        found.append(operation)
    return found


class _Search:
    """One search. Operations are bits of a number: those that have been given their moment."""

    def __init__(
        self, asked: Sequence[Operation], operations: Sequence[Operation], initial: Any
    ) -> None:
        self._asked = asked
        self._operations = operations
        self._initial = initial
        self._begins = [operation.began for operation in operations]
        self._ends = [
            operation.ended if operation.status is Status.OK else _NEVER for operation in operations
        ]
        self._must = sum(1 << index for index, end in enumerate(self._ends) if end != _NEVER)
        #: Before each unknown operation, those that do the same and began earlier; before each
        #: certain write, those of an earlier version.
        self._before = self._alike()
        self._order_versions()
        #: (certain ones done, state): the sets of unknown ones that were used up to get there.
        self._tried: dict[tuple[int, Any], list[int]] = {}

    def _alike(self) -> list[int]:
        groups: dict[tuple[str, Any], int] = {}
        before = [0] * len(self._operations)
        for index, operation in enumerate(self._operations):
            if self._ends[index] == _NEVER:
                alike = (operation.kind, _hashable(operation.argument))
                before[index] = groups.get(alike, 0)
                groups[alike] = before[index] | 1 << index
        return before

    def _order_versions(self) -> None:
        """A certain write comes after all those of earlier versions."""
        versions = sorted(
            (operation.version, index)
            for index, operation in enumerate(self._operations)
            if _wrote(operation)
        )
        earlier = same = 0
        last = 0
        for version, index in versions:
            if version != last:
                earlier, same, last = earlier | same, 0, version
            self._before[index] |= earlier
            same |= 1 << index

    def run(self) -> str:
        must = self._must
        best = 0
        # A stack of (done, state, candidates left to try).
        stack = [(0, self._initial, self._candidates(0))]
        steps = 0
        while stack:
            done, state, candidates = stack[-1]
            if done & must == must:
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
            if not self._is_new(now, after):
                continue
            if (now & must).bit_count() > (best & must).bit_count():
                best = now
            stack.append((now, after, self._candidates(now)))
        return f"no order explains these answers; {self._about(best)}"

    def _is_new(self, done: int, state: Any) -> bool:
        """Note a configuration; False when one that is no worse was tried before."""
        used = done & ~self._must
        tried = self._tried.setdefault((done & self._must, _hashable(state)), [])
        for known in tried:
            if known & used == known:
                return False
        tried[:] = [known for known in tried if known & used != used]
        tried.append(used)
        return True

    def _candidates(self, done: int) -> list[int]:
        """Operations that may come next: they began before every open one has ended."""
        begins, ends, before = self._begins, self._ends, self._before
        first_end = _NEVER
        found: list[int] = []
        for position in range(_lowest_open(done), len(begins)):
            if done >> position & 1:
                continue
            if begins[position] > first_end:
                break
            if before[position] & ~done:
                continue  # One that does the same began earlier, or has an earlier version.
            found.append(position)
            if ends[position] < first_end:
                first_end = ends[position]
        # The last one of the list is tried first: certain before unknown, early end before late.
        found.sort(key=ends.__getitem__, reverse=True)
        return found

    def _about(self, best: int) -> str:
        first = _lowest_open(best | ~self._must)
        window = self._asked[max(0, first - _SHOWN // 2) : first + _SHOWN // 2]
        explained, certain = (best & self._must).bit_count(), self._must.bit_count()
        return f"the longest order explains {explained} of {certain}:\n" + (
            "\n".join(f"  {operation}" for operation in window)
        )


def _wrote(operation: Operation) -> bool:
    """Whether it surely changed the entry, and says which version it made."""
    if operation.status is not Status.OK or not operation.version:
        return False
    if operation.kind in ("put_if_absent", "replace", "delete"):
        return operation.result is True
    return operation.kind in ("put", "incr")


def _lowest_open(done: int) -> int:
    """Index of the lowest bit that is not set."""
    return (~done & (done + 1)).bit_length() - 1


def _hashable(state: Any) -> Any:
    return (
        state
        if isinstance(state, (int, str, bytes, float, tuple)) or state is None
        else repr(state)
    )
