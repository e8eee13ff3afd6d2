//! NATS core, version 2.2 or later.
//!
//! One connection publishes and subscribes, with echo disabled. Publications have a header with the
//! name of this node and a number, so that this node's own messages are also recognized when they
//! arrive over another of its connections. Payloads are not changed. The server does not confirm
//! subscriptions. So a second connection is a fence: it receives a message that the first
//! connection publishes after its commands, which proves that the server has processed them.
//!
//! The client crate would reconnect by itself and send what it still has queued, late and out of
//! order. So its attempts to reconnect are rejected.
//!
//! NATS sends one copy for each subscription that matches, and does not say which copies belong
//! together. Where several of this node's names match, the copies of the oldest subscription are
//! delivered, because it has missed nothing that the others received. The other copies are
//! recognized by the header or, where another program published, by the payload. A copy that
//! arrives early on another subscription is held until the oldest subscription receives it. When
//! that subscription ends, the next one delivers what is outstanding.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::{
    Auth, AuthError, Client, ConnectOptions, Event, HeaderMap, Message, ServerError, Subscriber,
};
use bytes::Bytes;
use futures_util::StreamExt;
use guest_core::{ConnectionId, FanOuts, Names, Registry, glob};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::{debug, warn};

use super::ask::MessageSender;
use super::ask::To;
use super::inbox::{Inbox, Incoming};
use super::interest::Name;
use super::outgoing::Outgoing;
use super::refusals::Refusals;
use super::shared::SharedSubscriptions;
use super::{Backplane, BackplaneStats, LinkError, subjects};
use switchyard_config::{BackplaneKind, ClusterConfig};
use switchyard_telemetry::panics;
use switchyard_telemetry::stats::count;
use switchyard_types::command::{Kind, Space};

/// The longest subject: a line of the protocol has at most 4096 bytes by default, and the server
/// closes a connection that sends a longer one.
const SUBJECT_BYTES_MAX: usize = 3_500;
/// The header with the publishing node and the number of the publication.
const HEADER: &str = "Switchyard";
/// The size of the header, which reduces the largest message.
const HEADER_BYTES: usize = 80;

/// How long a further copy may arrive after the first.
const COPY_TIME: Duration = Duration::from_secs(10);
/// How many messages with outstanding copies are remembered, and how many bytes of early copies.
/// Above that, the oldest are dropped.
const COPIES_MAX: usize = 100_000;
const HELD_BYTES_MAX: usize = 64 << 20;

/// A connection to NATS.
pub struct NatsLink {
    client: Client,
    /// The fence client, which receives a message when the server has processed what was sent
    /// before it. Held for its connection.
    _witness: Client,
    /// The last number sent to the fence client, and the last one that it received.
    last_sent: AtomicU64,
    last_received: watch::Receiver<u64>,
    reader: Arc<Reader>,
    subscriptions: tokio::sync::Mutex<Subscriptions>,
    broken: watch::Receiver<Option<LinkError>>,
    refusals: Arc<Refusals>,
    prefix: String,
    node: String,
}

#[derive(Default)]
struct Subscriptions {
    /// Each with the task that reads it.
    shared: SharedSubscriptions<AbortHandle>,
    /// Those for the nodes' own messages.
    own: Vec<AbortHandle>,
}

/// Whether a channel's name fits into a subject.
pub fn takes(prefix: &str, space: Space, channel: &[u8]) -> bool {
    // A byte becomes three at most, and most names are short.
    channel.len() * 3 + prefix.len() + 16 <= SUBJECT_BYTES_MAX
        || subjects::subject(prefix, space, channel).len() <= SUBJECT_BYTES_MAX
}

