//! What is over: messages that are too old, streams that were idle for long, rules of the past.
//!
//! The caller repeats these calls with a bound on the work of each, and releases its lock between
//! them. A unit of work is about a tenth of a microsecond to half of one: freeing a message is one.
//! What is over is gone for all other calls even before: these free the memory.

use crate::rule::Resolver;
use crate::stream::list::NONE;
use crate::streams::{FREED_AT_ONCE_MAX, Streams, WORK_WHEN_FULL};

/// Looking at a stream.
const WORK_OF_STREAM: usize = 2;
/// Ending a stream, or checking it against new rules.
const WORK_OF_END: usize = 4;

/// What a call of `expire` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expired {
    /// How much work was done.
    pub work: usize,
    /// When the next call is useful, in microseconds since 1970: not after now if there is more to
    /// do at once. None: after the next publication or the next change of listeners.
    pub next_us: Option<u64>,
}

/// What a call of `apply_rules` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RulesApplied {
    /// How much work was done.
    pub work: usize,
    /// Whether all streams are checked.
    pub is_done: bool,
}

impl Streams {
    /// Frees messages that are too old and ends streams that were idle for long, until about
    /// `work_max` is done.
    pub fn expire(&mut self, now_us: u64, work_max: usize) -> Expired {
        self.advance(now_us);
        let mut work = self.pending_free.free(work_max);
        if work < work_max {
            work += self.run_due(work_max - work);
        }
        if work < work_max {
            let max = (work_max - work).div_ceil(WORK_OF_END);
            work += WORK_OF_END * self.end_some(NONE, max);
        }
        // The caller's time, which can be before the latest: it must not wait until that.
        // A stream that cannot become smaller exceeds the bounds for good, and is no more to do.
        let next_us = match work >= work_max || !self.pending_free.is_empty() {
            true => Some(now_us),
            false => self.wheel.next_ms().map(|next_ms| next_ms.saturating_mul(1_000)),
        };
        Expired { work, next_us }
    }

    /// Sets the rules of all channels. They hold at once; `apply_rules` frees the memory that they
    /// do not allow any more. A stream whose channel has no history by them ends for good.
    pub fn set_rules(&mut self, resolver: Resolver, now_us: u64) {
        self.advance(now_us);
        self.rules.push(resolver, self.now_ms());
        self.unchecked = Some(0);
    }

    /// Checks streams against the rules that hold, until about `work_max` is done.
    pub fn apply_rules(&mut self, now_us: u64, work_max: usize) -> RulesApplied {
        self.advance(now_us);
        let mut work = 0;
        let Some(mut slot) = self.unchecked else { return RulesApplied { work, is_done: true } };
        while slot < self.slots.end() && work < work_max {
            work += 1;
            if self.slots.get(slot).is_some() {
                work += WORK_OF_END;
                if self.refresh(slot) {
                    self.settle(slot);
                }
            }
            slot += 1;
        }
        let is_done = slot >= self.slots.end();
        self.unchecked = (!is_done).then_some(slot);
        if is_done {
            self.rules.forget_earlier();
        }
        RulesApplied { work, is_done }
    }

    /// Does what is due. Returns the work done.
    pub(crate) fn run_due(&mut self, work_max: usize) -> usize {
        let now_ms = self.now_ms();
        let mut work = 0;
        while work < work_max {
            let Some(slot) = self.wheel.next(now_ms) else { break };
            let stream = self.slots.at(slot);
            let before = stream.allocated_len();
            work += WORK_OF_STREAM;
            if stream.timer.due_ms <= now_ms && !self.refresh(slot) {
                work += WORK_OF_END;
                continue;
            }
            let stream = self.slots.at(slot);
            work += before - stream.allocated_len();
            let due_ms = stream.due_ms();
            self.wheel.set(&mut self.slots, slot, due_ms);
        }
        work
    }

    /// Applies the rules that a stream was not checked against, one after the other, each at the
    /// time from which it held. False: the stream has ended.
    pub(crate) fn apply_to(&mut self, slot: u32) -> bool {
        loop {
            let stream = self.slots.at_mut(slot);
            let Some(next) = self.rules.after(stream.generation) else { return true };
            stream.forget(next.since_ms);
            let is_over = stream.end_ms().is_some_and(|end_ms| end_ms <= next.since_ms);
            match (next.resolver)(&stream.name) {
                Some(rule) if !is_over => {
                    stream.set_rule(rule);
                    stream.generation = next.number;
                }
                _ => {
                    self.end(slot);
                    return false;
                }
            }
        }
    }
}

const _: () = assert!(FREED_AT_ONCE_MAX < WORK_WHEN_FULL);
