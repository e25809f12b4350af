"""Faults that leave some nodes out of reach of some others, and of nobody else.

A primary that is out of reach of those who depose it, a backup that clients still read from, a
controller that goes when only it is heard, one that goes on with a primary beside a newer one, and
a primary that is estranged from its copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .faults import Faults
from .schedule import MS, SECOND

if TYPE_CHECKING:
    from .node import NodeProcess


class CutOffFaults(Faults):
    """Those faults; `leaning.py` has the others."""

    def _stale(self) -> str:
        """A primary is out of reach of those who depose it, and of nobody else."""
        primary = self._primary()
        if primary is None:
            return ""
        self._stale_for(primary)
        return "stale"

    def _stale_for(self, primary: NodeProcess) -> None:
        world, random = self.world, self.random
        controller = self._alive(world.coordination.authority.controller.incarnation)
        places = {0, controller.place if controller is not None else 0} - {primary.place}
        for place in sorted(places):
            # Each comes back in its own time, the coordinator often last.
            mean_ms = world.options.cut_ms * (random.choice([1, 3]) if place == 0 else 1)
            ways = random.choice([1, 2, 3, 3])
            if ways & 1:
                self._cut_for(mean_ms, (place, primary.place))
            if ways & 2:
                self._cut_for(mean_ms, (primary.place, place))

    def _outcast(self) -> str:
        """A backup is out of reach of all nodes and of the coordinator, and of no client."""
        world, random = self.world, self.random
        controller = self._alive(world.coordination.authority.controller.incarnation)
        entry = random.choice(world.coordination.state.table.entries)
        backups = [self._alive(copy) for copy in entry.in_sync if copy != entry.primary]
        victims = [process for process in backups if process not in (None, controller)]
        if not victims:
            return ""
        victim = random.choice(victims)
        assert victim is not None
        # Long enough for it to be taken out, and for writes that don't wait for it any more.
        left_us = 1 * SECOND + random.expovariate(1 / world.options.cut_ms) * MS
        places = {0, *(process.place for process in world.running())} - {victim.place}
        for place in sorted(places):
            for way in ((place, victim.place), (victim.place, place)):
                world.network.cut(*way)
                world.schedule.after(left_us, world.network.heal, *way)
        return "outcast"

    def _usurp(self) -> str:
        """A primary is heard by nobody but the controller, and that one goes."""
        world, random = self.world, self.random
        primary = self._primary()
        controller = self._alive(world.coordination.authority.controller.incarnation)
        if primary is None or controller is None or primary is controller:
            return ""
        for process in world.running():
            if process is not primary and process is not controller:
                self._cut_for(world.options.cut_ms, (process.place, primary.place))
                self._cut_for(world.options.cut_ms, (primary.place, process.place))
        delay = random.choice([0, 50, 200]) * random.random() * MS
        how = random.choice(["crash", "pause", "cut", "slow"])
        if how == "crash":
            world.schedule.after(delay, self._crash_if_safe, controller.machine)
        elif how == "pause":
            world.schedule.after(delay, self._pause_now, controller)
        elif how == "cut":
            self._cut_for(world.options.cut_ms, (controller.place, 0))
        else:
            world.schedule.after(delay, self._slow_down, (controller.place, 0))
        return "usurp"

    def _pair(self) -> str:
        """The controller and a primary hear everybody, and nobody but the two hears them.

        The coordinator's news is late for both: they go on for as long as they know of nobody else.
        """
        world, random = self.world, self.random
        controller = self._alive(world.coordination.authority.controller.incarnation)
        primary = self._primary()
        lag = world.network.lag
        if (
            primary is None
            or controller is None
            or primary is controller
            or controller.place in lag
        ):
            return ""
        pair = (controller, primary)
        for process in pair:
            lag[process.place] = random.choice([400, 800, 1_500]) * MS
            world.schedule.after(3 * SECOND, lag.pop, process.place, None)
            for other in [other for other in world.running() if other not in pair]:
                self._cut_for(3_000, (process.place, other.place))
        return "pair"

    def _estrange(self) -> str:
        """A primary loses its followers and those who depose it; clients reach it and its heir.

        Where too few copies are left to commit anything it is taken in again, with another log.
        """
        primary = self._primary()
        if primary is None:
            return ""
        for process in self.world.running():
            if process is not primary:
                self._cut_for(300, (primary.place, process.place))
                self._cut_for(300, (process.place, primary.place))
        self._stale_for(primary)
        return "estrange"
