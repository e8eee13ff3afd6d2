//! What becomes of a payload: the rules are applied in order, each to what the
//! ones before it have left.
//!
//! A rule finds spans of bytes; what is done with them is the same whether a
//! regular expression found them or a JSON pointer. What stands outside them is
//! never touched, so a JSON document keeps the order of its keys, the way its
//! numbers are written and its white space.

use std::ops::Range;

use regex::bytes::Regex;

use crate::json::Pointer;

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Globs: the rule looks at what is published on channels that match one.
    pub channels: Vec<String>,
    /// What it looks for.
    pub target: Target,
    /// What it does with it.
    pub action: Action,
}

/// What a rule looks for.
#[derive(Clone, Debug)]
pub enum Target {
    /// Text, also in a payload that is not UTF-8 throughout.
    Text(Regex),
    /// A value in a JSON document. Other payloads have none.
    Value(Pointer),
}

/// What a rule does with what it finds.
#[derive(Clone, Debug)]
pub enum Action {
    /// Puts these bytes in its place.
    Mask(Vec<u8>),
    /// Takes it out; a member of an object goes with its key.
    Remove,
    /// Refuses the publication, in these words.
    Reject(String),
    /// Lets the publication vanish.
    Drop,
}

/// What becomes of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It stays as it is.
    Unchanged,
    /// This takes its place.
    Changed(Vec<u8>),
    /// It goes to nobody, and its publisher is told just that.
    Dropped,
    /// It is refused.
    Rejected {
        /// A word for programs.
        code: &'static str,
        /// A line for people.
        message: String,
    },
}

/// How much larger a mask may make a payload: so many times, ...
const GROWTH_FACTOR_MAX: usize = 4;

/// ... and so many bytes, so that the factor does not bind small ones.
const GROWTH_BYTES_MAX: usize = 4096;

/// Applies the rules in order. The first that rejects or drops ends it. A payload that
/// comes out as it went in is `Unchanged`.
pub fn apply(rules: &[Rule], channel: &str, payload: &[u8]) -> Outcome {
    let bytes_max =
        payload.len().saturating_mul(GROWTH_FACTOR_MAX).saturating_add(GROWTH_BYTES_MAX);
    let mut changed: Option<Vec<u8>> = None;
    for rule in rules.iter().filter(|rule| rule.looks_at(channel)) {
        let current = changed.as_deref().unwrap_or(payload);
        let (spans, with) = match &rule.action {
            Action::Mask(with) => (rule.target.spans_in(current), with.as_slice()),
            Action::Remove => (rule.target.spans_to_remove_in(current), [].as_slice()),
            Action::Reject(message) if rule.target.is_in(current) => {
                return Outcome::Rejected { code: "REJECTED", message: message.clone() };
            }
            Action::Drop if rule.target.is_in(current) => return Outcome::Dropped,
            Action::Reject(_) | Action::Drop => continue,
        };
        if spans.is_empty() {
            continue;
        }
        let masks_bytes = spans.len().saturating_mul(with.len());
        if current.len().saturating_add(masks_bytes) > bytes_max {
            return Outcome::Rejected {
                code: "TOOLARGE",
                message: "masked, the payload would be far larger than it is".to_owned(),
            };
        }
        changed = Some(with_spans_replaced(current, &spans, with));
    }
    match changed {
        Some(changed) if changed != payload => Outcome::Changed(changed),
        _ => Outcome::Unchanged,
    }
}

impl Rule {
    fn looks_at(&self, channel: &str) -> bool {
        let matches =
            |glob: &String| guest_core::glob::matches(glob.as_bytes(), channel.as_bytes());
        self.channels.iter().any(matches)
    }
}

impl Target {
    fn is_in(&self, payload: &[u8]) -> bool {
        match self {
            Self::Text(regex) => regex.is_match(payload),
            Self::Value(pointer) => !pointer.values_in(payload).is_empty(),
        }
    }

    /// Where it stands in the payload; the spans rise and do not overlap.
    fn spans_in(&self, payload: &[u8]) -> Vec<Range<usize>> {
        match self {
            Self::Text(regex) => regex.find_iter(payload).map(|found| found.range()).collect(),
            Self::Value(pointer) => pointer.values_in(payload),
        }
    }

    /// The same, with all that must go when it goes.
    fn spans_to_remove_in(&self, payload: &[u8]) -> Vec<Range<usize>> {
        match self {
            Self::Text(_) => self.spans_in(payload),
            Self::Value(pointer) => pointer.members_in(payload),
        }
    }
}

