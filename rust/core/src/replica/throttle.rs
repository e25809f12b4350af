//! How fast snapshots leave a node: one token bucket for all its transfers, a function of time.
//!
//! A piece is sent while the bucket is not empty, and its whole size is taken out, also where that is
//! more than is left. So in any stretch of time at most the rate, one filling and one piece go out.
//! Records are not held back: commits wait for them. Callers: `join` for each piece, `node` on ticks.

use std::collections::BTreeSet;

/// The bucket holds what the rate gives in this time.
const FILLING_MS: u64 = 100;

/// A bound on snapshot bytes; none until [`Throttle::limit`].
#[derive(Debug, Default)]
pub struct Throttle {
    /// 0: no bound.
    bytes_per_s: u64,
    /// What may go out now; below zero: what went out ahead of its time.
    left: i64,
    filled_ms: u64,
    /// Partitions with a piece that waits.
    waiting: BTreeSet<u32>,
    sent_bytes: u64,
}

impl Throttle {
    /// Bound it from now on; 0: do not.
    pub fn limit(&mut self, bytes_per_s: u64) {
        self.bytes_per_s = bytes_per_s;
        self.left = self.filling();
    }

    /// The bound; 0: none.
    pub fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s
    }

    /// Bytes of pieces handed to links so far.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Whether a piece of a partition may go now; if not, it is called by a later tick.
    pub fn admits(&mut self, partition: u32) -> bool {
        let open = self.bytes_per_s == 0 || self.left > 0;
        if !open {
            self.waiting.insert(partition);
        }
        open
    }

    /// A piece went out.
    pub fn spend(&mut self, bytes: usize) {
        self.sent_bytes += bytes as u64;
        if self.bytes_per_s > 0 {
            self.left -= i64::try_from(bytes).unwrap_or(i64::MAX);
        }
    }

    /// Time passes: the partitions whose pieces may be tried again.
    ///
    /// A clock that was set back gives nothing for the time that it repeats.
    pub fn tick(&mut self, now_ms: u64) -> BTreeSet<u32> {
        let passed_ms = i64::try_from(now_ms.saturating_sub(self.filled_ms)).unwrap_or(i64::MAX);
        self.filled_ms = now_ms;
        let rate = i64::try_from(self.bytes_per_s).unwrap_or(i64::MAX);
        let gained = rate.saturating_mul(passed_ms) / 1000;
        self.left = self.left.saturating_add(gained).min(self.filling());
        if self.bytes_per_s == 0 || self.left > 0 {
            std::mem::take(&mut self.waiting)
        } else {
            BTreeSet::new()
        }
    }

    /// What the bucket holds at most.
    fn filling(&self) -> i64 {
        let filling = (self.bytes_per_s / 1000).saturating_mul(FILLING_MS);
        i64::try_from(filling).unwrap_or(i64::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RATE: u64 = 1 << 20;

    fn bounded(bytes_per_s: u64) -> Throttle {
        let mut throttle = Throttle::default();
        throttle.tick(1);
        throttle.limit(bytes_per_s);
        throttle
    }

    #[test]
    fn without_a_bound_everything_goes_at_once() {
        let mut throttle = bounded(0);
        for _ in 0..1000 {
            assert!(throttle.admits(7));
            throttle.spend(1 << 30);
        }
        assert_eq!(throttle.sent_bytes(), 1000 << 30);
        assert!(throttle.tick(2).is_empty());
    }

    #[test]
    fn who_waited_is_called_once_there_is_room() {
        let mut throttle = bounded(RATE);
        assert!(throttle.admits(1));
        throttle.spend(RATE as usize);
        assert!(!throttle.admits(2));
        assert!(!throttle.admits(3));
        assert!(throttle.tick(800).is_empty(), "what went ahead of its time is paid for first");
        assert_eq!(throttle.tick(1000).into_iter().collect::<Vec<_>>(), [2, 3]);
        assert!(throttle.admits(2));
        assert!(throttle.tick(1001).is_empty());
    }

    #[test]
    fn a_bound_that_is_lifted_calls_everyone() {
        let mut throttle = bounded(1);
        throttle.spend(1 << 30);
        assert!(!throttle.admits(5));
        throttle.limit(0);
        assert_eq!(throttle.tick(2).len(), 1);
    }

    #[test]
    fn a_clock_that_is_set_back_gives_nothing_twice() {
        let mut throttle = bounded(RATE);
        throttle.tick(10_000);
        throttle.spend(RATE as usize);
        throttle.tick(5_000);
        throttle.tick(5_001);
        assert!(!throttle.admits(1));
    }

    proptest! {
        #[test]
        fn no_stretch_of_time_sees_more_than_the_rate_a_filling_and_a_piece(
            rate in 1000u64..10_000_000,
            steps in prop::collection::vec((1u64..200, 5_000usize..400_000), 1..60),
        ) {
            let mut throttle = bounded(rate);
            let (mut now_ms, mut sent) = (1, Vec::new());
            for (passed_ms, bytes) in steps {
                now_ms += passed_ms;
                throttle.tick(now_ms);
                while throttle.admits(0) {
                    throttle.spend(bytes + 1);
                    sent.push((now_ms, bytes as u64 + 1));
                }
            }
            let largest = sent.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
            for (first, (since_ms, _)) in sent.iter().enumerate() {
                let mut total = 0;
                for (at_ms, bytes) in &sent[first..] {
                    total += bytes;
                    let bound = rate * (at_ms - since_ms) / 1000 + rate * FILLING_MS / 1000 + largest;
                    prop_assert!(total <= bound + 1, "{total} of {bound}");
                }
            }
        }
    }
}
