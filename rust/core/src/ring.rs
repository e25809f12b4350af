//! Consistent hashing with virtual nodes: which node for this key.
//!
//! Every node owns points on a circle of 64-bit hashes (150 for weight 1); a key belongs to the
//! node of the first point at or after its hash. A node that joins takes keys only for itself, one
//! that leaves gives up only its own. The points of a node depend on its name alone, so rings with
//! the same nodes agree, whatever order they were built in and whatever program built them: point
//! `i` of a node is murmur3 of its name with seed `i`; where two nodes share a point, the lesser
//! name has it. Lookup goes through a table on the top bits of the hash to the first point of its
//! stretch, and on average one step further. Callers: the public `HashRing`, `assign` for first
//! placements.

use crate::error::{CoreError, Result};
use crate::hash::hash64;
use crate::limits::{NODES_MAX, VIRTUAL_NODES_MAX, check_name, check_size};

/// Smallest weight of a node.
pub const WEIGHT_MIN: f64 = 0.001;
/// Largest weight of a node.
pub const WEIGHT_MAX: f64 = 1000.0;
/// Most points of one node, whatever its weight.
pub const NODE_POINTS_MAX: usize = 1_000_000;

#[derive(Debug, Clone)]
struct Node {
    name: Box<str>,
    weight: f64,
}

/// A hash ring. Nodes are known by name outside and by slot inside; a slot is free again when its
/// node leaves.
#[derive(Debug, Clone)]
pub struct Ring {
    virtual_nodes: u32,
    slots: Vec<Option<Node>>,
    /// Points in ascending order, and the slot that owns each.
    points: Vec<u64>,
    owners: Vec<u32>,
    /// `starts[top bits of a hash]` is the index of the first point with at least these top bits.
    starts: Vec<u32>,
    shift: u32,
}

impl Ring {
    /// An empty ring whose nodes of weight 1 get `virtual_nodes` points each.
    pub fn new(virtual_nodes: u32) -> Result<Self> {
        if virtual_nodes == 0 {
            return Err(CoreError::Empty { what: "the number of virtual nodes" });
        }
        check_size(
            "the number of virtual nodes",
            virtual_nodes as usize,
            VIRTUAL_NODES_MAX as usize,
        )?;
        let mut ring = Self {
            virtual_nodes,
            slots: Vec::new(),
            points: Vec::new(),
            owners: Vec::new(),
            starts: Vec::new(),
            shift: 0,
        };
        ring.index();
        Ok(ring)
    }

    /// Adds one node; returns its slot. Cost: one pass over all points.
    pub fn add_node(&mut self, name: &str, weight: f64) -> Result<u32> {
        self.add_nodes(&[(name, weight)]).map(|slots| slots[0])
    }

    /// Adds nodes with one pass over all points; returns their slots. Adds none when one is
    /// refused.
    pub fn add_nodes(&mut self, nodes: &[(&str, f64)]) -> Result<Vec<u32>> {
        check_size("the ring's number of nodes", self.len() + nodes.len(), NODES_MAX)?;
        for (index, &(name, weight)) in nodes.iter().enumerate() {
            check_name(name)?;
            check_weight(name, weight)?;
            if self.slot_of(name).is_some() || nodes[..index].iter().any(|(n, _)| *n == name) {
                return Err(CoreError::DuplicateNode { name: name.to_owned() });
            }
        }
        let slots: Vec<u32> =
            nodes.iter().map(|&(name, weight)| self.occupy(name, weight)).collect();
        let mut fresh = Vec::new();
        for &slot in &slots {
            fresh.extend(self.points_of(slot).map(|point| (point, slot)));
        }
        self.merge(fresh);
        Ok(slots)
    }

