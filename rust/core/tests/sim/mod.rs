//! A simulated cluster for `replica_cluster`: everything but the nodes themselves is a model.
//!
//! More than 500 lines in one room: clients, links, pump and checker share one state and one source of
//! chance, and are only understood together. The controller is beside it.

mod controller;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use spacegrid_core::frame::reply::{FLAG_RECORDED, status};
use spacegrid_core::frame::request::{Chain, FLAG_REPEAT, FLAG_TOKEN};
use spacegrid_core::frame::{Opcode, Operation, ReplyFrame, RequestBuilder, Token};
use spacegrid_core::key::partition_of;
use spacegrid_core::record::{Change, Position, decode};
use spacegrid_core::replica::{
    Buffer, ChangeKind, ChangeWanted, Config, Ending, Node, Ownership, Role, SHARED, State,
    TurnStart,
};

pub const PARTITIONS: u32 = 3;
const KEYS: usize = 9;
const RAW: u64 = 1 << 40;

#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each switches one kind of step on")]
pub struct Options {
    pub crashes: bool,
    pub handovers: bool,
    pub shared_sink: bool,
    /// Healthy primaries are deposed while they go on: zombies. Without leases their reads may be
    /// old, so nobody reads.
    pub suspicions: bool,
    /// Healthy backups are taken out and back in, and the last complete copy may crash where a
    /// removed one and a tail have everything together.
    pub recoveries: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            crashes: true,
            handovers: false,
            shared_sink: false,
            suspicions: false,
            recoveries: false,
        }
    }
}

/// What a client wants of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Put(i64),
    Delete,
    Incr(i64),
    Turn,
    Read,
}

/// One key and the client that alone uses it.
#[derive(Debug)]
struct Key {
    bytes: Vec<u8>,
    stream: u64,
    number: u64,
    want: Option<Want>,
    /// It was refused or bounced: it may be sent again.
    resend: bool,
    /// How often it was sent: what may still arrive once more is sent as a repeat (ADR 9).
    sent: u32,
    model: Option<i64>,
    last_status: Option<u8>,
}

type Table = Vec<Ownership>;
type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

pub struct Sim {
    options: Options,
    random: u64,
    pub now_ms: u64,
    nodes: BTreeMap<u64, Node>,
    next_copy: u64,
    links: BTreeMap<(u64, u64), VecDeque<Vec<u8>>>,
    requests: VecDeque<(u64, Vec<u8>)>,
    tables: BTreeMap<u64, VecDeque<(u64, Table)>>,
    table: Table,
    revision: u64,
    asked: VecDeque<(u64, ChangeWanted)>,
    turns: VecDeque<(u64, TurnStart)>,
    keys: Vec<Key>,
    raw: BTreeMap<u64, u8>,
    /// The shared database: per partition a checkpoint and rows.
    sink: Vec<(Position, Rows)>,
    pub accepted: Vec<(u32, ChangeKind)>,
    pub answered: u64,
    pub crashes: u64,
    pub turns_run: u64,
    /// Partitions that a removed copy serves again that a tail has completed.
    pub recovered: u64,
    pub trace: u64,
}

impl Sim {
    pub fn new(seed: u64, options: Options) -> Self {
        let mut keys = Vec::new();
        let mut per_partition = [0; PARTITIONS as usize];
        for n in 0.. {
            let key = format!("key{n}").into_bytes();
            let count = &mut per_partition[partition_of(&key, PARTITIONS) as usize];
            if *count < KEYS / PARTITIONS as usize {
                *count += 1;
                let stream = (1 << 32) | (keys.len() as u64 + 1);
                let (number, model) = (0, None);
                let (want, resend, sent, last_status) = (None, false, 0, None);
                keys.push(Key {
                    bytes: key,
                    stream,
                    number,
                    want,
                    resend,
                    sent,
                    model,
                    last_status,
                });
            }
            if keys.len() == KEYS {
                break;
            }
        }
        let table = (0..PARTITIONS)
            .map(|partition| {
                let copies = [u64::from(partition) % 3 + 1, u64::from(partition + 1) % 3 + 1];
                Ownership {
                    epoch: 1,
                    version: 1,
                    primary: copies[0],
                    in_sync: copies.to_vec(),
                    ..Ownership::default()
                }
            })
            .collect();
        let mut sim = Self {
            options,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            now_ms: 1000,
            nodes: BTreeMap::new(),
            next_copy: 1,
            links: BTreeMap::new(),
            requests: VecDeque::new(),
            tables: BTreeMap::new(),
            table,
            revision: 1,
            asked: VecDeque::new(),
            turns: VecDeque::new(),
            keys,
            raw: BTreeMap::new(),
            sink: vec![(Position::ZERO, BTreeMap::new()); PARTITIONS as usize],
            accepted: Vec::new(),
            answered: 0,
            crashes: 0,
            turns_run: 0,
            recovered: 0,
            trace: 0,
        };
        (0..3).for_each(|_| sim.boot());
        sim
    }

