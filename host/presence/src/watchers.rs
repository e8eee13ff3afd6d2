//! The watchers of one room.
//!
//! Most watchers are settled: they know the state at the last flush, and all receive the same at
//! the next one. The others began since then, or have not read all pages of their snapshot. When
//! the snapshot of one is complete, the next flush sends what it does not know yet, and it becomes
//! settled.

use std::collections::{BTreeMap, BTreeSet};

use switchyard_types::ids::ConnectionId;

use crate::marks::Marks;

/// About how many bytes a watcher uses, its entry in the table of connections included.
const WATCHER_BYTES: usize = 96;
const MARK_BYTES: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct Watchers {
    pub settled: BTreeSet<ConnectionId>,
    late: BTreeMap<ConnectionId, Late>,
    /// Late watchers whose snapshot is complete, for the next flush. May contain others.
    ready: Vec<ConnectionId>,
    /// Those that the current flush has not reached yet; equal marks are adjacent.
    backlog: Vec<ConnectionId>,
    /// The marks of all late watchers.
    marks: usize,
}

/// A watcher that is not settled.
#[derive(Debug)]
pub(crate) struct Late {
    pub marks: Marks,
    /// Members in a page.
    pub limit: usize,
}

impl Watchers {
    pub fn len(&self) -> usize {
        self.settled.len() + self.late.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn contains(&self, connection: ConnectionId) -> bool {
        self.settled.contains(&connection) || self.late.contains_key(&connection)
    }

    pub fn bytes(&self) -> usize {
        self.len() * WATCHER_BYTES + self.marks * MARK_BYTES
    }

    pub fn all(&self) -> Vec<ConnectionId> {
        self.settled.iter().chain(self.late.keys()).copied().collect()
    }

    pub fn has_late(&self) -> bool {
        !self.late.is_empty()
    }

    pub fn late(&self, connection: ConnectionId) -> Option<&Late> {
        self.late.get(&connection)
    }

    /// The changes that the marks of late watchers refer to.
    pub fn late_marks(&self) -> impl Iterator<Item = u64> + '_ {
        self.late.values().flat_map(|late| late.marks.changes())
    }

    /// Adds or replaces a late watcher.
    pub fn put_late(&mut self, connection: ConnectionId, late: Late) {
        self.settled.remove(&connection);
        if late.marks.is_complete() {
            self.ready.push(connection);
        }
        self.marks += late.marks.len();
        if let Some(replaced) = self.late.insert(connection, late) {
            self.marks -= replaced.marks.len();
        }
    }

    /// Adds a watcher that knows the state at the last flush.
    pub fn settle(&mut self, connection: ConnectionId) {
        self.remove(connection);
        self.settled.insert(connection);
    }

    pub fn remove(&mut self, connection: ConnectionId) -> bool {
        match self.late.remove(&connection) {
            Some(late) => {
                self.marks -= late.marks.len();
                true
            }
            None => self.settled.remove(&connection),
        }
    }

    /// Adds the next page of a late watcher.
    pub fn add_page(&mut self, connection: ConnectionId, up_to: ConnectionId, change: u64) {
        let Some(late) = self.late.get_mut(&connection) else { return };
        let marks = late.marks.len();
        late.marks.add(up_to, change);
        self.marks += late.marks.len() - marks;
        if late.marks.is_complete() {
            self.ready.push(connection);
        }
    }

    /// Treats all incomplete snapshots as complete: no page follows.
    pub fn complete_all(&mut self) {
        self.ready = self.late.keys().copied().collect();
    }

    /// Begins to flush the late watchers whose snapshot is complete.
    pub fn start_backlog(&mut self) {
        self.backlog = std::mem::take(&mut self.ready);
        let late = &self.late;
        self.backlog.sort_unstable_by_key(|connection| {
            (late.get(connection).map(|late| &late.marks), *connection)
        });
        self.backlog.dedup();
    }

    /// Whether the next flush has late watchers to look at.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Takes the next watchers with equal marks out of the backlog, at most `watchers_max`.
    pub fn next_of_backlog(
        &mut self,
        watchers_max: usize,
        may_be_incomplete: bool,
    ) -> Option<(Marks, Vec<ConnectionId>)> {
        let mut found: Option<(Marks, Vec<ConnectionId>)> = None;
        while let Some(connection) = self.backlog.last() {
            // It may have ended, or begun a new snapshot.
            let late = self.late.get(connection);
            let late = late.filter(|late| late.marks.is_complete() || may_be_incomplete);
            match (late, &mut found) {
                (None, _) => {}
                (Some(late), None) => found = Some((late.marks.clone(), vec![*connection])),
                (Some(late), Some((marks, watchers))) => {
                    if late.marks != *marks || watchers.len() >= watchers_max {
                        break;
                    }
                    watchers.push(*connection);
                }
            }
            self.backlog.pop();
        }
        found
    }
}
