//! The data plane of one node: its partitions, its outbox, its links.
//!
//! Every method may be called from any thread. A partition is locked for one operation or one
//! message; the outbox and the links have locks of their own, and the order is links, partition,
//! with the outbox never held together with either. What a call brings about is handed out by
//! [`Node::take_effects`], which also writes the frames for other copies, so that everything between
//! two calls of it travels in one frame per copy. Callers: `rust/py`.
//!
//! Over 500 lines in one room: every method takes locks, and their order is seen only side by side.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::commit::Links;
use super::effects::{ChangeWanted, Out};
use super::join::{CHUNKS_IN_FLIGHT_MAX, Progress};
use super::lease::Lease;
use super::ownership::{Ownership, Role};
use super::partition::{Partition, Settings, Waiting};
use super::persist::{Doorbell, Ring};
use super::request::Origin;
use super::stale;
use super::turn::TurnStart;
use crate::error::Result;
use crate::frame::RequestFrame;
use crate::frame::peer::{self, ChunkEntry, Message};
use crate::frame::reply::status;
use crate::frame::request::FLAG_PERSISTED;
use crate::gate::Rights;
use crate::key::partition_of;
use crate::limits::{EPOCH_MAX, PARTITIONS_MAX, SEQUENCE_MAX, check_size};
use crate::record::Position;
use crate::store::Quota;

/// Wanted changes of the ownership table are repeated this often until the table shows them.
pub const CHANGE_REPEAT_MS: u64 = 100;

/// How a node is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Incarnation of this node, from 1.
    pub copy: u64,
    /// Partitions of the space.
    pub partition_count: u32,
    /// Copies that a write must be held by.
    pub min_in_sync: usize,
    /// Memory of all tables; 0 is no limit.
    pub quota_bytes: u64,
    /// Memory of all logs; 0 is no limit.
    pub log_bytes: u64,
    /// Logs wait for the cursor "shared".
    pub shared_sink: bool,
    /// Logs wait for the cursor "local".
    pub local_sink: bool,
}

/// What the node wants done.
#[derive(Debug, Default)]
pub struct Effects {
    /// (connection, reply frame).
    pub client_frames: Vec<(u64, Vec<u8>)>,
    /// (copy, peer frame), in sending order.
    pub peer_frames: Vec<(u64, Vec<u8>)>,
    /// Turns to run at once.
    pub turns: Vec<TurnStart>,
    /// Tickets: positive committed, negative cut.
    pub settled: Vec<i64>,
    /// Changes of the ownership table to ask for.
    pub changes: Vec<ChangeWanted>,
}

/// One row of [`Node::roles`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoleRow {
    /// The partition.
    pub partition: u32,
    /// What this node is to it.
    pub role: Role,
    /// Epoch of its entry.
    pub epoch: u32,
    /// Version of its entry.
    pub version: u64,
    /// Commit position here.
    pub commit: Position,
    /// Entries in its tables.
    pub entries: u64,
    /// Bytes of its tables.
    pub bytes: u64,
}

/// Counters of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// Bytes of all tables.
    pub memory_bytes: u64,
    /// Their limit; 0 is none.
    pub quota_bytes: u64,
    /// Entries in all tables.
    pub entries: u64,
    /// Bytes of all logs.
    pub log_bytes: u64,
    /// Their limit; 0 is none.
    pub log_limit_bytes: u64,
    /// Partitions that this node is the primary of.
    pub primaries: u64,
    /// Partitions that it holds a copy of.
    pub copies: u64,
    /// Records that are not committed here yet.
    pub uncommitted: u64,
    /// Answers that wait for a commit.
    pub waiting: u64,
    /// Turns that are running.
    pub turns: u64,
    /// Request streams that are remembered.
    pub streams: u64,
    /// Partitions that are out of use because an invariant broke.
    pub faults: u64,
    /// Until when answers may leave, in milliseconds of the clock that grants are counted in.
    pub lease_until_ms: u64,
    /// Revision of the table that the lease was granted at.
    pub lease_revision: u64,
    /// Answers that became unknown because there was no lease.
    pub withheld: u64,
    /// Copies of its partitions that are being made, and how far that is.
    pub transfers: Progress,
    /// Bytes of snapshots that it has sent so far.
    pub transfer_sent_bytes: u64,
    /// How many it sends in a second at most; 0: no bound.
    pub transfer_bytes_per_s: u64,
}

