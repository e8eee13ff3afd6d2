//! Members on other nodes, and what other nodes must know of the members on this one.
//!
//! A member is on the node of its connection. That node decides when it enters, leaves, and is in
//! grace; the others repeat it. So limits and grace times do not apply here.

use std::sync::Arc;

use switchyard_types::ids::ConnectionId;

use super::{RoomId, Rooms};
use crate::member::{Grace, Member};
use crate::page::Page;

/// What a member on this node did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnChange {
    /// It entered, or replaced its data. The connection is the one whose place it took over.
    Enter(Member, Option<ConnectionId>),
    /// It left.
    Leave(ConnectionId),
    /// Its connection ended, and it stays for the grace time.
    Grace(ConnectionId),
}

impl Rooms {
    /// Records what members do from now on, for `take_changes`.
    pub fn record_changes(&mut self) {
        self.changes.get_or_insert_default();
    }

    /// What members did since the last call, each with the room.
    pub fn take_changes(&mut self) -> Vec<(Arc<[u8]>, OwnChange)> {
        self.changes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn record(&mut self, id: RoomId, change: OwnChange) {
        if let (Some(changes), Some(room)) = (&mut self.changes, self.rooms.get(&id)) {
            changes.push((room.name.clone(), change));
        }
    }

    pub(super) fn record_enter(&mut self, id: RoomId, member: &Member, was: Option<ConnectionId>) {
        if self.changes.is_some() {
            self.record(id, OwnChange::Enter(member.clone(), was));
        }
    }

    /// A member on another node entered, replaced its data, or took the place of another member.
    pub fn enter_remote(
        &mut self,
        channel: &[u8],
        member: Member,
        was: Option<ConnectionId>,
        now_ms: u64,
    ) {
        let id = self.room_or_new(channel);
        let connection = member.connection;
        let room = self.rooms.get(&id);
        let grace_of = |connection| room.and_then(|room| room.slot(connection)?.grace);
        let ended = [Some(connection), was].map(|connection| grace_of(connection?));
        for grace in ended.into_iter().flatten() {
            self.in_grace.remove(&grace);
        }
        self.change(id, |room| {
            if room.slot(connection).is_some() {
                room.replace(member, now_ms);
            } else if was.is_none_or(|was| room.take_over(was, member.clone(), now_ms).is_none()) {
                room.add(member, now_ms);
            }
        });
    }

    /// A member on another node left.
    pub fn leave_remote(&mut self, channel: &[u8], connection: ConnectionId, now_ms: u64) {
        if let Some(id) = self.ids.get(channel).copied() {
            self.take_member(id, connection, now_ms);
        }
    }

    /// The connection of a member on another node ended. That node says when the member leaves.
    pub fn grace_remote(&mut self, channel: &[u8], connection: ConnectionId) {
        let Some(id) = self.ids.get(channel).copied() else { return };
        let is_member = self.rooms.get(&id).and_then(|room| room.slot(connection));
        if is_member.is_none_or(|slot| slot.grace.is_some()) {
            return;
        }
        self.graces_begun += 1;
        let grace = Grace { ends_ms: u64::MAX, order: self.graces_begun };
        self.in_grace.insert(grace, (id, connection));
        self.change(id, |room| room.start_grace(connection, grace));
    }

    /// Members of a room, and whether each is in grace.
    pub fn members_after(
        &self,
        channel: &[u8],
        after: Option<ConnectionId>,
        limit: usize,
    ) -> (Page, Vec<bool>) {
        let Some(room) = self.room(channel) else { return Default::default() };
        let page = room.page(after, limit);
        let in_grace = page
            .members
            .iter()
            .map(|member| room.slot(member.connection).is_some_and(|slot| slot.grace.is_some()))
            .collect();
        (page, in_grace)
    }

    /// Whether connections of this node watch a room.
    pub fn is_watched(&self, channel: &[u8]) -> bool {
        self.room(channel).is_some_and(|room| !room.watchers.is_empty())
    }

    /// How many members a room has, those on other nodes included.
    pub fn count(&self, channel: &[u8]) -> usize {
        self.room(channel).map_or(0, |room| room.count())
    }
}
