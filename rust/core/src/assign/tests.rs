//! Balance, movement and zones of assignments.

use super::*;
use proptest::prelude::*;

fn names(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("node-{index}")).collect()
}

fn members(names: &[String]) -> Vec<Member<'_>> {
    names.iter().map(|name| Member { name, weight: 1.0, zone: None }).collect()
}

fn back(assigned: &[Vec<u32>]) -> Vec<Vec<i64>> {
    assigned.iter().map(|nodes| nodes.iter().map(|node| i64::from(*node)).collect()).collect()
}

/// Copies that are on a node that did not hold them before.
fn moved(before: &[Vec<i64>], after: &[Vec<u32>]) -> usize {
    let fresh =
        |(b, a): (&Vec<i64>, &Vec<u32>)| a.iter().filter(|n| !b.contains(&i64::from(**n))).count();
    before.iter().zip(after).map(fresh).sum()
}

fn counts(assigned: &[Vec<u32>], node_count: usize) -> (Vec<usize>, Vec<usize>) {
    let (mut primaries, mut copies) = (vec![0; node_count], vec![0; node_count]);
    for nodes in assigned {
        primaries[nodes[0] as usize] += 1;
        for node in nodes {
            copies[*node as usize] += 1;
        }
        assert_eq!(nodes.iter().collect::<BTreeSet<_>>().len(), nodes.len(), "distinct nodes");
    }
    (primaries, copies)
}

/// No count is further than rounding from the mean, so this is the best any assignment can do.
fn assert_even(counts: &[usize], total: usize) {
    let (low, high) = (total / counts.len(), total.div_ceil(counts.len()));
    assert!(
        counts.iter().all(|c| (low..=high).contains(c)),
        "{counts:?} not within {low}..={high}"
    );
}

/// At most 1.05 times the mean, or the mean rounded up where that is more.
fn assert_near_even(counts: &[usize], total: usize) {
    let high = total.div_ceil(counts.len()).max(total * 105 / 100 / counts.len());
    assert!(counts.iter().all(|count| *count <= high), "{counts:?} above {high} for {total}");
}

#[test]
fn first_placements_are_even_for_every_size() {
    for (partitions, sizes) in
        [(1024u32, vec![1, 2, 3, 4, 5, 7, 10, 16, 33, 50]), (4096, vec![64, 100])]
    {
        for nodes in sizes {
            for copies in [1, 2, 3] {
                let names = names(nodes);
                let assigned = assign(partitions, copies, &members(&names), None).unwrap();
                let copies = copies.min(nodes);
                assert!(assigned.iter().all(|holders| holders.len() == copies));
                let (primaries, held) = counts(&assigned, nodes);
                assert_even(&held, partitions as usize * copies);
                assert_near_even(&primaries, partitions as usize);
            }
        }
    }
}

#[test]
fn joining_and_leaving_move_what_they_must_and_stay_even() {
    for (partitions, copies, sizes) in
        [(1024u32, 2usize, 2..20usize), (1024, 3, 4..12), (4096, 2, 97..100)]
    {
        let all = names(sizes.end);
        let mut assigned = assign(partitions, copies, &members(&all[..sizes.start]), None).unwrap();
        let total = partitions as usize * copies;
        for nodes in sizes.clone().skip(1).chain([sizes.end]) {
            let before = back(&assigned);
            assigned = assign(partitions, copies, &members(&all[..nodes]), Some(&before)).unwrap();
            let moves = moved(&before, &assigned);
            assert!(
                moves as f64 <= total as f64 / nodes as f64 * 1.02 + 1.0,
                "{nodes}: {moves} moved"
            );
            let (primaries, held) = counts(&assigned, nodes);
            assert_even(&held, total);
            assert_near_even(&primaries, partitions as usize);
        }
        for nodes in sizes.rev() {
            let gone = i64::try_from(nodes).unwrap();
            let mut before = back(&assigned);
            let lost = before.iter().flatten().filter(|node| **node == gone).count();
            before.iter_mut().flatten().filter(|node| **node == gone).for_each(|node| *node = -1);
            assigned = assign(partitions, copies, &members(&all[..nodes]), Some(&before)).unwrap();
            let moves = moved(&before, &assigned);
            assert!(
                moves as f64 <= lost as f64 * 1.02 + 1.0,
                "{nodes}: {moves} moved for {lost} lost"
            );
            let (primaries, held) = counts(&assigned, nodes);
            assert_even(&held, total);
            assert_near_even(&primaries, partitions as usize);
        }
    }
}

#[test]
fn an_even_assignment_is_left_alone() {
    let names = names(7);
    let first = assign(1024, 2, &members(&names), None).unwrap();
    assert_eq!(assign(1024, 2, &members(&names), Some(&back(&first))).unwrap(), first);
    assert_eq!(
        assign(1024, 2, &members(&names), None).unwrap(),
        first,
        "the same arguments, the same answer"
    );
}