/// The data plane of one node.
#[derive(Debug)]
pub struct Node {
    settings: Arc<Settings>,
    partitions: Box<[Mutex<Partition>]>,
    outbox: Mutex<Out>,
    lease: Lease,
    links: Mutex<Links>,
    repeated_ms: AtomicU64,
    doorbell: Doorbell,
}

impl Node {
    /// A node that holds nothing.
    pub fn new(config: &Config) -> Result<Self> {
        check_size(
            "the partition count",
            config.partition_count as usize,
            PARTITIONS_MAX as usize,
        )?;
        if config.copy == 0 || config.partition_count == 0 || config.min_in_sync == 0 {
            return Err(crate::CoreError::Empty {
                what: "one of copy, partition count and min_in_sync",
            });
        }
        let settings = Arc::new(Settings {
            copy: config.copy,
            partition_count: config.partition_count,
            min_in_sync: config.min_in_sync,
            shared_sink: config.shared_sink,
            local_sink: config.local_sink,
            quota: Quota::new(config.quota_bytes),
            log_budget: Quota::new(config.log_bytes),
            revision: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            has_sink: config.shared_sink || config.local_sink,
        });
        let partitions = (0..config.partition_count)
            .map(|index| Mutex::new(Partition::new(index, settings.clone())))
            .collect();
        Ok(Self {
            settings,
            partitions,
            outbox: Mutex::default(),
            lease: Lease::default(),
            links: Mutex::default(),
            repeated_ms: AtomicU64::new(0),
            doorbell: Doorbell::default(),
        })
    }

