"""The calls of one key as operations of the public checker; versions and expiry count too.

Values put are unique, so a version stands for a value, and whatever shows a version or a value
(also the refusal of a condition) says exactly which state it saw. An entry with a time to live may
end at any time from then on. A stale read was right at some moment since its age before it was
asked, for it was given later than that. The search is `spacegrid.testing.linearizable`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from spacegrid.testing.history import HIDDEN, Operation, Status
from spacegrid.testing.linearizable import check_key as check_operations

from .history import FAILED, OK, Call

CONFLICT = 2
MISS = 1
KINDS = {
    "get": "get",
    "confirmed": "get",
    "stale": "get",
    "turn_get": "get",
    "put": "put",
    "absent": "put_if_absent",
    "cas": "replace",
    "delete": "delete",
    "incr": "incr",
    "turn": "incr",
}


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
    operations = []
    for call in calls:
        operations.append(_operation(call, values))
        if call.ttl_ms and not (call.outcome == OK and call.status == CONFLICT):
            early_us = call.ttl_ms * 900 - slack_us if slack_us is not None else 0
            began = call.begin_us + max(0, early_us)
            operations.append(Operation("expire", call.key.decode(), call.argument, began=began))
    return check_operations(operations)


def _age_us(call: Call) -> int:
    """How long before its question a stale read may have been right; clocks run apart."""
    return call.age_ms * 1_020 + 2_000 if call.kind == "stale" else 0


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


def _operation(call: Call, values: dict[int, Any]) -> Operation:
    """A call as the checker takes it; a version put onto is the value that it stands for."""
    argument, result, shown = call.argument, call.value, HIDDEN
    if call.kind == "cas":
        argument = (values.get(call.expected, ("never seen", call.expected)), call.argument)
    refused = call.status == CONFLICT
    if call.kind in ("absent", "cas"):
        result = not refused
        if refused:
            shown = call.value if call.version else None
    elif call.kind == "delete":
        result = call.status != MISS
    return Operation(
        KINDS[call.kind],
        call.key.decode(),
        argument,
        result,
        began=call.begin_us - _age_us(call),
        ended=call.end_us,
        status=Status.OK if call.outcome == OK else Status.UNKNOWN,
        version=call.version,
        worker=call.client,
        note=str(call),
        shown=shown,
    )
