//! Writes a plugin's declaration into its component: the custom section `switchyard:plugin`, for
//! languages whose tools cannot.
//!
//! The section is put at the end of the component and replaces one that this command put there
//! before. A section within a module of the component stays, but the section of the component
//! itself takes precedence.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::json;
use thiserror::Error;

use switchyard_config::file::{self, COMPONENT_BYTES_MAX};

/// The name of the section.
const SECTION: &str = "switchyard:plugin";

/// The first bytes of a component, which differ from those of a module.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// The maximum length of a name or version.
const WORD_BYTES_MAX: usize = 64;

/// What happens to an item while a plugin cannot decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnFailure {
    /// Items are refused
    Closed,
    /// Items pass
    Open,
}

/// Why nothing was declared.
#[derive(Debug, Error)]
pub enum DeclareError {
    /// It is no component, or is cut off.
    #[error("{} is not a WebAssembly component", .0.display())]
    NotComponent(PathBuf),
    /// A name or a version is invalid.
    #[error("the {0} takes 1 to {WORD_BYTES_MAX} bytes in one line")]
    Word(&'static str),
    /// An error of the operating system.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Writes a declaration into the component in this file, in place.
///
/// # Errors
///
/// It is no component, or cannot be written; then it stays as it was.
pub fn declare(
    file: &Path,
    on_failure: OnFailure,
    name: Option<&str>,
    version: Option<&str>,
) -> Result<(), DeclareError> {
    for (what, word) in [("name", name), ("version", version)] {
        let is_fit = |word: &str| {
            (1..=WORD_BYTES_MAX).contains(&word.len()) && !word.contains(char::is_control)
        };
        if !word.is_none_or(is_fit) {
            return Err(DeclareError::Word(what));
        }
    }
    let io = |source| DeclareError::Io { path: file.to_owned(), source };
    let component = file::read(file, COMPONENT_BYTES_MAX).map_err(io)?;
    let mut declaration = serde_json::Map::new();
    let words = [("name", name), ("version", version)];
    let words = words.into_iter().filter_map(|(key, word)| Some((key.to_owned(), json!(word?))));
    declaration.extend(words);
    declaration.insert(
        "on_failure".to_owned(),
        json!(match on_failure {
            OnFailure::Closed => "closed",
            OnFailure::Open => "open",
        }),
    );
    let declaration = serde_json::Value::Object(declaration).to_string();
    let declared = with_section(&component, declaration.as_bytes())
        .ok_or_else(|| DeclareError::NotComponent(file.to_owned()))?;
    // Written to another file and renamed, because a server may be watching.
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut written =
        tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).map_err(io)?;
    written.write_all(&declared).map_err(io)?;
    let permissions = fs::metadata(file).map_err(io)?.permissions();
    written.as_file().set_permissions(permissions).map_err(io)?;
    written.persist(file).map_err(|error| io(error.error))?;
    Ok(())
}

/// The component with this section as its last; none if it is no component.
fn with_section(component: &[u8], content: &[u8]) -> Option<Vec<u8>> {
    let mut rest = component.strip_prefix(COMPONENT)?;
    let mut with = COMPONENT.to_vec();
    while let [id, behind_id @ ..] = rest {
        let (length, behind_length) = read_length(behind_id)?;
        let (body, next) = behind_length.split_at_checked(length)?;
        let is_ours = *id == 0
            && read_length(body).is_some_and(|(length, rest)| {
                rest.split_at_checked(length).is_some_and(|(name, _)| name == SECTION.as_bytes())
            });
        if !is_ours {
            with.extend_from_slice(rest.get(..rest.len() - next.len())?);
        }
        rest = next;
    }
    let mut body = vec![];
    write_length(SECTION.len(), &mut body);
    body.extend_from_slice(SECTION.as_bytes());
    body.extend_from_slice(content);
    with.push(0);
    write_length(body.len(), &mut with);
    with.extend_from_slice(&body);
    Some(with)
}

/// LEB128, of 32 bits.
fn read_length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut length = 0_u64;
    for (place, byte) in bytes.iter().take(5).enumerate() {
        length |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((usize::try_from(length).ok()?, bytes.get(place + 1..)?));
        }
    }
    None
}

fn write_length(length: usize, bytes: &mut Vec<u8>) {
    let mut length = length;
    while length >= 0x80 {
        bytes.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_put_at_the_end_once() {
        let plain = [COMPONENT, b"\0\x0a\x04salt\x01\x02\x03\x04"].concat();
        assert_eq!(with_section(&plain, b"{}"), None, "its length is wrong");
        let plain = [COMPONENT, b"\0\x09\x04salt\x01\x02\x03\x04"].concat();
        let once = with_section(&plain, b"{}").unwrap();
        assert_eq!(once, [&plain, b"\0\x14\x11switchyard:plugin{}".as_slice()].concat());
        let longer = with_section(&once, &[b' '; 200]).unwrap();
        let expected = [&plain, b"\0\xda\x01\x11switchyard:plugin".as_slice(), &[b' '; 200]];
        assert_eq!(longer, expected.concat());
        assert_eq!(with_section(&longer, b"{}").unwrap(), once);
    }

    #[test]
    fn what_is_no_component_has_no_place_for_one() {
        let module = b"\0asm\x01\0\0\0";
        for bytes in [b"".as_slice(), module, &COMPONENT[..7], b"nonsense"] {
            assert_eq!(with_section(bytes, b"{}"), None);
        }
        let cut = [COMPONENT, b"\x01\xff"].concat();
        assert_eq!(with_section(&cut, b"{}"), None);
    }
}
