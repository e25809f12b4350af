//! Whole clusters in one thread, from one seed: nodes, links, a controller, clients, a database.
//!
//! Goal: no acknowledged write is ever lost or applied twice, whatever crashes. Method: every step
//! (deliver one message, apply one table, tick, crash, reset a link, ask, pump) is drawn from the
//! seed; links keep their order and may be reset; tables and requests arrive late. Each key has one
//! client that asks for one thing at a time, so the model knows exactly what a definite answer must
//! be; at the end everything is healed and compared. A failure names its seed.

mod sim;

use sim::{Options, Sim};
use spacegrid_core::frame::peer::{self, Message};
use spacegrid_core::frame::reply::status;
use spacegrid_core::frame::{ENVELOPE_BYTES, seal};
use spacegrid_core::replica::{ChangeKind, Role};

/// Run one seed; how many partitions a removed copy was completed for.
fn run(seed: u64, steps: usize, options: Options) -> u64 {
    let outcome = std::panic::catch_unwind(|| {
        let mut sim = Sim::new(seed, options);
        for _ in 0..steps {
            sim.step();
        }
        sim.heal();
        sim.compare();
        (sim.answered, sim.crashes, sim.turns_run, sim.recovered)
    });
    match outcome {
        Ok((answered, crashes, turns, recovered)) => {
            assert!(answered > 0 && (!options.crashes || crashes > 0) && turns > 0);
            recovered
        }
        Err(panic) => {
            eprintln!("seed {seed}, {options:?}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn nothing_is_lost_or_applied_twice_without_crashes() {
    for seed in 1..=5 {
        run(seed, 3000, Options { crashes: false, ..Options::default() });
    }
}

#[test]
fn nothing_is_lost_or_applied_twice_when_nodes_crash() {
    for seed in 100..110 {
        run(seed, 4000, Options::default());
    }
}

#[test]
fn the_shared_sink_equals_the_grid_after_crashes() {
    for seed in 200..210 {
        run(seed, 4000, Options { shared_sink: true, ..Options::default() });
    }
}

#[test]
fn healthy_primaries_are_handed_over_under_load() {
    for seed in 300..308 {
        run(seed, 4000, Options { handovers: true, ..Options::default() });
    }
}

#[test]
fn zombie_primaries_acknowledge_nothing() {
    for seed in 400..412 {
        run(seed, 4000, Options { suspicions: true, ..Options::default() });
    }
}

#[test]
fn everything_at_once() {
    for seed in 500..510 {
        let all = Options {
            crashes: true,
            handovers: true,
            shared_sink: true,
            suspicions: true,
            recoveries: true,
        };
        run(seed, 5000, all);
    }
}

#[test]
fn removed_copies_are_completed_from_tails_when_the_last_one_crashes() {
    let options = Options { recoveries: true, ..Options::default() };
    let recovered: u64 = (600..620).map(|seed| run(seed, 6000, options)).sum();
    assert!(recovered >= 40, "only {recovered} partitions were: the walk goes elsewhere");
}

#[test]
fn one_seed_is_one_run() {
    let trace = |seed| {
        let mut sim = Sim::new(seed, Options::default());
        (0..2000).for_each(|_| sim.step());
        sim.trace
    };
    assert_eq!(trace(7), trace(7));
    assert_ne!(trace(7), trace(8));
}

#[test]
fn a_write_is_acknowledged_only_after_the_backup_has_it() {
    let mut sim = Sim::new(1, Options::default());
    sim.settle();
    let primary = sim.primary_of(0);
    let key = sim.key_in(0);
    sim.ask_put(key, 5);
    sim.deliver_requests();
    sim.collect(primary);
    assert_eq!(sim.pending(key), Some(()), "no answer before the backup's");
    assert_eq!(sim.copies_with_last(0), 1);
    sim.settle();
    assert_eq!(sim.pending(key), None);
    assert_eq!(sim.copies_with_last(0), 2);
}

#[test]
fn a_read_of_an_uncommitted_key_waits_and_is_not_answered_when_deposed() {
    let mut sim = Sim::new(2, Options::default());
    sim.settle();
    let primary = sim.primary_of(0);
    let key = sim.key_in(0);
    sim.ask_put(key, 5);
    sim.deliver_requests();
    let read = sim.raw_read(primary, key);
    sim.collect(primary);
    assert_eq!(sim.raw_answer(read), None, "the value is not committed");
    sim.hand_table_without(primary, 0);
    sim.collect(primary);
    assert_eq!(sim.raw_answer(read), Some(status::NOT_PRIMARY));
    assert_eq!(sim.last_status(key), Some(status::UNKNOWN));
}

#[test]
fn logs_that_differ_are_cut_back_to_where_they_agree() {
    let mut sim = Sim::new(3, Options::default());
    sim.settle();
    let (primary, backup) = (sim.primary_of(0), sim.backup_of(0));
    let key = sim.key_in(0);
    sim.ask_put(key, 5);
    sim.deliver_requests();
    sim.collect(primary);
    sim.clear_link(primary, backup); // The record never reaches the backup,
    sim.promote(0, backup); // which becomes the primary; the old one stays as a copy.
    sim.settle();
    sim.compare();
    assert_eq!(sim.node(primary).partition(0).map(|p| p.role()), Some(Role::Backup));
}

#[test]
fn a_join_asks_for_tail_and_then_in_sync() {
    let mut sim = Sim::new(4, Options::default());
    sim.settle();
    for round in 0..40 {
        let key = sim.key_in(0);
        sim.ask_put(key, round);
        sim.settle();
    }
    let backup = sim.backup_of(0);
    sim.crash(backup);
    sim.settle();
    let kinds: Vec<_> = sim.accepted.iter().filter(|(p, _)| *p == 0).map(|(_, k)| *k).collect();
    assert_eq!(kinds, [ChangeKind::Tail, ChangeKind::InSync]);
    sim.compare();
}

/// Whether a frame holds a piece of a snapshot.
fn has_chunk(frame: &[u8]) -> bool {
    let messages = peer::decode(frame).expect("own frame");
    messages.iter().any(|(_, message)| matches!(message, Message::Chunk { .. }))
}

#[test]
fn below_min_in_sync_nothing_commits_until_a_tail_has_it() {
    let mut sim = Sim::new(5, Options::default());
    sim.settle();
    let (primary, backup) = (sim.primary_of(0), sim.backup_of(0));
    let key = sim.key_in(0);
    sim.put(key, 1);
    sim.ask_put(key, 2);
    sim.deliver_requests(); // Appended, and then the backup is gone.
    sim.crash(backup);
    // The join goes as far as tail, but no snapshot arrives.
    for _ in 0..5 {
        sim.round(|_, to, frame| {
            let tail = peer::decode(frame).expect("own frame").iter().any(|(header, message)| {
                header.partition == 0 && matches!(message, Message::Append { .. })
            });
            tail && to != primary
        });
        assert!(sim.entry(0).tails.is_empty());
        assert_eq!(sim.pending(key), Some(()), "one copy is not enough");
    }
    for _ in 0..60 {
        sim.round(|_, _, frame| has_chunk(frame));
    }
    assert_eq!((sim.entry(0).in_sync.len(), sim.entry(0).tails.len()), (1, 1));
    assert_eq!(sim.pending(key), None, "a tail counts for new records");
    // Now the tail must be waited for.
    sim.ask_put(key, 3);
    for _ in 0..20 {
        sim.round(|from, _, _| from == primary);
    }
    assert_eq!(sim.pending(key), Some(()));
    sim.settle();
    sim.compare();
}

#[test]
fn a_late_snapshot_chunk_resurrects_nothing() {
    let mut sim = Sim::new(6, Options::default());
    sim.settle();
    let backup = sim.backup_of(0);
    let key = sim.key_in(0);
    sim.put(key, 1);
    sim.crash(backup);
    let mut late = Vec::new();
    for _ in 0..60 {
        sim.round(|from, to, frame| {
            let chunk = has_chunk(frame);
            if chunk {
                late.push((from, to, frame.to_vec()));
            }
            chunk
        });
    }
    assert!(!late.is_empty() && sim.entry(0).tails.len() == 1);
    sim.ask_delete(key);
    for _ in 0..60 {
        sim.round(|_, _, frame| has_chunk(frame));
    }
    assert_eq!(sim.pending(key), None, "the tail has the delete");
    for (from, to, frame) in late {
        sim.node(to).on_peer_frame(from, &frame, 0).expect("own frame");
    }
    sim.settle();
    sim.compare();
}

#[test]
fn request_results_travel_with_the_snapshot() {
    let mut sim = Sim::new(7, Options::default());
    sim.settle();
    let key = sim.key_in(0);
    sim.put(key, 1);
    let victims = [sim.backup_of(0), sim.primary_of(0)];
    for victim in victims {
        sim.crash(victim);
        sim.settle();
    }
    // Both copies are new; the request is sent once more, as if its answer had been lost.
    let primary = sim.primary_of(0);
    let other = sim.repeat_last_put(primary, key, 2);
    sim.settle();
    assert_eq!(sim.raw_answer(other), Some(status::TOKEN_REUSED), "it is remembered");
    let again = sim.repeat_last_put(primary, key, 1);
    sim.settle();
    assert_eq!(sim.raw_answer(again), Some(status::OK));
    sim.compare();
}

#[test]
fn hostile_peer_bytes_change_nothing() {
    let mut sim = Sim::new(8, Options::default());
    sim.settle();
    let (primary, backup) = (sim.primary_of(0), sim.backup_of(0));
    let key = sim.key_in(0);
    sim.ask_put(key, 5);
    sim.deliver_requests();
    sim.collect(primary);
    let mut frames = Vec::new();
    sim.deliver_links(|from, to, frame| {
        frames.push((from, to, frame.to_vec()));
        true
    });
    let (_, _, frame) = frames.iter().find(|(_, to, _)| *to == backup).expect("an append");
    let before = sim.node(backup).partition(0).map(|p| p.log().last());
    for at in 0..frame.len() {
        assert!(sim.node(backup).on_peer_frame(primary, &frame[..at], 0).is_err());
        let mut flipped = frame.clone();
        flipped[at] ^= 1 << (at % 8);
        assert!(sim.node(backup).on_peer_frame(primary, &flipped, 0).is_err());
        // With a checksum that fits, it is decoded: still no panic, and nothing is committed.
        if at >= ENVELOPE_BYTES {
            seal(&mut flipped, peer::KIND_PEER, 1);
            let _ = sim.node(backup).on_peer_frame(99, &flipped, 0);
        }
    }
    assert_eq!(sim.node(backup).partition(0).map(|p| p.log().last()), before);
}
