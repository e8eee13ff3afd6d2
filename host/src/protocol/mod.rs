//! The wire protocols: bytes to commands, replies to bytes.
//!
//! `command` has the types that all doors share; each other file is one protocol. None of them
//! knows a socket, the engine or the middleware.

pub mod command;
pub mod json;
pub mod resp;
pub mod websocket;
