//! Transfers under a bound: how many bytes of snapshots leave in a second, and what goes on meanwhile.
//!
//! Goal: a copy that is made never takes more of a node than it was given, is made all the same, and
//! holds up no write. Method: a primary of several partitions and a copy that joins all of them, with
//! the time and the wire under the test's control; the test plays the controller.

mod common;

use std::collections::BTreeMap;

use spacegrid_core::frame::peer::{self, Message};
use spacegrid_core::frame::reply::status;
use spacegrid_core::frame::{Opcode, ReplyFrame};
use spacegrid_core::limits::SNAPSHOT_CHUNK_BYTES;
use spacegrid_core::replica::{ChangeKind, Config, Node, Ownership, State, TailCopy};

use common::{frame_of, operation};

const PARTITIONS: u32 = 8;
const ENTRIES: u64 = 400;
const VALUE_BYTES: usize = 10_000;
const RATE: u64 = 1 << 20;
const TICK_MS: u64 = 10;

struct Pair {
    nodes: BTreeMap<u64, Node>,
    table: Vec<Ownership>,
    revision: u64,
    now_ms: u64,
    number: u64,
    /// Bytes of snapshot pieces that went out, by time.
    pieces: Vec<(u64, u64)>,
    replies: Vec<u8>,
}

impl Pair {
    /// A primary with all the data, alone; another node that has nothing.
    fn new(bytes_per_s: u64) -> Self {
        let node = |copy| {
            Node::new(&Config {
                copy,
                partition_count: PARTITIONS,
                min_in_sync: 1,
                quota_bytes: 0,
                log_bytes: 0,
                shared_sink: false,
                local_sink: false,
            })
            .expect("a valid configuration")
        };
        let entry = Ownership {
            epoch: 1,
            version: 1,
            state: State::Ok,
            primary: 1,
            in_sync: vec![1],
            ..Ownership::default()
        };
        let mut pair = Self {
            nodes: (1..=2).map(|copy| (copy, node(copy))).collect(),
            table: vec![entry; PARTITIONS as usize],
            revision: 0,
            now_ms: 1000,
            number: 0,
            pieces: Vec::new(),
            replies: Vec::new(),
        };
        pair.nodes[&1].limit_transfers(bytes_per_s);
        pair.nodes[&1].peer_up(2);
        pair.nodes[&2].peer_up(1);
        pair.tell();
        for _ in 0..ENTRIES {
            pair.put();
        }
        assert_eq!(pair.replies.len() as u64, ENTRIES);
        pair
    }

    fn tell(&mut self) {
        self.revision += 1;
        let entries: Vec<_> = (0..).zip(self.table.iter().cloned()).collect();
        for node in self.nodes.values() {
            node.apply_table(self.revision, entries.clone(), self.now_ms);
        }
    }

    fn join(&mut self) {
        for entry in &mut self.table {
            entry.version += 1;
            entry.joining = vec![(2, entry.version)];
        }
        self.tell();
    }

    /// Time passes, and everything gets to where it goes at once.
    fn tick(&mut self) {
        self.now_ms += TICK_MS;
        for node in self.nodes.values() {
            node.tick(self.now_ms);
        }
        self.carry();
    }

    fn carry(&mut self) {
        let mut busy = true;
        while busy {
            busy = false;
            for copy in [1, 2] {
                let Some(effects) = self.nodes[&copy].take_effects(true, || 0) else { continue };
                busy = true;
                for (to, frame) in effects.peer_frames {
                    let chunks = |(_, message): &(_, Message<'_>)| match message {
                        Message::Chunk { entries, .. } => {
                            entries.clone().map(|e| e.value.map_or(0, <[u8]>::len) as u64).sum()
                        }
                        _ => 0,
                    };
                    let bytes = peer::decode(&frame).expect("a frame").iter().map(chunks).sum();
                    self.pieces.push((self.now_ms, bytes));
                    let taken = self.nodes[&to].on_peer_frame(copy, &frame, self.now_ms);
                    taken.expect("a valid frame");
                }
                for (_, frame) in effects.client_frames {
                    let frame = ReplyFrame::decode(&frame).expect("a valid frame");
                    self.replies.extend(frame.replies().map(|reply| reply.status));
                }
                for change in effects.changes {
                    self.change(change.partition, change.version, change.kind, change.from);
                }
            }
        }
        self.nodes.values().for_each(Node::check);
    }

