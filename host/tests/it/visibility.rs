//! Where plugins restrict subscriptions, a client does not learn of channels that it may not
//! subscribe to.

use anyhow::{Result, ensure};
use serde_json::json;
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Message;

use crate::support::components;
use crate::support::raw::exchange;
use crate::support::server::{Launch, Server};
use crate::support::websocket::{Client, Upgrade};

/// A server where every client may subscribe to `public.*`, and alice to everything.
async fn start(config: &str) -> Result<(Server, TempDir)> {
    let plugins = components::directory()?;
    let settings = json!({
        "tokens": {"s3cret": "alice"},
        "rules": [
            {"users": ["*"], "subscribe": ["public.*"]},
            {"users": ["alice"], "subscribe": ["*"], "publish": ["*"]},
        ],
    });
    components::install(plugins.path(), "10-acl", &components::built("acl")?, &settings)?;
    let launch = Launch::with_config(&format!("shutdown.timeout_ms = 100\n{config}"));
    let launch = Launch { plugins: Some(plugins.path().to_owned()), ..launch };
    Ok((launch.start().await?, plugins))
}

async fn connect(server: &Server, path: &str, subprotocol: &str) -> Result<Client> {
    let subprotocols = vec![subprotocol.to_owned()];
    let upgrade = Upgrade { path: path.to_owned(), subprotocols, ..Upgrade::default() };
    let client = Client::connect(server.address().await?, &upgrade).await?;
    client.map_err(|refused| anyhow::anyhow!("HTTP {}", refused.status))
}

const JSON: &str = "switchyard.v1.json";

#[tokio::test]
async fn channels_and_counts_are_those_that_one_may_listen_to() -> Result<()> {
    let (server, _plugins) = start("").await?;
    let mut alice = connect(&server, "/ws?token=s3cret", JSON).await?;
    let names = json!(["SUBSCRIBE", "public.news", "user.alice.secret-9f3a"]);
    assert_eq!(alice.call(names).await?, json!(["OK", 2]));
    assert_eq!(
        alice.call(json!(["PUBSUB", "CHANNELS"])).await?,
        json!(["OK", ["public.news", "user.alice.secret-9f3a"]])
    );

    let mut anonymous = connect(&server, "/ws", JSON).await?;
    for (command, answer) in [
        (json!(["PUBSUB", "CHANNELS"]), json!(["public.news"])),
        (json!(["PUBSUB", "CHANNELS", "user.*"]), json!([])),
        (
            json!(["PUBSUB", "NUMSUB", "public.news", "user.alice.secret-9f3a", "public.x"]),
            json!({"public.news": 1, "user.alice.secret-9f3a": 0, "public.x": 0}),
        ),
        // A name that cannot be passed to a plugin.
        (json!(["PUBSUB", "NUMSUB", {"base64": "/w=="}]), json!({"{\"base64\":\"/w==\"}": 0})),
    ] {
        assert_eq!(anonymous.call(command).await?, json!(["OK", answer]));
    }
    let answer = anonymous.call(json!(["PUBSUB", "NUMPAT"])).await?;
    ensure!(answer.pointer("/1/code") == Some(&json!("NOPERM")), "{answer}");

    // The same over RESP, where back ends may see the rest.
    let resp = server.resp_address().await?;
    let answer = exchange(
        resp,
        "PUBSUB CHANNELS\r\nPUBSUB NUMSUB public.news user.alice.secret-9f3a\r\nPUBSUB NUMPAT\r\n",
    )
    .await?;
    assert_eq!(
        answer,
        "*1\r\n$11\r\npublic.news\r\n*4\r\n$11\r\npublic.news\r\n:1\r\n$22\r\nuser.alice.secret-9f3a\r\n:0\r\n:0\r\n"
    );
    let answer = exchange(resp, "INFO server\r\nCLIENT LIST\r\nCONFIG GET port\r\n").await?;
    ensure!(answer.contains("redis_version") && answer.contains("addr="), "{answer}");
    let answer = exchange(resp, "AUTH s3cret\r\nPUBSUB NUMSUB user.alice.secret-9f3a\r\n").await?;
    assert_eq!(answer, "+OK\r\n*2\r\n$22\r\nuser.alice.secret-9f3a\r\n:1\r\n");
    // The same rules apply to shard channels.
    let said = "HELLO 3\r\nSSUBSCRIBE public.s\r\nPUBSUB SHARDCHANNELS\r\nPUBSUB SHARDNUMSUB public.s user.s\r\n";
    let answer = exchange(resp, said).await?;
    let expected = "*1\r\n$8\r\npublic.s\r\n*4\r\n$8\r\npublic.s\r\n:1\r\n$6\r\nuser.s\r\n:0\r\n";
    ensure!(answer.ends_with(expected), "{answer}");
    drop((alice, anonymous));
    server.stop().await
}

