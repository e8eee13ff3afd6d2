//! Limits how many items a plugin gets in one call, so that the call ends well within its budget.
//!
//! The items that many connections publish at once are one call with one budget. A plugin that
//! needs a millisecond for each message would exceed the budget through no fault of its own. So the
//! longer a plugin takes for an item, the fewer items it gets in one call.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The weight of an item besides its bytes.
pub const ITEM_WEIGHT: usize = 64;
/// How much of the budget a call should use. The rest is for items that cost more than earlier
/// ones, and for the clock, which also runs while the thread is preempted.
const BUDGET_SHARE: u64 = 8;
/// The maximum weight of the first call: a few short messages.
const FIRST_WEIGHT: u64 = 1024;
/// The weight of one call in the average: one part of this many.
const MEMORY: u64 = 8;
/// By how much a slow call counts at most, relative to earlier ones, if it was within its budget:
/// the thread may have been preempted during the call.
const SLOWER_MAX: u64 = 2;
/// The weight above which a single item shows how fast a plugin is with large items: for smaller
/// ones the time is mostly the fixed cost of a call.
const LARGE_WEIGHT: usize = 32 << 10;
const PICOS: u64 = 1_000;

/// The estimate for one hook of one plugin. Calls are weighted, so that the fixed cost of a call is
/// not counted as the cost of a message.
#[derive(Debug)]
pub struct CallSize {
    /// The target duration of a call, in picoseconds.
    target: u64,
    /// The duration of the last calls, in picoseconds, and their weight. Concurrent updates may
    /// overwrite each other.
    took: AtomicU64,
    weight: AtomicU64,
    /// The time per unit of weight of the fastest large single item, in picoseconds; zero: there
    /// was none.
    quickest: AtomicU64,
}

impl CallSize {
    /// No estimate yet. Calls may take this long.
    pub fn new(budget: Duration) -> CallSize {
        let target = picos(budget) / BUDGET_SHARE;
        CallSize {
            target,
            took: AtomicU64::new(target),
            weight: AtomicU64::new(FIRST_WEIGHT),
            quickest: AtomicU64::new(0),
        }
    }

    /// The maximum weight of the next call.
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

    /// Records a single item of this weight that took this long.
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

    /// Whether a single item of this weight may be processed within the budget. Only an item that
    /// would exceed it at the best rate seen is rejected.
    pub fn can_manage(&self, weight: usize) -> bool {
        weight < LARGE_WEIGHT || {
            let best = self.quickest.load(Ordering::Relaxed).saturating_mul(weight as u64);
            best <= self.target.saturating_mul(BUDGET_SHARE)
        }
    }

    /// The time per unit of weight, in picoseconds.
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
    /// More than any call may have.
    const ALL: usize = 256 * ITEM_WEIGHT + (64 << 10);

    fn call(size: &CallSize, waiting: usize, nanos_a_call: u64, nanos_each: u64) {
        let weight = size.weight_max().clamp(1, waiting);
        size.learn(weight, Duration::from_nanos(nanos_a_call + nanos_each * weight as u64));
    }

    #[test]
    fn a_fast_plugin_gets_all_items_in_one_call_and_a_slow_plugin_gets_few() {
        let learnt = |nanos_each: u64| {
            let size = CallSize::new(BUDGET);
            (0..100).for_each(|_| call(&size, ALL, 1_000, nanos_each));
            size.weight_max()
        };
        assert!(learnt(2) > ALL, "two of three limits never met");
        let slow = learnt(250);
        assert!((4_000..6_000).contains(&slow), "{slow}: 1.25 ms are 5,000 times 250 ns");
    }

    #[test]
    fn one_message_at_a_time_says_little_of_many() {
        let size = CallSize::new(BUDGET);
        (0..100).for_each(|_| call(&size, 164, 5_000, 5));
        assert!(size.weight_max() > 20_000, "{}", size.weight_max());
    }

    #[test]
    fn a_call_that_was_held_up_counts_little_and_one_that_failed_counts() {
        let size = CallSize::new(BUDGET);
        (0..100).for_each(|_| call(&size, ALL, 1_000, 3));
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
        // Small items and failures are ignored.
        size.managed(LARGE_WEIGHT - 1, BUDGET);
        assert!(size.can_manage(1 << 20));
        size.managed(100 << 10, Duration::from_millis(2));
        assert!(size.can_manage(499 << 10) && !size.can_manage(501 << 10));
        assert!(size.can_manage(LARGE_WEIGHT - 1));
        // A call that was preempted does not count against it.
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
