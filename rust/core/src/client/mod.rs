//! One request stream of a client, as a machine: numbers, batches, routes, retries, and matches
//! replies.
//!
//! Operations go in one by one ([`Client::queue`]) and are encoded straight into the open frame of
//! the slot (the caller's name for a node) that their partition is routed to; frames come out
//! ([`Client::take_frames`]), replies go in ([`Client::on_frame`]) and completions come out, each
//! with the waiter it was queued with. No clock, no socket: time is an argument, sending is the
//! caller's.
//!
//! Over 500 lines in one room: what queues an operation and what ends it keep the same counts.
//!
//! Invariants:
//! - a number is given once; a retry is the same number, the same bytes, the same token;
//! - a mutating operation is answered, refused for good, surely not applied, or *unknown*: the last
//!   stays open until
//!   the caller asks again ([`Client::resend`]) or gives up ([`Client::release`]);
//! - `lowest`, as each operation states it, is never above a mutating number of that partition that
//!   is still open, and for an invoke not above any open invoke of the stream: its turn hands it on
//!   to calls in other partitions;
//! - what leaves an unsent frame (a new route, a cancel, a deadline) is not sent with it.
//!
//! Operations in flight together may take effect in any order. Callers: `rust/py`.

mod buffers;
mod deadlines;
mod flow;
mod open;
mod window;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use self::buffers::{Buffers, MapName, NO_SLOT};
use self::deadlines::Deadlines;
use self::open::OpenNumbers;
use self::window::{Pending, State, Window};
use crate::error::{CoreError, Result};
use crate::frame::request::{
    CODEC_BYTES, FLAG_CONFIRMED, FLAG_IF_ABSENT, FLAG_PERSISTED, FLAG_STALE, FLAG_TOKEN, FLAG_TTL,
    FLAG_VERSION, Head, Parts, check_parts, encode_operation,
};
use crate::frame::request::{Chain, Opcode, Token};
use crate::key::partition_of;
use crate::limits::{PARTITIONS_MAX, check_name, check_size};

/// Most operations open at once, unknown ones included.
pub const OPEN_OPERATIONS_MAX: usize = 1 << 20;
/// Most encoded bytes of open operations, and of frames that hold one.
pub const OPEN_BYTES_MAX: usize = 1 << 30;
/// Most maps and handlers that a client names.
pub const MAPS_MAX: usize = 65_535;
/// First wait before a refused operation goes out again; it doubles each time.
pub const BACKOFF_FIRST_MS: u64 = 1;
/// Longest wait of the back-off.
pub const BACKOFF_MAX_MS: u64 = 50;
/// Longest wait that a BACKPRESSURE reply may ask for.
pub const HINT_MAX_MS: u64 = 10_000;
/// Longest time that a frame waits to fill; see [`Client::set_frame_window`].
pub const HOLD_MS: u64 = 1;
/// A frame of this many operations is full enough to leave at once.
pub const HELD_OPERATIONS_MAX: usize = 256;

/// Status of a [`Completion`] whose operation was surely not applied when its deadline passed.
pub const TIMEOUT: u8 = 255;

/// One operation to queue.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// What to do.
    pub opcode: Opcode,
    /// [`FLAG_IF_ABSENT`], [`FLAG_STALE`], [`FLAG_CONFIRMED`] or 0: the others follow from the parts.
    pub flags: u8,
    /// Index given by [`Client::map`].
    pub map: u16,
    /// How the value is encoded.
    pub codec: u8,
    /// The condition of a put or delete.
    pub expected: Option<u64>,
    /// The partition of a size or scan; otherwise the key says it.
    pub partition: Option<u32>,
    /// Key, value, and what else there is.
    pub parts: Parts<'a>,
}

impl<'a> Request<'a> {
    /// A request without conditions; set the other fields as needed.
    #[inline]
    pub fn new(opcode: Opcode, map: u16, key: &'a [u8], value: &'a [u8]) -> Self {
        Self {
            opcode,
            flags: 0,
            map,
            codec: CODEC_BYTES,
            expected: None,
            partition: None,
            parts: Parts { key, value, ..Parts::default() },
        }
    }

