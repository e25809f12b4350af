"""What partitions without a primary wait for, as `spacegrid status` and `partitions` show it.

The controller says why and on whom (machine/waiting.py); here are the words for it, and what an
operator can do. Who calls: node/report.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from spacegrid.machine.waiting import Why
from spacegrid.v1 import admin_pb2

__all__ = ["waiting", "waiting_text"]

#: Partitions whose numbers are written out in one line.
NUMBERS_MAX: Final = 8
_ACCEPT: Final = "spacegrid partitions accept {chosen} --longest"
_RELOAD: Final = "spacegrid partitions reload {chosen}"

#: Why, to what is waited for, and what would end it.
_WORDS: Final[dict[str, tuple[str, str]]] = {
    Why.PLACEMENT: (
        "their first placement",
        "it begins by itself, once the expected nodes are there or 3 s have passed",
    ),
    Why.HEARTBEAT: (
        "a first heartbeat of {nodes}",
        "it comes, or the registration ends, by itself",
    ),
    Why.RESTART: (
        "a heartbeat or the end of {nodes}: either the cluster went on, or all was restarted",
        "the one or the other comes by itself",
    ),
    Why.HUNG: (
        "{nodes}, hung or cut off (the copy may hold acknowledged writes)",
        "let {nodes} go on; to give the copy up, end the process",
    ),
    Why.DISK: (
        "the disk of {nodes} (it may hold acknowledged writes)",
        f"start {{nodes}} with the old data folder, or go on without it: {_ACCEPT}",
    ),
    Why.COMPLETION: (
        "{first}, which takes what it lacks from {second}",
        "it is served by itself when it has everything",
    ),
    Why.REACH: (
        "{first}, whose log must reach to where that of {second} begins",
        f"if this stays, it does not reach, and acknowledged writes are gone: {_ACCEPT}",
    ),
    Why.LOST_DISK_AWAY: (
        "an operator: {nodes} crashed, and the disk, which may be behind, is not there",
        f"start {{nodes}} with the old data folder, then {_ACCEPT}; or {_RELOAD}",
    ),
    Why.LOST_DISK_THERE: (
        "an operator: the disk at {nodes} may be behind what was acknowledged",
        f"{_ACCEPT}, or {_RELOAD}",
    ),
    Why.LOST: (
        "an operator: nothing is left of the copies of {nodes}",
        f"{_RELOAD}, or spacegrid partitions accept {{chosen}} --empty",
    ),
}


def waiting(controller: admin_pb2.ControllerStatus) -> list[dict[str, Any]] | None:
    """What the controller says of it; None: none answers that could know.

    Returns:
        One item a group of partitions: ``partitions``, ``why``, ``nodes``, and the same in words,
        ``waits_for`` and ``hint``, which are empty where a newer node says what is not known here.
    """
    if not controller.here:
        return None
    alone = len(controller.waiting) == 1
    return [_group(item, alone=alone) for item in controller.waiting]


def _group(item: admin_pb2.Waiting, *, alone: bool) -> dict[str, Any]:
    numbers = [str(partition) for partition in item.partitions]
    many = "--all" if alone else "PARTITION..."
    words = {
        "nodes": " and ".join(item.nodes),
        "first": item.nodes[0] if item.nodes else "",
        "second": item.nodes[-1] if item.nodes else "",
        "chosen": " ".join(numbers) if len(numbers) <= NUMBERS_MAX else many,
    }
    waits_for, hint = (text.format(**words) for text in _WORDS.get(item.why, ("", "")))
    return {
        "partitions": list(item.partitions),
        "why": item.why,
        "nodes": list(item.nodes),
        "waits_for": waits_for,
        "hint": hint,
    }


def waiting_text(groups: Sequence[dict[str, Any]] | None, unserved: int) -> list[str]:
    """The same for a person, one line a group.

    Args:
        groups: As `waiting` gave them.
        unserved: Partitions without a primary.
    """
    if groups is None:
        told = "WAITING: for what is not known, since no controller answers; hint: ask again"
        return [told] if unserved else []
    return [_line(group) for group in groups]


def _line(group: dict[str, Any]) -> str:
    numbers = ", ".join(map(str, group["partitions"][:NUMBERS_MAX]))
    more = ", ..." if len(group["partitions"]) > NUMBERS_MAX else ""
    count = len(group["partitions"])
    noun = "partition" if count == 1 else "partitions"
    waits_for = group["waits_for"] or f"{group['why']}: {' '.join(group['nodes'])}"
    hint = f"; hint: {group['hint']}" if group["hint"] else ""
    return f"WAITING: {count} {noun} ({numbers}{more}) for {waits_for}{hint}"
