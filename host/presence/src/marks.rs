//! Which state of a room a watcher knows.
//!
//! A room counts its changes. A mark says: for connections up to this one, the watcher knows the
//! state after so many changes. Each page of a snapshot adds a mark, because the room may change
//! between two pages. The last page has the highest connection id there can be, so that the marks
//! cover all connections; then the snapshot is complete.

use smallvec::SmallVec;
use switchyard_types::ids::ConnectionId;

/// A mark of the last page covers connections up to this one.
pub(crate) const LAST: ConnectionId = ConnectionId::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Mark {
    /// The highest connection that the page covers.
    up_to: ConnectionId,
    /// The number of changes that the page contains.
    change: u64,
}

/// The marks of one watcher, ascending in both numbers; never empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Marks(SmallVec<[Mark; 1]>);

impl Marks {
    pub fn new(up_to: ConnectionId, change: u64) -> Marks {
        Marks(SmallVec::from_buf([Mark { up_to, change }]))
    }

    /// Adds a page. Pages of the same state share a mark, so that the number of marks is at most
    /// the number of changes during the snapshot, too.
    pub fn add(&mut self, up_to: ConnectionId, change: u64) {
        match self.0.last_mut() {
            Some(last) if last.change == change => last.up_to = up_to,
            _ => self.0.push(Mark { up_to, change }),
        }
    }

    pub fn is_complete(&self) -> bool {
        self.cursor() == LAST
    }

    /// The highest connection that the snapshot covers so far.
    pub fn cursor(&self) -> ConnectionId {
        self.0.last().map_or(0, |mark| mark.up_to)
    }

    /// The number of changes that the watcher knows of this connection; none: not covered yet.
    pub fn known(&self, connection: ConnectionId) -> Option<u64> {
        let page = self.0.partition_point(|mark| mark.up_to < connection);
        self.0.get(page).map(|mark| mark.change)
    }

    /// The number of changes that the watcher knows, if that is the same for all connections.
    pub fn all(&self) -> Option<u64> {
        match self.0.as_slice() {
            [mark] if mark.up_to == LAST => Some(mark.change),
            _ => None,
        }
    }

    pub fn changes(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().map(|mark| mark.change)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}
