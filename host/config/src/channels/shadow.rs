//! Which rules never apply, because earlier ones match all of their channels.
//!
//! Only what is simple to decide is found, so that no report is wrong. Whether one glob matches all
//! that another does is hard in general.

use std::collections::{BTreeMap, BTreeSet};

use guest_core::glob::{LiteralEnds, literal_ends};

use super::ChannelRules;

/// What `ChannelRules::shadowed` returns.
pub(super) fn shadowed(rules: &ChannelRules) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    let mut earlier = Earlier::default();
    for (number, rule) in (1..).zip(rules.rules()) {
        let covering = |pattern: &String| match Shape::of(pattern.as_bytes()) {
            // Whatever the earlier patterns are.
            Shape::Literal(name) => {
                rules.find(&name).map(|(first, _)| first).filter(|first| *first < number)
            }
            Shape::OneStar(_) | Shape::Other => earlier.covering(pattern),
        };
        let covering: Option<BTreeSet<usize>> = rule.match_.iter().map(covering).collect();
        pairs.extend(covering.into_iter().flatten().map(|earlier| (number, earlier)));
        for pattern in &rule.match_ {
            earlier.add(pattern, number);
        }
    }
    pairs
}

/// The patterns of earlier rules, with the number of their rule.
#[derive(Default)]
struct Earlier<'a> {
    all: BTreeMap<&'a str, usize>,
    with_one_star: Vec<(LiteralEnds, usize)>,
}

impl<'a> Earlier<'a> {
    fn add(&mut self, pattern: &'a str, number: usize) {
        self.all.entry(pattern).or_insert(number);
        if let Shape::OneStar(ends) = Shape::of(pattern.as_bytes()) {
            self.with_one_star.push((ends, number));
        }
    }

    /// A rule that matches everything that this pattern matches.
    fn covering(&self, pattern: &str) -> Option<usize> {
        if let Some(number) = self.all.get(pattern) {
            return Some(*number);
        }
        // What the pattern matches has these ends, which do not overlap.
        let ends = literal_ends(pattern.as_bytes());
        let covers = |general: &LiteralEnds| {
            ends.prefix.starts_with(&general.prefix) && ends.suffix.ends_with(&general.suffix)
        };
        self.with_one_star.iter().find(|(general, _)| covers(general)).map(|(_, number)| *number)
    }
}

/// The patterns that are simple.
#[derive(Debug, PartialEq, Eq)]
enum Shape {
    /// It matches this name only.
    Literal(Vec<u8>),
    /// It has one run of `*` and nothing else that is special: it matches every name with these
    /// ends, except the empty name.
    OneStar(LiteralEnds),
    /// It is none of these.
    Other,
}

impl Shape {
    fn of(pattern: &[u8]) -> Shape {
        let mut stars = 0;
        let mut previous_is_star = false;
        let mut rest = pattern;
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            match byte {
                b'?' | b'[' => return Shape::Other,
                b'*' if !previous_is_star => stars += 1,
                b'*' => {}
                // The next byte is literal; a lone `\` at the end is itself.
                b'\\' => rest = rest.get(1..).unwrap_or_default(),
                _ => {}
            }
            previous_is_star = byte == b'*';
        }
        let ends = literal_ends(pattern);
        match stars {
            0 => Shape::Literal(ends.prefix),
            1 => Shape::OneStar(ends),
            _ => Shape::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_take_escapes_off() {
        let literal = |name: &str| Shape::Literal(name.into());
        let one_star = |prefix: &str, suffix: &str| {
            Shape::OneStar(LiteralEnds { prefix: prefix.into(), suffix: suffix.into() })
        };
        for (pattern, shape) in [
            ("chat", literal("chat")),
            ("\\*\\?\\[", literal("*?[")),
            ("a]\\", literal("a]\\")),
            ("\\\\", literal("\\")),
            ("*", one_star("", "")),
            ("a***", one_star("a", "")),
            ("a\\**\\*b", one_star("a*", "*b")),
            ("a*b*", Shape::Other),
            ("a*\\**", Shape::Other),
            ("a?", Shape::Other),
            ("[a]", Shape::Other),
            ("a*[", Shape::Other),
        ] {
            assert_eq!(Shape::of(pattern.as_bytes()), shape, "{pattern}");
        }
    }
}
