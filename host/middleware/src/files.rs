//! Updates the chain to match the plugin directory.
//!
//! Files add and replace plugins. A missing file does not remove one: a file that is replaced in
//! two steps, a directory that is moved or unreadable, and a settings file that does not exist yet
//! would each remove an access check for a while. A plugin whose file is missing stays in force
//! until the file is back, or until the plugin is removed by its name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::{debug, error, info, warn};

use super::bindings::CompiledPlugin;
use super::directory::{self, Fingerprint, Listing, PluginFiles, name_of};
use super::order::Begun;
use super::plugin::Plugin;
use super::stats::Initiator;
use super::{Changes, InstallOptions, Middleware, PluginError};

/// The file of a plugin in force that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MissingFile {
    /// The component.
    Component,
    /// The settings file.
    Settings,
}

/// The problems of the plugin directory that were logged.
#[derive(Default)]
pub(super) struct Gaps {
    /// Slots in force with a missing file.
    missing: BTreeMap<String, MissingFile>,
    /// Settings files without a component, as messages.
    orphans: Vec<String>,
    /// Those of them whose plugin would have a closed policy.
    absent_guards: Vec<String>,
    /// Why the directory was not read the last time.
    unreadable: Option<String>,
}

/// A slot whose files changed.
struct FoundChange<'a> {
    slot: String,
    fingerprint: Fingerprint,
    begun: Begun<'a>,
}

/// The files of a plugin, and its code.
type Prepared = (PluginFiles, Arc<CompiledPlugin>);

/// How many plugins that were read wait to be put into the chain.
const READ_AT_ONCE_MAX: usize = 16;

/// How much two names may differ to be considered a misspelling.
const MISSPELT_MAX: usize = 2;

impl Middleware {
    /// Makes the next `rescan` read all files again, including those that look unchanged.
    pub fn look_again(&self) {
        self.changes.lock().seen.values_mut().for_each(directory::Fingerprint::forget);
    }

    /// The content of the directory, if it has changed. None: it has not, or a change is in
    /// progress, or it cannot be read.
    pub fn listing_if_changed(&self) -> Option<Listing> {
        let listing = self.list().ok()??;
        let changes = self.changes.try_lock()?;
        (listing.slots != changes.seen || self.is_any_missing(&listing)).then_some(listing)
    }

    /// Updates the chain to match the directory: adds new plugins and swaps changed ones. A refused
    /// change leaves its slot as it was; a plugin whose file is missing stays in force. Several are
    /// compiled at the same time, and other changes need not wait. Blocks: do not call it on a
    /// thread that serves connections.
    pub fn rescan(&self, by: &Initiator) -> Vec<PluginError> {
        let mut found = match self.find_changes() {
            Ok(found) => found.into_iter(),
            Err(error) => return vec![error],
        };
        let mut errors = Vec::new();
        loop {
            // Not all at once: each is held in memory until it is in the chain.
            let some: Vec<FoundChange> = found.by_ref().take(READ_AT_ONCE_MAX).collect();
            if some.is_empty() {
                return errors;
            }
            let prepared = self.prepare_found(&some);
            for (found, prepared) in some.iter().zip(prepared) {
                let mut changes = self.changes.lock();
                if self.is_outdated(&changes, found, by) {
                    debug!(
                        slot = found.slot,
                        "a change of a plugin's files was followed by another"
                    );
                    continue;
                }
                let placed = prepared.and_then(|(files, compiled)| {
                    self.place_found(&mut changes, &found.begun, files, compiled, by)
                });
                if let Err(error) = placed {
                    self.was_not_placed(&mut changes, &found.slot, &error, by);
                    errors.push(error);
                }
            }
        }
    }

