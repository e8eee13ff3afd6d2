//! The channel rules: which channels have history or presence, and how much of it.
//!
//! The first rule with a pattern that matches a channel applies to it. Every publication looks for
//! its rule, so the patterns are in an index by their literal ends, and only the few that may match
//! are tried. Rules are immutable: a reload replaces all of them.

mod check;
mod shadow;

use std::sync::Arc;

use guest_core::{PatternId, PatternIndex, glob};
use switchyard_types::history::HistoryRule;
use tracing::warn;

pub(crate) use check::check;

/// The channel rules, in their order. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ChannelRules(Option<Arc<Indexed>>);

/// What channels with these names have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelRule {
    /// The patterns as written, at least one. None is empty.
    pub match_: Vec<String>,
    /// Their history; none: they have no history.
    pub history: Option<HistoryRule>,
    /// Their presence; none: they have no presence.
    pub presence: Option<PresenceRule>,
}

/// The presence of one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PresenceRule {
    /// Members at once.
    pub members_max: usize,
}

/// Rules, at least one, with their index.
#[derive(Debug)]
struct Indexed {
    rules: Vec<ChannelRule>,
    index: PatternIndex,
    /// The rule of each pattern in the index and the pattern's place in that rule, from 0. Ids rise
    /// in the order of the rules, so the lowest one that matches is of the first rule that matches.
    patterns: Vec<(usize, usize)>,
}

impl ChannelRules {
    /// These rules, in this order.
    pub fn new(rules: Vec<ChannelRule>) -> ChannelRules {
        if rules.is_empty() {
            return ChannelRules(None);
        }
        let mut index = PatternIndex::default();
        let mut patterns = Vec::new();
        for (rule, ChannelRule { match_, .. }) in rules.iter().enumerate() {
            for (place, pattern) in match_.iter().enumerate() {
                let id = PatternId::try_from(patterns.len())
                    .expect("fewer patterns than 2^32 fit into memory");
                index.insert(pattern.as_bytes(), id);
                patterns.push((rule, place));
            }
        }
        ChannelRules(Some(Arc::new(Indexed { rules, index, patterns })))
    }

    /// Whether there are no rules, so that no channel has history or presence.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// All rules, in their order. The first has the number 1.
    pub fn rules(&self) -> &[ChannelRule] {
        self.0.as_ref().map_or(&[], |indexed| &indexed.rules)
    }

    /// The number, counted from 1, and the rule that applies to a channel: the first that matches.
    /// None: none matches, so that the channel has neither history nor presence.
    ///
    /// It does not allocate. For 20 bytes and 100 rules of which none matches it takes 8 to 70 ns
    /// (`examples/channel_rules.rs`), unless many patterns have the same literal beginning and end,
    /// such as `*a*` and `*b*`: each of those is tried, at some 100 ns.
    pub fn find(&self, channel: &[u8]) -> Option<(usize, &ChannelRule)> {
        let indexed = self.0.as_deref()?;
        let (rule, _) = indexed.first_match(channel)?;
        Some((rule + 1, indexed.rules.get(rule)?))
    }

    /// As `find`, with the pattern of the rule that matches: the first one, if several do.
    pub fn find_pattern(&self, channel: &[u8]) -> Option<(usize, &ChannelRule, &str)> {
        let indexed = self.0.as_deref()?;
        let (number, place) = indexed.first_match(channel)?;
        let rule = indexed.rules.get(number)?;
        Some((number + 1, rule, rule.match_.get(place)?))
    }

    /// The rules that never apply because earlier rules match all of their channels, as pairs of
    /// the numbers of the later and the earlier rule. If several earlier rules are needed for that,
    /// there is a pair for each.
    ///
    /// It finds what is simple to decide: equal patterns, literal names, and patterns below one
    /// with a single `*` such as `a*`. A rule that is not reported may never apply either.
    pub fn shadowed(&self) -> Vec<(usize, usize)> {
        shadow::shadowed(self)
    }

    /// A sentence for each rule that never applies.
    pub fn warnings(&self) -> Vec<String> {
        let sentence = |(number, earlier): (usize, Vec<usize>)| {
            let (rules, verb) = match earlier.as_slice() {
                [one] => (format!("rule {one}"), "matches"),
                several => (format!("rules {} together", list(several)), "match"),
            };
            format!(
                "rule {number} of [[channels]] never applies, because the first match wins: \
                 {rules} {verb} all of its channels"
            )
        };
        self.grouped().into_iter().map(sentence).collect()
    }

    /// Logs a warning for each rule that never applies.
    pub fn log_warnings(&self) {
        for (rule, earlier) in self.grouped() {
            let by = list(&earlier);
            warn!(rule, by, "a channel rule never applies: earlier rules match all its channels");
        }
    }

    /// The rules that never apply, each with the earlier ones that match its channels.
    fn grouped(&self) -> Vec<(usize, Vec<usize>)> {
        let mut grouped: Vec<(usize, Vec<usize>)> = Vec::new();
        for (later, earlier) in self.shadowed() {
            match grouped.last_mut() {
                Some((number, all)) if *number == later => all.push(earlier),
                _ => grouped.push((later, vec![earlier])),
            }
        }
        grouped
    }
}

impl PartialEq for ChannelRules {
    fn eq(&self, other: &ChannelRules) -> bool {
        self.rules() == other.rules()
    }
}

impl Eq for ChannelRules {}

impl Indexed {
    /// The rule that applies to a channel, and its pattern, both as places from 0.
    fn first_match(&self, channel: &[u8]) -> Option<(usize, usize)> {
        let mut first: Option<PatternId> = None;
        self.index.visit_candidates(channel, |id| {
            if first.is_none_or(|first| id < first) && self.matches(id, channel) {
                first = Some(id);
            }
        });
        self.patterns.get(first? as usize).copied()
    }

    fn matches(&self, id: PatternId, channel: &[u8]) -> bool {
        let pattern = self.patterns.get(id as usize);
        let pattern = pattern.and_then(|&(rule, place)| self.rules.get(rule)?.match_.get(place));
        pattern.is_some_and(|pattern| glob::matches(pattern.as_bytes(), channel))
    }
}

fn list(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
