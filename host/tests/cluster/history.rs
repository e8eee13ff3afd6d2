//! The histories of channels and the keys of publications, which the backplane keeps for all nodes.

#![expect(clippy::indexing_slicing, reason = "what is not there fails the test")]

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::answers::{ask, refused};
use crate::backplane::{Backplane, Kind};
use crate::nodes::{Node, Options};
use crate::support::websocket::Client;
use crate::support::{PATIENCE, within};

pub const RULE: &str =
    "[[channels]]\nmatch = 'chat.*'\nhistory_messages = 100\nhistory_ms = '5m'\n";
/// The directory is in the home of the backplane.
pub const JETSTREAM: &[&str] = &["--jetstream", "--store_dir", "store"];
pub const LARGE: &str = "[history]\nresume_messages_max = 50000\nresume_bytes_max = '4MiB'\n\
    [[channels]]\nmatch = 'chat.*'\nhistory_messages = 100000\nhistory_ms = '5m'\n";

/// A backplane that can keep histories.
pub async fn start(kind: Kind) -> Result<Backplane> {
    match kind {
        Kind::Redis => Backplane::start(kind).await,
        Kind::Nats => Backplane::start_with(kind, JETSTREAM).await,
    }
}

/// Nodes with these rules, all connected.
pub async fn nodes<const N: usize>(backplane: &Backplane, config: &str) -> Result<[Node; N]> {
    let mut nodes = Vec::new();
    for _ in 0..N {
        let options = Options { config: config.to_owned(), ..Options::default() };
        let node = Node::start(backplane, &options).await?;
        node.until_connected(true).await?;
        nodes.push(node);
    }
    nodes.try_into().ok().context("as many as were started")
}

pub async fn client(node: &Node) -> Result<Client> {
    node.server.client().await
}

pub async fn publish(client: &mut Client, channel: &str, payload: &str) -> Result<String> {
    let answer = ask(client, json!(["PUBLISH", channel, payload, {"position": true}])).await?;
    let position = answer.get("position").and_then(Value::as_str);
    Ok(position.with_context(|| format!("no position: {answer}"))?.to_owned())
}

pub async fn expect_message(client: &mut Client, payload: &str, position: &str) -> Result<()> {
    let expected = json!(["message", "chat.1", payload, {"position": position}]);
    let message = client.next_json().await?;
    ensure!(message == expected, "{message} instead of {expected}");
    Ok(())
}

