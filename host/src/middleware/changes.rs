//! Changes that somebody asks for, in words instead of files.
//!
//! Where there is a plugin directory it says what holds, so a change is written
//! there, too: a restart finds the chain as it is. What watches the directory then
//! finds what is in use already, and leaves it. Without a directory changes live as
//! long as the server.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use thiserror::Error;

use super::bindings::CompiledPlugin;
use super::directory::{self, PluginConfig, PluginFiles};
use super::files::MissingFile;
use super::plugin::Plugin;
use super::recheck::Against;
use super::stats::{ChangeKind, Initiator, PluginStats, Swap};
use super::{InstallOptions, Middleware, PluginError};

/// What is known of a slot that is taken, besides the plugin itself.
pub(super) struct Record {
    pub source: Source,
    /// What was there before, for a rollback.
    pub before: Option<Version>,
    pub since: SystemTime,
    pub by: Initiator,
    pub stats: Arc<PluginStats>,
}

/// What a plugin was made of.
#[derive(Clone)]
pub(super) struct Source {
    pub wasm: Arc<[u8]>,
    pub toml: Option<String>,
}

/// A version that was replaced, ready to come back.
pub(super) struct Version {
    pub config: PluginConfig,
    pub identity: Arc<str>,
    pub compiled: Arc<CompiledPlugin>,
    pub source: Source,
}

/// A plugin somebody brings.
pub struct Offer {
    /// The component.
    pub wasm: Arc<[u8]>,
    /// Where it was read from; none: it was uploaded.
    pub file: Option<PathBuf>,
    /// What is to stand in the file beside it; none: what stands there now.
    pub toml: Option<String>,
    /// Whether it starts from nothing instead of its predecessor's state.
    pub is_fresh: bool,
}

/// Another place in the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Right before the plugin in this slot.
    Before(String),
    /// Right behind the plugin in this slot.
    Behind(String),
    /// Under this name.
    Slot(String),
}

