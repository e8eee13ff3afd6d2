//! A connection that only its own task reads, and that flushers also write to.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use switchyard_telemetry::stats::Stats;

/// How much is read at once: as much as Redis reads (`PROTO_IOBUF_LEN`). With more, others wait
/// longer for each of many connections that send as fast as they can.
pub const READ_BYTES_MAX: usize = 16 << 10;

thread_local! {
    /// The buffer that all connections of a thread read into.
    pub static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES_MAX].into());
}

/// Writes the last bytes, and closes: waits until the peer has closed, too, so that it reads them.
///
/// # Errors
///
/// The connection failed.
pub async fn write_and_close<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    bytes: &[u8],
) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    discard_input(stream).await
}

/// Reads and drops bytes until the peer closes. Closing a socket with unread bytes resets the
/// connection, and the peer may lose what was written last. The peer may send as fast as it can, so
/// all other tasks run between two reads.
///
/// # Errors
///
/// The connection failed.
pub async fn discard_input<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<()> {
    while poll_fn(|context| poll_discard(Pin::new(&mut *stream), context)).await? > 0 {
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Reads what is available and drops it. Returns how many bytes; none: end of input.
fn poll_discard<S: AsyncRead>(
    stream: Pin<&mut S>,
    context: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    READ_BUFFER.with_borrow_mut(|buffer| {
        let mut read = ReadBuf::new(buffer);
        ready!(stream.poll_read(context, &mut read))?;
        Poll::Ready(Ok(read.filled().len()))
    })
}

/// The transport of a connection.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The socket for writes by flushers; none: only the connection's own task writes.
    fn socket(&self) -> Option<Arc<Socket>> {
        None
    }
}

/// Writes what is accepted without waiting. Pending: nothing, and no waker is registered.
pub trait TryWrite: Send + Sync {
    /// Writes from the beginning of these bytes. Returns how many were written.
    ///
    /// # Errors
    ///
    /// The connection failed.
    fn try_write(&self, bytes: &[u8]) -> Poll<io::Result<usize>>;
}

/// The write half of a connection.
pub struct Socket {
    half: Half,
    stats: Arc<Stats>,
}

enum Half {
    /// None only while it is dropped.
    Tcp(Option<OwnedWriteHalf>),
    /// A connection without a socket of the operating system.
    InMemory(Box<dyn TryWrite>),
}

/// A TCP connection without TLS.
pub struct Plain {
    half: OwnedReadHalf,
    socket: Arc<Socket>,
}

impl Plain {
    /// Splits a connection. Writes of flushers are counted in `stats`.
    pub fn new(stream: TcpStream, stats: Arc<Stats>) -> Plain {
        let (half, out) = stream.into_split();
        Plain { half, socket: Arc::new(Socket { half: Half::Tcp(Some(out)), stats }) }
    }
}

impl Socket {
    /// The write half of a connection in memory. Writes of flushers are counted in `stats`.
    pub fn in_memory(half: Box<dyn TryWrite>, stats: Arc<Stats>) -> Socket {
        Socket { half: Half::InMemory(half), stats }
    }

    /// Writes what the socket accepts now. Pending: it accepts nothing, and no waker is registered.
    ///
    /// # Errors
    ///
    /// The connection failed.
    pub fn try_write(&self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &self.half {
            Half::Tcp(Some(half)) => match half.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
                written => Poll::Ready(written),
            },
            Half::Tcp(None) => Poll::Ready(Ok(0)),
            Half::InMemory(half) => half.try_write(bytes),
        }
    }

    /// Counts bytes that a flusher wrote.
    pub fn wrote(&self, bytes: usize) {
        self.stats.wrote(bytes);
    }

    fn stream(&self) -> Option<&TcpStream> {
        match &self.half {
            Half::Tcp(half) => half.as_ref().map(AsRef::as_ref),
            Half::InMemory(_) => None,
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The socket is closed with its other half, and not shut down before.
        if let Half::Tcp(half) = &mut self.half {
            half.take().into_iter().for_each(OwnedWriteHalf::forget);
        }
    }
}

impl Stream for Plain {
    fn socket(&self) -> Option<Arc<Socket>> {
        Some(self.socket.clone())
    }
}

impl Stream for TlsStream<TcpStream> {}
/// Only the task of the connection writes to it.
impl Stream for UnixStream {}
impl Stream for DuplexStream {}

impl AsyncRead for Plain {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_read(context, buffer)
    }
}

impl AsyncWrite for Plain {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(stream) = self.socket.stream() else { return Poll::Ready(Ok(0)) };
        loop {
            ready!(stream.poll_write_ready(context))?;
            if let Poll::Ready(written) = self.socket.try_write(bytes) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(stream) = self.socket.stream() else { return Poll::Ready(Ok(())) };
        Poll::Ready(match SockRef::from(stream).shutdown(std::net::Shutdown::Write) {
            // The peer is disconnected.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        })
    }
}