    /// With an explicit token: a nested call's.
    #[must_use]
    pub fn with_token(mut self, token: Token<'a>, chain: Chain<'a>) -> Self {
        self.parts.token = Some((token, chain));
        self
    }

    /// With a time to live; 0 for none.
    #[must_use]
    pub fn with_ttl(mut self, ttl_ms: u64) -> Self {
        self.parts.ttl_ms = ttl_ms;
        self
    }

    /// Of any complete copy; the value is the age in ms that is put up with (8 bytes).
    #[must_use]
    pub fn stale(mut self) -> Self {
        self.flags = FLAG_STALE;
        self
    }

    /// Answered once the copies have confirmed the primary.
    #[must_use]
    pub fn confirmed(mut self, confirmed: bool) -> Self {
        self.flags = if confirmed { FLAG_CONFIRMED } else { 0 };
        self
    }

    /// Only where there is nothing.
    #[must_use]
    pub fn if_absent(mut self, if_absent: bool) -> Self {
        self.flags = if if_absent { FLAG_IF_ABSENT } else { 0 };
        self
    }

    #[inline]
    fn all_flags(&self) -> u8 {
        let ttl = u8::from(self.parts.ttl_ms > 0) * FLAG_TTL;
        let version = u8::from(self.expected.is_some()) * FLAG_VERSION;
        let token = u8::from(self.parts.token.is_some()) * FLAG_TOKEN;
        (self.flags & (FLAG_IF_ABSENT | FLAG_STALE | FLAG_CONFIRMED)) | ttl | version | token
    }
}

/// What became of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion<'a, W> {
    /// What it was queued with.
    pub waiter: W,
    /// A status of the reply frame, or [`TIMEOUT`].
    pub status: u8,
    /// The reply's value; empty when there was no reply.
    pub value: &'a [u8],
    /// The reply's version; at a deadline the status of the last refusal, or 0.
    pub version: u64,
    /// How the value is encoded.
    pub codec: u8,
    /// Copies that hold the change.
    pub copies: u8,
    /// Its number.
    pub number: u64,
    /// What it was.
    pub opcode: Opcode,
    /// Its flags.
    pub flags: u8,
    /// Its map.
    pub map: u16,
    /// Its partition.
    pub partition: u16,
}

/// An unknown outcome, kept so that it can be asked again.
#[derive(Debug)]
struct Unknown {
    operation: Box<[u8]>,
    partition: u16,
    map: u16,
    opcode: Opcode,
    flags: u8,
}

/// The frames queued for one slot.
#[derive(Debug, Default)]
struct Slot {
    /// Oldest first; the last is the open one. Few: a loop tick that fills more than one frame is
    /// rare.
    frames: Vec<u32>,
    /// When what is queued here was first held back for fuller frames; 0: it was not.
    held_ms: u64,
}

/// See the module. `W` is what the caller wants back with a completion.
#[derive(Debug)]
pub struct Client<W> {
    stream: u64,
    partition_count: u32,
    maps: Vec<MapName>,
    window: Window<W>,
    unknown: BTreeMap<u64, Unknown>,
    unknown_bytes: usize,
    open: OpenNumbers,
    /// Open invokes of the whole stream, as if of one partition.
    open_invokes: OpenNumbers,
    buffers: Buffers,
    slots: Vec<Slot>,
    /// Slots whose `frames` is not empty, in the order in which they became so.
    busy: Vec<u16>,
    /// A frame waits to fill while it holds less than one in this many of the operations in
    /// flight to its slot; 0: never.
    frame_window: usize,
    /// Per partition; [`NO_SLOT`] for none.
    routes: Vec<u16>,
    /// Per partition: slots of the other complete copies, which answer stale reads.
    backups: Vec<Vec<u16>>,
    revision: u64,
    wants_routes: bool,
    /// Times at which waiting operations are due; entries of operations that have moved on are
    /// skipped.
    waiting: BinaryHeap<Reverse<(u64, u64)>>,
    waiting_count: usize,
    queued_count: usize,
    deadlines: Deadlines,
}

