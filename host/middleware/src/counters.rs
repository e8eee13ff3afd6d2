//! Named counters with a time to live, and token buckets. They outlive the plugins that use them.
//!
//! Of a bucket only the time at which it will be full again is stored. This determines how
//! many tokens it holds at any moment, for any capacity and rate, and when it can be removed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The longest key, in bytes.
const KEY_BYTES_MAX: usize = 256;

/// How many buckets one request may involve, because the name space is locked for that long.
const WITHDRAWALS_MAX: usize = 64;

/// A year: longer than a server runs without being restarted.
const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How often a full name space is searched for expired counters.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// All name spaces.
pub struct Counters {
    spaces: Mutex<HashMap<String, Arc<CounterSpace>>>,
    counters_max: usize,
}

/// The counters and buckets of one name space.
pub struct CounterSpace {
    held: Mutex<Held>,
    counters_max: usize,
}

#[derive(Default)]
struct Held {
    counters: HashMap<String, Counter>,
    /// When each bucket will be full again, of those that are not.
    buckets: HashMap<String, Instant>,
    /// When expired entries were last removed: that iterates over all entries.
    swept: Option<Instant>,
}

struct Counter {
    value: i64,
    ends: Instant,
}

/// The value of a counter at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Its value.
    pub value: i64,
    /// The time until it expires.
    pub ttl: Duration,
}

/// A request for tokens of one bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawal {
    /// The bucket.
    pub key: String,
    /// Its capacity.
    pub capacity: u64,
    /// How many tokens are added in each `refill_time`.
    pub refill: u64,
    /// See there.
    pub refill_time: Duration,
    /// How many are requested.
    pub tokens: u64,
}

/// The result of a request for tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taking {
    /// All buckets had enough tokens, which were removed.
    Granted,
    /// No tokens were removed, because one bucket has too few.
    Short {
        /// Its index in the list.
        position: usize,
        /// The time until it has enough tokens; none: never.
        retry: Option<Duration>,
    },
}

impl Counters {
    /// No name space yet; each may have this many counters.
    pub fn new(counters_max: usize) -> Counters {
        Counters { spaces: Mutex::default(), counters_max }
    }

    /// The name space of this name, created on first use.
    pub fn space(&self, name: &str) -> Arc<CounterSpace> {
        let mut spaces = self.spaces.lock();
        let counters_max = self.counters_max;
        spaces
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(CounterSpace { held: Mutex::default(), counters_max }))
            .clone()
    }
}

impl CounterSpace {
    /// Adds to a counter, which starts at zero and expires `ttl` after it started. None: there is
    /// no room, or the key is too long.
    pub fn add(&self, key: String, delta: i64, ttl: Duration) -> Option<Count> {
        self.add_at(Instant::now(), key, delta, ttl)
    }

    /// The current value of a counter.
    pub fn get(&self, key: &str) -> Option<Count> {
        let now = Instant::now();
        let held = self.held.lock();
        held.counters
            .get(key)
            .filter(|counter| counter.ends > now)
            .map(|counter| counter.count(now))
    }

    /// Takes tokens from all these buckets, or from none. None: there is no room, or a key or the
    /// list is too long.
    pub fn take(&self, withdrawals: Vec<Withdrawal>) -> Option<Taking> {
        self.take_at(Instant::now(), withdrawals)
    }

    fn add_at(&self, now: Instant, key: String, delta: i64, ttl: Duration) -> Option<Count> {
        if key.len() > KEY_BYTES_MAX {
            return None;
        }
        let mut held = self.held.lock();
        if !held.counters.contains_key(&key) && !held.has_room(now, 1, self.counters_max) {
            return None;
        }
        let fresh = || Counter { value: 0, ends: now + ttl.min(TTL_MAX) };
        let counter = held.counters.entry(key).or_insert_with(fresh);
        if counter.ends <= now {
            *counter = fresh();
        }
        counter.value = counter.value.saturating_add(delta);
        Some(counter.count(now))
    }

