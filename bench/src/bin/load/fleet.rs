//! Many connections in one thread: what is sent is written at once, what comes is
//! counted. A message costs less here than in any server that it is sent to.

use std::io::{Error, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use memchr::memmem;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::wire::Wire;

/// How long a server may say nothing before the run is given up.
const SILENCE_MAX: Duration = Duration::from_secs(10);

const READ_BYTES_MAX: usize = 256 << 10;

/// Connections, by number.
pub struct Fleet {
    poll: Poll,
    events: Events,
    sockets: Vec<Socket>,
    buffer: Vec<u8>,
    uninvited: Option<&'static [u8]>,
    /// What the last poll received: the number of the connection, and how much.
    pub came: Vec<(usize, usize)>,
}

struct Socket {
    stream: TcpStream,
    /// What the socket did not take yet.
    unsent: Vec<u8>,
    /// Whether it received the unsolicited data that the protocol's servers send once.
    is_bothered: bool,
}

impl Fleet {
    /// No connections. What the protocol's servers send each of them once,
    /// unsolicited, is not counted.
    pub fn new(wire: Wire) -> Result<Fleet> {
        Ok(Fleet {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            sockets: Vec::new(),
            buffer: vec![0; READ_BYTES_MAX],
            uninvited: wire.uninvited(),
            came: Vec::new(),
        })
    }

    /// Takes a connection, and answers its number.
    pub fn take(&mut self, stream: std::net::TcpStream) -> Result<usize> {
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        let number = self.sockets.len();
        let interests = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(number), interests)?;
        self.sockets.push(Socket { stream, unsent: Vec::new(), is_bothered: false });
        Ok(number)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Sends on a connection; what it does not take at once follows later.
    pub fn send(&mut self, number: usize, bytes: &[u8]) -> Result<()> {
        let socket = self.sockets.get_mut(number).context("no such connection")?;
        let mut rest = bytes;
        if socket.unsent.is_empty() {
            let written = write(&mut socket.stream, rest)?;
            rest = rest.get(written..).unwrap_or_default();
        }
        socket.unsent.extend_from_slice(rest);
        Ok(())
    }

    /// Waits until something comes, at most so long, and leaves in `came` what did.
    pub fn poll(&mut self, wait_max: Duration) -> Result<()> {
        self.came.clear();
        if let Err(error) = self.poll.poll(&mut self.events, Some(wait_max)) {
            ensure!(error.kind() == ErrorKind::Interrupted, error);
            return Ok(());
        }
        for event in &self.events {
            let number = event.token().0;
            let Some(socket) = self.sockets.get_mut(number) else { continue };
            if event.is_writable() && !socket.unsent.is_empty() {
                let written = write(&mut socket.stream, &socket.unsent)?;
                socket.unsent.drain(..written);
            }
            if !event.is_readable() {
                continue;
            }
            loop {
                match socket.stream.read(&mut self.buffer) {
                    Ok(0) => {
                        let closed = format!("the server closed connection {number}");
                        return Err(Error::new(ErrorKind::UnexpectedEof, closed).into());
                    }
                    Ok(length) => {
                        let mut counted = length;
                        if let Some(uninvited) = self.uninvited
                            && !socket.is_bothered
                            && let Some(read) = self.buffer.get(..length)
                            && memmem::find(read, uninvited).is_some()
                        {
                            socket.is_bothered = true;
                            counted -= uninvited.len();
                        }
                        if counted > 0 {
                            self.came.push((number, counted));
                        }
                        // Less than there was room for: all that was there, and what
                        // comes next is an event again.
                        if length < self.buffer.len() {
                            break;
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// As `poll`, but silence is a failure: something is owed.
    pub fn poll_owed(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            self.poll(Duration::from_millis(500))?;
            if !self.came.is_empty() {
                return Ok(());
            }
            ensure!(started.elapsed() < SILENCE_MAX, "the server says nothing more");
        }
    }
}

/// Whether this is what came of a server that closed a connection.
pub fn is_closed(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Error>().is_some_and(|error| {
        let kinds = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        kinds.contains(&error.kind())
    })
}

fn write(stream: &mut TcpStream, bytes: &[u8]) -> Result<usize> {
    match stream.write(bytes) {
        Ok(written) => Ok(written),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(error.into()),
    }
}
