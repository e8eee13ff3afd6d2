//! Publications on their way from the engine to the outboxes.
//!
//! Delivering has two steps, between which the locks of the shards are held: `route` finds the
//! receivers of each publication, and `deliver` queues it. So the publisher's reply can be written
//! before its own copy of the message is queued.

use std::borrow::Cow;

use bytes::Bytes;
use smallvec::smallvec;

use super::clock::unix_us;
use super::connections::{Connection, Table};
use super::encoding::{Encoding, Message, PerEncoding, Push};
use super::filter::{Delivery, DeliveryEdit, DeliveryFilter, Extras};
use super::history::Arrival;
use super::shard::FanOutRange;
use super::{Guards, Hub, Unavailable};
use switchyard_history::{Entry, Published as Retained};
use switchyard_net::flush::PendingFlush;
use switchyard_net::scheduling;
use switchyard_types::batch::Batch;
use switchyard_types::command::{Publication, Published, Refusal, Space};
use switchyard_types::ids::ConnectionId;
use switchyard_types::position::Position;

/// What becomes of a publication.
#[derive(Debug)]
pub struct Outcome {
    /// How many deliveries it has, or why it has none.
    pub deliveries: Result<u64, Box<Refusal>>,
    /// Whether its publisher is among the receivers.
    pub is_own: bool,
    /// Where it is in the history of its channel; none: it is not retained.
    pub position: Option<Position>,
    /// Whether it was dropped because the history has an equal or higher version.
    pub is_stale: bool,
}

impl Outcome {
    fn new(deliveries: Result<u64, Box<Refusal>>, is_own: bool) -> Outcome {
        Outcome { deliveries, is_own, position: None, is_stale: false }
    }

    /// What its publisher is answered.
    ///
    /// # Errors
    ///
    /// Why it was not delivered.
    pub fn published(&self) -> Result<Published, &Refusal> {
        let Outcome { deliveries, position, is_stale, .. } = self;
        let published = |deliveries: &u64| Published {
            deliveries: *deliveries,
            position: *position,
            is_stale: *is_stale,
        };
        deliveries.as_ref().map(published).map_err(Box::as_ref)
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Outcome {
        Outcome::new(Err(Box::new(refusal)), false)
    }
}

/// What a filter made of each publication; none: it was not called.
type Edits = Vec<Option<Result<DeliveryEdit, Refusal>>>;

/// Publications whose receivers are known, and which are not queued yet. The shards of their channels
/// are locked while this exists, and the histories of the channels have the publications already.
#[must_use = "it is delivered by `deliver`"]
pub struct Routed<'a> {
    hub: &'a Hub,
    publications: &'a [(ConnectionId, Publication<'a>)],
    guards: Guards<'a>,
    ranges: Batch<Result<(usize, FanOutRange), Unavailable>>,
    /// What happens to those that the backplane put into streams; empty: there is no backplane, or
    /// no channel has a history.
    arrivals: Batch<Option<Arrival>>,
    /// None: there is no filter.
    edits: Option<Edits>,
    outcomes: Batch<Outcome>,
}

impl Hub {
    /// Delivers publications in order, whose publishers are sent no replies. Returns what became of
    /// each.
    pub fn publish(
        &self,
        filter: &dyn DeliveryFilter,
        publications: &[(ConnectionId, Publication<'_>)],
    ) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(publications.len());
        while let Some(rest) = publications.get(outcomes.len()..).filter(|rest| !rest.is_empty()) {
            let routed = self.route(filter, rest);
            let (of_routed, _) = routed.deliver(Batch::new());
            outcomes.extend(of_routed);
        }
        outcomes
    }

    /// Finds the receivers of the first of these publications, at least of one, and has the filter
    /// edit them. Where patterns are costly these are few, so that shards are not locked for long.
    pub fn route<'a>(
        &'a self,
        filter: &dyn DeliveryFilter,
        publications: &'a [(ConnectionId, Publication<'a>)],
    ) -> Routed<'a> {
        let mut work = self.holdings.work();
        let fits = |(_, publication): &&(_, Publication<'_>)| work.take(&publication.channel);
        let count = publications.iter().take_while(fits).count();
        let publications = publications.get(..count).unwrap_or(publications);
        let shard_of: Batch<usize> = publications
            .iter()
            .map(|(_, publication)| self.shard_of(publication.space, &publication.channel))
            .collect();
        let mut guards = self.lock(shard_of.iter().copied());
        let mut ranges: Batch<Result<(usize, FanOutRange), Unavailable>> =
            smallvec![Err(Unavailable); publications.len()];
        for (position, (number, shard)) in guards.iter_mut().enumerate() {
            let mine = || {
                shard_of.iter().zip(publications).enumerate().filter(|(_, (of, _))| *of == number)
            };
            let found =
                shard.route(self, mine().map(|(_, (_, (_, publication)))| &*publication.channel));
            for ((index, _), range) in mine().zip(found.into_iter().flatten()) {
                if let Some(slot) = ranges.get_mut(index) {
                    *slot = Ok((position, range));
                }
            }
        }
        let arrivals = self.history.arrivals(publications);
        let mut routed = Routed {
            hub: self,
            publications,
            guards,
            ranges,
            arrivals,
            edits: None,
            outcomes: Batch::new(),
        };
        if filter.has_deliveries() {
            let planned = routed.plan();
            routed.edits = Some(routed.filter(filter, &planned));
        }
        let mut outcomes = Batch::with_capacity(publications.len());
        for index in 0..publications.len() {
            outcomes.push(routed.outcome(index));
        }
        routed.outcomes = outcomes;
        if self.history.is_on() {
            routed.retain();
        }
        routed
    }
}

