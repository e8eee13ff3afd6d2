//! Opens the store, and what the server says to it while it runs.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{error, info, warn};

use crate::disk::{Disk, DiskError};
use crate::error::{NotClean, OpenError};
use crate::load::{Loaded, load};
use crate::memory::Memory;
use crate::state::{EPOCHS_RESERVED_US, State, Unusable};
use crate::status::Status;
use crate::writer::{Shared, Writer};

/// Held while the directory is used.
const LOCK_FILE: &str = "lock";

/// How the store works.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where its files are. It is made if its parent exists.
    pub directory: PathBuf,
    /// How often changes are written.
    pub flush_time: Duration,
    /// How much is read from memory and written at once.
    pub batch_bytes_max: usize,
}

/// A store that is open. Dropping it does not close it.
pub struct Store {
    shared: Arc<Shared>,
    memory: Arc<dyn Memory>,
    closed: Mutex<std::sync::mpsc::Receiver<Result<(), NotClean>>>,
}

impl Store {
    /// Opens the store, reads it into `memory`, and begins to write. Takes as long as reading does.
    ///
    /// # Errors
    ///
    /// The directory cannot be used. A damaged file is no error: it is logged and set aside.
    pub fn open(options: Options, memory: Arc<dyn Memory>) -> Result<Store, OpenError> {
        let begun = Instant::now();
        let directory = options.directory.as_path();
        make_directory(directory)?;
        let lock = lock(directory)?;
        let name = format!("damaged-{}", memory.now_us() / 1_000_000);
        let state = read_state(directory, &name)?;
        let floor = state.map_or(0, |state| state.epochs_below);
        memory.set_epoch_floor(floor);
        let epochs_below = floor.max(memory.now_us()).saturating_add(EPOCHS_RESERVED_US);
        let running = State { epochs_below, clean: None };
        running.write(directory).map_err(OpenError::io("write", &directory.join("state")))?;
        let disk = open_disk(directory, &name)?;
        let clean = state.and_then(|state| state.clean);
        let is_clean = clean.is_some();
        let Loaded { index, summary, dropped, problem } = load(&disk, clean, &*memory);
        let shared = Arc::new(Shared::new(options.flush_time, summary));
        let mut writer = Writer {
            directory: directory.to_owned(),
            batch_bytes_max: options.batch_bytes_max,
            memory: memory.clone(),
            shared: shared.clone(),
            state: running,
            disk: Some(disk),
            index,
            is_new: false,
            removed: dropped,
            _lock: lock,
        };
        if let Some(problem) = problem {
            writer.replace(&name, &problem).map_err(OpenError::io("rename", directory))?;
        }
        let (closing, closed) = std::sync::mpsc::channel();
        thread::Builder::new()
            .name("history-store".to_owned())
            .spawn(move || writer.run(&closing))
            .map_err(OpenError::Thread)?;
        info!(
            directory = %directory.display(),
            is_clean,
            channels = summary.continued + summary.renewed,
            renewed = summary.renewed,
            dropped = summary.dropped,
            messages = summary.messages,
            bytes = summary.bytes,
            keys = summary.keys,
            ms = begun.elapsed().as_millis() as u64,
            "the history was read"
        );
        Ok(Store { shared, memory, closed: Mutex::new(closed) })
    }

    /// Changes how often changes are written.
    pub fn set_flush_time(&self, time: Duration) {
        self.shared.set_flush_time(time);
    }

    /// The state of the store.
    pub fn status(&self) -> Status {
        Status { pending: self.memory.pending(), ..self.shared.status() }
    }

    /// Writes everything, and closes the store. From then on memory retains nothing.
    ///
    /// # Errors
    ///
    /// Not everything was written in this time, or the disk failed. The next start is as after a
    /// crash.
    pub fn close(&self, time: Duration) -> Result<(), NotClean> {
        self.shared.close();
        self.closed.lock().recv_timeout(time).unwrap_or(Err(NotClean::Late))
    }
}

fn make_directory(directory: &Path) -> Result<(), OpenError> {
    // Others have no business with what clients sent.
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let is_directory = directory.metadata().map(|metadata| metadata.is_dir());
            match is_directory.map_err(OpenError::io("read", directory))? {
                true => Ok(()),
                false => Err(OpenError::NotADirectory(directory.to_owned())),
            }
        }
        Err(error) => Err(OpenError::io("create", directory)(error)),
    }
}

fn lock(directory: &Path) -> Result<File, OpenError> {
    let path = directory.join(LOCK_FILE);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(OpenError::io("write", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(directory.to_owned())),
        Err(TryLockError::Error(error)) => Err(OpenError::io("lock", &path)(error)),
    }
}

/// The state of the last stop. None: it is not known.
fn read_state(directory: &Path, name: &str) -> Result<Option<State>, OpenError> {
    let path = directory.join("state");
    let problem = match State::read(directory) {
        Ok(state) => return Ok(Some(state)),
        Err(Unusable::Missing) => {
            if Disk::exists(directory) {
                warn!(path = %path.display(), "the state of the history is missing: channels go \
                       on in new epochs");
            }
            return Ok(None);
        }
        Err(Unusable::Io(error)) => return Err(OpenError::io("read", &path)(error)),
        Err(Unusable::Version) => {
            // The database is of that version, too.
            if Disk::exists(directory) {
                Disk::set_aside(directory, name).map_err(OpenError::io("rename", directory))?;
            }
            "it is of another version of the server"
        }
        Err(Unusable::Damaged) => "it is damaged",
    };
    State::set_aside(directory, name).map_err(OpenError::io("rename", &path))?;
    error!(path = %path.display(), problem, set_aside = name, "the state of the history was set aside");
    Ok(None)
}

fn open_disk(directory: &Path, name: &str) -> Result<Disk, OpenError> {
    let problem = match Disk::open(directory) {
        Ok(disk) => return Ok(disk),
        Err(DiskError::Io(error)) => return Err(OpenError::io("open", directory)(error)),
        Err(problem) => problem,
    };
    let io = |source| OpenError::Io { action: "rename", path: directory.to_owned(), source };
    let aside = Disk::set_aside(directory, name).map_err(io)?;
    error!(%problem, set_aside = %aside.display(), "the history on disk was set aside");
    Disk::open(directory).map_err(|problem| match problem {
        DiskError::Io(source) => {
            OpenError::Io { action: "open", path: directory.to_owned(), source }
        }
        problem => OpenError::Io {
            action: "open",
            path: directory.to_owned(),
            source: io::Error::other(problem.to_string()),
        },
    })
}
