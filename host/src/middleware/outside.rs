//! Plugins that ask the outside world, when a client connects or authenticates.
//!
//! They are asked on instances apart from those of the data path: each serves one
//! call at a time, on a thread of its own, which waits where the call does. They
//! are made when they are needed, up to so many. Nobody but the client in question
//! waits, and the chain is not held: a plugin that is replaced meanwhile answers
//! what it was asked, and ends then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

use super::bindings::{CompiledPlugin, Fault, Instance};
use super::directory::PluginConfig;
use super::plugin::Plugin;
use super::stats::Hook;
use crate::protocol::command::Refusal;
use crate::wasm::outside::{Grant, Leave};

/// What a plugin has that asks the outside world.
pub struct Asking {
    grant: Arc<Grant>,
    turns: Arc<Semaphore>,
    /// The one that was used last is used next: it remembers most.
    idle: Mutex<Vec<Instance>>,
}

impl Asking {
    /// None: the plugin has no hook in which it could ask, or nothing to ask with.
    ///
    /// # Errors
    ///
    /// It wants to ask, and nobody is granted to it; or nobody could be asked.
    pub fn new(
        compiled: &CompiledPlugin,
        config: &PluginConfig,
        runtime: &Handle,
    ) -> Result<Option<Asking>, (&'static str, String)> {
        let Some(import) = compiled.outside() else { return Ok(None) };
        if config.http_allow.is_empty() {
            return Err((
                "link",
                format!(
                    "imports {import}, which is not granted; \
                     `http_allow = [\"https://HOST\"]` in its .toml grants it, for the hosts it names"
                ),
            ));
        }
        if !compiled.hooks().admission {
            return Ok(None);
        }
        let limits = config.limits.outside;
        let grant = Grant::new(config.http_allow.clone(), limits, runtime.clone())
            .map_err(|problem| ("config", problem))?;
        Ok(Some(Asking {
            grant: Arc::new(grant),
            turns: Arc::new(Semaphore::new(limits.calls_max)),
            idle: Mutex::default(),
        }))
    }

    /// One more that can be asked.
    pub fn put(&self, instance: Instance) {
        self.idle.lock().push(instance);
    }

    /// Ends those that wait to be asked.
    pub fn clear(&self) {
        self.idle.lock().clear();
    }

    /// What the memories of those that wait to be asked hold.
    pub fn memory_bytes(&self) -> Vec<usize> {
        self.idle.lock().iter().map(Instance::memory_bytes).collect()
    }
}

impl Plugin {
    /// Has an instance answer that may ask the outside world, and says how long it
    /// took. An error: it could not, and the client is told why if the policy says
    /// so. Dropped, it gives up waiting; the call itself goes on to its end.
    pub async fn ask_outside<T: Send + 'static>(
        self: &Arc<Self>,
        hook: Hook,
        question: impl FnOnce(&mut Instance) -> Result<T, Fault> + Send + 'static,
    ) -> (Result<T, Refusal>, Duration) {
        let refused = |refusal| (Err(refusal), Duration::ZERO);
        let Some(asking) = self.asking().filter(|_| !self.is_parked()) else {
            return refused(self.unavailable());
        };
        let limits = *asking.grant.limits();
        let until = tokio::time::Instant::now() + limits.time;
        let turn = tokio::time::timeout_at(until, asking.turns.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return refused(self.unavailable_because(&format!(
                "{} of its calls are under way, and none ended within {} ms",
                limits.calls_max,
                limits.time.as_millis()
            )));
        };
        let (tell, told) = oneshot::channel();
        let plugin = self.clone();
        let asked = std::thread::Builder::new().name("asking".to_owned()).spawn(move || {
            let answered = plugin.ask_on_this_thread(until, hook, question);
            drop(turn);
            let _ = tell.send(answered);
        });
        if let Err(error) = asked {
            return refused(self.unavailable_because(&format!("no thread is to be had: {error}")));
        }
        match told.await {
            Ok((Some(answer), took)) => (Ok(answer), took),
            Ok((None, took)) => (Err(self.unavailable()), took),
            // What panicked there has been logged by the panic hook.
            Err(_) => refused(self.unavailable()),
        }
    }

    fn ask_on_this_thread<T>(
        &self,
        until: tokio::time::Instant,
        hook: Hook,
        question: impl FnOnce(&mut Instance) -> Result<T, Fault>,
    ) -> (Option<T>, Duration) {
        let Some(asking) = self.asking() else { return (None, Duration::ZERO) };
        let _entered = asking.grant.runtime().enter();
        let idle = asking.idle.lock().pop();
        let mut instance = match idle.map_or_else(|| self.build(), Ok) {
            Ok(instance) => instance,
            Err(error) => {
                self.failed_outside(&Fault { hook: error.step, problem: error.problem });
                return (None, Duration::ZERO);
            }
        };
        instance.set_leave(Some(Leave::new(asking.grant.clone(), until)));
        let started = Instant::now();
        let answer = question(&mut instance);
        let took = started.elapsed();
        self.stats.of(hook).called(1, took);
        match answer {
            Ok(answer) => {
                instance.set_leave(None);
                asking.put(instance);
                (Some(answer), took)
            }
            Err(fault) => {
                self.failed_outside(&fault);
                (None, took)
            }
        }
    }
}
