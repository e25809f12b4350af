"""How a controller knows that it still is one: it has its term read again and again.

Each reading is good for `AUTHORITY_MS` from its sending, so a controller that has been followed
grants nothing any more once that is over, whether it has heard of it or not, and what it granted
before ends `REACH_MS` from that sending.

Who calls: machine/controller.py. Source: PROTOCOL.md section 6.
"""

from __future__ import annotations

from spacegrid.machine.events import ConfirmTerm, TermConfirmed
from spacegrid.machine.leases import AUTHORITY_MS, CONFIRM_MS, HELD_MS, REACH_MS

__all__ = ["HeldTerm"]


class HeldTerm:
    """One node's hold on the controller's term."""

    def __init__(self) -> None:
        """Hold none."""
        self.number = 0
        #: When the newest reading that was answered was asked for.
        self._read_ms = -AUTHORITY_MS
        self._due_ms = 0
        #: When the readings that are under way were asked for.
        self._asked_ms: dict[int, int] = {}
        self._reading = 0

    def begin(self, term: int, now_ms: int) -> None:
        """The term was taken; it counts once it has been read again."""
        self.number = term
        self._read_ms, self._due_ms, self._asked_ms = now_ms - AUTHORITY_MS, now_ms, {}

    def is_good(self, now_ms: int) -> bool:
        """Whether it was surely held at most `AUTHORITY_MS` ago."""
        return now_ms < self._read_ms + AUTHORITY_MS

    def lease_ms(self, now_ms: int) -> int:
        """How long a lease may last that is given now."""
        return max(0, min(HELD_MS, self._read_ms + REACH_MS - now_ms))

    def next_due_ms(self) -> int:
        """When to read it again."""
        return self._due_ms

    def read(self, now_ms: int) -> list[ConfirmTerm]:
        """Have it read again, if that is due."""
        if now_ms < self._due_ms:
            return []
        self._due_ms = now_ms + CONFIRM_MS
        self._asked_ms = {
            number: asked_ms
            for number, asked_ms in self._asked_ms.items()
            if asked_ms + AUTHORITY_MS > now_ms
        }
        self._reading += 1
        self._asked_ms[self._reading] = now_ms
        return [ConfirmTerm(self._reading)]

    def confirmed(self, event: TermConfirmed) -> None:
        """A reading was answered; one of another term says that this one is over."""
        asked_ms = self._asked_ms.pop(event.number, None)
        if asked_ms is not None and event.controller.term == self.number:
            self._read_ms = max(self._read_ms, asked_ms)

    def failed(self, number: int) -> None:
        """A reading was not answered."""
        self._asked_ms.pop(number, None)
