//! Flushers: tasks that write to many connections after a push.
//!
//! If each subscriber were woken for each message, its task would be polled to make one write, and
//! between two writes the kernel's code and data would leave the processor's caches. So the
//! publisher starts a flusher, which runs after the tasks that are ready now: what they publish for
//! the same connections is sent in the same write. Bytes that a socket does not accept at once are
//! left to its connection's own task.

use std::sync::Arc;
use std::task::Poll;

use tokio::runtime::Handle;

use crate::chunks::{Chunks, Written};
use crate::outbox::Outbox;
use crate::scheduling;

/// How many connections one flusher writes to: other threads run their share of the flushers.
const CONNECTIONS_MAX: usize = 64;
/// The number of bytes after which a flusher yields to other tasks.
const BYTES_IN_A_ROW_MAX: usize = 1 << 20;

/// Connections that must be flushed. Dropping it starts the flush in any case.
pub struct PendingFlush<C: Flushable>(Vec<Arc<C>>);

/// What has an outbox: a connection.
pub trait Flushable: Send + Sync + 'static {
    /// Its outbox.
    fn outbox(&self) -> &Outbox;
}

impl<C: Flushable> Default for PendingFlush<C> {
    fn default() -> PendingFlush<C> {
        PendingFlush(Vec::new())
    }
}

impl<C: Flushable> PendingFlush<C> {
    /// Adds a connection that must be flushed and is in no other collection.
    pub fn add(&mut self, connection: &Arc<C>) {
        self.0.push(connection.clone());
    }
}

impl<C: Flushable> Drop for PendingFlush<C> {
    fn drop(&mut self) {
        if self.0.is_empty() {
            return;
        }
        let mut rest = std::mem::take(&mut self.0).into_iter();
        let Ok(runtime) = Handle::try_current() else {
            return rest.for_each(|connection| connection.outbox().wake());
        };
        while rest.len() > 0 {
            let connections: Vec<_> = rest.by_ref().take(CONNECTIONS_MAX).collect();
            runtime.spawn(flush_all(connections));
        }
    }
}

/// Connections that are flushed one after the other. When this is dropped, those that are left are
/// flushed by their own tasks.
struct Flushing<C: Flushable>(std::vec::IntoIter<Arc<C>>);

impl<C: Flushable> Drop for Flushing<C> {
    fn drop(&mut self) {
        self.0.by_ref().for_each(|connection| connection.outbox().wake());
    }
}

async fn flush_all<C: Flushable>(connections: Vec<Arc<C>>) {
    let mut flushing = Flushing(connections.into_iter());
    let mut written = 0;
    for connection in flushing.0.by_ref() {
        written += flush(connection.outbox());
        if written > BYTES_IN_A_ROW_MAX {
            written = 0;
            scheduling::yield_to_run_queue().await;
        }
    }
}

/// Writes what is queued, as far as the socket accepts it in one write. Returns how much it wrote.
fn flush(outbox: &Outbox) -> usize {
    let mut chunks = Chunks::default();
    let Some(socket) = outbox.begin_flush(&mut chunks) else { return 0 };
    let mut begun = Begun { outbox, is_ended: false };
    let written = match chunks.write(|bytes| socket.try_write(bytes)) {
        Poll::Ready(Ok(written)) => written,
        // The connection's own task waits for the socket, or gets the error again.
        Poll::Pending | Poll::Ready(Err(_)) => Written::default(),
    };
    socket.wrote(written.bytes);
    begun.is_ended = true;
    outbox.end_flush(written, chunks);
    written.bytes
}

