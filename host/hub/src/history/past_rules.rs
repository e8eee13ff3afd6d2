//! The rules that held before, where the backplane keeps the histories.
//!
//! A channel that loses its history loses its stream for good. This node does not know which of those
//! streams the backplane has. It knows since when a channel has had a history without a break, and a
//! stream that began earlier ends when it is used next.

use std::collections::VecDeque;

use super::rule;
use switchyard_config::ChannelRules;

/// How many lists of rules are remembered. The channels of older ones are all taken for channels
/// that had no history.
const LISTS_MAX: usize = 64;

/// The rules that this process had before.
#[derive(Default)]
pub(super) struct PastRules {
    /// Each with the time until which it held, in microseconds since 1970; the times rise.
    lists: VecDeque<(ChannelRules, u64)>,
    /// Until when the last list held that is no longer remembered.
    forgotten_us: u64,
    /// Whether the rules that this process started with were set.
    has_begun: bool,
}

impl PastRules {
    /// The first call sets the rules that this process starts with.
    pub fn replace(&mut self, old: &ChannelRules, new: &ChannelRules, now_us: u64) {
        if !std::mem::replace(&mut self.has_begun, true) || old == new {
            return;
        }
        // What an equal list says that held earlier is no longer needed.
        self.lists.retain(|(rules, _)| rules != old);
        let last = self.lists.back().map_or(self.forgotten_us, |(_, until)| *until);
        self.lists.push_back((old.clone(), now_us.max(last + 1)));
        if self.lists.len() > LISTS_MAX
            && let Some((_, until)) = self.lists.pop_front()
        {
            self.forgotten_us = until;
        }
    }

    /// Until when the channel had no history, in microseconds since 1970; 0: it always had one.
    pub fn since_us(&self, channel: &[u8]) -> u64 {
        let without = |(rules, _): &&(ChannelRules, u64)| rule(rules, channel).is_none();
        self.lists.iter().rev().find(without).map_or(self.forgotten_us, |(_, until)| *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use switchyard_config::ChannelRule;
    use switchyard_types::history::HistoryRule;

    fn rules(patterns: &[&str]) -> ChannelRules {
        let with_history = |pattern: &&str| ChannelRule {
            match_: vec![(*pattern).to_owned()],
            history: Some(HistoryRule { messages: 1, age_ms: 1, idle_ms: 1 }),
            presence: None,
        };
        ChannelRules::new(patterns.iter().map(with_history).collect())
    }

    #[test]
    fn a_channel_has_its_history_since_the_last_rules_without_it() {
        let [none, a, both] = [rules(&[]), rules(&["a"]), rules(&["a", "b"])];
        let mut past = PastRules::default();
        past.replace(&none, &a, 1);
        assert_eq!(past.since_us(b"a"), 0, "the process started with it");
        past.replace(&a, &a, 2);
        past.replace(&a, &both, 3);
        assert_eq!((past.since_us(b"a"), past.since_us(b"b")), (0, 3));
        past.replace(&both, &none, 4);
        past.replace(&none, &a, 5);
        assert_eq!((past.since_us(b"a"), past.since_us(b"b")), (5, 5));
        past.replace(&a, &both, 6);
        assert_eq!((past.since_us(b"a"), past.since_us(b"b")), (5, 6));
        // The clock was set back.
        past.replace(&both, &a, 1);
        past.replace(&a, &both, 1);
        assert_eq!((past.since_us(b"a"), past.since_us(b"b")), (5, 8));
    }

    #[test]
    fn of_very_many_rules_the_oldest_count_for_all_channels() {
        let mut past = PastRules::default();
        past.replace(&rules(&[]), &rules(&["a", "0"]), 1);
        for number in 1..100 {
            let [old, new] = [number - 1, number].map(|other| rules(&["a", &other.to_string()]));
            past.replace(&old, &new, 10 + number);
        }
        assert_eq!(past.lists.len(), LISTS_MAX);
        assert_eq!(past.since_us(b"a"), 10 + 99 - LISTS_MAX as u64);
        assert_eq!(past.since_us(b"99"), 10 + 99);
    }
}
