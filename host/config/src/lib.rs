//! The settings: as written, and as used.
//!
//! `RawConfig` mirrors the TOML file, key for key; `Config` is what the server uses. All validation
//! is in the conversion; an error names the key and the valid values. `switchyard.example.toml` is
//! the manual; a test compares it with the defaults here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod channels;
mod check;
mod cluster;
mod consistency;
mod error;
pub mod file;
mod history;
pub mod limits;
pub mod listen;
pub mod memory;
mod names;
pub mod networks;
mod origins;
mod overrides;
pub mod proxies;
mod raw;
mod show;
mod tokens;
mod units;
mod values;

pub use channels::{ChannelRule, ChannelRules, PresenceRule};
pub use check::{Config, RespConfig};
pub use cluster::{BackplaneKind, ClusterConfig, ClusterTls, PemFile, Secret, WhenDisconnected};
pub use error::ConfigError;
pub use history::{HistoryConfig, HistoryStoreConfig, PresenceConfig};
use listen::ListenAddress;
pub use names::NameLimits;
use networks::Network;
pub use origins::{Origins, OwnHosts, is_loopback};
pub use overrides::Overrides;
use proxies::{AddressHeader, ProxyProtocol};
use raw::RawConfig;
pub use switchyard_types::history::HistoryRule;
pub use tokens::{TOKENS_VARIABLE, Tokens};
pub use units::{Bytes, Millis};
pub use values::*;

/// The settings of health checks.
#[derive(Debug, Clone, Copy)]
pub struct HealthConfig {
    /// How long a result is reused.
    pub reuse_time: Duration,
    /// The timeout of a check.
    pub time: Duration,
    /// Whether a node without a connection to the backplane is not ready.
    pub ready_needs_backplane: bool,
}

/// The settings of the shutdown.
#[derive(Debug, Clone, Copy)]
pub struct ShutdownConfig {
    /// How long the server is not ready and still accepts connections, before it drains.
    pub grace: Duration,
    /// How long the remaining work may take after the drain.
    pub time: Duration,
    /// The longest time over which connections are closed, ...
    pub drain_time_max: Duration,
    /// ... which is less if this many per second take less.
    pub closes_per_second: usize,
    /// The shortest time over which clients spread their reconnects.
    pub reconnect_spread: Duration,
    /// How long a client may take to connect elsewhere, after the time within which it should
    /// reconnect, before its connection is closed.
    pub close_delay: Duration,
}

impl ShutdownConfig {
    /// How long a shutdown takes at most after its grace period.
    pub fn time_max(&self) -> Duration {
        self.drain_time_max.max(self.reconnect_spread) + self.close_delay + self.time
    }
}

/// The certificate of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate and its intermediates, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// The CA of client certificates. None: no certificate is requested.
    pub client_ca: Option<PathBuf>,
    /// Whether clients must have a certificate.
    pub client_certificates: ClientCertificates,
}

/// The modes of client certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientCertificates {
    /// The handshake requires one.
    Required,
    /// Clients without a certificate are admitted without a subject.
    Optional,
}

/// The HTTP and WebSocket door.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// The listening addresses.
    pub listen: Vec<ListenAddress>,
    /// How long a client may take from the first byte to the end of its request.
    pub handshake_time: Duration,
    /// The maximum size of a request's line and headers.
    pub request_bytes_max: usize,
    /// How many handshakes may be pending at once. Above that, the one that has waited for its
    /// client the longest is dropped.
    pub handshakes_max: usize,
    /// The origins whose pages may open a WebSocket.
    pub origins: Origins,
    /// The header in which trusted proxies send the address of the client; none: they send none.
    pub address_header: Option<AddressHeader>,
    /// Whether each connection begins with a PROXY protocol header.
    pub proxy_protocol: ProxyProtocol,
    /// Its certificate; none: it does not use TLS.
    pub tls: Option<TlsConfig>,
}

/// The settings of WebSocket connections.
#[derive(Debug, Clone)]
pub struct WebSocketConfig {
    /// The interval of pings.
    pub ping_interval: Duration,
    /// The time within which data must be received after a ping.
    pub pong_time: Duration,
    /// How long a closing client may take to read its last bytes.
    pub close_time: Duration,
    /// The maximum size of a message, in one frame or several.
    pub message_bytes_max: usize,
    /// How many frames in a row may be no commands.
    pub bad_frames_max: u32,
}

