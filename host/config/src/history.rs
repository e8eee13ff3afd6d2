//! The bounds of history and presence as a whole: the tables `[history]` and `[presence]`.
//!
//! Which channels have history or presence is decided by the channel rules (`channels`). The bound
//! on the memory of history is one of the budgets of `memory`.

use std::path::PathBuf;
use std::time::Duration;

use crate::raw::{RawHistory, RawPresence};
use crate::values::{bytes, count, millis, millis_or_none};
use crate::{ConfigError, OutboxLimits};

/// The bounds of the history of all channels, and of the keys of publications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryConfig {
    /// The memory of all streams. It is the budget `history` of the memory.
    pub bytes_max: usize,
    /// Streams at once.
    pub channels_max: usize,
    /// The most messages that RESUME sends, and that one page of HISTORY has.
    pub resume_messages_max: usize,
    /// Their size together.
    pub resume_bytes_max: usize,
    /// How long the key of a publication is remembered.
    pub idempotency_time: Duration,
    /// Keys that are remembered at once.
    pub idempotency_keys_max: usize,
}

/// Where and how histories are kept on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryStoreConfig {
    /// The directory of the files.
    pub directory: PathBuf,
    /// How often changes are written: what a crash can lose.
    pub flush_time: Duration,
    /// How much is taken from memory and written at once.
    pub flush_bytes_max: usize,
}

/// The bounds of the presence of all channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PresenceConfig {
    /// The members of all channels.
    pub members_max: usize,
    /// The watches of all connections.
    pub watchers_max: usize,
    /// The size of the data of one member.
    pub data_bytes_max: usize,
    /// How long a connection that ended stays a member.
    pub grace: Duration,
}

/// Messages that one rule keeps for each channel, and that one RESUME sends.
pub(crate) const MESSAGES: std::ops::RangeInclusive<u64> = 1..=100_000;
/// Streams, keys and members at once.
const ENTRIES: std::ops::RangeInclusive<u64> = 1..=10_000_000;
/// How often histories are written: a disk is synchronised as often.
const FLUSH_MS: std::ops::RangeInclusive<u64> = 10..=60_000;
/// What is written at once.
const FLUSH_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=256 << 20;
/// The default of `resume_bytes_max`, unless `outbox.soft_bytes` is too low for it.
const RESUME_BYTES: usize = 4 << 20;

impl RawHistory {
    /// `budget` is that of history, in bytes.
    pub(crate) fn check(
        self,
        budget: usize,
        outbox: OutboxLimits,
    ) -> Result<HistoryConfig, ConfigError> {
        Ok(HistoryConfig {
            bytes_max: budget,
            channels_max: count("history.channels_max", self.channels_max, ENTRIES)?,
            resume_messages_max: count(
                "history.resume_messages_max",
                self.resume_messages_max,
                MESSAGES,
            )?,
            resume_bytes_max: match self.resume_bytes_max {
                Some(value) => resume_bytes(value.into(), outbox.soft_bytes)?,
                None => RESUME_BYTES.min((outbox.soft_bytes / 2).max(1)),
            },
            idempotency_time: millis("history.idempotency_ms", self.idempotency_ms)?,
            idempotency_keys_max: count(
                "history.idempotency_keys_max",
                self.idempotency_keys_max,
                ENTRIES,
            )?,
        })
    }
}

impl RawHistory {
    /// None: histories are not kept on disk. What is set is checked in any case.
    pub(crate) fn check_store(&self) -> Result<Option<HistoryStoreConfig>, ConfigError> {
        let key = "history.flush_ms";
        let flush_ms = count(key, u64::from(self.flush_ms), FLUSH_MS)?;
        let flush_bytes_max = u64::from(self.flush_bytes_max);
        let flush_bytes_max = bytes("history.flush_bytes_max", flush_bytes_max, FLUSH_BYTES)?;
        let store = |directory| HistoryStoreConfig {
            directory,
            flush_time: Duration::from_millis(flush_ms as u64),
            flush_bytes_max,
        };
        match &self.directory {
            Some(directory) if directory.as_os_str().is_empty() => Err(ConfigError::OutOfRange {
                key: "history.directory",
                value: "empty".to_owned(),
                expected: "the path of a directory; or leave it out, to keep history in memory"
                    .to_owned(),
            }),
            directory => Ok(directory.clone().map(store)),
        }
    }
}

/// What is sent at once must not close its connection.
fn resume_bytes(value: u64, soft_bytes: usize) -> Result<usize, ConfigError> {
    let key = "history.resume_bytes_max";
    let value = bytes(key, value, 1..=1 << 40)?;
    if value < soft_bytes {
        return Ok(value);
    }
    Err(ConfigError::OutOfRange {
        key,
        value: value.to_string(),
        expected: format!(
            "below {soft_bytes}, which is outbox.soft_bytes: what RESUME sends at once waits in \
             the outbox of the connection; or set a higher outbox.soft_bytes"
        ),
    })
}

