"""etcd's members killed, paused and put back under nodes that are registered in it.

Nodes are coordinators in this process; etcd is real, three members unless a test says otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from coordinator_clusters import QUICK, EtcdSpace, placed
from etcd import Etcd
from spacegrid import clock
from spacegrid.coordinator import ControllerChanged, Coordinator, RegistrationEnded, WriteResult
from spacegrid.coordinator.etcd import EtcdCoordinator, SpaceSettings, accept_restored, remove_space
from spacegrid.coordinator.etcd.client import HEDGE_S
from spacegrid.errors import ConfigError, ConnectionFailed, ProtocolError
from spacegrid.machine.table import Registration

WAIT_S = 15.0


@pytest.fixture(scope="module")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd"), size=3) as etcd:
        yield etcd


@pytest.fixture
def etcd(shared_etcd: Etcd) -> Iterator[Etcd]:
    """The shared one; whatever a test did to its members is undone."""
    yield shared_etcd
    for member in shared_etcd.members:
        if member in shared_etcd.running():
            member.resume()
        else:
            shared_etcd.launch(member)
    shared_etcd.wait_healthy()


@pytest.fixture
async def space(etcd: Etcd) -> AsyncIterator[EtcdSpace]:
    space = EtcdSpace(etcd)
    try:
        yield space
    finally:
        await space.stop()


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what other tasks bring about."""
    try:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {WAIT_S} s for {what}") from None


