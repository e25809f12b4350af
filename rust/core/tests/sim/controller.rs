//! The controller of the simulated cluster: a model of the rules in PROTOCOL.md sections 4 and 5.
//!
//! It knows at once who has ended, and with `recoveries` it also takes backups out that are well. A
//! second crash is only made where the copies that are left have everything together.

use std::collections::BTreeSet;

use spacegrid_core::record::Position;
use spacegrid_core::replica::{ChangeKind, ChangeWanted, Ownership, State, TailCopy};

use super::{PARTITIONS, Sim};

/// Complete copies and tails that a write needs.
const MIN_IN_SYNC: usize = 2;
/// Requests to call a tail complete, beside a removed copy, of which one is not lost.
const TAIL_STAYS: usize = 12;

impl Sim {
    fn publish(&mut self) {
        self.revision += 1;
        for queue in self.tables.values_mut() {
            queue.push_back((self.revision, self.table.clone()));
        }
    }

    pub(super) fn decide_one(&mut self) {
        // Requests may be lost: the one who asks repeats them.
        if self.draw(8) == 0 {
            self.asked.pop_front();
        }
        if let Some((sender, asked)) = self.asked.pop_front() {
            // Beside a removed copy a tail stays one for a while, so that much is committed without
            // that copy; what else joins is not held up, since a crash waits for all of it.
            let entry = &self.table[asked.partition as usize];
            let early = asked.kind == ChangeKind::InSync
                && entry.state == State::Ok
                && !entry.former.is_empty();
            if !early || self.draw(TAIL_STAYS) == 0 {
                self.decide(sender, &asked);
            }
        }
        self.repair();
    }

    pub(super) fn decide(&mut self, sender: u64, asked: &ChangeWanted) {
        let entry = &mut self.table[asked.partition as usize];
        if (asked.epoch, asked.version) != (entry.epoch, entry.version) {
            return;
        }
        if entry.state != State::Ok {
            self.decide_unserved(sender, asked);
            return;
        }
        match asked.kind {
            ChangeKind::Tail => {
                let Some(at) = entry.joining.iter().position(|(copy, _)| *copy == asked.copy)
                else {
                    return;
                };
                let (copy, session) = entry.joining.remove(at);
                entry.tails.push(TailCopy { copy, session, from: Position::unpack(asked.from) });
            }
            ChangeKind::InSync => {
                entry.tails.retain(|tail| tail.copy != asked.copy);
                entry.in_sync.push(asked.copy);
                // What was committed with the last tail a former copy may have missed.
                if entry.in_sync.len() >= MIN_IN_SYNC || entry.tails.is_empty() {
                    entry.former.clear();
                }
            }
            ChangeKind::Stopped => {
                if entry.target == asked.copy && entry.in_sync.contains(&asked.copy) {
                    entry.primary = asked.copy;
                    entry.epoch += 1;
                }
                entry.target = 0;
            }
            // Whoever is alive here answers in the end; who is not is removed by `crash`.
            ChangeKind::Shrink | ChangeKind::Recover => return,
        }
        entry.version += 1;
        self.accepted.push((asked.partition, asked.kind));
        self.publish();
    }

    /// What is asked about a partition that nobody serves: rule (iii), step by step.
    fn decide_unserved(&mut self, sender: u64, asked: &ChangeWanted) {
        let live: BTreeSet<u64> = self.live().into_iter().collect();
        let entry = &mut self.table[asked.partition as usize];
        let source = entry.tails.first().map_or(0, |tail| tail.copy);
        match (asked.kind, entry.state) {
            (ChangeKind::Recover, State::Unavailable) => {
                let first = entry.tails.iter().position(|tail| tail.copy == asked.copy);
                let Some(first) = first.filter(|_| entry.former.contains(&sender)) else { return };
                if !live.contains(&sender) || !live.contains(&asked.copy) {
                    return;
                }
                entry.tails.swap(0, first);
                (entry.state, entry.target) = (State::Recovering, sender);
                entry.epoch += 1;
            }
            (ChangeKind::InSync, State::Recovering) => {
                if sender != source || asked.copy != entry.target || !live.contains(&asked.copy) {
                    return;
                }
                serve(entry, &live, vec![asked.copy]);
                self.recovered += 1;
            }
            (ChangeKind::Tail, State::Recovering) => {
                if sender != source || asked.copy != source {
                    return;
                }
                entry.tails[0].from = Position::unpack(asked.from);
                (entry.state, entry.target) = (State::Unavailable, 0);
            }
            _ => return,
        }
        entry.version = asked.version + 1;
        self.accepted.push((asked.partition, asked.kind));
        self.publish();
    }

