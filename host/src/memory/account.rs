//! How much all connections hold together for one purpose.
//!
//! Each connection accounts for what it holds in whole steps, and for nothing while that is less
//! than one: what passes through quickly costs nothing here. The sum is therefore a little low.
//! For outboxes it may also be far too high, because what is sent to many is in memory once and
//! counted for each. So it only says when a closer look is due; what the look found is good until
//! so much was added that the limit could have been passed.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::percent;

/// The most and the least that a step may be.
const STEP_MAX: usize = 64 << 10;
const STEP_MIN: usize = 4 << 10;
/// What connections hold that is not accounted for comes to this fraction of the limit at most, as
/// far as the least step allows.
const UNACCOUNTED: usize = 8;
/// A further look is due at the earliest when this fraction of the limit was added, so that looks
/// do not follow each other where the limit is almost reached.
const LOOKS: usize = 64;
/// How much of its limit a purpose may take before that is worth a warning, in percent.
pub const WARNING_PERCENT: usize = 80;

/// What all connections hold for one purpose.
#[derive(Debug)]
pub struct Account {
    limit: AtomicUsize,
    per_address: AtomicUsize,
    step: AtomicUsize,
    held: AtomicUsize,
    /// What was ever added.
    added: AtomicU64,
    /// How much must have been added before another look is due.
    look_at: AtomicU64,
}

/// Whether a closer look is due.
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
    /// Nothing is held, and as much as there is may be.
    pub fn unlimited() -> Account {
        Account {
            limit: AtomicUsize::new(usize::MAX),
            per_address: AtomicUsize::new(usize::MAX),
            step: AtomicUsize::new(STEP_MAX),
            held: AtomicUsize::new(0),
            added: AtomicU64::new(0),
            look_at: AtomicU64::new(0),
        }
    }

    /// From here on so much may be held in all and by one address, by so many connections.
    pub fn set_limits(&self, limit: usize, per_address: usize, connections_max: usize) {
        let step = limit / UNACCOUNTED / connections_max.max(1);
        self.step.store(step.clamp(STEP_MIN, STEP_MAX), Ordering::Relaxed);
        self.limit.store(limit, Ordering::Relaxed);
        self.per_address.store(per_address, Ordering::Relaxed);
        // What the last look found was measured by other limits.
        self.look_at.store(0, Ordering::Relaxed);
    }

    /// How much may be held.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// How much connections from one address may hold.
    pub fn per_address(&self) -> usize {
        self.per_address.load(Ordering::Relaxed)
    }

    /// In which steps a connection accounts for what it holds.
    pub fn step(&self) -> usize {
        self.step.load(Ordering::Relaxed)
    }

    /// So many bytes in whole steps.
    pub fn in_steps(&self, bytes: usize) -> usize {
        bytes / self.step() * self.step()
    }

    /// What is accounted for.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// What was ever added.
    pub fn added(&self) -> u64 {
        self.added.load(Ordering::Relaxed)
    }

    /// A connection holds so much more.
    #[must_use]
    pub fn grow(&self, bytes: usize) -> Due {
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let added = self.added.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        let lower = self.limit().min(self.per_address());
        let look_at = self.look_at.load(Ordering::Relaxed);
        if held <= percent(lower, WARNING_PERCENT) || added <= look_at {
            return Due::Not;
        }
        let late_at = look_at.saturating_add((lower / UNACCOUNTED) as u64);
        if held > lower && added > late_at { Due::Now } else { Due::Soon }
    }

    /// A connection holds so much less.
    pub fn shrink(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A look that began when so much had been added found that so much may be added before a
    /// limit can be passed.
    pub fn looked(&self, added: u64, room: usize) {
        let lower = self.limit().min(self.per_address());
        let room = room.max(lower / LOOKS);
        self.look_at.store(added.saturating_add(room as u64), Ordering::Relaxed);
    }

    /// Whether so much is held that how much it is exactly is worth a look now and then.
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
        assert_eq!(account.grow(20 * MIB), Due::Now, "nobody looked");
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
