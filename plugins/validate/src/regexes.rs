//! What a regex costs for each byte that it searches, found out before it is used.
//!
//! The engine builds a deterministic automaton while it searches, and remembers what
//! it has built. A byte is cheap as soon as that is all built; where it does not fit
//! into the engine's memory, or where the engine cannot build it, each byte costs as
//! much as there are states that the regex may be in at once. So the automaton is
//! built here as the engine would do it, with a bound for the work.

use std::collections::HashSet;

use jsonschema_regex::{RepeatedClass, split_leading_lookaheads, to_rust_regex};
use regex_automata::nfa::thompson::{Compiler, Config, NFA, State, WhichCaptures};
use regex_automata::util::primitives::StateID;

use crate::settings::REGEX_BYTES_MAX;

/// How many states are gone through for all regexes of a schema, ...
const STEPS_MAX: usize = 10_000_000;

/// ... and for one.
const STEPS_OF_ONE_MAX: usize = 1_000_000;

/// An automaton that is built within so many steps is cheap, ...
const STEPS_CHEAP: usize = 200_000;

/// ... as long as all that are take no more.
const STEPS_CHEAP_ALL: usize = 400_000;

/// Where the automaton is too large to build, the regex may be in so many times as
/// many states at once as were found.
const UNSEEN: usize = 4;

/// What a byte costs, in checks, once the automaton is built, ...
const BYTE_CHECKS: f64 = 1.0 / 16.0;

/// ... what it costs without an automaton, at first and for each state that the
/// regex may be in, ...
const WORD_BYTE_CHECKS: f64 = 0.75;
const WORD_STATE_CHECKS: f64 = 0.2;

/// ... and the same where it is built again and again.
const UNBUILT_BYTE_CHECKS: f64 = 4.0;
const STATE_CHECKS: f64 = 1.0;

/// The regexes of a schema.
#[derive(Debug)]
pub struct Regexes {
    steps_left: usize,
    steps_cheap_left: usize,
}

impl Default for Regexes {
    fn default() -> Self {
        Self { steps_left: STEPS_MAX, steps_cheap_left: STEPS_CHEAP_ALL }
    }
}

impl Regexes {
    /// What this regex costs for each byte that it searches, in checks.
    pub fn checks_per_byte(&mut self, pattern: &str) -> f64 {
        let parts = split_leading_lookaheads(pattern).unwrap_or_else(|| vec![pattern.to_owned()]);
        parts.iter().map(|part| self.of_part(part)).sum()
    }

    fn of_part(&mut self, pattern: &str) -> f64 {
        // What is no regex is refused elsewhere. Its length is a bound if need be.
        let unknown = UNBUILT_BYTE_CHECKS + STATE_CHECKS * pattern.len() as f64;
        let Ok(translated) = to_rust_regex(pattern) else {
            return unknown;
        };
        if RepeatedClass::from_translated(&translated).is_some() {
            return BYTE_CHECKS;
        }
        let Some(forward) = nfa(&translated, false) else {
            return unknown;
        };
        let checks = self.of_nfa(&forward);
        // The engine searches backwards, too, but not what starts with `^`.
        match nfa(&translated, true) {
            Some(reverse) if !forward.is_always_start_anchored() => {
                checks.max(self.of_nfa(&reverse))
            }
            _ => checks,
        }
    }

    fn of_nfa(&mut self, nfa: &NFA) -> f64 {
        let steps_max = self.steps_left.min(STEPS_OF_ONE_MAX);
        let built = Automaton::build(nfa, steps_max);
        self.steps_left = self.steps_left.saturating_sub(built.steps);
        let is_cheap = built.is_complete && built.steps <= self.steps_cheap_left.min(STEPS_CHEAP);
        if is_cheap {
            self.steps_cheap_left -= built.steps;
        }
        let is_unicode_word = nfa.look_set_any().contains_word_unicode();
        let all = nfa.states().len();
        let states = match (built.is_complete, steps_max) {
            (true, _) => built.states_at_once,
            (false, STEPS_OF_ONE_MAX) => all.min(built.states_at_once * UNSEEN),
            (false, _) => all,
        };
        match (is_cheap, is_unicode_word) {
            (true, false) => BYTE_CHECKS,
            // At a byte that is not ASCII, the engine goes on without an automaton.
            (true, true) => WORD_BYTE_CHECKS + WORD_STATE_CHECKS * states as f64,
            (false, _) => UNBUILT_BYTE_CHECKS + STATE_CHECKS * states as f64,
        }
    }
}

