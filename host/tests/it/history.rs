//! The history of channels: RESUME, HISTORY, and what publications carry for it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::answers::{ask, refused};
use crate::support::admin::Operator;
use crate::support::components::{self, write_atomically};
use crate::support::race::{Race, Size};
use crate::support::server::{Launch, Server, with_quick_end};
use crate::support::websocket::{Client, RawClient, TEXT};

const RULE: &str = "[[channels]]\nmatch = 'chat.*'\nhistory_messages = 5\nhistory_ms = '5m'\n";

async fn server() -> Result<Server> {
    Launch::with_config(RULE).start().await
}

async fn publish(client: &mut Client, channel: &str, payload: &str) -> Result<String> {
    let answer = ask(client, json!(["PUBLISH", channel, payload, {"position": true}])).await?;
    let position = answer.get("position").and_then(Value::as_str);
    Ok(position.with_context(|| format!("no position: {answer}"))?.to_owned())
}

/// A position with another offset.
fn moved(position: &str, by: i64) -> Result<String> {
    let (epoch, offset) = position.split_once('-').context("no position")?;
    Ok(format!("{epoch}-{}", offset.parse::<i64>()? + by))
}

fn resumed(listening: u64, position: &str, missed: usize) -> Value {
    json!({"listening": listening, "position": position, "recovered": true, "missed": missed})
}

fn lost(listening: u64, position: &str, missed: usize, reason: &str) -> Value {
    json!({
        "listening": listening, "position": position, "recovered": false, "missed": missed,
        "reason": reason,
    })
}

async fn expect_message(client: &mut Client, payload: &str, position: &str) -> Result<()> {
    let expected = json!(["message", "chat.1", payload, {"position": position}]);
    let message = client.next_json().await?;
    ensure!(message == expected, "{message} instead of {expected}");
    Ok(())
}

#[tokio::test]
async fn a_client_that_resumes_receives_exactly_what_it_missed() -> Result<()> {
    let server = server().await?;
    let mut publisher = server.client().await?;
    let mut client = server.client().await?;
    let first = ask(&mut client, json!(["RESUME", "chat.1"])).await?;
    let start = first["position"].as_str().context("no position")?.to_owned();
    ensure!(start.ends_with("-0"), "{start}");
    let expected = json!({"listening": 1, "position": start, "recovered": false, "missed": 0});
    assert_eq!(first, expected);
    let one = publish(&mut publisher, "chat.1", "one").await?;
    assert_eq!(one, moved(&start, 1)?);
    expect_message(&mut client, "one", &one).await?;

    drop(client);
    let two = publish(&mut publisher, "chat.1", "two").await?;
    let three = publish(&mut publisher, "chat.1", "three").await?;
    let mut client = server.client().await?;
    let answer = ask(&mut client, json!(["RESUME", "chat.1", one])).await?;
    assert_eq!(answer, resumed(1, &three, 2));
    expect_message(&mut client, "two", &two).await?;
    expect_message(&mut client, "three", &three).await?;
    let four = publish(&mut publisher, "chat.1", "four").await?;
    expect_message(&mut client, "four", &four).await?;

    // Nothing was missed, and then the connection is subscribed already, by whichever command.
    let mut client = server.client().await?;
    assert_eq!(ask(&mut client, json!(["RESUME", "chat.1", four])).await?, resumed(1, &four, 0));
    let answer = ask(&mut client, json!(["RESUME", "chat.1", one])).await?;
    assert_eq!(answer, lost(1, &four, 0, "listening"));
    assert_eq!(ask(&mut client, json!(["SUBSCRIBE", "chat.1"])).await?, json!(1));
    assert_eq!(ask(&mut client, json!(["UNSUBSCRIBE", "chat.1"])).await?, json!(0));
    assert_eq!(ask(&mut client, json!(["RESUME", "chat.1", three])).await?, resumed(1, &four, 1));
    expect_message(&mut client, "four", &four).await?;
    server.stop().await
}

