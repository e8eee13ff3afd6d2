//! The format of a conversation.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use thiserror::Error;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::client::Upgrade;
use super::pattern::Pattern;

/// A parsed conversation.
#[derive(Debug, Default)]
pub struct Conversation {
    /// Lines for the server's config file.
    pub config: String,
    /// The plugins of the server.
    pub plugins: Vec<Cast>,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// A plugin of the server.
#[derive(Debug, Clone, PartialEq)]
pub struct Cast {
    /// Its line.
    pub line: usize,
    /// Its slot.
    pub slot: String,
    /// Its component. The caller that plays the conversation interprets it.
    pub component: String,
    /// Its settings.
    pub settings: Value,
}

/// One step, which completes before the next line is run.
#[derive(Debug)]
pub struct Step {
    /// Its lines, each with its number.
    pub lines: Vec<(usize, String)>,
    /// The action.
    pub action: Action,
}

/// The action of a step.
#[derive(Debug)]
pub enum Action {
    /// A client connects.
    Connect {
        /// Its name in later lines.
        name: String,
        /// The request target.
        upgrade: Upgrade,
        /// The expected outcome.
        outcome: Outcome,
    },
    /// A plugin is swapped for one with other settings.
    Swap {
        /// Its slot.
        slot: String,
        /// The settings.
        settings: Value,
    },
    /// A client sends a message.
    Send {
        /// The client's name.
        name: String,
        /// The message.
        message: Message,
    },
    /// A client must receive something.
    Expect {
        /// The client's name.
        name: String,
        /// What it must receive.
        what: Expected,
    },
}

/// The expected outcome of an upgrade.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is accepted; with this sub-protocol, where one is named, or `none`.
    Accepted(Option<String>),
    /// The request is refused with this status, and a body that contains this text.
    Refused(String, String),
}

/// What a client must receive.
#[derive(Debug)]
pub enum Expected {
    /// Texts that match, in any order.
    Texts(Vec<Pattern>),
    /// Bytes, in binary frames that may begin and end anywhere.
    Bytes(Vec<u8>),
    /// A pong.
    Pong(Vec<u8>),
    /// A Close with this code or `none`, and a reason that contains this text.
    Close(String, String),
    /// Nothing.
    Nothing,
}

/// A line with a syntax error.
#[derive(Debug, Error)]
#[error("line {line}: {problem}: {text}")]
pub struct SyntaxError {
    /// Its number.
    pub line: usize,
    /// Its text.
    pub text: String,
    /// The error.
    pub problem: String,
}

impl Conversation {
    /// Parses a conversation.
    ///
    /// # Errors
    ///
    /// The first line with a syntax error.
    pub fn parse(text: &str) -> Result<Conversation, SyntaxError> {
        let mut conversation = Conversation::default();
        for (at, text) in text.lines().enumerate() {
            if text.trim().is_empty() || text.starts_with('#') {
                continue;
            }
            let number = at + 1;
            conversation.take(number, text).map_err(|problem| SyntaxError {
                line: number,
                text: text.to_owned(),
                problem: format!("{problem:#}"),
            })?;
        }
        Ok(conversation)
    }

