//! How many names all connections are subscribed to, and the limits on that.
//!
//! Names are the one thing that clients make the server keep, in the ground state and again in the
//! engine, whose instances have a fixed amount of memory. So their sum has limits, for all
//! connections and for those of one address, below what the engine can hold. A command that would
//! exceed a limit is refused; existing subscriptions stay.
//!
//! Names are counted at subscribe and unsubscribe, not at publish. What a subscription counts is
//! computed from its name alone, so that the same amount is added and subtracted.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tracing::warn;

use crate::connections::{Connection, Connections};
use crate::pattern_costs::{Changed, PatternCosts, SHORT_NAME_BYTES, Steps};
use switchyard_config::NameLimits;
use switchyard_config::networks::counted_as;
use switchyard_telemetry::log::Throttle;
use switchyard_telemetry::stats::{count, load};
use switchyard_types::command::{Bytestring, Kind, LIMIT, Refusal};
use switchyard_types::keyed_hash::KeyedMap;

/// How much one subscription counts besides its name: its entries in the sets of the ground state
/// and of the engine, with the overhead of their allocators.
pub const SUBSCRIPTION_BYTES: usize = 96;

/// How much a distinct pattern counts besides its bytes, in each shard: its nodes in the index.
pub const PATTERN_BYTES: usize = 512;

/// How often the bytes of a distinct pattern are held in each shard: by its table, and by the
/// labels of its nodes.
pub const PATTERN_COPIES: usize = 3;

/// How many steps of matching are done before the task yields: a few milliseconds.
pub const STEPS_AT_ONCE_MAX: u64 = 2_000_000;

/// The cost of a publication besides the patterns.
const PUBLICATION_STEPS: u64 = 100;

/// The totals of all connections.
pub struct Holdings {
    state: Mutex<State>,
    /// How many subscriptions the engine has for each pattern.
    shards: usize,
    /// How many connections have subscriptions.
    subscribed: AtomicUsize,
    /// The cost of one publication, for a short name and for the longest name.
    steps: [AtomicU64; 2],
    /// How many commands were refused, by limit.
    refused: [AtomicU64; Excess::ALL.len()],
    throttle: Mutex<Throttle>,
    /// The names that wait for the backplane.
    waiting: Arc<Mutex<Waiting>>,
}

/// What the names count that wait for the backplane.
#[derive(Default)]
struct Waiting {
    all: usize,
    /// Of the addresses that are counted, those with such names.
    by_address: KeyedMap<IpAddr, usize>,
}

/// Names that wait for the backplane, counted until this is dropped. They are counted as
/// subscriptions when the connection subscribes to them.
pub struct WaitingNames {
    waiting: Arc<Mutex<Waiting>>,
    address: Option<IpAddr>,
    bytes: usize,
}

impl Drop for WaitingNames {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock();
        waiting.all -= self.bytes;
        if let Some(address) = self.address
            && let Some(of_address) = waiting.by_address.get_mut(&address)
        {
            *of_address -= self.bytes;
            if *of_address == 0 {
                waiting.by_address.remove(&address);
            }
        }
    }
}

struct State {
    limits: NameLimits,
    costs: PatternCosts,
    all: Tally,
    /// Of the addresses that are counted, those with subscriptions.
    by_address: KeyedMap<IpAddr, OfAddress>,
}

/// A sum.
#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
struct Tally {
    subscriptions: usize,
    bytes: usize,
}

/// The totals of the connections of one address.
#[derive(Default)]
struct OfAddress {
    tally: Tally,
    /// Distinct patterns, with the number of subscriptions to each.
    patterns: KeyedMap<Arc<[u8]>, usize>,
    /// The cost of those patterns together.
    steps: u64,
}

/// The limit that a command would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// `limits.subscriptions_total_max`
    Subscriptions,
    /// `limits.name_bytes_total_max`
    Bytes,
    /// `limits.name_bytes_per_address_max`
    AddressBytes,
    /// `limits.pattern_cost_max`
    ConnectionCost,
    /// `limits.pattern_cost_per_address_max`
    AddressCost,
    /// `limits.pattern_cost_total_max`
    Cost,
}

