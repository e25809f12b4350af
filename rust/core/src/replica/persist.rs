//! Durability: how far each copy's own disk has got, and the answers that wait for it.
//!
//! A `persisted` answer leaves when every complete copy, this one included, has fsynced the record
//! in its own store. A follower says how far it is in a COPY STATE message; the primary asks it to
//! hurry (PERSIST) when somebody waits. Only committed records are on disk, and those are the same
//! everywhere, so a sequence says it all. With local disks on, the shared pump reads only up to
//! there, so that a restart from the disks is never behind the database (PROTOCOL.md section 10).
//! Callers: `node` for the pump and for frames, `commit`, `primary`, `turn`.

use parking_lot::{Condvar, Mutex};

use super::commit::Links;
use super::effects::Out;
use super::follower::{Kind, RESEND_MS};
use super::ownership::Role;
use super::partition::Partition;
use super::request::{Answer, Origin};
use crate::frame::peer::{CopyState, Header};
use crate::frame::reply::status;
use crate::planted::{Bug, planted};
use crate::record::Position;

/// Why the local pump was woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Ring {
    /// It was not.
    #[default]
    Silent,
    /// Somebody wants its attention.
    Woken,
    /// An answer waits for the disk.
    Asked,
}

/// Where the local pump waits and others ring.
#[derive(Debug, Default)]
pub struct Doorbell {
    /// The loudest ring since the pump looked last.
    pub ring: Mutex<Ring>,
    /// Notified with each ring.
    pub bell: Condvar,
}

impl Doorbell {
    /// Wake the pump.
    pub fn ring(&self, ring: Ring) {
        let mut known = self.ring.lock();
        if *known < ring {
            *known = ring;
            self.bell.notify_all();
        }
    }
}

impl Partition {
    /// Sequence up to which every complete copy with a disk has fsynced the records.
    ///
    /// A tail with a complete snapshot is one of them: soon its disk may be the only one that is left.
    pub(super) fn persisted_everywhere(&self) -> u64 {
        if !self.settings.local_sink || planted(Bug::PersistedIsIgnored) {
            return self.commit;
        }
        if planted(Bug::PersistedByOneDisk) {
            return self.persisted;
        }
        self.followers
            .iter()
            .filter(|follower| follower.vouches() && follower.disk != Some(false))
            .map(|follower| follower.persisted)
            .fold(self.persisted, u64::min)
    }

    /// Whether every complete copy has a disk, as far as is known.
    pub(super) fn can_persist(&self) -> bool {
        let disk = |f: &super::follower::Follower| f.kind != Kind::InSync || f.disk != Some(false);
        self.settings.local_sink && self.followers.iter().all(disk)
    }

    /// Sequence up to which the shared pump may read.
    pub(super) fn shared_limit(&self) -> u64 {
        self.commit.min(self.persisted_everywhere())
    }

    /// Whether a shared sink may have what was committed up to `sequence`.
    pub fn shared_may_read(&self, sequence: u64) -> bool {
        self.persisted_everywhere() >= sequence
    }

    /// Send an answer whose record is committed, at once or when it is as durable as was asked.
    pub(super) fn deliver(&mut self, sequence: u64, origin: Origin, answer: Answer, out: &mut Out) {
        let holds = origin.persisted && answer.status == status::OK;
        if !holds || self.persisted_everywhere() >= sequence {
            out.reply(origin, &answer.reply(origin, self.copies()));
            return;
        }
        let at = self.unpersisted.partition_point(|(other, ..)| *other <= sequence);
        self.unpersisted.insert(at, (sequence, origin, answer));
        self.ask_to_persist(out);
    }

    /// Somebody waits for the disks: wake the own pump, and tell the followers.
    fn ask_to_persist(&mut self, out: &mut Out) {
        let Some((wanted, ..)) = self.unpersisted.back() else { return };
        let wanted = *wanted;
        out.persist |= self.persisted < wanted;
        let mut due = false;
        for follower in self.followers.iter_mut().filter(|follower| follower.vouches()) {
            if follower.persisted < wanted && follower.persist_asked < wanted {
                follower.persist_due = true;
                // It writes what it knows to be committed.
                follower.poke = true;
                due = true;
            }
        }
        if due {
            self.mark_dirty(out);
        }
    }

    /// Send the answers whose records are on every disk now.
    pub(super) fn settle_persisted(&mut self, out: &mut Out) {
        if self.unpersisted.is_empty() {
            return;
        }
        if !self.can_persist() {
            // A copy without a disk came in meanwhile: what is replicated will not be persisted.
            self.drop_unpersisted(out);
            return;
        }
        let (persisted, copies) = (self.persisted_everywhere(), self.copies());
        while self.unpersisted.front().is_some_and(|(sequence, ..)| *sequence <= persisted) {
            if let Some((_, origin, answer)) = self.unpersisted.pop_front() {
                out.reply(origin, &answer.reply(origin, copies));
            }
        }
        self.ask_to_persist(out);
        self.want_handover(false, out);
    }

