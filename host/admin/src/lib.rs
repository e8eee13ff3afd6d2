//! What operators see of a running server, and change in it.
//!
//! `admin` is the HTTP API with its console, `metrics` the page for Prometheus. Both read the
//! services of the server crate; nothing there knows this crate. Read `admin` first.

pub mod admin;
pub mod metrics;
