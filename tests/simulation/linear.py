"""Is the history of one key linearizable? Wing and Gong's search with Lowe's memory of what failed.

The object is one entry. Values put are unique, so a version stands for a value, and whatever shows
a version or a value (also the refusal of a condition) says exactly which state it saw. An unknown
call may take effect at any time after its begin, or never; an entry with a time to live may end at
any time from then on; a failed call never took effect. `spacegrid.testing.linearizable` judges by
value alone and is for users; this one also holds versions and expiry to account.

Source: Wing and Gong, Testing and Verifying Concurrent Objects (1993); Lowe, Testing for
Linearizability (2017).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .history import FAILED, OK, Call

STEPS_MAX = 400_000
"""Steps of one search; past it the key counts as undecided, which is an error of its own."""
CONFLICT = 2
MISS = 1
NEVER = 1 << 62
READS = ("get", "turn_get")


@dataclass(slots=True, frozen=True)
class _Step:
    """A call, or the end of an entry's time, as the search takes it."""

    begin: int
    end: int
    kind: str
    argument: Any
    seen: Any
    text: str


def check_key(calls: Iterable[Call], slack_us: int | None = 200_000) -> str:
    """Look for an order of a key's calls in which every answer is right.

    Args:
        calls: All calls of the key.
        slack_us: How early an entry may end, as clocks differ; None: any time after it was put.

    Returns:
        Empty when there is one; else what is wrong.
    """
    calls = [call for call in calls if call.outcome != FAILED]
    values: dict[int, Any] = {}
    for call in calls:
        wrong = _learn(values, call)
        if wrong:
            return wrong
    steps = []
    for call in calls:
        if call.outcome == OK or call.kind not in READS:
            steps.append(_step(call, values))
            if call.ttl_ms and not (call.outcome == OK and call.status == CONFLICT):
                early = call.ttl_ms * 900 - slack_us if slack_us is not None else 0
                begin = call.begin_us + max(0, early)
                steps.append(_Step(begin, NEVER, "expire", call.argument, None, "expire"))
    return _search(sorted(steps, key=lambda step: (step.begin, step.end)))


def _learn(values: dict[int, Any], call: Call) -> str:
    """A version stands for one value, for ever."""
    if call.outcome != OK or not call.version or call.kind in ("incr", "turn", "delete"):
        return ""
    wrote = call.kind in ("put", "absent", "cas") and call.status == 0
    value = call.argument if wrote else call.value
    known = values.setdefault(call.version, value)
    if known != value:
        epoch, sequence = call.version >> 40, call.version & ((1 << 40) - 1)
        return f"version ({epoch}, {sequence}) stands for {known!r} and for {value!r}: {call}"
    return ""


def _step(call: Call, values: dict[int, Any]) -> _Step:
    known = call.outcome == OK
    kind = call.kind if known else f"{call.kind}?"
    argument, seen = call.argument, call.value
    if call.kind == "cas":
        argument = (values.get(call.expected, ("never seen", call.expected)), call.argument)
    if known and call.status == CONFLICT:
        kind = f"{call.kind} refused"
        seen = call.value if call.version else None
    elif known and call.status == MISS and call.kind == "delete":
        kind, seen = "get", None
    end = call.end_us if known else NEVER
    return _Step(call.begin_us, end, kind, argument, seen, str(call))


def _apply(state: Any, step: _Step) -> tuple[bool, Any]:
    """One step on one copy: whether it may have been answered so, and the state after it."""
    match step.kind:
        case "get" | "turn_get":
            return state == step.seen, state
        case "put" | "put?":
            return True, step.argument
        case "absent":
            return state is None, step.argument
        case "absent?":
            return state is None, step.argument
        case "absent refused":
            return state is not None and state == step.seen, state
        case "cas" | "cas?":
            expected, value = step.argument
            return state is not None and state == expected, value
        case "cas refused":
            return state == step.seen and state != step.argument[0], state
        case "delete":
            return state is not None, None
        case "delete?":
            return state is not None, None
        case "incr" | "turn":
            total = (state or 0) + step.argument
            seen = step.seen if isinstance(step.seen, int) else None
            return total == seen, total
        case "incr?" | "turn?":
            return True, (state or 0) + step.argument
        case "expire":
            return state is not None and state == step.argument, None
    raise ValueError(step.kind)


def _search(steps: list[_Step]) -> str:
    must = 0
    for index, step in enumerate(steps):
        if step.end != NEVER:
            must |= 1 << index
    tried: set[tuple[int, Any]] = set()
    best, taken = 0, 0
    stack = [(0, None, _candidates(steps, 0))]
    while stack:
        done, state, candidates = stack[-1]
        if done & must == must:
            return ""
        if not candidates:
            stack.pop()
            continue
        taken += 1
        if taken > STEPS_MAX:
            return f"undecided after {STEPS_MAX:,} steps; {_about(steps, best)}"
        index = candidates.pop()
        fits, after = _apply(state, steps[index])
        if not fits:
            continue
        mark = (done | 1 << index, after)
        if mark in tried:
            continue
        tried.add(mark)
        if (mark[0] & must).bit_count() > (best & must).bit_count():
            best = mark[0]
        stack.append((mark[0], after, _candidates(steps, mark[0])))
    return f"no order explains what was answered; {_about(steps, best)}"


def _candidates(steps: list[_Step], done: int) -> list[int]:
    """Steps that may be next: begun before any other open one ended. Best to try is last."""
    first_end = NEVER
    found = []
    for index in range((~done & (done + 1)).bit_length() - 1, len(steps)):
        if done >> index & 1:
            continue
        step = steps[index]
        if step.begin > first_end:
            break
        found.append(index)
        first_end = min(first_end, step.end)
    found.sort(key=lambda index: steps[index].end, reverse=True)
    return found


def _about(steps: list[_Step], best: int) -> str:
    left = [step for index, step in enumerate(steps) if not best >> index & 1 and step.end != NEVER]
    from_us = left[0].begin - 20_000 if left else 0
    near = [step.text for step in steps if step.end >= from_us][:14]
    return f"{len(left)} of {len(steps)} calls are left over, from:\n    " + "\n    ".join(near)
