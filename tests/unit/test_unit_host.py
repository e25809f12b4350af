"""The unit host on a node under the test's control: turns, calls, failures, ends.

Over 500 lines in one room: all of it drives the same small grid of fakes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from fake_turns import FakeNode, FakeTurn
from spacegrid.errors import CallCycle, ConfigError, HandlerError
from spacegrid.types import Map
from spacegrid.unit import OutgoingCall, TurnTable, Unit, UnitHost, handler
from spacegrid.unit import host as host_module
from spacegrid.wire.status import TIMEOUT, Status, pack_handler_error


class Failure(msgspec.Struct):
    """The value of a HANDLER_ERROR reply."""

    type: str
    message: str
    traceback: str


class Item(msgspec.Struct):
    left: int
    tags: list[str] = []


class Stock(Unit):
    levels = Map(str, int)

    @handler(route_by="sku")
    async def move(self, sku: str, quantity: int) -> int:
        return self.levels.incr(sku, quantity)


gates: dict[str, asyncio.Event] = {}
arrived: list[Callable[[], None]] = []


async def gate(name: str) -> None:
    """Suspend the handler until the test opens the gate."""
    opened = gates.setdefault(name, asyncio.Event())
    for tell in arrived:
        tell()
    await opened.wait()


class Shop(Unit):
    items = Map(str, Item)
    orders = Map(tuple[str, str], bytes)
    loose = Map(str)

    @handler(route_by="sku")
    async def buy(self, sku: str, customer: str) -> bool:
        item = self.items.get(sku)
        if item is None or not item.left:
            return False
        item.left -= 1
        self.items.put(sku, item)
        self.orders[sku, customer] = b"1"
        return True

    @handler(route_by="sku")
    def fill(self, sku: str, left: int) -> None:
        self.items[sku] = Item(left)

    @handler(route_by="sku")
    async def slow_fill(self, sku: str, left: int) -> int:
        before = self.items.get(sku)
        await gate(sku)
        self.items[sku] = Item(left)
        return before.left if before else -1

    @handler(route_by="sku")
    def fail(self, sku: str, message: str) -> None:
        self.items[sku] = Item(99)
        raise ValueError(message)

    @handler(route_by="sku")
    def maps(self, sku: str) -> list[str]:
        said = []
        items = self.items
        assert isinstance(items, TurnTable)
        items.put(sku, Item(3), ttl=60)
        copy = items[sku]
        copy.tags.append("changed")
        said.append(f"fresh {items[sku].tags}")
        entry = items.get_entry(sku)
        assert entry is not None
        said.append(f"version {entry.version}")
        said.append(f"absent {items.put_if_absent(sku, Item(0))}")
        said.append(f"in {sku in items} {items.contains(sku)}")
        said.append(f"gone {items.delete(sku)} {items.delete(sku)} {items.get(sku, 'none')}")
        self.loose[sku] = {"a": 1}
        said.append(f"loose {self.loose[sku]}")
        for name, act in (
            ("get", lambda: items["other"]),
            ("put", lambda: items.put("other", Item(1))),
            ("delete", lambda: items.delete("other")),
            ("type", lambda: items.put(sku, {"left": 1})),  # type: ignore[arg-type]
            ("key", lambda: items.get(3)),  # type: ignore[arg-type]
            ("incr", lambda: self.loose.incr(sku)),
            ("missing", lambda: items[sku]),
            ("del", lambda: items.__delitem__(sku)),
            ("ttl", lambda: items.put(sku, Item(1), ttl=-1)),
            ("assign", lambda: setattr(self, "counter", 1)),
            ("delattr", lambda: delattr(self, "started_with")),
        ):
            try:
                act()
            except Exception as error:
                said.append(f"{name} {type(error).__name__}: {error}")
        return said

    async def on_start(self) -> None:
        self.started_with = "a table"

    async def on_stop(self) -> None:
        self.started_with = ""

    @handler(route_by="sku")
    async def move_all(self, sku: str, to: list[str]) -> list[int]:
        return await asyncio.gather(*(self.call(Stock.move, one, 1) for one in to))

    @handler(route_by="sku")
    async def move_after_read(self, sku: str) -> int:
        self.items.get(sku)
        return await self.call(Stock.move, "cup", 1)

    @handler(route_by="sku")
    async def move_twice(self, sku: str) -> int:
        return await self.call(Stock.move, "a", 1) + await self.call(Stock.move, "b", 1)

    @handler(route_by="sku")
    async def forget(self, sku: str) -> None:
        self.call(Stock.move, "cup", 1)

    @handler(route_by="sku")
    async def hurried(self, sku: str) -> str:
        try:
            async with asyncio.timeout(0):
                await gate("never")
        except TimeoutError:
            return "timed out"
        return "done"

    @handler(route_by="sku")
    async def grouped(self, sku: str) -> int:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.call_one(n)) for n in range(3)]
        return sum(task.result() for task in tasks)

    async def call_one(self, number: int) -> int:
        return await self.call(Stock.move, f"s{number}", number)

    @handler(route_by="sku")
    async def leak(self, sku: str) -> None:
        leaked.append(self.items)

    @handler(route_by="sku")
    async def catch(self, sku: str) -> str:
        try:
            await self.call(Stock.move, "cup", 1)
        except HandlerError as error:
            return f"{error.error_type} {error.remote_traceback}"
        return ""


leaked: list[Any] = []


class Bed:
    """A host, its fake node, and what it did."""

    def __init__(self, **options: Any) -> None:
        self.node = FakeNode()
        self.batches: list[list[OutgoingCall]] = []
        self.wakes = 0
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self.host = UnitHost(
            self.node,  # type: ignore[arg-type]
            [Shop, Stock],
            self._submit,
            self._wake,
            **options,
        )
        arrived[:] = [self._wake]
        self.node.on_ticket = self._wake
        gates.clear()
        self.host.start()

    def _submit(self, calls: list[OutgoingCall]) -> None:
        self.batches.append(calls)
        self._loop.call_soon_threadsafe(self._changed.set)

    def _wake(self) -> None:
        self.wakes += 1
        self._loop.call_soon_threadsafe(self._changed.set)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def run(self, *turns: FakeTurn) -> None:
        self.host.run(self.node.take(*turns))
        await self.until(lambda: all(turn.over for turn in turns))

    async def open_gate(self, name: str) -> None:
        loop = self.host._loop
        assert loop is not None
        opened = gates.setdefault(name, asyncio.Event())
        loop.call_soon_threadsafe(opened.set)

    def suspended(self, handler: str) -> float:
        return self.host.status()[handler]["suspended"]


@pytest.fixture
async def bed() -> AsyncIterator[Bed]:
    leaked.clear()
    made = Bed()
    yield made
    await asyncio.to_thread(made.host.stop, 0.0)
    assert not [t for t in threading.enumerate() if t.name == "spacegrid-units"]


def failure(turn: FakeTurn) -> Failure:
    return msgspec.msgpack.decode(turn.value, type=Failure)


async def test_a_turn_is_one_record_and_a_batch_is_one_wake(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "SLICE_NS", 10**12)
    await bed.run(bed.node.request(Shop.fill, "tea", 2))
    buys = [bed.node.request(Shop.buy, "tea", f"c{n}") for n in range(3)]
    wakes = bed.wakes
    await bed.run(*buys)
    assert [turn.answer for turn in buys] == [True, True, False]
    assert [len(record) for record in bed.node.records] == [1, 2, 2]
    assert bed.wakes == wakes + 1
    assert bed.host.status()["Shop.buy"]["runs"] == 3


async def test_a_turn_that_raises_writes_nothing_and_says_what(
    bed: Bed, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (bed.node.request(Shop.fail, "tea", "x" * 9000) for _ in range(2))
    with caplog.at_level(logging.WARNING, "spacegrid.unit"):
        await bed.run(first, second)
    assert bed.node.records == []
    assert first.status == Status.HANDLER_ERROR
    assert failure(first).type == "ValueError"
    assert len(failure(first).message) == 4096
    assert "in fail" in failure(first).traceback
    assert "runner.py" not in failure(first).traceback
    assert len(first.value) < 24_000
    assert len(caplog.records) == 1
    assert bed.host.status()["Shop.fail"]["failures"] == 2


async def test_one_turn_at_a_time_per_routing_key_while_others_go_on(bed: Bed) -> None:
    tea = bed.node.request(Shop.slow_fill, "tea", 5)
    tea_next = bed.node.request(Shop.slow_fill, "tea", 6)
    cup = bed.node.request(Shop.fill, "cup", 1)
    bed.host.run(bed.node.take(tea, tea_next, cup))
    await bed.until(lambda: cup.over)
    assert bed.suspended("Shop.slow_fill") == 1
    assert not tea.over
    await bed.open_gate("tea")
    await bed.until(lambda: tea_next.over)
    assert (tea.answer, tea_next.answer) == (-1, 5)


async def test_maps_inside_a_turn(bed: Bed) -> None:
    turn = bed.node.request(Shop.maps, "tea")
    await bed.run(turn)
    said = turn.answer
    assert said[:6] == [
        "fresh []",
        "version 0",
        "absent False",
        "in True True",
        "gone True False none",
        "loose {'a': 1}",
    ]
    told = dict(line.split(" ", 1) for line in said[6:])
    for name in ("get", "put", "delete"):
        assert told[name].startswith("WrongRoutingKey: map 'items', key 'other' belongs to ")
        assert "'other', this turn to 'tea'" in told[name]
    assert told["type"].startswith("SerializationError: value is {'left': 1}")
    assert told["key"].startswith("SerializationError: key is 3")
    assert told["incr"].startswith("WrongType: map 'loose', key 'tea': the entry is a dict")
    assert told["missing"].startswith("KeyError")
    assert told["del"].startswith("KeyError")
    assert told["ttl"].startswith("TooLarge: ttl is -1")
    assert told["assign"].startswith("AttributeError: Shop.counter can't be assigned")
    assert told["delattr"].startswith("AttributeError: Shop.started_with can't be assigned")


async def test_a_map_kept_beyond_its_turn_is_dead(bed: Bed) -> None:
    await bed.run(bed.node.request(Shop.leak, "tea"))
    with pytest.raises(RuntimeError, match="its turn is over"):
        leaked[0].get("tea")


async def test_bad_arguments_and_unknown_handlers_are_answered(bed: Bed) -> None:
    bad = FakeTurn(bed.node, "Shop.buy", b"tea", b"\x81\xa3sku\x05", (1, 1, b"", 1))
    unknown = FakeTurn(bed.node, "Shop.none", b"tea", b"\x80", (1, 2, b"", 1))
    await bed.run(bad, unknown)
    assert (bad.status, unknown.status) == (Status.INVALID, Status.NO_SUCH_HANDLER)
    assert b"`$.sku`" in bad.value
    assert b"'Shop.none'" in unknown.value


async def test_calls_made_together_travel_together_with_tokens_of_their_own(bed: Bed) -> None:
    turn = bed.node.request(Shop.move_all, "tea", ["a", "b", "c"])
    bed.host.run(bed.node.take(turn))
    await bed.until(lambda: bool(bed.batches))
    [calls] = bed.batches
    stream, number, path, lowest = turn.token
    assert path == b""
    assert [call.token for call in calls] == [
        (stream, number, n.to_bytes(2, "little"), lowest) for n in range(3)
    ]
    assert [call.routing_key for call in calls] == [b"a", b"b", b"c"]
    assert {call.name for call in calls} == {"Stock.move"}
    assert calls[0].chain == [b"Shop\0tea"]
    assert calls[0].timeout_ms == 5000
    bed.host.calls_done([(call, 0, msgspec.msgpack.encode(n)) for n, call in enumerate(calls)])
    await bed.until(lambda: turn.over)
    assert turn.answer == [0, 1, 2]
    assert len(bed.batches) == 1


async def test_turns_of_one_batch_send_their_calls_as_one(bed: Bed) -> None:
    turns = [bed.node.request(Shop.move_all, f"k{n}", ["a"]) for n in range(5)]
    bed.host.run(bed.node.take(*turns))
    await bed.until(lambda: bool(bed.batches))
    assert [len(batch) for batch in bed.batches] == [5]


async def test_a_turn_run_again_repeats_its_calls_under_the_same_tokens(bed: Bed) -> None:
    first = bed.node.request(Shop.move_all, "tea", ["a", "b"])
    again = FakeTurn(bed.node, first.handler, b"tea", first.arguments, first.token)
    for turn in (first, again):
        bed.host.run(bed.node.take(turn))
        await bed.until(lambda turn=turn: len(bed.batches) > (turn is again))  # type: ignore[misc]
        for call in bed.batches[-1]:
            call.on_done(0, b"\x01")
        await bed.until(lambda turn=turn: turn.over)  # type: ignore[misc]
    assert [(c.token, c.arguments) for c in bed.batches[0]] == [
        (c.token, c.arguments) for c in bed.batches[1]
    ]


async def test_calls_in_a_row_are_numbered_in_their_order(bed: Bed) -> None:
    turn = bed.node.request(Shop.move_twice, "tea")
    turn.token = (1, 9, b"\x05\0", 4)
    turn.chain = [b"Shop\0outer"]
    bed.host.run(bed.node.take(turn))
    for count in (1, 2):
        await bed.until(lambda count=count: len(bed.batches) == count)  # type: ignore[misc]
        bed.batches[-1][0].on_done(0, b"\x02")
    await bed.until(lambda: turn.over)
    assert turn.answer == 4
    assert [batch[0].token for batch in bed.batches] == [
        (1, 9, b"\x05\0\0\0", 4),
        (1, 9, b"\x05\0\1\0", 4),
    ]
    assert bed.batches[0][0].chain == [b"Shop\0outer", b"Shop\0tea"]


async def test_a_call_leaves_only_when_what_the_turn_has_read_is_committed(bed: Bed) -> None:
    bed.node.commit_at_once = False
    await bed.run(bed.node.request(Shop.fill, "tea", 1))
    turn = bed.node.request(Shop.move_after_read, "tea")
    free = bed.node.request(Shop.move_after_read, "pot")
    bed.host.run(bed.node.take(turn, free))
    await bed.until(lambda: bool(bed.batches))
    assert [call.run.turn for call in bed.batches[0]] == [free]
    [(sequence, ticket)] = bed.node.tickets
    bed.node.committed = sequence
    bed.host.settled([ticket])
    await bed.until(lambda: len(bed.batches) == 2)
    bed.batches[1][0].on_done(0, b"\x07")
    await bed.until(lambda: turn.over)
    assert turn.answer == 7


async def test_a_turn_whose_reads_were_cut_is_void(bed: Bed) -> None:
    bed.node.commit_at_once = False
    await bed.run(bed.node.request(Shop.fill, "tea", 1))
    turn = bed.node.request(Shop.move_after_read, "tea")
    bed.host.run(bed.node.take(turn))
    await bed.until(lambda: bool(bed.node.tickets))
    bed.host.settled([-bed.node.tickets[0][1]])
    await bed.until(lambda: turn.over)
    assert turn.status == Status.UNKNOWN
    assert bed.batches == []
    assert bed.suspended("Shop.move_after_read") == 0


async def test_a_call_back_into_the_chain_is_a_cycle(bed: Bed) -> None:
    turn = bed.node.request(Shop.move_all, "tea", ["tea"])
    outer = bed.node.request(Shop.move_all, "cup", ["pot"])
    outer.chain = [b"Shop\0pot"]
    await bed.run(turn, outer)
    assert (turn.status, outer.status) == (Status.CALL_CYCLE, Status.CALL_CYCLE)
    assert b"Shop(tea) -> Stock(tea)" in turn.value
    assert b"Shop(pot) -> Shop(cup) -> Stock(pot)" in outer.value
    assert bed.batches == []
    assert CallCycle("x", chain=["a"]).chain == ("a",)


async def test_a_failed_call_raises_its_own_error_inside_the_handler(bed: Bed) -> None:
    turn = bed.node.request(Shop.catch, "tea")
    bed.host.run(bed.node.take(turn))
    await bed.until(lambda: bool(bed.batches))
    told = pack_handler_error("KeyError", "no", "somewhere")
    bed.batches[0][0].on_done(Status.HANDLER_ERROR, told)
    await bed.until(lambda: turn.over)
    assert turn.answer == "KeyError somewhere"


@pytest.mark.parametrize(
    ("answered", "becomes"),
    [
        (Status.UNKNOWN, Status.UNKNOWN),
        (TIMEOUT, Status.UNKNOWN),
        (Status.NOT_PRIMARY, Status.UNKNOWN),
        (Status.BACKPRESSURE, Status.UNKNOWN),
        (Status.LOST, Status.HANDLER_ERROR),
        (Status.NO_SUCH_HANDLER, Status.HANDLER_ERROR),
        (Status.HANDLER_ERROR, Status.HANDLER_ERROR),
        (77, Status.HANDLER_ERROR),
    ],
)
async def test_an_unknown_call_makes_the_turn_unknown_and_a_definite_one_fails_it(
    bed: Bed, answered: int, becomes: int
) -> None:
    turn = bed.node.request(Shop.move_all, "tea", ["a"])
    bed.host.run(bed.node.take(turn))
    await bed.until(lambda: bool(bed.batches))
    bed.batches[0][0].on_done(answered, b"\x05\0\0\0")
    await bed.until(lambda: turn.over)
    assert turn.status == becomes


async def test_a_call_that_is_not_awaited_fails_its_turn(bed: Bed) -> None:
    turn = bed.node.request(Shop.forget, "tea")
    await bed.run(turn)
    assert "returned before its call of Stock.move was answered" in failure(turn).message
    bed.host.calls_done([(call, 0, b"\x01") for batch in bed.batches for call in batch])


async def test_timeouts_and_task_groups_work_from_the_first_step(bed: Bed) -> None:
    hurried, grouped = bed.node.request(Shop.hurried, "a"), bed.node.request(Shop.grouped, "b")
    bed.host.run(bed.node.take(hurried, grouped))
    await bed.until(lambda: bool(bed.batches))
    assert len(bed.batches[0]) == 3
    for number, call in enumerate(bed.batches[0]):
        call.on_done(0, bytes([number]))
    await bed.until(lambda: hurried.over and grouped.over)
    assert (hurried.answer, grouped.answer) == ("timed out", 3)


async def test_a_suspended_handler_is_ended_after_its_time(bed: Bed) -> None:
    limited = Bed(turn_timeout_s=0.02)
    try:
        turn = limited.node.request(Shop.slow_fill, "tea", 5)
        after = limited.node.request(Shop.fill, "tea", 1)
        await limited.run(turn, after)
        assert "Shop.slow_fill timed out: not done after 0.02 s" in failure(turn).message
        assert (after.status, len(limited.node.records)) == (0, 1)
        assert limited.suspended("Shop.slow_fill") == 0
    finally:
        await asyncio.to_thread(limited.host.stop)


async def test_stop_waits_for_suspended_turns_and_refuses_new_ones() -> None:
    bed = Bed()
    turn = bed.node.request(Shop.slow_fill, "tea", 5)
    bed.host.run(bed.node.take(turn))
    await bed.until(lambda: "tea" in gates)
    stopping = asyncio.get_running_loop().run_in_executor(None, bed.host.stop)
    while True:
        late = bed.node.request(Shop.buy, "cup", "c1")
        await bed.run(late)
        if late.status != 0:
            break
    assert late.status == Status.UNAVAILABLE
    await bed.open_gate("tea")
    await stopping
    assert (turn.status, turn.answer) == (0, -1)
    after = bed.node.request(Shop.fill, "cup", 5)
    await bed.run(after)
    assert after.status == Status.UNAVAILABLE
    bed.host.stop()


async def test_stop_ends_what_does_not_end_by_itself() -> None:
    bed = Bed()
    turn = bed.node.request(Shop.slow_fill, "tea", 5)
    bed.host.run(bed.node.take(turn))
    await bed.until(lambda: "tea" in gates)
    await asyncio.to_thread(bed.host.stop, 0.0)
    assert turn.status == Status.UNKNOWN
    assert bed.node.records == []


def test_a_failing_start_is_raised_and_leaves_no_thread() -> None:
    class Broken(Unit):
        async def on_start(self) -> None:
            raise RuntimeError("no table")

    host = UnitHost(FakeNode(), [Broken], lambda calls: None, lambda: None)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no table"):
        host.start()
    assert not [t for t in threading.enumerate() if t.name == "spacegrid-units"]


def test_units_that_do_not_fit_together_are_refused() -> None:
    class Other(Unit, name="Shop"): ...

    class Typed(Unit):
        items = Map(str, int)

    def make(*units: Any) -> None:
        UnitHost(FakeNode(), units, lambda calls: None, lambda: None)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match="two units are named 'Shop'"):
        make(Shop, Other)
    with pytest.raises(ConfigError, match="map 'items' has one value type in unit Shop"):
        make(Shop, Typed)
    with pytest.raises(TypeError, match="is no unit"):
        make(int)
