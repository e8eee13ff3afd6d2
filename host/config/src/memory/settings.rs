//! The settings of memory, checked.

use std::path::Path;
use std::time::Duration;

use tracing::info;

use super::available::{Available, available};
use super::{Budget, Excess, FixedBudgets, Size, default_bytes_max, percent};
use crate::{ConfigError, WASM_MEMORY_BYTES};

/// How much memory the server may use, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryConfig {
    /// The total bound, and its budgets.
    pub budget: Budget,
    /// Where the bound comes from, as text.
    pub source: String,
    /// The limit on the outboxes of one address's connections.
    pub outbox_per_address: usize,
    /// The limit on partly received input of one address's connections.
    pub input_per_address: usize,
    /// How long a message may take from its first byte to its last.
    pub input_time: Duration,
    /// The limit of one engine instance.
    pub engine_instance: usize,
    /// The limit of one plugin instance, unless its own settings have one.
    pub plugin_instance: usize,
}

/// The settings as written; none: derived.
#[derive(Debug, Default, Clone, Copy)]
pub struct Written {
    /// `memory.bytes_max`
    pub bytes_max: Option<u64>,
    /// `limits.outbox_bytes_total_max`
    pub outbox_total: Option<u64>,
    /// `limits.outbox_bytes_per_address_max`
    pub outbox_per_address: Option<u64>,
    /// `limits.input_bytes_total_max`
    pub input_total: Option<u64>,
    /// `limits.input_bytes_per_address_max`
    pub input_per_address: Option<u64>,
    /// `history.bytes_max`
    pub history_total: Option<u64>,
    /// `limits.name_bytes_total_max`
    pub names_total: Option<u64>,
    /// `limits.input_timeout_ms`
    pub input_timeout_ms: u64,
    /// `engine.memory_bytes_max`
    pub engine_instance: Option<u64>,
    /// `plugins.memory_bytes_max`
    pub plugin_instance: Option<u64>,
    /// The number of engine instances.
    pub engine_instances: usize,
}

/// From the minimum of a server without clients to more than any machine has.
const BYTES_MAX: std::ops::RangeInclusive<u64> = 32 << 20..=1 << 50;
/// The minimum of a total: one message of the usual size, with overhead.
const TOTAL_MIN: u64 = 1 << 20;
/// The minimum of history: some hundred short messages.
const HISTORY_MIN: u64 = 64 << 10;
/// The minimum for one address.
const PER_ADDRESS_MIN: u64 = 64 << 10;
/// The share of one address in a total, in percent.
const PER_ADDRESS_PERCENT: usize = 25;

/// The engine's share of the budget that it shares with the plugins, in percent.
const ENGINE_PERCENT: usize = 75;
/// While the engine is swapped there are two of each instance.
const INSTANCES_IN_A_SWAP: usize = 2;
/// With less, an engine instance holds no useful number of names. It is a limit, not a reservation,
/// so it may exceed the budget of a very small server.
const ENGINE_INSTANCE_MIN: usize = 8 << 20;
/// Enough for an interpreter, if the server has that much.
const PLUGIN_INSTANCE_MAX: usize = 64 << 20;
const PLUGIN_INSTANCE_MIN: usize = 16 << 20;

/// Validates the settings, and derives the rest from the available memory.
///
/// # Errors
///
/// A value is out of its range, or the values do not fit into the bound.
pub fn check(written: Written) -> Result<MemoryConfig, ConfigError> {
    check_with(written, available(Path::new("/")))
}