/// The limits of client commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub connections_max: usize,
    /// Connections at once from one address; of IPv6, from one /64.
    pub connections_per_address_max: usize,
    /// Pending handshakes from one address, at each door.
    pub handshakes_per_address_max: usize,
    /// Networks whose addresses do not count for the previous two.
    pub uncounted_networks: Vec<Network>,
    /// Commands per second of one connection.
    pub commands_per_second_max: usize,
    /// Names that one connection is subscribed to.
    pub subscriptions_max: usize,
    /// Patterns among them.
    pub patterns_max: usize,
    /// How much memory the names of several connections may use.
    pub names: NameLimits,
    /// Names in one command.
    pub names_per_command_max: usize,
    /// Commands between MULTI and EXEC.
    pub transaction_commands_max: usize,
    /// The length of a channel's or pattern's name.
    pub name_bytes_max: usize,
    /// The size of a payload.
    pub payload_bytes_max: usize,
    /// Failures to authenticate within a minute, for each connection and for each
    /// address.
    pub auth_attempts_per_minute_max: usize,
    /// Attributes that plugins store for one connection, keys and values.
    pub attributes_bytes_max: usize,
    /// Counters in one name space.
    pub counters_max: usize,
}

/// The Pub/Sub engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The source of the engine.
    pub source: EngineSource,
    /// How many instances the channels are spread over.
    pub shards: usize,
    /// The processor time of one call.
    pub call_budget: Duration,
    /// The memory of one instance.
    pub memory_bytes_max: usize,
    /// How often a shard may be rebuilt within `rebuild_window`.
    pub rebuilds_max: usize,
    /// The window in which rebuilds are counted.
    pub rebuild_window: Duration,
    /// How long a shard that was rebuilt too often is not called.
    pub retry_time: Duration,
}

/// The source of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineSource {
    /// The component inside the server.
    Embedded,
    /// A component in a file, watched for changes.
    File(PathBuf),
    /// The library, without a sandbox.
    Native,
}

/// The plugins.
#[derive(Debug, Clone)]
pub struct PluginsConfig {
    /// The plugin directory.
    pub directory: Option<PathBuf>,
    /// The cache of compiled components.
    pub cache: CompileCache,
    /// The maximum number of plugins.
    pub plugins_max: usize,
    /// How many components may be compiled at the same time.
    pub compilations_max: usize,
    /// How long compiling one may take.
    pub compile_time: Duration,
    /// How long the directory must be unchanged before a change is applied.
    pub debounce: Duration,
    /// How often the directory is polled, besides the file system events.
    pub poll_time: Duration,
    /// Defaults for plugins whose own file sets no value.
    pub defaults: PluginLimits,
    /// The wait before the second rebuild in a row; doubles from there.
    pub rebuild_backoff: Duration,
    /// The longest wait before a rebuild.
    pub rebuild_backoff_max: Duration,
    /// How many existing subscriptions are checked per second after a plugin changed.
    pub recheck_names_per_second_max: usize,
}

/// What happens to a plugin that is parked because it failed too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnPark {
    /// It waits for a new file.
    Stay,
    /// The version that it replaced is restored.
    Rollback,
}

/// The limits of one plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PluginLimits {
    /// The processor time of one call.
    pub call_budget: Duration,
    /// The processor time of `init`, `save` and `restore`.
    pub init_budget: Duration,
    /// The memory of one instance.
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
    /// The largest file of a component.
    pub component_bytes_max: usize,
    /// How often it may fail within `strikes_window` before it is parked.
    pub strikes_max: usize,
    /// The window in which failures are counted.
    pub strikes_window: Duration,
    /// How many failures one connection may cause within `strikes_window` before the plugin is no
    /// longer called for it.
    pub strikes_per_connection_max: usize,
    /// How many spare instances each plugin has.
    pub spares: usize,
    /// The processor time of `save` and `restore` of all instances together, while all messages
    /// wait.
    pub handover_budget: Duration,
    /// What happens when it is parked.
    pub on_park: OnPark,
    /// How long a client waits for a call off the data path.
    pub admission_time: Duration,
    /// The limits for its HTTP requests, where it may send any.
    pub outside: OutsideLimits,
}

