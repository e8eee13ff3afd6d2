//! Changes of the chain by request, through the admin API instead of files.
//!
//! Where there is a plugin directory, it is the source of truth. So a change is also written there,
//! and a restart finds the same chain. The directory watch then finds what is in use already, and
//! changes nothing. Without a directory, changes last as long as the server.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use thiserror::Error;

use super::bindings::CompiledPlugin;
use super::directory::{self, PluginConfig, PluginFiles};
use super::files::MissingFile;
use super::order::Begun;
use super::plugin::Plugin;
use super::recheck::Against;
use super::stats::{ChangeKind, Initiator, PluginStats, Swap};
use super::write::{Source, remove_if_there, rename, set_aside};
use super::{InstallOptions, Middleware, PluginError};
use switchyard_config::file::{self, SETTINGS_BYTES_MAX};

/// What is known of an occupied slot, besides the plugin itself.
pub(super) struct Record {
    pub source: Source,
    /// The previous version, for a rollback.
    pub before: Option<Version>,
    pub since: SystemTime,
    pub by: Initiator,
    pub stats: Arc<PluginStats>,
}

/// A replaced version, ready for a rollback.
pub(super) struct Version {
    pub config: PluginConfig,
    pub identity: Arc<str>,
    pub compiled: Arc<CompiledPlugin>,
    pub source: Source,
}

/// An offered plugin.
pub struct Offer {
    /// The component.
    pub wasm: Arc<[u8]>,
    /// Where it was read from; none: it was uploaded.
    pub file: Option<PathBuf>,
    /// The settings file to write; none: the existing one.
    pub toml: Option<String>,
    /// Whether it starts without its predecessor's state.
    pub is_fresh: bool,
}

/// An offered plugin that was checked and compiled.
struct Offered {
    files: PluginFiles,
    compiled: Arc<CompiledPlugin>,
    /// Where the component came from.
    origin: PathBuf,
    is_fresh: bool,
}

/// Another place in the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Right before the plugin in this slot.
    Before(String),
    /// Right after the plugin in this slot.
    Behind(String),
    /// Under this name.
    Slot(String),
}

/// The status of one plugin, for operators.
pub struct Status {
    /// The plugin.
    pub plugin: Arc<Plugin>,
    /// Its configuration, in its current place.
    pub config: PluginConfig,
    /// The component.
    pub wasm: Arc<[u8]>,
    /// Whether it has a settings file.
    pub is_configured: bool,
    /// The version that a rollback restores.
    pub before: Option<Arc<str>>,
    /// Since when it is in force.
    pub since: SystemTime,
    /// The initiator of the change that put it there.
    pub by: Initiator,
    /// The file of it that is missing from the directory.
    pub missing: Option<MissingFile>,
}

/// Why a change was not made.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages say what they are")]
pub enum ChangeError {
    #[error("no plugin is in a slot {0} or has that name")]
    NoSuchPlugin(String),
    #[error("several plugins are called {0}; name the slot")]
    Ambiguous(String),
    #[error("the slot {0} is occupied; swap its plugin")]
    SlotOccupied(String),
    #[error(
        "\"{0}\" cannot name a slot: up to 128 letters, digits, '-', '_' and '.', and no '.' in front"
    )]
    BadSlot(String),
    #[error("a later change of the slot {0} was made while this one was compiled")]
    Superseded(String),
    #[error("no plugin is in the slot {0}; the one that was being compiled for it is dropped")]
    Cancelled(String),
    #[error("no version was in the slot {0} before this one")]
    NothingBefore(String),
    #[error("no number puts {0} there; say under which name it should stand")]
    NoPlace(String),
    #[error("under the name {to} the plugin would be called {name}, and not {was} as it is")]
    OtherName { to: String, name: String, was: String },
    #[error(transparent)]
    Refused(#[from] PluginError),
}

impl Middleware {
    /// The plugins of the chain, in order.
    pub fn status(&self) -> Vec<Status> {
        let plugins = self.chain.read().plugins().to_vec();
        let missing = self.missing_files();
        let records = self.records.lock();
        let status = |plugin: Arc<Plugin>| {
            let config = plugin.config_now();
            let record = records.get(&config.slot)?;
            Some(Status {
                missing: missing.get(&config.slot).copied(),
                config,
                plugin,
                wasm: record.source.wasm.clone(),
                is_configured: record.source.toml.is_some(),
                before: record.before.as_ref().map(|before| before.identity.clone()),
                since: record.since,
                by: record.by.clone(),
            })
        };
        // A plugin that was added or moved at this moment is shown the next time.
        plugins.into_iter().filter_map(status).collect()
    }

