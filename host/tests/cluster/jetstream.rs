//! Histories in JetStream: what is special about streams that many channels share.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::answers::{ask, refused};
use crate::backplane::{Backplane, Kind};
use crate::history::{LARGE, RULE, client, expect_message, nodes, publish, start};
use crate::support::server::Server;
use crate::support::{PATIENCE, within};

/// NATS keeps what it has stored: a client goes on where it was, whatever node it reaches.
#[tokio::test]
async fn a_nats_that_comes_back_with_its_store() -> Result<()> {
    let mut backplane = start(Kind::Nats).await?;
    let [a, b] = nodes(&backplane, RULE).await?;
    let mut publisher = client(&a).await?;
    let mut subscriber = client(&b).await?;
    ask(&mut subscriber, json!(["RESUME", "chat.1"])).await?;
    let one = publish(&mut publisher, "chat.1", "one").await?;
    expect_message(&mut subscriber, "one", &one).await?;
    let key = json!(["PUBLISH", "chat.1", "two", {"key": "k", "position": true}]);
    let first = ask(&mut publisher, key.clone()).await?;
    let two = first["position"].as_str().context("no position")?.to_owned();
    expect_message(&mut subscriber, "two", &two).await?;
    backplane.kill();
    a.until_connected(false).await?;
    b.until_connected(false).await?;
    backplane.come_back().await?;
    a.until_connected(true).await?;
    b.until_connected(true).await?;
    // The subscriber that stayed has missed nothing.
    let again = ask(&mut publisher, key).await?;
    ensure!(again == first, "{again} after {first}");
    let three = publish(&mut publisher, "chat.1", "three").await?;
    expect_message(&mut subscriber, "three", &three).await?;
    let mut other = client(&a).await?;
    let answer = ask(&mut other, json!(["RESUME", "chat.1", one])).await?;
    ensure!(answer["recovered"] == true && answer["missed"] == 2, "{answer}");
    expect_message(&mut other, "two", &two).await?;
    expect_message(&mut other, "three", &three).await?;
    for node in [a, b] {
        node.stop().await?;
    }
    Ok(())
}

/// A node with histories does not start without what keeps them; one without does.
#[tokio::test]
async fn a_nats_without_jetstream_keeps_no_histories() -> Result<()> {
    let backplane = Backplane::start(Kind::Nats).await?;
    let home = tempfile::tempdir()?;
    let file = home.path().join("switchyard.toml");
    let url = backplane.url();
    fs::write(&file, format!("[cluster]\nurl = '{url}'\n{RULE}"))?;
    let mut server = Server::run_alone(&["--config", &file.display().to_string()])?;
    let (status, _) = server.exit().await?;
    ensure!(status.code() == Some(1), "{status}");
    let log = server.log();
    ensure!(log.contains("NATS has no JetStream for this account"), "{log}");

    let [node] = nodes(&backplane, "").await?;
    let mut client = client(&node).await?;
    let code = refused(&mut client, json!(["PUBLISH", "news", "x", {"key": "k"}])).await?;
    ensure!(code == "UNAVAILABLE", "{code}");
    ask(&mut client, json!(["PUBLISH", "news", "x"])).await?;
    node.stop().await
}

/// A user that may not use JetStream is named the right.
#[tokio::test]
async fn the_right_to_use_jetstream_is_named() -> Result<()> {
    let home = tempfile::tempdir()?;
    let file = home.path().join("nats.conf");
    let store = home.path().join("store");
    fs::write(
        &file,
        format!(
            "jetstream {{ store_dir: {:?} }}\nno_auth_user: sw\nauthorization {{ users = [{{user: sw, \
             password: sw, permissions: {{ publish: {{deny: \"$JS.API.>\"}} }} }}] }}",
            store.display().to_string()
        ),
    )?;
    let config = file.display().to_string();
    let backplane = Backplane::start_with(Kind::Nats, &["--config", &config]).await?;
    let options = crate::nodes::Options { config: RULE.to_owned(), ..Default::default() };
    let node = crate::nodes::Node::start(&backplane, &options).await?;
    within(PATIENCE, "the right", async {
        loop {
            let (status, text) = node.health().await?;
            if status == 503 && text.contains("publish on $JS.API.>") {
                return anyhow::Ok(());
            }
            tokio::task::yield_now().await;
        }
    })
    .await??;
    node.stop().await
}

