"""A coordinator in the process of its nodes: for an embedded grid and for tests.

Several nodes of one process share an `Authority`; with a `DurableFile` behind it an embedded grid
starts again from its disk. The end of the process is the end of everything, so nothing watches.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from spacegrid.coordinator import (
    REGISTERED_FOR_EVER,
    ControllerChanged,
    CoordinatorEvent,
    WriteResult,
)
from spacegrid.coordinator.authority import Authority, AuthorityState
from spacegrid.coordinator.durable import DurableFile
from spacegrid.coordinator.view import View
from spacegrid.errors import ConfigError, ProtocolError
from spacegrid.machine.table import PartitionEntry, Registration, Table

__all__ = ["MemoryCoordinator", "open_authority"]


def open_authority(table: Table, file: DurableFile | None = None) -> Authority:
    """An authority over a new table, or over what its file holds.

    Nodes that the file names as alive are ended: they were of a process that is no more. Whether
    they had stopped cleanly is for their stores to say.

    Args:
        table: The table of a new space.
        file: Where to keep it; None keeps it in memory only.

    Raises:
        ConfigError: The file is damaged, or holds a space with another partition count, copies or
            ``min_in_sync``.
    """
    saved = file.load() if file is not None else None
    if saved is not None:
        for what in ("partition_count", "copies", "min_in_sync"):
            if getattr(saved.table, what) != getattr(table, what):
                raise ConfigError(
                    f"the space has {what} {getattr(saved.table, what)}, "
                    f"{getattr(table, what)} was asked for\nhint: it is set when a space is created"
                )
    authority = Authority(
        saved or AuthorityState(table), file.save if file is not None else lambda _: None
    )
    for registration in authority.state.registrations:
        authority.end(registration.incarnation, crashed=False)
    return authority


class MemoryCoordinator:
    """One node's access to an authority of the same process; implements `Coordinator`."""

    def __init__(self, authority: Authority) -> None:
        """Not registered yet; see `join`."""
        self.authority = authority
        self._view = View()

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
        """The nodes alive."""
        return self._view.registrations

    @property
    def stopping(self) -> bool:
        """Whether the whole cluster is stopping."""
        return self._view.stopping

    @property
    def controller(self) -> ControllerChanged:
        """Who may write the table."""
        return self._view.controller

    @property
    def registered_until_ms(self) -> int:
        """For ever: the end of the process is what ends the registration."""
        return REGISTERED_FOR_EVER if self.registration.incarnation and not self._view.closed else 0

    async def join(self, registration: Registration) -> Registration:
        """Register the node; see `Coordinator.join`."""
        self._view.registration = self.authority.register(registration)
        self.authority.watch(self._view)
        return self._view.registration

    async def update(self, registration: Registration) -> None:
        """Replace the registration; see `Coordinator.update`."""
        self._check_alive()
        self._view.registration = self.authority.register(registration)

    def events(self) -> AsyncIterator[CoordinatorEvent]:
        """What changes; see `Coordinator.events`."""
        return self._view.events()

    async def campaign(self, known_term: int) -> ControllerChanged:
        """Take the next term; see `Coordinator.campaign`."""
        return self.authority.campaign(self.registration.incarnation, known_term)

    async def confirm(self) -> ControllerChanged:
        """Who holds the term; see `Coordinator.confirm`."""
        return self.authority.controller

    async def write(
        self, term: int, expected_revision: int, entries: Iterable[PartitionEntry]
    ) -> WriteResult:
        """Write the table; see `Coordinator.write`."""
        return self.authority.write(term, expected_revision, entries)

    async def stop_cluster(self) -> None:
        """Mark the cluster as stopping; see `Coordinator.stop_cluster`."""
        self.authority.stop_cluster()

    async def close(self) -> None:
        """End the registration; see `Coordinator.close`."""
        self.authority.unwatch(self._view)
        self._view.close()
        self.authority.end(self.registration.incarnation, crashed=not self.registration.stopped)

    def kill(self) -> None:
        """End the node as kill -9 would; for tests."""
        self.authority.unwatch(self._view)
        self._view.close()
        self.authority.end(self.registration.incarnation, crashed=True)

    def _check_alive(self) -> None:
        if self.authority.registered(self.registration.incarnation) is None:
            raise ProtocolError(f"incarnation {self.registration.incarnation} has ended")
