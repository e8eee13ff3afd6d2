//! The settings in use, and how they are made from the file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::channels;
use super::consistency;
use super::file;
use super::listen::{ListenAddress, RawListen, first_open, socket_mode};
use super::names;
use super::raw::{RawAdmin, RawConfig, RawLog, RawTls};
use super::values::{
    COMPONENT_BYTES, CORE_INSTANCES, HTTP_CALLS, HTTP_REQUESTS, HTTP_RESPONSE_BYTES, RESOURCES,
    RETURNED_BYTES, SPARES, STRIKES, TABLE_ELEMENTS,
};
use super::values::{bytes, count, handover_time, http_time, millis, millis_or_none, networks};
use super::{
    AdminConfig, ClientCertificates, ConfigError, EngineConfig, EngineSource, HealthConfig,
    HttpConfig, Limits, PluginLimits, PluginsConfig, ShutdownConfig, TlsConfig, WebSocketConfig,
};
use crate::cluster::ClusterConfig;
use crate::history::{HistoryConfig, HistoryStoreConfig, PresenceConfig};
use crate::memory as memory_settings;
use crate::memory::MemoryConfig;
use crate::proxies::{ProxyProtocol, TrustedProxies};
use crate::{
    ChannelRules, CompileCache, Origins, OutboxLimits, OutsideLimits, Overrides, TOKENS_VARIABLE,
    Tokens,
};
use switchyard_telemetry::log::{LogConfig, QueueLimits};

/// The settings of the server, validated.
#[derive(Debug, Clone)]
pub struct Config {
    /// The HTTP and WebSocket door.
    pub http: HttpConfig,
    /// The door for Redis clients; none: it is closed.
    pub resp: Option<RespConfig>,
    /// The settings of WebSocket connections.
    pub websocket: WebSocketConfig,
    /// The limits of client commands.
    pub limits: Limits,
    /// The limits of one connection's outbox.
    pub outbox: OutboxLimits,
    /// Which channels have history or presence.
    pub channels: ChannelRules,
    /// The bounds of the history of all channels.
    pub history: HistoryConfig,
    /// Where histories are kept on disk; none: in memory only.
    pub history_store: Option<HistoryStoreConfig>,
    /// The bounds of the presence of all channels.
    pub presence: PresenceConfig,
    /// How much memory there is, and the budget of each purpose.
    pub memory: MemoryConfig,
    /// The Pub/Sub engine.
    pub engine: EngineConfig,
    /// The plugins.
    pub plugins: PluginsConfig,
    /// The admin API.
    pub admin: AdminConfig,
    /// The settings of health checks.
    pub health: HealthConfig,
    /// The settings of the shutdown.
    pub shutdown: ShutdownConfig,
    /// Whether addresses other than loopback may be listened on while no plugin decides about
    /// connects.
    pub is_open_to_all: bool,
    /// The permissions of the files of Unix sockets.
    pub unix_socket_mode: u32,
    /// The proxies whose information about clients is used.
    pub proxies: TrustedProxies,
    /// The backplane between this node and the others; none: the node is alone.
    pub cluster: Option<ClusterConfig>,
    /// The log filter and format.
    pub log: LogConfig,
    /// The files whose content is part of the configuration: tokens, a password, and certificates
    /// of the backplane.
    pub files: Vec<PathBuf>,
    /// Every key with its value, to find what changed.
    pub written: serde_json::Value,
}

/// The door for Redis clients.
#[derive(Debug, Clone)]
pub struct RespConfig {
    /// The listening addresses.
    pub listen: Vec<ListenAddress>,
    /// The maximum size of a request, names and arguments together.
    pub request_bytes_max: usize,
    /// How long a connection without subscriptions may send nothing; none: forever.
    pub idle_time: Option<Duration>,
    /// Whether each connection begins with a PROXY protocol header.
    pub proxy_protocol: ProxyProtocol,
    /// Its certificate; none: it does not use TLS.
    pub tls: Option<TlsConfig>,
}

