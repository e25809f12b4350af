"""The unit that the simulated nodes run: it counts, in two entries that must always agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from spacegrid import _core

if TYPE_CHECKING:
    from .node import NodeProcess

HANDLER = "Count.add"
MAP = "turns"
HANDLER_ERROR = 14


def mirror(key: bytes) -> bytes:
    """The second entry of a routing key."""
    return b"{" + key + b"}:mirror"


def run_turn(process: NodeProcess, turn: _core.Turn) -> None:
    """Run one handler: add one to both entries, or raise."""
    key = turn.routing_key
    try:
        first, second = turn.get(MAP, key), turn.get(MAP, mirror(key))
        if first != second:
            process.world.audit.violation(
                f"a turn sees half of another: {first!r} and {second!r} of {key!r}"
            )
        value = msgspec.msgpack.encode((msgspec.msgpack.decode(first) if first else 0) + 1)
        if process.chance.random() < 0.05:
            turn.put(MAP, 0, key, value, 1)
            following = turn.fail(HANDLER_ERROR, b"", process.wall_ms())
        else:
            turn.put(MAP, 0, key, value, 1)
            turn.put(MAP, 0, mirror(key), value, 1)
            following = turn.finish(value, process.wall_ms())
    except _core.TurnOver:
        return
    for one in following:
        process.begin_turn(one)
