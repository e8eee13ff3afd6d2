//! Delivers publications to subscribers. Knows no socket, no plugin, no other node and no WebAssembly:
//! what needs one of them implements a trait of this crate (`engine`, `filter`, `observer`). Read
//! `connections` first, then this file, then `shard`.
//!
//! Channels are spread over shards, each an engine with its own lock; every shard knows all
//! patterns. A shard's lock is held from `route` to the last outbox push, without waiting. This
//! gives all subscribers of a channel the same order, and puts the acknowledgement of a SUBSCRIBE
//! before its first message. A burst that involves several shards locks them all, by rising number,
//! so that the publications of one connection arrive in order across channels, too.
//!
//! Shard channels (SSUBSCRIBE) are a separate name space with a second set of shards, so that the
//! engine does not need to know them.

pub mod clock;
pub mod connections;
pub mod delivery;
pub mod encoding;
pub mod ending;
pub mod engine;
pub mod filter;
pub mod history;
pub mod listing;
pub mod native;
pub mod observer;
mod pattern_costs;
pub mod presence;
pub mod probe;
mod shard;
pub mod stats;
pub mod stored_history;
pub mod stream_readers;
pub mod stream_reading;

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use guest_core::Names;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use connections::holdings::{self, Holdings, WaitingNames};
use connections::{Connection, Connections, Subscriptions};
use engine::EngineFactory;
use history::History;
use listing::Listing;
use observer::SubscriptionObserver;
use presence::{Presence, RoomPublisher};
use shard::{ReplayCursor, Shard};
use stats::{EngineCall, HubStats};
use stream_readers::StreamReaders;
use switchyard_config::{EngineConfig, NameLimits};
use switchyard_telemetry::panics;
use switchyard_types::batch::Batch;
use switchyard_types::command::{Bytestring, Kind, Refusal, Space, UNAVAILABLE};
use switchyard_types::keyed_hash::KeyedHash;

/// The subscriptions, and the connections that receive messages.
pub struct Hub {
    /// Those of channels and patterns, then as many of shard channels.
    shards: Box<[Mutex<Shard>]>,
    stats: HubStats,
    spread: usize,
    /// Keyed, so that no client can choose names that are all in one shard.
    hash: KeyedHash,
    connections: Arc<Connections>,
    /// The totals of all connections.
    holdings: Holdings,
    /// The memory of the lists of channels in progress.
    listing_bytes: Arc<AtomicUsize>,
    /// The engine in use.
    code: Mutex<Arc<dyn EngineFactory>>,
    /// Held while the engine is swapped: one at a time.
    swapping: Mutex<()>,
    /// Follows which names have subscribers; none: there are no other nodes.
    observer: Option<Arc<dyn SubscriptionObserver>>,
    history: History,
    stream_readers: Arc<StreamReaders>,
    presence: Presence,
}

/// The engine is not available now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unavailable;

impl From<Unavailable> for Refusal {
    fn from(_: Unavailable) -> Refusal {
        Refusal::new(UNAVAILABLE, "the engine is being rebuilt; try again")
    }
}

/// One name of a command, and the number of subscriptions of the connection after it.
pub type Ack<'a> = (Option<Bytestring<'a>>, u64);

/// The result of an engine swap.
#[derive(Debug)]
pub struct EngineSwap {
    /// The replaced version.
    pub from: String,
    /// The new version.
    pub to: String,
    /// The longest time for which a shard was locked.
    pub longest_pause: Duration,
}

/// How long a shard is unlocked between two slices for a standby engine: as long as a slice takes.
const BETWEEN_SLICES: Duration = Duration::from_millis(1);

type Guards<'a> = Batch<(usize, MutexGuard<'a, Shard>)>;

impl Hub {
    /// A hub with new engines.
    ///
    /// # Errors
    ///
    /// The engine cannot be instantiated; the error is a message.
    pub fn new(
        code: Arc<dyn EngineFactory>,
        config: &EngineConfig,
        names: NameLimits,
        connections: Arc<Connections>,
    ) -> Result<Hub, String> {
        let stats = HubStats::new(2 * config.shards);
        let shards = (0..2 * config.shards)
            .map(|number| {
                Shard::new(number, config, code.clone(), stats.of(number)).map(Mutex::new)
            })
            .collect::<Result<_, _>>()?;
        Ok(Hub {
            shards,
            stats,
            spread: config.shards,
            hash: KeyedHash::default(),
            connections,
            holdings: Holdings::new(names, config.shards),
            listing_bytes: Arc::default(),
            code: Mutex::new(code),
            swapping: Mutex::default(),
            observer: None,
            history: History::new(),
            stream_readers: Arc::default(),
            presence: Presence::new(),
        })
    }

