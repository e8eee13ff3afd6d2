//! The bounds on the memory of all connections together.
//!
//! Whatever clients send, the server stays within its bounds. It closes with 4107 the connections
//! that hold the most for the longest, logs it, serves all others, and frees the memory.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::admin::Operator;
use crate::support::server::{Launch, Server};
use crate::support::websocket::{CLOSE, Client, Frame, RawClient, TEXT, close_of};
use crate::support::{PATIENCE, within};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// The bound of most servers here: a third of it is for queued output, a tenth for partially
/// received input.
const CONFIG: &str = "shutdown.timeout_ms = 100\nmemory.bytes_max = 67108864\n";
const OUTBOXES: usize = 64 * MIB / 100 * 30;
const INPUT: usize = 64 * MIB / 100 * 10;

/// What the server may use besides: the allocator, data that sockets have not accepted yet, and
/// connections that are closed and not yet gone.
const OVERHEAD: usize = 64 * MIB;

/// What the allocator may keep of freed memory. A thread keeps a page for each size of block that it
/// has used until it allocates again; such a page has up to 4 MiB.
const KEPT: usize = 48 * MIB;

fn status_bytes(server: &Server, key: &str) -> Result<usize> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).context("no such key")?;
    let kib = line.split_whitespace().next().context("no value")?;
    Ok(kib.parse::<usize>()? * KIB)
}

/// Waits until the server holds less than this. The allocator returns free memory a few seconds
/// later, while the server has something to do.
async fn wait_for_memory_below(server: &Server, witness: &mut Witness, bytes: usize) -> Result<()> {
    let began = Instant::now();
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    loop {
        looks.tick().await;
        witness.look().await?;
        let now = status_bytes(server, "VmRSS:")?;
        if now < bytes {
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "the server still holds {} KiB", now / KIB);
    }
}

/// A RESP client with a small receive buffer that listens to a channel and does not read.
async fn deaf_reader(address: SocketAddr, from: [u8; 4], channel: &str) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    socket.bind(SocketAddr::new(Ipv4Addr::from(from).into(), 0))?;
    let mut stream = within(PATIENCE, "a connection", socket.connect(address)).await??;
    stream.write_all(format!("SUBSCRIBE {channel}\r\n").as_bytes()).await?;
    let mut acknowledged = [0; 16];
    within(PATIENCE, "an acknowledgement", stream.read_exact(&mut acknowledged)).await??;
    Ok(stream)
}

const LOOPBACK: [u8; 4] = [127, 0, 0, 1];

/// Publishes this payload over RESP; returns how many received it.
async fn publish(publisher: &mut TcpStream, channel: &str, payload: &[u8]) -> Result<u64> {
    let head =
        format!("*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n${}\r\n", channel.len(), payload.len());
    publisher.write_all(&[head.as_bytes(), payload, b"\r\n"].concat()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n") {
        answer.push(within(PATIENCE, "an answer", publisher.read_u8()).await??);
    }
    let answer = String::from_utf8(answer)?;
    answer.trim_end().strip_prefix(':').and_then(|n| n.parse().ok()).context(answer.clone())
}

/// A payload that no other test message equals.
fn payload(number: usize) -> Vec<u8> {
    let mut payload = vec![b'.'; MIB];
    let number = number.to_string();
    payload.iter_mut().zip(number.bytes()).for_each(|(place, digit)| *place = digit);
    payload
}

