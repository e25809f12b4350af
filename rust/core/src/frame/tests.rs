//! Round trips, splitting, and hostile bytes.

use proptest::prelude::*;

use super::reply::{REPLY_VALUE_BYTES_MAX, status};
use super::request::{
    Chain, FLAG_IF_ABSENT, FLAG_TOKEN, FLAG_TTL, FLAG_VERSION, encode_chain, peek,
};
use super::scan::{Page, PageBuilder, PageEntry};
use super::*;
use crate::limits::{
    FRAME_BYTES_HARD_MAX, FRAME_BYTES_MAX, FRAME_OPERATIONS_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX,
};

/// An operation that owns its parts.
#[derive(Debug, Clone)]
struct Owned {
    opcode: Opcode,
    flags: u8,
    map: String,
    number: u64,
    span: u64,
    key: Vec<u8>,
    value: Vec<u8>,
    token: (u64, u64, Vec<u8>, u64),
    chain: Vec<u8>,
}

impl Owned {
    fn view(&self) -> Operation<'_> {
        let explicit = self.flags & FLAG_TOKEN != 0;
        let (stream, number, path, lowest) = &self.token;
        let own =
            Token { stream: 7, number: self.number, path: &[], lowest: self.number - self.span };
        let given = Token { stream: *stream, number: *number, path, lowest: *lowest };
        Operation {
            opcode: self.opcode,
            flags: self.flags,
            map: &self.map,
            schema: self.map.len() as u32,
            number: self.number,
            token: if explicit { given } else { own },
            key: &self.key,
            codec: u8::from(self.opcode == Opcode::Invoke),
            value: &self.value,
            ttl_ms: if self.flags & FLAG_TTL != 0 { 99 } else { 0 },
            expected: if self.flags & FLAG_VERSION != 0 { 1 << 41 } else { 0 },
            chain: Chain::decode(&self.chain).unwrap(),
        }
    }
}

fn opcode_and_flags() -> impl Strategy<Value = (Opcode, u8)> {
    use Opcode::{Contains, Delete, Get, Incr, Invoke, Put, Scan, Size};
    prop_oneof![
        Just((Get, 0)),
        Just((Put, 0)),
        Just((Put, FLAG_TTL | FLAG_VERSION | FLAG_TOKEN)),
        Just((Put, FLAG_IF_ABSENT | FLAG_TTL)),
        Just((Delete, FLAG_VERSION)),
        Just((Delete, FLAG_TOKEN)),
        Just((Incr, 0)),
        Just((Invoke, 0)),
        Just((Invoke, FLAG_TOKEN)),
        Just((Size, 0)),
        Just((Scan, 0)),
        Just((Contains, 0)),
    ]
}

fn operation() -> impl Strategy<Value = Owned> {
    let bytes = |range| prop::collection::vec(any::<u8>(), range);
    (
        opcode_and_flags(),
        "[a-z]{1,3}",
        1..u64::from(u32::MAX),
        0..50u64,
        bytes(1..40),
        bytes(8..60),
        (any::<u64>(), 1..1000u64, bytes(0..8), 0..2u64),
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..5),
    )
        .prop_map(|((opcode, flags), map, number, span, mut key, mut value, token, chain)| {
            match opcode {
                Opcode::Get | Opcode::Delete | Opcode::Contains => value.clear(),
                Opcode::Incr => value.truncate(8),
                Opcode::Size => (key, value) = (vec![1, 0, 0, 0], vec![]),
                Opcode::Scan => key = vec![1, 0, 0, 0],
                Opcode::Put | Opcode::Invoke => {}
            }
            let explicit = flags & FLAG_TOKEN != 0;
            let mut path = token.2;
            path.truncate(path.len() / 2 * 2);
            let chained = explicit && opcode == Opcode::Invoke;
            Owned {
                opcode,
                flags,
                map,
                number,
                span: if explicit { 0 } else { span.min(number - 1) },
                key,
                value,
                token: (token.0, token.1, path, token.1 - token.3),
                chain: if chained { encode_chain(&chain).unwrap() } else { vec![] },
            }
        })
}

fn frame_of(operations: &[Owned]) -> Vec<Vec<u8>> {
    let mut builder = RequestBuilder::new(7);
    let mut frames = Vec::new();
    for operation in operations {
        frames.extend(builder.push(&operation.view()).unwrap());
    }
    frames.extend(builder.finish());
    frames
}

