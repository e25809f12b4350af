"""Leases, the term and the nodes' standing, event by event: who may answer, and until when."""

from __future__ import annotations

import pytest
from spacegrid.machine.controller import Controller
from spacegrid.machine.events import (
    BecameController,
    Change,
    ChangeKind,
    ChangesRequested,
    ConfirmTerm,
    ControllerChanged,
    DrainRequested,
    Effect,
    Heartbeat,
    HeartbeatAnswer,
    RegistrationsChanged,
    TableObserved,
    TermConfirmed,
    Ticked,
    WriteDone,
    WriteRefused,
    WriteTable,
)
from spacegrid.machine.leases import (
    AUTHORITY_MS,
    CONFIRM_MS,
    FRESH_WAIT_MS,
    GRANTED_MS,
    HEARTBEAT_MS,
    HELD_MS,
    REACH_MS,
    waited_ms,
)
from spacegrid.machine.liveness import (
    FORGIVEN_MS,
    LOOK_MS,
    STEADY_MS,
    STUCK_MS,
    SUSPECT_MS,
    Liveness,
)
from spacegrid.machine.table import Joining, PartitionEntry, Registration, State, Table
from spacegrid.machine.term import HeldTerm

LIFE = bytes(16)
TERM = 7


def nodes(*incarnations: int) -> tuple[Registration, ...]:
    return tuple(Registration(name=f"node-{n}", incarnation=n) for n in incarnations)


def test_the_holder_ends_a_lease_before_the_controller_does() -> None:
    assert HELD_MS < GRANTED_MS


# ---- the term ----


def test_a_term_counts_from_the_sending_of_its_reading() -> None:
    term = HeldTerm()
    term.begin(TERM, 1_000)
    assert not term.is_good(1_000)
    assert term.read(1_000) == [ConfirmTerm(1)]
    assert term.read(1_000 + CONFIRM_MS - 1) == []
    term.confirmed(TermConfirmed(1, ControllerChanged(1, TERM)))
    assert term.is_good(1_000 + AUTHORITY_MS - 1)
    assert not term.is_good(1_000 + AUTHORITY_MS)


def test_a_reading_of_another_term_or_of_too_long_ago_confirms_nothing() -> None:
    term = HeldTerm()
    term.begin(TERM, 0)
    term.read(0)
    term.confirmed(TermConfirmed(1, ControllerChanged(2, TERM + 1)))
    assert not term.is_good(1)
    (late,) = term.read(CONFIRM_MS)
    term.read(CONFIRM_MS + AUTHORITY_MS)
    term.confirmed(TermConfirmed(late.number, ControllerChanged(1, TERM)))
    assert not term.is_good(CONFIRM_MS + AUTHORITY_MS)


def test_no_lease_reaches_further_from_the_reading_than_a_follower_waits() -> None:
    term = HeldTerm()
    term.begin(TERM, 1_000)
    assert term.lease_ms(1_000) <= REACH_MS - AUTHORITY_MS, "nothing was read yet"
    (reading,) = term.read(1_000)
    term.confirmed(TermConfirmed(reading.number, ControllerChanged(1, TERM)))
    for age_ms in range(AUTHORITY_MS):
        lease_ms = term.lease_ms(1_000 + age_ms)
        assert 0 < lease_ms <= HELD_MS
        assert age_ms + lease_ms <= REACH_MS
        # The clocks of giver and holder run slow by five in a hundred, the follower's fast by five.
        assert (age_ms + lease_ms) / 0.95 <= FRESH_WAIT_MS / 1.05
        assert lease_ms / 0.95 <= waited_ms(lease_ms) / 1.05
    assert term.lease_ms(1_000) == HELD_MS


# ---- standing ----


def looked(*incarnations: int) -> Liveness:
    liveness = Liveness()
    liveness.begin(nodes(*incarnations), 0)
    return liveness


def pass_time(liveness: Liveness, until_ms: int, *heard: int, since_ms: int = 0) -> None:
    """Look every `LOOK_MS`, and hear some nodes all the while."""
    for now_ms in range(since_ms + LOOK_MS, until_ms + 1, LOOK_MS):
        for copy in heard:
            liveness.hear(copy, (now_ms, now_ms, now_ms), now_ms)
        liveness.look(now_ms)


def test_a_node_that_is_silent_is_suspected_until_it_is_heard_again() -> None:
    liveness = looked(1, 2, 3)
    pass_time(liveness, SUSPECT_MS - LOOK_MS, 1, 2)
    assert liveness.suspected == frozenset()
    pass_time(liveness, SUSPECT_MS, 1, 2, since_ms=SUSPECT_MS - LOOK_MS)
    assert liveness.suspected == {3}
    liveness.hear(3, (1, 1, 1), SUSPECT_MS + 1)
    assert liveness.suspected == frozenset()


