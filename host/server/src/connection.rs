//! The task of a connection: passes received bytes to its decoder, and writes its outbox, as far as no
//! flusher does ([flush](switchyard_net::flush)).
//!
//! Bytes are read into a buffer that the connections of a thread share, so that an idle connection
//! holds none; the rest of an unfinished command is kept. What is queued in the outbox is written
//! with one call. This module does not interpret the bytes.

use std::future::poll_fn;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;

use crate::decoder::Decoder;
use crate::session::{Session, TIME_BUDGET};
use switchyard_hub::connections::Connections;
use switchyard_net::chunks::{Chunks, Written};
use switchyard_net::outbox::{Last, Outbox, QueueState};
use switchyard_net::scheduling;
use switchyard_net::socket::{self, READ_BUFFER, READ_BYTES_MAX};
use switchyard_telemetry::panics;
use switchyard_telemetry::stats::Stats;
use switchyard_types::close::CloseReason;

/// How much capacity an unfinished command's buffer may keep once the command is finished.
const KEPT_BYTES_MAX: usize = 4 << 10;
/// How much capacity may be kept for an unfinished command that needs little of it.
const KEPT_FOR_LITTLE_MAX: usize = 256 << 10;
/// How many bytes are received of a client whose commands wait for as long as it likes.
const AHEAD_BYTES_MAX: usize = 64 << 10;
/// How often a busy connection is read in a row before it yields to all other tasks and to the
/// I/O driver.
const READS_IN_A_ROW_MAX: u8 = 8;
/// For how long it is read in a row, by a clock of milliseconds.
const ROW_MS_MAX: u64 = 1;

/// Writes the bytes of an outbox.
#[derive(Default)]
pub struct Writer {
    chunks: Chunks,
    /// What was written and is not yet reported to the outbox.
    written: Written,
    /// Whether the connection should not be read from now: too much is queued, or another task
    /// writes to it.
    are_reads_paused: bool,
    /// Whether the socket's send buffer is full.
    is_blocked: bool,
    /// Whether a blocked socket accepted bytes since the last check: its peer has read.
    was_unblocked: bool,
}

impl Writer {
    /// Writes until the outbox is empty. Ready: the outbox is closing, for this reason; `finish`
    /// writes what may still be written.
    fn poll<S: AsyncWrite>(
        &mut self,
        mut stream: Pin<&mut S>,
        outbox: &Outbox,
        stats: &Stats,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<CloseReason>> {
        loop {
            let written = std::mem::take(&mut self.written);
            match outbox.take(written, &mut self.chunks, context) {
                QueueState::Open { is_congested } => self.are_reads_paused = is_congested,
                QueueState::Busy => {
                    self.are_reads_paused = true;
                    return Poll::Pending;
                }
                QueueState::Closing(reason) => return Poll::Ready(Ok(reason)),
            }
            if self.chunks.is_empty() {
                // Bytes that TLS has accepted and its socket has not.
                if stream.as_mut().poll_flush(context)?.is_pending() {
                    self.is_blocked = true;
                } else {
                    self.was_unblocked |= std::mem::take(&mut self.is_blocked);
                }
                return Poll::Pending;
            }
            let Poll::Ready(written) = self.poll_write(stream.as_mut(), context)? else {
                self.is_blocked = true;
                return Poll::Pending;
            };
            self.written = written;
            self.was_unblocked |= std::mem::take(&mut self.is_blocked);
            stats.wrote(written.bytes);
        }
    }

    /// Writes everything that is left, and then `last`, which may be empty. An error: nothing more
    /// may be written, because the memory was needed.
    async fn finish<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        outbox: &Outbox,
        last: Bytes,
    ) -> io::Result<()> {
        poll_fn(|context| self.poll_rest(Pin::new(&mut *stream), outbox, context)).await?;
        if !last.is_empty() {
            self.chunks.push(last);
        }
        while !self.chunks.is_empty() {
            poll_fn(|context| self.poll_write(Pin::new(&mut *stream), context)).await?;
        }
        stream.flush().await
    }

