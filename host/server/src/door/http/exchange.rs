//! The requests of one connection before it is a WebSocket, read and answered by hyper.
//!
//! The time and the slot of the handshake bound how long a client may take: one that sends its
//! request slowly is answered 408, or dropped for another. The time of a second request on the same
//! connection begins with its first byte. After the upgrade hyper returns the
//! stream with what was read of it behind the request, and nothing of hyper remains.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::body::Incoming as Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep};
use tracing::debug;

use super::handshake::Answer;
use super::head::HEADERS_MAX;
use switchyard_net::slots::Slot;
use switchyard_net::socket;

/// How long a client may take to read a response that ends its connection.
const ANSWER_TIME: Duration = Duration::from_secs(1);
/// How long a connection is kept for the next probe: as nginx' `keepalive_timeout`, which is longer
/// than the interval of most probes.
const KEEP_ALIVE_TIME: Duration = Duration::from_secs(75);
/// How many requests one connection may send: as nginx' `keepalive_requests`.
const REQUESTS_MAX: u32 = 1_000;
/// The smallest buffer that hyper accepts.
const BUFFER_BYTES_MIN: usize = 8 << 10;

/// The response to a client that did not send its request in time.
const TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\n\
    content-type: text/plain; charset=utf-8\r\ncontent-length: 26\r\nconnection: close\r\n\r\n\
    the request took too long\n";

/// How far the requests of a connection are.
pub struct Exchange<'a> {
    handshaking: &'a Slot,
    /// How long a client may take to send a request.
    time: Duration,
    progress: Mutex<Progress>,
}

struct Progress {
    phase: Phase,
    /// When the phase ends; none: the server works on the response.
    deadline: Option<Instant>,
    requests: u32,
    /// The last bytes that were received.
    tail: [u8; 3],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A request is received.
    Receiving,
    /// A request is answered.
    Answering,
    /// The connection is kept, and nothing of another request was received.
    Idle,
}

impl Progress {
    fn begin(&mut self, phase: Phase, time: Duration) {
        self.phase = phase;
        self.deadline = Some(Instant::now() + time);
    }

    /// Whether what was received last is the end of a head without a body, as far as its last bytes
    /// show it. Otherwise a part of the next request may have been received with it.
    fn is_at_end_of_head(&self) -> bool {
        self.tail == *b"\n\r\n" || self.tail.ends_with(b"\n\n")
    }
}

/// How the requests of a connection ended.
pub enum Ended<S> {
    /// The client did not send a request in time.
    TimedOut,
    /// The last response was sent. The stream, and what was received after the last request.
    Answered(S, Vec<u8>),
    /// The connection was lost.
    Lost,
}

