"""The checker of histories: what is fine passes, and each kind of lie is found."""

from random import Random
from typing import Any

import pytest
from spacegrid.testing.checks import check_counters, check_epochs, check_history, check_versions
from spacegrid.testing.history import EPOCH_SHIFT, Operation, Status
from spacegrid.testing.linearizable import apply, check_key


def did(
    kind: str, began: float, ended: float, argument: Any = None, result: Any = None, **more: Any
) -> Operation:
    operation = Operation(kind, "k", argument, result, began, ended, Status.OK)
    for name, value in more.items():
        setattr(operation, name, value)
    return operation


def unknown(kind: str, began: float, argument: Any) -> Operation:
    return Operation(kind, "k", argument, began=began, status=Status.UNKNOWN)


def failed(kind: str, began: float, ended: float, argument: Any) -> Operation:
    return Operation(kind, "k", argument, None, began, ended, Status.FAILED)


FINE = {
    "a read after a write": [did("put", 0, 1, 5), did("get", 2, 3, result=5)],
    "a read beside a write sees either": [did("put", 0, 9, 5), did("get", 1, 2)],
    "an unknown write may have happened": [unknown("put", 0, 5), did("get", 8, 9, result=5)],
    "an unknown write may not have happened": [unknown("put", 0, 5), did("get", 8, 9)],
    "an unknown write may happen late": [
        unknown("put", 0, 5),
        did("get", 1, 2),
        did("get", 3, 4, result=5),
    ],
    "a failed write is not seen": [failed("put", 0, 1, 5), did("get", 2, 3)],
    "one of two wins": [
        did("put_if_absent", 0, 5, 1, False),
        did("put_if_absent", 0, 5, 2, True),
        did("get", 6, 7, result=2),
    ],
    "a replace of what is there": [
        did("put", 0, 1, 1),
        did("replace", 2, 3, (1, 2), True),
        did("replace", 4, 5, (1, 3), False),
        did("get", 6, 7, result=2),
    ],
    "a counter from nothing": [did("incr", 0, 1, 1, 1), did("incr", 2, 3, 2, 3)],
    "a delete": [did("put", 0, 1, 1), did("delete", 2, 3, result=True), did("get", 4, 5)],
}

LIES = {
    "a lost write": [did("put", 0, 1, 5), did("get", 2, 3)],
    "a stale read": [did("put", 0, 1, 5), did("put", 2, 3, 6), did("get", 4, 5, result=5)],
    "a value from nowhere": [did("get", 0, 1, result=7)],
    "a read of a failed write": [failed("put", 0, 1, 5), did("get", 2, 3, result=5)],
    "a value that comes and goes": [
        did("put", 0, 10, 5),
        did("get", 1, 2, result=5),
        did("get", 3, 4),
    ],
    "two that won": [did("put_if_absent", 0, 5, 1, True), did("put_if_absent", 0, 5, 2, True)],
    "an increment twice": [did("incr", 0, 1, 1, 1), did("get", 2, 3, result=2)],
    "an increment lost": [did("incr", 0, 1, 1, 1), did("incr", 2, 3, 1, 1)],
    "a delete undone": [
        did("put", 0, 1, 5),
        did("delete", 2, 3, result=True),
        did("get", 4, 5, result=5),
    ],
    "a replace of another value": [did("put", 0, 1, 5), did("replace", 2, 3, (4, 6), True)],
    "a refused replace of what is there": [
        did("put", 0, 1, 5),
        did("replace", 2, 3, (5, 6), False),
    ],
}


@pytest.mark.parametrize("operations", FINE.values(), ids=FINE.keys())
def test_what_one_copy_could_have_answered_passes(operations: list[Operation]) -> None:
    assert check_key(operations) == ""


@pytest.mark.parametrize("operations", LIES.values(), ids=LIES.keys())
def test_what_no_single_copy_could_have_answered_is_found(operations: list[Operation]) -> None:
    text = check_key(operations)
    assert "no order explains" in text
    assert "k(" in text


def recorded(random: Random, count: int) -> list[Operation]:
    """A history of one real copy: each operation happens at one moment of its interval."""
    moments = sorted((random.uniform(0, 100), number) for number in range(count))
    state: Any = None
    operations: list[Operation] = []
    for moment, number in moments:
        kind = random.choice(("get", "put", "put_if_absent", "replace", "delete"))
        argument: Any = number + 1000
        if kind == "replace":
            argument = (state if random.random() < 0.5 and state else 0, number + 1000)
        operation = Operation(kind, "k", argument, status=Status.UNKNOWN)
        operation.began = moment - random.uniform(0, 1)
        operation.ended = moment + random.uniform(0, 1)
        before, state = state, apply(state, operation)[1]
        match kind:
            case "get":
                operation.result = before
            case "delete":
                operation.result = before is not None
            case "put_if_absent":
                operation.result = before is None
            case "replace":
                operation.result = before is not None and before == argument[0]
        if random.random() < 0.95:
            operation.status = Status.OK
        operations.append(operation)
    return operations


@pytest.mark.parametrize("seed", range(10))
def test_histories_of_a_real_copy_pass_and_a_changed_read_does_not(seed: int) -> None:
    random = Random(seed)
    operations = recorded(random, 100)
    assert check_key(operations) == ""
    reads = [o for o in operations if o.kind == "get" and o.status is Status.OK]
    random.choice(reads).result = -1
    assert check_key(operations) != ""