impl NatsLink {
    pub async fn connect(backplane: &Backplane) -> Result<NatsLink, LinkError> {
        let config = &backplane.config;
        let BackplaneKind::Nats { hosts, is_tls } = &config.kind else {
            return Err(LinkError::Failed("the config names no NATS".to_owned()));
        };
        let scheme = if *is_tls { "tls" } else { "nats" };
        let addresses: Vec<String> =
            hosts.iter().map(|(host, port)| format!("{scheme}://{host}:{port}")).collect();
        let (breaking, broken) = watch::channel(None);
        let is_connected = Arc::new(AtomicBool::new(false));
        let connect = || {
            let violations = Violations {
                prefix: config.prefix.clone(),
                stats: backplane.stats.clone(),
                refusals: backplane.refusals.clone(),
                breaking: breaking.clone(),
            };
            options(config, *is_tls, is_connected.clone(), violations)
        };
        let client = connect().no_echo().connect(&addresses).await.map_err(failed)?;
        let witness = connect().connect(&addresses).await.map_err(failed)?;
        is_connected.store(true, Ordering::Relaxed);
        let max_payload = client.server_info().max_payload;
        backplane
            .payload_bytes_max
            .store(max_payload.saturating_sub(HEADER_BYTES), Ordering::Relaxed);
        backplane.is_sharded.store(false, Ordering::Relaxed);
        // The fence client receives its own publication once its subscription is in place.
        let own_ping = own_subject(&config.prefix, &format!("ping.{}", backplane.node));
        let listening = witness.subscribe(own_ping.clone()).await.map_err(failed)?;
        let (received_sender, last_received) = watch::channel(0);
        let witnessing = tokio::spawn(receive_pings(listening, received_sender));
        witness.publish(own_ping, "1".into()).await.map_err(failed)?;
        let own = vec![witnessing.abort_handle()];
        let link = NatsLink {
            client,
            _witness: witness,
            last_sent: AtomicU64::new(1),
            last_received,
            reader: Arc::new(Reader {
                inbox: backplane.inbox.clone(),
                stats: backplane.stats.clone(),
                prefix: config.prefix.clone(),
                node: backplane.node.clone(),
                matching: Mutex::default(),
            }),
            subscriptions: Subscriptions { own, ..Subscriptions::default() }.into(),
            broken,
            refusals: backplane.refusals.clone(),
            prefix: config.prefix.clone(),
            node: backplane.node.clone(),
        };
        link.wait_for_ping(1).await?;
        let message_sender = backplane.asks.message_sender();
        for subject in [link.own_subject("all"), link.own_subject(&format!("node.{}", link.node))] {
            let subscriber = link.subscribe(subject).await?;
            let receiving = tokio::spawn(receive(subscriber, message_sender.clone()));
            link.subscriptions.lock().await.own.push(receiving.abort_handle());
        }
        link.look_for_restrictions().await?;
        link.ping().await?;
        Ok(link)
    }

    /// Publishes and subscribes on subjects that no channel has, which checks the rights for both.
    /// NATS reports a missing right asynchronously, and it is recorded then.
    async fn look_for_restrictions(&self) -> Result<(), LinkError> {
        let below = |name: &str| match self.prefix.as_str() {
            "" => name.to_owned(),
            prefix => format!("{prefix}.{name}"),
        };
        self.client.publish(below(PROBE), Bytes::new()).await.map_err(failed)?;
        drop(self.subscribe(below(&format!("*.{PROBE}"))).await?);
        self.client.flush().await.map_err(failed)
    }