impl RawPresence {
    pub(crate) fn check(self) -> Result<PresenceConfig, ConfigError> {
        Ok(PresenceConfig {
            members_max: count("presence.members_max", self.members_max, ENTRIES)?,
            watchers_max: count("presence.watchers_max", self.watchers_max, ENTRIES)?,
            data_bytes_max: bytes("presence.data_bytes_max", self.data_bytes_max, 1..=64 << 10)?,
            grace: millis_or_none("presence.grace_ms", self.grace_ms)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::tests::check;

    #[test]
    fn the_defaults_are_those_of_the_protocol() {
        let config = check("memory.bytes_max = '4GiB'").expect("valid");
        let history = config.history;
        assert_eq!((history.bytes_max, history.channels_max), (256 << 20, 100_000));
        assert_eq!((history.resume_messages_max, history.resume_bytes_max), (1_000, 4 << 20));
        assert_eq!(history.idempotency_time, Duration::from_secs(300));
        assert_eq!(history.idempotency_keys_max, 100_000);
        let presence = config.presence;
        assert_eq!((presence.members_max, presence.data_bytes_max), (100_000, 1_024));
        assert_eq!(presence.grace, Duration::ZERO);
    }

    #[test]
    fn the_memory_of_history_is_a_budget() {
        let bytes_max = |text: &str| check(text).map(|config| config.history.bytes_max);
        assert_eq!(bytes_max("memory.bytes_max = 1000000000"), Ok(200_000_000));
        let config = check("memory.bytes_max = '4GiB'\nhistory.bytes_max = '1GiB'").expect("valid");
        assert_eq!((config.history.bytes_max, config.memory.budget.history), (1 << 30, 1 << 30));
        // The other budgets are smaller for it.
        let least = 4 * (1 << 30) / 100 * 10;
        assert!(config.memory.budget.input < least, "{:?}", config.memory.budget);
        let problem = bytes_max("memory.bytes_max = '1GiB'\nhistory.bytes_max = '1GiB'");
        let problem = problem.expect_err("it is more than there is");
        for part in ["memory.bytes_max is 1073741824", "at least", "history.bytes_max = 1073741824"]
        {
            assert!(problem.contains(part), "{part}: {problem}");
        }
    }

    #[test]
    fn a_resume_fits_into_the_outbox() {
        let resume = |text: &str| check(text).map(|config| config.history.resume_bytes_max);
        // An outbox that was set before there was history stays valid.
        assert_eq!(resume("outbox.soft_bytes = '1MiB'"), Ok(512 << 10));
        assert_eq!(resume("outbox.soft_bytes = 1"), Ok(1));
        assert_eq!(resume("history.resume_bytes_max = 8388607"), Ok(8_388_607));
        assert_eq!(
            resume("history.resume_bytes_max = '8MiB'").unwrap_err(),
            "history.resume_bytes_max is 8388608, but must be below 8388608, which is \
             outbox.soft_bytes: what RESUME sends at once waits in the outbox of the connection; \
             or set a higher outbox.soft_bytes"
        );
    }

    #[test]
    fn values_out_of_range_say_what_would_be_right() {
        for (key, bad, range) in [
            ("history.bytes_max", "65535", "from 65536 to "),
            ("history.channels_max", "0", "from 1 to 10000000"),
            ("history.channels_max", "10000001", "from 1 to 10000000"),
            ("history.resume_messages_max", "0", "from 1 to 100000"),
            ("history.resume_messages_max", "100001", "from 1 to 100000"),
            ("history.resume_bytes_max", "0", "from 1 to 1099511627776"),
            ("history.idempotency_ms", "0", "from 1 to 86400000"),
            ("history.idempotency_ms", "'2days'", "from 1 to 86400000"),
            ("history.idempotency_keys_max", "0", "from 1 to 10000000"),
            ("history.flush_ms", "9", "from 10 to 60000"),
            ("history.flush_ms", "60001", "from 10 to 60000"),
            ("history.flush_bytes_max", "65535", "from 65536 to 268435456"),
            ("history.flush_bytes_max", "268435457", "from 65536 to 268435456"),
            ("history.directory", "''", "the path of a directory"),
            ("presence.members_max", "0", "from 1 to 10000000"),
            ("presence.watchers_max", "0", "from 1 to 10000000"),
            ("presence.data_bytes_max", "0", "from 1 to 65536"),
            ("presence.data_bytes_max", "'1MiB'", "from 1 to 65536"),
            ("presence.grace_ms", "86400001", "from 0 to 86400000"),
        ] {
            let problem = check(&format!("{key} = {bad}")).expect_err(key);
            assert!(problem.starts_with(&format!("{key} is ")), "{problem}");
            assert!(problem.contains(&format!("must be {range}")), "{problem}");
        }
    }
}
