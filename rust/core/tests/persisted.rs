//! Durability: answers that wait for the copies' disks, and what the shared pump may read.
//!
//! Goal: a persisted answer leaves after the last disk has the record, never before. Method: a
//! primary and its backup, joined by hand, whose disks are a call of the test.

mod common;

use std::collections::BTreeMap;

use spacegrid_core::frame::reply::{self, status};
use spacegrid_core::frame::request::FLAG_PERSISTED;
use spacegrid_core::frame::{Opcode, Operation, ReplyFrame};
use spacegrid_core::record::Position;
use spacegrid_core::replica::{Config, LOCAL, Node, Ownership, Ring, Role, SHARED, State};

use common::{frame_of, operation};

struct Pair {
    nodes: BTreeMap<u64, Node>,
    now_ms: u64,
    version: u64,
    number: u64,
}

fn node(copy: u64, local_sink: bool, quota_bytes: u64) -> Node {
    Node::new(&Config {
        copy,
        partition_count: 1,
        min_in_sync: 1,
        quota_bytes,
        log_bytes: 0,
        shared_sink: true,
        local_sink,
    })
    .expect("a valid configuration")
}

impl Pair {
    fn new(disks: [bool; 2], quotas: [u64; 2]) -> Self {
        let nodes = (1..=2).zip(disks).zip(quotas);
        let nodes = nodes.map(|((copy, disk), quota)| (copy, node(copy, disk, quota))).collect();
        let mut pair = Self { nodes, now_ms: 1000, version: 0, number: 0 };
        pair.table(Ownership { epoch: 1, primary: 1, in_sync: vec![1, 2], ..Ownership::default() });
        pair.nodes[&1].peer_up(2);
        pair.nodes[&2].peer_up(1);
        pair.exchange();
        pair
    }

    fn table(&mut self, entry: Ownership) {
        self.version += 1;
        let entry = Ownership { state: State::Ok, version: self.version, ..entry };
        for node in self.nodes.values() {
            node.apply_table(self.version, vec![(0, entry.clone())], self.now_ms);
        }
    }

    /// Carry everything to where it goes, time passing, until it is quiet; the replies.
    fn exchange(&mut self) -> Vec<(u64, u8, u8)> {
        let mut replies = Vec::new();
        for _ in 0..4 {
            self.now_ms += 10;
            for node in self.nodes.values() {
                node.tick(self.now_ms);
            }
            let mut busy = true;
            while busy {
                busy = false;
                for copy in [1, 2] {
                    let Some(effects) = self.nodes[&copy].take_effects(true, || 0) else {
                        continue;
                    };
                    busy = true;
                    for (to, frame) in effects.peer_frames {
                        let taken = self.nodes[&to].on_peer_frame(copy, &frame, self.now_ms);
                        taken.expect("a valid frame");
                    }
                    for (_, frame) in effects.client_frames {
                        let frame = ReplyFrame::decode(&frame).expect("a valid frame");
                        replies.extend(
                            frame
                                .replies()
                                .map(|r| (r.number, r.status, r.flags & reply::FLAG_PERSISTED)),
                        );
                    }
                }
            }
            for node in self.nodes.values() {
                node.check();
            }
        }
        replies
    }

    fn ask(&mut self, to: u64, number: u64, flags: u8, value: &[u8]) -> Vec<(u64, u8, u8)> {
        let frame = frame_of(&Operation { flags, ..operation(Opcode::Put, number, b"tea", value) });
        self.nodes[&to].on_client_frame(5, &frame, self.now_ms).expect("a valid frame");
        self.exchange()
    }

    fn put(&mut self, flags: u8) -> (u64, Vec<(u64, u8, u8)>) {
        self.number += 1;
        (self.number, self.ask(1, self.number, flags, b"value"))
    }

    /// What the local pump of a copy does: everything committed is on its disk.
    fn persist(&self, copy: u64) {
        let commit = self.nodes[&copy].partition(0).expect("a partition").commit();
        self.persist_to(copy, commit);
    }

    fn persist_to(&self, copy: u64, position: Position) {
        self.nodes[&copy].set_persisted(0, position);
    }

    fn rings(&self, copy: u64) -> Ring {
        std::mem::take(&mut *self.nodes[&copy].doorbell().ring.lock())
    }
}

