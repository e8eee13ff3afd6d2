//! `switchyard sub`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::{command, in_a_terminal, listener, outcome, untimed};
use crate::support::components;
use crate::support::process::{Pipe, Process};
use crate::support::server::Launch;

#[tokio::test]
async fn programs_read_one_object_a_line() -> Result<()> {
    let server = Launch::default().start().await?;
    let words = ["sub", "news", "user.*", "--channel", "a*b", "--pattern", "plain"];
    let process = listener(&server, &[&words[..], &["--count", "5"]].concat()).await?;
    let mut publisher = server.client().await?;
    for (channel, payload) in [
        (json!("news"), json!("hello\u{1b}[31m\n")),
        (json!("user.1"), json!({ "base64": "/w==" })),
        // With --channel this is a channel, not a pattern.
        (json!("aXb"), json!("unknown")),
        (json!("a*b"), json!("")),
        (json!("plain"), json!("by pattern")),
        (json!("news"), json!("last")),
        (json!("news"), json!("one too many")),
    ] {
        publisher.call(json!(["PUBLISH", channel, payload])).await?;
    }
    let (lines, _) = outcome(process, 0).await?;
    assert_eq!(
        untimed(&lines)?,
        [
            json!({ "channel": "news", "payload": "hello\u{1b}[31m\n" }),
            json!({ "pattern": "user.*", "channel": "user.1", "payload": { "base64": "/w==" } }),
            json!({ "channel": "a*b", "payload": "" }),
            json!({ "pattern": "plain", "channel": "plain", "payload": "by pattern" }),
            json!({ "channel": "news", "payload": "last" }),
        ]
    );
    server.stop().await
}

/// A published message cannot control a person's terminal.
#[tokio::test]
async fn a_person_sees_colours_and_nothing_that_was_published_as_such() -> Result<()> {
    let server = Launch::default().start().await?;
    let url = server.url().await?;
    let mut publisher = server.client().await?;
    for (no_color, extra) in [(false, &[][..]), (true, &[]), (false, &["--json"])] {
        let mut run = command(&url, &[&["sub", "news", "--count", "1"], extra].concat());
        if no_color {
            run.env("NO_COLOR", "1");
        }
        let process = Process::start("sub", &mut in_a_terminal(&run)?)?;
        // In a terminal both outputs are one.
        process.line_with(Pipe::Stdout, "listening").await?;
        publisher.call(json!(["PUBLISH", "news", "red \u{1b}[31m \u{9b}2J"])).await?;
        let (lines, _) = outcome(process, 0).await?;
        let line = lines.last().context("it showed nothing")?.trim_end();
        if !extra.is_empty() {
            let object = untimed(&[line.to_owned()])?;
            assert_eq!(
                object,
                [json!({ "channel": "news", "payload": "red \u{1b}[31m \u{9b}2J" })]
            );
            continue;
        }
        ensure!(line.ends_with(r"red \u{1b}[31m \u{9b}2J"), "it shows {line:?}");
        ensure!(line.contains('\u{1b}') != no_color, "NO_COLOR is {no_color}: {line:?}");
        let mut screen = vt100::Parser::new(24, 80, 0);
        screen.process(line.as_bytes());
        let shown = screen.screen().contents();
        let (time, rest) = shown.split_once(' ').context("no time")?;
        ensure!(time.len() == "12:34:56.789".len(), "no time in {shown:?}");
        ensure!(rest.starts_with("news red"), "it shows {shown:?}");
        let channel = screen.screen().cell(0, 13).context("no cell")?.fgcolor();
        ensure!((channel == vt100::Color::Default) == no_color, "the channel is {channel:?}");
    }
    server.stop().await
}

