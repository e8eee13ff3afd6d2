//! A connection that must authenticate first may do nothing else, over every listener, and cannot
//! make the server hold memory.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

use crate::support::admin::Operator;
use crate::support::components;
use crate::support::raw::exchange;
use crate::support::server::{Launch, Server};
use crate::support::websocket::{Client, Upgrade};
use crate::tokens;

const NOAUTH: &str = "-NOAUTH Authentication required.\r\n";
const HELLO: &str = "-NOAUTH HELLO must be called with the client already authenticated, \
    otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client \
    and select the RESP protocol version at the same time\r\n";
const BULK: &str = "-ERR Protocol error: unauthenticated bulk length\r\n";
const COUNT: &str = "-ERR Protocol error: unauthenticated multibulk length\r\n";

fn token() -> Result<String> {
    tokens::token("HS256", None, &json!({"sub": "alice", "exp": "now+600"}))
}

/// A server with one plugin, and the credentials that authenticate a client there.
struct Guarded {
    server: Server,
    secret: String,
    _plugins: TempDir,
}

async fn guarded(plugin: &str, settings: Value, secret: String) -> Result<Guarded> {
    let plugins = components::directory()?;
    let slot = format!("10-{plugin}");
    components::install(plugins.path(), &slot, &components::built(plugin)?, &settings)?;
    let server = start(plugins.path(), "").await?;
    Ok(Guarded { server, secret, _plugins: plugins })
}

async fn start(plugins: &Path, config: &str) -> Result<Server> {
    let config = format!("shutdown.timeout_ms = 100\n{config}");
    Launch { plugins: Some(plugins.to_owned()), ..Launch::with_config(&config) }.start().await
}

async fn with_acl() -> Result<Guarded> {
    let rules = json!([{"users": ["alice"], "subscribe": ["*"], "publish": ["*"]}]);
    let settings = json!({"require_token": true, "tokens": {"s3cret": "alice"}, "rules": rules});
    guarded("acl", settings, "s3cret".to_owned()).await
}

async fn with_jwt(without_token: &str) -> Result<Guarded> {
    let keys = json!([{"algorithm": "HS256", "secret": tokens::SECRET}]);
    let settings = json!({"keys": keys, "without_token": without_token});
    guarded("jwt-auth", settings, token()?).await
}

/// A request with these arguments.
fn request(arguments: &[&str]) -> String {
    let bulks = arguments.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
    format!("*{}\r\n{}", arguments.len(), bulks.collect::<String>())
}

/// Commands that reveal or store something, or cost more than AUTH does.
const REFUSED: [&str; 24] = [
    "PING",
    "ECHO x",
    "SUBSCRIBE a",
    "PSUBSCRIBE *",
    "SSUBSCRIBE a",
    "UNSUBSCRIBE",
    "PUBLISH a x",
    "SPUBLISH a x",
    "PUBSUB CHANNELS",
    "PUBSUB NUMSUB a",
    "PUBSUB NUMPAT",
    "PUBSUB SHARDCHANNELS",
    "PUBSUB HELP",
    "INFO",
    "CLIENT LIST",
    "CLIENT ID",
    "CLIENT INFO",
    "CLIENT SETNAME x",
    "CLIENT SETINFO lib-name x",
    "CLIENT REPLY OFF",
    "CONFIG GET *",
    "COMMAND",
    "COMMAND DOCS",
    "SELECT 0",
];

