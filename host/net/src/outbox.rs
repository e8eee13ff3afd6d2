//! The output queue of one connection.
//!
//! It is a FIFO queue of encoded bytes, bounded in bytes. Many tasks push, and one at a time
//! writes: the connection's own task (its writer), or a flusher while the writer has nothing to
//! write. Pushing never waits: a push that does not fit closes the connection (Redis'
//! `client-output-buffer-limit`), so that a slow subscriber cannot block a publisher. This module
//! knows no protocols.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::account::{Account, Due};
use crate::chunks::{Buffer, Chunks, Written};
use crate::socket::Socket;
use crate::sync::Mutex;
use switchyard_config::OutboxLimits;
use switchyard_types::close::CloseReason;

/// The cost of a chunk besides its bytes: its entry in the queue and the header of its allocation.
/// It is counted, as in Redis, so that many small chunks are not free.
const CHUNK_BYTES: usize = 64;

/// What the outboxes of all connections share.
pub trait OutboxMemory: Send + Sync {
    /// What they hold.
    fn account(&self) -> &Account;

    /// Called when a bound may have been exceeded. The outbox of the caller is not locked.
    fn see_to(&self, due: Due);
}

/// A queue of encoded bytes.
pub struct Outbox {
    queue: Mutex<Queue>,
    limits: OutboxLimits,
    /// The common bound on all outboxes; none: there is no bound.
    memory: Option<Arc<dyn OutboxMemory>>,
}

#[derive(Default)]
struct Queue {
    chunks: Chunks,
    /// The bytes in `chunks`, and those being written.
    bytes: usize,
    /// At this many bytes a push must check further: the limits of this outbox, and how much of it
    /// is accounted for.
    look_at: usize,
    soft_since: Option<Instant>,
    closing: Option<CloseReason>,
    shed: Shed,
    writer: Option<Waker>,
    /// The socket that flushers may write to; none: only the writer writes.
    socket: Option<Arc<Socket>>,
    owner: WriteOwner,
    /// Only while the outbox is large enough to be accounted for.
    backlog: Option<Box<Backlog>>,
}

/// The state of a large outbox.
struct Backlog {
    /// How many bytes are accounted for over all outboxes: whole steps.
    accounted: usize,
    /// When its connection last wrote a step's worth of bytes, or the backlog began.
    progressed_at: Instant,
    /// How many bytes it has written since.
    written: usize,
    /// The buffers that are being written.
    in_hand: Vec<Buffer>,
    /// Whether the first of them is partly written.
    is_begun: bool,
}

/// What was dropped of a closing outbox.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Shed {
    /// Nothing: it is written before the connection ends.
    #[default]
    Nothing,
    /// Everything except a partly written chunk.
    Waiting,
    /// That one as well: the connection ends there.
    All,
}

/// How much memory an outbox holds.
#[derive(Debug, Clone, Copy)]
pub struct Holding {
    /// The queued bytes, as the limits of this outbox count them.
    pub bytes: usize,
    /// For how long its connection has read little or nothing; none: little is queued.
    pub stalled: Option<Duration>,
    /// Whether only a partly written chunk is left of it, because the memory was needed.
    is_shed: bool,
}

impl Holding {
    /// Whether its connection is already closing for memory, with at most one chunk left.
    pub fn is_shed(&self) -> bool {
        self.is_shed
    }
}

/// What was dropped of an outbox because the memory was needed.
#[derive(Debug, Clone, Copy)]
pub struct Shedding {
    /// Whether its connection was open.
    pub was_open: bool,
    /// How many bytes are kept, because a part of their chunk was sent.
    pub kept_bytes: usize,
}

/// The result of a push.
struct Pushed {
    /// Whether nothing was queued before: the caller must have it written.
    is_due: bool,
    /// Whether memory must be freed somewhere.
    memory: Due,
}

