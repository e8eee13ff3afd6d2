//! The settings: what was written, and what holds.
//!
//! `RawConfig` mirrors the TOML file, key for key; `Config` is what the server
//! uses. The conversion is the only place that says no, and it says where and
//! what would be right. `switchyard.example.toml` is the manual; a test holds it
//! to the defaults here.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

mod names;

pub use names::NameLimits;

use crate::admin::tokens::{TOKENS_VARIABLE, Tokens};
use crate::cli::ServeArgs;
use crate::log::{LogConfig, QueueLimits};
use crate::memory::settings::{self as memory_settings, MemoryConfig};
use crate::networks::Network;
use crate::origin::Origins;
use crate::outbox::OutboxLimits;
use crate::wasm::outside::OutsideLimits;

/// What the server does, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The HTTP and WebSocket door.
    pub http: HttpConfig,
    /// The door for Redis clients; none: it is shut.
    pub resp: Option<RespConfig>,
    /// How WebSocket connections are treated.
    pub websocket: WebSocketConfig,
    /// What clients may ask for.
    pub limits: Limits,
    /// What may wait for one connection.
    pub outbox: OutboxLimits,
    /// How much memory there is, and for what.
    pub memory: MemoryConfig,
    /// Who listens to what.
    pub engine: EngineConfig,
    /// The middleware.
    pub plugins: PluginsConfig,
    /// Whom the server lets operate it.
    pub admin: AdminConfig,
    /// How it is found out how the server is.
    pub health: HealthConfig,
    /// How the server ends.
    pub shutdown: ShutdownConfig,
    /// Whether addresses other than loopback may be listened on while no plugin
    /// decides who may connect.
    pub is_open_to_all: bool,
    /// What lies between this node and the others; none: it is alone.
    pub cluster: Option<ClusterConfig>,
    /// What is logged, and how.
    pub log: LogConfig,
    /// Every key with its value, for telling what changed.
    pub written: serde_json::Value,
}

/// How it is found out how the server is.
#[derive(Debug, Clone, Copy)]
pub struct HealthConfig {
    /// How long what was found holds.
    pub reuse_time: Duration,
    /// How long finding out may take.
    pub time: Duration,
}

/// How the server ends.
#[derive(Debug, Clone, Copy)]
pub struct ShutdownConfig {
    /// How long what is left after the drain may take.
    pub time: Duration,
    /// Over which time connections are closed at most, ...
    pub drain_time_max: Duration,
    /// ... if so many a second do not take less.
    pub closes_per_second: usize,
    /// Over which time clients are told to spread their coming back at least.
    pub reconnect_spread: Duration,
}

/// The certificate of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate and those between it and a root, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// Who signs clients' certificates; none: they are not asked for one.
    pub client_ca: Option<PathBuf>,
    /// Whether a client without a certificate is let in.
    pub client_certificates: ClientCertificates,
}

/// Whether clients must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientCertificates {
    /// No handshake without one.
    Required,
    /// Who shows none is let in without a subject.
    Optional,
}

/// The HTTP and WebSocket door.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// How long a client may take from the first byte to the end of its request.
    pub handshake_time: Duration,
    /// How large a request's line and headers may be.
    pub request_bytes_max: usize,
    /// How many handshakes may be under way at once. For more, the one that has waited
    /// for its client the longest is dropped.
    pub handshakes_max: usize,
    /// Which pages of other sites may open a WebSocket.
    pub origins: Origins,
    /// Its certificate; none: it speaks plainly.
    pub tls: Option<TlsConfig>,
}

/// The door for Redis clients.
#[derive(Debug, Clone)]
pub struct RespConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// How large one request may be, names and arguments together.
    pub request_bytes_max: usize,
    /// How long a connection that listens to nothing may say nothing; none: for
    /// ever.
    pub idle_time: Option<Duration>,
    /// Its certificate; none: it speaks plainly.
    pub tls: Option<TlsConfig>,
}

/// How WebSocket connections are treated.
#[derive(Debug, Clone)]
pub struct WebSocketConfig {
    /// How often the server pings.
    pub ping_interval: Duration,
    /// How long after a ping a sign of life may take.
    pub pong_time: Duration,
    /// How long a closing connection may take to take its last bytes.
    pub close_time: Duration,
    /// How large a message, in one frame or several, may be.
    pub message_bytes_max: usize,
    /// How many frames in a row may be no commands.
    pub bad_frames_max: u32,
}

/// What clients may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub connections_max: usize,
    /// Connections at once from one address; of IPv6, from one /64.
    pub connections_per_address_max: usize,
    /// Handshakes under way at once from one address, at each door.
    pub handshakes_per_address_max: usize,
    /// Networks whose addresses are not counted for the former two.
    pub uncounted_networks: Vec<Network>,
    /// Commands that one connection may send in a second.
    pub commands_per_second_max: usize,
    /// Names one connection listens to.
    pub subscriptions_max: usize,
    /// Patterns among them.
    pub patterns_max: usize,
    /// What names may take over several connections.
    pub names: NameLimits,
    /// Names in one command.
    pub names_per_command_max: usize,
    /// The length of a channel's or pattern's name.
    pub name_bytes_max: usize,
    /// The size of a payload.
    pub payload_bytes_max: usize,
    /// Failures to authenticate within a minute, for each connection and for each
    /// address.
    pub auth_attempts_per_minute_max: usize,
    /// Notes that plugins pin to one connection, keys and values.
    pub attributes_bytes_max: usize,
    /// Counters in one name space.
    pub counters_max: usize,
}

/// Who listens to what.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Where the engine comes from.
    pub source: EngineSource,
    /// How many instances the channels are spread over.
    pub shards: usize,
    /// What one call may take of a processor.
    pub call_budget: Duration,
    /// What one instance may hold.
    pub memory_bytes_max: usize,
    /// How often a shard may be rebuilt within `rebuild_window`.
    pub rebuilds_max: usize,
    /// The time in which rebuilds are counted.
    pub rebuild_window: Duration,
    /// How long a shard that was rebuilt too often is left alone.
    pub retry_time: Duration,
}

/// Where the engine comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineSource {
    /// The component inside the server.
    Embedded,
    /// A component in a file, watched for changes.
    File(PathBuf),
    /// The library, without a sandbox.
    Native,
}

/// The middleware.
#[derive(Debug, Clone)]
pub struct PluginsConfig {
    /// Where the plugins are.
    pub directory: Option<PathBuf>,
    /// How many plugins there may be.
    pub plugins_max: usize,
    /// How long the directory must be quiet before a change is acted on.
    pub debounce: Duration,
    /// How often the directory is looked at, whatever the system says of changes.
    pub poll_time: Duration,
    /// What holds for a plugin whose own file says nothing else.
    pub defaults: PluginLimits,
    /// The wait before the second rebuild in a row; doubles from there.
    pub rebuild_backoff: Duration,
    /// The longest wait before a rebuild.
    pub rebuild_backoff_max: Duration,
    /// How many existing subscriptions are checked in a second after a plugin changed.
    pub recheck_names_per_second_max: usize,
}

