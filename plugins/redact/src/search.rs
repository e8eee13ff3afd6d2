//! Finding text with a regular expression, with every step paid for.
//!
//! The expression runs as a lazy DFA: one table look-up for each byte, and new
//! states on demand. Both are charged to the budget of the call, and so is each
//! byte that is read twice while all matches are enumerated. A search therefore
//! ends with an answer or with `TooCostly`, and never outlasts its call.
//!
//! One case is charged by an estimate: a DFA does not know Unicode word
//! boundaries beside a byte that is not ASCII. From there on a simulation of the
//! NFA searches, which is slower by a factor of thirty and more.

use std::cell::RefCell;
use std::ops::Range;

use plugin_kit::budget::{Budget, TooCostly};
use regex_automata::hybrid::LazyStateID;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson::pikevm::{self, PikeVM};
use regex_automata::nfa::thompson::{self, NFA};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};

/// How large one expression may become when it is compiled.
const NFA_BYTES_MAX: usize = 2 << 20;

/// What a search costs, in steps, before it looks at a byte: one of the DFA is one.
const START_STEPS: usize = 32;

/// What entering the search for the start of a match costs.
const BACK_STEPS: usize = 32;

/// What a new state costs: so many steps, and one for each so many NFA states.
const NEW_STATE_STEPS: usize = 64;
const NFA_STATES_PER_STEP: usize = 4;

/// What a step from a state costs that ends a match.
const TAGGED_STEPS: usize = 4;

/// What a byte costs in the simulation: so many steps, and one for each so many
/// NFA states. Seldom are more of them active at once.
const SIMULATED_BYTE_STEPS: usize = 32;
const SIMULATED_STATES_PER_STEP: usize = 32;

/// A compiled expression, and what it has learnt of its DFA so far.
#[derive(Debug)]
pub struct Search {
    forward: DFA,
    backward: DFA,
    simulation: PikeVM,
    caches: RefCell<Caches>,
    nfa_states: usize,
    shortest: usize,
}

#[derive(Debug)]
struct Caches {
    forward: Cache,
    backward: Cache,
    /// Made when the simulation is first needed.
    simulation: Option<pikevm::Cache>,
}

/// Why the DFA does not know.
enum Unknown {
    TooCostly,
    /// A word boundary beside a byte that is not ASCII.
    Boundary,
}

impl From<TooCostly> for Unknown {
    fn from(TooCostly: TooCostly) -> Self {
        Self::TooCostly
    }
}

impl Search {
    /// Compiles an expression. `cache_bytes_max` bounds what each of its two DFAs
    /// remembers.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is too large.
    pub fn new(expression: &str, cache_bytes_max: usize) -> Result<Self, String> {
        // As the crate `regex` reads an expression for bytes.
        let syntax = syntax::Config::new().utf8(false);
        let parsed = syntax::parse_with(expression, &syntax).map_err(|error| {
            // Several lines with an arrow into the expression, the reason last.
            let error = error.to_string();
            let reason = error.lines().last().unwrap_or_default();
            reason.strip_prefix("error: ").unwrap_or(reason).to_owned()
        })?;
        let too_large = |_| format!("compiled, it has more than {NFA_BYTES_MAX} bytes");
        let nfa = |reverse| {
            let config = thompson::Config::new()
                .utf8(false)
                .reverse(reverse)
                .nfa_size_limit(Some(NFA_BYTES_MAX))
                .which_captures(match reverse {
                    true => thompson::WhichCaptures::None,
                    // The simulation needs the whole match.
                    false => thompson::WhichCaptures::Implicit,
                });
            NFA::compiler().configure(config).build_from_hir(&parsed).map_err(too_large)
        };
        let (forward, backward) = (nfa(false)?, nfa(true)?);
        let nfa_states = forward.states().len().max(backward.states().len());
        let dfa = |nfa: NFA, match_kind| {
            let config = DFA::config()
                .match_kind(match_kind)
                .unicode_word_boundary(true)
                .cache_capacity(cache_bytes_max)
                .skip_cache_capacity_check(true);
            let built = DFA::builder().configure(config).build_from_nfa(nfa);
            built.map_err(|error| error.to_string())
        };
        let simulation =
            PikeVM::new_from_nfa(forward.clone()).map_err(|error| error.to_string())?;
        let forward = dfa(forward, MatchKind::LeftmostFirst)?;
        let backward = dfa(backward, MatchKind::All)?;
        let caches = Caches {
            forward: forward.create_cache(),
            backward: backward.create_cache(),
            simulation: None,
        };
        let shortest = parsed.properties().minimum_len().unwrap_or(0);
        let caches = RefCell::new(caches);
        Ok(Self { forward, backward, simulation, caches, nfa_states, shortest })
    }

    /// How many bytes the shortest match has, or fewer.
    pub fn shortest(&self) -> usize {
        self.shortest
    }

