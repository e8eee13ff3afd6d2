//! For who writes a plugin: what can be known of it without a server.

pub mod new;

pub mod check;
pub mod declare;

pub mod conversation;
mod in_memory;
pub mod play;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use thiserror::Error;

use crate::cli::CacheArgs;
use crate::config::{Config, LogFormat};
use crate::log::{Log, LogConfig};
use declare::{DeclareError, OnFailure};
use new::{Language, NewError};
use play::{Play, PlayError};

/// What can be done with the file of a plugin.
#[derive(Debug, Subcommand)]
pub enum AuthorCommand {
    /// Writes a project for a new plugin, which builds as it is: source, settings, a
    /// conversation to test it with, and a README with the commands.
    New(NewArgs),
    /// Says what a plugin exports and imports, and whether the server would take it.
    ///
    /// Settings are read from NAME.toml beside it, as the server does. Ends with 1
    /// when the server would refuse it.
    Check(CheckArgs),
    /// Writes into a component how it fails: whether what it would be asked about is
    /// refused or passes while it cannot answer.
    ///
    /// The operator's `policy` in the plugin's .toml comes first. A plugin in Rust can
    /// declare it in its source; run this behind the build of one in another language.
    Declare(DeclareArgs),
    /// Plays a conversation that is written in a text file, without a server: says
    /// what its clients say, and compares what comes.
    ///
    /// The plugin is loaded as the server loads it, with the settings in NAME.toml
    /// beside it, into a server without listeners. docs/plugins/testing.md explains
    /// how conversations are written. Ends with 1 when something else comes.
    Test(TestArgs),
}

/// The flags of `switchyard plugin new`.
#[derive(Debug, Args)]
pub struct NewArgs {
    /// What the plugin is called: lower-case letters, digits and hyphens.
    pub name: String,

    /// What it is written in.
    #[arg(long)]
    pub lang: Language,

    /// The folder to write, which must be empty or not there [default: NAME].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// The flags of `switchyard plugin check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The component.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Prints one JSON object instead of lines for people.
    #[arg(long)]
    pub json: bool,

    /// Where compiled components are kept.
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// The flags of `switchyard plugin declare`.
#[derive(Debug, Args)]
pub struct DeclareArgs {
    /// The component, which is changed in place.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// What holds while it cannot answer.
    #[arg(long, value_name = "POLICY")]
    pub on_failure: OnFailure,

    /// What its author calls it.
    #[arg(long)]
    pub name: Option<String>,

    /// Its author's version.
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

    /// The plugin's settings and limits, in TOML [default: NAME.toml beside it].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Another plugin of the chain, with NAME.toml beside it; may be given several
    /// times. The chain is in the order of the files' names, as in a plugin directory.
    #[arg(long, value_name = "FILE")]
    pub with: Vec<PathBuf>,

    /// How long what must come is waited for, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub patience_ms: u64,

    /// What is logged, such as `debug` or `plugin=trace`.
    #[arg(long, value_name = "FILTER", default_value = "warn,plugin=info")]
    pub log: String,

    /// Prints one JSON object instead of lines for people.
    #[arg(long)]
    pub json: bool,

    /// Where compiled components are kept.
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// Why something could not be done at all.
#[derive(Debug, Error)]
pub enum AuthorError {
    /// There is no project.
    #[error(transparent)]
    New(#[from] NewError),
    /// Nothing was declared.
    #[error(transparent)]
    Declare(#[from] DeclareError),
    /// No conversation was played.
    #[error(transparent)]
    Play(#[from] PlayError),
    /// `--log` is no filter.
    #[error("{0}")]
    Log(String),
    /// There is no thread to be had.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl AuthorError {
    /// Whether the command line is the reason.
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
    /// Does it, and prints what there is to say. Whether all is well.
    ///
    /// # Errors
    ///
    /// It could not be done at all.
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
    Ok(report.refused.is_none())
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
    // What a plugin does on a timer is not waited for.
    runtime.shutdown_background();
    // What was logged comes before what came of it.
    let _whether_or_not = log.flush(flush_time);
    match (&played, json) {
        (Ok(played), true) => say(&played.json().to_string()),
        (Ok(played), false) => say(&played.text()),
        (Err(error), true) => say(&error.json().to_string()),
        (Err(_), false) => {}
    }
    Ok(played?.passed())
}

/// What `| head` does not take is not missed.
fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}
