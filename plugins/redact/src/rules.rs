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
// So that it is found from another crate that includes this file too.
#[path = "rules/tests.rs"]
mod tests;
