//! Black-box tests of what stands before a server: supervisors and balancers with their probes,
//! proxies, and how a node leaves them when it shuts down.
//!
//! nginx and HAProxy are Debian's. Each test starts its own servers and proxies on free ports and
//! may run beside any other. No test sleeps, but where a client waits for as long as it was asked
//! to.

use switchyard_test_support::{self as support, client, value};

#[allow(dead_code, reason = "its other parts are for host/tests/cluster")]
#[path = "../cluster/backplane.rs"]
mod backplane;
mod proxy;

mod drain;
mod haproxy;
mod nginx;
mod probes;
mod requests;
