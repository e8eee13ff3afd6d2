//! What waits to be written to one connection.
//!
//! A queue of bytes that were encoded elsewhere, bounded in bytes, first in
//! first out. Many push, and one at a time writes: the connection's own task, its
//! writer, or whoever flushes it while the writer has nothing in hand. Pushing never
//! waits: what does not fit closes the connection (Redis' `client-output-buffer-limit`),
//! so that a slow subscriber cannot hold up a publisher. It knows nothing of protocols.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::chunks::{Chunks, Written};
use crate::close::CloseReason;
use crate::socket::Socket;

/// How much may wait, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxLimits {
    /// Bytes at which the connection is closed at once.
    pub bytes_max: usize,
    /// Bytes that may not be passed for longer than `soft_time`.
    pub soft_bytes: usize,
    /// How long `soft_bytes` may be passed.
    pub soft_time: Duration,
}

/// What a chunk costs besides its bytes: its place in the queue and the head of its
/// allocation. Counted, as in Redis, so that many small chunks are not free.
const CHUNK_BYTES: usize = 64;

/// A queue of encoded bytes.
pub struct Outbox {
    queue: Mutex<Queue>,
    limits: OutboxLimits,
}

#[derive(Default)]
struct Queue {
    chunks: Chunks,
    /// What is in `chunks`, and what was taken and is not written.
    bytes: usize,
    soft_since: Option<Instant>,
    closing: Option<CloseReason>,
    writer: Option<Waker>,
    /// Where others than the writer may write; none: nowhere.
    socket: Option<Arc<Socket>>,
    hands: Hands,
}

/// In whose hands what was taken is.
#[derive(Default, PartialEq, Eq)]
enum Hands {
    /// All that was taken is written.
    #[default]
    Nobodys,
    /// The writer's, which is woken or waits for its socket.
    Writers,
    /// Someone's who flushes.
    Flushers {
        /// Whether the writer asked meanwhile, and is to be woken.
        is_awaited: bool,
    },
}

/// What the writer finds after it took what there was.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// More may come; the writer is woken then.
    Open {
        /// Whether so much waits that the connection should not be read from.
        is_congested: bool,
    },
    /// Someone else is writing; the writer is woken when that is done.
    Busy,
    /// Nothing comes after this.
    Closing(CloseReason),
}

impl Outbox {
    /// An empty outbox.
    pub fn new(limits: OutboxLimits) -> Outbox {
        Outbox { queue: Mutex::new(Queue::default()), limits }
    }

    /// Queues a chunk. A chunk pushed to a closing outbox is dropped. One that
    /// would pass the hard limit, or the soft limit for too long, is dropped
    /// with all that waits, and the outbox is closing.
    ///
    /// The writer is woken only when nothing waited: otherwise it has been woken
    /// already, or waits for its socket and will look again, or has a turn, or who
    /// pushed before has it flushed.
    pub fn push(&self, chunk: Bytes) {
        let mut queue = self.queue.lock();
        if self.queue_up(&mut queue, chunk) {
            queue.wake();
        }
    }

    /// As `push`, for who pushes to many. True: the caller has it flushed afterwards
    /// ([`begin_flush`](Outbox::begin_flush)), instead of a writer that would be woken.
    #[must_use]
    pub fn push_to_flush(&self, chunk: Bytes) -> bool {
        let mut queue = self.queue.lock();
        let is_due = self.queue_up(&mut queue, chunk);
        let is_flushed = is_due && queue.socket.is_some();
        if is_due && !is_flushed {
            queue.wake();
        }
        is_flushed
    }

    /// From here on others than the writer may write to this socket.
    pub fn attach(&self, socket: Option<Arc<Socket>>) {
        self.queue.lock().socket = socket;
    }

    /// Nobody else writes from here on: ready when nobody does, and then all that waits is in
    /// `chunks`. The writer is woken when that is so.
    pub fn poll_detach(&self, chunks: &mut Chunks, context: &Context<'_>) -> Poll<()> {
        let mut queue = self.queue.lock();
        queue.socket = None;
        if queue.wait_for_flusher(context) {
            return Poll::Pending;
        }
        chunks.append(&mut queue.chunks);
        Poll::Ready(())
    }

    /// Takes what waits, into `chunks`, to write it to this socket. None: there is nothing,
    /// or the writer or someone else sees to all of it.
    pub fn begin_flush(&self, chunks: &mut Chunks) -> Option<Arc<Socket>> {
        let mut queue = self.queue.lock();
        let is_free = queue.hands == Hands::Nobodys && queue.closing.is_none();
        if !is_free || queue.chunks.is_empty() {
            return None;
        }
        let Some(socket) = queue.socket.clone() else {
            // It was detached meanwhile.
            queue.wake();
            return None;
        };
        chunks.append(&mut queue.chunks);
        queue.hands = Hands::Flushers { is_awaited: false };
        Some(socket)
    }

