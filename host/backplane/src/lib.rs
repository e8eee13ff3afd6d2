//! The connection between the nodes of a cluster, over Redis or NATS.
//!
//! The hub reports what it subscribes to ([`Interest`]) and what was published here. The backplane
//! passes it what other nodes published. A message is first delivered to this node's connections
//! and then sent to the backplane; when it comes back, it is recognized as this node's own and
//! dropped.
//!
//! A [`Link`] is one connection to Redis or NATS. When it fails, a new link is made and subscribes
//! to all names again. This crate does not know sessions or engines, and none of it runs without a
//! backplane. Read this file first, then `interest`, `inbox`, and one of `redis` and `nats`.

mod append;
mod ask;
mod catch_up;
mod inbox;
mod interest;
mod nats;
mod node_number;
mod outgoing;
mod records;
mod redis;
mod refusals;
mod room_members;
mod rooms;
mod shared;
mod stats;
mod store;
pub mod subjects;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use switchyard_config::limits::LiveLimits;
use switchyard_config::{BackplaneKind, ClusterConfig, ClusterTls, Secret, WhenDisconnected};
use switchyard_hub::Hub;
use switchyard_middleware::Middleware;
use switchyard_telemetry::stats::count;
use switchyard_telemetry::supervise::{Ended, Supervisor};
use switchyard_types::command::{Kind, Publication, Refusal, Space, TOOLARGE, UNAVAILABLE};

pub use append::{Append, Ruled};
pub use ask::{Answer, NodeAnswer, Question, Text, answer};
use inbox::Inbox;
pub use interest::{Hold, Interest, Name};
use outgoing::{Outgoing, Queue};
use refusals::Refusals;
pub use stats::BackplaneStats;
use store::Store;

/// Names with this prefix are reserved for the nodes: they stay on the node that uses them.
const RESERVED: &[u8] = b"__switchyard:";

/// How many publications are sent together.
const BATCH_MAX: usize = 512;
/// How many bytes of payload are sent together, unless one publication has more.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// The connection to the backplane, while there is one, and the state around it.
pub struct Backplane {
    config: ClusterConfig,
    /// The password and the certificates for the next connection.
    secrets: RwLock<(Option<Secret>, ClusterTls)>,
    /// The name of this node in the cluster, at random, for as long as it runs.
    node: String,
    interest: Arc<Interest>,
    outgoing: Queue,
    inbox: Arc<Inbox>,
    asks: ask::Asks,
    state: watch::Sender<State>,
    /// The largest payload that the backplane accepts, in bytes. NATS reports it on connect.
    payload_bytes_max: AtomicUsize,
    /// Whether shard channels come back: the backplane is a Redis Cluster.
    is_sharded: AtomicBool,
    refusals: Arc<Refusals>,
    stats: Arc<BackplaneStats>,
    /// What keeps histories and keys; none: the backplane is disconnected.
    store: RwLock<Option<Store>>,
    /// Rises when updates of rooms may not have reached the other nodes.
    incarnation: AtomicU64,
    /// Whether the other nodes have answered since the link was made.
    knows_nodes: watch::Sender<bool>,
    /// The last messages of JetStream streams that arrived here.
    seen: Arc<nats::Seen>,
    /// What a node with histories needs and the backplane does not have.
    unfit: watch::Sender<Option<String>>,
}

/// The state of the connection to the backplane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There is no connection.
    Disconnected,
    /// There is a connection, and its subscriptions are being restored.
    Restoring,
    /// All subscriptions are in place.
    Ready,
}

impl State {
    /// As metrics and the admin API name it.
    pub fn label(self) -> &'static str {
        match self {
            State::Disconnected => "away",
            State::Restoring => "restoring",
            State::Ready => "ready",
        }
    }
}

/// Where a publication goes, besides its delivery on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// To the backplane, if the queue has room.
    Forward,
    /// To the backplane, and it is delivered on this node when it comes back.
    Return,
    /// Nowhere: it stays on this node.
    Stay,
}

