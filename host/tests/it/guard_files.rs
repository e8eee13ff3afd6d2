//! A guard plugin is never absent by accident: it stays in force while its files are replaced, in
//! however many steps.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::admin::Operator;
use crate::support::server::{Launch, Server};
use crate::support::websocket::Client;
use crate::support::{PATIENCE, components};

const CONFIG: &str = "
    shutdown.timeout_ms = 100
    plugins.debounce_ms = 1
    plugins.poll_ms = 20
";

const GONE: &str = "the file of a plugin is gone";
const SETTINGS_GONE: &str = "the settings file of a plugin is gone";
const BACK: &str = "the files of a plugin are back";
const SWAPPED: &str = "a plugin was swapped";

/// A server with a guard plugin that refuses all subscriptions to `secret`, and stamps what is
/// published.
struct House {
    server: Server,
    home: TempDir,
    client: Client,
}

fn guarding(stamps: usize) -> Value {
    let refuse = json!({"refuse": {"code": "NOPERM", "message": "no"}, "channels": ["secret"]});
    json!({"on_access": refuse, "on_publish": vec!["stamp"; stamps]})
}

fn probe(stamp: u32) -> Result<Vec<u8>> {
    components::stamped(components::built("test/probe")?, stamp)
}

impl House {
    async fn new() -> Result<House> {
        let home = tempfile::tempdir()?;
        std::fs::create_dir(home.path().join("plugins"))?;
        components::install(&home.path().join("plugins"), "10-guard", &probe(0)?, &guarding(1))?;
        let plugins = Some(home.path().join("plugins"));
        let server = Launch { plugins, ..Launch::with_config(CONFIG) }.start().await?;
        server.wait_for_log("changes of files are watched").await?;
        let mut client = server.client().await?;
        ensure!(client.call(json!(["SUBSCRIBE", "a"])).await? == json!(["OK", 1]));
        Ok(House { server, home, client })
    }

    fn plugins(&self) -> PathBuf {
        self.home.path().join("plugins")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.plugins().join(name)
    }

    /// Checks that the guard is in force, and that a published payload becomes this.
    async fn guards(&mut self, payload: &str) -> Result<()> {
        let answer = self.client.call(json!(["SUBSCRIBE", "secret"])).await?;
        ensure!(answer.pointer("/1/code") == Some(&json!("NOPERM")), "answered {answer}");
        ensure!(self.client.call(json!(["PUBLISH", "a", "x"])).await? == json!(["OK", 1]));
        let came = self.client.next_json().await?;
        ensure!(came == json!(["message", "a", payload]), "{came} came, not {payload}");
        Ok(())
    }

    /// Publishes until the payload becomes this; the guard must be in force all the while.
    async fn becomes(&mut self, payload: &str, before: &str) -> Result<()> {
        let began = Instant::now();
        while self.guards(payload).await.is_err() {
            ensure!(began.elapsed() < PATIENCE, "it does not become {payload}");
            self.guards(before).await.or_else(|error| {
                // The change may have happened in between.
                if error.to_string().contains(payload) { Ok(()) } else { Err(error) }
            })?;
        }
        Ok(())
    }

    async fn operator(&self) -> Result<Operator> {
        Operator::of(&self.server).await
    }
}

