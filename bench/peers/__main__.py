"""Run the side-by-side benchmark and write its report."""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import redis
from rich.console import Console
from rich.table import Table

from . import data, local, servers

# name, what, in flight, the contender, done at, aim
REMOTE = (
    ("get_16", "get", 16, "grid", 4.0, 7.0),
    ("get_64", "get", 64, "grid", 8.0, 16.0),
    ("put_64", "put", 64, "grid", 6.0, 12.0),
    ("put_backup_64", "put", 64, "pair", 3.0, 6.0),
    ("get_1", "get", 1, "grid", None, 0.5),
    ("get_many_1000", "get_many", 1, "grid", 1.0, 2.0),
    ("put_many_1000", "put_many", 1, "grid", 1.0, 2.0),
)
CALIBRATION_SHIFT_MAX = 0.15


class Worker:
    """A load process and its two pipes."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send one order and wait for its result."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load process ended with {self.process.wait()} during {order}")
        result: dict[str, Any] = json.loads(line)
        return result

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)


class Run:
    """Figures of one run, with the target each is held to."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.figures: dict[str, Any] = {}
        self.targets: dict[str, dict[str, Any]] = {}

    def ratio(
        self,
        name: str,
        ours: list[float],
        theirs: list[float],
        done: float | None,
        aim: float | None,
        *,
        lower_is_better: bool = False,
    ) -> None:
        """Keep one ratio: median of the repetitions' ratios, with the smallest and the largest."""
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        self.figures[name] = {
            "ratio": statistics.median(ratios),
            "smallest": min(ratios),
            "largest": max(ratios),
            "ours": statistics.median(ours),
            "theirs": statistics.median(theirs),
        }
        self.hold(name, statistics.median(ratios), done, aim, lower_is_better)

    def hold(
        self, name: str, value: float, done: float | None, aim: float | None, lower_is_better: bool
    ) -> None:
        """Compare a figure with its target."""
        met = done is None or (value <= done if lower_is_better else value >= done)
        self.targets[name] = {"done_at": done, "aim": aim, "met": met}

    def show(self) -> None:
        """Print every figure in one table."""
        table = Table(title="side by side, one run, one machine")
        for column in (
            "row",
            "ratio",
            "smallest to largest",
            "ours",
            "theirs",
            "done at",
            "aim",
            "met",
        ):
            table.add_column(column, justify="left" if column == "row" else "right", no_wrap=True)
        for name, figure in self.figures.items():
            target = self.targets.get(name, {})
            spread = (
                f"{figure['smallest']:.2f} to {figure['largest']:.2f}"
                if "smallest" in figure
                else ""
            )
            table.add_row(
                name,
                f"{figure['ratio']:.3g}",
                spread,
                f"{figure['ours']:,.4g}" if "ours" in figure else "",
                f"{figure['theirs']:,.4g}" if "theirs" in figure else "",
                *(shown(target.get(key)) for key in ("done_at", "aim", "met")),
            )
        self.console.print(table)


