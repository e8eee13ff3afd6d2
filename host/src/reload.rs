//! The part of the configuration that can be changed while the server runs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde_json::Value;
use tracing::{error, info, warn};

use switchyard_config::Overrides;
use switchyard_config::file::{EMPTY, Stamp, is_passing};
use switchyard_config::{Config, ConfigError, TlsConfig};
use switchyard_net::tls::{Tls, TlsError};
use switchyard_server::door::Door;
use switchyard_server::door::http::HttpDoor;
use switchyard_server::door::resp::RespDoor;
use switchyard_server::live_config::LiveConfig;
use switchyard_server::session::Services;
use switchyard_telemetry::log::{self, Log};

/// The source of the configuration, and the parts that are not the server's own.
pub struct Reloading {
    /// The command-line flags, which override the file again.
    pub overrides: Overrides,
    /// The log, whose filter may change.
    pub log: &'static Log,
}

/// The store of histories is opened at the start.
const OF_HISTORY_STORE: [&str; 2] = ["history.directory", "history.flush_bytes_max"];
const TOKENS_FILE: &str = "admin.tokens_file";

/// Keys with these prefixes apply as soon as the file is read.
const AT_ONCE: &[&str] = &[
    "security.trusted_proxies",
    "security.proxy_header_bytes_max",
    "http.origins",
    "http.client_address_header",
    "http.tls.",
    "resp.tls.",
    TOKENS_FILE,
    "limits.connections_max",
    "limits.connections_per_address_max",
    "limits.handshakes_per_address_max",
    "limits.uncounted_networks",
    "limits.commands_per_second_max",
    "limits.subscriptions_max",
    "limits.names_per_command_max",
    "limits.transaction_commands_max",
    "limits.name_bytes_max",
    "limits.payload_bytes_max",
    "limits.auth_attempts_per_minute_max",
    "limits.patterns_max",
    "limits.subscriptions_total_max",
    "limits.name_bytes_total_max",
    "limits.name_bytes_per_address_max",
    "limits.listing_bytes_max",
    "limits.pattern_cost_max",
    "limits.pattern_cost_per_address_max",
    "limits.pattern_cost_total_max",
    "limits.outbox_bytes_total_max",
    "limits.outbox_bytes_per_address_max",
    "limits.input_bytes_total_max",
    "limits.input_bytes_per_address_max",
    "limits.input_timeout_ms",
    "memory.bytes_max",
    "outbox.",
    "channels",
    "history.",
    "presence.",
    "shutdown.",
    "log.filter",
    "log.connections",
    "log.queue_",
];

/// A file that could not be read now, and probably can be a little later: there were no
/// descriptors, for instance.
#[derive(Debug)]
pub struct Unread(pub String);

/// What was refused last, by the name of its kind. The same files are read several times for one
/// change: notifications of the system come for each step of it, and certificates are read again
/// with the configuration that names them.
#[derive(Default)]
pub struct Refusals(Mutex<BTreeMap<&'static str, Refused>>);

/// The files when they were refused, and why.
type Refused = (Vec<Option<Stamp>>, String);

impl Refusals {
    /// Whether a refusal is to be logged: it is another one than the last, or of other versions of
    /// the files, or an operator requested that they be read.
    fn is_new(
        &self,
        what: &'static str,
        files: &[&PathBuf],
        problem: &str,
        is_requested: bool,
    ) -> bool {
        let stamps = files.iter().map(|file| Stamp::of(file)).collect();
        let refused = (stamps, problem.to_owned());
        let mut last = self.0.lock();
        let is_known = last.get(what) == Some(&refused);
        last.insert(what, refused);
        is_requested || !is_known
    }

    /// The files were accepted.
    fn forget(&self, what: &'static str) {
        self.0.lock().remove(what);
    }
}

fn io_of(problem: &ConfigError) -> Option<&io::Error> {
    match problem {
        ConfigError::Unreadable { source, .. } | ConfigError::UnreadableFile { source, .. } => {
            Some(source)
        }
        _ => None,
    }
}

/// Reloads the configuration, and applies it. An invalid one changes nothing.
///
/// # Errors
///
/// It must be loaded again.
pub fn reload(
    reloading: &Reloading,
    live: &LiveConfig,
    services: &Services,
    refusals: &Refusals,
    is_requested: bool,
) -> Result<(), Unread> {
    const KIND: &str = "config";
    let old = live.config();
    let refuse = |problem: &str| {
        let files: Vec<_> = reloading.overrides.file.iter().chain(&old.files).collect();
        if refusals.is_new(KIND, &files, problem, is_requested) {
            error!(problem, "the configuration was rejected: the current one stays in use");
        }
    };
    if let Some(problem) = reloading.overrides.file.as_deref().and_then(not_a_whole_file) {
        refuse(problem);
        return Ok(());
    }
    let mut new = match Config::load(&reloading.overrides) {
        Ok(new) => new,
        Err(problem) => {
            let io = io_of(&problem);
            let text = io.map_or_else(|| problem.to_string(), |io| format!("{problem}: {io}"));
            if io.is_some_and(is_passing) {
                return Err(Unread(text));
            }
            refuse(&text);
            return Ok(());
        }
    };
    let (mut changed, mut restart) = (Vec::new(), Vec::new());
    for key in changed_keys(&old.written, &new.written) {
        let is_switched = |old: &Option<TlsConfig>, new: &Option<TlsConfig>, table| {
            key.starts_with(table) && old.is_some() != new.is_some()
        };
        let resp_tls = |config: &Config| config.resp.as_ref().and_then(|resp| resp.tls.clone());
        let needs_restart = is_switched(&old.http.tls, &new.http.tls, "http.tls.")
            || is_switched(&resp_tls(&old), &resp_tls(&new), "resp.tls.")
            || OF_HISTORY_STORE.contains(&key.as_str())
            || (key == TOKENS_FILE && old.admin.tokens.is_empty() != new.admin.tokens.is_empty());
        if !needs_restart && AT_ONCE.iter().any(|start| key.starts_with(start)) {
            changed.push(key);
        } else {
            restart.push(key);
        }
    }
    // A log filter set by the admin API stays until the file has another one.
    let filtered = match new.log.filter == old.log.filter {
        true => Ok(()),
        false => reloading.log.set_filter(&new.log.filter),
    };
    if let Err(problem) = filtered {
        refuse(&problem);
        return Ok(());
    }
    refusals.forget(KIND);
    if new.log.connections != old.log.connections {
        log::follow(&new.log.connections);
    }
    reloading.log.set_limits(new.log.queue);
    services.limits.set(&new.limits);
    let connections = services.hub.connections();
    connections.set_limits(&new.limits, new.outbox);
    connections.memory().set_limits(&new.memory, new.limits.connections_max);
    services.hub.set_name_limits(new.limits.names);
    if new.admin.tokens.is_empty() != old.admin.tokens.is_empty() {
        // Whether tokens are required changes only with a restart.
        new.admin.tokens = old.admin.tokens.clone();
    }
    let are_tokens_new = new.admin.tokens != old.admin.tokens;
    if let (Some(backplane), Some(cluster)) = (&services.backplane, &new.cluster)
        && backplane.set_secrets(cluster)
    {
        info!(
            "the password or the certificates for the backplane were replaced: the next \
               connection uses them"
        );
    }
    services.hub.history().set(&new.history, &new.channels);
    if let (Some(store), Some(of)) = (services.hub.history().store(), &new.history_store) {
        store.set_flush_time(of.flush_time);
    }
    let each_max = new.limits.subscriptions_max;
    services.hub.presence().set(&new.presence, &new.channels, each_max);
    if new.channels != old.channels {
        new.channels.log_warnings();
        if let Some(backplane) = &services.backplane {
            backplane.rules_changed();
        }
    }
    live.set_config(new);
    if are_tokens_new {
        info!("the tokens of the admin API were replaced");
    }
    if !changed.is_empty() {
        info!(keys = changed.join(" "), "settings were changed");
    }
    if !restart.is_empty() {
        warn!(keys = restart.join(" "), "these settings change only when the server is restarted");
    }
    Ok(())
}

/// Why a configuration file is not read again; none: it is. An empty file is valid, and is most often
/// one that is being written. Reading what is no file might never end.
fn not_a_whole_file(file: &Path) -> Option<&'static str> {
    let metadata = fs::metadata(file).ok()?;
    match (metadata.is_file(), metadata.len()) {
        (false, _) => Some("it is not a regular file"),
        (true, 0) => Some(EMPTY),
        (true, _) => None,
    }
}