async fn answers_only_authentication(guarded: &Guarded) -> Result<()> {
    let Guarded { server, secret, .. } = guarded;
    let address = server.resp_address().await?;
    let said = REFUSED.map(|command| format!("{command}\r\n")).concat();
    assert_eq!(exchange(address, &said).await?, NOAUTH.repeat(REFUSED.len()));

    // As in Redis, an unknown command is an error with or without authentication.
    let answer = exchange(address, "NONSENSE x\r\nPUBLISH a\r\nHELLO\r\nHELLO 3\r\n").await?;
    let unknown = "-ERR unknown command 'NONSENSE', with args beginning with: 'x' \r\n";
    let arity = "-ERR wrong number of arguments for 'publish' command\r\n";
    assert_eq!(answer, [unknown, arity, HELLO, HELLO].concat());

    // AUTH permits everything else, and RESET ends that.
    let auth = format!("AUTH {secret}\r\n");
    let said = format!("RESET\r\nPING\r\n{auth}PING\r\nRESET\r\nPING\r\n{auth}PING\r\nQUIT\r\n");
    let expected =
        format!("+RESET\r\n{NOAUTH}+OK\r\n+PONG\r\n+RESET\r\n{NOAUTH}+OK\r\n+PONG\r\n+OK\r\n");
    assert_eq!(exchange(address, &said).await?, expected);
    let answer = exchange(address, &format!("HELLO 3 AUTH default {secret}\r\nPING\r\n")).await?;
    ensure!(answer.starts_with("%7\r\n") && answer.ends_with("+PONG\r\n"), "{answer}");
    // A refused command changes nothing.
    let answer = exchange(address, "AUTH wrong\r\nPING\r\n").await?;
    ensure!(answer.starts_with('-') && answer.ends_with(NOAUTH), "{answer}");

    // Redis' limits hold until AUTH, and not after it.
    let (fits, large) = ("x".repeat(16_384), "x".repeat(16_385));
    let publish = |payload: &str| request(&["PUBLISH", "a", payload]);
    assert_eq!(exchange(address, &publish(&fits)).await?, NOAUTH);
    assert_eq!(exchange(address, &publish(&large)).await?, BULK);
    assert_eq!(exchange(address, &request(&["PING"; 11])).await?, COUNT);
    // It is refused by its announced length, before its bytes arrive.
    assert_eq!(
        exchange(address, "*3\r\n$6\r\nCLIENT\r\n$7\r\nSETNAME\r\n$999999\r\n").await?,
        BULK
    );
    let answer = exchange(address, &format!("{auth}{}", publish(&large))).await?;
    assert_eq!(answer, "+OK\r\n:0\r\n");
    let answer = exchange(address, &format!("{auth}RESET\r\n{}", publish(&large))).await?;
    ensure!(answer.starts_with("+OK\r\n+RESET\r\n-"), "{answer}");
    // A request that was begun before RESET has the same limit.
    let begun = "*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$999999\r\nx";
    let answer = exchange(address, &format!("{auth}RESET\r\n{begun}")).await?;
    assert_eq!(answer, format!("+OK\r\n+RESET\r\n{BULK}"));
    Ok(())
}

#[tokio::test]
async fn over_tcp_with_acl() -> Result<()> {
    let guarded = with_acl().await?;
    answers_only_authentication(&guarded).await?;
    guarded.server.stop().await
}

#[tokio::test]
async fn over_tcp_with_jwt_auth() -> Result<()> {
    for without_token in ["refuse", "wait"] {
        let guarded = with_jwt(without_token).await?;
        answers_only_authentication(&guarded).await?;
        guarded.server.stop().await?;
    }
    // A plugin that does not require authentication changes nothing.
    let guarded = with_jwt("allow").await?;
    let address = guarded.server.resp_address().await?;
    let large = "x".repeat(16_385);
    let said = format!("PUBSUB NUMPAT\r\n{}", request(&["PUBLISH", "a", &large]));
    assert_eq!(exchange(address, &said).await?, ":0\r\n:0\r\n");
    guarded.server.stop().await
}

async fn connect(server: &Server, subprotocol: &str) -> Result<Client> {
    let subprotocols = vec![subprotocol.to_owned()];
    let upgrade = Upgrade { subprotocols, ..Upgrade::default() };
    let client = Client::connect(server.address().await?, &upgrade).await?;
    client.map_err(|refused| anyhow::anyhow!("HTTP {}", refused.status))
}

/// The replies in binary frames, up to one that ends with `end`.
async fn binary(client: &mut Client, said: &str, end: &str) -> Result<String> {
    client.send(Message::binary(said.as_bytes().to_vec())).await?;
    let mut answer = String::new();
    while !answer.ends_with(end) {
        match client.next().await? {
            Message::Binary(bytes) => answer.push_str(std::str::from_utf8(&bytes)?),
            other => anyhow::bail!("{other:?} after {answer}"),
        }
    }
    Ok(answer)
}

