//! The connections that must receive a batch of publications: the answer of
//! [`Registry::route`](crate::Registry::route).
//!
//! Flat, as `engine.wit` has it: one list of connections, cut into groups. The caller owns it and
//! uses it again for the next batch, so that routing need not allocate.

use crate::subscribers::Subscribers;
use crate::{ConnectionId, PatternId};

/// Receivers of one publication for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The position of its name in the list of names passed to `route`.
    pub publication: u32,
    /// The pattern that matched; none: the channel itself.
    pub pattern: Option<PatternId>,
    /// Where the group ends in `connections`. It starts where the one before ends, and is never
    /// empty.
    pub end: u32,
}

/// The receivers of a batch of publications.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FanOuts {
    /// All receivers. Within a group they rise.
    pub connections: Vec<ConnectionId>,
    /// How `connections` is cut into groups. Groups of one publication stand together, the
    /// channel's own first, then those of its patterns in the order of the patterns' bytes.
    pub groups: Vec<Group>,
}

impl FanOuts {
    /// Forgets all receivers and keeps the memory for the next.
    pub fn clear(&mut self) {
        self.connections.clear();
        self.groups.clear();
    }

    /// Adds a group of these subscribers. There must be at least one.
    pub(crate) fn push(
        &mut self,
        publication: usize,
        pattern: Option<PatternId>,
        subscribers: &Subscribers,
    ) {
        subscribers.append_to(&mut self.connections);
        self.groups.push(Group {
            publication: u32::try_from(publication)
                .expect("names are counted by the u32 of their ends"),
            pattern,
            end: u32::try_from(self.connections.len())
                .expect("a batch has fewer than 2^32 receivers"),
        });
    }
}
