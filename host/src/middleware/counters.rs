//! Named numbers with a time to live, which outlive the plugins that count.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The longest key, in bytes.
const KEY_BYTES_MAX: usize = 256;

/// How often a full name space is searched for counters that are outdated.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// All name spaces.
pub struct Counters {
    spaces: Mutex<HashMap<String, Arc<CounterSpace>>>,
    counters_max: usize,
}

/// The counters of one name space.
pub struct CounterSpace {
    counters: Mutex<HashMap<String, Counter>>,
    /// When what is outdated was last looked for: that costs a look at all.
    swept: Mutex<Option<Instant>>,
    counters_max: usize,
}

struct Counter {
    value: i64,
    ends: Instant,
}

/// A counter at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Its value.
    pub value: i64,
    /// In what time it is forgotten.
    pub ttl: Duration,
}

impl Counters {
    /// No name space yet; each may hold so many counters.
    pub fn new(counters_max: usize) -> Counters {
        Counters { spaces: Mutex::default(), counters_max }
    }

    /// The name space of this name, made when it is first asked for.
    pub fn space(&self, name: &str) -> Arc<CounterSpace> {
        let mut spaces = self.spaces.lock();
        let counters_max = self.counters_max;
        spaces
            .entry(name.to_owned())
            .or_insert_with(|| {
                Arc::new(CounterSpace {
                    counters: Mutex::default(),
                    swept: Mutex::default(),
                    counters_max,
                })
            })
            .clone()
    }
}

impl CounterSpace {
    /// Adds to a counter, which begins at zero and is forgotten `ttl` after it
    /// began. None: there is no room, or the key is too long.
    pub fn add(&self, key: String, delta: i64, ttl: Duration) -> Option<Count> {
        self.add_at(Instant::now(), key, delta, ttl)
    }

    /// A counter now.
    pub fn get(&self, key: &str) -> Option<Count> {
        let now = Instant::now();
        let counters = self.counters.lock();
        counters.get(key).filter(|counter| counter.ends > now).map(|counter| counter.count(now))
    }

    fn add_at(&self, now: Instant, key: String, delta: i64, ttl: Duration) -> Option<Count> {
        /// A year: longer than a server runs without being restarted.
        const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);
        if key.len() > KEY_BYTES_MAX {
            return None;
        }
        let mut counters = self.counters.lock();
        if counters.len() >= self.counters_max && !counters.contains_key(&key) {
            let mut swept = self.swept.lock();
            if swept.is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP_INTERVAL) {
                return None;
            }
            *swept = Some(now);
            counters.retain(|_, counter| counter.ends > now);
            if counters.len() >= self.counters_max {
                return None;
            }
        }
        let fresh = || Counter { value: 0, ends: now + ttl.min(TTL_MAX) };
        let counter = counters.entry(key).or_insert_with(fresh);
        if counter.ends <= now {
            *counter = fresh();
        }
        counter.value = counter.value.saturating_add(delta);
        Some(counter.count(now))
    }
}

impl Counter {
    fn count(&self, now: Instant) -> Count {
        Count { value: self.value, ttl: self.ends.saturating_duration_since(now) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn counts_until_the_time_is_over() {
        let space = Counters::new(10).space("a");
        let start = Instant::now();
        let add = |now, delta| space.add_at(now, "k".to_owned(), delta, SECOND).map(|c| c.value);
        assert_eq!(add(start, 2), Some(2));
        assert_eq!(add(start + SECOND / 2, i64::MAX), Some(i64::MAX));
        assert_eq!(add(start + SECOND, 1), Some(1));
    }

    #[test]
    fn is_bounded_and_makes_room_by_forgetting() {
        let space = Counters::new(2).space("a");
        let start = Instant::now();
        let add = |now, key: &str| space.add_at(now, key.to_owned(), 1, SECOND).is_some();
        assert!(add(start, "a") && add(start, "b") && add(start, "a"));
        assert!(!add(start, "c"));
        assert!(add(start + SECOND, "c"));
        assert!(!add(start, &"k".repeat(KEY_BYTES_MAX + 1)));
    }

    /// That costs a look at all, so nobody can ask for it as often as they like.
    #[test]
    fn a_full_space_is_searched_once_a_second() {
        let space = Counters::new(2).space("a");
        let start = Instant::now();
        let add = |ms, key: &str, ttl_ms| {
            let ttl = Duration::from_millis(ttl_ms);
            space.add_at(start + Duration::from_millis(ms), key.to_owned(), 1, ttl).is_some()
        };
        assert!(add(0, "short", 100) && add(0, "long", 10_000));
        // Searched in vain at 50: what ends at 100 is found a second later.
        assert!(!add(50, "new", 100));
        assert!(!add(100, "new", 100) && !add(1049, "new", 100));
        // What is there is counted all the while, and one that ended begins anew.
        assert!(add(1049, "long", 100) && add(1049, "short", 2_000));
        assert!(!add(1050, "new", 100));
        assert!(!add(2049, "new", 100));
        assert!(add(3050, "new", 100));
        assert_eq!(space.counters.lock().len(), 2);
    }
}
