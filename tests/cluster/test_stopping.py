"""How a cluster and its nodes are told to stop, on real processes: by command, and by Ctrl-C."""

import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import spacegrid
from spacegrid.demo.flash_sale import UNIT
from spacegrid.demo.units import FlashSale, Stock
from spacegrid.testing import LocalCluster

pytestmark = pytest.mark.timeout(120)

# Far less than a stop waits for a database that does not answer.
AT_ONCE_S = 5


def told(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "spacegrid", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_stop_ends_one_node_or_the_cluster_and_nothing_is_lost(
    start_cluster: Callable[..., LocalCluster], tmp_path: Path
) -> None:
    cluster = start_cluster(nodes=3, partitions=16, data=tmp_path / "space")
    with spacegrid.connect_sync(*cluster.addresses, timeout=20) as grid:
        numbers = grid.map("numbers", key=int, value=int)
        numbers.put_many({n: n for n in range(100)})
        leaving, *staying = (cluster.nodes[f"node-{n}"] for n in (3, 1, 2))
        assert told("stop", "--node", "--at", leaving.address) == {"stopping": "node"}
        assert leaving.wait(30) == 0
        assert all(node.alive for node in staying)
        assert numbers.size() == 100
        # It has handed over before it left: nobody has to find out that it is gone.
        assert set(cluster.primaries().values()) == {"node-1", "node-2"}
        assert len(cluster.primaries()) == 16

    assert told("stop", "--at", staying[0].address) == {"stopping": "cluster"}
    assert [node.wait(30) for node in staying] == [0, 0]
    cluster.stop()
    again = start_cluster(nodes=3, partitions=16, data=tmp_path / "space")
    with spacegrid.connect_sync(*again.addresses, timeout=20) as grid:
        assert grid.map("numbers", key=int, value=int).size() == 100


@pytest.mark.parametrize("command", ["up", "node"])
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, command: str) -> None:
    database = tmp_path / "sink.db"
    arguments = {
        "up": ["up", "--nodes", "1", "--port", "0"],
        "node": ["node", "--name", "lone", "--listen", "127.0.0.1:0"],
    }[command]
    kept = ["--copies", "1", "--partitions", "4", "--data", "space"]
    kept += ["--unit", UNIT, "--sql", f"sqlite:///{database}", "--json"]
    with (tmp_path / "errors").open("w+b") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "spacegrid", *arguments, *kept],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=tmp_path,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            node = os.pidfd_open(ready["pid"])
            with spacegrid.connect_sync(ready["address"], timeout=20) as grid:
                stock = grid.map(FlashSale.stock)
                stock.put("tea", Stock(1))
                assert told("flush", "--at", ready["address"])["complete"]
                with locked(database):
                    # The stop that is asked for in order waits for a database that is not free.
                    stock.put("tea", Stock(2))
                    process.send_signal(signal.SIGINT)
                    wait_until_stopping(tmp_path, command)
                    assert process.poll() is None
                    process.send_signal(signal.SIGINT)
                    assert process.wait(AT_ONCE_S) == 1
                    assert select.select([node], [], [], AT_ONCE_S)[0], "a node went on"
            os.close(node)
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


@contextmanager
def locked(database: Path) -> Iterator[None]:
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    yield
    holder.close()


def wait_until_stopping(folder: Path, command: str) -> None:
    """Wait until the node says in its log that it stops, so that the first signal has been seen."""
    log = folder / ("space/node-1/log.txt" if command == "up" else "errors")
    poll = select.poll()
    for _ in range(2_000):
        if "stopping" in log.read_text():
            return
        poll.poll(10)
    raise AssertionError(f"no stop in {log}:\n{log.read_text()}")