#[tokio::test]
async fn what_cannot_be_recovered_is_said_with_a_reason() -> Result<()> {
    let config = format!("history.resume_messages_max = 3\n{RULE}");
    let server = Launch::with_config(&config).start().await?;
    let mut publisher = server.client().await?;
    let mut positions = Vec::new();
    for number in 0..7 {
        positions.push(publish(&mut publisher, "chat.1", &number.to_string()).await?);
    }
    let [first, second, third, fourth, .., last] = &positions[..] else { bail!("too few") };
    let future = moved(last, 1)?;
    let (epoch, offset) = last.split_once('-').context("no position")?;
    let other_epoch = format!("{}-{offset}", epoch.parse::<u64>()? - 1);
    for (position, expected) in [
        (first, lost(1, last, 0, "trimmed")),
        (second, lost(1, last, 0, "many")),
        (third, lost(1, last, 0, "many")),
        (fourth, resumed(1, last, 3)),
        (&future, lost(1, last, 0, "epoch")),
        (&other_epoch, lost(1, last, 0, "epoch")),
    ] {
        let mut client = server.client().await?;
        let answer = ask(&mut client, json!(["RESUME", "chat.1", position])).await?;
        ensure!(answer == expected, "{position}: {answer}");
        for number in 4..4 + answer["missed"].as_u64().unwrap_or(0) {
            let message = client.next_json().await?;
            ensure!(message.get(2) == Some(&json!(number.to_string())), "{message}");
        }
        // What comes after the reply is live.
        ask(&mut client, json!(["PING"])).await?;
    }
    // `last` rewinds where the position is not recovered.
    let mut client = server.client().await?;
    let answer = ask(&mut client, json!(["RESUME", "chat.1", first, {"last": 1}])).await?;
    assert_eq!(answer, lost(1, last, 1, "trimmed"));
    expect_message(&mut client, "6", last).await?;
    let mut client = server.client().await?;
    ask(&mut client, json!(["RESUME", "chat.1", last, {"last": 1}])).await?;
    ask(&mut client, json!(["PING"])).await?;
    server.stop().await
}

#[tokio::test]
async fn nothing_is_recovered_from_a_server_that_was_killed() -> Result<()> {
    let position = {
        let server = server().await?;
        let mut client = server.client().await?;
        publish(&mut client, "chat.1", "x").await?
        // Dropping the server kills it.
    };
    let server = server().await?;
    let mut client = server.client().await?;
    let answer = ask(&mut client, json!(["RESUME", "chat.1", position])).await?;
    let epoch = |text: &str| text.split_once('-').and_then(|(epoch, _)| epoch.parse::<u64>().ok());
    let new = answer["position"].as_str().context("no position")?;
    assert_eq!(answer, lost(1, new, 0, "epoch"));
    ensure!(epoch(new) > epoch(&position), "{position}, then {new}");
    server.stop().await
}

