"""Whether everything was restarted, as far as one controller knows.

Then the disks of crashed copies are all there is of them, and are used by themselves; in a cluster
that went on they are not (survival.py, ADR 8). A controller follows a restart when none of the
copies is there that counted in the table it began with. One that is registered may have ended with
all the others without anybody having noticed: only one that is heard says that the cluster went on.
Copies that the table named later are of after the restart, which says nothing about their disks.

Who calls: machine/controller.py; survival.py asks.
"""

from __future__ import annotations

from spacegrid.machine.table import Table

__all__ = ["Restart"]


class Restart:
    """What is known of it; empty until `begin`, and then nothing is trusted."""

    def __init__(self) -> None:
        """Know of no restart."""
        self._before: frozenset[int] = frozenset()
        #: Those of them that have not ended and were not heard.
        self._unheard: frozenset[int] = frozenset()

    def begin(self, table: Table, registered: frozenset[int], *, heartbeats: bool) -> None:
        """A controller begins.

        Args:
            table: As it found it.
            registered: Nodes whose end nobody has noticed.
            heartbeats: Whether nodes are heard; else those that are registered are there.
        """
        self._before = frozenset(
            copy
            for entry in table.entries
            # Whoever only joins has nothing that counts, and may have begun after the restart.
            for copy in (*entry.in_sync, *entry.former, *(tail.copy for tail in entry.tails))
        )
        self._unheard = self._before & registered
        if self._unheard and not heartbeats:
            self._went_on()

    def hear(self, copy: int) -> bool:
        """A node is there; whether that says something new."""
        if copy not in self._unheard:
            return False
        self._went_on()
        return True

    def set_registered(self, registered: frozenset[int]) -> None:
        """Take who has not ended."""
        self._unheard &= registered

    @property
    def unheard(self) -> frozenset[int]:
        """Nodes of before that have not ended and were not heard: what is not known is of them."""
        return self._unheard

    def trusts(self, copy: int) -> bool | None:
        """Whether a crashed copy's disk is all there is of it; None: it is not known yet."""
        if copy not in self._before:
            return False
        return None if self._unheard else True

    def _went_on(self) -> None:
        self._before = self._unheard = frozenset()
