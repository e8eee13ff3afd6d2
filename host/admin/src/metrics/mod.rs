//! The metrics page for Prometheus.
//!
//! This module counts nothing: each scrape reads the counters where they are, and visits each
//! connection once. Names and units follow Prometheus' conventions; docs/monitoring.md explains
//! them. This module does not know HTTP.

mod history;
mod history_store;
mod page;
mod process;

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text, text};
use prometheus_client::registry::Registry;

use page::{NONE, Page};
use switchyard_backplane::{Backplane, State as BackplaneState};
use switchyard_hub::connections::Connections;
use switchyard_hub::encoding::Encoding;
use switchyard_middleware::plugin;
use switchyard_middleware::stats::Hook;
use switchyard_middleware::{Middleware, plugin::Plugin};
use switchyard_server::live_config::DoorState;
use switchyard_server::memory_usage::usage;
use switchyard_server::session::Services;
use switchyard_telemetry::log;
use switchyard_telemetry::panics;
use switchyard_telemetry::stats::{Stats, load};
use switchyard_types::bound::Bound;
use switchyard_types::command::{Ending, Kind, Space};

/// The format of a scrape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// Its `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => prometheus_text::CONTENT_TYPE,
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The sources of the metrics.
#[derive(Clone)]
pub struct Metrics {
    /// The counters.
    pub services: Services,
    /// The doors that are open.
    pub doors: Vec<Arc<DoorState>>,
    /// The limit of pending handshakes at each.
    pub handshakes_max: usize,
    /// The admin listener: its connections, and the outcomes of past ones.
    pub admin: AdminConnections,
    /// Whether the server is shutting down.
    pub is_draining: bool,
}

impl Metrics {
    /// All metrics, as of now. Blocks: it waits for instances of plugins and engines, for as long
    /// as one of their calls may take.
    pub fn scrape(&self, format: Format) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self.clone()));
        let mut written = String::new();
        match format {
            Format::Prometheus => prometheus_text::encode(&mut written, &registry),
            Format::OpenMetrics => text::encode(&mut written, &registry),
        }
        .expect("a string takes all that is written");
        written
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(&mut encoder);
        let Services { hub, middleware, stats, limits, backplane, supervisor, .. } = &self.services;
        page.gauges(
            "switchyard_build_info",
            "Which version this is: always 1.",
            [([("version", env!("CARGO_PKG_VERSION"))], 1.0)],
        )?;
        page.gauge(
            "switchyard_draining",
            "1 while the server is shutting down and rejects new connections, else 0.",
            f64::from(u8::from(self.is_draining)),
        )?;
        self.doors(&mut page, stats)?;
        page.gauge(
            "switchyard_connections_limit",
            "How many connections there may be at once.",
            limits.connections_max() as f64,
        )?;
        connections(&mut page, hub.connections())?;
        history::history(&mut page, hub)?;
        history_store::history_store(&mut page, hub)?;
        memory(&mut page, &self.services)?;
        commands(&mut page, stats)?;
        self.hub(&mut page)?;
        plugins(&mut page, middleware)?;
        if let Some(backplane) = backplane {
            write_backplane(&mut page, backplane)?;
        }
        page.counters(
            "switchyard_log_lines_lost",
            "Lines of the log that were dropped, or could not be written.",
            [(NONE, log::lost())],
        )?;
        page.counters(
            "switchyard_panics",
            "Panics in the server: each is a defect, and in the log.",
            [(NONE, panics::count())],
        )?;
        page.counters(
            "switchyard_task_restarts",
            "How often one of the server's own tasks ended and was started again, by task.",
            supervisor.restarts().iter().map(|(task, count)| ([("task", &**task)], *count)),
        )?;
        process::write(&mut page, stats.started_at)
    }
}

/// The counters of the admin listener.
#[derive(Debug, Clone, Copy, Default)]
pub struct AdminConnections {
    /// Connections that are open.
    pub open: usize,
    /// Connections closed at once, because their address was at its share.
    pub over_share: u64,
    /// Idle connections that were closed for new ones.
    pub dropped: u64,
    /// Connections closed because they have no PROXY protocol header.
    pub unproxied: u64,
}

