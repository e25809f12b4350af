"""Everything that may differ between runs, drawn from the seed."""

from __future__ import annotations

from random import Random

import msgspec

from .leans import lean


class Options(msgspec.Struct, frozen=True):
    """One run's settings. Rates are chances per occasion, or occasions per second of a phase."""

    nodes: int
    partitions: int
    copies: int
    min_in_sync: int
    motion_max: int
    local_disk: bool
    # disks, where there are any
    write_ms: float
    fsync_ms: float
    slow_disks: float
    shared_sink: bool
    persisted_rate: float
    blackouts: float
    new_disks: float
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
    stale_reads: float
    confirmed_reads: float
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
    outcasts: float
    usurps: float
    pairs: float
    splits: float
    overtakes: float
    ambushes: float
    orphans: float
    removals: float
    darkens: float
    freezes: float
    lates: float
    estranges: float
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
        "stale_reads": random.choice([0.0, 0.2, 0.5]),
        "confirmed_reads": random.choice([0.0, 0.2, 0.5]),
    }
    leaning = lean(seed)
    options = {**drawn, **leaning, **fixed}
    if options["local_disk"]:
        # What only crashed copies have on disk is for an operator to decide about.
        options |= {**_disks(seed), **leaning, "both_copies": False}
    else:
        options |= _NO_DISKS
    return Options(**{**options, **fixed})  # type: ignore[arg-type]


_NO_DISKS: dict[str, object] = {
    "write_ms": 0.0,
    "fsync_ms": 0.0,
    "slow_disks": 0.0,
    "shared_sink": False,
    "persisted_rate": 0.0,
    "blackouts": 0.0,
    "new_disks": 0.0,
}


def _disks(seed: int) -> dict[str, object]:
    """How quick disks are and what becomes of them; who loses all nodes at once loses no disk."""
    random = Random(f"{seed} disks")
    blackouts = random.choice([0.0, 0.4, 0.8])
    return {
        "write_ms": random.choice([5.0, 50.0, 200.0]),
        "fsync_ms": random.choice([0.3, 5.0, 40.0]),
        "slow_disks": random.choice([0.0, 0.3]),
        "shared_sink": random.random() < 0.6,
        "persisted_rate": random.choice([0.1, 0.3, 0.6]),
        "blackouts": blackouts,
        "new_disks": 0.0 if blackouts else 0.3,
    }
