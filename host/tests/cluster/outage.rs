//! The backplane disconnects, is slow, and comes back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::backplane::{Backplane, Kind};
use crate::listener::{Listener, payload};
use crate::nodes::{Node, Options};
use crate::support::{PATIENCE, within};
use crate::value::Value;

/// How long the outage lasts.
const OUTAGE: Duration = Duration::from_secs(5);

async fn outage(kind: Kind) -> Result<()> {
    let mut backplane = Backplane::start(kind).await?;
    let [a, b, _c] = Node::three(&backplane).await?;
    let mut here = Listener::start(a.client().await?, &["news"], &["n*"]).await?;
    let mut there = Listener::start(b.client().await?, &["news"], &["n*"]).await?;
    let mut publisher = a.client().await?;
    let mut number = 0;
    let mut publish = async |count: u64| {
        for _ in 0..count {
            number += 1;
            let reply = publisher.call(&["PUBLISH", "news", &payload("a", number)]).await?;
            // What this node delivered, wherever the backplane is.
            ensure!(reply == Value::Integer(2), "{reply}");
        }
        anyhow::Ok(number)
    };
    publish(100).await?;
    here.expect(200).await?;
    there.expect(200).await?;

    let began = Instant::now();
    backplane.kill();
    // Publish before any node has detected the failure, and again when all have.
    publish(50).await?;
    a.until_connected(false).await?;
    b.until_connected(false).await?;
    let undelivered = publish(50).await?;
    ensure!(a.info("backplane_state").await? == "away", "it does not say so");
    ensure!(a.info("backplane_unsent_away").await?.parse::<u64>()? >= 50, "not all are counted");
    here.expect(200).await?;
    there.nothing_more().await?;
    // A subscription made during the outage is local at first, and cluster-wide afterwards.
    let mut late = Listener::start(b.client().await?, &["news"], &[]).await?;
    tokio::time::sleep(OUTAGE.saturating_sub(began.elapsed())).await;
    backplane.come_back().await?;
    a.until_connected(true).await?;
    b.until_connected(true).await?;

    let last = publish(100).await?;
    let last = payload("a", last);
    here.expect(200).await?;
    there.until("n*", &last).await?;
    late.until("news", &last).await?;
    for listener in [&mut here, &mut there, &mut late] {
        listener.nothing_more().await?;
    }
    // Publications on the backplane reach clients that subscribed during the outage.
    backplane.publisher().await?.publish(&[("news", payload("foreign", 1))]).await?;
    here.expect(2).await?;
    late.expect(1).await?;
    let log = a.server.wait_for_log("the backplane is back").await?;
    let unsent = number_in(&log, "unsent=")?;
    let uncertain = number_in(&log, "uncertain=")?;
    // What is uncertain may have been under way before, and have arrived.
    ensure!(
        (50..=undelivered - 100).contains(&unsent) && unsent + uncertain <= undelivered,
        "{log}"
    );
    ensure!(a.info("backplane_state").await? == "ready", "it does not say so");
    ensure!(a.info("backplane_reconnects").await? == "1", "it came back once");
    println!("{kind:?}: {log}");
    for node in [a, b] {
        node.stop().await?;
    }
    Ok(())
}

fn number_in(line: &str, field: &str) -> Result<u64> {
    let (_, rest) = line.split_once(field).with_context(|| format!("no {field} in {line}"))?;
    Ok(rest.split(|digit: char| !digit.is_ascii_digit()).next().unwrap_or_default().parse()?)
}

#[tokio::test]
async fn redis_is_down_for_five_seconds() -> Result<()> {
    outage(Kind::Redis).await
}

#[tokio::test]
async fn nats_is_down_for_five_seconds() -> Result<()> {
    outage(Kind::Nats).await
}

async fn refusals(kind: Kind) -> Result<()> {
    let mut backplane = Backplane::start(kind).await?;
    let options = Options { config: "when_away = \"refuse\"\n".to_owned(), ..Options::default() };
    let node = Node::start(&backplane, &options).await?;
    let mut listener = Listener::start(node.client().await?, &["news"], &[]).await?;
    backplane.kill();
    node.until_connected(false).await?;
    let refused = node.publish("news", &payload("a", 1)).await?;
    ensure!(
        matches!(&refused, Value::Error(text) if text.starts_with(b"UNAVAILABLE")),
        "{refused}"
    );
    let mut browser = node.server.client().await?;
    let refused = browser.call(serde_json::json!(["PUBLISH", "news", "a 1"])).await?;
    ensure!(refused.pointer("/1/code") == Some(&"UNAVAILABLE".into()), "{refused}");
    listener.nothing_more().await?;
    backplane.come_back().await?;
    node.until_connected(true).await?;
    ensure!(node.publish("news", &payload("a", 1)).await? == Value::Integer(1));
    listener.expect(1).await
}

#[tokio::test]
async fn publications_are_refused_without_redis_where_the_config_says_so() -> Result<()> {
    refusals(Kind::Redis).await
}

#[tokio::test]
async fn publications_are_refused_without_nats_where_the_config_says_so() -> Result<()> {
    refusals(Kind::Nats).await
}

