//! Clients that read too slowly.
//!
//! Each is closed with 4202 when its outbox has exceeded its limit, and the log says how much was
//! queued. No other client is delayed, clients that keep up lose nothing, and the server's memory
//! stays bounded.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::support::server::{Launch, Server};
use crate::support::websocket::{CLOSE, Client, Frame, PING, PONG, RawClient, TEXT, close_of};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// The longest permitted delay of another client. The aim is milliseconds.
const DELAY_MAX: Duration = Duration::from_secs(2);
/// What the server may use besides the limits: code, allocator, buffers of connections.
const OVERHEAD_BYTES: usize = 64 * MIB;

/// The server's resident memory, or its peak.
#[derive(Clone, Copy)]
enum Memory {
    Now,
    AtMost,
}

fn memory_bytes(server: &Server, which: Memory) -> Result<usize> {
    let key = match which {
        Memory::Now => "VmRSS:",
        Memory::AtMost => "VmHWM:",
    };
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).context(key)?;
    let kib = line.split_whitespace().next().context(key)?;
    Ok(kib.parse::<usize>()? * KIB)
}

/// Checks that the server's peak memory stayed within `more_max` bytes of `before`.
fn check_memory(server: &Server, before: usize, more_max: usize) -> Result<()> {
    let more = memory_bytes(server, Memory::AtMost)?.saturating_sub(before);
    println!("the server's memory grew by {} KiB at most", more / KIB);
    ensure!(more < more_max + OVERHEAD_BYTES, "the server took {more} bytes more");
    Ok(())
}

/// A client with a small receive buffer that listens to `flood`, and reads no more than the reply
/// to that.
async fn listener(server: &Server) -> Result<RawClient> {
    let mut listener = RawClient::dial_narrow(server.address().await?).await?.upgrade().await?;
    listener.send_text(r#"[1,"SUBSCRIBE","flood"]"#).await?;
    listener.next_frame().await?.context("the connection ended")?;
    Ok(listener)
}

/// A payload of this length that begins with its number.
fn payload(number: usize, bytes: usize) -> String {
    let number = number.to_string();
    number.clone() + &" ".repeat(bytes.saturating_sub(number.len()))
}

/// Publishes one payload; returns how many received it.
async fn publish(client: &mut Client, payload: &str) -> Result<u64> {
    let answer = client.call(json!(["PUBLISH", "flood", payload])).await?;
    ensure!(answer.get(0) == Some(&json!("OK")), "a publication was answered {answer}");
    answer.get(1).and_then(Value::as_u64).context("not a number of receivers")
}

/// Reads until the server closes, and checks that it does so with 4202 and reports how much was
/// queued. Returns how many messages arrived before that, without a gap.
async fn read_to_the_close(listener: &mut RawClient) -> Result<usize> {
    let mut messages = 0;
    loop {
        let frame = listener.next_frame().await?.context("it ended without a Close")?;
        if frame.opcode == CLOSE {
            let (code, reason) = close_of(&frame)?;
            ensure!(code == Some(4202), "closed with {code:?} ({reason})");
            ensure!(reason.contains("bytes waited"), "the reason is {reason}");
            listener.ends().await?;
            return Ok(messages);
        }
        ensure!(number_of(&frame.payload)? == messages, "a message is missing");
        messages += 1;
    }
}

/// The number in a message on `flood`.
fn number_of(frame: &[u8]) -> Result<usize> {
    let message: Value = serde_json::from_slice(frame)?;
    let number = message.get(2).and_then(Value::as_str).context("not a message")?;
    Ok(number.trim_end().parse()?)
}

/// The number of bytes in the log line about a slow consumer.
fn logged_bytes(line: &str) -> Result<usize> {
    let amount = line.split("outbox_bytes=").nth(1).context("the amount is not logged")?;
    Ok(amount.split_whitespace().next().unwrap_or_default().parse()?)
}

const TOO_SLOW: &str = "slow_consumer";

#[tokio::test]
async fn a_client_that_stops_reading_is_closed_and_delays_no_other() -> Result<()> {
    const SLOW: usize = 8;
    const PAYLOAD_BYTES: usize = 64 * KIB;
    const LIMIT_BYTES: usize = 2 * MIB;
    /// Far more than the limits and the socket buffers of all of them.
    const FLOOD_BYTES: usize = 512 * MIB;
    let server = Launch::with_config(&format!(
        "shutdown.timeout_ms = 100
        outbox.bytes_max = {LIMIT_BYTES}\noutbox.soft_bytes = {LIMIT_BYTES}
        websocket.close_timeout_ms = 60000"
    ))
    .start()
    .await?;
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        slow.push(listener(&server).await?);
    }
    let mut reader = server.client().await?;
    reader.call(json!(["SUBSCRIBE", "flood"])).await?;
    let mut publisher = server.client().await?;

    let memory_before = memory_bytes(&server, Memory::Now)?;
    let mut delay_most = Duration::ZERO;
    let mut number = 0;
    let mut receivers = SLOW as u64 + 1;
    while receivers > 1 {
        ensure!(number * PAYLOAD_BYTES < FLOOD_BYTES, "{receivers} still receive it all");
        let payload = payload(number, PAYLOAD_BYTES);
        let began = Instant::now();
        receivers = publish(&mut publisher, &payload).await?;
        let message = reader.next_json().await?;
        delay_most = delay_most.max(began.elapsed());
        ensure!(message == json!(["message", "flood", payload]), "message {number} is another");
        number += 1;
    }
    println!("{number} messages until {SLOW} were closed; another waited {delay_most:?} at most");
    ensure!(delay_most < DELAY_MAX, "another client waited {delay_most:?}");
    check_memory(&server, memory_before, SLOW * LIMIT_BYTES)?;

    // They read on and receive the close; the connections end, and the log has the amounts.
    for mut slow in slow {
        let messages = read_to_the_close(&mut slow).await?;
        ensure!(messages < number, "nothing was dropped, so why was it closed?");
    }
    for line in server.wait_for_logs(TOO_SLOW, SLOW).await? {
        let bytes = logged_bytes(&line)?;
        ensure!((LIMIT_BYTES..2 * LIMIT_BYTES).contains(&bytes), "{line}");
        ensure!(line.contains("WARN"), "the operator should look: {line}");
    }
    server.stop().await
}

