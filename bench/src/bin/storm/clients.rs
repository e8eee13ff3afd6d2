//! The clients: they speak just enough of WebSocket.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;

/// How often the bystander is sent a message.
const INTERVAL: Duration = Duration::from_millis(2);
/// How long all of it may take.
const TIME_MAX: Duration = Duration::from_secs(120);

/// A WebSocket.
struct Socket {
    stream: TcpStream,
    /// What was received and not yet looked at.
    buffer: Vec<u8>,
}

impl Socket {
    async fn open(address: SocketAddr) -> Result<Socket> {
        Socket::open_from(address, 0).await
    }

    /// Opens a connection from one of many addresses: one address has too few ports for several
    /// storms in a row.
    async fn open_from(address: SocketAddr, client: usize) -> Result<Socket> {
        let socket = TcpSocket::new_v4()?;
        let last = u8::try_from(2 + client % 64)?;
        socket.bind((Ipv4Addr::new(127, 0, 1, last), 0).into())?;
        let mut stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        let request = "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
            Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut socket = Socket { stream, buffer: Vec::new() };
        loop {
            socket.fill().await?;
            let end = socket.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
            if let Some(end) = end {
                ensure!(socket.buffer.starts_with(b"HTTP/1.1 101"), "the upgrade was refused");
                socket.buffer.drain(..end + 4);
                return Ok(socket);
            }
        }
    }

    async fn fill(&mut self) -> Result<()> {
        let read = self.stream.read_buf(&mut self.buffer).await?;
        ensure!(read > 0, "the server closed the connection");
        Ok(())
    }

    /// Sends a text frame. The mask is zero.
    async fn send(&mut self, text: &str) -> Result<()> {
        let mut frame = vec![0x81];
        match text.len() {
            length @ ..126 => frame.push(0x80 | length as u8),
            length @ ..65_536 => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(text.as_bytes());
        self.stream.write_all(&frame).await?;
        Ok(())
    }

    /// The next text.
    async fn next(&mut self) -> Result<String> {
        loop {
            if let Some((start, end)) = frame(&self.buffer) {
                let text = self.buffer.get(start..end).unwrap_or_default();
                let text = String::from_utf8(text.to_vec())?;
                self.buffer.drain(..end);
                return Ok(text);
            }
            self.fill().await?;
        }
    }
}

/// Where the payload of the first frame begins and ends; none: it is not complete.
fn frame(buffer: &[u8]) -> Option<(usize, usize)> {
    let (start, length) = match buffer.get(1)? {
        126 => (4, u16::from_be_bytes(*buffer.get(2..4)?.first_chunk()?) as usize),
        127 => (10, u64::from_be_bytes(*buffer.get(2..10)?.first_chunk()?) as usize),
        short => (2, *short as usize),
    };
    (buffer.len() >= start + length).then_some((start, start + length))
}

fn channel(number: usize) -> String {
    format!("storm.{number}")
}

fn position(answer: &str) -> Result<String> {
    let (_, rest) = answer.split_once("\"position\":\"").with_context(|| answer.to_owned())?;
    Ok(rest.split('"').next().unwrap_or_default().to_owned())
}

/// Where the histories are now.
pub fn positions(address: SocketAddr, channels: usize) -> Result<Vec<String>> {
    Runtime::new()?.block_on(async {
        let mut socket = Socket::open(address).await?;
        let mut positions = Vec::new();
        for number in 0..channels {
            socket
                .send(&format!("[1,\"HISTORY\",\"{}\",{{\"limit\":1}}]", channel(number)))
                .await?;
            positions.push(position(&socket.next().await?)?);
        }
        Ok(positions)
    })
}

/// Publishes messages on each channel, and returns where the histories are then.
pub fn publish(address: SocketAddr, channels: usize, messages: usize) -> Result<Vec<String>> {
    Runtime::new()?.block_on(async {
        let mut socket = Socket::open(address).await?;
        let mut positions = Vec::new();
        for number in 0..channels {
            let mut last = String::new();
            for _ in 0..messages {
                let payload = "x".repeat(100);
                let options = "{\"position\":true}";
                let publish =
                    format!("[1,\"PUBLISH\",\"{}\",\"{payload}\",{options}]", channel(number));
                socket.send(&publish).await?;
                last = position(&socket.next().await?)?;
            }
            positions.push(last);
        }
        Ok(positions)
    })
}

/// Clients that connect at once.
pub struct Storm<'a> {
    /// How many channels each resumes.
    pub resumed: usize,
    /// How many messages each misses on each of them.
    pub missed: usize,
    /// Where the histories were when they disconnected.
    pub positions: &'a [String],
}

