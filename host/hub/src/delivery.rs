//! Publications on their way from the engine to the outboxes.
//!
//! Delivering has two steps, between which the locks of the shards are held: `route` finds the
//! receivers of each publication, and `deliver` queues it. So the publisher's reply can be written
//! before its own copy of the message is queued.

use std::borrow::Cow;

use bytes::Bytes;
use smallvec::smallvec;

use super::connections::{Connection, Table};
use super::encoding::{Encoding, Message, PerEncoding, Push};
use super::filter::{Delivery, DeliveryEdit, DeliveryFilter};
use super::shard::FanOutRange;
use super::{Guards, Hub, Unavailable};
use switchyard_net::flush::PendingFlush;
use switchyard_net::scheduling;
use switchyard_types::batch::Batch;
use switchyard_types::command::{Publication, Refusal};
use switchyard_types::ids::ConnectionId;

/// What becomes of a publication.
#[derive(Debug)]
pub struct Outcome {
    /// How many deliveries it has, or why it has none.
    pub deliveries: Result<u64, Box<Refusal>>,
    /// Whether its publisher is among the receivers.
    pub is_own: bool,
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Outcome {
        Outcome { deliveries: Err(Box::new(refusal)), is_own: false }
    }
}

/// What a filter made of each publication; none: it was not called.
type Edits = Vec<Option<Result<DeliveryEdit, Refusal>>>;

/// Publications whose receivers are known, and which are not queued yet. The shards of their channels
/// are locked while this exists, so whatever must happen in the order of a channel's messages happens
/// here: a log of the channel, once there is one, is appended to by `deliver`, before the outboxes.
#[must_use = "it is delivered by `deliver`"]
pub struct Routed<'a> {
    hub: &'a Hub,
    publications: &'a [(ConnectionId, Publication<'a>)],
    guards: Guards<'a>,
    ranges: Batch<Result<(usize, FanOutRange), Unavailable>>,
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
        let edits = edits(filter, publications, &guards, &ranges);
        let mut routed =
            Routed { hub: self, publications, guards, ranges, edits, outcomes: Batch::new() };
        let mut outcomes = Batch::with_capacity(publications.len());
        for index in 0..publications.len() {
            outcomes.push(routed.outcome(index));
        }
        routed.outcomes = outcomes;
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
                let Publication { space, channel, .. } = publication;
                let push = Push::new(Message { space: *space, pattern, channel, payload });
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
        Outcome { deliveries: Ok(deliveries), is_own }
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
        let found = self.ranges.get(index).and_then(|range| range.as_ref().ok());
        let of_shard = found.and_then(|(position, range)| {
            let (_, shard) = self.guards.get(*position)?;
            Some(shard.groups(range))
        });
        of_shard.into_iter().flatten().map(move |(pattern, ids)| {
            let ids = match only {
                None => Cow::Borrowed(ids),
                Some(only) => {
                    let is_wanted = |id: &ConnectionId| only.binary_search(id).is_ok();
                    ids.iter().copied().filter(is_wanted).collect()
                }
            };
            (pattern, ids)
        })
    }
}

/// Has the filter edit what has receivers, if there is one.
fn edits(
    filter: &dyn DeliveryFilter,
    publications: &[(ConnectionId, Publication<'_>)],
    guards: &Guards<'_>,
    ranges: &[Result<(usize, FanOutRange), Unavailable>],
) -> Option<Edits> {
    if !filter.has_deliveries() {
        return None;
    }
    let mut indices = Vec::new();
    let mut deliveries = Vec::new();
    for (index, ((publisher, publication), range)) in publications.iter().zip(ranges).enumerate() {
        let Ok((position, range)) = range else { continue };
        let Some((_, shard)) = guards.get(*position) else { continue };
        let mut recipients: Vec<ConnectionId> =
            shard.groups(range).flat_map(|(_, ids)| ids).copied().collect();
        if recipients.is_empty() {
            continue;
        }
        recipients.sort_unstable();
        recipients.dedup();
        indices.push(index);
        let payload = publication.payload.as_ref().into();
        let delivery = Delivery { channel: &publication.channel, payload, recipients };
        deliveries.push((*publisher, delivery));
    }
    let mut edits: Edits = publications.iter().map(|_| None).collect();
    for (index, edit) in indices.into_iter().zip(filter.deliver(deliveries)) {
        if let Some(slot) = edits.get_mut(index) {
            *slot = Some(edit);
        }
    }
    Some(edits)
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
    use switchyard_types::command::Space;

    #[test]
    fn a_run_is_of_one_channel_and_the_same_receivers_and_no_longer_than_it_may_be() {
        let payload = vec![b'x'; BYTES_MAX / 3];
        let push = |channel| {
            let space = Space::Channels;
            Push::new(Message { space, pattern: None, channel, payload: &payload })
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
