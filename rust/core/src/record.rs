//! The log record: what one request or turn changes, made into bytes once.
//!
//! The primary encodes a record when it appends it; the same bytes lie in its log, travel to the
//! backups and lie in theirs. A record carries its birth position for ever, the token of the
//! request it belongs to, the reply a repeat of that request is answered with, and post-images of
//! every change. Decoding checks the checksum and every length and limit first, so a [`RecordRef`]
//! is known to be whole. Callers: `replica`, pumps through the Python face.
//!
//! Layout, little endian (the checksum covers everything behind it):
//!
//! ```text
//! crc32 u32 | kind u8 | flags u8 | change count u16 | position u64 | arguments hash u64
//! kind 2 (forget):  issuer u64 | floor u32, and nothing more
//! flag 1 (token):  stream u64 | number u64 | lowest u64 | path length u8 | path
//! flag 2 (reply):  status u8 | flags u8 | codec u8 | version u64 | value length u32 | value
//! each change:     tag u8 (1 put, 2 delete, 3 expired) | map length u8 | map | key length u16 | key
//!   a put goes on: codec u8 | schema u32 | expires at ms u64 | value length u32 | value
//! ```

use std::sync::Arc;

use crate::bytes::Reader;
use crate::error::{CoreError, Result};
use crate::limits::{
    EPOCH_MAX, PATH_BYTES_MAX, RECORD_BYTES_MAX, RECORD_OPERATIONS_MAX, SEQUENCE_MAX, check_key,
    check_name, check_size, check_value,
};

const KIND_CHANGES: u8 = 1;
const KIND_FORGET: u8 = 2;
const FLAG_TOKEN: u8 = 1;
const FLAG_REPLY: u8 = 2;
const TAG_PUT: u8 = 1;
const TAG_DELETE: u8 = 2;
const TAG_EXPIRED: u8 = 3;
const HEADER_BYTES: usize = 24;

/// A record's bytes, shared by the log and every link they travel on.
pub type RecordBytes = Arc<[u8]>;

/// Where a record was born; ordered by epoch, then sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    /// The primary's epoch, at most [`EPOCH_MAX`].
    pub epoch: u32,
    /// Grows by one per record of the partition and never restarts, at most [`SEQUENCE_MAX`].
    pub sequence: u64,
}

impl Position {
    /// The position before every record.
    pub const ZERO: Self = Self { epoch: 0, sequence: 0 };

    /// A position from its two numbers.
    pub const fn new(epoch: u32, sequence: u64) -> Self {
        Self { epoch, sequence }
    }

    /// Both numbers in one word, in the same order: an entry's version.
    #[inline]
    pub const fn pack(self) -> u64 {
        debug_assert!(self.epoch <= EPOCH_MAX && self.sequence <= SEQUENCE_MAX);
        ((self.epoch as u64) << 40) | (self.sequence & SEQUENCE_MAX)
    }

    /// The position of a version.
    #[inline]
    pub const fn unpack(version: u64) -> Self {
        Self { epoch: (version >> 40) as u32, sequence: version & SEQUENCE_MAX }
    }
}

/// What makes a request the same request when it comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    /// The request stream.
    pub stream: u64,
    /// The request's number within its stream.
    pub number: u64,
    /// Call numbers of the nested calls that lead here; empty for a client's own request.
    pub path: &'a [u8],
    /// The lowest number still open: results below it are dropped.
    pub lowest: u64,
}

/// What a repeat of the request is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply<'a> {
    /// Status of the reply frame.
    pub status: u8,
    /// Flags of the reply frame.
    pub flags: u8,
    /// Codec of the value.
    pub codec: u8,
    /// Version of the entry the reply speaks of.
    pub version: u64,
    /// The answer itself.
    pub value: &'a [u8],
}

