//! The client against a node that is a few lines: frames in, replies out, and all the ways they get
//! lost.

use super::*;
use crate::frame::reply::status;
use crate::frame::{Reply, ReplyBuilder, RequestFrame};
use crate::limits::{FRAME_BYTES_MAX, VALUE_BYTES_MAX};

const PARTITIONS: u32 = 8;

/// (waiter, status, value, version, number)
type Told = (u32, u8, Vec<u8>, u64, u64);

fn client() -> Client<u32> {
    let mut client = Client::new(77, PARTITIONS).unwrap();
    assert_eq!(client.map("m", 0).unwrap(), 0);
    client.set_routes(1, &[0; PARTITIONS as usize]).unwrap();
    client
}

fn get(client: &mut Client<u32>, key: &[u8], waiter: u32) -> u64 {
    client.queue(&Request::new(Opcode::Get, 0, key, &[]), waiter, 1000).unwrap()
}

fn put(client: &mut Client<u32>, key: &[u8], waiter: u32) -> u64 {
    client.queue(&Request::new(Opcode::Put, 0, key, b"v"), waiter, 1000).unwrap()
}

fn take(client: &mut Client<u32>, now_ms: u64) -> Vec<(u16, Vec<u8>)> {
    let mut frames = Vec::new();
    client.take_frames(now_ms, |frame| frames.push((frame.slot, frame.to_vec())));
    check(client);
    frames
}

/// (number, lowest) of every operation, in the order of the frame.
fn numbers(frame: &[u8]) -> Vec<(u64, u64)> {
    let frame = RequestFrame::decode(frame).unwrap();
    frame.operations().map(|one| (one.number, one.token.lowest)).collect()
}

fn reply(client: &mut Client<u32>, slot: u16, now_ms: u64, replies: &[Reply<'_>]) -> Vec<Told> {
    let mut builder = ReplyBuilder::new(77);
    for reply in replies {
        assert_eq!(builder.push(reply), None);
    }
    let mut told = Vec::new();
    let frame = builder.finish().unwrap();
    client.on_frame(slot, &frame, now_ms, |done| told.push(tell(&done))).unwrap();
    check(client);
    told
}

fn tell(done: &Completion<'_, u32>) -> Told {
    (done.waiter, done.status, done.value.to_vec(), done.version, done.number)
}

fn expire(client: &mut Client<u32>, now_ms: u64) -> Vec<Told> {
    let mut told = Vec::new();
    client.expire(now_ms, |done| told.push(tell(&done)));
    check(client);
    told
}

fn says(number: u64, status: u8) -> Reply<'static> {
    Reply { number, status, ..Reply::default() }
}

/// The counts against what they count.
fn check(client: &Client<u32>) {
    let states = || client.window.iter().map(|one| (one.state, client.buffers.get(one.buffer)));
    let waiting = states().filter(|(state, _)| *state == State::Waiting).count();
    let framed = |role| {
        let is = |one: &(State, &buffers::Buffer)| one.0 == State::Framed && one.1.role == role;
        states().filter(is).count()
    };
    assert_eq!(waiting, client.waiting_count);
    assert_eq!(framed(buffers::Role::Open), client.queued_count);
    assert_eq!(framed(buffers::Role::Sent), client.in_flight());
    assert_eq!(client.window.iter().count(), client.window.len());
}

#[test]
fn one_tick_is_one_frame_per_slot_with_numbers_in_order() {
    let mut client = client();
    for waiter in 0..64 {
        assert_eq!(get(&mut client, b"k", waiter), u64::from(waiter) + 1);
    }
    assert_eq!((client.queued(), client.in_flight()), (64, 0));
    assert_eq!(client.next_event_ms(), Some(0));
    let frames = take(&mut client, 0);
    assert_eq!(frames.len(), 1);
    assert_eq!(numbers(&frames[0].1), (1..=64).map(|one| (one, one)).collect::<Vec<_>>());
    assert_eq!((client.queued(), client.in_flight()), (0, 64));
    assert_eq!(client.next_event_ms(), Some(1000));
    let value = Reply { number: 2, value: b"tea", version: 9, ..Reply::default() };
    let told = reply(&mut client, 0, 1, &[says(3, status::MISS), value]);
    assert_eq!(told, [(2, status::MISS, vec![], 0, 3), (1, status::OK, b"tea".to_vec(), 9, 2)]);
    assert!(take(&mut client, 1).is_empty());
}

