//! Passing the primary role among the holders of partitions.
//!
//! A change of role moves no data. Whole numbers always work out: giving every holder of a
//! partition an equal part of its primary gives every node its copies divided by the copies of a
//! partition, and where parts balance, whole roles rounded down or up do too. They are found by the
//! shortest chains of hand-overs. Callers: `assign`.

/// Passes the primary role among the holders until every node has its part, with few changes.
pub(super) fn balance(holders: &mut [Vec<u32>], node_count: usize) {
    let mut held: Vec<Vec<usize>> = vec![Vec::new(); node_count];
    let mut counts = vec![0usize; node_count];
    for (partition, nodes) in holders.iter().enumerate() {
        for &node in nodes {
            held[node as usize].push(partition);
        }
        if let Some(&primary) = nodes.first() {
            counts[primary as usize] += 1;
        }
    }
    let copies = holders.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let low: Vec<usize> = held.iter().map(|partitions| partitions.len() / copies).collect();
    let high: Vec<usize> =
        held.iter().map(|partitions| partitions.len().div_ceil(copies)).collect();
    for node in 0..node_count {
        while counts[node] > high[node] {
            let chain = pass(holders, &held, node, |other| counts[other] < low[other])
                .or_else(|| pass(holders, &held, node, |other| counts[other] < high[other]));
            let Some(end) = chain else { break };
            counts[node] -= 1;
            counts[end] += 1;
        }
    }
    for node in 0..node_count {
        while counts[node] < low[node] {
            let Some(start) = take(holders, &held, node, |other| counts[other] > low[other]) else {
                break;
            };
            counts[start] -= 1;
            counts[node] += 1;
        }
    }
}

/// Passes one primary role from `start`, over as few nodes as possible, to a node that `wants` it.
fn pass(
    holders: &mut [Vec<u32>],
    held: &[Vec<usize>],
    start: usize,
    wants: impl Fn(usize) -> bool,
) -> Option<usize> {
    let edges = |holders: &[Vec<u32>], from: usize, visit: &mut dyn FnMut(usize, usize)| {
        for &partition in held[from].iter().filter(|p| holders[**p][0] as usize == from) {
            holders[partition][1..].iter().for_each(|&to| visit(partition, to as usize));
        }
    };
    let (end, chain) = search(holders, held.len(), start, edges, wants)?;
    for (partition, from, to) in chain {
        hand_over(&mut holders[partition], from, to);
    }
    Some(end)
}

/// Passes one primary role to `start`, over as few nodes as possible, from a node that can `spare`
/// it.
fn take(
    holders: &mut [Vec<u32>],
    held: &[Vec<usize>],
    start: usize,
    spares: impl Fn(usize) -> bool,
) -> Option<usize> {
    let edges = |holders: &[Vec<u32>], to: usize, visit: &mut dyn FnMut(usize, usize)| {
        for &partition in &held[to] {
            let primary = holders[partition][0] as usize;
            if primary != to {
                visit(partition, primary);
            }
        }
    };
    let (end, chain) = search(holders, held.len(), start, edges, spares)?;
    for (partition, to, from) in chain {
        hand_over(&mut holders[partition], from, to);
    }
    Some(end)
}

/// One step of a search: the partition whose role is passed, and the nodes it leads from and to.
type Step = (usize, usize, usize);

/// Breadth first from `start` along `edges` to the first node that is a `goal`: it and the steps.
fn search(
    holders: &[Vec<u32>],
    node_count: usize,
    start: usize,
    edges: impl Fn(&[Vec<u32>], usize, &mut dyn FnMut(usize, usize)),
    goal: impl Fn(usize) -> bool,
) -> Option<(usize, Vec<Step>)> {
    let mut came_by: Vec<Option<(usize, usize)>> = vec![None; node_count];
    let mut queue = vec![start];
    let mut next = 0;
    while let Some(&at) = queue.get(next) {
        next += 1;
        if at != start && goal(at) {
            let (mut chain, mut to) = (Vec::new(), at);
            while let Some((partition, from)) = came_by[to].filter(|_| to != start) {
                chain.push((partition, from, to));
                to = from;
            }
            return Some((at, chain));
        }
        edges(holders, at, &mut |partition, to| {
            if to != start && came_by[to].is_none() {
                came_by[to] = Some((partition, at));
                queue.push(to);
            }
        });
    }
    None
}

fn hand_over(holders: &mut [u32], from: usize, to: usize) {
    debug_assert_eq!(holders[0] as usize, from);
    if let Some(place) = holders.iter().position(|&holder| holder as usize == to) {
        holders.swap(0, place);
    }
}