/// What is known of one plugin, to be shown.
pub struct Status {
    /// The plugin.
    pub plugin: Arc<Plugin>,
    /// How it is configured, where it is now.
    pub config: PluginConfig,
    /// The component.
    pub wasm: Arc<[u8]>,
    /// Whether something stands beside it.
    pub is_configured: bool,
    /// Which version a rollback brings back.
    pub before: Option<Arc<str>>,
    /// Since when it is there.
    pub since: SystemTime,
    /// Who put it there.
    pub by: Initiator,
    /// Which of its files is gone from the directory.
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
    #[error("the slot {0} is taken; swap what is in it")]
    SlotTaken(String),
    #[error(
        "\"{0}\" cannot name a slot: up to 128 letters, digits, '-', '_' and '.', and no '.' in front"
    )]
    BadSlot(String),
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
    /// What is in the chain, in its order.
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
        // One that came or moved at this moment is shown the next time.
        plugins.into_iter().filter_map(status).collect()
    }

    /// What was refused last in each slot, unless something was taken since.
    pub fn refused(&self) -> Vec<(String, SystemTime, PluginError)> {
        let refused = self.refused.lock();
        refused.iter().map(|(slot, (at, error))| (slot.clone(), *at, error.clone())).collect()
    }

    /// Where changes are written to.
    pub fn directory(&self) -> Option<&Path> {
        self.config.directory.as_deref()
    }

    /// The slot that is meant by its name, or by the name of the plugin in it.
    ///
    /// # Errors
    ///
    /// No plugin, or several, go by this name.
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

    /// Puts a plugin into a slot that is free. Blocks, as all changes do: not to be
    /// called on a thread that serves connections.
    ///
    /// # Errors
    ///
    /// The slot is taken, or the plugin is refused.
    pub fn load(&self, slot: &str, offer: Offer, by: &Initiator) -> Result<Swap, ChangeError> {
        if !directory::is_slot(slot) {
            return Err(ChangeError::BadSlot(slot.to_owned()));
        }
        let mut changes = self.changes.lock();
        if self.records.lock().contains_key(slot) {
            return Err(ChangeError::SlotTaken(slot.to_owned()));
        }
        self.offer(&mut changes, slot, offer, by)
    }

    /// Puts a plugin in the place of another.
    ///
    /// # Errors
    ///
    /// There is no such slot, or the plugin is refused; the one in place stays.
    pub fn swap(&self, name: &str, offer: Offer, by: &Initiator) -> Result<Swap, ChangeError> {
        let mut changes = self.changes.lock();
        let slot = self.slot_of(name)?;
        self.offer(&mut changes, &slot, offer, by)
    }

    /// Makes new instances of a plugin as a swap does, with other settings: those
    /// given, or what stands beside it now.
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
        self.offer(&mut changes, &slot, Offer { wasm, file: Some(file), toml, is_fresh }, by)
    }

    /// Brings back the version that was replaced last.
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
        let placing = InstallOptions {
            by,
            is_rollback: true,
            is_forced: true,
            compiled: Some(compiled),
            write_to: self.directory(),
            ..InstallOptions::as_found(by)
        };
        self.placed(&mut changes, files, placing)
    }

    /// Takes a plugin out of the chain. What stands beside it is set aside under another
    /// name, for when it comes back.
    ///
    /// # Errors
    ///
    /// There is no such plugin, or its file cannot be removed.
    pub fn remove(&self, name: &str, by: &Initiator) -> Result<Swap, ChangeError> {
        let _one_at_a_time = self.changes.lock();
        let slot = self.slot_of(name)?;
        if let Some(directory) = self.directory() {
            let file = directory::wasm_file(directory, &slot);
            remove_if_there(&file)
                .and_then(|()| set_aside(directory, &slot))
                .map_err(|io| unwritable(&slot, &file, &io))?;
        }
        self.take_out(&slot, by).ok_or(ChangeError::NoSuchPlugin(slot))
    }

    /// Gives a plugin another place. Its instances stay as they are.
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
        self.missing_moved(&slot, &to);
        Ok(self.done(Swap {
            at: SystemTime::now(),
            by: by.clone(),
            deed: ChangeKind::Moved,
            slot: Some(to),
            from: Some(plugin.identity.clone()),
            to: Some(plugin.identity.clone()),
            pause,
        }))
    }

    fn offer(
        &self,
        changes: &mut super::Changes,
        slot: &str,
        offer: Offer,
        by: &Initiator,
    ) -> Result<Swap, ChangeError> {
        let Offer { wasm, file, toml, is_fresh } = offer;
        let in_force = || self.records.lock().get(slot).and_then(|at| at.source.toml.clone());
        let (file, beside) = match self.directory() {
            Some(directory) => {
                // A file that is gone does not take the settings along.
                let beside = match directory::read_config(directory, slot)? {
                    Some(text) => Some(text),
                    None => in_force()
                        .or_else(|| fs::read_to_string(set_aside_file(directory, slot)).ok()),
                };
                (directory::wasm_file(directory, slot), beside)
            }
            None => (file.unwrap_or_else(|| PathBuf::from("(uploaded)")), in_force()),
        };
        // What says nothing need not stand there.
        let toml = toml.or(beside).filter(|text| !text.trim().is_empty());
        let files = directory::check(slot, &file, wasm, toml, self.config.defaults)
            .inspect_err(|error| self.was_refused(slot, error, by))?;
        let placing = InstallOptions {
            is_forced: true,
            write_to: self.directory(),
            is_fresh,
            ..InstallOptions::as_found(by)
        };
        self.placed(changes, files, placing)
    }

    fn placed(
        &self,
        changes: &mut super::Changes,
        files: PluginFiles,
        placing: InstallOptions<'_>,
    ) -> Result<Swap, ChangeError> {
        let (slot, by) = (files.config.slot.clone(), placing.by);
        let placed = self
            .place(changes, files, placing)
            .inspect_err(|error| self.was_refused(&slot, error, by))?;
        Ok(placed.expect("a forced change is made"))
    }

    fn in_use(&self, slot: &str) -> Option<(Arc<[u8]>, PathBuf)> {
        let plugin = self.chain.read().plugins().iter().find(|p| p.slot() == slot).cloned()?;
        let wasm = self.records.lock().get(slot)?.source.wasm.clone();
        Some((wasm, plugin.config_now().file))
    }

    /// The name under which the plugin stands there.
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
            Place::Slot(to) if others.contains(to) => Err(ChangeError::SlotTaken(to.clone())),
            Place::Slot(to) if directory::name_of(to) != name => Err(ChangeError::OtherName {
                to: to.clone(),
                name: directory::name_of(to).to_owned(),
                was: name.to_owned(),
            }),
            Place::Slot(to) => Ok(to.clone()),
        }
    }
}

