//! `switchyard plugin test`: plays a conversation with plugins on a server without listeners, and
//! reports each step.
//!
//! It stops at the first difference, because later results mean little.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use thiserror::Error;

use super::conversation::notation::{Action, Conversation, Step, SyntaxError};
use super::conversation::stage::Stage;
use switchyard_config::file::{self, COMPONENT_BYTES_MAX, SETTINGS_BYTES_MAX};
use switchyard_config::{Config, ConfigError};
use switchyard_middleware::changes::ChangeError;
use switchyard_middleware::stats::Failure;
use switchyard_server::in_memory::InMemoryServer;

/// The conversation to play, with its plugins.
#[derive(Debug)]
pub struct Play<'a> {
    /// The plugin's component.
    pub plugin: &'a Path,
    /// Its settings; none: those in its file.
    pub config: Option<&'a Path>,
    /// Further plugins, with their settings.
    pub with: &'a [PathBuf],
    /// The conversation.
    pub conversation: &'a Path,
    /// The cache of compiled components; none: as the conversation's config says.
    pub cache: Option<&'a Path>,
    /// The timeout of each expected message.
    pub patience: Duration,
}

/// The result.
#[derive(Debug, Default)]
pub struct Played {
    /// The plugins, in the order of the chain.
    pub plugins: Vec<String>,
    /// Every step of the conversation.
    pub steps: Vec<PlayedStep>,
    /// What was wrong after the last step.
    pub at_end: Option<String>,
}

/// What came of a step.
#[derive(Debug)]
pub struct PlayedStep {
    /// Its lines, each with its number.
    pub lines: Vec<(usize, String)>,
    /// How it went.
    pub outcome: Outcome,
}

/// How a step went.
#[derive(Debug)]
pub enum Outcome {
    /// As expected, with what was received.
    Passed(Vec<String>),
    /// It failed.
    Failed(String),
    /// It was not reached.
    NotPlayed,
}

/// Why a conversation was not played.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages say what they are")]
pub enum PlayError {
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}: {error}", .path.display())]
    Syntax { path: PathBuf, error: SyntaxError },
    #[error("a plugin is a file NAME.wasm, and {} is not", .0.display())]
    NotAPlugin(PathBuf),
    #[error("the conversation's config: {0}")]
    Config(#[from] ConfigError),
    #[error("the conversation's config: there are no other nodes in a test, nor a cluster.url")]
    Cluster,
    #[error("{0}")]
    Slot(ChangeError),
    #[error("the server would refuse it: {0}")]
    Refused(ChangeError),
    #[error("{0:#}")]
    Server(anyhow::Error),
}

impl PlayError {
    /// Whether the command line is the cause.
    pub fn is_usage(&self) -> bool {
        !matches!(self, PlayError::Refused(_) | PlayError::Server(_))
    }

    /// As JSON: nothing was played.
    pub fn json(&self) -> serde_json::Value {
        let line = match self {
            PlayError::Syntax { error, .. } => Some(error.line),
            _ => None,
        };
        json!({"passed": false, "error": self.to_string(), "line": line})
    }
}

/// A plugin's files.
struct Cast {
    slot: String,
    file: PathBuf,
    wasm: Vec<u8>,
    toml: Option<String>,
}

impl Play<'_> {
    /// Plays it. Must be called within a runtime.
    ///
    /// # Errors
    ///
    /// It was not played.
    pub async fn run(&self) -> Result<Played, PlayError> {
        let path = self.conversation;
        let conversation = Conversation::parse(&read_text(path)?)
            .map_err(|error| PlayError::Syntax { path: path.to_owned(), error })?;
        let mut config = Config::from_text(&conversation.config, path)?;
        if config.cluster.is_some() {
            return Err(PlayError::Cluster);
        }
        // The plugins are the given ones, and nothing is reloaded.
        config.plugins.directory = None;
        if let Some(cache) = self.cache {
            config.plugins.cache.directory = Some(cache.to_owned());
        }
        let cast = self.cast(&conversation)?;
        let in_memory = InMemoryServer::open(config).map_err(PlayError::Server)?;
        for Cast { slot, file, wasm, toml } in cast {
            in_memory.load(&slot, &file, wasm, toml).map_err(|error| match error {
                ChangeError::Refused(_) => PlayError::Refused(error),
                error => PlayError::Slot(error),
            })?;
        }
        Ok(self.play(conversation.steps, in_memory).await)
    }

    /// The files of all plugins.
    fn cast(&self, conversation: &Conversation) -> Result<Vec<Cast>, PlayError> {
        let mut cast = vec![files_of(self.plugin, self.config)?];
        for file in self.with {
            cast.push(files_of(file, None)?);
        }
        let folder = self.conversation.parent().unwrap_or(Path::new(""));
        for plugin in &conversation.plugins {
            let file = folder.join(&plugin.component);
            let toml = beside(&plugin.settings).map_err(|problem| PlayError::Syntax {
                path: self.conversation.to_owned(),
                error: SyntaxError {
                    line: plugin.line,
                    text: plugin.settings.to_string(),
                    problem: format!("settings that cannot be written as TOML: {problem}"),
                },
            })?;
            let toml = Some(toml);
            cast.push(Cast { slot: plugin.slot.clone(), wasm: read(&file)?, file, toml });
        }
        Ok(cast)
    }

    async fn play(&self, steps: Vec<Step>, in_memory: InMemoryServer) -> Played {
        let mut played = Played { plugins: in_memory.plugins(), ..Played::default() };
        let mut is_over = false;
        let dial = async || io::Result::Ok(in_memory.dial());
        let mut stage = Stage::new("localhost".to_owned(), self.patience, dial);
        for Step { lines, action } in steps {
            if is_over {
                played.steps.push(PlayedStep { lines, outcome: Outcome::NotPlayed });
                continue;
            }
            let acted = match &action {
                Action::Swap { slot, settings } => beside(settings)
                    .map_err(|problem| problem.to_string())
                    .and_then(|toml| in_memory.swap(slot, toml).map_err(|e| e.to_string()))
                    .map(|swapped| vec![swapped]),
                action => stage.act(action).await.map_err(|problem| format!("{problem:#}")),
            };
            let outcome = match (acted, failure(&in_memory.failures())) {
                (Ok(came), None) => Outcome::Passed(came),
                (Ok(_), Some(failure)) => Outcome::Failed(failure),
                (Err(problem), None) => Outcome::Failed(problem),
                (Err(problem), Some(failure)) => Outcome::Failed(format!("{problem}; {failure}")),
            };
            is_over = matches!(outcome, Outcome::Failed(_));
            played.steps.push(PlayedStep { lines, outcome });
        }
        if !is_over {
            let left = stage.clear().await.err().map(|problem| format!("{problem:#}"));
            let failures = in_memory.close(self.patience).await;
            played.at_end = left.or(failure(&failures));
        }
        played
    }
}

