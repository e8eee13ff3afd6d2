//! `switchyard channels`: what the channel rules of a config file mean. It needs no running server.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;

use serde::Serialize;

use switchyard_config::{ChannelRules, Config};

use crate::cli::ExplainArgs;
use crate::terminal::output::harmless;

/// Prints which rule applies to a channel.
///
/// # Errors
///
/// The configuration is invalid, or standard output is closed.
pub fn explain(args: &ExplainArgs) -> anyhow::Result<()> {
    let config = Config::load(&args.settings.overrides())?;
    let explained = Explained::new(&config.channels, &args.name);
    let text = match args.json {
        true => serde_json::to_string(&explained)?,
        false => explained.words(),
    };
    writeln!(io::stdout(), "{text}")?;
    Ok(())
}

/// The rule of one channel. Without a rule, all are none.
#[derive(Serialize)]
struct Explained<'a> {
    /// The number of the rule, from 1.
    rule: Option<usize>,
    /// The pattern that matches.
    r#match: Option<&'a str>,
    history: Option<History>,
    presence: Option<Presence>,
}

#[derive(Serialize)]
struct History {
    messages: usize,
    ms: u64,
    idle_ms: u64,
}

#[derive(Serialize)]
struct Presence {
    members_max: usize,
}

impl Explained<'_> {
    fn new<'a>(rules: &'a ChannelRules, name: &OsStr) -> Explained<'a> {
        let Some((number, rule, pattern)) = rules.find_pattern(name.as_bytes()) else {
            return Explained { rule: None, r#match: None, history: None, presence: None };
        };
        Explained {
            rule: Some(number),
            r#match: Some(pattern),
            history: rule.history.map(|history| History {
                messages: history.messages,
                ms: history.age_ms,
                idle_ms: history.idle_ms,
            }),
            presence: rule.presence.map(|rule| Presence { members_max: rule.members_max }),
        }
    }

    /// The same as text, in lines.
    fn words(&self) -> String {
        let rule = match (self.rule, self.r#match) {
            (Some(rule), Some(pattern)) => {
                format!("rule {rule} applies: its pattern {} matches", harmless(pattern))
            }
            _ => "no rule applies".to_owned(),
        };
        let history = match &self.history {
            Some(History { messages, ms, idle_ms }) => format!(
                "history: the last {}, none older than {ms} ms; it ends after {idle_ms} ms \
                 without messages and listeners",
                counted(*messages, "message"),
            ),
            None => "history: none".to_owned(),
        };
        let presence = match &self.presence {
            Some(Presence { members_max }) => {
                format!("presence: at most {}", counted(*members_max, "member"))
            }
            None => "presence: none".to_owned(),
        };
        format!("{rule}\n{history}\n{presence}")
    }
}

fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const RULES: &str = "[[channels]]\nmatch = ['log.*', 'audit']\n[[channels]]\n\
        match = 'chat.*'\nhistory_messages = 100\nhistory_ms = '5m'\npresence = true";

    fn explained(name: &[u8]) -> (String, String) {
        let config = Config::from_text(RULES, Path::new("test.toml")).expect("valid");
        let explained = Explained::new(&config.channels, OsStr::from_bytes(name));
        (serde_json::to_string(&explained).expect("JSON's types"), explained.words())
    }

    #[test]
    fn a_channel_is_explained_as_the_protocol_shows_it() {
        let (json, words) = explained(b"chat.\xff");
        assert_eq!(
            json,
            r#"{"rule":2,"match":"chat.*","history":{"messages":100,"ms":300000,"idle_ms":86400000},"presence":{"members_max":1000}}"#
        );
        let expected = "rule 2 applies: its pattern chat.* matches\nhistory: the last 100 messages, \
                        none older than 300000 ms; ";
        assert!(words.starts_with(expected), "{words}");
        assert!(words.ends_with("\npresence: at most 1000 members"), "{words}");
    }

    #[test]
    fn what_a_channel_does_not_have_is_null() {
        let (json, words) = explained(b"audit");
        assert_eq!(json, r#"{"rule":1,"match":"audit","history":null,"presence":null}"#);
        assert_eq!(
            words,
            "rule 1 applies: its pattern audit matches\nhistory: none\npresence: none"
        );
        let (json, words) = explained(b"other");
        assert_eq!(json, r#"{"rule":null,"match":null,"history":null,"presence":null}"#);
        assert_eq!(words, "no rule applies\nhistory: none\npresence: none");
    }
}