    /// So much was written after `begin_flush`. What is left of what was taken, and what came
    /// meanwhile, is the writer's.
    pub fn end_flush(&self, written: Written, mut left: Chunks) {
        let mut queue = self.queue.lock();
        self.settle(&mut queue, written);
        left.append(&mut queue.chunks);
        queue.chunks = left;
        let is_awaited = queue.hands == Hands::Flushers { is_awaited: true };
        if is_awaited || !queue.chunks.is_empty() || queue.closing.is_some() {
            // Nobody else flushes before it has had its turn.
            queue.hands = Hands::Writers;
            queue.wake();
        } else {
            queue.hands = Hands::Nobodys;
        }
    }

    /// A flush panicked: how much of it was written is unknown. The connection is closed, and its
    /// queued bytes are dropped.
    pub fn abandon_flush(&self) {
        let mut queue = self.queue.lock();
        queue.hands = Hands::Writers;
        queue.chunks = Chunks::default();
        queue.bytes = 0;
        queue.closing.get_or_insert(CloseReason::Internal);
        queue.wake();
    }

    /// As `push`, for who is the writer's own task or wakes it afterwards: it is not woken,
    /// which would only cost it another turn, and must `take` before it waits. Nobody else
    /// who pushes would wake it until it has.
    pub fn push_own(&self, chunk: Bytes) {
        self.queue_up(&mut self.queue.lock(), chunk);
    }

    /// Whether the chunk is queued where nothing waited: someone must see to it. The writer of
    /// an outbox that overflows is woken.
    fn queue_up(&self, queue: &mut Queue, chunk: Bytes) -> bool {
        if queue.closing.is_some() {
            return false;
        }
        let was_idle = queue.bytes == 0;
        queue.bytes += chunk.len() + CHUNK_BYTES;
        queue.chunks.push(chunk);
        if queue.bytes >= self.limits.soft_bytes && self.is_too_full(queue) {
            queue.overflow();
            queue.wake();
            return false;
        }
        was_idle
    }

    /// Wakes the writer, after `push_own`.
    pub fn wake(&self) {
        self.queue.lock().wake();
    }

    /// Lets what is queued be written, then ends. The first reason stays.
    pub fn close(&self, reason: CloseReason) {
        let mut queue = self.queue.lock();
        queue.closing.get_or_insert(reason);
        queue.wake();
    }

    /// Is told what was written since the last time, and moves what waits to the
    /// end of `chunks`. The writer's task is woken when more comes. Both at once,
    /// because it is done for every write.
    pub fn take(&self, written: Written, chunks: &mut Chunks, context: &Context<'_>) -> Taken {
        let mut queue = self.queue.lock();
        self.settle(&mut queue, written);
        if queue.wait_for_flusher(context) {
            return Taken::Busy;
        }
        chunks.append(&mut queue.chunks);
        queue.hands = if chunks.is_empty() { Hands::Nobodys } else { Hands::Writers };
        match &queue.closing {
            Some(reason) => Taken::Closing(reason.clone()),
            None => {
                queue.set_writer(context);
                Taken::Open { is_congested: queue.bytes >= self.limits.soft_bytes }
            }
        }
    }

    fn settle(&self, queue: &mut Queue, written: Written) {
        queue.bytes = queue.bytes.saturating_sub(written.bytes + written.chunks * CHUNK_BYTES);
        if queue.bytes < self.limits.soft_bytes {
            queue.soft_since = None;
        }
    }

    /// Closes the outbox if it has been over its soft limit for too long; to be
    /// asked now and then, because a connection nobody writes to is not seen by
    /// `push`.
    pub fn check(&self) {
        let mut queue = self.queue.lock();
        if queue.closing.is_none() && self.is_too_full(&mut queue) {
            queue.overflow();
            queue.wake();
        }
    }

    /// How much waits.
    pub fn bytes(&self) -> usize {
        self.queue.lock().bytes
    }

    /// Whether so much waits that the connection should not be read from.
    pub fn is_congested(&self) -> bool {
        self.queue.lock().bytes >= self.limits.soft_bytes
    }

    /// Whether a reason to close was given.
    pub fn is_closing(&self) -> bool {
        self.queue.lock().closing.is_some()
    }

    fn is_too_full(&self, queue: &mut Queue) -> bool {
        if queue.bytes >= self.limits.bytes_max {
            return true;
        }
        if queue.bytes < self.limits.soft_bytes {
            queue.soft_since = None;
            return false;
        }
        let since = *queue.soft_since.get_or_insert_with(Instant::now);
        since.elapsed() > self.limits.soft_time
    }
}

impl Queue {
    fn overflow(&mut self) {
        self.closing = Some(CloseReason::SlowConsumer { outbox_bytes: self.bytes });
        self.chunks.keep_begun();
    }

