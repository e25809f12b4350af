"""Nodes that come, go, or are busy: what the measurements hold, on a small cluster each."""

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from spacegrid.testing.failover.moves import join_leave, rolling
from spacegrid.testing.failover.pressure import full, held
from spacegrid.testing.failover.stage import Stage, StageOptions

pytestmark = pytest.mark.timeout(180)
Start = Callable[..., Awaitable[Stage]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    started: list[Stage] = []

    async def make(**more: Any) -> Stage:
        options = StageOptions(cycles=1, partitions=16, folder=tmp_path / "stage")
        started.append(await Stage.start(dataclasses.replace(options, **more), print))
        return started[-1]

    yield make
    for stage in started:
        await stage.close()


async def test_f15_a_rolling_restart_shows_clients_no_error_and_keeps_every_copy(
    start: Start,
) -> None:
    stage = await start()
    figures, _ = await rolling(stage)
    assert stage.violations == []
    assert figures["rolling_errors"] == 0
    assert figures["rolling_writes"] > 500
    # Far above what it takes; a hand-over that waits for a timeout would be seconds.
    assert figures["rolling_pause_max_ms"] < 2_000


async def test_f18_counters_are_exact_while_a_node_joins_and_leaves_and_little_is_moved(
    start: Start,
) -> None:
    stage = await start(load_bytes=16 << 20)
    figures, _ = await join_leave(stage)
    assert stage.violations == []
    assert 0.8 < figures["join_moved_over_ideal_max"] <= 1.2
    assert 0.8 < figures["leave_moved_over_ideal_max"] <= 1.2


async def test_f17_a_handler_that_holds_the_interpreter_is_answered_and_loses_nothing(
    start: Start,
) -> None:
    stage = await start()
    figures, _ = await held(stage)
    assert stage.violations == []
    assert figures["hold_failovers"] == 0
    assert figures["hold_errors"] == 0


async def test_f33_a_full_node_refuses_by_name_and_keeps_what_it_has(start: Start) -> None:
    stage = await start(quota_bytes=8 << 20)
    figures, _ = await full(stage)
    assert stage.violations == []
    assert figures["quota_refused"] > 0
    assert figures["quota_missing"] == 0