fn check_with(written: Written, available: Available) -> Result<MemoryConfig, ConfigError> {
    use crate::{bytes, millis};
    let (bytes_max, source) = match written.bytes_max {
        Some(value) => {
            (bytes("memory.bytes_max", value, BYTES_MAX)?, "memory.bytes_max".to_owned())
        }
        None => {
            let Available { bytes, source } = available;
            let size = Size(usize::try_from(bytes).unwrap_or(usize::MAX));
            (default_bytes_max(bytes), format!("80 % of {size}: {source}"))
        }
    };
    let total = |key: &'static str, value: Option<u64>| {
        value.map(|value| bytes(key, value, TOTAL_MIN..=*BYTES_MAX.end())).transpose()
    };
    let engine = written
        .engine_instance
        .map(|value| bytes("engine.memory_bytes_max", value, WASM_MEMORY_BYTES))
        .transpose()?;
    let plugin = written
        .plugin_instance
        .map(|value| bytes("plugins.memory_bytes_max", value, WASM_MEMORY_BYTES))
        .transpose()?;
    // A value that fits into the engine's share does not change the budget.
    let engine_share = percent(Budget::derive(bytes_max).engine_and_plugins, ENGINE_PERCENT);
    let engine_in_all = engine
        .map(|bytes| bytes.saturating_mul(written.engine_instances))
        .filter(|bytes| *bytes > engine_share);
    let fixed = FixedBudgets {
        outboxes: total("limits.outbox_bytes_total_max", written.outbox_total)?,
        input: total("limits.input_bytes_total_max", written.input_total)?,
        history: written
            .history_total
            .map(|value| bytes("history.bytes_max", value, HISTORY_MIN..=*BYTES_MAX.end()))
            .transpose()?,
        names: written.names_total.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
        engine_and_plugins: engine_in_all,
    };
    let budget = Budget::divide(bytes_max, fixed)
        .map_err(|excess| does_not_fit(bytes_max, &source, &written, fixed, excess))?;
    if let Some(bytes) = plugin
        && bytes > bytes_max
    {
        return Err(ConfigError::OutOfRange {
            key: "plugins.memory_bytes_max",
            value: bytes.to_string(),
            expected: format!("no more than memory.bytes_max, which is {bytes_max} ({source})"),
        });
    }
    let per_address = |key: &'static str, value: Option<u64>, total: usize| match value {
        Some(value) => bytes(key, value, PER_ADDRESS_MIN..=total as u64),
        None => Ok(percent(total, PER_ADDRESS_PERCENT)),
    };
    let engine_share = percent(budget.engine_and_plugins, ENGINE_PERCENT);
    let engine_instances = written.engine_instances.max(1) * INSTANCES_IN_A_SWAP;
    Ok(MemoryConfig {
        budget,
        source,
        outbox_per_address: per_address(
            "limits.outbox_bytes_per_address_max",
            written.outbox_per_address,
            budget.outboxes,
        )?,
        input_per_address: per_address(
            "limits.input_bytes_per_address_max",
            written.input_per_address,
            budget.input,
        )?,
        input_time: millis("limits.input_timeout_ms", written.input_timeout_ms)?,
        engine_instance: engine.unwrap_or_else(|| {
            let most = usize::try_from(*WASM_MEMORY_BYTES.end()).unwrap_or(usize::MAX);
            (engine_share / engine_instances).clamp(ENGINE_INSTANCE_MIN, most)
        }),
        plugin_instance: plugin
            .unwrap_or((bytes_max / 4).clamp(PLUGIN_INSTANCE_MIN, PLUGIN_INSTANCE_MAX)),
    })
}

/// The error with the setting and the valid values.
fn does_not_fit(
    bytes_max: usize,
    source: &str,
    written: &Written,
    fixed: FixedBudgets,
    excess: Excess,
) -> ConfigError {
    let engine = written.engine_instance.unwrap_or_default();
    let instances = written.engine_instances;
    let set: Vec<String> = [
        fixed.outboxes.map(|bytes| format!("limits.outbox_bytes_total_max = {bytes}")),
        fixed.input.map(|bytes| format!("limits.input_bytes_total_max = {bytes}")),
        fixed.history.map(|bytes| format!("history.bytes_max = {bytes}")),
        fixed.names.map(|bytes| format!("limits.name_bytes_total_max = {bytes}")),
        fixed.engine_and_plugins.map(|_| {
            format!("engine.memory_bytes_max = {engine} for each of {instances} instances")
        }),
    ]
    .into_iter()
    .flatten()
    .collect();
    ConfigError::OutOfRange {
        key: "memory.bytes_max",
        value: format!("{bytes_max} ({source})"),
        expected: format!(
            "at least {}: {} come to {}, and the rest of the server needs some as well; or set \
             less for these",
            excess.bytes_max_min,
            set.join(", "),
            Size(excess.fixed),
        ),
    }
}