fn nfa(translated: &str, is_reverse: bool) -> Option<NFA> {
    let config = Config::new()
        .nfa_size_limit(Some(REGEX_BYTES_MAX))
        .which_captures(WhichCaptures::None)
        .reverse(is_reverse);
    Compiler::new().configure(config).build(translated).ok()
}

/// The deterministic automaton of a regex.
struct Automaton {
    is_complete: bool,
    /// How many states of the regex were gone through to build it.
    steps: usize,
    /// How many states the regex may be in at once.
    states_at_once: usize,
}

impl Automaton {
    fn build(nfa: &NFA, steps_max: usize) -> Self {
        let mut built = Self { is_complete: false, steps: 0, states_at_once: 0 };
        let bytes: Vec<u8> =
            nfa.byte_classes().representatives(..).filter_map(|unit| unit.as_u8()).collect();
        let mut closure = Closure::of(nfa);
        closure.add(nfa.start_unanchored());
        let first = closure.take(&mut built);
        let mut known = HashSet::from([first.clone()]);
        let mut pending = vec![first];
        while let Some(set) = pending.pop() {
            for byte in &bytes {
                if built.steps > steps_max {
                    return built;
                }
                for id in &set {
                    let next = match nfa.state(*id) {
                        State::ByteRange { trans } => {
                            trans.matches_byte(*byte).then_some(trans.next)
                        }
                        State::Sparse(sparse) => sparse.matches_byte(*byte),
                        State::Dense(dense) => dense.matches_byte(*byte),
                        // What comes behind a match is of no interest.
                        State::Match { .. } => break,
                        _ => None,
                    };
                    if let Some(next) = next {
                        closure.add(next);
                    }
                }
                built.steps += set.len();
                let next = closure.take(&mut built);
                if !next.is_empty() && known.insert(next.clone()) {
                    pending.push(next);
                }
            }
        }
        built.is_complete = true;
        built
    }
}

/// The states that one leads to without a byte, in the order in which they are tried.
struct Closure<'a> {
    nfa: &'a NFA,
    is_member: Vec<bool>,
    members: Vec<StateID>,
    stack: Vec<StateID>,
}

impl<'a> Closure<'a> {
    fn of(nfa: &'a NFA) -> Self {
        let is_member = vec![false; nfa.states().len()];
        Self { nfa, is_member, members: vec![], stack: vec![] }
    }

    fn add(&mut self, id: StateID) {
        self.stack.push(id);
        while let Some(id) = self.stack.pop() {
            match self.is_member.get_mut(id.as_usize()) {
                Some(is_member) if !*is_member => *is_member = true,
                _ => continue,
            }
            self.members.push(id);
            match self.nfa.state(id) {
                // A condition counts as true: more states than there are, not fewer.
                State::Look { next, .. } | State::Capture { next, .. } => self.stack.push(*next),
                State::Union { alternates } => self.stack.extend(alternates.iter().rev()),
                State::BinaryUnion { alt1, alt2 } => self.stack.extend([*alt2, *alt1]),
                _ => {}
            }
        }
    }

    /// The set, without the states that only lead to others; empties it.
    fn take(&mut self, built: &mut Automaton) -> Vec<StateID> {
        let members = std::mem::take(&mut self.members);
        built.steps += members.len();
        built.states_at_once = built.states_at_once.max(members.len());
        for id in &members {
            if let Some(is_member) = self.is_member.get_mut(id.as_usize()) {
                *is_member = false;
            }
        }
        let is_kept = |id: &StateID| !self.nfa.state(*id).is_epsilon();
        members.into_iter().filter(is_kept).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_regexes_are_cheap_and_others_are_not() {
        let check = |pattern: &str, is_cheap: bool| {
            let found = Regexes::default().checks_per_byte(pattern);
            assert_eq!(found <= BYTE_CHECKS, is_cheap, "{pattern}: {found}");
        };
        check("^[a-z0-9-]{1,64}$", true);
        check("^[0-9]{4,10}$", true);
        check("^.{1,1000}$", true);
        check("^[^@ ]+@[^@ ]+\\.[a-z]{2,}$", true);
        check("^(a+)+$", true);
        check("^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z$", true);
        check("^(here|away|busy)$", true);
        check("^[A-Za-z_][A-Za-z0-9_.-]{0,127}$", true);
        check("\\d+", true);
        check("^\\p{L}+$", true);
        check("^https?://[^\\s/$.?#].[^\\s]*$", true);
        check("\\b[0-9]{16}\\b", false);
        check("[ab]*a[ab]{14}c", false);
        check("c[ab]{14}a[ab]*$", false);
    }
}
