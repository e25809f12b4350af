"""The Python face of the client machine: arguments, completions, futures, groups.

Goal: what the shells rely on. Method: the other side is `decode_request` and `encode_reply`.
"""

import asyncio
import gc
import random
import weakref
from typing import Any

import msgspec
import pytest
from spacegrid import _core

OK, MISS, CONFLICT, NOT_PRIMARY, NOT_ENOUGH_COPIES, UNKNOWN, INVALID = 0, 1, 2, 3, 6, 9, 17
TIMEOUT = 255
STREAM, PARTITIONS = 7, 8


@pytest.fixture
def client() -> _core.Client:
    client = _core.Client(STREAM, PARTITIONS)
    assert client.map("m") == 0
    client.set_routes(1, [0] * PARTITIONS)
    return client


def sent(client: _core.Client, now_ms: int = 0) -> list[Any]:
    return [view for _, frame in client.take_frames(now_ms) for view in _core.decode_request(frame)]


def reply(
    number: int, status: int = OK, value: bytes = b"", version: int = 0, codec: int = 0
) -> tuple[int, int, int, int, int, int, bytes]:
    return number, status, 0, codec, 2, version, value


def answer(client: _core.Client, *replies: Any) -> list[Any]:
    return client.on_frame(0, _core.encode_reply(STREAM, replies), 0)


def settle(client: _core.Client, *replies: Any) -> list[Any]:
    return client.on_frame_futures(0, _core.encode_reply(STREAM, replies), 0)


def future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


def test_a_completion_carries_waiter_and_reply(client: _core.Client) -> None:
    waiter = object()
    number = client.get(0, "tea", waiter, 1000)
    assert (client.queued, client.in_flight, client.open) == (1, 0, 1)
    (view,) = sent(client)
    assert view[:8] == (STREAM, number, 1, 0, "m", 0, b"tea", b"")
    assert answer(client, reply(number, value=b"10", version=5)) == [
        (waiter, OK, b"10", 5, 0, 2, number)
    ]
    assert client.open == 0


def test_every_operation_arrives_as_it_was_queued(client: _core.Client) -> None:
    token = (9, 21, b"\x01\x00", 20)
    client.put(0, b"k", b"v", 1, None, 1000, 60_000, True)
    client.put(0, b"k", b"v", 0, None, 1000, version=8)
    client.delete(0, b"k", None, 1000, 9, token)
    client.incr(0, b"k", -2, None, 1000)
    client.contains(0, b"k", None, 1000)
    client.invoke(0, "k", b"\x80", None, 1000, token, [b"Shop\0tea"])
    client.size(0, 3, None, 1000)
    client.scan(0, 3, b"cursor", 50, None, 1000)
    seen = [(view[2], view[3], *view[6:12]) for view in sent(client)]
    minus_two, three = (-2).to_bytes(8, "little", signed=True), b"\3\0\0\0"
    assert seen == [
        (2, 1 | 8, b"k", b"v", 1, 60_000, None, None),
        (2, 2, b"k", b"v", 0, 0, 8, None),
        (3, 2 | 4, b"k", b"", 0, 0, 9, (*token, [])),
        (4, 0, b"k", minus_two, 0, 0, None, None),
        (8, 0, b"k", b"", 0, 0, None, None),
        (5, 4, b"k", b"\x80", 1, 0, None, (*token, [b"Shop\0tea"])),
        (6, 0, three, b"", 0, 0, None, None),
        (7, 0, three, b"\x32\0\0\0cursor", 0, 0, None, None),
    ]


async def test_plain_results_reach_futures_without_the_shell(client: _core.Client) -> None:
    futures = [future() for _ in range(13)]
    waiters = iter(futures)
    client.get(0, "k", next(waiters), 1000)
    client.get(0, "k", next(waiters), 1000)
    client.get(0, "k", next(waiters), 1000)
    client.contains(0, "k", next(waiters), 1000)
    client.contains(0, "k", next(waiters), 1000)
    client.put(0, "k", b"", 0, next(waiters), 1000)
    client.put(0, "k", b"", 0, next(waiters), 1000, if_absent=True)
    client.put(0, "k", b"", 0, next(waiters), 1000, if_absent=True)
    client.delete(0, "k", next(waiters), 1000)
    client.delete(0, "k", next(waiters), 1000)
    client.incr(0, "k", 1, next(waiters), 1000)
    client.size(0, 1, next(waiters), 1000)
    client.invoke(0, "k", b"\x80", next(waiters), 1000)
    sent(client)
    replies = [
        reply(1, value=b"v"),
        reply(2, MISS),
        reply(3),
        reply(4),
        reply(5, MISS),
        reply(6, version=77),
        reply(7),
        reply(8, CONFLICT, version=6),
        reply(9),
        reply(10, MISS),
        reply(11, value=msgspec.msgpack.encode(-70_000), codec=1),
        reply(12, value=(3).to_bytes(8, "little")),
        reply(13, value=b"x"),
    ]
    random.Random(5).shuffle(replies)
    assert settle(client, *replies) == []
    results = [done.result() for done in futures]
    wanted = [b"v", None, b"", True, False, 77, True, False, True, False, -70_000, 3, b"x"]
    assert results == wanted
    assert [type(result) for result in results] == [type(one) for one in wanted]


