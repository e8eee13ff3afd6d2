//! `examples/node-host`: the same engine component in a host that a user could
//! have written in an afternoon.
//!
//! `tests/clients/install.sh` gets its packages. The component is transpiled here,
//! once for all tests of a run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};

use crate::server::Launch;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../examples/node-host")
}

/// The command that starts it on a free port, with the limits that the config
/// file sets. Everything else that can be configured it does not have.
pub fn command(launch: &Launch) -> Result<Command> {
    static TRANSPILED: LazyLock<Result<(), String>> =
        LazyLock::new(|| transpile().map_err(|problem| format!("{problem:#}")));
    TRANSPILED.clone().map_err(anyhow::Error::msg)?;
    ensure!(launch.plugins.is_none(), "the Node host has no plugins");
    let mut command = Command::new("node");
    command.arg(folder().join("server.js")).args(["--port", "0"]);
    for line in launch.config.lines() {
        let (setting, value) = line.split_once(" = ").context("a line sets something")?;
        let (_, limit) = setting.split_once('.').context("a setting is in a table")?;
        command.arg(format!("--limit={limit}={value}"));
    }
    Ok(command)
}

fn transpile() -> Result<()> {
    let output = Command::new("node")
        .arg(folder().join("transpile.js"))
        .output()
        .context("cannot run node")?;
    ensure!(
        output.status.success(),
        "run `make components` and host/tests/clients/install.sh: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
