//! One room: its members, its history and its watchers.
//!
//! It knows nothing of other rooms and of limits over several rooms; `rooms` keeps those. A change
//! costs the logarithm of the number of members, and nothing for each watcher: watchers are looked
//! at when the room is flushed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use switchyard_types::ids::ConnectionId;

use crate::change::{Change, ChangeKind, GATHER_MS, Group};
use crate::history::History;
use crate::marks::{LAST, Marks};
use crate::member::{Grace, Member, Slot, Users};
use crate::page::{Count, Page, Snapshot};
use crate::watchers::{Late, Watchers};

/// About how many bytes a room uses without members, with its entries in the tables of rooms.
const ROOM_BYTES: usize = 1_500;

/// About how many bytes a member uses besides its texts: its slot, its allocations, and the
/// entries of its connection and user in tables.
const MEMBER_BYTES: usize = 350;

#[derive(Debug)]
pub(crate) struct Room {
    pub name: Arc<[u8]>,
    members: BTreeMap<ConnectionId, Slot>,
    users: Users,
    /// The members whose connection has ended, by user and by the order in which that happened.
    in_grace: BTreeSet<(Arc<str>, u64, ConnectionId)>,
    history: History,
    pub watchers: Watchers,
    /// When to flush.
    pub due_ms: Option<u64>,
    /// Whether the channel lost presence.
    pub is_ending: bool,
    places: u64,
    member_bytes: usize,
}

impl Room {
    pub fn new(name: Arc<[u8]>) -> Room {
        Room {
            name,
            members: BTreeMap::new(),
            users: Users::default(),
            in_grace: BTreeSet::new(),
            history: History::default(),
            watchers: Watchers::default(),
            due_ms: None,
            is_ending: false,
            places: 0,
            member_bytes: 0,
        }
    }

    pub fn count(&self) -> usize {
        self.members.len()
    }

    pub fn counts(&self) -> Count {
        Count { members: self.members.len(), users: self.users.count() }
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.watchers.is_empty()
    }

    pub fn bytes(&self) -> usize {
        let names = 2 * self.name.len();
        ROOM_BYTES + names + self.member_bytes + self.history.bytes() + self.watchers.bytes()
    }

    /// The member of this connection.
    pub fn slot(&self, connection: ConnectionId) -> Option<&Slot> {
        self.members.get(&connection)
    }

    /// Any members.
    pub fn some_members(&self, members_max: usize) -> Vec<ConnectionId> {
        self.members.keys().take(members_max).copied().collect()
    }

    /// Adds a member. Its connection is none yet.
    pub fn add(&mut self, member: Member, now_ms: u64) {
        self.places += 1;
        let slot = Slot { member: Arc::new(member), place: self.places, grace: None };
        let (connection, member) = (slot.member.connection, slot.member.clone());
        self.insert(slot);
        self.record(ChangeKind::Enter, &member, None, now_ms);
        self.keep(connection, None, false);
    }

    /// Replaces the data and the user of a member. A change only if one of them differs.
    pub fn replace(&mut self, member: Member, now_ms: u64) {
        let connection = member.connection;
        let Some(before) = self.members.get(&connection).cloned() else { return };
        if *before.member == member && before.grace.is_none() {
            return;
        }
        let is_change = *before.member != member;
        let member = if is_change { Arc::new(member) } else { before.member.clone() };
        self.take_out(connection);
        self.insert(Slot { member: member.clone(), place: before.place, grace: None });
        if is_change {
            self.record(ChangeKind::Update, &member, None, now_ms);
            self.keep(connection, Some(&before), false);
        }
    }

    /// The member of this user that has been in grace for longest.
    pub fn oldest_in_grace(&self, user: Option<&Arc<str>>) -> Option<ConnectionId> {
        let user = user?;
        let (of_user, _, connection) = self.in_grace.range((user.clone(), 0, 0)..).next()?;
        (of_user == user).then_some(*connection)
    }

    /// Puts a member in the place of another one, which is returned.
    pub fn take_over(&mut self, was: ConnectionId, member: Member, now_ms: u64) -> Option<Slot> {
        let before = self.take_out(was)?;
        let member = Arc::new(member);
        let connection = member.connection;
        self.insert(Slot { member: member.clone(), place: before.place, grace: None });
        if self.record(ChangeKind::Update, &member, Some(was), now_ms) {
            self.history.take_over(before.place, connection);
        }
        self.keep(was, Some(&before), true);
        self.keep(connection, None, false);
        Some(before)
    }

    /// Keeps the member of a connection that ended, until it is removed or taken over.
    pub fn start_grace(&mut self, connection: ConnectionId, grace: Grace) {
        let Some(mut slot) = self.take_out(connection) else { return };
        slot.grace = Some(grace);
        self.insert(slot);
    }

    /// Removes a member; none: it is none.
    pub fn remove(&mut self, connection: ConnectionId, now_ms: u64) -> Option<Slot> {
        let slot = self.take_out(connection)?;
        self.history.end_place(slot.place);
        self.record(ChangeKind::Leave, &slot.member, None, now_ms);
        self.keep(connection, Some(&slot), true);
        Some(slot)
    }

    fn insert(&mut self, slot: Slot) {
        let Slot { member, grace, .. } = &slot;
        self.users.add(member.user.as_ref());
        self.member_bytes += member_bytes(member);
        if let (Some(grace), Some(user)) = (grace, &member.user) {
            self.in_grace.insert((user.clone(), grace.order, member.connection));
        }
        self.members.insert(member.connection, slot);
    }

