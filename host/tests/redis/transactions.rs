//! What conversations cannot show of MULTI: plugins, limits, memory, and traffic of others.

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tokio::sync::watch;

use crate::client::RespClient;
use crate::support::components;
use crate::support::server::Launch;
use crate::value::{Shape, Value, ack, command, message};

fn array(items: Vec<Value>) -> Value {
    Value::Aggregate(Shape::Array, items)
}

fn simple(text: &str) -> Value {
    Value::Simple(text.into())
}

/// Sends MULTI, the commands and EXEC in one piece. Returns the reply to EXEC.
async fn transact(client: &mut RespClient, commands: &[&[&str]]) -> Result<Value> {
    let mut sent = command(&["MULTI"]);
    commands.iter().for_each(|words| sent.extend(command(words)));
    sent.extend(command(&["EXEC"]));
    client.send(&sent).await?;
    let mut replies = client.next_many(commands.len() + 2).await?;
    let reply = replies.pop().context("EXEC has a reply")?;
    ensure!(replies.first() == Some(&simple("OK")), "{replies:?}");
    let queued = replies.iter().skip(1).filter(|reply| **reply == simple("QUEUED")).count();
    ensure!(queued == commands.len(), "{replies:?}");
    Ok(reply)
}

#[tokio::test]
async fn a_plugin_refuses_single_publications_of_a_transaction() -> Result<()> {
    let plugins = components::directory()?;
    let rules = json!({"rules": [{"users": ["*"], "subscribe": ["*"], "publish": ["open.*"]}]});
    components::install(plugins.path(), "10-acl", &components::built("acl")?, &rules)?;
    let rules = json!({"rules": [{"channels": ["*"], "regex": "\\d{4}", "action": "mask",
        "with": "[number]"}]});
    components::install(plugins.path(), "20-redact", &components::built("redact")?, &rules)?;
    let launch = Launch { plugins: Some(plugins.path().to_owned()), ..Launch::default() };
    let server = launch.start().await?;
    let address = server.resp_address().await?;
    let mut subscriber = RespClient::connect(address).await?;
    subscriber.call(&["PSUBSCRIBE", "*"]).await?;
    let mut publisher = RespClient::connect(address).await?;
    let commands: &[&[&str]] = &[
        &["PUBLISH", "open.1", "one"],
        &["PUBLISH", "closed.1", "two"],
        &["PUBLISH", "open.1", "number 3333"],
    ];
    let Value::Aggregate(_, replies) = transact(&mut publisher, commands).await? else {
        bail!("no array")
    };
    let [first, refused, last] = replies.as_slice() else { bail!("{replies:?}") };
    ensure!((first, last) == (&Value::Integer(1), &Value::Integer(1)), "{replies:?}");
    ensure!(matches!(refused, Value::Error(text) if text.starts_with(b"NOPERM ")), "{refused}");
    for payload in ["one", "number [number]"] {
        let expected = message("pmessage", &[b"*", b"open.1", payload.as_bytes()]);
        let came = subscriber.next().await?;
        ensure!(came == expected, "{came} instead of {expected}");
    }
    subscriber.nothing(0).await?;
    drop((subscriber, publisher));
    server.stop().await
}

/// The commands need many time budgets, and other clients are served in between.
#[tokio::test]
async fn a_long_transaction_is_answered_as_one() -> Result<()> {
    const COMMANDS: usize = 10_000;
    let server = Launch::with_config("engine.shards = 3").start().await?;
    let address = server.resp_address().await?;
    let mut subscriber = RespClient::connect(address).await?;
    subscriber.call(&["SUBSCRIBE", "news"]).await?;
    let mut publisher = RespClient::connect(address).await?;
    publisher.call(&["HELLO", "3"]).await?;
    publisher.call(&["SUBSCRIBE", "news"]).await?;
    let payloads: Vec<_> = (0..COMMANDS).map(|number| number.to_string()).collect();
    let commands: Vec<[&str; 3]> =
        payloads.iter().map(|payload| ["PUBLISH", "news", payload]).collect();
    let commands: Vec<&[&str]> = commands.iter().map(<[&str; 3]>::as_slice).collect();
    let reply = transact(&mut publisher, &commands).await?;
    ensure!(reply == array(vec![Value::Integer(2); COMMANDS]), "not all were published");
    for payload in &payloads {
        let expected = payload.as_bytes();
        ensure!(publisher.next().await?.payload()? == expected, "{payload} is missing");
        ensure!(subscriber.next().await?.payload()? == expected, "{payload} is missing");
    }
    subscriber.nothing(0).await?;
    publisher.nothing(0).await?;
    drop((subscriber, publisher));
    server.stop().await
}

