//! The log record: what is encoded decodes to the same, and hostile bytes give an error, never a
//! panic.

use proptest::prelude::*;
use spacegrid_core::error::CoreError;
use spacegrid_core::limits::{EPOCH_MAX, RECORD_OPERATIONS_MAX, SEQUENCE_MAX, VALUE_BYTES_MAX};
use spacegrid_core::record::{
    Change, Position, RecordKind, Reply, Token, decode, decode_checked, encode, encode_forget,
    encoded_len,
};

#[derive(Debug, Clone)]
enum Owned {
    Put { map: String, schema: u32, key: Vec<u8>, value: Vec<u8>, codec: u8, expires_at_ms: u64 },
    Delete { map: String, key: Vec<u8>, expired: bool },
}

impl Owned {
    fn as_change(&self) -> Change<'_> {
        match self {
            Self::Put { map, schema, key, value, codec, expires_at_ms } => Change::Put {
                map,
                schema: *schema,
                key,
                value,
                codec: *codec,
                expires_at_ms: *expires_at_ms,
            },
            Self::Delete { map, key, expired } => Change::Delete { map, key, expired: *expired },
        }
    }
}

fn bytes(sizes: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), sizes)
}

fn map() -> impl Strategy<Value = String> {
    prop_oneof![Just("orders".to_owned()), Just("käse".to_owned()), Just("m".repeat(255))]
}

fn change() -> impl Strategy<Value = Owned> {
    let put = (map(), any::<u32>(), bytes(1..60), bytes(0..200), any::<u8>(), any::<u64>());
    prop_oneof![
        put.prop_map(|(map, schema, key, value, codec, expires_at_ms)| {
            Owned::Put { map, schema, key, value, codec, expires_at_ms }
        }),
        (map(), bytes(1..60), any::<bool>()).prop_map(|(map, key, expired)| Owned::Delete {
            map,
            key,
            expired
        }),
    ]
}

type Parts =
    (Position, Option<(u64, u64, Vec<u8>, u64)>, u64, Option<(u8, u8, u64, Vec<u8>)>, Vec<Owned>);

fn parts() -> impl Strategy<Value = Parts> {
    let position = (0..=EPOCH_MAX, 0..=SEQUENCE_MAX).prop_map(|(e, s)| Position::new(e, s));
    let token = prop::option::of((any::<u64>(), any::<u64>(), bytes(0..65), any::<u64>()));
    let reply = prop::option::of((any::<u8>(), any::<u8>(), any::<u64>(), bytes(0..100)));
    (position, token, any::<u64>(), reply, prop::collection::vec(change(), 0..8))
}

fn encoded(parts: &Parts) -> Vec<u8> {
    let (position, token, hash, reply, changes) = parts;
    let token = token.as_ref().map(|(stream, number, path, lowest)| Token {
        stream: *stream,
        number: *number,
        path,
        lowest: *lowest,
    });
    let reply = reply.as_ref().map(|(status, codec, version, value)| Reply {
        status: *status,
        flags: !*status,
        codec: *codec,
        version: *version,
        value,
    });
    let changes: Vec<Change<'_>> = changes.iter().map(Owned::as_change).collect();
    let record = encode(*position, token.as_ref(), *hash, reply.as_ref(), &changes).unwrap();
    assert_eq!(record.len(), encoded_len(token.as_ref(), reply.as_ref(), &changes));
    let decoded = decode(&record).unwrap();
    assert_eq!(decoded, decode_checked(&record).unwrap());
    assert_eq!((decoded.position(), decoded.kind()), (*position, RecordKind::Changes));
    assert_eq!((decoded.token(), decoded.arguments_hash(), decoded.reply()), (token, *hash, reply));
    assert_eq!(decoded.change_count(), changes.len());
    assert_eq!(decoded.changes().len(), changes.len());
    assert_eq!(decoded.changes().collect::<Vec<_>>(), changes);
    record
}

/// Puts a right checksum in front of changed bytes, so that the fields behind it are reached.
fn sealed(mut record: Vec<u8>) -> Vec<u8> {
    let checksum = crc32fast::hash(&record[4..]);
    record[..4].copy_from_slice(&checksum.to_le_bytes());
    record
}

