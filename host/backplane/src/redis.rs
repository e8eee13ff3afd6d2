//! Redis and Valkey, version 7.0 or later: one server, the master that Sentinel reports, or one
//! node of a cluster, whose bus forwards PUBLISH to all others.
//!
//! Two connections: one publishes, one subscribes. Redis does not report to a subscriber which
//! client published a message. So this node publishes in a transaction, between two marks on
//! a shard channel of its own: a message between the marks is its own and was delivered here
//! already. A transaction is atomic, so this is exact, also when a connection was lost and
//! Redis executes its last commands late. Pattern subscriptions do not match shard channels,
//! so no other client receives the marks.
//!
//! A message arrives once for its channel and once for each pattern. The hub needs it once. The
//! copies of one publication are adjacent, which distinguishes them from those of the next.
//!
//! Shard channels of a Redis Cluster are published to the node that has their slot, over a
//! connection to the whole cluster that the crate maintains. There are no marks there: own messages
//! are delivered when they come back.

mod reader;
mod store;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redis::aio::MultiplexedConnection;
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{Sentinel, SentinelNodeConnectionInfo};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo,
    IntoConnectionInfo, Pipeline, ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError,
    TlsCertificates, TlsMode, Value, cmd,
};
use tokio::sync::watch;

use super::ask::To;
use super::interest::Name;
use super::outgoing::Outgoing;
use super::refusals::Refusals;
use super::{Backplane, BackplaneStats, LinkError, RESERVED, random};
use reader::Reader;
pub use store::RedisStore;
use switchyard_config::{BackplaneKind, ClusterConfig};
use switchyard_hub::Hub;
use switchyard_telemetry::panics;
use switchyard_telemetry::stats::count;
use switchyard_types::command::{Kind, Space};
use switchyard_types::position::Position;

/// The first version with shard channels.
const VERSION_MIN: u64 = 7;
/// How many names are tried to find one in a slot of this cluster node: far more than a cluster has
/// nodes.
const MARK_ATTEMPTS: usize = 4_096;

const BEGIN: &[u8] = b"begin";
const END: &[u8] = b"end";

/// The prefix of the messages that a node publishes to itself to check that publications come back.
const PROBE: &str = "probe:";

impl From<RedisError> for LinkError {
    fn from(error: RedisError) -> LinkError {
        let said = error.to_string();
        if !is_missing_right(&error) {
            return LinkError::Failed(said);
        }
        // `… has no permissions to run the 'publish' command`
        let command = said.split_once("run the '").and_then(|(_, rest)| rest.split('\'').next());
        let right = match command {
            Some(command) => format!("run {}", command.to_ascii_uppercase()),
            None => "use the channels of the nodes".to_owned(),
        };
        LinkError::NoRight { right, said }
    }
}

/// EXEC reports it in the text of EXECABORT.
fn is_missing_right(error: &RedisError) -> bool {
    error.code() == Some("NOPERM") || error.to_string().contains(": NOPERM ")
}

/// Whether the user may run the command, but not for this name.
fn is_refused_name(error: &RedisError) -> bool {
    is_missing_right(error) && !error.to_string().contains("run the '")
}

/// The channel on which the positions of the messages of a channel are published, before each of
/// them.
fn positions(prefix: &[u8], channel: &[u8]) -> Vec<u8> {
    [prefix, RESERVED, POSITIONS, channel].concat()
}

/// What the channels of positions begin with, behind `RESERVED`.
const POSITIONS: &[u8] = b"positions:";

/// A pair of connections to one Redis.
pub struct RedisLink {
    hub: Arc<Hub>,
    store: RedisStore,
    publisher: MultiplexedConnection,
    listener: MultiplexedConnection,
    /// Shard channels of a cluster.
    sharded: Option<ClusterConnection>,
    mark: Vec<u8>,
    prefix: Vec<u8>,
    /// The channel that only this node subscribes to.
    own: Vec<u8>,
    /// The last number that the node published to itself, and the last one that came back.
    last_sent: AtomicU64,
    last_received: watch::Receiver<u64>,
    broken: watch::Receiver<bool>,
    refusals: Arc<Refusals>,
    stats: Arc<BackplaneStats>,
}

