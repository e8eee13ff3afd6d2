//! The server: it holds the connections and moves the bytes.
//!
//! Read in the order of the `mod` lines to follow a message from the socket to
//! the sockets of those who listen. `ARCHITECTURE.md` has the map.

pub mod cli;
pub mod config;
pub mod server;

mod close;
mod entrance;
mod handshake;

mod connection;
mod door;
mod protocol;
mod session;
mod stats;

pub mod hub;
mod outbox;

pub mod engine;
pub mod middleware;
pub use switchyard_wasm as wasm;
mod watch;

pub mod terminal;