async def test_what_is_not_plain_is_handed_to_the_shell(client: _core.Client) -> None:
    waiters = [future() for _ in range(5)]
    client.get(0, "k", waiters[0], 1000)
    client.get_entry(0, "k", waiters[1], 1000)
    client.scan(0, 4, b"", 10, waiters[2], 1000)
    client.put(0, "k", b"", 0, waiters[3], 1000)
    client.get(0, "k", waiters[4], 1000)
    sent(client)
    page = b"\0\0\0\0\0\0"
    rest = settle(
        client,
        reply(1, value=b"\x01", codec=1),
        reply(2, value=b"v", version=9),
        reply(3, value=page),
        reply(4, INVALID, b"why"),
        reply(5, MISS),
    )
    assert rest == [
        (waiters[0], OK, b"\x01", 0, 1, 2, 1),
        (waiters[1], OK, b"v", 9, 0, 2, 2),
        (waiters[2], OK, page, 0, 0, 2, 3),
        (waiters[3], INVALID, b"why", 0, 0, 2, 4),
    ]
    assert [waiter.done() for waiter in waiters] == [False] * 4 + [True]
    assert client.about(3) == ("scan", 0, 4)
    assert client.about(4) == ("put", 0, _core.partition_of(b"k", PARTITIONS))
    assert client.about(5) is None
    assert _core.decode_scan(page) == ([], b"")


async def test_a_map_decodes_before_its_futures_are_told(client: _core.Client) -> None:
    decode = msgspec.msgpack.Decoder(int).decode
    index = client.map("typed", 3, 1, decode)
    assert client.map("typed", 3, 1, decode) == index != client.map("typed", 3)
    good, bad, many = future(), future(), future()
    client.get(index, "k", good, 1000)
    client.get(index, "k", bad, 1000)
    client.get_many(index, ["a", "b"], many, 1000)
    sent(client)
    settle(
        client,
        *(
            reply(number, value=value, codec=1)
            for number, value in enumerate([b"\x05", b"\xa1x", b"\x06", b"\x07"], 1)
        ),
    )
    assert (good.result(), many.result()) == (5, [6, 7])
    with pytest.raises(msgspec.ValidationError):
        bad.result()


async def test_a_cancelled_future_is_left_alone(client: _core.Client) -> None:
    waiter = future()
    client.get(0, "k", waiter, 1000)
    sent(client)
    waiter.cancel()
    assert settle(client, reply(1, value=b"v")) == []
    assert waiter.cancelled()


def test_many_keys_have_one_completion_in_their_order(client: _core.Client) -> None:
    waiter = object()
    assert client.get_many(0, ["a", b"b", "c"], waiter, 1000) == 1
    sent(client)
    assert answer(client, reply(3, value=b"C")) == []
    assert answer(client, reply(1, value=b"A"), reply(2, MISS)) == [
        (waiter, OK, [b"A", None, b"C"], 0, 0, 2, 1)
    ]
    client.put_many(0, ["a", "b"], [b"1", b"2"], 0, waiter, 1000)
    client.delete_many(0, ("a", "b"), waiter, 1000)
    sent(client)
    put, delete = answer(client, reply(4, version=8), reply(5, version=9), reply(6), reply(7, MISS))
    assert (put[2], delete[2]) == ([8, 9], [True, False])


def test_many_keys_of_which_one_fails_are_all_told(client: _core.Client) -> None:
    waiter = object()
    client.put_many(0, ["a", "b", "c"], [b"1", b"2", b"3"], 0, waiter, 1000)
    sent(client)
    answer(client, reply(1, version=4), reply(3, INVALID, b"why"))
    (completion,) = client.expire(1000)
    replies = [(OK, None, 4, 0, 1), (UNKNOWN, None, 0, 0, 2), (INVALID, b"why", 0, 0, 3)]
    assert completion == (waiter, UNKNOWN, replies, 0, 0, 0, 1)
    again = object()
    client.resend(2, again, 1000)
    sent(client, 1000)
    assert answer(client, reply(2, version=5)) == [(again, OK, None, 5, 0, 2, 2)]
    assert client.open == 0


def test_cancelling_one_of_many_cancels_all(client: _core.Client) -> None:
    number = client.get_many(0, ["a", "b"], object(), 1000)
    assert client.cancel(number + 1)
    assert not client.cancel(number)
    assert (client.open, sent(client)) == (0, [])