    fn take(&mut self, number: usize, text: &str) -> Result<()> {
        if let Some((what, rest)) =
            text.split_once(": ").filter(|(what, _)| matches!(*what, "config" | "plugin"))
        {
            ensure!(self.steps.is_empty(), "`{what}:` stands before all else");
            if what == "config" {
                self.config.push_str(rest);
                self.config.push('\n');
            } else {
                self.plugins.push(cast(number, rest)?);
            }
            return Ok(());
        }
        let lines = vec![(number, text.to_owned())];
        if let Some(words) = text.strip_prefix("connect ") {
            let action = connect(words)?;
            self.steps.push(Step { lines, action });
            return Ok(());
        }
        if let Some(words) = text.strip_prefix("swap ") {
            let (slot, settings) = words.split_once(' ').context("a plugin and its settings")?;
            let action = Action::Swap { slot: slot.to_owned(), settings: settings_in(settings)? };
            self.steps.push(Step { lines, action });
            return Ok(());
        }
        let at = text.find(['<', '>']).context("neither `<` nor `>`")?;
        let (name, rest) = text.split_at(at);
        let is_name = !name.is_empty() && !name.contains(char::is_whitespace);
        ensure!(is_name, "a client's name stands before `<` or `>`, without spaces");
        let (kind, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        if kind == "<&"
            && let Some(step) = self.steps.last_mut()
            && let Some((before, _)) = step.lines.last()
            && before + 1 == number
            && let Action::Expect { name: other, what: Expected::Texts(patterns) } =
                &mut step.action
            && other == name
            && step.lines.iter().all(|(_, text)| text.get(at..).is_some_and(is_any_order))
        {
            patterns.push(Pattern::parse(rest)?);
            step.lines.extend(lines);
            return Ok(());
        }
        let name = name.to_owned();
        let send = |name, message| Action::Send { name, message };
        let expect = |name, what| Action::Expect { name, what };
        let action = match kind {
            ">" => send(name, Message::text(rest)),
            ">binary" => send(name, Message::binary(bytes(rest)?)),
            ">ping" => send(name, Message::Ping(bytes(rest)?.into())),
            ">close" => send(name, Message::Close(close_frame(rest)?)),
            "<" | "<&" => expect(name, Expected::Texts(vec![Pattern::parse(rest)?])),
            "<binary" => expect(name, Expected::Bytes(bytes(rest)?)),
            "<pong" => expect(name, Expected::Pong(bytes(rest)?)),
            "<close" => {
                let (code, words) = rest.split_once(' ').unwrap_or((rest, ""));
                let is_code = code == "none" || code.parse::<u16>().is_ok();
                ensure!(is_code, "a Close has a code, or `none`");
                expect(name, Expected::Close(code.to_owned(), words.to_owned()))
            }
            "<nothing" => expect(name, Expected::Nothing),
            _ => bail!("no such kind of line: `{kind}`"),
        };
        self.steps.push(Step { lines, action });
        Ok(())
    }
}

fn is_any_order(text: &str) -> bool {
    text.starts_with("<& ")
}

fn cast(line: usize, text: &str) -> Result<Cast> {
    let mut words = text.splitn(3, ' ');
    let (Some(slot), Some(component)) = (words.next(), words.next()) else {
        bail!("a plugin has a name and a component")
    };
    let settings = settings_in(words.next().unwrap_or("{}"))?;
    Ok(Cast { line, slot: slot.to_owned(), component: component.to_owned(), settings })
}

fn settings_in(text: &str) -> Result<Value> {
    let settings: Value = serde_json::from_str(text).context("the settings are not JSON")?;
    ensure!(settings.is_object(), "settings are a JSON object");
    Ok(settings)
}

fn connect(line: &str) -> Result<Action> {
    let (line, outcome) = match line.split_once(" -> ") {
        Some((line, outcome)) => (line, Some(outcome)),
        None => (line, None),
    };
    // Text between quotes is one word.
    let parts = line.split('"').enumerate();
    let words = parts.flat_map(|(at, part)| match at % 2 {
        0 => part.split(' ').collect(),
        _ => vec![part],
    });
    let mut words = words.filter(|word| !word.is_empty());
    let name = words.next().context("a client has a name")?;
    let path = words.next().context("the path is missing")?.to_owned();
    ensure!(path.starts_with('/'), "a path begins with `/`");
    let mut upgrade = Upgrade { path, ..Upgrade::default() };
    for word in words {
        match word.split_once('=') {
            Some(("subprotocols", list)) => {
                upgrade.subprotocols = list.split(',').map(str::to_owned).collect();
            }
            Some(("header", header)) => {
                let (name, value) = header.split_once(':').context("a header has a value")?;
                upgrade.headers.push((name.to_owned(), value.trim().to_owned()));
            }
            _ => bail!("no such word: `{word}`"),
        }
    }
    let outcome = match outcome.map(|outcome| (outcome, outcome.strip_prefix("http "))) {
        None => Outcome::Accepted(None),
        Some((chosen, None)) => Outcome::Accepted(Some(chosen.to_owned())),
        Some((_, Some(refused))) => {
            let (status, words) = refused.split_once(' ').unwrap_or((refused, ""));
            Outcome::Refused(status.to_owned(), words.to_owned())
        }
    };
    Ok(Action::Connect { name: name.to_owned(), upgrade, outcome })
}

/// Bytes in hex, or the UTF-8 of a JSON string.
fn bytes(text: &str) -> Result<Vec<u8>> {
    if text.starts_with('"') {
        return Ok(serde_json::from_str::<String>(text)?.into_bytes());
    }
    ensure!(text.len().is_multiple_of(2) && text.is_ascii(), "not hex");
    let digits = (0..text.len()).step_by(2).filter_map(|at| text.get(at..at + 2));
    digits.map(|pair| u8::from_str_radix(pair, 16).context("not hex")).collect()
}

fn close_frame(text: &str) -> Result<Option<CloseFrame>> {
    if text.is_empty() {
        return Ok(None);
    }
    let (code, reason) = text.split_once(' ').unwrap_or((text, ""));
    let code: u16 = code.parse().context("a Close has a number for a code")?;
    Ok(Some(CloseFrame { code: code.into(), reason: reason.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_found_with_its_line() {
        for (text, line, says) in [
            ("alice> x\nbob [1]\n", 2, "neither"),
            ("# fine\n\nalice? [1]<\n", 3, "without spaces"),
            ("alice< [1,", 1, "value is missing"),
            ("alice<& [1]\nalice<& [1\n", 2, ""),
            ("> x", 1, "name"),
            ("the two> x", 1, "without spaces"),
            ("alice>binary 0", 1, "not hex"),
            ("alice>binary zz", 1, "not hex"),
            ("alice>shout x", 1, "no such kind of line: `>shout`"),
            ("alice<close bye", 1, "code"),
            ("alice>close bye", 1, "code"),
            ("connect alice", 1, "path is missing"),
            ("connect alice ws", 1, "begins with `/`"),
            ("connect alice /ws x=y", 1, "no such word: `x=y`"),
            ("connect alice /ws header=x", 1, "value"),
            ("alice> x\nconfig: limits.name_bytes_max = 8", 2, "before all else"),
            ("plugin: acl", 1, "a name and a component"),
            ("plugin: 10-acl acl {", 1, "not JSON"),
            ("plugin: 10-acl acl []", 1, "object"),
            ("swap 10-acl", 1, "its settings"),
            ("swap 10-acl []", 1, "object"),
        ] {
            let error = Conversation::parse(text).expect_err(text);
            assert_eq!(error.line, line, "{text}: {error}");
            assert!(error.to_string().contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn adjacent_lines_in_any_order_are_one_step() -> Result<()> {
        let text = "a<& 1\na<& 2\n\na<& 3\nb<& 4\nb< 5\nb<& 6\n";
        let steps = Conversation::parse(text)?.steps;
        let lines: Vec<Vec<usize>> = steps
            .iter()
            .map(|step| step.lines.iter().map(|(number, _)| *number).collect())
            .collect();
        assert_eq!(lines, [vec![1, 2], vec![4], vec![5], vec![6], vec![7]]);
        Ok(())
    }
}
