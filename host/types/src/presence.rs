//! What clients ask of the presence of a channel, and what they are answered.

use crate::ids::ConnectionId;

/// How many members one answer has at most.
pub const PAGE_MEMBERS_MAX: u64 = 1_000;

/// The arguments of PRESENCE and WATCH.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PresenceOptions {
    /// Only members with a higher connection id.
    pub after: Option<ConnectionId>,
    /// How many members at most.
    pub limit: Option<u64>,
    /// Whether the answer has numbers only.
    pub is_count: bool,
}

/// A member, as clients see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberView<'a> {
    /// Its connection.
    pub connection: ConnectionId,
    /// Its user; none: it is not known.
    pub user: Option<&'a str>,
    /// What it entered with: a text in JSON.
    pub data: &'a str,
    /// The connection whose place it took; only in an event.
    pub was: Option<ConnectionId>,
}

/// The answer to PRESENCE and WATCH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresencePage<'a> {
    /// The number of members.
    pub count: usize,
    /// The number of different users; a member without a user counts as one.
    pub users: usize,
    /// Members by rising connection; none: they were not requested.
    pub members: Option<&'a [MemberView<'a>]>,
    /// What to give as `after` for more; none: there is no more.
    pub next: Option<ConnectionId>,
}