/// Messages of others come neither into a reply to EXEC nor before the acknowledgement in it.
#[tokio::test]
async fn messages_of_others_come_after_the_whole_reply() -> Result<()> {
    const ROUNDS: usize = 200;
    let server = Launch::with_config("engine.shards = 3").start().await?;
    let address = server.resp_address().await?;
    let (stop, stopped) = watch::channel(false);
    let mut flooder = RespClient::connect(address).await?;
    let flood = tokio::spawn(async move {
        while !*stopped.borrow() {
            flooder.send(&command(&["PUBLISH", "news", "x"]).repeat(20)).await?;
            flooder.next_many(20).await?;
        }
        anyhow::Ok(())
    });
    let mut client = RespClient::connect(address).await?;
    let subscribed = array(vec![
        ack("subscribe", "news", 1),
        array(vec![Value::bulk("pong"), Value::bulk("")]),
        Value::bulk("x"),
        ack("psubscribe", "other*", 2),
    ]);
    let mut messages = 0;
    for _ in 0..ROUNDS {
        let commands: &[&[&str]] =
            &[&["SUBSCRIBE", "news"], &["PING"], &["ECHO", "x"], &["PSUBSCRIBE", "other*"]];
        let reply = transact(&mut client, commands).await?;
        ensure!(reply == subscribed, "{reply}");
        client.command(&["RESET"]).await?;
        loop {
            let value = client.next().await?;
            if value == simple("RESET") {
                break;
            }
            ensure!(value == message("message", &[b"news", b"x"]), "{value}");
            messages += 1;
        }
    }
    println!("{messages} messages in {ROUNDS} rounds");
    stop.send(true)?;
    flood.await??;
    drop(client);
    server.stop().await
}

#[tokio::test]
async fn each_command_counts_once_for_the_rate() -> Result<()> {
    let server = Launch::with_config("limits.commands_per_second_max = 100").start().await?;
    let address = server.resp_address().await?;
    let mut client = RespClient::connect(address).await?;
    let commands = vec![["PUBLISH", "news", "x"].as_slice(); 70];
    let reply = transact(&mut client, &commands).await?;
    ensure!(reply == array(vec![Value::Integer(0); 70]), "{reply}");

    let mut client = RespClient::connect(address).await?;
    let mut sent = command(&["MULTI"]);
    sent.extend(command(&["PUBLISH", "news", "x"]).repeat(120));
    sent.extend(command(&["EXEC"]));
    client.send(&sent).await?;
    let replies = client.next_many(122).await?;
    let is_limit =
        |value: &&Value| matches!(value, Value::Error(text) if text.starts_with(b"LIMIT "));
    ensure!(replies.iter().filter(is_limit).count() > 0, "{replies:?}");
    let last = replies.last().context("EXEC has a reply")?;
    ensure!(matches!(last, Value::Error(text) if text.starts_with(b"EXECABORT ")), "{last}");
    drop(client);
    server.stop().await
}

#[tokio::test]
async fn what_is_queued_counts_as_memory() -> Result<()> {
    const COMMANDS: usize = 10;
    let config = "limits.input_bytes_total_max = 8388608\nlimits.input_timeout_ms = 1000";
    let server = Launch::with_config(config).start().await?;
    let address = server.resp_address().await?;
    let payload = "x".repeat(1 << 20);
    // A transaction that waits is no message that was received in part: it has no timeout.
    let mut patient = RespClient::connect(address).await?;
    patient.call(&["MULTI"]).await?;
    patient.call(&["ECHO", "x"]).await?;
    let mut clients = Vec::new();
    'clients: for _ in 0..3 {
        let mut client = RespClient::connect(address).await?;
        client.call(&["MULTI"]).await?;
        for _ in 0..COMMANDS {
            if client.call(&["PUBLISH", "news", &payload]).await.is_err() {
                continue 'clients;
            }
        }
        clients.push(client);
    }
    server.wait_for_log("to stay within limits.input_bytes_total_max").await?;
    let reply = patient.call(&["EXEC"]).await?;
    ensure!(reply == array(vec![Value::bulk("x")]), "{reply}");
    drop((patient, clients));
    server.stop().await
}

#[tokio::test]
async fn a_reply_that_no_outbox_may_hold_closes_the_connection() -> Result<()> {
    let config = "outbox.bytes_max = 262144\noutbox.soft_bytes = 262144";
    let server = Launch::with_config(config).start().await?;
    let mut client = RespClient::connect(server.resp_address().await?).await?;
    let mut sent = command(&["MULTI"]);
    sent.extend(command(&["COMMAND"]).repeat(1_000));
    sent.extend(command(&["EXEC"]));
    client.send(&sent).await?;
    let came = client.rest().await?;
    let queued = b"+QUEUED\r\n".repeat(1_000);
    let expected = [b"+OK\r\n".as_slice(), &queued].concat();
    ensure!(came == expected, "{} bytes", came.len());
    let mut other = RespClient::connect(server.resp_address().await?).await?;
    ensure!(other.call(&["PING"]).await? == simple("PONG"));
    drop((client, other));
    server.stop().await
}
