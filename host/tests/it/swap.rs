//! Plugins are replaced by replacing their files, while the server runs: which files are used, in
//! which order, and that a refused file leaves everything unchanged.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::admin::Operator;
use crate::support::server::{Launch, Server};
use crate::support::websocket::{Client, RawClient, UPGRADE, Upgrade};
use crate::support::{PATIENCE, components};

/// Shutdown does not wait long for clients that the test no longer reads from.
pub const CONFIG: &str = "shutdown.timeout_ms = 100";

const ADDED: &str = "a plugin was added";
const SWAPPED: &str = "a plugin was swapped";
const REMOVED: &str = "a plugin was removed";
const REFUSED: &str = "a plugin was refused";

/// The probe with this stamp.
pub fn probe(stamp: u32) -> Result<Vec<u8>> {
    components::stamped(components::built("test/probe")?, stamp)
}

/// A server that watches a plugin directory with these plugins in it.
struct House {
    server: Server,
    directory: TempDir,
}

impl House {
    async fn with(plugins: &[(&str, Value)]) -> Result<House> {
        let directory = components::directory()?;
        for (name, settings) in plugins {
            components::install(directory.path(), name, &probe(0)?, settings)?;
        }
        let plugins = Some(directory.path().to_owned());
        let server = Launch { plugins, ..Launch::with_config(CONFIG) }.start().await?;
        server.wait_for_log("changes of files are watched").await?;
        Ok(House { server, directory })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Replaces a plugin's component.
    fn replace(&self, name: &str, component: &[u8]) -> Result<()> {
        components::write_atomically(&components::path(self.path(), name), component)
    }

    /// Removes a plugin from the chain.
    async fn remove(&self, name: &str) -> Result<()> {
        Operator::of(&self.server).await?.say(&["plugin", "rm", name]).map(drop)
    }

    /// Replaces a plugin's settings.
    fn configure(&self, name: &str, settings: &Value) -> Result<()> {
        components::configure(self.path(), name, &json!({"settings": settings}))
    }
}

/// A connection that listens to all it publishes.
pub struct Echo(pub Client);

impl Echo {
    pub async fn on(server: &Server) -> Result<Echo> {
        let mut client = server.client().await?;
        ensure!(client.call(json!(["PSUBSCRIBE", "*"])).await? == json!(["OK", 1]));
        Ok(Echo(client))
    }

    /// The payload as received, of one that is published.
    pub async fn of(&mut self, channel: &str, payload: &str) -> Result<String> {
        let answer = self.0.call(json!(["PUBLISH", channel, payload])).await?;
        ensure!(answer == json!(["OK", 1]), "a publication was answered {answer}");
        let came = self.0.next_json().await?;
        let became = came.get(3).and_then(Value::as_str).with_context(|| came.to_string())?;
        Ok(became.to_owned())
    }

