//! When the rules change, existing subscriptions are checked again: those that the new rules refuse
//! end with a notice, and everything else continues.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::support::admin::Operator;
use crate::support::server::{Launch, Server};
use crate::support::websocket::{BINARY, Client, Frame, RawClient};
use crate::support::{PATIENCE, components, within};

const SWAPPED: &str = "a plugin was swapped";
const CHECKED: &str = "existing subscriptions were checked again";

/// Settings of acl that permit every user to subscribe to these, and to publish anywhere.
fn listen_to(patterns: &[&str]) -> Value {
    json!({"rules": [{"users": ["*"], "subscribe": patterns, "publish": ["*"]}]})
}

/// Replaces a plugin's settings.
fn configure(directory: &Path, name: &str, settings: &Value) -> Result<()> {
    components::configure(directory, name, &json!({"settings": settings}))
}

/// A server with a plugin with settings that can be changed.
async fn guarded(
    config: &str,
    name: &str,
    component: &str,
    settings: &Value,
) -> Result<(Server, TempDir)> {
    let directory = components::directory()?;
    components::install(directory.path(), name, &components::built(component)?, settings)?;
    let plugins = Some(directory.path().to_owned());
    let server = Launch { plugins, ..Launch::with_config(config) }.start().await?;
    server.wait_for_log("changes of files are watched").await?;
    Ok((server, directory))
}

/// A client of the RESP listener that compares bytes.
struct Resp(TcpStream);

impl Resp {
    async fn connect(address: SocketAddr) -> Result<Resp> {
        Ok(Resp(TcpStream::connect(address).await?))
    }

    async fn say(&mut self, command: &[&[u8]]) -> Result<()> {
        let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
        for argument in command {
            bytes.extend(format!("${}\r\n", argument.len()).bytes());
            bytes.extend_from_slice(argument);
            bytes.extend_from_slice(b"\r\n");
        }
        Ok(self.0.write_all(&bytes).await?)
    }

    /// The next bytes must be these; blanks stand for ends of lines, and `\xff` for one byte.
    async fn expect(&mut self, expected: &str) -> Result<()> {
        let escapes = 3 * expected.matches("\\x").count();
        let mut bytes = vec![0; expected.replace(' ', "\r\n").len() - escapes];
        within(PATIENCE, "bytes", self.0.read_exact(&mut bytes)).await??;
        let came = bytes.escape_ascii().to_string().replace("\\r\\n", " ");
        ensure!(came == expected, "expected {expected}, but {came} came");
        Ok(())
    }
}

/// A notice without its text.
fn notice(push: &Value) -> Value {
    let mut push = push.clone();
    if let Some(body) = push.pointer_mut("/1").and_then(Value::as_object_mut) {
        body.remove("message");
        body.remove("by");
    }
    push
}

fn unsubscribed(channels: &[&str], patterns: &[&str], listening: u64) -> Value {
    json!(["unsubscribed", {
        "channels": channels, "patterns": patterns, "listening": listening, "code": "NOPERM",
    }])
}

