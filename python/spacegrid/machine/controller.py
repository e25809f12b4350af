"""The controller: the one node that decides the ownership table.

A pure machine: `Controller.handle` takes an event and returns effects; the shell (node/) carries
them out and feeds back what came of them. The only effect is `WriteTable`, one in flight at a time,
and everything decided from one event goes into one write. While a write is in flight, what comes in
waits: requests of primaries in a bounded list, of registrations the newest.

Deciding is one pass of rules over the table as the coordinator has it: requested changes first,
then who died (survival.py), then the next steps towards the goal (rebalance.py, placement.py).
Nothing but the table, the registrations and the drain requests goes into it, so another node that
takes over decides the same.

Who calls: node/, tests. Source: PROTOCOL.md sections 1, 3 to 5, 11.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from spacegrid.machine.acceptance import Choice, accept, why_not
from spacegrid.machine.draft import Draft, Nodes
from spacegrid.machine.events import (
    BecameController,
    Change,
    ChangeKind,
    ChangesRequested,
    ControllerEvent,
    Deposed,
    DrainRequested,
    Effect,
    LossAccepted,
    RegistrationsChanged,
    TableObserved,
    Ticked,
    WriteDone,
    WriteRefused,
    WriteTable,
)
from spacegrid.machine.placement import Goal
from spacegrid.machine.rebalance import make_goal, place, step
from spacegrid.machine.survival import settle
from spacegrid.machine.table import (
    CopyStore,
    PartitionEntry,
    Registration,
    State,
    Table,
    Tail,
    check_step,
)

__all__ = ["STORY_MAX", "Controller", "ControllerConfig", "StoryLine"]

#: Changes of one partition that are remembered for debugging.
STORY_MAX = 16


class ControllerConfig(msgspec.Struct, frozen=True):
    """Settings of the controller.

    Attributes:
        motion_max: Partitions that move at one time when nodes join or leave.
        placement_wait_ms: How long the first placement waits for the expected nodes.
        pending_max: Requests of primaries that wait while a write is in flight.
    """

    motion_max: int = 64
    placement_wait_ms: int = 3_000
    pending_max: int = 100_000


class StoryLine(msgspec.Struct, frozen=True):
    """One decision about a partition: when, by which event, and the entry since then."""

    at_ms: int
    cause: str
    entry: PartitionEntry


class Controller:
    """Decides the table; idle until `BecameController`."""

    def __init__(self, config: ControllerConfig | None = None) -> None:
        """Begin idle."""
        self.config = config or ControllerConfig()
        #: Requests that did not fit the table any more, or were over the limit.
        self.refused_count = 0
        self._active = False
        self._term = 0
        self._table: Table | None = None
        self._stores: tuple[CopyStore, ...] = ()
        self._registrations: tuple[Registration, ...] = ()
        self._stopping = False
        self._drains: frozenset[int] = frozenset()
        self._nodes = Nodes((), frozenset())
        self._pending: list[tuple[int, Change]] = []
        self._accepted: list[Choice] = []
        self._restarted = False
        self._in_flight: WriteTable | None = None
        #: Newest table seen while a write was in flight.
        self._observed: Table | None = None
        #: A write was refused: nothing is decided until a table was seen.
        self._blind = False
        self._goal: dict[int, Goal] | None = None
        self._goal_nodes: tuple[int, ...] = ()
        self._placement_since_ms: int | None = None
        self._stories: dict[int, deque[StoryLine]] = {}
        self._handlers: dict[type, Callable[..., None]] = {
            BecameController: self._on_became_controller,
            Deposed: self._on_deposed,
            RegistrationsChanged: self._on_registrations_changed,
            ChangesRequested: self._on_changes_requested,
            DrainRequested: self._on_drain_requested,
            LossAccepted: self._on_loss_accepted,
            WriteDone: self._on_write_done,
            WriteRefused: self._on_write_refused,
            TableObserved: self._on_table_observed,
            Ticked: self._on_ticked,
        }

    @property
    def table(self) -> Table | None:
        """The table as it was last known to be written."""
        return self._table

    @property
    def active(self) -> bool:
        """Whether this node decides."""
        return self._active

    def handle(self, event: ControllerEvent, now_ms: int) -> list[Effect]:
        """Take an event.

        Args:
            event: What happened.
            now_ms: Milliseconds of a clock that does not go back.

        Returns:
            What to do: at most one write. Empty while one is in flight.

        Cost: with 1,024 partitions below 1 ms when nothing is to do, about 10 ms for a death.
        """
        self._handlers[type(event)](event)
        if not self._active or self._blind or self._stopping or self._in_flight is not None:
            return []
        return self._decide(type(event).__name__, now_ms)

    def next_deadline_ms(self) -> int | None:
        """When to hand in `Ticked` if nothing else happens; None: no need."""
        busy = self._blind or self._stopping or self._in_flight is not None
        if not self._active or busy or self._placement_since_ms is None:
            return None
        return self._placement_since_ms + self.config.placement_wait_ms

    def why_not(self, choice: Choice) -> str:
        """Why an operator's decision would be refused by what is known now; empty: it would not."""
        if not self._active or self._table is None:
            return "this node is not the controller"
        return why_not(Draft(self._table, self._stores, self._nodes), choice)

    def story(self, partition: int) -> tuple[StoryLine, ...]:
        """The last decisions about a partition, oldest first."""
        return tuple(self._stories.get(partition, ()))

    def check(self) -> None:
        """Assert the invariants of what is written and of what is being written; for tests.

        Raises:
            InvariantViolation: One does not hold.
        """
        if self._table is None:
            return
        self._table.check()
        if self._in_flight is not None and not self._blind:
            for entry in self._in_flight.entries:
                entry.check(self._table.min_in_sync)
                check_step(self._table.entries[entry.partition], entry)

    def _on_became_controller(self, event: BecameController) -> None:
        self._active, self._term = True, event.term
        self._in_flight, self._observed, self._blind = None, None, False
        self._pending.clear()
        self._accepted.clear()
        self._goal = None
        self._placement_since_ms = None
        self._table, self._stores = event.table, event.table.stores
        self._set_nodes(event.registrations, event.stopping)
        named = {copy for entry in event.table.entries for copy in entry.members()}
        self._restarted = bool(named) and named.isdisjoint(self._nodes.live)

    def _on_deposed(self, event: Deposed) -> None:
        self._active = False
        self._in_flight = None
        self._pending.clear()

    def _on_registrations_changed(self, event: RegistrationsChanged) -> None:
        self._set_nodes(event.registrations, event.stopping)

    def _on_changes_requested(self, event: ChangesRequested) -> None:
        if not self._active:
            self.refused_count += len(event.changes)
            return
        room = self.config.pending_max - len(self._pending)
        self._pending.extend((event.sender, change) for change in event.changes[:room])
        self.refused_count += max(0, len(event.changes) - room)

    def _on_drain_requested(self, event: DrainRequested) -> None:
        self._drains |= {event.copy}
        self._set_nodes(self._registrations, self._stopping)

    def _on_loss_accepted(self, event: LossAccepted) -> None:
        if self._active:
            self._accepted.extend(event.choices)

    def _on_write_done(self, event: WriteDone) -> None:
        write, self._in_flight = self._in_flight, None
        if write is None or self._table is None:
            return
        table = self._table.apply(event.revision, write.entries, stopped=False)
        if event.revision != write.expected_revision + 1:
            # Somebody else wrote as well: the next table seen tells what.
            self._blind = True
        self._table = table
        self._adopt_observed()

    def _on_write_refused(self, event: WriteRefused) -> None:
        if self._in_flight is not None:
            self._in_flight = None
            self._blind = True
            self._goal = None
            self._adopt_observed()

    def _on_table_observed(self, event: TableObserved) -> None:
        if self._table is None or event.table.revision < self._table.revision:
            return
        self._stores = event.table.stores
        if self._in_flight is not None:
            self._observed = event.table
            return
        if self._blind or event.table.revision > self._table.revision:
            self._goal = None
        self._table, self._blind = event.table, False

    def _on_ticked(self, event: Ticked) -> None:
        """Time is in every call of `handle`."""

    def _adopt_observed(self) -> None:
        observed, self._observed = self._observed, None
        if observed is None or self._table is None:
            return
        if observed.revision > self._table.revision:
            self._table, self._blind = observed, False
            self._goal = None

    def _set_nodes(self, registrations: tuple[Registration, ...], stopping: bool) -> None:
        self._registrations, self._stopping = registrations, stopping
        self._drains &= {item.incarnation for item in registrations}
        self._nodes = Nodes(registrations, self._drains)

    def _decide(self, cause: str, now_ms: int) -> list[Effect]:
        """One pass of all rules over the table."""
        table = self._table
        if table is None or not self._nodes.live:
            return []
        draft = Draft(table, self._stores, self._nodes)
        draft.restarted = self._restarted
        for sender, change in self._pending:
            if not _apply_change(draft, sender, change):
                self.refused_count += 1
        self._pending.clear()
        for choice in self._accepted:
            if not accept(draft, choice):
                self.refused_count += 1
        self._accepted.clear()
        settle(draft)
        first = self._may_place(table, now_ms)
        if self._goal is None or first or draft.began or self._goal_nodes != self._nodes.placeable:
            self._goal = make_goal(draft, first=first)
            self._goal_nodes = self._nodes.placeable
        if first:
            place(draft, self._goal)
        step(draft, self._goal, self.config.motion_max)
        if not draft.changed:
            return []
        entries = tuple(draft.changed[partition] for partition in sorted(draft.changed))
        for entry in entries:
            story = self._stories.setdefault(entry.partition, deque(maxlen=STORY_MAX))
            story.append(StoryLine(now_ms, cause, entry))
        self._in_flight = WriteTable(self._term, table.revision, entries)
        return [self._in_flight]

    def _may_place(self, table: Table, now_ms: int) -> bool:
        """Whether to place what never was: the nodes are there, or were waited for long enough."""
        if all(entry.epoch for entry in table.entries):
            self._placement_since_ms = None
            return False
        if self._placement_since_ms is None:
            self._placement_since_ms = now_ms
        waited_ms = now_ms - self._placement_since_ms
        enough = len(self._nodes.placeable) >= table.nodes_expected
        return enough or waited_ms >= self.config.placement_wait_ms


