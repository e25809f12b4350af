//! Joining, tail first: records from now on at once, the snapshot of the old ones behind them.
//!
//! The primary offers a join under the session of the table; the copy wipes what it had only after
//! it has itself read the entry with that session, and answers. An offer that came before that was
//! not heard, so the copy asks for one when it reads the entry. Records stream; once it has caught up
//! the controller is asked to list it as a tail, and from the asking on a commit waits for it. A tail
//! receives the snapshot in bounded pieces; a piece names the position that it was read at, and its
//! entries apply only where nothing newer (a tombstone included) is. When the last piece is in and
//! everything up to its position is applied, the controller is asked to list the copy as in sync.
//! Requests are repeated until the table shows them. Callers: `node`, `commit`, `backup`.

use super::commit::Links;
use super::effects::{ChangeKind, ChangeWanted, Out};
use super::follower::{Follower, Kind};
use super::ownership::Role;
use super::partition::Partition;
use crate::frame::peer::{ChunkEntry, ChunkWriter, Entries, Header};
use crate::limits::SNAPSHOT_CHUNK_BYTES;
use crate::planted::{Bug, planted};
use crate::record::Position;
use crate::store::KeyList;

/// Most snapshot pieces on their way to one copy, over all partitions.
pub const CHUNKS_IN_FLIGHT_MAX: usize = 4;

/// A snapshot on its way to a tail.
#[derive(Debug)]
pub struct Transfer {
    maps: Vec<(String, KeyList)>,
    map: usize,
    key: usize,
    streams: Option<std::vec::IntoIter<Vec<u8>>>,
    /// The piece that is being sent, kept until it is acknowledged, with its request results.
    piece: Option<(ChunkWriter, Vec<u8>)>,
    next_index: u32,
    /// Keys and bytes of the tables when it began.
    keys: usize,
    table_bytes: u64,
    /// Bytes of the pieces that have arrived.
    done_bytes: u64,
    /// The piece has been handed to the link.
    pub(super) sent: bool,
}

/// How far transfers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Copies that are being made.
    pub copies: u64,
    /// Bytes of pieces that have arrived.
    pub done_bytes: u64,
    /// Bytes still to send, as far as the size of the tables tells.
    pub left_bytes: u64,
}

impl Transfer {
    /// Bytes still to send: of the piece under way, and the part of the tables that was not read yet.
    fn left_bytes(&self) -> u64 {
        let keys: usize = self.maps.iter().skip(self.map).map(|(_, keys)| keys.len()).sum();
        let left = keys.saturating_sub(self.key) as f64 / self.keys.max(1) as f64;
        let piece = self.piece.as_ref().map_or(0, |(piece, streams)| piece.bytes() + streams.len());
        #[expect(clippy::cast_sign_loss, reason = "a part of the whole")]
        let unread = (self.table_bytes as f64 * left) as u64;
        piece as u64 + unread
    }
}

impl Partition {
    /// Count the copies of this partition that are being made, and what they still need.
    pub(super) fn count_transfers(&self, progress: &mut Progress) {
        for follower in self.followers.iter().filter(|follower| !follower.complete) {
            progress.copies += 1;
            if let Some(transfer) = &follower.transfer {
                progress.done_bytes += transfer.done_bytes;
                progress.left_bytes += transfer.left_bytes();
            } else {
                progress.left_bytes += self.store.bytes() as u64;
            }
        }
    }

    /// Offer a joining copy to begin; repeated until it answers.
    pub(super) fn offer_join(&self, follower: &mut Follower, header: Header, links: &mut Links) {
        if !follower.poke {
            return;
        }
        let Some(writer) = links.writer(follower.copy) else { return };
        follower.from = self.join_base();
        writer.join_start(header, follower.from);
        follower.poke = false;
    }

    /// A primary offers to begin a join.
    pub fn on_join_start(&mut self, copy: u64, header: Header, base: Position, out: &mut Out) {
        let heard = self.role == Role::Joining
            && self.follows(copy, header)
            && header.session == self.listed_session();
        let unheard = planted(Bug::JoinBeforeTable) && self.role != Role::Primary;
        if !heard && !unheard {
            return;
        }
        let going_on = self.following.incomplete
            && self.following.session == header.session
            && base.sequence <= self.following.verified;
        if !going_on {
            self.wipe(base);
            self.following.session = header.session;
            self.following.verified = base.sequence;
            self.following.incomplete = true;
        }
        let position = self.log.position_of(self.following.verified).unwrap_or(self.log.base());
        self.following.answer = Some((position, true));
        self.mark_dirty(out);
    }

