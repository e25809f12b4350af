//! Peer frames: what the copies of partitions say to each other.
//!
//! One frame holds many messages for one copy, each about one partition, in the 16-byte envelope of
//! every frame (`proto/FRAME.md`). Log records travel as the bytes they were appended with. Decoding
//! is bounded: a length is compared with what is left and with its limit before it is used, and
//! nothing is copied. Callers: `replica::node` writes and reads; nobody else.

use crate::error::{CoreError, Result};
use crate::limits::{
    EPOCH_MAX, KEY_BYTES_MAX, PARTITIONS_MAX, PEER_FRAME_BYTES_MAX, RECORD_BYTES_MAX, SEQUENCE_MAX,
    VALUE_BYTES_MAX, check_size,
};
use crate::record::Position;

use super::{ENVELOPE_BYTES, Envelope, Reader, require, seal};

/// Envelope kind of a peer frame.
pub const KIND_PEER: u8 = 16;
/// A writer closes a frame at this size; one larger record travels alone.
pub const PEER_FRAME_BYTES_TARGET: usize = 1 << 20;

const APPEND: u8 = 1;
const ANSWER: u8 = 2;
const JOIN_START: u8 = 3;
const CHUNK: u8 = 4;
const CHUNK_ACK: u8 = 5;
const COPY_STATE: u8 = 6;
const PERSIST: u8 = 7;
const CONFIRM: u8 = 8;
const CONFIRMED: u8 = 9;
const STATE_DISK: u8 = 1;
const STATE_FULL: u8 = 2;

/// What every message begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Partition it is about.
    pub partition: u32,
    /// Epoch of the sender's ownership entry.
    pub epoch: u32,
    /// Join session; 0 for copies that were in sync when the epoch began.
    pub session: u64,
}

/// One message, borrowed from its frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// Records that follow `predecessor`; none is a heartbeat that carries positions.
    Append {
        /// Position before the first record.
        predecessor: Position,
        /// Commit position of the primary.
        commit: Position,
        /// Sequence up to which every shared sink has the records.
        trim: u64,
        /// Length-prefixed records.
        records: Records<'a>,
    },
    /// What the receiver of an append has: an acknowledgement, or where it differs.
    Answer {
        /// `matched`: verified up to here. Otherwise: try from here.
        position: Position,
        /// Whether the predecessor was found.
        matched: bool,
    },
    /// Begin (or go on with) a join at `base`.
    JoinStart {
        /// Position before the first record that will follow.
        base: Position,
    },
    /// One piece of the snapshot.
    Chunk {
        /// Number of the piece, from 0.
        index: u32,
        /// Nothing follows.
        last: bool,
        /// Position at which it was read.
        position: Position,
        /// Entries.
        entries: Entries<'a>,
        /// Request results and floors.
        streams: &'a [u8],
    },
    /// The piece is in; for the last one: and everything up to its position is applied.
    ChunkAck {
        /// Number of the piece.
        index: u32,
    },
    /// How a copy is, apart from its log.
    CopyState(CopyState),
    /// Somebody waits until the copy's own disk has the records up to here.
    Persist {
        /// Sequence.
        sequence: u64,
    },
    /// Does the copy follow this primary?
    Confirm {
        /// Number of the question.
        round: u64,
    },
    /// It did when it heard the question.
    Confirmed {
        /// Number of the question.
        round: u64,
    },
}

/// How a copy is, apart from its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyState {
    /// Its own disk has the committed records up to this sequence, fsynced.
    pub persisted: u64,
    /// It has a disk of its own.
    pub disk: bool,
    /// Its memory quota is used up.
    pub full: bool,
    /// Bytes of its tables of this partition.
    pub bytes: u64,
}

/// Length-prefixed records of an append, checked when the frame was decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records<'a> {
    bytes: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.bytes.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let record = rest.get(..length)?;
        self.bytes = &rest[length..];
        Some(record)
    }
}

