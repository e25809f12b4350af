"""What `spacegrid status` says of leases, of the controller, and of nodes that do not behave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import spacegrid
from spacegrid.cli import app
from spacegrid.cli_output import EXIT_FAILED, EXIT_NOTHING
from spacegrid.machine.leases import GRANTED_MS
from spacegrid.node import report
from spacegrid.testing import LocalCluster
from typer.testing import CliRunner

pytestmark = pytest.mark.timeout(120)


def status(cluster: LocalCluster, name: str) -> dict[str, Any]:
    return report.cluster_status(cluster.nodes[name].address)


def node(document: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [node for node in document["nodes"] if node["name"] == name]
    return dict(found)


def test_each_node_has_a_lease_and_the_controller_its_term(three_nodes: LocalCluster) -> None:
    def well(asked: str) -> dict[str, Any] | None:
        """The status in which everyone has a lease; on a busy machine one may be over."""
        document = status(three_nodes, asked)
        leases = [line["lease"] for line in document["nodes"]]
        good = document["controller"]["answers"] and all(lease["left_ms"] for lease in leases)
        return document if good else None

    for asked in three_nodes.nodes:
        document = three_nodes.wait_for(lambda asked=asked: well(asked), "leases for all")
        controller = document["controller"]
        assert controller["term"] >= 1
        for line in document["nodes"]:
            assert line["lease"]["left_ms"] <= GRANTED_MS
            assert 0 < line["lease"]["revision"] <= document["revision"]
            assert line["controller"] == (line["name"] == controller["node"])
        expected = f"* controller: {controller['node']}, term {controller['term']}"
        assert expected in report.status_text(document)


def test_a_hung_node_is_shown_as_suspected_and_what_only_it_has_as_unavailable(
    start_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = start_cluster(nodes=3, copies=1, min_in_sync=1, partitions=16)
    asked = cluster.controller()
    victim = next(name for name in cluster.nodes if name != asked)
    theirs = sorted(p for p, primary in cluster.primaries().items() if primary == victim)
    cluster.pause(victim)
    try:
        document = cluster.wait_for(
            lambda: found if (found := status(cluster, asked))["unavailable"] else None,
            "partitions to be shown as unavailable",
        )
    finally:
        cluster.resume(victim)
    assert document["unavailable"] == theirs
    assert node(document, victim)["suspected"] == "silent"
    assert node(document, victim)["lease"] is None, "it can't be asked"
    text = report.status_text(document)
    assert "not answering, suspected: silent" in text
    assert f"UNAVAILABLE: partitions {', '.join(map(str, theirs))}" in text
    (group,) = document["waiting"]
    assert (group["partitions"], group["why"], group["nodes"]) == (theirs, "hung", [victim])
    assert f") for {victim}, hung or cut off (the copy may hold acknowledged writes)" in text
    cluster.wait_for(
        lambda: (
            not (found := status(cluster, asked))["unserved"]
            and node(found, victim)["suspected"] is None
        ),
        "the node to be well again",
    )


def test_copies_of_a_node_that_has_ended_are_missed_before_the_table_says_so(
    start_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = start_cluster(nodes=3, partitions=16, lmdb=False)
    victim = cluster.controller()  # it takes a while until another one writes the table
    cluster.kill(victim)
    asked = cluster.alive[0]

    def repaired() -> bool:
        found = cluster.status(asked)
        return len(found.nodes) == 2 and not found.under_replicated

    cluster.wait_for(repaired, "all copies to be there again")
    named = {name for row in cluster.partitions(asked) for name in (row.primary, *row.in_sync)}
    assert named == set(cluster.alive)


def shown(*arguments: str) -> tuple[int, str]:
    """Exit code and output of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "spacegrid", *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


