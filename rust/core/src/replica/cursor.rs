//! Readers of the log: cursors, batches for the pumps, snapshots, and what may be trimmed.
//!
//! A record is dropped from a log only when it is committed here and everybody who must see it has:
//! the followers that count, the pumps. A backup keeps what the shared sink lacks, because it may have
//! to pump it. Callers: `node` for the pumps, `commit` and `backup` after commits.

use super::ownership::Role;
use super::partition::Partition;
use crate::record::{Position, RecordBytes};

/// Cursor of the pump that writes this node's own disk.
pub const LOCAL: &str = "local";
/// Cursor of the pump that writes the shared database.
pub const SHARED: &str = "shared";
/// A joining copy pins the log up to this many bytes; beyond, it begins again.
pub const JOIN_PIN_BYTES: usize = 16 << 20;

/// Committed records after a cursor.
#[derive(Debug)]
pub struct Batch {
    /// Epoch of the table entry under which they are read.
    pub epoch: u32,
    /// The records, whole, in order; at least one.
    pub records: Vec<(Position, RecordBytes)>,
}

/// One entry of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// Map name.
    pub map: String,
    /// Schema fingerprint of the map.
    pub schema: u32,
    /// Key bytes.
    pub key: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
    /// Codec tag.
    pub codec: u8,
    /// Packed position that wrote it.
    pub version: u64,
    /// Absolute expiry in wall-clock milliseconds; 0 is never.
    pub expires_at_ms: u64,
}

impl Partition {
    /// Whether this copy's tables are whole.
    pub(super) fn is_complete(&self) -> bool {
        match self.role {
            Role::Primary | Role::Backup => true,
            Role::Tail => self.following.complete_at.is_some_and(|at| self.commit >= at),
            Role::None | Role::Joining | Role::Dormant => false,
        }
    }

    /// Last sequence that a reader may have.
    fn limit_of(&self, name: &str) -> u64 {
        if name == SHARED { self.shared_limit() } else { self.commit }
    }

    fn serves(&self, name: &str) -> bool {
        if name == SHARED { self.role == Role::Primary } else { self.is_complete() }
    }

    /// Sequence up to which every shared sink has the records.
    pub(super) fn trim_position(&self) -> u64 {
        if self.settings.shared_sink {
            self.log.cursor(SHARED).unwrap_or(self.log.base().sequence)
        } else {
            self.commit
        }
    }

    /// Position before the first record that a joining copy is sent.
    pub(super) fn join_base(&self) -> Position {
        let sequence = self.commit.min(self.trim_position());
        self.log.position_of(sequence).unwrap_or(self.log.base())
    }

    /// Drop the records that nobody needs any more.
    pub(super) fn trim_log(&mut self) {
        let base = self.log.base().sequence;
        if self.keeps_for_recovery() {
            return;
        }
        let mut limit = self.commit;
        if self.role == Role::Primary {
            limit = limit.min(self.trim_position());
            for follower in &self.followers {
                let has = if follower.started { follower.acked } else { follower.from.sequence };
                if follower.counts() || self.log.bytes() < JOIN_PIN_BYTES {
                    limit = limit.min(has);
                }
            }
        } else if self.settings.shared_sink {
            limit = limit.min(self.following.trim);
        }
        if self.settings.local_sink && !self.following.incomplete {
            limit = limit.min(self.log.cursor(LOCAL).unwrap_or(base));
        }
        if limit > base {
            self.log.trim(limit);
        }
    }

    /// Start or move a cursor; false when its position is neither in the log nor its base.
    pub fn set_cursor(&mut self, name: &str, position: Position) -> bool {
        if !self.serves(name) || !self.log.contains(position) {
            return false;
        }
        let set = self.log.set_cursor(name, position.sequence);
        self.trim_log();
        set
    }

    /// Move a cursor forward; false when there is none or its position is not in the log.
    pub fn advance_cursor(&mut self, name: &str, position: Position) -> bool {
        match self.log.cursor(name) {
            Some(known) if known >= position.sequence => true,
            Some(_) => self.set_cursor(name, position),
            None => false,
        }
    }

