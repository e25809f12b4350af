"""Copies that are made under a bound: bytes a second on real processes, progress, and an end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import spacegrid
from spacegrid.limits import SNAPSHOT_CHUNK_BYTES
from spacegrid.node import report
from spacegrid.testing import LocalCluster

pytestmark = pytest.mark.timeout(120)

RATE = 2 << 20
VALUE_BYTES = 32 << 10
ENTRIES = 384
#: What goes out at once: a tenth of a second's worth, and a piece on top of it.
BURST = RATE // 10 + SNAPSHOT_CHUNK_BYTES + VALUE_BYTES


class Watch:
    """What each node says it has sent, with when it was asked and when it had answered."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.sent: dict[str, list[tuple[float, float, int]]] = {}
        self.progress: list[dict[str, int]] = []
        self.text = ""

    def look(self) -> None:
        for name in self.cluster.alive:
            asked_s = time.monotonic()
            transfers = self.cluster.status(name).self.transfers
            row = (asked_s, time.monotonic(), transfers.sent_bytes)
            self.sent.setdefault(name, []).append(row)
        document: dict[str, Any] = report.cluster_status(self.cluster.addresses[0])
        self.progress += [n["transfers"] for n in document["nodes"] if n["transfers"]]
        text = report.status_text(document)
        if "transfers: " in text:
            self.text = text

    def until_whole(self, nodes: int) -> None:
        def whole() -> bool:
            self.look()
            status = self.cluster.status()
            return len(status.nodes) == nodes and not status.under_replicated

        self.cluster.wait_for(whole, "every copy to be made", 60)

    def check(self) -> None:
        """No two looks saw more than the bound allows for the time between them."""
        for name, rows in self.sent.items():
            for index, (asked_s, _, before) in enumerate(rows):
                for _, answered_s, after in rows[index:]:
                    allowed = RATE * (answered_s - asked_s) + BURST
                    assert after - before <= allowed, (name, answered_s - asked_s)


def test_copies_are_made_under_the_bound_while_clients_go_on(
    start_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = start_cluster(
        nodes=3, lmdb=False, partitions=24, arguments=["--transfer-bytes-per-s", str(RATE)]
    )
    values = {f"k{n}": n.to_bytes(2) * (VALUE_BYTES // 2) for n in range(ENTRIES)}
    with spacegrid.connect_sync(*cluster.addresses, timeout=20) as grid:
        items = grid.map("items", key=str, value=bytes)
        items.put_many(values)
        watch = Watch(cluster)
        watch.look()
        began_s = time.monotonic()
        cluster.kill("node-3")
        items.put("during", b"1")  # as soon as tails count, long before the snapshots are through
        watch.until_whole(2)
        took_s = time.monotonic() - began_s
        # A third of all copies was made anew, by two senders.
        made = ENTRIES * VALUE_BYTES * 2 / 3
        assert took_s > 0.5 * (made / 2 - BURST) / RATE, "slower than without a bound"
        watch.check()
        cluster.restart("node-3")
        watch.until_whole(3)
        cluster.wait_for(
            lambda: all(node.copies for node in cluster.status().nodes), "the node to have its part"
        )
        watch.check()
        assert items.get_many(values) == values
    assert any(now["done_bytes"] and now["left_bytes"] for now in watch.progress)
    assert all(now["limit_bytes_per_s"] == RATE for now in watch.progress)
    assert f"at most {RATE / (1 << 20):.1f} MiB/s" in watch.text