/// The task that writes the bytes that left the queue.
#[derive(Default, PartialEq, Eq)]
enum WriteOwner {
    /// None: all that left the queue is written.
    #[default]
    Idle,
    /// The connection's own task, which is woken or waits for its socket.
    Connection,
    /// A task that flushes.
    Flusher {
        /// Whether the writer called `take` during the flush and must be woken after it.
        is_awaited: bool,
    },
}

/// The state of the queue after a `take`.
#[derive(Debug, PartialEq, Eq)]
pub enum QueueState {
    /// More may be queued; the writer is woken then.
    Open {
        /// Whether so much is queued that the connection should not be read from.
        is_congested: bool,
    },
    /// A flusher is writing; the writer is woken when that is done.
    Busy,
    /// Nothing comes after this.
    Closing(CloseReason),
}

/// What the writer has to do when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// Write what it has, and call again; when there is nothing left, it is done.
    Write,
    /// Drop what it has: the memory is needed.
    Drop,
}

impl Outbox {
    /// An empty outbox, which no account includes.
    pub fn new(limits: OutboxLimits) -> Outbox {
        Outbox::with(limits, None)
    }

    /// An empty outbox, which the account of all outboxes includes.
    pub fn accounted(limits: OutboxLimits, memory: Arc<dyn OutboxMemory>) -> Outbox {
        Outbox::with(limits, Some(memory))
    }

    fn with(limits: OutboxLimits, memory: Option<Arc<dyn OutboxMemory>>) -> Outbox {
        let outbox = Outbox { queue: Mutex::default(), limits, memory };
        outbox.queue.lock().look_at = outbox.look_at(0);
        outbox
    }

    /// At how many bytes a push must check further, if so many are accounted for.
    fn look_at(&self, accounted: usize) -> usize {
        let step = self.memory.as_ref().map_or(usize::MAX, |memory| memory.account().step());
        self.limits.soft_bytes.min(accounted.saturating_add(step))
    }

    /// Queues a chunk. A chunk pushed to a closing outbox is dropped. One that
    /// would pass the hard limit, or the soft limit for too long, is dropped
    /// with all that waits, and the outbox is closing.
    ///
    /// The writer is woken only when the queue was empty: otherwise it has been woken already,
    /// or waits for its socket and will check the queue again, or is being polled, or the task
    /// that pushed before flushes the queue.
    pub fn push(&self, chunk: Bytes) {
        let mut queue = self.queue.lock();
        let pushed = self.queue_up(&mut queue, chunk);
        if pushed.is_due {
            queue.wake();
        }
        drop(queue);
        self.see_to(pushed.memory);
    }

    /// As `push`, for a task that pushes to many connections. True: the caller must flush it
    /// afterwards ([`begin_flush`](Outbox::begin_flush)); the writer is not woken.
    #[must_use]
    pub fn push_deferred(&self, chunk: Bytes) -> bool {
        let mut queue = self.queue.lock();
        let Pushed { is_due, memory } = self.queue_up(&mut queue, chunk);
        let is_flushed = is_due && queue.socket.is_some();
        if is_due && !is_flushed {
            queue.wake();
        }
        drop(queue);
        self.see_to(memory);
        is_flushed
    }

    /// Lets flushers write to this socket.
    pub fn attach(&self, socket: Option<Arc<Socket>>) {
        self.queue.lock().socket = socket;
    }

    /// Ends the use of flushers. Ready when none writes; then `take_last` returns all that is
    /// queued. Otherwise the writer is woken when that is so.
    pub fn poll_detach(&self, context: &Context<'_>) -> Poll<()> {
        let mut queue = self.queue.lock();
        queue.socket = None;
        if queue.wait_for_flusher(context) {
            return Poll::Pending;
        }
        queue.owner = WriteOwner::Connection;
        Poll::Ready(())
    }

