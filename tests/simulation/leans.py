"""What runs lean to: the options that make some schedules likelier than chance does."""

from __future__ import annotations

from random import Random

ONLY_LEANING = (
    *("aim", "strikes", "slows", "stales", "usurps", "splits"),
    *("overtakes", "ambushes", "orphans", "freezes", "lates", "estranges"),
)
"""Options that are 0 in all other runs."""


def lean(seed: int) -> dict[str, object]:
    """What a run leans to: about one in five takes every option as it was drawn.

    Some mistakes show in few schedules only, which chance alone seldom makes: a primary that ends
    with records in flight to one of several followers; a copy that is lost while another one joins;
    a leader that nobody of those who replace it can reach; one who decides by a table of before; a
    clock that stands still; what comes late to a copy that has gone on. A leaning run draws those
    more often.
    """
    random = Random(f"{seed} lean")
    plain: dict[str, object] = {
        "lean": "",
        **dict.fromkeys(ONLY_LEANING, 0.0),
        "transfer_bytes_per_s": 0,
    }
    name = random.choices(["", *LEANS], [PLAIN, *(share for share, _ in LEANS.values())])[0]
    return {**plain, "lean": name, **LEANS[name][1](random)} if name else plain


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


def _frozen(random: Random) -> dict[str, object]:
    """Clocks stand still, which leases don't survive: all that is read is read confirmed."""
    return {
        "nodes": random.randint(4, 6),
        "partitions": random.choice([1, 1, 2]),
        "copies": random.choice([2, 3, 3]),
        "min_in_sync": 2,
        "clients": random.randint(4, 6),
        "in_flight": random.choice([4, 8]),
        "operations": random.randint(1_000, 1_500),
        "registers": 8,
        "leases": 0,
        "turn_keys": 0,
        "seconds": random.choice([4.0, 8.0]),
        "timeout_ms": 5_000,
        "value_bytes": 10,
        "stale_reads": 0.0,
        "confirmed_reads": 1.0,
        "both_copies": False,
        "crashes": random.choice([0.0, 0.3]),
        "pauses": random.choice([0.0, 0.3]),
        "cuts": 0.0,
        "cut_ms": random.choice([2_000.0, 4_000.0]),
        "resets": 0.0,
        "leaves": 0.0,
        "coordinator_crashes": 0.0,
        "clock_jumps": 0.0,
        "freezes": random.choice([0.5, 1.0]),
    }


def _late(random: Random) -> dict[str, object]:
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


def _estranged(random: Random) -> dict[str, object]:
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


def _orphaned(random: Random) -> dict[str, object]:
    """The last complete copy ends, while one that was taken out and a tail are there."""
    return {
        "nodes": 4,
        "partitions": 1,
        "copies": random.choice([2, 3, 3, 3]),
        "min_in_sync": 2,
        "motion_max": 64,
        "clients": random.randint(3, 5),
        "in_flight": random.choice([2, 4]),
        "operations": random.randint(1_500, 2_500),
        "registers": 200,
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
        "transfer_bytes_per_s": random.choice([60_000, 120_000]),
    }


PLAIN = 4
LEANS = {
    "turnover": (3, _turnover),
    "shorthanded": (2, _shorthanded),
    "stale": (3, _stale),
    "overtaken": (2, _overtaken),
    "joining": (2, _joining),
    "orphaned": (2, _orphaned),
    "frozen": (1, _frozen),
    "late": (2, _late),
    "estranged": (2, _estranged),
}
"""Out of how many runs (23 in all) how many lean where; `PLAIN` of them nowhere."""
