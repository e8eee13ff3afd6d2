//! The settings of the backplane.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::file::{self, SETTINGS_BYTES_MAX};
use super::raw::RawCluster;
use super::values::{bytes, count, millis};

/// The backplane between this node and the others.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// The kind of the backplane, and its addresses.
    pub kind: BackplaneKind,
    /// The user that this node authenticates as.
    pub user: Option<String>,
    /// The password, or the token of NATS when there is no user.
    pub password: Option<Secret>,
    /// Certificates.
    pub tls: ClusterTls,
    /// The prefix of all channels and patterns there.
    pub prefix: String,
    /// What happens to publications while it is disconnected.
    pub when_disconnected: WhenDisconnected,
    /// How long the acknowledgement of a SUBSCRIBE may be delayed for it.
    pub join_time: Duration,
    /// How long a name stays subscribed after its last listener left.
    pub leave_delay: Duration,
    /// The timeout of connecting.
    pub connect_time: Duration,
    /// The timeout of a response, after which the connection is closed.
    pub answer_time: Duration,
    /// How often it is pinged.
    pub ping_interval: Duration,
    /// The wait before the second attempt to connect in a row; doubles from there.
    pub reconnect_wait: Duration,
    /// The longest wait before an attempt to connect.
    pub reconnect_wait_max: Duration,
    /// How many publications may wait to be sent.
    pub outgoing_messages_max: usize,
    /// How many bytes of them.
    pub outgoing_bytes_max: usize,
    /// How many bytes of messages from other nodes may wait to be delivered.
    pub incoming_bytes_max: usize,
    /// The same in messages, for each NATS subscription.
    pub nats_pending_max: usize,
    /// On how many servers of a NATS the streams of histories and keys are, when they are created.
    pub nats_replicas: usize,
    /// The timeout of requests to all nodes.
    pub ask_time: Duration,
}

/// The kind of the backplane, and its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackplaneKind {
    /// Redis or Valkey.
    Redis {
        /// One server, nodes of a cluster, or Sentinels.
        hosts: Vec<(String, u16)>,
        /// Whether it uses TLS.
        is_tls: bool,
        /// The name of the master in the Sentinels' configuration.
        sentinel: Option<String>,
    },
    /// NATS.
    Nats {
        /// The servers of one cluster.
        hosts: Vec<(String, u16)>,
        /// Whether it uses TLS.
        is_tls: bool,
    },
}

/// What happens to publications while the backplane is disconnected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenDisconnected {
    /// They are delivered on this node, and counted.
    Accept,
    /// They are refused with UNAVAILABLE.
    Refuse,
}

/// Certificates for the backplane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterTls {
    /// The root certificates to trust instead of the system's.
    pub authority: Option<PemFile>,
    /// This node's certificate and key.
    pub client: Option<(PemFile, PemFile)>,
}

/// A file of certificates or a key.
#[derive(Clone, PartialEq, Eq)]
pub struct PemFile {
    /// Its path.
    pub path: PathBuf,
    /// Its content.
    pub pem: Vec<u8>,
}

/// Whether it may contain a key.
impl std::fmt::Debug for PemFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.path.fmt(f)
    }
}

/// A secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret, for the code that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a secret")
    }
}

impl ClusterConfig {
    /// Reads the files, and the password, which the environment overrides.
    pub(super) fn read_files(&mut self, password_file: Option<&Path>) -> Result<(), ConfigError> {
        let read = |key: &'static str, path: &Path| {
            file::read(path, SETTINGS_BYTES_MAX).map_err(|source| ConfigError::UnreadableFile {
                key,
                path: path.to_owned(),
                source,
            })
        };
        if let Ok(password) = std::env::var(CLUSTER_PASSWORD) {
            self.password = Some(Secret(password));
        } else if let Some(path) = password_file {
            let bytes = read("cluster.password_file", path)?;
            let text = String::from_utf8(bytes).map_err(|_| ConfigError::BadFile {
                key: "cluster.password_file",
                path: path.to_owned(),
                problem: "it is not UTF-8".to_owned(),
            })?;
            self.password = Some(Secret(text.trim_end_matches(['\r', '\n']).to_owned()));
        }
        if let Some(authority) = &mut self.tls.authority {
            authority.pem = read("cluster.ca_file", &authority.path)?;
        }
        if let Some((certificate, key)) = &mut self.tls.client {
            certificate.pem = read("cluster.client_cert_file", &certificate.path)?;
            key.pem = read("cluster.client_key_file", &key.path)?;
        }
        Ok(())
    }
}