/// What becomes of a plugin that is parked because it failed too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnPark {
    /// It waits for a new file.
    Stay,
    /// The version that it replaced comes back.
    Rollback,
}

/// What one plugin may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PluginLimits {
    /// What one call may take of a processor.
    pub call_budget: Duration,
    /// What `init`, `save` and `restore` may take of a processor.
    pub init_budget: Duration,
    /// What one instance may hold.
    pub memory_bytes_max: usize,
    /// Lines in the log per second.
    pub log_lines_per_second_max: u32,
    /// Elements in the tables of one instance.
    pub table_elements_max: usize,
    /// Core instances that one instance consists of.
    pub core_instances_max: usize,
    /// Handles to resources that one instance holds at once.
    pub resources_max: usize,
    /// Lists and strings that pass to the server in one call.
    pub returned_bytes_max: usize,
    /// How often it may fail within `strikes_window` before it is parked.
    pub strikes_max: usize,
    /// The time in which failures are counted.
    pub strikes_window: Duration,
    /// How many failures one connection may cause within `strikes_window` before the plugin
    /// is not asked about it any more.
    pub strikes_per_connection_max: usize,
    /// How many instances are kept at hand for one that fails.
    pub spares: usize,
    /// What `save` and `restore` of all instances may take of a processor together, while
    /// everybody waits.
    pub handover_budget: Duration,
    /// What becomes of it when it is parked.
    pub on_park: OnPark,
    /// How long a client waits to be asked about apart from the data path.
    pub admission_time: Duration,
    /// What it may have of the outside world, where it may ask anybody.
    pub outside: OutsideLimits,
}

/// Whom the server lets operate it.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// Where to listen; none: nowhere.
    pub listen: Option<SocketAddr>,
    /// Who may; none: whoever reaches it, which must be loopback then.
    pub tokens: Tokens,
    /// How large a component that is uploaded may be.
    pub upload_bytes_max: usize,
    /// How large the body of any other request may be.
    pub body_bytes_max: usize,
    /// How long a client may take to send a request, or to take some of the answer.
    pub request_time: Duration,
    /// How long a client may take to send the head of a request, and how long an idle
    /// connection is kept.
    pub head_time: Duration,
    /// Connections at once. For more, the idle one that has waited the longest is closed.
    pub connections_max: usize,
    /// The same for one address.
    pub connections_per_address_max: usize,
    /// How many may look at messages at once.
    pub traces_max: usize,
    /// How many messages may wait for one who looks.
    pub trace_queue_max: usize,
}

/// What lies between this node and the others.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// What it is, and where.
    pub kind: BackplaneKind,
    /// Whom it knows this node as.
    pub user: Option<String>,
    /// The password, or the token of NATS when there is no user.
    pub password: Option<Secret>,
    /// Certificates.
    pub tls: ClusterTls,
    /// What stands before every channel and pattern there.
    pub prefix: String,
    /// What becomes of publications while it is away.
    pub when_away: WhenAway,
    /// How long the acknowledgement of a SUBSCRIBE may wait for it.
    pub join_time: Duration,
    /// How long a name is listened to after its last listener left.
    pub leave_delay: Duration,
    /// How long connecting may take.
    pub connect_time: Duration,
    /// How long an answer may take before the connection is given up.
    pub answer_time: Duration,
    /// How often it is asked whether it is there.
    pub ping_interval: Duration,
    /// The wait before the second attempt to connect in a row; doubles from there.
    pub reconnect_wait: Duration,
    /// The longest wait before an attempt to connect.
    pub reconnect_wait_max: Duration,
    /// How many publications may wait to be sent.
    pub outgoing_messages_max: usize,
    /// How many bytes of them.
    pub outgoing_bytes_max: usize,
    /// How many bytes of messages from elsewhere may wait to be delivered.
    pub incoming_bytes_max: usize,
    /// The same in messages, for each subscription of NATS.
    pub nats_pending_max: usize,
    /// How long other nodes may take to answer what is asked of all.
    pub ask_time: Duration,
}

/// What lies between the nodes, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackplaneKind {
    /// Redis or Valkey.
    Redis {
        /// One server, nodes of a cluster, or Sentinels.
        hosts: Vec<(String, u16)>,
        /// Whether TLS is spoken.
        is_tls: bool,
        /// The name of the master that the Sentinels know.
        sentinel: Option<String>,
    },
    /// NATS.
    Nats {
        /// Servers of one cluster.
        hosts: Vec<(String, u16)>,
        /// Whether TLS is spoken.
        is_tls: bool,
    },
}

/// What becomes of publications while the backplane is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenAway {
    /// They are delivered on this node, and counted.
    Accept,
    /// They are refused with UNAVAILABLE.
    Refuse,
}

/// Certificates for the backplane.
#[derive(Debug, Clone, Default)]
pub struct ClusterTls {
    /// Whom to trust instead of those whom the system trusts.
    pub authority: Option<PemFile>,
    /// This node's certificate and key.
    pub client: Option<(PemFile, PemFile)>,
}

/// A file of certificates or a key.
#[derive(Clone)]
pub struct PemFile {
    /// Where it is.
    pub path: PathBuf,
    /// What stands in it.
    pub pem: Vec<u8>,
}

/// A key may stand in it.
impl std::fmt::Debug for PemFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.path.fmt(f)
    }
}

/// What must not be seen.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// What it is, for who needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a secret")
    }
}

/// How the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why the configuration does not hold.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the config file {path}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that the config names could not be read.
    #[error("{key}: cannot read {path}")]
    UnreadableFile {
        /// The setting, as it is called in the file.
        key: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key that there is not.
    #[error("{path}: {problem}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Line, column and what is wrong, in TOML's words.
        problem: String,
    },
    /// Anybody could operate the server.
    #[error(
        "admin.listen is {listen}, which others can reach, so tokens are required: name a file \
         of them in admin.tokens_file, or set {TOKENS_VARIABLE} to NAME:TOKEN; or listen on \
         127.0.0.1, or not at all (\"off\")"
    )]
    Open {
        /// Where it would listen.
        listen: SocketAddr,
    },
    /// A value is not what would be right.
    #[error("{key} is {value}, but must be {expected}")]
    OutOfRange {
        /// The setting, as it is called in the file.
        key: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// Others could connect, and nobody decides who may.
    #[error(
        "{key} is {address}, which other machines reach, and no plugin decides who may connect: \
         load one that exports `admission`, such as acl, with --plugins; or listen on 127.0.0.1; \
         or let everybody in with --open-to-all (security.open_to_all = true)"
    )]
    Unprotected {
        /// The setting, as it is called in the file.
        key: &'static str,
        /// What it says.
        address: SocketAddr,
    },
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawConfig {
    security: RawSecurity,
    http: RawHttp,
    resp: RawResp,
    websocket: RawWebSocket,
    limits: RawLimits,
    memory: RawMemory,
    outbox: RawOutbox,
    engine: RawEngine,
    plugins: RawPlugins,
    admin: RawAdmin,
    cluster: RawCluster,
    health: RawHealth,
    shutdown: RawShutdown,
    log: RawLog,
}

