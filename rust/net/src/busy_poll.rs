//! Whether the net thread goes on looking for frames for a moment before it sleeps.
//!
//! Whoever sends a frame to a thread that sleeps waits until its core is awake. On a virtual machine
//! that gives idle cores back to its host that takes longer than the frame itself, so while frames
//! come one after the other the thread rather polls. It never takes a core from anybody: it yields
//! between two looks, and stops where a yield shows that another thread wanted the core. Linux does
//! the same below sockets (`net.core.busy_poll`) and KVM below virtual cores (halt polling).
//!
//! Pure: time is an argument. Called by `grid`, which looks and yields.

use std::time::{Duration, Instant};

/// Frames further apart than this are not waited for: the next one would hardly come in time.
const GAP_MAX: Duration = Duration::from_millis(1);
/// A yield that takes longer has let another thread run.
const YIELD_ALONE_MAX: Duration = Duration::from_micros(3);
/// Chances left out at most after the core was wanted, as a power of two.
const LEFT_OUT_BITS_MAX: u32 = 6;

/// When to poll, from when frames came and who wanted the core.
#[derive(Debug)]
pub(crate) struct BusyPoll {
    longest: Duration,
    last: Option<Instant>,
    until: Option<Instant>,
    left_out: u32,
    left_out_bits: u32,
}

impl BusyPoll {
    /// Poll for `longest` after frames at most; zero: never.
    pub(crate) fn new(longest: Duration) -> Self {
        Self { longest, last: None, until: None, left_out: 0, left_out_bits: 0 }
    }

    /// Frames have come; whether to look for more before sleeping.
    pub(crate) fn frames(&mut self, now: Instant) -> bool {
        if self.until.take().is_some_and(|until| now < until) {
            self.left_out_bits = self.left_out_bits.saturating_sub(1);
        }
        let last = self.last.replace(now);
        let close = last.is_some_and(|last| now.duration_since(last) <= GAP_MAX);
        if self.left_out > 0 {
            self.left_out -= 1;
        } else if close && !self.longest.is_zero() {
            self.until = Some(now + self.longest);
        }
        self.until.is_some()
    }

    /// Nothing was there, and giving up the core took `yielded`; whether to look again.
    pub(crate) fn goes_on(&mut self, now: Instant, yielded: Duration) -> bool {
        if self.until.is_some() && yielded > YIELD_ALONE_MAX {
            self.until = None;
            self.left_out_bits = (self.left_out_bits + 1).min(LEFT_OUT_BITS_MAX);
            self.left_out = (1 << self.left_out_bits) - 1;
        }
        self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_micros(200);
    const ALONE: Duration = Duration::from_micros(1);

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn first_frames_are_no_sign_that_more_come() {
        assert!(!BusyPoll::new(LONGEST).frames(Instant::now()));
    }

    #[test]
    fn frames_close_together_are_waited_for_until_the_longest_time_is_over() {
        let (mut poll, start) = (BusyPoll::new(LONGEST), Instant::now());
        poll.frames(start);
        assert!(poll.frames(start + micros(300)));
        assert!(poll.goes_on(start + micros(499), ALONE));
        assert!(!poll.goes_on(start + micros(500), ALONE));
    }

    #[test]
    fn frames_far_apart_let_the_thread_sleep() {
        let (mut poll, start) = (BusyPoll::new(LONGEST), Instant::now());
        poll.frames(start);
        assert!(!poll.frames(start + micros(1_001)));
        assert!(!poll.goes_on(start + micros(1_002), ALONE));
    }

    #[test]
    fn a_core_that_another_thread_wants_is_left_to_it() {
        let (mut poll, start) = (BusyPoll::new(LONGEST), Instant::now());
        poll.frames(start);
        assert!(poll.frames(start + micros(10)));
        assert!(!poll.goes_on(start + micros(50), micros(4)));
        assert!(!poll.goes_on(start + micros(51), ALONE));
        assert!(!poll.frames(start + micros(60)), "one chance is left out");
        assert!(poll.frames(start + micros(70)));
    }

    #[test]
    fn a_core_that_is_always_wanted_is_hardly_ever_polled_on() {
        let (mut poll, start) = (BusyPoll::new(LONGEST), Instant::now());
        let polled = (0..1_000).filter(|frame| {
            let now = start + micros(frame * 100);
            let polls = poll.frames(now);
            polls && !poll.goes_on(now, micros(4))
        });
        assert!((1..=25).contains(&polled.count()));
    }

    #[test]
    fn frames_that_come_while_it_polls_pay_back() {
        let (mut poll, start) = (BusyPoll::new(LONGEST), Instant::now());
        for frame in 0..100 {
            poll.frames(start + micros(frame));
            poll.goes_on(start + micros(frame), micros(4));
        }
        assert!(poll.left_out_bits == LEFT_OUT_BITS_MAX);
        for frame in 100..300 {
            poll.frames(start + micros(frame));
        }
        assert!(poll.left_out_bits == 0 && poll.frames(start + micros(300)));
    }

    #[test]
    fn zero_is_never() {
        let (mut poll, start) = (BusyPoll::new(Duration::ZERO), Instant::now());
        poll.frames(start);
        assert!(!poll.frames(start + micros(1)));
    }
}
