//! One partition on one node: its log, tables and role, and what a new table entry makes of it.
//!
//! Invariants (asserted by [`Partition::check`], in `check`): the tables are exactly what the committed records
//! made of them; the overlay is exactly what the uncommitted ones say; positions in the log follow
//! each other; the commit position never goes back; only a primary has an overlay, followers, waiting
//! answers or turns. The behaviour of each role is in its own file: `primary`, `commit`, `backup`,
//! `join`, `turn`, `cursor`. Callers: `node`, which holds one lock per partition.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::effects::Out;
use super::follower::Follower;
use super::memory::growth;
use super::overlay::Overlay;
use super::ownership::{Ownership, Role, State};
use super::request::{Answer, Origin};
use super::streams::{Kept, Streams};
use super::turn::KeyQueues;
use crate::frame::reply::status;
use crate::log::Log;
use crate::planted::{Bug, planted};
use crate::record::{Position, RecordKind, decode_checked};
use crate::store::{Quota, Store};

/// What all partitions of a node share.
#[derive(Debug)]
pub struct Settings {
    /// Incarnation of this node.
    pub copy: u64,
    /// Partitions of the space.
    pub partition_count: u32,
    /// Copies that a write must be held by.
    pub min_in_sync: usize,
    /// Logs wait for the cursor "shared".
    pub shared_sink: bool,
    /// Logs wait for the cursor "local".
    pub local_sink: bool,
    /// Memory of the tables.
    pub quota: Quota,
    /// Memory of the logs.
    pub log_budget: Quota,
    /// Revision of the ownership table applied last.
    pub revision: AtomicU64,
    /// New requests are refused everywhere.
    pub stopping: AtomicBool,
    /// The log is needed by somebody besides followers.
    pub has_sink: bool,
}

impl Settings {
    /// Revision of the ownership table applied last.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }

    /// Whether new requests are refused everywhere.
    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

/// What waits for the commit of a sequence.
#[derive(Debug)]
pub enum Waiting {
    /// An answer.
    Answer {
        /// Who asked.
        origin: Origin,
        /// What is answered after the commit.
        answer: Answer,
        /// What is answered when the record is cut: whether it may still come back.
        if_cut: u8,
    },
    /// A ticket of `when_committed`.
    Ticket(i64),
}

/// One partition on one node.
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one copy")]
pub struct Partition {
    pub(super) index: u32,
    pub(super) settings: Arc<Settings>,
    pub(super) entry: Option<Ownership>,
    pub(super) role: Role,
    /// Turns belong to the generation in which they began; a new epoch or a stop begins another.
    pub(super) generation: u64,
    pub(super) log: Log,
    /// Sequence up to which records are committed and in the tables.
    pub(super) commit: u64,
    pub(super) store: Store,
    pub(super) streams: Streams,
    pub(super) overlay: Overlay,
    /// What the puts of the overlay's records may add to the tables, kept from the quota.
    pub(super) promised: u64,
    /// In order of the sequence that they wait for.
    pub(super) waiting: VecDeque<(u64, Waiting)>,
    /// Answers whose records are committed and not yet on every disk, in order of the sequence.
    pub(super) unpersisted: VecDeque<(u64, Origin, Answer)>,
    /// Reads that wait until the copies have confirmed this primary.
    pub(super) confirming: super::confirm::Confirming,
    /// This node's own disk has the records up to this sequence.
    pub(super) persisted: u64,
    pub(super) keys: KeyQueues,
    pub(super) followers: Vec<Follower>,
    /// Last sequence when this node became the primary; scans wait for its commit.
    pub(super) promoted_at: u64,
    /// Nobody else's copy is needed for a commit, and nothing is uncommitted.
    pub(super) alone: bool,
    /// Requests are carried out here: primary, not handing over, not broken.
    pub(super) serving: bool,
    /// Copies that count for a new record, as the table says.
    pub(super) counted: u8,
    /// Version of the table entry with which a hand-over was reported.
    pub(super) handover_asked: u64,
    /// It was loaded from disk, and no table of a new epoch has been seen since.
    pub(super) from_disk: bool,
    /// It came out of a sink while nobody served it, and the table has not named it yet.
    pub(super) reloaded: bool,
    pub(super) following: super::backup::Following,
    /// How old its answers to stale reads are.
    pub(super) fresh: super::stale::Freshness,
    /// This partition is in the node's list of those with something to send.
    pub(super) dirty: bool,
    /// An invariant broke here; it is never used again.
    pub(super) fault: Option<String>,
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Partition")
            .field("index", &self.index)
            .field("role", &self.role)
            .field("epoch", &self.epoch())
            .field("commit", &self.commit())
            .field("last", &self.log.last())
            .finish_non_exhaustive()
    }
}