def shown(value: object) -> str:
    """Format a target for the table."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return "" if value is None else f"{value:g}"


def calibrate() -> float:
    """Return the time of a fixed piece of Python in milliseconds, the best of five."""
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        total = 0
        for number in range(300_000):
            total += number & 7
        best = min(best, time.perf_counter() - started)
    return best * 1000


def remote_rows(run: Run, worker: Worker, options: argparse.Namespace, suffix: str = "") -> None:
    """Measure every remote row, the contenders in turn."""
    for name, what, in_flight, who, done, aim in REMOTE:
        ours: list[float] = []
        theirs: list[float] = []
        for repetition in range(options.repetitions):
            order = {
                "do": "measure",
                "what": what,
                "in_flight": in_flight,
                "seconds": options.seconds,
                "skip": repetition * 1_000,
            }
            # Close in time, and each of them first in every other pair: what a machine's speed
            # does meanwhile happens to both.
            turns = [(ours, who), (theirs, "redis")]
            for rates, contender in turns if repetition % 2 == 0 else reversed(turns):
                rates.append(worker.ask(who=contender, **order)["per_s"])
        held = (done, aim) if not suffix else (None, None)
        run.ratio(name + suffix, ours, theirs, *held)
        run.console.print(f"{name + suffix}: {run.figures[name + suffix]['ratio']:.2f} x")


def busy_row(run: Run, worker: Worker, options: argparse.Namespace) -> None:
    """Measure gets at 16 in flight beside a unit that burns a core, against the idle node."""
    busy, idle = [], []
    for _ in range(options.repetitions):
        order = {
            "what": "get",
            "who": "grid",
            "in_flight": 16,
            "seconds": options.seconds,
            "latencies": True,
        }
        idle.append(worker.ask(do="measure", **order)["p99_us"])
        busy.append(worker.ask(do="busy", **order)["p99_us"])
    run.ratio("busy_node_p99", busy, idle, 20.0, 5.0, lower_is_better=True)


def memory_row(run: Run, entries: int, redis_figures: dict[str, float], grid_bytes: float) -> None:
    """Compare the resident bytes beyond key and value of one entry."""
    payload = data.KEY_BYTES + data.VALUE_BYTES
    ours, theirs = grid_bytes / entries - payload, redis_figures["resident"] / entries - payload
    run.figures["overhead_bytes_per_entry"] = {
        "ratio": ours / theirs,
        "ours": ours,
        "theirs": theirs,
        "theirs_used_memory": redis_figures["used"] / entries - payload,
    }
    run.hold("overhead_bytes_per_entry", ours / theirs, 1.0, 50.0 / theirs, lower_is_better=True)


def local_rows(run: Run, keys: list[bytes], redis_port: int, options: argparse.Namespace) -> None:
    """Measure the rows that need no server of ours."""
    rows = local.colocated(keys, redis_port, options.repetitions)
    run.ratio(
        "colocated_get_to_dict",
        rows["bytes"]["ours"],
        rows["bytes"]["theirs"],
        6.0,
        4.0,
        lower_is_better=True,
    )
    run.ratio(
        "colocated_record_faster", rows["record"]["theirs"], rows["record"]["ours"], 10.0, 20.0
    )
    rings = local.ring(options.repetitions)
    run.ratio("ring_single", rings["single"]["theirs"], rings["single"]["ours"], 15.0, None)
    run.ratio("ring_batch", rings["batch"]["theirs"], rings["batch"]["ours"], 50.0, None)
    for name, value in local.placement().items():
        run.figures[f"placement_{name}"] = {"ratio": value}
        run.hold(f"placement_{name}", value, 1.05, 1.02, lower_is_better=True)


def main() -> int:
    """Run everything; the exit code is 0 also when a target is missed, the report says which."""
    parser = argparse.ArgumentParser(prog="bench.peers")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one window")
    parser.add_argument("--repetitions", type=int, default=20, help="pairs of windows a row")
    parser.add_argument("--pin", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    console = Console(soft_wrap=True, width=140)
    run = Run(console)
    calibration = [calibrate()]
    core = 0 if options.pin else None
    keys = data.keys(options.entries)
    with ExitStack() as stack:
        redis_port, redis_pid = stack.enter_context(servers.redis_server(core))
        grid = stack.enter_context(servers.grid_nodes(1, 1, core))
        pair = stack.enter_context(servers.grid_nodes(2, 2, core))
        node = next(iter(grid.nodes.values()))
        client = redis.Redis(port=redis_port)
        stack.callback(client.close)
        workers = {}
        for loop in ("uvloop", "asyncio"):
            process = servers.worker(
                loop,
                redis_port,
                grid.addresses[0],
                pair.addresses[0],
                options.entries,
                None if core is None else 1,
            )
            workers[loop] = Worker(process)
            stack.callback(workers[loop].close)
        before = (
            servers.resident_bytes(node.pid),
            servers.resident_bytes(redis_pid),
            used_memory(client),
        )
        for who in ("redis", "grid", "pair"):
            seconds = workers["uvloop"].ask(do="load", who=who)["seconds"]
            console.print(f"{who}: {options.entries:,} entries loaded in {seconds:.1f} s")
            workers["uvloop"].ask(do="check", who=who)
        redis_figures = {
            "resident": servers.resident_bytes(redis_pid) - before[1],
            "used": used_memory(client) - before[2],
        }
        memory_row(
            run, options.entries, redis_figures, servers.resident_bytes(node.pid) - before[0]
        )
        remote_rows(run, workers["uvloop"], options)
        busy_row(run, workers["uvloop"], options)
        remote_rows(run, workers["asyncio"], options, "_plain_asyncio")
        local_rows(run, keys, redis_port, options)
    calibration.append(calibrate())
    shift = abs(calibration[1] / calibration[0] - 1)
    run.figures["calibration_ms"] = {
        "ratio": calibration[1] / calibration[0],
        "ours": calibration[1],
        "theirs": calibration[0],
    }
    run.show()
    if shift > CALIBRATION_SHIFT_MAX:
        console.print(
            f"the machine changed by {shift:.0%} during the run: measure again before you publish"
        )
    report = {
        "name": "bench-peers",
        "ok": all(target["met"] for target in run.targets.values()),
        "figures": run.figures,
        "targets": run.targets,
        "conditions": vars(options)
        | {
            "report": str(options.report),
            "python": platform.python_version(),
            "versions": {
                name: version(name)
                for name in ("grpcio", "redis", "hiredis", "uvloop", "uhashring")
            },
            "steady": shift <= CALIBRATION_SHIFT_MAX,
        },
    }
    if options.report:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(json.dumps(report, indent=2) + "\n")
    missed = [name for name, target in run.targets.items() if not target["met"]]
    console.print(f"done at: {'missed by ' + ', '.join(missed) if missed else 'all met'}")
    return 0


def used_memory(client: redis.Redis) -> int:
    """Return what Redis says it uses."""
    return int(client.info("memory")["used_memory"])  # type: ignore[index]


if __name__ == "__main__":
    sys.exit(main())
