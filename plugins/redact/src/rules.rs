//! What becomes of a payload: the rules are applied in order, each to what the
//! ones before it have left.
//!
//! A rule finds spans of bytes; what is done with them is the same whether a
//! regular expression found them or a JSON pointer. What stands outside them is
//! never touched, so a JSON document keeps the order of its keys, the way its
//! numbers are written, its escapes and its white space.
//!
//! All of it is paid for out of the budget of a call. What cannot be paid for is
//! refused: a payload that was not looked at never passes.

use std::borrow::Cow;
use std::ops::Range;

use plugin_kit::budget::{Budget, TooCostly};

use crate::document::{self, Kind};
use crate::json::Pointer;
use crate::number::{Number, next_number};
use crate::search::Search;
use crate::text::{Escapes, Reading, with_escapes};

/// The settings, ready for use.
#[derive(Debug)]
pub struct Rules {
    /// The rules, in order.
    pub rules: Vec<Rule>,
    /// How large a payload may be that is looked at.
    pub payload_bytes_max: usize,
    /// What one call may spend, in steps of about five nanoseconds.
    pub call_steps_max: usize,
    /// What becomes of a payload that a pointer cannot be followed in.
    pub not_json: NotJson,
}

/// What becomes of a payload that is no JSON document, where a rule has a pointer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NotJson {
    /// It is refused if it has a bracket: a lenient parser may take it for a document.
    #[default]
    Reject,
    /// The rule does not concern it.
    Pass,
}

/// One rule.
#[derive(Debug)]
pub struct Rule {
    /// Globs: the rule looks at what is published on channels that match one.
    pub channels: Vec<String>,
    /// What it looks for.
    pub target: Target,
    /// What it does with it.
    pub action: Action,
}

/// What a rule looks for.
#[derive(Debug)]
pub enum Target {
    /// Text: in what the strings and numbers of a JSON document say, and in payloads
    /// that are none.
    Text(Box<Text>),
    /// A value in a JSON document.
    Value(Pointer),
}

/// Text that a rule looks for.
#[derive(Debug)]
pub struct Text {
    /// The expression.
    pub search: Search,
    /// Whether it is looked for in the bytes of the payload, whatever they are.
    pub is_raw: bool,
    /// Whether it counts only where no digit stands directly before or behind it.
    pub no_digit_beside: bool,
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
    /// It is not delivered, and its publisher receives a count of zero.
    Dropped,
    /// It is refused.
    Rejected {
        /// A word for programs.
        code: &'static str,
        /// A line for people.
        message: String,
    },
}

/// Where something stands that is to be replaced, and by what.
struct Edit {
    span: Range<usize>,
    with: With,
}

enum With {
    /// The mask, with its escapes written so many times over.
    Mask { levels: usize },
    /// This.
    Bytes(Vec<u8>),
}

/// How much larger a mask may make a payload: so many times, ...
const GROWTH_FACTOR_MAX: usize = 4;

/// ... and so many bytes, so that the factor does not bind small ones.
const GROWTH_BYTES_MAX: usize = 4096;

/// What decoding a byte costs, in steps.
const DECODE_STEPS: usize = 6;

/// What taking a number apart costs, beside its bytes, in steps.
const NUMBER_STEPS: usize = 32;

/// What it costs to write all digits of a number, beside each of them.
const PLAIN_STEPS: usize = 96;

/// What finding the nearest double costs, and writing it.
const DOUBLE_STEPS: usize = 500;

/// What it costs to put a string in the place of a number.
const REPLACE_STEPS: usize = 128;

/// How long a double may be in JavaScript's spelling.
const DOUBLE_BYTES_MAX: usize = 26;

/// What it costs to find the next digits in a text, beside each of them.
const START_OF_NUMBER_STEPS: usize = 16;

/// A text without digits costs a step for so many bytes when numbers are looked for.
const BYTES_PER_STEP: usize = 4;

/// What comparing a channel with the rules costs for each rule, in steps.
const RULE_STEPS: usize = 8;

