//! Completions and manual pages generated from the argument definitions, and the health check.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result};

use super::{outcome, switchyard};
use crate::support::process::Process;
use crate::support::server::Launch;

async fn printed(words: &[&str]) -> Result<Vec<String>> {
    let process = Process::start("switchyard", &mut switchyard(words))?;
    Ok(outcome(process, 0).await?.0)
}

/// The commands that the help lists.
async fn commands() -> Result<BTreeSet<String>> {
    let help = printed(&["--help"]).await?;
    let listed = help.iter().skip_while(|line| *line != "Commands:").skip(1);
    let words = listed.take_while(|line| !line.is_empty()).filter_map(|line| {
        // Continuation lines are indented further.
        let command = line.strip_prefix("  ")?;
        (!command.starts_with(' ')).then(|| command.split(' ').next().map(str::to_owned))?
    });
    let commands: BTreeSet<String> = words.filter(|command| command != "help").collect();
    anyhow::ensure!(commands.contains("serve") && commands.contains("top"), "{help:?}");
    Ok(commands)
}

#[tokio::test]
async fn completions_know_all_commands() -> Result<()> {
    let commands = commands().await?;
    for shell in ["bash", "zsh", "fish"] {
        let script = printed(&["completions", shell]).await?.join("\n");
        for command in &commands {
            assert!(script.contains(command), "{shell} does not know {command}");
        }
        assert!(script.contains("payload-bytes"), "{shell} knows no flags");
    }
    // The shell itself checks that it is a script, and what it does.
    let script = printed(&["completions", "bash"]).await?.join("\n");
    let ask = "COMP_WORDS=(switchyard se); COMP_CWORD=1; _switchyard switchyard se switchyard; \
               echo ${COMPREPLY[*]}";
    let output = Command::new("bash").args(["-c", &format!("{script}\n{ask}")]).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.trim(), "serve", "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[tokio::test]
async fn the_manual_has_a_page_for_each_command() -> Result<()> {
    let page = printed(&["man"]).await?.join("\n");
    let home = tempfile::tempdir()?;
    // It is created.
    let directory = home.path().join("share/man1");
    let path = directory.to_str().context("a temporary path is text")?;
    printed(&["man", "--directory", path]).await?;
    for command in commands().await? {
        assert!(page.contains(&format!("switchyard\\-{command}(1)")), "no {command} in {page}");
        let file = directory.join(format!("switchyard-{command}.1"));
        let page = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        assert!(page.starts_with(".ie \\n(.g") || page.contains(".TH"), "{page}");
        assert!(page.contains(&command), "{page}");
    }
    assert!(std::fs::read_to_string(directory.join("switchyard.1"))?.contains(".TH"));
    Ok(())
}

#[tokio::test]
async fn the_settings_are_printed_as_a_config_file() -> Result<()> {
    let home = tempfile::tempdir()?;
    let write = |name: &str, lines: &[String]| -> Result<String> {
        let path = home.path().join(name);
        std::fs::write(&path, lines.join("\n"))?;
        Ok(path.to_str().context("a temporary path is text")?.to_owned())
    };
    let defaults = printed(&["config"]).await?;
    for line in ["[http]", "handshake_timeout_ms = 5000", "#= tokens_file = \"tokens\""] {
        assert!(defaults.iter().any(|printed| printed == line), "no {line}: {defaults:?}");
    }
    // They are the defaults when they are read again.
    let file = write("defaults.toml", &defaults)?;
    assert_eq!(printed(&["config", "--file", &file]).await?, defaults);

    let settings = ["http.handshake_timeout_ms = '7s'", "plugins.directory = 'here'"];
    let file = write("some.toml", &settings.map(str::to_owned))?;
    let effective = printed(&["config", "--file", &file]).await?;
    let directory = format!("directory = {:?}", home.path().join("here").display().to_string());
    for line in ["handshake_timeout_ms = 7000", "head_timeout_ms = 5000", &directory] {
        assert!(effective.iter().any(|printed| printed == line), "no {line}: {effective:?}");
    }
    let again = write("again.toml", &effective)?;
    assert_eq!(printed(&["config", "--file", &again]).await?, effective);

    let wrong = write("wrong.toml", &["http.handshake_timeout_ms = '7x'".to_owned()])?;
    let process = Process::start("config", &mut switchyard(&["config", "--file", &wrong]))?;
    let (lines, said) = outcome(process, 64).await?;
    assert!(lines.is_empty() && said.contains("\"25s\"") && said.contains("line 1"), "{said}");
    Ok(())
}

#[tokio::test]
async fn health_is_checked_without_another_program() -> Result<()> {
    let server = Launch::default().start().await?;
    let url = format!("http://{}/healthz", server.address().await?);
    assert_eq!(printed(&["health", &url]).await?, ["ok"]);
    let url = format!("http://{}/nothing", server.address().await?);
    let process = Process::start("health", &mut switchyard(&["health", &url]))?;
    let (lines, said) = outcome(process, 1).await?;
    assert!(lines.is_empty() && said.contains("HTTP 404"), "{said}");
    server.stop().await?;

    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/healthz", silent.local_addr()?);
    let words = ["health", &url, "--timeout", "0.2"];
    let process = Process::start("health", &mut switchyard(&words))?;
    let (_, said) = outcome(process, 1).await?;
    assert!(said.contains("no answer"), "{said}");
    Ok(())
}