    /// Takes into `chunks` what one write accepts, to write it to this socket. None: nothing is
    /// queued, or the writer or a flusher writes all of it.
    pub fn begin_flush(&self, chunks: &mut Chunks) -> Option<Arc<Socket>> {
        let mut queue = self.queue.lock();
        let is_free = queue.owner == WriteOwner::Idle && queue.closing.is_none();
        if !is_free || queue.chunks.is_empty() {
            return None;
        }
        let Some(socket) = queue.socket.clone() else {
            // The socket was detached in the meantime.
            queue.wake();
            return None;
        };
        chunks.append_for_write(&mut queue.chunks);
        queue.owner = WriteOwner::Flusher { is_awaited: false };
        Some(socket)
    }

    /// Ends the flush that `begin_flush` began, with the result of its write. The rest, and what
    /// was pushed during the flush, is left to the writer.
    pub fn end_flush(&self, written: Written, mut left: Chunks) {
        let mut queue = self.queue.lock();
        self.settle(&mut queue, written);
        left.append(&mut queue.chunks);
        queue.chunks = left;
        let shed = queue.shed;
        queue.drop_waiting(shed);
        let is_awaited = queue.owner == WriteOwner::Flusher { is_awaited: true };
        if is_awaited || !queue.chunks.is_empty() || queue.closing.is_some() {
            // The writer owns the bytes from here on: no flush begins before it is polled.
            queue.owner = WriteOwner::Connection;
            queue.wake();
        } else {
            queue.owner = WriteOwner::Idle;
        }
    }

    /// A flush panicked: how much of it was written is unknown. The connection is closed, and its
    /// queued bytes are dropped.
    pub fn abandon_flush(&self) {
        let mut queue = self.queue.lock();
        queue.owner = WriteOwner::Connection;
        queue.chunks = Chunks::default();
        queue.bytes = 0;
        queue.closing.get_or_insert(CloseReason::Internal);
        queue.backlog.iter_mut().for_each(|backlog| backlog.in_hand.clear());
        self.account(&mut queue);
        queue.wake();
    }

    /// As `push`, without waking the writer. Only for the writer's own task, or a task that
    /// wakes it afterwards: a wake here would only cost another poll. The writer must `take`
    /// before it waits, because until then pushes of other tasks do not wake it either.
    pub fn push_without_wake(&self, chunk: Bytes) {
        let pushed = self.queue_up(&mut self.queue.lock(), chunk);
        self.see_to(pushed.memory);
    }

    /// Queues a chunk. The writer of an outbox that overflows is woken.
    fn queue_up(&self, queue: &mut Queue, chunk: Bytes) -> Pushed {
        if queue.closing.is_some() {
            return Pushed { is_due: false, memory: Due::Not };
        }
        let is_due = queue.bytes == 0;
        queue.bytes += chunk.len() + CHUNK_BYTES;
        queue.chunks.push(chunk);
        if queue.bytes >= queue.look_at {
            return self.look_further(queue, is_due);
        }
        Pushed { is_due, memory: Due::Not }
    }

    /// The part of a push for a large queue: so rare that it may cost more.
    #[cold]
    fn look_further(&self, queue: &mut Queue, is_due: bool) -> Pushed {
        if queue.bytes >= self.limits.soft_bytes && self.is_too_full(queue) {
            self.overflow(queue);
            return Pushed { is_due: false, memory: Due::Not };
        }
        let Some(memory) = &self.memory else { return Pushed { is_due, memory: Due::Not } };
        let mut due = Due::Not;
        let accounted = memory.account().in_steps(queue.bytes);
        let before = queue.accounted();
        if accounted > before {
            due = memory.account().grow(accounted - before);
            let backlog = queue.backlog.get_or_insert_with(|| Box::new(Backlog::new()));
            backlog.accounted = accounted;
        }
        queue.look_at = self.look_at(accounted.max(before));
        Pushed { is_due, memory: due }
    }

    /// Called without the lock of this outbox: others are locked, one by one.
    fn see_to(&self, due: Due) {
        if due != Due::Not
            && let Some(memory) = &self.memory
        {
            memory.see_to(due);
        }
    }

