"""Three nodes from start to stop: every node serves, the command line works, the data survives."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

import grpc
import pytest
import spacegrid
from grpc_health.v1 import health_pb2, health_pb2_grpc
from spacegrid.testing import LocalCluster

pytestmark = pytest.mark.timeout(120)


def command(*arguments: str, at: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "spacegrid", *arguments],
        env={**os.environ, "SPACEGRID_ADDRESS": at},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_every_node_answers_for_the_whole_grid(three_nodes: LocalCluster) -> None:
    for number, address in enumerate(three_nodes.addresses):
        with spacegrid.connect_sync(address) as grid:
            orders = grid.map("orders", key=str, value=dict)
            for key in range(50):
                orders.put(f"order-{key}", {"from": number})
    with spacegrid.connect_sync(three_nodes.addresses[0]) as grid:
        orders = grid.map("orders", key=str, value=dict)
        assert [orders.get(f"order-{key}") for key in range(50)] == [{"from": 2}] * 50
        assert orders.size() == 50


async def test_the_asyncio_client_batches_over_all_nodes(three_nodes: LocalCluster) -> None:
    async with spacegrid.connect(*three_nodes.addresses) as grid:
        numbers = grid.map("numbers", key=str, value=int)
        await numbers.put_many({f"n{n}": n for n in range(2000)})
        found = await numbers.get_many([f"n{n}" for n in range(2000)])
        assert found == {f"n{n}": n for n in range(2000)}


def test_partitions_are_spread_and_each_has_two_copies(three_nodes: LocalCluster) -> None:
    status = three_nodes.status()
    primaries = sorted(node.primaries for node in status.nodes)
    assert sum(primaries) == 64
    assert primaries[-1] - primaries[0] <= 2
    assert sum(node.copies for node in status.nodes) == 128
    assert [node.controller for node in status.nodes].count(True) == 1


def test_the_command_line_puts_gets_and_tells(three_nodes: LocalCluster) -> None:
    first, second, third = three_nodes.addresses
    assert command("put", "stock", "tea", '{"left": 10}', at=first).returncode == 0
    got = command("get", "stock", "tea", at=second)
    assert json.loads(got.stdout) == {"left": 10}
    document = json.loads(command("get", "stock", "tea", "--json", at=third).stdout)
    assert document == {"map": "stock", "key": "tea", "found": True, "value": {"left": 10}}
    assert command("delete", "stock", "tea", at=first).returncode == 0
    missing = command("get", "stock", "tea", at=third)
    assert (missing.returncode, missing.stdout) == (3, "")

    status = json.loads(command("status", "--json", at=first).stdout)
    assert [node["state"] for node in status["nodes"]] == ["ready"] * 3
    assert (status["under_replicated"], status["unserved"], status["lost"]) == (0, 0, [])
    assert all(node["pumps"][0]["sink"] == "lmdb" for node in status["nodes"])
    text = command("status", at=first).stdout
    assert "node-1" in text
    assert "repair: none needed" in text
    partitions = json.loads(command("partitions", "--json", at=second).stdout)["partitions"]
    assert len(partitions) == 64
    assert command("flush", at=first).stdout == "flushed\n"


def test_the_health_service_says_serving(three_nodes: LocalCluster) -> None:
    for address in three_nodes.addresses:
        with grpc.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            reply = stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=5)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_a_clean_stop_goes_on_from_the_data_folders(
    start_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = start_cluster(nodes=3)
    with spacegrid.connect_sync(*cluster.addresses) as grid:
        orders = grid.map("orders", key=str, value=dict)
        orders.put_many({f"order-{n}": {"n": n} for n in range(500)})
    codes = cluster.stop()
    assert codes == {"node-1": 0, "node-2": 0, "node-3": 0}

    again = start_cluster(nodes=3, data=cluster.settings.data)
    assert again.status().cluster_id != b""
    with spacegrid.connect_sync(*again.addresses) as grid:
        orders = grid.map("orders", key=str, value=dict)
        assert orders.size() == 500
        assert orders.get("order-499") == {"n": 499}
        orders.put("order-500", {"n": 500})
        assert orders.size() == 501
    assert set(again.stop().values()) == {0}


def test_sigterm_hands_everything_over_first(start_cluster: Callable[..., LocalCluster]) -> None:
    cluster = start_cluster(nodes=3)
    with spacegrid.connect_sync(*cluster.addresses) as grid:
        orders = grid.map("orders", key=str, value=int)
        orders.put_many({f"order-{n}": n for n in range(300)})
        assert cluster.nodes["node-2"].terminate() == 0
        status = cluster.status()
        assert (status.unserved, list(status.lost)) == (0, [])
        assert orders.get_many([f"order-{n}" for n in range(300)]) == {
            f"order-{n}": n for n in range(300)
        }
    cluster.wait_ready()
    cluster.restart("node-2")
    cluster.wait_ready()


def test_a_lone_node_refuses_writes_and_names_the_way_out(tmp_path: object) -> None:
    def lone(*arguments: str) -> "subprocess.Popen[str]":
        arguments = ("--json", "--partitions", "16", *arguments)
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "spacegrid", "node", "--listen", "127.0.0.1:0", "--json"),
                *("--partitions", "16"),
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    refusing = lone()
    try:
        assert refusing.stdout is not None
        address = json.loads(refusing.stdout.readline())["address"]
        refused = command("put", "stock", "tea", "1", "--timeout", "3", at=address)
        assert refused.returncode == 1
        assert "--copies 1" in refused.stderr
    finally:
        refusing.terminate()
        _, logs = refusing.communicate(timeout=30)
    assert "--copies 1" in logs
    assert refusing.returncode == 0

    accepting = lone("--copies", "1")
    try:
        assert accepting.stdout is not None
        address = json.loads(accepting.stdout.readline())["address"]
        assert command("put", "stock", "tea", "1", at=address).returncode == 0
        assert command("get", "stock", "tea", at=address).stdout == "1\n"
    finally:
        accepting.terminate()
        accepting.communicate(timeout=30)
    assert accepting.returncode == 0
