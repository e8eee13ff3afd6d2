//! The bytes of keys and values.
//!
//! Numbers in keys are big-endian, so that keys are in the order of numbers; those in values are
//! little-endian. A value begins with a checksum over its key and the rest of it, and with the
//! version of the format. What does not decode to the last byte is damaged.

use switchyard_history::{Entry, Epoch, StoredKey, StoredStream};
use switchyard_types::command::Published;
use switchyard_types::position::Position;

/// The version of the format. A store of another version is set aside.
pub(crate) const VERSION: u8 = 1;

/// The bytes before the content of a value.
const HEAD_BYTES: usize = 5;

const HAS_LISTENERS: u8 = 1;
const HAS_VERSION: u8 = 1;
const HAS_TAGS: u8 = 2;
const HAS_POSITION: u8 = 1;
const IS_STALE: u8 = 2;

/// The key of a stream, or of a block of answers.
pub(crate) fn key(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

pub(crate) fn number_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.try_into().ok()?))
}

/// The key of a block of messages: the stream, and the number of its first message.
pub(crate) fn block_key(stream: u64, first: u64) -> [u8; 16] {
    (u128::from(stream) << 64 | u128::from(first)).to_be_bytes()
}

pub(crate) fn block_of(key: &[u8]) -> Option<(u64, u64)> {
    let key = u128::from_be_bytes(key.try_into().ok()?);
    Some(((key >> 64) as u64, key as u64))
}

/// A value that is being written.
pub(crate) struct Value(Vec<u8>);

impl Value {
    fn new(capacity: usize) -> Value {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + capacity);
        bytes.extend_from_slice(&[0, 0, 0, 0, VERSION]);
        Value(bytes)
    }

    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn finish(mut self, key: &[u8]) -> Vec<u8> {
        let sum = self.0.get(4..).map_or(0, |content| checksum(key, content));
        if let Some(head) = self.0.first_chunk_mut() {
            *head = sum.to_le_bytes();
        }
        self.0
    }
}

/// The checksum that a value begins with.
pub(crate) fn checksum_of(value: &[u8]) -> u32 {
    value.first_chunk().map_or(0, |head| u32::from_le_bytes(*head))
}

fn checksum(key: &[u8], content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(content);
    hasher.finalize()
}

