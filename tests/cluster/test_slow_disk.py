"""A disk on which every sync takes two seconds, under all nodes at once.

Goal: nobody but who waits for the disk notices it. Method: a library in front of libc's fsync and
fdatasync waits while a file is there; the nodes and the coordinator are real.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import spacegrid
from spacegrid.testing import LocalCluster

SYNC_S = 2.0
SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

static int slow(const char *name, int file) {
    if (access(SLOW, F_OK) == 0) usleep(DELAY_US);
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(file);
}
int fsync(int file) { return slow("fsync", file); }
int fdatasync(int file) { return slow("fdatasync", file); }
"""


def shim(folder: Path, slow: Path) -> Path:
    """Compile the library; a C compiler is there wherever the core was compiled."""
    source, library = folder / "shim.c", folder / "shim.so"
    source.write_text(SHIM)
    options = ["-shared", "-fPIC", f'-DSLOW="{slow}"', f"-DDELAY_US={int(SYNC_S * 1e6)}"]
    subprocess.run(["cc", *options, "-o", str(library), str(source), "-ldl"], check=True)
    return library


def withheld(cluster: LocalCluster) -> list[int]:
    """How many answers each node kept back, since its lease was over."""
    return [cluster.status(name).self.lease.withheld for name in cluster.nodes]


@pytest.mark.timeout(120)
def test_f48_a_slow_disk_delays_who_waits_for_it_and_nobody_else(
    start_cluster: Callable[..., LocalCluster], tmp_path: Path
) -> None:
    slow = tmp_path / "slow"
    library = shim(tmp_path, slow)
    cluster = start_cluster(nodes=3, partitions=16, environment={"LD_PRELOAD": str(library)})
    answered = withheld(cluster)
    before = [(p.epoch, p.primary, tuple(p.in_sync)) for p in cluster.partitions()]
    with spacegrid.connect_sync(*cluster.addresses, timeout=30) as grid:
        stock = grid.map("stock", key=int, value=int)
        stock.put(0, 0)
        slow.touch()
        began, writes, longest = time.monotonic(), 0, 0.0
        while time.monotonic() - began < 3 * SYNC_S:
            sent = time.monotonic()
            stock.put(writes % 100, writes)
            longest = max(longest, time.monotonic() - sent)
            writes += 1
        assert longest < SYNC_S / 2, f"a write waited {longest:.2f} s"
        sent = time.monotonic()
        stock.put(-1, 7, durability="persisted")
        assert time.monotonic() - sent > SYNC_S / 2, "the disk was not slow"
        slow.unlink()
    after = [(p.epoch, p.primary, tuple(p.in_sync)) for p in cluster.partitions()]
    assert after == before
    assert withheld(cluster) == answered
