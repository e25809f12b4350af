"""What the machines of the controller hear and what they say.

Events are past facts, effects are verbs. Who calls: machine/controller.py, machine/standby.py,
coordinator/, node/.
"""

from __future__ import annotations

import enum

import msgspec

from spacegrid.machine.acceptance import Choice
from spacegrid.machine.table import PartitionEntry, Registration, Table

__all__ = [
    "BecameController",
    "Campaign",
    "CampaignDone",
    "CampaignFailed",
    "Change",
    "ChangeKind",
    "ChangesRequested",
    "ConfirmFailed",
    "ConfirmTerm",
    "ControllerChanged",
    "ControllerEvent",
    "ControllerHeard",
    "Deposed",
    "DrainRequested",
    "Effect",
    "Heartbeat",
    "HeartbeatAnswer",
    "LossAccepted",
    "PeerHeard",
    "RegistrationsChanged",
    "StandbyEvent",
    "TableObserved",
    "TermConfirmed",
    "Ticked",
    "WriteDone",
    "WriteRefused",
    "WriteTable",
]


class ChangeKind(enum.IntEnum):
    """What a copy asks for, most often the primary; the numbers are those of wire and core."""

    #: The joining copy has acknowledged the primary's last record. Of the tail that is to complete
    #: a former copy, by itself: its log begins later than the table says, too late for that copy.
    TAIL = 1
    #: The tail's snapshot is complete; or the former copy has everything that the tail has.
    IN_SYNC = 2
    #: The primary has stopped the partition and all its records are committed: hand it over.
    STOPPED = 3
    #: A copy that counts does not answer: go on without it.
    SHRINK = 4
    #: Nobody serves, and this former copy's log reaches to where that tail's begins: complete it.
    RECOVER = 5


class Change(msgspec.Struct, frozen=True):
    """One change that a copy asks for, refused when epoch or version moved on."""

    partition: int
    epoch: int
    version: int
    kind: ChangeKind
    #: The copy it is about.
    copy: int = 0
    #: For TAIL: position before the first record that the copy was sent.
    from_epoch: int = 0
    from_sequence: int = 0


class ControllerChanged(msgspec.Struct, frozen=True):
    """Who alone may write the table now.

    Attributes:
        incarnation: The node that took the term last, also one that has ended; 0: nobody yet.
        term: The term it took; 0 before the first.
    """

    incarnation: int
    term: int


class BecameController(msgspec.Struct, frozen=True):
    """The node of this machine alone may write the table now.

    Attributes:
        table: As the coordinator has it.
        registrations: All nodes alive, in order of incarnation.
        term: Goes with every write; a write of an older term is refused.
        stopping: The whole cluster is stopping.
    """

    table: Table
    registrations: tuple[Registration, ...]
    term: int
    stopping: bool = False


class Deposed(msgspec.Struct, frozen=True):
    """Another node is controller now: nothing more is decided here."""


class RegistrationsChanged(msgspec.Struct, frozen=True):
    """The nodes that are alive; one that is missing has surely ended.

    Attributes:
        registrations: All of them, in order of incarnation.
        stopping: The whole cluster is stopping: keep the data, hand nothing over.
    """

    registrations: tuple[Registration, ...]
    stopping: bool = False


class ChangesRequested(msgspec.Struct, frozen=True):
    """A primary asks for changes of its partitions.

    Attributes:
        changes: At most a few for each partition.
        sender: Incarnation of the node that asks; 0 skips the check that it is the primary.
    """

    changes: tuple[Change, ...]
    sender: int = 0


class DrainRequested(msgspec.Struct, frozen=True):
    """A node is leaving: move what it holds (as its registration's ``draining`` says too)."""

    copy: int


class Heartbeat(msgspec.Struct, frozen=True):
    """A node says that it is there, this one too; it asks for a lease.

    Attributes:
        copy: The node.
        nonce: Names the heartbeat.
        progress: Counters of its loops (`liveness.STUCK_MS` has their order).
    """

    copy: int
    nonce: int
    progress: tuple[int, ...] = ()


class TermConfirmed(msgspec.Struct, frozen=True):
    """A reading of the term was answered: who holds it."""

    number: int
    controller: ControllerChanged


class ConfirmFailed(msgspec.Struct, frozen=True):
    """A reading of the term was not answered."""

    number: int


class LossAccepted(msgspec.Struct, frozen=True):
    """An operator decides how partitions without a primary begin again."""

    choices: tuple[Choice, ...]


class WriteDone(msgspec.Struct, frozen=True):
    """The write in flight was accepted and the table has this revision now."""

    revision: int


class WriteRefused(msgspec.Struct, frozen=True):
    """The write in flight was refused, or nobody knows; the next table seen tells."""


class TableObserved(msgspec.Struct, frozen=True):
    """The table as the coordinator's watch delivered it."""

    table: Table


class Ticked(msgspec.Struct, frozen=True):
    """Time passed: `Controller.next_deadline_ms` was reached."""


ControllerEvent = (
    BecameController
    | Deposed
    | RegistrationsChanged
    | ChangesRequested
    | DrainRequested
    | Heartbeat
    | TermConfirmed
    | ConfirmFailed
    | LossAccepted
    | WriteDone
    | WriteRefused
    | TableObserved
    | Ticked
)


class CampaignDone(msgspec.Struct, frozen=True):
    """The campaign under way was answered: who holds the term now."""

    controller: ControllerChanged


class CampaignFailed(msgspec.Struct, frozen=True):
    """The campaign under way was not answered."""


class ControllerHeard(msgspec.Struct, frozen=True):
    """The controller of this term answered a heartbeat of this node.

    Attributes:
        term: Its term; 0: no controller has answered.
        at_ms: When its last answer came.
    """

    term: int
    at_ms: int


class PeerHeard(msgspec.Struct, frozen=True):
    """Another node sent a heartbeat.

    Attributes:
        copy: The node.
        heard_term: Term of the controller that it has heard lately; 0: of none.
    """

    copy: int
    heard_term: int


StandbyEvent = (
    RegistrationsChanged
    | ControllerChanged
    | ControllerHeard
    | PeerHeard
    | CampaignDone
    | CampaignFailed
    | Ticked
)


class Campaign(msgspec.Struct, frozen=True):
    """Ask the coordinator for the term after this one.

    At most one is under way: the next follows `CampaignDone` or `CampaignFailed`.
    """

    known_term: int


class WriteTable(msgspec.Struct, frozen=True):
    """Write these entries if ``term`` is current and the table is at ``expected_revision``.

    At most one is in flight: the next follows `WriteDone` or `WriteRefused`.
    """

    term: int
    expected_revision: int
    entries: tuple[PartitionEntry, ...]


class HeartbeatAnswer(msgspec.Struct, frozen=True):
    """Answer the heartbeat.

    Attributes:
        copy: Who sent it.
        nonce: Of the heartbeat.
        term: Under which this controller speaks; 0: its word is worth nothing now.
        lease_ms: How long the lease lasts from before the heartbeat left; 0: it is none.
        revision: Of the table that the lease names.
    """

    copy: int
    nonce: int
    term: int = 0
    lease_ms: int = 0
    revision: int = 0


class ConfirmTerm(msgspec.Struct, frozen=True):
    """Read the term again; several may be under way, each has its number."""

    number: int


Effect = WriteTable | HeartbeatAnswer | ConfirmTerm
