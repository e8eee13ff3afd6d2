//! Sees that the files of plugins and of the engine change.
//!
//! The directories that hold them are watched, not the files, because a file that
//! is replaced is another file. An event is passed on when it has been quiet for
//! a while: who copies a file writes it piece by piece.

use std::collections::BTreeSet;
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
    /// The config file.
    Config,
    /// Files of certificates.
    Certificates,
    /// All of it, because somebody asked for it.
    Everything,
}

/// However busy a directory is, a change is acted on after this many quiet times.
const QUIET_TIMES_MAX: u32 = 10;

/// Watches what the configuration names, and says on `changed` what has changed,
/// until what it answers is dropped.
pub fn watch(
    config: &Config,
    config_file: Option<&Path>,
    changed: &mpsc::UnboundedSender<Watched>,
) -> Vec<RecommendedWatcher> {
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
        // Whatever happens there: files are compared by what is in them, and some
        // are links whose target changes elsewhere in the directory.
        add(Watched::Certificates, directory, None);
    }
    watchers
}

fn directory_of(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
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
                    event.paths.iter().filter_map(|path| path.file_name()).any(|name| {
                        // What mounted configuration is swapped by.
                        name == file.as_os_str() || name == "..data"
                    })
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
