//! Reads what the subscribing connection receives: messages of channels, marks, and messages of the
//! nodes.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::watch;

use super::store::fingerprint;
use super::{BEGIN, POSITIONS, PROBE, Position};
use crate::ask::MessageSender;
use crate::inbox::{Inbox, Incoming};
use crate::rooms::ROOMS;
use crate::{BackplaneStats, RESERVED};
use switchyard_telemetry::stats::count;
use switchyard_types::command::Space;
use switchyard_types::history::StreamPlace;
use switchyard_types::keyed_hash::KeyedMap;

/// Reads the messages of the subscribing connection.
pub(super) struct Reader {
    pub inbox: Arc<Inbox>,
    pub stats: Arc<BackplaneStats>,
    pub prefix: Vec<u8>,
    /// The sender for the nodes' own messages.
    pub message_sender: MessageSender,
    /// The channel for messages of the node to itself, and the sender for their numbers.
    pub own: Vec<u8>,
    pub received_sender: watch::Sender<u64>,
    pub state: Mutex<Reading>,
    pub breaking: watch::Sender<bool>,
}

#[derive(Default)]
pub(super) struct Reading {
    pub mark: Vec<u8>,
    /// Whether own messages arrive now.
    is_own: bool,
    /// The publication whose copies arrive now.
    copies: Option<Copies>,
    /// The positions of messages that have not arrived yet, by channel.
    places: KeyedMap<Bytes, Place>,
}

/// How many positions wait for their messages at most. The two are published in one step, so more
/// of them are positions whose messages were not for this node.
const PLACES_MAX: usize = 10_000;

/// The position of the next message on a channel.
struct Place {
    at: StreamPlace,
    /// What the message is recognized by.
    fingerprint: Box<[u8]>,
    tags: Option<Box<[u8]>>,
}

impl Place {
    /// Reads what `append.lua` publishes.
    fn parse(text: &[u8]) -> Option<Place> {
        let mut parts = text.splitn(5, |byte| *byte == b' ');
        let position = Position::parse(parts.next()?)?;
        let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
        let (previous, unix_ms) = (number()?, number()?);
        let fingerprint = parts.next()?.into();
        let tags = parts.next()?;
        Some(Place {
            at: StreamPlace { position, previous, unix_ms, is_read: false },
            fingerprint,
            tags: (!tags.is_empty()).then(|| tags.into()),
        })
    }
}

/// The copies of one publication.
struct Copies {
    channel: Bytes,
    /// For the channel itself: the copy that begins each of its publications.
    is_of_channel: bool,
    /// The patterns for which it arrived; each occurs once for one publication.
    patterns: Vec<Bytes>,
}

impl Reading {
    /// Whether a copy is the first of its publication. No pattern: it arrived for the channel
    /// itself.
    fn is_first(&mut self, channel: &Bytes, pattern: Option<Bytes>) -> bool {
        let Some(pattern) = pattern else {
            let channel = channel.clone();
            self.copies = Some(Copies { channel, is_of_channel: true, patterns: Vec::new() });
            return true;
        };
        if let Some(copies) = &mut self.copies
            && copies.channel == channel
        {
            if copies.is_of_channel {
                return false;
            }
            if !copies.patterns.contains(&pattern) {
                copies.patterns.push(pattern);
                return false;
            }
        }
        let channel = channel.clone();
        self.copies = Some(Copies { channel, is_of_channel: false, patterns: vec![pattern] });
        true
    }
}

impl Reader {
    pub fn take(&self, push: PushInfo) {
        let PushInfo { kind, data } = push;
        let mut parts = data.into_iter().map(|value| match value {
            Value::BulkString(bytes) => Bytes::from(bytes),
            Value::SimpleString(text) => Bytes::from(text),
            _ => Bytes::new(),
        });
        let mut state = self.state.lock();
        let (space, pattern) = match kind {
            PushKind::Disconnection => {
                self.breaking.send_replace(true);
                return;
            }
            PushKind::Message => (Space::Channels, None),
            PushKind::SMessage => (Space::ShardChannels, None),
            PushKind::PMessage => (Space::Channels, parts.next()),
            _ => {
                // Subscriptions change between two publications only.
                state.copies = None;
                return;
            }
        };
        let (Some(channel), Some(payload)) = (parts.next(), parts.next()) else { return };
        if space == Space::ShardChannels && *channel == *state.mark {
            state.is_own = payload == BEGIN;
            state.copies = None;
            return;
        }
        if state.is_own {
            if *channel == *self.own
                && pattern.is_none()
                && let Some(number) = payload.strip_prefix(PROBE.as_bytes())
            {
                let number = std::str::from_utf8(number).ok().and_then(|text| text.parse().ok());
                number.into_iter().for_each(|number| {
                    self.received_sender.send_replace(number);
                });
                return;
            }
            count(&self.stats.echoes);
            return;
        }
        let Some(name) = channel.strip_prefix(&*self.prefix) else { return };
        if let Some(name) = name.strip_prefix(RESERVED)
            && let Some(name) = name.strip_prefix(POSITIONS)
        {
            let Some(place) = Place::parse(&payload) else { return };
            if state.places.len() >= PLACES_MAX {
                state.places.clear();
            }
            state.places.insert(channel.slice_ref(name), place);
            state.copies = None;
            return;
        }
        if space == Space::Channels && !state.is_first(&channel, pattern.clone()) {
            return;
        }
        let channel_name = channel.slice_ref(name);
        let place = match state.places.get(&channel_name) {
            Some(place) if *place.fingerprint == *fingerprint(&payload).as_bytes() => {
                state.places.remove(&channel_name)
            }
            _ => None,
        };
        drop(state);
        let is_of_room = name.starts_with(ROOMS) && pattern.is_none();
        if name.starts_with(RESERVED) && !is_of_room {
            // Received through a pattern, it is not a message for this node.
            if space == Space::Channels && pattern.is_none() {
                self.message_sender.send(&payload);
            }
            return;
        }
        let (place, tags) = place.map(|place| (place.at, place.tags)).unzip();
        let tags = tags.flatten();
        self.inbox.push(Incoming { space, channel: channel_name, payload, place, tags });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_one_publication_are_distinguished_from_the_next_publication() {
        let mut reading = Reading::default();
        let mut check = |channel: &'static str, pattern: Option<&'static str>, expected: bool| {
            let (channel, pattern) = (Bytes::from(channel), pattern.map(Bytes::from));
            assert_eq!(reading.is_first(&channel, pattern.clone()), expected, "{pattern:?}");
        };
        // Two publications that match two patterns.
        check("a", Some("*"), true);
        check("a", Some("a*"), false);
        check("a", Some("*"), true);
        check("a", Some("a*"), false);
        // The order of patterns may change between them.
        check("a", Some("a*"), true);
        check("a", Some("*"), false);
        // Another channel.
        check("b", Some("*"), true);
        // A channel with a subscription of its own.
        check("c", None, true);
        check("c", Some("*"), false);
        check("c", Some("c*"), false);
        check("c", None, true);
        check("c", None, true);
        check("c", Some("*"), false);
    }
}