impl RawConfig {
    /// Paths in the file are relative to its directory.
    pub(super) fn resolve_against(&mut self, base: &Path) {
        let cluster = &mut self.cluster;
        let paths = [
            &mut self.plugins.directory,
            &mut self.plugins.cache_directory,
            &mut self.engine.file,
            &mut self.history.directory,
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
        for listen in [&mut self.http.listen, &mut self.resp.listen, &mut self.admin.listen] {
            listen.resolve_against(base);
        }
        for RawTls { certificate, key, client_ca, .. } in [&mut self.http.tls, &mut self.resp.tls] {
            for path in [certificate, key, client_ca].into_iter().flatten() {
                *path = base.join(&*path);
            }
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let cluster = &self.cluster;
        [
            &self.admin.tokens_file,
            &cluster.password_file,
            &cluster.ca_file,
            &cluster.client_cert_file,
            &cluster.client_key_file,
        ]
        .into_iter()
        .flatten()
        .cloned()
        .collect()
    }

    pub(super) fn override_with(&mut self, overrides: &Overrides) {
        let Overrides {
            file: _,
            http,
            resp,
            admin,
            plugins,
            engine,
            shards,
            cluster,
            log,
            open_to_all,
            cache,
        } = overrides;
        self.security.open_to_all |= open_to_all;
        let listeners = [
            (&mut self.http.listen, http),
            (&mut self.resp.listen, resp),
            (&mut self.admin.listen, admin),
        ];
        for (listen, flags) in listeners {
            if !flags.is_empty() {
                *listen = RawListen::from_flags(flags);
            }
        }
        if plugins.is_some() {
            self.plugins.directory.clone_from(plugins);
        }
        if cache.is_some() {
            self.plugins.cache_directory.clone_from(cache);
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

    pub(super) fn check(self) -> Result<Config, ConfigError> {
        let written = serde_json::to_value(&self).expect("it is made of JSON's types");
        let files = self.files();
        let RawConfig {
            security,
            http,
            resp,
            websocket,
            limits,
            memory,
            outbox,
            channels,
            history,
            presence,
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
            bytes_max: memory.bytes_max.map(u64::from),
            outbox_total: limits.outbox_bytes_total_max.map(u64::from),
            outbox_per_address: limits.outbox_bytes_per_address_max.map(u64::from),
            input_total: limits.input_bytes_total_max.map(u64::from),
            input_per_address: limits.input_bytes_per_address_max.map(u64::from),
            history_total: history.bytes_max.map(u64::from),
            names_total: limits.name_bytes_total_max.map(u64::from),
            input_timeout_ms: limits.input_timeout_ms.into(),
            engine_instance: engine.memory_bytes_max.map(u64::from),
            plugin_instance: plugins.memory_bytes_max.map(u64::from),
            // Those for channels and patterns, and those for shard channels.
            engine_instances: 2 * shards,
        })?;
        let names = names::check(
            &limits,
            names::Room {
                engine: shards.saturating_mul(memory.engine_instance),
                host: memory.budget.names,
            },
        )?;
        let proxies = TrustedProxies {
            networks: networks("security.trusted_proxies", &security.trusted_proxies)?,
            header_bytes_max: bytes(
                "security.proxy_header_bytes_max",
                security.proxy_header_bytes_max,
                232..=64 << 10,
            )?,
        };
        let outbox = OutboxLimits {
            bytes_max: outbox_bytes_max,
            soft_bytes: bytes("outbox.soft_bytes", outbox.soft_bytes, 1..=outbox_bytes_max as u64)?,
            soft_time: millis("outbox.soft_ms", outbox.soft_ms)?,
        };
        let presence = presence.check()?;
        let config = Config {
            http: HttpConfig {
                listen: http.listen.check("http.listen", false)?,
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
                address_header: proxies.header(http.client_address_header.as_deref())?,
                proxy_protocol: http.proxy_protocol,
                tls: http.tls.check(&HTTP_TLS)?,
            },
            resp: match resp.listen.check("resp.listen", true)? {
                off if off.is_empty() => None,
                listen => Some(RespConfig {
                    listen,
                    request_bytes_max: bytes(
                        "resp.request_bytes_max",
                        resp.request_bytes_max,
                        1 << 10..=1 << 30,
                    )?,
                    idle_time: resp
                        .idle_timeout_ms
                        .0
                        .map(|time| millis("resp.idle_timeout_ms", time))
                        .transpose()?,
                    proxy_protocol: resp.proxy_protocol,
                    tls: resp.tls.check(&RESP_TLS)?,
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
                uncounted_networks: [
                    networks("limits.uncounted_networks", &limits.uncounted_networks)?,
                    proxies.networks.clone(),
                ]
                .concat(),
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
                transaction_commands_max: count(
                    "limits.transaction_commands_max",
                    limits.transaction_commands_max,
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
            outbox,
            channels: channels::check(channels, presence.members_max)?,
            history_store: history.check_store()?,
            history: history.check(memory.budget.history, outbox)?,
            presence,
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
                cache: CompileCache {
                    directory: plugins.cache_directory,
                    bytes_max: bytes(
                        "plugins.cache_bytes_max",
                        plugins.cache_bytes_max,
                        1 << 20..=1 << 40,
                    )? as u64,
                },
                plugins_max: count("plugins.plugins_max", plugins.plugins_max, 1..=1_000)?,
                compilations_max: count(
                    "plugins.compilations_max",
                    plugins.compilations_max,
                    1..=64,
                )?,
                compile_time: millis("plugins.compile_timeout_ms", plugins.compile_timeout_ms)?,
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
                    component_bytes_max: bytes(
                        "plugins.component_bytes_max",
                        plugins.component_bytes_max,
                        COMPONENT_BYTES,
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
                ready_needs_backplane: health.ready_needs_backplane,
            },
            shutdown: ShutdownConfig {
                grace: millis_or_none("shutdown.grace_ms", shutdown.grace_ms)?,
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
                close_delay: millis_or_none("shutdown.close_delay_ms", shutdown.close_delay_ms)?,
            },
            memory,
            is_open_to_all: security.open_to_all,
            unix_socket_mode: socket_mode(&security.unix_socket_mode)?,
            proxies,
            cluster: cluster.check()?,
            log: log.check()?,
            files,
            written,
        };
        config.check_listeners()?;
        config.check_proxy_protocol()?;
        consistency::check(&config)?;
        Ok(config)
    }
}

impl RawAdmin {
    fn check(self) -> Result<AdminConfig, ConfigError> {
        let listen = self.listen.check("admin.listen", true)?;
        let tokens = match (listen.is_empty(), &self.tokens_file) {
            (true, _) => Tokens::default(),
            (false, Some(path)) => {
                let key = "admin.tokens_file";
                let text = file::read_text(path, file::SETTINGS_BYTES_MAX).map_err(|source| {
                    ConfigError::UnreadableFile { key, path: path.clone(), source }
                })?;
                let tokens = Tokens::parse(&text).and_then(|tokens| match tokens.is_empty() {
                    // A file without tokens must not disable authentication.
                    true => Err("there are no tokens in it".to_owned()),
                    false => Ok(tokens),
                });
                tokens.map_err(|problem| {
                    let path = path.clone();
                    ConfigError::BadFile { key, path, problem }
                })?
            }
            (false, None) => match std::env::var(TOKENS_VARIABLE) {
                Ok(text) => Tokens::parse(&text).map_err(ConfigError::BadVariable)?,
                Err(_) => Tokens::default(),
            },
        };
        if let Some(listen) = first_open(&listen).filter(|_| tokens.is_empty()) {
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
            uploads_max: count("admin.uploads_max", self.uploads_max, 1..=1_000)?,
            body_bytes_max: bytes("admin.body_bytes_max", self.body_bytes_max, 256..=1 << 30)?,
            request_time: millis("admin.request_timeout_ms", self.request_timeout_ms)?,
            head_time: millis("admin.head_timeout_ms", self.head_timeout_ms)?,
            connections_max: count("admin.connections_max", self.connections_max, 1..=1 << 20)?,
            proxy_protocol: self.proxy_protocol,
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

/// The keys of a certificate, its key and the CA of client certificates.
const HTTP_TLS: [&str; 3] = ["http.tls.certificate", "http.tls.key", "http.tls.client_ca"];
const RESP_TLS: [&str; 3] = ["resp.tls.certificate", "resp.tls.key", "resp.tls.client_ca"];

impl RawTls {
    /// A certificate and its key, or neither. What else is set needs them.
    fn check(self, keys: &[&'static str; 3]) -> Result<Option<TlsConfig>, ConfigError> {
        let RawTls { certificate, key, client_ca, client_certificates } = self;
        let [certificate_key, key_key, client_ca_key] = *keys;
        let missing = |key: &'static str, why: &str| ConfigError::OutOfRange {
            key,
            value: "missing".to_owned(),
            expected: format!("a PEM file, as {why} set"),
        };
        if client_certificates.is_some() && client_ca.is_none() {
            let setting = client_ca_key.replace("client_ca", "client_certificates");
            return Err(missing(client_ca_key, &format!("{setting} is")));
        }
        // If a CA is set, certificates are required.
        let client_certificates = client_certificates.unwrap_or(ClientCertificates::Required);
        match (certificate, key) {
            (Some(certificate), Some(key)) => {
                Ok(Some(TlsConfig { certificate, key, client_ca, client_certificates }))
            }
            (None, None) if client_ca.is_none() => Ok(None),
            (None, _) => Err(missing(certificate_key, "other settings of TLS are")),
            (Some(_), None) => Err(missing(key_key, &format!("{certificate_key} is"))),
        }
    }
}

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

/// The value of `--engine` for the library instead of a file.
const NATIVE: &str = "native";

/// A set of shards is stored in a machine word, and shard channels double it.
const SHARDS_MAX: usize = 32;
