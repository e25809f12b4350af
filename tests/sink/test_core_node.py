"""Pumps on the real core: one node with one copy, written by a real client's frames."""

from __future__ import annotations

import itertools
import sqlite3

import pytest
from fake_grid import MAPS, STOCK, Stock
from pump_support import LIFE
from spacegrid import _core
from spacegrid.clock import now_ms
from spacegrid.pump import Pump
from spacegrid.sink.lmdb import LmdbSink
from spacegrid.sink.sqlite import SqliteSink

PARTITIONS = 8


class OneNode:
    """A core node that is primary of everything, and a client of it."""

    def __init__(self, copy: int = 1, *, load=None, epoch: int = 1, log_bytes: int = 1 << 20):
        self.core = _core.Node(
            copy,
            PARTITIONS,
            min_in_sync=1,
            shared_sink=True,
            local_sink=True,
            log_bytes=log_bytes,
        )
        for chunk in load or ():
            self.core.load(*chunk)
        self.copy = copy
        self.revisions = itertools.count(1)
        self.serve(epoch)
        self.client = _core.Client(copy << 32 | 1, PARTITIONS)
        self.client.set_routes(1, [0] * PARTITIONS)
        self.map = self.client.map(STOCK.name, STOCK.schema)

    def serve(self, epoch: int) -> None:
        revision = next(self.revisions)
        table = [
            (p, epoch, revision, 1, self.copy, [self.copy], [], [], [], 0)
            for p in range(PARTITIONS)
        ]
        self.core.apply_table(revision, table, now_ms())

    def run(self) -> list:
        """Send what is queued; the statuses of what was answered."""
        done = []
        for _, frame in self.client.take_frames(now_ms()):
            self.core.on_client_frame(1, frame, now_ms())
        while (effects := self.core.take_effects()) is not None:
            for _, frame in effects.client_frames:
                done += self.client.on_frame(0, frame, now_ms())
        return [completion[1] for completion in done]

    def put(self, key: str, left: int) -> None:
        value = STOCK.value_codec.encode(Stock(left))
        self.client.put(self.map, key.encode(), value, 1, object(), 60_000)

    def delete(self, key: str) -> None:
        self.client.delete(self.map, key.encode(), object(), 60_000)


def stock(database) -> dict[str, int]:
    connection = sqlite3.connect(database)
    found = dict(connection.execute('SELECT sku, "left" FROM stock').fetchall())
    connection.close()
    return found


@pytest.fixture
def shared(database):
    def make(owner: int) -> SqliteSink:
        return SqliteSink(
            f"sqlite:///{database}",
            life=LIFE,
            owner=owner,
            partition_count=PARTITIONS,
            maps=MAPS,
        )

    return make


def test_writes_arrive_in_both_sinks_and_a_clean_stop_restarts(tmp_path, database, shared) -> None:
    def disk() -> LmdbSink:
        return LmdbSink(tmp_path, life=LIFE, partition_count=PARTITIONS)

    node = OneNode(1)
    pumps = [Pump(node.core, shared(1), "shared"), Pump(node.core, disk(), "local")]
    for pump in pumps:
        pump.start()
    expected = {}
    for number in range(500):
        node.put(f"k{number % 150}", number)
        expected[f"k{number % 150}"] = number
        if number % 9 == 0:
            node.delete(f"k{(number + 5) % 150}")
            expected.pop(f"k{(number + 5) % 150}", None)
        if number % 50 == 0:
            node.run()
    node.run()
    for pump in pumps:
        assert pump.flush(20), pump.status()
    assert stock(database) == expected
    node.core.stop_all()
    for pump in pumps:
        assert pump.stop(), pump.status()
        assert pump.status().resync_count == 0, pump.status()

    again = disk()
    assert len(again.stored_partitions()) == PARTITIONS
    node = OneNode(2, load=again.load(), epoch=2)
    assert node.core.status()["entries"] == len(expected)
    pumps = [Pump(node.core, shared(2), "shared"), Pump(node.core, again, "local")]
    for pump in pumps:
        pump.start()
    node.put("new", 1)
    assert node.run() == [0]
    for pump in pumps:
        assert pump.flush(20), pump.status()
        # What was flushed before the stop is exactly what was loaded: no gap anywhere.
        assert pump.status().resync_count == 0, pump.status()
        pump.stop()
    assert stock(database) == {**expected, "new": 1}


def test_a_sink_that_comes_late_is_resynced(tmp_path, database, shared) -> None:
    node = OneNode(1)
    local = Pump(node.core, LmdbSink(tmp_path, life=LIFE, partition_count=PARTITIONS), "local")
    local.start()
    for number in range(100):
        node.put(f"k{number}", number)
    node.run()
    assert local.flush(20)
    pump = Pump(node.core, shared(1), "shared")
    pump.start()
    assert pump.flush(20), pump.status()
    assert stock(database) == {f"k{number}": number for number in range(100)}
    pump.stop()
    local.stop()


def test_the_log_pushes_back_while_the_sink_is_away(database, shared, tmp_path) -> None:
    node = OneNode(1, log_bytes=64 << 10)
    local = Pump(node.core, LmdbSink(tmp_path, life=LIFE, partition_count=PARTITIONS), "local")
    local.start()
    pump = Pump(node.core, shared(1), "shared")
    pump.start()
    assert pump.flush(20)
    blocker = sqlite3.connect(database, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    sent = 0
    while node.client.in_flight + node.client.queued < 200:
        node.put(f"k{sent}", sent)
        sent += 1
        node.run()
        assert sent < 20_000, "the log never pushed back"
    assert node.core.status()["log_bytes"] <= 80 << 10
    blocker.execute("ROLLBACK")
    blocker.close()
    assert pump.flush(30), pump.status()
    while node.client.in_flight + node.client.queued:
        node.run()
        node.core.tick(now_ms())
        pump.wake()
        assert pump.flush(30), pump.status()
    assert pump.flush(30), pump.status()
    assert stock(database) == {f"k{number}": number for number in range(sent)}
    pump.stop()
    local.stop()
