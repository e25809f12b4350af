"""The checker itself, on histories that are known to be good or bad."""

from __future__ import annotations

import pytest

from .history import FAILED, OK, UNKNOWN, Call
from .linear import CONFLICT, MISS, check_key

KEY = b"k"


def call(kind: str, begin: int, end: int, argument: object = None, **more: object) -> Call:
    return Call(
        0, kind, KEY, argument, begin_us=begin, end_us=end, **{"outcome": OK, "status": 0, **more}
    )


def put(begin: int, end: int, value: bytes, version: int, **more: object) -> Call:
    return call("put", begin, end, value, version=version, **more)


def get(begin: int, end: int, value: bytes | None, version: int = 0) -> Call:
    status = MISS if value is None else 0
    return call("get", begin, end, value=value, version=version, status=status)


def test_one_after_another_is_fine() -> None:
    assert not check_key([put(0, 1, b"a", 1), get(2, 3, b"a", 1), get(4, 5, b"a", 1)])


def test_overlapping_calls_may_take_effect_in_any_order() -> None:
    calls = [put(0, 10, b"a", 2), put(0, 10, b"b", 1), get(11, 12, b"a", 2), get(13, 14, b"a", 2)]
    assert not check_key(calls)


def test_an_order_that_contradicts_the_versions_is_found() -> None:
    calls = [put(0, 10, b"a", 1), put(0, 10, b"b", 2), get(11, 12, b"a", 1), get(13, 14, b"a", 1)]
    assert check_key(calls)


def test_a_stale_read_is_found() -> None:
    assert check_key([put(0, 1, b"a", 1), put(2, 3, b"b", 2), get(4, 5, b"a", 1)])


def test_a_stale_read_is_as_old_as_it_says_and_no_older() -> None:
    written = [put(0, 1_000, b"a", 1), put(2_000, 3_000, b"b", 2)]
    read = call("stale", 20_000, 21_000, value=b"a", version=1, age_ms=18)
    assert not check_key([*written, read])
    read.age_ms = 10
    assert check_key([*written, read])
    assert check_key([*written, call("confirmed", 20_000, 21_000, value=b"a", version=1)])


def test_a_lost_write_is_found() -> None:
    assert check_key([put(0, 1, b"a", 1), get(2, 3, None)])


def test_two_reads_that_see_two_orders_are_found() -> None:
    calls = [put(0, 10, b"a", 1), put(0, 10, b"b", 2), get(11, 12, b"a", 1), get(13, 14, b"b", 2)]
    assert check_key(calls)


@pytest.mark.parametrize("seen", [True, False])
def test_an_unknown_write_may_have_happened_or_not(seen: bool) -> None:
    unknown = put(2, 3, b"b", 0, outcome=UNKNOWN)
    last = get(100, 101, b"b", 2) if seen else get(100, 101, b"a", 1)
    assert not check_key([put(0, 1, b"a", 1), unknown, last])


def test_an_unknown_write_does_not_come_and_go() -> None:
    unknown = put(2, 3, b"b", 0, outcome=UNKNOWN)
    reads = [get(4, 5, b"b", 2), get(6, 7, b"a", 1)]
    assert check_key([put(0, 1, b"a", 1), unknown, *reads])


def test_a_failed_write_that_is_read_is_found() -> None:
    failed = put(2, 3, b"b", 0, outcome=FAILED)
    assert not check_key([put(0, 1, b"a", 1), failed, get(4, 5, b"a", 1)])
    assert check_key([put(0, 1, b"a", 1), failed, get(4, 5, b"b", 2)])


def test_one_version_of_two_values_is_found() -> None:
    assert "stands for" in check_key([put(0, 1, b"a", 7), get(2, 3, b"b", 7)])


def test_a_refused_condition_shows_what_is_there() -> None:
    refused = call("absent", 2, 3, b"b", status=CONFLICT, value=b"a", version=1)
    assert not check_key([put(0, 1, b"a", 1), refused])
    wrong = call("absent", 2, 3, b"b", status=CONFLICT, value=b"z", version=9)
    assert check_key([put(0, 1, b"a", 1), wrong])


def test_a_refused_condition_that_was_applied_is_found() -> None:
    refused = call("absent", 2, 3, b"b", status=CONFLICT, value=b"a", version=1)
    deleted = call("delete", 4, 5)
    assert check_key([put(0, 1, b"a", 1), refused, deleted, get(6, 7, b"b", 3)])


def test_put_onto_a_version() -> None:
    cas = call("cas", 2, 3, b"b", expected=1, version=2)
    assert not check_key([put(0, 1, b"a", 1), cas, get(4, 5, b"b", 2)])
    again = call("cas", 4, 5, b"c", expected=1, version=3)
    assert check_key([put(0, 1, b"a", 1), cas, again])


def test_a_sum_that_counts_one_increment_twice_is_found() -> None:
    once = call("incr", 0, 1, 5, value=5)
    assert not check_key([once, call("incr", 2, 3, 2, value=7)])
    assert check_key([once, call("incr", 2, 3, 2, value=12)])


def test_an_entry_ends_after_its_time_and_not_before() -> None:
    short = put(0, 1, b"a", 1, ttl_ms=1_000)
    assert not check_key([short, get(950_000, 950_001, None)], slack_us=0)
    assert check_key([short, get(500_000, 500_001, None)], slack_us=0)
    assert check_key([short, get(950_000, 950_001, None), get(960_000, 960_001, b"a", 1)], 0)