impl<W> Client<W> {
    /// A client of `stream` without routes.
    pub fn new(stream: u64, partition_count: u32) -> Result<Self> {
        if partition_count == 0 {
            return Err(CoreError::Empty { what: "the set of partitions" });
        }
        let limit = PARTITIONS_MAX as usize;
        check_size("the number of partitions", partition_count as usize, limit)?;
        Ok(Self {
            stream,
            partition_count,
            maps: Vec::new(),
            window: Window::new(),
            unknown: BTreeMap::new(),
            unknown_bytes: 0,
            open: OpenNumbers::new(partition_count),
            open_invokes: OpenNumbers::new(1),
            buffers: Buffers::new(),
            slots: Vec::new(),
            busy: Vec::new(),
            frame_window: 0,
            routes: vec![NO_SLOT; partition_count as usize],
            backups: vec![Vec::new(); partition_count as usize],
            revision: 0,
            wants_routes: false,
            waiting: BinaryHeap::new(),
            waiting_count: 0,
            queued_count: 0,
            deadlines: Deadlines::new(),
        })
    }

    /// The request stream.
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// The number of partitions.
    pub fn partition_count(&self) -> u32 {
        self.partition_count
    }

    /// Revision of the routes in use, 0 before the first.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Operations that wait: for the next [`Client::take_frames`], a time, or routes.
    pub fn queued(&self) -> usize {
        self.queued_count + self.waiting_count
    }

    /// Operations sent and not answered.
    pub fn in_flight(&self) -> usize {
        self.window.len() - self.queued()
    }

    /// Operations sent to `slot` and not answered.
    pub fn in_flight_at(&self, slot: u16) -> usize {
        self.buffers.in_flight(slot)
    }

    /// Operations queued, in flight, or unknown.
    pub fn open(&self) -> usize {
        self.window.len() + self.unknown.len()
    }

    /// Whether a refusal or a missing slot since the last [`Client::set_routes`] says that there
    /// may be newer routes.
    pub fn wants_routes(&self) -> bool {
        self.wants_routes
    }

    /// The index by which operations name a map (or `Unit.handler`, with schema 0). The same for
    /// the same arguments.
    pub fn map(&mut self, name: &str, schema: u32) -> Result<u16> {
        let known = self.maps.iter().position(|map| &*map.name == name && map.schema == schema);
        match known {
            Some(index) => Ok(index as u16),
            None => self.add_map(name, schema),
        }
    }

    /// As [`Client::map`], but always a new index: for a caller that keeps more about a map than
    /// core does.
    pub fn add_map(&mut self, name: &str, schema: u32) -> Result<u16> {
        check_name(name)?;
        check_size("the number of maps", self.maps.len() + 1, MAPS_MAX)?;
        self.maps.push(MapName { name: name.into(), schema, flags: 0 });
        Ok((self.maps.len() - 1) as u16)
    }

    /// As [`Client::add_map`]; what changes it is answered only when it is on the copies' disks.
    pub fn add_persisted_map(&mut self, name: &str, schema: u32) -> Result<u16> {
        let index = self.add_map(name, schema)?;
        self.maps[usize::from(index)].flags = FLAG_PERSISTED;
        Ok(index)
    }

    /// Refuses a request that [`Client::queue`] would refuse, when there is room for `more` like
    /// it.
    #[inline]
    pub fn check(&self, request: &Request<'_>, more: usize) -> Result<()> {
        if usize::from(request.map) >= self.maps.len() {
            return Err(CoreError::Invalid {
                what: "the map's index",
                value: u64::from(request.map),
            });
        }
        if let Some(partition) = request.partition
            && partition >= self.partition_count
        {
            return Err(CoreError::Invalid { what: "the partition", value: u64::from(partition) });
        }
        check_parts(request.opcode, request.flags, &request.parts)?;
        self.check_room(more)
    }

    /// Refuses `more` operations when too much is open.
    #[inline]
    fn check_room(&self, more: usize) -> Result<()> {
        if self.open() + more > OPEN_OPERATIONS_MAX {
            return Err(CoreError::Full {
                what: "open operations",
                limit: OPEN_OPERATIONS_MAX as u64,
            });
        }
        if self.buffers.bytes() + self.unknown_bytes > OPEN_BYTES_MAX {
            return Err(CoreError::Full {
                what: "bytes of open operations",
                limit: OPEN_BYTES_MAX as u64,
            });
        }
        Ok(())
    }

