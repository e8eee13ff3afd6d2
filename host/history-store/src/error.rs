//! Why the store cannot be used.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why the store cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A file or the directory cannot be used.
    #[error("history.directory: cannot {action} {path}")]
    Io {
        /// What failed: read, write, create.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else than a directory.
    #[error("history.directory: {0} is not a directory")]
    NotADirectory(PathBuf),
    /// Another server uses it.
    #[error(
        "history.directory: another process uses {0}; each server needs a directory of its own"
    )]
    Locked(PathBuf),
    /// The thread cannot be started.
    #[error("history.directory: cannot start the thread that writes")]
    Thread(#[source] io::Error),
}

impl OpenError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
        move |source| OpenError::Io { action, path: path.to_owned(), source }
    }
}

/// Why not everything was written when the server ended: the next start is as after a crash.
#[derive(Debug, Error)]
pub enum NotClean {
    /// It took too long.
    #[error("it took too long")]
    Late,
    /// The disk could not be written.
    #[error("{0}")]
    Failed(String),
}