impl Rules {
    /// What becomes of each of these, channel and payload, that came in one call.
    /// When not all of them can be looked at in time, the largest are refused.
    pub fn apply_all(&self, submissions: &[(&str, &[u8])]) -> Vec<Outcome> {
        let mut budget = Budget::of(self.call_steps_max);
        let mut order: Vec<_> = submissions.iter().enumerate().collect();
        order.sort_by_key(|(_, (_, payload))| payload.len());
        let is_alone = submissions.len() == 1;
        let outcomes = order.into_iter().map(|(place, (channel, payload))| {
            (place, self.apply_within(channel, payload, is_alone, &mut budget))
        });
        let mut outcomes: Vec<_> = outcomes.collect();
        outcomes.sort_by_key(|(place, _)| *place);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// What becomes of one that came alone.
    pub fn apply(&self, channel: &str, payload: &[u8]) -> Outcome {
        self.apply_within(channel, payload, true, &mut Budget::of(self.call_steps_max))
    }

    fn apply_within(
        &self,
        channel: &str,
        payload: &[u8],
        is_alone: bool,
        budget: &mut Budget,
    ) -> Outcome {
        let rules: Vec<_> = self.rules.iter().filter(|rule| rule.looks_at(channel)).collect();
        if rules.is_empty() {
            return Outcome::Unchanged;
        }
        if payload.len() > self.payload_bytes_max {
            return too_large(format!(
                "the payload has {} bytes; what is looked at may have {}",
                payload.len(),
                self.payload_bytes_max
            ));
        }
        let paid = budget.spend(self.rules.len().saturating_mul(RULE_STEPS));
        match paid.and_then(|()| self.apply_rules(&rules, payload, budget)) {
            Ok(outcome) => outcome,
            Err(TooCostly) if is_alone => too_large(
                "looking for what may not be published takes too long in this payload".to_owned(),
            ),
            Err(TooCostly) => Outcome::Rejected {
                code: "UNAVAILABLE",
                message: "too much was published at once to look at all of it; try again"
                    .to_owned(),
            },
        }
    }

    /// The first that rejects or drops ends it. A payload that comes out as it went in
    /// is `Unchanged`.
    fn apply_rules(
        &self,
        rules: &[&Rule],
        payload: &[u8],
        budget: &mut Budget,
    ) -> Result<Outcome, TooCostly> {
        let bytes_max =
            payload.len().saturating_mul(GROWTH_FACTOR_MAX).saturating_add(GROWTH_BYTES_MAX);
        let mut changed: Option<Vec<u8>> = None;
        let mut known_document = None;
        for rule in rules {
            let current = changed.as_deref().unwrap_or(payload);
            let is_document = match known_document {
                Some(is_document) => is_document,
                None => {
                    let is_document = document::visit(current, budget, |_, _| Ok(()))?;
                    *known_document.insert(is_document)
                }
            };
            let edits = match (&rule.target, &rule.action) {
                (Target::Text(text), Action::Mask(mask)) => {
                    text.edits_in(current, is_document, mask, budget)?
                }
                (Target::Text(text), Action::Reject(message)) => {
                    match text.is_in(current, is_document, budget)? {
                        true => return Ok(rejected(message.clone())),
                        false => continue,
                    }
                }
                (Target::Text(text), _) => match text.is_in(current, is_document, budget)? {
                    true => return Ok(Outcome::Dropped),
                    false => continue,
                },
                (Target::Value(_), _) if !is_document => {
                    let has_bracket = current.iter().any(|byte| matches!(byte, b'{' | b'['));
                    if has_bracket && self.not_json == NotJson::Reject {
                        return Ok(rejected(
                            "the payload is not JSON, so it cannot be searched for what may not \
                             be published"
                                .to_owned(),
                        ));
                    }
                    continue;
                }
                (Target::Value(pointer), action) => {
                    budget.spend(current.len().saturating_mul(pointer.readings()))?;
                    let spans = match action {
                        Action::Mask(_) => pointer.values_in(current),
                        Action::Remove => pointer.members_in(current),
                        Action::Reject(message) if !pointer.values_in(current).is_empty() => {
                            return Ok(rejected(message.clone()));
                        }
                        Action::Drop if !pointer.values_in(current).is_empty() => {
                            return Ok(Outcome::Dropped);
                        }
                        Action::Reject(_) | Action::Drop => continue,
                    };
                    let edit = |span| Edit { span, with: With::Mask { levels: 0 } };
                    spans.into_iter().map(edit).collect()
                }
            };
            if edits.is_empty() {
                continue;
            }
            let mask = match &rule.action {
                Action::Mask(mask) => mask.as_slice(),
                _ => &[],
            };
            let Some(edited) = with_edits(current, edits, mask, bytes_max) else {
                return Ok(too_large(
                    "masked, the payload would be far larger than it is".to_owned(),
                ));
            };
            budget.spend(edited.len())?;
            changed = Some(edited);
            known_document = None;
        }
        Ok(match changed {
            Some(changed) if changed != payload => Outcome::Changed(changed),
            _ => Outcome::Unchanged,
        })
    }
}

fn too_large(message: String) -> Outcome {
    Outcome::Rejected { code: "TOOLARGE", message }
}

fn rejected(message: String) -> Outcome {
    Outcome::Rejected { code: "REJECTED", message }
}

impl Rule {
    fn looks_at(&self, channel: &str) -> bool {
        let matches =
            |glob: &String| guest_core::glob::matches(glob.as_bytes(), channel.as_bytes());
        self.channels.iter().any(matches)
    }
}

impl Text {
    /// Whether it matches the empty text.
    pub fn matches_empty(&self) -> bool {
        let mut budget = Budget::of(usize::MAX);
        !matches!(self.search.find(b"", 0, &mut budget), Ok(None))
    }

