"""Ways in which grids lose data or lie, each tried on real processes.

The numbers are those of docs/RELIABILITY.md.
"""

import asyncio
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import spacegrid
from core_world import GET, request
from spacegrid.errors import TooLarge
from spacegrid.limits import KEY_BYTES_MAX, VALUE_BYTES_MAX
from spacegrid.testing import ChaosOptions, ChaosRun, LocalCluster
from spacegrid.testing.failover.faults import minority
from spacegrid.testing.failover.stage import Stage, StageOptions
from spacegrid.v1 import data_pb2, data_pb2_grpc

pytestmark = pytest.mark.timeout(180)


def fill(cluster: LocalCluster, count: int = 400, size: int = 64) -> dict[str, bytes]:
    """Write entries, all acknowledged."""
    entries = {f"k{n}": f"{n}".encode().ljust(size) for n in range(count)}
    with spacegrid.connect_sync(*cluster.addresses, timeout=20) as grid:
        grid.map("items", key=str, value=bytes).put_many(entries)
    return entries


def found(cluster: LocalCluster, entries: dict[str, bytes]) -> dict[str, bytes]:
    """The same keys, read again."""
    with spacegrid.connect_sync(*cluster.addresses, timeout=20) as grid:
        where, keys = grid.map("items", key=str, value=bytes), list(entries)
        batches = (keys[begin : begin + 100] for begin in range(0, len(keys), 100))
        return {k: v for batch in batches for k, v in where.get_many(batch).items()}


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_f05_copies_that_all_restart_at_once_are_said_to_be_lost_and_never_empty(
    tmp_path: Path,
) -> None:
    options = ChaosOptions(cycles=1, seed=3, nemesis=("both-copies",), data=tmp_path)
    report = asyncio.run(ChaosRun(options).run())
    assert report.violations == []
    assert report.figures["said_lost"] > 0


