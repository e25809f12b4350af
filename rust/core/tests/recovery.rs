//! A former copy is completed from a tail, when the last complete copy is gone.
//!
//! Goal: whatever was acknowledged is there when the former copy serves, and where the two do not
//! reach each other nobody serves. Method: nodes whose frames are carried by hand; the test plays the
//! controller, so that it can also write what no controller may.

mod common;

use std::collections::BTreeMap;

use spacegrid_core::frame::peer::{self, Message};
use spacegrid_core::frame::reply::status;
use spacegrid_core::frame::{Opcode, ReplyFrame};
use spacegrid_core::record::Position;
use spacegrid_core::replica::{
    ChangeKind, ChangeWanted, Config, Node, Ownership, Role, State, TailCopy,
};

use common::{frame_of, operation};

const A: u64 = 1;
const B: u64 = 2;
const TAIL: u64 = 3;
const LATE: u64 = 4;

/// What is lost on the way.
type Lost = fn(u64, u64, &[u8]) -> bool;

fn nothing(_: u64, _: u64, _: &[u8]) -> bool {
    false
}

/// Whether a frame holds a piece of a snapshot.
fn chunks(_: u64, _: u64, frame: &[u8]) -> bool {
    let messages = peer::decode(frame).expect("own frame");
    messages.iter().any(|(_, message)| matches!(message, Message::Chunk { .. }))
}

/// Whether a frame holds records.
fn records(_: u64, _: u64, frame: &[u8]) -> bool {
    let some = |message: &Message<'_>| match message {
        Message::Append { records, .. } => records.clone().next().is_some(),
        _ => false,
    };
    peer::decode(frame).expect("own frame").iter().any(|(_, message)| some(message))
}

struct Cluster {
    nodes: BTreeMap<u64, Node>,
    entry: Ownership,
    now_ms: u64,
    number: u64,
    replies: Vec<(u8, Vec<u8>)>,
    changes: Vec<(u64, ChangeWanted)>,
}

impl Cluster {
    /// `A` and `B` in sync, with `B` the primary first; nobody else has anything.
    fn new(log_bytes: u64) -> Self {
        let node = |copy| {
            Node::new(&Config {
                copy,
                partition_count: 1,
                min_in_sync: 2,
                quota_bytes: 0,
                log_bytes,
                shared_sink: false,
                local_sink: false,
            })
            .expect("a valid configuration")
        };
        let mut cluster = Self {
            nodes: (A..=LATE).map(|copy| (copy, node(copy))).collect(),
            entry: Ownership::default(),
            now_ms: 1000,
            number: 0,
            replies: Vec::new(),
            changes: Vec::new(),
        };
        for (from, to) in (A..=LATE).flat_map(|from| (A..=LATE).map(move |to| (from, to))) {
            if from != to {
                cluster.nodes[&from].peer_up(to);
            }
        }
        cluster.table(|entry| {
            (entry.epoch, entry.state, entry.primary) = (1, State::Ok, B);
            entry.in_sync = vec![A, B];
        });
        cluster.carry(nothing);
        cluster
    }

    /// Write the table's next version and tell everybody.
    fn table(&mut self, change: impl Fn(&mut Ownership)) {
        self.entry.version += 1;
        change(&mut self.entry);
        self.changes.clear();
        let (entry, now_ms) = (&self.entry, self.now_ms);
        for node in self.nodes.values() {
            node.apply_table(entry.version, vec![(0, entry.clone())], now_ms);
        }
    }

    /// Carry everything but what is lost, until nobody has anything to say.
    fn carry(&mut self, lost: Lost) {
        let mut busy = true;
        while busy {
            busy = false;
            for (copy, node) in &self.nodes {
                let Some(effects) = node.take_effects(true, || 0) else { continue };
                busy = true;
                for (to, frame) in effects.peer_frames {
                    if let Some(there) = self.nodes.get(&to)
                        && !lost(*copy, to, &frame)
                    {
                        there.on_peer_frame(*copy, &frame, self.now_ms).expect("a valid frame");
                    }
                }
                for (_, frame) in effects.client_frames {
                    let frame = ReplyFrame::decode(&frame).expect("a valid frame");
                    let replies = frame.replies().map(|reply| (reply.status, reply.value.to_vec()));
                    self.replies.extend(replies);
                }
                self.changes.extend(effects.changes.into_iter().map(|change| (*copy, change)));
            }
        }
        self.nodes.values().for_each(Node::check);
    }