/// A connection to the backplane failed or could not be made.
#[derive(Debug, Clone, Error)]
pub enum LinkError {
    /// The error of the client crate; it never contains credentials.
    #[error("{0}")]
    Failed(String),
    /// Only this was refused; the link is usable.
    #[error("{0}")]
    Refused(String),
    /// No response arrived in time.
    #[error("no answer within {} ms", .0.as_millis())]
    NoAnswer(Duration),
    /// The user of the backplane may not do what every node must.
    #[error("the user of the backplane lacks the right to {right}: {said}")]
    NoRight {
        /// The missing right.
        right: String,
        /// The message of the backplane.
        said: String,
    },
    /// The account or the server of NATS has no JetStream.
    #[error("NATS has no JetStream for this account, which histories and keys need: {0}")]
    NoJetStream(String),
    /// The backplane does not take such a publication.
    #[error("{0}")]
    TooLarge(String),
}

impl LinkError {
    /// The missing right; none: the cause is another one.
    fn missing_right(&self) -> Option<&str> {
        match self {
            LinkError::NoRight { right, .. } => Some(right),
            LinkError::NoJetStream(_) => Some("use JetStream"),
            LinkError::Failed(_)
            | LinkError::Refused(_)
            | LinkError::NoAnswer(_)
            | LinkError::TooLarge(_) => None,
        }
    }
}

/// One connection to the backplane. It passes received messages to the inbox.
enum Link {
    Redis(Box<redis::RedisLink>),
    Nats(Box<nats::NatsLink>),
}

impl Link {
    async fn connect(backplane: &Backplane, hub: &Arc<Hub>) -> Result<Link, LinkError> {
        Ok(match backplane.config.kind {
            BackplaneKind::Redis { .. } => {
                Link::Redis(Box::new(redis::RedisLink::connect(backplane, hub).await?))
            }
            BackplaneKind::Nats { .. } => {
                Link::Nats(Box::new(nats::NatsLink::connect(backplane, hub).await?))
            }
        })
    }

    fn store(&self) -> Option<Store> {
        match self {
            Link::Redis(link) => Some(Store::Redis(link.store())),
            Link::Nats(link) => Some(Store::Nats(link.store())),
        }
    }

    /// Sends publications in order; completes when the backplane has them. Returns how many it
    /// rejected.
    async fn publish(&self, batch: &[Outgoing]) -> Result<usize, LinkError> {
        match self {
            Link::Redis(link) => link.publish(batch).await,
            Link::Nats(link) => link.publish(batch).await,
        }
    }

    /// Subscribes to names; completes when no message on them can be missed.
    async fn listen(&self, names: &[Name]) -> Result<(), LinkError> {
        match self {
            Link::Redis(link) => link.listen(names).await,
            Link::Nats(link) => link.listen(names).await,
        }
    }

    async fn stop_listening(&self, names: &[Name]) -> Result<(), LinkError> {
        match self {
            Link::Redis(link) => link.stop_listening(names).await,
            Link::Nats(link) => link.stop_listening(names).await,
        }
    }

    /// Completes when the backplane has responded.
    async fn ping(&self) -> Result<(), LinkError> {
        match self {
            Link::Redis(link) => link.ping().await,
            Link::Nats(link) => link.ping().await,
        }
    }

    /// Sends a message to other nodes. Returns how many received it, where that is known.
    async fn send_to(&self, to: ask::To<'_>, message: Vec<u8>) -> Result<Option<usize>, LinkError> {
        match self {
            Link::Redis(link) => link.send_to(to, message).await,
            Link::Nats(link) => link.send_to(to, message).await,
        }
    }

    /// Whether messages were dropped since the last call, because they were not read in time.
    fn has_dropped(&self) -> bool {
        match self {
            // It closes the connection.
            Link::Redis(_) => false,
            Link::Nats(link) => link.has_dropped(),
        }
    }

    /// Waits until the connection fails, and returns why.
    async fn broken(&self) -> LinkError {
        match self {
            Link::Redis(link) => link.broken().await,
            Link::Nats(link) => link.broken().await,
        }
    }
}

