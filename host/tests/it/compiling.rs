//! Compiling a component takes long, and nothing but its own change waits for it.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::swap::{Echo, probe};
use crate::support::admin::Operator;
use crate::support::components;
use crate::support::server::{Engine, Launch, Server};
use crate::support::{PATIENCE, within};

const CONFIG: &str = "
    shutdown.timeout_ms = 100
    log.filter = 'info,switchyard_wasm=debug'
    plugins.debounce_ms = 1
    plugins.poll_ms = 20
";
const COMPILED: &str = "a component is compiled";

/// A component that no cache has, and that takes seconds to compile.
fn slow() -> Result<Vec<u8>> {
    Ok(components::rehashed(components::built("validate")?, rand::random()))
}

/// A server that has swapped the plugin `10-probe` once.
struct House {
    home: TempDir,
    server: Server,
    echo: Echo,
    /// How many compilations were begun.
    begun: usize,
}

impl House {
    async fn new(config: &str) -> Result<House> {
        let home = components::directory()?;
        let settings = json!({"on_publish": "stamp"});
        components::install(home.path(), "10-probe", &probe(1)?, &settings)?;
        let plugins = Some(home.path().to_owned());
        let config = format!("{CONFIG}\n{config}");
        let server = Launch { plugins, engine: Engine::Native, ..Launch::with_config(&config) };
        let server = server.start().await?;
        server.wait_for_log("changes of files are watched").await?;
        let mut house = House { echo: Echo::on(&server).await?, home, server, begun: 0 };
        house.replace("10-probe", &probe(2)?)?;
        house.has(2).await?;
        house.begun = house.server.log().matches(COMPILED).count();
        Ok(house)
    }

    fn replace(&self, name: &str, component: &[u8]) -> Result<()> {
        components::write_atomically(&components::path(self.home.path(), name), component)
    }

    async fn has(&mut self, stamp: u32) -> Result<()> {
        let expected = format!("x@{stamp:08x}");
        let became = within(PATIENCE, "the plugin", async {
            while self.echo.of("a", "x").await? != expected {}
            anyhow::Ok(())
        });
        became.await?
    }

