//! Black-box tests: the real binary and real sockets, checked against docs/protocol.md.
//!
//! The tests know nothing of the server's internals. Each test starts a server of its own on a free
//! port and may run beside any other. No test sleeps: it waits for what must happen, with a
//! deadline that only a broken server misses.

use switchyard_test_support as support;

mod tokens;
mod transcript;

mod cookbook;
mod plugin_costs;

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
mod lifecycle;
mod node_host;
mod order;
mod plugin_test;
mod projects;
mod security;
mod shipped_guards;
mod tls;
mod visibility;

mod drain;
mod reload;

mod containment;
mod declared;
mod descriptors;
mod engine_faults;
mod engine_swap;
mod guard_files;
mod handover;
mod log_loss;
mod memory_bound;
mod names_total;
mod one_client;
mod one_command;
mod outside;
mod pattern_bombs;
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
