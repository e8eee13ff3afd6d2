//! Watches the files of plugins and of the engine.
//!
//! The directories are watched, not the files, because a file that is replaced is another file.
//! Events are debounced, because a file that is copied is written in pieces.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::info;

use switchyard_config::{Config, EngineSource};
use switchyard_middleware::Middleware;
use switchyard_telemetry::supervise::{Ended, Supervisor};

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// The plugin directory.
    Plugins,
    /// The engine's file.
    Engine,
    /// The config file.
    Config,
    /// Files of certificates.
    Certificates,
    /// Everything, because an operator requested it.
    Everything,
}

impl Watched {
    /// The name of the task that watches it.
    fn task(self) -> &'static str {
        match self {
            Watched::Plugins => "watch-plugins",
            Watched::Engine => "watch-engine",
            Watched::Config => "watch-config",
            Watched::Certificates | Watched::Everything => "watch-certificates",
        }
    }
}

/// However busy a directory is, a change is applied after this many quiet times.
const QUIET_TIMES_MAX: u32 = 10;

/// Watches what the configuration names, and sends changes on `changed`, until the returned value
/// is dropped.
pub fn watch(
    config: &Config,
    config_file: Option<&Path>,
    changed: &mpsc::UnboundedSender<Watched>,
    supervisor: &Arc<Supervisor>,
) -> JoinSet<()> {
    let debounce = config.plugins.debounce;
    let mut watching = JoinSet::new();
    let mut add = |what: Watched, directory: &Path, file: Option<PathBuf>| {
        let place = Arc::new(Place { what, directory: directory.to_owned(), file, debounce });
        let changed = changed.clone();
        let mut is_first = true;
        watching.spawn(supervisor.clone().keep(what.task(), move || {
            // Changes before the watch began must not be missed. The engine is not included at the
            // start, because it takes seconds to compile it only to see that it is unchanged.
            let is_at_start = std::mem::take(&mut is_first);
            let is_looked_at = !is_at_start || matches!(what, Watched::Plugins | Watched::Config);
            place.clone().watch(changed.clone(), is_looked_at)
        }));
    };
    if let Some(directory) = &config.plugins.directory {
        add(Watched::Plugins, directory, None);
    }
    if let Some(file) = engine_file(config) {
        add(Watched::Engine, directory_of(file), file.file_name().map(PathBuf::from));
    }
    if let Some(file) = config_file {
        add(Watched::Config, directory_of(file), file.file_name().map(PathBuf::from));
    }
    let resp = config.resp.as_ref().and_then(|resp| resp.tls.as_ref());
    let tls = config.http.tls.iter().chain(resp);
    let directories: BTreeSet<&Path> = tls
        .flat_map(|tls| [Some(&tls.certificate), Some(&tls.key), tls.client_ca.as_ref()])
        .flatten()
        .map(|file| directory_of(file))
        .collect();
    for directory in directories {
        // Any event in the directory counts: files are compared by content, and some are links
        // whose target changes elsewhere in the directory.
        add(Watched::Certificates, directory, None);
    }
    watching
}

fn directory_of(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A watched directory.
struct Place {
    what: Watched,
    directory: PathBuf,
    /// The file in it; none: the whole directory.
    file: Option<PathBuf>,
    debounce: Duration,
}

impl Place {
    /// Reports changes, until they can no longer be detected; and, if `is_looked_at`, reports once
    /// at the start.
    async fn watch(
        self: Arc<Place>,
        changed: mpsc::UnboundedSender<Watched>,
        is_looked_at: bool,
    ) -> Ended {
        let directory = self.directory.display();
        let cannot = |problem: String| format!("{directory} cannot be watched: {problem}");
        let watched = identity(&self.directory).map_err(|io| cannot(io.to_string()))?;
        let (seen, mut events) = mpsc::unbounded_channel();
        let _watcher = self.start(seen).map_err(|problem| cannot(problem.to_string()))?;
        info!(%directory, what = ?self.what, "changes of files are watched");
        if is_looked_at {
            let _the_server_is_ending = changed.send(self.what);
        }
        let debounce = self.debounce;
        while events.recv().await.is_some() {
            let quiet = async {
                while tokio::time::timeout(debounce, events.recv())
                    .await
                    .is_ok_and(|event| event.is_some())
                {}
            };
            // Elapsed: there was no quiet time.
            let _ = tokio::time::timeout(debounce * QUIET_TIMES_MAX, quiet).await;
            let _the_server_is_ending = changed.send(self.what);
            // The directory itself is watched, even if it was renamed.
            if identity(&self.directory).ok() != Some(watched) {
                return Err(format!("{directory} is not the directory that was watched"));
            }
        }
        Err(cannot("the system does not say any more what changed".to_owned()))
    }

    fn start(&self, seen: mpsc::UnboundedSender<()>) -> notify::Result<RecommendedWatcher> {
        let (directory, file) = (self.directory.clone(), self.file.clone());
        let concerns = move |event: notify::Event| {
            !matches!(event.kind, EventKind::Access(_))
                && file.as_deref().is_none_or(|file| {
                    event.paths.iter().any(|path| {
                        // The link that is swapped for mounted configuration.
                        let names = [file.as_os_str(), "..data".as_ref()];
                        *path == directory
                            || path.file_name().is_some_and(|name| names.contains(&name))
                    })
                })
        };
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<_>| {
            // An error may mean that events were lost: report a change.
            if event.map_or(true, &concerns) {
                // The receiver is dropped when the server is ending.
                let _ = seen.send(());
            }
        })?;
        watcher.watch(&self.directory, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }
}

/// Polls the plugin directory, and reports on `changed` when it has a change that was not applied
/// and has stayed the same from one poll to the next. This detects a directory that was replaced,
/// and files behind links; and what could not be read is read again.
pub async fn poll_plugins(
    middleware: Arc<Middleware>,
    time: Duration,
    changed: mpsc::UnboundedSender<Watched>,
) {
    if middleware.directory().is_none() {
        return std::future::pending().await;
    }
    let mut before = None;
    loop {
        tokio::time::sleep(time).await;
        let looking = middleware.clone();
        // A panic has been logged, and the poll is repeated.
        let listing = tokio::task::spawn_blocking(move || looking.listing_if_changed()).await;
        let listing = listing.ok().flatten();
        if listing.is_some() && listing == before && changed.send(Watched::Plugins).is_err() {
            // The server is ending, and this task with it.
            return std::future::pending().await;
        }
        before = listing;
    }
}

/// Identifies a directory, to detect another one of the same name.
fn identity(directory: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(directory)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Whether this engine can be replaced by replacing a file.
fn engine_file(config: &Config) -> Option<&std::path::Path> {
    match &config.engine.source {
        EngineSource::File(path) => Some(path),
        EngineSource::Embedded | EngineSource::Native => None,
    }
}
