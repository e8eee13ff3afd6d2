//! A glob as a machine: a row of states, each entered by one byte out of a set,
//! some with a star that swallows any byte and stays.
//!
//! `guest_core::glob` says whether a glob matches a name, and so does the
//! engine. What a rule must know of a PSUBSCRIBE is harder: whether two globs
//! have a name in common (here) and whether one covers all that another matches
//! (`cover`). Both need the parsed glob. The tests hold the two readings
//! of Redis' syntax against each other.

use crate::budget::{Budget, TooCostly};

/// A set of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSet {
    low: u128,
    high: u128,
}

impl ByteSet {
    /// No byte.
    pub const NONE: Self = Self { low: 0, high: 0 };
    /// Every byte.
    pub const ALL: Self = Self { low: !0, high: !0 };

    /// The set of this byte alone.
    pub fn only(byte: u8) -> Self {
        let mut set = Self::NONE;
        set.insert(byte);
        set
    }

    fn insert(&mut self, byte: u8) {
        let half = if byte < 128 { &mut self.low } else { &mut self.high };
        *half |= 1 << (byte & 127);
    }

    /// What is in both.
    pub fn and(self, other: Self) -> Self {
        Self { low: self.low & other.low, high: self.high & other.high }
    }

    /// What is not in it.
    pub fn complement(self) -> Self {
        Self { low: !self.low, high: !self.high }
    }

    /// Whether no byte is in it.
    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }

    /// Whether some byte is in both.
    pub fn intersects(self, other: Self) -> bool {
        !self.and(other).is_empty()
    }
}

/// One state of a glob.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// The bytes that lead here from the state before. The first state has
    /// none before it and says `ALL`.
    pub entered_by: ByteSet,
    /// Whether any byte at all leads from here to here.
    pub star: bool,
}

/// A parsed glob with Redis' syntax.
///
/// A name matches when its bytes lead from the first state to the last. One
/// case is apart: Redis lets `*` match every name but the empty one, which only
/// the empty pattern matches.
#[derive(Clone, Debug)]
pub struct Glob {
    states: Vec<State>,
}

impl Glob {
    /// Reads a pattern. Every pattern means something, as in Redis.
    pub fn parse(pattern: &[u8]) -> Self {
        let mut states = Vec::with_capacity(pattern.len() + 1);
        let mut state = State { entered_by: ByteSet::ALL, star: false };
        let mut rest = pattern;
        while let [first, tail @ ..] = rest {
            let (entered_by, after) = match (first, tail) {
                (b'*', _) => {
                    state.star = true;
                    rest = tail;
                    continue;
                }
                (b'?', _) => (ByteSet::ALL, tail),
                (b'[', _) => class(tail),
                (b'\\', [escaped, after @ ..]) => (ByteSet::only(*escaped), after),
                _ => (ByteSet::only(*first), tail),
            };
            states.push(state);
            state = State { entered_by, star: false };
            rest = after;
        }
        states.push(state);
        Self { states }
    }

    /// The states in order; at least one.
    pub fn states(&self) -> &[State] {
        &self.states
    }

    /// Whether it is the empty pattern, the only one that matches the empty
    /// name.
    pub fn is_blank(&self) -> bool {
        matches!(self.states.as_slice(), [only] if !only.star)
    }

    /// Whether there is no name that it matches, as with `a[]`.
    pub fn matches_nothing(&self) -> bool {
        self.states.iter().any(|state| state.entered_by.is_empty())
    }

    /// Whether some name is matched by both. Exact. Costs the product of the
    /// lengths.
    pub fn overlaps(&self, other: &Self, budget: &mut Budget) -> Result<bool, TooCostly> {
        if self.matches_nothing() || other.matches_nothing() {
            return Ok(false);
        }
        if self.is_blank() || other.is_blank() {
            return Ok(self.is_blank() && other.is_blank());
        }
        // Row by row: which pairs of states one and the same name can reach.
        // `above` stepped on in `self` alone, `left` in `other` alone (the one
        // that stood still needs a star), `diagonal` in both. The pair of first
        // states is reached from a diagonal made up for it.
        let mut reached = vec![false; other.states.len()];
        for (row, mine) in self.states.iter().enumerate() {
            if row > 0 && !reached.contains(&true) {
                return Ok(false);
            }
            budget.spend(reached.len())?;
            let mut diagonal = row == 0;
            let mut left = false;
            for (cell, theirs) in reached.iter_mut().zip(&other.states) {
                let above = *cell;
                *cell = (above && theirs.star)
                    || (left && mine.star)
                    || (diagonal && mine.entered_by.intersects(theirs.entered_by));
                diagonal = above;
                left = *cell;
            }
        }
        Ok(reached.last().is_some_and(|both_at_their_end| *both_at_their_end))
    }
}

/// Whether a pattern in the settings means what it looks like. Redis gives every
/// pattern a meaning, but one that is cut off or can match nothing is a slip of the
/// pen, and a rule with it would not hold where it should.
///
/// # Errors
///
/// What is wrong with it.
pub fn check(pattern: &str) -> Result<(), String> {
    let mut rest = pattern.as_bytes();
    let problem = loop {
        rest = match rest {
            [] => return Ok(()),
            [b'\\'] => break "ends with a `\\` that escapes nothing",
            [b'\\', _, tail @ ..] => tail,
            [b'[', tail @ ..] => {
                let (set, after) = class(tail);
                let is_closed = tail.len() > after.len() && {
                    let class = tail.get(..tail.len() - after.len()).unwrap_or_default();
                    is_class_closed(class)
                };
                match (is_closed, set.is_empty()) {
                    (false, _) => break "has a `[` without its `]`",
                    (true, true) => break "has a `[]`, which matches nothing",
                    (true, false) => after,
                }
            }
            [_, tail @ ..] => tail,
        };
    };
    Err(format!("the pattern `{pattern}` {problem}"))
}

/// Whether what was read as a class ends with the bracket that closes it.
fn is_class_closed(class: &[u8]) -> bool {
    let mut rest = class.strip_prefix(b"^").unwrap_or(class);
    loop {
        rest = match rest {
            [] => return false,
            [b'\\', _, tail @ ..] => tail,
            [b']', ..] => return true,
            [_, b'-', _, tail @ ..] => tail,
            [_, tail @ ..] => tail,
        };
    }
}

/// Reads a class from behind its `[`, and answers what follows it. Redis closes
/// one that has no `]` at the end of the pattern, and reads `[]…` as empty.
fn class(pattern: &[u8]) -> (ByteSet, &[u8]) {
    let (negated, mut rest) = match pattern {
        [b'^', tail @ ..] => (true, tail),
        _ => (false, pattern),
    };
    let mut set = ByteSet::NONE;
    let after = loop {
        rest = match rest {
            [] => break rest,
            [b'\\', escaped, tail @ ..] => {
                set.insert(*escaped);
                tail
            }
            [b']', tail @ ..] => break tail,
            [one_end, b'-', other_end, tail @ ..] => {
                // Signed, as C's `char` is on x86-64.
                let (one_end, other_end) = (one_end.cast_signed(), other_end.cast_signed());
                let range = one_end.min(other_end)..=one_end.max(other_end);
                range.for_each(|byte| set.insert(byte.cast_unsigned()));
                tail
            }
            [byte, tail @ ..] => {
                set.insert(*byte);
                tail
            }
        };
    };
    if negated {
        set = set.complement();
    }
    (set, after)
}