/// The settings file of a plugin with these settings.
pub fn beside(settings: &serde_json::Value) -> Result<String, toml::ser::Error> {
    let settings = toml::Value::try_from(settings)?;
    Ok(toml::Table::from_iter([("settings".to_owned(), settings)]).to_string())
}

/// The first failure, as text.
fn failure(failures: &[Failure]) -> Option<String> {
    let Failure { plugin, step, problem, .. } = failures.first()?;
    Some(format!("the plugin {plugin} failed in {step}: {problem}"))
}

/// A plugin's component and its settings file, or those in `config`.
fn files_of(file: &Path, config: Option<&Path>) -> Result<Cast, PlayError> {
    let slot = file
        .file_stem()
        .and_then(|stem| stem.to_str())
        .filter(|_| file.extension().is_some_and(|extension| extension == "wasm"))
        .ok_or_else(|| PlayError::NotAPlugin(file.to_owned()))?;
    let beside = file.with_extension("toml");
    let toml = match config {
        Some(config) => Some(read_text(config)?),
        None if beside.exists() => Some(read_text(&beside)?),
        None => None,
    };
    Ok(Cast { slot: slot.to_owned(), wasm: read(file)?, file: file.to_owned(), toml })
}

fn read(path: &Path) -> Result<Vec<u8>, PlayError> {
    file::read_input(path, COMPONENT_BYTES_MAX)
        .map_err(|source| PlayError::Unreadable { path: path.to_owned(), source })
}

fn read_text(path: &Path) -> Result<String, PlayError> {
    file::read_text_input(path, SETTINGS_BYTES_MAX)
        .map_err(|source| PlayError::Unreadable { path: path.to_owned(), source })
}

impl Played {
    /// Whether everything was as expected.
    pub fn passed(&self) -> bool {
        self.at_end.is_none() && !self.steps.iter().any(|step| step.outcome.is_failed())
    }

    /// As text.
    pub fn text(&self) -> String {
        let mut lines = vec![format!("plugins: {}", self.plugins.join(", "))];
        let not_played =
            self.steps.iter().filter(|step| matches!(step.outcome, Outcome::NotPlayed)).count();
        for PlayedStep { lines: said, outcome } in &self.steps {
            let mark = match outcome {
                Outcome::Passed(_) => "ok",
                Outcome::Failed(_) => "FAILED",
                Outcome::NotPlayed => continue,
            };
            lines.extend(said.iter().map(|(number, text)| format!("{mark:6} {number:4}: {text}")));
            match outcome {
                // An exact match is not repeated.
                Outcome::Passed(came) => lines.extend(
                    came.iter()
                        .filter(|came| !said.iter().any(|(_, text)| text.ends_with(*came)))
                        .map(|came| format!("{:12} came: {came}", "")),
                ),
                Outcome::Failed(problem) => lines.push(format!("{:12} {problem}", "")),
                Outcome::NotPlayed => {}
            }
        }
        if let Some(problem) = &self.at_end {
            lines.push(format!("FAILED at the end: {problem}"));
        }
        lines.push(match (self.passed(), not_played) {
            (true, _) => format!("all {} steps as expected", self.steps.len()),
            (false, 0) => "it went otherwise".to_owned(),
            (false, left) => format!("it went otherwise, and {left} steps were not played"),
        });
        lines.join("\n")
    }

    /// As JSON.
    pub fn json(&self) -> serde_json::Value {
        let steps = self.steps.iter().map(|PlayedStep { lines, outcome }| {
            let (outcome, came, problem) = match outcome {
                Outcome::Passed(came) => ("passed", came.as_slice(), None),
                Outcome::Failed(problem) => ("failed", &[][..], Some(problem)),
                Outcome::NotPlayed => ("not played", &[][..], None),
            };
            json!({
                "line": lines.first().map(|(number, _)| number),
                "text": lines.iter().map(|(_, text)| text).collect::<Vec<_>>(),
                "outcome": outcome,
                "came": came,
                "problem": problem,
            })
        });
        json!({
            "passed": self.passed(),
            "plugins": self.plugins,
            "steps": steps.collect::<Vec<_>>(),
            "at_end": self.at_end,
        })
    }
}

impl Outcome {
    fn is_failed(&self) -> bool {
        matches!(self, Outcome::Failed(_))
    }
}
