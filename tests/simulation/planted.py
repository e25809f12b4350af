"""Bugs on purpose: each breaks one rule, and the simulator must find every one of them.

Those of the core are compiled in by the cargo feature `planted` only, in an extension of their own
that `make sim-mutants` builds (rust/core/src/planted.rs). Those of the machines replace a rule's
function here, so that the product's code knows nothing of them. A process plants at most one.

A rule that is held in two places is left out in both: a follower says up to where it agrees and its
primary looks for that position in its own log; a node's heart keeps a lease back until its table is
applied, and its core asks again; the session of a copy that joined in an epoch ends with it; a turn
that another one followed too early is void. One rule has no bug of its own, that a commit position
counts for the prefix verified in this epoch: here every copy that is sent one has been waited for
first, or was wiped when it began to join, so that nothing is sent that the rule would hold back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from spacegrid.coordinator import WriteResult
from spacegrid.coordinator.authority import Authority
from spacegrid.machine import controller, liveness, survival
from spacegrid.machine.draft import Draft
from spacegrid.machine.events import Change
from spacegrid.machine.leases import HELD_MS
from spacegrid.machine.restart import Restart
from spacegrid.machine.table import PartitionEntry, State, Table
from spacegrid.machine.term import HeldTerm

#: Name to the rule it leaves out; a star marks the rules that PROTOCOL.md marks.
CORE = {
    "persisted-before-fsync": "a follower says what its own disk has fsynced, and no more",
    "persisted-by-one-disk": "persisted is what every complete copy has fsynced",
    "persisted-without-a-tail": "so has a copy that is about to be in sync",
    "persisted-is-ignored": "a persisted answer waits for the disks",
    "disk-news-not-asked-again": "a copy that has said nothing of its disk is asked",
    "predecessor-ignored": "* an append must follow the receiver's own log",
    "keep-differing-record": "* where logs differ the receiver cuts back to where they agree",
    "asked-copy-does-not-count": "* a change request under way counts for a commit",
    "min-in-sync-ignored": "* a commit needs min_in_sync at commit, not only at admission",
    "join-before-table": "* a copy wipes its data only after it has read the join in the table",
    "recovery-ignores-predecessor": "* a tail completes a copy whose log reaches to its own",
    "recovered-unread": "a former copy serves once it has all that the tail has",
    "tail-does-not-count": "every tail must have a record before it commits",
    "acks-carried-over": "only acknowledgements of this epoch count",
    "ack-what-is-not-verified": "a follower acknowledges what was verified in this epoch",
    "epoch-ignored": "messages of another epoch or of another primary mean nothing",
    "session-ignored": "messages of another session of a join mean nothing",
    "answer-before-commit": "an answer leaves after the commit of what it is computed from",
    "dirty-read": "a read of what is not committed waits",
    "conditions-ignore-overlay": "conditions look at uncommitted records first",
    "deposed-says-failed": "a deposed primary says unknown of what it had not committed",
    "new-primary-drops-tail": "a new primary commits its whole tail",
    "new-primary-serves-tables": "a new primary answers from its tail too",
    "token-ignored": "a request that was carried out is not run again",
    "results-not-on-backups": "results of requests are on the backups",
    "results-not-in-snapshot": "results of requests are in a snapshot",
    "lowest-ignored": "a request below the lowest open number is stale",
    "refusal-unrecorded": "what a repeated request is answered is recorded",
    "snapshot-resurrects": "an entry of a snapshot never replaces what is newer",
    "tail-in-sync-early": "a tail is in sync only when its snapshot is complete",
    "turns-not-queued": "one turn at a time per routing key",
    "lease-from-its-answer": "a lease is counted from before its heartbeat left",
    "lease-ignored": "an answer leaves under a valid lease only",
    "lease-counts-unapplied": "a lease counts once its table revision is applied",
    "stale-of-a-removed-copy": "a stale read is as old as the proof that its copy is complete",
    "stale-of-the-tables-alone": "a stale read is fresh when the tables have all of the log",
    "confirmed-unasked": "a confirmed read waits for the copies' word",
    "confirmed-by-one": "every copy that counts confirms a read, not one of them",
}


def _former_outlives_its_tail(
    draft: Draft, entry: PartitionEntry, in_sync: tuple[int, ...], _tails: bool
) -> tuple[int, ...]:
    if len(in_sync) >= draft.table.min_in_sync:
        return ()
    known = (*entry.former, *draft.table.entries[entry.partition].in_sync, *entry.in_sync)
    return tuple(copy for copy in dict.fromkeys(known) if copy not in in_sync)


def _former_is_kept() -> None:
    survival._former = _former_outlives_its_tail


def _any_version() -> None:
    apply = controller.apply_change

    def loose(draft: Draft, sender: int, change: Change) -> bool:
        if not 0 <= change.partition < draft.table.partition_count:
            return False
        base = draft.table.entries[change.partition]
        fresh = msgspec.structs.replace(change, epoch=base.epoch, version=base.version)
        return apply(draft, 0, fresh)

    controller.apply_change = loose


def _term_ignored() -> None:
    write = Authority.write

    def loose(self: Authority, _term: int, revision: int, entries: Any) -> WriteResult:
        return write(self, self.state.term, revision, entries)

    Authority.write = loose  # type: ignore[method-assign]


def _revision_ignored() -> None:
    write = Authority.write

    def loose(self: Authority, term: int, _revision: int, entries: Any) -> WriteResult:
        now = self.state.table.entries
        later = [
            msgspec.structs.replace(
                entry,
                version=max(entry.version, now[entry.partition].version + 1),
                epoch=max(entry.epoch, now[entry.partition].epoch),
            )
            for entry in entries
        ]
        return write(self, term, self.state.table.revision, later)

    Authority.write = loose  # type: ignore[method-assign]


def _depose_under_lease() -> None:
    liveness.Liveness.answers_until_ms = lambda self, copy: 0  # type: ignore[method-assign]


def _fresh_controller_does_not_wait() -> None:
    liveness.FRESH_WAIT_MS = 0  # type: ignore[misc]


def _lease_outlasts_its_giver() -> None:
    HeldTerm.lease_ms = lambda self, now_ms: HELD_MS  # type: ignore[method-assign]


def _unnoticed_end_is_life() -> None:
    begin = Restart.begin

    def loose(self: Restart, table: Table, registered: frozenset[int], *, heartbeats: bool) -> None:
        begin(self, table, registered, heartbeats=False)

    Restart.begin = loose  # type: ignore[method-assign]


def _unheard_disk_counts() -> None:
    recover = survival._recover

    def loose(draft: Draft, entry: PartitionEntry) -> State:
        unheard, draft.unheard = draft.unheard, frozenset()
        state = recover(draft, entry)
        draft.unheard = unheard
        return state

    survival._recover = loose


def _unheard_copy_serves() -> None:
    promote, recover = survival._promote, survival._recover
    unheard: frozenset[int] = frozenset()

    def loose(draft: Draft, entry: PartitionEntry) -> None:
        nonlocal unheard
        unheard, draft.unheard = draft.unheard, frozenset()
        promote(draft, entry)
        draft.unheard = unheard

    def strict(draft: Draft, entry: PartitionEntry) -> State:
        draft.unheard = unheard
        return recover(draft, entry)

    survival._promote, survival._recover = loose, strict


def _own_store_is_past() -> None:
    def loose(self: Table, copy: int, _store: bytes, alive: Any) -> set[int]:
        entries = [entry for entry in self.entries if entry.primary in alive]
        return {entry.partition for entry in entries if copy not in entry.in_sync}

    Table.served_without = loose  # type: ignore[method-assign]


MACHINES: dict[str, tuple[str, Callable[[], None]]] = {
    "former-outlives-its-tail": (
        "* former is cleared when the last tail is removed",
        _former_is_kept,
    ),
    "any-version": ("a request for a change names the entry it is about", _any_version),
    "term-ignored": ("only the current term writes the table", _term_ignored),
    "revision-ignored": ("a write is decided at the table's revision", _revision_ignored),
    "depose-under-lease": ("a primary is deposed when its lease is over", _depose_under_lease),
    "fresh-controller-does-not-wait": (
        "a fresh controller waits for the leases of the one before",
        _fresh_controller_does_not_wait,
    ),
    "lease-outlasts-its-giver": (
        "a lease ends soon after the last reading of the term that it was given under",
        _lease_outlasts_its_giver,
    ),
    "unnoticed-end-is-life": (
        "only a copy that is heard says that the cluster went on",
        _unnoticed_end_is_life,
    ),
    "unheard-disk-counts": ("a disk counts once its node was heard", _unheard_disk_counts),
    "unheard-copy-serves": (
        "a fresh controller goes on with no copy that it has not heard",
        _unheard_copy_serves,
    ),
    "own-store-is-past": (
        "a store is not of the past while the table names a copy that had it",
        _own_store_is_past,
    ),
}

NAMES = (*CORE, *MACHINES)


def rule(name: str) -> str:
    """The rule that a bug leaves out."""
    return CORE[name] if name in CORE else MACHINES[name][0]


def plant(name: str) -> None:
    """Switch one bug on for the rest of this process.

    Raises:
        AttributeError: A bug of the core, and this extension was not built with them.
    """
    if name in MACHINES:
        MACHINES[name][1]()
        return
    from spacegrid import _core

    _core.plant(name)  # type: ignore[attr-defined]
