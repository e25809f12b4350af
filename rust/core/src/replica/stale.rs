//! Stale reads: what a complete copy answers by itself, and how old that may be.
//!
//! A record is acknowledged only when every complete copy has it, so a complete copy's log lacks
//! nothing that was acknowledged; its tables lack what it has not seen committed yet. Hence the mark:
//! the log's end at some time. Once the tables have got there they hold everything that was
//! acknowledged until that time. The other half is that the copy is still one that writes wait for,
//! which it knows as of the request of its node's last lease: that was granted at the newest table.
//! So an answer carries the earlier of both times, and becomes an age when it leaves, by a clock that
//! is read then: a pause on the way makes it older, never wrong. No lease is needed to answer, and no
//! primary; an answer older than was asked for is refused.
//!
//! Callers: `node`, which ticks, executes and lets answers leave.

use super::effects::Out;
use super::ownership::Role;
use super::partition::Partition;
use super::request::Origin;
use crate::frame::reply::{FLAG_STALE, status};
use crate::frame::{Operation, Reply, ReplyBuilder, ReplyFrame};
use crate::planted::{Bug, planted};

/// An answer on its way out: when it was right, the age that was asked for, then the value.
const UNSETTLED_BYTES: usize = 16;

/// How far the tables of a complete copy have got.
#[derive(Debug, Clone, Copy, Default)]
pub struct Freshness {
    /// The tables hold everything that was acknowledged until then; 0: nothing is known.
    at_ms: u64,
    /// The log ended here ...
    mark: u64,
    /// ... at that time.
    mark_ms: u64,
}

impl Partition {
    /// Whether the tables may answer a stale read: complete, and nothing is wrong with them.
    fn is_whole(&self) -> bool {
        let complete = match self.role {
            Role::Primary => true,
            Role::Backup => !self.following.incomplete,
            Role::None | Role::Tail | Role::Joining | Role::Dormant => false,
        };
        complete && self.fault.is_none() && !self.settings.stopping()
    }

    /// Time passes: how far have the tables got? `clock_ms` may lag, never run ahead.
    pub(super) fn look_at_freshness(&mut self, clock_ms: u64) {
        if !self.is_whole() {
            self.fresh = Freshness::default();
            return;
        }
        let last = self.log.last().sequence;
        // What a primary appended itself nobody was told of before its commit.
        let owed = if self.role == Role::Primary { last.min(self.promoted_at) } else { last };
        if self.commit >= owed || planted(Bug::StaleOfTheTablesAlone) {
            self.fresh = Freshness { at_ms: clock_ms, mark: owed, mark_ms: clock_ms };
        } else if self.fresh.mark_ms == 0 {
            self.fresh.mark = owed;
            self.fresh.mark_ms = clock_ms;
        } else if self.commit >= self.fresh.mark {
            let at_ms = self.fresh.mark_ms;
            self.fresh = Freshness { at_ms, mark: owed, mark_ms: clock_ms };
        }
    }

    /// Answer from the committed tables, whoever is primary.
    #[cold]
    pub(super) fn read_stale(
        &mut self,
        operation: &Operation<'_>,
        origin: Origin,
        now_ms: u64,
        out: &mut Out,
    ) {
        if !self.is_whole() {
            let (status, version) = self.why_not();
            out.refuse(origin, status, version);
            return;
        }
        self.look_at_freshness(out.clock_ms);
        let member_ms =
            if planted(Bug::StaleOfARemovedCopy) { out.clock_ms } else { out.member_ms };
        let known_ms = self.fresh.at_ms.min(member_ms);
        let mut value = Vec::with_capacity(UNSETTLED_BYTES);
        value.extend_from_slice(&known_ms.to_le_bytes());
        value.extend_from_slice(operation.value);
        let entry = self.store.get(operation.map, operation.key).filter(|entry| {
            !entry.tombstone && (entry.expires_at_ms == 0 || entry.expires_at_ms > now_ms)
        });
        if let Some(entry) = entry {
            value.extend_from_slice(entry.value);
        }
        out.stale = true;
        let reply = Reply {
            number: origin.number,
            status: if entry.is_some() { status::OK } else { status::MISS },
            flags: FLAG_STALE,
            codec: entry.map_or(0, |entry| entry.codec),
            copies: self.copies(),
            version: entry.map_or(0, |entry| entry.version),
            value: &value,
        };
        out.reply(origin, &reply);
    }
}

/// The answers leave at `clock_ms`: say how old each is, and refuse what is older than was asked for.
pub fn settle(frames: &mut [(u64, Vec<u8>)], clock_ms: u64) {
    for (_, frame) in frames {
        if let Some(settled) = settled(frame, clock_ms) {
            *frame = settled;
        }
    }
}

fn settled(frame: &[u8], clock_ms: u64) -> Option<Vec<u8>> {
    let decoded = ReplyFrame::decode(frame).ok()?;
    if decoded.replies().all(|reply| reply.flags & FLAG_STALE == 0) {
        return None;
    }
    let mut builder = ReplyBuilder::new(decoded.stream);
    let mut value = Vec::new();
    for reply in decoded.replies() {
        let mut reply = reply;
        if reply.flags & FLAG_STALE != 0 {
            value.clear();
            reply = settle_one(&reply, clock_ms, &mut value);
        }
        // It gets no longer than it was, so it stays one frame.
        let full = builder.push(&reply);
        debug_assert!(full.is_none(), "a settled frame is longer than it was");
    }
    builder.finish()
}

fn settle_one<'a>(reply: &Reply<'_>, clock_ms: u64, room: &'a mut Vec<u8>) -> Reply<'a> {
    let number = |at: usize| {
        reply.value.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u64::from_le_bytes(*b))
    };
    let (known_ms, age_ms_max) = (number(0), number(8));
    let age_ms = clock_ms.saturating_sub(known_ms);
    if age_ms > age_ms_max {
        let status = status::TOO_STALE;
        return Reply { number: reply.number, status, version: age_ms, ..Reply::default() };
    }
    room.extend_from_slice(&age_ms.to_le_bytes());
    room.extend_from_slice(&reply.value[UNSETTLED_BYTES.min(reply.value.len())..]);
    Reply {
        number: reply.number,
        status: reply.status,
        flags: reply.flags,
        codec: reply.codec,
        copies: reply.copies,
        version: reply.version,
        value: room,
    }
}
