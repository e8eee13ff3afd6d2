//! `switchyard completions` and `switchyard man`, generated from the definitions of the arguments,
//! and `switchyard config`, generated from the settings.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use switchyard_config::{Config, Overrides};

/// The flags of `switchyard completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// Which shell they are for.
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// The flags of `switchyard man`.
#[derive(Debug, Clone, Args)]
pub struct ManArgs {
    /// Writes one page for each command into this directory, which is created if it does not exist,
    /// instead of the page of `switchyard` itself to standard output.
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
}

/// The flags of `switchyard config`.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// The config file whose settings are printed, completed by the defaults [default: none].
    #[arg(long, value_name = "FILE", visible_alias = "config")]
    pub file: Option<PathBuf>,
}

/// Writes the settings to standard output.
///
/// # Errors
///
/// The config file is invalid, or standard output is closed.
pub fn config(args: &ConfigArgs) -> anyhow::Result<()> {
    let config = Config::load(&Overrides { file: args.file.clone(), ..Overrides::default() })?;
    io::stdout().write_all(config.show().as_bytes())?;
    Ok(())
}

/// Writes completions to standard output.
///
/// # Errors
///
/// Standard output is closed.
pub fn completions(args: &CompletionsArgs, mut command: Command) -> anyhow::Result<()> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    io::stdout().write_all(&script)?;
    Ok(())
}

/// Writes the manual.
///
/// # Errors
///
/// Standard output is closed, or the directory cannot be written to.
pub fn man(args: &ManArgs, command: Command) -> anyhow::Result<()> {
    let command = command.disable_help_subcommand(true);
    match &args.directory {
        Some(directory) => std::fs::create_dir_all(directory)
            .and_then(|()| clap_mangen::generate_to(command, directory))
            .with_context(|| format!("cannot write to {}", directory.display())),
        None => {
            let mut page = Vec::new();
            Man::new(command).render(&mut page)?;
            io::stdout().write_all(&page)?;
            Ok(())
        }
    }
}
