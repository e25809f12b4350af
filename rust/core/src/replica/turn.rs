//! Turns: one run of a handler for one routing key, and what queues behind it.
//!
//! One turn at a time per routing key; writes of outside clients to that routing key wait their turn
//! in arrival order, their reads do not. A turn reads its own writes, then uncommitted records, then
//! tables; its writes become one record when it finishes, or nothing. It belongs to the generation of
//! the partition in which it began: after a new epoch or a stop it appends nothing and its caller is
//! told Unknown. Callers: `primary` for invokes, `node` for the turns' reads and ends.

use std::collections::{BTreeMap, VecDeque};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::effects::Out;
use super::ownership::Role;
use super::partition::Partition;
use super::primary::Refusal;
use super::request::{Answer, Origin, OwnedOperation, arguments_hash, record_token};
use crate::error::{CoreError, Result};
use crate::frame::reply::status;
use crate::frame::request::CODEC_MSGPACK;
use crate::frame::{Opcode, Operation};
use crate::key::routing_key;
use crate::limits::{
    RECORD_BYTES_MAX, RECORD_OPERATIONS_MAX, VALUE_BYTES_MAX, check_key, check_name, check_size,
    check_value,
};
use crate::planted::{Bug, planted};
use crate::record::{Change, Reply, Token};

/// Most requests that queue behind one routing key's turn.
pub const KEY_QUEUE_MAX: usize = 10_000;

/// Everything a turn begins with.
#[derive(Debug, Clone)]
pub struct TurnStart {
    /// Number of the turn on this partition.
    pub id: u64,
    /// The partition.
    pub partition: u32,
    /// Generation of the partition in which it began.
    pub generation: u64,
    /// Wall-clock milliseconds at its beginning; decides what is expired.
    pub now_ms: u64,
    /// "Unit.handler".
    pub handler: Box<str>,
    /// Arguments: one msgpack map.
    pub arguments: Box<[u8]>,
    /// What it may touch.
    pub routing_key: Box<[u8]>,
    /// Stream of its token.
    pub stream: u64,
    /// Number of its token.
    pub number: u64,
    /// Path of its token.
    pub path: Box<[u8]>,
    /// Lowest open number of its token.
    pub lowest: u64,
    /// Callers, outermost first.
    pub chain: Vec<Box<[u8]>>,
    arguments_hash: u64,
    repeats: bool,
    origin: Origin,
}

#[derive(Debug)]
struct KeyQueue {
    running: u64,
    origin: Origin,
    queue: VecDeque<(Origin, OwnedOperation)>,
}

/// Routing keys with a running turn.
#[derive(Debug, Default)]
pub struct KeyQueues {
    keys: HashMap<Box<[u8]>, KeyQueue, FixedState>,
    started: u64,
}

impl KeyQueues {
    /// Whether no turn is running.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Turns that are running.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether a turn is running for this routing key.
    pub fn holds(&self, routing_key: &[u8]) -> bool {
        !self.keys.is_empty() && self.keys.contains_key(routing_key)
    }

    /// Queue behind the running turn, if there is one; says whether the request has been dealt with.
    pub fn queue(
        &mut self,
        routing_key: &[u8],
        operation: &Operation<'_>,
        origin: Origin,
        out: &mut Out,
    ) -> bool {
        let Some(held) = self.keys.get_mut(routing_key) else { return false };
        if held.queue.len() >= KEY_QUEUE_MAX {
            out.refuse(origin, status::BACKPRESSURE, 0);
        } else {
            held.queue.push_back((origin, OwnedOperation::new(operation)));
        }
        true
    }
}

/// What a turn has written so far.
#[derive(Debug, Default)]
pub struct Buffer {
    maps: BTreeMap<Box<str>, BTreeMap<Box<[u8]>, Written>>,
    count: usize,
    bytes: usize,
    /// Sequence of the last uncommitted record that was read.
    barrier: u64,
}