/// One entry of a snapshot piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkEntry<'a> {
    /// Map name.
    pub map: &'a str,
    /// Schema fingerprint of the map.
    pub schema: u32,
    /// Key bytes.
    pub key: &'a [u8],
    /// Value, or `None` for a tombstone.
    pub value: Option<&'a [u8]>,
    /// Codec tag.
    pub codec: u8,
    /// Packed position that wrote it.
    pub version: u64,
    /// Absolute expiry in wall-clock milliseconds; 0 is never.
    pub expires_at_ms: u64,
}

/// Entries of a snapshot piece, checked when the frame was decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entries<'a> {
    bytes: &'a [u8],
}

impl<'a> Iterator for Entries<'a> {
    type Item = ChunkEntry<'a>;

    fn next(&mut self) -> Option<ChunkEntry<'a>> {
        if self.bytes.is_empty() {
            return None;
        }
        let mut reader = Reader::new(self.bytes);
        let entry = read_entry(&mut reader).ok()?;
        self.bytes = reader.rest();
        Some(entry)
    }
}

fn position(reader: &mut Reader<'_>, what: &'static str) -> Result<Position> {
    Ok(Position::unpack(reader.u64(what)?))
}

fn flag(reader: &mut Reader<'_>, what: &'static str) -> Result<bool> {
    let value = reader.u8(what)?;
    require(value <= 1, what, u64::from(value))?;
    Ok(value == 1)
}

fn read_entry<'a>(reader: &mut Reader<'a>) -> Result<ChunkEntry<'a>> {
    let map = reader.name("a map name")?;
    let schema = reader.u32("a schema")?;
    let key_length = usize::from(reader.u16("a key's length")?);
    check_size("the key's length in bytes", key_length, KEY_BYTES_MAX)?;
    let key = reader.take("a key", key_length)?;
    let codec = reader.u8("a codec")?;
    let present = flag(reader, "the presence of a value")?;
    let version = reader.u64("a version")?;
    let expires_at_ms = reader.u64("an expiry")?;
    let value_length = reader.u32("a value's length")? as usize;
    check_size("the value's length in bytes", value_length, VALUE_BYTES_MAX)?;
    let value = reader.take("a value", value_length)?;
    let value = present.then_some(value);
    Ok(ChunkEntry { map, schema, key, value, codec, version, expires_at_ms })
}

fn read_message<'a>(reader: &mut Reader<'a>) -> Result<(Header, Message<'a>)> {
    let kind = reader.u8("the message kind")?;
    let partition = reader.u32("the partition")?;
    require(partition < PARTITIONS_MAX, "the partition", u64::from(partition))?;
    let epoch = reader.u32("the epoch")?;
    require(epoch <= EPOCH_MAX, "the epoch", u64::from(epoch))?;
    let header = Header { partition, epoch, session: reader.u64("the session")? };
    let message = match kind {
        APPEND => read_append(reader)?,
        ANSWER => Message::Answer {
            position: position(reader, "the position")?,
            matched: flag(reader, "the match")?,
        },
        JOIN_START => Message::JoinStart { base: position(reader, "the base")? },
        CHUNK => read_chunk(reader)?,
        CHUNK_ACK => Message::ChunkAck { index: reader.u32("the chunk's index")? },
        COPY_STATE => Message::CopyState(read_copy_state(reader)?),
        PERSIST => Message::Persist { sequence: sequence(reader)? },
        CONFIRM => Message::Confirm { round: reader.u64("a round")? },
        CONFIRMED => Message::Confirmed { round: reader.u64("a round")? },
        _ => return Err(CoreError::Invalid { what: "the message kind", value: u64::from(kind) }),
    };
    Ok((header, message))
}

fn sequence(reader: &mut Reader<'_>) -> Result<u64> {
    let sequence = reader.u64("a persisted sequence")?;
    require(sequence <= SEQUENCE_MAX, "a persisted sequence", sequence)?;
    Ok(sequence)
}

fn read_copy_state(reader: &mut Reader<'_>) -> Result<CopyState> {
    let persisted = sequence(reader)?;
    let flags = reader.u8("the state of a copy")?;
    require(flags & !(STATE_DISK | STATE_FULL) == 0, "the state of a copy", u64::from(flags))?;
    let bytes = reader.u64("the bytes of a copy")?;
    Ok(CopyState { persisted, disk: flags & STATE_DISK != 0, full: flags & STATE_FULL != 0, bytes })
}

