"""A node's heartbeats and its lease, as node/heartbeats.py has them.

Every node beats to every other; whoever is controller answers with a lease. Requests and answers
may be late or lost; a paused node neither sends nor answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from spacegrid._core import Heart
from spacegrid.coordinator import REGISTERED_FOR_EVER
from spacegrid.machine.events import HeartbeatAnswer
from spacegrid.machine.leases import HEARTBEAT_MS, HELD_MS, LEASE_MS

from .schedule import MS

if TYPE_CHECKING:
    from .node import NodeProcess


class Heartbeats:
    """One node's."""

    def __init__(self, process: NodeProcess) -> None:
        self.heart = Heart(HELD_MS)
        #: End of the lease that counts.
        self.until_ms = 0
        self._process = process
        self._world = process.world
        self._beats = 0
        process.schedule.after(process.chance.randrange(20 * MS), process.do, self._beat)

    def applied(self, revision: int) -> None:
        """The core has applied a table."""
        self._take(self.heart.applied(revision))

    def _beat(self) -> None:
        process = self._process
        process.schedule.after(HEARTBEAT_MS * MS, process.do, self._beat)
        assert process.control is not None
        self._beats += 1
        heard_term = process.control.heard_term(*self.heart.heard())
        now_ms = process.boot_ms()
        self.heart.say((self._beats, self._beats), heard_term, REGISTERED_FOR_EVER, now_ms)
        nonce, _, progress, heard_term = self.heart.beat(now_ms)
        me = process.incarnation
        self._answered(process.control.take_heartbeat(me, nonce, tuple(progress), heard_term))
        process.emit([(self._send, (copy,)) for copy in process.registrations if copy != me])

    def _send(self, copy: int) -> None:
        process, world = self._process, self._world
        there = world.processes.get(copy)
        if there is None or there.dead:
            return
        me = process.incarnation
        nonce, _, progress, heard_term = self.heart.beat(process.boot_ms())

        def ask(back: Callable[..., None]) -> None:
            def take() -> None:
                assert there is not None
                assert there.control is not None
                answer = there.control.take_heartbeat(me, nonce, tuple(progress), heard_term)
                there.emit([(back, (answer,))])

            there.do(take)

        world.network.call(
            process.place,
            there.place,
            ask,
            lambda answer: process.do(self._answered, answer),
            lambda: None,
            LEASE_MS * MS,
        )

    def _answered(self, answer: HeartbeatAnswer) -> None:
        now_ms = self._process.boot_ms()
        self._take(
            self.heart.answered(answer.nonce, answer.lease_ms, answer.revision, answer.term, now_ms)
        )

    def _take(self, lease: tuple[int, int] | None) -> None:
        process = self._process
        assert process.core is not None
        # The clock is read after the grant came; a pause may strike right after the reading.
        if lease is not None and process.core.grant_lease(*lease, process.boot_ms()):
            self.until_ms = max(self.until_ms, lease[1])
            self._world.audit.primaries()
