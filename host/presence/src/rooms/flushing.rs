//! The events that are due.

use super::Rooms;
use crate::change::Group;

/// What a flush returned.
#[derive(Debug, Default)]
pub struct Flushed {
    /// What the watchers receive, in this order.
    pub groups: Vec<Group>,
    /// When to flush again; none: there are no changes. Not after `now_ms` if there was more work
    /// than allowed. Changes later make it earlier, see `next_flush`.
    pub next_ms: Option<u64>,
}

impl Rooms {
    /// Returns the events of the rooms whose first change was `GATHER_MS` ago, and continues to end
    /// rooms whose channel lost presence.
    ///
    /// A step of work is a watcher, a change or a member that is removed. At least one room is done,
    /// and the settled watchers of a room are done in one go, which is one copy of their list.
    pub fn flush(&mut self, now_ms: u64, work_max: usize) -> Flushed {
        let mut groups = Vec::new();
        let mut budget = work_max.max(1);
        self.end_some(now_ms, &mut budget, &mut groups);
        while budget > 0
            && let Some((due_ms, id)) = self.due.first().copied()
            && due_ms <= now_ms
        {
            self.change(id, |room| room.flush(now_ms, &mut budget, &mut groups));
        }
        Flushed { groups, next_ms: self.next_flush() }
    }

    /// When `flush` has something to do; none: there are no changes.
    pub fn next_flush(&self) -> Option<u64> {
        if !self.ending.is_empty() {
            return Some(0);
        }
        self.due.first().map(|(due_ms, _)| *due_ms)
    }
}
