//! Several tasks share an outbox. In every order of their steps, each byte is written once and in
//! order, and no task sleeps for ever (loom reports a deadlock).

use std::future::poll_fn;
use std::sync::Arc as StdArc;
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use loom::future::block_on;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use net_loom::batch_mark::BatchMark;
use net_loom::chunks::{Chunks, Written};
use net_loom::outbox::{Last, Outbox, QueueState};
use net_loom::socket::Socket;
use switchyard_config::OutboxLimits;
use switchyard_types::close::CloseReason;

/// How often a thread is preempted at most in one order of steps: the number of orders grows
/// exponentially, and two suffice for nearly all faults.
const PREEMPTIONS_MAX: usize = 3;

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(model);
}

fn outbox() -> Outbox {
    Outbox::new(OutboxLimits {
        bytes_max: 1 << 20,
        soft_bytes: 1 << 20,
        soft_time: std::time::Duration::from_secs(3600),
    })
}

/// What was written to the socket, by any task.
type Wire = Arc<Mutex<Vec<u8>>>;

fn write(wire: &Wire, chunks: &mut Chunks) -> Written {
    let mut bytes = 0;
    let count = chunks.len();
    let mut wire = wire.lock().expect("a model that panics ends");
    for chunk in chunks.iter() {
        bytes += chunk.len();
        wire.extend_from_slice(chunk);
    }
    *chunks = Chunks::default();
    Written { bytes, chunks: count }
}

/// The connection's task, as `Writer::poll` in the server: it writes until there is nothing more, and
/// is pending then.
fn poll_writer(
    outbox: &Outbox,
    wire: &Wire,
    written: &mut Written,
    context: &Context<'_>,
) -> Poll<CloseReason> {
    let mut chunks = Chunks::default();
    loop {
        match outbox.take(std::mem::take(written), &mut chunks, context) {
            QueueState::Open { .. } if chunks.is_empty() => return Poll::Pending,
            QueueState::Busy => return Poll::Pending,
            QueueState::Open { .. } => *written = write(wire, &mut chunks),
            QueueState::Closing(reason) => {
                *written = write(wire, &mut chunks);
                return Poll::Ready(reason);
            }
        }
    }
}

/// Wakes the connection's task, and counts the tasks that may still queue bytes for it.
struct Signal {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    is_woken: bool,
    publishers: usize,
}

impl Signal {
    fn new(publishers: usize) -> StdArc<Signal> {
        let state = Mutex::new(State { is_woken: false, publishers });
        StdArc::new(Signal { state, changed: Condvar::new() })
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect("a model that panics ends"));
        self.changed.notify_one();
    }
}

impl Wake for Signal {
    fn wake(self: StdArc<Self>) {
        self.change(|state| state.is_woken = true);
    }
}

/// The connection's task until all publishers have ended and it is not woken any more: then everything
/// must have been written. A wake that is missing leaves bytes in the outbox.
fn run_connection(outbox: &Outbox, wire: &Wire, signal: &StdArc<Signal>) {
    let waker = Waker::from(signal.clone());
    let mut written = Written::default();
    loop {
        let polled = poll_writer(outbox, wire, &mut written, &Context::from_waker(&waker));
        assert!(polled.is_pending(), "nothing closes it");
        let mut state = signal.state.lock().expect("a model that panics ends");
        while !state.is_woken && state.publishers > 0 {
            state = signal.changed.wait(state).expect("a model that panics ends");
        }
        if !std::mem::take(&mut state.is_woken) {
            break;
        }
    }
    assert_eq!(outbox.bytes(), 0, "bytes are left, and no task writes them");
}

/// Writes until the outbox is closed and empty.
async fn run_writer(outbox: &Outbox, wire: &Wire) {
    let mut written = Written::default();
    poll_fn(|context| poll_writer(outbox, wire, &mut written, context)).await;
    poll_fn(|context| outbox.poll_detach(context)).await;
    let mut chunks = Chunks::default();
    poll_fn(|context| {
        loop {
            let last = outbox.take_last(std::mem::take(&mut written), &mut chunks, context);
            assert_eq!(last, Last::Write);
            if chunks.is_empty() {
                return Poll::Ready(());
            }
            written = write(wire, &mut chunks);
        }
    })
    .await;
}

/// A flusher, as `flush` in host/net/src/flush.rs.
fn flush(outbox: &Outbox, wire: &Wire) {
    let mut chunks = Chunks::default();
    if outbox.begin_flush(&mut chunks).is_some() {
        let written = write(wire, &mut chunks);
        outbox.end_flush(written, chunks);
    }
}

/// As a publisher does: what must be flushed is flushed.
fn publish(outbox: &Outbox, wire: &Wire, bytes: &'static [u8]) {
    if outbox.push_deferred(Bytes::from_static(bytes)) {
        flush(outbox, wire);
    }
}

fn text(wire: &Wire) -> String {
    let wire = wire.lock().expect("a model that panics ends");
    String::from_utf8(wire.clone()).expect("it is text")
}