impl Metrics {
    fn doors(&self, page: &mut Page<'_, '_>, stats: &Stats) -> fmt::Result {
        let tls = |door: &DoorState| if door.tls.is_some() { "true" } else { "false" };
        let name = |door: &DoorState| ("door", door.stats.name());
        page.counters(
            "switchyard_connections_accepted",
            "Connections that were admitted, by door.",
            self.doors.iter().map(|door| ([name(door), ("tls", tls(door))], door.stats.accepted())),
        )?;
        page.counters(
            "switchyard_connections_refused",
            "Connections that were rejected, by door and reason.",
            self.doors.iter().flat_map(|door| {
                let refused = door.stats.refused();
                refused.map(|(why, count)| ([name(door), ("reason", why.name())], count))
            }),
        )?;
        page.counters(
            "switchyard_connections_unused",
            "Connections that ended before their client sent a byte, by door.",
            self.doors.iter().map(|door| ([name(door)], door.stats.unused())),
        )?;
        page.gauges(
            "switchyard_handshakes",
            "Pending handshakes, by door.",
            self.doors.iter().map(|door| ([name(door)], door.handshakes.occupied() as f64)),
        )?;
        page.gauge(
            "switchyard_handshakes_limit",
            "How many handshakes may be pending at each door.",
            self.handshakes_max as f64,
        )?;
        page.counters(
            "switchyard_handshake_waits",
            "How often accepting was paused because the handshake limit was reached.",
            self.doors.iter().map(|door| ([name(door)], door.stats.handshake_waits())),
        )?;
        page.gauge(
            "switchyard_admin_connections",
            "Connections of the admin listener.",
            self.admin.open as f64,
        )?;
        page.counters(
            "switchyard_admin_connections_refused",
            "Connections that the admin listener closed without serving them, by reason.",
            [
                ("share", self.admin.over_share),
                ("dropped", self.admin.dropped),
                ("proxy_protocol", self.admin.unproxied),
            ]
            .map(|(reason, count)| ([("reason", reason)], count)),
        )?;
        let [failed, refused] = self.services.auth_attempts.counts();
        page.counters(
            "switchyard_auth_failures",
            "Attempts to authenticate that failed, with AUTH or when a client connected.",
            [(NONE, failed)],
        )?;
        page.counters(
            "switchyard_auth_refused",
            "Attempts to authenticate, or to connect, that were refused because too many had failed.",
            [(NONE, refused)],
        )?;
        page.counters(
            "switchyard_accept_failures",
            "How often a connection could not be accepted, by door; mostly for want of file \
             descriptors.",
            self.doors
                .iter()
                .map(|door| (door.stats.name(), door.stats.not_accepted()))
                .chain([("admin", load(&stats.admin_not_accepted))])
                .map(|(door, count)| ([("door", door)], count)),
        )?;
        let lost = [("lost", load(&stats.lost))];
        page.counters(
            "switchyard_connections_closed",
            "Connections that ended, by reason; lost: without a close handshake.",
            stats
                .closed_by_reason()
                .chain(lost)
                .map(|(reason, count)| ([("reason", reason)], count)),
        )
    }

