//! Histories on disk: restarts, kills, full disks, directories that cannot be used.

#![expect(clippy::indexing_slicing, reason = "what is not there fails the test")]

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};

use crate::answers::{ask, refused};
use crate::support::admin::Operator;
use crate::support::server::{Launch, Server};
use crate::support::switchyard;
use crate::support::websocket::Client;

const RULE: &str = "[[channels]]\nmatch = 'chat.*'\nhistory_messages = 1000\nhistory_ms = '5m'\n";

fn config(directory: &Path) -> String {
    format!("history.directory = {directory:?}\nhistory.flush_ms = 10\n{RULE}")
}

async fn start(directory: &Path) -> Result<Server> {
    Launch::with_config(&config(directory)).start().await
}

async fn kill(mut server: Server) -> Result<()> {
    server.signal("KILL")?;
    server.exit().await.map(drop)
}

async fn publish(client: &mut Client, channel: &str, payload: &str) -> Result<String> {
    let answer = ask(client, json!(["PUBLISH", channel, payload, {"position": true}])).await?;
    let position = answer.get("position").and_then(Value::as_str);
    Ok(position.with_context(|| format!("no position: {answer}"))?.to_owned())
}

/// What a channel has: positions and payloads.
async fn history(client: &mut Client, channel: &str) -> Result<Vec<(String, String)>> {
    let page = ask(client, json!(["HISTORY", channel, {"limit": 1_000}])).await?;
    ensure!(page["next"].is_null(), "there is more: {page}");
    let messages = page["messages"].as_array().context("no messages")?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    messages
        .iter()
        .map(|message| text(&message[0]).zip(text(&message[1])).context("no message"))
        .collect()
}

fn parts(position: &str) -> Result<(u64, u64)> {
    let (epoch, offset) = position.split_once('-').context("no position")?;
    Ok((epoch.parse()?, offset.parse()?))
}

fn page(operator: &Operator, path: &str) -> Result<String> {
    let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n", operator.authority());
    operator.exchange(&head, b"").map(|(_, _, page)| page)
}

fn metric(operator: &Operator, name: &str) -> Result<f64> {
    let page = page(operator, "/metrics")?;
    let line = page.lines().find(|line| line.starts_with(&format!("{name} ")));
    let value = line.and_then(|line| line.split(' ').nth(1));
    Ok(value.with_context(|| format!("no {name}: {page}"))?.parse()?)
}

/// Waits until so many messages were written.
async fn written(operator: &Operator, messages: u64) -> Result<()> {
    while metric(operator, "switchyard_history_store_messages_total")? < messages as f64 {
        tokio::task::yield_now().await;
    }
    Ok(())
}

#[tokio::test]
async fn after_a_restart_a_client_recovers_what_it_missed() -> Result<()> {
    let home = tempfile::tempdir()?;
    let directory = home.path().join("history");
    let server = start(&directory).await?;
    let mut client = server.client().await?;
    let first = publish(&mut client, "chat.1", "one").await?;
    let options = json!({"position": true, "version": 7, "tags": {"kind": "score"}});
    ask(&mut client, json!(["PUBLISH", "chat.1", "two", options])).await?;
    let keyed = json!(["PUBLISH", "chat.1", "three", {"key": "8f2c", "position": true}]);
    let answer = ask(&mut client, keyed.clone()).await?;
    let quiet = ask(&mut client, json!(["RESUME", "chat.quiet"])).await?["position"].take();
    server.stop().await?;

    let server = start(&directory).await?;
    let mut publisher = server.client().await?;
    ensure!(ask(&mut publisher, keyed).await? == answer, "a key appears once");
    let stale = json!(["PUBLISH", "chat.1", "old", {"version": 7}]);
    ensure!(ask(&mut publisher, stale).await?["stale"] == json!(true), "the version is known");
    let four = publish(&mut publisher, "chat.1", "four").await?;
    ensure!(parts(&four)?.0 == parts(&first)?.0, "the epoch goes on");
    let mut client = server.client().await?;
    let resumed = ask(&mut client, json!(["RESUME", "chat.1", first])).await?;
    let expected = json!({"listening": 1, "position": four, "recovered": true, "missed": 3});
    assert_eq!(resumed, expected);
    for (number, payload) in ["two", "three", "four"].into_iter().enumerate() {
        let message = client.next_json().await?;
        ensure!(message[2] == json!(payload), "{message}");
        let has_tags = message[3]["tags"] == json!({"kind": "score"});
        ensure!(has_tags == (number == 0), "{message}");
    }
    // A channel that has nothing goes on, too.
    let resumed = ask(&mut client, json!(["RESUME", "chat.quiet", quiet])).await?;
    ensure!(resumed["recovered"] == json!(true), "{resumed}");
    server.stop().await
}

