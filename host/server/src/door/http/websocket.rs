//! WebSocket messages, for a door whose protocol has messages.

use bytes::Bytes;

use crate::decoder::{Decoder, Progress};
use crate::session::Session;
use switchyard_protocol::websocket::{self, Body, FrameReader, Incoming, MessageKind};
use switchyard_types::close::{CloseReason, ProtocolViolation};

/// How many frames are read, and their messages processed, together.
const MESSAGES_MAX: usize = 128;

/// The bit of the first byte of a frame that all opcodes of control frames have.
const CONTROL_FRAME: u8 = 0x08;

/// The largest message of a connection that must authenticate, unless the sub-protocol sets it.
const UNAUTHENTICATED_BYTES_MAX: usize = 16 << 10;

/// A sub-protocol: what its messages mean.
pub trait Subprotocol {
    /// Executes messages, in order. After a close reason the rest is not executed. When the time
    /// budget is exhausted, the rest waits.
    fn take_messages<'a>(
        &mut self,
        messages: impl Iterator<Item = (MessageKind, &'a [u8])>,
        session: &mut Session,
    ) -> Option<CloseReason>;

    /// Continues with the queued messages, if there are any.
    fn resume(&mut self, session: &mut Session) -> Option<CloseReason>;

    /// Whether messages wait for the next time budget.
    fn has_pending(&self, session: &Session) -> bool;

    /// How large a message may be while the connection must authenticate.
    fn unauthenticated_bytes_max(&self) -> usize {
        UNAUTHENTICATED_BYTES_MAX
    }

    /// What is sent before the Close frame; may be empty.
    fn last_words(&self, _: &CloseReason) -> Bytes {
        Bytes::new()
    }

    /// Whether a request was completed since the last call, where messages have arrived.
    fn has_progressed(&mut self) -> bool {
        true
    }

    /// How much memory it holds for a request that was received in part, over several messages.
    fn unfinished_bytes(&self) -> usize {
        0
    }

    /// How much memory the complete commands hold that it keeps for later.
    fn kept_bytes(&self) -> usize {
        0
    }

    /// Frees that memory: the connection is closing.
    fn forget_unfinished(&mut self) {}
}

/// A WebSocket with its sub-protocol.
pub struct WebSocket<P> {
    frames: FrameReader,
    message_bytes_max: usize,
    subprotocol: P,
    /// Whether a message was completed since the last call of `has_progressed`.
    had_message: bool,
}

impl<P: Subprotocol> WebSocket<P> {
    /// A WebSocket after its handshake.
    pub fn new(subprotocol: P, message_bytes_max: usize) -> WebSocket<P> {
        let frames = FrameReader::default();
        WebSocket { frames, message_bytes_max, subprotocol, had_message: false }
    }
}

