//! Both doors lead to the same channels: browsers that speak JSON and Redis clients
//! receive each other's messages, through the same plugins, which decide for both.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use guest_core::model::Random;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::client::RespClient;
use crate::support::components;
use crate::support::server::{Launch, Server};
use crate::support::websocket::Client;
use crate::value::{Shape, Value, ack, command, message};

/// A server with these plugins: names, components and settings.
async fn server(plugins: &[(&str, &str, Json)]) -> Result<(Server, SocketAddr, TempDir)> {
    let directory = components::directory()?;
    for (name, component, settings) in plugins {
        components::install(directory.path(), name, &components::built(component)?, settings)?;
    }
    let plugins = Some(directory.path().to_owned());
    let server = Launch { plugins, ..Launch::default() }.start().await?;
    let address = server.resp_address().await?;
    Ok((server, address, directory))
}

fn acl() -> Json {
    json!({
        "tokens": {"s3cret": "alice"},
        "rules": [
            {"users": ["*"], "subscribe": ["public.*"], "publish": ["public.*"]},
            {"users": ["alice"], "subscribe": ["*"], "publish": ["*"]},
        ],
    })
}

fn redact() -> Json {
    json!({"rules": [
        {"channels": ["*"], "regex": r"\d{16}", "action": "mask", "with": "[card]"},
        {"channels": ["*"], "regex": "internal", "action": "reject", "message": "it is internal"},
    ]})
}

/// An error with this code and text, by some version of this plugin.
fn is_refusal(value: &Value, start: &str, plugin: &str) -> Result<()> {
    let Value::Error(text) = value else { anyhow::bail!("{value} came") };
    let text = std::str::from_utf8(text)?;
    let by = text.rsplit_once(" [").and_then(|(_, by)| by.strip_suffix(']'));
    let is_by = by.and_then(|by| by.split_once('@')).is_some_and(|(name, version)| {
        name == plugin && !version.is_empty() && !version.contains(' ')
    });
    ensure!(text.starts_with(start) && is_by, "{text}");
    Ok(())
}

#[tokio::test]
async fn json_and_resp_hear_each_other() -> Result<()> {
    let (server, address, _plugins) = server(&[]).await?;
    let mut browser = server.client().await?;
    let mut resp2 = RespClient::connect(address).await?;
    let mut resp3 = RespClient::connect(address).await?;
    let mut framed = RespClient::connect_framed(&server, 1).await?;
    resp3.call(&["HELLO", "3"]).await?;
    ensure!(browser.call(json!(["SUBSCRIBE", "news"])).await? == json!(["OK", 1]));
    ensure!(browser.call(json!(["PSUBSCRIBE", "n*"])).await? == json!(["OK", 2]));
    ensure!(resp2.call(&["SUBSCRIBE", "news"]).await? == ack("subscribe", "news", 1));
    ensure!(framed.call(&["PSUBSCRIBE", "*"]).await? == ack("psubscribe", "*", 1));
    resp3.call(&["SUBSCRIBE", "news"]).await?;

    // Each publishes, and each receives it once for each way in which it listens.
    let text = "zwölf \u{0} \u{2028}".as_bytes();
    ensure!(resp3.call(&["PUBLISH".as_bytes(), b"news", text]).await? == Value::Integer(5));
    hear_all(&mut browser, &mut resp2, &mut resp3, &mut framed, text).await?;
    let mut publisher = server.client().await?;
    let said = publisher.call(json!(["PUBLISH", "news", std::str::from_utf8(text)?])).await?;
    ensure!(said == json!(["OK", 5]));
    hear_all(&mut browser, &mut resp2, &mut resp3, &mut framed, text).await?;

    // What is not UTF-8 is base64 on one side and bytes on the other.
    ensure!(resp3.call(&["PUBLISH".as_bytes(), b"news", b"\xff\0"]).await? == Value::Integer(5));
    ensure!(browser.next_json().await? == json!(["message", "news", {"base64": "/wA="}]));
    ensure!(browser.next_json().await? == json!(["pmessage", "n*", "news", {"base64": "/wA="}]));
    let answer = publisher.call(json!(["PUBLISH", {"base64": "/w=="}, {"base64": "/gA="}])).await?;
    ensure!(answer == json!(["OK", 1]));
    ensure!(framed.next().await? == message("pmessage", &[b"*", b"news", b"\xff\0"]));
    ensure!(framed.next().await? == message("pmessage", &[b"*", b"\xff", b"\xfe\0"]));

    // They are counted together.
    let counts = Value::Aggregate(Shape::Array, vec![Value::bulk("news"), Value::Integer(3)]);
    ensure!(resp3.next().await? == push("message", &[b"news", b"\xff\0"]));
    ensure!(resp3.call(&["PUBSUB", "NUMSUB", "news"]).await? == counts);
    ensure!(resp3.call(&["PUBSUB", "NUMPAT"]).await? == Value::Integer(2));
    ensure!(
        publisher.call(json!(["PUBSUB", "NUMSUB", "news"])).await? == json!(["OK", {"news": 3}])
    );

    // JSON has no shard channels, and receives nothing from them.
    resp3.call(&["SSUBSCRIBE", "news"]).await?;
    ensure!(resp3.call(&["SPUBLISH", "news", "x"]).await? == Value::Integer(1));
    ensure!(browser.call(json!(["PING"])).await? == json!(["OK", "PONG"]));
    drop((browser, publisher, resp2, resp3, framed));
    server.stop().await
}

