"""What runs lean to that are about copies: how they come, go, and differ."""

from __future__ import annotations

from random import Random


def turnover(random: Random) -> dict[str, object]:
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


def shorthanded(random: Random) -> dict[str, object]:
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


def joining(random: Random) -> dict[str, object]:
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


def late(random: Random) -> dict[str, object]:
    """Primaries end with records under way, which reach copies of the next epoch."""
    return {
        "nodes": 5,
        "partitions": random.choice([1, 2, 3]),
        "copies": 3,
        "min_in_sync": 2,
        "motion_max": 64,
        "clients": 6,
        "in_flight": random.choice([2, 4]),
        "operations": random.randint(1_500, 2_500),
        "seconds": random.choice([4.0, 6.0]),
        "timeout_ms": random.choice([400, 1_500]),
        "value_bytes": 10,
        "late_rate": 1.0,
        "notice_ms": random.choice([1.0, 10.0]),
        "both_copies": False,
        "crashes": 0.0,
        "pauses": random.choice([0.0, 0.3]),
        "cuts": 0.0,
        "joins": 0.2,
        "leaves": 0.0,
        "coordinator_crashes": 0.0,
        "lates": random.choice([0.5, 1.0]),
    }


def estranged(random: Random) -> dict[str, object]:
    """Primaries go on alone for a while, and are taken in again beside others who did."""
    copies = random.choice([2, 3])
    return {
        "nodes": copies,
        "partitions": random.choice([1, 2, 3]),
        "copies": copies,
        "min_in_sync": copies,
        "clients": random.randint(4, 6),
        "in_flight": random.choice([4, 8]),
        "operations": random.randint(1_000, 2_000),
        "seconds": random.choice([4.0, 8.0]),
        "timeout_ms": random.choice([400, 1_500]),
        "value_bytes": 10,
        "late_rate": random.choice([0.5, 1.0]),
        "both_copies": False,
        "crashes": 0.0,
        "pauses": random.choice([0.0, 0.5]),
        "pause_ms": 800.0,
        "cuts": 0.0,
        "cut_ms": random.choice([400.0, 1_000.0]),
        "joins": 0.0,
        "leaves": 0.0,
        "coordinator_crashes": 0.0,
        "estranges": random.choice([0.3, 0.6]),
    }


def orphaned(random: Random) -> dict[str, object]:
    """The last complete copy ends, while one that was taken out and a tail are there."""
    return {
        "nodes": 4,
        "partitions": 1,
        "local_disk": random.random() < 0.5,
        "blackouts": random.choice([0.0, 0.4, 0.4]),
        "new_disks": 0.0,
        "copies": random.choice([2, 3, 3, 3]),
        "min_in_sync": 2,
        "motion_max": 64,
        "clients": random.randint(3, 5),
        "in_flight": random.choice([2, 4]),
        "operations": random.randint(1_500, 2_500),
        "registers": 60,
        "seconds": random.choice([8.0, 12.0]),
        "timeout_ms": random.choice([400, 1_500]),
        "value_bytes": 20_000,
        "both_copies": True,
        "crashes": 0.0,
        "pauses": random.choice([0.0, 0.2]),
        "cuts": 0.0,
        "leaves": 0.0,
        "joins": 0.0,
        "coordinator_crashes": 0.0,
        "strikes": random.choice([0.0, 0.05]),
        "orphans": random.choice([1.0, 2.0]),
        "transfer_bytes_per_s": random.choice([100_000, 150_000]),
    }
