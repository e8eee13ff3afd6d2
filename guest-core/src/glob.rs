//! Redis' globs, to the byte, quirks included: what PSUBSCRIBE and PUBSUB CHANNELS match with.
//!
//! `*` is any run of bytes, `?` one byte, `[a-c]` and `[^a-c]` one byte in or not in the class,
//! `\x` the byte `x`. Globs work on bytes, know case, and are anchored at both ends. The rules are
//! those of `stringmatchlen` on x86-64, where C's `char` is signed; the tests hold a table of the
//! odd ones.
//!
//! Redis recurses at each `*` and gives up early where that cannot change the answer. Here the last
//! `*` alone is tried with longer and longer runs, in a loop: what comes before it has found its
//! leftmost match, and no other leaves more of the name to the rest.
//!
//! That is the fastest way for what people write, and takes (length of the pattern) x (length of
//! the name) steps for what is made to hurt. So where a run is not found soon, a search takes over
//! that has no bad case. A pattern of p bytes on a name of n costs at most
//! n * p / 64 + 25 * (n + p) steps: some 70,000 where both are 1 KiB, and not a million.

mod cost;
mod segment_search;

pub use cost::steps_max;
use segment_search::Segment;

/// More `*` than this (neighbours count once, and one at the end does not count), and a pattern
/// matches nothing. Redis has it so since 7.2.6, to bound its recursion; here it is so because it
/// is so there.
const STARS_MAX: usize = 1000;

/// How many bytes of the pattern may be read again and again for one `*` before the search takes
/// over. As many as the search's table has rows, so that a table rarely costs more than it saves;
/// and more than most names and patterns need.
const SCAN_STEPS_MAX: usize = 256;

/// Whether the name matches the pattern. The empty name is matched by the empty pattern alone, not
/// by `*`.
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    matches_scanning(pattern, name, SCAN_STEPS_MAX)
}

/// The answer is the same whatever `scan_steps_max` is.
fn matches_scanning(pattern: &[u8], name: &[u8], scan_steps_max: usize) -> bool {
    if name.is_empty() {
        return pattern.is_empty();
    }
    let (mut pattern, mut name) = (pattern, name);
    let mut stars = 0;
    // What follows the last `*`, and the part of the name where it was tried last.
    let mut retry: Option<(&[u8], &[u8])> = None;
    let mut scan_steps = 0;
    loop {
        if pattern.first() == Some(&b'*') {
            pattern = without_stars(pattern);
            if pattern.is_empty() {
                return true;
            }
            stars += 1;
            if stars > STARS_MAX {
                return false;
            }
            retry = Some((pattern, name));
            scan_steps = 0;
            continue;
        }
        let Some((&byte, name_rest)) = name.split_first() else {
            // All but stars needs a byte, and a longer run for the last `*` would leave fewer
            // still.
            return pattern.is_empty();
        };
        let unread = match read_element(pattern) {
            Some((element, pattern_rest)) if element.takes(byte) => {
                count_steps(pattern.len() - pattern_rest.len());
                (pattern, name) = (pattern_rest, name_rest);
                continue;
            }
            Some((_, pattern_rest)) => pattern_rest,
            None => pattern,
        };
        count_steps(pattern.len() - unread.len());
        let Some((after_star, [_, tried_rest @ ..])) = retry else {
            return false;
        };
        scan_steps += after_star.len() - unread.len();
        if scan_steps <= scan_steps_max {
            retry = Some((after_star, tried_rest));
            (pattern, name) = (after_star, tried_rest);
            continue;
        }
        let segment = Segment::read(after_star);
        if segment.rest.is_empty() {
            // Without a `*` after it, it must match the end of the name, and is tried there alone.
            let Some(skipped) = tried_rest.len().checked_sub(segment.positions) else {
                return false;
            };
            retry = None;
            (pattern, name) = (after_star, &tried_rest[skipped..]);
        } else {
            let Some(after_match) = segment.find(tried_rest) else {
                return false;
            };
            (pattern, name) = (segment.rest, after_match);
        }
    }
}

/// The bytes that every name the pattern matches begins with. The whole name when the pattern is
/// literal.
pub fn literal_prefix(pattern: &[u8]) -> Vec<u8> {
    literal_ends(pattern).prefix
}

