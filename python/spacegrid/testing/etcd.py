"""A real etcd on loopback for tests: one member or three, killed and paused at will.

Its programs are looked for in the folder of `SPACEGRID_ETCD_BIN`, then in `build/etcd/usr/bin`
below this folder (where tools/etcd.sh unpacks Debian's), then on the PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from spacegrid.errors import ConfigError

PROGRAMS_VARIABLE: Final = "SPACEGRID_ETCD_BIN"
UNPACKED: Final = Path("build/etcd/usr/bin")
READY_S: Final = 20.0
POLL_S: Final = 0.05


def program(name: str) -> str:
    """Path of `etcd` or `etcdctl`.

    Raises:
        ConfigError: There is none.
    """
    for folder in (os.environ.get(PROGRAMS_VARIABLE), UNPACKED):
        if folder and (Path(folder) / name).exists():
            return str(Path(folder) / name)
    found = shutil.which(name)
    if found is None:
        raise ConfigError(
            f"{name} is not in {UNPACKED} and not on the PATH\n"
            f"hint: tools/etcd.sh unpacks it; or set {PROGRAMS_VARIABLE}"
        )
    return found


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()


@dataclass
class EtcdMember:
    """One process.

    Attributes:
        name: Its name in the etcd cluster.
        port: Where clients ask.
        peer_port: Where members talk to each other.
        folder: Its data.
    """

    name: str
    port: int
    peer_port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where clients ask."""
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        """End it with SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """Stop it with SIGSTOP; it has stopped when this returns."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@dataclass
class Etcd:
    """An etcd cluster.

    Attributes:
        folder: Where members keep their data.
        size: Number of members.
        election_ms: Election timeout; a tenth of it is the heartbeat.
        tls: ca, cert and key files that members serve clients with, clients' certificates demanded.
        token: Tells this etcd cluster from others.
        login: user:password that `ctl` asks with; empty: none.
        members: Its processes, once started.
    """

    folder: Path
    size: int = 1
    election_ms: int = 500
    tls: tuple[Path, Path, Path] | None = None
    token: str = "test"
    login: str = ""
    members: list[EtcdMember] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def scheme(self) -> str:
        """http, or https with certificates."""
        return "https" if self.tls else "http"

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where clients ask, a member each."""
        return tuple(member.address for member in self.members)

    @property
    def url(self) -> str:
        """What nodes are told."""
        return ("etcds://" if self.tls else "etcd://") + ",".join(self.addresses)

    def start(self) -> None:
        """Start all members, and wait until they answer."""
        ports = free_ports(2 * self.size)
        self.members = [
            EtcdMember(f"m{n}", ports[2 * n], ports[2 * n + 1], self.folder / f"m{n}")
            for n in range(self.size)
        ]
        for member in self.members:
            self.launch(member)
        self.wait_healthy()

    def launch(self, member: EtcdMember, *, log: str = "error") -> None:
        """Start a member, or start it again."""
        peers = ",".join(f"{m.name}=http://127.0.0.1:{m.peer_port}" for m in self.members)
        command = [
            program("etcd"),
            "--name", member.name,
            "--data-dir", str(member.folder),
            "--listen-client-urls", f"{self.scheme}://{member.address}",
            "--advertise-client-urls", f"{self.scheme}://{member.address}",
            "--listen-peer-urls", f"http://127.0.0.1:{member.peer_port}",
            "--initial-advertise-peer-urls", f"http://127.0.0.1:{member.peer_port}",
            "--initial-cluster", peers,
            "--initial-cluster-token", self.token,
            "--heartbeat-interval", str(self.election_ms // 10),
            "--election-timeout", str(self.election_ms),
            "--log-level", log,
            "--logger", "zap",
        ]  # fmt: skip
        if self.tls:
            ca, cert, key = self.tls
            command += ["--trusted-ca-file", str(ca), "--cert-file", str(cert)]
            command += ["--key-file", str(key), "--client-cert-auth"]
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{member.name}.log").open("ab") as sink:
            member.process = subprocess.Popen(command, stdout=sink, stderr=sink)

    def ctl(self, *arguments: str, members: Sequence[EtcdMember] | None = None) -> str:
        """What etcdctl says."""
        asked = members or self.members
        command = [program("etcdctl"), "--command-timeout", "5s", "--endpoints"]
        command.append(",".join(f"{self.scheme}://{member.address}" for member in asked))
        if self.tls:
            ca, cert, key = self.tls
            command += ["--cacert", str(ca), "--cert", str(cert), "--key", str(key)]
        if self.login:
            command += ["--user", self.login]
        done = subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            timeout=READY_S,
            check=False,
            env={**os.environ, "ETCDCTL_API": "3"},
        )
        if done.returncode:
            raise RuntimeError(f"etcdctl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def status(self, member: EtcdMember) -> dict[str, Any]:
        """How a member stands."""
        found = json.loads(self.ctl("endpoint", "status", "-w", "json", members=[member]))
        status: dict[str, Any] = found[0]["Status"]
        return status

    def leader(self) -> EtcdMember:
        """The member that is etcd's leader now."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            for member in self.running():
                try:
                    status = self.status(member)
                except RuntimeError:
                    continue
                if status["leader"] and status["leader"] == status["header"]["member_id"]:
                    return member
            time.sleep(POLL_S)
        raise RuntimeError(f"etcd has no leader within {READY_S:g} s")

    def running(self) -> list[EtcdMember]:
        """The members that run."""
        return [m for m in self.members if m.process is not None and m.process.poll() is None]

    def wait_healthy(self) -> None:
        """Wait until the members that run answer linearizable reads."""
        deadline = time.monotonic() + READY_S
        while True:
            try:
                self.ctl("get", "nothing", members=self.running())
                return
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)

    def stop(self) -> None:
        """End all members."""
        for member in self.members:
            if member.process is not None:
                member.process.kill()
                member.process.wait()
