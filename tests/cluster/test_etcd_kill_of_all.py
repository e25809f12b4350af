"""Every node of a grid whose table is in etcd gets SIGKILL while clients write.

Goal: what was acknowledged as persisted is there after the restart, and so is whatever was
acknowledged as replicated before it in the same partition, since a disk holds a prefix of the log.
What was only replicated may be gone, which the grid says; nothing is there that nobody wrote.
Method: a real etcd, which goes on; writers that count up, each write acknowledged or under way when
everything ends.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from pathlib import Path

import pytest
import spacegrid
from etcd import Etcd
from kill_of_all import kill_everything
from spacegrid import errors
from spacegrid.testing import LocalCluster

pytestmark = pytest.mark.timeout(120)

PARTITIONS = 16
WRITERS = 3
KEYS = 20
#: Acknowledged writes of each writer before everything ends: each key was written twice.
ROUNDS = 2 * KEYS


class Writer(threading.Thread):
    """Counts up: `seen` as replicated, then `stock` as persisted, of one routing key after another.

    A third map, `views`, is only ever written as replicated.
    """

    def __init__(self, number: int, addresses: list[str]) -> None:
        super().__init__(name=f"writer-{number}")
        self.number = number
        self.addresses = addresses
        self.began = threading.Event()
        #: Highest number sent for each key, the same for all maps.
        self.sent: Counter[str] = Counter()
        #: Highest number acknowledged as persisted.
        self.persisted: Counter[str] = Counter()
        #: Highest number acknowledged as replicated, in `views`.
        self.replicated: Counter[str] = Counter()

    def run(self) -> None:
        with (
            spacegrid.connect_sync(*self.addresses, timeout=5) as grid,
            contextlib.suppress(errors.SpaceGridError),
        ):
            seen = grid.map("seen", key=str, value=int)
            views = grid.map("views", key=str, value=int)
            stock = grid.map("stock", key=str, value=int, durability="persisted")
            round_number = 0
            while True:
                key = f"{self.number}-{round_number % KEYS}"
                count = self.sent[key] = round_number // KEYS + 1
                seen.put(key, count)
                stock.put(key, count)
                self.persisted[key] = count
                views.put(key, count)
                self.replicated[key] = count
                round_number += 1
                if round_number == ROUNDS:
                    self.began.set()


def test_every_persisted_write_survives_a_kill_of_every_node(tmp_path: Path) -> None:
    with Etcd(tmp_path / "etcd") as etcd:
        space = {"data": tmp_path / "space", "partitions": PARTITIONS, "coordinator": etcd.url}
        with LocalCluster(nodes=3, **space) as cluster:
            writers = [Writer(number, cluster.addresses) for number in range(WRITERS)]
            for writer in writers:
                writer.start()
            for writer in writers:
                assert writer.began.wait(60)
            kill_everything(cluster)
            for writer in writers:
                writer.join(30)
                assert not writer.is_alive()
        with LocalCluster(nodes=3, **space) as cluster:
            with spacegrid.connect_sync(*cluster.addresses, timeout=20) as grid:
                for writer in writers:
                    check(grid, writer)
            logs = "".join(child.log.read_text() for child in cluster.nodes.values())
            assert "replicated only, and had not reached a disk, is lost" in logs


def check(grid: spacegrid.Grid, writer: Writer) -> None:
    """What the grid has of one writer's keys, and that it goes on."""
    maps = [grid.map(name, key=str, value=int) for name in ("stock", "seen", "views")]
    keys = [f"{writer.number}-{key}" for key in range(KEYS)]
    assert all(writer.persisted[key] >= 2 for key in keys)
    stock, seen, views = (found.get_many(keys) for found in maps)
    for key in keys:
        # One more was under way; it may have reached the disks, and nothing beyond it was sent.
        assert writer.persisted[key] <= stock.get(key, 0) <= writer.sent[key]
        assert writer.persisted[key] <= seen.get(key, 0) <= writer.sent[key]
        # This one was told only that two memories hold it.
        assert views.get(key, 0) <= writer.sent[key]
        assert writer.persisted[key] - 1 <= views.get(key, 0), "it is before a persisted write"
        maps[2].put(key, writer.sent[key] + 1, durability="persisted")
    assert maps[2].get_many(keys) == {key: writer.sent[key] + 1 for key in keys}
