//! The store against a map of maps: contents, order of scans, expiry, tombstones, memory, quota.

use std::collections::BTreeMap;

use proptest::prelude::*;
use spacegrid_core::hash::hash64;
use spacegrid_core::store::{Due, Quota, Store, entry_cost};

#[derive(Debug, Clone)]
enum Step {
    Put { map: u8, key: u8, size: usize, expires_at_ms: u64 },
    Newer { map: u8, key: u8, version: u64 },
    Delete { map: u8, key: u8, keep: bool },
    DropTombstones,
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    let expiry = prop_oneof![2 => Just(0u64), 1 => 1u64..20];
    prop_oneof![
        12 => (0u8..6, 0u8..40, 0usize..64, expiry)
            .prop_map(|(map, key, size, at)| Step::Put { map, key, size, expires_at_ms: at }),
        3 => (0u8..6, 0u8..40, 0u64..100)
            .prop_map(|(map, key, version)| Step::Newer { map, key, version }),
        6 => (0u8..6, 0u8..40, any::<bool>())
            .prop_map(|(map, key, keep)| Step::Delete { map, key, keep }),
        1 => Just(Step::DropTombstones),
        1 => Just(Step::Clear),
    ]
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    value: Vec<u8>,
    version: u64,
    expires_at_ms: u64,
    tombstone: bool,
}

fn entry(value: &[u8], version: u64, expires_at_ms: u64, tombstone: bool) -> Known {
    Known { value: value.to_vec(), version, expires_at_ms, tombstone }
}

type Model = BTreeMap<String, BTreeMap<(u64, Vec<u8>), Known>>;

fn place(key: u8) -> (u64, Vec<u8>) {
    let key = format!("key-{key}").into_bytes();
    (hash64(&key, 0), key)
}

fn compare(store: &Store, model: &Model) {
    assert_eq!(store.maps().collect::<Vec<_>>(), model.keys().collect::<Vec<_>>());
    let live =
        |entries: &BTreeMap<_, Known>| entries.values().filter(|known| !known.tombstone).count();
    assert_eq!(store.total_len(), model.values().map(live).sum::<usize>());
    let mut due = Vec::new();
    for (map, entries) in model {
        assert_eq!(store.len(map), live(entries));
        let keys = store.keys(map);
        assert_eq!(keys.len(), entries.len());
        for (index, ((_, key), known)) in entries.iter().enumerate() {
            assert_eq!(keys.get(index), Some(&key[..]));
            let entry = store.get(map, key).unwrap();
            let found = (entry.value, entry.version, entry.expires_at_ms, entry.tombstone);
            assert_eq!(
                found,
                (&known.value[..], known.version, known.expires_at_ms, known.tombstone)
            );
            if known.expires_at_ms != 0 {
                due.push((known.expires_at_ms, map.clone(), key.clone(), known.version));
            }
        }
        // Pages of any size give the whole map in order.
        for limit in [1, 3, 1000] {
            let (mut seen, mut after) = (Vec::new(), None::<(u64, Vec<u8>)>);
            loop {
                let page =
                    store.scan(map, after.as_ref().map(|(hash, key)| (*hash, &key[..])), limit);
                let Some(last) = page.last() else { break };
                after = Some((last.hash, last.key.to_vec()));
                seen.extend(page.iter().map(|item| (item.hash, item.key.to_vec())));
            }
            assert!(seen.iter().eq(entries.keys()), "scan in pages of {limit}");
        }
    }
    due.sort();
    assert_eq!(store.next_due_ms(), due.first().map(|first| first.0));
    let mut found: Vec<_> = store.due(9, usize::MAX).into_iter().map(owned).collect();
    found.sort();
    due.retain(|(expires_at_ms, ..)| *expires_at_ms <= 9);
    assert_eq!(found, due);
}

fn owned(due: Due<'_>) -> (u64, String, Vec<u8>, u64) {
    (due.expires_at_ms, due.map.to_owned(), due.key.to_vec(), due.version)
}

