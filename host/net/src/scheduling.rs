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

/// They fail if tokio's order of tasks changes. Then the workarounds above must be measured again.
#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use anyhow::Result;
    use parking_lot::Mutex;
    use tokio::runtime::Runtime;

    use super::*;

    /// What ran, in order.
    type Order = Arc<Mutex<Vec<&'static str>>>;

    fn note(order: &Order, step: &'static str) {
        order.lock().push(step);
    }

    /// A runtime with one worker, so that there is one order of tasks.
    fn runtime() -> Result<Runtime> {
        Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).build()?)
    }

    /// Runs `tasks` on the worker: they are spawned while it is busy, and so are ready together.
    fn run_together(runtime: &Runtime, spawn: impl FnOnce(&Runtime)) -> Result<()> {
        let (release, released): (_, Receiver<()>) = channel();
        let (busy, is_busy) = channel();
        let blocking = runtime.spawn(async move {
            let _ = busy.send(());
            let _ = released.recv();
        });
        is_busy.recv()?;
        spawn(runtime);
        release.send(())?;
        runtime.block_on(blocking)?;
        Ok(())
    }

    /// Two tasks are spawned by a task of the worker.
    fn order_of_two(is_defeated: bool) -> Result<Vec<&'static str>> {
        let runtime = runtime()?;
        let order = Order::default();
        let (first, second) = (order.clone(), order.clone());
        runtime.block_on(async move {
            tokio::spawn(async move {
                if is_defeated {
                    // The idle task exists once it has run.
                    defeat_lifo_slot();
                    tokio::task::yield_now().await;
                }
                let first = tokio::spawn(async move { note(&first, "first") });
                let second = tokio::spawn(async move { note(&second, "second") });
                if is_defeated {
                    defeat_lifo_slot();
                }
                first.await?;
                second.await
            })
            .await?
        })?;
        let order = order.lock().clone();
        Ok(order)
    }

    #[test]
    fn the_task_that_is_woken_last_runs_first_unless_the_slot_is_occupied() -> Result<()> {
        assert_eq!(order_of_two(false)?, ["second", "first"], "tokio has a LIFO slot");
        assert_eq!(order_of_two(true)?, ["first", "second"]);
        Ok(())
    }

    #[test]
    fn a_task_that_yields_to_the_run_queue_goes_on_before_the_io_driver_is_polled() -> Result<()> {
        let runtime = runtime()?;
        let order = Order::default();
        let (done, is_done) = channel();
        run_together(&runtime, |runtime| {
            let (of_driver, of_queue) = (order.clone(), order.clone());
            let also_done = done.clone();
            runtime.spawn(async move {
                note(&of_driver, "waits for the driver");
                let mut has_yielded = false;
                poll_fn(|context| {
                    if std::mem::replace(&mut has_yielded, true) {
                        return Poll::Ready(());
                    }
                    yield_to_io_driver(context);
                    Poll::Pending
                })
                .await;
                note(&of_driver, "after the driver");
                let _ = done.send(());
            });
            runtime.spawn(async move {
                note(&of_queue, "waits for the queue");
                yield_to_run_queue().await;
                note(&of_queue, "after the queue");
                let _ = also_done.send(());
            });
        })?;
        for _ in 0..2 {
            is_done.recv_timeout(Duration::from_secs(60))?;
        }
        let expected =
            ["waits for the driver", "waits for the queue", "after the queue", "after the driver"];
        assert_eq!(*order.lock(), expected);
        Ok(())
    }

    #[test]
    fn without_a_runtime_nothing_is_woken() {
        defeat_lifo_slot();
    }
}
