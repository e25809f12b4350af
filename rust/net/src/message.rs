//! gRPC's length prefix and the two messages of the hot calls, by hand.
//!
//! `Frame` and `PeerFrame` are an envelope of two fields around bytes that the core reads itself
//! (proto/spacegrid/v1), so a frame is never copied to be unpacked: it stays a slice of what came
//! from the socket. Every length is checked against what is there, and a message against its limit
//! before anything is allocated for it. Callers: the front, the links, the client's link.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::protobuf::{
    VARINT_BYTES_MAX, Value, malformed, next_field, put_bytes, put_number, put_varint,
};
use crate::status::{Code, Status};

const PREFIX_BYTES: usize = 5;

/// What a message may have beyond its frame: tags, lengths, a hello.
pub const ENVELOPE_BYTES_MAX: usize = 1024;

/// Puts the messages of one direction of a call together again.
#[derive(Debug)]
pub struct Messages {
    chunk: Bytes,
    partial: BytesMut,
    limit: usize,
}

impl Messages {
    /// Messages of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { chunk: Bytes::new(), partial: BytesMut::new(), limit }
    }

    /// Take bytes of the call; only after [`Messages::take`] has said that there is no whole message.
    pub fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty(), "what came before is not read yet");
        self.chunk = chunk;
    }

    /// The next whole message.
    pub fn take(&mut self) -> Result<Option<Bytes>, Status> {
        if self.partial.is_empty() && self.chunk.len() >= PREFIX_BYTES {
            let length = self.length(&self.chunk)?;
            if self.chunk.len() - PREFIX_BYTES >= length {
                self.chunk.advance(PREFIX_BYTES);
                return Ok(Some(self.chunk.split_to(length)));
            }
        }
        self.fill(PREFIX_BYTES);
        if self.partial.len() < PREFIX_BYTES {
            return Ok(None);
        }
        let length = self.length(&self.partial)?;
        self.fill(PREFIX_BYTES + length);
        if self.partial.len() < PREFIX_BYTES + length {
            return Ok(None);
        }
        let mut message = std::mem::take(&mut self.partial).freeze();
        message.advance(PREFIX_BYTES);
        Ok(Some(message))
    }

    /// Whether the call may end here: no message is half there.
    pub fn is_whole(&self) -> bool {
        self.chunk.is_empty() && self.partial.is_empty()
    }

    /// Move bytes over until `partial` has this many. It grows with what comes, not with what a
    /// prefix promises.
    fn fill(&mut self, wanted: usize) {
        let missing = wanted.saturating_sub(self.partial.len()).min(self.chunk.len());
        self.partial.extend_from_slice(&self.chunk[..missing]);
        self.chunk.advance(missing);
    }

    fn length(&self, from: &[u8]) -> Result<usize, Status> {
        if from[0] != 0 {
            return Err(Status::new(Code::Unimplemented, "compressed messages are not taken"));
        }
        let length = u32::from_be_bytes([from[1], from[2], from[3], from[4]]) as usize;
        if length > self.limit {
            return Err(Status::new(
                Code::ResourceExhausted,
                format!("message of {length} bytes, the limit is {}", self.limit),
            ));
        }
        Ok(length)
    }
}

/// A message on its way out: what goes before the bytes, and the bytes.
#[derive(Debug, Clone)]
pub struct Message {
    /// gRPC's prefix, the field's tag and length.
    pub head: Bytes,
    /// The field.
    pub body: Bytes,
}

impl Message {
    /// A frame in its envelope.
    pub fn frame(frame: Bytes) -> Self {
        Self::field(1, frame)
    }

    /// A hello in its envelope.
    pub fn hello(hello: &Hello) -> Self {
        Self::field(2, hello.encode())
    }

    /// A message whose first field is in the head, ready to be cut where the window ends.
    fn field(number: u8, body: Bytes) -> Self {
        let mut field = BytesMut::with_capacity(1 + VARINT_BYTES_MAX);
        field.put_u8(number << 3 | 2);
        put_varint(&mut field, body.len() as u64);
        let mut head = prefix(field.len() + body.len());
        head.extend_from_slice(&field);
        Self { head: head.freeze(), body }
    }

