//! Tools for plugin authors that need no running server.

pub mod new;

pub mod check;
pub mod declare;

pub mod conversation;
pub mod play;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use thiserror::Error;

use declare::{DeclareError, OnFailure};
use new::{Language, NewError};
use play::{Play, PlayError};
use switchyard_config::Config;
use switchyard_telemetry::log::LogFormat;
use switchyard_telemetry::log::{Log, LogConfig};

/// Where compiled components are cached.
#[derive(Debug, Default, Clone, Args)]
pub struct CacheArgs {
    /// The directory for compiled components, so that they need not be compiled again. Only the
    /// user who runs this may own it: its contents are executed [default: none].
    #[arg(id = "cache", long = "cache", value_name = "DIR", env = "SWITCHYARD_CACHE")]
    pub directory: Option<PathBuf>,
}

/// Commands for plugin files.
#[derive(Debug, Subcommand)]
pub enum AuthorCommand {
    /// Writes a project for a new plugin, which builds as it is: source, settings, a
    /// conversation to test it with, and a README with the commands.
    New(NewArgs),
    /// Prints the exports and imports of a plugin, and whether the server would accept it.
    ///
    /// Settings are read from NAME.toml next to it, as the server does. Exits with 1 if the server
    /// would refuse it.
    Check(CheckArgs),
    /// Writes the failure policy into a component: whether an item is refused or passes while the
    /// plugin cannot answer.
    ///
    /// The operator's `policy` in the plugin's .toml takes precedence. A Rust plugin can declare
    /// the policy in its source; for other languages, run this after the build.
    Declare(DeclareArgs),
    /// Plays a conversation from a text file, without a server: sends the messages of its clients,
    /// and compares what they receive.
    ///
    /// The plugin is loaded as the server loads it, with the settings in NAME.toml next to it, into
    /// a server without listeners. docs/plugins/testing.md describes the format. Exits with 1 if
    /// something else is received.
    Test(TestArgs),
}

/// The flags of `switchyard plugin new`.
#[derive(Debug, Args)]
pub struct NewArgs {
    /// The plugin's name: lower-case letters, digits and hyphens.
    pub name: String,

    /// Its language.
    #[arg(long)]
    pub lang: Language,

    /// The directory to create, which must be empty or not exist [default: NAME].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// The flags of `switchyard plugin check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The component.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Prints one JSON object instead of text.
    #[arg(long)]
    pub json: bool,

    /// The cache of compiled components.
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// The flags of `switchyard plugin declare`.
#[derive(Debug, Args)]
pub struct DeclareArgs {
    /// The component, which is changed in place.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// What happens to an item while it cannot decide.
    #[arg(long, value_name = "POLICY")]
    pub on_failure: OnFailure,

    /// Its name.
    #[arg(long)]
    pub name: Option<String>,

    /// Its version.
    #[arg(long)]
    pub version: Option<String>,
}

/// The flags of `switchyard plugin test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// The component.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// The conversation.
    #[arg(value_name = "CONVERSATION")]
    pub conversation: PathBuf,

    /// The plugin's settings and limits, in TOML [default: NAME.toml next to it].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Another plugin of the chain, with NAME.toml next to it; may be given several times. The
    /// chain is in the order of the file names, as in a plugin directory.
    #[arg(long, value_name = "FILE")]
    pub with: Vec<PathBuf>,

    /// The timeout of each expected message, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub patience_ms: u64,

    /// The log filter, such as `debug` or `plugin=trace`.
    #[arg(long, value_name = "FILTER", default_value = "warn,plugin=info")]
    pub log: String,

    /// Prints one JSON object instead of text.
    #[arg(long)]
    pub json: bool,

    /// The cache of compiled components.
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// Why the command could not run.
#[derive(Debug, Error)]
pub enum AuthorError {
    /// No project was created.
    #[error(transparent)]
    New(#[from] NewError),
    /// Nothing was declared.
    #[error(transparent)]
    Declare(#[from] DeclareError),
    /// No conversation was played.
    #[error(transparent)]
    Play(#[from] PlayError),
    /// The `--log` filter is invalid.
    #[error("{0}")]
    Log(String),
    /// No thread could be started.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl AuthorError {
    /// Whether the command line is the cause.
    pub fn is_usage(&self) -> bool {
        match self {
            AuthorError::New(error) => error.is_usage(),
            AuthorError::Play(error) => error.is_usage(),
            AuthorError::Declare(DeclareError::Word(_)) => true,
            AuthorError::Declare(_) => false,
            AuthorError::Log(_) => true,
            AuthorError::Io(_) => false,
        }
    }
}

impl AuthorCommand {
    /// Runs the command, and prints its output. Returns whether the result is good.
    ///
    /// # Errors
    ///
    /// The command could not run.
    pub fn run(&self) -> Result<bool, AuthorError> {
        match self {
            AuthorCommand::New(args) => new(args),
            AuthorCommand::Check(args) => check(args),
            AuthorCommand::Declare(args) => declare(args),
            AuthorCommand::Test(args) => test(args),
        }
    }
}

fn new(NewArgs { name, lang, dir }: &NewArgs) -> Result<bool, AuthorError> {
    let folder = dir.clone().unwrap_or_else(|| PathBuf::from(name));
    new::new(name, *lang, &folder)?;
    say(&format!("{} is written; its README.md says how to go on", folder.display()));
    Ok(true)
}

fn check(CheckArgs { file, json, cache }: &CheckArgs) -> Result<bool, AuthorError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let _entered = runtime.enter();
    let report = check::check(file, cache.directory.as_deref());
    match json {
        true => say(&report.json().to_string()),
        false => say(&report.text()),
    }
    Ok(report.is_good())
}

fn declare(args: &DeclareArgs) -> Result<bool, AuthorError> {
    let DeclareArgs { file, on_failure, name, version } = args;
    declare::declare(file, *on_failure, name.as_deref(), version.as_deref())?;
    Ok(true)
}

fn test(args: &TestArgs) -> Result<bool, AuthorError> {
    let TestArgs { file, conversation, config, with, patience_ms, log, json, cache } = args;
    let default = Config::default().log;
    let flush_time = default.flush_time;
    let log = LogConfig { filter: log.clone(), format: LogFormat::Text, ..default };
    let log = Log::start(&log).map_err(AuthorError::Log)?;
    let play = Play {
        plugin: file,
        config: config.as_deref(),
        with,
        conversation,
        cache: cache.directory.as_deref(),
        patience: Duration::from_millis(*patience_ms),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let played = runtime.block_on(play.run());
    // Plugin calls on a timer are not waited for.
    runtime.shutdown_background();
    // Log lines come before the result.
    let _whether_or_not = log.flush(flush_time);
    match (&played, json) {
        (Ok(played), true) => say(&played.json().to_string()),
        (Ok(played), false) => say(&played.text()),
        (Err(error), true) => say(&error.json().to_string()),
        (Err(_), false) => {}
    }
    Ok(played?.passed())
}

/// Output that `| head` does not read is not an error.
fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}
