"""Zones on real processes: copies of a partition are apart, and a zone that ends loses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import spacegrid
from kill_of_all import kill_together
from spacegrid.node import report
from spacegrid.testing import LocalCluster

pytestmark = pytest.mark.timeout(120)

ZONES = {"node-1": "north", "node-2": "north", "node-3": "south", "node-4": "south"}


class ZonedCluster(LocalCluster):
    def arguments_of(self, name: str) -> Sequence[str]:
        return [*super().arguments_of(name), "--zone", ZONES[name]]


def are_apart(cluster: LocalCluster) -> bool:
    return all(
        len(entry.in_sync) == 2 and {ZONES[name] for name in entry.in_sync} == {"north", "south"}
        for entry in cluster.partitions()
    )


def test_a_zone_that_ends_at_once_takes_nothing_with_it(tmp_path: Path) -> None:
    values = {f"k{n}": n for n in range(300)}
    with ZonedCluster(nodes=4, data=tmp_path / "space", lmdb=False, partitions=32) as cluster:
        assert are_apart(cluster)
        document = report.cluster_status(cluster.addresses[0])
        assert {node["name"]: node["zone"] for node in document["nodes"]} == ZONES
        with spacegrid.connect_sync(*cluster.addresses, timeout=20) as grid:
            items = grid.map("items", key=str, value=int)
            items.put_many(values)
            kill_together(cluster, "node-1", "node-2")
            assert items.get_many(values) == values
            cluster.wait_ready()
            items.put_many(values)
        assert not report.cluster_status(cluster.nodes["node-3"].address)["lost"]
        # The zone is back: copies go apart again.
        for name in ("node-1", "node-2"):
            cluster.restart(name)
        cluster.wait_for(lambda: are_apart(cluster), "copies to be in both zones again")
