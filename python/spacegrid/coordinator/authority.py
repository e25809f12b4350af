"""What a coordinator decides: incarnations, who gets the next term, which write counts.

Synchronous and without I/O of its own: `save` is called with the new state before anyone is told
(C4), and each `View` in `watchers` is told after that. memory.py runs it in the process of an
embedded grid, local_server.py in a process of its own.

It chooses no controller: a term goes to the first registered node that asks for it knowing the one
before (machine/standby.py says when a node asks), and stays with it until another takes the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from spacegrid.coordinator import ControllerChanged, WriteResult, rules
from spacegrid.coordinator.view import View
from spacegrid.errors import ProtocolError
from spacegrid.machine.table import PartitionEntry, Registration, Table

__all__ = ["Authority", "AuthorityState"]


class AuthorityState(msgspec.Struct, frozen=True):
    """All that must survive the coordinator's own end.

    Attributes:
        table: The ownership table.
        next_incarnation: The next to give.
        term: The last given.
        controller: Incarnation that took it, also when it has ended since; 0: nobody yet.
        registrations: Nodes alive, in order of incarnation.
        stopping: Incarnations that were alive when the cluster was told to stop and have not ended.
        process_starts: What tells a registered process from a later one of the same pid.
    """

    table: Table
    next_incarnation: int = 1
    term: int = 0
    controller: int = 0
    registrations: tuple[Registration, ...] = ()
    stopping: tuple[int, ...] = ()
    process_starts: dict[int, int] = {}


class Authority:
    """The state and its six changes; see the module."""

    def __init__(self, state: AuthorityState, save: Callable[[AuthorityState], None]) -> None:
        """Take over a state.

        Args:
            state: As it was saved last, or a new one.
            save: Makes a state durable; raises when it can't, and then nothing has changed.
        """
        self.state = state
        self.watchers: list[View] = []
        self._save = save

    @property
    def stopping(self) -> bool:
        """Whether the cluster was told to stop and some of its nodes are still there."""
        return bool(self.state.stopping)

    @property
    def controller(self) -> ControllerChanged:
        """Who holds the term."""
        return ControllerChanged(self.state.controller, self.state.term)

    def watch(self, view: View) -> None:
        """Tell the view what is, and from now on what changes."""
        view.push_table(self.state.table, None)
        view.push_registrations(self.state.registrations, self.stopping)
        view.push_controller(self.controller)
        self.watchers.append(view)

    def unwatch(self, view: View) -> None:
        """Tell the view nothing more."""
        if view in self.watchers:
            self.watchers.remove(view)

    def registered(self, incarnation: int) -> Registration | None:
        """The registration of that incarnation, if it is alive."""
        for registration in self.state.registrations:
            if registration.incarnation == incarnation:
                return registration
        return None

    def register(self, registration: Registration, process_start: int = 0) -> Registration:
        """Accept a node, or a newer word of one that is registered.

        Args:
            registration: Incarnation 0 asks for a new one.
            process_start: Start time of its process, to tell it from a later one of the same pid.

        Returns:
            The registration with its incarnation.

        Raises:
            ProtocolError: That incarnation has ended, its name or store is in use by another node,
                the cluster is stopping, or there are too many nodes.
        """
        if registration.incarnation:
            if self.registered(registration.incarnation) is None:
                raise ProtocolError(f"incarnation {registration.incarnation} has ended")
            self._change(self._with_registration(registration))
            return registration
        if self.stopping:
            raise ProtocolError("the cluster is stopping\nhint: start again once it has stopped")
        rules.check_new(self.state.registrations, registration)
        state = self.state
        registration = msgspec.structs.replace(registration, incarnation=state.next_incarnation)
        self._change(
            msgspec.structs.replace(
                state,
                next_incarnation=state.next_incarnation + 1,
                registrations=(*state.registrations, registration),
                process_starts={**state.process_starts, registration.incarnation: process_start},
            )
        )
        return registration

    def end(self, incarnation: int, *, crashed: bool) -> None:
        """A node has surely ended.

        Args:
            incarnation: Which; one that is not registered changes nothing.
            crashed: It had not said that it stopped cleanly, so its store is behind its memory.
        """
        if self.registered(incarnation) is None:
            return
        state = self.state
        table = state.table
        if crashed and any(store.copy == incarnation for store in table.stores):
            stores = rules.crash_stores(table.stores, incarnation)
            table = msgspec.structs.replace(table, stores=stores)
        self._change(
            msgspec.structs.replace(
                state,
                table=table,
                registrations=tuple(
                    item for item in state.registrations if item.incarnation != incarnation
                ),
                stopping=tuple(item for item in state.stopping if item != incarnation),
                process_starts={
                    key: value for key, value in state.process_starts.items() if key != incarnation
                },
            )
        )

    def campaign(self, incarnation: int, known_term: int) -> ControllerChanged:
        """Give the next term to a node, if the last one given is the one that it knows.

        Args:
            incarnation: The node that asks.
            known_term: The term last heard of by it.

        Returns:
            Who holds the term now.

        Raises:
            ProtocolError: That incarnation has ended, or was never there.
        """
        if self.registered(incarnation) is None:
            raise ProtocolError(f"incarnation {incarnation} has ended")
        if known_term == self.state.term:
            self._change(
                msgspec.structs.replace(self.state, controller=incarnation, term=known_term + 1)
            )
        return self.controller

    def write(
        self, term: int, expected_revision: int, entries: Iterable[PartitionEntry]
    ) -> WriteResult:
        """Write entries of the controller.

        Args:
            term: Must be the current one.
            expected_revision: Must be the table's.
            entries: Each with a higher version than the one it replaces; none: the revision grows.

        Returns:
            Whether it was written. Refused as well while the cluster is stopping.

        Raises:
            ProtocolError: An entry that can't be right; nothing is written.
        """
        table = self.state.table
        if self.stopping or term != self.state.term or expected_revision != table.revision:
            return WriteResult(False, table.revision)
        changed = list(entries)
        table = rules.written(table, changed, self.state.registrations)
        self._change(
            msgspec.structs.replace(self.state, table=table),
            tuple(entry.partition for entry in changed),
        )
        return WriteResult(True, table.revision)

    def stop_cluster(self) -> None:
        """Mark the cluster as stopping; nothing is written until it has stopped and begun anew."""
        state = self.state
        if self.stopping or not state.registrations:
            return
        self._change(
            msgspec.structs.replace(
                state,
                table=state.table.apply(state.table.revision + 1, (), stopped=True),
                stopping=tuple(item.incarnation for item in state.registrations),
            )
        )

    def _with_registration(self, registration: Registration) -> AuthorityState:
        registrations = tuple(
            registration if item.incarnation == registration.incarnation else item
            for item in self.state.registrations
        )
        return msgspec.structs.replace(self.state, registrations=registrations)

    def _change(self, state: AuthorityState, changed: tuple[int, ...] = ()) -> None:
        """Save, then tell everyone what is different."""
        before = self.state
        self._save(state)
        self.state = state
        for view in self.watchers:
            if state.table is not before.table:
                view.push_table(state.table, changed)
            if (state.registrations, state.stopping) != (before.registrations, before.stopping):
                view.push_registrations(state.registrations, self.stopping)
            if state.term != before.term:
                view.push_controller(self.controller)
