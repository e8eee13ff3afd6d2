//! Redis' protocol in binary WebSocket frames, split as the client likes.

use bytes::Bytes;

use super::{Flow, Resp, last_words};
use crate::decoder::Decoder;
use crate::door::http::websocket::Subprotocol;
use crate::session::Session;
use switchyard_protocol::resp::RequestLimits;
use switchyard_protocol::websocket::{self, MessageKind};
use switchyard_types::close::{CloseReason, ProtocolViolation};

/// The largest WebSocket message before AUTH: the size of the largest request that Redis' limits
/// allow.
fn unauthenticated_frame_bytes_max(limits: &RequestLimits) -> usize {
    /// The line before each argument, and the line end after it.
    const AROUND_BYTES: usize = 32;
    let bulk = limits.unauthenticated_bulk_bytes_max + AROUND_BYTES;
    AROUND_BYTES + limits.unauthenticated_arguments_max * bulk
}

/// RESP in binary WebSocket frames, split as the client likes.
pub struct FramedResp {
    resp: Resp,
    bytes: Vec<u8>,
    /// Whether the time budget was exhausted before all of `bytes` was processed.
    is_unfinished: bool,
    /// Whether a request was completed since the last call of `has_progressed`.
    has_progressed: bool,
}

impl FramedResp {
    /// RESP over a WebSocket.
    pub fn new(resp: Resp) -> FramedResp {
        FramedResp { resp, bytes: Vec::new(), is_unfinished: false, has_progressed: false }
    }

    fn take_requests(&mut self, session: &mut Session) -> Option<CloseReason> {
        let (progress, flow) = self.resp.take_requests(&self.bytes, session);
        self.is_unfinished = progress.is_unfinished;
        self.has_progressed |= progress.bytes > 0;
        self.bytes.drain(..progress.bytes);
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
        match flow {
            Flow::Close(reason) => Some(reason),
            Flow::Continue => None,
        }
    }
}

impl Subprotocol for FramedResp {
    fn take_messages<'a>(
        &mut self,
        messages: impl Iterator<Item = (MessageKind, &'a [u8])>,
        session: &mut Session,
    ) -> Option<CloseReason> {
        let mut unacceptable = None;
        for (kind, body) in messages {
            if kind == MessageKind::Text {
                let why = "text frame under the sub-protocol resp";
                let violation = ProtocolViolation::Unacceptable(why);
                unacceptable = Some(CloseReason::Violation(violation));
                break;
            }
            if body.is_empty() {
                // A frame that completes no command counts as one, or it would be free.
                let _ = session.pace("(frame)");
            }
            self.bytes.extend_from_slice(body);
        }
        self.take_requests(session).or(unacceptable)
    }

    fn resume(&mut self, session: &mut Session) -> Option<CloseReason> {
        if self.has_pending(session) { self.take_requests(session) } else { None }
    }

    fn has_pending(&self, session: &Session) -> bool {
        self.is_unfinished || session.has_pending()
    }

    fn unauthenticated_bytes_max(&self) -> usize {
        unauthenticated_frame_bytes_max(&self.resp.limits)
    }

    fn last_words(&self, reason: &CloseReason) -> Bytes {
        match last_words(reason) {
            words if words.is_empty() => words,
            words => websocket::binary_frame(&words).into(),
        }
    }

    fn has_progressed(&mut self) -> bool {
        std::mem::take(&mut self.has_progressed)
    }

    fn unfinished_bytes(&self) -> usize {
        self.bytes.capacity() + self.resp.unfinished_bytes()
    }

    fn kept_bytes(&self) -> usize {
        self.resp.queued_bytes()
    }

    fn forget_unfinished(&mut self) {
        self.bytes = Vec::new();
        self.resp.forget_unfinished();
    }
}
