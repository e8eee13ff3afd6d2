//! Redis' protocol, RESP2 and RESP3, as bytes in and bytes out.
//!
//! A [`RequestParser`] turns what a connection sent into a [`Burst`] of
//! requests, [`commands::lookup`] says which command each of them is or how
//! Redis would refuse it, and a [`ReplyWriter`] writes what goes back. Nothing
//! here reads a socket, waits, or knows of sessions: what the commands do is
//! theirs. The words and the order of checks are those of Redis 7.4.

mod arguments;
mod inline;
mod integer;
mod limits;
mod protocol_error;
mod request;

pub mod command_info;
mod command_table;
pub mod commands;
pub mod errors;
pub mod help;

mod frames;
mod reply;

pub mod fuzzing;

pub use arguments::{Arguments, Burst};
pub use frames::{Ack, FRAME_BYTES_MAX};
pub use integer::parse_integer;
pub use limits::{Authentication, RequestLimits};
pub use protocol_error::ProtocolError;
pub use reply::{ReplyWriter, RespVersion};
pub use request::{Outcome, RequestParser};