/// Declares one table of the file: its keys, their types and their defaults,
/// which stand here and nowhere else.
macro_rules! raw_table {
    ($name:ident { $($(#[doc = $why:literal])* $key:ident: $type:ty = $default:expr),* $(,)? }) => {
        #[derive(Debug, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct $name { $($(#[doc = $why])* $key: $type),* }

        impl Default for $name {
            fn default() -> $name {
                $name { $($key: $default),* }
            }
        }
    };
}

/// A number, or `"off"`: zero never means "unlimited".
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum NumberOrOff {
    Number(u64),
    Word(String),
}

raw_table!(RawSecurity { open_to_all: bool = false });

raw_table!(RawTls {
    certificate: Option<PathBuf> = None,
    key: Option<PathBuf> = None,
    client_ca: Option<PathBuf> = None,
    /// Who names a CA wants certificates.
    client_certificates: ClientCertificates = ClientCertificates::Required,
});

raw_table!(RawHttp {
    /// Loopback: who wants to be reached says so.
    listen: String = "127.0.0.1:8080".to_owned(),
    handshake_timeout_ms: u64 = 5_000,
    /// Room for large cookies and tokens.
    request_bytes_max: u64 = 16 << 10,
    handshakes_max: u64 = 512,
    /// The same origin only: who wants others names them.
    origins: Vec<String> = Vec::new(),
    tls: RawTls = RawTls::default(),
});

raw_table!(RawResp {
    /// Beside Redis' own port, so that both can run on one machine.
    listen: String = "127.0.0.1:6380".to_owned(),
    /// Room for 10,000 names of 1 KiB in one SUBSCRIBE.
    request_bytes_max: u64 = 16 << 20,
    /// As Redis' `timeout 0`: clients keep connections to publish on now and then.
    idle_timeout_ms: NumberOrOff = NumberOrOff::Word(OFF.to_owned()),
    tls: RawTls = RawTls::default(),
});

raw_table!(RawWebSocket {
    /// Below the 30 s after which the hastier proxies and NATs forget a flow.
    ping_interval_ms: u64 = 25_000,
    pong_timeout_ms: u64 = 10_000,
    close_timeout_ms: u64 = 5_000,
    /// A payload of `limits.payload_bytes_max` and the command around it. A
    /// payload that needs much escaping needs more.
    message_bytes_max: u64 = (1 << 20) + (64 << 10),
    bad_frames_max: u64 = 5,
});

raw_table!(RawLimits {
    connections_max: u64 = 10_000,
    /// A tenth of all: room for an office behind one address.
    connections_per_address_max: u64 = 1_000,
    /// A quarter of `http.handshakes_max`, and as many as are accepted in one go: those
    /// of an office that comes back at once are done before the next are accepted.
    handshakes_per_address_max: u64 = 128,
    /// A proxy on this machine brings everybody's connections.
    uncounted_networks: Vec<String> = vec!["127.0.0.0/8".to_owned(), "::1/128".to_owned()],
    /// A back end publishes that much through one connection; a browser does not.
    commands_per_second_max: u64 = 1_000_000,
    subscriptions_max: u64 = 10_000,
    /// Each may concern every publication, as a channel does not.
    patterns_max: u64 = 1_000,
    subscriptions_total_max: Option<u64> = None,
    name_bytes_total_max: Option<u64> = None,
    name_bytes_per_address_max: Option<u64> = None,
    /// About a millisecond for each publication.
    pattern_cost_max: u64 = 500_000,
    pattern_cost_per_address_max: u64 = 1_000_000,
    pattern_cost_total_max: u64 = 2_000_000,
    names_per_command_max: u64 = 10_000,
    /// As an outbox holds.
    listing_bytes_max: u64 = 32 << 20,
    name_bytes_max: u64 = 1 << 10,
    payload_bytes_max: u64 = 1 << 20,
    /// A person who mistypes a password does not come near it. Only failures count, so
    /// that an office behind one address may connect at the same time.
    auth_attempts_per_minute_max: u64 = 60,
    attributes_bytes_max: u64 = 16 << 10,
    counters_max: u64 = 100_000,
    outbox_bytes_total_max: Option<u64> = None,
    outbox_bytes_per_address_max: Option<u64> = None,
    input_bytes_total_max: Option<u64> = None,
    input_bytes_per_address_max: Option<u64> = None,
    /// As nginx' `client_body_timeout`, but for the whole message.
    input_timeout_ms: u64 = 60_000,
});

raw_table!(RawMemory { bytes_max: Option<u64> = None });

raw_table!(RawOutbox {
    /// These three are Redis' `client-output-buffer-limit pubsub 32mb 8mb 60`.
    bytes_max: u64 = 32 << 20,
    soft_bytes: u64 = 8 << 20,
    soft_ms: u64 = 60_000,
});

raw_table!(RawEngine {
    file: Option<PathBuf> = None,
    shards: Option<u64> = None,
    /// A listing of a million channels takes a fraction of this, and everybody
    /// waits for what takes longer.
    call_budget_ms: u64 = 500,
    memory_bytes_max: Option<u64> = None,
    rebuilds_max: u64 = 5,
    rebuild_window_ms: u64 = 10_000,
    retry_ms: u64 = 1_000,
});

raw_table!(RawPlugins {
    directory: Option<PathBuf> = None,
    /// Each is asked about each message: more are a mistake.
    plugins_max: u64 = 64,
    debounce_ms: u64 = 50,
    poll_ms: u64 = 1_000,
    call_budget_ms: u64 = 10,
    init_budget_ms: u64 = 1_000,
    memory_bytes_max: Option<u64> = None,
    log_lines_per_second_max: u64 = 100,
    /// Room for the functions of a large interpreter.
    table_elements_max: u64 = 100_000,
    /// Python brings thirty.
    core_instances_max: u64 = 128,
    resources_max: u64 = 1_000,
    /// What 256 payloads of 64 KiB in all and a large snapshot need, and no more
    /// than its memory holds.
    returned_bytes_max: u64 = 64 << 20,
    /// With the waits between rebuilds, one that fails whenever it is asked is
    /// parked after half a minute.
    strikes_max: u64 = 10,
    strikes_window_ms: u64 = 60_000,
    /// A client that is not at fault is hardly ever met by a failure twice.
    strikes_per_connection_max: u64 = 3,
    /// A message that makes a plugin fail in a call with others takes two instances along: one
    /// in that call, and one when it is asked about alone.
    spares: u64 = 2,
    /// Everybody waits for it. A thousand buckets of tokens are written in a millisecond.
    handover_budget_ms: u64 = 50,
    on_park: OnPark = OnPark::Stay,
    /// Half the time that clients wait for a connection.
    admission_timeout_ms: u64 = 5_000,
    /// A client waits for it, and thinks of the server what it thinks of that.
    http_timeout_ms: u64 = 2_000,
    http_response_bytes_max: u64 = 64 << 10,
    http_requests_max: u64 = 4,
    /// Each is an instance and a thread.
    http_calls_max: u64 = 32,
    rebuild_backoff_ms: u64 = 100,
    rebuild_backoff_max_ms: u64 = 10_000,
    /// 100,000 in two seconds.
    recheck_names_per_second_max: u64 = 50_000,
});

raw_table!(RawAdmin {
    /// Loopback: who wants to be reached says so, and who may.
    listen: String = "127.0.0.1:8081".to_owned(),
    tokens_file: Option<PathBuf> = None,
    /// Interpreters of other languages come to a dozen MiB.
    upload_bytes_max: u64 = 64 << 20,
    body_bytes_max: u64 = 1 << 20,
    request_timeout_ms: u64 = 30_000,
    head_timeout_ms: u64 = 5_000,
    connections_max: u64 = 64,
    /// Half of all: operators come from loopback, and one of them is not all.
    connections_per_address_max: u64 = 32,
    traces_max: u64 = 8,
    trace_queue_max: u64 = 4_096,
});

raw_table!(RawCluster {
    url: Option<String> = None,
    user: Option<String> = None,
    password_file: Option<PathBuf> = None,
    ca_file: Option<PathBuf> = None,
    client_cert_file: Option<PathBuf> = None,
    client_key_file: Option<PathBuf> = None,
    /// Programs that publish there find the channels under their own names.
    prefix: String = String::new(),
    /// A message for some is better than one for nobody.
    when_away: WhenAway = WhenAway::Accept,
    join_timeout_ms: u64 = 1_000,
    leave_delay_ms: u64 = 1_000,
    connect_timeout_ms: u64 = 5_000,
    /// A Redis that saves or loads may well be silent for a second or two.
    answer_timeout_ms: u64 = 5_000,
    ping_interval_ms: u64 = 1_000,
    reconnect_ms: u64 = 100,
    reconnect_max_ms: u64 = 5_000,
    /// A second of what one node can send.
    outgoing_messages_max: u64 = 100_000,
    outgoing_bytes_max: u64 = 64 << 20,
    incoming_bytes_max: u64 = 64 << 20,
    nats_pending_max: u64 = 65_536,
    ask_timeout_ms: u64 = 1_000,
});

raw_table!(RawHealth {
    /// So that asking often costs nothing.
    reuse_ms: u64 = 1_000,
    /// What most who ask wait for.
    timeout_ms: u64 = 1_000,
});

raw_table!(RawShutdown {
    timeout_ms: u64 = 5_000,
    drain_ms: u64 = 10_000,
    /// One is closed within a millisecond; 10,000 take the 10 s above.
    closes_per_second: u64 = 1_000,
    reconnect_spread_ms: u64 = 5_000,
});

raw_table!(RawLog {
    filter: String = "info".to_owned(),
    format: LogFormat = LogFormat::Text,
    connections: Vec<u64> = Vec::new(),
    /// Some seconds of a busy log.
    queue_lines_max: u64 = 10_000,
    queue_bytes_max: u64 = 4 << 20,
    /// What is on the other end of a pipe needs milliseconds, unless it is stalled.
    flush_ms: u64 = 1_000,
});

impl RawLog {
    fn check(self) -> Result<LogConfig, ConfigError> {
        Ok(LogConfig {
            filter: self.filter,
            format: self.format,
            connections: self.connections,
            queue: QueueLimits {
                lines_max: count("log.queue_lines_max", self.queue_lines_max, 1..=1_000_000)?,
                // One line of a panic fits.
                bytes_max: bytes("log.queue_bytes_max", self.queue_bytes_max, 64 << 10..=1 << 30)?,
            },
            flush_time: millis("log.flush_ms", self.flush_ms)?,
        })
    }
}

impl Config {
    /// Reads the file that the flags name, lets the flags override it, and
    /// checks what comes out.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is not TOML, has an unknown key, or a value is
    /// outside its range.
    pub fn load(args: &ServeArgs) -> Result<Config, ConfigError> {
        let mut raw = match &args.config {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
                parse(&text).map_err(|problem| ConfigError::Malformed {
                    path: path.clone(),
                    problem: problem.to_string().trim_end().to_owned(),
                })?
            }
            None => RawConfig::default(),
        };
        if let Some(path) = &args.config {
            raw.resolve_against(path.parent().unwrap_or(Path::new("")));
        }
        raw.override_with(args);
        let password_file = raw.cluster.password_file.clone();
        let mut config = raw.check()?;
        if let Some(cluster) = &mut config.cluster {
            cluster.read_files(password_file.as_deref())?;
        }
        Ok(config)
    }
}

impl Config {
    /// What a config file with this text says. What it names is not read.
    ///
    /// # Errors
    ///
    /// As `load`.
    pub fn from_text(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let raw = parse(text).map_err(|problem| ConfigError::Malformed {
            path: path.to_owned(),
            problem: problem.to_string().trim_end().to_owned(),
        })?;
        raw.check()
    }
}

impl ClusterConfig {
    /// Reads what stands in files, and the password, which the environment
    /// overrides.
    fn read_files(&mut self, password_file: Option<&Path>) -> Result<(), ConfigError> {
        let read = |key: &'static str, path: &Path| {
            std::fs::read(path).map_err(|source| ConfigError::UnreadableFile {
                key,
                path: path.to_owned(),
                source,
            })
        };
        if let Ok(password) = std::env::var(CLUSTER_PASSWORD) {
            self.password = Some(Secret(password));
        } else if let Some(path) = password_file {
            let bytes = read("cluster.password_file", path)?;
            let text = String::from_utf8(bytes).map_err(|_| ConfigError::OutOfRange {
                key: "cluster.password_file",
                value: format!("\"{}\"", path.display()),
                expected: "a file of text".to_owned(),
            })?;
            self.password = Some(Secret(text.trim_end_matches(['\r', '\n']).to_owned()));
        }
        if let Some(authority) = &mut self.tls.authority {
            authority.pem = read("cluster.ca_file", &authority.path)?;
        }
        if let Some((certificate, key)) = &mut self.tls.client {
            certificate.pem = read("cluster.client_cert_file", &certificate.path)?;
            key.pem = read("cluster.client_key_file", &key.path)?;
        }
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Config {
        RawConfig::default().check().expect("a test holds the defaults to their ranges")
    }
}

fn parse(text: &str) -> Result<RawConfig, toml::de::Error> {
    toml::from_str(text)
}

impl RawConfig {
    /// Paths in the file are meant from where the file is.
    fn resolve_against(&mut self, base: &Path) {
        let cluster = &mut self.cluster;
        let paths = [
            &mut self.plugins.directory,
            &mut self.engine.file,
            &mut self.admin.tokens_file,
            &mut cluster.password_file,
            &mut cluster.ca_file,
            &mut cluster.client_cert_file,
            &mut cluster.client_key_file,
        ];
        for path in paths.into_iter().flatten() {
            if path.as_os_str() != NATIVE {
                *path = base.join(&*path);
            }
        }
        for RawTls { certificate, key, client_ca, .. } in [&mut self.http.tls, &mut self.resp.tls] {
            for path in [certificate, key, client_ca].into_iter().flatten() {
                *path = base.join(&*path);
            }
        }
    }

    fn override_with(&mut self, args: &ServeArgs) {
        let ServeArgs {
            config: _,
            http,
            resp,
            admin,
            plugins,
            engine,
            shards,
            cluster,
            log,
            open_to_all,
            check: _,
        } = args;
        self.security.open_to_all |= open_to_all;
        if let Some(admin) = admin {
            self.admin.listen.clone_from(admin);
        }
        if let Some(http) = http {
            self.http.listen.clone_from(http);
        }
        if let Some(resp) = resp {
            self.resp.listen.clone_from(resp);
        }
        if plugins.is_some() {
            self.plugins.directory.clone_from(plugins);
        }
        if engine.is_some() {
            self.engine.file.clone_from(engine);
        }
        if let Some(shards) = shards {
            self.engine.shards = Some(*shards as u64);
        }
        if cluster.is_some() {
            self.cluster.url.clone_from(cluster);
        }
        if let Some(log) = log {
            self.log.filter.clone_from(log);
        }
    }

    fn check(self) -> Result<Config, ConfigError> {
        let written = serde_json::to_value(&self).expect("it is made of JSON's types");
        let RawConfig {
            security,
            http,
            resp,
            websocket,
            limits,
            memory,
            outbox,
            engine,
            plugins,
            admin,
            cluster,
            health,
            shutdown,
            log,
        } = self;
        let outbox_bytes_max = bytes("outbox.bytes_max", outbox.bytes_max, 1 << 10..=1 << 40)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from).min(SHARDS_MAX);
        let shards = match engine.shards {
            None => cores,
            Some(shards) => count("engine.shards", shards, 1..=SHARDS_MAX as u64)?,
        };
        let memory = memory_settings::check(memory_settings::Written {
            bytes_max: memory.bytes_max,
            outbox_total: limits.outbox_bytes_total_max,
            outbox_per_address: limits.outbox_bytes_per_address_max,
            input_total: limits.input_bytes_total_max,
            input_per_address: limits.input_bytes_per_address_max,
            names_total: limits.name_bytes_total_max,
            input_timeout_ms: limits.input_timeout_ms,
            engine_instance: engine.memory_bytes_max,
            plugin_instance: plugins.memory_bytes_max,
            // Those of channels and patterns, and those of shard channels.
            engine_instances: 2 * shards,
        })?;
        let names = names::check(
            &limits,
            names::Room {
                engine: shards.saturating_mul(memory.engine_instance),
                host: memory.budget.names,
            },
        )?;
        Ok(Config {
            http: HttpConfig {
                listen: address("http.listen", &http.listen)?,
                handshake_time: millis("http.handshake_timeout_ms", http.handshake_timeout_ms)?,
                request_bytes_max: bytes(
                    "http.request_bytes_max",
                    http.request_bytes_max,
                    256..=1 << 20,
                )?,
                handshakes_max: count("http.handshakes_max", http.handshakes_max, 1..=1 << 20)?,
                origins: Origins::parse(&http.origins).map_err(|value| {
                    ConfigError::OutOfRange {
                        key: "http.origins",
                        value: format!("\"{value}\""),
                        expected: "origins such as https://example.com, https://*.example.com, \
                        http://localhost:3000 or null, or \"*\" for all"
                            .to_owned(),
                    }
                })?,
                tls: http.tls.check(["http.tls.certificate", "http.tls.key"])?,
            },
            resp: match resp.listen.as_str() {
                OFF => None,
                listen => Some(RespConfig {
                    listen: address("resp.listen", listen)?,
                    request_bytes_max: bytes(
                        "resp.request_bytes_max",
                        resp.request_bytes_max,
                        1 << 10..=1 << 30,
                    )?,
                    idle_time: resp.idle_timeout_ms.check("resp.idle_timeout_ms")?,
                    tls: resp.tls.check(["resp.tls.certificate", "resp.tls.key"])?,
                }),
            },
            websocket: WebSocketConfig {
                ping_interval: millis("websocket.ping_interval_ms", websocket.ping_interval_ms)?,
                pong_time: millis("websocket.pong_timeout_ms", websocket.pong_timeout_ms)?,
                close_time: millis("websocket.close_timeout_ms", websocket.close_timeout_ms)?,
                message_bytes_max: bytes(
                    "websocket.message_bytes_max",
                    websocket.message_bytes_max,
                    128..=1 << 30,
                )?,
                bad_frames_max: count(
                    "websocket.bad_frames_max",
                    websocket.bad_frames_max,
                    1..=1 << 20,
                )? as u32,
            },
            limits: Limits {
                connections_max: count(
                    "limits.connections_max",
                    limits.connections_max,
                    1..=1 << 30,
                )?,
                connections_per_address_max: count(
                    "limits.connections_per_address_max",
                    limits.connections_per_address_max,
                    1..=1 << 30,
                )?,
                handshakes_per_address_max: count(
                    "limits.handshakes_per_address_max",
                    limits.handshakes_per_address_max,
                    1..=1 << 20,
                )?,
                uncounted_networks: limits
                    .uncounted_networks
                    .iter()
                    .map(|value| {
                        value.parse().map_err(|()| ConfigError::OutOfRange {
                            key: "limits.uncounted_networks",
                            value: format!("\"{value}\""),
                            expected: "networks such as 10.0.0.0/8 or fd00::/8".to_owned(),
                        })
                    })
                    .collect::<Result<_, _>>()?,
                commands_per_second_max: count(
                    "limits.commands_per_second_max",
                    limits.commands_per_second_max,
                    1..=1_000_000_000,
                )?,
                subscriptions_max: count(
                    "limits.subscriptions_max",
                    limits.subscriptions_max,
                    1..=1 << 30,
                )?,
                patterns_max: count("limits.patterns_max", limits.patterns_max, 1..=1 << 30)?,
                names,
                names_per_command_max: count(
                    "limits.names_per_command_max",
                    limits.names_per_command_max,
                    1..=1 << 20,
                )?,
                name_bytes_max: bytes("limits.name_bytes_max", limits.name_bytes_max, 1..=1 << 20)?,
                payload_bytes_max: bytes(
                    "limits.payload_bytes_max",
                    limits.payload_bytes_max,
                    1..=1 << 29,
                )?,
                auth_attempts_per_minute_max: count(
                    "limits.auth_attempts_per_minute_max",
                    limits.auth_attempts_per_minute_max,
                    1..=1 << 30,
                )?,
                attributes_bytes_max: bytes(
                    "limits.attributes_bytes_max",
                    limits.attributes_bytes_max,
                    1..=1 << 20,
                )?,
                counters_max: count("limits.counters_max", limits.counters_max, 1..=1 << 30)?,
            },
            outbox: OutboxLimits {
                bytes_max: outbox_bytes_max,
                soft_bytes: bytes(
                    "outbox.soft_bytes",
                    outbox.soft_bytes,
                    1..=outbox_bytes_max as u64,
                )?,
                soft_time: millis("outbox.soft_ms", outbox.soft_ms)?,
            },
            engine: EngineConfig {
                source: match engine.file {
                    None => EngineSource::Embedded,
                    Some(path) if path.as_os_str() == NATIVE => EngineSource::Native,
                    Some(path) => EngineSource::File(path),
                },
                shards,
                call_budget: millis("engine.call_budget_ms", engine.call_budget_ms)?,
                memory_bytes_max: memory.engine_instance,
                rebuilds_max: count("engine.rebuilds_max", engine.rebuilds_max, 1..=1_000)?,
                rebuild_window: millis("engine.rebuild_window_ms", engine.rebuild_window_ms)?,
                retry_time: millis("engine.retry_ms", engine.retry_ms)?,
            },
            plugins: PluginsConfig {
                directory: plugins.directory,
                plugins_max: count("plugins.plugins_max", plugins.plugins_max, 1..=1_000)?,
                debounce: millis("plugins.debounce_ms", plugins.debounce_ms)?,
                poll_time: millis("plugins.poll_ms", plugins.poll_ms)?,
                defaults: PluginLimits {
                    call_budget: millis("plugins.call_budget_ms", plugins.call_budget_ms)?,
                    init_budget: millis("plugins.init_budget_ms", plugins.init_budget_ms)?,
                    memory_bytes_max: memory.plugin_instance,
                    log_lines_per_second_max: count(
                        "plugins.log_lines_per_second_max",
                        plugins.log_lines_per_second_max,
                        1..=1_000_000,
                    )? as u32,
                    table_elements_max: count(
                        "plugins.table_elements_max",
                        plugins.table_elements_max,
                        TABLE_ELEMENTS,
                    )?,
                    core_instances_max: count(
                        "plugins.core_instances_max",
                        plugins.core_instances_max,
                        CORE_INSTANCES,
                    )?,
                    resources_max: count(
                        "plugins.resources_max",
                        plugins.resources_max,
                        RESOURCES,
                    )?,
                    returned_bytes_max: bytes(
                        "plugins.returned_bytes_max",
                        plugins.returned_bytes_max,
                        RETURNED_BYTES,
                    )?,
                    strikes_max: count("plugins.strikes_max", plugins.strikes_max, STRIKES)?,
                    strikes_window: millis("plugins.strikes_window_ms", plugins.strikes_window_ms)?,
                    strikes_per_connection_max: count(
                        "plugins.strikes_per_connection_max",
                        plugins.strikes_per_connection_max,
                        STRIKES,
                    )?,
                    spares: count("plugins.spares", plugins.spares, SPARES)?,
                    handover_budget: handover_time(
                        "plugins.handover_budget_ms",
                        plugins.handover_budget_ms,
                    )?,
                    on_park: plugins.on_park,
                    admission_time: millis(
                        "plugins.admission_timeout_ms",
                        plugins.admission_timeout_ms,
                    )?,
                    outside: OutsideLimits {
                        time: http_time("plugins.http_timeout_ms", plugins.http_timeout_ms)?,
                        response_bytes_max: bytes(
                            "plugins.http_response_bytes_max",
                            plugins.http_response_bytes_max,
                            HTTP_RESPONSE_BYTES,
                        )?,
                        requests_max: count(
                            "plugins.http_requests_max",
                            plugins.http_requests_max,
                            HTTP_REQUESTS,
                        )?,
                        calls_max: count(
                            "plugins.http_calls_max",
                            plugins.http_calls_max,
                            HTTP_CALLS,
                        )?,
                    },
                },
                rebuild_backoff: millis("plugins.rebuild_backoff_ms", plugins.rebuild_backoff_ms)?,
                rebuild_backoff_max: millis(
                    "plugins.rebuild_backoff_max_ms",
                    plugins.rebuild_backoff_max_ms,
                )?,
                recheck_names_per_second_max: count(
                    "plugins.recheck_names_per_second_max",
                    plugins.recheck_names_per_second_max,
                    1..=10_000_000,
                )?,
            },
            admin: admin.check()?,
            health: HealthConfig {
                reuse_time: millis("health.reuse_ms", health.reuse_ms)?,
                time: millis("health.timeout_ms", health.timeout_ms)?,
            },
            shutdown: ShutdownConfig {
                time: millis("shutdown.timeout_ms", shutdown.timeout_ms)?,
                drain_time_max: millis("shutdown.drain_ms", shutdown.drain_ms)?,
                closes_per_second: count(
                    "shutdown.closes_per_second",
                    shutdown.closes_per_second,
                    1..=1_000_000,
                )?,
                reconnect_spread: millis(
                    "shutdown.reconnect_spread_ms",
                    shutdown.reconnect_spread_ms,
                )?,
            },
            memory,
            is_open_to_all: security.open_to_all,
            cluster: cluster.check()?,
            log: log.check()?,
            written,
        })
    }
}

impl RawAdmin {
    fn check(self) -> Result<AdminConfig, ConfigError> {
        let listen = match self.listen.as_str() {
            OFF => None,
            listen => Some(address("admin.listen", listen)?),
        };
        let tokens = match (listen, &self.tokens_file) {
            (None, _) => Tokens::default(),
            (Some(_), Some(path)) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
                let tokens = Tokens::parse(&text).and_then(|tokens| match tokens.is_empty() {
                    // Who names a file does not mean that anybody may.
                    true => Err("there are no tokens in it".to_owned()),
                    false => Ok(tokens),
                });
                tokens.map_err(|problem| ConfigError::Malformed { path: path.clone(), problem })?
            }
            (Some(_), None) => match std::env::var(TOKENS_VARIABLE) {
                Ok(text) => Tokens::parse(&text).map_err(|problem| ConfigError::Malformed {
                    path: TOKENS_VARIABLE.into(),
                    problem,
                })?,
                Err(_) => Tokens::default(),
            },
        };
        if let Some(listen) = listen
            && !listen.ip().is_loopback()
            && tokens.is_empty()
        {
            return Err(ConfigError::Open { listen });
        }
        Ok(AdminConfig {
            listen,
            tokens,
            upload_bytes_max: bytes(
                "admin.upload_bytes_max",
                self.upload_bytes_max,
                1 << 10..=1 << 30,
            )?,
            body_bytes_max: bytes("admin.body_bytes_max", self.body_bytes_max, 256..=1 << 30)?,
            request_time: millis("admin.request_timeout_ms", self.request_timeout_ms)?,
            head_time: millis("admin.head_timeout_ms", self.head_timeout_ms)?,
            connections_max: count("admin.connections_max", self.connections_max, 1..=1 << 20)?,
            connections_per_address_max: count(
                "admin.connections_per_address_max",
                self.connections_per_address_max,
                1..=1 << 20,
            )?,
            traces_max: count("admin.traces_max", self.traces_max, 1..=1_000)?,
            trace_queue_max: count("admin.trace_queue_max", self.trace_queue_max, 1..=1 << 20)?,
        })
    }
}

