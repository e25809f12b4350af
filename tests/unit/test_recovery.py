"""Rule (iii): a former copy is completed from a tail, as the controller has it in the table."""

from __future__ import annotations

import msgspec
import pytest
from spacegrid.errors import InvariantViolation
from spacegrid.machine.controller import Controller, ControllerConfig
from spacegrid.machine.events import (
    BecameController,
    Change,
    ChangeKind,
    ChangesRequested,
    RegistrationsChanged,
    WriteDone,
)
from spacegrid.machine.table import (
    CopyStore,
    PartitionEntry,
    Registration,
    State,
    StoredPartition,
    Table,
    Tail,
    check_step,
)

#: The last complete copy, a former one, two tails, and a node with nothing.
LAST, FORMER, TAIL, OTHER, SPARE = 1, 2, 3, 4, 5
TAILS = (Tail(TAIL, 8, 3, 40, LAST), Tail(OTHER, 8, 3, 60, LAST))


def nodes(*copies: int) -> tuple[Registration, ...]:
    return tuple(Registration(name=f"node-{copy}", incarnation=copy) for copy in copies)


class Desk:
    """A controller of one partition of which the last complete copy has just ended."""

    def __init__(self, **fields: object) -> None:
        entry = PartitionEntry(0, 3, 9, State.OK, LAST, (LAST,), (FORMER,), (), TAILS)
        entry = msgspec.structs.replace(entry, **fields)
        self.table = Table(5, bytes(16), 1, 2, 2, (entry,))
        self.begin(FORMER, TAIL, OTHER, SPARE)

    def begin(self, *copies: int) -> None:
        """Another node becomes controller."""
        self.controller = Controller(ControllerConfig(leases=False))
        self.handle(BecameController(self.table, nodes(*copies), term=1))

    def handle(self, event: object) -> None:
        effects = self.controller.handle(event, 0)  # type: ignore[arg-type]
        while effects:
            (write,) = effects
            self.controller.check()
            before, revision = self.table, self.table.revision + 1
            self.table = self.table.apply(revision, write.entries)
            self.table.check()
            for old, new in zip(before.entries, self.table.entries, strict=True):
                check_step(old, new)
            effects = self.controller.handle(WriteDone(revision), 0)

    def alive(self, *copies: int) -> PartitionEntry:
        self.handle(RegistrationsChanged(nodes(*copies), False))
        return self.entry

    @property
    def entry(self) -> PartitionEntry:
        return self.table.entries[0]

    def ask(
        self, sender: int, kind: ChangeKind, copy: int, *, sequence: int = 0, version: int = 0
    ) -> bool:
        """Whether the table changed by it."""
        before = self.entry
        version = version or before.version
        change = Change(0, before.epoch, version, kind, copy, 3 if sequence else 0, sequence)
        self.handle(ChangesRequested((change,), sender))
        return self.entry is not before

    def recovering(self) -> PartitionEntry:
        assert self.ask(FORMER, ChangeKind.RECOVER, TAIL)
        return self.entry


def test_without_a_word_of_the_former_copy_nothing_is_served() -> None:
    entry = Desk().entry
    assert (entry.state, entry.primary, entry.epoch, entry.target) == (State.UNAVAILABLE, 0, 3, 0)
    assert (entry.in_sync, entry.former, entry.tails) == ((LAST,), (FORMER,), TAILS)


def test_a_former_copy_that_reaches_a_tail_is_completed_from_it_and_serves() -> None:
    desk = Desk()
    entry = desk.recovering()
    assert (entry.state, entry.primary, entry.epoch, entry.target) == (
        State.RECOVERING,
        0,
        4,
        FORMER,
    )
    assert entry.tails == TAILS
    assert desk.table.routes() == (0,), "nobody answers meanwhile"
    assert desk.ask(TAIL, ChangeKind.IN_SYNC, FORMER)
    entry = desk.entry
    assert (entry.state, entry.primary, entry.epoch, entry.target) == (State.OK, FORMER, 5, 0)
    assert (entry.in_sync, entry.former, entry.tails) == ((FORMER,), (LAST,), TAILS)