    /// Whether it stands anywhere.
    fn is_in(
        &self,
        payload: &[u8],
        is_document: bool,
        budget: &mut Budget,
    ) -> Result<bool, TooCostly> {
        let first = Finder { text: self, mask: None, edits: vec![] };
        Ok(!first.look(payload, is_document, budget)?.is_empty())
    }

    /// Where it stands, and what comes there instead.
    fn edits_in(
        &self,
        payload: &[u8],
        is_document: bool,
        mask: &[u8],
        budget: &mut Budget,
    ) -> Result<Vec<Edit>, TooCostly> {
        Finder { text: self, mask: Some(mask), edits: vec![] }.look(payload, is_document, budget)
    }

    /// Where it stands in a text, from the first to the last; only the first when no
    /// more are wanted.
    fn spans_in(
        &self,
        text: &[u8],
        is_first_enough: bool,
        budget: &mut Budget,
    ) -> Result<Vec<Range<usize>>, TooCostly> {
        let is_digit =
            |at: Option<usize>| at.and_then(|at| text.get(at)).is_some_and(u8::is_ascii_digit);
        let mut spans = vec![];
        let mut from = 0;
        while let Some(span) = self.search.find(text, from, budget)? {
            let is_within_number = self.no_digit_beside
                && (is_digit(span.start.checked_sub(1)) || is_digit(Some(span.end)));
            from = match () {
                // All that begins within these digits has one before it.
                () if is_within_number && is_digit(span.start.checked_sub(1)) => {
                    let rest = text.get(span.start..).unwrap_or_default();
                    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
                    budget.spend(digits)?;
                    span.start + digits.max(1)
                }
                () if is_within_number => span.start + 1,
                () if span.is_empty() => span.end + 1,
                () => span.end,
            };
            if !is_within_number {
                spans.push(span);
                if is_first_enough {
                    break;
                }
            }
        }
        Ok(spans)
    }
}

/// The digits of a number, and where something stands in them.
type InNumber = (Vec<u8>, Vec<Range<usize>>);

impl Text {
    /// Where it stands in a number that is written in another way, and that way: in plain
    /// digits, or as the nearest double. None when it does not.
    fn find_in_number(
        &self,
        spelt: &[u8],
        is_token: bool,
        budget: &mut Budget,
    ) -> Result<Option<InNumber>, TooCostly> {
        budget.spend(NUMBER_STEPS + spelt.len().saturating_mul(2))?;
        let Some(number) = Number::parse(spelt) else { return Ok(None) };
        let shortest = self.search.shortest();
        // In a text a fraction of zeros has been seen as it is.
        let is_plain_wanted = is_token || number.has_exponent();
        let length = number.plain_length().filter(|length| is_plain_wanted && *length >= shortest);
        if let Some(length) = length {
            budget.spend(PLAIN_STEPS + length.saturating_mul(2))?;
            let plain = number.plain().unwrap_or_default();
            let spans = self.spans_in(&plain, false, budget)?;
            if !spans.is_empty() {
                return Ok(Some((plain, spans)));
            }
        }
        if number.is_rounded() && shortest <= DOUBLE_BYTES_MAX {
            budget.spend(number.doubles_max() * DOUBLE_STEPS)?;
            for double in number.doubles() {
                let spans = self.spans_in(&double, false, budget)?;
                if !spans.is_empty() {
                    return Ok(Some((double, spans)));
                }
            }
        }
        Ok(None)
    }
}

/// Goes through a payload and gathers what a rule finds.
struct Finder<'a> {
    text: &'a Text,
    /// None: the first that is found is enough.
    mask: Option<&'a [u8]>,
    edits: Vec<Edit>,
}