impl RawTls {
    /// A certificate and its key, or neither.
    fn check(self, keys: [&'static str; 2]) -> Result<Option<TlsConfig>, ConfigError> {
        let RawTls { certificate, key, client_ca, client_certificates } = self;
        let missing = |key: &'static str| ConfigError::OutOfRange {
            key,
            value: "missing".to_owned(),
            expected: "a PEM file, as the other settings of TLS are given".to_owned(),
        };
        match (certificate, key) {
            (Some(certificate), Some(key)) => {
                Ok(Some(TlsConfig { certificate, key, client_ca, client_certificates }))
            }
            (None, None) if client_ca.is_none() => Ok(None),
            (None, _) => Err(missing(keys[0])),
            (Some(_), None) => Err(missing(keys[1])),
        }
    }
}

impl NumberOrOff {
    fn check(self, key: &'static str) -> Result<Option<Duration>, ConfigError> {
        match self {
            NumberOrOff::Number(number) => millis(key, number).map(Some),
            NumberOrOff::Word(word) if word == OFF => Ok(None),
            NumberOrOff::Word(word) => Err(ConfigError::OutOfRange {
                key,
                value: format!("\"{word}\""),
                expected: "a number of milliseconds, or \"off\"".to_owned(),
            }),
        }
    }
}

