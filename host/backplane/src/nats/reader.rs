//! Reads the messages of the subscriptions.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use async_nats::{HeaderMap, Message, Subscriber};
use futures_util::StreamExt;
use guest_core::{ConnectionId, FanOuts, Names, Registry, glob};
use parking_lot::Mutex;

use super::copies::{Content, Copies, Identity, Place};
use super::streams::{Seen, history_epoch, identity_of};
use super::{HEADER, OWN_TREE, store, subjects};
use crate::BackplaneStats;
use crate::inbox::{Inbox, Incoming};
use crate::interest::Name;
use switchyard_telemetry::panics;
use switchyard_telemetry::stats::count;
use switchyard_types::command::{Kind, Space};
use switchyard_types::history::StreamPlace;
use switchyard_types::position::Position;

pub(super) async fn read(reader: Arc<Reader>, id: ConnectionId, mut subscriber: Subscriber) {
    while let Some(message) = subscriber.next().await {
        // If one ended, its names would get no messages until the link fails.
        if panics::contain(|| reader.take(id, message)).is_none() {
            count(&reader.stats.undelivered);
        }
    }
}

/// Reads the messages of the subscriptions.
pub(super) struct Reader {
    pub inbox: Arc<Inbox>,
    pub stats: Arc<BackplaneStats>,
    pub prefix: String,
    pub node: String,
    pub seen: Arc<Seen>,
    pub matching: Mutex<Matching>,
}

/// The subscriptions that match a channel, and the copies that arrived.
#[derive(Default)]
pub(super) struct Matching {
    /// The subscriptions, in the place of connections.
    channels: Registry,
    shard_channels: Registry,
    copies: Copies,
    fan_outs: FanOuts,
}

impl Matching {
    pub fn add(&mut self, name: &Name, id: ConnectionId) {
        let names: Names = [&name.bytes].into_iter().collect();
        match name.kind {
            Kind::Channel => self.channels.subscribe(id, &names),
            Kind::Pattern => drop(self.channels.psubscribe(id, &names)),
            Kind::Shard => self.shard_channels.subscribe(id, &names),
        }
    }

    fn remove(&mut self, name: &Name, id: ConnectionId) {
        let names: Names = [&name.bytes].into_iter().collect();
        match name.kind {
            Kind::Channel => self.channels.unsubscribe(id, &names),
            Kind::Pattern => self.channels.punsubscribe(id, &names),
            Kind::Shard => self.shard_channels.unsubscribe(id, &names),
        }
    }

    /// The subscriptions that receive this channel, in rising order.
    fn of(&mut self, space: Space, channel: &[u8]) -> Vec<ConnectionId> {
        let registry = match space {
            Space::Channels => &self.channels,
            Space::ShardChannels => &self.shard_channels,
        };
        registry.route(&[channel].into_iter().collect(), &mut self.fan_outs);
        let mut ids = self.fan_outs.connections.clone();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

impl Reader {
    fn take(&self, id: ConnectionId, message: Message) {
        let header = message.headers.as_ref().and_then(|headers| headers.get(HEADER));
        let header = header.map(|header| header.as_str());
        if header.is_some_and(|header| header.starts_with(&self.node)) {
            count(&self.stats.echoes);
            return;
        }
        let Some((space, channel)) = subjects::channel(&self.prefix, &message.subject) else {
            // A wildcard may cover the nodes' own messages.
            if !message.subject.contains(OWN_TREE) {
                count(&self.stats.unmapped);
            }
            return;
        };
        let stored = message.headers.as_ref().and_then(|headers| self.stored(headers));
        let mut matching = self.matching.lock();
        let all = matching.of(space, &channel);
        if !all.contains(&id) {
            // A wildcard covers more than its patterns match.
            return;
        }
        let place = (space, channel);
        let payload = message.payload;
        let identity = match (&stored, header) {
            (Some(Stored { stream, sequence, .. }), _) => {
                Identity::Stored((*stream).to_owned(), *sequence)
            }
            (None, Some(header)) => Identity::Numbered(header.to_owned()),
            (None, None) => matching.copies.identity(&payload),
        };
        let tags = message.headers.as_ref().and_then(|headers| headers.get(store::TAGS));
        let (place_in_stream, tags) = match stored.and_then(|stored| stored.place) {
            Some(place) => (Some(place), tags.map(|tags| tags.as_str().as_bytes().into())),
            None => (None, None),
        };
        let content = Content { payload, place: place_in_stream, tags };
        if all.len() == 1 && !matching.copies.has(&place) {
            return self.deliver(place, content);
        }
        for (place, content) in matching.copies.forget(Instant::now()) {
            self.deliver(place, content);
        }
        match matching.copies.take(&place, identity, id, &all, content) {
            Some(content) => self.deliver(place, content),
            None => count(&self.stats.echoes),
        }
    }

    /// What the headers say that JetStream adds when it republishes a message.
    fn stored<'h>(&self, headers: &'h HeaderMap) -> Option<Stored<'h>> {
        let stream = headers.get("Nats-Stream")?.as_str();
        let number = |name: &str| headers.get(name)?.as_str().parse::<u64>().ok();
        let sequence = number("Nats-Sequence")?;
        let place = history_epoch(&self.prefix, stream).and_then(|epoch| {
            self.seen.note(stream, sequence, identity_of(headers));
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            Some(StreamPlace {
                position: Position { epoch, offset: sequence },
                previous: number("Nats-Last-Sequence")?,
                unix_ms: now.as_millis() as u64,
                is_read: false,
            })
        });
        Some(Stored { stream, sequence, place })
    }

    /// Removes a name from its subscription.
    pub fn give_up(&self, name: &Name, id: ConnectionId) {
        let mut matching = self.matching.lock();
        matching.remove(name, id);
        let space = match name.kind {
            Kind::Channel | Kind::Pattern => Space::Channels,
            Kind::Shard => Space::ShardChannels,
        };
        let is_matched = |place: &&Place| place.0 == space && glob::matches(&name.bytes, &place.1);
        let places: Vec<Place> = match name.kind {
            Kind::Pattern => {
                let places = matching.copies.places();
                places.filter(is_matched).cloned().collect()
            }
            Kind::Channel | Kind::Shard => {
                let place = (space, name.bytes.to_vec());
                matching.copies.has(&place).then_some(place).into_iter().collect()
            }
        };
        for place in places {
            let all = matching.of(place.0, &place.1);
            for content in matching.copies.hand_over(&place, &all) {
                self.deliver(place.clone(), content);
            }
        }
    }

    /// The copies stay locked, so that messages stay in order.
    fn deliver(&self, (space, channel): Place, content: Content) {
        let Content { payload, place, tags } = content;
        self.inbox.push(Incoming { space, channel: channel.into(), payload, place, tags });
    }
}

/// A message that JetStream stores.
struct Stored<'h> {
    stream: &'h str,
    sequence: u64,
    /// Its place in the history of its channel; none: the stream is not one of histories.
    place: Option<StreamPlace>,
}