    /// Writes what is left in the outbox.
    fn poll_rest<S: AsyncWrite>(
        &mut self,
        mut stream: Pin<&mut S>,
        outbox: &Outbox,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let written = std::mem::take(&mut self.written);
            if outbox.take_last(written, &mut self.chunks, context) == Last::Drop {
                self.chunks.clear();
                return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
            }
            if self.chunks.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.written = ready!(self.poll_write(stream.as_mut(), context))?;
        }
    }

    fn poll_write<S: AsyncWrite>(
        &mut self,
        stream: Pin<&mut S>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Written>> {
        self.chunks.write(|bytes| stream.poll_write(context, bytes))
    }
}

/// An admitted connection.
pub struct OpenConnection<S, D> {
    stream: S,
    writer: Writer,
    /// The beginning of a command that is only decoded as a whole.
    unfinished: Vec<u8>,
    /// Whether the time budget was exhausted before the decoder had processed everything.
    goes_on: bool,
    /// How often in a row there was something to read or left to process.
    reads_in_a_row: u8,
    /// When the first of them was, in milliseconds since the table of connections began; none:
    /// the session has waited for others since, and the next read is the first.
    row_began_ms: Option<u64>,
    /// Whether the peer has closed its half of the stream.
    input_ended: bool,
    session: Session,
    decoder: D,
    close_time: Duration,
}

/// The result of one read.
struct Read {
    /// How many bytes were read; none: end of input.
    bytes: usize,
    /// How many bytes were processed.
    processed: usize,
    /// When they came, in milliseconds since the table of connections began.
    now_ms: u64,
}

/// How a connection ended.
#[derive(Debug)]
pub enum End<'a> {
    /// The server closed it, or the client did with a close handshake.
    Closed(&'a CloseReason),
    /// The stream failed, or ended without a close handshake.
    Gone(io::Error),
}

impl<S: AsyncRead + AsyncWrite + Unpin, D: Decoder> OpenConnection<S, D> {
    /// A connection after its handshake, with the bytes that followed it.
    pub fn new(
        stream: S,
        received: Vec<u8>,
        session: Session,
        decoder: D,
        close_time: Duration,
    ) -> OpenConnection<S, D> {
        OpenConnection {
            stream,
            writer: Writer::default(),
            unfinished: received,
            goes_on: true,
            reads_in_a_row: 0,
            row_began_ms: None,
            input_ended: false,
            session,
            decoder,
            close_time,
        }
    }

