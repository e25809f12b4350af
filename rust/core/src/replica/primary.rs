//! Carrying out requests at the primary.
//!
//! Over 500 lines in one room: each operation answers by the same rules, which are read side by side.
//!
//! Conditions and reads look into the overlay first and then into the tables; every answer leaves
//! after the commit of the position at which it was computed. With nobody else to wait for, a write
//! goes straight into the tables. Refusals of admission (not the primary, too few copies, no memory, a
//! full log) are surely not applied. Callers: `node` for frames, `turn` for what queued behind a turn.

use super::effects::Out;
use super::memory::growth;
use super::ownership::Role;
use super::partition::{Partition, Waiting, apply_change};
use super::request::{Answer, Origin, arguments_hash, record_token};
use super::streams::{Kept, Verdict};
use crate::frame::reply::{FLAG_RECORDED, status};
use crate::frame::request::{CODEC_MSGPACK, FLAG_CONFIRMED, FLAG_IF_ABSENT, FLAG_STALE};
use crate::frame::scan::{PageBuilder, PageEntry};
use crate::frame::{Opcode, Operation, Reply};
use crate::key::routing_key;
use crate::planted::{Bug, planted};
use crate::record::{self, Change, Position, Token};
use crate::store::EntryRef;

/// What a full log tells its clients: ask again after this long.
pub const BACKPRESSURE_HINT_MS: u32 = 20;
/// Most answers of one partition that wait for a commit.
pub const WAITING_MAX: usize = 100_000;

/// A key as it is now, uncommitted records included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Current<'a> {
    pub value: Option<&'a [u8]>,
    pub codec: u8,
    /// 0 when there is no entry.
    pub version: u64,
    pub expires_at_ms: u64,
    /// Sequence of the uncommitted record that made it so; 0 when it is committed.
    pub sequence: u64,
}

impl Current<'_> {
    fn due(&self, now_ms: u64) -> bool {
        self.value.is_some() && self.expires_at_ms != 0 && self.expires_at_ms <= now_ms
    }
}

/// Why a write was refused before anything was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal(pub u8);

