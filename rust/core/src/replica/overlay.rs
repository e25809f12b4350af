//! What the uncommitted records of a partition say about its keys.
//!
//! Tables change only at commit; until then conditions, reads, turns and repeats look in here first.
//! Rollback is dropping the overlay. It holds the last post-image of each key, with the sequence
//! that wrote it. Callers: `primary`, `commit`, `turn`.

use std::hash::{BuildHasher, Hash, Hasher};

use foldhash::fast::FixedState;
use hashbrown::{Equivalent, HashMap};

use crate::record::{Change, Position};

/// Last uncommitted state of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Record that wrote it.
    pub position: Position,
    /// Value, or `None` when it was deleted.
    pub value: Option<Box<[u8]>>,
    /// Codec tag.
    pub codec: u8,
    /// Absolute expiry in wall-clock milliseconds; 0 is never.
    pub expires_at_ms: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Place {
    map: Box<str>,
    key: Box<[u8]>,
}

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.map.as_bytes());
        state.write(&self.key);
    }
}

struct PlaceRef<'a> {
    map: &'a str,
    key: &'a [u8],
}

impl Hash for PlaceRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.map.as_bytes());
        state.write(self.key);
    }
}

impl Equivalent<Place> for PlaceRef<'_> {
    fn equivalent(&self, place: &Place) -> bool {
        *self.key == *place.key && *self.map == *place.map
    }
}

/// Uncommitted post-images of one partition.
#[derive(Debug, Default)]
pub struct Overlay<S: BuildHasher = FixedState> {
    images: HashMap<Place, Image, S>,
}

impl Overlay {
    /// Nothing uncommitted.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether every key is as its table says.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Last uncommitted state of a key.
    #[inline]
    pub fn get(&self, map: &str, key: &[u8]) -> Option<&Image> {
        if self.images.is_empty() {
            return None;
        }
        self.images.get(&PlaceRef { map, key })
    }

    /// A record at `position` changes a key.
    pub fn apply(&mut self, position: Position, change: &Change<'_>) {
        let (map, key) = (change.map(), change.key());
        let image = match change {
            Change::Put { value, codec, expires_at_ms, .. } => Image {
                position,
                value: Some((*value).into()),
                codec: *codec,
                expires_at_ms: *expires_at_ms,
            },
            Change::Delete { .. } => Image { position, value: None, codec: 0, expires_at_ms: 0 },
        };
        if let Some(known) = self.images.get_mut(&PlaceRef { map, key }) {
            *known = image;
        } else {
            self.images.insert(Place { map: map.into(), key: key.into() }, image);
        }
    }

    /// The record at `position` is committed: drop what it wrote, unless a later one wrote it again.
    pub fn settle(&mut self, position: Position, change: &Change<'_>) {
        let place = PlaceRef { map: change.map(), key: change.key() };
        if self.images.get(&place).is_some_and(|image| image.position == position) {
            self.images.remove(&place);
        }
    }

    /// Roll back everything.
    pub fn clear(&mut self) {
        self.images.clear();
    }
}
