//! What clients ask for and what they are answered.
//!
//! The types that all other crates of the server share. They know no bytes of a protocol, no
//! socket, no engine and no plugin. Read `command` first: the commands, their replies and why one is
//! refused. `close` is the catalogue of reasons to close a connection, `bound` names the bounds on
//! memory, `batch` is a list that is most often of one item,
//! `keyed_hash` hashes what clients choose, `position` is a place in a channel's history, and
//! `history`, `presence` and, for Redis clients, `stream` are what clients ask of them.

pub mod batch;
pub mod bound;
pub mod close;
pub mod command;
pub mod history;
pub mod ids;
pub mod keyed_hash;
pub mod position;
pub mod presence;
pub mod stream;
