//! `switchyard.v1.json` over WebSocket.

use super::websocket::Subprotocol;
use crate::session::{Session, WriteReply};
use switchyard_protocol::json;
use switchyard_protocol::websocket::MessageKind;
use switchyard_types::close::{CloseReason, ProtocolViolation};
use switchyard_types::command::{BADFRAME, Reply, Request, Tag};

/// How many commands a frame may have while the connection must authenticate.
const UNAUTHENTICATED_COMMANDS_MAX: usize = 128;

/// Decodes commands from JSON arrays in text frames.
pub struct Json {
    bad_frames_in_a_row: u32,
    bad_frames_max: u32,
}

impl Json {
    /// Closes after more than this many invalid frames in a row.
    pub fn new(bad_frames_max: u32) -> Json {
        Json { bad_frames_in_a_row: 0, bad_frames_max }
    }
}

/// Replies as JSON.
#[derive(Clone, Copy)]
struct JsonReplies;

impl WriteReply for JsonReplies {
    fn write(&self, tag: Tag, reply: &Reply<'_>, output: &mut Vec<u8>) {
        json::write_reply(tag, reply, output);
    }
}

impl Subprotocol for Json {
    fn take_messages<'a>(
        &mut self,
        messages: impl Iterator<Item = (MessageKind, &'a [u8])>,
        session: &mut Session,
    ) -> Option<CloseReason> {
        let mut requests: Vec<Request<'_>> = Vec::new();
        let mut close = None;
        for (kind, body) in messages {
            let before = requests.len();
            match (kind, std::str::from_utf8(body)) {
                (MessageKind::Text, Ok(text)) => json::parse(text, &mut requests),
                // Text was checked to be UTF-8 when it was assembled.
                (MessageKind::Text, Err(_)) | (MessageKind::Binary, _) => {
                    requests.push(json::binary_frame());
                }
            }
            let is_bad = |request: &Request<'_>| {
                request.command.as_ref().is_err_and(|refusal| refusal.code == BADFRAME)
            };
            if session.must_authenticate() && requests.len() > UNAUTHENTICATED_COMMANDS_MAX {
                // Commands take many times the memory of their text.
                requests.clear();
                close = Some(CloseReason::Violation(ProtocolViolation::TooBigBeforeAuth));
                break;
            }
            if requests.iter().skip(before).all(is_bad) {
                self.bad_frames_in_a_row += 1;
            } else {
                self.bad_frames_in_a_row = 0;
            }
            if self.bad_frames_in_a_row > self.bad_frames_max {
                close = Some(CloseReason::BadFrames);
                break;
            }
        }
        session.execute(requests.into_iter(), JsonReplies, false).or(close)
    }

    fn resume(&mut self, session: &mut Session) -> Option<CloseReason> {
        if session.has_pending() { session.resume(JsonReplies) } else { None }
    }

    fn has_pending(&self, session: &Session) -> bool {
        session.has_pending()
    }
}
