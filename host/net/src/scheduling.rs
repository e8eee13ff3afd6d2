//! Works around tokio's LIFO slot, which runs the most recently woken task first.
//!
//! The slot is meant for two tasks that send messages to each other. Here, a connection task that
//! runs from it writes the one message that it has, although tasks ahead of it in the run queue are
//! about to publish more for it: with a hundred publishers in rooms of ten, a delivery took a
//! quarter more processor time. So a task that does nothing is woken last and takes the slot.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use tokio::runtime::Handle;

thread_local! {
    static IDLER: Arc<OnceLock<Waker>> = start_idler();
}

/// Wakes the idle task into the LIFO slot, so that the task in it moves to the end of the run
/// queue.
pub fn defeat_lifo_slot() {
    IDLER.with(|waker| {
        if let Some(waker) = waker.get() {
            waker.wake_by_ref();
        }
    });
}

/// Yields to the tasks in the run queue. (Tokio's `yield_now` also waits until the worker has
/// polled the I/O driver.)
pub async fn yield_to_run_queue() {
    let mut is_behind = false;
    poll_fn(|context| {
        if std::mem::replace(&mut is_behind, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Has this task wait until the worker has polled the I/O driver and timers. It does so when its
/// run queue is empty, or after many task polls.
pub fn yield_to_io_driver(context: &mut Context<'_>) {
    let _ = pin!(tokio::task::yield_now()).poll(context);
}

/// Starts the task that does nothing, if there is a runtime for it to run on. Its waker is there
/// once it has run.
fn start_idler() -> Arc<OnceLock<Waker>> {
    let waker = Arc::<OnceLock<Waker>>::default();
    if let Ok(runtime) = Handle::try_current() {
        let own = waker.clone();
        runtime.spawn(poll_fn(move |context| {
            own.get_or_init(|| context.waker().clone());
            Poll::<()>::Pending
        }));
    }
    waker
}