#[test]
fn operations_go_to_the_slot_of_their_partition() {
    let mut client = client();
    client.set_routes(2, &[0, 1, 0, 1, 0, 1, 0, 1]).unwrap();
    for waiter in 0..100u32 {
        get(&mut client, &waiter.to_le_bytes(), waiter);
    }
    let frames = take(&mut client, 0);
    assert_eq!(frames.len(), 2);
    for (slot, frame) in &frames {
        for one in RequestFrame::decode(frame).unwrap().operations() {
            assert_eq!(partition_of(one.key, PARTITIONS) % 2, u32::from(*slot));
        }
    }
}

#[test]
fn lowest_is_the_lowest_open_mutation_of_the_partition() {
    let mut client = client();
    get(&mut client, b"k", 0);
    for waiter in 0..4 {
        put(&mut client, b"k", waiter);
    }
    get(&mut client, b"k", 0);
    let other =
        (0..=255u8).find(|&one| partition_of(&[one], PARTITIONS) != partition_of(b"k", PARTITIONS));
    put(&mut client, &[other.unwrap()], 0);
    let frames = take(&mut client, 0);
    let stated = [(1, 1), (2, 2), (3, 2), (4, 2), (5, 2), (6, 2), (7, 7)];
    assert_eq!(numbers(&frames[0].1), stated);
    reply(&mut client, 0, 0, &[says(3, 0), says(4, 0)]);
    put(&mut client, b"k", 0);
    reply(&mut client, 0, 0, &[says(2, 0)]);
    put(&mut client, b"k", 0);
    let frames = take(&mut client, 0);
    assert_eq!(numbers(&frames[0].1), [(8, 2), (9, 5)]);
}

#[test]
fn an_invoke_states_the_lowest_open_invoke_of_the_whole_stream() {
    let mut client = client();
    for key in 0..20u8 {
        let key = [key];
        let request = Request::new(Opcode::Invoke, 0, &key, b"{}");
        client.queue(&request, 0, 1000).unwrap();
    }
    put(&mut client, &[0], 0);
    let frames = take(&mut client, 0);
    let seen = numbers(&frames[0].1);
    assert!(seen[..20].iter().all(|&(_, lowest)| lowest == 1));
    assert_eq!(seen[20], (21, 1));
    let answers: Vec<_> = (1..=19).map(|number| says(number, 0)).collect();
    reply(&mut client, 0, 0, &answers);
    let request = Request::new(Opcode::Invoke, 0, &[0], b"{}");
    client.queue(&request, 0, 1000).unwrap();
    let frames = take(&mut client, 0);
    assert_eq!(numbers(&frames[0].1), [(22, 20)]);
}

#[test]
fn an_explicit_token_travels_and_is_not_of_this_stream() {
    let mut client = client();
    let chain = crate::frame::request::encode_chain(&[b"Shop\0tea"]).unwrap();
    let token = Token { stream: 5, number: 9, path: &[1, 0], lowest: 4 };
    let request = Request::new(Opcode::Invoke, 0, b"k", b"{}");
    let request = request.with_token(token, Chain::decode(&chain).unwrap());
    client.queue(&request, 0, 1000).unwrap();
    put(&mut client, b"k", 1);
    let frames = take(&mut client, 0);
    let frame = RequestFrame::decode(&frames[0].1).unwrap();
    let seen: Vec<_> = frame.operations().collect();
    assert_eq!(seen[0].token, token);
    assert_eq!(seen[0].chain.entries().collect::<Vec<_>>(), [b"Shop\0tea"]);
    assert_eq!(seen[1].token.lowest, 2);
}

#[test]
fn frames_split_at_the_limits_and_a_large_value_travels_alone() {
    let mut client = client();
    for waiter in 0..2500 {
        get(&mut client, b"k", waiter);
    }
    let frames = take(&mut client, 0);
    let counts: Vec<_> = frames.iter().map(|(_, frame)| numbers(frame).len()).collect();
    assert_eq!(counts, [1000, 1000, 500]);
    let value = vec![0; VALUE_BYTES_MAX];
    put(&mut client, b"k", 1);
    client.queue(&Request::new(Opcode::Put, 0, b"k", &value), 2, 1000).unwrap();
    put(&mut client, b"k", 3);
    let frames = take(&mut client, 0);
    let sizes: Vec<_> = frames.iter().map(|(_, frame)| frame.len() > FRAME_BYTES_MAX).collect();
    assert_eq!(sizes, [false, true, false]);
}