#[tokio::test]
async fn history_is_read_in_pages_in_both_directions() -> Result<()> {
    let server = server().await?;
    let mut client = server.client().await?;
    let mut positions = Vec::new();
    for number in 0..7 {
        positions.push(publish(&mut client, "chat.1", &number.to_string()).await?);
    }
    let last = positions.last().context("there are some")?.clone();
    let page = |numbers: &[usize], next: Option<usize>, gap: bool| {
        let messages: Vec<_> =
            numbers.iter().map(|number| json!([positions[*number], number.to_string()])).collect();
        let next = next.map(|number| positions[number].clone());
        json!({"position": last, "messages": messages, "next": next, "gap": gap})
    };
    for (options, expected) in [
        (json!({}), page(&[2, 3, 4, 5, 6], None, false)),
        (json!({"limit": 2}), page(&[2, 3], Some(3), false)),
        (json!({"limit": 2, "after": positions[3]}), page(&[4, 5], Some(5), false)),
        (json!({"limit": 5, "after": positions[5]}), page(&[6], None, false)),
        (json!({"after": positions[6]}), page(&[], None, false)),
        (json!({"after": positions[0]}), page(&[2, 3, 4, 5, 6], None, true)),
        (json!({"after": null, "until": positions[3]}), page(&[2, 3], None, false)),
        (json!({"before": positions[3]}), page(&[2], None, false)),
        (json!({"reverse": true, "limit": 2}), page(&[6, 5], Some(5), false)),
        (
            json!({"reverse": true, "before": positions[5], "limit": 9}),
            page(&[4, 3, 2], None, false),
        ),
    ] {
        let answer = ask(&mut client, json!(["HISTORY", "chat.1", options])).await?;
        ensure!(answer == expected, "{options}: {answer}");
    }
    let answer =
        ask(&mut client, json!(["HISTORY", "chat.1", {"times": true, "limit": 1}])).await?;
    let at = answer["messages"][0][2].as_u64().context("no time")?;
    let now = ask(&mut client, json!(["HELLO"])).await?["now_ms"].as_u64().context("no time")?;
    ensure!((now - 60_000..=now).contains(&at), "{at}, now {now}");

    for (command, code) in [
        (json!(["RESUME", "news"]), "NOHISTORY"),
        (json!(["HISTORY", "news"]), "NOHISTORY"),
        (json!(["PUBLISH", "news", "x", {"version": 1}]), "NOHISTORY"),
        (json!(["PUBLISH", "news", "x", {"tags": {}}]), "NOHISTORY"),
        (json!(["RESUME", "chat.1", "1"]), "BADVALUE"),
        (json!(["RESUME", "chat.1", 1]), "BADVALUE"),
        (json!(["RESUME", "chat.1", null, {"last": 0}]), "BADVALUE"),
        (json!(["RESUME", "chat.1", null, {"last": 1001}]), "BADVALUE"),
        (json!(["RESUME", "chat.1", null, {"newest": 1}]), "BADVALUE"),
        (json!(["RESUME", "chat.1", null, {}, 1]), "ARITY"),
        (json!(["RESUME"]), "ARITY"),
        (json!(["HISTORY", "chat.1", {"limit": 1001}]), "BADVALUE"),
        (json!(["HISTORY", "chat.1", {"limit": 1.5}]), "BADVALUE"),
        (json!(["HISTORY", "chat.1", {"after": "01-1"}]), "BADVALUE"),
        (json!(["HISTORY", "chat.1", {"reverse": 1}]), "BADVALUE"),
        (json!(["HISTORY", "chat.1", []]), "BADVALUE"),
        (json!(["HISTORY"]), "ARITY"),
        (json!(["PUBLISH", "chat.1", "x", {"key": ""}]), "BADVALUE"),
        (json!(["PUBLISH", "chat.1", "x", {"key": "k".repeat(129)}]), "BADVALUE"),
        (json!(["PUBLISH", "chat.1", "x", {"version": 0}]), "BADVALUE"),
        (json!(["PUBLISH", "chat.1", "x", {"version": 1_u64 << 53}]), "BADVALUE"),
        (json!(["PUBLISH", "chat.1", "x", {"tags": {"a": 1}}]), "BADVALUE"),
        (json!(["PUBLISH", "chat.1", "x", {"tags": {"a": "b".repeat(1024)}}]), "TOOLARGE"),
        (json!(["PUBLISH", "chat.1", "x", {"position": 1}]), "BADVALUE"),
        (json!(["PUBLISH", "chat.1", "x", {"p": 1}]), "BADVALUE"),
        (json!(["PUBLISH", "chat.1", "x", {}, {}]), "ARITY"),
    ] {
        let answer = refused(&mut client, command.clone()).await?;
        ensure!(answer == code, "{command}: {answer}");
    }
    // A refused command has no effect.
    let answer =
        ask(&mut client, json!(["HISTORY", "chat.1", {"reverse": true, "limit": 1}])).await?;
    assert_eq!(answer["position"], last);
    server.stop().await
}

