//! Confirmed reads: the copies say that this primary still is one, before it answers.
//!
//! A lease rests on clocks. A confirmed read does not: the value is read, then every copy that a
//! write would wait for is asked whether it still follows this primary in this epoch, and the answer
//! leaves when all have said so. A newer primary is one of those copies (only a complete one is
//! promoted), and it does not follow any more; so when the last word came, nothing newer had been
//! acknowledged than what was read. One copy's word would not do: of three, another may have been
//! promoted. Questions are numbered rounds; a read waits for one that was asked after it came. A copy
//! that owes its word is as good as silent. Callers: `primary`, `commit`, `node`.

use std::collections::VecDeque;

use super::commit::Links;
use super::effects::Out;
use super::follower::Follower;
use super::ownership::Role;
use super::partition::Partition;
use super::primary::{Refusal, WAITING_MAX};
use super::request::{Answer, Origin};
use crate::frame::peer::Header;
use crate::frame::reply::status;
use crate::planted::{Bug, planted};

/// A question without an answer is asked again after this long.
const ASK_AGAIN_MS: u64 = 100;
/// A read that could not be confirmed for this long is refused: there may be another primary.
pub const CONFIRM_WAIT_MS: u64 = 1_000;

/// A read that waits for the copies' word.
#[derive(Debug)]
struct Unconfirmed {
    round: u64,
    sequence: u64,
    origin: Origin,
    answer: Answer,
    /// Set by the first tick that sees it.
    since_ms: u64,
}

/// The rounds of one partition.
#[derive(Debug, Default)]
pub struct Confirming {
    /// Round that was asked last.
    asked: u64,
    asked_ms: u64,
    due: bool,
    waiting: VecDeque<Unconfirmed>,
}

impl Confirming {
    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Round that was asked last, as far as somebody waits for it; else 0.
    pub(super) fn owed(&self) -> u64 {
        self.waiting.back().map_or(0, |last| last.round.min(self.asked))
    }
}

impl Partition {
    /// Give an answer, which was right at `sequence`, when the copies have confirmed this primary.
    pub(super) fn answer_confirmed(
        &mut self,
        sequence: u64,
        origin: Origin,
        answer: Answer,
        out: &mut Out,
    ) {
        if usize::from(self.copies()) < self.settings.min_in_sync {
            // Another complete copy may have been removed, and be the primary now.
            self.refuse(origin, Refusal(status::NOT_ENOUGH_COPIES), out);
            return;
        }
        if self.confirming.waiting.len() >= WAITING_MAX {
            self.refuse(origin, Refusal(status::BACKPRESSURE), out);
            return;
        }
        if !self.followers.iter().any(Follower::counts) {
            // Nobody else has it complete: nobody else can have been promoted.
            self.answer_or(sequence, origin, answer, status::NOT_PRIMARY, out);
            return;
        }
        out.answered_bytes += answer.value.len();
        let round = self.confirming.asked + 1;
        self.confirming.waiting.push_back(Unconfirmed {
            round,
            sequence,
            origin,
            answer,
            since_ms: 0,
        });
        self.confirming.due = true;
        self.mark_dirty(out);
    }

    /// Ask the copies, if somebody waits for a round that was not asked.
    pub(super) fn emit_confirm(&mut self, links: &mut Links) {
        if !std::mem::take(&mut self.confirming.due) {
            return;
        }
        self.confirming.asked += 1;
        let (epoch, partition, round) = (self.epoch(), self.index, self.confirming.asked);
        for follower in self.followers.iter().filter(|follower| follower.counts()) {
            if let Some(writer) = links.writer(follower.copy) {
                writer.confirm(Header { partition, epoch, session: follower.session }, round);
            }
        }
    }

    /// The primary asks whether this copy follows it.
    pub fn on_confirm(&mut self, copy: u64, header: Header, round: u64, out: &mut Out) {
        if !self.follows(copy, header) || header.session != self.following.session {
            return;
        }
        self.following.confirm = Some(round);
        self.mark_dirty(out);
    }

    /// A copy says that it followed this primary when it heard of this round.
    pub fn on_confirmed(&mut self, copy: u64, header: Header, round: u64, out: &mut Out) {
        if self.role != Role::Primary || header.epoch != self.epoch() {
            return;
        }
        let asked = self.confirming.asked;
        let Some(follower) =
            self.followers.iter_mut().find(|f| f.copy == copy && f.session == header.session)
        else {
            return;
        };
        if round > follower.confirmed && round <= asked {
            follower.confirmed = round;
            follower.owes_since_ms = 0;
        }
        self.settle_confirmed(out);
    }

    /// Give the answers that every copy that counts has confirmed.
    pub(super) fn settle_confirmed(&mut self, out: &mut Out) {
        if self.confirming.is_empty() || usize::from(self.copies()) < self.settings.min_in_sync {
            return;
        }
        let counting = self.followers.iter().filter(|follower| follower.counts());
        let words = counting.map(|follower| follower.confirmed);
        let all = if planted(Bug::ConfirmedByOne) { words.max() } else { words.min() };
        let round = all.unwrap_or(u64::MAX);
        while self.confirming.waiting.front().is_some_and(|first| first.round <= round) {
            if let Some(first) = self.confirming.waiting.pop_front() {
                let Unconfirmed { sequence, origin, answer, .. } = first;
                self.answer_or(sequence, origin, answer, status::NOT_PRIMARY, out);
            }
        }
    }

    /// Time passes: ask again, and give up on what nobody confirms.
    pub(super) fn tick_confirm(&mut self, now_ms: u64, out: &mut Out) {
        if self.confirming.is_empty() {
            return;
        }
        for one in self.confirming.waiting.iter_mut().rev().take_while(|one| one.since_ms == 0) {
            one.since_ms = now_ms;
        }
        let late = |one: &Unconfirmed| now_ms.saturating_sub(one.since_ms) >= CONFIRM_WAIT_MS;
        while self.confirming.waiting.front().is_some_and(late) {
            if let Some(first) = self.confirming.waiting.pop_front() {
                out.refuse(first.origin, status::UNAVAILABLE, self.settings.revision());
            }
        }
        if now_ms.saturating_sub(self.confirming.asked_ms) >= ASK_AGAIN_MS {
            self.confirming.asked_ms = now_ms;
            self.confirming.due = !self.confirming.is_empty();
            self.mark_dirty(out);
        }
    }

    /// No longer primary: the client asks the next one.
    pub(super) fn drop_unconfirmed(&mut self, out: &mut Out) {
        self.confirming.due = false;
        for one in std::mem::take(&mut self.confirming.waiting) {
            out.refuse(one.origin, status::NOT_PRIMARY, self.settings.revision());
        }
    }
}