fn read_append<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>> {
    let predecessor = position(reader, "the predecessor")?;
    let commit = position(reader, "the commit position")?;
    let trim = reader.u64("the trim position")?;
    let count = reader.u32("the number of records")?;
    let mut all = *reader;
    for _ in 0..count {
        let length = reader.u32("a record's length")? as usize;
        check_size("the record's length in bytes", length, RECORD_BYTES_MAX)?;
        reader.take("a record", length)?;
    }
    let used = all.remaining() - reader.remaining();
    let records = Records { bytes: all.take("the records", used)? };
    Ok(Message::Append { predecessor, commit, trim, records })
}

fn read_chunk<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>> {
    let index = reader.u32("the chunk's index")?;
    let last = flag(reader, "the end of the snapshot")?;
    let position = position(reader, "the chunk's position")?;
    let count = reader.u32("the number of entries")?;
    let mut all = *reader;
    for _ in 0..count {
        read_entry(reader)?;
    }
    let used = all.remaining() - reader.remaining();
    let entries = Entries { bytes: all.take("the entries", used)? };
    let length = reader.u32("the length of the streams")? as usize;
    let streams = reader.take("the streams", length)?;
    Ok(Message::Chunk { index, last, position, entries, streams })
}

/// Decode a frame into its messages.
///
/// The whole frame is checked before the first message is handed out, so a bad frame changes nothing.
/// Cost: two passes over the headers, no copies.
pub fn decode(frame: &[u8]) -> Result<Vec<(Header, Message<'_>)>> {
    let envelope = Envelope::decode(frame, PEER_FRAME_BYTES_MAX)?;
    require(envelope.kind == KIND_PEER, "the frame's kind", u64::from(envelope.kind))?;
    let mut reader = Reader::new(envelope.body);
    let mut messages = Vec::new();
    for _ in 0..envelope.count {
        messages.push(read_message(&mut reader)?);
    }
    reader.end("the peer frame")?;
    Ok(messages)
}

/// Writes messages for one copy into as few frames as fit.
#[derive(Debug, Default)]
pub struct PeerWriter {
    frame: Vec<u8>,
    count: u32,
    done: Vec<Vec<u8>>,
}

