//! The settings in use, and how they are made from the file.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::file;
use super::names;
use super::raw::{NumberOrOff, RawAdmin, RawConfig, RawLog, RawTls};
use super::values::OFF;
use super::values::{
    COMPONENT_BYTES, CORE_INSTANCES, HTTP_CALLS, HTTP_REQUESTS, HTTP_RESPONSE_BYTES, RESOURCES,
    RETURNED_BYTES, SPARES, STRIKES, TABLE_ELEMENTS,
};
use super::values::{address, bytes, count, handover_time, http_time, millis};
use super::{
    AdminConfig, ConfigError, EngineConfig, EngineSource, HealthConfig, HttpConfig, Limits,
    PluginLimits, PluginsConfig, ShutdownConfig, TlsConfig, WebSocketConfig,
};
use crate::cluster::ClusterConfig;
use crate::memory as memory_settings;
use crate::memory::MemoryConfig;
use crate::{
    CompileCache, Origins, OutboxLimits, OutsideLimits, Overrides, TOKENS_VARIABLE, Tokens,
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
    /// The backplane between this node and the others; none: the node is alone.
    pub cluster: Option<ClusterConfig>,
    /// The log filter and format.
    pub log: LogConfig,
    /// Every key with its value, to find what changed.
    pub written: serde_json::Value,
}

/// The door for Redis clients.
#[derive(Debug, Clone)]
pub struct RespConfig {
    /// The listening address.
    pub listen: SocketAddr,
    /// The maximum size of a request, names and arguments together.
    pub request_bytes_max: usize,
    /// How long a connection without subscriptions may send nothing; none: forever.
    pub idle_time: Option<Duration>,
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
                cache: CompileCache {
                    directory: plugins.cache_directory,
                    bytes_max: bytes(
                        "plugins.cache_bytes_max",
                        plugins.cache_bytes_max,
                        1 << 20..=1 << 40,
                    )? as u64,
                },
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
                let text = file::read_text(path, file::SETTINGS_BYTES_MAX)
                    .map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
                let tokens = Tokens::parse(&text).and_then(|tokens| match tokens.is_empty() {
                    // A file without tokens must not disable authentication.
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
            uploads_max: count("admin.uploads_max", self.uploads_max, 1..=1_000)?,
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
