//! The ways in which a request can be malformed.
//!
//! After each of them the connection closes, because the start of the next request is no longer
//! known. An invalid command in a well-formed request is not one of these: it gets an error reply
//! and the connection stays (`errors`).

use std::borrow::Cow;
use std::fmt;

/// Why a request is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolError {
    /// An inline request is too long.
    InlineTooBig,
    /// A quote of an inline request is not closed, or is closed within a word.
    UnbalancedQuotes,
    /// The line that counts the arguments is too long.
    CountTooBig,
    /// The count of arguments is not a number or is too large.
    CountInvalid,
    /// An argument does not start with its length.
    DollarExpected {
        /// The byte in its place.
        found: u8,
    },
    /// The line that holds the length of an argument is too long.
    LengthTooBig,
    /// The length of an argument is not a number, is negative or is too large.
    LengthInvalid,
    /// More arguments than a connection may send before it authenticates.
    UnauthenticatedCount,
    /// A longer argument than a connection may send before it authenticates.
    UnauthenticatedLength,
    /// The request is larger than the server will hold.
    RequestTooBig,
    /// The request is HTTP: a web page makes a browser connect to this port.
    CrossProtocol,
}

impl ProtocolError {
    /// The text of the error reply that is sent before the close. `None` for the
    /// two cases in which Redis closes without replying (and drops the replies
    /// that it has not sent).
    pub fn reply(self) -> Option<Cow<'static, [u8]>> {
        let text: &'static [u8] = match self {
            ProtocolError::InlineTooBig => b"ERR Protocol error: too big inline request",
            ProtocolError::UnbalancedQuotes => b"ERR Protocol error: unbalanced quotes in request",
            ProtocolError::CountTooBig => b"ERR Protocol error: too big mbulk count string",
            ProtocolError::CountInvalid => b"ERR Protocol error: invalid multibulk length",
            ProtocolError::DollarExpected { found } => {
                let mut text = b"ERR Protocol error: expected '$', got '".to_vec();
                text.extend([found, b'\'']);
                return Some(Cow::Owned(text));
            }
            ProtocolError::LengthTooBig => b"ERR Protocol error: too big bulk count string",
            ProtocolError::LengthInvalid => b"ERR Protocol error: invalid bulk length",
            ProtocolError::UnauthenticatedCount => {
                b"ERR Protocol error: unauthenticated multibulk length"
            }
            ProtocolError::UnauthenticatedLength => {
                b"ERR Protocol error: unauthenticated bulk length"
            }
            ProtocolError::RequestTooBig | ProtocolError::CrossProtocol => return None,
        };
        Some(Cow::Borrowed(text))
    }
}

/// For the log.
impl fmt::Display for ProtocolError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            ProtocolError::InlineTooBig => "the inline request is too long",
            ProtocolError::UnbalancedQuotes => "the inline request has unbalanced quotes",
            ProtocolError::CountTooBig => "the line with the count of arguments is too long",
            ProtocolError::CountInvalid => "the count of arguments is invalid",
            ProtocolError::DollarExpected { .. } => "an argument does not start with its length",
            ProtocolError::LengthTooBig => "the line with an argument's length is too long",
            ProtocolError::LengthInvalid => "the length of an argument is invalid",
            ProtocolError::UnauthenticatedCount => "too many arguments before authentication",
            ProtocolError::UnauthenticatedLength => "too long an argument before authentication",
            ProtocolError::RequestTooBig => "the request is too big",
            ProtocolError::CrossProtocol => "the request is HTTP",
        })
    }
}

impl std::error::Error for ProtocolError {}
