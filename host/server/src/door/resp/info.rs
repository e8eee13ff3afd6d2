//! INFO and CONFIG: what monitoring and clients read about the server.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::client::DATABASES;
use super::script::Scripts;
use super::{REDIS_VERSION, Resp};
use crate::session::Session;
use switchyard_config::Config;
use switchyard_protocol::resp::{Arguments, errors};
use switchyard_telemetry::process::Status;
use switchyard_types::command::Space;

/// The values that do not change while the server runs.
#[derive(Debug, Clone)]
pub struct ServerInfo {
    /// The port of the RESP door.
    pub tcp_port: u16,
    /// The reply to `CONFIG GET`.
    pub settings: Arc<Vec<(&'static str, String)>>,
    /// The scripts that EVALSHA knows.
    pub scripts: Arc<Scripts>,
}

impl ServerInfo {
    /// The values of this configuration that clients may see.
    pub fn new(config: &Config, tcp_port: u16, request_bytes_max: usize) -> ServerInfo {
        let outbox = &config.outbox;
        let pubsub = format!(
            "normal {0} {1} {2} slave {0} {1} {2} pubsub {0} {1} {2}",
            outbox.bytes_max,
            outbox.soft_bytes,
            outbox.soft_time.as_secs()
        );
        let settings = vec![
            ("appendonly", "no".to_owned()),
            ("client-output-buffer-limit", pubsub),
            ("databases", DATABASES.to_string()),
            ("maxclients", config.limits.connections_max.to_string()),
            ("maxmemory", "0".to_owned()),
            ("port", tcp_port.to_string()),
            ("proto-max-bulk-len", request_bytes_max.to_string()),
            ("save", String::new()),
            ("tcp-keepalive", "300".to_owned()),
            (
                "timeout",
                config
                    .resp
                    .as_ref()
                    .and_then(|resp| resp.idle_time)
                    .map_or(0, |time| time.as_secs().max(1))
                    .to_string(),
            ),
        ];
        ServerInfo { tcp_port, settings: Arc::new(settings), scripts: Arc::default() }
    }
}

/// The sections of INFO, in order.
const SECTIONS: [&str; 6] = ["server", "clients", "memory", "stats", "replication", "cluster"];
/// The names that stand for all sections.
const ALL: [&[u8]; 3] = [b"all", b"default", b"everything"];

impl Resp {
    pub(super) fn info(&self, arguments: Arguments<'_>, session: &mut Session) {
        let is_wanted = |section: &str| {
            arguments.len() == 1
                || arguments.skip(1).iter().any(|wanted| {
                    wanted.eq_ignore_ascii_case(section.as_bytes())
                        || ALL.iter().any(|all| wanted.eq_ignore_ascii_case(all))
                })
        };
        let mut text = String::new();
        for section in SECTIONS.into_iter().filter(|section| is_wanted(section)) {
            if !text.is_empty() {
                text.push_str("\r\n");
            }
            let title = section.get(..1).unwrap_or_default().to_ascii_uppercase();
            let _ = write!(text, "# {title}{}\r\n", section.get(1..).unwrap_or_default());
            for (field, value) in self.fields(section, session) {
                let _ = write!(text, "{field}:{value}\r\n");
            }
        }
        self.reply(session, |reply| reply.verbatim(text.as_bytes()));
    }

