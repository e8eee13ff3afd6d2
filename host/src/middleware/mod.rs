//! The middleware: plugins, their chain, and how they are replaced while it is
//! in use.
//!
//! A swap reads, compiles, instantiates and initialises the new plugin beside the
//! chain. Only then it takes the chain, which waits for the bursts under way,
//! hands the state over, and puts the new one in the old one's place. Whatever
//! fails before that leaves the old one where it is. The version that was replaced
//! stays compiled, and comes back if its successor is parked and says so.

pub mod bindings;
pub mod chain;
pub mod counters;
pub mod directory;
pub mod plugin;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tracing::{error, info};

use crate::config::{OnPark, PluginsConfig};
use crate::hub::connections::Connections;
use crate::wasm::Wasm;
use bindings::CompiledPlugin;
use chain::Chain;
use counters::Counters;
use directory::{Fingerprint, PluginConfig, PluginFiles};
use plugin::{Handover, Plugin, Surroundings};

/// Why a plugin was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{step}: plugin {plugin} ({}): {problem}", .file.display())]
pub struct PluginError {
    /// What it is called.
    pub plugin: String,
    /// The file concerned.
    pub file: PathBuf,
    /// The step that failed: read, config, compile, link, instantiate, init, save
    /// or restore.
    pub step: &'static str,
    /// Why.
    pub problem: String,
}

/// The middleware of a server.
pub struct Middleware {
    chain: RwLock<Chain>,
    wasm: Wasm,
    counters: Counters,
    surroundings: Surroundings,
    config: PluginsConfig,
    /// One change at a time, with what it must remember.
    changes: Mutex<Changes>,
}

#[derive(Default)]
struct Changes {
    /// The files last seen in each slot, taken or refused.
    seen: BTreeMap<String, Fingerprint>,
    /// The last version in each slot that was replaced and had not been parked.
    good: BTreeMap<String, (PluginConfig, Arc<CompiledPlugin>)>,
    /// The latest first: a version that comes back need not be compiled again.
    compiled: Vec<(String, Arc<CompiledPlugin>)>,
}

/// How many versions stay compiled, beside those in use.
const COMPILED_MAX: usize = 16;

impl Middleware {
    /// An empty chain.
    pub fn new(
        wasm: Wasm,
        config: PluginsConfig,
        counters_max: usize,
        connections: Arc<Connections>,
        runtime: Handle,
    ) -> Middleware {
        Middleware {
            chain: RwLock::default(),
            wasm,
            counters: Counters::new(counters_max),
            surroundings: Surroundings {
                connections,
                runtime,
                rebuild_backoff: config.rebuild_backoff,
                rebuild_backoff_max: config.rebuild_backoff_max,
                parked: Arc::new(Notify::new()),
            },
            config,
            changes: Mutex::default(),
        }
    }

