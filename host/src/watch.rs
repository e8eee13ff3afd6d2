//! Detects that files changed: those of plugins, the engine's, the configuration with the files that
//! it names, and certificates.
//!
//! What is at a path is compared from one poll to the next, behind links, so it does not matter how
//! it was replaced: written, renamed over, mounted, or by a link that points elsewhere now. The
//! notifications of the system only make this faster. If there are none, because the system's limits
//! are reached or the directory is gone, polling goes on, and they are requested again at each poll.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tracing::{info, warn};

use switchyard_config::file::Stamp;
use switchyard_config::{Config, EngineSource};
use switchyard_middleware::Middleware;
use switchyard_middleware::directory::Listing;
use switchyard_server::live_config::LiveConfig;
use switchyard_telemetry::supervise::{Ended, Supervisor};

/// Files that are reloaded together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// The plugin directory.
    Plugins,
    /// The engine's file.
    Engine,
    /// The config file, and the tokens, passwords and certificates that it names for the admin API
    /// and the backplane.
    Config,
    /// The certificates of listeners.
    Certificates,
}

impl Watched {
    /// All kinds.
    pub const ALL: [Watched; 4] =
        [Watched::Plugins, Watched::Engine, Watched::Config, Watched::Certificates];

    /// The name of the task that watches them.
    fn task(self) -> &'static str {
        match self {
            Watched::Plugins => "watch-plugins",
            Watched::Engine => "watch-engine",
            Watched::Config => "watch-config",
            Watched::Certificates => "watch-certificates",
        }
    }
}

/// What must be reloaded. It holds each kind once, however often it changed.
#[derive(Default)]
pub struct Pending([PendingReload; Watched::ALL.len()]);

#[derive(Default)]
struct PendingReload {
    notify: Notify,
    is_requested: AtomicBool,
}

impl Pending {
    fn of(&self, what: Watched) -> &PendingReload {
        self.0.get(what as usize).expect("there is one for each kind")
    }

    /// These files changed.
    pub fn changed(&self, what: Watched) {
        self.of(what).notify.notify_one();
    }

    /// An operator requested to reload these files.
    pub fn request(&self, what: Watched) {
        self.of(what).is_requested.store(true, Ordering::SeqCst);
        self.changed(what);
    }

    /// An operator requested to reload everything. Certificates follow the configuration, which
    /// names their files.
    pub fn request_all(&self) {
        for what in [Watched::Config, Watched::Engine, Watched::Plugins] {
            self.request(what);
        }
    }

    /// Waits until these files must be reloaded. Returns whether an operator requested it.
    pub async fn next(&self, what: Watched) -> bool {
        let pending = self.of(what);
        pending.notify.notified().await;
        pending.is_requested.swap(false, Ordering::SeqCst)
    }
}

/// However busy a directory is, a change is applied after this many quiet times.
const QUIET_TIMES_MAX: u32 = 10;

/// Watches what the configuration names, and reports changes to `pending`, until the returned value
/// is dropped. Everything is reported once at the start, because it may have changed since it was
/// loaded.
pub fn watch(
    live: &Arc<LiveConfig>,
    middleware: &Arc<Middleware>,
    config_file: Option<&Path>,
    pending: &Arc<Pending>,
    supervisor: &Arc<Supervisor>,
) -> JoinSet<()> {
    let mut watching = JoinSet::new();
    for what in Watched::ALL {
        let (live, middleware) = (live.clone(), middleware.clone());
        let (config_file, pending) = (config_file.map(Path::to_owned), pending.clone());
        watching.spawn(supervisor.clone().keep(what.task(), move || {
            let (events, seen) = mpsc::channel(1);
            let watch = Watch {
                what,
                live: live.clone(),
                middleware: middleware.clone(),
                config_file: config_file.clone(),
                pending: pending.clone(),
                directories: BTreeMap::new(),
                events,
                before: None,
                reported: None,
            };
            watch.run(seen)
        }));
    }
    watching
}

/// Watches the files of one kind.
struct Watch {
    what: Watched,
    live: Arc<LiveConfig>,
    middleware: Arc<Middleware>,
    config_file: Option<PathBuf>,
    pending: Arc<Pending>,
    /// The directories of the files.
    directories: BTreeMap<PathBuf, Directory>,
    /// Gets a notification of the system; those that do not fit are the same.
    events: mpsc::Sender<()>,
    /// What the last poll found.
    before: Option<State>,
    /// What was reported last.
    reported: Option<State>,
}

/// What a poll found.
#[derive(Clone, PartialEq, Eq)]
enum State {
    Files(Vec<Option<Stamp>>),
    /// The content of the plugin directory. None: it is in force, or cannot be read.
    Plugins(Option<Listing>),
}

impl Watch {
    async fn run(mut self, mut seen: mpsc::Receiver<()>) -> Ended {
        let plugins = self.live.config().plugins.clone();
        let mut is_noticed = true;
        loop {
            let polling = tokio::task::spawn_blocking(move || {
                let is_new = self.watch_directories();
                let state = self.look();
                (self, is_new, state)
            });
            let (watch, is_new, state) = polling.await.map_err(|panic| panic.to_string())?;
            self = watch;
            self.found(state, is_noticed || is_new);
            is_noticed = tokio::select! {
                // There is a sender in `self`.
                _ = seen.recv() => {
                    quiet(&mut seen, plugins.debounce).await;
                    true
                }
                () = tokio::time::sleep(plugins.poll_time) => false,
            };
        }
    }