    /// What the controller makes of a request.
    fn change(&mut self, partition: u32, version: u64, kind: ChangeKind, from: u64) {
        let entry = &mut self.table[partition as usize];
        if entry.version != version {
            return;
        }
        entry.version += 1;
        match kind {
            ChangeKind::Tail => {
                let (copy, session) = entry.joining.remove(0);
                let from = spacegrid_core::record::Position::unpack(from);
                entry.tails = vec![TailCopy { copy, session, from }];
            }
            ChangeKind::InSync => {
                entry.tails.clear();
                entry.in_sync.push(2);
            }
            other => panic!("nobody asks for {other:?} here"),
        }
        self.tell();
    }

    fn put(&mut self) {
        self.number += 1;
        let number = self.number;
        let key = number.to_le_bytes();
        let mut put = operation(Opcode::Put, number, &key, &[7; VALUE_BYTES]);
        put.token.lowest = number;
        let frame = frame_of(&put);
        self.nodes[&1].on_client_frame(5, &frame, self.now_ms).expect("a valid frame");
        self.carry();
    }

    fn whole(&self) -> bool {
        self.table.iter().all(|entry| entry.in_sync == [1, 2])
    }
}

#[test]
fn a_bounded_transfer_stays_under_its_bound_ends_and_holds_up_no_write() {
    let mut pair = Pair::new(RATE);
    pair.join();
    let began_ms = pair.now_ms;
    let mut progress = Vec::new();
    while !pair.whole() {
        assert!(pair.now_ms < began_ms + 60_000, "it does not end: {:?}", progress.last());
        pair.tick();
        pair.put();
        assert_eq!(pair.replies.last(), Some(&status::OK), "no time passes for a write");
        assert_eq!(pair.replies.len() as u64, pair.number);
        progress.push(pair.nodes[&1].status().transfers);
    }
    let bytes = ENTRIES * VALUE_BYTES as u64;
    let took_ms = pair.now_ms - began_ms;
    assert!(
        took_ms >= (bytes - 2 * RATE / 10) * 1000 / RATE - 300,
        "{took_ms} ms for {bytes} bytes"
    );
    let burst = RATE / 10 + (SNAPSHOT_CHUNK_BYTES + VALUE_BYTES) as u64;
    for (first, (since_ms, _)) in pair.pieces.iter().enumerate() {
        let second = pair.pieces[first..].iter().take_while(|(at_ms, _)| at_ms - since_ms <= 1000);
        let sent: u64 = second.map(|(_, bytes)| bytes).sum();
        assert!(sent <= RATE + burst, "{sent} bytes in the second from {since_ms}");
    }
    // A person sees how far it is.
    assert_eq!(progress[0].copies, u64::from(PARTITIONS));
    assert!(progress[0].left_bytes > bytes / 2, "{:?}", progress[0]);
    assert!(progress.iter().any(|now| now.done_bytes > 0 && now.left_bytes > 0));
    assert_eq!((progress.last().unwrap().copies, progress.last().unwrap().left_bytes), (0, 0));
    let sent = pair.nodes[&1].status().transfer_sent_bytes;
    assert!(sent >= bytes, "{sent} of {bytes}");
}

#[test]
fn without_a_bound_a_transfer_takes_what_the_link_gives() {
    let mut pair = Pair::new(0);
    pair.join();
    for _ in 0..30 {
        pair.tick();
    }
    assert!(pair.whole());
}
