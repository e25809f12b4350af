"""Units on the real core: a lone node, the client's frames, calls between units, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import msgspec
import pydantic
import pytest
from spacegrid import _core, clock
from spacegrid.errors import CallCycle, HandlerError, SpaceGridError, WrongRoutingKey
from spacegrid.types import Map
from spacegrid.unit import Handler, OutgoingCall, Unit, UnitHost, handler
from spacegrid.wire.status import Status, error_of

PARTITIONS = 16


class Level(msgspec.Struct):
    left: int


class Delivery(pydantic.BaseModel):
    quantity: pydantic.PositiveInt
    price: Decimal = pydantic.Field(alias="unitPrice")


class Stock(Unit):
    levels = Map(str, Level)
    moves = Map(tuple[str, int], bytes)

    @handler(route_by="sku")
    async def move(self, sku: str, quantity: int) -> int:
        level = self.levels.get(sku) or Level(0)
        level.left += quantity
        self.levels.put(sku, level)
        return level.left

    @handler(route_by="sku")
    async def deliver(self, sku: str, delivery: Delivery) -> Delivery:
        assert isinstance(delivery, Delivery)
        await self.move(sku, delivery.quantity)
        return delivery.model_copy(update={"price": delivery.price * 2})

    @handler(route_by="sku")
    async def left(self, sku: str) -> int:
        level = self.levels.get(sku)
        return level.left if level else -1

    @handler(route_by="sku")
    async def fail(self, sku: str) -> None:
        self.levels.put(sku, Level(1000))
        raise ValueError(f"no {sku}")

    @handler(route_by="sku")
    async def wander(self, sku: str) -> None:
        self.levels.get("elsewhere")


class Orders(Unit):
    orders = Map(str, int)

    @handler(route_by="order")
    async def place(self, order: str, skus: list[str]) -> list[int]:
        self.orders.put(order, len(skus))
        return await asyncio.gather(*(self.call(Stock.move, sku, -1) for sku in skus))

    @handler(route_by="order")
    async def relay(self, order: str, to: list[str]) -> str:
        if not to:
            return order
        return await self.call(Orders.relay, to[0], to[1:])


class Bed:
    """A lone node with units; the test's loop is its grid thread."""

    def __init__(self) -> None:
        self.node = _core.Node(1, PARTITIONS, min_in_sync=1)
        entries: list[Any] = [(p, 1, 1, 1, 1, [1], [], [], [], 0) for p in range(PARTITIONS)]
        self.node.apply_table(1, entries, clock.now_ms())
        self.clients = [_core.Client(stream, PARTITIONS) for stream in (1 << 32, 2 << 32)]
        for client in self.clients:
            client.set_routes(1, [0] * PARTITIONS)
        self.sizes: list[int] = []
        self._loop = asyncio.get_running_loop()
        self.host = UnitHost(self.node, [Stock, Orders], self._submit, self._wake)
        self.host.start()

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self.pump)

    def _submit(self, calls: list[OutgoingCall]) -> None:
        self.sizes.append(len(calls))
        self._loop.call_soon_threadsafe(self._send, calls)

    def _send(self, calls: list[OutgoingCall]) -> None:
        inner = self.clients[1]
        for call in calls:
            inner.invoke(
                inner.map(call.name),
                call.routing_key,
                call.arguments,
                call,
                call.timeout_ms,
                token=call.token,
                chain=call.chain,
            )
        self.pump()

    def pump(self) -> None:
        now_ms = clock.now_ms()
        for connection, client in enumerate(self.clients):
            for _, frame in client.take_frames(now_ms):
                self.node.on_client_frame(connection, frame, now_ms)
        while (effects := self.node.take_effects()) is not None:
            self.host.run(effects.turns)
            self.host.settled(effects.settled)
            for connection, frame in effects.client_frames:
                done = self.clients[connection].on_frame(0, frame, now_ms)
                if connection:
                    self.host.calls_done(
                        [(waiter, status, value) for waiter, status, value, *_ in done]
                    )
                    continue
                for future, status, value, *_ in done:
                    future.set_result((status, value))

    async def call(self, handler: Handler[..., Any], *args: Any, token: Any = None) -> Any:
        key, packed = handler.bind(args, {})
        client = self.clients[0]
        future: asyncio.Future[tuple[int, bytes]] = self._loop.create_future()
        client.invoke(client.map(handler.full_name), key, packed, future, 5000, token)
        self._loop.call_soon(self.pump)
        status, value = await future
        if status != Status.OK:
            raise error_of(status, value, handler.full_name)
        return handler.decode_reply(value)

    async def put(self, spec: Map[Any, Any], key: Any, value: Any) -> int:
        client = self.clients[0]
        future: asyncio.Future[tuple[int, bytes]] = self._loop.create_future()
        client.put(
            client.map(spec.name, spec.schema),
            spec.key_codec.encode(key),
            spec.value_codec.encode(value),
            spec.value_codec.codec,
            future,
            5000,
        )
        self._loop.call_soon(self.pump)
        return (await future)[0]