fn with_spans_replaced(payload: &[u8], spans: &[Range<usize>], with: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::with_capacity(payload.len());
    let mut kept_to = 0;
    for span in spans {
        replaced.extend_from_slice(payload.get(kept_to..span.start).unwrap_or_default());
        replaced.extend_from_slice(with);
        kept_to = span.end;
    }
    replaced.extend_from_slice(payload.get(kept_to..).unwrap_or_default());
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings;

    fn apply_settings(settings: &str, channel: &str, payload: &[u8]) -> Outcome {
        match settings::read(settings) {
            Ok(rules) => apply(&rules, channel, payload),
            Err(error) => panic!("{settings}: {error}"),
        }
    }

    fn check(settings: &str, channel: &str, payload: &str, expected: &str) {
        let expected = match expected == payload {
            true => Outcome::Unchanged,
            false => Outcome::Changed(expected.as_bytes().to_vec()),
        };
        let found = apply_settings(settings, channel, payload.as_bytes());
        assert_eq!(found, expected, "{channel} {payload}");
    }

    fn check_rejected(settings: &str, payload: &str, expected: &str) {
        let expected = Outcome::Rejected { code: "REJECTED", message: expected.to_owned() };
        let found = apply_settings(settings, "chat.a", payload.as_bytes());
        assert_eq!(found, expected, "{payload}");
    }

    #[test]
    fn text_is_masked_on_matching_channels() {
        let settings = r#"{"rules": [
            {"channels": ["chat.*", "room.?"], "regex": "\\b\\d{16}\\b", "action": "mask", "with": "$0"}
        ]}"#;
        let card = "pay 1234567812345678 or 8765432187654321!";
        check(settings, "chat.a", card, "pay $0 or $0!");
        check(settings, "room.1", card, "pay $0 or $0!");
        check(settings, "news", card, card);
        check(settings, "chat.a", "", "");
        check(settings, "chat.a", "12345678123456789", "12345678123456789");
    }

    #[test]
    fn text_is_found_in_bytes_that_are_not_utf_8() {
        let settings = r#"{"rules": [
            {"channels": ["*"], "regex": "(?i)secret é", "action": "mask"}
        ]}"#;
        let found = apply_settings(settings, "a", b"\xff SECRET \xc3\x89 \xfe");
        assert_eq!(found, Outcome::Changed(b"\xff *** \xfe".to_vec()));
    }

    #[test]
    fn values_are_masked_and_removed_where_they_stand() {
        let settings = r#"{"rules": [
            {"channels": ["*"], "pointer": "/card/number", "action": "mask"},
            {"channels": ["*"], "pointer": "/card/cvc", "action": "remove"},
            {"channels": ["*"], "pointer": "/name", "action": "mask", "with": "\"é"}
        ]}"#;
        check(
            settings,
            "pay",
            r#"{"z": 1.0e+2, "card": {"cvc": 123, "number":42 }, "a": 12345678901234567890.5}"#,
            r#"{"z": 1.0e+2, "card": {"number":"***" }, "a": 12345678901234567890.5}"#,
        );
        check(settings, "pay", r#"{"name": null}"#, r#"{"name": "\"é"}"#);
        for untouched in [r#"{"z":  1.0}"#, "card number", "[1]", r#"{"card":{"number":42"#, ""] {
            check(settings, "pay", untouched, untouched);
        }
    }

    #[test]
    fn rules_are_applied_in_order() {
        let settings = r#"{"rules": [
            {"channels": ["chat.*"], "regex": "one", "action": "mask", "with": "two"},
            {"channels": ["chat.*"], "regex": "two", "action": "mask", "with": "three"},
            {"channels": ["chat.*"], "regex": "one", "action": "reject", "message": "never"},
            {"channels": ["chat.*"], "regex": "secret", "action": "reject"},
            {"channels": ["chat.*"], "pointer": "/password", "action": "reject", "message": "no"},
            {"channels": ["chat.*"], "regex": "secret", "action": "reject", "message": "late"}
        ]}"#;
        check(settings, "chat.a", "one two", "three three");
        check(settings, "other", "secret", "secret");
        check_rejected(settings, "one secret", "payload matches rule 4");
        check_rejected(settings, r#"{"password": "secret"}"#, "payload matches rule 4");
        check_rejected(settings, r#"{"password": null}"#, "no");
    }

    #[test]
    fn what_is_dropped_is_not_looked_at_again() {
        let settings = r#"{"rules": [
            {"channels": ["chat.*"], "regex": "one", "action": "mask", "with": "spam"},
            {"channels": ["chat.*"], "regex": "spam", "action": "drop"},
            {"channels": ["chat.*"], "regex": "spam", "action": "reject"},
            {"channels": ["*"], "pointer": "/draft", "action": "drop"}
        ]}"#;
        let check = |channel, payload: &str, expected| {
            assert_eq!(
                apply_settings(settings, channel, payload.as_bytes()),
                expected,
                "{payload}"
            );
        };
        check("chat.a", "spam", Outcome::Dropped);
        check("chat.a", "one", Outcome::Dropped);
        check("news", "spam", Outcome::Unchanged);
        check("news", r#"{"draft": null}"#, Outcome::Dropped);
        check("news", r#"{"draft": null"#, Outcome::Unchanged);
    }

    #[test]
    fn what_comes_out_as_it_went_in_is_unchanged() {
        let settings = r#"{"rules": [
            {"channels": ["*"], "regex": "\\*+", "action": "mask"},
            {"channels": ["*"], "pointer": "/a", "action": "mask"}
        ]}"#;
        check(settings, "a", "a***b", "a***b");
        check(settings, "a", r#"{"a": "***"}"#, r#"{"a": "***"}"#);
    }

    #[test]
    fn a_mask_does_not_grow_without_end() {
        let settings = r#"{"rules": [
            {"channels": ["*"], "regex": "a", "action": "mask", "with": "----------"}
        ]}"#;
        let check = |payload: &str, fits: bool| {
            let found = apply_settings(settings, "a", payload.as_bytes());
            let expected = payload.replace('a', "----------").into_bytes();
            match &found {
                Outcome::Changed(changed) => assert!(fits && *changed == expected),
                Outcome::Rejected { code, .. } => assert!(!fits && *code == "TOOLARGE"),
                Outcome::Unchanged | Outcome::Dropped => panic!("{found:?}"),
            }
        };
        check(&"a".repeat(400), true);
        check(&"a".repeat(1000), false);
        check(&"abbbbbbb".repeat(1000), true);
    }
}