proptest! {
    #[test]
    fn records_round_trip(parts in parts()) {
        encoded(&parts);
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_refused(parts in parts(), cut: usize, bit: usize) {
        let record = encoded(&parts);
        prop_assert!(decode(&record[..cut % record.len()]).is_err());
        let mut flipped = record.clone();
        flipped[bit / 8 % record.len()] ^= 1 << (bit % 8);
        let refused = matches!(decode(&flipped), Err(CoreError::Checksum { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn wrong_fields_behind_a_right_checksum_never_panic(
        parts in parts(),
        at: usize,
        byte: u8,
        cut: usize,
    ) {
        let record = encoded(&parts);
        let mut wrong = record.clone();
        let place = 4 + at % (record.len() - 4);
        wrong[place] = byte;
        if let Ok(decoded) = decode(&sealed(wrong)) {
            prop_assert_eq!(decoded.changes().count(), decoded.change_count());
        }
        let short = record[..4 + cut % (record.len() - 4)].to_vec();
        prop_assert!(decode(&sealed(short)).is_err());
        let mut long = record;
        long.push(byte);
        prop_assert!(decode(&sealed(long)).is_err());
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(junk in bytes(0..300)) {
        prop_assert!(decode(&junk).is_err());
        if junk.len() >= 4 {
            let _ = decode(&sealed(junk));
        }
    }

    #[test]
    fn positions_pack_in_order(
        a in (0..=EPOCH_MAX, 0..=SEQUENCE_MAX),
        b in (0..=EPOCH_MAX, 0..=SEQUENCE_MAX),
    ) {
        let (a, b) = (Position::new(a.0, a.1), Position::new(b.0, b.1));
        prop_assert_eq!(Position::unpack(a.pack()), a);
        prop_assert_eq!(a.pack().cmp(&b.pack()), a.cmp(&b));
    }
}

#[test]
fn a_forget_record_round_trips() {
    let record = encode_forget(Position::new(3, 9), 17, 4000);
    let decoded = decode(&record).unwrap();
    assert_eq!(decoded.kind(), RecordKind::Forget { issuer: 17, floor: 4000 });
    assert_eq!((decoded.position(), decoded.change_count()), (Position::new(3, 9), 0));
    assert_eq!(decode(&record[..30]).unwrap_err().code(), "checksum");
    assert_eq!(decode(&sealed(record[..30].to_vec())).unwrap_err().code(), "truncated");
}

#[test]
fn limits_are_refused_by_name_on_both_sides() {
    let put = |map: &'static str, key: &'static [u8], value: &'static [u8]| {
        let change = Change::Put { map, schema: 0, key, value, codec: 0, expires_at_ms: 0 };
        encode(Position::ZERO, None, 0, None, &[change]).map_err(|error| error.to_string())
    };
    let large: &'static [u8] = vec![0; VALUE_BYTES_MAX + 1].leak();
    let name: &'static str = "m".repeat(256).leak();
    assert_eq!(put("", b"k", b"").unwrap_err(), "the name is empty");
    assert_eq!(
        put(name, b"k", b"").unwrap_err(),
        "the name's length in bytes is 256, the limit is 255"
    );
    assert_eq!(put("m", b"", b"").unwrap_err(), "the key is empty");
    assert_eq!(
        put("m", &large[..4097], b"").unwrap_err(),
        "the key's length in bytes is 4097, the limit is 4096"
    );
    assert_eq!(
        put("m", b"k", large).unwrap_err(),
        "the value's length in bytes is 1048577, the limit is 1048576"
    );
    assert!(put("m", b"k", &large[1..]).is_ok());
    let delete = Change::Delete { map: "m", key: b"k", expired: false };
    let many = vec![delete; RECORD_OPERATIONS_MAX + 1];
    assert_eq!(
        encode(Position::ZERO, None, 0, None, &many).unwrap_err().to_string(),
        "the record's number of changes is 10001, the limit is 10000"
    );
    let mut record = encode(Position::ZERO, None, 0, None, &many[1..]).unwrap();
    assert_eq!(decode(&record).unwrap().changes().count(), RECORD_OPERATIONS_MAX);
    record[6..8].copy_from_slice(&u16::MAX.to_le_bytes());
    assert_eq!(decode(&sealed(record)).unwrap_err().code(), "too_large");
    let token = Token { stream: 1, number: 1, path: &large[..65], lowest: 1 };
    assert_eq!(encode(Position::ZERO, Some(&token), 0, None, &[]).unwrap_err().code(), "too_large");
    let values = vec![
        Change::Put {
            map: "m",
            schema: 0,
            key: b"k",
            value: &large[1..],
            codec: 0,
            expires_at_ms: 0
        };
        4
    ];
    assert_eq!(
        encode(Position::ZERO, None, 0, None, &values).unwrap_err().to_string(),
        "the record's length in bytes is 4194420, the limit is 4194304"
    );
}
