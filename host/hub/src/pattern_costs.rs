//! Bounds the cost that subscribed patterns add to a publication.
//!
//! The engine tries a pattern only on names that begin and end with its literal bytes. A name has
//! one beginning of each length and one ending, so of all patterns whose literal ends have the same
//! two lengths, only those that share one pair of ends can apply to it. The sum of the costliest
//! such group, over all pairs of lengths, is the most that a name can cost: a hundred thousand
//! patterns `user:N:*` cost little, and as many `*a*b*` cost a hundred thousand times one.

use std::collections::BTreeMap;
use std::sync::Arc;

use guest_core::glob::{self, LiteralEnds};

use switchyard_types::keyed_hash::KeyedMap;

/// Steps of matching, for a short name and for the longest possible name.
pub type Steps = [u64; 2];

/// Names up to this length count as short. Most are.
pub const SHORT_NAME_BYTES: usize = 64;

/// The cost of finding a pattern in the index, besides matching it.
const VISIT_STEPS: u64 = 40;

/// Distinct patterns, and their total cost.
#[derive(Default)]
pub struct PatternCosts {
    held: KeyedMap<Arc<[u8]>, Held>,
    groups: KeyedMap<LiteralEnds, Steps>,
    /// For each pair of end lengths, how many groups there are of each cost.
    by_lengths: BTreeMap<(usize, usize), [BTreeMap<u64, usize>; 2]>,
    bound: Steps,
    name_bytes_max: usize,
}

struct Held {
    subscribers: usize,
    steps: Steps,
}

/// The result of adding or removing a subscriber of a pattern.
pub struct Changed {
    /// The pattern, to be shared.
    pub pattern: Arc<[u8]>,
    /// Its cost.
    pub steps: Steps,
    /// Whether this was its first or its last subscriber.
    pub is_distinct: bool,
}

impl PatternCosts {
    /// No patterns; names may be this long.
    pub fn new(name_bytes_max: usize) -> PatternCosts {
        PatternCosts { name_bytes_max, ..PatternCosts::default() }
    }

    /// The cost of one publication.
    pub fn bound(&self) -> Steps {
        self.bound
    }

    /// The cost of a single pattern.
    pub fn steps_of(&self, pattern: &[u8]) -> Steps {
        match self.held.get(pattern) {
            Some(held) => held.steps,
            None => steps(pattern, self.name_bytes_max),
        }
    }

    /// Adds a subscriber of a pattern.
    pub fn add(&mut self, pattern: &[u8]) -> Changed {
        if let Some((pattern, held)) = self.held.get_key_value(pattern) {
            let (pattern, steps) = (pattern.clone(), held.steps);
            if let Some(held) = self.held.get_mut(&pattern) {
                held.subscribers += 1;
            }
            return Changed { pattern, steps, is_distinct: false };
        }
        let steps = steps(pattern, self.name_bytes_max);
        let pattern: Arc<[u8]> = pattern.into();
        self.held.insert(pattern.clone(), Held { subscribers: 1, steps });
        self.change_group(&pattern, |sum, steps| sum.saturating_add(steps), steps);
        Changed { pattern, steps, is_distinct: true }
    }

    /// Removes a subscriber of a pattern. None: it has none.
    pub fn remove(&mut self, pattern: &[u8]) -> Option<Changed> {
        let held = self.held.get_mut(pattern)?;
        held.subscribers -= 1;
        let (is_distinct, steps) = (held.subscribers == 0, held.steps);
        let (pattern, _) = self.held.get_key_value(pattern)?;
        let pattern = pattern.clone();
        if is_distinct {
            self.held.remove(&pattern);
            self.change_group(&pattern, |sum, steps| sum.saturating_sub(steps), steps);
        }
        Some(Changed { pattern, steps, is_distinct })
    }

    /// Sets how long names may be.
    pub fn set_name_bytes_max(&mut self, name_bytes_max: usize) {
        let held = std::mem::take(&mut self.held);
        *self = PatternCosts::new(name_bytes_max);
        for (pattern, Held { subscribers, .. }) in held {
            let steps = steps(&pattern, name_bytes_max);
            self.change_group(&pattern, |sum, steps| sum.saturating_add(steps), steps);
            self.held.insert(pattern, Held { subscribers, steps });
        }
    }

