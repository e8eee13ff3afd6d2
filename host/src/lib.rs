//! The server: connections, protocols, plugins and delivery.
//!
//! The `mod` lines are in the order in which a message passes them, from the publisher's socket to
//! the subscribers' sockets. `ARCHITECTURE.md` has the map.

pub mod run;

pub mod reload;

mod watch;