    /// Ask the controller for what is due: tails, complete copies, a hand-over.
    ///
    /// Asks once per version of the entry, and again when `repeat` says that it is time to.
    pub(super) fn want_changes(&mut self, repeat: bool, out: &mut Out) {
        if self.role != Role::Primary {
            return;
        }
        let Some(entry) = &self.entry else { return };
        let (commit, disks) = (self.commit, self.settings.local_sink);
        for follower in &mut self.followers {
            let caught_up = follower.started && follower.acked >= follower.goal.max(commit);
            let kind = match follower.kind {
                Kind::Joining if caught_up || follower.asked => ChangeKind::Tail,
                Kind::Tail if planted(Bug::TailInSyncEarly) => ChangeKind::InSync,
                Kind::Tail if follower.complete && follower.on_disk(disks) => ChangeKind::InSync,
                _ => continue,
            };
            follower.asked = true;
            if follower.asked_version == entry.version && !repeat {
                continue;
            }
            follower.asked_version = entry.version;
            out.changes.push(ChangeWanted {
                partition: self.index,
                epoch: entry.epoch,
                version: entry.version,
                kind,
                copy: follower.copy,
                from: if kind == ChangeKind::Tail { follower.from.pack() } else { 0 },
            });
        }
        self.want_handover(repeat, out);
    }

    /// Ask the controller to remove copies that count and do not answer. They keep counting until the
    /// table says otherwise.
    pub(super) fn want_shrink(&mut self, now_ms: u64, out: &mut Out) {
        let Some(entry) = &self.entry else { return };
        let (last, round) = (self.log.last().sequence, self.confirming.owed());
        for follower in &mut self.followers {
            if follower.is_silent(last, round, now_ms) {
                out.changes.push(ChangeWanted {
                    partition: self.index,
                    epoch: entry.epoch,
                    version: entry.version,
                    kind: ChangeKind::Shrink,
                    copy: follower.copy,
                    from: 0,
                });
            }
        }
    }

    /// Stopped for a hand-over and everything committed: say so.
    pub(super) fn want_handover(&mut self, repeat: bool, out: &mut Out) {
        let Some(entry) = &self.entry else { return };
        if self.role != Role::Primary || entry.target == 0 || !self.idle() {
            return;
        }
        if self.handover_asked == entry.version && !repeat {
            return;
        }
        self.handover_asked = entry.version;
        out.changes.push(ChangeWanted {
            partition: self.index,
            epoch: entry.epoch,
            version: entry.version,
            kind: ChangeKind::Stopped,
            copy: entry.target,
            from: 0,
        });
    }

    /// Send the next piece of a tail's snapshot, if one of the copy's places is free.
    pub(super) fn emit_chunk(&self, follower: &mut Follower, header: Header, links: &mut Links) {
        if follower.kind != Kind::Tail || !follower.started || follower.complete {
            return;
        }
        let transfer = follower.transfer.get_or_insert_with(|| self.begin_transfer());
        if transfer.sent {
            return;
        }
        let under_way = links.chunks.entry(follower.copy).or_default();
        if !under_way.contains(&self.index) && under_way.len() >= CHUNKS_IN_FLIGHT_MAX {
            links.chunk_queue.entry(follower.copy).or_default().insert(self.index);
            return;
        }
        under_way.insert(self.index);
        // It may have been queued before it came here with something else to send; left in the queue, it would
        // be called once more in the place of one that still waits.
        links.chunk_queue.entry(follower.copy).or_default().remove(&self.index);
        if !links.throttle.admits(self.index) {
            return;
        }
        if transfer.piece.is_none() {
            let piece = self.next_piece(transfer);
            transfer.piece = Some(piece);
        }
        if let (Some((piece, streams)), Some(writer)) =
            (&transfer.piece, links.writer(follower.copy))
        {
            writer.chunk(header, piece, streams);
            transfer.sent = true;
            links.throttle.spend(piece.bytes() + streams.len());
        }
    }

    fn begin_transfer(&self) -> Box<Transfer> {
        let maps: Vec<_> =
            self.store.maps().map(|map| (map.to_owned(), self.store.keys(map))).collect();
        Box::new(Transfer {
            keys: maps.iter().map(|(_, keys)| keys.len()).sum(),
            table_bytes: self.store.bytes() as u64,
            done_bytes: 0,
            maps,
            map: 0,
            key: 0,
            streams: None,
            piece: None,
            next_index: 0,
            sent: false,
        })
    }