    /// Time passes until everybody has asked again.
    fn pass(&mut self, lost: Lost) {
        for _ in 0..50 {
            self.now_ms += 10;
            self.nodes.values().for_each(|node| node.tick(self.now_ms));
            self.carry(lost);
        }
    }

    fn send(&mut self, to: u64, opcode: Opcode, number: u64, key: &[u8], value: &[u8]) {
        let frame = frame_of(&operation(opcode, number, key, value));
        self.nodes[&to].on_client_frame(5, &frame, self.now_ms).expect("a valid frame");
    }

    fn ask(
        &mut self,
        opcode: Opcode,
        key: &[u8],
        value: &[u8],
        lost: Lost,
    ) -> Option<(u8, Vec<u8>)> {
        self.number += 1;
        let (to, number) = (self.entry.primary, self.number);
        self.replies.clear();
        self.send(to, opcode, number, key, value);
        self.carry(lost);
        self.replies.pop()
    }

    /// A write that must be acknowledged.
    fn put(&mut self, key: &[u8], value: &[u8]) {
        let told = self.ask(Opcode::Put, key, value, chunks).map(|(status, _)| status);
        assert_eq!(told, Some(status::OK), "{:?}", self.entry);
    }

    fn get(&mut self, key: &[u8]) -> Vec<u8> {
        let (status, value) = self.ask(Opcode::Get, key, b"", nothing).expect("an answer");
        assert_eq!(status, status::OK);
        value
    }

    /// The last record of a node's log.
    fn last(&self, copy: u64) -> Position {
        self.nodes[&copy].partition(0).expect("the partition").log().last()
    }

    /// What was asked for of this kind: by whom, about whom, from where.
    fn asked(&self, kind: ChangeKind) -> Vec<(u64, u64, u64)> {
        let of_kind = self.changes.iter().filter(|(_, change)| change.kind == kind);
        let mut found: Vec<_> = of_kind.map(|(by, c)| (*by, c.copy, c.from)).collect();
        found.dedup();
        found
    }

    /// `A` is the primary and alone, `B` was removed.
    fn shrink(&mut self) {
        self.table(|entry| {
            entry.epoch += 1;
            (entry.primary, entry.in_sync, entry.former) = (A, vec![A], vec![B]);
        });
    }

    /// A copy becomes a tail, and its snapshot does not come.
    fn join(&mut self, copy: u64) {
        self.table(|entry| entry.joining = vec![(copy, entry.version)]);
        self.pass(chunks);
        let asked = self.asked(ChangeKind::Tail);
        let (_, _, from) = *asked.last().expect("it was asked for");
        self.table(|entry| {
            let (copy, session) = entry.joining.remove(0);
            entry.tails.push(TailCopy { copy, session, from: Position::unpack(from) });
        });
        self.carry(chunks);
    }

    /// The last complete copy is gone.
    fn bereave(&mut self) {
        self.nodes.remove(&A);
        self.table(|entry| (entry.state, entry.primary) = (State::Unavailable, 0));
        self.carry(nothing);
    }

    fn recover(&mut self, target: u64) {
        self.table(|entry| {
            entry.epoch += 1;
            (entry.state, entry.target) = (State::Recovering, target);
        });
    }

    fn serve(&mut self, copy: u64) {
        self.table(|entry| {
            entry.epoch += 1;
            (entry.state, entry.primary, entry.target) = (State::Ok, copy, 0);
            (entry.in_sync, entry.former) = (vec![copy], vec![A]);
        });
        self.carry(nothing);
    }
}

/// Some writes that `B` has, and some that were made with the tail alone.
fn with_tail() -> Cluster {
    let mut cluster = Cluster::new(0);
    for number in 0..5 {
        cluster.put(&[number], b"with B");
    }
    cluster.shrink();
    cluster.join(TAIL);
    for number in 3..9 {
        cluster.put(&[number], b"with the tail");
        // The tail may commit and trim what it has.
        cluster.pass(chunks);
    }
    let counted = cluster.ask(Opcode::Incr, b"count", &7i64.to_le_bytes(), chunks);
    assert_eq!(counted.map(|(status, _)| status), Some(status::OK));
    cluster
}