#[tokio::test]
async fn a_key_publishes_once_also_when_two_use_it_at_once() -> Result<()> {
    const ROUNDS: usize = 50;
    let config = format!("limits.payload_bytes_max = 100\n{RULE}");
    let server = Launch::with_config(&config).start().await?;
    let mut listener = server.client().await?;
    ask(&mut listener, json!(["SUBSCRIBE", "chat.1", "news"])).await?;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(server.client().await?);
    }
    for round in 0..ROUNDS {
        for channel in ["chat.1", "news"] {
            let payload = format!("{channel} {round}");
            let options = json!({"key": format!("key {round}"), "position": true});
            let command = json!(["PUBLISH", channel, payload, options]);
            let asking = clients.iter_mut().map(|client| ask(client, command.clone()));
            let answers = futures_util::future::try_join_all(asking).await?;
            ensure!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
            ensure!(answers[0]["deliveries"] == 1, "{answers:?}");
            ensure!(answers[0]["position"].is_string() == (channel == "chat.1"), "{answers:?}");
            let message = listener.next_json().await?;
            ensure!(message[2] == payload, "{message}");
        }
    }
    // Twice in one frame, with another payload, and in another form.
    let [client, ..] = &mut clients[..] else { bail!("no client") };
    let both = json!([
        [1, "PUBLISH", "news", "first", {"key": "k"}],
        [2, "PUBLISH", "news", "second", {"key": "k", "position": true}],
    ]);
    client.send(Message::text(both.to_string())).await?;
    assert_eq!(client.next_json().await?, json!([1, "OK", 1]));
    assert_eq!(client.next_json().await?, json!([2, "OK", {"deliveries": 1, "position": null}]));
    assert_eq!(listener.next_json().await?, json!(["message", "news", "first"]));
    // A refused publication is not remembered.
    let large = "x".repeat(101);
    let answer = client.call(json!(["PUBLISH", "news", large, {"key": "large"}])).await?;
    ensure!(answer.pointer("/1/code") == Some(&json!("TOOLARGE")), "{answer}");
    assert_eq!(ask(client, json!(["PUBLISH", "news", "small", {"key": "large"}])).await?, json!(1));
    assert_eq!(listener.next_json().await?, json!(["message", "news", "small"]));
    server.stop().await
}

#[tokio::test]
async fn versions_drop_what_is_older_and_tags_are_kept() -> Result<()> {
    let server = server().await?;
    let mut client = server.client().await?;
    ask(&mut client, json!(["SUBSCRIBE", "chat.1"])).await?;
    ask(&mut client, json!(["PSUBSCRIBE", "chat.*"])).await?;
    let options = json!({"version": 7, "tags": {"kind": "score", "at": "\"home\""}});
    assert_eq!(ask(&mut client, json!(["PUBLISH", "chat.1", "x", options])).await?, json!(2));
    let message = client.next_json().await?;
    let position = message[3]["position"].clone();
    let tags = json!({"kind": "score", "at": "\"home\""});
    let more = json!({"position": position, "tags": tags});
    assert_eq!(message, json!(["message", "chat.1", "x", more]));
    assert_eq!(client.next_json().await?, json!(["pmessage", "chat.*", "chat.1", "x", more]));
    for version in [1, 7] {
        let answer =
            ask(&mut client, json!(["PUBLISH", "chat.1", "y", {"version": version}])).await?;
        assert_eq!(answer, json!({"deliveries": 0, "stale": true}));
    }
    let page = ask(&mut client, json!(["HISTORY", "chat.1"])).await?;
    assert_eq!(page["messages"], json!([[position, "x", {"tags": tags}]]));
    assert_eq!(
        ask(&mut client, json!(["PUBLISH", "chat.1", "z", {"version": 8}])).await?,
        json!(2)
    );
    server.stop().await
}

#[tokio::test]
async fn a_reload_holds_at_once_and_what_lost_its_history_lost_it_for_good() -> Result<()> {
    let server = server().await?;
    let mut client = server.client().await?;
    let mut last = String::new();
    for number in 0..5 {
        last = publish(&mut client, "chat.1", &number.to_string()).await?;
    }
    let file = server.home().join("switchyard.toml");
    let mut changes = 0;
    let mut change = async |config: &str| {
        write_atomically(&file, with_quick_end(config).as_bytes())?;
        changes += 1;
        server.wait_for_logs("settings were changed", changes).await
    };
    change(&RULE.replace("= 5\n", "= 2\n")).await?;
    let page = ask(&mut client, json!(["HISTORY", "chat.1"])).await?;
    assert_eq!(page["messages"].as_array().map(Vec::len), Some(2));
    assert_eq!(page["position"], last);
    change("").await?;
    assert_eq!(refused(&mut client, json!(["HISTORY", "chat.1"])).await?, "NOHISTORY");
    change(RULE).await?;
    let answer = ask(&mut client, json!(["RESUME", "chat.1", last])).await?;
    assert_eq!(answer["reason"], "epoch");
    server.stop().await
}