def test_the_tail_that_the_former_copy_names_comes_first() -> None:
    desk = Desk()
    assert desk.ask(FORMER, ChangeKind.RECOVER, OTHER)
    assert desk.entry.tails == TAILS[::-1]
    assert not desk.ask(TAIL, ChangeKind.IN_SYNC, FORMER), "not the one that completes it"
    assert desk.ask(OTHER, ChangeKind.IN_SYNC, FORMER)
    assert desk.entry.primary == FORMER


def test_requests_for_several_tails_at_once_begin_one_recovery() -> None:
    desk = Desk()
    version = desk.entry.version
    asked = [Change(0, 3, version, ChangeKind.RECOVER, copy) for copy in (TAIL, OTHER)]
    desk.handle(ChangesRequested(tuple(asked), FORMER))
    assert (desk.entry.version, desk.entry.tails[0].copy) == (version + 1, TAIL)


@pytest.mark.parametrize(
    ("sender", "copy", "version"),
    [(SPARE, TAIL, 0), (TAIL, TAIL, 0), (LAST, TAIL, 0), (FORMER, SPARE, 0), (FORMER, TAIL, 9)],
    ids=["a stranger", "a tail", "the last one", "from no tail", "of an older entry"],
)
def test_who_may_not_ask_is_refused(sender: int, copy: int, version: int) -> None:
    assert not Desk().ask(sender, ChangeKind.RECOVER, copy, version=version)


def test_a_tail_that_has_ended_completes_nobody() -> None:
    desk = Desk()
    desk.alive(FORMER, OTHER)
    assert not desk.ask(FORMER, ChangeKind.RECOVER, TAIL)
    assert desk.ask(FORMER, ChangeKind.RECOVER, OTHER)


def test_a_served_partition_recovers_nothing() -> None:
    desk = Desk(in_sync=(FORMER,), primary=FORMER, former=(LAST,))
    assert desk.entry.state is State.OK
    assert not desk.ask(FORMER, ChangeKind.RECOVER, TAIL)


def test_a_hand_over_under_way_is_no_recovery() -> None:
    """The primary has ended, and so has whom it was to hand over to."""
    desk = Desk(in_sync=(LAST, 6), former=(), tails=(), target=6)
    assert (desk.entry.state, desk.entry.target) == (State.LOST, 0)


@pytest.mark.parametrize("gone", [FORMER, TAIL])
def test_when_one_of_the_two_goes_away_it_is_unavailable_again(gone: int) -> None:
    desk = Desk()
    desk.recovering()
    others = [copy for copy in (FORMER, TAIL, OTHER, SPARE) if copy != gone]
    entry = desk.alive(*others)
    lost = gone == FORMER
    assert entry.state is (State.LOST if lost else State.UNAVAILABLE)
    assert (entry.target, entry.epoch, entry.former) == (0, 4, (FORMER,))
    if not lost:
        assert desk.ask(FORMER, ChangeKind.RECOVER, OTHER)
        assert (desk.entry.epoch, desk.entry.tails[0].copy) == (5, OTHER)


def test_with_every_tail_gone_it_is_lost() -> None:
    desk = Desk()
    desk.recovering()
    assert desk.alive(FORMER, SPARE).state is State.LOST


def test_the_word_of_an_earlier_attempt_means_nothing() -> None:
    desk = Desk()
    version = desk.recovering().version
    desk.alive(FORMER, OTHER, SPARE)
    desk.alive(FORMER, TAIL, OTHER, SPARE)
    desk.recovering()
    assert not desk.ask(TAIL, ChangeKind.IN_SYNC, FORMER, version=version)
    assert desk.entry.state is State.RECOVERING


def test_a_complete_copy_that_comes_back_goes_first() -> None:
    desk = Desk()
    desk.recovering()
    entry = desk.alive(LAST, FORMER, TAIL, OTHER, SPARE)
    assert (entry.state, entry.primary, entry.in_sync, entry.epoch) == (State.OK, LAST, (LAST,), 5)
    assert (entry.former, entry.target) == ((FORMER,), 0)