fn push(kind: &str, names_and_payload: &[&[u8]]) -> Value {
    match message(kind, names_and_payload) {
        Value::Aggregate(_, items) => Value::Aggregate(Shape::Push, items),
        other => other,
    }
}

async fn hear_all(
    browser: &mut Client,
    resp2: &mut RespClient,
    resp3: &mut RespClient,
    framed: &mut RespClient,
    text: &[u8],
) -> Result<()> {
    let as_text = std::str::from_utf8(text)?;
    ensure!(browser.next_json().await? == json!(["message", "news", as_text]));
    ensure!(browser.next_json().await? == json!(["pmessage", "n*", "news", as_text]));
    ensure!(resp2.next().await? == message("message", &[b"news", text]));
    ensure!(resp3.next().await? == push("message", &[b"news", text]));
    ensure!(framed.next().await? == message("pmessage", &[b"*", b"news", text]));
    Ok(())
}

/// Consecutive publications with the same receivers are delivered together. This must not be
/// visible to receivers, nor to the publisher, which receives each of its own publications
/// after the reply to it.
#[tokio::test]
async fn a_burst_is_received_whole_and_in_order() -> Result<()> {
    const BURSTS: usize = 20;
    const BURST: usize = 60;
    const WITHOUT_SUBSCRIBER: &str = "without subscriber";
    const FOR_FIRST: &str = "for the first recipient";
    let mut random = Random::from_environment();
    let narrow = json!({"on_deliver": [
        {"narrow": "none", "trigger": WITHOUT_SUBSCRIBER},
        {"narrow": "first", "trigger": FOR_FIRST},
    ]});
    let (server, address, _plugins) = server(&[("10-probe", "test/probe", narrow)]).await?;
    let mut publisher = RespClient::connect(address).await?;
    // Answered: it has its id before others come.
    publisher.call(&["HELLO", "3"]).await?;
    let mut browser = server.client().await?;
    let mut resp2 = RespClient::connect(address).await?;
    let mut twice = server.client().await?;
    let mut framed = RespClient::connect_framed(&server, 1).await?;
    publisher.command(&["SUBSCRIBE", "lists", "news"]).await?;
    publisher.next_many(2).await?;
    browser.call(json!(["SUBSCRIBE", "lists", "news", "more"])).await?;
    resp2.command(&["SUBSCRIBE", "lists", "news", "more"]).await?;
    resp2.next_many(3).await?;
    twice.call(json!(["SUBSCRIBE", "more"])).await?;
    twice.call(json!(["PSUBSCRIBE", "*o*"])).await?;
    framed.call(&["PSUBSCRIBE", "n*"]).await?;
    let mut number = 0;
    for _ in 0..BURSTS {
        let mut burst = Vec::new();
        let mut channel = "lists";
        for _ in 0..BURST {
            if random.below(10) == 0 {
                // To "lists" and "own", all listen in one way.
                channel = random.pick::<&str>(&["lists", "news", "more", "none", "own"]);
            }
            // Some too large to leave with others, and some that leave in several pieces.
            let length = match random.below(20) {
                0 => 20_000,
                1..4 => 5_000,
                _ => random.index(200),
            };
            let what = match random.below(10) {
                0 => WITHOUT_SUBSCRIBER,
                1..4 => FOR_FIRST,
                _ => "",
            };
            number += 1;
            burst.push((channel, format!("{number}:{what}{}", "x".repeat(length))));
        }
        let commands = burst.iter().map(|(channel, text)| command(&["PUBLISH", channel, text]));
        publisher.send(&commands.collect::<Vec<_>>().concat()).await?;
        for (channel, text) in &burst {
            let (name, payload) = (channel.as_bytes(), text.as_bytes());
            let first = match *channel {
                "lists" | "news" => "publisher",
                "more" => "browser",
                _ => "twice",
            };
            let receives = |client: &str| !text.contains(FOR_FIRST) || client == first;
            let receivers = match *channel {
                _ if text.contains(WITHOUT_SUBSCRIBER) => 0,
                _ if text.contains(FOR_FIRST) => 1,
                "lists" => 3,
                "none" => 2,
                "own" => 1,
                _ => 4,
            };
            ensure!(publisher.next().await? == Value::Integer(receivers), "a reply");
            if receivers == 0 {
                continue;
            }
            if receives("publisher") && ["lists", "news"].contains(channel) {
                ensure!(publisher.next().await? == push("message", &[name, payload]));
            }
            if receives("browser") && ["lists", "news", "more"].contains(channel) {
                ensure!(browser.next_json().await? == json!(["message", channel, text]));
            }
            if receives("resp2") && ["lists", "news", "more"].contains(channel) {
                ensure!(resp2.next().await? == message("message", &[name, payload]));
            }
            if receives("twice") && *channel == "more" {
                ensure!(twice.next_json().await? == json!(["message", channel, text]));
            }
            if receives("twice") && ["more", "none", "own"].contains(channel) {
                let patterned = json!(["pmessage", "*o*", channel, text]);
                ensure!(twice.next_json().await? == patterned);
            }
            if receives("framed") && ["news", "none"].contains(channel) {
                ensure!(framed.next().await? == message("pmessage", &[b"n*", name, payload]));
            }
        }
    }
    drop((publisher, browser, resp2, twice, framed));
    server.stop().await
}

