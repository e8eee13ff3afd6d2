//! The database: what is asked of it, and what becomes of its errors.
//!
//! A damaged file can make a database panic. Each call is contained, so that this is an error as any
//! other.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fjall::config::CompressionPolicy;
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode,
};

/// The directory of the database, inside that of the store.
const DIRECTORY: &str = "database";

/// Blocks that were read lately. Everything is read once, at the start.
const CACHE_BYTES: u64 = 1 << 20;
/// What is written to files of its own when it is so much; before, it is in memory and in the log.
const MEMTABLE_BYTES: u64 = 8 << 20;
const SMALL_MEMTABLE_BYTES: u64 = 2 << 20;
/// The size of the logs: the least that the database accepts.
const LOGS_BYTES: u64 = 64 << 20;

/// The tables of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Streams,
    Blocks,
    Answers,
}

/// Why the database did not do what was asked.
#[derive(Debug)]
pub(crate) enum DiskError {
    /// The disk is full, or not permitted, or another process has the files.
    Io(io::Error),
    /// A file has not what was written.
    Damaged(String),
    /// It needs to be opened again.
    Other(String),
}

impl std::fmt::Display for DiskError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DiskError::Io(error) => error.fmt(formatter),
            DiskError::Damaged(problem) | DiskError::Other(problem) => problem.fmt(formatter),
        }
    }
}

pub(crate) struct Disk {
    database: Database,
    streams: Keyspace,
    blocks: Keyspace,
    answers: Keyspace,
}

/// Changes that are made together.
pub(crate) struct Batch {
    batch: OwnedWriteBatch,
    /// The bytes of keys and values.
    pub bytes: usize,
}

impl Disk {
    /// Opens the database in the directory of a store, or makes it.
    pub fn open(directory: &Path) -> Result<Disk, DiskError> {
        contained(|| {
            let builder = Database::builder(path(directory));
            let database = builder
                .cache_size(CACHE_BYTES)
                .worker_threads(1)
                .max_journaling_size(LOGS_BYTES)
                .open()?;
            let options = |memtable| {
                let plain = CompressionPolicy::all(CompressionType::None);
                move || {
                    KeyspaceCreateOptions::default()
                        .max_memtable_size(memtable)
                        .data_block_compression_policy(plain.clone())
                }
            };
            Ok(Disk {
                streams: database.keyspace("streams", options(SMALL_MEMTABLE_BYTES))?,
                blocks: database.keyspace("blocks", options(MEMTABLE_BYTES))?,
                answers: database.keyspace("answers", options(SMALL_MEMTABLE_BYTES))?,
                database,
            })
        })
    }

    /// Renames the files, so that they are not read again. Returns where they are.
    pub fn set_aside(directory: &Path, name: &str) -> io::Result<PathBuf> {
        let from = path(directory);
        let to = (0..).map(|number| match number {
            0 => directory.join(format!("{DIRECTORY}.{name}")),
            _ => directory.join(format!("{DIRECTORY}.{name}-{number}")),
        });
        for to in to.take(1_000) {
            if !to.exists() {
                fs::rename(&from, &to)?;
                return Ok(to);
            }
        }
        Err(io::Error::from(io::ErrorKind::AlreadyExists))
    }

    /// Removes the files.
    pub fn remove_files(directory: &Path) -> io::Result<()> {
        fs::remove_dir_all(path(directory))
    }

    /// Whether there are files of a database.
    pub fn exists(directory: &Path) -> bool {
        path(directory).exists()
    }

    /// Calls `with` for each value of a table, or of those whose key begins so.
    pub fn each(
        &self,
        table: Table,
        prefix: &[u8],
        mut with: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), DiskError> {
        contained(|| {
            for item in self.table(table).prefix(prefix) {
                let (key, value) = item.into_inner()?;
                with(&key, &value);
            }
            Ok(())
        })
    }

    pub fn batch(&self) -> Batch {
        Batch { batch: self.database.batch(), bytes: 0 }
    }

    pub fn insert(&self, batch: &mut Batch, table: Table, key: &[u8], value: Vec<u8>) {
        batch.bytes += key.len() + value.len();
        batch.batch.insert(self.table(table), key, value);
    }

    pub fn remove(&self, batch: &mut Batch, table: Table, key: &[u8]) {
        batch.bytes += key.len();
        batch.batch.remove(self.table(table), key);
    }

    /// Makes the changes. They are in the operating system then, and on disk after `sync`.
    pub fn commit(&self, batch: Batch) -> Result<(), DiskError> {
        contained(|| batch.batch.commit())
    }

    /// Waits until everything is on disk.
    pub fn sync(&self) -> Result<(), DiskError> {
        contained(|| self.database.persist(PersistMode::SyncData))
    }

    /// The size of the files.
    pub fn bytes(&self) -> u64 {
        contained(|| self.database.disk_space()).unwrap_or(0)
    }

    /// Closes it.
    pub fn close(self) {
        let _whether_or_not = contained(move || {
            drop(self);
            Ok(())
        });
    }

    fn table(&self, table: Table) -> &Keyspace {
        match table {
            Table::Streams => &self.streams,
            Table::Blocks => &self.blocks,
            Table::Answers => &self.answers,
        }
    }
}

fn path(directory: &Path) -> PathBuf {
    directory.join(DIRECTORY)
}

fn contained<T>(call: impl FnOnce() -> fjall::Result<T>) -> Result<T, DiskError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(error.into()),
        Err(_panic) => Err(DiskError::Damaged("the database panicked".to_owned())),
    }
}

impl From<fjall::Error> for DiskError {
    fn from(error: fjall::Error) -> DiskError {
        match error {
            fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
                match is_of_system(&error) {
                    true => DiskError::Io(error),
                    false => DiskError::Damaged(error.to_string()),
                }
            }
            fjall::Error::Locked => DiskError::Other("another process uses it".to_owned()),
            fjall::Error::Poisoned => DiskError::Other("an earlier write failed".to_owned()),
            error => DiskError::Damaged(error.to_string()),
        }
    }
}

/// Whether an error is of the operating system or the disk, and not one that a wrong number in a file
/// causes.
fn is_of_system(error: &io::Error) -> bool {
    use io::ErrorKind::{
        FileTooLarge, OutOfMemory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    const EIO: i32 = 5;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(
        error.kind(),
        FileTooLarge
            | OutOfMemory
            | PermissionDenied
            | QuotaExceeded
            | ReadOnlyFilesystem
            | StorageFull
    ) || matches!(error.raw_os_error(), Some(EIO | ENFILE | EMFILE))
}
