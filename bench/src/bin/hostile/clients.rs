//! The clients that behave well: each publishes to itself at a fixed rate and measures how long
//! its message takes. Each has an address of its own.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use crate::server::{Ports, Target, connect_from};

/// How many there are.
pub const COUNT: usize = 50;
/// The time between two messages of one.
const PACE: Duration = Duration::from_millis(50);
/// A message that takes longer is not answered.
const PATIENCE: Duration = Duration::from_secs(5);

/// How they were served.
pub struct Outcome {
    /// From sending a message to receiving it, in microseconds.
    pub latency_us: Histogram<u64>,
    /// How many were refused, closed or not answered in time.
    pub unanswered: usize,
}

/// Runs them for so long.
pub fn run(target: Target, ports: Ports, time: Duration) -> Result<Outcome> {
    let threads: Vec<_> = (0..COUNT)
        .map(|number| std::thread::spawn(move || one(number, target, ports, time)))
        .collect();
    let mut latency_us = Histogram::new_with_bounds(1, 60_000_000, 3)?;
    let mut unanswered = 0;
    for thread in threads {
        match thread.join() {
            Ok(Ok(own)) => latency_us.add(own)?,
            Ok(Err(error)) => {
                eprintln!("a client was not served: {error:#}");
                unanswered += 1;
            }
            Err(_) => unanswered += 1,
        }
    }
    ensure!(!latency_us.is_empty(), "no client was served at all");
    Ok(Outcome { latency_us, unanswered })
}

fn one(number: usize, target: Target, ports: Ports, time: Duration) -> Result<Histogram<u64>> {
    let mut latency = Histogram::new_with_bounds(1, 60_000_000, 3)?;
    let started = Instant::now();
    let address = Ipv4Addr::new(127, 1, 0, u8::try_from(number)? + 1);
    let mut stream = connect_from(address, ports.resp)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let payload = "x".repeat(100);
    let channel = format!("own:{number:03}");
    let (message, answer_len) = match target {
        Target::Echo => {
            let message = format!("{channel}{payload}");
            let length = message.len();
            (message, length)
        }
        Target::Switchyard => {
            stream.write_all(b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n")?;
            read_until(&mut stream, |read| read.ends_with(b"\r\n") && read.contains(&b'%'))?;
            let subscribe = format!("*2\r\n$9\r\nSUBSCRIBE\r\n$7\r\n{channel}\r\n");
            stream.write_all(subscribe.as_bytes())?;
            read_until(&mut stream, |read| read.ends_with(b":1\r\n"))?;
            let message =
                format!("*3\r\n$7\r\nPUBLISH\r\n$7\r\n{channel}\r\n$100\r\n{payload}\r\n");
            let push = format!(">3\r\n$7\r\nmessage\r\n$7\r\n{channel}\r\n$100\r\n{payload}\r\n");
            // With the reply, `:1`.
            (message, push.len() + 4)
        }
    };
    let mut next = started + PACE * u32::try_from(number)? / COUNT as u32;
    let mut answer = vec![0; answer_len];
    while started.elapsed() < time {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        // From the time at which it was due: a late generator must not make a server look better.
        let sent = next;
        stream.write_all(message.as_bytes())?;
        match stream.read_exact(&mut answer) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                anyhow::bail!("no answer within {} s", PATIENCE.as_secs());
            }
            Err(error) => return Err(error).context("the connection was closed"),
        }
        latency.saturating_record((sent.elapsed().as_micros() as u64).max(1));
        next = (next + PACE).max(Instant::now());
    }
    Ok(latency)
}

fn read_until(stream: &mut TcpStream, is_whole: impl Fn(&[u8]) -> bool) -> Result<()> {
    let mut read = Vec::new();
    let mut buffer = [0; 4096];
    while !is_whole(&read) {
        let length = stream.read(&mut buffer)?;
        ensure!(length > 0, "the connection was closed: {}", read.escape_ascii());
        read.extend_from_slice(buffer.get(..length).unwrap_or_default());
    }
    Ok(())
}