def test_an_older_version_after_a_newer_one_is_found() -> None:
    fine = [did("put", 0, 1, 1, version=7), did("get", 2, 3, result=1, version=7)]
    assert check_versions(fine) == []
    stale = [*fine, did("put", 4, 5, 2, version=9), did("get", 6, 7, result=1, version=7)]
    assert [v.kind for v in check_versions(stale)] == ["version"]
    beside = [did("put", 0, 9, 1, version=7), did("put", 1, 2, 2, version=9)]
    assert check_versions(beside) == []


def test_an_acknowledgement_of_an_old_epoch_is_found_over_all_keys_of_a_partition() -> None:
    new = did("put", 0, 1, 1, version=(3 << EPOCH_SHIFT) + 1, key="a")
    old = did("put", 2, 3, 1, version=(2 << EPOCH_SHIFT) + 99, key="b")
    assert [v.kind for v in check_epochs([new, old])] == ["epoch"]
    assert check_epochs([new, did("put", 2, 3, 1, version=old.version, partition=8)]) == []
    old.began = 0.5
    assert check_epochs([new, old]) == []


def test_a_counter_tells_lost_from_twice() -> None:
    added = [did("incr", n, n + 0.5, 1, n + 1) for n in range(4)]
    assert check_counters([*added, did("get", 9, 10, result=4)]) == []
    assert [v.kind for v in check_counters([*added, did("get", 9, 10, result=3)])] == ["lost"]
    assert [v.kind for v in check_counters([*added, did("get", 9, 10, result=5)])] == ["twice"]
    open_one = [*added, unknown("incr", 5, 1), did("get", 9, 10, result=5)]
    assert check_counters(open_one) == []


def test_a_whole_history_is_checked_key_by_key() -> None:
    fine = [did("put", 0, 1, 5, key="a"), did("get", 2, 3, result=None, key="b")]
    assert check_history(fine) == []
    found = check_history([*fine, did("get", 4, 5, result=None, key="a")])
    assert [violation.kind for violation in found] == ["order"]
    assert "key a" in str(found[0])


def brute(operations: list[Operation], state: Any = None) -> bool:
    """Every order that the intervals allow, every unknown operation done or not: does one fit?"""
    if all(o.status is not Status.OK for o in operations):
        return True
    first_end = min(o.ended for o in operations if o.status is Status.OK)
    for index, operation in enumerate(operations):
        if operation.began > first_end:
            continue
        fits, after = apply(state, operation)
        if fits and brute(operations[:index] + operations[index + 1 :], after):
            return True
    return False


def sure_write(operation: Operation) -> bool:
    return operation.kind in ("put", "put_if_absent") and operation.status is Status.OK


def guessed(random: Random) -> list[Operation]:
    """A few operations with answers that may or may not be right, many of them unknown."""
    operations = []
    counts = random.random() < 0.3
    values = [None, 1, 2, 3]
    for number in range(random.randint(2, 7)):
        kinds = ["incr", "get"] if counts else ["get", "put", "put_if_absent", "replace", "delete"]
        kind = random.choice(kinds + ["expire"] * (not counts))
        argument: Any = random.choice([1, 1, 2]) if kind == "incr" else number + 1
        result: Any = random.choice([None, *range(1, 5)])
        if kind == "replace":
            argument = (random.choice(values), argument)
        if kind in ("put_if_absent", "replace", "delete"):
            result = random.random() < 0.5
        if kind == "expire":
            # Of a certain write, or of one that is nowhere: those of unknown ones are all one.
            argument = random.choice([o.argument for o in operations if sure_write(o)] or [99])
        began = random.uniform(0, 10)
        unsure = kind == "expire" or (kind != "get" and random.random() < 0.4)
        operation = Operation(kind, "k", argument, result, began, began + random.uniform(0, 6))
        operation.status = Status.UNKNOWN if unsure else Status.OK
        if kind in ("put_if_absent", "replace") and result is False and random.random() < 0.5:
            operation.shown = random.choice(values)
        operations.append(operation)
    return operations


def test_small_histories_are_judged_as_by_trying_everything() -> None:
    random = Random(7)
    fine = 0
    for number in range(3_000):
        operations = guessed(random)
        expected = brute(operations)
        fine += expected
        assert (check_key(operations) == "") is expected, (number, *map(str, operations))
    assert 500 < fine < 2_500


def test_many_unknown_outcomes_do_not_make_the_search_long() -> None:
    doubt = [unknown("put", 0, 1_000 + number) for number in range(60)]
    doubt += [unknown("put_if_absent", 0, 2_000 + number) for number in range(60)]
    seen = [did("put", 1, 2, 7), did("delete", 3, 4, result=True), did("get", 5, 6)]
    assert check_key([*doubt, *seen]) == ""
    assert "no order explains" in check_key([*doubt, *seen, did("get", 7, 8, result=9)])
    adds = [unknown("incr", 0, 1) for _ in range(60)]
    assert check_key([*adds, did("get", 1, 2, result=60)]) == ""
    assert "no order explains" in check_key([*adds, did("get", 1, 2, result=61)])


def test_a_refusal_shows_what_was_there() -> None:
    written = did("put", 0, 1, 5)
    refused = did("put_if_absent", 2, 3, 6, False, shown=5)
    assert check_key([written, refused]) == ""
    refused.shown = 4
    assert "no order explains" in check_key([written, refused])


def test_an_entry_may_end_from_its_time_on() -> None:
    written, end = did("put", 0, 1, 5), unknown("expire", 10, 5)
    assert check_key([written, end, did("get", 11, 12)]) == ""
    assert "no order explains" in check_key([written, end, did("get", 8, 9)])
