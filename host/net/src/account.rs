//! How much all connections together hold for one purpose.
//!
//! Each connection accounts for what it holds in whole steps, and for nothing below one step:
//! small, short-lived buffers cost nothing here. The sum is therefore a little low. For outboxes it
//! may also be far too high, because a buffer that is sent to many connections is in memory once
//! and counted for each. So the sum only says when an exact survey is due. The result of a survey
//! is valid until so much was added that the limit could have been exceeded.

use std::sync::atomic::{AtomicIsize, AtomicU64, AtomicUsize, Ordering};

use switchyard_config::memory::percent;

/// The largest and the smallest step.
const STEP_MAX: usize = 64 << 10;
const STEP_MIN: usize = 4 << 10;
/// What connections hold and have not accounted for is at most this fraction of the limit, as far
/// as the smallest step allows.
const UNACCOUNTED: usize = 8;
/// The next survey is due at the earliest when this fraction of the limit was added, so that
/// surveys do not follow each other directly when the limit is almost reached.
const LOOKS: usize = 64;
/// The share of its limit above which a purpose causes a warning, in percent.
pub const WARNING_PERCENT: usize = 80;

/// The total of all connections for one purpose.
#[derive(Debug)]
pub struct Account {
    limit: AtomicUsize,
    per_address: AtomicUsize,
    step: AtomicUsize,
    /// Below zero for a moment when one thread subtracts what another is about to add.
    held: AtomicIsize,
    /// All that was ever added.
    added: AtomicU64,
    /// The value of `added` at which the next survey is due.
    look_at: AtomicU64,
}

/// Whether a survey is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Due {
    /// It is not.
    Not,
    /// The limit may have been passed.
    Soon,
    /// The limit may have been exceeded by far, and no check has run since.
    Now,
}

impl Account {
    /// Nothing is held, and there is no limit.
    pub fn unlimited() -> Account {
        Account {
            limit: AtomicUsize::new(usize::MAX),
            per_address: AtomicUsize::new(usize::MAX),
            step: AtomicUsize::new(STEP_MAX),
            held: AtomicIsize::new(0),
            added: AtomicU64::new(0),
            look_at: AtomicU64::new(0),
        }
    }

    /// Sets the limits in total and for one address, for this many connections.
    pub fn set_limits(&self, limit: usize, per_address: usize, connections_max: usize) {
        let step = limit / UNACCOUNTED / connections_max.max(1);
        self.step.store(step.clamp(STEP_MIN, STEP_MAX), Ordering::Relaxed);
        self.limit.store(limit, Ordering::Relaxed);
        self.per_address.store(per_address, Ordering::Relaxed);
        // The last result was measured with other limits.
        self.look_at.store(0, Ordering::Relaxed);
    }

    /// The limit in total.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// The limit for the connections of one address.
    pub fn per_address(&self) -> usize {
        self.per_address.load(Ordering::Relaxed)
    }

    /// The size of a step.
    pub fn step(&self) -> usize {
        self.step.load(Ordering::Relaxed)
    }

    /// Rounds down to whole steps.
    pub fn in_steps(&self, bytes: usize) -> usize {
        bytes / self.step() * self.step()
    }

    /// What is accounted for.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed).max(0) as usize
    }

    /// All that was ever added.
    pub fn added(&self) -> u64 {
        self.added.load(Ordering::Relaxed)
    }

    /// Adds to what a connection holds.
    #[must_use]
    pub fn grow(&self, bytes: usize) -> Due {
        let held = self.held.fetch_add(bytes as isize, Ordering::Relaxed) + bytes as isize;
        let held = held.max(0) as usize;
        let added = self.added.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        let lower = self.limit().min(self.per_address());
        let look_at = self.look_at.load(Ordering::Relaxed);
        if held <= percent(lower, WARNING_PERCENT) || added <= look_at {
            return Due::Not;
        }
        let late_at = look_at.saturating_add((lower / UNACCOUNTED) as u64);
        if held > lower && added > late_at { Due::Now } else { Due::Soon }
    }

    /// Subtracts from what a connection holds.
    pub fn shrink(&self, bytes: usize) {
        self.held.fetch_sub(bytes as isize, Ordering::Relaxed);
    }

    /// Records the result of a survey that started at this value of `added`: how much may be added
    /// before a limit can be exceeded.
    pub fn looked(&self, added: u64, room: usize) {
        let lower = self.limit().min(self.per_address());
        let room = room.max(lower / LOOKS);
        self.look_at.store(added.saturating_add(room as u64), Ordering::Relaxed);
    }

    /// Whether the total is so large that an exact survey is worthwhile from time to time.
    pub fn is_worth_a_look(&self) -> bool {
        self.held() > percent(self.limit(), WARNING_PERCENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn account(limit: usize, per_address: usize) -> Account {
        let account = Account::unlimited();
        account.set_limits(limit, per_address, 100);
        account
    }

    #[test]
    fn steps_are_small_enough_that_little_is_not_accounted_for() {
        let check = |limit, connections_max, expected| {
            let account = Account::unlimited();
            account.set_limits(limit, limit, connections_max);
            assert_eq!(account.step(), expected);
        };
        check(64 << 30, 10_000, STEP_MAX);
        check(64 * MIB, 512, 16 << 10);
        check(64 * MIB, 10_000, STEP_MIN);
        check(0, 0, STEP_MIN);
    }

    #[test]
    fn a_look_is_due_before_the_limit_can_have_been_passed() {
        let account = account(100 * MIB, usize::MAX);
        assert_eq!(account.grow(80 * MIB), Due::Not);
        assert_eq!(account.grow(MIB), Due::Soon);
        // All but 10 MiB of it is shared.
        account.looked(account.added(), 90 * MIB);
        assert_eq!(account.grow(89 * MIB), Due::Not);
        assert_eq!(account.grow(2 * MIB), Due::Soon);
        assert_eq!(account.grow(20 * MIB), Due::Now, "there was no survey");
    }

    #[test]
    fn what_comes_and_goes_needs_no_look() {
        let account = account(100 * MIB, usize::MAX);
        for _ in 0..1_000 {
            assert_eq!(account.grow(50 * MIB), Due::Not);
            account.shrink(50 * MIB);
        }
        assert_eq!(account.held(), 0);
    }

    #[test]
    fn what_is_subtracted_before_it_is_added_is_not_taken_for_too_much() {
        let account = account(100 * MIB, 10 * MIB);
        // A connection has noted that it holds a megabyte, and is closed before it adds it here.
        account.shrink(MIB);
        assert_eq!(account.held(), 0);
        assert!(!account.is_worth_a_look());
        assert_eq!(account.grow(MIB / 2), Due::Not);
        assert_eq!(account.grow(MIB / 2), Due::Not);
        assert_eq!(account.held(), 0);
    }

    #[test]
    fn looks_do_not_follow_each_other_at_the_limit() {
        let account = account(64 * MIB, usize::MAX);
        assert_eq!(account.grow(65 * MIB), Due::Now);
        account.looked(account.added(), 0);
        assert_eq!(account.grow(MIB), Due::Not);
        assert_eq!(account.grow(1), Due::Soon);
    }

    #[test]
    fn the_limit_of_an_address_is_looked_after_as_well() {
        let account = account(100 * MIB, 10 * MIB);
        assert_eq!(account.grow(8 * MIB), Due::Not);
        assert_eq!(account.grow(MIB), Due::Soon);
    }
}