impl RawCluster {
    /// What is set is checked, also when there is no backplane.
    fn check(self) -> Result<Option<ClusterConfig>, ConfigError> {
        let kind = self.url.as_deref().map(backplane).transpose()?;
        let pem = |path: PathBuf| PemFile { path, pem: Vec::new() };
        let client = match (self.client_cert_file, self.client_key_file) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((pem(certificate), pem(key))),
            (Some(_), None) | (None, Some(_)) => {
                return Err(ConfigError::OutOfRange {
                    key: "cluster.client_cert_file",
                    value: "set without the other".to_owned(),
                    expected: "set together with cluster.client_key_file".to_owned(),
                });
            }
        };
        if let Some(BackplaneKind::Nats { .. }) = kind
            && !is_subject_prefix(&self.prefix)
        {
            return Err(ConfigError::OutOfRange {
                key: "cluster.prefix",
                value: format!("\"{}\"", self.prefix),
                expected: "tokens of a NATS subject without wildcards, such as my.prefix"
                    .to_owned(),
            });
        }
        let prefix_bytes = self.prefix.len() as u64;
        count("the length of cluster.prefix", prefix_bytes, 0..=255)?;
        let config = ClusterConfig {
            // Nothing looks at it when there is none.
            kind: kind.clone().unwrap_or(BackplaneKind::Nats { hosts: Vec::new(), is_tls: false }),
            user: self.user,
            password: None,
            tls: ClusterTls { authority: self.ca_file.map(pem), client },
            prefix: self.prefix,
            when_away: self.when_away,
            join_time: millis("cluster.join_timeout_ms", self.join_timeout_ms)?,
            leave_delay: millis("cluster.leave_delay_ms", self.leave_delay_ms)?,
            connect_time: millis("cluster.connect_timeout_ms", self.connect_timeout_ms)?,
            answer_time: millis("cluster.answer_timeout_ms", self.answer_timeout_ms)?,
            ping_interval: millis("cluster.ping_interval_ms", self.ping_interval_ms)?,
            reconnect_wait: millis("cluster.reconnect_ms", self.reconnect_ms)?,
            reconnect_wait_max: millis("cluster.reconnect_max_ms", self.reconnect_max_ms)?,
            outgoing_messages_max: count(
                "cluster.outgoing_messages_max",
                self.outgoing_messages_max,
                1..=1 << 30,
            )?,
            outgoing_bytes_max: bytes(
                "cluster.outgoing_bytes_max",
                self.outgoing_bytes_max,
                1 << 10..=1 << 40,
            )?,
            incoming_bytes_max: bytes(
                "cluster.incoming_bytes_max",
                self.incoming_bytes_max,
                1 << 10..=1 << 40,
            )?,
            nats_pending_max: count(
                "cluster.nats_pending_max",
                self.nats_pending_max,
                16..=1 << 24,
            )?,
            ask_time: millis("cluster.ask_timeout_ms", self.ask_timeout_ms)?,
        };
        Ok(kind.map(|_| config))
    }
}

