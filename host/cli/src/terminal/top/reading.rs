//! The state of a server as the admin API reports it, and the changes between two readings.
//!
//! A later server may report more and an earlier one less: missing values are shown as unknown.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use ureq::tls::TlsConfig;

use super::super::http;
use crate::tls::TrustArgs;

/// The timeout of a response.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// The maximum size of a response.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// How many connections are fetched to find their doors. With more of them the doors are not shown.
const CONNECTIONS_MAX: usize = 1000;

/// The source of readings.
pub struct Source {
    url: String,
    tls: TlsConfig,
    token: Option<String>,
}

/// The state of a server at one moment.
pub struct Reading {
    /// The time of the reading.
    pub at: Instant,
    /// The server's counters.
    pub stats: Stats,
    /// The plugins, in the order of the chain.
    pub plugins: Vec<Plugin>,
    /// How many connections each door has, if they are few enough.
    pub doors: Option<Vec<(String, usize)>>,
    /// The memory in use; none: the server does not report it.
    pub memory: Option<Memory>,
    /// The response as received.
    pub raw_stats: Value,
    /// The response as received.
    pub raw_plugins: Value,
    /// The response as received.
    pub raw_memory: Value,
}

/// The memory in use.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the admin API documents them")]
pub struct Memory {
    pub resident_bytes: u64,
    pub bytes_max: Option<u64>,
    pub budgets: Vec<Budget>,
    pub closed: Vec<Closed>,
    pub connections: Vec<Holder>,
}

/// The state of a budget.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the admin API documents them")]
pub struct Budget {
    pub budget: String,
    pub used_bytes: u64,
    pub limit_bytes: u64,
}

/// How many connections were closed for a bound.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the admin API documents them")]
pub struct Closed {
    pub closed: u64,
}

/// A holder of memory.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the admin API documents them")]
pub struct Holder {
    pub connection: Option<u64>,
    pub address: String,
    pub outbox_bytes: u64,
    pub input_bytes: u64,
    pub name_bytes: u64,
}

/// The counters of a server.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the admin API documents them")]
pub struct Stats {
    pub version: String,
    pub uptime_ms: u64,
    pub connections: u64,
    pub connections_total: u64,
    pub connections_rejected: u64,
    pub outbox_overflows: u64,
    pub commands: u64,
    pub publications: Option<u64>,
    pub deliveries: Option<u64>,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub channels: Option<u64>,
    pub patterns: Option<u64>,
    pub engine: String,
    pub swap_pauses: Times,
    pub swaps: Vec<Swap>,
}

/// A histogram of times.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the admin API documents them")]
pub struct Times {
    pub count: u64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
}

/// A change of plugins or engine.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the admin API documents them")]
pub struct Swap {
    pub at_ms: u64,
    #[serde(rename = "deed")]
    pub kind: String,
    pub slot: Option<String>,
    pub from: Option<String>,
    pub to: Option<String>,
    pub pause_us: u64,
}

/// A plugin.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the admin API documents them")]
pub struct Plugin {
    pub slot: String,
    pub version: String,
    pub state: String,
    pub rebuilds: u64,
    /// None: an instance that is being rebuilt.
    pub memory_bytes: Vec<Option<u64>>,
    pub stats: Vec<Hook>,
}

/// The counters of a hook.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the admin API documents them")]
pub struct Hook {
    pub hook: String,
    pub calls: u64,
    pub items: u64,
    pub faults: u64,
    pub verdicts: Vec<Verdict>,
    pub time: Times,
}

/// How often a hook made a decision.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the admin API documents them")]
pub struct Verdict {
    pub verdict: String,
    pub count: u64,
}

#[derive(Deserialize)]
struct Plugins {
    plugins: Vec<Plugin>,
}

#[derive(Deserialize)]
struct Connections {
    connections: Vec<Connection>,
    next_after: Option<u64>,
}

#[derive(Deserialize)]
struct Connection {
    door: String,
}

/// The changes in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[allow(missing_docs, reason = "as in `Stats`")]
pub struct Rates {
    pub connections: f64,
    pub commands: f64,
    pub publications: Option<f64>,
    pub deliveries: Option<f64>,
    pub bytes_read: f64,
    pub bytes_written: f64,
}

