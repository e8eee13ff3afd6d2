//! Settings that take effect while the server runs, and those that do not.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::support::admin::Operator;
use crate::support::components::{self, write_atomically};
use crate::support::server::{Launch, Server, with_quick_end};
use crate::support::{PATIENCE, within};

fn write(server: &Server, config: &str) -> Result<()> {
    let config = with_quick_end(config);
    write_atomically(&server.home().join("switchyard.toml"), config.as_bytes())
}

#[tokio::test]
async fn a_changed_config_file_holds_at_once_where_it_can() -> Result<()> {
    let server = Launch::with_config("limits.name_bytes_max = 5").start().await?;
    let mut client = server.client().await?;
    let long = json!(["SUBSCRIBE", "longer"]);
    let refused = client.call(long.clone()).await?;
    assert_eq!(refused.pointer("/1/code"), Some(&json!("TOOLARGE")));

    // An invalid file changes nothing.
    write(&server, "limits.name_bytes_max = 0")?;
    let line = server.wait_for_log("the current one stays in use").await?;
    ensure!(line.contains("limits.name_bytes_max is 0"), "{line}");
    assert_eq!(client.call(long.clone()).await?, refused);

    write(&server, "limits.name_bytes_max = 6\nwebsocket.bad_frames_max = 9")?;
    let line = server.wait_for_log("settings were changed").await?;
    ensure!(line.contains("limits.name_bytes_max") && !line.contains("bad_frames"), "{line}");
    let line = server.wait_for_log("only when the server is restarted").await?;
    ensure!(line.contains("websocket.bad_frames_max"), "{line}");
    assert_eq!(client.call(long).await?, json!(["OK", 1]));

    // Origins, for new connections.
    let foreign = "https://other.example";
    write(&server, &format!("http.origins = ['{foreign}']"))?;
    server.wait_for_log("http.origins").await?;
    let upgrade = crate::support::websocket::Upgrade {
        headers: vec![("origin".to_owned(), foreign.to_owned())],
        ..Default::default()
    };
    let let_in = crate::support::websocket::Client::connect(server.address().await?, &upgrade);
    ensure!(let_in.await?.is_ok(), "the origin is still refused");
    server.stop().await
}

#[tokio::test]
async fn the_log_changes_while_it_runs_and_a_connection_is_followed() -> Result<()> {
    let server = Launch::with_config("log.filter = 'info'").start().await?;
    let mut quiet = server.client().await?;
    let mut followed = server.client().await?;
    let hello = followed.call(json!(["HELLO"])).await?;
    let id = hello.pointer("/1/connection").and_then(|id| id.as_str()).unwrap_or_default();
    ensure!(!server.log().contains("connection opened"), "a line for each connection at info");

    write(&server, &format!("log.filter = 'info'\nlog.connections = [{id}]"))?;
    server.wait_for_log("log.connections").await?;
    quiet.call(json!(["PUBSUB", "NUMPAT"])).await?;
    followed.call(json!(["SUBSCRIBE", "secret"])).await?;
    followed.call(json!(["QUIT"])).await?;
    let line = server.wait_for_log("SUBSCRIBE").await?;
    ensure!(line.contains(&format!("connection={id} ")), "{line}");
    ensure!(!line.contains("secret"), "names are not for the log: {line}");
    server.wait_for_log("connection ended").await?;
    ensure!(!server.log().contains("PUBSUB"), "another one is followed");

    write(&server, "log.filter = 'debug'")?;
    server.wait_for_log("log.filter").await?;
    drop(server.client().await?);
    server.wait_for_log("connection opened").await?;
    server.stop().await
}

