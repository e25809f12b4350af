"""What runs lean to: the options that make some schedules likelier than chance does."""

from __future__ import annotations

from random import Random

from . import lean_copies, lean_disks

ONLY_LEANING = (
    *("aim", "strikes", "slows", "stales", "outcasts", "usurps", "pairs", "splits"),
    *("overtakes", "ambushes", "orphans", "removals", "darkens"),
    *("freezes", "lates", "estranges"),
)
"""Options that are 0 in all other runs."""


def lean(seed: int) -> dict[str, object]:
    """What a run leans to: about one in eight takes every option as it was drawn.

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


def _frozen(random: Random) -> dict[str, object]:
    """Clocks stand still, which leases don't survive: all that is read is read confirmed."""
    return {
        "nodes": random.randint(4, 6),
        "partitions": random.choice([1, 1, 2]),
        "copies": 3,
        "min_in_sync": random.choice([1, 2]),
        "clients": random.randint(4, 6),
        "in_flight": random.choice([4, 8]),
        "operations": random.randint(2_000, 3_000),
        "registers": 8,
        "leases": 0,
        "turn_keys": 0,
        "seconds": random.choice([8.0, 12.0]),
        "timeout_ms": 5_000,
        "value_bytes": 10,
        "stale_reads": 0.0,
        "confirmed_reads": 1.0,
        "both_copies": False,
        "blackouts": 0.0,
        "crashes": 0.0,
        "pauses": random.choice([0.0, 0.3]),
        "cuts": 0.0,
        "cut_ms": random.choice([800.0, 2_000.0]),
        "resets": 0.0,
        "leaves": 0.0,
        "coordinator_crashes": 0.0,
        "clock_jumps": 0.0,
        "freezes": 2.0,
    }


def _outcast(random: Random) -> dict[str, object]:
    """Backups are out of reach of all but the clients that read there, and hear of nothing."""
    return {
        "nodes": random.randint(4, 6),
        "partitions": random.choice([8, 16]),
        "copies": random.choice([2, 3, 3]),
        "min_in_sync": 2,
        "clients": random.randint(4, 6),
        "in_flight": random.choice([2, 4]),
        "operations": random.randint(1_000, 2_000),
        "leases": 0,
        "turn_keys": 0,
        "seconds": random.choice([5.0, 8.0]),
        "value_bytes": 10,
        "stale_reads": 0.8,
        "confirmed_reads": 0.0,
        "both_copies": False,
        "crashes": random.choice([0.0, 0.2]),
        "pauses": random.choice([0.0, 0.2]),
        "cuts": 0.0,
        "cut_ms": random.choice([400.0, 1_000.0]),
        "resets": 0.0,
        "leaves": 0.0,
        "coordinator_crashes": 0.0,
        "outcasts": random.choice([0.5, 1.0]),
    }


def _paired(random: Random) -> dict[str, object]:
    """A controller goes on with a primary, and nobody else hears the two."""
    return {
        "nodes": random.randint(4, 6),
        "partitions": random.choice([3, 5, 8]),
        "clients": random.randint(3, 5),
        "in_flight": random.choice([2, 4]),
        "operations": random.randint(1_000, 1_500),
        "seconds": random.choice([6.0, 10.0]),
        "value_bytes": 10,
        "drift_ppm": random.choice([0, 200]),
        "crashes": random.choice([0.0, 0.2]),
        "pauses": random.choice([0.0, 0.2]),
        "cuts": 0.0,
        "resets": 0.0,
        "leaves": 0.0,
        "coordinator_crashes": 0.0,
        "pairs": random.choice([0.5, 1.0]),
    }


def _belated(random: Random) -> dict[str, object]:
    """Connections break with requests under way, which arrive when they were long answered."""
    delay_us = random.choice([500.0, 2_000.0])
    return {
        "nodes": 3,
        "partitions": random.choice([1, 1, 2]),
        "clients": random.randint(4, 6),
        "in_flight": random.choice([1, 2]),
        "operations": random.randint(1_000, 2_000),
        "registers": 6,
        "turn_keys": random.choice([0, 3]),
        "seconds": random.choice([4.0, 8.0]),
        "timeout_ms": 5_000,
        "give_up_rate": 0.0,
        "value_bytes": 10,
        "delay_us": delay_us,
        "jitter_us": delay_us * 4,
        "late_rate": 1.0,
        "both_copies": False,
        "crashes": random.choice([0.0, 0.3]),
        "pauses": random.choice([0.0, 0.3]),
        "cuts": 0.0,
        "resets": random.choice([10.0, 30.0]),
        "joins": 0.0,
        "leaves": 0.0,
        "coordinator_crashes": 0.0,
        "slows": random.choice([0.0, 1.0]),
    }


PLAIN = 4
LEANS = {
    "turnover": (3, lean_copies.turnover),
    "shorthanded": (2, lean_copies.shorthanded),
    "stale": (3, _stale),
    "overtaken": (2, _overtaken),
    "joining": (2, lean_copies.joining),
    "orphaned": (3, lean_copies.orphaned),
    "outcast": (1, _outcast),
    "paired": (1, _paired),
    "belated": (2, _belated),
    "sparse": (1, lean_disks.sparse),
    "dark": (3, lean_disks.dark),
    "frozen": (1, _frozen),
    "late": (2, lean_copies.late),
    "estranged": (2, lean_copies.estranged),
}
"""Out of how many runs (31 in all) how many lean where; `PLAIN` of them nowhere."""
