//! The terminal commands: the real binary against a real server, with pipes and in a terminal.

mod bench;
mod encrypted;
mod generate;
mod publish;
mod subscribe;
mod top;

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::support::process::{Pipe, Process};
use crate::support::server::Server;

/// `switchyard` with these arguments and the server's URL.
fn command(url: &str, words: &[impl AsRef<OsStr>]) -> Command {
    let mut command = switchyard(words);
    command.arg("--url").arg(url);
    command
}

/// `switchyard` with these arguments, and without environment variables that affect it.
fn switchyard(words: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchyard"));
    command.args(words);
    for variable in [
        "SWITCHYARD_TOKEN",
        "SWITCHYARD_URL",
        "SWITCHYARD_ADMIN",
        "SWITCHYARD_CA",
        "NO_COLOR",
        "CLICOLOR",
        "CLICOLOR_FORCE",
    ] {
        command.env_remove(variable);
    }
    command.env("TERM", "xterm-256color").env("TZ", "UTC");
    command
}

/// The same in a terminal of 24 lines and 80 columns, made by `script`. The terminal's output
/// appears on standard output.
fn in_a_terminal(command: &Command) -> Result<Command> {
    let mut line = "stty rows 24 cols 80; exec".to_owned();
    for word in std::iter::once(command.get_program()).chain(command.get_args()) {
        let Some(word) = word.to_str().filter(|word| !word.contains('\'')) else {
            bail!("{word:?} cannot be quoted for a shell");
        };
        line.push_str(&format!(" '{word}'"));
    }
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    Ok(script)
}

/// A subscriber that has reported that it listens.
async fn listener(server: &Server, words: &[&str]) -> Result<Process> {
    let process = Process::start("sub", &mut command(&server.url().await?, words))?;
    process.line_with(Pipe::Stderr, "listening").await?;
    Ok(process)
}

/// The output of a program that ends by itself, if its exit code is the expected one: standard
/// output and standard error.
async fn outcome(mut process: Process, code: i32) -> Result<(Vec<String>, String)> {
    let (status, lines) = process.exit().await?;
    let said = process.text(Pipe::Stderr);
    anyhow::ensure!(status.code() == Some(code), "it ended with {status}: {said}");
    Ok((lines, said))
}

/// A program with this as its standard input.
fn fed(name: &'static str, command: &mut Command, input: &[u8]) -> Result<Process> {
    let mut file = tempfile::tempfile()?;
    std::io::Write::write_all(&mut file, input)?;
    std::io::Seek::rewind(&mut file)?;
    Process::start_fed(name, command, Stdio::from(file))
}

/// Lines of JSON without the fields that differ from run to run.
fn untimed(lines: &[String]) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for line in lines {
        let mut object: Value = serde_json::from_str(line)?;
        let time = object.as_object_mut().and_then(|object| object.remove("time"));
        anyhow::ensure!(time.is_some_and(|time| time.is_string()), "no time in {line}");
        objects.push(object);
    }
    Ok(objects)
}