/// A client that is cut off and does not even read its Close delays nothing, and is removed when
/// the time for the Close is over.
#[tokio::test]
async fn a_client_that_never_reads_again_is_cut_off() -> Result<()> {
    let config = format!(
        "shutdown.timeout_ms = 100\noutbox.bytes_max = {MIB}\noutbox.soft_bytes = {MIB}\nwebsocket.close_timeout_ms = 200"
    );
    let server = Launch::with_config(&config).start().await?;
    let mut slow = listener(&server).await?;
    let mut publisher = server.client().await?;
    let mut number = 0;
    while publish(&mut publisher, &payload(number, 64 * KIB)).await? > 0 {
        number += 1;
    }
    server.wait_for_log(TOO_SLOW).await?;
    // What was in flight is still there, but no whole Close.
    slow.rest().await?;
    server.stop().await
}

#[tokio::test]
async fn the_soft_limit_holds_after_its_time() -> Result<()> {
    const SOFT_BYTES: usize = 256 * KIB;
    const SOFT_TIME: Duration = Duration::from_millis(1_500);
    let server = Launch::with_config(&format!(
        "shutdown.timeout_ms = 100
        outbox.bytes_max = {}\noutbox.soft_bytes = {SOFT_BYTES}\noutbox.soft_ms = {}
        websocket.close_timeout_ms = 60000",
        1 << 30,
        SOFT_TIME.as_millis()
    ))
    .start()
    .await?;
    let mut slow = listener(&server).await?;
    let mut publisher = server.client().await?;
    let began = Instant::now();
    // More than the socket buffers hold.
    for number in 0..256 {
        let receivers = publish(&mut publisher, &payload(number, 64 * KIB)).await?;
        ensure!(receivers == 1 || began.elapsed() > SOFT_TIME, "it was closed before its time");
    }
    while publisher.call(json!(["PUBSUB", "NUMSUB", "flood"])).await? == json!(["OK", {"flood": 1}])
    {
        ensure!(began.elapsed() < Duration::from_secs(60), "it is never closed");
    }
    ensure!(began.elapsed() >= SOFT_TIME, "it was closed before its time");
    read_to_the_close(&mut slow).await?;
    drop(slow);
    let bytes = logged_bytes(&server.wait_for_log(TOO_SLOW).await?)?;
    ensure!(bytes >= SOFT_BYTES, "{bytes} bytes are not too many");
    server.stop().await
}