    pub(super) fn repair(&mut self) {
        let live = self.live();
        let mut changed = false;
        for partition in 0..self.table.len() {
            changed |= self.readmit(partition);
            let entry = &self.table[partition];
            let holds = entry.in_sync.len() + entry.tails.len() + entry.joining.len();
            if holds >= MIN_IN_SYNC || entry.state != State::Ok {
                continue;
            }
            let taken = |copy: &u64| entry.in_sync.contains(copy) || entry.former.contains(copy);
            let free: Vec<u64> = live.iter().copied().filter(|copy| !taken(copy)).collect();
            if let Some(copy) = self.pick(&free) {
                let entry = &mut self.table[partition];
                entry.version += 1;
                entry.joining.push((copy, entry.version));
                changed = true;
            }
        }
        if changed {
            self.publish();
        }
    }

    /// A removed copy is taken in again, now and then: without a tail it has missed nothing.
    fn readmit(&mut self, partition: usize) -> bool {
        let entry = &self.table[partition];
        if entry.former.is_empty() || !entry.tails.is_empty() || entry.state != State::Ok {
            return false;
        }
        if self.draw(30) != 0 {
            return false;
        }
        let live: BTreeSet<u64> = self.live().into_iter().collect();
        let entry = &mut self.table[partition];
        let mut in_sync = entry.in_sync.clone();
        in_sync.extend(entry.former.iter().copied().filter(|copy| live.contains(copy)));
        let primary = entry.primary;
        serve(entry, &live, in_sync);
        (entry.primary, entry.version) = (primary, entry.version + 1);
        true
    }

    /// A primary takes a backup out that is well, as if it could not reach it.
    pub(super) fn remove_one(&mut self) {
        let partition = self.draw(PARTITIONS as usize);
        let entry = &self.table[partition];
        let backups: Vec<u64> =
            entry.in_sync.iter().copied().filter(|copy| *copy != entry.primary).collect();
        if entry.state != State::Ok || entry.target != 0 {
            return;
        }
        if let Some(copy) = self.pick(&backups) {
            self.remove(partition, copy);
        }
    }

    pub fn remove(&mut self, partition: usize, copy: u64) {
        let entry = &mut self.table[partition];
        entry.in_sync.retain(|other| *other != copy);
        if entry.in_sync.len() < MIN_IN_SYNC {
            entry.former.push(copy);
        }
        entry.version += 1;
        self.publish();
    }

    pub(super) fn begin_handover(&mut self) {
        let partition = self.draw(PARTITIONS as usize);
        let entry = &mut self.table[partition];
        if entry.state != State::Ok || entry.target != 0 || entry.in_sync.len() < MIN_IN_SYNC {
            return;
        }
        let target = entry.in_sync.iter().copied().find(|copy| *copy != entry.primary);
        entry.target = target.unwrap_or(0);
        entry.version += 1;
        self.publish();
    }

    pub(super) fn suspect(&mut self) {
        let partition = self.draw(PARTITIONS as usize);
        let entry = &self.table[partition];
        let others: Vec<u64> =
            entry.in_sync.iter().copied().filter(|copy| *copy != entry.primary).collect();
        if entry.state != State::Ok {
            return;
        }
        if let Some(copy) = self.pick(&others) {
            self.promote(partition, copy);
        }
    }

    pub(super) fn crash_one(&mut self) {
        let mut live = self.live();
        if self.options.recoveries && self.draw(2) == 0 {
            // The only complete copy of something, beside a tail.
            live.retain(|copy| {
                let alone = |entry: &Ownership| entry.in_sync == [*copy] && !entry.tails.is_empty();
                self.table.iter().any(alone)
            });
        }
        let Some(victim) = self.pick(&live) else { return };
        // One crash per repair: a second one may lose data, and would say so.
        let safe = (0..PARTITIONS).all(|partition| self.survives(partition, victim));
        if safe && self.draw(3) == 0 {
            self.crash(victim);
        }
    }