impl Source {
    /// Has the directory hold this in the slot. What stands beside the component
    /// comes first: a component is what is looked for.
    pub fn write(&self, directory: &Path, slot: &str) -> io::Result<()> {
        let beside = directory::toml_file(directory, slot);
        match &self.toml {
            Some(text) => write_atomically(&beside, text.as_bytes())?,
            None => remove_if_there(&beside)?,
        }
        write_atomically(&directory::wasm_file(directory, slot), &self.wasm)?;
        remove_if_there(&set_aside_file(directory, slot))
    }
}

/// Where the settings are of a plugin that was removed by name.
pub(super) fn set_aside_file(directory: &Path, slot: &str) -> PathBuf {
    directory.join(format!("{slot}.toml.removed"))
}

/// Puts the settings of a plugin that is removed under a name that says so, so that they
/// are not taken for settings that miss their component.
fn set_aside(directory: &Path, slot: &str) -> io::Result<()> {
    match fs::rename(directory::toml_file(directory, slot), set_aside_file(directory, slot)) {
        Err(io) if io.kind() != io::ErrorKind::NotFound => Err(io),
        _ => Ok(()),
    }
}

/// Has the directory hold in the slot what it held before.
pub(super) fn write_back(directory: &Path, slot: &str, in_use: Option<&Source>) -> io::Result<()> {
    match in_use {
        Some(source) => source.write(directory, slot),
        None => remove_if_there(&directory::wasm_file(directory, slot)),
    }
}

/// Writes a file that appears with all its bytes at once; one that holds them
/// already is left alone.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if std::fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    // As a file has that somebody copies there.
    let permissions = match std::fs::metadata(path) {
        Ok(metadata) => metadata.permissions(),
        Err(_) => Permissions::from_mode(0o644),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".switchyard-")
        .permissions(permissions)
        .tempfile_in(directory.unwrap_or(Path::new(".")))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(io) if io.kind() != io::ErrorKind::NotFound => Err(io),
        _ => Ok(()),
    }
}

/// Renames a plugin's files. What stands beside it has both names for a moment, so
/// that the component never stands without it.
fn rename(directory: &Path, slot: &str, to: &str) -> io::Result<()> {
    let (beside, new) =
        (directory::toml_file(directory, slot), directory::toml_file(directory, to));
    let is_configured = beside.exists();
    remove_if_there(&new)?;
    if is_configured {
        std::fs::hard_link(&beside, &new)?;
    }
    std::fs::rename(directory::wasm_file(directory, slot), directory::wasm_file(directory, to))?;
    if is_configured {
        remove_if_there(&beside)?;
    }
    Ok(())
}

fn unwritable(slot: &str, file: &Path, io: &io::Error) -> PluginError {
    PluginError {
        plugin: directory::name_of(slot).to_owned(),
        file: file.to_owned(),
        step: "write",
        problem: io.to_string(),
    }
}
