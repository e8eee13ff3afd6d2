//! `switchyard plugin new`: the project that it creates is built by the real toolchains, as its
//! README says, and then checked, tested and loaded.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::support::admin::{Done, Operator};
use crate::support::server::{Launch, Server};
use crate::support::{components, toolchains};

/// `switchyard plugin new` with these arguments, in this folder.
fn new(folder: &Path, words: &[&str]) -> Result<Done> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchyard"));
    Done::of(command.args(["plugin", "new"]).args(words).current_dir(folder).output()?)
}

/// The commands in a README: the indented lines.
fn commands(readme: &str) -> impl Iterator<Item = &str> {
    readme.lines().filter_map(|line| line.strip_prefix("    "))
}

/// Follows the README of a new project in this language to its end.
async fn follow(language: &str) -> Result<()> {
    let home = components::directory()?;
    let done = new(home.path(), &["greeter", "--lang", language])?;
    ensure!(done.code == Some(0), "{done:?}");
    let project = home.path().join("greeter");
    let readme = std::fs::read_to_string(project.join("README.md"))?;
    let is_about_server = |command: &&str| {
        ["load", "swap"]
            .iter()
            .any(|verb| command.starts_with(&format!("switchyard plugin {verb} ")))
    };
    let before: Vec<&str> = commands(&readme).filter(|line| !is_about_server(line)).collect();
    let script = before.join("\n");
    ensure!(["check", "test"].iter().all(|verb| script.contains(verb)), "{readme}");
    let project_of_it = project.clone();
    let said = tokio::task::spawn_blocking(move || toolchains::run(&project_of_it, &script));
    let said = said.await??;
    ensure!(said.contains("the server would take it"), "{said}");
    ensure!(said.contains("steps as expected"), "{said}");

    let plugins = components::directory()?;
    // The listener answers no pings while a large component is compiled.
    let patient = "websocket.ping_interval_ms = 600000";
    let launch =
        Launch { plugins: Some(plugins.path().to_owned()), ..Launch::with_config(patient) };
    let server = launch.start().await?;
    let operator = Operator::of(&server).await?;
    let mut listener = server.client().await?;
    assert_eq!(listener.call(json!(["SUBSCRIBE", "news"])).await?, json!(["OK", 1]));
    for command in commands(&readme).filter(is_about_server) {
        let words: Vec<&str> = command.split(' ').skip(1).collect();
        let output = operator.command(&words).current_dir(&project).output()?;
        let done = Done::of(output)?;
        ensure!(done.code == Some(0), "{command}: {done:?}");
        let mut publisher = server.client().await?;
        assert_eq!(publisher.call(json!(["PUBLISH", "news", "hello"])).await?, json!(["OK", 1]));
        let came = listener.next_json().await?;
        assert_eq!(came, json!(["message", "news", "hello (seen by greeter)"]), "{command}");
    }
    server.wait_for_log("it starts with ").await?;
    refuses_other_settings(&server, &operator, &project)?;
    server.stop().await
}

/// Invalid settings are refused, with the plugin's own message.
fn refuses_other_settings(server: &Server, operator: &Operator, project: &Path) -> Result<()> {
    let other = server.home().join("other.toml");
    std::fs::write(&other, "settings.ending = 1\n")?;
    let other = other.to_str().context("a temporary path is text")?;
    let words = ["plugin", "reload", "greeter", "--config", other];
    let done = Done::of(operator.command(&words).current_dir(project).output()?)?;
    ensure!(done.code == Some(1) && done.stderr.contains("init"), "{done:?}");
    ensure!(done.stderr.contains("string"), "{done:?}");
    Ok(())
}

#[tokio::test]
async fn a_project_in_rust_is_what_its_readme_says() -> Result<()> {
    follow("rust").await
}

#[tokio::test]
async fn a_project_in_javascript_is_what_its_readme_says() -> Result<()> {
    follow("js").await
}

#[tokio::test]
async fn a_project_in_python_is_what_its_readme_says() -> Result<()> {
    follow("python").await
}

#[test]
fn nothing_is_overwritten() -> Result<()> {
    let home = components::directory()?;
    let file = home.path().join("mine/notes.txt");
    std::fs::create_dir(home.path().join("mine"))?;
    std::fs::write(&file, "mine")?;
    for place in ["mine", "mine/notes.txt"] {
        let done = new(home.path(), &["greeter", "--lang", "js", "--dir", place])?;
        ensure!(
            done.code == Some(64) && done.stderr.contains("nothing is overwritten"),
            "{done:?}"
        );
    }
    assert_eq!(std::fs::read_to_string(&file)?, "mine");
    assert_eq!(std::fs::read_dir(home.path().join("mine"))?.count(), 1);

    // The folder may exist if it is empty; otherwise it is created.
    std::fs::create_dir(home.path().join("empty"))?;
    for place in ["empty", "not/there"] {
        let done = new(home.path(), &["greeter", "--lang", "js", "--dir", place])?;
        ensure!(done.code == Some(0), "{done:?}");
        ensure!(home.path().join(place).join("greeter.toml").exists(), "{place}");
        let again = new(home.path(), &["greeter", "--lang", "js", "--dir", place])?;
        ensure!(again.code == Some(64), "{again:?}");
    }
    Ok(())
}

#[test]
fn other_names_and_languages_are_refused() -> Result<()> {
    let home = components::directory()?;
    for name in ["Greeter", "2fast", "a_b", "a--b", "a-", "../up", ""] {
        let done = new(home.path(), &[name, "--lang", "rust"])?;
        ensure!(done.code == Some(64), "{name}: {done:?}");
        ensure!(done.stderr.contains("is no name for a plugin"), "{name}: {done:?}");
    }
    for words in [&["greeter"][..], &["greeter", "--lang", "cobol"], &["--lang", "js"]] {
        let done = new(home.path(), words)?;
        ensure!(done.code == Some(64), "{words:?}: {done:?}");
    }
    assert_eq!(std::fs::read_dir(home.path())?.count(), 0);
    Ok(())
}