impl PeerWriter {
    /// Nothing written yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> usize {
        self.frame.len() + self.done.iter().map(Vec::len).sum::<usize>()
    }

    fn begin(&mut self, kind: u8, header: Header, room: usize) {
        if self.count > 0 && self.frame.len() + room > PEER_FRAME_BYTES_TARGET {
            self.close();
        }
        if self.frame.is_empty() {
            self.frame.resize(ENVELOPE_BYTES, 0);
        }
        self.count += 1;
        self.frame.push(kind);
        self.frame.extend_from_slice(&header.partition.to_le_bytes());
        self.frame.extend_from_slice(&header.epoch.to_le_bytes());
        self.frame.extend_from_slice(&header.session.to_le_bytes());
    }

    fn close(&mut self) {
        if self.count > 0 {
            let mut frame = std::mem::take(&mut self.frame);
            seal(&mut frame, KIND_PEER, self.count);
            self.count = 0;
            self.done.push(frame);
        }
    }

    /// Append records (together at most one record of the largest size, or the frame target).
    pub fn append(
        &mut self,
        header: Header,
        predecessor: Position,
        commit: Position,
        trim: u64,
        records: &[&[u8]],
    ) {
        let size: usize = records.iter().map(|record| record.len() + 4).sum();
        self.begin(APPEND, header, size + 64);
        self.frame.extend_from_slice(&predecessor.pack().to_le_bytes());
        self.frame.extend_from_slice(&commit.pack().to_le_bytes());
        self.frame.extend_from_slice(&trim.to_le_bytes());
        self.frame.extend_from_slice(&(records.len() as u32).to_le_bytes());
        for record in records {
            self.frame.extend_from_slice(&(record.len() as u32).to_le_bytes());
            self.frame.extend_from_slice(record);
        }
    }

    /// Acknowledge, or say where to go on.
    pub fn answer(&mut self, header: Header, position: Position, matched: bool) {
        self.begin(ANSWER, header, 64);
        self.frame.extend_from_slice(&position.pack().to_le_bytes());
        self.frame.push(u8::from(matched));
    }

    /// Offer a join.
    pub fn join_start(&mut self, header: Header, base: Position) {
        self.begin(JOIN_START, header, 64);
        self.frame.extend_from_slice(&base.pack().to_le_bytes());
    }

    /// Send one piece of the snapshot, as built by [`ChunkWriter`].
    pub fn chunk(&mut self, header: Header, chunk: &ChunkWriter, streams: &[u8]) {
        self.begin(CHUNK, header, chunk.entries.len() + streams.len() + 64);
        self.frame.extend_from_slice(&chunk.index.to_le_bytes());
        self.frame.push(u8::from(chunk.last));
        self.frame.extend_from_slice(&chunk.position.pack().to_le_bytes());
        self.frame.extend_from_slice(&chunk.count.to_le_bytes());
        self.frame.extend_from_slice(&chunk.entries);
        self.frame.extend_from_slice(&(streams.len() as u32).to_le_bytes());
        self.frame.extend_from_slice(streams);
    }

    /// Acknowledge one piece of the snapshot.
    pub fn chunk_ack(&mut self, header: Header, index: u32) {
        self.begin(CHUNK_ACK, header, 64);
        self.frame.extend_from_slice(&index.to_le_bytes());
    }

    /// Say how this copy is.
    pub fn copy_state(&mut self, header: Header, state: CopyState) {
        self.begin(COPY_STATE, header, 64);
        self.frame.extend_from_slice(&state.persisted.to_le_bytes());
        let disk = if state.disk { STATE_DISK } else { 0 };
        self.frame.push(disk | if state.full { STATE_FULL } else { 0 });
        self.frame.extend_from_slice(&state.bytes.to_le_bytes());
    }

    /// Ask for what is committed up to `sequence` to be fsynced.
    pub fn persist(&mut self, header: Header, sequence: u64) {
        self.begin(PERSIST, header, 64);
        self.frame.extend_from_slice(&sequence.to_le_bytes());
    }

    /// Ask whether the copy follows this primary.
    pub fn confirm(&mut self, header: Header, round: u64) {
        self.begin(CONFIRM, header, 64);
        self.frame.extend_from_slice(&round.to_le_bytes());
    }

    /// Say that this copy follows the primary.
    pub fn confirmed(&mut self, header: Header, round: u64) {
        self.begin(CONFIRMED, header, 64);
        self.frame.extend_from_slice(&round.to_le_bytes());
    }

    /// The finished frames, in sending order.
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        self.close();
        self.done
    }
}

/// Collects the entries of one piece of a snapshot.
#[derive(Debug)]
pub struct ChunkWriter {
    /// Number of the piece.
    pub index: u32,
    /// Nothing follows.
    pub last: bool,
    /// Position at which it was read.
    pub position: Position,
    count: u32,
    entries: Vec<u8>,
}

impl ChunkWriter {
    /// An empty piece.
    pub fn new(index: u32, position: Position) -> Self {
        Self { index, last: false, position, count: 0, entries: Vec::new() }
    }

    /// Bytes of the entries so far.
    pub fn bytes(&self) -> usize {
        self.entries.len()
    }

    /// Add an entry; its parts are within their limits, as they came out of a store.
    pub fn entry(&mut self, entry: &ChunkEntry<'_>) {
        self.count += 1;
        let out = &mut self.entries;
        out.push(entry.map.len() as u8);
        out.extend_from_slice(entry.map.as_bytes());
        out.extend_from_slice(&entry.schema.to_le_bytes());
        out.extend_from_slice(&(entry.key.len() as u16).to_le_bytes());
        out.extend_from_slice(entry.key);
        out.push(entry.codec);
        out.push(u8::from(entry.value.is_some()));
        out.extend_from_slice(&entry.version.to_le_bytes());
        out.extend_from_slice(&entry.expires_at_ms.to_le_bytes());
        let value = entry.value.unwrap_or_default();
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
        out.extend_from_slice(value);
    }
}
