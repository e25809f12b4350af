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
from typing import TYPE_CHECKING, Final, TypeAlias

import grpc.aio

from spacegrid import clock
from spacegrid._core import Client, FrameError
from spacegrid.limits import FRAME_WINDOW
from spacegrid.node.engine import Engine
from spacegrid.node.log import get_logger
from spacegrid.node.options import channel_options
from spacegrid.transport.channel import PROTOCOL_VERSION
from spacegrid.v1 import data_pb2, data_pb2_grpc
from spacegrid.wire.status import Status

if TYPE_CHECKING:
    from spacegrid._core import Completion
    from spacegrid.unit import OutgoingCall

    _Call: TypeAlias = grpc.aio.StreamStreamCall[data_pb2.Frame, data_pb2.Frame]

LOCAL_SLOT: Final = 0

_log = get_logger("internal")


class InternalClient:
    """A client of the whole cluster inside a node.

    Attributes:
        core: The request stream.
        calls_done: Takes finished calls of units: (call, status, value) each.
    """

    def __init__(
        self,
        stream: int,
        partition_count: int,
        cluster_id: bytes,
        engine: Engine,
        calls_done: Callable[[list[tuple[OutgoingCall, int, bytes]]], None],
    ) -> None:
        self.core = Client(stream, partition_count)
        self.core.set_frame_window(FRAME_WINDOW)
        self.calls_done = calls_done
        self._cluster_id = cluster_id
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._connection = engine.open_connection(self._local_reply)
        self._slots: dict[int, int] = {}
        self._links: dict[int, _RemoteLink] = {}
        self._submitted: deque[OutgoingCall] = deque()
        self._submit_scheduled = False
        self._flush_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._maps: dict[str, int] = {}

    # ---- where things are

    def set_routes(
        self, revision: int, primaries: Sequence[int], addresses: Mapping[int, str], me: int
    ) -> None:
        """Take a newer table.

        Args:
            revision: Of the table.
            primaries: Incarnation of each partition's primary, 0: none.
            addresses: Incarnation to address of each node alive.
            me: This node's incarnation.
        """
        self._slots.setdefault(me, LOCAL_SLOT)
        for incarnation, address in addresses.items():
            if incarnation not in self._slots:
                slot = self._slots[incarnation] = len(self._slots)
                self._links[slot] = _RemoteLink(slot, address, self)
        for incarnation, slot in self._slots.items():
            if incarnation not in addresses and (link := self._links.pop(slot, None)) is not None:
                link.close()
                self.core.on_disconnect(slot, clock.monotonic_ms())
        usable = {inc: slot for inc, slot in self._slots.items() if inc in addresses or inc == me}
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

    def map(self, name: str) -> int:
        """Index of a map or handler for the core's methods."""
        index = self._maps.get(name)
        if index is None:
            index = self._maps[name] = self.core.map(name)
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

    def close(self) -> None:
        """Drop links and timer; operations still open are never completed."""
        self._engine.close_connection(self._connection)
        if self._timer is not None:
            self._timer.cancel()
        for link in self._links.values():
            link.close()
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
                self._engine.client_frame(self._connection, frame)
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

    @property
    def hello(self) -> data_pb2.Hello:
        """What this client says to other nodes."""
        return data_pb2.Hello(protocol_version=PROTOCOL_VERSION, cluster_id=self._cluster_id)


class _RemoteLink:
    """The frame stream to one other node; connected while there is something to send."""

    def __init__(self, slot: int, address: str, client: InternalClient) -> None:
        self._slot = slot
        self._address = address
        self._client = client
        self._queue: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def send(self, frame: bytes) -> None:
        self._queue.append(frame)
        self._wake.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        sent = False
        reader: asyncio.Task[None] | None = None
        channel = grpc.aio.insecure_channel(self._address, options=channel_options())
        try:
            call = data_pb2_grpc.DataStub(channel).Stream()
            await call.write(data_pb2.Frame(hello=self._client.hello))
            reader = asyncio.get_running_loop().create_task(self._read(call))
            while not reader.done():
                while self._queue:
                    sent = True
                    await call.write(data_pb2.Frame(data=self._queue.popleft()))
                self._wake.clear()
                if not self._queue:
                    await self._wake.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            _log.debug("stream broke", address=self._address, why=repr(error))
        finally:
            if reader is not None:
                reader.cancel()
            self._queue.clear()
            self._task = None
            self._client.disconnected(self._slot, sent=sent)
            await channel.close()

    async def _read(self, call: _Call) -> None:
        try:
            while isinstance(message := await call.read(), data_pb2.Frame):
                if message.data:
                    self._client.reply(self._slot, message.data)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, FrameError) as error:
            _log.debug("stream broke", address=self._address, why=repr(error))
        finally:
            self._wake.set()