#[tokio::test]
async fn what_new_rules_refuse_ends_with_a_notice_in_every_protocol() -> Result<()> {
    let (server, plugins) = guarded("", "10-acl", "acl", &listen_to(&["*"])).await?;
    let mut json = server.client().await?;
    ensure!(json.call(json!(["SUBSCRIBE", "a.1", "b.1"])).await? == json!(["OK", 2]));
    ensure!(json.call(json!(["PSUBSCRIBE", "a.*", "b.*"])).await? == json!(["OK", 4]));
    let mut resp2 = Resp::connect(server.resp_address().await?).await?;
    resp2.say(&[b"SUBSCRIBE", b"a.1", b"b.1"]).await?;
    resp2.expect("*3 $9 subscribe $3 a.1 :1 *3 $9 subscribe $3 b.1 :2 ").await?;
    resp2.say(&[b"PSUBSCRIBE", b"b.*"]).await?;
    resp2.expect("*3 $10 psubscribe $3 b.* :3 ").await?;
    let mut shard = Resp::connect(server.resp_address().await?).await?;
    shard.say(&[b"SSUBSCRIBE", b"b.s"]).await?;
    shard.expect("*3 $10 ssubscribe $3 b.s :1 ").await?;
    let upgrade = crate::support::websocket::UPGRADE
        .replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: resp\r\n\r\n");
    let mut framed = RawClient::dial(server.address().await?).await?;
    framed.send(upgrade).await?;
    ensure!(framed.response_head().await?.0 == 101);
    framed.send(Frame::new(BINARY, "SUBSCRIBE a.1 b.1\r\n").bytes()).await?;
    let came = framed.next_frame().await?.context("an acknowledgement")?;
    ensure!(came.payload.ends_with(b":2\r\n"), "{came:?}");

    configure(plugins.path(), "10-acl", &listen_to(&["a.*"]))?;
    let line = server.wait_for_log(CHECKED).await?;
    ensure!(line.contains("plugin=acl@") && line.contains("asked=10 ended=6"), "{line}");

    let push = json.next_json().await?;
    ensure!(notice(&push) == unsubscribed(&["b.1"], &[], 3), "{push}");
    let by = push.pointer("/1/by").and_then(Value::as_str).context("it names the plugin")?;
    ensure!(by.starts_with("acl@"), "{by}");
    ensure!(push.pointer("/1/message").is_some(), "{push}");
    let push = json.next_json().await?;
    ensure!(notice(&push) == unsubscribed(&[], &["b.*"], 2), "{push}");
    resp2.expect("*3 $11 unsubscribe $3 b.1 :2 *3 $12 punsubscribe $3 b.* :1 ").await?;
    shard.expect("*3 $12 sunsubscribe $3 b.s :0 ").await?;
    let came = framed.next_frame().await?.context("a notice")?;
    ensure!(came.opcode == BINARY, "{came:?}");
    ensure!(came.payload == b"*3\r\n$11\r\nunsubscribe\r\n$3\r\nb.1\r\n:1\r\n", "{came:?}");

    // No message arrives on subscriptions that ended, and all on the others.
    let mut publisher = server.client().await?;
    ensure!(publisher.call(json!(["PUBLISH", "b.1", "x"])).await? == json!(["OK", 0]));
    ensure!(publisher.call(json!(["PUBLISH", "a.1", "y"])).await? == json!(["OK", 4]));
    ensure!(json.next_json().await? == json!(["message", "a.1", "y"]));
    ensure!(json.next_json().await? == json!(["pmessage", "a.*", "a.1", "y"]));
    resp2.expect("*3 $7 message $3 a.1 $1 y ").await?;
    let came = framed.next_frame().await?.context("a message")?;
    ensure!(came.payload == b"*3\r\n$7\r\nmessage\r\n$3\r\na.1\r\n$1\r\ny\r\n", "{came:?}");
    // Counts continue from there. Names that ended may be unsubscribed from, and are refused.
    resp2.say(&[b"UNSUBSCRIBE"]).await?;
    resp2.expect("*3 $11 unsubscribe $3 a.1 :0 ").await?;
    resp2.say(&[b"PING"]).await?;
    resp2.expect("+PONG ").await?;
    ensure!(json.call(json!(["UNSUBSCRIBE", "b.1"])).await? == json!(["OK", 2]));
    let refused = json.call(json!(["SUBSCRIBE", "b.1"])).await?;
    ensure!(refused.pointer("/1/code") == Some(&json!("NOPERM")), "{refused}");
    server.stop().await
}

