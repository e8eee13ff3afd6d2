//! Compiling aside: in threads of their own, bounded in number and time, and at low priority once
//! the server serves.
//!
//! Wasmtime cannot interrupt a compilation. One that takes too long, or is not wanted any more, goes
//! on until it ends, and its result is dropped; its caller is answered at once. Until it ends it
//! counts, so there are never more than the limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing::debug;
use wasmtime::component::Component;

use super::Wasm;

/// How much may be compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileLimits {
    /// How many components may be compiled at the same time, each by one thread.
    pub at_once_max: usize,
    /// How long one may take, and how long it may wait before.
    pub time: Duration,
}

impl Default for CompileLimits {
    fn default() -> CompileLimits {
        CompileLimits { at_once_max: 4, time: Duration::from_secs(600) }
    }
}

/// How often a caller checks whether the result is still wanted.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// As the main thread has it: a compiler may recurse deeply.
const STACK_BYTES: usize = 8 << 20;
/// The niceness of a compilation while the server serves: where there is not enough processor time, it
/// gets two thirds of what another thread gets. With more, a swap on a busy machine takes minutes.
const NICENESS: i32 = 2;

/// Counts the compilations that run.
#[derive(Default)]
pub(super) struct Gate {
    limits: CompileLimits,
    running: Mutex<usize>,
    has_ended: Condvar,
    is_serving: AtomicBool,
}

/// A compilation that runs.
struct Running(Arc<Gate>);

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.running.lock() -= 1;
        self.0.has_ended.notify_one();
    }
}

impl Gate {
    pub(super) fn new(limits: CompileLimits) -> Arc<Gate> {
        Arc::new(Gate { limits, ..Gate::default() })
    }

    fn enter(self: &Arc<Gate>, is_wanted: &dyn Fn() -> bool) -> Result<Running, String> {
        let deadline = Instant::now() + self.limits.time;
        let mut running = self.running.lock();
        while *running >= self.limits.at_once_max {
            self.has_ended.wait_for(&mut running, CHECK_INTERVAL);
            if !is_wanted() {
                return Err(UNWANTED.to_owned());
            }
            if Instant::now() >= deadline {
                return Err(format!(
                    "it was not compiled, because {running} others have been compiled for {} ms \
                     (plugins.compilations_max, plugins.compile_timeout_ms)",
                    self.limits.time.as_millis()
                ));
            }
        }
        *running += 1;
        Ok(Running(self.clone()))
    }
}

const UNWANTED: &str = "it is not wanted any more: a later change was made";

impl Wasm {
    /// From now on, compilations have a lower priority than what serves clients.
    pub fn begin_serving(&self) {
        self.gate.is_serving.store(true, Ordering::Relaxed);
    }

    /// How many components may be compiled at the same time.
    pub fn compilations_max(&self) -> usize {
        self.gate.limits.at_once_max
    }

    /// Compiles a component in another thread, and waits for it while `is_wanted`.
    ///
    /// # Errors
    ///
    /// The bytes are not a component, it took too long, or it is not wanted any more; the error is
    /// a message.
    pub fn compile_aside(
        &self,
        bytes: &Arc<[u8]>,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Component, String> {
        let running = self.gate.enter(is_wanted)?;
        debug!(bytes = bytes.len(), "a component is compiled");
        let is_serving = self.gate.is_serving.load(Ordering::Relaxed);
        let (done, result) = sync_channel(1);
        let (wasm, bytes) = (self.clone(), bytes.clone());
        let compiling = move || {
            let _running = running;
            if is_serving {
                lower_priority();
            }
            // The caller may have gone.
            let _ = done.send(wasm.compile(&bytes));
        };
        let thread = std::thread::Builder::new().name("compile".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(compiling).map_err(|error| format!("no thread to compile it: {error}"))?;
        let time = self.gate.limits.time;
        let deadline = Instant::now() + time;
        loop {
            match result.recv_timeout(CHECK_INTERVAL) {
                Ok(compiled) => return compiled,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err("the compiler failed; the log says where".to_owned());
                }
                Err(RecvTimeoutError::Timeout) if !is_wanted() => return Err(UNWANTED.to_owned()),
                Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                    return Err(format!(
                        "compiling it takes more than {} ms (plugins.compile_timeout_ms)",
                        time.as_millis()
                    ));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// Lowers the priority of this thread. Elsewhere than on Linux, this would be the whole process.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    // It cannot fail for a thread of one's own; if it does, the priority stays.
    let _ = rustix::process::setpriority_process(None, NICENESS);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(at_once_max: usize, time: Duration) -> Arc<Gate> {
        Gate::new(CompileLimits { at_once_max, time })
    }

    #[test]
    fn no_more_run_than_the_limit_and_those_that_end_make_room() {
        let gate = limited(2, Duration::from_millis(1));
        let first = gate.enter(&|| true).expect("there is room");
        let _second = gate.enter(&|| true).expect("there is room");
        let refused = gate.enter(&|| true).err().expect("there is none");
        assert!(refused.contains("plugins.compilations_max"), "{refused}");
        drop(first);
        assert!(gate.enter(&|| true).is_ok());
    }

    #[test]
    fn what_is_not_wanted_waits_no_longer() {
        let gate = limited(1, Duration::from_secs(3_600));
        let _running = gate.enter(&|| true).expect("there is room");
        assert_eq!(gate.enter(&|| false).err().as_deref(), Some(UNWANTED));
    }
}
