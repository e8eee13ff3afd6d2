//! Why a connection is closed, and the close code and reason that its client receives.
//!
//! This is a closed catalogue: each close that the server initiates is one of these. The range of
//! the code tells a client what to do next (4000–4099: do not reconnect with the same credentials;
//! 4100–4199: reconnect after a pause; 4200–4299: reconnect at once). The codes 1000–1015 are those
//! of RFC 6455, section 7.4.1.

use std::borrow::Cow;

use crate::bound::Bound;

/// Why the server closes a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// The client sent QUIT.
    Quit,
    /// The client sent a Close frame; it is echoed with its code, if it had one.
    Peer(Option<u16>),
    /// The server is shutting down.
    ShuttingDown,
    /// An operator disconnected it.
    Operator,
    /// The bytes violate the protocol: RFC 6455, or a text frame under `resp`.
    Violation(ProtocolViolation),
    /// No plugin accepts the client's credentials, or it has none.
    Unauthorised(String),
    /// The client's credentials expired: it should get new ones and reconnect at once.
    Expired(String),
    /// A plugin refuses the client.
    Forbidden(String),
    /// Too many frames in a row that are not commands.
    BadFrames,
    /// No more connections are accepted.
    OverCapacity,
    /// No more connections are accepted from this address.
    OverAddressCapacity,
    /// The server is shutting down and rejects new connections.
    Draining,
    /// It kept sending commands over the rate limit.
    Flood,
    /// Too many attempts to authenticate failed, on this connection or from its
    /// address.
    AuthFlood,
    /// It had no subscriptions and sent nothing for too long.
    Idle,
    /// A plugin that must be called is not available now.
    Unavailable(String),
    /// A plugin refuses the client for now: it connects too often.
    Limited(String),
    /// No data within the time allowed after a ping.
    PingTimeout,
    /// The outbox was over its hard limit, or over its soft limit for too long.
    SlowConsumer {
        /// How many bytes were queued.
        outbox_bytes: usize,
    },
    /// The connections together reached a bound on their memory.
    OverMemory(Bound),
    /// A message was not completed in time.
    SlowInput,
    /// Messages on the way from another node to it were lost, and cannot be read again.
    MissedMessages,
    /// The server failed to serve the connection. Whether its last commands took effect is
    /// unknown.
    Internal,
}