def test_a_deadline_names_the_last_refusal(client: _core.Client) -> None:
    written, read = client.put(0, "k", b"", 0, "w", 100), client.get(0, "k", "r", 100)
    sent(client, 50)
    assert answer(client, reply(written, NOT_ENOUGH_COPIES), reply(read, NOT_PRIMARY)) == []
    assert client.wants_routes()
    assert client.next_event_ms() == 1
    assert client.expire(149) == []
    assert client.expire(150) == [
        ("w", TIMEOUT, None, NOT_ENOUGH_COPIES, 0, 0, written),
        ("r", TIMEOUT, None, NOT_PRIMARY, 0, 0, read),
    ]
    assert client.next_event_ms() is None


def test_an_unknown_outcome_is_kept_until_it_is_released(client: _core.Client) -> None:
    number = client.put(0, "k", b"v", 0, None, 100)
    sent(client)
    client.on_disconnect(0, 10)
    ((_, status, *_, expired),) = client.expire(100)
    assert (status, expired, client.open) == (UNKNOWN, number, 1)
    client.put(0, "k", b"v", 0, None, 100)
    assert sent(client)[0][-1] == number
    assert client.release(number)
    assert not client.release(number)
    with pytest.raises(KeyError, match="request 1 is not kept"):
        client.resend(number, None, 100)


def test_what_never_left_is_surely_not_applied(client: _core.Client) -> None:
    client.put(0, "k", b"v", 0, "w", 100)
    sent(client)
    client.on_disconnect(0, 10, sent=False)
    assert client.expire(100)[0][:2] == ("w", TIMEOUT)


def test_arguments_out_of_bounds_are_refused_and_leave_nothing(client: _core.Client) -> None:
    with pytest.raises(ValueError, match="key's length in bytes is 5000, the limit is 4096"):
        client.get(0, "k" * 5000, None, 1000)
    with pytest.raises(ValueError, match="key is empty"):
        client.get_many(0, ["a", ""], None, 1000)
    with pytest.raises(ValueError, match="no keys"):
        client.get_many(0, [], None, 1000)
    with pytest.raises(ValueError, match="2 keys, but 1 values"):
        client.put_many(0, ["a", "b"], [b""], 0, None, 1000)
    with pytest.raises(TypeError, match="must be bytes or str, not"):
        client.get(0, 5, None, 1000)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="map's index has the value 4"):
        client.get(4, "k", None, 1000)
    with pytest.raises(ValueError, match="codec is 0 or 1, not 2"):
        client.put(0, "k", b"", 2, None, 1000)
    with pytest.raises(ValueError, match="exclude each other"):
        client.put(0, "k", b"", 0, None, 1000, 0, True, 5)
    with pytest.raises(ValueError, match="number of routes has the value 1"):
        client.set_routes(2, [0])
    with pytest.raises(ValueError, match="set of partitions is empty"):
        _core.Client(1, 0)
    assert (client.open, client.take_frames(0)) == (0, [])


def test_hostile_replies_raise_and_change_nothing(client: _core.Client) -> None:
    number = client.get(0, "k", "w", 1000)
    sent(client)
    good = _core.encode_reply(STREAM, [reply(number, value=b"v")])
    dice = random.Random(3)
    for _ in range(300):
        frame = bytearray(good)
        frame[dice.randrange(len(frame))] ^= 1 << dice.randrange(8)
        with pytest.raises(_core.FrameError):
            client.on_frame(0, bytes(frame[: dice.choice([len(frame), 20])]), 0)
    with pytest.raises(_core.FrameError, match="stream"):
        client.on_frame(0, _core.encode_reply(STREAM + 1, [reply(number)]), 0)
    assert client.on_frame(0, good, 0)[0][:3] == ("w", OK, b"v")


async def test_a_client_in_a_cycle_with_its_waiters_is_collected() -> None:
    class Waiter:
        client: _core.Client

    client = _core.Client(STREAM, PARTITIONS)
    client.map("m")
    waiter = Waiter()
    waiter.client = client
    client.get(0, "k", waiter, 1000)
    client.get_many(0, ["k"], waiter, 1000)
    gone = weakref.ref(waiter)
    del waiter, client
    gc.collect()
    assert gone() is None


async def test_python_that_runs_while_futures_are_told_may_use_the_client(
    client: _core.Client,
) -> None:
    def decode(value: bytes) -> int:
        return client.get(0, value, None, 1000)

    index = client.map("busy", 0, 0, decode)
    waiter = future()
    number = client.get(index, "k", waiter, 1000)
    sent(client)
    settle(client, reply(number, value=b"other"))
    assert waiter.result() == number + 1
    assert client.queued == 1