    /// The last refusal in each slot, unless a plugin was accepted there since.
    pub fn refused(&self) -> Vec<(String, SystemTime, PluginError)> {
        let refused = self.refused.lock();
        refused.iter().map(|(slot, (at, error))| (slot.clone(), *at, error.clone())).collect()
    }

    /// The directory that changes are written to.
    pub fn directory(&self) -> Option<&Path> {
        self.config.directory.as_deref()
    }

    /// Finds a slot by its name, or by the name of the plugin in it.
    ///
    /// # Errors
    ///
    /// No plugin, or several, have this name.
    pub fn slot_of(&self, name: &str) -> Result<String, ChangeError> {
        let chain = self.chain.read();
        let slots = || chain.plugins().iter().map(|plugin| plugin.slot());
        if let Some(slot) = slots().find(|slot| slot == name) {
            return Ok(slot);
        }
        let mut named = slots().filter(|slot| directory::name_of(slot) == name);
        match (named.next(), named.next()) {
            (Some(slot), None) => Ok(slot),
            (None, _) => Err(ChangeError::NoSuchPlugin(name.to_owned())),
            (Some(_), Some(_)) => Err(ChangeError::Ambiguous(name.to_owned())),
        }
    }

    /// Puts a plugin into a free slot. Blocks, as all changes do: do not call it on a thread that
    /// serves connections.
    ///
    /// # Errors
    ///
    /// The slot is occupied, or the plugin is refused.
    pub fn load(&self, slot: &str, offer: Offer, by: &Initiator) -> Result<Swap, ChangeError> {
        if !directory::is_slot(slot) {
            return Err(ChangeError::BadSlot(slot.to_owned()));
        }
        let begun = self.order.begin(slot);
        let check_free = || match self.records.lock().contains_key(slot) {
            true => Err(ChangeError::SlotOccupied(slot.to_owned())),
            false => Ok(()),
        };
        check_free()?;
        let offered = self.prepare(&begun, slot, offer, by)?;
        let mut changes = self.changes.lock();
        check_in_order(&begun, slot)?;
        check_free()?;
        self.place_offered(&mut changes, &begun, offered, by)
    }

    /// Replaces a plugin.
    ///
    /// # Errors
    ///
    /// There is no such slot, or the plugin is refused; the one in place stays.
    pub fn swap(&self, name: &str, offer: Offer, by: &Initiator) -> Result<Swap, ChangeError> {
        let slot = self.slot_of(name)?;
        let begun = self.order.begin(&slot);
        let offered = self.prepare(&begun, &slot, offer, by)?;
        let mut changes = self.changes.lock();
        check_in_order(&begun, &slot)?;
        // It may have been moved or removed during the compilation.
        self.slot_of(&slot)?;
        self.place_offered(&mut changes, &begun, offered, by)
    }

    /// Makes new instances of a plugin as a swap does, with other settings: those given, or else
    /// those in its file now.
    ///
    /// # Errors
    ///
    /// There is no such plugin, or it is refused; the one in place stays.
    pub fn reload(
        &self,
        name: &str,
        toml: Option<String>,
        is_fresh: bool,
        by: &Initiator,
    ) -> Result<Swap, ChangeError> {
        let mut changes = self.changes.lock();
        let slot = self.slot_of(name)?;
        let Some((wasm, file)) = self.in_use(&slot) else {
            return Err(ChangeError::NoSuchPlugin(slot));
        };
        let begun = self.order.begin(&slot);
        // It compiles nothing: the component is in use.
        let offer = Offer { wasm, file: Some(file), toml, is_fresh };
        let offered = self.prepare(&begun, &slot, offer, by)?;
        self.place_offered(&mut changes, &begun, offered, by)
    }

    /// Restores the version that was replaced last.
    ///
    /// # Errors
    ///
    /// There is none, or it is refused; the one in place stays.
    pub fn roll_back(&self, name: &str, by: &Initiator) -> Result<Swap, ChangeError> {
        let mut changes = self.changes.lock();
        let slot = self.slot_of(name)?;
        let Some((files, compiled)) = self.before(&slot) else {
            return Err(ChangeError::NothingBefore(slot));
        };
        let begun = self.order.begin(&slot);
        let placing = InstallOptions {
            by,
            is_rollback: true,
            is_forced: true,
            write_to: self.directory(),
            ..InstallOptions::as_found(by, &begun)
        };
        self.placed(&mut changes, files, compiled, placing)
    }

