"""What every coordinator holds a change to, whoever keeps the state.

Pure functions over tables and registrations. Who calls: authority.py (memory, local) and etcd/.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from spacegrid.errors import ProtocolError
from spacegrid.machine.table import CopyStore, PartitionEntry, Registration, Table

__all__ = ["NODES_MAX", "check_new", "clash", "crash_stores", "written"]

#: Nodes that may be registered at one time.
NODES_MAX: Final = 1_000


def clash(registrations: Iterable[Registration], new: Registration) -> Registration | None:
    """The node that already uses the new one's name or store."""
    for other in registrations:
        if other.name == new.name or (new.store and other.store == new.store):
            return other
    return None


def check_new(registrations: Sequence[Registration], new: Registration) -> None:
    """Refuse a node that can't be registered beside those that are.

    Raises:
        ProtocolError: There are too many, or its name or its store is in use.
    """
    if len(registrations) >= NODES_MAX:
        raise ProtocolError(f"{NODES_MAX} nodes are registered, which is the limit")
    other = clash(registrations, new)
    if other is None:
        return
    if other.name == new.name:
        raise ProtocolError(f"node name {new.name!r} is in use by process {other.pid}")
    raise ProtocolError(f"store {new.store.hex()} is in use by node {other.name!r}")


def written(
    table: Table, entries: Iterable[PartitionEntry], registrations: Iterable[Registration]
) -> Table:
    """The table after a write of the controller.

    Args:
        table: As it is.
        entries: Each with a higher version than the one it replaces; none: the revision grows.
        registrations: Nodes alive, whose stores the table remembers once it names them.

    Raises:
        ProtocolError: An entry that can't be right.
    """
    changed = list(entries)
    for entry in changed:
        if not 0 <= entry.partition < table.partition_count:
            raise ProtocolError(f"partition {entry.partition} is over {table.partition_count - 1}")
        before = table.entries[entry.partition].version
        if entry.version <= before:
            raise ProtocolError(
                f"partition {entry.partition} has version {before}, {entry.version} is not after it"
            )
    after = table.apply(table.revision + 1, changed, stopped=False)
    return msgspec.structs.replace(after, stores=_stores_of(after, registrations))


def crash_stores(stores: tuple[CopyStore, ...], copy: int) -> tuple[CopyStore, ...]:
    """The stores after a copy ended without a clean stop: what it has on disk is behind."""
    return tuple(
        msgspec.structs.replace(store, crashed=True) if store.copy == copy else store
        for store in stores
    )


def _stores_of(table: Table, registrations: Iterable[Registration]) -> tuple[CopyStore, ...]:
    """The stores of all copies that the table names: what is known of them stays known."""
    known = {item.copy: item for item in table.stores}
    for registration in registrations:
        if registration.store and registration.incarnation not in known:
            known[registration.incarnation] = CopyStore(
                registration.incarnation, registration.store, name=registration.name
            )
    named: set[int] = set()
    for entry in table.entries:
        named.update(entry.in_sync)
        if entry.former or entry.joining or entry.tails:
            named.update(entry.members(), entry.former)
    return tuple(known[copy] for copy in sorted(named) if copy in known)