impl Storm<'_> {
    /// Connects all of them. Returns when each has received what it missed; they are connected while
    /// the runtime that is returned exists.
    pub fn run(&self, address: SocketAddr, clients: usize) -> Result<Runtime> {
        let runtime = Runtime::new()?;
        runtime.block_on(async {
            let tasks: Vec<_> = (0..clients)
                .map(|client| {
                    let request = self.request(client);
                    let (resumed, missed) = (self.resumed, self.missed);
                    tokio::spawn(live((address, client), request, resumed, missed))
                })
                .collect();
            let waiting = async {
                for task in tasks {
                    task.await??;
                }
                anyhow::Ok(())
            };
            tokio::time::timeout(TIME_MAX, waiting).await.context("not all are live in time")?
        })?;
        Ok(runtime)
    }

    fn request(&self, client: usize) -> String {
        let resumes: Vec<String> = (0..self.resumed)
            .map(|place| {
                // Each has other channels.
                let number = (client * 7 + place * 131) % self.positions.len();
                let position = self.positions.get(number).map_or("", String::as_str);
                format!("[{place},\"RESUME\",\"{}\",\"{position}\"]", channel(number))
            })
            .collect();
        format!("[{}]", resumes.join(","))
    }
}

/// Connects, resumes, and checks what it receives. The connection stays open.
async fn live(
    (address, client): (SocketAddr, usize),
    request: String,
    resumed: usize,
    missed: usize,
) -> Result<()> {
    let mut socket = Socket::open_from(address, client).await?;
    if resumed > 0 {
        socket.send(&request).await?;
        let (mut replies, mut messages) = (0, 0);
        while replies < resumed || messages < resumed * missed {
            let text = socket.next().await?;
            if text.starts_with("[\"message\"") {
                messages += 1;
            } else if text.contains("\"recovered\":true") {
                replies += 1;
            } else {
                bail!("{text}");
            }
        }
    }
    tokio::spawn(async move {
        let mut socket = socket;
        // Until the server or the runtime ends.
        while socket.fill().await.is_ok() {
            socket.buffer.clear();
        }
    });
    Ok(())
}

/// A subscriber on another channel that measures how late messages arrive.
pub struct Bystander {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Result<Duration>>,
}

impl Bystander {
    /// Subscribes, and begins to measure.
    pub fn start(address: SocketAddr) -> Result<Bystander> {
        let is_over = Arc::new(AtomicBool::new(false));
        let flag = is_over.clone();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async move {
                let mut subscriber = Socket::open(address).await?;
                subscriber.send("[1,\"SUBSCRIBE\",\"beside\"]").await?;
                subscriber.next().await?;
                let mut publisher = Socket::open(address).await?;
                ready.send(())?;
                let mut times = Histogram::<u64>::new(3)?;
                while !flag.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    publisher.send("[1,\"PUBLISH\",\"beside\",\"x\"]").await?;
                    subscriber.next().await?;
                    times.record(began.elapsed().as_micros() as u64)?;
                    publisher.next().await?;
                    tokio::time::sleep(INTERVAL).await;
                }
                Ok(Duration::from_micros(times.value_at_quantile(0.99)))
            })
        });
        is_ready.recv()?;
        Ok(Bystander { is_over, thread })
    }

    /// The 99th percentile of the time from publishing to receiving.
    pub fn end(self) -> Result<Duration> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the bystander panicked"))?
    }
}
