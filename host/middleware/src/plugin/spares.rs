//! Spare instances: initialised, and not called until another instance fails.
//!
//! An instance that fails is dropped with its store, and a fresh one takes its place during the
//! same call: a spare, or one that is built at once where that has proved to be quick. So the
//! policy never decides about items that did not make the plugin fail. A spare starts without
//! state, as any rebuilt instance does.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

use super::Plugin;
use crate::PluginError;
use crate::bindings::{Fault, Instance};
use crate::isolation::Cause;

/// The spares of one plugin.
pub struct Spares {
    #[expect(clippy::vec_box, reason = "they are moved to their places without a copy")]
    ready: Mutex<Vec<Box<Instance>>>,
    /// The configured number.
    wanted: usize,
    /// How many are being built.
    under_way: AtomicUsize,
    /// The processor time to build the last instance, in nanoseconds.
    build_ns: AtomicU64,
}

/// Where an instance came from that took the place of one that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replacement {
    /// There was a spare, and a new one should be built.
    Spare,
    /// It was built at once.
    Built,
}

impl Spares {
    /// No spares; this many are wanted.
    pub fn new(wanted: usize) -> Spares {
        Spares {
            ready: Mutex::default(),
            wanted,
            under_way: AtomicUsize::new(0),
            build_ns: AtomicU64::new(u64::MAX),
        }
    }

    /// Records the processor time to build an instance.
    pub fn learn(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.build_ns.store(ns, Ordering::Relaxed);
    }

    /// Whether an instance is built within this time.
    fn is_quick(&self, time: Duration) -> bool {
        Duration::from_nanos(self.build_ns.load(Ordering::Relaxed)) <= time
    }

    /// A spare, if there is one.
    pub fn take(&self) -> Option<Box<Instance>> {
        self.ready.lock().pop()
    }

    /// Drops the spares.
    pub fn clear(&self) {
        let ended = std::mem::take(&mut *self.ready.lock());
        drop(ended);
    }

    /// The size of the spares' memories.
    pub fn memory_bytes(&self) -> Vec<usize> {
        self.ready.lock().iter().map(|instance| instance.memory_bytes()).collect()
    }
}

impl Plugin {
    /// An instance to replace one that failed; none: the slot must wait for one.
    pub(crate) fn replacement(&self) -> Option<(Box<Instance>, Replacement)> {
        if let Some(spare) = self.spares.take() {
            return Some((spare, Replacement::Spare));
        }
        if !self.spares.is_quick(self.config.limits.call_budget) {
            return None;
        }
        // If this fails, the rebuild that follows fails as well, and counts.
        let built = self.build().ok()?;
        Some((Box::new(built), Replacement::Built))
    }

    /// Builds `count` spares now, whatever the configured number. Blocks.
    ///
    /// # Errors
    ///
    /// The step that failed and why.
    pub(crate) fn build_spares(&self, count: usize) -> Result<(), PluginError> {
        for _ in 0..count {
            let built = Box::new(self.build()?);
            self.spares.ready.lock().push(built);
        }
        Ok(())
    }

    /// Builds spares up to the configured number, off the data path. False: there are enough, or
    /// they are being built already.
    pub(crate) fn refill_after(&self, wait: Duration, is_rebuild: bool) -> bool {
        let spares = &self.spares;
        let at_hand = spares.ready.lock().len() + spares.under_way.load(Ordering::Relaxed);
        if at_hand >= spares.wanted || self.is_parked() {
            return false;
        }
        spares.under_way.fetch_add(1, Ordering::Relaxed);
        let own = self.own();
        self.runtime().spawn(async move {
            tokio::time::sleep(wait).await;
            // A panic in there has been logged by the panic hook.
            let _ = tokio::task::spawn_blocking(move || {
                let Some(plugin) = own.upgrade() else { return };
                plugin.refill(is_rebuild);
            })
            .await;
        });
        true
    }

    fn refill(&self, is_rebuild: bool) {
        let built = match self.is_parked() {
            true => None,
            false => Some(self.build()),
        };
        self.spares.under_way.fetch_sub(1, Ordering::Relaxed);
        match built {
            None => {}
            Some(Ok(instance)) => {
                self.spares.ready.lock().push(Box::new(instance));
                if is_rebuild {
                    self.was_rebuilt("spare");
                }
            }
            Some(Err(error)) => {
                let fault = Fault { hook: error.step, problem: error.problem };
                if !self.strike(Instant::now(), None, &fault, Cause::Plugin) {
                    warn!(plugin = %self.identity, step = fault.hook, problem = fault.problem,
                        "a spare instance of a plugin was not built");
                    self.refill_after(self.backoff_max(), is_rebuild);
                }
            }
        }
        // The plugin was parked in the meantime and is not called any more.
        if self.is_parked() {
            self.spares.clear();
        } else {
            self.refill_after(Duration::ZERO, false);
        }
    }

    pub(crate) fn was_rebuilt(&self, instance: &str) {
        self.stats.rebuilt();
        info!(plugin = %self.identity, instance, "a plugin was rebuilt");
    }
}