#[test]
fn a_surviving_backup_becomes_primary_where_the_primary_is_gone() {
    let names = names(5);
    let mut before = back(&assign(1024, 2, &members(&names), None).unwrap());
    before.iter_mut().flatten().filter(|node| **node == 4).for_each(|node| *node = -1);
    let after = assign(1024, 2, &members(&names[..4]), Some(&before)).unwrap();
    let kept =
        before.iter().zip(&after).filter(|(b, a)| b[0] == -1 && b[1] == i64::from(a[0])).count();
    let orphans = before.iter().filter(|holders| holders[0] == -1).count();
    assert!(kept * 10 >= orphans * 6, "{kept} of {orphans}");
}

#[test]
fn fewer_copies_keep_the_primaries() {
    let names = names(6);
    let before = assign(1024, 3, &members(&names), None).unwrap();
    let after = assign(1024, 1, &members(&names), Some(&back(&before))).unwrap();
    let same = before.iter().zip(&after).filter(|(b, a)| b[0] == a[0]).count();
    assert!(same > 1000, "{same}");
    assert_even(&counts(&after, 6).1, 1024);
}

#[test]
fn weights_give_their_share() {
    let names = names(4);
    let mut nodes = members(&names);
    nodes[0].weight = 3.0;
    let (_, held) = counts(&assign(1200, 1, &nodes, None).unwrap(), 4);
    assert_eq!(held, [600, 200, 200, 200]);
    let (_, held) = counts(&assign(1200, 2, &nodes, None).unwrap(), 4);
    assert_eq!(held, [1200, 400, 400, 400], "no node holds a partition twice");
}

#[test]
fn copies_are_in_distinct_zones_when_there_are_enough() {
    let names = names(9);
    let mut nodes = members(&names);
    for (index, node) in nodes.iter_mut().enumerate() {
        node.zone = Some(["a", "b", "c"][index % 3]);
    }
    let assigned = assign(1024, 3, &nodes, None).unwrap();
    for holders in &assigned {
        assert_eq!(holders.iter().map(|node| node % 3).collect::<BTreeSet<_>>().len(), 3);
    }
    assert_even(&counts(&assigned, 9).1, 3 * 1024);
    // One zone with a single node: it must hold a copy of everything, and does.
    let zones = ["a", "b", "b", "b", "b"];
    let mut nodes = members(&names[..5]);
    nodes.iter_mut().zip(zones).for_each(|(node, zone)| node.zone = Some(zone));
    assert_eq!(counts(&assign(1024, 2, &nodes, None).unwrap(), 5).1, [1024, 256, 256, 256, 256]);
    // Fewer zones than copies: two and one.
    let assigned = assign(1024, 3, &nodes[..4], None).unwrap();
    assert!(assigned.iter().all(|holders| holders.contains(&0)));
}

#[test]
fn bad_arguments_are_named() {
    let names = names(2);
    let nodes = members(&names);
    assert_eq!(assign(0, 1, &nodes, None).unwrap_err().code(), "empty");
    assert_eq!(assign(8, 0, &nodes, None).unwrap_err().code(), "empty");
    assert_eq!(assign(8, 1, &[], None).unwrap_err().code(), "empty");
    assert_eq!(assign(70_000, 1, &nodes, None).unwrap_err().code(), "too_large");
    assert_eq!(assign(2, 1, &nodes, Some(&[vec![0]])).unwrap_err().code(), "invalid");
    assert_eq!(assign(1, 1, &nodes, Some(&[vec![2]])).unwrap_err().code(), "invalid");
    let twice = [nodes[0], nodes[0]];
    assert_eq!(assign(1, 1, &twice, None).unwrap_err().code(), "duplicate_node");
    let none = [Member { weight: 0.0, ..nodes[0] }];
    assert_eq!(assign(1, 1, &none, None).unwrap_err().code(), "bad_weight");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_current_state_becomes_a_whole_and_even_one(
        nodes in 1usize..9, copies in 1usize..5, zones in prop::collection::vec(0usize..4, 9),
        current in prop::collection::vec(prop::collection::vec(-1i64..9, 0..5), 64),
    ) {
        let names = names(nodes);
        let labels = ["a", "b", "c", "d"];
        let mut members = members(&names);
        for (member, zone) in members.iter_mut().zip(&zones) {
            member.zone = (*zone < 3).then_some(labels[*zone]);
        }
        let gone = |node: i64| if node.unsigned_abs() < nodes as u64 { node } else { -1 };
        let current: Vec<Vec<i64>> =
            current.into_iter().map(|c| c.into_iter().map(gone).collect()).collect();
        let assigned = assign(64, copies, &members, Some(&current)).unwrap();
        prop_assert!(assigned.iter().all(|holders| holders.len() == copies.min(nodes)));
        let (_, held) = counts(&assigned, nodes);
        if members.iter().all(|member| member.zone.is_none()) {
            assert_even(&held, 64 * copies.min(nodes));
        }
        prop_assert_eq!(&assign(64, copies, &members, Some(&back(&assigned))).unwrap(), &assigned);
    }
}
