//! Where stale reads go: the backups in turn, then the primary, and elsewhere when one is silent.

use super::*;

fn with_backups(backups: &[u16]) -> Client<u32> {
    let mut client = client();
    client.set_backups(&vec![backups.to_vec(); PARTITIONS as usize]).unwrap();
    client.set_routes(2, &[0; PARTITIONS as usize]).unwrap();
    client
}

fn stale(client: &mut Client<u32>) -> u64 {
    let age = 100u64.to_le_bytes();
    client.queue(&Request::new(Opcode::Get, 0, b"k", &age).stale(), 7, 1000).unwrap()
}

/// Slots of the frames that leave now.
fn slots(client: &mut Client<u32>, now_ms: u64) -> Vec<u16> {
    take(client, now_ms).into_iter().map(|(slot, _)| slot).collect()
}

#[test]
fn stale_reads_spread_over_the_backups_and_leave_the_primary_alone() {
    let mut client = with_backups(&[1, 2]);
    for _ in 0..10 {
        stale(&mut client);
    }
    get(&mut client, b"k", 1);
    let frames = take(&mut client, 0);
    let counts: Vec<_> = frames.iter().map(|(slot, frame)| (*slot, numbers(frame).len())).collect();
    assert_eq!(counts.iter().map(|(_, count)| count).sum::<usize>(), 11);
    for expected in [(0, 1), (1, 5), (2, 5)] {
        assert!(counts.contains(&expected), "{counts:?}");
    }
}

#[test]
fn a_refused_stale_read_asks_every_copy_in_turn_and_the_primary_last() {
    let mut client = with_backups(&[1, 2]);
    let number = stale(&mut client);
    let (mut now_ms, mut asked) = (0, Vec::new());
    for _ in 0..6 {
        let slot = slots(&mut client, now_ms)[0];
        asked.push(slot);
        assert!(reply(&mut client, slot, now_ms, &[says(number, status::TOO_STALE)]).is_empty());
        assert!(!client.wants_routes(), "the copy is the right one, only too old");
        now_ms += 100;
    }
    assert_eq!(asked[2], 0);
    assert_eq!([&asked[..3], &asked[..3]].concat(), asked);
    // At its deadline the error is what the copies said.
    assert_eq!(expire(&mut client, 5000)[0].3, u64::from(status::TOO_STALE));
}

#[test]
fn without_a_primary_stale_reads_go_on() {
    let mut client = with_backups(&[1]);
    client.set_routes(3, &[-1; PARTITIONS as usize]).unwrap();
    stale(&mut client);
    get(&mut client, b"k", 1);
    assert_eq!(slots(&mut client, 0), [1]);
}

#[test]
fn what_a_silent_node_owes_is_asked_elsewhere_unless_only_the_primary_may_answer() {
    let mut client = with_backups(&[1]);
    client.set_routes(3, &[1; PARTITIONS as usize]).unwrap();
    client.set_backups(&vec![vec![1]; PARTITIONS as usize]).unwrap();
    client.set_routes(4, &[0; PARTITIONS as usize]).unwrap();
    let number = stale(&mut client);
    put(&mut client, b"k", 1);
    assert_eq!(slots(&mut client, 0).len(), 2);
    client.turn_away(1, 400);
    client.turn_away(0, 400);
    let again = take(&mut client, 400);
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].0, numbers(&again[0].1)[0].0), (0, number));
    // Its late answer is no longer waited for.
    assert!(reply(&mut client, 1, 401, &[says(number, status::OK)]).is_empty());
    assert_eq!(reply(&mut client, 0, 401, &[says(number, status::OK)]).len(), 1);
}

#[test]
fn new_routes_take_back_queued_stale_reads_of_copies_that_are_no_more() {
    let mut client = with_backups(&[1]);
    stale(&mut client);
    client.set_backups(&vec![vec![2]; PARTITIONS as usize]).unwrap();
    client.set_routes(3, &[0; PARTITIONS as usize]).unwrap();
    assert_eq!(slots(&mut client, 0), [2]);
    assert!(client.set_backups(&[vec![1]]).is_err());
    assert!(client.set_backups(&vec![vec![65_535]; PARTITIONS as usize]).is_err());
}