proptest! {
    #[test]
    fn requests_come_back_as_they_were(operations in prop::collection::vec(operation(), 1..40)) {
        let frames = frame_of(&operations);
        let mut seen = Vec::new();
        for frame in &frames {
            let decoded = RequestFrame::decode(frame).unwrap();
            prop_assert_eq!(decoded.stream, 7);
            prop_assert_eq!(decoded.operations().count(), decoded.len());
            seen.extend(decoded.operations().map(|operation| format!("{operation:?}")));
        }
        let wanted: Vec<_> = operations.iter().map(|one| format!("{:?}", one.view())).collect();
        prop_assert_eq!(seen, wanted);
    }

    #[test]
    fn replies_come_back_as_they_were(
        replies in prop::collection::vec(
            (any::<u64>(), 0..=status::MAX, 0..2u8, any::<u8>(), any::<u64>(),
             prop::collection::vec(any::<u8>(), 0..50)),
            1..60,
        )
    ) {
        let view = |one: &'_ (u64, u8, u8, u8, u64, Vec<u8>)| {
            let (number, status, codec, copies, version, _) = *one;
            (number, status, codec, copies, version)
        };
        let mut builder = ReplyBuilder::new(3);
        let mut frames = Vec::new();
        for one in &replies {
            let (number, status, codec, copies, version) = view(one);
            let value = &one.5;
            let reply = Reply { number, status, flags: 0, codec, copies, version, value };
            frames.extend(builder.push(&reply));
        }
        frames.extend(builder.finish());
        let mut seen = Vec::new();
        for frame in &frames {
            for reply in ReplyFrame::decode(frame).unwrap().replies() {
                seen.push((reply.number, reply.status, reply.codec, reply.copies, reply.version,
                           reply.value.to_vec()));
            }
        }
        prop_assert_eq!(seen, replies);
    }

    #[test]
    fn random_bytes_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(RequestFrame::decode(&bytes).is_err());
        prop_assert!(ReplyFrame::decode(&bytes).is_err());
        let _ = Page::decode(&bytes);
        let _ = Chain::decode(&bytes);
        let _ = peek(&bytes);
    }

    /// The checksum is made right again, so that every check behind it is reached.
    #[test]
    fn damage_behind_a_right_checksum_never_panics(
        operations in prop::collection::vec(operation(), 1..6),
        damage in prop::collection::vec((16..2000usize, any::<u8>()), 1..4),
        cut in 0..400usize,
    ) {
        for mut frame in frame_of(&operations) {
            for (at, byte) in &damage {
                let at = 16 + at % (frame.len() - 16);
                frame[at] = *byte;
            }
            frame.truncate((frame.len() - cut.min(frame.len() - 16)).max(16));
            let count = u32::from_le_bytes([frame[8], frame[9], frame[10], frame[11]]);
            seal(&mut frame, KIND_REQUEST, count);
            if let Ok(decoded) = RequestFrame::decode(&frame) {
                prop_assert_eq!(decoded.operations().count(), decoded.len());
            }
            seal(&mut frame, KIND_REPLY, count);
            if let Ok(decoded) = ReplyFrame::decode(&frame) {
                prop_assert_eq!(decoded.replies().count(), decoded.len());
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_noticed(bit in 0..10_000usize) {
        let mut frame = sample();
        let bit = bit % (frame.len() * 8);
        frame[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(RequestFrame::decode(&frame).is_err());
    }
}

fn put<'a>(number: u64, key: &'a [u8], value: &'a [u8]) -> Operation<'a> {
    Operation {
        opcode: Opcode::Put,
        flags: 0,
        map: "stock",
        schema: 5,
        number,
        token: Token { stream: 7, number, path: &[], lowest: 1 },
        key,
        codec: 0,
        value,
        ttl_ms: 0,
        expected: 0,
        chain: Chain::default(),
    }
}

fn sample() -> Vec<u8> {
    let mut builder = RequestBuilder::new(7);
    assert_eq!(builder.push(&put(3, b"tea", b"10")).unwrap(), None);
    builder.finish().unwrap()
}

#[test]
fn every_truncation_is_an_error() {
    let frame = sample();
    for length in 0..frame.len() {
        assert!(RequestFrame::decode(&frame[..length]).is_err());
    }
    let mut longer = frame.clone();
    longer.push(0);
    assert_eq!(RequestFrame::decode(&longer).unwrap_err().code(), "trailing");
}

#[test]
fn huge_counts_and_lengths_are_refused_before_they_are_used() {
    let mut frame = sample();
    seal(&mut frame, KIND_REQUEST, u32::MAX);
    assert_eq!(RequestFrame::decode(&frame).unwrap_err().code(), "too_large");
    seal(&mut frame, KIND_REPLY, 1001);
    assert_eq!(ReplyFrame::decode(&frame).unwrap_err().code(), "too_large");
    seal(&mut frame, KIND_REQUEST, 0);
    assert!(RequestFrame::decode(&frame).is_err());
    // The number of maps, then the length of the value.
    for (at, bytes) in [(32, 2), (frame.len() - 9, 4)] {
        let mut frame = sample();
        frame[at..at + bytes].fill(0xFF);
        seal(&mut frame, KIND_REQUEST, 1);
        assert_eq!(RequestFrame::decode(&frame).unwrap_err().code(), "too_large");
    }
    assert_eq!(Page::decode(&[0xFF; 4]).unwrap_err().code(), "truncated");
}

#[test]
fn frames_split_at_the_operation_limit_and_at_the_byte_limit() {
    let mut builder = RequestBuilder::new(7);
    let mut frames = Vec::new();
    for number in 1..=2500 {
        frames.extend(builder.push(&put(number, b"k", b"v")).unwrap());
    }
    frames.extend(builder.finish());
    let counts: Vec<_> =
        frames.iter().map(|frame| RequestFrame::decode(frame).unwrap().len()).collect();
    assert_eq!(counts, [FRAME_OPERATIONS_MAX, FRAME_OPERATIONS_MAX, 500]);

    let value = vec![1; 100_000];
    let mut replies = ReplyBuilder::new(7);
    let mut frames = Vec::new();
    for number in 1..=5 {
        frames.extend(replies.push(&Reply { number, value: &value, ..Reply::default() }));
    }
    frames.extend(replies.finish());
    assert!(frames.iter().all(|frame| frame.len() <= FRAME_BYTES_MAX));
    assert_eq!(frames.len(), 3);
    assert!(replies.finish().is_none());
}

#[test]
fn the_largest_value_travels_alone() {
    let (key, value) = (vec![b'k'; KEY_BYTES_MAX], vec![1; VALUE_BYTES_MAX]);
    let mut builder = RequestBuilder::new(7);
    assert_eq!(builder.push(&put(1, b"a", b"b")).unwrap(), None);
    let before = builder.push(&put(2, &key, &value)).unwrap().unwrap();
    let alone = builder.push(&put(3, b"a", b"b")).unwrap().unwrap();
    assert_eq!(RequestFrame::decode(&before).unwrap().len(), 1);
    let decoded = RequestFrame::decode(&alone).unwrap();
    assert_eq!(decoded.operations().next().unwrap().value.len(), VALUE_BYTES_MAX);
    assert!(alone.len() > FRAME_BYTES_MAX && alone.len() <= FRAME_BYTES_HARD_MAX);
    let too_long = vec![1; VALUE_BYTES_MAX + 1];
    assert_eq!(builder.push(&put(4, b"a", &too_long)).unwrap_err().code(), "too_large");
}

#[test]
fn a_reply_past_every_frame_says_so() {
    let mut builder = ReplyBuilder::new(7);
    let value = vec![0; REPLY_VALUE_BYTES_MAX + 1];
    builder.push(&Reply { number: 4, version: 9, value: &value, ..Reply::default() });
    let frame = builder.finish().unwrap();
    let reply = ReplyFrame::decode(&frame).unwrap().replies().next().unwrap();
    assert_eq!((reply.status, reply.version, reply.value), (status::TOO_LARGE, 9, &[][..]));
}

#[test]
fn flags_that_mean_nothing_are_refused() {
    let mut builder = RequestBuilder::new(7);
    let get = Operation { opcode: Opcode::Get, flags: FLAG_TTL, ..put(1, b"k", b"") };
    assert!(builder.push(&get).is_err());
    let mut both = sample();
    let at = both.len() - 20 - 5 + 1;
    both[at] = FLAG_IF_ABSENT | FLAG_VERSION;
    seal(&mut both, KIND_REQUEST, 1);
    assert_eq!(RequestFrame::decode(&both).unwrap_err().code(), "invalid");
}

#[test]
fn a_page_comes_back_as_it_was_and_stops_when_full() {
    let mut builder = PageBuilder::new();
    let value = vec![9; 100_000];
    let entry = PageEntry { key: b"k", value: &value, codec: 1, version: 77 };
    assert!(builder.push(&entry));
    assert!(builder.push(&entry));
    assert!(!builder.push(&entry));
    let bytes = builder.finish(b"next");
    let page = Page::decode(&bytes).unwrap();
    assert_eq!((page.len(), page.next), (2, &b"next"[..]));
    assert_eq!(page.entries().collect::<Vec<_>>(), [entry, entry]);
    for length in 0..bytes.len() {
        assert!(Page::decode(&bytes[..length]).is_err());
    }
    let empty = PageBuilder::new().finish(b"");
    assert!(Page::decode(&empty).unwrap().is_empty());
}
