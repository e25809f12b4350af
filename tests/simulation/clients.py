"""Clients: the real client machine, and a workload whose outcome can be judged.

Every value that is put is unique, so what a read shows says which write it saw. Registers take puts
of all kinds and deletes; counters only grow; turn keys are counted by a unit; leases have a time to
live. Some reads are confirmed, some are stale, which any complete copy answers. A client sends an
unknown outcome again until it is known, unless it gives up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from spacegrid import _core

from .history import FAILED, OK, PENDING, UNKNOWN, WRITES, Call
from .network import Stream
from .schedule import MS, SECOND
from .turns import HANDLER, HANDLER_ERROR
from .turns import MAP as TURN_MAP

if TYPE_CHECKING:
    from .node import NodeProcess
    from .run import World

MAP = "m"
TIMEOUT = 255
STATUS_OK, MISS, CONFLICT, LOST, MEMORY_FULL, STATUS_UNKNOWN = 0, 1, 2, 5, 8, 9
CONNECT_RETRY_US = 20 * MS
ROUTES_PAUSE_US = 15 * MS
AGE_BYTES = 8
HASTY_MS = 300


class Connection:
    """One connection of a client to a node's process."""

    def __init__(self, client: SimClient, process: NodeProcess) -> None:
        network = client.world.network
        self.client = client
        self.process = process
        self.open = True
        self.number = process.accept(self)
        self._up = network.stream(client.place, process.place, self._arrive)
        self._down = network.stream(process.place, client.place, self._back)
        client.world.connections.append(self)

    def send(self, frame: bytes) -> None:
        """Client to node."""
        self._up.send(frame)

    def reply(self, frame: bytes) -> None:
        """Node to client."""
        self._down.send(frame)

    def _arrive(self, frame: bytes) -> None:
        self.process.do(self.process.client_frame, self.number, frame)

    def _back(self, frame: bytes) -> None:
        if self.open:
            self.client.frame(self, frame)

    def reset(self) -> None:
        """The connection breaks; both ends notice, each in its time."""
        if not self.open:
            return
        self.open = False
        self._up.reset()
        self._down.reset()
        process, number = self.process, self.number
        schedule = self.client.world.schedule
        schedule.after(1 * MS, process.do, process.client_gone, number)
        schedule.after(self.client.world.network.delay_us(0, 0), self.client.disconnected, self)
        if self in self.client.world.connections:
            self.client.world.connections.remove(self)

    def peer_gone(self) -> None:
        """The node's process ended."""
        self.reset()


