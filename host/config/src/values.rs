//! Values with their ranges: numbers, times, sizes, networks.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::ConfigError;
use super::networks::Network;

/// The value of `--resp` and `--admin` for no door.
pub(crate) const OFF: &str = "off";

/// From 1 MiB, below which no guest starts, to the 32-bit address space.
pub const WASM_MEMORY_BYTES: RangeInclusive<u64> = 1 << 20..=4 << 30;

// The settings of plugins, in `[plugins]` and in each plugin's file.

/// `table_elements_max`
pub const TABLE_ELEMENTS: RangeInclusive<u64> = 1..=10_000_000;
/// `core_instances_max`
pub const CORE_INSTANCES: RangeInclusive<u64> = 1..=1_000;
/// `resources_max`
pub const RESOURCES: RangeInclusive<u64> = 1..=1_000_000;
/// `returned_bytes_max`
/// Of the file of a component.
pub const COMPONENT_BYTES: RangeInclusive<u64> = 1 << 10..=1 << 30;
/// Of what a plugin returns in one call.
pub const RETURNED_BYTES: RangeInclusive<u64> = 1 << 10..=1 << 30;
/// `strikes_max` and `strikes_per_connection_max`
pub const STRIKES: RangeInclusive<u64> = 1..=10_000;
/// `spares`. Zero is useful: an instance that is quick to build is built when it is needed.
pub const SPARES: RangeInclusive<u64> = 0..=8;
/// `http_response_bytes_max`
pub const HTTP_RESPONSE_BYTES: RangeInclusive<u64> = 1..=16 << 20;
/// `http_requests_max`
pub const HTTP_REQUESTS: RangeInclusive<u64> = 1..=100;
/// `http_calls_max`
pub const HTTP_CALLS: RangeInclusive<u64> = 1..=512;

pub(super) fn networks(key: &'static str, values: &[String]) -> Result<Vec<Network>, ConfigError> {
    let network = |value: &String| {
        value.parse().map_err(|()| ConfigError::OutOfRange {
            key,
            value: format!("\"{value}\""),
            expected: "networks such as 10.0.0.0/8 or fd00::/8, or addresses".to_owned(),
        })
    };
    values.iter().map(network).collect()
}

/// A time from one millisecond to one day. Zero never means "unlimited".
///
/// # Errors
///
/// It is out of range.
pub fn millis(key: &'static str, value: impl Into<u64>) -> Result<Duration, ConfigError> {
    time(key, value, 1..=86_400_000)
}

/// A time of at most one day, where zero is useful.
///
/// # Errors
///
/// It is out of range.
pub fn millis_or_none(key: &'static str, value: impl Into<u64>) -> Result<Duration, ConfigError> {
    time(key, value, 0..=86_400_000)
}

/// The time that a client may wait for a plugin's HTTP requests: shorter than the time within which
/// a WebSocket peer must respond.
///
/// # Errors
///
/// It is out of range.
pub fn http_time(key: &'static str, value: impl Into<u64>) -> Result<Duration, ConfigError> {
    time(key, value, 1..=30_000)
}

/// A time for which all messages may wait when a plugin is replaced.
///
/// # Errors
///
/// It is out of range.
pub fn handover_time(key: &'static str, value: impl Into<u64>) -> Result<Duration, ConfigError> {
    time(key, value, 1..=10_000)
}

fn time(
    key: &'static str,
    value: impl Into<u64>,
    range: RangeInclusive<u64>,
) -> Result<Duration, ConfigError> {
    let value = value.into();
    count(key, value, range).map(|_| Duration::from_millis(value))
}

/// A size in bytes.
///
/// # Errors
///
/// It is out of range; the error names the key and the range.
pub fn bytes(
    key: &'static str,
    value: impl Into<u64>,
    range: RangeInclusive<u64>,
) -> Result<usize, ConfigError> {
    count(key, value.into(), range)
}

/// A number.
///
/// # Errors
///
/// It is out of range; the error names the key and the range.
pub fn count(
    key: &'static str,
    value: u64,
    range: RangeInclusive<u64>,
) -> Result<usize, ConfigError> {
    if range.contains(&value) {
        return Ok(value as usize);
    }
    Err(ConfigError::OutOfRange {
        key,
        value: value.to_string(),
        expected: format!("from {} to {}", range.start(), range.end()),
    })
}
