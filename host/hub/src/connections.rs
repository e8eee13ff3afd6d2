//! The ground state: the connections, and the subscriptions of each.
//!
//! The whole state of the engine can be rebuilt from it. The subscriptions of a connection change
//! only while the hub holds the locks of the shards concerned. So a thread that holds a shard's
//! lock sees the subscriptions that its engine should know.
//!
//! Lock order: shards (by rising number), the table, a connection's subscriptions or attributes,
//! its outbox. The table is never write-locked while a shard is locked, and no engine is called
//! while the table is locked.

pub mod attributes;
pub mod expiries;
pub mod holdings;
pub mod ids;
pub mod input;
pub mod memory;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::encoding::Encoding;
use attributes::Attributes;
use expiries::Expiries;
use holdings::Holds;
use ids::{Ids, ReservedId};
use input::InputHeld;
use memory::Memory;
use switchyard_config::Limits;
use switchyard_config::OutboxLimits;
use switchyard_config::networks::{AddressCounts, Network};
use switchyard_net::address_buckets::Bucket;
use switchyard_net::batch_mark::BatchMark;
use switchyard_net::flush::Flushable;
use switchyard_net::outbox::Outbox;
use switchyard_types::close::CloseReason;
use switchyard_types::command::Kind;
use switchyard_types::ids::ConnectionId;

/// One connection, without its socket.
pub struct Connection {
    /// Its id.
    pub id: ConnectionId,
    /// The peer's address.
    pub remote: SocketAddr,
    /// When it was accepted.
    pub opened: Instant,
    /// Its outbox.
    pub outbox: Outbox,
    /// How much it holds of messages that were received in part.
    pub input: InputHeld,
    encoding: AtomicU8,
    /// The database that its client selected (Redis' SELECT).
    database: AtomicU8,
    subscriptions: Mutex<Subscriptions>,
    pub(super) attributes: Attributes,
    /// The name that its client gave itself, by CLIENT SETNAME.
    client_name: Mutex<Option<Box<str>>>,
    pub(super) expiries: Arc<Expiries>,
    /// Rises when a subscription is acknowledged, and when an attribute changes.
    pub(super) revision: AtomicU64,
    liveness: Liveness,
    /// Whether its address was counted when it connected.
    is_address_counted: bool,
    /// How much its names count.
    pub holds: Holds,
    /// Whether its publications wait in a batch.
    batch_mark: BatchMark,
    /// Whether its client waits for a publication, as long as it likes.
    is_blocked: AtomicBool,
    auth_bucket: Mutex<Bucket>,
}

impl Flushable for Connection {
    fn outbox(&self) -> &Outbox {
        &self.outbox
    }
}

/// The subscriptions of a connection.
#[derive(Default)]
pub struct Subscriptions {
    /// By SUBSCRIBE.
    pub channels: BTreeSet<Box<[u8]>>,
    /// By PSUBSCRIBE.
    pub patterns: BTreeSet<Box<[u8]>>,
    /// By SSUBSCRIBE.
    pub shard_channels: BTreeSet<Box<[u8]>>,
}

impl Subscriptions {
    /// The names of a kind.
    pub fn of(&self, kind: Kind) -> &BTreeSet<Box<[u8]>> {
        match kind {
            Kind::Channel => &self.channels,
            Kind::Pattern => &self.patterns,
            Kind::Shard => &self.shard_channels,
        }
    }

    /// The names of a kind, mutable.
    pub fn of_mut(&mut self, kind: Kind) -> &mut BTreeSet<Box<[u8]>> {
        match kind {
            Kind::Channel => &mut self.channels,
            Kind::Pattern => &mut self.patterns,
            Kind::Shard => &mut self.shard_channels,
        }
    }

    /// How many subscriptions Redis counts in an acknowledgement of this kind: channels and
    /// patterns together, shard channels separately.
    pub fn counted_with(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Channel | Kind::Pattern => self.channels.len() + self.patterns.len(),
            Kind::Shard => self.shard_channels.len(),
        }
        .try_into()
        .unwrap_or(u64::MAX)
    }

    /// Whether there are no subscriptions.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All names, of every kind.
    pub fn len(&self) -> usize {
        self.channels.len() + self.patterns.len() + self.shard_channels.len()
    }
}

/// When data was last received, in milliseconds since the table was created.
#[derive(Default)]
struct Liveness {
    last_active_ms: AtomicU64,
    /// When it was pinged, if nothing was received since; else zero.
    pinged_ms: AtomicU64,
    /// Whether it was admitted: until then it receives neither pings nor a close.
    open: AtomicBool,
}

/// What the keep-alive check requires now.
#[derive(Debug, PartialEq, Eq)]
pub enum Pulse {
    /// Nothing.
    Fine,
    /// A ping is due.
    PingDue,
    /// The reply to the last ping is overdue.
    Lost,
}

