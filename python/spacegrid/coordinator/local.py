"""A node's access to the coordinator of one machine (local_server.py).

Keeps one Join stream; when it breaks it comes back with the same incarnation, because the end of
the stream is no end of the registration. Everything here belongs to the loop that called `join`.

Who calls: node/.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

import grpc
import msgspec

from spacegrid.coordinator import (
    REGISTERED_FOR_EVER,
    ControllerChanged,
    CoordinatorEvent,
    WriteResult,
)
from spacegrid.coordinator.local_server import CHANNEL_OPTIONS, PROTOCOL_VERSION
from spacegrid.coordinator.view import View
from spacegrid.errors import ConnectionFailed, InvariantViolation, ProtocolError
from spacegrid.machine.table import PartitionEntry, Registration, Table
from spacegrid.v1 import coordinator_pb2 as pb
from spacegrid.v1 import coordinator_pb2_grpc as rpc
from spacegrid.wire import ownership

__all__ = ["LocalCoordinator"]

#: Seconds between attempts to reach a coordinator that is away: first and longest.
_RETRY_FIRST_S = 0.02
_RETRY_MAX_S = 0.5
#: Seconds that the coordinator gets to take a goodbye.
_LEAVE_TIMEOUT_S = 2.0

_Stream = grpc.aio.StreamStreamCall[pb.JoinRequest, pb.JoinEvent]


class LocalCoordinator:
    """Implements `Coordinator` over gRPC to a process of this machine."""

    def __init__(self, address: str, *, cluster_id: bytes = b"", timeout_s: float = 10.0) -> None:
        """Not connected yet; see `join`.

        Args:
            address: host:port of the coordinator.
            cluster_id: The cluster that is expected (16 bytes); empty: any.
            timeout_s: How long each call waits for an answer.
        """
        self.address = address
        self._cluster_id = cluster_id
        self._timeout_s = timeout_s
        self._view = View()
        self._channel: grpc.aio.Channel | None = None
        self._stream: _Stream | None = None
        self._runner: asyncio.Task[None] | None = None
        #: Set anew whenever a message came, for those who wait for one.
        self._progress = asyncio.Event()
        self._refused: ProtocolError | None = None
        self._leaving = False

    @property
    def registration(self) -> Registration:
        """The node's own registration as accepted."""
        return self._view.registration

    @property
    def table(self) -> Table:
        """The newest table seen."""
        return self._view.table

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """The nodes alive when last heard."""
        return self._view.registrations

    @property
    def stopping(self) -> bool:
        """Whether the whole cluster is stopping."""
        return self._view.stopping

    @property
    def controller(self) -> ControllerChanged:
        """Who may write the table, when last heard."""
        return self._view.controller

    @property
    def registered_until_ms(self) -> int:
        """For ever: the end of the process is what ends the registration."""
        return REGISTERED_FOR_EVER if self.registration.incarnation and not self._view.closed else 0

    async def join(self, registration: Registration) -> Registration:
        """Register the node and keep it registered; see `Coordinator.join`."""
        self._channel = grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        self._view.registration = registration
        self._runner = asyncio.create_task(self._run(), name="coordinator stream")
        try:
            await self._wait_until(
                lambda: self._view.registration.incarnation > 0 and self._view.complete
            )
        except BaseException:
            await self._shut()
            raise
        return self._view.registration

    async def update(self, registration: Registration) -> None:
        """Replace the registration; see `Coordinator.update`."""
        self._view.registration = registration
        if self._stream is not None:
            await self._send(self._stream, leave=False)
        await self._wait_until(lambda: registration in self._view.registrations)

    def events(self) -> AsyncIterator[CoordinatorEvent]:
        """What changes; see `Coordinator.events`."""
        return self._view.events()

    async def campaign(self, known_term: int) -> ControllerChanged:
        """Take the next term; see `Coordinator.campaign`."""
        request = pb.CampaignRequest(
            incarnation=self._view.registration.incarnation, known_term=known_term
        )
        try:
            reply = await self._stub().Campaign(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None
        return self._take_controller(reply)

    async def confirm(self) -> ControllerChanged:
        """Who holds the term; see `Coordinator.confirm`."""
        try:
            reply = await self._stub().Confirm(pb.ConfirmRequest(), timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None
        return self._take_controller(reply)

    async def write(
        self, term: int, expected_revision: int, entries: Iterable[PartitionEntry]
    ) -> WriteResult:
        """Write the table; see `Coordinator.write`."""
        request = pb.WriteRequest(
            term=term,
            expected_revision=expected_revision,
            entries=[ownership.entry_to_pb(entry) for entry in entries],
        )
        try:
            reply = await self._stub().Write(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None
        return WriteResult(reply.accepted, reply.revision)

    async def stop_cluster(self) -> None:
        """Mark the cluster as stopping; see `Coordinator.stop_cluster`."""
        try:
            await self._stub().StopCluster(pb.StopClusterRequest(), timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None

    async def close(self) -> None:
        """Say goodbye, which ends the registration, and disconnect; see `Coordinator.close`."""
        self._leaving = True
        if self._stream is not None and not self._view.closed:
            try:
                async with asyncio.timeout(_LEAVE_TIMEOUT_S):
                    await self._send(self._stream, leave=True)
                    if self._runner is not None:
                        await asyncio.wait([self._runner])
            except TimeoutError:
                # The end of the process ends the registration all the same.
                pass
        await self._shut()

    async def _run(self) -> None:
        """Keep one stream, for as long as the registration lives."""
        wait_s = _RETRY_FIRST_S
        while not self._leaving:
            try:
                await self._follow()
                wait_s = _RETRY_FIRST_S
            except ProtocolError as error:
                self._refuse(error)
                return
            except InvariantViolation as error:
                self._refuse(ProtocolError(f"the coordinator's table can't be: {error}"))
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    self._refuse(ProtocolError(error.details() or "refused by the coordinator"))
                    return
            finally:
                self._stream = None
            if not self._leaving:
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, _RETRY_MAX_S)

    async def _follow(self) -> None:
        """One stream from its hello to its end."""
        stream: _Stream = self._stub().Join()
        await self._send(stream, leave=False)
        self._stream = stream
        try:
            async for message in stream:
                self._take(message)
                self._progress.set()
        except asyncio.CancelledError:
            # A stream that was cancelled below says so with the same error as a task that was.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise

    async def _send(self, stream: _Stream, *, leave: bool) -> None:
        """Say the registration as it is now; a stream that is broken is left to `_run`."""
        request = pb.JoinRequest(
            protocol_version=PROTOCOL_VERSION,
            cluster_id=self._cluster_id,
            registration=ownership.registration_to_pb(self._view.registration),
            leave=leave,
        )
        try:
            await stream.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return

    def _take(self, message: pb.JoinEvent) -> None:
        view = self._view
        match message.WhichOneof("event"):
            case "accepted":
                # The answer to an older word must not undo a newer one.
                accepted = ownership.registration_from_pb(message.accepted)
                view.registration = msgspec.structs.replace(
                    view.registration, incarnation=accepted.incarnation
                )
            case "table":
                view.push_table(ownership.table_from_pb(message.table), None)
            case "change":
                self._take_change(message.change)
            case "registrations":
                alive = tuple(
                    ownership.registration_from_pb(item) for item in message.registrations.alive
                )
                view.push_registrations(alive, message.registrations.stopping)
            case "controller":
                self._take_controller(message.controller)
            case _:
                # A newer coordinator says more than this node knows.
                return

    def _take_controller(self, message: pb.Controller) -> ControllerChanged:
        controller = ControllerChanged(message.incarnation, message.term)
        self._view.push_controller(controller)
        return controller

    def _take_change(self, change: pb.TableChange) -> None:
        table = self._view.table
        stores = ownership.stores_from_pb(change.stores)
        if change.revision == table.revision:
            table = msgspec.structs.replace(table, stores=stores)
            self._view.push_table(table, ())
            return
        entries = [ownership.entry_from_pb(entry) for entry in change.entries]
        table = table.apply(change.revision, entries, stores=stores, stopped=change.stopped)
        self._view.push_table(table, tuple(entry.partition for entry in entries))

    def _refuse(self, error: ProtocolError) -> None:
        self._refused = error
        self._view.push_ended(str(error))
        self._progress.set()

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                while not condition():
                    if self._refused is not None:
                        raise self._refused
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            raise ConnectionFailed(
                f"coordinator {self.address} did not answer within {self._timeout_s} s",
                addresses=[self.address],
            ) from None

    async def _shut(self) -> None:
        self._view.close()
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait([self._runner])
        if self._channel is not None:
            await self._channel.close()

    def _stub(self) -> rpc.CoordinatorAsyncStub:
        if self._channel is None:
            raise ConnectionFailed("not joined yet", addresses=[self.address])
        stub: rpc.CoordinatorAsyncStub = rpc.CoordinatorStub(self._channel)
        return stub

    def _failure(self, error: grpc.aio.AioRpcError) -> ConnectionFailed | ProtocolError:
        if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION):
            return ProtocolError(error.details() or "refused by the coordinator")
        return ConnectionFailed(
            f"coordinator {self.address} did not answer: {error.code().name}",
            addresses=[self.address],
        )
