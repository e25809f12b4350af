"""What a start opens to other machines (X1): nothing, unless it is secured or insisted on."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from spacegrid.testing import LocalCluster

LISTEN = "0A"


def listening(pid: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Addresses that a process listens on over TCP."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a connection may end meanwhile
            target = os.readlink(fd)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] != LISTEN or words[9] not in inodes:
                continue
            data = bytes.fromhex(words[1].partition(":")[0])
            # Groups of four bytes in the machine's own order.
            groups = struct.unpack(f"<{len(data) // 4}I", data)
            address = ipaddress.ip_address(struct.pack(f">{len(groups)}I", *groups))
            # gRPC listens on IPv4 addresses as IPv6 has them.
            found.append(getattr(address, "ipv4_mapped", None) or address)
    return found


def test_a_default_start_listens_on_loopback_only(
    start_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = start_cluster(nodes=2, partitions=8, lmdb=False)
    assert cluster.coordinator is not None
    for child in (cluster.coordinator, *cluster.nodes.values()):
        addresses = listening(child.pid)
        assert addresses, child.name
        assert all(address.is_loopback for address in addresses), (child.name, addresses)


def node(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "spacegrid", "node", "--copies", "1", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_public_address_without_security_does_not_start() -> None:
    process = node("--listen", "0.0.0.0:0", "--advertise", "127.0.0.1")
    out, text = process.communicate(timeout=30)
    assert process.returncode == 2
    assert out == ""
    assert "--tls-ca, --tls-cert and --tokens" in text


def test_the_override_is_told_in_the_log(tmp_path: Path) -> None:
    process = node("--listen", "0.0.0.0:0", "--advertise", "127.0.0.1", "--insecure-let-anyone-in")
    try:
        assert process.stdout is not None
        assert "ready at 127.0.0.1:" in process.stdout.readline()
        assert any(address.is_unspecified for address in listening(process.pid))
        started = time.monotonic()
        assert process.stderr is not None
        for line in process.stderr:
            if "insecure_let_anyone_in is set" in line:
                break
            assert time.monotonic() - started < 20
    finally:
        process.terminate()
        process.communicate(timeout=30)