impl RedisLink {
    pub async fn connect(backplane: &Backplane, hub: &Arc<Hub>) -> Result<RedisLink, LinkError> {
        let config = &backplane.config_now();
        let BackplaneKind::Redis { hosts, is_tls, sentinel } = &config.kind else {
            return Err(LinkError::Failed("the config names no Redis".to_owned()));
        };
        if let Some(master) = sentinel {
            let master = found_by_sentinel(config, master).await?;
            return RedisLink::connect_to(backplane, hub, master).await;
        }
        // Nodes of a cluster are equal: nodes here spread over them.
        let start = random() as usize % hosts.len().max(1);
        let mut problem = LinkError::Failed("the config names no host".to_owned());
        for (host, port) in hosts.iter().cycle().skip(start).take(hosts.len()) {
            match RedisLink::connect_to(backplane, hub, address(host, *port, *is_tls)?).await {
                Ok(link) => return Ok(link),
                Err(failure) => problem = failure,
            }
        }
        Err(problem)
    }

    async fn connect_to(
        backplane: &Backplane,
        hub: &Arc<Hub>,
        address: ConnectionInfo,
    ) -> Result<RedisLink, LinkError> {
        let config = &backplane.config_now();
        let client = client(config, address)?;
        let timeouts = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(config.connect_time))
            // Callers that wait for a response set the timeout.
            .set_response_timeout(None);
        let mut publisher = client.get_multiplexed_async_connection_with_config(&timeouts).await?;
        let Server { run_id, is_cluster } = check_server(&mut publisher, config).await?;

        let prefix = config.prefix.clone().into_bytes();
        let (breaking, broken) = watch::channel(false);
        let (received_sender, last_received) = watch::channel(0);
        let own = [&*prefix, RESERVED, b"node:", backplane.node.as_bytes()].concat();
        let reader = || {
            Arc::new(Reader {
                inbox: backplane.inbox.clone(),
                stats: backplane.stats.clone(),
                prefix: prefix.clone(),
                message_sender: backplane.asks.message_sender(),
                own: own.clone(),
                received_sender: received_sender.clone(),
                state: Default::default(),
                breaking: breaking.clone(),
            })
        };
        let read = |reader: Arc<Reader>| {
            move |push: PushInfo| {
                // The record of copies may be inconsistent now: a new link starts without it.
                if panics::contain(|| reader.take(push)).is_none() {
                    reader.breaking.send_replace(true);
                }
                Ok::<(), ()>(())
            }
        };
        let listening_reader = reader();
        let listening = timeouts.clone().set_push_sender(read(listening_reader.clone()));
        let mut listener = client.get_multiplexed_async_connection_with_config(&listening).await?;

        // First of all, so that no own message arrives without a mark.
        let mark = listen_to_mark(&mut listener, &own, is_cluster).await?;
        listening_reader.state.lock().mark.clone_from(&mark);
        let all = [&*prefix, RESERVED, b"all"].concat();
        listener.subscribe(&[own.clone(), all][..]).await?;
        check_rights_to_listen(&mut listener, &prefix, &own, is_cluster, &backplane.refusals)
            .await?;