    /// Removes a node; returns the slot it had. Cost: one pass over all points.
    pub fn remove_node(&mut self, name: &str) -> Result<u32> {
        let Some(slot) = self.slot_of(name) else {
            return Err(CoreError::UnknownNode { name: name.to_owned() });
        };
        let mut kept = 0;
        for index in 0..self.points.len() {
            if self.owners[index] != slot {
                self.points[kept] = self.points[index];
                self.owners[kept] = self.owners[index];
                kept += 1;
            }
        }
        self.points.truncate(kept);
        self.owners.truncate(kept);
        self.slots[slot as usize] = None;
        self.index();
        Ok(slot)
    }

    /// The slot of the node that has `key`.
    #[inline]
    pub fn get_node(&self, key: &[u8]) -> Result<u32> {
        self.node_at(hash64(key, 0))
    }

    /// The slot of the node that has a key with this hash (murmur3, seed 0).
    #[inline]
    pub fn node_at(&self, hash: u64) -> Result<u32> {
        self.find(hash).ok_or(CoreError::EmptyRing)
    }

    /// As [`Self::node_at`]; `None` when the ring has no nodes.
    #[inline]
    pub fn find(&self, hash: u64) -> Option<u32> {
        self.owners.get(self.point_at(hash)).copied()
    }

    /// The slots of the first `count` distinct nodes from `key` on; all nodes when there are fewer.
    pub fn get_nodes(&self, key: &[u8], count: usize) -> Result<Vec<u32>> {
        if self.owners.is_empty() {
            return Err(CoreError::EmptyRing);
        }
        Ok(self.walk(hash64(key, 0)).take(count).collect())
    }

    /// All nodes in the order in which they follow `hash`, each once.
    pub fn walk(&self, hash: u64) -> impl Iterator<Item = u32> {
        let start = self.point_at(hash);
        let mut seen = vec![false; self.slots.len()];
        let owners = self.owners[start..].iter().chain(&self.owners[..start]);
        let fresh = move |slot: &u32| !std::mem::replace(&mut seen[*slot as usize], true);
        owners.copied().filter(fresh).take(self.len())
    }

    /// The slot of a node.
    pub fn slot_of(&self, name: &str) -> Option<u32> {
        let named = |slot: &Option<Node>| slot.as_ref().is_some_and(|node| &*node.name == name);
        self.slots.iter().position(named).map(|slot| slot as u32)
    }

    /// The name in a slot.
    pub fn name(&self, slot: u32) -> Option<&str> {
        self.slots.get(slot as usize)?.as_ref().map(|node| &*node.name)
    }

    /// The weight of the node in a slot.
    pub fn weight(&self, slot: u32) -> Option<f64> {
        self.slots.get(slot as usize)?.as_ref().map(|node| node.weight)
    }