async fn a_client_resumes_on_another_node(kind: Kind) -> Result<()> {
    let backplane = start(kind).await?;
    let [a, b] = nodes(&backplane, RULE).await?;
    let mut publisher = client(&a).await?;
    let mut subscriber = client(&b).await?;
    let first = ask(&mut subscriber, json!(["RESUME", "chat.1"])).await?;
    ensure!(first["missed"] == 0 && first["recovered"] == false, "{first}");
    let one = publish(&mut publisher, "chat.1", "one").await?;
    expect_message(&mut subscriber, "one", &one).await?;
    drop(subscriber);

    let two = publish(&mut publisher, "chat.1", "two").await?;
    let mut elsewhere = client(&b).await?;
    let three = publish(&mut elsewhere, "chat.1", "three").await?;
    for node in [&a, &b] {
        let mut subscriber = client(node).await?;
        let answer = ask(&mut subscriber, json!(["RESUME", "chat.1", one])).await?;
        let expected = json!({"listening": 1, "position": three, "recovered": true, "missed": 2});
        ensure!(answer == expected, "{answer} instead of {expected}");
        expect_message(&mut subscriber, "two", &two).await?;
        expect_message(&mut subscriber, "three", &three).await?;
        let page = ask(&mut subscriber, json!(["HISTORY", "chat.1"])).await?;
        let messages = json!([[one, "one"], [two, "two"], [three, "three"]]);
        let expected = json!({"position": three, "messages": messages, "next": null, "gap": false});
        ensure!(page == expected, "{page} instead of {expected}");
        let options = json!({"reverse": true, "limit": 1});
        let page = ask(&mut subscriber, json!(["HISTORY", "chat.1", options])).await?;
        ensure!(page["messages"] == json!([[three, "three"]]) && page["next"] == three, "{page}");
        let options = json!({"after": two, "until": three});
        let page = ask(&mut subscriber, json!(["HISTORY", "chat.1", options])).await?;
        ensure!(page["messages"] == json!([[three, "three"]]) && page["gap"] == false, "{page}");
    }
    let mut newcomer = client(&b).await?;
    let answer = ask(&mut newcomer, json!(["RESUME", "chat.1", null, {"last": 1}])).await?;
    ensure!(answer["missed"] == 1 && answer["position"] == three, "{answer}");
    expect_message(&mut newcomer, "three", &three).await?;
    // Tags arrive with the message on each node, and versions are compared with those of all.
    let options = json!({"version": 7, "tags": {"kind": "score"}});
    ask(&mut publisher, json!(["PUBLISH", "chat.1", "four", options])).await?;
    let message = newcomer.next_json().await?;
    ensure!(message.pointer("/3/tags") == Some(&json!({"kind": "score"})), "{message}");
    let answer = ask(&mut elsewhere, json!(["PUBLISH", "chat.1", "old", {"version": 7}])).await?;
    ensure!(answer == json!({"deliveries": 0, "stale": true}), "{answer}");
    ensure!(refused(&mut elsewhere, json!(["HISTORY", "news"])).await? == "NOHISTORY");
    for node in [a, b] {
        node.stop().await?;
    }
    Ok(())
}

over_redis_and_nats!(a_client_resumes_on_another_node);

/// A retry usually reaches another node.
async fn a_key_publishes_once_in_the_cluster(kind: Kind) -> Result<()> {
    let backplane = start(kind).await?;
    let [a, b] = nodes(&backplane, RULE).await?;
    let (mut at_a, mut at_b) = (client(&a).await?, client(&b).await?);
    let mut subscriber = client(&b).await?;
    ask(&mut subscriber, json!(["SUBSCRIBE", "chat.1", "news"])).await?;
    for channel in ["chat.1", "news"] {
        let options = json!({"key": "8f2c", "position": true});
        let command = |payload| json!(["PUBLISH", channel, payload, options]);
        let first = ask(&mut at_a, command("x")).await?;
        ensure!(first["position"].is_string() == (channel == "chat.1"), "{first}");
        let again = ask(&mut at_b, command("x")).await?;
        ensure!(again == first, "{again} after {first}");
        let other = ask(&mut at_a, json!(["PUBLISH", channel, "y", {"key": "9"}])).await?;
        ensure!(other == 0, "the publishing node delivers none: {other}");
        for payload in ["x", "y"] {
            let message = subscriber.next_json().await?;
            ensure!(message.get(2) == Some(&json!(payload)), "{message}");
        }
    }
    // Both at once.
    for number in 0..50 {
        let options = json!({"key": format!("both {number}")});
        let command = json!(["PUBLISH", "chat.1", number.to_string(), options]);
        let (one, other) =
            tokio::try_join!(ask(&mut at_a, command.clone()), ask(&mut at_b, command.clone()),)?;
        ensure!(one == other, "{one} and {other}");
        let message = subscriber.next_json().await?;
        ensure!(message.get(2) == Some(&json!(number.to_string())), "{message}");
    }
    for node in [a, b] {
        node.stop().await?;
    }
    Ok(())
}

over_redis_and_nats!(a_key_publishes_once_in_the_cluster);

/// What a subscriber received of a channel.
async fn received(subscriber: &mut Client, count: usize) -> Result<Vec<(String, String)>> {
    let mut messages = Vec::new();
    while messages.len() < count {
        let message = subscriber.next_json().await?;
        let is_of_pattern = message.get(0) == Some(&json!("pmessage"));
        let at = if is_of_pattern { 3 } else { 2 };
        let text = |value: Option<&Value>| Some(value?.as_str()?.to_owned());
        let position = text(message.pointer(&format!("/{}/position", at + 1)));
        let position = position.with_context(|| format!("no position: {message}"))?;
        messages.push((position, text(message.get(at)).context("no payload")?));
    }
    Ok(messages)
}

