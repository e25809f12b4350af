"""Calls between units of an embedded grid: a client of the one core beside it.

Units submit from their thread, replies come on whichever thread carries out the core's effects, and
retries are due on the engine's tick; a lock keeps the client to one of them at a time. It is never
held while something else is called.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from spacegrid import clock
from spacegrid.node.engine import Engine
from spacegrid.transport.base import Routes
from spacegrid.wire.status import Status

if TYPE_CHECKING:
    from spacegrid._core import Client, Completion
    from spacegrid.unit import OutgoingCall

SLOT: Final = 0


class LocalCalls:
    """Submits calls of units to the core of the same process.

    Attributes:
        done: Takes finished calls: (call, status, value) each.
    """

    def __init__(self, client: Client, engine: Engine) -> None:
        self.done: Callable[[Sequence[tuple[OutgoingCall, int, bytes]]], None] = _nobody
        self._client = client
        self._engine = engine
        self._lock = threading.Lock()
        self._connection = 0

    def start(self, routes: Routes) -> None:
        """Take calls from now on."""
        self._connection = self._engine.open_connection(self._deliver)
        with self._lock:
            self._client.set_routes(routes.revision, [p - 1 for p in routes.primaries])
        self._engine.on_tick = self._tick

    def close(self) -> None:
        """Take none any more."""
        self._engine.on_tick = None
        self._engine.close_connection(self._connection)

    def submit(self, calls: Sequence[OutgoingCall]) -> None:
        """Take calls; from any thread."""
        refused: list[tuple[OutgoingCall, int, bytes]] = []
        with self._lock:
            for call in calls:
                try:
                    self._client.invoke(
                        self._client.map(call.name),
                        call.routing_key,
                        call.arguments,
                        call,
                        call.timeout_ms,
                        token=call.token,
                        chain=call.chain,
                    )
                except (ValueError, OverflowError) as error:
                    refused.append((call, Status.INVALID, str(error).encode()))
        if refused:
            self.done(refused)
        self._send()

    def _send(self) -> None:
        with self._lock:
            frames = self._client.take_frames(clock.monotonic_ms())
        for _, frame in frames:
            self._engine.node.on_client_frame(self._connection, frame, clock.now_ms())
        if frames:
            self._engine.wake()

    def _deliver(self, frame: bytes) -> None:
        with self._lock:
            completions = self._client.on_frame(SLOT, frame, clock.monotonic_ms())
        self._complete(completions)

    def _tick(self) -> None:
        now_ms = clock.monotonic_ms()
        with self._lock:
            due_ms = self._client.next_event_ms()
            if due_ms is None or due_ms > now_ms:
                return
            completions = self._client.expire(now_ms)
        self._complete(completions)
        self._send()

    def _complete(self, completions: Sequence[Completion]) -> None:
        finished: list[tuple[OutgoingCall, int, bytes]] = []
        for waiter, status, value, _, _, _, number in completions:
            finished.append((waiter, status, value or b""))
            if status == Status.UNKNOWN:
                with self._lock:
                    self._client.release(number)
        if finished:
            self.done(finished)


def _nobody(_batch: Sequence[tuple[OutgoingCall, int, bytes]]) -> None:
    """No unit host is there yet, so nothing was submitted."""