    /// The occupied slots, in the order the nodes were added where none has left.
    pub fn occupied(&self) -> impl Iterator<Item = u32> {
        (0u32..).zip(&self.slots).filter(|(_, node)| node.is_some()).map(|(slot, _)| slot)
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Is there no node?
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// Points of a node of weight 1.
    pub fn virtual_nodes(&self) -> u32 {
        self.virtual_nodes
    }

    /// Points of all nodes.
    pub fn point_count(&self) -> usize {
        self.points.len()
    }

    /// Index of the first point at or after `hash`, around the end of the circle; 0 without points.
    #[inline]
    fn point_at(&self, hash: u64) -> usize {
        let mut index = self.starts[(hash >> self.shift) as usize] as usize;
        while let Some(&point) = self.points.get(index) {
            if point >= hash {
                return index;
            }
            index += 1;
        }
        0
    }

    fn occupy(&mut self, name: &str, weight: f64) -> u32 {
        let node = Some(Node { name: name.into(), weight });
        if let Some(slot) = self.slots.iter().position(Option::is_none) {
            self.slots[slot] = node;
            return slot as u32;
        }
        self.slots.push(node);
        self.slots.len() as u32 - 1
    }

    fn points_of(&self, slot: u32) -> impl Iterator<Item = u64> {
        let node = self.slots[slot as usize].as_ref();
        let weight = node.map_or(0.0, |node| node.weight);
        #[expect(clippy::cast_sign_loss, reason = "a checked weight is positive")]
        let count = (f64::from(self.virtual_nodes) * weight).round() as usize;
        let count = count.clamp(1, NODE_POINTS_MAX) as u32;
        let name = node.map_or(&b""[..], |node| node.name.as_bytes());
        (0..count).map(move |seed| hash64(name, seed))
    }

    /// Merges points into the sorted ones.
    fn merge(&mut self, mut fresh: Vec<(u64, u32)>) {
        let slots = &self.slots;
        let name = |slot: u32| slots[slot as usize].as_ref().map(|node| &*node.name);
        let before = |a: (u64, u32), b: (u64, u32)| (a.0, name(a.1)) < (b.0, name(b.1));
        fresh.sort_unstable_by(|&a, &b| (a.0, name(a.1)).cmp(&(b.0, name(b.1))));
        let total = self.points.len() + fresh.len();
        let (mut points, mut owners) = (Vec::with_capacity(total), Vec::with_capacity(total));
        let mut fresh = fresh.into_iter().peekable();
        for old in self.points.iter().copied().zip(self.owners.iter().copied()) {
            while let Some(new) = fresh.next_if(|&new| before(new, old)) {
                points.push(new.0);
                owners.push(new.1);
            }
            points.push(old.0);
            owners.push(old.1);
        }
        for (point, owner) in fresh {
            points.push(point);
            owners.push(owner);
        }
        self.points = points;
        self.owners = owners;
        self.index();
    }

    /// Builds the table on the top bits: two to four stretches per point.
    fn index(&mut self) {
        let bits = (usize::BITS - self.points.len().leading_zeros() + 1).min(24);
        self.shift = 64 - bits;
        let mut starts = Vec::with_capacity(1 << bits);
        let mut index = 0;
        for stretch in 0..1u64 << bits {
            while self.points.get(index).is_some_and(|&point| point >> self.shift < stretch) {
                index += 1;
            }
            starts.push(index as u32);
        }
        self.starts = starts;
    }
}

/// Refuses a weight that is not a number from [`WEIGHT_MIN`] to [`WEIGHT_MAX`].
pub fn check_weight(name: &str, weight: f64) -> Result<()> {
    if (WEIGHT_MIN..=WEIGHT_MAX).contains(&weight) {
        return Ok(());
    }
    Err(CoreError::BadWeight {
        name: name.to_owned(),
        weight: weight.to_string(),
        low: WEIGHT_MIN.to_string(),
        high: WEIGHT_MAX.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::VIRTUAL_NODES_DEFAULT;
    use proptest::prelude::*;

    fn ring(names: &[String]) -> Ring {
        let mut ring = Ring::new(VIRTUAL_NODES_DEFAULT).unwrap();
        let nodes: Vec<(&str, f64)> = names.iter().map(|name| (name.as_str(), 1.0)).collect();
        ring.add_nodes(&nodes).unwrap();
        ring
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("node-{index}")).collect()
    }

    /// All points by definition, without the table.
    fn sorted_points(ring: &Ring) -> Vec<(u64, &str)> {
        let mut points: Vec<(u64, &str)> = Vec::new();
        for slot in ring.occupied() {
            points.extend(ring.points_of(slot).map(|point| (point, ring.name(slot).unwrap())));
        }
        points.sort_unstable();
        points
    }

    #[test]
    fn an_empty_ring_says_so() {
        let ring = Ring::new(150).unwrap();
        assert_eq!(ring.get_node(b"key"), Err(CoreError::EmptyRing));
        assert_eq!(ring.get_nodes(b"key", 2), Err(CoreError::EmptyRing));
        assert_eq!(ring.walk(7).count(), 0);
    }

    #[test]
    fn a_refused_node_changes_nothing() {
        let mut ring = ring(&names(3));
        let points = ring.points.clone();
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY, 1000.1] {
            assert_eq!(ring.add_node("new", weight).unwrap_err().code(), "bad_weight");
        }
        assert_eq!(ring.add_node("node-1", 1.0).unwrap_err().code(), "duplicate_node");
        assert_eq!(ring.add_nodes(&[("a", 1.0), ("a", 1.0)]).unwrap_err().code(), "duplicate_node");
        assert_eq!(ring.add_node("", 1.0).unwrap_err().code(), "empty");
        assert_eq!(ring.add_node(&"n".repeat(256), 1.0).unwrap_err().code(), "too_large");
        assert_eq!(ring.remove_node("gone").unwrap_err().code(), "unknown_node");
        assert_eq!((ring.len(), ring.points), (3, points));
    }

    #[test]
    fn hashes_past_the_last_point_go_round() {
        let ring = ring(&names(2));
        assert_eq!(ring.node_at(u64::MAX), ring.node_at(0));
        let last = *ring.points.last().unwrap();
        assert_eq!(ring.point_at(last), ring.points.len() - 1);
        assert_eq!(ring.point_at(last + 1), 0);
    }

    #[test]
    fn weights_give_their_share() {
        let mut ring = Ring::new(2000).unwrap();
        ring.add_nodes(&[("one", 1.0), ("three", 3.0)]).unwrap();
        let count =
            (0..40_000u32).filter(|n| ring.get_node(&n.to_le_bytes()).unwrap() == 1).count();
        assert!((29_000..31_000).contains(&count), "{count} of 40,000 at three quarters");
        ring.add_node("tiny", 0.001).unwrap();
        assert!(ring.point_count() > 8000);
    }

    proptest! {
        #[test]
        fn lookups_follow_the_definition(
            count in 1usize..12,
            virtual_nodes in 1u32..40,
            hashes: Vec<u64>,
        ) {
            let mut ring = Ring::new(virtual_nodes).unwrap();
            for name in names(count) {
                ring.add_node(&name, 1.0).unwrap();
            }
            let sorted = sorted_points(&ring);
            let points = ring.points.iter();
            let edges: Vec<u64> = points.flat_map(|p| [*p, p.wrapping_add(1)]).collect();
            for hash in hashes.into_iter().chain(edges) {
                let slot = ring.node_at(hash).unwrap();
                let after = sorted.iter().find(|(point, _)| *point >= hash);
                prop_assert_eq!(ring.name(slot), after.or(sorted.first()).map(|(_, name)| *name));
                prop_assert_eq!(ring.walk(hash).next(), Some(slot));
            }
        }

        #[test]
        fn a_joining_node_takes_keys_only_for_itself(count in 1usize..20, keys: Vec<u64>) {
            let mut ring = ring(&names(count));
            let before: Vec<u32> = keys.iter().map(|key| ring.node_at(*key).unwrap()).collect();
            let slot = ring.add_node("new", 1.0).unwrap();
            for (key, before) in keys.iter().zip(&before) {
                let after = ring.node_at(*key).unwrap();
                prop_assert!(after == *before || after == slot);
            }
            ring.remove_node("new").unwrap();
            let again: Vec<u32> = keys.iter().map(|key| ring.node_at(*key).unwrap()).collect();
            prop_assert_eq!(before, again);
        }

        #[test]
        fn the_order_of_building_does_not_matter(
            order in Just(names(8)).prop_shuffle(),
            key: Vec<u8>,
        ) {
            let (one, other) = (ring(&names(8)), ring(&order));
            let nodes = |ring: &Ring| -> Vec<String> {
                let slots = ring.get_nodes(&key, 8).unwrap();
                slots.into_iter().map(|slot| ring.name(slot).unwrap().to_owned()).collect()
            };
            let found = nodes(&one);
            prop_assert_eq!(&found, &nodes(&other));
            let distinct: std::collections::BTreeSet<_> = found.iter().collect();
            prop_assert_eq!(distinct.len(), 8);
        }
    }
}
