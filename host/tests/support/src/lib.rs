//! What the programs of tests share: a running server, clients for it, components to load.
//!
//! A crate of its own, so that it is compiled once.

#![allow(missing_docs, reason = "what tests use is not published")]

pub mod admin;
pub mod answers;
pub mod client;
pub mod components;
pub mod flood;
pub mod http_service;
pub mod node_host;
pub mod notation;
pub mod process;
pub mod race;
pub mod raw;
pub mod resp;
pub mod server;
pub mod toolchains;
pub mod value;
pub mod websocket;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context, Result};

pub use switchyard_cli::authors::conversation::client::{PATIENCE, within};

/// The program that is tested: cargo builds it with the tests, and puts it where they are.
pub fn switchyard() -> &'static Path {
    static SWITCHYARD: LazyLock<PathBuf> = LazyLock::new(|| {
        let test = std::env::current_exe().expect("a test is a program");
        let built = test.ancestors().nth(2).expect("it is in a folder of what was built");
        built.join("switchyard")
    });
    &SWITCHYARD
}

/// Where servers keep what they compiled, for those that start later.
pub fn compiled() -> PathBuf {
    switchyard().with_file_name("compiled")
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
