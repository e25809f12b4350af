//! One node without backups: every kind of request, through real frames.
//!
//! Goal: what a client sees of a lone primary. Method: request frames in, reply frames decoded.

mod common;

use spacegrid_core::frame::peer::ChunkEntry;
use spacegrid_core::frame::reply::status;
use spacegrid_core::frame::request::{
    Chain, FLAG_IF_ABSENT, FLAG_TOKEN, FLAG_TTL, FLAG_VERSION, encode_chain,
};
use spacegrid_core::frame::{Opcode, Operation, ReplyFrame, RequestBuilder, Token};
use spacegrid_core::key::partition_of;
use spacegrid_core::limits::{ANSWERS_BYTES_MAX, VALUE_BYTES_MAX};
use spacegrid_core::record::Position;
use spacegrid_core::replica::{
    Buffer, Config, Effects, Ending, Node, Ownership, Role, State, TurnStart,
};

use common::{STREAM, frame_of};

const PARTITIONS: u32 = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Got {
    number: u64,
    status: u8,
    codec: u8,
    copies: u8,
    version: u64,
    value: Vec<u8>,
}

fn node(min_in_sync: usize, log_bytes: u64, quota_bytes: u64) -> Node {
    let node = Node::new(&Config {
        copy: 1,
        partition_count: PARTITIONS,
        min_in_sync,
        quota_bytes,
        log_bytes,
        shared_sink: false,
        local_sink: false,
    })
    .expect("a valid configuration");
    let entry = Ownership {
        epoch: 1,
        version: 1,
        state: State::Ok,
        primary: 1,
        in_sync: vec![1],
        ..Ownership::default()
    };
    node.apply_table(1, (0..PARTITIONS).map(|index| (index, entry.clone())).collect(), 0);
    node
}

fn operation<'a>(opcode: Opcode, number: u64, key: &'a [u8], value: &'a [u8]) -> Operation<'a> {
    let map = if opcode == Opcode::Invoke { "Shop.buy" } else { "stock" };
    Operation { map, ..common::operation(opcode, number, key, value) }
}

