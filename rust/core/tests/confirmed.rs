//! Confirmed reads: no answer of a primary that was replaced, whatever its clock says.
//!
//! Goal: an answer leaves only when every copy that could be a newer primary has said, after the value
//! was read, that it is none. Method: three nodes without leases, which is what a clock that stands
//! still makes of them, and frames that the test carries one by one.

mod common;

use spacegrid_core::frame::reply::status;
use spacegrid_core::frame::request::{Chain, FLAG_CONFIRMED, FLAG_STALE};
use spacegrid_core::frame::{Opcode, Operation, ReplyFrame, RequestBuilder, RequestFrame, Token};
use spacegrid_core::replica::{ChangeKind, Config, Node, Ownership, State};

use common::{STREAM, frame_of, operation};

const MS: u64 = 10;

struct Trio {
    nodes: Vec<Node>,
    now_ms: u64,
    number: u64,
    replies: Vec<(u64, u8, Vec<u8>)>,
    shrinks: Vec<u64>,
}

fn entry(epoch: u32, primary: u64, in_sync: &[u64]) -> Ownership {
    let (version, in_sync) = (u64::from(epoch), in_sync.to_vec());
    Ownership { epoch, version, state: State::Ok, primary, in_sync, ..Ownership::default() }
}

impl Trio {
    fn new(in_sync: &[u64], min_in_sync: usize) -> Self {
        let node = |copy| {
            let node = Node::new(&Config {
                copy,
                partition_count: 1,
                min_in_sync,
                quota_bytes: 0,
                log_bytes: 0,
                shared_sink: false,
                local_sink: false,
            });
            node.expect("a valid configuration")
        };
        let nodes = (1..=3).map(node).collect();
        let (replies, shrinks) = (Vec::new(), Vec::new());
        let mut trio = Self { nodes, now_ms: 1000, number: 0, replies, shrinks };
        for copy in 1..=3 {
            trio.table(copy, entry(1, 1, in_sync));
            for peer in (1..=3).filter(|peer| *peer != copy) {
                trio.of(copy).peer_up(peer);
            }
        }
        trio.settle();
        trio
    }

    fn of(&self, copy: u64) -> &Node {
        &self.nodes[copy as usize - 1]
    }

    fn table(&self, copy: u64, entry: Ownership) {
        self.of(copy).apply_table(entry.version, vec![(0, entry)], self.now_ms);
    }

    /// Carry what a node has to say to those that hear it.
    fn carry(&mut self, from: u64, heard_by: &[u64]) {
        let Some(effects) = self.of(from).take_effects(true, || 0) else { return };
        for (to, frame) in effects.peer_frames {
            if heard_by.contains(&to) {
                self.of(to).on_peer_frame(from, &frame, self.now_ms).expect("a valid frame");
            }
        }
        for (_, frame) in effects.client_frames {
            for reply in ReplyFrame::decode(&frame).expect("a valid frame").replies() {
                self.replies.push((reply.number, reply.status, reply.value.to_vec()));
            }
        }
        let shrinks = effects.changes.iter().filter(|one| one.kind == ChangeKind::Shrink);
        self.shrinks.extend(shrinks.map(|one| one.copy));
        for node in &self.nodes {
            node.check();
        }
    }

    /// Time passes, and everybody hears everybody.
    fn settle(&mut self) {
        self.pass(3, &[1, 2, 3]);
    }

    fn pass(&mut self, ticks: usize, heard: &[u64]) {
        for _ in 0..ticks {
            self.now_ms += MS;
            for node in &self.nodes {
                node.tick(self.now_ms);
            }
            for _ in 0..4 {
                for copy in heard {
                    self.carry(*copy, heard);
                }
            }
        }
    }

    fn ask(&mut self, copy: u64, opcode: Opcode, flags: u8, value: &[u8]) -> u64 {
        self.number += 1;
        let number = self.number;
        let frame = frame_of(&Operation { flags, ..operation(opcode, number, b"tea", value) });
        self.of(copy).on_client_frame(5, &frame, self.now_ms).expect("a valid frame");
        number
    }

    fn confirm(&mut self, copy: u64) -> u64 {
        self.ask(copy, Opcode::Get, FLAG_CONFIRMED, b"")
    }

    fn answer(&self, number: u64) -> Option<(u8, &[u8])> {
        let found = self.replies.iter().find(|reply| reply.0 == number);
        found.map(|(_, status, value)| (*status, &**value))
    }
}

#[test]
fn the_answer_leaves_with_the_last_copys_word() {
    let mut trio = Trio::new(&[1, 2, 3], 2);
    trio.ask(1, Opcode::Put, 0, b"1");
    trio.settle();
    let number = trio.confirm(1);
    trio.carry(1, &[2, 3]);
    trio.carry(2, &[1]);
    trio.carry(1, &[]);
    assert_eq!(trio.answer(number), None);
    trio.carry(3, &[1]);
    trio.carry(1, &[]);
    assert_eq!(trio.answer(number), Some((status::OK, &b"1"[..])));
}

