//! Plugins that panic, never answer, take all memory or break the contract.
//!
//! A fault affects only what the plugin guards: that is refused or permitted, by the plugin's
//! policy. All other clients are served during the fault, and the plugin recovers by itself.
//! Plugins without faults come first: their decisions reach clients and the log.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Message;

use crate::support::raw::exchange;
use crate::support::server::{Launch, Server};
use crate::support::websocket::{Client, Upgrade};
use crate::support::{PATIENCE, components};

/// The longest permitted delay of another client. The aim is 50 ms.
const STALL_MAX: Duration = Duration::from_secs(2);

/// Rebuilds follow one another quickly, so that many failures take little time, and shutdown
/// does not wait long for clients that the test no longer reads from.
const CONFIG: &str = "
    shutdown.timeout_ms = 100
    plugins.rebuild_backoff_ms = 10
    limits.payload_bytes_max = 8388608
    websocket.message_bytes_max = 10000000
";

/// A server with one plugin, which the TOML file beside it configures.
async fn with_plugin(name: &str, component: Vec<u8>, config: &Value) -> Result<(Server, TempDir)> {
    let directory = components::directory()?;
    components::write_atomically(&components::path(directory.path(), name), &component)?;
    components::configure(directory.path(), name, config)?;
    let launch =
        Launch { plugins: Some(directory.path().to_owned()), ..Launch::with_config(CONFIG) };
    Ok((launch.start().await?, directory))
}

async fn with_probe(config: &Value) -> Result<(Server, TempDir)> {
    with_plugin("10-probe", components::built("test/probe")?, config).await
}

/// The refusal in a reply: its code, its message, and the plugin that decided.
fn refusal(answer: &Value) -> Option<(&str, &str, &str)> {
    (answer.get(0)? == "ERR").then_some(())?;
    let word = |key| answer.pointer(key).and_then(Value::as_str);
    Some((word("/1/code")?, word("/1/message")?, word("/1/by").unwrap_or("")))
}

