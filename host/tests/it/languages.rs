//! The plugin that exists in three languages, tested with one conversation.
//!
//! `make languages` builds them. Compiling the Python one takes the server a while.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::support::admin::Done;
use crate::support::components;
use crate::support::server::{Launch, Server};
use crate::support::websocket::{Frame, TEXT};

fn check(component: &str) -> Result<()> {
    let folder = components::directory()?;
    let plugin = components::path(folder.path(), "emoji");
    components::write_atomically(&plugin, &components::built(component)?)?;
    let conversation =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/languages/emoji.txt");
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchyard"));
    command.args(["plugin", "test"]).args([&plugin, &conversation]);
    command.env("SWITCHYARD_CACHE", crate::support::compiled());
    let done = Done::of(command.output()?)?;
    ensure!(done.code == Some(0), "{done:?}");
    ensure!(done.stdout.contains("steps as expected"), "{done:?}");
    Ok(())
}

#[test]
fn the_example_in_rust() -> Result<()> {
    check("languages/emoji")
}

#[test]
fn the_example_in_javascript() -> Result<()> {
    check("languages/emoji-js")
}

#[test]
fn the_example_in_python() -> Result<()> {
    check("languages/emoji-python")
}

/// A server with the variant that is slow when it changes a payload: the JavaScript one.
async fn slow_server(folder: &TempDir) -> Result<Server> {
    let plugin = components::path(folder.path(), "emoji");
    components::write_atomically(&plugin, &components::built("languages/emoji-js")?)?;
    let launch = Launch { plugins: Some(folder.path().to_owned()), ..Launch::default() };
    launch.start().await
}

/// One read brings more frames than are executed together, and they take longer than a time
/// budget: the rest is executed in the next one, without waiting for further input.
#[tokio::test]
async fn commands_beyond_one_time_slice_are_all_answered() -> Result<()> {
    const FRAMES: usize = 150;
    let folder = components::directory()?;
    let server = slow_server(&folder).await?;
    let text = format!("{} :wave:", "x".repeat(380));
    let frame = |id: usize| {
        let command = json!([id, "PUBLISH", "a", text]);
        Frame::new(TEXT, command.to_string()).bytes()
    };
    let mut client = server.raw_client().await?;
    client.send((0..FRAMES).flat_map(frame).collect::<Vec<u8>>()).await?;
    for id in 0..FRAMES {
        let answer = client.next_frame().await?.context("it is answered")?;
        ensure!(answer.payload == format!("[{id},\"OK\",0]").as_bytes(), "{id}: {answer:?}");
    }
    server.stop().await
}

/// Each message takes the plugin a millisecond, and its budget is ten: messages that many clients
/// publish at once must not be one call.
#[tokio::test]
async fn a_slow_plugin_gets_concurrent_messages_in_several_calls() -> Result<()> {
    let folder = components::directory()?;
    let server = slow_server(&folder).await?;
    let text = format!("{} :wave:", "x".repeat(4 << 10));
    let mut publishers = JoinSet::new();
    for _ in 0..32 {
        let (mut client, text) = (server.client().await?, text.clone());
        publishers.spawn(async move {
            for _ in 0..5 {
                let answer = client.call(json!(["PUBLISH", "a", text])).await?;
                ensure!(answer == json!(["OK", 0]), "{answer}");
            }
            Ok(())
        });
    }
    while let Some(published) = publishers.join_next().await {
        published??;
    }
    let log = server.log();
    ensure!(!log.contains("a plugin failed"), "{log}");
    server.stop().await
}

#[test]
fn the_example_shares_its_utf8_with_new_projects() -> Result<()> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &str| std::fs::read_to_string(repository.join(path));
    let template = read("host/cli/src/authors/templates/js/utf8.js")?;
    assert_eq!(read("examples/languages/js/utf8.js")?, template);
    Ok(())
}
