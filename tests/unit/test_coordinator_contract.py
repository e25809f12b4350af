"""What every coordinator promises (docs/INVARIANTS.md, C1 to C7), asked of each implementation."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from coordinator_clusters import (
    EtcdSpace,
    LocalCluster,
    MemoryCluster,
    placed,
    small_table,
    start_process,
)
from etcd import Etcd
from spacegrid.coordinator import (
    ControllerChanged,
    Coordinator,
    RegistrationEnded,
    RegistrationsChanged,
    TableChanged,
)
from spacegrid.coordinator.authority import AuthorityState
from spacegrid.coordinator.durable import DurableFile
from spacegrid.coordinator.local import LocalCoordinator
from spacegrid.coordinator.local_server import main, open_state, process_start
from spacegrid.errors import ConfigError, ProtocolError
from spacegrid.machine.table import Registration, StoredPartition

Cluster = MemoryCluster | LocalCluster | EtcdSpace


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture(params=["memory", "local", "etcd"])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster: Cluster
    match request.param:
        case "memory":
            cluster = MemoryCluster(tmp_path)
        case "local":
            cluster = LocalCluster(tmp_path)
        case _:
            cluster = EtcdSpace(request.getfixturevalue("etcd"))
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.stop()


async def take_term(node: Coordinator) -> int:
    """The node becomes controller; its term."""
    controller = await node.campaign((await node.confirm()).term)
    assert controller.incarnation == node.registration.incarnation
    return controller.term


async def wait_for(node: Coordinator, condition: object) -> None:
    """Read events until what the node knows fits."""
    async with asyncio.timeout(5), contextlib.aclosing(node.events()) as events:  # type: ignore[type-var]
        async for _ in events:
            if condition(node):  # type: ignore[operator]
                return
    raise AssertionError("events ended")


async def test_incarnations_are_given_once_and_increase(cluster: Cluster) -> None:
    first = await cluster.node("a")
    second = await cluster.node("b")
    await cluster.kill(first)
    await wait_for(second, lambda node: len(node.registrations) == 1)
    third = await cluster.node("a")
    numbers = [node.registration.incarnation for node in (first, second, third)]
    assert numbers == [1, 2, 3]


async def test_incarnations_and_terms_go_on_after_a_restart(cluster: Cluster) -> None:
    first = await cluster.node("a")
    term = await take_term(first)
    await cluster.restart()
    again = await cluster.node("a")
    assert again.registration.incarnation == 2
    assert again.controller == ControllerChanged(1, term)
    assert await again.campaign(term) == ControllerChanged(2, term + 1)


async def test_join_tells_table_registrations_and_controller(cluster: Cluster) -> None:
    node = await cluster.node("a", address="127.0.0.1:7", store=bytes(16), zone="north")
    assert node.table == msgspec.structs.replace(small_table(), life=node.table.life)
    assert node.registrations == (node.registration,)
    assert (node.registration.address, node.registration.zone) == ("127.0.0.1:7", "north")
    other = await cluster.node("b")
    await wait_for(other, lambda node: len(node.registrations) == 2)
    assert [item.zone for item in other.registrations] == ["north", ""]
    assert node.controller == ControllerChanged(0, 0)
    assert not node.stopping


async def test_events_begin_with_the_state_as_it_is(cluster: Cluster) -> None:
    node = await cluster.node("a")
    kinds = set()
    async with contextlib.aclosing(node.events()) as events:  # type: ignore[type-var]
        async for event in events:
            kinds.add(type(event))
            if len(kinds) == 3:
                break
    assert kinds == {TableChanged, RegistrationsChanged, ControllerChanged}


async def test_a_write_under_term_and_revision_is_seen_by_everyone(cluster: Cluster) -> None:
    first, second = await cluster.node("a"), await cluster.node("b")
    result = await first.write(await take_term(first), 1, [placed(2, 1)])
    assert (result.accepted, result.revision) == (True, 2)
    for node in (first, second):
        await wait_for(node, lambda node: node.table.revision == 2)
        assert node.table.entries[2] == placed(2, 1)
        node.table.check()


async def test_a_write_under_an_old_term_changes_nothing(cluster: Cluster) -> None:
    first, second = await cluster.node("a"), await cluster.node("b")
    old_term = await take_term(first)
    new_term = await take_term(second)
    refused = await first.write(old_term, 1, [placed(0, 1)])
    assert (refused.accepted, refused.revision) == (False, 1)
    accepted = await second.write(new_term, 1, [placed(0, 2)])
    assert accepted.accepted


async def test_a_write_at_another_revision_changes_nothing(cluster: Cluster) -> None:
    node = await cluster.node("a")
    term = await take_term(node)
    assert (await node.write(term, 1, [placed(0, 1)])).accepted
    refused = await node.write(term, 1, [placed(1, 1)])
    assert (refused.accepted, refused.revision) == (False, 2)
    await wait_for(node, lambda node: node.table.revision == 2)
    assert node.table.entries[1].epoch == 0


async def test_a_write_that_takes_a_version_back_is_an_error(cluster: Cluster) -> None:
    node = await cluster.node("a")
    term = await take_term(node)
    assert (await node.write(term, 1, [placed(0, 1, version=5)])).accepted
    with pytest.raises(ProtocolError, match="version 5, 5 is not after it"):
        await node.write(term, 2, [placed(0, 1, version=5)])
    with pytest.raises(ProtocolError, match="partition 4 is over 3"):
        await node.write(term, 2, [placed(4, 1)])


async def test_what_was_written_is_there_after_a_restart(cluster: Cluster) -> None:
    node = await cluster.node("a", store=b"s" * 16)
    await node.write(await take_term(node), 1, [placed(3, 1)])
    await cluster.restart()
    again = await cluster.node("b")
    assert again.table.revision == 2
    assert again.table.entries[3] == placed(3, 1)
    stores = [(item.copy, item.store, item.name) for item in again.table.stores]
    assert stores == [(1, b"s" * 16, "a")]


async def test_a_death_ends_the_registration_and_marks_the_store(cluster: Cluster) -> None:
    first = await cluster.node("a", store=b"s" * 16)
    second = await cluster.node("b")
    await first.write(await take_term(first), 1, [placed(0, 1)])
    await cluster.kill(first)
    await wait_for(second, lambda node: node.registrations == (node.registration,))
    assert second.table.stores[0].crashed


async def test_a_clean_end_leaves_the_store_whole(cluster: Cluster) -> None:
    first = await cluster.node("a", store=b"s" * 16)
    second = await cluster.node("b")
    await first.write(await take_term(first), 1, [placed(0, 1)])
    await first.update(msgspec.structs.replace(first.registration, stopped=True))
    await first.close()
    await wait_for(second, lambda node: node.registrations == (node.registration,))
    assert not second.table.stores[0].crashed


async def test_a_term_goes_to_who_knows_the_one_before(cluster: Cluster) -> None:
    first, second = await cluster.node("a"), await cluster.node("b")
    assert await first.campaign(0) == ControllerChanged(1, 1)
    assert await second.campaign(0) == ControllerChanged(1, 1)
    await wait_for(second, lambda node: node.controller == ControllerChanged(1, 1))
    assert await second.campaign(1) == ControllerChanged(2, 2)
    for node in (first, second):
        await wait_for(node, lambda node: node.controller == ControllerChanged(2, 2))
        assert await node.confirm() == ControllerChanged(2, 2)


async def test_asking_again_for_a_term_that_was_given_takes_no_other(cluster: Cluster) -> None:
    node = await cluster.node("a")
    assert await node.campaign(0) == ControllerChanged(1, 1)
    assert await node.campaign(0) == ControllerChanged(1, 1)
    assert await node.confirm() == ControllerChanged(1, 1)


async def test_a_term_outlives_its_holder_until_somebody_takes_the_next(cluster: Cluster) -> None:
    first, second = await cluster.node("a"), await cluster.node("b")
    term = await take_term(first)
    await cluster.kill(first)
    await wait_for(second, lambda node: node.registrations == (node.registration,))
    assert await second.confirm() == ControllerChanged(1, term)
    assert await second.campaign(term) == ControllerChanged(2, term + 1)


async def test_a_write_of_no_entries_voids_what_was_decided_before(cluster: Cluster) -> None:
    node = await cluster.node("a")
    term = await take_term(node)
    result = await node.write(term, 1, [])
    assert (result.accepted, result.revision) == (True, 2)
    assert not (await node.write(term, 1, [placed(0, 1)])).accepted
    await wait_for(node, lambda node: node.table.revision == 2)
    assert node.table.entries == small_table().entries


async def test_an_update_is_seen_by_the_others(cluster: Cluster) -> None:
    first, second = await cluster.node("a"), await cluster.node("b")
    stored = (StoredPartition(1, 2, 3),)
    await first.update(msgspec.structs.replace(first.registration, stored=stored))
    await wait_for(second, lambda node: node.registrations[0].stored == stored)


async def test_stopping_is_told_and_nothing_is_written_until_it_has_stopped(
    cluster: Cluster,
) -> None:
    first, second = await cluster.node("a"), await cluster.node("b")
    term = await take_term(first)
    await second.stop_cluster()
    for node in (first, second):
        await wait_for(node, lambda node: node.stopping and node.table.stopped)
    assert not (await first.write(term, 2, [placed(0, 1)])).accepted
    with pytest.raises(ProtocolError, match="the cluster is stopping"):
        await cluster.node("c")
    for node in (first, second):
        await node.update(msgspec.structs.replace(node.registration, stopped=True))
        await node.close()
    again = await cluster.node("c")
    assert again.table.stopped
    assert not again.stopping
    assert (await again.write(await take_term(again), 2, [placed(0, 3)])).accepted
    await wait_for(again, lambda node: node.table.revision == 3)
    assert not again.table.stopped


async def test_a_name_or_a_store_is_used_by_one_node(cluster: Cluster) -> None:
    await cluster.node("a", store=b"s" * 16)
    with pytest.raises(ProtocolError, match="node name 'a' is in use by process"):
        await cluster.node("a")
    with pytest.raises(ProtocolError, match="is in use by node 'a'"):
        await cluster.node("b", store=b"s" * 16)


def test_a_process_that_has_ended_and_is_not_reaped_yet_does_not_run() -> None:
    process = start_process()
    assert process_start(process.pid) > 0
    process.kill()
    # It ends, and stays in the list of processes until it is waited for.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ProcessLookupError, match="has ended"):
        process_start(process.pid)
    process.wait()
    with pytest.raises(FileNotFoundError):
        process_start(process.pid)
    assert process.stdin is not None
    process.stdin.close()


async def test_a_stream_that_breaks_is_no_death(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    await cluster.start()
    first, second = await cluster.node("a"), await cluster.node("b")
    assert isinstance(first, LocalCoordinator)
    assert first._stream is not None
    stream = first._stream
    stream.cancel()
    await second.update(msgspec.structs.replace(second.registration, draining=True))
    await wait_for(first, lambda node: node.registrations[1].draining)
    assert first._stream is not stream
    assert [item.incarnation for item in second.registrations] == [1, 2]
    await cluster.stop()


async def test_nodes_outlive_a_restart_of_the_coordinator(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    await cluster.start()
    first, second = await cluster.node("a"), await cluster.node("b")
    await cluster.server.stop()
    await cluster.kill(first)
    cluster.server = cluster._server()
    await cluster.start()
    await wait_for(second, lambda node: node.registrations == (node.registration,))
    assert second.registrations == (second.registration,)
    assert second.registration.incarnation == 2
    await cluster.stop()


async def test_an_incarnation_that_ended_does_not_come_back(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    await cluster.start()
    node = await cluster.node("a")
    assert isinstance(node, LocalCoordinator)
    assert node._stream is not None
    cluster.server.authority.end(1, crashed=True)
    node._stream.cancel()
    async with contextlib.aclosing(node.events()) as events:
        reasons = [event async for event in events if isinstance(event, RegistrationEnded)]
    assert [event.reason for event in reasons] == ["incarnation 1 has ended"]
    with pytest.raises(ProtocolError, match="incarnation 1 has ended"):
        await node.campaign(0)
    await cluster.stop()


async def test_another_cluster_is_refused(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    await cluster.start()
    node = LocalCoordinator(cluster.address, cluster_id=b"x" * 16)
    with pytest.raises(ProtocolError, match="was expected"):
        await node.join(Registration(name="a", pid=os.getpid()))
    await cluster.stop()


def test_one_process_holds_the_file(tmp_path: Path) -> None:
    file = DurableFile(tmp_path / "state")
    with pytest.raises(ConfigError, match="is in use by another coordinator"):
        DurableFile(tmp_path / "state")
    file.close()
    DurableFile(tmp_path / "state").close()


@pytest.mark.parametrize("damage", ["short", "flipped", "foreign", "empty", "version", "long"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    file = DurableFile(tmp_path / "state")
    file.save(AuthorityState(small_table(), next_incarnation=7))
    loaded = file.load()
    assert loaded is not None
    assert loaded.next_incarnation == 7
    data = bytearray(file.path.read_bytes())
    match damage:
        case "short":
            del data[-1]
        case "flipped":
            data[40] ^= 1
        case "foreign":
            data[:4] = b"ELSE"
        case "empty":
            data.clear()
        case "version":
            data[4] = 9
        case _:
            data.append(0)
    file.path.write_bytes(data)
    with pytest.raises(ConfigError):
        file.load()
    file.close()


def test_a_space_keeps_what_it_was_created_with(tmp_path: Path) -> None:
    file = DurableFile(tmp_path / "state")
    open_state(file, partitions=8, copies=2, min_in_sync=2, nodes=3)
    assert open_state(file, partitions=8, copies=2, min_in_sync=2, nodes=5).table.copies == 2
    with pytest.raises(ConfigError, match="partition_count 8, 16 was asked for"):
        open_state(file, partitions=16, copies=2, min_in_sync=2, nodes=3)
    file.close()


def test_a_public_address_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--file", str(tmp_path / "state"), "--listen", "0.0.0.0:0"]) == 2
    assert "is not on loopback" in capsys.readouterr().err


def test_the_process_says_where_it_is_and_stops_on_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "spacegrid.coordinator.local_server"]
    process = subprocess.Popen(
        [*command, "--file", str(tmp_path / "state"), "--partitions", "8"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout as out:
        ready = msgspec.json.decode(out.readline())
        assert ready["event"] == "ready"
        assert ready["pid"] == process.pid
        assert ready["address"].startswith("127.0.0.1:")
        process.terminate()
        assert process.wait(10) == 0