fn bereaved() -> Cluster {
    let mut cluster = with_tail();
    cluster.bereave();
    cluster
}

#[test]
fn a_former_copy_is_completed_from_a_tail_and_serves_all_that_was_acknowledged() {
    let mut cluster = bereaved();
    assert_eq!(cluster.asked(ChangeKind::Recover), [(B, TAIL, 0)]);
    cluster.pass(nothing);
    assert!(cluster.changes.len() > 2, "until the table shows it");
    cluster.recover(B);
    assert_eq!(cluster.asked(ChangeKind::InSync), [], "not before it has everything");
    cluster.carry(nothing);
    assert_eq!(cluster.asked(ChangeKind::InSync), [(TAIL, B, 0)]);
    assert_eq!(cluster.last(B), cluster.last(TAIL));
    cluster.serve(B);
    for number in 0..9 {
        let value: &[u8] = if number < 3 { b"with B" } else { b"with the tail" };
        assert_eq!(cluster.get(&[number]), value);
    }
    // The request that was counted is sent again.
    let number = cluster.number - 9;
    cluster.replies.clear();
    cluster.send(B, Opcode::Incr, number, b"count", &7i64.to_le_bytes());
    cluster.carry(nothing);
    let again = cluster.replies.pop().expect("an answer");
    assert_eq!(again, (status::OK, vec![7]));
    // Writes go on at once with the tail, and that becomes complete.
    cluster.put(b"new", b"1");
    cluster.pass(nothing);
    assert!(cluster.asked(ChangeKind::InSync).contains(&(B, TAIL, 0)));
}

#[test]
fn a_copy_that_agrees_and_lacks_records_is_not_called_complete() {
    let mut cluster = bereaved();
    cluster.recover(B);
    cluster.carry(records);
    cluster.pass(records);
    assert_eq!(cluster.asked(ChangeKind::InSync), []);
    cluster.pass(nothing);
    assert_eq!(cluster.asked(ChangeKind::InSync), [(TAIL, B, 0)]);
}

#[test]
fn what_only_the_former_copy_had_was_never_acknowledged_and_is_cut() {
    let mut cluster = Cluster::new(0);
    cluster.put(b"k", b"old");
    let stuck = cluster.ask(Opcode::Put, b"k", b"never acknowledged", |_, _, _| true);
    assert_eq!(stuck, None);
    cluster.shrink();
    cluster.join(TAIL);
    cluster.put(b"other", b"1");
    assert_eq!(cluster.last(B).sequence, cluster.last(TAIL).sequence);
    cluster.bereave();
    cluster.recover(B);
    cluster.carry(nothing);
    assert_eq!(cluster.asked(ChangeKind::InSync), [(TAIL, B, 0)]);
    cluster.serve(B);
    assert_eq!(cluster.get(b"k"), b"old");
    assert_eq!(cluster.get(b"other"), b"1");
}

#[test]
fn nobody_answers_while_a_copy_is_completed() {
    let mut cluster = bereaved();
    cluster.recover(B);
    for copy in [B, TAIL] {
        for opcode in [Opcode::Get, Opcode::Put] {
            cluster.replies.clear();
            cluster.send(copy, opcode, 1000, b"k", b"");
            cluster.carry(nothing);
            assert_eq!(cluster.replies, [(status::UNAVAILABLE, Vec::new())]);
        }
        assert_eq!(cluster.nodes[&copy].status().primaries, 0);
    }
}

#[test]
fn the_tail_takes_nothing_of_the_epoch_before() {
    let mut cluster = with_tail();
    let before = cluster.last(TAIL);
    cluster.send(A, Opcode::Put, 1000, b"late", b"1");
    let effects = cluster.nodes[&A].take_effects(true, || 0).expect("a record on its way");
    let (to, frame) = &effects.peer_frames[0];
    assert_eq!(*to, TAIL);
    cluster.bereave();
    cluster.recover(B);
    cluster.nodes[&TAIL].on_peer_frame(A, frame, 0).expect("a valid frame");
    cluster.carry(nothing);
    assert_eq!(cluster.last(TAIL), before);
    assert_eq!(cluster.asked(ChangeKind::InSync), [(TAIL, B, 0)]);
}