fn send(node: &Node, operations: &[Operation<'_>], now_ms: u64) -> (Vec<Got>, Vec<TurnStart>) {
    let mut builder = RequestBuilder::new(STREAM);
    for operation in operations {
        assert_eq!(builder.push(operation).expect("a valid operation"), None);
    }
    let frame = builder.finish().expect("operations");
    assert_eq!(node.on_client_frame(5, &frame, now_ms), Ok(operations.len()));
    take(node)
}

fn take(node: &Node) -> (Vec<Got>, Vec<TurnStart>) {
    let Effects { client_frames, turns, .. } = node.take_effects(true, || 0).unwrap_or_default();
    node.check();
    let mut got = Vec::new();
    for (connection, frame) in &client_frames {
        assert_eq!(*connection, 5);
        for reply in ReplyFrame::decode(frame).expect("own frame").replies() {
            got.push(Got {
                number: reply.number,
                status: reply.status,
                codec: reply.codec,
                copies: reply.copies,
                version: reply.version,
                value: reply.value.to_vec(),
            });
        }
    }
    got.sort_by_key(|got| got.number);
    (got, turns)
}

fn one(node: &Node, operation: &Operation<'_>, now_ms: u64) -> Got {
    let (mut got, _) = send(node, &[*operation], now_ms);
    assert_eq!(got.len(), 1);
    got.remove(0)
}

#[test]
fn put_get_delete_and_their_conditions() {
    let node = node(1, 0, 0);
    let put = one(&node, &operation(Opcode::Put, 1, b"tea", b"10"), 0);
    assert_eq!((put.status, put.copies), (status::OK, 1));
    let get = one(&node, &operation(Opcode::Get, 2, b"tea", b""), 0);
    assert_eq!((get.status, get.value.as_slice(), get.version), (0, &b"10"[..], put.version));
    let absent = Operation { flags: FLAG_IF_ABSENT, ..operation(Opcode::Put, 3, b"tea", b"11") };
    let refused = one(&node, &absent, 0);
    assert_eq!((refused.status, refused.version), (status::CONFLICT, put.version));
    assert_eq!(refused.value, b"10");
    let versioned = |number, expected, value| Operation {
        flags: FLAG_VERSION,
        expected,
        ..operation(Opcode::Put, number, b"tea", value)
    };
    assert_eq!(one(&node, &versioned(4, put.version, b"12"), 0).status, status::OK);
    assert_eq!(one(&node, &versioned(5, put.version, b"13"), 0).status, status::CONFLICT);
    assert_eq!(one(&node, &operation(Opcode::Contains, 6, b"tea", b""), 0).status, status::OK);
    assert_eq!(one(&node, &operation(Opcode::Delete, 7, b"tea", b""), 0).status, status::OK);
    assert_eq!(one(&node, &operation(Opcode::Delete, 8, b"tea", b""), 0).status, status::MISS);
    assert_eq!(one(&node, &operation(Opcode::Get, 9, b"tea", b""), 0).status, status::MISS);
}

#[test]
fn replies_of_many_calls_share_a_frame_until_effects_are_taken() {
    let node = node(1, 0, 0);
    for number in 1..=5 {
        let put = frame_of(&operation(Opcode::Put, number, b"tea", b"v"));
        node.on_client_frame(5, &put, 0).expect("a frame");
    }
    let effects = node.take_effects(false, || 0).expect("five replies");
    assert_eq!(effects.client_frames.len(), 1);
    let frame = ReplyFrame::decode(&effects.client_frames[0].1).expect("own frame");
    assert_eq!(frame.replies().map(|reply| reply.number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
}

#[test]
fn f35_a_frame_that_asks_for_more_than_there_is_room_for_is_answered_in_part() {
    const ASKED: u64 = 100;
    let node = node(1, 0, 0);
    let large = vec![7; VALUE_BYTES_MAX];
    one(&node, &operation(Opcode::Put, 1, b"tea", &large), 0);
    let gets = (2..2 + ASKED).map(|number| operation(Opcode::Get, number, b"tea", b""));
    let put = operation(Opcode::Put, 2 + ASKED, b"tea", b"small");
    let (got, _) = send(&node, &gets.chain([put]).collect::<Vec<_>>(), 0);
    let bytes: usize = got.iter().map(|reply| reply.value.len()).sum();
    assert!(bytes <= ANSWERS_BYTES_MAX + VALUE_BYTES_MAX + 1000, "{bytes} bytes");
    let put_off = got.iter().filter(|reply| reply.status == status::BACKPRESSURE);
    assert!(put_off.clone().all(|reply| reply.value == 1_u32.to_le_bytes()));
    assert_eq!(put_off.count() as u64, ASKED - 17, "the others are answered");
    // What changes something keeps its place among the caller's others.
    assert_eq!(got.last().map(|reply| reply.status), Some(status::OK));
    // Once they were taken there is room again.
    assert_eq!(one(&node, &operation(Opcode::Get, 500, b"tea", b""), 0).value, b"small");
}

#[test]
fn incr_counts_once_per_token() {
    let node = node(1, 0, 0);
    let add = |number, delta: i64| {
        let bytes = delta.to_le_bytes();
        one(&node, &operation(Opcode::Incr, number, b"n", &bytes), 0)
    };
    assert_eq!(add(1, 5).value, [5]);
    assert_eq!(add(2, -7).value, [0xfe]);
    let again = add(2, -7);
    assert_eq!((again.status, again.value.as_slice()), (status::OK, &[0xfe][..]));
    assert_eq!(add(2, -8).status, status::TOKEN_REUSED);
    assert_eq!(add(3, i64::MIN).status, status::WRONG_TYPE);
    let later = Operation {
        token: Token { stream: STREAM, number: 9, path: b"", lowest: 9 },
        ..operation(Opcode::Incr, 9, b"n", &[1, 0, 0, 0, 0, 0, 0, 0])
    };
    assert_eq!(one(&node, &later, 0).status, status::OK);
    assert_eq!(add(2, -7).status, status::STALE_REQUEST);
}

#[test]
fn an_entry_is_gone_when_its_time_is_over() {
    let node = node(1, 0, 0);
    let short = Operation { flags: FLAG_TTL, ttl_ms: 10, ..operation(Opcode::Put, 1, b"k", b"v") };
    assert_eq!(one(&node, &short, 100).status, status::OK);
    assert_eq!(one(&node, &operation(Opcode::Get, 2, b"k", b""), 109).status, status::OK);
    assert_eq!(one(&node, &operation(Opcode::Get, 3, b"k", b""), 110).status, status::MISS);
    let short = Operation { number: 4, token: Token { number: 4, ..short.token }, ..short };
    assert_eq!(one(&node, &short, 200).status, status::OK);
    node.tick(210);
    assert_eq!(node.status().entries, 0);
}

#[test]
fn size_and_scan_page_through_a_partition() {
    let node = node(1, 0, 0);
    let keys: Vec<Vec<u8>> = (0..200).map(|n| format!("key{n}").into_bytes()).collect();
    for (number, key) in keys.iter().enumerate() {
        one(&node, &operation(Opcode::Put, number as u64 + 1, key, b"v"), 0);
    }
    let mut seen = Vec::new();
    for partition in 0..PARTITIONS {
        let place = partition.to_le_bytes();
        let size = one(&node, &operation(Opcode::Size, 500, &place, b""), 0);
        let expected = keys.iter().filter(|key| partition_of(key, PARTITIONS) == partition).count();
        assert_eq!(size.value, (expected as u64).to_le_bytes());
        let mut cursor = Vec::new();
        loop {
            let value = [&7_u32.to_le_bytes()[..], &cursor].concat();
            let page = one(&node, &operation(Opcode::Scan, 501, &place, &value), 0);
            let page = spacegrid_core::frame::scan::Page::decode(&page.value).expect("a page");
            seen.extend(page.entries().map(|entry| entry.key.to_vec()));
            cursor = page.next.to_vec();
            if cursor.is_empty() {
                break;
            }
        }
    }
    seen.sort();
    let mut keys = keys;
    keys.sort();
    assert_eq!(seen, keys);
}

#[test]
fn admission_refuses_with_nothing_applied() {
    let few = node(2, 0, 0);
    let refused = one(&few, &operation(Opcode::Put, 1, b"k", b"v"), 0);
    assert_eq!(refused.status, status::NOT_ENOUGH_COPIES);
    assert_eq!(one(&few, &operation(Opcode::Get, 2, b"k", b""), 0).status, status::MISS);
    let full = node(1, 0, 64);
    assert_eq!(
        one(&full, &operation(Opcode::Put, 1, b"k", &[0; 100]), 0).status,
        status::MEMORY_FULL
    );
    few.stop_all();
    assert_eq!(one(&few, &operation(Opcode::Get, 3, b"k", b""), 0).status, status::NOT_PRIMARY);
}

fn turn(node: &Node, number: u64, key: &[u8]) -> Option<TurnStart> {
    let (_, mut turns) = send(node, &[operation(Opcode::Invoke, number, key, b"\x80")], 0);
    turns.pop()
}

#[test]
fn a_turn_is_alone_on_its_routing_key_and_writes_one_record() {
    let node = node(1, 0, 0);
    let first = turn(&node, 1, b"tea").expect("a turn");
    assert_eq!((&*first.handler, &*first.routing_key), ("Shop.buy", &b"tea"[..]));
    assert!(turn(&node, 2, b"tea").is_none());
    let (got, _) = send(&node, &[operation(Opcode::Put, 3, b"tea", b"outside")], 0);
    assert!(got.is_empty(), "an outside write queues behind the turn");
    let (got, _) = send(&node, &[operation(Opcode::Get, 4, b"tea", b"")], 0);
    assert_eq!(got[0].status, status::MISS, "a client's read does not");
    let mut buffer = Buffer::default();
    {
        let partition = node.partition(first.partition).expect("there");
        partition.turn_put(&mut buffer, "stock", 0, b"tea", b"9", 0, 0).expect("fits");
        partition.turn_put(&mut buffer, "orders", 0, b"{tea}1", b"o", 0, 0).expect("fits");
        let seen = partition.turn_read(&first, &mut buffer, "stock", b"tea").expect("runs");
        assert_eq!(seen.map(|seen| seen.value), Some(b"9"[..].into()));
    }
    let next = node.end_turn(&first, &buffer, &Ending::Finished(b"\xc3"), 0);
    assert_eq!(next.len(), 1);
    let (got, _) = take(&node);
    assert_eq!((got[0].number, got[0].status, got[0].value.as_slice()), (1, 0, &b"\xc3"[..]));
    assert_eq!(one(&node, &operation(Opcode::Get, 5, b"{tea}1", b""), 0).status, 1);
    let orders = Operation { map: "orders", ..operation(Opcode::Get, 6, b"{tea}1", b"") };
    assert_eq!(one(&node, &orders, 0).value, b"o");
    assert!(node.end_turn(&next[0], &Buffer::default(), &Ending::Failed(14, b""), 0).is_empty());
    let (got, _) = take(&node);
    assert_eq!((got[0].number, got[0].status), (2, status::HANDLER_ERROR));
    assert_eq!((got[1].number, got[1].status), (3, status::OK));
    assert_eq!(one(&node, &operation(Opcode::Get, 7, b"tea", b""), 0).value, b"outside");
    let (got, turns) = send(&node, &[operation(Opcode::Invoke, 1, b"tea", b"\x80")], 0);
    assert!(turns.is_empty(), "a repeat is answered, not run");
    assert_eq!(got[0].value, b"\xc3");
    assert!(node.idle());
}

#[test]
fn a_call_back_into_the_chain_is_refused() {
    let node = node(1, 0, 0);
    let chain = encode_chain(&[b"Shop\0tea"]).expect("short");
    let call = Operation {
        flags: FLAG_TOKEN,
        map: "Stock.move",
        token: Token { stream: STREAM, number: 1, path: &[0, 0], lowest: 1 },
        chain: Chain::decode(&chain).expect("own bytes"),
        ..operation(Opcode::Invoke, 10, b"tea", b"\x80")
    };
    assert_eq!(one(&node, &call, 0).status, status::CALL_CYCLE);
    let (got, turns) = send(&node, &[Operation { key: b"milk", ..call }], 0);
    assert!(got.is_empty());
    assert_eq!(turns[0].chain, [b"Shop\0tea"[..].into()]);
}

#[test]
fn a_turn_of_an_older_epoch_is_void() {
    let node = node(1, 0, 0);
    let first = turn(&node, 1, b"tea").expect("a turn");
    let entry =
        Ownership { epoch: 2, version: 2, primary: 1, in_sync: vec![1], ..Ownership::default() };
    node.apply_table(2, vec![(first.partition, entry)], 0);
    let (got, _) = take(&node);
    assert_eq!(got[0].status, status::UNKNOWN);
    let mut buffer = Buffer::default();
    let partition = node.partition(first.partition).expect("there");
    assert!(!partition.runs(&first));
    partition.turn_put(&mut buffer, "stock", 0, b"tea", b"9", 0, 0).expect("fits");
    drop(partition);
    assert!(node.end_turn(&first, &buffer, &Ending::Finished(b""), 0).is_empty());
    assert_eq!(one(&node, &operation(Opcode::Get, 2, b"tea", b""), 0).status, status::MISS);
}

#[test]
fn a_copy_from_disk_waits_for_the_first_epoch_after_the_old_table() {
    let fresh = || {
        let config = Config {
            copy: 9,
            partition_count: PARTITIONS,
            min_in_sync: 1,
            quota_bytes: 0,
            log_bytes: 0,
            shared_sink: false,
            local_sink: false,
        };
        let node = Node::new(&config).expect("valid");
        let entry = ChunkEntry {
            map: "stock",
            schema: 0,
            key: b"tea",
            value: Some(b"9"),
            codec: 0,
            version: (1 << 40) | 5,
            expires_at_ms: 0,
        };
        let position = Position { epoch: 1, sequence: 5 };
        node.load(0, position, [entry].into_iter(), b"").expect("before the table");
        // The table of before the stop: another incarnation, and more epochs than the last record.
        node.apply_table(1, vec![(0, names(3, 7, 4))], 0);
        assert_eq!(node.roles()[0].role, Role::Dormant);
        node
    };
    let node = fresh();
    node.apply_table(2, vec![(0, names(4, 8, 9))], 0);
    assert_eq!((node.roles()[0].role, node.roles()[0].entries), (Role::Primary, 1));
    let node = fresh();
    node.apply_table(2, vec![(0, names(3, 8, 7))], 0);
    assert_eq!(node.roles()[0].role, Role::Dormant, "the epoch is the same");
    node.apply_table(3, vec![(0, names(4, 9, 8))], 0);
    assert!(node.roles().is_empty(), "another copy was chosen");
}

fn names(epoch: u32, version: u64, copy: u64) -> Ownership {
    Ownership { epoch, version, primary: copy, in_sync: vec![copy], ..Ownership::default() }
}

#[test]
fn hostile_request_bytes_change_nothing() {
    let node = node(1, 0, 0);
    let frame = frame_of(&operation(Opcode::Put, 1, b"k", b"v"));
    for length in 0..frame.len() {
        assert!(node.on_client_frame(5, &frame[..length], 0).is_err());
        let mut flipped = frame.clone();
        flipped[length] ^= 0x10;
        assert!(node.on_client_frame(5, &flipped, 0).is_err());
    }
    assert_eq!(node.status().entries, 0);
}
