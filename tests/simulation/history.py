"""What clients saw: one `Call` per operation, with its begin, end and outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: Outcomes.
OK, FAILED, UNKNOWN, PENDING = "ok", "failed", "unknown", "pending"

WRITES = ("put", "absent", "cas", "delete", "incr", "turn")


@dataclass(slots=True)
class Call:
    """One operation of a client.

    Attributes:
        kind: get, confirmed and stale (two more ways to get), put, absent (put if absent), cas (put
            onto a version), delete, incr, turn.
        key: Which entry.
        argument: The value put, or the amount added.
        expected: For cas: the version it is put onto.
        ttl_ms: For put: how long it is to live; 0: for ever.
        begin_us: When it was asked.
        end_us: When it was answered.
        outcome: ok: it took effect (or was refused by its own condition, see `status`); failed: it
            surely did not; unknown: perhaps.
        status: Status of the answer.
        value: What the answer shows: an entry's value, or a number.
        version: Version in the answer.
        age_ms: For stale: how old the answer says that it may be, by the clock of who gave it;
            until it comes, how old it may be at most.
        persisted: It was asked to be on every complete copy's disk before it is answered.
    """

    client: int
    kind: str
    key: bytes
    argument: Any = None
    expected: int = 0
    ttl_ms: int = 0
    begin_us: int = 0
    end_us: int = -1
    outcome: str = PENDING
    status: int = -1
    value: Any = None
    version: int = 0
    age_ms: int = 0
    persisted: bool = False

    def __str__(self) -> str:
        end = f"{self.end_us / 1e6:.6f}" if self.end_us >= 0 else "?"
        answer = f"{self.outcome} {self.status} {_short(self.value)} {_position(self.version)}"
        expected = f" onto {_position(self.expected)}" if self.kind == "cas" else ""
        kind = f"stale ({self.age_ms} ms)" if self.kind == "stale" else self.kind
        return (
            f"[{self.begin_us / 1e6:.6f}, {end}] client {self.client} "
            f"{'persisted ' if self.persisted else ''}{kind} "
            f"{_short(self.argument)}{expected} -> {answer}"
        )


def _short(value: Any) -> str:
    return repr(value[:12] if isinstance(value, bytes) else value)


def _position(version: int) -> str:
    return f"({version >> 40}, {version & ((1 << 40) - 1)})" if version else ""


@dataclass(slots=True)
class History:
    """All calls, by key, in the order in which they began."""

    calls: list[Call] = field(default_factory=list)

    def by_key(self) -> dict[bytes, list[Call]]:
        """Calls of each key."""
        keys: dict[bytes, list[Call]] = {}
        for call in self.calls:
            keys.setdefault(call.key, []).append(call)
        return keys

    def count(self, outcome: str) -> int:
        """Calls with this outcome."""
        return sum(call.outcome == outcome for call in self.calls)
