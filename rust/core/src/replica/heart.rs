//! A node's heartbeats: what each of them says, which answers count, and the leases they bring.
//!
//! A lease is counted from before its heartbeat left, and counts once the node has applied the table
//! revision that it names; the controller counts it from its answer and for longer, so the holder
//! has surely stopped answering first. What the loops of the node say of themselves goes into every
//! heartbeat as it was said last: whoever sends them may go on while a loop stands still, and it is
//! the counter that shows it.
//!
//! Callers: the net thread (`rust/net`), the node's shell and the simulator through `rust/py`.
//! Source: the protocol page, section 6.

use std::collections::VecDeque;

use crate::planted::{Bug, planted};

/// What a loop has said of the controller counts for this long; then it is taken to hear nobody.
const SAID_MS: u64 = 500;
/// Heartbeats that may still be answered; older ones are forgotten.
const SENT_MAX: usize = 1024;

/// One heartbeat, as it leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// Names it; the answer repeats it.
    pub nonce: u64,
    /// Revision of the table that this node has applied.
    pub revision: u64,
    /// Counters of the loops, and of the controller's answers that have come.
    pub progress: Vec<u64>,
    /// The term whose holder this node has heard lately; 0: none.
    pub heard_term: u64,
}

/// What a node answered to a heartbeat.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answer {
    /// Of the heartbeat.
    pub nonce: u64,
    /// How long the lease lasts that it brings; 0: it brings none.
    pub lease_ms: u64,
    /// Revision of the table that the lease is for.
    pub revision: u64,
    /// Under which the controller speaks; 0: this node is none.
    pub term: u64,
}

/// A lease that counts now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Revision of the table that it was given for.
    pub revision: u64,
    /// Its end.
    pub until_ms: u64,
}

/// The heartbeats of one node. Time is that of the clock in which leases are counted.
#[derive(Debug)]
pub struct Heart {
    held_ms: u64,
    nonce: u64,
    /// Nonce and time of sending of heartbeats that may still be answered, oldest first.
    sent: VecDeque<(u64, u64)>,
    applied: u64,
    /// A grant at a revision that is not applied yet.
    waiting: Option<Grant>,
    progress: Vec<u64>,
    heard_term: u64,
    said_ms: u64,
    registered_until_ms: u64,
    term: u64,
    answers: u64,
    heard_ms: u64,
}

impl Heart {
    /// A heart whose leases last at most `held_ms` from before their heartbeats left.
    pub fn new(held_ms: u64) -> Self {
        Self {
            held_ms,
            nonce: 0,
            sent: VecDeque::new(),
            applied: 0,
            waiting: None,
            progress: Vec::new(),
            heard_term: 0,
            said_ms: 0,
            registered_until_ms: 0,
            term: 0,
            answers: 0,
            heard_ms: 0,
        }
    }

    /// Take what the node's loops say of themselves: their counters, the term whose holder they have
    /// heard, and until when this node may believe that it is registered. No lease is good for
    /// longer, since others take the end of a registration as certain.
    pub fn say(
        &mut self,
        progress: Vec<u64>,
        heard_term: u64,
        registered_until_ms: u64,
        now_ms: u64,
    ) {
        self.progress = progress;
        self.heard_term = heard_term;
        self.registered_until_ms = registered_until_ms;
        self.said_ms = now_ms;
    }

    /// A heartbeat is about to leave; `now_ms` was read before.
    pub fn beat(&mut self, now_ms: u64) -> Beat {
        self.nonce += 1;
        while self.sent.len() >= SENT_MAX
            || self.sent.front().is_some_and(|&(_, sent_ms)| sent_ms + self.held_ms <= now_ms)
        {
            self.sent.pop_front();
        }
        self.sent.push_back((self.nonce, now_ms));
        let mut progress = self.progress.clone();
        // A node that hears nothing of the controller must not look well to it: over a link that is
        // cut in one direction its heartbeats arrive, and no lease comes back.
        progress.push(self.answers);
        let heard_term = if now_ms < self.said_ms + SAID_MS { self.heard_term } else { 0 };
        Beat { nonce: self.nonce, revision: self.applied, progress, heard_term }
    }

    /// Take an answer; one to a heartbeat of too long ago is worth nothing.
    pub fn answered(&mut self, answer: Answer, now_ms: u64) -> Option<Grant> {
        if answer.term > 0 && answer.term >= self.term {
            self.term = answer.term;
            self.answers += 1;
            self.heard_ms = now_ms;
        }
        let sent = self.sent.iter().find(|(nonce, _)| *nonce == answer.nonce);
        let sent_ms = match sent {
            // As if it began when the answer came, however long that took.
            _ if planted(Bug::LeaseFromItsAnswer) => now_ms,
            Some(&(_, sent_ms)) => sent_ms,
            None => return None,
        };
        if answer.lease_ms == 0 {
            return None;
        }
        let lease_ms = answer.lease_ms.min(self.held_ms);
        let until_ms = (sent_ms + lease_ms).min(self.registered_until_ms);
        let grant = Grant { revision: answer.revision, until_ms };
        if grant.revision <= self.applied || planted(Bug::LeaseCountsUnapplied) {
            return Some(grant);
        }
        if self.waiting.is_none_or(|waiting| waiting.revision <= grant.revision) {
            self.waiting = Some(grant);
        }
        None
    }

