//! Black-box tests of several nodes as one: real binaries, a real Redis or NATS
//! between them, clients on each, and programs that publish there directly.
//!
//! Nothing here knows how the server is made. Each test starts its own nodes and
//! its own backplane on free ports and may run beside any other. No test sleeps,
//! but where an outage lasts as long as it is said to last.

use switchyard_test_support::{self as support, answers, client, value};

mod backplane;
mod listener;
mod nodes;

mod ask;
mod cost;
mod flooding;
mod history;
mod interest;
mod jetstream;
mod outage;
mod plugins;
mod presence;
mod rights;
mod secrets;
mod topologies;
mod traffic;
