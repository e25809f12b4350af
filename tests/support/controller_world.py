"""A cluster without data planes: the real authority, the real machines, and primaries that ask.

Each copy is modelled by how many records it holds; `commit` adds one under the rules of
PROTOCOL.md section 3. After every accepted write `check` asserts the invariants and that whatever
is called complete holds every acknowledged record.
"""

from __future__ import annotations

import msgspec
from spacegrid.coordinator.authority import Authority, AuthorityState
from spacegrid.machine.controller import Controller, ControllerConfig
from spacegrid.machine.events import (
    BecameController,
    CampaignDone,
    Change,
    ChangeKind,
    ChangesRequested,
    ControllerChanged,
    ControllerEvent,
    ControllerHeard,
    Deposed,
    RegistrationsChanged,
    TableObserved,
    WriteDone,
    WriteRefused,
    WriteTable,
)
from spacegrid.machine.standby import Standby
from spacegrid.machine.table import (
    PartitionEntry,
    Registration,
    State,
    StoredPartition,
    Table,
    check_step,
    new_table,
)

LIFE = bytes(range(16))


class World:
    def __init__(
        self,
        *,
        partitions: int = 16,
        copies: int = 2,
        min_in_sync: int = 1,
        nodes_expected: int = 1,
        motion_max: int = 64,
    ) -> None:
        table = new_table(
            LIFE,
            partition_count=partitions,
            copies=copies,
            min_in_sync=min_in_sync,
            nodes_expected=nodes_expected,
        )
        self.authority = Authority(AuthorityState(table), lambda _: None)
        self.config = ControllerConfig(motion_max=motion_max, leases=False)
        self.controller = Controller(self.config)
        self.standbys: dict[int, Standby] = {}
        self.controller_is = 0
        self.term = 0
        self.now_ms = 0
        self.in_flight: WriteTable | None = None
        self.writes: list[WriteTable] = []
        self.acknowledged = [0] * partitions
        #: Per partition: how many records each complete copy holds, in memory.
        self.memory: list[dict[int, int]] = [{} for _ in range(partitions)]
        #: Per store: what it holds after a clean stop.
        self.disks: dict[bytes, dict[int, tuple[int, int]]] = {}

    @property
    def table(self) -> Table:
        return self.authority.state.table

    @property
    def alive(self) -> tuple[int, ...]:
        return tuple(item.incarnation for item in self.authority.state.registrations)

    def entry(self, partition: int) -> PartitionEntry:
        return self.table.entries[partition]

    # ---- nodes ----

    def join(self, name: str, *, disk: bool = False, zone: str = "") -> int:
        """A node starts; with `disk` it has a store, and what that holds after a clean stop."""
        store = name.encode().ljust(16, b".") if disk else b""
        held = self.disks.pop(store, {})
        stored = tuple(
            StoredPartition(partition, epoch, sequence)
            for partition, (epoch, sequence) in held.items()
        )
        registration = Registration(name=name, store=store, stored=stored, zone=zone)
        incarnation = self.authority.register(registration).incarnation
        for item in stored:
            self.memory[item.partition][incarnation] = item.sequence
        self.tell_registrations()
        return incarnation

    def kill(self, *copies: int) -> None:
        for copy in copies:
            self.authority.end(copy, crashed=True)
            for held in self.memory:
                held.pop(copy, None)
        self.tell_registrations()

    def drain(self, copy: int) -> None:
        registration = self.authority.registered(copy)
        assert registration is not None
        self.authority.register(msgspec.structs.replace(registration, draining=True))
        self.tell_registrations()

    def stop_cluster(self, *, crash: tuple[int, ...] = ()) -> None:
        """Everything stops: cleanly, but for the nodes that crash on the way."""
        self.authority.stop_cluster()
        for registration in self.authority.state.registrations:
            copy = registration.incarnation
            if copy in crash or not registration.store:
                self.authority.end(copy, crashed=True)
                continue
            self.disks[registration.store] = {
                partition: (self.entry(partition).epoch, held[copy])
                for partition, held in enumerate(self.memory)
                if copy in held and copy in self.entry(partition).in_sync
            }
            self.authority.end(copy, crashed=False)
        for held in self.memory:
            held.clear()
        self.tell_registrations()

    def tell_registrations(self) -> None:
        """Who is alive, and who is controller now, reach the machine."""
        self.standbys = {copy: self.standbys.get(copy) or Standby(copy) for copy in self.alive}
        self.campaign()
        state = self.authority.state
        if not self.alive:
            self.controller.handle(Deposed(), self.now_ms)
            self.controller_is, self.in_flight = 0, None
            return
        if (state.controller, state.term) != (self.controller_is, self.term):
            self.controller_is, self.term = state.controller, state.term
            self.in_flight = None
            self.controller.handle(Deposed(), self.now_ms)
            self.controller = Controller(self.config)
            self.deliver(
                BecameController(
                    state.table, state.registrations, state.term, self.authority.stopping
                )
            )
            return
        self.deliver(RegistrationsChanged(state.registrations, self.authority.stopping))
        self.deliver(TableObserved(state.table))

    def campaign(self) -> None:
        """Every node hears who is there, and whoever wants the term asks for it."""
        told = RegistrationsChanged(self.authority.state.registrations, self.authority.stopping)
        for copy, standby in self.standbys.items():
            term = self.term_held()[1]
            heard = ControllerHeard(term, self.now_ms)
            for event in (ControllerChanged(*self.term_held()), heard, told):
                for effect in standby.handle(event, self.now_ms):
                    answer = self.authority.campaign(copy, effect.known_term)
                    standby.handle(CampaignDone(answer), self.now_ms)
        holder = self.term_held()[0]
        assert not self.alive or holder in self.alive, "nobody took the term"

    def term_held(self) -> tuple[int, int]:
        return self.authority.state.controller, self.authority.state.term

    # ---- the controller's shell ----

    def deliver(self, event: ControllerEvent) -> list[WriteTable]:
        effects = self.controller.handle(event, self.now_ms)
        self.controller.check()
        for write in effects:
            assert self.in_flight is None, "two writes in flight"
            self.in_flight = write
            self.writes.append(write)
        return effects

    def carry_out(self, *, watch_first: bool = False) -> None:
        """The write in flight reaches the coordinator, and the answer comes back.

        Args:
            watch_first: The watch tells of the new table before the answer does.
        """
        write, self.in_flight = self.in_flight, None
        if write is None:
            return
        before = self.table
        result = self.authority.write(write.term, write.expected_revision, write.entries)
        if not result.accepted:
            self.deliver(WriteRefused())
            self.deliver(TableObserved(self.table))
            return
        self.apply(before)
        table = self.table
        if watch_first:
            self.deliver(TableObserved(table))
        self.deliver(WriteDone(result.revision))
        if not watch_first:
            self.deliver(TableObserved(table))

    def lose_request(self) -> None:
        """The write in flight never arrives."""
        if self.in_flight is not None:
            self.in_flight = None
            self.deliver(WriteRefused())
            self.deliver(TableObserved(self.table))

    def lose_answer(self) -> None:
        """The write in flight is done, and its answer is lost."""
        write, self.in_flight = self.in_flight, None
        if write is None:
            return
        before = self.table
        if self.authority.write(write.term, write.expected_revision, write.entries).accepted:
            self.apply(before)
        self.deliver(WriteRefused())
        self.deliver(TableObserved(self.table))

    def apply(self, before: Table) -> None:
        """What the nodes do on a new table: joining copies are wiped, new ones begin empty."""
        self.table.check()
        for old, new in zip(before.entries, self.table.entries, strict=True):
            if old is new:
                continue
            check_step(old, new)
            held = self.memory[new.partition]
            for item in new.joining:
                held.pop(item.copy, None)
            if old.epoch == 0:
                held.update(dict.fromkeys(new.in_sync, 0))
            kept = {*new.in_sync, *new.former, *(tail.copy for tail in new.tails)}
            for copy in [copy for copy in held if copy not in kept and new.state is State.OK]:
                del held[copy]
        self.check()

    def check(self) -> None:
        """Whatever is called complete and lives holds all that was acknowledged."""
        for entry, held, acknowledged in zip(
            self.table.entries, self.memory, self.acknowledged, strict=True
        ):
            if entry.state is State.OK:
                for copy in entry.in_sync:
                    if copy in self.alive:
                        assert held.get(copy) == acknowledged, (entry, held, acknowledged)

    # ---- the primaries ----

    def commit(self, partition: int) -> bool:
        """One write is acknowledged, if that is possible now."""
        entry = self.entry(partition)
        members = (*entry.in_sync, *(tail.copy for tail in entry.tails))
        alive = self.alive
        if entry.state is not State.OK or len(members) < self.table.min_in_sync:
            return False
        if any(copy not in alive for copy in members):
            return False
        self.acknowledged[partition] += 1
        for copy in members:
            # A tail whose snapshot is complete holds what a complete copy does.
            if copy in self.memory[partition]:
                self.memory[partition][copy] += 1
        return True

    def requests(self, entry: PartitionEntry) -> list[Change]:
        """What the primary would ask for now."""
        alive = self.alive
        if entry.state is not State.OK or entry.primary not in alive:
            return []

        def change(kind: ChangeKind, copy: int) -> Change:
            sequence = self.acknowledged[entry.partition]
            return Change(
                entry.partition, entry.epoch, entry.version, kind, copy, entry.epoch, sequence
            )

        asked = [change(ChangeKind.TAIL, item.copy) for item in entry.joining]
        asked += [change(ChangeKind.IN_SYNC, item.copy) for item in entry.tails]
        asked = [item for item in asked if item.copy in alive]
        if entry.target in alive:
            asked.append(change(ChangeKind.STOPPED, entry.target))
        return asked

    def ask(self, changes: list[Change]) -> None:
        """Primaries ask; a snapshot is complete when IN_SYNC is asked for."""
        for change in changes:
            if change.kind is ChangeKind.IN_SYNC:
                acknowledged = self.acknowledged[change.partition]
                self.memory[change.partition][change.copy] = acknowledged
        self.deliver(ChangesRequested(tuple(changes)))

    def settle(self, rounds_max: int = 1_000) -> int:
        """Until nobody has anything to ask. Returns the rounds it took."""
        for count in range(rounds_max):
            while self.in_flight is not None:
                self.carry_out()
            asked = [change for entry in self.table.entries for change in self.requests(entry)]
            if not asked:
                return count
            self.ask(asked)
        raise AssertionError(f"not settled after {rounds_max} rounds")