#[tokio::test]
async fn plugins_decide_for_both() -> Result<()> {
    let plugins = [("10-acl", "acl", acl()), ("20-redact", "redact", redact())];
    let (server, address, _plugins) = server(&plugins).await?;
    let mut browser = server.client().await?;
    let mut bob = RespClient::connect(address).await?;
    let mut framed = RespClient::connect_framed(&server, 2).await?;
    browser.call(json!(["SUBSCRIBE", "public.a"])).await?;
    ensure!(framed.call(&["PSUBSCRIBE", "public.*"]).await? == ack("psubscribe", "public.*", 1));

    // Refusals name their plugin. One bad name refuses its whole command.
    for words in [
        ["SUBSCRIBE", "private.1"].as_slice(),
        &["SUBSCRIBE", "public.a", "private.1"],
        &["PSUBSCRIBE", "*"],
        &["SSUBSCRIBE", "private.1"],
        &["PUBLISH", "private.1", "x"],
        &["SPUBLISH", "private.1", "x"],
    ] {
        is_refusal(&bob.call(words).await?, "NOPERM ", "acl")?;
    }
    // It listens to nothing, so RESP2 lets it do everything.
    ensure!(bob.call(&["PUBLISH", "public.b", "x"]).await? == Value::Integer(1));
    ensure!(framed.next().await? == message("pmessage", &[b"public.*", b"public.b", b"x"]));

    // In a pipeline each stands for itself.
    bob.send(
        &[
            crate::value::command(&["PUBLISH", "public.a", "1"]),
            crate::value::command(&["PUBLISH", "private.1", "2"]),
            crate::value::command(&["PUBLISH", "public.a", "card 4111111111111111"]),
            crate::value::command(&["PUBLISH", "public.a", "internal"]),
            crate::value::command(&["PUBLISH", "public.a", "4"]),
        ]
        .concat(),
    )
    .await?;
    ensure!(bob.next().await? == Value::Integer(2));
    is_refusal(&bob.next().await?, "NOPERM ", "acl")?;
    ensure!(bob.next().await? == Value::Integer(2));
    is_refusal(&bob.next().await?, "REJECTED it is internal", "redact")?;
    ensure!(bob.next().await? == Value::Integer(2));
    for payload in ["1", "card [card]", "4"] {
        ensure!(browser.next_json().await? == json!(["message", "public.a", payload]));
        let expected = message("pmessage", &[b"public.*", b"public.a", payload.as_bytes()]);
        ensure!(framed.next().await? == expected);
    }

    // A name that is not UTF-8 cannot be shown to a plugin; a payload may be
    // anything.
    let refused = bob.call(&["PUBLISH".as_bytes(), b"public.\xff", b"x"]).await?;
    let Value::Error(text) = &refused else { anyhow::bail!("{refused} came") };
    ensure!(text.starts_with(b"NOPERM the name is not UTF-8"), "{refused}");
    let refused = bob.call(&["SUBSCRIBE".as_bytes(), b"public.\xff"]).await?;
    ensure!(matches!(&refused, Value::Error(text) if text.starts_with(b"NOPERM ")), "{refused}");
    ensure!(bob.call(&["PUBLISH".as_bytes(), b"public.b", b"\xff"]).await? == Value::Integer(1));
    ensure!(framed.next().await? == message("pmessage", &[b"public.*", b"public.b", b"\xff"]));

    // A client that shows credentials may do more, until RESET.
    let wrong = b"WRONGPASS invalid username-password pair or user is disabled.";
    for words in [
        ["AUTH", "wrong"].as_slice(),
        &["AUTH", "unknown", "s3cret"],
        &["HELLO", "3", "AUTH", "default", "wrong"],
    ] {
        ensure!(bob.call(words).await? == Value::Error(wrong.to_vec()), "{words:?}");
    }
    ensure!(bob.call(&["AUTH", "s3cret"]).await? == Value::Simple(b"OK".to_vec()));
    ensure!(bob.call(&["SUBSCRIBE", "private.1"]).await? == ack("subscribe", "private.1", 1));
    ensure!(bob.call(&["RESET"]).await? == Value::Simple(b"RESET".to_vec()));
    is_refusal(&bob.call(&["SUBSCRIBE", "private.1"]).await?, "NOPERM ", "acl")?;
    ensure!(bob.call(&["AUTH", "s3cret"]).await? == Value::Simple(b"OK".to_vec()));
    let greeting = bob.call(&["HELLO", "3"]).await?;
    ensure!(matches!(greeting, Value::Aggregate(Shape::Map, _)), "{greeting} came");
    ensure!(bob.call(&["PUBLISH", "private.1", "x"]).await? == Value::Integer(0));

    // Redis' user `default` is the user of a client that shows a lone secret. In its own way of
    // saying HELLO a client cannot leave the user out.
    ensure!(bob.call(&["RESET"]).await? == Value::Simple(b"RESET".to_vec()));
    is_refusal(&bob.call(&["SUBSCRIBE", "private.1"]).await?, "NOPERM ", "acl")?;
    let greeting = bob.call(&["HELLO", "3", "AUTH", "default", "s3cret"]).await?;
    ensure!(matches!(greeting, Value::Aggregate(Shape::Map, _)), "{greeting} came");
    ensure!(bob.call(&["PUBLISH", "private.1", "x"]).await? == Value::Integer(0));
    ensure!(bob.call(&["RESET"]).await? == Value::Simple(b"RESET".to_vec()));
    for words in [["AUTH", "DEFAULT", "s3cret"], ["AUTH", "alice", "s3cret"]] {
        ensure!(bob.call(&words).await? == Value::Error(wrong.to_vec()), "{words:?}");
    }
    ensure!(bob.call(&["AUTH", "default", "s3cret"]).await? == Value::Simple(b"OK".to_vec()));
    ensure!(bob.call(&["PUBLISH", "private.1", "x"]).await? == Value::Integer(0));
    framed.nothing(0).await?;
    ensure!(browser.call(json!(["PING"])).await? == json!(["OK", "PONG"]));
    drop((browser, bob, framed));
    server.stop().await
}

/// A plugin's words may be anything, and must not break the line of an error.
#[tokio::test]
async fn a_refusal_stays_on_one_line() -> Result<()> {
    let settings = json!({
        "on_publish": {"refuse": {"code": "NOPE", "message": "one\r\n+OK\ntwo"}, "channels": ["no"]},
    });
    let (server, address, _plugins) = server(&[("10-probe", "test/probe", settings)]).await?;
    let mut client = RespClient::connect(address).await?;
    let refused = client.call(&["PUBLISH", "no", "x"]).await?;
    is_refusal(&refused, "NOPE one", "probe")?;
    client.nothing(0).await?;
    drop(client);
    server.stop().await
}
