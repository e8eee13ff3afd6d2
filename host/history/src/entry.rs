//! A retained publication: one allocation, shared by the stream and by what is being sent.
//!
//! The caller makes it before it takes the lock of the streams, so that nothing is copied or
//! allocated under the lock; the stream only sets the time. A version and tags are rare. They follow
//! the payload, and two bits of the time say which of them are there, so that a publication without
//! them takes no memory for them.

use std::fmt;

use triomphe::{Arc, ThinArc};

use crate::size::allocated;

const HAS_VERSION: u64 = 1;
const HAS_TAGS: u64 = 2;
const FLAGS: u64 = HAS_VERSION | HAS_TAGS;
const FLAG_BITS: u32 = 2;

/// The count of references, the header and the length.
const OVERHEAD_BYTES: usize = 8 + size_of::<Header>() + 8;

/// A retained publication. A clone shares the memory.
#[derive(Clone)]
pub struct Entry(ThinArc<Header, u8>);

#[derive(Clone, Copy)]
struct Header {
    /// The time in milliseconds, above the flags.
    stamp: u64,
    publisher: u64,
}

/// What stands in the slice.
struct Parts<'a> {
    payload: &'a [u8],
    tags: Option<&'a [u8]>,
    version: Option<u64>,
}

impl Entry {
    /// Copies the payload. `publisher` is the id of the connection; `tags` is a text in JSON, which
    /// the caller has checked. The time is 0 until a stream retains the entry.
    pub fn new(payload: &[u8], publisher: u64, version: Option<u64>, tags: Option<&[u8]>) -> Entry {
        let mut header = Header { stamp: 0, publisher };
        if version.is_none() && tags.is_none() {
            return Entry(ThinArc::from_header_and_slice(header, payload));
        }
        let mut bytes = payload.to_vec();
        if let Some(tags) = tags {
            header.stamp |= HAS_TAGS;
            bytes.extend_from_slice(tags);
            bytes.extend_from_slice(&(tags.len() as u64).to_le_bytes());
        }
        if let Some(version) = version {
            header.stamp |= HAS_VERSION;
            bytes.extend_from_slice(&version.to_le_bytes());
        }
        Entry(ThinArc::from_header_and_slice(header, &bytes))
    }

    /// An entry from disk or the backplane, with its time. The connection that published it is unknown: 0.
    pub fn restored(
        payload: &[u8],
        version: Option<u64>,
        tags: Option<&[u8]>,
        unix_ms: u64,
    ) -> Entry {
        let mut entry = Entry::new(payload, 0, version, tags);
        entry.set_time(unix_ms & (u64::MAX >> FLAG_BITS));
        entry
    }

    /// What was published.
    pub fn payload(&self) -> &[u8] {
        self.parts().payload
    }

    /// The id of the connection that published it.
    pub fn publisher(&self) -> u64 {
        self.0.header.header.publisher
    }

    /// When it was published, in milliseconds since 1970.
    #[inline]
    pub fn unix_ms(&self) -> u64 {
        self.0.header.header.stamp >> FLAG_BITS
    }

    /// The version that the publisher gave it.
    #[inline]
    pub fn version(&self) -> Option<u64> {
        match self.0.header.header.stamp & HAS_VERSION {
            0 => None,
            _ => self.parts().version,
        }
    }

    /// Its tags, as a text in JSON.
    pub fn tags(&self) -> Option<&[u8]> {
        self.parts().tags
    }

    /// What it counts in an answer: the payload and the tags.
    pub fn answer_bytes(&self) -> usize {
        let Parts { payload, tags, .. } = self.parts();
        payload.len() + tags.map_or(0, <[u8]>::len)
    }

    /// The memory it takes.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        allocated((OVERHEAD_BYTES + self.0.slice.len()).next_multiple_of(8))
    }

    /// Sets the time. A clone elsewhere keeps its own: then this becomes a copy.
    pub(crate) fn set_time(&mut self, unix_ms: u64) {
        let Header { stamp, publisher } = self.0.header.header;
        let stamp = unix_ms << FLAG_BITS | stamp & FLAGS;
        let is_set = self.0.with_arc_mut(|arc| match Arc::get_mut(arc) {
            Some(unique) => {
                unique.header_mut().stamp = stamp;
                true
            }
            None => false,
        });
        if !is_set {
            let header = Header { stamp, publisher };
            self.0 = ThinArc::from_header_and_slice(header, &self.0.slice);
        }
    }

    #[inline]
    fn parts(&self) -> Parts<'_> {
        let bytes = &self.0.slice;
        match self.0.header.header.stamp & FLAGS {
            0 => Parts { payload: bytes, tags: None, version: None },
            flags => parts(bytes, flags),
        }
    }
}

fn parts(bytes: &[u8], flags: u64) -> Parts<'_> {
    const WRITTEN: &str = "what the flags say was written";
    let mut parts = Parts { payload: bytes, tags: None, version: None };
    if flags & HAS_VERSION != 0 {
        let (rest, version) = parts.payload.split_last_chunk().expect(WRITTEN);
        parts.version = Some(u64::from_le_bytes(*version));
        parts.payload = rest;
    }
    if flags & HAS_TAGS != 0 {
        let (rest, length) = parts.payload.split_last_chunk().expect(WRITTEN);
        let length = u64::from_le_bytes(*length) as usize;
        let at = rest.len().saturating_sub(length);
        let (payload, tags) = rest.split_at_checked(at).expect(WRITTEN);
        parts.payload = payload;
        parts.tags = Some(tags);
    }
    parts
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        let [one, other] = [&self.0, &other.0];
        one.header.header.stamp == other.header.header.stamp
            && one.header.header.publisher == other.header.header.publisher
            && one.slice == other.slice
    }
}

impl Eq for Entry {}

impl fmt::Debug for Entry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Entry")
            .field("payload", &String::from_utf8_lossy(self.payload()))
            .field("publisher", &self.publisher())
            .field("unix_ms", &self.unix_ms())
            .field("version", &self.version())
            .field("tags", &self.tags().map(String::from_utf8_lossy))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_what_it_was_made_of() {
        for version in [None, Some(1), Some((1 << 53) - 1)] {
            for tags in [None, Some(br#"{"a":"b"}"#.as_slice())] {
                for payload in ["", "hi"] {
                    let mut entry = Entry::new(payload.as_bytes(), 7, version, tags);
                    let before = entry.clone();
                    entry.set_time(1_764_340_000_000);
                    assert_eq!(entry.payload(), payload.as_bytes());
                    assert_eq!(entry.publisher(), 7);
                    assert_eq!(entry.version(), version);
                    assert_eq!(entry.tags(), tags);
                    assert_eq!(entry.unix_ms(), 1_764_340_000_000);
                    assert_eq!(before.unix_ms(), 0, "a clone keeps its time");
                    assert_eq!(before.payload(), payload.as_bytes());
                }
            }
        }
    }

    #[test]
    fn an_entry_of_its_own_is_not_copied() {
        let mut entry = Entry::new(b"hi", 7, None, None);
        let at = entry.payload().as_ptr();
        entry.set_time(9);
        assert_eq!(entry.payload().as_ptr(), at);
        assert_eq!(entry.unix_ms(), 9);
    }
}