/// A value that is being read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The content of a value. None: it is not what was written under this key.
    fn new(key: &[u8], value: &'a [u8]) -> Option<Reader<'a>> {
        let (head, content) = value.split_first_chunk()?;
        if u32::from_le_bytes(*head) != checksum(key, content) {
            return None;
        }
        let (version, rest) = content.split_first()?;
        (*version == VERSION).then_some(Reader(rest))
    }

    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    /// Items until the end.
    fn all<T>(mut self, item: impl Fn(&mut Reader<'a>) -> Option<T>) -> Option<Vec<T>> {
        let mut items = Vec::new();
        while !self.0.is_empty() {
            items.push(item(&mut self)?);
        }
        Some(items)
    }
}

pub(crate) fn encode_stream(stream: &StoredStream) -> Vec<u8> {
    let mut value = Value::new(stream.name.len() + 64);
    value.byte(if stream.has_listeners { HAS_LISTENERS } else { 0 });
    value.bytes(&stream.name);
    value.number(stream.first);
    value.number(stream.last);
    value.number(stream.active_ms);
    for Epoch { epoch, base } in &stream.epochs {
        value.number(*epoch);
        value.number(*base);
    }
    value.finish(&key(stream.id))
}

/// None: it is damaged.
pub(crate) fn decode_stream(id: u64, value: &[u8]) -> Option<StoredStream> {
    let mut reader = Reader::new(&key(id), value)?;
    let has_listeners = reader.byte()? == HAS_LISTENERS;
    let name = reader.bytes()?.into();
    let (first, last, active_ms) = (reader.number()?, reader.number()?, reader.number()?);
    let epochs =
        reader.all(|reader| Some(Epoch { epoch: reader.number()?, base: reader.number()? }))?;
    let rises = epochs.is_sorted_by(|one, next| one.epoch < next.epoch && one.base <= next.base);
    let is_sound = rises
        && epochs.last().is_some_and(|epoch| epoch.base <= last)
        && (1..=last.checked_add(1)?).contains(&first);
    let stream = StoredStream { id, name, epochs, first, last, active_ms, has_listeners };
    is_sound.then_some(stream)
}

pub(crate) fn encode_block(stream: u64, first: u64, entries: &[Entry]) -> Vec<u8> {
    let payloads: usize = entries.iter().map(|entry| entry.payload().len() + 24).sum();
    let mut value = Value::new(payloads);
    for entry in entries {
        let (version, tags) = (entry.version(), entry.tags());
        let has = |is: bool, flag: u8| if is { flag } else { 0 };
        value.byte(has(version.is_some(), HAS_VERSION) | has(tags.is_some(), HAS_TAGS));
        value.number(entry.unix_ms());
        value.bytes(entry.payload());
        if let Some(version) = version {
            value.number(version);
        }
        if let Some(tags) = tags {
            value.bytes(tags);
        }
    }
    value.finish(&block_key(stream, first))
}

/// None: it is damaged.
pub(crate) fn decode_block(stream: u64, first: u64, value: &[u8]) -> Option<Vec<Entry>> {
    Reader::new(&block_key(stream, first), value)?.all(|reader| {
        let flags = reader.byte()?;
        let (unix_ms, payload) = (reader.number()?, reader.bytes()?);
        let version = if flags & HAS_VERSION != 0 { Some(reader.number()?) } else { None };
        let tags = if flags & HAS_TAGS != 0 { Some(reader.bytes()?) } else { None };
        Some(Entry::restored(payload, version, tags, unix_ms))
    })
}

pub(crate) fn encode_answers(number: u64, answers: &[StoredKey<Published>]) -> Vec<u8> {
    let mut value = Value::new(answers.len() * 100);
    for StoredKey { channel, key, answer, since_ms } in answers {
        let Published { deliveries, position, is_stale } = answer;
        let flags = if position.is_some() { HAS_POSITION } else { 0 };
        value.byte(flags | if *is_stale { IS_STALE } else { 0 });
        value.bytes(channel);
        value.bytes(key);
        value.number(*since_ms);
        value.number(*deliveries);
        if let Some(Position { epoch, offset }) = position {
            value.number(*epoch);
            value.number(*offset);
        }
    }
    value.finish(&key(number))
}

/// None: it is damaged.
pub(crate) fn decode_answers(number: u64, value: &[u8]) -> Option<Vec<StoredKey<Published>>> {
    Reader::new(&key(number), value)?.all(|reader| {
        let flags = reader.byte()?;
        let (channel, key) = (reader.bytes()?.into(), reader.bytes()?.into());
        let (since_ms, deliveries) = (reader.number()?, reader.number()?);
        let position = match flags & HAS_POSITION {
            0 => None,
            _ => Some(Position { epoch: reader.number()?, offset: reader.number()? }),
        };
        let answer = Published { deliveries, position, is_stale: flags & IS_STALE != 0 };
        Some(StoredKey { channel, key, answer, since_ms })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(rng: &mut fastrand::Rng) -> StoredStream {
        let (mut epoch, mut base) = (0, 0);
        let epochs = (0..rng.usize(1..4)).map(|_| {
            epoch += rng.u64(1..1 << 60);
            base += rng.u64(..5);
            Epoch { epoch, base }
        });
        let epochs: Vec<Epoch> = epochs.collect();
        let last = base + rng.u64(..9);
        StoredStream {
            id: rng.u64(..),
            name: (0..rng.usize(..9)).map(|_| rng.u8(..)).collect(),
            epochs,
            first: rng.u64(1..last + 2),
            last,
            active_ms: rng.u64(..),
            has_listeners: rng.bool(),
        }
    }

    fn entry(rng: &mut fastrand::Rng) -> Entry {
        let payload: Vec<u8> = (0..rng.usize(..50)).map(|_| rng.u8(..)).collect();
        let version = rng.bool().then(|| rng.u64(..));
        let tags = rng.bool().then_some(b"{\"a\":\"b\"}".as_slice());
        Entry::restored(&payload, version, tags, rng.u64(..1 << 50))
    }

    fn answer(rng: &mut fastrand::Rng) -> StoredKey<Published> {
        let position = rng.bool().then(|| Position { epoch: rng.u64(..), offset: rng.u64(..) });
        let answer = Published { deliveries: rng.u64(..), position, is_stale: rng.bool() };
        StoredKey { channel: [1, 2].into(), key: [3].into(), answer, since_ms: rng.u64(..) }
    }

    #[test]
    fn what_was_written_is_read_and_what_was_changed_is_not() {
        for seed in 0..500 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let stream = stream(&mut rng);
            let (id, first, number) = (stream.id, stream.first, rng.u64(..));
            let entries: Vec<Entry> = (0..rng.usize(..5)).map(|_| entry(&mut rng)).collect();
            let answers: Vec<_> = (0..rng.usize(..5)).map(|_| answer(&mut rng)).collect();
            let mut of_stream = encode_stream(&stream);
            let mut block = encode_block(id, first, &entries);
            let mut of_answers = encode_answers(number, &answers);
            assert_eq!(decode_stream(id, &of_stream), Some(stream), "seed {seed}");
            assert_eq!(decode_block(id, first, &block).as_ref(), Some(&entries), "seed {seed}");
            assert_eq!(decode_answers(number, &of_answers), Some(answers), "seed {seed}");
            // Under another key it is another one's.
            assert_eq!(decode_block(id, first + 1, &block), None, "seed {seed}");
            for value in [&mut of_stream, &mut block, &mut of_answers] {
                match rng.bool() {
                    true => {
                        let at = rng.usize(..value.len());
                        value[at] ^= 1 << rng.u8(..8);
                    }
                    false => value.truncate(rng.usize(..value.len())),
                }
            }
            assert_eq!(decode_stream(id, &of_stream), None, "seed {seed}");
            assert_eq!(decode_block(id, first, &block), None, "seed {seed}");
            assert_eq!(decode_answers(number, &of_answers), None, "seed {seed}");
        }
    }

    #[test]
    fn keys_are_in_the_order_of_numbers() {
        assert!(block_key(1, u64::MAX) < block_key(2, 0));
        assert_eq!(block_of(&block_key(7, 9)), Some((7, 9)));
        assert_eq!(number_of(&key(7)), Some(7));
    }
}
