"""Calls on their way out of turns, and their answers on the way back.

A call is queued the moment a handler makes it. It leaves with every other call of the same loop
tick, but not before everything its turn has read is committed: until then it waits under a ticket
of the node's. A ticket that comes back negative says that what the turn has read was cut; the turn
is void.

Who calls: `host`, on the unit thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from spacegrid import _core
from spacegrid.errors import SpaceGridError
from spacegrid.wire.status import Status

from .failure import error_from

if TYPE_CHECKING:
    from .turn import OutgoingCall, TurnRun

__all__ = ["CallDesk"]


class CallDesk:
    """Holds what is queued and what waits for a commit.

    Args:
        node: Asked for commits.
        submit_calls: Takes a batch of calls.
        on_void: Told of a turn whose reads were cut.
    """

    def __init__(
        self,
        node: _core.Node,
        submit_calls: Callable[[list[OutgoingCall]], None],
        on_void: Callable[[TurnRun], None],
    ) -> None:
        self._node = node
        self._submit_calls = submit_calls
        self._on_void = on_void
        self._outgoing: list[OutgoingCall] = []
        self._tickets: dict[int, tuple[TurnRun, list[OutgoingCall]]] = {}
        self._next_ticket = 1

    def queue(self, call: OutgoingCall) -> None:
        """Take a call; it leaves with the next `flush` after all its turn has read is committed."""
        run = call.run
        position = run.turn.barrier()
        if position is None:
            self._outgoing.append(call)
        elif position == run.ticket_position and run.ticket in self._tickets:
            self._tickets[run.ticket][1].append(call)
        else:
            ticket = self._next_ticket
            self._next_ticket = ticket + 1
            if self._node.when_committed(*position, ticket):
                self._outgoing.append(call)
            else:
                self._tickets[ticket] = (run, [call])
                run.ticket, run.ticket_position = ticket, position

    def settled(self, tickets: Sequence[int]) -> None:
        """Let calls go whose reads are committed, and end the turns whose reads were cut."""
        for ticket in tickets:
            waiting = self._tickets.pop(abs(ticket), None)
            if waiting is None:
                continue
            run, calls = waiting
            if ticket > 0:
                self._outgoing.extend(calls)
            else:
                self._on_void(run)

    def flush(self) -> None:
        """Submit everything that may leave, as one batch; calls given up meanwhile stay."""
        if self._outgoing:
            calls = [call for call in self._outgoing if not call.future.done()]
            self._outgoing.clear()
            if calls:
                self._submit_calls(calls)

    def done(self, batch: Sequence[tuple[OutgoingCall, int, bytes]]) -> None:
        """Give answers to the handlers that wait for them; late ones are dropped."""
        for call, status, value in batch:
            future = call.future
            if future.done():
                continue
            if status == Status.OK:
                try:
                    future.set_result(call.handler.decode_reply(value))
                except SpaceGridError as error:
                    future.set_exception(error)
            else:
                future.set_exception(error_from(status, value, call.name))
