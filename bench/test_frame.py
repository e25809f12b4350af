"""What a frame costs: queueing, encoding, decoding, telling the futures.

Each round is one frame, as one loop tick makes it; `operations` says of how many operations.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from spacegrid import _core

STREAM = 7
VALUE = b"x" * 100
KEYS = [f"key-{number:012d}" for number in range(1000)]


def connected() -> _core.Client:
    client = _core.Client(STREAM, 1024)
    client.map("orders")
    client.set_routes(1, [0] * 1024)
    return client


def answers(first: int, count: int, value: bytes = VALUE) -> bytes:
    replies = [(number, 0, 0, 0, 1, 5, value) for number in range(first, first + count)]
    return _core.encode_reply(STREAM, replies)


@pytest.mark.parametrize("count", [64, 1000])
def test_queue_gets_and_encode_their_frame(benchmark: Any, count: int) -> None:
    client, keys = connected(), KEYS[:count]

    def run() -> None:
        for key in keys:
            client.get(0, key, None, 5000)
        assert client.take_frames(0)

    benchmark.extra_info["operations"] = count
    benchmark.pedantic(run, rounds=200, iterations=1, warmup_rounds=5)


@pytest.mark.parametrize("count", [64, 1000])
def test_queue_puts_and_encode_their_frame(benchmark: Any, count: int) -> None:
    client, keys = connected(), KEYS[:count]

    def run() -> None:
        for key in keys:
            client.put(0, key, VALUE, 0, None, 5000)
        assert client.take_frames(0)

    benchmark.extra_info["operations"] = count
    benchmark.pedantic(run, rounds=100, iterations=1, warmup_rounds=5)


@pytest.mark.parametrize("count", [64, 1000])
def test_tell_the_futures_of_a_reply_frame(benchmark: Any, count: int) -> None:
    client, loop = connected(), asyncio.new_event_loop()

    def setup() -> tuple[tuple[bytes, asyncio.Future[Any]], dict[str, Any]]:
        futures = [loop.create_future() for _ in range(count)]
        numbers = [
            client.get(0, key, future, 5000) for key, future in zip(KEYS, futures, strict=False)
        ]
        client.take_frames(0)
        return (answers(numbers[0], count), futures[-1]), {}

    def run(frame: bytes, last: asyncio.Future[Any]) -> None:
        client.on_frame_futures(0, frame, 0)
        assert last.done()

    benchmark.extra_info["operations"] = count
    benchmark.pedantic(run, setup=setup, rounds=200)
    loop.close()


def test_get_many_of_1000_to_a_list(benchmark: Any) -> None:
    client = connected()

    def setup() -> tuple[tuple[bytes], dict[str, Any]]:
        first = client.get_many(0, KEYS, None, 5000)
        client.take_frames(0)
        return (answers(first, 1000),), {}

    def run(frame: bytes) -> None:
        ((_, status, values, *_),) = client.on_frame(0, frame, 0)
        assert status == 0
        assert len(values) == 1000

    benchmark.extra_info["operations"] = 1000
    benchmark.pedantic(run, setup=setup, rounds=100)


@pytest.mark.parametrize("queue", ["get_many", "put_many"])
def test_queue_1000_keys_at_once(benchmark: Any, queue: str) -> None:
    client = connected()
    values = [VALUE] * 1000
    calls: dict[str, Callable[[], int]] = {
        "get_many": lambda: client.get_many(0, KEYS, None, 5000),
        "put_many": lambda: client.put_many(0, KEYS, values, 0, None, 5000),
    }

    def run() -> None:
        calls[queue]()
        assert client.take_frames(0)

    benchmark.extra_info["operations"] = 1000
    benchmark.pedantic(run, rounds=100, warmup_rounds=5)
