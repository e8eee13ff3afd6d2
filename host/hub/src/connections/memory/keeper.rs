//! Keeps the memory of all connections within the bounds, and reports it.
//!
//! Connections account for larger amounts ([account](switchyard_net::account)), and call here when a bound
//! may have been exceeded. Outboxes are then surveyed by a separate task; only where that would be
//! too late, by the task that queues more. Input that was received in part is checked where it
//! grows: no lock is held there, and the check is short.
//!
//! A caller may hold only the locks that come before an outbox in the lock order: shards and the
//! table of connections.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

use super::survey::{Closed, Survey};
use crate::connections::{Connection, Connections};
use switchyard_config::memory::{Budget, MemoryConfig, percent};
use switchyard_config::networks::counted_as;
use switchyard_net::account::{Account, Due, WARNING_PERCENT};
use switchyard_net::outbox::OutboxMemory;
use switchyard_telemetry::log::Throttle;
use switchyard_telemetry::supervise::Ended;
use switchyard_types::bound::Bound;
use switchyard_types::close::CloseReason;
use switchyard_types::ids::ConnectionId;
use switchyard_types::keyed_hash::KeyedMap;

/// How often it is checked whether a bound is near.
const TICK: Duration = Duration::from_millis(100);
/// How long the result of a survey is reused for reports.
const READING_TIME: Duration = Duration::from_secs(1);
/// The share of a bound down to which connections are closed, in percent, so that not every further
/// message closes another one.
const RELIEF_PERCENT: usize = 90;
/// The share of a bound below which it is no longer near, in percent.
const CALM_PERCENT: usize = 70;

/// The memory of all connections, and its bounds.
pub struct Memory {
    connections: Weak<Connections>,
    /// Outboxes.
    pub outboxes: Account,
    /// Partly received input.
    pub input: Account,
    settings: Mutex<Option<MemoryConfig>>,
    input_time_ms: AtomicU64,
    wake: Notify,
    /// Held during a survey: one at a time.
    looking: Mutex<Looked>,
    looking_at_input: Mutex<()>,
    closed: [AtomicU64; Bound::ALL.len()],
    is_near: [AtomicBool; 2],
    /// The connections closed since the last log line, by bound.
    unsaid: Mutex<[Unsaid; Bound::ALL.len()]>,
}

/// The connections closed for a bound since the last log line.
#[derive(Default)]
struct Unsaid {
    closed: Closed,
    throttle: Throttle,
}

/// The result of the last survey of outboxes.
#[derive(Default)]
struct Looked {
    at: Option<Instant>,
    bytes: usize,
    added: u64,
}

/// The state of a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// A stable label.
    pub name: &'static str,
    /// How much of it is used.
    pub used: usize,
    /// Its limit.
    pub limit: usize,
}

/// The memory of one connection, or of all connections of one address.
#[derive(Debug, Clone)]
pub struct Holding {
    /// The connection; none: all connections of the address.
    pub connection: Option<ConnectionId>,
    /// The address.
    pub address: String,
    /// Its outbox.
    pub outbox: usize,
    /// Its partly received input.
    pub input: usize,
    /// How much the names that it subscribes to count.
    pub names: usize,
    /// For how long it has read little or nothing of what is queued; none: little is queued.
    pub stalled: Option<Duration>,
}

impl Memory {
    /// For these connections, without bounds until they are set.
    pub fn new(connections: Weak<Connections>) -> Memory {
        Memory {
            connections,
            outboxes: Account::unlimited(),
            input: Account::unlimited(),
            settings: Mutex::default(),
            input_time_ms: AtomicU64::new(u64::MAX),
            wake: Notify::new(),
            looking: Mutex::default(),
            looking_at_input: Mutex::default(),
            closed: [const { AtomicU64::new(0) }; Bound::ALL.len()],
            is_near: [const { AtomicBool::new(false) }; 2],
            unsaid: Mutex::default(),
        }
    }