    fn hub(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        let hub = &self.services.hub;
        let stats = hub.stats();
        page.counters(
            "switchyard_publications",
            "Publications that were delivered to subscribers on this node.",
            [(NONE, stats.publications())],
        )?;
        page.counters(
            "switchyard_deliveries",
            "Deliveries that publications made: one for each channel or pattern of a connection \
             that matched.",
            [(NONE, stats.deliveries())],
        )?;
        let channels = [("channels", Space::Channels), ("shard_channels", Space::ShardChannels)];
        page.gauges(
            "switchyard_channels",
            "Channels with subscribers, by name space; absent while the engine is not \
             available.",
            channels.into_iter().filter_map(|(name, space)| {
                Some(([("space", name)], hub.channel_count(space).ok()? as f64))
            }),
        )?;
        page.gauges(
            "switchyard_patterns",
            "Distinct patterns with subscribers; absent while the engine is not available.",
            hub.pattern_count().ok().map(|count| (NONE, count as f64)),
        )?;
        let holdings = hub.holdings();
        let (_, name_bytes) = holdings.total();
        let limits = holdings.limits();
        page.gauge(
            "switchyard_subscriptions_limit",
            "How many subscriptions there may be in all.",
            limits.subscriptions_total_max as f64,
        )?;
        page.gauge(
            "switchyard_name_bytes",
            "What the names of all subscriptions count, in bytes.",
            name_bytes as f64,
        )?;
        page.gauge(
            "switchyard_name_bytes_limit",
            "How much the names of all subscriptions may count, in bytes.",
            limits.name_bytes_total_max as f64,
        )?;
        page.gauge(
            "switchyard_pattern_cost",
            "How many steps matching one publication against the patterns may take.",
            holdings.steps_per_publication() as f64,
        )?;
        page.gauge(
            "switchyard_pattern_cost_limit",
            "How many steps it may take at most.",
            limits.pattern_cost_total_max as f64,
        )?;
        page.counters(
            "switchyard_subscriptions_refused",
            "Commands refused because of a limit on names or patterns over several subscriptions, \
             by limit.",
            holdings.refused().map(|(excess, count)| ([("limit", excess.key())], count)),
        )?;
        page.gauges(
            "switchyard_engine_info",
            "Which engine is in use: always 1.",
            [([("version", hub.engine_version())], 1.0)],
        )?;
        page.gauges(
            "switchyard_engine_shard_up",
            "Whether a shard has an engine: 1, or 0 until it is rebuilt.",
            stats
                .shards_up()
                .enumerate()
                .map(|(number, is_up)| ([("shard", number as u64)], f64::from(u8::from(is_up)))),
        )?;
        let calls: Vec<_> = stats.calls().collect();
        page.histograms(
            "switchyard_engine_call_seconds",
            "How long calls of the engine took, by function.",
            calls
                .iter()
                .filter(|(_, time, _)| time.count() > 0)
                .map(|(call, time, _)| ([("call", call.name())], *time)),
        )?;
        page.counters(
            "switchyard_engine_faults",
            "Calls of the engine that trapped or overran their budget, by function.",
            calls.iter().map(|(call, _, faults)| ([("call", call.name())], *faults)),
        )?;
        page.histograms(
            "switchyard_engine_rebuild_seconds",
            "How long it took to rebuild the engine of a shard after it failed.",
            [(NONE, stats.rebuilds())],
        )
    }
}

/// Visits each connection once.
fn connections(page: &mut Page<'_, '_>, connections: &Connections) -> fmt::Result {
    let mut by_encoding = vec![0_u64; Encoding::all().count()];
    let mut subscriptions = [0_u64; 3];
    let (mut outbox_bytes, mut largest) = (0_u64, 0_u64);
    for connection in connections.opened_ones() {
        if let Some(count) = by_encoding.get_mut(usize::from(connection.encoding().index())) {
            *count += 1;
        }
        let held = connection.subscriptions();
        let kinds = [Kind::Channel, Kind::Pattern, Kind::Shard];
        for (count, kind) in subscriptions.iter_mut().zip(kinds) {
            *count += held.of(kind).len() as u64;
        }
        drop(held);
        let bytes = connection.outbox.bytes() as u64;
        outbox_bytes += bytes;
        largest = largest.max(bytes);
    }
    page.gauges(
        "switchyard_connections",
        "Connections that are open, by protocol.",
        Encoding::all()
            .zip(by_encoding)
            .map(|(encoding, count)| ([("protocol", encoding.encoder().name())], count as f64)),
    )?;
    page.gauges(
        "switchyard_subscriptions",
        "What connections listen to, by kind: one for each name of each connection.",
        ["channel", "pattern", "shard_channel"]
            .into_iter()
            .zip(subscriptions)
            .map(|(kind, count)| ([("kind", kind)], count as f64)),
    )?;
    page.gauge(
        "switchyard_outbox_bytes",
        "What waits to be sent to all connections.",
        outbox_bytes as f64,
    )?;
    page.gauge(
        "switchyard_outbox_largest_bytes",
        "What waits to be sent to the connection with the most.",
        largest as f64,
    )
}