    pub async fn is(&mut self, expected: &str) -> Result<()> {
        let became = self.of("a", "x").await?;
        ensure!(became == expected, "it became {became}, not {expected}");
        Ok(())
    }
}

// ---- what is loaded ---------------------------------------------------------------

#[tokio::test]
async fn plugins_come_change_and_go_while_connections_stay() -> Result<()> {
    let house = House::with(&[]).await?;
    let mut echo = Echo::on(&house.server).await?;
    echo.is("x").await?;

    components::install(house.path(), "probe", &probe(1)?, &json!({"on_publish": "stamp"}))?;
    let added = house.server.wait_for_log(ADDED).await?;
    ensure!(added.contains("plugin=probe@") && added.contains("pause_us="), "{added}");
    echo.is("x@00000001").await?;

    house.replace("probe", &probe(2)?)?;
    let swapped = house.server.wait_for_log(SWAPPED).await?;
    ensure!(swapped.contains("plugin=probe@") && swapped.contains("pause_us="), "{swapped}");
    ensure!(swapped.contains("from=probe@"), "{swapped}");
    echo.is("x@00000002").await?;

    // New settings alone are a new version, too.
    house.configure("probe", &json!({"on_publish": ["stamp", "stamp"]}))?;
    house.server.wait_for_logs(SWAPPED, 2).await?;
    echo.is("x@00000002@00000002").await?;

    // Without its settings it does nothing.
    std::fs::write(house.path().join("probe.toml"), "# none\n")?;
    house.server.wait_for_logs(SWAPPED, 3).await?;
    echo.is("x").await?;

    house.remove("probe").await?;
    let removed = house.server.wait_for_log(REMOVED).await?;
    ensure!(removed.contains("plugin=probe@"), "{removed}");
    echo.is("x").await?;
    house.server.stop().await
}

#[tokio::test]
async fn the_order_is_that_of_the_names() -> Result<()> {
    let stamp = json!({"on_publish": "stamp", "on_deliver": "stamp"});
    let number = json!({"on_publish": "number"});
    let house = House::with(&[("20-second", stamp), ("10-first", number)]).await?;
    let mut echo = Echo::on(&house.server).await?;
    echo.is("x#1@00000000@00000000").await?;

    // A plugin takes its position among the existing ones, ...
    let count = json!({"on_publish": {"count": "n"}});
    components::install(house.path(), "15-between", &probe(0)?, &count)?;
    house.server.wait_for_logs(ADDED, 3).await?;
    echo.is("x#2=1@00000000@00000000").await?;

    // ... keeps it when it is replaced, ...
    house.replace("10-first", &probe(7)?)?;
    house.server.wait_for_log(SWAPPED).await?;
    echo.is("x#3=2@00000000@00000000").await?;

    // ... and has another position under another name.
    for extension in ["toml", "wasm"] {
        let file = |name: &str| house.path().join(name).with_extension(extension);
        std::fs::rename(file("20-second"), file("05-zeroth"))?;
    }
    house.server.wait_for_log("a plugin was moved").await?;
    echo.is("x@00000000#4=3@00000000").await?;
    house.server.stop().await
}

#[tokio::test]
async fn a_successor_starts_with_its_predecessors_state() -> Result<()> {
    let numbers = json!({"on_publish": "number"});
    let house = House::with(&[("probe", numbers.clone())]).await?;
    let mut echo = Echo::on(&house.server).await?;
    for number in 1..=5_u32 {
        echo.is(&format!("x#{number}")).await?;
        house.replace("probe", &probe(number)?)?;
        house.server.wait_for_logs(SWAPPED, number as usize).await?;
    }
    // A plugin that was removed starts with empty state.
    house.remove("probe").await?;
    house.server.wait_for_log(REMOVED).await?;
    components::install(house.path(), "probe", &probe(9)?, &numbers)?;
    house.server.wait_for_logs(ADDED, 2).await?;
    echo.is("x#1").await?;
    house.server.stop().await
}

/// A connection always uses the same instance, and each has a state of its own.
#[tokio::test]
async fn each_instance_hands_its_state_to_its_like() -> Result<()> {
    let numbers = |instances| json!({"instances": instances, "settings": {"on_publish": "number"}});
    let house = House::with(&[("probe", json!({"on_publish": "number"}))]).await?;
    components::configure(house.path(), "probe", &numbers(2))?;
    house.server.wait_for_log("the number of instances changed").await?;
    house.server.wait_for_log(SWAPPED).await?;
    // Connection ids are consecutive, so the two use different instances.
    let (mut one, mut other) = (house.server.client().await?, house.server.client().await?);
    for (swaps, expected) in [(2, ["x#1", "x#1"]), (3, ["x#2", "x#2"]), (4, ["x#1", "x#2"])] {
        for (client, expected) in [&mut one, &mut other].into_iter().zip(expected) {
            client.call(json!(["SUBSCRIBE", expected])).await?;
            client.call(json!(["PUBLISH", expected, "x"])).await?;
            let came = client.next_json().await?;
            ensure!(came == json!(["message", expected, expected]), "swap {swaps}: {came}");
            client.call(json!(["UNSUBSCRIBE", expected])).await?;
        }
        match swaps {
            2 => house.replace("probe", &probe(1)?)?,
            3 => components::configure(house.path(), "probe", &numbers(1))?,
            _ => break,
        }
        house.server.wait_for_logs(SWAPPED, swaps).await?;
    }
    house.server.stop().await
}

#[tokio::test]
async fn a_file_that_is_written_slowly_is_loaded_when_it_is_complete() -> Result<()> {
    let house = House::with(&[("probe", json!({"on_publish": "stamp"}))]).await?;
    let mut echo = Echo::on(&house.server).await?;
    let file = components::path(house.path(), "probe");
    let component = probe(1)?;
    for refusals in 1..=3 {
        // In place and not by a rename, and so slowly that the watcher sees it half written.
        std::fs::write(&file, &component[..component.len() * refusals / 4])?;
        house.server.wait_for_logs(REFUSED, refusals).await?;
        echo.is("x@00000000").await?;
    }
    std::fs::write(&file, &component)?;
    house.server.wait_for_log(SWAPPED).await?;
    echo.is("x@00000001").await?;
    house.server.stop().await
}

#[tokio::test]
async fn what_is_no_plugin_is_not_looked_at() -> Result<()> {
    let house = House::with(&[("probe", json!({"on_publish": "stamp"}))]).await?;
    for name in [".hidden.wasm", "probe.wasm.part", "notes.txt", "other.toml", "probe.wasm~"] {
        std::fs::write(house.path().join(name), "nonsense")?;
    }
    // A later file has been processed, so these have been, too.
    house.replace("probe", &probe(1)?)?;
    house.server.wait_for_log(SWAPPED).await?;
    Echo::on(&house.server).await?.is("x@00000001").await?;
    let log = house.server.log();
    ensure!(log.matches(ADDED).count() == 1 && !log.contains(REFUSED), "{log}");
    house.server.stop().await
}

/// Attributes and counters belong to the server, and outlive the plugins that set them.
#[tokio::test]
async fn notes_and_counts_outlive_a_swap() -> Result<()> {
    let house = House::with(&[(
        "probe",
        json!({
            "on_connect": [{"note": {"key": "user", "value": "ann"}}, {"count": "connects"}],
            "on_publish": [{"show": "user"}, {"count": "publications"}],
        }),
    )])
    .await?;
    let mut echo = Echo::on(&house.server).await?;
    echo.is("x:ann=1").await?;
    house.configure(
        "probe",
        &json!({
            "on_connect": [{"note": {"key": "user", "value": "joe"}}, {"count": "connects"}],
            "on_publish": [{"show": "user"}, {"count": "publications"}, {"count": "connects"}],
        }),
    )?;
    house.server.wait_for_log(SWAPPED).await?;
    echo.is("x:ann=2=2").await?;
    // The second connection, and the first reading of the count before it.
    let mut other = house.server.client().await?;
    other.call(json!(["SUBSCRIBE", "a"])).await?;
    ensure!(other.call(json!(["PUBLISH", "a", "x"])).await? == json!(["OK", 2]));
    ensure!(other.next_json().await? == json!(["message", "a", "x:joe=3=4"]));
    house.server.stop().await
}

// ---- which plugins are notified of a connection's end -----------------------------

/// How many connections came and went, as two counters of a plugin. Reading one counts, too.
struct Books {
    client: Client,
    readings: i64,
}

impl Books {
    fn settings() -> Value {
        json!({
            "on_connect": [
                {"count": "came"},
                {"refuse": {"code": "NOPERM", "message": "no"}, "trigger": "refused"},
            ],
            "on_disconnect": {"count": "went"},
            "on_publish": [{"count": "came"}, {"count": "went"}],
        })
    }