/// All subscribers see one order, those of the publishing nodes included.
async fn there_is_one_order(kind: Kind) -> Result<()> {
    const COUNT: usize = 300;
    let backplane = start(kind).await?;
    let [a, b, c] = nodes(&backplane, RULE).await?;
    let mut subscribers = Vec::new();
    for node in [&a, &b, &c] {
        for (verb, name) in [("SUBSCRIBE", "chat.1"), ("PSUBSCRIBE", "chat.*")] {
            let mut subscriber = client(node).await?;
            ask(&mut subscriber, json!([verb, name])).await?;
            subscribers.push(subscriber);
        }
    }
    let publishing = async |node: &Node, name: &str| {
        let mut publisher = client(node).await?;
        for number in 0..COUNT {
            ask(&mut publisher, json!(["PUBLISH", "chat.1", format!("{name}{number}")])).await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(publishing(&a, "a"), publishing(&b, "b"), publishing(&c, "c"))?;
    let mut first = None;
    for subscriber in &mut subscribers {
        let messages = received(subscriber, 3 * COUNT).await?;
        ensure!(messages.is_sorted_by_key(|(position, _)| position.len()), "{messages:?}");
        let first = first.get_or_insert_with(|| messages.clone());
        ensure!(messages == *first, "another order");
    }
    for node in [a, b, c] {
        node.stop().await?;
    }
    Ok(())
}

over_redis_and_nats!(there_is_one_order);

/// Without the backplane there is no history, and what it has forgotten is not silently missing.
async fn a_backplane_that_comes_back_empty(kind: Kind) -> Result<()> {
    let mut backplane = start(kind).await?;
    let [a, b] = nodes(&backplane, RULE).await?;
    let mut publisher = client(&a).await?;
    let mut subscriber = client(&b).await?;
    ask(&mut subscriber, json!(["RESUME", "chat.1"])).await?;
    let one = publish(&mut publisher, "chat.1", "one").await?;
    expect_message(&mut subscriber, "one", &one).await?;
    backplane.kill();
    backplane.empty()?;
    a.until_connected(false).await?;
    b.until_connected(false).await?;
    for command in [
        json!(["RESUME", "chat.2"]),
        json!(["HISTORY", "chat.1"]),
        json!(["PUBLISH", "chat.1", "x"]),
        json!(["PUBLISH", "news", "x", {"key": "k"}]),
    ] {
        let code = refused(&mut publisher, command.clone()).await?;
        ensure!(code == "UNAVAILABLE", "{command}: {code}");
    }
    ask(&mut publisher, json!(["PUBLISH", "news", "x"])).await?;
    backplane.come_back().await?;
    a.until_connected(true).await?;
    b.until_connected(true).await?;
    let close = subscriber.next_close().await?;
    ensure!(close.0 == Some(4204), "{close:?}");
    let mut subscriber = client(&b).await?;
    let answer = ask(&mut subscriber, json!(["RESUME", "chat.1", one])).await?;
    ensure!(answer["recovered"] == false && answer["reason"] == "epoch", "{answer}");
    let two = publish(&mut publisher, "chat.1", "two").await?;
    expect_message(&mut subscriber, "two", &two).await?;
    for node in [a, b] {
        node.stop().await?;
    }
    Ok(())
}

over_redis_and_nats!(a_backplane_that_comes_back_empty);

/// After a fail-over to a replica that lacks the last publications, these are not silently missing:
/// the stream has a new epoch.
#[tokio::test]
async fn a_fail_over_to_a_replica_that_lags() -> Result<()> {
    let mut master = Backplane::start(Kind::Redis).await?;
    let [a, b] = nodes(&master, RULE).await?;
    let mut publisher = client(&a).await?;
    let mut subscriber = client(&b).await?;
    ask(&mut subscriber, json!(["RESUME", "chat.1"])).await?;
    let one = publish(&mut publisher, "chat.1", "one").await?;
    let port = master.address.port().to_string();
    let replica = Backplane::start_with(Kind::Redis, &["--replicaof", "127.0.0.1", &port]).await?;
    until_replicated(&replica).await?;
    // From now on the master does not accept it.
    replica.ask(&["CONFIG", "SET", "masterauth", "x"]).await?;
    master.ask(&["CLIENT", "KILL", "TYPE", "replica"]).await?;
    let two = publish(&mut publisher, "chat.1", "two").await?;
    expect_message(&mut subscriber, "one", &one).await?;
    expect_message(&mut subscriber, "two", &two).await?;
    master.kill();
    a.until_connected(false).await?;
    b.until_connected(false).await?;
    // The replica takes over, at the address of the master.
    replica.ask(&["REPLICAOF", "NO", "ONE"]).await?;
    let of = replica.address.port().to_string();
    master.come_back_with(&["--replicaof", "127.0.0.1", &of]).await?;
    until_replicated(&master).await?;
    master.ask(&["REPLICAOF", "NO", "ONE"]).await?;
    a.until_connected(true).await?;
    b.until_connected(true).await?;
    let close = subscriber.next_close().await?;
    ensure!(close.0 == Some(4204), "{close:?}");
    for known in [&one, &two] {
        let mut subscriber = client(&b).await?;
        let answer = ask(&mut subscriber, json!(["RESUME", "chat.1", known])).await?;
        ensure!(answer["recovered"] == false && answer["reason"] == "epoch", "{answer}");
    }
    // What the replica has can still be looked at.
    let page = ask(&mut publisher, json!(["HISTORY", "chat.1"])).await?;
    ensure!(page["messages"] == json!([[one, "one"]]), "{page}");
    let three = publish(&mut publisher, "chat.1", "three").await?;
    ensure!(three > two, "{three} is not after {two}");
    for node in [a, b] {
        node.stop().await?;
    }
    Ok(())
}

async fn until_replicated(replica: &Backplane) -> Result<()> {
    within(PATIENCE, "the replica", async {
        loop {
            if let crate::value::Value::Bulk(text) = replica.ask(&["INFO", "replication"]).await?
                && String::from_utf8_lossy(&text).contains("master_link_status:up")
            {
                return anyhow::Ok(());
            }
            tokio::task::yield_now().await;
        }
    })
    .await?
}

/// In a Redis Cluster each channel is in the slot of its name.
#[tokio::test]
async fn a_redis_cluster_keeps_histories() -> Result<()> {
    let cluster = crate::topologies::cluster().await?;
    let hosts = cluster.each_ref().map(|node| node.address.to_string()).join(",");
    let url = format!("redis://{hosts}");
    let options = Options { config: RULE.to_owned(), ..Options::default() };
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let node = Node::start_with_url(&url, &options).await?;
        node.until_connected(true).await?;
        nodes.push(node);
    }
    let [a, b, c] = &nodes[..] else { anyhow::bail!("there are three") };
    let (mut at_a, mut at_b, mut at_c) = (client(a).await?, client(b).await?, client(c).await?);
    let mut subscriber = client(c).await?;
    let channels: Vec<String> =
        (0..12).map(|number| format!("chat.{number}{}", "}".repeat(number % 3))).collect();
    for channel in &channels {
        ask(&mut subscriber, json!(["SUBSCRIBE", channel])).await?;
    }
    for channel in &channels {
        let options = json!({"key": "k", "position": true});
        let first = ask(&mut at_a, json!(["PUBLISH", channel, "one", options])).await?;
        let again = ask(&mut at_b, json!(["PUBLISH", channel, "one", options])).await?;
        ensure!(first == again && first["position"].is_string(), "{first}, {again}");
        let two = publish(&mut at_b, channel, "two").await?;
        let expected = json!([[first["position"], "one"], [two, "two"]]);
        for (position, payload) in [(&first["position"], "one"), (&json!(two), "two")] {
            let message = subscriber.next_json().await?;
            let expected = json!(["message", channel, payload, {"position": position}]);
            ensure!(message == expected, "{message} instead of {expected}");
        }
        let page = ask(&mut at_c, json!(["HISTORY", channel])).await?;
        ensure!(page["messages"] == expected, "{page}");
        let answer = ask(&mut at_c, json!(["RESUME", channel, first["position"]])).await?;
        ensure!(answer["recovered"] == true && answer["missed"] == 1, "{answer}");
        at_c.next_json().await?;
    }
    Ok(())
}

/// A key that another program has overwritten affects its channel, and nothing else.
#[tokio::test]
async fn a_key_of_another_type_affects_its_channel_only() -> Result<()> {
    let backplane = Backplane::start(Kind::Redis).await?;
    let [a, b] = nodes(&backplane, RULE).await?;
    let (mut publisher, mut subscriber) = (client(&a).await?, client(&b).await?);
    ask(&mut subscriber, json!(["SUBSCRIBE", "chat.bad"])).await?;
    backplane.ask(&["SET", "__switchyard:history:{chat.bad}", "x"]).await?;
    for _ in 0..3 {
        backplane.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]).await?;
    }
    let close = subscriber.next_close().await?;
    ensure!(close.0 == Some(4204), "{close:?}");
    a.until_connected(true).await?;
    b.until_connected(true).await?;
    ensure!(refused(&mut publisher, json!(["PUBLISH", "chat.bad", "x"])).await? == "UNAVAILABLE");
    publish(&mut publisher, "chat.1", "x").await?;
    for position in ["0-0", "18446744073709551615-18446744073709551615"] {
        let page = ask(&mut publisher, json!(["HISTORY", "chat.1", {"before": position}])).await?;
        let count = if position == "0-0" { 0 } else { 1 };
        ensure!(page["messages"].as_array().map(Vec::len) == Some(count), "{page}");
        let page = ask(&mut publisher, json!(["HISTORY", "chat.1", {"after": position}])).await?;
        let count = 1 - count;
        ensure!(page["messages"].as_array().map(Vec::len) == Some(count), "{page}");
    }
    Ok(())
}

