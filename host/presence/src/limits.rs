//! The limits on presence, and which of them refused a command.

/// The limits on all rooms. They can change at any time: a lower limit refuses new members and new
/// watches, and ends none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// `presence.members_max`: members in all rooms.
    pub members_max: usize,
    /// `presence.data_bytes_max`: bytes of a member's data. The caller checks it.
    pub data_bytes_max: usize,
    /// `presence.grace_ms`: how long a member stays after its connection ended. A change applies to
    /// connections that end later.
    pub grace_ms: u64,
    /// In how many rooms one connection may be a member.
    pub memberships_max: usize,
    /// How many rooms one connection may watch.
    pub watches_max: usize,
    /// `presence.watchers_max`: the watches of all connections.
    pub watchers_max: usize,
}

/// Why ENTER or WATCH was refused. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The room has `presence_members_max` members.
    RoomMembers,
    /// All rooms together have `presence.members_max` members.
    Members,
    /// The connection is a member of as many rooms as it may be.
    Memberships,
    /// The connection watches as many rooms as it may.
    Watches,
    /// All connections together have `presence.watchers_max` watches.
    Watchers,
    /// The channel lost presence in a reload, and its room is being ended.
    Ending,
}
