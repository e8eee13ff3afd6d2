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
pub mod limits;
mod session;

mod admin;
mod health;
mod metrics;

pub mod hub;
mod memory_usage;

pub mod backplane;

pub mod engine;
mod engine_swap;
pub mod middleware;
pub use switchyard_wasm as wasm;
mod watch;

pub mod terminal;