impl Connection {
    /// Its subscriptions. To change them, the lock of each shard concerned must be held.
    pub fn subscriptions(&self) -> parking_lot::MutexGuard<'_, Subscriptions> {
        self.subscriptions.lock()
    }

    /// The encoding of its publications.
    pub fn encoding(&self) -> Encoding {
        Encoding::from_index(self.encoding.load(Ordering::Relaxed))
    }

    /// Changes the encoding of its publications.
    pub fn set_encoding(&self, encoding: Encoding) {
        self.encoding.store(encoding.index(), Ordering::Relaxed);
    }

    /// The database that its client selected: shown, and nothing else.
    pub fn database(&self) -> u8 {
        self.database.load(Ordering::Relaxed)
    }

    /// Sets the database that its client selected.
    pub fn set_database(&self, database: u8) {
        self.database.store(database, Ordering::Relaxed);
    }

    /// The attribute under this key.
    pub fn attribute(&self, key: &str) -> Option<String> {
        self.attributes.get(key)
    }

    /// Its attributes, in the order of their keys.
    pub fn attributes(&self) -> BTreeMap<String, String> {
        self.attributes.all()
    }

    /// Whether the attribute under this key has this value.
    pub fn has_attribute(&self, key: &str, value: &str) -> bool {
        self.attributes.has(key, value)
    }

    /// The name that its client gave itself; none: it gave none.
    pub fn client_name(&self) -> Option<Box<str>> {
        self.client_name.lock().clone()
    }

    /// Sets the name that its client gave itself; empty: none. What is not UTF-8 in it is replaced.
    pub fn set_client_name(&self, name: &[u8]) {
        let name = (!name.is_empty()).then(|| String::from_utf8_lossy(name).into());
        *self.client_name.lock() = name;
    }

    /// Sets an attribute; none removes it. False: there is no room for it.
    pub fn set_attribute(&self, key: &str, value: Option<String>) -> bool {
        let is_other = self.attributes.get(key) != value;
        let has_room =
            self.attributes.set(key, value, |deadline, at| self.reschedule(deadline, at));
        if is_other {
            self.revise();
        }
        has_room
    }

    /// Called before credentials are passed to the plugins: the first time, it saves the
    /// attributes.
    pub fn begin_authenticating(&self) {
        self.attributes.begin_authenticating();
    }

    /// The plugins accepted its credentials.
    pub fn accept_credentials(&self) {
        self.attributes.accept_credentials();
        self.revise();
    }

    /// Restores the attributes to what they were before the client authenticated.
    pub fn restore_attributes(&self) {
        self.attributes.restore(|deadline, at| self.reschedule(deadline, at));
        self.revise();
    }

    /// Its address, if connections from it are counted.
    pub fn counted_address(&self) -> Option<IpAddr> {
        self.is_address_counted.then(|| self.remote.ip())
    }

    /// The limiter for its failures to authenticate.
    pub fn auth_bucket(&self) -> parking_lot::MutexGuard<'_, Bucket> {
        self.auth_bucket.lock()
    }

    /// Whether it must authenticate before it may do anything else.
    #[inline]
    pub fn must_authenticate(&self) -> bool {
        self.attributes.is_auth_required()
    }

    /// Raises the revision: results of earlier plugin calls for the connection may be outdated,
    /// because a subscription is being acknowledged or an attribute has changed.
    pub fn revise(&self) {
        self.revision.fetch_add(1, Ordering::AcqRel);
    }

    /// The current revision.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Whether its address is counted.
    pub fn is_address_counted(&self) -> bool {
        self.is_address_counted
    }

    /// Whether its publications wait in a batch.
    pub fn is_publishing(&self) -> bool {
        self.batch_mark.is_set()
    }

    /// Its publications wait in a batch from now on.
    pub fn begin_publishing(&self) {
        self.batch_mark.set();
    }

    /// The batch was published: the connection continues.
    pub fn end_publishing(&self) {
        self.batch_mark.clear(&self.outbox);
    }

    /// Whether its client waits for a publication, as XREAD BLOCK does: then it need not say
    /// anything, and what it says is not executed.
    pub fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Relaxed)
    }

    pub(super) fn set_blocked(&self, is_blocked: bool) {
        self.is_blocked.store(is_blocked, Ordering::Relaxed);
    }

    fn set_last_active(&self, now_ms: u64) {
        self.liveness.last_active_ms.store(now_ms, Ordering::Relaxed);
        self.liveness.pinged_ms.store(0, Ordering::Relaxed);
    }
}

/// Connections by their ids.
pub type Table = FxHashMap<ConnectionId, Arc<Connection>>;

