//! Stale reads: a copy's own answers, and the age that they tell.
//!
//! Goal: what was acknowledged more than `age_ms` before a copy answered is in its answer, whatever
//! became of primary, links and clocks; and nothing is answered past the age that was asked for.
//! Method: a primary and its backup whose frames are carried one by one, with a clock of the test.

mod common;

use std::cell::Cell;

use spacegrid_core::frame::reply::{FLAG_STALE, status};
use spacegrid_core::frame::request::FLAG_STALE as ASK_STALE;
use spacegrid_core::frame::{Opcode, Operation, ReplyFrame};
use spacegrid_core::record::Position;
use spacegrid_core::replica::{Config, HELD_MS, Node, Ownership, State, TailCopy};

use common::{frame_of, operation};

const FOREVER: u64 = u64::MAX;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    status: u8,
    age_ms: u64,
    value: Vec<u8>,
}

struct Pair {
    nodes: [Node; 2],
    clock_ms: Cell<u64>,
    number: Cell<u64>,
}

fn node(copy: u64) -> Node {
    let node = Node::new(&Config {
        copy,
        partition_count: 1,
        min_in_sync: 1,
        quota_bytes: 0,
        log_bytes: 0,
        shared_sink: false,
        local_sink: false,
    });
    let node = node.expect("a valid configuration");
    node.require_lease();
    node
}

fn in_sync(version: u64, primary: u64, in_sync: &[u64]) -> Ownership {
    let epoch = version as u32;
    let in_sync = in_sync.to_vec();
    Ownership { epoch, version, state: State::Ok, primary, in_sync, ..Ownership::default() }
}

impl Pair {
    /// A primary (1) and a backup (2) with leases asked for at 1,000.
    fn new() -> Self {
        let pair = Self { nodes: [node(1), node(2)], clock_ms: 1000.into(), number: 0.into() };
        pair.table(1, in_sync(1, 1, &[1, 2]));
        pair.table(2, in_sync(1, 1, &[1, 2]));
        pair.nodes[0].peer_up(2);
        pair.nodes[1].peer_up(1);
        pair.lease(1);
        pair.lease(2);
        pair.settle();
        pair
    }

    fn table(&self, copy: u64, entry: Ownership) {
        self.of(copy).apply_table(entry.version, vec![(0, entry)], 0);
    }

    fn of(&self, copy: u64) -> &Node {
        &self.nodes[copy as usize - 1]
    }

    /// A lease that was asked for now, at the newest table.
    fn lease(&self, copy: u64) {
        let (node, now_ms) = (self.of(copy), self.clock_ms.get());
        let revision = node.settings().revision();
        assert!(node.grant_lease(revision, now_ms + HELD_MS, now_ms));
    }

    fn pass(&self, ms: u64) {
        self.clock_ms.set(self.clock_ms.get() + ms);
    }

    fn take(&self, copy: u64, peers: bool) -> (Vec<Vec<u8>>, Vec<Told>) {
        let Some(effects) = self.of(copy).take_effects(peers, || self.clock_ms.get()) else {
            return Default::default();
        };
        let frames = effects.peer_frames.into_iter().map(|(_, frame)| frame).collect();
        let mut told = Vec::new();
        for (_, frame) in effects.client_frames {
            for reply in ReplyFrame::decode(&frame).expect("a valid frame").replies() {
                let (age, value) = if reply.flags & FLAG_STALE == 0 {
                    (reply.version, reply.value)
                } else {
                    let (age, value) = reply.value.split_first_chunk().expect("an age");
                    (u64::from_le_bytes(*age), value)
                };
                told.push(Told { status: reply.status, age_ms: age, value: value.to_vec() });
            }
        }
        (frames, told)
    }

    /// Carry what a copy has to say to the other one.
    fn carry(&self, from: u64) -> Vec<Told> {
        let (frames, told) = self.take(from, true);
        for frame in frames {
            self.of(3 - from).on_peer_frame(from, &frame, 0).expect("a valid frame");
        }
        told
    }

    fn tick(&self) {
        for node in &self.nodes {
            // As the shell does: what there is is taken, by a clock that is read then.
            node.take_effects(false, || self.clock_ms.get());
            node.tick(0);
        }
    }

    /// Carry everything, no time passing.
    fn settle(&self) {
        for _ in 0..3 {
            self.tick();
            for _ in 0..6 {
                self.carry(1);
                self.carry(2);
            }
        }
    }

    fn ask(&self, copy: u64, opcode: Opcode, flags: u8, value: &[u8]) {
        let number = self.number.get() + 1;
        self.number.set(number);
        let frame = frame_of(&Operation { flags, ..operation(opcode, number, b"tea", value) });
        self.of(copy).on_client_frame(5, &frame, 0).expect("a valid frame");
    }

    /// Put, acknowledged; the backup has the record and does not know that it is committed.
    fn put(&self, value: &[u8]) {
        self.ask(1, Opcode::Put, 0, value);
        self.carry(1);
        self.carry(2);
        let told = self.take(1, false).1;
        assert_eq!(told.iter().map(|one| one.status).collect::<Vec<_>>(), [status::OK]);
    }

    fn stale(&self, copy: u64, age_ms_max: u64) -> Told {
        self.ask(copy, Opcode::Get, ASK_STALE, &age_ms_max.to_le_bytes());
        let mut told = self.take(copy, false).1;
        assert_eq!(told.len(), 1);
        told.remove(0)
    }
}

fn told(status: u8, age_ms: u64, value: &[u8]) -> Told {
    Told { status, age_ms, value: value.to_vec() }
}

