"""What a demo saw: counters while it runs, the report at its end, and the progress in between."""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

PLAIN_LINE_EVERY_S = 2.0
DIFFERENCES_SHOWN = 10


@dataclass
class Report:
    """The figures of one run. Times in milliseconds, rates a second."""

    demo: str
    requests: int = 0
    acknowledged: int = 0
    unknown: int = 0
    sold: int = 0
    oversold: int = 0
    lost: int = 0
    duplicated: int = 0
    rejected_rows: int = 0
    node_killed: str | None = None
    service_gap_ms: float | None = None
    sql_rows: int = 0
    lmdb_records: int = 0
    sql_equals_grid: bool = False
    lmdb_equals_grid: bool = False
    throughput_per_s: float = 0.0
    latency_p50_ms: float = 0.0
    latency_p99_ms: float = 0.0
    elapsed_s: float = 0.0
    orders: int | None = None
    order_lines: int | None = None
    quantity: int | None = None
    revenue: str | None = None
    sql_equals_file: bool | None = None
    interrupted: bool = False
    checked: bool = False
    rejected: list[dict[str, Any]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is lost, repeated, unknown or different, and the check has run."""
        return (
            self.checked
            and not self.interrupted
            and not (self.unknown or self.oversold or self.lost or self.duplicated)
            and self.acknowledged == self.requests
            and self.sql_equals_grid
            and self.lmdb_equals_grid
            and self.sql_equals_file in (None, True)
            and not self.differences
        )

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON data, without keys that this form of the demo does not have."""
        data = {
            key: value
            for key, value in asdict(self).items()
            if value is not None or key in KEPT_NULL
        }
        return data | {"ok": self.ok}

    def write(self, path: Path) -> None:
        """Write the report as JSON, whole or not at all."""
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps(self.as_json(), indent=2) + "\n")
        new.replace(path)

    def show(self, console: Console) -> None:
        """Print the report: a table in a terminal, `key: value` lines when piped."""
        rows = [
            (key, value)
            for key, value in self.as_json().items()
            if key not in ("rejected", "differences", "demo")
        ]
        if console.is_terminal:
            table = Table(title=f"spacegrid demo: {self.demo}", show_header=False)
            for key, value in rows:
                table.add_row(key.replace("_", " "), shown(value))
            console.print(table)
        else:
            for key, value in rows:
                print(f"{key}: {shown(value)}", file=console.file)
        for row in self.rejected[:DIFFERENCES_SHOWN]:
            console.print(
                f"rejected line {row['line']}: {row['reason']}", markup=False, highlight=False
            )
        if len(self.rejected) > DIFFERENCES_SHOWN:
            console.print(f"... and {len(self.rejected) - DIFFERENCES_SHOWN} more rejected lines")
        for line in self.differences[:DIFFERENCES_SHOWN]:
            console.print(f"difference: {line}", markup=False, highlight=False)


KEPT_NULL = ("node_killed", "service_gap_ms")


def shown(value: object) -> str:
    """Format one figure for a reader."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else str(value)


class Latencies:
    """Latencies of one run, 8 bytes each."""

    def __init__(self) -> None:
        self._seconds = array("d")

    def add(self, seconds: float) -> None:
        """Keep one latency."""
        self._seconds.append(seconds)

    def percentile_ms(self, share: float) -> float:
        """Return the latency that `share` (0 to 1) of the requests kept to, in milliseconds."""
        if not self._seconds:
            return 0.0
        ordered = sorted(self._seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


class Meter:
    """Live progress: a bar in a terminal, a line every two seconds when piped."""

    def __init__(self, console: Console, title: str, total: int, detail: Callable[[], str]) -> None:
        self._console, self._title, self._total, self._detail = console, title, total, detail
        self._done = 0
        self._printed = time.monotonic()
        self._started = self._printed
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeElapsedColumn(),
                console=console,
                refresh_per_second=5,
            )
            self._task = self._progress.add_task(title, total=total, detail="")

    def __enter__(self) -> Self:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress:
            self._progress.update(self._task, completed=self._done, detail=self._detail())
            self._progress.stop()
        else:
            self._line()

    def advance(self, count: int = 1) -> None:
        """Count `count` more as done; redraws at most every two seconds by itself."""
        self._done += count
        if self._done & 0xFF and self._done != self._total:
            return
        if self._progress:
            self._progress.update(self._task, completed=self._done, detail=self._detail())
        elif time.monotonic() - self._printed >= PLAIN_LINE_EVERY_S:
            self._line()

    def _line(self) -> None:
        self._printed = time.monotonic()
        elapsed = self._printed - self._started
        rate = self._done / elapsed if elapsed > 0 else 0.0
        print(
            f"{self._title}: {self._done:,} of {self._total:,} ({rate:,.0f}/s) {self._detail()}",
            file=self._console.file,
            flush=True,
        )


def note(console: Console, text: str) -> None:
    """Say one line about what happens now, on the console that the progress uses."""
    if console.is_terminal:
        console.print(text, markup=False, highlight=False)
    else:
        print(text, file=console.file, flush=True)


def progress_console(file: TextIO) -> Console:
    """Return the console for progress and report: rich only in a terminal."""
    return Console(file=file, soft_wrap=True)