/// What a URL says of a backplane. The words of an error hold no credentials.
fn backplane(url: &str) -> Result<BackplaneKind, ConfigError> {
    let refuse = |expected: &str| ConfigError::OutOfRange {
        key: "cluster.url",
        value: match url.rsplit_once('@') {
            Some((_, rest)) => format!("\"…@{rest}\""),
            None => format!("\"{url}\""),
        },
        expected: expected.to_owned(),
    };
    let forms = "redis://HOST:PORT, rediss://…, redis+sentinel://HOST:PORT/MASTER, \
                 nats://HOST:PORT or tls://HOST:PORT, with several hosts between commas";
    let (scheme, rest) = url.split_once("://").ok_or_else(|| refuse(forms))?;
    if rest.contains('@') {
        return Err(refuse(
            "without credentials: the user is cluster.user, the password stands in the environment \
             as SWITCHYARD_CLUSTER_PASSWORD or in the file cluster.password_file",
        ));
    }
    let (hosts, path) = match rest.split_once('/') {
        Some((hosts, path)) => (hosts, path),
        None => (rest, ""),
    };
    let read_hosts = |default_port: u16| {
        hosts.split(',').map(|host| read_host(host, default_port)).collect::<Option<Vec<_>>>()
    };
    let is_tls = scheme.starts_with("rediss") || scheme == "tls";
    let kind = match (scheme, path) {
        ("redis" | "rediss", "") => {
            read_hosts(6379).map(|hosts| BackplaneKind::Redis { hosts, is_tls, sentinel: None })
        }
        ("redis+sentinel" | "rediss+sentinel", master) if !master.is_empty() => read_hosts(26379)
            .map(|hosts| BackplaneKind::Redis { hosts, is_tls, sentinel: Some(master.to_owned()) }),
        ("nats" | "tls", "") => read_hosts(4222).map(|hosts| BackplaneKind::Nats { hosts, is_tls }),
        _ => None,
    };
    kind.ok_or_else(|| refuse(forms))
}

/// HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT.
fn read_host(text: &str, default_port: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, after.strip_prefix(':'))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = port.map_or(Some(default_port), |port| port.parse().ok())?;
    (!host.is_empty() && port > 0).then(|| (host.to_owned(), port))
}

fn is_subject_prefix(prefix: &str) -> bool {
    let is_token = |token: &str| {
        !token.is_empty()
            && token.chars().all(|character| {
                !character.is_whitespace()
                    && !character.is_control()
                    && !matches!(character, '*' | '>' | '%' | '$')
            })
    };
    prefix.is_empty() || prefix.split('.').all(is_token)
}

/// The environment's word for the password of the backplane.
const CLUSTER_PASSWORD: &str = "SWITCHYARD_CLUSTER_PASSWORD";

/// What `--engine` takes for the library instead of a file.
const NATIVE: &str = "native";

/// What `--resp` and `--admin` take for no door.
const OFF: &str = "off";

/// A set of shards is held in a machine word, and shard channels double it.
const SHARDS_MAX: usize = 32;

/// From 1 MiB, under which no guest starts, to all that 32 bits can address.
pub(crate) const WASM_MEMORY_BYTES: RangeInclusive<u64> = 1 << 20..=4 << 30;

/// What may be set for plugins, in `[plugins]` and beside each.
pub(crate) const TABLE_ELEMENTS: RangeInclusive<u64> = 1..=10_000_000;
pub(crate) const CORE_INSTANCES: RangeInclusive<u64> = 1..=1_000;
pub(crate) const RESOURCES: RangeInclusive<u64> = 1..=1_000_000;
pub(crate) const RETURNED_BYTES: RangeInclusive<u64> = 1 << 10..=1 << 30;
pub(crate) const STRIKES: RangeInclusive<u64> = 1..=10_000;
/// None is a choice: an instance that is quick to build is built when it is needed.
pub(crate) const SPARES: RangeInclusive<u64> = 0..=8;
pub(crate) const HTTP_RESPONSE_BYTES: RangeInclusive<u64> = 1..=16 << 20;
pub(crate) const HTTP_REQUESTS: RangeInclusive<u64> = 1..=100;
pub(crate) const HTTP_CALLS: RangeInclusive<u64> = 1..=512;

