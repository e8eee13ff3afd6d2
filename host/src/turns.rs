//! Whoever is woken last does not run first.
//!
//! Tokio runs the task that was woken last before all that wait, so that two who talk to each
//! other need not wait for the others. A connection that is run so at once sends the one message
//! that it has, while those before it in the queue publish more for it: where a hundred speak in
//! rooms of ten, a delivery took a fourth more processor time. So a task that does nothing is woken
//! last.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use tokio::runtime::Handle;

thread_local! {
    static IDLER: Arc<OnceLock<Waker>> = start_idler();
}

/// Lets those whom this thread has woken wait behind those who were waiting before.
pub fn wake_nobody_first() {
    IDLER.with(|waker| {
        if let Some(waker) = waker.get() {
            waker.wake_by_ref();
        }
    });
}

/// Lets those who are ready have their turns. (Tokio's `yield_now` waits until the thread has
/// looked at its sockets, too.)
pub async fn wait_for_others() {
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

/// Has this task wait until the thread has looked at its sockets and timers, which it does when
/// all who are ready have had their turns, or after many of them.
pub fn wait_for_sockets(context: &mut Context<'_>) {
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
