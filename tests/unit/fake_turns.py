"""A stand-in for the core's node as the unit host sees it, under the test's control.

It keeps the core's rules that matter here (one turn at a time per routing key, own writes first,
uncommitted records visible to the next turn, one record per turn), and lets a test decide when a
record is committed or cut. The real node runs under the same host in test_unit_grid.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from spacegrid import _core
from spacegrid.unit import Handler

Stored = tuple[bytes, int, int, int]


class FakeTurn:
    def __init__(self, node: FakeNode, name: str, key: bytes, arguments: bytes, token: Any) -> None:
        self.node = node
        self.handler = name
        self.arguments = arguments
        self.routing_key = key
        self.partition = 0
        self.token = token
        self.chain: list[bytes] = []
        self.writes: dict[tuple[str, bytes], Stored | None] = {}
        self.read_sequence = 0
        self.over = False
        self.status: int | None = None
        self.value = b""

    def _check(self, key: bytes) -> None:
        if self.over:
            raise _core.TurnOver("the turn has ended")
        if _core.routing_key(key) != self.routing_key:
            raise _core.WrongRoutingKey("another routing key")

    def get_entry(self, map: str, key: bytes) -> Stored | None:
        self._check(key)
        if (map, key) in self.writes:
            return self.writes[map, key]
        sequence, entry = self.node.table.get((map, key), (0, None))
        self.read_sequence = max(self.read_sequence, sequence)
        return entry

    def get(self, map: str, key: bytes) -> bytes | None:
        entry = self.get_entry(map, key)
        return None if entry is None else entry[0]

    def put(
        self, map: str, schema: int, key: bytes, value: bytes, codec: int, expires_at_ms: int = 0
    ) -> None:
        self._check(key)
        self.writes[map, key] = (value, codec, 0, expires_at_ms)

    def delete(self, map: str, key: bytes) -> bool:
        found = self.get_entry(map, key) is not None
        self.writes[map, key] = None
        return found

    def barrier(self) -> tuple[int, int] | None:
        return (0, self.read_sequence) if self.read_sequence > self.node.committed else None

    def finish(self, reply: bytes, now_ms: int) -> list[FakeTurn]:
        if self.over:
            raise _core.TurnOver("the turn has ended")
        if self.writes:
            self.node.append(self)
        return self._end(0, reply)

    def fail(self, status: int, value: bytes, now_ms: int) -> list[FakeTurn]:
        if self.over:
            raise _core.TurnOver("the turn has ended")
        return self._end(int(status), value)

    def _end(self, status: int, value: bytes) -> list[FakeTurn]:
        self.over = True
        self.status, self.value = status, value
        return self.node.next_after(self)

    @property
    def answer(self) -> Any:
        return msgspec.msgpack.decode(self.value)


class FakeNode:
    def __init__(self) -> None:
        self.table: dict[tuple[str, bytes], tuple[int, Stored | None]] = {}
        self.records: list[dict[tuple[str, bytes], Stored | None]] = []
        self.commit_at_once = True
        self.committed = 0
        self.tickets: list[tuple[int, int]] = []
        self.on_ticket: Callable[[], None] = lambda: None
        self._waiting: dict[bytes, deque[FakeTurn]] = {}
        self._numbers = 0

    def request(self, handler: Handler[..., Any], *args: Any, **kwargs: Any) -> FakeTurn:
        """A request for a handler; its turn may only start when `take` gives it."""
        key, packed = handler.bind(args, kwargs)
        self._numbers += 1
        return FakeTurn(self, handler.full_name, key, packed, (7, self._numbers, b"", 1))

    def take(self, *requests: FakeTurn) -> list[Any]:
        """Those of the requests whose turn it is; the others queue behind the running ones."""
        startable = []
        for turn in requests:
            queue = self._waiting.get(turn.routing_key)
            if queue is None:
                self._waiting[turn.routing_key] = deque()
                startable.append(turn)
            else:
                queue.append(turn)
        return startable

    def next_after(self, turn: FakeTurn) -> list[FakeTurn]:
        queue = self._waiting.get(turn.routing_key)
        if queue:
            return [queue.popleft()]
        self._waiting.pop(turn.routing_key, None)
        return []

    def append(self, turn: FakeTurn) -> None:
        self.records.append(turn.writes)
        sequence = len(self.records)
        for place, entry in turn.writes.items():
            stored = None if entry is None else (entry[0], entry[1], sequence, entry[3])
            self.table[place] = (sequence, stored)
        if self.commit_at_once:
            self.committed = sequence

    def when_committed(self, partition: int, sequence: int, ticket: int) -> bool:
        if sequence <= self.committed:
            return True
        self.tickets.append((sequence, ticket))
        self.on_ticket()
        return False
