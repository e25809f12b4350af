"""The shell around the controller machine, and the way to it from the other nodes.

Every node has a runner. While the coordinator names this node, the runner feeds the machine with
what happens and carries out its writes, one at a time; otherwise it forwards what this node's
primaries ask for to whoever is. Requests that get lost are no harm: the core repeats them until the
table shows the change. Runs on the grid loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Final

import grpc.aio

from spacegrid import clock
from spacegrid.coordinator import Coordinator
from spacegrid.errors import SpaceGridError
from spacegrid.machine.acceptance import Choice
from spacegrid.machine.controller import Controller, ControllerConfig
from spacegrid.machine.events import (
    BecameController,
    Campaign,
    CampaignDone,
    CampaignFailed,
    Change,
    ChangeKind,
    ChangesRequested,
    ConfirmFailed,
    ConfirmTerm,
    ControllerChanged,
    ControllerEvent,
    ControllerHeard,
    Deposed,
    DrainRequested,
    Effect,
    Heartbeat,
    HeartbeatAnswer,
    LossAccepted,
    PeerHeard,
    RegistrationsChanged,
    StandbyEvent,
    TableObserved,
    TermConfirmed,
    Ticked,
    WriteDone,
    WriteRefused,
    WriteTable,
)
from spacegrid.machine.standby import Standby
from spacegrid.machine.survival import lost_tails
from spacegrid.machine.waiting import Wait
from spacegrid.node.log import get_logger
from spacegrid.node.security import NodeSecurity
from spacegrid.node.view import ClusterView
from spacegrid.security.client import ClientSecurity
from spacegrid.security.files import node_dns
from spacegrid.transport.channel import PROTOCOL_VERSION, aio_channel
from spacegrid.v1 import peers_pb2, peers_pb2_grpc

if TYPE_CHECKING:
    from spacegrid._core import ChangeRequest

FORWARD_TIMEOUT_S: Final = 2.0

_log = get_logger("controller")


class ControllerRunner:
    """Runs the controller when this node is it, and talks to it when it is another."""

    def __init__(
        self,
        coordinator: Coordinator,
        name: str,
        incarnation: int,
        view: ClusterView,
        fatal: Callable[[BaseException], None],
        security: NodeSecurity,
        *,
        leases: bool = True,
    ) -> None:
        self._coordinator = coordinator
        self._name = name
        self._incarnation = incarnation
        self._view = view
        self._fatal = fatal
        self._security = security
        self._machine = Controller(ControllerConfig(leases=leases))
        self._standby = Standby(incarnation)
        self._standby_timer: asyncio.TimerHandle | None = None
        self._active = False
        self._term = 0
        #: The newest term that this node has heard of.
        self._known_term = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._channel: tuple[tuple[str, ClientSecurity], grpc.aio.Channel] | None = None
        self._waiting: dict[tuple[int, int], ChangeRequest] = {}
        self._forwarding = False
        #: The question to the controller that is under way.
        self._asked: asyncio.Task[None] | None = None

    @property
    def active(self) -> bool:
        """Whether this node is the controller."""
        return self._active

    # ---- what the daemon hears from the coordinator

    def controller_changed(self, event: ControllerChanged) -> None:
        """Begin or end to be the controller."""
        if event.term > self._known_term and self._asked is not None:
            # The one before may hang: what was asked of it is asked of its follower.
            self._asked.cancel()
        self._known_term = max(self._known_term, event.term)
        self._handle_standby(event)
        if event.incarnation == self._incarnation:
            if event.term == self._term:
                return
            self._active, self._term = True, event.term
            _log.info("this node is the controller", term=event.term)
            self._handle(
                BecameController(
                    table=self._view.table,
                    registrations=tuple(self._view.registrations.values()),
                    term=event.term,
                    stopping=self._view.stopping,
                )
            )
        elif self._active:
            self._handle(Deposed())
            self._active = False
            _log.info("another node is the controller", incarnation=event.incarnation)

    def registrations_changed(self, event: RegistrationsChanged) -> None:
        """Tell the machines who is alive."""
        self._handle_standby(event)
        if self._active:
            self._handle(event)

    def table_changed(self) -> None:
        """Tell the machine what the coordinator has."""
        if self._active:
            self._handle(TableObserved(self._view.table))

    # ---- heartbeats

    def suspicions(self) -> dict[int, str] | None:
        """Why this node suspects others; None: its word as controller does not count now."""
        if not self._machine.has_authority(clock.boottime_ms()):
            return None
        return self._machine.suspicions()

    def waits(self) -> dict[Wait, tuple[int, ...]]:
        """What partitions without a primary wait for, by this node's word as controller."""
        return self._machine.waits(clock.boottime_ms())

    def take_heartbeat(
        self, sender: int, nonce: int, progress: tuple[int, ...], heard_term: int
    ) -> HeartbeatAnswer:
        """Take the heartbeat of a node, this one too, and say what it is answered."""
        if sender != self._incarnation:
            self._handle_standby(PeerHeard(sender, heard_term))
        effects = self._handle(Heartbeat(sender, nonce, progress))
        for effect in effects:
            if isinstance(effect, HeartbeatAnswer):
                return effect
        return HeartbeatAnswer(sender, nonce)

    def heard_term(self, term: int, at_ms: int) -> int:
        """The term whose holder this node has heard lately; called with every heartbeat.

        Args:
            term: The newest term under which a heartbeat was answered; 0: none.
            at_ms: When that was.
        """
        self._handle_standby(ControllerHeard(term, at_ms))
        self._handle_standby(Ticked())
        return self._standby.heard_term(clock.boottime_ms())

    # ---- what primaries and leaving nodes ask for

    def take_changes(self, sender: int, changes: Sequence[ChangeRequest]) -> bool:
        """Take requests of a node's primaries; False when this node is not the controller."""
        if not self._active:
            return False
        self._handle(ChangesRequested(changes=tuple(_change(c) for c in changes), sender=sender))
        return True

    def take_drain(self, sender: int) -> bool:
        """Take a node's word that it is leaving; False when this node is not the controller."""
        if not self._active:
            return False
        self._handle(DrainRequested(copy=sender))
        return True

    def take_acceptance(self, choices: Sequence[Choice]) -> dict[int, str]:
        """Take an operator's decisions, on the controller only; partition to why it is refused."""
        refused = {c.partition: reason for c in choices if (reason := self._machine.why_not(c))}
        taken = tuple(choice for choice in choices if choice.partition not in refused)
        if taken:
            for choice in taken:
                _log.warning(
                    "an operator decides how a partition begins again",
                    partition=choice.partition,
                    how=choice.how.name.lower(),
                )
            self._handle(LossAccepted(taken))
        return refused

    async def offer_reloaded(self, choices: Sequence[Choice]) -> dict[int, str] | None:
        """Offer what this node has read out of the shared sink.

        Returns:
            Partition to why it is refused; None: nobody knows what becomes of it.
        """
        if self._active:
            return self.take_acceptance(choices)
        stub = self._stub()
        if stub is None:
            return {choice.partition: "no node is the controller now" for choice in choices}
        request = peers_pb2.ReloadedRequest(
            hello=self._hello(),
            partitions=[
                peers_pb2.ReloadedRequest.Partition(
                    partition=choice.partition, version=choice.version, epoch=choice.epoch
                )
                for choice in choices
            ],
        )
        try:
            reply = await stub.Reloaded(request, timeout=FORWARD_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            _log.warning("the controller did not take what was reloaded", error=error.details())
            return None
        if not reply.accepted:
            return {choice.partition: "the controller has just changed" for choice in choices}
        return {item.partition: item.reason for item in reply.refused}

    def request_changes(self, changes: list[ChangeRequest]) -> None:
        """Ask for changes that this node's core wants, here or at the controller."""
        if self.take_changes(self._incarnation, changes):
            return
        for change in changes:
            self._waiting[change[0], change[4]] = change
        if not self._forwarding:
            self._forwarding = True
            self.spawn(self._forward())

    async def request_drain(self) -> bool:
        """Tell the controller that this node is leaving; whether it was heard."""
        if self.take_drain(self._incarnation):
            return True
        stub = self._stub()
        if stub is None:
            return False
        try:
            reply = await stub.Drain(
                peers_pb2.DrainRequest(hello=self._hello()), timeout=FORWARD_TIMEOUT_S
            )
        except grpc.aio.AioRpcError:
            return False
        return bool(reply.accepted)

    async def close(self) -> None:
        """Stop; a write under way ends as it ends."""
        for timer in (self._timer, self._standby_timer):
            if timer is not None:
                timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        for task in list(self._tasks):
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._channel is not None:
            await self._channel[1].close()

    # ---- inside

    def _handle(self, event: ControllerEvent) -> list[Effect]:
        try:
            effects = self._machine.handle(event, clock.boottime_ms())
        except BaseException as error:
            self._fatal(error)
            raise
        for effect in effects:
            match effect:
                case WriteTable():
                    self.spawn(self._write(effect))
                case ConfirmTerm():
                    self.spawn(self._confirm(effect))
                case HeartbeatAnswer():
                    pass  # whoever handed the heartbeat in takes it
        self._set_timer()
        return effects

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_ms = self._machine.next_deadline_ms()
        if due_ms is not None:
            delay_s = max(0.0, (due_ms - clock.boottime_ms()) / 1000)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(delay_s, self._handle, Ticked())

    def _handle_standby(self, event: StandbyEvent) -> None:
        try:
            effects = self._standby.handle(event, clock.boottime_ms())
        except BaseException as error:
            self._fatal(error)
            raise
        for effect in effects:
            self.spawn(self._campaign(effect))
        if self._standby_timer is not None:
            self._standby_timer.cancel()
            self._standby_timer = None
        due_ms = self._standby.next_deadline_ms()
        if due_ms is not None:
            delay_s = max(0.0, (due_ms - clock.boottime_ms()) / 1000)
            loop = asyncio.get_running_loop()
            self._standby_timer = loop.call_later(delay_s, self._handle_standby, Ticked())

    async def _campaign(self, effect: Campaign) -> None:
        try:
            controller = await self._coordinator.campaign(effect.known_term)
        except SpaceGridError as error:
            _log.warning("the campaign was not answered", error=str(error))
            self._handle_standby(CampaignFailed())
            return
        self._handle_standby(CampaignDone(controller))

    async def _confirm(self, effect: ConfirmTerm) -> None:
        try:
            controller = await self._coordinator.confirm()
        except SpaceGridError as error:
            _log.debug("the term could not be confirmed", error=str(error))
            self._handle(ConfirmFailed(effect.number))
            return
        self._handle(TermConfirmed(effect.number, controller))

    async def _write(self, effect: WriteTable) -> None:
        try:
            result = await self._coordinator.write(
                effect.term, effect.expected_revision, effect.entries
            )
        except SpaceGridError as error:
            _log.warning("the table could not be written", error=str(error))
            self._handle(WriteRefused())
            return
        if result.accepted and self._machine.table is not None:
            _tell_lost_tails(lost_tails(self._machine.table, effect.entries))
        self._handle(WriteDone(result.revision) if result.accepted else WriteRefused())

    async def _forward(self) -> None:
        try:
            while self._waiting:
                changes, self._waiting = list(self._waiting.values()), {}
                if self.take_changes(self._incarnation, changes):
                    continue
                stub = self._stub()
                if stub is None:
                    return
                request = peers_pb2.ChangesRequest(
                    hello=self._hello(), changes=[_message(c) for c in changes]
                )
                self._asked = self.spawn(_ask_changes(stub, request))
                await asyncio.wait([self._asked])
        finally:
            self._forwarding = False

    def _hello(self) -> peers_pb2.PeerHello:
        return peers_pb2.PeerHello(
            protocol_version=PROTOCOL_VERSION,
            cluster_id=self._view.life,
            node=self._name,
            incarnation=self._incarnation,
            receiver=self._view.controller.incarnation,
        )

    def _stub(self) -> peers_pb2_grpc.PeersAsyncStub | None:
        """The controller's service; None while nobody is controller."""
        registration = self._view.registrations.get(self._view.controller.incarnation)
        if registration is None:
            return None
        address = self._view.peer_address(registration)
        if self._channel is None or self._channel[0] != (address, self._security.client):
            old = self._channel
            channel = aio_channel(address, self._security.client, node_dns(registration.name))
            self._channel = ((address, self._security.client), channel)
            if old is not None:
                self.spawn(old[1].close())
        return peers_pb2_grpc.PeersStub(self._channel[1])

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Carry something out on the grid loop; it ends with the runner."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _ask_changes(
    stub: peers_pb2_grpc.PeersAsyncStub, request: peers_pb2.ChangesRequest
) -> None:
    """Ask the controller; whether it was heard shows in the table."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        await stub.RequestChanges(request, timeout=FORWARD_TIMEOUT_S)


def _change(change: ChangeRequest) -> Change:
    partition, epoch, version, kind, copy, from_epoch, from_sequence = change
    return Change(
        partition=partition,
        epoch=epoch,
        version=version,
        kind=ChangeKind(kind),
        copy=copy,
        from_epoch=from_epoch,
        from_sequence=from_sequence,
    )


def _message(change: ChangeRequest) -> peers_pb2.ChangeRequest:
    partition, epoch, version, kind, copy, from_epoch, from_sequence = change
    return peers_pb2.ChangeRequest(
        partition=partition,
        epoch=epoch,
        version=version,
        kind=peers_pb2.ChangeKind.ValueType(kind),
        copy=copy,
        from_epoch=from_epoch,
        from_sequence=from_sequence,
    )


def _tell_lost_tails(partitions: tuple[int, ...]) -> None:
    if partitions:
        _log.warning(
            "served again from disk after all copies crashed: what was acknowledged as replicated "
            "only, and had not reached a disk, is lost; what was persisted is here",
            partitions=len(partitions),
            first=partitions[0],
        )