#[tokio::test]
async fn swaps_of_engine_and_plugins_do_not_touch_streams() -> Result<()> {
    let plugins = components::directory()?;
    let probe = |stamp| components::stamped(components::built("test/probe")?, stamp);
    components::install(plugins.path(), "10-probe", &probe(1)?, &json!({}))?;
    let launch = Launch { plugins: Some(plugins.path().to_owned()), ..Launch::with_config(RULE) };
    let server = launch.start().await?;
    let operator = Operator::of(&server).await?;
    let mut client = server.client().await?;
    let one = publish(&mut client, "chat.1", "one").await?;
    let engine = server.home().join("engine.wasm");
    write_atomically(&engine, &components::rehashed(components::built("guest-core")?, 7))?;
    let engine = engine.to_str().context("a path in UTF-8")?;
    operator.say(&["engine", "swap", engine])?;
    let two = publish(&mut client, "chat.1", "two").await?;
    components::install(plugins.path(), "10-probe", &probe(2)?, &json!({}))?;
    server.wait_for_log("a plugin was swapped").await?;
    let three = publish(&mut client, "chat.1", "three").await?;
    assert_eq!([two, three.clone()], [moved(&one, 1)?, moved(&one, 2)?]);
    let answer = ask(&mut client, json!(["RESUME", "chat.1", one])).await?;
    assert_eq!(answer, resumed(1, &three, 2));
    server.stop().await
}

/// What a connection may not see live it does not see later.
#[tokio::test]
async fn what_is_replayed_passes_on_deliver() -> Result<()> {
    let plugins = components::directory()?;
    let probe = components::built("test/probe")?;
    let settings = json!({"on_deliver": {"narrow": "none"}});
    components::install(plugins.path(), "10-probe", &probe, &settings)?;
    let launch = Launch { plugins: Some(plugins.path().to_owned()), ..Launch::with_config(RULE) };
    let server = launch.start().await?;
    let mut client = server.client().await?;
    let one = publish(&mut client, "chat.1", "one").await?;
    let two = publish(&mut client, "chat.1", "two").await?;
    let answer = ask(&mut client, json!(["RESUME", "chat.1", one])).await?;
    assert_eq!(answer, resumed(1, &two, 0));
    let page = ask(&mut client, json!(["HISTORY", "chat.1"])).await?;
    assert_eq!(page, json!({"position": two, "messages": [], "next": null, "gap": false}));
    server.stop().await
}

/// Operators see what channels retain and who is a member, and can end a history.
/// Clients resume more in one frame than may be queued for a connection. It waits until they read,
/// and they keep no other client from resuming.
#[tokio::test]
async fn what_many_resumes_replay_waits_until_the_client_reads() -> Result<()> {
    const CHANNELS: usize = 20;
    let limits = "[outbox]\nbytes_max = 4194304\nsoft_bytes = 1048576\n\
        [history]\nresume_bytes_max = 1000000\n";
    let server = Launch::with_config(&format!("{limits}{RULE}")).start().await?;
    let mut publisher = server.client().await?;
    let payload = "x".repeat(100_000);
    let channels: Vec<_> = (0..CHANNELS).map(|number| format!("chat.{number}")).collect();
    for channel in channels.iter().flat_map(|channel| [channel; 5]) {
        publish(&mut publisher, channel, &payload).await?;
    }
    let resume = |channel: &String| json!([1, "RESUME", channel, null, {"last": 5}]);
    let frame = Value::Array(channels.iter().map(resume).collect()).to_string();
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = RawClient::dial_narrow(server.address().await?).await?.upgrade().await?;
        client.send_text(&frame).await?;
        clients.push(client);
    }
    // The last one reads at once.
    for client in clients.iter_mut().rev() {
        for channel in &channels {
            for count in 0..6 {
                let frame = client.next_frame().await?.context("the connection ended")?;
                let text = String::from_utf8(frame.payload)?;
                ensure!(frame.opcode == TEXT, "{text}");
                let (is_reply, is_message) = (text.contains("\"OK\""), text.contains(channel));
                ensure!(is_reply == (count == 0) && is_message == (count > 0), "{count}: {text}");
            }
        }
    }
    server.stop().await
}

