//! Any order of events: every operation is answered exactly once, and nothing stays behind.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Event {
    Put(u8, u64),
    Get(u8),
    Stale(u8),
    Take,
    Answer(usize, u8),
    Disconnect(u16, bool),
    Routes(u8),
    Cancel(usize),
    Later(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (any::<u8>(), 1..60u64).prop_map(|(key, timeout)| Event::Put(key, timeout)),
        3 => any::<u8>().prop_map(Event::Get),
        2 => any::<u8>().prop_map(Event::Stale),
        4 => Just(Event::Take),
        6 => (any::<usize>(), 0..=status::MAX).prop_map(|(at, status)| Event::Answer(at, status)),
        1 => (0..3u16, any::<bool>()).prop_map(|(slot, sent)| Event::Disconnect(slot, sent)),
        1 => any::<u8>().prop_map(Event::Routes),
        1 => any::<usize>().prop_map(Event::Cancel),
        3 => (0..20u64).prop_map(Event::Later),
    ]
}

proptest! {
    #[test]
    fn every_operation_ends_once(events in prop::collection::vec(event(), 1..200)) {
        let mut client = client();
        let mut now_ms = 0;
        let mut waiters = 0;
        let mut flying: Vec<(u16, u64)> = Vec::new();
        let mut open = std::collections::BTreeMap::new();
        let mut unknown = Vec::new();
        let mut ended = Vec::new();
        for event in events {
            match event {
                Event::Put(key, timeout_ms) => {
                    waiters += 1;
                    let request = Request::new(Opcode::Put, 0, std::slice::from_ref(&key), b"v");
                    open.insert(client.queue(&request, waiters, timeout_ms).unwrap(), waiters);
                }
                Event::Get(key) => {
                    waiters += 1;
                    open.insert(get(&mut client, &[key], waiters), waiters);
                }
                Event::Stale(key) => {
                    waiters += 1;
                    let age = [9; 8];
                    let request = Request::new(Opcode::Get, 0, std::slice::from_ref(&key), &age);
                    open.insert(client.queue(&request.stale(), waiters, 1000).unwrap(), waiters);
                }
                Event::Take => {
                    for (slot, frame) in take(&mut client, now_ms) {
                        for (number, lowest) in numbers(&frame) {
                            prop_assert!(lowest <= number);
                            flying.push((slot, number));
                        }
                    }
                }
                Event::Answer(at, status) if !flying.is_empty() => {
                    let (slot, number) = flying.swap_remove(at % flying.len());
                    ended.extend(reply(&mut client, slot, now_ms, &[says(number, status)]));
                }
                Event::Disconnect(slot, sent) => {
                    if !sent {
                        client.turn_away(slot, now_ms);
                    }
                    client.on_disconnect(slot, now_ms, sent);
                    flying.retain(|one| one.0 != slot);
                }
                Event::Routes(seed) => {
                    let slots: Vec<_> =
                        (0..PARTITIONS).map(|one| i32::from((seed >> one) & 3) - 1).collect();
                    let backups = |one| if seed & 1 == 0 { vec![] } else { vec![one as u16 % 3] };
                    let backups: Vec<_> = (0..PARTITIONS).map(backups).collect();
                    client.set_backups(&backups).unwrap();
                    client.set_routes(now_ms, &slots).unwrap();
                }
                Event::Cancel(at) if !open.is_empty() => {
                    let number = *open.keys().nth(at % open.len()).unwrap();
                    prop_assert_eq!(client.cancel(number), open.remove(&number));
                }
                Event::Later(ms) => {
                    now_ms += ms;
                    ended.extend(expire(&mut client, now_ms));
                }
                Event::Answer(..) | Event::Cancel(_) => {}
            }
            check(&client);
            for (waiter, status, _, _, number) in ended.drain(..) {
                prop_assert_eq!(open.remove(&number), Some(waiter));
                if status == status::UNKNOWN {
                    unknown.push(number);
                }
            }
            let live = client.window.iter().filter(|one| one.waiter.is_some()).count();
            prop_assert_eq!(live, open.len());
        }
        // The first call starts the time of what was queued last.
        let mut last = expire(&mut client, now_ms);
        now_ms += 2000;
        last.extend(expire(&mut client, now_ms));
        for told in last {
            prop_assert_eq!(open.remove(&told.4), Some(told.0));
            if told.1 == status::UNKNOWN {
                unknown.push(told.4);
            }
        }
        prop_assert!(open.is_empty());
        prop_assert_eq!(client.open(), unknown.len());
        for number in unknown {
            prop_assert!(client.release(number));
        }
        take(&mut client, now_ms);
        prop_assert_eq!(client.buffers.bytes(), 0);
        prop_assert_eq!(client.next_event_ms(), None);
        put(&mut client, b"k", 0);
        client.set_routes(9, &[0; PARTITIONS as usize]).unwrap();
        let frames = take(&mut client, now_ms);
        let seen = numbers(&frames[0].1);
        prop_assert_eq!(seen[0].0, seen[0].1);
    }
}