/// Messages that another program removes from a history are missing, and clients learn it.
#[tokio::test]
async fn messages_that_another_program_removes_are_a_gap() -> Result<()> {
    let backplane = Backplane::start(Kind::Redis).await?;
    let [a] = nodes(&backplane, RULE).await?;
    let mut client = client(&a).await?;
    let mut positions = Vec::new();
    for number in 0..5 {
        positions.push(publish(&mut client, "chat.1", &number.to_string()).await?);
    }
    let gap = async |client: &mut Client, options: Value| {
        let page = ask(client, json!(["HISTORY", "chat.1", options])).await?;
        page["gap"].as_bool().with_context(|| format!("no gap: {page}"))
    };
    let stream = "__switchyard:history:{chat.1}";
    for (removed, first) in [(2, 1), (4, 3)] {
        for is_removed in [false, true] {
            if is_removed {
                backplane.ask(&["XDEL", stream, &positions[removed]]).await?;
            }
            for is_reverse in [false, true] {
                let options = json!({"after": positions[first], "reverse": is_reverse});
                ensure!(gap(&mut client, options).await? == is_removed);
                let options = json!({"after": positions[removed], "reverse": is_reverse});
                ensure!(!gap(&mut client, options).await?);
            }
        }
        let mut other = self::client(&a).await?;
        let answer = ask(&mut other, json!(["RESUME", "chat.1", positions[first]])).await?;
        ensure!(answer["recovered"] == false && answer["reason"] == "trimmed", "{answer}");
    }
    a.stop().await
}
