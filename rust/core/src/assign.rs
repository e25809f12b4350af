//! Which nodes hold which partition: balanced to the last copy, with the fewest moves.
//!
//! Every node has a *quota* of copies, its share by weight rounded down or up, so the fullest node
//! has at most one copy more than its share. The first placement walks the hash ring from each
//! partition's point and takes the first nodes that still have room (bounded load). Later
//! placements keep what is there, give what a leaving node had to nodes below their quota, and move
//! copies only from nodes above it; a node holding one copy more than its rounded-down share is
//! the first to keep it. Where the quotas leave no direct move, a chain of moves is searched. Then
//! the primary role is passed among the holders of each partition until every node's number of
//! primaries is its number of copies divided by the copies of a partition, rounded down or up.
//! Copies of a partition are on distinct nodes, and in distinct zones as far as there are any.
//!
//! A function of its arguments: the same ones give the same answer everywhere. Callers: the
//! controller.

mod primaries;

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{CoreError, Result};
use crate::hash::hash64;
use crate::limits::{NODES_MAX, PARTITIONS_MAX, VIRTUAL_NODES_DEFAULT, check_name, check_size};
use crate::ring::{Ring, check_weight};

/// A remainder below this is the rounding of floating point, not a part of a copy.
const ROUNDING: f64 = 1e-6;

/// A node that can hold copies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Member<'a> {
    /// Its name; the ring placement depends on it.
    pub name: &'a str,
    /// Its share of the copies relative to the others.
    pub weight: f64,
    /// What fails together; nodes without a zone fail alone.
    pub zone: Option<&'a str>,
}

