//! `examples/node-host`, tested like the server itself: the engine's contract and the protocol are
//! enough to write another host.
//!
//! It plays the server's transcripts, except those about features that it lacks. Replies with texts
//! of its own have transcripts in `tests/node_host/`.

use anyhow::Result;
use serde_json::json;

use crate::support::server::{Engine, Launch};
use crate::{clients, order, transcript};

/// Each file that is not about a feature that the example lacks, as a test. It has no plugins (its
/// middleware is a JavaScript function) and no sub-protocol `resp`; tests/node_host/ has what
/// remains of those files.
macro_rules! play_on_node {
    (anywhere: [$($name:ident),* $(,)?], server_only: [$($more:ident),* $(,)?],) => {
        $(#[tokio::test]
        async fn $name() -> Result<()> {
            transcript::play(stringify!($name), Engine::Node).await
        })*
    };
}

transcript::transcripts!(play_on_node);

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
async fn sigterm_notifies_clients_and_exits_with_0() -> Result<()> {
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
