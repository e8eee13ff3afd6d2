//! A directory with compiled components, so that they need not be compiled again.
//!
//! It contains native code that the server runs: only the server's user may be able to write there.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use rustix::process::geteuid;
use thiserror::Error;
use wasmtime::{Cache, CacheConfig};

/// The permissions of others, which the directory must not grant.
const OF_OTHERS: u32 = 0o077;

/// Why a directory is not used.
#[derive(Debug, Error)]
pub enum CacheError {
    /// It cannot be created or written to. The server can run without it.
    #[error("it cannot be used: {0}")]
    Unusable(#[from] io::Error),
    /// Other users may be able to put code there. The server must not use it.
    #[error("{0}")]
    Unsafe(String),
}

/// Opens a directory, and creates it if it does not exist. When it holds more than `bytes_max`, the
/// files that were not used for the longest time are removed after a while.
///
/// # Errors
///
/// It does not belong to the server's user alone, or it cannot be written to.
pub fn open(directory: &Path, bytes_max: u64) -> Result<Cache, CacheError> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    let directory = fs::canonicalize(directory)?;
    let metadata = fs::metadata(&directory)?;
    let (owner, own) = (metadata.uid(), geteuid().as_raw());
    if owner != own {
        return Err(CacheError::Unsafe(format!(
            "it belongs to user {owner} and the server runs as user {own}: code in it would be \
             run with the rights of the server"
        )));
    }
    if metadata.mode() & OF_OTHERS != 0 {
        return Err(CacheError::Unsafe(format!(
            "its mode is {:04o}, which lets other users in: it must be 0700",
            metadata.mode() & 0o7777
        )));
    }
    // A failure to write later is ignored: the component is compiled again.
    tempfile::tempfile_in(&directory)?;
    let mut config = CacheConfig::new();
    config.with_directory(directory).with_files_total_size_soft_limit(bytes_max);
    // Files are compressed only once: recompressing them takes minutes of processor time and saves
    // a tenth.
    config.with_optimized_compression_usage_counter_threshold(u64::MAX);
    Cache::new(config).map_err(|error| CacheError::Unusable(io::Error::other(error.to_string())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_that_is_missing_is_made_for_its_owner_alone() {
        let home = tempfile::tempdir().expect("there is room");
        let directory = home.path().join("compiled");
        let cache = open(&directory, 1 << 20).expect("it is made");
        assert_eq!(cache.directory(), &fs::canonicalize(&directory).expect("it is there"));
        assert_eq!(fs::metadata(&directory).expect("it is there").mode() & 0o777, 0o700);
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_unsafe() {
        let home = tempfile::tempdir().expect("there is room");
        fs::set_permissions(home.path(), PermissionsExt::from_mode(0o720)).expect("it is ours");
        let error = open(home.path(), 1 << 20).expect_err("others may write");
        assert!(matches!(&error, CacheError::Unsafe(text) if text.contains("0720")), "{error}");
    }

    #[test]
    fn a_file_in_its_place_is_unusable() {
        let file = tempfile::NamedTempFile::new().expect("there is room");
        let error = open(file.path(), 1 << 20).expect_err("it is a file");
        assert!(matches!(error, CacheError::Unusable(_) | CacheError::Unsafe(_)), "{error}");
        let missing = file.path().join("below");
        let error = open(&missing, 1 << 20).expect_err("it is below a file");
        assert!(matches!(error, CacheError::Unusable(_)), "{error}");
    }
}