impl RawCluster {
    /// All values are validated, even without a backplane.
    pub(super) fn check(self) -> Result<Option<ClusterConfig>, ConfigError> {
        let kind = self.url.as_deref().map(backplane).transpose()?;
        let only_with_url = [
            ("cluster.user", self.user.is_some()),
            ("cluster.password_file", self.password_file.is_some()),
            ("cluster.ca_file", self.ca_file.is_some()),
            ("cluster.client_cert_file", self.client_cert_file.is_some()),
            ("cluster.client_key_file", self.client_key_file.is_some()),
        ];
        if let (None, Some((set, _))) = (&kind, only_with_url.iter().find(|(_, is_set)| *is_set)) {
            return Err(ConfigError::OutOfRange {
                key: "cluster.url",
                value: "missing".to_owned(),
                expected: format!("the URL of a backplane, as {set} is set"),
            });
        }
        let pem = |path: PathBuf| PemFile { path, pem: Vec::new() };
        let client = match (self.client_cert_file, self.client_key_file) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((pem(certificate), pem(key))),
            (Some(_), None) | (None, Some(_)) => {
                return Err(ConfigError::OutOfRange {
                    key: "cluster.client_cert_file",
                    value: "set without the other".to_owned(),
                    expected: "set together with cluster.client_key_file".to_owned(),
                });
            }
        };
        if let Some(BackplaneKind::Nats { .. }) = kind
            && !is_subject_prefix(&self.prefix)
        {
            return Err(ConfigError::OutOfRange {
                key: "cluster.prefix",
                value: format!("\"{}\"", self.prefix),
                expected: "tokens of a NATS subject without wildcards, such as my.prefix"
                    .to_owned(),
            });
        }
        let prefix_bytes = self.prefix.len() as u64;
        count("the length of cluster.prefix", prefix_bytes, 0..=255)?;
        let config = ClusterConfig {
            // The value is not used without a backplane.
            kind: kind.clone().unwrap_or(BackplaneKind::Nats { hosts: Vec::new(), is_tls: false }),
            user: self.user,
            password: None,
            tls: ClusterTls { authority: self.ca_file.map(pem), client },
            prefix: self.prefix,
            when_disconnected: self.when_away,
            join_time: millis("cluster.join_timeout_ms", self.join_timeout_ms)?,
            leave_delay: millis("cluster.leave_delay_ms", self.leave_delay_ms)?,
            connect_time: millis("cluster.connect_timeout_ms", self.connect_timeout_ms)?,
            answer_time: millis("cluster.answer_timeout_ms", self.answer_timeout_ms)?,
            ping_interval: millis("cluster.ping_interval_ms", self.ping_interval_ms)?,
            reconnect_wait: millis("cluster.reconnect_ms", self.reconnect_ms)?,
            reconnect_wait_max: millis("cluster.reconnect_max_ms", self.reconnect_max_ms)?,
            outgoing_messages_max: count(
                "cluster.outgoing_messages_max",
                self.outgoing_messages_max,
                1..=1 << 30,
            )?,
            outgoing_bytes_max: bytes(
                "cluster.outgoing_bytes_max",
                self.outgoing_bytes_max,
                1 << 10..=1 << 40,
            )?,
            incoming_bytes_max: bytes(
                "cluster.incoming_bytes_max",
                self.incoming_bytes_max,
                1 << 10..=1 << 40,
            )?,
            nats_pending_max: count(
                "cluster.nats_pending_max",
                self.nats_pending_max,
                16..=1 << 24,
            )?,
            nats_replicas: count("cluster.nats_replicas", self.nats_replicas, 1..=5)?,
            ask_time: millis("cluster.ask_timeout_ms", self.ask_timeout_ms)?,
        };
        Ok(kind.map(|_| config))
    }
}

