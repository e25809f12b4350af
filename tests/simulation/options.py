"""Everything that may differ between runs, drawn from the seed."""

from __future__ import annotations

from random import Random

import msgspec


class Options(msgspec.Struct, frozen=True):
    """One run's settings. Rates are chances per occasion, or occasions per second of a phase."""

    nodes: int
    partitions: int
    copies: int
    min_in_sync: int
    motion_max: int
    local_disk: bool
    # clients
    clients: int
    in_flight: int
    operations: int
    registers: int
    counters: int
    leases: int
    turn_keys: int
    seconds: float
    timeout_ms: int
    give_up_rate: float
    value_bytes: int
    quota_bytes: int
    # network
    delay_us: float
    jitter_us: float
    spike_rate: float
    spike_ms: float
    late_rate: float
    repeat_rate: float
    loss_rate: float
    # processes
    notice_ms: float
    turn_ms: float
    pace_rate: float
    drift_ppm: int
    # faults, occasions per second
    crashes: float
    both_copies: bool
    pauses: float
    cuts: float
    resets: float
    joins: float
    leaves: float
    coordinator_crashes: float
    clock_jumps: float
    pause_ms: float
    cut_ms: float
    fault_effects: bool
    # where the trouble leans to, and what only leaning runs meet
    lean: str
    aim: float
    strikes: float
    slows: float
    stales: float
    usurps: float
    splits: float
    overtakes: float
    ambushes: float
    orphans: float
    transfer_bytes_per_s: int

    def lines(self) -> str:
        """All settings, one a line."""
        return "\n".join(f"  {name} = {getattr(self, name)}" for name in self.__struct_fields__)


def draw(seed: int, **fixed: object) -> Options:
    """The options of a seed.

    Args:
        seed: The run.
        fixed: Options that are given instead of drawn, for scenarios.
    """
    random = Random(f"{seed} options")
    copies = random.choices([2, 3], [3, 1])[0]
    nodes = random.randint(max(3, copies), 7)
    spice = random.choice([0.0, 0.3, 1.0, 1.0, 2.0])

    def some(chance: float, low: float, high: float) -> float:
        used, value = random.random() < chance, random.uniform(low, high)
        return round(value * spice, 3) if used else 0.0

    delay_us = random.choice([60.0, 200.0, 500.0, 2_000.0])
    drawn = {
        "nodes": nodes,
        "partitions": random.choice([1, 3, 5, 8, 8, 16]),
        "copies": copies,
        "min_in_sync": 2 if copies == 2 else random.choice([2, 2, 3]),
        "motion_max": random.choice([1, 2, 64]),
        "local_disk": random.random() < 0.35,
        "clients": random.randint(2, 6),
        "in_flight": random.choice([1, 2, 4, 8]),
        "operations": random.randint(1_000, 3_000),
        "registers": random.randint(6, 16),
        "counters": random.randint(3, 8),
        "leases": random.choice([0, 2, 5]),
        "turn_keys": random.choice([0, 3, 6]),
        "seconds": random.choice([2.0, 5.0, 10.0]),
        "timeout_ms": random.choice([400, 1_500, 5_000]),
        "give_up_rate": random.choice([0.0, 0.1, 0.5]),
        "value_bytes": random.choice([10, 10, 10, 10, 3_000, 60_000]),
        "quota_bytes": 0,
        "delay_us": delay_us,
        "jitter_us": delay_us * random.choice([0.2, 1.0, 4.0]),
        "spike_rate": random.choice([0.0, 0.001, 0.02]),
        "spike_ms": random.choice([20.0, 100.0, 400.0]),
        "late_rate": random.choice([0.0, 0.5, 1.0]),
        "repeat_rate": random.choice([0.0, 0.5]),
        "loss_rate": random.choice([0.0, 0.05, 0.3]),
        "notice_ms": random.choice([1.0, 10.0, 60.0]),
        "turn_ms": random.choice([0.1, 2.0, 15.0]),
        "pace_rate": random.choice([0.0, 0.3, 0.8]),
        "drift_ppm": random.choice([0, 200, 10_000]),
        "crashes": some(0.7, 0.2, 1.5),
        "both_copies": random.random() < 0.08,
        "pauses": some(0.6, 0.3, 2.0),
        "cuts": some(0.6, 0.3, 2.0),
        "resets": some(0.7, 0.5, 10.0),
        "joins": some(0.5, 0.2, 1.0),
        "leaves": some(0.4, 0.1, 0.6),
        "coordinator_crashes": some(0.3, 0.1, 0.6),
        "clock_jumps": some(0.3, 0.2, 2.0),
        "pause_ms": random.choice([30.0, 300.0, 1_500.0]),
        "cut_ms": random.choice([50.0, 400.0, 2_000.0]),
        "fault_effects": random.random() < 0.7,
    }
    return Options(**{**drawn, **_lean(seed), **fixed})  # type: ignore[arg-type]


