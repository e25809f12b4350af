//! The primary's half of replication: who has what, what is committed, what is sent next.
//!
//! A record commits when every complete copy, every tail and every copy that has been asked to become
//! a tail has it, and the table counts at least `min_in_sync` of them (PROTOCOL.md section 3). Only
//! acknowledgements of this epoch and session count. Callers: `node` for frames and sending,
//! `primary` after each append.

use std::collections::{BTreeMap, BTreeSet};

use smallvec::SmallVec;

use super::effects::Out;
use super::follower::{Follower, Kind, RESEND_MS, WINDOW_BYTES};
use super::partition::{Partition, Waiting};
use super::throttle::Throttle;
use crate::frame::peer::{Header, PEER_FRAME_BYTES_TARGET, PeerWriter};
use crate::log::Log;
use crate::planted::{Bug, planted};
use crate::record::Position;

/// Links to other copies, as the sending side sees them.
#[derive(Debug, Default)]
pub struct Links {
    /// Copies with an open outgoing link.
    pub up: BTreeSet<u64>,
    /// What is being written for each of them.
    pub writers: BTreeMap<u64, PeerWriter>,
    /// Snapshot pieces on their way to a copy, by partition.
    pub chunks: BTreeMap<u64, BTreeSet<u32>>,
    /// Partitions that wait until one of those has arrived.
    pub chunk_queue: BTreeMap<u64, BTreeSet<u32>>,
    /// How fast they go out, over all links.
    pub throttle: Throttle,
}

impl Links {
    /// Where to write messages for a copy, if its link is up.
    pub fn writer(&mut self, copy: u64) -> Option<&mut PeerWriter> {
        self.up.contains(&copy).then(|| self.writers.entry(copy).or_default())
    }
}

impl Partition {
    /// Make the list of followers what the table says; judge again what is committed.
    pub(super) fn update_followers(&mut self, now_ms: u64, out: &mut Out) {
        let Some(entry) = &self.entry else { return };
        let me = self.settings.copy;
        let mut wanted: BTreeMap<u64, (u64, Kind)> = BTreeMap::new();
        wanted
            .extend(entry.joining.iter().map(|(copy, session)| (*copy, (*session, Kind::Joining))));
        wanted.extend(entry.tails.iter().map(|tail| (tail.copy, (tail.session, Kind::Tail))));
        wanted.extend(entry.in_sync.iter().map(|copy| (*copy, (0, Kind::InSync))));
        wanted.remove(&me);
        let mut known: BTreeMap<u64, Follower> =
            std::mem::take(&mut self.followers).into_iter().map(|f| (f.copy, f)).collect();
        for (copy, (session, kind)) in wanted {
            let follower = match known.remove(&copy) {
                // A tail that became complete goes on under the session that it joined with.
                Some(mut same) if kind == Kind::InSync || same.session == session => {
                    same.asked = false;
                    if kind != Kind::Tail && same.transfer.take().is_some() {
                        out.chunks_over.push((copy, self.index));
                    }
                    same.kind = kind;
                    same.complete |= kind == Kind::InSync;
                    same
                }
                other => {
                    if let Some(follower) = other {
                        follower.end(self.index, out);
                    }
                    Follower::new(copy, session, kind, &self.log, now_ms)
                }
            };
            self.followers.push(follower);
        }
        for follower in known.into_values() {
            follower.end(self.index, out);
        }
        self.want_changes(false, out);
        self.try_commit(out);
        self.settle_persisted(out);
        self.settle_confirmed(out);
        self.trim_log();
        self.mark_dirty(out);
    }

    /// Commit what everybody who counts has.
    pub(super) fn try_commit(&mut self, out: &mut Out) {
        let last = self.log.last().sequence;
        let enough = usize::from(self.copies()) >= self.settings.min_in_sync
            || planted(Bug::MinInSyncIgnored);
        let mut held = last;
        let mut others = false;
        for follower in self.followers.iter().filter(|follower| follower.counts()) {
            held = held.min(follower.acked);
            others = true;
        }
        if enough && held > self.commit {
            self.commit_to(held, out);
        }
        self.alone = enough && !others && self.commit == last && self.fault.is_none();
    }

