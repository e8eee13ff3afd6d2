//! Calls plugins for clients that connect or authenticate, off the data path.
//!
//! Verifying credentials takes long, and any client can send them: publishing must not wait for it.
//! So plugins with `admission` have separate instances for it, which run on blocking threads. The
//! chain is not locked during such a call: a plugin that is replaced finishes its running calls and
//! is dropped then. What a plugin needs in its other hooks it stores in the connection's
//! attributes.
//!
//! Plugins send HTTP requests from here, too. Each of their calls has a thread of its own, which
//! blocks as long as the call waits; instances are created on demand, up to a limit.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::Plugin;
use super::call::Absence;
use crate::bindings::{CompiledPlugin, Fault, Instance};
use crate::directory::PluginConfig;
use crate::isolation::Cause;
use crate::stats::Hook;
use switchyard_types::command::Refusal;
use switchyard_types::ids::ConnectionId;
use switchyard_wasm::outside::{HttpPermit, HttpPolicy, OutsideLimits};

/// The instances of a plugin that is called for clients off the data path.
pub struct BlockingPool {
    /// None: it sends no HTTP requests.
    grant: Option<Arc<HttpPolicy>>,
    /// How long a client waits for a free instance and for its HTTP requests.
    time: Duration,
    calls_max: usize,
    permits: Arc<Semaphore>,
    /// The one that was used last is used next: it has the most in its caches.
    idle: Mutex<Vec<Instance>>,
}

impl BlockingPool {
    /// None: the plugin has no hook for it, or is called on the data path. The latter is so if its
    /// file says so, or if the plugin has state to hand over and its file does not say otherwise.
    ///
    /// # Errors
    ///
    /// The plugin imports HTTP but has no permitted destination, or requests could not be sent.
    pub fn new(
        compiled: &CompiledPlugin,
        config: &PluginConfig,
        runtime: &Handle,
    ) -> Result<Option<BlockingPool>, (&'static str, String)> {
        let Some(import) = compiled.outside() else {
            let hooks = compiled.hooks();
            let default = if hooks.snapshot { 0 } else { config.instances };
            let instances = config.admission_instances.unwrap_or(default);
            return Ok((hooks.admission && instances > 0).then(|| BlockingPool {
                grant: None,
                time: config.limits.admission_time,
                calls_max: instances,
                permits: Arc::new(Semaphore::new(instances)),
                idle: Mutex::default(),
            }));
        };
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
        let switchyard_config::OutsideLimits { time, response_bytes_max, requests_max, calls_max } =
            config.limits.outside;
        let limits = OutsideLimits { time, response_bytes_max, requests_max, calls_max };
        let grant = HttpPolicy::new(config.http_allow.clone(), limits, runtime.clone())
            .map_err(|problem| ("config", problem))?;
        Ok(Some(BlockingPool {
            grant: Some(Arc::new(grant)),
            time: limits.time,
            calls_max: limits.calls_max,
            permits: Arc::new(Semaphore::new(limits.calls_max)),
            idle: Mutex::default(),
        }))
    }

    /// Whether it sends HTTP requests.
    pub fn is_outside(&self) -> bool {
        self.grant.is_some()
    }

    /// Adds an idle instance.
    pub fn put(&self, instance: Instance) {
        self.idle.lock().push(instance);
    }

    /// Drops the idle instances.
    pub fn clear(&self) {
        self.idle.lock().clear();
    }

    /// The memory of each idle instance, in bytes.
    pub fn memory_bytes(&self) -> Vec<usize> {
        self.idle.lock().iter().map(Instance::memory_bytes).collect()
    }
}

impl Plugin {
    /// Calls an instance off the data path, and returns how long the call took. On an
    /// error the client receives the refusal if the policy says so. If the future is dropped,
    /// the call itself still runs to its end.
    pub async fn call_off_data_path<T: Send + 'static>(
        self: &Arc<Self>,
        hook: Hook,
        connection: ConnectionId,
        question: impl FnOnce(&mut Instance) -> Result<T, Fault> + Send + 'static,
    ) -> (Result<T, Refusal>, Duration) {
        let refused = |refusal| (Err(refusal), Duration::ZERO);
        let Some(pool) = self.pool().filter(|_| !self.is_parked()) else {
            return refused(self.unavailable());
        };
        if hook != Hook::OnDisconnect && self.is_isolated(Instant::now(), connection) {
            return refused(self.refusal(Absence::Isolated));
        }
        let until = tokio::time::Instant::now() + pool.time;
        let permit = pool.permits.clone().acquire_owned();
        let permit = match hook {
            // No client waits for this call, and it must not be skipped.
            Hook::OnDisconnect => Ok(permit.await),
            _ => tokio::time::timeout_at(until, permit).await,
        };
        let Ok(Ok(permit)) = permit else {
            return refused(self.unavailable_because(&format!(
                "{} of its calls are under way, and none ended within {} ms",
                pool.calls_max,
                pool.time.as_millis()
            )));
        };
        let (result_sender, result) = oneshot::channel();
        let plugin = self.clone();
        let call = move || {
            let answered = plugin.call_on_this_thread(until, hook, connection, question);
            drop(permit);
            let _ = result_sender.send(answered);
        };
        if pool.is_outside() {
            // A call may block for long, and the runtime has few threads.
            let spawned = std::thread::Builder::new().name("pool".to_owned()).spawn(call);
            if let Err(error) = spawned {
                let why = format!("no thread is to be had: {error}");
                return refused(self.unavailable_because(&why));
            }
        } else {
            tokio::task::spawn_blocking(call);
        }
        match result.await {
            Ok((Some(answer), took)) => (Ok(answer), took),
            Ok((None, took)) => (Err(self.unavailable()), took),
            // A panic in there has been logged by the panic hook.
            Err(_) => refused(self.unavailable()),
        }
    }

    fn call_on_this_thread<T>(
        &self,
        until: tokio::time::Instant,
        hook: Hook,
        connection: ConnectionId,
        question: impl FnOnce(&mut Instance) -> Result<T, Fault>,
    ) -> (Option<T>, Duration) {
        let Some(pool) = self.pool() else { return (None, Duration::ZERO) };
        let _entered = pool.grant.as_ref().map(|grant| grant.runtime().enter());
        let idle = pool.idle.lock().pop();
        let mut instance = match idle.map_or_else(|| self.build(), Ok) {
            Ok(instance) => instance,
            Err(error) => {
                let fault = Fault { hook: error.step, problem: error.problem };
                self.failed_apart(&fault, Cause::Plugin);
                return (None, Duration::ZERO);
            }
        };
        instance.set_http_permit(pool.grant.clone().map(|grant| HttpPermit::new(grant, until)));
        let started = Instant::now();
        let answer = question(&mut instance);
        let took = started.elapsed();
        self.stats.of(hook).called(1, took);
        match answer {
            Ok(answer) => {
                instance.set_http_permit(None);
                pool.put(instance);
                (Some(answer), took)
            }
            Err(fault) => {
                self.failed_apart(&fault, Cause::Connection(connection));
                (None, took)
            }
        }
    }
}
