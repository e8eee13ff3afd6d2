//! The JSON types of the admin API. The command line uses the same types; `openapi.json` documents
//! them, and a test compares the two.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use switchyard_middleware::declaration::TrapPolicy;
use switchyard_middleware::declaration::{Declaration, PolicySource};
use switchyard_middleware::files::MissingFile;
use switchyard_middleware::stats::{ChangeKind, Failure, Hook, Swap, Verdict};
use switchyard_server::health::Status;
use switchyard_telemetry::histogram::HistogramReading;

/// An error.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct ErrorView {
    pub code: String,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub step: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub plugin: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<String>,
}

/// All plugins.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct PluginsView {
    pub directory: Option<String>,
    pub plugins: Vec<PluginView>,
    pub refused: Vec<RefusedView>,
}

/// One plugin.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct PluginView {
    pub slot: String,
    pub name: String,
    /// Its place in the chain, from 1.
    pub position: usize,
    pub version: String,
    pub own_version: Option<String>,
    pub component_bytes: usize,
    pub file: String,
    pub config_file: Option<String>,
    pub file_missing: Option<MissingFile>,
    pub policy: TrapPolicy,
    pub policy_source: PolicySource,
    pub declared: Declaration,
    pub hooks: Vec<String>,
    pub state: State,
    pub instances: usize,
    pub spares: usize,
    /// One for each instance and each spare; none: it is being rebuilt.
    pub memory_bytes: Vec<Option<usize>>,
    pub isolated_connections: usize,
    #[serde(rename = "asked_again")]
    pub retried_items: u64,
    pub limits: LimitsView,
    pub since_ms: u64,
    pub by: String,
    pub previous: Option<String>,
    pub rebuilds: u64,
    pub rechecks: RechecksView,
    pub stats: Vec<HookView>,
    pub failures: Vec<FailureView>,
}

/// Checks of existing subscriptions, after a plugin was added or changed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct RechecksView {
    pub running: u64,
    #[serde(rename = "asked")]
    pub checked: u64,
    pub ended: u64,
    pub unanswered: u64,
}

/// The state of a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// All its instances are available.
    Running,
    /// An instance is being rebuilt.
    Rebuilding,
    /// It failed too often, and is not called until it is replaced.
    Parked,
}

/// The limits of a plugin.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct LimitsView {
    pub call_budget_ms: u64,
    pub init_budget_ms: u64,
    pub memory_bytes_max: usize,
    pub log_lines_per_second_max: u32,
    pub counters: String,
}

/// The counters of a hook.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct HookView {
    pub hook: Hook,
    pub calls: u64,
    pub items: u64,
    pub faults: u64,
    pub verdicts: Vec<VerdictView>,
    pub time: HistogramView,
}

/// How often a hook made a decision.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct VerdictView {
    pub verdict: Verdict,
    pub count: u64,
}

/// A histogram of times.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct HistogramView {
    pub count: u64,
    pub sum_us: f64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub buckets: Vec<BucketView>,
}

/// How many times were over the previous bound and not over this one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct BucketView {
    pub up_to_us: Option<f64>,
    pub count: u64,
}

/// A failure of a plugin.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct FailureView {
    pub at_ms: u64,
    pub plugin: String,
    pub step: String,
    pub message: String,
    pub file: Option<String>,
}

/// The last refusal in a slot.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct RefusedView {
    pub slot: String,
    pub at_ms: u64,
    pub plugin: String,
    pub step: String,
    pub message: String,
    pub file: String,
}

/// A change that was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct SwapView {
    pub at_ms: u64,
    pub by: String,
    #[serde(rename = "deed")]
    pub kind: ChangeKind,
    pub slot: Option<String>,
    pub from: Option<String>,
    pub to: Option<String>,
    pub pause_us: u64,
}

/// The engine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct EngineView {
    pub version: String,
    pub own_version: Option<String>,
    pub component_bytes: Option<usize>,
    pub origin: String,
    pub shards: usize,
    pub since_ms: u64,
    pub by: String,
    pub previous: Option<String>,
}

/// Some of the connections.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct ConnectionsView {
    pub count: usize,
    pub connections: Vec<ConnectionView>,
    /// The value of `after` for the next page; none: this is the last one.
    pub next_after: Option<u64>,
}