#[derive(Debug)]
enum Written {
    Put { schema: u32, value: Box<[u8]>, codec: u8, expires_at_ms: u64 },
    Delete { expired: bool },
}

/// An entry as a turn sees it; version 0 is its own write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Value.
    pub value: Box<[u8]>,
    /// Codec tag.
    pub codec: u8,
    /// Packed position that wrote it.
    pub version: u64,
    /// Absolute expiry in wall-clock milliseconds; 0 is never.
    pub expires_at_ms: u64,
}

/// How a turn ended.
#[derive(Debug)]
pub enum Ending<'a> {
    /// Its writes become one record; its caller gets this value.
    Finished(&'a [u8]),
    /// Nothing is written; its caller gets this status and value.
    Failed(u8, &'a [u8]),
}

impl Buffer {
    fn write(&mut self, map: &str, key: &[u8], written: Written) -> Result<()> {
        let size = match &written {
            Written::Put { value, .. } => value.len() + 21,
            Written::Delete { .. } => 0,
        } + map.len()
            + key.len()
            + 4;
        // Room for the token and the largest reply is kept free.
        let limit = RECORD_BYTES_MAX - VALUE_BYTES_MAX - 1024;
        check_size("the turn's writes in bytes", self.bytes + size, limit)?;
        check_size("the turn's number of writes", self.count + 1, RECORD_OPERATIONS_MAX)?;
        if !self.maps.contains_key(map) {
            self.maps.insert(map.into(), BTreeMap::new());
        }
        let Some(keys) = self.maps.get_mut(map) else { return Ok(()) };
        if keys.insert(key.into(), written).is_none() {
            self.count += 1;
        }
        self.bytes += size;
        Ok(())
    }

    fn changes(&self) -> Vec<Change<'_>> {
        let mut changes = Vec::with_capacity(self.count);
        for (map, keys) in &self.maps {
            for (key, written) in keys {
                changes.push(match written {
                    Written::Put { schema, value, codec, expires_at_ms } => Change::Put {
                        map,
                        schema: *schema,
                        key,
                        value,
                        codec: *codec,
                        expires_at_ms: *expires_at_ms,
                    },
                    Written::Delete { expired } => Change::Delete { map, key, expired: *expired },
                });
            }
        }
        changes
    }
}

impl TurnStart {
    /// Whether a key belongs to this turn's routing key.
    pub fn owns(&self, key: &[u8]) -> bool {
        routing_key(key) == &*self.routing_key
    }

    fn token(&self) -> Token<'_> {
        Token { stream: self.stream, number: self.number, path: &self.path, lowest: self.lowest }
    }
}

impl Partition {
    /// Run a handler, unless its request was carried out before or is its own caller.
    pub(super) fn invoke(
        &mut self,
        operation: &Operation<'_>,
        origin: Origin,
        now_ms: u64,
        out: &mut Out,
    ) {
        let key = routing_key(operation.key);
        // One turn at a time per routing key, whatever its unit: a call back would wait for itself.
        let in_chain = operation.chain.entries().any(|caller| {
            caller.iter().position(|byte| *byte == 0).is_some_and(|at| caller[at + 1..] == *key)
        });
        if in_chain {
            out.refuse(origin, status::CALL_CYCLE, 0);
            return;
        }
        let hash = arguments_hash(operation);
        if !self.is_fresh(&record_token(operation), hash, origin, out)
            || (!planted(Bug::TurnsNotQueued) && self.keys.queue(key, operation, origin, out))
        {
            return;
        }
        self.start_turn(operation, hash, origin, now_ms, VecDeque::new(), out);
    }

