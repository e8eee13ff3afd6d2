//! Clients that violate RFC 6455, HTTP or timeouts.
//!
//! Each receives an error or is disconnected; none affects another connection, and what the
//! server sends to them must itself be valid (`RawClient` is strict about every frame).

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use guest_core::model::Random;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::server::{Launch, Server};
use crate::support::websocket::{
    BINARY, CLOSE, CONTINUATION, Client, Frame, Length, PING, PONG, RawClient, Received, TEXT,
    UPGRADE, close_of,
};

/// Limits that frames of a test can pass.
const CONFIG: &str = "
    limits.payload_bytes_max = 1024
    limits.name_bytes_max = 64
    websocket.message_bytes_max = 131072
";
const MESSAGE_BYTES_MAX: usize = 131_072;

/// How the server must react to the bytes that a client sends after its upgrade.
enum Then {
    /// A Close with one of these codes, and the end of the connection.
    Closed(&'static [u16]),
    /// The client's own Close comes back, with its code or without one.
    Echoed(Option<u16>),
    /// These frames, and the connection stays open.
    Answered(Vec<Received>),
}
use Then::{Answered, Closed, Echoed};

/// RFC 6455 is broken.
const VIOLATION: Then = Closed(&[1002]);
/// Text is not UTF-8.
const NOT_UTF8: Then = Closed(&[1007]);
/// A frame or message is over the limit.
const TOO_BIG: Then = Closed(&[1009]);

/// Another connection, which must not notice anything.
struct Witness(Client);

impl Witness {
    async fn on(server: &Server) -> Result<Witness> {
        let mut client = server.client().await?;
        ensure!(client.call(json!(["SUBSCRIBE", "witness"])).await? == json!(["OK", 1]));
        Ok(Witness(client))
    }

    /// Checks that it is served as if it were the only connection.
    async fn is_undisturbed(&mut self) -> Result<()> {
        let answer = self.0.call(json!(["PUBLISH", "witness", "x"])).await?;
        ensure!(answer == json!(["OK", 1]), "a publication was answered {answer}");
        let message = self.0.next_json().await?;
        ensure!(message == json!(["message", "witness", "x"]), "instead of it came {message}");
        Ok(())
    }