/// Any program that subscribes there receives the payload as it is.
#[tokio::test]
async fn a_plain_nats_subscriber_receives_the_payload() -> Result<()> {
    let backplane = start(Kind::Nats).await?;
    let [node] = nodes(&backplane, RULE).await?;
    let mut plain = BufReader::new(TcpStream::connect(backplane.address).await?);
    let hello = b"CONNECT {\"verbose\":false}\r\nSUB chat.one.> 1\r\nSUB news 2\r\nPING\r\n";
    plain.get_mut().write_all(hello).await?;
    let mut publisher = client(&node).await?;
    let mut line = String::new();
    while line.trim_end() != "PONG" {
        line.clear();
        within(PATIENCE, "a PONG", plain.read_line(&mut line)).await??;
    }
    publish(&mut publisher, "chat.one.two words", "hi").await?;
    ask(&mut publisher, json!(["PUBLISH", "news", "once", {"key": "k"}])).await?;
    for (subject, expected) in [("chat.one.two%20words", "hi"), ("news", "once")] {
        line.clear();
        within(PATIENCE, "a message", plain.read_line(&mut line)).await??;
        let words: Vec<&str> = line.split_whitespace().collect();
        ensure!(words.first() == Some(&"MSG") && words.get(1) == Some(&subject), "{line}");
        let mut payload = vec![0; expected.len() + 2];
        plain.read_exact(&mut payload).await?;
        ensure!(payload.starts_with(expected.as_bytes()), "{payload:?}");
    }
    node.stop().await
}

fn payloads(page: &Value) -> Vec<&str> {
    let messages = page["messages"].as_array().into_iter().flatten();
    messages.filter_map(|message| message.get(1)?.as_str()).collect()
}

/// The stream keeps more than the rule says, and other channels are in it, too.
#[tokio::test]
async fn a_channel_has_as_many_messages_as_its_rule_says() -> Result<()> {
    let backplane = start(Kind::Nats).await?;
    let rules = "[[channels]]\nmatch = 'chat.*'\nhistory_messages = 150\nhistory_ms = '5m'\n";
    let [node] = nodes(&backplane, rules).await?;
    let mut client = client(&node).await?;
    let mut positions = Vec::new();
    for number in 0..1_000 {
        positions.push(publish(&mut client, "chat.1", &number.to_string()).await?);
        if number % 3 == 0 {
            publish(&mut client, "chat.2", "between").await?;
        }
    }
    let at = |number: usize| positions.get(number).context("no such position");
    let page = ask(&mut client, json!(["HISTORY", "chat.1", {"limit": 3}])).await?;
    ensure!(payloads(&page) == ["850", "851", "852"] && page["next"] == *at(852)?, "{page}");
    let options = json!({"limit": 3, "reverse": true});
    let page = ask(&mut client, json!(["HISTORY", "chat.1", options])).await?;
    ensure!(payloads(&page) == ["999", "998", "997"] && page["next"] == *at(997)?, "{page}");
    let options = json!({"limit": 3, "reverse": true, "before": at(852)?});
    let page = ask(&mut client, json!(["HISTORY", "chat.1", options])).await?;
    ensure!(payloads(&page) == ["851", "850"] && page["next"].is_null(), "{page}");
    let options = json!({"limit": 2, "after": at(849)?});
    let page = ask(&mut client, json!(["HISTORY", "chat.1", options])).await?;
    ensure!(payloads(&page) == ["850", "851"] && page["gap"] == false, "{page}");
    let options = json!({"limit": 2, "after": at(848)?});
    let page = ask(&mut client, json!(["HISTORY", "chat.1", options])).await?;
    ensure!(payloads(&page) == ["850", "851"] && page["gap"] == true, "{page}");
    for (from, missed) in
        [(849, Some(150)), (848, None), (10, None), (998, Some(1)), (999, Some(0))]
    {
        let mut other = crate::history::client(&node).await?;
        let answer = ask(&mut other, json!(["RESUME", "chat.1", at(from)?])).await?;
        let expected = match missed {
            Some(missed) => json!({"recovered": true, "missed": missed}),
            None => json!({"recovered": false, "missed": 0, "reason": "trimmed"}),
        };
        for (key, value) in expected.as_object().into_iter().flatten() {
            ensure!(answer[key] == *value, "from {from}: {answer} has not {expected}");
        }
        for number in 0..missed.unwrap_or(0) {
            let payload = (from + 1 + number).to_string();
            let position = at(from + 1 + number)?;
            expect_message(&mut other, &payload, position).await?;
        }
    }
    let mut other = crate::history::client(&node).await?;
    let answer = ask(&mut other, json!(["RESUME", "chat.1", null, {"last": 2}])).await?;
    ensure!(answer["missed"] == 2, "{answer}");
    expect_message(&mut other, "998", at(998)?).await?;
    expect_message(&mut other, "999", at(999)?).await?;
    node.stop().await
}