#[tokio::test]
async fn over_a_websocket_in_resp() -> Result<()> {
    let guarded = with_jwt("wait").await?;
    let Guarded { server, secret, .. } = &guarded;
    let mut client = connect(server, "resp").await?;
    let said = REFUSED.map(|command| format!("{command}\r\n")).concat();
    let expected = NOAUTH.repeat(REFUSED.len());
    assert_eq!(binary(&mut client, &format!("{said}HELLO\r\n"), HELLO).await?, expected + HELLO);
    let large = request(&["PUBLISH", "a", &"x".repeat(300_000)]);
    // In the same frame as the credentials, and in the next one.
    let auth = format!("AUTH {secret}\r\n");
    assert_eq!(
        binary(&mut client, &format!("{auth}PING\r\n"), "PONG\r\n").await?,
        "+OK\r\n+PONG\r\n"
    );
    assert_eq!(binary(&mut client, &large, "\r\n").await?, ":0\r\n");

    let mut client = connect(server, "resp").await?;
    let large = request(&["PUBLISH", "a", &"x".repeat(16_385)]);
    assert_eq!(binary(&mut client, &large, "\r\n").await?, BULK);
    assert_eq!(client.next_close().await?.0, Some(4009));
    // More than ten arguments of the largest size: the server does not wait for them.
    let mut client = connect(server, "resp").await?;
    client.send(Message::binary(vec![b'x'; 200_000])).await?;
    assert_eq!(client.next_close().await?.0, Some(1009));
    guarded.server.stop().await
}

#[tokio::test]
async fn over_a_websocket_in_json() -> Result<()> {
    let guarded = with_jwt("wait").await?;
    let Guarded { server, secret, .. } = &guarded;
    let mut client = server.client().await?;
    for command in [
        json!(["SUBSCRIBE", "a"]),
        json!(["UNSUBSCRIBE"]),
        json!(["PSUBSCRIBE", "*"]),
        json!(["PUBLISH", "a", "x"]),
        json!(["PUBSUB", "CHANNELS"]),
        json!(["PUBSUB", "NUMSUB", "a"]),
        json!(["PUBSUB", "NUMPAT"]),
        // Even the error is not reported.
        json!(["PUBLISH", "a"]),
        json!(["PUBSUB", "NONSENSE"]),
        json!(["SUBSCRIBE", 1]),
        json!(["NONSENSE"]),
    ] {
        let answer = client.call(command.clone()).await?;
        ensure!(answer.pointer("/1/code") == Some(&json!("NOAUTH")), "{command}: {answer}");
    }
    assert_eq!(client.call(json!(["PING"])).await?, json!(["OK", "PONG"]));
    let hello = client.call(json!(["HELLO"])).await?;
    let hello = hello.get(1).context("an answer")?;
    assert_eq!(hello.get("user"), Some(&Value::Null), "{hello}");
    // Commands after an AUTH in the same frame run as the user that it authenticates.
    let frame = json!([[1, "PUBLISH", "a", "x"], [2, "AUTH", secret], [3, "PUBLISH", "a", "x"]]);
    client.send(Message::text(frame.to_string())).await?;
    assert_eq!(client.next_json().await?.pointer("/2/code"), Some(&json!("NOAUTH")));
    assert_eq!(client.next_json().await?, json!([2, "OK", "OK"]));
    assert_eq!(client.next_json().await?, json!([3, "OK", 0]));
    let answer = client.call(json!(["PUBLISH", "a", "x".repeat(20_000)])).await?;
    assert_eq!(answer, json!(["OK", 0]));
    let hello = client.call(json!(["HELLO"])).await?;
    assert_eq!(hello.pointer("/1/user"), Some(&json!("alice")), "{hello}");

    // A frame of 16 KiB is accepted; one byte more is not, nor are fragments of more.
    let frame = |bytes: usize| {
        let ends = json!([1, "PUBLISH", "a", ""]).to_string().len();
        json!([1, "PUBLISH", "a", "x".repeat(bytes - ends)]).to_string()
    };
    let mut client = server.client().await?;
    client.send(Message::text(frame(16_384))).await?;
    assert_eq!(client.next_json().await?.pointer("/2/code"), Some(&json!("NOAUTH")));
    client.send(Message::text(frame(16_385))).await?;
    let (code, reason) = client.next_close().await?;
    assert_eq!((code, reason.contains("AUTH")), (Some(1009), true), "{reason}");

    // An AUTH and a large frame that are sent at once: the second is measured after the first.
    let mut raw = server.raw_client().await?;
    use crate::support::websocket::{Frame, TEXT};
    let auth = Frame::new(TEXT, json!([1, "AUTH", secret]).to_string()).bytes();
    let large = Frame::new(TEXT, json!([2, "PUBLISH", "a", "x".repeat(20_000)]).to_string());
    raw.send([auth, large.bytes()].concat()).await?;
    for expected in ["[1,\"OK\",\"OK\"]", "[2,\"OK\",0]"] {
        let frame = raw.next_frame().await?.context("an answer")?;
        assert_eq!(String::from_utf8_lossy(&frame.payload), expected);
    }
    let mut raw = server.raw_client().await?;
    let part = || Frame::new(TEXT, "x".repeat(10_000)).part();
    let rest = Frame::new(crate::support::websocket::CONTINUATION, "x".repeat(10_000)).part();
    raw.send([part().bytes(), rest.bytes()].concat()).await?;
    assert_eq!(raw.next_close().await?.0, Some(1009));
    drop((client, raw));
    guarded.server.stop().await
}

