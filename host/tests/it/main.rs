//! Black-box tests: the real binary and real sockets, checked against docs/protocol.md.
//!
//! The tests know nothing of the server's internals. Each test starts a server of its own on a free
//! port and may run beside any other. No test sleeps: it waits for what must happen, with a
//! deadline that only a broken server misses.

use switchyard_test_support::{self as support, answers};

mod tokens;
mod transcript;

mod cookbook;
mod plugin_costs;
mod start_time;

mod auth_flood;
mod authors;
mod before_auth;
mod clients;
mod compile_cache;
mod expiry;
mod guide;
mod handshakes;
mod hostile;
mod languages;
mod last_words;
mod lifecycle;
mod listeners;
mod node_host;
mod order;
mod plugin_test;
mod projects;
mod proxies;
mod security;
mod shared_scripts;
mod shipped_guards;
mod tls;
mod users;
mod visibility;

mod changed_files;
mod channel_rules;
mod compiling;
mod reload;

mod containment;
mod declared;
mod descriptors;
mod engine_faults;
mod engine_swap;
mod guard_files;
mod handover;
mod history;
mod history_store;
mod log_loss;
mod memory_bound;
mod names_total;
mod one_client;
mod one_command;
mod outside;
mod pattern_bombs;
mod presence;
mod recheck;
mod returned;
mod slow_consumer;
mod swap;
mod swap_under_load;
mod traps;
mod webhook_auth;

mod admin;
mod admin_places;
mod monitoring;

mod terminal;