def suspected_and_heard(liveness: Liveness, since_ms: int) -> int:
    """Node 3 is silent until it is suspected, and heard again; when that is."""
    until_ms = since_ms + SUSPECT_MS
    pass_time(liveness, until_ms, 1, 2, since_ms=since_ms)
    assert liveness.suspected == {3}
    liveness.hear(3, (until_ms,) * 3, until_ms)
    assert liveness.suspected == frozenset()
    return until_ms


def test_suspicions_that_pass_again_and_again_leave_a_node_unsteady_for_longer_and_longer() -> None:
    liveness = looked(1, 2, 3)
    now_ms = suspected_and_heard(liveness, 0)
    assert liveness.unsteady == frozenset(), "once is forgiven at once"
    for expected_ms in (STEADY_MS[0], 2 * STEADY_MS[0], 4 * STEADY_MS[0]):
        now_ms = suspected_and_heard(liveness, now_ms)
        assert liveness.unsteady == {3}
        pass_time(liveness, now_ms + expected_ms - LOOK_MS, 1, 2, 3, since_ms=now_ms)
        assert liveness.unsteady == {3}
        pass_time(liveness, now_ms + expected_ms, 1, 2, 3, since_ms=now_ms + expected_ms - LOOK_MS)
        assert liveness.unsteady == frozenset()
        now_ms += expected_ms
    for _ in range(10):
        now_ms = suspected_and_heard(liveness, now_ms)
    pass_time(liveness, now_ms + STEADY_MS[1], 1, 2, 3, since_ms=now_ms)
    assert liveness.unsteady == frozenset(), "there is a most"
    now_ms += STEADY_MS[1]
    pass_time(liveness, now_ms + FORGIVEN_MS, 1, 2, 3, since_ms=now_ms)
    suspected_and_heard(liveness, now_ms + FORGIVEN_MS)
    assert liveness.unsteady == frozenset(), "and after a while it begins again"


def test_for_time_in_which_it_did_not_run_itself_it_judges_nobody() -> None:
    liveness = looked(1, 2)
    liveness.look(5_000)
    assert liveness.suspected == frozenset()


def test_who_hears_fewer_than_half_suspects_itself_and_nobody_else() -> None:
    liveness = looked(1, 2, 3)
    pass_time(liveness, 2 * SUSPECT_MS, 1)
    assert liveness.isolated
    assert liveness.suspected == frozenset()
    liveness.hear(2, (1, 1, 1), 2 * SUSPECT_MS)
    assert not liveness.isolated
    assert liveness.suspected == {3}


@pytest.mark.parametrize(("counter", "limit_ms"), list(enumerate(STUCK_MS)))
def test_a_counter_that_stands_still_shows_a_loop_that_is_stuck(
    counter: int, limit_ms: int
) -> None:
    liveness = looked(1, 2)
    for now_ms in range(LOOK_MS, limit_ms + 2 * LOOK_MS, LOOK_MS):
        liveness.hear(1, (now_ms, now_ms, now_ms), now_ms)
        stuck = [now_ms, now_ms, now_ms]
        stuck[counter] = 1
        liveness.hear(2, tuple(stuck), now_ms)
        liveness.look(now_ms)
        expected = {2} if now_ms - LOOK_MS >= limit_ms else set()
        assert liveness.suspected == expected, now_ms


def test_a_fresh_controller_believes_that_everyone_has_a_lease_of_the_one_before() -> None:
    liveness = looked(1, 2)
    assert liveness.answers_until_ms(2) == FRESH_WAIT_MS
    liveness.grant(2, HELD_MS, 1_000)
    assert liveness.answers_until_ms(2) == 1_000 + GRANTED_MS
    liveness.grant(2, 200, 1_100)
    assert liveness.answers_until_ms(2) == 1_000 + GRANTED_MS, "the longer one is still good"
    liveness.set_registrations(nodes(1), 1_000)
    assert liveness.answers_until_ms(2) == 0, "it has ended"


# ---- the controller ----


