//! A pattern as it stands in a rule: a glob in which `{user}` stands for the
//! name of whoever asks.
//!
//! The name goes in with every character escaped, so a user called `*` gets the
//! channel `user.*` and nothing else. `\{user}` is the text itself. A pattern
//! without the placeholder is the same for all and taken apart only once.

use std::borrow::Cow;

use crate::budget::{Budget, TooCostly};
use crate::cover::Cover;
use crate::glob::Glob;

const PLACEHOLDER: &str = "{user}";

/// What taking a pattern apart costs, in steps of the budget.
const COVER_COST_PER_BYTE: usize = 256;

/// A glob with or without a place for the user's name.
#[derive(Clone, Debug)]
pub enum RulePattern {
    /// The same for everyone.
    Fixed {
        /// As written.
        text: String,
        /// Taken apart.
        cover: Cover,
    },
    /// Another for each user: what stands between the places for the name.
    PerUser(Vec<String>),
}

impl RulePattern {
    /// Reads a pattern. Every text is one.
    pub fn parse(text: &str) -> Self {
        let mut pieces = vec![];
        let mut piece = String::new();
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            if let Some(after) = rest.strip_prefix(PLACEHOLDER) {
                pieces.push(std::mem::take(&mut piece));
                rest = after;
                continue;
            }
            // What is escaped goes along with its escape, be it a brace.
            let taken = match character {
                '\\' => rest.chars().take(2).map(char::len_utf8).sum(),
                _ => character.len_utf8(),
            };
            let (taken, after) = rest.split_at(taken);
            piece.push_str(taken);
            rest = after;
        }
        if pieces.is_empty() {
            let cover = Cover::new(Glob::parse(piece.as_bytes()));
            return Self::Fixed { text: piece, cover };
        }
        pieces.push(piece);
        Self::PerUser(pieces)
    }

    /// Whether the channel matches. For a connection without a user a pattern
    /// with a place for one matches nothing.
    pub fn matches(&self, user: Option<&str>, channel: &str) -> bool {
        self.text_for(user)
            .is_some_and(|text| guest_core::glob::matches(text.as_bytes(), channel.as_bytes()))
    }

    /// The pattern taken apart; none when it matches nothing, as above.
    pub fn cover_for(
        &self,
        user: Option<&str>,
        budget: &mut Budget,
    ) -> Result<Option<Cow<'_, Cover>>, TooCostly> {
        if let Self::Fixed { cover, .. } = self {
            return Ok(Some(Cow::Borrowed(cover)));
        }
        let Some(text) = self.text_for(user) else {
            return Ok(None);
        };
        budget.spend(text.len() * COVER_COST_PER_BYTE)?;
        let cover = Cover::new(Glob::parse(text.as_bytes()));
        Ok(Some(Cow::Owned(cover)))
    }

    fn text_for(&self, user: Option<&str>) -> Option<Cow<'_, str>> {
        match self {
            Self::Fixed { text, .. } => Some(Cow::Borrowed(text)),
            Self::PerUser(pieces) => {
                user.map(|user| Cow::Owned(pieces.join(&with_all_escaped(user))))
            }
        }
    }
}

fn with_all_escaped(name: &str) -> String {
    name.chars().flat_map(|character| ['\\', character]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_taken_literally() {
        let check = |pattern: &str, user: Option<&str>, channel: &str, expected: bool| {
            let found = RulePattern::parse(pattern).matches(user, channel);
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
            let found = RulePattern::parse(pattern).matches(Some("*"), channel);
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
}
