"""The servers of a run: Debian's Redis, one node alone, and a pair with a synchronous backup."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import redis
from spacegrid.testing import LocalCluster

ROOT = Path(__file__).parent.parent.parent
REDIS = ROOT / "build" / "redis"


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pin(pid: int, core: int | None) -> None:
    """Keep every thread of a process on one core."""
    if core is None:
        return
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), {core})


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no VmRSS for process {pid}")


@contextlib.contextmanager
def redis_server(core: int | None) -> Iterator[tuple[int, int]]:
    """Run Redis in memory only; yield (port, pid)."""
    libraries = sorted({str(path.parent) for path in (REDIS / "usr" / "lib").rglob("*.so*")})
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [
                REDIS / "usr" / "bin" / "redis-server",
                "--port",
                str(port),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
                "--dir",
                folder,
            ],
            env={**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)},
            stdout=subprocess.DEVNULL,
        )
        try:
            client = redis.Redis(port=port)
            until = time.monotonic() + 10
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    if time.monotonic() > until or process.poll() is not None:
                        raise
                    time.sleep(0.02)
            pin(process.pid, core)
            yield port, process.pid
            client.close()
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def grid_nodes(nodes: int, copies: int, core: int | None) -> Iterator[LocalCluster]:
    """Run nodes in memory only, with the burner unit; yields the running cluster."""
    with tempfile.TemporaryDirectory() as folder:
        cluster = LocalCluster(
            nodes=nodes,
            copies=copies,
            units=["bench.peers.units:Burner"],
            data=Path(folder),
            lmdb=False,
            partitions=1_024,
            environment={"PYTHONPATH": str(ROOT)},
        )
        cluster.start()
        try:
            for node in cluster.nodes.values():
                pin(node.pid, core)
            yield cluster
        finally:
            cluster.stop()


def worker(
    loop: str, redis_port: int, grid: str, pair: str, entries: int, core: int | None
) -> "subprocess.Popen[str]":
    """Start a load worker."""
    command = [
        sys.executable,
        "-m",
        "bench.peers.worker",
        "--loop",
        loop,
        "--redis",
        str(redis_port),
    ]
    command += ["--grid", grid, "--pair", pair, "--entries", str(entries)]
    if core is not None:
        command += ["--core", str(core)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
