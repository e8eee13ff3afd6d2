//! The interface between a connection's bytes and its session, which each protocol implements.

use bytes::Bytes;

use crate::session::Session;
use switchyard_types::close::CloseReason;

/// How many bytes a decoder has processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// How many bytes have been processed.
    pub bytes: usize,
    /// Whether the time budget was exhausted: processing continues where it stopped, even if
    /// no more bytes arrive.
    pub is_unfinished: bool,
}

/// Decodes what one client sends into the commands of its session.
pub trait Decoder {
    /// Whether the protocol has a close handshake: the server sends its close and waits for the
    /// client's.
    const HAS_CLOSE_HANDSHAKE: bool = false;

    /// Executes the complete commands that `bytes` begins with. The rest is passed again with the
    /// bytes that follow it. When the connection must be closed, this closes its outbox.
    fn decode(&mut self, bytes: &mut [u8], session: &mut Session) -> Progress;

    /// Handles what may be handled while the client's commands wait, at the beginning of `bytes`.
    /// Returns how many bytes that were.
    fn decode_ahead(&mut self, _bytes: &mut [u8], _session: &mut Session) -> usize {
        0
    }

    /// Whether a request or message of the client was completed since the last call; `processed`
    /// bytes have been processed.
    fn has_progressed(&mut self, processed: usize) -> bool {
        processed > 0
    }

    /// How much memory it holds for a message that was received in part, besides the bytes that it
    /// has not processed.
    fn unfinished_bytes(&self) -> usize {
        0
    }

    /// How much memory the complete commands hold that it keeps for later.
    fn kept_bytes(&self) -> usize {
        0
    }

    /// Frees that memory: the connection is closing.
    fn forget_unfinished(&mut self) {}

    /// The reason to close with when the client ends its input; none: the client should have closed
    /// properly.
    fn end_of_input(&self) -> Option<CloseReason>;

    /// The last bytes that are sent to the client; may be empty.
    fn last_bytes(&self, reason: &CloseReason) -> Bytes;
}