/// The result of an operation on one key; never the operation itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// The key has this value now.
    Put {
        /// The map.
        map: &'a str,
        /// Fingerprint of the map's schema; 0 is untyped.
        schema: u32,
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
        /// 0 bytes, 1 msgpack.
        codec: u8,
        /// Wall-clock milliseconds; 0 is never.
        expires_at_ms: u64,
    },
    /// The key has no value now.
    Delete {
        /// The map.
        map: &'a str,
        /// The key.
        key: &'a [u8],
        /// Its time was over, nobody deleted it.
        expired: bool,
    },
}

impl<'a> Change<'a> {
    /// The map that is changed.
    pub fn map(&self) -> &'a str {
        match self {
            Self::Put { map, .. } | Self::Delete { map, .. } => map,
        }
    }

    /// The key that is changed.
    pub fn key(&self) -> &'a [u8] {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }
}

/// What kind of record it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// Changes of one request or turn, possibly none (only a result to remember).
    Changes,
    /// Request streams of this incarnation with counters up to the floor are forgotten.
    Forget {
        /// The incarnation that issued the streams.
        issuer: u64,
        /// Streams with a counter up to this one are gone.
        floor: u32,
    },
}

/// Encodes a record of changes.
///
/// Refuses what is over a limit (key, value, name, path, number of changes, size of the record).
/// Cost: one pass, one allocation.
pub fn encode(
    position: Position,
    token: Option<&Token<'_>>,
    arguments_hash: u64,
    reply: Option<&Reply<'_>>,
    changes: &[Change<'_>],
) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    encode_into(&mut out, position, token, arguments_hash, reply, changes)?;
    Ok(out)
}

/// As [`encode`], into a buffer that is cleared first and can be used again.
pub fn encode_into(
    out: &mut Vec<u8>,
    position: Position,
    token: Option<&Token<'_>>,
    arguments_hash: u64,
    reply: Option<&Reply<'_>>,
    changes: &[Change<'_>],
) -> Result<()> {
    check_size("the record's number of changes", changes.len(), RECORD_OPERATIONS_MAX)?;
    let size = encoded_len(token, reply, changes);
    check_size("the record's length in bytes", size, RECORD_BYTES_MAX)?;
    out.clear();
    out.reserve(size);
    let mut flags = 0;
    if token.is_some() {
        flags |= FLAG_TOKEN;
    }
    if reply.is_some() {
        flags |= FLAG_REPLY;
    }
    put_header(out, KIND_CHANGES, flags, changes.len() as u16, position, arguments_hash);
    if let Some(token) = token {
        check_size("the token's path length in bytes", token.path.len(), PATH_BYTES_MAX)?;
        out.extend_from_slice(&token.stream.to_le_bytes());
        out.extend_from_slice(&token.number.to_le_bytes());
        out.extend_from_slice(&token.lowest.to_le_bytes());
        out.push(token.path.len() as u8);
        out.extend_from_slice(token.path);
    }
    if let Some(reply) = reply {
        check_value(reply.value)?;
        out.extend_from_slice(&[reply.status, reply.flags, reply.codec]);
        out.extend_from_slice(&reply.version.to_le_bytes());
        put_long(out, reply.value);
    }
    for change in changes {
        put_change(out, change)?;
    }
    debug_assert_eq!(out.len(), size);
    put_checksum(out);
    Ok(())
}

/// Encodes the record that forgets the request streams of `issuer` with counters up to `floor`.
pub fn encode_forget(position: Position, issuer: u64, floor: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + 12);
    put_header(&mut out, KIND_FORGET, 0, 0, position, 0);
    out.extend_from_slice(&issuer.to_le_bytes());
    out.extend_from_slice(&floor.to_le_bytes());
    put_checksum(&mut out);
    out
}

