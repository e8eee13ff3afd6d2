//! Settings that are valid alone and contradict each other.

use std::time::Duration;

use crate::{BackplaneKind, ClusterConfig, Config, ConfigError};

/// What a command needs around a payload: its id, its verb, a short name and the punctuation.
const COMMAND_BYTES: usize = 64;

/// Checks settings against each other.
///
/// # Errors
///
/// Two settings contradict each other. The error names both, and what would be right.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    check_payload(config)?;
    let plugins = &config.plugins;
    check_backoff(
        ("plugins.rebuild_backoff_max_ms", plugins.rebuild_backoff_max),
        ("plugins.rebuild_backoff_ms", plugins.rebuild_backoff),
    )?;
    config.cluster.as_ref().map_or(Ok(()), |cluster| check_cluster(cluster, config))
}

/// A payload that is allowed can be received, and sent.
fn check_payload(config: &Config) -> Result<(), ConfigError> {
    let payload = config.limits.payload_bytes_max;
    let needed = payload + COMMAND_BYTES;
    let message = config.websocket.message_bytes_max;
    if message < needed {
        return Err(ConfigError::OutOfRange {
            key: "websocket.message_bytes_max",
            value: message.to_string(),
            expected: format!(
                "at least {needed}, which is limits.payload_bytes_max and {COMMAND_BYTES} bytes \
                 for the command around a payload; or set a lower limits.payload_bytes_max"
            ),
        });
    }
    let budget = &config.memory.budget;
    let least = budget.outboxes.min(budget.input);
    if payload > least {
        return Err(ConfigError::OutOfRange {
            key: "limits.payload_bytes_max",
            value: payload.to_string(),
            expected: format!(
                "at most {least}, which is the lower one of limits.outbox_bytes_total_max and \
                 limits.input_bytes_total_max; or set a higher memory.bytes_max"
            ),
        });
    }
    Ok(())
}

fn check_cluster(cluster: &ClusterConfig, config: &Config) -> Result<(), ConfigError> {
    if let Some(store) = &config.history_store {
        return Err(ConfigError::OutOfRange {
            key: "history.directory",
            value: store.directory.display().to_string(),
            expected: "left out while cluster.url (--cluster) is set: the backplane keeps the \
                       histories of all nodes"
                .to_owned(),
        });
    }
    check_backoff(
        ("cluster.reconnect_max_ms", cluster.reconnect_wait_max),
        ("cluster.reconnect_ms", cluster.reconnect_wait),
    )?;
    let payload = config.limits.payload_bytes_max;
    for (key, bytes_max) in [
        ("cluster.outgoing_bytes_max", cluster.outgoing_bytes_max),
        ("cluster.incoming_bytes_max", cluster.incoming_bytes_max),
    ] {
        if bytes_max < payload {
            return Err(ConfigError::OutOfRange {
                key,
                value: bytes_max.to_string(),
                expected: format!("at least {payload}, which is limits.payload_bytes_max"),
            });
        }
    }
    // NATS may change to TLS at the server's request.
    let is_plain = matches!(cluster.kind, BackplaneKind::Redis { is_tls: false, .. });
    let tls = &cluster.tls;
    let files = [
        ("cluster.ca_file", tls.authority.as_ref()),
        ("cluster.client_cert_file", tls.client.as_ref().map(|(certificate, _)| certificate)),
    ];
    match files.into_iter().find_map(|(key, file)| Some((key, file?))) {
        Some((key, file)) if is_plain => Err(ConfigError::OutOfRange {
            key,
            value: format!("{:?}", file.path.display().to_string()),
            expected: "left out where cluster.url is redis://, which is not encrypted; for TLS \
                       the URL begins with rediss://"
                .to_owned(),
        }),
        _ => Ok(()),
    }
}

/// A wait that grows from `first` to `most`.
fn check_backoff(
    (most_key, most): (&'static str, Duration),
    (first_key, first): (&'static str, Duration),
) -> Result<(), ConfigError> {
    if most >= first {
        return Ok(());
    }
    Err(ConfigError::OutOfRange {
        key: most_key,
        value: most.as_millis().to_string(),
        expected: format!("at least {}, which is {first_key}", first.as_millis()),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;

    #[test]
    fn contradictions_are_refused_with_both_settings() {
        for (text, key, other) in [
            (
                "websocket.message_bytes_max = '1MB'",
                "websocket.message_bytes_max is 1000000, but must be at least 1048640",
                "limits.payload_bytes_max",
            ),
            (
                "limits.payload_bytes_max = '2MiB'",
                "websocket.message_bytes_max is 1114112",
                "limits.payload_bytes_max",
            ),
            (
                "limits.payload_bytes_max = '20MiB'\nwebsocket.message_bytes_max = '32MiB'\n\
                 memory.bytes_max = '64MiB'",
                "limits.payload_bytes_max is 20971520, but must be at most ",
                "memory.bytes_max",
            ),
            (
                "plugins.rebuild_backoff_ms = '1m'",
                "plugins.rebuild_backoff_max_ms is 10000, but must be at least 60000",
                "plugins.rebuild_backoff_ms",
            ),
            (
                "cluster.url = 'redis://a'\ncluster.reconnect_max_ms = 10",
                "cluster.reconnect_max_ms is 10, but must be at least 100",
                "cluster.reconnect_ms",
            ),
            (
                "cluster.url = 'redis://a'\ncluster.incoming_bytes_max = 1024",
                "cluster.incoming_bytes_max is 1024",
                "limits.payload_bytes_max",
            ),
            (
                "cluster.url = 'redis://a'\ncluster.ca_file = 'ca.pem'",
                "cluster.ca_file is \"ca.pem\"",
                "rediss://",
            ),
            ("cluster.user = 'me'", "cluster.url is missing", "cluster.user"),
            (
                "http.tls.client_certificates = 'required'",
                "http.tls.client_ca is missing",
                "http.tls.client_certificates",
            ),
            (
                "limits.name_bytes_total_max = 2000\nlimits.name_bytes_per_address_max = 3000",
                "limits.name_bytes_per_address_max is 3000, but must be from 1 to 2000",
                "",
            ),
        ] {
            let problem = check(text).expect_err(text);
            assert!(problem.contains(key) && problem.contains(other), "{text}: {problem}");
        }
        for text in [
            "limits.payload_bytes_max = 64\nwebsocket.message_bytes_max = 128",
            "cluster.url = 'rediss://a'\ncluster.ca_file = 'ca.pem'",
            "cluster.url = 'nats://a'\ncluster.ca_file = 'ca.pem'",
        ] {
            assert!(check(text).is_ok(), "{text}");
        }
    }
}
