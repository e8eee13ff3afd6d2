//! The registry: for each channel and each pattern, the connections that listen to it.
//!
//! Ordered throughout, so that answers come in one order whatever happened before, a snapshot needs
//! no sorting, and channels that begin alike stand together. There is no way from a connection to
//! its names: the host knows them, and passes them when the connection leaves.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::name::{AsName, Name, key};
use crate::patterns::Patterns;
use crate::snapshot::{self, RestoreError};
use crate::subscribers::Subscribers;
use crate::{ConnectionId, FanOuts, Names, Page, PatternId, glob};

/// How many bytes of names a part of a list has, or a name more. It is copied out of a component,
/// beside what that holds.
const PAGE_BYTES_MAX: usize = 64 << 10;

/// The subscriptions of all connections.
///
/// Every function that takes [`Names`] panics when their ends fall or pass the end of their bytes:
/// that is the host's fault.
#[derive(Debug, Default)]
pub struct Registry {
    /// Channels with at least one subscriber.
    pub(crate) channels: BTreeMap<Name, Subscribers>,
    pub(crate) patterns: Patterns,
}

impl Registry {
    /// A registry without subscriptions.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// Subscribes the connection to each channel. A channel it already listens to changes nothing.
    pub fn subscribe(&mut self, connection: ConnectionId, channels: &Names) {
        for channel in channels.iter() {
            // Not `entry`, which would want a copy of the name also where it is known.
            if let Some(subscribers) = self.channels.get_mut(key(&channel)) {
                subscribers.insert(connection);
            } else {
                self.channels.insert(channel.into(), Subscribers::One(connection));
            }
        }
    }

    /// Ends the subscription to each channel. One it does not listen to changes nothing.
    pub fn unsubscribe(&mut self, connection: ConnectionId, channels: &Names) {
        for channel in channels.iter() {
            let Some(subscribers) = self.channels.get_mut(key(&channel)) else {
                continue;
            };
            subscribers.remove(connection);
            if subscribers.is_empty() {
                self.channels.remove(key(&channel));
            }
        }
    }

    /// Subscribes the connection to each pattern and answers the id of each, in order. A pattern it
    /// already listens to changes nothing.
    pub fn psubscribe(&mut self, connection: ConnectionId, patterns: &Names) -> Vec<PatternId> {
        patterns.iter().map(|pattern| self.patterns.subscribe(connection, pattern)).collect()
    }

    /// Ends the subscription to each pattern. One it does not listen to changes nothing. A pattern
    /// without subscribers is forgotten, and its id is free again.
    pub fn punsubscribe(&mut self, connection: ConnectionId, patterns: &Names) {
        for pattern in patterns.iter() {
            self.patterns.unsubscribe(connection, pattern);
        }
    }

    /// Replaces what `fan_outs` holds by the receivers of one publication on each of these
    /// channels. A connection appears once for the channel and once for each of its patterns that
    /// match. A channel without receivers has no group; one that is in the list twice is answered
    /// twice.
    pub fn route(&self, channels: &Names, fan_outs: &mut FanOuts) {
        fan_outs.clear();
        // One group with one receiver each is what to expect, and more is no harm.
        fan_outs.groups.reserve(channels.len());
        fan_outs.connections.reserve(channels.len());
        let mut matched = Vec::new();
        for (publication, channel) in channels.iter().enumerate() {
            if let Some(subscribers) = self.channels.get(key(&channel)) {
                fan_outs.push(publication, None, subscribers);
            }
            self.patterns.find(channel, &mut matched);
            for pattern in &matched {
                fan_outs.push(publication, Some(pattern.id), &pattern.subscribers);
            }
        }
    }

    /// Channels with at least one subscriber (patterns do not count), all of them or those that
    /// match the glob, in the order of their bytes. Costs a visit to every channel that begins with
    /// the glob's literal prefix.
    pub fn channels(&self, matching: Option<&[u8]>) -> Names {
        let Some(glob) = matching else {
            return self.channels.keys().map(AsName::bytes).collect();
        };
        let prefix = glob::literal_prefix(glob);
        self.channels
            .range::<dyn AsName, _>((Bound::Included(key(&&*prefix)), Bound::Unbounded))
            .map(|(channel, _)| channel.bytes())
            .take_while(|channel| channel.starts_with(&prefix))
            .filter(|channel| glob::matches(glob, channel))
            .collect()
    }