@pytest.fixture
async def bed() -> AsyncIterator[Bed]:
    made = Bed()
    yield made
    await asyncio.to_thread(made.host.stop)
    made.pump()
    assert made.node.idle()


async def test_turns_of_one_key_follow_each_other_and_nothing_is_lost(bed: Bed) -> None:
    answers = await asyncio.gather(*(bed.call(Stock.move, "tea", 1) for _ in range(500)))
    assert sorted(answers) == list(range(1, 501))
    assert await bed.call(Stock.left, "tea") == 500


async def test_a_pydantic_model_travels_to_a_handler_and_back(bed: Bed) -> None:
    sent = Delivery(quantity=3, unitPrice=Decimal("2.50"))
    answer = await bed.call(Stock.deliver, "tea", sent)
    assert answer == Delivery(quantity=3, unitPrice=Decimal("5.00"))
    assert await bed.call(Stock.left, "tea") == 3
    wrong = sent.model_copy(update={"quantity": 0})
    with pytest.raises(SpaceGridError, match="quantity"):
        await bed.call(Stock.deliver, "tea", wrong)
    assert await bed.call(Stock.left, "tea") == 3


async def test_a_raising_turn_leaves_no_trace(bed: Bed) -> None:
    with pytest.raises(HandlerError, match="ValueError: no tea") as caught:
        await bed.call(Stock.fail, "tea")
    assert "in fail" in caught.value.remote_traceback
    assert await bed.call(Stock.left, "tea") == -1
    with pytest.raises(WrongRoutingKey, match="'elsewhere', this turn to 'tea'"):
        await bed.call(Stock.wander, "tea")


async def test_outside_writes_queue_behind_the_running_turn(bed: Bed) -> None:
    calls = [bed.call(Stock.move, "tea", 1), bed.put(Stock.levels, "tea", Level(100))]
    answers = await asyncio.gather(*calls, bed.call(Stock.left, "tea"))
    assert answers == [1, Status.OK, 100]


async def test_calls_of_a_turn_travel_together_and_are_applied(bed: Bed) -> None:
    skus = [f"s{n}" for n in range(50)]
    assert await bed.call(Orders.place, "o1", skus) == [-1] * 50
    assert bed.sizes == [50]
    assert bed.node.read("orders", b"o1", clock.now_ms()) == b"\x32"


async def test_many_turns_call_the_same_keys_at_once(bed: Bed) -> None:
    """Numbers of one stream reach a callee in any order; none of them may be taken for stale."""
    skus = [f"s{n}" for n in range(5)]
    await asyncio.gather(*(bed.call(Orders.place, f"o{n}", skus) for n in range(300)))
    assert [await bed.call(Stock.left, sku) for sku in skus] == [-300] * 5


async def test_a_repeated_request_repeats_nothing(bed: Bed) -> None:
    token = (5 << 32, 7, b"", 1)
    first = await bed.call(Orders.place, "o1", ["a", "b"], token=token)
    assert await bed.call(Orders.place, "o1", ["a", "b"], token=token) == first == [-1, -1]
    assert await bed.call(Stock.left, "a") == -1
    with pytest.raises(SpaceGridError, match="other arguments"):
        await bed.call(Orders.place, "o1", ["a", "c"], token=token)


async def test_chains_go_deep_and_cycles_are_refused(bed: Bed) -> None:
    assert await bed.call(Orders.relay, "k0", [f"k{n}" for n in range(1, 20)]) == "k19"
    with pytest.raises(CallCycle, match=r"Orders\(a\) -> Orders\(b\) -> Orders\(a\)"):
        await bed.call(Orders.relay, "a", ["b", "a"])
    with pytest.raises(HandlerError, match="calls nest at most 32 deep"):
        await bed.call(Orders.relay, "k0", [f"k{n}" for n in range(1, 40)])


async def test_hostile_arguments_are_refused_by_name(bed: Bed) -> None:
    client = bed.clients[0]
    future: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
    client.invoke(client.map("Stock.move"), b"tea", b"\x81\xa3sku\x05", future, 5000)
    bed.pump()
    status, value = await future
    assert status == Status.INVALID
    assert b"Stock.move" in value
