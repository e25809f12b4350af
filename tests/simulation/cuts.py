"""What a history means where a partition began again from disk (ADR 8).

A restart of all nodes goes back to a prefix of the partition's records. What was answered before it
was right at that time, and is judged as it was. What stays is judged once more with all that came
after: without the records behind the prefix, and without answers that nobody can say the record of.
No answer to a `persisted` write may be behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .history import OK, UNKNOWN, WRITES, Call


class PersistedLost(Exception):
    """A write that was answered as persisted is not there any more."""


def is_persisted(call: Call) -> bool:
    """Whether a write was answered as one that every complete copy has on disk."""
    return call.persisted and call.kind in WRITES and call.outcome == OK and call.status == 0


def persisted_in(calls: Sequence[Call]) -> str:
    """What was persisted of partitions that are lost: empty, since a disk must have had it."""
    return next((f"persisted, and lost: {call}" for call in calls if is_persisted(call)), "")


@dataclass(frozen=True, slots=True)
class Cut:
    """A partition begins again from disk.

    Attributes:
        at_us: When its last copies ended.
        position: (epoch, sequence) up to which the disk has it.
        epoch: The first epoch after it.
    """

    at_us: int
    position: tuple[int, int]
    epoch: int

    def undoes(self, call: Call) -> bool:
        """Whether the record that an answer names is behind the prefix."""
        epoch, sequence = call.version >> 40, call.version & ((1 << 40) - 1)
        return bool(call.version) and epoch < self.epoch and sequence > self.position[1]

    def before(self, call: Call) -> Call:
        """A call as it was when the last copy ended."""
        if call.end_us < 0 or call.end_us >= self.at_us:
            return replace(call, outcome=UNKNOWN, end_us=-1, status=-1, value=None, version=0)
        return call

    def after(self, call: Call) -> Call | None:
        """A call as it counts for what comes after, or None where it counts for nothing."""
        if call.begin_us >= self.at_us or call.outcome != OK:
            return call
        if self.undoes(call):
            if is_persisted(call):
                raise PersistedLost(f"persisted, and not there after {self}: {call}")
            return None
        if call.version:
            return call
        # Which record it is of nobody can say: a miss changes nothing, a write may have.
        return replace(call, outcome=UNKNOWN, end_us=-1) if call.status == 0 else None


def histories(calls: Sequence[Call], cuts: Sequence[Cut]) -> Iterator[list[Call]]:
    """The histories of one key that must each be linearizable.

    Args:
        calls: All calls of the key, in the order in which they began.
        cuts: Where its partition began again, in order.

    Raises:
        PersistedLost: As it says.
    """
    kept = list(calls)
    for cut in cuts:
        yield [cut.before(call) for call in kept if call.begin_us < cut.at_us]
        kept = [left for call in kept if (left := cut.after(call)) is not None]
    yield kept


__all__ = ["Cut", "PersistedLost", "histories", "is_persisted", "persisted_in"]
