"""The last complete copy dies while a removed one is back and another one still joins.

Goal: the two that are left are put together, and everything acknowledged is served again at once.
Method: real processes under a bound for snapshots, so that a join takes long; one node hangs until
it is taken out of the partitions that it shares with another one, which is then killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import spacegrid
from spacegrid._core import partition_of
from spacegrid.testing import LocalCluster

pytestmark = pytest.mark.timeout(120)

PARTITIONS = 12
RATE = 256 << 10
VALUE_BYTES = 32 << 10
ENTRIES = 384
#: Much longer than a failover takes on a quiet machine; the join alone would take longer.
SERVICE_BACK_S = 6.0


@pytest.mark.parametrize("lmdb", [False, True], ids=["in memory", "with disks"])
def test_a_removed_copy_is_completed_from_a_tail_and_serves(
    start_cluster: Callable[..., LocalCluster], lmdb: bool
) -> None:
    cluster = start_cluster(
        nodes=3,
        lmdb=lmdb,
        partitions=PARTITIONS,
        arguments=["--transfer-bytes-per-s", str(RATE)],
    )
    tail = cluster.controller()
    last, former = [name for name in cluster.nodes if name != tail]

    def left_alone() -> list[int]:
        """Partitions that one complete copy and a tail hold, and the removed copy in part."""
        return [
            row.partition
            for row in cluster.partitions()
            if (row.primary, list(row.in_sync), list(row.tails)) == (last, [last], [tail])
        ]

    values = {f"k{n}": n.to_bytes(2) * (VALUE_BYTES // 2) for n in range(ENTRIES)}
    with spacegrid.connect_sync(*cluster.addresses, timeout=20) as grid:
        items = grid.map("items", key=str, value=bytes)
        items.put_many(values)
        cluster.pause(former)
        cluster.wait_for(lambda: bool(left_alone()), "the hung copy to be taken out")
        during = {f"during-{n}": b"1" for n in range(100)}
        items.put_many(during)
        cluster.resume(former)
        theirs = set(left_alone())
        assert theirs, "every join is through already"
        cluster.kill(last)
        begun = time.monotonic()
        keys = [
            key for key in (*values, *during) if partition_of(key.encode(), PARTITIONS) in theirs
        ]
        expected = {key: (values | during)[key] for key in keys}
        assert items.get_many(keys) == expected
        items.put_many(dict.fromkeys(during, b"2"))
        assert time.monotonic() - begun < SERVICE_BACK_S
        # Who is asked may hear of it after the client.
        cluster.wait_for(
            lambda: {row.primary for row in cluster.partitions()} <= {former, tail},
            "the dead node to be primary of nothing",
        )
        primaries = cluster.primaries()
        assert former in {primaries[partition] for partition in theirs}
        assert items.get_many(list(values)) == values
        assert items.get_many(list(during)) == dict.fromkeys(during, b"2")
    assert not cluster.status().lost