    /// What all partitions share.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Lock one partition, if there is one of that number.
    pub fn partition(&self, index: u32) -> Option<MutexGuard<'_, Partition>> {
        self.partitions.get(index as usize).map(Mutex::lock)
    }

    /// Lock one partition unless somebody else has it; the inner `None` says so.
    pub fn try_partition(&self, index: u32) -> Option<Option<MutexGuard<'_, Partition>>> {
        self.partitions.get(index as usize).map(Mutex::try_lock)
    }

    /// Partition of a key.
    pub fn partition_of(&self, key: &[u8]) -> u32 {
        partition_of(key, self.settings.partition_count)
    }

    /// Effects of a new call; replies go on in the frames that earlier calls left open.
    fn begin(&self) -> Out {
        let mut out = Out::new();
        let mut outbox = self.outbox.lock();
        out.lapses = self.lease.lapses();
        (out.clock_ms, out.member_ms) = (self.lease.clock_ms(), self.lease.asked_ms());
        outbox.lend(&mut out);
        out
    }

    /// Put what a call brought about where [`Self::take_effects`] finds it.
    fn finish(&self, mut out: Out) {
        out.park();
        if std::mem::take(&mut out.persist) {
            self.doorbell.ring(Ring::Asked);
        }
        if !out.chunks_over.is_empty() {
            let mut links = self.links.lock();
            for (copy, partition) in std::mem::take(&mut out.chunks_over) {
                links.chunks.entry(copy).or_default().remove(&partition);
                let free = CHUNKS_IN_FLIGHT_MAX.saturating_sub(links.chunks[&copy].len());
                let queue = links.chunk_queue.entry(copy).or_default();
                queue.remove(&partition);
                // As many as there are places: one that was called before may not have come for its place.
                for _ in 0..free {
                    out.dirty.extend(queue.pop_first());
                }
            }
        }
        if !out.is_empty() || !out.dirty.is_empty() || out.answered_bytes > 0 {
            let mut outbox = self.outbox.lock();
            if out.lapses != self.lease.lapses() {
                // The lease broke while this was computed: what it was computed from may be old.
                out.close();
                self.lease.withhold(&mut out.frames);
            }
            outbox.absorb(&mut out);
        }
    }

    fn with<R>(&self, index: u32, act: impl FnOnce(&mut Partition, &mut Out) -> R) -> Option<R> {
        let mut out = self.begin();
        let result = {
            let mut partition = self.partition(index)?;
            act(&mut partition, &mut out)
        };
        self.finish(out);
        Some(result)
    }

    /// Apply entries of the ownership table.
    pub fn apply_table(&self, revision: u64, entries: Vec<(u32, Ownership)>, now_ms: u64) {
        self.settings.revision.fetch_max(revision, Ordering::Relaxed);
        let mut out = self.begin();
        for (index, entry) in entries {
            if entry.epoch > EPOCH_MAX {
                continue;
            }
            if let Some(mut partition) = self.partition(index) {
                partition.apply_entry(entry, now_ms, &mut out);
            }
        }
        self.lease.applied(revision);
        self.finish(out);
    }

    /// From now on answers need a lease: without one every answer becomes unknown.
    pub fn require_lease(&self) {
        self.lease.require();
    }

    /// Take a grant; says whether it counts, which it does only once its revision is applied here.
    ///
    /// `until_ms` is counted from before the request that was granted, `now_ms` is read after the
    /// grant came: when the lease was over by then, answers that wait to be fetched become unknown.
    pub fn grant_lease(&self, revision: u64, until_ms: u64, now_ms: u64) -> bool {
        if !self.lease.counts(revision) {
            return false;
        }
        let mut outbox = self.outbox.lock();
        if self.lease.is_over(now_ms) {
            self.lease.lapse();
            outbox.close();
            self.lease.withhold(&mut outbox.frames);
        }
        self.lease.extend(revision, until_ms);
        true
    }

    /// Send snapshots of at most so many bytes in a second to all copies together; 0: no bound.
    pub fn limit_transfers(&self, bytes_per_s: u64) {
        self.links.lock().throttle.limit(bytes_per_s);
    }

    /// Give a copy from disk, before the first table.
    pub fn load<'a>(
        &self,
        index: u32,
        position: Position,
        entries: impl Iterator<Item = ChunkEntry<'a>>,
        streams: &[u8],
    ) -> Result<()> {
        check_size("the epoch", position.epoch as usize, EPOCH_MAX as usize)?;
        check_size("the sequence", position.sequence as usize, SEQUENCE_MAX as usize)?;
        let Some(mut partition) = self.partition(index) else {
            return Err(crate::CoreError::Invalid { what: "the partition", value: index.into() });
        };
        partition.load(position, entries, streams)
    }

    /// Give what a sink has of a partition that nobody serves.
    pub fn reload<'a>(
        &self,
        index: u32,
        position: Position,
        entries: impl Iterator<Item = ChunkEntry<'a>>,
    ) -> Result<()> {
        check_size("the epoch", position.epoch as usize, EPOCH_MAX as usize)?;
        check_size("the sequence", position.sequence as usize, SEQUENCE_MAX as usize)?;
        let Some(mut partition) = self.partition(index) else {
            return Err(crate::CoreError::Invalid { what: "the partition", value: index.into() });
        };
        partition.reload(position, entries)
    }

    /// Forget what was reloaded of a partition, or is of the past: see [`Partition::unload`].
    pub fn unload(&self, index: u32) {
        if let Some(mut partition) = self.partition(index) {
            partition.unload();
        }
    }

    /// Refuse new requests everywhere; what is appended still commits.
    pub fn stop_all(&self) {
        self.settings.stopping.store(true, Ordering::Relaxed);
    }

    /// Nothing uncommitted, nothing waiting, no turn running.
    pub fn idle(&self) -> bool {
        self.partitions.iter().all(|partition| partition.lock().idle())
    }

    /// Carry out one request frame of a caller with every right; see [`Self::on_client_frame_as`].
    pub fn on_client_frame(&self, connection: u64, frame: &[u8], now_ms: u64) -> Result<usize> {
        self.on_client_frame_as(connection, Rights::ALL, frame, now_ms)
    }

    /// Carry out one request frame; says how many operations it held. A bad frame changes nothing.
    ///
    /// An operation that the caller has no right to is answered with PERMISSION, the others of its
    /// frame are carried out.
    pub fn on_client_frame_as(
        &self,
        connection: u64,
        rights: Rights,
        frame: &[u8],
        now_ms: u64,
    ) -> Result<usize> {
        let frame = RequestFrame::decode(frame)?;
        let mut out = self.begin();
        let mut count = 0;
        for operation in frame.operations() {
            count += 1;
            let origin = Origin {
                connection,
                stream: frame.stream,
                number: operation.number,
                persisted: operation.flags & FLAG_PERSISTED != 0,
            };
            if !rights.allow(operation.opcode) {
                out.refuse(origin, status::PERMISSION, 0);
                continue;
            }
            // A small frame can ask for a thousand large values; what was asked for a write is done.
            if out.is_crowded() && !operation.opcode.is_mutating() {
                out.put_off(origin);
                continue;
            }
            let index = operation.partition().unwrap_or_else(|| self.partition_of(operation.key));
            match self.partition(index) {
                Some(mut partition) => partition.execute(&operation, origin, now_ms, &mut out),
                None => out.refuse(origin, status::INVALID, 0),
            }
        }
        self.finish(out);
        Ok(count)
    }

    /// Forget a connection: what was answered to it and not fetched is dropped.
    pub fn close_connection(&self, connection: u64) {
        self.outbox.lock().frames.retain(|(other, _)| *other != connection);
    }

    /// Take one frame from another copy. A bad frame changes nothing.
    pub fn on_peer_frame(&self, copy: u64, frame: &[u8], now_ms: u64) -> Result<()> {
        let messages = peer::decode(frame)?;
        let mut out = self.begin();
        for (header, message) in messages {
            let Some(mut partition) = self.partition(header.partition) else { continue };
            let out = &mut out;
            match message {
                Message::Append { predecessor, commit, trim, records } => {
                    partition.on_append(copy, header, predecessor, commit, trim, records, out);
                }
                Message::Answer { position, matched } => {
                    partition.on_answer(copy, header, position, matched, now_ms, out);
                }
                Message::JoinStart { base } => partition.on_join_start(copy, header, base, out),
                Message::Chunk { index, last, position, entries, streams } => {
                    partition.on_chunk(copy, header, index, last, position, entries, streams, out);
                }
                Message::ChunkAck { index } => {
                    partition.on_chunk_ack(copy, header, index, now_ms, out);
                }
                Message::CopyState(state) => {
                    partition.on_copy_state(copy, header, state, now_ms, out);
                }
                Message::Persist { sequence } => partition.on_persist(copy, header, sequence, out),
                Message::Confirm { round } => partition.on_confirm(copy, header, round, out),
                Message::Confirmed { round } => partition.on_confirmed(copy, header, round, out),
            }
        }
        self.finish(out);
        Ok(())
    }

    /// A fresh outgoing link to a copy.
    pub fn peer_up(&self, copy: u64) {
        {
            let mut links = self.links.lock();
            links.up.insert(copy);
            links.writers.remove(&copy);
            links.chunks.remove(&copy);
            links.chunk_queue.remove(&copy);
        }
        let mut out = self.begin();
        for partition in &self.partitions {
            partition.lock().peer_up(copy, &mut out);
        }
        self.finish(out);
    }

    /// The outgoing link to a copy is gone.
    pub fn peer_down(&self, copy: u64) {
        let mut links = self.links.lock();
        links.up.remove(&copy);
        links.writers.remove(&copy);
        links.chunks.remove(&copy);
        links.chunk_queue.remove(&copy);
    }

    /// Time passes.
    pub fn tick(&self, now_ms: u64) {
        let before = self.repeated_ms.load(Ordering::Relaxed);
        let repeat = now_ms.saturating_sub(before) >= CHANGE_REPEAT_MS || now_ms < before;
        if repeat {
            self.repeated_ms.store(now_ms, Ordering::Relaxed);
        }
        let mut out = self.begin();
        out.dirty.extend(self.links.lock().throttle.tick(now_ms));
        for partition in &self.partitions {
            partition.lock().tick(now_ms, repeat, &mut out);
        }
        self.finish(out);
    }

    /// Everything since the last call, or `None`.
    ///
    /// Without `peers` what other copies are owed waits for a later call, so that more travels in one
    /// frame. `clock` gives the time that leases are counted in; it is read after the answers were
    /// computed, and without a valid lease then they are handed out as unknown.
    pub fn take_effects(&self, peers: bool, clock: impl Fn() -> u64) -> Option<Effects> {
        self.lease.saw(clock());
        let mut links = self.links.lock();
        let dirty = if peers { std::mem::take(&mut self.outbox.lock().dirty) } else { Vec::new() };
        for index in dirty {
            if let Some(mut partition) = self.partition(index) {
                partition.emit(&mut links);
            }
        }
        let mut peer_frames = Vec::new();
        let writers = if peers { std::mem::take(&mut links.writers) } else { BTreeMap::default() };
        for (copy, writer) in writers {
            peer_frames.extend(writer.finish().into_iter().map(|frame| (copy, frame)));
        }
        drop(links);
        let mut outbox = self.outbox.lock();
        outbox.close();
        outbox.answered_bytes = 0;
        if outbox.is_empty() && peer_frames.is_empty() {
            return None;
        }
        let mut changes = std::mem::take(&mut outbox.changes);
        let lapses = self.lease.lapses();
        let mut effects = Effects {
            client_frames: std::mem::take(&mut outbox.frames),
            peer_frames,
            turns: std::mem::take(&mut outbox.turns),
            settled: std::mem::take(&mut outbox.settled),
            changes: Vec::new(),
        };
        let stale = std::mem::take(&mut outbox.stale);
        drop(outbox);
        if !effects.client_frames.is_empty() {
            let now_ms = clock();
            if stale {
                stale::settle(&mut effects.client_frames, now_ms);
            }
            if self.lease.is_over(now_ms) || lapses != self.lease.lapses() {
                self.lease.withhold(&mut effects.client_frames);
            }
        }
        changes.sort_unstable();
        changes.dedup();
        Some(Effects { changes, ..effects })
    }

    /// Whether a record is committed; if not, the ticket is settled later.
    pub fn when_committed(&self, index: u32, sequence: u64, ticket: i64) -> bool {
        self.with(index, |partition, out| {
            if partition.role() != Role::Primary || sequence > partition.log().last().sequence {
                out.settled.push(-ticket);
                return false;
            }
            if sequence <= partition.commit().sequence {
                return true;
            }
            partition.wait(sequence, Waiting::Ticket(ticket));
            false
        })
        .unwrap_or(false)
    }

    /// This node's own disk has a partition, fsynced, up to a position.
    pub fn set_persisted(&self, index: u32, position: Position) {
        self.with(index, |partition, out| partition.set_persisted(position, out));
    }

    /// Where the pump of this node's own disk waits.
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    /// Partitions with something to do for a pump.
    pub fn pump_ready(&self, name: &str) -> Vec<u32> {
        let ready = |index: &u32| self.partition(*index).is_some_and(|p| p.pump_ready(name));
        (0..self.settings.partition_count).filter(ready).collect()
    }

    /// End a turn; returns the turns that are next.
    pub fn end_turn(
        &self,
        turn: &TurnStart,
        buffer: &super::turn::Buffer,
        ending: &super::turn::Ending<'_>,
        now_ms: u64,
    ) -> Vec<TurnStart> {
        let mut out = self.begin();
        if let Some(mut partition) = self.partition(turn.partition) {
            partition.end_turn(turn, buffer, ending, now_ms, &mut out);
        }
        let next = std::mem::take(&mut out.turns);
        self.finish(out);
        next
    }

    /// A turn ends without its shell: what is next is handed out with the effects.
    pub fn abandon_turn(
        &self,
        turn: &TurnStart,
        buffer: &super::turn::Buffer,
        ending: &super::turn::Ending<'_>,
    ) {
        self.with(turn.partition, |partition, out| {
            partition.end_turn(turn, buffer, ending, turn.now_ms, out);
        });
    }

    /// One row per partition that this node holds a copy of.
    pub fn roles(&self) -> Vec<RoleRow> {
        let mut rows = Vec::new();
        for index in 0..self.settings.partition_count {
            let Some(partition) = self.partition(index) else { continue };
            if partition.role() != Role::None {
                let entry = partition.entry();
                // A tail whose snapshot is complete goes to disk before it is called in sync.
                let whole_tail = partition.role() == Role::Tail && partition.is_complete();
                rows.push(RoleRow {
                    partition: index,
                    role: if whole_tail { Role::Backup } else { partition.role() },
                    epoch: entry.map_or(0, |entry| entry.epoch),
                    version: entry.map_or(0, |entry| entry.version),
                    commit: partition.commit(),
                    entries: partition.store().total_len() as u64,
                    bytes: partition.store().bytes() as u64,
                });
            }
        }
        rows
    }

    /// Counters of this node.
    pub fn status(&self) -> Status {
        let mut status = Status {
            memory_bytes: self.settings.quota.used(),
            quota_bytes: self.settings.quota.limit(),
            log_bytes: self.settings.log_budget.used(),
            log_limit_bytes: self.settings.log_budget.limit(),
            withheld: self.lease.withheld(),
            ..Status::default()
        };
        (status.lease_until_ms, status.lease_revision) = self.lease.terms();
        {
            let links = self.links.lock();
            status.transfer_sent_bytes = links.throttle.sent_bytes();
            status.transfer_bytes_per_s = links.throttle.bytes_per_s();
        }
        for partition in &self.partitions {
            partition.lock().count_into(&mut status);
        }
        status
    }

    /// Assert every invariant of every partition; for tests.
    ///
    /// # Panics
    /// When one is broken.
    pub fn check(&self) {
        for partition in &self.partitions {
            partition.lock().check();
        }
    }
}

