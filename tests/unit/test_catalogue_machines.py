"""Ways in which grids lose data or lie, tried on the machines that decide the table.

The numbers are those of docs/RELIABILITY.md.
"""

from random import Random

import pytest
from controller_world import World


@pytest.mark.parametrize("seed", range(5))
def test_f04_only_a_copy_that_holds_everything_acknowledged_is_promoted(seed: int) -> None:
    random = Random(seed)
    world = World(partitions=8, copies=2, min_in_sync=2, nodes_expected=3)
    for name in ("a", "b", "c"):
        world.join(name)
    world.settle()
    promoted = 0
    for number in range(30):
        for partition in range(8):
            world.commit(partition)
        victim = random.choice(world.alive)
        before = [(entry.epoch, entry.in_sync) for entry in world.table.entries]
        world.kill(victim)
        world.join(f"again-{number}")
        world.settle()
        world.check()
        for (epoch, in_sync), entry in zip(before, world.table.entries, strict=True):
            if victim in in_sync and entry.epoch > epoch:
                promoted += 1
        # `check` has compared: whoever is in sync now holds each acknowledged record.
        assert all(entry.primary in world.alive for entry in world.table.entries)
    assert promoted > 30