#[test]
fn a_refusal_is_asked_again_with_the_same_number_and_back_off() {
    let mut client = client();
    let number = put(&mut client, b"k", 5);
    let first = take(&mut client, 0);
    assert!(reply(&mut client, 0, 0, &[says(number, status::NOT_PRIMARY)]).is_empty());
    assert!(client.wants_routes());
    assert_eq!(client.next_event_ms(), Some(1));
    assert!(take(&mut client, 0).is_empty());
    let again = take(&mut client, 1);
    assert_eq!(again, first);
    reply(&mut client, 0, 1, &[says(number, status::UNAVAILABLE)]);
    assert_eq!(client.next_event_ms(), Some(3));
    client.set_routes(2, &[3; PARTITIONS as usize]).unwrap();
    assert!(!client.wants_routes());
    assert_eq!(client.next_event_ms(), Some(0));
    let again = take(&mut client, 1);
    assert_eq!((again[0].0, numbers(&again[0].1)), (3, vec![(number, number)]));
    assert_eq!(reply(&mut client, 3, 1, &[says(number, 0)]).len(), 1);
    assert_eq!(client.open(), 0);
    assert_eq!(client.next_event_ms(), None);
}

#[test]
fn backpressure_waits_as_long_as_it_says_whatever_the_routes() {
    let mut client = client();
    let number = put(&mut client, b"k", 5);
    take(&mut client, 0);
    let full = Reply { value: &30u32.to_le_bytes(), ..says(number, status::BACKPRESSURE) };
    reply(&mut client, 0, 10, &[full]);
    client.set_routes(2, &[0; PARTITIONS as usize]).unwrap();
    assert!(take(&mut client, 39).is_empty());
    assert_eq!(take(&mut client, 40).len(), 1);
}

#[test]
fn without_a_slot_operations_wait_for_routes() {
    let mut client = Client::new(77, PARTITIONS).unwrap();
    client.map("m", 0).unwrap();
    put(&mut client, b"k", 5);
    assert!(client.wants_routes());
    assert!(take(&mut client, 0).is_empty());
    assert_eq!(client.next_event_ms(), Some(1));
    client.set_routes(1, &[2; PARTITIONS as usize]).unwrap();
    assert_eq!(take(&mut client, 0)[0].0, 2);
    client.set_routes(2, &[-1; PARTITIONS as usize]).unwrap();
    put(&mut client, b"k", 6);
    assert!(take(&mut client, 0).is_empty());
    assert_eq!(expire(&mut client, 5000).len(), 2);
}

#[test]
fn new_routes_take_back_what_is_queued_and_not_yet_sent() {
    let mut client = client();
    for waiter in 0..3 {
        put(&mut client, b"k", waiter);
    }
    client.set_routes(2, &[1; PARTITIONS as usize]).unwrap();
    put(&mut client, b"k", 3);
    let frames = take(&mut client, 0);
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].0, 1);
    let mut sent: Vec<_> = numbers(&frames[0].1).into_iter().map(|one| one.0).collect();
    sent.sort_unstable();
    assert_eq!(sent, [1, 2, 3, 4]);
}

#[test]
fn a_lost_connection_sends_the_same_again_and_makes_a_timeout_unknown() {
    let mut client = client();
    let written = put(&mut client, b"k", 1);
    let read = get(&mut client, b"k", 2);
    take(&mut client, 0);
    client.on_disconnect(0, 5, true);
    assert!(client.wants_routes());
    assert_eq!(client.in_flight(), 0);
    // What the old connection still delivers is for nobody.
    assert!(reply(&mut client, 0, 5, &[says(written, 0)]).is_empty());
    let again = take(&mut client, 6);
    assert_eq!(numbers(&again[0].1), [(written, written), (read, written)]);
    reply(&mut client, 0, 6, &[says(written, status::NOT_PRIMARY), says(read, 6)]);
    let told = expire(&mut client, 1000);
    let reason = u64::from(status::NOT_PRIMARY);
    assert_eq!(
        told,
        [
            (1, status::UNKNOWN, vec![], reason, written),
            (2, TIMEOUT, vec![], u64::from(status::NOT_ENOUGH_COPIES), read)
        ]
    );
}