        let sharded = match is_cluster {
            true => Some(connect_sharded(config, read(reader())).await?),
            false => None,
        };
        backplane.is_sharded.store(is_cluster, Ordering::Relaxed);
        let store = match &sharded {
            Some(sharded) => RedisStore::cluster(sharded.clone(), &prefix),
            None => {
                let connection = client.get_multiplexed_async_connection_with_config(&timeouts);
                RedisStore::single(connection.await?, &prefix, run_id)
            }
        };
        if hub.history().is_on() {
            store.probe().await?;
        }
        let link = RedisLink {
            hub: hub.clone(),
            store,
            publisher,
            listener,
            sharded,
            mark,
            prefix,
            own,
            last_sent: AtomicU64::new(0),
            last_received,
            broken,
            refusals: backplane.refusals.clone(),
            stats: backplane.stats.clone(),
        };
        link.probe().await?;
        Ok(link)
    }

    /// The histories and keys over this link.
    pub fn store(&self) -> RedisStore {
        self.store.clone()
    }

    pub async fn publish(&self, batch: &[Outgoing]) -> Result<usize, LinkError> {
        let is_elsewhere =
            |it: &&Outgoing| self.sharded.is_some() && it.space == Space::ShardChannels;
        let mut refused = 0;
        let mut here: Vec<&Outgoing> = batch.iter().filter(|it| !is_elsewhere(it)).collect();
        while !here.is_empty() {
            let messages: Vec<_> = here.iter().map(|it| self.message(it)).collect();
            let (is_carried_out, refusals) = self.publish_marked(&messages).await?;
            refused += refusals.len();
            for (index, error) in &refusals {
                if let Some(it) = here.get(*index) {
                    let said = error.to_string();
                    self.refusals.refused_publication(it.space, &it.channel, &said);
                }
            }
            if is_carried_out {
                break;
            }
            // A message that is not allowed aborts the transaction: the others are sent again.
            let mut index = 0;
            here.retain(|_| {
                index += 1;
                refusals.iter().all(|(refused, _)| *refused != index - 1)
            });
        }
        for outgoing in batch.iter().filter(is_elsewhere) {
            let Some(mut sharded) = self.sharded.clone() else { continue };
            let sent = cmd("SPUBLISH")
                .arg([&*self.prefix, &outgoing.channel].concat())
                .arg(&*outgoing.payload)
                .query_async::<i64>(&mut sharded)
                .await;
            match sent {
                Err(error) if is_refused_name(&error) => {
                    refused += 1;
                    let said = error.to_string();
                    self.refusals.refused_publication(outgoing.space, &outgoing.channel, &said);
                }
                outcome => drop(outcome?),
            }
        }
        Ok(refused)
    }

    fn message<'a>(&self, outgoing: &'a Outgoing) -> (&'static str, Vec<u8>, &'a [u8]) {
        let Outgoing { space, channel, payload } = outgoing;
        let verb = match space {
            Space::Channels => "PUBLISH",
            Space::ShardChannels => "SPUBLISH",
        };
        (verb, [&*self.prefix, channel].concat(), payload)
    }

    /// Publishes messages between two marks, in a transaction. Returns whether it was executed, and
    /// which messages the user may not publish: if it was not executed, some of those are the
    /// reason.
    ///
    /// An error means that the link has failed. This includes a refusal of a command that every
    /// node needs, and the case that it is unknown which commands were executed.
    async fn publish_marked(
        &self,
        messages: &[(&str, Vec<u8>, &[u8])],
    ) -> Result<(bool, Vec<(usize, RedisError)>), LinkError> {
        let mut pipeline = Pipeline::with_capacity(messages.len() + 4);
        // Each reply is checked, also that of MULTI: without it the others are executed one by one
        // and must not be repeated.
        pipeline.ignore_errors().cmd("MULTI");
        pipeline.cmd("SPUBLISH").arg(&self.mark).arg(BEGIN);
        for (verb, channel, payload) in messages {
            pipeline.cmd(verb).arg(channel).arg(*payload);
        }
        pipeline.cmd("SPUBLISH").arg(&self.mark).arg(END).cmd("EXEC");
        let mut publisher = self.publisher.clone();
        let answers: Vec<Result<Value, RedisError>> = pipeline.query_async(&mut publisher).await?;
        read_transaction(answers, messages.len())
    }

    /// Publishes on the path of all publications, and waits until the message comes back. This
    /// checks the rights for it.
    async fn probe(&self) -> Result<(), LinkError> {
        let number = self.last_sent.fetch_add(1, Ordering::Relaxed) + 1;
        let payload = format!("{PROBE}{number}");
        let message = ("PUBLISH", self.own.clone(), payload.as_bytes());
        let (_, refused) = self.publish_marked(&[message]).await?;
        if let Some((_, error)) = refused.into_iter().next() {
            return Err(error.into());
        }
        let mut last_received = self.last_received.clone();
        let received = last_received.wait_for(|last| *last >= number).await;
        received.map(drop).map_err(|error| LinkError::Failed(error.to_string()))
    }

    pub async fn listen(&self, names: &[Name]) -> Result<(), LinkError> {
        match self.change_subscriptions(names, Listening::Begins).await {
            // A name that is not allowed does not affect the others.
            Err(error) if is_refused_name(&error) => {
                for name in names {
                    match self
                        .change_subscriptions(std::slice::from_ref(name), Listening::Begins)
                        .await
                    {
                        Err(error) if is_refused_name(&error) => {
                            count(&self.stats.unlistenable);
                            self.refusals.refused_name(name, &error.to_string());
                        }
                        outcome => outcome?,
                    }
                }
                Ok(())
            }
            outcome => Ok(outcome?),
        }
    }

    pub async fn stop_listening(&self, names: &[Name]) -> Result<(), LinkError> {
        self.change_subscriptions(names, Listening::Ends).await?;
        names.iter().for_each(|name| self.refusals.forget_name(name));
        Ok(())
    }

    async fn change_subscriptions(
        &self,
        names: &[Name],
        listening: Listening,
    ) -> Result<(), RedisError> {
        // One command for each name, because each then has one confirmation. All of them are sent
        // together.
        let mut pipeline = Pipeline::with_capacity(names.len());
        let mut sharded = Vec::new();
        for Name { kind, bytes } in names {
            // The position of a message comes before it.
            let positions = match kind {
                Kind::Pattern if self.hub.history().is_on() => {
                    Some(positions(&escape(&self.prefix), bytes))
                }
                Kind::Channel if self.hub.history().rule(bytes).is_some() => {
                    Some(positions(&self.prefix, bytes))
                }
                _ => None,
            };
            let name = match kind {
                Kind::Pattern => [&*escape(&self.prefix), bytes].concat(),
                Kind::Channel | Kind::Shard => [&*self.prefix, bytes].concat(),
            };
            match kind {
                Kind::Shard if self.sharded.is_some() => sharded.push(name),
                _ => {
                    if let Some(positions) = positions {
                        pipeline.cmd(listening.verb(*kind)).arg(positions);
                    }
                    pipeline.cmd(listening.verb(*kind)).arg(name);
                }
            }
        }
        if !pipeline.is_empty() {
            let _: Value = pipeline.query_async(&mut self.listener.clone()).await?;
        }
        let Some(mut connection) = self.sharded.clone() else { return Ok(()) };
        for name in sharded {
            match listening {
                Listening::Begins => connection.ssubscribe(name).await?,
                Listening::Ends => connection.sunsubscribe(name).await?,
            }
        }
        Ok(())
    }

    pub async fn ping(&self) -> Result<(), LinkError> {
        match cmd("PING").query_async::<Value>(&mut self.listener.clone()).await {
            // The server responds, even if it refuses this.
            Err(error) if is_refusal(&error) => {}
            outcome => drop(outcome?),
        }
        self.probe().await
    }

    pub async fn send_to(&self, to: To<'_>, message: Vec<u8>) -> Result<Option<usize>, LinkError> {
        let channel = match to {
            To::All => [&*self.prefix, RESERVED, b"all"].concat(),
            To::Node(node) => [&*self.prefix, RESERVED, b"node:", node.as_bytes()].concat(),
        };
        let mut publisher = self.publisher.clone();
        let receivers: usize =
            cmd("PUBLISH").arg(channel).arg(message).query_async(&mut publisher).await?;
        // A cluster only counts the subscribers of one node, and patterns count, too.
        Ok(self.sharded.is_none().then_some(receivers))
    }

    pub async fn broken(&self) -> LinkError {
        let mut broken = self.broken.clone();
        let _ = broken.wait_for(|is_broken| *is_broken).await;
        LinkError::Failed("the connection was closed".to_owned())
    }
}

