//! Formats responses as tables.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::terminal::output::harmless;
use switchyard_admin::admin::view::{
    ChannelsView, ConnectionView, ConnectionsView, CountsView, EngineView, EvictedView,
    FailureView, HistogramView, HistoriesView, HookView, LogView, Name, NamesView, NodesView,
    PatternsView, PluginView, PluginsView, RechecksView, RoomView, RoomsView, State, StreamView,
    SwapView, TopView, TraceEventView, unix_ms,
};
use switchyard_middleware::declaration::PolicySource;
use switchyard_middleware::files::MissingFile;
use switchyard_middleware::stats::ChangeKind;

/// Columns with titles, as wide as their content.
fn table<const N: usize>(heads: [&str; N], rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| {
        let of = |row: &[String; N]| row.get(column).map_or(0, |cell| cell.chars().count());
        let widest = rows.iter().map(of).max().unwrap_or(0);
        widest.max(heads.get(column).map_or(0, |head| head.len()))
    });
    let mut text = String::new();
    for row in [heads.map(str::to_owned)].iter().chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _never_fails = write!(line, "{cell:width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Names and values, one per line.
fn list<const N: usize>(pairs: [(&str, String); N]) -> String {
    let lines = pairs.iter().map(|(name, value)| format!("{name:16} {value}"));
    lines.map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// All plugins.
pub fn plugins(view: &PluginsView) -> String {
    let row = |plugin: &PluginView| {
        let items: u64 = plugin.stats.iter().map(|hook| hook.items).sum();
        let faults: u64 = plugin.stats.iter().map(|hook| hook.faults).sum();
        [
            plugin.position.to_string(),
            plugin.slot.clone(),
            version(plugin),
            plugin.hooks.join(","),
            policy(plugin),
            state(plugin),
            memory(plugin),
            items.to_string(),
            faults.to_string(),
        ]
    };
    let rows: Vec<_> = view.plugins.iter().map(row).collect();
    let heads = ["", "SLOT", "VERSION", "HOOKS", "POLICY", "STATE", "MEMORY", "ITEMS", "FAULTS"];
    let mut text = match rows.is_empty() {
        true => "there are no plugins\n".to_owned(),
        false => table(heads, &rows),
    };
    for refused in &view.refused {
        let _never_fails = writeln!(
            text,
            "refused {}: {} ({}: {})",
            ago(refused.at_ms),
            refused.message,
            refused.step,
            refused.file
        );
    }
    text
}

/// What `channels top` shows.
#[derive(Debug, Deserialize)]
pub struct ChannelsTop {
    top: TopView,
    history: HistoriesView,
    presence: RoomsView,
}

/// The channels with the most subscribers, and what channels retain.
pub fn channels_top(view: &ChannelsTop) -> String {
    let ChannelsTop { top, history, presence } = view;
    let rows: Vec<_> = top
        .channels
        .iter()
        .map(|channel| [name(&channel.channel), channel.subscribers.to_string()])
        .collect();
    let mut text = match rows.is_empty() {
        true => "no channel has subscribers\n".to_owned(),
        false => table(["CHANNEL", "SUBSCRIBERS"], &rows),
    };
    if history.in_backplane {
        text += "\nhistories: in the backplane\n";
    } else if history.channels > 0 {
        let HistoriesView { channels, messages, bytes, evicted, .. } = history;
        let EvictedView { idle, streams, messages: oldest } = evicted;
        let _never_fails = writeln!(
            text,
            "\nhistories: {channels} channels, {messages} messages, {bytes} bytes; dropped by a \
             bound: {idle} empty ones, {streams} others, {oldest} messages"
        );
        let row = |stream: &StreamView| {
            let StreamView { channel, messages, bytes, listeners, position } = stream;
            [
                name(channel),
                messages.to_string(),
                bytes.to_string(),
                listeners.to_string(),
                position.clone(),
            ]
        };
        let rows: Vec<_> = history.page.iter().map(row).collect();
        text += &table(["CHANNEL", "MESSAGES", "BYTES", "LISTENERS", "POSITION"], &rows);
    }
    if presence.channels > 0 {
        let RoomsView { channels, members, watchers, .. } = presence;
        let _never_fails =
            writeln!(text, "\nmembers: {members} in {channels} channels, with {watchers} watchers");
        let row = |room: &RoomView| {
            let RoomView { channel, members, users, watchers } = room;
            [name(channel), members.to_string(), users.to_string(), watchers.to_string()]
        };
        let rows: Vec<_> = presence.page.iter().map(row).collect();
        text += &table(["CHANNEL", "MEMBERS", "USERS", "WATCHERS"], &rows);
    }
    text
}

/// The checks of existing subscriptions.
fn rechecked(rechecks: &RechecksView) -> String {
    let RechecksView { running, checked, ended, unanswered } = rechecks;
    let mut text = format!("{checked} existing subscriptions, of which {ended} ended");
    if *unanswered > 0 {
        text += &format!("; {unanswered} could not be checked");
    }
    if *running > 0 {
        text += "; a check is running";
    }
    text
}

/// One plugin.
pub fn plugin(view: &PluginView) -> String {
    let limits = &view.limits;
    let mut text = list([
        ("plugin", format!("{}@{}", view.name, view.version)),
        ("own version", or_none(view.own_version.as_deref())),
        ("slot", format!("{} ({}. in the chain)", view.slot, view.position)),
        ("state", state(view)),
        ("hooks", view.hooks.join(", ")),
        ("policy", format!("{} ({})", view.policy.name(), view.policy_source.words())),
        ("component", format!("{} ({})", view.file, bytes(view.component_bytes))),
        ("config", or_none(view.config_file.as_deref())),
        ("since", format!("{}, by {}", ago(view.since_ms), view.by)),
        ("rollback to", or_none(view.previous.as_deref())),
        (
            "instances",
            format!(
                "{} and {} spare, rebuilt {} times",
                view.instances, view.spares, view.rebuilds
            ),
        ),
        (
            "contained",
            format!(
                "{} connections isolated, {} items retried",
                view.isolated_connections, view.retried_items
            ),
        ),
        ("rechecked", rechecked(&view.rechecks)),
        ("memory", format!("{} of {}", memory(view), bytes(limits.memory_bytes_max))),
        (
            "budget",
            format!("{} ms a call, {} ms init", limits.call_budget_ms, limits.init_budget_ms),
        ),
        ("log", format!("{} lines a second", limits.log_lines_per_second_max)),
        ("counters", limits.counters.clone()),
    ]);
    let row = |stats: &HookView| {
        let verdicts: Vec<String> = stats
            .verdicts
            .iter()
            .map(|verdict| format!("{}={}", verdict.verdict.name(), verdict.count))
            .collect();
        let HistogramView { p50_us, p99_us, .. } = stats.time;
        [
            stats.hook.name().to_owned(),
            stats.calls.to_string(),
            stats.items.to_string(),
            stats.faults.to_string(),
            up_to(p50_us),
            up_to(p99_us),
            verdicts.join(" "),
        ]
    };
    if !view.stats.is_empty() {
        let heads = ["HOOK", "CALLS", "ITEMS", "FAULTS", "HALF", "99 %", "VERDICTS"];
        text.push('\n');
        text += &table(heads, &view.stats.iter().map(row).collect::<Vec<_>>());
    }
    let row = |failure: &FailureView| {
        [ago(failure.at_ms), failure.plugin.clone(), failure.step.clone(), failure.message.clone()]
    };
    if !view.failures.is_empty() {
        text.push('\n');
        let rows: Vec<_> = view.failures.iter().map(row).collect();
        text += &table(["FAILED", "PLUGIN", "STEP", "WHY"], &rows);
    }
    text
}

/// The engine.
pub fn engine(view: &EngineView) -> String {
    list([
        ("version", view.version.clone()),
        ("own version", or_none(view.own_version.as_deref())),
        ("from", view.origin.clone()),
        ("component", view.component_bytes.map_or_else(|| "none".to_owned(), bytes)),
        ("shards", view.shards.to_string()),
        ("since", format!("{}, by {}", ago(view.since_ms), view.by)),
        ("rollback to", or_none(view.previous.as_deref())),
    ])
}

/// The result of a change.
pub fn swap(view: &SwapView) -> String {
    let what = match (view.kind, &view.from, &view.to) {
        (ChangeKind::Added, _, Some(to)) => format!("{to} was added"),
        (ChangeKind::Removed, Some(from), _) => format!("{from} was removed"),
        (ChangeKind::Moved, _, Some(to)) => format!("{to} was moved"),
        (ChangeKind::RolledBack | ChangeKind::EngineRolledBack, Some(from), Some(to)) => {
            format!("{from} was rolled back to {to}")
        }
        (_, Some(from), Some(to)) => format!("{from} was swapped for {to}"),
        (kind, ..) => format!("{kind:?}"),
    };
    let place = view.slot.as_ref().map(|slot| format!(" in {slot}")).unwrap_or_default();
    format!("{what}{place}; messages waited {} µs\n", view.pause_us)
}

/// Some of the connections.
pub fn connections(view: &ConnectionsView) -> String {
    let row = |connection: &ConnectionView| {
        [
            connection.id.to_string(),
            connection.door.clone(),
            connection.address.clone(),
            connection.user.as_deref().map(printable).unwrap_or_default(),
            connection.name.as_deref().map(printable).unwrap_or_default(),
            ago(connection.opened_ms),
            connection.channels.to_string(),
            connection.patterns.to_string(),
            connection.shard_channels.to_string(),
            bytes(connection.outbox_bytes),
        ]
    };
    let heads = [
        "ID",
        "DOOR",
        "ADDRESS",
        "USER",
        "NAME",
        "OPENED",
        "CHANNELS",
        "PATTERNS",
        "SHARD CHANNELS",
        "OUTBOX",
    ];
    let rows: Vec<_> = view.connections.iter().map(row).collect();
    let mut text = table(heads, &rows);
    let _never_fails = match view.next_after {
        Some(after) => writeln!(text, "{} in all; for more: --after {after}", view.count),
        None => writeln!(text, "{} in all", view.count),
    };
    text
}

/// Channels with subscribers.
pub fn channels(view: &ChannelsView) -> String {
    let mut text: String = view.channels.iter().map(|channel| name(channel) + "\n").collect();
    if view.is_cut {
        text += "... and more: they are too many to be listed\n";
    }
    text + &nodes(&view.nodes)
}

/// The subscribers of channels.
pub fn subscribers(view: &CountsView) -> String {
    let counts = view.counts.iter();
    let rows: Vec<_> =
        counts.map(|count| [name(&count.channel), count.subscribers.to_string()]).collect();
    table(["CHANNEL", "SUBSCRIBERS"], &rows) + &nodes(&view.nodes)
}

/// The number of patterns.
pub fn patterns(view: &PatternsView) -> String {
    format!("{}\n", view.patterns) + &nodes(&view.nodes)
}

/// Empty if there was one node and it responded.
fn nodes(view: &NodesView) -> String {
    match view {
        NodesView { answered: 1, unavailable: 0 } => String::new(),
        NodesView { answered, unavailable: 0 } => format!("({answered} nodes)\n"),
        NodesView { answered, unavailable } => {
            format!("({answered} nodes; the engine of {unavailable} more was not available)\n")
        }
    }
}

/// One connection.
pub fn connection(view: &ConnectionView) -> String {
    let mut text = list([
        ("connection", view.id.to_string()),
        ("door", view.door.clone()),
        ("address", view.address.clone()),
        ("user", view.user.as_deref().map(printable).unwrap_or_default()),
        ("name", view.name.as_deref().map(printable).unwrap_or_default()),
        ("opened", ago(view.opened_ms)),
        ("outbox", bytes(view.outbox_bytes)),
    ]);
    for (key, value) in view.attributes.iter().flatten() {
        let (key, value) = (printable(key), printable(value));
        let _never_fails = writeln!(text, "attribute        {key} = {value}");
    }
    let NamesView { channels, patterns, shard_channels } = view.names.clone().unwrap_or_default();
    for (kind, names, count) in [
        ("channels", channels, view.channels),
        ("patterns", patterns, view.patterns),
        ("shard channels", shard_channels, view.shard_channels),
    ] {
        let names: Vec<String> = names.iter().map(name).collect();
        let _never_fails = writeln!(text, "{kind:16} {count}: {}", names.join(" "));
    }
    text
}

/// The log filter.
pub fn log(view: &LogView) -> String {
    let followed: Vec<String> = view.followed.iter().map(u64::to_string).collect();
    list([
        ("filter", view.filter.clone()),
        ("format", view.format.clone()),
        ("followed", followed.join(" ")),
        ("lines lost", view.lines_lost.to_string()),
        ("problem", view.problem.clone().unwrap_or_default()),
    ])
}

/// A plugin's decision about one item.
pub fn trace_event(view: &TraceEventView) -> String {
    let mut text = format!(
        "{} #{} {} {} {} {} {} {:.1} µs",
        clock(view.at_ms),
        view.connection,
        view.action,
        view.channel.as_ref().map(name).unwrap_or_default(),
        view.plugin,
        view.hook.name(),
        view.verdict.name(),
        view.took_us,
    );
    if view.items > 1 {
        let _never_fails = write!(text, " for {}", view.items);
    }
    if let Some(channel) = &view.channel_after {
        let _never_fails = write!(text, ", to {}", name(channel));
    }
    if let (Some(before), Some(after)) = (view.bytes_before, view.bytes_after) {
        let _never_fails = write!(text, ", {before} → {after} bytes");
    }
    if let (Some(before), Some(after)) = (view.recipients_before, view.recipients_after) {
        let _never_fails = write!(text, ", {before} → {after} recipients");
    }
    if let (Some(code), Some(message)) = (&view.code, &view.message) {
        let _never_fails = write!(text, ", {code} {message}");
    }
    text + "\n"
}

fn version(plugin: &PluginView) -> String {
    match &plugin.own_version {
        Some(own) => format!("{} ({own})", plugin.version),
        None => plugin.version.clone(),
    }
}

fn policy(plugin: &PluginView) -> String {
    // Mark a policy that was not configured.
    let mark = if plugin.policy_source == PolicySource::Default { " (default)" } else { "" };
    format!("{}{mark}", plugin.policy.name())
}

fn state(plugin: &PluginView) -> String {
    let state = match plugin.state {
        State::Running => "running",
        State::Rebuilding => "rebuilding",
        State::Parked => "parked",
    };
    match plugin.file_missing {
        None => state.to_owned(),
        Some(MissingFile::Component) => format!("{state}, file missing"),
        Some(MissingFile::Settings) => format!("{state}, settings file missing"),
    }
}

fn memory(plugin: &PluginView) -> String {
    bytes(plugin.memory_bytes.iter().flatten().sum())
}

fn bytes(bytes: usize) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1_024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

fn up_to(us: Option<f64>) -> String {
    us.map_or_else(|| "over 33 ms".to_owned(), |us| format!("≤ {us:.0} µs"))
}

fn or_none(text: Option<&str>) -> String {
    text.unwrap_or("none").to_owned()
}

/// A text that a client or a plugin chose, without control characters.
fn printable(text: &str) -> String {
    harmless(text).to_string()
}

fn name(name: &Name) -> String {
    match name {
        Name::Text(text) => text.escape_debug().to_string(),
        Name::Bytes { base64 } => format!("base64:{base64}"),
    }
}

fn ago(at_ms: u64) -> String {
    let ms = unix_ms(SystemTime::now()).saturating_sub(at_ms);
    let seconds = Duration::from_millis(ms).as_secs();
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7_200 => format!("{} min ago", seconds / 60),
        7_200..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// The time of day, in UTC.
fn clock(at_ms: u64) -> String {
    let (seconds, ms) = (at_ms / 1_000 % 86_400, at_ms % 1_000);
    format!("{:02}:{:02}:{:02}.{ms:03}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [["a".to_owned(), "ü".to_owned()], ["long".to_owned(), String::new()]];
        assert_eq!(table(["X", "YY"], &rows), "X     YY\na     ü\nlong\n");
    }
}
