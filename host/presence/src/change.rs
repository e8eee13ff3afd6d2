//! What the watchers of a room receive.
//!
//! A group is a list of watchers that receive the same events, so that the caller encodes them
//! once. Up to `EACH_MAX` changes are single events, in the order in which they happened. More are
//! one coalesced event, which holds the difference between the room before and after. There:
//!
//! - each list is sorted by connection;
//! - an enter and a later leave of one connection cancel;
//! - a leave and a later enter of one connection are an update, or nothing if the user and the
//!   data are the same; likewise several updates;
//! - a takeover is an update with `was`, the connection that was known before. If several
//!   connections took the place in turn, it shows the last one, and `was` is the first;
//! - a takeover whose new connection left again is a leave of the connection known before, with
//!   the data known before; if the new connection then entered once more, that is an enter.

use std::sync::Arc;

use switchyard_types::ids::ConnectionId;

use crate::member::Member;

/// How many changes for one watcher are sent as single events.
pub const EACH_MAX: usize = 16;

/// For how long changes are gathered, after the first one.
pub const GATHER_MS: u64 = 100;

/// What happened to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was no member before.
    Enter,
    /// Its data, its user or its connection changed.
    Update,
    /// It is no member any more. The member shows the last data.
    Leave,
}

/// One change of a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// The member.
    pub member: Arc<Member>,
    /// The connection whose place this one took over; only with an update.
    pub was: Option<ConnectionId>,
}

/// A member in the list of updates of a coalesced event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Updated {
    /// The member.
    pub member: Arc<Member>,
    /// The connection whose place this one took over.
    pub was: Option<ConnectionId>,
}

/// The net difference that more than `EACH_MAX` changes make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coalesced {
    /// Members that the watcher does not know.
    pub enter: Vec<Arc<Member>>,
    /// Members that the watcher knows, or that took the place of one that it knows.
    pub update: Vec<Updated>,
    /// Members that the watcher knows and that are gone, with their last data.
    pub leave: Vec<Arc<Member>>,
}

/// What a group of watchers receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Events {
    /// One `enter`, `update` or `leave` event each, in this order. Never empty.
    Each(Vec<Change>),
    /// One `presence` event. Never empty.
    Coalesced(Coalesced),
    /// One `unwatched` event: the channel has no presence any more.
    Unwatched,
}

/// Watchers of one room that receive the same events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The room.
    pub channel: Arc<[u8]>,
    /// The watchers, each once.
    pub watchers: Vec<ConnectionId>,
    /// The events.
    pub events: Events,
}

impl Coalesced {
    /// How many members it lists.
    pub fn len(&self) -> usize {
        self.enter.len() + self.update.len() + self.leave.len()
    }

    /// Whether it lists none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same as single events: enters, then updates, then leaves. No two concern the same
    /// connection, except two updates with a different `was`, so that the order does not matter.
    pub(crate) fn into_each(self) -> Vec<Change> {
        let enter = self.enter.into_iter().map(|member| (ChangeKind::Enter, member, None));
        let update = self
            .update
            .into_iter()
            .map(|Updated { member, was }| (ChangeKind::Update, member, was));
        let leave = self.leave.into_iter().map(|member| (ChangeKind::Leave, member, None));
        let all = enter.chain(update).chain(leave);
        all.map(|(kind, member, was)| Change { kind, member, was }).collect()
    }
}
