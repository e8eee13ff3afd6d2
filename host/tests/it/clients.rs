//! Third-party clients: Node's `ws` and Python's `websockets`, which exchange messages through the
//! server.
//!
//! `tests/clients/install.sh` installs them, at pinned versions, into `.tools/` of the repository.
//! Without them the test fails and says so.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::support::process::{Pipe, Process};
use crate::support::server::{Engine, Launch};

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Starts a script of `tests/clients/` with the program that runs it.
fn script(name: &'static str, program: impl Into<PathBuf>, url: &str) -> Result<Process> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name);
    let mut command = Command::new(program.into());
    command.arg(path).arg(url).env("NODE_PATH", repository().join(".tools/node/node_modules"));
    Process::start(name, &mut command).context("run host/tests/clients/install.sh")
}

/// Runs the two clients against a server.
pub async fn talk(engine: Engine) -> Result<()> {
    let server = Launch { engine, ..Launch::default() }.start().await?;
    let url = server.url().await?;
    let mut node = script("node.js", "node", &url)?;
    // From here on the two wait for each other's messages.
    node.line_with(Pipe::Stdout, "ready").await.context("run host/tests/clients/install.sh")?;
    let mut python = script("python.py", repository().join(".tools/python/bin/python"), &url)?;
    for process in [&mut python, &mut node] {
        let (status, _) = process.exit().await?;
        ensure!(status.success(), "one of them ended with {status}");
    }
    server.stop().await
}

#[tokio::test]
async fn node_and_python_talk_through_the_component_engine() -> Result<()> {
    talk(Engine::Component).await
}

#[tokio::test]
async fn node_and_python_talk_through_the_native_engine() -> Result<()> {
    talk(Engine::Native).await
}
