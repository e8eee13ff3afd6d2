//! What matching a pattern can cost, without a name at hand.
//!
//! A server that takes patterns from clients needs to know beforehand what a publication may cost
//! it. The unit is the step that `count_steps` counts. A step takes two to five nanoseconds in a
//! component.

use super::{Element, SCAN_STEPS_MAX, read_element};

/// The positions that a search compares at once, as in `segment_search`.
const PASS_POSITIONS: u64 = 64;
/// What a search needs for its table.
const TABLE_STEPS: u64 = 256;

/// The most steps that [`matches`](super::matches) takes for this pattern on any name of at most
/// so many bytes.
///
/// Three bounds hold at once, and the smallest is the answer. The first grows with the number of
/// segments between stars, the second with the longest segment, the third is the one that holds
/// for all patterns.
pub fn steps_max(pattern: &[u8], name_bytes: usize) -> u64 {
    let shape = Shape::read(pattern);
    let (bytes, name) = (pattern.len() as u64, name_bytes as u64);
    let Shape { has_stars, inner, longest, last, tables, long_passes } = shape;
    if !has_stars {
        return bytes;
    }
    let scan = SCAN_STEPS_MAX as u64;
    // Stars at the end match without a step, and what stands before them is a segment like others.
    // What stands behind the last star is tried until the scan ends, then at the name's end.
    let at_the_end = (scan + last).min(last * (name + 1)) + 2 * last;
    // A search of one pass never reads a byte of the name twice. Further passes do.
    let searching = if inner > 0 { name.saturating_mul(1 + long_passes) } else { 0 };
    let once = bytes * 4 + at_the_end;
    let by_segments = inner * scan + tables * TABLE_STEPS;
    // A search begins when a scan has used its steps, `longest` at most for each byte of the name
    // that it has left behind.
    let tries = longest.saturating_mul(name + inner);
    let by_longest = tries + tries / scan * TABLE_STEPS + TABLE_STEPS * (1 + long_passes);
    let bound = once + searching + by_segments.min(by_longest);
    bound.min(name.saturating_mul(bytes) / PASS_POSITIONS + 25 * (name + bytes))
}

/// What the cost of a pattern depends on.
#[derive(Default)]
struct Shape {
    has_stars: bool,
    /// How many segments stand between two stars.
    inner: u64,
    /// The bytes of the longest of them.
    longest: u64,
    /// The bytes behind the last star.
    last: u64,
    /// How many tables their searches need.
    tables: u64,
    /// How many passes the searches that need more than one make in total.
    long_passes: u64,
}

impl Shape {
    fn read(pattern: &[u8]) -> Shape {
        let mut shape = Shape::default();
        let (mut segment, mut rest) = (0, pattern);
        while let Some((element, after)) = read_element(rest) {
            let bytes = (rest.len() - after.len()) as u64;
            rest = after;
            if !matches!(element, Element::Stars) {
                segment += bytes;
                continue;
            }
            if std::mem::replace(&mut shape.has_stars, true) && segment > 0 {
                shape.inner += 1;
                shape.longest = shape.longest.max(segment);
                let passes = segment.div_ceil(PASS_POSITIONS);
                shape.tables += passes;
                if passes > 1 {
                    shape.long_passes += passes;
                }
            }
            segment = 0;
        }
        shape.last = if shape.has_stars { segment } else { 0 };
        shape
    }
}

#[cfg(test)]
mod tests {
    use super::super::{matches, tests::STEPS};
    use super::*;
    use crate::model::Random;

    #[track_caller]
    fn check(pattern: &[u8], name: &[u8]) -> (u64, u64) {
        STEPS.set(0);
        matches(pattern, name);
        let (steps, most) = (STEPS.get() as u64, steps_max(pattern, name.len()));
        assert!(
            steps <= most,
            "{} on {} takes {steps} steps, more than {most}",
            pattern.escape_ascii(),
            name.escape_ascii()
        );
        (steps, most)
    }

    #[test]
    fn no_match_takes_more_steps_than_foreseen() {
        let mut random = Random::from_environment();
        for _ in 0..20_000 {
            // Few letters, so that segments nearly match.
            let pieces: [&[u8]; 7] =
                [b"*", b"?", b"[a-b]", b"[^c]", b"aaaaaaaaaaaaaaaa", b"b", b"\\*"];
            let length = 1 + random.below(40);
            let mut pattern = Vec::new();
            for _ in 0..length {
                let piece = *random.pick(&pieces);
                for _ in 0..=random.below(3) {
                    pattern.extend_from_slice(piece);
                }
            }
            let name: Vec<u8> = match random.below(3) {
                0 => vec![b'a'; random.below(1_100) as usize],
                1 => (0..random.below(1_100)).map(|_| *random.pick(b"aaaaaaab")).collect(),
                _ => (0..random.below(200)).map(|_| *random.pick(b"ab*")).collect(),
            };
            check(&pattern, &name);
        }
    }

    #[test]
    fn patterns_made_to_hurt_are_foreseen_and_common_ones_are_cheap() {
        let name = |bytes: usize| vec![b'a'; bytes];
        for segment in [1, 2, 5, 16, 23, 63, 64, 65, 128, 200, 500] {
            let part = [name(segment - 1), b"b".to_vec(), b"*".to_vec()].concat();
            let almost = [name(segment), b"*".to_vec()].concat();
            for count in [1, 2, 5, 20, 200] {
                let pattern = [b"*".to_vec(), part.repeat(count)].concat();
                for bytes in [0, 1, 64, 990, 1_024] {
                    check(&pattern, &name(bytes));
                    check(
                        &[b"*".to_vec(), almost.repeat(count), b"b".to_vec()].concat(),
                        &name(bytes),
                    );
                    check(&[pattern.clone(), b"b".to_vec()].concat(), &part.repeat(20));
                }
            }
        }
        // The name that it was seen with: a letter and a star, many times.
        let bomb =
            [b"*".to_vec(), b"a*".repeat(178), b"0*1*2*3*4*5*6*7*8*9*x*y*z*".to_vec()].concat();
        let (steps, most) = check(&bomb, &name(990));
        assert!(most < 6 * steps, "{steps} steps are foreseen as {most}");
        for (pattern, most) in
            [("news", 4), ("*", 4), ("user.*", 24), ("user.*.created", 700), ("*mid*", 3_000)]
        {
            assert!(steps_max(pattern.as_bytes(), 1_024) <= most, "{pattern}");
        }
    }
}
