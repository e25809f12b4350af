//! The hash table of one map in one partition: thin entries, counted to the byte.
//!
//! Slots are entry pointers in a `hashbrown::HashTable`; the hash is foldhash with the store's
//! seed, so that outsiders cannot aim at one slot. Deleted keys can be kept as tombstones while a
//! join runs; they are not counted as entries. Callers: `store`.

use std::collections::BinaryHeap;
use std::hash::{BuildHasher, Hasher};

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;

use crate::entry::{Content, Entry, allocation_bytes};
use crate::hash::hash64;

/// What a key had before it was written or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    /// Wall-clock milliseconds; 0 is never.
    pub expires_at_ms: u64,
    /// It was a tombstone, not an entry.
    pub tombstone: bool,
}

/// The entries of one map.
pub struct Table {
    slots: HashTable<Entry>,
    hasher: FixedState,
    allocated: usize,
    tombstones: usize,
}

impl Table {
    /// An empty table; allocates nothing.
    pub fn new(seed: u64) -> Self {
        Self {
            slots: HashTable::new(),
            hasher: FixedState::with_seed(seed),
            allocated: 0,
            tombstones: 0,
        }
    }

    /// The hash under which a key is kept here.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> u64 {
        hash_of(&self.hasher, key)
    }

    /// The entry or tombstone of `key`, whose hash the caller has from [`Self::hash`].
    #[inline]
    pub fn get(&self, hash: u64, key: &[u8]) -> Option<&Entry> {
        self.slots.find(hash, |entry| entry.key() == key)
    }

    /// Entries and tombstones whose keys have this hash and that expire at this time.
    pub fn with_expiry(&self, hash: u64, expires_at_ms: u64) -> impl Iterator<Item = &Entry> {
        self.slots.iter_hash(hash).filter(move |entry| {
            entry.expires_at_ms() == expires_at_ms && self.hash(entry.key()) == hash
        })
    }

    /// Writes `key`; returns what it had before. In place when the sizes are the same.
    pub fn put(&mut self, hash: u64, key: &[u8], content: &Content<'_>) -> Option<Before> {
        let hasher = &self.hasher;
        let slot = self.slots.entry(
            hash,
            |entry| entry.key() == key,
            |entry| hash_of(hasher, entry.key()),
        );
        self.tombstones += usize::from(content.tombstone);
        match slot {
            Slot::Vacant(slot) => {
                let entry = Entry::new(key, content);
                self.allocated += entry.allocated_bytes();
                slot.insert(entry);
                None
            }
            Slot::Occupied(mut slot) => {
                let entry = slot.get_mut();
                let before = before(entry);
                self.tombstones -= usize::from(before.tombstone);
                if !entry.overwrite(content) {
                    let fresh = Entry::new(key, content);
                    self.allocated += fresh.allocated_bytes();
                    self.allocated -= std::mem::replace(entry, fresh).allocated_bytes();
                }
                Some(before)
            }
        }
    }

    /// Removes `key`, entry or tombstone; returns what it had.
    pub fn remove(&mut self, hash: u64, key: &[u8]) -> Option<Before> {
        let slot = self.slots.find_entry(hash, |entry| entry.key() == key).ok()?;
        let (entry, _) = slot.remove();
        let before = before(&entry);
        self.allocated -= entry.allocated_bytes();
        self.tombstones -= usize::from(before.tombstone);
        drop(entry);
        self.give_room_back();
        Some(before)
    }

    /// Removes every tombstone.
    pub fn drop_tombstones(&mut self) {
        if self.tombstones == 0 {
            return;
        }
        let allocated = &mut self.allocated;
        self.slots.retain(|entry| {
            if entry.is_tombstone() {
                *allocated -= entry.allocated_bytes();
            }
            !entry.is_tombstone()
        });
        self.tombstones = 0;
        self.give_room_back();
    }

    /// How many entries there are, tombstones not counted.
    pub fn len(&self) -> usize {
        self.slots.len() - self.tombstones
    }

    /// Is there no entry? Tombstones are not counted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory of all entries and slots, as the allocator rounds them. Cost: constant.
    #[inline]
    pub fn bytes(&self) -> usize {
        let slots = self.slots.allocation_size();
        self.allocated + if slots == 0 { 0 } else { allocation_bytes(slots) }
    }

    /// Every entry and tombstone, in no useful order.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.slots.iter()
    }

    /// The first `limit` entries and tombstones after `after` in (scan hash, key) order.
    ///
    /// Cost: one pass over the table, O(n log limit).
    pub fn page(&self, after: Option<(u64, &[u8])>, limit: usize) -> Vec<(u64, &Entry)> {
        let mut nearest: BinaryHeap<(u64, &[u8])> = BinaryHeap::new();
        if limit == 0 {
            return Vec::new();
        }
        for entry in &self.slots {
            let place = (scan_hash(entry.key()), entry.key());
            if after.is_some_and(|after| place <= after) {
                continue;
            }
            if nearest.len() < limit {
                nearest.push(place);
            } else if let Some(mut farthest) = nearest.peek_mut()
                && place < *farthest
            {
                *farthest = place;
            }
        }
        let places = nearest.into_sorted_vec().into_iter();
        places.filter_map(|(hash, key)| Some((hash, self.get(self.hash(key), key)?))).collect()
    }

    /// Gives slots back when most are empty, so that memory follows the entries down.
    fn give_room_back(&mut self) {
        if self.slots.capacity() > 64 && self.slots.len() < self.slots.capacity() / 8 {
            let hasher = &self.hasher;
            self.slots.shrink_to(self.slots.len() * 2, |entry| hash_of(hasher, entry.key()));
        }
    }
}

/// The hash that orders scans: the same on every node, so that a cursor outlives a failover.
#[inline]
pub fn scan_hash(key: &[u8]) -> u64 {
    hash64(key, 0)
}

#[inline]
fn hash_of(hasher: &FixedState, key: &[u8]) -> u64 {
    let mut hasher = hasher.build_hasher();
    hasher.write(key);
    hasher.finish()
}

fn before(entry: &Entry) -> Before {
    Before { expires_at_ms: entry.expires_at_ms(), tombstone: entry.is_tombstone() }
}