    pub async fn publish(&self, batch: &[Outgoing]) -> Result<usize, LinkError> {
        /// Continues over all connections of this process.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        for Outgoing { space, channel, payload } in batch {
            let mut headers = HeaderMap::new();
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            headers.insert(HEADER, format!("{}-{number}", self.node).as_str());
            let subject = subjects::subject(&self.prefix, *space, channel);
            self.client
                .publish_with_headers(subject, headers, payload.clone())
                .await
                .map_err(failed)?;
        }
        self.ping().await?;
        Ok(0)
    }

    pub async fn listen(&self, names: &[Name]) -> Result<(), LinkError> {
        let mut subscriptions = self.subscriptions.lock().await;
        for name in names {
            let Some(subject) = self.listened(name) else {
                count(&self.reader.stats.unlistenable);
                warn!(
                    bytes = name.bytes.len(),
                    "a name is too long to subscribe to on the backplane"
                );
                continue;
            };
            let id = match subscriptions.shared.join(&subject, name) {
                Some(id) => id,
                None => {
                    let id = subscriptions.shared.new_id();
                    // Recorded before NATS has it: a copy is never unexpected.
                    self.reader.matching.lock().add(name, id);
                    let subscriber = self.subscribe(subject.clone()).await?;
                    let reading = tokio::spawn(read(self.reader.clone(), id, subscriber));
                    subscriptions.shared.add(subject, id, name, reading.abort_handle());
                    id
                }
            };
            self.reader.matching.lock().add(name, id);
        }
        drop(subscriptions);
        self.ping().await
    }

    pub async fn stop_listening(&self, names: &[Name]) -> Result<(), LinkError> {
        let mut subscriptions = self.subscriptions.lock().await;
        for name in names {
            let Some(subject) = self.listened(name) else { continue };
            let Some(left) = subscriptions.shared.leave(&subject, name) else { continue };
            self.reader.give_up(name, left.id);
            self.refusals.forget_name(name);
            if let Some(reading) = left.ended {
                // This drops its subscriber. Messages that it still had queued are either
                // received by another subscription or no longer wanted.
                reading.abort();
            }
        }
        Ok(())
    }

    /// When this completes, the server has processed everything that was sent before it.
    pub async fn ping(&self) -> Result<(), LinkError> {
        let number = self.last_sent.fetch_add(1, Ordering::Relaxed) + 1;
        let subject = self.own_subject(&format!("ping.{}", self.node));
        self.client.publish(subject, number.to_string().into()).await.map_err(failed)?;
        self.wait_for_ping(number).await
    }

    async fn wait_for_ping(&self, number: u64) -> Result<(), LinkError> {
        let mut last_received = self.last_received.clone();
        // The message may never arrive, if a permission is missing.
        tokio::select! {
            received = last_received.wait_for(|last| *last >= number) => {
                received.map(drop).map_err(failed)
            }
            problem = self.broken() => Err(problem),
        }
    }

    pub async fn send_to(&self, to: To<'_>, message: Vec<u8>) -> Result<Option<usize>, LinkError> {
        let subject = match to {
            To::All => self.own_subject("all"),
            To::Node(node) => self.own_subject(&format!("node.{node}")),
        };
        let sending = self.client.publish(subject, message.into());
        sending.await.map_err(failed)?;
        Ok(None)
    }

    pub async fn broken(&self) -> LinkError {
        let mut broken = self.broken.clone();
        let why = broken.wait_for(Option::is_some).await;
        match why.as_deref() {
            Ok(Some(why)) => why.clone(),
            _ => LinkError::Failed("the connection was closed".to_owned()),
        }
    }

    async fn subscribe(&self, subject: String) -> Result<Subscriber, LinkError> {
        let subscribing = self.client.subscribe(subject);
        subscribing.await.map_err(|error| LinkError::Failed(error.to_string()))
    }

    /// The subject for a subscription to a name; none: it would be too long.
    fn listened(&self, name: &Name) -> Option<String> {
        let subject = match name.kind {
            Kind::Channel => subjects::subject(&self.prefix, Space::Channels, &name.bytes),
            Kind::Shard => subjects::subject(&self.prefix, Space::ShardChannels, &name.bytes),
            Kind::Pattern => subjects::wildcard(&self.prefix, &name.bytes),
        };
        (subject.len() <= SUBJECT_BYTES_MAX).then_some(subject)
    }

    fn own_subject(&self, name: &str) -> String {
        own_subject(&self.prefix, name)
    }
}

/// A subject that no channel has.
fn own_subject(prefix: &str, name: &str) -> String {
    match prefix {
        "" => format!("{OWN_TREE}.{name}"),
        prefix => format!("{prefix}.{OWN_TREE}.{name}"),
    }
}

fn failed(error: impl std::fmt::Display) -> LinkError {
    LinkError::Failed(error.to_string())
}