class Desk:
    """A controller with its shell: the clock, and the answers of the coordinator."""

    def __init__(
        self,
        *alive: int,
        primary: int = 2,
        in_sync: tuple[int, ...] = (2, 3),
        target: int = 0,
        min_in_sync: int = 2,
    ) -> None:
        self.now_ms = 0
        self.controller = Controller()
        self.writes: list[WriteTable] = []
        self.entry = PartitionEntry(0, 3, 9, State.OK, primary, in_sync, target=target)
        copies = max(2, len(in_sync))
        self.table = Table(5, LIFE, 1, copies, min_in_sync, (self.entry,))
        self.alive = alive
        self.handle(BecameController(self.table, nodes(*alive), TERM))

    def handle(self, event: object) -> list[Effect]:
        effects = self.controller.handle(event, self.now_ms)  # type: ignore[arg-type]
        self.controller.check()
        for effect in effects:
            if isinstance(effect, ConfirmTerm):
                answer = ControllerChanged(1, TERM)
                self.controller.handle(TermConfirmed(effect.number, answer), self.now_ms)
            elif isinstance(effect, WriteTable):
                self.writes.append(effect)
        return effects

    def accept(self) -> WriteTable:
        """The write that waits is done."""
        write = self.writes.pop()
        assert not self.writes
        self.table = self.table.apply(write.expected_revision + 1, write.entries)
        self.handle(WriteDone(self.table.revision))
        return write

    def beat(self, copy: int) -> HeartbeatAnswer:
        answers = [
            effect
            for effect in self.handle(Heartbeat(copy, self.now_ms, (self.now_ms,) * 3))
            if isinstance(effect, HeartbeatAnswer)
        ]
        assert len(answers) == 1
        return answers[0]

    def run(self, until_ms: int, *heard: int) -> None:
        """Time passes, and some nodes are heard."""
        while self.now_ms < until_ms:
            self.now_ms += LOOK_MS
            if self.now_ms % HEARTBEAT_MS == 0:
                for copy in heard:
                    self.beat(copy)
            self.handle(Ticked())


def settled(*alive: int) -> Desk:
    """A controller whose first write is done and whose predecessor's leases are over."""
    desk = Desk(*alive)
    desk.accept()
    desk.run(2 * FRESH_WAIT_MS, *alive)
    assert not desk.writes
    return desk


def test_a_controller_grants_nothing_before_its_first_write_is_done() -> None:
    desk = Desk(1, 2, 3)
    assert not desk.beat(2).lease_ms
    assert desk.accept().entries == (), "it only makes the table known"
    answer = desk.beat(2)
    assert (answer.lease_ms, answer.term, answer.revision) == (HELD_MS, TERM, 6)


def test_a_controller_whose_term_is_not_confirmed_grants_nothing() -> None:
    desk = settled(1, 2, 3)
    controller = desk.controller
    later_ms = desk.now_ms + AUTHORITY_MS
    controller.handle(Ticked(), later_ms)  # nobody answers the reading that this asks for
    (answer, *_) = controller.handle(Heartbeat(2, 1, (1, 1, 1)), later_ms)
    assert answer == HeartbeatAnswer(2, 1), "its word is worth nothing"