impl Backplane {
    /// A disconnected backplane; `run` connects it.
    pub fn new(config: ClusterConfig, limits: Arc<LiveLimits>) -> Arc<Backplane> {
        let stats = Arc::new(BackplaneStats::default());
        Arc::new(Backplane {
            node: format!("{:016x}", random()),
            interest: Interest::new(config.leave_delay),
            outgoing: Queue::new(config.outgoing_messages_max, config.outgoing_bytes_max),
            inbox: Inbox::new(config.incoming_bytes_max, limits, stats.clone()),
            asks: ask::Asks::default(),
            state: watch::Sender::new(State::Disconnected),
            payload_bytes_max: AtomicUsize::new(match config.kind {
                // `proto-max-bulk-len`
                BackplaneKind::Redis { .. } => 512 << 20,
                BackplaneKind::Nats { .. } => 1 << 20,
            }),
            is_sharded: false.into(),
            refusals: Arc::default(),
            stats,
            store: RwLock::default(),
            incarnation: AtomicU64::new(0),
            knows_nodes: watch::Sender::new(false),
            seen: Arc::default(),
            unfit: watch::Sender::new(None),
            secrets: RwLock::new((config.password.clone(), config.tls.clone())),
            config,
        })
    }

    /// Uses another password and other certificates from the next connection on. Returns whether
    /// they are different; they are ignored if they are for another user or another backplane.
    pub fn set_secrets(&self, config: &ClusterConfig) -> bool {
        if (&config.user, &config.kind) != (&self.config.user, &self.config.kind) {
            return false;
        }
        let new = (config.password.clone(), config.tls.clone());
        let mut secrets = self.secrets.write();
        std::mem::replace(&mut *secrets, new.clone()) != new
    }

    /// The configuration for a new connection.
    fn config_now(&self) -> ClusterConfig {
        let (password, tls) = self.secrets.read().clone();
        ClusterConfig { password, tls, ..self.config.clone() }
    }

    /// What this node subscribes to.
    pub fn interest(&self) -> &Arc<Interest> {
        &self.interest
    }

    /// For tests of what is published while there is no backplane.
    #[doc(hidden)]
    pub fn pretend_to_be_ready(&self) {
        self.state.send_replace(State::Ready);
    }

    /// The state of this node's connection to the backplane.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// The name of this node in the cluster.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The counters.
    pub fn stats(&self) -> &BackplaneStats {
        &self.stats
    }

    /// The required right that the user of the backplane lacks; none: no right is missing.
    pub fn missing_right(&self) -> Option<String> {
        self.refusals.missing_right()
    }

    /// Whether publications are refused while the backplane is disconnected.
    pub fn refuses_while_disconnected(&self) -> bool {
        self.config.when_disconnected == WhenDisconnected::Refuse
    }

    /// What is wrong while the backplane is connected; none: nothing.
    pub fn problem(&self) -> Option<String> {
        self.refusals.problem()
    }

    /// How many publications wait to be sent.
    pub fn waiting(&self) -> usize {
        self.outgoing.waiting()
    }