impl Routed<'_> {
    /// What becomes of each publication, in order.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// Queues the messages in the outboxes of their receivers. Publishers that receive their own
    /// publications are not woken: the caller wakes them, or is their task. `replies` are queued
    /// for the publisher before its own copy of the publication with this index, which rises.
    /// Returns the outcomes, and whether there was any receiver.
    pub fn deliver(mut self, replies: Batch<(usize, Bytes)>) -> (Batch<Outcome>, bool) {
        let outcomes = std::mem::take(&mut self.outcomes);
        let appended = self.publications.iter().zip(&outcomes);
        let appended = appended.filter(|(_, outcome)| outcome.position.is_some());
        self.hub.stream_readers().wake(appended.map(|((_, it), _)| &*it.channel));
        let (mut delivered, mut deliveries_made) = (0, 0);
        for deliveries in outcomes.iter().filter_map(|outcome| outcome.deliveries.as_ref().ok()) {
            delivered += 1;
            deliveries_made += deliveries;
        }
        // Any of the locked shards may count them.
        if let Some((_, shard)) = self.guards.first() {
            shard.stats.delivered(delivered, deliveries_made);
        }
        if deliveries_made == 0 {
            return (outcomes, false);
        }
        let table = self.hub.connections.read();
        let mut replies = replies.into_iter().peekable();
        let mut run: Option<CoalescedDelivery<'_>> = None;
        let mut unflushed = PendingFlush::default();
        for (index, outcome) in outcomes.iter().enumerate() {
            if !matches!(outcome.deliveries, Ok(1..)) {
                continue;
            }
            let Some((publisher, publication)) = self.publications.get(index) else { continue };
            if outcome.is_own {
                // Earlier publications must be queued before the reply.
                if let Some(run) = run.take_if(|run| run.reaches(*publisher)) {
                    run.push(&table, &mut unflushed);
                }
                if let Some((_, reply)) = replies.next_if(|(at, _)| *at == index)
                    && let Some(connection) = table.get(publisher)
                {
                    connection.outbox.push_without_wake(reply);
                }
            }
            let edit = self.edit(index);
            let payload = edit.and_then(|edit| edit.payload.as_deref());
            let payload = payload.unwrap_or(&publication.payload);
            for (pattern, ids) in self.receivers(index) {
                if ids.is_empty() {
                    continue;
                }
                let is_own = outcome.is_own && ids.binary_search(publisher).is_ok();
                let own = is_own.then_some(*publisher);
                let Publication { space, channel, options, .. } = publication;
                let position = outcome.position;
                // Tags are for what is retained.
                let options = options.as_ref().filter(|_| position.is_some());
                let tags = options.and_then(|options| options.tags.as_deref());
                let message = Message { space: *space, pattern, channel, payload, position, tags };
                let push = Push::new(message);
                match &mut run {
                    Some(run) if run.has_room_for(&push, &ids, own) => run.append(push),
                    _ => {
                        if let Some(run) = run.replace(CoalescedDelivery::new(push, ids, own)) {
                            run.push(&table, &mut unflushed);
                        }
                    }
                }
                if is_own && let (Some(run), Some(connection)) = (&mut run, table.get(publisher)) {
                    run.push_without_wake(connection);
                }
            }
        }
        if let Some(run) = run {
            run.push(&table, &mut unflushed);
        }
        drop(unflushed);
        scheduling::defeat_lifo_slot();
        drop(table);
        (outcomes, true)
    }

    /// Appends the publications to the histories of their channels.
    fn retain(&mut self) {
        let history = self.hub.history();
        if history.is_shared() {
            // The backplane has appended them already.
            for ((_, publication), outcome) in self.publications.iter().zip(&mut self.outcomes) {
                let options = publication.options.as_ref();
                outcome.position = options.and_then(|options| options.place).map(|it| it.position);
            }
            return;
        }
        // The entries are made before the lock is taken.
        let entries: Batch<(usize, Entry)> = self
            .publications
            .iter()
            .zip(&self.outcomes)
            .enumerate()
            .filter(|(_, ((_, publication), outcome))| {
                outcome.deliveries.is_ok()
                    && publication.space == Space::Channels
                    && history.rule(&publication.channel).is_some()
            })
            .map(|(index, ((publisher, publication), _))| {
                let options = publication.options.as_deref();
                let version = options.and_then(|options| options.version);
                let tags = options.and_then(|options| options.tags.as_deref());
                (index, Entry::new(&publication.payload, *publisher, version, tags))
            })
            .collect();
        if entries.is_empty() {
            return;
        }
        let now_us = unix_us();
        let mut streams = history.streams.lock();
        for (index, entry) in entries {
            let Some((_, publication)) = self.publications.get(index) else { continue };
            let listeners = || self.listeners(index);
            let published = streams.publish(&publication.channel, entry, listeners, now_us);
            let Some(outcome) = self.outcomes.get_mut(index) else { continue };
            match published {
                Retained::Kept(position) => outcome.position = Some(position),
                Retained::Stale => {
                    *outcome = Outcome { is_stale: true, ..Outcome::new(Ok(0), false) }
                }
                // The rules have changed.
                Retained::NoHistory => {}
            }
        }
    }

    /// How many connections are subscribed to the channel of a publication by its name.
    fn listeners(&self, index: usize) -> u32 {
        let found = self.ranges.get(index).and_then(|range| range.as_ref().ok());
        let groups = found.and_then(|(position, range)| {
            let (_, shard) = self.guards.get(*position)?;
            shard.groups(range).find(|(pattern, _)| pattern.is_none())
        });
        groups.map_or(0, |(_, ids)| u32::try_from(ids.len()).unwrap_or(u32::MAX))
    }

    fn outcome(&self, index: usize) -> Outcome {
        if let Some(Some(Err(refusal))) = self.edits.as_ref().and_then(|edits| edits.get(index)) {
            return refusal.clone().into();
        }
        if let Some(Err(unavailable)) = self.ranges.get(index) {
            return Refusal::from(*unavailable).into();
        }
        let publisher = self.publications.get(index).map(|(publisher, _)| publisher);
        let (mut deliveries, mut is_own) = (0, false);
        for (_, ids) in self.receivers(index) {
            deliveries += ids.len() as u64;
            is_own |= publisher.is_some_and(|publisher| ids.binary_search(publisher).is_ok());
        }
        Outcome::new(Ok(deliveries), is_own)
    }

    fn edit(&self, index: usize) -> Option<&DeliveryEdit> {
        self.edits.as_ref()?.get(index)?.as_ref()?.as_ref().ok()
    }

    /// The receivers of a publication in rising order, by pattern; none: the channel itself.
    fn receivers(
        &self,
        index: usize,
    ) -> impl Iterator<Item = (Option<&[u8]>, Cow<'_, [ConnectionId]>)> {
        let only = self.edit(index).and_then(|edit| edit.recipients.as_ref());
        self.routed(index).map(move |(pattern, ids)| {
            let ids = match only {
                None => ids,
                Some(only) => {
                    let is_wanted = |id: &ConnectionId| only.binary_search(id).is_ok();
                    ids.iter().copied().filter(is_wanted).collect()
                }
            };
            (pattern, ids)
        })
    }

    /// The same, before the filter.
    fn routed(
        &self,
        index: usize,
    ) -> impl Iterator<Item = (Option<&[u8]>, Cow<'_, [ConnectionId]>)> {
        let arrival = self.arrivals.get(index).and_then(Option::as_ref);
        let is_dropped = matches!(arrival, Some(Arrival::Dropped));
        let found = self.ranges.get(index).and_then(|range| range.as_ref().ok());
        let of_shard = found.filter(|_| !is_dropped).and_then(|(position, range)| {
            let (_, shard) = self.guards.get(*position)?;
            Some(shard.groups(range))
        });
        of_shard.into_iter().flatten().map(move |(pattern, ids)| match (pattern, arrival) {
            (None, Some(Arrival::Delivered { except })) if !except.is_empty() => {
                let is_meant = |id: &ConnectionId| !except.contains(id);
                (None, ids.iter().copied().filter(is_meant).collect())
            }
            _ => (pattern, Cow::Borrowed(ids)),
        })
    }

    /// What the histories will make of the publications, for the filter. The shards are locked, so
    /// that nothing else is appended to the histories of their channels.
    fn plan(&self) -> Batch<Planned> {
        let history = self.hub.history();
        if !history.is_on() {
            return Batch::new();
        }
        if history.is_shared() {
            let place = |publication: &Publication<'_>| {
                let place = publication.options.as_ref()?.place?;
                Some(place.position)
            };
            let planned = |(_, publication): &(_, Publication<'_>)| Planned::At(place(publication));
            return self.publications.iter().map(planned).collect();
        }
        let now_us = unix_us();
        let mut streams = history.streams.lock();
        let mut heads: Batch<(&[u8], Position, Option<u64>)> = Batch::new();
        let mut planned = Batch::new();
        for (index, (_, publication)) in self.publications.iter().enumerate() {
            let channel = &*publication.channel;
            let is_routed = matches!(self.ranges.get(index), Some(Ok(_)));
            if !is_routed || publication.space != Space::Channels {
                planned.push(Planned::At(None));
                continue;
            }
            let known = heads.iter().position(|(of, ..)| *of == channel);
            let place = known.or_else(|| {
                let (position, version) =
                    streams.head(channel, || self.listeners(index), now_us)?;
                heads.push((channel, position, version));
                heads.len().checked_sub(1)
            });
            let Some((_, head, held)) = place.and_then(|place| heads.get_mut(place)) else {
                planned.push(Planned::At(None));
                continue;
            };
            let version = publication.options.as_ref().and_then(|options| options.version);
            if version.is_some() && version <= *held {
                planned.push(Planned::Stale);
                continue;
            }
            *held = version.max(*held);
            head.offset += 1;
            planned.push(Planned::At(Some(*head)));
        }
        planned
    }

    /// Has the filter edit what has receivers.
    fn filter(&self, filter: &dyn DeliveryFilter, planned: &[Planned]) -> Edits {
        let mut indices = Vec::new();
        let mut deliveries = Vec::new();
        for (index, (publisher, publication)) in self.publications.iter().enumerate() {
            let mut recipients: Vec<ConnectionId> = Vec::new();
            let position = match planned.get(index) {
                Some(Planned::Stale) => continue,
                Some(Planned::At(position)) => *position,
                None => None,
            };
            self.routed(index).for_each(|(_, ids)| recipients.extend_from_slice(&ids));
            if recipients.is_empty() {
                continue;
            }
            recipients.sort_unstable();
            recipients.dedup();
            indices.push(index);
            let payload = publication.payload.as_ref().into();
            let extras = Extras::of(publication.options.as_deref());
            let channel = &*publication.channel;
            deliveries
                .push((*publisher, Delivery { channel, payload, position, extras, recipients }));
        }
        let mut edits: Edits = self.publications.iter().map(|_| None).collect();
        for (index, edit) in indices.into_iter().zip(filter.deliver(deliveries)) {
            if let Some(slot) = edits.get_mut(index) {
                *slot = Some(edit);
            }
        }
        self.refuse_behind(&mut edits, planned);
        edits
    }

    /// Refuses what follows a refused publication on a channel with history: it would have another
    /// position than the filter was told.
    fn refuse_behind(&self, edits: &mut Edits, planned: &[Planned]) {
        let is_refused =
            |edit: &Option<Result<DeliveryEdit, Refusal>>| matches!(edit, Some(Err(_)));
        if !edits.iter().any(is_refused) {
            return;
        }
        let mut refused: Batch<(&[u8], Refusal)> = Batch::new();
        for (index, (_, publication)) in self.publications.iter().enumerate() {
            let (Some(edit), Some(Planned::At(Some(_)))) =
                (edits.get_mut(index), planned.get(index))
            else {
                continue;
            };
            let channel = &*publication.channel;
            if let Some(Err(refusal)) = edit {
                refused.push((channel, refusal.clone()));
            } else if let Some((_, refusal)) = refused.iter().find(|(of, _)| *of == channel) {
                *edit = Some(Err(refusal.clone()));
            }
        }
    }
}