#[tokio::test]
async fn resp3_has_the_notice_as_a_push() -> Result<()> {
    let (server, plugins) = guarded("", "10-acl", "acl", &listen_to(&["*"])).await?;
    let mut client = Resp::connect(server.resp_address().await?).await?;
    client.say(&[b"HELLO", b"3"]).await?;
    client.say(&[b"SUBSCRIBE", b"b"]).await?;
    let ack = b">3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:1\r\n";
    within(PATIENCE, "an acknowledgement", async {
        let mut came = Vec::new();
        while !came.ends_with(ack) {
            ensure!(client.0.read_buf(&mut came).await? > 0, "{}", came.escape_ascii());
        }
        Ok(())
    })
    .await??;
    configure(plugins.path(), "10-acl", &listen_to(&["a"]))?;
    client.expect(">3 $11 unsubscribe $1 b :0 ").await?;
    server.stop().await
}

/// A plugin learns what is a recheck: neither a new subscription nor a look at a channel is one.
#[tokio::test]
async fn a_plugin_distinguishes_what_is_checked_again() -> Result<()> {
    let (server, plugins) = guarded("", "10-probe", "test/probe", &json!({})).await?;
    let mut client = server.client().await?;
    ensure!(client.call(json!(["SUBSCRIBE", "a"])).await? == json!(["OK", 1]));
    configure(plugins.path(), "10-probe", &json!({"on_access": "refuse_recheck"}))?;
    let push = client.next_json().await?;
    ensure!(notice(&push) == unsubscribed(&["a"], &[], 0), "{push}");
    ensure!(client.call(json!(["SUBSCRIBE", "a"])).await? == json!(["OK", 1]));
    let counts = client.call(json!(["PUBSUB", "NUMSUB", "a"])).await?;
    ensure!(counts == json!(["OK", {"a": 1}]), "{counts}");
    server.stop().await
}

/// A new plugin is called for existing subscriptions, and so is one that a rollback restores.
#[tokio::test]
async fn a_plugin_that_is_added_or_rolled_back_is_called_too() -> Result<()> {
    let plugins = components::directory()?;
    let launch = Launch { plugins: Some(plugins.path().to_owned()), ..Launch::default() };
    let server = launch.start().await?;
    server.wait_for_log("changes of files are watched").await?;
    let mut client = server.client().await?;
    client.call(json!(["SUBSCRIBE", "a", "b", "c"])).await?;
    let acl = components::built("acl")?;
    components::install(plugins.path(), "10-acl", &acl, &listen_to(&["b", "c"]))?;
    ensure!(notice(&client.next_json().await?) == unsubscribed(&["a"], &[], 2));
    configure(plugins.path(), "10-acl", &listen_to(&["*"]))?;
    server.wait_for_logs(CHECKED, 2).await?;
    ensure!(client.call(json!(["SUBSCRIBE", "a"])).await? == json!(["OK", 3]));
    let operator = Operator::of(&server).await?;
    operator.say(&["plugin", "rollback", "10-acl"])?;
    ensure!(notice(&client.next_json().await?) == unsubscribed(&["a"], &[], 2));
    server.wait_for_logs(CHECKED, 3).await?;
    let shown = operator.json(&["plugin", "show", "10-acl"])?;
    let rechecks = shown.pointer("/rechecks").context("it is shown")?;
    ensure!(*rechecks == json!({"running": 0, "asked": 8, "ended": 2, "unanswered": 0}), "{shown}");
    server.stop().await
}

/// Names that are not UTF-8 cannot be passed to a plugin.
#[tokio::test]
async fn names_that_are_no_text_end_when_a_plugin_comes_that_sees_names() -> Result<()> {
    let plugins = components::directory()?;
    let launch = Launch { plugins: Some(plugins.path().to_owned()), ..Launch::default() };
    let server = launch.start().await?;
    server.wait_for_log("changes of files are watched").await?;
    let mut json = server.client().await?;
    let name = json!({"base64": "/w=="});
    json.call(json!(["SUBSCRIBE", name, "text"])).await?;
    let mut resp = Resp::connect(server.resp_address().await?).await?;
    resp.say(&[b"PSUBSCRIBE", b"\xff*"]).await?;
    let mut ack = [0; 33];
    within(PATIENCE, "an acknowledgement", resp.0.read_exact(&mut ack)).await??;
    // It has hooks for messages only.
    let redact = components::built("redact")?;
    let masks =
        json!({"rules": [{"channels": ["*"], "regex": "x", "action": "mask", "with": "y"}]});
    components::install(plugins.path(), "20-redact", &redact, &masks)?;
    let push = json.next_json().await?;
    let mut expected = unsubscribed(&[], &[], 1);
    expected[1]["channels"] = json!([name]);
    ensure!(notice(&push) == expected, "{push}");
    resp.expect("*3 $12 punsubscribe $2 \\xff* :0 ").await?;
    ensure!(json.call(json!(["UNSUBSCRIBE", "text"])).await? == json!(["OK", 0]));
    server.stop().await
}