fn memory(page: &mut Page<'_, '_>, services: &Services) -> fmt::Result {
    let budgets = usage(services, 0).budgets;
    let memory = services.hub.connections().memory();
    page.gauges(
        "switchyard_memory_limit_bytes",
        "How much memory may be used, by budget; all: by the whole server.",
        budgets
            .iter()
            .map(|reading| (reading.name, reading.limit))
            .chain(memory.settings().map(|settings| ("all", settings.budget.bytes_max)))
            .map(|(budget, bytes)| ([("budget", budget)], bytes as f64)),
    )?;
    page.gauges(
        "switchyard_memory_used_bytes",
        "How much memory is used, by budget. What is sent to many counts once.",
        budgets.iter().map(|reading| ([("budget", reading.name)], reading.used as f64)),
    )?;
    page.counters(
        "switchyard_memory_closed",
        "Connections that were closed to stay within a bound over several connections, by bound.",
        Bound::ALL.map(|bound| ([("bound", bound.name())], memory.closed(bound))),
    )
}

fn commands(page: &mut Page<'_, '_>, stats: &Stats) -> fmt::Result {
    page.counters(
        "switchyard_outbox_overflows",
        "Connections that were closed because their outbox was full.",
        [(NONE, load(&stats.outbox_overflows))],
    )?;
    page.counters(
        "switchyard_outbox_overflow_bytes",
        "Bytes that were queued in their outboxes and dropped.",
        [(NONE, load(&stats.outbox_overflow_bytes))],
    )?;
    // Combinations that never occur are many, so they are left out.
    let is_shown = |(_, outcome, count): &(_, Ending, u64)| *count > 0 || *outcome == Ending::Ok;
    page.counters(
        "switchyard_commands",
        "Commands, by verb and result; the verb (none) is for invalid or rate-limited frames.",
        stats.commands().filter(is_shown).map(|(verb, outcome, count)| {
            ([("verb", verb.name()), ("result", outcome.name())], count)
        }),
    )?;
    let [_, read, written] = stats.totals();
    page.counters(
        "switchyard_received_bytes",
        "Bytes that came from clients, without handshakes and TLS.",
        [(NONE, read)],
    )?;
    page.counters(
        "switchyard_sent_bytes",
        "Bytes that went to clients, without handshakes and TLS.",
        [(NONE, written)],
    )
}

/// A plugin and its slot.
struct Slot {
    slot: String,
    plugin: std::sync::Arc<Plugin>,
}

impl Slot {
    /// The counters of the hooks that were called.
    fn hooks(&self) -> impl Iterator<Item = Hook> {
        let stats = &self.plugin.stats;
        Hook::ALL.into_iter().filter(move |hook| {
            let stats = stats.of(*hook);
            let [calls, _, faults] = stats.totals();
            calls + faults > 0 || stats.verdicts().any(|(_, count)| count > 0)
        })
    }
}

