"""Ownership table and registrations, to and from their messages.

Every decoder checks what it reads against the limits before it keeps it, and fails with
`ProtocolError`. Who calls: coordinator/, node/.
"""

from __future__ import annotations

from collections.abc import Iterable

from spacegrid import limits
from spacegrid.errors import ProtocolError
from spacegrid.machine.events import Change, ChangeKind
from spacegrid.machine.table import (
    EPOCH_MAX,
    CopyStore,
    Joining,
    PartitionEntry,
    Registration,
    State,
    StoredPartition,
    Table,
    Tail,
)
from spacegrid.v1 import coordinator_pb2 as pb
from spacegrid.v1 import peers_pb2

__all__ = [
    "COPIES_MAX",
    "change_from_pb",
    "change_to_pb",
    "entry_from_pb",
    "entry_to_pb",
    "registration_from_pb",
    "registration_to_pb",
    "stores_from_pb",
    "stores_to_pb",
    "table_from_pb",
    "table_to_pb",
]

#: Copies that one list of an entry may name.
COPIES_MAX = 64
#: Bytes of ids of stores and clusters.
ID_BYTES = 16


def entry_to_pb(entry: PartitionEntry) -> pb.PartitionEntry:
    """One entry as its message."""
    return pb.PartitionEntry(
        partition=entry.partition,
        epoch=entry.epoch,
        version=entry.version,
        state=int(entry.state),  # type: ignore[arg-type]
        primary=entry.primary,
        in_sync=entry.in_sync,
        former=entry.former,
        joining=[pb.JoiningCopy(copy=item.copy, session=item.session) for item in entry.joining],
        tails=[
            pb.TailCopy(
                copy=item.copy,
                session=item.session,
                from_epoch=item.from_epoch,
                from_sequence=item.from_sequence,
                predecessor=item.predecessor,
            )
            for item in entry.tails
        ],
        target=entry.target,
    )


def entry_from_pb(message: pb.PartitionEntry) -> PartitionEntry:
    """One entry from its message.

    Raises:
        ProtocolError: An unknown state, or a number over its limit.
    """
    if message.partition >= limits.PARTITIONS_MAX:
        raise ProtocolError(f"partition {message.partition} is over {limits.PARTITIONS_MAX - 1}")
    if message.epoch > EPOCH_MAX:
        raise ProtocolError(f"epoch {message.epoch} is over {EPOCH_MAX}")
    for values in (message.in_sync, message.former, message.joining, message.tails):
        if len(values) > COPIES_MAX:
            raise ProtocolError(f"partition {message.partition} names over {COPIES_MAX} copies")
    try:
        state = State(message.state)
    except ValueError:
        raise ProtocolError(f"state {message.state} of a partition is unknown") from None
    return PartitionEntry(
        partition=message.partition,
        epoch=message.epoch,
        version=message.version,
        state=state,
        primary=message.primary,
        in_sync=tuple(message.in_sync),
        former=tuple(message.former),
        joining=tuple(Joining(item.copy, item.session) for item in message.joining),
        tails=tuple(
            Tail(item.copy, item.session, item.from_epoch, item.from_sequence, item.predecessor)
            for item in message.tails
        ),
        target=message.target,
    )


def stores_to_pb(stores: Iterable[CopyStore]) -> list[pb.CopyStore]:
    """Stores as their messages."""
    return [
        pb.CopyStore(copy=item.copy, store=item.store, crashed=item.crashed, name=item.name)
        for item in stores
    ]


def stores_from_pb(messages: Iterable[pb.CopyStore]) -> tuple[CopyStore, ...]:
    """Stores from their messages.

    Raises:
        ProtocolError: A store id of another length.
    """
    return tuple(
        CopyStore(item.copy, _id(item.store, "store"), item.crashed, item.name) for item in messages
    )


