//! What the server reports about itself: metrics and health.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::support::admin::Operator;
use crate::support::components;
use crate::support::raw::{exchange, get};
use crate::support::server::{Launch, Server};
use crate::support::{PATIENCE, within};

/// A scrape: the value of each series, by its name as written.
struct Scrape {
    text: String,
    values: BTreeMap<String, f64>,
}

impl Scrape {
    async fn of(server: &Server) -> Result<Scrape> {
        let operator = Operator::of(server).await?;
        let head = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n", operator.authority());
        let (status, head, text) = operator.exchange(&head, b"")?;
        ensure!(status == 200, "{status} {text}");
        let head = head.to_ascii_lowercase();
        ensure!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        let mut values = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').context("a series and a value")?;
            let twice = values.insert(series.to_owned(), value.parse()?);
            ensure!(twice.is_none(), "{series} is there twice");
        }
        Ok(Scrape { text, values })
    }

    fn get(&self, series: &str) -> Result<f64> {
        let value = self.values.get(series).copied();
        value.with_context(|| format!("no {series} in:\n{}", self.text))
    }

    fn check(&self, expected: &[(&str, f64)]) -> Result<()> {
        for (series, value) in expected {
            let is = self.get(series)?;
            ensure!(is == *value, "{series} is {is}, not {value}");
        }
        Ok(())
    }
}

/// The output of `promtool` for this input; it must succeed. `make tools` installs it.
fn promtool(words: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new("promtool")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("promtool cannot be started: `make tools` installs it")?;
    child.stdin.take().context("stdin is a pipe")?.write_all(input.as_bytes())?;
    let done = child.wait_with_output()?;
    let said = String::from_utf8(done.stdout)? + &String::from_utf8(done.stderr)?;
    ensure!(done.status.success(), "promtool {words:?}: {said}");
    Ok(said)
}

