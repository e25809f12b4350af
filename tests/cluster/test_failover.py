"""A node is killed under load: nothing acknowledged is lost, copies and node come back."""

import threading
import time
from collections.abc import Callable

import pytest
import spacegrid
from spacegrid.errors import DeadlineExceeded, SpaceGridError
from spacegrid.testing import LocalCluster

pytestmark = pytest.mark.timeout(120)


class Writer:
    """Writes keys one after another until told to stop, and remembers what was acknowledged."""

    def __init__(self, addresses: list[str], name: str) -> None:
        self.acknowledged: dict[str, int] = {}
        self.slowest_s = 0.0
        self._addresses = addresses
        self._name = name
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        self._stop.set()
        self._thread.join(60)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with spacegrid.connect_sync(*self._addresses, timeout=20) as grid:
                items = grid.map("items", key=str, value=int)
                number = 0
                while not self._stop.is_set():
                    begun = time.monotonic()
                    keys = {f"{self._name}-{number + n}": number + n for n in range(20)}
                    items.put_many(keys)
                    self.acknowledged.update(keys)
                    self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
                    number += 20
        except BaseException as error:
            self._error = error


@pytest.mark.parametrize("victim", ["a primary", "the controller"])
def test_no_acknowledged_write_is_lost_when_a_node_is_killed(
    start_cluster: Callable[..., LocalCluster], victim: str
) -> None:
    cluster = start_cluster(nodes=3)
    controller = cluster.controller()
    other = next(name for name in ("node-3", "node-2") if name != controller)
    name = controller if victim == "the controller" else other
    writers = [Writer(cluster.addresses, f"w{n}") for n in range(3)]
    cluster.wait_for(lambda: all(len(w.acknowledged) > 200 for w in writers), "some writes")
    before = [len(w.acknowledged) for w in writers]

    cluster.kill(name)
    cluster.wait_for(
        lambda: all(len(w.acknowledged) > n + 200 for w, n in zip(writers, before, strict=True)),
        "writes to go on after the kill",
    )
    # Two nodes are left: every partition is served and has both its copies again.
    cluster.wait_ready()
    cluster.restart(name)
    cluster.wait_ready()
    for writer in writers:
        writer.finish()

    expected = {key: value for w in writers for key, value in w.acknowledged.items()}
    with spacegrid.connect_sync(*cluster.addresses) as grid:
        items = grid.map("items", key=str, value=int)
        keys = list(expected)
        found = {}
        for start in range(0, len(keys), 1000):
            found.update(items.get_many(keys[start : start + 1000]))
    assert found == expected
    cluster.wait_for(
        lambda: min(node.primaries for node in cluster.status().nodes) >= 64 // 3 - 2,
        "the restarted node to get its share of primaries back",
    )
    assert max(w.slowest_s for w in writers) < 10


def test_f23_counters_are_applied_once_however_often_they_are_sent(
    start_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = start_cluster(nodes=3)
    with spacegrid.connect_sync(*cluster.addresses, timeout=20) as grid:
        counters = grid.map("counters", key=str, value=int)

        def increment(key: str) -> None:
            # Far too short for a failover, so that its outcome is unknown.
            counters.incr(key, 1, timeout=0.3)

        def add(key: str) -> None:
            send = lambda: increment(key)  # noqa: E731
            while True:
                try:
                    send()
                    return
                except DeadlineExceeded as error:
                    if error.maybe_applied:
                        resend = error.resend
                        send = lambda resend=resend: resend(1.0)  # noqa: E731
                    else:
                        send = lambda: increment(key)  # noqa: E731
                except SpaceGridError as error:
                    if not error.retryable:
                        raise

        for _ in range(3):
            for n in range(40):
                add(f"c{n}")
        cluster.kill("node-2")
        for _ in range(3):
            for n in range(40):
                add(f"c{n}")
        assert counters.get_many([f"c{n}" for n in range(40)], timeout=10) == {
            f"c{n}": 6 for n in range(40)
        }


def test_f05_a_cluster_that_lost_every_copy_says_so(
    start_cluster: Callable[..., LocalCluster],
) -> None:
    # Nothing is on a disk that could be begun from again.
    cluster = start_cluster(nodes=2, lmdb=False)
    with spacegrid.connect_sync(*cluster.addresses) as grid:
        grid.map("items", key=str, value=int).put_many({f"i{n}": n for n in range(200)})
    cluster.kill("node-1")
    cluster.kill("node-2")
    cluster.restart("node-1")
    cluster.restart("node-2")
    cluster.wait_for(lambda: len(cluster.status().lost) == 64, "the loss of all to be said")
    with (
        spacegrid.connect_sync(*cluster.addresses, timeout=2) as grid,
        pytest.raises(spacegrid.errors.PartitionLost),
    ):
        grid.map("items", key=str, value=int).get("i1")
