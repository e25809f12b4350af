"""The engine of an embedded grid: the core node and the units beside it, without any socket.

One place takes the core's effects (`run_effects`) and hands each kind to who carries it out: reply
frames to connections, turns and settled tickets to the unit host. A node of a cluster has its net
thread for that (`front`). There are no other nodes here, and nobody to ask for changes.
Invariants: effects are taken by one thread at a time and carried out in the order in which they
    were taken; an error in here is a bug and goes to `fatal`, never past it. It runs on the
    caller's own loop, or in whoever calls.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from spacegrid import clock

if TYPE_CHECKING:
    from spacegrid._core import Node, Turn

TICK_S: Final = 0.01
"""Time between two ticks of the core: commit positions, expiry, snapshot chunks."""

Deliver: TypeAlias = Callable[[bytes], None]
"""Takes one reply frame of a connection; must not block and must not raise."""


class Units(Protocol):
    """What the engine asks of the unit host."""

    def run(self, turns: list[Turn]) -> None:
        """Take turns that are to be run at once."""

    def settled(self, tickets: list[int]) -> None:
        """Take tickets of records that were committed (positive) or cut (negative)."""


class Engine:
    """A core node and what its effects lead to.

    Attributes:
        node: The core node. Thread-safe; after a call from another thread, `wake()`.
        units: The unit host; None: no units.
        on_tick: Called on every tick, on the thread that ticks.
        fatal: Takes an error that must not be: the process or the grid ends.
    """

    def __init__(self, node: Node, fatal: Callable[[BaseException], None]) -> None:
        self.node = node
        self.fatal = fatal
        self.units: Units | None = None
        self.on_tick: Callable[[], None] | None = None
        self._deliver: dict[int, Deliver] = {}
        self._connections = itertools.count(1)
        self._lock = threading.Lock()
        self._again = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._scheduled = False
        self._woken = False
        self._ticker: asyncio.TimerHandle | threading.Thread | None = None
        self._closed = threading.Event()

    # ---- life

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run on this loop from now on; called on it."""
        self._loop = loop
        self._thread = threading.get_ident()
        self._tick()

    def start_inline(self) -> None:
        """Run in whoever calls, and tick in a small thread; for a blocking grid without a loop."""
        thread = threading.Thread(target=self._tick_inline, name="spacegrid-tick", daemon=True)
        self._ticker = thread
        thread.start()

    def stop(self) -> None:
        """Take no effects from now on."""
        self._closed.set()
        if isinstance(self._ticker, asyncio.TimerHandle):
            self._ticker.cancel()
        elif isinstance(self._ticker, threading.Thread) and (
            self._ticker is not threading.current_thread()
        ):
            self._ticker.join()
        self._ticker = None

    # ---- connections

    def open_connection(self, deliver: Deliver) -> int:
        """Number a new connection whose replies go to `deliver`, on the engine's loop."""
        number = next(self._connections)
        self._deliver[number] = deliver
        return number

    def close_connection(self, connection: int) -> None:
        """Forget a connection; what it asked for is still carried out."""
        if self._deliver.pop(connection, None) is not None:
            self.node.close_connection(connection)

    def client_frame(self, connection: int, frame: bytes) -> int:
        """Carry out one request frame; its replies come to the connection's `deliver`.

        Returns:
            Number of operations in the frame.

        Raises:
            FrameError: The bytes are no valid frame; nothing was carried out.
        """
        count = self.node.on_client_frame(connection, frame, clock.now_ms())
        self.soon()
        return count

    # ---- effects

    def soon(self) -> None:
        """Take effects at the end of this loop tick; called on the engine's loop (or inline)."""
        if self._loop is None:
            self.run_effects()
        elif not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.run_effects)

    def wake(self) -> None:
        """Take effects soon; from any thread. Many calls before the next loop tick are one."""
        loop = self._loop
        if loop is None:
            self.run_effects()
        elif threading.get_ident() == self._thread:
            self.soon()
        elif not self._woken:
            self._woken = True
            try:
                loop.call_soon_threadsafe(self.run_effects)
            except (
                RuntimeError
            ):  # the loop is closed: the engine has stopped, nobody waits for effects
                if not self._closed.is_set():
                    raise

    def run_effects(self) -> None:
        """Take what the core wants done and hand it on, until there is nothing left.

        A call while another thread (or this one, further up) is at it leaves the work to that one.
        """
        self._scheduled = self._woken = False
        self._again = True
        while self._again and not self._closed.is_set():
            if not self._lock.acquire(blocking=False):
                return
            try:
                self._again = False
                while (effects := self.node.take_effects()) is not None:
                    if effects.turns and self.units is not None:
                        self.units.run(effects.turns)
                    for connection, frame in effects.client_frames:
                        deliver = self._deliver.get(connection)
                        if deliver is not None:
                            deliver(frame)
                    if effects.settled and self.units is not None:
                        self.units.settled(effects.settled)
            except BaseException as error:
                self._closed.set()
                self.fatal(error)
                raise
            finally:
                self._lock.release()

    def _tick(self) -> None:
        assert self._loop is not None
        if self._closed.is_set():
            return
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        self._step()

    def _tick_inline(self) -> None:
        while not self._closed.wait(TICK_S):
            self._step()

    def _step(self) -> None:
        try:
            self.node.tick(clock.now_ms())
            if self.on_tick is not None:
                self.on_tick()
        except BaseException as error:
            self._closed.set()
            self.fatal(error)
            raise
        self.run_effects()
