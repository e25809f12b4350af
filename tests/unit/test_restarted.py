"""Whether everything was restarted, told by a controller that begins before all ends are noticed.

Nodes that are killed together are started again at once by whoever watches over them. The first one
back may become controller while the coordinator still has others registered that have ended too.
"""

from __future__ import annotations

import msgspec
import pytest
from spacegrid.machine.controller import Controller
from spacegrid.machine.events import (
    BecameController,
    ChangesRequested,
    ControllerEvent,
    Heartbeat,
    RegistrationsChanged,
    TableObserved,
    WriteDone,
    WriteTable,
)
from spacegrid.machine.table import (
    CopyStore,
    PartitionEntry,
    Registration,
    State,
    StoredPartition,
    Table,
)

LIFE = bytes(16)
STORES = {1: b"a" * 16, 2: b"b" * 16, 3: b"c" * 16}


def node(incarnation: int, before: int = 0, sequence: int = 0) -> Registration:
    """A node; with the store that another incarnation had before it, it has found a copy there."""
    stored = (StoredPartition(0, 3, sequence),) if before else ()
    store = STORES[before or incarnation]
    return Registration(
        name=f"node-{store[:1]!r}", incarnation=incarnation, store=store, stored=stored
    )


#: Partition 0 is on 1 and 2, partition 1 on 3; 1 has ended.
TABLE = Table(
    5,
    LIFE,
    2,
    2,
    1,
    (
        PartitionEntry(0, 3, 9, State.OK, 2, (1, 2)),
        PartitionEntry(1, 3, 9, State.OK, 3, (3,)),
    ),
    stores=tuple(CopyStore(copy, store, copy == 1) for copy, store in STORES.items()),
)


class Desk:
    """A controller that begins, and a coordinator that accepts what it writes; 1 is back as 4."""

    def __init__(self, table: Table = TABLE, *alive: Registration) -> None:
        self.now_ms = 0
        self.table = table
        self.controller = Controller()
        alive = alive or (node(2), node(3), node(4, 1, 50))
        self.handle(BecameController(self.table, alive, term=1))

    def crashed(self, *copies: int, of: Table) -> Table:
        stores = tuple(
            msgspec.structs.replace(store, crashed=store.crashed or store.copy in copies)
            for store in of.stores
        )
        return msgspec.structs.replace(of, stores=stores)

    def handle(self, event: ControllerEvent) -> None:
        effects = self.controller.handle(event, self.now_ms)
        self.controller.check()
        for effect in effects:
            if isinstance(effect, WriteTable):
                self.table = self.table.apply(effect.expected_revision + 1, effect.entries)
                self.handle(WriteDone(self.table.revision))

    def stores(self, *stores: CopyStore) -> None:
        """What the coordinator remembers of the copies that the table names by now."""
        self.table = msgspec.structs.replace(self.table, stores=(*self.table.stores, *stores))

    def ended(self, *copies: int, alive: tuple[Registration, ...]) -> None:
        self.table = self.crashed(*copies, of=self.table)
        self.handle(TableObserved(self.table))
        self.handle(RegistrationsChanged(alive))

    @property
    def entry(self) -> PartitionEntry:
        return self.table.entries[0]


def test_nodes_that_end_unheard_were_restarted_with_all_others() -> None:
    desk = Desk()
    desk.ended(2, alive=(node(3), node(4, 1, 50), node(5, 2, 51)))
    desk.handle(Heartbeat(5, 1, (1, 1, 1)))
    assert desk.entry.state is State.UNAVAILABLE, "3 may be there, and then the cluster went on"
    desk.ended(3, alive=(node(4, 1, 50), node(5, 2, 51)))
    assert desk.entry.state is State.RECOVERING
    desk.handle(Heartbeat(4, 1, (1, 1, 1)))
    assert (desk.entry.state, desk.entry.in_sync, desk.entry.epoch) == (State.OK, (5,), 4)