#[tokio::test]
async fn the_log_is_changed_by_an_operator() -> Result<()> {
    let server = Launch::with_config("limits.name_bytes_max = 5").start().await?;
    let operator = Operator::of(&server).await?;
    let as_it_was = operator.get("/v1/log")?;
    let expected = json!({"filter": "info", "format": "text", "followed": [], "lines_lost": 0, "problem": null});
    assert_eq!(as_it_was, expected);
    let mut client = server.client().await?;
    let hello = client.call(json!(["HELLO"])).await?;
    let id = hello.pointer("/1/connection").and_then(|id| id.as_str()).unwrap_or_default();

    let said = operator.json(&["log", "--follow", id])?;
    assert_eq!(said["followed"], json!([id.parse::<u64>()?]));
    client.call(json!(["PUBSUB", "NUMPAT"])).await?;
    let line = server.wait_for_log("PUBSUB").await?;
    ensure!(line.contains(&format!("connection={id} ")), "{line}");

    let said = operator.say(&["log", "debug"])?;
    ensure!(said.contains("debug") && said.contains(id), "{said}");
    let line = server.wait_for_log("the log was changed").await?;
    ensure!(line.contains("by=local"), "{line}");
    drop(server.client().await?);
    server.wait_for_log("connection opened").await?;

    // An invalid filter changes nothing.
    let done = operator.run(&["log", "switchyard=loud", "--unfollow", id])?;
    ensure!(done.code == Some(1) && done.stderr.contains("switchyard=loud"), "{done:?}");
    let many: Vec<u64> = (1..=1_001).collect();
    let (status, said) = operator.ask("PUT", "/v1/log", Some(&json!({"follow": many})))?;
    assert_eq!(status, 400, "{said}");
    let debugging = operator.get("/v1/log")?;
    assert_eq!(debugging["followed"], json!([id.parse::<u64>()?]));
    assert_eq!(debugging["filter"], json!("debug"));

    // A file without the setting leaves it as it is; one with the setting changes it.
    write(&server, "limits.name_bytes_max = 6")?;
    server.wait_for_log("limits.name_bytes_max").await?;
    assert_eq!(operator.get("/v1/log")?, debugging);
    write(&server, "log.filter = 'warn'\nlog.connections = [77]")?;
    within(PATIENCE, "the file's filter", async {
        while operator.get("/v1/log")?["filter"] != json!("warn") {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    })
    .await??;
    within(PATIENCE, "the file's connections", async {
        while operator.get("/v1/log")?["followed"] != json!([77]) {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    })
    .await??;
    server.stop().await
}

#[tokio::test]
async fn a_check_looks_at_the_plugins_as_well() -> Result<()> {
    let plugins = components::directory()?;
    let path = plugins.path().to_string_lossy().into_owned();
    let words = ["serve", "--check", "--plugins", &path];
    let probe = components::built("test/probe")?;
    components::install(plugins.path(), "10-probe", &probe, &json!({}))?;
    let mut server = Server::run_with(&words)?;
    assert_eq!(server.exit().await?.0.code(), Some(0), "{}", server.log());

    for (component, settings, says) in [
        (b"not wasm".to_vec(), json!({}), "compile"),
        (probe.clone(), json!({"init": "error"}), "init"),
        (probe, json!({"on_publish": "dance"}), "init"),
    ] {
        components::install(plugins.path(), "10-probe", &component, &settings)?;
        let mut server = Server::run_with(&words)?;
        let (status, stdout) = server.exit().await?;
        assert_eq!((status.code(), stdout.len()), (Some(64), 0), "{}", server.log());
        ensure!(server.log().contains(says), "it does not say {says}: {}", server.log());
    }
    Ok(())
}

/// An editor truncates a file before it writes it, and reading a named pipe might never end.
#[tokio::test]
async fn a_config_file_that_is_empty_or_no_file_changes_nothing() -> Result<()> {
    let server = Launch::with_config("limits.name_bytes_max = 5").start().await?;
    server.wait_for_log("changes of files are watched").await?;
    let mut client = server.client().await?;
    let long = json!(["SUBSCRIBE", "longer"]);
    let path = server.home().join("switchyard.toml");
    std::fs::write(&path, "")?;
    server.wait_for_log("it is empty: either not written yet").await?;
    assert_eq!(client.call(long.clone()).await?.pointer("/1/code"), Some(&json!("TOOLARGE")));
    std::fs::remove_file(&path)?;
    ensure!(std::process::Command::new("mkfifo").arg(&path).status()?.success());
    server.wait_for_log("it is not a regular file").await?;
    assert_eq!(client.call(long.clone()).await?.pointer("/1/code"), Some(&json!("TOOLARGE")));
    write(&server, "limits.name_bytes_max = 6")?;
    server.wait_for_log("settings were changed").await?;
    assert_eq!(client.call(long).await?, json!(["OK", 1]));
    server.stop().await
}
