"""A named machine: its clock, its disk, and the node process that runs on it, if one does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .disk import Disk
from .node import NodeProcess
from .process import Clock

if TYPE_CHECKING:
    from .run import World


class Machine:
    """Where a node runs.

    Attributes:
        name: Node name.
        place: Its number in the network.
        process: The one that runs, or None.
        disk: Its local store, or None.
    """

    def __init__(self, world: World, place: int) -> None:
        random = world.random
        self.world = world
        self.place = place
        self.name = f"node-{place}"
        drift = random.uniform(-1, 1) * world.options.drift_ppm
        self.clock = Clock(world.schedule, random.randrange(10**9), drift, random.randint(-20, 20))
        self.process: NodeProcess | None = None
        self.disk = Disk(self) if world.options.local_disk else None

    def start(self) -> None:
        """Start a node process, if none runs."""
        if self.process is not None:
            return
        self.world.pids += 1
        self.world.schedule.trace(f"{self.name} starts {self.world.pids}")
        self.process = NodeProcess(self, self.world.pids)

    def crash(self) -> None:
        """Kill -9: whatever was in memory is gone."""
        self.exit(clean=False)

    def exit(self, *, clean: bool) -> None:
        """The process ends."""
        process, self.process = self.process, None
        if process is None:
            return
        self.world.schedule.trace(f"{self.name} ends {process.incarnation} clean={clean}")
        process.end()
        if self.disk is not None:
            self.disk.process_ended()
        self.world.coordination.process_ended(process.pid, clean)