/// Reloads the certificates.
///
/// # Errors
///
/// They must be loaded again.
pub fn reload_certificates(
    live: &LiveConfig,
    refusals: &Refusals,
    is_requested: bool,
) -> Result<(), Unread> {
    let mut read = Ok(());
    let config = live.config();
    let of_resp = config.resp.as_ref().and_then(|resp| resp.tls.as_ref());
    for (door, files) in [(HttpDoor::NAME, config.http.tls.as_ref()), (RespDoor::NAME, of_resp)] {
        let (Some(state), Some(files)) = (live.door(door), files) else { continue };
        let Some(tls) = &state.tls else { continue };
        match Tls::reload(tls, files) {
            Ok(is_new) => {
                refusals.forget(door);
                if is_new {
                    info!(door, "the certificate was replaced");
                }
            }
            Err(TlsError::Unreadable { file, source }) if is_passing(&source) => {
                read = Err(Unread(format!("{}: {source}", file.display())));
            }
            Err(problem) => {
                let problem = problem.to_string();
                let files = [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()];
                let files: Vec<_> = files.into_iter().flatten().collect();
                if refusals.is_new(door, &files, &problem, is_requested) {
                    error!(door, problem, "the certificate was not replaced: the one in use stays");
                }
            }
        }
    }
    read
}

/// The keys with different values, as they are written in the file.
fn changed_keys(old: &Value, new: &Value) -> Vec<String> {
    let mut keys = Vec::new();
    compare("", old, new, &mut keys);
    keys
}

fn compare(at: &str, old: &Value, new: &Value, keys: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                let key_at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                compare(&key_at, old.get(key).unwrap_or(&Value::Null), value, keys);
            }
        }
        (old, new) if old != new => keys.push(at.to_owned()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_by_its_key() {
        let old = serde_json::json!({"a": {"b": 1, "c": [1]}, "d": null});
        let new = serde_json::json!({"a": {"b": 2, "c": [1, 2]}, "d": null});
        assert_eq!(changed_keys(&old, &new), ["a.b", "a.c"]);
        assert!(changed_keys(&old, &old).is_empty());
    }

    /// A key that is renamed would silently need a restart.
    #[test]
    fn every_key_that_holds_at_once_exists() {
        fn all(at: &str, value: &Value, keys: &mut Vec<String>) {
            match value {
                Value::Object(members) => members.iter().for_each(|(key, value)| {
                    let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                    all(&at, value, keys);
                }),
                _ => keys.push(at.to_owned()),
            }
        }
        let mut keys = Vec::new();
        all("", &Config::default().written, &mut keys);
        for start in AT_ONCE {
            assert!(keys.iter().any(|key| key.starts_with(start)), "{start}");
        }
    }
}