#[tokio::test]
async fn over_a_websocket_the_server_does_not_show_itself() -> Result<()> {
    let (server, _plugins) = start("").await?;
    let mut client = connect(&server, "/ws?token=s3cret", "resp").await?;
    for (command, name) in [
        ("INFO", "info"),
        ("INFO clients", "info"),
        ("CLIENT LIST", "client|list"),
        ("CONFIG GET *", "config|get"),
    ] {
        client.send(Message::binary(format!("{command}\r\n").into_bytes())).await?;
        let expected =
            format!("-NOPERM User alice has no permissions to run the '{name}' command\r\n");
        match client.next().await? {
            Message::Binary(bytes) => assert_eq!(std::str::from_utf8(&bytes)?, expected),
            other => anyhow::bail!("{other:?}"),
        }
    }
    client.send(Message::binary(b"PUBSUB NUMPAT\r\n".to_vec())).await?;
    ensure!(
        matches!(client.next().await?, Message::Binary(bytes) if bytes.starts_with(b"-NOPERM "))
    );
    client.send(Message::binary(b"CLIENT ID\r\n".to_vec())).await?;
    ensure!(matches!(client.next().await?, Message::Binary(bytes) if bytes.starts_with(b":")));
    drop(client);
    server.stop().await?;

    // A plugin with `access` that has no rules for it does not show it either.
    let plugins = components::directory()?;
    let limits = json!({"limits": [
        {"name": "many", "of": "publishes", "per": "connection", "rate": 1000},
    ]});
    let rate_limit = components::built("rate-limit")?;
    components::install(plugins.path(), "10-rate-limit", &rate_limit, &limits)?;
    let launch = Launch { plugins: Some(plugins.path().to_owned()), ..Launch::default() };
    let server = launch.start().await?;
    let mut client = connect(&server, "/ws", "resp").await?;
    for command in ["INFO", "CLIENT LIST", "CONFIG GET *", "PUBSUB NUMPAT"] {
        client.send(Message::binary(format!("{command}\r\n").into_bytes())).await?;
        match client.next().await? {
            Message::Binary(bytes) => ensure!(bytes.starts_with(b"-NOPERM "), "{command}"),
            other => anyhow::bail!("{other:?}"),
        }
    }
    drop(client);
    server.stop().await?;

    // Without a plugin that decides access, nothing is hidden.
    let server = Launch::default().start().await?;
    let mut client = connect(&server, "/ws", "resp").await?;
    client.send(Message::binary(b"INFO server\r\n".to_vec())).await?;
    ensure!(matches!(client.next().await?, Message::Binary(bytes) if bytes.starts_with(b"$")));
    let mut client = connect(&server, "/ws", JSON).await?;
    assert_eq!(client.call(json!(["PUBSUB", "NUMPAT"])).await?, json!(["OK", 0]));
    drop(client);
    server.stop().await
}

#[tokio::test]
async fn a_listing_checks_a_bounded_number_of_names() -> Result<()> {
    let (server, _plugins) = start("limits.names_per_command_max = 1000\n").await?;
    let mut alice = connect(&server, "/ws?token=s3cret", JSON).await?;
    for part in 0..2 {
        let mut command = vec![json!("SUBSCRIBE")];
        command.extend((0..900).map(|number| json!(format!("public.{part}.{number:03}"))));
        let held = 900 * (part + 1);
        assert_eq!(alice.call(json!(command)).await?, json!(["OK", held]));
    }
    let mut anonymous = connect(&server, "/ws", JSON).await?;
    let answer = anonymous.call(json!(["PUBSUB", "CHANNELS"])).await?;
    ensure!(answer.pointer("/1/code") == Some(&json!("LIMIT")), "{answer}");
    // The total, with hidden channels, is not reported.
    ensure!(!answer.to_string().contains("1800"), "{answer}");
    let answer = anonymous.call(json!(["PUBSUB", "CHANNELS", "public.1.*"])).await?;
    let names = answer.get(1).and_then(|names| names.as_array()).map(Vec::len);
    assert_eq!(names, Some(900));
    // A command after a listing is answered after it.
    let mut frame = vec![json!([1, "PUBSUB", "CHANNELS", "public.0.*"])];
    let names: Vec<_> = (0..900).map(|number| json!(format!("public.0.{number:03}"))).collect();
    let numsub = [vec![json!(2), json!("PUBSUB"), json!("NUMSUB")], names].concat();
    frame.extend([json!(numsub), json!([3, "PING"])]);
    anonymous.send(Message::text(json!(frame).to_string())).await?;
    for id in 1..=3 {
        let answer = anonymous.next_json().await?;
        ensure!(answer.get(0) == Some(&json!(id)), "{answer}");
        if id == 2 {
            let counts = answer.get(2).and_then(|counts| counts.as_object());
            ensure!(counts.is_some_and(|counts| counts.len() == 900));
            ensure!(counts.is_some_and(|counts| counts.values().all(|count| count == 1)));
        }
    }
    drop((alice, anonymous));
    server.stop().await
}

/// Otherwise the limit would tell a client which names exist that it may not see.
#[tokio::test]
async fn hidden_channels_do_not_count_towards_the_limit_of_a_listing() -> Result<()> {
    let (server, _plugins) = start("limits.names_per_command_max = 10\n").await?;
    let mut alice = connect(&server, "/ws?token=s3cret", JSON).await?;
    for prefix in ["user.0", "public.", "user.1", "zone."] {
        let names = (0..10).map(|number| format!("{prefix}{number}"));
        let command: Vec<_> = std::iter::once("SUBSCRIBE".to_owned()).chain(names).collect();
        ensure!(alice.call(json!(command)).await?.get(0) == Some(&json!("OK")));
    }
    let mut anonymous = connect(&server, "/ws", JSON).await?;
    let visible: Vec<_> = (0..10).map(|number| format!("public.{number}")).collect();
    for pattern in ["*", "*[0-9]", "[a-z]*"] {
        let answer = anonymous.call(json!(["PUBSUB", "CHANNELS", pattern])).await?;
        assert_eq!(answer, json!(["OK", visible]), "{pattern}");
    }
    ensure!(alice.call(json!(["SUBSCRIBE", "public.x"])).await?.get(0) == Some(&json!("OK")));
    let answer = anonymous.call(json!(["PUBSUB", "CHANNELS", "*"])).await?;
    ensure!(answer.pointer("/1/code") == Some(&json!("LIMIT")), "{answer}");
    drop((alice, anonymous));
    server.stop().await
}