impl<P: Subprotocol> WebSocket<P> {
    /// Reads whole frames from `at` on, up to this many messages, and executes them.
    fn take_some(
        &mut self,
        bytes: &mut [u8],
        at: &mut usize,
        session: &mut Session,
    ) -> Option<CloseReason> {
        let mut messages = Vec::new();
        let mut close = None;
        // While the connection must authenticate, one at a time: it may be the one that
        // authenticates, and the next may be larger then.
        let must_authenticate = session.must_authenticate();
        let (frames_max, bytes_max) = match must_authenticate {
            true => (1, self.message_bytes_max.min(self.subprotocol.unauthenticated_bytes_max())),
            false => (MESSAGES_MAX, self.message_bytes_max),
        };
        let mut frames = 0;
        while close.is_none() && frames < frames_max {
            frames += 1;
            match self.frames.next(bytes, *at, bytes_max) {
                Ok(None) => break,
                Ok(Some((incoming, next))) => {
                    *at = next;
                    match incoming {
                        Incoming::Message(kind, body) => messages.push((kind, body)),
                        // A frame that is no command counts as one, or it would be free. One over
                        // the rate limit gets no reply; in the end the outbox is closed.
                        Incoming::Ping(range) => {
                            if session.pace("(ping)").is_ok() {
                                let pong = websocket::pong(bytes.get(range).unwrap_or_default());
                                session.connection.outbox.push_without_wake(pong);
                            }
                        }
                        Incoming::Pong | Incoming::EmptyFragment => {
                            let _ = session.pace("(frame)");
                        }
                        Incoming::Fragment => {}
                        Incoming::Close(code) => close = Some(CloseReason::Peer(code)),
                    }
                }
                Err(CloseReason::Violation(ProtocolViolation::TooBig)) if must_authenticate => {
                    close = Some(CloseReason::Violation(ProtocolViolation::TooBigBeforeAuth));
                }
                Err(reason) => close = Some(reason),
            }
        }
        self.had_message |= !messages.is_empty();
        // What was received before the end is processed first.
        let messages = messages.iter().map(|(kind, body)| match body {
            Body::Buffer(range) => (*kind, bytes.get(range.clone()).unwrap_or_default()),
            Body::Assembled(assembled) => (*kind, assembled.as_slice()),
        });
        self.subprotocol.take_messages(messages, session).or(close)
    }
}

impl<P: Subprotocol> Decoder for WebSocket<P> {
    const HAS_CLOSE_HANDSHAKE: bool = true;

    fn decode(&mut self, bytes: &mut [u8], session: &mut Session) -> Progress {
        let mut at = 0;
        let mut close = self.subprotocol.resume(session);
        loop {
            if let Some(reason) = close {
                session.close(reason);
                return Progress { bytes: at, is_unfinished: false };
            }
            if self.subprotocol.has_pending(session) || at > 0 && session.is_budget_exhausted() {
                return Progress { bytes: at, is_unfinished: true };
            }
            let before = at;
            close = self.take_some(bytes, &mut at, session);
            if close.is_none() && at == before {
                return Progress { bytes: at, is_unfinished: false };
            }
        }
    }

    /// Control frames that no message precedes: pings are answered, and a Close is one.
    fn decode_ahead(&mut self, bytes: &mut [u8], session: &mut Session) -> usize {
        let mut at = 0;
        while bytes.get(at).is_some_and(|first| first & CONTROL_FRAME != 0) {
            match self.frames.next(bytes, at, self.message_bytes_max) {
                Ok(None) => break,
                Ok(Some((incoming, next))) => {
                    at = next;
                    match incoming {
                        Incoming::Ping(range) => {
                            if session.pace("(ping)").is_ok() {
                                let pong = websocket::pong(bytes.get(range).unwrap_or_default());
                                session.connection.outbox.push(pong);
                            }
                        }
                        Incoming::Close(code) => session.close(CloseReason::Peer(code)),
                        _ => {
                            let _ = session.pace("(frame)");
                        }
                    }
                }
                Err(reason) => {
                    session.close(reason);
                    break;
                }
            }
        }
        at
    }

    /// A frame may be a fragment, or a ping between two of them.
    fn has_progressed(&mut self, _: usize) -> bool {
        std::mem::take(&mut self.had_message) && self.subprotocol.has_progressed()
    }

    fn unfinished_bytes(&self) -> usize {
        self.frames.unfinished_bytes() + self.subprotocol.unfinished_bytes()
    }

    fn kept_bytes(&self) -> usize {
        self.subprotocol.kept_bytes()
    }

    fn forget_unfinished(&mut self) {
        self.frames = FrameReader::default();
        self.subprotocol.forget_unfinished();
    }

    fn end_of_input(&self) -> Option<CloseReason> {
        None
    }

    fn last_bytes(&self, reason: &CloseReason) -> Bytes {
        let close = websocket::close(reason);
        match self.subprotocol.last_words(reason) {
            words if words.is_empty() => close,
            words => [words, close].concat().into(),
        }
    }
}