/// A client that catches up in time loses nothing.
#[tokio::test]
async fn a_client_that_catches_up_in_time_misses_nothing() -> Result<()> {
    const MESSAGES: usize = 256;
    let server =
        Launch::with_config("shutdown.timeout_ms = 100\noutbox.soft_bytes = 65536").start().await?;
    let mut slow = listener(&server).await?;
    let mut publisher = server.client().await?;
    for round in 0..2 {
        for number in 0..MESSAGES {
            let payload = payload(round * MESSAGES + number, 64 * KIB);
            ensure!(publish(&mut publisher, &payload).await? == 1, "it was closed");
        }
        for number in 0..MESSAGES {
            let frame = slow.next_frame().await?.context("it was closed")?;
            ensure!(frame.opcode == TEXT, "opcode {} came", frame.opcode);
            ensure!(number_of(&frame.payload)? == round * MESSAGES + number, "one is missing");
        }
    }
    slow.send_text(r#"[2,"PING"]"#).await?;
    let pong = slow.next_frame().await?.context("it was closed")?;
    ensure!(pong.payload == br#"[2,"OK","PONG"]"#, "{}", pong.payload.escape_ascii());
    server.stop().await
}

/// A client that reads, however slowly, counts as alive: its pongs are delayed by the data that it
/// has not read yet.
#[tokio::test]
async fn a_slow_reader_does_not_count_as_dead() -> Result<()> {
    const MESSAGES: usize = 256;
    const INTERVAL: Duration = Duration::from_millis(500);
    let server = Launch::with_config(&format!(
        "shutdown.timeout_ms = 100
        outbox.soft_bytes = 65536\nwebsocket.ping_interval_ms = {0}\nwebsocket.pong_timeout_ms = {0}",
        INTERVAL.as_millis()
    ))
    .start()
    .await?;
    let mut slow = listener(&server).await?;
    let mut publisher = server.client().await?;
    for number in 0..MESSAGES {
        ensure!(publish(&mut publisher, &payload(number, 64 * KIB)).await? == 1, "it was closed");
    }
    // Long enough for a ping to be due and overdue several times.
    let mut pace = tokio::time::interval(INTERVAL * 6 / MESSAGES as u32);
    let mut number = 0;
    while number < MESSAGES {
        pace.tick().await;
        let frame = slow.next_frame().await?.context("it was closed")?;
        ensure!(frame.opcode != CLOSE, "closed after {number}: {:?}", close_of(&frame)?);
        if frame.opcode == PING {
            slow.send(Frame::new(PONG, &frame.payload).bytes()).await?;
            continue;
        }
        ensure!(number_of(&frame.payload)? == number, "one is missing");
        number += 1;
    }
    server.stop().await
}

/// A kind of client that requests more than it reads.
struct Greed {
    name: &'static str,
    /// What it sends, again and again.
    frame: String,
    /// Whether the replies stay below the hard limit, so that the server stops reading from it
    /// until its time is over.
    waits: bool,
}

fn greeds() -> [Greed; 3] {
    let burst = |command: Value, count| Value::Array(vec![command; count]).to_string();
    let long = json!([1, "PING", "x".repeat(32 * KIB)]).to_string();
    [
        Greed { name: "long pongs", frame: long, waits: true },
        Greed { name: "short answers", frame: burst(json!([1, "HELLO"]), 1_000), waits: true },
        // Small requests with hundreds of megabytes of replies.
        Greed {
            name: "lists",
            frame: burst(json!([1, "PUBSUB", "CHANNELS"]), 5_000),
            waits: false,
        },
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_replies_is_not_read_from() -> Result<()> {
    const LIMIT_BYTES: usize = 4 * MIB;
    for Greed { name, frame, waits } in greeds() {
        let server = Launch::with_config(&format!(
            "shutdown.timeout_ms = 100
            outbox.bytes_max = {LIMIT_BYTES}\noutbox.soft_bytes = 65536\noutbox.soft_ms = 1000
            websocket.close_timeout_ms = 200"
        ))
        .start()
        .await?;
        let mut other = server.client().await?;
        let mut subscribe = vec![json!("SUBSCRIBE")];
        subscribe.extend((0..2_000).map(|number| json!(format!("a.channel.of.another.{number}"))));
        other.call(Value::Array(subscribe)).await?;
        let memory_before = memory_bytes(&server, Memory::Now)?;

        let mut greedy = RawClient::dial_narrow(server.address().await?).await?.upgrade().await?;
        let sent_bytes = Arc::new(AtomicUsize::new(0));
        let counter = sent_bytes.clone();
        let sending = tokio::spawn(async move {
            let frame = Frame::new(TEXT, frame).bytes();
            // Fails when the server has closed the connection.
            while greedy.send(&frame).await.is_ok() {
                counter.fetch_add(frame.len(), Ordering::Relaxed);
            }
            greedy
        });
        let mut delay_most = Duration::ZERO;
        let watching = async {
            loop {
                let began = Instant::now();
                other.call(json!(["PING"])).await?;
                delay_most = delay_most.max(began.elapsed());
            }
        };
        let line = tokio::select! {
            line = server.wait_for_log(TOO_SLOW) => line?,
            failed = watching => { let failed: Result<Infallible> = failed; match failed? {} }
        };
        sending.abort();
        let sent_bytes = sent_bytes.load(Ordering::Relaxed);
        println!("{name}: {} KiB sent, another waited {delay_most:?} at most", sent_bytes / KIB);
        ensure!(logged_bytes(&line)? >= 65_536, "{name}: {line}");
        // The socket buffers hold some of it.
        ensure!(!waits || sent_bytes < 32 * MIB, "{name}: {sent_bytes} bytes were read");
        ensure!(delay_most < DELAY_MAX, "{name}: another waited {delay_most:?}");
        check_memory(&server, memory_before, LIMIT_BYTES).context(name)?;
        server.stop().await?;
    }
    Ok(())
}
