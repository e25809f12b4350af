//! Request frames: many operations of one request stream for one node.
//!
//! Map names travel once per frame, in a table; operations name them by index. The decoder checks
//! the whole frame before anything of it is executed, and then hands out views ([`Operation`]) that
//! borrow from it. The encoder is split in two ([`encode_operation`], [`seal_request`]) so that the
//! client can encode straight into the open buffer of a node and write the finished frame straight
//! into the bytes it sends; [`RequestBuilder`] puts both together.

mod encode;

use smallvec::SmallVec;

pub use self::encode::{
    Head, Parts, RequestBuilder, check_parts, encode_operation, seal_request, sealed_length,
};
pub(crate) use self::encode::{mark_repeat, peek, readdress};
use super::{Envelope, KIND_REQUEST, Reader, require};
use crate::error::{CoreError, Result};
use crate::limits::{
    FRAME_BYTES_HARD_MAX, FRAME_BYTES_MAX, FRAME_OPERATIONS_MAX, KEY_BYTES_MAX, NAME_BYTES_MAX,
    NESTING_MAX, PATH_BYTES_MAX, VALUE_BYTES_MAX, check_size,
};
pub use crate::record::Token;

/// Flag: `ttl_ms` follows the fixed part. Puts only.
pub const FLAG_TTL: u8 = 1;
/// Flag: the expected version follows. Puts and deletes only.
pub const FLAG_VERSION: u8 = 2;
/// Flag: an explicit token follows (and, on an invoke, the chain). Mutating operations only.
pub const FLAG_TOKEN: u8 = 4;
/// Flag: put only where there is nothing. Not together with [`FLAG_VERSION`].
pub const FLAG_IF_ABSENT: u8 = 8;
/// Flag: it was in flight before and may still arrive from there. An answer that changes nothing is
/// recorded too, so that the earlier attempt finds it instead of running.
pub const FLAG_REPEAT: u8 = 32;
/// Flag: answer only when the change is fsynced on every complete copy's own disk.
pub const FLAG_PERSISTED: u8 = 16;
/// Flag: any complete copy answers, from what it knows to be committed; the value is the age in ms that
/// is put up with (8 bytes). Gets only.
pub const FLAG_STALE: u8 = 64;
/// Flag: the primary answers once the copies have confirmed that it still is. Gets only, not together
/// with [`FLAG_STALE`].
pub const FLAG_CONFIRMED: u8 = 128;
/// Values that are bytes as the user gave them.
pub const CODEC_BYTES: u8 = 0;
/// Values that are msgpack.
pub const CODEC_MSGPACK: u8 = 1;

/// Bytes of an operation before its optional parts.
pub const OPERATION_BYTES: usize = 20;
/// Longest entry of an invoke's chain: `Unit`, a zero byte, a routing key.
pub const CHAIN_ENTRY_BYTES_MAX: usize = NAME_BYTES_MAX + 1 + KEY_BYTES_MAX;
/// Longest scan cursor: a hash and a key.
pub const CURSOR_BYTES_MAX: usize = 8 + KEY_BYTES_MAX;
/// Stream and base number, and the count of the map table.
const PREFIX_BYTES: usize = 8 + 8 + 2;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// Read an entry.
    Get = 1,
    /// Write an entry, under a condition if one is given.
    Put = 2,
    /// Remove an entry, under a condition if one is given.
    Delete = 3,
    /// Add to an integer.
    Incr = 4,
    /// Run a unit's handler.
    Invoke = 5,
    /// Count a partition's entries of one map.
    Size = 6,
    /// Read a page of a partition's entries of one map.
    Scan = 7,
    /// Ask whether there is an entry.
    Contains = 8,
}

impl Opcode {
    /// The opcode of a wire byte.
    #[inline]
    pub fn decode(byte: u8) -> Result<Self> {
        Ok(match byte {
            1 => Self::Get,
            2 => Self::Put,
            3 => Self::Delete,
            4 => Self::Incr,
            5 => Self::Invoke,
            6 => Self::Size,
            7 => Self::Scan,
            8 => Self::Contains,
            _ => {
                return Err(CoreError::Invalid { what: "the opcode", value: u64::from(byte) });
            }
        })
    }

    /// Whether it can change anything: only these have a token, and only these can end as Unknown.
    #[inline]
    pub fn is_mutating(self) -> bool {
        matches!(self, Self::Put | Self::Delete | Self::Incr | Self::Invoke)
    }

