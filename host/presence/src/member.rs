//! A member of a room, its place in the room, and the count of different users.
//!
//! A member is one connection: two connections of one user are two members. The place is what a
//! later connection of the same user takes over within the grace time.

use std::sync::Arc;

use switchyard_types::ids::ConnectionId;
use switchyard_types::keyed_hash::KeyedMap;

/// A connection that entered a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The connection.
    pub connection: ConnectionId,
    /// The user of the connection, if it has one.
    pub user: Option<Arc<str>>,
    /// The JSON text that the connection entered with, as it was written.
    pub data: Arc<str>,
}

/// A member, and what the room knows about it.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub member: Arc<Member>,
    /// Which place in the room this is. An ENTER creates a place; a takeover keeps it.
    pub place: u64,
    /// Set when the connection has ended and the member waits for a takeover.
    pub grace: Option<Grace>,
}

/// When a member ends whose connection has ended. The second number makes the value unique, and
/// rises in the order in which connections ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Grace {
    pub ends_ms: u64,
    pub order: u64,
}

/// How many different users the members of a room have.
#[derive(Debug, Default)]
pub(crate) struct Users {
    /// How many members each user has.
    named: KeyedMap<Arc<str>, usize>,
    without: usize,
}

impl Users {
    pub fn add(&mut self, user: Option<&Arc<str>>) {
        match user {
            Some(user) => *self.named.entry(user.clone()).or_default() += 1,
            None => self.without += 1,
        }
    }

    pub fn remove(&mut self, user: Option<&Arc<str>>) {
        let Some(user) = user else {
            self.without -= 1;
            return;
        };
        if let Some(members) = self.named.get_mut(user) {
            *members -= 1;
            if *members == 0 {
                self.named.remove(user);
            }
        }
    }

    /// Different users. Each member without a user counts as one.
    pub fn count(&self) -> usize {
        self.named.len() + self.without
    }
}
