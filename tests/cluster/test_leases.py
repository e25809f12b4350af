"""Nodes that hang: their partitions are served by others, and what they wake up with stays theirs.

A process is stopped with SIGSTOP, so it ends no connection and says nothing, and goes on later as
if nothing had been.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
import spacegrid
from spacegrid._core import partition_of
from spacegrid.testing import LocalCluster

pytestmark = pytest.mark.timeout(120)
#: The figure is two seconds on a quiet machine; this is for one that runs other tests.
SERVICE_BACK_S = 6.0


@pytest.mark.parametrize("victim", ["a primary", "the controller"])
def test_a_node_that_hangs_is_replaced_and_answers_nothing_of_before(
    start_cluster: Callable[..., LocalCluster], victim: str
) -> None:
    cluster = start_cluster(nodes=3)
    controller = cluster.controller()
    others = [name for name in cluster.nodes if name != controller]
    name = controller if victim == "the controller" else others[0]
    primaries = cluster.primaries()
    keys = [f"k{n}" for n in range(200)]
    theirs = [key for key in keys if primaries[partition_of(key.encode(), 64)] == name]
    process = cluster.nodes[name].process
    with spacegrid.connect_sync(*cluster.addresses, timeout=20) as grid:
        items = grid.map("items", key=str, value=int)
        items.put_many(dict.fromkeys(keys, 1))
        os.kill(process.pid, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            items.put_many(dict.fromkeys(keys, 2))
            assert time.monotonic() - begun < SERVICE_BACK_S
            assert items.get_many(theirs) == dict.fromkeys(theirs, 2)
        finally:
            os.kill(process.pid, signal.SIGCONT)
    # A client that knows no other node asks the one that has just woken up.
    with spacegrid.connect_sync(cluster.nodes[name].address, timeout=20) as grid:
        items = grid.map("items", key=str, value=int)
        assert items.get_many(theirs) == dict.fromkeys(theirs, 2)
    cluster.wait_ready()
    assert process.poll() is None, "it goes on, as a new copy of what it missed"