def table_to_pb(table: Table) -> pb.Table:
    """The whole table as its message."""
    return pb.Table(
        revision=table.revision,
        life=table.life,
        partition_count=table.partition_count,
        copies=table.copies,
        min_in_sync=table.min_in_sync,
        entries=[entry_to_pb(entry) for entry in table.entries],
        stores=stores_to_pb(table.stores),
        stopped=table.stopped,
        nodes_expected=table.nodes_expected,
    )


def table_from_pb(message: pb.Table) -> Table:
    """The whole table from its message.

    Raises:
        ProtocolError: Entries missing or out of order, or numbers over their limits.
    """
    entries = tuple(entry_from_pb(entry) for entry in message.entries)
    if len(entries) != message.partition_count or any(
        entry.partition != index for index, entry in enumerate(entries)
    ):
        raise ProtocolError(
            f"table has {len(entries)} entries for {message.partition_count} partitions, "
            "or they are out of order"
        )
    return Table(
        revision=message.revision,
        life=_id(message.life, "cluster id"),
        partition_count=message.partition_count,
        copies=message.copies,
        min_in_sync=message.min_in_sync,
        entries=entries,
        stores=stores_from_pb(message.stores),
        stopped=message.stopped,
        nodes_expected=message.nodes_expected,
    )


def registration_to_pb(registration: Registration) -> pb.Registration:
    """A registration as its message."""
    return pb.Registration(
        name=registration.name,
        address=registration.address,
        incarnation=registration.incarnation,
        pid=registration.pid,
        store=registration.store,
        draining=registration.draining,
        stored=[
            pb.StoredPartition(partition=item.partition, epoch=item.epoch, sequence=item.sequence)
            for item in registration.stored
        ],
        stopped=registration.stopped,
        zone=registration.zone,
    )


def registration_from_pb(message: pb.Registration) -> Registration:
    """A registration from its message.

    Raises:
        ProtocolError: A name or a list over its limit, or a store id of another length.
    """
    if not 1 <= len(message.name.encode()) <= limits.NAME_BYTES_MAX:
        raise ProtocolError(
            f"node name {message.name[:64]!r} must have 1 to {limits.NAME_BYTES_MAX} bytes"
        )
    if len(message.zone.encode()) > limits.NAME_BYTES_MAX:
        raise ProtocolError(
            f"zone {message.zone[:64]!r} must have at most {limits.NAME_BYTES_MAX} bytes"
        )
    if len(message.stored) > limits.PARTITIONS_MAX:
        raise ProtocolError(
            f"{len(message.stored)} stored partitions are over {limits.PARTITIONS_MAX}"
        )
    return Registration(
        name=message.name,
        address=message.address,
        incarnation=message.incarnation,
        pid=message.pid,
        store=_id(message.store, "store") if message.store else b"",
        draining=message.draining,
        stored=tuple(
            StoredPartition(item.partition, item.epoch, item.sequence) for item in message.stored
        ),
        stopped=message.stopped,
        zone=message.zone,
    )


def change_to_pb(change: Change) -> peers_pb2.ChangeRequest:
    """A primary's request for a change as its message."""
    return peers_pb2.ChangeRequest(
        partition=change.partition,
        epoch=change.epoch,
        version=change.version,
        kind=int(change.kind),  # type: ignore[arg-type]
        copy=change.copy,
        from_epoch=change.from_epoch,
        from_sequence=change.from_sequence,
    )


def change_from_pb(message: peers_pb2.ChangeRequest) -> Change:
    """A primary's request for a change from its message.

    Raises:
        ProtocolError: An unknown kind.
    """
    try:
        kind = ChangeKind(message.kind)
    except ValueError:
        raise ProtocolError(f"change kind {message.kind} is unknown") from None
    return Change(
        partition=message.partition,
        epoch=message.epoch,
        version=message.version,
        kind=kind,
        copy=message.copy,
        from_epoch=message.from_epoch,
        from_sequence=message.from_sequence,
    )


def _id(value: bytes, what: str) -> bytes:
    if len(value) != ID_BYTES:
        raise ProtocolError(f"{what} has {len(value)} bytes, {ID_BYTES} expected")
    return value