impl Partition {
    /// A partition that this node holds nothing of.
    pub fn new(index: u32, settings: Arc<Settings>) -> Self {
        let log = Log::with_budget(Position::ZERO, settings.log_budget.clone());
        let store = Store::new(u64::from(index), settings.quota.clone());
        Self {
            index,
            settings,
            entry: None,
            role: Role::None,
            generation: 0,
            log,
            commit: 0,
            store,
            streams: Streams::new(),
            overlay: Overlay::new(),
            promised: 0,
            waiting: VecDeque::new(),
            unpersisted: VecDeque::new(),
            confirming: super::confirm::Confirming::default(),
            persisted: 0,
            keys: KeyQueues::default(),
            followers: Vec::new(),
            promoted_at: 0,
            alone: false,
            serving: false,
            counted: 0,
            handover_asked: 0,
            from_disk: false,
            reloaded: false,
            following: super::backup::Following::default(),
            fresh: super::stale::Freshness::default(),
            dirty: false,
            fault: None,
        }
    }

    /// What this node is to the partition.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Entry of the ownership table applied last.
    pub fn entry(&self) -> Option<&Ownership> {
        self.entry.as_ref()
    }

    /// Position up to which records are committed and in the tables.
    pub fn commit(&self) -> Position {
        self.log.position_of(self.commit).unwrap_or(self.log.base())
    }

    /// Its log, for inspection.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Its committed tables, for inspection.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Epoch of the entry applied last; 0 before the first.
    pub(super) fn epoch(&self) -> u32 {
        self.entry.as_ref().map_or(0, |entry| entry.epoch)
    }

    /// Copies that count for a new record.
    #[inline]
    pub(super) fn copies(&self) -> u8 {
        self.counted
    }

