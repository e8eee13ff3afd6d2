//! While all is up, no message is lost and none comes twice.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};

use crate::backplane::{Backplane, Kind};
use crate::client::RespClient;
use crate::listener::{Listener, payload};
use crate::nodes::Node;
use crate::value::{Shape, Value, ack, message};

/// How many each publisher publishes on each channel.
const MESSAGES: u64 = 500;

#[tokio::test]
async fn messages_reach_all_nodes_once_over_redis() -> Result<()> {
    all_reach_all(Kind::Redis).await
}

#[tokio::test]
async fn messages_reach_all_nodes_once_over_nats() -> Result<()> {
    all_reach_all(Kind::Nats).await
}

/// Publishes numbered messages on these channels, several in one burst.
async fn publish(mut client: RespClient, publisher: &str, channels: &[&str]) -> Result<()> {
    for first in (1..=MESSAGES).step_by(50) {
        let mut bytes = Vec::new();
        for number in first..(first + 50).min(MESSAGES + 1) {
            for channel in channels {
                let payload = payload(publisher, number);
                bytes.extend(crate::value::command(&["PUBLISH", channel, &payload]));
            }
        }
        client.send(&bytes).await?;
        for reply in client.next_many(50 * channels.len()).await? {
            ensure!(matches!(reply, Value::Integer(_)), "{reply}");
        }
    }
    Ok(())
}

async fn all_reach_all(kind: Kind) -> Result<()> {
    let backplane = Backplane::start(kind).await?;
    let nodes = Node::three(&backplane).await?;
    let channels = ["news.world", "news.sport"];
    // On each node: a channel; overlapping patterns; both at once.
    let mut listeners = Vec::new();
    for node in &nodes {
        let patterns = ["news.*", "*.world", "n*"];
        for (channels, patterns, copies) in [
            (&["news.world"][..], &[][..], 1),
            (&[], &patterns[..], 5),
            (&["news.world", "news.sport"], &["news.w*"], 3),
        ] {
            let listener = Listener::start(node.client().await?, channels, patterns).await?;
            listeners.push((listener, copies));
        }
    }
    let publishing = async {
        let [a, b, c] = &nodes;
        let mut foreign = backplane.publisher().await?;
        tokio::try_join!(
            publish(a.client().await?, "a", &channels),
            publish(b.client().await?, "b", &channels),
            publish(c.client().await?, "c", &channels),
            async {
                for number in 1..=MESSAGES {
                    let payload = payload("foreign", number);
                    let both = channels.map(|channel| (channel, payload.clone()));
                    foreign.publish(&both).await?;
                }
                Ok(())
            },
        )
    };
    publishing.await?;
    let count = 4 * MESSAGES as usize;
    for (listener, copies) in &mut listeners {
        listener.expect(*copies * count).await?;
    }
    for (listener, _) in &mut listeners {
        listener.nothing_more().await?;
    }
    for node in nodes {
        node.stop().await?;
    }
    Ok(())
}

/// Names come and go on a node while messages for others on it come.
async fn names_change_under_load(kind: Kind) -> Result<()> {
    let backplane = Backplane::start(kind).await?;
    let options =
        crate::nodes::Options { config: "leave_delay_ms = 1\n".to_owned(), ..Default::default() };
    let near = Node::start(&backplane, &options).await?;
    let far = Node::start(&backplane, &options).await?;
    // One that listens all the time, between names that were there before it and
    // names that come after it.
    let mut before = near.client().await?;
    for (verb, name) in [("SUBSCRIBE", "news.world"), ("PSUBSCRIBE", "*")] {
        before.call(&[verb, name]).await?;
    }
    let mut steady = Listener::start(near.client().await?, &[], &["news.*"]).await?;
    let mut fickle = near.client().await?;
    let publishing = async {
        let mut foreign = backplane.publisher().await?;
        tokio::try_join!(publish(far.client().await?, "far", &["news.world"]), async {
            for number in 1..=MESSAGES {
                foreign.publish(&[("news.world", payload("foreign", number))]).await?;
            }
            Ok(())
        })
    };
    let flapping = async {
        for round in 0..60 {
            match round {
                5 => before.command(&["UNSUBSCRIBE", "news.world"]).await?,
                10 => before.command(&["PUNSUBSCRIBE", "*"]).await?,
                _ => {}
            }
            let (name, on, off) = match round % 3 {
                0 => ("news.world", "SUBSCRIBE", "UNSUBSCRIBE"),
                1 => ("news.w*", "PSUBSCRIBE", "PUNSUBSCRIBE"),
                _ => ("*", "PSUBSCRIBE", "PUNSUBSCRIBE"),
            };
            for verb in [on, off] {
                fickle.command(&[verb, name]).await?;
                loop {
                    let said = fickle.next().await?;
                    if said == ack(&verb.to_lowercase(), name, i64::from(verb == on)) {
                        break;
                    }
                    ensure!(said.payload().is_ok(), "{said}");
                }
            }
        }
        anyhow::Ok(())
    };
    tokio::try_join!(publishing, flapping)?;
    steady.expect(2 * MESSAGES as usize).await?;
    steady.nothing_more().await?;
    near.stop().await?;
    far.stop().await
}