    /// The same, with an observer of its subscriptions.
    pub fn with_observer(self, observer: Arc<dyn SubscriptionObserver>) -> Hub {
        let mut hub = Hub { observer: Some(observer), ..self };
        hub.history.share();
        hub
    }

    /// The same, with the way to other nodes for the members of channels.
    pub fn with_room_publisher(mut self, publisher: Arc<dyn RoomPublisher>) -> Hub {
        self.presence.share(publisher);
        self
    }

    /// Subscribes a connection to names. Calls `acknowledge` for each name, with the number of
    /// the connection's channels and patterns, before any message on them can arrive.
    ///
    /// # Errors
    ///
    /// The engine is not available, or there is no room for the names; then nothing has changed.
    pub fn subscribe<'a>(
        &self,
        connection: &Connection,
        kind: Kind,
        names: &[Bytestring<'a>],
        acknowledge: impl FnOnce(&[Ack<'a>], u64),
    ) -> Result<(), Refusal> {
        let acknowledge = |acks: &[Ack<'a>], held, _| acknowledge(acks, held);
        self.subscribe_with(connection, kind, names, |_| Ok(()), acknowledge)
    }

    /// The same. When the engine knows the names, `prepare` is called with the first shard, and may
    /// refuse the command. `acknowledge` gets what it returned.
    fn subscribe_with<'a, T>(
        &self,
        connection: &Connection,
        kind: Kind,
        names: &[Bytestring<'a>],
        prepare: impl FnOnce(&mut Shard) -> Result<T, Refusal>,
        acknowledge: impl FnOnce(&[Ack<'a>], u64, Option<T>),
    ) -> Result<(), Refusal> {
        let by_shard = self.by_shard(kind, names);
        let mut guards = self.lock(by_shard.iter().map(|(shard, _)| *shard));
        // A shard without an engine refuses the command before another shard has changed.
        for (_, shard) in &mut guards {
            shard.retry_failed_shards(self)?;
        }
        let new = holdings::new_names(connection, kind, names);
        if let Err(excess) = self.holdings.reserve(connection, kind, &new) {
            drop(guards);
            self.holdings.refuse(excess, connection, &self.connections);
            return Err(excess.into());
        }
        for position in 0..guards.len() {
            let (Some((_, shard)), Some((_, names))) =
                (guards.get_mut(position), by_shard.get(position))
            else {
                continue;
            };
            if shard.subscribe(self, connection.id, kind, names).is_err() {
                let undone = guards.iter_mut().zip(&by_shard).take(position);
                self.undo(connection, kind, undone);
                self.holdings.release(connection, kind, new.into_iter());
                return Err(Unavailable.into());
            }
        }
        new.iter().for_each(|name| self.history.listening(kind, name, 1));
        let prepared = match guards.first_mut().map(|(_, shard)| prepare(shard)).transpose() {
            Ok(prepared) => prepared,
            Err(refusal) => {
                self.undo(connection, kind, guards.iter_mut().zip(&by_shard));
                new.iter().for_each(|name| self.history.listening(kind, name, -1));
                self.holdings.release(connection, kind, new.into_iter());
                return Err(refusal);
            }
        };
        let mut subscriptions = connection.subscriptions();
        if subscriptions.is_empty() && !new.is_empty() {
            self.holdings.begin();
        }
        let acks: Vec<Ack<'a>> = names
            .iter()
            .map(|name| {
                let held = subscriptions.of_mut(kind);
                if !held.contains(&**name) {
                    held.insert(Box::from(&**name));
                    if let Some(observer) = &self.observer {
                        observer.join(kind, name);
                    }
                }
                (Some(name.clone()), subscriptions.counted_with(kind))
            })
            .collect();
        connection.revise();
        // While the subscriptions are locked: acknowledgements are queued in the order of their
        // counts.
        acknowledge(&acks, subscriptions.counted_with(Kind::Channel), prepared);
        Ok(())
    }

    /// Reverts a subscription that failed in a later shard. Earlier subscriptions of the connection
    /// to these names stay: they are in the ground state. Unsubscribing keeps the engines of these
    /// shards, and a standby engine, in use.
    fn undo<'a, 'g: 'a>(
        &self,
        connection: &Connection,
        kind: Kind,
        shards: impl Iterator<Item = (&'a mut (usize, MutexGuard<'g, Shard>), &'a (usize, Names))>,
    ) {
        for ((_, shard), (_, names)) in shards {
            let new: Names = {
                let subscriptions = connection.subscriptions();
                let held = subscriptions.of(kind);
                names.iter().filter(|name| !held.contains(*name)).collect()
            };
            if !new.is_empty() {
                shard.unsubscribe(self, connection.id, kind, &new);
            }
        }
    }

    /// Ends subscriptions, all of the kind when no name is given. Calls `acknowledge` as
    /// `subscribe` does; after it no message on them arrives. Never fails: an engine that is not
    /// available will be rebuilt without them.
    pub fn unsubscribe<'a>(
        &self,
        connection: &Connection,
        kind: Kind,
        names: &[Bytestring<'a>],
        acknowledge: impl FnOnce(&[Ack<'a>], u64),
    ) {
        let all: Vec<Bytestring<'a>>;
        let is_all = names.is_empty();
        let names = if is_all {
            let subscriptions = connection.subscriptions();
            all = subscriptions.of(kind).iter().map(|name| name.to_vec().into()).collect();
            &all
        } else {
            names
        };
        let by_shard = self.by_shard(kind, names);
        let mut guards = self.lock(by_shard.iter().map(|(shard, _)| *shard));
        let mut subscriptions = connection.subscriptions();
        let mut acks: Vec<Ack<'a>> = names
            .iter()
            .filter_map(|name| {
                let was_held = self.forget(connection, &mut subscriptions, kind, name);
                // A recheck may have ended some since all were listed.
                (was_held || !is_all)
                    .then(|| (Some(name.clone()), subscriptions.counted_with(kind)))
            })
            .collect();
        if acks.is_empty() {
            acks.push((None, subscriptions.counted_with(kind)));
        }
        // The shards are locked, so no message is delivered before the engine has the change.
        acknowledge(&acks, subscriptions.counted_with(Kind::Channel));
        drop(subscriptions);
        for ((_, shard), (_, names)) in guards.iter_mut().zip(&by_shard) {
            shard.unsubscribe(self, connection.id, kind, names);
        }
    }

    /// Removes a name from the ground state and from the counts. False: the connection was not
    /// subscribed to it. The lock of the shard concerned is held.
    fn forget(
        &self,
        connection: &Connection,
        subscriptions: &mut Subscriptions,
        kind: Kind,
        name: &[u8],
    ) -> bool {
        let was_held = subscriptions.of_mut(kind).remove(name);
        if was_held {
            self.holdings.release(connection, kind, std::iter::once(name));
            self.history.listening(kind, name, -1);
            if subscriptions.is_empty() {
                self.holdings.end();
            }
            if let Some(observer) = &self.observer {
                observer.leave(kind, name);
            }
        }
        was_held
    }

    /// Ends all subscriptions of a connection, and what it has in rooms.
    pub fn disconnect(&self, connection: &Connection) {
        self.presence.connection_ended(connection.id);
        for kind in [Kind::Channel, Kind::Pattern, Kind::Shard] {
            if !connection.subscriptions().of(kind).is_empty() {
                self.unsubscribe(connection, kind, &[], |_, _| {});
            }
        }
    }

    /// Channels with subscribers, all or those that match, in the order of their bytes. Blocks for
    /// as long as that takes, but locks no shard for longer than a page.
    ///
    /// # Errors
    ///
    /// The engine is not available, or the list is too large.
    pub fn channels(&self, space: Space, matching: Option<&[u8]>) -> Result<Names, Refusal> {
        let mut listing = Listing::new(self, space, matching.map(<[u8]>::to_vec));
        while !listing.advance(self)? {}
        Ok(listing.into_names())
    }

    /// The number of subscribers of each of these channels. Each shard is locked and called once.
    ///
    /// # Errors
    ///
    /// The engine is not available.
    pub fn subscriber_counts(
        &self,
        space: Space,
        channels: &[impl AsRef<[u8]>],
    ) -> Result<Vec<u64>, Unavailable> {
        let mut counts = vec![0; channels.len()];
        let mut by_shard: Vec<(Names, Vec<usize>)> = Vec::new();
        by_shard.resize_with(self.shards.len(), Default::default);
        for (place, channel) in channels.iter().map(AsRef::as_ref).enumerate() {
            if let Some((names, places)) = by_shard.get_mut(self.shard_of(space, channel)) {
                names.push(channel);
                places.push(place);
            }
        }
        for (shard, (names, places)) in self.shards.iter().zip(by_shard) {
            if places.is_empty() {
                continue;
            }
            let found = shard.lock().call(self, EngineCall::SubscriberCounts, |engine| {
                engine.subscriber_counts(&names)
            })?;
            for (place, count) in places.into_iter().zip(found) {
                if let Some(slot) = counts.get_mut(place) {
                    *slot = count;
                }
            }
        }
        Ok(counts)
    }

    /// How many channels have subscribers.
    ///
    /// # Errors
    ///
    /// The engine is not available.
    pub fn channel_count(&self, space: Space) -> Result<u64, Unavailable> {
        self.shards_of(space)
            .map(|shard| {
                shard.lock().call(self, EngineCall::ChannelCount, |engine| engine.channel_count())
            })
            .sum()
    }

    /// How many distinct patterns have subscribers.
    ///
    /// # Errors
    ///
    /// The engine is not available.
    pub fn pattern_count(&self) -> Result<u64, Unavailable> {
        let Some(shard) = self.shards.first() else { return Ok(0) };
        shard.lock().call(self, EngineCall::PatternCount, |engine| engine.pattern_count())
    }

    /// Retries the shards that were given up. Returns how many shards have no available engine.
    pub fn retry_failed_shards(&self) -> usize {
        // A shard whose lock is held is in use, and the thread that holds it handles a fault.
        let is_unavailable = |shard: &Mutex<Shard>| {
            shard.try_lock().is_some_and(|mut shard| shard.retry_failed_shards(self).is_err())
        };
        self.shards.iter().filter(|shard| is_unavailable(shard)).count()
    }

    /// Replaces the engine while the server runs. The standby engines receive the ground state
    /// slice by slice, and every change since; then all shards switch to them at once. On an error
    /// all shards keep the old engine. The duration grows with the number of subscriptions, but the
    /// time for which a shard is locked does not. Blocks: do not call it on a thread that serves
    /// connections.
    ///
    /// # Errors
    ///
    /// The new engine cannot be instantiated, or fails while it receives the ground state. The
    /// error is a message.
    pub fn swap_engine(&self, new: Arc<dyn EngineFactory>) -> Result<EngineSwap, String> {
        let _one_at_a_time = self.swapping.lock();
        let mut longest_pause = Duration::ZERO;
        for shard in &self.shards {
            let prepared = panics::contain(|| self.prepare(shard, &new, &mut longest_pause));
            if let Err(problem) = prepared.unwrap_or_else(|| Err("the host panicked".to_owned())) {
                self.shards.iter().for_each(|shard| drop(shard.lock().abandon()));
                return Err(problem);
            }
        }
        let mut guards = self.lock(0..self.shards.len());
        let started = Instant::now();
        let fault = guards.iter().find_map(|(_, shard)| shard.successor_fault());
        let discarded: Vec<_> = match &fault {
            None => guards.iter_mut().map(|(_, shard)| shard.take_over(&new)).collect(),
            Some(_) => guards.iter_mut().map(|(_, shard)| shard.abandon()).collect(),
        };
        drop(guards);
        longest_pause = longest_pause.max(started.elapsed());
        drop(discarded);
        if let Some(fault) = fault {
            return Err(fault.to_string());
        }
        let to = new.version().to_owned();
        let from = std::mem::replace(&mut *self.code.lock(), new).version().to_owned();
        Ok(EngineSwap { from, to, longest_pause })
    }

    /// Gives a shard a standby engine with the whole ground state.
    fn prepare(
        &self,
        shard: &Mutex<Shard>,
        new: &Arc<dyn EngineFactory>,
        longest_pause: &mut Duration,
    ) -> Result<(), String> {
        // Created before the shard is locked.
        let engine = new.instantiate()?;
        shard.lock().prepare(engine);
        let mut cursor = ReplayCursor::nothing(self);
        loop {
            let mut held = shard.lock();
            let started = Instant::now();
            let knows_all = held.replay_slice(self, &mut cursor);
            // A fair unlock passes the lock to the thread that waits for it.
            MutexGuard::unlock_fair(held);
            *longest_pause = (*longest_pause).max(started.elapsed());
            if knows_all.map_err(|fault| fault.to_string())? {
                return Ok(());
            }
            std::thread::sleep(BETWEEN_SLICES);
        }
    }

    /// Sets the limits for names that are added from now on.
    pub fn set_name_limits(&self, limits: NameLimits) {
        let _all = self.lock(0..self.shards.len());
        self.holdings.set_limits(limits, &self.connections);
    }

    /// Counts names that are about to wait for the backplane, until the result is dropped: those that
    /// the connection is not subscribed to yet.
    ///
    /// # Errors
    ///
    /// They do not fit.
    pub fn wait_for_backplane(
        &self,
        connection: &Connection,
        kind: Kind,
        names: &[Bytestring<'_>],
    ) -> Result<WaitingNames, Refusal> {
        let leaving = self.observer.as_ref().map_or(0, |observer| observer.leaving_bytes());
        let new = holdings::new_names(connection, kind, names);
        self.holdings.wait(connection, new.into_iter(), leaving).map_err(|excess| {
            self.holdings.refuse(excess, connection, &self.connections);
            excess.into()
        })
    }

    /// Counts names that a connection waits for, until the result is dropped: as much as if it were
    /// subscribed to them.
    ///
    /// # Errors
    ///
    /// They do not fit.
    pub fn count_awaited(
        &self,
        connection: &Connection,
        names: &[Bytestring<'_>],
    ) -> Result<WaitingNames, Refusal> {
        let leaving = self.observer.as_ref().map_or(0, |observer| observer.leaving_bytes());
        let names = names.iter().map(|name| &**name);
        self.holdings.wait(connection, names, leaving).map_err(|excess| {
            self.holdings.refuse(excess, connection, &self.connections);
            excess.into()
        })
    }

    /// The totals of all connections.
    pub fn holdings(&self) -> &Holdings {
        &self.holdings
    }

    /// The size of all engines' memories. Blocks until each shard is free.
    pub fn engine_memory_bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().memory_bytes()).sum()
    }

    /// The members of channels.
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    /// The features that the channel rules give clients, as words.
    pub fn features(&self) -> &'static [&'static str] {
        match (self.history.is_on(), self.presence.has_rule()) {
            (false, false) => &[],
            (true, false) => &["history"],
            (false, true) => &["presence"],
            (true, true) => &["history", "presence"],
        }
    }

    /// The counters.
    pub fn stats(&self) -> &HubStats {
        &self.stats
    }

    /// How many shards the channels are spread over.
    pub fn spread(&self) -> usize {
        self.spread
    }

    /// The version of the engine in use.
    pub fn engine_version(&self) -> String {
        self.code.lock().version().to_owned()
    }

    /// All connections.
    pub fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    fn shards_of(&self, space: Space) -> impl Iterator<Item = &Mutex<Shard>> {
        let skip = match space {
            Space::Channels => 0,
            Space::ShardChannels => self.spread,
        };
        self.shards.iter().skip(skip).take(self.spread)
    }

    /// The shard of a channel.
    fn shard(&self, space: Space, name: &[u8]) -> &Mutex<Shard> {
        let number = self.shard_of(space, name);
        self.shards.get(number).expect("names are spread over the shards that there are")
    }

    fn shard_of(&self, space: Space, name: &[u8]) -> usize {
        let number = self.place(name);
        match space {
            Space::Channels => number,
            Space::ShardChannels => self.spread + number,
        }
    }

    /// The shard of a name space that a name belongs to.
    fn place(&self, name: &[u8]) -> usize {
        let mut hasher = self.hash.build_hasher();
        hasher.write(name);
        ((u128::from(hasher.finish()) * self.spread as u128) >> 64) as usize
    }

    /// The names of each shard, in ascending order of the shards.
    fn by_shard(&self, kind: Kind, names: &[Bytestring<'_>]) -> Vec<(usize, Names)> {
        let space = match kind {
            Kind::Pattern => {
                let all: Names = names.iter().collect();
                let shards = if names.is_empty() { 0 } else { self.spread };
                return (0..shards).map(|shard| (shard, all.clone())).collect();
            }
            Kind::Channel => Space::Channels,
            Kind::Shard => Space::ShardChannels,
        };
        let mut by_shard: Vec<Names> = self.shards.iter().map(|_| Names::new()).collect();
        for name in names {
            if let Some(of_shard) = by_shard.get_mut(self.shard_of(space, name)) {
                of_shard.push(name);
            }
        }
        by_shard.into_iter().enumerate().filter(|(_, names)| !names.is_empty()).collect()
    }

    /// Locks each of these shards once, by rising number.
    fn lock(&self, shards: impl Iterator<Item = usize>) -> Guards<'_> {
        let mut set = 0_u64;
        for shard in shards {
            set |= 1 << shard;
        }
        let chosen = self.shards.iter().enumerate().filter(|(number, _)| set & 1 << number != 0);
        chosen.map(|(number, shard)| (number, shard.lock())).collect()
    }
}