#[tokio::test]
async fn after_a_kill_epochs_are_new_and_what_was_written_is_there() -> Result<()> {
    let home = tempfile::tempdir()?;
    let server = start(home.path()).await?;
    let mut client = server.client().await?;
    let mut published = Vec::new();
    for number in 0..10 {
        let payload = number.to_string();
        published.push((publish(&mut client, "chat.1", &payload).await?, payload));
    }
    written(&Operator::of(&server).await?, 10).await?;
    kill(server).await?;

    let server = start(home.path()).await?;
    let mut client = server.client().await?;
    let (position, _) = published.last().context("none")?.clone();
    let resumed = ask(&mut client, json!(["RESUME", "chat.1", position])).await?;
    ensure!(
        resumed["recovered"] == json!(false) && resumed["reason"] == json!("epoch"),
        "{resumed}"
    );
    ensure!(resumed["missed"] == json!(0), "{resumed}");
    let begin = resumed["position"].as_str().context("no position")?;
    ensure!(parts(begin)?.0 > parts(&position)?.0, "{begin} after {position}");
    assert_eq!(history(&mut client, "chat.1").await?, published);
    let mut client = server.client().await?;
    let new = publish(&mut client, "chat.1", "new").await?;
    assert_eq!(parts(&new)?, (parts(begin)?.0, 1));
    published.push((new.clone(), "new".to_owned()));
    assert_eq!(history(&mut client, "chat.1").await?, published);
    // Page by page, from one epoch to the next.
    let mut after = json!("0-0");
    for (_, payload) in published.chunks(2).filter_map(<[_]>::first) {
        let options = json!({"limit": 2, "after": after});
        let page = ask(&mut client, json!(["HISTORY", "chat.1", options])).await?;
        ensure!(page["messages"][0][1] == json!(payload), "{page}");
        after = page["next"].clone();
    }
    ensure!(after.is_null(), "{after}");
    let mut other = server.client().await?;
    let resumed = ask(&mut other, json!(["RESUME", "chat.1", begin])).await?;
    ensure!(resumed["recovered"] == json!(true) && resumed["missed"] == json!(1), "{resumed}");
    server.stop().await
}

