//! The channel rules as written, checked.

use super::{ChannelRule, ChannelRules, HistoryRule, PresenceRule};
use crate::ConfigError;
use crate::history::MESSAGES;
use crate::raw::{RawChannelRule, RawPatterns};

/// Patterns of all rules together. Each rule has at least one, so there are no more rules.
const PATTERNS_MAX: usize = 1_000;
/// The length of a pattern: that of the longest name, by default.
const PATTERN_BYTES_MAX: usize = 1 << 10;
const DAY_MS: u64 = 86_400_000;
/// The longest time for which something is kept.
const TIME_MAX_MS: u64 = 30 * DAY_MS;
/// A client that was away for longer fetches its state elsewhere.
const IDLE_MS: u64 = DAY_MS;
/// A list of more members is of little use to a person.
const MEMBERS: usize = 1_000;

const PATTERN: &str = "a pattern such as \"chat.*\", or a list of them";

/// Checks the rules. `members_max` is the number of members of all channels.
///
/// # Errors
///
/// A rule is invalid, or there are too many patterns. The error names the number of the rule, the
/// key and the valid values.
pub(crate) fn check(
    rules: Vec<RawChannelRule>,
    members_max: usize,
) -> Result<ChannelRules, ConfigError> {
    let numbered = (1..).zip(rules);
    let rules = numbered.map(|(number, rule)| Raw { number, rule }.check(members_max));
    let rules = rules.collect::<Result<Vec<ChannelRule>, ConfigError>>()?;
    let patterns: usize = rules.iter().map(|rule| rule.match_.len()).sum();
    if patterns > PATTERNS_MAX {
        return Err(ConfigError::OutOfRange {
            key: "channels",
            value: format!("a list of rules with {patterns} patterns"),
            expected: format!("one with at most {PATTERNS_MAX} patterns in all rules together"),
        });
    }
    Ok(ChannelRules::new(rules))
}

/// A rule with its number, which all errors name.
struct Raw {
    number: usize,
    rule: RawChannelRule,
}

impl Raw {
    fn check(mut self, members_max: usize) -> Result<ChannelRule, ConfigError> {
        Ok(ChannelRule {
            history: self.history()?,
            presence: self.presence(members_max)?,
            match_: self.patterns()?,
        })
    }

    fn patterns(&mut self) -> Result<Vec<String>, ConfigError> {
        let key = "match";
        let patterns = match self.rule.r#match.take() {
            Some(RawPatterns::One(pattern)) => vec![pattern],
            Some(RawPatterns::Several(patterns)) => patterns,
            None => return Err(self.bad(key, "missing", PATTERN)),
        };
        if patterns.is_empty() {
            return Err(self.bad(key, "an empty list", PATTERN));
        }
        for pattern in &patterns {
            let bytes = pattern.len();
            if !(1..=PATTERN_BYTES_MAX).contains(&bytes) {
                let value = match bytes {
                    0 => "\"\"".to_owned(),
                    bytes => format!("a pattern of {bytes} bytes"),
                };
                return Err(self.bad(key, value, format!("from 1 to {PATTERN_BYTES_MAX} bytes")));
            }
        }
        Ok(patterns)
    }

    fn history(&self) -> Result<Option<HistoryRule>, ConfigError> {
        let RawChannelRule { history_messages, history_ms, history_idle_ms, .. } = self.rule;
        let both = |other: &str| format!("set, as {other} is: both are, or neither");
        let (messages, age_ms) = match (history_messages, history_ms) {
            (Some(messages), Some(age)) => (messages, u64::from(age)),
            (Some(_), None) => {
                return Err(self.bad("history_ms", "missing", both("history_messages")));
            }
            (None, Some(_)) => {
                return Err(self.bad("history_messages", "missing", both("history_ms")));
            }
            (None, None) => {
                return match history_idle_ms {
                    Some(idle) => Err(self.bad(
                        "history_idle_ms",
                        u64::from(idle),
                        "left out where history_messages and history_ms are",
                    )),
                    None => Ok(None),
                };
            }
        };
        let messages =
            self.count("history_messages", messages, *MESSAGES.start(), *MESSAGES.end())?;
        self.count("history_ms", age_ms, 1, TIME_MAX_MS)?;
        let idle_ms = history_idle_ms.map_or(age_ms.max(IDLE_MS), u64::from);
        if !(age_ms..=TIME_MAX_MS).contains(&idle_ms) {
            let expected = format!("from {age_ms}, which is history_ms, to {TIME_MAX_MS}");
            return Err(self.bad("history_idle_ms", idle_ms, expected));
        }
        Ok(Some(HistoryRule { messages, age_ms, idle_ms }))
    }

    fn presence(&self, members_max: usize) -> Result<Option<PresenceRule>, ConfigError> {
        let key = "presence_members_max";
        match (self.rule.presence, self.rule.presence_members_max) {
            (false, None) => Ok(None),
            (false, Some(max)) => {
                Err(self.bad(key, max, "left out where presence is not set to true"))
            }
            (true, None) => Ok(Some(PresenceRule { members_max: MEMBERS.min(members_max) })),
            (true, Some(max)) if (1..=members_max as u64).contains(&max) => {
                Ok(Some(PresenceRule { members_max: max as usize }))
            }
            (true, Some(max)) => {
                let expected = format!("from 1 to {members_max}, which is presence.members_max");
                Err(self.bad(key, max, expected))
            }
        }
    }

    fn count(
        &self,
        key: &'static str,
        value: u64,
        least: u64,
        most: u64,
    ) -> Result<usize, ConfigError> {
        match (least..=most).contains(&value) {
            true => Ok(value as usize),
            false => Err(self.bad(key, value, format!("from {least} to {most}"))),
        }
    }

    fn bad(
        &self,
        key: &'static str,
        value: impl ToString,
        expected: impl Into<String>,
    ) -> ConfigError {
        let (value, expected) = (value.to_string(), expected.into());
        ConfigError::BadRule { number: self.number, key, value, expected }
    }
}
