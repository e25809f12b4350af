"""Lost partitions filled again from SQL, on real processes."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import spacegrid
from kill_of_all import kill_together
from spacegrid import errors
from spacegrid._core import partition_of
from spacegrid.testing import LocalCluster

pytestmark = pytest.mark.timeout(120)

PARTITIONS = 16
KEYS = [f"k{n}" for n in range(200)]
MODULE = """
import msgspec
from spacegrid import Map, Unit, handler

class Account(msgspec.Struct):
    balance: int
    owner: str | None = None

class Ledger(Unit):
    accounts = Map(str, Account, columns=("id",))
    scratch = Map(str, int)
"""


class Account(msgspec.Struct):
    balance: int
    owner: str | None = None


def reload(cluster: LocalCluster, *arguments: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "spacegrid", "partitions", "reload", *arguments, "--json"]
    environment = {**os.environ, "SPACEGRID_ADDRESS": cluster.nodes[cluster.alive[0]].address}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def in_sql(database: Path) -> dict[str, Account]:
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT id, balance, owner FROM accounts")
        return {key: Account(balance, owner) for key, balance, owner in rows}


def set_life(database: Path, life: str) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE spacegrid_checkpoint SET life = ?", (life,))


def test_lost_partitions_have_the_values_of_sql_again(
    start_cluster: Callable[..., LocalCluster], tmp_path: Path
) -> None:
    (tmp_path / "ledger.py").write_text(MODULE)
    database = tmp_path / "ledger.db"
    cluster = start_cluster(
        nodes=4,
        lmdb=False,
        partitions=PARTITIONS,
        units=["ledger:Ledger"],
        sql=f"sqlite:///{database}",
        cwd=tmp_path,
        arguments=["--pump-interval", "600"],
    )
    with spacegrid.connect_sync(*cluster.addresses, timeout=20) as grid:
        accounts = grid.map("accounts", key=str, value=Account)
        scratch = grid.map("scratch", key=str, value=int)
        accounts.put_many({key: Account(n, f"o{n}") for n, key in enumerate(KEYS)})
        scratch.put_many(dict.fromkeys(KEYS, 1))
        cluster.flush()
        before = in_sql(database)
        assert len(before) == len(KEYS)
        accounts.put_many({key: Account(-1) for key in KEYS})  # the database does not see these
        assert in_sql(database) == before

        epochs = {p.partition: p.epoch for p in cluster.partitions()}
        victims = ("node-3", "node-4")
        gone = {p.partition for p in cluster.partitions() if set(p.in_sync) <= set(victims)}
        assert gone, "two nodes of four have both copies of some"
        kill_together(cluster, *victims)
        cluster.wait_for(
            lambda: (
                set((found := cluster.status()).lost) == gone
                and found.under_replicated == len(gone) == found.unserved
            ),
            "the others to be repaired, and those to be lost",
        )
        lost = [key for key in KEYS if partition_of(key.encode(), PARTITIONS) in gone]
        with pytest.raises(errors.PartitionLost):
            accounts.get(lost[0])
        # What moves is written anew, and nobody may write while the life is another.
        cluster.wait_settled()
        cluster.flush()

        life = cluster.status().cluster_id.hex()
        set_life(database, "00" * 16)
        code, document = reload(cluster, "--all")
        set_life(database, life)
        assert (code, document["reloaded"]) == (1, [])
        assert set(document["refused"]) == {str(p) for p in gone}
        assert "written by cluster 0000" in document["refused"][str(min(gone))]
        assert set(cluster.status().lost) == gone

        code, document = reload(cluster, "--all")
        assert (code, document["refused"]) == (0, {})
        assert [item["partition"] for item in document["reloaded"]] == sorted(gone)
        assert sum(item["entries"] for item in document["reloaded"]) == len(lost)
        assert document["maps_without_columns"] == ["scratch"]
        cluster.wait_ready()
        for entry in cluster.partitions():
            if entry.partition in gone:
                assert entry.epoch > epochs[entry.partition]
        kept = {key: Account(-1) for key in KEYS if key not in lost}
        assert accounts.get_many(KEYS) == kept | {key: before[key] for key in lost}
        assert scratch.get_many(KEYS) == dict.fromkeys(kept, 1)

        # The pumps go on where the checkpoint was.
        accounts.put(lost[0], Account(77))
        accounts.delete(lost[1])
        cluster.flush()
        expected = accounts.get_many(KEYS)
        assert expected[lost[0]] == Account(77)
        assert in_sql(database) == expected
        code, document = reload(cluster, str(min(gone)))
        assert (code, document["refused"]) == (1, {str(min(gone)): "it is served"})
