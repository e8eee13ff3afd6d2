//! The lower bound for any server: it answers the load's RESP commands with one read and one
//! write each, on a thread for each core, and does nothing else. It has no limits, no error
//! handling and no slow-consumer handling, and clients never disconnect. What a server takes
//! above it is its own cost; to be faster than it, a server must make other system calls.
//!
//! `floor PORT` serves until it is killed.

use std::collections::HashMap;
use std::env;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket, Type};

const READ_BYTES_MAX: usize = 64 << 10;
const LISTENER: Token = Token(usize::MAX);

/// The connections that are subscribed to each channel.
type Subscribers = RwLock<HashMap<Vec<u8>, Vec<Arc<TcpStream>>>>;

struct Connection {
    stream: Arc<TcpStream>,
    /// The beginning of a command whose end has not come.
    rest: Vec<u8>,
}

fn main() -> Result<()> {
    let port: u16 = env::args().nth(1).context("usage: floor PORT")?.parse()?;
    let subscribers = Arc::new(Subscribers::default());
    let threads: Vec<_> = (0..thread::available_parallelism()?.get())
        .map(|_| {
            let subscribers = subscribers.clone();
            thread::spawn(move || serve(port, &subscribers))
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    }
    Ok(())
}

/// The kernel deals connections out to the threads that listen.
fn listen(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into()))
}

fn serve(port: u16, subscribers: &Subscribers) -> Result<()> {
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(1024));
    let mut listener = listen(port)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut connections: Vec<Connection> = Vec::new();
    let mut buffer = vec![0; READ_BYTES_MAX];
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    let token = Token(connections.len());
                    poll.registry().register(&mut stream, token, Interest::READABLE)?;
                    connections.push(Connection { stream: Arc::new(stream), rest: Vec::new() });
                }
                continue;
            }
            let Some(connection) = connections.get_mut(event.token().0) else { continue };
            // Until nothing more is there, or the load has left: it says when it is owed something.
            while let Ok(length) = (&*connection.stream).read(&mut buffer) {
                let read = buffer.get(..length).unwrap_or_default();
                answer(connection, read, subscribers)?;
                if length < buffer.len() {
                    break;
                }
            }
        }
    }
}

/// Carries out what was read: replies in one write, and messages to each subscriber in
/// one for all publications to its channel that follow each other.
fn answer(connection: &mut Connection, read: &[u8], subscribers: &Subscribers) -> Result<()> {
    let whole = match connection.rest.is_empty() {
        true => None,
        false => {
            connection.rest.extend_from_slice(read);
            Some(std::mem::take(&mut connection.rest))
        }
    };
    let mut input = whole.as_deref().unwrap_or(read);
    let mut replies = Vec::new();
    let mut messages: (&[u8], Vec<u8>) = (b"", Vec::new());
    while let Some((words, rest)) = command(input) {
        match words {
            [b"PUBLISH", channel, payload] => {
                if channel != messages.0 {
                    deliver(&messages, subscribers)?;
                    messages = (channel, Vec::new());
                }
                let subscribers = subscribers.read().map_err(|_| anyhow::anyhow!("poisoned"))?;
                let count = subscribers.get(channel).map_or(0, Vec::len);
                if count > 0 {
                    let message: [&[u8]; 3] = [b"message", channel, payload];
                    array(&mut messages.1, &message)?;
                }
                write!(replies, ":{count}\r\n")?;
            }
            [b"SUBSCRIBE", channel, b""] => {
                let mut subscribers =
                    subscribers.write().map_err(|_| anyhow::anyhow!("poisoned"))?;
                let all = subscribers.entry(channel.to_vec()).or_default();
                all.push(connection.stream.clone());
                let acknowledged: [&[u8]; 2] = [b"subscribe", channel];
                replies.extend_from_slice(b"*3\r\n");
                bulks(&mut replies, &acknowledged)?;
                replies.extend_from_slice(b":1\r\n");
            }
            _ => bail!("only PUBLISH, and SUBSCRIBE to one channel"),
        }
        input = rest;
    }
    deliver(&messages, subscribers)?;
    send(&connection.stream, &replies)?;
    connection.rest.extend_from_slice(input);
    Ok(())
}

fn deliver((channel, messages): &(&[u8], Vec<u8>), subscribers: &Subscribers) -> Result<()> {
    if messages.is_empty() {
        return Ok(());
    }
    let subscribers = subscribers.read().map_err(|_| anyhow::anyhow!("poisoned"))?;
    subscribers.get(*channel).into_iter().flatten().try_for_each(|stream| send(stream, messages))
}

fn send(mut stream: &TcpStream, bytes: &[u8]) -> Result<()> {
    let sent = if bytes.is_empty() { 0 } else { stream.write(bytes)? };
    ensure!(sent == bytes.len(), "the socket took {sent} of {} bytes", bytes.len());
    Ok(())
}

fn array(output: &mut Vec<u8>, words: &[&[u8]]) -> Result<()> {
    write!(output, "*{}\r\n", words.len())?;
    bulks(output, words)
}

fn bulks(output: &mut Vec<u8>, words: &[&[u8]]) -> Result<()> {
    for word in words {
        write!(output, "${}\r\n", word.len())?;
        output.extend_from_slice(word);
        output.extend_from_slice(b"\r\n");
    }
    Ok(())
}

/// The first command, as three words, and what follows it. None: its end has not come.
fn command(input: &[u8]) -> Option<([&[u8]; 3], &[u8])> {
    let (count, mut input) = number(input)?;
    let mut words: [&[u8]; 3] = [b""; 3];
    for word in words.iter_mut().take(count) {
        let (length, rest) = number(input)?;
        *word = rest.get(..length)?;
        input = rest.get(length + 2..)?;
    }
    Some((words, input))
}

/// The number of a line behind its sign, and what follows the line.
fn number(input: &[u8]) -> Option<(usize, &[u8])> {
    let end = memchr::memchr(b'\n', input)?;
    let digits = input.get(1..end - 1)?;
    let number = digits.iter().fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
    Some((number, input.get(end + 1..)?))
}
