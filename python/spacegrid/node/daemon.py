"""The node daemon: one process, its grid loop, and its life from starting to stopped.

The port, the links to other nodes and the core's effects are the net thread's (`front`, rust/net).
The grid loop runs on the main thread and is alone in touching gRPC: the server behind the port,
the coordinator's stream and the node's own client. Units run on a thread of their own, each pump on
another.

Over 500 lines in one room: every step of a life undoes one of another, in the opposite order.

Life: *starting* (port bound, registered, store loaded) -> *ready* (table applied, units and pumps
    run) -> *draining* (SIGTERM: the controller moves what this node owns) -> *stopped*. A stop of
    the whole cluster moves nothing: everyone finishes what is in flight, flushes, and marks its
    store as clean.

Invariants: nothing is served before the first table is applied; a registration that the coordinator
    ended, a panic of the core or an error in the effects loop ends the process at once and loudly,
    since the rest of the cluster has moved on or may not trust this node's memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc.aio
import msgspec
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from spacegrid import clock
from spacegrid._core import Node
from spacegrid.config import NodeConfig, join_address
from spacegrid.coordinator import (
    ControllerChanged,
    Coordinator,
    CoordinatorEvent,
    RegistrationEnded,
    RegistrationsChanged,
    TableChanged,
)
from spacegrid.errors import ConfigError, SpaceGridError, StoreFailed
from spacegrid.machine.events import HeartbeatAnswer
from spacegrid.machine.table import Registration, core_entry
from spacegrid.node.controller_runner import ControllerRunner
from spacegrid.node.front import Front
from spacegrid.node.heartbeats import Heartbeats, Pulse
from spacegrid.node.installed import declared_maps, load_units, route_arguments
from spacegrid.node.internal import InternalClient
from spacegrid.node.log import get_logger
from spacegrid.node.no_units import NoUnits
from spacegrid.node.options import server_options
from spacegrid.node.security import NodeSecurity
from spacegrid.node.servers.admin import AdminService
from spacegrid.node.servers.data import DataService
from spacegrid.node.servers.peers import PeersService
from spacegrid.node.servers.units import UnitsService
from spacegrid.node.sinks import open_shared_sink
from spacegrid.node.store import NodeStore
from spacegrid.node.view import ClusterView
from spacegrid.pump import Pump
from spacegrid.unit import UnitHost
from spacegrid.v1 import admin_pb2_grpc, data_pb2_grpc, peers_pb2_grpc, units_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from spacegrid.unit import OutgoingCall
    from spacegrid.v1 import peers_pb2

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_ENDED: Final = 3
"""The coordinator ended this node's registration."""
EXIT_STORE: Final = 4
"""The node's own disk failed a write or an fsync."""
EXIT_BUG: Final = 70
IDLE_TIMEOUT_S: Final = 20.0
FLUSH_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.02
SETTLE_S: Final = 0.1
"""A few ticks, in which backups hear of the last commits."""
SERVER_GRACE_S: Final = 0.5

_log = get_logger("node")