    /// Drops what is queued, and closes.
    fn overflow(&self, queue: &mut Queue) {
        queue.closing = Some(CloseReason::SlowConsumer { outbox_bytes: queue.bytes });
        queue.drop_waiting(Shed::Waiting);
        self.account(queue);
        queue.wake();
    }

    /// Wakes the writer, after `push_without_wake`.
    pub fn wake(&self) {
        self.queue.lock().wake();
    }

    /// Lets what is queued be written, then ends. The first reason is kept.
    pub fn close(&self, reason: CloseReason) {
        let mut queue = self.queue.lock();
        queue.closing.get_or_insert(reason);
        queue.wake();
    }

    /// Records what was written since the last call, and moves what is queued to the end of
    /// `chunks`. The writer's task is woken when more is pushed. One call does both, because it
    /// is made for every write.
    pub fn take(&self, written: Written, chunks: &mut Chunks, context: &Context<'_>) -> QueueState {
        let mut queue = self.queue.lock();
        self.settle(&mut queue, written);
        if queue.wait_for_flusher(context) {
            return QueueState::Busy;
        }
        chunks.append_for_write(&mut queue.chunks);
        queue.owner = if chunks.is_empty() { WriteOwner::Idle } else { WriteOwner::Connection };
        queue.note_in_hand(chunks);
        match &queue.closing {
            Some(reason) => QueueState::Closing(reason.clone()),
            None => {
                queue.set_writer(context);
                QueueState::Open { is_congested: queue.bytes >= self.limits.soft_bytes }
            }
        }
    }

    /// As `take`, for a writer that ends, after `poll_detach`. Its task is woken when what it has
    /// is to be dropped.
    pub fn take_last(&self, written: Written, chunks: &mut Chunks, context: &Context<'_>) -> Last {
        let mut queue = self.queue.lock();
        self.settle(&mut queue, written);
        match queue.shed {
            Shed::Nothing => chunks.append_for_write(&mut queue.chunks),
            Shed::Waiting => {
                chunks.append(&mut queue.chunks);
                chunks.keep_begun();
            }
            Shed::All => return Last::Drop,
        }
        queue.note_in_hand(chunks);
        if queue.shed == Shed::Waiting {
            self.account(&mut queue);
        }
        queue.set_writer(context);
        Last::Write
    }

    /// Drops what is queued, because the connection is lost. Nothing is queued from now on.
    pub fn discard(&self) {
        let mut queue = self.queue.lock();
        queue.closing.get_or_insert(CloseReason::Peer(None));
        queue.drop_waiting(Shed::All);
        queue.bytes = 0;
        queue.backlog.iter_mut().for_each(|backlog| backlog.in_hand.clear());
        self.account(&mut queue);
    }

    /// Drops what is queued, because the memory is needed, and closes the connection for this
    /// reason, if it is not closing already. A partly written chunk stays, so that the client can
    /// receive the reason after it; if it stayed the last time, it is dropped as well. `dropped`
    /// receives the dropped buffers.
    pub fn shed(&self, reason: &CloseReason, dropped: &mut Vec<Buffer>) -> Shedding {
        dropped.clear();
        let mut queue = self.queue.lock();
        let was_open = queue.closing.is_none();
        queue.closing.get_or_insert_with(|| reason.clone());
        let in_hand = queue.backlog.as_ref().map(|backlog| backlog.in_hand.as_slice());
        let in_hand = in_hand.unwrap_or_default();
        let is_begun = match in_hand.is_empty() {
            true => queue.chunks.begun_bytes_left() > 0,
            false => queue.backlog.as_ref().is_some_and(|backlog| backlog.is_begun),
        };
        let (shed, kept) = match queue.shed {
            Shed::Nothing => (Shed::Waiting, usize::from(is_begun)),
            Shed::Waiting | Shed::All => (Shed::All, 0),
        };
        let mut buffers = in_hand.iter().copied().chain(queue.chunks.buffers());
        let kept_bytes = buffers.by_ref().take(kept).map(|buffer| buffer.bytes).sum();
        dropped.extend(buffers);
        if let Some(backlog) = &mut queue.backlog {
            backlog.in_hand.truncate(kept);
        }
        queue.drop_waiting(shed);
        self.account(&mut queue);
        queue.wake();
        Shedding { was_open, kept_bytes }
    }

