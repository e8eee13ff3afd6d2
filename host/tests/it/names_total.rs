//! The names of all connections together have a limit that the engine can hold.
//!
//! Whatever clients subscribe to, the engine keeps working: a command that does not fit is refused
//! as a whole, and other connections do not notice.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::support::admin::Operator;
use crate::support::resp::{self, Resp};
use crate::support::server::{Launch, Server};

/// Little memory for the engine, so that two connections could fill it.
const SMALL: &str = "engine.memory_bytes_max = 16777216\nengine.shards = 1";

fn name(connection: usize, number: usize) -> String {
    format!("{connection}:{number:06}:{}", "n".repeat(1_000))
}

/// Subscribes to this many long names in one command. Returns true unless it was refused.
async fn subscribe(
    client: &mut Resp,
    verb: &str,
    connection: usize,
    numbers: std::ops::Range<usize>,
) -> Result<bool> {
    let mut words = vec![verb.to_owned()];
    words.extend(numbers.clone().map(|number| name(connection, number)));
    client.send(&resp::command(&words)).await?;
    for number in numbers.clone() {
        let line = client.line().await?;
        if line.starts_with('-') {
            ensure!(line.starts_with("-LIMIT "), "{line}");
            ensure!(number == numbers.start, "it was refused half-way");
            return Ok(false);
        }
        // *3, the verb and the name with their lengths, and the count.
        for _ in 0..5 {
            client.line().await?;
        }
    }
    Ok(true)
}

async fn name_bytes(server: &Server) -> Result<f64> {
    let operator = Operator::of(server).await?;
    let head = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n", operator.authority());
    let (_, _, text) = operator.exchange(&head, b"")?;
    let line = text.lines().find(|line| line.starts_with("switchyard_name_bytes "));
    let value = line.and_then(|line| line.rsplit(' ').next());
    Ok(value.ok_or_else(|| anyhow::anyhow!("no such metric in {text}"))?.parse()?)
}

#[tokio::test]
async fn names_that_do_not_fit_are_refused_and_others_go_on() -> Result<()> {
    let server = Launch::with_config(SMALL).start().await?;
    let mut listener = server.client().await?;
    ensure!(listener.call(json!(["SUBSCRIBE", "news"])).await? == json!(["OK", 1]));
    let address = server.resp_address().await?;
    let mut greedy = [Resp::connect(address).await?, Resp::connect(address).await?];
    let (mut accepted, mut refused) = ([0, 0], 0);
    for step in 0..100 {
        for (place, client) in greedy.iter_mut().enumerate() {
            match subscribe(client, "SUBSCRIBE", place, 100 * step..100 * (step + 1)).await? {
                true => accepted[place] += 100,
                false => refused += 1,
            }
        }
        ensure!(listener.call(json!(["PUBLISH", "news", "x"])).await? == json!(["OK", 1]));
        ensure!(listener.next_json().await? == json!(["message", "news", "x"]));
    }
    ensure!(accepted.iter().sum::<usize>() > 3_000 && refused > 50, "{accepted:?} {refused}");
    let log = server.wait_for_log("a subscription was refused").await?;
    ensure!(log.contains("limits.name_bytes_total_max"), "{log}");
    ensure!(log.contains("most_connection=") && log.contains("most_name_bytes="), "{log}");
    ensure!(!server.log().contains("the engine failed"), "{}", server.log());

    // Operators see how much the names take, and which connection holds most of them.
    let memory = Operator::of(&server).await?.get("/v1/memory")?;
    let budgets = memory["budgets"].as_array().into_iter().flatten();
    let used = budgets.filter(|budget| budget["budget"] == "names");
    let used: u64 = used.filter_map(|budget| budget["used_bytes"].as_u64()).sum();
    ensure!(used > 3_000 * 1_000, "{memory}");
    let most = memory["connections"][0]["name_bytes"].as_u64();
    ensure!(most.is_some_and(|bytes| bytes > 1_000 * 1_000), "{memory}");

    // Listing all of them takes little of the engine's memory.
    let mut lister = Resp::connect(address).await?;
    lister.send(&resp::command(&["PUBSUB", "CHANNELS"])).await?;
    ensure!(lister.array().await?.len() == accepted.iter().sum::<usize>() + 1);
    ensure!(!server.log().contains("the engine failed"), "{}", server.log());

    // Unsubscribing makes room.
    let before = name_bytes(&server).await?;
    ensure!(before > 3_000.0 * 1_000.0, "{before}");
    drop(greedy);
    let began = std::time::Instant::now();
    while name_bytes(&server).await? > 200.0 {
        ensure!(
            began.elapsed() < crate::support::PATIENCE,
            "names of closed connections are counted"
        );
    }
    let mut next = Resp::connect(address).await?;
    ensure!(subscribe(&mut next, "SUBSCRIBE", 3, 0..100).await?);
    server.stop().await
}

