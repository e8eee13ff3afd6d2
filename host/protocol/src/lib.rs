//! The wire protocols: bytes to commands, replies to bytes.
//!
//! Each module is one protocol: `resp` is that of Redis, `json` that of browsers, and `websocket`
//! frames both. They know no socket, no engine and no plugin: they are given bytes and append
//! bytes. Read `json` first; it is the shortest that has all parts. `fuzzing` holds the checks that
//! `host/tests/fuzz` runs with random input.

pub mod fuzzing;
pub mod json;
pub mod resp;
pub mod websocket;
