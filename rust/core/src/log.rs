//! The replicated log of one partition, in memory.
//!
//! Records have consecutive sequences; everything up to `base` is gone, because every reader that
//! must see it has. A *cursor* is a reader's name and the last sequence it is done with; no record
//! past the lowest cursor is dropped, so a pump that is behind pins the log and pushes back, and
//! never finds a hole. A node's logs share one budget: the log counts its bytes there, and whoever
//! appends asks for room first. Callers: `replica`, pumps through it.

use std::collections::VecDeque;

use crate::error::{CoreError, Result};
use crate::record::{Position, RecordBytes};
use crate::store::Quota;

/// Bytes of memory a record takes beyond its own: its place here and its shared counters.
pub const ENTRY_OVERHEAD_BYTES: usize = size_of::<Entry>() + 16;

/// One record and where it was born.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Birth position, as in the bytes.
    pub position: Position,
    /// The encoded record.
    pub bytes: RecordBytes,
}

/// The log of one partition.
#[derive(Debug)]
pub struct Log {
    base: Position,
    entries: VecDeque<Entry>,
    cursors: Vec<(Box<str>, u64)>,
    bytes: usize,
    budget: Quota,
}

impl Log {
    /// An empty log after `base`, with a budget of its own that has no limit.
    pub fn new(base: Position) -> Self {
        Self::with_budget(base, Quota::new(0))
    }

    /// An empty log after `base` that counts its bytes in `budget`, which a node's logs share.
    pub fn with_budget(base: Position, budget: Quota) -> Self {
        Self { base, entries: VecDeque::new(), cursors: Vec::new(), bytes: 0, budget }
    }

    /// Appends the record that follows the last one: next sequence, an epoch no smaller.
    ///
    /// The budget is counted, not checked: a backup must take what its primary was admitted for.
    pub fn append(&mut self, position: Position, bytes: RecordBytes) -> Result<()> {
        let last = self.last();
        if position.sequence != last.sequence + 1 || position.epoch < last.epoch {
            return Err(CoreError::NotNext {
                epoch: position.epoch,
                sequence: position.sequence,
                last_epoch: last.epoch,
                last_sequence: last.sequence,
            });
        }
        let size = bytes.len() + ENTRY_OVERHEAD_BYTES;
        self.bytes += size;
        self.budget.charge(size as u64);
        self.entries.push_back(Entry { position, bytes });
        Ok(())
    }

    /// Drops every record after `sequence`; returns how many. What is at or below the base stays
    /// gone.
    pub fn cut_after(&mut self, sequence: u64) -> usize {
        let keep =
            sequence.saturating_sub(self.base.sequence).min(self.entries.len() as u64) as usize;
        let cut = self.entries.len() - keep;
        let bytes = self.entries.drain(keep..).map(|entry| size_of_entry(&entry)).sum();
        self.give_back(bytes);
        for (_, cursor) in &mut self.cursors {
            *cursor = (*cursor).min(sequence.max(self.base.sequence));
        }
        cut
    }

    /// Forgets everything and goes on after `base`: a copy that begins again. Cursors are dropped.
    pub fn reset(&mut self, base: Position) {
        let bytes = self.bytes;
        self.entries = VecDeque::new();
        self.cursors.clear();
        self.give_back(bytes);
        self.base = base;
    }

    /// The record with this sequence, when it is here.
    #[inline]
    pub fn get(&self, sequence: u64) -> Option<&Entry> {
        let index = sequence.checked_sub(self.base.sequence + 1)?;
        self.entries.get(usize::try_from(index).ok()?)
    }

    /// Is this very position in the log, or its base?
    pub fn contains(&self, position: Position) -> bool {
        position == self.base
            || self.get(position.sequence).is_some_and(|entry| entry.position == position)
    }

    /// The position of `sequence` when it is in the log or its base: the predecessor of what
    /// follows it.
    pub fn position_of(&self, sequence: u64) -> Option<Position> {
        if sequence == self.base.sequence {
            return Some(self.base);
        }
        self.get(sequence).map(|entry| entry.position)
    }

    /// Everything up to here is dropped.
    pub fn base(&self) -> Position {
        self.base
    }

    /// The last record's position, or the base.
    #[inline]
    pub fn last(&self) -> Position {
        self.entries.back().map_or(self.base, |entry| entry.position)
    }

    /// The records from `sequence` on, itself included; those that are gone are left out.
    pub fn iter_from(
        &self,
        sequence: u64,
    ) -> impl DoubleEndedIterator<Item = &Entry> + ExactSizeIterator {
        let skip =
            sequence.saturating_sub(self.base.sequence + 1).min(self.entries.len() as u64) as usize;
        self.entries.range(skip..)
    }

    /// How many records are here.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Is no record here?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of memory of all records, as counted in the budget.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Says that the reader `name` is done with everything up to `sequence`.
    ///
    /// Returns false and changes nothing when the record after it is gone already, or when it is
    /// past the end: the reader has a gap and must begin again.
    pub fn set_cursor(&mut self, name: &str, sequence: u64) -> bool {
        if sequence < self.base.sequence || sequence > self.last().sequence {
            return false;
        }
        match self.cursors.iter_mut().find(|(known, _)| &**known == name) {
            Some((_, cursor)) => *cursor = sequence,
            None => self.cursors.push((name.into(), sequence)),
        }
        true
    }

    /// The last sequence the reader `name` is done with.
    pub fn cursor(&self, name: &str) -> Option<u64> {
        self.cursors.iter().find(|(known, _)| &**known == name).map(|(_, cursor)| *cursor)
    }

    /// Forgets the reader `name`; it no longer pins the log.
    pub fn remove_cursor(&mut self, name: &str) -> Option<u64> {
        let index = self.cursors.iter().position(|(known, _)| &**known == name)?;
        Some(self.cursors.swap_remove(index).1)
    }

    /// The lowest sequence any reader is done with.
    pub fn lowest_cursor(&self) -> Option<u64> {
        self.cursors.iter().map(|(_, cursor)| *cursor).min()
    }

    /// Drops the records up to `limit` that every reader is done with and moves the base; returns
    /// how many.
    pub fn trim(&mut self, limit: u64) -> usize {
        let upto = self.lowest_cursor().map_or(limit, |cursor| cursor.min(limit));
        let count = upto.saturating_sub(self.base.sequence).min(self.entries.len() as u64) as usize;
        if count == 0 {
            return 0;
        }
        self.base = self.entries[count - 1].position;
        let bytes = self.entries.drain(..count).map(|entry| size_of_entry(&entry)).sum();
        self.give_back(bytes);
        if self.entries.is_empty() && self.entries.capacity() > 1024 {
            self.entries.shrink_to(64);
        }
        count
    }

    fn give_back(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.budget.release(bytes as u64);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.budget.release(self.bytes as u64);
    }
}

fn size_of_entry(entry: &Entry) -> usize {
    entry.bytes.len() + ENTRY_OVERHEAD_BYTES
}
