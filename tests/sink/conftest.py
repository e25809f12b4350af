"""A grid in memory and sinks on temporary files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_grid import MAPS, FakeGrid
from pump_support import LIFE
from spacegrid.sink.sqlite import SqliteSink


@pytest.fixture
def grid() -> FakeGrid:
    return FakeGrid()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "sink.db"


MakeSink = Callable[..., SqliteSink]


@pytest.fixture
def make_sink(database: Path, grid: FakeGrid):
    made: list[SqliteSink] = []

    def make(owner: int, *, life: str = LIFE, partition_count: int = 4, maps=MAPS) -> SqliteSink:
        sink = SqliteSink(
            f"sqlite:///{database}",
            life=life,
            owner=owner,
            partition_count=partition_count,
            maps=maps,
            busy_timeout_ms=50,
        )
        made.append(sink)
        return sink

    yield make
    for sink in made:
        sink.close()
