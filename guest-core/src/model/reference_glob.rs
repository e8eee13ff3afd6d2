//! Redis' globs, implemented rule by rule from their description, without regard to cost.
//!
//! Every element but `*` is the set of the bytes it takes, written out. A `*` tries every length by
//! recursion, which is exponential: keep patterns short.

/// A parsed pattern.
#[derive(Debug)]
pub struct ReferenceGlob {
    elements: Vec<Element>,
}

#[derive(Debug)]
enum Element {
    Star,
    /// One byte, if its place in here is true.
    OneOf(Box<[bool; 256]>),
}

impl ReferenceGlob {
    /// Parses a pattern.
    pub fn new(pattern: &[u8]) -> ReferenceGlob {
        let mut elements = Vec::new();
        let mut at = 0;
        while at < pattern.len() {
            let mut accepted = Box::new([false; 256]);
            match pattern[at] {
                b'*' => {
                    elements.push(Element::Star);
                    at += 1;
                    continue;
                }
                b'?' => *accepted = [true; 256],
                b'[' => at = read_class(pattern, at + 1, &mut accepted),
                // A `\` with something after it is not looked at itself.
                b'\\' if at + 1 < pattern.len() => {
                    at += 1;
                    accepted[pattern[at] as usize] = true;
                }
                literal => accepted[literal as usize] = true,
            }
            elements.push(Element::OneOf(accepted));
            at += 1;
        }
        ReferenceGlob { elements }
    }

    /// Whether it matches this name.
    pub fn matches(&self, name: &[u8]) -> bool {
        // Redis looks at the pattern only while there is some name left.
        if name.is_empty() {
            return self.elements.is_empty();
        }
        // A run of stars is one, and each but one at the end is one level of Redis' recursion, of
        // which it has 1000.
        let stars = self
            .elements
            .windows(2)
            .filter(|pair| matches!(pair, [Element::Star, Element::OneOf(_)]))
            .count();
        stars <= 1000 && matches_from(&self.elements, name)
    }
}

fn matches_from(elements: &[Element], name: &[u8]) -> bool {
    match elements {
        [] => name.is_empty(),
        [Element::Star, rest @ ..] => {
            (0..=name.len()).any(|length| matches_from(rest, &name[length..]))
        }
        [Element::OneOf(accepted), rest @ ..] => {
            name.first().is_some_and(|&byte| accepted[byte as usize])
                && matches_from(rest, &name[1..])
        }
    }
}

/// Reads a class from the byte after its `[`, and answers the position of its last byte: the `]`,
/// or the end of the pattern.
fn read_class(pattern: &[u8], start: usize, accepted: &mut [bool; 256]) -> usize {
    let negated = pattern.get(start) == Some(&b'^');
    let mut at = if negated { start + 1 } else { start };
    while at < pattern.len() && pattern[at] != b']' {
        let left = pattern.len() - at;
        if pattern[at] == b'\\' && left >= 2 {
            accepted[pattern[at + 1] as usize] = true;
            at += 2;
        } else if left >= 3 && pattern[at + 1] == b'-' {
            let mut ends = [pattern[at] as i8, pattern[at + 2] as i8];
            ends.sort_unstable();
            for byte in ends[0]..=ends[1] {
                accepted[byte as u8 as usize] = true;
            }
            at += 3;
        } else {
            accepted[pattern[at] as usize] = true;
            at += 1;
        }
    }
    if negated {
        for byte in accepted {
            *byte = !*byte;
        }
    }
    at.min(pattern.len() - 1)
}
