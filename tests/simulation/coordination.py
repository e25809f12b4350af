"""The coordinator of a simulated cluster: what the real one decides, over a simulated disk.

It may crash before or after a change is durable; then nobody is told, and who asked does not know
what became of it. It learns that a node's process has ended a while after the fact, as a watcher of
processes would, and only then ends its registration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from spacegrid.coordinator import CoordinatorEvent
from spacegrid.coordinator.authority import Authority, AuthorityState
from spacegrid.coordinator.view import View
from spacegrid.errors import ProtocolError
from spacegrid.machine.table import Registration, StoredPartition, check_step, new_table

from .schedule import MS, SECOND

if TYPE_CHECKING:
    from .run import World

LIFE = bytes(range(16))
PLACE = 0
ASK_TIMEOUT_US = 2 * SECOND


class Crashed(Exception):
    """The coordinator's process ended in the middle of a change."""


class Coordination:
    """The coordinator's process and its disk."""

    def __init__(self, world: World) -> None:
        options = world.options
        table = new_table(
            LIFE,
            partition_count=options.partitions,
            copies=options.copies,
            min_in_sync=options.min_in_sync,
            nodes_expected=options.nodes,
        )
        self.world = world
        self.durable = AuthorityState(table)
        self.up = True
        #: "before" or "after": crash at the next change, before or after it is durable.
        self.crash_at = ""
        self.authority = Authority(self.durable, self._save)
        self.watches: list[Watch] = []
        #: Incarnation to what it said that its disk holds, also after its end.
        self.stored: dict[int, tuple[StoredPartition, ...]] = {}
        #: Processes that have ended, and whether cleanly.
        self._ended: dict[int, bool] = {}

    @property
    def state(self) -> AuthorityState:
        """What is durable."""
        return self.durable

    def _save(self, state: AuthorityState) -> None:
        before, after = self.durable.table, state.table
        if self.crash_at == "before":
            raise Crashed
        for old, new in zip(before.entries, after.entries, strict=True):
            if old is not new:
                check_step(old, new)
        after.check()
        self.durable = state
        self.world.audit.table_written(before, after)
        if self.crash_at == "after":
            raise Crashed

    def crash(self, at: str) -> None:
        """End the process at the next change, or now."""
        if at and self.up:
            self.crash_at = at
        elif self.up:
            self._down()

    def _down(self) -> None:
        self.up = False
        self.crash_at = ""
        self.world.schedule.trace("coordinator down")
        for watch in self.watches:
            watch.broken()
        self.watches.clear()

    def restart(self) -> None:
        """Begin again from the disk."""
        self.crash_at = ""
        if self.up:
            return
        self.up = True
        self.authority = Authority(self.durable, self._save)
        self.world.schedule.trace("coordinator up")
        for pid in list(self._ended):
            self._notice(pid)

    def carry_out(self, change: Callable[[Authority], object]) -> tuple[bool, object]:
        """Do one thing; (False, None) when the process is down or ends with it."""
        if not self.up:
            return False, None
        try:
            result = change(self.authority)
            if isinstance(result, Registration):
                self.stored[result.incarnation] = result.stored
            return True, result
        except ProtocolError as error:
            return True, error
        except Crashed:
            self._down()
            return False, None
        finally:
            for watch in self.watches:
                watch.news()

    def process_ended(self, pid: int, clean: bool) -> None:
        """A node's process is no more; noticed after a while."""
        self._ended[pid] = clean
        delay = self.world.random.expovariate(1 / self.world.options.notice_ms) * MS
        self.world.schedule.after(delay, self._notice, pid)

    def registered(self, pid: int) -> None:
        """A process was registered: if it has ended meanwhile, that is noticed as well."""
        if pid in self._ended:
            self.world.schedule.after(1 * MS, self._notice, pid)

    def _notice(self, pid: int) -> None:
        if not self.up:
            return
        for registration in self.durable.registrations:
            if registration.pid == pid:
                self._end(registration.incarnation, crashed=not self._ended[pid])
                return

    def _end(self, incarnation: int, *, crashed: bool) -> None:
        self.world.schedule.trace(f"ended {incarnation}")
        self.carry_out(lambda authority: authority.end(incarnation, crashed=crashed))


class Watch:
    """One node's stream of news from the coordinator, with what is new merged while it travels."""

    def __init__(
        self,
        coordination: Coordination,
        place: int,
        hear: Callable[[list[CoordinatorEvent]], None],
        lost: Callable[[], None],
    ) -> None:
        self._coordination = coordination
        self._place = place
        self._hear, self._lost = hear, lost
        self._view = View()
        self._on_way = False
        self._open = True
        coordination.authority.watch(self._view)
        coordination.watches.append(self)
        self.news()

    def news(self) -> None:
        """There may be something new: it leaves as it is now, and is old when it arrives."""
        if not self._open or self._on_way:
            return
        events = self._view._take()
        if events:
            self._on_way = True
            network = self._coordination.world.network
            delay = network.delay_us(PLACE, self._place) + network.lag.get(self._place, 0)
            network.schedule.after(delay, self._deliver, events)

    def _deliver(self, events: list[CoordinatorEvent]) -> None:
        world = self._coordination.world
        if not self._open:
            return
        if world.network.is_cut(PLACE, self._place):
            world.schedule.after(20 * MS, self._deliver, events)
            return
        self._on_way = False
        self._hear(events)
        self.news()

    def broken(self) -> None:
        """The stream broke on the coordinator's side."""
        if self._open:
            self._open = False
            world = self._coordination.world
            world.schedule.after(world.network.delay_us(PLACE, self._place), self._lost)

    def close(self) -> None:
        """The node is gone, or begins a new stream."""
        self._open = False
        self._coordination.authority.unwatch(self._view)
        if self in self._coordination.watches:
            self._coordination.watches.remove(self)


def changed(registration: Registration, **changes: object) -> Registration:
    """A registration with something else in it."""
    return msgspec.structs.replace(registration, **changes)
