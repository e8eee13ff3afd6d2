//! What the tests share: a running server, clients for it, components to load.

#[allow(dead_code, reason = "only `tests/it` operates a server")]
pub mod admin;
pub mod components;
pub mod node_host;
pub mod process;
pub mod server;
pub mod websocket;

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

/// How long a test waits for what must come. Generous: the machine may be busy,
/// and only a failing test pays it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What `future` gives, or a failure that says `what` did not come in time.
pub async fn within<T>(
    limit: Duration,
    what: impl Display,
    future: impl Future<Output = T>,
) -> Result<T> {
    tokio::time::timeout(limit, future)
        .await
        .map_err(|_| anyhow!("waited {limit:?} in vain for {what}"))
}

/// The names of the files in a folder, without their endings, in order: for tests
/// that play files, to see that none is left out.
pub fn file_stems(folder: &Path) -> Result<Vec<String>> {
    let stem = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        Ok(stem.with_context(|| format!("{} is no text", path.display()))?.to_owned())
    };
    let mut stems: Vec<String> = std::fs::read_dir(folder)?.map(stem).collect::<Result<_>>()?;
    stems.sort();
    Ok(stems)
}
