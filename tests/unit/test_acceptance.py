"""An operator's ways out of lost: what is chosen, what is refused, and that it is said why."""

from __future__ import annotations

import msgspec
import pytest
from spacegrid.machine.acceptance import Choice, How, copies_on_disk
from spacegrid.machine.controller import Controller, ControllerConfig
from spacegrid.machine.draft import Nodes
from spacegrid.machine.events import BecameController, LossAccepted, Ticked, WriteDone
from spacegrid.machine.table import (
    CopyStore,
    PartitionEntry,
    Registration,
    State,
    StoredPartition,
    Table,
    check_step,
    new_table,
)

STORES = tuple(CopyStore(copy, bytes([copy]) * 16, crashed=True) for copy in (1, 2))


def lost(state: State = State.UNAVAILABLE, **fields: object) -> Table:
    """One partition whose copies 1 and 2 have ended."""
    table = new_table(bytes(16), partition_count=1, copies=2, min_in_sync=1)
    entry = PartitionEntry(0, epoch=3, version=9, state=state, in_sync=(1, 2), **fields)
    return msgspec.structs.replace(table, entries=(entry,), stores=STORES)


def node(incarnation: int, store: int, *position: int) -> Registration:
    """A node with the store of copy `store`; with a position, it found the partition there."""
    stored = (StoredPartition(0, *position),) if position else ()
    return Registration(f"n{incarnation}", incarnation=incarnation, store=bytes([store]) * 16,
                        stored=stored)  # fmt: skip


def controller(table: Table, *nodes: Registration) -> Controller:
    machine = Controller(ControllerConfig(leases=False))
    effects = machine.handle(BecameController(table, nodes, term=1), 0)
    for write in effects:
        assert machine.handle(WriteDone(write.expected_revision + 1), 0) == []
    return machine


def decide(machine: Controller, how: How, version: int | None = None) -> PartitionEntry | None:
    before = machine.table
    assert before is not None
    seen = before.entries[0].version if version is None else version
    effects = machine.handle(LossAccepted((Choice(0, seen, how),)), 0)
    if not effects:
        return None
    machine.check()
    check_step(before.entries[0], effects[0].entries[0])
    return effects[0].entries[0]


def test_the_longest_copy_that_is_there_is_served_without_the_missing_one() -> None:
    machine = controller(lost(), node(5, 1, 3, 40), node(6, 9))
    assert machine.table is not None
    assert machine.table.entries[0].state is State.RECOVERING
    entry = decide(machine, How.LONGEST)
    assert entry is not None
    assert (entry.state, entry.primary, entry.in_sync, entry.epoch) == (State.OK, 5, (5,), 4)


def test_the_new_epoch_is_above_every_position() -> None:
    machine = controller(lost(), node(5, 1, 7, 40))
    entry = decide(machine, How.LONGEST)
    assert entry is not None
    assert entry.epoch == 8


@pytest.mark.parametrize("version", [8, 10, 11])
def test_a_decision_about_another_version_than_was_seen_changes_nothing(version: int) -> None:
    machine = controller(lost(State.RECOVERING), node(5, 1, 3, 40))
    assert decide(machine, How.LONGEST, version) is None
    assert machine.refused_count == 1
    assert "changed meanwhile" in machine.why_not(Choice(0, version, How.LONGEST))


def test_empty_takes_a_node_that_has_nothing_of_it() -> None:
    machine = controller(lost(), node(5, 1, 3, 40), node(6, 9))
    entry = decide(machine, How.EMPTY)
    assert entry is not None
    assert (entry.state, entry.primary, entry.in_sync, entry.epoch) == (State.OK, 6, (6,), 4)


def test_what_can_not_be_is_refused_with_the_reason() -> None:
    only_full = controller(lost(), node(5, 1, 3, 40))
    assert "still has a copy" in only_full.why_not(Choice(0, 10, How.EMPTY))
    nothing = controller(lost(State.LOST), node(6, 9))
    assert "begin empty" in nothing.why_not(Choice(0, 9, How.LONGEST))
    assert "no partition 4" in nothing.why_not(Choice(4, 9, How.EMPTY))
    assert nothing.why_not(Choice(0, 9, How.EMPTY)) == ""
    assert decide(nothing, How.EMPTY) is not None
    served = controller(
        msgspec.structs.replace(
            lost(), entries=(PartitionEntry(0, 3, 9, State.OK, primary=5, in_sync=(5,)),)
        ),
        node(5, 1),
    )
    assert "it is served" in served.why_not(Choice(0, 9, How.LONGEST))
    assert "not the controller" in Controller().why_not(Choice(0, 9, How.LONGEST))


def test_the_list_says_who_is_missing_and_what_is_there() -> None:
    table = lost()
    nodes = Nodes((node(5, 1, 3, 40),), frozenset())
    stores = {store.copy: store for store in STORES}
    there, missing = copies_on_disk(table.entries[0], stores, nodes)
    assert (there.copy, there.missing, there.position) == (1, False, StoredPartition(0, 3, 40))
    assert (missing.copy, missing.missing, missing.position) == (2, True, None)
    (gone, _) = copies_on_disk(table.entries[0], {2: stores[2]}, nodes)
    assert (gone.missing, gone.position) == (False, None)


def test_what_was_reloaded_is_served_by_the_node_that_has_it_above_the_sinks_epoch() -> None:
    machine = controller(lost(State.LOST), node(5, 7), node(6, 9))
    choice = Choice(0, 9, How.RELOADED, copy=6, epoch=8)
    assert machine.why_not(choice) == ""
    (write,) = machine.handle(LossAccepted((choice,)), 0)
    (entry,) = write.entries
    assert (entry.state, entry.primary, entry.in_sync, entry.epoch) == (State.OK, 6, (6,), 9)


@pytest.mark.parametrize("copy", [5, 7], ids=["it has a disk copy", "it has ended"])
def test_what_was_reloaded_is_refused_of_a_node_that_can_not_be_it(copy: int) -> None:
    machine = controller(lost(), node(5, 1, 3, 40), node(6, 9))
    assert machine.table is not None
    seen = machine.table.entries[0].version
    assert "copy already" in machine.why_not(Choice(0, seen, How.RELOADED, copy=copy))
    assert "changed meanwhile" in machine.why_not(Choice(0, seen - 1, How.RELOADED, copy=6))


@pytest.mark.parametrize("how", [How.EMPTY, How.RELOADED])
def test_a_decision_waits_out_every_lease_of_a_named_copy(
    how: How, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = controller(lost(State.LOST), node(6, 9))
    monkeypatch.setattr(machine, "_answering", lambda copy, now_ms: copy == 2 and now_ms < 500)
    assert machine.handle(LossAccepted((Choice(0, 9, how, copy=6),)), 0) == []
    assert machine.handle(Ticked(), 499) == []
    (write,) = machine.handle(Ticked(), 500)
    assert write.entries[0].primary == 6
    assert machine.refused_count == 0
