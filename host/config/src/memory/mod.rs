//! How much memory the server may use, and the budget of each purpose.
//!
//! The bound on everything is `[memory] bytes_max`. It is divided into budgets: outboxes, partly
//! received input, history, names, engine and plugins. The rest is for everything else: code,
//! tables, TLS, buffers of the allocator. A budget that the operator sets is used as it is; the
//! others share the rest.

mod available;
mod settings;

use std::fmt;

pub use settings::{MemoryConfig, Written, check};

/// The bound on everything, and the budgets that it is divided into, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The bound on everything.
    pub bytes_max: usize,
    /// The outboxes of all connections.
    pub outboxes: usize,
    /// Messages that were received in part.
    pub input: usize,
    /// The history of channels.
    pub history: usize,
    /// The names that connections subscribe to.
    pub names: usize,
    /// The instances of the engine and of the plugins.
    pub engine_and_plugins: usize,
}

/// The budgets that the operator set; none: it is derived.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct FixedBudgets {
    /// `limits.outbox_bytes_total_max`
    pub outboxes: Option<usize>,
    /// `limits.input_bytes_total_max`
    pub input: Option<usize>,
    /// `history.bytes_max`
    pub history: Option<usize>,
    /// `limits.name_bytes_total_max`
    pub names: Option<usize>,
    /// The memory of all engine instances, by the settings of the engine.
    pub engine_and_plugins: Option<usize>,
}

/// The budgets that were set do not fit into the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excess {
    /// The sum of the settings.
    pub fixed: usize,
    /// The smallest bound with which the other budgets can work.
    pub bytes_max_min: usize,
}

/// The share of the available memory that is the default bound, in percent.
const AVAILABLE_PERCENT: usize = 80;

/// The shares of the bound, in percent. The rest is for everything else.
const OUTBOXES_PERCENT: usize = 30;
const INPUT_PERCENT: usize = 10;
const HISTORY_PERCENT: usize = 20;
const NAMES_PERCENT: usize = 10;
const ENGINE_AND_PLUGINS_PERCENT: usize = 20;
const REST_PERCENT: usize = 10;

/// The largest budget of history that is derived: more is of little use to a client that was
/// disconnected.
const HISTORY_MAX: usize = 256 << 20;

/// The smallest size of a derived budget if others are set: this fraction of its share. Below it
/// the server would refuse common commands.
const SHRINK_MAX: usize = 4;

impl Budget {
    /// The budgets within this bound, with none of them set.
    pub fn derive(bytes_max: usize) -> Budget {
        Budget {
            bytes_max,
            outboxes: percent(bytes_max, OUTBOXES_PERCENT),
            input: percent(bytes_max, INPUT_PERCENT),
            history: percent(bytes_max, HISTORY_PERCENT).min(HISTORY_MAX),
            names: percent(bytes_max, NAMES_PERCENT),
            engine_and_plugins: percent(bytes_max, ENGINE_AND_PLUGINS_PERCENT),
        }
    }

    /// The budgets within this bound, where some are set. The others get their share, or less if
    /// those that are set leave less.
    ///
    /// # Errors
    ///
    /// What is set leaves too little for the others, or more than there is.
    pub fn divide(bytes_max: usize, fixed: FixedBudgets) -> Result<Budget, Excess> {
        let FixedBudgets { outboxes, input, history, names, engine_and_plugins } = fixed;
        let all = [
            (outboxes, OUTBOXES_PERCENT),
            (input, INPUT_PERCENT),
            (history, HISTORY_PERCENT),
            (names, NAMES_PERCENT),
            (engine_and_plugins, ENGINE_AND_PLUGINS_PERCENT),
        ];
        let fixed = all.iter().filter_map(|(fixed, _)| *fixed).fold(0, usize::saturating_add);
        let shares: usize = all.iter().filter(|(fixed, _)| fixed.is_none()).map(|(_, n)| n).sum();
        let shares = shares + REST_PERCENT;
        let left = bytes_max.saturating_sub(fixed);
        if left < percent(bytes_max, shares) / SHRINK_MAX || fixed > bytes_max {
            // left = bytes_max - fixed >= bytes_max * shares / 100 / SHRINK_MAX
            let whole = 100 * SHRINK_MAX;
            let bytes_max_min = (fixed / (whole - shares)).saturating_add(1).saturating_mul(whole);
            return Err(Excess { fixed, bytes_max_min });
        }
        let share = |of: usize| percent(bytes_max, of).min(left / shares * of);
        Ok(Budget {
            bytes_max,
            outboxes: outboxes.unwrap_or_else(|| share(OUTBOXES_PERCENT)),
            input: input.unwrap_or_else(|| share(INPUT_PERCENT)),
            history: history.unwrap_or_else(|| share(HISTORY_PERCENT).min(HISTORY_MAX)),
            names: names.unwrap_or_else(|| share(NAMES_PERCENT)),
            engine_and_plugins: engine_and_plugins
                .unwrap_or_else(|| share(ENGINE_AND_PLUGINS_PERCENT)),
        })
    }
}

