//! The TOML file, key for key, with the default of each.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use switchyard_telemetry::log::LogFormat;

use super::listen::RawListen;
use super::units::{Bytes, Millis, MillisOrOff};
use super::{ClientCertificates, OnPark, ProxyProtocol, WhenDisconnected};

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawConfig {
    pub(super) security: RawSecurity,
    pub(super) http: RawHttp,
    pub(super) resp: RawResp,
    pub(super) websocket: RawWebSocket,
    pub(super) limits: RawLimits,
    pub(super) memory: RawMemory,
    pub(super) outbox: RawOutbox,
    pub(super) channels: Vec<RawChannelRule>,
    pub(super) history: RawHistory,
    pub(super) presence: RawPresence,
    pub(super) engine: RawEngine,
    pub(super) plugins: RawPlugins,
    pub(super) admin: RawAdmin,
    pub(super) cluster: RawCluster,
    pub(super) health: RawHealth,
    pub(super) shutdown: RawShutdown,
    pub(super) log: RawLog,
}

/// Declares one table of the file: its keys, their types and their defaults, which are defined only
/// here.
macro_rules! raw_table {
    ($name:ident { $($(#[doc = $why:literal])* $key:ident: $type:ty = $default:expr),* $(,)? }) => {
        #[derive(Debug, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(crate) struct $name {
            $($(#[doc = $why])* pub(crate) $key: $type),*
        }

        impl Default for $name {
            fn default() -> $name {
                $name { $($key: $default),* }
            }
        }
    };
}

raw_table!(RawSecurity {
    open_to_all: bool = false,
    /// The server's user and group.
    unix_socket_mode: String = "0660".to_owned(),
    /// Without proxies, every peer is a client.
    trusted_proxies: Vec<String> = Vec::new(),
    /// The addresses and the information of a cloud's load balancer take some 200 bytes.
    proxy_header_bytes_max: Bytes = Bytes(4 << 10),
});

raw_table!(RawTls {
    certificate: Option<PathBuf> = None,
    key: Option<PathBuf> = None,
    client_ca: Option<PathBuf> = None,
    client_certificates: Option<ClientCertificates> = None,
});

raw_table!(RawHttp {
    /// Loopback: other addresses must be set explicitly.
    listen: RawListen = RawListen::One("127.0.0.1:8080".to_owned()),
    handshake_timeout_ms: Millis = Millis(5_000),
    /// Enough for large cookies and tokens.
    request_bytes_max: Bytes = Bytes(16 << 10),
    handshakes_max: u64 = 512,
    /// The same origin only: others must be set explicitly.
    origins: Vec<String> = Vec::new(),
    /// A client can send any header itself.
    client_address_header: Option<String> = None,
    proxy_protocol: ProxyProtocol = ProxyProtocol::Off,
    tls: RawTls = RawTls::default(),
});

raw_table!(RawResp {
    /// Next to Redis' own port, so that both can run on one machine.
    listen: RawListen = RawListen::One("127.0.0.1:6380".to_owned()),
    /// Enough for 10,000 names of 1 KiB in one SUBSCRIBE.
    request_bytes_max: Bytes = Bytes(16 << 20),
    /// As Redis' `timeout 0`: clients keep connections for an occasional publish.
    idle_timeout_ms: MillisOrOff = MillisOrOff(None),
    proxy_protocol: ProxyProtocol = ProxyProtocol::Off,
    tls: RawTls = RawTls::default(),
});

raw_table!(RawWebSocket {
    /// Below the 30 s after which some proxies and NATs drop a flow.
    ping_interval_ms: Millis = Millis(25_000),
    pong_timeout_ms: Millis = Millis(10_000),
    close_timeout_ms: Millis = Millis(5_000),
    /// Enough for a payload of `limits.payload_bytes_max` in a command. A payload that needs much
    /// escaping needs more.
    message_bytes_max: Bytes = Bytes((1 << 20) + (64 << 10)),
    bad_frames_max: u64 = 5,
});

raw_table!(RawLimits {
    connections_max: u64 = 10_000,
    /// A tenth of the total: enough for an office behind one address.
    connections_per_address_max: u64 = 1_000,
    /// A quarter of `http.handshakes_max`, and as many as are accepted in one go: when an office
    /// reconnects at once, its handshakes are done before the next are accepted.
    handshakes_per_address_max: u64 = 128,
    /// A proxy on this machine is the peer of all its clients' connections.
    uncounted_networks: Vec<String> = vec!["127.0.0.0/8".to_owned(), "::1/128".to_owned()],
    /// A back end publishes that much through one connection; a browser does not.
    commands_per_second_max: u64 = 1_000_000,
    subscriptions_max: u64 = 10_000,
    /// Each pattern may apply to every publication, unlike a channel.
    patterns_max: u64 = 1_000,
    subscriptions_total_max: Option<u64> = None,
    name_bytes_total_max: Option<Bytes> = None,
    name_bytes_per_address_max: Option<Bytes> = None,
    /// About a millisecond for each publication.
    pattern_cost_max: u64 = 500_000,
    pattern_cost_per_address_max: u64 = 1_000_000,
    pattern_cost_total_max: u64 = 2_000_000,
    names_per_command_max: u64 = 10_000,
    /// A back end publishes some thousand messages in one transaction.
    transaction_commands_max: u64 = 10_000,
    /// As much as an outbox.
    listing_bytes_max: Bytes = Bytes(32 << 20),
    name_bytes_max: Bytes = Bytes(1 << 10),
    payload_bytes_max: Bytes = Bytes(1 << 20),
    /// A person's mistyped passwords stay far below it. Only failures count, so that many
    /// clients behind one address may connect at the same time.
    auth_attempts_per_minute_max: u64 = 60,
    attributes_bytes_max: Bytes = Bytes(16 << 10),
    counters_max: u64 = 100_000,
    outbox_bytes_total_max: Option<Bytes> = None,
    outbox_bytes_per_address_max: Option<Bytes> = None,
    input_bytes_total_max: Option<Bytes> = None,
    input_bytes_per_address_max: Option<Bytes> = None,
    /// As nginx' `client_body_timeout`, but for the whole message.
    input_timeout_ms: Millis = Millis(60_000),
});

raw_table!(RawMemory { bytes_max: Option<Bytes> = None });

raw_table!(RawOutbox {
    /// These three are Redis' `client-output-buffer-limit pubsub 32mb 8mb 60`.
    bytes_max: Bytes = Bytes(32 << 20),
    soft_bytes: Bytes = Bytes(8 << 20),
    soft_ms: Millis = Millis(60_000),
});

raw_table!(RawChannelRule {
    r#match: Option<RawPatterns> = None,
    history_messages: Option<u64> = None,
    history_ms: Option<Millis> = None,
    history_idle_ms: Option<Millis> = None,
    presence: bool = false,
    presence_members_max: Option<u64> = None,
});

/// The setting `match` of a channel rule: one pattern, or a list of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged, expecting = "a pattern such as \"chat.*\", or a list of them")]
pub(crate) enum RawPatterns {
    One(String),
    Several(Vec<String>),
}

raw_table!(RawHistory {
    bytes_max: Option<Bytes> = None,
    channels_max: u64 = 100_000,
    /// A client that missed more than a thousand messages fetches its state faster elsewhere.
    resume_messages_max: u64 = 1_000,
    resume_bytes_max: Option<Bytes> = None,
    /// Retries of a publication are sent within seconds; those after an outage, within minutes.
    idempotency_ms: Millis = Millis(300_000),
    idempotency_keys_max: u64 = 100_000,
    directory: Option<PathBuf> = None,
    /// As much as Redis loses with `appendfsync everysec`.
    flush_ms: Millis = Millis(1_000),
    /// Some ten thousand messages.
    flush_bytes_max: Bytes = Bytes(4 << 20),
});

raw_table!(RawPresence {
    members_max: u64 = 100_000,
    /// Some ten for each member.
    watchers_max: u64 = 1_000_000,
    /// Enough for a name and the URL of a picture.
    data_bytes_max: Bytes = Bytes(1 << 10),
    /// Other users see at once that a connection ended.
    grace_ms: Millis = Millis(0),
});

raw_table!(RawEngine {
    file: Option<PathBuf> = None,
    shards: Option<u64> = None,
    /// Listing a million channels uses a fraction of this, and all callers wait for a longer call.
    call_budget_ms: Millis = Millis(500),
    memory_bytes_max: Option<Bytes> = None,
    rebuilds_max: u64 = 5,
    rebuild_window_ms: Millis = Millis(10_000),
    retry_ms: Millis = Millis(1_000),
});

raw_table!(RawPlugins {
    directory: Option<PathBuf> = None,
    cache_directory: Option<PathBuf> = None,
    /// A plugin in Rust needs 1 to 5 MB, one in JavaScript or Python 10 to 30.
    cache_bytes_max: Bytes = Bytes(512 << 20),
    /// Each plugin is called for each message: more of them are a mistake.
    plugins_max: u64 = 64,
    /// On a machine with more processors, starts are quicker, and each needs memory: about thirty
    /// times the size of the component.
    compilations_max: u64 = 4,
    /// The largest plugin that ships takes a quarter of a minute, and on a busy machine several
    /// minutes.
    compile_timeout_ms: Millis = Millis(600_000),
    debounce_ms: Millis = Millis(50),
    poll_ms: Millis = Millis(1_000),
    call_budget_ms: Millis = Millis(10),
    init_budget_ms: Millis = Millis(1_000),
    memory_bytes_max: Option<Bytes> = None,
    log_lines_per_second_max: u64 = 100,
    /// Enough for the functions of a large interpreter.
    table_elements_max: u64 = 100_000,
    /// Python needs thirty.
    core_instances_max: u64 = 128,
    resources_max: u64 = 1_000,
    /// Enough for 256 payloads with 64 KiB in total and a large snapshot, and no more than its
    /// memory.
    returned_bytes_max: Bytes = Bytes(64 << 20),
    /// As for an upload.
    component_bytes_max: Bytes = Bytes(64 << 20),
    /// With the waits between rebuilds, a plugin that fails in every call is parked after half a
    /// minute.
    strikes_max: u64 = 10,
    strikes_window_ms: Millis = Millis(60_000),
    /// A client that is not at fault is hardly ever affected by a failure twice.
    strikes_per_connection_max: u64 = 3,
    /// A message that makes a plugin fail in a call with others uses up two instances: one in that
    /// call, and one when the call is repeated for it alone.
    spares: u64 = 2,
    /// All messages wait for it. A thousand token buckets are written in a millisecond.
    handover_budget_ms: Millis = Millis(50),
    on_park: OnPark = OnPark::Stay,
    /// Half the time that clients wait for a connection.
    admission_timeout_ms: Millis = Millis(5_000),
    /// A client waits for it, and cannot distinguish it from a slow server.
    http_timeout_ms: Millis = Millis(2_000),
    http_response_bytes_max: Bytes = Bytes(64 << 10),
    http_requests_max: u64 = 4,
    /// Each is an instance and a thread.
    http_calls_max: u64 = 32,
    rebuild_backoff_ms: Millis = Millis(100),
    rebuild_backoff_max_ms: Millis = Millis(10_000),
    /// 100,000 in two seconds.
    recheck_names_per_second_max: u64 = 50_000,
});

raw_table!(RawAdmin {
    /// Loopback: other addresses must be set explicitly, with tokens.
    listen: RawListen = RawListen::One("127.0.0.1:8081".to_owned()),
    tokens_file: Option<PathBuf> = None,
    /// Interpreters of other languages are up to a dozen MiB.
    upload_bytes_max: Bytes = Bytes(64 << 20),
    uploads_max: u64 = 2,
    body_bytes_max: Bytes = Bytes(1 << 20),
    request_timeout_ms: Millis = Millis(30_000),
    head_timeout_ms: Millis = Millis(5_000),
    connections_max: u64 = 64,
    /// Half of the total: operators often connect from loopback, and one of them must not use it
    /// all.
    connections_per_address_max: u64 = 32,
    proxy_protocol: ProxyProtocol = ProxyProtocol::Off,
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
    /// Programs that publish there can use the channels' own names.
    prefix: String = String::new(),
    /// Accept: delivering to this node's subscribers is better than not delivering at all.
    when_away: WhenDisconnected = WhenDisconnected::Accept,
    join_timeout_ms: Millis = Millis(1_000),
    leave_delay_ms: Millis = Millis(1_000),
    connect_timeout_ms: Millis = Millis(5_000),
    /// A Redis that saves or loads may not respond for a second or two.
    answer_timeout_ms: Millis = Millis(5_000),
    ping_interval_ms: Millis = Millis(1_000),
    reconnect_ms: Millis = Millis(100),
    reconnect_max_ms: Millis = Millis(5_000),
    /// As much as one node can send in a second.
    outgoing_messages_max: u64 = 100_000,
    outgoing_bytes_max: Bytes = Bytes(64 << 20),
    incoming_bytes_max: Bytes = Bytes(64 << 20),
    nats_pending_max: u64 = 65_536,
    nats_replicas: u64 = 1,
    ask_timeout_ms: Millis = Millis(1_000),
});

raw_table!(RawHealth {
    /// So that frequent requests cost nothing.
    reuse_ms: Millis = Millis(1_000),
    /// The timeout of most health checks.
    timeout_ms: Millis = Millis(1_000),
    /// All nodes lose the backplane at the same time, and then none would be ready.
    ready_needs_backplane: bool = false,
});

raw_table!(RawShutdown {
    /// As long as most balancers take to notice that a node is not ready: two checks.
    grace_ms: Millis = Millis(5_000),
    timeout_ms: Millis = Millis(5_000),
    drain_ms: Millis = Millis(10_000),
    /// Closing one takes less than a millisecond; 10,000 take the 10 s above.
    closes_per_second: u64 = 1_000,
    reconnect_spread_ms: Millis = Millis(5_000),
    /// Enough to connect elsewhere and to subscribe there.
    close_delay_ms: Millis = Millis(1_000),
});

raw_table!(RawLog {
    filter: String = "info".to_owned(),
    format: LogFormat = LogFormat::Text,
    connections: Vec<u64> = Vec::new(),
    /// A few seconds of a busy log.
    queue_lines_max: u64 = 10_000,
    queue_bytes_max: Bytes = Bytes(4 << 20),
    /// A reader of the pipe needs milliseconds, unless it is stalled.
    flush_ms: Millis = Millis(1_000),
});