impl<'a> Exchange<'a> {
    /// Each request must be complete within this time, the first one of it since the connection was
    /// accepted.
    pub fn new(handshaking: &'a Slot, time: Duration) -> Exchange<'a> {
        let deadline = Some(handshaking.began() + time);
        let progress = Progress { phase: Phase::Receiving, deadline, requests: 0, tail: [0; 3] };
        Exchange { handshaking, time, progress: Mutex::new(progress) }
    }

    /// These bytes were received.
    fn receive(&self, bytes: &[u8]) {
        let mut progress = self.progress.lock();
        for byte in bytes.iter().skip(bytes.len().saturating_sub(progress.tail.len())) {
            progress.tail.rotate_left(1);
            progress.tail[2] = *byte;
        }
        if progress.phase == Phase::Idle {
            progress.begin(Phase::Receiving, self.time);
        }
    }

    /// A request was received: the server works on it. Returns whether the client may send another
    /// one after it.
    pub fn begin(&self) -> bool {
        self.handshaking.works();
        let mut progress = self.progress.lock();
        progress.phase = Phase::Answering;
        progress.deadline = None;
        progress.requests += 1;
        progress.requests < REQUESTS_MAX
    }

    /// There is a response. `keeps_alive`: the connection stays open for another request.
    pub fn end(&self, keeps_alive: bool) {
        let mut progress = self.progress.lock();
        match keeps_alive {
            true if progress.is_at_end_of_head() => progress.begin(Phase::Idle, KEEP_ALIVE_TIME),
            true => progress.begin(Phase::Receiving, self.time),
            false => progress.begin(Phase::Answering, ANSWER_TIME),
        }
        drop(progress);
        if keeps_alive {
            // A new client is served before one that may send something later.
            self.handshaking.idles(Duration::ZERO);
        }
    }

    /// Reads requests and answers them with `respond`, until the client or a response ends that.
    pub async fn run<'b, S, R>(&self, stream: S, bytes_max: usize, respond: R) -> Ended<S>
    where
        S: AsyncRead + AsyncWrite + Unpin,
        R: Fn(hyper::Request<Body>) -> BoxFuture<'b, Result<Answer, Infallible>> + Unpin,
    {
        let service = service_fn(respond);
        let stream = TokioIo::new(Input { stream, exchange: self });
        let mut connection = builder(bytes_max).serve_connection(stream, service);
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        let serving = std::future::poll_fn(|context| {
            if let Poll::Ready(served) = connection.poll_without_shutdown(context) {
                return Poll::Ready(Some(served));
            }
            let Some(deadline) = self.progress.lock().deadline else { return Poll::Pending };
            let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            timer.as_mut().poll(context).map(|()| None)
        });
        let served = self.handshaking.waits(serving).await;
        let is_receiving = self.progress.lock().phase == Phase::Receiving;
        let parts = connection.into_parts();
        let mut stream = parts.io.into_inner().stream;
        match served {
            Some(Ok(())) => Ended::Answered(stream, parts.read_buf.into()),
            Some(Err(error)) => {
                debug!(%error, "no HTTP request, or the connection was lost");
                // The response says what was wrong. Some of what the client sent may be unread.
                let closing = async {
                    stream.shutdown().await?;
                    socket::discard_input(&mut stream).await
                };
                let _ = tokio::time::timeout(ANSWER_TIME, closing).await;
                Ended::Lost
            }
            None if is_receiving => {
                let answering = async {
                    stream.write_all(TIMEOUT).await?;
                    stream.shutdown().await
                };
                let _ = tokio::time::timeout(ANSWER_TIME, answering).await;
                Ended::TimedOut
            }
            None => Ended::Lost,
        }
    }
}

/// The stream of an exchange, which notes what is received.
struct Input<'a, S> {
    stream: S,
    exchange: &'a Exchange<'a>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Input<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        match buffer.filled().get(before..) {
            None | Some([]) => {}
            Some(bytes) => self.exchange.receive(bytes),
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Input<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Closes a connection after its last response, when the client may still send a body: if it were
/// not read, the connection would be reset, and the client might not receive the response.
pub async fn close_unread<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let closing = socket::write_and_close(&mut stream, &[]);
    let _ = tokio::time::timeout(ANSWER_TIME, closing).await;
}

/// Closes a connection after its last response.
pub async fn close<S: AsyncWrite + Unpin>(mut stream: S) {
    let _ = tokio::time::timeout(ANSWER_TIME, stream.shutdown()).await;
}

/// Answers one request, and closes the connection. The caller bounds the time.
pub async fn answer_one<'b, S, R>(stream: &mut S, bytes_max: usize, respond: R)
where
    S: AsyncRead + AsyncWrite + Unpin,
    R: Fn(hyper::Request<Body>) -> BoxFuture<'b, Result<Answer, Infallible>> + Unpin,
{
    let mut builder = builder(bytes_max);
    let serving =
        builder.keep_alive(false).serve_connection(TokioIo::new(stream), service_fn(respond));
    let _gone = serving.await;
}

fn builder(bytes_max: usize) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // A client may close its half after its request, and still wait for the response.
        .half_close(true)
        .auto_date_header(false)
        .max_headers(HEADERS_MAX)
        .max_header_size(bytes_max)
        .max_buf_size(bytes_max.max(BUFFER_BYTES_MIN));
    builder
}