    /// Position of a cursor.
    pub fn cursor(&self, name: &str) -> Option<Position> {
        self.log.cursor(name).and_then(|sequence| self.log.position_of(sequence))
    }

    /// Remove a cursor.
    pub fn drop_cursor(&mut self, name: &str) {
        self.log.remove_cursor(name);
    }

    /// Whether there is something for a pump to do.
    pub fn pump_ready(&self, name: &str) -> bool {
        self.serves(name) && self.log.cursor(name).is_none_or(|cursor| cursor < self.limit_of(name))
    }

    /// Committed records after a cursor.
    pub fn read_log(&self, name: &str, records_max: usize, bytes_max: usize) -> Option<Batch> {
        if !self.serves(name) {
            return None;
        }
        let (cursor, limit) = (self.log.cursor(name)?, self.limit_of(name));
        let mut records = Vec::new();
        let mut bytes = 0;
        for entry in self.log.iter_from(cursor + 1) {
            bytes += entry.bytes.len();
            let full = records.len() >= records_max || bytes > bytes_max;
            if entry.position.sequence > limit || (full && !records.is_empty()) {
                break;
            }
            records.push((entry.position, entry.bytes.clone()));
        }
        (!records.is_empty()).then(|| Batch { epoch: self.epoch(), records })
    }

    /// One chunk of the committed tables: its position, entries, and where to go on (empty: the end).
    ///
    /// `None` when no complete copy is here, or `after` was not made by this function.
    /// Cost: one pass over a map per call.
    pub fn snapshot(
        &self,
        after: &[u8],
        bytes_max: usize,
    ) -> Option<(Position, Vec<SnapshotEntry>, Vec<u8>)> {
        const PAGE: usize = 4096;
        if !self.is_complete() && self.role != Role::Dormant {
            return None;
        }
        let (from_map, from_place) = read_place(after)?;
        let mut entries = Vec::new();
        let mut bytes = 0;
        for map in self.store.maps().filter(|map| *map >= from_map) {
            let mut place = if map == from_map { from_place } else { None };
            loop {
                let page = self.store.scan(map, place, PAGE);
                for item in &page {
                    if bytes >= bytes_max && !entries.is_empty() {
                        return Some((self.commit(), entries, write_place(map, place)));
                    }
                    place = Some((item.hash, item.key));
                    if item.entry.tombstone {
                        continue;
                    }
                    bytes += map.len() + item.key.len() + item.entry.value.len() + 32;
                    entries.push(SnapshotEntry {
                        map: map.to_owned(),
                        schema: self.store.schema(map).unwrap_or(0),
                        key: item.key.to_vec(),
                        value: item.entry.value.to_vec(),
                        codec: item.entry.codec,
                        version: item.entry.version,
                        expires_at_ms: item.entry.expires_at_ms,
                    });
                }
                if page.len() < PAGE {
                    break;
                }
            }
        }
        Some((self.commit(), entries, Vec::new()))
    }

    /// Request results and floors of the committed records.
    pub fn export_streams(&self) -> Vec<u8> {
        self.streams.export(self.commit, usize::MAX).concat()
    }
}

type Place<'a> = Option<(u64, &'a [u8])>;

fn write_place(map: &str, place: Place<'_>) -> Vec<u8> {
    let mut out = vec![map.len() as u8];
    out.extend_from_slice(map.as_bytes());
    if let Some((hash, key)) = place {
        out.extend_from_slice(&hash.to_le_bytes());
        out.extend_from_slice(key);
    }
    out
}

fn read_place(bytes: &[u8]) -> Option<(&str, Place<'_>)> {
    let Some((length, rest)) = bytes.split_first() else { return Some(("", None)) };
    let (map, rest) = rest.split_at_checked(usize::from(*length))?;
    let map = std::str::from_utf8(map).ok()?;
    if rest.is_empty() {
        return Some((map, None));
    }
    let (hash, key) = rest.split_first_chunk::<8>()?;
    Some((map, Some((u64::from_le_bytes(*hash), key))))
}
