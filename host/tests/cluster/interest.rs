//! A node listens to what its connections listen to, and to nothing else.

use anyhow::{Result, ensure};

use crate::backplane::{Backplane, Kind};
use crate::nodes::{Node, Options};
use crate::support::{PATIENCE, within};
use crate::value::{Value, ack};

/// The channels that a Redis has listeners for, but for the nodes' own.
async fn channels(redis: &Backplane) -> Result<Vec<String>> {
    let Value::Aggregate(_, names) = redis.ask(&["PUBSUB", "CHANNELS"]).await? else {
        anyhow::bail!("no names")
    };
    let mut channels: Vec<String> = names
        .iter()
        .filter_map(|name| match name {
            Value::Bulk(name) => Some(String::from_utf8_lossy(name).into_owned()),
            _ => None,
        })
        .filter(|name| !name.starts_with("__switchyard:"))
        .collect();
    channels.sort_unstable();
    Ok(channels)
}

pub async fn until_channels(redis: &Backplane, expected: &[&str]) -> Result<()> {
    within(PATIENCE, format!("{expected:?} on the backplane"), async {
        while channels(redis).await? != expected {
            tokio::task::yield_now().await;
        }
        Ok(())
    })
    .await?
}

/// How often a command was carried out.
async fn calls(redis: &Backplane, command: &str) -> Result<String> {
    let Value::Bulk(text) = redis.ask(&["INFO", "commandstats"]).await? else {
        anyhow::bail!("no statistics")
    };
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = text.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:")));
    Ok(line.and_then(|line| line.split(',').next()).unwrap_or_default().to_owned())
}

#[tokio::test]
async fn names_are_subscribed_to_as_long_as_there_is_a_local_subscriber() -> Result<()> {
    let redis = Backplane::start(Kind::Redis).await?;
    let options = Options { config: "leave_delay_ms = 50\n".to_owned(), ..Options::default() };
    let node = Node::start(&redis, &options).await?;
    let (mut one, mut two) = (node.client().await?, node.client().await?);
    ensure!(one.call(&["SUBSCRIBE", "a"]).await? == ack("subscribe", "a", 1));
    ensure!(two.call(&["SUBSCRIBE", "a"]).await? == ack("subscribe", "a", 1));
    ensure!(two.call(&["SUBSCRIBE", "b"]).await? == ack("subscribe", "b", 2));
    // The acknowledgement says that it is so everywhere.
    ensure!(channels(&redis).await? == ["a", "b"]);
    ensure!(two.call(&["PSUBSCRIBE", "c*"]).await? == ack("psubscribe", "c*", 3));
    ensure!(redis.ask(&["PUBSUB", "NUMPAT"]).await? == Value::Integer(1));
    ensure!(one.call(&["UNSUBSCRIBE", "a"]).await? == ack("unsubscribe", "a", 0));
    ensure!(two.call(&["UNSUBSCRIBE", "b"]).await? == ack("unsubscribe", "b", 2));
    until_channels(&redis, &["a"]).await?;
    // Also when its connection breaks.
    two.reset()?;
    until_channels(&redis, &[]).await?;
    within(PATIENCE, "the end of the pattern", async {
        while redis.ask(&["PUBSUB", "NUMPAT"]).await? != Value::Integer(0) {
            tokio::task::yield_now().await;
        }
        Ok(())
    })
    .await?
}

#[tokio::test]
async fn flapping_costs_nothing() -> Result<()> {
    let redis = Backplane::start(Kind::Redis).await?;
    let options = Options { config: "leave_delay_ms = 60000\n".to_owned(), ..Options::default() };
    let node = Node::start(&redis, &options).await?;
    let mut client = node.client().await?;
    ensure!(client.call(&["SUBSCRIBE", "a"]).await? == ack("subscribe", "a", 1));
    let before = (calls(&redis, "subscribe").await?, calls(&redis, "unsubscribe").await?);
    for _ in 0..200 {
        ensure!(client.call(&["UNSUBSCRIBE", "a"]).await? == ack("unsubscribe", "a", 0));
        ensure!(client.call(&["SUBSCRIBE", "a"]).await? == ack("subscribe", "a", 1));
    }
    let after = (calls(&redis, "subscribe").await?, calls(&redis, "unsubscribe").await?);
    ensure!(before == after, "{before:?} became {after:?}");
    Ok(())
}

/// What nodes say among themselves is no client's business.
#[tokio::test]
async fn the_names_of_the_nodes_stay_their_own() -> Result<()> {
    let redis = Backplane::start(Kind::Redis).await?;
    let options = Options { config: "leave_delay_ms = 1\n".to_owned(), ..Options::default() };
    let node = Node::start(&redis, &options).await?;
    let mut client = node.client().await?;
    let name = "__switchyard:all";
    ensure!(client.call(&["SUBSCRIBE", name]).await? == ack("subscribe", name, 1));
    ensure!(node.publish(name, "x").await? == Value::Integer(1));
    ensure!(client.next().await?.payload()? == b"x");
    ensure!(client.call(&["UNSUBSCRIBE", name]).await? == ack("unsubscribe", name, 0));
    client.call(&["SUBSCRIBE", "another"]).await?;
    until_channels(&redis, &["another"]).await?;
    let listening = redis.ask(&["PUBSUB", "NUMSUB", name]).await?;
    ensure!(listening.to_string().ends_with("1]"), "the node listens no more: {listening}");
    Ok(())
}

#[tokio::test]
async fn a_prefix_keeps_two_clusters_apart() -> Result<()> {
    for kind in [Kind::Redis, Kind::Nats] {
        let backplane = Backplane::start(kind).await?;
        let with_prefix = |prefix: &str| Options {
            config: format!("prefix = \"{prefix}\"\n"),
            ..Options::default()
        };
        let one = [
            Node::start(&backplane, &with_prefix("one")).await?,
            Node::start(&backplane, &with_prefix("one")).await?,
        ];
        let two = Node::start(&backplane, &with_prefix("two")).await?;
        let mut clients = Vec::new();
        for node in [&one[0], &one[1], &two] {
            let mut client = node.client().await?;
            client.call(&["SUBSCRIBE", "a"]).await?;
            client.call(&["PSUBSCRIBE", "*"]).await?;
            clients.push(client);
        }
        one[0].publish("a", "x").await?;
        for client in clients.iter_mut().take(2) {
            client.next_many(2).await?;
        }
        for client in &mut clients {
            client.nothing(1).await?;
        }
    }
    Ok(())
}