impl Excess {
    /// All.
    pub const ALL: [Excess; 6] = [
        Excess::Subscriptions,
        Excess::Bytes,
        Excess::AddressBytes,
        Excess::ConnectionCost,
        Excess::AddressCost,
        Excess::Cost,
    ];

    /// The key of the limit in the config file.
    pub fn key(self) -> &'static str {
        match self {
            Excess::Subscriptions => "limits.subscriptions_total_max",
            Excess::Bytes => "limits.name_bytes_total_max",
            Excess::AddressBytes => "limits.name_bytes_per_address_max",
            Excess::ConnectionCost => "limits.pattern_cost_max",
            Excess::AddressCost => "limits.pattern_cost_per_address_max",
            Excess::Cost => "limits.pattern_cost_total_max",
        }
    }
}

impl From<Excess> for Refusal {
    fn from(excess: Excess) -> Refusal {
        let message = match excess {
            Excess::Subscriptions | Excess::Bytes => {
                "all connections together listen to as much as the server can hold; try again later"
            }
            Excess::AddressBytes => "the connections of this address listen to as much as they may",
            Excess::ConnectionCost => {
                "matching the patterns of this connection would take too long: use fewer or \
                 shorter patterns, with fewer *, or such as begin or end with other letters"
            }
            Excess::AddressCost => {
                "matching the patterns of this address would take too long: use fewer or shorter \
                 patterns, with fewer *, or such as begin or end with other letters"
            }
            Excess::Cost => {
                "matching the patterns of all connections together would take too long: use \
                 patterns with fewer *, or such as begin or end with other letters"
            }
        };
        Refusal::new(LIMIT, message)
    }
}

impl Holdings {
    /// No subscriptions, for an engine with this many shards.
    pub fn new(limits: NameLimits, shards: usize) -> Holdings {
        Holdings {
            state: Mutex::new(State {
                costs: PatternCosts::new(limits.name_bytes_max),
                limits,
                all: Tally::default(),
                by_address: KeyedMap::default(),
            }),
            shards,
            subscribed: AtomicUsize::new(0),
            steps: Default::default(),
            refused: Default::default(),
            throttle: Mutex::default(),
            waiting: Arc::default(),
        }
    }

    /// Sets the limits for names that are added from now on. The caller holds the locks of all
    /// shards, so that no subscription changes during the call.
    pub fn set_limits(&self, limits: NameLimits, connections: &Connections) {
        let mut state = self.state.lock();
        let is_changed = limits.name_bytes_max != state.limits.name_bytes_max;
        state.limits = limits;
        if !is_changed {
            return;
        }
        let State { costs, by_address, .. } = &mut *state;
        costs.set_name_bytes_max(limits.name_bytes_max);
        for of_address in by_address.values_mut() {
            let patterns = of_address.patterns.keys();
            of_address.steps = patterns.map(|pattern| on_longest(costs.steps_of(pattern))).sum();
        }
        self.publish_bound(costs.bound());
        drop(state);
        let all: Vec<Arc<Connection>> = connections.read().values().cloned().collect();
        for connection in all {
            let subscriptions = connection.subscriptions();
            let state = self.state.lock();
            let of = |pattern: &[u8]| on_longest(state.costs.steps_of(pattern));
            let steps = subscriptions.patterns.iter().map(|pattern| of(pattern)).sum();
            connection.holds.steps.store(steps, Ordering::Relaxed);
        }
    }

