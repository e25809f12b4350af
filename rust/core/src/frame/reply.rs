//! Reply frames: many replies of one request stream, in any order.

use super::request::{CODEC_MSGPACK, check_count};
use super::{ENVELOPE_BYTES, Envelope, KIND_REPLY, Reader, base_for, delta_from, require, seal};
use crate::error::Result;
use crate::limits::{FRAME_BYTES_HARD_MAX, FRAME_BYTES_MAX, FRAME_OPERATIONS_MAX, check_size};

/// What became of an operation. `proto/FRAME.md` has them in full.
pub mod status {
    /// Done.
    pub const OK: u8 = 0;
    /// There was nothing to get or delete.
    pub const MISS: u8 = 1;
    /// The condition did not hold; `version` is the one that is there.
    pub const CONFLICT: u8 = 2;
    /// Not the primary; surely not applied; `version` is the revision of the table known there.
    pub const NOT_PRIMARY: u8 = 3;
    /// No primary can serve yet; surely not applied.
    pub const UNAVAILABLE: u8 = 4;
    /// Every copy of the partition is gone.
    pub const LOST: u8 = 5;
    /// Fewer copies than `min_in_sync`; surely not applied.
    pub const NOT_ENOUGH_COPIES: u8 = 6;
    /// The log is full, or there is no room for the answers of so many reads; surely not applied; the
    /// value is a u32: retry after so many ms.
    pub const BACKPRESSURE: u8 = 7;
    /// The memory quota is used up.
    pub const MEMORY_FULL: u8 = 8;
    /// May have been applied: ask again with the same token.
    pub const UNKNOWN: u8 = 9;
    /// Below the stream's lowest open number: its result is no longer kept.
    pub const STALE_REQUEST: u8 = 10;
    /// The token was used before with other arguments.
    pub const TOKEN_REUSED: u8 = 11;
    /// The map is used with another schema.
    pub const SCHEMA_MISMATCH: u8 = 12;
    /// Incr on what is no integer, or past 64 bits.
    pub const WRONG_TYPE: u8 = 13;
    /// The handler raised; the value is a msgpack map of type, message, traceback.
    pub const HANDLER_ERROR: u8 = 14;
    /// No such unit or handler here.
    pub const NO_SUCH_HANDLER: u8 = 15;
    /// The routing key is already in the chain.
    pub const CALL_CYCLE: u8 = 16;
    /// The request makes no sense; the value says why.
    pub const INVALID: u8 = 17;
    /// Past a limit.
    pub const TOO_LARGE: u8 = 18;
    /// A handler touched a key of another routing key.
    pub const WRONG_ROUTING_KEY: u8 = 19;
    /// The caller's role does not allow it; surely not applied.
    pub const PERMISSION: u8 = 20;
    /// A persisted write where a copy has no disk; surely not applied.
    pub const DURABILITY_UNAVAILABLE: u8 = 21;
    /// A stale read that this copy could only answer with something older than was asked for;
    /// `version` is that age in ms.
    pub const TOO_STALE: u8 = 22;
    /// The highest status.
    pub const MAX: u8 = TOO_STALE;

    /// Whether asking again, with the same token, may give another answer by itself.
    #[inline]
    pub fn is_retryable(status: u8) -> bool {
        matches!(
            status,
            NOT_PRIMARY | UNAVAILABLE | NOT_ENOUGH_COPIES | BACKPRESSURE | UNKNOWN | TOO_STALE
        )
    }
}

/// Flag: every attempt of the request gets this answer, since a record holds it.
pub const FLAG_RECORDED: u8 = 2;

/// Flag of a reply: a copy answered by itself; the value begins with its age in ms (8 bytes).
pub const FLAG_STALE: u8 = 4;
/// Flag of a reply: the change is fsynced on every complete copy's own disk.
pub const FLAG_PERSISTED: u8 = 1;
/// Bytes of a reply before its value.
pub const REPLY_BYTES: usize = 20;
/// Envelope, stream and base number.
const PREFIX_BYTES: usize = ENVELOPE_BYTES + 16;
/// Largest value of a reply: a scan's page may be a little larger than a value.
pub const REPLY_VALUE_BYTES_MAX: usize = FRAME_BYTES_HARD_MAX - PREFIX_BYTES - REPLY_BYTES;

/// One reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reply<'a> {
    /// The operation's number in the frame's stream.
    pub number: u64,
    /// [`status`].
    pub status: u8,
    /// [`FLAG_RECORDED`], [`FLAG_PERSISTED`], both, [`FLAG_STALE`] or 0.
    pub flags: u8,
    /// How the value is encoded.
    pub codec: u8,
    /// Copies that hold the change, 0 where that means nothing.
    pub copies: u8,
    /// The entry's version, or what the status says.
    pub version: u64,
    /// The value, or what the status says.
    pub value: &'a [u8],
}

/// A reply frame, checked from end to end.
#[derive(Debug, Clone, Copy)]
pub struct ReplyFrame<'a> {
    /// The request stream that is answered.
    pub stream: u64,
    /// What replies' numbers are counted from.
    pub base_number: u64,
    replies: &'a [u8],
    count: u32,
}

impl<'a> ReplyFrame<'a> {
    /// Checks the whole of `frame`. Allocates nothing. Cost: two passes over the bytes.
    pub fn decode(frame: &'a [u8]) -> Result<Self> {
        let envelope = Envelope::decode(frame, FRAME_BYTES_HARD_MAX)?;
        require(envelope.kind == KIND_REPLY, "the frame's kind", u64::from(envelope.kind))?;
        check_count(envelope.count, frame.len())?;
        let mut reader = Reader::new(envelope.body);
        let stream = reader.u64("the stream")?;
        let base_number = reader.u64("the base number")?;
        // No delta can take a number past the end, so reading them again cannot fail.
        let reach = base_number.checked_add(u64::from(u32::MAX)).is_some();
        require(reach, "the base number", base_number)?;
        let this = Self { stream, base_number, replies: reader.rest(), count: envelope.count };
        let mut reader = Reader::new(this.replies);
        for _ in 0..this.count {
            this.read(&mut reader)?;
        }
        reader.end("the reply frame")?;
        Ok(this)
    }

