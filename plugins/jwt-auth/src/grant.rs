//! What a token lets its bearer do, and until when, as it is noted on the
//! connection.

use plugin_kit::budget::Budget;
use plugin_kit::cover::Cover;
use plugin_kit::glob::Glob;
use plugin_kit::refused::Refused;
use serde::{Deserialize, Serialize};

/// What one call may spend on patterns: some milliseconds.
const CALL_STEPS_MAX: usize = 3 << 19;

/// What parsing a pattern of the token costs, in steps of the budget.
const COVER_COST_PER_BYTE: usize = 256;

/// What a token lets its bearer do.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// When it ends, in seconds since 1970; none: not before the connection.
    pub ends: Option<u64>,
    /// The patterns of channels that it may listen to; none: not restricted.
    pub subscribe: Option<Vec<String>>,
    /// The patterns of channels that it may publish on; none: not restricted.
    pub publish: Option<Vec<String>>,
}

/// An operation that a connection requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Subscribe to a channel.
    Subscribe(&'a str),
    /// Subscribe to all channels that match.
    Psubscribe(&'a str),
    /// Publish on a channel.
    Publish(&'a str),
    /// Look at what does not belong to a channel, such as the server's state. No token allows it.
    Inspect,
}

/// A grant for the length of one call.
#[derive(Debug)]
pub struct Access<'a> {
    grant: &'a Grant,
    budget: Budget,
    /// Made when the first pattern is checked.
    covers: Option<Vec<Cover>>,
}

impl Grant {
    /// As it is noted.
    pub fn to_note(&self) -> String {
        serde_json::to_string(self).expect("a grant is numbers and strings")
    }

    /// From what was noted; none when that is not how a grant is noted.
    pub fn from_note(note: &str) -> Option<Self> {
        serde_json::from_str(note).ok()
    }

    /// Whether it has ended, so many seconds ago at least.
    pub fn has_ended(&self, now: u64, leeway_s: u64) -> bool {
        self.ends.is_some_and(|ends| ends.saturating_add(leeway_s) < now)
    }

    /// What it allows, for the length of one call.
    pub fn access(&self) -> Access<'_> {
        Access { grant: self, budget: Budget::of(CALL_STEPS_MAX), covers: None }
    }
}

impl Access<'_> {
    /// Whether this is among what the token names.
    ///
    /// # Errors
    ///
    /// It is not.
    pub fn decide(&mut self, operation: Operation<'_>) -> Result<(), Refused> {
        let is_allowed = match operation {
            Operation::Subscribe(channel) => matches_any(self.grant.subscribe.as_deref(), channel),
            Operation::Publish(channel) => matches_any(self.grant.publish.as_deref(), channel),
            Operation::Psubscribe(pattern) => self.covers(pattern),
            Operation::Inspect => false,
        };
        let what = match operation {
            _ if is_allowed => return Ok(()),
            Operation::Subscribe(channel) => format!("subscribe to {channel}"),
            Operation::Psubscribe(pattern) => format!("psubscribe to {pattern}"),
            Operation::Publish(channel) => format!("publish on {channel}"),
            Operation::Inspect => "look at the server".to_owned(),
        };
        Err(Refused { code: "NOPERM", message: format!("your token does not let you {what}") })
    }

    /// Whether one pattern of the token covers all that this one matches. What
    /// takes too long to find out counts as no.
    fn covers(&mut self, pattern: &str) -> bool {
        let Some(patterns) = &self.grant.subscribe else {
            return true;
        };
        if self.covers.is_none() {
            let bytes: usize = patterns.iter().map(String::len).sum();
            if self.budget.spend(bytes * COVER_COST_PER_BYTE).is_err() {
                return false;
            }
        }
        let read = |text: &String| Cover::new(Glob::parse(text.as_bytes()));
        let covers = self.covers.get_or_insert_with(|| patterns.iter().map(read).collect());
        if self.budget.spend(pattern.len()).is_err() {
            return false;
        }
        let requested = Glob::parse(pattern.as_bytes());
        covers.iter().any(|cover| cover.covers(&requested, &mut self.budget).unwrap_or(false))
    }
}

fn matches_any(patterns: Option<&[String]>, channel: &str) -> bool {
    let matches = |glob: &String| guest_core::glob::matches(glob.as_bytes(), channel.as_bytes());
    patterns.is_none_or(|patterns| patterns.iter().any(matches))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(subscribe: Option<&[&str]>, publish: Option<&[&str]>) -> Grant {
        let own = |patterns: &[&str]| patterns.iter().map(|text| text.to_string()).collect();
        Grant { ends: None, subscribe: subscribe.map(own), publish: publish.map(own) }
    }

    #[test]
    fn only_what_the_token_names_is_allowed() {
        use Operation::{Inspect, Psubscribe, Publish, Subscribe};
        let check = |grant: &Grant, operation, expected: Result<(), &str>| {
            let found = grant.access().decide(operation);
            assert_eq!(found.map_err(|refused| refused.message), expected.map_err(str::to_owned));
        };
        let both = grant(Some(&["news.*", "user.alice"]), Some(&["chat.?"]));
        check(&both, Subscribe("news.sport"), Ok(()));
        check(&both, Subscribe("user.alice"), Ok(()));
        check(&both, Subscribe("chat.a"), Err("your token does not let you subscribe to chat.a"));
        check(&both, Publish("chat.a"), Ok(()));
        check(&both, Publish("news.a"), Err("your token does not let you publish on news.a"));
        check(&both, Psubscribe("news.s*"), Ok(()));
        check(&both, Psubscribe("user.alice"), Ok(()));
        check(&both, Psubscribe("n*"), Err("your token does not let you psubscribe to n*"));
        check(&both, Psubscribe("*"), Err("your token does not let you psubscribe to *"));
        let none = grant(Some(&[]), None);
        check(&none, Subscribe("a"), Err("your token does not let you subscribe to a"));
        check(&none, Psubscribe("a"), Err("your token does not let you psubscribe to a"));
        check(&none, Publish("a"), Ok(()));
        let all = grant(None, None);
        check(&all, Psubscribe("*"), Ok(()));
        check(&all, Inspect, Err("your token does not let you look at the server"));
        // Too many to be compared in one call.
        let many = vec!["a*"; 5_000];
        let many = grant(Some(&many), None);
        check(&many, Psubscribe("ab*"), Err("your token does not let you psubscribe to ab*"));
        check(&many, Subscribe("ab"), Ok(()));
    }

    #[test]
    fn a_grant_ends_after_the_leeway() {
        let grant = Grant { ends: Some(1000), ..Grant::default() };
        assert!(!grant.has_ended(1060, 60));
        assert!(grant.has_ended(1061, 60));
        assert!(!Grant::default().has_ended(u64::MAX, 0));
    }

    #[test]
    fn a_grant_comes_back_as_it_was_noted() {
        let grant = Grant { ends: Some(7), ..grant(Some(&["é\"*"]), None) };
        assert_eq!(Grant::from_note(&grant.to_note()), Some(grant));
        assert_eq!(Grant::from_note("{\"sub\": 1}"), None);
        assert_eq!(Grant::from_note(""), None);
    }
}
