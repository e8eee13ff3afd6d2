//! Limits on the memory that the names of all connections may use.
//!
//! The engine holds each name, and an instance has a fixed amount of memory, so these limits follow
//! from the memory of the instances, unless they are set. A limit that is set and does not fit is
//! refused.

use super::ConfigError;
use super::raw::RawLimits;
use super::values::{bytes, count};

/// The limits on names of several connections, and on the patterns of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameLimits {
    /// The length of one name, which determines the cost of a pattern.
    pub name_bytes_max: usize,
    /// Subscriptions of all connections.
    pub subscriptions_total_max: usize,
    /// How much their names count, in bytes.
    pub name_bytes_total_max: usize,
    /// How much those of one address count, in bytes.
    pub name_bytes_per_address_max: usize,
    /// The memory of a list of channels, in bytes.
    pub listing_bytes_max: usize,
    /// The cost of matching one connection's patterns for a publication, in steps.
    pub pattern_cost_max: u64,
    /// The same for the distinct patterns of one address.
    pub pattern_cost_per_address_max: u64,
    /// The same for all connections, for one name.
    pub pattern_cost_total_max: u64,
}

/// How much memory there is for names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// The memory of all engine instances that share the channels.
    pub engine: usize,
    /// The memory of the server itself.
    pub host: usize,
}

/// How many bytes of memory an engine must have for each byte that names count: the overhead of its
/// allocator, of half-filled nodes and of growing tables, of an instance with more than its share
/// of the names, and of what a call copies into it.
pub(super) const ENGINE_BYTES_PER_BYTE: usize = 2;

/// The memory of an instance without names.
pub(super) const ENGINE_BYTES: usize = 2 << 20;

/// The part of the names that one address may have.
const ADDRESS_SHARE: usize = 4;

/// As long as a short name with its overhead.
const SUBSCRIPTION_BYTES: usize = 128;

pub(super) fn check(limits: &RawLimits, room: Room) -> Result<NameLimits, ConfigError> {
    let capacity = (room.engine.saturating_sub(ENGINE_BYTES) / ENGINE_BYTES_PER_BYTE).max(1);
    let most = 1 << 40;
    let total = match limits.name_bytes_total_max {
        None => capacity.min(room.host),
        Some(total) => {
            let total = bytes("limits.name_bytes_total_max", total, 1..=most)?;
            if total > capacity {
                return Err(ConfigError::OutOfRange {
                    key: "limits.name_bytes_total_max",
                    value: total.to_string(),
                    expected: format!(
                        "at most {capacity}, which is what the engine can hold with \
                         engine.shards and engine.memory_bytes_max as they are"
                    ),
                });
            }
            total
        }
    };
    let key = "limits.name_bytes_per_address_max";
    Ok(NameLimits {
        name_bytes_max: bytes("limits.name_bytes_max", limits.name_bytes_max, 1..=1 << 20)?,
        subscriptions_total_max: match limits.subscriptions_total_max {
            None => (total / SUBSCRIPTION_BYTES).max(1),
            Some(max) => count("limits.subscriptions_total_max", max, 1..=1 << 32)?,
        },
        name_bytes_total_max: total,
        name_bytes_per_address_max: match limits.name_bytes_per_address_max {
            None => (total / ADDRESS_SHARE).max(1),
            Some(max) => bytes(key, max, 1..=total as u64)?,
        },
        listing_bytes_max: bytes(
            "limits.listing_bytes_max",
            limits.listing_bytes_max,
            1 << 10..=1 << 32,
        )?,
        pattern_cost_max: steps("limits.pattern_cost_max", limits.pattern_cost_max)?,
        pattern_cost_per_address_max: steps(
            "limits.pattern_cost_per_address_max",
            limits.pattern_cost_per_address_max,
        )?,
        pattern_cost_total_max: steps(
            "limits.pattern_cost_total_max",
            limits.pattern_cost_total_max,
        )?,
    })
}

fn steps(key: &'static str, value: u64) -> Result<u64, ConfigError> {
    count(key, value, 1..=1 << 40).map(|steps| steps as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bytes;

    const ROOM: Room = Room { engine: 16 << 20, host: 1 << 30 };

    #[test]
    fn what_is_not_set_follows_from_what_the_engine_holds() {
        let limits = check(&RawLimits::default(), ROOM).expect("it holds");
        assert_eq!(limits.name_bytes_total_max, 7 << 20);
        assert_eq!(limits.name_bytes_per_address_max, 7 << 18);
        assert_eq!(limits.subscriptions_total_max, (7 << 20) / 128);
        let limits = check(&RawLimits::default(), Room { host: 1 << 20, ..ROOM });
        assert_eq!(limits.expect("it holds").name_bytes_total_max, 1 << 20);
    }

    #[test]
    fn what_is_set_and_does_not_fit_into_the_engine_is_refused() {
        let set =
            |total| RawLimits { name_bytes_total_max: Some(Bytes(total)), ..RawLimits::default() };
        assert!(check(&set(7 << 20), ROOM).is_ok());
        let problem = check(&set((7 << 20) + 1), ROOM).unwrap_err().to_string();
        assert!(
            problem.contains("limits.name_bytes_total_max is 7340033")
                && problem.contains("at most 7340032"),
            "{problem}"
        );
        assert!(check(&set(0), ROOM).is_err());
    }
}