/// A subscription that new rules end does not end the others.
#[tokio::test]
async fn it_says_when_new_rules_end_a_subscription() -> Result<()> {
    let plugins = components::directory()?;
    let listen_to = |patterns: &[&str]| json!({"rules": [{"users": ["*"], "subscribe": patterns, "publish": ["*"]}]});
    let acl = components::built("acl")?;
    components::install(plugins.path(), "10-acl", &acl, &listen_to(&["*"]))?;
    let launch = Launch { plugins: Some(plugins.path().to_owned()), ..Launch::default() };
    let server = launch.start().await?;
    server.wait_for_log("changes of files are watched").await?;
    let process = listener(&server, &["sub", "kept", "user.*"]).await?;
    components::install(plugins.path(), "10-acl", &acl, &listen_to(&["kept"]))?;
    let line = process.line_with(Pipe::Stderr, "no longer listening").await?;
    ensure!(line.contains("to user.*: NOPERM") && line.contains("[acl@"), "{line}");
    let mut publisher = server.client().await?;
    publisher.call(json!(["PUBLISH", "kept", "x"])).await?;
    process.line_with(Pipe::Stdout, "\"x\"").await?;
    components::install(plugins.path(), "10-acl", &acl, &listen_to(&["other"]))?;
    process.line_with(Pipe::Stderr, "to kept: NOPERM").await?;
    let (lines, _) = outcome(process, 1).await?;
    assert_eq!(lines.len(), 1);
    server.stop().await
}

#[tokio::test]
async fn ctrl_c_and_sigterm_end_it_in_good_order() -> Result<()> {
    let server = Launch::with_config("log.filter = \"debug\"").start().await?;
    for signal in ["INT", "TERM"] {
        let process = listener(&server, &["sub", "news"]).await?;
        let mut publisher = server.client().await?;
        publisher.call(json!(["PUBLISH", "news", "x"])).await?;
        process.line_with(Pipe::Stdout, "\"x\"").await?;
        process.signal(signal)?;
        let (lines, said) = outcome(process, 0).await?;
        assert_eq!(lines.len(), 1);
        assert!(!said.contains("panicked"), "{said}");
    }
    server.wait_for_logs("reason=\"peer\"", 2).await?;
    server.stop().await
}

#[tokio::test]
async fn the_time_can_be_limited() -> Result<()> {
    let server = Launch::default().start().await?;
    outcome(listener(&server, &["sub", "news", "--timeout", "0.1"]).await?, 0).await?;
    let words = ["sub", "news", "--timeout", "0.1", "--count", "2"];
    let (lines, said) = outcome(listener(&server, &words).await?, 1).await?;
    assert!(lines.is_empty() && said.contains("2 messages did not come"), "{said}");
    server.stop().await
}

/// As in `switchyard sub news | head -n 1`.
#[tokio::test]
async fn a_reader_that_has_enough_ends_it() -> Result<()> {
    let server = Launch::default().start().await?;
    let mut run = command(&server.url().await?, &["sub", "news"]);
    let mut child = run
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .stdin(std::process::Stdio::null())
        .spawn()?;
    drop(child.stdout.take());
    let mut publisher = server.client().await?;
    // It subscribes at some point; then one message is enough.
    let status = loop {
        publisher.call(json!(["PUBLISH", "news", "x"])).await?;
        if let Some(status) = child.try_wait()? {
            break status;
        }
    };
    assert_eq!(status.code(), Some(0));
    server.stop().await
}

#[tokio::test]
async fn a_refused_subscription_is_reported() -> Result<()> {
    let plugins = components::directory()?;
    let settings = json!({ "rules": [{ "users": ["*"], "subscribe": ["public.*"] }] });
    components::install(plugins.path(), "10-acl", &components::built("acl")?, &settings)?;
    let plugins = Some(plugins.path().to_owned());
    let server = Launch { plugins, ..Launch::default() }.start().await?;
    let run = &mut command(&server.url().await?, &["sub", "private.1"]);
    let (_, said) = outcome(Process::start("sub", run)?, 1).await?;
    assert!(said.contains("NOPERM") && said.contains("[acl@"), "{said}");
    server.stop().await
}

