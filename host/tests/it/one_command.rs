//! Large commands, and frames that are not commands, cost other clients little.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::resp::{self, Resp};
use crate::support::server::Launch;
use crate::support::websocket::{CONTINUATION, Frame, PING, PONG, TEXT};

const NAMES: usize = 10_000;

fn names() -> Vec<String> {
    (0..NAMES).map(|number| format!("room:{number}")).collect()
}

/// The reply arrives as a whole, in order, before the replies to later commands.
#[tokio::test]
async fn many_names_are_counted_in_parts_and_answered_as_a_whole() -> Result<()> {
    let server = Launch::with_config("engine.shards = 4").start().await?;
    let mut listener = server.client().await?;
    ensure!(
        listener.call(json!(["SUBSCRIBE", "room:0", "room:300", "room:9999"])).await?
            == json!(["OK", 3])
    );
    let mut client = Resp::connect(server.resp_address().await?).await?;
    let mut words = vec!["PUBSUB".to_owned(), "NUMSUB".to_owned()];
    words.extend(names());
    let mut all = resp::command(&words);
    all.extend(resp::command(&["PING"]));
    // With CLIENT REPLY SKIP there is no reply, however many parts it has.
    all.extend(resp::command(&["CLIENT", "REPLY", "SKIP"]));
    all.extend(resp::command(&words));
    all.extend(resp::command(&["ECHO", "last"]));
    client.send(&all).await?;
    let counts = client.array().await?;
    ensure!(counts.len() == 2 * NAMES);
    for (number, pair) in counts.chunks(2).enumerate() {
        let expected = if [0, 300, 9_999].contains(&number) { ":1" } else { ":0" };
        ensure!(pair == [format!("room:{number}"), expected.to_owned()], "{pair:?}");
    }
    ensure!(client.line().await? == "+PONG");
    ensure!(client.line().await? == "$4" && client.line().await? == "last");

    let mut command = vec![json!(1), json!("PUBSUB"), json!("NUMSUB")];
    command.extend(names().into_iter().map(Value::from));
    let mut client = server.client().await?;
    client.send(Message::text(Value::from(command).to_string())).await?;
    client.send(Message::text(r#"[2,"PING"]"#)).await?;
    let answer = client.next_json().await?;
    let counts = answer.get(2).and_then(Value::as_object).map_or(0, serde_json::Map::len);
    ensure!(counts == NAMES && answer.pointer("/2/room:300") == Some(&json!(1)));
    ensure!(client.next_json().await? == json!([2, "OK", "PONG"]));
    server.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_served_while_many_names_are_counted() -> Result<()> {
    let server = Launch::with_config("engine.shards = 4").start().await?;
    let address = server.resp_address().await?;
    let mut words = vec!["PUBSUB".to_owned(), "NUMSUB".to_owned()];
    words.extend(names());
    let request = resp::command(&words);
    let mut busy = Vec::new();
    for _ in 0..8 {
        busy.push(Resp::connect(address).await?);
    }
    let asking = async {
        for _ in 0..5 {
            for client in &mut busy {
                client.send(&request).await?;
            }
            for client in &mut busy {
                ensure!(client.array().await?.len() == 2 * NAMES);
            }
        }
        Ok(())
    };
    let mut bystander = server.client().await?;
    let mut longest = Duration::ZERO;
    let calling = async {
        loop {
            let began = Instant::now();
            ensure!(bystander.call(json!(["PING"])).await? == json!(["OK", "PONG"]));
            longest = longest.max(began.elapsed());
        }
    };
    tokio::select! {
        done = asking => done?,
        failed = calling => { let failed: Result<()> = failed; failed?; }
    }
    println!("a bystander waited {longest:?}");
    ensure!(longest < Duration::from_secs(1), "a bystander waited {longest:?}");
    server.stop().await
}

/// Frames without a command count as commands: a flood of them closes the connection.
#[tokio::test]
async fn frames_that_are_no_commands_are_limited_like_commands() -> Result<()> {
    let server = Launch::with_config("limits.commands_per_second_max = 10").start().await?;
    let flood: [(&str, Vec<Frame>); 3] = [
        ("pings", vec![Frame::new(PING, "x")]),
        ("pongs", vec![Frame::new(PONG, "")]),
        ("empty fragments", vec![Frame::new(CONTINUATION, "").part()]),
    ];
    for (what, frames) in flood {
        let mut client = server.raw_client().await?;
        let mut bytes = match what {
            "empty fragments" => Frame::new(TEXT, "").part().bytes(),
            _ => Vec::new(),
        };
        for _ in 0..100 {
            frames.iter().for_each(|frame| bytes.extend(frame.bytes()));
        }
        client.send(&bytes).await?;
        let mut pongs = 0;
        let (code, _) = loop {
            let Some(frame) = client.next_frame().await? else {
                anyhow::bail!("{what}: no close frame");
            };
            match frame.opcode {
                PONG => pongs += 1,
                _ => break crate::support::websocket::close_of(&frame)?,
            }
        };
        ensure!(code == Some(4104), "{what}: closed with {code:?}");
        ensure!(pongs == if what == "pings" { 10 } else { 0 }, "{what}: {pongs} pongs");
    }
    // The few that a quiet client sends are not counted.
    let mut client = server.raw_client().await?;
    client.send(Frame::new(PING, "x").bytes()).await?;
    ensure!(client.next_frame().await?.is_some_and(|frame| frame.opcode == PONG));
    server.stop().await
}

/// Commands with a reply for each word accept no more words than there can be replies.
#[tokio::test]
async fn commands_that_answer_for_each_word_take_few() -> Result<()> {
    let server = Launch::default().start().await?;
    let mut client = Resp::connect(server.resp_address().await?).await?;
    let refused = [
        ["COMMAND DOCS", "pubsub"],
        ["COMMAND INFO", "get"],
        ["CONFIG GET", "maxmemory"],
        ["INFO", "server"],
    ];
    for [command, word] in refused {
        let words: Vec<&str> = command.split(' ').chain([word; 1_001]).collect();
        let line = client.call(&words).await?;
        ensure!(line.starts_with("-LIMIT "), "{command}: {line}");
    }
    // Long words with many stars.
    let long = format!("*[{}]", "q".repeat(1_000_000));
    let stars = "*a*e*i*o*u*z".repeat(80);
    for words in [vec!["CONFIG", "GET", &long], [&["CONFIG", "GET"], &[&*stars; 900][..]].concat()]
    {
        let line = client.call(&words).await?;
        ensure!(line.starts_with("-LIMIT "), "{line}");
    }
    client.send(&resp::command(&["CONFIG", "GET", "max*", "*client*", "port"])).await?;
    ensure!(client.array().await?.contains(&"maxclients".to_owned()));
    ensure!(client.call(&["COMMAND", "INFO", "ping"]).await? == "*1");
    server.stop().await
}
