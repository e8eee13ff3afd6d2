//! The doors: each decodes what one kind of client sends into a session's commands, and
//! encodes the close for that kind.

pub mod json;
pub mod resp;
pub mod websocket;

use std::time::Duration;

use bytes::Bytes;

use crate::session::Session;
use switchyard_hub::connections::Connection;
use switchyard_hub::encoding::Encoding;
use switchyard_protocol::json as json_protocol;
use switchyard_types::close::CloseReason;

/// How far a door has decoded the bytes that it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// How many bytes have been processed.
    pub bytes: usize,
    /// Whether the time budget was exhausted: processing continues where it stopped, even if
    /// no more bytes arrive.
    pub is_unfinished: bool,
}

/// The interface between a connection's bytes and its session.
pub trait Door {
    /// Executes the complete commands that `bytes` begins with. The rest is passed again with the
    /// bytes that follow it. When the connection must be closed, this closes its outbox.
    fn decode(&mut self, bytes: &mut [u8], session: &mut Session) -> Progress;

    /// Whether a request or message of the client was completed since the last call; `taken`
    /// bytes have been processed.
    fn has_progressed(&mut self, taken: usize) -> bool {
        taken > 0
    }

    /// How much memory it holds for a message that was received in part, besides the bytes that it
    /// has not processed.
    fn unfinished_bytes(&self) -> usize {
        0
    }

    /// Frees that memory: the connection is closing.
    fn forget_unfinished(&mut self) {}

    /// The reason to close with when the client ends its input; none: the client should have closed
    /// properly.
    fn end_of_input(&self) -> Option<CloseReason>;

    /// The last bytes that are sent to the client; may be empty.
    fn goodbye(&self, reason: &CloseReason) -> Bytes;
}

/// Closes a connection that did nothing wrong: soon, and with the protocol's way to say so. A
/// second call has no effect.
pub fn close_gracefully(connection: &Connection, reason: CloseReason) {
    goaway(connection, &reason, RECONNECT_WITHIN);
    connection.outbox.close(reason);
}

/// Notifies a client, if its protocol can do so, that it will be closed, and after which time it
/// should reconnect.
pub fn goaway(connection: &Connection, reason: &CloseReason, reconnect_within: [Duration; 2]) {
    if connection.encoding() == Encoding::Json {
        let within_ms = reconnect_within.map(|time| time.as_millis() as u64);
        let mut goaway = Vec::new();
        json_protocol::write_goaway(&reason.text(), within_ms, &mut goaway);
        connection.outbox.push(goaway.into());
    }
}

/// The time over which clients should spread their reconnects, unless another one is given.
const RECONNECT_WITHIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(5)];
