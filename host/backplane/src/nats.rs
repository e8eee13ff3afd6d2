//! NATS: core 2.2 or later, or JetStream 2.9 or later for histories and keys (`store`).
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
//! together (`copies`).

mod anchors;
mod copies;
mod fetch;
mod reader;
mod reading;
mod store;
mod streams;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_nats::{
    Auth, AuthError, Client, ConnectOptions, Event, HeaderMap, ServerError, Subscriber,
};
use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::{debug, warn};

use super::ask::MessageSender;
use super::ask::To;
use super::interest::Name;
use super::outgoing::Outgoing;
use super::refusals::Refusals;
use super::shared::SharedSubscriptions;
use super::{Backplane, BackplaneStats, LinkError, subjects};
use reader::{Reader, read};
pub use store::NatsStore;
pub(crate) use streams::Seen;
use streams::Streams;
use switchyard_config::{BackplaneKind, ClusterConfig};
use switchyard_hub::Hub;
use switchyard_telemetry::stats::count;
use switchyard_types::command::{Kind, Space};

/// The longest subject: a line of the protocol has at most 4096 bytes by default, and the server
/// closes a connection that sends a longer one.
const SUBJECT_BYTES_MAX: usize = 3_500;
/// The header with the publishing node and the number of the publication.
const HEADER: &str = "Switchyard";
/// The size of the header, which reduces the largest message.
const HEADER_BYTES: usize = 80;

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
    store: Arc<NatsStore>,
    /// Messages were dropped because they were not read in time.
    has_dropped: Arc<AtomicBool>,
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
    pub async fn connect(backplane: &Backplane, hub: &Hub) -> Result<NatsLink, LinkError> {
        let config = &backplane.config_now();
        let BackplaneKind::Nats { hosts, is_tls } = &config.kind else {
            return Err(LinkError::Failed("the config names no NATS".to_owned()));
        };
        let scheme = if *is_tls { "tls" } else { "nats" };
        let addresses: Vec<String> =
            hosts.iter().map(|(host, port)| format!("{scheme}://{host}:{port}")).collect();
        let (breaking, broken) = watch::channel(None);
        let is_connected = Arc::new(AtomicBool::new(false));
        let has_dropped = Arc::new(AtomicBool::new(false));
        let rules = hub.history().history_rules();
        let connect = || {
            let violations = Violations {
                prefix: config.prefix.clone(),
                stats: backplane.stats.clone(),
                refusals: backplane.refusals.clone(),
                breaking: breaking.clone(),
                needs_jetstream: !rules.is_empty(),
                has_dropped: has_dropped.clone(),
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
        let key_time = hub.history().key_time();
        let store = NatsStore::new(
            Streams::new(
                client.clone(),
                &config.prefix,
                config.nats_replicas,
                config.answer_time,
                backplane.seen.clone(),
            ),
            &backplane.node,
            key_time,
            max_payload,
            config.nats_pending_max,
        );
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
                seen: backplane.seen.clone(),
                matching: Mutex::default(),
            }),
            subscriptions: Subscriptions { own, ..Subscriptions::default() }.into(),
            broken,
            refusals: backplane.refusals.clone(),
            prefix: config.prefix.clone(),
            node: backplane.node.clone(),
            store: Arc::new(store),
            has_dropped,
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
        if !rules.is_empty() {
            tokio::select! {
                ready = link.store.prepare(&rules) => ready?,
                problem = link.broken() => return Err(problem),
            }
        }
        Ok(link)
    }

    /// What keeps histories and keys.
    pub fn store(&self) -> Arc<NatsStore> {
        self.store.clone()
    }

    /// Whether messages were dropped since the last call, because they were not read in time.
    pub fn has_dropped(&self) -> bool {
        self.has_dropped.swap(false, Ordering::Relaxed)
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
        // Answers of JetStream need no further right.
        .custom_inbox_prefix(own_subject(&config.prefix, "inbox"))
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
                    violations.has_dropped.store(true, Ordering::Relaxed);
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
    /// Whether there are histories. Without JetStream, publications with a key are refused, and
    /// nothing else is.
    needs_jetstream: bool,
    has_dropped: Arc<AtomicBool>,
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
        if subject.starts_with("$JS.API.") {
            if self.needs_jetstream {
                let right = "publish on $JS.API.>".to_owned();
                self.breaks(LinkError::NoRight { right, said: said.to_owned() });
            }
            return;
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