    /// Queues one operation; returns its number. `timeout_ms` counts from the next call that knows
    /// the time.
    ///
    /// Refused without a trace when a part is past its limit or too much is open. Cost: one hash of
    /// the routing key and one copy of key and value; nothing is allocated in the steady state.
    #[inline]
    pub fn queue(&mut self, request: &Request<'_>, waiter: W, timeout_ms: u64) -> Result<u64> {
        self.check(request, 1)?;
        Ok(self.queue_checked(request, waiter, timeout_ms))
    }

    /// As [`Client::queue`] for a request that [`Client::check`] has accepted.
    ///
    /// # Panics
    /// When the map or the partition is not one that `check` would accept.
    #[inline]
    pub fn queue_checked(&mut self, request: &Request<'_>, waiter: W, timeout_ms: u64) -> u64 {
        let parts = &request.parts;
        let partition = match request.partition {
            Some(partition) => partition,
            None => partition_of(parts.key, self.partition_count),
        } as u16;
        let number = self.window.next();
        let own = request.opcode.is_mutating() && parts.token.is_none();
        let mut lowest = self.open.lowest(partition, number);
        if request.opcode == Opcode::Invoke {
            lowest = self.open_invokes.lowest(0, lowest);
        }
        let name_bytes = self.maps[usize::from(request.map)].name.len();
        let length = parts.encoded_length();
        let slot = if request.flags & FLAG_STALE == 0 {
            self.routes[usize::from(partition)]
        } else {
            self.slot_of_a_copy(partition, number, 0)
        };
        let id = self.room(slot, number, length, name_bytes);
        let buffer = self.buffers.get_mut(id);
        let offset = buffer.operations.len();
        let of_map = self.maps[usize::from(request.map)].flags;
        let flags = request.all_flags() | if request.opcode.is_mutating() { of_map } else { 0 };
        let head = Head {
            opcode: request.opcode,
            flags,
            map_index: buffer.map_index(request.map, name_bytes),
            number_delta: number.wrapping_sub(buffer.base) as u32,
            open_span: u32::try_from(number - lowest).unwrap_or(u32::MAX),
            codec: request.codec,
        };
        let parts = Parts { expected: request.expected.unwrap_or(0), ..*parts };
        encode_operation(&mut buffer.operations, head, &parts);
        let length = buffer.operations.len() - offset;
        self.buffers.appended(id, length);
        if own {
            self.open.begin(partition, number);
            if request.opcode == Opcode::Invoke {
                self.open_invokes.begin(0, number);
            }
        }
        let waits = slot == NO_SLOT;
        self.window.push(Pending {
            waiter: Some(waiter),
            due_ms: 0,
            buffer: id,
            offset: offset as u32,
            length: length as u32,
            partition,
            map: request.map,
            opcode: request.opcode,
            flags,
            state: if waits { State::Waiting } else { State::Framed },
            reason: 0,
            attempts: 0,
            in_doubt: false,
        });
        self.deadlines.add(number, timeout_ms);
        if waits {
            self.waiting.push(Reverse((0, number)));
            self.waiting_count += 1;
            self.wants_routes = true;
        } else {
            self.queued_count += 1;
        }
        if let Some(left) = self.window.leave_behind() {
            self.deadlines.leave_behind(left);
        }
        number
    }

    /// The waiters of all operations in the window.
    pub fn waiters(&self) -> impl Iterator<Item = &W> {
        self.window.iter().filter_map(|pending| pending.waiter.as_ref())
    }

    /// Makes partition `p` go to `slots[p]`; a negative slot is none. Whatever waits for routes is
    /// due at once.
    pub fn set_routes(&mut self, revision: u64, slots: &[i32]) -> Result<()> {
        if slots.len() != self.partition_count as usize {
            return Err(CoreError::Invalid {
                what: "the number of routes",
                value: slots.len() as u64,
            });
        }
        if let Some(slot) = slots.iter().find(|&&slot| slot >= i32::from(NO_SLOT)) {
            return Err(CoreError::Invalid {
                what: "a slot",
                value: u64::from(slot.unsigned_abs()),
            });
        }
        for (route, &slot) in self.routes.iter_mut().zip(slots) {
            *route = u16::try_from(slot).unwrap_or(NO_SLOT);
        }
        self.revision = revision;
        self.wants_routes = false;
        self.reroute_queued();
        self.wake_waiting();
        Ok(())
    }