    /// A hand-over has been asked for.
    #[inline]
    pub(super) fn handing_over(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.target != 0)
    }

    pub(super) fn mark_dirty(&mut self, out: &mut Out) {
        if !self.dirty {
            self.dirty = true;
            out.dirty.push(self.index);
        }
    }

    /// Apply the table's entry; an older or known one is ignored.
    pub fn apply_entry(&mut self, entry: Ownership, now_ms: u64, out: &mut Out) {
        let known = self.entry.as_ref().map_or((0, 0), |known| (known.epoch, known.version));
        if entry.epoch < known.0 || entry.version <= known.1 {
            return;
        }
        let new_epoch = entry.epoch != known.0;
        let (before, role) = (self.role, entry.role_of(self.settings.copy));
        if before == Role::Primary && (role != Role::Primary || new_epoch) {
            self.depose(out);
        }
        if before == Role::Primary && entry.target != 0 && !self.handing_over() {
            self.void_turns(out);
        }
        // What was loaded from disk waits for a new epoch: the table of before the stop still names
        // the incarnations of before, and nobody has taken the partition on. The epoch of the last
        // record says nothing, since a partition may have failed over and then been left alone.
        let waits = self.from_disk
            && role == Role::None
            && self.entry.as_ref().is_none_or(|known| known.epoch == entry.epoch);
        self.counted = entry.counted().min(255) as u8;
        self.serving = role == Role::Primary && entry.target == 0 && self.fault.is_none();
        self.entry = Some(entry);
        if waits {
            return;
        }
        (self.from_disk, self.reloaded) = (false, false);
        self.role = role;
        match role {
            Role::Primary if before == Role::Primary && !new_epoch => {
                self.update_followers(now_ms, out);
            }
            Role::Primary => self.promote(now_ms, out),
            Role::Backup | Role::Tail | Role::Joining => {
                self.follow(before, new_epoch, out);
            }
            Role::Dormant if self.is_target() => self.follow(before, new_epoch, out),
            Role::Dormant => {}
            Role::None => self.wipe(Position::ZERO),
        }
        self.take_part_in_recovery(now_ms, out);
    }

    /// Become the primary: what is uncommitted here is committed with the new set, or not at all.
    fn promote(&mut self, now_ms: u64, out: &mut Out) {
        self.generation += 1;
        self.store.drop_tombstones();
        self.log.remove_cursor("shared");
        if planted(Bug::NewPrimaryDropsTail) {
            self.log.cut_after(self.commit);
        }
        self.promoted_at = self.log.last().sequence;
        self.overlay.clear();
        let mut promised = 0;
        for entry in self.log.iter_from(self.commit + 1) {
            let Ok(record) = decode_checked(&entry.bytes) else { continue };
            for change in record.changes() {
                if planted(Bug::NewPrimaryServesTables) {
                    break;
                }
                self.overlay.apply(entry.position, &change);
            }
            promised += record.changes().map(|change| growth(&change)).sum::<u64>();
            if let (Some(token), Some(reply)) = (record.token(), record.reply()) {
                let kept = Kept::of(entry.position, record.arguments_hash(), &reply);
                self.streams.hold(&token, kept);
            }
        }
        self.promise(promised);
        self.followers.clear();
        self.update_followers(now_ms, out);
        if planted(Bug::AcksCarriedOver) {
            self.followers.iter_mut().for_each(|follower| follower.acked = self.promoted_at);
            self.try_commit(out);
        }
        self.mark_dirty(out);
    }

    /// Stop being the primary of this epoch: nothing uncommitted is answered as done.
    fn depose(&mut self, out: &mut Out) {
        self.void_turns(out);
        let revision = self.settings.revision();
        for (_, waiting) in std::mem::take(&mut self.waiting) {
            match waiting {
                Waiting::Answer { origin, .. } if planted(Bug::DeposedSaysFailed) => {
                    out.refuse(origin, status::NOT_PRIMARY, revision);
                }
                Waiting::Answer { origin, if_cut, .. } => out.refuse(origin, if_cut, revision),
                Waiting::Ticket(ticket) => out.settled.push(-ticket),
            }
        }
        self.drop_unpersisted(out);
        self.drop_unconfirmed(out);
        self.overlay.clear();
        self.end_promise(self.promised);
        self.cut_results(self.commit);
        for follower in std::mem::take(&mut self.followers) {
            follower.end(self.index, out);
        }
        self.alone = false;
    }

    /// Take back the results of the records after `sequence`, which are about to go or to be judged anew.
    pub(super) fn cut_results(&mut self, sequence: u64) {
        for entry in self.log.iter_from(sequence + 1) {
            if let Ok(record) = decode_checked(&entry.bytes)
                && let Some(token) = record.token()
            {
                self.streams.cut(&token, entry.position);
            }
        }
    }

    /// Forget everything and begin again after `base`.
    pub(super) fn wipe(&mut self, base: Position) {
        self.log.reset(base);
        self.commit = base.sequence;
        self.persisted = 0;
        self.store.clear();
        self.streams = Streams::new();
        self.overlay.clear();
        self.following = super::backup::Following::default();
        self.fresh = super::stale::Freshness::default();
    }

    /// Why a request cannot be served here: status and version of the refusal.
    #[inline]
    pub(super) fn refusal(&self) -> Option<(u8, u64)> {
        if self.serving && !self.settings.stopping() {
            return None;
        }
        Some(self.why_not())
    }

    #[cold]
    pub(super) fn why_not(&self) -> (u8, u64) {
        if self.fault.is_some() {
            return (status::UNAVAILABLE, 0);
        }
        let revision = self.settings.revision();
        match self.entry.as_ref().map(|entry| entry.state) {
            Some(State::Lost) => (status::LOST, revision),
            None | Some(State::Unavailable | State::Recovering) => (status::UNAVAILABLE, revision),
            Some(State::Ok) => (status::NOT_PRIMARY, revision),
        }
    }

    /// A committed record goes into the tables.
    pub(super) fn apply_record(&mut self, sequence: u64) {
        let Some(entry) = self.log.get(sequence) else { return };
        let (position, bytes) = (entry.position, entry.bytes.clone());
        let Ok(record) = decode_checked(&bytes) else {
            self.fail(format!("record {position:?} cannot be read"));
            return;
        };
        let merging = self.following.merging();
        let version = position.pack();
        let mut promised = 0;
        for change in record.changes() {
            self.overlay.settle(position, &change);
            promised += growth(&change);
            apply_change(&mut self.store, &change, version, merging);
        }
        if self.role == Role::Primary {
            self.end_promise(promised);
        }
        match record.kind() {
            RecordKind::Forget { issuer, floor } => {
                self.streams.forget(issuer as u32, floor, sequence);
            }
            RecordKind::Changes => {
                if let (Some(token), Some(reply)) = (record.token(), record.reply()) {
                    if self.role == Role::Primary {
                        self.streams.settle(&token, sequence);
                    } else if !planted(Bug::ResultsNotOnBackups) {
                        let kept = Kept::of(position, record.arguments_hash(), &reply);
                        self.streams.keep(&token, kept);
                    }
                }
            }
        }
    }

    /// An invariant is broken: say so and never answer from this copy again.
    pub(super) fn fail(&mut self, story: String) {
        debug_assert!(false, "partition {}: {story}", self.index);
        self.serving = false;
        self.fault.get_or_insert(story);
    }

    /// Nothing uncommitted, nothing waiting, no turn.
    pub fn idle(&self) -> bool {
        self.role != Role::Primary
            || (self.commit == self.log.last().sequence
                && self.waiting.is_empty()
                && self.unpersisted.is_empty()
                && self.keys.is_empty())
    }
}

/// Write one change of a committed record into the tables.
pub(super) fn apply_change(
    store: &mut Store,
    change: &crate::record::Change<'_>,
    version: u64,
    merging: bool,
) {
    use crate::record::Change;
    match *change {
        Change::Put { map, schema, key, value, codec, expires_at_ms } => {
            if merging {
                store.put_if_newer(map, schema, key, value, codec, version, expires_at_ms);
            } else {
                store.put(map, schema, key, value, codec, version, expires_at_ms);
            }
        }
        Change::Delete { map, key, .. } => {
            let newer = merging && store.get(map, key).is_some_and(|e| e.version >= version);
            if !newer {
                store.delete(map, key, version, merging);
            }
        }
    }
}