    fn set_writer(&mut self, context: &Context<'_>) {
        if !self.writer.as_ref().is_some_and(|writer| writer.will_wake(context.waker())) {
            self.writer = Some(context.waker().clone());
        }
    }

    /// If someone flushes, which is the answer, the writer is woken when that is done.
    fn wait_for_flusher(&mut self, context: &Context<'_>) -> bool {
        let Hands::Flushers { is_awaited } = &mut self.hands else { return false };
        *is_awaited = true;
        self.set_writer(context);
        true
    }

    fn wake(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    const LIMITS: OutboxLimits = OutboxLimits {
        bytes_max: 10 + 2 * CHUNK_BYTES,
        soft_bytes: 5 + 2 * CHUNK_BYTES,
        soft_time: Duration::ZERO,
    };

    fn take(outbox: &Outbox) -> (Vec<Bytes>, Taken) {
        let mut chunks = Chunks::default();
        let context = Context::from_waker(Waker::noop());
        let taken = outbox.take(Written::default(), &mut chunks, &context);
        (chunks.iter().cloned().collect(), taken)
    }

    #[test]
    fn gives_what_was_pushed_in_order_then_the_reason() {
        let outbox = Outbox::new(LIMITS);
        outbox.push(Bytes::from_static(b"ab"));
        outbox.push(Bytes::from_static(b"c"));
        outbox.close(CloseReason::Quit);
        outbox.close(CloseReason::ShuttingDown);
        outbox.push(Bytes::from_static(b"late"));
        let (chunks, taken) = take(&outbox);
        assert_eq!(chunks, ["ab", "c"]);
        assert_eq!(taken, Taken::Closing(CloseReason::Quit));
    }

    #[test]
    fn only_others_wake_the_writer_and_only_where_nothing_waited() {
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let wakes = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(wakes.clone());
        let context = Context::from_waker(&waker);
        let woken_by = |pushes: &[fn(&Outbox, Bytes)], chunk: &'static [u8]| {
            let outbox = Outbox::new(LIMITS);
            for push in pushes {
                // Looked at and not written: the writer waits for its socket.
                outbox.take(Written::default(), &mut Chunks::default(), &context);
                push(&outbox, Bytes::from_static(chunk));
            }
            wakes.0.swap(0, Ordering::Relaxed)
        };
        assert_eq!(woken_by(&[Outbox::push], b"a"), 1);
        assert_eq!(woken_by(&[Outbox::push, Outbox::push], b"a"), 1);
        assert_eq!(woken_by(&[Outbox::push_own], b"a"), 0);
        assert_eq!(woken_by(&[Outbox::push_own, Outbox::push], b"a"), 0);
        assert_eq!(woken_by(&[Outbox::push_own], &[0; LIMITS.bytes_max]), 1, "it overflows");
    }

    #[test]
    fn the_hard_limit_closes_at_once_and_counts_what_the_writer_holds() {
        let outbox = Outbox::new(OutboxLimits { soft_bytes: LIMITS.bytes_max, ..LIMITS });
        outbox.push(Bytes::from_static(b"12345678"));
        assert_eq!(take(&outbox).0.len(), 1);
        outbox.push(Bytes::from_static(b"9a"));
        let (chunks, taken) = take(&outbox);
        assert!(chunks.is_empty());
        assert_eq!(
            taken,
            Taken::Closing(CloseReason::SlowConsumer { outbox_bytes: LIMITS.bytes_max })
        );
    }

    #[test]
    fn the_soft_limit_closes_after_its_time_only() {
        let patient = Outbox::new(OutboxLimits { soft_time: Duration::from_secs(3600), ..LIMITS });
        patient.push(Bytes::from_static(b"123"));
        patient.push(Bytes::from_static(b"456"));
        patient.check();
        assert!(patient.is_congested() && !patient.is_closing());

        let hasty = Outbox::new(LIMITS);
        hasty.push(Bytes::from_static(b"123"));
        hasty.push(Bytes::from_static(b"456"));
        std::thread::yield_now();
        hasty.check();
        assert!(hasty.is_closing());
    }

    #[test]
    fn falling_below_the_soft_limit_resets_its_clock() {
        let outbox = Outbox::new(OutboxLimits { soft_time: Duration::from_secs(3600), ..LIMITS });
        outbox.push(Bytes::from_static(b"123"));
        outbox.push(Bytes::from_static(b"456"));
        assert!(outbox.is_congested());
        let written = Written { bytes: 3, chunks: 1 };
        let context = Context::from_waker(Waker::noop());
        let taken = outbox.take(written, &mut Chunks::default(), &context);
        assert_eq!(taken, Taken::Open { is_congested: false });
        assert!(outbox.queue.lock().soft_since.is_none());
        assert!(!outbox.is_closing() && !outbox.is_congested());
    }
}