    /// Sets the bounds.
    pub fn set_limits(&self, config: &MemoryConfig, connections_max: usize) {
        let Budget { outboxes, input, .. } = config.budget;
        self.outboxes.set_limits(outboxes, config.outbox_per_address, connections_max);
        self.input.set_limits(input, config.input_per_address, connections_max);
        self.input_time_ms.store(config.input_time.as_millis() as u64, Ordering::Relaxed);
        *self.settings.lock() = Some(config.clone());
        self.wake.notify_one();
    }

    /// The bounds; none: there are none.
    pub fn settings(&self) -> Option<MemoryConfig> {
        self.settings.lock().clone()
    }

    /// How long a message may take from its first byte to its last.
    pub fn input_time(&self) -> Duration {
        Duration::from_millis(self.input_time_ms.load(Ordering::Relaxed))
    }

    /// How many connections were closed for a bound.
    pub fn closed(&self, bound: Bound) -> u64 {
        self.closed.get(bound as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Budgets that are almost used up, as text.
    pub fn problems(&self) -> Vec<String> {
        let names = ["outboxes", "input"];
        let near = names.into_iter().zip(&self.is_near);
        near.filter(|(_, is_near)| is_near.load(Ordering::Relaxed))
            .map(|(name, _)| {
                format!("more than {WARNING_PERCENT} % of the memory for {name} is used")
            })
            .collect()
    }

    /// Records that a connection holds more partly received input.
    pub fn hold_input(&self, connection: &Connection, bytes: usize, now_ms: u64) {
        let bytes = self.input.in_steps(bytes);
        let before = connection.input.account(bytes, now_ms);
        if bytes < before {
            self.input.shrink(before - bytes);
        } else if bytes > before && self.input.grow(bytes - before) != Due::Not {
            self.look_at_input(now_ms);
        }
    }

    /// Checks the memory periodically and whenever it is notified. Never returns.
    pub async fn keep(self: Arc<Memory>) -> Ended {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let is_notified = tokio::select! {
                () = self.wake.notified() => true,
                _ = ticks.tick() => false,
            };
            if is_notified || self.outboxes.is_worth_a_look() {
                let memory = self.clone();
                // Surveying many chunks takes a while.
                let looking = tokio::task::spawn_blocking(move || {
                    let mut looked = memory.looking.lock();
                    let is_due = is_notified || memory.is_old(&looked);
                    if is_due {
                        memory.look_at_outboxes(&mut looked);
                    }
                });
                let _it_is_looked_again = looking.await;
            } else if let Some(mut looked) = self.looking.try_lock() {
                // No more than this can be used.
                looked.bytes = self.outboxes.held();
            }
            self.say();
        }
    }

    /// Whether enough has changed, or enough time has passed, since the last survey.
    fn is_old(&self, looked: &Looked) -> bool {
        let more = self.outboxes.added().saturating_sub(looked.added);
        looked.at.is_none_or(|at| at.elapsed() > READING_TIME)
            || more > (self.outboxes.limit() / 64) as u64
    }

    fn survey(&self) -> Survey {
        let connections = self.connections.upgrade();
        let all = connections.iter().flat_map(|connections| connections.all());
        Survey::of(all.map(|connection| {
            let address = connection.remote.ip();
            let counted = connection.is_address_counted().then(|| counted_as(address));
            (connection, counted)
        }))
    }

    fn look_at_outboxes(&self, looked: &mut Looked) -> Survey {
        let added = self.outboxes.added();
        let (limit, per_address) = (self.outboxes.limit(), self.outboxes.per_address());
        let mut survey = self.survey();
        let over: Vec<IpAddr> = survey
            .by_address()
            .filter(|(_, bytes)| *bytes > per_address)
            .map(|(address, _)| address)
            .collect();
        for address in &over {
            let bound = Bound::OutboxesOfAddress;
            let reason = CloseReason::OverMemory(bound);
            let target = percent(per_address, RELIEF_PERCENT);
            let closed = survey.of_address(*address).relieve(target, &reason);
            self.note_closed(bound, closed);
        }
        if !over.is_empty() {
            survey = self.survey();
        }
        if survey.bytes() > limit {
            let bound = Bound::Outboxes;
            let reason = CloseReason::OverMemory(bound);
            let closed = survey.relieve(percent(limit, RELIEF_PERCENT), &reason);
            self.note_closed(bound, closed);
        }
        let most = survey.by_address().map(|(_, bytes)| bytes).max().unwrap_or(0);
        let room = limit.saturating_sub(survey.bytes()).min(per_address.saturating_sub(most));
        self.outboxes.looked(added, room);
        *looked = Looked { at: Some(Instant::now()), bytes: survey.bytes(), added };
        survey
    }

    fn look_at_input(&self, now_ms: u64) {
        let Some(_one_at_a_time) = self.looking_at_input.try_lock() else { return };
        let Some(connections) = self.connections.upgrade() else { return };
        let added = self.input.added();
        let (limit, per_address) = (self.input.limit(), self.input.per_address());
        let mut by_address: KeyedMap<IpAddr, usize> = KeyedMap::default();
        let mut holders: Vec<(u128, Arc<Connection>)> = Vec::new();
        for connection in connections.all() {
            let accounted = connection.input.accounted();
            if accounted == 0 {
                continue;
            }
            if connection.is_address_counted() {
                *by_address.entry(counted_as(connection.remote.ip())).or_default() += accounted;
            }
            holders.push((connection.input.score(now_ms), connection));
        }
        holders.sort_unstable_by_key(|(score, _)| std::cmp::Reverse(*score));
        let over: Vec<(IpAddr, usize)> = by_address
            .iter()
            .filter(|(_, bytes)| **bytes > per_address)
            .map(|(address, bytes)| (*address, bytes - percent(per_address, RELIEF_PERCENT)))
            .collect();
        for (address, excess) in over {
            let is_its = |connection: &Connection| {
                connection.is_address_counted() && counted_as(connection.remote.ip()) == address
            };
            let closed = self.close_for_input(Bound::InputOfAddress, &holders, excess, is_its);
            self.note_closed(Bound::InputOfAddress, closed);
            by_address.entry(address).and_modify(|bytes| *bytes -= closed.bytes.min(*bytes));
        }
        let held = self.input.held();
        if held > limit {
            let excess = held - percent(limit, RELIEF_PERCENT);
            let closed = self.close_for_input(Bound::Input, &holders, excess, |_| true);
            self.note_closed(Bound::Input, closed);
        }
        let most = by_address.values().copied().max().unwrap_or(0);
        let room = limit.saturating_sub(self.input.held()).min(per_address.saturating_sub(most));
        self.input.looked(added, room);
    }

    fn close_for_input(
        &self,
        bound: Bound,
        holders: &[(u128, Arc<Connection>)],
        excess: usize,
        is_one: impl Fn(&Connection) -> bool,
    ) -> Closed {
        let mut closed = Closed::default();
        for (_, connection) in holders.iter().filter(|(_, connection)| is_one(connection)) {
            // It is no longer accounted for: its task frees it as soon as it runs.
            let bytes = connection.input.account(0, 0);
            self.input.shrink(bytes);
            if connection.outbox.is_closing() {
                // It has accounted once more before its task ran: no other is closed for that.
                closed.bytes += bytes;
            } else if bytes > 0 {
                connection.outbox.close(CloseReason::OverMemory(bound));
                let first = Some(connection.remote);
                closed.add(Closed { connections: 1, bytes, first });
            }
            if closed.bytes >= excess {
                break;
            }
        }
        closed
    }

    fn note_closed(&self, bound: Bound, closed: Closed) {
        if closed.connections > 0 {
            if let Some(count) = self.closed.get(bound as usize) {
                count.fetch_add(closed.connections as u64, Ordering::Relaxed);
            }
            if let Some(unsaid) = self.unsaid.lock().get_mut(bound as usize) {
                unsaid.closed.add(closed);
            }
            self.wake.notify_one();
        }
    }

    /// Logs what was closed and what is near its bound, and remembers the latter.
    fn say(&self) {
        let used = [self.looking.lock().bytes, self.input.held()];
        let accounts = [&self.outboxes, &self.input];
        let bounds = [Bound::Outboxes, Bound::Input];
        for (((used, account), bound), is_near) in
            used.into_iter().zip(accounts).zip(bounds).zip(&self.is_near)
        {
            let limit = account.limit();
            let was_near = is_near.load(Ordering::Relaxed);
            if !was_near && used > percent(limit, WARNING_PERCENT) {
                is_near.store(true, Ordering::Relaxed);
                warn!(
                    used_bytes = used,
                    limit_bytes = limit,
                    "the memory for {} is almost used up: beyond {} connections are closed",
                    bound.name(),
                    bound.key()
                );
            } else if was_near && used < percent(limit, CALM_PERCENT) {
                is_near.store(false, Ordering::Relaxed);
                info!(
                    used_bytes = used,
                    limit_bytes = limit,
                    "there is memory for {} again",
                    bound.name()
                );
            }
        }
        for (unsaid, bound) in self.unsaid.lock().iter_mut().zip(Bound::ALL) {
            let Closed { connections, bytes, first } = unsaid.closed;
            if connections == 0 || !unsaid.throttle.is_due() {
                continue;
            }
            unsaid.closed = Closed::default();
            warn!(
                connections,
                given_back_bytes = bytes,
                first = first.map(tracing::field::display),
                "connections were closed to stay within {}",
                bound.key()
            );
        }
    }

    /// The state of the budgets that connections use, and the connections and addresses that hold
    /// the most, at most this many of each. Blocks.
    pub fn read(&self, count: usize) -> (Vec<Reading>, Vec<Holding>, Vec<Holding>) {
        let mut looked = self.looking.lock();
        let survey = self.look_at_outboxes(&mut looked);
        drop(looked);
        let mut holdings: FxHashMap<ConnectionId, Holding> = FxHashMap::default();
        let mut addresses: KeyedMap<IpAddr, Holding> = KeyedMap::default();
        let of_address = |address: IpAddr| Holding {
            connection: None,
            address: address.to_string(),
            outbox: 0,
            input: 0,
            names: 0,
            stalled: None,
        };
        let of_connection = |connection: &Connection| Holding {
            connection: Some(connection.id),
            address: connection.remote.to_string(),
            outbox: 0,
            input: 0,
            names: 0,
            stalled: None,
        };
        for waiting in survey.waiting() {
            let connection = waiting.connection;
            let holding =
                holdings.entry(connection.id).or_insert_with(|| of_connection(connection));
            holding.outbox = waiting.bytes;
            holding.stalled = waiting.stalled;
        }
        for (address, bytes) in survey.by_address() {
            addresses.entry(address).or_insert_with(|| of_address(address)).outbox = bytes;
        }
        let connections = self.connections.upgrade();
        for connection in connections.iter().flat_map(|connections| connections.all()) {
            let (input, names) = (connection.input.accounted(), connection.holds.bytes());
            if count == 0 || input + names == 0 {
                continue;
            }
            let holding =
                holdings.entry(connection.id).or_insert_with(|| of_connection(&connection));
            (holding.input, holding.names) = (input, names);
            if connection.is_address_counted() {
                let address = counted_as(connection.remote.ip());
                let holding = addresses.entry(address).or_insert_with(|| of_address(address));
                holding.input += input;
                holding.names += names;
            }
        }
        let most = |all: Vec<Holding>| {
            let mut all = all;
            all.sort_unstable_by_key(|holding| {
                std::cmp::Reverse(holding.outbox + holding.input + holding.names)
            });
            all.truncate(count);
            all
        };
        let readings = vec![
            Reading { name: "outboxes", used: survey.bytes(), limit: self.outboxes.limit() },
            Reading { name: "input", used: self.input.held(), limit: self.input.limit() },
        ];
        let holdings = most(holdings.into_values().collect());
        (readings, holdings, most(addresses.into_values().collect()))
    }
}

impl OutboxMemory for Memory {
    fn account(&self) -> &Account {
        &self.outboxes
    }

    #[cold]
    fn see_to(&self, due: Due) {
        if due == Due::Now {
            // A survey in progress is enough.
            if let Some(mut looked) = self.looking.try_lock() {
                self.look_at_outboxes(&mut looked);
            }
        } else {
            self.wake.notify_one();
        }
    }
}