#[tokio::test]
async fn a_guard_with_a_missing_file_stays_until_it_is_removed_by_name() -> Result<()> {
    let mut house = House::new().await?;
    std::fs::remove_file(house.file("10-guard.wasm"))?;
    let line = house.server.wait_for_log(GONE).await?;
    for word in ["WARN", "10-guard.wasm", "switchyard plugin rm 10-guard"] {
        ensure!(line.contains(word), "{word:?} is not said: {line}");
    }
    house.guards("x@00000000").await?;
    let operator = house.operator().await?;
    ensure!(operator.get("/v1/plugins/guard")?["file_missing"] == "component");
    let listed = operator.say(&["plugin", "ls"])?;
    ensure!(listed.contains("file missing"), "{listed}");
    let head = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n", operator.authority());
    let (status, _, health) = operator.exchange(&head, b"")?;
    ensure!(status == 200 && health.contains("a file of the plugin 10-guard is gone"), "{health}");

    // The old file is back: nothing is swapped.
    components::write_atomically(&house.file("10-guard.wasm"), &probe(0)?)?;
    house.server.wait_for_log(BACK).await?;
    house.guards("x@00000000").await?;
    ensure!(operator.get("/v1/plugins/guard")?["file_missing"] == Value::Null);
    ensure!(!house.server.log().contains(SWAPPED));

    // Removed, and then another file: the two steps of a careless deployment.
    std::fs::remove_file(house.file("10-guard.wasm"))?;
    house.server.wait_for_logs(GONE, 2).await?;
    house.guards("x@00000000").await?;
    components::write_atomically(&house.file("10-guard.wasm"), &probe(1)?)?;
    house.server.wait_for_log(SWAPPED).await?;
    house.guards("x@00000001").await?;

    std::fs::remove_file(house.file("10-guard.wasm"))?;
    house.server.wait_for_logs(GONE, 3).await?;
    operator.say(&["plugin", "rm", "guard"])?;
    let answer = house.client.call(json!(["SUBSCRIBE", "secret"])).await?;
    ensure!(answer == json!(["OK", 2]), "answered {answer}");
    house.server.stop().await
}

#[tokio::test]
async fn a_guard_with_missing_settings_keeps_those_that_it_has() -> Result<()> {
    let mut house = House::new().await?;
    std::fs::remove_file(house.file("10-guard.toml"))?;
    house.server.wait_for_log(SETTINGS_GONE).await?;
    house.guards("x@00000000").await?;
    ensure!(house.operator().await?.get("/v1/plugins/guard")?["file_missing"] == "settings");
    // Another component is not loaded without settings.
    components::write_atomically(&house.file("10-guard.wasm"), &probe(1)?)?;
    house.guards("x@00000000").await?;
    let settings = json!({"settings": guarding(2)});
    components::configure(&house.plugins(), "10-guard", &settings)?;
    house.server.wait_for_log(SWAPPED).await?;
    house.guards("x@00000001@00000001").await?;
    // A swap by the API keeps the settings, whatever the file is.
    std::fs::remove_file(house.file("10-guard.toml"))?;
    house.server.wait_for_logs(SETTINGS_GONE, 2).await?;
    let next = house.home.path().join("next.wasm");
    std::fs::write(&next, probe(2)?)?;
    let next = next.to_str().context("a path in UTF-8")?;
    house.operator().await?.say(&["plugin", "swap", "guard", next])?;
    house.guards("x@00000002@00000002").await?;
    ensure!(house.file("10-guard.toml").exists(), "they are not written back");
    house.server.stop().await
}

#[tokio::test]
async fn moving_the_directory_removes_no_guard() -> Result<()> {
    let mut house = House::new().await?;
    let moved = house.home.path().join("moved");
    std::fs::rename(house.plugins(), &moved)?;
    house.server.wait_for_log("the plugin directory was not read").await?;
    house.guards("x@00000000").await?;
    // First an empty directory, and then one with another version.
    std::fs::create_dir(house.plugins())?;
    house.server.wait_for_log(GONE).await?;
    house.guards("x@00000000").await?;
    components::install(&house.plugins(), "10-guard", &probe(1)?, &guarding(1))?;
    house.becomes("x@00000001", "x@00000000").await?;
    // The whole directory in one step.
    let next = house.home.path().join("next");
    std::fs::create_dir(&next)?;
    components::install(&next, "10-guard", &probe(2)?, &guarding(1))?;
    std::fs::remove_dir_all(&moved)?;
    std::fs::rename(house.plugins(), &moved)?;
    std::fs::rename(&next, house.plugins())?;
    house.becomes("x@00000002", "x@00000001").await?;
    // A directory that is replaced is noticed every time.
    components::write_atomically(&house.file("10-guard.wasm"), &probe(3)?)?;
    house.becomes("x@00000003", "x@00000002").await?;
    house.server.stop().await
}