    /// What waits for the disks is answered as unknown.
    pub(super) fn drop_unpersisted(&mut self, out: &mut Out) {
        for (_, origin, _) in std::mem::take(&mut self.unpersisted) {
            out.refuse(origin, status::UNKNOWN, 0);
        }
    }

    /// This node's own disk has the records up to `position`, fsynced.
    pub fn set_persisted(&mut self, position: Position, out: &mut Out) {
        let sequence = position.sequence;
        if sequence <= self.persisted || sequence > self.commit || !self.log.contains(position) {
            return;
        }
        self.persisted = sequence;
        match self.role {
            Role::Primary => self.settle_persisted(out),
            Role::Backup | Role::Tail => {
                let asked = self.following.persist_wanted > self.following.persist_told;
                if self.settings.shared_sink || asked || self.role == Role::Tail {
                    self.following.state_due = true;
                    self.mark_dirty(out);
                }
            }
            Role::None | Role::Joining | Role::Dormant => {}
        }
    }

    /// The primary asks how far the disk is; somebody waits for it up to `sequence` (0: nobody).
    pub fn on_persist(&mut self, copy: u64, header: Header, sequence: u64, out: &mut Out) {
        if !self.follows(copy, header) || header.session != self.following.session {
            return;
        }
        self.following.persist_wanted = self.following.persist_wanted.max(sequence);
        self.following.state_due = true;
        self.mark_dirty(out);
        self.hurry(out);
    }

    /// Wake the own pump if the primary waits for it, or a snapshot that is complete does.
    pub(super) fn hurry(&self, out: &mut Out) {
        let following = &self.following;
        let asked = following.persist_wanted > self.persisted && self.commit > self.persisted;
        let joined = self.role == Role::Tail && self.is_complete();
        out.persist |=
            self.settings.local_sink && (asked || joined && self.commit > self.persisted);
    }

    /// A follower says how far its disk is, and whether it has room.
    pub fn on_copy_state(
        &mut self,
        copy: u64,
        header: Header,
        state: CopyState,
        now_ms: u64,
        out: &mut Out,
    ) {
        if self.role != Role::Primary || header.epoch != self.epoch() {
            return;
        }
        let last = self.log.last().sequence;
        let Some(follower) =
            self.followers.iter_mut().find(|f| f.copy == copy && f.session == header.session)
        else {
            return;
        };
        follower.heard_ms = now_ms;
        follower.disk = Some(state.disk);
        follower.full_at = state.full.then_some(state.bytes);
        follower.persisted = follower.persisted.max(state.persisted.min(last));
        self.settle_persisted(out);
        self.want_changes(false, out);
    }

    /// Followers that were asked and do not answer are asked again.
    ///
    /// So is one that has said nothing of its disk: it may have told this epoch's primary before that
    /// one knew it was, and without news of its disk the shared pump would wait forever.
    pub(super) fn tick_persist(&mut self, now_ms: u64, out: &mut Out) {
        let waiting = !self.unpersisted.is_empty();
        let mut due = false;
        for follower in &mut self.followers {
            if now_ms.saturating_sub(follower.persist_asked_ms) < RESEND_MS {
                continue;
            }
            let unheard = follower.disk.is_none()
                && follower.kind != Kind::Joining
                && !planted(Bug::DiskNewsNotAskedAgain);
            if waiting || unheard {
                follower.persist_asked_ms = now_ms;
                follower.persist_asked = 0;
                follower.persist_due |= unheard;
                due |= unheard;
            }
        }
        if due {
            self.mark_dirty(out);
        }
        if waiting {
            self.ask_to_persist(out);
        }
    }

    /// Ask the followers that are due to be asked, behind the records and the commit position: to
    /// persist what answers wait for (0: nothing), and how far their disks are.
    pub(super) fn emit_persist(&mut self, links: &mut Links) {
        let wanted = self.unpersisted.back().map_or(0, |(wanted, ..)| *wanted);
        let (epoch, partition) = (self.epoch(), self.index);
        for follower in self.followers.iter_mut().filter(|follower| follower.persist_due) {
            if let Some(writer) = links.writer(follower.copy) {
                writer.persist(Header { partition, epoch, session: follower.session }, wanted);
                follower.persist_due = false;
                follower.persist_asked = wanted;
            }
        }
    }

    /// What a follower says of itself.
    pub(super) fn copy_state(&self) -> CopyState {
        let early = planted(Bug::PersistedBeforeFsync);
        CopyState {
            persisted: if early { self.commit } else { self.persisted },
            disk: self.settings.local_sink,
            full: self.settings.quota.is_full(),
            bytes: self.store.bytes() as u64,
        }
    }

    /// Say so when this node's memory has filled up, has room again, or took more though it is full.
    pub(super) fn tick_copy_state(&mut self, out: &mut Out) {
        let state = self.copy_state();
        let news = match self.following.told_full {
            Some(told) => !state.full || state.bytes > told,
            None => state.full,
        };
        if news && matches!(self.role, Role::Backup | Role::Tail) {
            self.following.state_due = true;
            self.mark_dirty(out);
        }
    }
}