def _lean(seed: int) -> dict[str, object]:
    """What a run leans to: about one in five takes every option as it was drawn.

    Some mistakes show in few schedules only, which chance alone seldom makes: a primary that ends
    with records in flight to one of several followers; a copy that is lost while another one joins;
    a leader that nobody of those who replace it can reach; one who decides by a table of before.
    A leaning run draws those more often.
    """
    random = Random(f"{seed} lean")
    extra = (
        *("aim", "strikes", "slows", "stales", "usurps", "splits"),
        *("overtakes", "ambushes", "orphans"),
    )
    plain: dict[str, object] = {"lean": "", **dict.fromkeys(extra, 0.0), "transfer_bytes_per_s": 0}
    lean = random.choices(["", "turnover", "shorthanded", "stale"], [6, 3, 2, 3])[0]
    if lean == "turnover":
        return {**plain, "lean": lean, **_turnover(random)}
    if lean == "shorthanded":
        return {**plain, "lean": lean, **_shorthanded(random)}
    if lean == "stale":
        return {**plain, "lean": lean, **_stale(random)}
    lean = random.choices(["", "overtaken", "joining"], [3, 2, 2])[0]
    if lean == "overtaken":
        return {**plain, "lean": lean, **_overtaken(random)}
    if lean == "joining":
        return {**plain, "lean": lean, **_joining(random)}
    if random.random() < 0.4:
        return {**plain, "lean": "orphaned", **_orphaned(random)}
    return plain


def _turnover(random: Random) -> dict[str, object]:
    """Primaries change with much in flight, to followers that have not all the same."""
    delay_us = random.choice([200.0, 500.0, 2_000.0])
    return {
        "nodes": random.randint(4, 5),
        "partitions": random.choice([1, 2, 3]),
        "copies": 3,
        "min_in_sync": random.choice([2, 2, 3]),
        "clients": random.randint(4, 6),
        "in_flight": random.choice([4, 8]),
        "operations": random.randint(1_000, 2_000),
        "registers": 12,
        "seconds": random.choice([3.0, 5.0]),
        "timeout_ms": random.choice([400, 1_500]),
        "value_bytes": 10,
        "delay_us": delay_us,
        "jitter_us": delay_us * random.choice([1.0, 4.0]),
        "late_rate": random.choice([0.5, 1.0]),
        "repeat_rate": 0.5,
        "both_copies": False,
        "crashes": random.uniform(1.0, 3.0),
        "pauses": random.choice([0.0, 0.5, 1.0]),
        "cuts": random.choice([0.0, 0.5]),
        "resets": random.choice([0.0, 2.0, 10.0]),
        "joins": 0.2,
        "leaves": 0.0,
        "coordinator_crashes": 0.0,
        "aim": 0.7,
        "strikes": random.choice([0.2, 0.5]),
        "slows": random.choice([0.5, 2.0]),
        "stales": random.choice([0.0, 0.5]),
        "splits": random.choice([0.5, 2.0, 4.0]),
    }


def _shorthanded(random: Random) -> dict[str, object]:
    """Copies go while others are on their way in; what is lost must be lost, and nothing else."""
    return {
        "nodes": random.randint(3, 5),
        "partitions": random.choice([5, 8]),
        "copies": 2,
        "min_in_sync": 2,
        "clients": random.randint(4, 6),
        "in_flight": 8,
        "seconds": random.choice([2.0, 5.0]),
        "timeout_ms": random.choice([400, 1_500]),
        "value_bytes": random.choice([10, 3_000]),
        "both_copies": random.random() < 0.6,
        "crashes": random.uniform(0.1, 0.5),
        "pauses": random.uniform(0.5, 1.5),
        "pause_ms": random.choice([300.0, 800.0]),
        "leaves": 0.0,
        "coordinator_crashes": 0.0,
        "aim": 0.3,
        "strikes": random.choice([0.1, 0.2, 0.4]),
        "slows": random.choice([0.5, 2.0]),
    }


