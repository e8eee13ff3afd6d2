//! What replies show of a room: how many members it has, and some of them.

use std::sync::Arc;

use switchyard_types::ids::ConnectionId;

use crate::marks::LAST;
use crate::member::Member;

/// How many members a room has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Members, those in grace included.
    pub members: usize,
    /// Different users; each member without a user counts as one.
    pub users: usize,
}

/// Some members of a room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Sorted by connection, as numbers.
    pub members: Vec<Arc<Member>>,
    /// Whether there are members after these.
    pub has_more: bool,
}

/// What the reply to PRESENCE or WATCH shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The size of the room.
    pub count: Count,
    /// The first page, or the one that was asked for.
    pub page: Page,
}

impl Page {
    /// What to give as `after` for the next page; none: there is no more.
    pub fn next(&self) -> Option<ConnectionId> {
        let last = self.members.last().filter(|_| self.has_more);
        last.map(|member| member.connection)
    }

    /// The highest connection that the page says something about.
    pub(crate) fn last_covered(&self) -> ConnectionId {
        self.next().unwrap_or(LAST)
    }
}