#[test]
fn a_backup_answers_what_is_committed_and_not_what_it_has_only_received() {
    let pair = Pair::new();
    pair.put(b"1");
    pair.settle();
    assert_eq!(pair.stale(2, FOREVER), told(status::OK, 0, b"1"));
    pair.put(b"2");
    pair.pass(30);
    pair.lease(2);
    let seen = pair.stale(2, FOREVER);
    // The second one was acknowledged after the time that the answer speaks of.
    assert_eq!(seen, told(status::OK, 30, b"1"));
    pair.settle();
    assert_eq!(pair.stale(2, FOREVER), told(status::OK, 0, b"2"));
}

#[test]
fn an_entry_that_is_not_there_has_an_age_too() {
    assert_eq!(Pair::new().stale(2, FOREVER), told(status::MISS, 0, b""));
}

#[test]
fn the_age_counts_from_the_last_lease_and_an_answer_past_the_limit_is_refused() {
    let pair = Pair::new();
    pair.put(b"1");
    pair.settle();
    for _ in 0..60 {
        pair.pass(10);
        pair.tick();
    }
    // Nothing was heard for 600 ms, and the copy may have been given up since.
    assert_eq!(pair.stale(2, 600), told(status::OK, 600, b"1"));
    assert_eq!(pair.stale(2, 599), told(status::TOO_STALE, 600, b""));
    pair.lease(2);
    assert_eq!(pair.stale(2, 0), told(status::OK, 0, b"1"));
}

#[test]
fn a_copy_that_was_given_up_can_not_know_it_and_says_how_old_its_answer_may_be() {
    let pair = Pair::new();
    pair.put(b"1");
    pair.settle();
    // Cut off at 1,000; at 1,100 it is removed, and the primary goes on without it.
    pair.pass(100);
    pair.table(1, Ownership { epoch: 1, ..in_sync(2, 1, &[1]) });
    pair.lease(1);
    pair.ask(1, Opcode::Put, 0, b"2");
    assert_eq!(pair.take(1, false).1[0].status, status::OK);
    pair.pass(50);
    pair.tick();
    let seen = pair.stale(2, FOREVER);
    assert_eq!(seen, told(status::OK, 150, b"1"));
    assert!(seen.age_ms >= 50, "the write that it lacks is younger than the age");
}

#[test]
fn a_pause_on_the_way_out_makes_an_answer_older() {
    let pair = Pair::new();
    pair.put(b"1");
    pair.settle();
    for (limit, status) in [(FOREVER, status::OK), (10_000, status::TOO_STALE)] {
        pair.lease(2);
        pair.settle();
        pair.ask(2, Opcode::Get, ASK_STALE, &u64::to_le_bytes(limit));
        pair.pass(20_000);
        let seen = pair.take(2, false).1.remove(0);
        assert_eq!((seen.status, seen.age_ms), (status, 20_000));
    }
}

#[test]
fn stale_reads_go_on_without_a_lease_and_other_reads_do_not() {
    let pair = Pair::new();
    pair.put(b"1");
    pair.settle();
    pair.pass(2_000);
    pair.ask(1, Opcode::Get, 0, b"");
    assert_eq!(pair.take(1, false).1[0].status, status::UNKNOWN);
    assert_eq!(pair.stale(1, FOREVER), told(status::OK, 2_000, b"1"));
    assert_eq!(pair.stale(2, FOREVER), told(status::OK, 2_000, b"1"));
    // A grant that comes late makes unknown what waits; a stale answer tells its age instead.
    pair.ask(1, Opcode::Get, ASK_STALE, &FOREVER.to_le_bytes());
    pair.lease(1);
    assert_eq!(pair.take(1, false).1, [told(status::OK, 2_000, b"1")]);
}

#[test]
fn the_age_is_bounded_while_writes_never_pause() {
    let pair = Pair::new();
    let mut oldest_ms = 0;
    for turn in 0..200u8 {
        pair.put(&[turn]);
        pair.pass(10);
        pair.lease(1);
        pair.lease(2);
        pair.tick();
        oldest_ms = oldest_ms.max(pair.stale(2, FOREVER).age_ms);
        // The next record carries the commit of this one: something is always uncommitted here.
        assert!(pair.of(2).partition(0).unwrap().log().last().sequence > u64::from(turn));
    }
    assert!((1..=40).contains(&oldest_ms), "{oldest_ms}");
}

#[test]
fn a_copy_that_is_not_complete_answers_nothing() {
    let pair = Pair::new();
    pair.put(b"1");
    pair.settle();
    let tail = TailCopy { copy: 2, session: 2, from: Position::ZERO };
    let entry = Ownership { tails: vec![tail], ..in_sync(2, 1, &[1]) };
    pair.table(2, entry);
    assert_eq!(pair.stale(2, FOREVER).status, status::NOT_PRIMARY);
    pair.table(2, Ownership { former: vec![2], ..in_sync(3, 1, &[1]) });
    assert_eq!(pair.stale(2, FOREVER).status, status::NOT_PRIMARY);
    pair.table(2, in_sync(4, 1, &[1]));
    assert_eq!(pair.stale(2, FOREVER).status, status::NOT_PRIMARY);
}

#[test]
fn a_new_primary_vouches_for_nothing_newer_than_its_uncommitted_tail() {
    let pair = Pair::new();
    pair.put(b"1");
    pair.settle();
    pair.put(b"2");
    pair.pass(100);
    let version = 2;
    pair.table(2, in_sync(version, 2, &[2, 3]));
    pair.lease(2);
    pair.tick();
    assert_eq!(pair.stale(2, FOREVER), told(status::OK, 100, b"1"));
}