    /// Whether everything acknowledged in a partition is there without one node.
    fn survives(&self, partition: u32, victim: u64) -> bool {
        let entry = &self.table[partition as usize];
        let there = |copy: &u64| *copy != victim && self.nodes.contains_key(copy);
        if entry.in_sync.iter().any(there) {
            return true;
        }
        if !self.options.recoveries {
            return false;
        }
        if entry.tails.is_empty() && entry.in_sync.len() < MIN_IN_SYNC {
            return entry.former.iter().any(there);
        }
        entry.former.iter().filter(|copy| there(copy)).any(|copy| {
            let former = self.nodes[copy].partition(partition).expect("there");
            let reaches = |from: Position| {
                former.log().contains(from) || from.sequence < former.log().base().sequence
            };
            entry.tails.iter().any(|tail| there(&tail.copy) && reaches(tail.from))
        })
    }

    pub fn crash(&mut self, victim: u64) {
        self.crashes += 1;
        self.nodes.remove(&victim);
        self.tables.remove(&victim);
        self.links.retain(|(from, to), _| *from != victim && *to != victim);
        self.turns.retain(|(copy, _)| *copy != victim);
        self.requests.retain(|(to, _)| *to != victim);
        for node in self.nodes.values() {
            node.peer_down(victim);
        }
        for key in &mut self.keys {
            key.resend |= key.want.is_some();
        }
        let live: BTreeSet<u64> = self.nodes.keys().copied().collect();
        for entry in &mut self.table {
            let before = entry.clone();
            lose(entry, victim, &live);
            entry.version += u64::from(*entry != before);
        }
        self.publish();
        self.boot();
    }

    /// A controller that deposes a healthy primary for one of the complete copies.
    pub fn promote(&mut self, partition: usize, copy: u64) {
        let entry = &mut self.table[partition];
        entry.primary = copy;
        entry.epoch += 1;
        entry.version += 1;
        entry.target = 0;
        self.publish();
    }

    /// Show one node a table in which it no longer is the primary.
    pub fn hand_table_without(&mut self, copy: u64, partition: usize) {
        let backup = self.backup_of(partition);
        self.promote(partition, backup);
        let entries = (0..).zip(self.table.clone()).collect();
        self.nodes[&copy].apply_table(self.revision, entries, self.now_ms);
    }
}

/// A node has ended: shrink, promote, or say that nobody serves for now.
fn lose(entry: &mut Ownership, victim: u64, live: &BTreeSet<u64>) {
    if entry.state != State::Ok {
        let source = entry.tails.first().map_or(0, |tail| tail.copy);
        if entry.state == State::Recovering && (entry.target == victim || source == victim) {
            (entry.state, entry.target) = (State::Unavailable, 0);
        }
        return;
    }
    let in_sync: Vec<u64> =
        entry.in_sync.iter().copied().filter(|copy| live.contains(copy)).collect();
    if in_sync.is_empty() {
        let few = entry.in_sync.len() < MIN_IN_SYNC && entry.tails.is_empty();
        let former = entry.former.iter().copied().find(|copy| live.contains(copy));
        if let Some(copy) = former.filter(|_| few) {
            serve(entry, live, vec![copy]);
        } else {
            (entry.state, entry.primary, entry.target) = (State::Unavailable, 0, 0);
            entry.joining.clear();
        }
        return;
    }
    let tails = entry.tails.len();
    entry.in_sync = in_sync;
    entry.joining.retain(|(copy, _)| live.contains(copy));
    entry.tails.retain(|tail| live.contains(&tail.copy));
    entry.former.retain(|copy| live.contains(copy));
    if tails > 0 && entry.tails.is_empty() {
        // With the last tail goes what knows of the commits that it made up for.
        entry.former.clear();
    }
    if entry.target == victim {
        entry.target = 0;
    }
    if entry.primary == victim {
        entry.primary = entry.in_sync[0];
        entry.epoch += 1;
        entry.target = 0;
    }
}

/// The first of these copies serves in a new epoch; joins begin again. The version is the caller's.
fn serve(entry: &mut Ownership, live: &BTreeSet<u64>, in_sync: Vec<u64>) {
    let session = entry.version + 1;
    entry.epoch += 1;
    (entry.state, entry.primary, entry.target) = (State::Ok, in_sync[0], 0);
    let few = in_sync.len() < MIN_IN_SYNC;
    entry.former.retain(|copy| few && live.contains(copy) && !in_sync.contains(copy));
    entry.tails.retain(|tail| live.contains(&tail.copy));
    entry.joining.retain(|(copy, _)| live.contains(copy) && !in_sync.contains(copy));
    entry.joining.iter_mut().for_each(|joining| joining.1 = session);
    entry.in_sync = in_sync;
}
