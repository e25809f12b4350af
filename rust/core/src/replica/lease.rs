//! The right to answer: a node's lease, and what becomes of answers without one.
//!
//! A lease names a table revision and counts only once the node has applied it; the controller
//! deposes a primary only when its lease is surely over. So an answer may leave when the lease held
//! without a break from before it was computed until a clock read after that. Each break counts as a
//! *lapse*: answers carry the number of lapses at which they were computed, and one that was computed
//! at another number, or that is looked at when the lease is over, becomes [`status::UNKNOWN`]: it may
//! be true, and nobody can say so any more. Refusals that only say where to ask stay, and so do the
//! answers to stale reads, which tell their age.
//!
//! Callers: `node`. Sources of grants: the shell, which counts from before its request.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::frame::reply::{FLAG_STALE, status};
use crate::frame::{Reply, ReplyBuilder, ReplyFrame};
use crate::planted::{Bug, planted};

/// Until when a node without a controller may answer: for ever.
pub const ENDLESS_MS: u64 = u64::MAX;
/// How long a grant is held, counted from before its request.
pub const HELD_MS: u64 = 475;

/// One node's lease; endless until [`Lease::require`].
#[derive(Debug)]
pub struct Lease {
    until_ms: AtomicU64,
    revision: AtomicU64,
    /// Revision of the table whose entries have all been applied.
    applied: AtomicU64,
    lapses: AtomicU64,
    withheld: AtomicU64,
    /// Last reading of the clock that grants are counted in.
    clock_ms: AtomicU64,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            until_ms: AtomicU64::new(ENDLESS_MS),
            revision: AtomicU64::default(),
            applied: AtomicU64::default(),
            lapses: AtomicU64::default(),
            withheld: AtomicU64::default(),
            clock_ms: AtomicU64::default(),
        }
    }
}

impl Lease {
    /// From now on answers need a grant.
    pub fn require(&self) {
        self.until_ms.store(0, Ordering::SeqCst);
    }

    /// All entries of a table's revision are in place.
    pub fn applied(&self, revision: u64) {
        self.applied.fetch_max(revision, Ordering::SeqCst);
    }

    /// Whether a grant at `revision` counts here yet.
    pub fn counts(&self, revision: u64) -> bool {
        planted(Bug::LeaseCountsUnapplied) || revision <= self.applied.load(Ordering::SeqCst)
    }

    /// Whether the lease is over at `now_ms`.
    #[inline]
    pub fn is_over(&self, now_ms: u64) -> bool {
        !planted(Bug::LeaseIgnored) && now_ms >= self.until_ms.load(Ordering::SeqCst)
    }

    /// Breaks so far.
    #[inline]
    pub fn lapses(&self) -> u64 {
        self.lapses.load(Ordering::SeqCst)
    }

    /// Answers that became unknown so far.
    pub fn withheld(&self) -> u64 {
        self.withheld.load(Ordering::Relaxed)
    }

    /// End of the lease, and the revision it was granted at.
    pub fn terms(&self) -> (u64, u64) {
        (self.until_ms.load(Ordering::SeqCst), self.revision.load(Ordering::SeqCst))
    }

    /// Take note of a reading of the clock.
    #[inline]
    pub fn saw(&self, now_ms: u64) {
        self.clock_ms.fetch_max(now_ms, Ordering::SeqCst);
    }

    /// A time that is over: the last reading of the clock.
    #[inline]
    pub fn clock_ms(&self) -> u64 {
        self.clock_ms.load(Ordering::SeqCst)
    }

    /// When the last grant was asked for: no newer table than the applied one was in force then.
    #[inline]
    pub fn asked_ms(&self) -> u64 {
        match self.until_ms.load(Ordering::SeqCst) {
            ENDLESS_MS => ENDLESS_MS,
            until_ms => until_ms.saturating_sub(HELD_MS),
        }
    }

    /// Break it: what was computed until now must not leave under a later grant.
    pub fn lapse(&self) {
        self.lapses.fetch_add(1, Ordering::SeqCst);
    }