    /// How much memory it holds. `buffers` receives the buffers of its chunks, except a few that
    /// are being written while the queue is short. They are copied, because pushes wait for the
    /// lock.
    pub fn holding(&self, buffers: &mut Vec<Buffer>) -> Holding {
        buffers.clear();
        let queue = self.queue.lock();
        let backlog = queue.backlog.as_ref();
        let in_hand = backlog.map(|backlog| backlog.in_hand.as_slice()).unwrap_or_default();
        buffers.extend(in_hand.iter().copied().chain(queue.chunks.buffers()));
        Holding {
            bytes: queue.bytes,
            stalled: backlog.map(|backlog| backlog.progressed_at.elapsed()),
            is_shed: queue.shed != Shed::Nothing,
        }
    }

    /// Whether so much is queued that it is accounted for.
    pub fn has_backlog(&self) -> bool {
        self.queue.lock().backlog.is_some()
    }

    fn settle(&self, queue: &mut Queue, written: Written) {
        queue.bytes = queue.bytes.saturating_sub(written.bytes + written.chunks * CHUNK_BYTES);
        if queue.bytes < self.limits.soft_bytes {
            queue.soft_since = None;
        }
        if queue.backlog.is_some() {
            self.settle_backlog(queue, written);
        }
    }

    #[cold]
    fn settle_backlog(&self, queue: &mut Queue, written: Written) {
        let (Some(backlog), Some(memory)) = (&mut queue.backlog, &self.memory) else { return };
        let step = memory.account().step();
        backlog.written += written.bytes;
        if backlog.written >= step {
            backlog.written = 0;
            backlog.progressed_at = Instant::now();
        }
        // Not at each step down: an outbox at the edge of a step would be accounted again with
        // every chunk.
        if queue.bytes + step / 2 < backlog.accounted {
            self.account(queue);
        }
    }

    /// Accounts for what is left after some of it was written or dropped.
    fn account(&self, queue: &mut Queue) {
        let (Some(backlog), Some(memory)) = (&mut queue.backlog, &self.memory) else { return };
        let bytes = match queue.shed {
            Shed::Nothing => queue.bytes,
            // What it had before is still in `bytes`, which is logged.
            Shed::Waiting | Shed::All => backlog.in_hand.iter().map(|buffer| buffer.bytes).sum(),
        };
        let left = memory.account().in_steps(bytes).min(backlog.accounted);
        memory.account().shrink(backlog.accounted - left);
        backlog.accounted = left;
        if left == 0 {
            queue.backlog = None;
        }
        queue.chunks.give_back();
        queue.look_at = self.look_at(left);
    }

    /// Closes the outbox if it has been over its soft limit for too long. Must be called
    /// periodically: `push` checks this, too, but is not called for an idle connection.
    pub fn check(&self) {
        let mut queue = self.queue.lock();
        if queue.closing.is_none() && self.is_too_full(&mut queue) {
            self.overflow(&mut queue);
        }
    }

    /// How much is queued.
    pub fn bytes(&self) -> usize {
        self.queue.lock().bytes
    }

    /// Whether so much is queued that the connection should not be read from.
    pub fn is_congested(&self) -> bool {
        self.queue.lock().bytes >= self.limits.soft_bytes
    }

    /// Whether the outbox is closing.
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

impl Drop for Outbox {
    fn drop(&mut self) {
        self.discard();
    }
}

impl Backlog {
    fn new() -> Backlog {
        Backlog {
            accounted: 0,
            progressed_at: Instant::now(),
            written: 0,
            in_hand: Vec::new(),
            is_begun: false,
        }
    }
}

impl Queue {
    fn accounted(&self) -> usize {
        self.backlog.as_ref().map_or(0, |backlog| backlog.accounted)
    }