    /// Removes a plugin from the chain. Its settings file is renamed, for a later load.
    ///
    /// # Errors
    ///
    /// There is no such plugin, or its file cannot be removed.
    pub fn remove(&self, name: &str, by: &Initiator) -> Result<Swap, ChangeError> {
        let _one_at_a_time = self.changes.lock();
        let slot = match self.slot_of(name) {
            Err(ChangeError::NoSuchPlugin(_)) if self.order.cancel(name) => {
                return Err(ChangeError::Cancelled(name.to_owned()));
            }
            slot => slot?,
        };
        if let Some(directory) = self.directory() {
            let file = directory::wasm_file(directory, &slot);
            remove_if_there(&file)
                .and_then(|()| set_aside(directory, &slot))
                .map_err(|io| unwritable(&slot, &file, &io))?;
        }
        self.take_out(&slot, by).ok_or(ChangeError::NoSuchPlugin(slot))
    }

    /// Moves a plugin within the chain. Its instances stay.
    ///
    /// # Errors
    ///
    /// There is no such plugin or no such place, or its files cannot be renamed.
    pub fn move_to(&self, name: &str, place: &Place, by: &Initiator) -> Result<Swap, ChangeError> {
        let _one_at_a_time = self.changes.lock();
        let slot = self.slot_of(name)?;
        let to = self.slot_at(&slot, place)?;
        let plugin = self.chain.read().plugins().iter().find(|p| p.slot() == slot).cloned();
        let Some(plugin) = plugin else { return Err(ChangeError::NoSuchPlugin(slot)) };
        let file = match self.directory() {
            None => plugin.config_now().file,
            Some(_) if to == slot => plugin.config_now().file,
            Some(directory) => {
                rename(directory, &slot, &to)
                    .map_err(|io| unwritable(&slot, &directory::wasm_file(directory, &to), &io))?;
                directory::wasm_file(directory, &to)
            }
        };
        let pause = self.replace(|plugins| {
            plugin.move_to(to.clone(), file);
            plugins.sort_by_key(|plugin| plugin.slot());
            Ok(())
        })?;
        if plugin.hooks().access {
            self.rechecks.add(&plugin, Against::Access);
        }
        let mut records = self.records.lock();
        if let Some(record) = records.remove(&slot) {
            records.insert(to.clone(), record);
        }
        drop(records);
        for slot in [&slot, &to] {
            self.order.begin(slot).takes_effect();
        }
        self.missing_moved(&slot, &to);
        Ok(self.done(Swap {
            at: SystemTime::now(),
            by: by.clone(),
            kind: ChangeKind::Moved,
            slot: Some(to),
            from: Some(plugin.identity.clone()),
            to: Some(plugin.identity.clone()),
            pause,
        }))
    }

    /// Checks and compiles an offered plugin.
    fn prepare(
        &self,
        begun: &Begun<'_>,
        slot: &str,
        offer: Offer,
        by: &Initiator,
    ) -> Result<Offered, ChangeError> {
        let Offer { wasm, file: origin, toml, is_fresh } = offer;
        let origin = origin.unwrap_or_else(|| PathBuf::from("(uploaded)"));
        let is_toml_offered = toml.is_some();
        let in_force = || self.records.lock().get(slot).and_then(|at| at.source.toml.clone());
        let (file, beside) = match self.directory() {
            Some(directory) => {
                // A missing component file does not discard the settings.
                let beside = match toml {
                    Some(_) => None,
                    None => {
                        directory::read_config(directory, slot)?.or_else(in_force).or_else(|| {
                            let aside = directory::set_aside_file(directory, slot);
                            file::read_text(&aside, SETTINGS_BYTES_MAX).ok()
                        })
                    }
                };
                (directory::wasm_file(directory, slot), beside)
            }
            None => (origin.clone(), in_force()),
        };
        // An empty file need not exist.
        let toml = toml.or(beside).filter(|text| !text.trim().is_empty());
        let refuse = |mut error: PluginError| {
            match error.step {
                "config" if is_toml_offered => error.file = "(uploaded settings)".into(),
                "config" => {}
                _ => error.file.clone_from(&origin),
            }
            if !begun.is_superseded() {
                self.was_refused(slot, &error, by);
            }
            error
        };
        let files =
            directory::check(slot, &file, wasm, toml, self.config.defaults).map_err(refuse)?;
        let is_wanted = || !begun.is_superseded();
        let compiled = self.compile(&files.config.version, &files.wasm, &is_wanted);
        let compiled = compiled.map_err(|(step, problem)| {
            check_in_order(begun, slot).err().unwrap_or_else(|| {
                let plugin = files.config.name.clone();
                refuse(PluginError { plugin, file: file.clone(), step, problem }).into()
            })
        })?;
        Ok(Offered { files, compiled, origin, is_fresh })
    }