    /// Extend it; an older grant that arrives late takes nothing back.
    pub fn extend(&self, revision: u64, until_ms: u64) {
        self.revision.fetch_max(revision, Ordering::SeqCst);
        self.until_ms.fetch_max(until_ms, Ordering::SeqCst);
    }

    /// Make answers unknown that must not leave.
    #[cold]
    pub fn withhold(&self, frames: &mut [(u64, Vec<u8>)]) {
        for (_, frame) in frames {
            if let Some((unknown, count)) = unknown(frame) {
                *frame = unknown;
                self.withheld.fetch_add(count, Ordering::Relaxed);
            }
        }
    }
}

/// The reply frame with every answer made unknown, and how many those are; `None`: none.
fn unknown(frame: &[u8]) -> Option<(Vec<u8>, u64)> {
    let decoded = ReplyFrame::decode(frame).ok()?;
    let mut builder = ReplyBuilder::new(decoded.stream);
    let mut count = 0;
    for reply in decoded.replies() {
        let reply = if says_nothing(reply.status) || reply.flags & FLAG_STALE != 0 {
            reply
        } else {
            count += 1;
            Reply { number: reply.number, status: status::UNKNOWN, ..Reply::default() }
        };
        // It gets no longer than it was, so it stays one frame.
        let full = builder.push(&reply);
        debug_assert!(full.is_none(), "an unknown frame is longer than it was");
    }
    if count == 0 { None } else { builder.finish().map(|frame| (frame, count)) }
}

/// Whether a reply tells nothing of the data, only whom or when to ask.
fn says_nothing(status: u8) -> bool {
    matches!(
        status,
        status::NOT_PRIMARY
            | status::UNAVAILABLE
            | status::BACKPRESSURE
            | status::TOO_STALE
            | status::UNKNOWN
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(replies: &[(u64, u8, &[u8])]) -> Vec<u8> {
        let mut builder = ReplyBuilder::new(7);
        for &(number, status, value) in replies {
            let reply = Reply { number, status, value, version: 9, copies: 2, ..Reply::default() };
            assert!(builder.push(&reply).is_none());
        }
        builder.finish().expect("replies")
    }

    #[test]
    fn every_answer_becomes_unknown_and_says_nothing_else() {
        let lease = Lease::default();
        let replies: &[(u64, u8, &[u8])] = &[
            (1, status::OK, b"value"),
            (2, status::NOT_PRIMARY, b""),
            (3, status::MISS, b""),
            (4, status::CONFLICT, b"other"),
            (5, status::BACKPRESSURE, &[20, 0, 0, 0]),
            (6, status::NOT_ENOUGH_COPIES, b""),
        ];
        let mut frames = vec![(1, frame(replies))];
        lease.withhold(&mut frames);
        let decoded = ReplyFrame::decode(&frames[0].1).expect("a frame");
        assert_eq!(decoded.stream, 7);
        let after: Vec<_> =
            decoded.replies().map(|r| (r.number, r.status, r.value.len(), r.version)).collect();
        let unknown = status::UNKNOWN;
        assert_eq!(
            after,
            [
                (1, unknown, 0, 0),
                (2, status::NOT_PRIMARY, 0, 9),
                (3, unknown, 0, 0),
                (4, unknown, 0, 0),
                (5, status::BACKPRESSURE, 4, 9),
                (6, unknown, 0, 0),
            ]
        );
        assert_eq!(lease.withheld(), 4);
    }

    #[test]
    fn a_grant_counts_once_its_revision_is_applied_and_never_takes_back() {
        let lease = Lease::default();
        assert!(!lease.is_over(u64::MAX - 1), "endless without a controller");
        lease.require();
        assert!(lease.is_over(0));
        assert!(!lease.counts(3));
        lease.applied(3);
        assert!(lease.counts(3));
        lease.extend(3, 500);
        lease.extend(2, 400);
        assert_eq!(lease.terms(), (500, 3));
        assert!(!lease.is_over(499));
        assert!(lease.is_over(500));
    }
}