    /// Reports what a poll found, if it changed and is the same as in the poll before, or if the
    /// system notified of a change: a change can be too quick for the clock of the file system.
    fn found(&mut self, state: State, is_noticed: bool) {
        let has_changed = match &state {
            State::Plugins(listing) => listing.is_some(),
            State::Files(_) => self.reported.as_ref() != Some(&state),
        };
        if is_noticed || (has_changed && self.before.as_ref() == Some(&state)) {
            self.reported = Some(state.clone());
            self.pending.changed(self.what);
        }
        self.before = Some(state);
    }

    fn look(&self) -> State {
        match self.what {
            Watched::Plugins => State::Plugins(self.middleware.listing_if_changed()),
            _ => State::Files(self.files().iter().map(|file| Stamp::of(file)).collect()),
        }
    }

    /// The files that the current configuration names.
    fn files(&self) -> Vec<PathBuf> {
        let config = self.live.config();
        match self.what {
            Watched::Plugins => Vec::new(),
            Watched::Engine => engine_file(&config).into_iter().cloned().collect(),
            Watched::Config => self.config_file.iter().chain(&config.files).cloned().collect(),
            Watched::Certificates => {
                let resp = config.resp.as_ref().and_then(|resp| resp.tls.as_ref());
                let tls = config.http.tls.iter().chain(resp);
                tls.flat_map(|tls| [Some(&tls.certificate), Some(&tls.key), tls.client_ca.as_ref()])
                    .flatten()
                    .cloned()
                    .collect()
            }
        }
    }

    /// The directories of the files, each with the names in it that matter; without names, all do.
    fn wanted_directories(&self) -> BTreeMap<PathBuf, BTreeSet<OsString>> {
        let mut wanted = BTreeMap::<_, BTreeSet<OsString>>::new();
        if self.what == Watched::Plugins
            && let Some(directory) = self.middleware.directory()
        {
            wanted.insert(directory.to_owned(), BTreeSet::new());
        }
        for file in self.files() {
            let names = wanted.entry(directory_of(&file).to_owned()).or_default();
            names.extend(file.file_name().map(OsString::from));
            // The link that is swapped for mounted configuration.
            names.insert("..data".into());
        }
        wanted
    }

    /// Requests notifications for the directories that are at these paths now. Returns whether one
    /// of them is new.
    fn watch_directories(&mut self) -> bool {
        let wanted = self.wanted_directories();
        self.directories.retain(|path, directory| wanted.get(path) == Some(&directory.names));
        let mut is_new = false;
        for (path, names) in wanted {
            let directory = self.directories.entry(path.clone()).or_insert_with(|| Directory {
                names,
                watched: None,
                is_problem_logged: false,
            });
            match directory.watch(&path, &self.events) {
                Ok(false) => {}
                Ok(true) => {
                    is_new = true;
                    directory.is_problem_logged = false;
                    let directory = path.display();
                    info!(%directory, what = ?self.what, "changes of files are watched");
                }
                Err(problem) => {
                    if !std::mem::replace(&mut directory.is_problem_logged, true) {
                        let directory = path.display();
                        warn!(%directory, what = ?self.what, problem,
                            "the system does not notify of changes of files: they are polled");
                    }
                }
            }
        }
        is_new
    }
}

/// Waits until there are no more notifications for this long, or ten times as long.
async fn quiet(seen: &mut mpsc::Receiver<()>, debounce: Duration) {
    let quiet = async {
        while tokio::time::timeout(debounce, seen.recv()).await.is_ok_and(|event| event.is_some()) {
        }
    };
    // Elapsed: there was no quiet time.
    let _ = tokio::time::timeout(debounce * QUIET_TIMES_MAX, quiet).await;
}

fn directory_of(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A directory for which notifications are requested.
struct Directory {
    /// The names in it that matter; empty: all.
    names: BTreeSet<OsString>,
    /// The source of notifications, and which directory it is for: it follows a directory that is
    /// renamed. None: there are no notifications.
    watched: Option<(RecommendedWatcher, (u64, u64))>,
    is_problem_logged: bool,
}

impl Directory {
    /// Requests notifications for the directory at this path. False: they are requested already.
    ///
    /// # Errors
    ///
    /// There are none now: why.
    fn watch(&mut self, path: &Path, events: &mpsc::Sender<()>) -> Result<bool, String> {
        let found = identity(path).map_err(|io| io.to_string());
        if let (Some((_, watched)), Ok(found)) = (&self.watched, &found)
            && watched == found
        {
            return Ok(false);
        }
        self.watched = None;
        let found = found?;
        let (names, events, directory) = (self.names.clone(), events.clone(), path.to_owned());
        let concerns = move |event: &notify::Event| {
            !matches!(event.kind, EventKind::Access(_))
                && (names.is_empty()
                    || event.need_rescan()
                    || event.paths.iter().any(|path| {
                        *path == directory
                            || path.file_name().is_some_and(|name| names.contains(name))
                    }))
        };
        let watcher = notify::recommended_watcher(move |event: notify::Result<_>| {
            // An error may mean that events were lost: report a change.
            if event.as_ref().map_or(true, &concerns) {
                // It is full, or the server is ending.
                let _ = events.try_send(());
            }
        });
        let mut watcher = watcher.map_err(|problem| problem.to_string())?;
        watcher.watch(path, RecursiveMode::NonRecursive).map_err(|problem| problem.to_string())?;
        self.watched = Some((watcher, found));
        Ok(true)
    }
}

/// Identifies a directory, to detect another one at the same path.
fn identity(directory: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(directory)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The engine's file, if the engine can be replaced by replacing a file.
fn engine_file(config: &Config) -> Option<&PathBuf> {
    match &config.engine.source {
        EngineSource::File(path) => Some(path),
        EngineSource::Embedded | EngineSource::Native => None,
    }
}