/// A version is compared with what the history holds, whatever lies between.
#[tokio::test]
async fn versions_are_compared_on_all_nodes() -> Result<()> {
    let backplane = start(Kind::Nats).await?;
    let rules = "[[channels]]\nmatch = 'chat.*'\nhistory_messages = 5\nhistory_ms = '5m'\n";
    let [a, b] = nodes(&backplane, rules).await?;
    let (mut at_a, mut at_b) = (client(&a).await?, client(&b).await?);
    let version = |version: u64| json!(["PUBLISH", "chat.1", "x", {"version": version}]);
    let stale = json!({"deliveries": 0, "stale": true});
    ask(&mut at_a, version(7)).await?;
    publish(&mut at_b, "chat.1", "without").await?;
    ensure!(ask(&mut at_b, version(7)).await? == stale, "it holds 7");
    ensure!(ask(&mut at_b, version(8)).await? == 0, "8 is newer");
    ensure!(ask(&mut at_a, version(7)).await? == stale, "it holds 8");
    let keyed = json!(["PUBLISH", "chat.1", "x", {"version": 9, "key": "nine"}]);
    ensure!(ask(&mut at_a, keyed.clone()).await? == 0, "9 is newer");
    ensure!(ask(&mut at_b, keyed).await? == 0, "the first answer again");
    for _ in 0..5 {
        publish(&mut at_a, "chat.1", "without").await?;
    }
    ensure!(ask(&mut at_b, version(1)).await? == 0, "it holds no version");
    // All nodes at once: what is delivered rises.
    let mut subscriber = client(&b).await?;
    ask(&mut subscriber, json!(["SUBSCRIBE", "chat.2"])).await?;
    let publishing = async |client: &mut crate::support::websocket::Client, odd: u64| {
        let mut published = 0;
        for number in 1..100 {
            let version = 2 * number + odd;
            let options = json!({"version": version});
            let answer =
                ask(client, json!(["PUBLISH", "chat.2", version.to_string(), options])).await?;
            published += u64::from(answer.is_number());
        }
        anyhow::Ok(published)
    };
    let (one, other) = tokio::try_join!(publishing(&mut at_a, 0), publishing(&mut at_b, 1))?;
    let mut last = 0;
    for _ in 0..one + other {
        let message = subscriber.next_json().await?;
        let number: u64 = message[2].as_str().context("no payload")?.parse()?;
        ensure!(number > last, "{number} after {last}");
        last = number;
    }
    for node in [a, b] {
        node.stop().await?;
    }
    Ok(())
}

/// The position of a channel without messages, or whose last message has expired, is valid as long
/// as it has listeners, whatever happens on other channels.
#[tokio::test]
async fn a_quiet_channel_with_a_listener_keeps_its_position() -> Result<()> {
    let backplane = start(Kind::Nats).await?;
    let rules = "[history]\nidempotency_ms = '1s'\n[[channels]]\nmatch = 'chat.*'\n\
                 history_messages = 10\nhistory_ms = '1s'\nhistory_idle_ms = '3s'\n";
    let [a, b] = nodes(&backplane, rules).await?;
    let mut publisher = client(&a).await?;
    let mut listener = client(&b).await?;
    ask(&mut listener, json!(["RESUME", "chat.1"])).await?;
    let empty = ask(&mut listener, json!(["RESUME", "chat.empty"])).await?["position"].clone();
    let one = publish(&mut publisher, "chat.1", "one").await?;
    let lonely = publish(&mut publisher, "chat.lonely", "one").await?;
    expect_message(&mut listener, "one", &one).await?;
    // Long enough for the message to expire in the stream, which holds it for twice that time.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(8) {
        publish(&mut publisher, "chat.other", "x").await?;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for (channel, position, expected) in [
        ("chat.1", json!(one), json!({"recovered": true, "missed": 0})),
        ("chat.empty", empty, json!({"recovered": true, "missed": 0})),
        ("chat.lonely", json!(lonely), json!({"recovered": false, "reason": "trimmed"})),
    ] {
        let mut other = client(&a).await?;
        let answer = ask(&mut other, json!(["RESUME", channel, position])).await?;
        for (key, value) in expected.as_object().into_iter().flatten() {
            ensure!(answer[key] == *value, "{channel}: {answer} has not {expected}");
        }
        let page = ask(&mut other, json!(["HISTORY", channel])).await?;
        ensure!(payloads(&page).is_empty(), "{page}");
    }
    let two = publish(&mut publisher, "chat.1", "two").await?;
    expect_message(&mut listener, "two", &two).await?;
    for node in [a, b] {
        node.stop().await?;
    }
    Ok(())
}