    fn start_turn(
        &mut self,
        operation: &Operation<'_>,
        arguments_hash: u64,
        origin: Origin,
        now_ms: u64,
        queue: VecDeque<(Origin, OwnedOperation)>,
        out: &mut Out,
    ) {
        self.keys.started += 1;
        let running = self.keys.started;
        let key: Box<[u8]> = routing_key(operation.key).into();
        self.keys.keys.insert(key.clone(), KeyQueue { running, origin, queue });
        out.turns.push(TurnStart {
            id: running,
            partition: self.index,
            generation: self.generation,
            now_ms,
            handler: operation.map.into(),
            arguments: operation.value.into(),
            routing_key: key,
            stream: operation.token.stream,
            number: operation.token.number,
            path: operation.token.path.into(),
            lowest: operation.token.lowest,
            chain: operation.chain.entries().map(Into::into).collect(),
            arguments_hash,
            repeats: operation.repeats(),
            origin,
        });
    }

    /// Whether a turn still belongs to this partition.
    pub fn runs(&self, turn: &TurnStart) -> bool {
        let alone =
            self.keys.keys.get(&turn.routing_key).is_some_and(|held| held.running == turn.id);
        self.role == Role::Primary
            && self.generation == turn.generation
            && (alone || planted(Bug::TurnsNotQueued))
    }

    /// A turn reads a key of its own.
    pub fn turn_read(
        &self,
        turn: &TurnStart,
        buffer: &mut Buffer,
        map: &str,
        key: &[u8],
    ) -> Result<Option<Seen>> {
        if let Some(written) = buffer.maps.get(map).and_then(|keys| keys.get(key)) {
            return Ok(match written {
                Written::Delete { .. } => None,
                Written::Put { value, codec, expires_at_ms, .. } => Some(Seen {
                    value: value.clone(),
                    codec: *codec,
                    version: 0,
                    expires_at_ms: *expires_at_ms,
                }),
            });
        }
        let current = self.current(map, key);
        buffer.barrier = buffer.barrier.max(current.sequence);
        let Some(value) = current.value else { return Ok(None) };
        if current.expires_at_ms != 0 && current.expires_at_ms <= turn.now_ms {
            // Its time is over, and this turn's record says so.
            buffer.write(map, key, Written::Delete { expired: true })?;
            return Ok(None);
        }
        Ok(Some(Seen {
            value: value.into(),
            codec: current.codec,
            version: current.version,
            expires_at_ms: current.expires_at_ms,
        }))
    }

    /// A turn writes a key of its own.
    pub fn turn_put(
        &self,
        buffer: &mut Buffer,
        map: &str,
        schema: u32,
        key: &[u8],
        value: &[u8],
        codec: u8,
        expires_at_ms: u64,
    ) -> Result<()> {
        check_name(map)?;
        check_key(key)?;
        check_value(value)?;
        if codec > CODEC_MSGPACK {
            return Err(CoreError::Invalid { what: "a codec", value: u64::from(codec) });
        }
        self.store.check_schema(map, schema)?;
        buffer.write(map, key, Written::Put { schema, value: value.into(), codec, expires_at_ms })
    }

    /// A turn deletes a key of its own; says whether it was there.
    pub fn turn_delete(
        &self,
        turn: &TurnStart,
        buffer: &mut Buffer,
        map: &str,
        key: &[u8],
    ) -> Result<bool> {
        check_name(map)?;
        check_key(key)?;
        let there = self.turn_read(turn, buffer, map, key)?.is_some();
        if there {
            buffer.write(map, key, Written::Delete { expired: false })?;
        }
        Ok(there)
    }

    /// Sequence of the last uncommitted record that a turn has read, if there is one.
    pub fn turn_barrier(&self, buffer: &Buffer) -> Option<u64> {
        (buffer.barrier > self.commit).then_some(buffer.barrier)
    }