/// A proxy between clients and a server that may be replaced.
async fn proxy(server: SocketAddr) -> Result<(SocketAddr, Arc<Mutex<SocketAddr>>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let behind = Arc::new(Mutex::new(server));
    let target = behind.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let target = *target.lock().expect("no thread panics while holding it");
            tokio::spawn(async move {
                let mut server = TcpStream::connect(target).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    Ok((address, behind))
}

#[tokio::test]
async fn it_reconnects_after_a_restart_as_instructed() -> Result<()> {
    let old = Launch::default().start().await?;
    let new = Launch::default().start().await?;
    let (address, behind) = proxy(old.address().await?).await?;
    let words = ["sub", "news", "--count", "2"];
    let process = Process::start("sub", &mut command(&format!("ws://{address}"), &words))?;
    process.line_with(Pipe::Stderr, "listening").await?;
    old.client().await?.call(json!(["PUBLISH", "news", "from the old one"])).await?;
    process.line_with(Pipe::Stdout, "from the old one").await?;

    *behind.lock().expect("no thread panics while holding it") = new.address().await?;
    old.stop().await?;
    let note = process.line_with(Pipe::Stderr, "coming back in").await?;
    assert!(note.contains("1001"), "{note}");
    process.line_with(Pipe::Stderr, "listening again").await?;
    new.client().await?.call(json!(["PUBLISH", "news", "from the new one"])).await?;
    let (lines, _) = outcome(process, 0).await?;
    assert_eq!(
        untimed(&lines)?,
        [
            json!({ "channel": "news", "payload": "from the old one" }),
            json!({ "channel": "news", "payload": "from the new one" }),
        ]
    );
    new.stop().await
}

/// A server that answers a SUBSCRIBE, sends a message on the channel, and closes with this code.
async fn serve_once(listener: &TcpListener, payload: &str, code: u16) -> Result<()> {
    let (stream, _) = listener.accept().await?;
    let mut stream = tokio_tungstenite::accept_hdr_async(stream, with_subprotocol).await?;
    let said = stream.next().await.context("it says nothing")??;
    let said: Value = serde_json::from_str(said.to_text()?)?;
    ensure!(said == json!([1, "SUBSCRIBE", "news"]), "it says {said}");
    stream.send(Message::text(json!([1, "OK", 1]).to_string())).await?;
    stream.send(Message::text(json!(["message", "news", payload]).to_string())).await?;
    // Unknown to every existing client.
    stream.send(Message::text(json!(["weather", "fine"]).to_string())).await?;
    stream.close(Some(CloseFrame { code: code.into(), reason: "tired".into() })).await?;
    while let Some(Ok(_)) = stream.next().await {}
    Ok(())
}

#[expect(clippy::result_large_err, reason = "tungstenite wants it so")]
fn with_subprotocol(
    request: &tokio_tungstenite::tungstenite::handshake::server::Request,
    mut response: tokio_tungstenite::tungstenite::handshake::server::Response,
) -> std::result::Result<
    tokio_tungstenite::tungstenite::handshake::server::Response,
    tokio_tungstenite::tungstenite::handshake::server::ErrorResponse,
> {
    let name = "sec-websocket-protocol";
    if let Some(offered) = request.headers().get(name) {
        response.headers_mut().insert(name, offered.clone());
    }
    Ok(response)
}

#[tokio::test]
async fn close_codes_say_whether_it_comes_back() -> Result<()> {
    let fake = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("ws://{}", fake.local_addr()?);
    let process = Process::start("sub", &mut command(&url, &["sub", "news"]))?;
    serve_once(&fake, "slow", 4202).await?;
    serve_once(&fake, "full", 4101).await?;
    serve_once(&fake, "gone", 4003).await?;
    let (lines, said) = outcome(process, 1).await?;
    let payloads = untimed(&lines)?;
    let payloads: Vec<_> = payloads.iter().map(|line| line["payload"].as_str()).collect();
    assert_eq!(payloads, [Some("slow"), Some("full"), Some("gone")]);
    // The longest pause that may follow each; none after the last.
    for (code, longest) in [("4202", Some(2.0)), ("4101", Some(30.0)), ("4003", None)] {
        let line_about_it =
            said.lines().find(|line| line.contains(code)).context("no line about it")?;
        let pause =
            line_about_it.split_once("coming back in ").and_then(|(_, rest)| rest.split_once(" s"));
        let pause = pause.map(|(seconds, _)| seconds.parse::<f64>()).transpose()?;
        match longest {
            Some(longest) => ensure!(pause.is_some_and(|pause| pause <= longest), "{said}"),
            None => ensure!(pause.is_none(), "{said}"),
        }
    }

    let process = Process::start("sub", &mut command(&url, &["sub", "news", "--once"]))?;
    serve_once(&fake, "once", 4202).await?;
    outcome(process, 1).await?;
    Ok(())
}