/// The admin API: its listener, its tokens and its limits.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// The listening addresses; none: the API is off.
    pub listen: Vec<ListenAddress>,
    /// The tokens that it accepts. Without tokens it needs no authentication and must listen on
    /// loopback.
    pub tokens: Tokens,
    /// The maximum size of an uploaded component.
    pub upload_bytes_max: usize,
    /// How many components may be uploaded at the same time.
    pub uploads_max: usize,
    /// The largest body of all other requests.
    pub body_bytes_max: usize,
    /// How long a client may take to send a request, or to read a part of the response.
    pub request_time: Duration,
    /// How long a client may take to send the head of a request, and how long an idle
    /// connection is kept.
    pub head_time: Duration,
    /// Connections at once. Above that, the connection that has been idle the longest is closed.
    pub connections_max: usize,
    /// The same for one address.
    pub connections_per_address_max: usize,
    /// Whether each connection begins with a PROXY protocol header.
    pub proxy_protocol: ProxyProtocol,
    /// How many trace subscribers there may be.
    pub traces_max: usize,
    /// How many events may wait for one trace subscriber.
    pub trace_queue_max: usize,
}

/// The cache of compiled components.
#[derive(Debug, Clone)]
pub struct CompileCache {
    /// The directory; none: components are compiled at each start.
    pub directory: Option<PathBuf>,
    /// The maximum size of the directory, above which old files are removed.
    pub bytes_max: u64,
}

/// How much may be queued, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxLimits {
    /// Bytes at which the connection is closed at once.
    pub bytes_max: usize,
    /// Bytes that may not be exceeded for longer than `soft_time`.
    pub soft_bytes: usize,
    /// How long `soft_bytes` may be exceeded.
    pub soft_time: Duration,
}

/// How much a plugin may do over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutsideLimits {
    /// How long it may take, from when the call is requested.
    pub time: Duration,
    /// The largest body of one response.
    pub response_bytes_max: usize,
    /// The maximum number of requests in one call.
    pub requests_max: usize,
    /// How many calls may run at once.
    pub calls_max: usize,
}

impl Config {
    /// Reads the file that the flags name, applies the flags, and validates the result.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is not TOML, has an unknown key, or a value is outside its range.
    pub fn load(overrides: &Overrides) -> Result<Config, ConfigError> {
        let mut raw = match &overrides.file {
            Some(path) => {
                let text = file::read_text(path, file::SETTINGS_BYTES_MAX)
                    .map_err(|source| unreadable(path, source))?;
                parse(&text).map_err(|problem| ConfigError::Malformed {
                    path: path.clone(),
                    problem: file::toml_problem(&text, &problem),
                })?
            }
            None => RawConfig::default(),
        };
        if let Some(path) = &overrides.file {
            raw.resolve_against(path.parent().unwrap_or(Path::new("")));
        }
        raw.override_with(overrides);
        let password_file = raw.cluster.password_file.clone();
        let mut config = raw.check()?;
        if let Some(cluster) = &mut config.cluster {
            cluster.read_files(password_file.as_deref())?;
        }
        Ok(config)
    }
}

impl Config {
    /// The settings as a commented config file. Secrets are redacted.
    pub fn show(&self) -> String {
        show::show(&self.written)
    }

    /// Parses the text of a config file. Files that it names are not read.
    ///
    /// # Errors
    ///
    /// As `load`.
    pub fn from_text(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let raw = parse(text).map_err(|problem| ConfigError::Malformed {
            path: path.to_owned(),
            problem: file::toml_problem(text, &problem),
        })?;
        raw.check()
    }
}

impl Default for Config {
    fn default() -> Config {
        RawConfig::default().check().expect("a test holds the defaults to their ranges")
    }
}

fn unreadable(path: &Path, source: std::io::Error) -> ConfigError {
    let source = match source.kind() {
        // A pipe gives its bytes once, and might never end.
        std::io::ErrorKind::InvalidInput => std::io::Error::new(
            source.kind(),
            format!("{source}: the server reads it again when it changes, so it must be one"),
        ),
        _ => source,
    };
    ConfigError::Unreadable { path: path.to_owned(), source }
}