def test_a_copy_whose_end_is_noticed_first_is_asked_for_its_disk_all_the_same() -> None:
    # 2 was taken in again shortly before, and has not on disk what was persisted without it.
    desk = Desk(TABLE, node(2), node(3), node(4, 1, 60))
    assert desk.entry.in_sync == (1, 2), "2 may have ended with it"
    assert desk.entry.joining == (), "whoever joins forgets what its disk has"
    desk.ended(2, 3, alive=(node(4, 1, 60), node(5, 2, 51)))
    desk.handle(Heartbeat(5, 1, (1, 1, 1)))
    desk.handle(Heartbeat(4, 1, (1, 1, 1)))
    assert (desk.entry.state, desk.entry.in_sync) == (State.OK, (4,))


def test_a_primary_that_is_heard_goes_on_without_the_copy_that_ended() -> None:
    desk = Desk()
    desk.handle(Heartbeat(2, 1, (1, 1, 1)))
    assert (desk.entry.primary, desk.entry.in_sync) == (2, (2,))


def test_the_disk_that_is_not_back_yet_is_waited_for() -> None:
    desk = Desk()
    desk.ended(2, 3, alive=(node(4, 1, 50),))
    assert desk.entry.state is State.RECOVERING
    desk.handle(RegistrationsChanged((node(4, 1, 50), node(5, 2, 51))))
    assert desk.entry.state is State.RECOVERING, "it may not have loaded it, or be gone again"
    desk.handle(Heartbeat(5, 1, (1, 1, 1)))
    assert desk.entry.state is State.RECOVERING, "the other one as well"
    desk.handle(Heartbeat(4, 1, (1, 1, 1)))
    assert (desk.entry.state, desk.entry.in_sync) == (State.OK, (5,))


def test_what_crashes_after_the_restart_is_not_taken_from_disk() -> None:
    desk = Desk()
    desk.ended(2, 3, alive=(node(4, 1, 50), node(5, 2, 51)))
    desk.handle(Heartbeat(4, 1, (1, 1, 1)))
    desk.handle(Heartbeat(5, 1, (1, 1, 1)))
    assert desk.entry.in_sync == (5,)
    desk.stores(CopyStore(5, STORES[2]), CopyStore(4, STORES[1]))
    desk.ended(5, alive=(node(4, 1, 50), node(6, 2, 60)))
    desk.handle(Heartbeat(6, 1, (1, 1, 1)))
    assert desk.entry.state is State.LOST, "the same controller, and a cluster that went on"


@pytest.mark.parametrize(
    "word", [Heartbeat(3, 1, (1, 1, 1)), ChangesRequested((), 3)], ids=["heartbeat", "changes"]
)
def test_a_cluster_of_which_one_node_was_heard_went_on(word: ControllerEvent) -> None:
    desk = Desk()
    desk.ended(2, alive=(node(3), node(4, 1, 50), node(5, 2, 51)))
    desk.handle(word)
    assert desk.entry.state is State.LOST, "its copies crashed, and their disks are behind"
    desk.ended(3, alive=(node(4, 1, 50), node(5, 2, 51)))
    assert desk.entry.state is State.LOST


def test_a_removed_copy_that_was_not_heard_yet_is_not_gone_on_with() -> None:
    stores = (CopyStore(1, STORES[1]), CopyStore(2, STORES[2], crashed=True))
    shrunk = PartitionEntry(0, 3, 9, State.OK, 2, (2,), former=(1,))
    table = Table(5, LIFE, 1, 2, 2, (shrunk,), stores=stores)
    desk = Desk(table, node(1), node(5, 2, 51))
    assert desk.entry.in_sync == (2,), "1 may have ended too, and its disk may be behind"
    desk.handle(Heartbeat(1, 1, (1, 1, 1)))
    assert (desk.entry.primary, desk.entry.in_sync) == (1, (1,))
    desk = Desk(table, node(1), node(5, 2, 51))
    desk.ended(1, alive=(node(5, 2, 51),))
    desk.handle(Heartbeat(5, 1, (1, 1, 1)))
    assert (desk.entry.primary, desk.entry.in_sync) == (5, (5,))
