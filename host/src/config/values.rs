//! Values with their ranges: numbers, times, sizes, addresses.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::ConfigError;

/// From 1 MiB, below which no guest starts, to the 32-bit address space.
pub(crate) const WASM_MEMORY_BYTES: RangeInclusive<u64> = 1 << 20..=4 << 30;

/// The settings of plugins, in `[plugins]` and in each plugin's file.
pub(crate) const TABLE_ELEMENTS: RangeInclusive<u64> = 1..=10_000_000;
pub(crate) const CORE_INSTANCES: RangeInclusive<u64> = 1..=1_000;
pub(crate) const RESOURCES: RangeInclusive<u64> = 1..=1_000_000;
pub(crate) const RETURNED_BYTES: RangeInclusive<u64> = 1 << 10..=1 << 30;
pub(crate) const STRIKES: RangeInclusive<u64> = 1..=10_000;
/// Zero is useful: an instance that is quick to build is built when it is needed.
pub(crate) const SPARES: RangeInclusive<u64> = 0..=8;
pub(crate) const HTTP_RESPONSE_BYTES: RangeInclusive<u64> = 1..=16 << 20;
pub(crate) const HTTP_REQUESTS: RangeInclusive<u64> = 1..=100;
pub(crate) const HTTP_CALLS: RangeInclusive<u64> = 1..=512;

pub(super) fn address(key: &'static str, value: &str) -> Result<SocketAddr, ConfigError> {
    let value = value
        .strip_prefix("localhost:")
        .map_or_else(|| value.to_owned(), |port| format!("127.0.0.1:{port}"));
    value.parse().map_err(|_| ConfigError::OutOfRange {
        key,
        value: format!("\"{value}\""),
        expected: "an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080".to_owned(),
    })
}

/// A time from one millisecond to one day. Zero never means "unlimited".
pub(crate) fn millis(key: &'static str, value: u64) -> Result<Duration, ConfigError> {
    count(key, value, 1..=86_400_000).map(|_| Duration::from_millis(value))
}

/// The time that a client may wait for a plugin's HTTP requests: shorter than the time within which
/// a WebSocket peer must respond.
pub(crate) fn http_time(key: &'static str, value: u64) -> Result<Duration, ConfigError> {
    count(key, value, 1..=30_000).map(|_| Duration::from_millis(value))
}

/// A time for which all messages may wait when a plugin is replaced.
pub(crate) fn handover_time(key: &'static str, value: u64) -> Result<Duration, ConfigError> {
    count(key, value, 1..=10_000).map(|_| Duration::from_millis(value))
}

pub(crate) fn bytes(
    key: &'static str,
    value: u64,
    range: RangeInclusive<u64>,
) -> Result<usize, ConfigError> {
    count(key, value, range)
}

pub(crate) fn count(
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
