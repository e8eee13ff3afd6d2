//! The process `switchyard serve`: what it starts, reloads, watches and ends.
//!
//! Everything else is a crate below `host/`; `ARCHITECTURE.md` has the map. Read `run` first.

mod free_memory;
mod listening;
mod reader;
pub mod reload;
pub mod run;
mod watch;