/// The first token of the nodes' own messages.
const OWN_TREE: &str = "%switchyard";
/// A token that no channel contains.
const PROBE: &str = "%probe";

impl Drop for NatsLink {
    fn drop(&mut self) {
        let subscriptions = self.subscriptions.get_mut();
        for task in subscriptions.shared.all().chain(&subscriptions.own) {
            task.abort();
        }
    }
}

fn options(
    config: &ClusterConfig,
    is_tls: bool,
    is_connected: Arc<AtomicBool>,
    violations: Violations,
) -> ConnectOptions {
    let (user, password) = (config.user.clone(), config.password.clone());
    let authenticate = move |_nonce| {
        let mut auth = Auth::new();
        let password = password.as_ref().map(|password| password.expose().to_owned());
        match &user {
            Some(user) => {
                auth.username = Some(user.clone());
                auth.password = password;
            }
            None => auth.token = password,
        }
        // The crate calls this again when it wants to reconnect; then this link is broken.
        let answer = match is_connected.load(Ordering::Relaxed) {
            false => Ok(auth),
            true => Err(AuthError::new("this connection is not made twice")),
        };
        async move { answer }
    };
    let mut options = ConnectOptions::with_auth_callback(authenticate)
        .name("switchyard")
        .max_reconnects(1)
        .connection_timeout(config.connect_time)
        .subscription_capacity(config.nats_pending_max)
        .require_tls(is_tls)
        .event_callback(move |event| {
            match event {
                Event::Disconnected | Event::Closed | Event::LameDuckMode => {
                    violations.breaks(LinkError::Failed(format!("the connection is {event}")));
                }
                Event::SlowConsumer(_) | Event::ServerError(ServerError::SlowConsumer(_)) => {
                    count(&violations.stats.overrun);
                }
                Event::ServerError(error) => violations.take(&error.to_string()),
                _ => {}
            }
            async {}
        });
    let path = |file: &switchyard_config::PemFile| PathBuf::from(&file.path);
    if let Some(authority) = &config.tls.authority {
        options = options.add_root_certificates(path(authority));
    }
    if let Some((certificate, key)) = &config.tls.client {
        options = options.add_client_certificate(path(certificate), path(key));
    }
    options
}

/// Records an error of NATS, which may arrive at any time.
struct Violations {
    prefix: String,
    stats: Arc<BackplaneStats>,
    refusals: Arc<Refusals>,
    breaking: watch::Sender<Option<LinkError>>,
}

impl Violations {
    /// The first reason for which a link fails is kept.
    fn breaks(&self, why: LinkError) {
        self.breaking.send_if_modified(|broken| {
            let is_first = broken.is_none();
            broken.get_or_insert(why);
            is_first
        });
    }

    fn take(&self, said: &str) {
        debug!(said, "the backplane reported an error");
        let lower = said.to_ascii_lowercase();
        let is_publish = lower.contains("permissions violation for publish");
        if !is_publish && !lower.contains("permissions violation for subscription") {
            return;
        }
        let subject = said.split('"').nth(1).unwrap_or_default();
        if subject.contains(OWN_TREE) {
            let verb = if is_publish { "publish on" } else { "subscribe to" };
            let right = format!("{verb} {}", own_subject(&self.prefix, ">"));
            return self.breaks(LinkError::NoRight { right, said: said.to_owned() });
        }
        if subject.contains(PROBE) {
            let what = match is_publish {
                true => "may publish on some names only",
                false => "may listen to some names only",
            };
            return self.refusals.restricted(what, said);
        }
        let channel = subjects::channel(&self.prefix, subject);
        if is_publish {
            count(&self.stats.unsent_refused);
            if let Some((space, channel)) = channel {
                self.refusals.refused_publication(space, &channel, said);
            }
            return;
        }
        count(&self.stats.unlistenable);
        let name = match channel {
            Some((Space::Channels, bytes)) => (Kind::Channel, bytes),
            Some((Space::ShardChannels, bytes)) => (Kind::Shard, bytes),
            // A wildcard: the error does not say for which patterns.
            None => return self.refusals.restricted("may listen to some patterns only", said),
        };
        self.refusals.refused_name(&Name { kind: name.0, bytes: name.1.into() }, said);
    }
}

