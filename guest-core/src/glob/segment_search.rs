//! Finds a segment of a pattern, what stands between two `*`, in a name: the way that is slow to
//! begin with and has no bad case.
//!
//! It is Shift-And. Each bit of a word is a position of the segment, and says whether the bytes of
//! the name that were read last match the segment up to there; with each byte, all move on at once.
//! A longer segment needs several passes of 64 positions, and each goes on where the one before
//! matched. So there is one table at a time, 2 KiB on the stack, from a byte to the positions that
//! take it, and none is kept with a pattern.
//!
//! A pass costs its part of the segment, 256 steps for the table where not all of it is literal,
//! and a step for each byte of the name.

use super::{Element, count_steps, read_element, read_member};

/// What a pattern begins with, up to its first `*` or its end.
pub(super) struct Segment<'a> {
    bytes: &'a [u8],
    /// How many bytes of a name it takes, which are always as many.
    pub positions: usize,
    /// What follows it: nothing, or a `*` and more.
    pub rest: &'a [u8],
}

impl<'a> Segment<'a> {
    pub fn read(pattern: &'a [u8]) -> Segment<'a> {
        let (mut positions, mut rest) = (0, pattern);
        while let Some((element, after)) = read_element(rest) {
            if matches!(element, Element::Stars) {
                break;
            }
            count_steps(rest.len() - after.len());
            (positions, rest) = (positions + 1, after);
        }
        Segment { bytes: &pattern[..pattern.len() - rest.len()], positions, rest }
    }

    /// What follows the leftmost match in the name; none where nothing matches.
    pub fn find<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        let first = Pass::read(self.bytes);
        if first.rest.is_empty() {
            // Most segments are so short, and then every byte is one to begin at.
            let mut state = 0;
            for (at, &byte) in name.iter().enumerate() {
                count_steps(1);
                state = ((state << 1) | 1) & first.takers[usize::from(row(byte))];
                if state & first.last != 0 {
                    return Some(&name[at + 1..]);
                }
            }
            return None;
        }
        // For each byte, whether the passes before match what ends right before it.
        let mut open = vec![true; name.len()];
        let mut segment = self.bytes;
        loop {
            let pass = Pass::read(segment);
            let (mut state, mut matched) = (0, false);
            for (at, (&byte, open)) in name.iter().zip(&mut open).enumerate() {
                count_steps(1);
                let enters = std::mem::replace(open, matched);
                state = ((state << 1) | u64::from(enters)) & pass.takers[usize::from(row(byte))];
                matched = state & pass.last != 0;
                if matched && pass.rest.is_empty() {
                    return Some(&name[at + 1..]);
                }
            }
            if pass.rest.is_empty() || !open.contains(&true) {
                return None;
            }
            segment = pass.rest;
        }
    }
}

/// The first 64 positions of what is left of a segment, or all when there are fewer.
struct Pass<'a> {
    /// For each byte, in its row, the positions that take it.
    takers: [u64; 256],
    /// The last position.
    last: u64,
    rest: &'a [u8],
}

impl Pass<'_> {
    fn read(segment: &[u8]) -> Pass<'_> {
        let mut takers = [0; 256];
        // For elements that take several bytes: a position stands only in the rows where its being
        // a taker changes, so that one that takes many costs no more than one that takes few.
        let mut changes: Option<[u64; 256]> = None;
        let (mut last, mut rest) = (0, segment);
        for position in (0..u64::BITS).map(|shift| 1 << shift) {
            let Some((element, after)) = read_element(rest) else {
                break;
            };
            count_steps(rest.len() - after.len());
            match element {
                Element::Stars => break,
                Element::AnyByte => changes.get_or_insert([0; 256])[0] ^= position,
                Element::Literal(byte) => takers[usize::from(row(byte))] |= position,
                Element::Class { negated, members } => {
                    let changes = changes.get_or_insert([0; 256]);
                    class_rows(negated, members)
                        .visit_changes(|row| changes[usize::from(row)] ^= position);
                }
            }
            (last, rest) = (position, after);
        }
        let mut before = 0;
        for (takers, changes) in takers.iter_mut().zip(changes.iter().flatten()) {
            count_steps(1);
            before ^= changes;
            *takers |= before;
        }
        Pass { takers, last, rest }
    }
}

/// Where a byte stands in tables: in the order of C's signed `char`, so that a range is one run.
fn row(byte: u8) -> u8 {
    byte ^ 0x80
}

/// The rows of the bytes that a class takes.
fn class_rows(negated: bool, members: &[u8]) -> Rows {
    let mut rows = Rows([0; 2]);
    let mut rest = members;
    while let Some(((one_end, other_end), after)) = read_member(rest) {
        rest = after;
        let (one_end, other_end) = (row(one_end), row(other_end));
        rows.insert(one_end.min(other_end), one_end.max(other_end));
    }
    if negated { Rows(rows.0.map(|half| !half)) } else { rows }
}

/// A set of rows, a bit for each.
struct Rows([u128; 2]);

impl Rows {
    /// Adds those from `first` to `last`, both included.
    fn insert(&mut self, first: u8, last: u8) {
        for (half, base) in self.0.iter_mut().zip([0, 128]) {
            let from = |row: u32| u128::MAX.checked_shl(row.saturating_sub(base)).unwrap_or(0);
            *half |= from(u32::from(first)) & !from(u32::from(last) + 1);
        }
    }

    /// Visits every row that is in the set and the one before not, or the other way round.
    fn visit_changes(&self, mut visit: impl FnMut(u8)) {
        let [low, high] = self.0;
        let changes = [low ^ (low << 1), high ^ ((high << 1) | (low >> 127))];
        for (mut half, base) in changes.into_iter().zip([0, 128]) {
            while half != 0 {
                visit(base + half.trailing_zeros() as u8);
                half &= half - 1;
            }
        }
    }
}
