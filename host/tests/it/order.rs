//! Many publishers and many subscribers at once: no message is lost or duplicated, all subscribers
//! see the publications on one channel in the same order, and the publications of one connection
//! arrive in order, also across channels.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::support::raw::exchange;
use crate::support::server::{Engine, Launch};
use crate::support::websocket::{Client, Frame, TEXT};
use crate::support::{PATIENCE, components};

const PUBLISHERS: usize = 4;
/// How many messages each publisher sends, on the channels in round-robin order.
const PUBLICATIONS: usize = 600;
const CHANNELS: [&str; 3] = ["order.a", "order.b", "order.c"];

/// Publishes `publisher:number`, some in single frames and some together.
async fn publish(mut client: Client, publisher: usize) -> Result<()> {
    let numbers: Vec<_> = (0..PUBLICATIONS).collect();
    for (batch, numbers) in numbers.chunks(7).enumerate() {
        let command = |number: &usize| {
            let channel = CHANNELS.get(number % CHANNELS.len());
            json!(["PUBLISH", channel, format!("{publisher}:{number}")])
        };
        if batch % 2 == 0 {
            let commands: Vec<_> = numbers.iter().map(command).collect();
            client.send(Message::text(Value::from(commands).to_string())).await?;
        } else {
            for number in numbers {
                client.send(Message::text(command(number).to_string())).await?;
            }
        }
    }
    // When this is answered, all have been executed.
    ensure!(client.call(json!(["PING"])).await? == json!(["OK", "PONG"]));
    Ok(())
}

/// What a subscriber receives: pairs of channel and payload, in order.
async fn receive(mut client: Client) -> Result<Vec<(String, String)>> {
    let mut received = Vec::new();
    while received.len() < PUBLISHERS * PUBLICATIONS {
        let push = client.next_json().await.with_context(|| format!("after {}", received.len()))?;
        let mut texts = push.as_array().into_iter().flatten().rev().filter_map(Value::as_str);
        let payload = texts.next().context("a push has a payload")?.to_owned();
        received.push((texts.next().context("a push has a channel")?.to_owned(), payload));
    }
    // Nothing arrives twice.
    ensure!(client.call(json!(["PING"])).await? == json!(["OK", "PONG"]));
    Ok(received)
}

/// Makes all of them publish at once, and compares what they received.
pub async fn check(engine: Engine) -> Result<()> {
    let server = Launch { engine, ..Launch::default() }.start().await?;
    let mut subscribers = JoinSet::new();
    for number in 0..4 {
        let mut client = server.client().await?;
        let command = match number % 2 {
            0 => json!(["SUBSCRIBE", CHANNELS[0], CHANNELS[1], CHANNELS[2]]),
            _ => json!(["PSUBSCRIBE", "order.*"]),
        };
        client.call(command).await?;
        subscribers.spawn(receive(client));
    }
    let mut publishers = JoinSet::new();
    for publisher in 0..PUBLISHERS {
        publishers.spawn(publish(server.client().await?, publisher));
    }
    while let Some(published) = publishers.join_next().await {
        published??;
    }
    let mut all_received = Vec::new();
    while let Some(received) = subscribers.join_next().await {
        all_received.push(received??);
    }
    let by_channel = |received: &[(String, String)]| {
        let mut orders: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (channel, payload) in received {
            orders.entry(channel.clone()).or_default().push(payload.clone());
        }
        orders
    };
    let first = all_received.first().context("there are subscribers")?;
    for received in &all_received {
        assert!(by_channel(received) == by_channel(first), "two subscribers saw two orders");
        for publisher in 0..PUBLISHERS {
            let prefix = format!("{publisher}:");
            let numbers = received.iter().filter_map(|(_, payload)| payload.strip_prefix(&prefix));
            let numbers: Vec<usize> = numbers.map(str::parse).collect::<Result<_, _>>()?;
            let expected: Vec<_> = (0..PUBLICATIONS).collect();
            assert_eq!(numbers, expected, "what publisher {publisher} published");
        }
    }
    server.stop().await
}

#[tokio::test]
async fn all_see_one_order_with_the_component_engine() -> Result<()> {
    check(Engine::Component).await
}

#[tokio::test]
async fn all_see_one_order_with_the_native_engine() -> Result<()> {
    check(Engine::Native).await
}

/// How many clients publish at once, and how often each does.
const SPEAKERS: usize = 24;
const ROUNDS: usize = 50;

/// Publishes alternately where it is permitted and where it is not.
async fn speak(mut client: Client, speaker: usize) -> Result<()> {
    for round in 0..ROUNDS {
        let payload = format!("{speaker}:{round}");
        let answer = client.call(json!(["PUBLISH", "hall", payload])).await?;
        ensure!(answer == json!(["OK", 1]), "{payload} is answered {answer}");
        let answer = client.call(json!(["PUBLISH", "vault", payload])).await?;
        let code = answer.pointer("/1/code");
        ensure!(code == Some(&json!("NOPERM")), "{payload} is answered {answer}");
    }
    Ok(())
}