    /// Serves the connection until it ends. `ended` reports how, before the client can see it, so
    /// that a close that was seen is counted; what it returns is dropped with the connection.
    #[expect(clippy::manual_async_fn, reason = "it would hold its arguments twice")]
    pub fn run<R: Send>(
        mut self,
        connections: Arc<Connections>,
        stats: Arc<Stats>,
        ended: impl FnOnce(End<'_>, &Stats) -> R + Send,
    ) -> impl Future<Output = ()> + Send
    where
        S: Send,
        D: Send,
    {
        async move {
            // A panic closes the connection gracefully, as far as possible.
            let served = poll_fn(|context| {
                panics::contain(|| self.poll(&connections, &stats, context))
                    .unwrap_or(Poll::Ready(Ok(CloseReason::Internal)))
            });
            match served.await {
                Ok(reason) => {
                    self.forget_input();
                    let outbox = &self.session.connection.outbox;
                    poll_fn(|context| outbox.poll_detach(context)).await;
                    self.session.end();
                    let kept = ended(End::Closed(&reason), &stats);
                    // On the heap: it is larger than everything before it.
                    let close_time = self.close_time;
                    let sending = self.close(&reason, kept);
                    let sending = Box::pin(AssertUnwindSafe(sending).catch_unwind());
                    // A client that does not read its last bytes in time does not get them.
                    let _ = tokio::time::timeout(close_time, sending).await;
                }
                Err(error) => {
                    self.writer.chunks.clear();
                    self.session.connection.outbox.discard();
                    self.session.end();
                    ended(End::Gone(error), &stats);
                }
            }
        }
    }

    fn poll(
        &mut self,
        connections: &Connections,
        stats: &Stats,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<CloseReason>> {
        let mut is_row_over = false;
        self.session.release_history();
        loop {
            let had_receivers = self.session.had_receivers();
            // The next connection reads histories after the worker has polled the I/O driver, so
            // that a row of them does not delay everything else.
            if is_row_over || self.is_row_over() || self.session.has_read_history() {
                self.reads_in_a_row = 0;
                scheduling::yield_to_io_driver(context);
                return Poll::Pending;
            }
            if had_receivers {
                // The publisher is polled again after the subscribers on this thread that write
                // what it published. If it got its reply first, it could publish faster than
                // messages are written. At the next poll of the I/O driver, a faster publisher
                // would be before this one.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let outbox = &self.session.connection.outbox;
            let written = self.writer.poll(Pin::new(&mut self.stream), outbox, stats, context)?;
            if let Poll::Ready(reason) = written {
                return Poll::Ready(Ok(reason));
            }
            if std::mem::take(&mut self.writer.was_unblocked) {
                // A client that reads what it is sent is alive, however slow.
                connections.mark_active(&self.session.connection);
            }
            // A client that does not read its replies is not read from. This is checked again when
            // its socket accepts bytes again.
            if self.writer.are_reads_paused || self.session.has_unread_replies() {
                return Poll::Pending;
            }
            if self.goes_on {
                if self.session.poll_progress(context).is_pending() {
                    // Others were served: the time of the row starts again.
                    self.row_began_ms = None;
                    if self.session.is_blocked() {
                        return self.poll_ahead(connections, stats, context);
                    }
                    return Poll::Pending;
                }
                let mut unfinished = std::mem::take(&mut self.unfinished);
                let processed = self.decode(&mut unfinished, Instant::now());
                unfinished.drain(..processed);
                self.unfinished = with_room_for_what_is_there(unfinished);
                // The client's idle time does not run while the server is busy with it.
                self.note_input(connections, || connections.now_ms(), true);
                continue;
            }
            let Poll::Ready(read) = self.poll_read(connections, context)? else {
                self.reads_in_a_row = 0;
                return Poll::Pending;
            };
            if read.bytes == 0 {
                self.input_ended = true;
                return Poll::Ready(self.at_end_of_input());
            }
            stats.read(read.bytes);
            let row_began_ms = match self.reads_in_a_row {
                0 | 1 => self.row_began_ms.insert(read.now_ms),
                _ => self.row_began_ms.get_or_insert(read.now_ms),
            };
            // After a full buffer there is probably more: the others run first.
            is_row_over = read.bytes == READ_BYTES_MAX || read.now_ms - *row_began_ms > ROW_MS_MAX;
            let has_progressed = self.decoder.has_progressed(read.processed);
            self.note_input(connections, || read.now_ms, has_progressed);
        }
    }

    /// Whether other connections are served before this one goes on: it was read from, or
    /// executed commands, many times in a row, or for longer than one time budget. Only a
    /// connection with commands left to execute reads the clock for that.
    fn is_row_over(&self) -> bool {
        if self.reads_in_a_row >= READS_IN_A_ROW_MAX {
            return true;
        }
        self.reads_in_a_row >= 1
            && self.goes_on
            && !self.session.waits_for_another_task()
            && self.session.budget_began().elapsed() > TIME_BUDGET
    }

    /// Accounts for what is held of messages that were received in part. `has_progressed`: a
    /// message was complete, or the server has something to do before it reads on.
    fn note_input(
        &mut self,
        connections: &Connections,
        now_ms: impl Fn() -> u64,
        has_progressed: bool,
    ) {
        let connection = &self.session.connection;
        let input = &connection.input;
        let in_decoder = self.decoder.unfinished_bytes();
        let kept = self.decoder.kept_bytes() + self.session.held_bytes();
        let held = self.unfinished.capacity() + in_decoder + kept;
        if held == 0 && !input.has_begun() && input.accounted() == 0 {
            return;
        }
        if self.unfinished.is_empty() && in_decoder == 0 {
            if input.has_begun() {
                input.end_message();
            }
        } else if !input.has_begun() || has_progressed {
            input.begin_message(now_ms());
        }
        let memory = connections.memory();
        if held >= memory.input.step() || input.accounted() > 0 {
            memory.hold_input(connection, held, now_ms());
        }
    }

    /// Drops what was received and not executed: the connection is closing.
    fn forget_input(&mut self) {
        self.unfinished = Vec::new();
        self.decoder.forget_unfinished();
        self.session.forget_pending();
    }

    /// The client has ended its input. What is queued for it is still written.
    fn at_end_of_input(&self) -> io::Result<CloseReason> {
        match self.decoder.end_of_input() {
            Some(reason) => Ok(reason),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Reads what is available, and processes it.
    fn poll_read(
        &mut self,
        connections: &Connections,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Read>> {
        READ_BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
            let fresh = read.filled_mut();
            let length = fresh.len();
            if length == 0 {
                return Poll::Ready(Ok(Read { bytes: 0, processed: 0, now_ms: 0 }));
            }
            // One look at the clock for all that needs the time: it costs more than most of it.
            let now = Instant::now();
            let now_ms = connections.received_at(&self.session.connection, now);
            let processed;
            if self.unfinished.is_empty() {
                processed = self.decode(fresh, now);
                self.unfinished.extend_from_slice(fresh.get(processed..).unwrap_or_default());
            } else {
                let mut joined = std::mem::take(&mut self.unfinished);
                joined.extend_from_slice(fresh);
                processed = self.decode(&mut joined, now);
                joined.drain(..processed);
                self.unfinished = with_room_for_what_is_there(joined);
            }
            Poll::Ready(Ok(Read { bytes: length, processed, now_ms }))
        })
    }

    /// Receives while the session waits for as long as its client likes, so that the end of the
    /// connection is noticed. What is received is kept, up to a bound.
    fn poll_ahead(
        &mut self,
        connections: &Connections,
        stats: &Stats,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<CloseReason>> {
        while self.unfinished.len() < AHEAD_BYTES_MAX {
            let (stream, unfinished) = (Pin::new(&mut self.stream), &mut self.unfinished);
            let bytes = READ_BUFFER.with_borrow_mut(|buffer| {
                let mut read = ReadBuf::new(buffer);
                ready!(stream.poll_read(context, &mut read))?;
                unfinished.extend_from_slice(read.filled());
                Poll::Ready(io::Result::Ok(read.filled().len()))
            });
            let bytes = ready!(bytes)?;
            if bytes == 0 {
                self.input_ended = true;
                return Poll::Ready(self.at_end_of_input());
            }
            stats.read(bytes);
            let now = Instant::now();
            connections.received_at(&self.session.connection, now);
            self.session.start_budget(now);
            let handled = self.decoder.decode_ahead(&mut self.unfinished, &mut self.session);
            self.unfinished.drain(..handled);
            self.note_input(connections, || connections.now_ms(), true);
        }
        Poll::Pending
    }

    /// Has the decoder process these bytes within a new time budget. Returns how many it has
    /// processed.
    fn decode(&mut self, bytes: &mut [u8], now: Instant) -> usize {
        self.session.start_budget(now);
        self.reads_in_a_row += 1;
        let progress = self.decoder.decode(bytes, &mut self.session);
        self.goes_on = progress.is_unfinished;
        progress.bytes
    }

    /// Sends the last bytes, and waits until the client closes, too. `kept` is dropped when the
    /// server has nothing to wait for: without a close handshake, when all is sent.
    async fn close<R>(&mut self, reason: &CloseReason, kept: R) -> io::Result<()> {
        let last_bytes = self.decoder.last_bytes(reason);
        let outbox = &self.session.connection.outbox;
        self.writer.finish(&mut self.stream, outbox, last_bytes).await?;
        self.stream.shutdown().await?;
        if self.input_ended {
            return Ok(());
        }
        let _kept = D::HAS_CLOSE_HANDSHAKE.then_some(kept);
        socket::discard_input(&mut self.stream).await
    }
}

/// The buffer without capacity that is no longer needed: a large command was finished, and the next
/// one has just begun.
#[inline]
fn with_room_for_what_is_there(unfinished: Vec<u8>) -> Vec<u8> {
    let is_wasteful = match unfinished.is_empty() {
        true => unfinished.capacity() > KEPT_BYTES_MAX,
        false => unfinished.capacity() > KEPT_FOR_LITTLE_MAX.max(4 * unfinished.len()),
    };
    if is_wasteful { unfinished.as_slice().to_vec() } else { unfinished }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Waker;

    use anyhow::{Context as _, Result};
    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::decoder::Progress;
    use crate::prepare::prepare;
    use crate::session::{Framing, Services, WriteReply};
    use switchyard_config::{Config, EngineSource};
    use switchyard_hub::connections::Connection;
    use switchyard_hub::encoding::Encoding;
    use switchyard_types::command::{Command, Kind, Publication, Reply, Request, Space, Tag};

    /// A decoder that calls this function in each poll.
    struct Does<F>(F);

    impl<F: FnMut(&mut [u8], &mut Session) -> Progress> Decoder for Does<F> {
        fn decode(&mut self, bytes: &mut [u8], session: &mut Session) -> Progress {
            (self.0)(bytes, session)
        }

        fn end_of_input(&self) -> Option<CloseReason> {
            None
        }

        fn last_bytes(&self, _: &CloseReason) -> Bytes {
            Bytes::new()
        }
    }

    /// More publications than are batched.
    const BURST: usize = 20;

    #[derive(Clone, Copy)]
    struct Dots;

    impl WriteReply for Dots {
        fn write(&self, _: Tag, _: &Reply<'_>, output: &mut Vec<u8>) {
            output.push(b'.');
        }
    }

    /// Publishes a burst for any input.
    fn publishes(bytes: &mut [u8], session: &mut Session) -> Progress {
        let request = |_| Request {
            tag: Tag::InOrder,
            command: Ok(Command::Publish(Publication::new(
                Space::Channels,
                b"news".into(),
                b"m".into(),
            ))),
        };
        let count = if bytes.is_empty() { 0 } else { BURST };
        session.execute((0..count).map(request), Dots, false);
        Progress { bytes: bytes.len(), is_unfinished: false }
    }

    fn services() -> Result<Services> {
        let mut config = Config::default();
        config.engine.source = EngineSource::Native;
        Ok(prepare(&config)?.1)
    }

    fn connection(services: &Services) -> Result<Arc<Connection>> {
        let remote = ([127, 0, 0, 1], 1).into();
        services.hub.connections().add(Encoding::RESP2, remote).ok().context("there is room")
    }

    fn open<D: Decoder>(
        services: &Services,
        decoder: D,
    ) -> Result<(OpenConnection<DuplexStream, D>, DuplexStream)> {
        let session = Session::new(connection(services)?, services.clone(), Framing::None);
        let (client, stream) = duplex(1024);
        Ok((OpenConnection::new(stream, Vec::new(), session, decoder, Duration::ZERO), client))
    }

    #[tokio::test]
    async fn a_connection_that_is_always_ready_yields_to_the_io_driver() -> Result<()> {
        let services = services()?;
        let decodes = Arc::new(AtomicUsize::new(0));
        let had = decodes.clone();
        let always_more = Does(move |_: &mut [u8], _: &mut Session| {
            had.fetch_add(1, Ordering::Relaxed);
            Progress { bytes: 0, is_unfinished: true }
        });
        let (mut open, _client) = open(&services, always_more)?;
        let connections = services.hub.connections().clone();
        let endless = tokio::spawn(poll_fn(move |context| {
            let before = decodes.load(Ordering::Relaxed);
            assert!(open.poll(&connections, &services.stats, context).is_pending());
            let more = decodes.load(Ordering::Relaxed) - before;
            // Fewer on a machine that is so busy that its time ends first.
            assert!((1..=usize::from(READS_IN_A_ROW_MAX)).contains(&more), "{more}");
            if before > 0 { Poll::Ready(()) } else { Poll::Pending }
        }));
        // Fewer polls than the interval at which a worker polls the I/O driver in tests.
        const OTHERS: usize = 30;
        let others = Arc::new(AtomicUsize::new(0));
        let had = others.clone();
        tokio::spawn(async move {
            for _ in 0..OTHERS {
                scheduling::yield_to_run_queue().await;
                had.fetch_add(1, Ordering::Relaxed);
            }
        });
        endless.await?;
        assert_eq!(others.load(Ordering::Relaxed), OTHERS, "they are all ready");
        Ok(())
    }

    #[tokio::test]
    async fn a_long_listing_yields_after_each_time_budget() -> Result<()> {
        const NAMES: usize = 200_000;
        let mut config = Config::default();
        config.engine.source = EngineSource::Native;
        config.limits.names_per_command_max = NAMES;
        let services = prepare(&config)?.1;
        let decoded = Arc::new(AtomicUsize::new(0));
        let had = decoded.clone();
        let counts = Does(move |_: &mut [u8], session: &mut Session| {
            let is_first = had.fetch_add(1, Ordering::Relaxed) == 0;
            let names = vec![b"name".as_slice().into(); NAMES];
            let command = Ok(Command::SubscriberCounts(Space::Channels, names));
            let request = Request { tag: Tag::InOrder, command };
            match is_first {
                true => session.execute(std::iter::once(request), Dots, false),
                false => session.resume(Dots),
            };
            Progress { bytes: 0, is_unfinished: session.has_pending() }
        });
        let (mut open, _client) = open(&services, counts)?;
        let connections = services.hub.connections().clone();
        for polls in 1..=3 {
            let mut context = Context::from_waker(Waker::noop());
            assert!(open.poll(&connections, &services.stats, &mut context).is_pending());
            assert_eq!(decoded.load(Ordering::Relaxed), polls, "one time budget for each poll");
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_publisher_with_a_subscriber_is_answered_at_the_next_poll() -> Result<()> {
        let services = services()?;
        let subscriber = connection(&services)?;
        let (mut open, mut client) = open(&services, Does(publishes))?;
        let connections = services.hub.connections().clone();
        // Polls the connection once, after the client has sent something or not. Returns how many
        // replies have arrived.
        let mut poll_once = |sends: bool| {
            let mut context = Context::from_waker(Waker::noop());
            if sends {
                let sent = Pin::new(&mut client).poll_write(&mut context, b"go");
                assert!(sent.is_ready());
            }
            assert!(open.poll(&connections, &services.stats, &mut context).is_pending());
            let mut bytes = [0; 2 * BURST];
            let mut replies = ReadBuf::new(&mut bytes);
            let _ = Pin::new(&mut client).poll_read(&mut context, &mut replies);
            replies.filled().len()
        };
        assert_eq!(poll_once(true), BURST, "there is no subscriber");
        let subscribed = services.hub.subscribe(
            &subscriber,
            Kind::Channel,
            &[b"news".as_slice().into()],
            |_, _| {},
        );
        subscribed.ok().context("the engine is there")?;
        assert_eq!(poll_once(true), 0);
        assert_eq!(poll_once(false), BURST);
        Ok(())
    }
}