proptest! {
    #[test]
    fn the_store_is_a_map_of_maps(seed: u64, steps in prop::collection::vec(step(), 0..200)) {
        let quota = Quota::new(0);
        let mut store = Store::new(seed, quota.clone());
        let mut model = Model::new();
        for (version, step) in (1u64..).zip(steps) {
            match step {
                Step::Put { map, key, size, expires_at_ms } => {
                    let (map, place) = (format!("map-{map}"), place(key));
                    let value = vec![size as u8; size];
                    store.put(&map, 0, &place.1, &value, 1, version, expires_at_ms);
                    let known = entry(&value, version, expires_at_ms, false);
                    model.entry(map).or_default().insert(place, known);
                }
                Step::Newer { map, key, version } => {
                    let (map, place) = (format!("map-{map}"), place(key));
                    let older = model.get(&map).and_then(|entries| entries.get(&place));
                    let newer = older.is_none_or(|known| known.version < version);
                    let wrote = store.put_if_newer(&map, 0, &place.1, b"new", 0, version, 0);
                    prop_assert_eq!(wrote, newer);
                    if newer {
                        let known = entry(b"new", version, 0, false);
                        model.entry(map).or_default().insert(place, known);
                    }
                }
                Step::Delete { map, key, keep } => {
                    let (map, place) = (format!("map-{map}"), place(key));
                    let known = entry(b"", version, 0, true);
                    let before = if keep {
                        model.entry(map.clone()).or_default().insert(place.clone(), known)
                    } else {
                        model.get_mut(&map).and_then(|entries| entries.remove(&place))
                    };
                    let had = before.is_some_and(|known| !known.tombstone);
                    prop_assert_eq!(store.delete(&map, &place.1, version, keep), had);
                }
                Step::DropTombstones => {
                    store.drop_tombstones();
                    for entries in model.values_mut() {
                        entries.retain(|_, known| !known.tombstone);
                    }
                }
                Step::Clear => {
                    store.clear();
                    model.clear();
                    prop_assert_eq!(store.bytes(), 0);
                }
            }
            prop_assert_eq!(store.bytes() as u64, quota.used());
        }
        compare(&store, &model);
        // What is counted is what the entries take: emptied, nothing of it is left but the slots.
        for (map, entries) in &model {
            for (_, key) in entries.keys() {
                store.delete(map, key, 1000, false);
            }
        }
        prop_assert!(store.is_empty() && store.next_due_ms().is_none());
        prop_assert!(store.bytes() <= 6 * 1024, "{} bytes in empty tables", store.bytes());
        drop(store);
        prop_assert_eq!(quota.used(), 0);
    }
}

#[test]
fn schemas_are_registered_by_first_use() {
    let mut store = Store::new(1, Quota::new(0));
    assert_eq!(store.schema("orders"), None);
    store.put("orders", 0, b"k", b"v", 0, 1, 0);
    assert_eq!(store.schema("orders"), Some(0));
    store.check_schema("orders", 7).unwrap();
    store.put("orders", 7, b"k", b"v", 0, 2, 0);
    assert_eq!(store.schema("orders"), Some(7));
    store.check_schema("orders", 0).unwrap();
    assert_eq!(
        store.check_schema("orders", 8).unwrap_err().to_string(),
        "map \"orders\" has schema 0x00000007, not 0x00000008"
    );
}

#[test]
fn the_quota_is_shared_and_asked_before() {
    let quota = Quota::new(1000);
    let (mut one, mut other) = (Store::new(1, quota.clone()), Store::new(2, quota.clone()));
    one.put("m", 0, b"key", &[0; 300], 0, 1, 0);
    other.put("m", 0, b"key", &[0; 300], 0, 1, 0);
    assert_eq!(quota.used(), (one.bytes() + other.bytes()) as u64);
    quota.admit(100).unwrap();
    let refused = quota.admit(entry_cost(3, 300, false) as u64).unwrap_err();
    assert_eq!(refused.code(), "memory_full");
    one.put("m", 0, b"key", b"", 0, 2, 0);
    quota.admit(entry_cost(3, 300, false) as u64).unwrap();
    quota.set_limit(0);
    quota.admit(u64::MAX).unwrap();
}

#[test]
fn memory_follows_the_entries_down() {
    let mut store = Store::new(3, Quota::new(0));
    for number in 0..20_000u32 {
        store.put("m", 0, &number.to_le_bytes(), &[0; 50], 0, 1, u64::from(number));
    }
    let full = store.bytes();
    for number in 0..19_900u32 {
        store.delete("m", &number.to_le_bytes(), 2, false);
    }
    assert!(store.bytes() * 50 < full, "{} of {full} bytes left for 100 of 20,000", store.bytes());
    assert_eq!(store.due(u64::MAX, 3).len(), 3);
}

#[test]
fn an_entry_costs_at_most_fifty_bytes_beyond_key_and_value() {
    // 40 of the 1,024 partitions of a million entries, 16-byte keys and 100-byte values.
    let quota = Quota::new(0);
    let mut stores: Vec<Store> = (0..40).map(|seed| Store::new(seed, quota.clone())).collect();
    let mut count = 0u64;
    for number in 0..1_000_000u64 {
        let key = format!("customer:{number:07}");
        let partition = hash64(key.as_bytes(), 0) % 1024;
        if let Some(store) = stores.get_mut(partition as usize) {
            store.put("customers", 0, key.as_bytes(), &[1; 100], 1, 1, 0);
            count += 1;
        }
    }
    let overhead = quota.used() as f64 / count as f64 - 116.0;
    println!("{overhead:.1} bytes beyond key and value per entry ({count} entries)");
    assert!((30.0..50.0).contains(&overhead), "{overhead:.1} bytes an entry");
}
