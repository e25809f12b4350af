"""The blocking client's machine room: one core client, and the loop that drives it to an answer.

An operation is queued in the core client, its frame is exchanged for an answer, and what the answer
leaves open (a retry, new routes) is done in the calling thread until the deadline. There is no loop
and no thread of ours behind it.

Invariants:
    - The core client is touched under one lock, and no lock is held while a frame is under way, so
      threads that share a grid wait for their own answers only.
    - Whoever waits also drives: retries that another thread's operation needs are sent by whichever
      thread comes first, and its answer wakes the other.

Who calls: `blocking`, `blocking_map`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from spacegrid import _core, errors
from spacegrid.client.common import (
    REQUEST_NUMBER_BASE,
    Duration,
    Unknown,
    describe,
    failure_of,
    guard_fork,
    no_connection,
    refusal,
    timeout_to_ms,
)
from spacegrid.clock import monotonic_ms
from spacegrid.transport.base import ExchangeFailed
from spacegrid.types import format_request_id
from spacegrid.wire.status import Status

if TYPE_CHECKING:
    from spacegrid.transport.base import BlockingTransport, Routes

__all__ = ["BlockingSession", "Waiter"]

OPEN_PAUSE_S: Final = 0.05
ROUTES_TIMEOUT_S: Final = 1.0
ROUTES_SILENT_S: Final = 0.2
"""The same for a node that has not answered lately."""
REFRESH_DELAY_MS: Final = (5, 200)
"""First and longest pause between two questions for routes."""
IDLE_MS: Final = 1000
"""Longest wait of a thread for answers that other threads have asked for."""
SILENT_MS: Final = 400
"""A node that has not answered for this long may be deposed: others are asked."""
ATTEMPT_S: Final = 1.0
"""Longest wait for one frame before its requests are asked for again, perhaps elsewhere; the same
token makes that safe."""


class Waiter:
    """One operation that a thread waits for."""

    __slots__ = ("codec", "done", "number", "status", "value", "version")

    def __init__(self) -> None:
        self.done = False
        self.status = 0
        self.value: Any = None
        self.version = 0
        self.codec = 0
        self.number = 0


class BlockingSession:
    """One connection of a `Grid` to a cluster."""

    core: _core.Client

    def __init__(
        self,
        transport: BlockingTransport,
        seeds: tuple[str, ...],
        timeout_ms: int,
        cluster_id: bytes,
    ) -> None:
        self.timeout_ms = timeout_ms
        self.cluster_id = cluster_id
        self.partition_count = 0
        self.names: dict[int, str] = {}
        self.handlers: dict[Any, int] = {}
        self._transport = transport
        self._seeds = seeds
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        self._addresses: list[str] = []
        self._slots: dict[str, int] = {}
        #: Slots that own a partition.
        self._owners: frozenset[int] = frozenset()
        #: Addresses that did not answer last: for routes they are asked when nobody else answers.
        self._silent: set[str] = set()
        self._revision = -1
        self._state = "open"
        self._busy = 0
        self._released: deque[int] = deque()
        self._request_numbers = 0
        self._refresh_delay_ms = REFRESH_DELAY_MS[0]
        self._refresh_at_ms = 0
        self._refresh_wanted = False
        self._open()
        guard_fork(self)

    # ---- life

    def _open(self) -> None:
        until = time.monotonic() + self.timeout_ms / 1000
        reasons: dict[str, str] = {}
        while True:
            for address in self._seeds:
                left_s = until - time.monotonic()
                if left_s <= 0:
                    break
                try:
                    opened = self._transport.open(address, self.cluster_id, left_s)
                except errors.ConnectionFailed as error:
                    reasons[address] = str(error)
                    continue
                self.cluster_id = opened.cluster_id
                self.partition_count = len(opened.routes.primaries)
                self.core = _core.Client(opened.stream, self.partition_count)
                self._apply_routes(opened.routes)
                return
            if until - time.monotonic() <= OPEN_PAUSE_S:
                self._transport.close()
                raise no_connection(self._seeds, reasons, self.timeout_ms)
            time.sleep(OPEN_PAUSE_S)

    def close(self, timeout_s: float) -> None:
        """Refuse new operations, let those of other threads finish, and disconnect."""
        with self._lock:
            if self._state != "open":
                return
            self._state = "closing"
            until = time.monotonic() + timeout_s
            while self._busy and (left_s := until - time.monotonic()) > 0:
                self._settled.wait(left_s)
            self._state = "closed"
            self._settled.notify_all()
        self._transport.close()

    def on_fork(self) -> None:
        """Refuse every use from now on; the lock may be held by a thread that is not here."""
        self._state = "forked"
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)

    def check(self) -> None:
        """Raise unless operations may be queued."""
        if self._state == "forked":
            raise errors.ForkedProcess(
                "the grid was opened in the parent of this process\nhint: connect after the fork"
            )
        if self._state != "open":
            raise errors.GridClosed("the grid is closed")

    def describe(self) -> str:
        """State and addresses, for people."""
        return f"{self._state}, {','.join(self._seeds)}"

    def next_request_id(self) -> str:
        """A request id that nothing else uses."""
        self.check()
        with self._lock:
            self._request_numbers += 1
            return format_request_id(self.core.stream, REQUEST_NUMBER_BASE + self._request_numbers)

    # ---- maps and handlers

    def register(self, name: str, schema: int, codec: int, persisted: bool) -> int:
        """Make a map or handler known to the core; returns its index there."""
        self.check()
        with self._lock:
            index = self.core.map(name, schema, codec, None, persisted)
            self.names[index] = name
        return index

    # ---- operations

    def run(
        self,
        method: Callable[..., Any],
        index: int,
        arguments: tuple[Any, ...],
        timeout: Duration | None,
        options: tuple[Any, ...] = (),
    ) -> Waiter:
        """Queue one operation and wait for its outcome."""
        return self.run_all([(method, index, arguments, options)], timeout)[0]

    def run_all(
        self,
        operations: list[tuple[Callable[..., Any], int, tuple[Any, ...], tuple[Any, ...]]],
        timeout: Duration | None,
    ) -> list[Waiter]:
        """Queue operations together and wait for all outcomes."""
        self.check()
        timeout_ms = timeout_to_ms(timeout, self.timeout_ms)
        waiters: list[Waiter] = []
        with self._lock:
            if self._released:
                self._release()
            try:
                for method, index, arguments, options in operations:
                    waiter = Waiter()
                    waiter.number = method(index, *arguments, waiter, timeout_ms, *options) or 0
                    waiters.append(waiter)
            except (TypeError, ValueError, OverflowError) as error:
                raise refusal(error) from error
            self._busy += 1
        try:
            self._drive(waiters, monotonic_ms() + timeout_ms)
        finally:
            with self._lock:
                self._busy -= 1
                if not self._busy:
                    self._settled.notify_all()
        return waiters

    def resend(self, number: int, timeout: float | None) -> Waiter:
        """Ask for an unknown outcome again and wait for it."""

        def queue(index: int, waiter: Waiter, timeout_ms: int) -> None:
            try:
                self.core.resend(index, waiter, timeout_ms)
            except KeyError:
                raise errors.StaleRequest(
                    f"request {self.core.stream}-{number} is no longer kept, "
                    "its outcome stays unknown"
                ) from None

        return self.run(queue, number, (), timeout)

    def _release(self) -> None:
        while self._released:
            self.core.release(self._released.popleft())

    def _drive(self, waiters: list[Waiter], until_ms: int) -> None:
        """Send, receive, retry and expire until every waiter is done, at their deadline."""
        core = self.core
        while True:
            with self._lock:
                now = monotonic_ms()
                self._settle(core.expire(now))
                if all(waiter.done for waiter in waiters):
                    return
                if self._state == "closed":
                    raise errors.GridClosed("the grid was closed", maybe_applied=True)
                wanted = self._refresh_wanted or core.wants_routes()
                refresh = wanted and now >= self._refresh_at_ms
                frames = [] if refresh else core.take_frames(now)
                if not frames and not refresh:
                    event_ms = core.next_event_ms()
                    next_ms = self._refresh_at_ms if wanted else now + IDLE_MS
                    if event_ms is not None:
                        next_ms = min(next_ms, event_ms)
                    self._settled.wait(max(1, next_ms - now) / 1000)
                    continue
            if refresh:
                self._refresh()
            else:
                self._exchange(waiters, frames, until_ms)

    def _exchange(
        self, waiters: list[Waiter], frames: list[tuple[int, bytes]], until_ms: int
    ) -> None:
        wait_s = min(ATTEMPT_S, max(0.001, (until_ms - monotonic_ms()) / 1000))
        addressed = [(self._addresses[slot], frame) for slot, frame in frames]
        begun_ms = monotonic_ms()
        answers = self._transport.exchange(
            addressed, wait_s, lambda address: self._go_on(address, begun_ms)
        )
        now = monotonic_ms()
        refused: errors.SpaceGridError | None = None
        with self._lock:
            for (slot, _frame), answer in zip(frames, answers, strict=True):
                if isinstance(answer, ExchangeFailed):
                    self.core.on_disconnect(slot, now, answer.sent)
                    self._silent.add(self._addresses[slot])
                    self._refresh_wanted = True
                    refused = refused or answer.error
                    continue
                self._silent.discard(self._addresses[slot])
                try:
                    for reply in answer:
                        self._settle(self.core.on_frame(slot, reply, now))
                except _core.FrameError:
                    self.core.on_disconnect(slot, now, True)
            if refused is not None:
                for waiter in waiters:
                    self.core.cancel(waiter.number)
                raise refused

    def _go_on(self, address: str, begun_ms: int) -> bool:
        """Whether to wait on for a node: not once others know that it owns nothing any more."""
        now_ms = monotonic_ms()
        with self._lock:
            if now_ms - begun_ms < SILENT_MS and address not in self._silent:
                return True
            self._silent.add(address)
            ask = now_ms >= self._refresh_at_ms
        if ask:
            self._refresh()
        with self._lock:
            return self._slots[address] in self._owners

    def _settle(self, completions: list[_core.Completion]) -> None:
        for waiter, status, value, version, codec, _copies, number in completions:
            waiter.status = status
            waiter.value = value
            waiter.version = version
            waiter.codec = codec
            waiter.number = number
            waiter.done = True
        if completions and self._busy > 1:
            self._settled.notify_all()

    # ---- routes

    def _apply_routes(self, routes: Routes) -> None:
        slots = [-1, *(self._slot_of(node.address) for node in routes.nodes)]
        self._revision = routes.revision
        table = [slots[index] for index in routes.primaries]
        self._owners = frozenset(table)
        backups = [[slots[index] for index in one] for one in routes.backups]
        self.core.set_backups(backups or [[]] * len(table))
        self.core.set_routes(routes.revision, table)

    def _slot_of(self, address: str) -> int:
        slot = self._slots.get(address)
        if slot is None:
            slot = self._slots[address] = len(self._addresses)
            self._addresses.append(address)
        return slot

    def _refresh(self) -> None:
        """Ask node after node for routes, until one knows newer ones; silent ones if need be."""
        best: Routes | None = None
        known = dict.fromkeys([*self._addresses, *self._seeds])
        for address in sorted(known, key=self._silent.__contains__):
            if best is not None and address in self._silent:
                break
            timeout_s = ROUTES_SILENT_S if address in self._silent else ROUTES_TIMEOUT_S
            try:
                routes = self._transport.routes(address, timeout_s)
            except errors.SpaceGridError:
                self._silent.add(address)
                continue
            self._silent.discard(address)
            if len(routes.primaries) != self.partition_count:
                continue
            if best is None or routes.revision > best.revision:
                best = routes
            if best.revision > self._revision:
                break
        with self._lock:
            self._refresh_wanted = False
            newer = best is not None and best.revision > self._revision
            if best is not None and best.revision >= self._revision:
                self._apply_routes(best)
            first, longest = REFRESH_DELAY_MS
            self._refresh_delay_ms = first if newer else min(self._refresh_delay_ms * 2, longest)
            self._refresh_at_ms = monotonic_ms() + self._refresh_delay_ms

    # ---- outcomes

    def failure(
        self,
        waiter: Waiter,
        finish: Callable[[Waiter], Any] | None = None,
        expected_version: int | None = None,
    ) -> errors.SpaceGridError:
        """Make the error of an operation that did not succeed.

        Args:
            waiter: Its outcome.
            finish: Turns the outcome of sending it again into the call's result.
            expected_version: The version that the request named.
        """
        with self._lock:
            what, partition = describe(self.core, self.names, waiter.number)
        unknown = None
        if waiter.status == Status.UNKNOWN and finish is not None:

            def send(number: int, timeout: float | None) -> Any:
                return finish(self.resend(number, timeout))

            request_id = format_request_id(self.core.stream, waiter.number)
            unknown = Unknown(waiter.number, request_id, self._released, send)
        return failure_of(
            waiter.status,
            waiter.value,
            waiter.version,
            what,
            partition,
            expected_version=expected_version,
            unknown=unknown,
        )
