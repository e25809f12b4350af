//! What is always true of a partition, asserted by tests after every event.
//!
//! The sense of it is at the top of `partition`. Callers: `node`.

use super::memory::growth;
use super::ownership::Role;
use super::partition::Partition;
use crate::record::decode_checked;

impl Partition {
    /// Assert every invariant; for tests and debug builds.
    ///
    /// # Panics
    /// When one is broken.
    pub fn check(&self) {
        let (base, last) = (self.log.base(), self.log.last());
        assert!(self.fault.is_none(), "fault: {:?}", self.fault);
        assert!(base.sequence <= self.commit, "trimmed past the commit: {base:?} {}", self.commit);
        assert!(self.commit <= last.sequence, "committed past the log: {} {last:?}", self.commit);
        let mut before = base;
        for entry in self.log.iter_from(base.sequence + 1) {
            assert_eq!(entry.position.sequence, before.sequence + 1, "a hole in the log");
            assert!(entry.position.epoch >= before.epoch, "epochs go back");
            before = entry.position;
        }
        if self.role != Role::Primary {
            assert_eq!(self.promised, 0, "memory promised without a primary");
            assert!(self.overlay.is_empty(), "an overlay without a primary");
            let sends = !self.followers.is_empty();
            assert!(!sends || self.is_source(), "followers of no primary and no source");
            assert!(self.waiting.is_empty() && self.keys.is_empty(), "answers without a primary");
            assert!(self.unpersisted.is_empty(), "answers without a primary");
            assert!(self.confirming.is_empty(), "answers without a primary");
            return;
        }
        let uncommitted = self.log.iter_from(self.commit + 1);
        let records = uncommitted.filter_map(|entry| decode_checked(&entry.bytes).ok());
        let owed: u64 = records.flat_map(|r| r.changes()).map(|change| growth(&change)).sum();
        assert_eq!(self.promised, owed, "memory promised to other than the uncommitted records");
        if self.commit == last.sequence {
            assert!(self.overlay.is_empty(), "everything is committed, yet there is an overlay");
            assert!(self.waiting.is_empty(), "everything is committed, yet answers wait");
        }
        let mut sequence = self.commit;
        for (waits_for, _) in &self.waiting {
            assert!(*waits_for > self.commit && *waits_for <= last.sequence, "waits for nothing");
            assert!(*waits_for >= sequence, "answers wait out of order");
            sequence = *waits_for;
        }
        assert!(self.persisted <= self.commit, "on disk before it was committed");
        for (waits_for, ..) in &self.unpersisted {
            assert!(*waits_for <= self.commit, "waits for a disk before the commit");
        }
        for follower in &self.followers {
            follower.check(&self.log);
        }
    }
}
