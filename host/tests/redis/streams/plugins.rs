//! What plugins decide about streams: as about HISTORY and PUBLISH.

use anyhow::{Result, ensure};
use serde_json::{Value as Json, json};

use super::{RULE, add, blocked, entries, read};
use crate::client::RespClient;
use crate::support::components;
use crate::support::server::{Launch, Server};
use crate::value::Value;

async fn server(settings: &Json) -> Result<(Server, tempfile::TempDir)> {
    let plugins = components::directory()?;
    let probe = components::built("test/probe")?;
    components::install(plugins.path(), "10-probe", &probe, settings)?;
    let config = format!("plugins.call_budget_ms = 200\n{RULE}");
    let launch =
        Launch { plugins: Some(plugins.path().to_owned()), ..Launch::with_config(&config) };
    Ok((launch.start().await?, plugins))
}

#[tokio::test]
async fn reading_is_permitted_as_history_is() -> Result<()> {
    let refuse = json!({"code": "NOPERM", "message": "not for you"});
    let settings = json!({"on_access": {"trigger": "secret", "refuse": refuse}});
    let (server, _plugins) = server(&settings).await?;
    let mut client = RespClient::connect(server.resp_address().await?).await?;
    for words in [
        &["XLEN", "chat.secret"][..],
        &["XRANGE", "chat.secret", "-", "+"],
        &["XREVRANGE", "chat.secret", "+", "-"],
        &["XREAD", "STREAMS", "chat.secret", "0"],
        &["XREAD", "BLOCK", "0", "STREAMS", "chat.1", "chat.secret", "$", "$"],
        &["XINFO", "STREAM", "chat.secret"],
        &["XADD", "chat.secret", "*", "payload", "x"],
        // Nothing is learnt about channels without history either.
        &["XLEN", "secret"],
    ] {
        let refused = client.call(words).await?;
        ensure!(refused.to_string().starts_with("-\"NOPERM not for you [probe@"), "{refused}");
    }
    // A name that is no text cannot be decided about.
    let refused = client.call(&[b"XLEN".as_slice(), b"chat.\xff"]).await?;
    ensure!(refused.to_string().starts_with("-\"NOPERM the name is not UTF-8"), "{refused}");
    add(&mut client, "chat.1", "x").await?;
    drop(client);
    server.stop().await
}

/// A reader that was permitted is asked about again when the plugins have changed.
#[tokio::test]
async fn a_waiting_reader_is_checked_again_after_a_swap() -> Result<()> {
    let (server, plugins) = server(&json!({})).await?;
    let address = server.resp_address().await?;
    let mut reader = RespClient::connect(address).await?;
    let mut other = RespClient::connect(address).await?;
    reader.command(&["XREAD", "BLOCK", "0", "STREAMS", "chat.1", "$"]).await?;
    blocked(&mut other, 1).await?;
    let settings = json!({"on_access": {"trigger": "chat", "refuse_recheck": true}});
    let stamped = components::stamped(components::built("test/probe")?, 2)?;
    components::install(plugins.path(), "10-probe", &stamped, &settings)?;
    server.wait_for_log("a plugin was swapped").await?;
    add(&mut other, "chat.1", "x").await?;
    let refused = reader.next().await?;
    ensure!(refused.to_string().starts_with("-\"NOPERM it is checked again"), "{refused}");
    blocked(&mut other, 0).await?;
    reader.nothing(0).await?;
    drop((reader, other));
    server.stop().await
}

/// COUNT counts what the client may see: a page that is short would look like the last one.
#[tokio::test]
async fn what_is_hidden_is_not_counted() -> Result<()> {
    let settings = json!({
        "on_deliver": [{"trigger": "hidden", "narrow": "none"}, {"trigger": "shown", "grow": 2}],
    });
    let (server, _plugins) = server(&settings).await?;
    let address = server.resp_address().await?;
    let mut client = RespClient::connect(address).await?;
    let mut other = RespClient::connect(address).await?;
    let mut shown = Vec::new();
    for number in 0..40 {
        let is_shown = number % 10 == 7;
        let id = add(&mut client, "chat.1", if is_shown { "shown" } else { "hidden" }).await?;
        shown.extend(is_shown.then_some(id));
    }
    let mut from = "0".to_owned();
    for id in &shown {
        let reply = client.call(&["XREAD", "COUNT", "1", "STREAMS", "chat.1", &from]).await?;
        let came = entries(reply)?;
        ensure!(came.len() == 1 && came[0].0 == *id && came[0].1.len() == 7, "{came:?}");
        from.clone_from(id);
    }
    let reply = client.call(&["XREAD", "COUNT", "1", "STREAMS", "chat.1", &from]).await?;
    assert_eq!(reply, Value::NullArray);
    let reply = client.call(&["XREVRANGE", "chat.1", "+", "-", "COUNT", "3"]).await?;
    for id in shown.iter().rev().take(3) {
        ensure!(reply.to_string().contains(id.as_str()), "{reply}");
    }
    ensure!(!reply.to_string().contains("hidden"), "{reply}");
    // The newest is hidden, and there is no other newest.
    let reply = client.call(&["XREAD", "STREAMS", "chat.1", "+"]).await?;
    assert_eq!(reply, Value::NullArray);
    assert_eq!(client.call(&["XLEN", "chat.1"]).await?, Value::Integer(40));
    let info = client.call(&["XINFO", "STREAM", "chat.1"]).await?.to_string();
    ensure!(info.contains(":40") && info.ends_with("first-entry $-1 last-entry $-1]"), "{info}");

    // What is hidden ends no wait.
    client.command(&["XREAD", "COUNT", "1", "BLOCK", "0", "STREAMS", "chat.1", &from]).await?;
    blocked(&mut other, 1).await?;
    for _ in 0..5 {
        add(&mut other, "chat.1", "hidden").await?;
    }
    blocked(&mut other, 1).await?;
    let id = add(&mut other, "chat.1", "shown").await?;
    let came = entries(client.next().await?)?;
    ensure!(came.len() == 1 && came[0].0 == id, "{came:?}");
    drop((client, other));
    server.stop().await
}

/// A position is one on the channel that the publisher named.
#[tokio::test]
async fn a_publication_that_is_moved_has_no_position_for_its_publisher() -> Result<()> {
    let settings = json!({
        "on_publish": [{"trigger": "moved", "rename": "chat.2"}, {"trigger": "taken", "absorb": 3}],
    });
    let (server, _plugins) = server(&settings).await?;
    let mut client = RespClient::connect(server.resp_address().await?).await?;
    let mut web = server.client().await?;
    for payload in ["moved", "taken"] {
        let reply = client.call(&["XADD", "chat.1", "*", "payload", payload]).await?;
        ensure!(reply == Value::NullBulk, "{reply}");
        let command = json!(["PUBLISH", "chat.1", payload, {"position": true}]);
        let answer = web.call(command).await?;
        ensure!(answer.pointer("/1/position") == Some(&Json::Null), "{answer}");
    }
    assert_eq!(client.call(&["XLEN", "chat.1"]).await?, Value::Integer(0));
    assert_eq!(client.call(&["XLEN", "chat.2"]).await?, Value::Integer(2));
    let id = add(&mut client, "chat.1", "stays").await?;
    let reply = client.call(&["XREAD", "STREAMS", "chat.1", "0"]).await?;
    ensure!(reply == read(&[("chat.1", &[(&id, "stays")])]), "{reply}");
    drop((client, web));
    server.stop().await
}
