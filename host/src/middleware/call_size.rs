//! How much a plugin is shown in one call, so that the call ends well within its budget.
//!
//! What many connections publish at once is one call, and its budget is that of a call. A
//! plugin that needs a millisecond for each message would pass it for no fault of its own, so
//! it is shown the less at once the longer it takes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What an item weighs besides its bytes.
pub const ITEM_WEIGHT: usize = 64;
/// How much of the budget a call should take: there is room for what costs more than what
/// came before, and for the clock, which also runs while others run.
const BUDGET_SHARE: u64 = 8;
/// How much the first call is shown: a few short messages.
const FIRST_WEIGHT: u64 = 1024;
/// How much a call counts among those before it: one part of so many.
const MEMORY: u64 = 8;
/// How much slower than those before it a call counts at most, if it was within its budget:
/// the thread may have been preempted during the call.
const SLOWER_MAX: u64 = 2;
/// From what weight on a single item says how quick a plugin is with large ones: less is
/// mostly the price of a call.
const LARGE_WEIGHT: usize = 32 << 10;
const PICOS: u64 = 1_000;

/// What has been learnt of one hook of one plugin. Calls count by what they weigh, so that what
/// any call costs is not taken for the price of a message.
#[derive(Debug)]
pub struct CallSize {
    /// How long a call should take, in picoseconds.
    target: u64,
    /// What the last calls took, in picoseconds, and weighed. Who learns at the same time may
    /// undo what the other has learnt.
    took: AtomicU64,
    weight: AtomicU64,
    /// What a unit of weight took of the large single item that was the quickest, in
    /// picoseconds; zero: there was none.
    quickest: AtomicU64,
}

impl CallSize {
    /// Nothing has been learnt. Calls may take this long.
    pub fn new(budget: Duration) -> CallSize {
        let target = picos(budget) / BUDGET_SHARE;
        CallSize {
            target,
            took: AtomicU64::new(target),
            weight: AtomicU64::new(FIRST_WEIGHT),
            quickest: AtomicU64::new(0),
        }
    }

    /// How much the next call should be shown at most.
    pub fn weight_max(&self) -> usize {
        usize::try_from(self.target / self.each()).unwrap_or(usize::MAX)
    }

    /// Records a call: the weight of its items, and how long it took. Zero: there was no
    /// instance to call.
    pub fn learn(&self, weight: usize, took: Duration) {
        if took.is_zero() {
            return;
        }
        let (weight, mut took) = ((weight as u64).max(1), picos(took));
        if took <= self.target.saturating_mul(BUDGET_SHARE) {
            took = took.min(self.each().saturating_mul(SLOWER_MAX).saturating_mul(weight));
        }
        let add = |sum: &AtomicU64, one: u64| {
            let before = sum.load(Ordering::Relaxed);
            sum.store((before - before / MEMORY).saturating_add(one), Ordering::Relaxed);
        };
        add(&self.took, took);
        add(&self.weight, weight);
    }

    /// A single item of this weight was answered, and took so long.
    pub fn managed(&self, weight: usize, took: Duration) {
        if weight < LARGE_WEIGHT {
            return;
        }
        // The call was within its budget, which is processor time. More wall time than that
        // means that the thread was preempted.
        let took = picos(took).min(self.target.saturating_mul(BUDGET_SHARE));
        let each = (took / weight as u64).max(1);
        let before = self.quickest.load(Ordering::Relaxed);
        if before == 0 || each < before {
            self.quickest.store(each, Ordering::Relaxed);
        }
    }

    /// Whether a single item of this weight may be answered within the budget. Refused is
    /// only what would not be even at the best pace that was seen.
    pub fn can_manage(&self, weight: usize) -> bool {
        weight < LARGE_WEIGHT || {
            let best = self.quickest.load(Ordering::Relaxed).saturating_mul(weight as u64);
            best <= self.target.saturating_mul(BUDGET_SHARE)
        }
    }

    /// What a unit of weight takes, in picoseconds.
    fn each(&self) -> u64 {
        let (took, weight) =
            (self.took.load(Ordering::Relaxed), self.weight.load(Ordering::Relaxed));
        (took / weight.max(1)).max(1)
    }
}

fn picos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).saturating_mul(PICOS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_millis(10);
    /// More than any call may be shown.
    const ALL: usize = 256 * ITEM_WEIGHT + (64 << 10);

    fn ask(size: &CallSize, waiting: usize, nanos_a_call: u64, nanos_each: u64) {
        let weight = size.weight_max().clamp(1, waiting);
        size.learn(weight, Duration::from_nanos(nanos_a_call + nanos_each * weight as u64));
    }

    #[test]
    fn who_is_quick_is_shown_all_and_who_is_slow_little() {
        let learnt = |nanos_each: u64| {
            let size = CallSize::new(BUDGET);
            (0..100).for_each(|_| ask(&size, ALL, 1_000, nanos_each));
            size.weight_max()
        };
        assert!(learnt(2) > ALL, "two of three limits never met");
        let slow = learnt(250);
        assert!((4_000..6_000).contains(&slow), "{slow}: 1.25 ms are 5,000 times 250 ns");
    }

    #[test]
    fn one_message_at_a_time_says_little_of_many() {
        let size = CallSize::new(BUDGET);
        (0..100).for_each(|_| ask(&size, 164, 5_000, 5));
        assert!(size.weight_max() > 20_000, "{}", size.weight_max());
    }

    #[test]
    fn a_call_that_was_held_up_counts_little_and_one_that_failed_counts() {
        let size = CallSize::new(BUDGET);
        (0..100).for_each(|_| ask(&size, ALL, 1_000, 3));
        let before = size.weight_max();
        size.learn(1_000, Duration::ZERO);
        assert_eq!(size.weight_max(), before);
        size.learn(1_000, BUDGET);
        assert!(size.weight_max() > before / 2);
        size.learn(1_000, 2 * BUDGET);
        assert!(size.weight_max() < before / 4, "{before}, {}", size.weight_max());
    }

    #[test]
    fn what_would_not_fit_at_the_best_pace_seen_is_not_tried() {
        let size = CallSize::new(BUDGET);
        assert!(size.can_manage(usize::MAX), "nothing has been seen yet");
        // Small items and failures say nothing.
        size.managed(LARGE_WEIGHT - 1, BUDGET);
        assert!(size.can_manage(1 << 20));
        size.managed(100 << 10, Duration::from_millis(2));
        assert!(size.can_manage(499 << 10) && !size.can_manage(501 << 10));
        assert!(size.can_manage(LARGE_WEIGHT - 1));
        // One that was held up does not count against it.
        size.managed(400 << 10, Duration::from_secs(1));
        assert!(size.can_manage(499 << 10));
        size.managed(400 << 10, Duration::from_millis(1));
        assert!(size.can_manage(1 << 20));
    }

    #[test]
    fn no_number_is_too_large_or_too_small() {
        for budget in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            let size = CallSize::new(budget);
            for took in [Duration::ZERO, Duration::MAX, Duration::from_nanos(1)] {
                for weight in [0, 1, usize::MAX] {
                    (0..100).for_each(|_| size.learn(weight, took));
                    size.managed(weight, took);
                    let _either = size.can_manage(weight);
                    let _any = size.weight_max();
                }
            }
        }
    }
}