#[tokio::test]
async fn operators_see_histories_and_members() -> Result<()> {
    let config = format!("history.channels_max = 2\n{RULE}presence = true\n");
    let server = Launch::with_config(&config).start().await?;
    let operator = Operator::of(&server).await?;
    let mut client = server.client().await?;
    for channel in ["chat.1", "chat.2", "chat.3"] {
        publish(&mut client, channel, "x").await?;
    }
    ask(&mut client, json!(["ENTER", "chat.1", {"name": "Ann"}])).await?;
    ask(&mut client, json!(["WATCH", "chat.1"])).await?;
    ask(&mut client, json!(["SUBSCRIBE", "chat.3"])).await?;
    let histories = operator.get("/v1/history")?;
    assert_eq!([&histories["channels"], &histories["messages"]], [2, 2]);
    assert_eq!(histories["evicted"], json!({"idle": 0, "streams": 1, "messages": 0}));
    let page = operator.get("/v1/history?limit=1")?;
    let next = page["next"].as_str().context("there are two")?;
    let rest = operator.get(&format!("/v1/history?limit=1&after={next}"))?;
    ensure!(rest["page"][0]["channel"] != page["page"][0]["channel"] && rest["next"].is_null());
    let room = json!({"channel": "chat.1", "members": 1, "users": 1, "watchers": 1});
    assert_eq!(operator.get("/v1/presence")?["page"], json!([room]));
    let members = operator.get("/v1/presence/members?channel=chat.1")?;
    assert_eq!(members["members"][0]["data"], json!({"name": "Ann"}));
    let top = operator.say(&["channels", "top"])?;
    for words in ["chat.3", "2 channels, 2 messages", "1 others", "1 in 1 channels"] {
        ensure!(top.contains(words), "{words}: {top}");
    }
    let purged = operator.say(&["history", "purge", "chat.3"])?;
    assert_eq!(purged, "1 message was dropped\n");
    let page = ask(&mut client, json!(["HISTORY", "chat.3"])).await?;
    assert_eq!(page["messages"], json!([]));
    // It goes on with what comes.
    let next = publish(&mut server.client().await?, "chat.3", "y").await?;
    let message = client.next_json().await?;
    assert_eq!(message, json!(["message", "chat.3", "y", {"position": next}]));
    server.stop().await
}

/// Plugins see what a publication carries, and may set its tags; on delivery they see its position.
#[tokio::test]
async fn plugins_see_positions_keys_versions_and_tags() -> Result<()> {
    let plugins = components::directory()?;
    let probe = components::built("test/probe")?;
    let tagging = json!({"on_publish": ["show_extras", "tag"], "on_deliver": "show_extras"});
    components::install(plugins.path(), "10-probe", &probe, &tagging)?;
    let launch = Launch { plugins: Some(plugins.path().to_owned()), ..Launch::with_config(RULE) };
    let server = launch.start().await?;
    let mut publisher = server.client().await?;
    let mut client = server.client().await?;
    ask(&mut client, json!(["SUBSCRIBE", "chat.1", "news"])).await?;
    let options = json!({"key": "k", "version": 7, "tags": {"a": "1"}, "position": true});
    let answer = ask(&mut publisher, json!(["PUBLISH", "chat.1", "x", options])).await?;
    let at = answer["position"].as_str().context("no position")?.to_owned();
    let published = "x key k version 7 a=1";
    // Its tags are those of the plugin from then on.
    let more = json!({"position": at, "tags": {"by": "probe"}});
    let live = format!("{published} at {at} key k version 7 by=probe");
    assert_eq!(client.next_json().await?, json!(["message", "chat.1", live, more]));
    let page = ask(&mut publisher, json!(["HISTORY", "chat.1"])).await?;
    let later = format!("{published} at {at} version 7 by=probe");
    let expected = json!([[at, later, {"tags": {"by": "probe"}}]]);
    assert_eq!(page["messages"], expected);
    // A version that is dropped is not delivered, and has no position.
    let next = publish(&mut publisher, "chat.1", "y").await?;
    assert_eq!(next, moved(&at, 1)?);
    let stale = json!(["PUBLISH", "chat.1", "z", {"version": 7}]);
    assert_eq!(ask(&mut publisher, stale).await?, json!({"deliveries": 0, "stale": true}));
    let message = client.next_json().await?;
    assert_eq!(message[2], format!("y at {next} by=probe"));
    // Without history there are no tags.
    ask(&mut publisher, json!(["PUBLISH", "news", "x"])).await?;
    let message = client.next_json().await?;
    assert_eq!(message, json!(["message", "news", "x at nowhere by=probe"]));
    server.stop().await
}