/// Whether `by` names the plugin and twelve digits of its version.
fn is_probe(by: &str) -> bool {
    by.strip_prefix("probe@").is_some_and(|version| {
        version.len() == 12 && version.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

/// The close code and reason that a client on this path receives; none if it is admitted.
async fn rejection(server: &Server, path: &str) -> Result<Option<(u16, String)>> {
    let upgrade = Upgrade { path: path.to_owned(), ..Upgrade::default() };
    let client = Client::connect(server.address().await?, &upgrade).await?;
    let mut client = client.ok().context("the upgrade was answered with another status")?;
    // Fails if the server has ended the connection already.
    let _ = client.send(Message::text(r#"[1,"PING"]"#)).await;
    match client.next().await? {
        Message::Close(Some(frame)) => Ok(Some((frame.code.into(), frame.reason.to_string()))),
        _ => Ok(None),
    }
}

// ---- what plugins decide ---------------------------------------------------------

#[tokio::test]
async fn what_a_plugin_makes_of_a_publication_holds() -> Result<()> {
    let refuse = json!({"code": "TEAPOT", "message": "short\r\nand stout"});
    let (server, _directory) = with_probe(&json!({"settings": {
        "on_connect": {"note": {"key": "user", "value": "ann"}},
        "on_publish": [
            {"absorb": 7, "channels": ["absorbed"]},
            {"rename": "a.new", "channels": ["renamed"]},
            {"refuse": refuse, "trigger": "boil"},
            {"refuse": {"code": "not a word", "message": "x".repeat(1000)}, "trigger": "mumble"},
            {"stamp": true, "channels": ["stamped"]},
            {"number": true, "channels": ["numbered"]},
            {"count": "calls", "channels": ["counted"]},
            {"show": "user", "channels": ["shown"]},
            {"show": "nothing", "channels": ["not.shown"]},
        ],
        "on_deliver": [
            {"stamp": true, "channels": ["late"]},
            {"narrow": "first", "channels": ["one"]},
            {"narrow": "none", "channels": ["unknown"]},
        ],
    }}))
    .await?;
    let (mut first, mut second) = (server.client().await?, server.client().await?);
    for listener in [&mut first, &mut second] {
        listener.call(json!(["PSUBSCRIBE", "*"])).await?;
    }
    let mut publisher = server.client().await?;
    // What is published; the reply; what arrives, and for how many receivers.
    let cases = [
        ("plain", "x", 2, "plain", "x", 2),
        ("absorbed", "x", 7, "", "", 0),
        ("renamed", "x", 2, "a.new", "x", 2),
        ("stamped", "x", 2, "stamped", "x@00000000", 2),
        ("numbered", "x", 2, "numbered", "x#1", 2),
        ("numbered", "", 2, "numbered", "#2", 2),
        ("counted", "x", 2, "counted", "x=1", 2),
        ("counted", "x", 2, "counted", "x=2", 2),
        ("shown", "x", 2, "shown", "x:ann", 2),
        ("not.shown", "x", 2, "not.shown", "x:", 2),
        ("late", "x", 2, "late", "x@00000000", 2),
        ("one", "x", 1, "one", "x", 1),
        ("unknown", "x", 0, "", "", 0),
        ("end", "x", 2, "end", "x", 2),
    ];
    for (channel, payload, receivers, becomes, arrives, at) in cases {
        let answer = publisher.call(json!(["PUBLISH", channel, payload])).await?;
        ensure!(answer == json!(["OK", receivers]), "{channel}: answered {answer}");
        for listener in [&mut first, &mut second].into_iter().take(at) {
            let came = listener.next_json().await?;
            let expected = json!(["pmessage", "*", becomes, arrives]);
            ensure!(came == expected, "{channel}: {came} came, not {expected}");
        }
    }
    // Codes and messages as `wit/types.wit` permits them, and the plugin.
    for (payload, code, message) in
        [("boil", "TEAPOT", "short  and stout".to_owned()), ("mumble", "REJECTED", "x".repeat(512))]
    {
        let answer = publisher.call(json!(["PUBLISH", "plain", payload])).await?;
        let (its_code, its_message, by) = refusal(&answer).context("it was not refused")?;
        assert_eq!((its_code, its_message), (code, &*message));
        ensure!(is_probe(by), "by {by}");
    }
    for listener in [&mut first, &mut second] {
        ensure!(listener.call(json!(["PING"])).await? == json!(["OK", "PONG"]), "something came");
    }
    server.stop().await
}

/// One refused name refuses its whole command, and no other command.
#[tokio::test]
async fn what_a_plugin_forbids_does_not_happen() -> Result<()> {
    let refuse = json!({"code": "NOPERM", "message": "not for you"});
    let (server, _directory) = with_probe(&json!({"settings": {
        "on_access": {"refuse": refuse, "channels": ["secret*"]},
    }}))
    .await?;
    let mut client = server.client().await?;
    for command in [
        json!(["SUBSCRIBE", "open", "secret"]),
        json!(["SUBSCRIBE", "secret.1"]),
        json!(["PSUBSCRIBE", "open*", "secret*", "x"]),
        json!(["PUBLISH", "secret", "x"]),
    ] {
        let answer = client.call(command.clone()).await?;
        let (code, message, by) = refusal(&answer).with_context(|| format!("{command}"))?;
        assert_eq!((code, message), ("NOPERM", "not for you"), "{command}");
        ensure!(is_probe(by), "by {by}");
    }
    ensure!(client.call(json!(["PUBLISH", "open", "x"])).await? == json!(["OK", 0]));
    ensure!(client.call(json!(["SUBSCRIBE", "open"])).await? == json!(["OK", 1]));
    // Unsubscribing is never refused.
    ensure!(client.call(json!(["UNSUBSCRIBE", "secret"])).await? == json!(["OK", 1]));
    server.stop().await
}

#[tokio::test]
async fn a_plugin_admits_and_identifies_clients() -> Result<()> {
    let refuse = |code, message| json!({"code": code, "message": message});
    let (server, _directory) = with_probe(&json!({"settings": {
        "on_connect": [
            {"refuse": refuse("NOAUTH", "unknown client"), "trigger": "unknown"},
            {"refuse": refuse("NOPERM", "not welcome"), "trigger": "unwanted"},
            {"refuse": refuse("FULL", "not today"), "trigger": "full"},
            {"refuse": refuse("LIMIT", "not so fast"), "trigger": "hasty"},
            {"refuse": refuse("UNAVAILABLE", "later"), "trigger": "early"},
        ],
        "on_authenticate": [
            {"refuse": refuse("NOAUTH", "wrong"), "trigger": "bad"},
            {"note": {"key": "user", "value": "ann"}, "trigger": "ann"},
            {"allow": true, "trigger": "ann"},
        ],
        "on_publish": {"show": "user"},
    }}))
    .await?;
    for (path, code, words) in [
        ("/ws?unknown", 4001, "unknown client"),
        ("/ws?unwanted", 4003, "not welcome"),
        ("/ws?full", 4003, "not today"),
        ("/ws?hasty", 4106, "not so fast"),
        ("/ws?early", 4102, "later"),
    ] {
        let (its_code, reason) = rejection(&server, path).await?.context("it was let in")?;
        assert_eq!(its_code, code, "{path}: {reason}");
        let by = reason.split(':').next().unwrap_or_default();
        ensure!(reason.contains(words) && is_probe(by), "{path}: {reason}");
    }
    let mut client = server.client().await?;
    client.call(json!(["SUBSCRIBE", "a"])).await?;
    let bad = client.call(json!(["AUTH", "bad"])).await?;
    ensure!(refusal(&bad).is_some_and(|it| (it.0, it.1) == ("NOAUTH", "wrong") && is_probe(it.2)));
    let unknown = client.call(json!(["AUTH", "joe", "x"])).await?;
    ensure!(refusal(&unknown).is_some_and(|it| it.0 == "NOAUTH" && it.2.is_empty()));
    for (user, payload) in [(None, "x:"), (Some("ann"), "x:ann")] {
        if let Some(user) = user {
            ensure!(client.call(json!(["AUTH", "login", user])).await? == json!(["OK", "OK"]));
        }
        client.call(json!(["PUBLISH", "a", "x"])).await?;
        ensure!(client.next_json().await? == json!(["message", "a", payload]));
    }
    server.stop().await
}

#[tokio::test]
async fn a_plugin_admits_clients_over_tcp() -> Result<()> {
    for (code, answered) in [
        ("NOAUTH", "-NOAUTH "),
        ("NOPERM", "-NOPERM "),
        ("FULL", "-NOPERM "),
        ("LIMIT", "-LIMIT "),
        ("UNAVAILABLE", "-UNAVAILABLE "),
    ] {
        let refuse = json!({"refuse": {"code": code, "message": "not now"}});
        let (server, _directory) = with_probe(&json!({"settings": {"on_connect": refuse}})).await?;
        let said = exchange(server.resp_address().await?, "").await?;
        let by = said.strip_prefix(answered).and_then(|said| said.strip_suffix(": not now\r\n"));
        ensure!(by.is_some_and(is_probe), "{code}: {said:?}");
        server.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_a_plugin_says_is_logged_under_its_name() -> Result<()> {
    let said = |words: &str| json!([{"log": format!("{words} logged")}, {"print": format!("{words} printed")}]);
    let (server, _directory) = with_probe(&json!({
        "log_lines_per_second_max": 40,
        "settings": {
            "on_connect": said("connect"),
            "on_authenticate": said("authenticate"),
            "on_access": said("access"),
            "on_publish": said("publish"),
            "on_deliver": said("deliver"),
            "on_disconnect": said("disconnect"),
        },
    }))
    .await?;
    let mut client = server.client().await?;
    client.call(json!(["AUTH", "x"])).await?;
    client.call(json!(["SUBSCRIBE", "a"])).await?;
    client.call(json!(["PUBLISH", "a", "x"])).await?;
    drop(client);
    for hook in ["connect", "authenticate", "access", "publish", "deliver", "disconnect"] {
        // Printed to standard output and to standard error.
        for (words, times) in [("logged", 1), ("printed", 2)] {
            let words = format!("{hook} {words}");
            for line in server.wait_for_logs(&words, times).await? {
                ensure!(line.contains("plugin=probe"), "no plugin is named: {line}");
            }
        }
    }
    // A plugin that logs too much is cut short, and the log reports it as soon as the limit
    // permits.
    let mut talkative = server.client().await?;
    let began = Instant::now();
    while !server.log().contains("too many log lines were dropped") {
        ensure!(began.elapsed() < PATIENCE, "nothing was dropped");
        talkative.call(json!(["PUBLISH", "a", "x"])).await?;
    }
    server.stop().await
}

// ---- what fails ------------------------------------------------------------------

/// The faults that can occur in a hook. Each is triggered by its own name.
const FAULTS: [&str; 4] = ["panic", "loop", "alloc", "wrong_count"];

/// Behaviours that each fault triggers.
fn faults(of: &[&str]) -> Value {
    of.iter().map(|fault| json!({(*fault): true, "trigger": fault})).collect()
}

/// A client that sends requests continuously, and the longest time it waited for a reply.
struct Bystander {
    client: Client,
    stall: Duration,
}

impl Bystander {
    async fn on(server: &Server) -> Result<Bystander> {
        Ok(Bystander { client: server.client().await?, stall: Duration::ZERO })
    }

    /// Runs `work` while it sends requests.
    async fn during<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let is_done = Cell::new(false);
        let work = async {
            let done = work.await;
            is_done.set(true);
            done
        };
        let pinging = async {
            while !is_done.get() {
                let began = Instant::now();
                self.client.call(json!(["PING"])).await?;
                self.stall = self.stall.max(began.elapsed());
            }
            Ok::<_, anyhow::Error>(())
        };
        let (done, answered) = tokio::join!(work, pinging);
        answered.context("the bystander")?;
        done
    }

    fn check(&self, what: &str) -> Result<()> {
        println!("{what}: the longest stall of a bystander {:?} (aim: 50 ms)", self.stall);
        ensure!(self.stall < STALL_MAX, "{what}: a bystander waited {:?}", self.stall);
        Ok(())
    }
}

/// Calls until the reply is this one: the plugin is back.
async fn until(client: &mut Client, command: &Value, expected: &Value) -> Result<()> {
    let began = Instant::now();
    loop {
        let answer = client.call(command.clone()).await?;
        if answer == *expected {
            return Ok(());
        }
        let is_down = refusal(&answer).is_some_and(|(code, _, _)| code == "UNAVAILABLE");
        ensure!(is_down, "{command} was answered {answer}");
        ensure!(began.elapsed() < PATIENCE, "{command} is still answered {answer}");
    }
}

/// A hook, as a client sees it: a command that fails in it, one that does not, and the replies to
/// the two if the policy is open. None: a refusal.
struct Guarded {
    hook: &'static str,
    faults: &'static [&'static str],
    failing: fn(&str) -> Value,
    fine: (Value, Value),
    open: Option<Value>,
}

fn guarded() -> Vec<Guarded> {
    let without_wrong_count = FAULTS.split_last().map_or(&[][..], |(_, others)| others);
    vec![
        Guarded {
            hook: "on_authenticate",
            faults: without_wrong_count,
            failing: |fault| json!(["AUTH", fault]),
            fine: (json!(["AUTH", "fine"]), json!(["OK", "OK"])),
            open: None,
        },
        Guarded {
            hook: "on_access",
            faults: &FAULTS,
            failing: |fault| json!(["SUBSCRIBE", "a", fault]),
            fine: (json!(["SUBSCRIBE", "a"]), json!(["OK", 1])),
            open: Some(json!(["OK", 2])),
        },
        Guarded {
            hook: "on_publish",
            faults: &FAULTS,
            failing: |fault| json!(["PUBLISH", "news", fault]),
            fine: (json!(["PUBLISH", "news", "x"]), json!(["OK", 1])),
            open: Some(json!(["OK", 1])),
        },
        Guarded {
            hook: "on_deliver",
            faults: &FAULTS,
            failing: |fault| json!(["PUBLISH", "news", fault]),
            fine: (json!(["PUBLISH", "news", "x"]), json!(["OK", 1])),
            open: Some(json!(["OK", 1])),
        },
    ]
}

fn config_of(guarded: &Guarded, policy: &str) -> Value {
    let mut behaviours = faults(guarded.faults);
    if guarded.hook == "on_authenticate"
        && let Some(behaviours) = behaviours.as_array_mut()
    {
        behaviours.push(json!({"allow": true, "trigger": "fine"}));
    }
    json!({"policy": policy, "settings": {(guarded.hook): behaviours}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_policy_refuses_what_fails_and_nothing_else() -> Result<()> {
    for guarded in guarded() {
        let (hook, (fine, answer)) = (guarded.hook, &guarded.fine);
        let (server, _directory) = with_probe(&config_of(&guarded, "closed")).await?;
        let mut listener = server.client().await?;
        listener.call(json!(["SUBSCRIBE", "news"])).await?;
        let mut bystander = Bystander::on(&server).await?;
        for (failures, fault) in guarded.faults.iter().enumerate() {
            let work = async {
                let mut client = server.client().await?;
                until(&mut client, fine, answer).await?;
                let refused = client.call((guarded.failing)(fault)).await?;
                let (code, message, by) = refusal(&refused).context("it was not refused")?;
                ensure!(code == "UNAVAILABLE", "{code}: {message}");
                ensure!(message.contains("probe") && is_probe(by), "{message}, by {by}");
                until(&mut client, fine, answer).await
            };
            bystander.during(work).await.with_context(|| format!("{hook}, {fault}"))?;
            server.wait_for_logs("a plugin was rebuilt", failures + 1).await?;
        }
        bystander.check(hook)?;
        // Two names in one command: the call fails, and then the one about the second name.
        let calls = if hook == "on_access" { 2 } else { 1 };
        let logged = server.wait_for_logs("a plugin failed", calls * guarded.faults.len()).await?;
        for (fault, line) in guarded.faults.iter().zip(logged.into_iter().step_by(calls)) {
            let words = match *fault {
                "loop" => "more than its budget of 10 ms",
                "wrong_count" => "answered about position",
                // Whether time or memory runs out first depends on the machine.
                "alloc" => "it",
                _ => "it panicked",
            };
            let hook = hook.replace('_', "-");
            ensure!(line.contains(&format!("hook=\"{hook}\"")), "{hook}, {fault}: {line}");
            ensure!(line.contains(words), "{hook}, {fault}: {line}");
        }
        ensure!(
            server.log().contains("the probe was configured to panic"),
            "the panic message is not logged"
        );
        server.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_policy_skips_what_fails() -> Result<()> {
    for guarded in guarded() {
        let hook = guarded.hook;
        let (server, _directory) = with_probe(&config_of(&guarded, "open")).await?;
        let mut listener = server.client().await?;
        listener.call(json!(["SUBSCRIBE", "news"])).await?;
        let mut bystander = Bystander::on(&server).await?;
        for (failures, fault) in guarded.faults.iter().enumerate() {
            let work = async {
                let mut client = server.client().await?;
                let command = (guarded.failing)(fault);
                let answer = client.call(command.clone()).await?;
                match &guarded.open {
                    Some(expected) => ensure!(answer == *expected, "{command}: {answer}"),
                    // No other plugin can authenticate the client.
                    None => ensure!(
                        refusal(&answer).is_some_and(|it| it.0 == "NOAUTH" && it.2.is_empty()),
                        "{command}: {answer}"
                    ),
                }
                if let Some(payload) = command.get(2).filter(|_| command[0] == "PUBLISH") {
                    let came = listener.next_json().await?;
                    ensure!(came == json!(["message", "news", payload]), "{came} came");
                }
                Ok(())
            };
            bystander.during(work).await.with_context(|| format!("{hook}, {fault}"))?;
            // Until it is back it would be skipped, and the next fault would not happen.
            server.wait_for_logs("a plugin was rebuilt", failures + 1).await?;
        }
        bystander.check(hook)?;
        server.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_fails_on_connect_keeps_clients_out_or_lets_them_in() -> Result<()> {
    let of = FAULTS.split_last().map_or(&[][..], |(_, others)| others);
    for policy in ["closed", "open"] {
        let config = json!({"policy": policy, "settings": {"on_connect": faults(of)}});
        let (server, _directory) = with_probe(&config).await?;
        let mut bystander = Bystander::on(&server).await?;
        for (failures, fault) in of.iter().enumerate() {
            let work = async {
                match (policy, rejection(&server, &format!("/ws?{fault}")).await?) {
                    ("open", None) => {}
                    ("closed", Some((code, reason))) => {
                        ensure!(code == 4102, "closed with {code} ({reason})");
                        ensure!(reason.contains("probe@"), "the reason is {reason}");
                    }
                    (_, close) => bail!("closed with {close:?}"),
                }
                let began = Instant::now();
                while rejection(&server, "/ws").await?.is_some() {
                    ensure!(began.elapsed() < PATIENCE, "no client is admitted any more");
                }
                Ok(())
            };
            bystander.during(work).await.with_context(|| format!("{policy}, {fault}"))?;
            server.wait_for_logs("a plugin was rebuilt", failures + 1).await?;
        }
        bystander.check(&format!("on_connect, {policy}"))?;
        server.stop().await?;
    }
    Ok(())
}

/// The client is gone, so nothing is refused, and other clients are not affected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_fails_on_disconnect_affects_no_client() -> Result<()> {
    for fault in ["panic", "loop", "alloc"] {
        let config = json!({"policy": "open", "settings": {"on_disconnect": fault}});
        let (server, _directory) = with_probe(&config).await?;
        let mut bystander = Bystander::on(&server).await?;
        let work = async {
            for failures in 1..=3 {
                let mut client = server.client().await?;
                client.call(json!(["QUIT"])).await?;
                client.next_close().await?;
                server.wait_for_logs("a plugin was rebuilt", failures).await?;
            }
            Ok(())
        };
        bystander.during(work).await.with_context(|| fault.to_owned())?;
        bystander.check(&format!("on_disconnect, {fault}"))?;
        server.stop().await?;
    }
    Ok(())
}

/// At once the first time, and then after a delay that doubles.
#[tokio::test]
async fn a_plugin_that_keeps_failing_is_rebuilt_ever_more_slowly() -> Result<()> {
    const WAITS_MS: [&str; 7] = ["0", "10", "20", "40", "80", "160", "320"];
    let settings = json!({"on_publish": {"panic": true, "trigger": "panic"}});
    let (server, _directory) = with_probe(&json!({"settings": settings})).await?;
    for failures in 1..=WAITS_MS.len() {
        // Each is caused by another connection: one that causes several is isolated.
        let mut client = server.client().await?;
        until(&mut client, &json!(["PUBLISH", "a", "x"]), &json!(["OK", 0])).await?;
        let refused = client.call(json!(["PUBLISH", "a", "panic"])).await?;
        ensure!(refusal(&refused).is_some(), "it was answered {refused}");
        server.wait_for_logs("a plugin was rebuilt", failures).await?;
    }
    for (line, wait) in server.wait_for_logs("a plugin failed", 7).await?.iter().zip(WAITS_MS) {
        let is_right = line.split_whitespace().any(|word| word == format!("rebuilt_in_ms={wait}"));
        ensure!(is_right, "the wait should be {wait} ms: {line}");
    }
    server.stop().await
}

/// Enough time to use up all the memory.
#[tokio::test]
async fn a_plugin_that_takes_memory_meets_its_limit() -> Result<()> {
    let (server, _directory) = with_probe(&json!({
        "memory_bytes_max": 32 << 20,
        "call_budget_ms": 10_000,
        "settings": {"on_publish": {"alloc": true, "trigger": "alloc"}},
    }))
    .await?;
    let mut client = server.client().await?;
    let refused = client.call(json!(["PUBLISH", "a", "alloc"])).await?;
    ensure!(refusal(&refused).is_some_and(|it| it.0 == "UNAVAILABLE"), "answered {refused}");
    let line = server.wait_for_log("a plugin failed").await?;
    ensure!(line.contains("ran out of memory"), "{line}");
    until(&mut client, &json!(["PUBLISH", "a", "x"]), &json!(["OK", 0])).await?;
    server.stop().await
}

/// One counter above its limit is refused, until others expire. A full name space is searched for
/// expired ones once a second.
#[tokio::test]
async fn a_plugin_that_counts_too_much_meets_its_limit() -> Result<()> {
    let count = |key: &str, ttl_ms: u32| json!({"count_for": {"key": key, "ttl_ms": ttl_ms}, "channels": [key]});
    let counters = [count("long", 3_600_000), count("short", 1_500), count("new", 3_600_000)];
    let directory = components::directory()?;
    let probe = components::built("test/probe")?;
    let settings = json!({"on_publish": counters});
    components::install(directory.path(), "10-probe", &probe, &settings)?;
    let config = "limits.counters_max = 2";
    let plugins = Some(directory.path().to_owned());
    let server = Launch { plugins, ..Launch::with_config(config) }.start().await?;
    let mut client = server.client().await?;
    client.call(json!(["PSUBSCRIBE", "*"])).await?;
    let mut count = async |key: &str| -> Result<String> {
        ensure!(client.call(json!(["PUBLISH", key, ""])).await? == json!(["OK", 1]));
        let message = client.next_json().await?;
        Ok(message.get(3).and_then(Value::as_str).context("no payload")?.to_owned())
    };
    ensure!(count("long").await? == "=1");
    let began = Instant::now();
    ensure!(count("short").await? == "=1");
    ensure!(count("new").await? == "=full");
    // Existing counters still count.
    ensure!(count("long").await? == "=2");
    loop {
        match count("new").await?.as_str() {
            "=full" => ensure!(began.elapsed() < PATIENCE, "nothing was forgotten"),
            "=1" => break,
            other => bail!("the new counter is {other}"),
        }
    }
    ensure!(began.elapsed() > Duration::from_millis(1_500), "it was forgotten too early");
    ensure!(count("short").await? == "=full");
    ensure!(count("new").await? == "=2");
    ensure!(count("long").await? == "=3");
    drop(client);
    server.stop().await
}

// ---- what holds where nothing is configured --------------------------------------

/// The probe has every hook, so it guards something.
#[tokio::test]
async fn what_guards_is_closed_by_default() -> Result<()> {
    let settings = json!({"on_publish": "panic"});
    let (server, _directory) = with_probe(&json!({"settings": settings})).await?;
    let answer = server.client().await?.call(json!(["PUBLISH", "a", "x"])).await?;
    ensure!(refusal(&answer).is_some_and(|it| it.0 == "UNAVAILABLE"), "answered {answer}");
    let line = server.wait_for_log("a plugin failed").await?;
    ensure!(line.contains("policy=Closed"), "{line}");
    server.stop().await
}

/// It starts with less memory than this, and cannot receive a payload as large.
const MEMORY_BYTES_MAX: usize = 4 << 20;

#[tokio::test]
async fn what_only_changes_messages_and_declares_nothing_is_open_by_default() -> Result<()> {
    let config = json!({"memory_bytes_max": MEMORY_BYTES_MAX, "settings": {
        "rules": [{"channels": ["*"], "regex": "secret", "action": "mask"}],
        "payload_bytes_max": 2 * MEMORY_BYTES_MAX,
        "call_ms_max": 10_000,
    }});
    let component = components::declaring(components::built("redact")?, "{}");
    let (server, _directory) = with_plugin("redact", component, &config).await?;
    let mut client = server.client().await?;
    client.call(json!(["SUBSCRIBE", "a"])).await?;
    ensure!(client.call(json!(["PUBLISH", "a", "a secret"])).await? == json!(["OK", 1]));
    ensure!(client.next_json().await? == json!(["message", "a", "a ***"]));
    let long = "x".repeat(MEMORY_BYTES_MAX);
    ensure!(client.call(json!(["PUBLISH", "a", long])).await? == json!(["OK", 1]));
    ensure!(client.next_json().await? == json!(["message", "a", long]), "it did not pass as it is");
    let line = server.wait_for_log("a plugin failed").await?;
    ensure!(line.contains("policy=Open"), "{line}");
    server.stop().await
}

/// Lines that look like a panic, of a call that does not fail, are logged like others.
#[tokio::test]
async fn what_looks_like_a_panic_and_is_none_is_logged() -> Result<()> {
    let directory = components::directory()?;
    let text = "thread 'main' panicked at here.rs:1:1:\nfirst\nsecond";
    let settings = json!({"on_publish": {"print": text}});
    components::install(
        directory.path(),
        "10-probe",
        &components::built("test/probe")?,
        &settings,
    )?;
    let plugins = Some(directory.path().to_owned());
    let server = Launch { plugins, ..Launch::default() }.start().await?;
    let mut client = server.client().await?;
    for calls in 1..=2 {
        ensure!(client.call(json!(["PUBLISH", "a", "x"])).await? == json!(["OK", 0]));
        for line in text.lines() {
            // Standard output and standard error.
            let lines = server.wait_for_logs(line, 2 * calls).await?;
            ensure!(lines.iter().all(|line| line.contains(" INFO plugin")), "{lines:?}");
        }
    }
    server.stop().await
}