    /// Everything up to `sequence` is committed: into the tables with it, and out with the answers.
    fn commit_to(&mut self, sequence: u64, out: &mut Out) {
        for next in self.commit + 1..=sequence {
            self.apply_record(next);
            self.commit = next;
        }
        while self.waiting.front().is_some_and(|(waits_for, _)| *waits_for <= sequence) {
            match self.waiting.pop_front() {
                Some((waited_for, Waiting::Answer { origin, answer, .. })) => {
                    self.deliver(waited_for, origin, answer, out);
                }
                Some((_, Waiting::Ticket(ticket))) => out.settled.push(ticket),
                None => break,
            }
        }
        self.tell_full(out);
        if self.log.len() > 256 {
            self.trim_log();
        }
        self.want_handover(false, out);
    }

    /// Something waits for the commit of `sequence`.
    pub(super) fn wait(&mut self, sequence: u64, waiting: Waiting) {
        let at = self.waiting.partition_point(|(other, _)| *other <= sequence);
        self.waiting.insert(at, (sequence, waiting));
    }

    /// A follower says what it has, or where its log differs.
    pub fn on_answer(
        &mut self,
        copy: u64,
        header: Header,
        position: Position,
        matched: bool,
        now_ms: u64,
        out: &mut Out,
    ) {
        if !self.sends() || (header.epoch != self.epoch() && !planted(Bug::EpochIgnored)) {
            return;
        }
        let foreign = planted(Bug::EpochIgnored) && header.epoch != self.epoch();
        let log = &self.log;
        let Some(follower) = self.followers.iter_mut().find(|follower| {
            let same = follower.session == header.session;
            follower.copy == copy && (same || foreign || planted(Bug::SessionIgnored))
        }) else {
            return;
        };
        follower.heard_ms = now_ms;
        let loose = planted(Bug::AckWhatIsNotVerified) || planted(Bug::PredecessorIgnored);
        let ours = log.contains(position) || (loose && position.sequence <= log.last().sequence);
        if matched && ours {
            if !follower.started {
                follower.started = true;
                follower.next = position.sequence + 1;
                follower.goal = log.last().sequence;
            }
            if position.sequence > follower.acked {
                follower.owes_since_ms = 0;
            }
            acknowledge(follower, log, position.sequence);
        } else if follower.kind == Kind::Joining && !follower.started {
            // It has not accepted the offer yet, or not heard it; what it had before means nothing.
            follower.poke = true;
        } else {
            // Go on after its position if that is ours too, otherwise one before.
            let after =
                if log.contains(position) { position.sequence + 1 } else { position.sequence };
            let lowest = (follower.acked + 1).max(log.base().sequence + 1);
            // It would have said so of any later position, were this log's beginning in its own.
            follower.gap = position.sequence < log.base().sequence;
            follower.next = after.clamp(lowest, (log.last().sequence + 1).max(lowest));
            follower.in_flight = 0;
            follower.poke = !follower.gap || self.role == super::Role::Primary;
        }
        let last = log.last().sequence;
        let more = follower.poke
            || (follower.started && follower.next <= last)
            || (follower.kind == Kind::Tail && !follower.complete);
        if more {
            self.mark_dirty(out);
        }
        if self.role == super::Role::Primary {
            self.want_changes(false, out);
            self.try_commit(out);
        } else {
            self.want_served(false, out);
        }
    }

