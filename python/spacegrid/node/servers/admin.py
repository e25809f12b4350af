"""Admin service: what an operator asks a node. Runs on the grid loop."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Final

import grpc

from spacegrid import clock
from spacegrid.errors import SpaceGridError
from spacegrid.machine.acceptance import Choice, How, copies_on_disk
from spacegrid.machine.draft import Nodes
from spacegrid.machine.table import PartitionEntry, State
from spacegrid.node.reload import reload
from spacegrid.v1 import admin_pb2, admin_pb2_grpc

if TYPE_CHECKING:
    from spacegrid.node.daemon import Daemon

FLUSH_TIMEOUT_MS: Final = 30_000
ACCEPT_TIMEOUT_S: Final = 3.0
_STATES: Final = {
    State.OK: "ok",
    State.RECOVERING: "recovering",
    State.UNAVAILABLE: "unavailable",
    State.LOST: "lost",
}


class AdminService(admin_pb2_grpc.AdminServicer):
    """Admin for one node."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def Status(self, request: admin_pb2.StatusRequest, context: Any) -> admin_pb2.StatusReply:
        """The cluster as this node knows it, and the node itself in detail."""
        await self._known(context)
        daemon = self._daemon
        view = daemon.view
        counts = view.table.counts(view.registrations)
        nodes = [
            admin_pb2.NodeStatus(
                name=r.name,
                address=r.address,
                zone=r.zone,
                incarnation=inc,
                pid=r.pid,
                state="draining" if r.draining else "stopped" if r.stopped else "ready",
                controller=inc == view.controller.incarnation,
                primaries=counts.primaries.get(inc, 0),
                copies=counts.copies.get(inc, 0),
            )
            for inc, r in sorted(view.registrations.items())
        ]
        return admin_pb2.StatusReply(
            cluster_id=view.life,
            revision=view.table.revision,
            copies_wanted=view.table.copies,
            min_in_sync=view.table.min_in_sync,
            self=self._own_status(counts.primaries, counts.copies),
            nodes=nodes,
            under_replicated=counts.under_replicated,
            unserved=counts.unserved,
            lost=counts.lost,
            controller=self._controller(),
            unavailable=counts.unavailable,
            recovering=counts.recovering,
        )

    def _controller(self) -> admin_pb2.ControllerStatus:
        view, runner = self._daemon.view, self._daemon.controller
        holder = view.registrations.get(view.controller.incarnation)
        suspicions = runner.suspicions() if runner.active else None
        return admin_pb2.ControllerStatus(
            node=holder.name if holder is not None else "",
            incarnation=view.controller.incarnation,
            term=view.controller.term,
            here=suspicions is not None,
            suspects=[
                admin_pb2.Suspect(node=view.name(copy), incarnation=copy, why=why)
                for copy, why in (suspicions or {}).items()
            ],
            waiting=[
                admin_pb2.Waiting(
                    partitions=partitions, why=wait.why, nodes=[view.name(c) for c in wait.copies]
                )
                for wait, partitions in (runner.waits() if suspicions is not None else {}).items()
            ],
        )

    def _own_status(self, primaries: Any, copies: Any) -> admin_pb2.NodeStatus:
        daemon = self._daemon
        core = daemon.front.node.status()
        return admin_pb2.NodeStatus(
            name=daemon.config.name,
            address=daemon.address,
            incarnation=daemon.incarnation,
            pid=os.getpid(),
            state=daemon.state,
            controller=daemon.view.controller.incarnation == daemon.incarnation,
            primaries=primaries.get(daemon.incarnation, 0),
            copies=copies.get(daemon.incarnation, 0),
            memory_bytes=core.get("memory_bytes", 0),
            quota_bytes=core.get("quota_bytes", 0),
            entries=core.get("entries", 0),
            pumps=[_pump_status(label, pump) for label, pump in daemon.pumps.items()],
            data_folder=str(daemon.config.data or ""),
            lease=_lease_status(core) if daemon.config.coordinator else None,
            zone=daemon.config.zone,
            transfers=admin_pb2.TransferStatus(
                copies=core["transfers"],
                done_bytes=core["transfer_done_bytes"],
                left_bytes=core["transfer_left_bytes"],
                sent_bytes=core["transfer_sent_bytes"],
                limit_bytes_per_s=core["transfer_bytes_per_s"],
            ),
        )

    async def Partitions(
        self, request: admin_pb2.PartitionsRequest, context: Any
    ) -> admin_pb2.PartitionsReply:
        """One line a partition."""
        await self._known(context)
        table = self._daemon.view.table
        return admin_pb2.PartitionsReply(
            revision=table.revision, partitions=[self._partition(e) for e in table.entries]
        )

    def _partition(self, entry: PartitionEntry) -> admin_pb2.PartitionStatus:
        name = self._daemon.view.name
        return admin_pb2.PartitionStatus(
            partition=entry.partition,
            epoch=entry.epoch,
            version=entry.version,
            state=_STATES[entry.state],
            primary=name(entry.primary) if entry.primary else "",
            in_sync=[name(copy) for copy in entry.in_sync],
            joining=[name(joining.copy) for joining in entry.joining],
            tails=[name(tail.copy) for tail in entry.tails],
            stored=[] if entry.state is State.OK else self._stored(entry),
        )

    def _stored(self, entry: PartitionEntry) -> list[admin_pb2.StoredCopy]:
        view = self._daemon.view
        nodes = Nodes(tuple(view.registrations.values()), frozenset())
        stores = {item.copy: item for item in view.table.stores}
        return [
            admin_pb2.StoredCopy(
                node=view.name(copy.copy),
                now_at=copy.node.name if copy.node is not None else "",
                on_disk=bool(copy.store),
                store=copy.store,
                found=copy.position is not None,
                epoch=copy.position.epoch if copy.position is not None else 0,
                sequence=copy.position.sequence if copy.position is not None else 0,
            )
            for copy in copies_on_disk(entry, stores, nodes)
        ]

    async def Accept(self, request: admin_pb2.AcceptRequest, context: Any) -> admin_pb2.AcceptReply:
        """Let an operator decide how partitions begin again; wait until the table shows it."""
        await self._known(context)
        daemon = self._daemon
        if not daemon.controller.active:
            other = daemon.view.registrations.get(daemon.view.controller.incarnation)
            if other is None:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "no node is the controller now")
                raise AssertionError("abort returns never")
            return admin_pb2.AcceptReply(controller=other.address)
        how = How.EMPTY if request.empty else How.LONGEST
        choices = [Choice(seen.partition, seen.version, how) for seen in request.partitions]
        refused = daemon.controller.take_acceptance(choices)
        taken = [choice for choice in choices if choice.partition not in refused]

        def waits() -> list[Choice]:
            entries = daemon.view.table.entries
            return [c for c in taken if entries[c.partition].version <= c.version]

        await daemon.until(lambda: not waits(), ACCEPT_TIMEOUT_S)
        for choice in waits():
            refused[choice.partition] = "the table does not show it yet: look again"
        return admin_pb2.AcceptReply(
            accepted=[c.partition for c in taken if c.partition not in refused],
            refused=[
                admin_pb2.AcceptReply.Refused(partition=partition, reason=reason)
                for partition, reason in sorted(refused.items())
            ],
        )

    async def Reload(self, request: admin_pb2.ReloadRequest, context: Any) -> admin_pb2.ReloadReply:
        """Fill partitions that nobody serves again from the shared sink, on this node."""
        await self._known(context)
        if not self._daemon.serving:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this node is not ready yet")
        return await reload(
            self._daemon, {seen.partition: seen.version for seen in request.partitions}
        )

    async def Flush(self, request: admin_pb2.FlushRequest, context: Any) -> admin_pb2.FlushReply:
        """Wait until every sink of this node has what is committed now."""
        timeout_s = (request.timeout_ms or FLUSH_TIMEOUT_MS) / 1000
        return admin_pb2.FlushReply(complete=await self._daemon.flush(timeout_s))

    async def Stop(self, request: admin_pb2.StopRequest, context: Any) -> admin_pb2.StopReply:
        """Stop this node (it drains), or the whole cluster (data stays where it is)."""
        if request.cluster:
            try:
                await self._daemon.stop_cluster()
            except SpaceGridError as error:
                await context.abort(grpc.StatusCode[error.grpc_status], str(error))
        else:
            asyncio.get_running_loop().call_soon(self._daemon.request_stop)
        return admin_pb2.StopReply()

    async def _known(self, context: Any) -> None:
        if not self._daemon.known:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, f"this node is {self._daemon.state}: no table yet"
            )


def _lease_status(core: dict[str, int]) -> admin_pb2.LeaseStatus:
    return admin_pb2.LeaseStatus(
        left_ms=max(0, core["lease_until_ms"] - clock.boottime_ms()),
        revision=core["lease_revision"],
        withheld=core["withheld"],
    )


def _pump_status(label: str, pump: Any) -> admin_pb2.PumpStatus:
    status = pump.status()
    return admin_pb2.PumpStatus(
        sink=label,
        lag_records=status.lag_records,
        lag_ms=status.lag_ms,
        written_records=status.written_records,
        dead_letters=status.parked_count,
        error=status.error or "",
    )