    fn take_at(&self, now: Instant, withdrawals: Vec<Withdrawal>) -> Option<Taking> {
        let is_too_long = |withdrawal: &Withdrawal| withdrawal.key.len() > KEY_BYTES_MAX;
        if withdrawals.len() > WITHDRAWALS_MAX || withdrawals.iter().any(is_too_long) {
            return None;
        }
        let mut held = self.held.lock();
        // When each would be full again; a bucket may be in the list several times.
        let mut updated: Vec<(String, Instant)> = Vec::with_capacity(withdrawals.len());
        for (position, withdrawal) in withdrawals.into_iter().enumerate() {
            let earlier = updated.iter().rev().find(|(key, _)| *key == withdrawal.key);
            let full_at = earlier.map(|(_, full_at)| full_at);
            let full_at = full_at.or_else(|| held.buckets.get(&withdrawal.key));
            let full_at = full_at.map_or(now, |full_at| now.max(*full_at));
            let full_then = full_at + withdrawal.time_of(withdrawal.tokens);
            let empty_for = withdrawal.time_of(withdrawal.capacity);
            if let Some(over) = (full_then - now).checked_sub(empty_for).filter(|o| !o.is_zero()) {
                let retry = (withdrawal.tokens <= withdrawal.capacity).then_some(over);
                return Some(Taking::Short { position, retry });
            }
            updated.push((withdrawal.key, full_then));
        }
        let news = updated.iter().filter(|(key, _)| !held.buckets.contains_key(key)).count();
        if news > 0 && !held.has_room(now, news, self.counters_max) {
            return None;
        }
        held.buckets.extend(updated);
        Some(Taking::Granted)
    }
}

impl Held {
    /// Whether this many more fit, after removing expired ones if necessary.
    fn has_room(&mut self, now: Instant, more: usize, most: usize) -> bool {
        let fits = |held: &Held| held.counters.len() + held.buckets.len() + more <= most;
        if fits(self) {
            return true;
        }
        let is_soon = |swept: Instant| now.saturating_duration_since(swept) < SWEEP_INTERVAL;
        if self.swept.is_some_and(is_soon) {
            return false;
        }
        self.swept = Some(now);
        self.counters.retain(|_, counter| counter.ends > now);
        self.buckets.retain(|_, full_at| *full_at > now);
        fits(self)
    }
}

impl Withdrawal {
    /// The time to refill this many tokens.
    fn time_of(&self, tokens: u64) -> Duration {
        let refill_nanos = self.refill_time.max(Duration::from_millis(1)).as_nanos();
        let nanos = u128::from(tokens).saturating_mul(refill_nanos);
        let nanos = nanos.div_ceil(u128::from(self.refill.max(1)));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).min(TTL_MAX)
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

    /// The search visits all counters, so its rate is bounded.
    #[test]
    fn a_full_space_is_searched_once_a_second() {
        let space = Counters::new(2).space("a");
        let start = Instant::now();
        let add = |ms, key: &str, ttl_ms| {
            let ttl = Duration::from_millis(ttl_ms);
            space.add_at(start + Duration::from_millis(ms), key.to_owned(), 1, ttl).is_some()
        };
        assert!(add(0, "short", 100) && add(0, "long", 10_000));
        // The search at 50 found nothing: a counter that expires at 100 is removed a second later.
        assert!(!add(50, "new", 100));
        assert!(!add(100, "new", 100) && !add(1049, "new", 100));
        // Existing counters are still counted, and one that has ended starts again.
        assert!(add(1049, "long", 100) && add(1049, "short", 2_000));
        assert!(!add(1050, "new", 100));
        assert!(!add(2049, "new", 100));
        assert!(add(3050, "new", 100));
        assert_eq!(space.held.lock().counters.len(), 2);
    }

