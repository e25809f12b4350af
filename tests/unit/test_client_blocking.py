"""The blocking client over real frames, and the parity of both faces."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from core_cluster import BlockingWire, CoreNode
from spacegrid import errors
from spacegrid.client.async_map import AsyncMap
from spacegrid.client.asynchronous import AsyncCalls, AsyncGrid
from spacegrid.client.blocking import Calls, Grid, connect_sync
from spacegrid.client.blocking_map import BlockingMap
from spacegrid.types import Entry


class Stock(msgspec.Struct):
    left: int


@pytest.fixture
def wire() -> BlockingWire:
    return BlockingWire(CoreNode())


@pytest.fixture
def grid(wire: BlockingWire) -> Iterator[Grid]:
    with Grid(wire, ("one:1",), timeout=1.0) as grid:
        yield grid


def test_a_map_feels_like_a_dictionary(grid: Grid) -> None:
    stock = grid.map("stock", key=str, value=Stock)
    stock["tea"] = Stock(3)
    assert stock["tea"] == Stock(3)
    assert "tea" in stock
    assert "milk" not in stock
    assert stock.get("milk") is None
    assert stock.get("milk", Stock(0)) == Stock(0)
    assert list(stock) == ["tea"]
    del stock["tea"]
    with pytest.raises(KeyError):
        del stock["tea"]
    with pytest.raises(KeyError):
        _ = stock["tea"]
    with pytest.raises(TypeError):
        len(stock)  # type: ignore[arg-type]


def test_conditions_hold_or_say_what_is_there(grid: Grid) -> None:
    stock = grid.map("stock", key=str, value=Stock)
    assert stock.put_if_absent("tea", Stock(1)) is True
    assert stock.put("tea", Stock(2), if_absent=True) is False
    entry = stock.get_entry("tea")
    assert entry == Entry(Stock(1), entry.version if entry else 0)
    assert entry is not None
    version = stock.replace("tea", Stock(5), version=entry.version)
    with pytest.raises(errors.VersionMismatch) as caught:
        stock.replace("tea", Stock(6), version=entry.version)
    assert caught.value.current_version == version
    with pytest.raises(errors.VersionMismatch):
        stock.delete("tea", version=1)
    assert stock.delete("tea", version=version)


def test_counters_count(grid: Grid) -> None:
    counts = grid.map("counts", value=int)
    assert counts.incr("home", 2) == 2
    assert counts["home"] == 2
    with pytest.raises(errors.SerializationError):
        counts.incr("home", 1.5)  # type: ignore[arg-type]


def test_many_entries_and_whole_maps(grid: Grid) -> None:
    stock = grid.map("stock", key=int, value=Stock)
    everything = {n: Stock(n) for n in range(3000)}
    stock.put_many(everything)
    assert stock.get_many([1, 5000, 2]) == {1: Stock(1), 2: Stock(2)}
    assert stock.size() == 3000
    assert dict(stock.items()) == everything
    assert sorted(stock.keys()) == list(range(3000))
    assert sorted(v.left for v in stock.values()) == list(range(3000))
    assert stock.delete_many([1, 2, 2, 5000]) == 2


def test_an_entry_of_another_codec_is_read_by_its_own(grid: Grid) -> None:
    grid.map("mixed", value=bytes).put("raw", b"raw")
    anything = grid.map("mixed", value=dict)
    anything.put("typed", {"x": 1})
    assert anything.get_many(["raw", "typed"]) == {"raw": b"raw", "typed": {"x": 1}}


def test_a_request_whose_answer_was_lost_is_applied_once(wire: BlockingWire, grid: Grid) -> None:
    counts = grid.map("counts", value=int)
    wire.lose_replies = 2
    assert counts.incr("home") == 1
    assert counts["home"] == 1


def test_a_deadline_is_unknown_and_resend_makes_it_definite(wire: BlockingWire, grid: Grid) -> None:
    counts = grid.map("counts", value=int)
    wire.lose_replies = 1 << 30
    with pytest.raises(errors.DeadlineExceeded) as caught:
        counts.incr("home", timeout=0.05)
    assert caught.value.maybe_applied
    wire.lose_replies = 0
    assert caught.value.resend() == 1
    assert counts["home"] == 1


def test_a_request_id_is_applied_once(grid: Grid) -> None:
    counts = grid.map("counts", value=int)
    request_id = grid.request_id()
    assert [counts.incr("home", request_id=request_id) for _ in range(3)] == [1, 1, 1]


def test_one_deadline_bounds_all_that_is_inside(wire: BlockingWire, grid: Grid) -> None:
    wire.lose_replies = 1 << 30
    with grid.deadline(0.05):
        for _ in range(3):
            with pytest.raises(errors.DeadlineExceeded):
                grid.map("stock", value=bytes).get("a", timeout=30)
    wire.lose_replies = 0


def test_lost_routes_are_asked_for_again(wire: BlockingWire, grid: Grid) -> None:
    stock = grid.map("stock", value=bytes)
    two = CoreNode(copy=2, address="two:1")
    two.revision = 50
    wire.nodes = {"one:1": two, "two:1": two}
    stock.put("k", b"x")
    assert stock.get("k") == b"x"


def test_threads_share_a_grid(grid: Grid) -> None:
    counts = grid.map("counts", value=int)

    def work() -> None:
        for _ in range(50):
            counts.incr("home")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts["home"] == 200


def test_a_closed_grid_says_so(wire: BlockingWire) -> None:
    grid = Grid(wire, ("one:1",))
    stock = grid.map("stock", value=bytes)
    grid.close()
    grid.close()
    assert wire.closed
    with pytest.raises(errors.GridClosed):
        stock.get("k")
    with pytest.raises(errors.GridClosed):
        grid.map("other")


def test_no_node_at_all_names_the_addresses() -> None:
    with pytest.raises(errors.ConnectionFailed, match="spacegrid up"):
        Grid(BlockingWire(), ("one:1",), timeout=0.1)
    with pytest.raises(errors.ConfigError):
        connect_sync()


def test_a_grid_is_refused_in_a_forked_process(grid: Grid) -> None:
    stock = grid.map("stock", value=bytes)
    child = os.fork()
    if child == 0:  # in the child nothing but the exit code may come out
        code = 1
        try:
            stock.get("k")
        except errors.ForkedProcess:
            code = 0
        finally:
            os._exit(code)
    _pid, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert stock.get("k") is None, "the parent goes on"


# --- parity


def public(face: type) -> dict[str, Any]:
    return {name: value for name, value in vars(face).items() if not name.startswith("_")}


@pytest.mark.parametrize(
    ("asynchronous", "blocking"),
    [(AsyncGrid, Grid), (AsyncMap, BlockingMap), (AsyncCalls, Calls)],
    ids=["grid", "map", "calls"],
)
def test_both_faces_have_the_same_methods(asynchronous: type, blocking: type) -> None:
    ours, theirs = public(asynchronous), public(blocking)
    ours.pop("spec", None)
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        if callable(value):
            one = inspect.signature(value).parameters
            other = inspect.signature(theirs[name]).parameters
            assert list(one) == list(other), name
            for parameter, described in one.items():
                assert described.default == other[parameter].default, (name, parameter)
                assert described.kind == other[parameter].kind, (name, parameter)
        assert value.__doc__
        assert theirs[name].__doc__