#[test]
fn a_persisted_answer_waits_for_every_disk_and_a_replicated_one_for_none() {
    let mut pair = Pair::new([true, true], [0, 0]);
    let (number, replies) = pair.put(0);
    assert_eq!(replies, [(number, status::OK, 0)]);
    assert_eq!((pair.rings(1), pair.rings(2)), (Ring::Silent, Ring::Silent));
    let (number, replies) = pair.put(FLAG_PERSISTED);
    assert_eq!(replies, []);
    assert_eq!((pair.rings(1), pair.rings(2)), (Ring::Asked, Ring::Asked));
    pair.persist(1);
    assert_eq!(pair.exchange(), []);
    assert!(!pair.nodes[&1].idle());
    pair.persist(2);
    assert_eq!(pair.exchange(), [(number, status::OK, reply::FLAG_PERSISTED)]);
    assert!(pair.nodes[&1].idle());
}

#[test]
fn a_repeat_waits_for_the_level_that_it_asks_for() {
    let mut pair = Pair::new([true, true], [0, 0]);
    let (number, replies) = pair.put(0);
    assert_eq!(replies, [(number, status::OK, 0)]);
    assert_eq!(pair.ask(1, number, FLAG_PERSISTED, b"value"), []);
    assert_eq!(pair.ask(1, number, 0, b"value"), [(number, status::OK, 0)]);
    pair.persist(1);
    pair.persist(2);
    assert_eq!(pair.exchange(), [(number, status::OK, reply::FLAG_PERSISTED)]);
    let other = pair.ask(1, number, FLAG_PERSISTED, b"other");
    assert_eq!(other, [(number, status::TOKEN_REUSED, 0)]);
}

#[test]
fn a_disk_that_has_not_got_there_does_not_count() {
    let mut pair = Pair::new([true, true], [0, 0]);
    let (first, _) = pair.put(FLAG_PERSISTED);
    let at = pair.nodes[&1].partition(0).expect("a partition").commit();
    let (second, _) = pair.put(FLAG_PERSISTED);
    for copy in [1, 2] {
        pair.persist_to(copy, at);
        // Not in the log: of another history.
        pair.persist_to(copy, Position { epoch: 7, sequence: at.sequence + 1 });
    }
    assert_eq!(pair.exchange(), [(first, status::OK, reply::FLAG_PERSISTED)]);
    pair.persist(1);
    pair.persist(2);
    assert_eq!(pair.exchange(), [(second, status::OK, reply::FLAG_PERSISTED)]);
}

#[test]
fn a_deposed_primary_says_unknown_and_the_next_one_answers_the_repeat() {
    let mut pair = Pair::new([true, true], [0, 0]);
    let (number, replies) = pair.put(FLAG_PERSISTED);
    assert_eq!(replies, []);
    pair.table(Ownership { epoch: 2, primary: 2, in_sync: vec![1, 2], ..Ownership::default() });
    assert_eq!(pair.exchange(), [(number, status::UNKNOWN, 0)]);
    assert_eq!(pair.ask(2, number, FLAG_PERSISTED, b"value"), []);
    pair.persist(1);
    pair.persist(2);
    assert_eq!(pair.exchange(), [(number, status::OK, reply::FLAG_PERSISTED)]);
}

#[test]
fn a_lost_request_to_persist_is_repeated() {
    let mut pair = Pair::new([true, true], [0, 0]);
    pair.nodes[&1].peer_down(2);
    pair.persist(1);
    let (number, replies) = pair.put(FLAG_PERSISTED);
    assert_eq!(replies, []);
    pair.nodes[&1].peer_up(2);
    assert_eq!(pair.exchange(), []);
    pair.persist(1);
    assert_eq!(pair.rings(2), Ring::Asked);
    // What the backup says of its disk is lost with its link.
    pair.nodes[&2].peer_down(1);
    pair.persist(2);
    assert_eq!(pair.exchange(), []);
    pair.nodes[&2].peer_up(1);
    assert_eq!(pair.exchange(), [(number, status::OK, reply::FLAG_PERSISTED)]);
}

#[test]
fn without_a_disk_persisted_is_refused_and_nothing_is_written() {
    for disks in [[false, false], [true, false]] {
        let mut pair = Pair::new(disks, [0, 0]);
        let (number, replies) = pair.put(FLAG_PERSISTED);
        assert_eq!(replies, [(number, status::DURABILITY_UNAVAILABLE, 0)]);
        assert_eq!(pair.nodes[&1].status().entries, 0);
        let (number, replies) = pair.put(0);
        assert_eq!(replies, [(number, status::OK, 0)]);
    }
}

