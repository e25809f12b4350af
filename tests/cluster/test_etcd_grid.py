"""A grid of three nodes whose table is in a real etcd of three members."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import spacegrid
from etcd import Etcd
from spacegrid.security.authority import Authority
from spacegrid.testing import LocalCluster

pytestmark = pytest.mark.timeout(120)

NUMBERS = 200


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    with Etcd(tmp_path / "etcd", size=3) as etcd:
        yield etcd


def test_a_grid_on_etcd_survives_kill_of_a_node_and_of_etcds_leader(etcd: Etcd) -> None:
    with LocalCluster(nodes=3, partitions=16, coordinator=etcd.url) as cluster:
        with spacegrid.connect_sync(*cluster.addresses) as grid:
            numbers = grid.map("numbers", key=int, value=int)
            for number in range(NUMBERS):
                numbers.put(number, number)
            etcd.leader().kill()
            cluster.kill("node-2")
            for number in range(NUMBERS, 2 * NUMBERS):
                numbers.put(number, number, timeout=30)
            assert [numbers.get(number) for number in range(2 * NUMBERS)] == list(
                range(2 * NUMBERS)
            )
        cluster.wait_ready()


def command(*arguments: str, cwd: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "spacegrid", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        start_new_session=True,
    )


@contextlib.contextmanager
def running(etcd: Etcd, cwd: Path, environment: dict[str, str], *more: str) -> Iterator[list[str]]:
    """`spacegrid up` with three nodes, by their addresses; stopped by Ctrl-C."""
    process = command(
        *("up", "--nodes", "3", "--port", "0", "--partitions", "16", "--data", "space", "--json"),
        *("--coordinator", f"{etcd.url}/shop", *more),
        cwd=cwd,
        environment=environment,
    )
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        assert all(lines), process.communicate()[1]
        yield [json.loads(line)["address"] for line in lines]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    finally:
        process.kill()
        process.communicate()


def status(address: str, cwd: Path) -> dict[str, Any]:
    """What is shown once everything is served: on a busy machine a lease may be over."""
    deadline = time.monotonic() + 30
    while True:
        process = command("status", "--at", address, "--json", cwd=cwd, environment={})
        shown, errors = process.communicate(timeout=30)
        if process.returncode == 0:
            document: dict[str, Any] = json.loads(shown)
            return document
        assert time.monotonic() < deadline, shown + errors


def test_up_goes_on_from_etcd_and_begins_anew_when_told(tmp_path: Path) -> None:
    with Etcd(tmp_path / "etcd") as etcd:
        with running(etcd, tmp_path, {}) as addresses:
            with spacegrid.connect_sync(*addresses, timeout=20) as grid:
                orders = grid.map("orders", key=str, value=int)
                orders.put_many({f"order-{n}": n for n in range(NUMBERS)})
            names = {node["name"] for node in status(addresses[0], tmp_path)["nodes"]}
            assert names == {"node-1", "node-2", "node-3"}
        for more, size in (((), NUMBERS), (("--fresh",), 0)):
            with (
                running(etcd, tmp_path, {}, *more) as addresses,
                spacegrid.connect_sync(*addresses, timeout=20) as grid,
            ):
                assert grid.map("orders", key=str, value=int).size() == size


def test_up_reaches_etcd_over_tls(tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    own = Authority.create(tmp_path / "certs", "etcd", now).issue("member", ["127.0.0.1"], now)
    files = (tmp_path / "certs" / "ca.crt", own.path, own.path)
    names = ("SPACEGRID_ETCD_CA", "SPACEGRID_ETCD_CERT", "SPACEGRID_ETCD_KEY")
    environment = dict(zip(names, map(str, files), strict=True))
    with (
        Etcd(tmp_path / "etcd", tls=files) as etcd,
        running(etcd, tmp_path, environment) as addresses,
        spacegrid.connect_sync(*addresses, timeout=20) as grid,
    ):
        orders = grid.map("orders", key=str, value=int)
        orders.put("order-1", 1)
        assert orders.get("order-1") == 1


def test_a_node_that_was_paused_too_long_stops_and_its_restart_serves(tmp_path: Path) -> None:
    with (
        Etcd(tmp_path / "etcd") as etcd,
        LocalCluster(nodes=3, partitions=16, coordinator=etcd.url) as cluster,
        spacegrid.connect_sync(*cluster.addresses, timeout=30) as grid,
    ):
        numbers = grid.map("numbers", key=int, value=int)
        numbers.put_many({number: number for number in range(NUMBERS)})
        paused = cluster.nodes["node-3"]
        os.kill(paused.pid, signal.SIGSTOP)
        try:
            cluster.wait_for(
                lambda: len(cluster.status("node-1").nodes) == 2, "the paused node's end"
            )
        finally:
            os.kill(paused.pid, signal.SIGCONT)
        assert paused.wait(20) == 3
        assert "has ended" in paused.log_tail()
        for number in range(NUMBERS):
            assert numbers.get(number) == number
        cluster.restart("node-3")
        cluster.wait_ready()