/// What every name that a pattern matches begins and ends with. The two do not overlap: such a name
/// is at least as long as both together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LiteralEnds {
    /// The bytes before the first element that is not literal; all of them when there is no such
    /// element.
    pub prefix: Vec<u8>,
    /// The bytes after the last element that is not literal; empty when there is no such element.
    pub suffix: Vec<u8>,
}

/// Takes a pattern's escapes off and cuts it at its first and last element that is not literal.
pub fn literal_ends(pattern: &[u8]) -> LiteralEnds {
    let mut prefix = None;
    let mut run = Vec::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some((element, after)) = read_element(rest) {
        rest = after;
        match element {
            Element::Literal(byte) => run.push(byte),
            _ if prefix.is_none() => prefix = Some(std::mem::take(&mut run)),
            _ => run.clear(),
        }
    }
    match prefix {
        None => LiteralEnds { prefix: run, suffix: Vec::new() },
        Some(prefix) => LiteralEnds { prefix, suffix: run },
    }
}

/// What a pattern is made of. All but `Stars` take exactly one byte.
enum Element<'a> {
    Stars,
    AnyByte,
    Literal(u8),
    /// The members as they are written, without the closing bracket.
    Class {
        negated: bool,
        members: &'a [u8],
    },
}

impl Element<'_> {
    fn takes(&self, byte: u8) -> bool {
        match *self {
            Element::Stars => false,
            Element::AnyByte => true,
            Element::Literal(literal) => literal == byte,
            Element::Class { negated, members } => class_holds(members, byte) != negated,
        }
    }
}

/// The element the pattern begins with and what follows it; none at the end.
// Inlined into the loop above, where it halves what a byte costs; callers besides it had undone
// that.
#[inline(always)]
fn read_element(pattern: &[u8]) -> Option<(Element<'_>, &[u8])> {
    Some(match pattern {
        [] => return None,
        [b'*', ..] => (Element::Stars, without_stars(pattern)),
        [b'?', rest @ ..] => (Element::AnyByte, rest),
        [b'[', b'^', rest @ ..] => read_class(true, rest),
        [b'[', rest @ ..] => read_class(false, rest),
        // A lone `\` at the end stands for itself: it falls to the last arm.
        [b'\\', literal, rest @ ..] | [literal, rest @ ..] => (Element::Literal(*literal), rest),
    })
}

fn without_stars(pattern: &[u8]) -> &[u8] {
    let stars = pattern.iter().take_while(|&&byte| byte == b'*').count();
    &pattern[stars..]
}

/// Cuts a class off at its closing bracket, or at the end of the pattern when there is none.
fn read_class(negated: bool, class: &[u8]) -> (Element<'_>, &[u8]) {
    let mut rest = class;
    while let Some((_, after)) = read_member(rest) {
        rest = after;
    }
    let members = &class[..class.len() - rest.len()];
    (Element::Class { negated, members }, rest.strip_prefix(b"]").unwrap_or(rest))
}

fn class_holds(members: &[u8], byte: u8) -> bool {
    let mut rest = members;
    while let Some((member, after)) = read_member(rest) {
        rest = after;
        let (one_end, other_end) = member;
        // Redis compares `char`s, and those are signed on x86-64: 0x80..=0xff come before 0x00.
        let [one_end, other_end, byte] = [one_end, other_end, byte].map(u8::cast_signed);
        if (one_end.min(other_end)..=one_end.max(other_end)).contains(&byte) {
            return true;
        }
    }
    false
}

/// The member a class begins with, as the two ends of a range in either order, and what follows;
/// none where the class ends.
///
/// The order of the arms is the rule: an escape before all else, and it cannot begin a range; a `]`
/// even where it would be the first member; a range whatever its far end is, be it a `]` or a `\`;
/// and any byte for itself, so also a `-` with nothing after it.
fn read_member(class: &[u8]) -> Option<((u8, u8), &[u8])> {
    match *class {
        [b'\\', literal, ref rest @ ..] => Some(((literal, literal), rest)),
        [] | [b']', ..] => None,
        [one_end, b'-', other_end, ref rest @ ..] => Some(((one_end, other_end), rest)),
        [literal, ref rest @ ..] => Some(((literal, literal), rest)),
    }
}