#[test]
fn a_read_waits_for_a_question_that_was_asked_after_it_came() {
    let mut trio = Trio::new(&[1, 2], 2);
    let first = trio.confirm(1);
    trio.carry(1, &[2]);
    let second = trio.confirm(1);
    trio.carry(2, &[1]);
    trio.carry(1, &[]);
    assert!(trio.answer(first).is_some());
    assert_eq!(trio.answer(second), None, "the copy spoke before this one was read");
    trio.settle();
    assert_eq!(trio.answer(second).map(|one| one.0), Some(status::MISS));
}

#[test]
fn f28_a_primary_that_was_replaced_while_its_clock_stood_still_answers_no_confirmed_read() {
    let mut trio = Trio::new(&[1, 2, 3], 2);
    trio.ask(1, Opcode::Put, 0, b"old");
    trio.settle();
    // Node 2 is primary now, and writes with node 3 once that knows; node 1 knows nothing.
    trio.table(2, entry(2, 2, &[2, 3]));
    let early = trio.confirm(1);
    trio.pass(2, &[1, 3]);
    trio.table(3, entry(2, 2, &[2, 3]));
    let written = trio.ask(2, Opcode::Put, 0, b"new");
    trio.pass(3, &[2, 3]);
    assert_eq!(trio.answer(written).map(|one| one.0), Some(status::OK));

    let plain = trio.ask(1, Opcode::Get, 0, b"");
    let confirmed = trio.confirm(1);
    trio.pass(20, &[1, 2, 3]);
    assert_eq!(trio.answer(plain), Some((status::OK, &b"old"[..])), "what leases are there for");
    assert_eq!(trio.answer(early), None, "node 3 said yes, and it was not the one to ask");
    assert_eq!(trio.answer(confirmed), None);
    trio.pass(100, &[1, 2, 3]);
    for number in [early, confirmed] {
        assert_eq!(trio.answer(number).map(|one| one.0), Some(status::UNAVAILABLE));
    }
    let last = trio.confirm(1);
    trio.table(1, entry(2, 2, &[2, 3]));
    trio.carry(1, &[2, 3]);
    assert_eq!(trio.answer(last).map(|one| one.0), Some(status::NOT_PRIMARY));
    let number = trio.confirm(2);
    trio.settle();
    assert_eq!(trio.answer(number), Some((status::OK, &b"new"[..])));
}

#[test]
fn a_word_that_is_due_when_the_primary_changes_is_given_to_nobody() {
    let mut trio = Trio::new(&[1, 2, 3], 2);
    let old = trio.confirm(1);
    trio.carry(1, &[2, 3]);
    // The question has arrived; before it is answered both learn of the next epoch.
    trio.table(2, entry(2, 3, &[2, 3]));
    trio.table(3, entry(2, 3, &[2, 3]));
    let new = trio.confirm(3);
    // The new primary's question, of the same number, is lost.
    trio.carry(3, &[1]);
    trio.carry(2, &[1, 3]);
    trio.carry(3, &[1]);
    trio.carry(1, &[]);
    assert_eq!((trio.answer(old), trio.answer(new)), (None, None));
    trio.settle();
    assert_eq!(trio.answer(new).map(|one| one.0), Some(status::MISS));
}

#[test]
fn where_nobody_can_be_promoted_nobody_is_asked_and_too_few_are_not_enough() {
    let mut alone = Trio::new(&[1], 1);
    let number = alone.confirm(1);
    alone.carry(1, &[]);
    assert_eq!(alone.answer(number).map(|one| one.0), Some(status::MISS));
    let mut few = Trio::new(&[1], 2);
    let number = few.confirm(1);
    few.carry(1, &[]);
    assert_eq!(few.answer(number).map(|one| one.0), Some(status::NOT_ENOUGH_COPIES));
}

#[test]
fn a_copy_that_owes_its_word_is_asked_again_and_then_to_be_removed() {
    let mut trio = Trio::new(&[1, 2, 3], 2);
    trio.confirm(1);
    trio.carry(1, &[2]);
    trio.pass(30, &[1, 2]);
    assert_eq!(trio.shrinks, [0; 0]);
    let number = trio.confirm(1);
    trio.pass(90, &[1, 2]);
    assert!(!trio.shrinks.is_empty() && trio.shrinks.iter().all(|copy| *copy == 3));
    assert_eq!(trio.answer(number), None);
    trio.table(1, Ownership { epoch: 1, ..entry(2, 1, &[1, 2]) });
    trio.carry(1, &[]);
    assert_eq!(trio.answer(number).map(|one| one.0), Some(status::MISS), "node 2 had said so");
}

#[test]
fn a_read_is_confirmed_or_stale_never_both() {
    let mut builder = RequestBuilder::new(STREAM);
    let value = 5u64.to_le_bytes();
    let operation = Operation {
        opcode: Opcode::Get,
        flags: FLAG_CONFIRMED | FLAG_STALE,
        map: "stock",
        schema: 0,
        number: 1,
        token: Token { stream: STREAM, number: 1, path: b"", lowest: 1 },
        key: b"tea",
        codec: 0,
        value: &value,
        ttl_ms: 0,
        expected: 0,
        chain: Chain::default(),
    };
    builder.push(&operation).expect("the encoder's flags are its caller's");
    let frame = builder.finish().expect("an operation");
    assert!(RequestFrame::decode(&frame).is_err());
}
