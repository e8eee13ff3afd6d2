//! An engine that traps, or never returns, while it computes receivers.
//!
//! The server knows all subscriptions, so the engine is rebuilt from them: the message that
//! caused the fault is refused, and other clients see only a pause. An engine that fails again
//! and again is not called for a while, which commands and `/healthz` report.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Message;

use crate::support::server::{Launch, Server};
use crate::support::websocket::{Client, RawClient};
use crate::support::{PATIENCE, components};

/// The shard of each name depends on its hash; with these, each shard has some.
const TRAPS: [&str; 4] = ["trap-engine", "1.trap-engine", "2.trap-engine", "3.trap-engine"];
const STALLS: &str = "stall-engine";

/// A server whose engine traps on these names, and the directory with the engine's file.
async fn bad_engine(config: &str) -> Result<(Server, TempDir)> {
    let home = components::directory()?;
    let file = home.path().join("engine.wasm");
    components::write_atomically(&file, &components::built("test/bad-engine")?)?;
    let config =
        format!("engine.file = {file:?}\nshutdown.timeout_ms = 100\nhealth.reuse_ms = 1\n{config}");
    let server = Launch::with_config(&config).start().await?;
    server.wait_for_log("changes of files are watched").await?;
    Ok((server, home))
}

/// Connections that listen to channels and patterns, and must not notice the faults.
struct Listeners(Vec<Client>);

impl Listeners {
    const COUNT: usize = 4;

    async fn on(server: &Server) -> Result<Listeners> {
        let mut listeners = Vec::new();
        for number in 0..Listeners::COUNT {
            let mut client = server.client().await?;
            let own = format!("own.{number}");
            ensure!(client.call(json!(["SUBSCRIBE", "all", own])).await? == json!(["OK", 2]));
            ensure!(client.call(json!(["PSUBSCRIBE", "a*", own])).await? == json!(["OK", 4]));
            listeners.push(client);
        }
        Ok(Listeners(listeners))
    }

    /// Publishes on each of their names, and checks that every message arrives.
    async fn are_served(&mut self, publisher: &mut Client, text: &str) -> Result<()> {
        let all = publisher.call(json!(["PUBLISH", "all", text])).await?;
        ensure!(all == json!(["OK", 2 * Listeners::COUNT]), "a publication to all: {all}");
        for (number, client) in self.0.iter_mut().enumerate() {
            let own = format!("own.{number}");
            let answer = publisher.call(json!(["PUBLISH", own, text])).await?;
            ensure!(answer == json!(["OK", 2]), "a publication to {number}: {answer}");
            for expected in [
                json!(["message", "all", text]),
                json!(["pmessage", "a*", "all", text]),
                json!(["message", own, text]),
                json!(["pmessage", own, own, text]),
            ] {
                let came = client.next_json().await?;
                ensure!(came == expected, "{came} came, not {expected}");
            }
        }
        let patterns = publisher.call(json!(["PUBSUB", "NUMPAT"])).await?;
        ensure!(patterns == json!(["OK", Listeners::COUNT + 1]), "patterns: {patterns}");
        let counts = publisher.call(json!(["PUBSUB", "NUMSUB", "all", "own.0", "none"])).await?;
        let expected = json!({"all": Listeners::COUNT, "own.0": 1, "none": 0});
        ensure!(counts == json!(["OK", expected]), "listeners: {counts}");
        Ok(())
    }
}

/// Whether the reply says that the engine is unavailable.
fn is_unavailable(answer: &Value) -> bool {
    answer.get(0) == Some(&json!("ERR"))
        && answer.pointer("/1/code") == Some(&json!("UNAVAILABLE"))
        && answer.pointer("/1/by").is_none()
}

async fn health(server: &Server) -> Result<u16> {
    let mut client = RawClient::dial(server.address().await?).await?;
    client.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
    Ok(client.response_head().await?.0)
}

