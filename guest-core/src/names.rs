//! Several names in one piece, as they travel between host and engine.
//!
//! One list of bytes and one of ends cost two copies into a component's memory however many names
//! there are; a list of lists would cost two for each name.

/// Several names: the bytes of all, end to end, and where each ends.
///
/// The fields are public because they come from, and go to, the other side of a component boundary
/// as they are. `ends` must not decrease and must not exceed the length of `bytes`: reading a name
/// that violates this panics. Bytes after the last end belong to no name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The bytes of all names, end to end.
    pub bytes: Vec<u8>,
    /// For each name, where it ends in `bytes`. It starts where the one before ends.
    pub ends: Vec<u32>,
}

impl Names {
    /// No names.
    pub fn new() -> Names {
        Names::default()
    }

    /// Adds a name, which may be empty.
    ///
    /// # Panics
    ///
    /// When the names together take 4 GiB or more.
    pub fn push(&mut self, name: &[u8]) {
        self.bytes.extend_from_slice(name);
        self.ends
            .push(u32::try_from(self.bytes.len()).expect("names of one call take less than 4 GiB"));
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The name at this position; none when there are not so many.
    ///
    /// # Panics
    ///
    /// When `ends` fall here or pass the end of `bytes`.
    pub fn get(&self, position: usize) -> Option<&[u8]> {
        let end = *self.ends.get(position)?;
        let start =
            position.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        Some(self.between(start, end))
    }

    /// The names in order.
    ///
    /// # Panics
    ///
    /// On reaching a name where `ends` fall or pass the end of `bytes`.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let name = self.between(start, end);
            start = end;
            name
        })
    }

    /// How much memory they hold, besides this value.
    pub fn heap_bytes(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<u32>()
    }

    /// Forgets all names and keeps the memory for the next.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    fn between(&self, start: u32, end: u32) -> &[u8] {
        self.bytes
            .get(start as usize..end as usize)
            .expect("the ends of names never fall and stay within their bytes")
    }
}

/// A part of a list of names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The names of this part, in their order.
    pub names: Names,
    /// Where the next part begins; none: there is no further part.
    pub next: Option<Vec<u8>>,
}

impl<N: AsRef<[u8]>> FromIterator<N> for Names {
    fn from_iter<I: IntoIterator<Item = N>>(iterator: I) -> Names {
        let mut names = Names::new();
        for name in iterator {
            names.push(name.as_ref());
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_out_as_they_went_in() {
        let words: [&[u8]; 4] = [b"", b"room:1", b"", b"\xff\x00"];
        let mut names: Names = words.iter().collect();
        assert_eq!(names.iter().collect::<Vec<_>>(), words);
        assert_eq!(
            (0..5).map(|position| names.get(position)).collect::<Vec<_>>(),
            [Some(words[0]), Some(words[1]), Some(words[2]), Some(words[3]), None]
        );
        assert_eq!((names.len(), names.is_empty()), (4, false));
        names.clear();
        assert_eq!(names, Names::new());
        assert!(names.is_empty());
    }

    #[test]
    #[should_panic(expected = "never fall and stay within")]
    fn ends_that_fall_are_the_hosts_fault() {
        let names = Names { bytes: b"abc".to_vec(), ends: vec![2, 1] };
        names.iter().for_each(drop);
    }

    #[test]
    #[should_panic(expected = "never fall and stay within")]
    fn ends_past_the_bytes_are_the_hosts_fault() {
        let names = Names { bytes: b"abc".to_vec(), ends: vec![2, 4] };
        names.get(1);
    }
}
