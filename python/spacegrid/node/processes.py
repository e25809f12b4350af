"""A cluster as processes of this machine: N nodes, and a local coordinator unless etcd is it.

`spacegrid up`, the demo and the test kit all start theirs here, each node by the very command that
a person would type. A child reports on stdout, with one line of JSON, that it is ready; its log
goes to a file. A child holds the read end of a pipe as its stdin: when the parent is gone, the pipe
ends and the child stops by itself. Children are in sessions of their own, so that Ctrl-C in a
terminal reaches the parent alone and the cluster is stopped in order.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from spacegrid.errors import ConnectionFailed
from spacegrid.node.admin_client import AdminClient
from spacegrid.node.secrets import SECRETS, ClusterSecrets
from spacegrid.security.client import PLAIN, ClientSecurity

READY_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 60.0
LOG_TAIL_LINES: Final = 20
WATCH_PARENT: Final = "SPACEGRID_STOP_WITH_PARENT"


@dataclass(slots=True)
class Child:
    """One started process.

    Attributes:
        name: Node name, or `coordinator`.
        command: What was started, without the interpreter's own path in front.
        process: The running process.
        log: Where its stderr goes.
        data: Its data folder.
        log_start: Where in the log this process began.
        ready: What it said when it was ready: at least `address` and `pid`.
    """

    name: str
    command: list[str]
    process: subprocess.Popen[bytes]
    log: Path
    data: Path
    log_start: int = 0
    ready: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """host:port it listens on."""
        return str(self.ready["address"])

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    @property
    def shell_command(self) -> str:
        """The command as a person would type it, with the port that it got."""
        words = [word for word in self.command if word != "--json"]
        if self.ready and "--listen" in words:
            words[words.index("--listen") + 1] = self.address
        return shlex.join(["spacegrid", *words])

    def log_tail(self) -> str:
        """Last lines of its log, of this process and not of those before it."""
        with contextlib.suppress(OSError):
            lines = self.log.read_bytes()[self.log_start :].decode(errors="replace").splitlines()
            return "\n".join(_in_words(line) for line in lines[-LOG_TAIL_LINES:])
        return ""

    def kill(self) -> None:
        """End it with SIGKILL and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        self._close()

    def terminate(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Ask it to end (SIGTERM), wait, and kill it when the time is over; its exit code."""
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for its end, and kill it when the time is over; its exit code."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._close()
        return code

    def _close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _in_words(line: str) -> str:
    """A line of a log; an error document as a person reads it."""
    if line.startswith('{"error":'):
        with contextlib.suppress(ValueError, KeyError):
            return f"error: {json.loads(line)['message']}"
    return line


def start(
    name: str,
    command: Sequence[str],
    data: Path,
    *,
    environment: Mapping[str, str] | None = None,
    python: Path | str | None = None,
    cwd: Path | None = None,
) -> Child:
    """Start `spacegrid COMMAND...` as a child; `wait_ready` afterwards.

    Args:
        name: Name for messages, and of its log file.
        command: Arguments of the command line.
        data: Its data folder, where its log goes too.
        environment: Added to this process's own environment.
        python: Interpreter; None: this process's own.
        cwd: Folder it starts in, where units are found; None: this process's own.
    """
    data.mkdir(parents=True, exist_ok=True)
    log = data / "log.txt"
    with log.open("ab") as sink:
        log_start = sink.tell()
        process = subprocess.Popen(
            [str(python or sys.executable), "-m", "spacegrid", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            start_new_session=True,
            cwd=cwd,
            env={**os.environ, **(environment or {}), WATCH_PARENT: "1"},
        )
    return Child(name, list(command), process, log, data, log_start)


def wait_ready(child: Child, timeout_s: float = READY_TIMEOUT_S) -> Child:
    """Wait for a child's ready line.

    Raises:
        ConnectionFailed: It ended or said nothing in time; the message has the end of its log.
    """
    stream = child.process.stdout
    assert stream is not None
    deadline = time.monotonic() + timeout_s
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([stream], [], [], left)[0]:
            child.kill()
            raise ConnectionFailed(
                f"{child.name} was not ready within {timeout_s:g} s; its log ends with:\n"
                f"{child.log_tail()}"
            )
        piece = _read_some(stream)
        if not piece:
            code = child.wait(5.0)
            raise ConnectionFailed(
                f"{child.name} ended with exit code {code} before it was ready; its log ends:\n"
                f"{child.log_tail()}"
            )
        line += piece
    child.ready = json.loads(line.splitlines()[0])
    return child


def _read_some(stream: IO[bytes]) -> bytes:
    return os.read(stream.fileno(), 65_536)


@dataclass(slots=True, kw_only=True)
class ClusterSettings:
    """What a cluster on this machine is started with.

    Attributes:
        nodes: Number of nodes.
        data: Folder of the whole cluster: `coordinator/` and one folder a node.
        port: Port of the first node, the others follow; 0: free ports.
        units: Units to install, each `module:Class`.
        sql: URL of the shared SQL sink; empty: none.
        lmdb: Whether nodes keep their copies in LMDB.
        partitions: Partition count, fixed at the first start.
        copies: Copies wanted of each partition.
        min_in_sync: Copies that must hold a write; 0: the smaller of `copies` and 2.
        coordinator: `etcd://...`: the table is there; empty: a local coordinator is started.
        tls: Whether nodes prove themselves by certificates and clients by tokens, which are made
            under `data` at the first start.
        arguments: Further arguments of every node.
        environment: Added to the children's environment.
        python: Interpreter for the children; None: this process's own.
        cwd: Folder the children start in; None: this process's own.
    """

    nodes: int = 3
    data: Path
    port: int = 0
    units: Sequence[str] = ()
    sql: str = ""
    lmdb: bool = True
    partitions: int = 1024
    copies: int = 2
    min_in_sync: int = 0
    coordinator: str = ""
    tls: bool = False
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    python: Path | str | None = None
    cwd: Path | None = None


class ClusterProcesses:
    """The coordinator and the nodes of one cluster, as children of this process.

    Attributes:
        settings: What it was started with.
        coordinator: The local coordinator's process, once started.
        nodes: Node name to process, dead ones included until they are restarted.
        secrets: Certificates and tokens; None: the cluster has no TLS.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self.settings = settings
        self.secrets = ClusterSecrets(settings.data / SECRETS) if settings.tls else None
        self.coordinator: Child | None = None
        self.nodes: dict[str, Child] = {}

    def start(self) -> None:
        """Start the coordinator, then all nodes at once, and wait until each says it is ready."""
        try:
            if not self.settings.coordinator:
                self.start_coordinator()
            names = [f"node-{n}" for n in range(1, self.settings.nodes + 1)]
            for index, name in enumerate(names):
                port = self.settings.port + index if self.settings.port else 0
                self.nodes[name] = self._spawn(name, port)
            for name in names:
                self.started(wait_ready(self.nodes[name]))
        except BaseException:
            self.kill_all()
            raise

    def start_coordinator(self) -> Child:
        """Start the coordinator, a dead one at its old address; wait until it is ready."""
        s, old = self.settings, self.coordinator
        command = [
            "coordinator",
            "--listen", old.address if old is not None else "127.0.0.1:0",
            "--data", str(s.data / "coordinator"),
            "--partitions", str(s.partitions),
            "--copies", str(s.copies),
            "--nodes", str(s.nodes),
            "--json",
        ]  # fmt: skip
        if s.min_in_sync:
            command += ["--min-in-sync", str(s.min_in_sync)]
        self.coordinator = self._start("coordinator", command)
        return self.started(wait_ready(self.coordinator))

    def restart(self, name: str) -> Child:
        """Start a dead node again, at its old address and folder; wait until it is ready."""
        old = self.nodes[name]
        if old.alive:
            raise RuntimeError(f"{name} (pid {old.pid}) still runs")
        port = int(old.address.rpartition(":")[2]) if old.ready else 0
        self.nodes[name] = self._spawn(name, port)
        return self.started(wait_ready(self.nodes[name]))

    def add(self, name: str) -> Child:
        """Start one more node on a free port."""
        self.nodes[name] = self._spawn(name, 0)
        return self.started(wait_ready(self.nodes[name]))

    def started(self, child: Child) -> Child:
        """Take note that a process listens; returns it."""
        return child

    def kill_all(self) -> None:
        """End every process with SIGKILL."""
        for child in (*self.nodes.values(), self.coordinator):
            if child is not None:
                child.kill()

    @property
    def addresses(self) -> list[str]:
        """host:port of each node, dead ones included: clients find the way themselves."""
        return [child.address for child in self.nodes.values() if child.ready]

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> dict[str, int]:
        """Stop the whole cluster in order, all data flushed, then the coordinator.

        Returns:
            Exit code of each node that was still running.
        """
        codes: dict[str, int] = {}
        running = [child for child in self.nodes.values() if child.alive]
        try:
            for child in running:
                if self._ask_to_stop(child):
                    break
            deadline = time.monotonic() + timeout_s
            for child in running:
                codes[child.name] = child.wait(max(0.1, deadline - time.monotonic()))
        finally:
            self.kill_nodes()
            if self.coordinator is not None:
                self.coordinator.terminate(10.0)
        return codes

    def _ask_to_stop(self, child: Child) -> bool:
        if not child.ready:
            return False
        with contextlib.suppress(ConnectionFailed), self.admin_client(child) as admin:
            admin.stop(cluster=True)
            return True
        return False

    def admin_client(self, child: Child) -> AdminClient:
        """The Admin service of a node."""
        return AdminClient(child.address, security=self.security)

    @property
    def security(self) -> ClientSecurity:
        """How an operator proves itself to the nodes."""
        return PLAIN if self.secrets is None else self.secrets.admin()

    def kill_nodes(self) -> None:
        """End every node that still runs with SIGKILL."""
        for child in self.nodes.values():
            if child.alive:
                child.kill()

    def data_folder(self, name: str) -> Path:
        """The folder of one node."""
        return self.settings.data / name

    def _spawn(self, name: str, port: int) -> Child:
        s = self.settings
        command = [
            "node",
            "--name", name,
            "--listen", f"127.0.0.1:{port}",
            "--data", str(self.data_folder(name)),
            *self._coordinator_arguments(),
        ]  # fmt: skip
        for unit in s.units:
            command += ["--unit", unit]
        if s.sql:
            command += ["--sql", s.sql]
        if not s.lmdb:
            command += ["--no-lmdb"]
        if self.secrets is not None:
            command += self.secrets.node_arguments(name)
        command += [*s.arguments, *self.arguments_of(name), "--json"]
        return self._start(name, command)

    def arguments_of(self, name: str) -> Sequence[str]:
        """Further arguments of one node's command line; they win over those of all."""
        return ()

    def _coordinator_arguments(self) -> list[str]:
        """Where the coordinator is; in etcd the first node creates the space."""
        s = self.settings
        if self.coordinator is not None:
            return ["--coordinator", f"local://{self.coordinator.address}"]
        return [
            "--coordinator", s.coordinator,
            "--partitions", str(s.partitions),
            "--copies", str(s.copies),
            "--min-in-sync", str(s.min_in_sync),
            "--nodes", str(s.nodes),
        ]  # fmt: skip

    def _start(self, name: str, command: list[str]) -> Child:
        s = self.settings
        return start(
            name,
            command,
            self.data_folder(name),
            environment=s.environment,
            python=s.python,
            cwd=s.cwd,
        )


def stop_with_parent() -> None:
    """In a child: send this process SIGTERM once its parent, which holds the other end of stdin, is
    gone.
    """

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="spacegrid-parent", daemon=True).start()
