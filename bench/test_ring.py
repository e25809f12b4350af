"""The ring against uhashring, in one run and over the same keys.

The keys come in shuffled order, each made where the last one ended, as a client meets them: a key
that is looked up has just been built. Run: `pytest bench/test_ring.py --benchmark-only`; the ratios
are asserted by `test_ring_ratios`, which runs with every `pytest bench`.
"""

import random
import statistics
import time
from collections.abc import Callable

import pytest
import uhashring
from spacegrid import HashRing

NODES = [f"10.0.0.{index}:7700" for index in range(10)]
KEY_COUNT = 100_000


@pytest.fixture(scope="module")
def keys() -> list[str]:
    numbers = list(range(KEY_COUNT))
    random.Random(7).shuffle(numbers)
    return [f"customer-{number:09d}" for number in numbers]


def each(lookup: Callable[[str], object], keys: list[str]) -> None:
    for key in keys:
        lookup(key)


@pytest.mark.benchmark(group="ring: 100,000 keys, 10 nodes")
def test_spacegrid_single(benchmark, keys):  # type: ignore[no-untyped-def]
    benchmark(each, HashRing(NODES).get_node, keys)


@pytest.mark.benchmark(group="ring: 100,000 keys, 10 nodes")
def test_spacegrid_batch(benchmark, keys):  # type: ignore[no-untyped-def]
    benchmark(HashRing(NODES).get_node_batch, keys)


@pytest.mark.benchmark(group="ring: 100,000 keys, 10 nodes")
def test_uhashring_single(benchmark, keys):  # type: ignore[no-untyped-def]
    benchmark.pedantic(each, (uhashring.HashRing(NODES).get_node, keys), rounds=3)


@pytest.mark.benchmark(group="ring: building 100 nodes")
@pytest.mark.parametrize("ring", [HashRing, uhashring.HashRing], ids=["spacegrid", "uhashring"])
def test_build(benchmark, ring):  # type: ignore[no-untyped-def]
    benchmark(ring, [f"node-{index}" for index in range(100)])


def test_ring_ratios(keys: list[str]) -> None:
    """Medians of interleaved rounds: 15 times uhashring one by one and 50 times in a batch."""
    ring, peer = HashRing(NODES), uhashring.HashRing(NODES)
    runs: dict[str, Callable[[], object]] = {
        "single": lambda: each(ring.get_node, keys),
        "batch": lambda: ring.get_node_batch(keys),
        "uhashring": lambda: each(peer.get_node, keys),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(5):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: medians["uhashring"] / medians[name] for name in ("single", "batch")}
    print({name: round(value / KEY_COUNT * 1e9, 1) for name, value in medians.items()}, ratios)
    assert ratios["single"] >= 15
    assert ratios["batch"] >= 50
