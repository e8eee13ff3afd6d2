//! Members: ENTER, LEAVE, PRESENCE, and the end of a connection with its grace time.

use switchyard_types::ids::ConnectionId;

use super::remote::OwnChange;
use super::{RoomId, Rooms};
use crate::limits::Refused;
use crate::member::{Grace, Member};
use crate::page::{Page, Snapshot};

impl Rooms {
    /// Makes a connection a member and returns the number of members. `members_max` is the limit of
    /// the channel's rule.
    ///
    /// A member that enters again replaces its data and its user; that is an `update` if one of
    /// them differs, and no event otherwise. If another member of the same user is in grace, the
    /// connection takes its place, of several the one whose connection ended first. A takeover
    /// needs no room below `members_max`, because the number of members stays the same.
    ///
    /// # Errors
    ///
    /// The limit that would be exceeded. Then nothing changed.
    pub fn enter(
        &mut self,
        channel: &[u8],
        member: Member,
        members_max: usize,
        now_ms: u64,
    ) -> Result<usize, Refused> {
        let connection = member.connection;
        let id = self.ids.get(channel).copied();
        let room = id.and_then(|id| self.rooms.get(&id));
        if room.is_some_and(|room| room.is_ending) {
            return Err(Refused::Ending);
        }
        if let Some(before) = room.and_then(|room| room.slot(connection)) {
            // Without effect unless the caller reused the id of a connection that ended.
            before.grace.map(|grace| self.in_grace.remove(&grace));
            let id = id.unwrap_or_default();
            self.connections.add_membership(connection, id);
            self.record_enter(id, &member, None);
            let count = self.change(id, |room| {
                room.replace(member, now_ms);
                room.count()
            });
            return Ok(count.unwrap_or_default());
        }
        if self.connections.memberships(connection) >= self.limits.memberships_max {
            return Err(Refused::Memberships);
        }
        let was = room.and_then(|room| room.oldest_in_grace(member.user.as_ref()));
        if was.is_none() {
            if room.map_or(0, |room| room.count()) >= members_max {
                return Err(Refused::RoomMembers);
            }
            if self.members >= self.limits.members_max {
                return Err(Refused::Members);
            }
        }
        let id = id.unwrap_or_else(|| self.room_or_new(channel));
        self.connections.add_membership(connection, id);
        self.record_enter(id, &member, was);
        let entered = self.change(id, |room| {
            let ended = match was {
                Some(was) => room.take_over(was, member, now_ms),
                None => {
                    room.add(member, now_ms);
                    None
                }
            };
            (ended.and_then(|slot| slot.grace), room.count())
        });
        let (grace, count) = entered.unwrap_or_default();
        grace.map(|grace| self.in_grace.remove(&grace));
        Ok(count)
    }

    /// Ends a membership and returns the number of members left. Without effect for a connection
    /// that is no member. There is no grace time.
    pub fn leave(&mut self, channel: &[u8], connection: ConnectionId, now_ms: u64) -> usize {
        let Some(id) = self.ids.get(channel).copied() else { return 0 };
        self.remove_member(id, connection, now_ms)
    }

    /// Removes a member and returns the number of members left.
    pub(super) fn remove_member(
        &mut self,
        id: RoomId,
        connection: ConnectionId,
        now_ms: u64,
    ) -> usize {
        self.record(id, OwnChange::Leave(connection));
        self.take_member(id, connection, now_ms)
    }

    pub(super) fn take_member(
        &mut self,
        id: RoomId,
        connection: ConnectionId,
        now_ms: u64,
    ) -> usize {
        let removed = self.change(id, |room| (room.remove(connection, now_ms), room.count()));
        let (slot, count) = removed.unwrap_or_default();
        match slot.map(|slot| slot.grace) {
            Some(Some(grace)) => drop(self.in_grace.remove(&grace)),
            Some(None) => self.connections.remove_membership(connection, id),
            None => {}
        }
        count
    }

    /// Ends the watches of a connection, and its memberships: at once, or after `grace_ms`. Costs
    /// one step for each.
    pub fn connection_ended(&mut self, connection: ConnectionId, now_ms: u64) {
        let Some(ended) = self.connections.end(connection) else { return };
        for id in ended.watches.iter() {
            self.change(id, |room| room.unwatch(connection));
        }
        for id in ended.memberships.iter() {
            let is_ending = self.rooms.get(&id).is_none_or(|room| room.is_ending);
            if self.limits.grace_ms == 0 || is_ending {
                self.record(id, OwnChange::Leave(connection));
                self.change(id, |room| room.remove(connection, now_ms));
                continue;
            }
            self.graces_begun += 1;
            let ends_ms = now_ms.saturating_add(self.limits.grace_ms);
            let grace = Grace { ends_ms, order: self.graces_begun };
            self.in_grace.insert(grace, (id, connection));
            self.record(id, OwnChange::Grace(connection));
            self.change(id, |room| room.start_grace(connection, grace));
        }
    }

    /// Ends memberships whose grace time is over, at most `work_max`, and returns when to call this
    /// again; none: no member is in grace. Call it earlier if a connection with memberships ends
    /// before that time.
    pub fn expire(&mut self, now_ms: u64, work_max: usize) -> Option<u64> {
        for _ in 0..work_max {
            let (grace, (id, connection)) = self.in_grace.first_key_value()?;
            if grace.ends_ms > now_ms {
                break;
            }
            let (id, connection) = (*id, *connection);
            self.remove_member(id, connection, now_ms);
        }
        self.next_expiry()
    }

    /// When `expire` has something to do; none: no member is in grace.
    pub fn next_expiry(&self) -> Option<u64> {
        self.in_grace.first_key_value().map(|(grace, _)| grace.ends_ms)
    }

    /// The members after the connection `after`, up to `limit`, or only how many there are. All
    /// zero for a channel without a room. Costs one step for each member that is returned.
    pub fn presence(
        &self,
        channel: &[u8],
        after: Option<ConnectionId>,
        limit: usize,
        count_only: bool,
    ) -> Snapshot {
        let Some(room) = self.room(channel) else { return Snapshot::default() };
        let page = if count_only { Page::default() } else { room.page(after, limit.max(1)) };
        Snapshot { count: room.counts(), page }
    }
}
