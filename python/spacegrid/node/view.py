"""What a node knows of its cluster: the newest table, who is alive, who is controller.

Filled by the daemon from the coordinator's events; read by servers, links and the internal client.
Nothing here decides anything. Used on the grid loop only.
"""

from __future__ import annotations

from collections.abc import Mapping

from spacegrid.coordinator import ControllerChanged
from spacegrid.machine.table import Registration, State, Table
from spacegrid.v1 import data_pb2


class ClusterView:
    """The cluster as this node last heard of it.

    Attributes:
        table: Newest ownership table.
        registrations: Incarnation to registration of each node alive.
        controller: Who may write the table.
        stopping: Whether the whole cluster is stopping.
    """

    def __init__(self, table: Table, via: Mapping[str, str] | None = None) -> None:
        """Begin with a table and nobody registered.

        Args:
            table: The newest table.
            via: Node name to the address under which this node reaches it, where that is not the
                registered one.
        """
        self.table = table
        #: Names that were never heard here, of copies whose stores the table remembers.
        self._store_names = {item.copy: item.name for item in table.stores}
        self._via = dict(via or {})
        self.registrations: dict[int, Registration] = {}
        self.controller = ControllerChanged(incarnation=0, term=0)
        self.stopping = False
        self._names: dict[int, str] = {}
        self._routes: data_pb2.Routes | None = None

    @property
    def life(self) -> bytes:
        """Id of the cluster, 16 bytes."""
        return self.table.life

    def set_table(self, table: Table) -> None:
        """Take a newer table."""
        self.table = table
        self._store_names = {item.copy: item.name for item in table.stores}
        self._routes = None

    def set_registrations(self, registrations: tuple[Registration, ...]) -> None:
        """Take who is alive now."""
        self.registrations = {r.incarnation: r for r in registrations}
        self._names.update((r.incarnation, r.name) for r in registrations)
        self._routes = None

    def name(self, incarnation: int) -> str:
        """Name of a node, also of one that is gone; its number where nothing is known of it."""
        known = self._names.get(incarnation) or self._store_names.get(incarnation)
        return known or f"#{incarnation}"

    def peer_address(self, registration: Registration) -> str:
        """The address under which this node reaches another; clients get the registered one."""
        return self._via.get(registration.name, registration.address)

    def peer_addresses(self) -> dict[int, str]:
        """Incarnation of each node alive to the address under which this node reaches it."""
        return {inc: self.peer_address(r) for inc, r in self.registrations.items()}

    def peers(self) -> list[tuple[str, str, int]]:
        """Name, address and incarnation of each node alive, as this node reaches it."""
        return [(r.name, self.peer_address(r), inc) for inc, r in self.registrations.items()]

    def routes(self) -> data_pb2.Routes:
        """The routing table for clients; nodes that are gone have no partitions."""
        if self._routes is None:
            index = {inc: n for n, inc in enumerate(sorted(self.registrations), start=1)}
            self._routes = data_pb2.Routes(
                revision=self.table.revision,
                nodes=[
                    data_pb2.RouteNode(
                        name=self.registrations[inc].name,
                        address=self.registrations[inc].address,
                        incarnation=inc,
                    )
                    for inc in index
                ],
                primaries=[index.get(primary, 0) for primary in self.answering()],
                backups=[
                    data_pb2.Backups(
                        nodes=[index[c] for c in e.in_sync if c != e.primary and c in index]
                    )
                    for e in self.table.entries
                ],
            )
        return self._routes

    def answering(self) -> list[int]:
        """Incarnation that answers for each partition, 0: nobody.

        That is the primary; for a partition that has lost every copy it is any node, which says so.
        """
        spokesman = min(self.registrations, default=0)
        return [
            spokesman if entry.state is State.LOST else entry.primary
            for entry in self.table.entries
        ]

    def alone(self, incarnation: int) -> bool:
        """Whether no other node could take over what this one holds."""
        return not any(
            not r.draining and not r.stopped
            for inc, r in self.registrations.items()
            if inc != incarnation
        )
