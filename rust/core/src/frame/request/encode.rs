//! Writing request frames: one operation at a time into a growing buffer, then the frame around it.

use super::{
    Chain, FLAG_REPEAT, FLAG_TOKEN, FLAG_TTL, FLAG_VERSION, OPERATION_BYTES, Opcode, Operation,
    PREFIX_BYTES, check_shape, read_chain, read_token,
};
use crate::error::{CoreError, Result};
use crate::frame::{ENVELOPE_BYTES, KIND_REQUEST, Reader, base_for, delta_from, require, seal};
use crate::limits::{
    FRAME_BYTES_HARD_MAX, FRAME_BYTES_MAX, FRAME_OPERATIONS_MAX, PATH_BYTES_MAX, check_key,
    check_name, check_size, check_value,
};
use crate::record::Token;

/// The fixed part of an operation as the encoder wants it.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// What to do.
    pub opcode: Opcode,
    /// `FLAG_*`.
    pub flags: u8,
    /// Index into the frame's map table.
    pub map_index: u16,
    /// Number minus the frame's base.
    pub number_delta: u32,
    /// Number minus the stream's lowest open number.
    pub open_span: u32,
    /// How the value is encoded.
    pub codec: u8,
}

/// The parts of an operation that follow its head.
#[derive(Debug, Clone, Copy, Default)]
pub struct Parts<'a> {
    /// Written with [`FLAG_TTL`].
    pub ttl_ms: u64,
    /// Written with [`FLAG_VERSION`].
    pub expected: u64,
    /// Written with [`FLAG_TOKEN`], which must be set exactly when this is given.
    pub token: Option<(Token<'a>, Chain<'a>)>,
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
}

impl Parts<'_> {
    /// An upper bound of the operation's length in bytes.
    #[inline]
    pub fn encoded_length(&self) -> usize {
        let token = match &self.token {
            Some((token, chain)) => 26 + token.path.len() + chain.bytes.len(),
            None => 0,
        };
        OPERATION_BYTES + 16 + token + self.key.len() + self.value.len()
    }
}

/// Refuses what no frame may hold: the sender's half of the decoder's checks.
pub fn check_parts(opcode: Opcode, flags: u8, parts: &Parts<'_>) -> Result<()> {
    check_key(parts.key)?;
    check_value(parts.value)?;
    check_shape(opcode, flags, parts.key, parts.value)?;
    if let Some((token, chain)) = &parts.token {
        check_size("a token's path length in bytes", token.path.len(), PATH_BYTES_MAX)?;
        require(token.path.len() % 2 == 0, "a token's path length", token.path.len() as u64)?;
        let in_order = token.number > 0 && token.lowest <= token.number;
        require(in_order, "a token's lowest number", token.lowest)?;
        let size = parts.key.len() + parts.value.len() + chain.bytes.len();
        let room = FRAME_BYTES_HARD_MAX - 1024;
        check_size("the key, value and chain's length in bytes", size, room)?;
    }
    Ok(())
}

/// Appends one operation to `out`.
#[inline]
pub fn encode_operation(out: &mut Vec<u8>, head: Head, parts: &Parts<'_>) {
    out.reserve(OPERATION_BYTES + 16 + parts.key.len() + parts.value.len());
    let mut fixed = [0; OPERATION_BYTES];
    fixed[0] = head.opcode as u8;
    fixed[1] = head.flags;
    fixed[2..4].copy_from_slice(&head.map_index.to_le_bytes());
    fixed[4..8].copy_from_slice(&head.number_delta.to_le_bytes());
    fixed[8..12].copy_from_slice(&head.open_span.to_le_bytes());
    fixed[12..14].copy_from_slice(&(parts.key.len() as u16).to_le_bytes());
    fixed[14] = head.codec;
    fixed[16..20].copy_from_slice(&(parts.value.len() as u32).to_le_bytes());
    out.extend_from_slice(&fixed);
    if head.flags & FLAG_TTL != 0 {
        out.extend_from_slice(&parts.ttl_ms.to_le_bytes());
    }
    if head.flags & FLAG_VERSION != 0 {
        out.extend_from_slice(&parts.expected.to_le_bytes());
    }
    if let Some((token, chain)) = &parts.token {
        out.extend_from_slice(&token.stream.to_le_bytes());
        out.extend_from_slice(&token.number.to_le_bytes());
        out.extend_from_slice(&token.lowest.to_le_bytes());
        out.push(token.path.len() as u8);
        out.extend_from_slice(token.path);
        if head.opcode == Opcode::Invoke {
            out.push(chain.len() as u8);
            out.extend_from_slice(chain.bytes);
        }
    }
    out.extend_from_slice(parts.key);
    out.extend_from_slice(parts.value);
}

/// Points an encoded operation into another frame: its number's distance and its map's index there.
pub(crate) fn readdress(operation: &mut [u8], map_index: u16, number_delta: u32) {
    operation[2..4].copy_from_slice(&map_index.to_le_bytes());
    operation[4..8].copy_from_slice(&number_delta.to_le_bytes());
}

/// Says of an encoded operation that an earlier attempt may still arrive.
pub(crate) fn mark_repeat(operation: &mut [u8]) {
    operation[1] |= FLAG_REPEAT;
}