    /// The first match at or behind `from`. Assertions such as `\b` also see what stands before it.
    ///
    /// # Errors
    ///
    /// The budget does not suffice to find out.
    pub fn find(
        &self,
        text: &[u8],
        from: usize,
        budget: &mut Budget,
    ) -> Result<Option<Range<usize>>, TooCostly> {
        budget.spend(START_STEPS)?;
        if text.len().saturating_sub(from) < self.shortest || from > text.len() {
            return Ok(None);
        }
        let mut caches = self.caches.borrow_mut();
        let input = Input::new(text).span(from..text.len());
        let found = self.end_of_match(&mut caches.forward, &input, budget).and_then(|end| {
            let Some(end) = end else { return Ok(None) };
            let input = Input::new(text).span(from..end).anchored(Anchored::Yes);
            let start = self.start_of_match(&mut caches.backward, &input, budget)?;
            Ok(Some(start.unwrap_or(from)..end))
        });
        match found {
            Ok(found) => Ok(found),
            Err(Unknown::TooCostly) => Err(TooCostly),
            Err(Unknown::Boundary) => {
                let steps = SIMULATED_BYTE_STEPS + self.nfa_states / SIMULATED_STATES_PER_STEP;
                budget.spend((text.len() - from).saturating_mul(steps))?;
                let new = || self.simulation.create_cache();
                let cache = caches.simulation.get_or_insert_with(new);
                Ok(self.simulation.find(cache, input).map(|found| found.range()))
            }
        }
    }

    fn end_of_match(
        &self,
        cache: &mut Cache,
        input: &Input<'_>,
        budget: &mut Budget,
    ) -> Result<Option<usize>, Unknown> {
        let start = self.forward.start_state_forward(cache, input);
        let mut state = start.map_err(|_| Unknown::Boundary)?;
        let mut end = None;
        let mut position = input.start();
        loop {
            let rest = input.haystack().get(position..).unwrap_or_default().iter();
            position += run(&self.forward, cache, &mut state, rest, budget)?;
            let Some(byte) = input.haystack().get(position) else { break };
            state = self.next(&self.forward, cache, state, *byte, budget)?;
            if state.is_tagged() {
                if state.is_match() {
                    // Matches are reported one byte late.
                    end = Some(position);
                } else if state.is_dead() {
                    return Ok(end);
                } else if state.is_quit() {
                    return Err(Unknown::Boundary);
                }
            }
            position += 1;
        }
        let last = self.forward.next_eoi_state(cache, state).map_err(|_| Unknown::TooCostly)?;
        Ok(if last.is_match() { Some(input.haystack().len()) } else { end })
    }

    fn start_of_match(
        &self,
        cache: &mut Cache,
        input: &Input<'_>,
        budget: &mut Budget,
    ) -> Result<Option<usize>, Unknown> {
        budget.spend(BACK_STEPS)?;
        let start = self.backward.start_state_reverse(cache, input);
        let mut state = start.map_err(|_| Unknown::Boundary)?;
        let mut found = None;
        let span = input.haystack().get(input.start()..input.end()).unwrap_or_default();
        // Going back takes longer for each byte.
        budget.spend(span.len())?;
        let mut left = span.len();
        loop {
            let rest = span.get(..left).unwrap_or_default().iter().rev();
            left -= run(&self.backward, cache, &mut state, rest, budget)?;
            let Some(position) = left.checked_sub(1) else { break };
            let byte = span.get(position).copied().unwrap_or_default();
            state = self.next(&self.backward, cache, state, byte, budget)?;
            if state.is_tagged() {
                if state.is_match() {
                    found = Some(input.start() + left);
                } else if state.is_dead() {
                    return Ok(found);
                } else if state.is_quit() {
                    return Err(Unknown::Boundary);
                }
            }
            left = position;
        }
        // What stands before the span decides whether it can begin here.
        let last =
            match input.start().checked_sub(1).and_then(|before| input.haystack().get(before)) {
                Some(byte) => self.next(&self.backward, cache, state, *byte, budget)?,
                None => {
                    self.backward.next_eoi_state(cache, state).map_err(|_| Unknown::TooCostly)?
                }
            };
        if last.is_quit() {
            return Err(Unknown::Boundary);
        }
        Ok(if last.is_match() { Some(input.start()) } else { found })
    }

    /// One step of a DFA, whatever comes of it.
    fn next(
        &self,
        dfa: &DFA,
        cache: &mut Cache,
        state: LazyStateID,
        byte: u8,
        budget: &mut Budget,
    ) -> Result<LazyStateID, Unknown> {
        budget.spend(1)?;
        if !state.is_tagged() {
            let next = dfa.next_state_untagged(cache, state, byte);
            if !next.is_unknown() {
                return Ok(next);
            }
        }
        // Transitions of a tagged state are looked up by the DFA itself, so whether
        // it made a state shows in what it remembers.
        let known_bytes = cache.memory_usage();
        let paid = match state.is_tagged() {
            true => TAGGED_STEPS,
            false => self.new_state_steps(),
        };
        budget.spend(paid)?;
        // It fails only where its configuration makes it give up.
        let next = dfa.next_state(cache, state, byte).map_err(|_| Unknown::TooCostly)?;
        if state.is_tagged() && cache.memory_usage() != known_bytes {
            budget.spend(self.new_state_steps())?;
        }
        Ok(next)
    }