/// One connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct ConnectionView {
    pub id: u64,
    pub door: String,
    pub address: String,
    /// The attribute `user`.
    #[serde(default)]
    pub user: Option<String>,
    /// By CLIENT SETNAME.
    #[serde(default)]
    pub name: Option<String>,
    pub opened_ms: u64,
    pub channels: usize,
    pub patterns: usize,
    pub shard_channels: usize,
    pub outbox_bytes: usize,
    pub input_bytes: usize,
    /// Only in the view of a single connection.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub attributes: Option<BTreeMap<String, String>>,
    /// Its subscriptions; only in the view of a single connection.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub names: Option<NamesView>,
}

/// How many connections a request closed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct ClosedView {
    pub closed: usize,
    pub has_more: bool,
}

/// The subscriptions of a connection, the first thousand of each kind.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct NamesView {
    pub channels: Vec<Name>,
    pub patterns: Vec<Name>,
    pub shard_channels: Vec<Name>,
}

/// A name, as clients write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Name {
    /// UTF-8 text.
    Text(String),
    /// Other bytes.
    Bytes {
        /// Its bytes.
        base64: String,
    },
}

/// The channels with the most subscribers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct TopView {
    pub channels: Vec<SubscribersView>,
    /// How many channels have subscribers. None: the engine is not available now.
    pub count: Option<u64>,
    pub is_whole: bool,
    pub counted_ms: u64,
}

/// The histories of channels.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct HistoriesView {
    pub in_backplane: bool,
    pub channels: usize,
    pub messages: usize,
    pub bytes: usize,
    pub evicted: EvictedView,
    pub page: Vec<StreamView>,
    pub next: Option<Name>,
}

/// What ended because of a bound.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct EvictedView {
    pub idle: u64,
    pub streams: u64,
    pub messages: u64,
}

/// The history of one channel.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct StreamView {
    pub channel: Name,
    pub messages: usize,
    pub bytes: usize,
    pub listeners: u32,
    pub position: String,
}

/// The messages of a history that was ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct PurgedView {
    pub purged: u64,
}

/// The channels with members or watchers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct RoomsView {
    pub channels: usize,
    pub members: usize,
    pub watchers: usize,
    pub bytes: usize,
    pub page: Vec<RoomView>,
    pub next: Option<Name>,
}

/// The members of one channel, in numbers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct RoomView {
    pub channel: Name,
    pub members: usize,
    pub users: usize,
    pub watchers: usize,
}

/// The members of one channel.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct MembersView {
    pub count: usize,
    pub users: usize,
    pub members: Vec<MemberView>,
    pub next: Option<u64>,
}

/// A member.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct MemberView {
    pub connection: u64,
    pub user: Option<String>,
    pub data: serde_json::Value,
}

/// The server as a whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct ServerView {
    pub version: String,
    pub websocket: String,
    pub resp: Option<String>,
    pub addresses: Vec<String>,
}

/// The counters of the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct StatsView {
    pub version: String,
    pub uptime_ms: u64,
    pub connections: usize,
    pub connections_total: u64,
    pub connections_rejected: u64,
    pub outbox_overflows: u64,
    pub commands: u64,
    pub publications: u64,
    pub deliveries: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    /// None: the engine is not available now.
    pub channels: Option<u64>,
    pub shard_channels: Option<u64>,
    pub patterns: Option<u64>,
    pub engine: String,
    pub plugins: usize,
    pub traces: usize,
    pub swap_pauses: HistogramView,
    pub swaps: Vec<SwapView>,
}

/// How much memory is used for each purpose.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct MemoryView {
    pub resident_bytes: u64,
    /// None: there is no bound.
    pub bytes_max: Option<usize>,
    pub source: Option<String>,
    pub budgets: Vec<BudgetView>,
    pub closed: Vec<BoundView>,
    pub connections: Vec<HolderView>,
    pub addresses: Vec<HolderView>,
}

/// The state of a budget.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct BudgetView {
    pub budget: String,
    pub used_bytes: usize,
    pub limit_bytes: usize,
}

/// How many connections were closed for a bound.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct BoundView {
    pub setting: String,
    pub closed: u64,
}

/// The memory of one connection, or of all connections of one address.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct HolderView {
    /// None: all connections of the address.
    pub connection: Option<u64>,
    pub address: String,
    pub outbox_bytes: usize,
    pub input_bytes: usize,
    pub name_bytes: usize,
    /// None: little waits, or this is an address.
    pub stalled_ms: Option<u64>,
}

/// The log filter.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct LogView {
    pub filter: String,
    pub format: String,
    pub followed: Vec<u64>,
    pub lines_lost: u64,
    pub problem: Option<String>,
}

