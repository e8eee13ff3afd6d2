//! Writes the files of plugins and of the engine: as a whole, or not at all.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::process::geteuid;
use tempfile::NamedTempFile;
use tracing::{info, warn};

use super::directory;
use switchyard_config::file::{self, SETTINGS_BYTES_MAX};

/// Files that are being written have names of this prefix and as many letters and digits. A file
/// with a leading dot is no plugin.
const PREFIX: &str = ".switchyard-";
const RANDOM_LETTERS: usize = 6;

/// The source of a plugin.
#[derive(Clone)]
pub(super) struct Source {
    pub wasm: Arc<[u8]>,
    pub toml: Option<String>,
}

impl Source {
    /// Writes this slot to the directory. The files next to the component are written first,
    /// because the directory is searched for components.
    pub fn write(&self, directory: &Path, slot: &str) -> io::Result<()> {
        let (beside, component) =
            (directory::toml_file(directory, slot), directory::wasm_file(directory, slot));
        // Both are on the disk before one has its name: new settings must not meet the old
        // component because there was no room for the new one.
        let wasm = stage(&component, &self.wasm)?;
        let toml = self.toml.as_ref().map(|text| stage(&beside, text.as_bytes())).transpose()?;
        let before = match file::read(&beside, SETTINGS_BYTES_MAX) {
            Err(io) if io.kind() == io::ErrorKind::NotFound => None,
            before => Some(before?),
        };
        match toml {
            Some(staged) => put_in_place(staged, &beside)?,
            None => remove_if_there(&beside)?,
        }
        if let Err(error) = put_in_place(wasm, &component) {
            let _ = match before {
                Some(before) => write_atomically(&beside, &before),
                None => remove_if_there(&beside),
            };
            return Err(error);
        }
        remove_if_there(&directory::set_aside_file(directory, slot))
    }
}

/// Renames the settings file of a plugin that is removed, so that it does not look like settings
/// without a component.
pub(super) fn set_aside(directory: &Path, slot: &str) -> io::Result<()> {
    match fs::rename(
        directory::toml_file(directory, slot),
        directory::set_aside_file(directory, slot),
    ) {
        Err(io) if io.kind() != io::ErrorKind::NotFound => Err(io),
        _ => Ok(()),
    }
}

/// Restores the old content of the slot in the directory.
pub(super) fn write_back(directory: &Path, slot: &str, in_use: Option<&Source>) -> io::Result<()> {
    match in_use {
        Some(source) => source.write(directory, slot),
        None => remove_if_there(&directory::wasm_file(directory, slot)),
    }
}

/// Writes a file atomically; a file with the same content is not written.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put_in_place(stage(path, bytes)?, path)
}

/// Gives a staged file its name.
fn put_in_place(staged: Option<NamedTempFile>, path: &Path) -> io::Result<()> {
    if let Some(staged) = staged {
        staged.persist(path)?;
    }
    Ok(())
}

/// Writes a file under another name in the same directory. None: the content is there already.
fn stage(path: &Path, bytes: &[u8]) -> io::Result<Option<NamedTempFile>> {
    let is_the_same = |there: Vec<u8>| there == bytes;
    if file::read(path, bytes.len()).is_ok_and(is_the_same) {
        return Ok(None);
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    // The permissions that a copied file has.
    let permissions = match std::fs::metadata(path) {
        Ok(metadata) => metadata.permissions(),
        Err(_) => Permissions::from_mode(0o644),
    };
    let mut file = tempfile::Builder::new()
        .prefix(PREFIX)
        .rand_bytes(RANDOM_LETTERS)
        .permissions(permissions)
        .tempfile_in(directory.unwrap_or(Path::new(".")))?;
    // `remove_leftovers` removes only files that are not locked.
    file.as_file().lock()?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok(Some(file))
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(io) if io.kind() != io::ErrorKind::NotFound => Err(io),
        _ => Ok(()),
    }
}