    fn take_out(&mut self, connection: ConnectionId) -> Option<Slot> {
        let slot = self.members.remove(&connection)?;
        let Slot { member, grace, .. } = &slot;
        self.users.remove(member.user.as_ref());
        self.member_bytes -= member_bytes(member);
        if let (Some(grace), Some(user)) = (grace, &member.user) {
            self.in_grace.remove(&(user.clone(), grace.order, connection));
        }
        Some(slot)
    }

    /// Counts a change and schedules a flush, if there are watchers.
    fn record(
        &mut self,
        kind: ChangeKind,
        member: &Arc<Member>,
        was: Option<ConnectionId>,
        now_ms: u64,
    ) -> bool {
        if self.watchers.is_empty() {
            return false;
        }
        self.history.record(Change { kind, member: member.clone(), was });
        self.due_ms.get_or_insert(now_ms + GATHER_MS);
        true
    }

    fn keep(&mut self, connection: ConnectionId, before: Option<&Slot>, is_gone: bool) {
        if !self.watchers.is_empty() {
            self.history.keep(connection, before, is_gone);
        }
    }

    /// The members after this one, up to `limit`.
    pub fn page(&self, after: Option<ConnectionId>, limit: usize) -> Page {
        let mut members = match after {
            Some(after) => self.members.range((Excluded(after), Unbounded)),
            None => self.members.range(..),
        };
        let page = members.by_ref().take(limit).map(|(_, slot)| slot.member.clone()).collect();
        Page { members: page, has_more: members.next().is_some() }
    }

    /// Begins a snapshot, or begins it anew.
    pub fn watch(&mut self, connection: ConnectionId, limit: usize) -> Snapshot {
        if self.watchers.is_empty() {
            self.history.start();
        }
        self.history.mark();
        let page = self.page(None, limit);
        let up_to = page.last_covered();
        let change = self.history.change();
        if up_to == LAST && change == self.history.flushed() {
            self.watchers.settle(connection);
        } else {
            let late = Late { marks: Marks::new(up_to, change), limit };
            self.watchers.put_late(connection, late);
        }
        Snapshot { count: self.counts(), page }
    }

    /// The next page of a snapshot; none: it is complete, or there is none.
    pub fn next_page(&mut self, connection: ConnectionId, now_ms: u64) -> Option<Page> {
        let late = self.watchers.late(connection)?;
        if late.marks.is_complete() || self.is_ending {
            return None;
        }
        let page = self.page(Some(late.marks.cursor()), late.limit);
        self.history.mark();
        self.watchers.add_page(connection, page.last_covered(), self.history.change());
        if !page.has_more {
            let known = self.watchers.late(connection).and_then(|late| late.marks.all());
            if known == Some(self.history.flushed()) {
                self.watchers.settle(connection);
            } else {
                self.due_ms.get_or_insert(now_ms + GATHER_MS);
            }
        }
        Some(page)
    }

    /// Ends a watch. Nothing is remembered for the last one.
    pub fn unwatch(&mut self, connection: ConnectionId) -> bool {
        let did_watch = self.watchers.remove(connection);
        if self.watchers.is_empty() {
            self.history.clear();
            self.watchers = Watchers::default();
            self.due_ms = None;
        }
        did_watch
    }

    /// Adds what is due to the groups, and says when to flush again. Each step of the budget is a
    /// watcher or a connection that changed; the settled watchers are always done in one go.
    pub fn flush(&mut self, now_ms: u64, budget: &mut usize, groups: &mut Vec<Group>) {
        let mut emit = |channel: &Arc<[u8]>, watchers, events| {
            groups.push(Group { channel: channel.clone(), watchers, events });
        };
        if !self.watchers.has_backlog() {
            if !self.watchers.settled.is_empty()
                && let Some(events) = self.history.events_of_window(&self.members)
            {
                let watchers: Vec<ConnectionId> = self.watchers.settled.iter().copied().collect();
                *budget = budget.saturating_sub(watchers.len() + self.history.window_len());
                emit(&self.name, watchers, events);
            }
            self.history.flush();
            self.watchers.start_backlog();
        }
        let change = self.history.change();
        let may_be_incomplete = self.is_ending && self.members.is_empty();
        while *budget > 0
            && let Some((marks, watchers)) =
                self.watchers.next_of_backlog(*budget, may_be_incomplete)
        {
            *budget = budget.saturating_sub(watchers.len() + self.history.len_since(&marks));
            self.history.mark();
            for watcher in &watchers {
                if change == self.history.flushed() {
                    self.watchers.settle(*watcher);
                } else {
                    let limit = self.watchers.late(*watcher).map_or(1, |late| late.limit);
                    self.watchers
                        .put_late(*watcher, Late { marks: Marks::new(LAST, change), limit });
                }
            }
            if let Some(events) = self.history.events_since(&marks, &self.members) {
                emit(&self.name, watchers, events);
            }
        }
        *budget = budget.saturating_sub(1);
        self.after_flush(now_ms);
    }

    fn after_flush(&mut self, now_ms: u64) {
        let has_changed = self.history.change() != self.history.flushed();
        if self.watchers.has_backlog() {
            self.due_ms = Some(now_ms);
            return;
        }
        // A snapshot may have become complete while the backlog of an earlier flush was left.
        let has_more = has_changed || self.watchers.has_ready();
        self.due_ms = has_more.then_some(now_ms + GATHER_MS);
        if !has_changed && !self.watchers.has_late() {
            self.history.clear();
        }
        if self.history.should_sweep() {
            self.history.sweep(self.watchers.late_marks(), &self.members);
        }
    }
}

fn member_bytes(member: &Member) -> usize {
    MEMBER_BYTES + member.data.len() + member.user.as_ref().map_or(0, |user| user.len())
}
