//! Black-box tests of several nodes as one: real binaries, a real Redis or NATS
//! between them, clients on each, and programs that publish there directly.
//!
//! Nothing here knows how the server is made. Each test starts its own nodes and
//! its own backplane on free ports and may run beside any other. No test sleeps,
//! but where an outage lasts as long as it is said to last.

use switchyard_test_support::{self as support, answers, client, value};

/// The tests of a function that takes a kind of backplane.
macro_rules! over_redis_and_nats {
    ($name:ident) => {
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn over_redis() -> anyhow::Result<()> {
                super::$name(crate::backplane::Kind::Redis).await
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn over_nats() -> anyhow::Result<()> {
                super::$name(crate::backplane::Kind::Nats).await
            }
        }
    };
}

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
mod races;
mod rights;
mod rule_changes;
mod secrets;
mod streams;
mod topologies;
mod traffic;
