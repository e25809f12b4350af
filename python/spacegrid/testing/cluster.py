"""A real cluster for tests: processes on free ports, killed and restarted at will.

::

    with LocalCluster(nodes=3, units=["shop:Shop"]) as cluster:
        with spacegrid.connect_sync(*cluster.addresses) as grid:
            ...
        cluster.kill("node-2")

Nothing is shared between two clusters, and nothing is left behind: `stop` ends every process, and a
data folder that was made here goes with it. Blocking; from asyncio use `asyncio.to_thread`.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from spacegrid.errors import ConnectionFailed, DeadlineExceeded
from spacegrid.node.admin_client import AdminClient
from spacegrid.node.processes import Child, ClusterProcesses, ClusterSettings
from spacegrid.testing.links import FaultLinks
from spacegrid.testing.settled import is_settled, is_whole
from spacegrid.v1 import admin_pb2

READY_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.02
PARTITIONS_DEFAULT: Final = 64

T = TypeVar("T")


class LocalCluster(ClusterProcesses):
    """A cluster of real processes.

    Args:
        nodes: Number of nodes, named `node-1` and up.
        units: Units to install, each `module:Class`.
        data: Folder to keep; None: a temporary one, removed by `stop`.
        sql: URL of the shared SQL sink; None: none.
        lmdb: Whether nodes keep their copies on disk.
        partitions: Partition count; few, so that tests are quick.
        copies: Copies wanted of each partition.
        min_in_sync: Copies that must hold a write; 0: the smaller of `copies` and 2.
        coordinator: `etcd://...`: the table is there; empty: a local coordinator is started.
        tls: Whether the cluster has TLS and tokens; `connection` is then what clients need.
        arguments: Further arguments of every node's command line.
        environment: Added to the processes' environment.
        python: Interpreter of the processes; None: this one.
        cwd: Folder the processes start in, where units are found; None: this one.
        links: Fault proxies that all links between the processes pass through; None: none. They
            are closed with the cluster.
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        units: Sequence[str] = (),
        data: Path | None = None,
        sql: str | None = None,
        lmdb: bool = True,
        partitions: int = PARTITIONS_DEFAULT,
        copies: int = 2,
        min_in_sync: int = 0,
        coordinator: str = "",
        tls: bool = False,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        python: Path | str | None = None,
        cwd: Path | None = None,
        links: FaultLinks | None = None,
    ) -> None:
        self.links = links
        self._temporary = data is None
        folder = Path(tempfile.mkdtemp(prefix="spacegrid-")) if data is None else data.resolve()
        super().__init__(
            ClusterSettings(
                nodes=nodes,
                data=folder,
                units=units,
                sql=sql or "",
                lmdb=lmdb,
                partitions=partitions,
                copies=copies,
                min_in_sync=min_in_sync,
                coordinator=coordinator,
                tls=tls,
                arguments=arguments,
                environment=environment or {},
                python=python,
                cwd=cwd,
            )
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start everything and wait until every partition has all its copies and nothing moves.

        Raises:
            ConnectionFailed: A process ended; the message has the end of its log.
            DeadlineExceeded: Not ready in time.
        """
        super().start()
        try:
            self.wait_ready(timeout_s)
            # Nodes that come late find everything placed without them, and are given their part.
            self.wait_settled(timeout_s)
        except BaseException:
            self.kill_all()
            raise

    def stop(self, timeout_s: float = READY_TIMEOUT_S) -> dict[str, int]:
        """Stop the cluster in order; exit code of each node that was still running."""
        try:
            return super().stop(timeout_s)
        finally:
            if self.links is not None:
                self.links.close()
            if self._temporary:
                shutil.rmtree(self.settings.data, ignore_errors=True)

    def arguments_of(self, name: str) -> Sequence[str]:
        """Where this node reaches the others: the fault proxies', where there are some."""
        return () if self.links is None else self.links.arguments_of(name)

    def started(self, child: Child) -> Child:
        """Tell the fault proxies where a process listens."""
        if self.links is not None:
            self.links.set_target(child.name, child.address)
        return child

    def pause(self, name: str) -> None:
        """Stop a node's process with SIGSTOP, which nobody hears of; it has stopped on return."""
        os.kill(self.nodes[name].pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.nodes[name].pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self, name: str) -> None:
        """Let a paused node go on."""
        os.kill(self.nodes[name].pid, signal.SIGCONT)

    def kill(self, name: str) -> None:
        """End a node with SIGKILL and wait until the process is gone."""
        self.nodes[name].kill()

    def restart(self, name: str) -> Child:
        """Start a dead node again, at its old address, with its old data folder."""
        return super().restart(name)

    @property
    def connection(self) -> dict[str, Any]:
        """What `connect` and `connect_sync` need beside the addresses, with the role admin."""
        if self.secrets is None:
            return {"tls": ""}
        token = self.secrets.admin().token
        assert token is not None
        return {"tls": self.secrets.authority, "token": token.reveal()}

    @property
    def alive(self) -> list[str]:
        """Names of the nodes that run."""
        return [name for name, child in self.nodes.items() if child.alive]

    def admin(self, name: str | None = None) -> AdminClient:
        """The Admin service of a node; None: of any that runs."""
        names = self.alive if name is None else [name]
        if not names:
            raise ConnectionFailed("no node of the cluster runs")
        return self.admin_client(self.nodes[names[0]])

    def status(self, name: str | None = None) -> admin_pb2.StatusReply:
        """What a node says of the cluster and of itself; None: any node that runs."""
        with self.admin(name) as admin:
            return admin.status()

    def partitions(self, name: str | None = None) -> list[admin_pb2.PartitionStatus]:
        """Every partition, as a node knows it; None: any node that runs."""
        return list(self._listed(name).partitions)

    def _listed(self, name: str | None) -> admin_pb2.PartitionsReply:
        with self.admin(name) as admin:
            return admin.partitions()

    def primaries(self) -> dict[int, str]:
        """Partition to the name of its primary; partitions without one are left out."""
        return {p.partition: p.primary for p in self.partitions() if p.primary}

    def controller(self) -> str:
        """Name of the node that is controller."""
        found = self.wait_for(
            lambda: [node.name for node in self.status().nodes if node.controller], "a controller"
        )
        return found[0]

    def flush(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until every running node's sinks have what is committed now.

        Raises:
            DeadlineExceeded: A sink did not take everything in time, or partitions went on moving.
        """
        deadline = time.monotonic() + timeout_s
        before = self._revisions()
        while True:
            for name in self.alive:
                with self.admin(name) as admin:
                    if not admin.flush(max(POLL_S, deadline - time.monotonic())):
                        raise DeadlineExceeded(f"{name} was not flushed within {timeout_s:g} s")
            after = self._revisions()
            # What moves meanwhile from a node that is still to be asked to one that was is missed.
            if after == before and len(after) == 1:
                return
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"partitions moved for {timeout_s:g} s while flushed")
            before = after

    def _revisions(self) -> set[int]:
        """Revisions of the table that the running nodes know."""
        return {self.status(name).revision for name in self.alive}

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until every running node sees every partition served with all its copies."""
        self.wait_for(
            lambda: is_whole([self.status(name) for name in self.alive]),
            "every partition to be served with all its copies",
            timeout_s,
        )

    def wait_settled(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until nothing moves any more: what is served is where it should be, and all know it.

        Partitions that nobody serves don't count. After a change of nodes copies are made first,
        then primaries are evened out: who is asked for the primaries before that, or changes what a
        pump writes to, has not seen the last of it.

        Raises:
            DeadlineExceeded: Something still moves, or nodes differ in what they know.
        """

        def settled() -> bool:
            statuses = [self.status(name) for name in self.alive]
            return is_settled(statuses, [self._listed(name) for name in self.alive])

        self.wait_for(settled, "everything that is served to be where it should be", timeout_s)

    def wait_for(
        self, condition: Callable[[], T], what: str, timeout_s: float = READY_TIMEOUT_S
    ) -> T:
        """Ask again until the answer is true; nodes that don't answer yet count as no.

        Raises:
            DeadlineExceeded: It did not become true; the message says how the cluster stands.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                found = condition()
            except ConnectionFailed as error:
                last: object = error
            else:
                if found:
                    return found
                last = found
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"waited {timeout_s:g} s for {what}; last answer: {last}; {self._describe()}"
                )
            time.sleep(POLL_S)

    def _describe(self) -> str:
        lines = []
        for name, child in self.nodes.items():
            if not child.alive:
                lines.append(f"{name}: exit code {child.process.returncode}; {child.log_tail()}")
                continue
            try:
                status = self.status(name)
            except ConnectionFailed as error:
                lines.append(f"{name}: {error}; {child.log_tail()}")
                continue
            lines.append(
                f"{name}: {status.self.state}, revision {status.revision}, "
                f"{len(status.nodes)} nodes, {status.unserved} unserved, "
                f"{status.under_replicated} under-replicated, lost {list(status.lost)}"
            )
        return "\n".join(lines)