/// The size in bytes that [`encode`] would make, for admission.
pub fn encoded_len(
    token: Option<&Token<'_>>,
    reply: Option<&Reply<'_>>,
    changes: &[Change<'_>],
) -> usize {
    let token = token.map_or(0, |token| 25 + token.path.len());
    let reply = reply.map_or(0, |reply| 15 + reply.value.len());
    HEADER_BYTES + token + reply + changes.iter().map(change_len).sum::<usize>()
}

/// The size in bytes of one change within a record.
pub fn change_len(change: &Change<'_>) -> usize {
    match change {
        Change::Put { map, key, value, .. } => 4 + map.len() + key.len() + 17 + value.len(),
        Change::Delete { map, key, .. } => 4 + map.len() + key.len(),
    }
}

fn put_header(
    out: &mut Vec<u8>,
    kind: u8,
    flags: u8,
    count: u16,
    position: Position,
    arguments_hash: u64,
) {
    out.extend_from_slice(&[0, 0, 0, 0, kind, flags]);
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&position.pack().to_le_bytes());
    out.extend_from_slice(&arguments_hash.to_le_bytes());
}

fn put_change(out: &mut Vec<u8>, change: &Change<'_>) -> Result<()> {
    let tag = match change {
        Change::Put { .. } => TAG_PUT,
        Change::Delete { expired: false, .. } => TAG_DELETE,
        Change::Delete { expired: true, .. } => TAG_EXPIRED,
    };
    let (map, key) = (change.map(), change.key());
    check_name(map)?;
    check_key(key)?;
    out.extend_from_slice(&[tag, map.len() as u8]);
    out.extend_from_slice(map.as_bytes());
    out.extend_from_slice(&(key.len() as u16).to_le_bytes());
    out.extend_from_slice(key);
    if let Change::Put { schema, value, codec, expires_at_ms, .. } = change {
        check_value(value)?;
        out.push(*codec);
        out.extend_from_slice(&schema.to_le_bytes());
        out.extend_from_slice(&expires_at_ms.to_le_bytes());
        put_long(out, value);
    }
    Ok(())
}

fn put_long(out: &mut Vec<u8>, value: &[u8]) {
    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    out.extend_from_slice(value);
}

fn put_checksum(out: &mut [u8]) {
    let checksum = crc32fast::hash(&out[4..]);
    out[..4].copy_from_slice(&checksum.to_le_bytes());
}

/// A decoded view of a record's bytes: everything was checked, nothing was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordRef<'a> {
    position: Position,
    kind: RecordKind,
    arguments_hash: u64,
    token: Option<Token<'a>>,
    reply: Option<Reply<'a>>,
    change_count: usize,
    changes: &'a [u8],
}

/// Decodes and checks a record: checksum, every length, every limit, every tag, nothing behind its
/// end.
///
/// Cost: one pass over the bytes for the checksum, one over the lengths; no allocation.
pub fn decode(bytes: &[u8]) -> Result<RecordRef<'_>> {
    check_size("the record's length in bytes", bytes.len(), RECORD_BYTES_MAX)?;
    let mut reader = Reader::new(bytes);
    let stored = reader.u32("the record's checksum")?;
    let computed = crc32fast::hash(reader.rest());
    if stored != computed {
        return Err(CoreError::Checksum { what: "record", stored, computed });
    }
    decode_body(reader)
}

/// As [`decode`] without the checksum, for bytes that this process has encoded or decoded before.
pub fn decode_checked(bytes: &[u8]) -> Result<RecordRef<'_>> {
    let mut reader = Reader::new(bytes);
    reader.u32("the record's checksum")?;
    decode_body(reader)
}

