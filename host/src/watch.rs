//! Sees that the files of plugins and of the engine change.
//!
//! The directories that hold them are watched, not the files, because a file that
//! is replaced is another file. An event is passed on when it has been quiet for
//! a while: who copies a file writes it piece by piece.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tracing::{error, info};

use crate::config::Config;
use crate::server::engine_file;

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// The plugin directory.
    Plugins,
    /// The engine's file.
    Engine,
    /// Both, because somebody asked for it.
    Everything,
}

/// However busy a directory is, a change is acted on after this many quiet times.
const QUIET_TIMES_MAX: u32 = 10;

/// Watches what the configuration names, and says on `changed` what has changed,
/// until what it answers is dropped.
pub fn watch(config: &Config, changed: &mpsc::UnboundedSender<Watched>) -> Vec<RecommendedWatcher> {
    let debounce = config.plugins.debounce;
    let mut watchers = Vec::new();
    let mut add = |what, directory: &Path, file: Option<PathBuf>| match start(
        what,
        directory,
        file,
        debounce,
        changed.clone(),
    ) {
        Ok(watcher) => {
            info!(directory = %directory.display(), ?what, "changes of files are watched");
            watchers.push(watcher);
        }
        Err(problem) => error!(directory = %directory.display(), %problem,
                "changes of files cannot be watched; SIGHUP still reads them again"),
    };
    if let Some(directory) = &config.plugins.directory {
        add(Watched::Plugins, directory, None);
    }
    if let Some(file) = engine_file(config) {
        let directory = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        add(Watched::Engine, directory, file.file_name().map(PathBuf::from));
    }
    watchers
}

fn start(
    what: Watched,
    directory: &Path,
    file: Option<PathBuf>,
    debounce: Duration,
    changed: mpsc::UnboundedSender<Watched>,
) -> notify::Result<RecommendedWatcher> {
    let (seen, events) = mpsc::unbounded_channel();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // An error may mean that events were lost: look.
        let concerns = event.map_or(true, |event| {
            !matches!(event.kind, EventKind::Access(_))
                && file.as_deref().is_none_or(|file| {
                    event.paths.iter().any(|path| path.file_name() == Some(file.as_os_str()))
                })
        });
        if concerns {
            // When nobody listens any more, the server is ending.
            let _ = seen.send(());
        }
    })?;
    watcher.watch(directory, RecursiveMode::NonRecursive)?;
    tokio::spawn(debounced(what, debounce, events, changed));
    Ok(watcher)
}

async fn debounced(
    what: Watched,
    debounce: Duration,
    mut events: mpsc::UnboundedReceiver<()>,
    changed: mpsc::UnboundedSender<Watched>,
) {
    while events.recv().await.is_some() {
        let quiet = async {
            while tokio::time::timeout(debounce, events.recv())
                .await
                .is_ok_and(|event| event.is_some())
            {}
        };
        // Elapsed: it never was quiet.
        let _ = tokio::time::timeout(debounce * QUIET_TIMES_MAX, quiet).await;
        if changed.send(what).is_err() {
            return;
        }
    }
}
