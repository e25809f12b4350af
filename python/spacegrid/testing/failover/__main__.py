"""`python -m spacegrid.testing.failover`: measure, print p50 and p99, write the report.

Each measurement has a cluster of its own. Exit code 0: nothing lost or wrong (a figure that was not
reached is printed and does not fail the run), 1: something was, 130: interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from spacegrid.config import parse_size
from spacegrid.testing.failover.faults import hung, killed, minority
from spacegrid.testing.failover.moves import join_leave, rolling
from spacegrid.testing.failover.pressure import burnt, full, held
from spacegrid.testing.failover.stage import Stage, StageOptions
from spacegrid.testing.figures import Report, Target
from spacegrid.testing.wired import COORDINATORS

Measure = Callable[[Stage], Awaitable[tuple[dict[str, Any], list[Target]]]]

MOVED_BYTES: Final = 64 << 20
QUOTA_BYTES: Final = 24 << 20
MEASURES: Final[dict[str, Measure]] = {
    "kill": partial(killed, controller=False),
    "kill-controller": partial(killed, controller=True),
    "hung": partial(hung, controller=False),
    "hung-controller": partial(hung, controller=True),
    "minority": minority,
    "rolling": rolling,
    "join-leave": join_leave,
    "burn": burnt,
    "hold": held,
    "quota": full,
}


def main() -> int:
    """Read the command line and run; the exit code."""
    parser = argparse.ArgumentParser(prog="spacegrid.testing.failover", description=__doc__)
    parser.add_argument("--cycles", type=int, default=10, help="repetitions (default 10)")
    parser.add_argument("--only", default="", help=f"NAME[,NAME] of {', '.join(MEASURES)}")
    parser.add_argument("--partitions", type=int, default=64)
    parser.add_argument("--load-bytes", type=parse_size, default=0, help="such as 1GB")
    parser.add_argument("--no-lmdb", action="store_true", help="keep copies in memory only")
    parser.add_argument("--coordinator", default="local", choices=COORDINATORS)
    parser.add_argument("--report", type=Path, help="file for the report as JSON")
    given = parser.parse_args()
    names = [name for name in given.only.split(",") if name] or list(MEASURES)
    for name in names:
        if name not in MEASURES:
            parser.error(f"{name!r} is not one of {', '.join(MEASURES)}")
    options = StageOptions(
        cycles=given.cycles,
        partitions=given.partitions,
        load_bytes=given.load_bytes,
        lmdb=not given.no_lmdb,
        coordinator=given.coordinator,
    )
    report = Report("failover", settings={**vars(given), "report": str(given.report)})
    asyncio.run(_interruptible(_measure(names, options, report), report))
    if given.report is not None:
        report.write(given.report)
    _print(report)
    return 130 if report.interrupted else 0 if report.ok else 1


async def _interruptible(work: Any, report: Report) -> None:
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        report.interrupted = True


async def _measure(names: list[str], options: StageOptions, report: Report) -> None:
    begun = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - begun:7.1f} s  {text}", flush=True)

    for name in names:
        tell(f"{name}: a cluster of {options.nodes} nodes starts")
        stage = await Stage.start(_fitted(name, options), tell)
        try:
            figures, targets = await MEASURES[name](stage)
            report.figures |= figures
            report.targets += targets
        finally:
            report.violations += [f"{name}: {text}" for text in stage.violations]
            await stage.close()


def _fitted(name: str, options: StageOptions) -> StageOptions:
    """What a measurement needs, and how often it makes sense."""
    match name:
        case "join-leave":
            load = options.load_bytes or MOVED_BYTES
            return replace(options, load_bytes=load, cycles=max(1, options.cycles // 5))
        case "rolling":
            return replace(options, cycles=max(1, options.cycles // 5))
        case "burn" | "hold":
            return replace(options, cycles=max(1, options.cycles // 10))
        case "quota":
            return replace(options, quota_bytes=QUOTA_BYTES, load_bytes=0)
    return options


def _print(report: Report) -> None:
    for name, figure in report.figures.items():
        shown = f"{figure:,}" if isinstance(figure, (int, float)) else str(figure)
        print(f"  {name:<36} {shown}")
    for text in report.missed():
        print(f"not reached: {text}")
    for text in report.violations:
        print(f"violated: {text}")
    state = "interrupted" if report.interrupted else "ok" if report.ok else "NOT OK"
    reached = len(report.targets) - len(report.missed())
    print(
        f"failover: {state}: {reached} of {len(report.targets)} figures reached, "
        f"{len(report.violations)} violations"
    )


if __name__ == "__main__":
    sys.exit(main())
