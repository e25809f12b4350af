//! What the data plane wants done: collected per call, handed to the shell in one piece.
//!
//! A call into the node works with its own [`Out`]; partitions only ever push into that, so no second
//! lock is taken while a partition is locked. At the end of the call the node merges it into its
//! outbox. Callers: `node` and everything below it.

use std::collections::BTreeMap;

use super::request::Origin;
use super::turn::TurnStart;
use crate::frame::reply::status;
use crate::frame::{Reply, ReplyBuilder};
use crate::limits::ANSWERS_BYTES_MAX;

/// When to ask again for an answer that there was no room for: as soon as those before it have left.
const PUT_OFF_MS: u32 = 1;

/// Kinds of changes that a copy, most often the primary, asks the controller for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// The joining copy has what the primary has: let it count. Of a tail that is to complete a former
    /// copy, by itself: its log begins too late for that.
    Tail = 1,
    /// The tail's snapshot is complete; or the former copy has all that the tail has.
    InSync = 2,
    /// The partition is stopped and everything in it committed: hand it over.
    Stopped = 3,
    /// A copy that counts does not answer: go on without it.
    Shrink = 4,
    /// This former copy's log reaches to where the tail's begins: let the tail complete it.
    Recover = 5,
}

/// A change of one partition's entry in the ownership table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangeWanted {
    /// The partition.
    pub partition: u32,
    /// Epoch of the entry it refers to.
    pub epoch: u32,
    /// Version of the entry it refers to.
    pub version: u64,
    /// What is asked for.
    pub kind: ChangeKind,
    /// The copy it is about.
    pub copy: u64,
    /// For [`ChangeKind::Tail`]: packed position before the first record that the copy has; else 0.
    pub from: u64,
}

/// Effects of one call, in order.
#[derive(Debug, Default)]
pub struct Out {
    /// Finished reply frames.
    pub frames: Vec<(u64, Vec<u8>)>,
    /// Turns to run.
    pub turns: Vec<TurnStart>,
    /// Tickets: positive committed, negative cut.
    pub settled: Vec<i64>,
    /// Changes to ask for.
    pub changes: Vec<ChangeWanted>,
    /// Partitions with something to send to other copies.
    pub dirty: Vec<u32>,
    /// Lapses of the node's lease when the call began.
    pub lapses: u64,
    /// A time that is over, on the clock of leases.
    pub clock_ms: u64,
    /// This node's copies are known to have been those that the newest table named, then.
    pub member_ms: u64,
    /// There may be stale answers, whose age is told when they leave.
    pub stale: bool,
    /// Snapshot pieces that are no longer under way: (copy, partition).
    pub chunks_over: Vec<(u64, u32)>,
    /// Somebody waits for this node's own disk.
    pub persist: bool,
    /// Bytes of values in answers that were made since effects were last taken.
    pub answered_bytes: usize,
    current: Option<((u64, u64), ReplyBuilder)>,
    others: BTreeMap<(u64, u64), ReplyBuilder>,
}

impl Out {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answer a request.
    #[inline]
    pub fn reply(&mut self, origin: Origin, reply: &Reply<'_>) {
        self.answered_bytes += reply.value.len();
        let place = (origin.connection, origin.stream);
        if self.current.as_ref().is_none_or(|(current, _)| *current != place) {
            self.switch(place);
        }
        if let Some((_, builder)) = &mut self.current
            && let Some(frame) = builder.push(reply)
        {
            self.frames.push((origin.connection, frame));
        }
    }

    /// Whether answers have to be taken before there is room for another one.
    #[inline]
    pub fn is_crowded(&self) -> bool {
        self.answered_bytes > ANSWERS_BYTES_MAX
    }

    /// Answer that there is no room for the answer: ask again soon.
    #[cold]
    pub fn put_off(&mut self, origin: Origin) {
        let value = &PUT_OFF_MS.to_le_bytes()[..];
        let status = status::BACKPRESSURE;
        self.reply(origin, &Reply { number: origin.number, status, value, ..Reply::default() });
    }

    /// Answer without a value.
    #[inline]
    pub fn refuse(&mut self, origin: Origin, status: u8, version: u64) {
        self.reply(origin, &Reply { number: origin.number, status, version, ..Reply::default() });
    }

    #[cold]
    fn switch(&mut self, place: (u64, u64)) {
        let next = self.others.remove(&place).unwrap_or_else(|| ReplyBuilder::new(place.1));
        if let Some((before, builder)) = self.current.replace((place, next)) {
            self.others.insert(before, builder);
        }
    }

    /// Lend the open reply frames to the effects of a new call.
    pub fn lend(&mut self, other: &mut Self) {
        other.others = std::mem::take(&mut self.others);
        other.stale |= self.stale;
        other.answered_bytes = self.answered_bytes;
    }

    /// Keep the open reply frames open for the next call.
    pub fn park(&mut self) {
        if let Some((place, builder)) = self.current.take() {
            self.others.insert(place, builder);
        }
    }

    /// Close the reply frames that are still open.
    pub fn close(&mut self) {
        self.park();
        for ((connection, _), mut builder) in std::mem::take(&mut self.others) {
            if let Some(frame) = builder.finish() {
                self.frames.push((connection, frame));
            }
        }
    }

    /// Whether the shell has nothing to do (apart from what dirty partitions will send).
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
            && self.turns.is_empty()
            && self.settled.is_empty()
            && self.changes.is_empty()
            && self.current.is_none()
            && self.others.is_empty()
    }

    /// Take over everything of a parked one. Of two open frames to one place the older is closed.
    pub fn absorb(&mut self, other: &mut Self) {
        for (place, builder) in std::mem::take(&mut other.others) {
            if let Some(mut older) = self.others.insert(place, builder)
                && let Some(frame) = older.finish()
            {
                self.frames.push((place.0, frame));
            }
        }
        self.frames.append(&mut other.frames);
        self.turns.append(&mut other.turns);
        self.settled.append(&mut other.settled);
        self.changes.append(&mut other.changes);
        self.dirty.append(&mut other.dirty);
        self.chunks_over.append(&mut other.chunks_over);
        self.stale |= other.stale;
        self.answered_bytes = self.answered_bytes.max(other.answered_bytes);
    }
}