fn plugins(page: &mut Page<'_, '_>, middleware: &Middleware) -> fmt::Result {
    let plugins = middleware.chain().plugins().to_vec();
    let missing = middleware.missing_files();
    let slots: Vec<Slot> =
        plugins.into_iter().map(|plugin| Slot { slot: plugin.slot(), plugin }).collect();
    let by_hook = || {
        slots.iter().flat_map(|slot| slot.hooks().map(move |hook| (slot, hook))).map(
            |(slot, hook)| {
                ([("slot", slot.slot.as_str()), ("hook", hook.name())], slot.plugin.stats.of(hook))
            },
        )
    };
    page.gauges(
        "switchyard_plugin_info",
        "Which plugin is in a slot: always 1.",
        slots.iter().map(|Slot { slot, plugin }| {
            let config = &plugin.config;
            let labels = [
                ("slot", slot.as_str()),
                ("name", config.name.as_str()),
                ("version", config.version.as_str()),
            ];
            (labels, 1.0)
        }),
    )?;
    page.gauges(
        "switchyard_plugin_state",
        "How a plugin is: 1 for the state that it is in.",
        slots.iter().flat_map(|Slot { slot, plugin }| {
            let now = match plugin.state() {
                plugin::State::Running => "running",
                plugin::State::Rebuilding { .. } => "rebuilding",
                plugin::State::Parked { .. } => "parked",
            };
            ["running", "rebuilding", "parked"].map(|state| {
                ([("slot", slot.as_str()), ("state", state)], f64::from(u8::from(state == now)))
            })
        }),
    )?;
    page.gauges(
        "switchyard_plugin_memory_bytes",
        "What the memories of a plugin's instances hold.",
        slots.iter().map(|Slot { slot, plugin }| {
            let bytes: usize = plugin.memory_bytes().into_iter().flatten().sum();
            ([("slot", slot.as_str())], bytes as f64)
        }),
    )?;
    page.counters(
        "switchyard_plugin_rebuilds",
        "How often an instance of a plugin was built again after a failure.",
        slots
            .iter()
            .map(|Slot { slot, plugin }| ([("slot", slot.as_str())], plugin.stats.rebuilds())),
    )?;
    let rechecks =
        || slots.iter().map(|Slot { slot, plugin }| (slot, plugin.stats.rechecks().read()));
    page.counters(
        "switchyard_plugin_rechecked",
        "Existing subscriptions that were checked because a plugin came or changed, by result.",
        rechecks().flat_map(|(slot, read)| {
            let kept = read.checked.saturating_sub(read.ended);
            [("kept", kept), ("ended", read.ended), ("unanswered", read.unanswered)]
                .map(|(result, count)| ([("slot", slot.as_str()), ("result", result)], count))
        }),
    )?;
    page.gauges(
        "switchyard_plugin_rechecks",
        "Checks of existing subscriptions that run now.",
        rechecks().map(|(slot, read)| ([("slot", slot.as_str())], read.running as f64)),
    )?;
    page.counters(
        "switchyard_plugin_items_asked_again",
        "Items for which a plugin was called again, because a call with several items failed.",
        slots
            .iter()
            .map(|Slot { slot, plugin }| ([("slot", slot.as_str())], plugin.stats.items_retried())),
    )?;
    page.counters(
        "switchyard_plugin_isolations",
        "How often a connection made a plugin fail repeatedly, and the plugin was not asked about \
         it for a while.",
        slots
            .iter()
            .map(|Slot { slot, plugin }| ([("slot", slot.as_str())], plugin.stats.isolations())),
    )?;
    page.gauges(
        "switchyard_plugin_file_missing",
        "Whether a file of a plugin in force is gone from the plugin directory: 1 or 0.",
        slots.iter().map(|Slot { slot, .. }| {
            ([("slot", slot.as_str())], f64::from(u8::from(missing.contains_key(slot))))
        }),
    )?;
    page.histograms(
        "switchyard_plugin_call_seconds",
        "How long calls of a plugin's hooks took.",
        by_hook().map(|(labels, stats)| (labels, stats.time.read())),
    )?;
    page.counters(
        "switchyard_plugin_items",
        "Items that a plugin's hooks were called for: one call takes a list.",
        by_hook().map(|(labels, stats)| {
            let [_, items, _] = stats.totals();
            (labels, items)
        }),
    )?;
    page.counters(
        "switchyard_plugin_verdicts",
        "What a plugin's hooks said, or its policy in their place.",
        by_hook().flat_map(|([slot, hook], stats)| {
            stats
                .verdicts()
                .map(move |(verdict, count)| ([slot, hook, ("verdict", verdict.name())], count))
        }),
    )?;
    page.counters(
        "switchyard_plugin_faults",
        "Calls of a plugin's hooks that trapped, overran their budget or broke the contract.",
        by_hook().map(|(labels, stats)| {
            let [_, _, faults] = stats.totals();
            (labels, faults)
        }),
    )?;
    if let Some((cached, compiled)) = middleware.cache_counts() {
        page.counters(
            "switchyard_compilations",
            "Components that were compiled, or loaded from the cache of compiled components.",
            [("cached", cached), ("compiled", compiled)]
                .map(|(result, count)| ([("result", result)], count as u64)),
        )?;
    }
    page.gauge(
        "switchyard_plugins_refused",
        "Files in the plugin directory that were refused, and are not in use.",
        middleware.refused().len() as f64,
    )?;
    page.histograms(
        "switchyard_swap_pause_seconds",
        "For how long a change of the chain or of the engine held messages up, by what it did.",
        middleware.swaps().pauses_by_kind().map(|(kind, pauses)| ([("kind", kind.name())], pauses)),
    )?;
    page.gauge(
        "switchyard_traces",
        "How many look at single messages.",
        middleware.tracer().count() as f64,
    )
}

