//! What moves operations: frames out, replies in, refusals, lost connections, deadlines.

use std::cmp::Reverse;

use super::buffers::{Buffer, MapName, NO_SLOT, Role};
use super::window::{Pending, State};
use super::{
    BACKOFF_FIRST_MS, BACKOFF_MAX_MS, Client, Completion, HELD_OPERATIONS_MAX, HINT_MAX_MS,
    HOLD_MS, TIMEOUT, Unknown,
};
use crate::error::{CoreError, Result};
use crate::frame::reply::{FLAG_RECORDED, status};
use crate::frame::request::{FLAG_STALE, FLAG_TOKEN};
use crate::frame::{Opcode, Reply, ReplyFrame};

/// A frame to send, still to be written into the sender's own bytes.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Where to.
    pub slot: u16,
    /// Length of the frame in bytes.
    pub length: usize,
    stream: u64,
    buffer: &'a Buffer,
    names: &'a [MapName],
}

impl Outgoing<'_> {
    /// Writes the frame into `out`, which has [`Outgoing::length`] bytes.
    pub fn write(&self, out: &mut [u8]) {
        self.buffer.write_frame(out, self.stream, self.names);
    }

    /// The frame as bytes of its own.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut frame = vec![0; self.length];
        self.write(&mut frame);
        frame
    }
}

