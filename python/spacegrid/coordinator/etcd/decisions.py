"""Each change of a space as one transaction of etcd, decided from what was read.

Every function takes an image and answers either `Done` (nothing is left to do, and this is the
result) or `Try` (a transaction, and the result if it is carried out). The caller sends it, and when
it is not carried out, or nobody knows, reads again and asks again: a change that was made after all
is then recognised as done. So a lost answer never makes a change twice, and each transaction
compares all that it was decided on.

Who calls: coordinator.py. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from spacegrid.coordinator import ControllerChanged, WriteResult, rules
from spacegrid.coordinator.etcd import api_pb2 as api
from spacegrid.coordinator.etcd import layout
from spacegrid.coordinator.etcd.image import Image
from spacegrid.coordinator.etcd.layout import Head, Keys, Meta, NodeRecord, Stopping, Term
from spacegrid.errors import ConnectionFailed, ProtocolError
from spacegrid.machine.table import PartitionEntry, Registration, Table

__all__ = [
    "Done",
    "Try",
    "campaign",
    "create",
    "end",
    "join",
    "remove",
    "restored",
    "revive",
    "stop_cluster",
    "update",
    "write",
]

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Done(Generic[T_co]):
    """Nothing is left to do."""

    result: T_co


@dataclass(frozen=True)
class Try(Generic[T_co]):
    """A transaction, and the result if it is carried out."""

    request: api.TxnRequest
    result: T_co


def create(image: Image, meta: Meta, table: Table) -> Try[None] | Done[None]:
    """Create the space, unless somebody did.

    Args:
        image: As read.
        meta: What it is created with.
        table: Its first table.
    """
    if image.meta is not None:
        return Done(None)
    keys = image.keys
    puts = [
        _put(keys.meta, meta),
        _put(keys.next, 1),
        _put(keys.term, Term()),
        _put(keys.head, Head(table.revision)),
        _put(keys.stores, ()),
        _put(keys.stopping, Stopping()),
    ]
    puts += [
        _raw_put(keys.chunk(index), layout.chunk_value(table, index))
        for index in range(layout.chunk_count(table.partition_count))
    ]
    return Try(api.TxnRequest(compare=[_absent(keys.meta)], success=puts), None)


def join(image: Image, record: NodeRecord, lease: int) -> Try[Registration] | Done[Registration]:
    """Register a node under a new incarnation.

    Args:
        image: As read.
        record: Of incarnation 0.
        lease: The etcd lease that the node keeps.

    Raises:
        ProtocolError: The cluster is stopping, or the node can't be registered beside the others.
    """
    for other in image.nodes.values():
        if other.boot == record.boot:
            return Done(other.registration)
    if image.stopping:
        raise ProtocolError("the cluster is stopping\nhint: start again once it has stopped")
    rules.check_new(image.registrations, record.registration)
    keys, incarnation = image.keys, image.next
    registration = msgspec.structs.replace(record.registration, incarnation=incarnation)
    record = msgspec.structs.replace(record, registration=registration)
    request = api.TxnRequest(
        compare=[_same(image, key) for key in (keys.meta, keys.next, keys.stopping)],
        success=[
            _put(keys.next, incarnation + 1),
            _put(keys.node(incarnation), record),
            _raw_put(keys.alive_of(incarnation), b"", lease),
        ],
    )
    return Try(request, registration)


def update(image: Image, record: NodeRecord) -> Try[None] | Done[None]:
    """Replace a node's own record.

    Raises:
        ProtocolError: The registration has ended.
    """
    incarnation = record.registration.incarnation
    if _alive(image, incarnation) == record:
        return Done(None)
    key = image.keys.node(incarnation)
    return Try(api.TxnRequest(compare=[_same(image, key)], success=[_put(key, record)]), None)


def revive(image: Image, incarnation: int, lease: int) -> Try[None] | Done[None]:
    """Bind a node to a new lease, after etcd let the old one go.

    The node's record is written again: who saw the old one without a lease can't end it any more.

    Raises:
        ProtocolError: The registration has ended.
    """
    record = _alive(image, incarnation)
    if incarnation in image.alive:
        return Done(None)
    keys = image.keys
    key = keys.node(incarnation)
    request = api.TxnRequest(
        compare=[_same(image, key), _absent(keys.alive_of(incarnation))],
        success=[_put(key, record), _raw_put(keys.alive_of(incarnation), b"", lease)],
    )
    return Try(request, None)


def end(image: Image, incarnation: int, seen: int, *, proved: bool) -> Try[bool] | Done[bool]:
    """End a registration for good.

    Args:
        image: As read.
        incarnation: Whose.
        seen: Revision of the record about which it was decided.
        proved: Its process is known to be gone, or it is the caller's own; else it is ended only
            while it has no lease.

    Returns:
        Whether it has ended; False: it came back.
    """
    record = image.nodes.get(incarnation)
    if record is None:
        return Done(True)
    keys = image.keys
    key, alive = keys.node(incarnation), keys.alive_of(incarnation)
    if image.mod(key) != seen or (incarnation in image.alive and not proved):
        return Done(False)
    compare = [_same(image, key), _same(image, keys.stores)]
    if not proved:
        compare.append(_absent(alive))
    stores = image.stores
    if not record.registration.stopped:
        stores = rules.crash_stores(stores, incarnation)
    # Written even when it is the same: a write that counted on this node's store is decided anew.
    changes = [_delete(key), _delete(alive), _put(keys.stores, stores)]
    return Try(api.TxnRequest(compare=compare, success=changes), True)


def campaign(
    image: Image, incarnation: int, known_term: int
) -> Try[ControllerChanged] | Done[ControllerChanged]:
    """Take the next term, if the last one given is the one that is known.

    Raises:
        ProtocolError: The registration has ended.
    """
    _alive(image, incarnation)
    if image.term.term != known_term:
        return Done(ControllerChanged(image.term.incarnation, image.term.term))
    keys = image.keys
    request = api.TxnRequest(
        compare=[_same(image, keys.term), _exists(keys.node(incarnation))],
        success=[_put(keys.term, Term(incarnation, known_term + 1))],
    )
    return Try(request, ControllerChanged(incarnation, known_term + 1))


def write(
    image: Image,
    table: Table,
    entries: Sequence[PartitionEntry],
    *,
    term: Term,
    write: bytes,
    in_doubt: bool,
) -> Try[WriteResult] | Done[WriteResult]:
    """Write entries under a term, at the revision of a table.

    Args:
        image: As read; its table is not looked at.
        table: The table at the revision that the entries were decided at.
        entries: Those that change.
        term: Who writes, and under which term.
        write: Drawn for this write.
        in_doubt: An earlier attempt was not answered.

    Raises:
        ProtocolError: An entry that can't be right.
        ConnectionFailed: Nobody can tell any more whether the earlier attempt was carried out.
    """
    head, keys = image.head, image.keys
    if head.write == write:
        return Done(WriteResult(True, head.revision))
    if head.revision != table.revision and in_doubt:
        raise ConnectionFailed("etcd did not answer: the write may be made")
    if head.revision != table.revision or image.term != term or image.stopping:
        return Done(WriteResult(False, head.revision))
    after = rules.written(
        msgspec.structs.replace(table, stores=image.stores), entries, image.registrations
    )
    changes = [_put(keys.head, Head(after.revision, after.stopped, write))]
    chunks = {layout.chunk_of(entry.partition, table.partition_count) for entry in entries}
    for index in sorted(chunks):
        changes.append(_raw_put(keys.chunk(index), layout.chunk_value(after, index)))
    if after.stores != image.stores:
        changes.append(_put(keys.stores, after.stores))
    # Stores change with each end: a crashed copy's store is never written down as whole.
    compare = [_same(image, key) for key in (keys.meta, keys.head, keys.term, keys.stores)]
    return Try(api.TxnRequest(compare=compare, success=changes), WriteResult(True, after.revision))


def stop_cluster(image: Image, write: bytes) -> Try[None] | Done[None]:
    """Mark the cluster as stopping until all that are registered have ended."""
    if image.stopping or not image.nodes:
        return Done(None)
    keys = image.keys
    request = api.TxnRequest(
        compare=[_same(image, key) for key in (keys.head, keys.next, keys.stopping)],
        success=[
            _put(keys.head, Head(image.head.revision + 1, True, write)),
            _put(keys.stopping, Stopping(tuple(sorted(image.nodes)))),
        ],
    )
    return Try(request, None)


def restored(image: Image, etcd_cluster: int, skip: int) -> Try[None] | Done[None]:
    """Go on with an etcd that was restored from a backup.

    Numbers that may have been given after the backup are skipped, so that none is given twice (C1,
    C2), and every registration in it has ended.

    Args:
        image: As read.
        etcd_cluster: The etcd cluster that holds the space from now on.
        skip: How many to skip, more than can have been given since the backup.

    Raises:
        ProtocolError: There is no space.
    """
    meta, keys = image.meta, image.keys
    if meta is None:
        raise ProtocolError(f"there is no space at {keys.prefix.decode()} in etcd")
    meta = msgspec.structs.replace(meta, etcd_cluster=etcd_cluster, restored=meta.restored + 1)
    head = msgspec.structs.replace(image.head, revision=image.head.revision + skip, write=b"")
    ended = [
        _delete(keys.nodes, keys.nodes[:-1] + b"0"),
        _delete(keys.alive, keys.alive[:-1] + b"0"),
    ]
    request = api.TxnRequest(
        compare=[_same(image, key) for key in (keys.meta, keys.next, keys.head, keys.term)],
        success=[
            _put(keys.meta, meta),
            _put(keys.next, image.next + skip),
            _put(keys.term, Term(0, image.term.term + skip)),
            _put(keys.head, head),
            *ended,
        ],
    )
    return Try(request, None)


def remove(image: Image) -> Try[bool] | Done[bool]:
    """Remove the space and everything in it.

    Returns:
        Whether there was one.

    Raises:
        ProtocolError: Nodes are registered in it.
    """
    if image.meta is None:
        return Done(False)
    if image.nodes:
        names = ", ".join(item.name for item in image.registrations)
        raise ProtocolError(f"the space in etcd is in use by {names}")
    keys = image.keys
    request = api.TxnRequest(
        compare=[_same(image, keys.meta), _same(image, keys.next)],
        success=[_delete(keys.prefix, keys.end)],
    )
    return Try(request, True)


def small_read(keys: Keys) -> api.TxnRequest:
    """Everything of a space but its table's chunks, at one revision."""
    return api.TxnRequest(
        success=[
            api.RequestOp(range=api.RangeRequest(key=keys.prefix, range_end=keys.table)),
            api.RequestOp(range=api.RangeRequest(key=keys.term)),
        ]
    )