    /// Any other message, as it is encoded.
    pub(crate) fn whole(body: Bytes) -> Self {
        Self { head: prefix(body.len()).freeze(), body }
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

fn prefix(length: usize) -> BytesMut {
    let mut head = BytesMut::with_capacity(PREFIX_BYTES + 1 + VARINT_BYTES_MAX);
    head.put_u8(0);
    head.put_u32(length as u32);
    head
}

/// A received message: a frame, or the hello of a first message.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// Empty where there is none.
    pub data: Bytes,
    /// Set in the first message of a call only.
    pub hello: Option<Hello>,
}

impl Envelope {
    /// Read `Frame` or `PeerFrame`; fields that are not known are skipped.
    pub fn decode(mut message: Bytes) -> Result<Self, Status> {
        let mut envelope = Self::default();
        while let Some((number, value)) = next_field(&mut message)? {
            match (number, value) {
                (1, Value::Bytes(data)) => envelope.data = data,
                (2, Value::Bytes(hello)) => envelope.hello = Some(Hello::decode(hello)?),
                (1 | 2, _) => return Err(malformed("a field has another type")),
                _ => {}
            }
        }
        Ok(envelope)
    }
}

/// Who calls: `Hello` of a client, `PeerHello` of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    /// Version of frames and services that the caller speaks.
    pub protocol_version: u64,
    /// The cluster that the caller expects; a client may leave it empty.
    pub cluster_id: Bytes,
    /// A node's name.
    pub node: Bytes,
    /// A node's incarnation.
    pub incarnation: u64,
    /// The incarnation that a node means to talk to.
    pub receiver: u64,
}

impl Hello {
    fn decode(mut message: Bytes) -> Result<Self, Status> {
        let mut hello = Self::default();
        while let Some((number, value)) = next_field(&mut message)? {
            match (number, value) {
                (1, Value::Number(version)) => hello.protocol_version = version,
                (2, Value::Bytes(id)) => hello.cluster_id = id,
                (3, Value::Bytes(name)) => hello.node = name,
                (4, Value::Number(incarnation)) => hello.incarnation = incarnation,
                (5, Value::Number(receiver)) => hello.receiver = receiver,
                (1..=5, _) => return Err(malformed("a field has another type")),
                _ => {}
            }
        }
        Ok(hello)
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        put_number(&mut out, 1, self.protocol_version);
        put_bytes(&mut out, 2, &self.cluster_id);
        put_bytes(&mut out, 3, &self.node);
        put_number(&mut out, 4, self.incarnation);
        put_number(&mut out, 5, self.receiver);
        out.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_the_wire(message: &Message) -> Bytes {
        [&message.head[..], &message.body[..]].concat().into()
    }

    fn hello() -> Hello {
        Hello {
            protocol_version: 1,
            cluster_id: Bytes::from_static(b"0123456789abcdef"),
            node: Bytes::from_static(b"node-1"),
            incarnation: 300,
            receiver: 7,
        }
    }

    #[test]
    fn a_message_comes_back_however_it_was_cut() {
        let wire = on_the_wire(&Message::frame(Bytes::from(vec![7; 300])));
        let both = [&wire[..], &on_the_wire(&Message::hello(&hello()))[..]].concat();
        for size in 1..both.len() {
            let mut messages = Messages::new(1000);
            let mut found = Vec::new();
            for chunk in both.chunks(size) {
                messages.push(Bytes::copy_from_slice(chunk));
                while let Some(message) = messages.take().unwrap() {
                    found.push(Envelope::decode(message).unwrap());
                }
            }
            assert_eq!(found.len(), 2, "cut every {size} bytes");
            assert_eq!(found[0].data, vec![7; 300]);
            assert_eq!(found[1].hello, Some(hello()));
            assert!(messages.is_whole());
        }
    }

    #[test]
    fn a_message_past_the_limit_is_refused_by_its_prefix() {
        let mut messages = Messages::new(1000);
        messages.push(Bytes::from_static(&[0, 0, 0, 0x03, 0xe9]));
        let refused = messages.take().unwrap_err();
        assert_eq!(refused.code, Code::ResourceExhausted);
        assert_eq!(refused.message, "message of 1001 bytes, the limit is 1000");
        let mut messages = Messages::new(1000);
        messages.push(Bytes::from_static(&[1, 0, 0, 0, 1]));
        assert_eq!(messages.take().unwrap_err().code, Code::Unimplemented);
    }

    #[test]
    fn bytes_that_are_no_message_are_an_error_and_never_more() {
        let valid = on_the_wire(&Message::hello(&hello())).slice(PREFIX_BYTES..);
        for at in 0..valid.len() {
            let _ = Envelope::decode(valid.slice(..at));
            for byte in 0..=255_u8 {
                let mut bytes = valid.to_vec();
                bytes[at] = byte;
                let _ = Envelope::decode(bytes.into());
            }
        }
        let refused = [
            &[0x0a][..],
            &[0x0a, 5, 1],
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[0xff; 11],
            &[0x08, 1],
            &[0x0b, 1],
            &[0x1d, 1, 2, 3],
        ];
        for bytes in refused {
            let answer = Envelope::decode(Bytes::from_static(bytes));
            assert_eq!(answer.unwrap_err().code, Code::InvalidArgument, "{bytes:?}");
        }
    }

    #[test]
    fn fields_that_are_not_known_are_skipped() {
        let message = [0x18, 5, 0x21, 0, 0, 0, 0, 0, 0, 0, 0, 0x2d, 0, 0, 0, 0, 0x0a, 1, 9];
        let envelope = Envelope::decode(Bytes::copy_from_slice(&message)).unwrap();
        assert_eq!((&envelope.data[..], envelope.hello), (&[9][..], None));
    }
}