fn address(key: &'static str, value: &str) -> Result<SocketAddr, ConfigError> {
    let value = value
        .strip_prefix("localhost:")
        .map_or_else(|| value.to_owned(), |port| format!("127.0.0.1:{port}"));
    value.parse().map_err(|_| ConfigError::OutOfRange {
        key,
        value: format!("\"{value}\""),
        expected: "an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080".to_owned(),
    })
}

/// A time from one millisecond to one day. Zero never means "unlimited".
pub(crate) fn millis(key: &'static str, value: u64) -> Result<Duration, ConfigError> {
    count(key, value, 1..=86_400_000).map(|_| Duration::from_millis(value))
}

/// A time that a client may wait for what a plugin asks the outside world: shorter
/// than that in which a WebSocket must give a sign of life.
pub(crate) fn http_time(key: &'static str, value: u64) -> Result<Duration, ConfigError> {
    count(key, value, 1..=30_000).map(|_| Duration::from_millis(value))
}

/// A time for which all messages may wait when a plugin is replaced.
pub(crate) fn handover_time(key: &'static str, value: u64) -> Result<Duration, ConfigError> {
    count(key, value, 1..=10_000).map(|_| Duration::from_millis(value))
}

pub(crate) fn bytes(
    key: &'static str,
    value: u64,
    range: RangeInclusive<u64>,
) -> Result<usize, ConfigError> {
    count(key, value, range)
}

pub(crate) fn count(
    key: &'static str,
    value: u64,
    range: RangeInclusive<u64>,
) -> Result<usize, ConfigError> {
    if range.contains(&value) {
        return Ok(value as usize);
    }
    Err(ConfigError::OutOfRange {
        key,
        value: value.to_string(),
        expected: format!("from {} to {}", range.start(), range.end()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_can_be_reached_needs_tokens() {
        let problem = check("[admin]\nlisten = '0.0.0.0:1'").unwrap_err();
        assert!(
            problem.contains("admin.tokens_file") && problem.contains("127.0.0.1"),
            "{problem}"
        );
        assert!(check("[admin]\nlisten = '[::1]:1'").is_ok());
        assert!(check("[admin]\nlisten = 'off'").is_ok_and(|config| config.admin.listen.is_none()));
    }

    fn check(text: &str) -> Result<Config, String> {
        parse(text).map_err(|e| e.to_string())?.check().map_err(|e| e.to_string())
    }

    #[test]
    fn the_example_file_says_the_defaults() {
        let example = include_str!("../../switchyard.example.toml");
        let commented_in: String = example
            .lines()
            .map(|line| line.strip_prefix("#= ").unwrap_or(line).to_owned() + "\n")
            .collect();
        // The one file that is read while the settings are checked.
        let tokens = tempfile::NamedTempFile::new().expect("there is room");
        std::fs::write(&tokens, "ops:0123456789abcdef").expect("it can be written");
        let commented_in = commented_in
            .replace("\"tokens\"", &format!("{:?}", tokens.path().display().to_string()));
        let written = check(example).expect("the example file holds");
        assert_eq!(format!("{written:?}"), format!("{:?}", Config::default()));
        check(&commented_in).expect("what the example file leaves out would hold too");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let problem = check("[http]\nlisten = '127.0.0.1:1'\nport = 3\n").unwrap_err();
        assert!(problem.contains("line 3"), "{problem}");
        assert!(problem.contains("port"), "{problem}");
    }

    #[test]
    fn a_value_out_of_range_says_what_would_be_right() {
        assert_eq!(
            check("[limits]\nname_bytes_max = 0").unwrap_err(),
            "limits.name_bytes_max is 0, but must be from 1 to 1048576"
        );
        assert!(check("[http]\nlisten = 'here'").unwrap_err().contains("such as 127.0.0.1:8080"));
        assert!(check("[outbox]\nbytes_max = 2000\nsoft_bytes = 3000").is_err());
    }

    #[test]
    fn a_backplane_is_named_by_its_url() {
        let check = |url: &str| {
            let config = check(&format!("[cluster]\nurl = '{url}'"))?;
            config.cluster.map(|cluster| cluster.kind).ok_or("none".to_owned())
        };
        let host = |name: &str, port| vec![(name.to_owned(), port)];
        let redis = |hosts, is_tls| Ok(BackplaneKind::Redis { hosts, is_tls, sentinel: None });
        assert_eq!(check("redis://a"), redis(host("a", 6379), false));
        assert_eq!(check("rediss://[::1]:7"), redis(host("::1", 7), true));
        let two = vec![("a".to_owned(), 1), ("b".to_owned(), 2)];
        assert_eq!(check("nats://a:1,b:2"), Ok(BackplaneKind::Nats { hosts: two, is_tls: false }));
        let sentinel = Some("main".to_owned());
        let hosts = host("a", 26379);
        assert_eq!(
            check("redis+sentinel://a/main"),
            Ok(BackplaneKind::Redis { hosts, is_tls: false, sentinel })
        );
        for wrong in ["a:1", "http://a", "redis://", "redis://a:x", "redis://a/1", "nats://a:0"] {
            assert!(check(wrong).unwrap_err().contains("redis://HOST:PORT"), "{wrong}");
        }
    }

    #[test]
    fn credentials_in_a_url_are_refused_and_not_repeated() {
        let problem = check("[cluster]\nurl = 'redis://me:hunter2@a:1'").unwrap_err();
        assert!(problem.contains("SWITCHYARD_CLUSTER_PASSWORD"), "{problem}");
        assert!(!problem.contains("hunter2"), "{problem}");
        assert_eq!(format!("{:?}", Secret("hunter2".to_owned())), "a secret");
    }

    #[test]
    fn flags_override_the_file() {
        let mut raw = parse("[http]\nlisten = '127.0.0.1:1'").expect("valid");
        raw.override_with(&ServeArgs {
            http: Some("localhost:2".to_owned()),
            engine: Some("native".into()),
            ..ServeArgs::default()
        });
        let config = raw.check().expect("valid");
        assert_eq!(config.http.listen.port(), 2);
        assert_eq!(config.engine.source, EngineSource::Native);
    }
}