    fn draw(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        if of.is_empty() { None } else { Some(of[self.draw(of.len())]) }
    }

    fn boot(&mut self) {
        let copy = self.next_copy;
        self.next_copy += 1;
        let node = Node::new(&Config {
            copy,
            partition_count: PARTITIONS,
            min_in_sync: 2,
            quota_bytes: 0,
            log_bytes: 0,
            shared_sink: self.options.shared_sink,
            local_sink: false,
        })
        .expect("valid");
        for (other, known) in &self.nodes {
            node.peer_up(*other);
            known.peer_up(copy);
        }
        self.nodes.insert(copy, node);
        self.tables.entry(copy).or_default().push_back((self.revision, self.table.clone()));
    }

    pub fn node(&self, copy: u64) -> &Node {
        &self.nodes[&copy]
    }

    pub fn primary_of(&self, partition: usize) -> u64 {
        self.table[partition].primary
    }

    pub fn backup_of(&self, partition: usize) -> u64 {
        let entry = &self.table[partition];
        *entry.in_sync.iter().find(|copy| **copy != entry.primary).expect("a backup")
    }

    pub fn key_in(&self, partition: u32) -> usize {
        let holds = |key: &Key| partition_of(&key.bytes, PARTITIONS) == partition;
        self.keys.iter().position(holds).expect("a key in each")
    }

    /// Put (and have acknowledged) a value.
    pub fn put(&mut self, key: usize, value: i64) {
        self.ask_put(key, value);
        self.settle();
        assert_eq!(self.pending(key), None);
    }

    pub fn ask_delete(&mut self, key: usize) {
        self.ask(key, Want::Delete);
    }

    pub fn entry(&self, partition: usize) -> &Ownership {
        &self.table[partition]
    }

    /// Deliver what links hold, except frames that `keep` takes out.
    pub fn deliver_links(&mut self, mut keep: impl FnMut(u64, u64, &[u8]) -> bool) {
        for ((from, to), queue) in &mut self.links {
            for frame in queue.drain(..) {
                if !keep(*from, *to, &frame) {
                    self.nodes[to].on_peer_frame(*from, &frame, self.now_ms).expect("valid");
                }
            }
        }
    }

    /// One round of everything, with the links under the caller's control.
    pub fn round(&mut self, keep: impl FnMut(u64, u64, &[u8]) -> bool) {
        self.now_ms += 20;
        for copy in self.live() {
            while !self.tables[&copy].is_empty() {
                self.deliver_table();
            }
            self.nodes[&copy].tick(self.now_ms);
            self.collect(copy);
        }
        self.deliver_links(keep);
        self.deliver_requests();
        while let Some((sender, asked)) = self.asked.pop_front() {
            self.decide(sender, &asked);
        }
        self.repair();
    }

    // ---- one step ----

