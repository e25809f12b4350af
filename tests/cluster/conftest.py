"""Clusters of real processes for tests, and the rule that none of them is left behind."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from spacegrid.testing import LocalCluster


def children() -> dict[int, str]:
    """Command lines of this process's own children that run spacegrid, by pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        state, parent = stat[stat.rindex(")") + 2 :].split()[:2]
        if int(parent) == os.getpid() and state != "Z" and "-m spacegrid" in command:
            found[int(entry.name)] = command
    return found


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    before = children()
    yield
    left = {pid: command for pid, command in children().items() if pid not in before}
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"processes were left behind: {left}"


@pytest.fixture
def start_cluster(tmp_path: Path) -> Iterator[Callable[..., LocalCluster]]:
    """Start clusters; what still runs at the end of the test is stopped."""
    started: list[LocalCluster] = []

    def start(**settings: Any) -> LocalCluster:
        settings.setdefault("data", tmp_path / f"cluster-{len(started)}")
        cluster = LocalCluster(**settings)
        started.append(cluster)
        cluster.start()
        return cluster

    yield start
    for cluster in started:
        if cluster.coordinator is not None and cluster.coordinator.alive:
            cluster.stop()


@pytest.fixture(scope="module")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three nodes that a module's tests share; nobody kills them."""
    with LocalCluster(nodes=3, data=tmp_path_factory.mktemp("three")) as cluster:
        yield cluster
