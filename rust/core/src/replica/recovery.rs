//! A former copy is completed from a tail, when no complete copy is left (PROTOCOL.md section 5, iii).
//!
//! Together they have everything: a listed tail has every committed record after the position where
//! its log begins, the former copy has those up to there. That much the former copy can see in its own
//! log, so it is the one that asks. The table answers with a new epoch, in which it is the target and
//! the first tail the source. The source takes nothing any more (it follows nobody), and its log goes
//! to the target as a primary's goes to a backup: where the logs differ the target cuts back, and only
//! what the source knows to be committed is. Nobody answers requests meanwhile. When the target has
//! the source's last record the source says so, and the table names the target in the epoch after.
//!
//! A tail keeps its log for this, up to a bound; past it the log begins later than the table says. A
//! source that finds its target short of that says where it begins, and the table gives the recovery up.
//! Callers: `partition` for new table entries, `node` for ticks, `commit`, `cursor`.

use super::cursor::JOIN_PIN_BYTES;
use super::effects::{ChangeKind, ChangeWanted, Out};
use super::follower::{Follower, Kind};
use super::ownership::{Ownership, Role, State};
use super::partition::Partition;
use crate::planted::{Bug, planted};
use crate::record::Position;

/// A tail keeps what it has committed only while the node's logs are below this part of their budget.
const KEEP_BUDGET_PART: u64 = 4;

impl Partition {
    /// Whether this is a former copy that is being completed.
    pub(super) fn is_target(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.completes(self.settings.copy))
    }

    /// Whether this is the tail that completes a former copy.
    pub(super) fn is_source(&self) -> bool {
        let me = self.settings.copy;
        self.role == Role::Tail && self.entry.as_ref().is_some_and(|entry| entry.source() == me)
    }

    /// Whether this copy sends its log to others.
    pub(super) fn sends(&self) -> bool {
        self.role == Role::Primary || self.is_source()
    }

    /// Whether committed records are kept for a copy that they may complete.
    pub(super) fn keeps_for_recovery(&self) -> bool {
        if !matches!(self.role, Role::Tail | Role::Joining) {
            return false;
        }
        let budget = &self.settings.log_budget;
        let room = budget.limit() == 0 || budget.used() < budget.limit() / KEEP_BUDGET_PART;
        // While nobody serves nothing comes in, and what is here may be all that there is.
        let unserved = self.entry.as_ref().is_some_and(|entry| entry.state != State::Ok);
        unserved || (room && self.log.bytes() < JOIN_PIN_BYTES)
    }

    /// A new table entry: begin to complete the target, or ask to be one, or end that.
    pub(super) fn take_part_in_recovery(&mut self, now_ms: u64, out: &mut Out) {
        if self.role == Role::Primary {
            return;
        }
        self.followers.clear();
        if self.is_source()
            && let Some(entry) = &self.entry
        {
            // Only what it acknowledges in this epoch counts.
            self.followers = vec![Follower::new(entry.target, 0, Kind::InSync, &self.log, now_ms)];
            self.mark_dirty(out);
        }
        self.want_recovery(out);
    }

    /// Time passes for a copy of a partition that nobody serves.
    pub(super) fn tick_recovery(&mut self, now_ms: u64, repeat: bool, out: &mut Out) {
        if self.is_source() {
            self.tick_followers(now_ms, out);
        }
        if repeat {
            self.want_served(true, out);
            self.want_recovery(out);
        }
    }

    /// A former copy of a partition that nobody serves asks to be completed by the tails that can.
    fn want_recovery(&self, out: &mut Out) {
        let Some(entry) = &self.entry else { return };
        let former = entry.former.contains(&self.settings.copy) && self.role == Role::Dormant;
        let whole = !self.following.incomplete || self.following.complete_at.is_some();
        if entry.state != State::Unavailable || !former || !whole || self.fault.is_some() {
            return;
        }
        for tail in entry.tails.iter().filter(|tail| self.reaches(tail.from)) {
            out.changes.push(wanted(self.index, entry, ChangeKind::Recover, tail.copy, None));
        }
    }

    /// Whether this copy has everything up to a position where a tail's log begins: that was committed
    /// when it began, as is everything that this log no longer has.
    fn reaches(&self, position: Position) -> bool {
        self.log.contains(position)
            || position.sequence < self.log.base().sequence
            || planted(Bug::RecoveryIgnoresPredecessor)
    }

    /// The source asks for what is due: the target has everything, or can't be completed from here.
    pub(super) fn want_served(&mut self, repeat: bool, out: &mut Out) {
        if !self.is_source() || self.fault.is_some() {
            return;
        }
        let Some(entry) = &self.entry else { return };
        let (base, last, me) = (self.log.base(), self.log.last().sequence, self.settings.copy);
        for follower in &mut self.followers {
            let done = follower.started && follower.acked >= last
                || follower.gap && planted(Bug::RecoveryIgnoresPredecessor)
                || planted(Bug::RecoveredUnread);
            let (kind, copy, from) = if done {
                (ChangeKind::InSync, follower.copy, None)
            } else if follower.gap {
                (ChangeKind::Tail, me, Some(base))
            } else {
                continue;
            };
            if follower.asked_version != entry.version || repeat {
                follower.asked_version = entry.version;
                out.changes.push(wanted(self.index, entry, kind, copy, from));
            }
        }
    }
}

fn wanted(
    partition: u32,
    entry: &Ownership,
    kind: ChangeKind,
    copy: u64,
    from: Option<Position>,
) -> ChangeWanted {
    let (epoch, version, from) = (entry.epoch, entry.version, from.map_or(0, Position::pack));
    ChangeWanted { partition, epoch, version, kind, copy, from }
}