    /// Counts names that are about to wait for the backplane, in addition to `leaving_bytes` of
    /// names that are about to be unsubscribed.
    ///
    /// # Errors
    ///
    /// They do not fit with all names that are subscribed to or waiting, or with those of the
    /// connection's address.
    pub fn wait<'a>(
        &self,
        connection: &Connection,
        names: impl Iterator<Item = &'a [u8]>,
        leaving_bytes: usize,
    ) -> Result<WaitingNames, Excess> {
        let bytes = names.map(subscription_bytes).sum();
        let address = counted_address(connection);
        let (all, of_address) = {
            let mut waiting = self.waiting.lock();
            waiting.all += bytes;
            let of_address = address.map_or(0, |address| {
                let of_address = waiting.by_address.entry(address).or_default();
                *of_address += bytes;
                *of_address
            });
            (waiting.all, of_address)
        };
        let names = WaitingNames { waiting: self.waiting.clone(), address, bytes };
        let state = self.state.lock();
        let held = address.and_then(|address| state.by_address.get(&address));
        let held = held.map_or(0, |of_address| of_address.tally.bytes);
        if held + of_address > state.limits.name_bytes_per_address_max {
            return Err(Excess::AddressBytes);
        }
        match state.all.bytes + all + leaving_bytes > state.limits.name_bytes_total_max {
            true => Err(Excess::Bytes),
            false => Ok(names),
        }
    }

    /// Counts names that the connection is not subscribed to yet, each once, if there is room for
    /// all of them. The locks of the shards concerned are held.
    ///
    /// # Errors
    ///
    /// There is no room; then nothing is counted.
    pub fn reserve(
        &self,
        connection: &Connection,
        kind: Kind,
        names: &[&[u8]],
    ) -> Result<(), Excess> {
        let mut state = self.state.lock();
        let address = counted_address(connection);
        let limits = state.limits;
        let bound_before = state.costs.bound();
        if kind == Kind::Pattern {
            let held = connection.holds.steps.load(Ordering::Relaxed);
            let more: u64 = names.iter().map(|name| on_longest(state.costs.steps_of(name))).sum();
            if held.saturating_add(more) > limits.pattern_cost_max {
                return Err(Excess::ConnectionCost);
            }
        }
        for name in names {
            self.add(&mut state, address, connection, kind, name);
        }
        let of_address = address.and_then(|address| state.by_address.get(&address));
        let address_bytes = of_address.map_or(0, |of_address| of_address.tally.bytes);
        let address_steps = of_address.map_or(0, |of_address| of_address.steps);
        let is_pattern = kind == Kind::Pattern;
        let bound = state.costs.bound();
        let excess = [
            (state.all.subscriptions > limits.subscriptions_total_max, Excess::Subscriptions),
            (state.all.bytes > limits.name_bytes_total_max, Excess::Bytes),
            (address_bytes > limits.name_bytes_per_address_max, Excess::AddressBytes),
            (
                is_pattern && address_steps > limits.pattern_cost_per_address_max,
                Excess::AddressCost,
            ),
            // A change that increases no cost is permitted even if the limit was lowered.
            (
                on_longest(bound) > limits.pattern_cost_total_max.max(on_longest(bound_before)),
                Excess::Cost,
            ),
        ];
        if let Some((_, excess)) = excess.into_iter().find(|(is_over, _)| *is_over) {
            for name in names {
                self.remove(&mut state, address, connection, kind, name);
            }
            return Err(excess);
        }
        self.publish_bound(bound);
        Ok(())
    }

    /// Removes names from the count that were counted by `reserve`. The locks of the shards
    /// concerned are held; that of the connection's subscriptions may be.
    pub fn release<'a>(
        &self,
        connection: &Connection,
        kind: Kind,
        names: impl Iterator<Item = &'a [u8]>,
    ) {
        let mut state = self.state.lock();
        let address = counted_address(connection);
        for name in names {
            self.remove(&mut state, address, connection, kind, name);
        }
        self.publish_bound(state.costs.bound());
    }

    fn add(
        &self,
        state: &mut State,
        address: Option<IpAddr>,
        connection: &Connection,
        kind: Kind,
        name: &[u8],
    ) {
        let own = subscription_bytes(name);
        state.all.add(own);
        let mut of_address = address.map(|address| state.by_address.entry(address).or_default());
        if let Some(OfAddress { tally, .. }) = &mut of_address {
            tally.add(own);
        }
        let mut held = own;
        if kind == Kind::Pattern {
            let in_engine = self.pattern_bytes(name);
            let Changed { pattern, steps, is_distinct } = state.costs.add(name);
            if is_distinct {
                state.all.bytes += in_engine;
            }
            if let Some(OfAddress { tally, patterns, steps: sum }) = of_address {
                let subscriptions = patterns.entry(pattern).or_default();
                *subscriptions += 1;
                if *subscriptions == 1 {
                    tally.bytes += in_engine;
                    *sum += on_longest(steps);
                }
            }
            held += in_engine;
            connection.holds.steps.fetch_add(on_longest(steps), Ordering::Relaxed);
        }
        connection.holds.bytes.fetch_add(held, Ordering::Relaxed);
    }

    fn remove(
        &self,
        state: &mut State,
        address: Option<IpAddr>,
        connection: &Connection,
        kind: Kind,
        name: &[u8],
    ) {
        let own = subscription_bytes(name);
        state.all.remove(own);
        let mut of_address = address.and_then(|address| state.by_address.get_mut(&address));
        if let Some(OfAddress { tally, .. }) = &mut of_address {
            tally.remove(own);
        }
        let mut held = own;
        if kind == Kind::Pattern
            && let Some(Changed { pattern, steps, is_distinct }) = state.costs.remove(name)
        {
            let in_engine = self.pattern_bytes(name);
            if is_distinct {
                state.all.bytes -= in_engine;
            }
            if let Some(OfAddress { tally, patterns, steps: sum }) = &mut of_address
                && let Some(subscriptions) = patterns.get_mut(&pattern)
            {
                *subscriptions -= 1;
                if *subscriptions == 0 {
                    patterns.remove(&pattern);
                    tally.bytes -= in_engine;
                    *sum = sum.saturating_sub(on_longest(steps));
                }
            }
            held += in_engine;
            connection.holds.steps.fetch_sub(on_longest(steps), Ordering::Relaxed);
        }
        connection.holds.bytes.fetch_sub(held, Ordering::Relaxed);
        if let Some(address) = address
            && of_address.is_some_and(|of_address| of_address.tally == Tally::default())
        {
            state.by_address.remove(&address);
        }
    }

    /// How much a distinct pattern counts in all shards.
    fn pattern_bytes(&self, pattern: &[u8]) -> usize {
        self.shards * (PATTERN_BYTES + PATTERN_COPIES * pattern.len())
    }

    fn publish_bound(&self, bound: Steps) {
        for (steps, bound) in self.steps.iter().zip(bound) {
            steps.store(bound, Ordering::Relaxed);
        }
    }

    /// Records the first subscription of a connection.
    pub fn begin(&self) {
        self.subscribed.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that a connection has no subscriptions any more.
    pub fn end(&self) {
        self.subscribed.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many connections have subscriptions.
    pub fn subscribed(&self) -> usize {
        self.subscribed.load(Ordering::Relaxed)
    }

    /// How many subscriptions there are, and what they count in bytes.
    pub fn total(&self) -> (usize, usize) {
        let Tally { subscriptions, bytes } = self.state.lock().all;
        (subscriptions, bytes)
    }

    /// The current limits.
    pub fn limits(&self) -> NameLimits {
        self.state.lock().limits
    }

    /// How many commands were refused, by limit.
    pub fn refused(&self) -> impl Iterator<Item = (Excess, u64)> {
        Excess::ALL.into_iter().zip(self.refused.iter().map(load))
    }

    /// What one publication may cost at most, in steps of matching.
    pub fn steps_per_publication(&self) -> u64 {
        on_longest(self.steps.each_ref().map(|steps| steps.load(Ordering::Relaxed)))
    }

    /// The budget for matching in one go.
    pub fn work(&self) -> Work {
        Work {
            steps: self.steps.each_ref().map(|steps| steps.load(Ordering::Relaxed)),
            left: STEPS_AT_ONCE_MAX,
        }
    }

    /// Counts a refused command, and logs it, throttled, with the connection that holds most.
    pub fn refuse(&self, excess: Excess, connection: &Connection, connections: &Connections) {
        if let Some(refused) = self.refused.get(excess as usize) {
            count(refused);
        }
        if !self.throttle.lock().is_due() {
            return;
        }
        let limit = excess.key();
        let (subscriptions, name_bytes) = self.total();
        let most = most(connections);
        warn!(
            limit,
            connection = connection.id,
            address = %connection.remote,
            subscriptions,
            name_bytes,
            most_connection = most.as_ref().map(|most| most.id),
            most_address = most.as_ref().map(|most| most.remote.to_string()),
            most_name_bytes = most.as_ref().map(|most| most.holds.bytes()),
            "a subscription was refused because of a limit over several connections"
        );
    }
}

/// The totals of one connection.
#[derive(Default)]
pub struct Holds {
    bytes: AtomicUsize,
    steps: AtomicU64,
}

impl Holds {
    /// How much its names count, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// The connection whose names count most; none: there are no connections.
pub fn most(connections: &Connections) -> Option<Arc<Connection>> {
    connections.read().values().max_by_key(|connection| connection.holds.bytes()).cloned()
}

/// The rest of the matching budget, after which the task yields.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    steps: Steps,
    left: u64,
}

impl Work {
    /// Takes the cost of a publication on this channel from the budget. False: not enough is left.
    /// The first publication always fits.
    pub fn take(&mut self, channel: &[u8]) -> bool {
        let [short, longest] = self.steps;
        let steps = if channel.len() <= SHORT_NAME_BYTES { short } else { longest };
        let is_first = self.left == STEPS_AT_ONCE_MAX;
        match self.left.checked_sub(steps + PUBLICATION_STEPS) {
            Some(left) => self.left = left,
            None if is_first => self.left = 0,
            None => return false,
        }
        true
    }
}

impl Tally {
    fn add(&mut self, bytes: usize) {
        self.subscriptions += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.subscriptions -= 1;
        self.bytes -= bytes;
    }
}

fn subscription_bytes(name: &[u8]) -> usize {
    name.len() + SUBSCRIPTION_BYTES
}

fn on_longest([_, longest]: Steps) -> u64 {
    longest
}

fn counted_address(connection: &Connection) -> Option<IpAddr> {
    connection.counted_address().map(counted_as)
}

/// Names that the connection is not subscribed to yet, each once.
pub fn new_names<'a>(
    connection: &Connection,
    kind: Kind,
    names: &'a [Bytestring<'_>],
) -> Vec<&'a [u8]> {
    let mut new: Vec<&[u8]> = {
        let subscriptions = connection.subscriptions();
        let held = subscriptions.of(kind);
        names.iter().map(|name| &**name).filter(|name| !held.contains(*name)).collect()
    };
    if new.len() > 1 {
        new.sort_unstable();
        new.dedup();
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hub;
    use crate::encoding::Encoding;
    use crate::native::Native;
    use switchyard_config::Config;

    #[test]
    fn names_that_wait_for_the_backplane_count_for_their_address() {
        let config = Config::default();
        let connections = Connections::new(10, config.outbox, config.limits.attributes_bytes_max);
        let from = |host: u8| {
            let added = connections.add(Encoding::RESP2, ([192, 0, 2, host], 1).into());
            added.expect("there is room")
        };
        let limits = NameLimits {
            name_bytes_total_max: 1_000,
            name_bytes_per_address_max: 500,
            ..config.limits.names
        };
        let holdings = Holdings::new(limits, 1);
        let wait = |connection: &Connection, names: usize| {
            let names = std::iter::repeat_n(b"news".as_slice(), names);
            holdings.wait(connection, names, 0)
        };
        let (one, same, other) = (from(1), from(1), from(2));
        let waiting = wait(&one, 4);
        assert!(waiting.is_ok());
        assert_eq!(wait(&same, 4).err(), Some(Excess::AddressBytes));
        let others = wait(&other, 4);
        assert!(others.is_ok(), "another address has its own share");
        assert_eq!(wait(&from(3), 4).err(), Some(Excess::Bytes));
        drop(waiting);
        assert!(wait(&same, 4).is_ok());
    }

    #[test]
    fn names_that_a_connection_has_already_do_not_wait() -> anyhow::Result<()> {
        let config = Config::default();
        let connections = Connections::new(10, config.outbox, config.limits.attributes_bytes_max);
        let names = [b"news".as_slice().into(), b"sport".as_slice().into()];
        let bytes = names.iter().map(|name: &Bytestring<'_>| subscription_bytes(name)).sum();
        let limits = NameLimits { name_bytes_per_address_max: bytes, ..config.limits.names };
        let hub = Hub::new(Arc::new(Native), &config.engine, limits, connections);
        let hub = hub.map_err(anyhow::Error::msg)?;
        let added = hub.connections().add(Encoding::RESP2, ([192, 0, 2, 1], 1).into());
        let connection = added.expect("there is room");
        assert!(hub.subscribe(&connection, Kind::Channel, &names, |_, _| {}).is_ok());
        assert!(hub.wait_for_backplane(&connection, Kind::Channel, &names).is_ok());
        let more = [b"more".as_slice().into()];
        assert!(hub.wait_for_backplane(&connection, Kind::Channel, &more).is_err());
        Ok(())
    }
}