/// A recheck takes no tokens and increments no counter, and an exceeded limit ends nothing.
#[tokio::test]
async fn a_recheck_counts_nothing_against_a_client() -> Result<()> {
    let limit = |burst: u64| {
        json!({"limits": [{
            "name": "names", "of": "subscribes", "per": "connection",
            "rate": 1, "every_ms": 86_400_000, "burst": burst,
        }]})
    };
    let (server, plugins) = guarded("", "10-rate-limit", "rate-limit", &limit(4)).await?;
    let mut client = server.client().await?;
    ensure!(client.call(json!(["SUBSCRIBE", "a", "b", "c"])).await? == json!(["OK", 3]));
    for changes in 1..=3 {
        configure(plugins.path(), "10-rate-limit", &limit(4 + changes))?;
        server.wait_for_logs(CHECKED, changes as usize).await?;
    }
    // Of seven, three are used.
    let names = ["d", "e", "f", "g"];
    let subscribe: Vec<_> = ["SUBSCRIBE"].iter().chain(&names).collect();
    ensure!(client.call(json!(subscribe)).await? == json!(["OK", 7]));
    let refused = client.call(json!(["SUBSCRIBE", "h"])).await?;
    ensure!(refused.pointer("/1/code") == Some(&json!("LIMIT")), "{refused}");
    // With an empty bucket, all stays.
    configure(plugins.path(), "10-rate-limit", &limit(1))?;
    server.wait_for_logs(CHECKED, 4).await?;
    ensure!(client.call(json!(["UNSUBSCRIBE", "a"])).await? == json!(["OK", 6]));

    // The probe counts its calls, and shows how many there were.
    let probe = components::built("test/probe")?;
    let counts = json!({
        "on_access": {"count": "n", "channels": ["n.*"]}, "on_publish": {"count": "n"},
    });
    components::install(plugins.path(), "20-probe", &probe, &counts)?;
    server.wait_for_logs(CHECKED, 5).await?;
    Operator::of(&server).await?.ask("DELETE", "/v1/plugins/10-rate-limit", None)?;
    server.wait_for_log("a plugin was removed").await?;
    ensure!(client.call(json!(["SUBSCRIBE", "n.1", "n.2"])).await? == json!(["OK", 8]));
    components::write_atomically(
        &components::path(plugins.path(), "20-probe"),
        &components::stamped(probe, 1)?,
    )?;
    server.wait_for_logs(CHECKED, 6).await?;
    client.send(Message::text(r#"["PUBLISH","b","x"]"#)).await?;
    ensure!(client.next_json().await? == json!(["message", "b", "x=3"]), "two names, one message");
    // A refusal by a rate limit, or a temporary one, ends nothing either.
    for (number, code) in ["LIMIT", "UNAVAILABLE"].into_iter().enumerate() {
        let refuses = json!({"on_access": {"refuse": {"code": code, "message": "no"}}});
        configure(plugins.path(), "20-probe", &refuses)?;
        let line = server.wait_for_logs(CHECKED, 7 + number).await?;
        ensure!(line.last().is_some_and(|line| line.contains("asked=8 ended=0")), "{line:?}");
    }
    server.stop().await
}

/// A plugin that cannot answer about one connection ends nothing, is not parked for it, and answers
/// about the others.
#[tokio::test]
async fn what_the_plugin_cannot_answer_about_stays() -> Result<()> {
    let config = "plugins.rebuild_backoff_ms = 1\nplugins.rebuild_backoff_max_ms = 1\n";
    let (server, plugins) = guarded(config, "10-probe", "test/probe", &json!({})).await?;
    let mut clients = Vec::new();
    for number in 0..20 {
        let mut client = server.client().await?;
        client.call(json!(["SUBSCRIBE", "no", format!("yes.{number}")])).await?;
        clients.push(client);
    }
    let mut odd = server.client().await?;
    odd.call(json!(["SUBSCRIBE", "no", "boom"])).await?;
    let refuse = json!({"refuse": {"code": "NOPERM", "message": "m"}, "channels": ["no"]});
    let settings = json!({"on_access": [{"panic": true, "trigger": "boom"}, refuse]});
    configure(plugins.path(), "10-probe", &settings)?;
    let line = server.wait_for_log("could not decide about all of them").await?;
    ensure!(line.contains("ended=20") && line.contains("unanswered=2"), "{line}");
    for client in &mut clients {
        ensure!(notice(&client.next_json().await?) == unsubscribed(&["no"], &[], 1));
    }
    ensure!(!server.log().contains("a plugin was parked"));
    ensure!(odd.call(json!(["UNSUBSCRIBE", "boom"])).await? == json!(["OK", 1]));
    server.stop().await
}

/// Reads until the message `end`: each message on `kept` must arrive, and none on `lost` while it
/// is not subscribed. Whenever that subscription ends, it subscribes again. Returns how often it
/// ended.
async fn listen(mut client: Client) -> Result<usize> {
    let (mut next, mut listens, mut notices) = (0, true, 0);
    loop {
        let push = client.next_json().await?;
        let text = |place: usize| push.get(place).and_then(Value::as_str).unwrap_or_default();
        match (text(0), text(1), text(2)) {
            ("message", "kept", "end") => return Ok(notices),
            ("message", "kept", number) => {
                ensure!(number == next.to_string(), "{number} came, not {next}");
                next += 1;
            }
            ("message", "lost", _) => ensure!(listens, "it had ended: {push}"),
            ("unsubscribed", ..) => {
                ensure!(notice(&push) == unsubscribed(&["lost"], &[], 1), "{push}");
                ensure!(listens, "it had ended: {push}");
                (listens, notices) = (false, notices + 1);
                client.send(Message::text(r#"[1,"SUBSCRIBE","lost"]"#)).await?;
            }
            ("", "OK", _) => listens = true,
            ("", "ERR", _) => {
                client.send(Message::text(r#"[1,"SUBSCRIBE","lost"]"#)).await?;
            }
            _ => anyhow::bail!("{push} came"),
        }
    }
}

/// Rules alternate while messages flow: a subscription that both versions permit misses no message,
/// and one that one version forbids is either active or was reported as ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quick_swaps_lose_nothing_that_is_allowed() -> Result<()> {
    const LISTENERS: usize = 10;
    let config = "limits.commands_per_second_max = 1000000\n";
    let (server, plugins) = guarded(config, "10-acl", "acl", &listen_to(&["*"])).await?;
    let mut listeners = JoinSet::new();
    for _ in 0..LISTENERS {
        let mut client = server.client().await?;
        client.call(json!(["SUBSCRIBE", "kept", "lost"])).await?;
        listeners.spawn(listen(client));
    }
    let mut publisher = server.client().await?;
    let mut number = 0;
    for change in 1..=7 {
        let rules: &[&str] = if change % 2 == 1 { &["kept"] } else { &["*"] };
        configure(plugins.path(), "10-acl", &listen_to(rules))?;
        loop {
            let answer = publisher.call(json!(["PUBLISH", "kept", number.to_string()])).await?;
            ensure!(answer == json!(["OK", LISTENERS]), "{number}: {answer}");
            number += 1;
            let lost = publisher.call(json!(["PUBLISH", "lost", "x"])).await?;
            let swaps = server.log().matches(SWAPPED).count();
            // In the end, all are subscribed.
            if swaps >= change && (change < 7 || lost == json!(["OK", 0])) {
                break;
            }
        }
    }
    publisher.call(json!(["PUBLISH", "kept", "end"])).await?;
    while let Some(listened) = listeners.join_next().await {
        ensure!(listened?? > 0, "nothing ended");
    }
    server.stop().await
}

/// Subscribes and unsubscribes until it is over. Every count that the server reports must follow
/// from what it reported before.
#[expect(clippy::indexing_slicing, reason = "what is not there fails the test")]
async fn come_and_go(
    mut client: Resp,
    number: usize,
    is_over: Arc<AtomicBool>,
) -> Result<[usize; 2]> {
    let names: Vec<String> =
        (0..20).map(|name| format!("{}{number}.{name}", ["a", "b"][name % 2])).collect();
    let mut held = HashSet::new();
    let (mut notices, mut refusals, mut round) = (0, 0, 0);
    while !is_over.load(Ordering::Relaxed) {
        round += 1;
        let mut words: Vec<&[u8]> = vec![b"SUBSCRIBE"];
        words.extend(names.iter().map(String::as_bytes));
        client.say(&words).await?;
        let mut expected = 0;
        if round % 3 == 0 {
            client.say(&[b"UNSUBSCRIBE", names[0].as_bytes(), names[1].as_bytes()]).await?;
            expected = 2;
        }
        let is_all = round % 7 == 0;
        if is_all {
            client.say(&[b"UNSUBSCRIBE"]).await?;
        }
        client.say(&[b"PING"]).await?;
        loop {
            match frame(&mut client.0).await? {
                Frames::Pong => break,
                Frames::Error => refusals += 1,
                Frames::Ack { kind, name, count } => {
                    if kind == "subscribe" {
                        held.insert(name);
                    } else {
                        let was_held = held.remove(&name);
                        // A notice concerns a name that is held; every other reply is to one of the
                        // commands.
                        ensure!(was_held || is_all || expected > 0, "{kind} {name} {count}");
                        expected -= usize::from(!was_held && !is_all);
                        let is_requested = is_all || *name == names[0] || *name == names[1];
                        notices += usize::from(!is_requested);
                    }
                    ensure!(held.len() == count, "{count}, and not {}", held.len());
                }
            }
        }
    }
    Ok([notices, refusals])
}

/// Clients that subscribe and unsubscribe during a recheck receive correct counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_change_what_they_listen_to_meanwhile_keep_their_counts() -> Result<()> {
    let slow = "plugins.recheck_names_per_second_max = 2000\n";
    let (server, plugins) = guarded(slow, "10-acl", "acl", &listen_to(&["*"])).await?;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for number in 0..8 {
        let client = Resp::connect(server.resp_address().await?).await?;
        clients.spawn(come_and_go(client, number, is_over.clone()));
    }
    for change in 1..=8 {
        let rules: &[&str] = if change % 2 == 1 { &["a*"] } else { &["*"] };
        configure(plugins.path(), "10-acl", &listen_to(rules))?;
        server.wait_for_logs(SWAPPED, change).await?;
    }
    is_over.store(true, Ordering::Relaxed);
    let mut all = [0, 0];
    while let Some(client) = clients.join_next().await {
        let [notices, refusals] = client??;
        all = [all[0] + notices, all[1] + refusals];
    }
    ensure!(all.iter().all(|count| *count > 0), "{all:?}: notices and refusals");
    server.stop().await
}

/// What a RESP2 client receives.
enum Frames {
    Ack { kind: String, name: String, count: usize },
    Error,
    Pong,
}

async fn line(stream: &mut TcpStream) -> Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(within(PATIENCE, "a byte", stream.read_u8()).await??);
    }
    line.truncate(line.len() - 2);
    Ok(String::from_utf8(line)?)
}

async fn bulk(stream: &mut TcpStream) -> Result<String> {
    let head = line(stream).await?;
    ensure!(head.starts_with('$'), "a text begins with {head}");
    if head == "$-1" { Ok(String::new()) } else { line(stream).await }
}

async fn frame(stream: &mut TcpStream) -> Result<Frames> {
    let head = line(stream).await?;
    match &*head {
        "+PONG" => Ok(Frames::Pong),
        "*2" => {
            ensure!(bulk(stream).await? == "pong" && bulk(stream).await?.is_empty());
            Ok(Frames::Pong)
        }
        "*3" => {
            let (kind, name) = (bulk(stream).await?, bulk(stream).await?);
            let count = line(stream).await?.trim_start_matches(':').parse()?;
            Ok(Frames::Ack { kind, name, count })
        }
        _ if head.starts_with('-') => Ok(Frames::Error),
        _ => anyhow::bail!("a frame begins with {head}"),
    }
}

/// 100,000 subscriptions, half of them refused, while other clients are served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_subscriptions_are_checked_in_seconds() -> Result<()> {
    const CLIENTS: usize = 100;
    const NAMES: usize = 1_000;
    let (server, plugins) = guarded("", "10-acl", "acl", &listen_to(&["*"])).await?;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = server.client().await?;
        let name = |name: usize| format!("{}.{number}.{name}", ["a", "b"][name % 2]);
        let verb = ["SUBSCRIBE".to_owned()].into_iter();
        let subscribe: Vec<_> = verb.chain((0..NAMES).map(name)).collect();
        ensure!(client.call(json!(subscribe)).await? == json!(["OK", NAMES]));
        clients.push(client);
    }
    let mut bystander = server.client().await?;
    bystander.call(json!(["SUBSCRIBE", "a.bystander"])).await?;
    let mut before = Vec::new();
    for _ in 0..1_000 {
        let requested = Instant::now();
        bystander.call(json!(["PING"])).await?;
        bystander.send(Message::text(r#"["PUBLISH","a.bystander","x"]"#)).await?;
        bystander.next_json().await?;
        before.push(requested.elapsed());
    }
    let began = Instant::now();
    configure(plugins.path(), "10-acl", &listen_to(&["a.*"]))?;
    let mut latencies = Vec::new();
    let mut checked = Box::pin(server.wait_for_log(CHECKED));
    let line = loop {
        let requested = Instant::now();
        tokio::select! {
            biased;
            line = &mut checked => break line?,
            echo = bystander.call(json!(["PING"])) => ensure!(echo? == json!(["OK", "PONG"])),
        }
        bystander.send(Message::text(r#"["PUBLISH","a.bystander","x"]"#)).await?;
        ensure!(bystander.next_json().await? == json!(["message", "a.bystander", "x"]));
        latencies.push(requested.elapsed());
    };
    drop(checked);
    let took = began.elapsed();
    println!("{line}\n{took:?}");
    for (when, mut latencies) in [("before", before), ("meanwhile", latencies)] {
        latencies.sort_unstable();
        let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize);
        println!("a bystander waited {:?} (p50), {:?} (p99) {when}", at(0.5), at(0.99));
    }
    ensure!(line.contains("asked=100001 ended=50000"), "{line}");
    ensure!(took < Duration::from_secs(40), "{took:?}, where 5 s are meant");
    for (number, client) in clients.iter_mut().enumerate() {
        let mut ended = 0;
        while ended < NAMES / 2 {
            let push = client.next_json().await?;
            let channels = push.pointer("/1/channels").and_then(Value::as_array);
            for channel in channels.context("a notice")? {
                let prefix = format!("b.{number}.");
                ensure!(channel.as_str().is_some_and(|name| name.starts_with(&prefix)), "{push}");
                ended += 1;
            }
        }
        ensure!(client.call(json!(["UNSUBSCRIBE", "x"])).await? == json!(["OK", NAMES / 2]));
    }
    server.stop().await
}