/// All connections.
pub struct Connections {
    table: RwLock<Table>,
    /// Connections that were removed from the table and still have much to be written.
    leaving: Mutex<Table>,
    memory: Arc<Memory>,
    started: Instant,
    ids: Arc<Ids>,
    open: AtomicUsize,
    addresses: AddressCounts,
    limits: RwLock<ConnectionLimits>,
    expiries: Arc<Expiries>,
    attributes_bytes_max: usize,
}

/// The limits for new connections.
struct ConnectionLimits {
    connections_max: usize,
    per_address_max: usize,
    uncounted_networks: Vec<Network>,
    outbox: OutboxLimits,
}

impl Connections {
    /// An empty table. The limit for one address is the total limit, until `set_limits` is called.
    pub fn new(
        connections_max: usize,
        outbox_limits: OutboxLimits,
        attributes_bytes_max: usize,
    ) -> Arc<Connections> {
        Arc::new_cyclic(|connections| Connections {
            table: RwLock::default(),
            leaving: Mutex::default(),
            memory: Arc::new(Memory::new(connections.clone())),
            started: Instant::now(),
            ids: Arc::default(),
            open: AtomicUsize::new(0),
            addresses: AddressCounts::default(),
            limits: RwLock::new(ConnectionLimits {
                connections_max,
                per_address_max: connections_max,
                uncounted_networks: Vec::new(),
                outbox: outbox_limits,
            }),
            attributes_bytes_max,
            expiries: Arc::default(),
        })
    }

    /// Sets the limits for new connections.
    pub fn set_limits(&self, limits: &Limits, outbox: OutboxLimits) {
        *self.limits.write() = ConnectionLimits {
            connections_max: limits.connections_max,
            per_address_max: limits.connections_per_address_max,
            uncounted_networks: limits.uncounted_networks.clone(),
            outbox,
        };
    }

    /// A new connection, as `add_accepted`, that no listener accepted.
    ///
    /// # Errors
    ///
    /// As for `add_accepted`.
    pub fn add(
        &self,
        encoding: Encoding,
        remote: SocketAddr,
    ) -> Result<Arc<Connection>, CloseReason> {
        self.add_accepted(&self.ids.reserve(), encoding, remote)
    }

