//! How a registry is written down for its successor.
//!
//! A magic word and a version; then the channels, the patterns, and the free pattern ids. Each part
//! is a count and its entries: a channel is a name and subscribers, a pattern is a name, its id and
//! subscribers. A name is its length and its bytes; subscribers are a count, the lowest id, and
//! each further one as the distance from the one before. Numbers are in LEB128, as in wasm itself.
//! Names and ids rise, so that the maps are built in bulk, without a search for each entry.
//!
//! There is one way to write a registry, and nothing else is read: a state that `restore` takes is
//! what `save` would write. No count is believed that the bytes left cannot hold.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

use crate::name::{AsName, Name};
use crate::patterns::{Pattern, Patterns};
use crate::subscribers::Subscribers;
use crate::{ConnectionId, PatternId, Registry};

const MAGIC: &[u8] = b"SWYD";

/// Goes up when the rest of the format changes.
const VERSION: u8 = 1;

/// A name's length, a count of subscribers, a subscriber.
const CHANNEL_BYTES_MIN: usize = 3;

/// The same and an id.
const PATTERN_BYTES_MIN: usize = 4;

/// Why a state was not restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreError {
    /// Written by a version this one does not read.
    Unsupported,
    /// Not something `save` ever wrote.
    Corrupt,
}

impl fmt::Display for RestoreError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            RestoreError::Unsupported => {
                "the state was written by a version that this one does not read"
            }
            RestoreError::Corrupt => "the state is not something that was ever saved",
        })
    }
}

impl Error for RestoreError {}

pub(crate) fn save(registry: &Registry) -> Vec<u8> {
    let mut writer = Writer { bytes: [MAGIC, &[VERSION]].concat(), connections: Vec::new() };
    writer.count(registry.channels.len());
    for (channel, subscribers) in &registry.channels {
        writer.name(channel.bytes());
        writer.subscribers(subscribers);
    }
    writer.count(registry.patterns.len());
    for pattern in registry.patterns.iter() {
        writer.name(&pattern.bytes);
        writer.number(pattern.id.into());
        writer.subscribers(&pattern.subscribers);
    }
    writer.count(registry.patterns.free().len());
    for &id in registry.patterns.free() {
        writer.number(id.into());
    }
    writer.bytes
}

pub(crate) fn restore(state: &[u8]) -> Result<Registry, RestoreError> {
    let versioned = state.strip_prefix(MAGIC).ok_or(RestoreError::Corrupt)?;
    let (&version, rest) = versioned.split_first().ok_or(RestoreError::Corrupt)?;
    if version != VERSION {
        return Err(RestoreError::Unsupported);
    }
    Reader { rest }.registry().ok_or(RestoreError::Corrupt)
}

struct Writer {
    bytes: Vec<u8>,
    /// Those of one name, while they are written.
    connections: Vec<ConnectionId>,
}

impl Writer {
    fn subscribers(&mut self, subscribers: &Subscribers) {
        self.connections.clear();
        subscribers.append_to(&mut self.connections);
        self.count(self.connections.len());
        let mut before = 0;
        for &connection in &self.connections {
            write_number(&mut self.bytes, connection - before);
            before = connection;
        }
    }

    fn name(&mut self, name: &[u8]) {
        self.count(name.len());
        self.bytes.extend_from_slice(name);
    }

    fn count(&mut self, count: usize) {
        self.number(count as u64);
    }

    fn number(&mut self, number: u64) {
        write_number(&mut self.bytes, number);
    }
}

fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Reads what the writer wrote. None: it never wrote that.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn registry(mut self) -> Option<Registry> {
        let channels = self.channels()?;
        let patterns = self.patterns()?;
        let free = self.free()?;
        if !self.rest.is_empty() {
            return None;
        }
        Some(Registry { channels, patterns: Patterns::rebuild(patterns, free)? })
    }

    fn channels(&mut self) -> Option<BTreeMap<Name, Subscribers>> {
        let count = self.count(CHANNEL_BYTES_MIN)?;
        let mut channels: Vec<(Name, _)> = Vec::with_capacity(count);
        for _ in 0..count {
            let name = self.name()?;
            if channels.last().is_some_and(|(before, _)| before.bytes() >= name) {
                return None;
            }
            channels.push((name.into(), self.subscribers()?));
        }
        Some(BTreeMap::from_iter(channels))
    }

    fn patterns(&mut self) -> Option<Vec<Pattern>> {
        let count = self.count(PATTERN_BYTES_MIN)?;
        let mut patterns: Vec<Pattern> = Vec::with_capacity(count);
        for _ in 0..count {
            let name = self.name()?;
            if patterns.last().is_some_and(|before| &*before.bytes >= name) {
                return None;
            }
            patterns.push(Pattern {
                bytes: name.into(),
                id: self.pattern_id()?,
                subscribers: self.subscribers()?,
            });
        }
        Some(patterns)
    }

    fn free(&mut self) -> Option<Vec<PatternId>> {
        let count = self.count(1)?;
        (0..count).map(|_| self.pattern_id()).collect()
    }

    /// At least one, rising.
    fn subscribers(&mut self) -> Option<Subscribers> {
        let count = self.count(1)?;
        if count == 0 {
            return None;
        }
        let mut connection = self.number()?;
        if count == 1 {
            return Some(Subscribers::One(connection));
        }
        let mut connections = Vec::with_capacity(count);
        connections.push(connection);
        for _ in 1..count {
            let distance = self.number()?;
            connection = connection.checked_add(distance).filter(|_| distance > 0)?;
            connections.push(connection);
        }
        Some(Subscribers::from(connections))
    }

    fn name(&mut self) -> Option<&'a [u8]> {
        let length = self.count(1)?;
        let (name, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(name)
    }

    fn pattern_id(&mut self) -> Option<PatternId> {
        self.number()?.try_into().ok()
    }

    /// A count of things that take at least so many bytes each, and that the bytes left can hold.
    fn count(&mut self, each_bytes_min: usize) -> Option<usize> {
        let count = usize::try_from(self.number()?).ok()?;
        (count <= self.rest.len() / each_bytes_min).then_some(count)
    }

    /// A number written in as few bytes as possible.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return (byte > 0 || shift == 0).then_some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FanOuts, Names};

    /// Small enough to try all that can happen to it, and of everything something: an empty name,
    /// several subscribers, an id that takes all its bytes, a free pattern id.
    fn small_registry() -> Registry {
        let mut registry = Registry::new();
        registry.subscribe(3, &Names::from_iter(["", "a", "ab"]));
        registry.subscribe(300, &Names::from_iter(["a"]));
        registry.subscribe(u64::MAX, &Names::from_iter(["a"]));
        registry.psubscribe(3, &Names::from_iter(["b*", "x", "a*b", "*a"]));
        registry.psubscribe(4, &Names::from_iter(["a*b"]));
        registry.punsubscribe(3, &Names::from_iter(["x", "b*"]));
        registry
    }

    /// Either it is refused, or it is what `save` would write; it never panics.
    #[track_caller]
    fn check(state: &[u8]) {
        if let Ok(registry) = Registry::restore(state) {
            assert_eq!(registry.save(), state);
            registry.route(&Names::from_iter(["", "a", "ab", "aab"]), &mut FanOuts::default());
        }
    }

    #[track_caller]
    fn check_refused(parts: &[&[u8]], expected: RestoreError) {
        assert_eq!(Registry::restore(&parts.concat()).map(drop), Err(expected));
    }

    #[test]
    fn what_was_saved_comes_back() {
        for registry in [Registry::new(), small_registry()] {
            let mut restored = Registry::restore(&registry.save()).expect("it was just saved");
            assert_eq!(restored.save(), registry.save());
            let names = Names::from_iter(["", "a", "ab", "aab"]);
            let [mut expected, mut fan_outs] = [FanOuts::default(), FanOuts::default()];
            registry.route(&names, &mut expected);
            restored.route(&names, &mut fan_outs);
            assert_eq!(fan_outs, expected);
            // The next ids are those that the predecessor would have given.
            let (mut registry, new) = (registry, Names::from_iter(["n1", "n2", "n3"]));
            assert_eq!(restored.psubscribe(9, &new), registry.psubscribe(9, &new));
        }
    }

    #[test]
    fn a_truncated_state_is_corrupt() {
        let state = small_registry().save();
        for end in 0..state.len() {
            check_refused(&[&state[..end]], RestoreError::Corrupt);
        }
    }

    #[test]
    fn a_state_with_one_changed_byte_is_refused_or_restored_exactly() {
        let state = small_registry().save();
        for position in 0..state.len() {
            let mut changed = state.clone();
            for byte in 0..=u8::MAX {
                changed[position] = byte;
                check(&changed);
            }
        }
    }

    #[test]
    fn impossible_states_are_corrupt() {
        let head = [MAGIC, &[VERSION]].concat();
        check_refused(&[b""], RestoreError::Corrupt);
        check_refused(&[b"SWYD"], RestoreError::Corrupt);
        check_refused(&[b"DYWS\x01\0\0\0"], RestoreError::Corrupt);
        assert!(Registry::restore(&[&*head, &[0, 0, 0]].concat()).is_ok());
        // Trailing bytes.
        check_refused(&[&head, &[0, 0, 0], &[0]], RestoreError::Corrupt);
        // A channel without subscribers.
        check_refused(&[&head, &[1], b"\x01a", &[0], &[0, 0]], RestoreError::Corrupt);
        // Channels that fall, and one that is there twice.
        check_refused(
            &[&head, &[2], b"\x01b", &[1, 1], b"\x01a", &[1, 1], &[0, 0]],
            RestoreError::Corrupt,
        );
        check_refused(
            &[&head, &[2], b"\x01a", &[1, 1], b"\x01a", &[1, 1], &[0, 0]],
            RestoreError::Corrupt,
        );
        // A subscriber that is there twice, and one past the last number.
        check_refused(&[&head, &[1], b"\x01a", &[2, 1, 0], &[0, 0]], RestoreError::Corrupt);
        let last = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert!(
            Registry::restore(&[&*head, &[1], b"\x01a", &[1], &last, &[0, 0]].concat()).is_ok()
        );
        check_refused(&[&head, &[1], b"\x01a", &[2], &last, &[1], &[0, 0]], RestoreError::Corrupt);
        // Numbers of more than 64 bits, and with more bytes than they need.
        check_refused(
            &[&head, &[1], b"\x01a", &[1], &last[..9], &[0x02], &[0, 0]],
            RestoreError::Corrupt,
        );
        check_refused(
            &[&head, &[1], b"\x01a", &[1], &last[..9], &[0x81, 0x00], &[0, 0]],
            RestoreError::Corrupt,
        );
        check_refused(
            &[&head, &[1], b"\x01a", &[1], &[0x81, 0x00], &[0, 0]],
            RestoreError::Corrupt,
        );
        // Counts that the bytes left cannot hold.
        check_refused(&[&head, &last], RestoreError::Corrupt);
        check_refused(&[&head, &[0], &last], RestoreError::Corrupt);
        check_refused(&[&head, &[0, 0], &last], RestoreError::Corrupt);
        check_refused(&[&head, &[1], &last], RestoreError::Corrupt);
        check_refused(&[&head, &[1], b"\x01a", &last], RestoreError::Corrupt);
        // Pattern ids: one that is there twice, one that is missing, one that is also free.
        check_refused(
            &[&head, &[0, 2], b"\x01a\0\x01\x01", b"\x01b\0\x01\x01", &[0]],
            RestoreError::Corrupt,
        );
        check_refused(&[&head, &[0, 1], b"\x01a\x01\x01\x01", &[0]], RestoreError::Corrupt);
        check_refused(&[&head, &[0, 1], b"\x01a\0\x01\x01", &[1, 0]], RestoreError::Corrupt);
        assert!(
            Registry::restore(&[&*head, &[0, 1], b"\x01a\x01\x01\x01", &[1, 0]].concat()).is_ok()
        );
    }

    #[test]
    fn other_versions_are_unsupported() {
        check_refused(&[MAGIC, &[0]], RestoreError::Unsupported);
        check_refused(&[MAGIC, &[VERSION + 1], b"whatever"], RestoreError::Unsupported);
    }
}
