"""`python -m simulation.mutants`: plant each bug in turn, run seeds until one of them finds it."""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

SEEDS_MAX = 500
REPORT = Path("build/reports/sim-mutants.json")


def load_core(extension: Path) -> None:
    """Put an extension in the place of the installed one, before anything imports it."""
    loader = importlib.machinery.ExtensionFileLoader("spacegrid._core", str(extension))
    spec = importlib.util.spec_from_file_location("spacegrid._core", extension, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules["spacegrid._core"] = module


def hunt(job: tuple[str, Path, int]) -> tuple[str, int, str, float]:
    """Run seeds with one bug planted.

    Returns:
        Its name, the seeds it took (0: not found), what was found, and the seconds.
    """
    name, extension, seeds = job
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  a panic is a finding, not a message
    os.dup2(sys.stderr.fileno(), 2)
    load_core(extension)
    from . import planted
    from .run import run

    planted.plant(name)
    began = time.perf_counter()
    for seed in range(1, seeds + 1):
        result = run(seed)
        if not result.ok:
            return name, seed, result.problem, time.perf_counter() - began
    return name, 0, "", time.perf_counter() - began


def main() -> int:
    """Parse, hunt, report; the exit code."""
    from . import planted

    parser = argparse.ArgumentParser(prog="simulation.mutants", description=__doc__)
    parser.add_argument("--extension", type=Path, required=True, help="_core with the bugs in it")
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX, help="most seeds for one bug")
    parser.add_argument("--only", default="", help="names, with commas between them")
    parser.add_argument("--report", type=Path, default=REPORT)
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(planted.NAMES)
    found: dict[str, dict[str, object]] = {}
    pool = multiprocessing.get_context("spawn").Pool(os.cpu_count(), maxtasksperchild=1)
    with pool:
        jobs = [(name, arguments.extension, arguments.seeds) for name in names]
        results = pool.imap_unordered(hunt, jobs, chunksize=1)
        for done, (name, seeds, problem, seconds) in enumerate(results, 1):
            found[name] = {
                "rule": planted.rule(name),
                "seeds": seeds,
                "found": problem.splitlines()[0][:200] if problem else "",
                "seconds": round(seconds, 1),
            }
            what = f"seed {seeds}" if seeds else "NOT FOUND"
            print(f"[{done}/{len(names)}] {name}: {what} ({seconds:.0f} s) {found[name]['found']}")
            sys.stdout.flush()
    missed = sorted(name for name, one in found.items() if not one["seeds"])
    report = {
        "name": "sim-mutants",
        "ok": not missed,
        "figures": {"bugs": len(names), "found": len(names) - len(missed), "each": found},
        "targets": {"bugs_min": 20, "seeds_max": SEEDS_MAX, "missed": 0},
    }
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    arguments.report.write_text(json.dumps(report, indent=2) + "\n")
    most = max((int(str(one["seeds"])) for one in found.values()), default=0)
    missing = f", NOT FOUND: {', '.join(missed)}" if missed else ""
    print(
        f"sim-mutants: {len(names) - len(missed)} of {len(names)} planted bugs found, "
        f"the slowest after {most} seeds{missing}"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
