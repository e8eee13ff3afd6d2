//! Reads files that others may replace at any time.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// The largest file of a plugin's settings, of tokens, a password or certificates.
pub const SETTINGS_BYTES_MAX: usize = 1 << 20;
/// The largest file of an engine.
pub const ENGINE_BYTES_MAX: usize = 64 << 20;

/// Why an empty settings file is not used.
pub const EMPTY: &str =
    "it is empty: either not written yet, or a comment should say that there are no settings";

/// Reads a regular file of at most this many bytes.
///
/// # Errors
///
/// It cannot be read, is larger, or is something else: reading a named pipe might never end.
pub fn read(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    if metadata.len() > bytes_max as u64 {
        return Err(too_large(metadata.len(), bytes_max));
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    // It may have grown since.
    let length = File::open(path)?.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    if length > bytes_max {
        return Err(too_large(length as u64, bytes_max));
    }
    Ok(bytes)
}

/// As `read`, for text.
///
/// # Errors
///
/// As `read`; also if it is not UTF-8.
pub fn read_text(path: &Path, bytes_max: usize) -> io::Result<String> {
    let not_text = |_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8");
    String::from_utf8(read(path, bytes_max)?).map_err(not_text)
}

/// What is wrong with a TOML file, and where: the line, its key and the column, but not the value, which
/// may be a secret.
pub fn toml_problem(text: &str, error: &toml::de::Error) -> String {
    let Some(span) = error.span() else { return error.message().to_owned() };
    let before = text.get(..span.start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let key = text.lines().nth(line - 1).and_then(key_of).map(|key| format!(" ({key})"));
    format!("line {line}{}, column {column}: {}", key.unwrap_or_default(), error.message())
}

/// The key that a line sets; none: it sets none, or continues a value.
fn key_of(line: &str) -> Option<&str> {
    let (key, value) = line.split_once('=')?;
    let key = key.trim();
    let is_bare = key.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
    (is_bare && !key.is_empty() && !value.trim().is_empty()).then_some(key)
}

fn too_large(bytes: u64, bytes_max: usize) -> io::Error {
    let problem = format!("it has {bytes} bytes or more, and {bytes_max} are allowed");
    io::Error::new(io::ErrorKind::FileTooLarge, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_toml_is_said_without_its_text() {
        let text = "[settings]\nsecret = 's3cret\n";
        let error = toml::from_str::<toml::Table>(text).expect_err("the string does not end");
        let problem = toml_problem(text, &error);
        assert!(problem.starts_with("line 2 (secret), column "), "{problem}");
        assert!(!problem.contains("s3cret"), "{problem}");
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
        assert_eq!(refused, Err(io::ErrorKind::InvalidInput));
        fs::write(&path, [0xff])?;
        assert_eq!(
            read_text(&path, 4).map_err(|error| error.kind()),
            Err(io::ErrorKind::InvalidData)
        );
        let missing = read(&directory.path().join("none"), 4).map_err(|error| error.kind());
        assert_eq!(missing, Err(io::ErrorKind::NotFound));
        Ok(())
    }
}
