//! Presence: the members of each room, and the events for the connections that watch a room.
//!
//! A room is a channel whose rule has presence, while it has members or watchers. `Rooms` holds all
//! rooms of the process. The crate is pure: it has no clock, no lock, no task and no log, and it
//! knows no bytes of a protocol. The caller holds a mutex, passes the time in monotonic
//! milliseconds, and writes what is returned to the outboxes.
//!
//! The caller must deliver what `watch`, `next_page` and `flush` return to one connection in the
//! order of the calls. Otherwise a client could see an event before the page that it belongs to.
//! The simplest way is to append to the outboxes before the mutex is released.
//!
//! Read `rooms` first, then `room`; `history` explains how events are found.

mod change;
mod history;
mod limits;
mod marks;
mod member;
mod page;
mod replicas;
mod room;
mod rooms;
mod watchers;

pub use change::{Change, ChangeKind, Coalesced, Events, Group, Updated};
pub use change::{EACH_MAX, GATHER_MS};
pub use limits::{Limits, Refused};
pub use member::Member;
pub use page::{Count, Page, Snapshot};
pub use replicas::{Ask, RemoteChange, RemoteMember, RemotePage, Replicas, Update};
pub use rooms::Rooms;
pub use rooms::flushing::Flushed;
pub use rooms::listing::{RoomEntry, Totals};
pub use rooms::remote::OwnChange;