/// Patterns are in every shard, and take more than channels.
#[tokio::test]
async fn patterns_do_not_fill_the_engine_either() -> Result<()> {
    let config = "engine.memory_bytes_max = 16777216\nengine.shards = 2\n\
                  limits.patterns_max = 10000\nlimits.pattern_cost_max = 1000000000\n\
                  limits.pattern_cost_total_max = 1000000000";
    let server = Launch::with_config(config).start().await?;
    let mut listener = server.client().await?;
    ensure!(listener.call(json!(["PSUBSCRIBE", "news*"])).await? == json!(["OK", 1]));
    let address = server.resp_address().await?;
    let mut refused = 0;
    let mut greedy = [Resp::connect(address).await?, Resp::connect(address).await?];
    for step in 0..50 {
        for (place, client) in greedy.iter_mut().enumerate() {
            for verb in ["PSUBSCRIBE", "SSUBSCRIBE"] {
                let numbers = 100 * step..100 * (step + 1);
                refused += usize::from(!subscribe(client, verb, place, numbers).await?);
            }
        }
    }
    ensure!(refused > 50, "{refused}");
    ensure!(listener.call(json!(["PUBLISH", "news", "x"])).await? == json!(["OK", 1]));
    ensure!(listener.next_json().await? == json!(["pmessage", "news*", "news", "x"]));
    ensure!(!server.log().contains("the engine failed"), "{}", server.log());
    server.stop().await
}

/// A pattern and a channel of the same name, twice in one command, repeatedly, by a connection that
/// is then dropped: afterwards nothing is counted.
#[tokio::test]
async fn what_is_counted_ends_with_the_subscription() -> Result<()> {
    let server = Launch::with_config("engine.shards = 2").start().await?;
    let address = server.resp_address().await?;
    for _ in 0..3 {
        let mut client = Resp::connect(address).await?;
        let mut all = Vec::new();
        for words in [
            &["SUBSCRIBE", "a", "b", "a"][..],
            &["SUBSCRIBE", "a", "c"],
            &["UNSUBSCRIBE", "b", "b", "x"],
            &["PSUBSCRIBE", "a*", "a*", "*b*"],
            &["PUNSUBSCRIBE", "*b*"],
            &["SSUBSCRIBE", "a"],
            &["PUNSUBSCRIBE"],
            &["PSUBSCRIBE", "*b*"],
        ] {
            all.extend(resp::command(words));
        }
        client.send(&all).await?;
        client.send(&resp::command(&["PING"])).await?;
        while client.line().await? != "$4" {}
    }
    let began = std::time::Instant::now();
    while name_bytes(&server).await? != 0.0 {
        ensure!(began.elapsed() < crate::support::PATIENCE, "{} bytes", name_bytes(&server).await?);
    }
    server.stop().await
}

#[tokio::test]
async fn limits_that_the_engine_cannot_hold_are_refused() -> Result<()> {
    let config = format!("{SMALL}\nlimits.name_bytes_total_max = 16000000");
    let home = tempfile::tempdir()?;
    let file = home.path().join("switchyard.toml");
    std::fs::write(&file, config)?;
    let file = file.display().to_string();
    let mut server = Server::run_with(&["serve", "--check", "--config", &file])?;
    let (status, _) = server.exit().await?;
    ensure!(status.code() == Some(64), "{status}");
    let log = server.log();
    ensure!(
        log.contains("limits.name_bytes_total_max is 16000000") && log.contains("at most"),
        "{log}"
    );
    Ok(())
}
