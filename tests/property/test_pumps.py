"""Any history of writes, moves, zombies, crashes and gaps: the databases end equal to the grid."""

from __future__ import annotations

import json
import random
import sqlite3
import sys
import tempfile
from pathlib import Path

import pytest
from fake_grid import MAPS, ORDERS, SECRET, STOCK, FakeGrid, FakeNode, Raw, Stock
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from lmdb_reader import stored, truth
from pump_support import Driven, rows, sql_equals
from spacegrid.sink.lmdb import LmdbSink
from spacegrid.sink.sqlite import SqliteSink

PARTITIONS = 3
KEYS = [f"k{number}" for number in range(6)]
partitions = st.integers(0, PARTITIONS - 1)
slots = st.integers(0, 2)
keys = st.sampled_from(KEYS)


class Owner:
    """One incarnation of a node with both of its pumps."""

    def __init__(self, grid: FakeGrid, number: int, slot: int, folder: Path) -> None:
        self.node = FakeNode(grid, number)
        self.shared = Driven(
            self.node,
            SqliteSink(
                f"sqlite:///{folder / 'sink.db'}",
                life="l",
                owner=number,
                partition_count=PARTITIONS,
                maps=MAPS,
            ),
            batch_records=3,
        )
        self.local = Driven(
            self.node,
            LmdbSink(folder / f"node-{slot}", life="l", partition_count=PARTITIONS),
            batch_records=4,
        )

    def die(self) -> None:
        for driven in (self.shared, self.local):
            driven.sink.close()