#[test]
fn what_surely_never_left_is_no_unknown() {
    let mut client = client();
    let number = put(&mut client, b"k", 1);
    take(&mut client, 0);
    client.on_disconnect(0, 1, false);
    assert_eq!(expire(&mut client, 1000), [(1, TIMEOUT, vec![], 0, number)]);
    assert_eq!(client.open(), 0);
}

#[test]
fn an_unknown_outcome_stays_open_until_it_is_asked_again_or_released() {
    let mut client = client();
    let (first, second) = (put(&mut client, b"k", 1), put(&mut client, b"k", 2));
    take(&mut client, 0);
    assert_eq!(expire(&mut client, 999), []);
    let told = expire(&mut client, 1000);
    assert_eq!(
        told.iter().map(|one| (one.1, one.4)).collect::<Vec<_>>(),
        [(status::UNKNOWN, first), (status::UNKNOWN, second)]
    );
    assert_eq!((client.open(), client.in_flight()), (2, 0));
    let third = put(&mut client, b"k", 3);
    assert_eq!(numbers(&take(&mut client, 1000)[0].1), [(third, first)]);

    client.resend(first, 4, 500).unwrap();
    let again = take(&mut client, 1001);
    assert_eq!(numbers(&again[0].1), [(first, first)]);
    assert_eq!(reply(&mut client, 0, 1001, &[says(first, 0)])[0].0, 4);
    assert_eq!(client.resend(first, 4, 500), Err(4));

    assert!(client.release(second));
    assert!(!client.release(second));
    let fourth = put(&mut client, b"k", 5);
    assert_eq!(numbers(&take(&mut client, 1001)[0].1), [(fourth, third)]);
}

#[test]
fn a_resent_operation_has_a_deadline_of_its_own() {
    let mut client = client();
    let number = put(&mut client, b"k", 1);
    take(&mut client, 0);
    expire(&mut client, 1000);
    client.resend(number, 2, 500).unwrap();
    take(&mut client, 1100);
    assert_eq!(client.next_event_ms(), Some(1600));
    assert_eq!(expire(&mut client, 1599), []);
    assert_eq!(expire(&mut client, 1600)[0].0, 2);
    assert!(client.release(number));
}

#[test]
fn deadlines_out_of_order_are_kept() {
    let mut client = client();
    let request = Request::new(Opcode::Get, 0, b"k", &[]);
    for (waiter, timeout_ms) in [(1, 300), (2, 100), (3, 200), (4, 200), (5, 0)] {
        client.queue(&request, waiter, timeout_ms).unwrap();
    }
    take(&mut client, 1000);
    let mut order = Vec::new();
    for now_ms in 1000..1400 {
        order.extend(expire(&mut client, now_ms).iter().map(|one| (now_ms, one.0)));
    }
    assert_eq!(order, [(1001, 5), (1100, 2), (1200, 3), (1200, 4), (1300, 1)]);
}

#[test]
fn cancelling_drops_what_never_left_and_lets_the_rest_run() {
    let mut client = client();
    let (queued, sent) = (put(&mut client, b"a", 1), put(&mut client, b"k", 2));
    assert_eq!(client.cancel(queued), Some(1));
    let frames = take(&mut client, 0);
    assert_eq!(numbers(&frames[0].1), [(sent, sent)]);
    assert_eq!(client.cancel(sent), Some(2));
    assert_eq!(client.cancel(sent), None);
    reply(&mut client, 0, 0, &[says(sent, status::NOT_PRIMARY)]);
    assert_eq!(numbers(&take(&mut client, 9)[0].1), [(sent, sent)]);
    assert_eq!(reply(&mut client, 0, 9, &[says(sent, 0)]), []);
    assert_eq!(client.open(), 0);
    let read = get(&mut client, b"k", 3);
    take(&mut client, 9);
    assert_eq!(client.cancel(read), Some(3));
    assert_eq!(client.open(), 0);
    let late = put(&mut client, b"k", 4);
    take(&mut client, 9);
    client.cancel(late);
    assert_eq!(expire(&mut client, 5000), []);
    assert_eq!(client.open(), 0);
}

