//! The registry once more, as naive as possible: what the real one must agree with.
//!
//! Lists that are searched from the front, a glob matcher that follows the rules to the letter and
//! recurses, and random operations for both. Here for the tests of this crate, and behind the
//! feature `model` for the host's, which compare the component with it.

mod operation;
mod random;
mod reference_glob;

pub use operation::{Answer, Operation, random_operation};
pub use random::Random;
pub use reference_glob::ReferenceGlob;

use crate::{ConnectionId, FanOuts, Group, Names, PatternId};

/// The subscriptions, in lists. Has the methods of [`Registry`](crate::Registry), and each means
/// the same.
#[derive(Debug, Default)]
pub struct Model {
    channels: Vec<(Vec<u8>, ConnectionId)>,
    patterns: Vec<(Vec<u8>, ConnectionId)>,
    /// The pattern of each id.
    ids: Vec<Option<Vec<u8>>>,
    /// The ids without a pattern, the one freed last at the end.
    free: Vec<PatternId>,
}

#[expect(missing_docs, reason = "they are those of `Registry`")]
impl Model {
    pub fn new() -> Model {
        Model::default()
    }

    pub fn subscribe(&mut self, connection: ConnectionId, channels: &Names) {
        for channel in channels.iter() {
            let subscription = (channel.to_vec(), connection);
            if !self.channels.contains(&subscription) {
                self.channels.push(subscription);
            }
        }
    }

    pub fn unsubscribe(&mut self, connection: ConnectionId, channels: &Names) {
        for channel in channels.iter() {
            self.channels
                .retain(|(name, subscriber)| !(name == channel && *subscriber == connection));
        }
    }

    pub fn psubscribe(&mut self, connection: ConnectionId, patterns: &Names) -> Vec<PatternId> {
        patterns.iter().map(|pattern| self.psubscribe_one(connection, pattern)).collect()
    }

    pub fn punsubscribe(&mut self, connection: ConnectionId, patterns: &Names) {
        for pattern in patterns.iter() {
            self.patterns
                .retain(|(name, subscriber)| !(name == pattern && *subscriber == connection));
            if let Some(id) = self.id(pattern)
                && subscribers(&self.patterns, pattern).is_empty()
            {
                self.ids[id as usize] = None;
                self.free.push(id);
            }
        }
    }

    pub fn route(&self, channels: &Names, fan_outs: &mut FanOuts) {
        fan_outs.clear();
        for (publication, channel) in (0..).zip(channels.iter()) {
            let mut push = |pattern, subscribers: Vec<ConnectionId>| {
                if !subscribers.is_empty() {
                    fan_outs.connections.extend(subscribers);
                    fan_outs.groups.push(Group {
                        publication,
                        pattern,
                        end: fan_outs.connections.len() as u32,
                    });
                }
            };
            push(None, subscribers(&self.channels, channel));
            for pattern in sorted_names(&self.patterns) {
                if ReferenceGlob::new(&pattern).matches(channel) {
                    push(self.id(&pattern), subscribers(&self.patterns, &pattern));
                }
            }
        }
    }

    pub fn channels(&self, matching: Option<&[u8]>) -> Names {
        let glob = matching.map(ReferenceGlob::new);
        sorted_names(&self.channels)
            .into_iter()
            .filter(|channel| glob.as_ref().is_none_or(|glob| glob.matches(channel)))
            .collect()
    }

    pub fn subscriber_counts(&self, channels: &Names) -> Vec<u64> {
        channels.iter().map(|channel| subscribers(&self.channels, channel).len() as u64).collect()
    }

    pub fn pattern_count(&self) -> u64 {
        sorted_names(&self.patterns).len() as u64
    }

    fn psubscribe_one(&mut self, connection: ConnectionId, pattern: &[u8]) -> PatternId {
        let id = self.id(pattern).or_else(|| self.free.pop()).unwrap_or_else(|| {
            self.ids.push(None);
            self.ids.len() as PatternId - 1
        });
        self.ids[id as usize] = Some(pattern.to_vec());
        let subscription = (pattern.to_vec(), connection);
        if !self.patterns.contains(&subscription) {
            self.patterns.push(subscription);
        }
        id
    }

    fn id(&self, pattern: &[u8]) -> Option<PatternId> {
        self.ids.iter().position(|name| name.as_deref() == Some(pattern)).map(|id| id as PatternId)
    }
}

/// All subscribers of this name, rising.
fn subscribers(subscriptions: &[(Vec<u8>, ConnectionId)], name: &[u8]) -> Vec<ConnectionId> {
    let mut subscribers: Vec<_> = subscriptions
        .iter()
        .filter(|(subscribed, _)| subscribed == name)
        .map(|&(_, subscriber)| subscriber)
        .collect();
    subscribers.sort_unstable();
    subscribers
}

/// Every name once, in the order of their bytes.
fn sorted_names(subscriptions: &[(Vec<u8>, ConnectionId)]) -> Vec<Vec<u8>> {
    let mut names: Vec<_> = subscriptions.iter().map(|(name, _)| name.clone()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Registry;

    #[test]
    fn the_registry_does_what_the_model_does() {
        let mut random = Random::from_environment();
        for _ in 0..25 {
            let (mut registry, mut model) = (Registry::new(), Model::new());
            for step in 0..1_000 {
                let operation = random_operation(&mut random);
                let (answer, expected) = (operation.apply(&mut registry), model.apply(&operation));
                assert_eq!(answer, expected, "step {step}, {operation:?}, {model:?}");
            }
        }
    }
}