/// The default bound.
pub fn default_bytes_max(available_bytes: u64) -> usize {
    percent(usize::try_from(available_bytes).unwrap_or(usize::MAX), AVAILABLE_PERCENT)
}

/// A percentage, without overflow.
pub fn percent(bytes: usize, percent: usize) -> usize {
    bytes / 100 * percent + bytes % 100 * percent / 100
}

/// Formats a number of bytes.
pub struct Size(pub usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Size(bytes) = *self;
        match bytes {
            0..1_024 => write!(f, "{bytes} B"),
            1_024..1_048_576 => write!(f, "{:.1} KiB", bytes as f64 / 1_024.0),
            1_048_576..1_073_741_824 => write!(f, "{:.1} MiB", bytes as f64 / 1_048_576.0),
            _ => write!(f, "{:.1} GiB", bytes as f64 / 1_073_741_824.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn the_shares_leave_a_tenth() {
        let Budget { bytes_max, outboxes, input, history, names, engine_and_plugins } =
            Budget::derive(1_000 * MIB);
        assert_eq!((bytes_max, outboxes, input), (1_000 * MIB, 300 * MIB, 100 * MIB));
        assert_eq!((history, names, engine_and_plugins), (200 * MIB, 100 * MIB, 200 * MIB));
        assert_eq!(Budget::derive(100_000 * MIB).history, 256 * MIB);
    }

    #[test]
    fn nothing_set_is_the_same_as_derived() {
        for bytes_max in [0, 99, 64 * MIB, 5_000 * MIB, usize::MAX] {
            let Budget { outboxes, .. } = Budget::derive(bytes_max);
            let divided = Budget::divide(bytes_max, FixedBudgets::default()).map(|b| b.outboxes);
            // Divided by its shares, which rounds down.
            assert!(divided.is_ok_and(|divided| outboxes - divided <= 100), "{bytes_max}");
        }
    }

    #[test]
    fn what_is_set_is_kept_and_the_others_fit_beside_it() {
        for outboxes in [10, 300, 400, 600, 700] {
            let fixed = FixedBudgets { outboxes: Some(outboxes * MIB), ..FixedBudgets::default() };
            let budget = Budget::divide(1_000 * MIB, fixed).expect("it fits");
            let Budget { bytes_max, outboxes: kept, input, history, names, engine_and_plugins } =
                budget;
            assert_eq!(kept, outboxes * MIB);
            let all = kept + input + history + names + engine_and_plugins;
            assert!(all < bytes_max, "{budget:?}");
            assert!((25 * MIB..=100 * MIB).contains(&input), "{budget:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_the_words_hold() {
        let fixed = FixedBudgets {
            outboxes: Some(600 * MIB),
            input: Some(300 * MIB),
            ..FixedBudgets::default()
        };
        let excess = Budget::divide(1_000 * MIB, fixed).expect_err("it does not fit");
        assert_eq!(excess.fixed, 900 * MIB);
        assert!(excess.bytes_max_min > 1_000 * MIB && excess.bytes_max_min < 1_200 * MIB);
        assert!(Budget::divide(excess.bytes_max_min, fixed).is_ok());
        let fixed = FixedBudgets { names: Some(usize::MAX), ..fixed };
        assert!(Budget::divide(1_000 * MIB, fixed).is_err());
    }

    #[test]
    fn sizes_are_read_by_people() {
        let words = [7, 1_536, 64 * MIB, 3 << 30].map(|bytes| Size(bytes).to_string());
        assert_eq!(words, ["7 B", "1.5 KiB", "64.0 MiB", "3.0 GiB"]);
    }
}
