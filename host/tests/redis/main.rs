//! Black-box tests of the door for Redis clients: the real binary, real sockets,
//! real clients, and a real Redis to compare with.
//!
//! Nothing here knows how the server is made. Each test starts a server of its
//! own on a free port and may run beside any other. No test sleeps: it waits for
//! what must come, with a deadline that only a broken server meets.

use switchyard_test_support::{self as support, client, notation, value};

mod redis_server;

mod conversation;
mod differences;
mod differential;
mod documented;
mod killing;

mod applications;
mod clients;
mod redis_rs;
mod tools;

mod speaker;

mod scenario;

mod cross_door;
mod memory;
mod order;
mod streams;
mod transactions;
