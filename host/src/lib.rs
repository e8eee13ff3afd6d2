//! The server: connections, protocols, plugins and delivery.
//!
//! The `mod` lines are in the order in which a message passes them, from the publisher's socket to
//! the subscribers' sockets. `ARCHITECTURE.md` has the map.

pub mod authors;
pub mod cli;
pub mod operator;
pub mod server;

mod drain;
pub mod recheck;
pub mod reload;

mod auth_attempts;
pub mod compile_cache;
mod handshake;
mod listener;
mod live_config;

mod connection;
mod door;
mod session;

mod admin;
mod health;
mod metrics;

mod memory_usage;

mod engine_swap;
mod watch;

pub mod terminal;