#[test]
fn the_shared_pump_reads_what_every_disk_has() {
    let mut pair = Pair::new([true, true], [0, 0]);
    pair.put(0);
    let read = |pair: &Pair| {
        let partition = pair.nodes[&1].partition(0).expect("a partition");
        let count = partition.read_log(SHARED, 10, 1000).map_or(0, |batch| batch.records.len());
        assert_eq!(count > 0, partition.pump_ready(SHARED));
        assert_eq!(count > 0, partition.shared_may_read(1));
        count
    };
    for name in [SHARED, LOCAL] {
        let mut partition = pair.nodes[&1].partition(0).expect("a partition");
        assert!(partition.set_cursor(name, Position::ZERO));
    }
    assert_eq!(read(&pair), 0);
    pair.persist(1);
    pair.exchange();
    assert_eq!(read(&pair), 0);
    pair.persist(2);
    pair.exchange();
    assert_eq!(read(&pair), 1);
}

#[test]
fn a_copy_that_spoke_of_its_disk_before_the_primary_knew_its_epoch_is_asked_again() {
    let mut pair = Pair::new([true, true], [0, 0]);
    pair.put(0);
    pair.persist(1);
    pair.persist(2);
    pair.exchange();
    pair.version += 1;
    let entry = Ownership {
        epoch: 2,
        primary: 2,
        in_sync: vec![1, 2],
        state: State::Ok,
        version: pair.version,
        ..Ownership::default()
    };
    // The old primary hears of the hand-over first, and greets a copy that knows nothing of it.
    for copy in [1, 2] {
        pair.nodes[&copy].apply_table(pair.version, vec![(0, entry.clone())], pair.now_ms);
        pair.exchange();
    }
    let may_read =
        |pair: &Pair| pair.nodes[&2].partition(0).expect("a partition").shared_may_read(1);
    assert!(!may_read(&pair), "the news of the disk was not lost: this shows nothing");
    pair.now_ms += 1000;
    pair.exchange();
    assert!(may_read(&pair));
    assert_eq!(pair.rings(1), Ring::Silent, "nobody waits for the disk");
}

/// The second copy leaves and joins again: its snapshot is complete, and not on its disk yet.
fn with_a_complete_tail() -> Pair {
    let mut pair = Pair::new([true, true], [0, 0]);
    pair.table(Ownership { epoch: 1, primary: 1, in_sync: vec![1], ..Ownership::default() });
    pair.put(0);
    pair.table(Ownership {
        epoch: 1,
        primary: 1,
        in_sync: vec![1],
        joining: vec![(2, pair.version + 1)],
        ..Ownership::default()
    });
    let session = pair.version;
    pair.exchange();
    let from = Position::ZERO;
    let tail = spacegrid_core::replica::TailCopy { copy: 2, session, from };
    let entry = Ownership {
        epoch: 1,
        primary: 1,
        in_sync: vec![1],
        tails: vec![tail],
        ..Ownership::default()
    };
    pair.table(entry);
    pair.exchange();
    pair.now_ms += 1000;
    pair
}

#[test]
fn what_is_persisted_is_on_the_disk_of_a_copy_that_is_about_to_be_in_sync() {
    let mut pair = with_a_complete_tail();
    let (number, replies) = pair.put(FLAG_PERSISTED);
    assert_eq!(replies, []);
    pair.persist(1);
    assert_eq!(pair.exchange(), [], "the other disk may be the only one soon");
    assert!(!pair.nodes[&1].partition(0).expect("a partition").shared_may_read(number));
    pair.persist(2);
    assert_eq!(pair.exchange(), [(number, status::OK, reply::FLAG_PERSISTED)]);
}

#[test]
fn a_copy_is_called_in_sync_when_its_disk_has_it() {
    let mut pair = with_a_complete_tail();
    let wants = |pair: &mut Pair| {
        pair.now_ms += 1000;
        pair.nodes[&1].tick(pair.now_ms);
        let changes = pair.nodes[&1].take_effects(true, || 0).map(|effects| effects.changes);
        changes.unwrap_or_default().len()
    };
    assert_eq!(wants(&mut pair), 0);
    // Its pump is told to write a copy that is whole, though the table says it is a tail.
    assert_eq!(pair.rings(2), Ring::Asked);
    assert_eq!(pair.nodes[&2].roles()[0].role, Role::Backup);
    pair.persist(2);
    pair.exchange();
    assert_eq!(wants(&mut pair), 1);
}
