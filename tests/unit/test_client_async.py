"""The asyncio client over real frames and a wire that the test controls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from core_cluster import CLUSTER, PARTITIONS, CoreNode, Wire
from spacegrid import _core, errors
from spacegrid.client.asynchronous import AsyncGrid, connect
from spacegrid.transport.base import RouteNode, Routes
from spacegrid.types import Entry, Map


class Stock(msgspec.Struct):
    left: int


@pytest.fixture
def node() -> CoreNode:
    return CoreNode()


@pytest.fixture
def wire(node: CoreNode) -> Wire:
    return Wire(node)


@pytest.fixture
async def grid(wire: Wire) -> AsyncIterator[AsyncGrid]:
    async with AsyncGrid(wire, ("one:1",), timeout=1.0) as grid:
        yield grid


def operations(node: CoreNode) -> list[int]:
    """How many operations each frame had."""
    return [len(_core.decode_request(frame)) for frame in node.frames]


async def all_of(iterator: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in iterator]


# --- what maps do


async def test_a_typed_map_gives_back_what_was_put(grid: AsyncGrid) -> None:
    stock = grid.map("stock", key=str, value=Stock)
    version = await stock.put("tea", Stock(3))
    assert version > 0
    assert await stock.get("tea") == Stock(3)
    assert await stock.get("milk") is None
    assert await stock.get("milk", Stock(0)) == Stock(0)
    assert await stock.get("tea", Stock(0)) == Stock(3)
    assert await stock.get_entry("tea") == Entry(Stock(3), version)
    assert await stock.get_entry("milk") is None
    assert await stock.contains("tea")
    assert not await stock.contains("milk")


async def test_conditions_hold_or_say_what_is_there(grid: AsyncGrid) -> None:
    stock = grid.map("stock", key=str, value=Stock)
    assert await stock.put_if_absent("tea", Stock(1))
    assert not await stock.put_if_absent("tea", Stock(2))
    assert await stock.put("tea", Stock(2), if_absent=True) is False
    entry = await stock.get_entry("tea")
    assert entry is not None
    version = await stock.replace("tea", Stock(5), version=entry.version)
    with pytest.raises(errors.VersionMismatch, match=r"put in map 'stock' \(partition") as caught:
        await stock.replace("tea", Stock(6), version=entry.version)
    assert caught.value.expected_version == entry.version
    assert caught.value.current_version == version
    with pytest.raises(errors.VersionMismatch):
        await stock.delete("tea", version=entry.version)
    assert await stock.delete("tea", version=version)
    assert not await stock.delete("tea")


async def test_counters_count(grid: AsyncGrid) -> None:
    counts = grid.map("counts", value=int)
    assert await counts.incr("home") == 1
    assert await counts.incr("home", -3) == -2
    assert await counts.get("home") == -2
    await grid.map("texts", value=str).put("home", "no number")
    with pytest.raises(errors.WrongType, match="incr in map 'texts'"):
        await grid.map("texts", value=str).incr("home")
    with pytest.raises(errors.TooLarge, match="64-bit"):
        counts.incr("home", 1 << 63)


@pytest.mark.parametrize(
    ("key_type", "keys"),
    [(str, ["a", "b"]), (bytes, [b"a", b"\xff"]), (int, [1, -2]), (tuple[str, int], [("a", 1)])],
)
async def test_keys_of_every_type_come_back(grid: AsyncGrid, key_type: Any, keys: Any) -> None:
    plain: Any = grid.map("plain", key=key_type, value=bytes)
    await plain.put_many({key: b"x" for key in keys})
    assert await plain.get_many(keys) == {key: b"x" for key in keys}
    assert sorted(await all_of(plain.keys())) == sorted(keys)


async def test_many_entries_travel_together_and_whole_maps_are_read_in_pages(
    grid: AsyncGrid,
) -> None:
    stock = grid.map("stock", key=str, value=Stock)
    everything = {f"k{n}": Stock(n) for n in range(3000)}
    await stock.put_many(everything)
    await stock.put_many({})
    assert await stock.get_many(["k2999", "none", "k0"]) == {"k2999": Stock(2999), "k0": Stock(0)}
    assert await stock.get_many([]) == {}
    assert await stock.size() == 3000
    assert dict(await all_of(stock.items())) == everything
    assert sorted(await all_of(stock.keys())) == sorted(everything)
    assert sorted(v.left for v in await all_of(stock.values())) == list(range(3000))
    assert await stock.delete_many(["k1", "k2", "k2", "none"]) == 2
    assert await stock.delete_many([]) == 0
    assert await stock.size() == 2998


async def test_leaving_an_iteration_early_leaves_nothing_behind(grid: AsyncGrid) -> None:
    stock = grid.map("stock", value=int)
    await stock.put_many({f"k{n}": n for n in range(100)})
    items = stock.items()
    async for _ in items:
        break
    await items.aclose()  # type: ignore[attr-defined]
    assert await stock.size() == 100


async def test_an_entry_of_another_codec_is_read_by_its_own(grid: AsyncGrid) -> None:
    await grid.map("mixed", value=bytes).put("raw", b"raw")
    anything = grid.map("mixed", value=dict)
    assert await anything.get("raw") == b"raw"
    await anything.put("typed", {"x": 1})
    assert await anything.get_many(["raw", "typed"]) == {"raw": b"raw", "typed": {"x": 1}}


async def test_stored_bytes_that_are_no_such_type_name_the_type(grid: AsyncGrid) -> None:
    await grid.map("wrong", value=dict).put("k", {"right": 1})
    record = msgspec.defstruct("Record", [("left", int)])
    wrong: Any = grid.map(Map(str, record, name="wrong"))
    with pytest.raises(errors.SerializationError):
        await wrong.get("k")


async def test_another_value_type_for_a_map_is_refused(grid: AsyncGrid) -> None:
    await grid.map("stock", value=Stock).put("tea", Stock(1))
    with pytest.raises(errors.SchemaMismatch, match="stock"):
        await grid.map("stock", value=int).put("tea", 1)


async def test_wrong_keys_and_values_are_refused_before_they_leave(
    grid: AsyncGrid, node: CoreNode
) -> None:
    stock: Any = grid.map("stock", value=Stock)
    for refused, kind in [
        (lambda: stock.get(5), errors.SerializationError),
        (lambda: stock.get(""), errors.TooLarge),
        (lambda: stock.put("k" * 5000, Stock(1)), errors.TooLarge),
        (lambda: stock.put("k", {"left": 1}), errors.SerializationError),
        (lambda: stock.get_many(["k", 5]), errors.SerializationError),
        (lambda: stock.get("k", timeout=0), errors.ConfigError),
        (lambda: stock.put("k", Stock(1), ttl=-1), errors.ConfigError),
        (lambda: stock.put("k", Stock(1), request_id="x"), errors.ConfigError),
        (lambda: grid.map("plain", value=bytes).put("k", bytes((1 << 20) + 1)), errors.TooLarge),
    ]:
        with pytest.raises(kind):
            refused()
    await asyncio.sleep(0)
    assert node.frames == []


# --- batching


async def test_all_operations_of_a_tick_leave_in_one_frame(grid: AsyncGrid, node: CoreNode) -> None:
    stock = grid.map("stock", value=bytes)
    await asyncio.gather(*(stock.put(f"k{n}", b"x") for n in range(64)))
    await asyncio.gather(*(stock.get(f"k{n}") for n in range(64)))
    assert operations(node) == [64, 64]


async def test_a_get_is_queued_when_it_is_called(grid: AsyncGrid, node: CoreNode) -> None:
    future = grid.map("stock", value=bytes).get("k")
    await asyncio.wait([future])
    assert operations(node) == [1]
    assert future.result() is None


async def test_a_cancelled_operation_disturbs_nobody(grid: AsyncGrid) -> None:
    stock = grid.map("stock", value=bytes)
    gone, stays = stock.put("a", b"1"), stock.put("b", b"2")
    gone.cancel()
    assert await stays > 0
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert await stock.get("b") == b"2"


# --- failures


REPEAT = 32


async def test_a_request_whose_answer_was_lost_is_applied_once(
    grid: AsyncGrid, wire: Wire, node: CoreNode
) -> None:
    counts = grid.map("counts", value=int)
    wire.silent = True
    asked = counts.incr("home")
    await node.asked.wait()
    wire.cut()
    wire.silent = False
    assert await asked == 1
    first, again = (_core.decode_request(frame)[0] for frame in node.frames)
    assert again == (*first[:3], REPEAT, *first[4:]), "the same request, and it says so"
    assert await counts.get("home") == 1


async def test_a_deadline_is_unknown_and_resend_makes_it_definite(
    grid: AsyncGrid, wire: Wire
) -> None:
    counts = grid.map("counts", value=int)
    await counts.incr("other")
    wire.silent = True
    with pytest.raises(errors.DeadlineExceeded, match="may have been applied") as caught:
        await counts.incr("home", timeout=0.03)
    error = caught.value
    assert error.maybe_applied
    assert error.retryable
    assert error.request_id is not None
    wire.silent = False
    assert await error.resend(timeout=1) == 1
    assert await counts.get("home") == 1
    with pytest.raises(RuntimeError, match="already sent again"):
        error.resend()


async def test_a_deadline_of_a_read_is_surely_not_applied(grid: AsyncGrid, wire: Wire) -> None:
    wire.silent = True
    with pytest.raises(errors.DeadlineExceeded) as caught:
        await grid.map("stock", value=bytes).get("k", timeout=timedelta(milliseconds=30))
    assert not caught.value.maybe_applied
    with pytest.raises(RuntimeError, match="nothing to send again"):
        caught.value.resend()


async def test_an_unknown_outcome_that_nobody_holds_is_released(
    grid: AsyncGrid, wire: Wire
) -> None:
    counts = grid.map("counts", value=int)
    wire.silent = True
    with contextlib.suppress(errors.DeadlineExceeded):
        await counts.incr("home", timeout=0.02)
    core = grid._session.core
    assert core.open == 1
    wire.silent = False
    while core.open:
        await counts.incr("other")


async def test_one_deadline_bounds_all_that_is_inside(grid: AsyncGrid, wire: Wire) -> None:
    stock = grid.map("stock", value=bytes)
    wire.silent = True
    loop = asyncio.get_running_loop()
    began = loop.time()
    with grid.deadline(0.05):
        first, second = stock.get("a"), stock.get("b", timeout=30)
        with pytest.raises(errors.DeadlineExceeded):
            await first
        with pytest.raises(errors.DeadlineExceeded):
            await second
        with pytest.raises(errors.DeadlineExceeded):
            await stock.get("c")
    assert loop.time() - began < 0.9
    wire.silent = False
    wire.cut()
    assert await stock.get("a") is None


async def test_a_request_id_is_applied_once_by_whoever_sends_it(
    grid: AsyncGrid, wire: Wire
) -> None:
    counts = grid.map("counts", value=int)
    request_id = grid.request_id()
    assert request_id != grid.request_id()
    assert await counts.incr("home", request_id=request_id) == 1
    for _ in range(3):
        await counts.incr("home")
    async with AsyncGrid(wire, ("one:1",)) as other:
        assert await other.map("counts", value=int).incr("home", request_id=request_id) == 1
    assert await counts.get("home") == 4
    with pytest.raises(errors.RequestReused):
        await counts.incr("home", 5, request_id=request_id)


async def test_too_few_copies_are_named_when_the_deadline_is_over() -> None:
    wire = Wire(CoreNode(min_in_sync=2))
    async with AsyncGrid(wire, ("one:1",), timeout=0.1) as grid:
        with pytest.raises(
            errors.NotEnoughCopies, match=r"partition \d.*\n?.*--copies 1"
        ) as caught:
            await grid.map("stock", value=int).put("tea", 1)
    assert caught.value.retryable
    assert not caught.value.maybe_applied


async def test_lost_is_said_and_names_the_partition() -> None:
    node = CoreNode()
    table = [(p, 2, 9, 4, 0, [], [], [], [], 0) for p in range(PARTITIONS)]
    node.core.apply_table(9, table, 0)
    async with AsyncGrid(Wire(node), ("one:1",), timeout=0.5) as grid:
        stock = grid.map("stock", value=int)
        with pytest.raises(errors.PartitionLost, match=r"\(partition \d\)") as caught:
            await stock.get("tea")
        assert caught.value.partition is not None
        with pytest.raises(errors.PartitionLost):
            await all_of(stock.items())
        with pytest.raises(errors.BatchError) as batch:
            await stock.get_many(["tea", "milk"])
        assert set(batch.value.failures) == {"tea", "milk"}


async def test_new_routes_are_found_when_ownership_moves(wire: Wire, grid: AsyncGrid) -> None:
    stock = grid.map("stock", value=bytes)
    await stock.put("k", b"old")
    two = CoreNode(copy=2, address="two:1")
    wire.nodes["two:1"] = two
    wire.nodes["one:1"].serve(epoch=2, primary=2)
    wire.table = Routes(50, (RouteNode("two", "two:1", 2),), [1] * PARTITIONS)
    await stock.put("k", b"new")
    assert await stock.get("k") == b"new"
    assert len(two.frames) > 0


async def test_seeds_are_asked_when_every_known_node_is_gone(wire: Wire, grid: AsyncGrid) -> None:
    stock = grid.map("stock", value=bytes)
    await stock.put("k", b"x")
    elsewhere = CoreNode(copy=3, address="elsewhere:1")
    elsewhere.revision = 99
    wire.nodes = {"seed:1": elsewhere, "elsewhere:1": elsewhere}
    grid._session._seeds = ("gone:1", "seed:1")
    wire.cut()
    assert await stock.get("k") is None, "another cluster's node answered"
    assert "seed:1" in wire.asked


# --- life


async def test_a_grid_that_is_not_open_or_closed_says_so(wire: Wire) -> None:
    grid = AsyncGrid(wire, ("one:1",))
    with pytest.raises(errors.GridClosed, match="not open yet"):
        grid.map("stock")
    assert await grid is grid
    assert grid.cluster_id == CLUSTER
    assert grid.partition_count == PARTITIONS
    stock = grid.map("stock", value=bytes)
    await grid.close()
    assert wire.closed
    for use in (lambda: stock.get("k"), lambda: stock.put("k", b""), grid.request_id):
        with pytest.raises(errors.GridClosed, match="is closed"):
            use()
    await grid.close()


async def test_closing_waits_for_what_is_open(wire: Wire) -> None:
    grid = await AsyncGrid(wire, ("one:1",))
    asked = grid.map("stock", value=bytes).put("k", b"x")
    await grid.close()
    assert asked.done()
    assert await asked > 0


async def test_what_is_open_when_the_time_is_over_says_that_it_may_be_applied(wire: Wire) -> None:
    grid = await AsyncGrid(wire, ("one:1",))
    await grid.map("stock", value=bytes).put("k", b"x")
    wire.silent = True
    asked = grid.map("stock", value=bytes).put("k", b"y")
    await grid.close(timeout=0.05)
    with pytest.raises(errors.GridClosed, match="may have been applied") as caught:
        await asked
    assert caught.value.maybe_applied


async def test_no_node_at_all_names_the_addresses() -> None:
    grid = AsyncGrid(Wire(), ("one:1", "two:2"), timeout=0.1)
    with pytest.raises(errors.ConnectionFailed, match="one:1") as caught:
        await grid
    assert caught.value.addresses == ("one:1", "two:2")


async def test_a_second_loop_is_refused(grid: AsyncGrid) -> None:
    stock = grid.map("stock", value=bytes)

    async def elsewhere() -> None:
        await stock.get("k")

    with pytest.raises(RuntimeError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(elsewhere()))


@pytest.mark.parametrize(
    "addresses", [(), ("",), ("localhost",), ("host:port",), ("host:70000",), ("a:1,b",)]
)
def test_malformed_addresses_are_refused(addresses: tuple[str, ...]) -> None:
    with pytest.raises(errors.ConfigError):
        connect(*addresses)


def test_addresses_are_read_in_every_form() -> None:
    grid = connect("grid://a:1,b:2", "c:3", "a:1", timeout=timedelta(seconds=2))
    assert grid._session._seeds == ("a:1", "b:2", "c:3")
    assert grid._session.timeout_ms == 2000
    with pytest.raises(errors.ConfigError):
        connect("a:1", timeout=0)
    with pytest.raises(errors.ConfigError):
        connect("a:1", cluster_id="zz")