/// Whenever the server is killed: what is there is a run of what was published, without a gap, and no
/// position ever has another content.
#[tokio::test]
async fn killed_at_random_it_keeps_a_run_of_what_was_published() -> Result<()> {
    const CHANNELS: usize = 5;
    let seed = std::env::var("SWITCHYARD_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("repeat it with SWITCHYARD_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let home = tempfile::tempdir()?;
    let mut known: HashMap<(String, String), String> = HashMap::new();
    let mut next = [0_usize; CHANNELS];
    for round in 0..8 {
        let server = start(home.path()).await?;
        let mut client = server.client().await?;
        for number in 0..CHANNELS {
            let channel = format!("chat.{number}");
            let held = history(&mut client, &channel).await?;
            let mut last: Option<(u64, u64)> = None;
            for (position, payload) in held {
                let known = known.entry((channel.clone(), position.clone()));
                let first = known.or_insert_with(|| payload.clone());
                ensure!(*first == payload, "round {round}: {position} had {first}, has {payload}");
                let (epoch, offset) = parts(&position)?;
                if let Some((last_epoch, last_offset)) = last {
                    let follows = match epoch == last_epoch {
                        true => offset == last_offset + 1,
                        false => epoch > last_epoch && offset == 1,
                    };
                    ensure!(follows, "round {round}: {position} after {last_epoch}-{last_offset}");
                }
                last = Some((epoch, offset));
            }
        }
        let count = rng.usize(1..400);
        for _ in 0..count {
            let number = rng.usize(..CHANNELS);
            let channel = format!("chat.{number}");
            let payload = format!("{} {}", next[number], "x".repeat(rng.usize(..2_000)));
            next[number] += 1;
            let position = publish(&mut client, &channel, &payload).await?;
            let (epoch, _) = parts(&position)?;
            let earlier = known.insert((channel, position.clone()), payload);
            ensure!(earlier.is_none(), "round {round}: {position} came back in {epoch}");
        }
        match rng.u8(..4) {
            0 => server.stop().await?,
            _ => kill(server).await?,
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_disk_that_is_full_disturbs_no_client_and_is_written_later() -> Result<()> {
    let home = tempfile::tempdir()?;
    let server = start(home.path()).await?;
    let operator = Operator::of(&server).await?;
    let mut client = server.client().await?;
    let first = publish(&mut client, "chat.1", "before").await?;
    written(&operator, 1).await?;
    let pid = Some(Pid::from_raw(i32::try_from(server.id())?).context("no process")?);
    let full = Rlimit { current: Some(1), maximum: None };
    let before = prlimit(pid, Resource::Fsize, full)?;
    let mut last = String::new();
    for number in 0..100 {
        last = publish(&mut client, "chat.1", &number.to_string()).await?;
    }
    let line = server.wait_for_log("the history is not written").await?;
    ensure!(line.contains(&home.path().display().to_string()), "{line}");
    ensure!(metric(&operator, "switchyard_history_store_failures_total")? >= 1.0, "not counted");
    let health = page(&operator, "/healthz")?;
    ensure!(health.contains("the history is not written to disk"), "{health}");
    assert_eq!(history(&mut client, "chat.1").await?.len(), 101);
    prlimit(pid, Resource::Fsize, before)?;
    server.wait_for_log("the history is written again").await?;
    server.stop().await?;

    let server = start(home.path()).await?;
    let mut client = server.client().await?;
    let resumed = ask(&mut client, json!(["RESUME", "chat.1", first])).await?;
    let expected = json!({"listening": 1, "position": last, "recovered": true, "missed": 100});
    assert_eq!(resumed, expected);
    server.stop().await
}

#[tokio::test]
async fn rules_that_changed_meanwhile_apply_to_what_is_read() -> Result<()> {
    let home = tempfile::tempdir()?;
    let server = start(home.path()).await?;
    let mut client = server.client().await?;
    for number in 0..10 {
        for channel in ["chat.1", "chat.gone"] {
            publish(&mut client, channel, &number.to_string()).await?;
        }
    }
    server.stop().await?;
    let fewer = RULE.replace("1000", "3").replace("chat.*", "chat.?");
    let config = format!("history.directory = {:?}\n{fewer}", home.path());
    let server = Launch::with_config(&config).start().await?;
    let mut client = server.client().await?;
    let payloads: Vec<String> =
        history(&mut client, "chat.1").await?.into_iter().map(|(_, payload)| payload).collect();
    assert_eq!(payloads, ["7", "8", "9"]);
    ensure!(refused(&mut client, json!(["HISTORY", "chat.gone"])).await? == "NOHISTORY", "gone");
    server.stop().await?;
    // What is gone does not come back with the rule.
    let server = start(home.path()).await?;
    let mut client = server.client().await?;
    assert_eq!(history(&mut client, "chat.gone").await?, []);
    assert_eq!(history(&mut client, "chat.1").await?.len(), 3);
    server.stop().await
}

#[tokio::test]
async fn damaged_files_are_set_aside_and_named() -> Result<()> {
    let home = tempfile::tempdir()?;
    let server = start(home.path()).await?;
    let mut client = server.client().await?;
    let old = publish(&mut client, "chat.1", "one").await?;
    server.stop().await?;
    std::fs::write(home.path().join("database/version"), "no version")?;
    let server = start(home.path()).await?;
    let line = server.wait_for_log("set aside").await?;
    let aside = line.split("set_aside=").nth(1).and_then(|rest| rest.split(' ').next());
    let aside = aside.with_context(|| line.clone())?.trim_matches('"');
    ensure!(Path::new(aside).join("version").exists(), "{line}");
    let mut client = server.client().await?;
    assert_eq!(history(&mut client, "chat.1").await?, []);
    let new = publish(&mut client, "chat.1", "two").await?;
    ensure!(parts(&new)?.0 > parts(&old)?.0, "{new} after {old}");
    server.stop().await
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_is_refused_with_its_name() -> Result<()> {
    let home = tempfile::tempdir()?;
    let used = home.path().join("used");
    let server = start(&used).await?;
    let file = home.path().join("file");
    std::fs::write(&file, "text")?;
    let missing = home.path().join("no/such");
    for (directory, problem) in [
        (&used, "another process uses"),
        (&file, "is not a directory"),
        (&missing, "cannot create"),
    ] {
        let mut other = Server::run_alone(&["--config", &write(home.path(), &config(directory))?])?;
        let (status, _) = other.exit().await?;
        assert_eq!(status.code(), Some(1), "{}", other.log());
        let log = other.log();
        let is_named = log.contains(&directory.display().to_string());
        ensure!(is_named && log.contains(problem), "{log}");
    }
    server.stop().await
}

fn write(home: &Path, config: &str) -> Result<String> {
    let file = home.join("switchyard.toml");
    std::fs::write(&file, config)?;
    Ok(file.display().to_string())
}

#[test]
fn a_directory_is_not_for_a_cluster() -> Result<()> {
    let home = tempfile::tempdir()?;
    let config = "history.directory = 'history'\ncluster.url = 'redis://127.0.0.1:1'\n";
    let config = write(home.path(), config)?;
    for more in [&["--check"][..], &[]] {
        let done = Command::new(switchyard())
            .args(["serve", "--http", "127.0.0.1:0", "--resp", "off", "--admin", "off"])
            .args(["--config", &config])
            .args(more)
            .output()?;
        assert_eq!(done.status.code(), Some(64));
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(text.contains("history.directory") && text.contains("cluster.url"), "{text}");
    }
    ensure!(!home.path().join("history").exists(), "it was made");
    Ok(())
}

#[tokio::test]
async fn a_reload_changes_how_often_and_not_where() -> Result<()> {
    let home = tempfile::tempdir()?;
    // Relative to the config file.
    let config = format!("history.directory = 'history'\nhistory.flush_ms = 60000\n{RULE}");
    let server = Launch::with_config(&config).start().await?;
    let file = server.home().join("switchyard.toml");
    ensure!(server.home().join("history/state").exists(), "it is beside the config file");
    let operator = Operator::of(&server).await?;
    let mut client = server.client().await?;
    publish(&mut client, "chat.1", "one").await?;
    ensure!(metric(&operator, "switchyard_history_store_messages_total")? == 0.0, "too early");
    let text = std::fs::read_to_string(&file)?;
    let other = home.path().join("other");
    let text = text.replace("60000", "10").replace("'history'", &format!("{other:?}"));
    crate::support::components::write_atomically(&file, text.as_bytes())?;
    let line = server.wait_for_log("only when the server is restarted").await?;
    ensure!(line.contains("history.directory") && !line.contains("flush_ms"), "{line}");
    written(&operator, 1).await?;
    ensure!(!other.exists(), "it was made");
    if metric(&operator, "switchyard_history_store_bytes")? <= 0.0 {
        bail!("files have a size");
    }
    server.stop().await
}

/// A server that ends and cannot write its histories says so, and its exit code does.
#[tokio::test]
async fn a_server_that_cannot_write_its_histories_ends_with_an_error() -> Result<()> {
    let home = tempfile::tempdir()?;
    let directory = home.path().join("history");
    let mut server = start(&directory).await?;
    let operator = Operator::of(&server).await?;
    let mut client = server.client().await?;
    publish(&mut client, "chat.1", "one").await?;
    written(&operator, 1).await?;
    std::fs::remove_dir_all(&directory)?;
    server.signal("TERM")?;
    let (status, _) = server.exit().await?;
    ensure!(status.code() == Some(1), "the server ended with {status}");
    let log = server.log();
    ensure!(log.contains("the history was not written completely"), "{log}");
    Ok(())
}

/// A directory that is removed while the server runs is noticed; what is in memory is written once it
/// is there again.
#[tokio::test]
async fn a_directory_that_is_removed_is_noticed_and_written_again() -> Result<()> {
    let home = tempfile::tempdir()?;
    let directory = home.path().join("history");
    let server = start(&directory).await?;
    let operator = Operator::of(&server).await?;
    let mut client = server.client().await?;
    let first = publish(&mut client, "chat.1", "one").await?;
    written(&operator, 1).await?;
    std::fs::remove_dir_all(&directory)?;
    publish(&mut client, "chat.1", "two").await?;
    let line = server.wait_for_log("the history is not written").await?;
    ensure!(line.contains("its files were removed"), "{line}");
    ensure!(metric(&operator, "switchyard_history_store_failures_total")? >= 1.0);
    std::fs::create_dir(&directory)?;
    server.wait_for_log("the history is written again").await?;
    server.stop().await?;
    let server = start(&directory).await?;
    let mut client = server.client().await?;
    let resumed = ask(&mut client, json!(["RESUME", "chat.1", first])).await?;
    ensure!(resumed["recovered"] == true && resumed["missed"] == 1, "{resumed}");
    server.stop().await
}
