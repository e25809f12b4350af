"""Stale reads at the faces of the client: exact types, options that go together, and their age."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
import spacegrid
from core_cluster import PARTITIONS, BlockingWire, CoreNode, Wire
from spacegrid import Stale, _core, errors
from spacegrid.client.asynchronous import AsyncGrid
from spacegrid.client.blocking import Grid
from spacegrid.machine.leases import HELD_MS
from spacegrid.transport.base import RouteNode, Routes

OK, MISS, TOO_STALE, STREAM = 0, 1, 22, 1 << 32 | 9


class Stock(msgspec.Struct):
    left: int


@pytest.fixture
def blocking() -> Iterator[Grid]:
    with Grid(BlockingWire(CoreNode()), ("one:1",), timeout=1.0) as grid:
        yield grid


def test_a_stale_read_has_the_value_and_says_how_old_it_may_be(blocking: Grid) -> None:
    stock = blocking.map("stock", value=Stock)
    version = stock.put("tea", Stock(3))
    seen: Stale[Stock] = stock.get("tea", read="stale")
    assert seen == Stale(Stock(3), seen.age_ms, version)
    assert 0 <= seen.age_ms < 10_000
    entry: Stale[Stock] = stock.get_entry("tea", read="stale", max_age=5)
    assert (entry.value, entry.version) == (Stock(3), version)
    with pytest.raises(errors.ConfigError, match="max_age goes with"):
        stock.get_entry("tea", max_age=5)  # type: ignore[call-overload]
    missing = stock.get("milk", read="stale")
    assert missing == Stale(None, missing.age_ms, 0)
    many: dict[str, Stale[Stock]] = stock.get_many(["tea", "milk"], read="stale")
    assert {key: one.value for key, one in many.items()} == {"tea": Stock(3), "milk": None}
    assert stock.get_many([], read="stale") == {}


async def test_the_asyncio_face_answers_the_same() -> None:
    async with AsyncGrid(Wire(CoreNode()), ("one:1",)) as grid:
        stock = grid.map("stock", value=Stock)
        version = await stock.put("tea", Stock(3))
        seen: Stale[Stock] = await stock.get("tea", read="stale", max_age=5)
        assert seen == Stale(Stock(3), seen.age_ms, version)
        assert (await stock.get("milk", read="stale")).value is None
        entry: Stale[Stock] = await stock.get_entry("tea", read="stale", max_age=5)
        assert (entry.value, entry.version) == (Stock(3), version)
        with pytest.raises(errors.ConfigError, match="max_age goes with"):
            stock.get_entry("tea", max_age=5)  # type: ignore[call-overload]
        many = await stock.get_many(["milk", "tea"], read="stale")
        assert [one.value for one in many.values()] == [None, Stock(3)]
        assert await stock.get_many([], read="stale") == {}
        assert await stock.get("tea", read="primary") == Stock(3)


def test_an_embedded_grid_answers_stale_reads_too() -> None:
    with spacegrid.open_sync() as grid:
        raw = grid.map("raw", key=bytes, value=bytes)
        raw.put(b"k", b"v")
        assert raw.get(b"k", read="stale").value == b"v"
        counts = grid.map("counts", value=int)
        counts.put("home", 4)
        assert counts.get("home", read="stale", max_age=1).value == 4
        assert counts.get("home") == 4


def test_options_that_do_not_go_together_are_refused(blocking: Grid) -> None:
    stock = blocking.map("stock", value=Stock)
    for options in (
        {"read": "nearest"},
        {"max_age": 3},
        {"read": "stale", "default": Stock(0)},
        {"read": "stale", "max_age": 0},
    ):
        with pytest.raises(errors.ConfigError):
            stock.get("tea", **options)
    with pytest.raises(errors.ConfigError):
        stock.get_many(["tea"], max_age=3)


def stale(node: _core.Node, at_ms: int, age_ms_max: int) -> tuple[int, int]:
    """Status and age of a stale read that leaves at that time."""
    client = _core.Client(STREAM, PARTITIONS)
    client.set_routes(1, [0] * PARTITIONS)
    client.get_stale(client.map("m"), b"k", None, 1000, age_ms_max)
    ((_slot, frame),) = client.take_frames(0)
    node.on_client_frame(7, frame, 0)
    effects = node.take_effects(boot_ms=at_ms)
    assert effects is not None
    ((_connection, reply),) = effects.client_frames
    completions = client.on_frame(0, reply, 0)
    if not completions:
        # Refused, to be asked of another copy: the reason is told at the deadline.
        ((_, _, _, reason, *_),) = client.expire(5_000)
        return reason, -1
    ((_, status, value, *_),) = completions
    return status, int.from_bytes(value[:8], "little")


def test_the_age_counts_from_before_the_request_for_the_lease() -> None:
    node = CoreNode().core
    node.require_lease()
    assert node.grant_lease(1, 10_000 + HELD_MS, 10_050)
    node.take_effects(boot_ms=10_060)
    node.tick(0)
    assert stale(node, 10_060, 60) == (MISS, 60)
    assert stale(node, 10_070, 69) == (TOO_STALE, -1)
    assert stale(node, 20_000, 10_000) == (MISS, 10_000)


async def test_too_stale_is_the_error_when_no_copy_is_recent_enough() -> None:
    node = CoreNode()
    node.core.require_lease()
    wire = Wire(node)
    async with AsyncGrid(wire, ("one:1",)) as grid:
        with pytest.raises(errors.TooStale, match="max_age"):
            await grid.map("m", value=bytes).get("k", read="stale", max_age=0.01, timeout=0.1)


async def test_stale_reads_go_to_the_backup_that_the_routes_name() -> None:
    one, two = CoreNode(), CoreNode(copy=2, address="two:1")
    two.core.take_effects()  # as a node does all the time: it reads the clock
    wire = Wire(one, two)
    nodes = (RouteNode("one", "one:1", 1), RouteNode("two", "two:1", 2))
    wire.table = Routes(50, nodes, [1] * PARTITIONS, [[2]] * PARTITIONS)
    async with AsyncGrid(wire, ("one:1",)) as grid:
        grid._session._apply_routes(wire.table)
        # The second node holds the same partitions with nothing in them.
        await grid.map("m", value=bytes).put("k", b"v")
        assert (await grid.map("m", value=bytes).get("k", read="stale")).value is None
        assert len(two.frames) == 1