    /// The node has applied the table of that revision; a grant that waited for it counts now.
    pub fn applied(&mut self, revision: u64) -> Option<Grant> {
        self.applied = self.applied.max(revision);
        self.waiting.take_if(|waiting| waiting.revision <= self.applied)
    }

    /// The newest term under which an answer has come (0: none has), and when the last one came.
    pub fn heard(&self) -> (u64, u64) {
        (self.term, self.heard_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD_MS: u64 = 475;
    const ENDLESS_MS: u64 = u64::MAX;

    fn heart() -> Heart {
        let mut heart = Heart::new(HELD_MS);
        heart.say(vec![1, 1], 7, ENDLESS_MS, 0);
        heart
    }

    fn granted(nonce: u64, revision: u64) -> Answer {
        Answer { nonce, lease_ms: HELD_MS, revision, term: 7 }
    }

    #[test]
    fn a_lease_is_counted_from_before_its_heartbeat() {
        let mut heart = heart();
        heart.applied(1);
        let nonce = heart.beat(1_000).nonce;
        let grant = heart.answered(granted(nonce, 1), 1_400);
        assert_eq!(grant, Some(Grant { revision: 1, until_ms: 1_000 + HELD_MS }));
    }

    #[test]
    fn a_lease_counts_once_its_revision_is_applied() {
        let mut heart = heart();
        let nonce = heart.beat(1_000).nonce;
        assert_eq!(heart.answered(granted(nonce, 5), 1_001), None);
        assert_eq!(heart.applied(4), None);
        let grant = Some(Grant { revision: 5, until_ms: 1_000 + HELD_MS });
        assert_eq!(heart.applied(5), grant);
        assert_eq!(heart.applied(6), None);
    }

    #[test]
    fn of_two_grants_that_wait_the_newer_one_counts() {
        let mut heart = heart();
        let [first, second] = [1_000, 1_100].map(|now_ms| heart.beat(now_ms).nonce);
        assert_eq!(heart.answered(granted(second, 5), 1_101), None);
        assert_eq!(heart.answered(granted(first, 4), 1_102), None);
        assert_eq!(heart.applied(5), Some(Grant { revision: 5, until_ms: 1_100 + HELD_MS }));
    }

    #[test]
    fn an_answer_to_no_heartbeat_of_late_is_worth_nothing() {
        let mut heart = heart();
        heart.applied(1);
        let old = heart.beat(0).nonce;
        heart.beat(HELD_MS);
        assert_eq!(heart.answered(granted(old, 1), HELD_MS), None);
        assert_eq!(heart.answered(granted(99, 1), HELD_MS), None);
        let nonce = heart.beat(1_000).nonce;
        let refused = Answer { lease_ms: 0, ..granted(nonce, 1) };
        assert_eq!(heart.answered(refused, 1_001), None);
    }

    #[test]
    fn no_lease_is_good_for_longer_than_the_registration() {
        let mut heart = heart();
        heart.applied(1);
        heart.say(vec![], 0, 1_200, 1_000);
        let nonce = heart.beat(1_000).nonce;
        let grant = heart.answered(granted(nonce, 1), 1_001);
        assert_eq!(grant, Some(Grant { revision: 1, until_ms: 1_200 }));
    }

    #[test]
    fn a_lease_lasts_as_long_as_its_giver_says_and_no_longer_than_leases_do() {
        let mut heart = heart();
        heart.applied(1);
        for (lease_ms, held_ms) in [(200, 200), (u64::MAX, HELD_MS)] {
            let nonce = heart.beat(1_000).nonce;
            let grant = heart.answered(Answer { lease_ms, ..granted(nonce, 1) }, 1_001);
            assert_eq!(grant, Some(Grant { revision: 1, until_ms: 1_000 + held_ms }));
        }
    }

    #[test]
    fn counters_stand_still_with_their_loop_and_its_word_gets_old() {
        let mut heart = heart();
        heart.say(vec![3, 4], 7, ENDLESS_MS, 1_000);
        let beat = heart.beat(1_000 + SAID_MS - 1);
        assert_eq!((&beat.progress[..2], beat.heard_term), (&[3, 4][..], 7));
        let beat = heart.beat(1_000 + SAID_MS);
        assert_eq!((&beat.progress[..2], beat.heard_term), (&[3, 4][..], 0));
    }

    #[test]
    fn only_answers_of_the_newest_controller_show_that_it_is_heard() {
        let mut heart = heart();
        let answer = |term| Answer { term, ..Answer::default() };
        assert_eq!(heart.heard(), (0, 0));
        heart.answered(answer(0), 10);
        assert_eq!(heart.beat(20).progress, [1, 1, 0]);
        heart.answered(answer(7), 30);
        heart.answered(answer(6), 40);
        assert_eq!(heart.heard(), (7, 30));
        assert_eq!(heart.beat(50).progress, [1, 1, 1]);
        heart.answered(answer(8), 60);
        assert_eq!(heart.heard(), (8, 60));
    }
}
