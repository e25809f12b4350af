"""A process with a shared and a local pump over one made history, to be killed while it writes.

Arguments: folder, owner's incarnation, seed. Prints "writing", then "done" when all of it is in.
"""

from __future__ import annotations

import random
import sys

from fake_grid import MAPS, ORDERS, STOCK, FakeGrid, FakeNode, Stock
from spacegrid.pump import Pump
from spacegrid.sink.lmdb import LmdbSink
from spacegrid.sink.sqlite import SqliteSink


def history(seed: int) -> FakeGrid:
    """The same log for every process of one seed."""
    chance = random.Random(seed)
    grid = FakeGrid()
    for number in range(6000):
        key = f"k{chance.randrange(200)}"
        if chance.random() < 0.2:
            grid.delete(STOCK, key)
        else:
            grid.commit([(STOCK, key, Stock(number)), (ORDERS, (key, number % 50), {})])
    return grid


def main(folder: str, owner: int, seed: int) -> None:
    """Pump until everything is in."""
    grid = history(seed)
    for partition in grid.partitions:
        partition.epoch = owner
    grid.owners = dict.fromkeys(range(grid.partition_count), owner)
    node = FakeNode(grid, owner)
    shared = SqliteSink(
        f"sqlite:///{folder}/sink.db", life="l", owner=owner, partition_count=4, maps=MAPS
    )
    local = LmdbSink(folder, life="l", partition_count=4)
    pumps = [
        Pump(node, shared, "shared", batch_records=20, interval_s=0),
        Pump(node, local, "local", batch_records=20, interval_s=0),
    ]
    print("writing", flush=True)
    for pump in pumps:
        pump.start()
    for pump in pumps:
        assert pump.stop(timeout_s=60)
        assert pump.status().resync_count == 0
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
