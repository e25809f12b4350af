"""The counterexamples of PROTOCOL.md section 12, played out in the simulator.

Those whose rule lives in one place are scripted there. In the core
(tests/unit/test_counterexamples.py): a zombie's join on a newer complete copy, a change request in
flight, a joiner with a hole, a promoted primary's tail on one copy, an old tail that is pumped
twice, two records with one sequence, a put-if-absent answered from a cut record, the retry of a
bounced request, a commit whose connection drops. Logs that differ and a late snapshot chunk after a
delete are in rust/core/tests/replica_cluster.rs, the retry of an expired stream in
rust/core/src/replica/streams.rs. Of the databases (tests/sink/test_sqlite.py): an owner two epochs
back that lands last, one partition handed over, a commit whose answer is lost, a new cluster on an
old database and the next version of a poison record.

A lease that outlives the partition has no script of its own: the random runs meet it, and its rules
are planted bugs (planted.py). Nothing is read through to a database, so that no read can undo a
delete.
"""

from __future__ import annotations

from collections.abc import Callable

from spacegrid.machine.events import ChangeKind
from spacegrid.machine.table import State

from .history import OK, PENDING, UNKNOWN, Call
from .leans import ONLY_LEANING
from .node import NodeProcess
from .options import Options, draw
from .run import World
from .schedule import MS

CALM = {
    "lean": "",
    **dict.fromkeys(ONLY_LEANING, 0.0),
    "crashes": 0.0,
    "pauses": 0.0,
    "cuts": 0.0,
    "resets": 0.0,
    "joins": 0.0,
    "leaves": 0.0,
    "coordinator_crashes": 0.0,
    "clock_jumps": 0.0,
    "both_copies": False,
    "spike_rate": 0.0,
    "drift_ppm": 0,
    "pace_rate": 0.0,
    "operations": 0,
    "partitions": 1,
    "copies": 2,
    "min_in_sync": 2,
    "clients": 2,
    "delay_us": 200.0,
    "jitter_us": 40.0,
    "timeout_ms": 1_500,
    "give_up_rate": 0.0,
    "notice_ms": 1.0,
    "local_disk": False,
    "value_bytes": 10,
    "stale_reads": 0.0,
    "confirmed_reads": 0.0,
}
KEY = b"key1"


def calm(nodes: int, **more: object) -> Options:
    return draw(1, **{**CALM, "nodes": nodes, **more})


class Stage(World):
    """A calm cluster that is up, with one key written."""

    def __init__(self, nodes: int = 3, **more: object) -> None:
        super().__init__(1, calm(nodes, **more))
        self.until(lambda: not self.audit.settled() and self._clients_ready())
        assert self.done(self.ask("put", b"first")).outcome == OK

    def _clients_ready(self) -> bool:
        return all(client.machine is not None for client in self.clients)

    def pass_ms(self, milliseconds: int) -> None:
        self.schedule.run_until(self.schedule.now_us + milliseconds * MS)

    def until(self, condition: Callable[[], bool], within_ms: int = 10_000) -> None:
        assert self.schedule.run_until(self.schedule.now_us + within_ms * MS, condition), (
            self.audit.settled()
        )

    def ask(self, kind: str, argument: object = None, client: int = 0, **more: int) -> Call:
        call = Call(client, kind, KEY, argument, **more)
        self.clients[client].open += 1
        self.clients[client].ask(call)
        return call

    def done(self, call: Call, within_ms: int = 10_000) -> Call:
        self.until(lambda: call.outcome != PENDING, within_ms)
        return call

    @property
    def entry(self):  # type: ignore[no-untyped-def]
        return self.coordination.state.table.entries[0]

    @property
    def primary(self) -> NodeProcess:
        return self.processes[self.entry.primary]

    @property
    def backup(self) -> NodeProcess:
        copies = [copy for copy in self.entry.in_sync if copy != self.entry.primary]
        return self.processes[copies[0]]

    def cut_off(self, *processes: NodeProcess) -> None:
        """Nothing gets from these to anybody else, clients excepted, nor back."""
        inside = {process.place for process in processes}
        places = [0, *(machine.place for machine in self.machines)]
        for place in places:
            if place not in inside:
                for one in inside:
                    self.network.cut(one, place)
                    self.network.cut(place, one)

    def judged(self) -> None:
        """Heal, settle, and look at everything that was answered."""
        self.heal()
        self.until(lambda: not self.audit.settled(), 20_000)
        self.audit.replicas_equal()
        assert self.done(self.ask("get")).outcome == OK
        assert not self.judge()