#[test]
fn duplicates_and_strangers_are_ignored() {
    let mut client = client();
    let number = put(&mut client, b"k", 1);
    assert!(reply(&mut client, 0, 0, &[says(number, 0)]).is_empty());
    take(&mut client, 0);
    let others = [says(0, 0), says(number + 1, 0), says(u64::MAX, 0)];
    for other in &others {
        assert!(reply(&mut client, 0, 0, std::slice::from_ref(other)).is_empty());
    }
    assert!(reply(&mut client, 1, 0, &[says(number, 0)]).is_empty());
    assert_eq!(reply(&mut client, 0, 0, &[says(number, 0), says(number, 0)]).len(), 1);
    let mut stranger = ReplyBuilder::new(78);
    stranger.push(&says(number, 0));
    let frame = stranger.finish().unwrap();
    assert!(client.on_frame(0, &frame, 0, |_| ()).is_err());
    assert!(client.on_frame(0, b"SG", 0, |_| ()).is_err());
}

#[test]
fn one_that_stays_behind_does_not_hold_the_others() {
    let mut client = client();
    client.set_routes(2, &[0, 0, 0, 0, 0, 0, 0, -1]).unwrap();
    let key =
        |partition| (0..=255u8).find(|&one| partition_of(&[one], PARTITIONS) == partition).unwrap();
    let (stuck, quick) = ([key(7)], [key(0)]);
    let held = put(&mut client, &stuck, 9);
    for round in 0..200 {
        for _ in 0..500 {
            put(&mut client, &quick, 1);
        }
        for (slot, frame) in take(&mut client, round) {
            let replies: Vec<_> = numbers(&frame).iter().map(|one| says(one.0, 0)).collect();
            reply(&mut client, slot, round, &replies);
        }
    }
    assert!(client.window.is_behind(held));
    assert_eq!(client.open(), 1);
    assert!(client.buffers.bytes() < 200_000);
    assert_eq!(expire(&mut client, 999), []);
    assert_eq!(expire(&mut client, 1000), [(9, TIMEOUT, vec![], 0, held)]);
}

#[test]
fn too_much_and_too_large_are_refused_without_a_trace() {
    let mut client = client();
    let key = vec![0; 5000];
    let long = Request::new(Opcode::Get, 0, &key, &[]);
    assert_eq!(client.queue(&long, 1, 1).unwrap_err().code(), "too_large");
    let empty = Request::new(Opcode::Get, 0, &[], &[]);
    assert_eq!(client.queue(&empty, 1, 1).unwrap_err().code(), "empty");
    let unknown = Request::new(Opcode::Get, 9, b"k", &[]);
    assert_eq!(client.queue(&unknown, 1, 1).unwrap_err().code(), "invalid");
    let request = Request::new(Opcode::Get, 0, b"k", &[]);
    assert_eq!(client.check(&request, OPEN_OPERATIONS_MAX + 1).unwrap_err().code(), "full");
    assert_eq!(client.open(), 0);
    assert!(client.set_routes(2, &[0]).is_err());
    assert!(client.set_routes(2, &[65_535; PARTITIONS as usize]).is_err());
    assert!(Client::<u32>::new(1, 0).is_err());
}

mod copies;
mod model;

#[test]
fn a_small_frame_waits_to_fill_beside_many_in_flight_and_not_for_long() {
    let mut client = client();
    client.set_frame_window(4);
    for waiter in 0..40_u32 {
        get(&mut client, &waiter.to_le_bytes(), waiter);
    }
    assert_eq!(take(&mut client, 100).len(), 1, "nothing is in flight: nobody waits");
    get(&mut client, b"k", 40);
    assert_eq!(take(&mut client, 101), [], "one beside forty");
    assert_eq!(client.next_event_ms(), Some(101 + HOLD_MS));
    assert_eq!(take(&mut client, 100 + HOLD_MS), []);
    for waiter in 41..50 {
        get(&mut client, b"k", waiter);
    }
    let frames = take(&mut client, 101);
    assert_eq!(frames.len(), 1, "ten beside forty are enough");
    assert_eq!(numbers(&frames[0].1).len(), 10);
    get(&mut client, b"k", 50);
    assert_eq!(take(&mut client, 102), []);
    assert_eq!(take(&mut client, 102 + HOLD_MS).len(), 1, "it has waited long enough");
}

#[test]
fn without_a_frame_window_nothing_waits() {
    let mut client = client();
    for waiter in 0..40_u32 {
        get(&mut client, &waiter.to_le_bytes(), waiter);
    }
    assert_eq!(take(&mut client, 100).len(), 1);
    get(&mut client, b"k", 40);
    assert_eq!(take(&mut client, 100).len(), 1);
}