/// Assigns partitions to nodes.
///
/// `current` lists the holders of each partition as indexes into `nodes`, primary first; a negative
/// index is a node that is gone. Returns the same form: `min(copies, nodes)` holders each.
/// Cost: milliseconds for 4,096 partitions on 100 nodes.
pub fn assign(
    partition_count: u32,
    copies: usize,
    nodes: &[Member<'_>],
    current: Option<&[Vec<i64>]>,
) -> Result<Vec<Vec<u32>>> {
    check(partition_count, copies, nodes)?;
    let mut plan = Plan::new(partition_count as usize, copies.min(nodes.len()), nodes);
    if let Some(current) = current {
        plan.keep(current)?;
    }
    plan.set_quotas(nodes);
    plan.drop_extra_copies();
    plan.fill_open_places(nodes)?;
    plan.balance();
    let mut holders = plan.holders;
    primaries::balance(&mut holders, nodes.len());
    Ok(holders)
}

fn check(partition_count: u32, copies: usize, nodes: &[Member<'_>]) -> Result<()> {
    if partition_count == 0 {
        return Err(CoreError::Empty { what: "the number of partitions" });
    }
    if copies == 0 {
        return Err(CoreError::Empty { what: "the number of copies" });
    }
    if nodes.is_empty() {
        return Err(CoreError::Empty { what: "the list of nodes" });
    }
    check_size("the number of partitions", partition_count as usize, PARTITIONS_MAX as usize)?;
    check_size("the number of nodes", nodes.len(), NODES_MAX)?;
    let mut names = BTreeSet::new();
    for node in nodes {
        check_name(node.name)?;
        check_weight(node.name, node.weight)?;
        if !names.insert(node.name) {
            return Err(CoreError::DuplicateNode { name: node.name.to_owned() });
        }
    }
    Ok(())
}

/// Copies on nodes, while they are being placed.
struct Plan {
    /// Per partition, the nodes that hold it; the primary first.
    holders: Vec<Vec<u32>>,
    copies: usize,
    /// Per node: its zone, the copies it holds, the copies it shall hold.
    zones: Vec<u32>,
    counts: Vec<u32>,
    quotas: Vec<u32>,
    /// Most copies of a partition in one zone.
    zone_limit: usize,
}

impl Plan {
    fn new(partition_count: usize, copies: usize, nodes: &[Member<'_>]) -> Self {
        let mut known = BTreeMap::new();
        let mut sizes: Vec<usize> = Vec::new();
        let mut zones = Vec::with_capacity(nodes.len());
        for node in nodes {
            let fresh = sizes.len() as u32;
            let zone = node.zone.map_or(fresh, |name| *known.entry(name).or_insert(fresh));
            if zone == fresh {
                sizes.push(0);
            }
            sizes[zone as usize] += 1;
            zones.push(zone);
        }
        // As few copies of a partition in one zone as still lets all copies find a place.
        let room = |limit: usize| sizes.iter().map(|size| limit.min(*size)).sum::<usize>();
        let mut zone_limit = 1;
        while room(zone_limit) < copies {
            zone_limit += 1;
        }
        let counts = vec![0; nodes.len()];
        let quotas = counts.clone();
        Self {
            holders: vec![Vec::new(); partition_count],
            copies,
            zones,
            counts,
            quotas,
            zone_limit,
        }
    }

    /// Takes over what is there, except on nodes that are gone and where zones forbid it.
    fn keep(&mut self, current: &[Vec<i64>]) -> Result<()> {
        if current.len() != self.holders.len() {
            let (what, value) = ("the number of current partitions", current.len() as u64);
            return Err(CoreError::Invalid { what, value });
        }
        for (partition, holders) in current.iter().enumerate() {
            for &holder in holders.iter().filter(|holder| **holder >= 0) {
                if holder.unsigned_abs() >= self.counts.len() as u64 {
                    let (what, value) = ("a current holder's index", holder.unsigned_abs());
                    return Err(CoreError::Invalid { what, value });
                }
                let node = holder.unsigned_abs() as u32;
                if self.fits(partition, node, None) {
                    self.add(partition, node);
                }
            }
        }
        Ok(())
    }

    /// Can `node` hold the partition, once `without` does not any more?
    fn fits(&self, partition: usize, node: u32, without: Option<u32>) -> bool {
        let zone = self.zones[node as usize];
        let mut in_zone = 0;
        for &holder in &self.holders[partition] {
            if holder == node {
                return false;
            }
            let counts = self.zones[holder as usize] == zone && Some(holder) != without;
            in_zone += usize::from(counts);
        }
        in_zone < self.zone_limit
    }

    fn add(&mut self, partition: usize, node: u32) {
        self.holders[partition].push(node);
        self.counts[node as usize] += 1;
    }

    fn remove(&mut self, partition: usize, node: u32) {
        self.holders[partition].retain(|holder| *holder != node);
        self.counts[node as usize] -= 1;
    }

    fn has_room(&self, node: u32) -> bool {
        self.counts[node as usize] < self.quotas[node as usize]
    }

    fn surplus(&self, node: u32) -> i64 {
        i64::from(self.counts[node as usize]) - i64::from(self.quotas[node as usize])
    }

    fn nodes(&self) -> std::ops::Range<u32> {
        0..self.counts.len() as u32
    }

    /// Rounds every node's share down, then up where copies are left over.
    fn set_quotas(&mut self, nodes: &[Member<'_>]) {
        let shares = self.shares(nodes);
        #[expect(clippy::cast_sign_loss, reason = "shares are not negative")]
        let floors: Vec<u32> = shares.iter().map(|share| (share + ROUNDING) as u32).collect();
        self.quotas.clone_from(&floors);
        let partitions = self.holders.len() as u32;
        let zone_cap = self.zone_limit as u32 * partitions;
        let mut zone_totals = vec![0; nodes.len()];
        for (node, floor) in floors.iter().enumerate() {
            zone_totals[self.zones[node] as usize] += floor;
        }
        let mut left = partitions * self.copies as u32 - floors.iter().sum::<u32>();
        let remainder = |node: usize| shares[node] - f64::from(floors[node]);
        let mut order: Vec<usize> = (0..nodes.len()).collect();
        order.sort_by(|&a, &b| {
            let holds =
                |node: usize| remainder(node) > ROUNDING && self.counts[node] > floors[node];
            holds(b).cmp(&holds(a)).then(remainder(b).total_cmp(&remainder(a))).then(a.cmp(&b))
        });
        while left > 0 {
            let before = left;
            for &node in &order {
                let zone_total = &mut zone_totals[self.zones[node] as usize];
                if left > 0 && self.quotas[node] < partitions && *zone_total < zone_cap {
                    self.quotas[node] += 1;
                    *zone_total += 1;
                    left -= 1;
                }
            }
            if left == before {
                return;
            }
        }
    }

    /// Every node's share in copies: by weight, no node above one of each partition, no zone above
    /// its limit; what those cannot take goes to the others.
    fn shares(&self, nodes: &[Member<'_>]) -> Vec<f64> {
        let cap = self.holders.len() as f64;
        let zone_cap = cap * self.zone_limit as f64;
        let zone_count = self.zones.iter().max().map_or(0, |zone| *zone as usize + 1);
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); zone_count];
        for (node, zone) in self.zones.iter().enumerate() {
            members[*zone as usize].push(node);
        }
        let taken = |zone: &[usize], level: f64| -> f64 {
            zone.iter().map(|&node| (nodes[node].weight * level).min(cap)).sum()
        };
        let target = cap * self.copies as f64;
        let level = level_for(target, |level| {
            members.iter().map(|zone| taken(zone, level).min(zone_cap)).sum()
        });
        let mut shares = vec![0.0; nodes.len()];
        for zone in &members {
            let full = taken(zone, level) > zone_cap;
            let level = if full { level_for(zone_cap, |level| taken(zone, level)) } else { level };
            for &node in zone {
                shares[node] = (nodes[node].weight * level).min(cap);
            }
        }
        shares
    }

    /// Fewer copies are asked for than there are: those on the fullest nodes go, never the primary.
    fn drop_extra_copies(&mut self) {
        for partition in 0..self.holders.len() {
            while self.holders[partition].len() > self.copies {
                let backups = &self.holders[partition][1..];
                let Some(&node) = backups.iter().max_by_key(|node| self.surplus(**node)) else {
                    break;
                };
                self.remove(partition, node);
            }
        }
    }

    /// Gives every partition its copies.
    fn fill_open_places(&mut self, nodes: &[Member<'_>]) -> Result<()> {
        if self.holders.iter().all(|holders| holders.len() == self.copies) {
            return Ok(());
        }
        let mut ring = Ring::new(VIRTUAL_NODES_DEFAULT)?;
        let pairs: Vec<(&str, f64)> = nodes.iter().map(|node| (node.name, node.weight)).collect();
        ring.add_nodes(&pairs)?;
        for partition in 0..self.holders.len() {
            let mut walk = ring.walk(hash64(&(partition as u64).to_le_bytes(), 0));
            while self.holders[partition].len() < self.copies {
                if let Some(node) =
                    walk.find(|&n| self.has_room(n) && self.fits(partition, n, None))
                {
                    self.add(partition, node);
                } else if !self.fill_by_chain(partition) && !self.fill_beyond_quota(partition) {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Makes room on a node that fits by moving one of its other copies on.
    fn fill_by_chain(&mut self, partition: usize) -> bool {
        let starts: Vec<u32> =
            self.nodes().filter(|&node| self.fits(partition, node, None)).collect();
        let Some(chain) = self.chain_from(&starts) else { return false };
        let first = chain.first().map_or(0, |(_, from, _)| *from);
        self.follow(&chain);
        self.add(partition, first);
        true
    }

    /// No quota leaves a place: the node least above its own takes the copy, zones last of all.
    fn fill_beyond_quota(&mut self, partition: usize) -> bool {
        let holders = &self.holders[partition];
        let others = self.nodes().filter(|node| !holders.contains(node));
        let Some(node) = others.min_by_key(|&n| (!self.fits(partition, n, None), self.surplus(n)))
        else {
            return false;
        };
        self.add(partition, node);
        true
    }

    /// Moves copies from nodes above their quota to nodes below it.
    fn balance(&mut self) {
        for node in self.nodes() {
            self.pull(node);
        }
        for node in self.nodes() {
            while self.surplus(node) > 0 {
                let Some(chain) = self.chain_from(&[node]) else { break };
                self.follow(&chain);
            }
        }
    }

    /// Takes copies over from nodes above their quota until `node` has its own, in an order of the
    /// partitions that is the node's own, so that what it takes is spread.
    fn pull(&mut self, node: u32) {
        if !self.has_room(node) {
            return;
        }
        let mut order: Vec<(u64, usize)> = (0..self.holders.len())
            .map(|p| (hash64(&(p as u64).to_le_bytes(), node + 1), p))
            .collect();
        order.sort_unstable();
        for (_, partition) in order {
            let givers = self.holders[partition]
                .iter()
                .copied()
                .filter(|&from| self.surplus(from) > 0 && self.fits(partition, node, Some(from)));
            if let Some(from) = givers.max_by_key(|&from| self.surplus(from)) {
                self.remove(partition, from);
                self.add(partition, node);
                if !self.has_room(node) {
                    return;
                }
            }
        }
    }

    /// The shortest chain of moves (partition, from, to) from one of `starts` to a node with room.
    fn chain_from(&self, starts: &[u32]) -> Option<Vec<(usize, u32, u32)>> {
        let mut came_by: Vec<Option<(usize, u32)>> = vec![None; self.counts.len()];
        let mut seen = vec![false; self.counts.len()];
        let mut queue: Vec<u32> = starts.to_vec();
        for &start in starts {
            seen[start as usize] = true;
        }
        let mut next = 0;
        while let Some(&from) = queue.get(next) {
            next += 1;
            for (partition, holders) in self.holders.iter().enumerate() {
                if !holders.contains(&from) {
                    continue;
                }
                for to in self.nodes() {
                    if seen[to as usize] || !self.fits(partition, to, Some(from)) {
                        continue;
                    }
                    seen[to as usize] = true;
                    came_by[to as usize] = Some((partition, from));
                    if self.has_room(to) {
                        return Some(trace(&came_by, to));
                    }
                    queue.push(to);
                }
            }
        }
        None
    }

    /// Makes the moves of a chain, the last one first, so that no node is above its quota between.
    fn follow(&mut self, chain: &[(usize, u32, u32)]) {
        for &(partition, from, to) in chain.iter().rev() {
            self.remove(partition, from);
            self.add(partition, to);
        }
    }
}

/// The chain of moves that led to `to`, from its beginning.
fn trace(came_by: &[Option<(usize, u32)>], mut to: u32) -> Vec<(usize, u32, u32)> {
    let mut chain = Vec::new();
    while let Some((partition, from)) = came_by[to as usize] {
        chain.push((partition, from, to));
        to = from;
    }
    chain.reverse();
    chain
}

/// The level at which `taken` reaches `target`; it grows with the level.
fn level_for(target: f64, taken: impl Fn(f64) -> f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while taken(high) < target - ROUNDING && high < 1e18 {
        high *= 2.0;
    }
    for _ in 0..100 {
        let middle = f64::midpoint(low, high);
        if taken(middle) < target {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

#[cfg(test)]
mod tests;