/// A protocol violation by the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolViolation {
    /// A frame that RFC 6455 forbids, with the violated rule.
    Frame(&'static str),
    /// A kind of message that this sub-protocol does not accept.
    Unacceptable(&'static str),
    /// Text that is not UTF-8.
    NotUtf8,
    /// A frame or message over the limit.
    TooBig,
    /// A frame or message over the limit for connections that must authenticate.
    TooBigBeforeAuth,
    /// The bytes are no RESP request; the client has received an error reply with the reason.
    Resp,
}

impl CloseReason {
    /// The code of the Close frame; none: a Close frame without a body.
    pub fn code(&self) -> Option<u16> {
        Some(match self {
            CloseReason::Quit => 1000,
            CloseReason::Peer(code) => return *code,
            CloseReason::ShuttingDown => 1001,
            CloseReason::Violation(ProtocolViolation::Frame(_)) => 1002,
            CloseReason::Violation(ProtocolViolation::Unacceptable(_)) => 1003,
            CloseReason::Violation(ProtocolViolation::NotUtf8) => 1007,
            CloseReason::Violation(
                ProtocolViolation::TooBig | ProtocolViolation::TooBigBeforeAuth,
            ) => 1009,
            CloseReason::Internal => 1011,
            CloseReason::Unauthorised(_) => 4001,
            CloseReason::Expired(_) => 4002,
            CloseReason::Forbidden(_) => 4003,
            CloseReason::Violation(ProtocolViolation::Resp) | CloseReason::BadFrames => 4009,
            CloseReason::Draining => 4100,
            CloseReason::OverCapacity => 4101,
            CloseReason::Unavailable(_) => 4102,
            CloseReason::OverAddressCapacity => 4103,
            CloseReason::Flood | CloseReason::AuthFlood => 4104,
            CloseReason::Operator => 4105,
            CloseReason::Limited(_) => 4106,
            CloseReason::OverMemory(_) => 4107,
            CloseReason::Idle => 4203,
            CloseReason::MissedMessages => 4204,
            CloseReason::PingTimeout => 4201,
            CloseReason::SlowConsumer { .. } | CloseReason::SlowInput => 4202,
        })
    }

    /// One line of text, at most the 123 bytes that a Close frame holds.
    pub fn text(&self) -> Cow<'_, str> {
        let text: Cow<'_, str> = match self {
            CloseReason::Quit | CloseReason::Peer(_) => "".into(),
            CloseReason::ShuttingDown => "the server is shutting down".into(),
            CloseReason::Operator => "closed by an operator".into(),
            CloseReason::Violation(ProtocolViolation::Frame(rule)) => (*rule).into(),
            CloseReason::Violation(ProtocolViolation::Unacceptable(why)) => (*why).into(),
            CloseReason::Violation(ProtocolViolation::NotUtf8) => "text is not UTF-8".into(),
            CloseReason::Violation(ProtocolViolation::TooBig) => {
                "the frame or message is over websocket.message_bytes_max".into()
            }
            CloseReason::Violation(ProtocolViolation::TooBigBeforeAuth) => {
                "the frame or message is too large before AUTH".into()
            }
            CloseReason::Violation(ProtocolViolation::Resp) => "not a RESP request".into(),
            CloseReason::Unauthorised(why)
            | CloseReason::Expired(why)
            | CloseReason::Forbidden(why) => why.into(),
            CloseReason::BadFrames => "too many bad frames in a row".into(),
            CloseReason::OverCapacity => "the server is at limits.connections_max".into(),
            CloseReason::OverAddressCapacity => {
                "your address is at limits.connections_per_address_max".into()
            }
            CloseReason::Draining => {
                "the server is shutting down and accepts no new connections".into()
            }
            CloseReason::Flood => "over limits.commands_per_second_max for too long".into(),
            CloseReason::AuthFlood => {
                "too many failed attempts to authenticate (limits.auth_attempts_per_minute_max)"
                    .into()
            }
            CloseReason::OverMemory(bound @ (Bound::Outboxes | Bound::Input)) => {
                format!("the server is at its memory bound {}", bound.key()).into()
            }
            CloseReason::OverMemory(bound) => {
                format!("your address is at the memory bound {}", bound.key()).into()
            }
            CloseReason::SlowInput => {
                "a message was not complete within limits.input_timeout_ms".into()
            }
            CloseReason::MissedMessages => {
                "messages of a channel were missed and cannot be recovered: RESUME".into()
            }
            CloseReason::Internal => "the server failed to serve the connection".into(),
            CloseReason::Idle => "nothing said within resp.idle_timeout_ms".into(),
            CloseReason::Unavailable(why) | CloseReason::Limited(why) => why.into(),
            CloseReason::PingTimeout => {
                "no answer to a ping within websocket.pong_timeout_ms".into()
            }
            CloseReason::SlowConsumer { outbox_bytes } => {
                format!("too slow: {outbox_bytes} bytes waited in the outbox").into()
            }
        };
        match text {
            Cow::Borrowed(text) => clip(text, 123).into(),
            Cow::Owned(text) if text.len() > 123 => clip(&text, 123).to_owned().into(),
            owned => owned,
        }
    }

    /// A stable label for logs and metrics.
    pub fn label(&self) -> &'static str {
        let label = CloseReason::LABELS.get(self.place());
        label.expect("there is one for each reason")
    }

    /// The labels of all reasons.
    pub const LABELS: [&str; 23] = [
        "quit",
        "peer",
        "shutting_down",
        "operator",
        "violation",
        "unauthorised",
        "forbidden",
        "bad_frames",
        "over_capacity",
        "over_address_capacity",
        "draining",
        "flood",
        "idle",
        "unavailable",
        "ping_timeout",
        "slow_consumer",
        "limited",
        "expired",
        "auth_flood",
        "over_memory",
        "internal",
        "slow_input",
        "missed_messages",
    ];

    /// The index of its label.
    pub fn place(&self) -> usize {
        match self {
            CloseReason::Quit => 0,
            CloseReason::Peer(_) => 1,
            CloseReason::ShuttingDown => 2,
            CloseReason::Operator => 3,
            CloseReason::Violation(_) => 4,
            CloseReason::Unauthorised(_) => 5,
            CloseReason::Forbidden(_) => 6,
            CloseReason::BadFrames => 7,
            CloseReason::OverCapacity => 8,
            CloseReason::OverAddressCapacity => 9,
            CloseReason::Draining => 10,
            CloseReason::Flood => 11,
            CloseReason::Idle => 12,
            CloseReason::Unavailable(_) => 13,
            CloseReason::PingTimeout => 14,
            CloseReason::SlowConsumer { .. } => 15,
            CloseReason::Limited(_) => 16,
            CloseReason::Expired(_) => 17,
            CloseReason::AuthFlood => 18,
            CloseReason::OverMemory(_) => 19,
            CloseReason::Internal => 20,
            CloseReason::SlowInput => 21,
            CloseReason::MissedMessages => 22,
        }
    }
}

/// The longest prefix of `text` of at most `bytes_max` bytes that ends at a character boundary.
pub fn clip(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let reason = CloseReason::Forbidden("ü".repeat(100));
        assert_eq!(reason.text().len(), 122);
        assert_eq!(clip("abc", 9), "abc");
    }
}
