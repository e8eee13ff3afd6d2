//! Token buckets, one for each address, kept only while they are not full.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use switchyard_config::networks::counted_as;

/// The capacity of a bucket, and its refill rate.
#[derive(Debug, Clone, Copy)]
pub struct Refill {
    per_token: Duration,
    all: Duration,
}

impl Refill {
    /// This many tokens, all of which are refilled within a minute.
    pub fn per_minute(tokens: usize) -> Refill {
        let tokens = u32::try_from(tokens.max(1)).unwrap_or(u32::MAX);
        let per_token = (Duration::from_secs(60) / tokens).max(Duration::from_nanos(1));
        Refill { per_token, all: per_token.saturating_mul(tokens) }
    }
}

/// A token bucket. A new one is full.
#[derive(Debug, Default, Clone, Copy)]
pub struct Bucket {
    /// None: it has always been full.
    full_at: Option<Instant>,
}

impl Bucket {
    /// Whether there is a token.
    pub fn has_token(self, refill: Refill, now: Instant) -> bool {
        let until_full = self.until_full(now);
        until_full.saturating_add(refill.per_token) <= refill.all
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, refill: Refill, now: Instant) -> bool {
        let has_token = self.has_token(refill, now);
        if has_token {
            self.full_at = Some(now + self.until_full(now) + refill.per_token);
        }
        has_token
    }

    fn until_full(self, now: Instant) -> Duration {
        self.full_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }
}

/// A bucket for each address; of IPv6, for each /64. At most this many addresses have a bucket of
/// their own at once; the others share one.
pub struct AddressBuckets {
    addresses_max: usize,
    buckets: Mutex<Buckets>,
}

#[derive(Default)]
struct Buckets {
    /// Those that are not full. The hash is keyed: peers choose their addresses.
    own: HashMap<IpAddr, Bucket>,
    shared: Bucket,
    /// When full ones were last removed.
    swept: Option<Instant>,
}

impl AddressBuckets {
    /// Buckets that are all full.
    pub fn new(addresses_max: usize) -> AddressBuckets {
        AddressBuckets { addresses_max, buckets: Mutex::default() }
    }

    /// Whether this address has a token.
    pub fn has_token(&self, address: IpAddr, refill: Refill, now: Instant) -> bool {
        let buckets = self.buckets.lock();
        let is_full_up = buckets.own.len() >= self.addresses_max;
        let bucket = match buckets.own.get(&counted_as(address)) {
            Some(own) => *own,
            None if is_full_up => buckets.shared,
            None => Bucket::default(),
        };
        bucket.has_token(refill, now)
    }

    /// Takes a token of this address, if there is one.
    pub fn take(&self, address: IpAddr, refill: Refill, now: Instant) -> bool {
        let mut buckets = self.buckets.lock();
        let buckets = &mut *buckets;
        let address = counted_as(address);
        if buckets.own.len() >= self.addresses_max && !buckets.own.contains_key(&address) {
            // At most once a second: an attacker with many addresses must not cause a scan of all
            // buckets with each attempt.
            let is_due = |swept: Instant| now.saturating_duration_since(swept).as_secs() >= 1;
            if buckets.swept.is_none_or(is_due) {
                buckets.swept = Some(now);
                buckets.own.retain(|_, bucket| !bucket.until_full(now).is_zero());
            }
            if buckets.own.len() >= self.addresses_max {
                return buckets.shared.take(refill, now);
            }
        }
        buckets.own.entry(address).or_default().take(refill, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn a_bucket_holds_a_minutes_worth_and_fills_again() {
        let refill = Refill::per_minute(3);
        let began = Instant::now();
        let mut bucket = Bucket::default();
        for _ in 0..3 {
            assert!(bucket.take(refill, began));
        }
        assert!(!bucket.take(refill, began));
        let later = began + Duration::from_secs(20);
        assert!(bucket.has_token(refill, later) && bucket.take(refill, later));
        assert!(!bucket.has_token(refill, later));
        let much_later = began + Duration::from_secs(600);
        for _ in 0..3 {
            assert!(bucket.take(refill, much_later));
        }
        assert!(!bucket.take(refill, much_later));
    }

    #[test]
    fn the_largest_and_the_smallest_rate_can_be_had() {
        let now = Instant::now();
        for tokens in [0, 1, usize::MAX] {
            let mut bucket = Bucket::default();
            assert!(bucket.take(Refill::per_minute(tokens), now), "{tokens}");
        }
    }

    #[test]
    fn addresses_do_not_share_until_there_are_too_many() {
        let refill = Refill::per_minute(1);
        let now = Instant::now();
        let buckets = AddressBuckets::new(2);
        assert!(buckets.take(address(1), refill, now));
        assert!(!buckets.take(address(1), refill, now));
        assert!(buckets.has_token(address(2), refill, now));
        assert!(buckets.take(address(2), refill, now));
        // There is no room for more: these share a bucket.
        assert!(buckets.take(address(3), refill, now));
        assert!(!buckets.take(address(4), refill, now));
        assert!(!buckets.has_token(address(5), refill, now));
        // Full buckets are removed to make room.
        let later = now + Duration::from_secs(60);
        assert!(buckets.take(address(4), refill, later));
        assert_eq!(buckets.buckets.lock().own.len(), 1);
    }
}
