"""Run seeds in processes, show how far it is, say in one line what came of it."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from pathlib import Path

from .options import draw
from .run import Result, run

REPORT = Path("build/reports/sim.json")


def main() -> int:
    """Parse, run, report; the exit code."""
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed alone and show its end")
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--lines", type=int, default=60, help="with --seed: lines of the trace")
    parser.add_argument("--report", type=Path, default=REPORT)
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return _one(arguments.seed, arguments.lines)
    return _many(arguments.first, arguments.seeds, arguments.report)


def _one(seed: int, lines: int) -> int:
    log: list[str] = []
    print(f"seed {seed}\n{draw(seed).lines()}")
    result = run(seed, log=log)
    if not result.ok:
        print("\n".join(line[:300] for line in log[-lines:]))
    print(json.dumps(result.figures))
    print(f"trace {result.digest}")
    print(f"sim seed {seed}: {'ok' if result.ok else result.problem}")
    return 0 if result.ok else 1


def _many(first: int, count: int, report: Path) -> int:
    began = time.perf_counter()
    totals: Counter[str] = Counter()
    failed: list[Result] = []
    slowest = 0.0
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for done, result in enumerate(pool.imap_unordered(run, range(first, first + count)), 1):
            for name in ("operations", "ok", "failed", "unknown", "events", "lost"):
                totals[name] += result.figures[name]
            for name, times in result.figures["faults"].items():
                totals[f"fault {name}"] += times
            slowest = max(slowest, result.figures["wall_s"])
            if not result.ok:
                failed.append(result)
                _line(
                    f"seed {result.seed}: {result.problem}\n  again: make sim SEED={result.seed}\n"
                )
            _progress(done, count, len(failed), time.perf_counter() - began)
    _line("")
    seconds = time.perf_counter() - began
    verdict = _verdict(count, totals, failed, seconds)
    report.parent.mkdir(parents=True, exist_ok=True)
    figures = {
        "seeds": count,
        "first": first,
        "violations": len(failed),
        "failed_seeds": sorted(result.seed for result in failed),
        "seconds": round(seconds, 1),
        "slowest_run_s": slowest,
        **totals,
    }
    targets = {"violations": 0}
    report.write_text(
        json.dumps(
            {"name": "sim", "ok": not failed, "figures": figures, "targets": targets}, indent=2
        )
        + "\n"
    )
    print(verdict)
    return 1 if failed else 0


def _verdict(count: int, totals: Counter[str], failed: list[Result], seconds: float) -> str:
    faults = sum(times for name, times in totals.items() if name.startswith("fault "))
    what = (
        "0 lost, 0 non-linearizable keys, 0 violations"
        if not failed
        else f"{len(failed)} seeds FAILED, the first is {min(result.seed for result in failed)}"
    )
    return (
        f"sim: {what} in {count} seeds, {totals['operations']:,} operations, "
        f"{faults:,} faults, {totals['events']:,} events, {seconds:.0f} s"
    )


def _progress(done: int, count: int, failed: int, seconds: float) -> None:
    if not sys.stderr.isatty():
        return
    filled = 30 * done // count
    left = seconds / done * (count - done)
    bar = "#" * filled + "." * (30 - filled)
    sys.stderr.write(f"\r[{bar}] {done}/{count} seeds, {failed} failed, {left:.0f} s left ")
    sys.stderr.flush()


def _line(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r" + " " * 78 + "\r")
    if text:
        sys.stderr.write(text)


if __name__ == "__main__":
    sys.exit(main())