def check_reads(address: str) -> None:
    """`spacegrid get` at a node that is the only copy: what each way to read gives there."""

    def get(key: str, *options: str) -> tuple[int, str, str]:
        command = ["get", "stock", key, "--at", address, "--timeout", "5", *options]
        result = CliRunner().invoke(app, command)
        return result.exit_code, result.stdout, result.stderr

    assert get("7") == (0, "7\n", "")
    assert get("7", "--read", "primary", "--json")[1] == (
        '{"map":"stock","key":"7","found":true,"value":7}\n'
    )
    code, text, told = get("7", "--read", "stale")
    assert (code, text) == (0, "7\n")
    assert told.startswith("at most ")
    found = json.loads(get("7", "--read", "stale", "--max-age", "60", "--json")[1])
    assert 0 <= found.pop("age_ms") <= 60_000
    assert found == {"map": "stock", "key": "7", "found": True, "value": 7}
    assert get("none", "--read", "stale")[0] == EXIT_NOTHING
    code, text, told = get("7", "--read", "confirmed", "--timeout", "0.5")
    assert (code, text) == (EXIT_FAILED, ""), "too few copies to confirm it"
    assert told.startswith("error: ")


def test_a_coordinator_that_hangs_is_shown_by_nodes_without_leases(
    start_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = start_cluster(nodes=2, partitions=4)
    asked = cluster.nodes["node-1"].address
    cluster.wait_for(lambda: shown("status", "--at", asked)[0] == 0, "everything to be served")
    assert cluster.coordinator is not None
    coordinator = cluster.coordinator.pid
    os.kill(coordinator, signal.SIGSTOP)
    try:
        cluster.wait_for(
            lambda: not status(cluster, "node-1")["answers"], "the leases of both to end"
        )
        code, text = shown("status", "--at", asked)
    finally:
        os.kill(coordinator, signal.SIGCONT)
    assert code == 1
    assert text.rstrip().endswith(
        "can answer stale reads only; hint: does the coordinator answer?"
    ), text
    assert "NO LEASE: node-" in text
    cluster.wait_for(lambda: shown("status", "--at", asked)[0] == 0, "leases to be given again")


def test_what_nobody_serves_names_the_node_to_start_and_is_served_once_it_is(
    start_cluster: Callable[..., LocalCluster],
) -> None:
    """The node that is asked was started after the other had ended: the table knows its name."""
    cluster = start_cluster(nodes=2, partitions=4)
    with spacegrid.connect_sync(*cluster.addresses, timeout=20) as grid:
        stock = grid.map("stock", key=int, value=int, durability="persisted")
        stock.put_many({number: number for number in range(40)})
    cluster.kill("node-1")
    cluster.wait_for(
        lambda: all(list(line.in_sync) == ["node-2"] for line in cluster.partitions()),
        "node-2 to go on alone",
    )
    check_reads(cluster.nodes["node-2"].address)
    cluster.kill("node-2")
    address = cluster.restart("node-1").address
    line = (
        "WAITING: 4 partitions (0, 1, 2, 3) for the disk of node-2 (it may hold acknowledged "
        "writes); hint: start node-2 with the old data folder, or go on without it: "
        "spacegrid partitions accept 0 1 2 3 --longest"
    )

    def waiting() -> dict[str, Any] | None:
        """The status once the new controller has heard everyone, and of the disks."""
        document = status(cluster, "node-1")
        reasons = [group["why"] for group in document["waiting"] or ()]
        return document if reasons == ["disk"] else None

    document = cluster.wait_for(waiting, "the reason")
    (group,) = document["waiting"]
    assert group["partitions"] == [0, 1, 2, 3]
    assert group["nodes"] == ["node-2"]
    assert line.endswith(f"for {group['waits_for']}; hint: {group['hint']}")
    code, text = shown("status", "--at", address)
    assert (code, text.splitlines()[-1]) == (1, line)
    code, text = shown("partitions", "--at", address)
    assert (code, text.splitlines()[-1]) == (0, line)
    each = json.loads(shown("partitions", "--json", "--at", address)[1])["partitions"]
    assert [p["waiting"] for p in each] == [{"why": "disk", "nodes": ["node-2"]}] * 4
    cluster.restart("node-2")
    cluster.wait_ready()
    document = status(cluster, "node-1")
    assert (document["unserved"], document["waiting"]) == (0, [])
    with spacegrid.connect_sync(*cluster.addresses, timeout=20) as grid:
        stock = grid.map("stock", key=int, value=int)
        assert stock.get_many(range(40)) == {number: number for number in range(40)}