fn write_backplane(page: &mut Page<'_, '_>, backplane: &Backplane) -> fmt::Result {
    let now = backplane.state();
    page.gauges(
        "switchyard_backplane_state",
        "How this node stands to the backplane: 1 for the state that it is in.",
        [BackplaneState::Disconnected, BackplaneState::Restoring, BackplaneState::Ready]
            .map(|state| ([("state", state.label())], f64::from(u8::from(state == now)))),
    )?;
    page.gauge(
        "switchyard_backplane_waiting_publications",
        "Publications that wait to be sent to the backplane.",
        backplane.waiting() as f64,
    )?;
    for (name, value) in backplane.stats().all() {
        page.counters(&format!("switchyard_{name}"), backplane_help(name), [(NONE, value)])?;
    }
    Ok(())
}

/// The help text of a backplane counter.
fn backplane_help(name: &str) -> &'static str {
    match name {
        "backplane_sent" => "Publications that the backplane has.",
        "backplane_unsent_away" => {
            "Publications accepted for this node alone while the backplane was disconnected."
        }
        "backplane_unsent_full" => {
            "Publications accepted for this node alone because the queue to the backplane was full."
        }
        "backplane_unsent_refused" => "Publications that the backplane would not take.",
        "backplane_uncertain" => {
            "Publications in flight when the connection failed; the backplane may have them."
        }
        "backplane_refused" => "Publications refused to their publishers for want of a backplane.",
        "backplane_received" => "Messages received from other nodes.",
        "backplane_echoes" => "Own messages and further copies that came back and were dropped.",
        "backplane_oversized" => "Messages from other nodes over the limits of this one.",
        "backplane_unmapped" => "Messages on subjects that no channel is written as.",
        "backplane_undelivered" => {
            "Messages from other nodes that a plugin or a failing engine kept from delivery."
        }
        "backplane_overrun" => "Messages that were dropped because they were not read in time.",
        "backplane_joined" => "Names that were listened to on the backplane, each time.",
        "backplane_left" => "Names that were given up on the backplane.",
        "backplane_unlistenable" => "Names that cannot be listened to on this backplane.",
        "backplane_late_joins" => {
            "Subscriptions acknowledged before the backplane had confirmed them."
        }
        "backplane_reconnects" => "How often the backplane came back.",
        "backplane_caught_up" => {
            "Messages that were missed, and then read from the histories and delivered."
        }
        "backplane_lost_streams" => {
            "How often messages of a channel were missed that are gone: its subscribers were closed."
        }
        _ => "A count of the backplane.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use switchyard_backplane::BackplaneStats;

    #[test]
    fn every_counter_of_the_backplane_is_explained() {
        for (name, _) in BackplaneStats::default().all() {
            assert_ne!(backplane_help(name), backplane_help("no such counter"), "{name}");
        }
    }
}