/// The stream still has what is too old for the rule.
#[tokio::test]
async fn what_is_too_old_is_not_sent() -> Result<()> {
    let backplane = start(Kind::Nats).await?;
    let rules = "[[channels]]\nmatch = 'chat.*'\nhistory_messages = 10\nhistory_ms = '300ms'\n";
    let [node] = nodes(&backplane, rules).await?;
    let mut publisher = client(&node).await?;
    let one = publish(&mut publisher, "chat.1", "one").await?;
    let two = publish(&mut publisher, "chat.1", "two").await?;
    within(PATIENCE, "the messages to be too old", async {
        while ask(&mut publisher, json!(["HISTORY", "chat.1"])).await?["messages"] != json!([]) {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    })
    .await??;
    let options = json!({"reverse": true});
    let page = ask(&mut publisher, json!(["HISTORY", "chat.1", options])).await?;
    ensure!(payloads(&page).is_empty() && page["position"] == two, "{page}");
    for (position, recovered) in [(&two, true), (&one, false)] {
        let mut other = client(&node).await?;
        let options = json!({"last": 5});
        let answer = ask(&mut other, json!(["RESUME", "chat.1", position, options])).await?;
        ensure!(answer["recovered"] == recovered && answer["missed"] == 0, "{answer}");
    }
    node.stop().await
}

/// A NATS that comes back with an older store has a new epoch, because sequences would occur again
/// with other messages.
#[tokio::test]
async fn a_nats_that_went_back_has_a_new_epoch() -> Result<()> {
    let mut backplane = start(Kind::Nats).await?;
    let [a, b] = nodes(&backplane, RULE).await?;
    let mut publisher = client(&a).await?;
    let mut subscriber = client(&b).await?;
    ask(&mut subscriber, json!(["RESUME", "chat.1"])).await?;
    let one = publish(&mut publisher, "chat.1", "one").await?;
    expect_message(&mut subscriber, "one", &one).await?;
    let backup = tempfile::tempdir()?;
    let away = async |backplane: &mut Backplane| {
        backplane.kill();
        a.until_connected(false).await?;
        b.until_connected(false).await
    };
    let back = async |backplane: &mut Backplane| {
        backplane.come_back().await?;
        a.until_connected(true).await?;
        b.until_connected(true).await
    };
    away(&mut backplane).await?;
    copy(&backplane.home().join("store"), backup.path())?;
    back(&mut backplane).await?;
    let two = publish(&mut publisher, "chat.1", "two").await?;
    expect_message(&mut subscriber, "two", &two).await?;
    away(&mut backplane).await?;
    backplane.empty()?;
    copy(backup.path(), &backplane.home().join("store"))?;
    back(&mut backplane).await?;
    let close = subscriber.next_close().await?;
    ensure!(close.0 == Some(4204), "{close:?}");
    let mut subscriber = client(&b).await?;
    for position in [one, two] {
        let answer = ask(&mut subscriber, json!(["RESUME", "chat.1", position])).await?;
        ensure!(answer["recovered"] == false && answer["reason"] == "epoch", "{answer}");
        ask(&mut subscriber, json!(["UNSUBSCRIBE", "chat.1"])).await?;
    }
    for node in [a, b] {
        node.stop().await?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => fs::copy(entry.path(), target).map(drop)?,
        }
    }
    Ok(())
}

/// What the client library drops because it was not read in time is read again, the last message,
/// too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_the_node_could_not_take_are_read_later() -> Result<()> {
    const PUBLISHERS: usize = 40;
    const COUNT: usize = 80;
    let backplane = start(Kind::Nats).await?;
    let config = format!("nats_pending_max = 16\nping_interval_ms = 100\n{LARGE}");
    let [a, b] = nodes(&backplane, &config).await?;
    let mut subscriber = client(&b).await?;
    ask(&mut subscriber, json!(["RESUME", "chat.1"])).await?;
    let mut publishers = Vec::new();
    for _ in 0..PUBLISHERS {
        let mut publisher = client(&a).await?;
        publishers.push(tokio::spawn(async move {
            let publication = json!(["PUBLISH", "chat.1", "x".repeat(2_000)]);
            for _ in 0..COUNT {
                ask(&mut publisher, publication.clone()).await?;
            }
            anyhow::Ok(())
        }));
    }
    let mut last = String::new();
    for _ in 0..PUBLISHERS * COUNT {
        let message = subscriber.next_json().await?;
        let position = message.pointer("/3/position").and_then(Value::as_str);
        let position = position.with_context(|| message.to_string())?;
        ensure!((position.len(), position) > (last.len(), &last), "{position} after {last}");
        last = position.to_owned();
    }
    for publisher in publishers {
        publisher.await??;
    }
    println!("dropped: {}", b.info("backplane_overrun").await?);
    for node in [a, b] {
        node.stop().await?;
    }
    Ok(())
}
