//! Memory at its quota: what is refused, on whose behalf, and how soon deletes make room (F33).
//!
//! Goal: a write that a copy has no room for is refused before any copy appends it, and room that
//! deletes made is used at once. Method: a primary and its backup whose frames are carried one by one,
//! so that the test decides how old the primary's news of its backup is.

mod common;

use spacegrid_core::frame::reply::status;
use spacegrid_core::frame::{Opcode, ReplyFrame};
use spacegrid_core::replica::{Config, Node, Ownership, State};

use common::{frame_of, operation};

const ENTRY: &[u8] = &[7; 1000];

struct Pair {
    primary: Node,
    backup: Node,
    now_ms: u64,
    number: u64,
    replies: Vec<(u64, u8)>,
}

fn node(copy: u64, quota_bytes: u64) -> Node {
    let node = Node::new(&Config {
        copy,
        partition_count: 1,
        min_in_sync: 2,
        quota_bytes,
        log_bytes: 0,
        shared_sink: false,
        local_sink: false,
    });
    node.expect("a valid configuration")
}

impl Pair {
    fn new(quotas: [u64; 2]) -> Self {
        let (primary, backup) = (node(1, quotas[0]), node(2, quotas[1]));
        let mut pair = Self { primary, backup, now_ms: 1000, number: 0, replies: Vec::new() };
        pair.table(1, 1);
        pair.primary.peer_up(2);
        pair.backup.peer_up(1);
        pair.settle();
        pair
    }

    fn table(&self, epoch: u32, primary: u64) {
        let (version, in_sync) = (u64::from(epoch), vec![1, 2]);
        let entry = Ownership {
            epoch,
            version,
            state: State::Ok,
            primary,
            in_sync,
            ..Ownership::default()
        };
        for node in [&self.primary, &self.backup] {
            node.apply_table(version, vec![(0, entry.clone())], self.now_ms);
        }
    }

    /// Carry what `from` has to say; whether that was anything.
    fn carry(&mut self, from: u64) -> bool {
        let (sender, receiver) =
            if from == 1 { (&self.primary, &self.backup) } else { (&self.backup, &self.primary) };
        let Some(effects) = sender.take_effects(true, || 0) else { return false };
        for (_, frame) in effects.peer_frames {
            receiver.on_peer_frame(from, &frame, self.now_ms).expect("a valid frame");
        }
        for (_, frame) in effects.client_frames {
            let frame = ReplyFrame::decode(&frame).expect("a valid frame");
            self.replies.extend(frame.replies().map(|reply| (reply.number, reply.status)));
        }
        self.primary.check();
        self.backup.check();
        true
    }

    /// Carry everything, time passing, until it is quiet.
    fn settle(&mut self) {
        for _ in 0..3 {
            self.now_ms += 10;
            self.primary.tick(self.now_ms);
            self.backup.tick(self.now_ms);
            while self.carry(1) | self.carry(2) {}
        }
    }

    /// Ask the primary, and carry nothing.
    fn ask(&mut self, opcode: Opcode, key: &[u8], value: &[u8]) -> u64 {
        self.number += 1;
        let number = self.number;
        let frame = frame_of(&operation(opcode, number, key, value));
        self.primary.on_client_frame(5, &frame, self.now_ms).expect("a valid frame");
        number
    }

    /// Ask, and carry only the record and its acknowledgement: the backup does not learn that it is
    /// committed, and nothing is heard of its memory.
    fn answered(&mut self, opcode: Opcode, key: &[u8], value: &[u8]) -> u8 {
        let number = self.ask(opcode, key, value);
        self.carry(1);
        self.carry(2);
        self.primary.take_effects(false, || 0).into_iter().for_each(|effects| {
            for (_, frame) in effects.client_frames {
                let frame = ReplyFrame::decode(&frame).expect("a valid frame");
                self.replies.extend(frame.replies().map(|reply| (reply.number, reply.status)));
            }
        });
        let found = self.replies.iter().find(|(other, _)| *other == number);
        found.expect("an answer").1
    }

    fn lasts(&self) -> [u64; 2] {
        [&self.primary, &self.backup]
            .map(|node| node.partition(0).expect("a partition").log().last().sequence)
    }
}

