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

/// Requests of a few MiB whose work grows with the number of their arguments.
fn large_requests() -> Vec<(&'static str, Vec<u8>)> {
    const ARGUMENTS: usize = 300_000;
    const LOOP: &str = "for i = 2, #ARGV do redis.call('publish', ARGV[i], ARGV[1]) end";
    let with = |start: &str, further: &[&str], count: usize| {
        let words = start.split(' ').map(str::to_owned);
        let further = further.iter().map(|word| (*word).to_owned()).cycle().take(count);
        words.chain(further).collect::<Vec<_>>()
    };
    let prefixes = (0..20_000).flat_map(|number| ["PREFIX".to_owned(), format!("{number:06}")]);
    let prefixes: Vec<_> =
        with("CLIENT TRACKING ON BCAST", &[], 0).into_iter().chain(prefixes).collect();
    let digest = "a".repeat(40);
    let single = [
        ("CLIENT TRACKING BCAST", prefixes),
        ("CLIENT TRACKING", with("CLIENT TRACKING ON", &["PREFIX", ""], ARGUMENTS)),
        ("CLIENT KILL", with("CLIENT KILL", &["ADDR", "192.0.2.7:1"], ARGUMENTS)),
        ("CLIENT LIST", with("CLIENT LIST ID", &["1"], ARGUMENTS)),
        ("COMMAND DOCS", with("COMMAND DOCS", &["client"], ARGUMENTS)),
        ("COMMAND GETKEYS", with("COMMAND GETKEYS WATCH", &["a"], ARGUMENTS)),
        ("CONFIG SET", with("CONFIG SET", &["a"], ARGUMENTS)),
        (
            "EVAL",
            ["EVAL", LOOP, "0"]
                .iter()
                .map(|word| (*word).to_owned())
                .chain(with("x", &["a"], ARGUMENTS))
                .collect(),
        ),
        ("HELLO", with("HELLO 2", &["SETNAME", "a"], ARGUMENTS)),
        ("LATENCY RESET", with("LATENCY RESET", &["a"], ARGUMENTS)),
        ("MEMORY USAGE", with("MEMORY USAGE a", &["SAMPLES", "1"], ARGUMENTS)),
        ("PUBSUB NUMSUB", with("PUBSUB NUMSUB", &["a"], ARGUMENTS)),
        ("SCRIPT EXISTS", with("SCRIPT EXISTS", &[&digest], ARGUMENTS)),
        ("SUBSCRIBE", with("SUBSCRIBE", &["a"], ARGUMENTS)),
        ("UNSUBSCRIBE", with("UNSUBSCRIBE", &["a"], ARGUMENTS)),
        ("WATCH", with("WATCH", &["a"], ARGUMENTS)),
    ];
    single.into_iter().map(|(name, words)| (name, resp::command(&words))).collect()
}

/// Each is refused, as a command and between MULTI and EXEC, and others do not wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_served_while_commands_with_many_arguments_are_refused() -> Result<()> {
    let server = Launch::default().start().await?;
    let address = server.resp_address().await?;
    // Made before, because the bystander runs in the same task.
    let requests = large_requests();
    let asking = async {
        for (name, request) in requests {
            let mut client = Resp::connect(address).await?;
            client.send(&request).await?;
            let line = client.line().await?;
            ensure!(
                line.starts_with("-LIMIT ") && line.contains(" in one command; "),
                "{name}: {line}"
            );
            ensure!(client.call(&["MULTI"]).await? == "+OK");
            client.send(&request).await?;
            let line = client.line().await?;
            ensure!(line.starts_with("-LIMIT "), "{name} after MULTI: {line}");
            let line = client.call(&["EXEC"]).await?;
            ensure!(line.starts_with("-EXECABORT "), "{name} after MULTI: {line}");
        }
        Ok(())
    };
    let mut bystander = Resp::connect(address).await?;
    let mut longest = Duration::ZERO;
    let calling = async {
        loop {
            let began = Instant::now();
            ensure!(bystander.call(&["PING"]).await? == "+PONG");
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

/// A request of 40 KB for the digests of 1,000 scripts costs as much as one for names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_digests_are_looked_up_at_once() -> Result<()> {
    const REQUESTS: usize = 300;
    let server = Launch::default().start().await?;
    let mut client = Resp::connect(server.resp_address().await?).await?;
    for number in 0..100 {
        let space = " ".repeat(number);
        let script =
            format!("for i = 2, #ARGV do{space} redis.call('publish', ARGV[i], ARGV[1]) end");
        ensure!(client.call(&["SCRIPT", "LOAD", &script]).await? == "$40");
        client.line().await?;
    }
    let mut words = vec!["SCRIPT".to_owned(), "EXISTS".to_owned()];
    words.extend(std::iter::repeat_n("a".repeat(40), 999));
    let request = resp::command(&words);
    let began = Instant::now();
    for _ in 0..REQUESTS {
        client.send(&request).await?;
        ensure!(client.array().await?.iter().all(|found| found == ":0"));
    }
    let took = began.elapsed();
    println!("{REQUESTS} requests took {took:?}");
    ensure!(took < Duration::from_secs(3), "{REQUESTS} requests took {took:?}");
    server.stop().await
}

/// A frame of a MiB has room for 350,000 commands. Those of an accepted one are answered in order,
/// while others are served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_of_many_commands_is_executed_in_parts_or_refused() -> Result<()> {
    let server = Launch::default().start().await?;
    let frame = |count: usize| format!("[{}]", vec!["[]"; count].join(","));
    let mut bystander = Resp::connect(server.resp_address().await?).await?;
    let mut client = server.client().await?;
    let asking = async {
        for count in [10_001, 350_000] {
            client.send(Message::text(frame(count))).await?;
            let answer = client.next_json().await?;
            let said = format!("{count} commands in one frame; there may be 10000");
            ensure!(answer.pointer("/2/message") == Some(&json!(said)), "{answer}");
        }
        client.send(Message::text(frame(9_999).replace("[[],", r#"[[1,"PING"],"#))).await?;
        client.send(Message::text(r#"[2,"PING"]"#)).await?;
        ensure!(client.next_json().await? == json!([1, "OK", "PONG"]));
        for _ in 1..9_999 {
            let answer = client.next_json().await?;
            ensure!(answer.pointer("/2/code") == Some(&json!("BADFRAME")), "{answer}");
        }
        ensure!(client.next_json().await? == json!([2, "OK", "PONG"]));
        Ok(())
    };
    let mut longest = Duration::ZERO;
    let calling = async {
        loop {
            let began = Instant::now();
            ensure!(bystander.call(&["PING"]).await? == "+PONG");
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