def _stale(random: Random) -> dict[str, object]:
    """Who answers, decides or holds a lease is cut off from those who take it away."""
    return {
        "partitions": random.choice([1, 3, 5, 8]),
        "clients": random.randint(4, 6),
        "in_flight": random.choice([2, 8]),
        "seconds": random.choice([4.0, 8.0]),
        "late_rate": random.choice([0.5, 1.0]),
        "crashes": random.choice([0.0, 0.3]),
        "pauses": random.choice([0.0, 0.5]),
        "pause_ms": random.choice([300.0, 800.0]),
        "cut_ms": random.choice([400.0, 1_000.0]),
        "resets": random.choice([0.0, 2.0]),
        "leaves": 0.0,
        "aim": 0.5,
        "strikes": random.choice([0.0, 0.1]),
        "slows": random.choice([0.5, 2.0]),
        "stales": random.choice([0.5, 1.5]),
        "usurps": random.choice([0.5, 1.0]),
    }


def _overtaken(random: Random) -> dict[str, object]:
    """Controllers follow each other, and the table was written since the new one's was sent."""
    return {
        "nodes": random.randint(4, 6),
        "partitions": random.choice([3, 5, 8]),
        "copies": random.choice([2, 3, 3]),
        "min_in_sync": 2,
        "motion_max": 64,
        "clients": random.randint(3, 5),
        "in_flight": random.choice([2, 4]),
        "operations": random.randint(1_000, 1_500),
        "seconds": random.choice([5.0, 8.0]),
        "value_bytes": 10,
        "both_copies": False,
        "crashes": random.uniform(0.3, 1.0),
        "pauses": random.choice([0.0, 0.5]),
        "cuts": 0.0,
        "resets": 0.0,
        "leaves": 0.0,
        "coordinator_crashes": 0.0,
        "aim": 0.7,
        "overtakes": random.choice([0.5, 1.0]),
    }


def _joining(random: Random) -> dict[str, object]:
    """Joins are caught half way; keys are so many that most are not written again soon."""
    return {
        "nodes": random.randint(3, 5),
        "partitions": random.choice([1, 2, 3]),
        "copies": 2,
        "min_in_sync": 2,
        "clients": random.randint(4, 6),
        "in_flight": random.choice([4, 8]),
        "operations": random.randint(1_500, 2_500),
        "registers": random.choice([100, 300]),
        "seconds": random.choice([4.0, 6.0]),
        "value_bytes": random.choice([10, 3_000]),
        "both_copies": False,
        "crashes": random.uniform(0.3, 1.0),
        "pauses": random.uniform(0.5, 1.5),
        "pause_ms": random.choice([800.0, 1_500.0]),
        "cuts": 0.0,
        "leaves": 0.0,
        "coordinator_crashes": 0.0,
        "aim": 0.2,
        "ambushes": random.choice([0.5, 0.9]),
    }


def _orphaned(random: Random) -> dict[str, object]:
    """The last complete copy ends, while one that was taken out and a tail are there."""
    return {
        "nodes": random.choice([4, 4, 5]),
        "partitions": random.choice([1, 1, 2]),
        "copies": random.choice([2, 3, 3]),
        "min_in_sync": 2,
        "motion_max": 64,
        "clients": random.randint(3, 5),
        "in_flight": random.choice([2, 4]),
        "operations": random.randint(1_500, 2_500),
        "registers": random.choice([100, 200]),
        "seconds": random.choice([8.0, 12.0]),
        "timeout_ms": random.choice([400, 1_500]),
        "value_bytes": 3_000,
        "both_copies": True,
        "crashes": 0.0,
        "pauses": random.choice([0.0, 0.2]),
        "cuts": 0.0,
        "leaves": 0.0,
        "joins": 0.0,
        "coordinator_crashes": 0.0,
        "strikes": random.choice([0.0, 0.05]),
        "orphans": random.choice([0.5, 1.0]),
        "transfer_bytes_per_s": random.choice([50_000, 150_000]),
    }
