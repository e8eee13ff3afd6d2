//! Redis' protocol, RESP2 and RESP3, as bytes in and bytes out.
//!
//! A [`RequestParser`] parses received bytes into a [`Burst`] of requests, [`commands::lookup`]
//! finds the command of each of them or the error that Redis would reply, and a [`ReplyWriter`]
//! writes replies. This module reads no socket, never waits, and does not know sessions: sessions
//! execute the commands. The error texts and the order of checks are those of Redis 7.4.

mod arguments;
mod inline;
mod integer;
mod limits;
mod protocol_error;
mod queue;
mod request;
mod script;

pub mod command_info;
mod command_table;
pub mod commands;
pub mod errors;
pub mod help;
mod keyless_table;
mod stream_table;
pub mod streams;

mod frames;
mod reply;

pub mod fuzzing;

pub use arguments::{Arguments, Burst};
pub use frames::{Ack, FRAME_BYTES_MAX};
pub use integer::parse_integer;
pub use limits::{Authentication, RequestLimits};
pub use protocol_error::ProtocolError;
pub use queue::RequestQueue;
pub use reply::{ReplyWriter, RespVersion};
pub use request::{Outcome, RequestParser};
pub use script::Script;