async def insist(call: Callable[[], Awaitable[object]]) -> object:
    """Ask again while etcd elects."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await call()
            except ConnectionFailed:
                await asyncio.sleep(0.01)


def sure(node: EtcdCoordinator) -> bool:
    """Whether the node may believe that it is registered."""
    return node.registered_until_ms > clock.boottime_ms()


async def ended(node: Coordinator) -> str:
    """Wait for the end of a registration; its reason."""
    async with asyncio.timeout(WAIT_S), contextlib.aclosing(node.events()) as events:  # type: ignore[type-var]
        async for event in events:
            if isinstance(event, RegistrationEnded):
                return event.reason
    raise AssertionError("events ended without a reason")


async def write_on(node: EtcdCoordinator, partition: int, version: int) -> WriteResult:
    """Write one entry as controller, taking the term where needed."""
    incarnation = node.registration.incarnation
    if node.controller.incarnation != incarnation:
        await node.campaign((await node.confirm()).term)
    entry = placed(partition, incarnation, version=version)
    return await node.write(node.controller.term, node.table.revision, [entry])


@pytest.mark.parametrize("which", ["leader", "follower"])
async def test_a_member_that_dies_costs_no_registration_and_no_write(
    etcd: Etcd, space: EtcdSpace, which: str
) -> None:
    first, second = await space.node("a"), await space.node("b")
    assert (await write_on(first, 0, 1)).accepted
    leader = etcd.leader()
    others = [member for member in etcd.members if member is not leader]
    (leader if which == "leader" else others[0]).kill()
    assert await insist(first.confirm) == ControllerChanged(1, 1)
    await insist(lambda: write_on(first, 1, 1))
    await until(lambda: second.table.entries[1].primary == 1, "the write to be seen")
    await until(lambda: sure(first) and sure(second), "both to be sure again")
    assert [item.incarnation for item in second.registrations] == [1, 2]


async def test_a_leader_that_was_paused_ends_nobody(etcd: Etcd, space: EtcdSpace) -> None:
    """When it goes on it lets leases go that were kept at its successor: a node takes a new one."""
    first, second = await space.node("a"), await space.node("b")
    leader = etcd.leader()
    leader.pause()
    assert await insist(first.confirm) == ControllerChanged(0, 0)
    # Longer than the lease, and than it takes to end a node that has none.
    paused_until_ms = clock.boottime_ms() + 1_000 * QUICK.lease_s + QUICK.end_ms + 1_000
    await until(lambda: clock.boottime_ms() > paused_until_ms, "the pause to be long enough")
    leader.resume()
    settled_ms = clock.boottime_ms() + 1_000 * QUICK.lease_s + QUICK.end_ms + 1_000
    await until(lambda: clock.boottime_ms() > settled_ms, "leases to be let go")
    await until(lambda: sure(first) and sure(second), "both to be sure")
    for node in (first, second):
        assert [item.incarnation for item in node.registrations] == [1, 2]
    assert await insist(lambda: write_on(first, 0, 1)) == WriteResult(True, 2)
    await until(lambda: second.table.revision == 2, "the write to be seen")


async def test_a_paused_follower_does_not_hold_up_who_asked_it(
    etcd: Etcd, space: EtcdSpace
) -> None:
    [member, *_] = [member for member in etcd.members if member is not etcd.leader()]
    others = [address for address in etcd.addresses if address != member.address]
    space.options = msgspec.structs.replace(space.options, members=(member.address, *others))
    node, other = await space.node("a"), await space.node("b")
    client = node._joined().client

    async def confirmed_s() -> float:
        """How long an answer takes when the paused one is asked first."""
        while client.members[0].address != member.address:
            client.ask_last(client.members[0])
        began_s = clock.monotonic_s()
        await node.confirm()
        return clock.monotonic_s() - began_s

    member.pause()
    until_s = clock.monotonic_s() + WAIT_S
    # A crowded machine may itself hold up one answer, and does not all of them.
    while (took_s := await confirmed_s()) >= 0.9:
        assert clock.monotonic_s() < until_s, took_s
    assert took_s >= HEDGE_S
    assert client.members[0].address != member.address
    assert await insist(lambda: write_on(other, 2, 1)) == WriteResult(True, 2)
    await until(lambda: node.table.revision == 2, "the watch to move to another member")


async def test_without_a_majority_nothing_is_written_and_nobody_ends(
    etcd: Etcd, space: EtcdSpace
) -> None:
    first, second = await space.node("a"), await space.node("b")
    assert (await write_on(first, 0, 1)).accepted
    for member in etcd.members[:2]:
        member.kill()
    lost_ms = clock.boottime_ms()
    first._timeout_s = 0.5
    with pytest.raises(ConnectionFailed):
        await first.confirm()
    with pytest.raises(ConnectionFailed):
        await write_on(first, 1, 1)
    await until(lambda: not sure(first) and not sure(second), "doubt")
    assert clock.boottime_ms() - lost_ms < 10 * QUICK.valid_ms
    # Well over what ends a node that etcd knows to be gone.
    away_until_ms = lost_ms + 1_000 * QUICK.lease_s + 3 * QUICK.end_ms
    await until(lambda: clock.boottime_ms() > away_until_ms, "etcd to be away long enough")
    for member in etcd.members[:2]:
        etcd.launch(member)
    await until(lambda: sure(first) and sure(second), "both to be sure again")
    first._timeout_s = 10.0
    seen = await insist(first.confirm)
    assert seen == ControllerChanged(1, 1)
    # The write that was not answered was made or not; the table says, and the next one counts.
    await until(lambda: first.table.revision == second.table.revision, "one table")
    version = first.table.entries[1].version + 1
    assert await insist(lambda: write_on(first, 1, version))
    await until(lambda: second.table.entries[1].version == version, "the write to be seen")
    assert [item.incarnation for item in second.registrations] == [1, 2]


async def test_a_node_that_was_ended_stops_when_it_finds_out(space: EtcdSpace) -> None:
    """What a pause of its process does: nothing is kept or read for longer than others wait."""
    first, second = await space.node("a"), await space.node("b")
    await first._stop_tasks()
    await until(lambda: second.registrations == (second.registration,), "the end of the first")
    assert not sure(first)
    keeper = first._keeper
    assert keeper is not None
    running = asyncio.create_task(keeper.run())
    assert await ended(first) == "incarnation 1 has ended"
    await running
    assert first.registered_until_ms == 0
    with pytest.raises(ProtocolError, match="incarnation 1 has ended"):
        await first.campaign(0)
    with pytest.raises(ProtocolError, match="incarnation 1 has ended"):
        await first.update(first.registration)
    third = await space.node("a")
    assert third.registration.incarnation == 3


async def test_a_bug_in_what_keeps_a_registration_ends_the_node(
    space: EtcdSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await space.node("a")
    assert node._watcher is not None

    def broken(_: int) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(node._watcher, "found", broken)
    assert "ZeroDivisionError('a bug')" in await ended(node)
    assert not sure(node)


async def test_a_node_that_lost_only_its_lease_goes_on(etcd: Etcd, space: EtcdSpace) -> None:
    first, second = await space.node("a"), await space.node("b")
    keeper = first._keeper
    assert keeper is not None
    lease = keeper._lease
    etcd.ctl("lease", "revoke", f"{lease:x}")
    await until(lambda: keeper._lease != lease, "a new lease")
    quiet_until_ms = clock.boottime_ms() + 2 * QUICK.end_ms
    await until(lambda: clock.boottime_ms() > quiet_until_ms, "others to have had their time")
    await until(lambda: sure(first), "the first to be sure")
    assert [item.incarnation for item in second.registrations] == [1, 2]


async def test_a_watch_whose_revision_was_compacted_reads_everything_again(
    etcd: Etcd, space: EtcdSpace
) -> None:
    first, second = await space.node("a"), await space.node("b")
    [watch, *others] = second._tasks
    watch.cancel()
    await asyncio.wait([watch])
    for partition in range(4):
        assert (await write_on(first, partition, 1)).accepted
    await first.update(msgspec.structs.replace(first.registration, draining=True))
    etcd.ctl("compact", str(etcd.status(etcd.members[0])["header"]["revision"]))
    assert second.table.revision == 1
    watcher = second._watcher
    assert watcher is not None
    second._tasks = [asyncio.create_task(watcher.run()), *others]
    await until(lambda: second.table.revision == 5, "the table to be read again")
    assert second.table == first.table
    assert second.registrations[0].draining
    assert second.controller == ControllerChanged(1, 1)
    assert (await write_on(first, 0, 2)).accepted
    await until(lambda: second.table.revision == 6, "the watch to go on")


async def test_controllers_that_race_write_one_history(space: EtcdSpace) -> None:
    nodes = [await space.node(name) for name in ("a", "b", "c")]
    accepted: list[tuple[int, int]] = []

    async def rule(node: EtcdCoordinator) -> None:
        incarnation = node.registration.incarnation
        while len(accepted) < 15:
            term = await node.campaign((await node.confirm()).term)
            if term.incarnation != incarnation:
                continue
            result = await node.write(term.term, node.table.revision, [])
            if result.accepted:
                accepted.append((result.revision, term.term))

    # How many of them win, and write before the next one wins, is chance.
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*(rule(node) for node in nodes))
    revisions = [revision for revision, _ in sorted(accepted)]
    assert revisions == list(range(2, 2 + len(accepted)))
    terms = [term for _, term in sorted(accepted)]
    assert terms == sorted(terms)
    for node in nodes:
        await until(lambda node=node: node.table.revision == revisions[-1], "the last write")


async def test_two_first_nodes_create_one_space(space: EtcdSpace) -> None:
    settings = [
        SpaceSettings(partitions=4, copies=1, min_in_sync=1, given=frozenset({"partitions"})),
        SpaceSettings(partitions=8, copies=1, min_in_sync=1, given=frozenset({"partitions"})),
    ]
    nodes = [space.coordinator(item) for item in settings]
    joins = [node.join(Registration(name=name)) for node, name in zip(nodes, "ab", strict=True)]
    answers = await asyncio.gather(*joins, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, ConfigError)]
    assert len(refused) == 1
    assert "hint: it is set when a space is created" in str(refused[0])
    [winner] = [node for node, answer in zip(nodes, answers, strict=True) if answer not in refused]
    space.nodes.append(winner)
    third = await space.node("c")
    assert third.table == winner.table
    assert third.registration.incarnation == 2


async def test_a_name_waits_for_its_older_registration_to_end(space: EtcdSpace) -> None:
    """As on another machine, where nothing tells of the old process but its lease."""
    old, again = space.coordinator(), space.coordinator()
    old._host = "another machine"
    await old.join(Registration(name="a"))
    joining = asyncio.create_task(again.join(Registration(name="a")))
    done, _ = await asyncio.wait([joining], timeout=1.0)
    assert not done
    await old._shut()
    assert (await joining).incarnation == 2
    space.nodes.append(again)
    assert again.registrations == (again.registration,)


@pytest.fixture
def single(tmp_path: Path) -> Iterator[Etcd]:
    with Etcd(tmp_path / "etcd") as etcd:
        yield etcd


def restore(etcd: Etcd, backup: Path) -> None:
    """Put the only member back to a backup, under the cluster's token."""
    [member] = etcd.members
    member.kill()
    shutil.rmtree(member.folder)
    peers = f"http://127.0.0.1:{member.peer_port}"
    etcd.ctl(
        "snapshot", "restore", str(backup),
        "--name", member.name,
        "--data-dir", str(member.folder),
        "--initial-cluster", f"{member.name}={peers}",
        "--initial-advertise-peer-urls", peers,
        "--initial-cluster-token", etcd.token,
    )  # fmt: skip
    etcd.launch(member)
    etcd.wait_healthy()