class Daemon:
    """One node of a cluster, or a lone node.

    Attributes:
        config: Its settings.
        address: host:port it listens on, once bound.
        state: starting, ready, draining or stopped.
        incarnation: Given by the coordinator.
        pumps: Label (lmdb, sql) to pump.
    """

    front: Front
    view: ClusterView
    controller: ControllerRunner
    internal: InternalClient

    def __init__(
        self, config: NodeConfig, coordinator: Coordinator, security: NodeSecurity | None = None
    ) -> None:
        self.config = config
        self.security = security or NodeSecurity(config)
        self.address = ""
        self.state = "starting"
        self.incarnation = 0
        self.serving = False
        self.bound = False
        self.known = False
        self.pumps: dict[str, Pump] = {}
        self._coordinator = coordinator
        self._units = load_units(config.units)
        self._routes = route_arguments(self._units)
        self._host: UnitHost | None = None
        self._store = NodeStore(config.data) if config.data and config.lmdb else None
        self._heartbeats: Heartbeats | None = None
        self._beats = 0
        self._units_pulse = Pulse()
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()
        self._registration = Registration(name=config.name)
        self._guard: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._cluster_stops = False
        self._ended: str | None = None

    # ---- life

    async def run(self, on_ready: Callable[[Daemon], None]) -> int:
        """Serve until told to stop; the process's exit code.

        Args:
            on_ready: Called once when everything runs.

        Raises:
            SpaceGridError: It could not start.
        """
        try:
            await self._bind()
            self._guard = asyncio.get_running_loop().create_task(self._look_after_security())
            await self._join()
            events = asyncio.get_running_loop().create_task(self._follow())
            await self._start_rest()
            on_ready(self)
            await self._stop.wait()
            if self._ended is None:
                await self._leave()
            else:
                _log.error("the coordinator ended this node", reason=self._ended)
            events.cancel()
        finally:
            await self._close()
        return EXIT_OK if self._ended is None else EXIT_ENDED

    def request_stop(self) -> None:
        """Stop in order: drain, or end with the cluster where that is stopping."""
        self._stop.set()

    async def stop_cluster(self) -> None:
        """Stop the whole cluster; this node with it."""
        if self.config.coordinator:
            await self._coordinator.stop_cluster()
        else:
            self._cluster_stops = True
            self._stop.set()

    def route_argument(self, handler: str) -> str | None:
        """Argument that carries a handler's routing key; None: no such handler here."""
        return self._routes.get(handler)

    def maps_without_columns(self) -> list[str]:
        """Maps of the units that no SQL sink has."""
        return sorted({one.name for one in declared_maps(self._units) if one.columns is None})

    async def flush(self, timeout_s: float) -> bool:
        """Wait until every sink has what is committed now; whether that came in time."""
        done = await asyncio.gather(
            *(asyncio.to_thread(pump.flush, timeout_s) for pump in self.pumps.values())
        )
        return all(done)

    # ---- start

    async def _bind(self) -> None:
        server = grpc.aio.server(options=server_options())
        data_pb2_grpc.add_DataServicer_to_server(DataService(self), server)
        units_pb2_grpc.add_UnitsServicer_to_server(UnitsService(self), server)
        peers_pb2_grpc.add_PeersServicer_to_server(PeersService(self), server)
        admin_pb2_grpc.add_AdminServicer_to_server(AdminService(self), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self._server = server
        await self._set_health(False)
        # The socket has a name only until the front has connected: nobody else ever does.
        with tempfile.TemporaryDirectory(prefix="spacegrid-") as folder:
            upstream = Path(folder) / "node"
            server.add_insecure_port(f"unix:{upstream}")
            await server.start()
            try:
                self.front = Front(
                    self.config.listen, upstream, self.security, die, self.config.busy_poll_us
                )
            except OSError as error:
                raise ConfigError(
                    f"can't listen on {self.config.listen}: {error}\nhint: is another node there?"
                ) from error
        self.bound = True
        self.address = join_address(self.config.advertised_host, self.front.port)

    async def _join(self) -> None:
        store = self._store
        registration = Registration(
            name=self.config.name,
            address=self.address,
            pid=os.getpid(),
            store=store.store_id if store else b"",
            stored=store.stored if store else (),
            zone=self.config.zone,
        )
        self._registration = await self._coordinator.join(registration)
        self.incarnation = self._registration.incarnation
        table = self._coordinator.table
        _log.info(
            "registered",
            incarnation=self.incarnation,
            cluster=table.life.hex(),
            partitions=table.partition_count,
        )
        self.view = ClusterView(table, self.config.via_addresses)
        node = Node(
            self.incarnation,
            table.partition_count,
            min_in_sync=table.min_in_sync,
            quota_bytes=self.config.quota_bytes,
            log_bytes=self.config.log_bytes,
            shared_sink=bool(self.config.sql),
            local_sink=store is not None,
        )
        node.limit_transfers(self.config.transfer_bytes_per_s)
        if store is not None:
            store.attach(table)
            alive = {r.incarnation for r in self._coordinator.registrations}
            served = table.served_without(self.incarnation, store.store_id, alive)
            count = store.load_into(node, served)
            if store.stored:
                _log.info("loaded from disk", partitions=len(store.stored), entries=count)
        self.front.join(node, table.life, self.config.name, self.incarnation)
        self.controller = ControllerRunner(
            self._coordinator,
            self.config.name,
            self.incarnation,
            self.view,
            die,
            self.security,
            leases=bool(self.config.coordinator),
        )
        self.front.changes = self.controller.request_changes
        self.internal = InternalClient(
            self.incarnation << 32 | 1,
            table.partition_count,
            table.life,
            self.front,
            self._calls_done,
            self.security,
        )
        self.known = True
        if self.config.coordinator:
            self._heartbeats = Heartbeats(
                self.incarnation,
                self.front,
                self.view,
                self.controller,
                lambda: self._coordinator.registered_until_ms,
                self._progress,
                die,
            )
            self._heartbeats.start()

    async def _start_rest(self) -> None:
        node, front = self.front.node, self.front
        if self._units:
            host = UnitHost(node, self._units, self.internal.submit_calls, front.wake)
            await asyncio.to_thread(host.start)
            self._host = host
            front.units = host
        else:
            front.units = NoUnits()
        if self._store is not None and self._store.sink is not None:
            self._add_pump(
                "lmdb",
                Pump(
                    node,
                    self._store.sink,
                    name="local",
                    log_bytes=self.config.log_bytes,
                    written=front.wake,
                    fatal=disk_failed,
                ),
            )
        if self.config.sql:
            sink = open_shared_sink(
                self.config.sql,
                life=self.view.life,
                owner=self.incarnation,
                partition_count=self.view.table.partition_count,
                maps=declared_maps(self._units),
            )
            self._add_pump(
                "sql",
                Pump(
                    node,
                    sink,
                    name="shared",
                    batch_records=self.config.pump_batch_records,
                    interval_s=self.config.pump_interval_s,
                    log_bytes=self.config.log_bytes,
                ),
            )
        self._warn_when_alone()
        # From here on the table may be applied: units and pumps are there for what it brings.
        self._apply(None)
        self.serving = True
        self.front.serve(True)
        self.state = "ready"
        self._update_links()
        await self._set_health(True)
        _log.info("ready", address=self.address)

    def _add_pump(self, label: str, pump: Pump) -> None:
        pump.start()
        self.pumps[label] = pump

    def _warn_when_alone(self) -> None:
        table = self.view.table
        if not self.config.coordinator and table.min_in_sync > 1:
            _log.warning(
                "a lone node refuses writes: a write needs copies on other nodes; start it with "
                "--copies 1 to accept writes that live on this node only",
                copies=table.copies,
                min_in_sync=table.min_in_sync,
            )

    def _calls_done(self, batch: list[tuple[OutgoingCall, int, bytes]]) -> None:
        if self._host is not None:
            self._host.calls_done(batch)

    def _progress(self) -> tuple[int, ...]:
        """Counters of the grid's loop and of the units'."""
        self._beats += 1
        loop = self._host.loop if self._host is not None else None
        units = self._beats if loop is None else self._units_pulse.count(loop)
        return (self._beats, units)

    def hear(self, request: peers_pb2.HeartbeatRequest) -> HeartbeatAnswer:
        """Take another node's heartbeat; a lone node has nobody to hear."""
        if self._heartbeats is None:
            return HeartbeatAnswer(request.hello.incarnation, request.nonce)
        return self._heartbeats.hear(request)

    # ---- what the coordinator says

    async def _look_after_security(self) -> None:
        try:
            await self.security.run()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            die(error)

    async def _follow(self) -> None:
        try:
            async for event in self._coordinator.events():
                self._hear(event)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            die(error)

    def _hear(self, event: CoordinatorEvent) -> None:
        match event:
            case TableChanged(table, changed):
                if table.revision < self.view.table.revision:
                    return
                self.view.set_table(table)
                if self.serving:
                    self._apply(changed)
                self.controller.table_changed()
            case RegistrationsChanged(registrations, stopping):
                self._tell_membership(registrations)
                self.view.set_registrations(registrations)
                self.view.stopping = stopping
                if self.serving:
                    self._update_links()
                if self._heartbeats is not None:
                    self._heartbeats.update_peers()
                self.controller.registrations_changed(event)
                if stopping:
                    self._cluster_stops = True
                    self._stop.set()
            case ControllerChanged():
                self.view.controller = event
                self.controller.controller_changed(event)
            case RegistrationEnded(reason):
                self._ended = reason
                self._stop.set()

    def _tell_membership(self, registrations: tuple[Registration, ...]) -> None:
        """Who joined and who left, for the log."""
        before, now = self.view.registrations, {r.incarnation: r for r in registrations}
        for incarnation in now.keys() - before.keys():
            joined = now[incarnation]
            _log.info("joined", peer=joined.name, incarnation=incarnation, address=joined.address)
        for incarnation in before.keys() - now.keys():
            _log.info("left", peer=before[incarnation].name, incarnation=incarnation)

    def _apply(self, changed: tuple[int, ...] | None) -> None:
        """Give the core and the node's own client the table, or the entries of it that changed."""
        table = self.view.table
        entries = table.entries if changed is None else [table.entries[p] for p in changed]
        try:
            self.front.node.apply_table(
                table.revision, [core_entry(entry) for entry in entries], clock.now_ms()
            )
        except BaseException as error:
            die(error)
        if self._store is not None:
            alive = self.view.registrations
            self._store.let_go(self.front.node, table, self.incarnation, alive)
        if self._heartbeats is not None:
            self._heartbeats.applied(table.revision)
        self._set_routes()
        self.front.wake()

    def _set_routes(self) -> None:
        table = self.view.table
        nodes = {
            incarnation: (self.view.name(incarnation), address)
            for incarnation, address in self.view.peer_addresses().items()
            if incarnation != self.incarnation
        }
        answering = self.view.answering()
        self.internal.set_routes(table.revision, answering, nodes, self.incarnation)

    def _update_links(self) -> None:
        self.front.link(self.view.peers())
        self._set_routes()

    # ---- stop

    async def _leave(self) -> None:
        """Hand over or keep, flush, and say goodbye; clients are refused step by step."""
        self.state = "draining"
        await self._set_health(False)
        _log.info("stopping", whole_cluster=self._cluster_stops)
        if not self._cluster_stops:
            await self._drain()
        node = self.front.node
        node.stop_all()
        self.front.wake()
        if not await self.until(node.idle, IDLE_TIMEOUT_S):
            _log.warning("requests were still open", seconds=IDLE_TIMEOUT_S)
        if self._host is not None:
            await asyncio.to_thread(self._host.stop)
        await self._all_idle()
        for label, pump in self.pumps.items():
            if not await asyncio.to_thread(pump.stop, True, FLUSH_TIMEOUT_S):
                _log.error("not everything could be written", sink=label, status=str(pump.status()))
        self.front.wake()
        with contextlib.suppress(SpaceGridError):
            self._registration = _changed(self._registration, stopped=True)
            await self._coordinator.update(self._registration)

    async def _all_idle(self) -> None:
        """Where the whole cluster stops, wait until no primary waits for this node's copies.

        Each node says that it is idle by draining; its copies on other nodes hear of the last
        commit with the next ticks.
        """
        if not self._cluster_stops or not self.config.coordinator:
            return
        self._registration = _changed(self._registration, draining=True)
        with contextlib.suppress(SpaceGridError):
            await self._coordinator.update(self._registration)
        await self.until(
            lambda: all(r.draining or r.stopped for r in self.view.registrations.values()),
            IDLE_TIMEOUT_S,
        )
        await asyncio.sleep(SETTLE_S)

    async def _drain(self) -> None:
        """Ask the controller to move what this node owns, and wait until that has happened."""
        if self.view.alone(self.incarnation):
            return
        self._registration = _changed(self._registration, draining=True)
        try:
            await self._coordinator.update(self._registration)
        except SpaceGridError as error:
            _log.warning("leaving without a hand-over", error=str(error))
            return
        await self.controller.request_drain()
        moved = await self.until(
            lambda: (
                not self.view.table.names(self.incarnation)
                or self._cluster_stops
                or self.view.alone(self.incarnation)
            ),
            self.config.drain_timeout_s,
        )
        if not moved:
            _log.warning("not everything was moved", seconds=self.config.drain_timeout_s)

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until a condition holds; whether it came in time."""
        deadline = clock.monotonic_s() + timeout_s
        while not condition():
            if clock.monotonic_s() > deadline:
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def _close(self) -> None:
        self.serving = False
        self.state = "stopped"
        if self._guard is not None:
            self._guard.cancel()
            self.security.look()
        if self.known:
            await self.internal.close()
            if self._heartbeats is not None:
                self._heartbeats.close()
            await self.controller.close()
        if self.bound:
            await self.front.close()
        if self._server is not None:
            await self._server.stop(SERVER_GRACE_S)
        if self._store is not None:
            self._store.close()
        await self._coordinator.close()

    async def _set_health(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        value = status.SERVING if serving else status.NOT_SERVING
        for service in ("", "spacegrid.v1.Data", "spacegrid.v1.Units"):
            await self._health.set(service, value)


def die(error: BaseException) -> None:
    """End the process at once: what it holds in memory can't be trusted any more."""
    sys.stderr.write("spacegrid: a bug ended this node; please report what follows\n")
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(EXIT_BUG)


def disk_failed(error: StoreFailed) -> None:
    """End the process at once: what was not yet on disk may never get there, and nobody can tell.

    The node's copies are made anew elsewhere; a write that waited for this disk is never answered.
    """
    sys.stderr.write(f"spacegrid: this node ends: {error}\n")
    sys.stderr.flush()
    os._exit(EXIT_STORE)


def _changed(registration: Registration, **changes: bool) -> Registration:
    return msgspec.structs.replace(registration, **changes)


def serve(
    config: NodeConfig,
    make_coordinator: Callable[[], Coordinator],
    on_ready: Callable[[Daemon], None],
) -> int:
    """Run a node in this process until it is stopped; the exit code.

    Args:
        config: Its settings.
        make_coordinator: Makes the way to the authority, on the grid loop.
        on_ready: Called once when everything runs.

    SIGTERM and the first Ctrl-C stop in order; a second one ends the process at once.
    """
    import uvloop

    sys.setswitchinterval(config.switch_interval_s)

    async def main() -> int:
        daemon = Daemon(config, make_coordinator())
        stops = 0

        def stop() -> None:
            nonlocal stops
            stops += 1
            if stops > 1:
                os._exit(EXIT_FAILED)
            daemon.request_stop()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        return await daemon.run(on_ready)

    return uvloop.run(main())