def test_a_hung_primary_is_promoted_over_when_its_lease_is_surely_over() -> None:
    desk = settled(1, 2, 3)
    last_grant_ms = desk.now_ms // HEARTBEAT_MS * HEARTBEAT_MS
    desk.run(last_grant_ms + GRANTED_MS // LOOK_MS * LOOK_MS, 1, 3)
    assert desk.controller.suspicions() == {2: "silent"}
    assert not desk.writes, "it may still be answering"
    desk.run(last_grant_ms + GRANTED_MS + LOOK_MS, 1, 3)
    (entry,) = desk.writes[0].entries
    assert (entry.primary, entry.epoch, entry.in_sync, entry.former) == (3, 4, (3,), (2,))


def test_a_node_that_is_heard_and_stands_still_is_called_stuck() -> None:
    desk = settled(1, 2, 3)
    until_ms = desk.now_ms + STUCK_MS[0] + 2 * HEARTBEAT_MS
    while desk.now_ms < until_ms:
        desk.run(desk.now_ms + HEARTBEAT_MS, 1)
        desk.handle(Heartbeat(2, desk.now_ms, (7, desk.now_ms, desk.now_ms)))
    assert desk.controller.suspicions() == {2: "stuck", 3: "silent"}


def test_a_primary_that_ended_is_promoted_over_at_once() -> None:
    desk = settled(1, 2, 3)
    desk.handle(RegistrationsChanged(nodes(1, 3)))
    assert desk.writes[0].entries[0].primary == 3


def test_a_hung_backup_is_shrunk_out_without_waiting() -> None:
    desk = settled(1, 2, 3)
    desk.run(desk.now_ms + SUSPECT_MS, 1, 2)
    (entry,) = desk.writes[0].entries
    assert (entry.primary, entry.epoch, entry.in_sync, entry.former) == (2, 3, (2,), (3,))


def test_a_backup_that_is_back_and_missed_nothing_is_in_sync_again() -> None:
    desk = Desk(2, 3)
    desk.accept()
    desk.run(2 * FRESH_WAIT_MS, 2, 3)
    desk.run(desk.now_ms + SUSPECT_MS, 2)
    assert desk.accept().entries[0].former == (3,)
    desk.beat(3)
    (entry,) = desk.writes[0].entries
    assert (entry.in_sync, entry.former) == ((2, 3), ())
    assert entry.epoch == 4, "both sides begin anew"


def test_no_copy_is_dropped_for_one_that_has_ended_meanwhile() -> None:
    """A controller that stood still hears first what was asked, then who has ended."""
    desk = Desk(1, 2, 3, in_sync=(2, 1))
    desk.accept()
    desk.run(2 * FRESH_WAIT_MS, 1, 2, 3)
    desk.handle(DrainRequested(1))
    assert desk.accept().entries[0].joining == (Joining(3, 10),)
    desk.handle(ChangesRequested((Change(0, 3, 10, ChangeKind.TAIL, 3),), sender=2))
    assert len(desk.accept().entries[0].tails) == 1
    desk.handle(ChangesRequested((Change(0, 3, 11, ChangeKind.IN_SYNC, 3),), sender=2))
    desk.handle(RegistrationsChanged(nodes(1)))
    assert desk.accept().entries[0].in_sync == (2, 1, 3)
    entry = desk.writes[-1].entries[0]
    assert (entry.state, entry.primary) == (State.OK, 1), "the last complete copy serves"


def test_copies_that_one_write_removes_are_all_remembered() -> None:
    desk = Desk(2, 3, 4, in_sync=(2, 3, 4), min_in_sync=2)
    desk.beat(2)
    desk.handle(ChangesRequested((Change(0, 3, 9, ChangeKind.SHRINK, 4),), sender=2))
    desk.handle(RegistrationsChanged(nodes(2, 4)))
    assert not desk.accept().entries, "the first write of a controller says nothing"
    (entry,) = desk.accept().entries
    assert (entry.in_sync, set(entry.former)) == ((2,), {3, 4})
    desk.run(desk.now_ms + 2 * FRESH_WAIT_MS, 2, 4)
    desk.handle(RegistrationsChanged(nodes(4)))
    assert desk.writes[-1].entries[0].primary == 4, "it has everything that was committed"


def test_a_copy_that_is_back_ends_a_hand_over_that_waits_for_a_commit_without_it() -> None:
    desk = Desk(2, 3, 4, in_sync=(2, 3, 4), target=3, min_in_sync=3)
    desk.accept()
    desk.run(2 * FRESH_WAIT_MS, 2, 3, 4)
    desk.run(desk.now_ms + SUSPECT_MS, 2, 3)
    entry = desk.accept().entries[0]
    assert (entry.in_sync, entry.former, entry.target) == ((2, 3), (4,), 3)
    desk.beat(4)
    entry = desk.writes[-1].entries[0]
    assert (entry.primary, entry.in_sync, entry.former) == (2, (2, 3, 4), ())
    assert entry.epoch == 4, "whoever stopped for the hand-over goes on"


def test_a_partition_whose_copies_hang_is_unavailable_and_not_lost() -> None:
    desk = Desk(1, 2, 4, 5, in_sync=(2,))
    desk.accept()
    while desk.writes:
        desk.accept()
    desk.run(3 * FRESH_WAIT_MS, 1, 4, 5)
    entry = desk.writes[-1].entries[0]
    assert entry.state is State.UNAVAILABLE
    desk.accept()
    desk.beat(2)
    assert desk.writes[-1].entries[0].primary == 2, "it is served again when it is back"


def test_who_is_being_deposed_gets_no_lease_until_nobody_doubts_the_write() -> None:
    desk = settled(1, 2, 3)
    desk.run(desk.now_ms + GRANTED_MS, 1, 3)
    assert desk.writes.pop().entries[0].primary == 3
    assert not desk.beat(2).lease_ms, "the write is under way"
    desk.handle(WriteRefused())
    assert not desk.beat(2).lease_ms, "it may have been done"
    desk.handle(TableObserved(desk.table))
    assert not desk.beat(2).lease_ms, "it may still be done"
    assert desk.writes, "a write at the same revision voids it"
    desk.accept()
    assert desk.beat(2).lease_ms


def test_a_copy_that_its_primary_can_not_reach_is_removed_and_not_taken_in_at_once() -> None:
    desk = settled(1, 2, 3)
    desk.handle(ChangesRequested((Change(0, 3, 9, ChangeKind.SHRINK, 3),), sender=2))
    entry = desk.accept().entries[0]
    assert (entry.primary, entry.in_sync, entry.former) == (2, (2,), (3,))
    assert [item.copy for item in entry.joining] == [1], "another one takes its place"
    desk.run(desk.now_ms + 1_000, 1, 2, 3)
    assert not desk.writes


@pytest.mark.parametrize("copy", [2, 1])
def test_a_shrink_that_makes_no_sense_changes_nothing(copy: int) -> None:
    desk = settled(1, 2, 3)
    desk.handle(ChangesRequested((Change(0, 3, 9, ChangeKind.SHRINK, copy),), sender=2))
    assert not desk.writes
    assert desk.controller.refused_count == 1
