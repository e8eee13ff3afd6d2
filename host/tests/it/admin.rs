//! The admin API and the commands that use it, at a live server.

mod access;
mod documentation;

use std::io::Write;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::admin::{Done, Operator};
use crate::support::components;
use crate::support::server::{Launch, Server};
use crate::support::websocket::Client;
use crate::support::{PATIENCE, within};

/// Shutdown does not wait long for clients that the test no longer reads from.
const CONFIG: &str = "shutdown.timeout_ms = 100\n";

/// The probe with this stamp.
fn probe(stamp: u32) -> Result<Vec<u8>> {
    components::stamped(components::built("test/probe")?, stamp)
}

/// A server with an operator, with or without a plugin directory.
struct House {
    server: Server,
    operator: Operator,
    home: TempDir,
    has_directory: bool,
}

impl House {
    async fn with_directory() -> Result<House> {
        let home = components::directory()?;
        House::start(home, true).await
    }

    async fn without_directory() -> Result<House> {
        House::start(components::directory()?, false).await
    }

    async fn start(home: TempDir, has_directory: bool) -> Result<House> {
        let plugins = has_directory.then(|| home.path().to_owned());
        let server = Launch { plugins, ..Launch::with_config(CONFIG) }.start().await?;
        if has_directory {
            server.wait_for_log("changes of files are watched").await?;
        }
        let operator = Operator::of(&server).await?;
        Ok(House { server, operator, home, has_directory })
    }

    /// A file that is not a plugin of the server.
    fn file(&self, name: &str, bytes: &[u8]) -> Result<String> {
        let kept = self.home.path().join(".kept");
        std::fs::create_dir_all(&kept)?;
        let path = kept.join(name);
        std::fs::write(&path, bytes)?;
        Ok(path.to_str().context("a temporary path is text")?.to_owned())
    }

    fn slots(&self) -> Result<Vec<String>> {
        let plugins = self.operator.get("/v1/plugins")?;
        let plugins = plugins.get("plugins").and_then(Value::as_array).context("a list")?;
        Ok(plugins.iter().map(|plugin| plugin["slot"].as_str().unwrap_or("?").to_owned()).collect())
    }

    /// Restarts the server, which must have the same chain.
    async fn restarted(self) -> Result<House> {
        let House { server, home, has_directory, .. } = self;
        server.stop().await?;
        House::start(home, has_directory).await
    }
}

/// The payload as received, of one that is published on a channel.
async fn echo(client: &mut Client, payload: &str) -> Result<String> {
    let answer = client.call(json!(["PUBLISH", "a", payload])).await?;
    ensure!(answer == json!(["OK", 1]), "a publication was answered {answer}");
    let came = client.next_json().await?;
    let became = came.get(2).and_then(Value::as_str).with_context(|| came.to_string())?;
    Ok(became.to_owned())
}

async fn listener(server: &Server) -> Result<Client> {
    let mut client = server.client().await?;
    ensure!(client.call(json!(["SUBSCRIBE", "a"])).await? == json!(["OK", 1]));
    Ok(client)
}

const STAMPING: &str = "[settings]\non_publish = \"stamp\"\n";

// ---- the verbs ---------------------------------------------------------------------

