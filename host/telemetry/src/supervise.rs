//! Tasks that run as long as the server does.
//!
//! A task that panics or ends is started again, after a wait that doubles. This is counted, logged,
//! and reported in the health of the server until the task has run for a while. This module does
//! not know what the tasks do.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, info};

use crate::stats::{count, load};

/// The wait before a task is started again, ...
const WAIT: Duration = Duration::from_millis(100);
/// ... which doubles up to this.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// A task that has run for this long is healthy, and the next wait is short again.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// The reason for which a task ended that should not.
pub type Ended = Result<Infallible, String>;

/// Keeps tasks running.
#[derive(Default)]
pub struct Supervisor {
    tasks: Mutex<Vec<Arc<Task>>>,
}

struct Task {
    name: Arc<str>,
    restarts: AtomicU64,
    down: Mutex<Option<Down>>,
}

/// The problem of a task that is not healthy.
struct Down {
    why: String,
    /// When it was restarted; none: it was not.
    started: Option<Instant>,
}

impl Supervisor {
    /// Runs what `start` returns, and restarts it when it ends, until this is dropped. Tasks of one
    /// name are counted together.
    pub async fn keep<F>(self: Arc<Self>, name: impl Into<Arc<str>>, mut start: impl FnMut() -> F)
    where
        F: Future<Output = Ended>,
    {
        let task = self.task(name.into());
        drop(self);
        let mut wait = WAIT;
        loop {
            let started = Instant::now();
            let running = AssertUnwindSafe(async { start().await }).catch_unwind();
            let why = match running.await {
                Ok(Ok(never)) => match never {},
                Ok(Err(why)) => why,
                Err(_) => "it panicked; the log says where".to_owned(),
            };
            if started.elapsed() >= SETTLED_AFTER {
                wait = WAIT;
            }
            count(&task.restarts);
            let ms = wait.as_millis() as u64;
            match task.is_down(&why) {
                // It was logged.
                true => debug!(task = &*task.name, why, ms, "a task ended again, and is restarted"),
                false => error!(task = &*task.name, why, ms, "a task ended, and is restarted"),
            }
            sleep(wait).await;
            wait = (wait * 2).min(WAIT_MAX);
            task.is_started();
        }
    }

    /// How often each task was restarted.
    pub fn restarts(&self) -> Vec<(Arc<str>, u64)> {
        self.tasks.lock().iter().map(|task| (task.name.clone(), load(&task.restarts))).collect()
    }

    /// The problems of unhealthy tasks.
    pub fn problems(&self) -> Vec<String> {
        self.tasks.lock().iter().filter_map(|task| task.problem()).collect()
    }

    fn task(&self, name: Arc<str>) -> Arc<Task> {
        let mut tasks = self.tasks.lock();
        if let Some(task) = tasks.iter().find(|task| task.name == name) {
            return task.clone();
        }
        let task = Arc::new(Task { name, restarts: AtomicU64::new(0), down: Mutex::default() });
        tasks.push(task.clone());
        task
    }
}

impl Task {
    /// Records why it ended. Returns whether it was down for the same reason already.
    fn is_down(&self, why: &str) -> bool {
        let mut down = self.down.lock();
        let is_known = down.as_ref().is_some_and(|down| down.why == why && !down.is_over());
        *down = Some(Down { why: why.to_owned(), started: None });
        is_known
    }

    fn is_started(&self) {
        if let Some(down) = &mut *self.down.lock() {
            down.started = Some(Instant::now());
        }
    }

    fn problem(&self) -> Option<String> {
        let mut down = self.down.lock();
        if down.take_if(|down| down.is_over()).is_some() {
            info!(task = &*self.name, "a task runs again");
        }
        let Down { why, .. } = down.as_ref()?;
        Some(format!("the task {} is being restarted: {why}", self.name))
    }
}

impl Down {
    fn is_over(&self) -> bool {
        self.started.is_some_and(|started| started.elapsed() >= SETTLED_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    /// Waits until this is the problem.
    async fn until_problems_are(supervisor: &Supervisor, expected: &[&str]) {
        let waiting = async {
            while supervisor.problems() != expected {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        assert!(waited.is_ok(), "{:?}", supervisor.problems());
    }

    #[tokio::test]
    async fn a_task_that_ends_is_started_again_and_meanwhile_a_problem() {
        let supervisor = Arc::<Supervisor>::default();
        let ends = Arc::<tokio::sync::Notify>::default();
        let (noted, mut starts) = (ends.clone(), 0);
        let kept = tokio::spawn(supervisor.clone().keep("test", move || {
            starts += 1;
            let (start, ends) = (starts, noted.clone());
            async move {
                match start {
                    1 => panic!("a defect"),
                    2 => {
                        ends.notified().await;
                        Err("no".to_owned())
                    }
                    _ => pending().await,
                }
            }
        }));
        let panicked = "the task test is being restarted: it panicked; the log says where";
        until_problems_are(&supervisor, &[panicked]).await;
        until_problems_are(&supervisor, &[]).await;
        assert_eq!(supervisor.restarts(), [("test".into(), 1)]);
        ends.notify_one();
        until_problems_are(&supervisor, &["the task test is being restarted: no"]).await;
        until_problems_are(&supervisor, &[]).await;
        assert_eq!(supervisor.restarts(), [("test".into(), 2)]);
        kept.abort();
    }

    #[tokio::test]
    async fn what_is_kept_ends_with_its_keeper() {
        let supervisor = Arc::<Supervisor>::default();
        let held = Arc::new(());
        let inside = held.clone();
        let kept = tokio::spawn(supervisor.keep("test", move || {
            let inside = inside.clone();
            async move {
                let _inside = inside;
                pending().await
            }
        }));
        kept.abort();
        let _aborted = kept.await;
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