#[tokio::test]
async fn a_link_to_a_file_that_is_built_again_is_noticed() -> Result<()> {
    let mut house = House::new().await?;
    let built = house.home.path().join("built.wasm");
    std::fs::write(&built, probe(1)?)?;
    let link = house.home.path().join("link");
    std::os::unix::fs::symlink(&built, &link)?;
    std::fs::rename(&link, house.file("10-guard.wasm"))?;
    house.becomes("x@00000001", "x@00000000").await?;
    components::write_atomically(&built, &probe(2)?)?;
    house.becomes("x@00000002", "x@00000001").await?;
    house.server.stop().await
}

/// One file after the other, as `mv` does it.
#[tokio::test]
async fn a_guard_with_renamed_files_is_moved() -> Result<()> {
    for order in [["wasm", "toml"], ["toml", "wasm"]] {
        let mut house = House::new().await?;
        for extension in order {
            let (from, to) = (format!("10-guard.{extension}"), format!("20-guard.{extension}"));
            std::fs::rename(house.file(&from), house.file(&to))?;
            house.guards("x@00000000").await?;
        }
        house.server.wait_for_log("a plugin was moved").await?;
        house.guards("x@00000000").await?;
        let plugins = house.operator().await?.get("/v1/plugins")?;
        let plugins = plugins["plugins"].as_array().context("a list")?;
        ensure!(plugins.len() == 1 && plugins[0]["slot"] == "20-guard", "{plugins:?}");
        ensure!(plugins[0]["file_missing"] == Value::Null, "{plugins:?}");
        house.server.stop().await?;
    }
    Ok(())
}

fn check(plugins: &Path) -> Result<(Option<i32>, String)> {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_switchyard"));
    let path = plugins.to_str().context("a path in UTF-8")?;
    let output = command.args(["serve", "--check", "--plugins", path]).output()?;
    Ok((output.status.code(), String::from_utf8(output.stderr)?))
}