    /// A turn ends: append its record, answer its caller after commit, begin what is next.
    pub fn end_turn(
        &mut self,
        turn: &TurnStart,
        buffer: &Buffer,
        ending: &Ending<'_>,
        now_ms: u64,
        out: &mut Out,
    ) {
        if !self.runs(turn) {
            return; // Void: its caller has been told.
        }
        let origin = turn.origin;
        match *ending {
            Ending::Failed(status, value) => {
                let codec = if value.is_empty() { 0 } else { CODEC_MSGPACK };
                let value = value.into();
                let answer = Answer { status, codec, version: 0, value, recorded: false };
                self.answer_turn(turn, buffer, answer, out);
            }
            Ending::Finished(value) if value.len() > VALUE_BYTES_MAX => {
                self.refuse(origin, Refusal(status::TOO_LARGE), out);
            }
            Ending::Finished(value) if buffer.count == 0 => {
                let codec = CODEC_MSGPACK;
                let (status, value) = (status::OK, value.into());
                let answer = Answer { status, codec, version: 0, value, recorded: false };
                self.answer_turn(turn, buffer, answer, out);
            }
            Ending::Finished(value) => self.append_turn(turn, buffer, value, out),
        }
        self.next_turn(turn, now_ms, out);
    }

    /// Answer a turn that wrote nothing; see `answer_unchanged` for those that repeat.
    fn answer_turn(&mut self, turn: &TurnStart, buffer: &Buffer, answer: Answer, out: &mut Out) {
        let (origin, token, hash) = (turn.origin, turn.token(), turn.arguments_hash);
        if !turn.repeats || status::is_retryable(answer.status) {
            // It wrote nothing; to be as durable as asked is what it has read.
            let ok = origin.persisted && answer.status == status::OK;
            let sequence = if ok { buffer.barrier.max(self.commit) } else { buffer.barrier };
            self.answer_or(sequence, origin, answer, status::UNKNOWN, out);
        } else if self.is_fresh(&token, hash, origin, out) {
            self.answer_recorded(&token, hash, origin, answer, out);
        }
    }

    fn append_turn(&mut self, turn: &TurnStart, buffer: &Buffer, value: &[u8], out: &mut Out) {
        let (origin, token, hash) = (turn.origin, turn.token(), turn.arguments_hash);
        if !self.is_fresh(&token, hash, origin, out) {
            return;
        }
        let version = self.next_position().pack();
        let codec = CODEC_MSGPACK;
        let reply = Reply { status: status::OK, flags: 0, codec, version, value };
        match self.append(&buffer.changes(), Some(&token), hash, Some(&reply), out) {
            Err(refusal) => self.refuse(origin, refusal, out),
            Ok(position) => {
                let (status, value) = (status::OK, value.into());
                let answer = Answer { status, codec, version, value, recorded: true };
                self.answer_or(position.sequence, origin, answer, status::UNKNOWN, out);
            }
        }
    }

    /// Carry out what queued behind a turn, up to the next turn.
    fn next_turn(&mut self, turn: &TurnStart, now_ms: u64, out: &mut Out) {
        let Some(mut held) = self.keys.keys.remove(&turn.routing_key) else { return };
        while let Some((origin, owned)) = held.queue.pop_front() {
            let operation = owned.borrow();
            if let Some((status, version)) = self.refusal() {
                out.refuse(origin, status, version);
                continue;
            }
            if operation.opcode != Opcode::Invoke {
                self.execute(&operation, origin, now_ms, out);
                continue;
            }
            let hash = arguments_hash(&operation);
            if self.is_fresh(&record_token(&operation), hash, origin, out) {
                self.start_turn(&operation, hash, origin, now_ms, held.queue, out);
                return;
            }
        }
        self.want_handover(false, out);
    }

    /// Every turn that is running or queued here is void.
    pub(super) fn void_turns(&mut self, out: &mut Out) {
        self.generation += 1;
        let revision = self.settings.revision();
        let mut held: Vec<_> = std::mem::take(&mut self.keys.keys).into_iter().collect();
        held.sort_unstable_by(|left, right| left.0.cmp(&right.0));
        for (_, held) in held {
            out.refuse(held.origin, status::UNKNOWN, 0);
            for (origin, _) in held.queue {
                out.refuse(origin, status::NOT_PRIMARY, revision);
            }
        }
    }
}