    /// A part of what `channels` answers: visits so many channels, at least one, beginning with
    /// the first that is not before `from`. Fewer where their names are long.
    pub fn channels_from(
        &self,
        matching: Option<&[u8]>,
        from: Option<&[u8]>,
        visits_max: u32,
    ) -> Page {
        let prefix = matching.map(glob::literal_prefix).unwrap_or_default();
        let first = from.unwrap_or_default().max(&*prefix);
        let mut channels = self
            .channels
            .range::<dyn AsName, _>((Bound::Included(key(&first)), Bound::Unbounded))
            .map(|(channel, _)| channel.bytes())
            .take_while(|channel| channel.starts_with(&prefix));
        let mut names = Names::new();
        for channel in channels.by_ref().take(visits_max.max(1) as usize) {
            if matching.is_none_or(|glob| glob::matches(glob, channel)) {
                names.push(channel);
                if names.bytes.len() >= PAGE_BYTES_MAX {
                    break;
                }
            }
        }
        Page { names, next: channels.next().map(<[u8]>::to_vec) }
    }

    /// The number of subscribers of each channel (patterns do not count), in order; zero for a
    /// channel without subscribers.
    pub fn subscriber_counts(&self, channels: &Names) -> Vec<u64> {
        channels
            .iter()
            .map(|channel| {
                self.channels.get(key(&channel)).map_or(0, |subscribers| subscribers.len() as u64)
            })
            .collect()
    }

    /// The number of channels with at least one subscriber (patterns do not count).
    pub fn channel_count(&self) -> u64 {
        self.channels.len() as u64
    }

    /// The number of distinct patterns with at least one subscriber.
    pub fn pattern_count(&self) -> u64 {
        self.patterns.len() as u64
    }

    /// Writes all of it down. Two registries that went through the same write the same.
    pub fn save(&self) -> Vec<u8> {
        snapshot::save(self)
    }

    /// Reads what `save` wrote, the ids of patterns included, and the order in which free ones are
    /// assigned.
    pub fn restore(state: &[u8]) -> Result<Registry, RestoreError> {
        snapshot::restore(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Group;

    // That it does what it should whatever comes is compared with the model, in `model.rs`.

    #[test]
    fn groups_come_in_order_and_replace_those_before() {
        let mut registry = Registry::new();
        registry.subscribe(7, &Names::from_iter(["room:1"]));
        registry.subscribe(5, &Names::from_iter(["room:1"]));
        let room = registry.psubscribe(7, &Names::from_iter(["room:*"]))[0];
        let any = registry.psubscribe(9, &Names::from_iter(["*"]))[0];
        let mut fan_outs = FanOuts::default();
        registry.route(&Names::from_iter(["room:1", "room:1", "room:1"]), &mut fan_outs);
        registry.route(&Names::from_iter(["", "room:1", "room:2"]), &mut fan_outs);
        assert_eq!(fan_outs.connections, [5, 7, 9, 7, 9, 7]);
        let group = |publication, pattern, end| Group { publication, pattern, end };
        assert_eq!(
            fan_outs.groups,
            [
                group(1, None, 2),
                group(1, Some(any), 3),
                group(1, Some(room), 4),
                group(2, Some(any), 5),
                group(2, Some(room), 6),
            ]
        );
    }

    #[test]
    fn the_parts_of_a_list_are_the_list() {
        let mut random = crate::model::Random::from_environment();
        let mut registry = Registry::new();
        let name = |random: &mut crate::model::Random| -> Vec<u8> {
            (0..random.below(5)).map(|_| *random.pick(b"ab*\xff")).collect()
        };
        for connection in 0..200 {
            let names: Names = (0..3).map(|_| name(&mut random)).collect();
            registry.subscribe(connection, &names);
        }
        for glob in [None, Some(&b"*"[..]), Some(b"a*"), Some(b"ab*"), Some(b"\xff"), Some(b"x*")] {
            for visits_max in [0, 1, 2, 7, 1_000] {
                let mut all = Names::new();
                let mut from: Option<Vec<u8>> = None;
                loop {
                    let page = registry.channels_from(glob, from.as_deref(), visits_max);
                    assert!(page.names.len() <= visits_max.max(1) as usize);
                    page.names.iter().for_each(|name| all.push(name));
                    match page.next {
                        Some(next) => assert!(from.replace(next.clone()) < Some(next)),
                        None => break,
                    }
                }
                assert_eq!(all, registry.channels(glob), "{glob:?} {visits_max}");
            }
        }
    }

    /// The host keeps one behind a lock that several threads take.
    #[test]
    fn can_be_passed_between_threads() {
        fn check<T: Send + Sync>() {}
        check::<Registry>();
    }
}