/// What a URL says of a backplane. The error message contains no credentials.
fn backplane(url: &str) -> Result<BackplaneKind, ConfigError> {
    let refuse = |expected: &str| ConfigError::OutOfRange {
        key: "cluster.url",
        value: match url.rsplit_once('@') {
            Some((_, rest)) => format!("\"…@{rest}\""),
            None => format!("\"{url}\""),
        },
        expected: expected.to_owned(),
    };
    let forms = "redis://HOST:PORT, rediss://…, redis+sentinel://HOST:PORT/MASTER, \
                 nats://HOST:PORT or tls://HOST:PORT, with several hosts between commas";
    let (scheme, rest) = url.split_once("://").ok_or_else(|| refuse(forms))?;
    if rest.contains('@') {
        return Err(refuse(
            "without credentials: the user is cluster.user, the password stands in the environment \
             as SWITCHYARD_CLUSTER_PASSWORD or in the file cluster.password_file",
        ));
    }
    let (hosts, path) = match rest.split_once('/') {
        Some((hosts, path)) => (hosts, path),
        None => (rest, ""),
    };
    let read_hosts = |default_port: u16| {
        hosts.split(',').map(|host| read_host(host, default_port)).collect::<Option<Vec<_>>>()
    };
    let is_tls = scheme.starts_with("rediss") || scheme == "tls";
    let kind = match (scheme, path) {
        ("redis" | "rediss", "") => {
            read_hosts(6379).map(|hosts| BackplaneKind::Redis { hosts, is_tls, sentinel: None })
        }
        ("redis+sentinel" | "rediss+sentinel", master) if !master.is_empty() => read_hosts(26379)
            .map(|hosts| BackplaneKind::Redis { hosts, is_tls, sentinel: Some(master.to_owned()) }),
        ("nats" | "tls", "") => read_hosts(4222).map(|hosts| BackplaneKind::Nats { hosts, is_tls }),
        _ => None,
    };
    kind.ok_or_else(|| refuse(forms))
}

/// HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT.
fn read_host(text: &str, default_port: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, after.strip_prefix(':'))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = port.map_or(Some(default_port), |port| port.parse().ok())?;
    (!host.is_empty() && port > 0).then(|| (host.to_owned(), port))
}

fn is_subject_prefix(prefix: &str) -> bool {
    let is_token = |token: &str| {
        !token.is_empty()
            && token.chars().all(|character| {
                !character.is_whitespace()
                    && !character.is_control()
                    && !matches!(character, '*' | '>' | '%' | '$')
            })
    };
    prefix.is_empty() || prefix.split('.').all(is_token)
}

/// The environment variable with the password of the backplane.
const CLUSTER_PASSWORD: &str = "SWITCHYARD_CLUSTER_PASSWORD";

#[cfg(test)]
mod tests {
    use super::super::tests::check;
    use super::*;

    #[test]
    fn a_backplane_is_named_by_its_url() {
        let check = |url: &str| {
            let config = check(&format!("[cluster]\nurl = '{url}'"))?;
            config.cluster.map(|cluster| cluster.kind).ok_or("none".to_owned())
        };
        let host = |name: &str, port| vec![(name.to_owned(), port)];
        let redis = |hosts, is_tls| Ok(BackplaneKind::Redis { hosts, is_tls, sentinel: None });
        assert_eq!(check("redis://a"), redis(host("a", 6379), false));
        assert_eq!(check("rediss://[::1]:7"), redis(host("::1", 7), true));
        let two = vec![("a".to_owned(), 1), ("b".to_owned(), 2)];
        assert_eq!(check("nats://a:1,b:2"), Ok(BackplaneKind::Nats { hosts: two, is_tls: false }));
        let sentinel = Some("main".to_owned());
        let hosts = host("a", 26379);
        assert_eq!(
            check("redis+sentinel://a/main"),
            Ok(BackplaneKind::Redis { hosts, is_tls: false, sentinel })
        );
        for wrong in ["a:1", "http://a", "redis://", "redis://a:x", "redis://a/1", "nats://a:0"] {
            assert!(check(wrong).unwrap_err().contains("redis://HOST:PORT"), "{wrong}");
        }
    }

    #[test]
    fn credentials_in_a_url_are_refused_and_not_repeated() {
        let problem = check("[cluster]\nurl = 'redis://me:hunter2@a:1'").unwrap_err();
        assert!(problem.contains("SWITCHYARD_CLUSTER_PASSWORD"), "{problem}");
        assert!(!problem.contains("hunter2"), "{problem}");
        assert_eq!(format!("{:?}", Secret("hunter2".to_owned())), "a secret");
    }
}