    /// The chain, held for a burst of commands. Not to be taken twice at once by
    /// one thread, and not held while waiting.
    pub fn chain(&self) -> RwLockReadGuard<'_, Chain> {
        self.chain.read()
    }

    /// Has the next `rescan` read all files again, also those that look as they did.
    pub fn look_again(&self) {
        self.changes.lock().seen.values_mut().for_each(Fingerprint::forget);
    }

    /// Brings the chain to what the directory says: adds what is new, swaps what
    /// changed, removes what is gone. What is refused leaves its slot as it was.
    /// Blocks: not to be called on a thread that serves connections.
    pub fn rescan(&self) -> Vec<PluginError> {
        let Some(directory) = &self.config.directory else { return Vec::new() };
        let mut changes = self.changes.lock();
        let listed = match directory::list(directory) {
            Ok(listed) => listed,
            Err(io) => {
                let error = PluginError {
                    plugin: "(all)".to_owned(),
                    file: directory.clone(),
                    step: "read",
                    problem: io.to_string(),
                };
                error!(%error, "the plugin directory was not read");
                return vec![error];
            }
        };
        let gone: Vec<String> =
            changes.seen.keys().filter(|slot| !listed.contains_key(*slot)).cloned().collect();
        for slot in gone {
            changes.seen.remove(&slot);
            changes.good.remove(&slot);
            self.remove(&slot);
        }
        let mut errors = Vec::new();
        for (slot, fingerprint) in listed {
            if changes.seen.get(&slot) == Some(&fingerprint) {
                continue;
            }
            // Remembered even if it is refused: it is said once.
            changes.seen.insert(slot.clone(), fingerprint);
            let placed = directory::read(directory, &slot, self.config.defaults)
                .and_then(|files| self.place(&mut changes, files));
            if let Err(error) = placed {
                error!(plugin = error.plugin, file = %error.file.display(), step = error.step,
                    problem = error.problem, "a plugin was refused");
                errors.push(error);
            }
        }
        errors
    }

    /// Puts a plugin into its slot, in the place of what is there.
    fn place(&self, changes: &mut Changes, files: PluginFiles) -> Result<(), PluginError> {
        let PluginFiles { config, wasm } = files;
        let current =
            self.chain.read().plugins().iter().find(|p| p.config.slot == config.slot).cloned();
        if current.as_ref().is_some_and(|current| current.config == config) {
            return Ok(());
        }
        let compiled =
            self.compile(changes, &config.version, &wasm).map_err(|(step, problem)| {
                PluginError {
                    plugin: config.name.clone(),
                    file: config.file.clone(),
                    step,
                    problem,
                }
            })?;
        let counters = self.counters.space(&config.counters);
        let new = Plugin::new(config, compiled, counters, self.surroundings.clone())?;
        let identity = new.identity.clone();
        let Some(old) = current else {
            let pause = self.replace(|plugins| {
                new.enters();
                plugins.push(new);
                plugins.sort_by(|a, b| a.config.slot.cmp(&b.config.slot));
                Ok(())
            })?;
            info!(plugin = %identity, pause_us = pause.as_micros() as u64, "a plugin was added");
            return Ok(());
        };
        let from = old.identity.clone();
        let handover = if old.is_parked() { Handover::WhereItCan } else { Handover::Whole };
        let pause = self.put_in_place_of(&old, new, handover)?;
        if !old.is_parked() {
            changes.good.insert(old.config.slot.clone(), (old.config.clone(), old.code()));
        }
        // The last to hold it: its store ends here, off the path of messages.
        drop(old);
        info!(plugin = %identity, %from, pause_us = pause.as_micros() as u64, "a plugin was swapped");
        Ok(())
    }

    /// Waits until a plugin is parked; `put_back` is to be called then.
    pub async fn parked(&self) {
        self.surroundings.parked.notified().await;
    }

    /// Where a parked plugin says so, puts the last good version back in its place.
    /// Blocks: not to be called on a thread that serves connections.
    pub fn put_back(&self) {
        let mut changes = self.changes.lock();
        let parked: Vec<Arc<Plugin>> = self
            .chain
            .read()
            .plugins()
            .iter()
            .filter(|plugin| plugin.is_parked() && plugin.config.limits.on_park == OnPark::Rollback)
            .cloned()
            .collect();
        for old in parked {
            let from = &old.identity;
            let Some((config, compiled)) = changes.good.remove(&old.config.slot) else {
                error!(plugin = %from, "a parked plugin stays: there is no version to put back");
                continue;
            };
            let counters = self.counters.space(&config.counters);
            let placed = Plugin::new(config, compiled, counters, self.surroundings.clone())
                .and_then(|new| {
                    let identity = new.identity.clone();
                    let pause = self.put_in_place_of(&old, new, Handover::WhereItCan)?;
                    Ok((identity, pause.as_micros() as u64))
                });
            match placed {
                Ok((identity, pause_us)) => error!(plugin = %identity, %from, pause_us,
                    file = %old.config.file.display(),
                    "a parked plugin was rolled back; its file still holds what was parked"),
                Err(error) => error!(plugin = error.plugin, %from, step = error.step,
                    problem = error.problem, "a parked plugin stays: no version could be put back"),
            }
        }
    }

    fn put_in_place_of(
        &self,
        old: &Arc<Plugin>,
        new: Arc<Plugin>,
        handover: Handover,
    ) -> Result<Duration, PluginError> {
        self.replace(|plugins| {
            new.take_over(old, handover)?;
            if let Some(place) = plugins.iter_mut().find(|plugin| Arc::ptr_eq(plugin, old)) {
                *place = new;
            }
            Ok(())
        })
    }

    fn remove(&self, slot: &str) {
        let mut removed = Vec::new();
        let replaced = self.replace(|plugins| {
            removed = plugins.extract_if(.., |plugin| plugin.config.slot == slot).collect();
            Ok(())
        });
        for plugin in removed {
            let pause_us = replaced.as_ref().map_or(0, |pause| pause.as_micros() as u64);
            info!(plugin = %plugin.identity, pause_us, "a plugin was removed");
        }
    }

    /// Takes the chain, changes it, and answers for how long it was held from
    /// those who wanted it: the wait for bursts under way, and the change. An
    /// error leaves it as it was.
    fn replace(
        &self,
        change: impl FnOnce(&mut Vec<Arc<Plugin>>) -> Result<(), PluginError>,
    ) -> Result<Duration, PluginError> {
        let started = Instant::now();
        let mut chain = self.chain.write();
        let mut plugins = chain.plugins().to_vec();
        change(&mut plugins)?;
        *chain = Chain::new(plugins);
        drop(chain);
        Ok(started.elapsed())
    }

    fn compile(
        &self,
        changes: &mut Changes,
        version: &str,
        wasm: &[u8],
    ) -> Result<Arc<CompiledPlugin>, (&'static str, String)> {
        let known = changes.compiled.iter().position(|(known, _)| known == version);
        let compiled = match known {
            Some(position) => changes.compiled.remove(position).1,
            None => Arc::new(CompiledPlugin::new(&self.wasm, wasm)?),
        };
        changes.compiled.insert(0, (version.to_owned(), compiled.clone()));
        changes.compiled.truncate(COMPILED_MAX);
        Ok(compiled)
    }
}