/// The backplane stops responding for a while, and no connection to it is closed.
async fn slowness(kind: Kind) -> Result<()> {
    let backplane = Backplane::start(kind).await?;
    let [a, b, _c] = Node::three(&backplane).await?;
    let mut here = Listener::start(a.client().await?, &["news"], &[]).await?;
    let mut there = Listener::start(b.client().await?, &[], &["n*"]).await?;
    let mut publisher = a.client().await?;
    backplane.stand_still().await?;
    let began = Instant::now();
    for number in 1..=300 {
        let reply = publisher.call(&["PUBLISH", "news", &payload("a", number)]).await?;
        ensure!(reply == Value::Integer(1), "{reply}");
    }
    // Delivery on this node does not wait for it.
    here.expect(300).await?;
    there.nothing_more().await?;
    tokio::time::sleep(Duration::from_secs(1).saturating_sub(began.elapsed())).await;
    ensure!(a.is_connected().await?, "a second is no outage");
    backplane.go_on()?;
    there.expect(300).await?;
    there.nothing_more().await
}

#[tokio::test]
async fn a_slow_redis_loses_nothing() -> Result<()> {
    slowness(Kind::Redis).await
}

#[tokio::test]
async fn a_slow_nats_loses_nothing() -> Result<()> {
    slowness(Kind::Nats).await
}

/// It takes nothing and says nothing: the limits hold, and the answers are honest.
async fn standstill(kind: Kind) -> Result<()> {
    let backplane = Backplane::start(kind).await?;
    let config = "when_away = \"refuse\"\noutgoing_messages_max = 10\nanswer_timeout_ms = 1500\n";
    let node =
        Node::start(&backplane, &Options { config: config.to_owned(), ..Options::default() })
            .await?;
    let mut listener = Listener::start(node.client().await?, &["news"], &[]).await?;
    backplane.stand_still().await?;
    let mut publisher = node.client().await?;
    let mut accepted = 0;
    for number in 1..=20 {
        match publisher.call(&["PUBLISH", "news", &payload("a", number)]).await? {
            Value::Integer(1) => accepted += 1,
            Value::Error(text) if text.starts_with(b"UNAVAILABLE") => {}
            other => anyhow::bail!("{other}"),
        }
    }
    ensure!(accepted == 10, "{accepted} had room");
    listener.expect(10).await?;
    listener.nothing_more().await?;
    // A backplane that sends nothing for too long counts as disconnected.
    node.until_connected(false).await?;
    backplane.go_on()?;
    node.until_connected(true).await?;
    // What it did take was delivered here already, and is not again.
    listener.nothing_more().await
}

#[tokio::test]
async fn a_stopped_redis_counts_as_disconnected() -> Result<()> {
    standstill(Kind::Redis).await
}

#[tokio::test]
async fn a_stopped_nats_counts_as_disconnected() -> Result<()> {
    standstill(Kind::Nats).await
}

/// All names are listened to again before the node says that it is ready.
async fn ten_thousand_names(kind: Kind) -> Result<()> {
    const NAMES: usize = 10_000;
    let mut backplane = Backplane::start(kind).await?;
    let [a, b, _c] = Node::three(&backplane).await?;
    let names: Vec<String> = (0..NAMES).map(|number| format!("c.{number}")).collect();
    let mut listener = a.client().await?;
    let began = Instant::now();
    let words: Vec<&str> =
        ["SUBSCRIBE"].into_iter().chain(names.iter().map(String::as_str)).collect();
    listener.command(&words).await?;
    listener.next_many(NAMES).await?;
    let subscribed = began.elapsed();
    backplane.kill();
    a.until_connected(false).await?;
    backplane.come_back().await?;
    let began = Instant::now();
    a.until_connected(true).await?;
    let ready = began.elapsed();
    b.until_connected(true).await?;
    let log = a.server.wait_for_log("the backplane is back").await?;
    let restored = number_in(&log, "restore_ms=")?;
    println!(
        "{kind:?}: {NAMES} names: {} ms to subscribe to, {restored} ms to restore; ready {} ms \
         after the backplane",
        subscribed.as_millis(),
        ready.as_millis()
    );
    ensure!(number_in(&log, "names=")? == NAMES as u64, "{log}");
    let mut publisher = b.client().await?;
    for names in names.chunks(1_000) {
        let mut bytes = Vec::new();
        for name in names {
            bytes.extend(crate::value::command(&["PUBLISH", name, "1"]));
        }
        publisher.send(&bytes).await?;
        publisher.next_many(names.len()).await?;
    }
    let mut came: Vec<String> = Vec::new();
    for message in within(PATIENCE, "all messages", listener.next_many(NAMES)).await?? {
        came.push(String::from_utf8_lossy(message.channel()?).into_owned());
    }
    came.sort_unstable();
    let mut expected = names;
    expected.sort_unstable();
    ensure!(came == expected, "not each name had its message");
    listener.nothing(1).await
}

#[tokio::test]
async fn ten_thousand_names_are_restored_on_redis() -> Result<()> {
    ten_thousand_names(Kind::Redis).await
}

#[tokio::test]
async fn ten_thousand_names_are_restored_on_nats() -> Result<()> {
    ten_thousand_names(Kind::Nats).await
}