    pub fn step(&mut self) {
        match self.draw(100) {
            0..=34 => self.deliver_one(),
            35..=44 => self.deliver_table(),
            45..=64 => self.collect_one(),
            65..=79 => self.ask_one(),
            80..=85 => self.deliver_request(),
            86..=88 => self.tick_one(),
            89..=91 => self.decide_one(),
            94 if self.options.recoveries => self.remove_one(),
            92..=94 => self.run_turn(),
            95 => self.reset_link(),
            96 if self.options.crashes => self.crash_one(),
            97 if self.options.handovers => self.begin_handover(),
            98 if self.options.suspicions => self.suspect(),
            _ => self.pump_one(),
        }
        for node in self.nodes.values() {
            node.check();
        }
        let commits = self.nodes.values().map(|node| node.status().uncommitted).sum::<u64>();
        self.trace = self.trace.rotate_left(5) ^ self.answered ^ (commits << 32) ^ self.random;
    }

    fn deliver_one(&mut self) {
        let full: Vec<(u64, u64)> = self
            .links
            .iter()
            .filter(|(_, queue)| !queue.is_empty())
            .map(|(link, _)| *link)
            .collect();
        if let Some((from, to)) = self.pick(&full)
            && let Some(frame) = self.links.get_mut(&(from, to)).and_then(VecDeque::pop_front)
            && let Some(node) = self.nodes.get(&to)
        {
            node.on_peer_frame(from, &frame, self.now_ms).expect("own frames are valid");
        }
    }

    fn deliver_table(&mut self) {
        let behind: Vec<u64> = self
            .tables
            .iter()
            .filter(|(_, queue)| !queue.is_empty())
            .map(|(copy, _)| *copy)
            .collect();
        if let Some(copy) = self.pick(&behind)
            && let Some((revision, table)) =
                self.tables.get_mut(&copy).and_then(VecDeque::pop_front)
        {
            let entries = (0..).zip(table).collect();
            self.nodes[&copy].apply_table(revision, entries, self.now_ms);
        }
    }

