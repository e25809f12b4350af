"""Clusters of coordinators for the contract suite: in memory, over gRPC, and on a real etcd.

Each makes nodes and ends them: in memory by a call, elsewhere by ending a real process whose pid
the node registered with.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

from etcd import Etcd
from spacegrid.coordinator import Coordinator
from spacegrid.coordinator.authority import Authority, AuthorityState
from spacegrid.coordinator.durable import DurableFile
from spacegrid.coordinator.etcd import EtcdCoordinator, EtcdOptions, EtcdTimes, SpaceSettings
from spacegrid.coordinator.local import LocalCoordinator
from spacegrid.coordinator.local_server import LocalServer
from spacegrid.coordinator.memory import MemoryCoordinator, open_authority
from spacegrid.machine.table import PartitionEntry, Registration, State, Table, new_table

LIFE = bytes(range(16))


def small_table() -> Table:
    return new_table(LIFE, partition_count=4, copies=2, min_in_sync=1)


def placed(partition: int, primary: int, version: int = 1) -> PartitionEntry:
    return PartitionEntry(
        partition, epoch=1, version=version, state=State.OK, primary=primary, in_sync=(primary,)
    )


class MemoryCluster:
    def __init__(self, folder: Path) -> None:
        self.file = DurableFile(folder / "coordinator")
        self.authority = open_authority(small_table(), self.file)
        self.nodes: list[MemoryCoordinator] = []

    async def start(self) -> None:
        pass

    async def restart(self) -> None:
        """The coordinator begins again from its file, with its nodes gone."""
        self.authority = open_authority(small_table(), self.file)

    async def node(self, name: str, **fields: object) -> Coordinator:
        node = MemoryCoordinator(self.authority)
        await node.join(Registration(name=name, **fields))  # type: ignore[arg-type]
        self.nodes.append(node)
        return node

    async def kill(self, node: Coordinator) -> None:
        assert isinstance(node, MemoryCoordinator)
        node.kill()

    async def stop(self) -> None:
        self.file.close()


def start_process() -> subprocess.Popen[bytes]:
    """Something that lives until it is killed, to register with its pid."""
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


class LocalCluster:
    def __init__(self, folder: Path) -> None:
        self.file = DurableFile(folder / "coordinator")
        self.server = self._server()
        self.address = ""
        self.nodes: list[LocalCoordinator] = []
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def _server(self) -> LocalServer:
        state = self.file.load() or AuthorityState(small_table())
        return LocalServer(Authority(state, self.file.save))

    async def start(self) -> None:
        self.address = await self.server.start(self.address or "127.0.0.1:0")

    async def restart(self) -> None:
        await self.server.stop()
        for node in self.nodes:
            await node._shut()
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.server = self._server()
        await self.start()

    async def node(self, name: str, **fields: object) -> Coordinator:
        process = start_process()
        self.processes[process.pid] = process
        node = LocalCoordinator(self.address)
        self.nodes.append(node)
        await node.join(Registration(name=name, pid=process.pid, **fields))  # type: ignore[arg-type]
        return node

    async def kill(self, node: Coordinator) -> None:
        process = self.processes[node.registration.pid]
        process.kill()
        process.wait()

    async def stop(self) -> None:
        for node in self.nodes:
            await node.close()
        await self.server.stop()
        for process in self.processes.values():
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
        self.file.close()


#: Times of a registration in tests: nobody waits seconds for an end.
QUICK = EtcdTimes(lease_s=1, keep_s=0.2, check_s=0.1, valid_ms=500, end_ms=700)
SPACES = itertools.count()


class EtcdSpace:
    """A space of its own in a real etcd that other tests use too.

    Attributes:
        options: How its nodes reach etcd.
        nodes: Those that it made.
        data: Data folder of the nodes that it makes from now on.
    """

    def __init__(self, etcd: Etcd, times: EtcdTimes = QUICK, **options: object) -> None:
        self.etcd = etcd
        self.times = times
        self.options = EtcdOptions(
            members=etcd.addresses,
            space=f"space-{next(SPACES)}",
            **options,  # type: ignore[arg-type]
        )
        self.nodes: list[EtcdCoordinator] = []
        self.data: Path | None = None
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    async def start(self) -> None:
        pass

    async def restart(self) -> None:
        """etcd dies and begins again, with the nodes gone."""
        for node in self.nodes:
            await self.kill(node)
        for member in self.etcd.members:
            member.kill()
            self.etcd.launch(member)
        self.etcd.wait_healthy()

    def coordinator(self, settings: SpaceSettings | None = None) -> EtcdCoordinator:
        """One that has not joined yet."""
        small = SpaceSettings(partitions=4, copies=2, min_in_sync=1, nodes=1)
        return EtcdCoordinator(self.options, settings or small, times=self.times, data=self.data)

    async def node(self, name: str, **fields: object) -> EtcdCoordinator:
        process = start_process()
        self.processes[process.pid] = process
        node = self.coordinator()
        await node.join(Registration(name=name, pid=process.pid, **fields))  # type: ignore[arg-type]
        self.nodes.append(node)
        return node

    async def kill(self, node: Coordinator) -> None:
        """End a node as kill -9 would: nothing of it says anything more."""
        assert isinstance(node, EtcdCoordinator)
        self.end_process(node.registration.pid)
        await node._shut()

    def end_process(self, pid: int) -> None:
        process = self.processes.pop(pid, None)
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()

    async def stop(self) -> None:
        for node in self.nodes:
            await node.close()
        for pid in list(self.processes):
            self.end_process(pid)