async fn receive_pings(mut subscriber: Subscriber, last_received: watch::Sender<u64>) {
    while let Some(message) = subscriber.next().await {
        let number = std::str::from_utf8(&message.payload).ok().and_then(|text| text.parse().ok());
        if let Some(number) = number {
            // Concurrent calls may overtake each other before they publish.
            last_received.send_modify(|last| *last = (*last).max(number));
        }
    }
}

async fn receive(mut subscriber: Subscriber, message_sender: MessageSender) {
    while let Some(message) = subscriber.next().await {
        message_sender.send(&message.payload);
    }
}

async fn read(reader: Arc<Reader>, id: ConnectionId, mut subscriber: Subscriber) {
    while let Some(message) = subscriber.next().await {
        // If one ended, its names would get no messages until the link fails.
        if panics::contain(|| reader.take(id, message)).is_none() {
            count(&reader.stats.undelivered);
        }
    }
}

/// Reads the messages of the subscriptions.
struct Reader {
    inbox: Arc<Inbox>,
    stats: Arc<BackplaneStats>,
    prefix: String,
    node: String,
    matching: Mutex<Matching>,
}

/// The subscriptions that match a channel, and the copies that arrived.
#[derive(Default)]
struct Matching {
    /// The subscriptions, in the place of connections.
    channels: Registry,
    shard_channels: Registry,
    copies: Copies,
    fan_outs: FanOuts,
}

impl Matching {
    fn add(&mut self, name: &Name, id: ConnectionId) {
        let names: Names = [&name.bytes].into_iter().collect();
        match name.kind {
            Kind::Channel => self.channels.subscribe(id, &names),
            Kind::Pattern => drop(self.channels.psubscribe(id, &names)),
            Kind::Shard => self.shard_channels.subscribe(id, &names),
        }
    }

    fn remove(&mut self, name: &Name, id: ConnectionId) {
        let names: Names = [&name.bytes].into_iter().collect();
        match name.kind {
            Kind::Channel => self.channels.unsubscribe(id, &names),
            Kind::Pattern => self.channels.punsubscribe(id, &names),
            Kind::Shard => self.shard_channels.unsubscribe(id, &names),
        }
    }

    /// The subscriptions that receive this channel, in rising order.
    fn of(&mut self, space: Space, channel: &[u8]) -> Vec<ConnectionId> {
        let registry = match space {
            Space::Channels => &self.channels,
            Space::ShardChannels => &self.shard_channels,
        };
        registry.route(&[channel].into_iter().collect(), &mut self.fan_outs);
        let mut ids = self.fan_outs.connections.clone();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// What distinguishes messages on the same channel.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Identity {
    /// The number from the publishing node.
    Numbered(String),
    /// The hash and length of its payload. Equal messages need not be distinguished.
    Alike(u64, usize),
}

/// A channel and its space.
type Place = (Space, Vec<u8>);

/// Messages with outstanding copies.
#[derive(Default)]
struct Copies {
    /// Clients choose the names, so the hash has a key of this process.
    by_place: HashMap<Place, VecDeque<Known>>,
    /// In the order in which the first copies arrived.
    order: VecDeque<(Instant, Place)>,
    held_bytes: usize,
    hashing: RandomState,
}

/// A message of which a copy arrived.
struct Known {
    identity: Identity,
    at: Instant,
    /// The subscriptions that have received it.
    by: Vec<ConnectionId>,
    /// Its payload, while it waits for the copy of the oldest subscription.
    held: Option<Bytes>,
}

impl Copies {
    /// Records a copy; returns the payload if it is to be delivered now. `all` are the
    /// subscriptions that receive a copy each, in rising order, so that the first is the oldest.
    fn take(
        &mut self,
        place: &Place,
        identity: Identity,
        by: ConnectionId,
        all: &[ConnectionId],
        payload: Bytes,
    ) -> Option<Bytes> {
        let leads = all.first() == Some(&by);
        let now = Instant::now();
        if let Some(known) = self.by_place.get_mut(place)
            && let Some(index) =
                known.iter().position(|it| it.identity == identity && !it.by.contains(&by))
            && let Some(it) = known.get_mut(index)
        {
            it.by.push(by);
            let held = it.held.take_if(|_| leads);
            self.held_bytes -= held.as_ref().map_or(0, Bytes::len);
            if it.held.is_none() && all.iter().all(|one| it.by.contains(one)) {
                known.remove(index);
            }
            if known.is_empty() {
                self.by_place.remove(place);
            }
            return held;
        }
        if leads && all.len() == 1 {
            return Some(payload);
        }
        let held = (!leads).then(|| payload.clone());
        self.held_bytes += held.as_ref().map_or(0, Bytes::len);
        let it = Known { identity, at: now, by: vec![by], held };
        self.by_place.entry(place.clone()).or_default().push_back(it);
        self.order.push_back((now, place.clone()));
        leads.then_some(payload)
    }

