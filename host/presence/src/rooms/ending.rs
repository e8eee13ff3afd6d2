//! What a reload does to rooms whose channel lost presence.
//!
//! The members leave in slices, each of which is one flush of the room, so that no event lists more
//! than a slice. When there are no members left, the watchers receive `unwatched`, and the room is
//! gone. A watcher whose snapshot was not complete gets no more pages: it receives a `leave` for
//! the members that it was shown, and `unwatched`.

use std::sync::Arc;

use super::{RoomId, Rooms};
use crate::change::{Events, Group};

/// How many members leave in one slice.
const SLICE_MEMBERS_MAX: usize = 1_000;

impl Rooms {
    /// Begins to end the rooms whose channel has no presence any more; `flush` continues it. Looks
    /// at up to `work_max` rooms after this name, in the order of names, and returns the name to
    /// continue after; none: all were looked at. A room that is being ended is refused to ENTER and
    /// WATCH, and is ended even if the channel gets its presence back.
    pub fn end_rooms(
        &mut self,
        after: Option<&[u8]>,
        mut has_presence: impl FnMut(&[u8]) -> bool,
        work_max: usize,
    ) -> Option<Arc<[u8]>> {
        let work_max = work_max.max(1);
        let page: Vec<(Arc<[u8]>, RoomId)> = self.names_after(after, work_max).collect();
        for (name, id) in &page {
            if let Some(room) = self.rooms.get_mut(id)
                && !room.is_ending
                && !has_presence(name)
            {
                room.is_ending = true;
                self.ending.push_back(*id);
            }
        }
        let has_more = page.len() == work_max;
        page.into_iter().next_back().filter(|_| has_more).map(|(name, _)| name)
    }

    pub(super) fn end_some(&mut self, now_ms: u64, budget: &mut usize, groups: &mut Vec<Group>) {
        while *budget > 0
            && let Some(id) = self.ending.front().copied()
        {
            let slice = SLICE_MEMBERS_MAX.min(*budget);
            let members = self.rooms.get(&id).map(|room| room.some_members(slice));
            let members = members.unwrap_or_default();
            *budget = budget.saturating_sub(members.len().max(1));
            for connection in members {
                self.remove_member(id, connection, now_ms);
            }
            let is_over = self.change(id, |room| {
                let is_last = room.count() == 0;
                if is_last {
                    room.watchers.complete_all();
                }
                // In one go, even above the budget: the cost is that of the slice.
                let mut unlimited = usize::MAX;
                if room.watchers.has_backlog() {
                    room.flush(now_ms, &mut unlimited, groups);
                }
                room.flush(now_ms, &mut unlimited, groups);
                if is_last && !room.watchers.is_empty() {
                    let watchers = room.watchers.all();
                    let channel = room.name.clone();
                    groups.push(Group { channel, watchers, events: Events::Unwatched });
                }
                is_last.then(|| room.watchers.all())
            });
            match is_over {
                Some(None) => {}
                Some(Some(watchers)) => {
                    *budget = budget.saturating_sub(watchers.len());
                    for watcher in watchers {
                        self.change(id, |room| room.unwatch(watcher));
                        self.connections.remove_watch(watcher, id);
                    }
                    self.ending.pop_front();
                }
                // The room ended with its last member.
                None => drop(self.ending.pop_front()),
            }
        }
    }
}
