"""`spacegrid chaos`: progress while it runs, a verdict at its end, and a report to keep."""

from __future__ import annotations

import asyncio
import json as jsonlib
import signal
import sys
from pathlib import Path
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from spacegrid.testing.chaos.run import ChaosOptions, ChaosRun, Progress
from spacegrid.testing.figures import Report

EXIT_OK: Final = 0
EXIT_VIOLATED: Final = 1
EXIT_INTERRUPTED: Final = 130
VIOLATIONS_SHOWN: Final = 5


def run_chaos(options: ChaosOptions, *, report: Path | None = None, json: bool = False) -> int:
    """Run chaos and say what came of it.

    Args:
        options: What to run.
        report: File for the report as JSON; None: none.
        json: Print the report as JSON on stdout instead of the verdict.

    Returns:
        Exit code: 0 all promises held, 1 one was broken, 130 interrupted.

    Raises:
        ConfigError: An option names nothing.
    """
    console = Console(file=sys.stderr if json else sys.stdout, soft_wrap=True)
    with _Show(console, options.cycles) as show:
        run = ChaosRun(options, show.progress)
        show.say(f"chaos: seed {run.seed}, {options.cycles} cycles, {options.nodes} nodes")
        asyncio.run(_until_done(run))
    found = run.report
    if report is not None:
        found.write(report)
    if json:
        sys.stdout.write(jsonlib.dumps(found.as_json()) + "\n")
    _show_violations(console, found)
    console.print(verdict(found, run.seed), markup=False, highlight=False)
    if found.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_OK if found.ok else EXIT_VIOLATED


async def _until_done(run: ChaosRun) -> None:
    work = asyncio.create_task(run.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        if not run.report.interrupted:
            raise


def verdict(report: Report, seed: int) -> str:
    """One line that says how it ended."""
    f = report.figures
    state = "interrupted" if report.interrupted else "ok" if report.ok else "VIOLATED"
    return (
        f"chaos: {state}: {f['cycles']} cycles, {f['operations']:,} operations, "
        f"{f['lost']} lost, {f['applied_twice']} applied twice, "
        f"{f['old_epoch_acknowledgements']} acknowledgements of an old epoch, "
        f"{f['violations']} violations, heal p99 {f['heal_p99_ms']:,.0f} ms, "
        f"{f['elapsed_s']:,.0f} s, seed {seed}"
    )


def _show_violations(console: Console, report: Report) -> None:
    for text in report.violations[:VIOLATIONS_SHOWN]:
        console.print(text, markup=False, highlight=False)
    hidden = len(report.violations) - VIOLATIONS_SHOWN
    if hidden > 0:
        console.print(f"... and {hidden} more")
    if report.violations:
        console.print(f"data and logs are kept in {report.settings['logs']}", markup=False)


class _Show:
    """Live progress: a bar in a terminal, a line a step when piped."""

    def __init__(self, console: Console, cycles: int) -> None:
        self._console = console
        self._cycles = cycles
        self._bar: Bar | None = None
        self.progress = Progress(self._cycle, self._done)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar = Bar(
                TextColumn("chaos"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=self._cycles)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Say one line."""
        self._console.print(text, markup=False, highlight=False)

    def _cycle(self, number: int, nemesis: str, what: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=f"{nemesis}: {what}")
        elif what not in ("load", "heal", "check"):
            self.say(f"cycle {number} of {self._cycles}: {nemesis}: {what}")

    def _done(self, number: int, operations: int, violations: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=number)
        else:
            self.say(f"cycle {number} done: {operations:,} operations, {violations} violations")