/// Called for what the cost of a match grows with, so that tests can bound it: each byte of the
/// pattern that is read, each time, and each step of a search.
fn count_steps(_steps: usize) {
    #[cfg(test)]
    tests::STEPS.set(tests::STEPS.get() + _steps);
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::model::{Random, ReferenceGlob};

    thread_local! {
        pub static STEPS: Cell<usize> = const { Cell::new(0) };
    }

    /// Both matchers say so.
    #[track_caller]
    fn check(pattern: &[u8], expected: bool, names: &[&[u8]]) {
        for name in names {
            let text = || format!("{} on {}", pattern.escape_ascii(), name.escape_ascii());
            assert_eq!(matches(pattern, name), expected, "{}", text());
            assert_eq!(
                ReferenceGlob::new(pattern).matches(name),
                expected,
                "{}, by the reference",
                text()
            );
        }
    }

    #[test]
    fn literals() {
        check(b"", true, &[b""]);
        check(b"", false, &[b"a"]);
        check(b"abc", true, &[b"abc"]);
        // Anchored at both ends, and case is known.
        check(b"abc", false, &[b"", b"ab", b"abcd", b"xabc", b"ABC"]);
        // What is special elsewhere is not here.
        check(b"{a,b}|+.", true, &[b"{a,b}|+."]);
        check(b"]-^!", true, &[b"]-^!"]);
        // NUL and bytes that are not UTF-8 are bytes like others.
        check(b"a\0\xff", true, &[b"a\0\xff"]);
    }

    #[test]
    fn stars() {
        check(b"a*", true, &[b"a", b"ab", b"a*", b"a/b.c\n\0"]);
        check(b"a*", false, &[b"", b"ba"]);
        check(b"*a", true, &[b"a", b"ba", b"aaba"]);
        check(b"*a", false, &[b"ab", b""]);
        check(b"a*b*c", true, &[b"abc", b"abbcc", b"a1b2c"]);
        check(b"a*b*c", false, &[b"acb", b"ab", b"abcd"]);
        // The last `*` must be tried again: the first `ab` is not the one at the end.
        check(b"*ab", true, &[b"abab", b"aab"]);
        check(b"a**b", true, &[b"ab", b"axb"]);
        check(b"ab***", true, &[b"ab", b"abc"]);
        check(b"*?*", true, &[b"a", b"abc"]);
        // The quirk: the empty name is matched by the empty pattern only.
        check(b"*", true, &[b"a", b"*"]);
        check(b"*", false, &[b""]);
        check(b"**", false, &[b""]);
    }

    #[test]
    fn question_marks_are_one_byte() {
        check(b"?", true, &[b"a", b"?", b"\xff", b"\0"]);
        check(b"?", false, &[b"", b"ab", "é".as_bytes()]);
        check(b"??", true, &["é".as_bytes()]);
    }

    #[test]
    fn escapes() {
        check(b"\\*", true, &[b"*"]);
        check(b"\\*", false, &[b"a", b"\\*", b""]);
        check(b"\\a\\\\", true, &[b"a\\"]);
        // A lone `\` at the end is a `\`.
        check(b"a\\", true, &[b"a\\"]);
        check(b"a\\", false, &[b"a"]);
        // The star after the name's end is not one when it is escaped.
        check(b"a\\*", false, &[b"a"]);
    }

    #[test]
    fn classes() {
        check(b"[abc]", true, &[b"a", b"b", b"c"]);
        check(b"[abc]", false, &[b"d", b"", b"ab", b"["]);
        check(b"[^abc]", true, &[b"d", b"^", b"\xff"]);
        check(b"[^abc]", false, &[b"a", b""]);
        // `^` alone negates, and only in front.
        check(b"[!a]", true, &[b"!", b"a"]);
        check(b"[a^]", true, &[b"a", b"^"]);
        check(b"[^^]", false, &[b"^"]);
        // No classes by name: this is one of `[:digt` and then a `]`.
        check(b"[[:digit:]]", true, &[b"d]", b":]", b"[]"]);
        check(b"[[:digit:]]", false, &[b"1"]);
        // Stars and question marks are members like others.
        check(b"[*?]", true, &[b"*", b"?"]);
        check(b"[*?]", false, &[b"a"]);
    }

    #[test]
    fn brackets_that_close_at_once_or_never() {
        // A `]` in front closes: `[]` takes nothing, `[^]` anything, and what follows is literal.
        check(b"[]", false, &[b"", b"]", b"[]", b"a"]);
        check(b"[]a]", false, &[b"]", b"a", b"]a]", b"a]"]);
        check(b"[^]", true, &[b"a", b"]", b"^"]);
        check(b"[^]a]", true, &[b"xa]"]);
        // Without a closing bracket the class runs to the end.
        check(b"[abc", true, &[b"a", b"b", b"c"]);
        check(b"[abc", false, &[b"[", b"[abc", b"d"]);
        check(b"[ab*", true, &[b"a", b"*"]);
        check(b"[ab*", false, &[b"ax"]);
        check(b"[", false, &[b"[", b"", b"a"]);
        check(b"[^", true, &[b"a", b"^", b"["]);
        check(b"[^", false, &[b"", b"ab"]);
        // An escaped bracket does not close, and a lone `\` at the end is a member.
        check(b"[\\]]", true, &[b"]"]);
        check(b"[\\]]", false, &[b"\\", b"\\]"]);
        check(b"[\\", true, &[b"\\"]);
        check(b"[a\\", true, &[b"a", b"\\"]);
    }

    #[test]
    fn ranges() {
        check(b"[a-c]", true, &[b"a", b"b", b"c"]);
        check(b"[a-c]", false, &[b"d", b"-", b"A"]);
        check(b"[^a-c]", true, &[b"d", b"-"]);
        check(b"[^a-c]", false, &[b"b"]);
        // The ends may be in either order.
        check(b"[c-a]", true, &[b"a", b"b", b"c"]);
        // A range needs a far end: there is none at the end of the pattern …
        check(b"[a-", true, &[b"a", b"-"]);
        check(b"[a-", false, &[b"b"]);
        // … but a `]` is one, and the class stays open: `[a-]` is one of `]`..=`a`.
        check(b"[a-]", true, &[b"]", b"^", b"_", b"`", b"a"]);
        check(b"[a-]", false, &[b"-", b"b", b"\\", b"a]"]);
        check(b"[a-]x]", true, &[b"_", b"x"]);
        // A `-` in front is itself, or an end.
        check(b"[-a]", true, &[b"-", b"a"]);
        check(b"[--/]", true, &[b"-", b".", b"/"]);
        // A `\` as far end is itself and escapes nothing: `A`..=`\` and then `]` closes.
        check(b"[A-\\]", true, &[b"B", b"[", b"\\"]);
        check(b"[A-\\]", false, &[b"]", b"-"]);
        // An escaped byte begins no range.
        check(b"[\\a-c]", true, &[b"a", b"-", b"c"]);
        check(b"[\\a-c]", false, &[b"b"]);
    }

    #[test]
    fn ranges_are_signed() {
        // 0xff is -1 and 0x00 is 0: neighbours, and nothing between them.
        check(b"[\0-\xff]", true, &[b"\0", b"\xff"]);
        check(b"[\0-\xff]", false, &[b"\x01", b"a", b"\x7f", b"\x80", b"\xfe"]);
        // -128..=127 is everything.
        check(b"[\x80-\x7f]", true, &[b"\0", b"a", b"\x7f", b"\x80", b"\xff"]);
        check(b"[\xf0-\x10]", true, &[b"\xf0", b"\xff", b"\0", b"\x10"]);
        check(b"[\xf0-\x10]", false, &[b"\x11", b"\xef"]);
        check(b"[\x80-\xff]", true, &[b"\x80", b"\xc3", b"\xff"]);
        check(b"[\x80-\xff]", false, &[b"\x7f", b"\0"]);
    }

    /// At this many stars Redis gives up, though the name fits.
    #[test]
    fn stars_are_counted() {
        let name = vec![b'a'; 2_000];
        let check =
            |pattern: Vec<u8>, expected: bool| assert_eq!(matches(&pattern, &name), expected);
        check(b"*a".repeat(1_000), true);
        check([b"*a".repeat(1_000), b"***".to_vec()].concat(), true);
        check(b"**a".repeat(1_000), true);
        check(b"*a".repeat(1_001), false);
        // Stars in classes and behind `\` do not count.
        check(b"[*a]".repeat(2_000), true);
    }

    /// Exponential for a matcher that tries every star again.
    #[test]
    fn hostile_patterns_end_soon() {
        let name = vec![b'a'; 2_000];
        assert!(!matches(&[b"a*".repeat(500), b"b".to_vec()].concat(), &name));
        assert!(!matches(&[b"*a".repeat(900), b"b*".to_vec()].concat(), &name));
        assert!(!matches(&[b"*".to_vec(), b"[^b]".repeat(500), b"b".to_vec()].concat(), &name));
    }

    #[test]
    fn agrees_with_the_reference() {
        let mut random = Random::from_environment();
        // Few bytes, the special ones among them, so that short pairs meet every rule.
        let pattern_bytes = b"aab*?[]^-\\\xff";
        let name_bytes = b"ab]-\\\x80\xff";
        for _ in 0..100_000 {
            let pattern: Vec<u8> =
                (0..random.below(10)).map(|_| *random.pick(pattern_bytes)).collect();
            let reference = ReferenceGlob::new(&pattern);
            let ends = literal_ends(&pattern);
            assert_eq!(literal_prefix(&pattern), ends.prefix);
            for _ in 0..20 {
                let name: Vec<u8> =
                    (0..random.below(6)).map(|_| *random.pick(name_bytes)).collect();
                let matched = matches(&pattern, &name);
                let text = || format!("{} on {}", pattern.escape_ascii(), name.escape_ascii());
                assert_eq!(matched, reference.matches(&name), "{}", text());
                assert_eq!(matched, matches_scanning(&pattern, &name, 0), "{}", text());
                if matched {
                    assert!(
                        name.starts_with(&ends.prefix) && name.ends_with(&ends.suffix),
                        "{}",
                        text()
                    );
                    assert!(name.len() >= ends.prefix.len() + ends.suffix.len(), "{}", text());
                }
            }
        }
    }

    /// Appends an element that takes the byte.
    fn push_element(pattern: &mut Vec<u8>, byte: u8, random: &mut Random) {
        // Behind a `\` a byte is itself, in a class and outside.
        match random.below(8) {
            0 => pattern.push(b'?'),
            1 => pattern.extend([b'[', b'x', b'\\', byte, b']']),
            2 => pattern.extend([b'[', b'^', b'\\', !byte, b']']),
            3 => pattern.extend(b"[\x80-\x7f]"),
            4 => pattern.extend(b"[^]"),
            // Whichever of the two ends is the lower.
            5 if byte != b'\\' && byte != b']' => {
                pattern.extend([b'[', byte, b'-', random.number() as u8, b']'])
            }
            _ => pattern.extend([b'\\', byte]),
        }
    }

    /// Segments of up to three passes, cut out of names that repeat themselves.
    #[test]
    fn the_search_agrees_with_the_scan() {
        let mut random = Random::from_environment();
        let mut found = [0, 0];
        for _ in 0..3_000 {
            let alphabet = *random.pick(&[&b"a"[..], b"ab", b"abc\\]", b"\0\x7f\x80\xff"]);
            let name: Vec<u8> =
                (0..1 + random.below(400)).map(|_| *random.pick(alphabet)).collect();
            let mut pattern = Vec::new();
            let mut rest = &name[..];
            for _ in 0..random.below(5) {
                pattern.extend(b"*");
                rest = &rest[random.below(rest.len() as u64 / 4 + 1) as usize..];
                let (segment, after) = rest.split_at((random.below(200) as usize).min(rest.len()));
                rest = after;
                for &byte in segment {
                    let spoilt = random.below(400) == 0;
                    let byte = if spoilt { *random.pick(alphabet) } else { byte };
                    push_element(&mut pattern, byte, &mut random);
                }
            }
            if random.below(4) != 0 {
                pattern.push(b'*');
            }
            let scanned = matches_scanning(&pattern, &name, usize::MAX);
            for scan_steps_max in [0, random.below(2_000) as usize, SCAN_STEPS_MAX] {
                assert_eq!(
                    matches_scanning(&pattern, &name, scan_steps_max),
                    scanned,
                    "{} on {}, scanning {scan_steps_max}",
                    pattern.escape_ascii(),
                    name.escape_ascii()
                );
            }
            found[usize::from(scanned)] += 1;
        }
        assert!(found.iter().all(|&times| times > 300), "one-sided: {found:?}");
    }

    /// Around the 64 positions of a pass, and at both ends of the name.
    #[test]
    fn the_search_finds_matches_across_pass_boundaries() {
        for len in [1, 2, 63, 64, 65, 127, 128, 129, 192] {
            let segment = [vec![b'a'; len - 1], vec![b'b']].concat();
            let pattern = [b"*", &segment[..], b"*"].concat();
            for before in [0, 1, 64, 100] {
                let check = |pattern: &[u8], name: &[u8], expected: bool| {
                    assert_eq!(matches_scanning(pattern, name, 0), expected, "{len} {before}");
                };
                let name = [&vec![b'a'; before], &segment[..]].concat();
                check(&pattern, &name, true);
                check(&pattern, &[&name[..], b"c"].concat(), true);
                check(&[&pattern[..], b"c"].concat(), &[&name[..], b"c"].concat(), true);
                check(&[&pattern[..], b"b"].concat(), &name, false);
                check(&pattern, &name[..name.len() - 1], false);
                check(&pattern[..pattern.len() - 1], &name, true);
                check(&pattern[..pattern.len() - 1], &[&name[..], b"a"].concat(), false);
            }
        }
    }

    fn steps(pattern: &[u8], name: &[u8]) -> usize {
        STEPS.set(0);
        matches(pattern, name);
        STEPS.get()
    }

    /// Each of these took hundreds of thousands of steps, and ten thousand of them half a minute.
    #[test]
    fn hostile_patterns_cost_few_steps() {
        #[track_caller]
        fn check(pattern: impl AsRef<[u8]>, name: &[u8], steps_max: usize) {
            let steps = steps(pattern.as_ref(), name);
            assert!(steps <= steps_max, "{steps} steps");
        }
        let name = [b'a'; 1_024];
        // PUBLISH on ten thousand of these patterns, and PUBSUB CHANNELS on as many names.
        check(format!("*{}b1*", "a".repeat(400)), &name, 11_500);
        check(format!("*{}b", "a".repeat(500)), &name, 3_000);
        check(format!("*{}b*", "a".repeat(500)), &name, 12_500);
        check(format!("*{}b*", "a".repeat(1_000)), &name, 24_000);
        check(format!("*{}b*", "?".repeat(1_000)), &name, 24_000);
        // Nothing is left after the first of many passes.
        check(format!("*{}b{}*", "a".repeat(40), "a".repeat(900)), &name, 4_500);
        // One class that is long, and many that take much.
        check(format!("*[{}]*", "b".repeat(1_000)), &name, 5_000);
        check(format!("*{}b*", "[^]".repeat(340)), &name, 12_000);
        check(format!("*{}b*", "[ -~]".repeat(204)), &name, 9_000);
        // Segments that are each just not found soon.
        let comb = format!("{}b", "a".repeat(44)).repeat(23);
        check(format!("*{}b", "a".repeat(22)).repeat(42), comb.as_bytes(), 30_000);
    }

    /// The module's words.
    #[test]
    fn no_pair_costs_more_than_is_said() {
        let mut random = Random::from_environment();
        for _ in 0..1_000 {
            let len = 1 + random.below(200) as usize;
            let element = *random.pick(&[&b"a"[..], b"?", b"[^]", b"[^b]", b"[b-za]", b"\\a"]);
            let end = *random.pick(&[&b"b"[..], b"", b"a", b"?b"]);
            let segment = [b"*", &element.repeat(len)[..], end].concat();
            let count = 1 + random.below(1_024 / segment.len() as u64 + 1) as usize;
            let pattern = [&segment.repeat(count)[..], b"*b"].concat();
            let run = random.below(3 * len as u64 + 1) as usize;
            let name: Vec<u8> = [vec![b'a'; run], vec![b'b']].concat();
            let name: Vec<u8> = name.into_iter().cycle().take(1_024).collect();
            let (p, n) = (pattern.len(), name.len());
            let steps = steps(&pattern, &name);
            assert!(
                steps <= n * p / 64 + 25 * (n + p),
                "{steps} steps for {} on {}",
                pattern.escape_ascii(),
                name.escape_ascii()
            );
        }
    }

    #[test]
    fn literal_ends_take_escapes_off() {
        #[track_caller]
        fn check(pattern: &[u8], prefix: &[u8], suffix: &[u8]) {
            assert_eq!(
                literal_ends(pattern),
                LiteralEnds { prefix: prefix.to_vec(), suffix: suffix.to_vec() }
            );
        }
        check(b"", b"", b"");
        check(b"abc", b"abc", b"");
        check(b"\\*a\\", b"*a\\", b"");
        check(b"*", b"", b"");
        check(b"room:*", b"room:", b"");
        check(b"*.created", b"", b".created");
        check(b"a*b?c\\d", b"a", b"cd");
        check(b"a[bc]d[ef", b"a", b"");
        check(b"a[b]*", b"a", b"");
        check(b"a\\[b[]]c", b"a[b", b"]c");
    }
}
