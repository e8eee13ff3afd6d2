//! The doors: each decodes what one kind of client sends into a session's commands, and
//! encodes the close for that kind.

pub mod json;
pub mod resp;
pub mod websocket;

use std::time::Duration;

use bytes::Bytes;

use crate::close::CloseReason;
use crate::hub::connections::Connection;
use crate::hub::encoding::Encoding;
use crate::protocol::json as json_protocol;
use crate::session::Session;

/// How far a door has come with the bytes it was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// How many bytes are done with.
    pub bytes: usize,
    /// Whether the time budget was exhausted: processing continues where it stopped, even if
    /// no more bytes arrive.
    pub is_unfinished: bool,
}

/// What stands between a connection's bytes and its session.
pub trait Door {
    /// Carries out the whole commands that `bytes` begins with. The rest is shown
    /// again with what comes behind it. When the connection must be closed, its
    /// outbox is.
    fn decode(&mut self, bytes: &mut [u8], session: &mut Session) -> Progress;

    /// Whether a request or message of the client was completed since the last call; `taken`
    /// bytes have been processed.
    fn has_progressed(&mut self, taken: usize) -> bool {
        taken > 0
    }

    /// What it keeps in memory of a message that was received in part, besides the bytes that it
    /// was shown and is not done with.
    fn unfinished_bytes(&self) -> usize {
        0
    }

    /// Lets that go: the connection is closing.
    fn forget_unfinished(&mut self) {}

    /// What a client that sends no more is closed with; none: it should have said
    /// so.
    fn end_of_input(&self) -> Option<CloseReason>;

    /// The last bytes that the client is sent; may be empty.
    fn goodbye(&self, reason: &CloseReason) -> Bytes;
}

/// Says goodbye to a connection that did nothing wrong: soon, in the door's words,
/// and then closes it. Twice is once.
pub fn close_gracefully(connection: &Connection, reason: CloseReason) {
    goaway(connection, &reason, RECONNECT_WITHIN);
    connection.outbox.close(reason);
}

/// Tells a client whose protocol has words for it that it will be closed, and in
/// which time from now it should come back.
pub fn goaway(connection: &Connection, reason: &CloseReason, reconnect_within: [Duration; 2]) {
    if connection.encoding() == Encoding::Json {
        let within_ms = reconnect_within.map(|time| time.as_millis() as u64);
        let mut goaway = Vec::new();
        json_protocol::write_goaway(&reason.text(), within_ms, &mut goaway);
        connection.outbox.push(goaway.into());
    }
}

/// Over which time clients should spread their coming back that nothing else is
/// said about.
const RECONNECT_WITHIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(5)];
