"""What runs lean to that are about disks: what is on them, and what begins again from them."""

from __future__ import annotations

from random import Random


def sparse(random: Random) -> dict[str, object]:
    """So many partitions that most are not written again after they were handed on."""
    delay_us = random.choice([500.0, 2_000.0])
    return {
        "nodes": random.randint(3, 5),
        "copies": 2,
        "min_in_sync": 2,
        "partitions": 16,
        "motion_max": 64,
        "local_disk": True,
        "shared_sink": True,
        "persisted_rate": random.choice([0.0, 0.1]),
        "clients": random.randint(2, 4),
        "in_flight": random.choice([1, 2]),
        "operations": random.randint(400, 700),
        "registers": 100,
        "counters": 20,
        "seconds": random.choice([3.0, 5.0]),
        "value_bytes": 10,
        "delay_us": delay_us,
        "jitter_us": delay_us * 4,
        "crashes": random.uniform(0.3, 1.0),
        "pauses": random.choice([0.0, 0.3]),
        "cuts": 0.0,
        "resets": 0.0,
        "joins": random.choice([0.0, 0.3]),
        "leaves": random.choice([0.0, 0.3]),
        "coordinator_crashes": 0.0,
    }


def dark(random: Random) -> dict[str, object]:
    """All nodes end at once, again and again, and are back before their ends are noticed."""
    # Just after a copy came in; or after one was taken out, which then may be gone on with for as
    # long as no other node is there to join.
    few = random.random() < 0.5
    copies = 3 if few else 2
    return {
        "nodes": 3 if few else random.randint(3, 5),
        "copies": copies,
        "min_in_sync": copies,
        "partitions": random.choice([3, 5, 8]),
        "local_disk": True,
        "slow_disks": random.choice([0.0, 0.3, 0.5]),
        "removals": 0.9 if few else 0.0,
        "darkens": 0.0 if few else random.choice([0.0, 0.2]),
        "write_ms": random.choice([50.0, 200.0]),
        "shared_sink": random.random() < 0.7,
        "persisted_rate": 0.3,
        "blackouts": random.choice([0.5, 1.0]),
        "new_disks": 0.0,
        "clients": random.randint(3, 5),
        "in_flight": random.choice([2, 4]),
        "operations": random.randint(1_000, 2_000),
        "seconds": random.choice([6.0, 10.0]),
        "timeout_ms": random.choice([400, 1_500]),
        "value_bytes": 10,
        "notice_ms": random.choice([60.0, 200.0] if few else [1.0, 60.0]),
        "crashes": random.choice([0.0, 0.3] if few else [0.3, 1.0]),
        "pauses": random.choice([0.0, 0.5]),
        "pause_ms": random.choice([300.0, 1_500.0]),
        "cuts": random.choice([0.0, 0.3]),
        "resets": 0.0,
        "leaves": 0.0,
        "coordinator_crashes": random.choice([0.0, 0.3]),
    }