/// Renames a plugin's files. The settings file has both names for a moment, so that the component
/// never lacks its settings.
pub(super) fn rename(directory: &Path, slot: &str, to: &str) -> io::Result<()> {
    let (beside, new) =
        (directory::toml_file(directory, slot), directory::toml_file(directory, to));
    let is_configured = beside.exists();
    if new.exists() {
        let problem = format!("{} is there already: move or remove it first", new.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, problem));
    }
    if is_configured {
        std::fs::hard_link(&beside, &new)?;
    }
    std::fs::rename(directory::wasm_file(directory, slot), directory::wasm_file(directory, to))?;
    if is_configured {
        remove_if_there(&beside)?;
    }
    Ok(())
}

/// Removes the files that a killed server was writing: those with the names of such files that
/// belong to this user and that no running server holds.
pub fn remove_leftovers(directory: &Path) {
    // A directory that cannot be read is reported where its plugins are loaded.
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| is_leftover(&entry.path())) {
        let file = entry.path();
        match fs::remove_file(&file) {
            Ok(()) => {
                info!(file = %file.display(), "a file that was not written completely was removed")
            }
            Err(io) => warn!(file = %file.display(), %io,
                "a file that was not written completely cannot be removed"),
        }
    }
}

fn is_leftover(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let letters = name.and_then(|name| name.strip_prefix(PREFIX));
    let is_named = letters.is_some_and(|letters| {
        letters.len() == RANDOM_LETTERS && letters.bytes().all(|byte| byte.is_ascii_alphanumeric())
    });
    let is_own = || {
        let metadata = fs::symlink_metadata(path);
        metadata.is_ok_and(|found| found.is_file() && found.uid() == geteuid().as_raw())
    };
    let is_unlocked = || {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits() as i32);
        options.open(path).is_ok_and(|file: File| file.try_lock().is_ok())
    };
    is_named && is_own() && is_unlocked()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_killed_server_left_is_removed() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name);
        let kept = [
            ".switchyard-notes.txt",
            ".switchyard-a.bcde",
            ".switchyard-abcde",
            "switchyard-abcdef",
            "10-a.wasm",
        ];
        for name in kept.iter().chain(&[".switchyard-abcdef", ".switchyard-012345"]) {
            fs::write(at(name), "")?;
        }
        fs::create_dir(at(".switchyard-folder"))?;
        std::os::unix::fs::symlink(at("10-a.wasm"), at(".switchyard-a1link"))?;
        let staged = stage(&at("20-b.wasm"), b"new")?.expect("it is written");
        remove_leftovers(directory.path());
        assert!(staged.path().exists(), "a file that is being written");
        for name in kept.iter().chain(&[".switchyard-folder", ".switchyard-a1link"]) {
            assert!(at(name).exists(), "{name}");
        }
        assert!(!at(".switchyard-abcdef").exists() && !at(".switchyard-012345").exists());
        Ok(())
    }

    #[test]
    fn new_settings_are_not_left_beside_the_old_component() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let source =
            |wasm: &[u8], toml: &str| Source { wasm: wasm.into(), toml: Some(toml.to_owned()) };
        source(b"old", "# old").write(directory.path(), "10-a")?;
        let toml = || fs::read_to_string(directory.path().join("10-a.toml"));
        // A directory that is not empty cannot be replaced by a file.
        let component = directory.path().join("10-a.wasm");
        fs::remove_file(&component)?;
        fs::create_dir_all(component.join("in-the-way"))?;
        assert!(source(b"new", "# new").write(directory.path(), "10-a").is_err());
        assert_eq!(toml()?, "# old");
        fs::remove_dir_all(&component)?;
        source(b"new", "# new").write(directory.path(), "10-a")?;
        assert_eq!((toml()?.as_str(), fs::read(&component)?), ("# new", b"new".to_vec()));
        Ok(())
    }
}