    /// A new connection. It is in the table before any plugin is called for it, so that plugins can
    /// set its attributes while they decide.
    ///
    /// # Errors
    ///
    /// The total limit or the limit of its address is reached.
    pub fn add_accepted(
        &self,
        id: &ReservedId,
        encoding: Encoding,
        remote: SocketAddr,
    ) -> Result<Arc<Connection>, CloseReason> {
        let limits = self.limits.read();
        if self.open.fetch_add(1, Ordering::Relaxed) >= limits.connections_max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(CloseReason::OverCapacity);
        }
        let address = remote.ip();
        let is_address_counted =
            !limits.uncounted_networks.iter().any(|network| network.contains(address));
        if is_address_counted && !self.addresses.add(address, limits.per_address_max) {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(CloseReason::OverAddressCapacity);
        }
        let id = id.claim();
        let connection =
            Arc::new(self.make(id, encoding, remote, limits.outbox, is_address_counted));
        connection.set_last_active(self.now_ms());
        self.table.write().insert(connection.id, connection.clone());
        Ok(connection)
    }

    /// How many more connections the address of this peer may make; none: its address is not
    /// counted.
    pub fn left_for(&self, address: IpAddr) -> Option<usize> {
        let limits = self.limits.read();
        let is_counted = !limits.uncounted_networks.iter().any(|network| network.contains(address));
        let left = || limits.per_address_max.saturating_sub(self.addresses.of(address));
        is_counted.then(left)
    }

    /// A connection that is not in the table: it is not listed, not counted, and receives only
    /// what the owner of this value delivers to it.
    pub fn unseen(&self, encoding: Encoding) -> Connection {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        self.make(ConnectionId::MAX, encoding, nowhere, self.limits.read().outbox, false)
    }

    fn make(
        &self,
        id: ConnectionId,
        encoding: Encoding,
        remote: SocketAddr,
        outbox: OutboxLimits,
        is_address_counted: bool,
    ) -> Connection {
        Connection {
            id,
            remote,
            opened: Instant::now(),
            outbox: Outbox::accounted(outbox, self.memory.clone()),
            input: InputHeld::default(),
            encoding: AtomicU8::new(encoding.index()),
            database: AtomicU8::new(0),
            subscriptions: Mutex::default(),
            attributes: Attributes::new(self.attributes_bytes_max),
            client_name: Mutex::default(),
            expiries: self.expiries.clone(),
            revision: AtomicU64::new(0),
            liveness: Liveness::default(),
            is_address_counted,
            holds: Holds::default(),
            batch_mark: BatchMark::default(),
            is_blocked: AtomicBool::new(false),
            auth_bucket: Mutex::default(),
        }
    }

    /// Removes a connection without subscriptions. If much is still to be written, its memory is
    /// tracked until `left`.
    pub fn remove(&self, id: ConnectionId) {
        let removed = self.table.write().remove(&id);
        if let Some(connection) = removed {
            connection.end_expiring();
            self.open.fetch_sub(1, Ordering::Relaxed);
            if connection.is_address_counted {
                self.addresses.remove(connection.remote.ip());
            }
            if connection.outbox.has_backlog() {
                self.leaving.lock().insert(id, connection);
            }
        }
    }

    /// Records that nothing more is written to a removed connection.
    pub fn left(&self, connection: &Connection) {
        connection.outbox.discard();
        let left = self.leaving.lock().remove(&connection.id);
        drop(left);
    }

    /// All connections that hold memory: those in the table, and those that are leaving. May be
    /// called while the table is read-locked.
    pub fn all(&self) -> Vec<Arc<Connection>> {
        let mut all: Vec<Arc<Connection>> = self.table.read_recursive().values().cloned().collect();
        all.extend(self.leaving.lock().values().cloned());
        all
    }

    /// The memory that they hold, and its bounds.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// A connection by its id.
    pub fn get(&self, id: ConnectionId) -> Option<Arc<Connection>> {
        self.table.read().get(&id).cloned()
    }

    /// Locks the table for reading, to look up many. The caller must not call a plugin or lock a
    /// shard while it holds the guard.
    pub fn read(&self) -> impl std::ops::Deref<Target = Table> {
        self.table.read()
    }

    /// The number of connections.
    pub fn count(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// The ids of new connections.
    pub fn ids(&self) -> &Arc<Ids> {
        &self.ids
    }

    /// Records that the connection was admitted.
    pub fn opened(&self, connection: &Connection) {
        connection.set_last_active(self.now_ms());
        connection.liveness.open.store(true, Ordering::Relaxed);
        connection.begin_expiring();
    }

    /// The expiry times of credentials.
    pub fn expiries(&self) -> &Expiries {
        &self.expiries
    }

    /// Notes that the peer of a connection is alive.
    pub fn mark_active(&self, connection: &Connection) {
        connection.set_last_active(self.now_ms());
    }

    /// Notes that something was received from a connection at this moment. Returns the moment in
    /// milliseconds since the table began.
    pub fn received_at(&self, connection: &Connection, now: Instant) -> u64 {
        let now_ms = now.saturating_duration_since(self.started).as_millis() as u64;
        connection.set_last_active(now_ms);
        now_ms
    }

    /// Whether one message has been arriving for longer than this. The time does not run while the
    /// connection is not read from because of its outbox, nor while its client waits.
    pub fn is_input_late(&self, connection: &Connection, time: Duration) -> bool {
        let now = self.now_ms();
        let is_late = connection.input.unfinished_ms(now) > time.as_millis() as u64;
        if is_late && (connection.outbox.is_congested() || connection.is_blocked()) {
            connection.input.begin_message(now);
            return false;
        }
        is_late
    }

    /// All connections that were admitted.
    pub fn opened_ones(&self) -> Vec<Arc<Connection>> {
        self.table
            .read()
            .values()
            .filter(|connection| connection.liveness.open.load(Ordering::Relaxed))
            .cloned()
            .collect()
    }

    /// What the keep-alive check requires for this connection now. `PingDue` starts the timeout for
    /// a reply.
    pub fn pulse(&self, connection: &Connection, interval: Duration, answer: Duration) -> Pulse {
        let now = self.now_ms();
        let pinged = connection.liveness.pinged_ms.load(Ordering::Relaxed);
        let last_active = connection.liveness.last_active_ms.load(Ordering::Relaxed);
        if pinged > 0 {
            let overdue = now.saturating_sub(pinged) > answer.as_millis() as u64;
            return if overdue { Pulse::Lost } else { Pulse::Fine };
        }
        if now.saturating_sub(last_active) < interval.as_millis() as u64 {
            return Pulse::Fine;
        }
        connection.liveness.pinged_ms.store(now.max(1), Ordering::Relaxed);
        Pulse::PingDue
    }

    /// Whether it has no subscriptions, does not wait, and nothing was received from it for this
    /// long.
    pub fn is_idle(&self, connection: &Connection, time: Duration) -> bool {
        let last_active = connection.liveness.last_active_ms.load(Ordering::Relaxed);
        self.now_ms().saturating_sub(last_active) > time.as_millis() as u64
            && !connection.is_blocked()
            && connection.subscriptions().is_empty()
    }

    /// Milliseconds since the table was created.
    pub fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}