fn decode_body(mut reader: Reader<'_>) -> Result<RecordRef<'_>> {
    let kind = reader.u8("the record's kind")?;
    let flags = reader.u8("the record's flags")?;
    let change_count = usize::from(reader.u16("the record's number of changes")?);
    let position = Position::unpack(reader.u64("the record's position")?);
    let arguments_hash = reader.u64("the record's arguments hash")?;
    check_size("the record's number of changes", change_count, RECORD_OPERATIONS_MAX)?;
    if flags & !(FLAG_TOKEN | FLAG_REPLY) != 0 {
        return Err(CoreError::Invalid { what: "the record's flags", value: u64::from(flags) });
    }
    let kind = match kind {
        KIND_CHANGES => RecordKind::Changes,
        KIND_FORGET if flags == 0 && change_count == 0 => RecordKind::Forget {
            issuer: reader.u64("the issuer")?,
            floor: reader.u32("the floor")?,
        },
        _ => return Err(CoreError::Invalid { what: "the record's kind", value: u64::from(kind) }),
    };
    let token = if flags & FLAG_TOKEN == 0 { None } else { Some(take_token(&mut reader)?) };
    let reply = if flags & FLAG_REPLY == 0 { None } else { Some(take_reply(&mut reader)?) };
    let changes = reader.rest();
    for _ in 0..change_count {
        take_change(&mut reader)?;
    }
    if !reader.rest().is_empty() {
        return Err(CoreError::Trailing { what: "the record", count: reader.rest().len() });
    }
    Ok(RecordRef { position, kind, arguments_hash, token, reply, change_count, changes })
}

fn take_token<'a>(reader: &mut Reader<'a>) -> Result<Token<'a>> {
    let stream = reader.u64("the token's stream")?;
    let number = reader.u64("the token's number")?;
    let lowest = reader.u64("the token's lowest open number")?;
    let length = usize::from(reader.u8("the token's path length")?);
    check_size("the token's path length in bytes", length, PATH_BYTES_MAX)?;
    Ok(Token { stream, number, path: reader.take("the token's path", length)?, lowest })
}

fn take_reply<'a>(reader: &mut Reader<'a>) -> Result<Reply<'a>> {
    let status = reader.u8("the reply's status")?;
    let flags = reader.u8("the reply's flags")?;
    let codec = reader.u8("the reply's codec")?;
    let version = reader.u64("the reply's version")?;
    Ok(Reply { status, flags, codec, version, value: reader.long("the reply's value")? })
}

fn take_change<'a>(reader: &mut Reader<'a>) -> Result<Change<'a>> {
    let tag = reader.u8("the change's tag")?;
    let length = usize::from(reader.u8("the map name's length")?);
    let map = std::str::from_utf8(reader.take("the map name", length)?)
        .map_err(|_| CoreError::NotText { what: "the map name" })?;
    check_name(map)?;
    let length = usize::from(reader.u16("the key's length")?);
    let key = reader.take("the key", length)?;
    check_key(key)?;
    match tag {
        TAG_PUT => {
            let codec = reader.u8("the value's codec")?;
            let schema = reader.u32("the map's schema")?;
            let expires_at_ms = reader.u64("the expiry")?;
            let value = reader.long("the value")?;
            Ok(Change::Put { map, schema, key, value, codec, expires_at_ms })
        }
        TAG_DELETE | TAG_EXPIRED => Ok(Change::Delete { map, key, expired: tag == TAG_EXPIRED }),
        _ => Err(CoreError::Invalid { what: "the change's tag", value: u64::from(tag) }),
    }
}

impl<'a> RecordRef<'a> {
    /// Where the record was born.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Changes, or streams to forget.
    pub fn kind(&self) -> RecordKind {
        self.kind
    }

    /// The request it belongs to.
    pub fn token(&self) -> Option<Token<'a>> {
        self.token
    }

    /// Hash of the request's arguments: the same token with other arguments is refused.
    pub fn arguments_hash(&self) -> u64 {
        self.arguments_hash
    }

    /// What a repeat is answered with.
    pub fn reply(&self) -> Option<Reply<'a>> {
        self.reply
    }

    /// How many changes there are.
    pub fn change_count(&self) -> usize {
        self.change_count
    }

    /// The changes in order.
    pub fn changes(&self) -> Changes<'a> {
        Changes { reader: Reader::new(self.changes), left: self.change_count }
    }
}

/// Iterator over the changes of a record.
#[derive(Debug, Clone)]
pub struct Changes<'a> {
    reader: Reader<'a>,
    left: usize,
}

impl<'a> Iterator for Changes<'a> {
    type Item = Change<'a>;

    fn next(&mut self) -> Option<Change<'a>> {
        self.left = self.left.checked_sub(1)?;
        // The decoder has walked these bytes before, so this cannot fail.
        take_change(&mut self.reader).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Changes<'_> {}
