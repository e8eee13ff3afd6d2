//! Conversations with a server, as text files: what clients say and what must come.
//! docs/plugins/testing.md explains how they are written.
//!
//! Read first and played afterwards, so that what makes no sense is found before
//! anything is said. This knows no server: whoever plays a conversation says how
//! clients reach theirs. `switchyard plugin test` plays on one without listeners, and
//! the server's own tests on one behind real sockets.

pub mod client;
pub mod notation;
pub mod pattern;
pub mod stage;
