"""Seeds of the simulator, and that a seed is one run, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .run import run

TESTS = Path(__file__).parents[1]
SAME = 11


@pytest.mark.parametrize("first", range(1, 22, 3))
def test_f12_seeds_with_cuts_of_every_kind(first: int) -> None:
    problems = [
        f"seed {seed}: {result.problem}\nagain: make sim SEED={seed}"
        for seed in range(first, first + 3)
        if not (result := run(seed)).ok
    ]
    assert not problems, "\n".join(problems)


def test_one_seed_is_one_run() -> None:
    first, second, other = run(SAME), run(SAME), run(SAME + 1)
    assert first.digest == second.digest
    assert first.figures["events"] == second.figures["events"]
    assert first.digest != other.digest


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_another_hash_seed_changes_nothing(hash_seed: str) -> None:
    code = f"from simulation.run import run; print(run({SAME}).digest)"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == run(SAME).digest