/// What a history will make of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Planned {
    /// It will be there; none: it will not be retained.
    At(Option<Position>),
    /// It will be dropped, because an equal or higher version is retained.
    Stale,
}

/// The maximum bytes of names and payloads in one run. A slow consumer that received the beginning
/// of a chunk is sent the rest of it before it is closed.
const BYTES_MAX: usize = 16 << 10;

/// Consecutive publications with the same receivers, delivered as one. A burst on one channel is the
/// common case of a fast publisher, and the main cost of a delivery, besides its bytes, is its entry
/// in an outbox. So each receiver's outbox gets the whole run as one entry.
struct CoalescedDelivery<'a> {
    first: Push<'a>,
    more: Vec<Push<'a>>,
    bytes: usize,
    receivers: Cow<'a, [ConnectionId]>,
    /// A receiver that is also the publisher: gets each message separately, because replies lie
    /// between them.
    own: Option<ConnectionId>,
}

impl<'a> CoalescedDelivery<'a> {
    /// A run with one publication. The receivers are in rising order.
    fn new(
        push: Push<'a>,
        receivers: Cow<'a, [ConnectionId]>,
        own: Option<ConnectionId>,
    ) -> CoalescedDelivery<'a> {
        let bytes = push.bytes();
        CoalescedDelivery { first: push, more: Vec::new(), bytes, receivers, own }
    }

    /// Whether `push` may be appended: it has the same receivers, the same publisher `own`, and
    /// fits.
    fn has_room_for(
        &self,
        push: &Push<'_>,
        receivers: &[ConnectionId],
        own: Option<ConnectionId>,
    ) -> bool {
        own == self.own
            && self.bytes + push.bytes() <= BYTES_MAX
            && push.is_like(&self.first)
            && *receivers == *self.receivers
    }

    /// Appends a publication that fits.
    fn append(&mut self, push: Push<'a>) {
        self.bytes += push.bytes();
        self.more.push(push);
    }

    /// Whether this connection receives the whole run.
    fn reaches(&self, connection: ConnectionId) -> bool {
        self.own != Some(connection) && self.receivers.binary_search(&connection).is_ok()
    }

    /// Delivers the last publication to its publisher now. Its writer is not woken.
    fn push_without_wake(&mut self, publisher: &Connection) {
        let last = self.more.last_mut().unwrap_or(&mut self.first);
        publisher.outbox.push_without_wake(last.encoded(publisher.encoding()));
    }

    /// Delivers the whole run to all other receivers, and collects those to be flushed.
    fn push(mut self, table: &Table, unflushed: &mut PendingFlush<Connection>) {
        let mut encoded = PerEncoding::default();
        let (receivers, own) = (std::mem::take(&mut self.receivers), self.own);
        for id in receivers.iter().filter(|id| Some(**id) != own) {
            let Some(connection) = table.get(id) else { continue };
            let encoding = connection.encoding();
            let chunk = encoded.get_or_insert_with(encoding, || self.encoded(encoding));
            // A connection that is publishing is woken when that is done. Check after the push,
            // so that it finds the chunk then.
            if connection.outbox.push_deferred(chunk) && !connection.is_publishing() {
                unflushed.add(connection);
            }
        }
    }

    fn encoded(&mut self, encoding: Encoding) -> Bytes {
        if self.more.is_empty() {
            return self.first.encoded(encoding);
        }
        let mut pieces = vec![self.first.encoded(encoding)];
        pieces.extend(self.more.iter_mut().map(|push| push.encoded(encoding)));
        // Of exactly this length: unused capacity would not be counted.
        Bytes::from(pieces.concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_of_one_channel_and_the_same_receivers_and_no_longer_than_it_may_be() {
        let payload = vec![b'x'; BYTES_MAX / 3];
        let push = |channel| {
            let space = Space::Channels;
            Push::new(Message::new(space, None, channel, &payload))
        };
        let mut run = CoalescedDelivery::new(push(b"news"), Cow::Borrowed(&[1, 2]), None);
        assert!(!run.has_room_for(&push(b"olds"), &[1, 2], None));
        assert!(!run.has_room_for(&push(b"news"), &[1], None));
        assert!(!run.has_room_for(&push(b"news"), &[1, 2], Some(2)));
        assert!(run.has_room_for(&push(b"news"), &[1, 2], None));
        run.append(push(b"news"));
        assert!(
            !run.has_room_for(&push(b"news"), &[1, 2], None),
            "three names and payloads are over it"
        );
        let alone = push(b"news").encoded(Encoding::RESP2);
        assert_eq!(run.encoded(Encoding::RESP2), [&alone[..], &alone[..]].concat());
    }
}