/// A tail that joined after records were committed which `B` has not.
fn out_of_reach() -> Cluster {
    let mut cluster = Cluster::new(0);
    cluster.put(b"k", b"with B");
    cluster.shrink();
    cluster.join(TAIL);
    cluster.put(b"k", b"with the first tail");
    cluster.join(LATE);
    cluster.nodes.remove(&TAIL);
    cluster.table(|entry| entry.tails.retain(|tail| tail.copy == LATE));
    cluster.put(b"other", b"1");
    cluster.bereave();
    cluster
}

#[test]
fn a_former_copy_that_does_not_reach_the_tail_asks_for_nothing() {
    let mut cluster = out_of_reach();
    cluster.pass(nothing);
    assert_eq!(cluster.changes, []);
}

#[test]
fn a_tail_never_calls_a_copy_complete_that_does_not_reach_it() {
    let mut cluster = out_of_reach();
    let base = cluster.nodes[&LATE].partition(0).expect("the partition").log().base();
    cluster.recover(B);
    cluster.pass(nothing);
    assert_eq!(cluster.asked(ChangeKind::Tail), [(LATE, LATE, base.pack())], "where it begins");
    assert_eq!(cluster.asked(ChangeKind::InSync), []);
    assert!(cluster.last(B) < base);
}

#[test]
fn a_tail_whose_log_was_too_long_to_keep_says_where_it_begins() {
    let mut cluster = Cluster::new(64 << 10);
    cluster.put(b"k", b"with B");
    cluster.shrink();
    cluster.join(TAIL);
    let known = cluster.entry.tails[0].from;
    for number in 0..20 {
        cluster.put(&[number], &[7; 2000]);
        cluster.pass(chunks);
    }
    cluster.bereave();
    let base = cluster.nodes[&TAIL].partition(0).expect("the partition").log().base();
    assert!(base.sequence > known.sequence, "{base:?}");
    assert_eq!(cluster.asked(ChangeKind::Recover), [(B, TAIL, 0)], "as far as the table knows");
    cluster.recover(B);
    cluster.carry(nothing);
    assert_eq!(cluster.asked(ChangeKind::Tail), [(TAIL, TAIL, base.pack())]);
    assert_eq!(cluster.asked(ChangeKind::InSync), []);
    cluster.table(|entry| {
        (entry.state, entry.target) = (State::Unavailable, 0);
        entry.tails[0].from = base;
    });
    cluster.pass(nothing);
    assert_eq!(cluster.changes, []);
}

#[test]
fn a_recovery_that_broke_off_goes_on_from_another_tail() {
    let mut cluster = Cluster::new(0);
    cluster.put(b"k", b"with B");
    cluster.shrink();
    cluster.join(TAIL);
    cluster.join(LATE);
    cluster.put(b"k", b"with the tails");
    cluster.bereave();
    assert_eq!(cluster.asked(ChangeKind::Recover), [(B, TAIL, 0), (B, LATE, 0)]);
    cluster.recover(B);
    // Nothing of the first tail arrives, and then it is gone.
    cluster.carry(|from, _, _| from == TAIL);
    assert_eq!(cluster.asked(ChangeKind::InSync), []);
    cluster.nodes.remove(&TAIL);
    cluster.table(|entry| (entry.state, entry.target) = (State::Unavailable, 0));
    cluster.carry(nothing);
    assert!(cluster.asked(ChangeKind::Recover).contains(&(B, LATE, 0)));
    cluster.table(|entry| {
        entry.epoch += 1;
        (entry.state, entry.target) = (State::Recovering, B);
        entry.tails.reverse();
    });
    cluster.carry(nothing);
    assert_eq!(cluster.asked(ChangeKind::InSync), [(LATE, B, 0)]);
    cluster.table(|entry| entry.tails.retain(|tail| tail.copy == LATE));
    cluster.serve(B);
    assert_eq!(cluster.get(b"k"), b"with the tails");
    assert_eq!(cluster.nodes[&B].roles()[0].role, Role::Primary);
}
