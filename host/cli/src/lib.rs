//! The command line of `switchyard`.
//!
//! `cli` declares the commands. `operator` and `terminal` are clients of a running server: of its
//! admin API, and of its WebSocket. `authors` makes, checks and tests plugins, with a server in
//! memory. `channels` explains the channel rules of a config file. Read `cli` first.

pub mod authors;
pub mod channels;
pub mod cli;
pub mod operator;
pub mod terminal;
pub mod tls;
