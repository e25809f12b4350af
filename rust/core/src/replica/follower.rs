//! What a primary knows about one other copy of its partition.
//!
//! Callers: `commit` (who has what), `join` (how far a join is).

use super::effects::Out;
use super::join::Transfer;
use crate::log::Log;
use crate::planted::{Bug, planted};
use crate::record::Position;

/// Most bytes of records on their way to one follower of one partition.
pub const WINDOW_BYTES: usize = 2 << 20;
/// Records without an answer for this long are sent again.
pub const RESEND_MS: u64 = 300;
/// A copy that counts and acknowledges nothing of what it owes for this long is to be removed: the
/// primary asks the controller for it. A node that answers nobody is removed sooner, by its missing
/// heartbeats; this is for a link between two nodes that both are well.
pub const SHRINK_MS: u64 = 1_000;

/// How a follower counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Receives records, counts for nothing unless it has been asked to count.
    Joining,
    /// Counts for new records.
    Tail,
    /// Complete.
    InSync,
}

/// One other copy.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one copy")]
pub struct Follower {
    /// The copy.
    pub copy: u64,
    /// Session of its join; 0 for one that was in sync when the epoch began.
    pub session: u64,
    /// How it counts.
    pub kind: Kind,
    /// It has every record up to this sequence, verified in this epoch.
    pub acked: u64,
    /// Next sequence to send.
    pub next: u64,
    /// Bytes sent and not yet acknowledged.
    pub in_flight: usize,
    /// It has answered once in this epoch (a joining copy: has accepted the join).
    pub started: bool,
    /// An (empty) append or join offer is due.
    pub poke: bool,
    /// Commit position it was told last.
    pub told_commit: u64,
    /// When something of it was last heard.
    pub heard_ms: u64,
    /// Since when it owes an acknowledgement without having given any; 0: it owes none.
    pub owes_since_ms: u64,
    /// Position before the first record it was sent.
    pub from: Position,
    /// It may count once it has this much.
    pub goal: u64,
    /// The controller has been asked to let it count as a tail: it must be waited for.
    pub asked: bool,
    /// Version of the table entry with which the controller was asked last.
    pub asked_version: u64,
    /// It has not what the log begins after, so that it can't go on from here.
    pub gap: bool,
    /// The snapshot on its way.
    pub transfer: Option<Box<Transfer>>,
    /// The snapshot is complete and applied.
    pub complete: bool,
    /// What was committed when the snapshot was complete: with that on its disk it may be in sync.
    pub complete_at: u64,
    /// Its own disk has the records up to this sequence.
    pub persisted: u64,
    /// Whether it has a disk of its own; `None`: it has not said.
    pub disk: Option<bool>,
    /// Its memory is full; it had its tables of this partition at so many bytes when it said so.
    pub full_at: Option<u64>,
    /// Round that it has confirmed last, see `confirm`.
    pub confirmed: u64,
    /// Sequence up to which it was asked to persist.
    pub persist_asked: u64,
    /// When it was asked last, as far as asking again goes.
    pub persist_asked_ms: u64,
    /// It is to be asked.
    pub persist_due: bool,
}

impl Follower {
    /// A follower of which nothing is known yet.
    pub fn new(copy: u64, session: u64, kind: Kind, log: &Log, now_ms: u64) -> Self {
        Self {
            copy,
            session,
            kind,
            acked: 0,
            next: log.last().sequence + 1,
            in_flight: 0,
            started: false,
            poke: true,
            told_commit: 0,
            heard_ms: now_ms,
            owes_since_ms: 0,
            from: log.base(),
            goal: u64::MAX,
            asked: false,
            asked_version: 0,
            gap: false,
            transfer: None,
            complete: kind == Kind::InSync,
            complete_at: 0,
            persisted: 0,
            disk: None,
            full_at: None,
            confirmed: 0,
            persist_asked: 0,
            persist_asked_ms: now_ms,
            persist_due: false,
        }
    }

    /// Whether a commit must wait for it.
    #[inline]
    pub fn counts(&self) -> bool {
        if planted(Bug::TailDoesNotCount) && self.kind == Kind::Tail {
            return false;
        }
        self.kind != Kind::Joining || (self.asked && !planted(Bug::AskedCopyDoesNotCount))
    }

    /// Take note of time: whether it counts, owes an acknowledgement, or its word in a round, and has
    /// given none for too long.
    pub fn is_silent(&mut self, last: u64, round: u64, now_ms: u64) -> bool {
        if !self.counts() || (self.acked >= last && self.confirmed >= round) {
            self.owes_since_ms = 0;
        } else if self.owes_since_ms == 0 {
            self.owes_since_ms = now_ms;
        }
        self.owes_since_ms != 0 && now_ms.saturating_sub(self.owes_since_ms) >= SHRINK_MS
    }

    /// Send again from what it has acknowledged.
    pub fn rewind(&mut self, log: &Log) {
        self.in_flight = 0;
        self.poke = true;
        self.persist_asked = 0;
        if self.started {
            self.next = (self.acked + 1).max(log.base().sequence + 1);
        }
    }

    /// Whether it is asked what its disk has: a complete copy, and one that is about to be in sync.
    pub fn vouches(&self) -> bool {
        let whole_tail = self.kind == Kind::Tail && self.complete;
        self.kind == Kind::InSync || (whole_tail && !planted(Bug::PersistedWithoutATail))
    }

    /// Whether its snapshot is on its own disk, where the copies have disks.
    pub fn on_disk(&self, disks: bool) -> bool {
        !disks
            || self.disk == Some(false)
            || self.disk.is_some() && self.persisted >= self.complete_at
    }

    /// It is no longer a follower.
    pub fn end(self, partition: u32, out: &mut Out) {
        if self.transfer.is_some() {
            out.chunks_over.push((self.copy, partition));
        }
    }

    /// Assert what must hold.
    ///
    /// # Panics
    /// When something is broken.
    pub fn check(&self, log: &Log) {
        assert!(self.acked <= log.last().sequence, "acknowledged what is not there");
        assert!(self.next <= log.last().sequence + 1, "sends what is not there");
        assert!(self.transfer.is_none() || self.kind == Kind::Tail, "a snapshot to no tail");
    }
}