/// A change of a subscription.
#[derive(Debug, Clone, Copy)]
enum Listening {
    Begins,
    Ends,
}

impl Listening {
    fn verb(self, kind: Kind) -> &'static str {
        match (self, kind) {
            (Listening::Begins, Kind::Channel) => "SUBSCRIBE",
            (Listening::Begins, Kind::Pattern) => "PSUBSCRIBE",
            (Listening::Begins, Kind::Shard) => "SSUBSCRIBE",
            (Listening::Ends, Kind::Channel) => "UNSUBSCRIBE",
            (Listening::Ends, Kind::Pattern) => "PUNSUBSCRIBE",
            (Listening::Ends, Kind::Shard) => "SUNSUBSCRIBE",
        }
    }
}

/// Whether the server itself refused the command, and the connection is still usable.
fn is_refusal(error: &RedisError) -> bool {
    !error.is_unrecoverable_error() && !error.is_io_error() && error.code().is_some()
}

/// The result of a transaction: see `publish_marked`.
fn read_transaction(
    answers: Vec<Result<Value, RedisError>>,
    messages: usize,
) -> Result<(bool, Vec<(usize, RedisError)>), LinkError> {
    let count = answers.len();
    let mut answers = answers.into_iter();
    let no_answer = || LinkError::Failed("a transaction has not all its answers".to_owned());
    let multi = answers.next().ok_or_else(no_answer)?;
    let exec = answers.next_back().ok_or_else(no_answer)?;
    if count != messages + 4 {
        return Err(no_answer());
    }
    multi?;
    let refused = refused_messages(answers.map(Result::err), messages)?;
    let outcomes = match exec {
        Ok(Value::Array(outcomes)) if outcomes.len() == messages + 2 => outcomes,
        Ok(_) => return Err(no_answer()),
        // It was not executed because of those.
        Err(_) if !refused.is_empty() => return Ok((false, refused)),
        Err(error) => return Err(error.into()),
    };
    let errors = outcomes.into_iter().map(|outcome| match outcome {
        Value::ServerError(error) => Some(RedisError::from(error)),
        _ => None,
    });
    Ok((true, refused_messages(errors, messages)?))
}