    /// Records what the writer holds of a large queue: memory that only the writer can free.
    fn note_in_hand(&mut self, chunks: &Chunks) {
        if let Some(backlog) = &mut self.backlog {
            backlog.in_hand.clear();
            backlog.in_hand.extend(chunks.buffers());
            backlog.is_begun = chunks.begun_bytes_left() > 0;
        }
    }

    /// Drops this much of what is queued, from now on.
    fn drop_waiting(&mut self, shed: Shed) {
        self.shed = shed;
        match shed {
            Shed::Nothing => {}
            Shed::Waiting => self.chunks.keep_begun(),
            Shed::All => self.chunks.clear(),
        }
    }

    fn set_writer(&mut self, context: &Context<'_>) {
        if !self.writer.as_ref().is_some_and(|writer| writer.will_wake(context.waker())) {
            self.writer = Some(context.waker().clone());
        }
    }

    /// Whether a flusher writes. If so, the writer is woken when that is done.
    fn wait_for_flusher(&mut self, context: &Context<'_>) -> bool {
        let WriteOwner::Flusher { is_awaited } = &mut self.owner else { return false };
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

    fn take(outbox: &Outbox) -> (Vec<Bytes>, QueueState) {
        let mut chunks = Chunks::default();
        let context = Context::from_waker(Waker::noop());
        let state = outbox.take(Written::default(), &mut chunks, &context);
        (chunks.iter().cloned().collect(), state)
    }

    #[test]
    fn gives_what_was_pushed_in_order_then_the_reason() {
        let outbox = Outbox::new(LIMITS);
        outbox.push(Bytes::from_static(b"ab"));
        outbox.push(Bytes::from_static(b"c"));
        outbox.close(CloseReason::Quit);
        outbox.close(CloseReason::ShuttingDown);
        outbox.push(Bytes::from_static(b"late"));
        let (chunks, state) = take(&outbox);
        assert_eq!(chunks, ["ab", "c"]);
        assert_eq!(state, QueueState::Closing(CloseReason::Quit));
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
                // Flushed without a write: the writer waits for its socket.
                outbox.take(Written::default(), &mut Chunks::default(), &context);
                push(&outbox, Bytes::from_static(chunk));
            }
            wakes.0.swap(0, Ordering::Relaxed)
        };
        assert_eq!(woken_by(&[Outbox::push], b"a"), 1);
        assert_eq!(woken_by(&[Outbox::push, Outbox::push], b"a"), 1);
        assert_eq!(woken_by(&[Outbox::push_without_wake], b"a"), 0);
        assert_eq!(woken_by(&[Outbox::push_without_wake, Outbox::push], b"a"), 0);
        assert_eq!(
            woken_by(&[Outbox::push_without_wake], &[0; LIMITS.bytes_max]),
            1,
            "it overflows"
        );
    }

    #[test]
    fn the_hard_limit_closes_at_once_and_counts_what_the_writer_holds() {
        let outbox = Outbox::new(OutboxLimits { soft_bytes: LIMITS.bytes_max, ..LIMITS });
        outbox.push(Bytes::from_static(b"12345678"));
        assert_eq!(take(&outbox).0.len(), 1);
        outbox.push(Bytes::from_static(b"9a"));
        let (chunks, state) = take(&outbox);
        assert!(chunks.is_empty());
        assert_eq!(
            state,
            QueueState::Closing(CloseReason::SlowConsumer { outbox_bytes: LIMITS.bytes_max })
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
        let state = outbox.take(written, &mut Chunks::default(), &context);
        assert_eq!(state, QueueState::Open { is_congested: false });
        assert!(outbox.queue.lock().soft_since.is_none());
        assert!(!outbox.is_closing() && !outbox.is_congested());
    }
}
