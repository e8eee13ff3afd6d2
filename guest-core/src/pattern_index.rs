//! Finds the patterns worth trying on a channel, so that a publication does not pay for patterns
//! that cannot match it.
//!
//! A pattern can only match what begins and ends with its literal bytes (see [`literal_ends`]). So
//! patterns hang in a trie by their literal prefix, and there in a second trie by their literal
//! suffix, read backwards: `room:*` and `*.created` are found alike, and so is `room:*:created`
//! among a hundred thousand patterns that share one end with it. The walk ends at the first byte
//! with which no pattern goes on; it never takes more steps than the channel has bytes, and for
//! each prefix that fits as many again.
//!
//! What it cannot spare a publication: patterns with the same ends that differ in between, such as
//! `*a*`, `*b*`, ….

use std::collections::BTreeSet;

use crate::PatternId;
use crate::glob::literal_ends;
use crate::trie::Trie;

/// Patterns by their literal ends. It holds ids, not patterns: the caller matches the candidates.
#[derive(Debug, Default)]
pub struct PatternIndex {
    by_prefix: Trie<SamePrefix>,
}

/// Patterns that have their literal prefix in common.
#[derive(Debug, Default)]
struct SamePrefix {
    /// Those without a suffix, which are most; apart, so that they need no second trie.
    open: BTreeSet<PatternId>,
    by_reversed_suffix: Trie<BTreeSet<PatternId>>,
}

impl PatternIndex {
    /// Visits every pattern that may match the channel, once and in no order to rely on, and few
    /// that do not.
    pub fn visit_candidates(&self, channel: &[u8], mut visit: impl FnMut(PatternId)) {
        self.by_prefix.visit_prefixes(channel.iter().copied(), |same_prefix| {
            same_prefix.open.iter().copied().for_each(&mut visit);
            same_prefix.by_reversed_suffix.visit_prefixes(channel.iter().rev().copied(), |ids| {
                ids.iter().copied().for_each(&mut visit)
            });
        });
    }

    /// Adds a pattern that is not there yet.
    pub fn insert(&mut self, pattern: &[u8], id: PatternId) {
        let mut ends = literal_ends(pattern);
        let same_prefix = self.by_prefix.get_or_insert(&ends.prefix);
        if ends.suffix.is_empty() {
            same_prefix.open.insert(id);
        } else {
            ends.suffix.reverse();
            same_prefix.by_reversed_suffix.get_or_insert(&ends.suffix).insert(id);
        }
    }

    /// Takes out a pattern that was added under this id.
    ///
    /// # Panics
    ///
    /// The pattern was not added.
    pub fn remove(&mut self, pattern: &[u8], id: PatternId) {
        let mut ends = literal_ends(pattern);
        let same_prefix =
            self.by_prefix.get_mut(&ends.prefix).expect("a pattern stays where its prefix put it");
        if ends.suffix.is_empty() {
            same_prefix.open.remove(&id);
        } else {
            ends.suffix.reverse();
            let by_suffix = &mut same_prefix.by_reversed_suffix;
            let ids =
                by_suffix.get_mut(&ends.suffix).expect("a pattern stays where its suffix put it");
            ids.remove(&id);
            if ids.is_empty() {
                by_suffix.remove(&ends.suffix);
            }
        }
        if same_prefix.open.is_empty() && same_prefix.by_reversed_suffix.is_empty() {
            self.by_prefix.remove(&ends.prefix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(patterns: &[String]) -> PatternIndex {
        let mut index = PatternIndex::default();
        for (id, pattern) in (0..).zip(patterns) {
            index.insert(pattern.as_bytes(), id);
        }
        index
    }

    fn candidates(index: &PatternIndex, channel: &str) -> Vec<PatternId> {
        let mut candidates = Vec::new();
        index.visit_candidates(channel.as_bytes(), |id| candidates.push(id));
        candidates.sort_unstable();
        candidates
    }

    /// With twenty thousand patterns of one shape, a channel is tried on those alone that are meant
    /// for it.
    #[test]
    fn a_publication_does_not_pay_for_patterns_that_cannot_match() {
        #[track_caller]
        fn check(shape: fn(u32) -> String, channel: &str, expected: &[PatternId]) {
            let patterns: Vec<String> = (0..20_000).map(shape).collect();
            assert_eq!(candidates(&index(&patterns), channel), expected);
        }
        check(|n| format!("room:{n:05}:*"), "chat:7", &[]);
        check(|n| format!("room:{n:05}:*"), "room:00007:x", &[7]);
        check(|n| format!("*.created.{n:05}"), "order.deleted", &[]);
        check(|n| format!("*.created.{n:05}"), "order.created.00007", &[7]);
        check(|n| format!("user:*:event-{n:05}"), "user:1:event-00007", &[7]);
        check(|n| format!("tenant-{n:05}:*:created"), "tenant-00007:1:created", &[7]);
        check(|n| format!("room:{n:05}"), "room:00007", &[7]);
        check(|n| format!("\\*room\\:{n:05}?"), "*room:000071", &[7]);
        check(|n| format!("[ab]{n:05}"), "a00007", &[7]);
        // Numbers of any length: every number that the channel's begins with.
        check(|n| format!("room:{n}*"), "room:1234", &[1, 12, 123, 1234]);
    }

    /// What the module's words say it cannot do.
    #[test]
    fn patterns_that_differ_in_the_middle_alone_are_all_tried() {
        let patterns: Vec<String> = (0..100).map(|n| format!("a*{n:02}*z")).collect();
        let index = index(&patterns);
        assert_eq!(candidates(&index, "a07z").len(), 100);
        assert_eq!(candidates(&index, "a07y").len(), 0);
    }

    #[test]
    fn what_is_removed_leaves_nothing() {
        let patterns =
            ["", "*", "a*", "ab*", "a*b", "a*cb", "*b", "[", "a?b?", "ab"].map(String::from);
        let mut index = index(&patterns);
        for (id, pattern) in (0..).zip(&patterns) {
            assert!(!index.by_prefix.is_empty());
            index.remove(pattern.as_bytes(), id);
        }
        assert!(index.by_prefix.is_empty());
    }
}