/// The name does not matter: only the same settings make it the same plugin.
#[tokio::test]
async fn another_plugin_takes_no_guard_out_of_force() -> Result<()> {
    for name in ["20-guard", "30-words"] {
        let mut house = House::new().await?;
        std::fs::remove_file(house.file("10-guard.wasm"))?;
        house.server.wait_for_log(GONE).await?;
        let other = json!({"settings": {"on_publish": ["stamp"]}});
        components::configure(&house.plugins(), name, &other)?;
        let file = components::path(&house.plugins(), name);
        components::write_atomically(&file, &probe(0)?)?;
        house.server.wait_for_logs("a plugin was added", 2).await?;
        // The guard refuses as before, and both plugins stamp.
        house.guards("x@00000000@00000000").await?;
        let plugins = house.operator().await?.get("/v1/plugins")?;
        ensure!(plugins["plugins"].as_array().is_some_and(|all| all.len() == 2), "{plugins}");
        house.server.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn settings_without_a_component_are_warned_of_and_fail_the_check() -> Result<()> {
    let home = tempfile::tempdir()?;
    let plugins = home.path();
    components::write_atomically(&components::path(plugins, "20-redact"), &probe(0)?)?;
    // The server's own configuration may be in the same directory.
    std::fs::write(plugins.join("switchyard.toml"), "[limits]\nname_bytes_max = 100\n")?;
    let (code, log) = check(plugins)?;
    ensure!(code == Some(0), "{log}");
    components::configure(plugins, "20-redcat", &json!({"settings": {"on_publish": "stamp"}}))?;
    let (code, log) = check(plugins)?;
    ensure!(code == Some(64), "{log}");
    let said = ["20-redcat.toml has no 20-redcat.wasm", "was 20-redact.toml meant?"];
    for word in said {
        ensure!(log.contains(word), "{word:?} is not said: {log}");
    }
    // A file with a mistake counts as a plugin's file as well.
    std::fs::remove_file(plugins.join("20-redcat.toml"))?;
    for mistake in ["[settings]\nrules = [", "polcy = 'closed'\n[settings]\n"] {
        std::fs::write(plugins.join("acl.toml"), mistake)?;
        let (code, log) = check(plugins)?;
        ensure!(code == Some(64) && log.contains("acl.toml has no acl.wasm"), "{mistake}: {log}");
    }
    std::fs::remove_file(plugins.join("acl.toml"))?;
    components::configure(plugins, "20-redcat", &json!({"settings": {"on_publish": "stamp"}}))?;
    let server = Launch { plugins: Some(plugins.to_owned()), ..Launch::with_config(CONFIG) };
    let server = server.start().await?;
    server.wait_for_log(said[0]).await?;
    server.wait_for_log("changes of files are watched").await?;
    // And while it runs.
    std::fs::write(plugins.join("30-acl.toml"), "")?;
    server.wait_for_log("30-acl.toml has no 30-acl.wasm").await?;
    server.stop().await
}

/// A plugin that is removed by name keeps its settings for its return; they are not reported as
/// orphans.
#[tokio::test]
async fn a_plugin_that_comes_back_by_name_has_its_settings() -> Result<()> {
    let mut house = House::new().await?;
    let operator = house.operator().await?;
    operator.say(&["plugin", "rm", "guard"])?;
    let (code, log) = check(&house.plugins())?;
    ensure!(code == Some(0), "{log}");
    // Not without its settings, as a file.
    let component = house.home.path().join("guard.wasm");
    std::fs::write(&component, probe(1)?)?;
    // At once: a part of a file is refused for another reason.
    components::write_atomically(&house.file("10-guard.wasm"), &probe(1)?)?;
    let line = house.server.wait_for_log("a plugin was refused").await?;
    ensure!(line.contains("10-guard.toml.removed"), "{line}");
    let component = component.to_str().context("a path in UTF-8")?;
    operator.say(&["plugin", "load", "10-guard", component])?;
    house.guards("x@00000001").await?;
    ensure!(house.file("10-guard.toml").exists());
    ensure!(!house.file("10-guard.toml.removed").exists());
    house.server.stop().await
}

/// A file that cannot be read now is read later.
#[tokio::test]
async fn what_could_not_be_read_is_read_again() -> Result<()> {
    let mut house = House::new().await?;
    // Root can read every file, so an unreadable path must be a directory.
    let unreadable = house.file("10-guard.wasm");
    std::fs::remove_file(&unreadable)?;
    std::fs::create_dir(&unreadable)?;
    house.server.wait_for_log("a plugin was refused").await?;
    house.guards("x@00000000").await?;
    let component = house.home.path().join("guard.wasm");
    std::fs::write(&component, probe(1)?)?;
    std::fs::remove_dir(&unreadable)?;
    std::fs::rename(&component, &unreadable)?;
    house.becomes("x@00000001", "x@00000000").await?;
    ensure!(house.server.log().matches("a plugin was refused").count() == 1);
    house.server.stop().await
}

/// Reading a named pipe might never end, and a file of any size would be read into memory.
#[tokio::test]
async fn what_is_no_file_or_too_large_is_refused_and_other_files_are_still_watched() -> Result<()> {
    let mut house = House::new().await?;
    let pipe = house.file("20-pipe.wasm");
    ensure!(std::process::Command::new("mkfifo").arg(&pipe).status()?.success());
    house.server.wait_for_log("it is not a regular file").await?;
    // Sparse: it takes no room on the disk.
    std::fs::File::create(house.file("30-large.wasm"))?.set_len(2 << 30)?;
    house.server.wait_for_log("it has 2147483648 bytes or more, and 67108864 are allowed").await?;
    components::write_atomically(&house.file("10-guard.wasm"), &probe(1)?)?;
    house.becomes("x@00000001", "x@00000000").await?;
    std::fs::File::create(house.file("10-guard.toml"))?.set_len(2 << 30)?;
    house.server.wait_for_log("and 1048576 are allowed").await?;
    house.guards("x@00000001").await?;
    house.server.stop().await
}