/// Errors are longer than the commands that cause them: a client that does not read must not fill
/// the server's memory with them.
#[tokio::test]
async fn replies_that_are_not_read_do_not_pile_up() -> Result<()> {
    let guarded = with_acl().await?;
    let address = guarded.server.resp_address().await?;
    let mut streams = Vec::new();
    for _ in 0..10 {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4096)?;
        let mut stream = socket.connect(address).await?;
        let said = "x\r\n".repeat(20_000);
        // Until the server reads no more.
        let mut written_bytes = 0;
        while let Ok(written) =
            tokio::time::timeout(Duration::from_millis(500), stream.write_all(said.as_bytes()))
                .await
        {
            written?;
            written_bytes += said.len();
            ensure!(written_bytes < 50 << 20, "the server reads on and on");
        }
        streams.push(stream);
    }
    let operator = Operator::of(&guarded.server).await?;
    let head = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n", operator.authority());
    let (_, _, page) = operator.exchange(&head, &[])?;
    let value = page.lines().find_map(|line| line.strip_prefix("switchyard_outbox_largest_bytes "));
    let largest: f64 = value.context("no such metric")?.parse()?;
    ensure!(largest > 0.0 && largest < 300_000.0, "{largest} bytes wait");
    drop(streams);
    guarded.server.stop().await
}

#[tokio::test]
async fn what_a_client_says_of_itself_has_a_bound() -> Result<()> {
    let server = Launch::with_config("limits.name_bytes_max = 64\n").start().await?;
    let address = server.resp_address().await?;
    let (fits, long) = ("x".repeat(64), "x".repeat(65));
    for command in ["CLIENT SETNAME", "CLIENT SETINFO lib-name", "CLIENT SETINFO lib-ver"] {
        let answer =
            exchange(address, &format!("{command} {fits}\r\n{command} {long}\r\n")).await?;
        ensure!(answer.starts_with("+OK\r\n-ERR 65 bytes"), "{command}: {answer}");
    }
    let answer =
        exchange(address, &format!("HELLO 2 SETNAME {long}\r\nCLIENT GETNAME\r\n")).await?;
    ensure!(answer.starts_with("-ERR 65 bytes") && answer.ends_with("$-1\r\n"), "{answer}");
    server.stop().await
}

/// Commands take many times the memory of their text.
#[tokio::test]
async fn a_frame_with_many_commands_closes_the_connection() -> Result<()> {
    let Guarded { server, secret, _plugins } = with_jwt("wait").await?;
    let frame = |commands: usize| {
        let pings: Vec<_> = (0..commands).map(|id| json!([id, "PING"])).collect();
        Message::text(json!(pings).to_string())
    };
    let mut client = Client::connect(server.address().await?, &Upgrade::default()).await?;
    let client = client.as_mut().ok().context("the upgrade")?;
    client.send(frame(128)).await?;
    for id in 0..128 {
        ensure!(client.next_json().await?.get(0) == Some(&json!(id)));
    }
    client.send(frame(129)).await?;
    match client.next().await? {
        Message::Close(Some(close)) => ensure!(u16::from(close.code) == 1009, "{close:?}"),
        other => anyhow::bail!("{other:?} instead of a close"),
    }
    let mut client = Client::connect(server.address().await?, &Upgrade::default()).await?;
    let client = client.as_mut().ok().context("the upgrade")?;
    ensure!(client.call(json!(["AUTH", secret])).await?.get(0) == Some(&json!("OK")));
    client.send(frame(129)).await?;
    for id in 0..129 {
        ensure!(client.next_json().await?.get(0) == Some(&json!(id)));
    }
    server.stop().await
}