    fn place_offered(
        &self,
        changes: &mut super::Changes,
        begun: &Begun<'_>,
        offered: Offered,
        by: &Initiator,
    ) -> Result<Swap, ChangeError> {
        let Offered { files, compiled, origin, is_fresh } = offered;
        let placing = InstallOptions {
            is_forced: true,
            write_to: self.directory(),
            is_fresh,
            ..InstallOptions::as_found(by, begun)
        };
        self.placed(changes, files, compiled, placing).map_err(|error| match error {
            ChangeError::Refused(mut refused) if refused.step != "write" => {
                // The file in the directory is another version.
                refused.file = origin;
                ChangeError::Refused(refused)
            }
            error => error,
        })
    }

    fn placed(
        &self,
        changes: &mut super::Changes,
        files: PluginFiles,
        compiled: Arc<CompiledPlugin>,
        placing: InstallOptions<'_>,
    ) -> Result<Swap, ChangeError> {
        let (slot, by) = (files.config.slot.clone(), placing.by);
        let placed = self
            .place(changes, files, compiled, placing)
            .inspect_err(|error| self.was_refused(&slot, error, by))?;
        Ok(placed.expect("a forced change is made"))
    }

    fn in_use(&self, slot: &str) -> Option<(Arc<[u8]>, PathBuf)> {
        let plugin = self.chain.read().plugins().iter().find(|p| p.slot() == slot).cloned()?;
        let wasm = self.records.lock().get(slot)?.source.wasm.clone();
        Some((wasm, plugin.config_now().file))
    }

    /// The file name of the plugin.
    fn slot_at(&self, slot: &str, place: &Place) -> Result<String, ChangeError> {
        let name = directory::name_of(slot);
        let others: Vec<String> = self
            .chain
            .read()
            .plugins()
            .iter()
            .map(|plugin| plugin.slot())
            .filter(|other| other != slot)
            .collect();
        let position = |neighbour: &str| {
            let neighbour = self.slot_of(neighbour)?;
            let position = others.iter().position(|other| *other == neighbour);
            position.ok_or(ChangeError::NoPlace(slot.to_owned()))
        };
        let between = |position: usize| {
            let below = position.checked_sub(1).and_then(|below| others.get(below));
            let above = others.get(position);
            directory::slot_between(name, below.map(String::as_str), above.map(String::as_str))
                .ok_or_else(|| ChangeError::NoPlace(slot.to_owned()))
        };
        match place {
            Place::Before(neighbour) => between(position(neighbour)?),
            Place::Behind(neighbour) => between(position(neighbour)? + 1),
            Place::Slot(to) if !directory::is_slot(to) => Err(ChangeError::BadSlot(to.clone())),
            Place::Slot(to) if others.contains(to) => Err(ChangeError::SlotOccupied(to.clone())),
            Place::Slot(to) if directory::name_of(to) != name => Err(ChangeError::OtherName {
                to: to.clone(),
                name: directory::name_of(to).to_owned(),
                was: name.to_owned(),
            }),
            Place::Slot(to) => Ok(to.clone()),
        }
    }
}

fn check_in_order(begun: &Begun<'_>, slot: &str) -> Result<(), ChangeError> {
    match begun.is_superseded() {
        true => Err(ChangeError::Superseded(slot.to_owned())),
        false => Ok(()),
    }
}

fn unwritable(slot: &str, file: &Path, io: &io::Error) -> PluginError {
    PluginError {
        plugin: directory::name_of(slot).to_owned(),
        file: file.to_owned(),
        step: "write",
        problem: io.to_string(),
    }
}
