"""The unit that the simulated nodes run: it counts, in two entries that must always agree.

A handler may wait between what it reads and what it writes, as one that calls another unit does.
Nobody else's turn for its routing key may get between.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec
from spacegrid import _core

from .schedule import MS

if TYPE_CHECKING:
    from .node import NodeProcess

HANDLER = "Count.add"
MAP = "turns"
HANDLER_ERROR = 14
WAITS = 0.4
RAISES = 0.05


def mirror(key: bytes) -> bytes:
    """The second entry of a routing key."""
    return b"{" + key + b"}:mirror"


def run_turn(process: NodeProcess, turn: _core.Turn) -> None:
    """Begin one handler: read both entries, and perhaps wait before it goes on."""
    key = turn.routing_key
    try:
        first, second = turn.get(MAP, key), turn.get(MAP, mirror(key))
    except _core.TurnOver:
        return
    if first != second:
        process.world.audit.violation(
            f"a turn sees half of another: {first!r} and {second!r} of {key!r}"
        )
    value = msgspec.msgpack.encode((msgspec.msgpack.decode(first) if first else 0) + 1)
    if process.chance.random() < WAITS:
        delay = process.chance.expovariate(1 / process.world.options.turn_ms) * MS
        process.schedule.after(delay, process.do, partial(_go_on, process, turn, value))
    else:
        _go_on(process, turn, value)


def _go_on(process: NodeProcess, turn: _core.Turn, value: bytes) -> None:
    """Write what was counted to both entries, or raise with one of them written."""
    key = turn.routing_key
    try:
        turn.put(MAP, 0, key, value, 1)
        if process.chance.random() < RAISES:
            following = turn.fail(HANDLER_ERROR, b"", process.wall_ms())
        else:
            turn.put(MAP, 0, mirror(key), value, 1)
            following = turn.finish(value, process.wall_ms())
    except _core.TurnOver:
        return
    for one in following:
        process.begin_turn(one)
