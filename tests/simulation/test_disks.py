"""Simulated disks: what a restart of everything leaves, and how a history is judged across it."""

from __future__ import annotations

import pytest

from .cuts import Cut, PersistedLost, histories
from .history import OK, Call
from .linear import check_key
from .run import run
from .test_scenarios import KEY, Stage

DISKS = {
    "local_disk": True,
    # Nothing is written by itself within a scenario: only when somebody waits for the disk.
    "write_ms": 60_000.0,
    "fsync_ms": 1.0,
    "persisted_rate": 0.0,
    "blackouts": 0.0,
    "new_disks": 0.0,
}
BLACKOUT_SEEDS = (3, 19, 25)


def position(epoch: int, sequence: int) -> int:
    return epoch << 40 | sequence


def answered(kind: str, begin_us: int, version: int, value: bytes, *, persisted: bool) -> Call:
    return Call(
        0,
        kind,
        KEY,
        value if kind == "put" else None,
        begin_us=begin_us,
        end_us=begin_us + 1,
        outcome=OK,
        status=0,
        value=value if kind == "get" else None,
        version=version,
        persisted=persisted,
    )


def test_after_a_blackout_what_was_persisted_is_there_and_the_rest_is_gone_for_all() -> None:
    stage = Stage(**DISKS)
    assert stage.done(stage.ask("put", b"kept", persisted=True)).outcome == OK
    assert stage.done(stage.ask("put", b"gone")).outcome == OK
    stage.faults._go_dark(1)
    assert not stage.running()
    stage.until(lambda: bool(stage.running()) and bool(stage.audit.cuts))
    stage.heal()
    assert stage.done(stage.ask("get")).value == b"kept"
    assert len(stage.audit.cuts[0]) == 1
    assert not stage.judge()


def test_a_persisted_answer_waits_for_the_slowest_disk() -> None:
    stage = Stage(**{**DISKS, "fsync_ms": 50.0})
    call = stage.done(stage.ask("put", b"second", persisted=True))
    assert call.outcome == OK
    for copy in stage.entry.in_sync:
        disk = stage.processes[copy].machine.disk
        assert disk is not None
        assert disk.durable[0].entries["m", KEY][3] == b"second"


def test_a_node_with_an_empty_disk_is_given_its_copies_again() -> None:
    stage = Stage(nodes=3, **{**DISKS, "write_ms": 20.0})
    machine = stage.primary.machine
    machine.crash()
    assert machine.disk is not None
    machine.disk.replace()
    machine.start()
    stage.judged()


@pytest.mark.parametrize("seed", BLACKOUT_SEEDS)
def test_seeds_with_blackouts(seed: int) -> None:
    result = run(seed)
    assert result.ok, f"{result.problem}\nagain: make sim SEED={seed}"
    assert result.figures["cuts"] > 0


def test_a_persisted_answer_behind_the_cut_is_a_violation() -> None:
    calls = [answered("put", 10, position(1, 5), b"a", persisted=True)]
    with pytest.raises(PersistedLost):
        list(histories(calls, [Cut(20, (1, 4), 2)]))
    assert len(list(histories(calls, [Cut(20, (1, 5), 2)]))) == 2


@pytest.mark.parametrize(
    ("cut", "wrong"), [((1, 5), True), ((1, 4), False)], ids=["on disk", "not on disk"]
)
def test_an_old_value_is_right_only_where_the_newer_record_was_on_no_disk(
    cut: tuple[int, int], wrong: bool
) -> None:
    calls = [
        answered("put", 10, position(1, 4), b"a", persisted=False),
        answered("put", 12, position(1, 5), b"b", persisted=False),
        answered("get", 14, position(1, 5), b"b", persisted=False),
        answered("get", 30, position(1, 4), b"a", persisted=False),
    ]
    found = [check_key(seen) for seen in histories(calls, [Cut(20, cut, 2)])]
    assert bool(found[-1]) == wrong
    assert not found[0]
