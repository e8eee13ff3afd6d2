//! Conversations with a server, as text files: what clients send and what they must receive.
//! docs/plugins/testing.md describes the format.
//!
//! A file is parsed completely before it is played, so that syntax errors are found before
//! anything is sent. This module knows no server: the caller passes the function that opens a
//! client's connection. `switchyard plugin test` uses a server without listeners, and the
//! server's own tests use one behind real sockets.

pub mod client;
pub mod notation;
pub mod pattern;
pub mod stage;