/// A change of the log filter; absent members stay unchanged.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct LogBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub follow: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unfollow: Vec<u64>,
}

/// That the server answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct AliveView {
    pub status: Status,
}

/// The health of the server, part by part.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct HealthView {
    pub status: Status,
    pub ready: bool,
    pub draining: bool,
    pub problems: Vec<String>,
    pub age_ms: u64,
    pub took_us: u64,
    pub shards: Vec<PartView>,
    pub plugins: Vec<PartView>,
    pub guards: Vec<PartView>,
    pub backplane: Option<PartView>,
    pub log: PartView,
    pub tasks: Vec<PartView>,
    pub memory: PartView,
}

/// The health of one part.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct PartView {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    pub status: Status,
    pub problem: Option<String>,
}

/// One line of a trace.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub enum TraceLine {
    /// The trace has started.
    Began,
    /// A plugin's decision.
    Said(Box<TraceEventView>),
    /// This many lines were dropped, because they came too fast.
    Dropped { count: u64 },
    /// The last line.
    Ended { why: String },
}

/// A plugin's decision about one item.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct TraceEventView {
    pub at_ms: u64,
    pub connection: u64,
    pub action: String,
    pub channel: Option<Name>,
    pub channel_after: Option<Name>,
    pub plugin: String,
    pub hook: Hook,
    pub verdict: Verdict,
    pub code: Option<String>,
    pub message: Option<String>,
    pub took_us: f64,
    pub items: usize,
    pub bytes_before: Option<usize>,
    pub bytes_after: Option<usize>,
    pub recipients_before: Option<usize>,
    pub recipients_after: Option<usize>,
}

/// An uploaded component: `path` or `wasm`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct OfferBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// In base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wasm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
}

/// The new place: one of these.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct MoveBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// Other settings, or those in the plugin's file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct ReloadBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
}

/// How many nodes responded.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct NodesView {
    pub answered: usize,
    pub unavailable: usize,
}

/// Channels with subscribers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct ChannelsView {
    pub channels: Vec<Name>,
    pub is_cut: bool,
    pub nodes: NodesView,
}

/// The subscriber counts of channels.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct CountsView {
    pub counts: Vec<SubscribersView>,
    pub nodes: NodesView,
}

/// The subscriber count of one channel.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct SubscribersView {
    pub channel: Name,
    pub subscribers: u64,
}

/// The number of patterns.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "openapi.json documents them")]
pub struct PatternsView {
    pub patterns: u64,
    pub nodes: NodesView,
}

/// No body.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmptyBody {}

impl Name {
    /// A name that need not be UTF-8.
    pub fn new(bytes: &[u8]) -> Name {
        match std::str::from_utf8(bytes) {
            Ok(text) => Name::Text(text.to_owned()),
            Err(_) => Name::Bytes { base64: BASE64_STANDARD.encode(bytes) },
        }
    }
}

impl HistogramView {
    /// The view of a reading.
    pub fn new(reading: &HistogramReading) -> HistogramView {
        let us = |time: Duration| time.as_nanos() as f64 / 1_000.0;
        let bounds = HistogramReading::bounds().into_iter().map(|bound| Some(us(bound)));
        HistogramView {
            count: reading.count(),
            sum_us: us(reading.sum),
            p50_us: reading.quantile(0.5).map(us),
            p99_us: reading.quantile(0.99).map(us),
            buckets: bounds
                .chain([None])
                .zip(reading.counts)
                .map(|(up_to_us, count)| BucketView { up_to_us, count })
                .collect(),
        }
    }
}

impl From<&Swap> for SwapView {
    fn from(swap: &Swap) -> SwapView {
        SwapView {
            at_ms: unix_ms(swap.at),
            by: swap.by.name().to_owned(),
            kind: swap.kind,
            slot: swap.slot.clone(),
            from: swap.from.as_deref().map(str::to_owned),
            to: swap.to.as_deref().map(str::to_owned),
            pause_us: swap.pause.as_micros() as u64,
        }
    }
}

impl From<&Failure> for FailureView {
    fn from(failure: &Failure) -> FailureView {
        FailureView {
            at_ms: unix_ms(failure.at),
            plugin: failure.plugin.as_ref().to_owned(),
            step: failure.step.to_owned(),
            message: failure.problem.clone(),
            file: failure.file.as_ref().map(|file| file.display().to_string()),
        }
    }
}

/// A moment, in milliseconds since 1970.
pub fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
