"""One write in the making: the table as it is, and the entries that one event changes.

However many rules touch an entry within one event, its version grows by one, and its epoch by at
most one. Who calls: machine/controller.py and the rules beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec

from spacegrid.machine.restart import Restart
from spacegrid.machine.table import (
    CopyStore,
    PartitionEntry,
    Registration,
    State,
    StoredPartition,
    Table,
)

__all__ = ["Draft", "Nodes"]


class Nodes:
    """The nodes, as the rules ask for them."""

    def __init__(
        self,
        registrations: tuple[Registration, ...],
        drains: frozenset[int],
        suspected: frozenset[int] = frozenset(),
        unsteady: frozenset[int] = frozenset(),
        copies: int = 1,
    ) -> None:
        """Read the registrations.

        Args:
            registrations: All nodes that have not ended.
            drains: Copies that asked to leave, besides those whose registration says so.
            suspected: Those of them that do not behave: nothing is expected of them, and nothing of
                theirs is given up.
            unsteady: Those that behave and are not built on: nothing new is put there while there
                are `copies` others.
            copies: Of each partition.
        """
        self.registered = frozenset(item.incarnation for item in registrations)
        #: Those that are there and behave.
        self.live = self.registered - suspected
        self.draining = frozenset(
            item.incarnation
            for item in registrations
            if item.draining or item.stopped or item.incarnation in drains
        )
        registrations = tuple(item for item in registrations if item.incarnation in self.live)
        stay = self.live - self.draining
        steady = stay - unsteady
        #: Where copies may be put, in order of incarnation; when all drain, nowhere is better.
        self.placeable = tuple(
            sorted(steady if len(steady) >= copies else stay) or sorted(self.live)
        )
        self.names = {item.incarnation: item.name for item in registrations}
        #: What fails together; a node without a zone is one of its own.
        self._zones = {item.incarnation: item.zone or item.incarnation for item in registrations}
        self.zone_count = len({self._zones[copy] for copy in self.placeable})
        self._by_store = {item.store: item for item in registrations if item.store}
        self._stored: dict[bytes, dict[int, StoredPartition]] = {}

    def zone(self, copy: int) -> str | int:
        """The zone of a copy, also of one that is gone: that fails alone."""
        return self._zones.get(copy, copy)

    def zone_name(self, copy: int) -> str | None:
        """The name of a live node's zone; None: it has none."""
        zone = self.zone(copy)
        return zone if isinstance(zone, str) else None

    def with_store(self, store: bytes) -> Registration | None:
        """The live node that has that store now."""
        return self._by_store.get(store)

    def holds(self, copy: int, partition: int) -> bool:
        """Whether a live node found the partition in its store when it started."""
        for store, item in self._by_store.items():
            if item.incarnation == copy:
                return self.stored(store, partition) is not None
        return False

    def stored(self, store: bytes, partition: int) -> StoredPartition | None:
        """What a live node's store holds of a partition after a clean stop."""
        positions = self._stored.get(store)
        if positions is None:
            positions = {item.partition: item for item in self._by_store[store].stored}
            self._stored[store] = positions
        return positions.get(partition)


class Draft:
    """Changes on top of a table."""

    def __init__(
        self,
        table: Table,
        stores: tuple[CopyStore, ...],
        nodes: Nodes,
        answering: Callable[[int], bool] = lambda _: False,
        shunned: frozenset[tuple[int, int]] = frozenset(),
    ) -> None:
        """Begin with no change.

        Args:
            table: As it is.
            stores: Stores of the copies that it names.
            nodes: Alive now.
            answering: Whether a copy may still be answering under a lease.
            shunned: (partition, copy) that the primary could not reach a moment ago.
        """
        self.answering = answering
        self.shunned = shunned
        #: Primaries that are gone and may still be answering: they are deposed when that is over.
        self.waits: set[int] = set()
        self.table = table
        self.nodes = nodes
        self.stores = {item.copy: item for item in stores}
        self.changed: dict[int, PartitionEntry] = {}
        #: Whether a partition began to be served: the goal has to count it from now on.
        self.began = False
        self.restart = Restart()
        #: Nodes that are registered and were not heard yet: they may not have loaded their stores.
        self.unheard: frozenset[int] = frozenset()
        self._primaries: Counter[int] | None = None

    def entry(self, partition: int) -> PartitionEntry:
        """The entry with what was changed so far."""
        return self.changed.get(partition) or self.table.entries[partition]

    def version(self, partition: int) -> int:
        """The version that the entry has if it is changed: the session of what joins now."""
        return self.table.entries[partition].version + 1

    def change(self, partition: int, **fields: object) -> PartitionEntry:
        """Change fields of an entry; the version follows by itself.

        Returns:
            The entry as it is now.
        """
        entry = msgspec.structs.replace(
            self.entry(partition), version=self.version(partition), **fields
        )
        self.changed[partition] = entry
        return entry

    def serve(self, partition: int, primary: int, **fields: object) -> PartitionEntry:
        """Give a partition a primary in a new epoch, without a hand-over under way."""
        before = self.entry(partition)
        if before.state is not State.OK:
            self.began = True
        if self._primaries is not None:
            self._primaries[before.primary] -= 1
            self._primaries[primary] += 1
        # A new primary streams from its own log: a join begins again, under a new session.
        session = self.version(partition)
        fields.setdefault(
            "joining",
            tuple(msgspec.structs.replace(item, session=session) for item in before.joining),
        )
        fields.setdefault("epoch", self.table.entries[partition].epoch + 1)
        return self.change(partition, state=State.OK, primary=primary, target=0, **fields)

    def least_busy(self, copies: tuple[int, ...], preferred: int = 0) -> int:
        """The copy to be primary: the preferred one, else one that stays and has the fewest."""
        if preferred in copies:
            return preferred
        if self._primaries is None:
            self._primaries = Counter(
                self.entry(entry.partition).primary for entry in self.table.entries
            )
        counts, draining = self._primaries, self.nodes.draining
        return min(copies, key=lambda copy: (copy in draining, counts[copy], copy))
