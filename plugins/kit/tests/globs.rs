//! Holds what `glob` and `cover` think of globs against what the engine does with them, by
//! trying out every short name. The seed is printed with a failure; every run
//! tries the same cases.

use plugin_kit::budget::Budget;
use plugin_kit::cover::Cover;
use plugin_kit::glob::{self, Glob};

/// Bytes of names. `z` stands for all that `PIECES` does not mention.
const LETTERS: &[u8] = b"abz";

/// Long enough to distinguish any two patterns made of `PIECES` here.
const NAME_LENGTH_MAX: usize = 8;

/// What patterns over `LETTERS` are made of.
const PIECES: &[&str] =
    &["*", "*", "?", "a", "b", "[ab]", "[^a]", "[^b]", "[^ab]", "[a-b]", "[^]", "\\a", "[]"];

/// Put together, these make every corner case of the syntax.
const ODD_PIECES: &[&str] = &[
    "*", "?", "a", "[ab]", "[^a]", "[a-b]", "[b-", "[b-]", "[]", "[^]", "[", "[^", "]", "-", "^",
    "\\", "\\*", "[a", "[]a]", "[\\]-]", "é",
];

#[test]
fn overlap_and_cover_agree_with_all_short_names() {
    let names = names();
    for seed in 0..300 {
        let mut random = Random(seed);
        let [one, other] = [(); 2].map(|()| random.pattern(PIECES));
        let matched_by_one = matched(&one, &names);
        let matched_by_other = matched(&other, &names);
        let both = matched_by_one.iter().zip(&matched_by_other);

        let (one_glob, other_glob) = (Glob::parse(one.as_bytes()), Glob::parse(other.as_bytes()));
        let mut budget = Budget::of(1_000_000);
        let overlaps = one_glob.overlaps(&other_glob, &mut budget);
        let expected = both.clone().any(|(one, other)| *one && *other);
        assert_eq!(overlaps, Ok(expected), "seed {seed}: {one} and {other}");

        let covers = Cover::new(one_glob).covers(&other_glob, &mut budget);
        let expected = both.clone().all(|(one, other)| *one || !*other);
        assert_eq!(covers, Ok(expected), "seed {seed}: {one} over {other}");
    }
}

/// Bytes that names in UTF-8 have, both sides of where C's `char` becomes
/// negative; pairs of globs that the pieces above do not make.
#[test]
fn overlap_and_cover_of_odd_patterns() {
    let check = |one: &str, other: &str, covers: bool, overlaps: bool| {
        let (one_glob, other_glob) = (Glob::parse(one.as_bytes()), Glob::parse(other.as_bytes()));
        let mut budget = Budget::of(1_000_000);
        let found = one_glob.overlaps(&other_glob, &mut budget);
        assert_eq!(found, Ok(overlaps), "{one} and {other}");
        let found = Cover::new(one_glob).covers(&other_glob, &mut budget);
        assert_eq!(found, Ok(covers), "{one} over {other}");
    };
    check("*", "", false, false);
    check("", "", true, true);
    check("", "*", false, false);
    check("**", "*", true, true);
    check("*?", "*", true, true);
    check("?*?", "*", false, true);
    check("?é", "aé", true, true);
    check("?", "é", false, false);
    check("??", "é", true, true);
    check("[^a]*", "é*", true, true);
    check("[a-é]", "b", false, false);
    check("a*b*c", "a*b?c", true, true);
    check("a*b*c", "a*c", false, true);
    check("*ab*", "*a*b*", false, true);
    check("*[ab]??", "*a[ab]?", true, true);
    // Longer than what is kept of a rule: not covered, to be on the safe side.
    let long = "x".repeat(500);
    check(&format!("{long}*"), &format!("{long}y"), false, true);
    check("x*", &format!("{long}y"), true, true);
}

#[test]
fn a_glob_reads_as_the_engine_reads_it() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let pattern = random.pattern(ODD_PIECES).into_bytes();
        let pattern: Vec<u8> = pattern.into_iter().map(|byte| random.changed(byte)).collect();
        let glob = Glob::parse(&pattern);
        for byte in 0..=255_u8 {
            for name in [vec![byte], vec![b'a', byte], vec![byte, b'b', b'a']] {
                let expected = guest_core::glob::matches(&pattern, &name);
                let mut literal: Vec<u8> = vec![];
                name.iter().for_each(|byte| literal.extend([b'\\', *byte]));
                let found = glob.overlaps(&Glob::parse(&literal), &mut Budget::of(1_000));
                assert_eq!(found, Ok(expected), "seed {seed}: {pattern:?} and {name:?}");
            }
        }
    }
}

fn names() -> Vec<Vec<u8>> {
    let mut names = vec![vec![]];
    let mut longest = names.clone();
    for _ in 0..NAME_LENGTH_MAX {
        let longer = longest
            .iter()
            .flat_map(|name| LETTERS.iter().map(|letter| [name.as_slice(), &[*letter]].concat()));
        longest = longer.collect();
        names.extend_from_slice(&longest);
    }
    names
}

fn matched(pattern: &str, names: &[Vec<u8>]) -> Vec<bool> {
    let matches = |name: &Vec<u8>| guest_core::glob::matches(pattern.as_bytes(), name);
    names.iter().map(matches).collect()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as usize % end
    }

    fn pattern(&mut self, of: &[&str]) -> String {
        let pieces = self.below(6);
        (0..pieces).filter_map(|_| of.get(self.below(of.len()))).copied().collect()
    }

    /// Now and then another byte.
    fn changed(&mut self, byte: u8) -> u8 {
        match self.below(6) {
            0 => self.below(256) as u8,
            _ => byte,
        }
    }
}

#[test]
fn a_slip_of_the_pen_is_no_pattern() {
    for pattern in
        ["", "*", "a.*", "[a-c]x", "[^a]", "[\\]]", "[a-]]", "[z-a]", r"\[a-", r"\\", "]", "[*]"]
    {
        assert_eq!(glob::check(pattern), Ok(()), "{pattern}");
    }
    for (pattern, problem) in [
        ("[a-", "has a `[` without its `]`"),
        ("a[", "has a `[` without its `]`"),
        ("x[^", "has a `[` without its `]`"),
        (r"[a\]", "has a `[` without its `]`"),
        ("[a-]", "has a `[` without its `]`"),
        ("a[]", "has a `[]`, which matches nothing"),
        ("a\\", "ends with a `\\` that escapes nothing"),
    ] {
        let expected = Err(format!("the pattern `{pattern}` {problem}"));
        assert_eq!(glob::check(pattern), expected);
    }
}
