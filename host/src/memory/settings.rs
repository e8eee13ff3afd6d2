//! The settings of memory, checked.

use std::path::Path;
use std::time::Duration;

use tracing::info;

use super::available::{Available, available};
use super::{Budget, Excess, FixedBudgets, Size, default_bytes_max, percent};
use crate::config::{ConfigError, WASM_MEMORY_BYTES};

/// How much memory the server may use, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryConfig {
    /// The bound over everything, and its parts.
    pub budget: Budget,
    /// Where the bound comes from, in words.
    pub source: String,
    /// What may wait for connections of one address.
    pub outbox_per_address: usize,
    /// What connections of one address may hold of messages that were received in part.
    pub input_per_address: usize,
    /// How long a message may take from its first byte to its last.
    pub input_time: Duration,
    /// What one instance of the engine may hold.
    pub engine_instance: usize,
    /// What one instance of a plugin may hold, where its own settings say nothing else.
    pub plugin_instance: usize,
}

/// The settings as they were written; none: derived.
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
    /// `limits.name_bytes_total_max`
    pub names_total: Option<u64>,
    /// `limits.input_timeout_ms`
    pub input_timeout_ms: u64,
    /// `engine.memory_bytes_max`
    pub engine_instance: Option<u64>,
    /// `plugins.memory_bytes_max`
    pub plugin_instance: Option<u64>,
    /// How many instances of the engine serve.
    pub engine_instances: usize,
}

/// From what a server without clients needs to what no machine has.
const BYTES_MAX: std::ops::RangeInclusive<u64> = 32 << 20..=1 << 50;
/// The least that a total may be: one message of the usual size, and what is around it.
const TOTAL_MIN: u64 = 1 << 20;
/// The least that connections of one address may hold.
const PER_ADDRESS_MIN: u64 = 64 << 10;
/// What connections of one address may hold of a total, in percent.
const PER_ADDRESS_PERCENT: usize = 25;

/// What the engine has of the budget that it shares with the plugins, in percent.
const ENGINE_PERCENT: usize = 75;
/// While the engine is swapped there are two of each instance.
const INSTANCES_IN_A_SWAP: usize = 2;
/// With less an instance of the engine holds no useful number of names. It is a bound and nothing
/// that is set aside, so it may be over the budget of a very small server.
const ENGINE_INSTANCE_MIN: usize = 8 << 20;
/// Room for an interpreter, where the server has room for it.
const PLUGIN_INSTANCE_MAX: usize = 64 << 20;
const PLUGIN_INSTANCE_MIN: usize = 16 << 20;

/// Checks what was written, and derives the rest from what is available.
///
/// # Errors
///
/// A value is out of its range, or those that were set do not fit into the bound.
pub fn check(written: Written) -> Result<MemoryConfig, ConfigError> {
    check_with(written, available(Path::new("/")))
}

fn check_with(written: Written, available: Available) -> Result<MemoryConfig, ConfigError> {
    use crate::config::{bytes, millis};
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
    // What fits into the engine's share leaves the budget as it is.
    let engine_share = percent(Budget::derive(bytes_max).engine_and_plugins, ENGINE_PERCENT);
    let engine_in_all = engine
        .map(|bytes| bytes.saturating_mul(written.engine_instances))
        .filter(|bytes| *bytes > engine_share);
    let fixed = FixedBudgets {
        outboxes: total("limits.outbox_bytes_total_max", written.outbox_total)?,
        input: total("limits.input_bytes_total_max", written.input_total)?,
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

/// The error that names what was set, and what would be right.
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
    /// Logs what holds.
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
            "memory was divided"
        );
    }

    /// What holds, in one line.
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