impl Finder<'_> {
    fn look(
        mut self,
        payload: &[u8],
        is_document: bool,
        budget: &mut Budget,
    ) -> Result<Vec<Edit>, TooCostly> {
        if self.text.is_raw {
            self.look_at_bytes(&Reading::plain(payload, 0), 0, budget)?;
        } else if is_document {
            document::visit(payload, budget, |token, budget| match self.is_done() {
                true => Ok(()),
                false => self.look_at_token(payload, &token, budget),
            })?;
        } else {
            self.look_at_all_readings(Reading::plain(payload, 0), 0, budget)?;
        }
        self.edits.sort_by_key(|edit| edit.span.start);
        Ok(self.edits)
    }

    fn is_done(&self) -> bool {
        self.mask.is_none() && !self.edits.is_empty()
    }

    fn look_at_token(
        &mut self,
        payload: &[u8],
        token: &document::Token,
        budget: &mut Budget,
    ) -> Result<(), TooCostly> {
        let spelt = payload.get(token.span.clone()).unwrap_or_default();
        match token.kind {
            Kind::String { has_escapes } => {
                let [_, content @ .., _] = spelt else { return Ok(()) };
                let reading = Reading::plain(content, token.span.start + 1);
                if !has_escapes {
                    return self.look_at_reading(&reading, 1, budget);
                }
                budget.spend(content.len() * DECODE_STEPS)?;
                self.look_at_all_readings(reading.decoded(Escapes::Json), 1, budget)
            }
            Kind::Number => {
                let mut spans = self.text.spans_in(spelt, self.mask.is_none(), budget)?;
                let mut text = Cow::Borrowed(spelt);
                if spans.is_empty() {
                    let found = self.text.find_in_number(spelt, true, budget)?;
                    let Some((number, found)) = found else { return Ok(()) };
                    (text, spans) = (number.into(), found);
                }
                budget.spend(REPLACE_STEPS + text.len())?;
                self.replace_number(token.span.clone(), &text, spans);
                Ok(())
            }
        }
    }

    /// A number of which a part is masked is none any more: a string takes its place.
    fn replace_number(&mut self, token: Range<usize>, text: &[u8], spans: Vec<Range<usize>>) {
        let mask = self.mask.unwrap_or_default();
        let edit = |span| Edit { span, with: With::Mask { levels: 1 } };
        let edits = spans.into_iter().map(edit).collect();
        let masked = with_edits(text, edits, mask, usize::MAX).unwrap_or_default();
        let string = [b"\"".as_slice(), &masked, b"\""].concat();
        self.edits.push(Edit { span: token, with: With::Bytes(string) });
    }

    /// Level by level, for what a text says may be spelt in it. Where a script reads a
    /// level in another way than others do, its way is followed as well.
    fn look_at_all_readings(
        &mut self,
        reading: Reading<'_>,
        levels: usize,
        budget: &mut Budget,
    ) -> Result<(), TooCostly> {
        self.look_at_reading(&reading, levels, budget)?;
        let mut open = vec![(reading, levels, Escapes::Any)];
        while let Some((reading, levels, escapes)) = open.pop() {
            if self.is_done() {
                break;
            }
            budget.spend(reading.text.len())?;
            if !reading.has_backslash() {
                continue;
            }
            let mut next = |escapes| {
                budget.spend(reading.text.len().saturating_mul(DECODE_STEPS))?;
                Ok(reading.next(escapes))
            };
            let Some(script) = next(Escapes::Script)? else { continue };
            let is_fork = escapes == Escapes::Any && script.is_script();
            let any = if is_fork { next(Escapes::Any)? } else { None };
            let escapes = if is_fork { Escapes::Script } else { escapes };
            for (next, escapes) in [(any, Escapes::Any), (Some(script), escapes)] {
                let Some(next) = next else { continue };
                self.look_at_reading(&next, levels + 1, budget)?;
                open.push((next, levels + 1, escapes));
            }
        }
        Ok(())
    }

    /// Its text as it is, and the numbers in it in other digits. `levels`: how often what
    /// is put there must be escaped.
    fn look_at_reading(
        &mut self,
        reading: &Reading<'_>,
        levels: usize,
        budget: &mut Budget,
    ) -> Result<(), TooCostly> {
        self.look_at_bytes(reading, levels, budget)?;
        let text = reading.text.as_ref();
        budget.spend(text.len() / BYTES_PER_STEP)?;
        let mut from = 0;
        while let (false, Some((number, is_special))) = (self.is_done(), next_number(text, from)) {
            budget.spend(number.len() + START_OF_NUMBER_STEPS)?;
            from = number.end;
            let spelt = text.get(number.clone()).unwrap_or_default();
            if is_special && self.text.find_in_number(spelt, false, budget)?.is_some() {
                let with = With::Mask { levels };
                self.edits.push(Edit { span: reading.span_of(&number), with });
            }
        }
        Ok(())
    }

    fn look_at_bytes(
        &mut self,
        reading: &Reading<'_>,
        levels: usize,
        budget: &mut Budget,
    ) -> Result<(), TooCostly> {
        let spans = self.text.spans_in(&reading.text, self.mask.is_none(), budget)?;
        let edit = |bytes| Edit { span: reading.span_of(&bytes), with: With::Mask { levels } };
        self.edits.extend(spans.into_iter().map(edit));
        Ok(())
    }
}