#[tokio::test]
async fn every_verb_for_plugins_does_what_it_says() -> Result<()> {
    for has_directory in [true, false] {
        let house = match has_directory {
            true => House::with_directory().await?,
            false => House::without_directory().await?,
        };
        let operator = &house.operator;
        let mut client = listener(&house.server).await?;
        let config = house.file("probe.toml", STAMPING.as_bytes())?;
        let first = house.file("first.wasm", &probe(1)?)?;
        let second = house.file("second.wasm", &probe(2)?)?;

        ensure!(operator.say(&["plugin", "ls"])?.contains("no plugins"));
        let said = operator.say(&["plugin", "load", "20-probe", &first, "--config", &config])?;
        ensure!(said.contains("was added in 20-probe"), "{said}");
        ensure!(echo(&mut client, "x").await? == "x@00000001");

        // By its name, and as a path that the server reads.
        let swapped = operator.json(&["plugin", "swap", "probe", "--path", &second])?;
        ensure!(swapped["deed"] == "swapped" && swapped["by"] == "local", "{swapped}");
        ensure!(echo(&mut client, "x").await? == "x@00000002", "its settings stay");
        let from = swapped["from"].as_str().context("it was swapped from something")?;

        let shown = operator.json(&["plugin", "show", "20-probe"])?;
        ensure!(shown["previous"] == from && shown["policy"] == "closed", "{shown}");
        ensure!(operator.say(&["plugin", "show", "probe"])?.contains(from));

        let back = operator.json(&["plugin", "rollback", "probe"])?;
        ensure!(back["deed"] == "rolled-back" && back["to"] == from, "{back}");
        ensure!(echo(&mut client, "x").await? == "x@00000001");
        operator.say(&["plugin", "rollback", "20-probe"])?;
        ensure!(echo(&mut client, "x").await? == "x@00000002", "twice brings back what was");

        let twice =
            house.file("twice.toml", b"[settings]\non_publish = [\"stamp\", \"stamp\"]\n")?;
        operator.say(&["plugin", "reload", "probe", "--config", &twice])?;
        ensure!(echo(&mut client, "x").await? == "x@00000002@00000002");

        operator.say(&["plugin", "load", "30-other", &first])?;
        operator.say(&["plugin", "move", "other", "--before", "probe"])?;
        ensure!(house.slots()? == ["11-other", "20-probe"], "{:?}", house.slots()?);
        operator.say(&["plugin", "move", "11-other", "--after", "probe"])?;
        ensure!(house.slots()? == ["20-probe", "60-other"], "{:?}", house.slots()?);
        operator.say(&["plugin", "move", "other", "--to", "25-other"])?;
        ensure!(house.slots()? == ["20-probe", "25-other"], "{:?}", house.slots()?);
        let listed = operator.say(&["plugin", "ls"])?;
        ensure!(listed.contains("SLOT") && listed.contains("25-other"), "{listed}");
        ensure!(operator.json(&["plugin", "ls"])?["plugins"][1]["position"] == 2);

        operator.say(&["plugin", "rm", "other"])?;
        ensure!(house.slots()? == ["20-probe"]);

        let house = house.restarted().await?;
        let mut client = listener(&house.server).await?;
        let expected = if has_directory { "x@00000002@00000002" } else { "x" };
        ensure!(echo(&mut client, "x").await? == expected);
        house.server.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn settings_that_changed_on_disk_are_read_by_reload() -> Result<()> {
    let house = House::with_directory().await?;
    let first = house.file("first.wasm", &probe(1)?)?;
    house.operator.say(&["plugin", "load", "10-probe", &first])?;
    let mut client = listener(&house.server).await?;
    ensure!(echo(&mut client, "x").await? == "x");
    std::fs::write(house.home.path().join("10-probe.toml"), STAMPING)?;
    house.operator.say(&["plugin", "reload", "probe"])?;
    ensure!(echo(&mut client, "x").await? == "x@00000001");
    house.server.stop().await
}

#[tokio::test]
async fn every_verb_for_the_engine_does_what_it_says() -> Result<()> {
    let house = House::without_directory().await?;
    let operator = &house.operator;
    let mut client = listener(&house.server).await?;
    let shown = operator.json(&["engine", "show"])?;
    ensure!(shown["origin"] == "embedded" && shown["previous"].is_null(), "{shown}");
    let other = components::rehashed(components::built("guest-core")?, 7);
    let other = house.file("engine.wasm", &other)?;
    let swapped = operator.json(&["engine", "swap", &other])?;
    ensure!(swapped["from"] == shown["version"], "{swapped}");
    ensure!(echo(&mut client, "x").await? == "x");
    let back = operator.say(&["engine", "rollback"])?;
    ensure!(back.contains("rolled back") && back.contains("messages waited"), "{back}");
    ensure!(operator.json(&["engine", "show"])?["version"] == shown["version"]);
    operator.say(&["engine", "swap", "--path", &other])?;
    ensure!(operator.say(&["engine", "show"])?.contains(&other));
    ensure!(echo(&mut client, "x").await? == "x");

    let garbage = house.file("garbage.wasm", b"nonsense")?;
    let done = operator.run(&["engine", "swap", &garbage])?;
    ensure!(done.code == Some(1) && done.stderr.contains("compile: "), "{done:?}");
    ensure!(echo(&mut client, "x").await? == "x");
    house.server.stop().await
}

/// The engine's file determines which engine runs after a restart. The watcher does not swap it a
/// second time.
#[tokio::test]
async fn an_engine_that_is_a_file_is_written_there() -> Result<()> {
    let home = components::directory()?;
    let file = home.path().join("engine.wasm");
    let first = components::built("guest-core")?;
    let second = components::rehashed(first.clone(), 9);
    std::fs::write(&file, &first)?;
    let config = format!("{CONFIG}engine.file = {:?}\n", file.to_str().context("text")?);
    let server = Launch::with_config(&config).start().await?;
    server.wait_for_log("changes of files are watched").await?;
    let operator = Operator::of(&server).await?;
    let body = Some(("application/wasm", second.clone()));
    let (status, swapped) = operator.ask_with("POST", "/v1/engine/swap", body)?;
    ensure!(status == 200, "{swapped}");
    ensure!(std::fs::read(&file)? == second);
    let (status, _) = operator.ask("POST", "/v1/engine/rollback", None)?;
    ensure!(status == 200 && std::fs::read(&file)? == first);
    // The watcher reports changes in order, so the earlier changes have been processed, too.
    components::write_atomically(&file, &components::rehashed(first, 10))?;
    let swaps = server.wait_for_logs("the engine was swapped", 2).await?;
    ensure!(swaps.len() == 2 && swaps[1].contains("by=file"), "{swaps:?}");
    ensure!(server.log().matches("the engine was rolled back").count() == 1);
    server.stop().await
}

#[tokio::test]
async fn connections_are_listed_shown_and_closed() -> Result<()> {
    let house = House::without_directory().await?;
    let operator = &house.operator;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(listener(&house.server).await?);
    }
    clients[0].call(json!(["PSUBSCRIBE", "user.*"])).await?;
    let page = operator.json(&["connections", "--limit", "3"])?;
    ensure!(
        page["count"] == 5 && page["connections"].as_array().map(Vec::len) == Some(3),
        "{page}"
    );
    let after = page["next_after"].to_string();
    let rest = operator.json(&["connections", "--after", &after])?;
    ensure!(rest["connections"].as_array().map(Vec::len) == Some(2), "{rest}");
    ensure!(rest["next_after"].is_null());
    let first = &page["connections"][0];
    ensure!(first["door"] == "websocket/json" && first["channels"] == 1, "{first}");
    ensure!(operator.say(&["connections"])?.contains("5 in all"));

    let id = first["id"].to_string();
    let shown = operator.json(&["connections", &id])?;
    ensure!(shown["names"]["patterns"] == json!(["user.*"]), "{shown}");
    ensure!(operator.say(&["connections", &id])?.contains("user.*"));

    operator.say(&["connections", &id, "--close"])?;
    let goaway = clients[0].next_json().await?;
    ensure!(goaway[0] == "goaway", "{goaway}");
    let close = clients[0].next_close().await?;
    ensure!(close == (Some(4105), "closed by an operator".to_owned()), "{close:?}");
    house.server.wait_for_log("a connection was closed by an operator").await?;
    let (status, answer) = operator.ask("GET", "/v1/connections/999999", None)?;
    ensure!(status == 404 && answer["code"] == "no-such-connection", "{answer}");
    house.server.stop().await
}

// ---- what is refused -----------------------------------------------------------------

#[tokio::test]
async fn what_is_refused_leaves_all_as_it_was() -> Result<()> {
    for has_directory in [true, false] {
        let house = match has_directory {
            true => House::with_directory().await?,
            false => House::without_directory().await?,
        };
        let operator = &house.operator;
        let good = house.file("good.wasm", &probe(1)?)?;
        let config = house.file("good.toml", STAMPING.as_bytes())?;
        operator.say(&["plugin", "load", "10-probe", &good, "--config", &config])?;
        let mut client = listener(&house.server).await?;
        let base64 = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
        let other = base64(&probe(2)?);
        let swap = "/v1/plugins/10-probe/swap";
        let load = "/v1/plugins/20-other";
        for (path, body, status, step) in [
            (swap, json!({"wasm": base64(b"nonsense")}), 422, "compile"),
            (swap, json!({"wasm": base64(&components::built("guest-core")?)}), 422, "link"),
            (swap, json!({"wasm": other, "config": "policy = 3"}), 422, "config"),
            (swap, json!({"wasm": other, "config": "settings.init = 'error'"}), 422, "init"),
            (
                swap,
                json!({"wasm": other, "config": "settings.restore = 'corrupt'"}),
                422,
                "restore",
            ),
            (load, json!({"wasm": base64(b"nonsense")}), 422, "compile"),
        ] {
            let (answered, error) = operator.ask("POST", path, Some(&body))?;
            ensure!((answered, &error["step"]) == (status, &json!(step)), "{path}: {error}");
            ensure!(error["code"] == "refused" && error["file"].is_string(), "{error}");
            ensure!(echo(&mut client, "x").await? == "x@00000001");
            ensure!(house.slots()? == ["10-probe"]);
        }
        let shown = operator.get("/v1/plugins/probe")?;
        ensure!(shown["failures"].as_array().map(Vec::len) == Some(5), "{shown}");
        let refused = operator.get("/v1/plugins")?["refused"].clone();
        ensure!(refused.as_array().map(Vec::len) == Some(2), "{refused}");
        let listed = operator.say(&["plugin", "ls"])?;
        ensure!(listed.contains("refused") && listed.contains("restore"), "{listed}");
        let log = house.server.log();
        ensure!(log.matches("a plugin was refused").count() == 6, "each is said once: {log}");
        if has_directory {
            let on_disk = std::fs::read(house.home.path().join("10-probe.wasm"))?;
            ensure!(on_disk == probe(1)? && !house.home.path().join("20-other.wasm").exists());
            let beside = std::fs::read_to_string(house.home.path().join("10-probe.toml"))?;
            ensure!(beside == STAMPING);
            let left = std::fs::read_dir(house.home.path())?.count();
            ensure!(left == 3, "something temporary is left: {left} files");
        }

        for (method, path, body, status, code) in [
            ("GET", "/v1/plugins/other", None, 404, "no-such-plugin"),
            ("POST", "/v1/plugins/10-probe", Some(json!({"path": good})), 409, "slot-taken"),
            ("POST", "/v1/plugins/.hidden", Some(json!({"path": good})), 400, "bad-request"),
            ("POST", "/v1/plugins/a%2Fb", Some(json!({"path": good})), 400, "bad-request"),
            ("POST", "/v1/plugins/20-x", Some(json!({"path": "/nowhere"})), 422, "unreadable"),
            ("POST", "/v1/plugins/20-x", Some(json!({"path": "/"})), 422, "unreadable"),
            ("POST", "/v1/plugins/20-x", Some(json!({})), 400, "bad-request"),
            ("POST", "/v1/plugins/20-x", Some(json!({"pat": good})), 400, "bad-request"),
            ("POST", "/v1/plugins/20-x", Some(json!({"wasm": "!"})), 400, "bad-request"),
            ("POST", "/v1/plugins/probe/rollback", None, 409, "nothing-before"),
            ("POST", "/v1/plugins/probe/move", Some(json!({})), 400, "bad-request"),
            ("POST", "/v1/plugins/probe/move", Some(json!({"to": "10-x"})), 400, "bad-request"),
            ("POST", "/v1/plugins/probe/move", Some(json!({"before": "x"})), 404, "no-such-plugin"),
            ("POST", "/v1/engine/rollback", None, 409, "nothing-before"),
            ("DELETE", "/v1/plugins/x", None, 404, "no-such-plugin"),
            ("GET", "/v1/connections?limit=0", None, 400, "bad-request"),
            ("GET", "/v1/connections?limits=1", None, 400, "bad-request"),
            ("GET", "/v1/connections/x", None, 400, "bad-request"),
            ("GET", "/v1/trace", None, 400, "bad-request"),
            ("GET", "/v2/plugins", None, 404, "not-found"),
            ("PUT", "/v1/plugins", None, 405, "wrong-method"),
        ] {
            let (answered, error) = operator.ask(method, path, body.as_ref())?;
            let got = (answered, error["code"].as_str().unwrap_or("?"));
            ensure!(got == (status, code), "{method} {path}: {answered} {error}");
        }
        house.server.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_too_large_or_too_slow_is_refused() -> Result<()> {
    let config = format!(
        "{CONFIG}[admin]\nupload_bytes_max = 1024\nbody_bytes_max = 256\nrequest_timeout_ms = 1000\n"
    );
    let server = Launch::with_config(&config).start().await?;
    let operator = Operator::of(&server).await?;
    let (path, kind) = ("/v1/plugins/10-x", "application/wasm");
    let (status, error) = operator.ask_with("POST", path, Some((kind, vec![0; 1025])))?;
    ensure!((status, &error["code"]) == (413, &json!("too-large")), "{status} {error}");
    let body = json!({"config": " ".repeat(256)});
    let (status, error) = operator.ask("POST", "/v1/plugins/x/reload", Some(&body))?;
    ensure!((status, &error["code"]) == (413, &json!("too-large")), "{status} {error}");
    // Without a length, it is counted.
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n",
        operator.authority()
    );
    let chunk = format!("800\r\n{}\r\n0\r\n\r\n", "x".repeat(0x800));
    let (status, ..) = operator.exchange(&head, chunk.as_bytes())?;
    ensure!(status == 413, "{status}");
    let head = head.replace("Transfer-Encoding: chunked", "Content-Length: 9");
    let (status, _, body) = operator.exchange(&head, b"x")?;
    ensure!(status == 408 && body.contains("timeout"), "{status} {body}");
    server.stop().await
}

/// Many uploads may begin at once; their memory is bounded.
#[tokio::test]
async fn few_components_are_uploaded_at_the_same_time() -> Result<()> {
    let config = format!("{CONFIG}[admin]\nuploads_max = 1\nrequest_timeout_ms = 600000\n");
    let server = Launch::with_config(&config).start().await?;
    let operator = Operator::of(&server).await?;
    let head = format!(
        "POST /v1/plugins/10-x HTTP/1.1\r\nHost: {}\r\nContent-Type: application/wasm\r\n\
         Content-Length: 9\r\n\r\nx",
        operator.authority()
    );
    let refused = async || {
        tokio::task::yield_now().await;
        let kind = "application/wasm";
        let (status, error) =
            operator.ask_with("POST", "/v1/plugins/10-y", Some((kind, vec![0; 9])))?;
        anyhow::Ok(error["code"] == json!("too-many-uploads") && status == 503)
    };
    let half = within(PATIENCE, "the second to be refused", async {
        loop {
            // It is rejected if the other upload begins first.
            let mut half = TcpStream::connect(operator.authority()).await?;
            half.write_all(head.as_bytes()).await?;
            if refused().await? {
                return anyhow::Ok(half);
            }
        }
    })
    .await??;
    // Other requests are served, and the slot is free again when the first upload ends.
    operator.get("/v1/plugins")?;
    drop(half);
    within(PATIENCE, "the place to be free", async {
        while refused().await? {}
        anyhow::Ok(())
    })
    .await??;
    server.stop().await
}

/// There is one slot: the next client is served when the client that does not read has lost it.
#[tokio::test]
async fn a_client_that_does_not_read_responses_is_closed() -> Result<()> {
    let config = format!("{CONFIG}[admin]\nrequest_timeout_ms = 200\nconnections_max = 1\n");
    let server = Launch::with_config(&config).start().await?;
    let operator = Operator::of(&server).await?;
    let request =
        format!("GET /v1/openapi.json HTTP/1.1\r\nHost: {}\r\n\r\n", operator.authority());
    let mut lazy = std::net::TcpStream::connect(operator.authority())?;
    // Far more responses than the socket buffers hold.
    lazy.write_all(request.repeat(1_000).as_bytes())?;
    operator.get("/v1/server")?;
    drop(lazy);
    server.stop().await
}

// ---- files and the API together --------------------------------------------------------

/// A file that the API writes to the directory is not swapped a second time by the watcher; a file
/// that another program writes there is.
#[tokio::test]
async fn the_watcher_leaves_what_the_api_did() -> Result<()> {
    let house = House::with_directory().await?;
    let operator = &house.operator;
    let base64 = |stamp| anyhow::Ok(json!({"wasm": BASE64_STANDARD.encode(probe(stamp)?)}));
    let load = json!({"wasm": BASE64_STANDARD.encode(probe(0)?), "config": STAMPING});
    ensure!(operator.ask("POST", "/v1/plugins/10-probe", Some(&load))?.0 == 200);
    for stamp in 1..=5 {
        let body = base64(stamp)?;
        let (status, answer) = operator.ask("POST", "/v1/plugins/probe/swap", Some(&body))?;
        ensure!(status == 200, "{answer}");
    }
    ensure!(
        operator.ask("POST", "/v1/plugins/probe/move", Some(&json!({"to": "05-probe"})))?.0 == 200
    );
    ensure!(operator.ask("POST", "/v1/plugins/probe/rollback", None)?.0 == 200);
    let file = components::path(house.home.path(), "05-probe");
    ensure!(std::fs::read(&file)? == probe(4)?);
    // A later change has been processed, so the earlier ones have been, too.
    components::write_atomically(&file, &probe(9)?)?;
    let swaps = house.server.wait_for_logs("a plugin was swapped", 6).await?;
    ensure!(swaps.len() == 6 && swaps[5].contains("by=file"), "{swaps:?}");
    house.server.signal("HUP")?;
    components::write_atomically(&file, &probe(10)?)?;
    house.server.wait_for_logs("a plugin was swapped", 7).await?;
    let log = house.server.log();
    for (words, count) in
        [("a plugin was added", 1), ("a plugin was removed", 0), ("a plugin was moved", 1)]
    {
        ensure!(log.matches(words).count() == count, "{words}: {log}");
    }
    let shown = operator.get("/v1/plugins/probe")?;
    // Either may be processed first.
    ensure!(shown["by"] == "file" || shown["by"] == "signal", "{shown}");
    house.server.stop().await
}

/// How many changes are made while messages are published.
const CHANGES: u32 = 40;

/// No message is lost, duplicated or reordered while the API swaps, rolls back and moves plugins.
#[tokio::test(flavor = "multi_thread")]
async fn messages_pass_while_plugins_are_swapped() -> Result<()> {
    let house = House::with_directory().await?;
    let operator = &house.operator;
    let numbering = "[settings]\non_publish = \"number\"\n";
    let load = json!({"wasm": BASE64_STANDARD.encode(probe(0)?), "config": numbering});
    ensure!(operator.ask("POST", "/v1/plugins/10-probe", Some(&load))?.0 == 200);
    let mut client = listener(&house.server).await?;
    let (enough, is_enough) = tokio::sync::watch::channel(false);
    let traffic = tokio::spawn(async move {
        let mut number = 0;
        while !*is_enough.borrow() {
            number += 1;
            let became = echo(&mut client, "x").await?;
            ensure!(became == format!("x#{number}"), "it became {became}, not x#{number}");
        }
        anyhow::Ok::<u32>(number)
    });
    for change in 0..CHANGES {
        let swap = json!({"wasm": BASE64_STANDARD.encode(probe(change % 7)?)});
        let (path, body) = match change % 4 {
            3 => ("/v1/plugins/probe/rollback", None),
            2 => ("/v1/plugins/probe/reload", None),
            _ => ("/v1/plugins/probe/swap", Some(&swap)),
        };
        let (status, answer) = operator.ask("POST", path, body)?;
        ensure!(status == 200, "{path}: {answer}");
        ensure!(!traffic.is_finished(), "the traffic broke off: {:?}", traffic.await?);
    }
    enough.send_replace(true);
    let messages = traffic.await??;
    ensure!(messages > CHANGES, "only {messages} messages passed");
    let stats = operator.get("/v1/stats")?;
    ensure!(stats["swap_pauses"]["count"] == CHANGES + 1, "{stats}");
    house.server.stop().await
}

// ---- observing ----------------------------------------------------------------------------

#[tokio::test]
async fn what_plugins_did_is_counted() -> Result<()> {
    let house = House::without_directory().await?;
    let operator = &house.operator;
    let config = r#"
        [settings]
        on_publish = [
            { refuse = { code = "NOPERM", message = "no" }, trigger = "bad" },
            { absorb = 7, trigger = "gone" },
            "stamp",
        ]
        on_deliver = { panic = true, trigger = "boom" }
    "#;
    let config = house.file("probe.toml", config.as_bytes())?;
    let file = house.file("probe.wasm", &probe(1)?)?;
    let _subscriber = listener(&house.server).await?;
    let done = operator.run(&["plugin", "load", "10-probe", &file, "--config", &config])?;
    ensure!(done.code == Some(0), "{done:?}");
    // The plugin is queried about the existing subscription.
    house.server.wait_for_log("existing subscriptions were checked again").await?;
    let mut client = house.server.client().await?;
    for payload in ["good", "good", "bad", "gone"] {
        client.call(json!(["PUBLISH", "b", payload])).await?;
    }
    let shown = operator.get("/v1/plugins/probe")?;
    let hook = |name: &str| {
        let hooks = shown["stats"].as_array().cloned().unwrap_or_default();
        hooks.into_iter().find(|hook| hook["hook"] == name).unwrap_or_default()
    };
    let verdicts = |name: &str| -> Vec<(String, u64)> {
        let verdicts = hook(name)["verdicts"].as_array().cloned().unwrap_or_default();
        let pair = |verdict: &Value| {
            (
                verdict["verdict"].as_str().unwrap_or("?").to_owned(),
                verdict["count"].as_u64().unwrap_or(0),
            )
        };
        verdicts.iter().map(pair).collect()
    };
    let named = |pairs: &[(&str, u64)]| -> Vec<(String, u64)> {
        pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    };
    ensure!(
        verdicts("on-publish") == named(&[("replace", 2), ("reject", 1), ("absorb", 1)]),
        "{shown}"
    );
    ensure!(
        hook("on-publish")["items"] == 4 && hook("on-publish")["time"]["count"] == 4,
        "{shown}"
    );
    // One for the subscription, four for the publications.
    ensure!(verdicts("on-access") == named(&[("pass", 5)]), "{shown}");
    ensure!(verdicts("on-connect") == named(&[("pass", 1)]), "{shown}");
    ensure!(hook("on-deliver").is_null(), "no connection received anything: {shown}");
    ensure!(shown["memory_bytes"][0].as_u64() > Some(1 << 16), "{shown}");

    // The counts continue after a swap.
    operator.say(&["plugin", "reload", "probe"])?;
    client.call(json!(["PUBLISH", "b", "good"])).await?;
    let shown = operator.get("/v1/plugins/probe")?;
    ensure!(shown["stats"].to_string().contains(r#""items":5"#), "{shown}");
    let table = operator.say(&["plugin", "show", "probe"])?;
    ensure!(table.contains("replace=3 reject=1 absorb=1"), "{table}");

    // A trap is a fault with a reason.
    client.call(json!(["PUBLISH", "a", "boom"])).await?;
    house.server.wait_for_log("a plugin failed and is rebuilt").await?;
    let shown = operator.get("/v1/plugins/probe")?;
    let failure = &shown["failures"][0];
    ensure!(failure["step"] == "on-deliver" && failure["message"].is_string(), "{shown}");
    ensure!(shown["stats"].to_string().contains("failed-closed"), "{shown}");
    let stats = operator.get("/v1/stats")?;
    ensure!(stats["plugins"] == 1 && stats["connections"] == 2, "{stats}");
    ensure!(stats["swaps"].as_array().map(Vec::len) == Some(2), "{stats}");
    house.server.stop().await
}

#[tokio::test]
async fn a_trace_shows_what_each_plugin_said() -> Result<()> {
    let house = House::without_directory().await?;
    let operator = &house.operator;
    let config = r#"
        [settings]
        on_publish = [{ refuse = { code = "NOPERM", message = "not that" }, trigger = "bad" }, "stamp"]
        on_deliver = "stamp"
    "#;
    let config = house.file("probe.toml", config.as_bytes())?;
    let file = house.file("probe.wasm", &probe(1)?)?;
    operator.say(&["plugin", "load", "10-probe", &file, "--config", &config])?;
    let mut client = listener(&house.server).await?;
    let id = operator.get("/v1/connections")?["connections"][0]["id"].clone();
    let mut by_channel =
        operator.start(&["plugin", "trace", "--channel", "a*", "--count", "5", "--json"])?;
    let mut by_connection =
        operator.start(&["plugin", "trace", "--connection", &id.to_string(), "--json"])?;
    let mut by_other = operator.start(&["plugin", "trace", "--connection", "999", "--json"])?;
    for trace in [&mut by_channel, &mut by_connection, &mut by_other] {
        ensure!(trace.next_line()?.is_some_and(|line| line["kind"] == "began"));
    }
    ensure!(operator.get("/v1/stats")?["traces"] == 3);
    ensure!(echo(&mut client, "xy").await? == "xy@00000001@00000001");
    client.call(json!(["PUBLISH", "b", "bad"])).await?;
    client.call(json!(["PUBLISH", "a", "bad"])).await?;
    let mut seen = Vec::new();
    while let Some(line) = by_channel.next_line()? {
        seen.push(line);
    }
    let said: Vec<Value> = seen
        .iter()
        .map(|line| {
            json!([
                line["action"],
                line["hook"],
                line["verdict"],
                line["bytes_before"],
                line["bytes_after"]
            ])
        })
        .collect();
    ensure!(
        said == [
            json!(["publish", "on-access", "pass", null, null]),
            json!(["publish", "on-publish", "replace", 2, 11]),
            json!(["deliver", "on-deliver", "replace", 11, 20]),
            json!(["publish", "on-access", "pass", null, null]),
            json!(["publish", "on-publish", "reject", 3, 3]),
            json!([null, null, null, null, null]),
        ],
        "{said:?}"
    );
    ensure!(seen[2]["recipients_after"] == 1 && seen[2]["connection"] == id);
    ensure!(seen[4]["code"] == "NOPERM" && seen[4]["message"] == "not that", "{seen:?}");
    ensure!(seen[1]["took_us"].as_f64() > Some(0.0) && seen[1]["items"] == 1);
    ensure!(!seen.iter().any(|line| line.to_string().contains("xy")), "a payload is shown");
    ensure!(seen[5]["kind"] == "ended");
    ensure!(by_channel.exit()? == Some(0));

    let mut channels = Vec::new();
    for _ in 0..7 {
        let line = by_connection.next_line()?.context("it goes on")?;
        channels.push(line["channel"].as_str().unwrap_or("?").to_owned());
    }
    ensure!(channels == ["a", "a", "a", "b", "b", "a", "a"], "{channels:?}");
    // A plugin that was removed is not listed.
    drop(by_connection);
    let mut traces = 3;
    while traces != 1 {
        traces = operator.get("/v1/stats")?["traces"].as_u64().context("a number")?;
        tokio::task::yield_now().await;
    }
    // A shutdown of the server ends the trace.
    let stopping = house.server.stop();
    stopping.await?;
    ensure!(by_other.next_line()?.is_some_and(|line| line["why"] == "the server is ending"));
    ensure!(by_other.next_line()?.is_none());
    Ok(())
}

/// A trace subscriber that does not read does not delay publishers, and receives the number of
/// events that it missed.
#[tokio::test]
async fn a_trace_that_is_not_read_drops_and_says_so() -> Result<()> {
    let config = format!("{CONFIG}[admin]\ntrace_queue_max = 10\ntraces_max = 1\n");
    let server = Launch::with_config(&config).start().await?;
    let operator = Operator::of(&server).await?;
    let wasm = json!({"wasm": BASE64_STANDARD.encode(probe(1)?), "config": STAMPING});
    ensure!(operator.ask("POST", "/v1/plugins/10-probe", Some(&wasm))?.0 == 200);
    let mut trace = operator.start(&["plugin", "trace", "--channel", "*", "--json"])?;
    ensure!(trace.next_line()?.is_some_and(|line| line["kind"] == "began"));
    let (status, error) = operator.ask("GET", "/v1/trace?connection=1", None)?;
    ensure!((status, &error["code"]) == (503, &json!("too-many-traces")), "{error}");
    let mut client = listener(&server).await?;
    // More than the pipe, the socket buffers and the queue hold.
    let burst: Vec<Value> = (0..500).map(|_| json!(["PUBLISH", "a", "x"])).collect();
    let burst = Value::Array(burst).to_string();
    for _ in 0..40 {
        client.send(tokio_tungstenite::tungstenite::Message::text(burst.clone())).await?;
        for _ in 0..500 {
            client.next().await?;
        }
    }
    let mut said = 0;
    let dropped = loop {
        let line = trace.next_line()?.context("it goes on")?;
        match line["kind"].as_str() {
            Some("dropped") => break line["count"].as_u64().context("a number")?,
            _ => said += 1,
        }
    };
    ensure!(said > 0 && dropped > 0, "{said} {dropped}");
    drop(trace);
    server.stop().await
}
