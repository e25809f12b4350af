//! The follower's half of replication: backups, tails and joining copies.
//!
//! Takes records only from the primary of the epoch its own table names, and only what follows its
//! own log; where the logs differ it cuts back to where they agree, never at or below its commit
//! position. A commit position counts for the prefix that was verified in this epoch and no further.
//! Callers: `node` for frames, `partition` for new table entries.

use super::commit::Links;
use super::effects::Out;
use super::ownership::{Ownership, Role};
use super::partition::Partition;
use crate::frame::peer::{Header, Records};
use crate::planted::{Bug, planted};
use crate::record::{Position, decode};

/// A follower takes no more records when the node's logs hold this many times their budget.
pub const OVERFULL: u64 = 2;

/// What a follower knows about its place.
#[derive(Debug, Default)]
pub struct Following {
    /// Session of the join that this copy's data belongs to; 0 when it was complete from the start.
    pub(super) session: u64,
    /// The log up to here agrees with the primary of this epoch.
    pub(super) verified: u64,
    /// An answer is due: position and whether it matched.
    pub(super) answer: Option<(Position, bool)>,
    /// The primary is to be asked for its offer to join.
    pub(super) offer_due: bool,
    /// The tables miss a snapshot that is on its way.
    pub(super) incomplete: bool,
    /// Next piece of the snapshot.
    pub(super) next_chunk: u32,
    /// The last piece is in; the copy is complete once it has committed this much.
    pub(super) complete_at: Option<u64>,
    /// An acknowledgement of a piece is due.
    pub(super) chunk_ack: Option<u32>,
    /// Every shared sink has the records up to here.
    pub(super) trim: u64,
    /// The primary waits for this node's disk up to here.
    pub(super) persist_wanted: u64,
    /// What the primary was told of this node's disk.
    pub(super) persist_told: u64,
    /// The primary was told that this node's memory is full, and how large the tables are.
    pub(super) told_full: Option<u64>,
    /// The primary asked in this round whether this copy follows it.
    pub(super) confirm: Option<u64>,
    /// The primary is to be told how this copy is.
    pub(super) state_due: bool,
}

impl Following {
    /// Whether entries of a snapshot may arrive behind newer records.
    #[inline]
    pub(super) fn merging(&self) -> bool {
        self.incomplete
    }
}

impl Partition {
    /// The table makes this copy a follower, or confirms it.
    pub(super) fn follow(&mut self, before: Role, new_epoch: bool, out: &mut Out) {
        let follower = matches!(before, Role::Backup | Role::Tail | Role::Joining);
        if self.role == Role::Backup || self.is_target() {
            if self.following.incomplete && self.following.complete_at.is_none() {
                self.fail("named in sync before its snapshot was complete".into());
            }
            if self.following.incomplete {
                self.following.incomplete = false;
                self.store.drop_tombstones();
            }
            if new_epoch {
                self.following.session = 0;
            }
        }
        if new_epoch || !follower {
            self.following.confirm = None;
            self.following.verified = self.commit;
            // A new primary begins the snapshot again.
            self.following.next_chunk = 0;
            self.following.complete_at = None;
        }
        if new_epoch || !follower || self.awaits_offer() {
            self.greet();
        }
        self.following.state_due |= before != self.role;
        self.mark_dirty(out);
    }

    /// Tell the primary where this copy's log ends, so that it goes on from there.
    ///
    /// A copy that is to join asks for its offer: one that came before the table did was not heard.
    pub(super) fn greet(&mut self) {
        if matches!(self.role, Role::Backup | Role::Tail) || self.is_target() {
            self.following.answer = Some((self.log.last(), false));
            self.following.state_due = true;
        } else if self.awaits_offer() {
            self.following.offer_due = true;
        }
    }

    /// Whether the table has this copy join and it has not heard the offer yet.
    fn awaits_offer(&self) -> bool {
        self.role == Role::Joining && self.following.session != self.listed_session()
    }

    /// Session under which the table lists this copy.
    pub(super) fn listed_session(&self) -> u64 {
        self.entry.as_ref().map_or(0, |entry| entry.session_of(self.settings.copy))
    }

    /// Whether this copy takes records from another one.
    fn is_follower(&self) -> bool {
        matches!(self.role, Role::Backup | Role::Tail | Role::Joining) || self.is_target()
    }

    /// Whether a message from `copy` comes from the one that this copy follows.
    pub(super) fn follows(&self, copy: u64, header: Header) -> bool {
        let source = self.entry.as_ref().map_or(0, Ownership::source);
        self.is_follower()
            && self.fault.is_none()
            && (planted(Bug::EpochIgnored) || (header.epoch == self.epoch() && copy == source))
    }