impl Source {
    /// The admin API at this URL.
    ///
    /// # Errors
    ///
    /// The trusted certificates cannot be read.
    pub fn new(url: &str, trust: &TrustArgs, token: Option<String>) -> anyhow::Result<Source> {
        let token = token.filter(|token| !token.is_empty());
        let tls = trust.for_http(url).map_err(anyhow::Error::msg)?;
        Ok(Source { url: url.trim_end_matches('/').to_owned(), tls, token })
    }

    /// Polls the server.
    ///
    /// # Errors
    ///
    /// It does not respond, or the response is not that of an admin API.
    pub fn read(&self) -> anyhow::Result<Reading> {
        let at = Instant::now();
        let raw_stats = self.get("/v1/stats")?;
        let raw_plugins = self.get("/v1/plugins")?;
        let understand = "the admin API says what this version does not understand";
        let stats = Stats::deserialize(&raw_stats).context(understand)?;
        let plugins = Plugins::deserialize(&raw_plugins).context(understand)?.plugins;
        let doors = if stats.connections <= CONNECTIONS_MAX as u64 { self.doors()? } else { None };
        let raw_plugins = raw_plugins.get("plugins").cloned().unwrap_or_default();
        // An earlier server does not report it.
        let raw_memory = self.get("/v1/memory?limit=1").unwrap_or_default();
        let memory = Memory::deserialize(&raw_memory).ok();
        Ok(Reading { at, stats, plugins, doors, memory, raw_stats, raw_plugins, raw_memory })
    }

    fn doors(&self) -> anyhow::Result<Option<Vec<(String, usize)>>> {
        let listed = self.get(&format!("/v1/connections?limit={CONNECTIONS_MAX}"))?;
        let Ok(listed) = Connections::deserialize(&listed) else { return Ok(None) };
        if listed.next_after.is_some() {
            return Ok(None);
        }
        let mut counts = std::collections::BTreeMap::new();
        for connection in listed.connections {
            *counts.entry(connection.door).or_default() += 1;
        }
        Ok(Some(counts.into_iter().collect()))
    }

    fn get(&self, path: &str) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.url);
        let (tls, token) = (self.tls.clone(), self.token.as_deref());
        let answer = http::get(&url, tls, token, ANSWER_TIME, ANSWER_BYTES_MAX)
            .with_context(|| format!("no answer from {url}; set the address with --admin"))?;
        if answer.status == 401 {
            bail!("the server requires a token: set SWITCHYARD_ADMIN_TOKEN");
        }
        if !answer.is_good {
            bail!("HTTP {} from {url}", answer.status);
        }
        serde_json::from_slice(&answer.body).with_context(|| format!("no JSON from {url}"))
    }
}

impl Reading {
    /// The average rates per second since another reading. The counters of a server that was
    /// restarted in between began at zero.
    pub fn rates_since(&self, before: &Reading) -> Rates {
        let seconds = (self.at - before.at).as_secs_f64().max(1e-9);
        let rate = |now: u64, then: u64| now.checked_sub(then).unwrap_or(now) as f64 / seconds;
        let maybe = |now: Option<u64>, then: Option<u64>| Some(rate(now?, then?));
        let (now, then) = (&self.stats, &before.stats);
        Rates {
            connections: rate(now.connections_total, then.connections_total),
            commands: rate(now.commands, then.commands),
            publications: maybe(now.publications, then.publications),
            deliveries: maybe(now.deliveries, then.deliveries),
            bytes_read: rate(now.bytes_read, then.bytes_read),
            bytes_written: rate(now.bytes_written, then.bytes_written),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at: Instant, stats: Stats) -> Reading {
        let [raw_stats, raw_plugins, raw_memory] = [Value::Null, Value::Null, Value::Null];
        let (plugins, doors, memory) = (Vec::new(), None, None);
        Reading { at, stats, plugins, doors, memory, raw_stats, raw_plugins, raw_memory }
    }

    #[test]
    fn rates_are_per_second() {
        let began = Instant::now();
        let then = reading(began, Stats { commands: 100, bytes_read: 500, ..Stats::default() });
        let stats =
            Stats { commands: 300, bytes_read: 100, publications: Some(7), ..Stats::default() };
        let now = reading(began + Duration::from_secs(2), stats);
        let rates = now.rates_since(&then);
        assert_eq!(rates.commands, 100.0);
        // The counter has been reset by a restart.
        assert_eq!(rates.bytes_read, 50.0);
        assert_eq!(rates.publications, None);
    }
}
