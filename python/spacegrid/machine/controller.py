"""The controller: the one node that decides the ownership table.

A pure machine: `Controller.handle` takes an event and returns effects; the shell (node/) carries
them out and feeds back what came of them. Of `WriteTable` one is in flight at a time, and all that
is decided from one event goes into one write. While a write is in flight, what comes in waits:
requests of primaries in a bounded list, of registrations the newest.

Deciding is one pass of rules over the table as the coordinator has it: requested changes first,
then who died (survival.py), then the next steps towards the goal (rebalance.py, placement.py).
Nothing but the table, who is there (liveness.py) and the drain requests goes into it, so another
node that takes over decides the same.

Leases. A heartbeat is answered with one while three things hold: this node's term was confirmed a
moment ago, it has seen the newest table (its first write under the term was accepted, so nothing of
an older term can follow), and no write that deposes the sender may still take effect. A fresh
controller believes that every node has a lease of the one before.

Over 500 lines in one room: the order of the rules in one decision is what must be read together.

Who calls: node/, tests. Source: PROTOCOL.md sections 1, 3 to 6, 11.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from spacegrid.machine.acceptance import Choice, accept, waits_for, why_not
from spacegrid.machine.changes import apply_change
from spacegrid.machine.draft import Draft, Nodes
from spacegrid.machine.events import (
    BecameController,
    Change,
    ChangeKind,
    ChangesRequested,
    ConfirmFailed,
    ControllerEvent,
    Deposed,
    DrainRequested,
    Effect,
    Heartbeat,
    HeartbeatAnswer,
    LossAccepted,
    RegistrationsChanged,
    TableObserved,
    TermConfirmed,
    Ticked,
    WriteDone,
    WriteRefused,
    WriteTable,
)
from spacegrid.machine.liveness import Liveness
from spacegrid.machine.placement import Goal
from spacegrid.machine.rebalance import make_goal, place, step
from spacegrid.machine.restart import Restart
from spacegrid.machine.survival import settle
from spacegrid.machine.table import (
    CopyStore,
    PartitionEntry,
    Registration,
    Table,
    check_step,
)
from spacegrid.machine.term import HeldTerm
from spacegrid.machine.waiting import Wait, waits

__all__ = ["READMIT_WAIT_MS", "STORY_MAX", "Controller", "ControllerConfig", "StoryLine"]

#: A copy that a primary could not reach is not taken in again by that primary for this long.
READMIT_WAIT_MS = 5_000
#: A write that was refused or not answered is followed by another look after this long.
LOOK_AGAIN_MS = 200
#: A table that names copies of which no registration was heard waits this long for that news. It
#: comes right behind; none comes where a node began and ended between two pieces of news.
UNHEARD_WAIT_MS = 1_000
#: Changes of one partition that are remembered for debugging.
STORY_MAX = 16


class ControllerConfig(msgspec.Struct, frozen=True):
    """Settings of the controller.

    Attributes:
        motion_max: Partitions that move at one time when nodes join or leave.
        placement_wait_ms: How long the first placement waits for the expected nodes.
        pending_max: Requests of primaries that wait while a write is in flight.
        leases: Whether nodes send heartbeats and answer under leases; an embedded grid, which is
            one node and its own authority, does without.
    """

    motion_max: int = 64
    placement_wait_ms: int = 3_000
    pending_max: int = 100_000
    leases: bool = True


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
        self._term = HeldTerm()
        self._table: Table | None = None
        self._stores: tuple[CopyStore, ...] = ()
        self._registrations: tuple[Registration, ...] = ()
        self._stopping = False
        self._drains: frozenset[int] = frozenset()
        self._nodes = Nodes((), frozenset())
        self._pending: list[tuple[int, Change]] = []
        self._accepted: list[Choice] = []
        self._restart = Restart()
        self._in_flight: WriteTable | None = None
        #: Newest table seen while a write was in flight.
        self._observed: Table | None = None
        #: A write was refused: nothing is decided until a table was seen.
        self._blind = False
        self._blind_since_ms = 0
        #: The highest incarnation of all registrations heard.
        self._heard_up_to = 0
        #: Until when nothing is decided, since the table knows nodes that this one does not.
        self._unheard_until_ms = 0
        self._goal: dict[int, Goal] | None = None
        self._goal_nodes: tuple[int, ...] = ()
        self._placement_since_ms: int | None = None
        self._liveness = Liveness()
        #: Something happened since the last pass of the rules.
        self._dirty = False
        #: The last of the nodes' standing that was decided on.
        self._suspected: frozenset[int] = frozenset()
        self._unsteady: frozenset[int] = frozenset()
        #: Primaries that are gone and may still be answering.
        self._waits: frozenset[int] = frozenset()
        #: (partition, copy) that a primary could not reach, and until when that is remembered.
        self._shunned: dict[tuple[int, int], int] = {}
        #: Copies that a write deposes of which nobody knows whether it was done: to the revision
        #: that it expects. Once the table is past that, it is done or never will be.
        self._deposing: dict[int, int] = {}
        #: A write was accepted under this term, so no write of an older one can follow.
        self._newest = False
        self._stories: dict[int, deque[StoryLine]] = {}
        self._handlers: dict[type, Callable[..., list[Effect] | None]] = {
            BecameController: self._on_became_controller,
            Deposed: self._on_deposed,
            RegistrationsChanged: self._on_registrations_changed,
            ChangesRequested: self._on_changes_requested,
            DrainRequested: self._on_drain_requested,
            Heartbeat: self._on_heartbeat,
            TermConfirmed: self._on_term_confirmed,
            ConfirmFailed: self._on_confirm_failed,
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

    @property
    def suspected(self) -> frozenset[int]:
        """Nodes that have not ended and do not behave."""
        return self._suspected

    def suspicions(self) -> dict[int, str]:
        """Why each suspected node is: it is ``silent``, or a loop of it is ``stuck``."""
        silent = self._liveness.silent
        return {copy: "silent" if copy in silent else "stuck" for copy in sorted(self._suspected)}

    def has_authority(self, now_ms: int) -> bool:
        """Whether this node's word as controller counts: its term was confirmed a moment ago."""
        if not self.config.leases:
            return self._active
        return self._active and self._term.is_good(now_ms) and not self._liveness.isolated

    def handle(self, event: ControllerEvent, now_ms: int) -> list[Effect]:
        """Take an event.

        Args:
            event: What happened.
            now_ms: Milliseconds of a clock that does not go back; with leases the one in which they
                are counted, read after the event happened.

        Returns:
            What to do: at most one write, none while one is in flight. A heartbeat that this node
            may answer is answered at once.

        Cost: with 1,024 partitions below 1 ms when nothing is to do, about 10 ms for a death;
        heartbeats and ticks are a few dictionary look-ups.
        """
        effects: list[Effect] = list(self._handlers[type(event)](event, now_ms) or ())
        if not self._active:
            return effects
        effects += self._look_again(now_ms)
        if self.config.leases:
            effects += self._term.read(now_ms)
            self._take_standing()
        self._dirty |= self._is_due(now_ms)
        busy = self._blind or self._stopping or self._in_flight is not None
        if self._dirty and not busy and now_ms >= self._unheard_until_ms:
            self._dirty = False
            effects += self._decide(type(event).__name__, now_ms)
        return effects

    def next_deadline_ms(self) -> int | None:
        """When to hand in `Ticked` if nothing else happens; None: no need."""
        if not self._active:
            return None
        due: list[int] = []
        if self.config.leases:
            due = [self._term.next_due_ms(), self._liveness.next_look_ms()]
        busy = self._blind or self._stopping or self._in_flight is not None
        if self._blind and not self._stopping and self._in_flight is None:
            due.append(self._blind_since_ms + LOOK_AGAIN_MS)
        if not busy and self._dirty:
            due.append(self._unheard_until_ms)
        if not busy and self._placement_since_ms is not None:
            due.append(self._placement_since_ms + self.config.placement_wait_ms)
        if not busy:
            due += [self._liveness.answers_until_ms(copy) for copy in self._waits]
        return min(due, default=None)

    def why_not(self, choice: Choice) -> str:
        """Why an operator's decision would be refused by what is known now; empty: it would not."""
        if not self._active or self._table is None:
            return "this node is not the controller"
        return why_not(Draft(self._table, self._stores, self._nodes), choice)

    def waits(self, now_ms: int) -> dict[Wait, tuple[int, ...]]:
        """What each partition without a primary waits for, as far as this node decides it."""
        if not self._active or self._table is None:
            return {}
        return waits(self._draft(self._table, now_ms))

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

    def _on_became_controller(self, event: BecameController, now_ms: int) -> None:
        self._active, self._dirty = True, True
        self._term.begin(event.term, now_ms)
        self._in_flight, self._observed, self._blind = None, None, False
        self._blind_since_ms = now_ms
        self._unheard_until_ms = 0
        self._pending.clear()
        self._accepted.clear()
        self._goal = None
        self._placement_since_ms = None
        self._table, self._stores = event.table, event.table.stores
        self._newest, self._waits = False, frozenset()
        self._shunned, self._deposing = {}, {}
        self._suspected = self._unsteady = frozenset()
        self._liveness.begin(event.registrations, now_ms)
        self._set_nodes(event.registrations, event.stopping)
        self._restart.begin(event.table, self._nodes.registered, heartbeats=self.config.leases)

    def _on_deposed(self, _event: Deposed, _now_ms: int) -> None:
        self._active = False
        self._in_flight = None
        self._pending.clear()

    def _on_registrations_changed(self, event: RegistrationsChanged, now_ms: int) -> None:
        self._dirty = True
        self._unheard_until_ms = 0
        self._liveness.set_registrations(event.registrations, now_ms)
        self._set_nodes(event.registrations, event.stopping)

    def _on_changes_requested(self, event: ChangesRequested, _now_ms: int) -> None:
        if not self._active:
            self.refused_count += len(event.changes)
            return
        self._dirty = True
        self._restart.hear(event.sender)
        room = self.config.pending_max - len(self._pending)
        self._pending.extend((event.sender, change) for change in event.changes[:room])
        self.refused_count += max(0, len(event.changes) - room)

    def _on_drain_requested(self, event: DrainRequested, _now_ms: int) -> None:
        self._dirty = True
        self._drains |= {event.copy}
        self._set_nodes(self._registrations, self._stopping)

    def _on_heartbeat(self, event: Heartbeat, now_ms: int) -> list[Effect]:
        if not self._active:
            return [HeartbeatAnswer(event.copy, event.nonce)]
        # What its store holds counts from now on.
        self._dirty |= event.copy in self._liveness.unheard
        self._dirty |= self._restart.hear(event.copy)
        self._liveness.hear(event.copy, event.progress, now_ms)
        self._take_standing()
        if not self.has_authority(now_ms):
            return [HeartbeatAnswer(event.copy, event.nonce)]
        if not self._may_grant(event.copy):
            return [HeartbeatAnswer(event.copy, event.nonce, self._term.number)]
        lease_ms = self._term.lease_ms(now_ms)
        self._liveness.grant(event.copy, lease_ms, now_ms)
        revision = self._table.revision if self._table is not None else 0
        return [HeartbeatAnswer(event.copy, event.nonce, self._term.number, lease_ms, revision)]

    def _may_grant(self, copy: int) -> bool:
        if not self._nodes.live & {copy} or copy in self._deposing:
            return False
        # While the cluster stops nothing is written, and what was is before the mark.
        marked = self._stopping and self._table is not None and self._table.stopped
        return self._newest or marked

    def _on_term_confirmed(self, event: TermConfirmed, _now_ms: int) -> None:
        self._term.confirmed(event)

    def _on_confirm_failed(self, event: ConfirmFailed, _now_ms: int) -> None:
        self._term.failed(event.number)

    def _on_loss_accepted(self, event: LossAccepted, _now_ms: int) -> None:
        if self._active:
            self._dirty = True
            self._accepted.extend(event.choices)

    def _on_write_done(self, event: WriteDone, now_ms: int) -> None:
        write, self._in_flight = self._in_flight, None
        if write is None or self._table is None:
            return
        if event.revision <= write.expected_revision:
            # The late answer to a write of an earlier term of this node.
            self._in_flight = write
            return
        self._dirty = True
        # It was written onto what is known here, so nothing else was written meanwhile.
        self._blind = False
        table = self._table.apply(event.revision, write.entries, stopped=False)
        if event.revision != write.expected_revision + 1:
            # Somebody else wrote as well: the next table seen tells what.
            self._become_blind(now_ms)
        self._newest = True
        self._set_table(table)
        self._adopt_observed()

    def _on_write_refused(self, _event: WriteRefused, now_ms: int) -> None:
        if self._in_flight is not None:
            self._in_flight = None
            self._become_blind(now_ms)
            self._goal = None
            self._adopt_observed()

    def _on_table_observed(self, event: TableObserved, now_ms: int) -> None:
        if self._table is None or event.table.revision < self._table.revision:
            return
        if event.table.revision > self._table.revision and self._is_ahead(event.table):
            self._unheard_until_ms = now_ms + UNHEARD_WAIT_MS
        self._dirty = True
        self._stores = event.table.stores
        if self._in_flight is not None:
            self._observed = event.table
            return
        if self._blind or event.table.revision > self._table.revision:
            self._goal = None
        self._blind = False
        self._set_table(event.table)

    def _is_ahead(self, table: Table) -> bool:
        """Whether a table names nodes whose registration was not heard yet: they have not ended."""
        return any(
            copy > self._heard_up_to
            for entry in table.entries
            for copy in (*entry.members(), *entry.former)
        )

    def _on_ticked(self, _event: Ticked, now_ms: int) -> None:
        if self._active and self.config.leases:
            self._liveness.look(now_ms)

    def _become_blind(self, now_ms: int) -> None:
        self._blind, self._blind_since_ms = True, now_ms

    def _look_again(self, now_ms: int) -> list[Effect]:
        """Blind for a while: what was not answered may never have been written, and no news comes.

        An empty write onto the table that is known tells: accepted, nothing else was written and
        nothing that is under way can be any more; refused, the coordinator has a newer one to tell.
        """
        table = self._table
        if not self._blind or self._stopping or self._in_flight is not None or table is None:
            return []
        if now_ms < self._blind_since_ms + LOOK_AGAIN_MS:
            return []
        self._in_flight = WriteTable(self._term.number, table.revision, ())
        return [self._in_flight]

    def _take_standing(self) -> None:
        """Take over who is suspected or unsteady, where that changed."""
        liveness = self._liveness
        standing = (liveness.suspected, liveness.unsteady)
        if self.config.leases and standing != (self._suspected, self._unsteady):
            self._suspected, self._unsteady = standing
            self._dirty = True
            self._set_nodes(self._registrations, self._stopping)

    def _is_due(self, now_ms: int) -> bool:
        """Whether something that was waited for is over by now."""
        shunned = len(self._shunned)
        if shunned:
            self._shunned = {
                key: until_ms for key, until_ms in self._shunned.items() if until_ms > now_ms
            }
        placement = (
            self._placement_since_ms is not None
            and now_ms >= self._placement_since_ms + self.config.placement_wait_ms
        )
        waited = any(not self._answering(copy, now_ms) for copy in self._waits)
        return placement or waited or len(self._shunned) < shunned

    def _answering(self, copy: int, now_ms: int) -> bool:
        return self.config.leases and now_ms < self._liveness.answers_until_ms(copy)

    def _set_table(self, table: Table) -> None:
        self._table = table
        self._deposing = {
            copy: expected
            for copy, expected in self._deposing.items()
            if expected >= table.revision
        }

    def _adopt_observed(self) -> None:
        observed, self._observed = self._observed, None
        if observed is None or self._table is None:
            return
        if observed.revision > self._table.revision:
            self._set_table(observed)
            self._blind = False
            self._goal = None

    def _set_nodes(self, registrations: tuple[Registration, ...], stopping: bool) -> None:
        self._registrations, self._stopping = registrations, stopping
        newest = max((item.incarnation for item in registrations), default=0)
        self._heard_up_to = max(self._heard_up_to, newest)
        self._drains &= {item.incarnation for item in registrations}
        copies = self._table.copies if self._table is not None else 1
        self._nodes = Nodes(registrations, self._drains, self._suspected, self._unsteady, copies)
        self._restart.set_registered(self._nodes.registered)

    def _draft(self, table: Table, now_ms: int) -> Draft:
        """No change yet, and all that the rules may ask for."""
        draft = Draft(
            table,
            self._stores,
            self._nodes,
            lambda copy: self._answering(copy, now_ms),
            frozenset(self._shunned),
        )
        draft.restart = self._restart
        if self.config.leases:
            draft.unheard = self._liveness.unheard
        return draft

    def _decide(self, cause: str, now_ms: int) -> list[Effect]:
        """One pass of all rules over the table."""
        table = self._table
        if table is None or not self._nodes.live:
            return []
        draft = self._draft(table, now_ms)
        for sender, change in self._pending:
            if not apply_change(draft, sender, change):
                self.refused_count += 1
            elif change.kind is ChangeKind.SHRINK:
                self._shunned[change.partition, change.copy] = now_ms + READMIT_WAIT_MS
                draft.shunned |= {(change.partition, change.copy)}
        self._pending.clear()
        accepted, self._accepted = self._accepted, []
        for choice in accepted:
            if copies := waits_for(draft, choice):
                draft.waits |= copies
                self._accepted.append(choice)
            elif not accept(draft, choice):
                self.refused_count += 1
        settle(draft)
        self._waits = frozenset(draft.waits)
        first = self._may_place(table, now_ms)
        if self._goal is None or first or draft.began or self._goal_nodes != self._nodes.placeable:
            self._goal = make_goal(draft, first=first)
            self._goal_nodes = self._nodes.placeable
        if first:
            place(draft, self._goal)
        step(draft, self._goal, self.config.motion_max)
        # An empty write makes the table known, or voids one of which nobody knows what became.
        fences = self.config.leases and (not self._newest or bool(self._deposing))
        if not draft.changed and not fences:
            return []
        entries = tuple(draft.changed[partition] for partition in sorted(draft.changed))
        for entry in entries:
            story = self._stories.setdefault(entry.partition, deque(maxlen=STORY_MAX))
            story.append(StoryLine(now_ms, cause, entry))
        for entry in entries:
            deposed = table.entries[entry.partition].primary
            if deposed and entry.primary != deposed and deposed not in self._nodes.live:
                self._deposing[deposed] = table.revision
        self._in_flight = WriteTable(self._term.number, table.revision, entries)
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
