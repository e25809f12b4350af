"""Faults that only leaning runs meet (leans.py): schedules that chance alone seldom makes.

They look at the table to find out where it hurts, and what they do is drawn from the seed: one slow
way, nodes out of reach (cutoffs.py), a primary that ends while its followers differ, or with
records that come late, a controller that decides by an old table, joins that are caught half way,
last copies that end then (orphans.py), clocks that stand still, and strikes at table changes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .blackouts import BlackoutFaults
from .cutoffs import CutOffFaults
from .orphans import OrphanFaults
from .schedule import MS, SECOND

if TYPE_CHECKING:
    from spacegrid.machine.table import PartitionEntry

    from .node import NodeProcess


class LeaningFaults(OrphanFaults, CutOffFaults, BlackoutFaults):
    """All faults."""

    _apart_until_us: float = 0

    def _blackout(self) -> str:
        """Not around an orphan: what becomes of that one is to be seen first."""
        return "" if self._under_way else super()._blackout()

    def _slow(self) -> str:
        """One way between a primary and somebody who needs it takes long."""
        world, random = self.world, self.random
        primary = self._primary()
        others = [process for process in world.running() if process is not primary]
        if primary is None or not others:
            return ""
        clients = [client.place for client in world.clients]
        other = random.choice([process.place for process in others] * 4 + [0, 0] + clients)
        way = (primary.place, other) if random.random() < 0.6 else (other, primary.place)
        self._slow_down(way)
        return "slow"

    def _split(self) -> str:
        """A primary ends while one follower has more than the rest, and hears of it last."""
        world, random = self.world, self.random
        entry = random.choice(world.coordination.state.table.entries)
        primary = self._alive(entry.primary)
        others = [self._alive(copy) for copy in entry.in_sync if copy != entry.primary]
        followers = [process for process in others if process is not None]
        if primary is None or not followers:
            return ""
        ahead = random.choice(followers)
        for process in followers:
            way = (0, ahead.place) if process is ahead else (primary.place, process.place)
            self._slow_down(way)
        delay = random.choice([10, 50, 200]) * random.random() * MS
        world.schedule.after(delay, self._end_split, primary)
        return "split"

    def _end_split(self, primary: NodeProcess) -> None:
        if self.random.random() < 0.7:
            primary.strike = partial(self._crash_if_safe, primary.machine)
            primary.countdown = self.random.randrange(4)
        else:
            self._stale_for(primary)

    def _overtake(self) -> str:
        """Who controls next has heard of a primary's end, and not of what was done about it."""
        world, random = self.world, self.random
        controller = self._alive(world.coordination.authority.controller.incarnation)
        others = [process for process in world.running() if process is not controller]
        if controller is None or len(others) < 3:
            return ""
        first = min(others, key=lambda process: process.incarnation)
        successor = first if random.random() < 0.8 else random.choice(others)
        if successor.place in world.network.lag:
            return ""
        lag = random.choice([400, 800, 1_500]) * MS
        world.network.lag[successor.place] = lag
        world.schedule.after(4 * lag, world.network.lag.pop, successor.place, None)
        victims = [process for process in others if process is not successor]
        self._crash_if_safe(random.choice(victims).machine)
        world.schedule.after(lag * (0.3 + random.random()), self._silence, controller)
        return "overtake"

    def _silence(self, controller: NodeProcess) -> None:
        """A controller is heard by nobody for as long as it takes to be followed."""
        if not self.on:
            return
        if self.random.random() < 0.5:
            self._pause_now(controller)
            return
        for process in self.world.running():
            if process is not controller:
                self._cut_for(1_500, (controller.place, process.place))

    def _late(self) -> str:
        """A primary ends with records under way to all of its followers, and they come late."""
        world, random = self.world, self.random
        whole = world.options.copies
        entries = [
            entry
            for entry in world.coordination.state.table.entries
            if len(entry.in_sync) == whole and self._alive(entry.primary) is not None
        ]
        if not entries:
            return ""
        entry = random.choice(entries)
        primary = self._alive(entry.primary)
        assert primary is not None
        for process in [self._alive(copy) for copy in entry.in_sync if copy != entry.primary]:
            if process is not None:
                self._cut_for(200, (primary.place, process.place))
        delay = random.uniform(5, 60) * MS
        world.schedule.after(delay, self._crash_if_safe, primary.machine)
        return "late"

    def _freeze(self) -> str:
        """A primary's machine stands still, clocks and all, and is late to hear who followed it.

        Perhaps another copy is cut off with it, and still follows nobody else when it goes on; and
        perhaps a client, which asks there for as long as it hears of nobody else.
        """
        world, random = self.world, self.random
        entry = random.choice(world.coordination.state.table.entries)
        primary = self._alive(entry.primary)
        controller = self._alive(world.coordination.authority.controller.incarnation)
        if primary in (None, controller) or world.schedule.now_us < self._apart_until_us:
            # Who deposes it has to be there, and to have the time for it.
            return ""
        assert primary is not None
        others = [self._alive(copy) for copy in entry.in_sync if copy != entry.primary]
        others.sort(key=lambda process: process is controller)
        deaf = [one for one in others[:-1] if one is not None] if random.random() < 0.8 else []
        apart = [process.place for process in (primary, *deaf)]
        if random.random() < 0.3:
            others_places = {0, controller.place if controller is not None else 0}
        else:
            others_places = {0, *(process.place for process in world.running())}
            apart.append(random.choice(world.clients).place)
        frozen_us = random.uniform(0.8, 1.8) * SECOND
        # All of it comes back at once: one way out of many that does so before is enough to hear.
        apart_us = frozen_us + random.expovariate(1 / world.options.cut_ms) * MS
        self._apart_until_us = world.schedule.now_us + apart_us
        for place in apart:
            for other in sorted(others_places.difference(apart)):
                for way in ((other, place), (place, other)):
                    world.network.cut(*way)
                    world.schedule.after(apart_us, world.network.heal, *way)
        primary.pause(stale=False, clocks=True)
        world.schedule.after(frozen_us, primary.resume)
        return "freeze"

    def entry_changed(self, before: PartitionEntry, after: PartitionEntry) -> None:
        """The moments around a change are the dangerous ones: perhaps something strikes."""
        options = self.world.options
        ambushes, strikes, darkens = options.ambushes, options.strikes, options.darkens
        if self.on and darkens and self.random.random() < darkens:
            # Not within the write of the table, whose readers would end in the middle of it.
            self.world.schedule.after(1, self._darken, before, after)
        if self.on and ambushes and self.random.random() < ambushes:
            self._ambush(before, after)
        if not self.on or not strikes or self.random.random() >= strikes:
            return
        world, random = self.world, self.random
        copies = sorted({*before.members(), *after.members(), *after.former} - {after.primary})
        victim = after.primary if random.random() < 0.5 or not copies else random.choice(copies)
        delay = random.choice([0.0, 1.0, 10.0, 100.0]) * random.random() * MS
        world.schedule.after(delay, self._strike_at, victim, after.primary)

    def _ambush(self, before: PartitionEntry, after: PartitionEntry) -> None:
        """A copy on its way in is slow to reach, and caught once it counts and is not whole yet."""
        world, random = self.world, self.random
        primary = self._alive(after.primary)
        if primary is None:
            return
        known = before.members()
        for process in [self._alive(item.copy) for item in after.joining if item.copy not in known]:
            if process is not None:
                way = (primary.place, process.place)
                world.network.slow[way] = random.choice([5, 30, 100]) * MS
                self.later(world.options.pause_ms, partial(world.network.slow.pop, way, None))
        tails = {tail.copy for tail in before.tails}
        for copy in [tail.copy for tail in after.tails if tail.copy not in tails]:
            delay = random.choice([5, 30, 100]) * random.random() * MS
            former = [process for process in map(self._alive, after.former) if process is not None]
            if former:
                world.schedule.after(delay, self._bereave, primary, copy, former)
            else:
                world.schedule.after(delay, self._break, primary, copy)

    def _break(self, primary: NodeProcess, copy: int) -> None:
        """The link breaks that carries a copy's snapshot."""
        link = primary.links.get(copy)
        if self.on and link is not None and not primary.dead:
            link.reset()
            self._count("ambush break")

    def _strike_at(self, victim: int, primary: int) -> None:
        process, world, random = self._alive(victim), self.world, self.random
        if not self.on or process is None:
            return
        how = random.choice(["crash", "pause", "slow", "reset"])
        if how == "crash" and (world.options.both_copies or self.safe(process.machine)):
            self._crash_now(process.machine)
        elif how == "pause":
            self._pause_now(process)
        elif how == "reset":
            for link in [link for link in world.links if process.place in link.ends]:
                link.reset()
        else:
            other = self._alive(primary)
            if other is not None and other is not process:
                ends = (process.place, other.place)
                self._slow_down(ends if random.random() < 0.5 else ends[::-1])
        self._count(f"strike {how}")
