//! Attribution of plugin failures to connections.
//!
//! A failure that the items of one connection caused counts against that connection. A connection
//! that caused several is isolated: the plugin is not called for its items for a while, and the
//! policy decides about them. So a client that can make a plugin fail cannot have other clients
//! refused or the plugin parked; a plugin is parked for failures of several origins.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use switchyard_types::ids::ConnectionId;

/// How many connections are tracked at once. The one whose last failure is the oldest is dropped.
const SUSPECTS_MAX: usize = 1_024;

/// What caused a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// An item of this connection.
    Connection(ConnectionId),
    /// A call with several items: the one that caused it is determined afterwards.
    Batch,
    /// No connection: the plugin itself.
    Plugin,
}

/// The origin of a failure that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// All clients of this address; for IPv6, of the /64 network.
    Address(IpAddr),
    /// A connection whose address is shared by several clients.
    Connection(ConnectionId),
    /// The plugin itself.
    Plugin,
}

impl Origin {
    /// A client of this address.
    pub fn of(address: IpAddr) -> Origin {
        Origin::Address(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX)).into(),
        })
    }
}

/// Failures within a window, one for each origin.
#[derive(Default)]
pub struct Strikes(VecDeque<(Instant, Origin)>);

impl Strikes {
    /// Adds a failure, and returns how many there are within `window`. Of each origin other than
    /// the plugin only the last failure counts.
    pub fn add(&mut self, now: Instant, origin: Origin, window: Duration) -> usize {
        self.0.retain(|(at, before)| {
            let is_same = *before == origin && origin != Origin::Plugin;
            !is_same && now.saturating_duration_since(*at) < window
        });
        self.0.push_back((now, origin));
        self.0.len()
    }

    /// Forgets all failures.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// The connections whose items made a plugin fail.
#[derive(Default)]
pub struct Isolation {
    /// At most how many are isolated: read before each call.
    isolated: AtomicUsize,
    suspects: Mutex<BTreeMap<ConnectionId, Suspect>>,
}

struct Suspect {
    failures: usize,
    last: Instant,
    is_isolated: bool,
}

impl Isolation {
    /// Whether any connection may be isolated.
    pub fn is_used(&self) -> bool {
        self.isolated.load(Ordering::Relaxed) > 0
    }

    /// How many connections are isolated.
    pub fn count(&self, now: Instant, window: Duration) -> usize {
        if self.is_used() {
            self.forget(&mut self.suspects.lock(), now, window);
        }
        self.isolated.load(Ordering::Relaxed)
    }

    /// Counts a failure against a connection. Returns whether it is isolated by that: with the
    /// `failures_max`-th within `window`.
    pub fn blame(
        &self,
        now: Instant,
        connection: ConnectionId,
        failures_max: usize,
        window: Duration,
    ) -> bool {
        let mut suspects = self.suspects.lock();
        self.forget(&mut suspects, now, window);
        if suspects.len() >= SUSPECTS_MAX && !suspects.contains_key(&connection) {
            let oldest = suspects.iter().min_by_key(|(_, suspect)| suspect.last);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                suspects.remove(&oldest);
            }
        }
        let suspect = suspects.entry(connection).or_insert(Suspect {
            failures: 0,
            last: now,
            is_isolated: false,
        });
        suspect.failures += 1;
        suspect.last = now;
        let is_new = suspect.failures >= failures_max && !suspect.is_isolated;
        suspect.is_isolated |= is_new;
        self.recount(&suspects);
        is_new
    }

    /// Which of these connections are isolated.
    pub fn among(
        &self,
        now: Instant,
        connections: impl Iterator<Item = ConnectionId>,
        window: Duration,
    ) -> Vec<ConnectionId> {
        let mut suspects = self.suspects.lock();
        self.forget(&mut suspects, now, window);
        let is_isolated =
            |id: &ConnectionId| suspects.get(id).is_some_and(|suspect| suspect.is_isolated);
        let mut among: Vec<ConnectionId> = connections.filter(is_isolated).collect();
        among.dedup();
        among
    }

    /// Whether the plugin is not called for items of this connection.
    pub fn is_isolated(&self, now: Instant, connection: ConnectionId, window: Duration) -> bool {
        self.is_used() && {
            let mut suspects = self.suspects.lock();
            self.forget(&mut suspects, now, window);
            suspects.get(&connection).is_some_and(|suspect| suspect.is_isolated)
        }
    }

    fn forget(
        &self,
        suspects: &mut BTreeMap<ConnectionId, Suspect>,
        now: Instant,
        window: Duration,
    ) {
        let before = suspects.len();
        suspects.retain(|_, suspect| now.saturating_duration_since(suspect.last) < window);
        if suspects.len() != before {
            self.recount(suspects);
        }
    }

    fn recount(&self, suspects: &BTreeMap<ConnectionId, Suspect>) {
        let isolated = suspects.values().filter(|suspect| suspect.is_isolated).count();
        self.isolated.store(isolated, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    #[test]
    fn one_origin_is_one_strike_and_the_plugin_itself_is_one_each_time() {
        let (mut strikes, now) = (Strikes::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(strikes.add(now, Origin::Connection(7), WINDOW), 1);
        }
        assert_eq!(strikes.add(now, Origin::Connection(8), WINDOW), 2);
        assert_eq!(strikes.add(now, Origin::Plugin, WINDOW), 3);
        assert_eq!(strikes.add(now, Origin::Plugin, WINDOW), 4);
        assert_eq!(strikes.add(now + WINDOW, Origin::Connection(9), WINDOW), 1);
    }

    #[test]
    fn a_client_of_ipv6_has_a_network() {
        let of = |text: &str| Origin::of(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn a_connection_is_isolated_for_its_own_failures_and_for_a_while() {
        let (isolation, now) = (Isolation::default(), Instant::now());
        assert!(!isolation.blame(now, 1, 3, WINDOW));
        assert!(!isolation.blame(now, 2, 3, WINDOW));
        assert!(!isolation.blame(now, 1, 3, WINDOW));
        assert!(!isolation.is_used());
        assert!(isolation.blame(now, 1, 3, WINDOW), "the third is one too many");
        assert!(!isolation.blame(now, 1, 3, WINDOW), "it is isolated already");
        assert!(isolation.is_isolated(now, 1, WINDOW) && !isolation.is_isolated(now, 2, WINDOW));
        assert_eq!(isolation.count(now, WINDOW), 1);
        assert!(!isolation.is_isolated(now + WINDOW, 1, WINDOW));
        assert!(!isolation.is_used());
    }

    #[test]
    fn suspects_have_a_limit() {
        let (isolation, now) = (Isolation::default(), Instant::now());
        for connection in 1..=2 * SUSPECTS_MAX as u64 {
            isolation.blame(now + Duration::from_micros(connection), connection, 1, WINDOW);
        }
        assert_eq!(isolation.count(now, WINDOW), SUSPECTS_MAX);
        assert!(!isolation.is_isolated(now, 1, WINDOW));
    }
}
