//! All rooms of the process.
//!
//! A room begins with its first member or watcher and ends with its last. What concerns several
//! rooms is here: the limits, the memberships and watches of a connection, the order in which rooms
//! are flushed and grace times end, and the totals.
//!
//! `entering` has the members, `watching` the snapshots, `flushing` the events, `ending` what a
//! reload does, and `listing` what operators see.

mod connections;
mod ending;
mod entering;
pub(crate) mod flushing;
pub(crate) mod listing;
pub(crate) mod remote;
mod watching;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rustc_hash::FxHashMap;
use switchyard_types::ids::ConnectionId;
use switchyard_types::keyed_hash::KeyedMap;

use crate::limits::Limits;
use crate::member::Grace;
use crate::room::Room;
use connections::Connections;
use remote::OwnChange;

/// The id of a room; never reused.
pub(crate) type RoomId = u64;

/// All rooms. The caller holds a mutex around it; `now_ms` is monotonic, and may be slightly lower
/// than in an earlier call.
#[derive(Debug)]
pub struct Rooms {
    limits: Limits,
    rooms: FxHashMap<RoomId, Room>,
    ids: KeyedMap<Arc<[u8]>, RoomId>,
    /// The same, in the order of names.
    names: BTreeMap<Arc<[u8]>, RoomId>,
    connections: Connections,
    /// When the members end whose connection has ended.
    in_grace: BTreeMap<Grace, (RoomId, ConnectionId)>,
    /// When rooms are flushed.
    due: BTreeSet<(u64, RoomId)>,
    /// The rooms whose channel lost presence.
    ending: VecDeque<RoomId>,
    members: usize,
    watchers: usize,
    bytes: usize,
    rooms_begun: u64,
    graces_begun: u64,
    /// What this node's members did, for the other nodes; none: there are no other nodes.
    changes: Option<Vec<(Arc<[u8]>, OwnChange)>>,
}

impl Rooms {
    /// No rooms.
    pub fn new(limits: Limits) -> Rooms {
        Rooms {
            limits,
            rooms: FxHashMap::default(),
            ids: KeyedMap::default(),
            names: BTreeMap::new(),
            connections: Connections::default(),
            in_grace: BTreeMap::new(),
            due: BTreeSet::new(),
            ending: VecDeque::new(),
            members: 0,
            watchers: 0,
            bytes: 0,
            rooms_begun: 0,
            graces_begun: 0,
            changes: None,
        }
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Changes the limits. Existing members and watches stay.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    fn room(&self, channel: &[u8]) -> Option<&Room> {
        self.rooms.get(self.ids.get(channel)?)
    }

    /// The room of this channel, which begins if there is none.
    fn room_or_new(&mut self, channel: &[u8]) -> RoomId {
        if let Some(id) = self.ids.get(channel) {
            return *id;
        }
        self.rooms_begun += 1;
        let (id, name) = (self.rooms_begun, Arc::<[u8]>::from(channel));
        let room = Room::new(name.clone());
        self.bytes += room.bytes();
        self.rooms.insert(id, room);
        self.ids.insert(name.clone(), id);
        self.names.insert(name, id);
        id
    }

    /// Changes a room, and with it the totals and the time of its flush. Ends the room if it has
    /// neither members nor watchers after that.
    fn change<T>(&mut self, id: RoomId, change: impl FnOnce(&mut Room) -> T) -> Option<T> {
        let room = self.rooms.get_mut(&id)?;
        let before = (room.count(), room.watchers.len(), room.bytes(), room.due_ms);
        let result = change(room);
        let (members, watchers, bytes, due_ms) = before;
        self.members = self.members + room.count() - members;
        self.watchers = self.watchers + room.watchers.len() - watchers;
        self.bytes = self.bytes + room.bytes() - bytes;
        if room.due_ms != due_ms {
            due_ms.map(|due_ms| self.due.remove(&(due_ms, id)));
            room.due_ms.map(|due_ms| self.due.insert((due_ms, id)));
        }
        if room.is_empty() {
            self.bytes -= room.bytes();
            room.due_ms.map(|due_ms| self.due.remove(&(due_ms, id)));
            self.ids.remove(&room.name);
            self.names.remove(&room.name);
            self.rooms.remove(&id);
        }
        Some(result)
    }
}