/// How many connections the server reports as closed for this bound.
async fn closed_for(server: &Server, bound: &str) -> Result<u64> {
    let metrics = metrics(server).await?;
    let key = format!("switchyard_memory_closed_total{{bound=\"{bound}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&key)).context(key.clone())?;
    Ok(line.parse()?)
}

async fn metrics(server: &Server) -> Result<String> {
    let operator = Operator::of(server).await?;
    let head = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n", operator.authority());
    let (status, _, body) = operator.exchange(&head, b"")?;
    ensure!(status == 200, "HTTP {status}");
    Ok(body)
}

/// A well-behaved client, which measures how long its messages take.
struct Witness {
    client: Client,
    slowest: Duration,
}

impl Witness {
    async fn new(server: &Server) -> Result<Witness> {
        let mut client = server.client().await?;
        client.call(json!(["SUBSCRIBE", "witness"])).await?;
        Ok(Witness { client, slowest: Duration::ZERO })
    }

    /// Publishes a message and receives it.
    async fn look(&mut self) -> Result<()> {
        let began = Instant::now();
        let answer = self.client.call(json!(["PUBLISH", "witness", "x"])).await?;
        ensure!(answer == json!(["OK", 1]), "{answer}");
        let message = self.client.next_json().await?;
        ensure!(message == json!(["message", "witness", "x"]), "{message}");
        self.slowest = self.slowest.max(began.elapsed());
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_do_not_read_do_not_take_the_server_along() -> Result<()> {
    const READERS: usize = 40;
    const ROUNDS: usize = 12;
    let config = format!("{CONFIG}limits.uncounted_networks = ['127.0.0.0/8']");
    let server = Launch::with_config(&config).start().await?;
    let address = server.resp_address().await?;
    let mut witness = Witness::new(&server).await?;
    let mut deaf = Vec::new();
    for number in 0..READERS {
        deaf.push(deaf_reader(address, LOOPBACK, &format!("deaf.{number}")).await?);
    }
    let mut publisher = TcpStream::connect(address).await?;
    let before = status_bytes(&server, "VmRSS:")?;
    for round in 0..ROUNDS {
        for number in 0..READERS {
            let payload = payload(round * READERS + number);
            publish(&mut publisher, &format!("deaf.{number}"), &payload).await?;
        }
        witness.look().await?;
    }
    let most = status_bytes(&server, "VmHWM:")? - before;
    println!("grew by {} KiB at most; slowest {:?}", most / KIB, witness.slowest);
    ensure!(most < OUTBOXES + OVERHEAD, "the server grew by {} KiB", most / KIB);
    let closed = closed_for(&server, "outboxes").await?;
    ensure!(closed >= READERS as u64 / 2, "only {closed} were closed");
    let line = server.wait_for_log("to stay within limits.outbox_bytes_total_max").await?;
    ensure!(line.contains("WARN") && line.contains("first=127.0.0.1:"), "{line}");
    ensure!(witness.slowest < PATIENCE / 4, "a message took {:?}", witness.slowest);
    witness.look().await?;
    drop(deaf);
    wait_for_memory_below(&server, &mut witness, before + KEPT).await?;
    server.stop().await
}

/// A connection that is closed for memory receives the rest of the current message, and then the
/// reason.
#[tokio::test]
async fn a_client_that_reads_on_receives_the_reason() -> Result<()> {
    let config = format!("{CONFIG}limits.uncounted_networks = ['127.0.0.0/8']");
    let server = Launch::with_config(&config).start().await?;
    let address = server.resp_address().await?;
    let mut websocket = RawClient::dial_narrow(server.address().await?).await?.upgrade().await?;
    websocket.send_text(r#"[1,"SUBSCRIBE","first"]"#).await?;
    websocket.next_frame().await?.context("no acknowledgement")?;
    let mut publisher = TcpStream::connect(address).await?;
    // It has more queued output, and for longer, than each of the others: it is closed first.
    for number in 0..10 {
        publish(&mut publisher, "first", &payload(number)).await?;
    }
    let mut deaf = Vec::new();
    while closed_for(&server, "outboxes").await? == 0 {
        ensure!(deaf.len() < 2 * OUTBOXES / MIB, "none was closed");
        let channel = format!("deaf.{}", deaf.len());
        deaf.push(deaf_reader(address, LOOPBACK, &channel).await?);
        for number in 0..4 {
            publish(&mut publisher, &channel, &payload(4 * deaf.len() + number)).await?;
        }
    }
    loop {
        let frame = websocket.next_frame().await?.context("it ended without a Close")?;
        if frame.opcode == CLOSE {
            let (code, reason) = close_of(&frame)?;
            ensure!(code == Some(4107), "closed with {code:?} ({reason})");
            ensure!(reason.contains("limits.outbox_bytes_total_max"), "{reason}");
            return server.stop().await;
        }
    }
}

/// A message to many receivers is in memory once, and counts once.
#[tokio::test]
async fn what_is_sent_to_many_counts_once() -> Result<()> {
    const READERS: usize = 20;
    let server = Launch::with_config(CONFIG).start().await?;
    let address = server.resp_address().await?;
    let mut deaf = Vec::new();
    for _ in 0..READERS {
        deaf.push(deaf_reader(address, LOOPBACK, "all").await?);
    }
    let mut publisher = TcpStream::connect(address).await?;
    // Far more than the bound, if each had its own copy.
    for number in 0..14 {
        let receivers = publish(&mut publisher, "all", &payload(number)).await?;
        ensure!(receivers == READERS as u64, "{receivers} received message {number}");
    }
    ensure!(closed_for(&server, "outboxes").await? == 0, "some were closed");
    let operator = Operator::of(&server).await?;
    let memory = operator.get("/v1/memory")?;
    let used = budget(&memory, "outboxes")?;
    ensure!((MIB..16 * MIB).contains(&used), "{memory}");
    let holders = memory["connections"].as_array().context("no connections")?;
    ensure!(holders.len() == 10, "{memory}");
    let first = holders.first().context("none holds anything")?;
    ensure!(first["outbox_bytes"].as_u64() > Some(4 * MIB as u64), "{memory}");
    ensure!(first["stalled_ms"].is_u64() && first["connection"].is_u64(), "{memory}");
    server.stop().await
}

fn budget(memory: &Value, name: &str) -> Result<usize> {
    let budgets = memory["budgets"].as_array().context("no budgets")?;
    let budget = budgets.iter().find(|budget| budget["budget"] == name).context("no budget")?;
    let used = budget["used_bytes"].as_u64().context("not a number")?;
    Ok(used as usize)
}

#[tokio::test]
async fn one_address_does_not_take_what_is_for_all() -> Result<()> {
    let config = format!(
        "{CONFIG}limits.uncounted_networks = []\nlimits.outbox_bytes_per_address_max = 6291456\n\
         limits.input_bytes_per_address_max = {INPUT}"
    );
    let server = Launch::with_config(&config).start().await?;
    let address = server.resp_address().await?;
    let mut deaf = Vec::new();
    // The others connect first, so their data has waited for longer.
    for (from, channel) in [([127, 0, 0, 3], "other"), (LOOPBACK, "one"), (LOOPBACK, "two")] {
        deaf.push(deaf_reader(address, from, channel).await?);
    }
    let mut publisher = TcpStream::connect(address).await?;
    let channels = ["other"; 6].into_iter().chain(["one", "two"].into_iter().cycle().take(16));
    for (number, channel) in channels.enumerate() {
        publish(&mut publisher, channel, &payload(number)).await?;
    }
    ensure!(closed_for(&server, "outboxes").await? == 0);
    ensure!(closed_for(&server, "outboxes_of_address").await? >= 1, "none was closed");
    let receivers = publish(&mut publisher, "other", b"x").await?;
    ensure!(receivers == 1, "it is another address");
    let line = server.wait_for_log("to stay within limits.outbox_bytes_per_address_max").await?;
    ensure!(line.contains("first=127.0.0.1:"), "{line}");
    server.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_sent_requests_do_not_take_the_server_along() -> Result<()> {
    const CLIENTS: usize = 60;
    let server = Launch::with_config(CONFIG).start().await?;
    let address = server.resp_address().await?;
    let mut witness = Witness::new(&server).await?;
    let before = status_bytes(&server, "VmRSS:")?;
    let mut half = Vec::new();
    let mut websockets = Vec::new();
    for number in 0..CLIENTS {
        match number % 3 {
            // One argument of a megabyte, without its last byte.
            0 => {
                let mut stream = TcpStream::connect(address).await?;
                let head = format!("*2\r\n$4\r\nPING\r\n${MIB}\r\n");
                let body = vec![b'x'; MIB - 1];
                // The server may close it during the write.
                let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
                half.push(stream);
            }
            // A request of many arguments, without the last one.
            1 => {
                let mut stream = TcpStream::connect(address).await?;
                let head = "*100001\r\n$4\r\nECHO\r\n".to_owned();
                let _ = stream.write_all((head + &"$1\r\nx\r\n".repeat(99_999)).as_bytes()).await;
                half.push(stream);
            }
            // A fragmented message, without its last fragment.
            _ => {
                let mut client = server.raw_client().await?;
                let body = "x".repeat(64 * KIB - 1);
                for fragment in 0..16 {
                    let opcode = if fragment == 0 { TEXT } else { 0 };
                    if client.send(Frame::new(opcode, &body).part().bytes()).await.is_err() {
                        break;
                    }
                }
                websockets.push(client);
            }
        }
        witness.look().await?;
    }
    let closed = closed_for(&server, "input").await?;
    ensure!(closed > 0 && closed < CLIENTS as u64, "{closed} were closed");
    let most = status_bytes(&server, "VmHWM:")? - before;
    println!("grew by {} KiB at most; {closed} were closed", most / KIB);
    ensure!(most < INPUT + OVERHEAD, "the server grew by {} KiB", most / KIB);
    let memory = Operator::of(&server).await?.get("/v1/memory")?;
    ensure!(budget(&memory, "input")? <= INPUT, "{memory}");
    let line = server.wait_for_log("to stay within limits.input_bytes_total_max").await?;
    ensure!(line.contains("WARN"), "{line}");
    // The first of them was closed, and receives the reason.
    let mut first = websockets.swap_remove(0);
    let (code, reason) = first.next_close().await?;
    ensure!(code == Some(4107) && reason.contains("limits.input_bytes_total_max"), "{reason}");
    drop((half, websockets));
    // When memory returns to the system is up to the allocator.
    let operator = Operator::of(&server).await?;
    let let_go = async {
        while budget(&operator.get("/v1/memory")?, "input")? > 0 {
            witness.look().await?;
        }
        anyhow::Ok(())
    };
    within(PATIENCE, "the end of what was received in part", let_go).await??;
    witness.look().await?;
    server.stop().await
}

/// Commands that wait for the next time budget count, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_wait_are_bounded() -> Result<()> {
    const CLIENTS: usize = 30;
    let server = Launch::with_config(CONFIG).start().await?;
    let before = status_bytes(&server, "VmRSS:")?;
    let burst = Value::Array(vec![json!(["PUBLISH", "c", "x"]); 40_000]).to_string();
    let frame = Frame::new(TEXT, &burst).bytes();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = server.raw_client().await?;
        let _ = client.send(&frame).await;
        clients.push(client);
    }
    let mut witness = Witness::new(&server).await?;
    witness.look().await?;
    let most = status_bytes(&server, "VmHWM:")? - before;
    println!("grew by {} KiB at most", most / KIB);
    ensure!(most < 2 * OVERHEAD, "the server grew by {} KiB", most / KIB);
    server.stop().await
}

#[tokio::test]
async fn a_message_that_does_not_end_is_not_waited_for_for_ever() -> Result<()> {
    let config = "shutdown.timeout_ms = 100\nlimits.input_timeout_ms = 300";
    let server = Launch::with_config(config).start().await?;
    let address = server.resp_address().await?;
    // Whole messages with long pauses: no message is incomplete for long.
    let mut patient = TcpStream::connect(address).await?;
    patient.write_all(b"PING\r\n").await?;
    let mut half = TcpStream::connect(address).await?;
    half.write_all(b"*2\r\n$4\r\nPING\r\n$10\r\nx").await?;
    // Bytes arrive all the time, but no message is completed.
    let mut dripping = server.raw_client().await?;
    dripping.send(Frame::new(TEXT, "[").part().bytes()).await?;
    let mut rest = Vec::new();
    within(PATIENCE, "the end", half.read_to_end(&mut rest)).await??;
    ensure!(rest.is_empty());
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    let drips = async {
        loop {
            pace.tick().await;
            if dripping.send(Frame::new(0, " ").part().bytes()).await.is_err() {
                return;
            }
            if dripping.send(Frame::new(9, "").bytes()).await.is_err() {
                return;
            }
        }
    };
    within(PATIENCE, "the end of one that drips", drips).await?;
    let metrics = metrics(&server).await?;
    ensure!(metrics.contains("switchyard_connections_closed_total{reason=\"slow_input\"} 2"));
    let mut pong = [0; 7];
    within(PATIENCE, "an answer", patient.read_exact(&mut pong)).await??;
    patient.write_all(b"PING\r\n").await?;
    within(PATIENCE, "an answer", patient.read_exact(&mut pong)).await??;
    ensure!(&pong == b"+PONG\r\n");
    server.stop().await
}

/// Settings that do not fit are refused before the server listens.
#[tokio::test]
async fn settings_that_do_not_fit_are_refused() -> Result<()> {
    let config = "memory.bytes_max = 67108864\nlimits.outbox_bytes_total_max = 134217728\n";
    let home = tempfile::tempdir()?;
    let file = home.path().join("switchyard.toml");
    std::fs::write(&file, config)?;
    let file = file.to_str().context("a path")?;
    for words in [["serve", "--check", "--config", file].as_slice(), &["serve", "--config", file]] {
        let mut server = Server::run_with(words)?;
        let (status, stdout) = server.exit().await?;
        ensure!(status.code() == Some(64) && stdout.is_empty(), "{status}");
        let log = server.log();
        for part in ["memory.bytes_max is 67108864", "limits.outbox_bytes_total_max = 134217728"] {
            ensure!(log.contains(part), "{part}: {log}");
        }
    }
    std::fs::write(file, "memory.bytes_max = 67108864\n")?;
    let mut server = Server::run_with(&["serve", "--check", "--config", file])?;
    let (status, _) = server.exit().await?;
    let log = server.log();
    ensure!(status.success() && log.contains("at most 64.0 MiB (memory.bytes_max)"), "{log}");
    Ok(())
}

/// The server's health as the admin listener reports it: status and body.
async fn health(server: &Server) -> Result<(u16, Value)> {
    Operator::of(server).await?.ask("GET", "/healthz", None)
}

/// Above four fifths of a bound the server reports it, before it closes anything.
#[tokio::test]
async fn a_bound_that_is_near_is_warned_of() -> Result<()> {
    let server = Launch::with_config(&format!("{CONFIG}health.reuse_ms = 1")).start().await?;
    let address = server.resp_address().await?;
    let mut deaf = Vec::new();
    let mut publisher = TcpStream::connect(address).await?;
    let began = Instant::now();
    // Slower than the interval at which the server checks its memory.
    let mut pace = tokio::time::interval(Duration::from_millis(150));
    'near: for number in 0.. {
        let channel = format!("deaf.{number}");
        deaf.push(deaf_reader(address, LOOPBACK, &channel).await?);
        for part in 0..8 {
            publish(&mut publisher, &channel, &payload(8 * number + part)).await?;
            pace.tick().await;
            let (status, body) = health(&server).await?;
            if body["memory"]["status"] == "degraded" {
                ensure!(status == 200, "it serves: {body}");
                break 'near;
            }
            ensure!(began.elapsed() < 2 * PATIENCE, "it is never near: {body}");
        }
    }
    let line = server.wait_for_log("is almost used up").await?;
    ensure!(line.contains("WARN") && line.contains("outboxes"), "{line}");
    drop(deaf);
    let began = Instant::now();
    while health(&server).await?.1["memory"]["status"] != "ok" {
        ensure!(began.elapsed() < PATIENCE, "it stays near");
    }
    if closed_for(&server, "outboxes").await? > 0 {
        bail!("the warning came too late");
    }
    server.stop().await
}
