//! What the tests share: a running server, clients for it, components to load.

#[allow(dead_code, reason = "only `tests/it` operates a server")]
pub mod admin;
pub mod components;
#[allow(dead_code, reason = "only `tests/it` floods a server")]
pub mod flood;
#[allow(dead_code, reason = "only `tests/it` has plugins that ask")]
pub mod http_service;
pub mod node_host;
pub mod process;
#[allow(dead_code, reason = "each test program needs another part of it")]
pub mod raw;
#[allow(dead_code, reason = "only `tests/it` sends Redis commands by hand")]
pub mod resp;
pub mod server;
#[allow(dead_code, reason = "only `tests/it` builds plugins")]
pub mod toolchains;
pub mod websocket;

use std::path::Path;

use anyhow::{Context, Result};

pub use switchyard::authors::conversation::client::{PATIENCE, within};

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
