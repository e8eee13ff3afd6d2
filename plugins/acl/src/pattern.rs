//! A pattern of a rule: a glob with placeholders for attributes of the connection, such as
//! `{user}`.
//!
//! A value is inserted with every character escaped, so a user called `*` gets the channel
//! `user.*` and nothing else. `\{user}` is the literal text, and so are braces around a word
//! that is no placeholder. A pattern without placeholders is the same for all connections and
//! parsed only once.

use std::borrow::Cow;

use plugin_kit::budget::{Budget, TooCostly};
use plugin_kit::cover::Cover;
use plugin_kit::glob::Glob;

use crate::subject::{Placeholder, Subject};

/// What parsing a pattern costs, in steps of the budget.
const COVER_COST_PER_BYTE: usize = 256;

/// A glob with or without places.
#[derive(Clone, Debug)]
pub enum RulePattern {
    /// The same for all connections.
    Fixed {
        /// As written.
        text: String,
        /// Parsed.
        cover: Cover,
    },
    /// Another for each subject.
    PerSubject(Vec<Piece>),
}

/// A piece of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// As written.
    Text(String),
    /// To be filled in.
    Place(Placeholder),
}

impl RulePattern {
    /// Reads a pattern. Every text is one. `attributes` are the notes that it may
    /// have places for.
    pub fn parse(text: &str, attributes: &[String]) -> Self {
        let mut pieces = vec![];
        let mut piece = String::new();
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            if let Some((placeholder, after)) = place_at(rest, attributes) {
                pieces.push(Piece::Text(std::mem::take(&mut piece)));
                pieces.push(Piece::Place(placeholder));
                rest = after;
                continue;
            }
            // What is escaped goes along with its escape, be it a brace.
            let length = match character {
                '\\' => rest.chars().take(2).map(char::len_utf8).sum(),
                _ => character.len_utf8(),
            };
            let (text, after) = rest.split_at(length);
            piece.push_str(text);
            rest = after;
        }
        if pieces.is_empty() {
            let cover = Cover::new(Glob::parse(piece.as_bytes()));
            return Self::Fixed { text: piece, cover };
        }
        pieces.push(Piece::Text(piece));
        Self::PerSubject(pieces)
    }

    /// Whether the channel matches. For a connection that lacks what there is a
    /// place for it matches nothing.
    pub fn matches(&self, subject: &Subject, channel: &str) -> bool {
        self.text_for(subject)
            .is_some_and(|text| guest_core::glob::matches(text.as_bytes(), channel.as_bytes()))
    }

    /// The parsed pattern; none when it matches nothing, as above.
    pub fn cover_for(
        &self,
        subject: &Subject,
        budget: &mut Budget,
    ) -> Result<Option<Cow<'_, Cover>>, TooCostly> {
        if let Self::Fixed { cover, .. } = self {
            return Ok(Some(Cow::Borrowed(cover)));
        }
        let Some(text) = self.text_for(subject) else {
            return Ok(None);
        };
        budget.spend(text.len() * COVER_COST_PER_BYTE)?;
        let cover = Cover::new(Glob::parse(text.as_bytes()));
        Ok(Some(Cow::Owned(cover)))
    }

    fn text_for(&self, subject: &Subject) -> Option<Cow<'_, str>> {
        match self {
            Self::Fixed { text, .. } => Some(Cow::Borrowed(text)),
            Self::PerSubject(pieces) => {
                let texts = pieces.iter().map(|piece| match piece {
                    Piece::Text(text) => Some(Cow::Borrowed(text.as_str())),
                    Piece::Place(place) => {
                        subject.value_of(place).map(|value| Cow::Owned(with_all_escaped(value)))
                    }
                });
                texts.collect::<Option<String>>().map(Cow::Owned)
            }
        }
    }
}

/// The place that begins here, and what follows it.
fn place_at<'a>(text: &'a str, attributes: &[String]) -> Option<(Placeholder, &'a str)> {
    let (word, after) = text.strip_prefix('{')?.split_once('}')?;
    Placeholder::read(word, attributes).map(|placeholder| (placeholder, after))
}

fn with_all_escaped(name: &str) -> String {
    name.chars().flat_map(|character| ['\\', character]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_matched_literally() {
        let check = |pattern: &str, user: Option<&str>, channel: &str, expected: bool| {
            let found = RulePattern::parse(pattern, &[]).matches(&Subject::user(user), channel);
            assert_eq!(found, expected, "{pattern} {user:?} {channel}");
        };
        check("user.{user}", Some("alice"), "user.alice", true);
        check("user.{user}", Some("alice"), "user.alicf", false);
        check("user.{user}.*", Some("alice"), "user.alice.x", true);
        check("{user}.{user}", Some("é"), "é.é", true);
        check("user.{user}", None, "user.", false);
        check("user.{user}", None, "user.{user}", false);
        for name in ["*", "?", "[a]", "\\", "\\*", "a-z", "^", "{user}", "]"] {
            check("user.{user}", Some(name), &format!("user.{name}"), true);
            check("user.{user}", Some(name), "user.a", false);
            check("user.{user}", Some(name), "user.alice", false);
        }
    }

    #[test]
    fn an_escaped_placeholder_is_text() {
        let check = |pattern: &str, channel: &str, expected: bool| {
            let found =
                RulePattern::parse(pattern, &[]).matches(&Subject::user(Some("*")), channel);
            assert_eq!(found, expected, "{pattern} {channel}");
        };
        check(r"\{user}", "{user}", true);
        check(r"\{user}", "*", false);
        check(r"\{user}", r"\anything", false);
        check(r"\\{user}", r"\*", true);
        check(r"\\{user}", r"\anything", false);
        check(r"\é{user}", "é*", true);
        check(r"{user", "{user", true);
        check("\\", "\\", true);
    }

    #[test]
    fn a_place_is_filled_by_what_is_noted() {
        let subject = Subject {
            attributes: [("tenant".to_owned(), "acme*".to_owned())].into(),
            ..Subject::user(Some("alice"))
        };
        let check = |pattern: &str, channel: &str, expected: bool| {
            let attributes = ["tenant".to_owned(), "region".to_owned()];
            let found = RulePattern::parse(pattern, &attributes).matches(&subject, channel);
            assert_eq!(found, expected, "{pattern} {channel}");
        };
        check("{tenant}.{sub}.*", "acme*.alice.x", true);
        check("{tenant}.{sub}.*", "acmee.alice.x", false);
        // It has no such note.
        check("{region}.*", ".x", false);
        check("{region}.*", "{region}.x", false);
        // No place, as the settings name none of that name.
        check("{colour}", "{colour}", true);
        check("{{user}}", "{alice}", true);
    }
}
