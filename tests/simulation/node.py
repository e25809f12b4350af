"""One node's process: the real core and the real machines, in a shell that the simulation drives.

As node/ does, it decides nothing: it carries frames, tables, ticks and requests between the core,
the machines, the coordinator and the other nodes, and any of that may be late, lost or cut short.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from spacegrid import _core
from spacegrid.coordinator import (
    ControllerChanged,
    CoordinatorEvent,
    RegistrationEnded,
    RegistrationsChanged,
    TableChanged,
)
from spacegrid.machine.table import Registration, State, Table, core_entry

from .control import Control
from .coordination import ASK_TIMEOUT_US, PLACE, Watch, changed
from .heartbeats import Heartbeats
from .links import Link
from .process import Process
from .schedule import MS
from .shared import SharedPump
from .turns import run_turn

if TYPE_CHECKING:
    from .machine import Machine

TICK_US = 10 * MS
PUMP_RATE = 0.2
"""Chance of a round of the shared pump with each tick."""
RETRY_US = 50 * MS


class NodeProcess(Process):
    """A node from its start to its end; `incarnation` is 0 until it is registered."""

    def __init__(self, machine: Machine, pid: int) -> None:
        super().__init__(machine.world.schedule, machine.clock)
        self.machine = machine
        self.world = machine.world
        self.place = machine.place
        self.pid = pid
        self.incarnation = 0
        disk = machine.disk
        self.registration = Registration(
            name=machine.name,
            pid=pid,
            store=disk.store if disk is not None else b"",
            stored=disk.stored() if disk is not None else (),
        )
        self.core: _core.Node | None = None
        self.table: Table | None = None
        self.registrations: dict[int, Registration] = {}
        self.control: Control | None = None
        self.links: dict[int, Link] = {}
        self.connections: dict[int, Any] = {}
        self.leaving = ""
        self.heartbeats: Heartbeats | None = None
        self.shared_pump: SharedPump | None = None
        self.chance = self.world.schedule.random(f"process {pid}")
        self._next_connection = 1
        self._next_stream = 1
        self._watch: Watch | None = None
        self._flushing = False
        self._join()

    @property
    def _control(self) -> Control:
        assert self.control is not None
        return self.control

    # ---- life

    def _join(self) -> None:
        registration = self.registration

        def ask(back: Any) -> None:
            done, result = self.world.coordination.carry_out(
                lambda authority: authority.register(registration)
            )
            self.world.coordination.registered(registration.pid)
            if done:
                back(result)

        self.world.network.call(
            self.place,
            PLACE,
            ask,
            lambda result: self.do(self._joined, result),
            lambda: self.do(self._give_up),
            ASK_TIMEOUT_US,
        )

    def _give_up(self) -> None:
        """The coordinator is out of reach: the process ends, and the machine starts another one."""
        self.machine.crash()
        self.schedule.after(RETRY_US, self.machine.start)

    def _joined(self, result: object) -> None:
        if not isinstance(result, Registration):
            self.schedule.after(RETRY_US, self.do, self._join)
            return
        self.registration = result
        self.incarnation = result.incarnation
        self.control = Control(self)
        self._connect()

    def _connect(self) -> None:
        """Begin to follow the coordinator; again after its stream broke."""
        world = self.world
        down = not world.coordination.up
        if down or world.network.is_cut(self.place, PLACE):
            self.schedule.after(RETRY_US, self.do, self._connect)
            return
        if world.coordination.authority.registered(self.incarnation) is None:
            self.machine.exit(clean=False)
            return
        self._watch = Watch(
            world.coordination,
            self.place,
            lambda events: self.do(self._hear, events),
            lambda: self.do(self._connect),
        )

    def _start(self, table: Table) -> None:
        options = self.world.options
        self.core = _core.Node(
            self.incarnation,
            table.partition_count,
            min_in_sync=table.min_in_sync,
            quota_bytes=options.quota_bytes,
            shared_sink=options.shared_sink,
            local_sink=self.machine.disk is not None,
        )
        self.core.limit_transfers(options.transfer_bytes_per_s)
        if options.shared_sink:
            self.shared_pump = SharedPump(self, self.core)
        if self.machine.disk is not None:
            self.machine.disk.start(self, self.core, table)
        self.world.started(self)
        self.core.require_lease()
        self.heartbeats = Heartbeats(self)
        self.schedule.after(self.chance.randrange(TICK_US), self.do, self._tick)

    def end(self) -> None:
        """The process is no more: the kernel closes its sockets."""
        super().end()
        for link in self.links.values():
            link.close()
        for connection in list(self.connections.values()):
            connection.peer_gone()
        if self._watch is not None:
            self._watch.close()

    def may_answer(self) -> bool:
        """Whether it has a lease, by its own clock as it is now."""
        return self.heartbeats is not None and self.clock.boot_ms() < self.heartbeats.until_ms

    # ---- what the coordinator says

    def _hear(self, events: list[CoordinatorEvent]) -> None:
        if self.core is None:
            # Who begins knows who is there before it loads what nobody else serves.
            for event in events:
                if isinstance(event, RegistrationsChanged):
                    self.registrations = {item.incarnation: item for item in event.registrations}
        for event in events:
            if self.dead:
                return
            match event:
                case TableChanged(table, changed_entries):
                    self._hear_table(table, changed_entries)
                case RegistrationsChanged(registrations, _):
                    self.registrations = {item.incarnation: item for item in registrations}
                    self._update_links()
                    self._control.registrations_changed(event)
                case ControllerChanged():
                    self._control.controller_changed(event)
                case RegistrationEnded():
                    self.machine.exit(clean=False)

    def _hear_table(self, table: Table, changed_entries: tuple[int, ...] | None) -> None:
        if self.table is not None and table.revision < self.table.revision:
            return
        first = self.core is None
        self.table = table
        if first:
            self._start(table)
            changed_entries = None
        entries = (
            table.entries
            if changed_entries is None
            else [table.entries[partition] for partition in changed_entries]
        )
        assert self.core is not None
        self.core.apply_table(
            table.revision, [core_entry(entry) for entry in entries], self.wall_ms()
        )
        assert self.heartbeats is not None
        self.heartbeats.applied(table.revision)
        if self.machine.disk is not None:
            self.machine.disk.forget_past(table)
        self.world.audit.primaries()
        self._control.table_changed(table)

    # ---- links and connections

    def _update_links(self) -> None:
        wanted = [inc for inc in self.registrations if inc != self.incarnation]
        for incarnation in [inc for inc in self.links if inc not in wanted]:
            self.links.pop(incarnation).close()
        for incarnation in wanted:
            if incarnation not in self.links:
                self.links[incarnation] = Link(self, incarnation)

    def peer_up(self, copy: int) -> None:
        """An outgoing link is up."""
        assert self.core is not None
        self.core.peer_up(copy)

    def peer_down(self, copy: int) -> None:
        """An outgoing link broke."""
        assert self.core is not None
        self.core.peer_down(copy)

    def peer_frame(self, copy: int, frame: bytes) -> None:
        """A frame of another node."""
        if self.core is not None:
            self.schedule.trace(f"{self.incarnation} < {copy}", frame)
            self.core.on_peer_frame(copy, frame, self.wall_ms())

    def accept(self, connection: Any) -> int:
        """A client connects; the number of its connection."""
        number = self._next_connection
        self._next_connection += 1
        self.connections[number] = connection
        return number

    def client_frame(self, connection: int, frame: bytes) -> None:
        """A frame of a client, perhaps of a connection that is gone."""
        if self.core is not None:
            self.schedule.trace(f"{self.incarnation} << {connection}", frame)
            self.core.on_client_frame(connection, frame, self.wall_ms())

    def client_gone(self, connection: int) -> None:
        """A client's connection broke."""
        if self.connections.pop(connection, None) is not None and self.core is not None:
            self.core.close_connection(connection)

    def open_stream(self) -> int:
        """Issue a request stream."""
        self._next_stream += 1
        return self.incarnation << 32 | self._next_stream

    def routes(self) -> tuple[int, list[int], list[list[int]]] | None:
        """What the node tells clients: revision, who answers for each partition, its backups."""
        if self.table is None:
            return None
        spokesman = min(self.registrations, default=0)
        primaries = [
            spokesman if entry.state is State.LOST else entry.primary
            for entry in self.table.entries
        ]
        backups = [
            [copy for copy in entry.in_sync if copy != entry.primary]
            for entry in self.table.entries
        ]
        return self.table.revision, primaries, backups

    # ---- effects

    def after_event(self) -> None:
        """The event loop's tick ends: what the core wants done is done soon."""
        if self.core is None or self.dead:
            return
        self.world.audit.event(self.core)
        if not self._flushing:
            self._flushing = True
            self.schedule.after(self.chance.randrange(60), self._flush)

    def _flush(self) -> None:
        if self.paused:
            self.do(self._flush)
            return
        core = self.core
        if self.dead or core is None:
            return
        self._flushing = False
        self.world.audit.committed(self.incarnation, core)
        if self.machine.disk is not None:
            core.wake_local()  # so that it does not wait
            if core.wait_local(0.0):
                self.machine.disk.pump(asked=True)
        peers = self.chance.random() >= self.world.options.pace_rate
        if not peers:
            self._flushing = True
            self.schedule.after(1 * MS, self._flush)
        # A pause may strike between the reading of the clock and the sending.
        effects = core.take_effects(peers, self.boot_ms())
        if effects is None:
            return
        acts: list[tuple[Any, tuple[Any, ...]]] = []
        acts += [(self.begin_turn, (turn,)) for turn in effects.turns]
        acts += [(self._send_peer, frame) for frame in effects.peer_frames]
        acts += [(self._send_client, frame) for frame in effects.client_frames]
        if effects.changes:
            acts.append((self._control.ask_changes, (effects.changes,)))
        self.emit(acts)

    def begin_turn(self, turn: _core.Turn) -> None:
        """A handler runs, some time later."""
        delay = self.chance.expovariate(1 / self.world.options.turn_ms) * MS
        self.schedule.after(delay, self.do, partial(run_turn, self, turn))

    def _send_peer(self, copy: int, frame: bytes) -> None:
        link = self.links.get(copy)
        if link is not None:
            link.send(frame)

    def _send_client(self, connection: int, frame: bytes) -> None:
        there = self.connections.get(connection)
        if there is not None:
            there.reply(frame)

    def _tick(self) -> None:
        assert self.core is not None
        self.schedule.after(TICK_US, self.do, self._tick)
        self.core.tick(self.wall_ms())
        self._control.tick()
        if self.machine.disk is not None:
            self.machine.disk.pump()
        if self.shared_pump is not None and self.chance.random() < PUMP_RATE:
            self.shared_pump.round()
        if self.leaving:
            self._leave_on()

    # ---- leaving

    def leave(self) -> None:
        """Begin to leave in order."""
        if self.leaving or not self.incarnation or self.core is None:
            return
        self.leaving = "drain"
        self._update(draining=True)
        self._control.tell_drain()

    def _update(self, **changes: object) -> None:
        self.registration = registration = changed(self.registration, **changes)

        def ask(back: Any) -> None:
            done, _ = self.world.coordination.carry_out(
                lambda authority: authority.register(registration)
            )
            if done:
                back()

        def again() -> None:
            if self.registration is registration:
                self._update(**changes)

        self.world.network.call(
            self.place,
            PLACE,
            ask,
            lambda: self.do(self._updated, registration),
            lambda: self.do(again),
            ASK_TIMEOUT_US,
        )

    def _updated(self, registration: Registration) -> None:
        if registration.stopped and self.leaving == "stopped":
            self.machine.exit(clean=True)

    def _leave_on(self) -> None:
        """The next step of leaving, where its condition holds."""
        assert self.core is not None
        assert self.table is not None
        others = any(
            not item.draining and not item.stopped
            for inc, item in self.registrations.items()
            if inc != self.incarnation
        )
        if self.leaving == "drain" and others and not self.table.names(self.incarnation):
            self.core.stop_all()
            self.leaving = "idle"
        elif self.leaving == "idle" and self.core.idle() and self._on_disk():
            self.leaving = "stopped"
            self._update(stopped=True)

    def _on_disk(self) -> bool:
        """Whether the disk has all that is committed; else the pump hurries."""
        disk, core = self.machine.disk, self.core
        if disk is None or core is None or disk.flushed(core):
            return True
        disk.pump(asked=True)
        return False
