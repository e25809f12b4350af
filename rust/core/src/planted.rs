//! Bugs on purpose, each of which the simulator must find; see tests/simulation/planted.py.
//!
//! Without the feature `planted` every question is `false` at compile time, so that a release holds
//! nothing of them. With it (only the extension that `make sim-mutants` builds has it) at most one is
//! switched on in a process, by name. Callers: the rule that each of them breaks.

/// A rule that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "tests/simulation/planted.py says what each of them is")]
pub enum Bug {
    AnswerBeforeCommit,
    AskedCopyDoesNotCount,
    AckWhatIsNotVerified,
    AcksCarriedOver,
    ConditionsIgnoreOverlay,
    ConfirmedByOne,
    ConfirmedUnasked,
    DeposedSaysFailed,
    DirtyRead,
    DiskNewsNotAskedAgain,
    EpochIgnored,
    JoinBeforeTable,
    KeepDifferingRecord,
    LeaseCountsUnapplied,
    LeaseFromItsAnswer,
    LeaseIgnored,
    LowestIgnored,
    MinInSyncIgnored,
    NewPrimaryDropsTail,
    NewPrimaryServesTables,
    PersistedBeforeFsync,
    PersistedByOneDisk,
    PersistedIsIgnored,
    PersistedWithoutATail,
    PredecessorIgnored,
    RecoveredUnread,
    RecoveryIgnoresPredecessor,
    RefusalUnrecorded,
    ResultsNotInSnapshot,
    ResultsNotOnBackups,
    SessionIgnored,
    SnapshotResurrects,
    StaleOfARemovedCopy,
    StaleOfTheTablesAlone,
    TailDoesNotCount,
    TailInSyncEarly,
    TokenIgnored,
    TurnsNotQueued,
}

/// Name and bug.
#[cfg(feature = "planted")]
pub const ALL: [(&str, Bug); 38] = [
    ("answer-before-commit", Bug::AnswerBeforeCommit),
    ("asked-copy-does-not-count", Bug::AskedCopyDoesNotCount),
    ("ack-what-is-not-verified", Bug::AckWhatIsNotVerified),
    ("acks-carried-over", Bug::AcksCarriedOver),
    ("conditions-ignore-overlay", Bug::ConditionsIgnoreOverlay),
    ("confirmed-by-one", Bug::ConfirmedByOne),
    ("confirmed-unasked", Bug::ConfirmedUnasked),
    ("deposed-says-failed", Bug::DeposedSaysFailed),
    ("dirty-read", Bug::DirtyRead),
    ("disk-news-not-asked-again", Bug::DiskNewsNotAskedAgain),
    ("epoch-ignored", Bug::EpochIgnored),
    ("join-before-table", Bug::JoinBeforeTable),
    ("keep-differing-record", Bug::KeepDifferingRecord),
    ("lease-counts-unapplied", Bug::LeaseCountsUnapplied),
    ("lease-from-its-answer", Bug::LeaseFromItsAnswer),
    ("lease-ignored", Bug::LeaseIgnored),
    ("lowest-ignored", Bug::LowestIgnored),
    ("min-in-sync-ignored", Bug::MinInSyncIgnored),
    ("new-primary-drops-tail", Bug::NewPrimaryDropsTail),
    ("new-primary-serves-tables", Bug::NewPrimaryServesTables),
    ("persisted-before-fsync", Bug::PersistedBeforeFsync),
    ("persisted-by-one-disk", Bug::PersistedByOneDisk),
    ("persisted-is-ignored", Bug::PersistedIsIgnored),
    ("persisted-without-a-tail", Bug::PersistedWithoutATail),
    ("predecessor-ignored", Bug::PredecessorIgnored),
    ("recovered-unread", Bug::RecoveredUnread),
    ("recovery-ignores-predecessor", Bug::RecoveryIgnoresPredecessor),
    ("refusal-unrecorded", Bug::RefusalUnrecorded),
    ("results-not-in-snapshot", Bug::ResultsNotInSnapshot),
    ("results-not-on-backups", Bug::ResultsNotOnBackups),
    ("session-ignored", Bug::SessionIgnored),
    ("snapshot-resurrects", Bug::SnapshotResurrects),
    ("stale-of-a-removed-copy", Bug::StaleOfARemovedCopy),
    ("stale-of-the-tables-alone", Bug::StaleOfTheTablesAlone),
    ("tail-does-not-count", Bug::TailDoesNotCount),
    ("tail-in-sync-early", Bug::TailInSyncEarly),
    ("token-ignored", Bug::TokenIgnored),
    ("turns-not-queued", Bug::TurnsNotQueued),
];

#[cfg(feature = "planted")]
static CHOSEN: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(u8::MAX);

/// Switch one on, for the rest of the process; whether there is one of that name.
#[cfg(feature = "planted")]
pub fn choose(name: &str) -> bool {
    let found = ALL.iter().find(|(known, _)| *known == name);
    if let Some((_, bug)) = found {
        CHOSEN.store(*bug as u8, std::sync::atomic::Ordering::Relaxed);
    }
    found.is_some()
}

/// Whether this bug is switched on.
#[cfg(feature = "planted")]
#[inline]
pub fn planted(bug: Bug) -> bool {
    CHOSEN.load(std::sync::atomic::Ordering::Relaxed) == bug as u8
}

/// Whether this bug is switched on: never.
#[cfg(not(feature = "planted"))]
#[inline(always)]
#[expect(clippy::inline_always, reason = "nothing may be left of it")]
pub const fn planted(_: Bug) -> bool {
    false
}
