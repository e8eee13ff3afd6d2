//! The settings: what was written, and what holds.
//!
//! `RawConfig` mirrors the TOML file, key for key; `Config` is what the server
//! uses. The conversion is the only place that says no, and it says where and
//! what would be right. `switchyard.example.toml` is the manual; a test holds it
//! to the defaults here.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod check;
mod cluster;
mod error;
mod names;
mod raw;
mod values;

pub use cluster::{BackplaneKind, ClusterConfig, ClusterTls, PemFile, Secret, WhenAway};
pub use error::ConfigError;
pub use names::NameLimits;
use raw::RawConfig;
pub(crate) use values::*;

use crate::admin::tokens::Tokens;
use crate::cli::ServeArgs;
use crate::compile_cache::CompileCache;
use crate::log::LogConfig;
use crate::memory::settings::MemoryConfig;
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
    /// The admin API.
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
    /// The shortest time over which clients are told to spread their reconnects.
    pub reconnect_spread: Duration,
}

/// The certificate of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate and those between it and a root, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// The authority of client certificates. None: clients are not asked for a certificate.
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
    /// Where compiled components are kept.
    pub cache: CompileCache,
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
    /// is not called for it any more.
    pub strikes_per_connection_max: usize,
    /// How many instances are kept at hand for one that fails.
    pub spares: usize,
    /// What `save` and `restore` of all instances may take of a processor together, while
    /// everybody waits.
    pub handover_budget: Duration,
    /// What becomes of it when it is parked.
    pub on_park: OnPark,
    /// How long a client waits for a call apart from the data path.
    pub admission_time: Duration,
    /// The limits for its HTTP requests, where it may send any.
    pub outside: OutsideLimits,
}

/// The admin API: its listener, its tokens and its limits.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// Where to listen; none: nowhere.
    pub listen: Option<SocketAddr>,
    /// The tokens that it accepts. Without tokens it needs no authentication and must listen on
    /// loopback.
    pub tokens: Tokens,
    /// How large a component that is uploaded may be.
    pub upload_bytes_max: usize,
    /// How many components may be uploaded at the same time.
    pub uploads_max: usize,
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

/// How the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
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

impl Default for Config {
    fn default() -> Config {
        RawConfig::default().check().expect("a test holds the defaults to their ranges")
    }
}

fn parse(text: &str) -> Result<RawConfig, toml::de::Error> {
    toml::from_str(text)
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

    pub(super) fn check(text: &str) -> Result<Config, String> {
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
