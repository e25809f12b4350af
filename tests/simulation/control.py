"""The shell around a node's controller machines, as node/controller_runner.py is.

Carries out what `Controller` and `Standby` want, with answers that may be late or lost, and brings
what this node's primaries ask for to whoever is controller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from spacegrid.coordinator.authority import Authority
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
from spacegrid.machine.table import Table

from .coordination import ASK_TIMEOUT_US, PLACE
from .schedule import MS, SECOND

if TYPE_CHECKING:
    from .node import NodeProcess

NOBODY_US = 50 * MS


class Control:
    """One node's part in control.

    Attributes:
        active: This node is the controller.
        holder: Who is, as last heard.
    """

    def __init__(self, process: NodeProcess) -> None:
        self.process = process
        self.world = process.world
        self.active = False
        self.holder = ControllerChanged(0, 0)
        self.machine = Controller(ControllerConfig(motion_max=self.world.options.motion_max))
        self.standby = Standby(process.incarnation)
        self._term = 0
        self._waiting: dict[tuple[int, int], tuple[int, ...]] = {}
        self._forwarding = False

    # ---- what is heard

    def controller_changed(self, event: ControllerChanged) -> None:
        """Begin or end to be the controller."""
        self._handle_standby(event)
        if event.term < self.holder.term:
            return
        self.holder = event
        process = self.process
        if event.incarnation == process.incarnation:
            if event.term == self._term:
                return
            self.active, self._term = True, event.term
            assert process.table is not None
            registrations = tuple(process.registrations.values())
            self._handle(BecameController(process.table, registrations, event.term))
        elif self.active:
            self._handle(Deposed())
            self.active = False

    def registrations_changed(self, event: RegistrationsChanged) -> None:
        """Who is alive."""
        self._handle_standby(event)
        if self.active:
            self._handle(event)

    def table_changed(self, table: Table) -> None:
        """What the coordinator has."""
        if self.active:
            self._handle(TableObserved(table))

    def tick(self) -> None:
        """Time passes."""
        now_ms = self.process.boot_ms()
        for machine, handle in (
            (self.machine, self._handle),
            (self.standby, self._handle_standby),
        ):
            due_ms = machine.next_deadline_ms()  # type: ignore[attr-defined]
            if due_ms is not None and now_ms >= due_ms:
                handle(Ticked())  # type: ignore[operator]

    # ---- what the machines want

    def _handle(self, event: ControllerEvent) -> list[Effect]:
        effects = self.machine.handle(event, self.process.boot_ms())
        self.machine.check()
        acts: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        for effect in effects:
            match effect:
                case WriteTable():
                    acts.append((self._write, (effect,)))
                case ConfirmTerm():
                    acts.append((self._confirm, (effect,)))
                case HeartbeatAnswer():
                    pass  # whoever handed the heartbeat in takes it
        self.process.emit(acts)
        return effects

    def _handle_standby(self, event: StandbyEvent) -> None:
        effects = self.standby.handle(event, self.process.boot_ms())
        self.process.emit([(self._campaign, (effect,)) for effect in effects])

    def _ask(
        self,
        change: Callable[[Authority], Any],
        answer: Callable[[Any], None],
        lost: Callable[[], None],
    ) -> None:
        """Ask the coordinator; whoever answers, the process hears of it when it runs."""
        process = self.process

        def ask(back: Callable[..., None]) -> None:
            done, result = self.world.coordination.carry_out(change)
            if done:
                back(result)

        self.world.network.call(
            process.place,
            PLACE,
            ask,
            lambda result: process.do(answer, result),
            lambda: process.do(lost),
            ASK_TIMEOUT_US,
        )

    def _write(self, effect: WriteTable) -> None:
        self.world.schedule.trace(
            f"{self.process.incarnation} writes at {effect.expected_revision}"
        )

        def written(result: Any) -> None:
            accepted = getattr(result, "accepted", False)
            self._handle(WriteDone(result.revision) if accepted else WriteRefused())

        def write(authority: Authority) -> Any:
            result = authority.write(effect.term, effect.expected_revision, effect.entries)
            newest = authority.state.term
            if getattr(result, "accepted", False) and effect.term != newest:
                self.world.audit.violation(f"term {effect.term} writes the table in {newest}")
            return result

        self._ask(
            write,
            written,
            lambda: self._handle(WriteRefused()),
        )

    def _confirm(self, effect: ConfirmTerm) -> None:
        self._ask(
            lambda authority: authority.controller,
            lambda found: self._handle(TermConfirmed(effect.number, found)),
            lambda: self._handle(ConfirmFailed(effect.number)),
        )

    def _campaign(self, effect: Campaign) -> None:
        def answered(result: Any) -> None:
            if not isinstance(result, ControllerChanged):
                self._handle_standby(CampaignFailed())
                return
            self._handle_standby(CampaignDone(result))
            self.controller_changed(result)

        self._ask(
            lambda authority: authority.campaign(self.process.incarnation, effect.known_term),
            answered,
            lambda: self._handle_standby(CampaignFailed()),
        )

    # ---- heartbeats

    def take_heartbeat(
        self, sender: int, nonce: int, progress: tuple[int, ...], heard_term: int
    ) -> HeartbeatAnswer:
        """Take the heartbeat of a node, this one too, and say what it is answered."""
        if sender != self.process.incarnation:
            self._handle_standby(PeerHeard(sender, heard_term))
        for effect in self._handle(Heartbeat(sender, nonce, progress)):
            if isinstance(effect, HeartbeatAnswer):
                return effect
        return HeartbeatAnswer(sender, nonce)

    def heard_term(self, term: int, at_ms: int) -> int:
        """The term whose holder this node has heard lately."""
        self._handle_standby(ControllerHeard(term, at_ms))
        self._handle_standby(Ticked())
        return self.standby.heard_term(self.process.boot_ms())

    # ---- what primaries and leaving nodes ask for

    def take_changes(self, sender: int, changes: list[tuple[int, ...]]) -> None:
        """A primary asks for changes; not the controller: dropped, it asks again."""
        if self.active:
            self._handle(ChangesRequested(tuple(map(_change, changes)), sender))

    def take_drain(self, sender: int) -> None:
        """A node says that it is leaving."""
        if self.active:
            self._handle(DrainRequested(sender))

    def ask_changes(self, changes: list[tuple[int, ...]]) -> None:
        """This node's primaries ask for changes."""
        for change in changes:
            self._waiting[change[0], change[4]] = change
        self._forward()

    def tell_drain(self) -> None:
        """Tell the controller that this node is leaving."""
        if self.active:
            self.take_drain(self.process.incarnation)
        else:
            me = self.process.incarnation
            self.tell(lambda there: there.take_drain(me), lambda: None)

    def _forward(self) -> None:
        if not self._waiting or self._forwarding:
            return
        changes, self._waiting = list(self._waiting.values()), {}
        if self.active:
            self.take_changes(self.process.incarnation, changes)
            return
        self._forwarding = True
        me = self.process.incarnation

        def over() -> None:
            self._forwarding = False
            self._forward()

        self.tell(lambda there: there.take_changes(me, changes), over)

    def tell(self, what: Callable[[Control], None], over: Callable[[], None]) -> None:
        """Send something to the controller; `over` when it was taken, or surely is not."""
        process = self.process
        there = self.world.processes.get(self.holder.incarnation)

        def ask(back: Callable[..., None]) -> None:
            if there is not None and not there.dead and there.control is not None:
                there.do(what, there.control)
                back()

        self.world.network.call(
            process.place,
            there.place if there is not None else process.place,
            ask,
            lambda: process.do(over),
            lambda: process.do(over),
            2 * SECOND if there is not None else NOBODY_US,
        )


def _change(change: tuple[int, ...]) -> Change:
    partition, epoch, version, kind, copy, from_epoch, from_sequence = change
    return Change(partition, epoch, version, ChangeKind(kind), copy, from_epoch, from_sequence)