/// A pair whose backup says that it is full, and two entries in it.
fn full_backup() -> Pair {
    let mut pair = Pair::new([0, 1]);
    assert_eq!(pair.answered(Opcode::Put, b"tea", ENTRY), status::OK);
    pair.ask(Opcode::Put, b"rice", ENTRY);
    pair.settle();
    assert_eq!(pair.backup.status().entries, 2, "accepted before it said that it is full");
    pair
}

#[test]
fn f33_what_a_full_backup_has_no_room_for_is_appended_nowhere() {
    let mut pair = full_backup();
    let before = pair.lasts();
    assert_eq!(pair.answered(Opcode::Put, b"salt", b"1"), status::MEMORY_FULL);
    assert_eq!(pair.answered(Opcode::Put, b"tea", ENTRY), status::MEMORY_FULL);
    pair.settle();
    assert_eq!(pair.lasts(), before);
    assert_eq!(pair.answered(Opcode::Get, b"tea", b""), status::OK);
}

#[test]
fn f33_room_that_a_delete_made_is_used_before_the_backup_has_said_so() {
    let mut pair = full_backup();
    assert_eq!(pair.answered(Opcode::Delete, b"tea", b""), status::OK);
    assert_eq!(pair.backup.status().entries, 2, "it has not applied the delete");
    assert_eq!(pair.answered(Opcode::Put, b"salt", b"1"), status::OK);
    // As large as what was deleted, beside the small one: more than there was.
    assert_eq!(pair.answered(Opcode::Put, b"tea", ENTRY), status::MEMORY_FULL);
    pair.settle();
    assert_eq!(pair.backup.status().entries, 2);
}

#[test]
fn f33_a_delete_that_is_not_committed_makes_no_room_and_promises_count() {
    let mut pair = full_backup();
    pair.ask(Opcode::Delete, b"tea", b"");
    let refused = pair.ask(Opcode::Put, b"salt", b"1");
    pair.settle();
    assert!(pair.replies.contains(&(refused, status::MEMORY_FULL)));
    let room = full_backup();
    let mut pair = room;
    assert_eq!(pair.answered(Opcode::Delete, b"tea", b""), status::OK);
    let (half, last) = (&ENTRY[..500], pair.lasts()[0]);
    let asked = [b"a", b"b", b"c", b"d"].map(|key| pair.ask(Opcode::Put, key, half));
    assert!(pair.lasts()[0] > last, "one of them has room");
    pair.settle();
    let refused = |number: &u64| pair.replies.contains(&(*number, status::MEMORY_FULL));
    assert_eq!(asked.iter().filter(|number| refused(number)).count(), 3);
}

#[test]
fn f33_what_is_on_its_way_counts_for_the_primarys_own_quota() {
    let quota = 10_000;
    let mut pair = Pair::new([quota, 0]);
    let asked: Vec<u64> = (0..20u8).map(|key| pair.ask(Opcode::Put, &[b'k', key], ENTRY)).collect();
    let appended = pair.lasts()[0];
    assert!((5..10).contains(&appended), "{appended} of 1,000 bytes each fit, none is committed");
    pair.settle();
    assert!(pair.primary.status().memory_bytes <= quota);
    let accepted = asked.iter().filter(|number| pair.replies.contains(&(**number, status::OK)));
    assert_eq!(accepted.count() as u64, appended);
    // The promises are over with the commits: there is room as before.
    assert_eq!(pair.answered(Opcode::Delete, &[b'k', 0], b""), status::OK);
    assert_eq!(pair.answered(Opcode::Put, b"last", &ENTRY[..900]), status::OK);
}

#[test]
fn f33_a_deposed_primary_keeps_no_memory_for_what_it_promised() {
    let mut pair = Pair::new([10_000, 0]);
    for key in 0..20u8 {
        pair.ask(Opcode::Put, &[b'k', key], ENTRY);
    }
    pair.table(2, 2);
    assert_eq!(pair.primary.settings().quota.promised(), 0);
    pair.table(3, 1);
    assert!(pair.primary.settings().quota.promised() > 5_000, "its tail is to be committed again");
    pair.settle();
    assert_eq!(pair.primary.settings().quota.promised(), 0);
}
