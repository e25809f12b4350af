"""What one watcher of a coordinator knows, and what it has not been told yet.

News is merged while nobody reads, so a slow watcher costs one set of changed partitions and never a
growing queue. Who calls: memory.py and local.py (a node's side), local_server.py (one per stream).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from spacegrid.coordinator import (
    ControllerChanged,
    CoordinatorEvent,
    RegistrationEnded,
    RegistrationsChanged,
    TableChanged,
)
from spacegrid.errors import invariant
from spacegrid.machine.table import Registration, Table

__all__ = ["View"]


class View:
    """Newest table, registrations and controller, with the news merged. One loop, one reader."""

    def __init__(self) -> None:
        self.registration = Registration(name="?")
        self.registrations: tuple[Registration, ...] = ()
        self.stopping = False
        self.controller = ControllerChanged(0, 0)
        self._table: Table | None = None
        self._controller_seen = False
        #: Partitions that changed since the reader was told; None: all of it is news.
        self._changed: set[int] | None = None
        self._table_news = False
        self._registrations_news = False
        self._controller_news = False
        self._ended: RegistrationEnded | None = None
        self._closed = False
        self._wake = asyncio.Event()

    @property
    def table(self) -> Table:
        """The newest table."""
        invariant(self._table is not None, "the table was asked for before it was seen")
        assert self._table is not None
        return self._table

    @property
    def complete(self) -> bool:
        """Whether table and controller have been seen."""
        return self._table is not None and self._controller_seen

    @property
    def closed(self) -> bool:
        """Whether nothing more will come."""
        return self._closed

    def push_table(self, table: Table, changed: tuple[int, ...] | None) -> None:
        """Take a newer table; one that is older than what is known is dropped.

        Args:
            table: All of it.
            changed: Partitions that differ from the last one pushed; None: unknown.
        """
        if self._table is not None and table.revision < self._table.revision:
            return
        if changed is None:
            self._changed = None
        elif not self._table_news:
            self._changed = set(changed)
        elif self._changed is not None:
            self._changed.update(changed)
        self._table = table
        self._table_news = True
        self._wake.set()

    def push_registrations(self, registrations: tuple[Registration, ...], stopping: bool) -> None:
        """Take the nodes alive now."""
        self.registrations = registrations
        self.stopping = stopping
        self._registrations_news = True
        self._wake.set()

    def push_controller(self, controller: ControllerChanged) -> None:
        """Take the controller; one of an older term is dropped."""
        if controller.term < self.controller.term:
            return
        if self._controller_seen and controller == self.controller:
            return
        self._controller_seen = True
        self.controller = controller
        self._controller_news = True
        self._wake.set()

    def push_ended(self, reason: str) -> None:
        """Nothing more will come, and the registration is over."""
        self._ended = RegistrationEnded(reason)
        self.close()

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._wake.set()

    async def events(self) -> AsyncIterator[CoordinatorEvent]:
        """The state as it is, then what changes; see `Coordinator.events`."""
        self._changed = None
        self._table_news = self._table is not None
        self._registrations_news = self._controller_news = True
        self._wake.set()
        while True:
            await self._wake.wait()
            self._wake.clear()
            for event in self._take():
                yield event
            if self._closed:
                return

    def _take(self) -> list[CoordinatorEvent]:
        """What is new, the table first: who reads it knows it before it hears of deaths."""
        events: list[CoordinatorEvent] = []
        if self._table_news:
            changed = None if self._changed is None else tuple(sorted(self._changed))
            events.append(TableChanged(self.table, changed))
            self._table_news, self._changed = False, set()
        if self._registrations_news:
            events.append(RegistrationsChanged(self.registrations, self.stopping))
            self._registrations_news = False
        if self._controller_news:
            events.append(self.controller)
            self._controller_news = False
        if self._ended is not None:
            events.append(self._ended)
            self._ended = None
        return events
