//! Which mutating numbers are open, per partition: a request tells the primary the lowest, and the
//! primary keeps the results from there up for repeats.

use std::collections::VecDeque;

/// Closed numbers that may stay in a partition's queue before it is swept.
const STALE_MIN: usize = 64;

/// What [`OpenNumbers::lowest`] compares with: no number is open.
const NONE: u64 = u64::MAX;

/// See the module. A number that is closed while a lower one is open stays in its queue until it is
/// at the front.
#[derive(Debug)]
pub(super) struct OpenNumbers {
    /// Read for every operation, so it lies dense and apart from the queues.
    lowest: Vec<u64>,
    queues: Vec<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Ascending.
    numbers: VecDeque<u64>,
    /// How many of them are closed.
    stale: usize,
}

impl OpenNumbers {
    pub fn new(partition_count: u32) -> Self {
        let count = partition_count as usize;
        let queues = std::iter::repeat_with(Queue::default).take(count).collect();
        Self { lowest: vec![NONE; count], queues }
    }

    /// The lowest open number of `partition`, or `number` when none below it is open.
    #[inline]
    pub fn lowest(&self, partition: u16, number: u64) -> u64 {
        self.lowest[usize::from(partition)].min(number)
    }

    /// `number` is open from now on. It is higher than any before.
    #[inline]
    pub fn begin(&mut self, partition: u16, number: u64) {
        let partition = usize::from(partition);
        self.queues[partition].numbers.push_back(number);
        if self.lowest[partition] == NONE {
            self.lowest[partition] = number;
        }
    }

    /// `number` is closed; `is_open` answers for the others.
    #[inline]
    pub fn end(&mut self, partition: u16, number: u64, is_open: impl Fn(u64) -> bool) {
        let partition = usize::from(partition);
        let queue = &mut self.queues[partition];
        if queue.numbers.front() == Some(&number) {
            queue.numbers.pop_front();
            while queue.stale > 0 {
                match queue.numbers.front() {
                    Some(&next) if !is_open(next) => {
                        queue.numbers.pop_front();
                        queue.stale -= 1;
                    }
                    _ => break,
                }
            }
            self.lowest[partition] = queue.numbers.front().copied().unwrap_or(NONE);
            return;
        }
        queue.stale += 1;
        if queue.stale > STALE_MIN && queue.stale > queue.numbers.len() / 2 {
            queue.numbers.retain(|&one| is_open(one));
            queue.stale = 0;
        }
    }
}
