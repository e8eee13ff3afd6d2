//! Conversations as text files, played on the real server: once with the
//! component engine, once with the native one. (`node_host` plays most of them
//! on another host.)
//!
//! docs/plugins/testing.md explains how the files are written. A plugin's component
//! is one of those that `make components` builds, such as `acl` or `test/probe`. At
//! the end of a file no message may be left for a connected client, and the
//! server must end in good order. `<<HS256 {"sub":"alice","exp":"now+60"}>>` is a token
//! wherever it stands (`tokens` says what else can be put in).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;
use switchyard_cli::authors::conversation::notation::{Action, Conversation};
use switchyard_cli::authors::conversation::stage::Stage;
use tokio::net::TcpStream;

use crate::support::server::{Engine, Launch, Server};
use crate::support::{PATIENCE, components, file_stems};
use crate::tokens;

/// Passes the names of all files to a macro: those that any host of the engine plays, and those
/// about features that only the server has.
macro_rules! transcripts {
    ($take:ident) => {
        $take! {
            anywhere: [
                auth_without_plugin,
                bad_frames,
                bad_frames_in_a_row,
                base64,
                batches,
                close_codes,
                globs,
                globs_of_listeners,
                hello,
                ids,
                limits_of_names,
                limits_of_payloads,
                limits_of_subscriptions,
                message_too_long,
                names_are_bytes,
                ping,
                psubscribe,
                publish,
                pubsub,
                quit,
                self_publish,
                subscribe,
                unsubscribe,
                verbs,
                whole_or_not_at_all,
            ],
            server_only: [
                history,
                history_errors,
                plugin_acl,
                plugin_jwt_auth,
                plugin_jwt_auth_claims,
                plugin_jwt_auth_jwks,
                plugin_jwt_auth_keys,
                plugin_rate_limit,
                plugin_rate_limit_swap,
                plugin_redact,
                plugin_validate,
                presence,
                presence_errors,
                publish_options,
                resp_over_websocket,
                subprotocols,
            ],
        }
    };
}
pub(crate) use transcripts;

/// Each file, as two tests.
macro_rules! play_all {
    (anywhere: [$($name:ident),* $(,)?], server_only: [$($more:ident),* $(,)?],) => {
        const NAMES: &[&str] = &[$(stringify!($name),)* $(stringify!($more)),*];

        play_all! { $($name)* $($more)* }
    };
    ($($name:ident)*) => {
        $(mod $name {
            #[tokio::test]
            async fn with_the_component_engine() -> anyhow::Result<()> {
                super::play(stringify!($name), super::Engine::Component).await
            }

            #[tokio::test]
            async fn with_the_native_engine() -> anyhow::Result<()> {
                super::play(stringify!($name), super::Engine::Native).await
            }
        })*
    };
}

transcripts!(play_all);

#[test]
fn every_file_is_played() -> Result<()> {
    let mut names = NAMES.to_vec();
    names.sort_unstable();
    assert_eq!(file_stems(&folder())?, names);
    Ok(())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts")
}

/// Plays one file of `tests/transcripts/`.
pub async fn play(name: &str, engine: Engine) -> Result<()> {
    let file = folder().join(name).with_extension("txt");
    play_text(&format!("{name}.txt"), &std::fs::read_to_string(&file)?, engine, &[]).await
}

/// Plays a conversation with these plugins, each by its name and its TOML file; the component is
/// what follows the number in the name.
pub async fn play_text(
    place: &str,
    text: &str,
    engine: Engine,
    configured: &[(&str, &str)],
) -> Result<()> {
    let filled = text.lines().map(|line| match line.starts_with('#') {
        true => Ok(line.to_owned()),
        false => tokens::fill(line),
    });
    let text = filled.collect::<Result<Vec<_>>>().context(place.to_owned())?.join("\n");
    let conversation = Conversation::parse(&text).context(place.to_owned())?;
    let plugins = components::directory()?;
    let mut launch = Launch { engine, config: conversation.config, ..Launch::default() };
    for (name, toml) in configured {
        let (_, component) = name.split_once('-').context("a name such as 10-acl")?;
        let file = |kind: &str| plugins.path().join(name).with_extension(kind);
        components::write_atomically(&file("toml"), toml.as_bytes())?;
        components::write_atomically(&file("wasm"), &components::built(component)?)?;
        launch.plugins = Some(plugins.path().to_owned());
    }
    for plugin in &conversation.plugins {
        let component = components::built(&plugin.component)?;
        components::install(plugins.path(), &plugin.slot, &component, &plugin.settings)?;
        launch.plugins = Some(plugins.path().to_owned());
    }
    if launch.plugins.is_some() && !launch.config.contains("[plugins]") {
        // Verdicts are tested here, not how fast the machine is.
        launch.config.insert_str(0, "plugins.call_budget_ms = 200\n");
    }
    let server = launch.start().await?;
    let address = server.address().await?;
    let dial = async || TcpStream::connect(address).await;
    let mut stage = Stage::new(address.to_string(), PATIENCE, dial);
    let mut swaps = 0;
    for step in &conversation.steps {
        let acted = match &step.action {
            Action::Swap { slot, settings } => {
                swaps += 1;
                swap(&server, plugins.path(), slot, settings, swaps).await
            }
            action => stage.act(action).await.map(drop),
        };
        acted.with_context(|| {
            let lines = step.lines.iter().map(|(number, text)| format!("{number}: {text}"));
            format!("{place}:{}", lines.collect::<Vec<_>>().join("\n"))
        })?;
    }
    // So that the server need not wait for their replies to its Close.
    stage.clear().await.with_context(|| format!("{place}: at the end"))?;
    server.stop().await
}

/// Replaces a plugin by another build; waits until this many swaps are logged.
async fn swap(
    server: &Server,
    plugins: &Path,
    slot: &str,
    settings: &Value,
    swaps: usize,
) -> Result<()> {
    server.wait_for_log("changes of files are watched").await?;
    let in_place = std::fs::read(components::path(plugins, slot))?;
    let successor = components::rehashed(in_place, swaps as u32);
    components::install(plugins, slot, &successor, settings)?;
    server.wait_for_logs("a plugin was swapped", swaps).await?;
    Ok(())
}