def _apply_change(draft: Draft, sender: int, change: Change) -> bool:
    """Do what a primary asks for, if its entry is the one it asks about.

    Returns:
        False when it was refused; nothing has changed then.
    """
    if not 0 <= change.partition < draft.table.partition_count:
        return False
    base = draft.table.entries[change.partition]
    if (change.epoch, change.version) != (base.epoch, base.version) or base.state is not State.OK:
        return False
    if sender not in (0, base.primary):
        return False
    entry = draft.entry(change.partition)
    match change.kind:
        case ChangeKind.TAIL:
            # Handed over in this very write: the join begins again under the new primary's session,
            # of which this tail has nothing.
            return entry.epoch == base.epoch and _make_tail(draft, entry, change)
        case ChangeKind.IN_SYNC:
            return _make_in_sync(draft, entry, change)
        case ChangeKind.STOPPED:
            if not entry.target or entry.primary != base.primary:
                return False
            draft.serve(entry.partition, entry.target)
            return True


def _make_tail(draft: Draft, entry: PartitionEntry, change: Change) -> bool:
    for item in entry.joining:
        if item.copy == change.copy:
            tail = Tail(
                change.copy, item.session, change.from_epoch, change.from_sequence, entry.primary
            )
            draft.change(
                entry.partition,
                joining=tuple(other for other in entry.joining if other.copy != change.copy),
                tails=(*entry.tails, tail),
            )
            return True
    return False


def _make_in_sync(draft: Draft, entry: PartitionEntry, change: Change) -> bool:
    if all(tail.copy != change.copy for tail in entry.tails):
        return False
    in_sync = (*entry.in_sync, change.copy)
    draft.change(
        entry.partition,
        in_sync=in_sync,
        tails=tuple(tail for tail in entry.tails if tail.copy != change.copy),
        former=entry.former if len(in_sync) < draft.table.min_in_sync else (),
    )
    return True
