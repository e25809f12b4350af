"""The node's own client: calls between units, and requests that were asked of the wrong node.

One request stream on the grid loop. What this node owns goes straight into its own core, everything
else over one frame stream to the owner's Data service. Calls that units hand over from their thread
travel together: one wake-up, one frame per node. Invariants: a token that came with a request is
passed on unchanged, so however often it is forwarded it is applied once; an operation is forwarded
by one node only, since the owner answers frames itself or refuses them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from spacegrid import clock
from spacegrid._core import Client, FrameError
from spacegrid.limits import FRAME_WINDOW
from spacegrid.node.front import Front
from spacegrid.node.log import get_logger
from spacegrid.node.security import NodeSecurity
from spacegrid.security.files import node_dns
from spacegrid.transport.link import StreamLink
from spacegrid.wire.status import Status

if TYPE_CHECKING:
    from spacegrid._core import Completion
    from spacegrid.unit import OutgoingCall

LOCAL_SLOT: Final = 0

_log = get_logger("internal")


class InternalClient:
    """A client of the whole cluster inside a node.

    Attributes:
        core: The request stream.
        cluster_id: The cluster that other nodes must be of.
        security: How this node proves itself to them.
        calls_done: Takes finished calls of units: (call, status, value) each.
    """

    def __init__(
        self,
        stream: int,
        partition_count: int,
        cluster_id: bytes,
        front: Front,
        calls_done: Callable[[list[tuple[OutgoingCall, int, bytes]]], None],
        security: NodeSecurity,
    ) -> None:
        self.core = Client(stream, partition_count)
        self.core.set_frame_window(FRAME_WINDOW)
        self.calls_done = calls_done
        self.cluster_id = cluster_id
        self._front = front
        self.security = security
        self._loop = asyncio.get_running_loop()
        self._connection = front.open_connection(self._local_reply)
        self._slots: dict[int, int] = {}
        self._links: dict[int, _RemoteLink] = {}
        self._submitted: deque[OutgoingCall] = deque()
        self._submit_scheduled = False
        self._flush_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._maps: dict[tuple[str, bool], int] = {}

    # ---- where things are

    def set_routes(
        self,
        revision: int,
        primaries: Sequence[int],
        nodes: Mapping[int, tuple[str, str]],
        me: int,
    ) -> None:
        """Take a newer table.

        Args:
            revision: Of the table.
            primaries: Incarnation of each partition's primary, 0: none.
            nodes: Incarnation to name and address of each other node alive.
            me: This node's incarnation.
        """
        self._slots.setdefault(me, LOCAL_SLOT)
        for incarnation, (name, address) in nodes.items():
            if incarnation not in self._slots:
                slot = self._slots[incarnation] = len(self._slots)
                self._links[slot] = _RemoteLink(slot, name, address, self)
        for incarnation, slot in self._slots.items():
            if incarnation not in nodes and (link := self._links.pop(slot, None)) is not None:
                link.close()
                self.core.on_disconnect(slot, clock.monotonic_ms())
        usable = {inc: slot for inc, slot in self._slots.items() if inc in nodes or inc == me}
        self.core.set_routes(revision, [usable.get(p, -1) for p in primaries])
        self.flush_soon()

    # ---- what is asked

    def submit_calls(self, calls: list[OutgoingCall]) -> None:
        """Take calls of units; from any thread."""
        self._submitted.extend(calls)
        if not self._submit_scheduled:
            self._submit_scheduled = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._take_submitted)

    def map(self, name: str, persisted: bool = False) -> int:
        """Index of a map or handler for the core's methods, at that level of durability."""
        index = self._maps.get((name, persisted))
        if index is None:
            index = self._maps[name, persisted] = self.core.map(name, persisted=persisted)
        return index

    async def ask(self, queue: Callable[[object], int]) -> Completion:
        """Queue one operation and wait for its completion.

        Args:
            queue: Calls the core's queueing method with the waiter it is given.
        """
        future: asyncio.Future[Completion] = self._loop.create_future()
        number = queue(future)
        self.flush_soon()
        try:
            return await future
        except asyncio.CancelledError:
            self.core.cancel(number)
            raise

    async def close(self) -> None:
        """Drop links and timer; operations still open are never completed."""
        self._front.close_connection(self._connection)
        if self._timer is not None:
            self._timer.cancel()
        for link in self._links.values():
            link.close()
        for link in self._links.values():
            await link.ended()
        self._links.clear()

    # ---- carrying it out

    def flush_soon(self) -> None:
        """Send what is queued at the end of this loop tick."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _take_submitted(self) -> None:
        self._submit_scheduled = False
        queue, core = self._submitted, self.core
        failed: list[tuple[OutgoingCall, int, bytes]] = []
        while queue:
            call = queue.popleft()
            try:
                core.invoke(
                    self.map(call.name),
                    call.routing_key,
                    call.arguments,
                    call,
                    call.timeout_ms,
                    token=call.token,
                    chain=call.chain,
                )
            except (ValueError, OverflowError) as error:
                failed.append((call, Status.INVALID, str(error).encode()))
        if failed:
            self.calls_done(failed)
        self._flush()

    def _flush(self) -> None:
        self._flush_scheduled = False
        now_ms = clock.monotonic_ms()
        self._complete(self.core.expire(now_ms))
        for slot, frame in self.core.take_frames(now_ms):
            if slot == LOCAL_SLOT:
                self._front.client_frame(self._connection, frame)
            elif (link := self._links.get(slot)) is not None:
                link.send(frame)
            else:
                self.core.on_disconnect(slot, now_ms, sent=False)
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_ms = self.core.next_event_ms()
        if due_ms is not None:
            delay_s = max(0.0, (due_ms - clock.monotonic_ms()) / 1000)
            self._timer = self._loop.call_later(delay_s, self._flush)

    def _local_reply(self, frame: bytes) -> None:
        self.reply(LOCAL_SLOT, frame)

    def reply(self, slot: int, frame: bytes) -> None:
        """Take a reply frame of a node."""
        self._complete(self.core.on_frame(slot, frame, clock.monotonic_ms()))
        self._set_timer()

    def disconnected(self, slot: int, *, sent: bool) -> None:
        """The stream to a node broke: what was in flight there is asked again."""
        self.core.on_disconnect(slot, clock.monotonic_ms(), sent)
        self._set_timer()

    def _complete(self, completions: list[Completion]) -> None:
        calls = []
        for completion in completions:
            waiter = completion[0]
            if isinstance(waiter, asyncio.Future):
                if not waiter.done():
                    waiter.set_result(completion)
            else:
                calls.append((waiter, completion[1], completion[2] or b""))
            if completion[1] == Status.UNKNOWN:
                self.core.release(completion[6])
        if calls:
            self.calls_done(calls)


class _RemoteLink:
    """The frame stream to one other node; connected from the first frame on."""

    def __init__(self, slot: int, name: str, address: str, client: InternalClient) -> None:
        self._slot = slot
        self._name = name
        self._address = address
        self._client = client
        self._stream: StreamLink | None = None

    def send(self, frame: bytes) -> None:
        if self._stream is None:
            self._stream = StreamLink(
                self._address,
                self._client.cluster_id,
                self._on_frame,
                self._on_down,
                self._client.security.client,
                node_dns(self._name),
            )
        self._stream.send(frame)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    async def ended(self) -> None:
        if self._stream is not None:
            await self._stream.ended()

    def _on_frame(self, frame: bytes) -> None:
        try:
            self._client.reply(self._slot, frame)
        except FrameError as error:
            self.close()
            self._on_down(str(error), True)

    def _on_down(self, reason: str, sent: bool) -> None:
        _log.debug("stream broke", address=self._address, why=reason)
        self._stream = None
        self._client.disconnected(self._slot, sent=sent)