def test_a_crash_loses_nothing_and_is_over_within_a_second() -> None:
    stage = Stage()
    stage.primary.machine.crash()
    assert stage.done(stage.ask("get"), 1_000).value == b"first"
    stage.judged()


def test_f14_a_cut_off_pair_of_primary_and_backup_acknowledges_nothing_for_long() -> None:
    stage = Stage(nodes=5)
    primary, backup = stage.primary, stage.backup
    stage.cut_off(primary, backup)
    stage.pass_ms(800)  # 300 ms of the term and 475 ms of a lease
    written = stage.ask("put", b"second")
    read = stage.ask("get", client=1)
    stage.pass_ms(2_000)
    assert written.outcome != OK or stage.entry.primary not in (
        primary.incarnation,
        backup.incarnation,
    )
    assert read.outcome != OK or stage.entry.epoch > 1
    stage.judged()


def test_f28_a_paused_primary_that_was_replaced_answers_nothing_of_before() -> None:
    stage = Stage()
    zombie = stage.primary
    zombie.pause(stale=True)
    late = stage.ask("get", client=1)
    stage.until(lambda: stage.entry.primary not in (0, zombie.incarnation), 3_000)
    assert stage.done(stage.ask("put", b"second")).outcome == OK
    zombie.resume()
    stage.pass_ms(100)
    assert late.outcome != OK or late.value == b"second"
    stage.judged()


def test_one_crash_after_a_shrink_finds_the_removed_copy() -> None:
    stage = Stage(nodes=2)
    primary, backup = stage.primary, stage.backup
    backup.pause(stale=False)
    stage.until(lambda: stage.entry.in_sync == (primary.incarnation,), 3_000)
    backup.resume()
    primary.machine.crash()
    stage.until(lambda: stage.entry.primary == backup.incarnation, 3_000)
    stage.judged()
    assert not stage.audit.lost


def test_on_one_copy_after_a_shrink_nothing_is_committed() -> None:
    stage = Stage(nodes=2)
    stage.backup.pause(stale=False)
    stage.until(lambda: len(stage.entry.in_sync) == 1, 3_000)
    written = stage.ask("put", b"second")
    stage.pass_ms(1_000)
    assert written.outcome == PENDING or written.outcome == UNKNOWN
    stage.judged()


def without_in_sync(process: NodeProcess) -> None:
    """What this primary asks for to let a tail be in sync does not arrive."""
    control = process._control
    ask = control.ask_changes
    control.ask_changes = lambda changes: ask(  # type: ignore[method-assign]
        [change for change in changes if change[3] != ChangeKind.IN_SYNC]
    )


def test_a_removed_copy_is_completed_from_a_tail_when_the_last_complete_one_ends() -> None:
    stage = Stage(nodes=3)
    last, former = stage.primary, stage.backup
    without_in_sync(last)
    former.pause(stale=False)
    stage.until(lambda: stage.entry.former == (former.incarnation,) and stage.entry.tails, 5_000)
    tail = stage.entry.tails[0].copy
    assert stage.done(stage.ask("put", b"second")).outcome == OK
    former.resume()
    stage.pass_ms(100)
    assert (stage.entry.in_sync, stage.entry.primary) == ((last.incarnation,), last.incarnation)
    last.machine.crash()
    stage.until(lambda: stage.entry.primary == former.incarnation, 1_000)
    assert tail in stage.entry.members()
    assert stage.done(stage.ask("get"), 1_000).value == b"second"
    assert stage.done(stage.ask("put", b"third"), 1_000).outcome == OK
    stage.judged()
    assert not stage.audit.lost


