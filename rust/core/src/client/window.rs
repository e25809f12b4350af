//! The open operations of a stream, found by number.
//!
//! Numbers are given out in order and mostly answered in order, so the operations lie in a ring, at
//! their number's distance from the lowest. One that stays behind must not keep the ring from
//! shrinking: past a size the oldest moves to a tree (`behind`), and the ring goes on.

use std::collections::{BTreeMap, VecDeque};

/// The ring may have this many places, most of them empty, before its oldest operation moves behind
/// it.
const RING_SPARSE_MAX: usize = 16 * 1024;

/// Where an operation is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Encoded in a slot's frame: queued while that is unsent, in flight from then on.
    Framed,
    /// Waits for a time or for routes.
    Waiting,
}

/// One open operation.
#[derive(Debug)]
pub(super) struct Pending<W> {
    /// Who is told; `None` once cancelled.
    pub waiter: Option<W>,
    /// When to try again; only while it waits.
    pub due_ms: u64,
    /// The buffer its bytes are in.
    pub buffer: u32,
    /// Where they begin there.
    pub offset: u32,
    /// How many they are.
    pub length: u32,
    pub partition: u16,
    pub map: u16,
    pub opcode: crate::frame::Opcode,
    pub flags: u8,
    pub state: State,
    /// Status of its last refusal, 0 for none.
    pub reason: u8,
    /// How often it was put back.
    pub attempts: u8,
    /// Once it was sent and the answer is lost: it may have been applied.
    pub in_doubt: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Window<W> {
    base: u64,
    ring: VecDeque<Option<Pending<W>>>,
    behind: BTreeMap<u64, Pending<W>>,
    live: usize,
}

impl<W> Window<W> {
    /// An empty window whose first number is 1.
    pub fn new() -> Self {
        Self { base: 1, ring: VecDeque::new(), behind: BTreeMap::new(), live: 0 }
    }

    /// Open operations.
    #[inline]
    pub fn len(&self) -> usize {
        self.live
    }

    /// Every number below is closed or behind.
    #[inline]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The number of the next operation.
    #[inline]
    pub fn next(&self) -> u64 {
        self.base + self.ring.len() as u64
    }

    /// Appends an operation under the number [`Window::next`] said.
    #[inline]
    pub fn push(&mut self, pending: Pending<W>) {
        self.ring.push_back(Some(pending));
        self.live += 1;
    }

    /// Puts an operation back under a number that was removed.
    pub fn restore(&mut self, number: u64, pending: Pending<W>) {
        let place = match number.checked_sub(self.base) {
            Some(at) => self.ring.get_mut(at as usize),
            None => None,
        };
        let before = match place {
            Some(place) => place.replace(pending),
            None => self.behind.insert(number, pending),
        };
        debug_assert!(before.is_none(), "number {number} is open twice");
        self.live += 1;
    }

    /// The operation of `number`, if it is open.
    #[inline]
    pub fn get(&self, number: u64) -> Option<&Pending<W>> {
        match number.checked_sub(self.base) {
            Some(at) => self.ring.get(usize::try_from(at).ok()?)?.as_ref(),
            None => self.behind.get(&number),
        }
    }

    /// The operation of `number`, if it is open.
    #[inline]
    pub fn get_mut(&mut self, number: u64) -> Option<&mut Pending<W>> {
        match number.checked_sub(self.base) {
            Some(at) => self.ring.get_mut(usize::try_from(at).ok()?)?.as_mut(),
            None => self.behind.get_mut(&number),
        }
    }

    /// Closes `number`.
    #[inline]
    pub fn remove(&mut self, number: u64) -> Option<Pending<W>> {
        let removed = match number.checked_sub(self.base) {
            Some(at) => self.ring.get_mut(usize::try_from(at).ok()?)?.take(),
            None => self.behind.remove(&number),
        }?;
        self.live -= 1;
        self.trim();
        Some(removed)
    }

    /// Moves the oldest operation behind the ring when the ring has become long and empty; returns
    /// its number.
    #[inline]
    pub fn leave_behind(&mut self) -> Option<u64> {
        let sparse = self.ring.len() > RING_SPARSE_MAX
            && self.ring.len() / 4 > self.live - self.behind.len();
        if !sparse {
            return None;
        }
        let number = self.base;
        let oldest = self.ring.pop_front().flatten()?;
        self.base += 1;
        self.behind.insert(number, oldest);
        self.trim();
        Some(number)
    }

    /// Whether `number` is behind the ring and open.
    pub fn is_behind(&self, number: u64) -> bool {
        self.behind.contains_key(&number)
    }

    /// The open operations, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &Pending<W>> {
        self.behind.values().chain(self.ring.iter().flatten())
    }

    #[inline]
    fn trim(&mut self) {
        while let Some(None) = self.ring.front() {
            self.ring.pop_front();
            self.base += 1;
        }
    }
}
