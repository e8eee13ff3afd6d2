//! Tests of the outbox.

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
    assert_eq!(woken_by(&[Outbox::push_without_wake], &[0; LIMITS.bytes_max]), 1, "it overflows");
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

#[test]
fn what_others_push_during_a_held_reply_comes_after_it() {
    let outbox = Outbox::new(OutboxLimits { bytes_max: 1 << 20, soft_bytes: 1 << 20, ..LIMITS });
    outbox.push(Bytes::from_static(b"before"));
    outbox.hold();
    assert!(!outbox.push_deferred(Bytes::from_static(b"message 1")));
    assert_eq!(take(&outbox).0, ["before"]);
    outbox.push_without_wake(Bytes::from_static(b"message 2"));
    assert!(take(&outbox).0.is_empty());
    let held = outbox.bytes();
    outbox.release(Some(Bytes::from_static(b"reply")));
    assert_eq!(outbox.bytes(), held + b"reply".len() + CHUNK_BYTES);
    outbox.push_without_wake(Bytes::from_static(b"after"));
    assert_eq!(take(&outbox).0, ["reply", "message 1", "message 2", "after"]);
}

#[test]
fn what_is_held_back_counts_for_the_limits_and_is_dropped_with_the_rest() {
    let outbox = Outbox::new(OutboxLimits { soft_bytes: LIMITS.bytes_max, ..LIMITS });
    outbox.hold();
    outbox.push(Bytes::from_static(b"12345678"));
    let mut buffers = Vec::new();
    assert_eq!(outbox.holding(&mut buffers).bytes, 8 + CHUNK_BYTES);
    assert_eq!(buffers.len(), 1);
    outbox.push(Bytes::from_static(b"9a"));
    assert!(outbox.is_closing());
    outbox.release(Some(Bytes::from_static(b"reply")));
    assert!(take(&outbox).0.is_empty());
}
