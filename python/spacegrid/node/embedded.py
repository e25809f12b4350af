"""A grid inside the caller's own process: one node, no socket, no grid thread.

Everything the daemon has but the network: a core node, units on their thread, pumps on theirs, and
the same machine that decides about the table, all of it run in place. On a loop (`open`) frames go
straight from the client into the core within the caller's own loop tick; without one (`open_sync`)
they do so in the calling thread. Replies say one copy, which is the truth. Callers:
`spacegrid.open`, `spacegrid.open_sync`, and tests.

Invariant: after an error that must not be (a panic of the core) the grid takes nothing more: it is
    closed, and every further use raises.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Final

import msgspec

from spacegrid import clock
from spacegrid._core import Client, Node
from spacegrid.coordinator.authority import Authority
from spacegrid.errors import ConfigError, GridClosed
from spacegrid.machine.controller import Controller, ControllerConfig
from spacegrid.machine.events import BecameController, WriteDone, WriteTable
from spacegrid.machine.table import Registration, core_entry
from spacegrid.node.engine import Engine
from spacegrid.node.installed import declared_maps
from spacegrid.node.local_calls import LocalCalls
from spacegrid.node.lone import lone_authority
from spacegrid.node.no_units import NoUnits
from spacegrid.node.sinks import open_shared_sink
from spacegrid.node.store import NodeStore
from spacegrid.pump import Pump
from spacegrid.transport.base import OnFrame, RouteNode, Routes
from spacegrid.unit import Unit, UnitHost

NAME: Final = "embedded"
ADDRESS: Final = "embedded"
PARTITIONS_DEFAULT: Final = 64
"""An embedded grid is never spread over nodes, so a few partitions do."""
IDLE_TIMEOUT_S: Final = 10.0
FLUSH_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.002


class EmbeddedNode:
    """The one node of an embedded grid; implements `transport.base.LocalNode`.

    Args:
        units: Processing units to install.
        data: Folder to go on from and to keep the data in; None: nothing is kept.
        sql: URL of an SQL sink; None: none.
        partitions: Partition count of a new space.
        quota_bytes: Memory for entries and records; 0: no quota.

    Raises:
        ConfigError: A setting does not fit, or the folder is in use or holds something else.
        SinkMismatch: The folder or the database belongs to another space.
    """

    def __init__(
        self,
        units: Sequence[type[Unit]] = (),
        *,
        data: str | PathLike[str] | None = None,
        sql: str | None = None,
        partitions: int = PARTITIONS_DEFAULT,
        quota_bytes: int = 0,
    ) -> None:
        folder = Path(data) if data is not None else None
        authority, self._file = lone_authority(
            partitions=partitions, copies=1, min_in_sync=1, data=folder
        )
        self._store: NodeStore | None = None
        try:
            self._store = NodeStore(folder) if folder is not None else None
            self._set_up(authority, units, sql or "", quota_bytes)
        except BaseException:
            self._close_files()
            raise

    def _set_up(
        self, authority: Authority, units: Sequence[type[Unit]], sql: str, quota_bytes: int
    ) -> None:
        store = self._store
        self._authority = authority
        self._registration = authority.register(
            Registration(
                name=NAME,
                address=ADDRESS,
                pid=os.getpid(),
                store=store.store_id if store else b"",
                stored=store.stored if store else (),
            )
        )
        incarnation = self._registration.incarnation
        table = authority.state.table
        self._streams = itertools.count(incarnation << 32 | 2)
        self._failed: BaseException | None = None
        self._stopped = False
        self._pumps: list[Pump] = []
        node = Node(
            incarnation,
            table.partition_count,
            min_in_sync=table.min_in_sync,
            quota_bytes=quota_bytes,
            shared_sink=bool(sql),
            local_sink=store is not None,
        )
        self.engine = Engine(node, self._fatal)
        if store is not None:
            sink = store.attach(table)
            store.load_into(node)
            self._pumps.append(
                Pump(node, sink, name="local", written=self.engine.wake, fatal=self._fatal)
            )
        if sql:
            shared = open_shared_sink(
                sql,
                life=table.life,
                owner=incarnation,
                partition_count=table.partition_count,
                maps=declared_maps(units),
            )
            self._pumps.append(Pump(node, shared, name="shared"))
        self._calls: LocalCalls | None = None
        self._host: UnitHost | None = None
        if units:
            self._calls = LocalCalls(
                Client(incarnation << 32 | 1, table.partition_count), self.engine
            )
            self._host = UnitHost(node, units, self._calls.submit, self.engine.wake)
            self._calls.done = self._host.calls_done
        self._place(node)

    def _place(self, node: Node) -> None:
        """Decide about the table, at once: nobody else is there to be asked."""
        authority, machine = self._authority, Controller(ControllerConfig(leases=False))
        authority.campaign(self._registration.incarnation, authority.state.term)
        state = authority.state
        effects = machine.handle(
            BecameController(table=state.table, registrations=state.registrations, term=state.term),
            clock.monotonic_ms(),
        )
        while effects:
            write = effects.pop(0)
            assert isinstance(write, WriteTable), "without leases nothing else is asked for"
            result = authority.write(write.term, write.expected_revision, write.entries)
            if not result.accepted:
                raise ConfigError("the table of the embedded grid could not be written")
            effects += machine.handle(WriteDone(result.revision), clock.monotonic_ms())
        table = authority.state.table
        node.apply_table(
            table.revision, [core_entry(entry) for entry in table.entries], clock.now_ms()
        )

    @property
    def core(self) -> Node:
        """The core, for reads without a frame."""
        return self.engine.node

    # ---- LocalNode

    @property
    def cluster_id(self) -> bytes:
        """16 bytes."""
        return self._authority.state.table.life

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve on this loop; called on it."""
        self.engine.start(loop)
        self._start_rest()

    def start_inline(self) -> None:
        """Serve in whichever thread hands in a frame."""
        self.engine.start_inline()
        self._start_rest()

    def _start_rest(self) -> None:
        self.engine.units = self._host or NoUnits()
        if self._calls is not None:
            self._calls.start(self.routes())
        for pump in self._pumps:
            pump.start()
        if self._host is not None:
            self._host.start()
        self.engine.wake()

    def open_stream(self) -> int:
        """A new request stream."""
        return next(self._streams)

    def routes(self) -> Routes:
        """All partitions are here."""
        table = self._authority.state.table
        node = RouteNode(NAME, ADDRESS, self._registration.incarnation)
        # A partition that was lost is answered for as well: with LOST.
        return Routes(table.revision, (node,), [1] * table.partition_count)

    def open_connection(self, deliver: OnFrame) -> int:
        """Number a new connection whose reply frames go to `deliver`."""
        return self.engine.open_connection(deliver)

    def client_frame(self, connection: int, frame: bytes) -> int:
        """Carry out one request frame; its number of operations.

        Raises:
            FrameError: The bytes are no valid frame.
            GridClosed: The grid was stopped, or has failed.
        """
        if self._failed is not None:
            raise GridClosed(f"the embedded grid has failed: {self._failed!r}") from self._failed
        if self._stopped:
            raise GridClosed("the embedded grid was closed")
        return self.engine.client_frame(connection, frame)

    def close_connection(self, connection: int) -> None:
        """Forget the connection."""
        self.engine.close_connection(connection)

    def flush(self, timeout_s: float = FLUSH_TIMEOUT_S) -> bool:
        """Wait until disk and sinks have what is committed now; whether that came in time."""
        return all([pump.flush(timeout_s) for pump in self._pumps])

    def stop(self) -> None:
        """Finish what runs, flush to disk and sinks, and stop; waits.

        On a loop it is called in a worker thread while the loop runs on. Idempotent.
        """
        if self._stopped:
            return
        self._stopped = True
        node = self.engine.node
        if self._failed is None:
            node.stop_all()
            self.engine.wake()
            deadline = time.monotonic() + IDLE_TIMEOUT_S
            while not node.idle() and time.monotonic() < deadline:
                time.sleep(POLL_S)
        if self._host is not None:
            self._host.stop()
        for pump in self._pumps:
            pump.stop(self._failed is None, FLUSH_TIMEOUT_S)
        if self._calls is not None:
            self._calls.close()
        self.engine.stop()
        incarnation = self._registration.incarnation
        self._authority.register(msgspec.structs.replace(self._registration, stopped=True))
        self._authority.end(incarnation, crashed=self._failed is not None)
        self._close_files()

    # ---- inside

    def _fatal(self, error: BaseException) -> None:
        """Take nothing more: what is in memory can't be trusted."""
        self._failed = error

    def _close_files(self) -> None:
        if self._store is not None:
            self._store.close()
        if self._file is not None:
            self._file.close()