    /// Disconnects the witness, so that the server need not wait for a reply to its Close, and
    /// stops the server.
    async fn end(self, server: Server) -> Result<()> {
        drop(self);
        server.stop().await
    }
}

/// Plays each case on a connection of its own and reports all that fail.
async fn check(cases: Vec<(String, Vec<u8>, Then)>) -> Result<()> {
    let server = Launch::with_config(CONFIG).start().await?;
    let mut witness = Witness::on(&server).await?;
    let mut failures = Vec::new();
    for (name, bytes, then) in cases {
        if let Err(problem) = play(&server, bytes, then).await {
            failures.push(format!("{name}: {problem:#}"));
        }
        witness.is_undisturbed().await.with_context(|| format!("after: {name}"))?;
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    witness.end(server).await
}

async fn play(server: &Server, bytes: Vec<u8>, then: Then) -> Result<()> {
    let mut client = server.raw_client().await?;
    client.send(bytes).await?;
    match then {
        Closed(codes) => {
            let (code, reason) = client.next_close().await?;
            ensure!(
                code.is_some_and(|code| codes.contains(&code)),
                "closed with {code:?} ({reason}), not {codes:?}"
            );
            ensure!(!reason.is_empty(), "the Close does not say why");
        }
        Echoed(expected) => {
            let frame = client.next_frame().await?.context("the Close was not echoed")?;
            let (code, _) = close_of(&frame)?;
            ensure!(code == expected, "echoed with {code:?}");
            client.ends().await?;
        }
        Answered(frames) => {
            for expected in frames {
                expect(&mut client, &expected).await?;
            }
            client.send_text(r#"[77,"PING"]"#).await?;
            expect(&mut client, &text(r#"[77,"OK","PONG"]"#)).await?;
            client.send(Frame::close(1000, "").bytes()).await?;
            let (code, _) = client.next_close().await?;
            ensure!(code == Some(1000), "closed with {code:?} in the end");
        }
    }
    Ok(())
}

/// The next frame must be this one. JSON texts are compared as JSON, and of an error only its code.
async fn expect(client: &mut RawClient, expected: &Received) -> Result<()> {
    let came = client.next_frame().await?.context("the connection ended")?;
    let shown = came.payload.escape_ascii();
    ensure!(came.opcode == expected.opcode, "opcode {} came: {shown}", came.opcode);
    let is_same = match (json_of(&came), json_of(expected)) {
        (Some(came), Some(expected)) => came == expected,
        _ => came == *expected,
    };
    ensure!(is_same, "instead of {} came {shown}", expected.payload.escape_ascii());
    Ok(())
}

fn json_of(frame: &Received) -> Option<Value> {
    let mut value: Value = serde_json::from_slice(&frame.payload).ok()?;
    if let Some(refusal) = value.get_mut(2).and_then(Value::as_object_mut) {
        refusal.remove("message");
    }
    Some(value)
}

fn text(text: &str) -> Received {
    Received { opcode: TEXT, payload: text.as_bytes().to_vec() }
}

fn refused(code: &str) -> Received {
    text(&json!([null, "ERR", { "code": code }]).to_string())
}

fn pong(body: &[u8]) -> Received {
    Received { opcode: PONG, payload: body.to_vec() }
}

fn case(name: impl Into<String>, frames: &[Frame], then: Then) -> (String, Vec<u8>, Then) {
    (name.into(), frames.iter().flat_map(Frame::bytes).collect(), then)
}

/// A command that nearly every client sends.
fn hello() -> Frame {
    Frame::new(TEXT, r#"[1,"PING"]"#)
}

fn answer_to_hello() -> Received {
    text(r#"[1,"OK","PONG"]"#)
}

#[tokio::test]
async fn a_header_that_breaks_the_rules_closes_with_1002() -> Result<()> {
    let mut cases = Vec::new();
    for bits in [0b100, 0b010, 0b001, 0b111] {
        cases.push(case(format!("reserved {bits:#b}"), &[hello().reserved(bits)], VIOLATION));
        let ping = Frame::new(PING, "").reserved(bits);
        cases.push(case(format!("reserved {bits:#b} on a ping"), &[ping], VIOLATION));
    }
    for opcode in (3..8).chain(11..16) {
        cases.push(case(format!("opcode {opcode}"), &[Frame::new(opcode, "")], VIOLATION));
    }
    for frame in [hello(), Frame::new(PING, ""), Frame::new(PONG, ""), Frame::close(1000, "")] {
        cases.push(case(format!("unmasked {frame:?}"), &[frame.unmasked()], VIOLATION));
    }
    for (opcode, body) in [(PING, &b""[..]), (PONG, b"x"), (CLOSE, b"\x03\xe8")] {
        let part = Frame::new(opcode, body).part();
        cases.push(case(format!("a part of control frame {opcode}"), &[part], VIOLATION));
        let long = Frame::new(opcode, [b"\x03\xe8", &[b'x'; 124][..]].concat());
        cases.push(case(format!("126 bytes in control frame {opcode}"), &[long], VIOLATION));
    }
    let start = Frame::new(TEXT, "[1,").part();
    let stray = Frame::new(CONTINUATION, "]");
    // A command without an id, so that its success has no reply.
    let quiet = Frame::new(TEXT, r#"["PING""#).part();
    cases.extend([
        case("a continuation of nothing", std::slice::from_ref(&stray), VIOLATION),
        case("a part of nothing", &[stray.clone().part()], VIOLATION),
        case("a continuation of what has ended", &[quiet, stray.clone(), stray], VIOLATION),
        case("a text within a text", &[start.clone(), hello()], VIOLATION),
        case("a part within a text", &[start.clone(), start.clone()], VIOLATION),
        case("a binary within a text", &[start, Frame::new(BINARY, "x")], VIOLATION),
    ]);
    for bytes in [0, 5, 125] {
        let body = "x".repeat(bytes);
        for (name, length) in [("16", Length::Bits16), ("64", Length::Bits64)] {
            let frame = Frame::new(TEXT, &body).length(length);
            cases.push(case(format!("{bytes} in {name} bits"), &[frame], VIOLATION));
        }
    }
    for bytes in [126, 65535] {
        let frame = Frame::new(TEXT, "x".repeat(bytes)).length(Length::Bits64);
        cases.push(case(format!("{bytes} in 64 bits"), &[frame], VIOLATION));
    }
    for claimed in [1 << 63, u64::MAX, 1 << 63 | 5] {
        let frame = Frame::new(BINARY, "").length(Length::Claimed(claimed));
        cases.push(case(format!("the length {claimed:#x}"), &[frame], VIOLATION));
    }
    let ping = Frame::new(PING, "x").length(Length::Bits16);
    cases.push(case("a ping with a long length", &[ping], VIOLATION));
    check(cases).await
}

#[tokio::test]
async fn a_close_is_echoed_or_faulted() -> Result<()> {
    let mut cases = vec![
        case("no code", &[Frame::new(CLOSE, "")], Echoed(None)),
        case("half a code", &[Frame::new(CLOSE, [3])], VIOLATION),
        case(
            "a reason as long as can be",
            &[Frame::close(1000, "x".repeat(123))],
            Echoed(Some(1000)),
        ),
        case("a reason in UTF-8", &[Frame::close(4000, "tschüß")], Echoed(Some(4000))),
        // RFC 6455 has a code for each of the two rules that this violates.
        case("a reason not in UTF-8", &[Frame::close(1000, b"\xff")], Closed(&[1007, 1002])),
        case("half a character", &[Frame::close(1000, b"x\xc3")], Closed(&[1007, 1002])),
        case(
            "within a fragmented message",
            &[Frame::new(TEXT, "[1").part(), Frame::close(1000, "")],
            Echoed(Some(1000)),
        ),
        case("and then more", &[Frame::close(1001, ""), hello(), hello()], Echoed(Some(1001))),
        case(
            "and then nonsense",
            &[Frame::close(1001, ""), hello().unmasked()],
            Echoed(Some(1001)),
        ),
        case("twice", &[Frame::close(1000, ""), Frame::close(1001, "")], Echoed(Some(1000))),
    ];
    for code in (1000..=1003).chain(1007..=1014).chain([3000, 3999, 4000, 4009, 4999]) {
        cases.push(case(code.to_string(), &[Frame::close(code, "")], Echoed(Some(code))));
    }
    let never = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 9999, 65535];
    for code in never {
        cases.push(case(code.to_string(), &[Frame::close(code, "")], VIOLATION));
        cases.push(case(format!("{code}, why"), &[Frame::close(code, "why")], VIOLATION));
    }
    check(cases).await
}

#[tokio::test]
async fn text_must_be_utf8_and_messages_within_their_limit() -> Result<()> {
    let mut cases = Vec::new();
    for (name, bytes) in [
        ("ff", &b"[1,\"PING\",\"\xff\"]"[..]),
        ("a lone continuation byte", b"\x80"),
        ("an overlong character", b"\xc0\xaf"),
        ("half a surrogate pair", b"\xed\xa0\x80"),
        ("beyond the last character", b"\xf4\x90\x80\x80"),
        ("a character cut short by the end", b"\"\xf0\x9f\xa6"),
    ] {
        cases.push(case(name, &[Frame::new(TEXT, bytes)], NOT_UTF8));
        let (left, right) = bytes.split_at(bytes.len() / 2);
        let parts = [Frame::new(TEXT, left).part(), Frame::new(CONTINUATION, right)];
        cases.push(case(format!("{name}, in two parts"), &parts, NOT_UTF8));
    }
    let header = |opcode, claimed| Frame::new(opcode, "").length(Length::Claimed(claimed));
    let half = vec![b' '; MESSAGE_BYTES_MAX / 2 + 1];
    cases.extend([
        // Only the header is sent, so the server must decide before the bytes arrive.
        case("one byte too many", &[header(TEXT, MESSAGE_BYTES_MAX as u64 + 1)], TOO_BIG),
        case("far too many", &[header(BINARY, i64::MAX as u64)], TOO_BIG),
        case(
            "too many in two parts",
            &[Frame::new(TEXT, &half).part(), header(CONTINUATION, half.len() as u64)],
            TOO_BIG,
        ),
        case(
            "more and more of it",
            &[Frame::new(TEXT, &half).part(), header(CONTINUATION, i64::MAX as u64).part()],
            TOO_BIG,
        ),
    ]);
    check(cases).await
}

#[tokio::test]
async fn what_is_unusual_and_allowed_is_answered() -> Result<()> {
    let command = r#"[1,"PING","zwölf"]"#;
    let answer = text(r#"[1,"OK","zwölf"]"#);
    let in_parts = |parts: &[&[u8]]| -> Vec<Frame> {
        let last = parts.len() - 1;
        let frame = |(at, part): (usize, &&[u8])| {
            let frame = Frame::new(if at == 0 { TEXT } else { CONTINUATION }, part);
            if at == last { frame } else { frame.part() }
        };
        parts.iter().enumerate().map(frame).collect()
    };
    let bytes: Vec<&[u8]> = command.as_bytes().chunks(1).collect();
    let mut between = in_parts(&bytes);
    for at in (1..between.len()).rev() {
        between.insert(at, Frame::new(PING, format!("{at}")));
    }
    let pings = (1..bytes.len()).map(|at| pong(at.to_string().as_bytes()));
    let padded = |bytes: usize| format!("[1,\"PING\"{}]", " ".repeat(bytes - 10));
    let too_large = json!([5, "PUBLISH", "a", "x".repeat(1025)]).to_string();
    let too_large_answer = text(r#"[5,"ERR",{"code":"TOOLARGE"}]"#);
    let mut cases = vec![
        case("an empty ping", &[Frame::new(PING, "")], Answered(vec![pong(b"")])),
        case("a full ping", &[Frame::new(PING, [7; 125])], Answered(vec![pong(&[7; 125])])),
        case("an unsolicited pong", &[Frame::new(PONG, "x")], Answered(vec![])),
        case(
            "pings one after the other",
            &[Frame::new(PING, "1"), Frame::new(PING, "2")],
            Answered(vec![pong(b"1"), pong(b"2")]),
        ),
        case("one byte a part", &in_parts(&bytes), Answered(vec![answer.clone()])),
        case("a ping after each part", &between, Answered(pings.chain([answer.clone()]).collect())),
        case(
            "empty parts",
            &in_parts(&[b"", b"", command.as_bytes(), b"", b""]),
            Answered(vec![answer.clone()]),
        ),
        case(
            "empty parts and no others",
            &in_parts(&[b"", b""]),
            Answered(vec![refused("BADFRAME")]),
        ),
        case("an empty text", &[Frame::new(TEXT, "")], Answered(vec![refused("BADFRAME")])),
        case("an empty binary", &[Frame::new(BINARY, "")], Answered(vec![refused("BADFRAME")])),
        case(
            "binary in parts",
            &[Frame::new(BINARY, b"\xff").part(), Frame::new(CONTINUATION, b"\xfe")],
            Answered(vec![refused("BADFRAME")]),
        ),
        case("a mask of zeros", &[hello().masked_with([0; 4])], Answered(vec![answer_to_hello()])),
        case(
            "many frames at once",
            &[hello(), Frame::new(PONG, "x"), hello(), hello()],
            Answered(vec![answer_to_hello(); 3]),
        ),
        case(
            "a payload over its limit in a frame within its own",
            &[Frame::new(TEXT, too_large), hello()],
            Answered(vec![too_large_answer, answer_to_hello()]),
        ),
        case(
            "deeper than any client should go",
            &[Frame::new(TEXT, "[".repeat(100_000)), Frame::new(TEXT, "{\"a\":".repeat(20_000))],
            Answered(vec![refused("BADFRAME"), refused("BADFRAME")]),
        ),
        case(
            "a thousand commands in one frame",
            &[Frame::new(TEXT, format!("[{}]", vec![r#"[1,"PING"]"#; 1000].join(",")))],
            Answered(vec![answer_to_hello(); 1000]),
        ),
        case(
            "an error that repeats what was sent is cut",
            &[Frame::new(TEXT, json!(["N".repeat(100_000)]).to_string())],
            Answered(vec![refused("UNKNOWN")]),
        ),
    ];
    for bytes in [125, 126, 127, 65535, 65536, MESSAGE_BYTES_MAX] {
        let frame = Frame::new(TEXT, padded(bytes));
        cases.push(case(format!("{bytes} bytes"), &[frame], Answered(vec![answer_to_hello()])));
    }
    check(cases).await
}

#[tokio::test]
async fn bytes_that_come_one_by_one_are_put_together() -> Result<()> {
    let server = Launch::with_config(CONFIG).start().await?;
    let mut witness = Witness::on(&server).await?;
    let mut client = RawClient::dial(server.address().await?).await?;
    for byte in UPGRADE.bytes() {
        client.send([byte]).await?;
    }
    ensure!(client.response_head().await?.0 == 101);
    let frames = [
        Frame::new(TEXT, r#"[1,"PI"#).part(),
        Frame::new(PING, "between"),
        Frame::new(CONTINUATION, r#"NG"]"#),
        Frame::new(TEXT, format!("[2,\"PING\"{}]", " ".repeat(200))),
    ];
    for byte in frames.iter().flat_map(Frame::bytes) {
        client.send([byte]).await?;
    }
    expect(&mut client, &pong(b"between")).await?;
    expect(&mut client, &answer_to_hello()).await?;
    expect(&mut client, &text(r#"[2,"OK","PONG"]"#)).await?;
    witness.is_undisturbed().await?;
    witness.end(server).await
}

#[tokio::test]
async fn too_many_bad_frames_in_a_row_close_with_4009() -> Result<()> {
    let server = Launch::default().start().await?;
    let mut witness = Witness::on(&server).await?;
    let mut client = server.raw_client().await?;
    // A few are allowed: the default is five.
    for frame in [Frame::new(TEXT, "?"), Frame::new(BINARY, "?")].iter().cycle().take(6) {
        client.send(frame.bytes()).await?;
        expect(&mut client, &refused("BADFRAME")).await?;
    }
    let (code, reason) = client.next_close().await?;
    assert_eq!((code, reason.as_str()), (Some(4009), "too many bad frames in a row"));
    witness.is_undisturbed().await?;
    witness.end(server).await
}

/// An upgrade request with one header changed, or left out.
fn request_with(name: &str, value: Option<&str>) -> String {
    let mut lines: Vec<_> = UPGRADE.trim_end().split("\r\n").map(str::to_owned).collect();
    lines.retain(|line| !line.starts_with(&format!("{name}:")));
    lines.extend(value.map(|value| format!("{name}: {value}")));
    lines.join("\r\n") + "\r\n\r\n"
}

/// Otherwise a request that a proxy passes on with its body could contain commands.
#[tokio::test]
async fn the_body_of_an_upgrade_is_not_executed() -> Result<()> {
    let server = Launch::default().start().await?;
    let mut witness = Witness::on(&server).await?;
    let body = Frame::new(TEXT, r#"["PUBLISH","witness","from a body"]"#).bytes();
    let chunk = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
    for (name, value, body) in [
        ("Content-Length", body.len().to_string(), &body),
        ("Transfer-Encoding", "chunked".to_owned(), &chunk),
    ] {
        for is_at_once in [true, false] {
            let head = request_with(name, Some(&value)).into_bytes();
            let mut client = RawClient::dial(server.address().await?).await?;
            if is_at_once {
                client.send([&head[..], body].concat()).await?;
                ensure!(client.response_head().await?.0 == 400, "{name}");
            } else {
                client.send(head).await?;
                ensure!(client.response_head().await?.0 == 400, "{name}");
                client.send(body).await?;
            }
            let rest = client.rest().await?;
            ensure!(!rest.contains(&0x81), "{name}: {}", rest.escape_ascii());
            witness.is_undisturbed().await?;
        }
    }
    witness.end(server).await
}

fn own_page() -> String {
    let host = UPGRADE
        .lines()
        .find_map(|line| line.strip_prefix("Host: "))
        .expect("a request names its host");
    request_with("Origin", Some(&format!("https://{host}")))
}

#[tokio::test]
async fn a_handshake_is_accepted_or_refused() -> Result<()> {
    let line = |line: &str| UPGRADE.replacen("GET /ws HTTP/1.1", line, 1);
    let cases = [
        ("as RFC 6455 shows it", UPGRADE.to_owned(), &[101][..]),
        ("as Firefox does", request_with("Connection", Some("keep-alive, Upgrade")), &[101]),
        ("in other cases", request_with("Upgrade", Some("WebSocket")), &[101]),
        (
            "headers in lower case",
            UPGRADE
                .to_lowercase()
                .replace("get /ws http", "GET /ws HTTP")
                .replace("dghlihnhbxbszsbub25jzq==", "dGhlIHNhbXBsZSBub25jZQ=="),
            &[101],
        ),
        ("a query", line("GET /ws?token=%20x&y HTTP/1.1"), &[101]),
        ("a page of the server itself", own_page(), &[101]),
        ("a page of another site", request_with("Origin", Some("https://example.org")), &[403]),
        ("another path", line("GET /wss HTTP/1.1"), &[404]),
        ("a path behind it", line("GET /ws/x HTTP/1.1"), &[404]),
        ("POST", line("POST /ws HTTP/1.1"), &[405]),
        ("HEAD", line("HEAD /ws HTTP/1.1"), &[405]),
        ("HTTP/1.0", line("GET /ws HTTP/1.0"), &[400, 426, 505]),
        ("HTTP/2.0", line("GET /ws HTTP/2.0"), &[400, 505]),
        ("no version", line("GET /ws"), &[400]),
        ("no path", line("GET HTTP/1.1"), &[400]),
        ("no upgrade", request_with("Upgrade", None), &[400, 426]),
        ("another upgrade", request_with("Upgrade", Some("h2c")), &[400, 426]),
        ("no connection header", request_with("Connection", None), &[400, 426]),
        ("a connection that stays", request_with("Connection", Some("keep-alive")), &[400, 426]),
        ("no key", request_with("Sec-WebSocket-Key", None), &[400]),
        ("an empty key", request_with("Sec-WebSocket-Key", Some("")), &[400]),
        ("a short key", request_with("Sec-WebSocket-Key", Some("c2hvcnQ=")), &[400]),
        ("no WebSocket version", request_with("Sec-WebSocket-Version", None), &[400, 426]),
        ("an old WebSocket version", request_with("Sec-WebSocket-Version", Some("8")), &[400, 426]),
        ("unknown sub-protocols", request_with("Sec-WebSocket-Protocol", Some("a, b")), &[400]),
        ("no body, as its length says", request_with("Content-Length", Some("0")), &[101]),
        ("a body", request_with("Content-Length", Some("5")), &[400]),
        ("a body in chunks", request_with("Transfer-Encoding", Some("chunked")), &[400]),
        ("not HTTP", "EHLO example.org\r\n\r\n".to_owned(), &[400]),
        ("Redis", "*1\r\n$4\r\nPING\r\n\r\n\r\n".to_owned(), &[400]),
        ("TLS", "\u{16}\u{3}\u{1}\0\u{5}\u{1}\0\0\u{1}\u{3}\u{3}\r\n\r\n".to_owned(), &[400]),
        ("a NUL", request_with("Origin", Some("a\0b")), &[400]),
        ("a header without a name", request_with("", Some("x")), &[400]),
    ];
    let server = Launch::default().start().await?;
    let mut witness = Witness::on(&server).await?;
    let mut failures = Vec::new();
    for (name, request, expected) in cases {
        let outcome = async {
            let mut client = RawClient::dial(server.address().await?).await?;
            client.send(request).await?;
            let (status, head) = client.response_head().await?;
            ensure!(expected.contains(&status), "answered with {status}, not {expected:?}");
            if status == 426 {
                let says_to_what = head.to_lowercase().contains("upgrade: websocket");
                ensure!(says_to_what, "to what should it upgrade? {head}");
            }
            // RFC 6455, section 4.2.2: whatever the status is.
            let is_reported = name != "an old WebSocket version"
                || head.to_lowercase().contains("sec-websocket-version: 13");
            ensure!(is_reported, "it does not say which version there is: {head}");
            if status != 101 {
                client.rest().await?;
                return Ok(());
            }
            ensure!(!head.to_lowercase().contains("sec-websocket-extensions"), "{head}");
            client.send(hello().bytes()).await?;
            expect(&mut client, &answer_to_hello()).await
        };
        if let Err(problem) = outcome.await {
            failures.push(format!("{name}: {problem:#}"));
        }
        witness.is_undisturbed().await.with_context(|| format!("after: {name}"))?;
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    witness.end(server).await
}

#[tokio::test]
async fn frames_sent_with_the_upgrade_are_processed() -> Result<()> {
    let server = Launch::default().start().await?;
    let mut client = RawClient::dial(server.address().await?).await?;
    let frames = [hello().bytes(), hello().bytes()].concat();
    client.send([UPGRADE.as_bytes(), &frames].concat()).await?;
    ensure!(client.response_head().await?.0 == 101);
    expect(&mut client, &answer_to_hello()).await?;
    expect(&mut client, &answer_to_hello()).await?;
    drop(client);
    server.stop().await
}

#[tokio::test]
async fn headers_without_end_are_cut_off() -> Result<()> {
    let server = Launch::with_config("http.request_bytes_max = 1024").start().await?;
    let mut witness = Witness::on(&server).await?;
    let start = UPGRADE.trim_end();
    let mut failures = Vec::new();
    for (name, request) in [
        ("one long header", format!("{start}\r\nCookie: {}", "x".repeat(1024))),
        ("many headers", start.to_owned() + &"\r\nA: b".repeat(200)),
        ("a long path", format!("GET /{}", "x".repeat(1024))),
        ("over the limit, and whole", format!("{start}\r\nA: {}\r\n\r\n", "x".repeat(1024))),
        ("without end", format!("{start}\r\nA: {}", "x".repeat(4 << 20))),
    ] {
        let mut client = RawClient::dial(server.address().await?).await?;
        // The server need not read everything.
        let _ = client.send(request).await;
        match client.response_head().await {
            Ok((431, _)) => {
                client.rest().await.context(name)?;
            }
            Ok((status, _)) => failures.push(format!("{name}: answered with {status}")),
            Err(problem) => failures.push(format!("{name}: {problem:#}")),
        }
        witness.is_undisturbed().await.context(name)?;
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    witness.end(server).await
}

#[tokio::test]
async fn a_slow_handshake_times_out_and_blocks_no_other_client() -> Result<()> {
    let config = "http.handshake_timeout_ms = 1000\nhttp.handshakes_max = 2";
    let server = Launch::with_config(config).start().await?;
    let address = server.address().await?;
    let mut silent = RawClient::dial(address).await?;
    let mut slow = RawClient::dial(address).await?;
    slow.send(UPGRADE.trim_end()).await?;
    // All slots are in use, so the handshake that has waited the longest is rejected.
    let mut witness = Witness::on(&server).await?;
    let (status, _) = slow.response_head().await?;
    assert_eq!(status, 408);
    slow.rest().await?;
    silent.rest().await?;
    witness.is_undisturbed().await?;
    witness.end(server).await
}

#[tokio::test]
async fn a_connection_too_many_is_closed_with_4101() -> Result<()> {
    let server = Launch::with_config("limits.connections_max = 2").start().await?;
    let mut witness = Witness::on(&server).await?;
    let mut second = server.client().await?;
    let (code, reason) = server.client().await?.next_close().await?;
    assert_eq!(code, Some(4101));
    assert!(reason.contains("connections_max"), "{reason}");
    let (code, _) = server.raw_client().await?.next_close().await?;
    assert_eq!(code, Some(4101));
    witness.is_undisturbed().await?;
    assert_eq!(second.call(json!(["QUIT"])).await?, json!(["OK", "OK"]));
    second.next_close().await?;
    // Its slot is free at the latest when its socket is closed.
    let mut third = server.client().await?;
    assert_eq!(third.call(json!(["PING"])).await?, json!(["OK", "PONG"]));
    witness.is_undisturbed().await?;
    witness.end(server).await
}

#[tokio::test]
async fn a_client_that_vanishes_in_the_handshake_holds_no_slot() -> Result<()> {
    let server = Launch::with_config("limits.connections_max = 4").start().await?;
    let mut witness = Witness::on(&server).await?;
    for _ in 0..300 {
        let mut client = RawClient::dial(server.address().await?).await?;
        client.send(UPGRADE).await?;
        client.reset()?;
    }
    // Connections that were upgraded before the client vanished are removed when the server has
    // noticed.
    let mut refusals = 0;
    loop {
        let mut client = server.client().await?;
        client.send(Message::text(r#"[1,"PING"]"#)).await?;
        match client.next().await? {
            Message::Text(_) => break,
            _ => refusals += 1,
        }
        ensure!(refusals < 5_000, "all slots are in use, but no client is connected");
    }
    witness.is_undisturbed().await?;
    witness.end(server).await
}

#[tokio::test]
async fn a_connection_that_disappears_is_removed() -> Result<()> {
    let server = Launch::default().start().await?;
    let mut witness = Witness::on(&server).await?;
    for how in ["end", "half a frame", "reset"] {
        let mut client = server.raw_client().await?;
        client.send_text(r#"[1,"SUBSCRIBE","a","b"]"#).await?;
        expect(&mut client, &text(r#"[1,"OK",2]"#)).await?;
        client.send_text(r#"[2,"PSUBSCRIBE","a*"]"#).await?;
        expect(&mut client, &text(r#"[2,"OK",3]"#)).await?;
        match how {
            "end" => drop(client),
            "half a frame" => {
                client.send(hello().bytes().split_at(5).0).await?;
                drop(client);
            }
            _ => client.reset()?,
        }
        // The server learns of it when the kernel reports it.
        let mut attempts = 0;
        while witness.0.call(json!(["PUBLISH", "a", "x"])).await? != json!(["OK", 0]) {
            attempts += 1;
            ensure!(attempts < 100_000, "{how}: still delivering to a connection that is gone");
        }
        assert_eq!(witness.0.call(json!(["PUBSUB", "NUMPAT"])).await?, json!(["OK", 0]), "{how}");
        witness.is_undisturbed().await.context(how)?;
    }
    witness.end(server).await
}

#[tokio::test]
async fn replies_still_come_to_one_that_has_said_all() -> Result<()> {
    let server = Launch::default().start().await?;
    let mut client = server.raw_client().await?;
    let bytes: Vec<u8> = [hello(), hello()].iter().flat_map(Frame::bytes).collect();
    client.send(bytes).await?;
    client.end_sending().await?;
    expect(&mut client, &answer_to_hello()).await?;
    expect(&mut client, &answer_to_hello()).await?;
    client.rest().await?;
    drop(client);
    server.stop().await
}

/// A conversation of valid frames with a few bits flipped. In every case the server sends
/// valid frames, the connection ends, and no other connection is affected.
#[tokio::test]
async fn flipped_bits_affect_no_other_connection() -> Result<()> {
    let mut random = Random::from_environment();
    let server = Launch::with_config(CONFIG).start().await?;
    let mut witness = Witness::on(&server).await?;
    for round in 0..300 {
        let frames = [
            hello(),
            Frame::new(PING, "x"),
            Frame::new(TEXT, r#"[[2,"SUBSCRIBE","a","b"],"#).part(),
            Frame::new(CONTINUATION, r#"[3,"PUBLISH","a",{"base64":"/w=="}]]"#),
            Frame::new(TEXT, format!(r#"[4,"PSUBSCRIBE","{}"]"#, "[a-z]*\\\\".repeat(20))),
            Frame::new(BINARY, [0xff; 200]),
            Frame::close(1000, "bye"),
        ];
        let mut bytes: Vec<u8> = frames.iter().flat_map(Frame::bytes).collect();
        for _ in 0..1 + random.index(4) {
            let at = random.index(bytes.len());
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.index(8);
            }
        }
        let mut client = server.raw_client().await?;
        let cut = random.index(bytes.len());
        let (first, second) = bytes.split_at(cut);
        // The server may have closed the connection by then.
        let _ = client.send(first).await;
        let _ = client.send(second).await;
        client.end_sending().await?;
        while let Some(frame) = client.next_frame().await.with_context(|| format!("in {round}"))? {
            if frame.opcode == CLOSE {
                let (code, reason) = close_of(&frame)?;
                let Some(code) = code else { continue };
                let is_ours = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
                ensure!(is_ours, "round {round} was closed with {code} ({reason})");
            } else if ![TEXT, PONG].contains(&frame.opcode) {
                bail!("round {round}: opcode {} came", frame.opcode);
            }
        }
        witness.is_undisturbed().await.with_context(|| format!("after round {round}"))?;
    }
    witness.end(server).await
}

/// One conversation, cut into pieces at random places: the replies are always the same.
#[tokio::test]
async fn a_conversation_may_be_cut_anywhere() -> Result<()> {
    let mut random = Random::from_environment();
    let server = Launch::with_config(CONFIG).start().await?;
    let frames = [
        Frame::new(TEXT, r#"[[1,"SUBSCRIBE","ä"],"#).part(),
        Frame::new(PING, "ping"),
        Frame::new(CONTINUATION, r#"[2,"PUBLISH","ä","ö"]]"#),
        Frame::new(TEXT, format!(r#"[3,"PING","{}"]"#, "z".repeat(1000))),
        Frame::new(TEXT, r#"[4,"UNSUBSCRIBE"]"#),
    ];
    let bytes: Vec<u8> = frames.iter().flat_map(Frame::bytes).collect();
    for round in 0..50 {
        let mut client = server.raw_client().await?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(1 + random.index(rest.len()).min(random.index(300)));
            client.send(piece).await?;
            // Gives the server a chance to read this piece alone.
            tokio::task::yield_now().await;
            rest = after;
        }
        for expected in [
            pong(b"ping"),
            text(r#"[1,"OK",1]"#),
            text(r#"[2,"OK",1]"#),
            text(r#"["message","ä","ö"]"#),
            text(&format!(r#"[3,"OK","{}"]"#, "z".repeat(1000))),
            text(r#"[4,"OK",0]"#),
        ] {
            expect(&mut client, &expected).await.with_context(|| format!("in round {round}"))?;
        }
        client.send(Frame::close(1000, "").bytes()).await?;
        client.next_close().await.with_context(|| format!("in round {round}"))?;
    }
    server.stop().await
}

/// The server waits no longer than configured for a connection that does not answer a Close.
#[tokio::test]
async fn one_that_does_not_answer_a_close_is_cut_off() -> Result<()> {
    let server = Launch::with_config("websocket.close_timeout_ms = 300").start().await?;
    let mut client = server.raw_client().await?;
    client.send_text(r#"["QUIT"]"#).await?;
    let frame = client.next_frame().await?.context("the connection ended without a Close")?;
    assert_eq!(close_of(&frame)?.0, Some(1000));
    let began = std::time::Instant::now();
    client.ends().await?;
    // Not a promise about speed: the default would be five seconds.
    ensure!(began.elapsed() < Duration::from_secs(4), "it was waited for");
    drop(client);
    server.stop().await
}
