//! Patterns that are expensive to match do not delay other clients.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::support::resp::{self, Resp};
use crate::support::server::{Launch, Server};

/// A pattern that is open at both ends, and that nearly matches names of the letter `a`.
fn bomb(number: usize) -> String {
    format!(
        "*{}{number}*{}",
        "a*".repeat(190),
        ('0'..='9').map(|c| format!("{c}*")).collect::<String>()
    )
}

fn long_name(number: usize) -> String {
    format!("{}{number:04}", "a".repeat(986))
}

/// Subscribes to such patterns, a hundred in one command, until one is refused.
async fn plant(server: &Server, count: usize) -> Result<(Resp, usize, String)> {
    let mut client = Resp::connect(server.resp_address().await?).await?;
    let mut planted = 0;
    while planted < count {
        let mut words = vec!["PSUBSCRIBE".to_owned()];
        words.extend((planted..planted + 10).map(bomb));
        let first = client.call(&words).await?;
        if first.starts_with('-') {
            return Ok((client, planted, first));
        }
        for _ in 0..6 * 10 - 1 {
            client.line().await?;
        }
        planted += 10;
    }
    Ok((client, planted, String::new()))
}

/// The longest time that this client waits for an answer while the other work is done.
async fn longest_wait(server: &Server, work: impl Future<Output = Result<()>>) -> Result<Duration> {
    let mut bystander = server.client().await?;
    ensure!(bystander.call(json!(["SUBSCRIBE", "own"])).await? == json!(["OK", 1]));
    let mut longest = Duration::ZERO;
    let calling = async {
        loop {
            let began = Instant::now();
            ensure!(bystander.call(json!(["PUBLISH", "own", "x"])).await? == json!(["OK", 1]));
            ensure!(bystander.next_json().await? == json!(["message", "own", "x"]));
            longest = longest.max(began.elapsed());
        }
    };
    tokio::select! {
        done = work => done?,
        failed = calling => { let failed: Result<()> = failed; failed?; }
    }
    Ok(longest)
}

async fn publish_long_names(publisher: &mut Resp, count: usize) -> Result<()> {
    let mut all = Vec::new();
    for number in 0..count {
        all.extend(resp::command(&["PUBLISH", &long_name(number), "x"]));
    }
    publisher.send(&all).await?;
    for number in 0..count {
        let answer = publisher.line().await?;
        ensure!(answer == ":0", "publication {number} was answered {answer}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patterns_that_take_too_long_are_refused_and_publications_go_on() -> Result<()> {
    let server = Launch::with_config("engine.shards = 2").start().await?;
    let (_planted, count, refusal) = plant(&server, 1_000).await?;
    ensure!(refusal.starts_with("-LIMIT matching the patterns of this connection"), "{refusal}");
    ensure!((1..200).contains(&count), "{count} were accepted");
    // Other clients fill what all connections together may have.
    let mut others = Vec::new();
    let refusal = loop {
        let mut client = Resp::connect(server.resp_address().await?).await?;
        let mut words = vec!["PSUBSCRIBE".to_owned()];
        let first = 10_000 + 10 * others.len();
        words.extend((first..first + 10).map(bomb));
        let answer = client.call(&words).await?;
        others.push(client);
        if answer.starts_with('-') {
            break answer;
        }
        ensure!(others.len() < 100, "there is no limit over all connections");
    };
    ensure!(refusal.starts_with("-LIMIT matching the patterns of all connections"), "{refusal}");

    let mut publisher = Resp::connect(server.resp_address().await?).await?;
    let began = Instant::now();
    let wait = longest_wait(&server, publish_long_names(&mut publisher, 300)).await?;
    println!("300 publications took {:?}, a bystander waited {wait:?}", began.elapsed());
    ensure!(wait < Duration::from_millis(1_000), "a bystander waited {wait:?}");
    ensure!(!server.log().contains("the engine"), "{}", server.log());

    // Common patterns still fit, also after many refusals.
    let mut client = server.client().await?;
    ensure!(client.call(json!(["PSUBSCRIBE", "user.*"])).await? == json!(["OK", 1]));
    server.stop().await
}

#[tokio::test]
async fn a_connection_has_a_limit_of_patterns_apart_from_channels() -> Result<()> {
    let server = Launch::with_config("limits.patterns_max = 3").start().await?;
    let mut client = server.client().await?;
    ensure!(client.call(json!(["SUBSCRIBE", "a", "b", "c", "d"])).await? == json!(["OK", 4]));
    ensure!(client.call(json!(["PSUBSCRIBE", "a*", "b*", "a*"])).await? == json!(["OK", 6]));
    let refused = client.call(json!(["PSUBSCRIBE", "c*", "d*"])).await?;
    let message = refused.pointer("/1/message").and_then(Value::as_str).unwrap_or_default();
    ensure!(refused.pointer("/1/code") == Some(&json!("LIMIT")), "{refused}");
    ensure!(message.contains("listens to 2 patterns and may listen to 3"), "{refused}");
    // Patterns that it already has count once.
    ensure!(client.call(json!(["PSUBSCRIBE", "a*", "c*"])).await? == json!(["OK", 7]));
    server.stop().await
}

/// Many patterns of the common kind are cheap: each name is compared with only a few of them.
#[tokio::test]
async fn many_patterns_with_different_beginnings_are_accepted() -> Result<()> {
    let server = Launch::with_config("engine.shards = 1").start().await?;
    let mut connections = Vec::new();
    for connection in 0..20 {
        let mut client = Resp::connect(server.resp_address().await?).await?;
        let mut words = vec!["PSUBSCRIBE".to_owned()];
        words.extend((0..1_000).map(|number| format!("user:{connection}:{number}:*")));
        let answer = client.call(&words).await?;
        ensure!(answer == "*3", "{answer}");
        connections.push(client);
    }
    let mut publisher = server.client().await?;
    let answer = publisher.call(json!(["PUBLISH", "user:7:77:x", "x"])).await?;
    ensure!(answer == json!(["OK", 1]), "{answer}");
    server.stop().await
}