    fn new_state_steps(&self) -> usize {
        NEW_STATE_STEPS + self.nfa_states / NFA_STATES_PER_STEP
    }
}

/// Steps of a DFA as long as nothing comes of them, but not very many. Answers how many.
fn run<'a>(
    dfa: &DFA,
    cache: &Cache,
    state: &mut LazyStateID,
    bytes: impl Iterator<Item = &'a u8>,
    budget: &mut Budget,
) -> Result<usize, TooCostly> {
    /// Until then a search may go on that was not paid for.
    const UNPAID_MAX: usize = 4096;
    let mut steps = 0;
    if !state.is_tagged() {
        for byte in bytes.take(UNPAID_MAX) {
            let next = dfa.next_state_untagged(cache, *state, *byte);
            if next.is_tagged() {
                break;
            }
            *state = next;
            steps += 1;
        }
        budget.spend(steps)?;
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use regex::bytes::Regex;

    use super::*;

    const STEPS: usize = 1 << 22;

    fn search(expression: &str) -> Search {
        match Search::new(expression, 1 << 16) {
            Ok(search) => search,
            Err(error) => panic!("{expression}: {error}"),
        }
    }

    fn all(search: &Search, text: &[u8], budget: &mut Budget) -> Vec<Range<usize>> {
        let mut found: Vec<Range<usize>> = vec![];
        let mut from = 0;
        while let Some(span) = search.find(text, from, budget).expect("the budget is large") {
            // The empty match behind a match is skipped, as `regex` does.
            let last = found.last().map(|last| last.end);
            from = if span.is_empty() { span.end + 1 } else { span.end };
            if !(span.is_empty() && last == Some(span.start)) {
                found.push(span);
            }
        }
        found
    }

    #[test]
    fn it_finds_what_the_crate_regex_finds() {
        let expressions = [
            "a",
            "ab|a",
            "a|ab",
            "a+",
            "a*?b",
            "(?i)straße",
            r"\b\d{4}\b",
            r"(?-u:\b)\d{4}(?-u:\b)",
            "^a|b$",
            r"\d{2}[ -]?\d{2}",
            "(?s).+",
            "(?-u:[^a]+)",
            r"\w+",
            "é",
            r"[a-c]*d|a",
            r"\Ba\B",
            "(?m)^a$",
        ];
        let texts: Vec<&[u8]> = vec![
            b"",
            b"a",
            b"aab abb",
            b"xaaabx",
            "STRASSE straSSe stra\u{df}e".as_bytes(),
            b"1234 12345 _1234_",
            "\u{e9}1234\u{e9} 1234 \u{661}\u{662}\u{663}\u{664}".as_bytes(),
            b"12-34 12 34 1-2",
            b"\xff\xc3a\xa9d\x80",
            b"a\na\nb",
            b"abcabcd abc",
            b"\xd0\x961234\xd0",
        ];
        for expression in expressions {
            let (search, regex) = (search(expression), Regex::new(expression).expect(expression));
            for text in &texts {
                let expected: Vec<_> = regex.find_iter(text).map(|found| found.range()).collect();
                let found = all(&search, text, &mut Budget::of(STEPS));
                assert_eq!(found, expected, "{expression} in {text:?}");
            }
        }
    }

    /// Each would take long: states that differ for each text, a text that is read
    /// again behind each match, one that only a simulation can read.
    #[test]
    fn what_would_take_long_is_given_up() {
        let mut seed = 7_u32;
        let mut noise = vec![];
        for _ in 0..200_000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            noise.push(if seed >> 31 == 0 { b'a' } else { b'b' });
        }
        let boundaries = "\u{e9}1 ".repeat(50_000);
        let cases: [(&str, &[u8]); 3] = [
            ("[ab]*a[ab]{12}c", &noise),
            ("a.*x|a|b", &noise),
            (r"\b\d{16}\b", boundaries.as_bytes()),
        ];
        for (expression, text) in cases {
            let (search, mut budget) = (search(expression), Budget::of(STEPS));
            let mut from = 0;
            let outcome = loop {
                match search.find(text, from, &mut budget) {
                    Ok(Some(span)) => from = span.end.max(from + 1),
                    Ok(None) => break Ok(()),
                    Err(TooCostly) => break Err(TooCostly),
                }
            };
            assert_eq!(outcome, Err(TooCostly), "{expression}");
        }
    }

    #[test]
    fn an_expression_that_is_none_says_why() {
        let check = |expression: &str, says: &str| {
            let error = Search::new(expression, 1 << 16).expect_err(expression);
            assert!(error.contains(says) && !error.contains('\n'), "{expression}: {error}");
        };
        check("a(b", "unclosed group");
        check("(?=a)", "look-around");
        check("(((a{1000}){1000}){1000})", "more than 2097152 bytes");
    }
}