    /// How many replies it holds, at least 1.
    #[inline]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Never: a frame holds at least one reply.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The replies in the order of the frame.
    #[inline]
    pub fn replies(&self) -> Replies<'a> {
        Replies { frame: *self, reader: Reader::new(self.replies), left: self.count }
    }

    #[inline]
    fn read(&self, reader: &mut Reader<'a>) -> Result<Reply<'a>> {
        let head = reader.array::<REPLY_BYTES>("a reply")?;
        let delta = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        require(head[4] <= status::MAX, "a status", u64::from(head[4]))?;
        require(
            head[5] & !(FLAG_RECORDED | FLAG_PERSISTED | FLAG_STALE) == 0,
            "a reply's flags",
            u64::from(head[5]),
        )?;
        require(head[6] <= CODEC_MSGPACK, "a codec", u64::from(head[6]))?;
        let length = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        check_size("the value's length in bytes", length, REPLY_VALUE_BYTES_MAX)?;
        let mut version = [0; 8];
        version.copy_from_slice(&head[12..20]);
        Ok(Reply {
            number: self.base_number + u64::from(delta),
            status: head[4],
            flags: head[5],
            codec: head[6],
            copies: head[7],
            version: u64::from_le_bytes(version),
            value: reader.take("a value", length)?,
        })
    }
}

/// The replies of a [`ReplyFrame`].
#[derive(Debug, Clone)]
pub struct Replies<'a> {
    frame: ReplyFrame<'a>,
    reader: Reader<'a>,
    left: u32,
}

impl<'a> Iterator for Replies<'a> {
    type Item = Reply<'a>;

    #[inline]
    fn next(&mut self) -> Option<Reply<'a>> {
        self.left = self.left.checked_sub(1)?;
        // The frame was read to its end when it was decoded; the same bytes read the same again.
        self.frame.read(&mut self.reader).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for Replies<'_> {}

/// Collects the replies for one request stream and hands out finished frames.
///
/// Replies come one at a time, whenever they are known and in any order. Cost of a push: one copy
/// of the value.
#[derive(Debug)]
pub struct ReplyBuilder {
    stream: u64,
    base_number: u64,
    frame: Vec<u8>,
    count: u32,
    /// Length of the last frame, which the next one is likely to have too.
    typical_bytes: usize,
}

impl ReplyBuilder {
    /// A builder of frames for `stream`. Allocates nothing until the first reply.
    pub fn new(stream: u64) -> Self {
        Self { stream, base_number: 0, frame: Vec::new(), count: 0, typical_bytes: 256 }
    }

    /// The stream that is answered.
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// Replies that wait for [`ReplyBuilder::finish`].
    #[inline]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether no reply waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the frame as it is now, 0 when no reply waits.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.frame.len()
    }

    /// Appends a reply; returns the finished frame of those before it when it no longer fits with
    /// them.
    ///
    /// A value past [`REPLY_VALUE_BYTES_MAX`] fits into no frame: the reply becomes
    /// [`status::TOO_LARGE`] without it.
    #[inline]
    pub fn push(&mut self, reply: &Reply<'_>) -> Option<Vec<u8>> {
        let mut reply = *reply;
        if reply.value.len() > REPLY_VALUE_BYTES_MAX {
            reply = Reply { status: status::TOO_LARGE, codec: 0, value: &[], ..reply };
        }
        let full = self.count > 0
            && (self.count as usize == FRAME_OPERATIONS_MAX
                || self.frame.len() + REPLY_BYTES + reply.value.len() > FRAME_BYTES_MAX
                || delta_from(self.base_number, reply.number).is_none());
        let finished = if full { self.finish() } else { None };
        if self.count == 0 {
            self.begin(reply.number, reply.value.len());
        }
        let delta = reply.number.wrapping_sub(self.base_number) as u32;
        let mut head = [0; REPLY_BYTES];
        head[0..4].copy_from_slice(&delta.to_le_bytes());
        head[4] = reply.status;
        head[5] = reply.flags;
        head[6] = reply.codec;
        head[7] = reply.copies;
        head[8..12].copy_from_slice(&(reply.value.len() as u32).to_le_bytes());
        head[12..20].copy_from_slice(&reply.version.to_le_bytes());
        self.frame.extend_from_slice(&head);
        self.frame.extend_from_slice(reply.value);
        self.count += 1;
        finished
    }

    /// The frame of what was appended, or `None` when that is nothing. The builder is empty again.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        if self.count == 0 {
            return None;
        }
        let mut frame = std::mem::take(&mut self.frame);
        seal(&mut frame, KIND_REPLY, self.count);
        self.typical_bytes = frame.len().min(FRAME_BYTES_MAX);
        self.count = 0;
        Some(frame)
    }

    fn begin(&mut self, number: u64, value_bytes: usize) {
        self.base_number = base_for(number).min(u64::MAX - u64::from(u32::MAX));
        self.frame.reserve((PREFIX_BYTES + REPLY_BYTES + value_bytes).max(self.typical_bytes));
        self.frame.extend_from_slice(&[0; ENVELOPE_BYTES]);
        self.frame.extend_from_slice(&self.stream.to_le_bytes());
        self.frame.extend_from_slice(&self.base_number.to_le_bytes());
    }
}