    /// Whether the key is a partition number instead of a key.
    #[inline]
    pub fn is_partition_wide(self) -> bool {
        matches!(self, Self::Size | Self::Scan)
    }

    /// The flags that mean something on it.
    #[inline]
    fn flags(self) -> u8 {
        match self {
            Self::Put => {
                FLAG_TTL | FLAG_VERSION | FLAG_TOKEN | FLAG_IF_ABSENT | FLAG_REPEAT | FLAG_PERSISTED
            }
            Self::Delete => FLAG_VERSION | FLAG_TOKEN | FLAG_REPEAT | FLAG_PERSISTED,
            Self::Incr | Self::Invoke => FLAG_TOKEN | FLAG_REPEAT | FLAG_PERSISTED,
            Self::Get => FLAG_STALE | FLAG_CONFIRMED,
            Self::Size | Self::Scan | Self::Contains => 0,
        }
    }
}

/// One operation, borrowed from its frame or from the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation<'a> {
    /// What to do.
    pub opcode: Opcode,
    /// `FLAG_*`.
    pub flags: u8,
    /// The map; for an invoke `Unit.handler`.
    pub map: &'a str,
    /// Fingerprint of the map's schema, 0 when it has none.
    pub schema: u32,
    /// The operation's number in the frame's stream: what the reply names.
    pub number: u64,
    /// The token: the stream's own, or the explicit one when [`FLAG_TOKEN`] is set.
    pub token: Token<'a>,
    /// The key; for an invoke the routing key, for size and scan see [`Operation::partition`].
    pub key: &'a [u8],
    /// How the value is encoded.
    pub codec: u8,
    /// The value, the arguments, the delta, or the scan's limit and cursor.
    pub value: &'a [u8],
    /// Time to live in ms with [`FLAG_TTL`], else 0.
    pub ttl_ms: u64,
    /// The version that must be there with [`FLAG_VERSION`], else 0.
    pub expected: u64,
    /// The turns above an invoke.
    pub chain: Chain<'a>,
}

impl<'a> Operation<'a> {
    /// The partition asked for, of a size or scan.
    #[inline]
    pub fn partition(&self) -> Option<u32> {
        if !self.opcode.is_partition_wide() {
            return None;
        }
        self.key.try_into().ok().map(u32::from_le_bytes)
    }

    /// The amount to add, of an incr.
    #[inline]
    pub fn delta(&self) -> Option<i64> {
        if self.opcode != Opcode::Incr {
            return None;
        }
        self.value.try_into().ok().map(i64::from_le_bytes)
    }

    /// The most entries wanted and the cursor (empty: from the start), of a scan.
    #[inline]
    pub fn scan(&self) -> Option<(u32, &'a [u8])> {
        if self.opcode != Opcode::Scan {
            return None;
        }
        let (limit, cursor) = self.value.split_first_chunk()?;
        Some((u32::from_le_bytes(*limit), cursor))
    }

    /// Whether an earlier attempt may still arrive.
    #[inline]
    pub fn repeats(&self) -> bool {
        self.flags & FLAG_REPEAT != 0
    }

    /// Whether [`FLAG_VERSION`] is set.
    #[inline]
    pub fn expected_version(&self) -> Option<u64> {
        (self.flags & FLAG_VERSION != 0).then_some(self.expected)
    }
}

/// The turns above an invoke, outermost first: each `Unit`, a zero byte, the routing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chain<'a> {
    bytes: &'a [u8],
}

impl<'a> Chain<'a> {
    /// Its encoding: per entry a length (u16) and the entry.
    #[inline]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// How many turns there are.
    pub fn len(&self) -> usize {
        self.entries().count()
    }