fn parse(text: &str) -> Result<RawConfig, toml::de::Error> {
    toml::from_str(text)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn an_admin_listener_beyond_loopback_needs_tokens() {
        let problem = check("[admin]\nlisten = '0.0.0.0:1'").unwrap_err();
        assert!(
            problem.contains("admin.tokens_file") && problem.contains("127.0.0.1"),
            "{problem}"
        );
        assert!(check("[admin]\nlisten = '[::1]:1'").is_ok());
        assert!(
            check("[admin]\nlisten = 'off'").is_ok_and(|config| config.admin.listen.is_empty())
        );
    }

    pub(super) fn check(text: &str) -> Result<Config, String> {
        parse(text).map_err(|e| e.to_string())?.check().map_err(|e| e.to_string())
    }

    const EXAMPLE: &str = include_str!("../../../switchyard.example.toml");

    /// The example file with a value for every setting, and the only file that is read during
    /// validation.
    pub(super) fn every_setting() -> (String, tempfile::NamedTempFile) {
        // A cluster refuses the directory of histories.
        let is_refused = |line: &&str| *line == "directory = \"history\"";
        let text: String = EXAMPLE
            .lines()
            .map(|line| line.strip_prefix("#= ").unwrap_or(line))
            .filter(|line| !is_refused(line))
            .map(|line| line.to_owned() + "\n")
            .collect();
        let tokens = tempfile::NamedTempFile::new().expect("there is room");
        std::fs::write(&tokens, "ops:0123456789abcdef").expect("it can be written");
        let path = format!("{:?}", tokens.path().display().to_string());
        // Files of TLS are for a backplane with TLS.
        let text = text.replace("\"tokens\"", &path).replace("redis://127", "rediss://127");
        (text, tokens)
    }

    #[test]
    fn the_example_file_says_the_defaults() {
        let (every_setting, _tokens) = every_setting();
        let written = check(EXAMPLE).expect("the example file holds");
        assert_eq!(format!("{written:?}"), format!("{:?}", Config::default()));
        check(&every_setting).expect("what the example file leaves out would hold too");
    }

    #[test]
    fn the_example_file_has_the_rule_of_the_protocol() {
        let lines = EXAMPLE.lines().skip_while(|line| *line != "#= [[channels]]");
        let lines = lines.map_while(|line| line.strip_prefix("#= ")).collect::<Vec<_>>();
        let config = check(&lines.join("\n")).expect("the rule is valid");
        let rule = ChannelRule {
            match_: vec!["chat.*".to_owned()],
            history: Some(HistoryRule { messages: 100, age_ms: 300_000, idle_ms: 86_400_000 }),
            presence: Some(PresenceRule { members_max: 1_000 }),
        };
        assert_eq!(config.channels.rules(), [rule]);
    }

    #[test]
    fn every_time_and_size_may_have_a_unit() {
        let written = serde_json::to_value(RawConfig::default()).expect("JSON's types");
        let rule = serde_json::to_value(raw::RawChannelRule::default()).expect("JSON's types");
        let mut seen = 0;
        for (table, keys) in written.as_object().expect("tables") {
            // The rules are a list of tables.
            let (table, keys) = match keys {
                Value::Array(_) => (format!("[{table}]"), &rule),
                keys => (table.clone(), keys),
            };
            for key in keys.as_object().expect("keys").keys() {
                let (good, bad) = match key {
                    key if key.ends_with("_ms") => ("'25s'", "'1MB'"),
                    key if key.contains("bytes") => ("'1MiB'", "'25s'"),
                    _ => continue,
                };
                let with = |value: &str| parse(&format!("[{table}]\n{key} = {value}"));
                assert!(with(good).is_ok(), "{table}.{key} = {good}");
                let problem = with(bad).expect_err(key);
                assert!(problem.message().contains("such as \""), "{table}.{key}: {problem}");
                assert!(with("7").is_ok(), "{table}.{key} = 7");
                seen += 1;
            }
        }
        assert!(seen > 50, "{seen}");
        let config = check("[websocket]\nping_interval_ms = '25s'\nmessage_bytes_max = '2MB'");
        let websocket = config.expect("valid").websocket;
        assert_eq!(websocket.ping_interval, Duration::from_secs(25));
        assert_eq!(websocket.message_bytes_max, 2_000_000);
        assert_eq!(
            check("[websocket]\nping_interval_ms = '2days'").unwrap_err(),
            "websocket.ping_interval_ms is 172800000, but must be from 1 to 86400000"
        );
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
        raw.override_with(&Overrides {
            http: vec!["localhost:2".to_owned()],
            engine: Some("native".into()),
            ..Overrides::default()
        });
        let config = raw.check().expect("valid");
        assert_eq!(config.http.listen, [ListenAddress::Tcp(([127, 0, 0, 1], 2).into())]);
        assert_eq!(config.engine.source, EngineSource::Native);
    }
}
