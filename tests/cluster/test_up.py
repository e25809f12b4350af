"""`spacegrid up` in a terminal of its own: what it prints, what survives, how Ctrl-C ends it."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import spacegrid
from spacegrid.node.admin_client import AdminClient

pytestmark = pytest.mark.timeout(120)


def spacegrid_command(*arguments: str, cwd: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "spacegrid", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        start_new_session=True,
    )


def events(process: "subprocess.Popen[str]", count: int) -> list[dict[str, Any]]:
    assert process.stdout is not None
    return [json.loads(process.stdout.readline()) for _ in range(count)]


def up(cwd: Path, *arguments: str) -> "subprocess.Popen[str]":
    return spacegrid_command(
        *("up", "--nodes", "3", "--port", "0", "--partitions", "16", "--data", "space", "--json"),
        *arguments,
        cwd=cwd,
    )


def test_nodes_are_killed_restarted_by_hand_and_stopped_with_their_data(tmp_path: Path) -> None:
    first = up(tmp_path)
    by_hand = None
    try:
        nodes = {event["name"]: event for event in events(first, 3)}
        assert set(nodes) == {"node-1", "node-2", "node-3"}
        assert all(Path(node["data"]).is_dir() for node in nodes.values())
        addresses = [node["address"] for node in nodes.values()]
        with spacegrid.connect_sync(*addresses, timeout=20) as grid:
            orders = grid.map("orders", key=str, value=int)
            orders.put_many({f"order-{n}": n for n in range(100)})

            os.kill(nodes["node-2"]["pid"], signal.SIGKILL)
            exited = events(first, 1)[0]
            assert (exited["event"], exited["name"], exited["code"]) == ("exited", "node-2", -9)
            orders.put_many({f"order-{n}": n for n in range(100, 200)})

            words = shlex.split(nodes["node-2"]["restart"])
            assert words[0] == "spacegrid"
            by_hand = spacegrid_command(*words[1:], "--json", cwd=tmp_path)
            assert events(by_hand, 1)[0]["address"] == nodes["node-2"]["address"]
            assert orders.size() == 200

        # The node started by hand is a node of the cluster like any other: it stops with it.
        first.send_signal(signal.SIGINT)
        assert first.wait(60) == 0, first.communicate()[1]
        assert by_hand.wait(60) == 0
    finally:
        end(first, by_hand)

    second = up(tmp_path)
    try:
        addresses = [node["address"] for node in events(second, 3)]
        with spacegrid.connect_sync(*addresses, timeout=20) as grid:
            assert grid.map("orders", key=str, value=int).size() == 200
        with AdminClient(addresses[0]) as admin:
            admin.stop(cluster=True)
        second.send_signal(signal.SIGTERM)
        assert second.wait(60) == 0, second.communicate()[1]
        assert "Traceback" not in (second.stderr.read() if second.stderr else "")
    finally:
        end(second)

    third = up(tmp_path, "--fresh")
    try:
        addresses = [node["address"] for node in events(third, 3)]
        with spacegrid.connect_sync(*addresses, timeout=20) as grid:
            assert grid.map("orders", key=str, value=int).size() == 0
        third.send_signal(signal.SIGINT)
        assert third.wait(60) == 0
    finally:
        end(third)


def test_up_with_tls_makes_what_clients_need_and_keeps_it(tmp_path: Path) -> None:
    alone = ("up", "--nodes", "1", "--copies", "1", "--port", "0", "--partitions", "8")
    made = []
    for start in range(2):
        process = spacegrid_command(*alone, "--data", "space", "--tls", "--json", cwd=tmp_path)
        try:
            node, secrets = events(process, 2)
            made.append((Path(secrets["tls_ca"]).read_text(), secrets["token_file"]))
            environment = {
                **os.environ,
                "SPACEGRID_TLS_CA": secrets["tls_ca"],
                "SPACEGRID_TOKEN_FILE": secrets["token_file"],
            }
            verb = ("get", "m", "k") if start else ("put", "m", "k", "7")
            done = subprocess.run(
                [sys.executable, "-m", "spacegrid", *verb, "--at", node["address"]],
                capture_output=True,
                text=True,
                env=environment,
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip() == ("7" if start else "")
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            end(process)
    assert made[0] == made[1]


def test_nodes_stop_by_themselves_when_the_parent_is_killed(tmp_path: Path) -> None:
    parent = up(tmp_path)
    try:
        pids = [event["pid"] for event in events(parent, 3)]
        watched = [os.pidfd_open(pid) for pid in pids]
    finally:
        parent.kill()
        parent.communicate()
    for descriptor in watched:
        wait_for_end(descriptor)
        os.close(descriptor)


def wait_for_end(pidfd: int) -> None:
    import select

    assert select.select([pidfd], [], [], 60)[0], "a node outlived its parent"


def end(*processes: "subprocess.Popen[str] | None") -> None:
    for process in processes:
        if process is None:
            continue
        if process.poll() is None:
            process.kill()
        process.communicate()
