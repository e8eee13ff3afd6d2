//! Publishers on all nodes, and clients that come back on any node and resume, while the backplane
//! fails.

#![expect(clippy::indexing_slicing, reason = "what is not there fails the test")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::backplane::{Backplane, Kind};
use crate::history::{LARGE, nodes, start};
use crate::nodes::Node;
use crate::support::race::{Race, Servers, Size};
use crate::support::server::Server;

/// How long clients come and go.
const TIME: Duration = Duration::from_secs(4);

struct Nodes([Node; 3]);

impl Servers for Nodes {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn server(&self, number: usize) -> &Server {
        &self.0[number].server
    }
}

/// `disturb` is called again and again in the meantime. `cluster` are further lines of the table
/// `[cluster]`. Returns how many messages the nodes missed and read later.
async fn race(
    kind: Kind,
    cluster: &str,
    time: Duration,
    disturb: impl AsyncFn(&Backplane) -> Result<()>,
) -> Result<u64> {
    let backplane = start(kind).await?;
    let nodes = Arc::new(Nodes(nodes(&backplane, &format!("{cluster}{LARGE}")).await?));
    let size = Size { clients: 12, channels: 3, time }.from_environment()?;
    let race = Race::start(&nodes, "chat.", size).await?;
    let began = Instant::now();
    while began.elapsed() < size.time {
        disturb(&backplane).await?;
    }
    nodes.0[0].until_connected(true).await?;
    let (recovered, published) = race.end().await?;
    let mut caught_up = 0;
    for node in &nodes.0 {
        caught_up += node.info("backplane_caught_up").await?.parse::<u64>()?;
    }
    println!(
        "{recovered} RESUMEs recovered, {published} messages were published, {caught_up} read later"
    );
    Ok(caught_up)
}

async fn clients_that_come_back_on_any_node_lose_nothing(kind: Kind) -> Result<()> {
    race(kind, "", TIME, async |_| {
        tokio::task::yield_now().await;
        Ok(())
    })
    .await
    .map(drop)
}

over_redis_and_nats!(clients_that_come_back_on_any_node_lose_nothing);

/// The nodes lose their connections again and again. What they missed is read and delivered before
/// anything newer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_lose_redis_for_a_moment_lose_no_message() -> Result<()> {
    let caught_up = race(Kind::Redis, "", TIME, async |backplane| {
        backplane.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]).await?;
        // Long enough for the nodes to come back.
        tokio::time::sleep(Duration::from_millis(700)).await;
        Ok(())
    })
    .await?;
    ensure!(caught_up > 0, "no message was missed");
    Ok(())
}

/// A Redis that stands still for longer than the nodes wait for it. What it is asked in the meantime
/// it does later, or not at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_stands_still_loses_no_message() -> Result<()> {
    race(Kind::Redis, "", Duration::from_secs(12), async |backplane| {
        tokio::time::sleep(Duration::from_secs(1)).await;
        backplane.stand_still().await?;
        tokio::time::sleep(Duration::from_secs(7)).await;
        backplane.go_on()?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok(())
    })
    .await
    .map(drop)
}

/// NATS stands still for longer than the nodes wait, again and again. What they missed is read and
/// delivered before anything newer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_lose_nats_for_a_moment_lose_no_message() -> Result<()> {
    let cluster = "answer_timeout_ms = 200\nping_interval_ms = 100\n";
    race(Kind::Nats, cluster, TIME, async |backplane| {
        backplane.stand_still().await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        backplane.go_on()?;
        // Long enough for the nodes to come back.
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        Ok(())
    })
    .await
    .map(drop)
}