def read_keys(keys: Iterable[bytes]) -> api.TxnRequest:
    """Single keys at one revision."""
    return api.TxnRequest(success=[api.RequestOp(range=api.RangeRequest(key=key)) for key in keys])


def _alive(image: Image, incarnation: int) -> NodeRecord:
    record = image.nodes.get(incarnation)
    if record is None:
        raise ProtocolError(f"incarnation {incarnation} has ended")
    return record


def _put(key: bytes, value: object) -> api.RequestOp:
    return _raw_put(key, layout.encode(value))


def _raw_put(key: bytes, value: bytes, lease: int = 0) -> api.RequestOp:
    return api.RequestOp(put=api.PutRequest(key=key, value=value, lease=lease))


def _delete(key: bytes, end: bytes = b"") -> api.RequestOp:
    return api.RequestOp(delete_range=api.DeleteRangeRequest(key=key, range_end=end))


def _same(image: Image, key: bytes) -> api.Compare:
    return api.Compare(target=api.Compare.MOD, key=key, mod_revision=image.mod(key))


def _absent(key: bytes) -> api.Compare:
    return api.Compare(target=api.Compare.CREATE, key=key, create_revision=0)


def _exists(key: bytes) -> api.Compare:
    return api.Compare(
        result=api.Compare.GREATER, target=api.Compare.CREATE, key=key, create_revision=0
    )
