"""The outside authority of a cluster, behind five verbs.

Keep a registration alive (`Coordinator.join`), campaign for the controller's term and confirm that
it is still held (`Coordinator.campaign`, `Coordinator.confirm`), read and watch the table and the
registrations (`Coordinator.events`), write the table at its known revision under the current term
(`Coordinator.write`), stop the cluster (`Coordinator.stop_cluster`).

We do not write consensus: an implementation relies on one process (local.py with local_server.py,
memory.py) or on an engine that has it (etcd/). All of them pass the same suite,
tests/unit/test_coordinator_contract.py, and hold changes to the same rules (rules.py).

Promises of every implementation (numbers are those of docs/INVARIANTS.md):

- C1. An incarnation is given once, increasing, also across restarts of the coordinator.
- C2. A term is given to one controller, increasing, and only to who asks for it knowing the one
  before; a write under another term changes nothing.
- C3. A write at another revision than the current one changes nothing.
- C4. What was accepted is durable before anyone is told.
- C5. A registration ends only when its node surely ended: it never blinks.
- C6. A watcher sees revisions grow, and never a table that was not durable.
- C7. A confirmation that was asked for after a term was taken tells of that term or a later one.

Who calls: node/ (the shell around the controller machine). What it may import: transport/, wire/,
machine/.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Final, Protocol

import msgspec

from spacegrid.machine.events import ControllerChanged, RegistrationsChanged
from spacegrid.machine.table import PartitionEntry, Registration, Table

__all__ = [
    "REGISTERED_FOR_EVER",
    "ControllerChanged",
    "Coordinator",
    "CoordinatorEvent",
    "RegistrationEnded",
    "RegistrationsChanged",
    "TableChanged",
    "WriteResult",
]


#: `Coordinator.registered_until_ms` where nothing but the end of the process ends a registration.
REGISTERED_FOR_EVER: Final = 1 << 62


class TableChanged(msgspec.Struct, frozen=True):
    """The table moved on.

    Attributes:
        table: All of it.
        changed: Partitions that changed since the last event; None: take it as a whole.
    """

    table: Table
    changed: tuple[int, ...] | None = None


class RegistrationEnded(msgspec.Struct, frozen=True):
    """The coordinator no longer knows this registration: the node must stop; the last event."""

    reason: str


CoordinatorEvent = TableChanged | RegistrationsChanged | ControllerChanged | RegistrationEnded


class WriteResult(msgspec.Struct, frozen=True):
    """Answer to a write.

    Attributes:
        accepted: Whether it was written.
        revision: The table's revision now.
    """

    accepted: bool
    revision: int


class Coordinator(Protocol):
    """One node's access to the authority. Used from one event loop."""

    @property
    def registration(self) -> Registration:
        """The node's own registration as accepted; incarnation 0 before `join`."""

    @property
    def table(self) -> Table:
        """The newest table seen. Only after `join`."""

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """The nodes alive when last heard, in order of incarnation."""

    @property
    def stopping(self) -> bool:
        """Whether the whole cluster is stopping."""

    @property
    def controller(self) -> ControllerChanged:
        """Who may write the table, when last heard."""

    @property
    def registered_until_ms(self) -> int:
        """Until when this node may believe that it is registered, by `clock.boottime_ms`.

        It serves nothing after that, whatever lease it has: others may take its end as certain. It
        moves on by itself while the coordinator answers; `REGISTERED_FOR_EVER` where the end of the
        process is what ends the registration. 0 before `join` and once it has ended.
        """

    async def join(self, registration: Registration) -> Registration:
        """Register this node and keep the registration alive until `close`.

        Args:
            registration: With incarnation 0: a new one is given.

        Returns:
            The registration as accepted, with its incarnation. Table, registrations and controller
            are known when it returns.

        Raises:
            ConnectionFailed: The coordinator does not answer.
            ProtocolError: Another cluster or protocol version, or the cluster is stopping.
        """

    async def update(self, registration: Registration) -> None:
        """Replace this node's registration, for instance to say that it is draining.

        Args:
            registration: With the incarnation that `join` gave.

        Raises:
            ConnectionFailed: The coordinator does not answer.
            ProtocolError: That registration was ended.
        """

    def events(self) -> AsyncIterator[CoordinatorEvent]:
        """What changes from now on, beginning with the state as it is.

        One reader at a time. A slow reader sees fewer events, never a stale last one: what it has
        missed is merged. Ends after `close` or `RegistrationEnded`. While the coordinator is away
        nothing comes; it reconnects by itself with the same incarnation.
        """

    async def campaign(self, known_term: int) -> ControllerChanged:
        """Take the next term for this node, if the last one given is still ``known_term``.

        The coordinator prefers nobody: machine/standby.py decides when a node campaigns. Asking
        again after an answer that got lost is no harm, the answer tells who holds the term.

        Args:
            known_term: The term last heard of, 0 before the first.

        Returns:
            Who holds the term now: this node under ``known_term + 1``, or whoever was faster.

        Raises:
            ConnectionFailed: No answer: the term may be taken, `confirm` tells.
            ProtocolError: This node's registration has ended.

        Cost: one durable write.
        """

    async def confirm(self) -> ControllerChanged:
        """Read again who holds the term, past every cache and every member that lags behind.

        Returns:
            Who held it at some moment between the call and the answer.

        Raises:
            ConnectionFailed: No answer.
        """

    async def write(
        self, term: int, expected_revision: int, entries: Iterable[PartitionEntry]
    ) -> WriteResult:
        """Write entries if the term is current and the table is at that revision.

        Args:
            term: The term under which the writer is controller.
            expected_revision: The revision the entries were decided at.
            entries: Those that change; none: only the revision grows, which voids every write
                that was decided before and may still be under way.

        Returns:
            Whether it was written, durably.

        Raises:
            ConnectionFailed: No answer: it may be written, the next table seen tells.
        """

    async def stop_cluster(self) -> None:
        """Mark the whole cluster as stopping: every node keeps its data and stops.

        Raises:
            ConnectionFailed: The coordinator does not answer.
        """

    async def close(self) -> None:
        """End this node's registration, at once where the node can't be doing anything any more.

        With `Registration.stopped` said before, the end is a clean one.
        """