class SimClient:
    """One client with a few operations in flight."""

    def __init__(self, world: World, index: int) -> None:
        options = world.options
        self.world = world
        self.index = index
        self.place = 1_000 + index
        self.machine: _core.Client | None = None
        self.connections: dict[int, Connection] = {}
        self.stopped = False
        self.open = 0
        self._connecting: set[int] = set()
        self._random = world.schedule.random(f"client {index}")
        self._reads = world.schedule.random(f"reads {index}")
        self._asked_routes_us = -SECOND
        self._asked = index
        self._poll_at: int | None = None
        self._serial = 0
        self._versions: dict[bytes, int] = {}
        self._lanes = options.in_flight
        #: Where clocks stand still every other client soon looks for another node; the rest wait.
        hasty = options.freezes and index % 2
        self._timeout_ms = HASTY_MS if hasty else options.timeout_ms
        world.schedule.after(self._random.randrange(20 * MS), self._open)

    @property
    def now_ms(self) -> int:
        """The client's monotonic clock."""
        return self.world.schedule.now_us // MS

    # ---- routes and connections

    def _open(self) -> None:
        """Get a request stream from some node that is there."""
        processes = [p for p in self.world.running() if p.core is not None and not p.paused]
        if not processes:
            self.world.schedule.after(CONNECT_RETRY_US, self._open)
            return
        process = self._random.choice(processes)
        stream = process.open_stream()
        self.machine = machine = _core.Client(stream, self.world.options.partitions)
        self._map = machine.map(MAP)
        self._turn_map = machine.map(TURN_MAP)
        self._handler = machine.map(HANDLER)
        self._persisted = {MAP: machine.map(MAP, persisted=True)}
        self._persisted[HANDLER] = machine.map(HANDLER, persisted=True)
        self._ask_routes()
        for _ in range(self._lanes):
            self._next()
        self._poll()

    def _ask_routes(self) -> None:
        world = self.world
        now = world.schedule.now_us
        if now - self._asked_routes_us < ROUTES_PAUSE_US:
            return
        self._asked_routes_us = now
        processes = [process for process in world.running() if process.core is not None]
        if not processes:
            return
        self._asked += 1
        process = processes[self._asked % len(processes)]

        def ask(back: Any) -> None:
            process.do(lambda: back(process.routes()))

        world.network.call(
            self.place, process.place, ask, self._take_routes, lambda: None, 1 * SECOND
        )

    def _take_routes(self, routes: tuple[int, list[int], list[list[int]]] | None) -> None:
        if routes is not None and self.machine is not None:
            revision, slots, backups = routes
            self.machine.set_backups(backups)
            self.machine.set_routes(revision, [slot or -1 for slot in slots])
            self._poll()

    def _connect(self, slot: int) -> None:
        if slot in self._connecting:
            return
        self._connecting.add(slot)
        process = self.world.processes.get(slot)
        network = self.world.network
        delay = network.delay_us(self.place, 0) * 2
        self.world.schedule.after(delay, self._connected, slot, process)

    def _connected(self, slot: int, process: NodeProcess | None) -> None:
        self._connecting.discard(slot)
        if process is not None and not process.dead:
            self.connections[slot] = Connection(self, process)

    def disconnected(self, connection: Connection) -> None:
        """A connection broke: what was in flight there is asked again."""
        slot = connection.process.incarnation
        if self.connections.get(slot) is connection:
            del self.connections[slot]
            assert self.machine is not None
            self.machine.on_disconnect(slot, self.now_ms)
            self._poll()

    # ---- the machine

    def _poll(self) -> None:
        """Send what is due."""
        machine = self.machine
        assert machine is not None
        now = self.now_ms
        for call, status, value, version, _, copies, number in machine.expire(now):
            self._done(call, status, value, version, copies, number)
        for slot, frame in machine.take_frames(now):
            connection = self.connections.get(slot)
            if connection is None:
                machine.on_disconnect(slot, now, False)
                self._connect(slot)
            else:
                connection.send(frame)
        if machine.wants_routes():
            self._ask_routes()
        due = machine.next_event_ms()
        if due is None:
            return
        at = max(due, now + 1) * MS
        if self._poll_at is None or at < self._poll_at:
            self._poll_at = at
            self.world.schedule.at(at, self._timer, at)

    def _timer(self, at: int) -> None:
        if self._poll_at == at:
            self._poll_at = None
            self._poll()

    def frame(self, connection: Connection, frame: bytes) -> None:
        """A reply frame arrives."""
        slot = connection.process.incarnation
        if self.connections.get(slot) is not connection:
            return
        assert self.machine is not None
        self.world.schedule.trace(f"client {self.index} < {slot}", frame)
        for call, status, value, version, _, copies, number in self.machine.on_frame(
            slot, frame, self.now_ms
        ):
            self._done(call, status, value, version, copies, number)
        self._poll()

    # ---- the workload

    def _next(self) -> None:
        """Ask the next thing, after thinking about it."""
        if self.world.operations_left <= 0 or self.stopped:
            return
        self.world.operations_left -= 1
        self.open += 1
        options = self.world.options
        # As many operations as there are, spread over the seconds that there are; in bursts.
        pace = options.seconds * SECOND * options.clients * options.in_flight / options.operations
        delay = self._random.choice([0.1, 0.1, 2.8]) * self._random.expovariate(1 / pace)
        self.world.schedule.after(delay, self._ask)

    def _ask(self) -> None:
        call = self._choose()
        if call.kind == "get" and not call.key.startswith(b"lease"):
            self._choose_read(call)
        rate = self.world.options.persisted_rate
        call.persisted = bool(rate) and call.kind in WRITES and self._random.random() < rate
        self.ask(call)

    def _choose_read(self, call: Call) -> None:
        """How to get: as always, confirmed, or of any complete copy.

        Not of keys with a time to live: a backup ends those by its own wall clock.
        """
        options, random = self.world.options, self._reads
        plain = max(0.0, 1 - options.stale_reads - options.confirmed_reads)
        weights = [plain, options.confirmed_reads, options.stale_reads]
        call.kind = random.choices(["get", "confirmed", "stale"], weights)[0]
        if call.kind == "stale":
            call.age_ms = random.choice([50, 200, 1_000, 10_000])

    def _choose(self) -> Call:
        random, world = self._random, self.world
        options = world.options
        groups = (options.registers, options.counters, options.turn_keys, options.leases)
        group = random.choices(range(4), groups)[0]
        number = random.randrange(groups[group])
        if group == 1:
            kind = random.choices(["incr", "get"], [3, 1])[0]
            return Call(self.index, kind, b"count%d" % number, random.randint(1, 9))
        if group == 2:
            kind = random.choices(["turn", "turn_get"], [3, 1])[0]
            return Call(self.index, kind, b"turn%d" % number, 1)
        key = (b"lease%d" if group == 3 else b"key%d") % number
        self._serial += 1
        value = self._value()
        if group == 3:
            kind = random.choices(["put", "absent", "get"], [2, 2, 3])[0]
            ttl_ms = random.choice([20, 200, 2_000]) if kind != "get" else 0
            return Call(self.index, kind, key, value, ttl_ms=ttl_ms)
        kinds = ["get", "put", "absent", "cas", "delete"]
        kind = random.choices(kinds, [5, 4, 2, 2, 2])[0]
        if kind == "cas" and key not in self._versions:
            kind = "get"
        if options.freezes and kind != "get":
            kind = "put"  # A refusal, and that nothing was there, are reads and not confirmed.
        return Call(self.index, kind, key, value, self._versions.get(key, 0))

    def _value(self) -> bytes:
        text = b"%d:%d" % (self.index, self._serial)
        filler = self._random.randrange(self.world.options.value_bytes)
        return text + b"." * filler if filler > 10 else text

    def ask(self, call: Call) -> None:
        """Ask one thing; its outcome goes into the history."""
        machine = self.machine
        assert machine is not None
        timeout = self._timeout_ms
        call.begin_us = self.world.schedule.now_us
        call.outcome = PENDING
        self.world.history.calls.append(call)
        into = self._persisted[MAP] if call.persisted else self._map
        match call.kind:
            case "get":
                machine.get(self._map, call.key, call, timeout)
            case "confirmed":
                machine.get(self._map, call.key, call, timeout, True)
            case "stale":
                machine.get_stale(self._map, call.key, call, timeout, call.age_ms)
            case "turn_get":
                machine.get(self._turn_map, call.key, call, timeout)
            case "put":
                machine.put(into, call.key, call.argument, 0, call, timeout, call.ttl_ms)
            case "absent":
                machine.put(into, call.key, call.argument, 0, call, timeout, call.ttl_ms, True)
            case "cas":
                machine.put(into, call.key, call.argument, 0, call, timeout, version=call.expected)
            case "delete":
                machine.delete(into, call.key, call, timeout)
            case "incr":
                machine.incr(into, call.key, call.argument, call, timeout)
            case "turn":
                handler = self._persisted[HANDLER] if call.persisted else self._handler
                machine.invoke(handler, call.key, b"\x80", call, timeout)
        self._poll()

    def _done(
        self, call: Call, status: int, value: Any, version: int, copies: int, number: int
    ) -> None:
        call.status = status
        assert self.machine is not None
        if status in (STATUS_UNKNOWN, TIMEOUT):
            # The node may hang: perhaps another one answers for the partition by now.
            self._ask_routes()
        if status == STATUS_UNKNOWN:
            for_nothing = not self.world.faults.on and self.world.audit.waits_for_operator(
                self.world.partition(call)
            )
            give_up = self.stopped or self._random.random() < self.world.options.give_up_rate
            if for_nothing or give_up:
                self.machine.release(number)
                self._end(call, UNKNOWN)
            else:
                self.machine.resend(number, call, self._timeout_ms)
                self._poll()
            return
        if status == TIMEOUT:
            self._end(call, FAILED)
            return
        if status in (STATUS_OK, MISS, CONFLICT):
            if call.kind == "stale":
                self._take_age(call, value)
                value = value[AGE_BYTES:]
            call.value, call.version = _shown(call, status, value), version
            if version and status != MISS:
                self._versions[call.key] = version
            self.world.audit.answered(call, copies)
            self._end(call, OK)
        elif status == HANDLER_ERROR:
            self._end(call, FAILED)
        elif status == LOST:
            self.world.audit.said_lost(call)
            self._end(call, UNKNOWN)
        elif status == MEMORY_FULL and self.world.options.quota_bytes:
            self._end(call, FAILED)
        else:
            self.world.audit.violation(f"status {status} for {call}")
            self._end(call, UNKNOWN)

    def _take_age(self, call: Call, value: bytes) -> None:
        age_ms = int.from_bytes(value[:AGE_BYTES], "little")
        if age_ms > call.age_ms:
            self.world.audit.violation(f"an answer of {age_ms} ms, asked for {call}")
        call.age_ms = age_ms

    def _end(self, call: Call, outcome: str) -> None:
        call.outcome = outcome
        call.end_us = self.world.schedule.now_us
        self.world.schedule.trace(f"client {self.index} {call.kind} {outcome} {call.status}")
        self.open -= 1
        self._next()


def _shown(call: Call, status: int, value: Any) -> Any:
    if status == MISS:
        return None
    read = call.kind in ("get", "confirmed", "stale")
    if call.kind in ("turn", "turn_get") or (read and call.key.startswith(b"count")):
        return msgspec.msgpack.decode(value)
    return value


__all__ = ["Connection", "SimClient", "Stream"]