def test_a_tail_whose_log_begins_too_late_ends_the_attempt_and_the_table_says_where() -> None:
    desk = Desk()
    desk.recovering()
    assert not desk.ask(TAIL, ChangeKind.TAIL, TAIL, sequence=40), "nothing new"
    assert not desk.ask(OTHER, ChangeKind.TAIL, OTHER, sequence=70), "it completes nobody"
    assert desk.ask(TAIL, ChangeKind.TAIL, TAIL, sequence=90)
    entry = desk.entry
    assert (entry.state, entry.target, entry.epoch) == (State.UNAVAILABLE, 0, 4)
    assert entry.tails == (Tail(TAIL, 8, 3, 90, LAST), TAILS[1])


def test_another_controller_goes_on_from_the_table() -> None:
    desk = Desk()
    entry = desk.recovering()
    desk.begin(FORMER, TAIL, OTHER, SPARE)
    assert desk.entry is entry
    assert desk.ask(TAIL, ChangeKind.IN_SYNC, FORMER)
    assert desk.entry.primary == FORMER


def test_what_is_completed_in_memory_is_no_restart_of_everything() -> None:
    """A store that is behind, of a node that crashed, is no candidate because of the recovery."""
    desk = Desk()
    desk.recovering()
    store = bytes([SPARE]) * 16
    crashed = (CopyStore(LAST, store, crashed=True),)
    desk.table = msgspec.structs.replace(desk.table, stores=crashed)
    desk.begin(FORMER, TAIL, OTHER)
    back = Registration("node-5", incarnation=SPARE, store=store)
    back = msgspec.structs.replace(back, stored=(StoredPartition(0, 3, 10),))
    desk.handle(RegistrationsChanged((*nodes(OTHER), back), False))
    assert desk.entry.state is State.LOST


def test_a_node_that_leaves_stays_while_it_may_complete_or_be_completed() -> None:
    table = Desk().table
    assert [copy for copy in range(1, 6) if table.names(copy)] == [LAST, FORMER, TAIL, OTHER]


def test_the_last_tail_in_sync_clears_the_former_copies_too() -> None:
    """With three copies needed: what was committed with the tail no former copy need have."""
    entry = PartitionEntry(0, 3, 9, State.OK, LAST, (LAST,), (FORMER, SPARE), (), TAILS)
    desk = Desk()
    desk.table = Table(5, bytes(16), 1, 3, 3, (entry,))
    desk.begin(LAST, FORMER, TAIL, OTHER)
    assert desk.ask(LAST, ChangeKind.IN_SYNC, TAIL)
    assert (desk.entry.former, desk.entry.in_sync) == ((FORMER, SPARE), (LAST, TAIL))
    desk.table = Table(5, bytes(16), 1, 3, 3, (msgspec.structs.replace(entry, tails=TAILS[:1]),))
    desk.begin(LAST, TAIL, OTHER)
    assert desk.ask(LAST, ChangeKind.IN_SYNC, TAIL)
    assert (desk.entry.former, desk.entry.in_sync) == ((), (LAST, TAIL))


@pytest.mark.parametrize(
    "wrong",
    [{"target": LAST}, {"target": SPARE}, {"tails": ()}, {"former": ()}],
)
def test_a_recovery_of_what_can_not_be_completed_cites_its_invariant(
    wrong: dict[str, object],
) -> None:
    entry = Desk().recovering()
    with pytest.raises(InvariantViolation, match="T12 does not hold"):
        msgspec.structs.replace(entry, **wrong).check(2)


def test_a_recovery_in_the_epoch_before_cites_its_invariant() -> None:
    desk = Desk()
    before = desk.entry
    after = msgspec.structs.replace(desk.recovering(), epoch=before.epoch)
    with pytest.raises(InvariantViolation, match="T12 does not hold"):
        check_step(before, after)
