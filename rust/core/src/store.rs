//! The committed tables of one partition.
//!
//! A table per map, an index of the entries that expire, and the memory of both counted in a
//! [`Quota`] that the partitions of a node share. Nothing here decides: what is put or deleted has
//! been committed, and admission (memory, schema) is asked for before the record is appended. Time
//! is only compared, never read. The owner holds the partition's lock. Callers: `replica`,
//! snapshots and scans through it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::entry::{Content, Entry, entry_bytes};
use crate::error::{CoreError, Result};
use crate::table::{Table, scan_hash};

/// Memory counted for each entry in the expiry index: 24 bytes in a tree node that is about two
/// thirds full.
const EXPIRY_INDEX_BYTES: usize = 40;

/// Memory counted for a new entry's place in its table: 9 bytes a slot, slots between half and 7/8
/// full.
const SLOT_BYTES_MAX: usize = 21;

/// Bytes of memory shared by the partitions of a node: how many are used, how many may be.
///
/// Cloning it shares it. `charge` never refuses, since what is committed must be applied; `admit`
/// is asked before, and what was accepted and is not applied yet is *promised*.
#[derive(Debug, Clone, Default)]
pub struct Quota(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    limit: AtomicU64,
    used: AtomicU64,
    promised: AtomicU64,
}

impl Quota {
    /// A quota of `limit` bytes; 0 is no limit.
    pub fn new(limit: u64) -> Self {
        let quota = Self::default();
        quota.set_limit(limit);
        quota
    }

    /// Changes the limit in bytes; 0 is no limit. What is used stays.
    pub fn set_limit(&self, limit: u64) {
        self.0.limit.store(limit, Ordering::Relaxed);
    }

    /// The limit in bytes; 0 is no limit.
    pub fn limit(&self) -> u64 {
        self.0.limit.load(Ordering::Relaxed)
    }

    /// Bytes used.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Bytes promised to what was accepted and is not in use yet.
    pub fn promised(&self) -> u64 {
        self.0.promised.load(Ordering::Relaxed)
    }

    /// Keeps `bytes` for what was accepted.
    pub fn promise(&self, bytes: u64) {
        self.0.promised.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What was accepted is in use now, or will never be.
    pub fn end_promise(&self, bytes: u64) {
        let before = self.0.promised.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "ended promises of {bytes} of {before} bytes");
    }

    /// Refuses when `bytes` more than is used and promised would be over the limit.
    pub fn admit(&self, bytes: u64) -> Result<()> {
        let (used, limit) = (self.used().saturating_add(self.promised()), self.limit());
        if limit != 0 && used.saturating_add(bytes) > limit {
            return Err(CoreError::MemoryFull { used, needed: bytes, limit });
        }
        Ok(())
    }

    /// Whether everything that may be used is.
    pub fn is_full(&self) -> bool {
        self.limit() != 0 && self.used() >= self.limit()
    }

    /// Counts `bytes` as used.
    pub fn charge(&self, bytes: u64) {
        self.0.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts `bytes` as free again.
    pub fn release(&self, bytes: u64) {
        let before = self.0.used.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "released {bytes} of {before} used bytes");
    }
}

/// What a key has: a borrowed view of its entry or tombstone.
pub type EntryRef<'a> = Content<'a>;

/// One entry or tombstone of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<'a> {
    /// Its place in the scan order, before the key.
    pub hash: u64,
    /// The key.
    pub key: &'a [u8],
    /// What it has.
    pub entry: EntryRef<'a>,
}

/// An entry whose time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due<'a> {
    /// The map.
    pub map: &'a str,
    /// The key.
    pub key: &'a [u8],
    /// Its version, so that a newer entry is not taken for it.
    pub version: u64,
    /// When it was over, wall-clock milliseconds.
    pub expires_at_ms: u64,
}

/// Keys of one map in scan order, kept apart from the table: a transfer in chunks walks them while
/// writes go on.
#[derive(Debug, Clone, Default)]
pub struct KeyList {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl KeyList {
    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The key at `index` in scan order.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.bytes[start..end])
    }
}

struct MapSlot {
    name: Box<str>,
    schema: u32,
    table: Table,
}

/// The tables of one partition.
pub struct Store {
    maps: Vec<MapSlot>,
    /// Indexes of `maps`, ordered by name.
    by_name: Vec<u32>,
    /// (expires at ms, index of the map, table hash of the key).
    expiries: BTreeSet<(u64, u32, u64)>,
    bytes: usize,
    quota: Quota,
    seed: u64,
}

