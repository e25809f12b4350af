"""Run a demo from start to report, with a clean end whatever happens."""

from __future__ import annotations

import asyncio
import json as jsonlib
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from spacegrid.errors import SpaceGridError
from spacegrid.testing import LocalCluster

from .flash_sale import UNIT, FlashSaleOptions, FlashSaleRun
from .grid_side import Targets
from .orders_file import OrdersFileError
from .real_orders import UNITS, RealOrdersOptions, RealOrdersRun
from .report import Report, note, progress_console

PARTITIONS = 1_024
EXIT_OK, EXIT_MISMATCH, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def run_demo(
    options: FlashSaleOptions | RealOrdersOptions,
    *,
    sql: str | None = None,
    lmdb: Path | None = None,
    report_path: Path | None = None,
    fresh: bool = False,
    json: bool = False,
    console: Console | None = None,
) -> int:
    """Run one demo.

    Args:
        options: Which demo, and its size.
        sql: `sqlite:///PATH` to keep the database; None: a temporary one.
        lmdb: Folder to keep the nodes' stores; None: a temporary one.
        report_path: File for the report as JSON; None: only printed.
        fresh: Replace targets that exist.
        json: Print the report as one JSON document on standard output, and nothing else there.
        console: Where to print all else; None: standard output, with `json` standard error.

    Returns:
        Exit code: 0 nothing lost or different, 1 a mismatch, 2 a target or file that can't be
        used, 130 interrupted.
    """
    console = console or progress_console(sys.stderr if json else sys.stdout)
    with tempfile.TemporaryDirectory(prefix="spacegrid-demo-") as scratch:
        try:
            targets = Targets.prepare(sql, lmdb, Path(scratch), fresh)
            report = asyncio.run(_run(options, targets, console))
        except (SpaceGridError, OrdersFileError, OSError) as error:
            console.print(f"error: {error}", markup=False, highlight=False)
            return EXIT_USAGE
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
    if json:
        sys.stdout.write(jsonlib.dumps(report.as_json()) + "\n")
        sys.stdout.flush()
    else:
        report.show(console)
    if report_path is not None:
        report.write(report_path)
    if report.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_OK if report.ok else EXIT_MISMATCH


async def _run(
    options: FlashSaleOptions | RealOrdersOptions, targets: Targets, console: Console
) -> Report:
    units = [UNIT] if isinstance(options, FlashSaleOptions) else list(UNITS)
    cluster = LocalCluster(
        nodes=options.nodes,
        units=units,
        data=targets.lmdb,
        sql=targets.sql_url,
        partitions=PARTITIONS,
    )
    started = time.monotonic()
    run: FlashSaleRun | RealOrdersRun
    if isinstance(options, FlashSaleOptions):
        run = FlashSaleRun(options, cluster, console)
    else:
        run = RealOrdersRun(options, cluster, console)
    work = asyncio.create_task(_work(run, cluster, targets, console, started))
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        run.report.interrupted = True
        note(console, "interrupted: stopping the nodes")
    finally:
        await asyncio.to_thread(cluster.stop)
    return run.report


async def _work(
    run: FlashSaleRun | RealOrdersRun,
    cluster: LocalCluster,
    targets: Targets,
    console: Console,
    started: float,
) -> None:
    await asyncio.to_thread(cluster.start)
    note(console, f"{len(cluster.nodes)} nodes ready after {time.monotonic() - started:,.1f} s")
    await run.run()
    note(console, "comparing the grid, LMDB and SQL")
    await run.check(targets)