def test_f10_a_node_that_lost_its_folder_comes_back_as_a_new_one(
    start_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = start_cluster(nodes=3, partitions=16)
    entries = fill(cluster)
    before = {node.name: node.incarnation for node in cluster.status().nodes}
    cluster.kill("node-2")
    shutil.rmtree(cluster.data_folder("node-2"))
    cluster.restart("node-2")
    cluster.wait_ready()
    after = {node.name: node.incarnation for node in cluster.status().nodes}
    assert after["node-2"] > max(before.values())
    assert found(cluster, entries) == entries


def test_f11_two_nodes_that_leave_at_once_leave_every_partition_whole(
    start_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = start_cluster(nodes=4, partitions=16)
    entries = fill(cluster)
    leaving = [cluster.nodes["node-3"], cluster.nodes["node-4"]]
    for child in leaving:
        child.process.send_signal(signal.SIGTERM)
    assert [child.wait() for child in leaving] == [0, 0]
    cluster.wait_ready()
    assert found(cluster, entries) == entries


async def test_f13_a_starved_node_is_built_on_no_more_takes_nobody_along_and_loses_nothing(
    start_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = start_cluster(nodes=3, partitions=16)
    entries = fill(cluster)
    controller = cluster.controller()
    starved = next(name for name in cluster.alive if name != controller)
    incarnations = {node.name: node.incarnation for node in cluster.status().nodes}
    empty = cycles = 0
    while empty < 5:
        cluster.pause(starved)
        await asyncio.sleep(0.47)
        cluster.resume(starved)
        await asyncio.sleep(0.1)
        # Of the controller: what the starved one knows is of before it was stopped.
        table = cluster.partitions(controller)
        held = [p.partition for p in table if starved in (p.primary, *p.in_sync)]
        empty, cycles = 0 if held else empty + 1, cycles + 1
        assert cycles < 60, f"{starved} has {held} again after {cycles} suspicions"
    cluster.wait_ready()
    assert {node.name: node.incarnation for node in cluster.status().nodes} == incarnations
    assert found(cluster, entries) == entries


async def test_f12_a_link_cut_in_one_direction_leaves_every_partition_with_one_that_serves(
    tmp_path: Path,
) -> None:
    options = StageOptions(partitions=16, folder=tmp_path / "stage")
    stage = await Stage.start(options, print)
    try:
        leader = await asyncio.to_thread(stage.cluster.controller)
        others = [name for name in stage.cluster.alive if name != leader]
        for source, target in ((leader, others[0]), (others[0], leader), tuple(others)):
            await stage.ready()
            stage.links.cut(source, target)
            assert await stage.written(stage.keys, time.monotonic()) < 15, (source, target)
            stage.links.heal_all()
        await stage.ready()
        await stage.check_probes()
    finally:
        await stage.close()
    assert stage.violations == []


async def test_f14_f28_a_minority_gives_no_answer_once_its_lease_is_over(tmp_path: Path) -> None:
    options = StageOptions(cycles=1, partitions=16, folder=tmp_path / "stage")
    stage = await Stage.start(options, print)
    try:
        figures, _ = await minority(stage)
    finally:
        await stage.close()
    assert stage.violations == []
    # The lease is 500 ms; what is asked of a busy machine here is only that there is one.
    assert figures["minority_last_write_max_ms"] < 1_500
    assert figures["minority_last_read_max_ms"] < 1_500
    assert figures["cut_off_writes_max_ms"] < 8_000


BROKEN = """
import os, sys
words = sys.orig_argv
if "--name" in words and words[words.index("--name") + 1] == "node-2":
    import spacegrid.node.daemon as daemon
    real = daemon.core_entry
    def core_entry(entry):
        if os.path.exists({trigger!r}):
            raise RuntimeError("a planted bug")
        return real(entry)
    daemon.core_entry = core_entry
"""


def test_f16_a_bug_in_a_node_ends_its_process_and_the_cluster_goes_on(
    start_cluster: Callable[..., LocalCluster], tmp_path: Path
) -> None:
    trigger = tmp_path / "now"
    (tmp_path / "sitecustomize.py").write_text(BROKEN.format(trigger=str(trigger)))
    cluster = start_cluster(nodes=3, partitions=16, environment={"PYTHONPATH": str(tmp_path)})
    entries = fill(cluster)
    trigger.touch()
    # The next table is too much for node 2.
    cluster.add("node-4")
    cluster.wait_for(lambda: not cluster.nodes["node-2"].alive, "the node to end")
    assert cluster.nodes["node-2"].wait() == 70
    assert "please report" in cluster.nodes["node-2"].log_tail()
    cluster.wait_ready()
    assert found(cluster, entries) == entries


def test_f19_a_node_that_dies_while_data_moves_to_it_or_from_it_costs_nothing(
    start_cluster: Callable[..., LocalCluster],
) -> None:
    # Bounded, so that moves are still under way when somebody looks, and when somebody dies.
    cluster = start_cluster(
        nodes=3, partitions=16, arguments=["--transfer-bytes-per-s", str(1 << 20)]
    )
    entries = fill(cluster, count=2_000, size=4_096)

    def joining(name: str) -> bool:
        return any(name in (*p.joining, *p.tails) for p in cluster.partitions())

    for victim in ("node-9", "node-2"):
        # The target of the moves dies while they are under way; then one of their sources does.
        starting = threading.Thread(target=cluster.add, args=("node-9",))
        starting.start()
        cluster.wait_for(lambda: joining("node-9"), "the new node to be given copies")
        if victim == "node-9":
            starting.join()
        cluster.kill(victim)
        starting.join()
        if victim == "node-9":
            del cluster.nodes["node-9"]
        cluster.wait_ready()
        assert found(cluster, entries) == entries


async def test_f32_what_is_accepted_at_the_edge_fits_everywhere_inside(
    three_nodes: LocalCluster,
) -> None:
    async with spacegrid.connect(three_nodes.addresses[0], timeout=20) as grid:
        where = grid.map("sizes", key=bytes, value=bytes)
        for size in (VALUE_BYTES_MAX - 1, VALUE_BYTES_MAX):
            await where.put(b"one", b"x" * size)
            assert await where.get(b"one") == b"x" * size
        key = b"k" * KEY_BYTES_MAX
        await where.put(key, b"y" * VALUE_BYTES_MAX)
        assert await where.get(key) == b"y" * VALUE_BYTES_MAX
        # Together they are many frames and many records, alone each fits.
        batch = {b"%d" % n: b"z" * (VALUE_BYTES_MAX - n % 2) for n in range(12)}
        await where.put_many(batch)
        assert await where.get_many(batch) == batch
        for wrong in ((b"one", b"x" * (VALUE_BYTES_MAX + 1)), (key + b"k", b"")):
            with pytest.raises(TooLarge):
                await where.put(*wrong)
        assert await where.get(b"one") == b"x" * VALUE_BYTES_MAX
        await where.delete_many([*batch, key, b"one"])


def test_f35_a_client_that_never_reads_its_answers_costs_a_node_a_bounded_queue(
    start_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = start_cluster(nodes=1, copies=1, partitions=16)
    value = b"v" * 200_000
    with spacegrid.connect_sync(*cluster.addresses) as grid:
        grid.map("m", key=str, value=bytes).put("k", value)
    before = resident_bytes(cluster.nodes["node-1"].pid)
    done = threading.Event()

    def asking() -> Iterator[data_pb2.Frame]:
        yield data_pb2.Frame(hello=data_pb2.Hello(protocol_version=1))
        for number in range(1, 5_000):
            yield data_pb2.Frame(data=request(GET, number, b"k"))
        done.wait(60)

    with grpc.insecure_channel(cluster.addresses[0]) as channel:
        # A gigabyte of answers is asked for, and not one of them is read.
        call = data_pb2_grpc.DataStub(channel).Stream(asking())
        deadline = time.monotonic() + 4.0
        most = 0
        while time.monotonic() < deadline:
            most = max(most, resident_bytes(cluster.nodes["node-1"].pid) - before)
            time.sleep(0.05)
        # Everyone else is served as before.
        with spacegrid.connect_sync(*cluster.addresses) as grid:
            assert grid.map("m", key=str, value=bytes).get("k") == value
        done.set()
        call.cancel()
    assert most < 200 << 20, f"{most:,} bytes wait for a client that does not read"