impl Store {
    /// An empty store that counts its memory in `quota`. `seed` keeps the table's order from
    /// outsiders.
    pub fn new(seed: u64, quota: Quota) -> Self {
        Self {
            maps: Vec::new(),
            by_name: Vec::new(),
            expiries: BTreeSet::new(),
            bytes: 0,
            quota,
            seed,
        }
    }

    /// What `key` has, a tombstone included; due entries too, since only a committed record ends
    /// one.
    #[inline]
    pub fn get(&self, map: &str, key: &[u8]) -> Option<EntryRef<'_>> {
        let table = &self.maps[self.find(map)?].table;
        table.get(table.hash(key), key).map(Entry::content)
    }

    /// Writes `key`. The map is made, and its schema registered, by the first use.
    ///
    /// Args are those of a committed record; [`Self::check_schema`] and [`Quota::admit`] came
    /// before it.
    pub fn put(
        &mut self,
        map: &str,
        schema: u32,
        key: &[u8],
        value: &[u8],
        codec: u8,
        version: u64,
        expires_at_ms: u64,
    ) {
        let index = self.find_or_make(map);
        if self.maps[index].schema == 0 {
            self.maps[index].schema = schema;
        }
        self.write(index, key, &Content { value, codec, version, expires_at_ms, tombstone: false });
    }

    /// As [`Self::put`], unless the key has an entry or tombstone of this version or a newer one;
    /// says whether it wrote.
    ///
    /// For snapshot chunks that arrive behind newer records.
    pub fn put_if_newer(
        &mut self,
        map: &str,
        schema: u32,
        key: &[u8],
        value: &[u8],
        codec: u8,
        version: u64,
        expires_at_ms: u64,
    ) -> bool {
        if self.get(map, key).is_some_and(|known| known.version >= version) {
            return false;
        }
        self.put(map, schema, key, value, codec, version, expires_at_ms);
        true
    }

    /// Deletes `key`; says whether it had an entry. With `keep_tombstone` the delete's version is
    /// remembered.
    pub fn delete(&mut self, map: &str, key: &[u8], version: u64, keep_tombstone: bool) -> bool {
        if keep_tombstone {
            let index = self.find_or_make(map);
            let content =
                Content { value: b"", codec: 0, version, expires_at_ms: 0, tombstone: true };
            return self.write(index, key, &content);
        }
        let Some(index) = self.find(map) else { return false };
        let table = &mut self.maps[index].table;
        let (hash, bytes) = (table.hash(key), table.bytes());
        let Some(before) = table.remove(hash, key) else { return false };
        let after = table.bytes();
        self.count(bytes, after);
        self.unindex(before.expires_at_ms, index, hash);
        !before.tombstone
    }

    /// Removes the tombstones of all maps: the join is over.
    pub fn drop_tombstones(&mut self) {
        for index in 0..self.maps.len() {
            let table = &mut self.maps[index].table;
            let bytes = table.bytes();
            table.drop_tombstones();
            let after = table.bytes();
            self.count(bytes, after);
        }
    }

    /// Up to `limit` entries and tombstones of `map` after `after`, ordered by (hash, key).
    ///
    /// The order depends on the keys alone, so a cursor holds across writes and on every node.
    /// Cost: one pass over the map; for many pages in a row take [`Self::keys`].
    pub fn scan(&self, map: &str, after: Option<(u64, &[u8])>, limit: usize) -> Vec<Item<'_>> {
        let Some(index) = self.find(map) else { return Vec::new() };
        let page = self.maps[index].table.page(after, limit).into_iter();
        page.map(|(hash, entry)| Item { hash, key: entry.key(), entry: entry.content() }).collect()
    }

    /// The keys of `map`, tombstones included, in scan order.
    pub fn keys(&self, map: &str) -> KeyList {
        let Some(index) = self.find(map) else { return KeyList::default() };
        let mut places: Vec<(u64, &[u8])> = self.maps[index]
            .table
            .iter()
            .map(|entry| (scan_hash(entry.key()), entry.key()))
            .collect();
        places.sort_unstable();
        let mut list = KeyList { bytes: Vec::new(), ends: Vec::with_capacity(places.len()) };
        list.bytes.reserve(places.iter().map(|(_, key)| key.len()).sum());
        for (_, key) in places {
            list.bytes.extend_from_slice(key);
            list.ends.push(list.bytes.len());
        }
        list
    }

    /// How many entries `map` has.
    pub fn len(&self, map: &str) -> usize {
        self.find(map).map_or(0, |index| self.maps[index].table.len())
    }

    /// How many entries all maps have.
    pub fn total_len(&self) -> usize {
        self.maps.iter().map(|slot| slot.table.len()).sum()
    }

    /// Is there no entry in any map?
    pub fn is_empty(&self) -> bool {
        self.total_len() == 0
    }

    /// The names of the maps, ordered.
    pub fn maps(&self) -> impl Iterator<Item = &str> {
        self.by_name.iter().map(|&index| &*self.maps[index as usize].name)
    }

    /// The schema registered for `map`; 0 when it is untyped, `None` when it was never used.
    pub fn schema(&self, map: &str) -> Option<u32> {
        self.find(map).map(|index| self.maps[index].schema)
    }

    /// Refuses a schema other than the registered one. Untyped (0) goes with every schema.
    pub fn check_schema(&self, map: &str, given: u32) -> Result<()> {
        match self.schema(map) {
            Some(known) if known != 0 && given != 0 && known != given => {
                Err(CoreError::SchemaMismatch { map: map.to_owned(), known, given })
            }
            _ => Ok(()),
        }
    }

    /// Up to `limit` entries whose time is over at `now_ms`, the longest over first.
    pub fn due(&self, now_ms: u64, limit: usize) -> Vec<Due<'_>> {
        let over = self.expiries.range(..=(now_ms, u32::MAX, u64::MAX));
        let entries = over.flat_map(|&(expires_at_ms, index, hash)| {
            let slot = &self.maps[index as usize];
            slot.table.with_expiry(hash, expires_at_ms).map(move |entry| Due {
                map: &slot.name,
                key: entry.key(),
                version: entry.version(),
                expires_at_ms,
            })
        });
        entries.take(limit).collect()
    }

    /// When the next entry's time is over, wall-clock milliseconds.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.expiries.first().map(|&(expires_at_ms, _, _)| expires_at_ms)
    }

    /// Bytes of memory of all entries, slots and the expiry index, as the allocator rounds them.
    /// Cost: constant.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Removes everything, maps and schemas too.
    pub fn clear(&mut self) {
        self.quota.release(self.bytes as u64);
        self.bytes = 0;
        self.maps.clear();
        self.by_name.clear();
        self.expiries.clear();
    }

    #[inline]
    fn find(&self, map: &str) -> Option<usize> {
        // Most spaces have a handful of maps, and a short walk beats a search then.
        if self.maps.len() <= 4 {
            return self.maps.iter().position(|slot| &*slot.name == map);
        }
        let place =
            self.by_name.binary_search_by(|&index| (*self.maps[index as usize].name).cmp(map));
        place.ok().map(|place| self.by_name[place] as usize)
    }

    fn find_or_make(&mut self, map: &str) -> usize {
        if let Some(index) = self.find(map) {
            return index;
        }
        let index = self.maps.len();
        let place = self.by_name.partition_point(|&other| *self.maps[other as usize].name < *map);
        self.maps.push(MapSlot { name: map.into(), schema: 0, table: Table::new(self.seed) });
        self.by_name.insert(place, index as u32);
        index
    }

    /// Writes an entry or a tombstone; says whether the key had an entry.
    fn write(&mut self, index: usize, key: &[u8], content: &Content<'_>) -> bool {
        let table = &mut self.maps[index].table;
        let (hash, bytes) = (table.hash(key), table.bytes());
        let before = table.put(hash, key, content);
        let after = table.bytes();
        self.count(bytes, after);
        if let Some(before) = before
            && before.expires_at_ms != content.expires_at_ms
        {
            self.unindex(before.expires_at_ms, index, hash);
        }
        if content.expires_at_ms != 0
            && self.expiries.insert((content.expires_at_ms, index as u32, hash))
        {
            self.count(0, EXPIRY_INDEX_BYTES);
        }
        before.is_some_and(|before| !before.tombstone)
    }

    /// Takes a key's expiry out of the index, unless another key of the same hash expires at the
    /// same time.
    fn unindex(&mut self, expires_at_ms: u64, index: usize, hash: u64) {
        if expires_at_ms == 0
            || self.maps[index].table.with_expiry(hash, expires_at_ms).next().is_some()
        {
            return;
        }
        if self.expiries.remove(&(expires_at_ms, index as u32, hash)) {
            self.count(EXPIRY_INDEX_BYTES, 0);
        }
    }

    fn count(&mut self, before: usize, after: usize) {
        self.bytes = self.bytes + after - before;
        if after > before {
            self.quota.charge((after - before) as u64);
        } else if after < before {
            self.quota.release((before - after) as u64);
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.quota.release(self.bytes as u64);
    }
}

/// Bytes of memory a new entry takes at most, for admission; table growth is spread over the
/// entries.
pub fn entry_cost(key_len: usize, value_len: usize, expires: bool) -> usize {
    let index = if expires { EXPIRY_INDEX_BYTES } else { 0 };
    entry_bytes(key_len, value_len, expires) + SLOT_BYTES_MAX + index
}
