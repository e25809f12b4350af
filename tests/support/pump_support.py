"""A pump that is driven step by step, and what its sink should hold."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from fake_grid import FakeGrid, FakeNode
from spacegrid.pump import Pump
from spacegrid.sink.base import Change, Part, Position

LIFE = "life-1"


class Driven:
    """A pump whose rounds the test makes itself, on the test's thread."""

    def __init__(self, node: FakeNode, sink, **settings) -> None:
        self.node = node
        self.sink = sink
        name = "shared" if sink.fenced else "local"
        self.pump = Pump(node, sink, name, **{"interval_s": 0, **settings})

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.pump._attempt()

    def settle(self) -> None:
        """Step until everything committed is in the sink."""
        quiet = 0
        for _ in range(50):
            self.step()
            status = self.pump.status()
            # Twice: a round's lag is as of its beginning.
            quiet = quiet + 1 if status.state == "running" and status.lag_records == 0 else 0
            if quiet == 2:
                return
        raise AssertionError(self.pump.status())


def part_of(
    grid: FakeGrid, partition: int, *, epoch: int | None = None, after: Position = (0, 0)
) -> Part:
    """Everything that one partition's log has after a position."""
    here = grid.partitions[partition]
    records = [(at, changes) for at, changes in here.records if at > after]
    flat: list[Change] = [change for _, changes in records for change in changes]
    owned = here.epoch if epoch is None else epoch
    return Part(partition, owned, after, records[-1][0], len(records), flat)


def rows(database: Path, query: str) -> list[tuple]:
    """Read the database without the sink's own code."""
    connection = sqlite3.connect(database)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def sql_equals(database: Path, grid: FakeGrid) -> None:
    """The user's tables are exactly the grid's maps."""
    from fake_grid import ORDERS, STOCK

    stock = {
        STOCK.key_codec.decode(key): STOCK.value_codec.decode(*value)
        for key, value in grid.tables("stock").items()
    }
    found = {row[0]: row[1:] for row in rows(database, 'SELECT sku, "left", note FROM stock')}
    assert found == {sku: (item.left, item.note) for sku, item in stock.items()}
    orders = {ORDERS.key_codec.decode(key) for key in grid.tables("orders")}
    assert {row[:2] for row in rows(database, "SELECT sku, number, value FROM orders")} == orders
