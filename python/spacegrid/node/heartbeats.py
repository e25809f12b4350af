"""Heartbeats: this node says that it is there, hears who else is, and keeps its lease.

Every `HEARTBEAT_MS` one goes to each node that is registered, this one too; whoever is controller
answers with a lease. Those to other nodes leave from the net thread (rust/net), so they go on while
the interpreter is held; what this loop has to say of itself it leaves in the core's `Heart`, where
it stands still together with the loop. All decisions are those of the machines: what a heartbeat
says and which lease counts (the `Heart`), who campaigns (machine/standby.py), who gets a lease
(machine/controller.py). Runs on the grid loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from spacegrid import clock
from spacegrid._core import Heart
from spacegrid.machine.events import HeartbeatAnswer
from spacegrid.machine.leases import HEARTBEAT_MS, HELD_MS

if TYPE_CHECKING:
    from spacegrid.node.controller_runner import ControllerRunner
    from spacegrid.node.front import Front
    from spacegrid.node.view import ClusterView
    from spacegrid.v1 import peers_pb2


class Heartbeats:
    """The heartbeats of one node of a cluster, and its lease.

    Args:
        incarnation: Of the node.
        front: Sends those to other nodes, and has the core, which takes the leases.
        view: Who is registered.
        controller: Where heartbeats and answers go.
        registered_until_ms: Gives until when this node may believe that it is registered: no lease
            is good for longer, since others take its end as certain.
        progress: Gives the counters of the node's loops.
        fatal: Takes an error that must not be.
    """

    def __init__(
        self,
        incarnation: int,
        front: Front,
        view: ClusterView,
        controller: ControllerRunner,
        registered_until_ms: Callable[[], int],
        progress: Callable[[], tuple[int, ...]],
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._incarnation = incarnation
        self._front = front
        self._view = view
        self._controller = controller
        self._registered_until_ms = registered_until_ms
        self._progress = progress
        self._fatal = fatal
        self._heart = Heart(HELD_MS)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to beat; from now on the core answers under a lease only."""
        self._front.node.require_lease()
        self._beat()
        self.update_peers()

    def applied(self, revision: int) -> None:
        """The core has applied the table of that revision."""
        self._take(self._heart.applied(revision))

    def update_peers(self) -> None:
        """Beat to whoever is registered now."""
        self._front.beat(self._heart, self._view.peers())

    def hear(self, request: peers_pb2.HeartbeatRequest) -> HeartbeatAnswer:
        """Take another node's heartbeat, and answer it as far as this node may."""
        sender = request.hello.incarnation
        return self._controller.take_heartbeat(
            sender, request.nonce, tuple(request.progress), request.heard_term
        )

    def close(self) -> None:
        """Beat no more; the lease runs out by itself."""
        if self._timer is not None:
            self._timer.cancel()
        self._front.beat(self._heart, ())

    # ---- inside

    def _beat(self) -> None:
        try:
            self._timer = asyncio.get_running_loop().call_later(HEARTBEAT_MS / 1000, self._beat)
            now_ms = clock.boottime_ms()
            heard_term = self._controller.heard_term(*self._heart.heard())
            until_ms = self._registered_until_ms()
            self._heart.say(self._progress(), heard_term, until_ms, now_ms)
            self._beat_here(now_ms)
        except BaseException as error:
            self._fatal(error)
            raise

    def _beat_here(self, now_ms: int) -> None:
        nonce, _, progress, heard_term = self._heart.beat(now_ms)
        me = self._incarnation
        answer = self._controller.take_heartbeat(me, nonce, tuple(progress), heard_term)
        self._take(
            self._heart.answered(
                nonce, answer.lease_ms, answer.revision, answer.term, clock.boottime_ms()
            )
        )

    def _take(self, lease: tuple[int, int] | None) -> None:
        if lease is not None:
            self._front.node.grant_lease(*lease, clock.boottime_ms())


class Pulse:
    """A counter that another thread's loop moves whenever it is asked to.

    It stands still while that loop is blocked, for instance by a handler that computes.
    """

    def __init__(self) -> None:
        self._count = 0
        self._asked = False

    def count(self, loop: asyncio.AbstractEventLoop) -> int:
        """The counter; the loop is asked to move it on."""
        if not self._asked:
            self._asked = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._move)
        return self._count

    def _move(self) -> None:
        self._count += 1
        self._asked = False
