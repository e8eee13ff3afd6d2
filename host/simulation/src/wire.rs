//! A connection in memory whose reads and writes are cut and delayed at random.
//!
//! As on a socket, a read or write may transfer only a part, and may have to wait although the other
//! end has done its part. The server's end also has a half that flushers write to, so both writers of
//! an outbox are simulated.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::chance::Chance;
use switchyard_net::socket::{Socket, Stream, TryWrite};
use switchyard_telemetry::stats::Stats;

/// How many bytes may be on their way in one direction: few, so that sockets are often full.
const PIPE_BYTES: usize = 2 << 10;
/// One read or write in so many waits without need.
const DELAY_ONE_IN: usize = 8;
/// One in so many transfers only a part.
const CUT_ONE_IN: usize = 4;

/// Bytes on their way in one direction.
#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// Whether the writing end is closed.
    is_ended: bool,
    /// Whether the reading end is closed.
    is_unread: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

struct Wire {
    to_server: Mutex<Pipe>,
    to_client: Mutex<Pipe>,
    chance: Chance,
}

/// The two ends of a new connection: the client's, and the server's, whose flushed bytes are counted
/// in `stats`.
pub fn wire(chance: Chance, stats: Arc<Stats>) -> (ClientEnd, ServerEnd) {
    let wire = Arc::new(Wire { to_server: Mutex::default(), to_client: Mutex::default(), chance });
    let half = Box::new(ServerHalf(wire.clone()));
    let socket = Arc::new(Socket::in_memory(half, stats));
    (ClientEnd(wire.clone()), ServerEnd { wire, socket })
}

impl Wire {
    fn read(
        &self,
        pipe: &Mutex<Pipe>,
        context: &Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut pipe = pipe.lock();
        if pipe.bytes.is_empty() && pipe.is_ended {
            return Poll::Ready(Ok(()));
        }
        if pipe.bytes.is_empty() {
            pipe.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        if self.chance.one_in(DELAY_ONE_IN) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let count = self.part_of(pipe.bytes.len().min(buffer.remaining()));
        for byte in pipe.bytes.drain(..count) {
            buffer.put_slice(&[byte]);
        }
        pipe.writer.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }

    /// Writes, or registers the waker, if there is one.
    fn write(
        &self,
        pipe: &Mutex<Pipe>,
        context: Option<&Context<'_>>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut pipe = pipe.lock();
        if pipe.is_unread || pipe.is_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = PIPE_BYTES.saturating_sub(pipe.bytes.len());
        if room == 0 {
            pipe.writer = context.map(|context| context.waker().clone()).or(pipe.writer.take());
            return Poll::Pending;
        }
        if self.chance.one_in(DELAY_ONE_IN) {
            context.into_iter().for_each(|context| context.waker().wake_by_ref());
            return Poll::Pending;
        }
        let count = self.part_of(room.min(bytes.len()));
        pipe.bytes.extend(bytes.iter().take(count));
        pipe.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(count))
    }

    /// All of `most`, or less, but at least one if there is one.
    fn part_of(&self, most: usize) -> usize {
        if most > 1 && self.chance.one_in(CUT_ONE_IN) { self.chance.number(1..most) } else { most }
    }
}

impl Pipe {
    /// Closes the writing end.
    fn end(&mut self) {
        self.is_ended = true;
        self.reader.take().into_iter().for_each(Waker::wake);
    }

    /// Closes the reading end.
    fn abandon(&mut self) {
        self.is_unread = true;
        self.bytes.clear();
        self.writer.take().into_iter().for_each(Waker::wake);
    }
}

/// The client's end. The connection is reset when it is dropped.
pub struct ClientEnd(Arc<Wire>);

/// The server's end.
pub struct ServerEnd {
    wire: Arc<Wire>,
    socket: Arc<Socket>,
}

/// What flushers write to.
struct ServerHalf(Arc<Wire>);

impl TryWrite for ServerHalf {
    fn try_write(&self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.write(&self.0.to_client, None, bytes)
    }
}

impl Stream for ServerEnd {
    fn socket(&self) -> Option<Arc<Socket>> {
        Some(self.socket.clone())
    }
}

/// Reads and writes of an end: the pipe that it reads, and the one that it writes.
macro_rules! end {
    ($end:ident, $wire:tt, $reads:ident, $writes:ident) => {
        impl AsyncRead for $end {
            fn poll_read(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                self.$wire.read(&self.$wire.$reads, context, buffer)
            }
        }

        impl AsyncWrite for $end {
            fn poll_write(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                self.$wire.write(&self.$wire.$writes, Some(context), bytes)
            }

            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }

            fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.$wire.$writes.lock().end();
                Poll::Ready(Ok(()))
            }
        }

        impl Drop for $end {
            fn drop(&mut self) {
                self.$wire.$writes.lock().end();
                self.$wire.$reads.lock().abandon();
            }
        }
    };
}

end!(ClientEnd, 0, to_client, to_server);
end!(ServerEnd, wire, to_server, to_client);
