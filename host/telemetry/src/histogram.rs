//! A histogram of times.

use std::array;
use std::iter::Sum;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The number of buckets of a histogram, without the last one, which has no bound.
pub const BUCKETS: usize = 16;

/// A histogram of times, with buckets that double: up to 1.024 µs, up to 2.048 µs, and so on up to
/// 33.6 ms, and longer.
#[derive(Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS + 1],
    sum_ns: AtomicU64,
}

/// The upper bound of the first bucket is this power of two, in nanoseconds.
const FIRST_BUCKET_BITS: u32 = 10;

impl Histogram {
    /// Records a time.
    pub fn record(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get(bucket_of(ns)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// The current values.
    pub fn read(&self) -> HistogramReading {
        HistogramReading {
            counts: array::from_fn(|bucket| {
                self.buckets.get(bucket).map_or(0, |count| count.load(Ordering::Relaxed))
            }),
            sum: Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed)),
        }
    }
}

/// The bucket whose bound is the lowest that is not below `ns`.
fn bucket_of(ns: u64) -> usize {
    let bits = u64::BITS - ns.saturating_sub(1).leading_zeros();
    (bits.saturating_sub(FIRST_BUCKET_BITS) as usize).min(BUCKETS)
}

/// The values of a histogram at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistogramReading {
    /// How many times are in each bucket; the last one has no bound.
    pub counts: [u64; BUCKETS + 1],
    /// The sum of the times.
    pub sum: Duration,
}

impl HistogramReading {
    /// How many times were recorded.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The upper bounds of the buckets; the last has none.
    pub fn bounds() -> [Duration; BUCKETS] {
        array::from_fn(|bucket| Duration::from_nanos(1 << (FIRST_BUCKET_BITS + bucket as u32)))
    }

    /// The bound of this quantile, from 0 to 1. None: nothing was recorded, or it is over the
    /// highest bound.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let counts = self.counts.iter().zip(HistogramReading::bounds());
        counts.into_iter().find_map(|(count, bound)| {
            seen += count;
            (seen >= wanted).then_some(bound)
        })
    }
}

impl Sum for HistogramReading {
    fn sum<I: Iterator<Item = HistogramReading>>(readings: I) -> HistogramReading {
        let none = HistogramReading { counts: [0; BUCKETS + 1], sum: Duration::ZERO };
        readings.fold(none, |mut all, one| {
            all.counts.iter_mut().zip(one.counts).for_each(|(all, one)| *all += one);
            all.sum += one.sum;
            all
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_falls_into_the_bucket_whose_bound_it_does_not_pass() {
        for (ns, bucket) in
            [(0, 0), (1, 0), (1_024, 0), (1_025, 1), (2_048, 1), (2_049, 2), (u64::MAX, BUCKETS)]
        {
            assert_eq!(bucket_of(ns), bucket, "{ns}");
        }
        for (bucket, bound) in HistogramReading::bounds().into_iter().enumerate() {
            assert_eq!(bucket_of(bound.as_nanos() as u64), bucket);
            assert_eq!(bucket_of(bound.as_nanos() as u64 + 1), bucket + 1);
        }
    }

    #[test]
    fn a_quantile_is_the_bound_that_holds_it() {
        let histogram = Histogram::default();
        assert_eq!(histogram.read().quantile(0.5), None);
        for us in [1, 1, 3, 1_000_000] {
            histogram.record(Duration::from_micros(us));
        }
        let reading = histogram.read();
        assert_eq!(reading.count(), 4);
        assert_eq!(reading.sum, Duration::from_micros(1_000_005));
        assert_eq!(reading.quantile(0.5), Some(Duration::from_nanos(1 << 10)));
        assert_eq!(reading.quantile(0.75), Some(Duration::from_nanos(1 << 12)));
        assert_eq!(reading.quantile(1.0), None);
    }
}
