"""`python -m simulation.mutants`: plant each bug in turn, run seeds until one of them finds it.

The seeds of a bug are run in order, a few in each process, in as many processes as there are
processors; bugs that took the fewest seeds so far go first, so the hard ones are left for the end.
A bug is done with the lowest seed that finds it. At the end those seeds are run without any bug:
what they find then was not the bug's doing, and counts for nothing.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

SEEDS_MAX = 500
BATCH = 6
"""Seeds that one process runs before it is asked whether the bug was found meanwhile."""
REPORT = Path("build/reports/sim-mutants.json")


def load_core(extension: Path) -> None:
    """Put an extension in the place of the installed one, before anything imports it."""
    loader = importlib.machinery.ExtensionFileLoader("spacegrid._core", str(extension))
    spec = importlib.util.spec_from_file_location("spacegrid._core", extension, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules["spacegrid._core"] = module


def is_clean(seed: int) -> bool:
    """Whether a seed finds nothing with no bug planted."""
    from .run import run

    return run(seed).ok


def hunt(name: str, extension: Path, seeds: range) -> tuple[int, str, float]:
    """Run seeds with one bug planted, in a process of their own, until one finds it.

    Returns:
        That seed (0: none), what was found, and the seconds.
    """
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  a panic is a finding, not a message
    os.dup2(sys.stderr.fileno(), 2)
    load_core(extension)
    from . import planted
    from .run import run

    planted.plant(name)
    began = time.perf_counter()
    for seed in seeds:
        result = run(seed)
        # A history that the checker could not decide is no finding.
        if not result.ok and "not decided within" not in result.problem:
            return seed, result.problem, time.perf_counter() - began
    return 0, "", time.perf_counter() - began


@dataclass
class Bug:
    """How far the hunt for one bug is."""

    name: str
    next: int = 1
    seed: int = 0
    found: str = ""
    seconds: float = 0.0
    under_way: set[int] = field(default_factory=set)

    @property
    def done(self) -> bool:
        """Found, with nothing under way that could find it earlier."""
        return self.seed > 0 and all(first > self.seed for first in self.under_way)

    def take(self, first: int, result: tuple[int, str, float]) -> None:
        """Take what a batch came to."""
        self.under_way.discard(first)
        seed, found, seconds = result
        self.seconds += seconds
        if seed and (not self.seed or seed < self.seed):
            self.seed, self.found = seed, found.splitlines()[0][:200]


def hunt_all(names: list[str], extension: Path, seeds_max: int) -> Iterator[Bug]:
    """Hunt all bugs; each is yielded when it is found, or when all its seeds are over."""
    bugs = {name: Bug(name) for name in names}
    open_bugs = list(bugs.values())
    workers = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    running: dict[Future[tuple[int, str, float]], tuple[Bug, int]] = {}
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        while open_bugs:
            ready = [bug for bug in open_bugs if not bug.seed and bug.next <= seeds_max]
            while ready and len(running) < workers:
                bug = min(ready, key=lambda bug: bug.next)
                first = bug.next
                bug.next = min(first + BATCH, seeds_max + 1)
                bug.under_way.add(first)
                running[pool.submit(hunt, bug.name, extension, range(first, bug.next))] = bug, first
                ready = [bug for bug in ready if bug.next <= seeds_max]
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                bug, first = running.pop(future)
                bug.take(first, future.result())
                missed = bug.next > seeds_max and not bug.under_way and not bug.seed
                if bug in open_bugs and (bug.done or missed):
                    open_bugs.remove(bug)
                    yield bug


def discount(bugs: list[Bug], extension: Path) -> None:
    """Take back what seeds find that find something with nothing planted as well."""
    seeds = sorted({bug.seed for bug in bugs if bug.seed})
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        os.cpu_count(), mp_context=context, initializer=load_core, initargs=(extension,)
    ) as pool:
        clean = dict(zip(seeds, pool.map(is_clean, seeds), strict=True))
    for bug in bugs:
        if bug.seed and not clean[bug.seed]:
            print(f"{bug.name}: seed {bug.seed} finds something without it as well: not counted")
            bug.seed = 0


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
    bugs: list[Bug] = []
    for bug in hunt_all(names, arguments.extension, arguments.seeds):
        bugs.append(bug)
        what = f"seed {bug.seed}" if bug.seed else "NOT FOUND"
        print(f"[{len(bugs)}/{len(names)}] {bug.name}: {what} ({bug.seconds:.0f} s) {bug.found}")
        sys.stdout.flush()
    discount(bugs, arguments.extension)
    return report(bugs, arguments.report)


def report(bugs: list[Bug], path: Path) -> int:
    """Write the report and say in one line what came of it; the exit code."""
    from . import planted

    missed = sorted(bug.name for bug in bugs if not bug.seed)
    each = {
        bug.name: {
            "rule": planted.rule(bug.name),
            "seeds": bug.seed,
            "found": bug.found,
            "seconds": round(bug.seconds, 1),
        }
        for bug in bugs
    }
    figures = {"bugs": len(bugs), "found": len(bugs) - len(missed), "each": each}
    whole = {
        "name": "sim-mutants",
        "ok": not missed,
        "figures": figures,
        "targets": {"bugs_min": 20, "seeds_max": SEEDS_MAX, "missed": 0},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=2) + "\n")
    most = max((bug.seed for bug in bugs), default=0)
    missing = f", NOT FOUND: {', '.join(missed)}" if missed else ""
    print(
        f"sim-mutants: {len(bugs) - len(missed)} of {len(bugs)} planted bugs found, "
        f"the slowest after {most} seeds{missing}"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