#[tokio::test]
async fn the_command_line_prints_history_and_presence_and_resumes() -> Result<()> {
    let config = format!("{RULE}presence = true\n");
    let server = Launch::with_config(&config).start().await?;
    let url = server.url().await?;
    let run = async |words: &[&str]| -> Result<(bool, String)> {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_switchyard"));
        let output = command.args(words).args(["--url", &url, "--json"]).output().await?;
        let text = String::from_utf8(output.stdout)?;
        let errors = String::from_utf8(output.stderr)?;
        Ok((output.status.success(), text + &errors))
    };
    let mut client = server.client().await?;
    let mut positions = Vec::new();
    for payload in ["one", "two", "three"] {
        positions.push(publish(&mut client, "chat.1", payload).await?);
    }
    ask(&mut client, json!(["ENTER", "chat.1", {"name": "Ann"}])).await?;
    let (_, printed) = run(&["history", "chat.1", "--limit", "2", "--reverse"]).await?;
    let lines: Vec<Value> = printed.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let payloads: Vec<_> = lines.iter().filter_map(|line| line["payload"].as_str()).collect();
    assert_eq!(payloads, ["three", "two"]);
    let (_, printed) = run(&["history", "chat.1", "--after", &positions[1]]).await?;
    ensure!(printed.contains(&positions[2]) && printed.lines().count() == 1, "{printed}");
    let (_, printed) = run(&["presence", "chat.1"]).await?;
    ensure!(printed.contains(r#""data":{"name":"Ann"}"#), "{printed}");
    let (_, printed) = run(&["presence", "chat.1", "--count"]).await?;
    assert_eq!(printed, "{\"count\":1,\"users\":1}\n");
    for command in ["history", "presence"] {
        let (is_ok, printed) = run(&[command, "news"]).await?;
        ensure!(!is_ok && printed.contains("NO"), "{printed}");
    }
    // A message of a channel with history is printed as any, with its position.
    let subscribing = run(&["sub", "--resume", "--count", "1", "chat.1"]);
    let publishing = async {
        loop {
            let counts = ask(&mut client, json!(["PUBSUB", "NUMSUB", "chat.1"])).await?;
            if counts["chat.1"] == 1 {
                return publish(&mut client, "chat.1", "four").await;
            }
        }
    };
    let ((_, printed), position) = tokio::try_join!(subscribing, publishing)?;
    ensure!(printed.contains(&position) && printed.contains("four"), "{printed}");
    server.stop().await
}

/// Publishers at full speed, and clients that disconnect and resume at random.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_reconnect_at_random_lose_nothing() -> Result<()> {
    let size = Size { clients: 20, channels: 4, time: Duration::from_secs(3) };
    let config = "history.resume_messages_max = 50000\nhistory.resume_bytes_max = '4MiB'\n\
        [[channels]]\nmatch = 'race.*'\nhistory_messages = 100000\nhistory_ms = '5m'\n";
    let server = Arc::new(Launch::with_config(config).start().await?);
    let race = Race::start(&server, "race.", size.from_environment()?).await?;
    let (recovered, published) = race.end().await?;
    println!("{recovered} RESUMEs recovered, {published} messages were published");
    Ok(())
}
