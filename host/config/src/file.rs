//! Reads files that others may replace at any time.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// The largest file of a plugin's settings, of tokens, a password or certificates.
pub const SETTINGS_BYTES_MAX: usize = 1 << 20;
/// The largest component that the command line reads: more than any setting of a server allows.
pub const COMPONENT_BYTES_MAX: usize = 1 << 30;
/// The largest file of an engine.
pub const ENGINE_BYTES_MAX: usize = 64 << 20;

/// Why an empty settings file is not used.
pub const EMPTY: &str =
    "it is empty: either not written yet, or a comment should say that there are no settings";

/// How often a file is read again because it changed during the read, before that is an error.
const READS_MAX: u32 = 3;

/// Identifies a version of a file without reading it. It differs if the file, or a link or a
/// directory on the path to it, was replaced, or the file was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    /// When its content, permissions or names changed. Unlike the time before, it cannot be set.
    changed: (i64, i64),
}

impl Stamp {
    /// That of the file at this path, behind links. None: there is none, or it cannot be seen.
    pub fn of(path: &Path) -> Option<Stamp> {
        Some(Stamp::from(&fs::metadata(path).ok()?))
    }

    /// The size of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Reads a regular file of at most this many bytes. It is not read if it is larger, and neither
/// opening nor reading it waits for another process.
///
/// # Errors
///
/// It cannot be read, is larger, or is something else, such as a named pipe or a device; or it
/// changed each time while it was read.
pub fn read(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    // Opening a device can have effects, so what it is is checked before.
    check_is_file(&fs::metadata(path)?)?;
    for _ in 0..READS_MAX {
        // It may have been replaced since: without NONBLOCK, opening a pipe waits for a writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let metadata = file.metadata()?;
        check_is_file(&metadata)?;
        let bytes = read_bounded(&file, metadata.len(), bytes_max)?;
        if Stamp::from(&file.metadata()?) == Stamp::from(&metadata) {
            return Ok(bytes);
        }
    }
    Err(io::Error::new(ErrorKind::ResourceBusy, "it changes while it is read"))
}

/// Reads what a user names on the command line, which may be a pipe: at most this many bytes.
///
/// # Errors
///
/// It cannot be read, or is larger.
pub fn read_input(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    read_bounded(&file, length, bytes_max)
}

/// As `read_input`, for text.
///
/// # Errors
///
/// As `read_input`; also if it is not UTF-8.
pub fn read_text_input(path: &Path, bytes_max: usize) -> io::Result<String> {
    text(read_input(path, bytes_max)?)
}

/// Whether reading failed for a reason that can pass by itself, such as a lack of descriptors. A file
/// that is created, or replaced, or whose permissions change, is noticed as a change.
pub fn is_passing(io: &io::Error) -> bool {
    !matches!(
        io.kind(),
        ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::IsADirectory
            | ErrorKind::NotADirectory
            | ErrorKind::InvalidData
            | ErrorKind::InvalidInput
            | ErrorKind::FileTooLarge
    )
}

fn check_is_file(metadata: &Metadata) -> io::Result<()> {
    match metadata.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// `length` is that of the file, which may grow.
fn read_bounded(file: &File, length: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
    if length > bytes_max as u64 {
        return Err(too_large(length, bytes_max));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    let read = file.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    if read > bytes_max {
        return Err(too_large(read as u64, bytes_max));
    }
    Ok(bytes)
}

/// As `read`, for text.
///
/// # Errors
///
/// As `read`; also if it is not UTF-8.
pub fn read_text(path: &Path, bytes_max: usize) -> io::Result<String> {
    text(read(path, bytes_max)?)
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    let not_text = |_| io::Error::new(ErrorKind::InvalidData, "it is not UTF-8");
    String::from_utf8(bytes).map_err(not_text)
}

/// What is wrong with a TOML file, and where, in one line: the line, its key and the column, but not the
/// value, which may be a secret.
pub fn toml_problem(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().lines().collect::<Vec<_>>().join("; ");
    let Some(span) = error.span() else { return message };
    let before = text.get(..span.start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let key = text.lines().nth(line - 1).and_then(key_of).map(|key| format!(" ({key})"));
    format!("line {line}{}, column {column}: {message}", key.unwrap_or_default())
}

/// The key that a line sets; none: it sets none, or continues a value.
pub(crate) fn key_of(line: &str) -> Option<&str> {
    let (key, value) = line.split_once('=')?;
    let key = key.trim();
    let is_bare = key.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
    (is_bare && !key.is_empty() && !value.trim().is_empty()).then_some(key)
}

fn too_large(bytes: u64, bytes_max: usize) -> io::Error {
    let problem = format!("it has {bytes} bytes or more, and {bytes_max} are allowed");
    io::Error::new(ErrorKind::FileTooLarge, problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn what_is_wrong_with_toml_is_said_without_its_text() {
        let text = "[settings]\nsecret = 's3cret\n";
        let error = toml::from_str::<toml::Table>(text).expect_err("the string does not end");
        let problem = toml_problem(text, &error);
        assert!(problem.starts_with("line 2 (secret), column "), "{problem}");
        assert!(!problem.contains("s3cret"), "{problem}");
    }

    #[test]
    fn what_is_wrong_with_toml_is_one_line() {
        for text in ["a = [1, 2", "a = 1 2", "[a\n", "a == 1", "a = \"\"\"\n", "a = 1\na = 2", "="]
        {
            let error = toml::from_str::<toml::Table>(text).expect_err("it is no TOML");
            let problem = toml_problem(text, &error);
            assert!(problem.starts_with("line ") && !problem.contains('\n'), "{problem:?}");
        }
    }

    /// Fails by its time if one of them is opened as a file would be.
    #[test]
    fn what_is_no_file_is_refused_without_waiting() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name);
        let _socket = UnixListener::bind(at("socket"))?;
        let made = std::process::Command::new("mkfifo").arg(at("pipe")).status()?;
        assert!(made.success());
        for device in ["/dev/zero", "/dev/tty", "/dev/null"] {
            std::os::unix::fs::symlink(device, at(device.trim_start_matches("/dev/")))?;
        }
        std::os::unix::fs::symlink(at("loop"), at("loop"))?;
        for name in ["socket", "pipe", "zero", "null"] {
            let refused = read(&at(name), 100).map_err(|error| error.kind());
            assert_eq!(refused, Err(ErrorKind::InvalidInput), "{name}");
        }
        assert!(read(&at("loop"), 100).is_err() && read(&at("tty"), 100).is_err());
        // 5 GB that take no room.
        File::create(at("sparse"))?.set_len(5 << 30)?;
        let refused = read(&at("sparse"), 100).map_err(|error| error.kind());
        assert_eq!(refused, Err(ErrorKind::FileTooLarge));
        Ok(())
    }

    #[test]
    fn each_way_to_replace_a_file_changes_its_stamp() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name);
        let link = |to: &str, name: &str| {
            std::os::unix::fs::symlink(to, at("new"))?;
            fs::rename(at("new"), at(name))
        };
        fs::create_dir(at("one"))?;
        fs::create_dir(at("two"))?;
        fs::write(at("one/file"), "1")?;
        fs::write(at("two/file"), "1")?;
        link("one", "..data")?;
        link("..data/file", "file")?;
        let mut before = Stamp::of(&at("file"));
        let mut changes = |what: &str| {
            let now = Stamp::of(&at("file"));
            assert_ne!(now, before, "{what}");
            before = now;
        };
        link("two", "..data")?;
        changes("a link on the path");
        fs::write(at("two/file"), "22")?;
        changes("written in place");
        fs::write(at("two/other"), "22")?;
        fs::rename(at("two/other"), at("two/file"))?;
        changes("renamed over");
        fs::remove_dir_all(at("two"))?;
        changes("removed");
        fs::create_dir(at("two"))?;
        fs::write(at("two/file"), "22")?;
        changes("made again");
        Ok(())
    }

    #[test]
    fn a_regular_file_is_read_and_nothing_that_is_too_large_or_no_file() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("file");
        fs::write(&path, "text")?;
        assert_eq!(read_text(&path, 4)?, "text");
        let refused = read(&path, 3).map_err(|error| error.to_string());
        assert_eq!(refused, Err("it has 4 bytes or more, and 3 are allowed".to_owned()));
        let refused = read(directory.path(), 100).map_err(|error| error.kind());
        assert_eq!(refused, Err(ErrorKind::InvalidInput));
        fs::write(&path, [0xff])?;
        assert_eq!(read_text(&path, 4).map_err(|error| error.kind()), Err(ErrorKind::InvalidData));
        let missing = read(&directory.path().join("none"), 4).map_err(|error| error.kind());
        assert_eq!(missing, Err(ErrorKind::NotFound));
        Ok(())
    }
}