    async fn of(house: &House) -> Result<Books> {
        let mut client = house.server.client().await?;
        client.call(json!(["SUBSCRIBE", "books"])).await?;
        Ok(Books { client, readings: 0 })
    }

    async fn read(&mut self) -> Result<(i64, i64)> {
        self.readings += 1;
        self.client.call(json!(["PUBLISH", "books", ""])).await?;
        let came = self.client.next_json().await?;
        let text = came.get(2).and_then(Value::as_str).unwrap_or_default();
        let mut counts = text.split('=').skip(1).map(str::parse);
        match (counts.next(), counts.next()) {
            (Some(Ok(came)), Some(Ok(went))) => {
                let (came, went): (i64, i64) = (came, went);
                Ok((came - self.readings, went - self.readings))
            }
            _ => bail!("the books say {came}"),
        }
    }

    /// Reads until the counters have these values; a larger value is a failure at once.
    async fn say(&mut self, came: i64, went: i64) -> Result<()> {
        let began = Instant::now();
        loop {
            let now = self.read().await?;
            if now == (came, went) {
                return Ok(());
            }
            ensure!(now.0 == came && now.1 < went, "{now:?} came and went, not {:?}", (came, went));
            ensure!(began.elapsed() < PATIENCE, "still {now:?} came and went");
        }
    }
}

async fn leave(mut client: Client) -> Result<()> {
    client.call(json!(["QUIT"])).await?;
    client.next_close().await?;
    Ok(())
}

#[tokio::test]
async fn a_new_version_is_notified_of_clients_admitted_by_the_old_one() -> Result<()> {
    let house = House::with(&[("probe", Books::settings())]).await?;
    let mut books = Books::of(&house).await?;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(house.server.client().await?);
    }
    books.say(5, 0).await?;
    for (swaps, client) in clients.into_iter().enumerate() {
        house.replace("probe", &probe(swaps as u32 + 1)?)?;
        house.server.wait_for_logs(SWAPPED, swaps + 1).await?;
        leave(client).await?;
        books.say(5, swaps as i64 + 1).await?;
    }
    house.server.stop().await
}