/// A client that publishes and closes in one write receives the reply first.
#[tokio::test]
async fn a_client_that_publishes_and_closes_is_answered() -> Result<()> {
    let server = Launch::default().start().await?;
    let mut listener = server.client().await?;
    listener.call(json!(["SUBSCRIBE", "hall"])).await?;
    for round in 0..20 {
        let says = "PUBLISH hall resp\r\n";
        let answer = exchange(server.resp_address().await?, says).await?;
        ensure!(answer == ":1\r\n", "round {round}: {answer:?}");
        let mut leaving = server.raw_client().await?;
        let words = Frame::new(TEXT, r#"[1,"PUBLISH","hall","json"]"#).bytes();
        leaving.send([words, Frame::close(3000, "").bytes()].concat()).await?;
        let answer = leaving.next_frame().await?.context("it is answered")?;
        ensure!(answer.payload == br#"[1,"OK",1]"#, "round {round}: {answer:?}");
        ensure!(leaving.next_close().await?.0 == Some(3000));
        for said in ["resp", "json"] {
            ensure!(listener.next_json().await? == json!(["message", "hall", said]));
        }
    }
    server.stop().await
}

/// Plugins see the publications of several connections in one call. Each connection receives its
/// own replies, and attributes of one connection are not mixed up with another's.
#[tokio::test]
async fn replies_go_to_the_connection_that_published() -> Result<()> {
    let plugins = components::directory()?;
    let mut notes = vec![json!("allow")];
    for speaker in 0..SPEAKERS {
        let (user, secret) = (format!("user-{speaker}"), format!("secret-{speaker}."));
        notes.push(json!({"note": {"key": "user", "value": user}, "trigger": secret}));
    }
    let settings = json!({
        "on_authenticate": notes,
        "on_access": {"refuse": {"code": "NOPERM", "message": "no"}, "channels": ["vault"]},
        "on_publish": {"show": "user"},
    });
    components::configure(plugins.path(), "probe", &json!({"instances": 2, "settings": settings}))?;
    let probe = components::built("test/probe")?;
    components::write_atomically(&components::path(plugins.path(), "probe"), &probe)?;
    let launch = Launch { plugins: Some(plugins.path().to_owned()), ..Launch::default() };
    let server = launch.start().await?;

    let mut listener = server.client().await?;
    listener.call(json!(["SUBSCRIBE", "hall"])).await?;
    listener.call(json!(["PSUBSCRIBE", "v*"])).await?;
    let mut speakers = JoinSet::new();
    for speaker in 0..SPEAKERS {
        let mut client = server.client().await?;
        client.call(json!(["AUTH", format!("secret-{speaker}.")])).await?;
        speakers.spawn(speak(client, speaker));
    }
    let mut received = BTreeMap::new();
    for _ in 0..SPEAKERS * ROUNDS {
        let push = listener.next_json().await?;
        let payload = push.pointer("/2").and_then(Value::as_str).context("it has a payload")?;
        let (speaker, said) = payload.split_once(':').context("it names the speaker")?;
        received.entry(speaker.parse::<usize>()?).or_insert_with(Vec::new).push(said.to_owned());
    }
    while let Some(spoken) = speakers.join_next().await {
        spoken??;
    }
    for (speaker, said) in received {
        let expected: Vec<_> = (0..ROUNDS).map(|round| format!("{round}:user-{speaker}")).collect();
        assert_eq!(said, expected, "what {speaker} said");
    }
    server.stop().await
}

/// A publication that makes the plugin fail does not affect others of the same call.
#[tokio::test]
async fn a_failed_call_is_repeated_for_its_other_connections() -> Result<()> {
    let plugins = components::directory()?;
    let config = json!({
        "policy": "closed",
        "strikes_max": 1000,
        "strikes_per_connection_max": 1000,
        "settings": {"on_publish": {"panic": true, "trigger": "bad"}},
    });
    components::configure(plugins.path(), "probe", &config)?;
    let probe = components::built("test/probe")?;
    components::write_atomically(&components::path(plugins.path(), "probe"), &probe)?;
    let backoff = "plugins.rebuild_backoff_ms = 1\nplugins.rebuild_backoff_max_ms = 1\n";
    let plugins_of = Some(plugins.path().to_owned());
    let server = Launch { plugins: plugins_of, ..Launch::with_config(backoff) }.start().await?;
    // No client is admitted while the plugin is missing.
    let mut last = server.client().await?;
    let mut clients = Vec::new();
    for _ in 0..SPEAKERS {
        clients.push(server.client().await?);
    }
    let mut speakers = JoinSet::new();
    for (speaker, mut client) in clients.into_iter().enumerate() {
        speakers.spawn(async move {
            for round in 0..ROUNDS {
                let is_bad = speaker == 0 && round % 10 == 0;
                let payload = if is_bad { "bad" } else { "good" };
                let answer = client.call(json!(["PUBLISH", "hall", payload])).await?;
                let is_refused = answer.pointer("/1/code") == Some(&json!("UNAVAILABLE"));
                let is_fine = if is_bad { is_refused } else { answer == json!(["OK", 0]) };
                ensure!(is_fine, "{payload} is answered {answer}");
            }
            Ok(())
        });
    }
    while let Some(spoken) = speakers.join_next().await {
        spoken??;
    }
    let began = Instant::now();
    while last.call(json!(["PUBLISH", "hall", "good"])).await? != json!(["OK", 0]) {
        ensure!(began.elapsed() < PATIENCE, "it is not back");
    }
    server.stop().await
}
