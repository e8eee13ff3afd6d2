//! Creates a project for a new plugin that builds as it is.
//!
//! The files are in `templates/`, and are copied with their `{{names}}` replaced. The WIT contract
//! is included, so that the project needs nothing of this repository.

use std::io;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use thiserror::Error;

/// The files with these names, from a directory next to this file.
macro_rules! embedded {
    ($folder:literal: $($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!($folder, $name)))),*]
    };
}

/// A file's name and its content.
type File = (&'static str, &'static str);

/// The contract, file by file.
pub const CONTRACT: &[File] = embedded!(
    "../../../../wit/":
    "access.wit",
    "admission.wit",
    "attributes.wit",
    "calls.wit",
    "counters.wit",
    "deliveries.wit",
    "entries.wit",
    "lifecycle.wit",
    "log.wit",
    "messages.wit",
    "publisher.wit",
    "snapshot.wit",
    "subscriptions.wit",
    "timer.wit",
    "types.wit",
    "worlds.wit",
);

/// The directory of the contract in a project.
const CONTRACT_FOLDER: &str = "wit/deps/switchyard-pubsub";

/// The files of every project, in any language.
const COMMON: &[File] =
    embedded!("templates/common/": "hooks.wit", "plugin.toml", "conversation.txt", "README.md");
const RUST: &[File] = embedded!("templates/rust/": "Cargo.toml.in", "src/lib.rs", "gitignore");
const JS: &[File] = embedded!("templates/js/": "package.json", "plugin.js", "utf8.js", "gitignore");
const PYTHON: &[File] =
    embedded!("templates/python/": "requirements.txt", "plugin.py", "gitignore");

/// The version of wit-bindgen that a Rust project is pinned to: that of the plugins in this
/// repository, which a test checks.
const WIT_BINDGEN: &str = "0.61.1";

const RUST_BUILD: &str = "    rustup target add wasm32-wasip2
    cargo build --release --target wasm32-wasip2
    cp target/wasm32-wasip2/release/plugin.wasm {{name}}.wasm";
const JS_BUILD: &str = "    npm install
    npm run build
    switchyard plugin declare {{name}}.wasm --on-failure open";
const PYTHON_BUILD: &str = "    python3 -m venv .venv
    .venv/bin/pip install -r requirements.txt
    .venv/bin/componentize-py --wit-path wit --world hooks componentize plugin -o {{name}}.wasm
    switchyard plugin declare {{name}}.wasm --on-failure open";

/// The maximum length of a plugin's name.
const NAME_BYTES_MAX: usize = 64;

/// The language of a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Language {
    /// Rust, built by cargo
    Rust,
    /// JavaScript, built by npm
    Js,
    /// Python, built by pip
    Python,
}

/// Why no project was created.
#[derive(Debug, Error)]
pub enum NewError {
    /// The plugin's name is invalid.
    #[error(
        "\"{0}\" is no name for a plugin: it has lower-case letters, digits and single hyphens, \
         begins with a letter, does not end with a hyphen, and has {NAME_BYTES_MAX} characters \
         at most"
    )]
    Name(String),
    /// The directory is not empty.
    #[error("{} is there already, and nothing is overwritten", .0.display())]
    Exists(PathBuf),
    /// An error of the operating system.
    #[error("cannot write {}: {source}", .path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl NewError {
    /// Whether the command line is the cause.
    pub fn is_usage(&self) -> bool {
        !matches!(self, NewError::Write { .. })
    }
}

/// Creates a project for a plugin of this name in a directory, which must be empty or not exist.
///
/// # Errors
///
/// The name is invalid, the directory is not empty, or it cannot be written; files that were
/// written before stay.
pub fn new(name: &str, language: Language, folder: &Path) -> Result<(), NewError> {
    if !is_name(name) {
        return Err(NewError::Name(name.to_owned()));
    }
    match std::fs::read_dir(folder).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) if !folder.exists() => {
            return Err(NewError::Write { path: folder.to_owned(), source });
        }
        // This includes a path that exists and is not a directory.
        Ok(false) | Err(_) => return Err(NewError::Exists(folder.to_owned())),
    }
    let (files, source, build) = match language {
        Language::Rust => (RUST, "src/lib.rs", RUST_BUILD),
        Language::Js => (JS, "plugin.js", JS_BUILD),
        Language::Python => (PYTHON, "plugin.py", PYTHON_BUILD),
    };
    let fill = |text: &str| {
        text.replace("{{build}}", build)
            .replace("{{source}}", source)
            .replace("{{wit-bindgen}}", WIT_BINDGEN)
            .replace("{{name}}", name)
    };
    for (file, text) in COMMON.iter().chain(files) {
        let place = match *file {
            "hooks.wit" => "wit/hooks.wit".to_owned(),
            "plugin.toml" => format!("{name}.toml"),
            // Under their own names these files would have an effect in this repository.
            "Cargo.toml.in" => "Cargo.toml".to_owned(),
            "gitignore" => ".gitignore".to_owned(),
            file => file.to_owned(),
        };
        write(folder.join(place), &fill(text))?;
    }
    for (file, text) in CONTRACT {
        write(folder.join(CONTRACT_FOLDER).join(file), text)?;
    }
    Ok(())
}

/// The name must be valid in all three languages, as a file name, and in WIT.
fn is_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.split('-').all(|word| {
            !word.is_empty() && word.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        })
}

fn write(path: PathBuf, text: &str) -> Result<(), NewError> {
    let written = match path.parent() {
        Some(folder) => std::fs::create_dir_all(folder),
        None => Ok(()),
    };
    let written = written.and_then(|()| {
        let mut file = std::fs::File::create_new(&path)?;
        io::Write::write_all(&mut file, text.as_bytes())
    });
    written.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => NewError::Exists(path),
        _ => NewError::Write { path, source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_everywhere() {
        for name in ["greeter", "a", "rate-limit-2", "x2"] {
            assert!(is_name(name), "{name}");
        }
        let long = "a".repeat(NAME_BYTES_MAX + 1);
        let wrong = ["", "-a", "a-", "a--b", "2a", "A", "a_b", "a.b", "../a", "a/b", "ä", &long];
        for name in wrong {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn all_of_the_contract_is_embedded() -> io::Result<()> {
        let mut files: Vec<_> = std::fs::read_dir("../../wit")?
            .map(|entry| entry.map(|entry| entry.file_name().into_string().unwrap_or_default()))
            .collect::<Result<_, _>>()?;
        // The folders contain older versions.
        files.retain(|name| name.ends_with(".wit"));
        files.sort();
        assert_eq!(files, CONTRACT.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        Ok(())
    }

    #[test]
    fn wit_bindgen_is_the_one_that_is_used_here() -> io::Result<()> {
        let lock = std::fs::read_to_string("../../Cargo.lock")?;
        let own = format!("name = \"wit-bindgen\"\nversion = \"{WIT_BINDGEN}\"\n");
        assert!(lock.contains(&own), "Cargo.lock has another version than {WIT_BINDGEN}");
        Ok(())
    }
}
