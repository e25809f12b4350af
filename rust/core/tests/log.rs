//! The log against a plain list: order, cuts, cursors, trimming, and the budget.

use std::collections::BTreeMap;

use proptest::prelude::*;
use spacegrid_core::log::{ENTRY_OVERHEAD_BYTES, Log};
use spacegrid_core::record::{Position, RecordBytes};
use spacegrid_core::store::Quota;

fn record(size: usize) -> RecordBytes {
    vec![7; size].into()
}

#[derive(Debug, Clone)]
enum Step {
    Append { epochs: u32, size: usize },
    Cut { back: u64 },
    Cursor { name: u8, at: u64 },
    Remove { name: u8 },
    Trim { upto: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u32..2, 0usize..50).prop_map(|(epochs, size)| Step::Append { epochs, size }),
        1 => (0u64..6).prop_map(|back| Step::Cut { back }),
        1 => (0u8..3, 0u64..40).prop_map(|(name, at)| Step::Cursor { name, at }),
        1 => (0u8..3).prop_map(|name| Step::Remove { name }),
        1 => (0u64..40).prop_map(|upto| Step::Trim { upto }),
    ]
}

proptest! {
    #[test]
    fn the_log_is_a_list_with_a_base(steps in prop::collection::vec(step(), 0..120)) {
        let budget = Quota::new(0);
        let mut log = Log::with_budget(Position::new(1, 10), budget.clone());
        let (mut base, mut list) = (Position::new(1, 10), Vec::<(Position, usize)>::new());
        let mut cursors = BTreeMap::<u8, u64>::new();
        for step in steps {
            let last = list.last().map_or(base, |(position, _)| *position);
            match step {
                Step::Append { epochs, size } => {
                    let position = Position::new(last.epoch + epochs, last.sequence + 1);
                    log.append(position, record(size)).unwrap();
                    list.push((position, size));
                }
                Step::Cut { back } => {
                    let after = last.sequence.saturating_sub(back);
                    let before = list.len();
                    list.retain(|(position, _)| position.sequence <= after);
                    prop_assert_eq!(log.cut_after(after), before - list.len());
                    for at in cursors.values_mut() {
                        *at = (*at).min(after.max(base.sequence));
                    }
                }
                Step::Cursor { name, at } => {
                    let inside = (base.sequence..=last.sequence).contains(&at);
                    prop_assert_eq!(log.set_cursor(&name.to_string(), at), inside);
                    if inside {
                        cursors.insert(name, at);
                    }
                }
                Step::Remove { name } => {
                    prop_assert_eq!(log.remove_cursor(&name.to_string()), cursors.remove(&name));
                }
                Step::Trim { upto } => {
                    let upto = cursors.values().copied().min().unwrap_or(upto).min(upto);
                    let gone = list.iter().filter(|(p, _)| p.sequence <= upto).count();
                    base = gone.checked_sub(1).map_or(base, |index| list[index].0);
                    list.drain(..gone);
                    prop_assert_eq!(log.trim(upto), gone);
                }
            }
            prop_assert_eq!((log.base(), log.len()), (base, list.len()));
            prop_assert_eq!(log.last(), list.last().map_or(base, |(position, _)| *position));
            let bytes: usize = list.iter().map(|(_, size)| size + ENTRY_OVERHEAD_BYTES).sum();
            prop_assert_eq!((log.bytes(), budget.used()), (bytes, bytes as u64));
            for name in 0..3u8 {
                prop_assert_eq!(log.cursor(&name.to_string()), cursors.get(&name).copied());
            }
            for from in base.sequence.saturating_sub(2)..base.sequence + 8 {
                let expected: Vec<Position> =
                    list.iter().map(|(p, _)| *p).filter(|p| p.sequence >= from).collect();
                let found: Vec<Position> = log.iter_from(from).map(|e| e.position).collect();
                prop_assert_eq!(&found, &expected);
                let get = log.get(from).map(|entry| entry.position);
                prop_assert_eq!(get, expected.first().copied().filter(|p| p.sequence == from));
            }
        }
        drop(log);
        prop_assert_eq!(budget.used(), 0);
    }
}

#[test]
fn only_the_next_record_is_appended() {
    let mut log = Log::new(Position::new(2, 5));
    for (epoch, sequence) in [(2, 5), (2, 7), (1, 6), (2, 0)] {
        let refused = log.append(Position::new(epoch, sequence), record(1)).unwrap_err();
        assert_eq!(refused.code(), "not_next");
    }
    log.append(Position::new(2, 6), record(1)).unwrap();
    log.append(Position::new(4, 7), record(1)).unwrap();
    assert_eq!(log.append(Position::new(3, 8), record(1)).unwrap_err().code(), "not_next");
}

#[test]
fn positions_are_told_apart_by_epoch() {
    let mut log = Log::new(Position::new(2, 5));
    log.append(Position::new(2, 6), record(1)).unwrap();
    for (epoch, sequence, known) in
        [(2, 5, true), (1, 5, false), (2, 6, true), (3, 6, false), (2, 7, false)]
    {
        assert_eq!(log.contains(Position::new(epoch, sequence)), known, "({epoch}, {sequence})");
    }
    assert_eq!(log.position_of(5), Some(Position::new(2, 5)));
    assert_eq!(log.position_of(6), Some(Position::new(2, 6)));
    assert_eq!((log.position_of(4), log.position_of(7)), (None, None));
}

#[test]
fn a_reader_behind_pins_the_log_and_a_lost_one_learns_it() {
    let mut log = Log::new(Position::ZERO);
    (1..=10).for_each(|sequence| log.append(Position::new(0, sequence), record(1)).unwrap());
    assert!(log.set_cursor("shared", 4) && log.set_cursor("local", 8));
    assert_eq!((log.trim(10), log.base().sequence), (4, 4));
    assert!(!log.set_cursor("shared", 3), "what it needs next is gone");
    assert!(!log.set_cursor("shared", 11), "past the end");
    assert_eq!(log.cursor("shared"), Some(4), "a refused move changes nothing");
    log.remove_cursor("shared");
    assert_eq!((log.trim(10), log.base().sequence), (4, 8));
    log.reset(Position::new(3, 40));
    assert_eq!(
        (log.last(), log.len(), log.bytes(), log.cursor("local")),
        (Position::new(3, 40), 0, 0, None)
    );
}
