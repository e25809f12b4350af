//! What the replica adds to a decoded operation: its origin, the hash of its arguments, a copy that waits.
//!
//! Callers: `node` makes origins out of frames, `primary` carries operations out, `turn` keeps those
//! that queue behind a running turn.

use crate::frame::request::{Chain, FLAG_PERSISTED, FLAG_REPEAT, FLAG_TOKEN, Opcode, Operation};
use crate::frame::{self, Reply};
use crate::hash::hash64;
use crate::record;

/// Who asked, and where the answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// Connection of the node's shell.
    pub connection: u64,
    /// Stream of the frame.
    pub stream: u64,
    /// Number by which the client finds the request again.
    pub number: u64,
    /// The answer waits until the change is on every complete copy's disk.
    pub persisted: bool,
}

/// Flags that leave a request the same one: how it is named, and how long its answer waits.
const FLAGS_OF_ASKING: u8 = FLAG_TOKEN | FLAG_REPEAT | FLAG_PERSISTED;

/// Hash of everything that makes another request of it; equal on every node.
pub fn arguments_hash(operation: &Operation<'_>) -> u64 {
    let seed = (operation.opcode as u32)
        | (u32::from(operation.flags & !FLAGS_OF_ASKING) << 8)
        | (u32::from(operation.codec) << 16);
    let key = hash64(operation.key, seed);
    let value = hash64(operation.value, (key >> 32) as u32);
    let map = hash64(operation.map.as_bytes(), operation.ttl_ms as u32);
    let expected = operation.expected.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    key ^ value.rotate_left(21) ^ map.rotate_left(42) ^ expected
}

/// The token of an operation, as a record carries it.
#[inline]
pub fn record_token<'a>(operation: &Operation<'a>) -> record::Token<'a> {
    let token = &operation.token;
    record::Token {
        stream: token.stream,
        number: token.number,
        path: token.path,
        lowest: token.lowest,
    }
}

/// An answer that is ready or waits for a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What became of the request.
    pub status: u8,
    /// How the value is encoded.
    pub codec: u8,
    /// Version in the answer.
    pub version: u64,
    /// Value.
    pub value: Box<[u8]>,
    /// A record holds it: a repeat is answered the same.
    pub recorded: bool,
}

impl Answer {
    /// An answer without a value.
    pub fn bare(status: u8, version: u64) -> Self {
        Self { status, codec: 0, version, value: Box::default(), recorded: false }
    }

    fn flags(&self, origin: Origin) -> u8 {
        let ok = self.status == frame::reply::status::OK;
        let persisted = if origin.persisted && ok { frame::reply::FLAG_PERSISTED } else { 0 };
        let recorded = if self.recorded { frame::reply::FLAG_RECORDED } else { 0 };
        persisted | recorded
    }

    /// The answer as a frame carries it.
    pub fn reply(&self, origin: Origin, copies: u8) -> Reply<'_> {
        Reply {
            number: origin.number,
            status: self.status,
            flags: self.flags(origin),
            codec: self.codec,
            copies,
            version: self.version,
            value: &self.value,
        }
    }
}

/// An operation that outlives its frame.
#[derive(Debug, Clone)]
pub struct OwnedOperation {
    opcode: Opcode,
    flags: u8,
    map: Box<str>,
    schema: u32,
    number: u64,
    stream: u64,
    token_number: u64,
    path: Box<[u8]>,
    lowest: u64,
    key: Box<[u8]>,
    codec: u8,
    value: Box<[u8]>,
    ttl_ms: u64,
    expected: u64,
    chain: Box<[u8]>,
}

impl OwnedOperation {
    /// Copy an operation out of its frame.
    pub fn new(operation: &Operation<'_>) -> Self {
        Self {
            opcode: operation.opcode,
            flags: operation.flags,
            map: operation.map.into(),
            schema: operation.schema,
            number: operation.number,
            stream: operation.token.stream,
            token_number: operation.token.number,
            path: operation.token.path.into(),
            lowest: operation.token.lowest,
            key: operation.key.into(),
            codec: operation.codec,
            value: operation.value.into(),
            ttl_ms: operation.ttl_ms,
            expected: operation.expected,
            chain: operation.chain.as_bytes().into(),
        }
    }

    /// The operation it was made of.
    pub fn borrow(&self) -> Operation<'_> {
        Operation {
            opcode: self.opcode,
            flags: self.flags,
            map: &self.map,
            schema: self.schema,
            number: self.number,
            token: frame::Token {
                stream: self.stream,
                number: self.token_number,
                path: &self.path,
                lowest: self.lowest,
            },
            key: &self.key,
            codec: self.codec,
            value: &self.value,
            ttl_ms: self.ttl_ms,
            expected: self.expected,
            chain: Chain::decode(&self.chain).unwrap_or_default(),
        }
    }
}