/// Which messages of a transaction were refused. An error: a mark was refused, a right other than
/// that for a name is missing, or the cause is not a missing right.
fn refused_messages(
    errors: impl Iterator<Item = Option<RedisError>>,
    messages: usize,
) -> Result<Vec<(usize, RedisError)>, LinkError> {
    let mut refused = Vec::new();
    for (place, error) in errors.enumerate() {
        let Some(error) = error else { continue };
        let is_mark = place == 0 || place == messages + 1;
        if is_mark || !is_refused_name(&error) {
            return Err(error.into());
        }
        refused.push((place - 1, error));
    }
    Ok(refused)
}

/// Subscribes to names as clients do, and unsubscribes: this finds missing rights before they are
/// needed. A refusal of some patterns is only recorded: with `&prefix*`, Redis allows exactly that
/// pattern and no other.
async fn check_rights_to_listen(
    listener: &mut MultiplexedConnection,
    prefix: &[u8],
    own: &[u8],
    is_cluster: bool,
    refusals: &Refusals,
) -> Result<(), LinkError> {
    let name = [own, b":probe"].concat();
    let pattern = [&*escape(prefix), RESERVED, b"probe:?"].concat();
    let mut verbs = vec![
        ("SUBSCRIBE", &name),
        ("UNSUBSCRIBE", &name),
        ("PSUBSCRIBE", &pattern),
        ("PUNSUBSCRIBE", &pattern),
    ];
    if !is_cluster {
        verbs.extend([("SSUBSCRIBE", &name), ("SUNSUBSCRIBE", &name)]);
    }
    for (verb, name) in verbs {
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.cmd(verb).arg(name);
        match pipeline.query_async::<Value>(listener).await {
            Err(error) if verb == "PSUBSCRIBE" && is_refused_name(&error) => {
                refusals.restricted("may listen to some patterns only", &error.to_string());
            }
            outcome => drop(outcome?),
        }
    }
    Ok(())
}

/// What a server says of itself.
struct Server {
    /// Differs after each start.
    run_id: String,
    is_cluster: bool,
}

/// Checks that the version is supported.
async fn check_server(
    connection: &mut MultiplexedConnection,
    config: &ClusterConfig,
) -> Result<Server, LinkError> {
    let text: String = cmd("INFO").arg("server").query_async(connection).await?;
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("")
    };
    let version = field("redis_version");
    let major = version.split('.').next().and_then(|major| major.parse::<u64>().ok());
    if major.is_none_or(|major| major < VERSION_MIN) {
        let why = format!("it is Redis {version}, and must be {VERSION_MIN}.0 or later");
        return Err(LinkError::Failed(why));
    }
    let is_cluster = field("redis_mode") == "cluster";
    if let BackplaneKind::Redis { hosts, sentinel: None, .. } = &config.kind
        && hosts.len() > 1
        && !is_cluster
    {
        let why = "several hosts are for a Redis Cluster, and this is none".to_owned();
        return Err(LinkError::Failed(why));
    }
    Ok(Server { run_id: field("run_id").to_owned(), is_cluster })
}

