"""Rows without a socket: co-located reads, the ring against uhashring, placement."""

import itertools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import redis
import spacegrid
from spacegrid._core import assign
from uhashring import HashRing as OtherRing

from . import data

WINDOW_OPERATIONS = 200_000
BATCH_ROUNDS = 60


class Record(msgspec.Struct):
    """A typed value, as an application has it."""

    sku: str
    quantity: int
    price: float
    tags: list[str]


RECORD = Record("85123A", 6, 2.55, ["gift", "light"])


def nanoseconds(operation: Callable[[bytes], Any], keys: Sequence[bytes], count: int) -> float:
    """Return the time of one call in nanoseconds, over `count` calls that walk through the keys."""
    walk = list(itertools.islice(itertools.cycle(keys), count))
    started = time.perf_counter()
    for key in walk:
        operation(key)
    return (time.perf_counter() - started) / count * 1e9


def pairs(
    ours: Callable[[], float], theirs: Callable[[], float], repetitions: int
) -> dict[str, list[float]]:
    """Measure two contenders in turn."""
    rows: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(repetitions):
        rows["ours"].append(ours())
        rows["theirs"].append(theirs())
    return rows


def colocated(
    keys: list[bytes], redis_port: int, repetitions: int
) -> dict[str, dict[str, list[float]]]:
    """Co-located reads in nanoseconds: bytes against dict.get, a record against redis-py."""
    plain = {key: data.value(key) for key in keys}
    client = redis.Redis(port=redis_port)
    decoder = msgspec.msgpack.Decoder(Record)
    client.set("record", msgspec.msgpack.encode(RECORD))
    with spacegrid.open_sync() as grid:
        entries = grid.map("bench", key=bytes, value=bytes)
        for at in range(0, len(keys), 5_000):
            entries.put_many({key: plain[key] for key in keys[at : at + 5_000]})
        records = grid.map("records", key=str, value=Record)
        records.put("record", RECORD)
        if entries.get(keys[0]) != plain[keys[0]] or records.get("record") != RECORD:
            raise ValueError("the embedded grid does not hold what was put")
        few = max(2_000, WINDOW_OPERATIONS // 20)
        rows = {
            "bytes": pairs(
                lambda: nanoseconds(entries.get, keys, WINDOW_OPERATIONS),
                lambda: nanoseconds(plain.get, keys, WINDOW_OPERATIONS),
                repetitions,
            ),
            "record": pairs(
                lambda: nanoseconds(lambda _: records.get("record"), keys, few),
                lambda: nanoseconds(lambda _: decoder.decode(client.get("record")), keys, few),  # type: ignore[arg-type]
                repetitions,
            ),
        }
    client.close()
    return rows


def ring(repetitions: int, nodes: int = 10) -> dict[str, dict[str, list[float]]]:
    """Ring look-ups in nanoseconds a key, single and in batches of 1,000, against uhashring.

    Each contender walks through the keys often enough to be measured for about a tenth of a second,
    and both rows have their own turn of uhashring beside them.
    """
    names = [f"node-{number}" for number in range(nodes)]
    ours, theirs = spacegrid.HashRing(names), OtherRing(names)
    keys = [f"customer-{number}" for number in range(50_000)]
    batches = [keys[at : at + 1_000] for at in range(0, len(keys), 1_000)]

    def batch() -> float:
        started = time.perf_counter()
        for piece in batches * BATCH_ROUNDS:
            ours.get_node_batch(piece)
        return (time.perf_counter() - started) / (len(keys) * BATCH_ROUNDS) * 1e9

    def other() -> float:
        return nanoseconds(theirs.get_node, keys, 2 * len(keys))  # type: ignore[arg-type]

    def single() -> float:
        return nanoseconds(ours.get_node, keys, 20 * len(keys))  # type: ignore[arg-type]

    return {
        "single": pairs(single, other, repetitions),
        "batch": pairs(batch, other, repetitions),
    }


def placement() -> dict[str, float]:
    """Worst max/mean of primaries and copies, and worst moved/ideal on a join and on a leave."""
    worst = {"primaries": 0.0, "copies": 0.0, "join": 0.0, "leave": 0.0}
    sizes = [(nodes, 1_024) for nodes in (3, 5, 10, 20, 35, 50)] + [
        (nodes, 4_096) for nodes in (51, 75, 100)
    ]
    for nodes, partitions in sizes:
        names = [(f"node-{number}", 1.0, None) for number in range(nodes)]
        table = assign(partitions, 2, names, None)
        balance(table, nodes, worst)
        joined = assign(partitions, 2, [*names, ("joiner", 1.0, None)], table)
        balance(joined, nodes + 1, worst)
        worst["join"] = max(worst["join"], moved(table, joined) / (partitions * 2 / (nodes + 1)))
        if nodes > 3:
            gone = nodes - 1
            kept = [[-1 if owner == gone else owner for owner in owners] for owners in table]
            left = assign(partitions, 2, names[:-1], kept)
            balance(left, nodes - 1, worst)
            held = sum(gone in owners for owners in table)
            worst["leave"] = max(worst["leave"], moved(kept, left) / held)
    return worst


def balance(table: Sequence[Sequence[int]], nodes: int, worst: dict[str, float]) -> None:
    """Raise the worst ratios by those of one table."""
    primaries = Counter(owners[0] for owners in table)
    copies = Counter(owner for owners in table for owner in owners)
    worst["primaries"] = max(worst["primaries"], max(primaries.values()) / (len(table) / nodes))
    total = sum(len(owners) for owners in table)
    worst["copies"] = max(worst["copies"], max(copies.values()) / (total / nodes))


def moved(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> int:
    """Count the copies that have to be made anew."""
    return sum(len(set(new) - set(old)) for old, new in zip(before, after, strict=True))


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)
