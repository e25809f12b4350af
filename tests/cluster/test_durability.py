"""Durability levels on real processes: what survives when every one of them is killed at once.

Goal: each write that was acknowledged as persisted is there after the restart. Method: clients that
write until everything, the coordinator included, gets SIGKILL; then the same folders are started
again.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import faulty_disk
import grpc
import pytest
import spacegrid
from kill_of_all import kill_everything, kill_together
from spacegrid import errors
from spacegrid.testing import LocalCluster
from spacegrid.v1 import data_pb2, data_pb2_grpc

pytestmark = pytest.mark.timeout(150)


def write_until_killed(
    cluster: LocalCluster, name: str, acknowledged: dict[str, int], began: threading.Event
) -> None:
    with spacegrid.connect_sync(*cluster.addresses, timeout=5) as grid:
        stock = grid.map("stock", key=str, value=int, durability="persisted")
        number = 0
        with contextlib.suppress(errors.SpaceGridError):
            while True:
                number += 1
                key = f"{name}-{number % 50}"
                stock.put(key, number)
                acknowledged[key] = number
                if number == 60:
                    began.set()


def test_every_persisted_write_survives_a_kill_of_everything(tmp_path: Path) -> None:
    acknowledged: dict[str, int] = {}
    with LocalCluster(nodes=3, data=tmp_path / "space", partitions=16) as cluster:
        began = [threading.Event() for _ in range(3)]
        writers = [
            threading.Thread(
                target=write_until_killed, args=(cluster, f"w{index}", acknowledged, event)
            )
            for index, event in enumerate(began)
        ]
        for writer in writers:
            writer.start()
        for event in began:
            assert event.wait(60)
        kill_everything(cluster)
        for writer in writers:
            writer.join(30)
            assert not writer.is_alive()
    assert len(acknowledged) == 150
    with LocalCluster(nodes=3, data=tmp_path / "space", partitions=16) as cluster:
        with spacegrid.connect_sync(*cluster.addresses, timeout=30) as grid:
            stock = grid.map("stock", key=str, value=int, durability="persisted")
            found = stock.get_many(list(acknowledged))
            # At most the one write that was under way may be newer than what was acknowledged.
            late = {key: found.get(key) for key, value in acknowledged.items()}
            lost = {key for key, value in acknowledged.items() if (late[key] or 0) < value}
            assert not lost
            assert sum(late[key] != acknowledged[key] for key in late) <= len(writers)
            assert stock.put("after", 1)
        logs = "".join(child.log.read_text() for child in cluster.nodes.values())
        assert "what was persisted is here" in logs


def test_persisted_is_refused_without_data_folders(tmp_path: Path) -> None:
    with (
        LocalCluster(nodes=2, data=tmp_path / "space", partitions=8, lmdb=False) as cluster,
        spacegrid.connect_sync(*cluster.addresses, timeout=10) as grid,
    ):
        stock = grid.map("stock", key=str, value=int)
        assert stock.put("tea", 1)
        with pytest.raises(errors.DurabilityUnavailable, match="data folder"):
            stock.put("tea", 2, durability="persisted")
        assert stock.get("tea") == 1


def test_f46_a_node_whose_disk_fails_ends_and_the_others_go_on(tmp_path: Path) -> None:
    library, flag = faulty_disk.build(tmp_path), tmp_path / "fail"
    with LocalCluster(nodes=2, data=tmp_path / "space", partitions=8) as cluster:
        # Only the third node's fsyncs can fail.
        faulty = {"LD_PRELOAD": str(library), "FAIL_WHEN": str(flag)}
        cluster.settings = replace(cluster.settings, environment=faulty)
        cluster.add("node-3")
        cluster.wait_for(
            lambda: "node-3" in cluster.primaries().values(), "a partition of node-3's own"
        )
        cluster.wait_ready()
        with spacegrid.connect_sync(*cluster.addresses, timeout=20) as grid:
            stock = grid.map("stock", key=str, value=int, durability="persisted")
            for number in range(40):
                stock.put(f"k{number}", number)
            flag.touch()
            for number in range(40):
                stock.put(f"k{number}", number + 100)
            failed = cluster.nodes["node-3"]
            assert failed.wait(30) == 4
            assert "Input/output error" in failed.log_tail()
            assert [stock.get(f"k{number}") for number in range(40)] == list(range(100, 140))


def test_unary_calls_and_the_command_line_name_the_level(tmp_path: Path) -> None:
    with LocalCluster(nodes=2, data=tmp_path / "space", partitions=8) as cluster:
        address = cluster.addresses[0]
        with grpc.insecure_channel(address) as channel:
            stub = data_pb2_grpc.DataStub(channel)
            request = data_pb2.PutRequest(map="stock", key=b"tea", value=b"10")
            assert not stub.Put(request, timeout=20).persisted
            request.persisted = True
            reply = stub.Put(request, timeout=20)
            assert (reply.applied, reply.persisted, reply.copies) == (True, True, 2)
            gone = data_pb2.DeleteRequest(map="stock", key=b"tea", persisted=True)
            assert stub.Delete(gone, timeout=20).persisted
            assert not stub.Delete(gone, timeout=20).persisted
        command = ["put", "stock", "tea", "11", "--persisted", "--at", address, "--json"]
        told = subprocess.run(
            [sys.executable, "-m", "spacegrid", *command],
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(told.stdout)["durability"] == "persisted"


def store_of(cluster: LocalCluster, name: str) -> str:
    path = cluster.data_folder(name) / "lmdb" / "store.json"
    return json.loads(path.read_text())["store_id"]


def test_an_operator_begins_without_the_node_that_does_not_come_back(tmp_path: Path) -> None:
    with LocalCluster(nodes=2, data=tmp_path / "space", partitions=8, min_in_sync=1) as cluster:
        with spacegrid.connect_sync(*cluster.addresses, timeout=20) as grid:
            stock = grid.map("stock", key=str, value=int, durability="persisted")
            for number in range(40):
                stock.put(f"k{number}", number)
        kill_together(cluster, "node-1", "node-2")
        address = cluster.restart("node-1").address

        def listed(*arguments: str) -> tuple[int, dict[str, Any]]:
            done = subprocess.run(
                [sys.executable, "-m", "spacegrid", "partitions", *arguments],
                capture_output=True,
                text=True,
                check=False,
            )
            return done.returncode, json.loads(done.stdout)

        def waiting() -> list[dict[str, Any]]:
            _, document = listed("--at", address, "--json")
            return [p for p in document["partitions"] if p["state"] == "recovering"]

        # Which of the two was in sync last depends on who was seen to end first.
        found = cluster.wait_for(waiting, "partitions that wait for the other disk")
        for line in found:
            there, missing = sorted(line["stored"], key=lambda copy: copy["missing"])
            assert (there["now_at"], there["missing"]) == ("node-1", False)
            assert there["position"]
            assert (missing["store"], missing["position"]) == (store_of(cluster, "node-2"), None)
        code, document = listed("accept", "--all", "--longest", "--at", address, "--json")
        assert (code, document["refused"]) == (0, {})
        assert set(document["accepted"]) >= {line["partition"] for line in found}
        with spacegrid.connect_sync(address, timeout=20) as grid:
            stock = grid.map("stock", key=str, value=int)
            assert [stock.get(f"k{number}") for number in range(40)] == list(range(40))
            assert stock.put("after", 1)