#[test]
fn the_writer_is_woken_for_each_push() {
    explore(|| {
        let (outbox, wire) = (Arc::new(outbox()), Wire::default());
        let pushing = thread::spawn({
            let outbox = outbox.clone();
            move || {
                outbox.push(Bytes::from_static(b"a"));
                outbox.push(Bytes::from_static(b"b"));
                outbox.close(CloseReason::Quit);
            }
        });
        block_on(run_writer(&outbox, &wire));
        pushing.join().expect("it ends");
        assert_eq!(text(&wire), "ab");
    });
}

#[test]
fn a_connection_ends_after_the_flush_that_is_in_progress() {
    explore(|| {
        let (outbox, wire) = (Arc::new(outbox()), Wire::default());
        outbox.attach(Some(StdArc::new(Socket)));
        let publishing = thread::spawn({
            let (outbox, wire) = (outbox.clone(), wire.clone());
            move || {
                publish(&outbox, &wire, b"a");
                publish(&outbox, &wire, b"b");
                outbox.close(CloseReason::Quit);
            }
        });
        block_on(run_writer(&outbox, &wire));
        publishing.join().expect("it ends");
        assert_eq!(text(&wire), "ab");
    });
}

#[test]
fn a_flusher_and_the_writer_do_not_write_at_the_same_time() {
    explore(|| {
        let (outbox, wire) = (Arc::new(outbox()), Wire::default());
        outbox.attach(Some(StdArc::new(Socket)));
        assert!(outbox.push_deferred(Bytes::from_static(b"a")), "nothing was queued before");
        let signal = Signal::new(2);
        let flushing = thread::spawn({
            let (outbox, wire, signal) = (outbox.clone(), wire.clone(), signal.clone());
            move || {
                flush(&outbox, &wire);
                signal.change(|state| state.publishers -= 1);
            }
        });
        let publishing = thread::spawn({
            let (outbox, wire, signal) = (outbox.clone(), wire.clone(), signal.clone());
            move || {
                publish(&outbox, &wire, b"b");
                signal.change(|state| state.publishers -= 1);
            }
        });
        run_connection(&outbox, &wire, &signal);
        flushing.join().expect("it ends");
        publishing.join().expect("it ends");
        assert_eq!(text(&wire), "ab");
    });
}

/// One flushes while the other queues more, and the connection's task is polled at any time.
#[test]
fn what_two_publishers_queue_is_written_once_and_in_the_order_of_each() {
    explore(|| {
        let (outbox, wire) = (Arc::new(outbox()), Wire::default());
        outbox.attach(Some(StdArc::new(Socket)));
        let signal = Signal::new(2);
        let publisher = |messages: &'static [&'static [u8]]| {
            let (outbox, wire, signal) = (outbox.clone(), wire.clone(), signal.clone());
            thread::spawn(move || {
                messages.iter().for_each(|message| publish(&outbox, &wire, message));
                signal.change(|state| state.publishers -= 1);
            })
        };
        let publishers = [publisher(&[b"a", b"b"]), publisher(&[b"1"])];
        run_connection(&outbox, &wire, &signal);
        for publisher in publishers {
            publisher.join().expect("it ends");
        }
        let written = text(&wire);
        let letters: String = written.chars().filter(|byte| "ab".contains(*byte)).collect();
        assert_eq!((letters.as_str(), written.len()), ("ab", 3), "{written}");
    });
}

/// The connection's publications wait in a batch, as in `PublishBatcher`: another task publishes them,
/// queues the reply and clears the mark, while a third task queues a message.
#[test]
fn a_connection_in_a_batch_gets_its_reply_and_every_message() {
    explore(|| {
        let (outbox, wire) = (Arc::new(outbox()), Wire::default());
        outbox.attach(Some(StdArc::new(Socket)));
        let mark = Arc::new(BatchMark::default());
        mark.set();
        let signal = Signal::new(2);
        let batching = thread::spawn({
            let (outbox, mark, signal) = (outbox.clone(), mark.clone(), signal.clone());
            move || {
                outbox.push_without_wake(Bytes::from_static(b"r"));
                mark.clear(&outbox);
                signal.change(|state| state.publishers -= 1);
            }
        });
        let publishing = thread::spawn({
            let (outbox, mark, wire) = (outbox.clone(), mark.clone(), wire.clone());
            let signal = signal.clone();
            move || {
                // As CoalescedDelivery::push does: the mark is checked after the push.
                if outbox.push_deferred(Bytes::from_static(b"m")) && !mark.is_set() {
                    flush(&outbox, &wire);
                }
                signal.change(|state| state.publishers -= 1);
            }
        });
        run_connection(&outbox, &wire, &signal);
        batching.join().expect("it ends");
        publishing.join().expect("it ends");
        assert_eq!(text(&wire).len(), 2);
        assert!(!mark.is_set());
    });
}
