//! Compiled components are cached in a directory, if the server has one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::support::admin::Operator;
use crate::support::components;
use crate::support::server::{Launch, Server};

/// A server with a plugin that caches compiled components there.
async fn keeping_in(cache: &Path, plugins: &Path) -> Result<Server> {
    Launch {
        config: "shutdown.timeout_ms = 100\n".to_owned(),
        plugins: Some(plugins.to_owned()),
        environment: vec![("SWITCHYARD_CACHE".to_owned(), cache.into())],
        ..Launch::default()
    }
    .start()
    .await
}

/// How many components were compiled, and how many were loaded from the directory.
async fn compilations(server: &Server) -> Result<(u64, u64)> {
    let operator = Operator::of(server).await?;
    let head = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n", operator.authority());
    let (_, _, metrics) = operator.exchange(&head, b"")?;
    let count = |result| -> Result<u64> {
        let key = format!("switchyard_compilations_total{{result=\"{result}\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&key));
        Ok(value.with_context(|| format!("no {key}"))?.parse()?)
    };
    Ok((count("compiled")?, count("cached")?))
}

#[tokio::test]
async fn a_second_start_compiles_nothing() -> Result<()> {
    let home = components::directory()?;
    let cache = home.path().join("compiled");
    let plugins = components::directory()?;
    components::install(plugins.path(), "probe", &components::built("test/probe")?, &json!({}))?;
    let first = keeping_in(&cache, plugins.path()).await?;
    assert_eq!(compilations(&first).await?, (2, 0), "the engine and a plugin");
    first.stop().await?;
    assert_eq!(fs::metadata(&cache)?.permissions().mode() & 0o777, 0o700);

    let second = keeping_in(&cache, plugins.path()).await?;
    assert_eq!(compilations(&second).await?, (0, 2));
    let mut client = second.client().await?;
    assert_eq!(client.call(json!(["SUBSCRIBE", "a"])).await?, json!(["OK", 1]));
    second.stop().await
}

/// Overwrites all files below a directory; returns how many there were.
fn damage(directory: &Path) -> Result<usize> {
    let mut damaged = 0;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        damaged += match path.is_dir() {
            true => damage(&path)?,
            false => {
                fs::write(&path, b"not what was compiled")?;
                1
            }
        };
    }
    Ok(damaged)
}

/// A damaged file is compiled again.
#[tokio::test]
async fn a_damaged_file_is_compiled_again() -> Result<()> {
    let home = components::directory()?;
    let cache = home.path().join("compiled");
    let plugins = components::directory()?;
    keeping_in(&cache, plugins.path()).await?.stop().await?;
    let damaged = damage(&cache)?;
    ensure!(damaged > 0, "nothing was kept");
    let server = keeping_in(&cache, plugins.path()).await?;
    assert_eq!(compilations(&server).await?, (1, 0));
    server.client().await?.call(json!(["PUBLISH", "a", "b"])).await?;
    server.stop().await
}

#[tokio::test]
async fn a_directory_that_others_may_enter_is_refused() -> Result<()> {
    let cache = components::directory()?;
    fs::set_permissions(cache.path(), fs::Permissions::from_mode(0o755))?;
    let directory = cache.path().display().to_string();
    let words = ["--cache", &directory];
    let mut server = Server::run_alone(&words)?;
    let (status, _) = server.exit().await?;
    let log = server.log();
    ensure!(status.code() == Some(1), "{status}: {log}");
    ensure!(log.contains("plugins.cache_directory") && log.contains("0755"), "{log}");
    ensure!(log.contains("must be 0700"), "{log}");
    Ok(())
}

#[tokio::test]
async fn without_a_place_to_write_components_are_compiled() -> Result<()> {
    let plugins = components::directory()?;
    let file = plugins.path().join("a file");
    fs::write(&file, b"")?;
    let server = keeping_in(&file.join("below"), plugins.path()).await?;
    let line = server.wait_for_log("compiled components are not cached").await?;
    ensure!(line.contains("WARN") && line.contains("below"), "{line}");
    server.client().await?.call(json!(["PUBLISH", "a", "b"])).await?;
    server.stop().await
}
