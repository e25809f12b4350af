"""The asyncio client's machine room: one core client, its links, its flush, its one timer.

The first operation of a loop tick schedules one flush; the flush takes what every operation of the
tick has queued, one frame per node, and hands it to the links. Replies settle futures in the core,
one pass per frame. A single timer carries deadlines and retries, and a task asks for new routes
when a refusal, a lost link or a silent node says that there may be some.

Invariants:
    - The core client is touched on the loop's own thread only.
    - A frame of a link that is down or closed never reaches the core (links are compared by
      identity), and `on_disconnect` is called once per link.
    - Seeds are kept for ever: a cluster that came back under other addresses is found through them.

Who calls: `asynchronous`. It is one room, because links, routes and the timer act on the one core
client, and each must see it as the others left it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from spacegrid import _core, errors
from spacegrid.client.common import (
    REQUEST_NUMBER_BASE,
    Unknown,
    batch_error,
    describe,
    failure_of,
    guard_fork,
    no_connection,
    timeout_to_ms,
)
from spacegrid.client.replies import ManyReply, Reply
from spacegrid.clock import monotonic_ms
from spacegrid.limits import FRAME_WINDOW
from spacegrid.types import CODEC_BYTES, CODEC_MSGPACK, ValueCodec, format_request_id
from spacegrid.wire.status import Status

if TYPE_CHECKING:
    from spacegrid.transport.base import ClientLink, ClientTransport, Opened, Routes

__all__ = ["Page", "Session"]

Page: TypeAlias = tuple[list[tuple[bytes, bytes, int, int]], bytes]
"""Entries as (key, value, codec, version), and where to go on; b"" is the end."""

WATCH_S: Final = 0.2
"""How often links with unanswered frames are looked at."""
SILENT_MS: Final = 400
"""A link that has not answered for this long may belong to a deposed node."""
ROUTES_TIMEOUT_S: Final = 1.0
ROUTES_SLACK_S: Final = 0.05
"""How long others may still answer once one has."""
ROUTES_ASKED_MAX: Final = 4
"""Nodes asked for routes at the same time."""
REFRESH_DELAY_S: Final = (0.005, 0.04, 0.5)
"""First pause between two questions for routes, longest one while partitions may just be moving,
and longest one when they have been asked for in vain for `REFRESH_EAGER_S`."""
REFRESH_EAGER_S: Final = 3.0
OPEN_PAUSE_S: Final = 0.05


def _read_page(reply: tuple[bytes, int, int]) -> Page:
    return _core.decode_scan(reply[0])


class _Peer:
    """One node address, and the link to it while there is one."""

    __slots__ = ("address", "link", "partition_count", "slot", "unanswered_ms")

    def __init__(self, slot: int, address: str) -> None:
        self.slot = slot
        self.address = address
        self.link: ClientLink | None = None
        self.partition_count = 0
        # When the oldest frame was sent that no reply came after; 0: nothing is waited for.
        self.unanswered_ms = 0


class Session:
    """One connection of an `AsyncGrid` to a cluster.

    Attributes:
        core: The core client, once open.
        loop: The loop that it was opened on.
        scheduled: Whether a flush is already due in this tick.
        special: Whether the fast path must not be taken: not open, closed, forked, or a deadline
            scope is in force.
        timeout_ms: Default time of an operation.
    """

    core: _core.Client
    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        transport: ClientTransport,
        seeds: tuple[str, ...],
        timeout_ms: int,
        cluster_id: bytes,
    ) -> None:
        self.timeout_ms = timeout_ms
        self.scheduled = False
        self.special = True
        self.cluster_id = cluster_id
        self.partition_count = 0
        self._transport = transport
        self._seeds = seeds
        self._peers: list[_Peer] = []
        self._slots: dict[str, int] = {}
        self._revision = -1
        self._state = "not open"
        self._deadlines = 0
        self._released: deque[int] = deque()
        # Why nodes don't let this client in any more, where that is what they last said.
        self._refused: errors.AccessError | None = None
        self._values: dict[int, ValueCodec[Any]] = {}
        self._names: dict[int, str] = {}
        self._request_numbers = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0
        self._watcher: asyncio.TimerHandle | None = None
        self._refresh: asyncio.Task[None] | None = None
        self._refresh_delay_s = REFRESH_DELAY_S[0]
        self._refresh_wanted = False

    # ---- life

    async def open(self) -> None:
        """Get a request stream from the first seed that answers.

        Raises:
            ConnectionFailed: None did within the default timeout.
            ProtocolError: One did, of another cluster or version.
            GridClosed: The session was closed before.
        """
        if self._state == "open":
            return
        if self._state != "not open":
            raise self.unusable()
        self.loop = asyncio.get_running_loop()
        opened = await self._open_any()
        self.cluster_id = opened.cluster_id
        self.partition_count = len(opened.routes.primaries)
        self.core = _core.Client(opened.stream, self.partition_count)
        self.core.set_frame_window(FRAME_WINDOW)
        self._apply_routes(opened.routes)
        self._state = "open"
        self._update_special()
        guard_fork(self)

    async def _open_any(self) -> Opened:
        until = self.loop.time() + self.timeout_ms / 1000
        reasons: dict[str, str] = {}
        while True:
            for address in self._seeds:
                left_s = until - self.loop.time()
                if left_s <= 0:
                    break
                try:
                    return await self._transport.open(address, self.cluster_id, left_s)
                except errors.ConnectionFailed as error:
                    reasons[address] = str(error)
            if until - self.loop.time() <= OPEN_PAUSE_S:
                raise no_connection(self._seeds, reasons, self.timeout_ms)
            await asyncio.sleep(OPEN_PAUSE_S)

    async def close(self, timeout_s: float) -> None:
        """Let operations finish for at most that long, then let go of every link."""
        if self._state != "open":
            if self._state == "not open":
                self._state = "closed"
                await self._transport.close()
            return
        self._state = "closing"
        self._update_special()
        until = self.loop.time() + timeout_s
        while self.core.queued or self.core.in_flight:
            left_s = until - self.loop.time()
            if left_s <= 0:
                break
            await asyncio.sleep(min(left_s, 0.005))
        self._state = "closed"
        for handle in (self._timer, self._watcher):
            if handle is not None:
                handle.cancel()
        if self._refresh is not None:
            self._refresh.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refresh
        for peer in self._peers:
            self._drop(peer)
        self._fail_open()
        await self._transport.close()

    def _fail_open(self) -> None:
        """Answer whoever still waits: the grid is closed."""
        for waiter, status, *_rest, number in self.core.expire(monotonic_ms() + (1 << 40)):
            if waiter.done():
                continue
            what, partition = describe(self.core, self._names, number)
            maybe = status == Status.UNKNOWN
            suffix = "; it may have been applied" if maybe else ""
            waiter.set_exception(
                errors.GridClosed(
                    f"{what}: the grid was closed{suffix}",
                    partition=partition,
                    maybe_applied=maybe,
                )
            )

    def on_fork(self) -> None:
        """Refuse every use from now on: sockets and loop belong to the parent process."""
        self._state = "forked"
        self.special = True

    def unusable(self) -> errors.SpaceGridError:
        """The error for a use in the present state."""
        if self._state == "forked":
            return errors.ForkedProcess(
                "the grid was opened in the parent of this process\nhint: connect after the fork"
            )
        if self._state == "not open":
            return errors.GridClosed(
                "the grid is not open yet\nhint: async with connect(...) as grid"
            )
        return errors.GridClosed("the grid is closed")

    def check(self) -> None:
        """Raise unless operations may be queued."""
        if self._state != "open":
            raise self.unusable()

    def describe(self) -> str:
        """State and addresses, for people."""
        return f"{self._state}, {','.join(self._seeds)}"

    def _update_special(self) -> None:
        self.special = self._state != "open" or self._deadlines > 0

    def enter_deadline(self) -> None:
        """A deadline scope begins; operations look for it from now on."""
        self._deadlines += 1
        self._update_special()

    def leave_deadline(self) -> None:
        """A deadline scope ends."""
        self._deadlines -= 1
        self._update_special()

    def next_request_id(self) -> str:
        """A request id that nothing else uses."""
        self.check()
        self._request_numbers += 1
        return format_request_id(self.core.stream, REQUEST_NUMBER_BASE + self._request_numbers)

    # ---- sending

    def schedule(self) -> None:
        """Flush once at the end of this loop tick.

        Raises:
            RuntimeError: Called outside of the loop that the grid was opened on.
        """
        loop = self.loop
        if asyncio.get_running_loop() is not loop:
            raise RuntimeError(
                "the grid belongs to another event loop\nhint: connect once per loop"
            )
        self.scheduled = True
        loop.call_soon(self._flush)

    def _flush(self) -> None:
        self.scheduled = False
        if self._state == "closed":
            return
        core = self.core
        if self._released:
            self._release()
        now_ms = monotonic_ms()
        for slot, frame in core.take_frames(now_ms):
            peer = self._peers[slot]
            link = peer.link
            if link is None:
                link = self._connect(peer)
            if not peer.unanswered_ms:
                peer.unanswered_ms = now_ms
            link.send(frame)
        self._arm(now_ms)
        if self._watcher is None:
            self._watcher = self.loop.call_later(WATCH_S, self._watch)
        if core.wants_routes():
            self._refresh_soon()

    def _release(self) -> None:
        while self._released:
            self.core.release(self._released.popleft())

    def _arm(self, now_ms: int) -> None:
        """Set the timer for the next deadline or retry; an earlier one that is set stays."""
        event_ms = self.core.next_event_ms()
        if event_ms is None:
            return
        if self._timer is not None:
            if self._timer_ms <= event_ms:
                return
            self._timer.cancel()
        self._timer_ms = event_ms
        self._timer = self.loop.call_later(max(1, event_ms - now_ms) / 1000, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        for completion in self.core.expire(monotonic_ms()):
            self._complete(completion)
        self._flush()

    # ---- links

    def _connect(self, peer: _Peer) -> ClientLink:
        """Begin a link; its callbacks count for as long as it is the peer's."""
        link: ClientLink | None = None

        def on_frame(frame: bytes) -> None:
            if peer.link is link:
                self._on_frame(peer, frame)

        def on_down(reason: str, sent: bool) -> None:
            if peer.link is link:
                self._on_down(peer, sent)

        link = self._transport.link(peer.address, self.cluster_id, on_frame, on_down)
        peer.link = link
        return link

    def _on_frame(self, peer: _Peer, frame: bytes) -> None:
        now_ms = monotonic_ms()
        peer.unanswered_ms = 0
        try:
            rest = self.core.on_frame_futures(peer.slot, frame, now_ms)
        except _core.FrameError:
            self._drop(peer)
            self._on_down(peer, True)
            return
        for completion in rest:
            self._complete(completion)
        if self.core.wants_routes():
            self._refresh_soon()
        if self.core.queued and not self.scheduled:
            # A frame that waited to fill may go now that another one is answered.
            self.scheduled = True
            self.loop.call_soon(self._flush)
        self._arm(now_ms)

    def _on_down(self, peer: _Peer, sent: bool) -> None:
        peer.link = None
        peer.unanswered_ms = 0
        now_ms = monotonic_ms()
        self.core.on_disconnect(peer.slot, now_ms, sent)
        if self._state in ("open", "closing"):
            self._arm(now_ms)
            self._refresh_soon()

    def _drop(self, peer: _Peer) -> None:
        link, peer.link = peer.link, None
        peer.unanswered_ms = 0
        if link is not None:
            link.close()

    def _watch(self) -> None:
        """Ask for routes when a node has been silent, and rest when nothing is waited for."""
        self._watcher = None
        now_ms = monotonic_ms()
        waiting = [peer for peer in self._peers if peer.unanswered_ms]
        if not self.core.in_flight:
            for peer in waiting:
                peer.unanswered_ms = 0
            return
        self._watcher = self.loop.call_later(WATCH_S, self._watch)
        for peer in self._peers:
            # It has answered something since, and owes an answer all the same: a node that is cut
            # off may answer one operation and never the others.
            if not peer.unanswered_ms and peer.link and self.core.in_flight_at(peer.slot):
                peer.unanswered_ms = now_ms
        silent = [peer for peer in waiting if now_ms - peer.unanswered_ms > SILENT_MS]
        if silent:
            for peer in silent:
                self.core.turn_away(peer.slot, now_ms)
            self._flush()
            self._refresh_wanted = True
            self._refresh_soon()

    # ---- routes

    def _slot_of(self, address: str) -> int:
        slot = self._slots.get(address)
        if slot is None:
            slot = self._slots[address] = len(self._peers)
            self._peers.append(_Peer(slot, address))
        return slot

    def _apply_routes(self, routes: Routes) -> None:
        slots = [-1, *(self._slot_of(node.address) for node in routes.nodes)]
        table = [slots[index] for index in routes.primaries]
        self._revision = routes.revision
        backups = [[slots[index] for index in one] for one in routes.backups]
        for peer in self._peers:
            peer.partition_count = 0
        for slot in table:
            if slot >= 0:
                self._peers[slot].partition_count += 1
        self.core.set_backups(backups or [[]] * len(table))
        self.core.set_routes(routes.revision, table)

    def _refresh_soon(self) -> None:
        if self._refresh is None and self._state in ("open", "closing"):
            self._refresh = self.loop.create_task(self._refresh_routes())
            self._refresh.add_done_callback(self._refresh_done)

    def _refresh_done(self, task: asyncio.Task[None]) -> None:
        self._refresh = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self.loop.call_exception_handler(
                {"message": "spacegrid: asking for routes failed", "exception": error}
            )

    async def _refresh_routes(self) -> None:
        """Ask until nothing is wanted; each question that brings nothing new waits longer."""
        asked = False
        eager_until = monotonic_ms() + round(REFRESH_EAGER_S * 1000)
        while not asked or self._refresh_wanted or self.core.wants_routes():
            asked = True
            self._refresh_wanted = False
            before = self._revision
            best = await self._ask_routes()
            if best is not None and best.revision == self._revision == before:
                # Nothing newer: what waits for routes is due again, at the pace of this loop.
                self._adopt(best)
            if self._revision > before:
                self._refresh_delay_s = REFRESH_DELAY_S[0]
            else:
                await asyncio.sleep(self._refresh_delay_s)
                _, eager_s, longest_s = REFRESH_DELAY_S
                most_s = eager_s if monotonic_ms() < eager_until else longest_s
                self._refresh_delay_s = min(self._refresh_delay_s * 2, most_s)
        self._refresh_delay_s = REFRESH_DELAY_S[0]

    async def _ask_routes(self) -> Routes | None:
        """Ask those that answer first, then all known, then seeds; return the newest routes."""
        known = sorted(self._peers, key=lambda peer: (peer.link is None, peer.unanswered_ms))
        addresses = list(dict.fromkeys([*(peer.address for peer in known), *self._seeds]))
        best: Routes | None = None
        for start in range(0, len(addresses), ROUTES_ASKED_MAX):
            asked = addresses[start : start + ROUTES_ASKED_MAX]
            async for routes in self._answered(asked):
                if best is None or routes.revision > best.revision:
                    best = routes
                    if best.revision > self._revision:
                        self._adopt(best)
            if best is not None:
                break
        return best

    async def _answered(self, addresses: list[str]) -> AsyncIterator[Routes]:
        """Ask some nodes together; once one has answered the others have little time left.

        A node that hangs says nothing, and whoever waits for it learns late what others know.
        """
        questions = {asyncio.ensure_future(self._ask(address)) for address in addresses}
        timeout_s: float | None = None
        try:
            while questions:
                done, questions = await asyncio.wait(
                    questions, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    return
                for question in done:
                    if (routes := question.result()) is not None:
                        timeout_s = ROUTES_SLACK_S
                        yield routes
        finally:
            for question in questions:
                question.cancel()

    def _adopt(self, routes: Routes) -> None:
        self._apply_routes(routes)
        self._leave_deposed()
        self._flush()

    async def _ask(self, address: str) -> Routes | None:
        try:
            routes = await self._transport.routes(address, ROUTES_TIMEOUT_S)
        except errors.AccessError as error:
            self._refused = error
            return None
        except errors.SpaceGridError:
            return None
        self._refused = None
        return routes if len(routes.primaries) == self.partition_count else None

    def _leave_deposed(self) -> None:
        """Take back what a silent node was asked, once the table says that it owns nothing."""
        now_ms = monotonic_ms()
        for peer in self._peers:
            if (
                peer.link is not None
                and not peer.partition_count
                and peer.unanswered_ms
                and now_ms - peer.unanswered_ms > SILENT_MS
            ):
                self._drop(peer)
                self.core.on_disconnect(peer.slot, now_ms, True)

    # ---- maps and waiters

    def register_map(self, name: str, value: ValueCodec[Any], persisted: bool) -> int:
        """Make a map known to the core; returns its index there."""
        self.check()
        decode = None if value.codec == CODEC_BYTES else value.decode_packed
        index = self.core.map(name, value.schema, value.codec, decode, persisted)
        self._values[index] = value
        self._names[index] = name
        return index

    def register_handler(self, name: str, decode: Callable[[bytes], Any], persisted: bool) -> int:
        """Make a handler known to the core; returns its index there."""
        self.check()
        index = self.core.map(name, 0, CODEC_MSGPACK, decode, persisted)
        self._names[index] = name
        return index

    def scan(
        self, index: int, partition: int, cursor: bytes, limit: int, timeout_ms: int
    ) -> Reply[Page]:
        """Queue one page of a partition."""
        reply: Reply[Page] = Reply(self.loop, _read_page, raw=True)
        self.core.scan(index, partition, cursor, limit, reply, timeout_ms)
        if not self.scheduled:
            self.schedule()
        return reply

    def _resend(
        self,
        number: int,
        timeout: float | None,
        convert: Callable[[Any], Any] | None,
        expected_version: int | None,
    ) -> asyncio.Future[Any]:
        self.check()
        again: Reply[Any] = Reply(self.loop, convert, expected_version=expected_version)
        timeout_ms = timeout_to_ms(timeout, self.timeout_ms)
        try:
            self.core.resend(number, again, timeout_ms)
        except KeyError:
            raise errors.StaleRequest(
                f"request {self.core.stream}-{number} is no longer kept, its outcome stays unknown"
            ) from None
        if not self.scheduled:
            self.schedule()
        return again

    # ---- completions

    def _complete(self, completion: _core.Completion) -> None:
        """Settle a waiter whose answer is not a plain result."""
        waiter, status, value, version, codec, _copies, number = completion
        if waiter.done():
            if status == Status.UNKNOWN:
                self.core.release(number)
        elif isinstance(waiter, ManyReply):
            self._settle_each(waiter, value)
        elif status == Status.OK or status == Status.MISS:
            self._settle(waiter, value, version, codec, number)
        else:
            waiter.set_exception(self.failure(status, value, version, number, waiter))

    def _settle(self, waiter: Any, value: Any, version: int, codec: int, number: int) -> None:
        """Settle with what only this side can read: a page, an entry, a value of another codec."""
        if isinstance(waiter, Reply) and waiter.raw:
            waiter.set_result((value, version, codec))
            return
        about = self.core.about(number)
        try:
            if about is not None and value is not None:
                value = self._values[about[1]].decode(value, codec)
            waiter.set_result(value)
        except errors.SerializationError as error:
            waiter.set_exception(error)

    def _settle_each(self, waiter: ManyReply[Any], replies: list[_core.ManyReply]) -> None:
        results: dict[Any, Any] = {}
        failures: dict[Any, errors.SpaceGridError] = {}
        for key, (status, value, version, codec, number) in zip(waiter.keys, replies, strict=True):
            if status == Status.OK or status == Status.MISS:
                try:
                    results[key] = waiter.read(status, value, version, codec)
                except errors.SerializationError as error:
                    failures[key] = error
            else:
                failures[key] = self.failure(status, value, version, number)
        if failures:
            waiter.set_exception(batch_error(results, failures))
        else:
            waiter.set_result([results[key] for key in waiter.keys])

    def failure(
        self, status: int, value: Any, version: int, number: int, waiter: Any = None
    ) -> errors.SpaceGridError:
        """Make the error of an operation that did not succeed."""
        what, partition = describe(self.core, self._names, number)
        # What sends it again must not hold the waiter: that holds the error, which holds it.
        one = isinstance(waiter, Reply) and not isinstance(waiter, ManyReply)
        expected = waiter.expected_version if one else None
        convert = waiter.convert if one else None
        unknown = None
        if status == Status.UNKNOWN:

            def send(number: int, timeout: float | None) -> Any:
                return self._resend(number, timeout, convert, expected)

            request_id = format_request_id(self.core.stream, number)
            unknown = Unknown(number, request_id, self._released, send)
        error = failure_of(
            status, value, version, what, partition, expected_version=expected, unknown=unknown
        )
        if self._refused is not None and isinstance(error, errors.DeadlineExceeded):
            error.reason = self._refused
            return error if error.maybe_applied else self._refused
        return error
