//! Serves clients: from an accepted socket to the hub, and back.
//!
//! A `listener` accepts the connections of a `door`, the door performs the handshake of its protocol
//! and has the client admitted (`connection_setup`), a `connection` moves bytes between its socket
//! and the door's decoder, which decodes them into commands for a `session`. The session calls the
//! chain of plugins and publishes to the hub. `prepare` makes all of it from a configuration;
//! `upkeep` is what happens without a client. Nothing here knows the admin API or the command line.
//! Read `session` first, then `connection`, then a door.

pub mod auth_attempts;
pub mod compile_cache;
pub mod connection;
pub mod connection_setup;
pub mod decoder;
pub mod door;
pub mod drain;
pub mod engine_swap;
pub mod goaway;
pub mod health;
pub mod in_memory;
pub mod listener;
pub mod live_config;
pub mod memory_usage;
pub mod prepare;
pub mod recheck;
pub mod session;
pub mod upkeep;
