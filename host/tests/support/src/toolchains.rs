//! What plugins are built with, in all languages, without a network.
//!
//! `tests/clients/install.sh` keeps it in `.tools/plugins/`; crates are those that
//! the server itself is built with. What cargo makes on the way stays in
//! `target/plugin-projects/`, so that it is made once.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::switchyard;

/// A shell for commands that were typed in this folder, one after the other, with
/// `switchyard` on the path.
pub fn shell(folder: &Path) -> Result<Command> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").canonicalize()?;
    let tools = repository.join(".tools/plugins");
    ensure!(tools.exists(), "there is no {}; run host/tests/clients/install.sh", tools.display());
    let binaries = switchyard().parent();
    let binaries = binaries.context("the binary is in a folder")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> =
        std::iter::once(binaries.to_owned()).chain(std::env::split_paths(&path)).collect();
    let mut command = Command::new("bash");
    command
        .args(["-e", "-u", "-o", "pipefail"])
        .current_dir(folder)
        .env("PATH", std::env::join_paths(path)?)
        .env("CARGO_NET_OFFLINE", "true")
        .env("CARGO_BUILD_BUILD_DIR", repository.join("target/plugin-projects"))
        .env("npm_config_cache", tools.join("npm-cache"))
        .env("npm_config_prefer_offline", "true")
        .env("npm_config_update_notifier", "false")
        .env("SWITCHYARD_CACHE", crate::compiled())
        .env("PIP_NO_INDEX", "1")
        .env("PIP_FIND_LINKS", tools.join("wheels"))
        .env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
    // Variables that cargo sets for its child processes must not reach another cargo.
    for name in ["CARGO", "CARGO_MANIFEST_DIR", "CARGO_TARGET_DIR", "RUSTFLAGS"] {
        command.env_remove(name);
    }
    Ok(command)
}

/// Runs commands in this folder; they must succeed. What they print.
pub fn run(folder: &Path, commands: &str) -> Result<String> {
    let output = shell(folder)?.arg("-c").arg(commands).output().context("there is no bash")?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{commands}\nended with {}:\n{stdout}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(stdout)
}
