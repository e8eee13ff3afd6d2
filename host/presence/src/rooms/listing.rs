//! What operators see: totals, and the rooms in the order of their names.

use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use super::{RoomId, Rooms};
use crate::page::Count;

/// The totals of all rooms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Channels with members or watchers.
    pub rooms: usize,
    /// Members of all rooms, those in grace included.
    pub members: usize,
    /// Watches of all connections.
    pub watchers: usize,
    /// About how many bytes all of that uses.
    pub bytes: usize,
}

/// A room in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomEntry {
    /// The channel.
    pub channel: Arc<[u8]>,
    /// The size of the room.
    pub count: Count,
    /// How many connections watch it.
    pub watchers: usize,
}

impl Rooms {
    /// The totals. Costs the same for any number of rooms.
    pub fn totals(&self) -> Totals {
        Totals {
            rooms: self.rooms.len(),
            members: self.members,
            watchers: self.watchers,
            bytes: self.bytes,
        }
    }

    /// Up to `limit` rooms after this name, in the order of bytes.
    pub fn list(&self, after: Option<&[u8]>, limit: usize) -> Vec<RoomEntry> {
        let names = self.names_after(after, limit);
        let rooms = names.filter_map(|(_, id)| self.rooms.get(&id));
        rooms
            .map(|room| RoomEntry {
                channel: room.name.clone(),
                count: room.counts(),
                watchers: room.watchers.len(),
            })
            .collect()
    }

    pub(super) fn names_after(
        &self,
        after: Option<&[u8]>,
        limit: usize,
    ) -> impl Iterator<Item = (Arc<[u8]>, RoomId)> + '_ {
        let names = match after {
            Some(after) => self.names.range::<[u8], _>((Excluded(after), Unbounded)),
            None => self.names.range::<[u8], _>(..),
        };
        names.take(limit).map(|(name, id)| (name.clone(), *id))
    }
}