#[tokio::test]
async fn metrics_say_what_was_done() -> Result<()> {
    let plugins = components::directory()?;
    components::install(plugins.path(), "20-probe", &components::built("test/probe")?, &json!({}))?;
    let launch = Launch {
        plugins: Some(plugins.path().to_owned()),
        ..Launch::with_config(
            "engine.shards = 2\nlimits.name_bytes_max = 10\nlimits.connections_max = 3",
        )
    };
    let server = launch.start().await?;
    let mut listener = server.client().await?;
    assert_eq!(listener.call(json!(["SUBSCRIBE", "a", "b"])).await?, json!(["OK", 2]));
    assert_eq!(listener.call(json!(["PSUBSCRIBE", "*"])).await?, json!(["OK", 3]));
    let mut publisher = server.client().await?;
    for (channel, receivers) in [("a", 2), ("b", 2), ("c", 1)] {
        let answer = publisher.call(json!(["PUBLISH", channel, "x"])).await?;
        assert_eq!(answer, json!(["OK", receivers]));
    }
    for _ in 0..2 {
        let refused = publisher.call(json!(["PUBLISH", "much too long", "x"])).await?;
        assert_eq!(refused.pointer("/1/code"), Some(&json!("TOOLARGE")));
    }
    publisher.call(json!(["NONSENSE"])).await?;
    let mut leaving = server.client().await?;
    let (code, _) = server.client().await?.next_close().await?;
    assert_eq!(code, Some(4101));
    assert_eq!(leaving.call(json!(["QUIT"])).await?, json!(["OK", "OK"]));
    leaving.next_close().await?;
    drop(leaving);
    // It may take a moment until its slot is free.
    let said = within(PATIENCE, "room for one more", async {
        loop {
            let commands = "ECHO x\r\nNONSENSE\r\nSELECT 16\r\nCLIENT ID\r\n";
            let said = exchange(server.resp_address().await?, commands).await?;
            if !said.contains("max number of clients") {
                break anyhow::Ok(said);
            }
        }
    })
    .await??;
    ensure!(said.starts_with("$1\r\nx\r\n-ERR unknown command"), "{said}");

    // A connection has ended only when its client is gone, too.
    let quit = r#"switchyard_connections_closed_total{reason="quit"}"#;
    let scrape = within(PATIENCE, "the end of a connection", async {
        loop {
            let scrape = Scrape::of(&server).await?;
            if scrape.get(quit)? > 0.0 {
                break anyhow::Ok(scrape);
            }
        }
    })
    .await??;
    scrape.check(&[
        (r#"switchyard_connections{protocol="websocket/json"}"#, 2.0),
        (r#"switchyard_connections_accepted_total{door="http",tls="false"}"#, 3.0),
        (r#"switchyard_connections_accepted_total{door="resp",tls="false"}"#, 1.0),
        (r#"switchyard_connections_refused_total{door="http",reason="over_capacity"}"#, 1.0),
        (r#"switchyard_connections_refused_total{door="http",reason="origin"}"#, 0.0),
        ("switchyard_connections_limit", 3.0),
        (quit, 1.0),
        (r#"switchyard_connections_closed_total{reason="slow_consumer"}"#, 0.0),
        (r#"switchyard_commands_total{verb="SUBSCRIBE",result="ok"}"#, 1.0),
        (r#"switchyard_commands_total{verb="PSUBSCRIBE",result="ok"}"#, 1.0),
        (r#"switchyard_commands_total{verb="PUBLISH",result="ok"}"#, 3.0),
        (r#"switchyard_commands_total{verb="PUBLISH",result="toolarge"}"#, 2.0),
        (r#"switchyard_commands_total{verb="(none)",result="unknown"}"#, 1.0),
        (r#"switchyard_commands_total{verb="(none)",result="err"}"#, 1.0),
        (r#"switchyard_commands_total{verb="ECHO",result="ok"}"#, 1.0),
        (r#"switchyard_commands_total{verb="SELECT",result="err"}"#, 1.0),
        (r#"switchyard_commands_total{verb="CLIENT",result="ok"}"#, 1.0),
        (r#"switchyard_commands_total{verb="QUIT",result="ok"}"#, 1.0),
        ("switchyard_publications_total", 3.0),
        ("switchyard_deliveries_total", 5.0),
        (r#"switchyard_subscriptions{kind="channel"}"#, 2.0),
        (r#"switchyard_subscriptions{kind="pattern"}"#, 1.0),
        (r#"switchyard_channels{space="channels"}"#, 2.0),
        (r#"switchyard_channels{space="shard_channels"}"#, 0.0),
        ("switchyard_patterns", 1.0),
        (r#"switchyard_engine_shard_up{shard="0"}"#, 1.0),
        (r#"switchyard_engine_shard_up{shard="3"}"#, 1.0),
        (r#"switchyard_engine_call_seconds_count{call="route"}"#, 3.0),
        (r#"switchyard_engine_call_seconds_bucket{call="route",le="+Inf"}"#, 3.0),
        (r#"switchyard_engine_faults_total{call="route"}"#, 0.0),
        ("switchyard_engine_rebuild_seconds_count", 0.0),
        (r#"switchyard_plugin_state{slot="20-probe",state="running"}"#, 1.0),
        (r#"switchyard_plugin_state{slot="20-probe",state="parked"}"#, 0.0),
        (r#"switchyard_plugin_items_total{slot="20-probe",hook="on-publish"}"#, 3.0),
        (
            r#"switchyard_plugin_verdicts_total{slot="20-probe",hook="on-publish",verdict="pass"}"#,
            3.0,
        ),
        (r#"switchyard_plugin_call_seconds_count{slot="20-probe",hook="on-publish"}"#, 3.0),
        (r#"switchyard_plugin_faults_total{slot="20-probe",hook="on-publish"}"#, 0.0),
        (r#"switchyard_plugin_rebuilds_total{slot="20-probe"}"#, 0.0),
        (r#"switchyard_swap_pause_seconds_count{kind="added"}"#, 1.0),
        (r#"switchyard_swap_pause_seconds_count{kind="swapped"}"#, 0.0),
        ("switchyard_plugins_refused", 0.0),
        ("switchyard_outbox_overflows_total", 0.0),
        ("switchyard_draining", 0.0),
        (concat!("switchyard_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
    ])?;
    for (series, least) in [
        ("switchyard_received_bytes_total", 200.0),
        ("switchyard_sent_bytes_total", 200.0),
        (r#"switchyard_plugin_memory_bytes{slot="20-probe"}"#, 65_536.0),
        ("process_resident_memory_bytes", 1e6),
        ("process_cpu_seconds_total", 0.001),
        ("process_open_fds", 5.0),
        ("process_max_fds", 5.0),
        ("process_start_time_seconds", 1.7e9),
    ] {
        let is = scrape.get(series)?;
        ensure!(is >= least, "{series} is {is}");
    }
    ensure!(!scrape.text.contains("switchyard_backplane"), "there is no backplane");
    // The admin API's own numbers are the same.
    let stats = Operator::of(&server).await?.get("/v1/stats")?;
    assert_eq!((&stats["publications"], &stats["deliveries"]), (&json!(3), &json!(5)));
    assert_eq!(stats["commands"], json!(13));

    // A series of a kind appears with its first event.
    let said = promtool(&["check", "metrics"], &scrape.text)?;
    ensure!(said.is_empty(), "promtool has something to say:\n{said}");
    server.stop().await
}

#[tokio::test]
async fn what_overflows_is_counted() -> Result<()> {
    let config = "outbox.bytes_max = 20000\noutbox.soft_bytes = 10000";
    let server = Launch::with_config(config).start().await?;
    let mut listener = server.client().await?;
    listener.call(json!(["SUBSCRIBE", "a"])).await?;
    let mut publisher = server.client().await?;
    publisher.call(json!(["PUBLISH", "a", "x".repeat(30_000)])).await?;
    let (code, _) = listener.next_close().await?;
    assert_eq!(code, Some(4202));
    // It is counted when the close is complete.
    server.wait_for_log("slow_consumer").await?;
    let scrape = Scrape::of(&server).await?;
    scrape.check(&[
        ("switchyard_outbox_overflows_total", 1.0),
        (r#"switchyard_connections_closed_total{reason="slow_consumer"}"#, 1.0),
    ])?;
    let bytes = scrape.get("switchyard_outbox_overflow_bytes_total")?;
    ensure!((30_000.0..31_000.0).contains(&bytes), "{bytes} bytes");
    server.stop().await
}

#[tokio::test]
async fn metrics_need_a_token_and_come_as_open_metrics_too() -> Result<()> {
    let token = "of-sixteen-letters";
    let launch = Launch {
        files: vec![("tokens".to_owned(), format!("prometheus:{token}\n"))],
        ..Launch::with_config("admin.tokens_file = 'tokens'")
    };
    let server = launch.start().await?;
    let operator = Operator::of(&server).await?;
    let get = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n", operator.authority());
    let (status, _, body) = operator.exchange(&get, b"")?;
    ensure!(status == 401 && !body.contains("switchyard_"), "{status} {body}");
    let accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.8,text/plain;q=0.5";
    let get = format!("{get}Authorization: Bearer {token}\r\n{accept}\r\n");
    let (status, head, body) = operator.exchange(&get, b"")?;
    assert_eq!(status, 200, "{body}");
    ensure!(head.to_ascii_lowercase().contains("application/openmetrics-text"), "{head}");
    ensure!(body.ends_with("# EOF\n"), "{body}");
    ensure!(body.contains("# TYPE switchyard_publications counter\n"), "{body}");
    server.stop().await
}

/// The response for a path on the client listener: status and text.
async fn ask(server: &Server, path: &str) -> Result<(u16, String)> {
    get(server.address().await?, path).await
}

/// The server's health as the admin listener reports it.
async fn health(server: &Server, path: &str) -> Result<(u16, Value)> {
    Operator::of(server).await?.ask("GET", path, None)
}

async fn wait_until_healthy(server: &Server) -> Result<()> {
    within(PATIENCE, "a server that is well", async {
        while ask(server, "/healthz").await? != (200, "ok\n".to_owned()) {}
        anyhow::Ok(())
    })
    .await?
}

#[tokio::test]
async fn a_health_check_probes_every_shard_and_no_client_sees_it() -> Result<()> {
    let config = "engine.shards = 2\nhealth.reuse_ms = 1";
    let server = Launch::with_config(config).start().await?;
    let mut listener = server.client().await?;
    assert_eq!(listener.call(json!(["PSUBSCRIBE", "*"])).await?, json!(["OK", 1]));
    for path in ["/healthz", "/readyz"].repeat(5) {
        assert_eq!(ask(&server, path).await?, (200, "ok\n".to_owned()));
        let (status, said) = health(&server, path).await?;
        assert_eq!(status, 200, "{said}");
        let ok = json!({"status": "ok", "problem": null});
        assert_eq!(said["status"], json!("ok"));
        assert_eq!(said["shards"], json!(vec![ok.clone(); 4]));
        assert_eq!((&said["log"], &said["backplane"]), (&ok, &Value::Null));
        assert_eq!((&said["ready"], &said["draining"]), (&json!(true), &json!(false)));
    }
    let mut other = server.client().await?;
    assert_eq!(other.call(json!(["PUBSUB", "CHANNELS"])).await?, json!(["OK", []]));
    assert_eq!(other.call(json!(["PUBLISH", "end", "x"])).await?, json!(["OK", 1]));
    // The first message that arrives is the first that was published.
    assert_eq!(listener.next_json().await?, json!(["pmessage", "*", "end", "x"]));
    let scrape = Scrape::of(&server).await?;
    // Four shards, several times, and once for the client.
    let routed = scrape.get(r#"switchyard_engine_call_seconds_count{call="route"}"#)?;
    ensure!(routed >= 9.0, "only {routed} calls");
    scrape.check(&[
        (r#"switchyard_connections{protocol="websocket/json"}"#, 2.0),
        (r#"switchyard_connections_accepted_total{door="http",tls="false"}"#, 2.0),
        ("switchyard_publications_total", 1.0),
    ])?;
    server.stop().await
}

#[tokio::test]
async fn frequent_health_checks_cost_nothing() -> Result<()> {
    let config = "engine.shards = 1\nhealth.reuse_ms = 86400000";
    let server = Launch::with_config(config).start().await?;
    for _ in 0..50 {
        assert_eq!(ask(&server, "/healthz").await?.0, 200);
        assert_eq!(health(&server, "/readyz").await?.0, 200);
    }
    let scrape = Scrape::of(&server).await?;
    scrape.check(&[(r#"switchyard_engine_call_seconds_count{call="route"}"#, 2.0)])?;
    server.stop().await
}

/// A server whose engine traps on some names.
async fn with_bad_engine(config: &str) -> Result<(Server, tempfile::TempDir)> {
    let home = components::directory()?;
    let file = home.path().join("engine.wasm");
    components::write_atomically(&file, &components::built("test/bad-engine")?)?;
    let config = format!(
        "engine.file = {file:?}\nengine.shards = 1\nshutdown.timeout_ms = 100\n\
         health.reuse_ms = 1\n{config}"
    );
    Ok((Launch::with_config(&config).start().await?, home))
}

#[tokio::test]
async fn an_engine_that_fails_is_named() -> Result<()> {
    let config = "engine.rebuild_window_ms = 600000\nengine.retry_ms = 86400000";
    let (server, _home) = with_bad_engine(config).await?;
    let mut client = server.client().await?;
    assert_eq!(ask(&server, "/healthz").await?, (200, "ok\n".to_owned()));
    within(PATIENCE, "the end of the engine", async {
        while ask(&server, "/healthz").await?.0 == 200 {
            client.call(json!(["PUBLISH", "trap-engine", "x"])).await?;
        }
        anyhow::Ok(())
    })
    .await??;
    for path in ["/healthz", "/readyz"] {
        let (status, text) = ask(&server, path).await?;
        assert_eq!((status, text.as_str()), (503, "unhealthy: the engine is not available\n"));
        let (status, said) = health(&server, path).await?;
        assert_eq!(status, 503, "{said}");
        let unhealthy = json!({"status": "unhealthy", "problem": "the engine is not available"});
        // The other is that of shard channels.
        assert_eq!(said["shards"], json!([unhealthy, {"status": "ok", "problem": null}]));
        assert_eq!(said["problems"], json!(["the engine is not available"]));
        assert_eq!(said["ready"], json!(false));
    }
    let scrape = Scrape::of(&server).await?;
    scrape.check(&[
        (r#"switchyard_engine_shard_up{shard="0"}"#, 0.0),
        (r#"switchyard_engine_shard_up{shard="1"}"#, 1.0),
    ])?;
    ensure!(scrape.get(r#"switchyard_engine_faults_total{call="route"}"#)? >= 5.0);
    ensure!(scrape.get("switchyard_engine_rebuild_seconds_count")? >= 1.0);
    ensure!(scrape.get("switchyard_patterns").is_err(), "the engine cannot report them");
    let said = promtool(&["check", "metrics"], &scrape.text)?;
    ensure!(said.is_empty(), "promtool has something to say:\n{said}");
    server.stop().await
}

/// The server is otherwise idle during the health check: no other event wakes the task that
/// sends the reply.
#[tokio::test]
async fn an_engine_that_is_busy_is_not_waited_for() -> Result<()> {
    let config = "engine.call_budget_ms = 4000\nhealth.timeout_ms = 100";
    let (server, _home) = with_bad_engine(config).await?;
    let mut client = server.client().await?;
    let before = processor_time(&server)?;
    client.send(json!(["PUBLISH", "stall-engine", "x"]).to_string().into()).await?;
    within(PATIENCE, "the engine's stall", async {
        while processor_time(&server)? < before + Duration::from_millis(50) {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    })
    .await??;
    let (status, text) = ask(&server, "/healthz").await?;
    ensure!(status == 503, "{status} {text}");
    ensure!(
        text.contains("busy for too long") || text.contains("does not answer within 100 ms"),
        "{text}"
    );
    let refused = client.next_json().await?;
    ensure!(refused.to_string().contains("UNAVAILABLE"), "{refused}");
    wait_until_healthy(&server).await?;
    server.stop().await
}

/// The processor time that a server has used so far.
fn processor_time(server: &Server) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.id()))?;
    let (_, after_name) = stat.rsplit_once(')').context("a name")?;
    let ticks: Vec<u64> =
        after_name.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    // proc_pid_stat(5): hundredths of a second.
    Ok(Duration::from_millis(10 * ticks.iter().sum::<u64>()))
}

#[tokio::test]
async fn a_parked_plugin_is_unhealthy_if_it_guards_and_a_warning_if_not() -> Result<()> {
    for (policy, status, words) in [
        (
            "closed",
            503,
            "unhealthy: the plugin 10-probe failed too often, is parked, and what it guards",
        ),
        ("open", 200, "degraded: the plugin 10-probe failed too often, is parked, and is skipped"),
    ] {
        let plugins = components::directory()?;
        let wasm = components::path(plugins.path(), "10-probe");
        components::write_atomically(&wasm, &components::built("test/probe")?)?;
        let config = json!({
            "policy": policy,
            "strikes_max": 1,
            "settings": {"on_publish": [{"panic": true, "trigger": "boom"}]},
        });
        components::configure(plugins.path(), "10-probe", &config)?;
        let launch = Launch { plugins: Some(plugins.path().to_owned()), ..Launch::default() };
        let server = launch.start().await?;
        let mut client = server.client().await?;
        assert_eq!(ask(&server, "/healthz").await?, (200, "ok\n".to_owned()));
        client.call(json!(["PUBLISH", "a", "boom"])).await?;
        server.wait_for_log("a plugin was parked").await?;
        let (is, text) = ask(&server, "/healthz").await?;
        ensure!(is == status && text.starts_with(words), "{is} {text}");
        let (is, said) = health(&server, "/readyz").await?;
        assert_eq!(is, status, "{said}");
        assert_eq!(said["plugins"][0]["slot"], json!("10-probe"));
        ensure!(
            said["plugins"][0]["problem"]
                .as_str()
                .is_some_and(|why| words.contains(why.split(", is parked").next().unwrap_or("?"))),
            "{said}"
        );
        let scrape = Scrape::of(&server).await?;
        scrape.check(&[
            (r#"switchyard_plugin_state{slot="10-probe",state="parked"}"#, 1.0),
            (r#"switchyard_plugin_faults_total{slot="10-probe",hook="on-publish"}"#, 1.0),
        ])?;
        server.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_shuts_down_is_neither_healthy_nor_ready() -> Result<()> {
    let config = "shutdown.drain_ms = 86400000\nshutdown.closes_per_second = 1";
    let mut server = Launch::with_config(config).start().await?;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(server.client().await?);
    }
    server.signal("TERM")?;
    server.wait_for_log("the server is ending").await?;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(ask(&server, path).await?, (503, "draining\n".to_owned()));
    }
    assert_eq!(ask(&server, "/livez").await?, (200, "ok\n".to_owned()));
    let (status, said) = health(&server, "/healthz").await?;
    assert_eq!((status, &said["draining"]), (503, &json!(true)), "{said}");
    let (status, said) = health(&server, "/readyz").await?;
    assert_eq!((status, &said["ready"]), (503, &json!(false)), "{said}");
    Scrape::of(&server).await?.check(&[("switchyard_draining", 1.0)])?;
    server.signal("TERM")?;
    server.exit().await?;
    Ok(())
}

// ---- packaging/monitoring ----------------------------------------------------------

fn packaged(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/monitoring").join(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The names of metrics in a query.
fn metrics_of(query: &str) -> impl Iterator<Item = &str> {
    query
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("switchyard_") || word.starts_with("process_"))
}

/// All texts under this key, however deep.
fn texts<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| texts(item, key, found)),
        Value::Object(members) => {
            found.extend(members.get(key).and_then(Value::as_str));
            members.values().for_each(|member| texts(member, key, found));
        }
        _ => {}
    }
}

/// Names as samples have them: a histogram has three.
fn exposed(scrape: &str) -> BTreeSet<String> {
    let types = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types
        .flat_map(|(name, kind)| match kind {
            "histogram" => ["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")).to_vec(),
            _ => vec![name.to_owned()],
        })
        .collect()
}

/// With a backplane, which need not be reachable to be counted.
#[tokio::test]
async fn rules_and_dashboard_query_existing_metrics() -> Result<()> {
    let config = "[cluster]\nurl = 'redis://127.0.0.1:1'\nconnect_timeout_ms = 100";
    let server = Launch::with_config(config).start().await?;
    let scrape = Scrape::of(&server).await?;
    scrape.check(&[
        (r#"switchyard_backplane_state{state="away"}"#, 1.0),
        (r#"switchyard_backplane_state{state="ready"}"#, 0.0),
        ("switchyard_backplane_sent_total", 0.0),
    ])?;
    let said = promtool(&["check", "metrics"], &scrape.text)?;
    ensure!(said.is_empty(), "promtool has something to say:\n{said}");
    let (status, text) = ask(&server, "/healthz").await?;
    assert_eq!((status, text.as_str()), (200, "degraded: the backplane is disconnected\n"));
    let (_, said) = health(&server, "/healthz").await?;
    assert_eq!(said["backplane"]["status"], json!("degraded"), "{said}");

    let there = exposed(&scrape.text);
    let check = |what: &str, query: &str| {
        for metric in metrics_of(query) {
            ensure!(there.contains(metric), "{what} asks for {metric}, which is not there");
        }
        anyhow::Ok(())
    };
    let rules = packaged("alerts.yml")?;
    let said = promtool(&["check", "rules", "/dev/stdin"], &rules)?;
    ensure!(said.contains("SUCCESS"), "{said}");
    check("alerts.yml", &rules)?;

    let dashboard: Value = serde_json::from_str(&packaged("grafana-dashboard.json")?)?;
    assert_eq!(dashboard["schemaVersion"], json!(42));
    let mut queries = Vec::new();
    texts(&dashboard, "expr", &mut queries);
    ensure!(queries.len() > 50, "only {} queries", queries.len());
    for query in &queries {
        check("the dashboard", query)?;
    }
    // Each is a valid query, once Grafana has replaced its variables.
    let distinct: BTreeSet<&str> = queries.iter().copied().collect();
    let rules: Vec<Value> = distinct
        .iter()
        .map(|query| {
            let query = query.replace("$__rate_interval", "1m").replace("$__range", "1h");
            json!({"record": "dashboard:query", "labels": {"of": query}, "expr": query})
        })
        .collect();
    let groups = json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string();
    let said = promtool(&["check", "rules", "/dev/stdin"], &groups)?;
    ensure!(said.contains("SUCCESS"), "{said}");
    // And no panel overlaps another.
    let panels = dashboard["panels"].as_array().context("there are panels")?;
    let mut occupied = BTreeSet::new();
    for panel in panels {
        let at = |key: &str| panel["gridPos"][key].as_u64().context("a place");
        for x in at("x")?..at("x")? + at("w")? {
            for y in at("y")?..at("y")? + at("h")? {
                ensure!(x < 24 && occupied.insert((x, y)), "{} is over another", panel["title"]);
            }
        }
    }
    // The metrics that docs/monitoring.md names exist, too.
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/monitoring.md");
    let page = std::fs::read_to_string(page)?;
    for name in page.split('`').filter(|word| word.starts_with("switchyard_")) {
        let name = name.trim_end_matches("…_total").trim_end_matches('…');
        let is_there = there.iter().any(|metric| metric.starts_with(name));
        ensure!(is_there, "docs/monitoring.md names {name}, which is not there");
    }
    server.stop().await
}