    /// Whether there are none: a client's own call.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The turns.
    pub fn entries(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut bytes = self.bytes;
        std::iter::from_fn(move || {
            let (length, rest) = bytes.split_first_chunk()?;
            let (entry, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
            bytes = rest;
            Some(entry)
        })
    }
}

/// Encodes the turns above an invoke, for [`Chain`].
pub fn encode_chain<E: AsRef<[u8]>>(entries: &[E]) -> Result<Vec<u8>> {
    check_size("the chain's number of turns", entries.len(), NESTING_MAX)?;
    let mut bytes = Vec::new();
    for entry in entries {
        let entry = entry.as_ref();
        check_size("a chain entry's length in bytes", entry.len(), CHAIN_ENTRY_BYTES_MAX)?;
        bytes.extend_from_slice(&(entry.len() as u16).to_le_bytes());
        bytes.extend_from_slice(entry);
    }
    Ok(bytes)
}

impl<'a> Chain<'a> {
    /// Reads what [`encode_chain`] wrote.
    pub fn decode(bytes: &'a [u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let mut count = 0;
        while reader.remaining() > 0 {
            take_chain_entry(&mut reader)?;
            count += 1;
            check_size("the chain's number of turns", count, NESTING_MAX)?;
        }
        Ok(Self { bytes })
    }
}

fn take_chain_entry(reader: &mut Reader<'_>) -> Result<()> {
    let length = usize::from(reader.u16("a chain entry's length")?);
    check_size("a chain entry's length in bytes", length, CHAIN_ENTRY_BYTES_MAX)?;
    reader.take("a chain entry", length)?;
    Ok(())
}

/// The map table: name and schema.
type Maps<'a> = SmallVec<[(&'a str, u32); 8]>;

/// A request frame, checked from end to end.
#[derive(Debug, Clone)]
pub struct RequestFrame<'a> {
    /// The request stream that the operations belong to.
    pub stream: u64,
    /// What operations' numbers are counted from.
    pub base_number: u64,
    maps: Maps<'a>,
    operations: &'a [u8],
    count: u32,
}

impl<'a> RequestFrame<'a> {
    /// Checks the whole of `frame`: envelope, map table, and every field of every operation.
    ///
    /// Allocates nothing unless there are more than 8 maps. Cost: two passes over the bytes.
    pub fn decode(frame: &'a [u8]) -> Result<Self> {
        let envelope = Envelope::decode(frame, FRAME_BYTES_HARD_MAX)?;
        require(envelope.kind == KIND_REQUEST, "the frame's kind", u64::from(envelope.kind))?;
        check_count(envelope.count, frame.len())?;
        let mut reader = Reader::new(envelope.body);
        let stream = reader.u64("the stream")?;
        let base_number = reader.u64("the base number")?;
        let map_count = usize::from(reader.u16("the number of maps")?);
        check_size("the number of maps", map_count, FRAME_OPERATIONS_MAX)?;
        let mut maps = Maps::new();
        for _ in 0..map_count {
            let name = reader.name("a map name")?;
            maps.push((name, reader.u32("a map's schema")?));
        }
        let operations = reader.rest();
        let this = Self { stream, base_number, maps, operations, count: envelope.count };
        let mut reader = Reader::new(operations);
        for _ in 0..this.count {
            this.read(&mut reader)?;
        }
        reader.end("the request frame")?;
        Ok(this)
    }

    /// How many operations it holds, at least 1.
    #[inline]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Never: a frame holds at least one operation.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The operations in the order in which they were queued.
    #[inline]
    pub fn operations(&self) -> Operations<'_, 'a> {
        Operations { frame: self, reader: Reader::new(self.operations), left: self.count }
    }