/// A flush in progress. An outbox whose flush never ended would never be written again.
struct Begun<'a> {
    outbox: &'a Outbox,
    is_ended: bool,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if !self.is_ended {
            self.outbox.abandon_flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Wake, Waker};
    use std::time::Duration;

    use anyhow::Result;
    use bytes::Bytes;
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::outbox::{Last, QueueState};
    use crate::socket::{Plain, Stream};
    use switchyard_config::OutboxLimits;
    use switchyard_telemetry::panics;
    use switchyard_types::close::CloseReason;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An outbox with a socket, the connection that it belongs to, and its other end.
    struct Bench {
        outbox: Outbox,
        /// Closes when it is dropped.
        _stream: Plain,
        peer: TcpStream,
        wakes: Arc<Wakes>,
        limits: OutboxLimits,
    }

    /// A connection of which only the outbox matters.
    struct Other(Outbox);

    impl Flushable for Other {
        fn outbox(&self) -> &Outbox {
            &self.0
        }
    }

    impl Bench {
        async fn new() -> Result<Bench> {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let peer = TcpStream::connect(listener.local_addr()?).await?;
            let (stream, _) = listener.accept().await?;
            stream.writable().await?;
            let stream = Plain::new(stream, Arc::default());
            let limits = OutboxLimits {
                bytes_max: 32 << 20,
                soft_bytes: 32 << 20,
                soft_time: Duration::from_secs(3600),
            };
            let outbox = Outbox::new(limits);
            outbox.attach(stream.socket());
            Ok(Bench { outbox, _stream: stream, peer, wakes: Arc::default(), limits })
        }

        /// As the writer, which has written nothing.
        fn take(&self, chunks: &mut Chunks) -> QueueState {
            let waker = Waker::from(self.wakes.clone());
            self.outbox.take(Written::default(), chunks, &Context::from_waker(&waker))
        }

        fn wakes(&self) -> usize {
            self.wakes.0.swap(0, Ordering::Relaxed)
        }
    }

    const OPEN: QueueState = QueueState::Open { is_congested: false };

    #[tokio::test]
    async fn what_waits_leaves_without_its_connections_task() -> Result<()> {
        let mut bench = Bench::new().await?;
        assert_eq!(bench.take(&mut Chunks::default()), OPEN);
        assert!(bench.outbox.push_deferred(Bytes::from_static(b"ab")));
        // The task that pushed first starts the flusher.
        assert!(!bench.outbox.push_deferred(Bytes::from_static(b"c")));
        flush(&bench.outbox);
        let mut read = [0; 3];
        bench.peer.read_exact(&mut read).await?;
        assert_eq!((&read, bench.outbox.bytes(), bench.wakes()), (b"abc", 0, 0));
        assert!(bench.outbox.push_deferred(Bytes::from_static(b"d")), "nothing waits again");
        Ok(())
    }

    #[tokio::test]
    async fn what_a_full_socket_does_not_take_is_the_writers() -> Result<()> {
        let bench = Bench::new().await?;
        bench.take(&mut Chunks::default());
        let (chunk, count) = (Bytes::from(vec![b'x'; 1 << 20]), 24);
        for place in 0..count {
            assert_eq!(bench.outbox.push_deferred(chunk.clone()), place == 0);
        }
        assert_eq!(bench.wakes(), 0);
        flush(&bench.outbox);
        assert_eq!(bench.wakes(), 1);
        // A partly written chunk is completed, even if the rest of the queue is dropped.
        bench.outbox.push(Bytes::from(vec![b'y'; 32 << 20]));
        assert_eq!(bench.wakes(), 0, "it was woken already");
        let mut chunks = Chunks::default();
        let state = bench.take(&mut chunks);
        chunks.keep_begun();
        assert!(matches!(state, QueueState::Closing(CloseReason::SlowConsumer { .. })));
        let left: Vec<usize> = chunks.iter().map(Bytes::len).collect();
        assert!(left.iter().all(|left| *left < chunk.len()) && left.len() <= 1, "{left:?}");
        Ok(())
    }

    #[tokio::test]
    async fn one_at_a_time_writes() -> Result<()> {
        let bench = Bench::new().await?;
        let mut flushers = Chunks::default();
        assert!(bench.outbox.push_deferred(Bytes::from_static(b"ab")));
        let socket = bench.outbox.begin_flush(&mut flushers);
        assert!(socket.is_some());
        assert!(bench.outbox.begin_flush(&mut Chunks::default()).is_none(), "it is being flushed");
        let mut writers = Chunks::default();
        assert_eq!(bench.take(&mut writers), QueueState::Busy);
        assert!(!bench.outbox.push_deferred(Bytes::from_static(b"c")));
        assert_eq!((writers.is_empty(), bench.wakes()), (true, 0));
        bench.outbox.end_flush(Written { bytes: 2, chunks: 1 }, Chunks::default());
        assert_eq!(bench.wakes(), 1);

        assert_eq!(bench.take(&mut writers), OPEN);
        assert!(writers.iter().eq(["c"]));
        bench.outbox.push(Bytes::from_static(b"d"));
        assert!(bench.outbox.begin_flush(&mut flushers).is_none(), "the writer has some in hand");
        Ok(())
    }

    #[tokio::test]
    async fn what_others_may_not_write_is_the_writers() -> Result<()> {
        let bench = Bench::new().await?;
        bench.take(&mut Chunks::default());
        assert!(bench.outbox.push_deferred(Bytes::from_static(b"ab")));
        bench.outbox.attach(None);
        assert_eq!((flush(&bench.outbox), bench.wakes()), (0, 1));
        let mut chunks = Chunks::default();
        assert_eq!(bench.take(&mut chunks), OPEN);
        assert!(chunks.iter().eq(["ab"]));
        let written = Written { bytes: 2, chunks: 1 };
        let context = Context::from_waker(Waker::noop());
        assert_eq!(bench.outbox.take(written, &mut Chunks::default(), &context), OPEN);
        bench.take(&mut Chunks::default());
        assert!(!bench.outbox.push_deferred(Bytes::from_static(b"c")));
        assert_eq!(bench.wakes(), 1);
        Ok(())
    }

    #[tokio::test]
    async fn a_writer_that_waits_for_a_flush_writes_before_the_next_flush() -> Result<()> {
        let bench = Bench::new().await?;
        let (mut flushers, mut writers) = (Chunks::default(), Chunks::default());
        assert!(bench.outbox.push_deferred(Bytes::from_static(b"ab")));
        assert!(bench.outbox.begin_flush(&mut flushers).is_some());
        assert_eq!(bench.take(&mut writers), QueueState::Busy);
        bench.outbox.end_flush(Written { bytes: 2, chunks: 1 }, Chunks::default());
        assert!(bench.outbox.push_deferred(Bytes::from_static(b"c")));
        assert!(bench.outbox.begin_flush(&mut flushers).is_none());
        assert_eq!(bench.take(&mut writers), OPEN);
        assert!(writers.iter().eq(["c"]));
        Ok(())
    }

    #[tokio::test]
    async fn what_is_begun_when_a_connection_ends_is_its_tasks() -> Result<()> {
        let bench = Bench::new().await?;
        let waker = Waker::from(bench.wakes.clone());
        let context = Context::from_waker(&waker);
        let (mut flushers, mut writers) = (Chunks::default(), Chunks::default());
        assert!(bench.outbox.push_deferred(Bytes::from_static(b"abc")));
        assert!(bench.outbox.begin_flush(&mut flushers).is_some());
        assert_eq!(bench.outbox.poll_detach(&context), Poll::Pending);
        let written = match flushers.write(|_| Poll::Ready(Ok(2))) {
            Poll::Ready(written) => written?,
            Poll::Pending => Written::default(),
        };
        bench.outbox.end_flush(written, flushers);
        assert_eq!(bench.wakes(), 1);
        assert_eq!(bench.outbox.poll_detach(&context), Poll::Ready(()));
        let last = bench.outbox.take_last(Written::default(), &mut writers, &context);
        assert_eq!(last, Last::Write);
        assert!(writers.iter().eq(["c"]));
        assert!(!bench.outbox.push_deferred(Bytes::from_static(b"d")));
        assert!(bench.outbox.begin_flush(&mut Chunks::default()).is_none());
        Ok(())
    }

    #[tokio::test]
    async fn a_flush_that_panics_closes_its_connection_and_no_other() -> Result<()> {
        let bench = Bench::new().await?;
        bench.take(&mut Chunks::default());
        assert!(bench.outbox.push_deferred(Bytes::from_static(b"ab")));
        let ended = panics::contain(|| {
            let socket = bench.outbox.begin_flush(&mut Chunks::default());
            let _begun = Begun { outbox: &bench.outbox, is_ended: false };
            assert!(socket.is_none(), "a defect");
        });
        assert_eq!((ended, bench.wakes()), (None, 1));
        assert_eq!(bench.take(&mut Chunks::default()), QueueState::Closing(CloseReason::Internal));

        let other = Arc::new(Other(Outbox::new(bench.limits)));
        let waker = Waker::from(bench.wakes.clone());
        let context = Context::from_waker(&waker);
        other.0.take(Written::default(), &mut Chunks::default(), &context);
        drop(Flushing(vec![other].into_iter()));
        assert_eq!(bench.wakes(), 1, "those behind it are written by their own tasks");
        Ok(())
    }

    #[tokio::test]
    async fn a_connection_that_is_closing_is_its_writers() -> Result<()> {
        let bench = Bench::new().await?;
        assert!(bench.outbox.push_deferred(Bytes::from_static(b"ab")));
        bench.outbox.close(CloseReason::Quit);
        assert!(bench.outbox.begin_flush(&mut Chunks::default()).is_none());
        let mut chunks = Chunks::default();
        assert_eq!(bench.take(&mut chunks), QueueState::Closing(CloseReason::Quit));
        assert!(chunks.iter().eq(["ab"]));
        Ok(())
    }
}
