//! WebSocket messages for a door that speaks in messages.

use bytes::Bytes;

use super::Door;
use crate::close::CloseReason;
use crate::protocol::websocket::{self, Body, FrameReader, Incoming, MessageKind};
use crate::session::Session;

/// What a sub-protocol makes of messages.
pub trait Subprotocol {
    /// Carries out messages, in order. A reason to close: what came behind is not
    /// carried out.
    fn take_messages<'a>(
        &mut self,
        messages: impl Iterator<Item = (MessageKind, &'a [u8])>,
        session: &mut Session,
    ) -> Option<CloseReason>;
}

/// A WebSocket that speaks a sub-protocol.
pub struct WebSocket<P> {
    frames: FrameReader,
    message_bytes_max: usize,
    subprotocol: P,
}

impl<P: Subprotocol> WebSocket<P> {
    /// A WebSocket after its handshake.
    pub fn new(subprotocol: P, message_bytes_max: usize) -> WebSocket<P> {
        WebSocket { frames: FrameReader::default(), message_bytes_max, subprotocol }
    }
}

impl<P: Subprotocol> Door for WebSocket<P> {
    fn take_in(&mut self, bytes: &mut [u8], session: &mut Session) -> usize {
        let mut messages = Vec::new();
        let mut at = 0;
        let mut close = None;
        while close.is_none() {
            match self.frames.next(bytes, at, self.message_bytes_max) {
                Ok(None) => break,
                Ok(Some((incoming, next))) => {
                    at = next;
                    match incoming {
                        Incoming::Message(kind, body) => messages.push((kind, body)),
                        Incoming::Ping(range) => {
                            let pong = websocket::pong(bytes.get(range).unwrap_or_default());
                            session.connection.outbox.push(pong);
                        }
                        Incoming::Pong | Incoming::Fragment => {}
                        Incoming::Close(code) => close = Some(CloseReason::Peer(code)),
                    }
                }
                Err(reason) => close = Some(reason),
            }
        }
        // What came before the end is carried out first.
        let messages = messages.iter().map(|(kind, body)| match body {
            Body::Buffer(range) => (*kind, bytes.get(range.clone()).unwrap_or_default()),
            Body::Assembled(assembled) => (*kind, assembled.as_slice()),
        });
        if let Some(reason) = self.subprotocol.take_messages(messages, session).or(close) {
            session.connection.outbox.close(reason);
        }
        at
    }

    fn end_of_input(&self) -> Option<CloseReason> {
        None
    }

    fn goodbye(&self, reason: &CloseReason) -> Bytes {
        websocket::close(reason)
    }
}
