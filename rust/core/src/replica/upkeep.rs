//! What a primary does by itself as time passes: ends entries, forgets idle request streams.
//!
//! Both are log records like any other, so all copies do the same. Callers: `node`, on each tick.

use super::effects::Out;
use super::partition::Partition;
use crate::key::routing_key;
use crate::record::{self, Change};

/// Most expired entries that one record ends.
pub const EXPIRE_BATCH: usize = 256;

impl Partition {
    /// End entries whose time is over; those of a routing key with a running turn wait for it.
    pub(super) fn expire_due(&mut self, now_ms: u64, out: &mut Out) {
        if self.store.next_due_ms().is_none_or(|due| due > now_ms) {
            return;
        }
        let due: Vec<(String, Vec<u8>)> = self
            .store
            .due(now_ms, EXPIRE_BATCH)
            .into_iter()
            .filter(|due| {
                self.overlay.get(due.map, due.key).is_none()
                    && !self.keys.holds(routing_key(due.key))
            })
            .map(|due| (due.map.to_owned(), due.key.to_vec()))
            .collect();
        if due.is_empty() {
            return;
        }
        let changes: Vec<Change<'_>> =
            due.iter().map(|(map, key)| Change::Delete { map, key, expired: true }).collect();
        // Refused: too few copies or a full log. The next tick tries again.
        let _ = self.append(&changes, None, 0, None, out);
    }

    /// Forget idle request streams when there are too many: one record says which.
    pub(super) fn forget_streams(&mut self, out: &mut Out) {
        let next = self.next_position();
        let Some((issuer, floor)) = self.streams.forgettable(next.sequence) else { return };
        if self.admit(&[]).is_err() {
            return;
        }
        let bytes = record::encode_forget(next, u64::from(issuer), floor);
        if self.settings.log_budget.admit(bytes.len() as u64).is_err()
            || self.log.append(next, bytes.into()).is_err()
        {
            return;
        }
        self.mark_dirty(out);
        self.try_commit(out);
    }
}