    /// Write everything that other copies should hear now.
    pub fn emit(&mut self, links: &mut Links) {
        self.dirty = false;
        self.emit_following(links);
        if !self.sends() || self.fault.is_some() {
            return;
        }
        let (commit, trim) = (self.commit(), self.trim_position());
        let (epoch, partition) = (self.epoch(), self.index);
        let mut followers = std::mem::take(&mut self.followers);
        for follower in &mut followers {
            let header = Header { partition, epoch, session: follower.session };
            if follower.kind == Kind::Joining
                && follower.started
                && follower.next <= self.log.base().sequence
            {
                // Too slow: what it needs next is gone. It begins again.
                follower.started = false;
                follower.asked = false;
                follower.poke = true;
            }
            if follower.kind == Kind::Joining && !follower.started {
                self.offer_join(follower, header, links);
            } else if let Some(writer) = links.writer(follower.copy) {
                send_records(follower, &self.log, header, commit, trim, writer);
                self.emit_chunk(follower, header, links);
            }
        }
        self.followers = followers;
        self.emit_persist(links);
        self.emit_confirm(links);
    }

    /// The link to a copy is fresh: everything not acknowledged goes again.
    pub fn peer_up(&mut self, copy: u64, out: &mut Out) {
        for follower in self.followers.iter_mut().filter(|follower| follower.copy == copy) {
            follower.rewind(&self.log);
            if let Some(transfer) = &mut follower.transfer {
                transfer.sent = false;
            }
        }
        if self.entry.as_ref().is_some_and(|entry| entry.source() == copy) {
            self.greet();
        }
        if self.role != super::Role::None {
            self.mark_dirty(out);
        }
    }

    /// Followers that were not heard of for long are sent to again; commit positions go out.
    pub(super) fn tick_followers(&mut self, now_ms: u64, out: &mut Out) {
        let (last, commit) = (self.log.last().sequence, self.commit);
        let mut due = false;
        for follower in &mut self.followers {
            let behind = !follower.started || follower.acked < last || follower.transfer.is_some();
            if behind && now_ms.saturating_sub(follower.heard_ms) >= RESEND_MS {
                follower.heard_ms = now_ms;
                follower.rewind(&self.log);
                if let Some(transfer) = &mut follower.transfer {
                    transfer.sent = false;
                }
            }
            if follower.started && follower.told_commit < commit {
                follower.poke = true;
            }
            due |= follower.poke;
        }
        if due {
            self.mark_dirty(out);
        }
    }
}

fn acknowledge(follower: &mut Follower, log: &Log, sequence: u64) {
    if sequence <= follower.acked {
        return;
    }
    let acked: usize = log
        .iter_from(follower.acked + 1)
        .take_while(|entry| entry.position.sequence <= sequence)
        .map(|entry| entry.bytes.len())
        .sum();
    follower.in_flight = follower.in_flight.saturating_sub(acked);
    follower.acked = sequence;
    follower.next = follower.next.max(sequence + 1);
}

/// Send what fits into the follower's window, as the bytes the records were appended with.
fn send_records(
    follower: &mut Follower,
    log: &Log,
    header: Header,
    commit: Position,
    trim: u64,
    writer: &mut PeerWriter,
) {
    loop {
        let Some(predecessor) = log.position_of(follower.next.saturating_sub(1)) else { return };
        let mut bytes = 0;
        let mut count = 0;
        // Before its first answer it is only asked where it is.
        if follower.started {
            for entry in log.iter_from(follower.next) {
                let size = entry.bytes.len();
                let first = count == 0;
                let window = follower.in_flight + bytes + size > WINDOW_BYTES;
                if (window && !(first && follower.in_flight == 0))
                    || (!first && bytes + size > PEER_FRAME_BYTES_TARGET)
                {
                    break;
                }
                bytes += size;
                count += 1;
            }
        }
        if count == 0 && !follower.poke {
            return;
        }
        let records: SmallVec<[&[u8]; 16]> =
            log.iter_from(follower.next).take(count).map(|entry| &*entry.bytes).collect();
        writer.append(header, predecessor, commit, trim, &records);
        follower.next += count as u64;
        follower.in_flight += bytes;
        follower.told_commit = commit.sequence;
        follower.poke = false;
    }
}
