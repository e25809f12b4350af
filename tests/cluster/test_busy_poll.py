"""A net thread polls while frames come one after the other, and sleeps when they do not."""

import os
import time
from pathlib import Path

import pytest
import spacegrid
from spacegrid.client.blocking_map import BlockingMap
from spacegrid.testing import LocalCluster

FRAMES = 100


class NetThread:
    """The net thread of a node, as the kernel counts it."""

    def __init__(self, pid: int) -> None:
        tasks = [Path(f"/proc/{pid}/task") / task for task in os.listdir(f"/proc/{pid}/task")]
        (self.task,) = [task for task in tasks if self.name(task) == "spacegrid-net"]

    @staticmethod
    def name(task: Path) -> str:
        try:
            return (task / "comm").read_text().strip()
        except OSError:
            return ""  # it has ended since it was listed

    def sleeps(self) -> int:
        for line in (self.task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                return int(line.split()[1])
        raise AssertionError("the kernel does not count sleeps")

    def busy_ns(self) -> int:
        return int((self.task / "schedstat").read_text().split()[0])


def sleeps_per_frame(thread: NetThread, entries: BlockingMap[str, int]) -> float:
    before = thread.sleeps()
    for _ in range(FRAMES):
        entries.get("a")
    return (thread.sleeps() - before) / FRAMES


@pytest.mark.parametrize("busy_poll_us", [0, 10_000])
def test_a_thread_that_polls_hardly_sleeps_between_frames(
    tmp_path: Path, busy_poll_us: int
) -> None:
    environment = {"SPACEGRID_BUSY_POLL_US": str(busy_poll_us)}
    with (
        LocalCluster(nodes=1, copies=1, data=tmp_path, environment=environment) as cluster,
        spacegrid.connect_sync(cluster.addresses[0]) as grid,
    ):
        entries = grid.map("n", key=str, value=int)
        entries.put("a", 1)
        thread = NetThread(cluster.status().self.pid)
        until = time.monotonic() + 40
        # A core that others want is left to them, and a thread that is kept from its core finds the
        # next frame there when it looks: a crowded machine needs more than one look.
        while ((sleeps := sleeps_per_frame(thread, entries)) < 0.5) is not bool(busy_poll_us):
            assert time.monotonic() < until, sleeps


def test_a_thread_that_polled_sleeps_when_no_frame_comes(tmp_path: Path) -> None:
    with (
        LocalCluster(nodes=1, copies=1, data=tmp_path) as cluster,
        spacegrid.connect_sync(cluster.addresses[0]) as grid,
    ):
        entries = grid.map("n", key=str, value=int)
        thread = NetThread(cluster.status().self.pid)
        for _ in range(FRAMES):
            entries.get("a")
        busy_ns, share, until = thread.busy_ns(), 1.0, time.monotonic() + 20
        while share > 0.2:
            assert time.monotonic() < until, share
            began = time.monotonic_ns()
            time.sleep(0.2)  # the span that is measured
            now_ns = thread.busy_ns()
            share = (now_ns - busy_ns) / (time.monotonic_ns() - began)
            busy_ns = now_ns