    /// Entries as they are now, or request results once the entries are through.
    fn next_piece(&self, transfer: &mut Transfer) -> (ChunkWriter, Vec<u8>) {
        let mut piece = ChunkWriter::new(transfer.next_index, self.commit());
        transfer.next_index += 1;
        while let Some((map, keys)) = transfer.maps.get(transfer.map) {
            let Some(key) = keys.get(transfer.key) else {
                transfer.map += 1;
                transfer.key = 0;
                continue;
            };
            if piece.bytes() >= SNAPSHOT_CHUNK_BYTES {
                return (piece, Vec::new());
            }
            if let Some(entry) = self.store.get(map, key) {
                piece.entry(&ChunkEntry {
                    map,
                    schema: self.store.schema(map).unwrap_or(0),
                    key,
                    value: (!entry.tombstone).then_some(entry.value),
                    codec: entry.codec,
                    version: entry.version,
                    expires_at_ms: entry.expires_at_ms,
                });
            }
            transfer.key += 1;
        }
        transfer.maps.clear();
        let streams = transfer.streams.get_or_insert_with(|| {
            self.streams.export(self.commit, SNAPSHOT_CHUNK_BYTES).into_iter()
        });
        let mut results = streams.next().unwrap_or_default();
        if planted(Bug::ResultsNotInSnapshot) {
            results.clear();
        }
        piece.last = streams.len() == 0;
        (piece, results)
    }

    /// A piece of the snapshot arrives.
    pub fn on_chunk(
        &mut self,
        copy: u64,
        header: Header,
        index: u32,
        last: bool,
        position: Position,
        entries: Entries<'_>,
        streams: &[u8],
        out: &mut Out,
    ) {
        if !self.follows(copy, header)
            || !self.following.incomplete
            || header.session != self.following.session
        {
            return;
        }
        if index > self.following.next_chunk {
            return;
        }
        if index == self.following.next_chunk {
            for entry in entries {
                self.merge(&entry);
            }
            if self.streams.import(streams).is_err() {
                return;
            }
            self.following.next_chunk += 1;
            if last {
                self.following.complete_at = Some(position.sequence);
            }
        }
        if last {
            self.settle_snapshot();
            self.hurry(out);
        } else {
            self.following.chunk_ack = Some(index);
        }
        self.mark_dirty(out);
    }

    fn merge(&mut self, entry: &ChunkEntry<'_>) {
        let ChunkEntry { map, schema, key, value, codec, version, expires_at_ms } = *entry;
        if let Some(value) = value
            && planted(Bug::SnapshotResurrects)
        {
            self.store.put(map, schema, key, value, codec, version, expires_at_ms);
        } else if let Some(value) = value {
            self.store.put_if_newer(map, schema, key, value, codec, version, expires_at_ms);
        } else if self.store.get(map, key).is_none_or(|known| known.version < version) {
            self.store.delete(map, key, version, true);
        }
    }

    /// Acknowledge the last piece once everything up to its position is applied.
    pub(super) fn settle_snapshot(&mut self) {
        if let Some(complete_at) = self.following.complete_at
            && self.following.incomplete
            && self.commit >= complete_at
        {
            self.following.chunk_ack = self.following.next_chunk.checked_sub(1);
        }
    }

    /// A tail has taken in a piece.
    pub fn on_chunk_ack(
        &mut self,
        copy: u64,
        header: Header,
        index: u32,
        now_ms: u64,
        out: &mut Out,
    ) {
        if self.role != Role::Primary || header.epoch != self.epoch() {
            return;
        }
        let partition = self.index;
        let Some(follower) = self.followers.iter_mut().find(|follower| {
            follower.copy == copy
                && follower.session == header.session
                && follower.kind == Kind::Tail
        }) else {
            return;
        };
        follower.heard_ms = now_ms;
        let Some(transfer) = &mut follower.transfer else { return };
        let Some((piece, streams)) = transfer.piece.take_if(|(piece, _)| piece.index == index)
        else {
            return;
        };
        transfer.sent = false;
        transfer.done_bytes += (piece.bytes() + streams.len()) as u64;
        out.chunks_over.push((copy, partition));
        if piece.last {
            // What was called persisted without it until now it must have on disk before it is in sync.
            follower.complete_at = self.commit;
            follower.transfer = None;
            follower.complete = true;
        }
        self.want_changes(false, out);
        self.mark_dirty(out);
    }
}
