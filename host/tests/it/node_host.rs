//! `examples/node-host`, held to what the server itself is held to: the contract
//! of the engine and the protocol are enough to write another host.
//!
//! The transcripts run against it as they are, but for those that `LEFT_OUT`
//! names. What it says in its own words has transcripts in `tests/node_host/`.

use anyhow::Result;
use serde_json::json;

use crate::support::server::{Engine, Launch};
use crate::{clients, order, transcript};

/// Transcripts of what the example does not do, and why it does not.
const LEFT_OUT: &[(&str, &str)] = &[
    ("plugin_acl", "it has no plugins: its middleware is a JavaScript function"),
    ("resp_over_websocket", "it speaks JSON only"),
    ("subprotocols", "it knows no sub-protocol `resp`; tests/node_host/ has the rest of it"),
];

/// Each file, as a test.
macro_rules! transcripts {
    ($($name:ident),* $(,)?) => {
        const PLAYED: &[&str] = &[$(stringify!($name)),*];

        $(#[tokio::test]
        async fn $name() -> Result<()> {
            transcript::play(stringify!($name), Engine::Node).await
        })*
    };
}

transcripts! {
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
}

#[test]
fn every_transcript_is_played_or_left_out_for_a_reason() {
    let left_out = LEFT_OUT.iter().map(|(name, _)| name);
    let mut names: Vec<_> = PLAYED.iter().chain(left_out).collect();
    names.sort();
    assert_eq!(names, transcript::NAMES.iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn middleware_decides_what_is_published() -> Result<()> {
    transcript::play("../node_host/middleware", Engine::Node).await
}

#[tokio::test]
async fn nothing_that_is_said_ends_it() -> Result<()> {
    transcript::play("../node_host/hostile", Engine::Node).await
}

#[tokio::test]
async fn other_subprotocols_and_paths_are_refused() -> Result<()> {
    transcript::play("../node_host/subprotocols", Engine::Node).await
}

#[tokio::test]
async fn all_see_one_order() -> Result<()> {
    order::check(Engine::Node).await
}

#[tokio::test]
async fn node_and_python_talk_through_it() -> Result<()> {
    clients::talk(Engine::Node).await
}

#[tokio::test]
async fn sigterm_says_goodbye_and_ends_with_0() -> Result<()> {
    let mut server = Launch { engine: Engine::Node, ..Launch::default() }.start().await?;
    let url = server.url().await?;
    let mut client = server.client().await?;
    client.call(json!(["SUBSCRIBE", "a"])).await?;
    server.signal("TERM")?;
    let goaway = json!({
        "reason": "the server is shutting down",
        "reconnect_within_ms": [500, 5_000],
    });
    assert_eq!(client.next_json().await?, json!(["goaway", goaway]));
    let (code, reason) = client.next_close().await?;
    assert_eq!((code, reason.as_str()), (Some(1001), "the server is shutting down"));
    let (status, stdout) = server.exit().await?;
    assert_eq!(status.code(), Some(0));
    assert_eq!(stdout, [url], "stdout holds the address, nothing else");
    Ok(())
}