/// The payload with all edits made; they rise, and what overlaps is one. None when
/// that would have more bytes than this.
fn with_edits(payload: &[u8], edits: Vec<Edit>, mask: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
    let mut masks = vec![mask.to_vec()];
    let mut edited = Vec::with_capacity(payload.len().min(bytes_max));
    let mut kept_to = 0;
    let mut edits = edits.into_iter().peekable();
    while let Some(Edit { mut span, with }) = edits.next() {
        while let Some(other) = edits.next_if(|other| other.span.start < span.end) {
            span.end = span.end.max(other.span.end);
        }
        edited.extend_from_slice(payload.get(kept_to..span.start).unwrap_or_default());
        match &with {
            With::Bytes(bytes) => edited.extend_from_slice(bytes),
            With::Mask { levels } => {
                while let (true, Some(last)) = (masks.len() <= *levels, masks.last()) {
                    let escaped = with_escapes(last);
                    // Deep in what was quoted many times, quotes double each time.
                    if escaped.len() > bytes_max {
                        return None;
                    }
                    masks.push(escaped);
                }
                edited.extend_from_slice(masks.get(*levels).map_or(&[], Vec::as_slice));
            }
        }
        if edited.len() > bytes_max {
            return None;
        }
        kept_to = span.end;
    }
    edited.extend_from_slice(payload.get(kept_to..).unwrap_or_default());
    (edited.len() <= bytes_max).then_some(edited)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings;

    fn apply_settings(settings: &str, channel: &str, payload: &[u8]) -> Outcome {
        match settings::read(settings) {
            Ok(rules) => rules.apply(channel, payload),
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
        for untouched in [r#"{"z":  1.0}"#, "card number", "[1]", ""] {
            check(settings, "pay", untouched, untouched);
        }
    }

    /// A lenient parser finds in it what a pointer does not.
    #[test]
    fn what_only_a_lenient_parser_reads_is_refused_where_a_pointer_looks() {
        let settings = |not_json: &str| {
            format!(
                r#"{{"rules": [{{"channels": ["pay"], "pointer": "/card", "action": "mask"}}],
                    "not_json": "{not_json}"}}"#
            )
        };
        for payload in [
            "\u{feff}{\"card\": 42}",
            r#"{"card": 42} "#.repeat(2).as_str(),
            r#"{"card": 42}x"#,
            "{'card': 42}",
            r#"{"card": 42,}"#,
            "{card: 42}",
            r#"/**/{"card": 42}"#,
            r#")]}',{"card": 42}"#,
            "[NaN]",
        ] {
            let check = |not_json: &str, expected: Option<&str>| {
                let found = apply_settings(&settings(not_json), "pay", payload.as_bytes());
                match (&found, expected) {
                    (Outcome::Unchanged, None) => {}
                    (Outcome::Rejected { code, .. }, Some(expected)) if *code == expected => {}
                    _ => panic!("{payload}: {found:?}"),
                }
            };
            check("reject", Some("REJECTED"));
            check("pass", None);
            assert_eq!(
                apply_settings(&settings("reject"), "news", payload.as_bytes()),
                Outcome::Unchanged
            );
        }
    }

    const CARD: &str = r#"{"channels": ["*"], "regex": "\\d{16}", "no_digit_beside": true,
        "action": "mask", "with": "[\"card\"]"}"#;

    fn check_card(payload: &str, expected: &str) {
        check(&format!(r#"{{"rules": [{CARD}]}}"#), "a", payload, expected);
    }

    #[test]
    fn text_is_found_however_json_spells_it() {
        let four_units = r"\u0034\u0031\u0031\u0031";
        let all_units = four_units.repeat(4);
        for spelt in [
            "4111411141114111",
            r"\u0034111411141114111",
            r"411141114111411\u0031",
            &all_units,
            "\u{ff14}\u{661}11411141114111",
            r"\uff14\u066111411141114111",
        ] {
            check_card(&format!(r#"{{"t": "{spelt}"}}"#), r#"{"t": "[\"card\"]"}"#);
            check_card(&format!(r#"{{"{spelt}":1}}"#), r#"{"[\"card\"]":1}"#);
            check_card(
                &format!(r#"["\u0061\/_{spelt}_\ud83d\ude00\ud83d \n", 1.50]"#),
                r#"["\u0061\/_[\"card\"]_\ud83d\ude00\ud83d \n", 1.50]"#,
            );
        }
        // A surrogate in two escapes, and the twice-encoded.
        let bold = r"\ud835\udfd2".repeat(16);
        check_card(&format!(r#"["{bold}"]"#), r#"["[\"card\"]"]"#);
        check_card(
            r#"{"data": "{\"t\": \"\\u0034111411141114111\"}"}"#,
            r#"{"data": "{\"t\": \"[\\\"card\\\"]\"}"}"#,
        );
        check_card(r#"["\u005cu0034111411141114111"]"#, r#"["[\\\"card\\\"]"]"#);
    }

    #[test]
    fn numbers_are_looked_at_however_they_are_written() {
        let masked = r#"{"n":"[\"card\"]"}"#;
        check_card(r#"{"n":4111411141114111}"#, masked);
        check_card(r#"{"n":4.111411141114111e15}"#, masked);
        check_card(r#"{"n":4111411141114111000e-3}"#, masked);
        check_card(r#"{"n":4111411141114111.0}"#, r#"{"n":"[\"card\"].0"}"#);
        check_card("-4111411141114111", r#""-[\"card\"]""#);
        for other in ["41114111411141110", "411141114111411", "[1e999,1]"] {
            check_card(other, other);
        }
    }

    #[test]
    fn what_is_no_json_is_looked_at_as_it_is_and_decoded() {
        check_card("pay 4111411141114111!", "pay [\"card\"]!");
        check_card("_4111411141114111_", "_[\"card\"]_");
        for (before, after) in
            [("\u{feff}{\"t\":\"", "\"}"), ("{t:'", "'}"), ("", " \"{}"), ("{\"t\":\"", "\"}{}")]
        {
            for spelt in
                [r"\u0034111411141114111", r"\x34111411141114111", r"\u{34}111411141114111"]
            {
                check_card(
                    &format!("{before}{spelt}{after}"),
                    &format!(r#"{before}[\"card\"]{after}"#),
                );
            }
        }
        let deep = format!("{}\"4111411141114111\"{}", "[".repeat(50_000), "]".repeat(50_000));
        check_card(&deep, &deep.replace("4111411141114111", r#"[\"card\"]"#));
    }

    #[test]
    fn a_number_with_more_digits_is_another() {
        for other in ["41114111411141112", "1 41114111411141112", "x041114111411141112"] {
            check_card(other, other);
        }
        check_card("41114111411141112 4111411141114111", "41114111411141112 [\"card\"]");
        check_card("4111411141114111x4111411141114111", "[\"card\"]x[\"card\"]");
        let digits = "1".repeat(100_000);
        check_card(&digits, &digits);
    }

    #[test]
    fn raw_text_is_looked_at_on_request() {
        let settings = r#"{"rules": [
            {"channels": ["*"], "regex": "\"pin\":\\s*\\d+", "raw": true, "action": "mask", "with": "\"pin\":0"}
        ]}"#;
        check(settings, "a", r#"{"pin": 1234}"#, r#"{"pin":0}"#);
        let cooked = settings.replace(r#""raw": true, "#, "");
        check(&cooked, "a", r#"{"pin": 1234}"#, r#"{"pin": 1234}"#);
    }

    fn check_code(found: &Outcome, expected: &str) {
        assert!(
            matches!(found, Outcome::Rejected { code, .. } if *code == expected),
            "{expected}: {found:?}"
        );
    }

    #[test]
    fn what_cannot_be_looked_at_in_time_is_refused() {
        let settings = format!(r#"{{"rules": [{CARD}], "payload_bytes_max": 100}}"#);
        let large = format!("4111411141114111{:100}", "");
        check_code(&apply_settings(&settings, "a", large.as_bytes()), "TOOLARGE");
        // Nothing looks at it there.
        let elsewhere = settings.replace("[\"*\"]", "[\"b\"]");
        assert_eq!(apply_settings(&elsewhere, "a", large.as_bytes()), Outcome::Unchanged);

        // Each match is tried to the end of the payload.
        let laborious = r#"{"rules": [{"channels": ["*"], "regex": "a.*x|a|b", "action": "mask", "with": "c"}]}"#;
        let long = "b4111411141114111".repeat(10) + &"a".repeat(20_000);
        check_code(&apply_settings(laborious, "a", long.as_bytes()), "TOOLARGE");
        // What is small passes beside it.
        let rules = settings::read(laborious).unwrap();
        let asked: Vec<(&str, &[u8])> = vec![("a", long.as_bytes()), ("a", b"ok"), ("a", b"b")];
        let found = rules.apply_all(&asked);
        check_code(&found[0], "UNAVAILABLE");
        assert_eq!(found[1..], [Outcome::Unchanged, Outcome::Changed(b"c".to_vec())]);
        // Levels of quoting, each as long as the one before.
        let quoted = "\\u005c".to_owned() + &"u005c".repeat(20_000);
        check_code(
            &apply_settings(&format!(r#"{{"rules": [{CARD}]}}"#), "a", quoted.as_bytes()),
            "TOOLARGE",
        );
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
        check("news", "draft", Outcome::Unchanged);
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

    /// `411111111111111.11e1` and the like are this number to a reader that knows
    /// doubles only.
    #[test]
    fn numbers_are_looked_at_as_a_browser_reads_them() {
        let zeros = "0".repeat(400);
        let card = r#"[\"card\"]"#;
        for (spelt, rest) in [
            ("411111111111111.11e1", ".1"),
            ("4.11111111111111101e15", ".01"),
            ("41111111111111111e-1", ".1"),
            (&format!("0.{zeros}4111111111111111e416"), ""),
            (&format!("4111111111111111{zeros}e-400"), ""),
            ("4.111111111111111e0000000000000000000000000000015", ""),
        ] {
            check_card(&format!(r#"{{"n":{spelt}}}"#), &format!(r#"{{"n":"{card}{rest}"}}"#));
        }
        for other in ["41111111111111111e0", "411111111111111e-9", "1e99999999999999999999", "0e9"]
        {
            check_card(other, other);
        }
        // Digits that only the nearest double has.
        let rounded = r#"{"rules": [{"channels": ["*"], "regex": "41111111111111110",
            "action": "mask"}]}"#;
        check(rounded, "a", "[41111111111111111]", r#"["***"]"#);
        check(rounded, "a", "[4111111111111111123e-2]", r#"["***"]"#);
        check(rounded, "a", "[4.1111111111111111000000001e16]", r#"["***"]"#);
        let one = r#"{"rules": [{"channels": ["*"], "regex": "^4111111111111111$",
            "action": "mask"}]}"#;
        check(one, "a", "[411111111111111.11e1]", r#"["***"]"#);
        check(one, "a", "[4111111111111110.9]", r#"["***"]"#);
    }

    #[test]
    fn numbers_in_a_text_are_looked_at_in_plain_digits() {
        for spelt in [
            "4.111111111111111e15",
            "411111111111111.1e1",
            "4.111111111111111E+15",
            ".4111111111111111e16",
            "41111111111111111e-1",
            "0000411111111111111100e-2",
        ] {
            for (before, after) in [
                (r#"{"t":"{\"n\":"#, r#"}"}"#),
                (r#"{"t":""#, r#""}"#),
                (r#"{"t":"\"\\\"{\\\\\\\"n\\\\\\\":"#, r#"}"}"#),
            ] {
                let masked = format!("{before}MASK{after}");
                let found = apply_settings(
                    r#"{"rules": [{"channels": ["*"], "regex": "\\d{16}", "no_digit_beside": true,
                        "action": "mask", "with": "MASK"}]}"#,
                    "a",
                    format!("{before}{spelt}{after}").as_bytes(),
                );
                assert_eq!(found, Outcome::Changed(masked.into_bytes()), "{spelt}");
            }
            for (before, after) in [
                ("\u{feff}{\"n\":", "}"),
                ("{\"n\":1}\n{\"n\":", "}"),
                ("{\"n\":", ",}"),
                ("[-", "] 1.5"),
                ("1.5e3 and 5e ", "e ."),
            ] {
                check_card(
                    &format!("{before}{spelt}{after}"),
                    &format!(r#"{before}["card"]{after}"#),
                );
            }
        }
        let raw = r#"{"rules": [{"channels": ["*"], "regex": "\\d{16}", "raw": true, "action": "drop"}]}"#;
        check(raw, "a", "4.111111111111111e15", "4.111111111111111e15");
    }

    #[test]
    fn escapes_of_javascript_are_decoded_in_what_is_no_json() {
        for spelt in [
            r"\64111411141114111",
            r"\064111411141114111",
            "41\\\n11411141114111",
            "41\\\r\n11411141114111",
            "41\\\u{2028}11411141114111",
            r"\u{0000000000000000034}111411141114111",
            r"\u{d835}\u{dfd2}111411141114111",
            r"\064\61\u0031\x31\u{34}\u{0000000000031}1141114111",
        ] {
            check_card(&format!("{{t:'{spelt}'}}"), r#"{t:'[\"card\"]'}"#);
        }
        let eight =
            r#"{"rules": [{"channels": ["*"], "regex": "4118411141114111", "action": "mask"}]}"#;
        check(eight, "a", r"'411\8411141114111'", "'***'");
        // A reader that leaves them as they are reads this.
        let kept = r#"{"rules": [{"channels": ["*"], "regex": "\\\\q4", "action": "mask"}]}"#;
        check(kept, "a", r"'\q\u0034'", "'***'");
        check(kept, "a", r"'\q\x34'", "'***'");
    }

    /// The expression that is shown to operators.
    fn recommended() -> String {
        let example = include_str!("../../../examples/plugins/20-redact.toml");
        let line = example.lines().find(|line| line.starts_with("regex = '")).unwrap();
        assert!(include_str!("../README.md").contains(line), "{line}");
        line.trim_start_matches("regex = '").trim_end_matches('\'').to_owned()
    }

    fn recommended_settings(call_ms_max: u64) -> String {
        let rule = serde_json::json!({"channels": ["*"], "regex": recommended(),
            "no_digit_beside": true, "action": "mask"});
        serde_json::json!({"rules": [rule], "call_ms_max": call_ms_max}).to_string()
    }

    #[test]
    fn the_recommended_expression_finds_a_number_whatever_stands_between_its_digits() {
        let settings = recommended_settings(100);
        for between in [
            "\u{fe0f}",
            "\u{34f}",
            "\u{3164}",
            "\0",
            "\u{1}",
            "\u{7f}",
            "\u{200b}",
            "\u{fe0f}\u{20e3}",
            "\u{115f}",
            "\u{301}\u{302}\u{200d}",
            "",
        ] {
            let number = ["4"; 16].join(between);
            check(&settings, "a", &format!("x{number}y"), "x***y");
            let short = ["4"; 15].join(between);
            check(&settings, "a", &short, &short);
        }
        for between in [" ", "  ", " - ", "-", " \u{2013} ", "\u{a0}", "\n", "\u{200b} \u{200b}"] {
            let number = ["4111"; 4].join(between);
            check(&settings, "a", &format!("x{number}y"), "x***y");
        }
        for other in ["1\n2\n3\n4\n5\n6\n7\n8\n9\n1\n2\n3\n4\n5\n6\n7", "41111111111111111"] {
            check(&settings, "a", other, other);
        }
    }

    /// The fewest steps with which it is not refused.
    fn steps_needed(rules: &mut Rules, payload: &[u8]) -> usize {
        let (mut few, mut enough) = (0_usize, 1 << 30);
        while few + 1 < enough {
            rules.call_steps_max = few.midpoint(enough);
            match rules.apply("a", payload) {
                Outcome::Rejected { .. } => few = rules.call_steps_max,
                _ => enough = rules.call_steps_max,
            }
        }
        enough
    }

    #[test]
    fn each_text_is_paid_for() {
        let settings = format!(r#"{{"rules": [{CARD}]}}"#);
        let mut rules = settings::read(&settings).unwrap();
        for (item, steps) in [
            ("1", 32),
            ("\"\"", 32),
            (r#""\n""#, 64),
            ("1e308", 32 + 309),
            ("2e300", 32 + 301),
            ("1.5", 64),
            ("{\"\":\"\"}", 64),
        ] {
            let payload = format!("[{}]", vec![item; 1000].join(","));
            let needed = steps_needed(&mut rules, payload.as_bytes());
            assert!(needed > 1000 * steps, "{item}: {needed}");
        }
        // What was seen to outlast a call of the default is refused.
        for item in ["1", "1e308", r#""\n""#] {
            let many = vec![item; (255 << 10) / (item.len() + 1)].join(",");
            check_code(&apply_settings(&settings, "a", format!("[{many}]").as_bytes()), "TOOLARGE");
        }
    }
}