    /// Records of the primary, or only its positions.
    pub fn on_append(
        &mut self,
        copy: u64,
        header: Header,
        predecessor: Position,
        commit: Position,
        trim: u64,
        records: Records<'_>,
        out: &mut Out,
    ) {
        let session = header.session == self.following.session
            || planted(Bug::SessionIgnored)
            || (planted(Bug::EpochIgnored) && header.epoch != self.epoch());
        if !self.follows(copy, header) || !session {
            return;
        }
        if self.role == Role::Joining && !self.following.incomplete {
            return; // Not joined: the offer comes first.
        }
        let budget = &self.settings.log_budget;
        let overfull = budget.limit() != 0 && budget.used() > OVERFULL * budget.limit();
        if overfull && records.clone().next().is_some() {
            // Its own disk does not keep up: unacknowledged, the records come again later, and the
            // primary's log fills until it pushes back.
            return;
        }
        let matched = self.take_records(predecessor, records);
        self.mark_dirty(out);
        let Some(verified) = matched else {
            let at = predecessor.sequence.saturating_sub(1).min(self.log.last().sequence);
            let at = at.max(self.log.base().sequence);
            let position = self.log.position_of(at).unwrap_or(self.log.base());
            self.following.answer = Some((position, false));
            return;
        };
        self.following.verified = self.following.verified.max(verified);
        if planted(Bug::AckWhatIsNotVerified) {
            self.following.verified = self.log.last().sequence;
        }
        let position = self.log.position_of(self.following.verified).unwrap_or(self.log.base());
        self.following.answer = Some((position, true));
        self.following.trim = self.following.trim.max(trim);
        self.follow_commit(commit.sequence.min(self.following.verified));
        self.tick_copy_state(out);
        self.hurry(out);
    }

    /// Append what follows; says up to where the logs agree, or `None` when the predecessor differs.
    fn take_records(&mut self, predecessor: Position, records: Records<'_>) -> Option<u64> {
        let base = self.log.base();
        // Below the base everything is committed, so every primary has the same.
        let mut verified = if predecessor.sequence < base.sequence {
            self.commit.min(predecessor.sequence)
        } else if self.log.contains(predecessor)
            || (planted(Bug::PredecessorIgnored)
                && predecessor.sequence <= self.log.last().sequence)
        {
            predecessor.sequence
        } else {
            return None;
        };
        for (expected, bytes) in (predecessor.sequence + 1..).zip(records) {
            let Ok(record) = decode(bytes) else { return Some(verified) };
            let position = record.position();
            if position.sequence != expected {
                return Some(verified);
            }
            if position.sequence > base.sequence {
                match self.log.position_of(position.sequence) {
                    Some(same) if same == position => {}
                    Some(_) if planted(Bug::KeepDifferingRecord) => {}
                    Some(_) if position.sequence <= self.commit => {
                        self.fail(format!("the primary differs at the committed {position:?}"));
                        return Some(self.commit.min(verified));
                    }
                    Some(_) => {
                        self.log.cut_after(position.sequence - 1);
                        if self.log.append(position, bytes.into()).is_err() {
                            return Some(verified);
                        }
                    }
                    None => {
                        if self.log.append(position, bytes.into()).is_err() {
                            return Some(verified);
                        }
                    }
                }
            }
            verified = position.sequence;
        }
        Some(verified)
    }

    /// Records up to `sequence` are committed: into the tables.
    fn follow_commit(&mut self, sequence: u64) {
        if sequence <= self.commit {
            return;
        }
        for next in self.commit + 1..=sequence {
            self.apply_record(next);
            self.commit = next;
        }
        self.settle_snapshot();
        if self.log.len() > 256 {
            self.trim_log();
        }
    }

    /// Write the answers that are due.
    pub(super) fn emit_following(&mut self, links: &mut Links) {
        if !self.is_follower() {
            return;
        }
        let asks = self.awaits_offer() && self.following.offer_due;
        let listed = self.listed_session();
        let Some(entry) = &self.entry else { return };
        let header =
            Header { partition: self.index, epoch: entry.epoch, session: self.following.session };
        let Some(writer) = links.writer(entry.source()) else { return };
        self.following.offer_due = false;
        if asks {
            writer.answer(Header { session: listed, ..header }, Position::ZERO, false);
        }
        if let Some((position, matched)) = self.following.answer.take() {
            writer.answer(header, position, matched);
        }
        if let Some(index) = self.following.chunk_ack.take() {
            writer.chunk_ack(header, index);
        }
        if let Some(round) = self.following.confirm.take() {
            writer.confirmed(header, round);
        }
        if std::mem::take(&mut self.following.state_due) {
            let state = self.copy_state();
            writer.copy_state(header, state);
            self.following.persist_told = state.persisted;
            self.following.told_full = state.full.then_some(state.bytes);
        }
    }
}
