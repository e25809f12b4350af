//! Frames: the packed batches that travel between clients and nodes, and between nodes.
//!
//! Every frame is one envelope (magic, version, kind, length, count, checksum) around a body of its
//! kind. Decoding borrows from the frame, checks every length against what is there and against
//! [`limits`](crate::limits) before it is used, and allocates nothing that the bytes could choose
//! the size of. A decoded frame is valid from end to end: its iterators cannot fail. The layout,
//! with test vectors, is `proto/FRAME.md`.
//!
//! Callers: [`client`](crate::client) and the replica; `rust/py` for debugging views.

pub mod peer;
pub mod reply;
pub mod request;
pub mod scan;

pub use reply::{Reply, ReplyBuilder, ReplyFrame};
pub use request::{Opcode, Operation, RequestBuilder, RequestFrame, Token};

use crate::error::{CoreError, Result};
use crate::limits::check_size;

/// First two bytes of every frame.
pub const MAGIC: [u8; 2] = *b"SG";
/// Version of the layout.
pub const VERSION: u8 = 1;
/// Bytes before the body.
pub const ENVELOPE_BYTES: usize = 16;
/// Kind of a frame of operations, client to node.
pub const KIND_REQUEST: u8 = 1;
/// Kind of a frame of replies, node to client.
pub const KIND_REPLY: u8 = 2;

/// Half the reach of a `number_delta`: a base this far below the first number of a frame lets later
/// ones lie below it as well, so nothing has to be known in advance about the order of numbers.
pub(crate) const BASE_REACH: u64 = 1 << 31;

/// The base for a frame whose first number is `number`.
#[inline]
pub(crate) fn base_for(number: u64) -> u64 {
    number.saturating_sub(BASE_REACH)
}

/// The distance of `number` from `base`, or `None` when it does not fit into the frame.
#[inline]
pub(crate) fn delta_from(base: u64, number: u64) -> Option<u32> {
    u32::try_from(number.checked_sub(base)?).ok()
}

/// A frame whose envelope has been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// What the body holds; unknown kinds are the caller's to refuse.
    pub kind: u8,
    /// Number of items in the body.
    pub count: u32,
    /// Everything behind the envelope.
    pub body: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Checks size, magic, version, length and checksum of `frame`, which may have at most `limit`
    /// bytes in all.
    ///
    /// Cost: one pass over the bytes for the checksum.
    pub fn decode(frame: &'a [u8], limit: usize) -> Result<Self> {
        check_size("the frame's length in bytes", frame.len(), limit)?;
        let mut reader = Reader::new(frame);
        let head = reader.array::<ENVELOPE_BYTES>("the frame's envelope")?;
        if head[..2] != MAGIC {
            let value = u64::from(u16::from_le_bytes([head[0], head[1]]));
            return Err(CoreError::Invalid { what: "the frame's magic", value });
        }
        if head[2] != VERSION {
            return Err(CoreError::Invalid {
                what: "the frame's version",
                value: u64::from(head[2]),
            });
        }
        let body = reader.rest();
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if length > body.len() {
            return Err(CoreError::Truncated {
                what: "the frame's body",
                needed: length,
                have: body.len(),
            });
        }
        if length < body.len() {
            return Err(CoreError::Trailing { what: "the frame", count: body.len() - length });
        }
        let stored = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
        let computed = checksum(&head[..12], body);
        if stored != computed {
            return Err(CoreError::Checksum { what: "frame", stored, computed });
        }
        let count = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        Ok(Self { kind: head[3], count, body })
    }
}

/// Writes the envelope into the first [`ENVELOPE_BYTES`] of `frame`, whose body is complete.
///
/// # Panics
/// When `frame` is shorter than an envelope: the caller reserved it.
pub fn seal(frame: &mut [u8], kind: u8, count: u32) {
    let (head, body) = frame.split_at_mut(ENVELOPE_BYTES);
    head[..2].copy_from_slice(&MAGIC);
    head[2] = VERSION;
    head[3] = kind;
    head[4..8].copy_from_slice(&(body.len() as u32).to_le_bytes());
    head[8..12].copy_from_slice(&count.to_le_bytes());
    let sum = checksum(&head[..12], body);
    head[12..16].copy_from_slice(&sum.to_le_bytes());
}

/// CRC-32 (ISO-HDLC, as in zlib) of the envelope's first 12 bytes and then the body.
fn checksum(head: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(body);
    hasher.finalize()
}

/// A cursor over bytes that come from outside: every step is checked, none allocates.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Bytes that are left.
    #[inline]
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// Everything that is left.
    #[inline]
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    /// The next `count` bytes; `what` names them in the error.
    #[inline]
    pub fn take(&mut self, what: &'static str, count: usize) -> Result<&'a [u8]> {
        match self.bytes.split_at_checked(count) {
            Some((taken, rest)) => {
                self.bytes = rest;
                Ok(taken)
            }
            None => Err(CoreError::Truncated { what, needed: count, have: self.bytes.len() }),
        }
    }

    /// The next `N` bytes as an array.
    #[inline]
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<&'a [u8; N]> {
        match self.bytes.split_first_chunk::<N>() {
            Some((taken, rest)) => {
                self.bytes = rest;
                Ok(taken)
            }
            None => Err(CoreError::Truncated { what, needed: N, have: self.bytes.len() }),
        }
    }

    /// The next byte.
    #[inline]
    pub fn u8(&mut self, what: &'static str) -> Result<u8> {
        self.array::<1>(what).map(|bytes| bytes[0])
    }

    /// The next two bytes, little endian.
    #[inline]
    pub fn u16(&mut self, what: &'static str) -> Result<u16> {
        self.array(what).map(|bytes| u16::from_le_bytes(*bytes))
    }

    /// The next four bytes, little endian.
    #[inline]
    pub fn u32(&mut self, what: &'static str) -> Result<u32> {
        self.array(what).map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// The next eight bytes, little endian.
    #[inline]
    pub fn u64(&mut self, what: &'static str) -> Result<u64> {
        self.array(what).map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// A name: one byte of length (at least 1) and UTF-8 text.
    #[inline]
    pub fn name(&mut self, what: &'static str) -> Result<&'a str> {
        let length = self.u8(what)?;
        if length == 0 {
            return Err(CoreError::Empty { what });
        }
        let bytes = self.take(what, usize::from(length))?;
        std::str::from_utf8(bytes).map_err(|_| CoreError::NotText { what })
    }

    /// Refuses bytes that are left over.
    #[inline]
    pub fn end(&self, what: &'static str) -> Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        Err(CoreError::Trailing { what, count: self.bytes.len() })
    }
}

/// Refuses a flag, tag or code that means nothing.
#[inline]
pub(crate) fn require(holds: bool, what: &'static str, value: u64) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(CoreError::Invalid { what, value })
}

#[cfg(test)]
mod tests;