    /// Finds the slots whose files changed, and records that they were seen.
    fn find_changes(&self) -> Result<Vec<FoundChange<'_>>, PluginError> {
        let mut changes = self.changes.lock();
        let Some(listing) = self.list()? else { return Ok(Vec::new()) };
        self.say_orphans(&listing);
        let gone: Vec<String> = changes
            .seen
            .keys()
            .filter(|slot| !listing.slots.contains_key(*slot))
            .cloned()
            .collect();
        for slot in gone {
            changes.seen.remove(&slot);
            self.refused.lock().remove(&slot);
        }
        for slot in self.slots_in_force() {
            if !listing.slots.contains_key(&slot) {
                self.is_missing(&slot, MissingFile::Component);
            }
        }
        let mut found = Vec::new();
        for (slot, fingerprint) in listing.slots {
            if changes.seen.get(&slot) == Some(&fingerprint) {
                continue;
            }
            // Recorded even if it is refused: it is logged once.
            changes.seen.insert(slot.clone(), fingerprint.clone());
            found.push(FoundChange { begun: self.order.begin(&slot), slot, fingerprint });
        }
        Ok(found)
    }

    /// Reads and compiles the plugins of these slots, several at the same time.
    fn prepare_found(&self, found: &[FoundChange<'_>]) -> Vec<Result<Prepared, PluginError>> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::new());
        let work = || {
            loop {
                let position = next.fetch_add(1, Ordering::Relaxed);
                let Some(found) = found.get(position) else { return };
                let prepared = self.prepare_files(found);
                done.lock().push((position, prepared));
            }
        };
        let workers = self.wasm.compilations_max().min(found.len());
        std::thread::scope(|scope| {
            for _ in 1..workers {
                scope.spawn(work);
            }
            work();
        });
        let mut done = done.into_inner();
        done.sort_by_key(|(position, _)| *position);
        done.into_iter().map(|(_, prepared)| prepared).collect()
    }

    fn prepare_files(&self, found: &FoundChange<'_>) -> Result<Prepared, PluginError> {
        let directory = self.directory().unwrap_or(Path::new(""));
        let files = directory::read(directory, &found.slot, self.config.defaults)?;
        let is_wanted = || !found.begun.is_superseded();
        let compiled = self.compile(&files.config.version, &files.wasm, &is_wanted).map_err(
            |(step, problem)| PluginError {
                plugin: files.config.name.clone(),
                file: files.config.file.clone(),
                step,
                problem,
            },
        )?;
        Ok((files, compiled))
    }

    /// Whether another change of this slot, or of its files, came after this one was found.
    fn is_outdated(&self, changes: &Changes, found: &FoundChange<'_>, by: &Initiator) -> bool {
        let FoundChange { slot, fingerprint, begun } = found;
        let directory = self.directory().unwrap_or(Path::new(""));
        // At the start there is no later poll that finds the other files.
        let has_changed = !matches!(by, Initiator::Start | Initiator::Check)
            && directory::fingerprint(directory, slot) != *fingerprint;
        has_changed || begun.is_superseded() || changes.seen.get(slot) != Some(fingerprint)
    }

    fn was_not_placed(
        &self,
        changes: &mut Changes,
        slot: &str,
        error: &PluginError,
        by: &Initiator,
    ) {
        let mut is_known = false;
        if error.step == "read" {
            // Retried at the next poll, and logged once: the process may be out of descriptors.
            changes.seen.remove(slot);
            let refused = self.refused.lock();
            is_known = *by != Initiator::Signal
                && refused.get(slot).is_some_and(|(_, known)| known == error);
        }
        if !is_known {
            self.was_refused(slot, error, by);
        }
    }

    /// Slots in force with a file that is missing from the directory.
    pub fn missing_files(&self) -> BTreeMap<String, MissingFile> {
        self.gaps.lock().missing.clone()
    }

    /// Settings files in the directory without a plugin, each as a message.
    pub fn orphans(&self) -> Vec<String> {
        self.gaps.lock().orphans.clone()
    }

    /// Those of them that say `policy = "closed"`.
    pub fn absent_guards(&self) -> Vec<String> {
        self.gaps.lock().absent_guards.clone()
    }

    /// Why the directory cannot be read, if it cannot.
    pub fn unreadable_directory(&self) -> Option<String> {
        self.gaps.lock().unreadable.clone()
    }

    /// Forgets that a file of this slot was missing.
    pub(super) fn is_whole(&self, slot: &str) {
        self.gaps.lock().missing.remove(slot);
    }

    /// The slot has been renamed.
    pub(super) fn missing_moved(&self, slot: &str, to: &str) {
        let mut gaps = self.gaps.lock();
        if let Some(missing) = gaps.missing.remove(slot) {
            gaps.missing.insert(to.to_owned(), missing);
        }
    }

    /// None: there is no directory.
    fn list(&self) -> Result<Option<Listing>, PluginError> {
        let Some(directory) = &self.config.directory else { return Ok(None) };
        let listed = directory::list(directory);
        let mut gaps = self.gaps.lock();
        match listed {
            Ok(listing) => {
                if gaps.unreadable.take().is_some() {
                    info!(directory = %directory.display(), "the plugin directory can be read again");
                }
                Ok(Some(listing))
            }
            Err(io) => {
                let error = PluginError {
                    plugin: "(all)".to_owned(),
                    file: directory.clone(),
                    step: "read",
                    problem: io.to_string(),
                };
                if gaps.unreadable.as_ref() != Some(&error.problem) {
                    error!(%error, "the plugin directory was not read: all plugins stay in force");
                    gaps.unreadable = Some(error.problem.clone());
                }
                Err(error)
            }
        }
    }

    /// Puts the files of a slot into the chain.
    fn place_found(
        &self,
        changes: &mut Changes,
        begun: &Begun<'_>,
        files: PluginFiles,
        compiled: Arc<CompiledPlugin>,
        by: &Initiator,
    ) -> Result<(), PluginError> {
        let slot = files.config.slot.clone();
        let is_new = !self.records.lock().contains_key(&slot);
        let renamed = if is_new { self.renamed_to(&files) } else { None };
        let in_force = renamed.as_deref().unwrap_or(&slot);
        if files.toml.is_none() && self.has_settings(in_force) {
            self.is_missing(in_force, MissingFile::Settings);
            return Ok(());
        }
        if is_new && files.toml.is_none() {
            self.check_set_aside(&files)?;
        }
        let placing =
            InstallOptions { renamed_from: renamed, ..InstallOptions::as_found(by, begun) };
        self.place(changes, files, compiled, placing)?;
        if self.gaps.lock().missing.remove(&slot).is_some() {
            info!(%slot, "the files of a plugin are back");
        }
        Ok(())
    }

    /// The slot whose component is missing, if this is the same plugin under another name: it has
    /// the same settings, or none yet, in which case the settings may still have the old name.
    /// Another plugin with the same component is added, and removes nothing.
    fn renamed_to(&self, files: &PluginFiles) -> Option<String> {
        let gone: Vec<String> = {
            let gaps = self.gaps.lock();
            let gone = gaps.missing.iter().filter(|(_, file)| **file == MissingFile::Component);
            gone.map(|(slot, _)| slot.clone()).collect()
        };
        let plugins: Vec<Arc<Plugin>> = self.chain.read().plugins().to_vec();
        let plugins = || plugins.iter().filter(|plugin| gone.contains(&plugin.slot()));
        let is_named = |plugin: &&Arc<Plugin>| name_of(&plugin.slot()) == files.config.name;
        let is_same = |plugin: &&Arc<Plugin>| plugin.config.version == files.config.version;
        let records = self.records.lock();
        let settings = |plugin: &Arc<Plugin>| records.get(&plugin.slot())?.source.toml.as_deref();
        let has_settings = |plugin: &&Arc<Plugin>| settings(plugin) == files.toml.as_deref();
        let found = plugins().find(|plugin| is_named(plugin) && has_settings(plugin)).or_else(
            || match files.toml {
                None => plugins().find(is_named),
                Some(_) => plugins().find(|plugin| is_same(plugin) && has_settings(plugin)),
            },
        );
        found.map(|plugin| plugin.slot())
    }

    /// A plugin that was removed by name left its settings under another name: without them it
    /// would behave differently.
    fn check_set_aside(&self, files: &PluginFiles) -> Result<(), PluginError> {
        let Some(directory) = &self.config.directory else { return Ok(()) };
        let slot = &files.config.slot;
        let aside = directory::set_aside_file(directory, slot);
        if !aside.exists() {
            return Ok(());
        }
        let toml = directory::toml_file(directory, slot);
        Err(PluginError {
            plugin: files.config.name.clone(),
            file: toml.clone(),
            step: "config",
            problem: format!(
                "its settings were set aside as {} when it was removed: rename that to {}, or \
                 delete it",
                aside.display(),
                toml.display()
            ),
        })
    }

    fn has_settings(&self, slot: &str) -> bool {
        self.records.lock().get(slot).is_some_and(|record| record.source.toml.is_some())
    }

    fn slots_in_force(&self) -> BTreeSet<String> {
        self.chain.read().plugins().iter().map(|plugin| plugin.slot()).collect()
    }

    fn is_any_missing(&self, listing: &Listing) -> bool {
        let missing = self.missing_files();
        let is_new = |slot: &String| {
            !listing.slots.contains_key(slot) && missing.get(slot) != Some(&MissingFile::Component)
        };
        self.slots_in_force().iter().any(is_new)
    }

    /// Logs once that a file of a plugin in force is missing.
    fn is_missing(&self, slot: &str, file: MissingFile) {
        if self.gaps.lock().missing.insert(slot.to_owned(), file) == Some(file) {
            return;
        }
        let directory = self.directory().unwrap_or(Path::new(""));
        match file {
            MissingFile::Component => warn!(
                plugin = slot, file = %directory::wasm_file(directory, slot).display(),
                "the file of a plugin is gone: the plugin stays in force, and will be absent after \
                 a restart; put the file back, or use `switchyard plugin rm {slot}` to remove it"
            ),
            MissingFile::Settings => warn!(
                plugin = slot, file = %directory::toml_file(directory, slot).display(),
                "the settings file of a plugin is gone: the plugin stays in force with the \
                 settings that it has; put the file back, or write one with only a comment to run \
                 it without settings"
            ),
        }
    }

    /// Logs once which settings files have no component.
    fn say_orphans(&self, listing: &Listing) {
        let Some(directory) = &self.config.directory else { return };
        let in_force = self.slots_in_force();
        let is_orphan = |slot: &&String| {
            !listing.slots.contains_key(*slot)
                && !in_force.contains(*slot)
                && directory::is_for_a_plugin(directory, slot)
        };
        let mut absent_guards = Vec::new();
        let orphans: Vec<String> = listing
            .settings
            .iter()
            .filter(is_orphan)
            .map(|slot| {
                let file = directory::toml_file(directory, slot);
                let mut words = format!(
                    "{} has no {slot}.wasm beside it: what it configures is not in force",
                    file.display()
                );
                let without = listing.slots.keys().filter(|slot| !listing.settings.contains(*slot));
                let meant = without.min_by_key(|other| differences(other, slot));
                if let Some(meant) = meant.filter(|other| differences(other, slot) <= MISSPELT_MAX)
                {
                    words += &format!("; {meant}.wasm has no settings: was {meant}.toml meant?");
                }
                if directory::is_closed(directory, slot) {
                    absent_guards.push(words.clone());
                }
                words
            })
            .collect();
        let mut gaps = self.gaps.lock();
        gaps.absent_guards = absent_guards;
        let before = std::mem::replace(&mut gaps.orphans, orphans.clone());
        drop(gaps);
        for orphan in orphans.iter().filter(|orphan| !before.contains(orphan)) {
            warn!("{orphan}");
        }
    }
}

/// The number of letters that must be inserted, removed or changed to get from one to the other.
fn differences(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (line, letter) in one.chars().enumerate() {
        let mut before = line;
        let mut left = line + 1;
        for (cell, other) in row.iter_mut().skip(1).zip(other.chars()) {
            let changed = before + usize::from(letter != other);
            before = *cell;
            left = changed.min(before + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = line + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_nearly_the_same_are_seen_to_be() {
        for (one, other, expected) in [
            ("20-redact", "20-redact", 0),
            ("20-redact", "20-redcat", 2),
            ("20-redact", "20-redac", 1),
            ("", "abc", 3),
            ("abc", "", 3),
            ("10-acl", "20-redact", 5),
        ] {
            assert_eq!(differences(one, other), expected, "{one} {other}");
        }
    }
}