    /// Waits until the backplane has subscribed to the held names, for at most the time that the
    /// acknowledgement of a SUBSCRIBE may be delayed.
    pub fn joined(
        self: Arc<Backplane>,
        hold: Arc<Hold>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            if !hold.settled(self.config.join_time).await {
                count(&self.stats.late_joins);
            }
        })
    }

    /// Decides where a publication goes. `Forward` and `Return` reserve room for it, until it is
    /// forwarded or withdrawn.
    ///
    /// # Errors
    ///
    /// The backplane is disconnected or its queue is full, and the config says to refuse
    /// publications then; or the backplane never accepts such a publication.
    pub fn admit(&self, publication: &Publication<'_>) -> Result<Admission, Refusal> {
        if is_reserved(&publication.channel) {
            return Ok(Admission::Stay);
        }
        let bytes_max = self.payload_bytes_max.load(Ordering::Relaxed);
        let bytes = publication.payload.len();
        if bytes > bytes_max {
            let why = format!("a payload of {bytes} bytes; the backplane takes {bytes_max}");
            return Err(Refusal::new(TOOLARGE, why));
        }
        if let BackplaneKind::Nats { .. } = self.config.kind
            && !nats::takes(&self.config.prefix, publication.space, &publication.channel)
        {
            return Err(Refusal::new(TOOLARGE, "the name is too long for a subject of NATS"));
        }
        let counter = if self.state() == State::Disconnected {
            &self.stats.unsent_away
        } else if self.refusals.refuses(publication.space, &publication.channel) {
            &self.stats.unsent_refused
        } else if !self.outgoing.reserve(publication) {
            &self.stats.unsent_full
        } else if publication.space == Space::ShardChannels
            && self.is_sharded.load(Ordering::Relaxed)
        {
            return Ok(Admission::Return);
        } else {
            return Ok(Admission::Forward);
        };
        match self.config.when_disconnected {
            WhenDisconnected::Accept => {
                count(counter);
                Ok(Admission::Stay)
            }
            WhenDisconnected::Refuse => {
                count(&self.stats.refused);
                Err(Refusal::new(
                    UNAVAILABLE,
                    "the backplane is away, too slow, or refuses this; try again",
                ))
            }
        }
    }

    /// Sends a publication for which there is room.
    pub fn forward(&self, publication: Publication<'_>) {
        self.outgoing.push(publication);
    }

    /// Releases the room of a publication that is not forwarded.
    pub fn withdraw(&self, publication: &Publication<'_>) {
        self.give_up_room(1, publication.bytes());
    }

    /// Releases the room of this many publications with this many bytes.
    pub fn give_up_room(&self, publications: usize, bytes: usize) {
        self.outgoing.withdraw(publications, bytes);
    }

    /// Connects to the backplane, and reconnects when the link fails, forever.
    pub async fn run(
        self: Arc<Backplane>,
        hub: Arc<Hub>,
        middleware: Arc<Middleware>,
        supervisor: Arc<Supervisor>,
    ) -> Ended {
        // After a panic there is no link, but the state still says otherwise.
        self.disconnected(&hub);
        let mut tasks = JoinSet::new();
        let (inbox, receivers) = (self.inbox.clone(), (hub.clone(), middleware.clone()));
        tasks.spawn(supervisor.keep("backplane-inbox", move || {
            let (hub, middleware) = receivers.clone();
            inbox.clone().deliver(hub, middleware)
        }));
        let mut wait = self.config.reconnect_wait;
        let mut disconnected_since: Option<Instant> = None;
        loop {
            self.inbox.deliver_to(&hub, &middleware);
            self.refusals.begin();
            let problem = match within(self.config.connect_time, Link::connect(&self, &hub)).await {
                Ok(link) => {
                    let on = On { link: &link, hub: &hub, middleware: &middleware };
                    self.serve(on, &mut wait, &mut disconnected_since).await
                }
                Err(problem) => problem,
            };
            self.disconnected(&hub);
            if let LinkError::NoJetStream(_) = problem {
                self.unfit.send_replace(Some(problem.to_string()));
            }
            let missing = problem.missing_right();
            let is_news = missing.is_some() && missing != self.missing_right().as_deref();
            self.refusals.set_missing_right(missing);
            if is_news {
                disconnected_since.get_or_insert_with(Instant::now);
                match problem {
                    LinkError::NoJetStream(_) => error!(%problem, "the backplane is disconnected"),
                    _ => error!(%problem, "the backplane is disconnected: its user lacks a right"),
                }
            } else if disconnected_since.is_none() {
                disconnected_since = Some(Instant::now());
                warn!(%problem, "the backplane is disconnected");
            } else {
                debug!(%problem, "the backplane is still disconnected");
            }
            // So that nodes do not reconnect all at once: wait between half of the time and all of
            // it.
            let spread = wait.as_millis() as u64 / 2;
            tokio::time::sleep(wait - Duration::from_millis(random() % (spread + 1))).await;
            wait = (wait * 2).min(self.config.reconnect_wait_max);
        }
    }

    /// There is no link now.
    fn disconnected(&self, hub: &Hub) {
        self.state.send_replace(State::Disconnected);
        *self.store.write() = None;
        self.knows_nodes.send_replace(false);
        hub.history().lose_link();
        self.interest.disconnected();
    }

    /// Uses a link until it fails; returns why it did.
    async fn serve(
        &self,
        on: On<'_>,
        wait: &mut Duration,
        disconnected_since: &mut Option<Instant>,
    ) -> LinkError {
        let began = Instant::now();
        let On { link, hub, .. } = on;
        let round = self.interest.connected();
        self.incarnation.fetch_add(1, Ordering::Relaxed);
        *self.store.write() = link.store();
        self.state.send_replace(State::Restoring);
        let restoring = async {
            let names = self.interest.count();
            self.interest.wait_for(round).await;
            hub.history().doubt_all();
            self.refusals.set_missing_right(None);
            self.state.send_replace(State::Ready);
            *wait = self.config.reconnect_wait;
            let restore_ms = began.elapsed().as_millis() as u64;
            if let Some(since) = disconnected_since.take() {
                count(&self.stats.reconnects);
                let away_ms = since.elapsed().as_millis() as u64;
                let uncertain = self.stats.uncertain.load(Ordering::Relaxed);
                let unsent = self.stats.unsent();
                info!(names, restore_ms, away_ms, unsent, uncertain, "the backplane is back");
            } else {
                info!(names, restore_ms, node = self.node, "connected to the backplane");
            }
            self.claim_node_number(hub).await;
            hub.presence().relinked();
            self.knows_nodes.send_replace(true);
            std::future::pending().await
        };
        tokio::select! {
            problem = link.broken() => problem,
            problem = self.send(link) => problem,
            problem = self.follow_interest(on) => problem,
            problem = self.catch_up(on) => problem,
            problem = self.keep_streams(hub) => problem,
            problem = self.watch_over(link, hub) => problem,
            problem = self.converse(link, hub) => problem,
            never = self.ask_for_members(hub) => never,
            problem = self.keep_alive(link, hub) => problem,
            never = restoring => never,
        }
    }

    /// Sends the queued publications.
    async fn send(&self, link: &Link) -> LinkError {
        loop {
            let batch = self.outgoing.take(BATCH_MAX, BATCH_BYTES_MAX).await;
            // Counts them whatever ends this, also when another task finds the link broken.
            let mut under_way = UnderWay { stats: &self.stats, publications: batch.len() };
            match within(self.config.answer_time, link.publish(&batch)).await {
                Ok(refused) => {
                    under_way.publications = 0;
                    let sent = batch.len().saturating_sub(refused) as u64;
                    self.stats.sent.fetch_add(sent, Ordering::Relaxed);
                    self.stats.unsent_refused.fetch_add(refused as u64, Ordering::Relaxed);
                }
                Err(problem) => return problem,
            }
        }
    }

    /// Subscribes to what this node's connections subscribe to.
    async fn follow_interest(&self, on: On<'_>) -> LinkError {
        let On { link, hub, .. } = on;
        let mut retried = Instant::now();
        let mut is_first = true;
        loop {
            let next = tokio::time::timeout(RETRY_TIME, self.interest.next_round()).await;
            if retried.elapsed() >= RETRY_TIME {
                retried = Instant::now();
                if let Err(problem) = self.listen_to_refused_names(link).await {
                    return problem;
                }
            }
            let Ok(round) = next else { continue };
            let [joins, leaves] = [round.joins, round.leaves].map(|mut names| {
                let is_of_room = |name: &Name| name.bytes.starts_with(rooms::ROOMS);
                names.retain(|name| !is_reserved(&name.bytes) || is_of_room(name));
                names
            });
            let (joined, left) = (joins.len() as u64, leaves.len() as u64);
            let subscribed = async {
                // In pieces, so that each is confirmed in time.
                for names in leaves.chunks(NAMES_MAX) {
                    within(self.config.answer_time, link.stop_listening(names)).await?;
                    hub.history().forget(channels(names));
                }
                for names in joins.chunks(NAMES_MAX) {
                    within(self.config.answer_time, link.listen(names)).await?;
                    self.look_at_heads(hub, names, is_first).await?;
                }
                Ok(())
            };
            if let Err(problem) = subscribed.await {
                return problem;
            }
            is_first = false;
            self.interest.settled(round.number);
            self.stats.joined.fetch_add(joined, Ordering::Relaxed);
            self.stats.left.fetch_add(left, Ordering::Relaxed);
        }
    }

    /// Retries the subscriptions that the backplane refused.
    async fn listen_to_refused_names(&self, link: &Link) -> Result<(), LinkError> {
        for names in self.refusals.take_names().chunks(NAMES_MAX) {
            within(self.config.answer_time, link.stop_listening(names)).await?;
            within(self.config.answer_time, link.listen(names)).await?;
        }
        Ok(())
    }

    /// Checks that the link is alive and has the rights that it needs.
    async fn watch_over(&self, link: &Link, hub: &Hub) -> LinkError {
        loop {
            tokio::time::sleep(self.config.ping_interval).await;
            if let Err(problem) = within(self.config.answer_time, link.ping()).await {
                return problem;
            }
            if link.has_dropped() {
                // On which channels is not known.
                hub.history().lose_link();
                hub.history().doubt_all();
            }
        }
    }

    /// Waits until all that was published here has been sent, the time is over, or the backplane is
    /// disconnected.
    pub async fn drain(&self, limit: Duration) {
        let limit = if self.state() == State::Disconnected { Duration::ZERO } else { limit };
        if tokio::time::timeout(limit, self.outgoing.empty()).await.is_err() {
            let waiting = self.outgoing.waiting();
            self.stats.uncertain.fetch_add(waiting as u64, Ordering::Relaxed);
            warn!(waiting, "publications were not sent to the backplane in time");
        }
    }

    /// Waits until the backplane is ready, or the time is over.
    ///
    /// # Errors
    ///
    /// The backplane cannot keep histories, and this node has some.
    pub async fn ready(&self, limit: Duration) -> Result<(), String> {
        let (mut state, mut unfit) = (self.state.subscribe(), self.unfit.subscribe());
        tokio::select! {
            _ = state.wait_for(|state| *state == State::Ready) => Ok(()),
            unfit = unfit.wait_for(Option::is_some) => {
                unfit.ok().and_then(|unfit| unfit.clone()).map_or(Ok(()), Err)
            }
            () = tokio::time::sleep(limit) => Ok(()),
        }
    }
}

/// What the tasks of a link use.
#[derive(Clone, Copy)]
struct On<'a> {
    link: &'a Link,
    hub: &'a Arc<Hub>,
    middleware: &'a Arc<Middleware>,
}

/// The channels among names.
fn channels(names: &[Name]) -> impl Iterator<Item = &[u8]> {
    names.iter().filter(|name| name.kind == Kind::Channel).map(|name| &*name.bytes)
}

/// Publications that may or may not have reached the backplane. They are not sent again,
/// because delivery is at most once.
struct UnderWay<'a> {
    stats: &'a BackplaneStats,
    publications: usize,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.stats.uncertain.fetch_add(self.publications as u64, Ordering::Relaxed);
    }
}

/// How often refused subscriptions are retried.
const RETRY_TIME: Duration = Duration::from_secs(10);

/// How many names the backplane is sent at once.
const NAMES_MAX: usize = 1_000;

/// Whether a name is reserved for the nodes.
fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(RESERVED)
}

async fn within<T>(
    limit: Duration,
    future: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    tokio::time::timeout(limit, future).await.unwrap_or(Err(LinkError::NoAnswer(limit)))
}

/// An unpredictable number, from the seed of a hash map.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