    /// Called when another subscription becomes the oldest of this place: returns the held messages
    /// that it has received, in order.
    fn hand_over(&mut self, place: &Place, all: &[ConnectionId]) -> Vec<Bytes> {
        let mut owed = Vec::new();
        let Some(known) = self.by_place.get_mut(place) else { return owed };
        known.retain_mut(|it| {
            if all.first().is_none_or(|oldest| it.by.contains(oldest)) {
                let held = it.held.take();
                self.held_bytes -= held.as_ref().map_or(0, Bytes::len);
                if !all.is_empty() {
                    owed.extend(held);
                }
            }
            it.held.is_some() || !all.iter().all(|one| it.by.contains(one))
        });
        if known.is_empty() {
            self.by_place.remove(place);
        }
        owed
    }

    /// Drops entries that are too old or too many; returns the held payloads among them.
    fn forget(&mut self, now: Instant) -> Vec<(Place, Bytes)> {
        let mut held = Vec::new();
        while let Some((at, _)) = self.order.front()
            && (now.duration_since(*at) > COPY_TIME
                || self.order.len() > COPIES_MAX
                || self.held_bytes > HELD_BYTES_MAX)
        {
            let Some((at, place)) = self.order.pop_front() else { break };
            let Some(known) = self.by_place.get_mut(&place) else { continue };
            while let Some(it) = known.pop_front_if(|it| it.at <= at) {
                self.held_bytes -= it.held.as_ref().map_or(0, Bytes::len);
                held.extend(it.held.map(|payload| (place.clone(), payload)));
            }
            if known.is_empty() {
                self.by_place.remove(&place);
            }
        }
        held
    }
}

impl Reader {
    fn take(&self, id: ConnectionId, message: Message) {
        let header = message.headers.as_ref().and_then(|headers| headers.get(HEADER));
        let header = header.map(|header| header.as_str());
        if header.is_some_and(|header| header.starts_with(&self.node)) {
            count(&self.stats.echoes);
            return;
        }
        let Some((space, channel)) = subjects::channel(&self.prefix, &message.subject) else {
            // A wildcard may cover the nodes' own messages.
            if !message.subject.contains(OWN_TREE) {
                count(&self.stats.unmapped);
            }
            return;
        };
        let mut matching = self.matching.lock();
        let all = matching.of(space, &channel);
        if !all.contains(&id) {
            // A wildcard covers more than its patterns match.
            return;
        }
        let place = (space, channel);
        if all.len() == 1 && !matching.copies.by_place.contains_key(&place) {
            return self.deliver(place, message.payload);
        }
        let payload = message.payload;
        let identity = match header {
            Some(header) => Identity::Numbered(header.to_owned()),
            None => Identity::Alike(matching.copies.hashing.hash_one(&payload), payload.len()),
        };
        for (place, payload) in matching.copies.forget(Instant::now()) {
            self.deliver(place, payload);
        }
        match matching.copies.take(&place, identity, id, &all, payload) {
            Some(payload) => self.deliver(place, payload),
            None => count(&self.stats.echoes),
        }
    }

