//! The rooms of each connection, for the limits of a connection and for its end.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use switchyard_types::ids::ConnectionId;

use super::RoomId;

/// The connections with memberships or watches.
#[derive(Debug, Default)]
pub(crate) struct Connections(FxHashMap<ConnectionId, OfConnection>);

/// The rooms of one connection.
#[derive(Debug, Default)]
pub(crate) struct OfConnection {
    pub memberships: RoomSet,
    pub watches: RoomSet,
}

/// A sorted list. Ids of rooms rise, so that most are added at the end.
#[derive(Debug, Default)]
pub(crate) struct RoomSet(SmallVec<[RoomId; 2]>);

impl RoomSet {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = RoomId> + '_ {
        self.0.iter().copied()
    }

    fn insert(&mut self, room: RoomId) {
        if let Err(place) = self.0.binary_search(&room) {
            self.0.insert(place, room);
        }
    }

    fn remove(&mut self, room: RoomId) {
        if let Ok(place) = self.0.binary_search(&room) {
            self.0.remove(place);
        }
    }
}

impl Connections {
    pub fn memberships(&self, connection: ConnectionId) -> usize {
        self.0.get(&connection).map_or(0, |of| of.memberships.len())
    }

    pub fn watches(&self, connection: ConnectionId) -> usize {
        self.0.get(&connection).map_or(0, |of| of.watches.len())
    }

    pub fn add_membership(&mut self, connection: ConnectionId, room: RoomId) {
        self.0.entry(connection).or_default().memberships.insert(room);
    }

    pub fn remove_membership(&mut self, connection: ConnectionId, room: RoomId) {
        self.remove(connection, |of| of.memberships.remove(room));
    }

    pub fn add_watch(&mut self, connection: ConnectionId, room: RoomId) {
        self.0.entry(connection).or_default().watches.insert(room);
    }

    pub fn remove_watch(&mut self, connection: ConnectionId, room: RoomId) {
        self.remove(connection, |of| of.watches.remove(room));
    }

    fn remove(&mut self, connection: ConnectionId, remove: impl FnOnce(&mut OfConnection)) {
        let Some(of) = self.0.get_mut(&connection) else { return };
        remove(of);
        if of.memberships.len() + of.watches.len() == 0 {
            self.0.remove(&connection);
        }
    }

    /// Forgets a connection, and returns what it had.
    pub fn end(&mut self, connection: ConnectionId) -> Option<OfConnection> {
        self.0.remove(&connection)
    }
}