    /// Changes the sum of the group of a pattern by its steps, and the bound with it.
    fn change_group(&mut self, pattern: &[u8], change: impl Fn(u64, u64) -> u64, by: Steps) {
        let ends = glob::literal_ends(pattern);
        let lengths = (ends.prefix.len(), ends.suffix.len());
        let before = self.groups.get(&ends).copied();
        let mut after = before.unwrap_or_default();
        for (sum, steps) in after.iter_mut().zip(by) {
            *sum = change(*sum, steps);
        }
        let is_empty = after == Steps::default();
        match is_empty {
            true => self.groups.remove(&ends),
            false => self.groups.insert(ends, after),
        };
        let costs = self.by_lengths.entry(lengths).or_default();
        for ((costs, bound), (place, after)) in
            costs.iter_mut().zip(&mut self.bound).zip(after.iter().enumerate())
        {
            let most =
                |costs: &BTreeMap<u64, usize>| costs.last_key_value().map_or(0, |(most, _)| *most);
            let most_before = most(costs);
            if let Some(before) = before.and_then(|before| before.get(place).copied())
                && let Some(groups) = costs.get_mut(&before)
            {
                *groups -= 1;
                if *groups == 0 {
                    costs.remove(&before);
                }
            }
            if !is_empty {
                *costs.entry(*after).or_default() += 1;
            }
            *bound = bound.saturating_sub(most_before).saturating_add(most(costs));
        }
        if costs.iter().all(BTreeMap::is_empty) {
            self.by_lengths.remove(&lengths);
        }
    }
}

/// The cost of a pattern for one name; never zero for the longest name.
fn steps(pattern: &[u8], name_bytes_max: usize) -> Steps {
    [name_bytes_max.min(SHORT_NAME_BYTES), name_bytes_max].map(|name_bytes| {
        // Those that match are sorted by their bytes, which counts their length once more.
        glob::steps_max(pattern, name_bytes) + pattern.len() as u64 + VISIT_STEPS
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: usize = 1_024;

    fn costs(patterns: impl IntoIterator<Item = String>) -> PatternCosts {
        let mut costs = PatternCosts::new(NAME);
        for pattern in patterns {
            costs.add(pattern.as_bytes());
        }
        costs
    }

    fn bound(patterns: impl IntoIterator<Item = String>) -> u64 {
        costs(patterns).bound()[1]
    }

    #[test]
    fn patterns_that_no_name_meets_together_cost_what_one_costs() {
        let one = bound(["user:00007:*".to_owned()]);
        assert_eq!(bound((0..10_000).map(|n| format!("user:{n:05}:*"))), one);
        assert_eq!(
            bound((0..10_000).map(|n| format!("*:user:{n:05}"))),
            bound(["*:user:00007".to_owned()])
        );
        // With numbers of all lengths, one of each length.
        assert!(bound((0..10_000).map(|n| format!("user:{n}:*"))) < 5 * one);
    }

    #[test]
    fn patterns_that_one_name_meets_cost_their_sum() {
        let one = bound(["*a1*".to_owned()]);
        assert_eq!(bound((0..5).map(|n| format!("*a{n}*"))), 5 * one);
        // Each is a prefix of the next.
        let chain = bound((1..=100).map(|length| "a".repeat(length) + "*"));
        assert!(chain > 100 * VISIT_STEPS, "{chain}");
    }

    #[test]
    fn what_is_removed_costs_nothing() {
        let mut random = guest_core::model::Random::from_environment();
        let patterns = ["*", "a*", "*a*", "b*c", "*b*", "ab*cd*e", "news", "", "*a*b*c*", "a?*"];
        let mut costs = PatternCosts::new(NAME);
        let mut held: Vec<&str> = Vec::new();
        for _ in 0..2_000 {
            if random.below(2) == 0 || held.is_empty() {
                let pattern = *random.pick(&patterns);
                assert_eq!(costs.add(pattern.as_bytes()).is_distinct, !held.contains(&pattern));
                held.push(pattern);
            } else {
                let place = random.index(held.len());
                let pattern = held.swap_remove(place);
                let changed = costs.remove(pattern.as_bytes()).expect("it is held");
                assert_eq!(changed.is_distinct, !held.contains(&pattern));
            }
            let fresh = self::costs(held.iter().map(|pattern| (*pattern).to_owned()));
            assert_eq!(costs.bound(), fresh.bound(), "{held:?}");
        }
        for pattern in held {
            costs.remove(pattern.as_bytes());
        }
        assert_eq!(costs.bound(), [0, 0]);
        assert!(costs.held.is_empty() && costs.groups.is_empty() && costs.by_lengths.is_empty());
        assert!(costs.remove(b"*").is_none());
    }

    #[test]
    fn longer_names_cost_more() {
        let mut costs = costs(["*a*b*".to_owned()]);
        let before = costs.bound();
        costs.set_name_bytes_max(2 * NAME);
        assert!(costs.bound()[1] > before[1] && costs.bound()[0] == before[0]);
        costs.set_name_bytes_max(NAME);
        assert_eq!(costs.bound(), before);
    }
}