    fn fields(&self, section: &str, session: &Session) -> Vec<(&'static str, String)> {
        let services = &session.services;
        let (hub, stats) = (&services.hub, &services.stats);
        let load =
            |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed).to_string();
        let channels = |space| hub.channel_count(space).unwrap_or(0).to_string();
        match section {
            "server" => vec![
                ("redis_version", REDIS_VERSION.to_owned()),
                ("switchyard_version", env!("CARGO_PKG_VERSION").to_owned()),
                ("switchyard_engine", hub.engine_version()),
                ("redis_mode", "standalone".to_owned()),
                ("os", std::env::consts::OS.to_owned()),
                ("arch_bits", usize::BITS.to_string()),
                ("process_id", std::process::id().to_string()),
                ("tcp_port", self.info.tcp_port.to_string()),
                ("uptime_in_seconds", stats.started.elapsed().as_secs().to_string()),
                ("uptime_in_days", (stats.started.elapsed().as_secs() / 86_400).to_string()),
            ],
            "clients" => {
                let subscribed = hub.holdings().subscribed();
                vec![
                    ("connected_clients", hub.connections().count().to_string()),
                    ("maxclients", services.limits.connections_max().to_string()),
                    ("blocked_clients", hub.stream_readers().count().to_string()),
                    ("pubsub_clients", subscribed.to_string()),
                ]
            }
            "memory" => {
                let bytes = Status::read().resident_bytes().unwrap_or(0);
                let settings = hub.connections().memory().settings();
                let max = settings.map_or(0, |settings| settings.budget.bytes_max);
                vec![
                    ("used_memory", bytes.to_string()),
                    ("used_memory_human", format!("{:.2}M", bytes as f64 / (1 << 20) as f64)),
                    ("used_memory_rss", bytes.to_string()),
                    ("maxmemory", max.to_string()),
                ]
            }
            "stats" => {
                let [commands, read, written] = stats.totals();
                vec![
                    ("total_connections_received", stats.accepted_in_all().to_string()),
                    ("total_commands_processed", commands.to_string()),
                    ("total_net_input_bytes", read.to_string()),
                    ("total_net_output_bytes", written.to_string()),
                    ("rejected_connections", stats.refused_in_all().to_string()),
                    ("client_output_buffer_limit_disconnections", load(&stats.outbox_overflows)),
                    ("pubsub_channels", channels(Space::Channels)),
                    ("pubsub_patterns", hub.pattern_count().unwrap_or(0).to_string()),
                    ("pubsubshard_channels", channels(Space::ShardChannels)),
                ]
            }
            "replication" => {
                vec![("role", "master".to_owned()), ("connected_slaves", "0".to_owned())]
            }
            "cluster" => {
                // For Redis' own cluster, which this is not.
                let mut fields = vec![("cluster_enabled", "0".to_owned())];
                if let Some(backplane) = &services.backplane {
                    fields.push(("backplane_node", backplane.node().to_owned()));
                    fields.push(("backplane_state", backplane.state().label().to_owned()));
                    fields.push(("backplane_waiting", backplane.waiting().to_string()));
                    let counters = backplane.stats().all();
                    fields.extend(counters.map(|(name, value)| (name, value.to_string())));
                }
                fields
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn config_get(&self, arguments: Arguments<'_>, session: &mut Session) {
        // A setting that is requested by name is returned under the name as the client wrote it.
        let wanted_as = |name: &'static str| {
            let is_wanted = |pattern: &&[u8]| {
                guest_core::glob::matches(&pattern.to_ascii_lowercase(), name.as_bytes())
            };
            let pattern = arguments.skip(2).iter().find(is_wanted)?;
            let is_name = pattern.eq_ignore_ascii_case(name.as_bytes());
            Some(if is_name { pattern } else { name.as_bytes() })
        };
        let settings = self.info.settings.clone();
        let found: Vec<_> =
            settings.iter().filter_map(|(name, value)| Some((wanted_as(name)?, value))).collect();
        self.reply(session, |reply| {
            reply.map(found.len());
            for (name, value) in found {
                reply.bulk(name);
                reply.bulk(value.as_bytes());
            }
        });
    }

    pub(super) fn config_set(&self, arguments: Arguments<'_>, session: &mut Session) {
        let name = arguments.get(2).unwrap_or_default();
        let is_known =
            self.info.settings.iter().any(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes()));
        match is_known {
            true => self.error(session, &errors::config_set_immutable(name)),
            false => self.error(session, &errors::config_set_unknown(name)),
        }
    }
}