/// Subscribes to a shard channel for the marks. In a cluster its slot must belong to the node.
async fn listen_to_mark(
    listener: &mut MultiplexedConnection,
    own: &[u8],
    is_cluster: bool,
) -> Result<Vec<u8>, LinkError> {
    let attempts = if is_cluster { MARK_ATTEMPTS } else { 1 };
    let mut problem = None;
    for attempt in 0..attempts {
        let mark = [own, b":", attempt.to_string().as_bytes()].concat();
        let mut listening = Pipeline::with_capacity(1);
        listening.cmd("SSUBSCRIBE").arg(&mark);
        match listening.query_async::<Value>(listener).await {
            Ok(_) => return Ok(mark),
            Err(error) if is_refusal(&error) && !is_missing_right(&error) => {
                problem = Some(error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(match problem {
        Some(problem) => problem.into(),
        None => LinkError::Failed("no slot of the cluster is the node's".to_owned()),
    })
}

async fn connect_sharded(
    config: &ClusterConfig,
    read: impl redis::aio::AsyncPushSender,
) -> Result<ClusterConnection, LinkError> {
    let BackplaneKind::Redis { hosts, is_tls, .. } = &config.kind else {
        return Err(LinkError::Failed("the config names no Redis".to_owned()));
    };
    let seeds = hosts
        .iter()
        .map(|(host, port)| address(host, *port, *is_tls))
        .collect::<Result<Vec<_>, _>>()?;
    let mut builder = redis::cluster::ClusterClient::builder(seeds)
        .use_protocol(ProtocolVersion::RESP3)
        .connection_timeout(config.connect_time)
        .response_timeout(config.answer_time)
        .push_sender(read);
    if let Some(user) = &config.user {
        builder = builder.username(user);
    }
    if let Some(password) = &config.password {
        builder = builder.password(password.expose());
    }
    if *is_tls {
        builder = builder.tls(TlsMode::Secure).certs(certificates(config));
    }
    Ok(builder.build()?.get_async_connection().await?)
}

async fn found_by_sentinel(
    config: &ClusterConfig,
    master: &str,
) -> Result<ConnectionInfo, LinkError> {
    let BackplaneKind::Redis { hosts, is_tls, .. } = &config.kind else {
        return Err(LinkError::Failed("the config names no Redis".to_owned()));
    };
    let sentinels = hosts
        .iter()
        .map(|(host, port)| address(host, *port, *is_tls))
        .collect::<Result<Vec<_>, _>>()?;
    let mut node = SentinelNodeConnectionInfo::default()
        .set_redis_connection_info(redis_settings(config, ProtocolVersion::RESP3));
    if *is_tls {
        node = node.set_tls_mode(TlsMode::Secure);
    }
    let client = Sentinel::build(sentinels)?.async_master_for(master, Some(&node)).await?;
    Ok(client.get_connection_info().clone())
}

fn address(host: &str, port: u16, is_tls: bool) -> Result<ConnectionInfo, LinkError> {
    let host = host.to_owned();
    let address = match is_tls {
        true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        false => ConnectionAddr::Tcp(host, port),
    };
    Ok(address.into_connection_info()?)
}

fn client(config: &ClusterConfig, address: ConnectionInfo) -> Result<Client, LinkError> {
    let is_tls = matches!(address.addr(), ConnectionAddr::TcpTls { .. });
    let address = address.set_redis_settings(redis_settings(config, ProtocolVersion::RESP3));
    Ok(match is_tls {
        true => Client::build_with_tls(address, certificates(config))?,
        false => Client::open(address)?,
    })
}

fn redis_settings(config: &ClusterConfig, protocol: ProtocolVersion) -> RedisConnectionInfo {
    let mut settings = RedisConnectionInfo::default().set_protocol(protocol);
    if let Some(user) = &config.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &config.password {
        settings = settings.set_password(password.expose());
    }
    settings
}

fn certificates(config: &ClusterConfig) -> TlsCertificates {
    let tls = &config.tls;
    TlsCertificates {
        client_tls: tls.client.as_ref().map(|(certificate, key)| ClientTlsConfig {
            client_cert: certificate.pem.clone(),
            client_key: key.pem.clone(),
        }),
        root_cert: tls.authority.as_ref().map(|authority| authority.pem.clone()),
    }
}

/// A prefix, escaped for use in a pattern.
fn escape(prefix: &[u8]) -> Vec<u8> {
    let is_special = |byte: u8| matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\' | b'^' | b'-');
    prefix
        .iter()
        .flat_map(|byte| is_special(*byte).then_some(b'\\').into_iter().chain([*byte]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &'static str) -> RedisError {
        let line = format!("-{text}\r\n");
        let value = redis::parse_redis_value(line.as_bytes()).expect("it is an error");
        value.extract_error().expect_err("it is one")
    }

    /// `answers`: the replies to MULTI, the marks and two messages, and to EXEC.
    fn check_transaction(
        answers: [Option<&'static str>; 5],
        exec: Result<[Option<&'static str>; 4], &'static str>,
        expected: Result<(bool, &[usize]), &str>,
    ) {
        let one = |error: Option<&'static str>| match error {
            Some(error) => Err(refused(error)),
            None => Ok(Value::SimpleString("QUEUED".to_owned())),
        };
        let mut all: Vec<_> = answers.into_iter().map(one).collect();
        all.push(match exec {
            Err(error) => Err(refused(error)),
            Ok(outcomes) => Ok(Value::Array(
                outcomes
                    .into_iter()
                    .map(|error| match error {
                        None => Value::Int(1),
                        Some(error) => redis::parse_redis_value(format!("-{error}\r\n").as_bytes())
                            .expect("it is an error"),
                    })
                    .collect(),
            )),
        });
        let outcome = read_transaction(all, 2).map(|(is_carried_out, refused)| {
            (is_carried_out, refused.into_iter().map(|(index, _)| index).collect::<Vec<_>>())
        });
        match (outcome, expected) {
            (Ok(outcome), Ok((is_carried_out, refused))) => {
                assert_eq!(outcome, (is_carried_out, refused.to_vec()));
            }
            (Err(problem), Err(words)) => {
                assert!(problem.to_string().contains(words), "{problem}");
            }
            (outcome, expected) => panic!("{outcome:?} is not {expected:?}"),
        }
    }

    #[test]
    fn an_error_in_a_transaction_is_no_success() {
        const COMMAND: &str = "NOPERM this user has no permissions to run the 'publish' command";
        const NAME: &str =
            "NOPERM this user has no permissions to access one of the channels used as arguments";
        const MULTI: &str = "NOPERM this user has no permissions to run the 'multi' command";
        const ABORTED: &str = "EXECABORT Transaction discarded because of previous errors.";
        let none = [None; 5];
        check_transaction(none, Ok([None; 4]), Ok((true, &[])));
        check_transaction([None, None, Some(NAME), None, None], Err(ABORTED), Ok((false, &[0])));
        check_transaction(none, Ok([None, None, Some(NAME), None]), Ok((true, &[1])));
        check_transaction(
            [None, None, Some(COMMAND), Some(COMMAND), None],
            Err(ABORTED),
            Err("run PUBLISH"),
        );
        check_transaction([Some(MULTI), None, None, None, None], Err(ABORTED), Err("run MULTI"));
        check_transaction([None, Some(NAME), None, None, None], Err(ABORTED), Err("channels"));
        check_transaction(
            none,
            Err("EXECABORT Transaction discarded because of: NOPERM this user has no permissions \
                 to run the 'exec' command"),
            Err("run EXEC"),
        );
        for error in ["OOM no", "READONLY no", "LOADING no", "MISCONF no", "CLUSTERDOWN no"] {
            check_transaction(none, Err(error), Err("no"));
            check_transaction(none, Ok([None, Some(error), None, None]), Err("no"));
            check_transaction([None, None, Some(error), None, None], Err(ABORTED), Err("no"));
        }
    }

    #[test]
    fn a_prefix_means_itself_in_a_pattern() {
        assert_eq!(escape(b"a*b[c]-"), b"a\\*b\\[c\\]\\-");
        assert!(guest_core::glob::matches(&[&escape(b"x[*"), &b"n*"[..]].concat(), b"x[*news"));
    }
}