#[tokio::test]
async fn a_plugin_is_notified_only_of_clients_it_was_called_for() -> Result<()> {
    let house = House::with(&[]).await?;
    let early = house.server.client().await?;
    components::install(house.path(), "10-books", &probe(1)?, &Books::settings())?;
    house.server.wait_for_log(ADDED).await?;
    let mut books = Books::of(&house).await?;
    let late = house.server.client().await?;
    books.say(2, 0).await?;
    leave(early).await?;
    leave(late).await?;
    books.say(2, 1).await?;

    // The plugin is not notified of a connection that it has refused itself, but of one that a
    // later plugin has refused.
    let refused = Upgrade { path: "/ws?refused".to_owned(), ..Upgrade::default() };
    let later = json!({"on_connect":
        {"refuse": {"code": "NOPERM", "message": "no"}, "trigger": "unwanted"}});
    components::install(house.path(), "20-later", &probe(2)?, &later)?;
    house.server.wait_for_logs(ADDED, 2).await?;
    let unwanted = Upgrade { path: "/ws?unwanted".to_owned(), ..Upgrade::default() };
    for (upgrade, came, went) in [(refused, 3, 1), (unwanted, 4, 2)] {
        let client = Client::connect(house.server.address().await?, &upgrade).await?;
        let mut client = client.ok().context("the upgrade was answered otherwise")?;
        ensure!(client.next_close().await?.0 == Some(4003));
        books.say(came, went).await?;
    }
    house.server.stop().await
}

/// Also when the client disconnected before the handshake response was sent.
#[tokio::test]
async fn a_client_that_leaves_in_the_handshake_is_reported() -> Result<()> {
    const CLIENTS: i64 = 50;
    let house = House::with(&[("probe", Books::settings())]).await?;
    let mut books = Books::of(&house).await?;
    for _ in 0..CLIENTS {
        let mut client = RawClient::dial(house.server.address().await?).await?;
        client.send(UPGRADE).await?;
        client.reset()?;
    }
    // Some may be gone before a plugin was called for them.
    let began = Instant::now();
    loop {
        let (came, went) = books.read().await?;
        if came == went + 1 && came > 1 {
            break;
        }
        ensure!(began.elapsed() < PATIENCE, "{came} came and {went} went, and one is still here");
    }
    house.server.stop().await
}

