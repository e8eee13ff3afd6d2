//! A name as the key of an ordered map.
//!
//! The order is that of the bytes, as slices have it, found eight bytes at a time. In a component
//! the comparison of slices is a loop over single bytes, and looking for one among ten thousand
//! channels is fourteen of them: that was three quarters of what routing one name cost there.

use std::borrow::Borrow;
use std::cmp::Ordering;

/// A name that a map holds. Look for one by a borrowed slice: `map.get(key(&bytes))`.
#[derive(Debug)]
pub(crate) struct Name(pub Box<[u8]>);

/// What can be looked for where names are held.
pub(crate) trait AsName {
    /// The bytes of the name.
    fn bytes(&self) -> &[u8];
}

/// What to look for in a map of names.
pub(crate) fn key<'a>(bytes: &'a &'a [u8]) -> &'a (dyn AsName + 'a) {
    bytes
}

impl From<&[u8]> for Name {
    fn from(bytes: &[u8]) -> Name {
        Name(bytes.into())
    }
}

impl AsName for Name {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl AsName for &[u8] {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl<'a> Borrow<dyn AsName + 'a> for Name {
    fn borrow(&self) -> &(dyn AsName + 'a) {
        self
    }
}

impl Ord for dyn AsName + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self.bytes(), other.bytes())
    }
}

impl PartialOrd for dyn AsName + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn AsName + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for dyn AsName + '_ {}

impl Ord for Name {
    fn cmp(&self, other: &Name) -> Ordering {
        compare(&self.0, &other.0)
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Name) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Name) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Name {}

/// As `left.cmp(right)`.
pub(crate) fn compare(left: &[u8], right: &[u8]) -> Ordering {
    let (mut left_rest, mut right_rest) = (left, right);
    loop {
        let left_word = take_word(&mut left_rest);
        let right_word = take_word(&mut right_rest);
        if left_word != right_word {
            return left_word.cmp(&right_word);
        }
        // A word that was filled up with zeros is the last; so is one that another was compared
        // with. Where all words are alike, the zeros were zeros or nothing, and length decides.
        if left_rest.is_empty() || right_rest.is_empty() {
            return left.len().cmp(&right.len());
        }
    }
}

/// The next eight bytes, the first the most significant, filled up with zeros where there are
/// fewer.
fn take_word(rest: &mut &[u8]) -> u64 {
    if let Some((word, after)) = rest.split_first_chunk() {
        *rest = after;
        return u64::from_be_bytes(*word);
    }
    let mut tail = std::mem::take(rest);
    let mut word = 0;
    let mut free_bits = u64::BITS;
    if let Some((four, after)) = tail.split_first_chunk() {
        free_bits -= 32;
        word |= u64::from(u32::from_be_bytes(*four)) << free_bits;
        tail = after;
    }
    for &byte in tail {
        free_bits -= 8;
        word |= u64::from(byte) << free_bits;
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All names of up to ten bytes that differ from each other in one place of interest, against
    /// the order of slices.
    #[test]
    fn names_are_ordered_as_their_bytes() {
        let mut names = vec![Vec::new()];
        for length in 1..=18 {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                for place in 0..length {
                    for filler in [0, b'a', 0xff] {
                        let mut name = vec![filler; length];
                        name[place] = byte;
                        names.push(name);
                    }
                }
            }
        }
        for left in &names {
            for right in &names {
                assert_eq!(compare(left, right), left.cmp(right), "{left:?} {right:?}");
            }
        }
    }
}