async def test_an_etcd_that_was_put_back_ends_the_nodes_that_run(
    single: Etcd, tmp_path: Path
) -> None:
    space = EtcdSpace(single)
    node = await space.node("a")
    single.ctl("snapshot", "save", str(tmp_path / "backup"))
    for version in range(1, 9):
        assert (await write_on(node, 0, version)).accepted
    restore(single, tmp_path / "backup")
    assert "was it restored from a backup?" in await ended(node)
    with pytest.raises(ProtocolError, match="restored from a backup"):
        await node.confirm()
    await space.stop()


async def test_a_restored_etcd_is_refused_until_told(single: Etcd, tmp_path: Path) -> None:
    space = EtcdSpace(single)
    first = await space.node("a")
    assert (await write_on(first, 0, 1)).accepted
    single.ctl("snapshot", "save", str(tmp_path / "backup"))
    second = await space.node("b")
    given, term = second.registration.incarnation, await second.campaign(1)
    assert term == ControllerChanged(2, 2)
    await space.stop()
    single.token = "restored"
    restore(single, tmp_path / "backup")
    with pytest.raises(ProtocolError, match=r"restored from a backup\nhint: .*etcd-restored"):
        await space.node("c")
    url = f"etcd://{','.join(space.options.members)}/{space.options.space}"
    command = [sys.executable, "-m", "spacegrid", "etcd-restored", "--coordinator"]
    refused = await asyncio.to_thread(
        subprocess.run, [*command, url + "-none"], capture_output=True, text=True
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "error: " in refused.stderr
    done = await asyncio.to_thread(
        subprocess.run, [*command, url, "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout) == {"restored": url}
    third = await space.node("c")
    assert third.registration.incarnation > given
    assert third.registrations == (third.registration,)
    assert third.table.entries[0] == placed(0, 1)
    assert third.controller.term > term.term
    assert (await third.campaign(third.controller.term)).term > term.term
    await space.stop()


async def test_a_node_remembers_how_far_etcd_was(single: Etcd, tmp_path: Path) -> None:
    """A restore under the same token looks the same but for what a data folder remembers."""
    space = EtcdSpace(single)
    space.data = tmp_path / "data"
    node = await space.node("a")
    single.ctl("snapshot", "save", str(tmp_path / "backup"))
    for version in range(1, 9):
        assert (await write_on(node, 0, version)).accepted
    await until(lambda: f'"revision":{node._joined().seen}' in remembered(space), "the note")
    await space.stop()
    restore(single, tmp_path / "backup")
    with pytest.raises(ProtocolError, match=r"etcd is at revision \d+ and has been at"):
        await space.node("a")
    await asyncio.to_thread(accept_restored, space.options)
    again = await space.node("a")
    assert again.registrations == (again.registration,)
    await space.stop()
    (space.data / "etcd.json").write_text("not json")
    with pytest.raises(ConfigError, match=r"etcd.json is damaged"):
        space.coordinator()


def remembered(space: EtcdSpace) -> str:
    assert space.data is not None
    return (space.data / "etcd.json").read_text()


async def test_a_space_is_removed_only_when_no_node_is_in_it(space: EtcdSpace) -> None:
    node = await space.node("a")
    with pytest.raises(ProtocolError, match="is in use by a"):
        await asyncio.to_thread(remove_space, space.options)
    await node.close()
    assert await asyncio.to_thread(remove_space, space.options)
    assert not await asyncio.to_thread(remove_space, space.options)
    assert (await space.node("a")).registration.incarnation == 1
