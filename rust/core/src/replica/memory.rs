//! Memory: what a record may add to the tables, and whether every copy has room for it (F33).
//!
//! A write is refused before anything is appended, so no copy has to take what another one refused.
//! What was accepted and is not in the tables yet is promised: it counts for the quota. Callers:
//! `primary` before and after an append, `commit` and `partition` when promises end.

use super::effects::Out;
use super::follower::Follower;
use super::partition::Partition;
use crate::record::Change;
use crate::store::entry_cost;

impl Partition {
    /// Whether this node and every copy that counts can keep `growth` more bytes.
    ///
    /// A copy without room took this partition at the size that it had when it said so. It applies
    /// the same records, deletes among them, so what leaves the partition at or below that size asks
    /// nothing new of it, and needs no news of what it has applied since.
    pub(super) fn has_memory_for(&self, growth: u64) -> bool {
        let then = self.store.bytes() as u64 + self.promised + growth;
        let full = |follower: &Follower| {
            follower.counts() && follower.full_at.is_some_and(|bytes| then > bytes)
        };
        self.settings.quota.admit(growth).is_ok() && !self.followers.iter().any(full)
    }

    /// Memory is kept for records that are appended and not committed.
    pub(super) fn promise(&mut self, bytes: u64) {
        self.promised += bytes;
        self.settings.quota.promise(bytes);
    }

    /// Records are committed, or no longer this primary's.
    pub(super) fn end_promise(&mut self, bytes: u64) {
        self.promised -= bytes;
        self.settings.quota.end_promise(bytes);
    }

    /// A copy whose memory is full hears of a commit at once: it may have been a delete.
    pub(super) fn tell_full(&mut self, out: &mut Out) {
        let mut due = false;
        for follower in self.followers.iter_mut().filter(|f| f.full_at.is_some()) {
            follower.poke = true;
            due = true;
        }
        if due {
            self.mark_dirty(out);
        }
    }
}

/// Bytes that a change adds to the tables at most.
pub(super) fn growth(change: &Change<'_>) -> u64 {
    match change {
        Change::Put { key, value, expires_at_ms, .. } => {
            entry_cost(key.len(), value.len(), *expires_at_ms != 0) as u64
        }
        Change::Delete { .. } => 0,
    }
}
