//! The doors: each turns what one kind of client sends into a session's commands,
//! and knows how that kind is told goodbye.

pub mod json;
pub mod resp;
pub mod websocket;

use bytes::Bytes;

use crate::close::CloseReason;
use crate::session::Session;

/// What stands between a connection's bytes and its session.
pub trait Door {
    /// Carries out the whole commands that `bytes` begins with, and answers how
    /// many bytes they are. The rest is shown again with what comes behind it.
    /// When the connection must be closed, its outbox is.
    fn take_in(&mut self, bytes: &mut [u8], session: &mut Session) -> usize;

    /// What a client that sends no more is closed with; none: it should have said
    /// so.
    fn end_of_input(&self) -> Option<CloseReason>;

    /// The last bytes that the client is sent; may be empty.
    fn goodbye(&self, reason: &CloseReason) -> Bytes;
}
