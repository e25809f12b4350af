//! The encoded operations: the open frame of each slot, the sent frames that a retry may need, and
//! what waits.
//!
//! An operation is encoded once. Its bytes stay in the buffer of the frame it left with until every
//! operation of that frame is answered; one that is refused moves to a buffer of its like, so that
//! a few slow ones do not hold many frames. Buffers are used again, so that nothing is allocated in
//! the steady state.

use crate::frame::request::{mark_repeat, peek, readdress, seal_request, sealed_length};
use crate::frame::{base_for, delta_from};
use crate::limits::{FRAME_BYTES_MAX, FRAME_OPERATIONS_MAX};

/// The slot of a buffer whose operations wait.
pub(super) const NO_SLOT: u16 = u16::MAX;
/// Free buffers that keep their memory.
const SPARE_BUFFERS_MAX: usize = 64;
/// Bytes around a frame's operations, rounded up: envelope, stream, base number, number of maps.
const FRAME_OVERHEAD_BYTES: usize = 40;

/// A map, or a handler: what a frame's table says of it.
#[derive(Debug)]
pub(super) struct MapName {
    pub name: Box<str>,
    pub schema: u32,
    /// Flags of every operation on it that changes something.
    pub flags: u8,
}

/// What a buffer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The frame that leaves its slot next, or one of the next.
    Open,
    /// A frame that left.
    Sent,
    /// Operations that wait for a time or for routes.
    Waiting,
}

/// The operations of one frame.
#[derive(Debug)]
pub(super) struct Buffer {
    pub slot: u16,
    pub role: Role,
    pub base: u64,
    /// Operations encoded.
    pub count: u32,
    /// Those of them that are open and here.
    pub live: u32,
    pub maps: Vec<u16>,
    map_bytes: usize,
    pub operations: Vec<u8>,
}

impl Buffer {
    /// Whether an operation of this number, size and map name still belongs into the same frame.
    #[inline]
    pub fn has_room(&self, number: u64, length: usize, name_bytes: usize) -> bool {
        let grown = self.operations.len() + self.map_bytes + length + name_bytes;
        (self.count as usize) < FRAME_OPERATIONS_MAX
            && grown + FRAME_OVERHEAD_BYTES <= FRAME_BYTES_MAX
            && delta_from(self.base, number).is_some()
    }

    /// The index of `map` in this frame's table.
    #[inline]
    pub fn map_index(&mut self, map: u16, name_bytes: usize) -> u16 {
        if let Some(index) = self.maps.iter().position(|&one| one == map) {
            return index as u16;
        }
        self.maps.push(map);
        self.map_bytes += name_bytes + 5;
        (self.maps.len() - 1) as u16
    }

    /// Length of the finished frame in bytes.
    pub fn frame_length(&self, names: &[MapName]) -> usize {
        let table = self.maps.iter().map(|&map| &*names[usize::from(map)].name);
        sealed_length(table, self.operations.len())
    }

    /// Writes the finished frame into `out`, which has [`Buffer::frame_length`] bytes.
    pub fn write_frame(&self, out: &mut [u8], stream: u64, names: &[MapName]) {
        let table = self.maps.iter().map(|&map| {
            let map = &names[usize::from(map)];
            (&*map.name, map.schema)
        });
        seal_request(out, stream, self.base, table, &self.operations, self.count);
    }

    /// The operations here: number, where its bytes begin, how many they are.
    pub fn entries(&self) -> impl Iterator<Item = (u64, u32, u32)> + '_ {
        let mut offset = 0;
        std::iter::from_fn(move || {
            let (_, delta, length) = peek(self.operations.get(offset..)?)?;
            let entry = (self.base + u64::from(delta), offset as u32, length as u32);
            offset += length;
            Some(entry)
        })
    }
}

/// All buffers, by index.
#[derive(Debug)]
pub(super) struct Buffers {
    all: Vec<Buffer>,
    free: Vec<u32>,
    /// Where the next operation that waits goes.
    waiting: Option<u32>,
    /// Encoded bytes held in all of them.
    bytes: usize,
}

impl Buffers {
    pub fn new() -> Self {
        Self { all: Vec::new(), free: Vec::new(), waiting: None, bytes: 0 }
    }

    /// Encoded bytes held.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    #[inline]
    pub fn get(&self, id: u32) -> &Buffer {
        &self.all[id as usize]
    }

    #[inline]
    pub fn get_mut(&mut self, id: u32) -> &mut Buffer {
        &mut self.all[id as usize]
    }

    /// Operations sent to `slot` and not answered.
    pub fn in_flight(&self, slot: u16) -> usize {
        let sent = self.all.iter().filter(|one| one.role == Role::Sent && one.slot == slot);
        sent.map(|one| one.live as usize).sum()
    }

    /// Buffers that were sent to `slot` and still hold open operations.
    pub fn sent_to(&self, slot: u16) -> Vec<u32> {
        let all = self.all.iter().enumerate();
        all.filter(|(_, one)| one.role == Role::Sent && one.slot == slot && one.live > 0)
            .map(|(id, _)| id as u32)
            .collect()
    }