    /// Removes a name from its subscription.
    fn give_up(&self, name: &Name, id: ConnectionId) {
        let mut matching = self.matching.lock();
        matching.remove(name, id);
        let space = match name.kind {
            Kind::Channel | Kind::Pattern => Space::Channels,
            Kind::Shard => Space::ShardChannels,
        };
        let is_matched = |place: &&Place| place.0 == space && glob::matches(&name.bytes, &place.1);
        let places: Vec<Place> = match name.kind {
            Kind::Pattern => {
                let places = matching.copies.by_place.keys();
                places.filter(is_matched).cloned().collect()
            }
            Kind::Channel | Kind::Shard => {
                let place = (space, name.bytes.to_vec());
                matching.copies.by_place.contains_key(&place).then_some(place).into_iter().collect()
            }
        };
        for place in places {
            let all = matching.of(place.0, &place.1);
            for payload in matching.copies.hand_over(&place, &all) {
                self.deliver(place.clone(), payload);
            }
        }
    }

    /// The copies stay locked, so that messages stay in order.
    fn deliver(&self, (space, channel): Place, payload: Bytes) {
        self.inbox.push(Incoming { space, channel: channel.into(), payload });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each step: the number of a payload, the subscription that receives it, all subscriptions
    /// that receive a copy, and whether it is delivered.
    fn check(copies: &mut Copies, steps: &[(u8, ConnectionId, &[ConnectionId], bool)]) {
        for (number, by, all, expected) in steps {
            let payload = Bytes::from(vec![*number]);
            let identity = Identity::Alike(u64::from(*number), 1);
            let delivered = copies.take(&place(), identity, *by, all, payload.clone());
            assert_eq!(delivered, expected.then_some(payload), "{number} by {by}");
        }
    }

    fn place() -> Place {
        (Space::Channels, b"c".to_vec())
    }

    #[test]
    fn the_copy_of_the_oldest_counts() {
        let mut copies = Copies::default();
        let both = &[10, 20][..];
        check(
            &mut copies,
            &[
                (1, 10, both, true),
                (1, 20, both, false),
                // An early copy waits, so that it does not overtake earlier messages.
                (3, 20, both, false),
                (2, 10, both, true),
                (3, 10, both, true),
                (2, 20, both, false),
                // Equal payloads are as many messages as arrived.
                (4, 10, both, true),
                (4, 10, both, true),
                (4, 20, both, false),
                (4, 20, both, false),
            ],
        );
        assert!(copies.by_place.is_empty());
        assert_eq!(copies.held_bytes, 0);
    }

    #[test]
    fn the_next_has_what_the_oldest_owed() {
        let mut copies = Copies::default();
        let both = &[10, 20][..];
        check(&mut copies, &[(1, 10, both, true), (2, 20, both, false), (3, 20, both, false)]);
        assert_eq!(copies.hand_over(&place(), &[20]), [vec![2], vec![3]]);
        // The first was delivered already; its other copy may arrive at any time.
        check(&mut copies, &[(1, 20, &[20], false), (4, 20, &[20], true)]);
        assert!(copies.by_place.is_empty());
        assert_eq!(copies.held_bytes, 0);
    }

    #[test]
    fn copies_that_never_come_are_forgotten() {
        let mut copies = Copies::default();
        let both = &[10, 20][..];
        check(&mut copies, &[(1, 10, both, true), (2, 20, both, false)]);
        let later = Instant::now() + COPY_TIME + Duration::from_secs(1);
        assert_eq!(copies.forget(later), [(place(), Bytes::from_static(&[2]))]);
        assert!(copies.by_place.is_empty() && copies.order.is_empty());
        check(&mut copies, &[(1, 20, &[20], true)]);
    }
}
