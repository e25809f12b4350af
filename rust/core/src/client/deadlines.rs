//! When operations run out of time.
//!
//! Most operations have the same timeout and are queued in a row, so what is kept is runs: all
//! numbers from `first` to `last` share a deadline. A run gets its deadline at the first call that
//! knows the time. Runs in order of both number and deadline lie in a queue, others in a heap.
//! Closed numbers are not taken out; a run is dropped when the window has moved past it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Runs in the heap before it is swept.
const HEAP_SWEEP_MIN: usize = 4096;

/// Numbers that share a deadline, ordered by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Run {
    pub deadline_ms: u64,
    pub first: u64,
    pub last: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Deadlines {
    /// Not started: `deadline_ms` still holds the timeout.
    fresh: Vec<Run>,
    /// As `fresh`, for single numbers that are out of order.
    fresh_alone: Vec<Run>,
    ordered: VecDeque<Run>,
    others: BinaryHeap<Reverse<Run>>,
    sweep_at: usize,
}

impl Deadlines {
    pub fn new() -> Self {
        Self {
            fresh: Vec::new(),
            fresh_alone: Vec::new(),
            ordered: VecDeque::new(),
            others: BinaryHeap::new(),
            sweep_at: HEAP_SWEEP_MIN,
        }
    }

    /// `number` has `timeout_ms` from the next [`Deadlines::start`] on.
    #[inline]
    pub fn add(&mut self, number: u64, timeout_ms: u64) {
        if let Some(run) = self.fresh.last_mut()
            && run.deadline_ms == timeout_ms
            && run.last + 1 == number
        {
            run.last = number;
            return;
        }
        self.fresh.push(Run { deadline_ms: timeout_ms, first: number, last: number });
    }

    /// As [`Deadlines::add`], for a number that was given out before.
    pub fn add_again(&mut self, number: u64, timeout_ms: u64) {
        self.fresh_alone.push(Run { deadline_ms: timeout_ms, first: number, last: number });
    }

    /// Time runs from `now_ms` for all that were added since the last call.
    #[inline]
    pub fn start(&mut self, now_ms: u64) {
        for run in self.fresh.drain(..) {
            let run = started(run, now_ms);
            match self.ordered.back() {
                Some(back) if run.deadline_ms < back.deadline_ms || run.first <= back.last => {
                    self.others.push(Reverse(run));
                }
                _ => self.ordered.push_back(run),
            }
        }
        self.others.extend(self.fresh_alone.drain(..).map(|run| Reverse(started(run, now_ms))));
    }

    /// Drops runs below `base`, where nothing is open but what `is_behind` knows; those are in the
    /// heap.
    #[inline]
    pub fn trim(&mut self, base: u64, is_behind: impl Fn(u64) -> bool) {
        while self.ordered.front().is_some_and(|run| run.last < base) {
            self.ordered.pop_front();
        }
        if self.others.len() > self.sweep_at {
            self.others.retain(|Reverse(run)| {
                run.last >= base || (run.first == run.last && is_behind(run.first))
            });
            self.sweep_at = (2 * self.others.len()).max(HEAP_SWEEP_MIN);
        }
    }

    /// `number` leaves the ring: its deadline is kept on its own.
    pub fn leave_behind(&mut self, number: u64) {
        let holds = |run: &Run| run.first <= number && number <= run.last;
        if let Some(run) = self.fresh.iter().find(|run| holds(run)) {
            let timeout_ms = run.deadline_ms;
            self.add_again(number, timeout_ms);
            return;
        }
        let at = self.ordered.partition_point(|run| run.last < number);
        let ordered = self.ordered.get(at).copied().filter(holds);
        let run = ordered.or_else(|| self.others.iter().map(|run| run.0).find(holds));
        if let Some(run) = run {
            self.others.push(Reverse(Run { first: number, last: number, ..run }));
        }
    }

    /// The earliest deadline, of an operation that may be closed already.
    #[inline]
    pub fn next_ms(&self) -> Option<u64> {
        let ordered = self.ordered.front().map(|run| run.deadline_ms);
        let other = self.others.peek().map(|run| run.0.deadline_ms);
        match (ordered, other) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        }
    }

    /// Takes out a run whose deadline has passed.
    pub fn pop_due(&mut self, now_ms: u64) -> Option<Run> {
        if self.ordered.front().is_some_and(|run| run.deadline_ms <= now_ms) {
            return self.ordered.pop_front();
        }
        if self.others.peek().is_some_and(|run| run.0.deadline_ms <= now_ms) {
            return self.others.pop().map(|run| run.0);
        }
        None
    }
}

fn started(run: Run, now_ms: u64) -> Run {
    Run { deadline_ms: now_ms.saturating_add(run.deadline_ms.max(1)), ..run }
}
