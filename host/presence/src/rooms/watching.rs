//! Watchers: WATCH, the pages of its snapshot, and UNWATCH.

use switchyard_types::ids::ConnectionId;

use super::Rooms;
use crate::limits::Refused;
use crate::page::{Page, Snapshot};

impl Rooms {
    /// Begins to watch a room, and returns the first page of its members, of up to `limit`. If
    /// there is more, the caller fetches it with `next_page`, as there is room in the outbox.
    ///
    /// A connection that watches the room already begins a new snapshot; what it has not received
    /// of the old one is discarded.
    ///
    /// # Errors
    ///
    /// The limit that would be exceeded. Then nothing changed.
    pub fn watch(
        &mut self,
        channel: &[u8],
        connection: ConnectionId,
        limit: usize,
    ) -> Result<Snapshot, Refused> {
        let room = self.room(channel);
        if room.is_some_and(|room| room.is_ending) {
            return Err(Refused::Ending);
        }
        let is_new = room.is_none_or(|room| !room.watchers.contains(connection));
        if is_new && self.connections.watches(connection) >= self.limits.watches_max {
            return Err(Refused::Watches);
        }
        if is_new && self.watchers >= self.limits.watchers_max {
            return Err(Refused::Watchers);
        }
        let id = self.room_or_new(channel);
        self.connections.add_watch(connection, id);
        let snapshot = self.change(id, |room| room.watch(connection, limit.max(1)));
        Ok(snapshot.unwrap_or_default())
    }

    /// The next page of the snapshot of a watcher; none: the snapshot is complete, the connection
    /// does not watch the room, or the room is being ended.
    ///
    /// Changes to members after the last page are in the next page. Changes to others are kept, and
    /// the first flush after the last page returns the net difference that they make.
    pub fn next_page(
        &mut self,
        channel: &[u8],
        connection: ConnectionId,
        now_ms: u64,
    ) -> Option<Page> {
        let id = *self.ids.get(channel)?;
        self.change(id, |room| room.next_page(connection, now_ms)).flatten()
    }

    /// Ends a watch, with the events that were not flushed yet. False: the connection did not watch
    /// the room.
    pub fn unwatch(&mut self, channel: &[u8], connection: ConnectionId) -> bool {
        let Some(id) = self.ids.get(channel).copied() else { return false };
        let did_watch = self.change(id, |room| room.unwatch(connection));
        if did_watch == Some(true) {
            self.connections.remove_watch(connection, id);
        }
        did_watch == Some(true)
    }

    /// Whether a connection watches a room.
    pub fn is_watching(&self, channel: &[u8], connection: ConnectionId) -> bool {
        self.room(channel).is_some_and(|room| room.watchers.contains(connection))
    }
}