    /// Makes stale reads of partition `p` go to `backups[p]` as well; before [`Client::set_routes`].
    pub fn set_backups(&mut self, backups: &[Vec<u16>]) -> Result<()> {
        if backups.len() != self.partition_count as usize {
            let value = backups.len() as u64;
            return Err(CoreError::Invalid { what: "the number of routes", value });
        }
        if let Some(slot) = backups.iter().flatten().find(|&&slot| slot == NO_SLOT) {
            return Err(CoreError::Invalid { what: "a slot", value: u64::from(*slot) });
        }
        self.backups.clone_from_slice(backups);
        Ok(())
    }

    /// Asks again for an unknown outcome, with the same token. `Err` gives the waiter back: the
    /// number is not kept.
    pub fn resend(&mut self, number: u64, waiter: W, timeout_ms: u64) -> Result<(), W> {
        let Some(unknown) = self.unknown.remove(&number) else {
            return Err(waiter);
        };
        self.unknown_bytes -= unknown.operation.len();
        let length = unknown.operation.len();
        let name_bytes = self.maps[usize::from(unknown.map)].name.len();
        let id = self.buffers.waiting(number, length, name_bytes);
        let offset = self.buffers.copy(&unknown.operation, id, number, unknown.map, name_bytes);
        self.buffers.mark_repeat(id, offset);
        let pending = Pending {
            waiter: Some(waiter),
            due_ms: 0,
            buffer: id,
            offset,
            length: length as u32,
            partition: unknown.partition,
            map: unknown.map,
            opcode: unknown.opcode,
            flags: unknown.flags,
            state: State::Waiting,
            reason: 0,
            attempts: 0,
            in_doubt: true,
        };
        self.window.restore(number, pending);
        self.waiting.push(Reverse((0, number)));
        self.waiting_count += 1;
        self.deadlines.add_again(number, timeout_ms);
        Ok(())
    }

    /// Gives up on an unknown outcome: its number is no longer open. False when it was not kept.
    pub fn release(&mut self, number: u64) -> bool {
        let Some(unknown) = self.unknown.remove(&number) else {
            return false;
        };
        self.unknown_bytes -= unknown.operation.len();
        self.close_number(number, unknown.partition, unknown.opcode, unknown.flags);
        true
    }

    /// Nobody waits any more; gives the waiter back. `None` when the number is not open or nobody
    /// waited.
    ///
    /// What never left is dropped, and so is a read. A mutation that left runs on to its answer,
    /// and is released at its deadline.
    pub fn cancel(&mut self, number: u64) -> Option<W> {
        if self.release(number) {
            return None;
        }
        let pending = self.window.get_mut(number)?;
        let waiter = pending.waiter.take()?;
        let left = pending.in_doubt || self.is_in_flight(number);
        let mutating = self.window.get(number)?.opcode.is_mutating();
        if !left || !mutating {
            self.close(number);
        }
        Some(waiter)
    }

    /// Lets a frame wait, for [`HOLD_MS`] at most, until it holds this share of what is in flight.
    ///
    /// Many callers in flight would otherwise fall into step with their replies, one operation a
    /// frame; a frame costs far more than an operation. About `frames` are then in flight to a
    /// slot. 0: never wait.
    pub fn set_frame_window(&mut self, frames: usize) {
        self.frame_window = frames;
    }

    /// When to call [`Client::expire`] and [`Client::take_frames`] next; 0: now. `None`: nothing is
    /// open.
    pub fn next_event_ms(&self) -> Option<u64> {
        if self.queued_count > 0 {
            let held = |slot: &u16| match self.slots[usize::from(*slot)].held_ms {
                0 => 0,
                since => since + HOLD_MS,
            };
            return self.busy.iter().map(held).min().or(Some(0));
        }
        if self.window.len() == 0 {
            return None;
        }
        let due = self.waiting.peek().map(|entry| entry.0.0);
        match (due, self.deadlines.next_ms()) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        }
    }
}
