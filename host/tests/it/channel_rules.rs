//! Channel rules: what `channels explain` prints, what `--check` says, and the warnings in the log.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::support::components::write_atomically;
use crate::support::server::{Launch, Server, with_quick_end};

const RULES: &str = "[[channels]]\nmatch = ['log.*', 'audit']\n\n[[channels]]\nmatch = 'chat.*'\n\
    history_messages = 100\nhistory_ms = '5m'\npresence = true\n\n[[channels]]\n\
    match = '[\u{e4}-\u{fc}]?'\npresence = true\npresence_members_max = 1\n";

/// The third rule never applies.
const SHADOWED: &str = "[[channels]]\nmatch = 'a*'\n[[channels]]\nmatch = 'b'\n[[channels]]\n\
    match = 'ab.*'\n";

struct Output {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// `switchyard channels explain` with these arguments.
fn explain(words: &[&OsStr]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchyard"));
    let output = command.args(["channels", "explain"]).args(words).output()?;
    Ok(Output {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}

/// A config file with this text.
struct File(tempfile::TempDir);

impl File {
    fn new(text: &str) -> Result<File> {
        let home = tempfile::tempdir()?;
        std::fs::write(home.path().join("switchyard.toml"), text)?;
        Ok(File(home))
    }

    fn path(&self) -> Result<String> {
        let path = self.0.path().join("switchyard.toml");
        Ok(path.to_str().context("a temporary path is text")?.to_owned())
    }

    fn explain(&self, words: &[&[u8]]) -> Result<Output> {
        let path = self.path()?;
        let words = words.iter().map(|word| OsStr::from_bytes(word));
        let file: [&OsStr; 2] = ["--config".as_ref(), path.as_ref()];
        explain(&file.into_iter().chain(words).collect::<Vec<_>>())
    }
}

#[test]
fn the_rule_of_a_channel_is_explained() -> Result<()> {
    let file = File::new(RULES)?;
    let check = |words: &[&[u8]], expected: &str| -> Result<()> {
        let output = file.explain(words)?;
        ensure!(output.code == Some(0) && output.stderr.is_empty(), "{}", output.stderr);
        assert_eq!(output.stdout, expected);
        Ok(())
    };
    let chat = "{\"rule\":2,\"match\":\"chat.*\",\"history\":{\"messages\":100,\"ms\":300000,\
        \"idle_ms\":86400000},\"presence\":{\"members_max\":1000}}\n";
    check(&[b"chat.7", b"--json"], chat)?;
    check(&[b"--json", b"chat.\xff\n"], chat)?;
    check(
        &[b"audit", b"--json"],
        "{\"rule\":1,\"match\":\"audit\",\"history\":null,\"presence\":null}\n",
    )?;
    let none = "{\"rule\":null,\"match\":null,\"history\":null,\"presence\":null}\n";
    check(&[b"chat", b"--json"], none)?;
    check(&[b"", b"--json"], none)?;
    check(&[b"--json", b"--", b"--json"], none)?;
    check(
        &[b"chat.7"],
        "rule 2 applies: its pattern chat.* matches\n\
         history: the last 100 messages, none older than 300000 ms; it ends after 86400000 ms \
         without messages and listeners\n\
         presence: at most 1000 members\n",
    )?;
    check(&[b"other"], "no rule applies\nhistory: none\npresence: none\n")
}

#[test]
fn without_a_config_file_there_are_no_rules() -> Result<()> {
    let output = explain(&["chat.7".as_ref()])?;
    ensure!(output.code == Some(0) && output.stdout.starts_with("no rule applies\n"));
    // A name is needed.
    ensure!(explain(&[])?.code == Some(64));
    Ok(())
}

/// By the start, by the check and by `channels explain`, in the same words.
#[tokio::test]
async fn a_rule_that_cannot_be_is_refused() -> Result<()> {
    for (rule, says) in [
        (
            "history_messages = 10",
            "switchyard: rule 2 of [[channels]]: history_ms is missing, but must be set, as \
             history_messages is: both are, or neither",
        ),
        (
            "history_messages = 10\nhistory_ms = '40d'",
            "switchyard: rule 2 of [[channels]]: history_ms is 3456000000, but must be from 1 to \
             2592000000",
        ),
    ] {
        let file =
            File::new(&format!("[[channels]]\nmatch = 'a'\n[[channels]]\nmatch = 'b'\n{rule}"))?;
        let path = file.path()?;
        let commands: [&[&str]; 3] =
            [&["serve", "--check"], &["serve"], &["channels", "explain", "name", "--json"]];
        for words in commands {
            let words = [words, &["--config", &path]].concat();
            let mut server = Server::run_with(&words)?;
            let (status, stdout) = server.exit().await?;
            ensure!(status.code() == Some(64) && stdout.is_empty(), "{words:?}: {status}");
            ensure!(server.log().starts_with(says), "{words:?}: {}", server.log());
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_rule_that_never_applies_is_warned_of() -> Result<()> {
    let sentence = "switchyard: warning: rule 3 of [[channels]] never applies, because the first \
                    match wins: rule 1 matches all of its channels";
    for (rules, is_warned) in [(SHADOWED, true), (RULES, false)] {
        let file = File::new(rules)?;
        let words = ["serve", "--check", "--engine", "native", "--config", &file.path()?];
        let mut server = Server::run_with(&words)?;
        let (status, _) = server.exit().await?;
        let log = server.log();
        ensure!(status.code() == Some(0) && log.contains("the configuration is good"), "{log}");
        assert_eq!(log.lines().any(|line| line == sentence), is_warned, "{log}");
    }

    let server = Launch::with_config(SHADOWED).start().await?;
    let says = "a channel rule never applies";
    let line = server.wait_for_log(says).await?;
    ensure!(line.contains("WARN") && line.contains("rule=3"), "{line}");
    let file = server.home().join("switchyard.toml");
    // Other settings do not repeat it.
    let other = format!("limits.patterns_max = 7\n{SHADOWED}");
    write_atomically(&file, with_quick_end(&other).as_bytes())?;
    server.wait_for_log("settings were changed").await?;
    assert_eq!(server.log().matches(says).count(), 1, "{}", server.log());
    let more = format!("{other}[[channels]]\nmatch = 'b'\n");
    write_atomically(&file, with_quick_end(&more).as_bytes())?;
    let line = server.wait_for_log("rule=4").await?;
    ensure!(line.contains("WARN") && line.contains(says), "{line}");
    let lines = server.wait_for_logs("settings were changed", 2).await?;
    ensure!(lines.last().is_some_and(|line| line.contains("channels")), "{lines:?}");

    // A file with a mistake changes nothing.
    write_atomically(&file, with_quick_end("[[channels]]\npresence = true\n").as_bytes())?;
    let line = server.wait_for_log("the current one stays in use").await?;
    ensure!(line.contains("rule 1 of [[channels]]: match is missing"), "{line}");
    server.stop().await
}
