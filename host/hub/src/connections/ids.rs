//! The ids of connections.
//!
//! They rise in the order in which connections were accepted, although their handshakes end in any
//! order. In a cluster they begin with a number of the node, so that they are unique there. The
//! backplane's crate finds out whether another node has the same number.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use switchyard_types::ids::ConnectionId;

/// How many bits of an id count the connections of a node.
const COUNTER_BITS: u32 = 32;
/// How many bits before them are those of the node, so that an id is below 2^53: a number that
/// JavaScript has exactly.
const NODE_BITS: u32 = 20;
/// The highest number of a node.
const NODE_MAX: u64 = (1 << NODE_BITS) - 1;

/// Assigns ids.
#[derive(Debug)]
pub struct Ids {
    next: AtomicU64,
    /// Ids whose connections are not in the table yet.
    reserved: Mutex<BTreeSet<ConnectionId>>,
}

impl Default for Ids {
    fn default() -> Ids {
        Ids { next: AtomicU64::new(1), reserved: Mutex::default() }
    }
}

impl Ids {
    /// Lets further ids begin with a random number.
    pub fn set_random_node(&self) {
        self.set_node(RandomState::new().hash_one(0_u8));
    }

    /// Lets further ids begin with another random number. It is higher than the one before, so that
    /// ids continue to rise, unless there is no higher one.
    pub fn leave_node_number(&self) {
        let node = self.node();
        let higher = NODE_MAX - node;
        let random = RandomState::new().hash_one(0_u8);
        self.set_node(match random.checked_rem(higher) {
            Some(step) => node + 1 + step,
            None => random,
        });
    }

    /// With which number ids begin now.
    pub fn node(&self) -> u64 {
        self.next.load(Ordering::Relaxed) >> COUNTER_BITS
    }

    /// Lets further ids begin with this number, of which 20 bits are used.
    fn set_node(&self, node: u64) {
        // An id is reserved before or after this, not during it.
        let _reserving = self.reserved.lock();
        self.next.store(((node & NODE_MAX) << COUNTER_BITS) + 1, Ordering::Relaxed);
    }

    /// The id of a connection that was accepted.
    pub fn reserve(self: &Arc<Ids>) -> ReservedId {
        let mut reserved = self.reserved.lock();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        reserved.insert(id);
        ReservedId { id, ids: self.clone() }
    }

    /// The id that the next connection gets, and the reserved ones below it, in rising order.
    pub fn upcoming(&self) -> (ConnectionId, Vec<ConnectionId>) {
        let reserved = self.reserved.lock();
        (self.next.load(Ordering::Relaxed), reserved.iter().copied().collect())
    }
}

/// An id that is reserved until it is claimed or dropped.
#[derive(Debug)]
pub struct ReservedId {
    id: ConnectionId,
    ids: Arc<Ids>,
}

impl ReservedId {
    /// The id, for the connection that goes into the table.
    pub fn claim(&self) -> ConnectionId {
        self.ids.reserved.lock().remove(&self.id);
        self.id
    }
}

impl Drop for ReservedId {
    fn drop(&mut self) {
        self.claim();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_rise_in_the_order_of_reservation_and_are_below_two_to_the_53() {
        let ids = Arc::new(Ids::default());
        ids.set_node(u64::MAX);
        let (first, second) = (ids.reserve(), ids.reserve());
        assert_eq!(ids.upcoming(), (second.id + 1, vec![first.id, second.id]));
        assert!(second.claim() > first.claim());
        drop(ids.reserve());
        assert_eq!(ids.upcoming(), (second.id + 2, vec![]));
        assert!(second.id < 1 << 53 && second.id >> COUNTER_BITS == NODE_MAX);
    }

    #[test]
    fn another_node_number_is_higher_while_there_is_one() {
        let ids = Arc::new(Ids::default());
        ids.set_random_node();
        let first = ids.node();
        while ids.node() < NODE_MAX {
            let (before, id) = (ids.node(), ids.reserve().claim());
            ids.leave_node_number();
            assert!(ids.node() > before && ids.reserve().claim() > id);
        }
        ids.leave_node_number();
        assert!(ids.node() <= NODE_MAX && first <= NODE_MAX);
    }
}
