"""What `spacegrid status` says of leases, of the controller, and of nodes that do not behave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from spacegrid.machine.leases import GRANTED_MS
from spacegrid.node import report
from spacegrid.testing import LocalCluster

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
    cluster.wait_for(
        lambda: (
            not (found := status(cluster, asked))["unserved"]
            and node(found, victim)["suspected"] is None
        ),
        "the node to be well again",
    )
