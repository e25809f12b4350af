"""A short run of chaos in every test run, and a workload of a user's own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from spacegrid.client.asynchronous import AsyncGrid
from spacegrid.testing import ChaosOptions, ChaosRun, Recorder, Violation
from spacegrid.testing.chaos.nemesis import chosen

pytestmark = pytest.mark.timeout(180)


def command(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "spacegrid", "chaos", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )


def test_f02_a_few_faults_break_no_promise_and_the_report_says_so(tmp_path: Path) -> None:
    report = tmp_path / "reports" / "chaos.json"
    faults = "kill-primary,cut,isolate"
    run = command("--cycles", "3", "--nemesis", faults, "--report", str(report))
    shown, logs = run.communicate(timeout=150)
    assert run.returncode == 0, shown + logs
    assert shown.splitlines()[-1].startswith("chaos: ok: 3 cycles")
    found = json.loads(report.read_text())
    assert (found["name"], found["ok"]) == ("chaos", True)
    figures = found["figures"]
    assert figures["nemeses"] == {"kill-primary": 1, "cut": 1, "isolate": 1}
    assert figures["acknowledged"] > 200
    assert (figures["lost"], figures["applied_twice"], figures["violations"]) == (0, 0, 0)
    assert figures["old_epoch_acknowledgements"] == 0


@pytest.mark.parametrize(
    ("coordinator", "faults"),
    [
        ("local", ("kill-controller", "pause", "starve", "rolling", "join-leave")),
        ("etcd", ("kill", "pause")),
    ],
)
def test_every_fault_is_made_and_breaks_no_promise(
    tmp_path: Path, coordinator: str, faults: tuple[str, ...]
) -> None:
    options = ChaosOptions(
        cycles=len(faults), seed=3, nemesis=faults, coordinator=coordinator, data=tmp_path
    )
    report = asyncio.run(ChaosRun(options).run())
    assert report.ok, report.violations
    assert report.figures["nemeses"] == dict.fromkeys(faults, 1)
    assert report.figures["acknowledged"] > 100 * len(faults)


class Careless:
    """A workload whose check finds something: the run must say so."""

    def __init__(self) -> None:
        self.units: tuple[str, ...] = ()
        self.steps = 0

    async def start(self, grid: AsyncGrid, number: int) -> None:
        await grid.map("careless", key=str, value=int).put("round", number)

    async def step(self, grid: AsyncGrid, recorder: Recorder, random: Random) -> None:
        self.steps += 1
        # However long the coordinator is away: a step that fails would be found as well.
        await grid.map("careless", key=str, value=int).get("round", timeout=40)

    async def check(self, grid: AsyncGrid, recorder: Recorder) -> list[Violation]:
        return [Violation("lost", f"{self.steps > 0}")]

    async def check_all(self, grid: AsyncGrid) -> list[Violation]:
        return []


def test_a_workload_of_ones_own_is_run_and_what_it_finds_fails_the_run(tmp_path: Path) -> None:
    options = ChaosOptions(
        cycles=1, seed=5, nemesis=("coordinator",), workload="test_chaos:Careless", data=tmp_path
    )
    run = ChaosRun(options)
    report = asyncio.run(run.run())
    assert report.violations == ["cycle 1 (coordinator): lost: True"]
    assert not report.ok
    assert report.figures["lost"] == 1
    assert report.settings["seed"] == 5


def test_the_example_of_a_workload_sells_every_piece_once_while_a_node_is_killed() -> None:
    examples = Path(__file__).parents[2] / "examples"
    # The installed command, as the guide says: it does not find modules of the folder by itself.
    installed = str(Path(sys.executable).with_name("spacegrid"))
    run = subprocess.run(
        [
            *(installed, "chaos", "--cycles", "1", "--nemesis", "kill"),
            *("--unit", "shop:Shop", "--workload", "shop_chaos:Sales", "--json"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=examples,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout)["figures"]["acknowledged"] > 300


def test_ctrl_c_ends_a_run_with_nothing_left_behind(tmp_path: Path) -> None:
    report = tmp_path / "chaos.json"
    run = command("--cycles", "50", "--nemesis", "kill", "--report", str(report))
    assert run.stdout is not None
    while "kill -9" not in run.stdout.readline():
        assert run.poll() is None
    run.send_signal(signal.SIGINT)
    shown, logs = run.communicate(timeout=60)
    assert run.returncode == 130, shown + logs
    assert "chaos: interrupted" in shown
    assert json.loads(report.read_text())["interrupted"] is True


def test_data_is_lost_for_good_only_where_the_check_expects_that_or_it_is_asked_for() -> None:
    assert "both-copies" in chosen((), may_lose=True)
    assert "both-copies" not in chosen((), may_lose=False)
    assert chosen(("both-copies",), may_lose=False) == ("both-copies",)


def test_a_nemesis_that_does_not_exist_is_refused() -> None:
    run = command("--nemesis", "meteor")
    _, logs = run.communicate(timeout=30)
    assert run.returncode == 2
    assert "'meteor' is not one of kill," in logs
