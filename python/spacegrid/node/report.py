"""What `spacegrid status` and its kin show: gathered from all nodes, as plain data and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from spacegrid.errors import ConfigError, ConnectionFailed
from spacegrid.node.admin_client import AdminClient
from spacegrid.node.report_waiting import waiting, waiting_text
from spacegrid.v1 import admin_pb2

DETAIL_TIMEOUT_S: Final = 2.0
RELOAD_TIMEOUT_S: Final = 180.0
_MIB: Final = 1 << 20


def cluster_status(address: str) -> dict[str, Any]:
    """Ask one node for the cluster, and every node for itself.

    Raises:
        ConnectionFailed: Nobody answers at the address.
    """
    reply, details = _ask_all(address)
    controller = _newest([reply, *(own for own in details if own is not None)])
    suspects = {suspect.incarnation: suspect.why for suspect in controller.suspects}
    nodes = [
        _node(node, own.self if own else None, controller, suspects)
        for node, own in zip(reply.nodes, details, strict=True)
    ]
    leases = {node["name"]: node["lease"]["left_ms"] for node in nodes if node["lease"]}
    return {
        "cluster_id": reply.cluster_id.hex(),
        "revision": reply.revision,
        "copies_wanted": reply.copies_wanted,
        "min_in_sync": reply.min_in_sync,
        "under_replicated": reply.under_replicated,
        "unserved": reply.unserved,
        "lost": list(reply.lost),
        "unavailable": list(reply.unavailable),
        "recovering": list(reply.recovering),
        "waiting": waiting(controller),
        "controller": {
            "node": controller.node,
            "incarnation": controller.incarnation,
            "term": controller.term,
            "answers": controller.here,
        },
        "nodes": nodes,
        "without_lease": [name for name, left_ms in leases.items() if not left_ms],
        # A node alone needs no lease.
        "answers": not leases or any(leases.values()),
    }


def _ask_all(
    address: str,
) -> tuple[admin_pb2.StatusReply, list[admin_pb2.StatusReply | None]]:
    """What one node says, and what each node that it knows says; None: it does not answer."""
    with AdminClient(address) as admin:
        reply = admin.status()
    with ThreadPoolExecutor(max_workers=16) as pool:
        return reply, list(pool.map(_details, [node.address for node in reply.nodes]))


def _details(address: str) -> admin_pb2.StatusReply | None:
    try:
        with AdminClient(address, DETAIL_TIMEOUT_S) as admin:
            return admin.status()
    except ConnectionFailed:
        return None


def _newest(replies: Sequence[admin_pb2.StatusReply]) -> admin_pb2.ControllerStatus:
    """What is known of the controller: of the newest term, in its own words where it answers."""
    return max((r.controller for r in replies), key=lambda known: (known.term, known.here))


def _node(
    node: admin_pb2.NodeStatus,
    own: admin_pb2.NodeStatus | None,
    controller: admin_pb2.ControllerStatus,
    suspects: Mapping[int, str],
) -> dict[str, Any]:
    return {
        "name": node.name,
        "address": node.address,
        "zone": node.zone,
        "incarnation": node.incarnation,
        "pid": node.pid,
        "state": own.state if own else "not answering",
        "suspected": suspects.get(node.incarnation),
        "controller": node.incarnation == controller.incarnation,
        "lease": _lease(own.lease) if own and own.HasField("lease") else None,
        "primaries": node.primaries,
        "copies": node.copies,
        "memory_bytes": own.memory_bytes if own else None,
        "quota_bytes": own.quota_bytes if own else None,
        "entries": own.entries if own else None,
        "data_folder": own.data_folder if own else "",
        "transfers": _transfers(own.transfers) if own else None,
        "pumps": [_pump(pump) for pump in own.pumps] if own else [],
    }


def _transfers(transfers: admin_pb2.TransferStatus) -> dict[str, int]:
    return {
        "copies": transfers.copies,
        "done_bytes": transfers.done_bytes,
        "left_bytes": transfers.left_bytes,
        "sent_bytes": transfers.sent_bytes,
        "limit_bytes_per_s": transfers.limit_bytes_per_s,
    }


def _lease(lease: admin_pb2.LeaseStatus) -> dict[str, int]:
    return {
        "left_ms": lease.left_ms,
        "revision": lease.revision,
        "withheld": lease.withheld,
    }


def _pump(pump: admin_pb2.PumpStatus) -> dict[str, Any]:
    return {
        "sink": pump.sink,
        "lag_records": pump.lag_records,
        "lag_ms": pump.lag_ms,
        "written_records": pump.written_records,
        "dead_letters": pump.dead_letters,
        "error": pump.error,
    }


def status_text(document: dict[str, Any]) -> str:
    """The status for a person."""
    columns = "node zone address pid state lease primaries copies entries memory pumps"
    lines = _table([tuple(columns.split()), *map(_node_row, document["nodes"])])
    lines.append(_controller_text(document["controller"]))
    lines.append(
        f"cluster {document['cluster_id'][:8]}, table revision {document['revision']}, "
        f"{document['copies_wanted']} copies wanted, a write needs {document['min_in_sync']}"
    )
    repair = document["under_replicated"]
    lines.append(
        f"repair: {repair} partitions wait for a copy" if repair else "repair: none needed"
    )
    lines += [
        _transfers_text(node["name"], node["transfers"])
        for node in document["nodes"]
        if node["transfers"] and node["transfers"]["copies"]
    ]
    if document["unserved"]:
        lines.append(f"UNSERVED: {document['unserved']} partitions have no primary")
    lines += [
        f"{state.upper()}: partitions {', '.join(map(str, document[state]))}"
        for state in ("recovering", "unavailable", "lost")
        if document[state]
    ]
    lines += waiting_text(document["waiting"], document["unserved"])
    if document["without_lease"]:
        hint = "" if document["answers"] else "; hint: does the coordinator answer?"
        lines.append(
            f"NO LEASE: {', '.join(document['without_lease'])} can answer stale reads only{hint}"
        )
    return "\n".join(lines)


def _node_row(node: dict[str, Any]) -> tuple[str, ...]:
    suspected = f", suspected: {node['suspected']}" if node["suspected"] else ""
    return (
        node["name"] + (" *" if node["controller"] else ""),
        node["zone"] or "-",
        node["address"],
        str(node["pid"]),
        node["state"] + suspected,
        _lease_text(node["lease"]),
        str(node["primaries"]),
        str(node["copies"]),
        "-" if node["entries"] is None else str(node["entries"]),
        "-" if node["memory_bytes"] is None else f"{node['memory_bytes'] / _MIB:.1f} MiB",
        ", ".join(_pump_text(pump) for pump in node["pumps"]) or "-",
    )


def _transfers_text(name: str, transfers: dict[str, int]) -> str:
    """How far a node is with the copies that it sends."""
    done, left = transfers["done_bytes"], transfers["left_bytes"]
    limit = transfers["limit_bytes_per_s"]
    bound = f", at most {limit / _MIB:.1f} MiB/s" if limit else ""
    return (
        f"transfers: {name} makes {transfers['copies']} copies, "
        f"{done / _MIB:.1f} of {(done + left) / _MIB:.1f} MiB sent{bound}"
    )


def _lease_text(lease: dict[str, int] | None) -> str:
    """For how long, by which table, and what it cost not to have one."""
    if lease is None:
        return "-"
    left = f"{lease['left_ms']} ms at {lease['revision']}" if lease["left_ms"] else "over"
    return f"{left}, {lease['withheld']} withheld" if lease["withheld"] else left


def _controller_text(controller: dict[str, Any]) -> str:
    if not controller["node"]:
        return f"* controller: none, the last term is {controller['term']}"
    text = f"* controller: {controller['node']}, term {controller['term']}"
    if controller["answers"]:
        return text
    return f"{text}; it does not answer as one: whom it suspects is not known"


def _pump_text(pump: dict[str, Any]) -> str:
    text = f"{pump['sink']} lag {pump['lag_records']}"
    if pump["dead_letters"]:
        text += f", {pump['dead_letters']} dead letters"
    return f"{text} ({pump['error']})" if pump["error"] else text


def partitions(address: str) -> dict[str, Any]:
    """Every partition as one node knows it, and why some are not served, as the controller does.

    Raises as `cluster_status`.
    """
    with AdminClient(address) as admin:
        reply = admin.partitions()
    groups = _waiting(address) if any(p.state != "ok" for p in reply.partitions) else []
    reasons = {p: _reason(group) for group in groups or [] for p in group["partitions"]}
    return {
        "revision": reply.revision,
        "waiting": groups,
        "partitions": [
            {
                "partition": p.partition,
                "epoch": p.epoch,
                "version": p.version,
                "state": p.state,
                "primary": p.primary,
                "in_sync": list(p.in_sync),
                "tails": list(p.tails),
                "joining": list(p.joining),
                "stored": [_stored(copy) for copy in p.stored],
                "waiting": reasons.get(p.partition),
            }
            for p in reply.partitions
        ],
    }


def _waiting(address: str) -> list[dict[str, Any]] | None:
    reply, details = _ask_all(address)
    return waiting(_newest([reply, *(own for own in details if own is not None)]))


def _reason(group: dict[str, Any]) -> dict[str, Any]:
    """What one partition of a group waits for; the words are those of the group."""
    return {"why": group["why"], "nodes": group["nodes"]}


def _stored(copy: admin_pb2.StoredCopy) -> dict[str, Any]:
    return {
        "node": copy.node,
        "now_at": copy.now_at,
        "store": copy.store.hex(),
        "missing": copy.on_disk and not copy.now_at,
        "position": [copy.epoch, copy.sequence] if copy.found else None,
    }


def _stored_text(copy: dict[str, Any]) -> str:
    if copy["missing"]:
        return f"{copy['node']}: store {copy['store'][:8]} is missing"
    if copy["position"] is None:
        return f"{copy['node']}: gone"
    epoch, sequence = copy["position"]
    return f"{copy['node']}: {epoch}/{sequence} at {copy['now_at']}"


def accept(address: str, chosen: Sequence[int] | None, *, empty: bool) -> dict[str, Any]:
    """Decide how partitions without a primary begin again. Raises as `cluster_status`.

    Args:
        address: Any node.
        chosen: Partitions; None: all that have no primary and were placed once.
        empty: With nothing, instead of from the longest copy that is there.

    Returns:
        ``accepted`` and ``refused``, the latter with reasons.
    """
    with AdminClient(address) as admin:
        seen = _seen(admin, chosen)
        reply = admin.accept(seen, empty=empty)
    if reply.controller:
        with AdminClient(reply.controller) as admin:
            reply = admin.accept(seen, empty=empty)
    return {
        "accepted": list(reply.accepted),
        "refused": {item.partition: item.reason for item in reply.refused},
    }


def _seen(admin: AdminClient, chosen: Sequence[int] | None) -> dict[int, int]:
    """The chosen partitions with the versions that they have now."""
    lines = {p.partition: p for p in admin.partitions().partitions}
    if chosen is None:
        chosen = [p.partition for p in lines.values() if p.state != "ok" and p.epoch]
    unknown = [partition for partition in chosen if partition not in lines]
    if unknown:
        raise ConfigError(f"there is no partition {unknown[0]}, there are {len(lines)}")
    return {partition: lines[partition].version for partition in chosen}


def reload(address: str, chosen: Sequence[int] | None) -> dict[str, Any]:
    """Fill partitions without a primary again from the shared sink. Raises as `cluster_status`.

    They are spread over the nodes; what one refuses (it has a copy, it has no sink) the next one is
    asked for.

    Args:
        address: Any node.
        chosen: Partitions; None: all that have no primary and were placed once.

    Returns:
        ``reloaded`` with the position of each, ``refused`` with the last reason, and
        ``maps_without_columns``.
    """
    with AdminClient(address) as admin:
        nodes = [node.address for node in admin.status().nodes if node.state == "ready"]
        waits = _seen(admin, chosen)
    reloaded: list[dict[str, int]] = []
    refused: dict[int, str] = {}
    maps: set[str] = set()
    for turn in range(len(nodes)):
        parts: dict[str, dict[int, int]] = {}
        for partition, version in waits.items():
            node = nodes[(partition + turn) % len(nodes)]
            parts.setdefault(node, {})[partition] = version
        for node, part in parts.items():
            reply = _reload_on(node, part)
            refused.update((item.partition, item.reason) for item in reply.refused)
            reloaded += [_reloaded(item) for item in reply.reloaded]
            maps.update(reply.maps_without_columns)
            for item in reply.reloaded:
                del waits[item.partition]
    return {
        "reloaded": sorted(reloaded, key=lambda item: item["partition"]),
        "refused": {partition: refused[partition] for partition in sorted(waits)},
        "maps_without_columns": sorted(maps),
    }


def _reload_on(address: str, seen: Mapping[int, int]) -> admin_pb2.ReloadReply:
    try:
        with AdminClient(address) as admin:
            return admin.reload(seen, RELOAD_TIMEOUT_S)
    except ConnectionFailed as error:
        return admin_pb2.ReloadReply(
            refused=[
                admin_pb2.AcceptReply.Refused(partition=partition, reason=str(error))
                for partition in seen
            ]
        )


def _reloaded(item: admin_pb2.ReloadReply.Reloaded) -> dict[str, int]:
    return {
        "partition": item.partition,
        "epoch": item.epoch,
        "sequence": item.sequence,
        "entries": item.entries,
        "held_keys": item.held_keys,
    }


def reload_text(document: dict[str, Any]) -> str:
    """What became of it, for a person."""
    done = document["reloaded"]
    entries = sum(item["entries"] for item in done)
    lines = [f"{len(done)} partitions begin again from the database, with {entries} entries"]
    if done:
        lines.append(
            "lost: what was changed after the database's checkpoint, expiry times, and the maps "
            "that no unit declares"
        )
        if document["maps_without_columns"]:
            names = ", ".join(document["maps_without_columns"])
            lines.append(f"lost: maps without columns, empty now: {names}")
    if held := sum(item["held_keys"] for item in done):
        lines.append(f"old: {held} keys, whose newer changes are held back by dead letters")
    lines += [f"partition {p} does not: {reason}" for p, reason in document["refused"].items()]
    return "\n".join(lines)


def accept_text(document: dict[str, Any]) -> str:
    """What became of the decisions, for a person."""
    lines = [f"{len(document['accepted'])} partitions begin again"]
    lines += [f"partition {p} does not: {reason}" for p, reason in document["refused"].items()]
    return "\n".join(lines)


def partitions_text(document: dict[str, Any]) -> str:
    """The partitions for a person."""
    rows = [("partition", "state", "epoch", "primary", "in sync", "tails", "joining", "on disk")]
    for p in document["partitions"]:
        rows.append(
            (
                str(p["partition"]),
                p["state"],
                str(p["epoch"]),
                p["primary"] or "-",
                " ".join(p["in_sync"]) or "-",
                " ".join(p["tails"]) or "-",
                " ".join(p["joining"]) or "-",
                ", ".join(map(_stored_text, p["stored"])) or "-",
            )
        )
    unserved = sum(p["state"] != "ok" for p in document["partitions"])
    return "\n".join((*_table(rows), *waiting_text(document["waiting"], unserved)))


def flush(address: str, timeout_s: float) -> dict[str, Any]:
    """Have every node write what is committed now. Raises as `cluster_status`."""
    with AdminClient(address) as admin:
        addresses = {node.name: node.address for node in admin.status().nodes}

    def flush_one(one: str) -> bool:
        try:
            with AdminClient(one) as admin:
                return admin.flush(timeout_s)
        except ConnectionFailed:
            return False

    with ThreadPoolExecutor(max_workers=16) as pool:
        done = dict(zip(addresses, pool.map(flush_one, addresses.values()), strict=True))
    return {"complete": all(done.values()), "nodes": done}


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