impl MemoryConfig {
    /// Logs the values in use.
    pub fn log(&self) {
        let Budget { bytes_max, outboxes, input, history, names, engine_and_plugins } = self.budget;
        info!(
            bytes_max,
            from = self.source,
            outboxes,
            outboxes_per_address = self.outbox_per_address,
            input,
            input_per_address = self.input_per_address,
            history,
            names,
            engine_and_plugins,
            engine_instance = self.engine_instance,
            plugin_instance = self.plugin_instance,
            "memory budgets were computed"
        );
    }

    /// The values in use, in one line.
    pub fn summary(&self) -> String {
        let MemoryConfig {
            budget: Budget { bytes_max, outboxes, input, history, names, engine_and_plugins },
            source,
            outbox_per_address,
            input_per_address,
            input_time: _,
            engine_instance,
            plugin_instance,
        } = self;
        format!(
            "at most {} ({source}): outboxes {} ({} for each address), input {} ({} for each \
             address), history {}, names {}, engine and plugins {} ({} for each instance of the \
             engine, {} for each of a plugin)",
            Size(*bytes_max),
            Size(*outboxes),
            Size(*outbox_per_address),
            Size(*input),
            Size(*input_per_address),
            Size(*history),
            Size(*names),
            Size(*engine_and_plugins),
            Size(*engine_instance),
            Size(*plugin_instance),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::available::Source;
    use super::*;

    const MIB: u64 = 1 << 20;

    fn check(written: Written) -> Result<MemoryConfig, String> {
        let machine = Available { bytes: 1_000 * MIB, source: Source::Machine };
        let written = Written { input_timeout_ms: 1, engine_instances: 4, ..written };
        check_with(written, machine).map_err(|problem| problem.to_string())
    }

    #[test]
    fn nothing_written_is_four_fifths_of_what_there_is() {
        let config = check(Written::default()).expect("it fits");
        assert_eq!(config.budget.bytes_max, 800 << 20);
        assert_eq!((config.outbox_per_address, config.input_per_address), (60 << 20, 20 << 20));
        assert_eq!(config.engine_instance, 15 << 20);
        let summary = config.summary();
        assert!(summary.starts_with("at most 800.0 MiB (80 % of 1000.0 MiB: the memory of the"));
    }

    #[test]
    fn a_small_server_starts() {
        let config = check(Written { bytes_max: Some(64 * MIB), ..Written::default() });
        let config = config.expect("it fits");
        assert_eq!(config.source, "memory.bytes_max");
        assert_eq!((config.engine_instance, config.plugin_instance), (8 << 20, 16 << 20));
    }

    #[test]
    fn what_is_set_beyond_the_bound_is_refused_with_what_would_be_right() {
        let written = Written {
            outbox_total: Some(700 * MIB),
            engine_instance: Some(2 << 30),
            ..Written::default()
        };
        let problem = check(written).expect_err("it does not fit");
        for part in [
            "memory.bytes_max is 838860800 (80 % of",
            "limits.outbox_bytes_total_max = 734003200",
            "engine.memory_bytes_max = 2147483648 for each of 4 instances",
            "come to 8.7 GiB",
        ] {
            assert!(problem.contains(part), "{part}: {problem}");
        }
        let least = problem.split("at least ").nth(1).and_then(|rest| rest.split(':').next());
        let least = least.and_then(|least| least.parse().ok());
        assert!(check(Written { bytes_max: least, ..written }).is_ok());
    }

    #[test]
    fn an_address_may_not_have_more_than_all() {
        let written = Written { outbox_per_address: Some(300 * MIB), ..Written::default() };
        let problem = check(written).expect_err("it is too much");
        assert!(problem.contains("limits.outbox_bytes_per_address_max"), "{problem}");
        let written = Written { outbox_total: Some(10), ..Written::default() };
        assert!(check(written).is_err());
        let written = Written { plugin_instance: Some(900 * MIB), ..Written::default() };
        assert!(check(written).is_err_and(|problem| problem.contains("plugins.memory_bytes_max")));
    }
}