impl Partition {
    /// A key as it is now.
    #[inline]
    pub(super) fn current(&self, map: &str, key: &[u8]) -> Current<'_> {
        if let Some(image) = self.overlay.get(map, key) {
            let version = if image.value.is_some() { image.position.pack() } else { 0 };
            return Current {
                value: image.value.as_deref(),
                codec: image.codec,
                version,
                expires_at_ms: image.expires_at_ms,
                sequence: image.position.sequence,
            };
        }
        self.committed(map, key)
    }

    /// A key as the committed records left it.
    #[inline]
    fn committed(&self, map: &str, key: &[u8]) -> Current<'_> {
        match self.store.get(map, key) {
            Some(entry) if !entry.tombstone => Current {
                value: Some(entry.value),
                codec: entry.codec,
                version: entry.version,
                expires_at_ms: entry.expires_at_ms,
                sequence: 0,
            },
            _ => Current { value: None, codec: 0, version: 0, expires_at_ms: 0, sequence: 0 },
        }
    }

    /// A committed entry for a reader in this process; the outer `None`: not served here.
    ///
    /// What a new primary has yet to commit may have been acknowledged by the old one, so such a key
    /// is not served until then.
    #[inline]
    pub fn read_committed(
        &self,
        map: &str,
        key: &[u8],
        now_ms: u64,
    ) -> Option<Option<EntryRef<'_>>> {
        if self.refusal().is_some() {
            return None;
        }
        if self.commit < self.promoted_at && self.overlay.get(map, key).is_some() {
            return None;
        }
        let entry = self.store.get(map, key).filter(|entry| {
            !entry.tombstone && (entry.expires_at_ms == 0 || entry.expires_at_ms > now_ms)
        });
        Some(entry)
    }

    /// Carry out one operation of a client frame.
    pub fn execute(
        &mut self,
        operation: &Operation<'_>,
        origin: Origin,
        now_ms: u64,
        out: &mut Out,
    ) {
        if operation.flags & FLAG_STALE != 0 {
            self.read_stale(operation, origin, now_ms, out);
            return;
        }
        if let Some((status, version)) = self.refusal() {
            out.refuse(origin, status, version);
            return;
        }
        match operation.opcode {
            Opcode::Get | Opcode::Contains => self.read(operation, origin, now_ms, out),
            Opcode::Size | Opcode::Scan => self.read_all(operation, origin, now_ms, out),
            Opcode::Invoke => self.invoke(operation, origin, now_ms, out),
            Opcode::Put | Opcode::Delete | Opcode::Incr => {
                if !self.keys.is_empty()
                    && self.keys.queue(routing_key(operation.key), operation, origin, out)
                {
                    return;
                }
                self.write(operation, origin, now_ms, out);
            }
        }
    }

    #[inline]
    fn read(&mut self, operation: &Operation<'_>, origin: Origin, now_ms: u64, out: &mut Out) {
        let current = self.current(operation.map, operation.key);
        if current.due(now_ms) {
            self.read_due(operation, origin, now_ms, out);
            return;
        }
        let contains = operation.opcode == Opcode::Contains;
        let reply = Reply {
            number: origin.number,
            status: if current.value.is_some() { status::OK } else { status::MISS },
            flags: 0,
            codec: if contains { 0 } else { current.codec },
            copies: self.copies(),
            version: current.version,
            value: if contains { &[] } else { current.value.unwrap_or_default() },
        };
        let confirmed = operation.flags & FLAG_CONFIRMED != 0 && !planted(Bug::ConfirmedUnasked);
        if (current.sequence == 0 || planted(Bug::DirtyRead)) && !confirmed {
            out.reply(origin, &reply);
        } else {
            let answer = Answer {
                status: reply.status,
                codec: reply.codec,
                version: reply.version,
                value: reply.value.into(),
                recorded: false,
            };
            let sequence = current.sequence;
            if confirmed {
                self.answer_confirmed(sequence, origin, answer, out);
            } else {
                self.answer_at(sequence, origin, answer, out);
            }
        }
    }

    /// A read finds an entry whose time is over: it is gone when the record that says so commits.
    #[cold]
    fn read_due(&mut self, operation: &Operation<'_>, origin: Origin, now_ms: u64, out: &mut Out) {
        if self.keys.queue(routing_key(operation.key), operation, origin, out) {
            return;
        }
        match self.expire(operation.map, operation.key, now_ms, out) {
            Ok(()) => self.read(operation, origin, now_ms, out),
            Err(refusal) => self.refuse(origin, refusal, out),
        }
    }

    /// End one entry if its time is over.
    fn expire(&mut self, map: &str, key: &[u8], now_ms: u64, out: &mut Out) -> Result<(), Refusal> {
        if !self.current(map, key).due(now_ms) {
            return Ok(());
        }
        let change = Change::Delete { map, key, expired: true };
        self.append(&[change], None, 0, None, out).map(|_| ())
    }

    /// Answer after the commit of `sequence`; at once if that is over.
    pub(super) fn answer_at(
        &mut self,
        sequence: u64,
        origin: Origin,
        answer: Answer,
        out: &mut Out,
    ) {
        if self.waiting.len() >= WAITING_MAX {
            self.refuse(origin, Refusal(status::BACKPRESSURE), out);
            return;
        }
        self.answer_or(sequence, origin, answer, status::NOT_PRIMARY, out);
    }

    /// Answer what changes nothing, after the commit of what was seen.
    ///
    /// An attempt that may still arrive must find this answer and not run: after a repeat the answer is
    /// a record of its own.
    fn answer_unchanged(
        &mut self,
        operation: &Operation<'_>,
        hash: u64,
        sequence: u64,
        origin: Origin,
        answer: Answer,
        out: &mut Out,
    ) {
        if operation.repeats() && !planted(Bug::RefusalUnrecorded) {
            self.answer_recorded(&record_token(operation), hash, origin, answer, out);
        } else {
            self.answer_at(sequence, origin, answer, out);
        }
    }

    /// Record an answer without changes, and give it after the record's commit.
    pub(super) fn answer_recorded(
        &mut self,
        token: &Token<'_>,
        hash: u64,
        origin: Origin,
        mut answer: Answer,
        out: &mut Out,
    ) {
        answer.recorded = true;
        let reply = record::Reply {
            status: answer.status,
            flags: 0,
            codec: answer.codec,
            version: answer.version,
            value: &answer.value,
        };
        match self.append(&[], Some(token), hash, Some(&reply), out) {
            Err(refusal) => self.refuse(origin, refusal, out),
            Ok(position) => {
                self.answer_or(position.sequence, origin, answer, status::UNKNOWN, out);
            }
        }
    }

    /// As [`Self::answer_at`], with the status for the case that the record is cut.
    pub(super) fn answer_or(
        &mut self,
        sequence: u64,
        origin: Origin,
        answer: Answer,
        if_cut: u8,
        out: &mut Out,
    ) {
        if sequence <= self.commit || planted(Bug::AnswerBeforeCommit) {
            self.deliver(sequence, origin, answer, out);
        } else {
            out.answered_bytes += answer.value.len();
            self.wait(sequence, Waiting::Answer { origin, answer, if_cut });
        }
    }

    #[cold]
    pub(super) fn refuse(&self, origin: Origin, Refusal(status): Refusal, out: &mut Out) {
        let hint = BACKPRESSURE_HINT_MS.to_le_bytes();
        let value = if status == status::BACKPRESSURE { &hint[..] } else { &[] };
        let version = if status == status::NOT_PRIMARY { self.settings.revision() } else { 0 };
        out.reply(
            origin,
            &Reply { number: origin.number, status, version, value, ..Reply::default() },
        );
    }

    /// Whether a mutating request is to be run; if not, it has been answered.
    pub(super) fn is_fresh(
        &mut self,
        token: &Token<'_>,
        hash: u64,
        origin: Origin,
        out: &mut Out,
    ) -> bool {
        let disks = !origin.persisted || self.can_persist();
        let status = match self.streams.check(token, hash) {
            _ if planted(Bug::TokenIgnored) => return true,
            Verdict::Fresh if disks => return true,
            Verdict::Fresh => status::DURABILITY_UNAVAILABLE,
            // Applied, and never as durable as is asked now.
            Verdict::Known(_) if !disks => status::UNKNOWN,
            Verdict::Known(kept) => {
                let answer = Answer {
                    status: kept.status,
                    codec: kept.codec,
                    version: kept.version,
                    value: kept.value.clone(),
                    recorded: true,
                };
                let sequence = kept.sequence();
                self.answer_or(sequence, origin, answer, status::UNKNOWN, out);
                return false;
            }
            Verdict::Stale => status::STALE_REQUEST,
            Verdict::Reused => status::TOKEN_REUSED,
            Verdict::Forgotten => status::UNKNOWN,
            Verdict::Full => status::BACKPRESSURE,
        };
        self.refuse(origin, Refusal(status), out);
        false
    }

    /// Carry out a put, delete or incr.
    pub(super) fn write(
        &mut self,
        operation: &Operation<'_>,
        origin: Origin,
        now_ms: u64,
        out: &mut Out,
    ) {
        let hash = arguments_hash(operation);
        let token = record_token(operation);
        if !self.is_fresh(&token, hash, origin, out) {
            return;
        }
        if self.store.check_schema(operation.map, operation.schema).is_err() {
            let known = self.store.schema(operation.map).unwrap_or(0);
            out.refuse(origin, status::SCHEMA_MISMATCH, u64::from(known));
            return;
        }
        if self.current(operation.map, operation.key).due(now_ms)
            && let Err(refusal) = self.expire(operation.map, operation.key, now_ms, out)
        {
            self.refuse(origin, refusal, out);
            return;
        }
        let mut current = self.current(operation.map, operation.key);
        if planted(Bug::ConditionsIgnoreOverlay) && operation.opcode == Opcode::Put {
            current = self.committed(operation.map, operation.key);
        }
        if let Some(refused) = condition(operation, &current) {
            let sequence = current.sequence;
            self.answer_unchanged(operation, hash, sequence, origin, refused, out);
            return;
        }
        let (map, key, schema) = (operation.map, operation.key, operation.schema);
        let expires_at_ms =
            if operation.ttl_ms == 0 { 0 } else { now_ms.saturating_add(operation.ttl_ms) };
        let number;
        let (change, result) = match operation.opcode {
            Opcode::Put => {
                let (value, codec) = (operation.value, operation.codec);
                (Change::Put { map, schema, key, value, codec, expires_at_ms }, &[][..])
            }
            Opcode::Incr => {
                let Some(sum) = add(&current, operation.delta().unwrap_or(0)) else {
                    let sequence = current.sequence;
                    let answer = Answer::bare(status::WRONG_TYPE, current.version);
                    self.answer_unchanged(operation, hash, sequence, origin, answer, out);
                    return;
                };
                number = super::number::encode(sum);
                let value = number.as_slice();
                let expires_at_ms = current.expires_at_ms;
                let codec = CODEC_MSGPACK;
                (Change::Put { map, schema, key, value, codec, expires_at_ms }, value)
            }
            _ => (Change::Delete { map, key, expired: false }, &[][..]),
        };
        let codec = if result.is_empty() { 0 } else { CODEC_MSGPACK };
        let next = self.next_position();
        let reply = record::Reply {
            status: status::OK,
            flags: 0,
            codec,
            version: next.pack(),
            value: result,
        };
        match self.append(&[change], Some(&token), hash, Some(&reply), out) {
            Err(refusal) => self.refuse(origin, refusal, out),
            Ok(position) if position.sequence <= self.commit && !origin.persisted => out.reply(
                origin,
                &Reply {
                    number: origin.number,
                    status: status::OK,
                    flags: FLAG_RECORDED,
                    codec,
                    copies: self.copies(),
                    version: reply.version,
                    value: result,
                },
            ),
            Ok(position) => {
                let value = result.into();
                let (status, version, recorded) = (status::OK, reply.version, true);
                let answer = Answer { status, codec, version, value, recorded };
                self.answer_or(position.sequence, origin, answer, status::UNKNOWN, out);
            }
        }
    }

    /// Position of the record that would be appended now.
    #[inline]
    pub(super) fn next_position(&self) -> Position {
        Position { epoch: self.epoch(), sequence: self.log.last().sequence + 1 }
    }

    /// Append one record, or refuse it with nothing changed.
    ///
    /// With nobody to wait for it is committed when this returns; otherwise it is in the overlay.
    pub(super) fn append(
        &mut self,
        changes: &[Change<'_>],
        token: Option<&Token<'_>>,
        hash: u64,
        reply: Option<&record::Reply<'_>>,
        out: &mut Out,
    ) -> Result<Position, Refusal> {
        self.admit(changes)?;
        let position = self.next_position();
        if !self.alone || self.settings.has_sink || !self.followers.is_empty() {
            let bytes = record::encode(position, token, hash, reply, changes)
                .map_err(|_| Refusal(status::TOO_LARGE))?;
            let room = bytes.len() as u64;
            self.settings.log_budget.admit(room).map_err(|_| Refusal(status::BACKPRESSURE))?;
            if let Err(error) = self.log.append(position, bytes.into()) {
                self.fail(error.to_string());
                return Err(Refusal(status::UNAVAILABLE));
            }
            self.mark_dirty(out);
        } else {
            // Nobody reads the log: only its end moves.
            self.log.reset(position);
        }
        if let (Some(token), Some(reply)) = (token, reply) {
            let kept = Kept::of(position, hash, reply);
            if self.alone {
                self.streams.keep(token, kept);
            } else {
                self.streams.hold(token, kept);
            }
        }
        if self.alone {
            let version = position.pack();
            for change in changes {
                apply_change(&mut self.store, change, version, false);
            }
            self.commit = position.sequence;
            if self.log.len() > 256 {
                self.trim_log();
            }
        } else {
            for change in changes {
                self.overlay.apply(position, change);
            }
            self.promise(changes.iter().map(growth).sum());
        }
        Ok(position)
    }

    /// Whether a record with these changes may be appended now.
    #[inline]
    pub(super) fn admit(&self, changes: &[Change<'_>]) -> Result<(), Refusal> {
        if self.role != Role::Primary {
            return Err(Refusal(status::NOT_PRIMARY));
        }
        if usize::from(self.copies()) < self.settings.min_in_sync {
            return Err(Refusal(status::NOT_ENOUGH_COPIES));
        }
        if self.waiting.len() + self.unpersisted.len() >= WAITING_MAX {
            return Err(Refusal(status::BACKPRESSURE));
        }
        let growth: u64 = changes.iter().map(growth).sum();
        if growth > 0 && !self.has_memory_for(growth) {
            return Err(Refusal(status::MEMORY_FULL));
        }
        Ok(())
    }

    /// Count or page through a map: committed entries, once everything promoted is committed.
    fn read_all(&mut self, operation: &Operation<'_>, origin: Origin, now_ms: u64, out: &mut Out) {
        if self.commit < self.promoted_at {
            out.refuse(origin, status::UNAVAILABLE, self.settings.revision());
            return;
        }
        let copies = self.copies();
        let mut reply =
            Reply { number: origin.number, status: status::OK, copies, ..Reply::default() };
        let Some((limit, cursor)) = operation.scan() else {
            let count = (self.store.len(operation.map) as u64).to_le_bytes();
            out.reply(origin, &Reply { value: &count, ..reply });
            return;
        };
        let after =
            cursor.split_first_chunk::<8>().map(|(hash, key)| (u64::from_le_bytes(*hash), key));
        let limit = (limit as usize).clamp(1, 1000);
        let mut page = PageBuilder::new();
        let items = self.store.scan(operation.map, after, limit);
        let mut next = Vec::new();
        let mut full = items.len() == limit;
        for item in &items {
            let over = item.entry.expires_at_ms != 0 && item.entry.expires_at_ms <= now_ms;
            if !item.entry.tombstone && !over {
                let pushed = page.push(&PageEntry {
                    key: item.key,
                    value: item.entry.value,
                    codec: item.entry.codec,
                    version: item.entry.version,
                });
                if !pushed {
                    full = true;
                    break;
                }
            }
            next.clear();
            next.extend_from_slice(&item.hash.to_le_bytes());
            next.extend_from_slice(item.key);
        }
        if !full {
            next.clear();
        }
        let value = page.finish(&next);
        reply.value = &value;
        out.reply(origin, &reply);
    }
}

/// The refusal of a condition that does not hold, or a delete of nothing.
fn condition(operation: &Operation<'_>, current: &Current<'_>) -> Option<Answer> {
    let holds = match operation.expected_version() {
        Some(expected) => expected == current.version && current.value.is_some(),
        None if operation.flags & FLAG_IF_ABSENT != 0 => current.value.is_none(),
        None => true,
    };
    if !holds {
        return Some(Answer {
            status: status::CONFLICT,
            codec: current.codec,
            version: current.version,
            value: current.value.unwrap_or_default().into(),
            recorded: false,
        });
    }
    (operation.opcode == Opcode::Delete && current.value.is_none())
        .then(|| Answer::bare(status::MISS, 0))
}

fn add(current: &Current<'_>, delta: i64) -> Option<i64> {
    match current.value {
        None => Some(delta),
        Some(value) if current.codec == CODEC_MSGPACK => {
            super::number::decode(value)?.checked_add(delta)
        }
        Some(_) => None,
    }
}
