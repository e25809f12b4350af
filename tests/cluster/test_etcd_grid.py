"""A grid of three nodes whose table is in a real etcd of three members."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import spacegrid
from etcd import Etcd
from spacegrid.testing import LocalCluster

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
