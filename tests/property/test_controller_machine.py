"""Random walks of a cluster: nodes come, die, drain, stop; writes are lost on the way.

After every step the world asserts the invariants and that whatever is called complete holds every
acknowledged record, so a promotion of a copy that missed one fails here. At the end everything
heals, and copies have to be back. A failing walk names its seed.
"""

from __future__ import annotations

import random

import pytest
from controller_world import World
from spacegrid.machine.events import Ticked
from spacegrid.machine.table import State

STEPS = 120
NODES_MAX = 6


class Walk:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        copies = self.random.choice((1, 2, 2, 3))
        self.world = World(
            partitions=self.random.choice((1, 5, 12)),
            copies=copies,
            min_in_sync=self.random.randint(1, copies),
            nodes_expected=self.random.randint(1, 4),
            motion_max=self.random.choice((1, 3, 64)),
        )
        self.names = 0
        self.disks = self.random.random() < 0.5
        #: Zones of the nodes; empty: they have none.
        self.zones = self.random.choice(("", "", "ab", "abc"))

    def join(self) -> None:
        if len(self.world.alive) < NODES_MAX and not self.world.authority.stopping:
            self.names += 1
            self.start(f"node-{self.names}")

    def start(self, name: str) -> None:
        """A node of that name, in the zone that goes with it; now and then one has none."""
        number = int(name.removeprefix("node-"))
        zones = (*self.zones, "") if self.zones else ("",)
        self.world.join(name, disk=self.disks, zone=zones[number % len(zones)])

    def kill(self) -> None:
        if self.world.alive:
            self.world.kill(self.random.choice(self.world.alive))

    def kill_two(self) -> None:
        if len(self.world.alive) > 2:
            self.world.kill(*self.random.sample(self.world.alive, 2))

    def drain(self) -> None:
        if len(self.world.alive) > 1:
            self.world.drain(self.random.choice(self.world.alive))

    def leave(self) -> None:
        """A node that has drained ends."""
        for registration in self.world.authority.state.registrations:
            copy = registration.incarnation
            if registration.draining and not self.world.table.names(copy):
                self.world.kill(copy)
                return

    def commit(self) -> None:
        for partition in range(self.world.table.partition_count):
            if self.random.random() < 0.5:
                self.world.commit(partition)

    def ask(self) -> None:
        """Some primaries ask for some of what they could."""
        asked = [
            change
            for entry in self.world.table.entries
            for change in self.world.requests(entry)
            if self.random.random() < 0.6
        ]
        if asked and self.world.controller_is:
            self.world.ask(asked)

    def write(self) -> None:
        self.world.carry_out(watch_first=self.random.random() < 0.3)

    def lose(self) -> None:
        self.random.choice((self.world.lose_request, self.world.lose_answer))()

    def tick(self) -> None:
        self.world.now_ms += self.random.choice((100, 5_000))
        if self.world.controller_is:
            self.world.deliver(Ticked())

    def stop_and_start(self) -> None:
        """The whole cluster stops, and the nodes that had disks come back in any order."""
        if not self.world.alive:
            return
        names = [item.name for item in self.world.authority.state.registrations]
        crash = (self.random.choice(self.world.alive),) if self.random.random() < 0.2 else ()
        self.world.stop_cluster(crash=crash)
        self.random.shuffle(names)
        for name in names:
            self.start(name)

    def run(self) -> None:
        steps = [self.join, self.kill, self.kill_two, self.drain, self.leave]
        steps += [self.commit, self.ask, self.write, self.lose, self.tick, self.stop_and_start]
        weights = [8, 4, 1, 2, 3, 15, 25, 30, 3, 4, 1]
        for step in self.random.choices(steps, weights, k=STEPS):
            step()
            self.world.check()
        self.heal()

    def heal(self) -> None:
        """Enough nodes, no more trouble: every partition is whole again, or said to be gone."""
        world = self.world
        while len(world.alive) < 4:
            self.names += 1
            self.start(f"node-{self.names}")
        world.now_ms += 10_000
        world.deliver(Ticked())
        world.settle()
        registrations = world.authority.state.registrations
        staying = [item for item in registrations if not item.draining]
        wanted = min(world.table.copies, len(staying) or len(registrations))
        zone_of = {item.incarnation: item.zone or item.incarnation for item in registrations}
        zones = {zone_of[item.incarnation] for item in staying or registrations}
        apart = min(world.table.copies, len(zones))
        for entry in world.table.entries:
            if entry.state is State.OK:
                assert len(entry.in_sync) == wanted, entry
                assert len({zone_of[copy] for copy in entry.in_sync}) == apart, entry
                assert not entry.joining, entry
                assert not entry.tails, entry
                assert entry.target == 0, entry
            else:
                assert not set(entry.in_sync) & set(world.alive), entry


@pytest.mark.parametrize("first", range(0, 300, 30))
def test_no_walk_loses_what_was_acknowledged(first: int) -> None:
    for seed in range(first, first + 30):
        try:
            Walk(seed).run()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


def test_one_seed_is_one_walk() -> None:
    walks = [Walk(7), Walk(7)]
    for walk in walks:
        walk.run()
    assert walks[0].world.writes == walks[1].world.writes