class PumpMachine(RuleBasedStateMachine):
    """Three nodes, of which any may be moved, frozen, killed and replaced at any time."""

    @initialize()
    def begin(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.folder = Path(self.directory.name)
        self.grid = FakeGrid(PARTITIONS)
        self.incarnations = 0
        self.owners = [self._owner(slot) for slot in range(3)]
        self.zombies: list[Owner] = []
        for partition in range(PARTITIONS):
            self.grid.move(partition, self.owners[partition].node.number)

    def _owner(self, slot: int) -> Owner:
        self.incarnations += 1
        return Owner(self.grid, self.incarnations, slot, self.folder)

    @rule(key=keys, left=st.integers(0, 99))
    def put(self, key: str, left: int) -> None:
        self.grid.put(STOCK, key, Stock(left))

    @rule(key=keys, number=st.integers(0, 2))
    def put_two(self, key: str, number: int) -> None:
        self.grid.commit([(STOCK, key, Stock(number)), (ORDERS, (key, number), {})])

    @rule(key=keys, number=st.integers(0, 2))
    def delete(self, key: str, number: int) -> None:
        self.grid.commit([(ORDERS, (key, number), None), (SECRET, key, b"x" * number)])

    @rule(key=keys)
    def poison(self, key: str) -> None:
        self.grid.put(STOCK, key, Raw(b"\xc1"))

    @rule(partition=partitions, slot=slots)
    def move(self, partition: int, slot: int) -> None:
        self.grid.move(partition, self.owners[slot].node.number)

    @rule(partition=partitions, slot=slots)
    def toggle_backup(self, partition: int, slot: int) -> None:
        self.owners[slot].node.backups ^= {partition}

    @rule(slot=slots)
    def shared_round(self, slot: int) -> None:
        self.owners[slot].shared.step()

    @rule(slot=slots)
    def local_round(self, slot: int) -> None:
        self.owners[slot].local.step()

    @rule(slot=slots)
    def one_batch(self, slot: int) -> None:
        """A batch without a look at the roles first, as one that was already on its way."""
        shared = self.owners[slot].shared
        if shared.pump.status().state == "running":
            shared.pump._write_batch()

    @rule(slot=slots)
    def kill_and_restart(self, slot: int) -> None:
        self._replace(slot).die()

    @rule(slot=slots)
    def leave_a_zombie(self, slot: int) -> None:
        """Its store on disk is its own; the shared database it goes on writing."""
        self.owners[slot].node.freeze()
        zombie = self._replace(slot)
        zombie.local.sink.close()
        self.zombies.append(zombie)

    def _replace(self, slot: int) -> Owner:
        before = self.owners[slot]
        self.owners[slot] = self._owner(slot)
        for partition, number in list(self.grid.owners.items()):
            if number == before.node.number:
                self.grid.move(partition, self.owners[slot].node.number)
        return before

    @rule(slot=slots, key=keys)
    def depose_with_a_batch_on_its_way(self, slot: int, key: str) -> None:
        """The zombie has read what its heir has read and overtaken."""
        self.owners[slot].shared.step()
        self.grid.put(STOCK, key, Stock(1))
        self.owners[slot].node.freeze()
        zombie = self._replace(slot)
        zombie.local.sink.close()
        self.zombies.append(zombie)
        self.grid.put(STOCK, key, Stock(2))
        self.owners[slot].shared.step(3)

    @rule()
    def zombies_write(self) -> None:
        for zombie in self.zombies:
            zombie.shared.step()

    @rule(partition=partitions)
    def trim(self, partition: int) -> None:
        """The log forgets what nobody alive has pinned, and sometimes more."""
        self.grid.trim(partition)
        for owner in self.owners:
            # A cursor that is no longer in the log is one the node does not have any more.
            owner.node.drop_cursor("shared", partition)
            owner.node.drop_cursor("local", partition)
        self.grid.partitions[partition].version += 1
        self.grid.move(partition, self.grid.owners[partition])

    @invariant()
    def positions_never_pass_the_log(self) -> None:
        if not hasattr(self, "folder") or not (self.folder / "sink.db").exists():
            return
        seen: dict[int, int] = {}
        for (text,) in rows(self.folder / "sink.db", "SELECT partitions FROM spacegrid_checkpoint"):
            for partition, (_, _, sequence) in json.loads(text).items():
                assert int(partition) not in seen, "two owners hold one partition"
                seen[int(partition)] = sequence
                assert sequence <= self.grid.partitions[int(partition)].last[1]

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        try:
            self._converge()
        finally:
            for owner in [*self.owners, *self.zombies]:
                owner.die()
            self.directory.cleanup()

    def _converge(self) -> None:
        for packed, (value, _) in self.grid.tables("stock").items():
            if value == b"\xc1":  # no poison is left in the grid; dead letters are released below
                self.grid.put(STOCK, packed.decode(), Stock(7))
        for owner in self.owners:
            owner.shared.settle()
            owner.local.settle()
        for zombie in self.zombies:
            zombie.shared.step(2)
        for letter in self.owners[0].shared.sink.dead_letters():
            holder = self.grid.owners[letter.partition]
            shared = next(o.shared for o in self.owners if o.node.number == holder)
            shared.sink.release(letter.id, self._committed(shared.node))
        sql_equals(self.folder / "sink.db", self.grid)
        assert rows(self.folder / "sink.db", "SELECT * FROM spacegrid_held_keys") == []
        for owner in self.owners:
            self._local_equals(owner)

    @staticmethod
    def _committed(node: FakeNode):
        def read(name: str, key: bytes):
            entry = node.read_entry(name, key, 0)
            return None if entry is None else entry[:2]

        return read

    def _local_equals(self, owner: Owner) -> None:
        here = [role[0] for role in owner.node.roles()]
        owner.local.sink.close()
        expected = truth(self.grid, *here)
        found = stored(owner.local.sink.folder)
        assert {key: value for key, value in found.items() if key[0] in here} == expected


TestPumps = PumpMachine.TestCase
TestPumps.settings = settings(
    max_examples=30,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_pump_process_loses_and_repeats_nothing(tmp_path: Path, seed: int) -> None:
    """A pump in a process of its own, killed with SIGKILL again and again while it writes."""
    import subprocess
    import time

    chance = random.Random(seed)
    script = Path(__file__).parent.parent / "support" / "pump_process.py"
    kills = 8
    for owner in range(1, kills + 2):
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), str(owner), str(seed)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        if owner <= kills:
            # A moment to be killed in, not a moment to wait for something.
            time.sleep(chance.uniform(0.0, 0.05))
            process.kill()
            process.wait()
        else:
            assert process.stdout.readline() == "done\n"
            assert process.wait() == 0
        process.stdout.close()
        _integral(tmp_path / "sink.db")
    from pump_process import history

    sql_equals(tmp_path / "sink.db", history(seed))
    assert stored(tmp_path / "lmdb") == truth(history(seed), 0, 1, 2, 3)


def _integral(database: Path) -> None:
    """After any kill, the tables are exactly the log up to the checkpoint's positions."""
    connection = sqlite3.connect(database)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