#[tokio::test]
async fn a_trap_refuses_the_message_and_rebuilds_the_shard() -> Result<()> {
    let (server, _home) = bad_engine("engine.rebuilds_max = 1000\nengine.shards = 2").await?;
    let mut listeners = Listeners::on(&server).await?;
    let mut publisher = server.client().await?;
    listeners.are_served(&mut publisher, "before").await?;
    for trap in TRAPS {
        let began = Instant::now();
        let answer = publisher.call(json!(["PUBLISH", trap, "x"])).await?;
        ensure!(is_unavailable(&answer), "answered {answer}");
        println!("{trap}: refused after {:?}", began.elapsed());
        listeners.are_served(&mut publisher, trap).await?;
    }
    // One shard or the other, and the rebuilds that it needed.
    let failed = server.wait_for_log("the engine failed and is rebuilt").await?;
    ensure!(failed.contains("route") && failed.contains("panicked"), "{failed}");
    for line in server.wait_for_logs("the engine was rebuilt", TRAPS.len()).await? {
        println!("{line}");
    }
    ensure!(
        server.log().contains("the engine was requested to trap"),
        "the panic message is not logged"
    );
    ensure!(health(&server).await? == 200);
    server.stop().await
}

/// In a burst each command is answered in order, and a publication that is answered with a number
/// of receivers has been delivered.
#[tokio::test]
async fn a_trap_within_a_burst_costs_no_order() -> Result<()> {
    let (server, _home) = bad_engine("engine.rebuilds_max = 1000").await?;
    let mut listener = server.client().await?;
    listener.call(json!(["PSUBSCRIBE", "*"])).await?;
    let mut publisher = server.client().await?;
    let mut burst = Vec::new();
    for (number, trap) in TRAPS.iter().enumerate() {
        burst.push(json!([3 * number, "PUBLISH", format!("a.{number}"), "x"]));
        burst.push(json!([3 * number + 1, "PUBLISH", trap, "x"]));
        burst.push(json!([3 * number + 2, "PUBLISH", "b", "x"]));
    }
    publisher.send(Message::text(json!(burst).to_string())).await?;
    for (id, command) in burst.iter().enumerate() {
        let Value::Array(mut answer) = publisher.next_json().await? else {
            anyhow::bail!("no answer")
        };
        ensure!(answer.remove(0) == json!(id), "answered out of order");
        let answer = Value::Array(answer);
        if id % 3 == 1 {
            ensure!(is_unavailable(&answer), "{command}: {answer}");
        } else if answer == json!(["OK", 1]) {
            let expected = json!(["pmessage", "*", command[2], "x"]);
            let came = listener.next_json().await?;
            ensure!(came == expected, "{came} came, not {expected}");
        } else {
            // It was in the same call as the one that trapped.
            ensure!(is_unavailable(&answer), "{command}: {answer}");
        }
    }
    ensure!(publisher.call(json!(["PUBLISH", "last", "x"])).await? == json!(["OK", 1]));
    ensure!(listener.next_json().await? == json!(["pmessage", "*", "last", "x"]));
    server.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_loop_ends_with_the_budget() -> Result<()> {
    const BUDGET: Duration = Duration::from_millis(200);
    let (server, _home) = bad_engine(&format!(
        "engine.rebuilds_max = 1000\nengine.call_budget_ms = {}",
        BUDGET.as_millis()
    ))
    .await?;
    let mut listeners = Listeners::on(&server).await?;
    let mut publisher = server.client().await?;
    let mut bystander = server.client().await?;
    let mut stall = Duration::ZERO;
    let stalling = async {
        for _ in 0..3 {
            let began = Instant::now();
            let answer = publisher.call(json!(["PUBLISH", STALLS, "x"])).await?;
            ensure!(is_unavailable(&answer), "answered {answer}");
            // A call that took too long once would do so again, so it is not repeated.
            ensure!(began.elapsed() >= BUDGET, "it had {:?}", began.elapsed());
            println!("refused after {:?}", began.elapsed());
        }
        Ok(())
    };
    let pinging = async {
        loop {
            let began = Instant::now();
            bystander.call(json!(["PING"])).await?;
            stall = stall.max(began.elapsed());
        }
    };
    tokio::select! {
        done = stalling => done?,
        failed = pinging => { let failed: Result<()> = failed; failed?; }
    }
    println!("the longest stall of a bystander: {stall:?}, with a budget of {BUDGET:?}");
    ensure!(stall < BUDGET + Duration::from_secs(2), "a bystander waited {stall:?}");
    listeners.are_served(&mut publisher, "after").await?;
    let line = server.wait_for_log("the engine took too long and is rebuilt").await?;
    ensure!(line.contains("budget of 200 ms"), "{line}");
    server.stop().await
}

const ONE_SHARD: &str = "engine.shards = 1\nengine.rebuild_window_ms = 600000";

/// Makes the engine fail so often that it is not called for a while.
async fn exhaust(server: &Server, publisher: &mut Client) -> Result<()> {
    let began = Instant::now();
    // On a busy machine a retry may have happened in between.
    while health(server).await? != 503 {
        ensure!(began.elapsed() < PATIENCE, "it is rebuilt for ever");
        let answer = publisher.call(json!(["PUBLISH", TRAPS[0], "x"])).await?;
        ensure!(is_unavailable(&answer), "answered {answer}");
    }
    server.wait_for_log("the engine failed too often").await?;
    Ok(())
}

#[tokio::test]
async fn what_fails_too_often_is_left_alone_and_then_tried_again() -> Result<()> {
    let (server, _home) = bad_engine(&format!("{ONE_SHARD}\nengine.retry_ms = 3000")).await?;
    let mut listeners = Listeners::on(&server).await?;
    let mut publisher = server.client().await?;
    exhaust(&server, &mut publisher).await?;
    // Commands that need no engine are served, and clients may connect and disconnect.
    ensure!(publisher.call(json!(["PING"])).await? == json!(["OK", "PONG"]));
    let mut late_client = server.client().await?;
    ensure!(late_client.call(json!(["HELLO"])).await?.get(0) == Some(&json!("OK")));

    let began = Instant::now();
    while health(&server).await? != 200 {
        ensure!(began.elapsed() < PATIENCE, "it is never tried again");
    }
    println!("healthy again after {:?}", began.elapsed());
    server.wait_for_log("the engine is available again").await?;
    listeners.are_served(&mut late_client, "after").await?;
    server.stop().await
}

/// Commands that cannot be executed change nothing; unsubscribing always works.
#[tokio::test]
async fn while_it_is_left_alone_commands_say_so() -> Result<()> {
    let (server, home) = bad_engine(&format!("{ONE_SHARD}\nengine.retry_ms = 86400000")).await?;
    let mut listeners = Listeners::on(&server).await?;
    let mut client = server.client().await?;
    ensure!(client.call(json!(["SUBSCRIBE", "left", "kept"])).await? == json!(["OK", 2]));
    let mut gone = server.client().await?;
    ensure!(gone.call(json!(["SUBSCRIBE", "kept"])).await? == json!(["OK", 1]));
    exhaust(&server, &mut client).await?;

    for command in [
        json!(["PUBLISH", "kept", "x"]),
        json!(["SUBSCRIBE", "new"]),
        json!(["SUBSCRIBE", "kept"]),
        json!(["PSUBSCRIBE", "new*"]),
        json!(["PUBSUB", "CHANNELS"]),
        json!(["PUBSUB", "NUMSUB", "kept"]),
        json!(["PUBSUB", "NUMPAT"]),
    ] {
        let answer = client.call(command.clone()).await?;
        ensure!(is_unavailable(&answer), "{command} was answered {answer}");
    }
    ensure!(client.call(json!(["UNSUBSCRIBE", "left"])).await? == json!(["OK", 1]));
    ensure!(gone.call(json!(["QUIT"])).await? == json!(["OK", "OK"]));
    gone.next_close().await?;

    // Before the retry time only a swap helps. The new engine receives the ground state.
    let good = components::built("guest-core")?;
    components::write_atomically(&home.path().join("engine.wasm"), &good)?;
    server.wait_for_log("the engine was swapped").await?;
    ensure!(health(&server).await? == 200);
    let held = client.call(json!(["PUBSUB", "NUMSUB", "left", "kept", "new"])).await?;
    ensure!(held == json!(["OK", {"left": 0, "kept": 1, "new": 0}]), "it holds {held}");
    let patterns = client.call(json!(["PUBSUB", "NUMPAT"])).await?;
    ensure!(patterns == json!(["OK", Listeners::COUNT + 1]), "patterns: {patterns}");
    ensure!(client.call(json!(["PUBLISH", TRAPS[0], "x"])).await? == json!(["OK", 0]));
    ensure!(client.call(json!(["PUBLISH", "kept", "x"])).await? == json!(["OK", 1]));
    ensure!(client.next_json().await? == json!(["message", "kept", "x"]));
    listeners.are_served(&mut client, "after").await?;
    server.stop().await
}

/// A shard that was given up refuses patterns, which every shard must know, and costs the others
/// nothing: they are not rebuilt, and the fixed engine can take over under that traffic.
#[tokio::test]
async fn a_shard_that_was_given_up_costs_the_others_nothing() -> Result<()> {
    let config = "engine.shards = 8\nengine.rebuild_window_ms = 600000\n\
                  engine.retry_ms = 86400000\nengine.rebuilds_max = 2";
    let (server, home) = bad_engine(config).await?;
    let mut listeners = Listeners::on(&server).await?;
    let mut client = server.client().await?;
    exhaust(&server, &mut client).await?;

    let names: Vec<String> = (0..100).map(|number| format!("name.{number}")).collect();
    let mut served = Vec::new();
    for name in &names {
        let answer = client.call(json!(["SUBSCRIBE", name])).await?;
        if !is_unavailable(&answer) {
            served.push(name);
        }
    }
    ensure!((50..100).contains(&served.len()), "{} of 100 are served", served.len());
    let rebuilds = server.log().matches("the engine was rebuilt").count();
    for number in 0..50 {
        let answer = client.call(json!(["PSUBSCRIBE", format!("p{number}*"), "a*"])).await?;
        ensure!(is_unavailable(&answer), "answered {answer}");
        // A command with several names that one shard refuses changes nothing in the others.
        let mut command = vec![json!("SUBSCRIBE"), json!(format!("new.{number}"))];
        command.extend(names.iter().map(|name| json!(name)));
        let answer = client.call(Value::from(command)).await?;
        ensure!(is_unavailable(&answer), "answered {answer}");
    }
    for name in &served {
        let answer = client.call(json!(["PUBLISH", name, "x"])).await?;
        ensure!(answer == json!(["OK", 1]), "{name}: {answer}");
        ensure!(client.next_json().await? == json!(["message", name, "x"]));
    }
    let after = server.log().matches("the engine was rebuilt").count();
    ensure!(after == rebuilds, "{} shards were rebuilt", after - rebuilds);

    let good = components::built("guest-core")?;
    components::write_atomically(&home.path().join("engine.wasm"), &good)?;
    let mut number = 0;
    let traffic = async {
        loop {
            let answer = client.call(json!(["PSUBSCRIBE", format!("q{number}*")])).await?;
            if answer.get(0) == Some(&json!("OK")) {
                return Ok(());
            }
            ensure!(is_unavailable(&answer), "answered {answer}");
            number += 1;
        }
    };
    let traffic: Result<()> = crate::support::within(PATIENCE, "the new engine", traffic).await?;
    traffic?;
    server.wait_for_log("the engine was swapped").await?;
    ensure!(!server.log().contains("was refused"), "{}", server.log());
    ensure!(health(&server).await? == 200);
    let patterns = client.call(json!(["PUBSUB", "NUMPAT"])).await?;
    ensure!(patterns == json!(["OK", Listeners::COUNT + 2]), "patterns: {patterns}");
    let mut publisher = server.client().await?;
    ensure!(client.call(json!(["PUNSUBSCRIBE"])).await?.get(0) == Some(&json!("OK")));
    listeners.are_served(&mut publisher, "after").await?;
    server.stop().await
}

/// A timeout that one name causes does not count against other names: the engine is rebuilt, and
/// never given up for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overrun_in_route_does_not_give_the_shard_up() -> Result<()> {
    let config = "engine.shards = 1\nengine.rebuilds_max = 1\nengine.call_budget_ms = 50\n\
                  engine.rebuild_window_ms = 600000\nengine.retry_ms = 86400000";
    let (server, _home) = bad_engine(config).await?;
    let mut listeners = Listeners::on(&server).await?;
    let mut publisher = server.client().await?;
    for _ in 0..5 {
        let answer = publisher.call(json!(["PUBLISH", STALLS, "x"])).await?;
        ensure!(is_unavailable(&answer), "answered {answer}");
    }
    listeners.are_served(&mut publisher, "after").await?;
    ensure!(health(&server).await? == 200);
    server.wait_for_log("the engine took too long and is rebuilt").await?;
    server.stop().await
}
