//! Consecutive publications with the same receivers, delivered as one.
//!
//! A burst on one channel is the common case of a fast publisher, and the main cost of a delivery,
//! besides its bytes, is its entry in an outbox. So each receiver's outbox gets the whole run as
//! one entry.

use std::borrow::Cow;

use bytes::Bytes;

use super::connections::{Connection, Table};
use super::encoding::{Encoding, Push};
use switchyard_net::flush::PendingFlush;
use switchyard_types::ids::ConnectionId;

/// The maximum bytes of names and payloads in one run. A slow consumer that received the beginning
/// of a chunk is sent the rest of it before it is closed.
const BYTES_MAX: usize = 16 << 10;

/// One publication, or several.
pub struct CoalescedDelivery<'a> {
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
    pub fn new(
        push: Push<'a>,
        receivers: Cow<'a, [ConnectionId]>,
        own: Option<ConnectionId>,
    ) -> CoalescedDelivery<'a> {
        let bytes = push.bytes();
        CoalescedDelivery { first: push, more: Vec::new(), bytes, receivers, own }
    }

    /// Whether `push` may be appended: it has the same receivers, the same publisher `own`, and
    /// fits.
    pub fn has_room_for(
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
    pub fn append(&mut self, push: Push<'a>) {
        self.bytes += push.bytes();
        self.more.push(push);
    }

    /// Whether this connection receives the whole run.
    pub fn reaches(&self, connection: ConnectionId) -> bool {
        self.own != Some(connection) && self.receivers.binary_search(&connection).is_ok()
    }

    /// Delivers the last publication to its publisher now. Its writer is not woken.
    pub fn push_without_wake(&mut self, publisher: &Connection) {
        let last = self.more.last_mut().unwrap_or(&mut self.first);
        publisher.outbox.push_without_wake(last.encoded(publisher.encoding()));
    }

    /// Delivers the whole run to all other receivers, and collects those to be flushed.
    pub fn push(mut self, table: &Table, unflushed: &mut PendingFlush<Connection>) {
        let mut encoded = [const { None }; Encoding::ALL.len()];
        let (receivers, own) = (std::mem::take(&mut self.receivers), self.own);
        for id in receivers.iter().filter(|id| Some(**id) != own) {
            let Some(connection) = table.get(id) else { continue };
            let encoding = connection.encoding();
            let Some(slot) = encoded.get_mut(usize::from(encoding.index())) else { continue };
            let chunk = slot.get_or_insert_with(|| self.encoded(encoding)).clone();
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
        let push = |channel| Push::new(Space::Channels, None, channel, &payload);
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
        let alone = push(b"news").encoded(Encoding::Resp2);
        assert_eq!(run.encoded(Encoding::Resp2), [&alone[..], &alone[..]].concat());
    }
}