/// The map index and number distance of an encoded operation, and its length; `None` when it is cut
/// short.
pub(crate) fn peek(operation: &[u8]) -> Option<(u16, u32, usize)> {
    let head = operation.first_chunk::<OPERATION_BYTES>()?;
    let map_index = u16::from_le_bytes([head[2], head[3]]);
    let delta = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    let mut reader = Reader::new(&operation[OPERATION_BYTES..]);
    let optional =
        8 * usize::from(head[1] & FLAG_TTL != 0) + 8 * usize::from(head[1] & FLAG_VERSION != 0);
    reader.take("", optional).ok()?;
    if head[1] & FLAG_TOKEN != 0 {
        read_token(&mut reader).ok()?;
        if head[0] == Opcode::Invoke as u8 {
            read_chain(&mut reader).ok()?;
        }
    }
    let key_length = usize::from(u16::from_le_bytes([head[12], head[13]]));
    let value_length = u32::from_le_bytes([head[16], head[17], head[18], head[19]]) as usize;
    reader.take("", key_length + value_length).ok()?;
    Some((map_index, delta, operation.len() - reader.remaining()))
}

/// Length in bytes of a request frame with this map table (names only) and these operations.
pub fn sealed_length<'a>(names: impl Iterator<Item = &'a str>, operation_bytes: usize) -> usize {
    let table: usize = names.map(|name| 1 + name.len() + 4).sum();
    ENVELOPE_BYTES + PREFIX_BYTES + table + operation_bytes
}

/// Writes a whole request frame into `out`, which has the length of [`sealed_length`].
///
/// # Panics
/// When `out` has another length.
pub fn seal_request<'a>(
    out: &mut [u8],
    stream: u64,
    base_number: u64,
    maps: impl ExactSizeIterator<Item = (&'a str, u32)>,
    operations: &[u8],
    count: u32,
) {
    let mut at = ENVELOPE_BYTES;
    let mut put = |bytes: &[u8]| {
        out[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&stream.to_le_bytes());
    put(&base_number.to_le_bytes());
    put(&(maps.len() as u16).to_le_bytes());
    for (name, schema) in maps {
        put(&[name.len() as u8]);
        put(name.as_bytes());
        put(&schema.to_le_bytes());
    }
    put(operations);
    assert_eq!(at, out.len(), "a frame is as long as was reserved for it");
    seal(out, KIND_REQUEST, count);
}

/// Builds request frames from whole [`Operation`]s: for tests, tools, and those who need no client
/// machine.
#[derive(Debug)]
pub struct RequestBuilder {
    stream: u64,
    base_number: u64,
    maps: Vec<(String, u32)>,
    operations: Vec<u8>,
    count: u32,
}

impl RequestBuilder {
    /// A builder of frames of `stream`.
    pub fn new(stream: u64) -> Self {
        Self { stream, base_number: 0, maps: Vec::new(), operations: Vec::new(), count: 0 }
    }

    /// Appends `operation`; returns the finished frame of those before it when it no longer fits
    /// with them.
    ///
    /// Its token is written when [`FLAG_TOKEN`] is set; else only `lowest` of it is used.
    pub fn push(&mut self, operation: &Operation<'_>) -> Result<Option<Vec<u8>>> {
        let explicit = operation.flags & FLAG_TOKEN != 0;
        let parts = Parts {
            ttl_ms: operation.ttl_ms,
            expected: operation.expected,
            token: explicit.then_some((operation.token, operation.chain)),
            key: operation.key,
            value: operation.value,
        };
        check_parts(operation.opcode, operation.flags, &parts)?;
        check_name(operation.map)?;
        let flags = operation.flags;
        require(flags & !operation.opcode.flags() == 0, "an operation's flags", u64::from(flags))?;
        let lowest = if explicit { operation.number } else { operation.token.lowest };
        let span = operation.number.checked_sub(lowest).filter(|_| lowest > 0);
        let open_span = span.ok_or(CoreError::Invalid { what: "an open span", value: lowest })?;
        let grown = parts.encoded_length() + operation.map.len() + 5;
        let full = self.count > 0
            && (self.count as usize == FRAME_OPERATIONS_MAX
                || self.length() + grown > FRAME_BYTES_MAX
                || delta_from(self.base_number, operation.number).is_none());
        let frame = if full { self.finish() } else { None };
        if self.count == 0 {
            self.base_number = base_for(operation.number);
        }
        let entry = (operation.map, operation.schema);
        let known = self.maps.iter().position(|(name, schema)| (name.as_str(), *schema) == entry);
        let map_index = known.unwrap_or_else(|| {
            self.maps.push((operation.map.to_owned(), operation.schema));
            self.maps.len() - 1
        });
        let head = Head {
            opcode: operation.opcode,
            flags,
            map_index: map_index as u16,
            number_delta: (operation.number - self.base_number) as u32,
            open_span: u32::try_from(open_span).unwrap_or(u32::MAX),
            codec: operation.codec,
        };
        encode_operation(&mut self.operations, head, &parts);
        self.count += 1;
        Ok(frame)
    }

    /// The frame of what was appended, or `None` when that is nothing. The builder is empty again.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        if self.count == 0 {
            return None;
        }
        let mut frame = vec![0; self.length()];
        let maps = self.maps.iter().map(|(name, schema)| (name.as_str(), *schema));
        seal_request(&mut frame, self.stream, self.base_number, maps, &self.operations, self.count);
        self.maps.clear();
        self.operations.clear();
        self.count = 0;
        Some(frame)
    }

    fn length(&self) -> usize {
        sealed_length(self.maps.iter().map(|(name, _)| name.as_str()), self.operations.len())
    }
}