// ---- what is refused -------------------------------------------------------------

/// A replacement for one file of a working plugin, and how it is refused.
struct Refused {
    name: &'static str,
    file: &'static str,
    bytes: Vec<u8>,
    step: &'static str,
    says: &'static [&'static str],
}

fn refused() -> Result<Vec<Refused>> {
    let good = probe(1)?;
    let built = components::built;
    let component =
        |name, bytes, step, says| Refused { name, file: "probe.wasm", bytes, step, says };
    let toml = |name, config: Value, step, says| -> Result<Refused> {
        let bytes = toml::to_string(&config)?.into_bytes();
        Ok(Refused { name, file: "probe.toml", bytes, step, says })
    };
    let init =
        |name, settings: Value, step, says| toml(name, json!({"settings": settings}), step, says);
    let core = b"\0asm\x01\0\0\0".to_vec();
    let to_come = b"\0asm\x0e\0\x01\0".to_vec();
    let mut all = vec![
        component("empty", Vec::new(), "compile", &["not a WebAssembly file"][..]),
        component("text", b"nonsense".to_vec(), "compile", &["not a WebAssembly file"]),
        component("core module", core, "compile", &["core module", "wasm32-wasip2"]),
        component("a format to come", to_come, "compile", &[]),
        component("damaged", damaged(&good), "compile", &[]),
        component("the engine", built("guest-core")?, "link", &["lifecycle"]),
        component(
            "contract",
            built("test/foreign")?,
            "link",
            &["lifecycle@0.3.0", "switchyard:pubsub@0.2.0 and @0.1.0"],
        ),
        component(
            "two versions",
            built("test/mixed")?,
            "link",
            &["@0.1.0", "@0.2.0", "one version of the contract throughout"],
        ),
        component(
            "an interface that is not called",
            built("test/unserved")?,
            "link",
            &["exports switchyard:pubsub/timer@0.2.0", "does not call yet"],
        ),
        component("import", built("test/snoop")?, "init", &["no socket: ", "no file: "]),
        init(
            "init refuses",
            json!({"init": "error"}),
            "init",
            &["the probe was configured to refuse"],
        )?,
        init("init traps", json!({"init": "trap"}), "init", &["panicked"])?,
        init("init loops", json!({"init": "loop"}), "init", &["budget of 1000 ms"])?,
        init("nonsense", json!({"on_publish": "panik"}), "init", &["panik"])?,
        init("old state", json!({"restore": "unsupported"}), "restore", &["does not read"])?,
        init("corrupt state", json!({"restore": "corrupt"}), "restore", &["corrupt"])?,
        init("restore traps", json!({"restore": "trap"}), "restore", &["panicked"])?,
        toml("unknown key", json!({"polcy": "open"}), "config", &["polcy", "policy"])?,
        toml("unknown policy", json!({"policy": "ajar"}), "config", &["ajar", "closed"])?,
        toml("out of range", json!({"instances": 0}), "config", &["instances", "from 1 to 64"])?,
        toml("wrong type", json!({"call_budget_ms": "long"}), "config", &["call_budget_ms"])?,
    ];
    for percent in [1, 25, 50, 75, 99] {
        let cut = good.iter().take(good.len() * percent / 100).copied().collect();
        all.push(component("truncated", cut, "compile", &[]));
    }
    Ok(all)
}

/// The component with some bytes overwritten.
fn damaged(component: &[u8]) -> Vec<u8> {
    let mut damaged = component.to_vec();
    let middle = damaged.len() / 2;
    damaged.iter_mut().skip(middle).take(64).for_each(|byte| *byte ^= 0xff);
    damaged
}

impl Refused {
    /// Checks that the message names the plugin, the file and the step, and gives the reason.
    fn check(&self, said: &str) -> Result<()> {
        let Refused { name, file, step, says, .. } = self;
        // Only the component knows what is wrong with its settings.
        let file = if matches!(*step, "init" | "restore") { "probe.wasm" } else { file };
        for word in ["probe", file, step].iter().chain(*says) {
            ensure!(said.contains(word), "{name}: {word:?} is not said: {said}");
        }
        Ok(())
    }
}

