//! What overrides the config file.

use std::path::PathBuf;

/// Values that replace those of the config file, and the file. None: the value of the file, or the
/// default.
#[derive(Debug, Default, Clone)]
pub struct Overrides {
    /// The config file; none: all values are the defaults.
    pub file: Option<PathBuf>,
    /// `http.listen`; empty: the value of the file, or the default.
    pub http: Vec<String>,
    /// `resp.listen`, likewise.
    pub resp: Vec<String>,
    /// `admin.listen`, likewise.
    pub admin: Vec<String>,
    /// `plugins.directory`
    pub plugins: Option<PathBuf>,
    /// `plugins.cache_directory`
    pub cache: Option<PathBuf>,
    /// `engine.file`
    pub engine: Option<PathBuf>,
    /// `engine.shards`
    pub shards: Option<usize>,
    /// `cluster.url`
    pub cluster: Option<String>,
    /// `log.filter`
    pub log: Option<String>,
    /// `security.open_to_all`, if it is true.
    pub open_to_all: bool,
}