    /// Offers this component for a slot; returns when it is being compiled.
    async fn offer(
        &mut self,
        slot: &str,
        wasm: Vec<u8>,
    ) -> Result<JoinHandle<Result<(u16, Value)>>> {
        let operator = Operator::of(&self.server).await?;
        let path = format!("/v1/plugins/{slot}");
        let offered = tokio::task::spawn_blocking(move || {
            operator.ask_with("POST", &path, Some(("application/wasm", wasm)))
        });
        self.begun += 1;
        self.server.wait_for_logs(COMPILED, self.begun).await?;
        Ok(offered)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_change_waits_while_another_plugin_is_compiled() -> Result<()> {
    let mut house = House::new("").await?;
    let operator = Operator::of(&house.server).await?;
    let offered = house.offer("20-slow", slow()?).await?;

    operator.say(&["plugin", "rollback", "probe"])?;
    house.has(1).await?;
    let twice = house.home.path().join("twice.settings");
    fs::write(&twice, "settings.on_publish = ['stamp', 'stamp']")?;
    operator.say(&["plugin", "reload", "probe", "--config", &twice.display().to_string()])?;
    ensure!(house.echo.of("a", "x").await? == "x@00000001@00000001");
    let other = components::path(house.home.path(), "10-probe").display().to_string();
    operator.say(&["plugin", "load", "30-other", &other])?;
    operator.say(&["plugin", "move", "other", "--to", "05-other"])?;
    operator.say(&["plugin", "rm", "other"])?;
    // Files as well.
    components::configure(
        house.home.path(),
        "10-probe",
        &json!({"settings": {"on_publish": "stamp"}}),
    )?;
    house.has(1).await?;
    operator.say(&["plugin", "ls"])?;
    ensure!(!offered.is_finished(), "it is compiled already: {:?}", offered.await?);

    // A later change of the same slot drops it, and it is answered at once.
    let done = operator.run(&["plugin", "rm", "20-slow"])?;
    ensure!(done.code != Some(0) && done.stderr.contains("is dropped"), "{done:?}");
    let (status, answer) = offered.await??;
    ensure!(status == 409 && answer["code"] == "superseded", "{status} {answer}");
    house.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_later_of_two_changes_of_a_slot_wins() -> Result<()> {
    let mut house = House::new("").await?;
    let operator = Operator::of(&house.server).await?;
    let offered = house.offer("probe/swap", slow()?).await?;
    operator.say(&["plugin", "rollback", "probe"])?;
    let (status, answer) = offered.await??;
    ensure!(status == 409 && answer["code"] == "superseded", "{status} {answer}");
    house.has(1).await?;
    house.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_compiled_delays_no_other_file() -> Result<()> {
    let mut house = House::new("limits.name_bytes_max = 5").await?;
    house.replace("20-slow", &slow()?)?;
    house.begun += 1;
    house.server.wait_for_logs(COMPILED, house.begun).await?;
    house.replace("10-probe", &probe(3)?)?;
    house.has(3).await?;
    let path = house.server.home().join("switchyard.toml");
    let config = fs::read_to_string(&path)?.replace("name_bytes_max = 5", "name_bytes_max = 6");
    components::write_atomically(&path, config.as_bytes())?;
    house.server.wait_for_log("settings were changed").await?;
    ensure!(!house.server.log().contains("plugin=validate@"), "{}", house.server.log());
    ensure!(!house.server.log().contains("plugin=slow@"), "{}", house.server.log());
    // A file that is removed during its compilation is not loaded.
    fs::remove_file(components::path(house.home.path(), "20-slow"))?;
    house.server.stop().await
}

/// How many components were compiled, or found in the cache.
async fn compilations(server: &Server) -> Result<u64> {
    let operator = Operator::of(server).await?;
    let head = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n", operator.authority());
    let (_, _, metrics) = operator.exchange(&head, b"")?;
    let counts = metrics.lines().filter_map(|line| {
        line.strip_prefix("switchyard_compilations_total")?.rsplit_once(' ')?.1.parse::<u64>().ok()
    });
    Ok(counts.sum())
}

/// Replaces each occurrence of these bytes.
fn replaced(mut bytes: Vec<u8>, old: &[u8], new: &[u8]) -> Result<Vec<u8>> {
    ensure!(old.len() == new.len());
    let mut from = 0;
    let find = |bytes: &[u8], from: usize| {
        bytes.get(from..)?.windows(old.len()).position(|window| window == old)
    };
    while let Some(position) = find(&bytes, from) {
        from += position;
        bytes.get_mut(from..from + old.len()).context("it is there")?.copy_from_slice(new);
    }
    ensure!(from > 0, "it does not occur");
    Ok(bytes)
}

/// 18 MB take the compiler half a minute.
#[tokio::test(flavor = "multi_thread")]
async fn a_component_without_a_required_export_is_refused_before_it_is_compiled() -> Result<()> {
    let mut house = House::new("").await?;
    let before = compilations(&house.server).await?;
    let large = components::built("languages/emoji-python")?;
    let large = replaced(large, b"switchyard:pubsub/lifecycle@", b"switchyard:pubsub/lifecycl3@")?;
    let began = Instant::now();
    house.replace("20-large", &large)?;
    let line = house.server.wait_for_log("does not export switchyard:pubsub/lifecycle").await?;
    println!("{} bytes were refused after {:?}", large.len(), began.elapsed());
    ensure!(line.contains("20-large.wasm") && line.contains("step=\"link\""), "{line}");
    house.replace("20-large", &replaced(probe(3)?, b"wasi:cli/", b"wasi:xyz/")?)?;
    house.server.wait_for_log("imports wasi:xyz/").await?;
    assert_eq!(compilations(&house.server).await?, before);
    ensure!(house.server.log().matches(COMPILED).count() == house.begun);
    house.has(2).await?;
    house.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn compiling_is_bounded_in_time_and_number() -> Result<()> {
    // The second server finds in the cache what it starts with.
    House::new("").await?.server.stop().await?;
    let limits = "plugins.compile_timeout_ms = 2000\nplugins.compilations_max = 1";
    let mut house = House::new(limits).await?;
    let offered = house.offer("20-slow", slow()?).await?;
    let (status, answer) = offered.await??;
    let text = answer.to_string();
    ensure!(status == 422 && text.contains("plugins.compile_timeout_ms"), "{status} {text}");
    // It goes on, and still counts.
    let operator = Operator::of(&house.server).await?;
    let wasm = Some(("application/wasm", slow()?));
    let (status, answer) = operator.ask_with("POST", "/v1/plugins/30-slow", wasm)?;
    let text = answer.to_string();
    ensure!(status == 422 && text.contains("plugins.compilations_max"), "{status} {text}");
    // What is compiled already is not concerned.
    operator.say(&["plugin", "rollback", "probe"])?;
    house.has(1).await?;
    house.server.stop().await
}

/// The file in the directory is another version, so it is not blamed.
#[tokio::test]
async fn the_error_of_an_upload_names_what_was_uploaded() -> Result<()> {
    let mut house = House::new("").await?;
    let operator = Operator::of(&house.server).await?;
    let path = "/v1/plugins/probe/swap";
    let wasm = Some(("application/wasm", b"nonsense".to_vec()));
    let (status, answer) = operator.ask_with("POST", path, wasm)?;
    ensure!(status == 422 && answer["file"] == "(uploaded)", "{status} {answer}");
    let offered = json!({"path": house.home.path().join("10-probe.toml"), "config": "a = 1\n"});
    let (status, answer) = operator.ask("POST", path, Some(&offered))?;
    ensure!(status == 422 && answer["file"] == "(uploaded settings)", "{status} {answer}");
    ensure!(
        answer["message"].as_str().is_some_and(|text| text.starts_with("line 1 (a)")),
        "{answer}"
    );
    let line = house.server.wait_for_log("(uploaded settings)").await?;
    ensure!(!line.contains("10-probe.toml") && !line.contains("\\n"), "{line}");
    house.has(2).await?;
    house.server.stop().await
}

#[tokio::test]
async fn a_start_removes_what_a_killed_server_left_and_a_check_changes_nothing() -> Result<()> {
    let home = components::directory()?;
    components::install(home.path(), "10-probe", &probe(1)?, &json!({}))?;
    let left = home.path().join(".switchyard-a1B2c3");
    let notes = home.path().join(".switchyard-notes.wasm");
    for file in [&left, &notes] {
        fs::write(file, probe(2)?)?;
    }
    let directory = home.path().display().to_string();
    let mut check =
        Server::run_with(&["serve", "--check", "--log", "info", "--plugins", &directory])?;
    let (status, _) = check.exit().await?;
    ensure!(status.success() && left.exists(), "{}", check.log());
    ensure!(check.log().contains("a plugin was checked"), "{}", check.log());
    ensure!(!check.log().contains("a plugin was added"), "{}", check.log());
    let plugins = Some(Path::new(&directory).to_owned());
    let server = Launch { plugins, ..Launch::with_config(CONFIG) }.start().await?;
    let line = server.wait_for_log("a file that was not written completely was removed").await?;
    ensure!(line.contains(".switchyard-a1B2c3"), "{line}");
    ensure!(!left.exists() && notes.exists());
    assert_eq!(server.log().matches("a plugin was added").count(), 1);
    server.stop().await
}