impl Partition {
    fn tick(&mut self, now_ms: u64, repeat: bool, out: &mut Out) {
        if self.role() == Role::None {
            return;
        }
        self.look_at_freshness(out.clock_ms);
        if self.role() == Role::Primary {
            if !self.settings.stopping() && !self.handing_over() {
                self.expire_due(now_ms, out);
                self.forget_streams(out);
            }
            self.tick_followers(now_ms, out);
            self.tick_persist(now_ms, out);
            self.tick_confirm(now_ms, out);
            if repeat {
                self.want_shrink(now_ms, out);
                self.want_changes(true, out);
                self.try_commit(out);
            }
        }
        self.tick_recovery(now_ms, repeat, out);
        self.tick_copy_state(out);
        if !self.log.is_empty() {
            self.trim_log();
        }
    }

    fn count_into(&self, status: &mut Status) {
        status.primaries += u64::from(self.role() == Role::Primary);
        status.copies += u64::from(self.role() != Role::None);
        status.entries += self.store.total_len() as u64;
        status.uncommitted += self.log.last().sequence - self.commit;
        status.waiting += (self.waiting.len() + self.unpersisted.len()) as u64;
        status.turns += self.keys.len() as u64;
        status.streams += self.streams.len() as u64;
        status.faults += u64::from(self.fault.is_some());
        if self.role() == Role::Primary {
            self.count_transfers(&mut status.transfers);
        }
    }
}