    fn live(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    fn collect_one(&mut self) {
        let live = self.live();
        if let Some(copy) = self.pick(&live) {
            self.collect(copy);
        }
    }

    pub fn collect(&mut self, copy: u64) {
        let Some(effects) = self.nodes[&copy].take_effects(true, || 0) else { return };
        for (to, frame) in effects.peer_frames {
            if self.nodes.contains_key(&to) {
                self.links.entry((copy, to)).or_default().push_back(frame);
            }
        }
        self.asked.extend(effects.changes.into_iter().map(|change| (copy, change)));
        self.turns.extend(effects.turns.into_iter().map(|turn| (copy, turn)));
        for (_, frame) in effects.client_frames {
            let frame = ReplyFrame::decode(&frame).expect("own frames are valid");
            for reply in frame.replies() {
                let recorded = reply.flags & FLAG_RECORDED != 0;
                self.answer(frame.stream, reply.number, reply.status, recorded, reply.value);
            }
        }
    }

    fn tick_one(&mut self) {
        self.now_ms += 20;
        let live = self.live();
        if let Some(copy) = self.pick(&live) {
            self.nodes[&copy].tick(self.now_ms);
        }
    }

    fn reset_link(&mut self) {
        let live = self.live();
        if let (Some(from), Some(to)) = (self.pick(&live), self.pick(&live))
            && from != to
        {
            self.clear_link(from, to);
            self.nodes[&from].peer_down(to);
            self.nodes[&from].peer_up(to);
        }
    }

    pub fn clear_link(&mut self, from: u64, to: u64) {
        self.links.remove(&(from, to));
    }

    // ---- clients ----

    fn ask_one(&mut self) {
        let key = self.draw(KEYS);
        if self.keys[key].want.is_none() {
            let want = match self.draw(10) {
                0..=2 => Want::Put(i64::from(self.draw(100) as u32)),
                3 => Want::Delete,
                4..=5 => Want::Incr(i64::from(self.draw(9) as u32) - 4),
                8..=9 if !self.options.suspicions => Want::Read,
                _ => Want::Turn,
            };
            self.ask(key, want);
        } else if self.keys[key].resend || self.draw(30) == 0 {
            self.send(key);
        }
    }

    pub fn ask_put(&mut self, key: usize, value: i64) {
        assert!(self.keys[key].want.is_none());
        self.ask(key, Want::Put(value));
    }

    fn ask(&mut self, key: usize, want: Want) {
        self.keys[key].want = Some(want);
        self.keys[key].number += 1;
        self.keys[key].sent = 0;
        self.send(key);
    }

    pub fn pending(&self, key: usize) -> Option<()> {
        self.keys[key].want.map(|_| ())
    }

    pub fn last_status(&self, key: usize) -> Option<u8> {
        self.keys[key].last_status
    }

    fn frame(&self, key: usize, opcode: Opcode, stream: u64, number: u64, value: &[u8]) -> Vec<u8> {
        let turn = opcode == Opcode::Invoke;
        let again = self.keys[key].sent > 0 && opcode != Opcode::Get;
        let mut builder = RequestBuilder::new(stream);
        builder
            .push(&Operation {
                opcode,
                flags: if again { FLAG_REPEAT } else { 0 },
                map: if turn { "T.add" } else { "m" },
                schema: 0,
                number,
                token: Token { stream, number, path: b"", lowest: number },
                key: &self.keys[key].bytes,
                codec: u8::from(opcode == Opcode::Put),
                value,
                ttl_ms: 0,
                expected: 0,
                chain: Chain::default(),
            })
            .expect("valid");
        builder.finish().expect("one operation")
    }

    fn send(&mut self, key: usize) {
        let Some(want) = self.keys[key].want else { return };
        let number_value;
        let (opcode, value): (Opcode, &[u8]) = match want {
            Want::Put(value) => {
                number_value = msgpack(value);
                (Opcode::Put, &number_value)
            }
            Want::Delete => (Opcode::Delete, b""),
            Want::Incr(delta) => {
                number_value = delta.to_le_bytes().to_vec();
                (Opcode::Incr, &number_value)
            }
            Want::Turn => (Opcode::Invoke, b"\x80"),
            Want::Read => (Opcode::Get, b""),
        };
        let (stream, number) = (self.keys[key].stream, self.keys[key].number);
        let frame = self.frame(key, opcode, stream, number, value);
        let partition = partition_of(&self.keys[key].bytes, PARTITIONS) as usize;
        self.keys[key].resend = false;
        let to = self.table[partition].primary;
        if self.nodes.contains_key(&to) {
            self.requests.push_back((to, frame));
            self.keys[key].sent += 1;
        } else {
            self.keys[key].resend = true;
        }
    }

    fn deliver_request(&mut self) {
        // Requests of different connections may overtake each other.
        if self.requests.is_empty() {
            return;
        }
        let at = self.draw(self.requests.len());
        if let Some((to, frame)) = self.requests.remove(at)
            && let Some(node) = self.nodes.get(&to)
        {
            node.on_client_frame(to, &frame, self.now_ms).expect("own frames are valid");
        }
    }

    pub fn deliver_requests(&mut self) {
        while !self.requests.is_empty() {
            self.deliver_request();
        }
    }

    pub fn raw_read(&mut self, at: u64, key: usize) -> u64 {
        let number = RAW + self.raw.len() as u64 + 1;
        let frame = self.frame(key, Opcode::Get, RAW, number, b"");
        self.nodes[&at].on_client_frame(at, &frame, self.now_ms).expect("valid");
        number
    }

    /// Send a key's last request again under another correlation number.
    pub fn repeat_last_put(&mut self, at: u64, key: usize, value: i64) -> u64 {
        let number = RAW + self.raw.len() as u64 + 1;
        let value = msgpack(value);
        let (stream, last) = (self.keys[key].stream, self.keys[key].number);
        let mut builder = RequestBuilder::new(RAW);
        builder
            .push(&Operation {
                opcode: Opcode::Put,
                flags: FLAG_TOKEN,
                map: "m",
                schema: 0,
                number,
                token: Token { stream, number: last, path: b"", lowest: last },
                key: &self.keys[key].bytes,
                codec: 1,
                value: &value,
                ttl_ms: 0,
                expected: 0,
                chain: Chain::default(),
            })
            .expect("valid");
        let frame = builder.finish().expect("one operation");
        self.nodes[&at].on_client_frame(at, &frame, self.now_ms).expect("valid");
        number
    }

    pub fn raw_answer(&self, number: u64) -> Option<u8> {
        self.raw.get(&number).copied()
    }

    fn answer(&mut self, stream: u64, number: u64, status: u8, recorded: bool, value: &[u8]) {
        if stream == RAW {
            self.raw.insert(number, status);
            return;
        }
        let Some(key) = self.keys.iter_mut().find(|key| key.stream == stream) else { return };
        let Some(want) = key.want else { return };
        if number != key.number {
            return; // A late answer to what was answered before.
        }
        key.last_status = Some(status);
        if status::is_retryable(status) {
            key.resend = true;
            return;
        }
        // Another attempt may come to another answer, unless a record holds this one.
        let depends = matches!(want, Want::Delete if status == status::MISS) || want == Want::Turn;
        if depends && key.sent > 1 && !recorded {
            key.resend = true;
            return;
        }
        let before = key.model;
        match want {
            Want::Put(value) => {
                assert_eq!(status, status::OK);
                key.model = Some(value);
            }
            Want::Delete => {
                let expected = if before.is_some() { status::OK } else { status::MISS };
                assert_eq!(status, expected, "delete of {before:?}");
                key.model = None;
            }
            Want::Incr(delta) => {
                assert_eq!(status, status::OK);
                key.model = Some(before.unwrap_or(0) + delta);
                assert_eq!(number_of(value), key.model, "incr from {before:?}");
            }
            Want::Turn => {
                assert_eq!(status, status::OK);
                key.model = Some(before.unwrap_or(0) + 1);
                assert_eq!(number_of(value), key.model, "a turn applied once, from {before:?}");
            }
            Want::Read => {
                let expected = if before.is_some() { status::OK } else { status::MISS };
                assert_eq!(status, expected, "read of {before:?}, got {value:?}");
                assert_eq!(before, if before.is_some() { number_of(value) } else { None });
            }
        }
        key.want = None;
        self.answered += 1;
    }

    fn run_turn(&mut self) {
        if self.turns.is_empty() {
            return;
        }
        let at = self.draw(self.turns.len());
        let Some((copy, turn)) = self.turns.remove(at) else { return };
        let Some(node) = self.nodes.get(&copy) else { return };
        self.turns_run += 1;
        let mut buffer = Buffer::default();
        let mut reply = Vec::new();
        {
            let partition = node.partition(turn.partition).expect("there");
            if partition.runs(&turn) {
                let seen = partition.turn_read(&turn, &mut buffer, "m", &turn.routing_key);
                let seen = seen.expect("readable").and_then(|seen| number_of(&seen.value));
                reply = msgpack(seen.unwrap_or(0) + 1);
                let key = &turn.routing_key;
                partition.turn_put(&mut buffer, "m", 0, key, &reply, 1, 0).expect("fits");
            }
        }
        let next = node.end_turn(&turn, &buffer, &Ending::Finished(&reply), self.now_ms);
        self.turns.extend(next.into_iter().map(|turn| (copy, turn)));
    }

    // ---- the pump of the shared sink ----

    fn pump_one(&mut self) {
        if !self.options.shared_sink {
            return;
        }
        let live = self.live();
        let Some(copy) = self.pick(&live) else { return };
        for index in self.nodes[&copy].pump_ready(SHARED) {
            // The fence: only the primary of the newest epoch writes, as the database would see it.
            if self.table[index as usize].primary != copy {
                continue;
            }
            let (checkpoint, rows) = &mut self.sink[index as usize];
            let mut partition = self.nodes[&copy].partition(index).expect("there");
            if partition.entry().map(|entry| entry.epoch) != Some(self.table[index as usize].epoch)
            {
                continue;
            }
            if partition.cursor(SHARED).is_none() {
                assert!(partition.set_cursor(SHARED, *checkpoint), "a gap at {checkpoint:?}");
            }
            assert_eq!(partition.cursor(SHARED), Some(*checkpoint));
            let Some(batch) = partition.read_log(SHARED, 5, 1 << 20) else { continue };
            for (position, bytes) in &batch.records {
                assert_eq!(position.sequence, checkpoint.sequence + 1, "nothing missing or twice");
                for change in decode(bytes).expect("own record").changes() {
                    match change {
                        Change::Put { key, value, .. } => rows.insert(key.into(), value.into()),
                        Change::Delete { key, .. } => rows.remove(key),
                    };
                }
                *checkpoint = *position;
            }
            assert!(partition.advance_cursor(SHARED, *checkpoint));
        }
    }

    // ---- the end ----

    /// Deliver everything, let time pass, send again, until nothing is open.
    pub fn settle(&mut self) {
        for _ in 0..400 {
            for copy in self.live() {
                while !self.tables[&copy].is_empty() {
                    self.deliver_table();
                }
                self.nodes[&copy].tick(self.now_ms);
                self.collect(copy);
            }
            while self.links.values().any(|queue| !queue.is_empty()) {
                self.deliver_one();
            }
            self.deliver_requests();
            while !self.turns.is_empty() {
                self.run_turn();
            }
            while let Some((sender, asked)) = self.asked.pop_front() {
                self.decide(sender, &asked);
            }
            self.repair();
            for _ in 0..5 {
                self.pump_one();
            }
            for key in 0..KEYS {
                if self.keys[key].resend {
                    self.send(key);
                }
            }
            self.now_ms += 50;
            for node in self.nodes.values() {
                node.check();
            }
        }
    }

    pub fn heal(&mut self) {
        for key in 0..KEYS {
            self.keys[key].resend |= self.keys[key].want.is_some();
        }
        self.settle();
    }

    /// Everything asked is answered; copies, model and database are equal.
    pub fn compare(&mut self) {
        for key in &self.keys {
            assert_eq!(key.want, None, "unanswered: {key:?} {:?}", self.table);
        }
        for (index, entry) in self.table.clone().iter().enumerate() {
            assert_eq!(entry.state, State::Ok);
            assert!(entry.in_sync.len() >= 2, "not repaired: {entry:?}");
            let mut commits = BTreeSet::new();
            for copy in &entry.in_sync {
                let partition = self.nodes[copy].partition(index as u32).expect("there");
                let role = if *copy == entry.primary { Role::Primary } else { Role::Backup };
                assert_eq!(partition.role(), role);
                commits.insert(partition.commit());
                let mut count = 0;
                for key in &self.keys {
                    if partition_of(&key.bytes, PARTITIONS) as usize != index {
                        continue;
                    }
                    let entry = partition.store().get("m", &key.bytes);
                    assert!(entry.is_none_or(|entry| !entry.tombstone), "a tombstone is left");
                    let value = entry.and_then(|entry| number_of(entry.value));
                    assert_eq!(value, key.model, "copy {copy} of {key:?}");
                    count += usize::from(value.is_some());
                    if self.options.shared_sink {
                        let row = self.sink[index].1.get(&key.bytes);
                        assert_eq!(row.and_then(|row| number_of(row)), key.model, "in the sink");
                    }
                }
                assert_eq!(partition.store().total_len(), count);
            }
            assert_eq!(commits.len(), 1, "copies are at one position");
        }
    }

    pub fn copies_with_last(&self, partition: u32) -> usize {
        let last = |node: &Node| node.partition(partition).map(|p| p.log().last());
        let newest = self.nodes.values().filter_map(last).max();
        self.nodes.values().filter(|node| last(node) == newest).count()
    }
}

fn msgpack(number: i64) -> Vec<u8> {
    let mut out = vec![0xd3];
    out.extend_from_slice(&number.to_be_bytes());
    out
}

fn number_of(value: &[u8]) -> Option<i64> {
    match value {
        [0xd3, rest @ ..] => Some(i64::from_be_bytes(rest.try_into().ok()?)),
        [tag @ (0..=0x7f | 0xe0..=0xff)] => Some(i64::from(tag.cast_signed())),
        [0xcc, small] => Some(i64::from(*small)),
        [0xd0, small] => Some(i64::from(small.cast_signed())),
        [0xcd, high, low] => Some(i64::from(u16::from_be_bytes([*high, *low]))),
        [0xd1, high, low] => Some(i64::from(i16::from_be_bytes([*high, *low]))),
        _ => None,
    }
}
