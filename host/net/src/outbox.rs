//! The output queue of one connection.
//!
//! It is a FIFO queue of encoded bytes, bounded in bytes. Many tasks push, and one at a time
//! writes: the connection's own task (its writer), or a flusher while the writer has nothing to
//! write. Pushing never waits: a push that does not fit closes the connection (Redis'
//! `client-output-buffer-limit`), so that a slow subscriber cannot block a publisher. This module
//! knows no protocols.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

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
    /// What was pushed since `hold`; none: nothing is held back.
    held: Option<Box<Chunks>>,
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
        let look_at = outbox.look_at(&Queue::default(), 0);
        outbox.queue.lock().look_at = look_at;
        outbox
    }

    /// At how many bytes a push must check further, if so many are accounted for.
    fn look_at(&self, queue: &Queue, accounted: usize) -> usize {
        if queue.held.is_some() {
            return 0;
        }
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

    /// Begins a reply that is sent as a whole: what is pushed from now on is held back until
    /// `release`, and comes after the reply.
    pub fn hold(&self) {
        let mut queue = self.queue.lock();
        queue.held.get_or_insert_default();
        // Each push checks further, which costs other outboxes nothing.
        queue.look_at = 0;
    }

    /// Queues the reply, and what was held back after it. Only for the writer's own task, as
    /// `push_without_wake`.
    pub fn release(&self, reply: Option<Bytes>) {
        let mut queue = self.queue.lock();
        let held = queue.held.take();
        queue.look_at = self.look_at(&queue, queue.accounted());
        let memory = match reply {
            Some(reply) => self.queue_up(&mut queue, reply).memory,
            None => Due::Not,
        };
        if let Some(mut held) = held.filter(|_| queue.closing.is_none()) {
            queue.chunks.append(&mut held);
        }
        drop(queue);
        self.see_to(memory);
    }

    /// The hard limit, in bytes.
    pub fn bytes_max(&self) -> usize {
        self.limits.bytes_max
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
        queue.held = None;
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
        let is_due = is_due && queue.held.is_none();
        if let Some(held) = &mut queue.held
            && let Some(chunk) = queue.chunks.take_last()
        {
            held.push(chunk);
        }
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
        queue.look_at = self.look_at(queue, accounted.max(before));
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
                // The reply that the rest waits for needs the connection's task.
                let is_congested = queue.bytes >= self.limits.soft_bytes && queue.held.is_none();
                QueueState::Open { is_congested }
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
        let mut buffers = in_hand.iter().copied().chain(queue.buffers());
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
        buffers.extend(in_hand.iter().copied().chain(queue.buffers()));
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
        queue.look_at = self.look_at(queue, left);
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
    /// The buffers of what is queued.
    fn buffers(&self) -> impl Iterator<Item = Buffer> {
        self.chunks.buffers().chain(self.held.iter().flat_map(|held| held.buffers()))
    }

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
        if shed != Shed::Nothing {
            self.held = None;
        }
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
#[path = "outbox/tests.rs"]
mod tests;