    /// One operation, with every check that does not need the grid's state.
    #[inline]
    fn read(&self, reader: &mut Reader<'a>) -> Result<Operation<'a>> {
        let head = reader.array::<OPERATION_BYTES>("an operation")?;
        let opcode = Opcode::decode(head[0])?;
        let flags = head[1];
        require(flags & !opcode.flags() == 0, "an operation's flags", u64::from(flags))?;
        let both = FLAG_VERSION | FLAG_IF_ABSENT;
        require(flags & both != both, "an operation's flags", u64::from(flags))?;
        let reads = FLAG_STALE | FLAG_CONFIRMED;
        require(flags & reads != reads, "an operation's flags", u64::from(flags))?;
        let map_index = u16::from_le_bytes([head[2], head[3]]);
        let Some(&(map, schema)) = self.maps.get(usize::from(map_index)) else {
            return Err(CoreError::Invalid { what: "a map index", value: u64::from(map_index) });
        };
        let delta = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        let open_span = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        let number = self
            .base_number
            .checked_add(u64::from(delta))
            .ok_or(CoreError::Invalid { what: "the base number", value: self.base_number })?;
        require(number > u64::from(open_span), "an open span", u64::from(open_span))?;
        let key_length = usize::from(u16::from_le_bytes([head[12], head[13]]));
        let codec = head[14];
        require(codec <= CODEC_MSGPACK, "a codec", u64::from(codec))?;
        require(head[15] == 0, "an operation's reserved byte", u64::from(head[15]))?;
        let value_length = u32::from_le_bytes([head[16], head[17], head[18], head[19]]) as usize;
        let ttl_ms = if flags & FLAG_TTL != 0 { reader.u64("a ttl")? } else { 0 };
        let expected =
            if flags & FLAG_VERSION != 0 { reader.u64("an expected version")? } else { 0 };
        let mut token =
            Token { stream: self.stream, number, path: &[], lowest: number - u64::from(open_span) };
        let mut chain = Chain::default();
        if flags & FLAG_TOKEN != 0 {
            token = read_token(reader)?;
            if opcode == Opcode::Invoke {
                chain = read_chain(reader)?;
            }
        }
        check_size("the key's length in bytes", key_length, KEY_BYTES_MAX)?;
        check_size("the value's length in bytes", value_length, VALUE_BYTES_MAX)?;
        let key = reader.take("a key", key_length)?;
        let value = reader.take("a value", value_length)?;
        check_shape(opcode, flags, key, value)?;
        Ok(Operation {
            opcode,
            flags,
            map,
            schema,
            number,
            token,
            key,
            codec,
            value,
            ttl_ms,
            expected,
            chain,
        })
    }
}

/// Refuses a count of nothing, too many, and more than one in a frame that only a lone large value
/// may have.
pub(super) fn check_count(count: u32, frame_bytes: usize) -> Result<()> {
    require(count > 0, "the frame's count", 0)?;
    check_size("the frame's number of operations", count as usize, FRAME_OPERATIONS_MAX)?;
    if count > 1 {
        check_size("the frame's length in bytes", frame_bytes, FRAME_BYTES_MAX)?;
    }
    Ok(())
}

fn read_token<'a>(reader: &mut Reader<'a>) -> Result<Token<'a>> {
    let stream = reader.u64("a token's stream")?;
    let number = reader.u64("a token's number")?;
    let lowest = reader.u64("a token's lowest number")?;
    let path_length = usize::from(reader.u8("a token's path length")?);
    check_size("a token's path length in bytes", path_length, PATH_BYTES_MAX)?;
    require(path_length % 2 == 0, "a token's path length", path_length as u64)?;
    require(number > 0 && lowest <= number, "a token's lowest number", lowest)?;
    let path = reader.take("a token's path", path_length)?;
    Ok(Token { stream, number, path, lowest })
}

fn read_chain<'a>(reader: &mut Reader<'a>) -> Result<Chain<'a>> {
    let count = usize::from(reader.u8("the chain's number of turns")?);
    check_size("the chain's number of turns", count, NESTING_MAX)?;
    let mut ahead = *reader;
    for _ in 0..count {
        take_chain_entry(&mut ahead)?;
    }
    let bytes = reader.take("the chain", reader.remaining() - ahead.remaining())?;
    Ok(Chain { bytes })
}

/// Refuses a key or value whose length cannot be right for the opcode.
#[inline]
fn check_shape(opcode: Opcode, flags: u8, key: &[u8], value: &[u8]) -> Result<()> {
    if opcode.is_partition_wide() {
        require(key.len() == 4, "a partition number's length", key.len() as u64)?;
    } else if key.is_empty() {
        return Err(CoreError::Empty { what: "the key" });
    }
    let fits = match opcode {
        Opcode::Get if flags & FLAG_STALE != 0 => value.len() == 8,
        Opcode::Get | Opcode::Delete | Opcode::Size | Opcode::Contains => value.is_empty(),
        Opcode::Incr => value.len() == 8,
        Opcode::Scan => (4..=4 + CURSOR_BYTES_MAX).contains(&value.len()),
        Opcode::Put | Opcode::Invoke => true,
    };
    require(fits, "a value's length for its opcode", value.len() as u64)
}

/// The operations of a [`RequestFrame`].
#[derive(Debug, Clone)]
pub struct Operations<'f, 'a> {
    frame: &'f RequestFrame<'a>,
    reader: Reader<'a>,
    left: u32,
}

impl<'a> Iterator for Operations<'_, 'a> {
    type Item = Operation<'a>;

    #[inline]
    fn next(&mut self) -> Option<Operation<'a>> {
        self.left = self.left.checked_sub(1)?;
        // The frame was read to its end when it was decoded; the same bytes read the same again.
        self.frame.read(&mut self.reader).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for Operations<'_, '_> {}
