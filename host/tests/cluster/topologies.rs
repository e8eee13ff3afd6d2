//! A Redis Cluster, and a master that Sentinels watch.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::backplane::{Backplane, Kind, free_port};
use crate::listener::{Listener, payload};
use crate::nodes::{Node, Options};
use crate::support::process::{Pipe, Process};
use crate::support::{PATIENCE, within};
use crate::value::{Value, ack, message};

/// Three masters that share the slots.
pub async fn cluster() -> Result<[Backplane; 3]> {
    let start = async || {
        // The bus has a port of its own; by default it could be beyond the last.
        let bus = free_port()?.to_string();
        let extra = ["--cluster-enabled", "yes", "--cluster-port", &bus];
        Backplane::start_with(Kind::Redis, &extra).await
    };
    let nodes = [start().await?, start().await?, start().await?];
    let addresses = nodes.each_ref().map(|node| node.address.to_string());
    let mut command = Command::new("redis-cli");
    command.args(["--cluster", "create"]).args(&addresses).arg("--cluster-yes");
    let creating = Process::start("redis-cli", &mut command)?;
    creating.line_with(Pipe::Stdout, "All 16384 slots covered").await?;
    until_whole(&nodes).await?;
    Ok(nodes)
}

/// Waits until each of them says that the cluster is whole.
async fn until_whole(nodes: &[Backplane]) -> Result<()> {
    for node in nodes {
        within(PATIENCE, "the cluster", async {
            loop {
                if let Value::Bulk(text) = node.ask(&["CLUSTER", "INFO"]).await?
                    && String::from_utf8_lossy(&text).contains("cluster_state:ok")
                {
                    return anyhow::Ok(());
                }
                tokio::task::yield_now().await;
            }
        })
        .await??;
    }
    Ok(())
}

#[tokio::test]
async fn a_redis_cluster_is_one_backplane() -> Result<()> {
    let mut cluster = cluster().await?;
    let hosts = cluster.each_ref().map(|node| node.address.to_string()).join(",");
    let url = format!("redis://{hosts}");
    let options = Options::default();
    // Enough that they do not all meet the same node of the cluster.
    let mut nodes = Vec::new();
    for _ in 0..4 {
        nodes.push(Node::start_with_url(&url, &options).await?);
    }
    let mut listeners = Vec::new();
    for node in &nodes {
        let listener = Listener::start(node.client().await?, &["news"], &["n*", "*"]).await?;
        let mut sharded = node.client().await?;
        for name in ["s1", "s2", "s3", "s4", "s5", "s6"] {
            sharded.call(&["SSUBSCRIBE", name]).await?;
        }
        listeners.push((listener, sharded));
    }
    for number in 1..=100 {
        for (place, node) in nodes.iter().enumerate() {
            let reply = node.publish("news", &payload(&format!("node{place}"), number)).await?;
            ensure!(reply == Value::Integer(3), "{reply}");
        }
        // Three programs, each with a node of the cluster that it stays with.
        for (place, redis) in cluster.iter().enumerate() {
            let payload = payload(&format!("foreign{place}"), number);
            redis.publisher().await?.publish(&[("news", payload)]).await?;
        }
    }
    for name in ["s1", "s2", "s3", "s4", "s5", "s6"] {
        for node in &nodes {
            let reply = node.client().await?.call(&["SPUBLISH", name, name]).await?;
            ensure!(reply == Value::Integer(1), "{reply}");
        }
    }
    for (listener, sharded) in &mut listeners {
        listener.expect(7 * 100 * 3).await?;
        listener.nothing_more().await?;
        let mut came: Vec<Value> = sharded.next_many(4 * 6).await?;
        came.sort_unstable();
        came.dedup();
        ensure!(came.len() == 6, "{came:?}");
        sharded.nothing(1).await?;
    }
    // A node of the cluster goes, and its slots with it, until it comes back.
    cluster[0].kill();
    for node in &nodes {
        node.until_connected(false).await?;
    }
    cluster[0].come_back().await?;
    // Until it has found the others, what is published does not get from one to another.
    until_whole(&cluster).await?;
    for node in &nodes {
        node.until_connected(true).await?;
    }
    for (listener, sharded) in &mut listeners {
        listener.nothing_more().await?;
        sharded.nothing(2).await?;
    }
    nodes[0].publish("news", &payload("again", 1)).await?;
    nodes[0].client().await?.call(&["SPUBLISH", "s1", "again"]).await?;
    for (listener, sharded) in &mut listeners {
        listener.expect(3).await?;
        ensure!(sharded.next().await? == message("smessage", &[b"s1", b"again"]));
        sharded.nothing(3).await?;
    }
    Ok(())
}

#[tokio::test]
async fn nodes_follow_the_master_that_sentinels_know() -> Result<()> {
    let mut first = Backplane::start(Kind::Redis).await?;
    let port = first.address.port().to_string();
    let second = Backplane::start_with(Kind::Redis, &["--replicaof", "127.0.0.1", &port]).await?;
    within(PATIENCE, "the replica", async {
        loop {
            if let Value::Bulk(text) = second.ask(&["INFO", "replication"]).await?
                && String::from_utf8_lossy(&text).contains("master_link_status:up")
            {
                return anyhow::Ok(());
            }
            tokio::task::yield_now().await;
        }
    })
    .await??;
    let home = tempfile::tempdir()?;
    let sentinel = free_port()?;
    let file = home.path().join("sentinel.conf");
    let config = format!(
        "port {sentinel}\nbind 127.0.0.1\ndir {}\n\
         sentinel monitor main 127.0.0.1 {port} 1\n\
         sentinel down-after-milliseconds main 300\n\
         sentinel failover-timeout main 2000\n",
        home.path().display()
    );
    std::fs::write(&file, config)?;
    let mut command = Command::new("redis-server");
    command.arg(&file).arg("--sentinel");
    let watching = Process::start("redis-sentinel", &mut command)?;
    watching.line_with(Pipe::Stdout, "+monitor master").await?;
    watching.line_with(Pipe::Stdout, "+slave slave").await?;

    let url = format!("redis+sentinel://127.0.0.1:{sentinel}/main");
    let options = Options::default();
    let (one, two) = tokio::try_join!(
        Node::start_with_url(&url, &options),
        Node::start_with_url(&url, &options),
    )?;
    let mut client = one.client().await?;
    ensure!(client.call(&["SUBSCRIBE", "news"]).await? == ack("subscribe", "news", 1));
    two.publish("news", "before").await?;
    ensure!(client.next().await? == message("message", &[b"news", b"before"]));
    first.kill();
    one.until_connected(false).await?;
    watching.line_with(Pipe::Stdout, "+switch-master").await?;
    for node in [&one, &two] {
        node.until_connected(true).await.context("after the failover")?;
    }
    two.publish("news", "after").await?;
    ensure!(client.next().await? == message("message", &[b"news", b"after"]));
    client.nothing(1).await
}