impl<W> Client<W> {
    /// Hands out every queued frame and every retry that is due, in sending order per slot.
    pub fn take_frames(&mut self, now_ms: u64, mut emit: impl FnMut(Outgoing<'_>)) {
        self.deadlines.start(now_ms);
        if self.waiting_count > 0 {
            self.queue_due(now_ms);
        }
        let mut held = 0;
        for at in 0..self.busy.len() {
            let slot = self.busy[at];
            if self.holds(slot, now_ms) {
                self.busy[held] = slot;
                held += 1;
                continue;
            }
            for at in 0..self.slots[usize::from(slot)].frames.len() {
                let id = self.slots[usize::from(slot)].frames[at];
                if self.buffers.get(id).live < self.buffers.get(id).count {
                    self.sweep(id);
                }
                let buffer = self.buffers.get_mut(id);
                if buffer.count == 0 {
                    self.buffers.release(id);
                    continue;
                }
                buffer.role = Role::Sent;
                self.queued_count -= buffer.count as usize;
                let buffer = self.buffers.get(id);
                emit(Outgoing {
                    slot,
                    length: buffer.frame_length(&self.maps),
                    stream: self.stream,
                    buffer,
                    names: &self.maps,
                });
            }
            self.slots[usize::from(slot)].frames.clear();
            self.slots[usize::from(slot)].held_ms = 0;
        }
        self.busy.truncate(held);
        debug_assert!(held > 0 || self.queued_count == 0, "everything queued has left");
    }

    /// Whether what is queued for `slot` waits to fill: small beside what is in flight, and young.
    fn holds(&mut self, slot: u16, now_ms: u64) -> bool {
        let queue = &self.slots[usize::from(slot)];
        let &[open] = queue.frames.as_slice() else { return false };
        let count = self.buffers.get(open).count as usize;
        if self.frame_window == 0
            || count >= HELD_OPERATIONS_MAX
            || count * self.frame_window >= self.buffers.in_flight(slot)
        {
            return false;
        }
        let since = if queue.held_ms == 0 { now_ms } else { queue.held_ms };
        self.slots[usize::from(slot)].held_ms = since;
        now_ms < since + HOLD_MS
    }

    /// Takes a reply frame that came over the connection of `slot`.
    ///
    /// Replies for numbers that are not in flight there are ignored: duplicates, and answers that
    /// came too late. On an error nothing was taken.
    pub fn on_frame(
        &mut self,
        slot: u16,
        frame: &[u8],
        now_ms: u64,
        mut done: impl FnMut(Completion<'_, W>),
    ) -> Result<()> {
        let frame = ReplyFrame::decode(frame)?;
        if frame.stream != self.stream {
            return Err(CoreError::Invalid { what: "the reply's stream", value: frame.stream });
        }
        for reply in frame.replies() {
            let Some(pending) = self.window.get(reply.number) else { continue };
            if pending.state != State::Framed {
                continue;
            }
            let buffer = self.buffers.get(pending.buffer);
            if buffer.role != Role::Sent || buffer.slot != slot {
                continue;
            }
            if status::is_retryable(reply.status) {
                self.refuse(&reply, now_ms);
                continue;
            }
            if pending.in_doubt && !is_final(&reply, pending.opcode) {
                // Another attempt may still run and be answered otherwise: only what is recorded counts.
                self.refuse(&Reply { status: status::UNKNOWN, ..reply }, now_ms);
                continue;
            }
            let Some(closed) = self.window.remove(reply.number) else { continue };
            self.buffers.leave(closed.buffer);
            self.close_number(reply.number, closed.partition, closed.opcode, closed.flags);
            if let Some(waiter) = closed.waiter {
                done(Completion {
                    waiter,
                    status: reply.status,
                    value: reply.value,
                    version: reply.version,
                    codec: reply.codec,
                    copies: reply.copies,
                    number: reply.number,
                    opcode: closed.opcode,
                    flags: closed.flags,
                    map: closed.map,
                    partition: closed.partition,
                });
            }
        }
        self.trim();
        Ok(())
    }

    /// The connection of `slot` is gone: what was in flight there is queued again, after a
    /// back-off.
    ///
    /// `sent` false: those frames surely never left, so nobody can have applied them. What is
    /// queued and not yet taken is not touched.
    pub fn on_disconnect(&mut self, slot: u16, now_ms: u64, sent: bool) {
        self.wants_routes = true;
        for id in self.buffers.sent_to(slot) {
            let entries: Vec<_> = self.buffers.get(id).entries().collect();
            for (number, offset, _) in entries {
                let Some(pending) = self.window.get_mut(number) else { continue };
                if pending.buffer != id || pending.offset != offset {
                    continue;
                }
                pending.in_doubt |= sent && pending.opcode.is_mutating();
                let due_ms = now_ms.saturating_add(back_off_ms(pending));
                self.put_back(number, due_ms);
            }
        }
    }

    /// Completes what is past its deadline: UNKNOWN when it may have been applied, else
    /// [`TIMEOUT`].
    pub fn expire(&mut self, now_ms: u64, mut done: impl FnMut(Completion<'_, W>)) {
        self.deadlines.start(now_ms);
        while let Some(run) = self.deadlines.pop_due(now_ms) {
            // Those that were left behind have runs of their own.
            let alone = run.first == run.last;
            let first = if alone { run.first } else { run.first.max(self.window.base()) };
            for number in first..=run.last {
                self.expire_one(number, &mut done);
            }
        }
        self.trim();
    }

    fn expire_one(&mut self, number: u64, done: &mut impl FnMut(Completion<'_, W>)) {
        let Some(pending) = self.window.get(number) else { return };
        let mutating = pending.opcode.is_mutating();
        let in_doubt = mutating && (pending.in_doubt || self.is_in_flight(number));
        let reason = pending.reason;
        let closed = if in_doubt && pending.waiter.is_some() {
            self.keep_unknown(number)
        } else {
            self.close(number)
        };
        let Some(closed) = closed else { return };
        let Some(waiter) = closed.waiter else { return };
        done(Completion {
            waiter,
            status: if in_doubt { status::UNKNOWN } else { TIMEOUT },
            value: &[],
            version: u64::from(reason),
            codec: 0,
            copies: 0,
            number,
            opcode: closed.opcode,
            flags: closed.flags,
            map: closed.map,
            partition: closed.partition,
        });
    }

    /// Takes an operation out of the window without closing its number.
    fn keep_unknown(&mut self, number: u64) -> Option<Pending<W>> {
        self.count_out(number)?;
        let pending = self.window.remove(number)?;
        let range = pending.offset as usize..(pending.offset + pending.length) as usize;
        let operation: Box<[u8]> = self.buffers.get(pending.buffer).operations[range].into();
        self.buffers.leave(pending.buffer);
        self.unknown_bytes += operation.len();
        let unknown = Unknown {
            operation,
            partition: pending.partition,
            map: pending.map,
            opcode: pending.opcode,
            flags: pending.flags,
        };
        self.unknown.insert(number, unknown);
        Some(pending)
    }

    /// Closes a number for good.
    #[inline]
    pub(super) fn close(&mut self, number: u64) -> Option<Pending<W>> {
        self.count_out(number)?;
        let pending = self.window.remove(number)?;
        self.buffers.leave(pending.buffer);
        self.close_number(number, pending.partition, pending.opcode, pending.flags);
        Some(pending)
    }

    /// The counts without `number`, which is about to leave the window.
    #[inline]
    fn count_out(&mut self, number: u64) -> Option<()> {
        let pending = self.window.get(number)?;
        if pending.state == State::Waiting {
            self.waiting_count -= 1;
        } else if self.buffers.get(pending.buffer).role == Role::Open {
            self.queued_count -= 1;
        }
        Some(())
    }

    #[inline]
    pub(super) fn close_number(&mut self, number: u64, partition: u16, opcode: Opcode, flags: u8) {
        if opcode.is_mutating() && flags & FLAG_TOKEN == 0 {
            let (window, unknown) = (&self.window, &self.unknown);
            let is_open = |one| window.get(one).is_some() || unknown.contains_key(&one);
            self.open.end(partition, number, is_open);
            if opcode == Opcode::Invoke {
                self.open_invokes.end(0, number, is_open);
            }
        }
    }

    pub(super) fn is_in_flight(&self, number: u64) -> bool {
        self.window.get(number).is_some_and(|pending| {
            pending.state == State::Framed && self.buffers.get(pending.buffer).role == Role::Sent
        })
    }

    /// A buffer in which the operation `number` of this size has room: the slot's open one, or one
    /// that waits.
    #[inline]
    pub(super) fn room(&mut self, slot: u16, number: u64, length: usize, name_bytes: usize) -> u32 {
        if slot == NO_SLOT {
            return self.buffers.waiting(number, length, name_bytes);
        }
        let at = usize::from(slot);
        if at >= self.slots.len() {
            self.slots.resize_with(at + 1, Default::default);
        }
        if let Some(&id) = self.slots[at].frames.last()
            && self.buffers.get(id).has_room(number, length, name_bytes)
        {
            return id;
        }
        if self.slots[at].frames.is_empty() {
            self.busy.push(slot);
        }
        let id = self.buffers.open(slot, number);
        self.slots[at].frames.push(id);
        id
    }

    /// The copy that a stale read is asked of: the backups in turn, and after them the primary.
    pub(super) fn slot_of_a_copy(&self, partition: u16, number: u64, attempts: u8) -> u16 {
        let (backups, primary) =
            (&self.backups[usize::from(partition)], self.routes[usize::from(partition)]);
        let count = backups.len() + usize::from(primary != NO_SLOT);
        let Some(turn) = usize::from(attempts).checked_rem(count) else { return NO_SLOT };
        if turn < backups.len() {
            backups[(number as usize).wrapping_add(turn) % backups.len()]
        } else {
            primary
        }
    }

    /// Whether the routes lead an operation to `slot`.
    fn leads_to(&self, pending: &Pending<W>, slot: u16) -> bool {
        let partition = usize::from(pending.partition);
        self.routes[partition] == slot
            || (pending.flags & FLAG_STALE != 0 && self.backups[partition].contains(&slot))
    }

    /// The node behind `slot` is silent: stale reads that it owes are asked of other copies.
    pub fn turn_away(&mut self, slot: u16, now_ms: u64) {
        for id in self.buffers.sent_to(slot) {
            let entries: Vec<_> = self.buffers.get(id).entries().collect();
            for (number, offset, _) in entries {
                let Some(pending) = self.window.get_mut(number) else { continue };
                if pending.buffer == id
                    && pending.offset == offset
                    && pending.flags & FLAG_STALE != 0
                {
                    back_off_ms(pending);
                    self.put_back(number, now_ms);
                }
            }
        }
    }

    /// A reply that says to try again.
    fn refuse(&mut self, reply: &Reply<'_>, now_ms: u64) {
        let Some(pending) = self.window.get_mut(reply.number) else { return };
        pending.reason = reply.status;
        let wait_ms = back_off_ms(pending);
        let due_ms = now_ms.saturating_add(match reply.status {
            status::BACKPRESSURE => hint_ms(reply.value).unwrap_or(wait_ms),
            _ => wait_ms,
        });
        match reply.status {
            status::UNKNOWN => pending.in_doubt |= pending.opcode.is_mutating(),
            status::NOT_PRIMARY | status::UNAVAILABLE => self.wants_routes = true,
            _ => {}
        }
        self.put_back(reply.number, due_ms);
    }

    /// Makes an operation that is in a frame wait until `due_ms`.
    fn put_back(&mut self, number: u64, due_ms: u64) {
        let Some(pending) = self.window.get(number) else { return };
        if self.buffers.get(pending.buffer).role == Role::Open {
            self.queued_count -= 1;
        }
        let name_bytes = self.maps[usize::from(pending.map)].name.len();
        let id = self.buffers.waiting(number, pending.length as usize, name_bytes);
        self.relocate(number, id, name_bytes);
        if let Some(pending) = self.window.get_mut(number) {
            if pending.in_doubt {
                self.buffers.mark_repeat(id, pending.offset);
            }
            pending.state = State::Waiting;
            pending.due_ms = due_ms;
        }
        self.waiting_count += 1;
        self.waiting.push(Reverse((due_ms, number)));
    }

    fn relocate(&mut self, number: u64, to: u32, name_bytes: usize) {
        let Some(pending) = self.window.get_mut(number) else { return };
        let from = (pending.buffer, pending.offset, pending.length);
        pending.offset = self.buffers.relocate(from, to, number, pending.map, name_bytes);
        pending.buffer = to;
    }

    /// Moves the waiting operations that are due into the frames of their slots.
    fn queue_due(&mut self, now_ms: u64) {
        let mut again = Vec::new();
        while let Some(&Reverse((due_ms, number))) = self.waiting.peek() {
            if due_ms > now_ms {
                break;
            }
            self.waiting.pop();
            let Some(pending) = self.window.get_mut(number) else { continue };
            if pending.state != State::Waiting || pending.due_ms != due_ms {
                continue;
            }
            let (partition, attempts) = (pending.partition, pending.attempts);
            let slot = if pending.flags & FLAG_STALE == 0 {
                self.routes[usize::from(partition)]
            } else {
                self.slot_of_a_copy(partition, number, attempts)
            };
            let Some(pending) = self.window.get_mut(number) else { continue };
            if slot == NO_SLOT {
                self.wants_routes = true;
                pending.due_ms = now_ms.saturating_add(back_off_ms(pending));
                again.push(Reverse((pending.due_ms, number)));
                continue;
            }
            pending.state = State::Framed;
            let (length, map) = (pending.length as usize, usize::from(pending.map));
            let name_bytes = self.maps[map].name.len();
            let id = self.room(slot, number, length, name_bytes);
            self.relocate(number, id, name_bytes);
            self.waiting_count -= 1;
            self.queued_count += 1;
        }
        self.waiting.extend(again);
    }

    /// After new routes: all that does not wait for a node's log to drain is due.
    pub(super) fn wake_waiting(&mut self) {
        let entries = std::mem::take(&mut self.waiting).into_vec();
        for Reverse((due_ms, number)) in entries {
            let Some(pending) = self.window.get_mut(number) else { continue };
            if pending.state != State::Waiting || pending.due_ms != due_ms {
                continue;
            }
            if pending.reason != status::BACKPRESSURE {
                pending.due_ms = 0;
            }
            self.waiting.push(Reverse((pending.due_ms, number)));
        }
    }

    /// After new routes: what is queued for a slot that is no longer its partition's leaves that
    /// frame.
    pub(super) fn reroute_queued(&mut self) {
        let frames: Vec<_> =
            self.slots.iter().flat_map(|slot| slot.frames.iter().copied()).collect();
        for id in frames {
            let slot = self.buffers.get(id).slot;
            let entries: Vec<_> = self.buffers.get(id).entries().collect();
            for (number, offset, _) in entries {
                let Some(pending) = self.window.get(number) else { continue };
                let here = pending.buffer == id && pending.offset == offset;
                if here && !self.leads_to(pending, slot) {
                    self.put_back(number, 0);
                }
            }
        }
    }

    /// Takes out of an unsent frame what left it.
    fn sweep(&mut self, id: u32) {
        let window = &self.window;
        let is_here = |number, offset| {
            window.get(number).is_some_and(|one| one.buffer == id && one.offset == offset)
        };
        for (number, offset) in self.buffers.sweep(id, is_here) {
            if let Some(pending) = self.window.get_mut(number) {
                pending.offset = offset;
            }
        }
    }

    #[inline]
    fn trim(&mut self) {
        let window = &self.window;
        self.deadlines.trim(window.base(), |number| window.is_behind(number));
    }
}

/// Whether no other attempt of a request in doubt can come to another answer than this one.
fn is_final(reply: &Reply<'_>, opcode: Opcode) -> bool {
    use status::{CONFLICT, HANDLER_ERROR, MEMORY_FULL, MISS, OK, WRONG_TYPE};
    let depends =
        matches!(reply.status, MISS | CONFLICT | WRONG_TYPE | HANDLER_ERROR | MEMORY_FULL)
            || (reply.status == OK && opcode == Opcode::Invoke);
    !depends || reply.flags & FLAG_RECORDED != 0
}

/// The next wait of an operation that is put back, which it counts.
fn back_off_ms<W>(pending: &mut Pending<W>) -> u64 {
    let wait_ms = BACKOFF_FIRST_MS << pending.attempts.min(6);
    // It goes on to count: a stale read takes the copies in turn.
    pending.attempts = pending.attempts.checked_add(1).unwrap_or(u8::MAX / 2);
    wait_ms.min(BACKOFF_MAX_MS)
}

/// The wait that a BACKPRESSURE reply asks for.
fn hint_ms(value: &[u8]) -> Option<u64> {
    let hint = u32::from_le_bytes(value.try_into().ok()?);
    Some(u64::from(hint).clamp(BACKOFF_FIRST_MS, HINT_MAX_MS))
}
