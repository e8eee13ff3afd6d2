//! The TOML file, key for key, with the default of each.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::check::OFF;
use super::{ClientCertificates, LogFormat, OnPark, WhenAway};

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
    pub(super) engine: RawEngine,
    pub(super) plugins: RawPlugins,
    pub(super) admin: RawAdmin,
    pub(super) cluster: RawCluster,
    pub(super) health: RawHealth,
    pub(super) shutdown: RawShutdown,
    pub(super) log: RawLog,
}

/// Declares one table of the file: its keys, their types and their defaults,
/// which stand here and nowhere else.
macro_rules! raw_table {
    ($name:ident { $($(#[doc = $why:literal])* $key:ident: $type:ty = $default:expr),* $(,)? }) => {
        #[derive(Debug, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(in crate::config) struct $name {
            $($(#[doc = $why])* pub(in crate::config) $key: $type),*
        }

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
pub(super) enum NumberOrOff {
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
    cache_directory: Option<PathBuf> = None,
    /// A plugin in Rust takes 1 to 5 MB, one in JavaScript or Python 10 to 30.
    cache_bytes_max: u64 = 512 << 20,
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
    uploads_max: u64 = 2,
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
    /// Accept: delivering to this node's subscribers is better than not delivering at all.
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