def test_a_removed_copy_that_does_not_reach_the_tail_is_never_served() -> None:
    stage = Stage(nodes=4, copies=3)
    last = stage.primary
    without_in_sync(last)
    former, third = (stage.processes[copy] for copy in stage.entry.in_sync[1:])
    third.machine.crash()
    former.pause(stale=False)
    stage.until(lambda: stage.entry.former == (former.incarnation,) and stage.entry.tails, 5_000)
    first = stage.processes[stage.entry.tails[0].copy]
    assert stage.done(stage.ask("put", b"without the former copy")).outcome == OK
    stage.add_machine().start()
    stage.until(lambda: len(stage.entry.tails) == 2, 5_000)
    first.machine.crash()
    stage.until(lambda: len(stage.entry.tails) == 1, 5_000)
    assert stage.entry.former == (former.incarnation,)
    former.resume()
    stage.pass_ms(100)
    last.machine.crash()
    stage.pass_ms(3_000)
    assert (stage.entry.state, stage.entry.primary) == (State.UNAVAILABLE, 0)
    assert stage.audit.waits_for_operator(0)


def test_a_removed_copy_is_forgotten_with_the_last_tail_that_made_up_for_it() -> None:
    stage = Stage(nodes=3)
    primary, removed = stage.primary, stage.backup
    without_in_sync(primary)
    removed.pause(stale=False)
    stage.until(lambda: len(stage.entry.tails) == 1, 3_000)
    assert stage.entry.former == (removed.incarnation,)
    assert stage.done(stage.ask("put", b"second")).outcome == OK
    stage.processes[stage.entry.tails[0].copy].machine.crash()
    stage.until(lambda: not stage.entry.tails, 3_000)
    assert stage.entry.in_sync == (primary.incarnation,)
    primary.pause(stale=False)
    removed.resume()
    stage.until(lambda: stage.entry.primary != primary.incarnation, 3_000)
    stage.pass_ms(1_000)
    assert stage.entry.state is State.UNAVAILABLE
    del primary._control.ask_changes
    stage.judged()
    assert stage.history.calls[-1].value == b"second"


def test_registrations_that_blink_lose_nothing() -> None:
    stage = Stage(nodes=4)
    for process in (stage.primary, stage.backup):
        process.pause(stale=True)
    stage.pass_ms(3_000)
    assert stage.entry.state is not State.LOST
    for machine in stage.machines:
        assert machine.process is not None
        machine.process.resume()
    stage.judged()
    assert not stage.audit.lost


def test_a_lost_write_of_the_table_does_not_blind_the_controller() -> None:
    stage = Stage()
    controller = next(p for p in stage.running() if p.control is not None and p.control.active)
    stage.network.cut(controller.place, 0)
    victim = next(m for m in stage.machines if m.process is not controller)
    victim.crash()
    stage.pass_ms(250)
    stage.network.heal(controller.place, 0)
    stage.until(lambda: stage.entry.state is State.OK and stage.entry.primary != 0, 5_000)
    victim.start()
    stage.judged()


def test_a_refused_condition_is_not_applied_by_a_late_attempt() -> None:
    stage = Stage(nodes=2, late_rate=1.0)
    primary, client = stage.primary, stage.clients[0]
    assert client.machine is not None
    late: list[bytes] = []
    connection = client.connections[primary.incarnation]
    connection._up.send = late.append  # type: ignore[method-assign]
    refused = stage.ask("absent", b"second")
    connection.reset()
    stage.done(refused)
    assert refused.status == 2
    deleted = stage.done(stage.ask("delete", client=1))
    assert deleted.status == 0
    for frame in late:
        primary.do(primary.client_frame, 999, frame)
    stage.pass_ms(100)
    assert stage.done(stage.ask("get", client=1)).value is None
    stage.judged()