    /// An empty buffer whose first operation will be `number`.
    pub fn open(&mut self, slot: u16, number: u64) -> u32 {
        let id = self.free.pop().unwrap_or_else(|| {
            self.all.push(Buffer {
                slot,
                role: Role::Open,
                base: 0,
                count: 0,
                live: 0,
                maps: Vec::new(),
                map_bytes: 0,
                operations: Vec::new(),
            });
            (self.all.len() - 1) as u32
        });
        let buffer = self.get_mut(id);
        buffer.slot = slot;
        buffer.base = base_for(number);
        id
    }

    /// One operation of `length` bytes more was encoded into `id`.
    #[inline]
    pub fn appended(&mut self, id: u32, length: usize) {
        let buffer = &mut self.all[id as usize];
        buffer.count += 1;
        buffer.live += 1;
        self.bytes += length;
    }

    /// One open operation fewer is in `id`. The last one frees a sent buffer, and one of waiting
    /// operations.
    #[inline]
    pub fn leave(&mut self, id: u32) {
        let buffer = &mut self.all[id as usize];
        buffer.live -= 1;
        if buffer.live == 0 && buffer.role != Role::Open {
            self.release(id);
        }
    }

    /// Empties `id` for its next use.
    pub fn release(&mut self, id: u32) {
        let spare = self.free.len() < SPARE_BUFFERS_MAX;
        if self.waiting == Some(id) {
            self.waiting = None;
        }
        let buffer = &mut self.all[id as usize];
        self.bytes -= buffer.operations.len();
        buffer.operations.clear();
        if !spare || buffer.operations.capacity() > 2 * FRAME_BYTES_MAX {
            buffer.operations = Vec::new();
        }
        buffer.maps.clear();
        buffer.map_bytes = 0;
        buffer.count = 0;
        buffer.live = 0;
        buffer.role = Role::Open;
        buffer.slot = NO_SLOT;
        self.free.push(id);
    }

    /// A buffer for an operation that waits.
    pub fn waiting(&mut self, number: u64, length: usize, name_bytes: usize) -> u32 {
        if let Some(id) = self.waiting
            && self.get(id).has_room(number, length, name_bytes)
        {
            return id;
        }
        let id = self.open(NO_SLOT, number);
        self.get_mut(id).role = Role::Waiting;
        self.waiting = Some(id);
        id
    }

    /// Copies an encoded operation into `to`, which has room; returns where it begins there.
    pub fn copy(&mut self, bytes: &[u8], to: u32, number: u64, map: u16, name_bytes: usize) -> u32 {
        let buffer = &mut self.all[to as usize];
        let offset = buffer.operations.len();
        let index = buffer.map_index(map, name_bytes);
        let delta = number.wrapping_sub(buffer.base) as u32;
        buffer.operations.extend_from_slice(bytes);
        readdress(&mut buffer.operations[offset..], index, delta);
        self.appended(to, bytes.len());
        offset as u32
    }

    /// Says of an operation that an earlier attempt may still arrive.
    pub fn mark_repeat(&mut self, id: u32, offset: u32) {
        mark_repeat(&mut self.all[id as usize].operations[offset as usize..]);
    }

    /// As [`Buffers::copy`], from one buffer into another; the operation leaves the first.
    pub fn relocate(
        &mut self,
        from: (u32, u32, u32),
        to: u32,
        number: u64,
        map: u16,
        name_bytes: usize,
    ) -> u32 {
        let (id, offset, length) = from;
        let mut bytes = std::mem::take(&mut self.all[id as usize].operations);
        let range = offset as usize..(offset + length) as usize;
        debug_assert_ne!(id, to, "an operation moves to another buffer");
        let moved = self.copy(&bytes[range], to, number, map, name_bytes);
        std::mem::swap(&mut bytes, &mut self.all[id as usize].operations);
        self.leave(id);
        moved
    }

    /// Drops from an unsent buffer what `is_here` denies; returns where each of the others begins
    /// now.
    pub fn sweep(&mut self, id: u32, is_here: impl Fn(u64, u32) -> bool) -> Vec<(u64, u32)> {
        let buffer = &mut self.all[id as usize];
        let mut kept = Vec::with_capacity(buffer.operations.len());
        let mut moved = Vec::with_capacity(buffer.live as usize);
        for (number, offset, length) in buffer.entries() {
            if is_here(number, offset) {
                moved.push((number, kept.len() as u32));
                let range = offset as usize..(offset + length) as usize;
                kept.extend_from_slice(&buffer.operations[range]);
            }
        }
        debug_assert_eq!(moved.len(), buffer.live as usize, "what is left is what is open here");
        buffer.count = moved.len() as u32;
        self.bytes -= buffer.operations.len() - kept.len();
        buffer.operations = kept;
        moved
    }
}