    fn withdrawal(key: &str, tokens: u64) -> Withdrawal {
        // Ten at once, and one every 100 ms.
        let key = key.to_owned();
        Withdrawal { key, capacity: 10, refill: 10, refill_time: SECOND, tokens }
    }

    #[test]
    fn a_bucket_is_full_at_first_and_filled_steadily() {
        let space = Counters::new(10).space("a");
        let start = Instant::now();
        let take = |after_ms, tokens| {
            let now = start + Duration::from_millis(after_ms);
            space.take_at(now, vec![withdrawal("k", tokens)])
        };
        let short = |retry_ms| {
            Some(Taking::Short { position: 0, retry: Some(Duration::from_millis(retry_ms)) })
        };
        assert_eq!(take(0, 4), Some(Taking::Granted));
        assert_eq!(take(0, 7), short(100));
        assert_eq!(take(0, 6), Some(Taking::Granted));
        assert_eq!(take(0, 1), short(100));
        assert_eq!(take(50, 1), short(50));
        assert_eq!(take(100, 1), Some(Taking::Granted));
        assert_eq!(take(100, 0), Some(Taking::Granted));
        // However long no token is removed, the bucket never holds more than its capacity.
        assert_eq!(take(3_600_000, 11), Some(Taking::Short { position: 0, retry: None }));
        assert_eq!(take(3_600_000, 10), Some(Taking::Granted));
        assert_eq!(take(3_600_000, 1), short(100));
    }

    #[test]
    fn tokens_are_removed_from_all_buckets_or_from_none() {
        let space = Counters::new(10).space("a");
        let now = Instant::now();
        let take = |wanted: &[(&str, u64)]| {
            let wanted = wanted.iter().map(|(key, tokens)| withdrawal(key, *tokens));
            space.take_at(now, wanted.collect())
        };
        assert_eq!(take(&[("a", 10), ("b", 4)]), Some(Taking::Granted));
        let retry = Some(Duration::from_millis(200));
        assert_eq!(take(&[("b", 5), ("a", 2)]), Some(Taking::Short { position: 1, retry }));
        assert_eq!(take(&[("b", 6)]), Some(Taking::Granted));
        // One bucket twice.
        let retry = Some(Duration::from_millis(100));
        let twice = take(&[("c", 6), ("c", 5)]);
        assert_eq!(twice, Some(Taking::Short { position: 1, retry }));
        assert_eq!(take(&[("c", 6), ("c", 4)]), Some(Taking::Granted));
        assert_eq!(take(&[("c", 1)]), Some(Taking::Short { position: 0, retry }));
    }

    #[test]
    fn buckets_are_bounded_and_forgotten_when_they_are_full() {
        let space = Counters::new(2).space("a");
        let start = Instant::now();
        let take = |now, key| space.take_at(now, vec![withdrawal(key, 10)]);
        assert!(take(start, "a").is_some());
        assert!(space.add_at(start, "a".to_owned(), 1, SECOND).is_some(), "another thing");
        assert_eq!(take(start, "b"), None);
        assert_eq!(take(start + SECOND, "b"), Some(Taking::Granted));
        let long = "k".repeat(KEY_BYTES_MAX + 1);
        assert_eq!(take(start + SECOND, &long), None);
        let many = vec![withdrawal("b", 0); WITHDRAWALS_MAX + 1];
        assert_eq!(space.take_at(start, many), None);
    }

    #[test]
    fn what_a_plugin_makes_up_does_no_harm() {
        let space = Counters::new(2).space("a");
        let withdrawal = Withdrawal {
            key: String::new(),
            capacity: u64::MAX,
            refill: 0,
            refill_time: Duration::from_millis(u64::MAX),
            tokens: u64::MAX,
        };
        let now = Instant::now();
        assert_eq!(space.take_at(now, vec![withdrawal.clone()]), Some(Taking::Granted));
        let again = space.take_at(now, vec![withdrawal]);
        assert!(matches!(again, Some(Taking::Short { position: 0, retry: Some(_) })));
    }
}