#[tokio::test]
async fn what_is_refused_changes_nothing_and_says_why() -> Result<()> {
    let settings = json!({"on_publish": ["stamp", "number"]});
    let house = House::with(&[("probe", settings)]).await?;
    let mut echo = Echo::on(&house.server).await?;
    let mut number = 0;
    for refused in refused()? {
        // One file at a time, so that the server cannot see one without the other.
        let file = house.path().join(refused.file);
        let good = std::fs::read(&file)?;
        components::write_atomically(&file, &refused.bytes)?;
        number += 1;
        let lines = house.server.wait_for_logs(REFUSED, number).await;
        let lines = lines.context(refused.name)?;
        refused.check(lines.last().context("there are some")?)?;
        echo.is(&format!("x@00000000#{number}")).await.context(refused.name)?;
        components::write_atomically(&file, &good)?;
    }
    ensure!(!house.server.log().contains(SWAPPED), "one of them was accepted");
    // A refusal is logged once, and again when a reload is requested.
    house.replace("probe", b"nonsense")?;
    house.server.wait_for_logs(REFUSED, number + 1).await?;
    house.server.signal("HUP")?;
    number += 2;
    house.server.wait_for_logs(REFUSED, number).await?;
    // A correct file ends it.
    house.replace("probe", &probe(3)?)?;
    house.server.wait_for_log(SWAPPED).await?;
    echo.is(&format!("x@00000003#{}", number - 1)).await?;
    ensure!(house.server.log().matches(REFUSED).count() == number, "one was refused twice");
    house.server.stop().await
}

#[tokio::test]
async fn at_startup_a_refused_plugin_ends_the_server_with_1() -> Result<()> {
    // There is no state yet that could be refused.
    for refused in refused()?.iter().filter(|refused| refused.step != "restore") {
        let directory = components::directory()?;
        components::install(directory.path(), "10-probe", &probe(0)?, &json!({}))?;
        let file = directory.path().join(format!("10-{}", refused.file));
        components::write_atomically(&file, &refused.bytes)?;
        let path = directory.path().to_str().context("a temporary path is text")?;
        let mut server = Server::run_alone(&["--plugins", path])?;
        let (status, stdout) = server.exit().await.context(refused.name)?;
        let log = server.log();
        assert_eq!(status.code(), Some(1), "{}: {log}", refused.name);
        ensure!(stdout.is_empty(), "{}: it printed {stdout:?}", refused.name);
        let said = log.rsplit_once("switchyard: ").map(|(_, said)| said);
        refused.check(said.with_context(|| format!("{}: {log}", refused.name))?)?;
    }
    Ok(())
}

/// A plugin whose state cannot be saved is not replaced. Its instance is rebuilt, as after any
/// trap.
#[tokio::test]
async fn a_plugin_that_cannot_hand_over_its_state_stays() -> Result<()> {
    for (save, words) in [("trap", "panicked"), ("loop", "handover_budget_ms is 50")] {
        let house =
            House::with(&[("probe", json!({"on_publish": "number", "save": save}))]).await?;
        let mut echo = Echo::on(&house.server).await?;
        echo.is("x#1").await?;
        house.replace("probe", &probe(1)?)?;
        let line = house.server.wait_for_log(REFUSED).await?;
        for word in ["probe", "probe.wasm", "save", words, "--fresh"] {
            ensure!(line.contains(word), "{word:?} is not said: {line}");
        }
        house.server.wait_for_log("a plugin was rebuilt").await?;
        echo.is("x#1").await?;

        house.remove("probe").await?;
        house.server.wait_for_log(REMOVED).await?;
        components::install(house.path(), "probe", &probe(2)?, &json!({"on_publish": "stamp"}))?;
        house.server.wait_for_logs(ADDED, 2).await?;
        echo.is("x@00000002").await?;
        house.server.stop().await?;
    }
    Ok(())
}
