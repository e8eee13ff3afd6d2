//! `switchyard bench`.

use anyhow::Result;
use serde_json::Value;

use super::{command, in_a_terminal, outcome};
use crate::support::process::{Pipe, Process};
use crate::support::server::Launch;

const SMALL: [&str; 9] =
    ["bench", "--connections", "6", "--channels", "3", "--publishers", "2", "--duration", "0.5"];

#[tokio::test]
async fn a_load_is_summed_up_and_nothing_is_lost() -> Result<()> {
    let server = Launch::default().start().await?;
    let process = Process::start("bench", &mut command(&server.url().await?, &SMALL))?;
    let (lines, said) = outcome(process, 0).await?;
    assert!(lines.len() == 1 && said.is_empty(), "{lines:?} {said}");
    let summary: Value = serde_json::from_str(&lines[0])?;
    let count = |key: &str| summary[key].as_u64().unwrap_or_default();
    assert!(count("publications") > 0, "{summary}");
    // Six connections on three channels: two listen to each.
    assert_eq!(count("deliveries"), 2 * count("publications"), "{summary}");
    assert_eq!(summary["deliveries_lost"], 0);
    let latency = |quantile: &str| summary["latency_us"][quantile].as_f64().unwrap_or_default();
    assert!(latency("p50") > 0.0 && latency("p50") <= latency("p99"), "{summary}");
    assert!(latency("p99") <= latency("max"), "{summary}");
    let seconds = summary["seconds"].as_f64().unwrap_or_default();
    assert!(seconds >= 0.5, "{summary}");
    server.stop().await
}

#[tokio::test]
async fn a_rate_is_kept() -> Result<()> {
    let server = Launch::default().start().await?;
    let words = [&SMALL[..], &["--rate", "100"]].concat();
    let process = Process::start("bench", &mut command(&server.url().await?, &words))?;
    let (lines, _) = outcome(process, 0).await?;
    let summary: Value = serde_json::from_str(&lines[0])?;
    // A hundred a second for half a second; a busy machine does less, never more.
    let publications = summary["publications"].as_u64().unwrap_or_default();
    assert!((1..=50).contains(&publications), "{summary}");
    server.stop().await
}

#[tokio::test]
async fn a_person_sees_progress_and_a_summary() -> Result<()> {
    let server = Launch::default().start().await?;
    // Progress is shown during the run, so it must last long enough for a busy machine to show it.
    let mut words = SMALL;
    words[8] = "3";
    let run = command(&server.url().await?, &words);
    let (lines, _) = outcome(Process::start("bench", &mut in_a_terminal(&run)?)?, 0).await?;
    let shown = lines.join("\n");
    for expected in ["publications/s", "deliveries  ", "none lost", "p99"] {
        assert!(shown.contains(expected), "{expected}: {shown:?}");
    }
    server.stop().await
}

#[tokio::test]
async fn ctrl_c_ends_it_early_with_what_there_was() -> Result<()> {
    let server = Launch::default().start().await?;
    let words = ["bench", "--connections", "1", "--publishers", "1", "--duration", "3600"];
    let mut run = command(&server.url().await?, &words);
    let process = Process::start("bench", &mut run)?;
    let mut observer = server.client().await?;
    loop {
        let channels = observer.call(serde_json::json!(["PUBSUB", "CHANNELS", "bench.*"])).await?;
        if channels.pointer("/1/0").is_some() {
            break;
        }
    }
    process.signal("INT")?;
    let (lines, said) = outcome(process, 0).await?;
    assert_eq!(lines.len(), 1, "{said}");
    server.stop().await
}

#[tokio::test]
async fn a_server_that_disconnects_ends_it_with_1() -> Result<()> {
    let server = Launch::default().start().await?;
    let words = ["bench", "--connections", "2", "--publishers", "1", "--duration", "3600"];
    let process = Process::start("bench", &mut command(&server.url().await?, &words))?;
    let mut observer = server.client().await?;
    loop {
        let patterns = observer.call(serde_json::json!(["PUBSUB", "CHANNELS", "bench.*"])).await?;
        if patterns.pointer("/1/0").is_some() {
            break;
        }
    }
    server.stop().await?;
    let said = process.line_with(Pipe::Stderr, "switchyard:").await?;
    assert!(said.contains("connection"), "{said}");
    outcome(process, 1).await?;
    Ok(())
}