#[tokio::test]
async fn names_come_and_go_without_loss_over_redis() -> Result<()> {
    names_change_under_load(Kind::Redis).await
}

#[tokio::test]
async fn names_come_and_go_without_loss_over_nats() -> Result<()> {
    names_change_under_load(Kind::Nats).await
}

/// A browser on one node, shard channels, and names that are any bytes.
async fn kinds_and_names(kind: Kind) -> Result<()> {
    let backplane = Backplane::start(kind).await?;
    let [a, b, _c] = Node::three(&backplane).await?;
    let mut browser = a.server.client().await?;
    let listening = browser.call(serde_json::json!(["SUBSCRIBE", "news world"])).await?;
    ensure!(listening == serde_json::json!(["OK", 1]), "{listening}");
    let mut redis = b.client().await?;
    let names: [&[u8]; 7] =
        [b"\xff\x00\r\n", b"", b"a..b.", b"50%", b"* >", b"$SYS.x", "grüße".as_bytes()];
    for (place, name) in names.iter().enumerate() {
        let expected = ack("subscribe", name, place as i64 + 1);
        ensure!(redis.call(&[&b"SUBSCRIBE"[..], *name]).await? == expected);
    }
    let mut publisher = a.client().await?;
    for name in names {
        ensure!(publisher.call(&[&b"PUBLISH"[..], name, b"x"]).await? == Value::Integer(0));
        let expected = message("message", &[name, b"x"]);
        let came = redis.next().await?;
        ensure!(came == expected, "{came}");
    }
    ensure!(b.publish("news world", "1 1").await? == Value::Integer(0));
    let came = browser.next_json().await?;
    ensure!(came == serde_json::json!(["message", "news world", "1 1"]), "{came}");

    // Shard channels are names of their own.
    let mut sharded = b.client().await?;
    ensure!(sharded.call(&["SSUBSCRIBE", "s"]).await? == ack("ssubscribe", "s", 1));
    let mut plain = Listener::start(b.client().await?, &["s"], &["*"]).await?;
    ensure!(publisher.call(&["SPUBLISH", "s", "1 1"]).await? == Value::Integer(0));
    ensure!(publisher.call(&["PUBLISH", "s", "2 1"]).await? == Value::Integer(0));
    plain.expect(2).await?;
    let came = sharded.next().await?;
    ensure!(came == message("smessage", &[b"s", b"1 1"]), "{came}");
    sharded.nothing(1).await?;
    plain.nothing_more().await
}

#[tokio::test]
async fn all_kinds_and_all_names_cross_redis() -> Result<()> {
    kinds_and_names(Kind::Redis).await
}

#[tokio::test]
async fn all_kinds_and_all_names_cross_nats() -> Result<()> {
    kinds_and_names(Kind::Nats).await
}

/// Nodes that are killed take nothing with them but their own connections.
async fn a_node_is_killed(kind: Kind) -> Result<()> {
    let backplane = Backplane::start(kind).await?;
    let [a, b, c] = Node::three(&backplane).await?;
    let mut listeners = Vec::new();
    for node in [&a, &b] {
        listeners.push(Listener::start(node.client().await?, &["news"], &[]).await?);
    }
    let mut doomed = Listener::start(c.client().await?, &["news"], &["n*"]).await?;
    let publishing = async {
        tokio::try_join!(
            publish(a.client().await?, "a", &["news"]),
            publish(b.client().await?, "b", &["news"]),
        )
    };
    let killing = async {
        doomed.expect(100).await?;
        c.server.signal("KILL")
    };
    tokio::try_join!(publishing, killing)?;
    for listener in &mut listeners {
        listener.expect(2 * MESSAGES as usize).await?;
        listener.nothing_more().await?;
    }
    // Another takes its place.
    let another = Node::start(&backplane, &Default::default()).await?;
    let mut late = Listener::start(another.client().await?, &["news"], &[]).await?;
    a.publish("news", &payload("again", 1)).await?;
    late.expect(1).await
}

