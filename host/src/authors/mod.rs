//! For who writes a plugin: what can be known of it without a server.

pub mod check;

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What can be done with the file of a plugin.
#[derive(Debug, Subcommand)]
pub enum AuthorCommand {
    /// Says what a plugin exports and imports, and whether the server would take it.
    ///
    /// Settings are read from NAME.toml beside it, as the server does. Ends with 1
    /// when the server would refuse it.
    Check(CheckArgs),
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
}

impl AuthorCommand {
    /// Does it, and prints what there is to say. Whether all is well.
    ///
    /// # Errors
    ///
    /// There is no thread to be had.
    pub fn run(&self) -> std::io::Result<bool> {
        let AuthorCommand::Check(CheckArgs { file, json }) = self;
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let _entered = runtime.enter();
        let report = check::check(file);
        match json {
            true => println!("{}", report.json()),
            false => println!("{}", report.text()),
        }
        Ok(report.refused.is_none())
    }
}