#[tokio::test]
async fn a_killed_node_is_not_missed_over_redis() -> Result<()> {
    a_node_is_killed(Kind::Redis).await
}

#[tokio::test]
async fn a_killed_node_is_not_missed_over_nats() -> Result<()> {
    a_node_is_killed(Kind::Nats).await
}

/// It is dropped with a line in the log, and what follows arrives.
#[tokio::test]
async fn a_message_over_a_limit_is_dropped_and_logged() -> Result<()> {
    for kind in [Kind::Redis, Kind::Nats] {
        let backplane = Backplane::start(kind).await?;
        let config = "[limits]\npayload_bytes_max = 1000\n".to_owned();
        let options = crate::nodes::Options { config, ..Default::default() };
        let node = Node::start(&backplane, &options).await?;
        let mut client = node.client().await?;
        client.call(&["SUBSCRIBE", "news"]).await?;
        let mut foreign = backplane.publisher().await?;
        foreign.publish(&[("news", "x".repeat(1_001)), ("news", "fits".to_owned())]).await?;
        assert_eq!(client.next().await?, message("message", &[b"news", b"fits"]), "{kind:?}");
        let line = node.server.wait_for_log("over limits.payload_bytes_max").await?;
        ensure!(line.contains("WARN") && line.contains("channel=news"), "{line}");
        ensure!(line.contains("payload_bytes=1001"), "{line}");
        node.stop().await?;
    }
    Ok(())
}

/// Ids of connections are unique in a cluster, and rise on each node.
async fn ids_are_unique(kind: Kind) -> Result<()> {
    let backplane = Backplane::start(kind).await?;
    let nodes = Node::three(&backplane).await?;
    let mut ids = BTreeSet::new();
    for node in &nodes {
        let (mut first, mut second) = (node.client().await?, node.client().await?);
        let (first, second) =
            (first.call(&["CLIENT", "ID"]).await?, second.call(&["CLIENT", "ID"]).await?);
        let (Value::Integer(first), Value::Integer(second)) = (&first, &second) else {
            bail!("{first} and {second} are no ids")
        };
        ensure!(first < second && *second < 1 << 53, "{first} and {second}");
        ids.extend([*first, *second]);
    }
    ensure!(ids.len() == 2 * nodes.len(), "{ids:?}");
    for node in nodes {
        node.server.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn ids_are_unique_over_redis() -> Result<()> {
    ids_are_unique(Kind::Redis).await
}

#[tokio::test]
async fn ids_are_unique_over_nats() -> Result<()> {
    ids_are_unique(Kind::Nats).await
}

/// A SUBSCRIBE between MULTI and EXEC waits for the backplane, and the rest waits for it.
async fn a_transaction_waits(kind: Kind) -> Result<()> {
    let backplane = Backplane::start(kind).await?;
    let nodes = Node::three(&backplane).await?;
    let [a, b, _] = &nodes;
    let (mut subscriber, mut publisher) = (a.client().await?, b.client().await?);
    for round in 0..20 {
        let channel = format!("round.{round}");
        let mut sent = Vec::new();
        for words in [
            ["MULTI"].as_slice(),
            &["SUBSCRIBE", &channel],
            &["PING"],
            &["EXEC"],
            &["UNSUBSCRIBE", "nothing"],
        ] {
            sent.extend(crate::value::command(words));
        }
        subscriber.send(&sent).await?;
        let replies = subscriber.next_many(5).await?;
        let pong = Value::Aggregate(Shape::Array, vec![Value::bulk("pong"), Value::bulk("")]);
        let expected = Value::Aggregate(Shape::Array, vec![ack("subscribe", &channel, 1), pong]);
        ensure!(replies.get(3) == Some(&expected), "{replies:?}");
        publisher.call(&["PUBLISH", &channel, "x"]).await?;
        let came = subscriber.next().await?;
        ensure!(came == message("message", &[channel.as_bytes(), b"x"]), "{came}");
        subscriber.call(&["UNSUBSCRIBE"]).await?;
    }
    drop((subscriber, publisher));
    for node in nodes {
        node.server.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_transaction_waits_for_redis() -> Result<()> {
    a_transaction_waits(Kind::Redis).await
}

#[tokio::test]
async fn a_transaction_waits_for_nats() -> Result<()> {
    a_transaction_waits(Kind::Nats).await
}
